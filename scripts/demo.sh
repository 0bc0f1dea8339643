#!/usr/bin/env bash
# The whole path on real photographs, in minutes and on a CPU. See the text it prints.
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

data_only=
case "${1:-}" in
    '') ;;
    --data-only) data_only=1 ;;
    *) fail "unknown argument $1; usage: bash scripts/demo.sh [--data-only]" ;;
esac
[ $# -le 1 ] || fail 'usage: bash scripts/demo.sh [--data-only]'

cat << 'END'
The demo of udl_basicsr: under 10 minutes on 2 idle CPU cores, about 6 when the environment is there.
  1. uses the active environment if udl_basicsr is in it; else makes .venv (3 minutes and about 6 GB the first time)
  2. prepares the photographs that scikit-image ships, halved in size, in datasets/demo
  3. trains a small EDSR x2: with L1; with ESU (image and uncertainty), then UDL (weighted by the uncertainty)
  4. tests bicubic, L1 and UDL on photographs that were not trained on
  5. prints the table and draws results/demo/*.png
On cores that other programs use too: OMP_NUM_THREADS=1 bash scripts/demo.sh
It replaces what an earlier demo left in experiments/demo_* and results/demo*.
END
[ -z "$data_only" ] || echo 'With --data-only it stops after 2.'

train() {
    local status=0
    "$PYTHON" -m udl_basicsr train -opt "options/demo/train_$1.yml" || status=$?
    [ $status -ne 75 ] || echo 'The demo does not go on: started again, it trains anew.' >&2
    return $status
}

prepare() {
    "$PYTHON" scripts/demo.py photos
    "$PYTHON" -m udl_basicsr prepare datasets/demo/photos/train --out datasets/demo/train --scale 2 --sub_images 160
    "$PYTHON" -m udl_basicsr prepare datasets/demo/photos/val --out datasets/demo/val --scale 2
    "$PYTHON" -m udl_basicsr prepare datasets/demo/photos/test --out datasets/demo/test --scale 2 --report_bicubic
}

evaluate() {
    "$PYTHON" scripts/demo.py bicubic
    "$PYTHON" -m udl_basicsr test -opt options/demo/train_L1.yml
    "$PYTHON" -m udl_basicsr test -opt options/demo/test.yml
}

report() {
    "$PYTHON" scripts/demo.py figure
    "$PYTHON" -m udl_basicsr scores results/demo_bicubic results/demo_L1 results/demo_UDL \
        --reference demo_L1 --format md --out results/demo/table.md
    echo
    "$PYTHON" -m udl_basicsr scores results/demo_bicubic results/demo_L1 results/demo_UDL --reference demo_L1
}

environment demo skimage
step 'Photographs' prepare
[ -z "$data_only" ] || exit 0

rm -rf experiments/demo_L1 experiments/demo_ESU experiments/demo_UDL \
    results/demo results/demo_L1 results/demo_UDL results/demo_bicubic
step 'Training with L1' train L1
step 'Training with ESU, then UDL' train UDL
step 'Testing' evaluate
step 'Table and figures' report
cat << END

Finished in $SECONDS s. Look at results/demo/*.png; the networks are in experiments/demo_UDL/models.
One demo on a few photographs says little about the losses. README.md tells how to train, docs/COMPARE.md how to compare.
END
