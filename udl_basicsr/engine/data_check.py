"""Checks of the images themselves: they are there, they pair up, and their sizes fit the scale.

The rules are those of BasicSR's PairedImageDataset (basicsr/data/data_util.py); for other classes only the folders are
looked for, since how they read them is their own affair. Image headers are read, never pixels.
"""
import math
import os
import re
from collections.abc import Sequence
from os import path as osp

from basicsr.data.paired_image_dataset import PairedImageDataset
from PIL import Image

from udl_basicsr.data.uncertainty_cache import AUTO, why_no_folder

from .checks import Report, lookup

MAX_PAIRS = 2000
"""Up to so many pairs are all looked at; of more, a sample."""
SAMPLE = 500
_SHOWN = 3
_LMDB_LINE = re.compile(r'^(?P<name>.+?) \((?P<height>\d+),\s*(?P<width>\d+),\s*\d+\)')
_PREPARE = 'prepare it with python scripts/prepare_data.py, or correct the path'

Pair = tuple[str, str]
Size = tuple[int, int]


def where(path: str, root_path: str) -> str:
    """The absolute path that was looked for, with a hint where it lies beside ``root_path`` instead."""
    path = osp.expanduser(path)
    absolute = osp.abspath(path)
    if not osp.isabs(path) and not osp.exists(absolute) and osp.exists(osp.join(root_path, path)):
        return f'{absolute} (it is in {osp.abspath(root_path)}: run from there)'
    return absolute


def check_data(opt: dict, root_path: str, report: Report) -> None:
    """Checks every data set of the runtime options whose keys are in order."""
    for key, dataset in opt['datasets'].items():
        at = f'datasets.{key}'
        # what is unset or of a wrong type has been reported; a second complaint would only hide it
        if not report.has(at):
            _check_dataset(dataset, at, opt, root_path, report)


def _check_dataset(dataset: dict, at: str, opt: dict, root_path: str, report: Report) -> None:
    cls = lookup('data set', dataset.get('type'))
    train = dataset['phase'] == 'train'
    drop = '' if train else f'; to do without this set: --force_yml {at.replace(".", ":")}=~'
    for key in ('dataroot_gt', 'dataroot_lq', 'meta_info_file', 'meta_info'):
        path = dataset.get(key)
        if not isinstance(path, str):
            continue
        wanted = osp.isdir if key.startswith('dataroot') else osp.isfile
        if not wanted(osp.expanduser(path)):
            kind = 'folder' if key.startswith('dataroot') else 'file'
            report.add(f'{at}.{key}', f'no such {kind}: {where(path, root_path)}; {_PREPARE}{drop}')
    cache = dataset.get('uncertainty_cache')
    if isinstance(cache, str) and cache != AUTO and (problem := why_no_folder(cache)):
        report.add(f'{at}.uncertainty_cache', problem)
    if report.has(at) or cls is None or not issubclass(cls, PairedImageDataset):
        return
    roots = [dataset.get('dataroot_gt'), dataset.get('dataroot_lq')]
    for key, root in zip(('dataroot_gt', 'dataroot_lq'), roots, strict=True):
        if not isinstance(root, str):
            report.add(f'{at}.{key}', f'expected a folder, got null; {cls.__name__} needs it')
    if report.has(at):
        return
    gt_root, lq_root = roots
    lmdb = (dataset.get('io_backend') or {}).get('type') == 'lmdb'
    if lmdb:
        pairs, sizes = _lmdb_pairs(gt_root, lq_root, at, report)
    else:
        pairs, sizes = _file_pairs(dataset, gt_root, lq_root, at, report), {}
    if report.has(at):
        return
    if not pairs:
        report.add(at, f'no images in {osp.abspath(gt_root)}; {_PREPARE}')
        return
    if train and not report.has('num_gpu'):
        _check_batch(len(pairs), dataset, at, opt, report)
    scale = opt.get('scale')
    if isinstance(scale, int) and not report.has('scale'):
        _check_sizes(pairs, sizes, scale, dataset, at, report)


# ------------------------------------------------------------------------------------------------------------ pairing
def _some(names: Sequence[str]) -> str:
    names = list(names)
    return ', '.join(names[:_SHOWN]) + (f', ... ({len(names)} in all)' if len(names) > _SHOWN else '')


def _listing(folder: str) -> set[str]:
    return {e.name for e in os.scandir(folder) if e.is_file() and not e.name.startswith('.')}


def _file_pairs(dataset: dict, gt_root: str, lq_root: str, at: str, report: Report) -> list[Pair]:
    template, meta = dataset.get('filename_tmpl', '{}'), dataset.get('meta_info_file')
    gt_there, lq_there = _listing(gt_root), _listing(lq_root)
    names = sorted(gt_there)
    if meta is not None:
        try:
            with open(meta, encoding='utf-8') as file:
                names = [line.strip().split(' ')[0] for line in file]
        except (OSError, UnicodeDecodeError) as error:
            report.add(f'{at}.meta_info_file', f'cannot be read: {error}')
            return []
        if '' in names:
            report.add(f'{at}.meta_info_file', f'line {names.index("") + 1} is empty; remove it')
            return []
        absent = [n for n in names if n not in gt_there and not osp.isfile(osp.join(gt_root, n))]
        if absent:
            report.add(f'{at}.meta_info_file', f'names images that are not in {osp.abspath(gt_root)}: {_some(absent)}')
            return []
    partner = {}
    for name in names:
        stem, extension = osp.splitext(osp.basename(name))
        partner[name] = f'{template.format(stem)}{extension}'
    alone = [f'{partner[n]} for {n}' for n in names if partner[n] not in lq_there]
    if alone:
        report.add(f'{at}.dataroot_lq', f'no partner in {osp.abspath(lq_root)}: {_some(alone)}; names must be equal, '
                   'or follow filename_tmpl')
    elif meta is None and (extra := sorted(lq_there - set(partner.values()))):
        report.add(f'{at}.dataroot_lq', f'images without a partner in {osp.abspath(gt_root)}: {_some(extra)}')
    return [(osp.join(gt_root, n), osp.join(lq_root, partner[n])) for n in names]


def _lmdb_pairs(gt_root: str, lq_root: str, at: str, report: Report) -> tuple[list[Pair], dict[str, Size]]:
    """Pairs of an LMDB by its meta_info.txt, which holds the sizes too."""
    sizes: dict[str, Size] = {}
    keys = []
    for key, root in (('dataroot_gt', gt_root), ('dataroot_lq', lq_root)):
        if not root.endswith('.lmdb'):
            report.add(f'{at}.{key}', f'io_backend lmdb expects a folder whose name ends in .lmdb, got {root}')
            continue
        try:
            with open(osp.join(root, 'meta_info.txt'), encoding='utf-8') as file:
                lines = file.read().splitlines()
        except (OSError, UnicodeDecodeError):
            report.add(f'{at}.{key}', f'cannot read {osp.abspath(osp.join(root, "meta_info.txt"))}; {_PREPARE}')
            continue
        keys.append({line.split('.')[0] for line in lines})
        for line in lines:
            if match := _LMDB_LINE.match(line):
                sizes[osp.join(root, line.split('.')[0])] = int(match['width']), int(match['height'])
    if report.has(at):
        return [], {}
    if keys[0] != keys[1]:
        report.add(f'{at}.dataroot_lq', f'its images are not those of dataroot_gt: {_some(sorted(keys[0] ^ keys[1]))}')
    return [(osp.join(gt_root, k), osp.join(lq_root, k)) for k in sorted(keys[0])], sizes


# -------------------------------------------------------------------------------------------------- numbers and sizes
def _check_batch(images: int, dataset: dict, at: str, opt: dict, report: Report) -> None:
    """BasicSR drops an incomplete batch: with less than one, it would train nothing and report success."""
    world, ratio = opt['world_size'], dataset.get('dataset_enlarge_ratio', 1)
    factor = 1 if opt['dist'] else max(opt['num_gpu'], 1)
    batch = dataset['batch_size_per_gpu'] * factor
    samples = math.ceil(images * ratio / world)
    if samples < batch:
        shared = f' shared by {world} processes' if world > 1 else ''
        gpus = f' ({factor} GPUs)' if factor > 1 else ''
        report.add(f'{at}.batch_size_per_gpu',
                   f'{images} images x dataset_enlarge_ratio {ratio}{shared} are {samples} samples an epoch, fewer '
                   f'than one batch of {batch}{gpus}; set dataset_enlarge_ratio to {math.ceil(batch * world / images)} '
                   'or more, or lower batch_size_per_gpu')


def _size(path: str, sizes: dict[str, Size]) -> Size:
    if path in sizes:
        return sizes[path]
    with Image.open(path) as image:
        if image.format == 'PNG' and not _ends_with(path, b'IEND\xaeB`\x82'):
            # OpenCV, which the data sets read with, would hand out the part that is there and say nothing
            raise ValueError(f'{path}: is cut off')
        return image.size


def _ends_with(path: str, ending: bytes) -> bool:
    with open(path, 'rb') as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(file.tell() - len(ending), 0))
        return file.read() == ending


def _check_sizes(pairs: list[Pair], sizes: dict[str, Size], scale: int, dataset: dict, at: str, report: Report) -> None:
    train, patch = dataset['phase'] == 'train', dataset.get('gt_size')
    checked = pairs
    if len(pairs) > MAX_PAIRS:
        checked = [pairs[i * (len(pairs) - 1) // (SAMPLE - 1)] for i in range(SAMPLE)]
    wrong, unreadable, smallest = [], [], None
    for gt_path, lq_path in checked:
        try:
            gt, lq = _size(gt_path, sizes), _size(lq_path, sizes)
        except Exception as error:  # PIL raises many kinds for a broken file
            unreadable.append(f'{gt_path}: {error}' if 'No such' in str(error) else f'{error}')
            continue
        # training wants exact sizes; validation crops what is left over, but no more than that is ever left over
        if any(g != q * scale if train else not q * scale <= g < (q + 1) * scale for g, q in zip(gt, lq, strict=True)):
            wrong.append(f'{osp.basename(gt_path)} GT {gt[0]}x{gt[1]}, LQ {lq[0]}x{lq[1]}')
        if smallest is None or min(lq) < smallest[0]:
            smallest = min(lq), osp.basename(lq_path)
    of = f'{len(checked)} pairs' if checked is pairs else f'{len(checked)} sampled pairs (of {len(pairs)})'
    if unreadable:
        report.add(at, f'{len(unreadable)} of {of} cannot be read as images: {_some(unreadable)}')
    if wrong:
        report.add(at, f'in {len(wrong)} of {of}, GT is not {scale} times LQ, as scale: {scale} says: {_some(wrong)}; '
                   'is it the right folder?')
    if not train or not isinstance(patch, int):
        return
    if patch % scale:
        report.add(f'{at}.gt_size', f'{patch} is no multiple of scale: {scale}; use {max(patch // scale, 1) * scale}')
    elif smallest and patch // scale > smallest[0]:
        report.add(f'{at}.gt_size', f'{patch} makes LQ patches of {patch // scale}, larger than {smallest[1]}, whose '
                   f'short side is {smallest[0]}; use {smallest[0] * scale} or less, or remove the image')
