"""Calibrated intervals under the report's slider: their ends, and the picture where only what is promised is bright.

They are what ``udl infer --intervals`` writes for the LQ images of a test set: ``<folder>/<image>_lower.png``,
``_upper.png`` and ``_within.png``. Each says which weights it is of, by their hash; so do the scores of ``udl test``.
"""
from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from .pictures import ReportError

KINDS = ('lower', 'upper', 'within')
_DIM = 0.2  # of its brightness, what is not promised
_MADE_BY = {'alpha': int | float, 'delta': int | float, 'factor': int | float, 'within': int | float, 'weights': str,
            'uncertainty': str}  # what one run of infer says in all of its pictures


def check_folder(folder: Path, dataset: str, images: Iterable[str]) -> None:
    """Refuses a folder that has intervals of none of a data set's images, with a ReportError."""
    images = list(images)
    if not {file.name.removesuffix('_lower.png') for file in folder.glob('*_lower.png')} & {*images}:
        shown = ', '.join(images[:3]) + (', ...' if len(images) > 3 else '')
        raise ReportError(f'--intervals {dataset}={folder}: holds no <image>_lower.png of this data set ({shown}). '
                          f'Give the folder that udl infer --intervals made of the LR images of {dataset}, without '
                          '--suffix')


def bounds(folders: Sequence[Path], image: str, size: tuple[int, int],
           shown: Mapping[str, str]) -> tuple[list[tuple[str, str, np.ndarray]], str]:
    """The pictures of one image.

    Args:
        folders: Of results of ``udl infer --intervals``; the first that has the image, of weights that are shown.
        image: Name as in the scores, without the ending.
        size: (height, width) of the image.
        shown: Label of each method whose picture is shown, and the hash of its weights; empty where it is not known.

    Returns:
        Key, label and picture (H, W, 3) uint8 RGB of the lower end, of the upper end, and of the middle between them,
        dark where the error is not promised to be small; empty where no folder has them. And what there is to say: why
        they are missing, or that nobody knows which method they belong to.

    Raises:
        ReportError: A file that is missing, of another size, or no picture of ours; files of different runs.
    """
    why = []
    for folder in folders:
        files = {kind: folder / f'{image}_{kind}.png' for kind in KINDS}
        if not files['lower'].is_file():
            why.append(f'{folder} has none')
            continue
        said = {kind: _facts(file) for kind, file in files.items()}
        found = {kind: _read(files[kind], kind, image, size) for kind in KINDS}
        facts = said['lower']
        if differing := [files[kind].name for kind in KINDS if said[kind] != facts]:
            raise ReportError(f'{files["lower"]} and {", ".join(differing)} are not of one run of udl infer '
                              '--intervals: they state different weights or calibrations. Make them again')
        weights = facts.get('weights', '')
        owner = next((label for label, known in shown.items() if known and known == weights), '')
        if not owner and weights and all(shown.values()):
            why.append(f'those in {folder} are of other weights ({weights[:8]}) than the methods shown')
            continue
        name = owner or (f'weights {weights[:8]}' if weights else 'unknown weights')
        note = '' if owner else (f'whether they belong to a method shown is not known: {folder} has those of {name}. '
                                 'Run udl test again, whose scores state the weights')
        return _layers(found, facts, name), note
    return [], '; '.join(why)


def _read(file: Path, kind: str, image: str, size: tuple[int, int]) -> np.ndarray:
    read = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    if read is None or read.shape[:2] != size or read.dtype != (np.uint8 if kind == 'within' else np.uint16):
        raise ReportError(f'{file}: expected what udl infer --intervals writes for {image}, {size[1]}×{size[0]} '
                          'pixels; make it again')
    read = read[..., None] if read.ndim == 2 else read[..., ::-1]
    return np.broadcast_to(read, (*size, 3))


def _layers(found: Mapping[str, np.ndarray], facts: Mapping, name: str) -> list[tuple[str, str, np.ndarray]]:
    lower, upper = (np.round(found[kind] / 257.) for kind in ('lower', 'upper'))
    middle = np.where(found['within'] > 0, 1., _DIM) * (lower + upper) / 2
    share = f'{100 * (1 - facts["alpha"]):g}' if 'alpha' in facts else '?'
    error = f'{facts["within"]:g}' if 'within' in facts else '?'
    return [(key, label, picture.round().astype(np.uint8)) for key, label, picture in (
        ('lower', f'Lower end, {share} %, {name}', lower), ('upper', f'Upper end, {share} %, {name}', upper),
        ('within', f'Within {error} grey levels, {name}: bright', middle))]


def _facts(file: Path) -> dict:
    """What a picture says of what made it; nothing where it does not."""
    try:
        with Image.open(file) as image:
            facts = json.loads(getattr(image, 'text', {}).get('udl', '{}'))  # PNGs alone have text
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
    if not isinstance(facts, dict):
        return {}
    return {key: facts[key] for key, kind in _MADE_BY.items() if isinstance(facts.get(key), kind)}
