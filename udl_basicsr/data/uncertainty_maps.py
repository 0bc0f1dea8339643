"""How the map of one image is kept: 16 bits over its own range, what the manifest says of it, and its checksum."""
import hashlib
import math
import mmap
import zlib

import numpy as np
import torch
from torch import Tensor, nn

from udl_basicsr.utils.checkpoints import CheckpointError

LEVELS = 65535
KEY = 'datasets.train.uncertainty_cache'
REMEDY = f'Name another folder in {KEY} (auto gives each cache its own), or delete this one and it is computed anew'
_ENTRY = {  # what the manifest says of each map, and how that is recognised
    'size': lambda v: isinstance(v, list) and len(v) == 3 and all(isinstance(n, int) and n > 0 for n in v),
    'bytes': lambda v: isinstance(v, int) and v > 0,
    'low': lambda v: isinstance(v, (int, float)) and math.isfinite(v),
    'high': lambda v: isinstance(v, (int, float)) and math.isfinite(v),
    'digest': lambda v: isinstance(v, str),
    'stamp': lambda v: isinstance(v, list),
    'crc': lambda v: isinstance(v, int),
}


class CacheError(CheckpointError):
    """A cache that cannot be made, or that must not be used; the message names the file, the reason and the remedy."""


def quantise(log_scale: Tensor) -> tuple[np.ndarray, float, float]:
    """s in 16 bits, evenly over its own range.

    Args:
        log_scale (Tensor): (C, H, W), finite.

    Returns:
        tuple: (H, W, C) uint16, and the values of its 0 and its 65535. ``dequantise`` is off by at most half a step,
            (high - low) / 131070, beside the rounding of float32.
    """
    s = log_scale.cpu().numpy().transpose(1, 2, 0).astype(np.float64)
    low, high = float(s.min()), float(s.max())
    levels = (s - low) * (LEVELS / (high - low)) if high > low else np.zeros_like(s)
    return np.rint(levels).astype(np.uint16), low, high


def dequantise(levels: np.ndarray, low: float, high: float) -> np.ndarray:
    """s in float32 from its 16-bit levels, of any shape."""
    return levels.astype(np.float32) * np.float32((high - low) / LEVELS) + np.float32(low)


def fingerprint(network: nn.Module) -> str:
    """A hash of a network's weights and buffers: names, types, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(network.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        digest.update(value.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def what_is_wrong(entry: dict) -> list[str]:
    """What an entry of the manifest lacks or has wrong; a checksum may be missing."""
    unknown = [key for key in entry if key not in _ENTRY]
    return unknown + [key for key, is_right in _ENTRY.items()
                      if not (is_right(entry[key]) if key in entry else key == 'crc')]


def checksum_of(data: bytes | mmap.mmap, entry: dict) -> int:
    """CRC-32 of a map's file and of what makes numbers of it: some 1 ms for 480x480."""
    return zlib.crc32(repr([entry['size'], float(entry['low']), float(entry['high'])]).encode(), zlib.crc32(data))
