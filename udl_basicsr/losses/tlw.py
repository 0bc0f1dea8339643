"""The formulas of TLW: pixel weights that a network learns from what a perceptual judge sees.

Mellatshahi and Kasaei, Trainable Loss Weights in Super-Resolution, arXiv 2301.10575. x target, f prediction, w weights
in [0, 1], D a distance of images, sg stops the gradient. All maps are (N, C, H, W).
"""
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli


def fixed_sum(x: Tensor, k: float | Tensor) -> Tensor:
    """FixedSum (eq. 5): moves values in [0, 1] so that those of each channel have the mean k.

    With N pixels in a channel and S = sum(x): x + (kN - S)/(N - S)*(1 - x) if kN > S, else x*kN/S. The result lies in
    [0, 1] and sums to kN. Its derivative (eq. 6), delta the Kronecker delta:

    - kN > S: dy_i/dx_j = N(1 - k)/(N - S) * (delta_ij - (1 - x_i)/(N - S))
    - else:   dy_i/dx_j = kN/S * (delta_ij - x_i/S)

    Where a denominator is 0 (S = N with k = 1; S = 0 with k = 0) the channel is already what is asked for, and stays.

    Args:
        x (Tensor): (..., H, W), in [0, 1].
        k (float | Tensor): The mean, in [0, 1]; a tensor broadcasts against (..., 1, 1).

    Raises:
        ValueError: A number k outside of [0, 1]. (A tensor is not looked at, which would cost a synchronisation.)
    """
    if not isinstance(k, Tensor) and not 0 <= k <= 1:
        raise ValueError(f'k: expected a number in [0, 1], got {k}')
    total = x.sum(dim=(-2, -1), keepdim=True)
    rest = (1 - x).sum(dim=(-2, -1), keepdim=True)  # N - S, without its cancellation
    wanted = k * (x.shape[-2] * x.shape[-1])
    raises = wanted > total
    # Each branch with a denominator that is harmless where the other one is taken: where() passes NaN gradients on.
    up = ((wanted - total) / torch.where(raises, rest, 1)).clamp(max=1)  # rounding may say 1 + 1e-7
    down = wanted / torch.where(raises | (total == 0), 1, total)
    return torch.where(raises, x + up * (1 - x), x * down)


def relaxed_bernoulli(prob: Tensor, temperature: float, samples: int) -> Tensor:
    """Samples w ~ relaxed Bernoulli(prob), differentiable in ``prob``: sigmoid((logit(prob) + L)/temperature).

    L is logistic noise, so P(w > 1/2) = prob at any temperature. Towards temperature 0 the samples are 0 or 1, towards
    infinity 1/2 (Maddison et al., The Concrete Distribution, ICLR 2017).

    Args:
        prob (Tensor): Any shape, in [0, 1].
        temperature (float): > 0.
        samples (int): How many.

    Returns:
        Tensor: (samples, *prob.shape), in [0, 1].
    """
    # Unvalidated, which would read the tensor back; RelaxedBernoulli itself always validates. It clamps probabilities.
    logits = LogitRelaxedBernoulli(prob.new_tensor(temperature), probs=prob, validate_args=False)
    return torch.sigmoid(logits.rsample((samples, )))


def weight_criterion(weights: Tensor, pred: Tensor, target: Tensor, distance: Callable[[Tensor, Tensor], Tensor],
                     eps: float) -> Tensor:
    """WC (eq. 4): (D(w*f + (1 - w)*x, x) + eps)/(D((1 - w)*f + w*x, x) + eps), for each image.

    Above 1 where w chose those pixels of f that disturb the judge more than the others do.

    Args:
        weights (Tensor): w, (T, N, C, H, W) or with C = 1: T maps for each image.
        pred (Tensor): f, (N, C, H, W).
        target (Tensor): x, the same.
        distance (Callable): D((M, C, H, W), (N, C, H, W)) -> (M, ), image m being compared with target m mod N.
        eps (float): Keeps the ratio near 1 where f cannot be told from x.

    Returns:
        Tensor: (T, N), > 0.
    """
    difference = weights * (pred - target)
    chosen = target + difference        # w*f + (1 - w)*x
    others = pred - difference          # (1 - w)*f + w*x
    both = torch.cat([chosen, others]).flatten(0, 1)
    over, under = (distance(both, target) + eps).unflatten(0, (2, *weights.shape[:2]))
    return over / under


def k_schedule(position: float, start: float = 0.3, gain: float = 0.6, tau: float = 200.) -> float:
    """k = gain*(1 - exp(-position/tau)) + start (section IV-A), position and tau in epochs or in iterations."""
    return gain * -math.expm1(-position / tau) + start


def sr_weights(weights: Tensor, criterion: Tensor) -> Tensor:
    """sum_t sg[WC(w_t)*w_t] (eq. 13): the map that the pixel loss of the SR network is multiplied by.

    Args:
        weights (Tensor): w, (T, N, C, H, W).
        criterion (Tensor): WC, (T, N).

    Returns:
        Tensor: (N, C, H, W), without gradient.
    """
    return torch.einsum('tn,tnchw->nchw', criterion.detach(), weights.detach())


def mse_weights(weights: Tensor, pred: Tensor, target: Tensor, offset: float = 0.1) -> Tensor:
    """w/(|x - f| + 0.1) (section IV-A): under the squared error, so that it grows as the absolute one. No gradient.

    ``offset`` is in the unit of the pixels, [0, 1].
    """
    return weights / (torch.abs(target - pred).detach() + offset)
