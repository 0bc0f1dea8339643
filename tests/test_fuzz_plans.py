"""Mutated plans: each is accepted, and its cells can be listed, or refused with a message that names file and key.

The suite looks at a few mutations, always the same ones; a long run draws new ones:

    UDL_FUZZ=5000 python -m pytest -q -s tests/test_fuzz_plans.py
"""
import re
from pathlib import Path

import pytest
import yaml
from fuzzing import KEYS, LONG, bounded, garbled, listing, mutated
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from udl_basicsr.experiments import costs, overview, plan, runner
from udl_basicsr.options.parse import OptionError

PLAN_KEYS = ['name', 'title', 'table', 'reference', 'train', 'test', 'seeds', 'lengths', 'deterministic', 'networks',
             'scales', 'first', 'methods', 'iterations', 'base', 'options', 'label', 'after', 'x2', 'x3', 'L1', 'UDL',
             'ESU', '_base_', 'stage', 'datasets', 'val', 'path']
_DATA = {'type': 'PairedImageDataset', 'dataroot_gt': 'gt', 'dataroot_lq': 'lq', 'io_backend': {'type': 'disk'}}
_METRICS = {'psnr': {'type': 'calculate_psnr', 'crop_border': '${scale}', 'test_y_channel': True}}
_TRAIN = {
    'model_type': 'UDLModel', 'num_gpu': 0,
    'network_g': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1,
                  'upscale': '${scale}'},
    'datasets': {'train': {**_DATA, 'name': 'T', 'gt_size': 24, 'use_hflip': True, 'use_rot': True,
                           'num_worker_per_gpu': 0, 'batch_size_per_gpu': 2}, 'val': {**_DATA, 'name': 'V'}},
    'train': {'optim_g': {'type': 'Adam', 'lr': 0.01}, 'total_iter': 6,
              'scheduler': {'type': 'MultiStepLR', 'milestones': [2, 4], 'gamma': 0.5}},
    'val': {'val_freq': 3, 'metrics': _METRICS}, 'logger': {'print_freq': 1, 'save_checkpoint_freq': 2}}
_TEST = {'datasets': {'test': {**_DATA, 'name': 'Set5'}}, 'val': {'metrics': _METRICS}, 'num_gpu': 0}
_L1 = {'stage': 'plain', 'train': {'pixel_opt': {'type': 'L1Loss'}}}
_ESU = {'stage': 'esu', 'network_u': {'type': 'UncertaintyNet', 'head': {'type': 'UDLHead', 'num_feat': 4}},
        'train': {'likelihood_opt': {'type': 'ESULoss'}}}
_UDL = {'stage': 'udl', 'network_u': _ESU['network_u'], 'train': {'udl_opt': {'type': 'UDLLoss'}}}
SHARED = {
    'name': 'shared', 'title': 'EDSR', 'train': 'train.yml', 'test': 'test.yml', 'reference': 'L1', 'seeds': [0, 1],
    'scales': {'x2': None, 'x3': {'train': {'val': {'val_freq': 2}}, 'test': {'num_gpu': 0}}},
    'first': {'iterations': 4, 'ESU': _ESU},
    'methods': {'L1': {'label': 'ℓ1', 'seeds': [0], 'options': _L1}, 'UDL': {'after': 'ESU', 'options': _UDL}}}
OWN = {
    'name': 'own', 'title': 'two networks', 'table': 'udl-5', 'train': 'train.yml', 'test': 'test.yml',
    'reference': 'L1', 'seeds': [0], 'lengths': 'own', 'deterministic': True,
    'networks': {'EDSR-S': {'options': {'network_g': {'num_feat': 6}}},
                 'EDSR': {'base': ['l1.yml'], 'scales': ['x2'], 'methods': ['L1']}},
    'scales': {'x2': {}, 'x3': {}}, 'first': {'ESU': {'base': 'esu.yml', 'train': {'total_iter': 2}}},
    'methods': {'L1': {'label': 'Original', 'base': 'l1.yml'}, 'UDL': {'after': 'ESU', 'base': 'udl.yml'}}}
FILES = {'train.yml': _TRAIN, 'test.yml': _TEST, 'l1.yml': _L1, 'esu.yml': _ESU, 'udl.yml': _UDL}


@st.composite
def cases(draw) -> dict[str, bytes]:
    """The files of a plan, one of them mutated."""
    files = {'plan.yml': draw(st.sampled_from([SHARED, OWN])), **FILES}
    name = draw(st.sampled_from(['plan.yml'] * 5 + ['train.yml'] * 3 + ['test.yml', 'l1.yml', 'esu.yml', 'udl.yml']))
    keys = [*PLAN_KEYS, *KEYS]
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        if files[name]:
            files[name] = draw(mutated(files[name], keys))
    texts = {file: yaml.safe_dump(content, sort_keys=False).encode('utf-8', 'surrogatepass')
             for file, content in files.items()}
    if draw(st.integers(0, 9)) == 0:
        texts[name] = draw(garbled(texts[name]))
    return texts


@pytest.fixture(autouse=True)
def _known_speed(monkeypatch):
    monkeypatch.setattr(costs, '_SECONDS', 0.01)


def attempt_plan(texts: dict[str, bytes], folder: Path) -> bool:
    """Whether a plan is accepted; anything but an OptionError that names file and key is an error."""
    for name, text in texts.items():
        (folder / name).write_bytes(text)
    root = folder / 'root'
    before = listing(folder)
    try:
        with bounded(60):
            read = plan.read_plan(folder / 'plan.yml', root)
            runner.check(read.runs, root, read.file, data=False)
    except OptionError as error:
        for line in error.problems:
            where = re.match(rf'{re.escape(str(folder))}/(?P<file>\w+\.yml)(:\d+)?: (?P<problem>.+)$', line)
            about_file = re.search(r'this option file|not valid YAML|key: value|UTF-8|_base_|\$\{|yml:\d', line)
            assert about_file or (where and re.match(r'.+?: ', where['problem'])), f'no file or key: {line!r}'
            assert line.isprintable()
        return False
    finally:
        assert listing(folder) == before
    with bounded(60):
        assert overview.describe_runs(read.runs, read.runs, {}, folder, root)
    return True


def test_mutated_plans(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for start in (SHARED, OWN):
        texts = {name: yaml.safe_dump(content).encode() for name, content in {'plan.yml': start, **FILES}.items()}
        assert attempt_plan(texts, tmp_path)
    count = {True: 0, False: 0}

    @settings(max_examples=LONG or 60, derandomize=not LONG, deadline=None, print_blob=True,
              suppress_health_check=list(HealthCheck), **({} if LONG else {'database': None}))
    @given(cases())
    def attempt(texts):
        note('\n'.join(f'--- {name}\n{text.decode("utf-8", "backslashreplace")}' for name, text in texts.items()))
        count[attempt_plan(texts, tmp_path)] += 1

    try:
        attempt()
    finally:
        print(f'\n{sum(count.values())} plans: {count[False]} refused, {count[True]} accepted')
    assert count[False] > 10
    assert count[True] > 5
