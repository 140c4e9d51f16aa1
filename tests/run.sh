#!/usr/bin/env bash
# Installs what is missing, builds everything and runs every test through CTest.
# Then everything of the CUDA back end once more on emulated GPUs (tests/emulated_cuda), where CUDA's header
# files are or can be had.
#   tests/run.sh [--sanitize address|undefined|thread] [CTest arguments...]
# tests/run.sh -R scheduler       the tests whose name contains "scheduler"
# tests/run.sh --sanitize thread  all of them in a build of their own under ThreadSanitizer
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/deploy/common.sh"

preset=dev
sanitize=
if [[ ${1-} == --sanitize ]]; then
  case ${2-} in
    address) preset=asan ;;
    undefined) preset=ubsan ;;
    thread) preset=tsan ;;
    *) die "--sanitize ${2-}: give address, undefined or thread" ;;
  esac
  sanitize=$2
  shift 2
fi

"$root/deploy/install_deps.sh"
echo "device: $(describe_device)"

# As server/launcher.cpp has it: mpirun refuses root and more ranks than cores unless told, ranks that
# share cores must not be bound, and containers forbid the copies of vader (CMA).
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_MCA_btl_vader_single_copy_mechanism=none
# gRPC clients would ask an http_proxy for loopback too.
export no_grpc_proxy=127.0.0.1,localhost

# Libraries of Debian (gRPC, Open MPI) are not instrumented; tsan.supp says what that costs.
export TSAN_OPTIONS="ignore_noninstrumented_modules=1:suppressions=$root/tests/support/tsan.supp"

build="$root/build/$preset"
cmake -S "$root" --preset "$preset"
cmake --build "$build" -j "$(build_jobs)"
failed=0
no_tests=error  # a filter may name tests of the second build only, but some test has to be there
if (($# > 0)); then no_tests=ignore; fi
ctest --test-dir "$build" --output-on-failure "--no-tests=$no_tests" -j "$(nproc)" "$@" || failed=1

if headers=$("$root/deploy/cuda_headers.sh" "$root/build/cuda_headers"); then
  build="$root/build/emulated${sanitize:+-$sanitize}"
  cmake -S "$root" --preset emulated -B "$build" "-DSHOAL_CUDA_HEADERS=$headers" \
    "-DSHOAL_SANITIZE=$sanitize"
  cmake --build "$build" -j "$(build_jobs)" --target cuda_tests
  ctest --test-dir "$build" --output-on-failure "--no-tests=$no_tests" -L cuda -j "$(nproc)" "$@" ||
    failed=1
else
  echo "SKIPPED: the tests of the CUDA back end on emulated GPUs"
fi
exit "$failed"
