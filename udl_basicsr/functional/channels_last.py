"""Gradients in channels_last that torch computes slowly on a CPU: to a convolution's weights, and of a pixel shuffle.

To a convolution's weights: With AVX2 alone (EPYC, Zen 3) oneDNN reaches 80 to 90 GFLOP/s in a convolution of
channels_last maps and in its gradient to the map, but 15 to 25 in the gradient to the weights. That gradient is a sum
of matrix products over the pixels. Here a block of rows is copied out at a time, so that it stays in the processor's
cache. With AVX-512 it is slow only where a convolution puts out few channels, such as an image: oneDNN computes sixteen
there. With AMX that holds in float32 alone; in bfloat16 oneDNN multiplies tiles, faster than the products here.

Of a pixel shuffle: torch gathers the gradient number by number. Here one copy takes all channels of one place within
the blocks; with few channels that is slower.
"""
import itertools

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_PIXELS = 768
"""Of a block. With 64 channels and a 3x3 kernel the copies of a block take 600 kB."""
_FEW = 7
"""The most channels an image or a head puts out. With more, blocks are faster, and with AVX-512 oneDNN is."""
_LEAST_CHANNELS, _LEAST = 32, 3e6
"""The map's channels; and channels² · pixels. Below either, oneDNN finds all it needs in the cache and is as fast. A
pixel shuffle needs ``_LEAST_CHANNELS`` in its result, of any size."""


def weight_gradient(x: Tensor, grad: Tensor, kernel: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """The gradient of ``conv2d(x, weight, padding=padding)`` to ``weight``; torch's but for the order of additions.

    Args:
        x (Tensor): (N, C, H, W), fastest in channels_last.
        grad (Tensor): (N, out, H', W'), the gradient to the convolution's output. In bfloat16 ``out`` should be at most
            7: only then are the sums float32.
        kernel (tuple): Rows and columns of the kernel, (k, l).
        padding (tuple): Zeros above and below, and left and right, of the map.

    Returns:
        Tensor: (out, C, k, l).
    """
    maps, slopes = (value.permute(0, 2, 3, 1).contiguous() for value in (x, grad))
    compute = _of_few_channels if grad.shape[1] <= _FEW else _of_blocks
    return compute(maps, slopes, *kernel, *padding)


def _of_blocks(maps: Tensor, slopes: Tensor, k: int, taps: int, above: int, left: int) -> Tensor:
    """With the taps of a kernel's row side by side, so that one product takes them together."""
    (height, width, channels), (rows, columns, out) = maps.shape[1:], slopes.shape[1:]
    step = max(1, _PIXELS // columns)
    total = maps.new_zeros(k, out, taps * channels)
    block = maps.new_zeros(step + k - 1, columns, taps * channels)  # what lies in the padding stays 0
    for picture, slope in zip(maps, slopes, strict=True):
        for top in range(0, rows, step):
            first = max(top - above, 0)
            last = max(first, min(top + step + k - 1 - above, height))  # none where the block lies in the padding
            for tap in range(taps):
                begin = max(left - tap, 0)
                end = max(begin, min(width + left - tap, columns))
                block[:last - first, begin:end, tap * channels:(tap + 1) * channels] = picture[
                    first:last, begin + tap - left:end + tap - left]
            for tap in range(k):
                begin, end = max(top, above - tap), min(top + step, rows, height + above - tap)
                if begin < end:
                    at = begin + tap - above - first
                    total[tap].addmm_(slope[begin:end].view(-1, out).t(),
                                      block[at:at + end - begin].view(-1, taps * channels))
    return total.view(k, out, taps, channels).permute(1, 3, 0, 2)


def _of_few_channels(maps: Tensor, slopes: Tensor, k: int, taps: int, above: int, left: int) -> Tensor:
    """With the gradient moved to each tap in place of the map, which is larger."""
    (height, width, channels), out = maps.shape[1:], slopes.shape[-1]
    total = maps.new_zeros(k * taps * out, channels, dtype=torch.promote_types(maps.dtype, torch.float32))
    wide = F.pad(slopes, (0, 0, *[taps - 1 - left] * 2, *[k - 1 - above] * 2))
    for picture, slope in zip(maps, wide, strict=True):
        moved = torch.stack([slope[a:a + height, b:b + width]
                             for a in reversed(range(k)) for b in reversed(range(taps))], 2)
        total += moved.view(height * width, -1).t() @ picture.view(height * width, channels)
    return total.view(k, taps, out, channels).permute(2, 3, 0, 1).to(maps.dtype)


class _Convolution(torch.autograd.Function):
    """torch's, but for the gradient to the weights."""

    @staticmethod
    @torch.amp.custom_fwd(device_type='cpu')
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return torch.conv2d(x, weight, bias, padding=padding)

    @staticmethod
    @torch.amp.custom_bwd(device_type='cpu')
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad[:3]

        def by_torch(*mask: bool):
            return torch.ops.aten.convolution_backward(grad, x, weight, [len(weight)], [1, 1], ctx.padding, [1, 1],
                                                       False, [0, 0], 1, mask)

        if torch.is_grad_enabled():  # to be differentiated again
            return *by_torch(to_x, to_weight, to_bias), None
        grad = grad.contiguous(memory_format=torch.channels_last)
        return (by_torch(True, False, False)[0] if to_x else None,
                weight_gradient(x, grad, weight.shape[-2:], ctx.padding) if to_weight else None,
                grad.sum((0, 2, 3)) if to_bias else None, None)


class _PixelShuffle(torch.autograd.Function):
    """torch's; its gradient is computed otherwise, and equal bit for bit."""

    @staticmethod
    def forward(x: Tensor, factor: int) -> Tensor:
        return torch.pixel_shuffle(x, factor)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def jvp(ctx, tangent: Tensor, _: None) -> Tensor:
        return torch.pixel_shuffle(tangent, ctx.factor)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        r = ctx.factor
        # to be differentiated again, or not in channels_last
        if torch.is_grad_enabled() or not grad.is_contiguous(memory_format=torch.channels_last):
            return torch.pixel_unshuffle(grad, r), None
        batch, channels, height, width = grad.shape
        pixels = grad.permute(0, 2, 3, 1).view(batch, height // r, r, width // r, r, channels)
        maps = grad.new_empty(batch, height // r, width // r, channels, r, r)
        for i, j in itertools.product(range(r), repeat=2):
            maps[..., i, j] = pixels[:, :, i, :, j]
        return maps.view(batch, height // r, width // r, -1).permute(0, 3, 1, 2), None


class FastGradients(TorchFunctionMode):
    """While active, channels_last maps on the CPU get the gradients of this module where they are faster.

    Convolutions: with AVX2 alone all in float32; with AVX-512 those to an image, in float32, and in bfloat16 unless
    there are tiles. torch computes all others: those of small maps, with a 1x1 kernel, a stride, groups or a dilation.
    Pixel shuffles: those that put out 32 channels or more.

    Args:
        vectors (str): The processor's, as ``torch.backends.cpu.get_cpu_capability`` names them.
        tiles (bool): Whether it multiplies tiles of bfloat16 (AMX).
    """

    def __init__(self, vectors: str, tiles: bool = False):
        super().__init__()
        self.pays = vectors in ('AVX2', 'AVX512')
        self.all_in_float32 = vectors == 'AVX2'
        self.image_dtypes = set()
        if vectors == 'AVX512':
            self.image_dtypes = {torch.float32} if tiles else {torch.float32, torch.bfloat16}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.conv2d:
            return self._conv2d(*args, **(kwargs or {}))
        if func is torch.pixel_shuffle:
            return self._pixel_shuffle(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _pixel_shuffle(self, input: Tensor, upscale_factor: int) -> Tensor:
        ours = (self.pays and input.requires_grad and torch.is_grad_enabled() and input.dim() == 4
                and input.device.type == 'cpu' and input.is_contiguous(memory_format=torch.channels_last)
                and input.numel() and input.shape[1] >= _LEAST_CHANNELS * upscale_factor**2)
        return (_PixelShuffle.apply if ours else torch.pixel_shuffle)(input, upscale_factor)

    def _conv2d(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, stride=1, padding=0, dilation=1,
                groups=1):
        ours = (weight.requires_grad and torch.is_grad_enabled() and input.dim() == 4 and input.device.type == 'cpu'
                and self._takes(dtype := _computed_in(input), len(weight))
                and groups == 1 and not isinstance(padding, str) and {*_pair(stride), *_pair(dilation)} == {1}
                and input.is_contiguous(memory_format=torch.channels_last) and max(weight.shape[-2:]) > 1
                and (channels := input.shape[1]) >= _LEAST_CHANNELS
                and channels ** 2 * input.shape[2:].numel() >= _LEAST)
        if ours and (dtype == weight.dtype or torch.is_autocast_enabled('cpu')):
            values = (value if value is None else value.to(dtype) for value in (input, weight, bias))
            return _Convolution.apply(*values, _pair(padding))
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)

    def _takes(self, dtype: torch.dtype, out: int) -> bool:
        if self.all_in_float32:
            return dtype == torch.float32
        return out <= _FEW and dtype in self.image_dtypes


def _computed_in(value: Tensor) -> torch.dtype:
    """What torch computes a convolution in. Autocast does not see ``_Convolution``, and leaves float64 as it is."""
    in_short = torch.is_autocast_enabled('cpu') and value.dtype != torch.float64
    return torch.get_autocast_dtype('cpu') if in_short else value.dtype


def _pair(value) -> tuple[int, int]:
    """Of one number or two: torch takes the number alone and in a sequence."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
