"""scripts/gpu_day.sh: what it would run is there and is understood; however it ends, what there is is handed back."""
import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

import speed
from udl_basicsr.experiments.plan import read_plan

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / 'scripts' / 'gpu_day.sh'
pytestmark = pytest.mark.skipif(sys.platform == 'win32' or not shutil.which('timeout'), reason='for Linux')

# In the place of Python: installs nothing, prepares no data, writes what the tests had done when they are interrupted.
STUB = f"""#!/bin/bash
echo "$*" >> "$(dirname "$0")/calls"
case "$*" in
    *machine.json*) [ "$CASE" != bare ] || exit 1; echo '{{"gpus": ["one"]}}' > "$2" ;;
    '- '*) exec {sys.executable} "$@" ;;
    *'pip install'*no_such*) exit 1 ;;
    *'-m pytest'*) [ "$CASE" != no_pytest ] || exit 1
        echo '<testsuites><testcase classname="a" name="b" time="1"/></testsuites>' > "${{@: -1}}" ;;
    *prepare*) [ "$CASE" != data ] || exit 3 ;;
    *demo.py*) mkdir -p datasets/demo/photos/{{train,val}}; touch datasets/demo/photos/{{train,val}}/a.png ;;
esac
"""


def listed(*args: str) -> dict[str, tuple[int, list[str]]]:
    """Name to seconds and words of each part."""
    out = subprocess.run(['bash', SCRIPT, *args, '--list'], capture_output=True, text=True, check=True).stdout
    parts = [line.split('\t') for line in out.splitlines()]
    return {name: (int(seconds), command.split()) for name, seconds, command in parts}


def parser_of(program: Path) -> argparse.ArgumentParser:
    """That of a script or a command, from the moment at which it would read its arguments."""
    spec = importlib.util.spec_from_file_location(f'day_{program.stem}', program)
    module = importlib.util.module_from_spec(spec)
    found = []

    class _FoundError(BaseException):
        pass

    def parse_args(parser, *_):
        found.append(parser)
        raise _FoundError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, 'parse_args', parse_args)
        spec.loader.exec_module(module)
        with contextlib.suppress(_FoundError):
            module.main()
    return found[0]


def test_every_part_can_be_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    parts = listed('15')
    parsers = {'scripts/benchmark_speed.py': parser_of(ROOT / 'scripts/benchmark_speed.py'),
               'udl_basicsr': parser_of(ROOT / 'udl_basicsr/cli/compare.py')}
    networks, plans = set(), set()
    for name, (seconds, words) in parts.items():
        assert 10 <= seconds <= 15 * 60
        if name in ('data', 'tests'):
            continue
        arguments = [word for word in words[1:] if word not in ('-m', 'compare')]
        args = argparse.ArgumentParser.parse_args(parsers[arguments[0]], arguments[1:])
        if name.startswith('speed'):
            networks |= set(args.networks or ())
        else:
            plans.add(args.plan.name)
            assert args.plan.is_file()
    assert (ROOT / 'tests/gpu').is_dir()
    assert {'tests/gpu', '--junitxml'} <= set(parts['tests'][1])
    assert networks == set(speed.NETWORKS) - {'EDSR-S', 'tiny'}  # one part each, so that the next day goes on
    assert plans == {'EDSR-S_gpu_x4.yml', *(p.name for p in (ROOT / 'options/papers').glob('[!_]*.yml'))}
    order = list(parts)  # a loan of minutes ends in the comparison
    assert order[:5] == ['data', 'tests', 'speed', 'compare', 'speed_EDSR']
    assert order[8:] == [name for name in parts if name.startswith('hours')]
    assert read_plan(ROOT / 'options/compare/EDSR-S_gpu_x4.yml', ROOT).runs


@pytest.mark.parametrize(('case', 'status'), [('', 0), ('data', 1), ('bare', 1)])
def test_what_there_is_is_handed_back_however_the_day_ends(tmp_path, case, status):
    (tmp_path / 'scripts').mkdir()
    (tmp_path / 'gpu_day/wheels').mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / 'scripts')
    python = tmp_path / 'python'
    python.write_text(STUB)
    python.chmod(0o755)
    (tmp_path / 'gpu_day/wheels/no_such.whl').touch()  # of another Python
    (tmp_path / 'options/papers').mkdir(parents=True)
    (tmp_path / 'options/papers/udl-1.yml').touch()
    runs = tmp_path / 'experiments'
    for name in ('first_ESU_x4_seed0/history.jsonl', 'first_ESU_x4_seed0/models/net_g_latest.pth',
                 'first_ESU_x4_seed0/training_states/5000.state', 'ESU_UDL_x4_seed0/models/net_g_1000.pth'):
        file = runs / f'EDSR-S_gpu_x4_{name}'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    done = subprocess.run(['bash', tmp_path / 'scripts/gpu_day.sh', '5'], capture_output=True, text=True, check=False,
                          env={**os.environ, 'PYTHON': str(python), 'CASE': case, 'OUT': str(tmp_path / 'out')})
    assert done.returncode == status, done.stdout + done.stderr
    with tarfile.open(tmp_path / 'out/results.tar.gz') as packed:
        names = packed.getnames()
        day = json.load(packed.extractfile('work/day.json'))
    ended = {part['part']: part['status'] for part in day['parts']}
    assert ended['install'] == 1
    if case == 'bare':
        assert 'work/install.log' in names
        assert day['tests'].startswith('none')
        return
    with tarfile.open(tmp_path / 'out/state.00') as packed:  # of a stage 1 that has ended what stage 2 needs, and first
        kept = [member.name.rpartition('x4_')[2] for member in packed if member.isfile() and 'seed0' in member.name]
    assert kept == ['seed0/history.jsonl', 'seed0/models/net_g_latest.pth', 'seed0/models/net_g_1000.pth']
    assert day['tests']['passed'] == 1
    assert (ended['data'], 'compare' in ended) == ((3, False) if case == 'data' else (0, True))
    assert ended['speed_HAT'] == ended['hours_udl-1'] == 0  # which need no data
    calls = (tmp_path / 'calls').read_text()
    assert calls.index('EDSR ') < calls.index('HAT')  # the smallest first


@pytest.fixture
def day(tmp_path):
    """The script in a folder of its own, with the stub for Python; a function that runs it with some words."""
    (tmp_path / 'scripts').mkdir()
    shutil.copy(SCRIPT, tmp_path / 'scripts')
    python = tmp_path / 'python'
    python.write_text(STUB)
    python.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != 'OUT'}
    return lambda *words, case='': subprocess.run(
        ['bash', tmp_path / 'scripts/gpu_day.sh', *words], capture_output=True, text=True, check=False,
        env={**environment, 'PYTHON': str(python), 'CASE': case})


def test_a_rehearsal_leaves_nothing_for_the_day(tmp_path, day):
    """Photographs that go by the names of test sets, parts that need not be run again, results of a tiny network."""
    (tmp_path / 'datasets/Set5/LRbicx4').mkdir(parents=True)  # of the test sets one is there, as after the README
    done = day('5', '--rehearse')
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in (tmp_path / 'datasets').iterdir()} == {'Set5', 'demo'}
    assert {path.name for path in (tmp_path / 'gpu_day').iterdir()} == {'rehearsal', 'rehearsal_out'}
    sets = tmp_path / 'gpu_day/rehearsal/datasets'
    calls = (tmp_path / 'calls').read_text()
    for name, images in (('T91_BSDS400', 'HR'), ('Set5', 'Set5'), ('Set14', 'Set14'), ('BSD100', 'BSD100')):
        assert f'prepare {tmp_path}/gpu_day/rehearsal/images/{images} --out {sets / name} ' in calls
    scale = yaml.safe_load((tmp_path / 'gpu_day/rehearsal/rehearsal.yml').read_text())['scales']['x4']
    blocks = {**scale['train']['datasets'], **scale['test']['datasets']}
    assert {key: block['dataroot_lq'] for key, block in blocks.items()} == {
        key: str(sets / name / 'LRbicx4') for key, name in (
            ('train', 'T91_BSDS400'), ('val', 'Set5'), ('test_1', 'Set5'), ('test_2', 'Set14'), ('test_3', 'BSD100'))}
    with tarfile.open(tmp_path / 'gpu_day/rehearsal_out/results.tar.gz') as packed:
        assert 'rehearsal/day.json' in packed.getnames()


def test_tests_that_did_not_begin_are_not_done(tmp_path, day):
    day('5', '--rehearse', case='no_pytest')
    done = tmp_path / 'gpu_day/rehearsal'
    assert (done / 'speed.done').exists()
    assert not (done / 'tests.done').exists()
    assert 'tests: status 0' in day('5', '--rehearse').stdout


@pytest.mark.parametrize('words', [[], ['soon'], ['15', '--rehears'], ['-5']])
def test_what_is_not_understood_begins_no_day(tmp_path, words):
    """A misspelt --rehearse would begin the day itself."""
    (tmp_path / 'scripts').mkdir()
    shutil.copy(SCRIPT, tmp_path / 'scripts')
    script = tmp_path / 'scripts/gpu_day.sh'
    done = subprocess.run(['bash', script, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.startswith('Everything that only a GPU can show')
    assert f"got '{words[-1] if words else ''}'" in done.stderr
    assert not (tmp_path / 'gpu_day').exists()
