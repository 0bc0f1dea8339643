"""The pictures and scores of test runs, as figures need them: one image of one run, by name.

test.py writes `results/<name>/visualization/<data set>/<image>_<name>.png` with `val.save_img: true`, the map of s as
`<image>_log_scale.png` beside it where the model has an uncertainty, and `results/<name>/scores.json`.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from basicsr.utils import bgr2ycbcr

from udl_basicsr.data.images import SUFFIXES, channels_of
from udl_basicsr.functional.log_scale_maps import decode_log_scale
from udl_basicsr.options.keys import block_of
from udl_basicsr.utils.errors import UdlError
from udl_basicsr.utils.json_files import read_json
from udl_basicsr.utils.metric_facts import facts_by_name
from udl_basicsr.utils.scores import Scores, ScoresError, SetScores, read_scores


class ReportError(UdlError, ValueError):
    """Pictures that are missing or do not belong together; the message says which and what to do."""


def read_pixels(path: str | Path, flags: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """Reads a picture as OpenCV does.

    Raises:
        ReportError: Missing or no picture.
    """
    image = cv2.imread(str(path), flags)
    if image is None:
        raise ReportError(f'{path}: {"cannot be read as an image" if Path(path).exists() else "no such file"}')
    return image


def read_image(path: str | Path) -> np.ndarray:
    """Reads a picture: (H, W, 3) uint8 RGB, gray repeated.

    Raises:
        ReportError: Missing or no picture.
    """
    return np.ascontiguousarray(read_pixels(path)[..., ::-1])


def on_y(image: np.ndarray) -> np.ndarray:
    """Y of a picture, 16 to 235 by ITU-R BT.601, rounded as metrics have it, and repeated: (H, W, 3) uint8.

    Args:
        image: (H, W, 3) uint8 RGB; or (H, W), which is Y.
    """
    plane = image if image.ndim == 2 else bgr2ycbcr(image[..., ::-1], y_only=True)
    return np.repeat(plane[..., None], 3, axis=2)


def as_trained(image: np.ndarray, options: dict) -> np.ndarray:
    """A picture (H, W, 3) uint8 RGB as the networks of a run take it: of Y alone, (H, W, 1), with ``color: y``.

    Args:
        image: The picture.
        options: Of the run.
    """
    return image if channels_of(block_of(block_of(options, 'datasets'), 'train')) == 3 else on_y(image)[..., :1]


def comparable(sr: Sequence[np.ndarray], *others: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Pictures that may be compared: all of Y where one of the SR images is Y alone, as the metrics of its test are.

    Args:
        sr: What :meth:`Run.sr` gives.
        others: GT and the like, (H, W, 3) uint8 RGB.

    Returns:
        Both, (H, W, 3) uint8.
    """
    if any(image.ndim == 2 for image in sr):
        return [on_y(image) for image in sr], [on_y(image) for image in others]
    return list(sr), list(others)


def partner_of(folder: str | Path, image: str, what: str = 'GT') -> Path:
    """The GT or LQ of an image: of its name, or of that name without the scale of the LQ file (`babyx4` → `baby`).

    Args:
        folder: Folder of the images.
        image: Name as in the scores, without the ending.
        what: Named in the error.

    Raises:
        ReportError: There is none.
    """
    for stem in (image, re.sub(r'_?x\d+$', '', image, flags=re.IGNORECASE)):
        for suffix in (*SUFFIXES, *map(str.upper, SUFFIXES)):
            if (path := Path(folder) / f'{stem}{suffix}').is_file():
                return path
    raise ReportError(f'{folder} has no {image}.png: is it the {what} folder of this data set?')


def read_partner(folder: str | Path, image: str, what: str = 'GT') -> np.ndarray:
    """What :func:`partner_of` finds, (H, W, 3) uint8 RGB.

    Raises:
        ReportError: There is none, or no picture.
    """
    return read_image(partner_of(folder, image, what))


def ending_of(folder: Path, images: Iterable[str]) -> str:
    """What stands behind the names of all SR images of a data set: `baby_<ending>.png`.

    Names may begin alike (`img`, `img_2`): the ending is what follows the name of every image.

    Raises:
        ReportError: They were not kept, or several pictures could be they.
    """
    stems = {path.stem for path in folder.glob('*.png')}
    endings = set.intersection(*({stem[len(name) + 1:] for stem in stems if stem.startswith(f'{name}_')}
                                 for name in images)) - {'log_scale'}
    if len(endings) != 1:
        raise ReportError(f'{folder}: expected one SR image <image>_<name>.png for each image, found '
                          f'{", ".join(sorted(endings)) or "none"} as <name>. Test with val.save_img: true')
    return endings.pop()


@dataclass(frozen=True)
class Run:
    """A test run whose pictures were kept.

    Attributes:
        label: How it is printed.
        source: What it was read from, for errors.
        folder: Of the pictures, with a folder for each data set.
        scale: The upscaling factor.
        datasets: As in the scores.
    """
    label: str
    source: str
    folder: Path
    scale: int
    datasets: dict[str, SetScores]

    def images(self, dataset: str) -> list[str]:
        """The names of the images of a data set.

        Raises:
            ReportError: It was not tested on that data set.
        """
        if dataset not in self.datasets:
            raise ReportError(f'{self.source}: was not tested on {dataset}, but on '
                              f'{", ".join(self.datasets) or "nothing"}')
        return list(self.datasets[dataset].images)

    def scores(self, dataset: str, image: str) -> dict[str, float | None]:
        """The metrics of one image.

        Raises:
            ReportError: There is no such data set or image.
        """
        names = self.images(dataset)
        if image not in names:
            raise ReportError(f'{self.source}: {dataset} has no image {image!r}, it has {", ".join(names)}')
        return self.datasets[dataset].images[image]

    def caption(self, dataset: str, image: str) -> str:
        """PSNR and SSIM of one image as papers print them, `29.22 dB / 0.8266`; empty where neither was measured."""
        scores, parts = self.scores(dataset, image), []
        if 'psnr' in scores:
            parts.append(f'{facts_by_name("psnr").text(scores["psnr"])} dB')
        if 'ssim' in scores:
            parts.append(facts_by_name('ssim').text(scores['ssim']))
        return ' / '.join(parts)

    def sr(self, dataset: str, image: str) -> np.ndarray:
        """The restored image, uint8: (H, W, 3) RGB, or (H, W), Y alone, of a network that was trained on it.

        Raises:
            ReportError: It was not kept, or several pictures could be it.
        """
        self.scores(dataset, image)
        folder = self.folder / dataset
        pixels = read_pixels(folder / f'{image}_{ending_of(folder, self.images(dataset))}.png', cv2.IMREAD_ANYCOLOR)
        return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., ::-1])

    def log_scale(self, dataset: str, image: str) -> np.ndarray:
        """s of one image, mean over the channels, natural log of θ in grey levels: (H, W) float32 in [-2, 6].

        Raises:
            ReportError: It was not kept, or is no such map.
        """
        self.scores(dataset, image)
        path = self.folder / dataset / f'{image}_log_scale.png'
        if not path.is_file():
            raise ReportError(f'{path}: no such file. Test with val.save_img: true and with path.pretrain_network_u, '
                              'so that the uncertainty is saved beside the images')
        encoded = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if encoded is None or encoded.dtype != np.uint16 or encoded.ndim != 2:
            raise ReportError(f'{path}: expected a gray 16-bit PNG, the map of s that udl test writes')
        return decode_log_scale(encoded)


def open_run(given: str) -> Run:
    """Opens a run for figures.

    Args:
        given: A results folder or the JSON record of a comparison's run, optionally as `LABEL=PATH`.

    Raises:
        ReportError: The record names no pictures.
        ScoresError, OSError: The scores are missing or malformed.
    """
    label, _, path = ('', '', given) if Path(given).exists() else given.rpartition('=')
    path = Path(path)
    if path.suffix != '.json':
        scores = read_scores(path)
        return Run(label or scores.name, str(path), path / 'visualization', scores.scale, scores.datasets)
    try:
        record = read_json(path)
        scores = Scores.from_json(record, str(path))
    except ValueError as error:
        if isinstance(error, ScoresError):
            raise
        raise ReportError(f'{path}: is no JSON file ({error})') from error
    if not record.get('pictures'):
        raise ReportError(f'{path}: names no folder of pictures (`pictures`): they were not kept. Give the results '
                          'folder of the run')
    return Run(label or record.get('label') or scores.name, str(path), Path(record['pictures']), scores.scale,
               scores.datasets)


def same_size(images: dict[str, np.ndarray]) -> None:
    """Raises ReportError unless all pictures have the same height and width; the keys name them."""
    sizes = {name: image.shape[:2] for name, image in images.items()}
    if len(set(sizes.values())) > 1:
        raise ReportError('the pictures are not of one size: '
                          + ', '.join(f'{name} {width}×{height}' for name, (height, width) in sizes.items())
                          + '. Is it the GT folder of this data set and scale?')
