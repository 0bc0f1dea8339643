"""Makes the pairs of high- and low-resolution folders that BasicSR's PairedImageDataset reads.

Everything that can be refused is refused before the first file is written. Files appear under their names only when
they are complete, so a run that was interrupted goes on with what is missing. ``prepare.json`` in the output folder
remembers what the files were made from: other images are never mixed into the same folders, and files that this
module did not make are never touched.
"""
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
from basicsr.data.transforms import mod_crop
from basicsr.metrics import calculate_psnr, calculate_ssim
from basicsr.utils.lmdb_util import LmdbMaker
from tqdm import tqdm

from udl_basicsr.utils.errors import UdlError
from udl_basicsr.utils.files import is_stream, why_not_into, write_atomically
from udl_basicsr.utils.locks import HeldError, locked
from udl_basicsr.utils.text import some

from .degradations import DEGRADATIONS, resize_bicubic, sub_image_corners
from .images import OTHER_IMAGE_SUFFIXES, SUFFIXES, ImageError, decode_rgb, encode_png
from .workers import Workers

MIN_LQ_SIDE = 8  # pixels; below, the bicubic kernel and SSIM's 11x11 window no longer fit into the image
PNG_LEVEL = 3
MANIFEST = 'prepare.json'
MADE_BY = {'made_by': 'udl_basicsr prepare_data', 'format': 1}


class PreparationError(UdlError):
    """The reasons why nothing can be prepared, one line each, in ``problems``."""


@dataclass(frozen=True)
class Job:
    """What to prepare."""
    source: Path  # folder of high-resolution images
    out: Path  # folder in which GTmod<scale>, LRbicx<scale>, ... are made
    scales: tuple[int, ...] = (2, 3, 4)
    degradations: tuple[str, ...] = ('bic',)  # keys of DEGRADATIONS
    sub_size: int | None = None  # side of the sub-images in GT pixels; None for none
    sub_step: int | None = None  # distance of neighbouring sub-images in GT pixels
    lmdb: bool = False  # of the sub-images where there are any, otherwise of the whole images

    def folder(self, kind: str, scale: int) -> Path:
        """The folder of the whole images of one kind, ``'GT'`` or a degradation."""
        return self.out / (f'GTmod{scale}' if kind == 'GT' else f'LR{kind}x{scale}')

    def kinds(self) -> Iterator[tuple[str, int]]:
        """All pairs of a kind and a scale."""
        return ((kind, scale) for scale in self.scales for kind in ('GT', *self.degradations))

    def folders(self) -> list[Path]:
        """The folders of PNG files that this job fills."""
        whole = [self.folder(*kind) for kind in self.kinds()]
        return whole + ([_sub(folder) for folder in whole] if self.sub_size else [])

    def databases(self) -> list[Path]:
        """The LMDB folders that this job makes."""
        folders = [self.folder(*kind) for kind in self.kinds()] if self.lmdb else []
        return [(_sub(folder) if self.sub_size else folder).with_suffix('.lmdb') for folder in folders]


class Target(NamedTuple):
    """One file to write: a window of the image of one kind and scale."""
    path: Path
    top: int
    left: int
    height: int
    width: int


def _sub(folder: Path) -> Path:
    return folder.with_name(f'{folder.name}_sub')


def _targets(job: Job, name: str, record: dict, kind: str, scale: int) -> Iterator[Target]:
    stem, folder = Path(name).stem, job.folder(kind, scale)
    height, width = (side - side % scale for side in (record['height'], record['width']))
    shrink = 1 if kind == 'GT' else scale
    yield Target(folder / f'{stem}.png', 0, 0, height // shrink, width // shrink)
    if job.sub_size and job.sub_step:
        side = job.sub_size // shrink
        for index, corner in enumerate(sub_image_corners(height, width, job.sub_size, job.sub_step), 1):
            top, left = (position // shrink for position in corner)
            yield Target(_sub(folder) / f'{stem}_s{index:03d}.png', top, left, side, side)


def _missing(job: Job, name: str, record: dict, kind: str, scale: int) -> list[Target]:
    def exists(path):  # a file system that lost its power may keep the name and lose the bytes
        return path.is_file() and path.stat().st_size > 0
    return [target for target in _targets(job, name, record, kind, scale) if not exists(target.path)]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- what runs in the worker processes ---------------------------------------------------------------------------

def _inspect(path: Path) -> dict | str:
    """What has to be known of a source image, or why it is refused."""
    if is_stream(path):
        return f'{path.name}: is a pipe or a device, no image; move it away'
    try:
        data = path.read_bytes()
        img, notes = decode_rgb(data)
    except ImageError as error:
        return f'{path.name}: {error}'
    except OSError as error:
        return f'{path.name}: cannot be opened ({error.strerror})'
    return {'sha256': _digest(data), 'height': img.shape[0], 'width': img.shape[1], 'notes': notes}


def _prepare_image(job: Job, name: str, record: dict) -> None:
    data = (job.source / name).read_bytes()
    if _digest(data) != record['sha256']:
        raise PreparationError([f'{name}: changed while it was being prepared; run again with a new --out'])
    whole, _ = decode_rgb(data)
    for kind, scale in job.kinds():
        if missing := _missing(job, name, record, kind, scale):
            img = mod_crop(whole, scale)
            if kind != 'GT':
                img = DEGRADATIONS[kind](img, scale)
            for path, top, left, height, width in missing:
                write_atomically(path, encode_png(img[top:top + height, left:left + width], PNG_LEVEL))


def _score_bicubic(gt_path: Path, lq_path: Path, scale: int) -> tuple[float, float]:
    gt, lq = cv2.imread(str(gt_path)), cv2.imread(str(lq_path))
    if gt is None or lq is None:
        raise PreparationError([f'{gt_path if gt is None else lq_path}: cannot be read back; delete it and run again'])
    options = {'crop_border': scale, 'test_y_channel': True}
    sr = resize_bicubic(lq, scale)
    return calculate_psnr(sr, gt, **options), calculate_ssim(sr, gt, **options)


# --- what is checked before anything is written ------------------------------------------------------------------

def _read_manifest(job: Job) -> dict | None:
    path = job.out / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding='utf-8'))
        if {key: manifest[key] for key in MADE_BY} == MADE_BY and _is_whole(manifest):
            return manifest
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise PreparationError([f'{path}: is not a record that this version of udl prepare wrote; choose another --out'])


def _is_whole(manifest: dict) -> bool:
    """Whether it says all that is asked of it; KeyError, TypeError or AttributeError of one that does not."""
    def are(values: list, kind: type) -> bool:
        return isinstance(values, list) and all(isinstance(value, kind) for value in values)

    sub = manifest['sub_images']
    return are(manifest['folders'], str) and (sub is None or (are(sub, int) and len(sub) == 2)) and all(
        are([image['sha256'], *image['notes']], str) and are([image['height'], image['width']], int)
        for image in manifest['images'].values())


def _list_source(job: Job) -> tuple[list[str], list[str]]:
    """Names of the images in the source folder, and what is wrong with the folder or with their names."""
    if not job.source.is_dir():
        found = 'is no folder' if job.source.exists() else 'no such folder'
        raise PreparationError([f'{job.source}: {found}; give the folder that holds the HR images'])
    entries = [path for path in sorted(job.source.iterdir()) if not path.name.startswith('.') and not path.is_dir()]
    names = [path.name for path in entries if path.suffix.lower() in SUFFIXES]
    problems = [f'{path.name}: {path.suffix} files are not read; convert it to PNG or move it away'
                for path in entries if path.suffix.lower() in OTHER_IMAGE_SUFFIXES]
    if not names and not problems:
        raise PreparationError([f'{job.source}: holds no images ({", ".join(SUFFIXES)}); sub-folders are not searched'])
    stems = {}
    for name in names:
        stems.setdefault(Path(name).stem.casefold(), []).append(name)
    problems += [f'{", ".join(group)}: would all be written as one PNG; rename all but one'
                 for group in stems.values() if len(group) > 1]
    if job.lmdb:  # BasicSR encodes keys as ASCII and ends them at the first dot
        problems += [f"{name}: BasicSR's LMDB needs ASCII names without a further dot; rename it"
                     for name in names if not name.isascii() or '.' in Path(name).stem]
    return names, problems


def _size_problems(job: Job, name: str, record: dict) -> Iterator[str]:
    height, width = record['height'], record['width']
    need = MIN_LQ_SIDE * max(job.scales)
    if min(height, width) < need:
        yield f'{name}: is {width}x{height}, x{max(job.scales)} needs at least {need}x{need}; remove it'
    elif job.sub_size and min(height, width) < job.sub_size:
        yield f'{name}: is {width}x{height} and gives no sub-image of {job.sub_size}; choose smaller --sub_images'


def _place_problems(job: Job, manifest: dict | None, records: dict) -> Iterator[str]:
    source, out = job.source.resolve(), job.out.resolve()
    if out == source or source in out.parents:
        where = 'is' if out == source else 'lies inside'
        yield f'{job.out}: {where} the folder of HR images {job.source}; choose an --out outside it'
    ours = {out / name for name in (manifest or {}).get('folders', [])}
    planned = [out / path.name for path in job.folders() + job.databases()]
    if source in {*ours, *planned}:
        yield f'{job.source}: is a folder that udl prepare writes; give the folder of the original HR images'
    if (not out.exists() or out.is_dir()) and (why := why_not_into(out)):
        yield f'{job.out}: {why}; choose another --out'
    for path in (out, *planned):
        if path.exists() and not path.is_dir():
            yield f'{path}: is a file where a folder is to be made; choose another --out'
        elif path not in (out, *ours) and path.is_dir() and any(path.iterdir()):
            yield f'{path}: exists and was not made by udl prepare; move it away or choose another --out'
    if not manifest:
        return
    old, sub = manifest['images'], [job.sub_size, job.sub_step]
    changes = [f'{word} {some(names, 5)}' for word, names in (
        ('changed', [n for n in records if n in old and old[n]['sha256'] != records[n]['sha256']]),
        ('new', [n for n in records if n not in old]), ('gone', [n for n in old if n not in records])) if names]
    if changes:
        yield (f'{out}: was prepared from other images ({"; ".join(changes)}); restore them, choose another --out, or '
               'delete this folder to make it anew')
    if job.sub_size and manifest['sub_images'] not in (None, sub):
        yield (f'{out}: holds sub-images of {manifest["sub_images"][0]} with step {manifest["sub_images"][1]}, asked '
               f'for are {sub[0]} and {sub[1]}; choose another --out')


# --- the work ----------------------------------------------------------------------------------------------------

def prepare(job: Job, workers: Workers) -> dict[str, dict]:
    """Checks everything, then writes what is missing.

    Args:
        job: What to prepare.
        workers: Where to compute.

    Returns:
        For each source file its ``sha256``, ``height``, ``width`` and the ``notes`` on how it was converted.

    Raises:
        PreparationError: With every offending file, or another process is at it; nothing has been written then.
        OSError: If a file cannot be written.
        BrokenProcessPool: If a worker process is killed.
    """
    names, problems = _list_source(job)
    before = manifest = _read_manifest(job)
    known = manifest['images'] if manifest else {}
    # Images that were checked before and have not changed need not be decoded again, only read.
    fresh = [name for name in names if name not in known or is_stream(job.source / name)
             or _digest((job.source / name).read_bytes()) != known[name]['sha256']]
    found = dict(zip(fresh, workers.map(_inspect, [(job.source / name,) for name in fresh], 'checking'), strict=True))
    problems += [problem for problem in found.values() if isinstance(problem, str)]
    records = {name: record for name in names if not isinstance(record := found.get(name) or known[name], str)}
    problems += [problem for name, record in records.items() for problem in _size_problems(job, name, record)]
    # Images that are refused are reported as such, not as gone.
    refused = {name: known[name] for name in names if name in known and name not in records}
    problems += _place_problems(job, manifest, {**records, **refused})
    if problems:
        raise PreparationError(problems)

    planned = [path.name for path in job.folders() + job.databases()]
    manifest = manifest or {'folders': [], 'sub_images': None}
    folders = sorted({*manifest['folders'], *planned})
    sub_images = [job.sub_size, job.sub_step] if job.sub_size else manifest['sub_images']
    manifest = {**MADE_BY, 'sub_images': sub_images, 'folders': folders, 'images': records}
    try:
        with locked(job.out):
            if _read_manifest(job) != before:
                raise PreparationError([f'{job.out}: another process has prepared images there meanwhile; run again'])
            # The record comes first: whatever bears a name from it is ours, even if the run is killed at once.
            write_atomically(job.out / MANIFEST, json.dumps(manifest, indent=1).encode())
            _write_missing(job, records, workers)
    except HeldError as holder:
        raise PreparationError([f'{job.out}: is being prepared by {holder}; wait for it, or choose another --out'
                                ]) from None
    return records


def _write_missing(job: Job, records: dict[str, dict], workers: Workers) -> None:
    for folder in job.folders():
        folder.mkdir(exist_ok=True)
    _remove_leftovers(job)
    tasks = [(job, name, record) for name, record in records.items()
             if any(_missing(job, name, record, kind, scale) for kind, scale in job.kinds())]
    try:
        workers.map(_prepare_image, tasks, 'preparing')
        for database in job.databases():
            if not database.exists():
                _make_database(job, database, records)
    finally:
        _remove_leftovers(job)


def _remove_leftovers(job: Job) -> None:
    for folder in (job.out, *job.folders()):
        for path in folder.iterdir():
            if re.fullmatch(r'\.[\da-f]{16}\.part', path.name):
                path.unlink(missing_ok=True)
    for database in job.databases():
        shutil.rmtree(_partial(database), ignore_errors=True)


def _partial(database: Path) -> Path:
    return database.with_name(f'.partial-{database.name}')  # BasicSR's LmdbMaker insists on the suffix


def _make_database(job: Job, database: Path, records: dict) -> None:
    folder = database.with_suffix('')
    targets = sorted(target for name, record in records.items() for kind in job.kinds()
                     for target in _targets(job, name, record, *kind) if target.path.parent == folder)
    # LMDB rounds each value up to whole pages; BasicSR's own guess, from the first image alone, can be too small.
    map_size = sum(target.path.stat().st_size + 8192 for target in targets) * 2 + 2**20
    maker = LmdbMaker(str(_partial(database)), map_size=map_size, batch=256, compress_level=PNG_LEVEL)
    for path, _, _, height, width in tqdm(targets, desc=database.name, unit='image', dynamic_ncols=True,
                                              disable=None):
        maker.put(path.read_bytes(), path.stem, (height, width, 3))
    maker.close()
    _partial(database).rename(database)


def bicubic_scores(job: Job, names: list[str], workers: Workers) -> dict[tuple[str, int], tuple[float, float]]:
    """PSNR and SSIM of plain bicubic upsampling of the prepared files, read back from the disk.

    Args:
        job: What was prepared.
        names: The source files' names.
        workers: Where to compute.

    Returns:
        For each degradation and scale the mean PSNR in dB and the mean SSIM over the images: Y channel, a border of
        ``scale`` pixels cropped, the upsampled image rounded to 8 bits, by BasicSR's metrics.
    """
    keys = [(kind, scale) for kind, scale in job.kinds() if kind != 'GT']
    files = [f'{Path(name).stem}.png' for name in names]
    tasks = [(job.folder('GT', scale) / file, job.folder(kind, scale) / file, scale)
             for kind, scale in keys for file in files]
    scores = workers.map(_score_bicubic, tasks, 'bicubic')
    means = {}
    for index, key in enumerate(keys):
        psnr, ssim = zip(*scores[index * len(files):(index + 1) * len(files)], strict=True)
        means[key] = sum(psnr) / len(files), sum(ssim) / len(files)
    return means
