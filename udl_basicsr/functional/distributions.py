"""What an uncertainty head says of the truth x around the image f, whatever kind of head it is.

A head puts out one or two maps for each channel of the image, (N, maps*C, H, W), all first maps before all second ones.
A :class:`Distribution` reads them. All distances are in 0-255 units (grey levels) and >= 0:

- ``scale``: theta, the expected |x - f|, of which s is the logarithm: what weights, rankings and pictures take.
- ``variance``: of x around f.
- ``interval``: (below, above) for a level, so that [f - below, f + above] holds the truth with that probability.
  A calibration widens both by one factor.

Code that asks a network rather than tensors: ``UncertaintyNet.log_scale(lq)``, ``.interval(lq, level)``.
"""
import math

import torch
from scipy.special import gammaincinv
from torch import Tensor
from torch.nn.functional import softsign

from .log_scale_maps import LOG_SCALE_MIN
from .losses import at_least_float32


def check_level(level: float) -> None:
    """Refuses what is no probability that an interval could have, with a ValueError."""
    if not 0 < level < 1:
        raise ValueError(f'level: expected a probability between 0 and 1, such as 0.9, got {level!r}')


class Distribution:
    """How the maps of a head are read; the classes below are the kinds."""
    name = ''
    maps = 1
    """So many maps for each channel."""
    floor = -1.
    """The least s of a head that ends in ELU, which it reaches by rounding alone."""

    def learned(self, raw: Tensor) -> Tensor:
        """``raw``, as a head gives it to the loss: what the gradient to the head may differ in is done here."""
        return raw

    def log_scale(self, raw: Tensor) -> Tensor:
        """s = ln(theta), (N, C, H, W), of what the head puts out, (N, maps*C, H, W)."""
        raise NotImplementedError

    def scale(self, raw: Tensor) -> Tensor:
        """theta = E|x - f|, (N, C, H, W)."""
        return at_least_float32(self.log_scale(raw)).exp()

    def variance(self, raw: Tensor) -> Tensor:
        """E(x - f)^2, (N, C, H, W)."""
        raise NotImplementedError

    def interval(self, raw: Tensor, level: float) -> tuple[Tensor, Tensor]:
        """(below, above), each (N, C, H, W): central where nothing else is said."""
        half = self.scale(raw) * self.half_width(level)
        return half, half

    def half_width(self, level: float) -> float:
        """Half of the central interval in units of theta, for the kinds whose shape is fixed."""
        raise NotImplementedError


class LaplaceDistribution(Distribution):
    """One map, s = ln(theta): density exp(-e/theta)/(2 theta), variance 2 theta^2. EU, ESU, GRAM, beta-NLL."""
    name = 'laplace'

    def log_scale(self, raw):
        return raw

    def variance(self, raw):
        return 2 * (2 * at_least_float32(raw)).exp()

    def half_width(self, level):
        check_level(level)
        return -math.log1p(-level)


class GaussianDistribution(Distribution):
    """One map, ln(sigma): E|x - f| = sqrt(2/pi) sigma. For heads that GaussianNLLLoss trains."""
    name = 'gaussian'
    _shift = 0.5 * math.log(2 / math.pi)
    floor = -1. + _shift

    def log_scale(self, raw):
        return at_least_float32(raw) + self._shift

    def variance(self, raw):
        return (2 * at_least_float32(raw)).exp()

    def half_width(self, level):
        check_level(level)
        return float(torch.special.erfinv(torch.tensor(level, dtype=torch.float64))) * math.sqrt(math.pi)


class GeneralisedGaussianDistribution(Distribution):
    """Two maps, s = ln(theta) and a shape: density beta/(2 alpha Gamma(1/beta)) exp(-(e/alpha)^beta).

    Upadhyay et al., BayesCap, ECCV 2022 (arXiv 2207.06873). beta = 1 is Laplace with theta = alpha, beta = 2 is Gauss
    with sigma = alpha/sqrt(2). Ours, for else the head ends far from what it can say:

    - It says theta = alpha Gamma(2/beta)/Gamma(1/beta) instead of alpha: a change of the shape leaves the scale alone.
    - beta = 2^(-m/(1 + |m|)) of the second map m: 1 at first, between 1/2 and sqrt(2) where m > -1, as behind an ELU.
      Far above 2 one error undoes what many have taught; below 1/2 all of them teach little. The first errors ask for
      heavy tails, since theta has not grown yet; so those lie where an ELU does not keep m from coming back.
    - The shape passes a tenth of its gradient on to the features that it shares with theta (:meth:`learned`).
    """
    name = 'generalised_gaussian'
    maps = 2

    @staticmethod
    def parameters(raw: Tensor) -> tuple[Tensor, Tensor]:
        """ln(alpha) and beta, each (N, C, H, W)."""
        log_scale, shape = at_least_float32(raw).chunk(2, dim=1)
        beta = torch.exp2(-softsign(shape))
        return log_scale + torch.lgamma(1 / beta) - torch.lgamma(2 / beta), beta

    def learned(self, raw):
        if not raw.requires_grad:
            return raw
        passed_on = torch.ones(2, raw.shape[1] // 2, 1, 1, dtype=raw.dtype, device=raw.device)
        passed_on[1] = 0.1
        return raw.detach().lerp(raw, passed_on.view(1, -1, 1, 1))

    def log_scale(self, raw):
        return at_least_float32(raw).chunk(2, dim=1)[0]

    def variance(self, raw):
        log_alpha, beta = self.parameters(raw)
        return (2 * log_alpha + torch.lgamma(3 / beta) - torch.lgamma(1 / beta)).exp()

    def interval(self, raw, level):
        check_level(level)
        log_alpha, beta = (value.detach().double().cpu() for value in self.parameters(raw))  # SciPy knows no gradient
        # P(e <= q) = P(1/beta, (q/alpha)^beta), the lower incomplete gamma function, regularised
        half = log_alpha.exp() * torch.from_numpy(gammaincinv(1 / beta.numpy(), level))**(1 / beta)
        half = half.to(at_least_float32(raw))
        return half, half


class QuantileDistribution(Distribution):
    """Two maps, how far the lower and the upper quantile lie from the image: 1 + map, > 0 for a head that ends in ELU.

    Angelopoulos et al., ICML 2022 (arXiv 2202.05265): quantiles alpha/2 and 1 - alpha/2 by pinball losses. That the
    quantiles are told as distances from the image is ours; the truth of a sharp image lies on both sides of it.

    Nothing is said of other levels than the one that was trained for, ``trained_level``; ours: for another level both
    distances, and for theta their mean, change as those of a Laplace density do. The distances may come as near to 0 as
    float32 can tell; s ends at -2, an eighth of a grey level, or else UDL's s - min s would be large everywhere, and
    much the same.

    Args:
        trained_level (float): 1 - alpha of the loss.
    """
    name = 'quantile'
    maps = 2
    floor = LOG_SCALE_MIN

    def __init__(self, trained_level: float = 0.9):
        check_level(trained_level)
        self.trained_level = trained_level

    @staticmethod
    def distances(raw: Tensor) -> tuple[Tensor, Tensor]:
        """From the image down to the lower and up to the upper quantile, each (N, C, H, W)."""
        below, above = (1 + at_least_float32(raw)).chunk(2, dim=1)
        return below, above

    def log_scale(self, raw):
        below, above = self.distances(raw)
        mean = (below + above) / 2
        return (mean / -math.log1p(-self.trained_level)).clamp_min(math.exp(self.floor)).log()

    def variance(self, raw):
        return 2 * self.scale(raw).square()

    def interval(self, raw, level):
        check_level(level)
        factor = 1. if level == self.trained_level else math.log1p(-level) / math.log1p(-self.trained_level)
        below, above = self.distances(raw)
        return factor * below, factor * above


DISTRIBUTIONS = {kind.name: kind for kind in (LaplaceDistribution, GaussianDistribution,
                                              GeneralisedGaussianDistribution, QuantileDistribution)}
