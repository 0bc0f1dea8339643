"""ESPCN: Shi et al., Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional
Neural Network, CVPR 2016.

The image network of the paper: 5x5 to 64 channels, 3x3 to 32, 3x3 to C*r*r, pixel shuffle; tanh after the first two,
which the paper found better than ReLU. What differs: RGB by default, the paper's luminance with one channel; and
Xavier initialisation with the gain of tanh, of which the paper says nothing.
"""
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from .common import check_arguments, start_bias


@ARCH_REGISTRY.register()
class ESPCN(nn.Module):
    """Three convolutions at low resolution and a pixel shuffle, without any skip.

    Args:
        num_in_ch (int): Channels of the input, 3 for RGB or 1 for luminance.
        num_out_ch (int): Channels of the output.
        num_feat (int): Channels after the first convolution; half as many after the second. Even.
        upscale (int): 2, 3 or 4.

    Raises:
        ValueError: An argument that no such network can be built with.
    """

    default_tap = 'conv_last'

    def __init__(self, num_in_ch: int = 3, num_out_ch: int = 3, num_feat: int = 64, upscale: int = 4):
        super().__init__()
        check_arguments('ESPCN', upscale, multiple_of=2, num_in_ch=num_in_ch, num_out_ch=num_out_ch,
                        num_feat=num_feat)
        first, second = nn.Conv2d(num_in_ch, num_feat, 5, 1, 2), nn.Conv2d(num_feat, num_feat // 2, 3, 1, 1)
        self.body = nn.Sequential(first, nn.Tanh(), second, nn.Tanh())
        self.conv_last = nn.Conv2d(num_feat // 2, num_out_ch * upscale**2, 3, 1, 1)
        self.pixel_shuffle = nn.PixelShuffle(upscale)
        for conv in (first, second, self.conv_last):
            gain = 1. if conv is self.conv_last else nn.init.calculate_gain('tanh')
            nn.init.xavier_normal_(conv.weight, gain)
            start_bias(conv)

    def forward(self, lq: Tensor) -> Tensor:
        """(N, C, h, w) in [0, 1] to (N, C, upscale*h, upscale*w)."""
        return self.pixel_shuffle(self.conv_last(self.body(lq)))
