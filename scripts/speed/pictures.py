"""The images that validation and loading are measured on: made here, or given and checked."""
from __future__ import annotations

import os
from contextlib import redirect_stdout
from pathlib import Path

import cv2
import numpy as np

from udl_basicsr.utils.errors import UdlError


class SpeedError(UdlError):
    """Something that cannot be measured; the message says what to change."""


def make_images(folder: Path, count: int, height: int, width: int, scale: int, seed: int = 0) -> tuple[Path, Path]:
    """PNG pairs of smooth noise with edges and grain, about as hard to decode as photographs.

    Returns:
        tuple: The folders of GT (height, width) and of LQ images.
    """
    generator = np.random.default_rng(seed)
    folders = folder / 'gt', folder / 'lq'
    for path in folders:
        path.mkdir(parents=True)
    for number in range(count):
        coarse = generator.random((height // 16 + 1, width // 16 + 1, 3)).astype(np.float32)
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        image += 0.2 * (np.add.outer(np.arange(height), np.arange(width)) // 7 % 2)[..., None]
        image += generator.normal(0, 0.01, image.shape)
        gt = (image.clip(0, 1) * 255).round().astype(np.uint8)
        lq = cv2.resize(gt, (width // scale, height // scale), interpolation=cv2.INTER_AREA)
        for path, picture in zip(folders, (gt, lq), strict=True):
            cv2.imwrite(str(path / f'{number:04d}.png'), picture)
    return folders


def check_folders(gt: Path, lq: Path, scale: int) -> None:
    """
    Raises:
        SpeedError: Not two folders with images of the same names, GT ``scale`` times as large as LQ.
    """
    names = {}
    for path in (gt, lq):
        if not path.is_dir():
            raise SpeedError(f'{path}: expected a folder of images')
        names[path] = {p.name for p in path.iterdir() if p.is_file() and not p.name.startswith('.')}
    if not names[gt] or names[gt] != names[lq]:
        odd = sorted(names[gt] ^ names[lq])[:3]
        raise SpeedError(f'{gt} and {lq}: expected images of the same names' +
                         (f'; only in one: {", ".join(odd)}' if odd else ', found none'))
    for name in sorted(names[gt]):
        sizes = []
        for path in (gt / name, lq / name):
            image = cv2.imread(str(path))
            if image is None:
                raise SpeedError(f'{path}: is no image that OpenCV can read')
            sizes.append(image.shape[:2])
        if sizes[0] != tuple(scale * side for side in sizes[1]):
            large, small = (f'{height}x{width}' for height, width in sizes)
            raise SpeedError(f'{gt / name}: {large} is not {scale} times {small} of {lq / name}. '
                             'Crop it with udl prepare')


def as_lmdb(folder: Path) -> Path:
    """Makes BasicSR's LMDB of the PNG images of a folder, beside it; returns where."""
    from basicsr.utils.lmdb_util import make_lmdb_from_imgs
    path = folder.with_suffix('.lmdb')
    if not path.exists():
        names = sorted(p.name for p in folder.glob('*.png'))
        with open(os.devnull, 'w') as silence, redirect_stdout(silence):
            make_lmdb_from_imgs(str(folder), str(path), names, [Path(name).stem for name in names])
    return path
