#!/bin/sh
# check_layering_test.sh: plants one violation at a time into a small clean tree and wants each to be
# found, by file and line; and wants what is allowed to pass.
set -eu
checker=$(cd "$(dirname "$0")" && pwd)/check_layering.sh
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
failures=0

fail() {
  echo "FAILED: $1"
  failures=$((failures + 1))
}

clean_tree() {
  rm -rf "${tree:?}"/*
  mkdir -p "$tree/kernels/cuda" "$tree/kernels/cpu" "$tree/parallel/mpi" "$tree/parallel/nccl" \
    "$tree/runtime/engine" "$tree/server"
  printf '#include <vector>\n' > "$tree/kernels/ops.h"
  printf '#include "kernels/ops.h"\n' > "$tree/parallel/linear.h"
  printf '#include "parallel/linear.h"\n' > "$tree/runtime/engine/engine.h"
  printf '#include "runtime/engine/engine.h"\n#include "shoal/v1/inference.pb.h"\n' > "$tree/server/main.cpp"
  # Back ends at home, and names in comments, strings and after a digit separator.
  printf '#include <mpi.h>\nint r = MPI_Init(0, 0);\n' > "$tree/parallel/mpi/group.cpp"
  printf '#include <nccl.h>\ncudaStream_t s; ncclComm_t c;\n' > "$tree/parallel/nccl/group.cpp"
  printf '__global__ void f(); cudaStream_t s;\n' > "$tree/kernels/cuda/ops.cu"
  printf '#include "parallel/mpi/group.h"\n#include "kernels/cpu/cpu_backend.h"\nMpiRuntime m;\n' \
    > "$tree/runtime/backend.cpp"
  cat > "$tree/server/flags.cpp" <<'SOURCE'
// MPI_Init and cudaMalloc are called elsewhere.
/* ncclSend
   cudaFree */ const char* device = "cudaX MPI_X \" nccl";
int big = 10'000, small = 1; const char quote = '"';
bool kCudaFound = SHOAL_WITH_MPI;
SOURCE
}

# want_found FILE LINE TEXT: TEXT, appended to FILE, has to be reported at LINE.
want_found() {
  clean_tree
  printf '%s\n' "$3" >> "$tree/$1"
  if output=$(sh "$checker" "$tree" 2>&1); then
    fail "not found: $1: $3"
  elif ! printf '%s\n' "$output" | grep -q "^$1:$2: "; then
    fail "wrong place for $1:$2: $output"
  fi
}

clean_tree
sh "$checker" "$tree" > /dev/null || { fail "the clean tree does not pass"; sh "$checker" "$tree" || true; }

want_found kernels/ops.h 2 '#include "parallel/linear.h"'
want_found kernels/ops.h 2 '  #  include "server/main.h"'
want_found parallel/linear.h 2 '#include "runtime/engine/engine.h"'
want_found runtime/engine/engine.h 2 '#include "server/flags.h"'
want_found runtime/engine/engine.h 2 '#include "shoal/v1/inference.pb.h"'
want_found server/main.cpp 3 '#include "tests/support/skip.h"'
want_found parallel/linear.h 2 '#include "../runtime/engine/engine.h"'
want_found parallel/linear.h 2 '#include <mpi.h>'
want_found parallel/linear.h 2 '#include "parallel/mpi/group.h"'
want_found runtime/engine/engine.h 2 '#include "kernels/cpu/cpu_backend.h"'
want_found runtime/engine/engine.h 2 'int rc = MPI_Barrier(MPI_COMM_WORLD);'
want_found server/main.cpp 3 'shoal::MpiRuntime runtime;'
want_found kernels/cpu/ops.cpp 1 'void* p; cudaMalloc(&p, 1);'
want_found parallel/linear.h 2 'ncclComm_t comm;  // here'
want_found kernels/cuda/ops.cu 2 'ncclComm_t comm;'
want_found kernels/cuda/ops.cu 2 '#include <mpi.h>'
want_found runtime/engine/engine.h 2 '/* a */ cudaStream_t stream;'
want_found runtime/engine/engine.h 2 "int n = 10'000; cublasLtHandle_t h; // 10'000"
want_found server/flags.cpp 6 'const char* a = "x"; MPI_Comm c; const char* b = "y";'

rm -rf "${tree:?}"/*
if sh "$checker" "$tree" > /dev/null 2>&1; then fail "an empty tree passes"; fi

[ "$failures" -eq 0 ] || exit 1
echo "every planted violation was found"
