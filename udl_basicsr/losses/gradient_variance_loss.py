"""The gradient variance loss. The formula is in ``functional.losses``.

Abrahamyan et al., Gradient Variance Loss for Structure-Enhanced Image Super-Resolution, ICASSP 2022.
"""
import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor

from udl_basicsr.functional import losses as F

from .base import WeightedLoss, check_shapes, full_precision

NORMS = ('mse', 'l2')


@LOSS_REGISTRY.register()
class GradientVarianceLoss(WeightedLoss):
    """GV: distance of the variances of the Sobel maps, patch by patch, along x plus along y (GV paper, section 3).

    It stands beside a pixel loss. As printed: gray, Sobel, unbiased variances, patches of 8 at x2 and of 16 at x3 and
    x4. Open in the paper: the weight (released 0.01, for pixels in [0, 1]; the loss grows with the fourth power of the
    range, ``norm='l2'`` with the second), the border, the weights of gray. Defaults: the norm is the released one, the
    border and gray, BT.601, are ours.

    Args:
        loss_weight (float): Weight of the loss.
        patch_size (int): n, side of the patches. Rows and columns that fill no patch are left out; see
            :func:`~udl_basicsr.functional.losses.gradient_variance_maps`.
        border (str): Beyond the border lie ``'replicate'``, its pixels again, or ``'zeros'`` as released, which make an
            edge around every crop that is in no image.
        norm (str): ``'mse'``, the mean square difference, as released; ``'l2'``, the mean over the images of the
            unsquared norm of the difference of their variance maps, as eq. 2 is printed.
        gray (str): ``'bt601'``, or ``'released'``: 0.2989 R + 0.5870 G + 0.1140 B.
        reduction (str): ``'none'``, ``'mean'`` or ``'sum'``, over images and, with ``'mse'``, patches.

    Raises:
        ValueError: ``patch_size`` below 2, or an unknown name.
    """

    def __init__(self,
                 loss_weight: float = 1.0,
                 patch_size: int = 8,
                 border: str = 'replicate',
                 norm: str = 'mse',
                 gray: str = 'bt601',
                 reduction: str = 'mean'):
        super().__init__(loss_weight, reduction)
        F.check_patch_size(patch_size)
        for name, value, choices in (('border', border, F.BORDERS), ('norm', norm, NORMS), ('gray', gray, F.LUMA)):
            F.check_choice(name, value, tuple(choices))
        self.patch_size, self.border, self.norm, self.gray = patch_size, border, norm, gray

    @full_precision
    def forward(self, pred: Tensor, target: Tensor, **kwargs) -> Tensor:
        """
        Args:
            pred (Tensor): f(y), (N, C, H, W), in [0, 1], gray or RGB.
            target (Tensor): x, same shape and range.

        Returns:
            Tensor: A scalar; with ``reduction='none'`` (N, 1, H // n, W // n), or (N, 1, 1, 1) of ``norm='l2'``.
            float32 whatever the autocast.

        Raises:
            ValueError: The shapes differ, the patch is larger than the image, or neither 1 nor 3 channels.
        """
        check_shapes(pred=pred, target=target)
        of_pred, of_target = (F.gradient_variance_maps(image, self.patch_size, self.border, self.gray)
                              for image in (pred, target))
        if self.norm == 'l2':  # a norm whose gradient is 0, and not NaN, at 0
            distance = torch.linalg.vector_norm(of_pred - of_target, dim=(2, 3), keepdim=True)
        else:
            distance = (of_pred - of_target).square()
        return self._reduce(distance.sum(dim=1, keepdim=True))
