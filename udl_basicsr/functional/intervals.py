"""What intervals and a predicted spread are worth: coverage, width, scores and calibration by bins, in plain NumPy.

As in :mod:`.uncertainty`: e = |x − f| and θ in 0–255 units (grey levels), arrays of one shape, computed in float64. An
interval is f ± w, with w its half-width in grey levels: of a distribution its ``half_width`` times θ (see
:mod:`.distributions`), of a calibrated one λθ.
"""
from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from .uncertainty import average_ranks, flat_pair

BINS = 20
"""Bins of equally many values, from the smallest predicted spread to the largest."""
STRATA = 4
"""Quarters of an image's values by the width of their intervals."""


# ---------------------------------------------------------------- intervals

def inside(error: np.ndarray, half_width: np.ndarray, rounding: float = 0.) -> np.ndarray:
    """Which values lie within their intervals, 1 or 0, flat.

    With ``rounding`` 1 (SR rounded to whole grey levels) the part of ±e ± ½ that lies within: see
    :func:`~udl_basicsr.functional.uncertainty.calibration_curve`.
    """
    error, half_width = flat_pair(error, half_width, half_widths=True)
    if not rounding:
        return (error <= half_width).astype(np.float64)
    low, high = error - rounding / 2, error + rounding / 2
    return (np.minimum(high, half_width) - np.maximum(low, -half_width)).clip(min=0) / rounding


def coverage(error: np.ndarray, half_width: np.ndarray, rounding: float = 0.) -> float:
    """PICP, the share of values within their intervals, in [0, 1]; to be 1 − α, neither more nor less.

    Khosravi et al., Comprehensive Review of Neural Network-Based Prediction Intervals, IEEE TNN 2011.
    """
    return float(inside(error, half_width, rounding).mean())


def interval_score(error: np.ndarray, half_width: np.ndarray, alpha: float = 0.1) -> float:
    """Mean of 2w + 2/α · max(e − w, 0), in grey levels; lower is better, and least for the true quantiles.

    Gneiting and Raftery, Strictly Proper Scoring Rules, Prediction, and Estimation, JASA 2007, of intervals f ± w.
    """
    error, half_width = flat_pair(error, half_width, half_widths=True)
    return float(np.mean(2 * half_width + 2 / alpha * np.maximum(error - half_width, 0)))


def stratified_risks(error: np.ndarray, half_width: np.ndarray, strata: int = STRATA, rounding: float = 0.,
                     width: np.ndarray | None = None) -> np.ndarray:
    """The share outside, in each of ``strata`` groups of equally many values, from narrow intervals to wide ones.

    Angelopoulos et al., Image-to-Image Regression with Distribution-Free Uncertainty Quantification, ICML 2022, arXiv
    2202.05265. Equal shares: hard pixels are served as well as easy ones. Values of equal width keep their order.

    Args:
        error (ndarray): e = |x − f|.
        half_width (ndarray): w; of an interval that is not symmetric, its half on the side on which x lies.
        strata (int): How many groups.
        rounding (float): As in :func:`inside`.
        width (ndarray | None): Of the whole intervals, by which they are sorted: that half depends on the truth, so
            that groups by it would be groups by the sign of the residual. None: 2w.

    Returns:
        ndarray: Shape (strata,), in [0, 1].

    Raises:
        ValueError: Fewer values than groups.
    """
    if not 1 <= strata <= np.size(error):
        raise ValueError(f'strata: expected at least 1 and at most as many as there are values, {np.size(error)}, got '
                         f'{strata}')
    outside = 1 - inside(error, half_width, rounding)
    order = np.argsort(np.ravel(half_width if width is None else width), kind='stable')
    return np.array([part.mean() for part in np.array_split(outside[order], strata)])


def coverage_map(error: np.ndarray, half_width: np.ndarray, window: int = 16) -> np.ndarray:
    """Where intervals hold: the share of values within, in windows side by side.

    Args:
        error (ndarray): (H, W, C) or (H, W).
        half_width (ndarray): Likewise.
        window (int): Side in pixels; what is left at the right and below makes smaller windows.

    Returns:
        ndarray: (⌈H/window⌉, ⌈W/window⌉), in [0, 1].
    """
    held = inside(error, half_width).reshape(np.shape(error))
    held = held.mean(axis=2) if held.ndim == 3 else held
    rows, columns = (range(0, side, window) for side in held.shape)
    return np.array([[held[i:i + window, j:j + window].mean() for j in columns] for i in rows])


# ---------------------------------------------------------------- the whole distribution

def laplace_crps(error: np.ndarray, scale: np.ndarray) -> float:
    """Mean continuous ranked probability score of Laplace(f, θ): e + θ exp(−e/θ) − ¾θ, in grey levels; lower is better.

    ∫(F(t) − 1[t ≥ x])² dt in closed form; Gneiting and Raftery, JASA 2007, for the score. As θ → 0
    it is the mean |error|.
    """
    error, scale = flat_pair(error, scale)
    return float(np.mean(error + scale * np.exp(-error / scale) - 0.75 * scale))


def gaussian_crps(error: np.ndarray, scale: np.ndarray) -> float:
    """That of the normal distribution around f with E e = θ, so σ = √(π/2)·θ: σ(z(2Φ(z) − 1) + 2φ(z) − 1/√π), z = e/σ.

    Gneiting and Raftery, JASA 2007, section 4.2.
    """
    error, scale = flat_pair(error, scale)
    sigma = math.sqrt(math.pi / 2) * scale
    z = error / sigma
    density = np.exp(-z**2 / 2) / math.sqrt(2 * math.pi)
    return float(np.mean(sigma * (z * (2 * ndtr(z) - 1) + 2 * density - 1 / math.sqrt(math.pi))))


# ---------------------------------------------------------------- calibration by bins

def _binned(error: np.ndarray, scale: np.ndarray, bins: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Both in bins of equally many values, sorted by the second; values of equal scale keep their order."""
    error, scale = flat_pair(error, scale)
    if error.size < bins:
        raise ValueError(f'bins: expected at most as many as there are values, {error.size}, got {bins}')
    order = np.argsort(scale, kind='stable')
    return np.array_split(error[order], bins), np.array_split(scale[order], bins)


def binned_spread(error: np.ndarray, scale: np.ndarray, bins: int = BINS,
                  variance: float = 2.) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and observed spread, bin by bin: √(mean σ²) and √(mean e²), in grey levels.

    The bins hold equally many values, sorted by θ. Values of equal θ keep their order.

    Args:
        error (ndarray): e in 0–255 units.
        scale (ndarray): θ in 0–255 units, of the same shape.
        bins (int): How many.
        variance (float): σ²/θ²: 2 of a Laplace distribution, π/2 of a normal one.

    Returns:
        tuple: Two arrays of shape (bins,); on the diagonal: calibrated.

    Raises:
        ValueError: Fewer values than bins.
    """
    errors, scales = _binned(error, scale, bins)
    return (np.sqrt([variance * np.mean(part**2) for part in scales]),
            np.sqrt([np.mean(part**2) for part in errors]))


def binned_widths(error: np.ndarray, half_width: np.ndarray, alpha: float = 0.1, bins: int = BINS,
                  rounding: float = 0.) -> tuple[np.ndarray, np.ndarray]:
    """Promised and observed half-width, bin by bin: the mean w, and the error that a share 1 − α stays below.

    Bins as in :func:`binned_spread`, by w. With ``rounding`` 1 each error counts as spread evenly over ±½, drawn at
    random and always the same, since what rounding hides is not 0: see :func:`inside`.

    Returns:
        tuple: Two arrays of shape (bins,), in grey levels; on the diagonal: the intervals hold what they promise in
            each bin, narrow or wide. Above it: they are too narrow there.
    """
    errors, widths = _binned(error, half_width, bins)
    generator = np.random.default_rng(0)
    errors = [np.abs(part + rounding * generator.uniform(-0.5, 0.5, part.shape)) for part in errors]
    return np.array([part.mean() for part in widths]), np.array([np.quantile(part, 1 - alpha) for part in errors])


def ence(error: np.ndarray, scale: np.ndarray, bins: int = BINS, variance: float = 2.) -> float:
    """Expected normalised calibration error: mean over the bins of |RMSE − σ|/σ, no unit; 0 is calibrated.

    Levi, Gispan, Giladi and Fetaya, Evaluating and Calibrating Uncertainty Prediction in Regression Tasks, arXiv
    1905.11659. It grows with the number of bins, which therefore belongs to the figure: 20 of equal counts.
    Arguments as of :func:`binned_spread`.
    """
    predicted, observed = binned_spread(error, scale, bins, variance)
    return float(np.mean(np.abs(observed - predicted) / predicted))


def uce(error: np.ndarray, scale: np.ndarray, bins: int = BINS, variance: float = 2.) -> float:
    """Uncertainty calibration error: mean over the bins of |mean e² − mean σ²|, in squared grey levels.

    Laves, Ihler, Fast, Kahrs and Ortmaier, Well-Calibrated Regression Uncertainty in Medical Imaging with Deep
    Learning, MIDL 2020: weighted by the number of values in a bin, which is the same for all here. Arguments as of
    :func:`binned_spread`.
    """
    predicted, observed = binned_spread(error, scale, bins, variance)
    return float(np.mean(np.abs(observed**2 - predicted**2)))


# ---------------------------------------------------------------- images told apart

def auroc(inliers: ArrayLike, outliers: ArrayLike) -> float:
    """The probability that an image of the second kind has the larger value, ties one half; in [0, 1], chance is ½.

    Args:
        inliers (ndarray): A value for each image as trained for, such as its mean θ; shape (n,).
        outliers (ndarray): For each shifted image, shape (m,).
    """
    usual, shifted = (np.ravel(a).astype(np.float64) for a in (inliers, outliers))
    if not (usual.size and shifted.size and np.isfinite([*usual, *shifted]).all()):
        raise ValueError('expected finite values of images of both kinds')
    ranks = average_ranks(np.concatenate([usual, shifted]))[usual.size:]
    return float((ranks.sum() / shifted.size - (shifted.size + 1) / 2) / usual.size)
