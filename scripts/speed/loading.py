"""How long a training step waits for its batch."""
from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from pathlib import Path

from udl_basicsr.data.loader import build_dataset, train_batches

from .contenders import Settings, Trainer, quiet_basicsr, runtime
from .pairing import now
from .pictures import as_lmdb


def waiting(trainer: Trainer, settings: Settings, gt: Path, lq: Path, backends: Sequence[str], workers: Sequence[int],
            steps: int) -> dict[str, dict]:
    """The share of the training time in which a stage-2 step waits for its batch, with the real loader.

    Args:
        trainer (Trainer): Whose case's batches are read.
        settings (Settings): Of the step.
        gt (Path): Folder of GT images.
        lq (Path): Folder of LQ images.
        backends (Sequence): Of ``disk``, ``lmdb`` and ``memory``, which is ``in_memory: true``.
        workers (Sequence): Values of ``num_worker_per_gpu``.
        steps (int): Timed, after as many that are not.

    Returns:
        dict: ``'disk, 2 workers'`` and so on to ``{share, wait, step}``, the last two in seconds.
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
            opt = {'datasets': {'train': options}, 'train': {'total_iter': 2 * steps},
                   **runtime(trainer.device, trainer.case.scale, is_train=True)}
            dataset = build_dataset(options)
            _, batches = train_batches(dataset, opt)
            waits, begin = [], now()
            for number in range(2 * steps):
                if number == steps:
                    begin, waits = now(), []
                asked = time.perf_counter()  # an accelerator goes on with what it has meanwhile
                data = next(batches)
                waits.append(time.perf_counter() - asked)
                model.feed_data(data)
                with quiet_basicsr():
                    model.optimize_parameters(1)
            total = now() - begin
            del batches, dataset
            gc.collect()
            results[f'{backend}, {count} workers'] = {
                'share': sum(waits) / total, 'wait': sum(waits) / steps, 'step': total / steps}
    return results
