# Sourced by deploy/*.sh and tests/run.sh: what they say and find out in the same way.
# shellcheck shell=bash

die() {
  printf '%s: error: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

# Compiler processes that fit: one per core, and 1.5 GiB for each (gRPC's headers take 1 GiB).
build_jobs() {
  local available_kib jobs
  jobs=$(nproc)
  available_kib=$(awk '/^MemAvailable:/ {print $2}' /proc/meminfo)
  local fit=$((available_kib / (1536 * 1024)))
  ((fit < 1)) && fit=1
  echo $((fit < jobs ? fit : jobs))
}

# A driver that hangs must not hang us; without a GPU nvidia-smi prints a complaint and fails.
count_gpus() { timeout 20 nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true; }

# One line: what CUDA and which GPUs there are. Never fails.
describe_device() {
  local nvcc toolkit gpus
  nvcc=$(command -v nvcc || true)
  [[ -z $nvcc && -x /usr/local/cuda/bin/nvcc ]] && nvcc=/usr/local/cuda/bin/nvcc
  toolkit="no CUDA toolkit"
  if [[ -n $nvcc ]]; then
    toolkit="CUDA toolkit $("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p') ($nvcc)"
  fi
  gpus=$(count_gpus)
  if ((gpus > 0)); then
    if [[ -n $nvcc ]]; then
      echo "$toolkit, $gpus GPU(s)"
    else
      echo "$toolkit, $gpus GPU(s): without the toolkit the build is for the CPU only"
    fi
  elif [[ -n $nvcc ]]; then
    echo "$toolkit, but no GPU"
  else
    echo "$toolkit, no GPU"
  fi
}

# Ninja's lines in: on a terminal one line that is written over, else a line for every tenth part.
show_progress() {
  local line tenth=0
  while IFS= read -r line; do
    [[ $line =~ ^\[([0-9]+)/([0-9]+)\] ]] || continue
    if [[ -t 1 ]]; then
      printf '\r\033[K      %s' "${line:0:90}"
    elif ((BASH_REMATCH[1] * 10 / BASH_REMATCH[2] > tenth)); then
      tenth=$((BASH_REMATCH[1] * 10 / BASH_REMATCH[2]))
      printf '      %s\n' "$line"
    fi
  done
  if [[ -t 1 ]]; then printf '\r\033[K'; fi
}
