#!/usr/bin/env bash
# Every script of the repository through shellcheck; those of deploy/ are held to its style, too.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
command -v shellcheck >/dev/null || { echo "SKIPPED: no shellcheck"; exit 0; }
# By their first line: some have no ending.
mapfile -t scripts < <(grep -rlIE '^#!/(usr/bin/env bash|bin/(ba)?sh)' deploy tests .ci 2>/dev/null | sort)
((${#scripts[@]} >= 8)) || { echo "only ${#scripts[@]} scripts were found"; exit 1; }
shellcheck --external-sources --source-path=SCRIPTDIR --severity=warning "${scripts[@]}"
mapfile -t own < <(printf '%s\n' "${scripts[@]}" | grep '^deploy/\|^tests/deploy/')
shellcheck --external-sources --source-path=SCRIPTDIR "${own[@]}"
for script in "${own[@]}"; do
  # common.sh and its like are sourced and have no first line.
  [[ -x $script ]] || { echo "$script is not executable"; exit 1; }
done
echo "${#scripts[@]} scripts"
