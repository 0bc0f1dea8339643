"""A trial of a plan: each of its cells with two iterations on crops of two photographs, to see that all of it runs.

Networks, losses, stages, test, metrics and records are the plan's own. What makes it slow is not: batches of one, the
smallest crop that the networks and losses of a cell take, one image to validate and test on, LPIPS with a random
backbone. Figures of a trial mean nothing; all that it writes is in a folder of its own, ``trials/<name>``.
"""
from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np

from udl_basicsr.data.degradations import DEGRADATIONS, resize_bicubic
from udl_basicsr.data.images import decode_rgb, encode_png
from udl_basicsr.models.stage_table import trains_head_alone
from udl_basicsr.options.keys import lookup
from udl_basicsr.options.parse import OptionError
from udl_basicsr.options.signatures import parameters
from udl_basicsr.utils.settings import RunSettings
from udl_basicsr.utils.tables import text_table
from udl_basicsr.utils.text import duration

from .costs import training_operations
from .plan import Plan, PlannedRun, Stage
from .runner import check, make_all, without_lpips_weights, write_options

ITERATIONS = 2
_SIDES = (16, 24, 32, 48, 64)  # of LR crops that are tried, in pixels
_TEST_SIDE = 48
_TRAINING, _TEST = ('coffee.png', 'rocket.jpg'), ('astronaut.png', )  # in scikit-image's wheel, as in scripts/demo.py
_MARK = '.trial'  # a folder with it is ours to remove
_USUAL = 5e10  # operations a second, and seconds of a cell that are no training: for the time that is left
_OVERHEAD = 4.


def prepare(plan: Plan, runs: Iterable[PlannedRun], folder: Path) -> list[PlannedRun]:
    """Makes the runs of a trial and their images.

    Args:
        plan: Read with ``folder`` as its root.
        runs: Of the plan; each is tried with its first seed.
        folder: Emptied, if an earlier trial has left it.

    Raises:
        OptionError: Options that are wrong, or a folder that is no trial's, before anything is written.
    """
    first: dict[tuple, PlannedRun] = {}
    for run in runs:
        first.setdefault((run.network, run.scale, run.method), run)
    check(first.values(), folder, plan.file, data=False)
    tried, images = [], {}
    for key in dict.fromkeys((run.network, run.scale) for run in first.values()):
        alike = [run for run in first.values() if (run.network, run.scale) == key]
        side = _smallest_side(alike, folder, plan.file)
        for run in alike:
            tried.append(_on_trial(run, folder, side))
            images[_place(run, folder, 'train', side)] = run, _TRAINING, side
            images[_place(run, folder, 'test', _TEST_SIDE)] = run, _TEST, _TEST_SIDE
    if folder.exists() and not (folder / _MARK).exists():
        raise OptionError(f'{folder}: is there, and no trial has made it; move it away')
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / _MARK).touch()
    for place, (run, photos, side) in images.items():
        _make_images(place, run, photos, side)
    write_options(tried)
    return tried


def _smallest_side(runs: list[PlannedRun], folder: Path, file: str) -> int:
    """LR pixels of the smallest crop that is enough for all runs of a network and scale, which share their stage 1."""
    problems = []
    for side in _SIDES:
        try:
            check([_on_trial(run, folder, side) for run in runs], folder, file, data=False)
            return side
        except OptionError as error:
            problems.append(error)
    raise problems[-1]


def _place(run: PlannedRun, folder: Path, what: str, side: int) -> Path:
    """The folder of the images with ``side`` LR pixels for one degradation and scale."""
    return folder / 'data' / f'{run.degradation}_x{run.scale}_{_enlarged(run)}' / f'{what}_{side}'


def _enlarged(run: PlannedRun) -> int:
    """How many times its networks enlarge: 1 where LR images come enlarged already, as in RealSR."""
    return run.stages[-1].flat['scale']


def _on_trial(run: PlannedRun, folder: Path, side: int) -> PlannedRun:
    """A run with a few iterations on crops of ``side`` LR pixels."""
    enlarged = _enlarged(run)

    def images(block: dict, what: str, pixels: int) -> dict:
        place = _place(run, folder, what, pixels)
        return {**{key: value for key, value in block.items() if key not in ('meta_info_file', 'filename_tmpl')},
                **{f'dataroot_{kind}': str(place / kind) for kind in ('gt', 'lq')}, 'io_backend': {'type': 'disk'}}

    def stage(of: Stage) -> Stage:
        flat = {**of.flat, 'datasets': {}}
        for key, block in of.flat['datasets'].items():
            if key != 'train':
                flat['datasets'][key] = images(block, 'test', _TEST_SIDE)
                continue
            block = {name: value for name, value in images(block, 'train', side).items()
                     if name not in ('in_memory', 'prefetch_mode', 'pin_memory', 'persistent_workers', 'first_iter')}
            block.update(batch_size_per_gpu=1, num_worker_per_gpu=0, dataset_enlarge_ratio=1)
            if 'gt_size' in block:
                block['gt_size'] = side * enlarged
            flat['datasets'][key] = block
        flat['train'] = {key: _random_judge(value) for key, value in of.flat['train'].items()
                         if key not in ('accumulate', 'compile', 'warmup_iter')} | {'total_iter': ITERATIONS}
        # without weights of elsewhere, but for a head that is trained on nothing else
        flat['path'] = {key: value for key, value in (of.flat.get('path') or {}).items()
                        if not key.startswith('pretrain_')
                        or trains_head_alone(RunSettings.of(flat).stage, flat['train'])}
        if isinstance(flat.get('val'), dict):
            flat['val'] = {**flat['val'], 'val_freq': ITERATIONS, 'save_img': False,
                           'metrics': without_lpips_weights(flat['val'].get('metrics') or {})}
        flat['logger'] = {'print_freq': 1, 'save_checkpoint_freq': 10 * ITERATIONS, 'use_tb_logger': False}
        return replace(of, flat=flat)

    sets = run.test_flat['datasets']
    kept = min(sets)
    tested = {**run.test_flat, 'datasets': {kept: images(sets[kept], 'test', _TEST_SIDE)},
              'val': {**run.test_flat['val'], 'metrics': without_lpips_weights(run.test_flat['val']['metrics'])}}
    return replace(run, stages=tuple(map(stage, run.stages)), test_flat=tested,
                   size=(_TEST_SIDE * enlarged, _TEST_SIDE * enlarged))


def _random_judge(block: object) -> object:
    """A loss with a judge that needs no weights, where it has one."""
    if isinstance(block, dict) and (target := lookup('loss', block.get('type'))) \
            and 'judge_random' in parameters(target)[0]:
        return {**block, 'judge_random': True}
    return block


def _make_images(place: Path, run: PlannedRun, photos: Iterable[str], side: int) -> None:
    """Crops of photographs, ``side`` LR pixels wide, degraded as a run's options say."""
    scale, degrade = _enlarged(run), DEGRADATIONS.get(run.degradation.lower(), DEGRADATIONS['bic'])
    for photo in photos:
        if scale > 1:
            gt = _photograph(photo, side * scale)
            lq = degrade(gt, scale)
        else:  # networks that keep the size see a blurred image: made smaller and enlarged again
            gt = _photograph(photo, 8 * 12 * run.scale)
            gt, lq = (image[:side, :side] for image in (gt, resize_bicubic(degrade(gt, run.scale), run.scale)))
        for kind, image in (('gt', gt), ('lq', lq)):
            (place / kind).mkdir(parents=True, exist_ok=True)
            (place / kind / f'{Path(photo).stem}.png').write_bytes(encode_png(image, 3))


def _photograph(name: str, side: int) -> np.ndarray:
    """The middle of a photograph, (side, side, 3) RGB uint8."""
    try:
        image, _ = decode_rgb((files('skimage') / 'data' / name).read_bytes())
    except (ImportError, OSError) as error:
        raise OptionError(f'--trial: needs the photographs of scikit-image ({error}): pip install scikit-image'
                          ) from None
    missing = [max(0, side - length) for length in image.shape[:2]]
    image = np.pad(image, [*((0, length) for length in missing), (0, 0)], mode='symmetric')
    top, left = ((length - side) // 2 for length in image.shape[:2])
    return np.ascontiguousarray(image[top:top + side, left:left + side])


# ---------------------------------------------------------------- the work

def run_trial(runs: Sequence[PlannedRun], folder: Path, gpus: list[str | None]) -> int:
    """Goes through the cells, says how each ended, and prints the table of all.

    Returns:
        int: Exit status: 1 when a cell has failed.
    """
    weight = {run.name: _OVERHEAD + training_operations(run.stages) / _USUAL for run in runs}
    started, rows, left, failed = time.time(), {}, sum(weight.values()), 0
    whole = left
    for event in make_all(list(runs), folder / 'records', folder, gpus):
        run = event.run
        if event.status is None:
            continue
        left -= weight[run.name]
        failed += bool(event.status)
        rows[run.name] = [run.network or run.title, f'×{run.scale}', run.label, f'{event.seconds:.1f}',
                          'failed' if event.status else 'ok']
        if event.status:
            print(f'{run.shown}: {event.failure(5)}', flush=True)
        elapsed = time.time() - started
        about = f'; about {duration(elapsed * left / (whole - left))} left' if left > 0.01 else ''
        print(f'{run.shown}: {rows[run.name][-1]}, {event.seconds:.1f} s; {len(rows)} of {len(runs)}{about}',
              flush=True)
        shutil.rmtree(folder / 'experiments' / run.name / 'models', ignore_errors=True)  # a large network, many times
    for models in (folder / 'experiments').glob('*/models'):
        shutil.rmtree(models, ignore_errors=True)
    print(f'\n{text_table(["network", "scale", "method", "seconds", ""], [rows[r.name] for r in runs])}\n\n'
          f'{len(rows) - failed} of {len(runs)} cells run, in {duration(time.time() - started)}. Of no value but this: '
          f'{ITERATIONS} iterations a stage. Logs: {folder / "results" / runs[0].plan / "logs"}', flush=True)
    return 1 if failed else 0
