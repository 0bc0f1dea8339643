"""A 3x3 convolution of a nearest-upsampled map, computed from the map itself: exact, with far fewer operations.

An output row s*i + a reads rows s*i + a - 1 ... s*i + a + 1 of the upsampled map, copies of rows of the map:

======================= ================ ====================
output row              reads map rows   with taps
======================= ================ ====================
s*i, the first          i - 1 and i      0; 1 + 2
between                 i                0 + 1 + 2
s*i + s - 1, the last   i and i + 1      0 + 1; 2
======================= ================ ====================

The last row of i - 1 and the first of i read the same two rows. One 2x2 convolution over the zero-padded map, with one
group of channels for each of last, first, between (times the same three along the columns), therefore gives every
value there is; what remains is to copy each to its pixels. Per pixel of the map, channel pair and scale 4 these are
36 multiplications in place of 144. Zero padding of the upsampled map is zero padding of the map.
"""
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Channel groups of the 2x2 convolution, whose window j lies on rows j - 1 and j.
_LAST, _FIRST, _BETWEEN = range(3)


def _sources(scale: int) -> list[tuple[int, int]]:
    """For each of the ``scale`` output rows of map row i: its group, and its window less i."""
    return [(_FIRST, 0), *[(_BETWEEN, 0)] * (scale - 2), (_LAST, 1)]


def _fold(weight: Tensor, groups: int) -> Tensor:
    """(out, ..., 3) taps on the upsampled map to (out, groups, ..., 2) taps on the map, along the last dimension."""
    w0, w1, w2 = weight.unbind(-1)
    pairs = [(w0 + w1, w2), (w0, w1 + w2), (torch.zeros_like(w0), w0 + w1 + w2)]  # last, first, between
    return torch.stack([torch.stack(pair, -1) for pair in pairs[:groups]], 1)


class _Spread(torch.autograd.Function):
    """Copies the values of the windows to their pixels. By hand, since autograd clones the gradient at each slice."""

    @staticmethod
    def forward(ctx, windows: Tensor, scale: int) -> Tensor:
        """(N, groups * groups * C, h + 1, w + 1) to (N, C, scale * h, scale * w)."""
        ctx.shape, ctx.scale = windows.shape, scale
        ctx.memory_format = torch.contiguous_format
        if windows.is_contiguous(memory_format=torch.channels_last):
            ctx.memory_format = torch.channels_last
        batch, channels, height, width = windows.shape
        size = batch, channels // min(scale, 3)**2, scale * (height - 1), scale * (width - 1)
        out = torch.empty(size, dtype=windows.dtype, device=windows.device, memory_format=ctx.memory_format)
        for pixels, values, _ in _pairs(out, windows, scale):
            pixels.copy_(values)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        grad_windows = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device,
                                   memory_format=ctx.memory_format).zero_()
        for pixels, values, is_first in _pairs(grad, grad_windows, ctx.scale):
            if is_first:
                values.copy_(pixels)
            else:
                values.add_(pixels)
        return grad_windows, None


def _pairs(out: Tensor, windows: Tensor, scale: int):
    """Views of one shape: of ``out``, of where its values come from, and whether those are met for the first time."""
    groups = min(scale, 3)
    height, width = (size - 1 for size in windows.shape[-2:])
    out = out.unflatten(3, (width, scale)).unflatten(2, (height, scale))
    windows = windows.unflatten(1, (groups, groups, -1))
    met = set()
    for a, (row_group, down) in enumerate(_sources(scale)):
        for b, (column_group, right) in enumerate(_sources(scale)):
            values = windows[:, row_group, column_group, :, down:down + height, right:right + width]
            yield out[:, :, :, a, :, b], values, (row_group, column_group) not in met
            met.add((row_group, column_group))


def upsampled_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, scale: int,
                     activation: Callable[[Tensor], Tensor] = lambda value: value) -> Tensor:
    """``activation(conv2d(interpolate(x, scale_factor=scale, mode='nearest'), weight, bias, padding=1))``.

    Differentiable once in ``x``, ``weight`` and ``bias``. Equal but for the order of additions.

    Args:
        x (Tensor): (N, C, h, w).
        weight (Tensor): (out, C, 3, 3).
        bias (Tensor | None): (out, ); None adds nothing.
        scale (int): 2 or more.
        activation (Callable): Of single values; computed before these are copied, so on 9 and not on 16 a map pixel
            at scale 4.

    Returns:
        Tensor: (N, out, scale * h, scale * w), of the memory format of ``x``.

    Raises:
        ValueError: ``scale`` below 2, or a kernel that is not 3x3.
    """
    if scale < 2:
        raise ValueError(f'scale: expected a whole number of 2 or more, got {scale!r}')
    if weight.shape[-2:] != (3, 3):
        raise ValueError(f'weight: expected a 3x3 kernel (out, in, 3, 3), got {tuple(weight.shape)}')
    groups = min(scale, 3)
    # Sums of weights, by additions: a product would be rounded to bfloat16 under autocast.
    folded = _fold(_fold(weight, groups).transpose(-1, -2), groups).transpose(-1, -2)  # out, rows, columns, in, 2, 2
    folded = folded.permute(1, 2, 0, 3, 4, 5).flatten(0, 2)
    if x.is_contiguous(memory_format=torch.channels_last):
        folded = folded.contiguous(memory_format=torch.channels_last)
    repeated = None if bias is None else bias.repeat(groups**2)
    return _Spread.apply(activation(F.conv2d(x, folded, repeated, padding=1)), scale)
