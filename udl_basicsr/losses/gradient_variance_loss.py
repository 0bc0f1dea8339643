"""The gradient variance loss. The formula is in ``functional.py``.

Abrahamyan et al., Gradient Variance Loss for Structure-Enhanced Image Super-Resolution, ICASSP 2022.
"""
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor

from . import functional as F
from .base import WeightedLoss, check_shapes, full_precision


@LOSS_REGISTRY.register()
class GradientVarianceLoss(WeightedLoss):
    """GV: squared difference of the variances of the Sobel maps, patch by patch, x plus y (GV paper, eq. 1-2).

    It stands beside a pixel loss. The paper takes ``loss_weight=0.01`` with pixels in [0, 1] (the loss grows with the
    fourth power of the range) and ``patch_size`` 8 at x2, 16 at x3 and x4. What differs from the released code: pixels
    past the border repeat the border, where the released code has zeros and so an edge that is in no image.

    Args:
        loss_weight (float): Weight of the loss.
        patch_size (int): n, side of the patches. Rows and columns that fill no patch are left out; see
            :func:`~udl_basicsr.losses.functional.gradient_variance_maps`.
        reduction (str): ``'none'``, ``'mean'`` or ``'sum'``, over images and patches.

    Raises:
        ValueError: ``patch_size`` below 2.
    """

    def __init__(self, loss_weight: float = 1.0, patch_size: int = 8, reduction: str = 'mean'):
        super().__init__(loss_weight, reduction)
        F.check_patch_size(patch_size)
        self.patch_size = patch_size

    @full_precision
    def forward(self, pred: Tensor, target: Tensor, **kwargs) -> Tensor:
        """
        Args:
            pred (Tensor): f(y), (N, C, H, W), in [0, 1], gray or RGB.
            target (Tensor): x, same shape and range.

        Returns:
            Tensor: A scalar, or (N, 1, H // n, W // n) with ``reduction='none'``. float32 whatever the autocast.

        Raises:
            ValueError: The shapes differ, the patch is larger than the image, or neither 1 nor 3 channels.
        """
        check_shapes(pred=pred, target=target)
        difference = (F.gradient_variance_maps(pred, self.patch_size)
                      - F.gradient_variance_maps(target, self.patch_size))
        return self._reduce(difference.square().sum(dim=1, keepdim=True))
