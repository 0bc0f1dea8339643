"""``datasets.train.in_memory: true``: the training images are decoded once and held, 8 bits a value.

Decoding is nearly all that a sample from the disk costs. The images are read before loader processes are started, which
share them, whatever the start method; several processes of torchrun hold a copy each.
"""
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.transforms import augment, paired_random_crop
from basicsr.utils import FileClient, bgr2ycbcr, get_root_logger, imfrombytes, img2tensor
from torchvision.transforms.functional import normalize
from tqdm import tqdm

from udl_basicsr.utils.background import spare_threads
from udl_basicsr.utils.errors import UdlError

from .shared_images import SharedImages

KEY = 'datasets.train.in_memory'
_CHANNELS = 3  # gray images are read as colour, as BasicSR does


class NoRoomError(UdlError, RuntimeError):
    """The images cannot be held, though it seemed so when the options were checked; the message says what to do."""


class PairsInMemory(PairedImageDataset):
    """BasicSR's PairedImageDataset, from memory once :meth:`load` has been called: the same samples, bit for bit.

    Random numbers are drawn by the same functions in the same order, and the crop is made before the values become
    floats, not after.

    Args:
        opt (dict): Of PairedImageDataset.
    """
    opt: dict[str, Any]

    def __init__(self, opt: dict):
        super().__init__(opt)
        self._backend = dict(self.io_backend_opt)  # the base class takes its own apart
        self._images: SharedImages | None = None
        self._pairs: list[tuple[int, int] | None] = []  # the numbers of GT and LQ

    def load(self, processes: int = 1, progress: bool = True) -> None:
        """Decodes every pair. One that cannot be is left to the disk: when its turn comes, that says what is wrong.

        Args:
            processes (int): That do so on this machine at the same time.
            progress (bool): Whether to show a bar on stderr.

        Raises:
            NoRoomError: The system has no room for the images.
        """
        options = dict(self._backend)
        client = FileClient(options.pop('type'), **options)

        images = SharedImages(KEY)

        def hold(paths: dict) -> tuple[int, int] | None:
            try:
                gt, lq = (imfrombytes(client.get(paths[f'{key}_path'], key)) for key in ('gt', 'lq'))
            except Exception:  # OpenCV and the backends raise almost anything for a broken image
                return None
            return None if gt is None or lq is None else (images.add(gt), images.add(lq))

        with ThreadPoolExecutor(spare_threads(processes)) as threads:
            try:
                self._pairs = list(tqdm(threads.map(hold, self.paths), 'reading the training images', len(self.paths),
                                        unit='pair', disable=not progress or None, dynamic_ncols=True))
                images.close()
            except OSError as error:
                threads.shutdown(wait=False, cancel_futures=True)
                raise NoRoomError(f'{KEY}: there is no room for the decoded images after {images.nbytes / 1e6:.1f} MB '
                                  f'({error.strerror}); remove it, and give num_worker_per_gpu more processes to read '
                                  'from the disk') from error
        self._images = images
        get_root_logger().info(f'{KEY}: {len(self)} pairs are held in {images.nbytes / 1e6:.1f} MB.')

    def __getitem__(self, index: int) -> dict:
        pair = self._pairs[index] if self._pairs and self.opt['phase'] == 'train' else None
        if pair is None or self._images is None:
            return super().__getitem__(index)
        opt, paths = self.opt, self.paths[index]
        gt, lq = (self._images[number] for number in pair)
        pair = paired_random_crop(gt, lq, opt['gt_size'], opt['scale'], paths['gt_path'])
        # BasicSR flips in place: here a copy, which the change of type makes.
        gt, lq = (np.asarray(image).astype(np.float32) / 255. for image in pair)
        gt, lq = augment([gt, lq], opt['use_hflip'], opt['use_rot'])
        if opt.get('color') == 'y':
            gt, lq = (bgr2ycbcr(image, y_only=True)[..., None] for image in (gt, lq))
        gt, lq = img2tensor([gt, lq], bgr2rgb=True, float32=True)
        if self.mean is not None or self.std is not None:
            for image in (lq, gt):  # as BasicSR does; one without the other is torchvision's error
                normalize(image, self.mean, self.std, inplace=True)  # pyright: ignore[reportArgumentType]
        return {'lq': lq, 'gt': gt, **paths}


def processes_here(world_size: int) -> int:
    """How many of the processes of a distributed training are on this machine, as torchrun says."""
    return int(os.environ.get('LOCAL_WORLD_SIZE', world_size))


def why_too_large(sizes: Iterable[tuple[int, int]], processes: int) -> str:
    """Why images cannot be held; empty where they can, or where the system does not say how much memory is free.

    Args:
        sizes (Iterable): (width, height) of each image.
        processes (int): That hold a copy each.
    """
    needed, free = processes * _CHANNELS * sum(width * height for width, height in sizes), free_memory()
    if free is None or needed <= free:
        return ''
    each = f' for {processes} processes that hold a copy each' if processes > 1 else ''
    return (f'the decoded images need {needed / 1e6:.1f} MB{each}, and {free / 1e6:.1f} MB of memory are free; remove '
            'it, and give num_worker_per_gpu more processes to read from the disk')


def free_memory() -> int | None:
    """Bytes that can be had without swapping, within the limit of a container; None where Linux does not say it."""
    try:
        lines = Path('/proc/meminfo').read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith('MemAvailable:'))
    except (OSError, StopIteration):
        return None
    group = Path('/sys/fs/cgroup')
    try:
        limit, used = (int((group / f'memory.{name}').read_text()) for name in ('max', 'current'))
        stat = dict(line.split() for line in (group / 'memory.stat').read_text().splitlines())
    except (OSError, ValueError):  # no container, or one without a limit: 'max'
        return free
    return min(free, limit - used + int(stat.get('inactive_file', 0)))  # files are dropped when memory is wanted
