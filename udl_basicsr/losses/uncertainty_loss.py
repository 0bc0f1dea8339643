"""EU, ESU, GRAM and other likelihoods; UDL and the weight maps UDL is compared with. Formulas: ``functional``.

Ning et al., Uncertainty-Driven Loss for Single Image Super-Resolution, NeurIPS 2021.
"""
import functools
import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor
from torch.nn.functional import interpolate

from udl_basicsr.functional import likelihoods
from udl_basicsr.functional import losses as F
from udl_basicsr.functional.distributions import DISTRIBUTIONS, Distribution, QuantileDistribution, check_level

from .base import WeightedLoss, check_shapes, full_precision


class _FloorWatch:
    """Warns once when most of s lies on its floor.

    Reading the share back costs a synchronisation on a GPU, so it is read at calls 1, 2, 4, 8, ... only.
    """

    def __init__(self, consequence: str):
        self.calls = 0
        self.consequence = consequence
        self.warned = False

    def __call__(self, log_scale: Tensor, kind: Distribution | None = None, img_range: float | None = None) -> None:
        """Of what a head of a kind puts out; or of s, whatever has said it: its floor is then its own minimum."""
        self.calls += 1
        if self.warned or self.calls & (self.calls - 1):
            return
        s = log_scale.detach() if kind is None else kind.log_scale(log_scale.detach())
        floor = s.min() if kind is None else kind.floor
        share = F.floor_share(s, floor).item()
        if share > 0.5:
            self.warned = True
            cause = 's must be learned in 0-255 units'
            if img_range is not None:
                cause = (f'residuals are multiplied by img_range={img_range:g}; with pixels in [0, 1] it must be 255, '
                         'or s wants to be far below the floor')
            logging.getLogger('basicsr').warning(
                f'{share:.0%} of log_scale lies on its floor (s = {float(floor):.3g}): {self.consequence} '
                f'Likely cause: {cause}.')


class LikelihoodLoss(WeightedLoss):
    """What trains an uncertainty head: two terms, which the training log shows apart.

    Args:
        loss_weight (float): Weight of the loss.
        img_range (float): Residuals are multiplied by this before they meet s; 255 for pixels in [0, 1].
        reduction (str): ``'none'``, ``'mean'`` or ``'sum'``.
        detach (str): What this loss does not train: ``'none'``: it trains all that it can reach; ``'mean'``: not the
            image, whose error is a constant; ``'features'``: not the features that the head reads, which UDLModel sees
            to, as does ``UncertaintyNet(detach=...)``; ``'all'``: neither. With ``'all'`` and another loss for the
            image the mean network is trained as if there were no head (Stirn et al., Faithful Heteroscedastic
            Regression, arXiv 2212.09184); with no other loss UDLModel freezes it and trains the head alone.

    Raises:
        ValueError: ``img_range`` that is not positive, an unknown ``reduction`` or ``detach``.

    Attributes:
        distribution (str): Of the heads that it trains, a name in
            :data:`~udl_basicsr.functional.distributions.DISTRIBUTIONS`.
    """

    needs = ('log_scale', )
    distribution = 'laplace'

    def __init__(self, loss_weight: float = 1.0, img_range: float = 255., reduction: str = 'mean',
                 detach: str = 'none'):
        super().__init__(loss_weight, reduction)
        if not img_range > 0:
            raise ValueError(f'img_range: expected a positive number (255 for pixels in [0, 1]), got {img_range!r}')
        F.check_choice('detach', detach, F.DETACH)
        self.img_range, self.detach = img_range, detach
        self._watch_floor = _FloorWatch('the uncertainty says nothing there.')

    @classmethod
    def trains(cls, block: Mapping[str, Any]) -> str:
        """``distribution`` of the loss that an option block ``{type: ..., ...}`` builds."""
        return cls.distribution

    def pixel_terms(self, error: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
        """The two terms (N, C, H, W) of e (or of x - f, where :meth:`_error` is one with a sign) and s."""
        raise NotImplementedError

    def _error(self, pred: Tensor, target: Tensor) -> Tensor:
        return torch.abs(target - pred)

    def _kind(self) -> Distribution:
        return DISTRIBUTIONS[self.distribution]()

    @full_precision
    def terms(self, pred: Tensor, target: Tensor, log_scale: Tensor) -> tuple[Tensor, ...]:
        """The weighted and reduced terms, (fidelity, log term); ``forward`` is their sum."""
        kind = self._kind()
        check_shapes(pred=pred, target=target, **({'log_scale': log_scale} if kind.maps == 1 else {}))
        if log_scale.shape != (expected := (len(pred), kind.maps * pred.shape[1], *pred.shape[2:])):
            raise ValueError(f'log_scale: expected what a head of distribution {self.distribution} puts out, '
                             f'{expected}, got {tuple(log_scale.shape)}')
        self._watch_floor(log_scale, kind, self.img_range)
        if self.detach in ('mean', 'all'):
            pred = pred.detach()
        fidelity, log_term = self.pixel_terms(self.img_range * self._error(pred, target), log_scale)
        return self._reduce(fidelity), self._reduce(log_term)

    def forward(self, pred: Tensor, target: Tensor, log_scale: Tensor, **kwargs) -> Tensor:
        """
        Args:
            pred (Tensor): f(y), (N, C, H, W), in [0, 1].
            target (Tensor): x, same shape and range.
            log_scale (Tensor): What the head puts out: s, same shape, natural log of the Laplace scale in 0-255 units;
                or the maps of another ``distribution``, (N, maps*C, H, W).

        Returns:
            Tensor: A scalar, or (N, C, H, W) with ``reduction='none'``. float32 whatever the autocast.

        Raises:
            ValueError: The shapes differ.
        """
        return functools.reduce(torch.add, self.terms(pred, target, log_scale))


@LOSS_REGISTRY.register()
class EULoss(LikelihoodLoss):
    """Estimating uncertainty: mean(exp(-s)*e + s) (UDL paper, eq. 6). Per-pixel optimum s* = ln e.

    The arguments are those of :class:`LikelihoodLoss`.
    """

    def pixel_terms(self, error, log_scale):
        return F.laplace_nll_terms(error, log_scale)


@LOSS_REGISTRY.register()
class ESULoss(LikelihoodLoss):
    """Estimating sparse uncertainty: mean(exp(-s)*e + 2s) (UDL paper, eq. 9). Per-pixel optimum s* = ln(e/2).

    The second s is Jeffreys' prior p(theta) = 1/theta, which pulls the scale of most pixels towards 0.

    The arguments are those of :class:`LikelihoodLoss`.
    """

    def pixel_terms(self, error, log_scale):
        return F.laplace_nll_terms(error, log_scale, prior=1.)


@LOSS_REGISTRY.register()
class GaussianNLLLoss(LikelihoodLoss):
    """Gaussian likelihood: mean(e^2/(2 sigma^2) + ln(sigma^2)/2), s = ln sigma (UDL paper, eq. 2).

    What the works it sums up train with; "applying above loss into SISR directly leads performance decline". The head's
    s is then the log of a standard deviation, not of a Laplace scale: ``head: {distribution: gaussian}``. Per-pixel
    optimum s* = ln e.

    The arguments are those of :class:`LikelihoodLoss`.
    """
    distribution = 'gaussian'

    def pixel_terms(self, error, log_scale):
        return F.gaussian_nll_terms(error, log_scale)


@LOSS_REGISTRY.register()
class GRAMLoss(LikelihoodLoss):
    """GRAM, 2019: mean(sg[sigmoid(s)] * (exp(-s)*e + s)), sg = stop-gradient.

    The arguments that are not listed are those of :class:`LikelihoodLoss`.

    Args:
        norm (str): ``'l1'`` uses e. ``'l2'`` uses e^2, and 2s for s: the head says ln(sigma) then, as for
            GaussianNLLLoss, ``head: {distribution: gaussian}``. Per-pixel optimum s* = ln e for both.
    """

    def __init__(self, loss_weight: float = 1.0, norm: str = 'l1', img_range: float = 255., reduction: str = 'mean',
                 detach: str = 'none'):
        super().__init__(loss_weight, img_range, reduction, detach)
        F.check_choice('norm', norm, ('l1', 'l2'))
        self.norm, self.distribution = norm, self.trains({'norm': norm})

    @classmethod
    def trains(cls, block):
        return 'gaussian' if block.get('norm') == 'l2' else cls.distribution

    def pixel_terms(self, error, log_scale):
        return F.gram_terms(error, log_scale) if self.norm == 'l1' else F.gram_terms(error.square(), 2 * log_scale)


@LOSS_REGISTRY.register()
class BetaNLLLoss(LikelihoodLoss):
    """beta-NLL for a Laplace density: mean(sg[e^(beta*s)] * (exp(-s)*e + s)), sg = stop-gradient.

    Seitzer et al., ICLR 2022 (arXiv 2203.09168); see :func:`~udl_basicsr.functional.likelihoods.beta_nll_terms`.
    The arguments that are not listed are those of :class:`LikelihoodLoss`.

    Args:
        beta (float): In [0, 1]; 0 is EU, at 1 the image is trained as with L1. 0.5 is what its authors recommend.

    Raises:
        ValueError: ``beta`` outside of [0, 1]; and what LikelihoodLoss refuses.
    """

    def __init__(self, loss_weight: float = 1.0, beta: float = 0.5, img_range: float = 255., reduction: str = 'mean',
                 detach: str = 'none'):
        super().__init__(loss_weight, img_range, reduction, detach)
        if not 0 <= beta <= 1:
            raise ValueError(f'beta: expected a number in [0, 1], got {beta!r}')
        self.beta = beta

    def pixel_terms(self, error, log_scale):
        return likelihoods.beta_nll_terms(error, log_scale, self.beta)


@LOSS_REGISTRY.register()
class GeneralisedGaussianLoss(LikelihoodLoss):
    """The likelihood of BayesCap: mean((e/alpha)^beta + ln(alpha/beta) + ln Gamma(1/beta)).

    Upadhyay et al., ECCV 2022 (arXiv 2207.06873). For ``head: {distribution: generalised_gaussian}``. Their cap
    restores the image too, by a loss of its own; here the image stays what it is, and no such loss is needed.

    The arguments are those of :class:`LikelihoodLoss`.
    """
    distribution = 'generalised_gaussian'

    def pixel_terms(self, error, log_scale):
        return likelihoods.generalised_gaussian_nll_terms(error, log_scale)


@LOSS_REGISTRY.register()
class QuantileLoss(LikelihoodLoss):
    """The pinball losses of a lower and an upper quantile, summed: an interval without a density.

    Angelopoulos et al., ICML 2022 (arXiv 2202.05265). For ``head: {distribution: quantile}``. There another loss trains
    the image, so ``detach: all`` is what is meant. The log calls the terms ``l_fidelity`` (lower quantile) and
    ``l_log_scale`` (upper). The arguments that are not listed are those of :class:`LikelihoodLoss`.

    Args:
        level (float): Share of the truth between the quantiles, as the head has it.

    Raises:
        ValueError: ``level`` that is no probability; and what LikelihoodLoss refuses.
    """
    distribution = 'quantile'

    def __init__(self, loss_weight: float = 1.0, level: float = 0.9, img_range: float = 255., reduction: str = 'mean',
                 detach: str = 'none'):
        super().__init__(loss_weight, img_range, reduction, detach)
        check_level(level)
        self.level = level

    def _error(self, pred, target):
        return target - pred

    def _kind(self):
        return QuantileDistribution(self.level)

    def pixel_terms(self, error, log_scale):
        return likelihoods.quantile_terms(error, log_scale, self.level)


class _WeightedL1Loss(WeightedLoss):
    """mean(w * e) with a weight map w that no gradient flows into."""

    def __init__(self, loss_weight: float, scaling: str, offset: float, min_over: str, reduction: str):
        super().__init__(loss_weight, reduction)
        F.check_choice('scaling', scaling, F.SCALINGS)
        F.check_choice('min_over', min_over, F.MIN_OVER)
        self.scaling, self.offset, self.min_over = scaling, offset, min_over

    def _weighted(self, pred: Tensor, target: Tensor, weight_map: Tensor) -> Tensor:
        weight = F.scale_log_scale(weight_map.detach(), self.scaling, self.offset, self.min_over)
        return self._reduce(weight * torch.abs(target - pred))


@LOSS_REGISTRY.register()
class UDLLoss(_WeightedL1Loss):
    """Uncertainty-driven loss: mean(w * e), w = s - min(s) of a frozen stage-1 network (UDL paper, eq. 10).

    The released program adds 1 to the weight and takes the minimum per image and channel: ``offset=1.0,
    min_over='channel'``. The paper has no offset, and does not say over what the minimum is; each image is ours.

    Args:
        loss_weight (float): Weight of the loss.
        scaling (str): ``'linear'``, ``'exp'``, ``'sqrt_exp'`` or ``'log'`` (table 4); see
            :func:`~udl_basicsr.functional.losses.scale_log_scale`.
        offset (float): Added to the weight.
        min_over (str): ``'image'``, ``'channel'`` or ``'batch'``.
        reduction (str): ``'none'``, ``'mean'`` or ``'sum'``.
    """
    needs = ('log_scale', )

    def __init__(self,
                 loss_weight: float = 1.0,
                 scaling: str = 'linear',
                 offset: float = 0.0,
                 min_over: str = 'image',
                 reduction: str = 'mean'):
        super().__init__(loss_weight, scaling, offset, min_over, reduction)
        self._watch_floor = _FloorWatch('the weights are constant there, and UDL becomes a plain L1 loss or vanishes.')

    @full_precision
    def forward(self, pred: Tensor, target: Tensor, log_scale: Tensor, **kwargs) -> Tensor:
        """
        Args:
            pred (Tensor): f(y), (N, C, H, W), in [0, 1].
            target (Tensor): x, same shape and range.
            log_scale (Tensor): s, same shape, in 0-255 units; taken as a constant.

        Returns:
            Tensor: A scalar, or (N, C, H, W) with ``reduction='none'``. float32 whatever the autocast.

        Raises:
            ValueError: The shapes differ.
        """
        check_shapes(pred=pred, target=target, log_scale=log_scale)
        self._watch_floor(log_scale)
        return self._weighted(pred, target, log_scale)


@LOSS_REGISTRY.register()
class WeightMapLoss(_WeightedL1Loss):
    """mean(w * e) with the weight maps that the UDL paper compares its own with (table 3, eq. 11).

    "We adjust the scaling functions [...] to get the best performance", says section 4.3, and prints neither functions
    nor units: any scaling here is ours, and a comparison wants several tried. The unit matters. In [0, 1]
    (``img_range=1``) ``exp`` and ``sqrt_exp`` stay between 1 and 4.2, and ``log`` is nearly ``linear``; in grey levels
    (``img_range=255``) ``log`` rises as s does, and the exponentials pass all bounds, so that they are refused: the
    steepest gradient is taken as the largest value of a map, which an error passes where the image leaves [0, 1].

    Args:
        loss_weight (float): Weight of the loss.
        weight_map (str): ``'error'``, the detached e; ``'hr_gradient'``, the gradient map of the target;
            ``'lr_gradient'``, that of the low-quality input, nearest-upsampled (ours; the paper does not say how).
        scaling (str): Applied to the map as to s; ``'linear'`` is map - min(map).
        offset (float): Added to the weight.
        min_over (str): ``'image'``, ``'channel'`` or ``'batch'``.
        img_range (float): The map is multiplied by this before it is scaled: 1 or 255, for pixels in [0, 1].
        reduction (str): ``'none'``, ``'mean'`` or ``'sum'``.
    """
    WEIGHT_MAPS = ('error', 'hr_gradient', 'lr_gradient')

    needs = ('lq', )

    def __init__(self,
                 loss_weight: float = 1.0,
                 weight_map: str = 'error',
                 scaling: str = 'linear',
                 offset: float = 0.0,
                 min_over: str = 'image',
                 img_range: float = 1.0,
                 reduction: str = 'mean'):
        super().__init__(loss_weight, scaling, offset, min_over, reduction)
        F.check_choice('weight_map', weight_map, self.WEIGHT_MAPS)
        if not img_range > 0:
            raise ValueError(f'img_range: expected a positive number, 1 or 255 for pixels in [0, 1], got {img_range!r}')
        exponent = {'exp': 1., 'sqrt_exp': 0.5}.get(scaling, 0.) * math.sqrt(2) * img_range  # of the steepest gradient
        if exponent > math.log(torch.finfo(torch.float32).max):
            raise ValueError(f'img_range: scaling {scaling} of maps up to {math.sqrt(2) * img_range:.0f} passes the '
                             f'range of float32; take img_range: 1, or scaling: linear or log, got {img_range:g}')
        self.weight_map, self.img_range = weight_map, img_range

    @full_precision
    def forward(self, pred: Tensor, target: Tensor, lq: Tensor | None = None, **kwargs) -> Tensor:
        """
        Args:
            pred (Tensor): f(y), (N, C, H, W), in [0, 1].
            target (Tensor): x, same shape and range.
            lq (Tensor): y, (N, C, h, w), in [0, 1]; needed by ``lr_gradient`` alone.

        Raises:
            ValueError: The shapes differ, or ``lq`` is missing, or has not the images and channels of ``target``.
        """
        check_shapes(pred=pred, target=target)
        if self.weight_map == 'error':
            weight_map = torch.abs(target - pred)
        elif self.weight_map == 'hr_gradient':
            weight_map = F.gradient_map(target)
        else:
            if lq is None:
                raise ValueError("weight_map 'lr_gradient' needs the low-quality input: forward(pred, target, lq=...)")
            weight_map = interpolate(F.gradient_map(lq), size=target.shape[-2:], mode='nearest')
            check_shapes(target=target, gradients_of_lq=weight_map)
        return self._weighted(pred, target, self.img_range * weight_map)
