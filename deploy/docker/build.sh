#!/usr/bin/env bash
# Of the Dockerfile's build stages: builds the program without its tests and leaves in OUT (/out)
#   shoal       the program without symbols
#   packages    the distribution's packages that hold the libraries which it is linked with
#   deploy/docker/build.sh [CMake's arguments...]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
source "$root/deploy/common.sh"
: "${OUT:=/out}" "${BUILD:=/build}"

# As the tests are built, so that what runs is what was tested.
cmake -S "$root" -B "$BUILD" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DSHOAL_TESTS=OFF "$@"
cmake --build "$BUILD" --target shoal -j "$(build_jobs)"
mkdir -p "$OUT"
strip -o "$OUT/shoal" "$BUILD/bin/shoal"

# A library's package. On merged file systems ldd says /lib where dpkg knows /usr/lib.
ldd "$OUT/shoal" | awk '$3 ~ /^\// {print $3}' | while IFS= read -r library; do
  real=$(readlink -f "$library")
  { dpkg -S "$library" || dpkg -S "$real" || dpkg -S "${real#/usr}"; } 2>/dev/null | head -n 1 | cut -d: -f1
done | sort -u >"$OUT/packages"
[[ -s $OUT/packages ]] || die "no package holds any library of $OUT/shoal"
