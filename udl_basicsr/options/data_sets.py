"""Checks of the images themselves: they are there, they pair up, they can be read, and their sizes fit the scale.

The rules are those of BasicSR's PairedImageDataset (basicsr/data/data_util.py); of other classes the first sample is
asked for, since how they read is their own affair. Image headers are read, and pixels with ``deep``.
"""
import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import path as osp
from pathlib import Path
from typing import BinaryIO

from basicsr.data.paired_image_dataset import PairedImageDataset
from tqdm import tqdm

from udl_basicsr.data.images import SUFFIXES, ImageError, decode_rgb, decode_with_opencv, read_header, same_names
from udl_basicsr.data.in_memory import processes_here, why_too_large
from udl_basicsr.data.uncertainty_cache import AUTO, why_no_folder
from udl_basicsr.metrics import calculate_lpips
from udl_basicsr.utils.settings import LoaderSettings

from .keys import Findings, block_of, lookup
from .pairs import PREPARE, Pair, Size, file_pairs, lmdb_pairs, names_outside, some_of, why_outside
from .signatures import parameters
from .trials import SAME_NAMES, try_dataset, try_metric

_THREADS = 8  # what waits for a disk, or a network, waits for several files at once
_PORTION = 256  # files that a thread takes at a time
_PATIENCE = 3  # seconds without a bar: headers take moments, but on a slow disk minutes
_MOST_SAMPLES = 5 * 10**7  # of an epoch, whose order is kept in memory
_LARGEST_TRIAL = 512  # side of the image that metrics are tried on, where the smallest image is larger
_WITH_IMAGES = ('UDLModel', 'TLWModel', 'SRModel')  # which take images, not frames


class Images:
    """Sizes of images by path, each looked at once though several data sets and stages have it.

    Args:
        deep: Decode every image.
        quiet: Without the bar that a terminal shows of what takes longer than moments: one process shows it.
    """

    def __init__(self, deep: bool = False, quiet: bool = False) -> None:
        self.deep, self.quiet = deep, quiet
        self.known: dict[str, Size | str] = {}

    def look(self, names: Iterable[str], opened: Callable[[str], contextlib.AbstractContextManager[BinaryIO]],
             what: str) -> None:
        """Fills ``known`` with the size of each image, or with why it cannot be used."""
        names = [name for name in dict.fromkeys(names) if name not in self.known]
        if not names:
            return

        def look_at(some: Sequence[str]) -> list[Size | str]:
            return [self._look_at(name, opened) for name in some]

        portion = 8 if self.deep else _PORTION
        portions = [names[i:i + portion] for i in range(0, len(names), portion)]
        with ThreadPoolExecutor(_THREADS) as threads, \
                tqdm(total=len(names), desc=what, unit='image', disable=self.quiet or None, dynamic_ncols=True,
                     delay=0 if self.deep else _PATIENCE) as bar:
            for some, found in zip(portions, threads.map(look_at, portions), strict=True):
                self.known.update(zip(some, found, strict=True))
                bar.update(len(some))

    def _look_at(self, name: str, opened: Callable) -> Size | str:
        try:
            with opened(name) as file:
                size = read_header(file)
                if self.deep:
                    file.seek(0)
                    if (decoded := _decode(name, file.read())) != size:
                        raise ImageError(f'is damaged, its header says {size[0]}x{size[1]} and its pixels are '
                                         f'{decoded[0]}x{decoded[1]}: fetch it again or remove it')
                return size
        except ImageError as error:
            return str(error)
        except OSError as error:
            return f'cannot be opened ({error.strerror})'


def _decode(name: str, data: bytes) -> Size:
    """Twice where that is possible: OpenCV is what will read it, and Pillow notices more of what is broken."""
    if name.lower().endswith(SUFFIXES) or data[:4] == b'\x89PNG':
        decode_rgb(data)
    pixels = decode_with_opencv(data)
    if pixels is None:
        raise ImageError('cannot be decoded: fetch it again or remove it')
    return pixels.shape[1], pixels.shape[0]


def where(path: str, root_path: str) -> str:
    """The absolute path that was looked for, with a hint where it lies beside ``root_path`` or further up instead."""
    path = osp.expanduser(path)
    absolute = osp.abspath(path)
    if not osp.isabs(path) and not osp.exists(absolute):
        for folder in (osp.abspath(root_path), *Path.cwd().parents):
            if osp.exists(osp.join(folder, path)):
                return f'{absolute} (it is in {folder}: run from there)'
    return absolute


def check_data(opt: dict, root_path: str, report: Findings, images: Images) -> None:
    """Checks every data set of the runtime options whose keys are in order."""
    for key, dataset in opt['datasets'].items():
        at = f'datasets.{key}'
        # what is unset or of a wrong type has been reported; a second complaint would only hide it
        if not report.has(at):
            _check_dataset(dataset, at, opt, root_path, report, images)


def _check_dataset(dataset: dict, at: str, opt: dict, root_path: str, report: Findings, images: Images) -> None:
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
            found = f'is no {kind}' if osp.exists(osp.expanduser(path)) else f'no such {kind}'
            report.add(f'{at}.{key}', f'{found}: {where(path, root_path)}; {PREPARE}{drop}')
        elif outside := key.startswith('meta') and names_outside(osp.expanduser(path)):
            report.add(f'{at}.{key}', outside)
    cache = dataset.get('uncertainty_cache')
    if isinstance(cache, str) and cache != AUTO and (problem := why_no_folder(cache)):
        report.add(f'{at}.uncertainty_cache', problem)
    template = dataset.get('filename_tmpl')
    if isinstance(template, str) and (problem := why_outside(template)):
        report.add(f'{at}.filename_tmpl', f'{template!r} {problem}')
    if report.has(at) or cls is None:
        return
    paired = issubclass(cls, PairedImageDataset)
    if paired:
        _check_pairs(dataset, at, opt, report, images)
    if not report.has(at) and not (paired and dataset['io_backend']['type'] == 'disk'):
        wanted = ('lq', 'gt') if train else ('lq', )
        if opt['model_type'] in _WITH_IMAGES and (problem := try_dataset(cls, dataset, wanted)):
            report.add(f'{at}.type', problem)


def _check_pairs(dataset: dict, at: str, opt: dict, report: Findings, images: Images) -> None:
    keys = ('dataroot_gt', 'dataroot_lq')
    for key in keys:
        if not isinstance(dataset.get(key), str):
            report.add(f'{at}.{key}', f'expected a folder, got null; {dataset["type"]} needs it')
    if report.has(at):
        return
    gt_root, lq_root = (dataset[key] for key in keys)
    if dataset['io_backend']['type'] == 'disk':
        for key in keys:
            if dataset[key].endswith('.lmdb'):
                report.add(f'{at}.io_backend.type', f'disk, but {key} is an LMDB: {dataset[key]}; use lmdb')
                return
    with contextlib.ExitStack() as stack:
        if dataset['io_backend']['type'] == 'lmdb':
            pairs, opened = lmdb_pairs(gt_root, lq_root, at, report, stack)
        else:
            pairs, opened = file_pairs(dataset, gt_root, lq_root, at, report), _open_file
        if not pairs:
            if not report.has(at):
                report.add(at, f'no images in {osp.abspath(gt_root)}; {PREPARE}')
            return
        if dataset['phase'] == 'train' and not report.has('num_gpu'):
            _check_batch(len(pairs), dataset, at, opt, report)
        if dataset['phase'] != 'train' and (same := same_names(pair.lq for pair in pairs)):
            report.add(at, f'{SAME_NAMES}: {some_of(same, "; ")}')
        images.look((name for pair in pairs for name in pair), opened, f'{at} ({dataset["name"]})')
    sizes = _readable(pairs, at, report, images)
    scale = opt.get('scale')
    if sizes and isinstance(scale, int) and not report.has('scale'):
        _check_sizes(sizes, scale, dataset, at, report)
        if dataset.get('in_memory') and (problem := why_too_large(
                (size for both in sizes.values() for size in both), processes_here(opt['world_size']))):
            report.add(f'{at}.in_memory', problem)
        if dataset['phase'] != 'train' and not report.has(at):
            _check_metrics(sizes, scale, opt, at, report)


def _open_file(path: str) -> BinaryIO:
    return open(path, 'rb')


def _check_batch(images: int, dataset: dict, at: str, opt: dict, report: Findings) -> None:
    """BasicSR drops an incomplete batch: with less than one, it would train nothing and report success.

    A batch is that of all processes together, as TrainBatches (data/loader.py) takes it.
    """
    world, ratio = opt['world_size'], LoaderSettings.of(dataset).dataset_enlarge_ratio
    factor = 1 if opt['dist'] else max(opt['num_gpu'], 1)
    batch = dataset['batch_size_per_gpu'] * factor
    samples = math.ceil(images * ratio)
    if images * ratio > _MOST_SAMPLES:
        report.add(f'{at}.dataset_enlarge_ratio', f'{images} images x {ratio} are more than {_MOST_SAMPLES} samples an '
                   'epoch; lower it')
    elif samples < batch * world:
        shared = f' for each of {world} processes' if world > 1 else ''
        gpus = f' ({factor} GPUs)' if factor > 1 else ''
        enough = math.ceil(batch * world / images)
        report.add(f'{at}.batch_size_per_gpu',
                   f'{images} images x dataset_enlarge_ratio {ratio} are {samples} samples an epoch, fewer than one '
                   f'batch of {batch}{gpus}{shared}; set dataset_enlarge_ratio to {enough} or more, or lower '
                   'batch_size_per_gpu')


def _readable(pairs: list[Pair], at: str, report: Findings, images: Images) -> dict[Pair, tuple[Size, Size]]:
    """The sizes of the pairs of which both images can be read; the others are reported."""
    broken = [f'{name}: {why}' for pair in pairs for name in pair if isinstance(why := images.known[name], str)]
    if broken:
        report.add(at, f'{len(broken)} of {2 * len(pairs)} images cannot be used: {some_of(broken, "; ")}')
    return {pair: (gt, lq) for pair in pairs if not isinstance(gt := images.known[pair.gt], str)
            and not isinstance(lq := images.known[pair.lq], str)}


def _check_sizes(sizes: dict[Pair, tuple[Size, Size]], scale: int, dataset: dict, at: str, report: Findings) -> None:
    train, patch = dataset['phase'] == 'train', dataset.get('gt_size')
    # training wants exact sizes; validation crops what is left over, but no more than that is ever left over
    wrong = [f'{osp.basename(pair.gt)} GT {gt[0]}x{gt[1]}, LQ {lq[0]}x{lq[1]}' for pair, (gt, lq) in sizes.items()
             if any(g != q * scale if train else not q * scale <= g < (q + 1) * scale
                    for g, q in zip(gt, lq, strict=True))]
    if wrong:
        report.add(at, f'in {len(wrong)} of {len(sizes)} pairs, GT is not {scale} times LQ, as scale: {scale} says: '
                   f'{some_of(wrong, "; ")}; is it the right folder?')
    if not train or not isinstance(patch, int):
        return
    if patch % scale:
        report.add(f'{at}.gt_size', f'{patch} is no multiple of scale: {scale}; use {max(patch // scale, 1) * scale}')
        return
    small = {pair: min(lq) for pair, (_, lq) in sizes.items() if min(lq) < patch // scale}
    if small:
        pair = min(small, key=small.__getitem__)
        others = f'; {len(small)} images are too small: {some_of([osp.basename(p.lq) for p in small])}'
        report.add(f'{at}.gt_size', f'{patch} makes LQ patches of {patch // scale}, larger than '
                   f'{osp.basename(pair.lq)}, whose short side is {small[pair]}; use {small[pair] * scale} or less, or '
                   f'remove the image{others if len(small) > 1 else ""}')


def _check_metrics(sizes: dict[Pair, tuple[Size, Size]], scale: int, opt: dict, at: str, report: Findings) -> None:
    """That every metric gives a number for the smallest image that it will see."""
    pair, (_, lq) = min(sizes.items(), key=lambda item: min(item[1][1]))
    for name, block in block_of(block_of(opt, 'val'), 'metrics').items():
        target = lookup('metric', block.get('type')) if isinstance(block, dict) else None
        if target in (None, calculate_lpips) or report.has(f'val.metrics.{name}'):
            continue
        arguments = {k: v for k, v in block.items() if k not in ('type', 'better')}
        border = arguments.get('crop_border')
        most = _LARGEST_TRIAL + 2 * (border if isinstance(border, int) else 0)
        width, height = (min(side * scale, most) for side in lq)
        if problem := try_metric(target, arguments, height, width, 'log_scale' in parameters(target)[0]):
            report.add(f'val.metrics.{name}', f'{problem}, as {osp.basename(pair.gt)} of {at} is')
