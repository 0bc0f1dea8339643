"""Calibrated intervals under the report's slider: their ends, and the picture where only what is promised is bright.

They are what ``udl infer --intervals`` writes for the LQ images of a test set: ``<folder>/<image>_lower.png``,
``_upper.png`` and ``_within.png``.
"""
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from .uncertainty import ReportError

KINDS = ('lower', 'upper', 'within')
_DIM = 0.2  # of its brightness, what is not promised


def bounds(folders: Sequence[Path], image: str, size: tuple[int, int]) -> list[tuple[str, str, np.ndarray]]:
    """The pictures of one image.

    Args:
        folders: Of results of ``udl infer --intervals``; the first that has the image is taken.
        image: Name as in the scores, without the ending.
        size: (height, width) of the image.

    Returns:
        Key, label and picture (H, W, 3) uint8 RGB of the lower end, of the upper end, and of the middle between them,
        dark where the error is not promised to be small; empty where no folder has the image.

    Raises:
        ReportError: A file that is missing, of another size, or no picture of ours.
    """
    folder = next((folder for folder in folders if (folder / f'{image}_lower.png').is_file()), None)
    if folder is None:
        return []
    files = {kind: folder / f'{image}_{kind}.png' for kind in KINDS}
    found = {}
    for kind, file in files.items():
        read = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        if read is None or read.shape[:2] != size or read.dtype != (np.uint8 if kind == 'within' else np.uint16):
            raise ReportError(f'{file}: expected what udl infer --intervals writes for {image}, {size[1]}×{size[0]} '
                              'pixels; make it again')
        read = read[..., None] if read.ndim == 2 else read[..., ::-1]
        found[kind] = np.broadcast_to(read, (*size, 3))
    facts = {kind: _facts(files[kind]) for kind in ('lower', 'within')}
    lower, upper = (np.round(found[kind] / 257.) for kind in ('lower', 'upper'))
    middle = np.where(found['within'] > 0, 1., _DIM) * (lower + upper) / 2
    share, error = (f'{value:g}' if isinstance(value, int | float) else '?' for value in (
        100 * (1 - facts['lower'].get('alpha', np.nan)), facts['within'].get('within')))
    return [(key, label, picture.round().astype(np.uint8)) for key, label, picture in (
        ('lower', f'Lower end, {share} %', lower), ('upper', f'Upper end, {share} %', upper),
        ('within', f'Within {error} grey levels: bright', middle))]


def _facts(file: Path) -> dict:
    """What a picture says of itself; nothing where it does not."""
    try:
        with Image.open(file) as image:
            facts = json.loads(getattr(image, 'text', {}).get('udl', '{}'))  # PNGs alone have text
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
    if not isinstance(facts, dict):
        return {}
    return {key: value for key, value in facts.items() if isinstance(value, int | float)}
