#!/usr/bin/env bash
# Everything that wants a CUDA card, in one run on a machine that has one: the tests of the
# kernels on the card, rendering beside nanodrr, and training where that benchmark exists.
#
#     make setup && .venv/bin/pip install --group dev --group peers
#     benchmarks/gpu.sh
#
# PYTHON chooses another interpreter. Results go to benchmarks/results/.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "gpu.sh: no CUDA device is there (or no torch built for it); nothing was run" >&2
  exit 2
fi
"$python" -c 'import torch, triton; print(torch.cuda.get_device_name(), "- torch", torch.__version__, "- triton", triton.__version__)'

echo "== the kernels on the card against the CPU and the reference"
"$python" -m pytest tests/xray/test_gpu.py -rs

echo "== rendering: xray_speed_gpu"
"$python" benchmarks/gpu_render.py

# ---- training: whatever trains on a card is called here -------------------------------
ablation=("$python" benchmarks/ablation.py --scale full --seeds 1 --accelerator cuda)
echo "== the paper's networks at the paper's scale: VGG-16, then ResNet-50"
"${ablation[@]}" --only base resnet50
echo "== every line of the ablation, three at a time"
"${ablation[@]}" --precision bf16-mixed --at-once 3 --steps "${STEPS:-4000}"
# ---------------------------------------------------------------------------------------
