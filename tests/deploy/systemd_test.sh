#!/usr/bin/env bash
# The unit through systemd's own checks, and its settings against the program's flags.
#   systemd_test.sh SHOAL
set -euo pipefail
shoal=${1:?usage: systemd_test.sh SHOAL}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
command -v systemd-analyze >/dev/null || { echo "SKIPPED: no systemd-analyze"; exit 0; }
work=$(mktemp -d -t shoal-unit.XXXXXX)
trap 'rm -rf "$work"' EXIT

# verify looks for the program where the unit says.
sed "s#/usr/local/bin/shoal#$shoal#" "$root/deploy/systemd/shoal.service" >"$work/shoal.service"
output=$(systemd-analyze verify --recursive-errors=no "$work/shoal.service" 2>&1) || { echo "$output"; exit 1; }
[[ -z $output ]] || { echo "systemd-analyze verify: $output"; exit 1; }

# Tenths. 100: no protection at all.
figure=$(systemd-analyze security --offline=true "$work/shoal.service" --no-pager |
  sed -n 's/.*Overall exposure level.*: \([0-9]*\)\.\([0-9]\).*/\1\2/p')
echo "exposure: $figure tenths"
((10#$figure <= 20)) || { echo "systemd-analyze security: $figure tenths, at most 20"; exit 1; }

if command -v systemd-sysusers >/dev/null; then
  systemd-sysusers --dry-run "$root/deploy/systemd/shoal.sysusers" >/dev/null 2>"$work/log" || { cat "$work/log"; exit 1; }
fi

# Every variable of the example is one that a flag reads: the program warns of others.
sed 's/^#\(SHOAL_\)/\1/' "$root/deploy/systemd/shoal.env" | grep '^SHOAL_' >"$work/env"
(($(wc -l <"$work/env") >= 8))
output=$(env -i PATH="$PATH" bash -c "set -a; . '$work/env'; SHOAL_MODEL=/nonexistent; exec '$shoal' serve" 2>&1) && {
  echo "a server of no model came up"; exit 1; }
if grep -i "unknown environment" <<<"$output"; then exit 1; fi
