#!/usr/bin/env bash
# Prometheus's configuration and alert rules through promtool: they are valid, a healthy server fires none,
# and each is fired by what it is for (alerts_test.yml, which knows them all).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
command -v promtool >/dev/null || { echo "SKIPPED: no promtool (Debian's package prometheus)"; exit 0; }
promtool check config "$root/deploy/prometheus/prometheus.yml"
cd "$root/tests/deploy"
promtool test rules alerts_test.yml
mapfile -t alerts < <(sed -n 's/^ *- alert: *//p' "$root/deploy/prometheus/alerts.yml")
((${#alerts[@]} > 0)) || { echo "no alerts"; exit 1; }
for alert in "${alerts[@]}"; do
  grep -q "alertname: $alert}" alerts_test.yml || { echo "$alert is not tested with a healthy server"; exit 1; }
  grep -q "alertname=\"$alert\"" alerts_test.yml || { echo "$alert is never fired"; exit 1; }
done
