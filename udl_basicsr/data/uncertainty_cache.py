"""s of whole training images: computed once with the frozen stage-1 network, kept on the disk, cropped with the pair.

The folder holds ``<LR file>.npy`` for each LR image, (H, W, C) uint16 with RGB channels, and ``manifest.json`` with
what made it and each map's range: ``s = low + q * (high - low) / 65535``, so that the error is at most
``(high - low) / 131070`` and nothing is clipped. Plain arrays and no PNG, since of an array that is mapped into memory
only the crop is read: 0.1 ms for 96x96 of 480x480, against 20 ms to decode the PNG, which is hardly smaller. Each
process reads a map whole when it first needs it, and compares its checksum.
"""
import contextlib
import hashlib
import io
import json
import mmap
import random
from os import path as osp
from pathlib import Path
from typing import cast

import numpy as np
import torch
from basicsr.archs import build_network
from basicsr.data.transforms import augment, paired_random_crop
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import get_dist_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from udl_basicsr.archs import UncertaintyNet
from udl_basicsr.archs.traits import size_multiple, window_grid
from udl_basicsr.functional import inference
from udl_basicsr.utils.checkpoints import load_network
from udl_basicsr.utils.distributed import together
from udl_basicsr.utils.errors import begun
from udl_basicsr.utils.files import why_not_into, write_atomically
from udl_basicsr.utils.kernels import exact_kernels
from udl_basicsr.utils.locks import NAME, locked
from udl_basicsr.utils.memory import is_out_of_memory
from udl_basicsr.utils.settings import ValSettings, strict_load
from udl_basicsr.utils.text import some

from .kinds import ImageDataset, PairedDataset
from .source_images import WholeImages
from .uncertainty_maps import (
    KEY,
    LEVELS,
    REMEDY,
    CacheError,
    checksum_of,
    dequantise,
    fingerprint,
    quantise,
    what_is_wrong,
)
from .workers import start_method

MANIFEST = 'manifest.json'
AUTO = 'auto'


class UncertaintyCache:
    """A folder of maps.

    Args:
        folder (str | Path): Where it is, or is to be.
        made_by (dict): What s depends on beside the images: weights, network, scale, normalisation; plain values.

    Attributes:
        computed (dict): Where and how it was computed, for people: what differs there hardly moves s.
        maps (dict): Name of the LR image to ``{size, bytes, low, high, digest, stamp, crc}``; empty until ``read``.
            Caches of earlier versions have no ``crc``.
    """

    def __init__(self, folder: str | Path, made_by: dict):
        self.folder = Path(folder)
        self.made_by = json.loads(json.dumps(made_by))
        self.computed, self.maps = {}, {}
        self._compared: set[str] = set()  # maps whose checksum this process has compared

    def path(self, name: str) -> Path:
        return self.folder / f'{name}.npy'

    # ------------------------------------------------------------------ a finished one

    def read(self) -> bool:
        """Reads the manifest; False where there is none.

        Raises:
            CacheError: It is broken, or was made by something else.
        """
        path = self.folder / MANIFEST
        if not path.exists():
            return False
        try:
            manifest = json.loads(path.read_text(encoding='utf-8'))
            made_by, self.maps = dict(manifest['made_by']), dict(manifest['maps'])
            self.computed = dict(manifest.get('computed', {}))
            for name, entry in self.maps.items():
                if wrong := what_is_wrong(entry):
                    raise ValueError(f'{name}: {", ".join(wrong)} missing or wrong')
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CacheError(f'{path}: is no manifest of an uncertainty cache ({error}). {REMEDY}') from error
        self._compare(made_by)
        return True

    def _compare(self, made_by: dict) -> None:
        lines = [f'  {key}: {made_by.get(key)} there, {self.made_by.get(key)} here'
                 for key in {**self.made_by, **made_by} if made_by.get(key) != self.made_by.get(key)]
        if lines:
            raise CacheError('\n'.join([f'{self.folder}: this uncertainty cache was made by something else:', *lines,
                                        REMEDY]))

    def verify(self, images: WholeImages) -> bool:
        """Whether there is a whole cache, which is the one of these images; False where there is none.

        Raises:
            CacheError: It was made by something else or from other images, or maps are missing or cut off.
        """
        if not self.read():
            return False
        added = [name for name in images.indices if name not in self.maps]
        gone = [name for name in self.maps if name not in images.indices]
        changed = [name for name in images.indices
                   if name in self.maps and not images.is_source_of(self.maps[name], name)]
        images.close()
        lines = [f'  {what}: {some(names, 3)}' for what, names in
                 (('changed since', changed), ('not in the cache', added), ('in the cache alone', gone)) if names]
        if lines:
            raise CacheError('\n'.join([f'{self.folder}: this uncertainty cache was made from other images than those '
                                        f'of {images.folder}:', *lines, REMEDY]))
        broken = [str(self.path(name)) for name, entry in self.maps.items() if not self._is_whole(name, entry)]
        if broken:
            raise CacheError(f'{some(broken, 3)}: missing or cut off. {REMEDY}')
        if old := [name for name, entry in self.maps.items() if 'crc' not in entry]:
            get_root_logger().warning(f'{self.folder}: {len(old)} maps of this uncertainty cache were made without a '
                                      'checksum, by an earlier version, and are taken as they are. Delete the folder '
                                      'to have them computed anew')
        return True

    def _is_whole(self, name: str, entry: dict) -> bool:
        try:
            return self.path(name).stat().st_size == entry['bytes']
        except OSError:
            return False

    def levels(self, name: str) -> np.ndarray:
        """The map as it is stored, (H, W, C) uint16, mapped into memory: what is not looked at is not read.

        Raises:
            CacheError: It is missing or cut off, or it is not what was written.
        """
        entry = self.maps[name]
        height, width, channels = entry['size']
        try:
            with open(f'{self.folder}/{name}.npy', 'rb') as file:  # np.memmap would take four times as long to open it
                data = mmap.mmap(file.fileno(), entry['bytes'], access=mmap.ACCESS_READ)
            if name not in self._compared:
                if entry.get('crc', checksum := checksum_of(data, entry)) != checksum:
                    raise CacheError(f'{self.path(name)}: its bytes, or its entry in {MANIFEST}, have changed since it '
                                     f'was computed. {REMEDY}')
                self._compared.add(name)
            values = np.frombuffer(data, np.uint16, offset=entry['bytes'] - 2 * height * width * channels)
            return values.reshape(height, width, channels)
        except (OSError, ValueError) as error:
            raise CacheError(f'{self.path(name)}: missing or cut off ({error}). {REMEDY}') from error

    # ------------------------------------------------------------------ making one

    def find(self, images: WholeImages, until_made: contextlib.ExitStack) -> bool:
        """As :meth:`verify`; where there is none, no other process makes one until the stack is closed.

        One that does so already, such as a training of another seed, is waited for: each would overwrite maps that
        the other has noted.
        """
        if self.verify(images):
            return True
        with self._writing():
            until_made.enter_context(locked(self.folder, lambda holder: get_root_logger().warning(
                f'{self.folder}: the uncertainty is being computed by {holder}; it is waited for')))
        return self.verify(images)

    def build(self, network: UncertaintyNet, images: WholeImages, device: torch.device, workers: int = 0,
              tile: dict | None = None, multiple: int = 1, grid: int = 1) -> None:
        """Computes what is missing, each process its share, and writes the manifest when all is there.

        Maps are written whole or not at all and noted one by one, so that a build that was interrupted goes on.

        Args:
            network (UncertaintyNet): Frozen, in eval mode.
            images (WholeImages): The LR images.
            device (torch.device): Where to compute.
            workers (int): Loader processes.
            tile (dict | None): ``{size, overlap}``, as ``val.tile``.
            multiple (int): What the network needs sizes to be multiples of; images are padded to it.
            grid (int): What tiles begin at multiples of, see :func:`~udl_basicsr.archs.traits.window_grid`.

        Raises:
            CacheError: The folder cannot be written, an image does not fit into the memory of the device, or s is not
                finite. In every process if in one.
        """
        self.computed = {'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else str(device),
                         'precision': 'float32', 'tile': tile}
        rank, world_size = get_dist_info()
        noted = self._noted()
        numbers = list(range(rank, len(images), world_size))
        done = {name: noted[name] for name in (images.names[i] for i in numbers) if name in noted and
                self._is_whole(name, noted[name]) and images.is_source_of(noted[name], name)}
        images.close()
        rest = [i for i in numbers if images.names[i] not in done]
        get_root_logger().info(f'{self.folder}: computing the uncertainty of {len(images)} training images once'
                               + (f', {len(done)} of {len(numbers)} are there' if done else '') + '.')

        def note(line: str) -> None:
            with self._writing():
                self.folder.mkdir(parents=True, exist_ok=True)
                with open(self.folder / f'part_{rank}.jsonl', 'a', encoding='utf-8') as file:
                    file.write(line + '\n')

        def compute() -> dict:
            network.to(device)
            restore = inference.padded(network.log_scale, multiple, network.scale)
            if tile:
                restore = inference.tiled(restore, tile['size'], tile['overlap'], network.scale, grid)
            note('')  # ends a line that a killed process left unfinished
            with torch.inference_mode(), exact_kernels():
                loader = DataLoader(Subset(images, rest), batch_size=None, num_workers=workers,
                                    multiprocessing_context=start_method() if workers else None)
                for name, lq, source in tqdm(loader, 'uncertainty', unit='image', disable=rank != 0 or None,
                                             dynamic_ncols=True):
                    try:
                        log_scale = restore(lq[None].to(device))[0]
                    except Exception as error:
                        if not is_out_of_memory(error):
                            raise
                        size = 'a smaller val.tile.size' if tile else 'val.tile: {size: 128, overlap: 32}'
                        raise CacheError(f'{name}: its pixels do not fit into the memory of {self.computed["device"]}: '
                                         f'give {size}') from error
                    done[name] = self._write(name, log_scale) | source
                    note(json.dumps({'made_by': self.made_by, 'name': name, **done[name]}))
            return done

        with begun():
            maps = {name: entry for part in together(compute) for name, entry in part.items()}
            together(lambda: self._finish(maps) if rank == 0 else None)
        images.close()
        self.maps = maps

    def _write(self, name: str, log_scale: Tensor) -> dict:
        if not torch.isfinite(log_scale).all():
            raise CacheError(f'{name}: the uncertainty network puts out NaN or infinity for this image. '
                             'Take the weights of an earlier iteration of stage 1, or train it anew')
        levels, low, high = quantise(log_scale)
        file = io.BytesIO()
        np.save(file, levels)
        with self._writing():
            self.path(name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path(name), file.getvalue())
        entry = {'size': list(levels.shape), 'bytes': len(file.getvalue()), 'low': low, 'high': high}
        return {**entry, 'crc': checksum_of(file.getvalue(), entry)}

    def _noted(self) -> dict:
        """The maps that an interrupted build has finished."""
        noted = {}
        for path in sorted(self.folder.glob('part_*.jsonl')):
            for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
                try:
                    entry = json.loads(line)
                    made_by, name = entry.pop('made_by'), entry.pop('name')
                except (ValueError, KeyError, AttributeError):
                    continue  # the line at which the process was killed
                self._compare(made_by)
                if not what_is_wrong(entry):
                    noted[name] = entry
        return noted

    def _finish(self, maps: dict) -> None:
        manifest = {'made_by': self.made_by, 'computed': self.computed, 'maps': dict(sorted(maps.items()))}
        with self._writing():
            write_atomically(self.folder / MANIFEST, json.dumps(manifest, indent=0).encode())
            for path in self.folder.glob('part_*.jsonl'):
                path.unlink(missing_ok=True)
        size = sum(entry['bytes'] for entry in maps.values()) / 1e9
        error = max((entry['high'] - entry['low']) / LEVELS / 2 for entry in maps.values())
        get_root_logger().info(f'{self.folder}: {len(maps)} maps, {size:.2f} GB, rounded by at most {error:.1e}.')

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except OSError as error:
            raise CacheError(f'{error.filename or self.folder}: cannot be written ({error.strerror or error}). Free '
                             f'some space, check the permissions, or name another folder in {KEY}; what has been '
                             'computed is kept') from error


class UncertaintyDataset(Dataset):
    """A training set with ``log_scale``, s of each patch, beside ``lq`` and ``gt``.

    These two stay what they are, bit for bit: the data set draws and cuts its patches itself. BasicSR's functions then
    run once more on the map from the same random state, and must leave the same state behind.

    Args:
        dataset (PairedDataset): PairedImageDataset or a class of its kind, in training.
        cache (UncertaintyCache): Its maps, read.
        images (WholeImages): Their names.
    """

    def __init__(self, dataset: PairedDataset, cache: UncertaintyCache, images: WholeImages):
        self.dataset, self.cache, self.opt, self.paths = dataset, cache, dataset.opt, dataset.paths
        self.names = [images.name(index) for index in range(len(dataset))]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        before = random.getstate()
        sample = self.dataset[index]
        after = random.getstate()
        random.setstate(before)
        sample['log_scale'] = self._patch(self.names[index])
        if random.getstate() != after:
            raise CacheError(f'{KEY}: {type(self.dataset).__name__} draws other random numbers than the crop and the '
                             'flips of PairedImageDataset, so that a map cannot follow them. Remove the key')
        return sample

    def _patch(self, name: str) -> Tensor:
        levels = self.cache.levels(name)
        (height, width), scale = levels.shape[:2], self.opt['scale']
        lq = np.broadcast_to(np.uint8(0), (height // scale, width // scale))  # only its size is looked at
        patch, _ = paired_random_crop(levels, lq, self.opt['gt_size'], scale, name)
        patch = augment(np.array(patch), self.opt['use_hflip'], self.opt['use_rot'])  # a copy: flipped in place
        entry = self.cache.maps[name]
        levels = np.ascontiguousarray(np.asarray(patch).transpose(2, 0, 1))
        return torch.from_numpy(dequantise(levels, entry['low'], entry['high']))


def prepare(dataset: ImageDataset, opt: dict, device: torch.device) -> UncertaintyDataset:
    """The training set with the cache that ``datasets.train.uncertainty_cache`` asks for, made first where it is not.

    Args:
        dataset (ImageDataset): What ``datasets.train`` says, not read from yet.
        opt (dict): Runtime options of a stage ``udl`` whose stage-1 weights are there.
        device (torch.device): Where to compute.

    Raises:
        CacheError: There is a cache of other weights, another scale or other data; or none can be made.
        CheckpointError: The weights of stage 1 cannot be read.
    """
    options, path = opt['datasets']['train'], opt['path']
    block = {'backbone': opt['network_g'], **opt['network_u']}
    network = build_network(block).eval().requires_grad_(False)
    load_network(network, path['pretrain_network_u'], path.get('param_key_u', 'params'), strict_load(path, 'u'))
    made_by = {
        'weights': fingerprint(network),
        'network': block,
        'scale': opt['scale'],
        'input': {key: options.get(key) for key in ('type', 'mean', 'std', 'color')},
    }
    pairs = cast(PairedDataset, dataset)  # with no other kind do the options ask for a cache
    images = WholeImages(pairs)
    cache = UncertaintyCache(_folder(options, made_by), made_by)
    with contextlib.ExitStack() as until_made:
        if together(lambda: cache.find(images, until_made) if get_dist_info()[0] == 0 else None)[0]:
            together(cache.read)
            how = ', '.join(f'{key} {value}' for key, value in cache.computed.items() if value) or 'where is not noted'
            get_root_logger().info(f'{cache.folder}: the uncertainty of {len(cache.maps)} images is there ({how}).')
        else:
            cache.build(network, images, device, options.get('num_worker_per_gpu', 0),
                        ValSettings.of(opt.get('val')).tile,
                        size_multiple(mean := type(network.mean_network), opt['network_g']),
                        window_grid(mean, opt['network_g']))
    return UncertaintyDataset(pairs, cache, images)


def _folder(options: dict, made_by: dict) -> str:
    """``auto`` is beside the LR images, since other LR images of the same GT have other maps."""
    folder = options['uncertainty_cache']
    if folder != AUTO:
        return osp.expanduser(folder)
    key = hashlib.blake2b(json.dumps(made_by, sort_keys=True).encode(), digest_size=4).hexdigest()
    return f"{options['dataroot_lq'].rstrip('/').removesuffix('.lmdb')}_uncertainty_{key}"


def why_no_folder(folder: str) -> str:
    """Why a cache can neither be read from nor made in ``folder``; empty where it can. Nothing is touched."""
    path = Path(folder).expanduser()
    if path.exists() and not path.is_dir():
        return f'{path.absolute()} is a file; expected a folder'
    ours = (path / MANIFEST).exists() or any(path.glob('part_*.jsonl'))
    if path.is_dir() and not ours and any(file.name != NAME for file in path.iterdir()):
        return f'{path.absolute()} is not empty and no uncertainty cache; name a new or an empty folder, or auto'
    if not (path / MANIFEST).exists() and (problem := why_not_into(path)):
        return f'{path.absolute()} cannot take a cache: {problem}; name another folder'
    return ''
