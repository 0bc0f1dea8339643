"""Mutated option files: each is accepted, and then trains, or refused with a message that names the key.

The suite looks at a few mutations of the repository's own option files, always the same ones. The long run draws new
ones:

    UDL_FUZZ=10000 python -m pytest -q -s tests/test_fuzz.py

It also trains a step with, and validates, what was accepted, and prints how many files there were. What it finds is
shrunk by hypothesis, printed, and kept in ``.hypothesis`` to be tried first the next time.
"""
import contextlib
import json
import os
import re
import resource
import signal
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field
from os import path as osp
from pathlib import Path

import cv2
import pytest
import torch
import yaml
from basicsr.models import build_model
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY
from conftest import photograph
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from udl_basicsr.data.loader import build_dataset, train_batches
from udl_basicsr.experiments.plan import read_plan
from udl_basicsr.options import schema
from udl_basicsr.options.parse import OptionError, Parsed, load_yaml, parse_options
from udl_basicsr.options.trials import build_network
from udl_basicsr.utils.checkpoints import CheckpointError

OPTIONS = Path(__file__).resolve().parents[1] / 'options'
LONG = int(os.environ.get('UDL_FUZZ', 0))
SCALES = (2, 3, 4)

# Values that some reader of some key stumbles over.
ODD = [
    None, True, False, 0, -1, 1, 2, 3, 7, 64, 2**31, 2**63 - 1, 10**30, -10**30, 10**400, 0.5, -0.5, 1.0, 1e-300, 1e300,
    float('inf'), float('-inf'), float('nan'), '', ' ', 'x', '0', '1e-4', 'None', '~', '..', '../x', '/', 'a/b', 'a\\b',
    '{}', '{}{}', '{0.__class__}', '{x}', '${name}', '${scale}', '${nope}', '${', 'é', '中文', '\u202e', '\ud7ff',
    'x' * 300, 'a\nb', 'a\0b', '\x1b[2J', [], {}, [[]], [None], [1], [1, 'a'], [-1], [0, 0, 0], [1, 2], {'type': None},
    {'type': [1]}, {'a': {'b': 1}}, {'type': 'L1Loss'}, 'udl', 'plain', 'mean', 'none', 'NUL', 'params', 'y']
NAMES = sorted({name for registry in (ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY)
                for name, _ in registry}
               | {'SGD', 'AdamW', 'LBFGS', 'Rprop', 'CosineAnnealingRestartLR', 'MultiStepLR'})
KEYS = sorted({key for table in (schema.OPTIONS, schema.TRAIN, schema.VAL, schema.LOGGER, schema.PATH, schema.DATASET,
                                 schema.LOADER) for key in table if '*' not in key}
              | {'_base_', 'type', 'lr', 'color', 'pixel_opt', 'gan_opt', 'val_2', 'test_1', '<<', 'is_train', 'phase'})
BASES = ['opt.yml', '.', '..', '/dev/null', '/dev/zero', 'picture.png', 'none.yml', '', 3, [], {},
         ['more.yml', 'more.yml'], 'more.yml', '~', '/etc/passwd', ['opt.yml'], [None]]
LINES = [
    '\ttab: 1', 'a: !!python/object/apply:os.system ["touch owned"]', 'a: !!python/name:os.system', 'a: &x [*x]',
    'a: *x', '<<: *x', '<<: {scale: 3}', '<<: 3', '? [a]\n: b', '- 1', '---', '...', '%YAML 9.9', '{', '}', ']', '"',
    "'", 'a: |', ':', '1: 2', '~: 1', 'a: !!int x', 'a: !!bool x', "a: !!int ''", 'a: !!binary aGk=', 'a: !!set {x}',
    'name: a: b', 'scale: 0x', 'a: ' + '[' * 2000, 'a: ' + '{a: ' * 40 + '1' + '}' * 40, '\ufeff', 'a: "\\ud800"',
    'x: 1_0_0', 'a: 12:30:45', 'a: =']


@dataclass(frozen=True)
class Case:
    """What one call of the program is given."""
    files: dict[str, bytes]
    force: tuple[str, ...] = ()
    is_train: bool = True
    debug: bool = False


# ------------------------------------------------------------------------------------------------- where it starts from
def _tiny(flat: dict, root: Path) -> dict:
    """A repository's option file with tiny images and networks in place of its own."""
    scale = flat['scale']
    for key, block in flat['datasets'].items():
        block.update({f'dataroot_{kind}': str(root / f'x{scale}' / kind) for kind in ('gt', 'lq')})
        if key == 'train':
            block.update(gt_size=8 * scale, batch_size_per_gpu=2, num_worker_per_gpu=0)
    if flat['network_g']['type'] == 'EDSR':
        flat['network_g'].update(num_feat=4, num_block=1)
    if 'tlw_opt' in flat.get('train', {}):
        flat['network_w']['num_feat'] = 4
        flat['datasets']['train']['gt_size'] = 24 * scale
        flat['train']['tlw_opt'].update(judge='squeeze', judge_random=True)
    if (likelihood := flat.get('train', {}).get('likelihood_opt') or {}).get('type') == 'UEOLoss':
        flat['datasets']['train']['gt_size'] = 24 * scale
        likelihood.update(judge='squeeze', judge_random=True)
    path = flat.setdefault('path', {})
    for label in ('g', 'u'):
        if path.get(f'pretrain_network_{label}'):
            path[f'pretrain_network_{label}'] = str(root / f'net_{label}_x{scale}.pth')
    return flat


def _everything(root: Path) -> dict:
    """Every kind of key that option files have, with a value that works."""
    data = {'name': 'T', 'type': 'PairedImageDataset', 'dataroot_gt': str(root / 'x2' / 'gt'), 'meta_info_file': None,
            'dataroot_lq': str(root / 'x2' / 'lq'), 'io_backend': {'type': 'disk'}, 'filename_tmpl': '{}'}
    edsr = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1, 'upscale': 2,
            'rgb_mean': [0, 0, 0], 'res_scale': 0.5}
    return {
        'name': 'all', 'model_type': 'UDLModel', 'stage': 'esu', 'scale': 2, 'num_gpu': 'auto', 'manual_seed': 1,
        'deterministic': False, 'find_unused_parameters': False,
        'datasets': {'train': {**data, 'gt_size': 16, 'use_hflip': True, 'use_rot': True, 'num_worker_per_gpu': 0,
                               'batch_size_per_gpu': 2, 'dataset_enlarge_ratio': 3, 'prefetch_mode': 'cpu',
                               'num_prefetch_queue': 2, 'pin_memory': False, 'persistent_workers': False,
                               'use_shuffle': True},
                     'val': {**data, 'mean': [0.5, 0.5, 0.5], 'std': [1, 1, 1]}, 'val_2': {**data, 'name': 'U'}},
        'network_g': dict(edsr),
        'network_u': {'type': 'UncertaintyNet', 'tap': 'upsample', 'backbone': dict(edsr),
                      'head': {'type': 'UDLHead', 'num_feat': 4}},
        'path': {'pretrain_network_g': str(root / 'net_g_x2.pth'), 'strict_load_g': True, 'param_key_g': 'params',
                 'resume_state': None, 'ignore_resume_networks': ['network_g']},
        'train': {'optim_g': {'type': 'Adam', 'lr': 1e-4, 'betas': [0.9, 0.99], 'weight_decay': 0, 'eps': 1e-8},
                  'scheduler': {'type': 'CosineAnnealingRestartLR', 'periods': [50, 50], 'restart_weights': [1, 0.5],
                                'eta_min': 1e-7},
                  'total_iter': 100, 'warmup_iter': 10, 'ema_decay': 0.9, 'accumulate': 2, 'grad_clip': 1.,
                  'amp': 'bf16',
                  'likelihood_opt': {'type': 'ESULoss', 'loss_weight': 1.0, 'reduction': 'mean', 'img_range': 255.},
                  'pixel_opt': {'type': 'CharbonnierLoss', 'eps': 1e-6}, 'channels_last': True, 'compile': False,
                  'gv_opt': {'type': 'GradientVarianceLoss', 'patch_size': 8, 'loss_weight': 0.01},
                  'ssim_opt': {'type': 'SSIMLoss'}},
        'val': {'val_freq': 50, 'save_img': False, 'pbar': False, 'suffix': 'a', 'self_ensemble': True,
                'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 2, 'better': 'higher'},
                            'ssim': {'type': 'calculate_ssim', 'crop_border': 2, 'test_y_channel': True},
                            'ause': {'type': 'calculate_ause', 'crop_border': 2, 'better': 'lower'}},
                'save_best': {'metric': 'psnr', 'dataset': 'T'}, 'tile': {'size': 8, 'overlap': 2}},
        'logger': {'print_freq': 10, 'save_checkpoint_freq': 50, 'keep_last': 2, 'use_tb_logger': True,
                   'wandb': {'project': None, 'resume_id': None}},
        'dist_params': {'backend': 'gloo', 'port': 29500},
    }


@pytest.fixture(scope='module')
def seeds(tmp_path_factory) -> list[tuple[dict, bool]]:
    """The repository's option files made tiny, each once: the options, and whether they train."""
    root = tmp_path_factory.mktemp('fuzz')
    for scale in SCALES:
        for kind, side in (('gt', scale), ('lq', 1)):
            (root / f'x{scale}' / kind).mkdir(parents=True)
            for number in range(2):
                cv2.imwrite(str(root / f'x{scale}' / kind / f'{number}.png'), photograph(number, 32 * side, 36 * side))
    found: dict[str, tuple[dict, bool]] = {}
    folders = ('demo', 'small', OPTIONS.name) if LONG else ('demo', )
    starts = [(str(file.relative_to(OPTIONS)), load_yaml(str(file))) for file in sorted(OPTIONS.rglob('t*.yml'))
              if file.parent.name in folders]
    # and every loss, as a plan makes its options
    starts += [(f'compare/train_{stage.file.name}', stage.flat)
               for run in read_plan(OPTIONS / 'compare' / 'every_loss.yml', root).runs for stage in run.stages]
    for name, flat in starts:
        flat = _tiny(flat, root)
        (root / 'seeds').mkdir(exist_ok=True)
        content = json.dumps({k: v for k, v in flat.items() if k not in ('name', 'stage1')}, sort_keys=True)
        if 'stage1' in flat:
            first = Path(flat['stage1'])
            first = first.relative_to(OPTIONS) if first.is_relative_to(OPTIONS) else f'compare/train_{first.name}'
            flat['stage1'] = str(root / 'seeds' / _flat_name(first))
        (root / 'seeds' / _flat_name(name)).write_text(yaml.safe_dump(flat))
        found.setdefault(content, (flat, Path(name).name.startswith('train_')))
    everything = _everything(root)
    stock = deepcopy(everything)
    for key in ('stage', 'network_u'):
        del stock[key]
    for key in ('likelihood_opt', 'accumulate', 'grad_clip', 'amp', 'channels_last', 'compile', 'gv_opt', 'ssim_opt'):
        del stock['train'][key]
    for key in ('tile', 'self_ensemble', 'save_best'):
        del stock['val'][key]
    del stock['val']['metrics']['ause'], stock['logger']['keep_last']
    stock['model_type'] = 'SRModel'
    for scale in SCALES:
        parsed = parse_options(_write(root, 'weights.yml', {
            **everything, 'scale': scale, 'network_g': {**everything['network_g'], 'upscale': scale},
            'network_u': {'type': 'UncertaintyNet'}, 'path': {}}), root_path=str(root), is_train=True,
            num_gpu_available=0, check_files=False)
        model = build_model(parsed.opt)
        torch.save({'params': model.net_g.state_dict()}, root / f'net_g_x{scale}.pth')
        torch.save({'params': model.net_u.state_dict()}, root / f'net_u_x{scale}.pth')
    starts = [*found.values(), (everything, True), (stock, True)]
    for flat, is_train in starts:
        parse_options(_write(root, 'start.yml', flat), root_path=str(root), is_train=is_train, num_gpu_available=0)
    return starts


def _flat_name(name: str | Path) -> str:
    return Path(name).as_posix().replace('/', '_')


def _write(root: Path, name: str, flat: dict) -> str:
    (root / name).write_text(yaml.safe_dump(flat, sort_keys=False))
    return str(root / name)


# ---------------------------------------------------------------------------------------------------------- mutations
def _nodes(value, at: tuple = ()) -> list[tuple]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([at] if at else []), *(path for key, child in children for path in _nodes(child, (*at, key)))]


def _unshared(value):
    """A copy in which no block stands in two places, so that none can be put into itself."""
    if isinstance(value, dict):
        return {key: _unshared(child) for key, child in value.items()}
    return [_unshared(child) for child in value] if isinstance(value, list) else deepcopy(value)


def _parent(value, path: tuple):
    for key in path[:-1]:
        value = value[key]
    return value


anything = st.one_of(
    st.sampled_from(ODD), st.sampled_from(NAMES), st.integers(), st.floats(allow_subnormal=False), st.text(max_size=12),
    st.lists(st.one_of(st.integers(-3, 9), st.floats(allow_subnormal=False), st.text(max_size=3)), max_size=4))


@st.composite
def values(draw, old):
    """A value for a key: any at all, or one that is not far from what stands there."""
    how = draw(st.sampled_from(['any', 'any', 'near', 'near', 'near', 'near', 'near', 'wrap', 'unwrap']))
    if how == 'near' and isinstance(old, (int, float)) and not isinstance(old, bool):
        return draw(st.sampled_from([-old, old + 1, old - 1, old * 2, old * 1000, old / 7, str(old), float(old), 0,
                                     old + 0.5, 10**30]) | st.integers(0, 300) | st.floats(0, 2, allow_subnormal=False))
    if how == 'near' and isinstance(old, list):
        return draw(st.sampled_from([old[:-1], old + old[:1], old[::-1], old * 40, [old], [str(v) for v in old]]))
    if how == 'near' and isinstance(old, str):
        return draw(st.sampled_from([old + 'x', old[:-1], old.upper(), f' {old}', f'{old}/', [old], f'../{old}',
                                     f'{old}\n', old * 20]) | st.sampled_from(NAMES))
    if how == 'wrap':
        return draw(st.sampled_from([[old], {'type': old}, {'x': old}]))
    if how == 'unwrap' and isinstance(old, dict) and old:
        return draw(st.sampled_from(list(old.values())))
    return draw(anything)


@st.composite
def mutated(draw, flat: dict, keys: list[str] = KEYS) -> dict:
    """``flat`` with one thing changed; ``keys``: names that new keys get."""
    flat = _unshared(flat)
    nodes = _nodes(flat)
    numbers = [n for n in nodes if isinstance(_parent(flat, n)[n[-1]], (int, float))]
    types = [n for n in nodes if n[-1] == 'type']
    path = draw(st.sampled_from(draw(st.sampled_from([nodes, numbers or nodes, types or nodes]))))
    block, key = _parent(flat, path), path[-1]
    old = block[key]
    how = draw(st.sampled_from(['set', 'set', 'set', 'set', 'delete', 'rename', 'swap', 'insert', 'nest', 'move']))
    if how == 'set':
        block[key] = draw(values(old))
    elif how == 'delete':
        del block[key]
    elif how == 'rename' and isinstance(block, dict):
        new = draw(st.sampled_from([f'{key}s', str(key)[1:], str(key).upper(), f'{key} ', f'{key}.x', ''])
                   | st.sampled_from(keys) | st.text(max_size=8))
        block[new] = block.pop(key)
    elif how == 'swap':
        other = draw(st.sampled_from(_nodes(flat)))
        if other[:len(path)] != path and path[:len(other)] != other:
            there = _parent(flat, other)
            block[key], there[other[-1]] = there[other[-1]], old
    elif how == 'insert' and isinstance(old, dict):
        old[draw(st.sampled_from(keys))] = draw(values(1))
    elif how == 'insert' and isinstance(old, list):
        old.append(draw(anything))
    elif how == 'nest':
        block[key] = {draw(st.sampled_from(keys)): old}
    else:
        flat[draw(st.sampled_from(keys))] = deepcopy(old)
    return flat


@st.composite
def garbled(draw, text: bytes) -> bytes:
    """``text`` with one thing changed that the YAML parser sees."""
    lines = text.split(b'\n')
    number = draw(st.integers(0, len(lines) - 1))
    position = draw(st.integers(0, len(text)))
    how = draw(st.sampled_from(['line', 'line', 'drop', 'twice', 'indent', 'cut', 'bytes', 'sign', 'encode', 'anchor']))
    if how == 'line':
        lines.insert(number, draw(st.sampled_from(LINES)).encode())
    elif how == 'drop':
        del lines[number]
    elif how == 'twice':
        lines.insert(number, lines[number])
    elif how == 'indent':
        lines[number] = draw(st.sampled_from([b' ', b'\t', b'    '])) + lines[number]
    elif how == 'cut':
        return text[:position]
    elif how == 'bytes':
        return text[:position] + draw(st.binary(min_size=1, max_size=8)) + text[position:]
    elif how == 'sign':
        sign = draw(st.sampled_from(':{}[]&*!|>%@`"\'#-?,\t\r\0~=<')).encode()
        return text[:position] + sign + text[position:]
    elif how == 'encode':
        return draw(st.sampled_from([text.replace(b'\n', b'\r\n'), b'\xef\xbb\xbf' + text, text + b'\xff', text * 2,
                                     b'', text.decode('utf-8', 'replace').encode('utf-16')]))
    elif b': ' in lines[number]:
        key, value = lines[number].split(b': ', 1)
        tag = draw(st.sampled_from(['&x ', '*x #', '!!str ', '!!int ', '!!python/tuple ', '!x ', '!!float ', '!!bool ',
                                    '!!null ', '!!map ', '${']))
        lines[number] = key + b': ' + tag.encode() + value
    return b'\n'.join(lines)


@st.composite
def cases(draw, starts: list[tuple[dict, bool]]) -> Case:
    """A mutation of one of the starting points."""
    flat, is_train = draw(st.sampled_from(starts))
    files, force = {}, []
    how = draw(st.sampled_from(['keys'] * 7 + ['text', 'base', 'force', 'force', 'all']))
    for _ in range(draw(st.sampled_from([1, 1, 1, 1, 2, 3])) if how in ('keys', 'all') else 0):
        flat = draw(mutated(flat))
    if how == 'base':
        keys = draw(st.lists(st.sampled_from(list(flat)), unique=True))
        files['more.yml'] = yaml.safe_dump({k: flat[k] for k in keys}).encode()
        flat = {'_base_': draw(st.sampled_from(BASES) | st.just('more.yml')),
                **{k: v for k, v in flat.items() if k not in keys}}
    text = yaml.safe_dump(flat, sort_keys=False, allow_unicode=draw(st.booleans())).encode('utf-8', 'surrogatepass')
    if how in ('text', 'all'):
        text = draw(garbled(text))
    if how in ('force', 'all'):
        path = [str(key) for key in draw(st.sampled_from([*_nodes(flat), ('name', )]))]
        value = draw(anything.map(lambda v: json.dumps(v, default=str)) | st.sampled_from(LINES) | st.text(max_size=10))
        force.append(draw(st.sampled_from([f'{":".join(path)}={value}'] * 5 + [
            f'{":".join(path)}:{value}', f'={value}', f'{":".join(path * 12)}={value}', value])))
    rare = draw(st.sampled_from([''] * 18 + ['other program', 'debug']))
    return Case({'opt.yml': text, **files}, tuple(force), is_train != (rare == 'other program'), rare == 'debug')


# ------------------------------------------------------------------------------------------------------- what must hold
ABOUT_THE_FILE = ('cannot read this option file', 'not a text file', 'not valid YAML', 'expected `key: value` lines',
                  '_base_', '${')


@dataclass
class Tally:
    """What became of the files."""
    refused: int = 0
    accepted: int = 0
    trained: int = 0
    reasons: Counter = field(default_factory=Counter)


class TooLongError(BaseException):
    """No Exception, since the checks turn those of the libraries that they try into messages."""


@contextlib.contextmanager
def bounded(seconds: int):
    """Ends in TooLongError what takes more of the CPU, or waits ten times as long; others may use the machine too."""
    def stop(number, _):
        raise TooLongError(f'longer than {seconds} s, {signal.Signals(number).name}')
    before = [(number, signal.signal(number, stop)) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.alarm(10 * seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in before:
            signal.signal(number, handler)


def listing(root: Path) -> set[str]:
    return {osp.join(folder, name) for folder, folders, names in os.walk(root) for name in (*folders, *names)}


def parse_case(case: Case, root: Path) -> Parsed | None:
    """The parsed options, or None where they are refused as they should be; anything else is an error."""
    (root / 'picture.png').write_bytes(b'\x89PNG\r\n\x1a\n\0\0')
    (root / 'more.yml').write_bytes(b'scale: 2\n')
    for name, content in case.files.items():
        (root / name).write_bytes(content)
    before = listing(root)
    try:
        with bounded(60):
            parsed = parse_options(str(root / 'opt.yml'), root_path=str(root), is_train=case.is_train, debug=case.debug,
                                   force_yml=case.force, num_gpu_available=0)
    except OptionError as error:
        keys = set(schema.OPTIONS) | keys_of(root, case)
        for line in error.problems:
            assert names_a_key(line, keys), f'no key is named: {line!r}'
            assert len(line) < 9000
            assert line.isprintable(), line
        parsed = None
    assert listing(root) == before
    return parsed


def keys_of(root: Path, case: Case) -> set[str]:
    with contextlib.suppress(OptionError):
        return {*load_yaml(str(root / 'opt.yml'), references=False), *(f.partition(':')[0] for f in case.force)}
    return set()


def names_a_key(line: str, keys: set[str]) -> bool:
    if line.startswith('--force_yml '):
        return True
    where = re.match(r'(?P<file>/.*?\.(yml|png)|/[^:]*)(?P<line>:\d+)?: (?P<problem>.*)$', line)
    problem = where['problem']
    printable = {''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in k) for k in keys}
    return bool(where['line']) or problem.startswith(ABOUT_THE_FILE) or any(
        problem.startswith((f'{k}: ', f'{k}.')) for k in printable)


UNDERSTOOD = (CheckpointError, FloatingPointError)
"""What the program reports without a traceback when a run has begun."""


def run(parsed: Parsed) -> None:
    """Two steps and a validation with what was accepted, in this process and without a folder."""
    opt = deepcopy(parsed.opt)
    network = build_network(ARCH_REGISTRY.get(opt['network_g']['type']), opt['network_g'])
    if sum(p.numel() for p in network.parameters()) > 10**6:
        return  # sound, and slow
    if opt['is_train']:
        opt['train']['compile'] = False
        opt['datasets']['train'].update(num_worker_per_gpu=0, prefetch_mode=None)
    with bounded(60), contextlib.suppress(*UNDERSTOOD):
        sets = [build_dataset(block) for key, block in opt['datasets'].items() if not key.startswith('train')]
        if opt['is_train']:
            sampler, batches = train_batches(build_dataset(opt['datasets']['train']), opt)
            model = build_model(opt)
            model.iters_per_epoch = sampler.iters_per_epoch
            for iteration, batch in zip((1, 2), batches, strict=False):
                model.update_learning_rate(iteration, warmup_iter=opt['train'].get('warmup_iter', -1))
                model.feed_data(batch)
                model.optimize_parameters(iteration)
                model.get_current_log()
        else:
            model = build_model(opt)
        model.save_networks = lambda _: None
        for dataset in sets if opt.get('val') else ():
            loader = torch.utils.data.DataLoader(torch.utils.data.Subset(dataset, [0]))
            loader.dataset.opt = dataset.opt
            model.validation(loader, 1, None, False)


@pytest.fixture(scope='module', autouse=True)
def _memory():
    """What asks for more memory than any of this needs is an error, not the death of the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_mutated_option_files(seeds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tally = Tally()

    @settings(max_examples=LONG or 150, derandomize=not LONG, deadline=None, print_blob=True,
              suppress_health_check=list(HealthCheck), **({} if LONG else {'database': None}))
    @given(cases(seeds))
    def attempt(case):
        note(case.files['opt.yml'].decode('utf-8', 'backslashreplace'))
        parsed = parse_case(case, tmp_path)
        if parsed is None:
            tally.refused += 1
        else:
            tally.accepted += 1
            if LONG or tally.accepted % 20 == 1:
                run(parsed)
                tally.trained += 1
        assert not (tmp_path / 'owned').exists()

    attempt()
    print(f'\n{tally.refused + tally.accepted} files: {tally.refused} refused, {tally.accepted} accepted, of which '
          f'{tally.trained} trained or tested')
    assert tally.refused > 20
    assert tally.accepted > 10
