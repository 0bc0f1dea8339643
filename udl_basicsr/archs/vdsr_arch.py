"""VDSR: Kim, Lee and Lee, Accurate Image Super-Resolution Using Very Deep Convolutional Networks, CVPR 2016.

What differs from the paper: the bicubic interpolation that the paper does beforehand, in MATLAB, is the first step of
the network (torch's bicubic), so that it takes the low-resolution image as every other network does. One network
serves one scale; the paper also trains one for all. RGB by default, the paper's luminance with one channel. Nothing
is multiplied: the paper's adjustable gradient clipping belongs to the training (``train.grad_clip``).
"""
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from .common import bicubic, check_arguments, check_same_channels, he_init


@ARCH_REGISTRY.register()
class VDSR(nn.Module):
    """3x3 convolutions with ReLU on the interpolated image, whose output is added to that image.

    Args:
        num_in_ch (int): Channels of the input, 3 for RGB or 1 for luminance.
        num_out_ch (int): Channels of the output, those of the input.
        num_feat (int): Channels between the convolutions.
        num_conv (int): Convolutions in all, the first and the last included.
        upscale (int): 2, 3 or 4.

    Raises:
        ValueError: An argument that no such network can be built with.
    """

    default_tap = 'conv_last'

    def __init__(self, num_in_ch: int = 3, num_out_ch: int = 3, num_feat: int = 64, num_conv: int = 20,
                 upscale: int = 4):
        super().__init__()
        check_arguments('VDSR', upscale, num_in_ch=num_in_ch, num_out_ch=num_out_ch, num_feat=num_feat,
                        num_conv=num_conv)
        check_same_channels('VDSR', num_in_ch, num_out_ch)
        if num_conv < 2:
            raise ValueError(f'VDSR: num_conv: expected at least the first and the last, 2, got {num_conv}')
        self.upscale = upscale
        body = []
        for index in range(num_conv - 1):
            body += [nn.Conv2d(num_feat if index else num_in_ch, num_feat, 3, 1, 1), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*body)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, 1, 1)
        he_init(self)

    def forward(self, lq: Tensor) -> Tensor:
        """(N, C, h, w) in [0, 1] to (N, C, upscale*h, upscale*w)."""
        image = bicubic(lq, self.upscale)
        return image + self.conv_last(self.body(image))
