"""Likelihoods and scores that later works train an uncertainty with, per pixel.

Notation as in ``losses``: e = |x - f| and all distances in 0-255 units, s = ln(theta), sg the stop of the gradient.
What a head with two maps puts out is read by ``distributions``.
"""
import torch
from torch import Tensor
from torch.nn.functional import relu

from .distributions import GeneralisedGaussianDistribution, QuantileDistribution, check_level
from .losses import laplace_nll_terms

LEAST_ERROR = 1e-3
"""Grey levels. Below it e counts as this much: the slope of e^beta at 0 is infinite where beta < 1."""


def beta_nll_terms(error: Tensor, log_scale: Tensor, beta: float = 0.5) -> tuple[Tensor, Tensor]:
    """The two terms of EU times sg[theta^beta], their sum sg[e^(beta*s)]*(exp(-s)*e + s).

    Seitzer et al., On the Pitfalls of Heteroscedastic Uncertainty Estimation, ICLR 2022 (arXiv 2203.09168). Theirs:
    Gauss' likelihood times sg[sigma^(2*beta)]. Ours: Laplace's, and theta in the place of the variance. beta 0 is EU;
    at 1 the gradient to the image is L1's, whatever s is.

    Args:
        error (Tensor): e, (N, C, H, W).
        log_scale (Tensor): s, same shape.
        beta (float): In [0, 1].

    Returns:
        tuple: Both terms, each of the shape of ``error``.
    """
    fidelity, log_term = laplace_nll_terms(error, log_scale)
    weight = torch.exp(beta * log_scale).detach()
    return weight * fidelity, weight * log_term


def generalised_gaussian_nll_terms(error: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
    """The two terms of the generalised Gaussian's: (e/alpha)^beta and ln(alpha/beta) + ln Gamma(1/beta).

    Upadhyay et al., BayesCap, ECCV 2022 (arXiv 2207.06873): the power of e/alpha is their formula, where the released
    program multiplies by beta. With beta = 1 their sum is EU's.

    Args:
        error (Tensor): e, (N, C, H, W).
        raw (Tensor): What a head of :class:`~.distributions.GeneralisedGaussianDistribution` puts out, (N, 2C, H, W).

    Returns:
        tuple: Both terms, each of the shape of ``error``.
    """
    log_alpha, beta = GeneralisedGaussianDistribution.parameters(raw)
    ratio = error.clamp_min(LEAST_ERROR) * torch.exp(-log_alpha)
    return ratio**beta, log_alpha - beta.log() + torch.lgamma(1 / beta)


def pinball(residual: Tensor, quantile: float) -> Tensor:
    """max(q*u, (q - 1)*u) of u = truth - prediction: least, on average, where the prediction is the quantile q."""
    return quantile * relu(residual) + (1 - quantile) * relu(-residual)


def quantile_terms(residual: Tensor, raw: Tensor, level: float = 0.9) -> tuple[Tensor, Tensor]:
    """The pinball losses of the lower quantile (1 - level)/2 and of the upper one (1 + level)/2.

    Angelopoulos et al., ICML 2022 (arXiv 2202.05265).

    Args:
        residual (Tensor): x - f with its sign, in 0-255 units, (N, C, H, W).
        raw (Tensor): What a head of :class:`~.distributions.QuantileDistribution` puts out, (N, 2C, H, W).
        level (float): Between 0 and 1: the share of the truth that is to lie between the two.

    Returns:
        tuple: Both losses, each of the shape of ``residual``.
    """
    check_level(level)
    below, above = QuantileDistribution.distances(raw)
    return pinball(residual + below, (1 - level) / 2), pinball(residual - above, (1 + level) / 2)
