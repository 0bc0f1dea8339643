#!/usr/bin/env bash
# Lints the code, checks the types of the package, and runs the tests. Arguments go to pytest: bash scripts/test.sh -k losses
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

cat << 'END'
Checks udl_basicsr: makes or reuses the environment .venv, runs ruff, pyright, then pytest.
The first call installs (about 3 minutes, 6 GB); the tests take 7 minutes on 2 idle cores, elsewhere up to twice that.
END
environment test ruff pytest xdist hypothesis playwright skimage scipy spandrel safetensors onnx onnxruntime onnxscript
step 'ruff' "$PYTHON" -m ruff check .
if can_import "$PYTHON" basedpyright; then  # pyright, with Node.js in its wheel
    step 'pyright' "$PYTHON" -m basedpyright --pythonpath "$PYTHON" --level error
else
    echo 'pyright is left out: it is not installed (pip install basedpyright)'
fi
# All of the tests run in two processes, of which the one that is done first takes over half of what the other has left; a
# part of them in one, where a debugger can stop.
if [ $# -eq 0 ]; then
    step 'pytest' "$PYTHON" -m pytest -n 2 --dist worksteal
else
    step 'pytest' "$PYTHON" -m pytest "$@"
fi
# The tests above hide a GPU; these are for one.
if [ $# -eq 0 ] && "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    UDL_TEST_DEVICE=cuda step 'pytest on the GPU' "$PYTHON" -m pytest tests/gpu
fi
printf '\nAll checks passed in %d s.\n' "$SECONDS"
