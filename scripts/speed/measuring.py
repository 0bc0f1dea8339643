"""The whole run: every part of a plan, one after the other, into one report."""
from __future__ import annotations

import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import basicsr
import cv2
import numpy as np
import torch
from tqdm import tqdm

from udl_basicsr.utils import processor
from udl_basicsr.utils.memory import give_back, is_out_of_memory

from .contenders import Case, Settings, Trainer, levers
from .loading import waiting
from .memory import peak_memory
from .pairing import figure, ratios
from .pictures import make_images
from .plan import Plan
from .validating import validation

# What the issue of speed is measured by: figure → what it must reach, and whether more or less is better.
GOALS = {
    'published_over_ours': (6, '≥'),  # on a CPU with AMX; 4 on a GPU
    'stage2_over_l1': (1.30, '≤'),
    'stage2_cached_over_l1': (1.03, '≤'),
    'stage1_over_l1': (1.45, '≤'),
    'memory_published_over_ours': (2, '≥'),
    'validation_basicsr_over_ours': (2, '≥'),
}
# Iterations of UDL's tables 1 to 6 as printed; L1 is trained as long as both stages together.
ITERATIONS = {'basicsr': 520_000, 'l1': 520_000, 'esu': 120_000, 'published': 400_000, 'udl': 400_000}
# Figure → the two contenders whose ratio it is.
FIGURES = {
    'published_over_ours': ('published', 'udl'),
    'published_over_ours_cached': ('published', 'udl_cached'),
    'published_over_ours_float32': ('published', 'udl_float32'),
    'stage2_over_l1': ('udl', 'l1'),
    'stage2_cached_over_l1': ('udl_cached', 'l1'),
    'stage1_over_l1': ('esu', 'l1'),
    'stage2_over_l1_float32': ('udl_float32', 'l1_float32'),
    'stage1_over_l1_float32': ('esu_float32', 'l1_float32'),
    'basicsr_l1_over_ours': ('basicsr', 'l1'),
}


def run(plan: Plan, device: torch.device, folders: tuple[Path, Path] | None = None, progress: bool = True,
        save: Callable[[dict], object] = lambda report: None) -> dict:
    """Measures what a plan says, the first network and all that is measured with it first.

    Args:
        plan (Plan): See :func:`make_plan`.
        device (torch.device): Where the networks run.
        folders (tuple | None): GT and LQ images to validate on; None makes some.
        progress (bool): Whether to show progress, with the time that is left, on stderr.
        save (Callable): Called with the report whenever a part of it is there; the other figures are None.

    Returns:
        dict: What :func:`write` writes.

    Raises:
        SpeedError: Validation figures that differ from BasicSR's.
    """
    torch.backends.cudnn.benchmark = True  # as in BasicSR's and our training
    processor.keep_freed_memory()  # as in ours; here BasicSR's gains by it, too
    report = dict.fromkeys(GOALS)
    report |= {'figures': {}, 'machine': {**machine(device), 'clock': plan.clock}, 'networks': {}, 'growth': [],
               'validation': {}, 'data': {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        first = report['networks'][plan.cases[0].network] = measure_largest(plan.cases[0], device, folder, plan,
                                                                            progress, plan.memory)
        report['figures'] |= first['figures']
        best = Settings(**first['best'])
        _headlines(report, save)
        if plan.validated:
            gt, lq = folders or make_images(folder / 'val', plan.images, *plan.image_size, plan.cases[0].scale)
            for network in plan.validated:
                measured = validation(replace(plan.cases[0], network=network), gt, lq, device, plan.rounds,
                                      plan.seconds, f'validation, {network}' if progress else '')
                report['validation'][network] = measured
            measured = report['validation'][plan.validated[0]]
            beyond = {'wall': measured['ratios'], 'processor': measured['cpu_ratios'], 'gpu': measured['ratios']}
            report['figures']['validation_basicsr_over_ours'] = figure(beyond[plan.clock])
            report['figures'] |= {f'validation_basicsr_over_ours_{clock}': figure(beyond[clock])
                                  for clock in ('wall', 'processor')
                                  if device.type == 'cpu' or clock == 'wall'}  # beside a GPU the processor spins
            _headlines(report, save)
        if plan.backends:
            case = plan.cases[0]
            trained_on = make_images(folder / 'train', max(8, case.batch), 480, 480, case.scale)
            report['data'] = waiting(Trainer(case, device, folder), best, *trained_on, plan.backends, plan.workers,
                                     steps=50 if device.type == 'cuda' else 5)
            _headlines(report, save)
        if plan.growth:
            # Compiled anew for each size, and so without.
            report['growth'] = growth(plan.growth, replace(best, compile=False), device, folder, plan, progress)
            _headlines(report, save)
        for case in plan.cases[1:]:
            report['networks'][case.network] = measure_largest(case, device, folder, plan, progress)
            _headlines(report, save)
    return report


def _headlines(report: dict, save: Callable[[dict], object]) -> None:
    report |= {key: report['figures'][key]['median'] for key in GOALS if key in report['figures']}
    save(report)


def fastest(samples: Mapping[Settings, Sequence[float]]) -> Settings:
    """The settings with the smallest median; compiling, which takes minutes at each start, has to gain a tenth."""
    return min(samples, key=lambda settings: statistics.median(samples[settings]) * (1 + settings.compile / 9))


def measure_largest(case: Case, device: torch.device, *args) -> dict:
    """:func:`measure_case`, with half the batch, and half of that, as long as not all contenders fit into the memory.

    Returns:
        dict: As there, with ``asked_for``: the batch of ``case``.
    """
    batch = case.batch
    while True:
        try:
            return {**measure_case(replace(case, batch=batch), device, *args), 'asked_for': case.batch}
        except RuntimeError as error:
            if batch == 1 or not is_out_of_memory(error):
                raise
        batch //= 2
        give_back(device)


def measure_case(case: Case, device: torch.device, folder: Path, plan: Plan, progress: bool = True,
                 memory: Case | None = None) -> dict:
    """All contenders of one network.

    The levers are compared first, and the best settings are chosen from that; then these are measured anew against the
    published form and stock BasicSR, so that the figures owe nothing to having been picked.

    Args:
        case (Case): What is timed.
        device (torch.device): Where to train.
        folder (Path): For weights.
        plan (Plan): Rounds and levers.
        progress (bool): Whether to show progress on stderr.
        memory (Case | None): What the memory is measured of; None: of ``case``.

    Returns:
        dict: ``best`` settings, ``levers`` and ``contenders`` (seconds a step), ``figures`` and ``memory`` in bytes.
    """
    trainer = Trainer(case, device, folder)
    result = {'case': asdict(case), 'unavailable': {}, 'levers': {}}
    if case.network not in plan.compiled:
        result['unavailable'][str(Settings(compile=True))] = 'not tried, compiling takes minutes'
    steps = {}
    for settings in levers(device, case.network in plan.compiled):
        try:
            step = trainer.step('udl', settings)
            step()  # torch.compile compiles here
        except Exception as error:  # a compiler or a type that this machine lacks: said, and not measured
            if settings == Settings():
                raise
            result['unavailable'][str(settings)] = f'{type(error).__name__}: {str(error).splitlines()[0][:200]}'
            continue
        steps[settings] = step
    samples = plan.time(steps, 0, f'{case.network}: levers' if progress else '')  # each has made a step above
    del step, steps
    for settings, seconds in samples.items():
        result['levers'][str(settings)] = {'settings': asdict(settings), 'seconds': seconds,
                                           'speedup': figure(ratios(samples[Settings()], seconds))}
    best = fastest(samples)
    result['best'] = asdict(best)

    # Float32 without any lever but what leaves results and settings alone, the fast head.
    plain = Settings(fast_head=True)
    contenders = {'basicsr': ('basicsr', ), 'published': ('published', )}
    for kind in ('l1', 'esu', 'udl'):
        contenders[kind] = kind, best
        contenders[f'{kind}_float32'] = kind, plain
    contenders['udl_cached'] = 'udl', best, True
    steps = {name: trainer.step(*args) for name, args in contenders.items()}
    samples = plan.time(steps, 1, f'{case.network}: against others' if progress else '')
    del steps
    result['contenders'] = {name: {'seconds': figure(seconds)} for name, seconds in samples.items()}
    result['figures'] = {key: figure(ratios(samples[a], samples[b])) for key, (a, b) in FIGURES.items()}
    contenders['udl_bf16'] = 'udl', Settings(amp='bf16', channels_last=True, fused=True, fast_head=True)
    if memory:
        trainer = Trainer(memory, device, folder)
    result['memory'], result['memory_case'] = {}, asdict(trainer.case)
    for name, args in tqdm(contenders.items(), f'{case.network}: memory', disable=not progress, dynamic_ncols=True):
        result['memory'][name] = peak_memory(lambda args=args: trainer.step(*args), device)
    for key, name in (('', 'udl'), ('_cached', 'udl_cached'), ('_float32', 'udl_float32'), ('_bf16', 'udl_bf16')):
        result['figures'][f'memory_published_over_ours{key}'] = figure(
            [result['memory']['published'] / result['memory'][name]])
    return result


def growth(cases: Sequence[Case], settings: Settings, device: torch.device, folder: Path, plan: Plan,
           progress: bool = True) -> list[dict]:
    """Time and memory of each stage for each case: ``{case, seconds, memory}``, both by stage."""
    rows = []
    for case in tqdm(cases, 'growth', unit='case', disable=not progress, dynamic_ncols=True):
        trainer = Trainer(case, device, folder)
        stages = {'published': ('published', ), **{kind: (kind, settings) for kind in ('l1', 'esu', 'udl')},
                  'udl_cached': ('udl', settings, True)}
        samples = plan.time({name: trainer.step(*args) for name, args in stages.items()}, 1, share=1 / len(cases))
        memory = {name: peak_memory(lambda args=args, t=trainer: t.step(*args), device)
                  for name, args in stages.items()}
        rows.append({'case': asdict(case), 'name': str(case), 'memory': memory,
                     'seconds': {name: figure(values) for name, values in samples.items()}})
    return rows


def machine(device: torch.device) -> dict:
    """What the figures were measured on and with."""
    return {
        'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else 'cpu',
        'cpu': processor.name(torch.device('cpu')),
        'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        'threads': torch.get_num_threads(),
        'load': list(os.getloadavg()) if hasattr(os, 'getloadavg') else None,
        'bf16': processor.has_bf16(device),
        'tf32_convolutions': torch.backends.cudnn.allow_tf32 if device.type == 'cuda' else False,
        'versions': {'python': platform.python_version(), 'torch': torch.__version__, 'basicsr': basicsr.__version__,
                     'numpy': np.__version__, 'opencv': cv2.__version__},
    }
