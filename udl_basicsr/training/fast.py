"""``train.amp: auto`` and ``udl train --fast``: what pays on this machine, decided once and kept with the run."""
from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.models import build_model
from basicsr.utils import get_root_logger

from udl_basicsr.data.images import ImageError, read_header
from udl_basicsr.data.in_memory import free_memory, processes_here, why_too_large
from udl_basicsr.data.loader import build_dataset
from udl_basicsr.models.step import StepModel
from udl_basicsr.options.keys import lookup
from udl_basicsr.options.parse import Parsed, changed
from udl_basicsr.utils import processor
from udl_basicsr.utils.distributed import broadcast
from udl_basicsr.utils.yaml_files import load_yaml

_FUSED = ('Adam', 'AdamW', 'SGD')
_STEPS = 3
_LONGEST = 20.  # seconds of a first step, beyond which no others are timed
_LIKE = {'type': 'L1Loss'}


def settle(parsed: Parsed, fast: bool) -> Parsed:
    """Decides what ``auto`` is and, for ``--fast``, what else makes a step fast here, for all stages alike.

    What an option file says itself is left alone. A run that goes on takes what it was begun with, as its folder says.

    Args:
        parsed (Parsed): Checked options of the last stage; those of the stages before hang on it.
        fast (bool): Whether it was asked for.

    Returns:
        Parsed: With values in place of ``auto``, and of what was left open.
    """
    chain = _chain(parsed)
    if not fast and not any(_is_auto(stage) for stage in chain):
        return parsed
    if not all(_is_ours(stage) for stage in chain):
        get_root_logger().warning('--fast is for UDLModel and TLWModel: this model is trained as its file says')
        return parsed
    levers: dict = next((kept for stage in chain if (kept := _kept(stage))), {})
    if not levers and parsed.opt['rank'] == 0:
        levers = _decide(parsed, fast)
    return _with(parsed, broadcast(levers), fast)


def _chain(parsed: Parsed | None) -> list[Parsed]:
    """From the first stage to the last."""
    return [] if parsed is None else [*_chain(parsed.stage1), parsed]


def _is_auto(parsed: Parsed) -> bool:
    return parsed.flat['train'].get('amp') == 'auto'


def _is_ours(parsed: Parsed) -> bool:
    model = lookup('model', parsed.flat['model_type'])
    return isinstance(model, type) and issubclass(model, StepModel)


def _kept(parsed: Parsed) -> dict | None:
    """What a run that goes on was begun with."""
    file = Path(parsed.opt['path']['experiments_root'], Path(parsed.file).name)
    if not parsed.opt['auto_resume'] or not file.is_file():
        return None
    train = load_yaml(str(file))['train']
    return {'amp': train.get('amp'), 'channels_last': train.get('channels_last'),
            'fused': train['optim_g'].get('fused')}


def _with(parsed: Parsed, levers: dict, fast: bool) -> Parsed:
    """The options of a stage, and of those before it, with what was decided where they leave it open."""
    before = parsed.stage1 and _with(parsed.stage1, levers, fast)
    train, data = parsed.flat['train'], parsed.flat['datasets']['train']
    new = {'train': {}, 'datasets': {'train': {}}}
    if _is_auto(parsed) or (fast and 'amp' not in train):
        new['train']['amp'] = levers['amp']
    if fast:
        for key, block in (('channels_last', train), ('fused', train['optim_g'])):
            if key not in block and levers[key]:
                if key == 'channels_last':
                    new['train'][key] = True
                elif block['type'] in _FUSED and not block.get('foreach'):
                    new['train']['optim_g'] = {key: True}
        if issubclass(lookup('data set', data['type']) or object, PairedImageDataset):
            if parsed.flat.get('stage') == 'udl' and 'uncertainty_cache' not in data:
                new['datasets']['train']['uncertainty_cache'] = 'auto'
            if 'in_memory' not in data and _fits(parsed):
                new['datasets']['train']['in_memory'] = True
    settled = changed(replace(parsed, stage1=before), new)
    train, data = settled.flat['train'], settled.flat['datasets']['train']
    on = {train.get('amp') or 'float32': True, 'channels_last': train.get('channels_last'),
          'fused': train['optim_g'].get('fused'), 'in_memory': data.get('in_memory'),
          'uncertainty_cache': data.get('uncertainty_cache')}
    chosen = ', '.join(name for name, value in on.items() if value)
    return replace(settled, notes=(*([levers['why']] if levers.get('why') else []),
                                   f"{parsed.opt['name']} is trained with {chosen}."))


def _fits(parsed: Parsed) -> bool:
    """Whether the decoded training images take less than half of the memory that is free."""
    if free_memory() is None:
        return False
    paths = getattr(build_dataset(parsed.opt['datasets']['train']), 'paths', ())
    sizes = []
    try:
        for path in (pair[key] for pair in paths for key in ('gt_path', 'lq_path')):
            with open(path, 'rb') as file:
                sizes.append(read_header(file))
    except (OSError, ImageError, KeyError, TypeError):
        return False
    return not why_too_large(sizes, 2 * processes_here(parsed.opt['world_size']))


def _decide(parsed: Parsed, fast: bool) -> dict:
    """The levers that are in the hardware and, where asked for, made a few steps the fastest."""
    device = torch.device('cuda' if parsed.opt['num_gpu'] else 'cpu')
    bf16 = processor.has_bf16(device)
    where = f"{processor.name(device)}, bf16 {'in hardware' if bf16 else 'not in hardware'}"
    types = [None, *(['bf16'] if bf16 else [])]
    if not fast:
        return {'amp': types[-1], 'channels_last': None, 'fused': None,
                'why': f'train.amp: auto is {types[-1] or "float32"} here ({where}).'}
    seconds: dict[tuple, float] = {}
    can_fuse = parsed.flat['train']['optim_g']['type'] in _FUSED
    for amp, channels_last in itertools.product(reversed(types), (True, False)):
        levers = amp, channels_last, can_fuse
        seconds[levers] = seconds_a_step(parsed, *levers)
        if seconds[levers] > _LONGEST:
            break
    amp, channels_last, fused = min(seconds, key=seconds.__getitem__)
    timed = ', '.join(f'{a or "float32"}{" channels_last" if c else ""} {s:.3f}' for (a, c, _), s in seconds.items())
    return {'amp': amp, 'channels_last': channels_last, 'fused': fused,
            'why': f'--fast: {where}. Seconds a step of L1: {timed}.'}


def seconds_a_step(parsed: Parsed, amp: str | None, channels_last: bool, fused: bool,
                   clock: Callable[[], float] = time.perf_counter) -> float:
    """Of the network with L1 on noise of the training's size: the least of a few, after one that is not counted."""
    flat, scale = parsed.opt, parsed.opt['scale']
    data = flat['datasets']['train']
    optim = {key: value for key, value in flat['train']['optim_g'].items() if key != 'fused'}
    logger = get_root_logger()
    level = logger.level
    logger.setLevel('ERROR')  # nobody wants to read the network once for each try
    try:
        model = build_model({
            **{key: value for key, value in flat.items() if key not in ('network_u', 'network_w')}, 'dist': False,
            'model_type': 'UDLModel', 'stage': 'plain', 'path': {},
            'train': {'pixel_opt': dict(_LIKE), 'optim_g': {**optim, **({'fused': True} if fused else {})}, 'amp': amp,
                      'channels_last': channels_last, 'scheduler': dict(flat['train']['scheduler'])}})
    finally:
        logger.setLevel(level)
    channels, side = 1 if data.get('color') == 'y' else 3, data['gt_size']
    batch = {key: torch.rand(data['batch_size_per_gpu'], channels, size, size)
             for key, size in (('lq', side // scale), ('gt', side))}
    times = []
    for number in range(1 + _STEPS):
        began = clock()
        model.feed_data(batch)
        model.optimize_parameters(number + 1)
        float(model.get_current_log()['l_pix'])  # waits for the device
        times.append(clock() - began)
        if times[0] > _LONGEST:
            return times[0]
    return min(times[1:])
