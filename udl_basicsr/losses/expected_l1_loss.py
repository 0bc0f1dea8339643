"""l_E and its sigma branch. The formulas are in ``functional.py``.

He and Cheng, Revisiting l1 Loss in Super-Resolution: A Probabilistic View and Beyond, 2022.
"""
import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor

from . import functional as F
from .base import WeightedLoss, check_shapes, full_precision


class _AdaptiveSigmaLoss(WeightedLoss):
    """A loss that knows e_t."""

    def __init__(self, loss_weight: float = 1.0, threshold: str = 'mean', reduction: str = 'mean'):
        super().__init__(loss_weight, reduction)
        F.adaptive_sigma(torch.zeros(1, 1, 1, 1), threshold)  # refuses an unknown name right away
        self.threshold = threshold


@LOSS_REGISTRY.register()
class ExpectedL1Loss(_AdaptiveSigmaLoss):
    """l_E: mean|x - (f + e_t*z)|, z ~ N(0, 1), e_t = e where e >= its mean, else 0 (Revisiting l1, eq. 8, section 4.3).

    It takes the place of L1. The gradient flows through e_t as well and has the sign of l1's for every z (eq. 9). z is
    drawn anew at each call, from torch's global generator of the device.

    Args:
        loss_weight (float): Weight of the loss.
        threshold (str): ``'mean'``, over each image (the paper's e_t), or ``'none'``, e_t = e; see
            :func:`~udl_basicsr.losses.functional.adaptive_sigma`.
        reduction (str): ``'none'``, ``'mean'`` or ``'sum'``.
    """

    @full_precision
    def forward(self, pred: Tensor, target: Tensor, **kwargs) -> Tensor:
        """
        Args:
            pred (Tensor): f(y), (N, C, H, W), in [0, 1].
            target (Tensor): x, same shape and range.

        Returns:
            Tensor: A scalar, or (N, C, H, W) with ``reduction='none'``. float32 whatever the autocast.

        Raises:
            ValueError: The shapes differ.
        """
        check_shapes(pred=pred, target=target)
        noise = torch.randn_like(target)
        return self._reduce(F.expected_l1_map(pred, target, noise, self.threshold))


@LOSS_REGISTRY.register()
class SigmaLoss(_AdaptiveSigmaLoss):
    """mean|sg[e_t] - sigma|, which teaches the sigma branch to foretell e_t (Revisiting l1, eq. 10).

    The paper's weight is ``loss_weight=0.01`` (its beta), beside :class:`ExpectedL1Loss` on f. The loss is for sigma
    alone: f is a constant of it, as the features are of :class:`~udl_basicsr.archs.SigmaHead`.

    Args:
        loss_weight (float): Weight of the loss.
        threshold (str): As in :class:`ExpectedL1Loss`.
        reduction (str): ``'none'``, ``'mean'`` or ``'sum'``.
    """

    @full_precision
    def forward(self, pred: Tensor, target: Tensor, sigma: Tensor, **kwargs) -> Tensor:
        """
        Args:
            pred (Tensor): f(y), (N, C, H, W), in [0, 1]; taken as a constant.
            target (Tensor): x, same shape and range.
            sigma (Tensor): Same shape, in [0, 1] like the pixels.

        Returns:
            Tensor: A scalar, or (N, C, H, W) with ``reduction='none'``. float32 whatever the autocast.

        Raises:
            ValueError: The shapes differ.
        """
        check_shapes(pred=pred, target=target, sigma=sigma)
        e_t = F.adaptive_sigma(torch.abs(target - pred).detach(), self.threshold)
        return self._reduce(torch.abs(e_t - sigma))
