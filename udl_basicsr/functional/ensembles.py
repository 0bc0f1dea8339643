"""What several predictions of one image say together: their mean, their spread, and the scale of both uncertainties.

Lakshminarayanan et al., Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles, NeurIPS 2017
(arXiv 1612.01474): the members are an even mixture, whose variance is the mean of their variances (what no network
could know, *aleatoric*) and the variance of their means (what these do not agree on, *epistemic*). Ours: that
variance is told as the scale theta of the Laplace density that has it, 2 theta^2.
"""
from collections.abc import Iterable

import torch
from torch import Tensor

from .losses import at_least_float32

LEAST_SCALE = 1e-3
"""Grey levels: what a total scale is at least, since members that agree exactly have a spread of 0."""


def mean_and_variance(members: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance over any number of maps, none of which is kept (Welford's method, in float64).

    Args:
        members (Iterable[Tensor]): Of one shape, at least one.

    Returns:
        tuple: Mean, and variance with the number of members below the line (an even mixture's own); both in the
            members' dtype, of half precision in float32: a mean is finer than what it is of. One member has no
            variance: 0.

    Raises:
        ValueError: No member.
    """
    remaining = iter(members)
    like = next(remaining, None)
    if like is None:
        raise ValueError('expected at least one member of the ensemble, got none')
    mean = like.double().clone()
    count, squares = 1, torch.zeros_like(mean)
    for count, member in enumerate(remaining, 2):
        value = member.double()
        difference = value - mean
        mean += difference / count
        squares += difference * (value - mean)
    like = at_least_float32(like)
    return mean.to(like), (squares / count).to(like)


def total_log_scale(spread_variance: Tensor, mean_of_variances: Tensor | float = 0.) -> Tensor:
    """s of the mixture: half the log of half its variance, in 0-255 units.

    Args:
        spread_variance (Tensor): Variance of the members' images, in 0-255 units squared.
        mean_of_variances (Tensor | float): Mean of the variances that they say, in the same; 0 where they say none.
    """
    return 0.5 * ((mean_of_variances + spread_variance) / 2).clamp_min(LEAST_SCALE**2).log()
