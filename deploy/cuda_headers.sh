#!/usr/bin/env bash
# Prints the folders of CUDA's, cuBLASLt's and NCCL's header files, separated by ";": those of an installed
# toolkit, or else taken out of NVIDIA's packages on PyPI (750 MB that are looked through and dropped; the
# headers, 30 MB, stay). What -DSHOAL_CUDA=EMULATED needs; nothing of it is linked or run.
#   deploy/cuda_headers.sh FOLDER      where to keep what comes from PyPI
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
keep=${1:?usage: deploy/cuda_headers.sh FOLDER}

# Of CUDA 13.0: what the emulation's stand-ins are written for.
packages=(nvidia-cuda-runtime==13.0.96 nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85
  nvidia-cublas==13.1.0.3 nvidia-nccl-cu13==2.28.9)
limit_s=300

found=()
for header in cuda_runtime.h cublasLt.h nccl.h; do
  for folder in ${CUDA_HOME:+"$CUDA_HOME/include"} /usr/local/cuda/include /opt/cuda/include \
    /usr/include /usr/local/include "$keep/nvidia/cu13/include" "$keep/nvidia/nccl/include"; do
    if [[ -f $folder/$header ]]; then
      found+=("$folder")
      break
    fi
  done
done
if ((${#found[@]} < 3)); then
  python3 -m pip --version >/dev/null 2>&1 ||
    die "no CUDA headers on this machine, and no python3 with pip to take them from PyPI"
  wheels=$(mktemp -d -t shoal-wheels.XXXXXX)
  trap 'rm -rf "$wheels"' EXIT
  timeout "$limit_s" python3 -m pip download --quiet --no-deps --dest "$wheels" "${packages[@]}" \
    >"$wheels/log" 2>&1 || die "PyPI does not give ${packages[*]}: $(tail -n 1 "$wheels/log")"
  python3 - "$wheels" "$keep" <<'PYTHON'
import pathlib, sys, zipfile
for wheel in pathlib.Path(sys.argv[1]).glob("*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(sys.argv[2], [n for n in archive.namelist() if "/include/" in n])
PYTHON
  found=("$keep/nvidia/cu13/include" "$keep/nvidia/nccl/include")
fi
(IFS=$'\n'; sort -u <<<"${found[*]}") | paste -sd';'
