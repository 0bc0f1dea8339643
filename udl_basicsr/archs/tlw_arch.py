"""The weighting network of TLW (Mellatshahi and Kasaei, arXiv 2301.10575, section III-B)."""
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from udl_basicsr.functional.tlw import fixed_sum


@ARCH_REGISTRY.register()
class TLWNet(nn.Module):
    """Where the loss is to look: convolutions 7x7, 5x5 and 3x3 with batch norm and ReLU, 3x3, sigmoid, FixedSum.

    As printed: four convolutions, ReLU after the first three, FixedSum. As released: their sizes, 64 channels, batch
    norm, the sigmoid, and FixedSum over each channel by itself.

    Args:
        num_in_ch (int): Channels of an image.
        num_feat (int): Channels between the convolutions.
    """

    def __init__(self, num_in_ch: int = 3, num_feat: int = 64):
        super().__init__()
        layers, channels = [], 2 * num_in_ch
        for size in (7, 5, 3):
            # without bias: the batch norm that follows would take it away again
            layers += [nn.Conv2d(channels, num_feat, size, 1, size // 2, bias=False), nn.BatchNorm2d(num_feat),
                       nn.ReLU(inplace=True)]
            channels = num_feat
        self.body = nn.Sequential(*layers, nn.Conv2d(num_feat, num_in_ch, 3, 1, 1))

    def forward(self, gt: Tensor, pred: Tensor, k: float | Tensor) -> Tensor:
        """
        Args:
            gt (Tensor): x, (N, C, H, W), in [0, 1].
            pred (Tensor): f(y), same shape and range.
            k (float | Tensor): Mean of the weights of each image and channel, in [0, 1]; as a tensor (N, 1, 1, 1).

        Returns:
            Tensor: w, (N, C, H, W), in [0, 1], at least float32 whatever the autocast.
        """
        logits = self.body(torch.cat([gt, pred], dim=1))
        return fixed_sum(torch.sigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32))), k)
