"""The sigma branch, a second kind of head for UncertaintyNet.

He and Cheng, Revisiting l1 Loss in Super-Resolution: A Probabilistic View and Beyond, 2022, figure 3.
"""
import itertools
import math

from basicsr.archs.arch_util import Upsample
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from .common import start_bias

_FIRST_LOGIT = -3.


@ARCH_REGISTRY.register()
class SigmaHead(nn.Module):
    """Four times conv3x3 PReLU at LR, pixel-shuffle upsampling, conv3x3, sigmoid.

    As the head of an UncertaintyNet it makes its second output sigma, in the unit of the pixels, and not log_scale.
    It shares the features: the gradient of its loss goes on into the network that super-resolves (figure 3; the paper
    calls it multi-task learning, and table 1 gains by it). What :class:`~udl_basicsr.losses.SigmaLoss` holds back is
    the way through the image.

    As printed: four Conv+PReLU, 160 channels, the sigmoid, PixelShuffle "coupled with" a 3x3 convolution. Ours, since
    nothing is printed: kernels of 3x3, where the branch begins (the tap), and the first value of the sigmoid.

    Args:
        num_in_ch (int): Channels of the tapped features.
        num_out_ch (int): Channels of sigma, those of the image.
        scale (int): From the tapped features' size to the image's: 1, 3 or a power of 2.
        num_feat (int): Width; 160 as printed (section 4.3).

    Raises:
        ValueError: Another ``scale``.
    """

    def __init__(self, num_in_ch: int, num_out_ch: int, scale: int, num_feat: int = 160):
        super().__init__()
        widths = [num_in_ch, num_feat, num_feat, num_feat, num_feat]
        self.body = nn.Sequential(*(layer for before, after in itertools.pairwise(widths)
                                    for layer in (nn.Conv2d(before, after, 3, 1, 1), nn.PReLU())))
        self.upsample = Upsample(scale, num_feat)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, 1, 1)
        # Ours: the first sigma is then that of a usual error, 12 grey levels. From sigmoid(0), 128 grey levels, the way
        # down is so long that sigma runs past it to 1e-6, where the sigmoid has no slope left to come back by.
        start_bias(self.conv_last, _FIRST_LOGIT)

    def forward(self, features: Tensor) -> Tensor:
        """(N, num_in_ch, h, w) features to sigma, (N, num_out_ch, scale*h, scale*w), in [0, 1] like the pixels."""
        return self.conv_last(self.upsample(self.body(features))).sigmoid()

    @staticmethod
    def to_log_scale(sigma: Tensor) -> Tensor:
        """s = ln(255 sigma): sigma is trained to be |x - f|, whose mean under a Laplace density is its scale.

        Sigmoid may reach 0, of which there is no logarithm; s ends at -2, an eighth of a grey level.
        """
        return (255 * sigma).clamp_min(math.exp(-2.)).log()
