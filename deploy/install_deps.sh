#!/usr/bin/env bash
# Installs with apt the Debian packages that building and testing Shoal need and that are missing.
# Does nothing, and asks for no rights, when all are there. The one list of packages: the quick start
# and tests/run.sh call this.
#   deploy/install_deps.sh [--one-rank]    without what only the server and several ranks need
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

packages=(
  g++ cmake ninja-build ccache git pkg-config  # build
  libhwy-dev  # SIMD
  libpcre2-dev libutf8proc-dev nlohmann-json3-dev  # tokenizer and checkpoint files
  libspdlog-dev libfmt-dev libcli11-dev  # log and command line
  libssl-dev  # TLS, keys; names and sums of KV pages in files
  catch2 zlib1g-dev shellcheck iproute2 python3-venv  # tests
)
case ${1-} in
  "")
    packages+=(
      libgrpc++-dev protobuf-compiler protobuf-compiler-grpc libprotobuf-dev  # gRPC
      libopenmpi-dev openmpi-bin  # ranks
      libcpp-httplib-dev prometheus-cpp-dev  # metrics over HTTP, traces
    ) ;;
  --one-rank) ;;
  *) die "unknown argument $1; known is --one-rank" ;;
esac

command -v dpkg-query >/dev/null ||
  die "this is no Debian; install what these packages of Debian 12 hold: ${packages[*]}"

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
  [[ $status == installed ]] || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
  echo "packages: all ${#packages[@]} there"
  exit 0
fi

as_root=()
if ((EUID != 0)); then
  command -v sudo >/dev/null || die "run as root: apt-get install ${missing[*]}"
  as_root=(sudo)
fi
# Another apt (unattended upgrades of a new machine) may hold the lock for minutes.
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300
  -o Acquire::Retries=3)

echo "packages: installing ${missing[*]}"
log=$(mktemp -t shoal-apt.XXXXXX)
start=$SECONDS
{ "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "${missing[@]}"; } \
  >"$log" 2>&1 </dev/null || die "apt-get failed: $(grep -m1 '^E:' "$log" || tail -n 1 "$log") (log: $log)"
rm -f "$log"
echo "packages: installed ${#missing[@]} in $((SECONDS - start)) s"
