"""IDN: Hui, Wang and Gao, Fast and Accurate Single Image Super-Resolution via Information Distillation Network,
CVPR 2018.

Layers as in the paper and its released definition (Zheng222/IDN-Caffe): D3 = 64, d = 16, s = 4, LeakyReLU 0.05, four
groups in the second and the fifth convolution of a block, a 17x17 transposed convolution for the residual of the
bicubic image. What differs: RGB by default, the paper's luminance with one channel; torch's bicubic in place of
MATLAB's; and the whole image is put out. The released network lacks the first upscale - 1 rows and columns, having
scale * (h - 1) + 1 of them with the kernel centred on the last pixel that belongs to a low-resolution one; here the
kernel sits at the same place, and those rows are computed too.
"""
import math

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from .common import bicubic, check_arguments, check_same_channels, he_init, start_bias

SLOPE = 0.05
KERNEL_SIZE = 17  # of the transposed convolution


def _conv(num_in: int, num_out: int, size: int = 3, groups: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(num_in, num_out, size, 1, size // 2, groups=groups), nn.LeakyReLU(SLOPE, inplace=True)]


class _DistillationBlock(nn.Module):
    """Enhancement unit and 1x1 compression (section 3.2): a quarter of what three convolutions find is kept as it is,
    the rest goes through three more, and both are added to the input."""

    def __init__(self, num_feat: int):
        super().__init__()
        d = num_feat // 4
        self.sizes = [d, num_feat - d]
        self.above = nn.Sequential(*_conv(num_feat, num_feat - d), *_conv(num_feat - d, num_feat - 2 * d, groups=4),
                                   *_conv(num_feat - 2 * d, num_feat))
        self.below = nn.Sequential(*_conv(num_feat - d, num_feat), *_conv(num_feat, num_feat - d, groups=4),
                                   *_conv(num_feat - d, num_feat + d))
        self.compress = nn.Sequential(*_conv(num_feat + d, num_feat, size=1))

    def forward(self, x: Tensor) -> Tensor:
        short, rest = self.above(x).split(self.sizes, dim=1)
        return self.compress(torch.cat([x, short], dim=1) + self.below(rest))


class _TransposedConv(nn.Module):
    """17x17 transposed convolution whose kernel for LR pixel i is centred at HR pixel scale * i + scale - 1."""

    def __init__(self, num_feat: int, num_out_ch: int, scale: int):
        super().__init__()
        self.surplus = scale - 1
        self.conv = nn.ConvTranspose2d(num_feat, num_out_ch, KERNEL_SIZE, scale, KERNEL_SIZE // 2 - self.surplus)
        # He's rule for what one output pixel adds up: the kernels of KERNEL_SIZE**2 / scale**2 input pixels.
        nn.init.normal_(self.conv.weight, std=math.sqrt(2 / (num_feat * (KERNEL_SIZE / scale)**2)))
        start_bias(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[..., :-self.surplus, :-self.surplus]


@ARCH_REGISTRY.register()
class IDN(nn.Module):
    """Information distillation network.

    Args:
        num_in_ch (int): Channels of the input, 3 for RGB or 1 for luminance.
        num_out_ch (int): Channels of the output, those of the input.
        num_feat (int): D3, channels between the blocks, a multiple of 16; d = num_feat / 4.
        num_block (int): Distillation blocks.
        upscale (int): 2, 3 or 4.

    Raises:
        ValueError: An argument that no such network can be built with.
    """

    default_tap = 'upsample'

    def __init__(self, num_in_ch: int = 3, num_out_ch: int = 3, num_feat: int = 64, num_block: int = 4,
                 upscale: int = 4):
        super().__init__()
        # four groups of d channels fewer
        check_arguments('IDN', upscale, multiple_of=16, num_in_ch=num_in_ch, num_out_ch=num_out_ch,
                        num_feat=num_feat, num_block=num_block)
        check_same_channels('IDN', num_in_ch, num_out_ch)
        self.upscale = upscale
        self.extract = nn.Sequential(*_conv(num_in_ch, num_feat), *_conv(num_feat, num_feat))
        self.body = nn.Sequential(*(_DistillationBlock(num_feat) for _ in range(num_block)))
        he_init(self, SLOPE)
        self.upsample = _TransposedConv(num_feat, num_out_ch, upscale)

    def forward(self, lq: Tensor) -> Tensor:
        """(N, C, h, w) in [0, 1] to (N, C, upscale*h, upscale*w)."""
        return bicubic(lq, self.upscale) + self.upsample(self.body(self.extract(lq)))
