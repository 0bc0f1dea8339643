"""Intervals and masks with a promise: how far they must reach, found on images kept apart. Plain NumPy.

An image is the unit. Its *risk* is a share of its pixels, so one number in [0, 1] for each image; pixels of one image
depend on one another, and nothing is ever counted over them as if they did not. Both methods ask for one thing, that
the mean risk of the n images be no larger than a limit below α:

* **CRC** promises the mean: E(risk of the next image) ≤ α, over the images calibrated on and the next one, which need
  only be exchangeable (as likely in any order). Angelopoulos, Bates, Fisch, Lei and Schuster, Conformal Risk Control,
  ICLR 2024, arXiv 2208.02814, theorem 1.
* **RCPS** promises it for these very images: with probability 1 − δ over the images calibrated on, the expected risk of
  those that come later is ≤ α; all are independent draws. Bates, Angelopoulos, Lei, Malik and Jordan,
  Distribution-Free, Risk-Controlling Prediction Sets, J. ACM 2021, arXiv 2101.02703, with the Hoeffding–Bentkus bound.

The risk must fall (or rise) with what is looked for, which is why it is asked of the whole curve and not of one value.
"""
from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from udl_basicsr.utils.errors import MISUSED, UdlError

FACTORS = np.geomspace(1e-2, 1e3, 11514)
"""λ that are tried, each 0.1 % above the one before; fixed before any image is seen."""
THRESHOLDS = np.exp(np.arange(-2 * 32, 6 * 32 + 1) / 32)
"""Largest half-widths of a mask that are tried, from e⁻² to e⁶ grey levels, each 3 % above the one before."""
SMALLEST_MASK = 0.01
"""Share of an image that a mask is counted as where it is smaller."""


class TooFewImagesError(UdlError, ValueError):
    """Nothing can be promised from so few images.

    Attributes:
        needed (int): How many images would do.
    """
    status = MISUSED

    def __init__(self, given: int, needed: int, promise: str):
        self.needed = needed
        super().__init__(f'{given} images are too few for {promise}: even if not one pixel lay outside, at least '
                         f'{needed} images are needed')


# ---------------------------------------------------------------- how large the mean risk may be

def images_needed(alpha: float, delta: float | None = None) -> int:
    """The smallest n for which anything can be promised: that of images whose risk is 0.

    CRC (``delta`` None): n ≥ 1/α − 1. RCPS: (1 − α)ⁿ ≤ δ, n ≥ ln δ / ln(1 − α).

    Raises:
        ValueError: α or δ outside (0, 1).

    Example:
        >>> images_needed(0.1), images_needed(0.1, 0.1)
        (9, 22)
    """
    _check(alpha, delta)
    exact = 1 / alpha - 1 if delta is None else math.log(delta) / math.log1p(-alpha)
    return max(1, math.ceil(exact - 1e-9))


def risk_limit(images: int, alpha: float, delta: float | None = None) -> float:
    """The largest mean risk of n images from which the promise follows.

    CRC: α − (1 − α)/n, from n/(n + 1)·R̂ + 1/(n + 1) ≤ α. RCPS: the largest R̂ of which
    :func:`hoeffding_bentkus` is ≤ δ, that is, whose upper bound is ≤ α.

    Args:
        images (int): n.
        alpha (float): The risk to be promised, in (0, 1).
        delta (float | None): The probability with which the promise may fail, in (0, 1); None: CRC, which promises the
            mean.

    Returns:
        float: In [0, α).

    Raises:
        TooFewImagesError: No mean risk would do.
        ValueError: α or δ outside (0, 1).
    """
    needed = images_needed(alpha, delta)
    if images < needed:
        promise = f'α = {alpha:g}' + ('' if delta is None else f' with δ = {delta:g}')
        raise TooFewImagesError(images, needed, promise)
    if delta is None:
        return max(alpha - (1 - alpha) / images, 0.)
    low, high = 0., alpha  # where exp(−n·h) reaches δ
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _hoeffding(middle, images, alpha) <= delta else (low, middle)
    outside = 0  # of n images, each all or nothing
    while outside < images and math.e * _binomial_cdf(outside, images, alpha) <= delta:
        outside += 1
    return max(low, (outside - 1) / images)


def hoeffding_bentkus(risk: float, images: int, alpha: float) -> float:
    """How probable so small a mean risk is at most, were the expected risk α or more: a p-value.

    min(exp(−n·h(R̂, α)), e·P(Bin(n, α) ≤ ⌈nR̂⌉)), h(a, b) = a ln(a/b) + (1 − a) ln((1 − a)/(1 − b)): Hoeffding's bound in
    its tight form and Bentkus's. Bates et al. 2021.

    Args:
        risk (float): R̂, the mean risk of the images, in [0, 1].
        images (int): n, independent ones.
        alpha (float): In (0, 1).

    Returns:
        float: In [0, 1].
    """
    return min(_hoeffding(risk, images, alpha), math.e * _binomial_cdf(math.ceil(images * risk - 1e-9), images, alpha),
               1.)


def _hoeffding(risk: float, images: int, alpha: float) -> float:
    a = min(risk, alpha)
    h = (a * math.log(a / alpha) if a else 0.) + (1 - a) * math.log((1 - a) / (1 - alpha))
    return math.exp(-images * h)


def _binomial_cdf(successes: int, trials: int, probability: float) -> float:
    """P(Bin(n, p) ≤ k)."""
    logs = [math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * math.log(probability)
            + (trials - k) * math.log1p(-probability) for k in range(min(successes, trials) + 1)]
    return min(math.fsum(map(math.exp, logs)), 1.)


def _check(alpha: float, delta: float | None) -> None:
    for name, value in (('alpha', alpha), ('delta', delta)):
        if value is not None and not 0 < value < 1:
            raise ValueError(f'{name}: expected a number between 0 and 1, got {value}')


# ---------------------------------------------------------------- the risks of an image

def interval_risks(error: np.ndarray, scale: np.ndarray, factors: np.ndarray = FACTORS) -> np.ndarray:
    """The share of an image's values outside [f − λθ, f + λθ], for each λ.

    Args:
        error (ndarray): e = |x − f| in 0–255 units, of any shape. Of an interval that is not symmetric, ``scale`` is
            its half on the side on which x lies.
        scale (ndarray): θ in 0–255 units, > 0, of the same shape.
        factors (ndarray): λ, rising, shape (K,).

    Returns:
        ndarray: Shape (K,), in [0, 1], never rising.
    """
    ratio = np.sort(np.ravel(error / scale))
    return 1 - np.searchsorted(ratio, factors, side='right') / ratio.size


def mask_risks(error: np.ndarray, scale: np.ndarray, within: float, thresholds: np.ndarray = THRESHOLDS) -> np.ndarray:
    """The share of a mask's pixels whose error exceeds ``within``, for each mask of pixels whose half-width is ≤ τ.

    The share of a mask need not rise with τ, and without that CRC may fail (proposition 1 of its paper); so each value
    is the largest of those up to its τ. A mask below 1 % of the image counts as 1 % of it, lest one pixel decide.

    Args:
        error (ndarray): e in 0–255 units, shape (H, W): the largest of a pixel's channels.
        scale (ndarray): Half-width of their intervals likewise, or any other measure of how far they may be off.
        within (float): Grey levels.
        thresholds (ndarray): τ, rising, shape (K,).

    Returns:
        ndarray: Shape (K,), in [0, 1], never falling.
    """
    scale, wrong = np.ravel(scale), np.ravel(error) > within
    masked = np.searchsorted(np.sort(scale), thresholds, side='right')
    missed = np.searchsorted(np.sort(scale[wrong]), thresholds, side='right')
    return np.maximum.accumulate(missed / np.maximum(masked, SMALLEST_MASK * scale.size))


# ---------------------------------------------------------------- the choice

def smallest_factor(risks: np.ndarray | Sequence[np.ndarray], limit: float, factors: np.ndarray = FACTORS,
                    ) -> float | None:
    """The smallest λ whose mean risk over the images is within the limit.

    Args:
        risks (ndarray): :func:`interval_risks` of each image, shape (n, K).
        limit (float): :func:`risk_limit`.
        factors (ndarray): λ, shape (K,).

    Returns:
        float | None: None where the largest λ does not suffice.
    """
    good = np.flatnonzero(np.mean(risks, axis=0) <= limit)
    return float(factors[good[0]]) if good.size else None


def largest_threshold(risks: np.ndarray | Sequence[np.ndarray], limit: float, thresholds: np.ndarray = THRESHOLDS,
                      ) -> float:
    """The largest τ whose mean risk over the images is within the limit; 0, an empty mask, where there is none.

    Args:
        risks (ndarray): :func:`mask_risks` of each image, shape (n, K).
        limit (float): :func:`risk_limit`.
        thresholds (ndarray): τ, shape (K,).
    """
    good = np.flatnonzero(np.mean(risks, axis=0) <= limit)
    return float(thresholds[good[-1]]) if good.size else 0.
