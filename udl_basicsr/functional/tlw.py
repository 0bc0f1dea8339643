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
    [0, 1] and sums to kN. (Over each channel by itself as released; eq. 5 has a vector.) Its derivative, of which eq. 6
    prints the diagonal, delta the Kronecker delta:

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
    logits = LogitRelaxedBernoulli(prob.new_full((), temperature), probs=prob, validate_args=False)
    return torch.sigmoid(logits.rsample((samples, )))


def judged_distances(weights: Tensor, pred: Tensor, target: Tensor,
                     distance: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """D(w*f + (1 - w)*x, x) and D((1 - w)*f + w*x, x): how much what w chose disturbs the judge, and all the rest.

    Args:
        weights (Tensor): w, (T, N, C, H, W) or with C = 1: T maps for each image.
        pred (Tensor): f, (N, C, H, W).
        target (Tensor): x, the same.
        distance (Callable): D((M, C, H, W), (N, C, H, W)) -> (M, ), image m being compared with target m mod N.

    Returns:
        tuple: Both (T, N), >= 0.
    """
    difference = weights * (pred - target)
    chosen = target + difference        # w*f + (1 - w)*x
    others = pred - difference          # (1 - w)*f + w*x
    both = torch.cat([chosen, others]).flatten(0, 1)
    over, under = distance(both, target).unflatten(0, (2, *weights.shape[:2]))
    return over, under


def weight_criterion(over: Tensor, under: Tensor, eps: float) -> Tensor:
    """WC = (D_over + eps)/(D_under + eps) (eq. 4), of the distances of :func:`judged_distances`.

    Above 1 where w chose those pixels of f that disturb the judge more than the others do. ``eps`` keeps the ratio near
    1 where f cannot be told from x.
    """
    return (over + eps) / (under + eps)


def k_schedule(position: float, start: float = 0.3, gain: float = 0.6, tau: float = 200.) -> float:
    """k, the mean of the weights, as training goes on: gain*(1 - exp(-position/tau)) + start.

    As printed with the defaults and the position in epochs (section IV-A); as released, tau is 100.
    """
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


def expected_likelihood_loss(weights: Tensor, prob: Tensor, error: Tensor) -> Tensor:
    """-ln( sum_t p_t*exp(-mean(w_t*e)) / sum_t p_t ) of each image: the SR network's loss as released.

    The logarithm of the expected likelihood, where eq. 11 to 13 have the expectation of its logarithm. The program's
    pixels lie in [-1, 1], where e is twice what it is in [0, 1].

    Args:
        weights (Tensor): w, (T, N, C, H, W); a constant.
        prob (Tensor): p, (T, N), >= 0; a constant.
        error (Tensor): What the weights multiply, (N, C, H, W).

    Returns:
        Tensor: (N, ), >= 0.
    """
    log_prob = prob.detach().clamp_min(torch.finfo(prob.dtype).tiny).log()
    weighted = (weights.detach() * error).mean(dim=(-3, -2, -1))
    return torch.logsumexp(log_prob, dim=0) - torch.logsumexp(log_prob - weighted, dim=0)


def pixel_error(pred: Tensor, target: Tensor, base: str = 'l1', mse_offset: float = 0.1) -> Tensor:
    """What the weights multiply: |x - f| for ``'l1'``, and (x - f)^2 / (sg|x - f| + 0.1) for ``'mse'`` (section III-C).

    The paper divides the weights of the squared error, so that it grows as the absolute one; that is the same.

    Args:
        pred (Tensor): f, (N, C, H, W).
        target (Tensor): x, the same.
        base (str): ``'l1'`` or ``'mse'``.
        mse_offset (float): In the unit of the pixels; 0.1 as printed. The program has 0.2 for pixels in [-1, 1], which
            is 0.1 in [0, 1], and half of that where nothing is drawn.
    """
    error = torch.abs(target - pred)
    return error if base == 'l1' else error.square() / (error.detach() + mse_offset)
