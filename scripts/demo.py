#!/usr/bin/env python
"""The Python parts of demo.sh: `photos` collects the photographs, `bicubic` scores plain upsampling, `figure` draws."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from udl_basicsr.utils import exits

if TYPE_CHECKING:
    from udl_basicsr.utils.scores import Scores

DATA, RESULTS = Path('datasets/demo'), Path('results')
# Photographs in scikit-image's wheel, without the few that are smooth or black nearly everywhere. The motorcycles are
# one scene seen twice, and so stay in one split.
PHOTOS = {
    'train': ['brick.png', 'coins.png', 'grass.png', 'gravel.png', 'ihc.png', 'moon.png', 'motorcycle_left.png',
              'motorcycle_right.png', 'page.png', 'rocket.jpg', 'text.png'],
    'val': ['camera.png'],
    'test': ['astronaut.png', 'chelsea.png', 'coffee.png'],
}
RUNS = {'demo_bicubic': 'bicubic', 'demo_L1': 'L1', 'demo_UDL': 'UDL'}


def photos() -> None:
    """Copies the photographs to datasets/demo/photos/<split>."""
    for split, names in PHOTOS.items():
        folder = DATA / 'photos' / split
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            with as_file(files('skimage') / 'data' / name) as source:
                if not source.is_file():
                    sys.exit(f'error: this scikit-image does not ship {name}; install scikit-image 0.26')
                (folder / name).write_bytes(source.read_bytes())
        print(f'{split}: {", ".join(Path(name).stem for name in names)}')


def write_bicubic(name: str, dataset: str, gt_folder: str | Path, lq_folder: str | Path, scale: int,
                  metrics_opt: Mapping[str, Mapping[str, Any]], results: str | Path = 'results') -> Scores:
    """Upsamples a data set and writes ``results/<name>`` as udl test would, so that figures and tables can show it.

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
    from importlib.metadata import version

    from basicsr.metrics import calculate_metric

    from udl_basicsr.data.degradations import resize_bicubic
    from udl_basicsr.metrics.facts import facts_for_scores, without_better
    from udl_basicsr.utils.scores import Measured, Scores, SetScores, protocol_sentence, write_scores

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


def bicubic() -> None:
    """Scores bicubic upsampling under the metrics of the demo's test."""
    from udl_basicsr.utils.scores import format_scores
    from udl_basicsr.utils.yaml_files import load_yaml

    opt = load_yaml('options/demo/test.yml')
    test = opt['datasets']['test']
    print(format_scores(write_bicubic('demo_bicubic', test['name'], test['dataroot_gt'], test['dataroot_lq'],
                                      opt['scale'], opt['val']['metrics'], RESULTS)))


def _read(path: Path, flags: int = cv2.IMREAD_COLOR) -> np.ndarray:
    image = cv2.imread(str(path), flags)
    if image is None:
        sys.exit(f'error: cannot read {path}. Run the whole demo: bash scripts/demo.sh')
    return image[..., ::-1] if image.ndim == 3 else image


def figure() -> None:
    """Draws results/demo/<image>.png for each test photograph."""
    from udl_basicsr.functional.image_statistics import busiest_box, error_map, nearest, scale_map
    from udl_basicsr.functional.log_scale_maps import decode_log_scale
    from udl_basicsr.reports.figures import Panel, comparison_figure
    from udl_basicsr.utils.scores import read_scores

    scores = {run: read_scores(RESULTS / run).datasets['demo'].images for run in RUNS}
    for name in map(Path, PHOTOS['test']):
        image = name.stem
        gt = _read(DATA / 'test' / 'GTmod2' / f'{image}.png')
        lq = _read(DATA / 'test' / 'LRbicx2' / f'{image}.png')
        sr = {run: _read(RESULTS / run / 'visualization' / 'demo' / f'{image}_{run}.png') for run in RUNS}
        theta = scale_map(decode_log_scale(_read(RESULTS / 'demo_UDL' / 'visualization' / 'demo' /
                                                 f'{image}_log_scale.png', cv2.IMREAD_UNCHANGED)))
        restored = [Panel(f'{label}\n{scores[run][image]["psnr"]:.2f} dB / {scores[run][image]["ssim"]:.4f}', sr[run])
                    for run, label in RUNS.items()]
        panels = [Panel('low resolution\n×2 smaller', nearest(lq, 2)), *restored, Panel('ground truth', gt),
                  *(Panel(f'|{label} − truth|', error_map(sr[run], gt), 'error') for run, label in RUNS.items()
                    if run != 'demo_bicubic'),
                  Panel('uncertainty', theta, 'scale')]
        out = comparison_figure(panels, busiest_box(gt, 96), RESULTS / 'demo' / f'{image}.png',
                                whole=[Panel(image, gt), Panel('uncertainty θ', theta, 'scale')])
        print(f'Wrote {out}')


@exits.command()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description='The Python parts of the demo. bash scripts/demo.sh calls it.')
    parser.add_argument('part', choices=['photos', 'bicubic', 'figure'])
    {'photos': photos, 'bicubic': bicubic, 'figure': figure}[parser.parse_args(argv).part]()
    return 0


if __name__ == '__main__':
    sys.exit(main())
