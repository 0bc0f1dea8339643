"""The formulas, as pure functions of tensors. Everything registered in ``*_loss.py`` is a thin shell around these.

Notation: x target, f prediction, e = |x - f|, s = ln(theta) the natural log of the Laplace scale **in 0-255 units**.
All maps are (N, C, H, W). Functions keep the dtype they are given; the loss classes see to float32.
"""
import torch
from torch import Tensor

#: ELU(x) > -1 for every x, so a head that ends in ELU cannot say s <= -1.
ELU_FLOOR = -1.0

SCALINGS = ('linear', 'exp', 'sqrt_exp', 'log')
MIN_OVER = ('image', 'channel')


def laplace_nll_terms(error: Tensor, log_scale: Tensor, prior: float = 0.) -> tuple[Tensor, Tensor]:
    """The two terms of the Laplace negative log-likelihood of a residual, per pixel.

    Their sum is exp(-s)*e + (1 + prior)*s. ``prior=0`` is EU (UDL paper, eq. 6; optimum s* = ln e), ``prior=1`` adds
    Jeffreys' prior p(theta) = 1/theta and is ESU (eq. 9; optimum s* = ln(e/2)).

    Args:
        error (Tensor): e = |x - f| in 0-255 units, >= 0.
        log_scale (Tensor): s, same shape.
        prior (float): Power of Jeffreys' prior.

    Returns:
        tuple: fidelity exp(-s)*e and log term (1 + prior)*s, each of the shape of ``error``.
    """
    return torch.exp(-log_scale) * error, (1. + prior) * log_scale


def gram_terms(error: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """GRAM (gradient rescaling attention model, 2019): both EU terms times sg[sigmoid(s)], sg = stop-gradient.

    With ``error`` squared it is the l2 form, in which s is the log of a squared scale and s* = ln(e^2).
    """
    fidelity, log_term = laplace_nll_terms(error, log_scale)
    attention = torch.sigmoid(log_scale).detach()
    return attention * fidelity, attention * log_term


def scale_log_scale(log_scale: Tensor, scaling: str = 'linear', offset: float = 0., min_over: str = 'image') -> Tensor:
    """Turns s (or another map) into the weight of UDL (eq. 10 and table 4 of the UDL paper).

    ========== ======================= ==========================================================================
    scaling    weight                  note
    ========== ======================= ==========================================================================
    linear     s - min s               eq. 10, the paper's choice
    exp        exp(s)                  the scale theta itself
    sqrt_exp   exp(s)^(1/2)            computed as exp(s/2), which does not overflow before its result does
    log        ln(1 + (s - min s))     s may be <= 0, where ln s is undefined; moved so that its minimum is 1, the
                                       logarithm is defined everywhere and has the minimum 0
    ========== ======================= ==========================================================================

    Args:
        log_scale (Tensor): (N, C, H, W).
        scaling (str): One of the names above.
        offset (float): Added to the weight. The released code adds 1 to s - min s, the paper nothing.
        min_over (str): ``'image'`` takes the minimum over C, H, W (the paper), ``'channel'`` over H, W (released code).

    Raises:
        ValueError: Unknown ``scaling`` or ``min_over``.
    """
    if scaling not in SCALINGS:
        raise ValueError(f'scaling: expected one of {", ".join(SCALINGS)}, got {scaling!r}')
    if min_over not in MIN_OVER:
        raise ValueError(f'min_over: expected one of {", ".join(MIN_OVER)}, got {min_over!r}')
    if scaling == 'exp':
        weight = torch.exp(log_scale)
    elif scaling == 'sqrt_exp':
        weight = torch.exp(log_scale / 2)
    else:
        minimum = log_scale.amin(dim=(1, 2, 3) if min_over == 'image' else (2, 3), keepdim=True)
        weight = log_scale - minimum
        if scaling == 'log':
            weight = torch.log1p(weight)
    return weight + offset


def gradient_map(img: Tensor) -> Tensor:
    """G(i,j) = ||(I(i+1,j) - I(i,j), I(i,j+1) - I(i,j))||_2 per channel (UDL paper, eq. 11).

    Past the last row and column the image is taken as constant, so the map has the shape of the image and the
    difference across that border is 0. Any unit; the map has the image's.

    Args:
        img (Tensor): (N, C, H, W).
    """
    down = torch.zeros_like(img)
    right = torch.zeros_like(img)
    down[..., :-1, :] = img[..., 1:, :] - img[..., :-1, :]
    right[..., :, :-1] = img[..., :, 1:] - img[..., :, :-1]
    return torch.hypot(down, right)


def floor_share(log_scale: Tensor, floor: float = ELU_FLOOR, margin: float = 0.01) -> Tensor:
    """The share of s within ``margin`` of the ELU floor, a scalar in [0, 1]. Near 1 means that s carries nothing."""
    return (log_scale <= floor + margin).to(torch.float32).mean()


def reduce(loss: Tensor, reduction: str) -> Tensor:
    """``'none'``, ``'mean'`` or ``'sum'`` of a loss map."""
    if reduction == 'mean':
        return loss.mean()
    return loss.sum() if reduction == 'sum' else loss
