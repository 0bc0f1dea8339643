"""``train.amp: auto`` and ``udl train --fast``: what pays on this machine, decided once and kept with the run."""
from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.models import build_model
from basicsr.utils import get_root_logger

from udl_basicsr.data.images import ImageError, channels_of, read_header
from udl_basicsr.data.in_memory import free_memory, processes_here, why_too_large
from udl_basicsr.data.loader import build_dataset
from udl_basicsr.models.step import StepModel
from udl_basicsr.options.keys import lookup
from udl_basicsr.options.parse import OptionError, Parsed, changed, no_data_parallel
from udl_basicsr.utils import processor
from udl_basicsr.utils.distributed import broadcast
from udl_basicsr.utils.kernels import training_kernels
from udl_basicsr.utils.memory import give_back, is_out_of_memory
from udl_basicsr.utils.settings import RunSettings, TrainSettings
from udl_basicsr.utils.yaml_files import load_yaml

from .run_folder import goes_on_from, options_name
from .states import trained_blocks

_FUSED = ('Adam', 'AdamW', 'SGD')
_STEPS = 3
_LONGEST = 20.  # seconds of a first step, beyond which no others are timed
_WHOLE = 384  # side of a square about as large as an image of BSDS, where whole ones are trained on
_LIKE = {'type': 'L1Loss'}


def settle(parsed: Parsed, fast: bool) -> Parsed:
    """Decides what ``auto`` is and, for ``--fast``, what else makes a step fast here, for all stages alike.

    What an option file says itself is left alone. A stage that goes on takes what it was begun with, as its folder
    says, whether the command resumes it or the chain does; one that begins takes what another one was begun with.

    Args:
        parsed (Parsed): Checked options of the last stage; those of the stages before hang on it.
        fast (bool): Whether it was asked for.

    Returns:
        Parsed: With values in place of ``auto``, and of what was left open.

    Raises:
        OptionError: ``--fast`` with several GPUs of one process; or no step that was tried fits into the memory.
    """
    chain = _chain(parsed)
    if not fast and not any(_is_auto(stage) for stage in chain):
        return parsed
    if not all(is_ours(stage) for stage in chain):
        get_root_logger().warning('--fast is for UDLModel and TLWModel: this model is trained as its file says')
        return parsed
    if problems := [f'{stage.file}: num_gpu: {no_data_parallel(stage.opt["num_gpu"], "--fast")}'
                    for stage in chain if stage.opt['num_gpu'] > 1 and not stage.opt['dist']]:
        raise OptionError(problems)
    levers, problem = [], ''
    if parsed.opt['rank'] == 0:
        kept = [_kept(stage, is_last=stage is parsed) for stage in chain]
        new = next((one for one in kept if one and any(one.values())), None)
        try:
            if new is None and None in kept:
                new = _decide(parsed, fast)
            # whether s comes from a cache is each stage's own matter
            levers = [{**(new or {}), 'uncertainty_cache': 'auto'} if own is None else own for own in kept]
        except OptionError as error:
            problem = str(error)
    levers, problem = broadcast((levers, problem))
    if problem:
        raise OptionError(problem)
    return _with(parsed, levers, fast)


def _chain(parsed: Parsed | None) -> list[Parsed]:
    """From the first stage to the last."""
    return [] if parsed is None else [*_chain(parsed.stage1), parsed]


def _is_auto(parsed: Parsed) -> bool:
    return parsed.flat['train'].get('amp') == 'auto'


def is_ours(parsed: Parsed) -> bool:
    """Whether a run is one of our models, which know what is asked of them here."""
    model = lookup('model', parsed.flat['model_type'])
    return isinstance(model, type) and issubclass(model, StepModel)


def _kept(parsed: Parsed, is_last: bool) -> dict | None:
    """What a stage that goes on was begun with; None of one that begins.

    The chain resumes a stage before the last one by itself, unless it has ended: then its weights are there.
    """
    ended = not is_last and Path(parsed.opt['path']['models'], 'net_g_latest.pth').is_file()
    folder = goes_on_from(parsed, parsed.opt['auto_resume'] or not (is_last or ended))
    file = folder and folder / options_name(parsed)
    if file is None or not file.is_file():
        return None
    kept = load_yaml(str(file))
    return {'amp': kept['train'].get('amp'), 'channels_last': kept['train'].get('channels_last'),
            'fused': [key for key, block in _optimizers(kept) if block.get('fused')],
            'uncertainty_cache': kept['datasets']['train'].get('uncertainty_cache')}


def _optimizers(flat: dict) -> Iterator[tuple[str, dict]]:
    """The keys of the optimisers in the block ``train``, with what they are, written out or not."""
    yield 'optim_g', flat['train']['optim_g']
    if 'w' in (trained := trained_blocks(flat) or {}):
        yield 'optim_w', trained['w'][1]


def _with(parsed: Parsed, levers: list[dict], fast: bool) -> Parsed:
    """The options of a stage, and of those before it, with the levers of each where they leave them open."""
    before, own = parsed.stage1 and _with(parsed.stage1, levers[:-1], fast), levers[-1]
    train, data = parsed.flat['train'], parsed.flat['datasets']['train']
    new = {'train': {}, 'datasets': {'train': {}}}
    if _is_auto(parsed) or (fast and 'amp' not in train):
        new['train']['amp'] = own['amp']
    if fast:
        if 'channels_last' not in train and own['channels_last']:
            new['train']['channels_last'] = True
        for key, block in _optimizers(parsed.flat):
            if 'fused' not in block and key in own['fused'] and block['type'] in _FUSED and not block.get('foreach'):
                new['train'][key] = {**block, 'fused': True}
        if issubclass(lookup('data set', data['type']) or object, PairedImageDataset):
            if parsed.flat.get('stage') == 'udl' and 'uncertainty_cache' not in data and own['uncertainty_cache']:
                new['datasets']['train']['uncertainty_cache'] = own['uncertainty_cache']
            if 'in_memory' not in data and _fits(parsed):
                new['datasets']['train']['in_memory'] = True
    settled = changed(replace(parsed, stage1=before), new)
    train, data = settled.flat['train'], settled.flat['datasets']['train']
    on = {train.get('amp') or 'float32': True, 'channels_last': train.get('channels_last'),
          'fused': train['optim_g'].get('fused'), 'in_memory': data.get('in_memory'),
          'uncertainty_cache': data.get('uncertainty_cache')}
    chosen = ', '.join(name for name, value in on.items() if value)
    return replace(settled, notes=(*([own['why']] if own.get('why') else []),
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
    auto = processor.auto_amp(device)
    where = f"{processor.name(device)}, bf16 {'in hardware' if auto else 'not in hardware'}"
    if not fast:
        return {'amp': auto, 'channels_last': None, 'fused': [],
                'why': f'train.amp: auto is {auto or "float32"} here ({where}).'}
    seconds: dict[tuple, float] = {}
    too_large = []
    can_fuse = parsed.flat['train']['optim_g']['type'] in _FUSED
    for levers in itertools.product(dict.fromkeys((auto, None)), (True, False)):
        try:
            seconds[levers] = seconds_a_step(parsed, *levers, can_fuse)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            too_large.append(_named(*levers))
        if levers not in seconds:
            give_back(device)
        elif seconds[levers] > _LONGEST:
            break
    if not seconds:
        raise OptionError(f'{parsed.file}: --fast: no step fits into the memory of {processor.name(device)}, tried '
                          f'{", ".join(too_large)}; give a smaller datasets.train.batch_size_per_gpu, or '
                          'train.accumulate')
    amp, channels_last = min(seconds, key=seconds.__getitem__)
    timed = ', '.join(f'{_named(*levers)} {time:.3f}' for levers, time in seconds.items())
    why = f'--fast: {where}. Seconds a step of L1: {timed}.'
    if too_large:
        why += f' Too large for the memory: {", ".join(too_large)}.'
    return {'amp': amp, 'channels_last': channels_last, 'fused': ['optim_g', 'optim_w'], 'why': why}


def _named(amp: str | None, channels_last: bool) -> str:
    return f'{amp or "float32"}{" channels_last" if channels_last else ""}'


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
                      'accumulate': TrainSettings.of(flat['train']).accumulate, 'channels_last': channels_last,
                      'scheduler': dict(flat['train']['scheduler'])}})
    finally:
        logger.setLevel(level)
    channels, side = channels_of(data), data.get('gt_size', _WHOLE)
    batch = {key: torch.rand(data['batch_size_per_gpu'], channels, size, size)
             for key, size in (('lq', side // scale), ('gt', side))}
    times = []
    with training_kernels(RunSettings.of(flat).deterministic):
        for number in range(1 + _STEPS):
            began = clock()
            model.feed_data(batch)
            model.optimize_parameters(number + 1)
            float(model.get_current_log()['l_pix'])  # waits for the device
            times.append(clock() - began)
            if times[0] > _LONGEST:
                return times[0]
    return min(times[1:])
