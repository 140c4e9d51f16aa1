#!/usr/bin/env bash
# Builds Shoal for this machine's GPU without its server, runs the tests of the kernels and of whole models
# on it, then the benches, and writes what it found and measured to build/gpu/gpu_check.txt.
#   deploy/gpu_check.sh [flags]
#     --only TEXT    rows of the benches that contain TEXT ("mla_decode", "V2-Lite int4x2")
#     --jobs N       compiler processes (default: what cores and memory allow)
#     --no-tests     the benches alone
#     --sanitize     also every kernel test under compute-sanitizer, memcheck and racecheck (slow)
#     --emulated     the same on an emulated GPU, with tiny shapes: checks this script, not a GPU
#     --help
# Needs nvcc with cuBLASLt, NCCL, CMake, a C++20 compiler and some small libraries, but no gRPC, no MPI and no
# network. What is missing it names in one line, or installs where it is root and there is apt. Libraries in
# unusual places: CMAKE_PREFIX_PATH=DIR:DIR. cuBLASLt and NCCL may be those of Python's nvidia packages.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/deploy/common.sh"
cd "$root"

only='' jobs='' tests=1 sanitize='' emulated=''
while (($# > 0)); do
  case $1 in
    --only | --jobs)
      (($# > 1)) || die "$1 needs a value"
      if [[ $1 == --only ]]; then only=$2; else jobs=$2; fi
      shift ;;
    --no-tests) tests= ;;
    --sanitize) sanitize=1 ;;
    --emulated) emulated=1 ;;
    --help)
      sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
      exit 0 ;;
    *) die "unknown argument $1; see --help" ;;
  esac
  shift
done
[[ -z $jobs || $jobs =~ ^[1-9][0-9]*$ ]] || die "--jobs $jobs: give a number of 1 or more"
: "${jobs:=$(build_jobs)}"

build=build/gpu${emulated:+-emulated}
report=$build/gpu_check.txt
limit_s=1800  # of one bench: a kernel that hangs must not hold a lent machine
mkdir -p "$build"
failed=()

step() { printf '[%d/5] %s\n' "$1" "$2"; }
say() { printf '%s\n' "$*" | tee -a "$report"; }

# Names what a compiler or CMake would miss later, one by one.
missing_things() {
  local cxx prefix header places=()
  cxx=$(command -v "${CXX:-c++}" || command -v g++ || true)
  [[ -n $cxx ]] || echo "a C++ compiler"
  command -v cmake >/dev/null || echo "cmake"
  command -v ninja >/dev/null || command -v make >/dev/null || echo "ninja or make"
  command -v pkg-config >/dev/null || echo "pkg-config"
  [[ -n $cxx ]] || return 0
  IFS=: read -ra prefixes <<<"${CMAKE_PREFIX_PATH-}"
  for prefix in "${prefixes[@]}"; do places+=(-isystem "$prefix/include"); done
  for header in hwy/highway.h pcre2.h utf8proc.h nlohmann/json.hpp spdlog/spdlog.h fmt/format.h CLI/CLI.hpp \
    catch2/catch.hpp zlib.h; do
    "$cxx" "${places[@]}" -DPCRE2_CODE_UNIT_WIDTH=8 -std=c++20 -include "$header" -E -x c++ /dev/null \
      >/dev/null 2>&1 || echo "$header"
  done
}

# The folder of one of Python's nvidia packages ("nccl", "cu13"), or nothing.
python_package() {
  python3 -c 'import nvidia, os, sys
for base in nvidia.__path__:
    folder = os.path.join(base, sys.argv[1])
    if os.path.isdir(folder): print(folder); break' "$1" 2>/dev/null || true
}

step 1 "what is there"
if [[ -n $emulated ]]; then
  card="emulated GPU"
else
  nvcc=$(command -v nvcc || true)
  for folder in "${CUDA_HOME-}" /usr/local/cuda /opt/cuda; do
    if [[ -z $nvcc && -x $folder/bin/nvcc ]]; then nvcc=$folder/bin/nvcc; fi
  done
  [[ -n $nvcc ]] || die "no nvcc: install the CUDA toolkit, or give CUDA_HOME"
  toolkit=$(cd "$(dirname "$(readlink -f "$nvcc")")/.." && pwd)
  card=$(timeout 20 nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null |
    head -n 1) || true
  [[ -n $card ]] || die "no GPU that nvidia-smi sees; --emulated runs the same without one"
  sanitizer=$(command -v compute-sanitizer || true)
  if [[ -z $sanitizer && -x $toolkit/bin/compute-sanitizer ]]; then sanitizer=$toolkit/bin/compute-sanitizer; fi
  [[ -z $sanitize || -n $sanitizer ]] || die "--sanitize: no compute-sanitizer"
fi
missing=$(missing_things | paste -sd' ')
if [[ -n $missing ]]; then
  if ((EUID == 0)) && command -v apt-get >/dev/null && [[ -z ${CMAKE_PREFIX_PATH-} ]]; then
    deploy/install_deps.sh --one-rank | sed 's/^/      /' ||
      die "missing: $missing; install them, or give their folders in CMAKE_PREFIX_PATH"
    missing=$(missing_things | paste -sd' ')
  fi
  [[ -z $missing ]] || die "missing: $missing; install them, or give their folders in CMAKE_PREFIX_PATH"
fi
echo "      $card"

options=(-DCMAKE_BUILD_TYPE=RelWithDebInfo -DSHOAL_SERVER=OFF -DCMAKE_DISABLE_FIND_PACKAGE_MPI=ON)
if command -v ninja >/dev/null && [[ ! -f $build/CMakeCache.txt ]]; then options+=(-G Ninja); fi
if [[ -n $emulated ]]; then
  options+=(-DSHOAL_CUDA=EMULATED "-DSHOAL_CUDA_HEADERS=$(deploy/cuda_headers.sh build/cuda_headers)")
else
  options+=(-DSHOAL_CUDA=ON "-DCMAKE_CUDA_COMPILER=$nvcc")
  nccl=$(python_package nccl)
  if [[ -n $nccl && -z $(find "$toolkit/" /usr/include /usr/local/include -name nccl.h -print -quit 2>/dev/null) ]]; then
    options+=("-DSHOAL_NCCL_INCLUDE=$nccl/include" "-DSHOAL_NCCL_LIBRARY=$(find "$nccl/lib" -name 'libnccl.so*' | head -n 1)")
  fi
  cublas=$(python_package cu13)
  if [[ -n $cublas && -z $(find "$toolkit/" -name 'libcublasLt.so' -print -quit 2>/dev/null) ]]; then
    options+=("-DCUDA_cublasLt_LIBRARY=$(find "$cublas/lib" -name 'libcublasLt.so*' | head -n 1)")
    export CPATH=$cublas/include${CPATH:+:$CPATH}
  fi
fi

step 2 "build ($build, $jobs jobs; log: $build/build.log)"
start=$SECONDS
cmake -S . -B "$build" "${options[@]}" >"$build/configure.log" 2>&1 ||
  die "configuring failed: $(grep -m1 -A2 'CMake Error' "$build/configure.log" | tr -s '\n ' ' ')" \
    "(log: $build/configure.log)"
mapfile -t programs < <(cmake --build "$build" --target help |
  grep -oE '\b(cuda_[a-z_]+_test|golden_test|bench_test|shoal_bench_(kernels|model))\b' | sort -u)
# A program that does not build keeps none of the others from running, nor does an old one of it run.
for program in "${programs[@]}"; do find "$build/tests" -type f -name "$program" -delete; done
keep_going=(-k)
if grep -q '^CMAKE_GENERATOR:INTERNAL=Ninja' "$build/CMakeCache.txt"; then keep_going=(-k 0); fi
cmake --build "$build" -j "$jobs" --target "${programs[@]}" -- "${keep_going[@]}" 2>&1 |
  tee "$build/build.log" | show_progress || true
for program in "${programs[@]}"; do
  [[ -n $(find "$build/tests" -type f -name "$program") ]] || failed+=("the build of $program")
done
echo "      ${#programs[@]} programs, ${#failed[@]} of them failed to build, in $((SECONDS - start)) s"

# Ends in the report whatever the clocks were: a card that is hot or capped measures less.
clocks() {
  [[ -n $emulated ]] || say "clocks: $(timeout 20 nvidia-smi --format=csv,noheader --query-gpu=\
clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.draw,power.limit,temperature.gpu | head -n 1)" \
    "(SM now, most, memory now, most, power now, most, degrees C)"
}

: >"$report"
say "gpu_check $(date -u +%Y-%m-%dT%H:%MZ), commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)" \
  "$(git diff --quiet HEAD 2>/dev/null || echo "and changes")"
say "card: $card"
[[ -n $emulated ]] || say "toolkit: $("$nvcc" --version | sed -n 's/.*\(release.*\)/\1/p')"

step 3 "tests"
if [[ -n $tests ]]; then
  start=$SECONDS
  ctest --test-dir "$build" -R '^(cuda_|bench_test$|golden_test\.cuda\.1$)' --no-tests=error \
    --output-on-failure -j "$((jobs < 4 ? jobs : 4))" >"$build/tests.log" 2>&1 || true
  mapfile -t broken < <(sed -n '/The following tests FAILED/,$ s/^\t *[0-9]* - \([^ ]*\).*/\1/p' "$build/tests.log")
  for name in "${broken[@]}"; do failed+=("the test $name"); done
  passed=$(grep -c '   Passed  ' "$build/tests.log" || true)
  ((passed > 0)) || failed+=("every test")
  say "tests: $passed passed, ${#broken[@]} failed${broken:+ (${broken[*]})}," \
    "$(grep -c '\*\*\*Skipped' "$build/tests.log" || true) skipped, $((SECONDS - start)) s (log: $build/tests.log)"
else
  say "tests: not run (--no-tests)"
fi

step 4 "compute-sanitizer"
if [[ -z $sanitize ]]; then
  say "compute-sanitizer: not run (--sanitize)"
elif [[ -n $emulated ]]; then
  say "compute-sanitizer: none for emulated GPUs; build those with -DSHOAL_SANITIZE=address"
else
  for program in "${programs[@]}"; do
    path=$(find "$build/tests" -type f -name "$program")
    [[ $program == cuda_* && -n $path ]] || continue
    for tool in memcheck racecheck; do
      log=$build/$program.$tool.log
      rc=0
      timeout "$limit_s" "$sanitizer" --tool "$tool" --error-exitcode 9 "$path" >"$log" 2>&1 || rc=$?
      case $rc in
        0) say "$tool $program: clean" ;;
        *)
          say "$tool $program: exit status $rc: $(grep -m1 '^=========' "$log" || tail -n 1 "$log") (log: $log)"
          failed+=("$tool of $program") ;;
      esac
    done
  done
fi

step 5 "benches${only:+ (--only $only)}"
bench_flags=(--device cuda)
if [[ -n $emulated ]]; then bench_flags+=(--tiny --repeats 1); fi
if [[ -n $only ]]; then bench_flags+=(--only "$only"); fi
for bench in kernels model; do
  program=$build/tests/bench/shoal_bench_$bench
  [[ -x $program ]] || continue
  say ""
  clocks
  rc=0
  timeout "$limit_s" "$program" "${bench_flags[@]}" --json "$build/bench_$bench.json" \
    2>"$build/bench_$bench.err" | tee -a "$report" || rc=$?
  # What --only picks in one table need not be in the other.
  if ((rc != 0)) && ! { [[ -n $only ]] && grep -q -- "--only $only: no" "$build/bench_$bench.err"; }; then
    say "shoal_bench_$bench: exit status $rc: $(tail -n 1 "$build/bench_$bench.err")"
    failed+=("shoal_bench_$bench")
  fi
done
say ""
clocks
echo "written to $report"

((${#failed[@]} == 0)) || die "failed: $(IFS=,; echo "${failed[*]}") (report: $report)"
