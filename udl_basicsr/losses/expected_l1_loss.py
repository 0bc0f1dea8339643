"""l_E, the losses it was derived from, and its sigma branch. The formulas are in ``functional.losses``.

He and Cheng, Revisiting l1 Loss in Super-Resolution: A Probabilistic View and Beyond, 2022. No program was released:
what the paper leaves open is ours, and said to be. The paper's "+Ours" is eq. 8 and eq. 10 together.
"""
import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor

from udl_basicsr.functional import losses as F

from .base import WeightedLoss, check_shapes, full_precision


def _check_threshold(threshold: str, mean_over: str) -> None:
    F.check_choice('threshold', threshold, F.THRESHOLDS)
    F.check_choice('mean_over', mean_over, F.MEAN_OVER)


@LOSS_REGISTRY.register()
class ExpectedL1Loss(WeightedLoss):
    """l_E: mean|x - (f + e_t*z)|, z ~ N(0, 1), e_t = e where e >= its mean, else 0 (Revisiting l1, eq. 8, section 4.3).

    It takes the place of L1. The gradient flows through e_t as well and has the sign of l1's for every z (eq. 9). z is
    drawn anew at each call, from torch's global generator of the device.

    With ``sigma=k`` it is eq. 7, mean|x - (f + k*z)|, which the paper shows to be Noise2Noise and rejects: where
    |k*z| > e the gradient may lead away from x.

    Args:
        loss_weight (float): Weight of the loss.
        sigma (float | None): None: e_t. A number > 0: k of eq. 7, in the unit of the pixels, [0, 1]. ("A small
            constant k invisible to the human eye"; no value is printed.)
        threshold (str): ``'mean'``, as in section 4.3, or ``'none'``, e_t = e as eq. 8 is printed; see
            :func:`~udl_basicsr.functional.losses.adaptive_sigma`.
        mean_over (str): The mean of ``threshold`` over each ``'image'`` or the ``'batch'``. The paper does not say
            which; the default is ours.
        noise (str): ``'gaussian'``, or ``'laplace'`` of the paper's footnote 1; see
            :func:`~udl_basicsr.functional.losses.draw_noise`.
        reduction (str): ``'none'``, ``'mean'`` or ``'sum'``.

    Raises:
        ValueError: An argument outside of what is said here.
    """

    def __init__(self,
                 loss_weight: float = 1.0,
                 sigma: float | None = None,
                 threshold: str = 'mean',
                 mean_over: str = 'image',
                 noise: str = 'gaussian',
                 reduction: str = 'mean'):
        super().__init__(loss_weight, reduction)
        if sigma is not None and not sigma > 0:
            raise ValueError(f'sigma: expected a number > 0 in the unit of the pixels, [0, 1], or none, got {sigma!r}')
        _check_threshold(threshold, mean_over)
        F.check_choice('noise', noise, F.NOISES)
        self.sigma, self.threshold, self.mean_over, self.noise = sigma, threshold, mean_over, noise

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
        noise = F.draw_noise(target, self.noise)
        if self.sigma is not None:
            return self._reduce(F.noisy_l1_map(pred, target, self.sigma, noise))
        return self._reduce(F.expected_l1_map(pred, target, noise, self.threshold, self.mean_over))


@LOSS_REGISTRY.register()
class TrainedExpectedL1Loss(WeightedLoss):
    """mean|x - (f + sigma*z)| with the sigma of a branch that learns it (Revisiting l1, eq. 6, without its 1/kT).

    What the paper starts from and gives up: sigma = 0 bridges the Jensen gap, so sigma dies away and L1 is left
    (figure 2; ``sigma_mean`` in the training log is that curve). For ``train.sigma_opt`` of stage ``sigma``, where it
    trains the image too and needs no other loss.

    Args:
        loss_weight (float): Weight of the loss.
        noise (str): As in :class:`ExpectedL1Loss`.
        reduction (str): ``'none'``, ``'mean'`` or ``'sum'``.

    Raises:
        ValueError: Unknown ``noise``.
    """
    needs = ('sigma', )

    def __init__(self, loss_weight: float = 1.0, noise: str = 'gaussian', reduction: str = 'mean'):
        super().__init__(loss_weight, reduction)
        F.check_choice('noise', noise, F.NOISES)
        self.noise = noise

    @full_precision
    def forward(self, pred: Tensor, target: Tensor, sigma: Tensor, **kwargs) -> Tensor:
        """
        Args:
            pred (Tensor): f(y), (N, C, H, W), in [0, 1].
            target (Tensor): x, same shape and range.
            sigma (Tensor): Same shape, in the unit of the pixels.

        Returns:
            Tensor: A scalar, or (N, C, H, W) with ``reduction='none'``. float32 whatever the autocast.

        Raises:
            ValueError: The shapes differ.
        """
        check_shapes(pred=pred, target=target, sigma=sigma)
        return self._reduce(F.noisy_l1_map(pred, target, sigma, F.draw_noise(target, self.noise)))


@LOSS_REGISTRY.register()
class SigmaLoss(WeightedLoss):
    """mean|sg[e_t] - sigma|, which teaches the sigma branch to foretell e_t (Revisiting l1, eq. 10).

    The image f is a constant of it; the features are shared, so it trains the body of the network too. The paper's best
    weight (its beta, table 2) is ``loss_weight=0.01``, beside :class:`ExpectedL1Loss` on f.

    Printed is ||x - mu - sigma||_1, signed: ``signed=True, threshold='none'``. By default it is the absolute error:
    sigma comes out of a sigmoid and cannot follow a residual below 0, and table 7 and figure 7 compare it with
    |x - mu|. The threshold is section 4.3's, which does not say in which equation. Here it makes more than half of e_t
    0, and nearly all of sigma: ``threshold='none'`` where sigma itself is wanted.

    Args:
        loss_weight (float): Weight of the loss.
        threshold (str): As in :class:`ExpectedL1Loss`.
        mean_over (str): As in :class:`ExpectedL1Loss`.
        detach (bool): Whether the image is a constant. With ``False`` the gradient passes through f and sigma both:
            eq. 10 alone, without another loss (table 1, row 3). Take ``threshold='none'`` then: pixels below the
            threshold do not train f.
        signed (bool): Compare sigma with x - f in place of |x - f|.
        reduction (str): ``'none'``, ``'mean'`` or ``'sum'``.

    Raises:
        ValueError: Unknown ``threshold`` or ``mean_over``.
    """
    needs = ('sigma', )

    def __init__(self,
                 loss_weight: float = 1.0,
                 threshold: str = 'mean',
                 mean_over: str = 'image',
                 detach: bool = True,
                 signed: bool = False,
                 reduction: str = 'mean'):
        super().__init__(loss_weight, reduction)
        _check_threshold(threshold, mean_over)
        self.threshold, self.mean_over, self.detach, self.signed = threshold, mean_over, detach, signed

    @full_precision
    def forward(self, pred: Tensor, target: Tensor, sigma: Tensor, **kwargs) -> Tensor:
        """
        Args:
            pred (Tensor): f(y), (N, C, H, W), in [0, 1]; taken as a constant unless ``detach=False``.
            target (Tensor): x, same shape and range.
            sigma (Tensor): Same shape, in [0, 1] like the pixels.

        Returns:
            Tensor: A scalar, or (N, C, H, W) with ``reduction='none'``. float32 whatever the autocast.

        Raises:
            ValueError: The shapes differ.
        """
        check_shapes(pred=pred, target=target, sigma=sigma)
        residual = target - (pred.detach() if self.detach else pred)
        wanted = F.adaptive_sigma(residual if self.signed else residual.abs(), self.threshold, self.mean_over)
        return self._reduce(torch.abs(wanted - sigma))
