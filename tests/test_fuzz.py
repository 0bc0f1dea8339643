"""Mutated option files: each is accepted, and then trains, or refused with a message that names the key.

The suite looks at a few mutations of the repository's own option files, always the same ones. The long run draws new
ones:

    UDL_FUZZ=10000 python -m pytest -q -s tests/test_fuzz.py

It also trains a step with, and validates, what was accepted, and prints how many files there were. What it finds is
shrunk by hypothesis, printed, and kept in ``.hypothesis`` to be tried first the next time.
"""
import contextlib
import json
import re
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import pytest
import torch
import yaml
from basicsr.models import build_model
from basicsr.utils.registry import ARCH_REGISTRY
from conftest import photograph
from fuzzing import LINES, LONG, _memory, _nodes, anything, bounded, garbled, listing, mutated  # noqa: F401
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from udl_basicsr.data.loader import build_dataset, train_batches
from udl_basicsr.experiments.plan import read_plan
from udl_basicsr.options import schema
from udl_basicsr.options.parse import OptionError, Parsed, load_yaml, parse_options
from udl_basicsr.options.trials import build_network
from udl_basicsr.utils.checkpoints import CheckpointError

OPTIONS = Path(__file__).resolve().parents[1] / 'options'
SCALES = (2, 3, 4)
BASES = ['opt.yml', '.', '..', '/dev/null', '/dev/zero', 'picture.png', 'none.yml', '', 3, [], {},
         ['more.yml', 'more.yml'], 'more.yml', '~', '/etc/passwd', ['opt.yml'], [None]]


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


# ------------------------------------------------------------------------------------------------------------ mutations

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

ABOUT_THE_FILE = ('cannot read this option file', 'expected text in UTF-8', 'not valid YAML',
                  'expected `key: value` lines', '_base_', '${')


@dataclass
class Tally:
    """What became of the files."""
    refused: int = 0
    accepted: int = 0
    trained: int = 0
    reasons: Counter = field(default_factory=Counter)


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
