"""Bicubic upsampling as a run like any other: its images and scores, so that tables and figures can show it."""
from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
from basicsr.metrics import calculate_metric

from udl_basicsr.data.degradations import resize_bicubic
from udl_basicsr.metrics.facts import facts_for_scores, without_better
from udl_basicsr.utils.scores import Measured, Scores, SetScores, protocol_sentence, write_scores


def write_bicubic(name: str, dataset: str, gt_folder: str | Path, lq_folder: str | Path, scale: int,
                  metrics_opt: Mapping[str, Mapping[str, Any]], results: str | Path = 'results') -> Scores:
    """Upsamples a data set and writes `results/<name>` as test.py would.

    Args:
        name: Of the run.
        dataset: Name of the data set.
        gt_folder: HR images.
        lq_folder: LR images of the same names.
        scale: Upscaling factor.
        metrics_opt: The block `val.metrics` of the option file that the run is to be compared under.
        results: Parent of the folder that is written.

    Returns:
        Scores: As they were written.

    Raises:
        FileNotFoundError: The folder is empty, or an image lacks its partner.
    """
    images = {}
    folder = Path(results) / name
    pictures = folder / 'visualization' / dataset
    pictures.mkdir(parents=True, exist_ok=True)
    for path in sorted(Path(gt_folder).glob('*.png')):
        lq = cv2.imread(str(Path(lq_folder) / path.name))
        if lq is None:
            raise FileNotFoundError(f'{path} has no readable partner in {lq_folder}. Make both by udl prepare.')
        sr, gt = resize_bicubic(lq, scale), cv2.imread(str(path))
        images[path.stem] = {metric: float(calculate_metric({'img': sr, 'img2': gt}, without_better(opt)))
                             for metric, opt in metrics_opt.items()}
        cv2.imwrite(str(pictures / f'{path.stem}_{name}.png'), sr)
    if not images:
        raise FileNotFoundError(f'There are no PNG images in {gt_folder}. Make them by udl prepare.')
    scores = Scores(name=name, scale=scale, network='bicubic', weights='none',
                    protocol=protocol_sentence(metrics_opt, scale),
                    measured=Measured(True, {m: without_better(opt) for m, opt in metrics_opt.items()}),
                    datasets={dataset: SetScores.of(images)}, metrics=facts_for_scores(metrics_opt),
                    versions={'basicsr': version('basicsr'), 'opencv': cv2.__version__})
    write_scores(scores, folder)
    return scores
