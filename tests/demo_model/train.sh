#!/bin/bash
# Trains, exports and examines the demo model: train.sh [WORK_FOLDER [CHECKPOINT_FOLDER]]
# Needs a Python with torch, transformers, tokenizers and safetensors (see README.md); PYTHON names it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=${1:-$here/../../build/demo-model}
target=${2:-$here/../../deploy/demo-model}
python=${PYTHON:-python3}
export OMP_WAIT_POLICY=passive PYTHONDONTWRITEBYTECODE=1

bf16=()
if grep -q avx512_bf16 /proc/cpuinfo; then bf16=(--bf16); fi # a third faster there; slower where it is emulated

"$python" "$here/train.py" --out "$work" "${bf16[@]}"
"$python" "$here/export.py" --run "$work" --to "$target"
"$python" "$here/generate.py" --questions "$here/questions.jsonl"
"$python" "$here/evaluate.py" --model "$target" --report "$work/answers.jsonl"
