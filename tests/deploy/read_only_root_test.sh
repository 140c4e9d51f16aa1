#!/usr/bin/env bash
# `shoal serve` of two ranks as the container runs it: user 1000 without capabilities, nothing that can be
# written but /dev/shm. In a mount namespace of this machine in place of an image.
#   read_only_root_test.sh SHOAL
set -euo pipefail
shoal=${1:?usage: read_only_root_test.sh SHOAL}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
model=$root/deploy/demo-model

skip() { echo "SKIPPED: $*"; exit 0; }
((EUID == 0)) || skip "not root"
unshare --mount --ipc --pid --fork true 2>/dev/null || skip "no namespaces here"
as_user=(setpriv --reuid 1000 --regid 1000 --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all)
"${as_user[@]}" test -x "$shoal" -a -r "$model/config.json" || skip "user 1000 cannot read $shoal"

# shellcheck disable=SC2016  # the inner shell's own
unshare --mount --ipc --pid --fork --kill-child bash -euo pipefail -c '
  shoal=$1 model=$2; shift 2
  mount --make-rprivate /
  mount -t proc proc /proc
  # Everything read-only, then one place in memory.
  findmnt --noheadings --list --output TARGET | sort -u | while IFS= read -r place; do
    case $place in /proc* | /sys* | /dev | /dev/*) continue ;; esac
    mount -o remount,bind,ro "$place" 2>/dev/null || { mount --bind "$place" "$place" && mount -o remount,bind,ro "$place"; }
  done
  mount -t tmpfs -o size=256m,mode=1777 tmpfs /dev/shm
  log=/dev/shm/log
  : >$log
  "$@" bash -c "! touch /tmp/shoal-read-only 2>/dev/null" || { echo "/tmp can be written"; exit 1; }

  env -u TMPDIR HOME=/nonexistent "$@" "$shoal" serve --model "$model" --tensor-parallel-size 2 --port 0 2>$log &
  for ((i = 0; i < 600; ++i)); do
    grep -q "Ready: " $log && break
    kill -0 $! 2>/dev/null || { cat $log; exit 1; }
    sleep 0.1
  done
  address=$(sed -n "s/.*--server \([0-9.:]*\).*/\1/p" $log)
  "$@" "$shoal" health --server "$address"
  answer=$("$@" "$shoal" chat --server "$address" --temperature 0 --max-tokens 8 "Tell me about the sea")
  [[ -n $answer ]]
  # setpriv has become the server, so $! is its.
  kill -TERM $!
  wait $! || { echo "exit code $?"; cat $log; exit 1; }
  rm $log
  left=$(ls -A /dev/shm)
  [[ -z $left ]] || { echo "left in /dev/shm: $left"; exit 1; }
  echo "$answer"
' bash "$shoal" "$model" "${as_user[@]}"
