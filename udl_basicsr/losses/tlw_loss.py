"""TLW as a loss with two sides, one for each of the networks that are trained. The formulas are in ``tlw.py``."""
import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

from . import tlw
from .base import WeightedLoss, check_shapes, full_precision
from .perceptual import NETS, build_lpips


@LOSS_REGISTRY.register()
class TLWLoss(WeightedLoss):
    """Trainable loss weights (arXiv 2301.10575), for ``train.tlw_opt`` of TLWModel.

    The expectation step draws T weight maps w_t from what the weighting network says and judges each by WC. Both
    networks are then trained on them: the weighting network minimises -log WC, the SR network the pixel loss weighted
    with sum_t sg[WC(w_t)*w_t] (eq. 4, 8, 13, alg. 1).

    The judge is built by :meth:`build_judge`, not before: it needs a file of weights, the other arguments do not.

    Args:
        loss_weight (float): Weight of the SR network's loss; the weighting network's has none.
        base (str): The pixel loss: ``'l1'``, or ``'mse'``, whose weights are divided by |x - f| + 0.1.
        samples (int): T, the number of weight maps; without effect if ``deterministic``.
        temperature (float): Of the relaxed Bernoulli distribution they are drawn from. A choice of ours.
        deterministic (bool): Draw nothing and take what the weighting network says as the one weight map.
        eps (float): Of WC, in units of LPIPS. A choice of ours.
        judge (str): Backbone of LPIPS: ``'alex'``, ``'vgg'`` or ``'squeeze'``.
        judge_weights (str | None): torchvision's file of its ImageNet weights; None looks in torch's cache.
        judge_random (bool): A random backbone, for trials without weights.
        k_start (float): k, the mean of the weights, at the beginning, in [0, 1].
        k_gain (float): By how much it grows in the end; k_start + k_gain in [0, 1].
        k_tau (float): Time constant of its growth.
        k_unit (str): Unit of ``k_tau``: ``'epoch'`` or ``'iter'``.
        reduction (str): ``'none'``, ``'mean'`` or ``'sum'``, of the SR network's loss.

    Raises:
        ValueError: An argument outside of what is said here.
    """

    def __init__(self,
                 loss_weight: float = 1.0,
                 base: str = 'l1',
                 samples: int = 3,
                 temperature: float = 0.5,
                 deterministic: bool = False,
                 eps: float = 1e-3,
                 judge: str = 'alex',
                 judge_weights: str | None = None,
                 judge_random: bool = False,
                 k_start: float = 0.3,
                 k_gain: float = 0.6,
                 k_tau: float = 200.,
                 k_unit: str = 'epoch',
                 reduction: str = 'mean'):
        super().__init__(loss_weight, reduction)
        for name, value, choices in (('base', base, ('l1', 'mse')), ('judge', judge, NETS),
                                     ('k_unit', k_unit, ('epoch', 'iter'))):
            if value not in choices:
                raise ValueError(f'{name}: expected one of {", ".join(choices)}, got {value!r}')
        for name, value in (('samples', samples), ('temperature', temperature), ('eps', eps), ('k_tau', k_tau)):
            if not value > 0:
                raise ValueError(f'{name}: expected a number > 0, got {value!r}')
        if not (0 <= k_start <= 1 and 0 <= k_start + k_gain <= 1):
            raise ValueError('k_start, k_gain: expected k_start and k_start + k_gain in [0, 1], got '
                             f'{k_start}, {k_gain}')
        self.base, self.samples, self.temperature, self.deterministic = base, samples, temperature, deterministic
        self.eps, self.k_unit, self._k = eps, k_unit, {'start': k_start, 'gain': k_gain, 'tau': k_tau}
        self._judge_options = {'net': judge, 'weights_path': judge_weights, 'random_weights': judge_random}
        self.judge: nn.Module | None = None

    def build_judge(self) -> None:
        """Makes ``judge``, on the CPU.

        Raises:
            CheckpointError: Its weights are missing; see :func:`~udl_basicsr.losses.perceptual.build_lpips`.
        """
        self.judge = build_lpips(**self._judge_options)

    def k(self, position: float) -> float:
        """k after so many epochs or iterations, in ``k_unit``."""
        return tlw.k_schedule(position, **self._k)

    @full_precision
    def forward(self, pred: Tensor, target: Tensor, weight_map: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            pred (Tensor): f(y), (N, C, H, W), RGB or gray in [0, 1].
            target (Tensor): x, same shape and range.
            weight_map (Tensor): What the weighting network says, same shape, in [0, 1], with its gradient.

        Returns:
            tuple: The SR network's loss, a scalar, or (N, C, H, W) with ``reduction='none'``, whose gradient reaches
                ``pred`` alone; the weighting network's, mean(-log WC), whose gradient reaches ``weight_map`` alone;
                and WC, (T, N), without gradient.

        Raises:
            ValueError: The shapes differ, or the images are too small for the judge.
        """
        check_shapes(pred=pred, target=target, weight_map=weight_map)
        fixed = pred.detach()
        weights = weight_map[None] if self.deterministic else tlw.relaxed_bernoulli(
            weight_map, self.temperature, self.samples)
        criterion = tlw.weight_criterion(weights, fixed, target, self.judge, self.eps)
        weight = tlw.sr_weights(weights, criterion)
        error = torch.abs(target - pred)
        if self.base == 'mse':
            weight, error = tlw.mse_weights(weight, fixed, target), error.square()
        return self._reduce(weight * error), -criterion.log().mean(), criterion.detach()
