"""One uncertainty for all pixels: the baseline of He and Cheng, Revisiting l1 Loss in Super-Resolution, table 7.

There, networks without a sigma branch have "their average fitting error [...] calculated on the training dataset". The
likelihood of a Laplace distribution with one scale for all pixels has its optimum at just that mean, and its gradient
to the image is that of L1 times a number. So in stage ``esu`` with EULoss, s follows the mean error of the training
set, and the image is trained with L1 as far as Adam is concerned, which divides numbers out.
"""
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn


@ARCH_REGISTRY.register()
class ConstantHead(nn.Module):
    """s is one number, which is learned.

    Args:
        num_in_ch (int): Channels of the tapped features, which are not looked at.
        num_out_ch (int): Channels of s, those of the image.
        scale (int): From the tapped features' size to the image's.
    """

    def __init__(self, num_in_ch: int, num_out_ch: int, scale: int):
        super().__init__()
        self.num_out_ch, self.scale = num_out_ch, scale
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        """(N, num_in_ch, h, w) features to s, (N, num_out_ch, scale*h, scale*w), in 0-255 units."""
        number, _, height, width = features.shape
        # A sum, since torch's counter of operations stumbles over what is but a view of a parameter. In bfloat16, whose
        # steps are that wide here, the scale that is learned was 0.7 % off.
        return self.log_scale + features.new_zeros(number, self.num_out_ch, self.scale * height, self.scale * width,
                                                   dtype=torch.promote_types(features.dtype, torch.float32))
