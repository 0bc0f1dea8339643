#!/usr/bin/env bash
# Everything that only a GPU can show, in MINUTES: the tests in tests/gpu, what a step costs, EDSR-S with L1 and with
# ESU -> UDL; when that has ended, what larger networks cost, and the hours of the papers' tables. For a machine with
# PyTorch and nothing else, not even a network.
#
#   bash scripts/gpu_day.sh MINUTES              # on the GPU; again: it goes on where it stopped
#   bash scripts/gpu_day.sh MINUTES --rehearse   # the same commands on a CPU, with a tiny network
#   bash scripts/gpu_day.sh MINUTES --list       # name, seconds at most and command of each part; runs nothing
#   bash scripts/gpu_day.sh pack [3.12]          # beforehand, with a network: what is to lie in gpu_day/, for that Python
#                                                # (default: this one)
#
# It reads   gpu_day/wheels/*.whl   packages that the machine lacks, and gpu_day/images/{HR,Set5,Set14,BSD100}, unless the
#                                   datasets are there
#            gpu_day/state.*        what an earlier part has left, on another machine
# It writes  $OUT (gpu_day/out)     results.tar.gz: day.json, tests.json, speed*.json, records/*.json, tables, logs;
#                                   state.00, state.01, ...: the runs in progress, to go on with
#            gpu_day/rehearsal_out  by --rehearse, and all else in gpu_day/rehearsal
# What was done is not done again; the folder gpu_day/work remembers it. However the day ends, what there is is handed back.
set -uo pipefail
shopt -s nullglob
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
DAY=$PWD/gpu_day
PYTHON=${PYTHON:-python3} STATE_MB=${STATE_MB:-58}

if [ "${1:-}" = pack ]; then
    mkdir -p "$DAY/wheels"
    # pure Python but for lmdb; --no-build-isolation: BasicSR's setup.py imports torch
    "$PYTHON" -m pip wheel -q --no-deps --no-build-isolation -w "$DAY/wheels" basicsr lpips addict spandrel \
        pytest iniconfig packaging pluggy pygments &&
        "$PYTHON" -m pip download -q --no-deps --only-binary=:all: --implementation cp -d "$DAY/wheels" lmdb \
            --python-version "${2:-$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')}" \
            --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 &&
        ls "$DAY/wheels"
    exit
fi
usage() {
    sed -n '2,/^# What was/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    printf '\nerror: %s\n' "$1" >&2
    exit 2
}
case "${1:-}" in
    '' | *[!0-9]*) usage "expected MINUTES, a whole number, or pack; got '${1:-}'" ;;
esac
SECONDS=0 END=$((10#$1 * 60)) REHEARSE='' LIST=''
case "${2:-}" in
    '') ;;
    --rehearse) REHEARSE=1 ;;
    --list) LIST=1 ;;
    *) usage "expected --rehearse, --list or nothing behind MINUTES; got '$2'" ;;
esac
# A rehearsal leaves nothing that a day, or a training, would take for its own.
if [ -n "$REHEARSE" ]; then
    WORK=$DAY/rehearsal SETS=$DAY/rehearsal/datasets OUT=${OUT:-$DAY/rehearsal_out}
else
    WORK=$DAY/work SETS=datasets OUT=${OUT:-$DAY/out}
fi
left() { echo $((END - SECONDS)); }
spare() { echo $((END - SECONDS - 30)); } # for what ends when it is told to, and for what is handed back
export PYTHONPATH=$PWD:$DAY/site${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
export CUBLAS_WORKSPACE_CONFIG=:4096:8 # deterministic kernels, which some tests ask for
# pytest writes what it has when it is interrupted; a script that was begun in the background has its parts ignore that
INTERRUPTIBLE=(env --default-signal=INT)
"${INTERRUPTIBLE[@]}" true 2> /dev/null || INTERRUPTIBLE=()

# part NAME SECONDS command...: once, for so long at most; its output goes to NAME.log
part() {
    local name=$1 limit=$2 begin=$SECONDS signal=TERM status
    shift 2
    if [ -n "$LIST" ]; then
        printf '%s\t%s\t' "$name" "$limit"
        printf ' %q' "$@"
        echo
        return
    fi
    if [ -e "$WORK/$name.done" ] || [ "$limit" -lt 10 ]; then
        return
    fi
    [ "$name" != tests ] || signal=INT
    timeout --foreground --signal=$signal --kill-after=30 "$limit" ${INTERRUPTIBLE[@]+"${INTERRUPTIBLE[@]}"} "$@" \
        >> "$WORK/$name.log" 2>&1
    status=$?
    echo "$name: status $status, $((SECONDS - begin)) s, $(left) s left"
    echo "{\"part\": \"$name\", \"status\": $status, \"seconds\": $((SECONDS - begin))}" >> "$WORK/parts.jsonl"
    # tests that failed have been run, too; of those that did not all fit, the first ones, which tell most
    case "$status $name" in
        0\ *) touch "$WORK/$name.done" ;;
        1\ tests | 124\ tests) [ ! -e "$WORK/tests.xml" ] || touch "$WORK/tests.done" ;;
    esac
    return "$status"
}

# what is handed back, on every way out
hand_back() {
    local status=$? room=$((STATE_MB * 1024)) from_here=${WORK#"$PWD"/} kept run method files size
    "$PYTHON" - "$WORK" << 'END'
import json, sys
from pathlib import Path
from xml.etree import ElementTree
work = Path(sys.argv[1])
day = {'records': sorted(path.name for path in (work / 'records').glob('*.json'))}
if (work / 'machine.json').exists():
    day['machine'] = json.loads((work / 'machine.json').read_text())
if (work / 'parts.jsonl').exists():
    day['parts'] = [json.loads(line) for line in (work / 'parts.jsonl').read_text().splitlines()]
try:
    found = ElementTree.parse(work / 'tests.xml').iter('testcase')
except (OSError, ElementTree.ParseError) as error:
    day['tests'] = f'none: {error}'
else:
    cases = [(f'{case.get("classname")}::{case.get("name")}', float(case.get('time')),
              next((child.tag for child in case if child.tag in ('failure', 'error', 'skipped')), 'passed'))
             for case in found if case.get('name')]  # one that was interrupted has none
    (work / 'tests.json').write_text(json.dumps([dict(zip(('test', 'seconds', 'outcome'), case)) for case in cases], indent=1))
    day['tests'] = {outcome: sum(case[2] == outcome for case in cases)
                    for outcome in ('passed', 'failure', 'error', 'skipped')}
(work / 'day.json').write_text(json.dumps(day, indent=1))
print(json.dumps(day['tests']), len(day['records']), 'records')
END
    tar -czf "$OUT/results.tar.gz" --exclude='*.state' --exclude='*.pth' --exclude=rehearsal/datasets --exclude=rehearsal/images \
        -C "$DAY" "$(basename "$WORK")"
    rm -f "$OUT"/state.*
    # Runs in progress whole, and of the others, which have a record, the weights; of a stage 1 that has ended those that
    # the next one needs, before all else. Not more than can be handed back.
    kept=("$from_here"/*.done "$from_here"/parts.json[l] "$from_here/records")
    for run in experiments/"$(basename "$PLAN" .yml)"_{first_,[!f]}*; do
        method=${run#experiments/"$(basename "$PLAN" .yml)"_}
        if [ -e "$WORK/records/${method/#first_ESU/ESU_UDL}.json" ]; then
            files=("$run/models/net_g_latest.pth")
            [ "$method" = "${method#first_}" ] || continue
        elif [ "$method" != "${method#first_}" ] && [ -e "$run/models/net_g_latest.pth" ]; then
            files=("$run"/*.* "$run"/models/net_?_latest.pth) # options, history, weights
        else
            files=("$run")
        fi
        size=$(du -skc "${files[@]}" | tail -n 1 | cut -f 1)
        if [ "$size" -lt "$room" ]; then
            kept+=("${files[@]}") room=$((room - size))
        else
            echo "too large to be handed back: ${files[*]}"
        fi
    done
    tar -cf - "${kept[@]}" | split -b 15m -d - "$OUT/state."
    ls -l "$OUT"
    echo "ended with status $status, $(left) s left"
    exit "$status"
}
PLAN=options/compare/EDSR-S_gpu_x4.yml JOBS=${JOBS:-4} FAILED=0
[ -z "$REHEARSE" ] || PLAN=$WORK/rehearsal.yml JOBS=2
if [ -z "$LIST" ]; then
    mkdir -p "$WORK/records" "$OUT"
    trap hand_back EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
fi

# what an earlier part has left
states=("$DAY"/state.*) wheels=("$DAY"/wheels/*.whl)
if [ ${#states[@]} -gt 0 ] && [ ! -e "$WORK/state.done" ] && [ -z "$LIST" ]; then
    cat "${states[@]}" | tar -xf - && touch "$WORK/state.done"
fi
install() { # one by one where one does not fit: whether it was needed is seen below
    local install=("$PYTHON" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$DAY/site") wheel
    "${install[@]}" "$@" && return
    for wheel in "$@"; do "${install[@]}" "$wheel"; done
    return 1
}
if [ ${#wheels[@]} -gt 0 ]; then
    part install 120 bash -c "$(declare -f install); DAY='$DAY' PYTHON='$PYTHON'; install \"\$@\"" install "${wheels[@]}" ||
        cat "$WORK/install.log"
fi
[ -n "$LIST" ] || "$PYTHON" - "$WORK/machine.json" "$REHEARSE" << 'END' || exit 1
import json, os, platform, sys
try:
    import udl_basicsr
    import torch, cv2, numpy, basicsr, lpips, spandrel, pytest
except ImportError as error:
    sys.exit(f'{error}. Install it; or, for a machine without a network: bash scripts/gpu_day.sh pack, where there is one')
gpu = torch.cuda.is_available()
what = {'gpus': [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())] if gpu else [],
        'cores': os.cpu_count(), 'python': platform.python_version(), 'torch': torch.__version__,
        'cuda': torch.version.cuda, 'cudnn': torch.backends.cudnn.version(), 'rehearsal': bool(sys.argv[2])}
print(json.dumps(what))
json.dump(what, open(sys.argv[1], 'w'))
sys.exit(0 if gpu or sys.argv[2] else 'torch finds no GPU; --rehearse does without')
END

# 1. the data, beside the tests
data() {
    local name to images=$DAY/images
    if [ -n "$REHEARSE" ] && [ ! -d "$images" ]; then
        images=$WORK/images
        "$PYTHON" scripts/demo.py photos || return
        for name in HR:train Set5:val Set14:val BSD100:val; do
            mkdir -p "$images/${name%:*}"
            cp "datasets/demo/photos/${name#*:}"/* "$images/${name%:*}" || return
        done
    fi
    for name in Set5 Set14 BSD100 HR; do
        to=$SETS/$name
        [ "$name" != HR ] || to=$SETS/T91_BSDS400
        [ -e "$to/LRbicx4" ] || "$PYTHON" -m udl_basicsr prepare "$images/$name" --out "$to" --scale 4 || return
    done
}
part data 300 bash -c "$(declare -f data); DAY='$DAY' WORK='$WORK' SETS='$SETS' PYTHON='$PYTHON' REHEARSE='$REHEARSE'
data" &
DATA=$!
[ -z "$LIST" ] || wait "$DATA" # in order

# 2. the tests, a third of the time at most
if [ -n "$REHEARSE" ]; then
    TESTS=(-k 'float32_is or fast_convolution or resuming_is') DEVICE=cpu
else
    TESTS=() DEVICE=cuda
fi
UDL_TEST_DEVICE=$DEVICE part tests $((END / 3)) "$PYTHON" -m pytest -p no:cacheprovider tests/gpu \
    --junitxml "$WORK/tests.xml" ${TESTS[@]+"${TESTS[@]}"}
[ -n "$LIST" ] || tail -n 15 "$WORK/tests.log"
wait "$DATA"
[ -n "$LIST" ] || [ -e "$WORK/data.done" ] || { cat "$WORK/data.log"; FAILED=1; }

# 3. what a step costs, alone on the machine
if [ -n "$REHEARSE" ]; then
    part speed $((END / 4)) "$PYTHON" scripts/benchmark_speed.py --out "$WORK/speed.json" --quick --networks tiny --batch 1 \
        --patch 12 --rounds 3 --seconds 2 --device cpu
else
    part speed $((END / 6)) "$PYTHON" scripts/benchmark_speed.py --out "$WORK/speed.json" --quick --seconds 8 --device cuda
fi

# 4. the comparison, in all the time that is left, since it says nothing before runs have ended; SIGTERM: they save their
# state
if [ -n "$REHEARSE" ]; then
    pair() { echo "dataroot_gt: '$SETS/$1/GTmod4', dataroot_lq: '$SETS/$1/LRbicx4'"; }
    cat > "$PLAN" << END
_base_: $PWD/options/compare/EDSR-S_gpu_x4.yml
name: rehearsal
train: $PWD/options/compare/_small_.yml
test: $PWD/options/compare/_test_.yml
seeds: [0]
scales:
  x4:
    train:
      network_g: {num_feat: 8, num_block: 1}
      datasets:
        train: {$(pair T91_BSDS400), batch_size_per_gpu: 2, num_worker_per_gpu: 1}
        val: {$(pair Set5)}
      train: {amp: ~, total_iter: 40, scheduler: {periods: [40]}}
      val: {val_freq: 20}
      logger: {print_freq: 5, save_checkpoint_freq: 10}
    test:
      datasets: {test_1: {$(pair Set5)}, test_2: {$(pair Set14)}, test_3: {$(pair BSD100)}}
first: {iterations: 10}
END
fi
if [ -n "$LIST" ] || [ -e "$WORK/data.done" ]; then
    part compare "$(spare)" "$PYTHON" -m udl_basicsr compare "$PLAN" --jobs "$JOBS" --out "$WORK/records"
    [ -n "$LIST" ] || tail -n 12 "$WORK/compare.log"
fi

# 5. when it has ended, or has no data: the other networks, the smallest that was not tried yet first, none in less time
# than it takes; then the hours of the papers' tables
if [ -z "$REHEARSE" ]; then
    for network in $(for name in EDSR RCAN SwinIR HAT; do
        echo "$(cat "$WORK/parts.jsonl" 2> /dev/null | grep -c "\"speed_$name\"") $name"
    done | sort -snk 1,1 | cut -d ' ' -f 2); do
        [ "$(spare)" -lt 60 ] || part "speed_$network" "$(spare)" "$PYTHON" scripts/benchmark_speed.py \
            --out "$WORK/speed_$network.json" --quick --networks "$network" --rounds 5 --seconds 4 --device cuda
    done
    for plan in options/papers/{udl,le,tlw,gv}-*.yml; do
        part "hours_$(basename "$plan" .yml)" "$(spare)" "$PYTHON" -m udl_basicsr compare "$plan" --dry_run
    done
fi
exit $FAILED
