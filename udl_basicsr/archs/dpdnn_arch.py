"""DPDNN: Dong, Wang, Yin, Shi, Wu and Lu, Denoising Prior Driven Deep Neural Network for Image Restoration, TPAMI 2019.

Six iterations of x <- x - delta (A*(A x - y) + eta (x - f(x))), from the bicubic image; f is one U-net for all
iterations, delta and eta are learned for each. The U-net is that of the authors' TensorFlow code (WeishengDong/DPDNN):
blocks of three convolutions and one of stride 2, 64 channels, a transposed convolution up, 1x1 fusion with the skip
and four convolutions; delta = 0.1 and eta = 0.9 at the start; Xavier and (up) He initialisation.

What differs. The degradation: that code takes bicubic interpolation for both A and its adjoint, which it is not. Here
A is the antialiased bicubic downsampling that the training images were made with, and A* its exact adjoint when an
LR pixel weighs as much as the scale**2 pixels that it covers: A* = scale**2 times the transpose, which away from the
border *is* bicubic interpolation (a = -0.5), so delta keeps its meaning. At the border weights are
renormalised (as in Pillow and torch; MATLAB mirrors the image). Sizes: any, the U-net's upsampled maps are cut to
the skip's size. RGB by default, the paper's luminance with one channel. The bicubic start is made inside.
"""
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from .common import bicubic, check_arguments, check_same_channels, start_bias


class BicubicDownsampling(nn.Module):
    """A: bicubic downsampling (a = -0.5) with antialiasing, by a whole number; ``adjoint`` is A*.

    Args:
        num_ch (int): Channels of the images.
        scale (int): Downsampling factor.
    """

    kernel: Tensor

    def __init__(self, num_ch: int, scale: int):
        super().__init__()
        self.num_ch, self.scale = num_ch, scale
        size = 4 * scale - scale % 2  # with an odd factor the outermost taps fall on the zeros of the kernel
        self.padding = (size - scale) // 2
        t = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2).abs() / scale
        taps = torch.where(t <= 1, 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2)
        taps = taps / taps.sum()
        kernel = torch.outer(taps, taps).expand(num_ch, 1, size, size)
        self.register_buffer('kernel', kernel.contiguous().to(torch.get_default_dtype()), persistent=False)

    def _coverage(self, lq: Tensor) -> Tensor:
        """Sum of the weights that lie inside the image, (1, 1, h, w): 1 but near the border."""
        ones = lq.new_ones(1, 1, self.scale * lq.shape[2], self.scale * lq.shape[3])
        return F.conv2d(ones, self.kernel[:1], stride=self.scale, padding=self.padding)

    def forward(self, x: Tensor) -> Tensor:
        """A x: (N, C, scale*h, scale*w) to (N, C, h, w)."""
        lq = F.conv2d(x, self.kernel, stride=self.scale, padding=self.padding, groups=self.num_ch)
        return lq / self._coverage(lq)

    def adjoint(self, lq: Tensor) -> Tensor:
        """A* y: (N, C, h, w) to (N, C, scale*h, scale*w), with scale**2 <A x, y> = <x, A* y>."""
        return self.scale**2 * F.conv_transpose2d(
            lq / self._coverage(lq), self.kernel, stride=self.scale, padding=self.padding, groups=self.num_ch)


def _convs(num_in: int, num_feat: int, count: int) -> nn.Sequential:
    layers = []
    for index in range(count):
        layers += [nn.Conv2d(num_feat if index else num_in, num_feat, 3, 1, 1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class _Encoder(nn.Module):

    def __init__(self, num_in: int, num_feat: int):
        super().__init__()
        self.body = _convs(num_in, num_feat, 3)
        self.down = nn.Sequential(nn.Conv2d(num_feat, num_feat, 3, 2, 1), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        skip = self.body(x)
        return skip, self.down(skip)


class _Decoder(nn.Module):

    def __init__(self, num_feat: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(num_feat, num_feat, 3, 2, 1, output_padding=1, bias=False)
        self.fuse = nn.Sequential(nn.Conv2d(2 * num_feat, num_feat, 1), nn.ReLU(inplace=True))
        self.body = _convs(num_feat, num_feat, 4)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        up = self.up(x)[..., :skip.shape[2], :skip.shape[3]]  # one row too many where the skip has an odd height
        return self.body(self.fuse(torch.cat([up, skip], dim=1)))


class _Denoiser(nn.Module):
    """f(x) - x by a U-net that halves the size ``num_level`` times."""

    def __init__(self, num_ch: int, num_feat: int, num_level: int):
        super().__init__()
        self.encoders = nn.ModuleList(_Encoder(num_feat if level else num_ch, num_feat) for level in range(num_level))
        self.bottom = _convs(num_feat, num_feat, 1)
        self.decoders = nn.ModuleList(_Decoder(num_feat) for _ in range(num_level))
        self.conv_last = nn.Conv2d(num_feat, num_ch, 3, 1, 1)
        for module in self.modules():
            if isinstance(module, nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                start_bias(module)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for encoder in self.encoders:
            skip, x = encoder(x)
            skips.append(skip)
        x = self.bottom(x)
        for decoder in self.decoders:
            x = decoder(x, skips.pop())
        return self.conv_last(x)


@ARCH_REGISTRY.register()
class DPDNN(nn.Module):
    """Denoising prior driven network: gradient steps between the observation and a learned denoiser.

    Args:
        num_in_ch (int): Channels of the input, 3 for RGB or 1 for luminance.
        num_out_ch (int): Channels of the output, those of the input.
        num_feat (int): Channels of the denoiser.
        num_level (int): How often the denoiser halves the size.
        num_iter (int): Iterations.
        upscale (int): 2, 3 or 4.

    Raises:
        ValueError: An argument that no such network can be built with.
    """

    default_tap = 'denoiser.conv_last'

    def __init__(self, num_in_ch: int = 3, num_out_ch: int = 3, num_feat: int = 64, num_level: int = 4,
                 num_iter: int = 6, upscale: int = 4):
        super().__init__()
        check_arguments('DPDNN', upscale, num_in_ch=num_in_ch, num_out_ch=num_out_ch, num_feat=num_feat,
                        num_level=num_level, num_iter=num_iter)
        check_same_channels('DPDNN', num_in_ch, num_out_ch)
        self.upscale = upscale
        self.degradation = BicubicDownsampling(num_in_ch, upscale)
        self.denoiser = _Denoiser(num_in_ch, num_feat, num_level)
        self.delta = nn.Parameter(torch.full((num_iter, ), 0.1))
        self.eta = nn.Parameter(torch.full((num_iter, ), 0.9))

    def forward(self, lq: Tensor) -> Tensor:
        """(N, C, h, w) in [0, 1] to (N, C, upscale*h, upscale*w)."""
        x = bicubic(lq, self.upscale)
        for delta, eta in zip(self.delta.unbind(), self.eta.unbind(), strict=True):
            fidelity = self.degradation.adjoint(self.degradation(x) - lq)
            x = x - delta * (fidelity - eta * self.denoiser(x))  # the denoiser's output is f(x) - x
        return x
