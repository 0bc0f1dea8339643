"""CARN and CARN-M: Ahn, Kang and Sohn, Fast, Accurate, and Lightweight Super-Resolution with Cascading Residual
Network, ECCV 2018.

Layers and their names are those of the released weights (nmhkahn/CARN-pytorch, carn.pth and carn_m.pth). They serve
all scales and hold ``upsample.up2``, ``up3`` and ``up4``; one network here has the upsampler of its own scale alone,
so that leaving out the other two makes those weights load strictly. What differs: the mean that is subtracted and
added is held in buffers rather than in frozen weights of a convolution, so that every parameter has a gradient, and is
added in float32 whatever the autocast; with one channel it is the mean of the three. Initialisation is torch's, as in
the released code.
"""
from collections import OrderedDict
from collections.abc import Callable

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from .common import check_arguments

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)  # of the training images, RGB in [0, 1]
NUM_UNIT = 3  # residual blocks of a cascading block


def _body(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(body=nn.Sequential(*layers)))


class _MeanShift(nn.Module):
    """weight * x + bias per channel, with the shapes of the 1x1 convolution that the released weights have."""

    weight: Tensor
    bias: Tensor

    def __init__(self, num_ch: int, sign: int):
        super().__init__()
        mean = torch.tensor(DIV2K_MEAN)
        self.register_buffer('weight', torch.eye(num_ch).view(num_ch, num_ch, 1, 1))
        self.register_buffer('bias', sign * (mean if num_ch == 3 else mean.mean(0, keepdim=True)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[..., 0, 0].diagonal().view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


class _Residual(nn.Module):
    """relu(x + body(x))."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + x)


def _residual(num_feat: int) -> _Residual:
    return _Residual(nn.Conv2d(num_feat, num_feat, 3, 1, 1), nn.ReLU(inplace=True),
                     nn.Conv2d(num_feat, num_feat, 3, 1, 1))


def _efficient_residual(num_feat: int, num_group: int) -> _Residual:
    return _Residual(nn.Conv2d(num_feat, num_feat, 3, 1, 1, groups=num_group), nn.ReLU(inplace=True),
                     nn.Conv2d(num_feat, num_feat, 3, 1, 1, groups=num_group), nn.ReLU(inplace=True),
                     nn.Conv2d(num_feat, num_feat, 1))


class _Cascade(nn.Module):
    """Units b1, b2, ..., each reading the 1x1 fusion c1, c2, ... of all that came before (figure 2 of the paper).

    ``recursive``: one unit, b1, serves at every place.
    """

    def __init__(self, num_feat: int, num_unit: int, make_unit: Callable[[], nn.Module], recursive: bool = False):
        super().__init__()
        self._places = [('b1' if recursive else f'b{i}', f'c{i}') for i in range(1, num_unit + 1)]
        for name in dict.fromkeys(unit for unit, _ in self._places):
            self.add_module(name, make_unit())
        for index, (_, name) in enumerate(self._places):
            self.add_module(name, _body(nn.Conv2d((index + 2) * num_feat, num_feat, 1), nn.ReLU(inplace=True)))

    def forward(self, x: Tensor) -> Tensor:
        collected = x
        for unit, fusion in self._places:
            collected = torch.cat([collected, getattr(self, unit)(x)], dim=1)
            x = getattr(self, fusion)(collected)
        return x


def _upsampler(num_feat: int, upscale: int, num_group: int) -> nn.Sequential:
    layers = []
    for factor in (2, 2) if upscale == 4 else (upscale, ):
        layers += [nn.Conv2d(num_feat, factor**2 * num_feat, 3, 1, 1, groups=num_group), nn.ReLU(inplace=True),
                   nn.PixelShuffle(factor)]
    return nn.Sequential(OrderedDict({f'up{upscale}': _body(*layers)}))


class _CARN(_Cascade):
    """A cascade of cascading blocks between an entry and an upsampler."""

    default_tap = 'upsample'

    def __init__(self, num_in_ch: int, num_out_ch: int, num_feat: int, num_block: int, upscale: int,
                 make_unit: Callable[[], nn.Module], recursive: bool, num_group: int):
        name = type(self).__name__
        check_arguments(name, upscale, num_group=num_group, multiple_of=num_group, num_in_ch=num_in_ch,
                        num_out_ch=num_out_ch, num_feat=num_feat, num_block=num_block)
        for key, value in {'num_in_ch': num_in_ch, 'num_out_ch': num_out_ch}.items():
            if value not in (1, 3):
                raise ValueError(f'{name}: {key}: expected 3 (RGB) or 1, for which there is a mean, got {value}')
        super().__init__(num_feat, num_block, lambda: _Cascade(num_feat, NUM_UNIT, make_unit, recursive))
        self.sub_mean = nn.Sequential(OrderedDict(shifter=_MeanShift(num_in_ch, -1)))
        self.add_mean = nn.Sequential(OrderedDict(shifter=_MeanShift(num_out_ch, 1)))
        self.entry = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.upsample = _upsampler(num_feat, upscale, num_group)
        self.exit = nn.Conv2d(num_feat, num_out_ch, 3, 1, 1)

    def forward(self, lq: Tensor) -> Tensor:
        """(N, C, h, w) in [0, 1] to (N, C, upscale*h, upscale*w)."""
        features = super().forward(self.entry(self.sub_mean(lq)))
        return self.add_mean(self.exit(self.upsample(features)))


@ARCH_REGISTRY.register()
class CARN(_CARN):
    """Cascading residual network.

    Args:
        num_in_ch (int): Channels of the input, 3 for RGB or 1.
        num_out_ch (int): Channels of the output, 3 or 1.
        num_feat (int): Channels of every feature map.
        num_block (int): Cascading blocks, each of three residual blocks.
        upscale (int): 2, 3 or 4.

    Raises:
        ValueError: An argument that no such network can be built with.
    """

    def __init__(self, num_in_ch: int = 3, num_out_ch: int = 3, num_feat: int = 64, num_block: int = 3,
                 upscale: int = 4):
        super().__init__(num_in_ch, num_out_ch, num_feat, num_block, upscale,
                         make_unit=lambda: _residual(num_feat), recursive=False, num_group=1)


@ARCH_REGISTRY.register()
class CARN_M(_CARN):  # the paper's name is CARN-M; BasicSR registers a class under its own name
    """CARN with group convolutions, and with one residual block used three times in each cascading block.

    Args:
        num_in_ch (int): Channels of the input, 3 for RGB or 1.
        num_out_ch (int): Channels of the output, 3 or 1.
        num_feat (int): Channels of every feature map, a multiple of ``num_group``.
        num_block (int): Cascading blocks.
        num_group (int): Groups of the 3x3 convolutions, in the blocks and in the upsampler.
        upscale (int): 2, 3 or 4.

    Raises:
        ValueError: An argument that no such network can be built with.
    """

    def __init__(self, num_in_ch: int = 3, num_out_ch: int = 3, num_feat: int = 64, num_block: int = 3,
                 num_group: int = 4, upscale: int = 4):
        super().__init__(num_in_ch, num_out_ch, num_feat, num_block, upscale,
                         make_unit=lambda: _efficient_residual(num_feat, num_group), recursive=True,
                         num_group=num_group)
