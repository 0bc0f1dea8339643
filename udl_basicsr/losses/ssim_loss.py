"""SSIM as a loss. The formula is in ``functional.losses``.

Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, IEEE TIP 2004.
"""
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor

from udl_basicsr.functional import losses as F

from .base import WeightedLoss, check_shapes, full_precision


@LOSS_REGISTRY.register()
class SSIMLoss(WeightedLoss):
    """1 - SSIM, per channel of the image and where the 11 x 11 window fits into it; alone or beside a pixel loss.

    BasicSR's metric ``calculate_ssim`` is the same formula on 0-255 pixels, by ``test_y_channel`` on luma.

    Args:
        loss_weight (float): Weight of the loss.
        reduction (str): ``'none'``, ``'mean'`` or ``'sum'``.
    """

    @full_precision
    def forward(self, pred: Tensor, target: Tensor, **kwargs) -> Tensor:
        """
        Args:
            pred (Tensor): f(y), (N, C, H, W), in [0, 1]; values outside are taken as they are.
            target (Tensor): x, same shape and range.

        Returns:
            Tensor: A scalar in [0, 2], or (N, C, H - 10, W - 10) with ``reduction='none'``. float32 whatever the
            autocast.

        Raises:
            ValueError: The shapes differ, or a side is smaller than 11 pixels.
        """
        check_shapes(pred=pred, target=target)
        return self._reduce(1 - F.ssim_map(pred, target))
