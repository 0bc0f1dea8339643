"""Which sample is trained when, and how it is cropped: functions of (seed, epoch, index) and of nothing else.

BasicSR's order depends on the epoch alone (data_sampler.py:32), and its workers are seeded alike at every epoch
(data/__init__.py:99), so that each epoch sees the same crops. Here neither the number of workers, nor that of
processes, nor the iteration a run was resumed at changes what is trained.
"""
import atexit
import hashlib
import math
import multiprocessing
import os
import queue
import random
import signal
import threading
from collections.abc import Iterator

import cv2
import numpy as np
import torch
from basicsr.data import build_dataset as build_basicsr_dataset
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.prefetch_dataloader import CPUPrefetcher, CUDAPrefetcher
from basicsr.utils import get_root_logger
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from udl_basicsr.utils.checkpoints import CheckpointError
from udl_basicsr.utils.settings import LoaderSettings

from .images import BrokenImageError, ImageError, read_header
from .in_memory import PairsInMemory, processes_here
from .kinds import ImageDataset
from .workers import start_method

_BROKEN_IN_A_ROW = 20


def build_dataset(options: dict) -> ImageDataset:
    """BasicSR's, with its images by name: it takes them as the file system lists them, which differs by machine.

    With ``in_memory: true`` it can hold them; :func:`train_batches` has them read.
    """
    dataset = PairsInMemory(options) if LoaderSettings.of(options).in_memory else build_basicsr_dataset(options)
    if isinstance(getattr(dataset, 'paths', None), list):
        dataset.paths.sort(key=str)
    return dataset


def seed_all(*key: int, devices: bool = True) -> None:
    """Seeds Python, NumPy and torch from a tuple of integers.

    Args:
        devices (bool): GPUs too, of which a loader process has none. In one that is spawned torch would note the seed
            for the day it has, at 118 µs a sample.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    seed = int.from_bytes(digest, 'little')
    random.seed(seed)
    np.random.seed(seed % 2**32)
    (torch.manual_seed if devices else torch.default_generator.manual_seed)(seed % 2**63)


def _problem(dataset: ImageDataset, index: int, error: Exception, purpose: str) -> str:
    """Which file of a sample cannot be read, and why."""
    paths = getattr(dataset, 'paths', None) or {}
    entry = paths[index] if index < len(paths) else index
    files = list(map(str, entry.values())) if isinstance(entry, dict) else [str(entry)]
    if broken := [f for f in files if os.path.isfile(f) and cv2.imread(f) is None]:  # the error is of what comes next
        return f'{" or ".join(broken)}: cannot be read for {purpose}: OpenCV cannot decode what is left of it'
    files = ' or '.join([f for f in files if not os.path.isfile(f)] or files)
    reason = ' '.join(str(error).split())  # OpenCV's end in a line break
    return f'{files}: cannot be read for {purpose} ({type(error).__name__}: {reason})'


class ValidationImages(Dataset):
    """A data set to validate or test on, of which an image that breaks in mid-run is named.

    Args:
        dataset (Dataset): Any of BasicSR's.
        most (int | None): Only so many images, the first ones.
    """

    def __init__(self, dataset: ImageDataset, most: int | None = None):
        self.dataset, self.opt, self.most = dataset, dataset.opt, most

    def __len__(self) -> int:
        return len(self.dataset) if self.most is None else min(self.most, len(self.dataset))

    def __getitem__(self, index: int):
        try:
            sizes = self._look_at(index)
            sample = self.dataset[index]
            path = sample.get('lq_path') if isinstance(self.dataset, PairedImageDataset) else None
            if path in sizes and (got := tuple(sample['lq'].shape[:0:-1])) != sizes[path]:
                raise ImageError(f'{path}: is damaged, its header says {sizes[path]} pixels and it has {got}')
            return sample
        except ImageError as error:
            problem = str(error)
        except Exception as error:  # OpenCV and the backends raise almost anything
            problem = _problem(self.dataset, index, error, 'validation')
        raise BrokenImageError(f'{problem}. Put it right; training goes on with --auto_resume, a test is started anew')

    def _look_at(self, index: int) -> dict[str, tuple[int, int]]:
        """What was looked at when the run began, once more: OpenCV hands out what is left of a file that is cut off.

        Returns:
            dict: (width, height) of each file.
        """
        paths, backend = getattr(self.dataset, 'paths', None), self.opt.get('io_backend') or {}
        if not isinstance(paths, list) or backend.get('type') != 'disk':
            return {}
        sizes = {}
        for path in paths[index].values() if isinstance(paths[index], dict) else [paths[index]]:
            with open(path, 'rb') as file:
                try:
                    sizes[path] = read_header(file)
                except ImageError as error:
                    raise ImageError(f'{path}: {error}') from error
        return sizes


class SeededDataset(Dataset):
    """A data set whose samples are asked for by (epoch, index) and augmented accordingly.

    With ``skip_broken: true`` in its options a sample that cannot be read is replaced by the next one that can, and its
    ``broken`` says how many could not.

    Args:
        dataset (Dataset): Any of BasicSR's, which draw their crops and flips from the global random states.
        seed (int): ``manual_seed`` of the YAML.
    """

    def __init__(self, dataset: ImageDataset, seed: int):
        self.dataset = dataset
        self.seed = seed
        self.opt = dataset.opt
        self.skip_broken = LoaderSettings.of(self.opt).skip_broken
        self._reported: set[int] = set()  # by this process or worker

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]):
        epoch, index = key
        for broken in range(_BROKEN_IN_A_ROW):
            image = (index + broken) % len(self.dataset)
            seed_all(self.seed, epoch, index, devices=False)
            try:
                sample = self.dataset[image]
            except CheckpointError:  # of the uncertainty cache: its maps are to blame, and no image
                raise
            except Exception as error:
                problem = _problem(self.dataset, image, error, 'training')
                if not self.skip_broken:
                    raise BrokenImageError(f'{problem}. Mend or remove the file and go on with --auto_resume, or let '
                                           'such files be left out by datasets.train.skip_broken: true') from error
                if image not in self._reported:  # once, not in every epoch
                    get_root_logger().warning(f'{problem}. Left out, now and whenever its turn comes')
                    self._reported.add(image)
                continue
            return {**sample, 'broken': broken} if self.skip_broken else sample
        raise BrokenImageError(f'{_BROKEN_IN_A_ROW} training images in a row cannot be read, the last one: {problem}. '
                               'Is the disk still there?')


class TrainBatches(Sampler):
    """The batches of one process from one iteration to the last, across epochs.

    Each epoch is a permutation of the enlarged data set, drawn from (seed, epoch). Process r of R takes every R-th
    sample, so that R processes together train the samples that one process with R times the batch would. What is left
    at the end of an epoch and fills no batch is dropped.

    Args:
        length (int): Size of the data set.
        batch_size (int): Of one process.
        total_iter (int): Iterations of the whole training.
        start_iter (int): Iterations already done.
        first_iter (int): Where in the order of the samples this training begins, in iterations: after those of a stage
            before it.
        ratio (float): ``dataset_enlarge_ratio``.
        seed (int): ``manual_seed`` of the YAML.

    Raises:
        ValueError: The enlarged data set does not fill one batch.
    """

    def __init__(self, length: int, batch_size: int, total_iter: int, start_iter: int = 0, *, first_iter: int = 0,
                 ratio: float = 1, seed: int = 0, rank: int = 0, world_size: int = 1):
        self.size = math.ceil(length * ratio)
        self.batch_size, self.rank, self.world_size, self.seed = batch_size, rank, world_size, seed
        self.start_iter, self.total_iter, self.first_iter = start_iter, total_iter, first_iter
        self.iters_per_epoch = self.size // (batch_size * world_size)
        if self.iters_per_epoch == 0:
            raise ValueError(
                f'{length} training images x dataset_enlarge_ratio {ratio:g} do not fill one batch of {batch_size} x '
                f'{world_size} process(es): lower batch_size_per_gpu or raise dataset_enlarge_ratio')

    def __len__(self) -> int:
        return self.total_iter - self.start_iter

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, epoch = [], -1
        for iteration in range(self.first_iter + self.start_iter, self.first_iter + self.total_iter):
            if iteration // self.iters_per_epoch != epoch:
                epoch = iteration // self.iters_per_epoch
                seed = int.from_bytes(hashlib.blake2b(repr((self.seed, epoch)).encode(), digest_size=7).digest(), 'big')
                order = torch.randperm(self.size, generator=torch.Generator().manual_seed(seed)).tolist()
            first = iteration % self.iters_per_epoch * self.batch_size * self.world_size
            batch = order[first:first + self.batch_size * self.world_size]
            yield [(epoch, index) for index in batch[self.rank::self.world_size]]


def _leave_signals_to_the_parent(worker: int) -> None:
    """A SIGTERM or Ctrl-C often goes to all processes; workers are needed until the step in progress is saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_workers() -> None:
    """After an error workers may still be there at exit, where Python sends SIGTERM and waits: they do not hear it."""
    if hasattr(signal, 'SIGCHLD'):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or torch reports that a worker was killed
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


class _DevicePrefetcher(CUDAPrefetcher):
    """BasicSR's, whose batches stay theirs until the step that runs behind the host is done with them."""

    def next(self) -> dict | None:
        batch = super().next()
        for value in (batch or {}).values():
            if torch.is_tensor(value) and value.is_cuda:
                value.record_stream(torch.cuda.current_stream())
        return batch


def _fetched_ahead(batches: Iterator[dict], most: int) -> Iterator[dict]:
    """The batches, of which a thread gets up to ``most`` ahead, and then the error that has ended them.

    The thread of BasicSR's PrefetchDataLoader dies of it (prefetch_dataloader.py:27), and the training waits for ever.
    """
    ready: queue.Queue = queue.Queue(most)

    def fetch() -> None:
        try:
            for batch in batches:
                ready.put(batch)
            ready.put(None)
        except BaseException as error:  # an image that cannot be read, a loader process that was killed
            ready.put(error)

    threading.Thread(target=fetch, daemon=True).start()
    for batch in iter(ready.get, None):
        if isinstance(batch, BaseException):
            raise batch
        yield batch


def _collate(samples: list[dict]) -> dict:
    """One batch; how many of its images were broken is a number, which no device is to hold."""
    batch = default_collate(samples)
    return {**batch, 'broken': int(batch['broken'].sum())} if 'broken' in batch else batch


def train_batches(dataset: ImageDataset, opt: dict, start_iter: int = 0) -> tuple[TrainBatches, Iterator[dict]]:
    """The training data from ``start_iter`` on, as the YAML's ``datasets.train`` asks for, in memory if it says so.

    Returns:
        tuple: The sampler, and an iterator over exactly ``total_iter - start_iter`` batches.
    """
    options = opt['datasets']['train']
    settings = LoaderSettings.of(options)
    replicas = 1 if opt['dist'] else max(opt['num_gpu'], 1)  # DataParallel shares one batch among the GPUs
    sampler = TrainBatches(
        len(dataset), options['batch_size_per_gpu'] * replicas, int(opt['train']['total_iter']), start_iter,
        first_iter=settings.first_iter, ratio=settings.dataset_enlarge_ratio,
        seed=opt['manual_seed'], rank=opt['rank'], world_size=opt['world_size'])
    images = getattr(dataset, 'dataset', dataset)  # within the one that adds the uncertainty to each
    if isinstance(images, PairsInMemory):
        images.load(processes_here(opt['world_size']), progress=opt['rank'] == 0)
    workers = options.get('num_worker_per_gpu', 0) * replicas
    if workers:
        atexit.unregister(_end_workers)  # once, however many runs a process makes
        atexit.register(_end_workers)
    loader_args = {
        'dataset': SeededDataset(dataset, opt['manual_seed']),
        'batch_sampler': sampler,
        'collate_fn': _collate,
        'num_workers': workers,
        'multiprocessing_context': start_method() if workers else None,
        'worker_init_fn': _leave_signals_to_the_parent,
        'pin_memory': settings.pin_memory and opt['num_gpu'] != 0,
    }
    if settings.prefetch_mode == 'cuda':
        prefetcher = _DevicePrefetcher(DataLoader(**loader_args), opt)
    elif settings.prefetch_mode == 'cpu' and workers > 0:
        # Without workers the prefetching thread would draw from the random states that the training step draws from.
        prefetcher = CPUPrefetcher(_fetched_ahead(iter(DataLoader(**loader_args)), settings.num_prefetch_queue))
    else:
        prefetcher = CPUPrefetcher(DataLoader(**loader_args))
    return sampler, iter(prefetcher.next, None)
