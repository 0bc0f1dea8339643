#!/usr/bin/env bash
# Lints the code and runs the tests. Arguments go to pytest: bash scripts/test.sh -k losses
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

cat << 'END'
Checks udl_basicsr: makes or reuses the environment .venv, runs ruff, then pytest.
The first call installs (about 3 minutes, 6 GB); the tests take a few minutes on 2 cores.
END
environment test ruff pytest hypothesis skimage scipy spandrel safetensors onnx onnxruntime onnxscript
step 'ruff' "$PYTHON" -m ruff check .
step 'pytest' "$PYTHON" -m pytest "$@"
# The tests above hide a GPU; these are for one.
if [ $# -eq 0 ] && "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    UDL_TEST_DEVICE=cuda step 'pytest on the GPU' "$PYTHON" -m pytest tests/gpu
fi
printf '\nAll checks passed in %d s.\n' "$SECONDS"
