#!/usr/bin/env bash
# From a fresh Debian 12 to an answer: installs what is missing, builds, serves the bundled demo model
# on two ranks, asks it a question over gRPC, stops the server, and says how to go on.
#   deploy/quickstart.sh [question]
# A second run finds everything built and takes seconds.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/deploy/common.sh"

question=${*:-What is 38 + 14?}
model=deploy/demo-model
build=build/release
shoal=$build/bin/shoal
logs=$build/quickstart
ready_within_s=120
stop_within_s=40  # more than the server's own --drain-timeout

# gRPC clients would ask an http_proxy for loopback too.
export no_grpc_proxy=127.0.0.1,localhost
cd "$root"
mkdir -p "$logs"
server_pid=

step() { printf '[%d/5] %s\n' "$1" "$2"; }

# Asks the server to end, and makes sure of it.
stop_server() {
  [[ -n $server_pid ]] || return 0
  local pid=$server_pid rc=0
  server_pid=
  kill -TERM "$pid" 2>/dev/null || true
  for ((i = 0; i < stop_within_s * 10; ++i)); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  kill -KILL "$pid" 2>/dev/null || true
  wait "$pid" || rc=$?
  return "$rc"
}
trap 'stop_server || true' EXIT
trap 'exit 130' INT TERM

step 1 "packages"
deploy/install_deps.sh | sed 's/^/      /'

step 2 "device"
echo "      $(describe_device)"

step 3 "build ($build, $(build_jobs) jobs; log: $logs/build.log)"
start=$SECONDS
# A toolkit without a GPU would double the time of the build for code that cannot run here.
cuda=AUTO
if (($(count_gpus) == 0)); then cuda=OFF; fi
cmake --preset release "-DSHOAL_CUDA=$cuda" >"$logs/configure.log" 2>&1 ||
  die "configuring failed: $(grep -m1 -A2 'CMake Error' "$logs/configure.log" | tr -s '\n ' ' ')" \
    "(log: $logs/configure.log)"
cmake --build "$build" --target shoal -j "$(build_jobs)" 2>&1 | tee "$logs/build.log" | show_progress ||
  die "building failed: $(grep -m1 -E 'error: |undefined reference|^FAILED' "$logs/build.log") (log: $logs/build.log)"
echo "      built in $((SECONDS - start)) s"

ranks=2
if (($(nproc) < 2)); then ranks=1; fi
step 4 "shoal serve --model $model --device cpu --tensor-parallel-size $ranks (log: $logs/serve.log)"
# Any free port: another server may have the usual one.
# On the CPU also where there are GPUs: the model has 8 MB, and two ranks would need two GPUs.
"$shoal" serve --model "$model" --device cpu --tensor-parallel-size "$ranks" --port 0 \
  >"$logs/serve.log" 2>&1 </dev/null &
server_pid=$!
address=
for ((i = 0; i < ready_within_s * 10; ++i)); do
  address=$(sed -n 's/.*Ready: .* on \([^ ]*:[0-9]*\).*/\1/p' "$logs/serve.log" | head -n 1)
  [[ -z $address ]] || break
  kill -0 "$server_pid" 2>/dev/null ||
    die "the server ended: $(tail -n 1 "$logs/serve.log") (log: $logs/serve.log)"
  sleep 0.1
done
[[ -n $address ]] || die "the server is not ready after $ready_within_s s (log: $logs/serve.log)"
echo "      ready on $address"

step 5 "shoal chat \"$question\""
"$shoal" chat --server "$address" "$question" ||
  die "no answer (log: $logs/serve.log)"

stop_server || die "the server did not end cleanly: $(tail -n 1 "$logs/serve.log") (log: $logs/serve.log)"

cat <<END

Done in $SECONDS s. To go on, in one terminal:
  $shoal serve --model $model --device cpu --tensor-parallel-size $ranks
and in another:
  $shoal chat                    # a session; Ctrl-C stops an answer, Ctrl-D ends it
  $shoal chat "Plural of fox?"   # one question
  $shoal inspect --model $model
  tests/run.sh                                   # every test
END
