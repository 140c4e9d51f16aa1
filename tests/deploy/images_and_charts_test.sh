#!/usr/bin/env bash
# Fetches the tools where they are to be had, and runs the test of the same name.
#   images_and_charts_test.sh TOOLS_FOLDER SHOAL
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if ! tools=$("$here/tools.sh" "$1" 2>&1); then
  echo "SKIPPED: $tools"
  exit 0
fi
PYTHONPATH=$tools PYTHONDONTWRITEBYTECODE=1 exec python3 "$here/images_and_charts_test.py" "$here/../.." "$2"
