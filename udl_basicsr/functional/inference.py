"""Ways to run a network on a whole image: padded to its window, in tiles, averaged over the eight symmetries, or in a
memory format.

Each takes and returns a function ``image (N, C, h, w) -> image (N, C, H, W)``, so they nest.
"""
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from udl_basicsr.utils.memory import is_out_of_memory

Restore = Callable[[Tensor], Tensor]


def padded(restore: Restore, multiple: int, scale: int) -> Restore:
    """Pads by reflection to a multiple (of a transformer's window), restores, crops."""

    def run(lq: Tensor) -> Tensor:
        height, width = lq.shape[-2:]
        bottom, right = -height % multiple, -width % multiple
        # Reflection needs an image larger than the padding; a tiny one is repeated instead.
        mode = 'reflect' if bottom < height and right < width else 'replicate'
        return restore(pad(lq, (0, right, 0, bottom), mode=mode))[..., :height * scale, :width * scale]

    return run


def tiled(restore: Restore, tile: int, overlap: int, scale: int, multiple: int = 1) -> Restore:
    """Restores tile by tile, each with ``overlap`` pixels around it, and puts the tiles' cores together.

    Nothing is blended: wherever the overlap covers the network's receptive field, the result is the untiled one. The
    image's own border is the border of the tiles there, so padding acts as it does on the whole image.

    Args:
        restore (Callable): (N, C, h, w) to (N, C, scale*h, scale*w).
        tile (int): Size of a tile's core, in low-quality pixels.
        overlap (int): Context on each side, in low-quality pixels.
        scale (int): Of the network.
        multiple (int): Of a network that takes multiples of it alone: the parts that it sees begin at such ones, so
            that its windows, or the pixels that it unshuffles, are those of the whole image.
    """

    def run(lq: Tensor) -> Tensor:
        height, width = lq.shape[-2:]
        out = None
        for top in range(0, height, tile):
            for left in range(0, width, tile):
                bottom, right = min(top + tile, height), min(left + tile, width)
                y0, x0 = (max(start - overlap, 0) // multiple * multiple for start in (top, left))
                part = restore(lq[..., y0:min(bottom + overlap, height), x0:min(right + overlap, width)])
                if out is None:
                    out = part.new_empty(*part.shape[:2], height * scale, width * scale)
                out[..., top * scale:bottom * scale, left * scale:right * scale] = part[
                    ..., (top - y0) * scale:(bottom - y0) * scale, (left - x0) * scale:(right - x0) * scale]
        assert out is not None  # an image has a pixel
        return out

    return run


def in_memory_format(restore: Restore, memory_format: torch.memory_format) -> Restore:
    """On images in a memory format; where the network asks for a view that it does not allow, in torch's usual one."""

    def run(lq: Tensor) -> Tensor:
        formatted = lq.contiguous(memory_format=memory_format)
        try:
            return restore(formatted)
        except RuntimeError as error:
            if formatted.is_contiguous() or is_out_of_memory(error):
                raise
        return restore(lq.contiguous())

    return run


def tiling_cost(tile: int, overlap: int) -> float:
    """How many times the pixels of a large image :func:`tiled` computes: what a tile sees over what it keeps.

    Args:
        tile (int): As there, at least 1.
        overlap (int): As there.

    Example:
        >>> tiling_cost(128, 32), tiling_cost(8, 32)
        (2.25, 81.0)
    """
    return (1 + 2 * overlap / tile)**2


def self_ensembled(restore: Restore) -> Restore:
    """The mean over the eight flips and rotations of the input, each turned back (x8 self-ensemble of EDSR)."""

    def run(lq: Tensor) -> Tensor:
        return sum(each_turn(restore, lq), lq.new_zeros(())) / 8
    return run


def each_turn(restore: Restore, lq: Tensor) -> Iterator[Tensor]:
    """What is made of each of the eight flips and rotations of an image, turned back."""
    for flip in (False, True):
        for turns in range(4):
            turned = torch.rot90(lq.flip(-1) if flip else lq, turns, (-2, -1))
            back = torch.rot90(restore(turned), -turns, (-2, -1))
            yield back.flip(-1) if flip else back
