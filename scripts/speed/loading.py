"""How long a training step waits for its batch."""
from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from udl_basicsr.data.loader import build_dataset, train_batches

from .contenders import Settings, Trainer, quiet_basicsr, runtime
from .pairing import now
from .pictures import as_lmdb


def waiting(trainer: Trainer, settings: Settings, gt: Path, lq: Path, backends: Sequence[str], workers: Sequence[int],
            steps: int) -> dict[str, dict]:
    """How much longer a stage-2 step takes with the real loader than with a batch that is there.

    Time in ``next()`` says nothing on a GPU, which goes on with what it has while the host waits, and waits while the
    host collates.

    Args:
        trainer (Trainer): Whose case's batches are read.
        settings (Settings): Of the step.
        gt (Path): Folder of GT images.
        lq (Path): Folder of LQ images.
        backends (Sequence): Of ``disk``, ``lmdb`` and ``memory``, which is ``in_memory: true``.
        workers (Sequence): Values of ``num_worker_per_gpu``.
        steps (int): Timed of each, after as many that use up what the loader has in stock. The batch that is there is
            timed before and after.

    Returns:
        dict: ``'disk, 2 workers'`` and so on to ``{share, step, fixed}``: seconds of a step, of one with the batch that
            is there, and the share of the first that is not in the second, a little below 0 where chance has it.
    """
    model, results = trainer.step('udl', settings).model, {}
    for backend in backends:
        roots = {'gt': gt, 'lq': lq}
        if backend == 'lmdb':
            roots = {key: as_lmdb(path) for key, path in roots.items()}
        for count in workers:
            options = {
                'name': 'train', 'type': 'PairedImageDataset', 'phase': 'train', 'scale': trainer.case.scale,
                'dataroot_gt': str(roots['gt']), 'dataroot_lq': str(roots['lq']),
                'io_backend': {'type': 'lmdb' if backend == 'lmdb' else 'disk'}, 'in_memory': backend == 'memory',
                'gt_size': trainer.case.patch * trainer.case.scale, 'use_hflip': True, 'use_rot': True,
                'batch_size_per_gpu': trainer.case.batch, 'num_worker_per_gpu': count,
                'prefetch_mode': 'cpu' if count else None, 'pin_memory': True, 'dataset_enlarge_ratio': 1000,
            }
            opt = {'datasets': {'train': options}, 'train': {'total_iter': 2 * steps + 1},
                   **runtime(trainer.device, trainer.case.scale, is_train=True)}
            dataset = build_dataset(options)
            _, batches = train_batches(dataset, opt)
            there = itertools.repeat(next(batches))
            _seconds_a_step(model, there, steps)
            before = _seconds_a_step(model, there, steps)
            _seconds_a_step(model, batches, steps)
            step = _seconds_a_step(model, batches, steps)
            fixed = (before + _seconds_a_step(model, there, steps)) / 2
            del batches, dataset
            gc.collect()
            results[f'{backend}, {count} workers'] = {'share': 1 - fixed / step, 'step': step, 'fixed': fixed}
    return results


def _seconds_a_step(model, batches: Iterator[dict], steps: int) -> float:
    begin = now()
    for data in itertools.islice(batches, steps):
        model.feed_data(data)
        with quiet_basicsr():
            model.optimize_parameters(1)
    return (now() - begin) / steps
