"""TLW as a loss with two sides, one for each of the networks that are trained. The formulas: ``functional.tlw``."""
import functools

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

from udl_basicsr.functional import losses as F
from udl_basicsr.functional import tlw

from .base import WeightedLoss, check_shapes, full_precision
from .perceptual import NETS, build_lpips

ORDERS = ('alternating', 'joint')
FORMS = ('sum', 'log_sum_exp')


@LOSS_REGISTRY.register()
class TLWLoss(WeightedLoss):
    """Trainable loss weights (arXiv 2301.10575), for ``train.tlw_opt`` of TLWModel.

    Weight maps w are drawn from what the weighting network says and judged by WC (eq. 4). The weighting network
    minimises -log WC (eq. 8, 9), the SR network the pixel loss weighted with sum_t sg[WC(w_t)*w_t] (eq. 13).

    As printed: WC, FixedSum, k, the two losses, 0.1 in the weights of the MSE, and the order of algorithm 1. As
    released, since the paper has no value: T, the temperature, eps, and the judge, VGG without LPIPS' linear layers.

    The judge is built by :meth:`build_judge`, not before: it needs a file of weights, the other arguments do not.

    Args:
        loss_weight (float): Weight of the SR network's loss; the weighting network's has none.
        base (str): The pixel loss: ``'l1'`` or ``'mse'``; see :func:`~udl_basicsr.functional.tlw.pixel_error`.
        order (str): ``'alternating'`` is algorithm 1: one w for the weighting network, which steps; then T new ones
            from it for the SR network. ``'joint'`` (ours) draws T once, from which both learn in one step; the
            weighting network runs once, and its loss is the mean over T. With T = 3 on a CPU a step then takes 0.8 of
            the time with AlexNet as the judge, and 1.2 with VGG, through which more gradients go back.
        samples (int): T, the number of weight maps; without effect if ``deterministic``.
        temperature (float): Of the relaxed Bernoulli distribution they are drawn from.
        deterministic (bool): Draw nothing and take what the weighting network says as the one weight map.
        form (str): Of the SR network's loss: ``'sum'`` as printed, or ``'log_sum_exp'`` as released, in which p_t =
            D(w_t*f + (1 - w_t)*x, x)/(D((1 - w_t)*f + w_t*x, x) + eps); see
            :func:`~udl_basicsr.functional.tlw.expected_likelihood_loss`.
        mse_offset (float): Of ``base: mse``, in the unit of the pixels; 0.1 as printed. As released too: 0.2 for pixels
            in [-1, 1] is 0.1 in [0, 1].
        eps (float): Of WC, in units of the judge.
        judge (str): Backbone of LPIPS: ``'alex'``, ``'vgg'`` or ``'squeeze'``.
        judge_linear (bool): LPIPS with its linear layers.
        judge_weights (str | None): torchvision's file of its ImageNet weights; None looks in torch's cache.
        judge_random (bool): A random backbone, for trials without weights.
        k_start (float): k, the mean of the weights, at the beginning, in [0, 1].
        k_gain (float): By how much it grows in the end; k_start + k_gain in [0, 1].
        k_tau (float): Time constant of its growth; 200 as printed, 100 as released.
        k_unit (str): Unit of ``k_tau``: ``'epoch'`` or ``'iter'``.
        reduction (str): ``'none'``, ``'mean'`` or ``'sum'``, of the SR network's loss.

    Raises:
        ValueError: An argument outside of what is said here.
    """
    needs = ('weight_map', )

    def __init__(self,
                 loss_weight: float = 1.0,
                 base: str = 'l1',
                 order: str = 'alternating',
                 samples: int = 3,
                 temperature: float = 0.1,
                 deterministic: bool = False,
                 form: str = 'sum',
                 mse_offset: float = 0.1,
                 eps: float = 1e-3,
                 judge: str = 'vgg',
                 judge_linear: bool = False,
                 judge_weights: str | None = None,
                 judge_random: bool = False,
                 k_start: float = 0.3,
                 k_gain: float = 0.6,
                 k_tau: float = 200.,
                 k_unit: str = 'epoch',
                 reduction: str = 'mean'):
        super().__init__(loss_weight, reduction)
        for name, value, choices in (('base', base, ('l1', 'mse')), ('order', order, ORDERS), ('form', form, FORMS),
                                     ('judge', judge, NETS), ('k_unit', k_unit, ('epoch', 'iter'))):
            F.check_choice(name, value, choices)
        for name, value in (('samples', samples), ('temperature', temperature), ('mse_offset', mse_offset),
                            ('eps', eps), ('k_tau', k_tau)):
            if not value > 0:
                raise ValueError(f'{name}: expected a number > 0, got {value!r}')
        if not (0 <= k_start <= 1 and 0 <= k_start + k_gain <= 1):
            raise ValueError('k_start, k_gain: expected k_start and k_start + k_gain in [0, 1], got '
                             f'{k_start}, {k_gain}')
        self.base, self.order, self.form, self.mse_offset = base, order, form, mse_offset
        self.samples, self.temperature, self.deterministic = samples, temperature, deterministic
        self.eps, self.k_unit, self.k_tau = eps, k_unit, k_tau
        self._k = {'start': k_start, 'gain': k_gain}
        self._build_judge = functools.partial(build_lpips, judge, judge_weights, judge_random, linear=judge_linear)
        self.judge: nn.Module | None = None

    def build_judge(self) -> None:
        """Makes ``judge``, on the CPU.

        Raises:
            CheckpointError: Its weights are missing; see :func:`~udl_basicsr.losses.perceptual.build_lpips`.
        """
        self.judge = self._build_judge()

    def k(self, position: float) -> float:
        """k after so many epochs or iterations, in ``k_unit``."""
        return tlw.k_schedule(position, tau=self.k_tau, **self._k)

    @full_precision
    def weighting_loss(self, pred: Tensor, target: Tensor, weight_map: Tensor) -> tuple[Tensor, Tensor]:
        """The weighting network's, from one w for each image (algorithm 1).

        Args:
            pred (Tensor): f(y), (N, C, H, W), RGB or gray in [0, 1]; taken as a constant.
            target (Tensor): x, same shape and range.
            weight_map (Tensor): What the weighting network says, same shape, in [0, 1], with its gradient.

        Returns:
            tuple: mean(-log WC), and WC, (1, N), without gradient.

        Raises:
            ValueError: The shapes differ, or the images are too small for the judge.
        """
        check_shapes(pred=pred, target=target, weight_map=weight_map)
        weights = self._draw(weight_map, 1)
        criterion = self._criterion(*self._judged(weights, pred.detach(), target))
        return -criterion.log().mean(), criterion.detach()

    @full_precision
    def weighted_loss(self, pred: Tensor, target: Tensor, weight_map: Tensor) -> tuple[Tensor, Tensor]:
        """The SR network's, from T weight maps.

        Args:
            pred (Tensor): As above, with its gradient.
            target (Tensor): As above.
            weight_map (Tensor): As above; taken as a constant.

        Returns:
            tuple: A scalar, or with ``reduction='none'`` (N, C, H, W) (of ``form: log_sum_exp`` (N, )); and WC, (T, N),
                without gradient.

        Raises:
            ValueError: As above.
        """
        check_shapes(pred=pred, target=target, weight_map=weight_map)
        with torch.no_grad():
            weights = self._draw(weight_map, self.samples)
            distances = self._judged(weights, pred, target)
        return self._weighted(pred, target, weights, *distances), self._criterion(*distances)

    @full_precision
    def forward(self, pred: Tensor, target: Tensor, weight_map: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Both sides from the same T weight maps (``order: joint``).

        Args:
            pred (Tensor), target (Tensor), weight_map (Tensor): As above, the first and last with their gradients.

        Returns:
            tuple: The SR network's loss, whose gradient reaches ``pred`` alone; the weighting network's, mean(-log WC),
                whose gradient reaches ``weight_map`` alone; and WC, (T, N), without gradient.

        Raises:
            ValueError: As above.
        """
        check_shapes(pred=pred, target=target, weight_map=weight_map)
        weights = self._draw(weight_map, self.samples)
        distances = self._judged(weights, pred.detach(), target)
        criterion = self._criterion(*distances)
        return self._weighted(pred, target, weights, *distances), -criterion.log().mean(), criterion.detach()

    def _judged(self, weights: Tensor, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if self.judge is None:
            raise RuntimeError('TLWLoss has no judge yet: call build_judge() first')
        return tlw.judged_distances(weights, pred, target, self.judge)

    def _draw(self, weight_map: Tensor, samples: int) -> Tensor:
        return weight_map[None] if self.deterministic else tlw.relaxed_bernoulli(weight_map, self.temperature, samples)

    def _criterion(self, over: Tensor, under: Tensor) -> Tensor:
        return tlw.weight_criterion(over, under, self.eps)

    def _weighted(self, pred: Tensor, target: Tensor, weights: Tensor, over: Tensor, under: Tensor) -> Tensor:
        error = tlw.pixel_error(pred, target, self.base, self.mse_offset)
        if self.form == 'sum':
            return self._reduce(tlw.sr_weights(weights, self._criterion(over, under)) * error)
        return self._reduce(tlw.expected_likelihood_loss(weights, over / (under + self.eps), error))
