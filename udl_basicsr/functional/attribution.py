"""Where a gain comes from: which images have texture, and in which tenths of the pixels the error went. Ours.

Pictures are (H, W, 3) uint8 RGB; s, the natural log of the Laplace scale θ in grey levels, is (H, W).
"""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import uncertainty

STEEP = 16.
"""Grey levels from a pixel to its neighbours from which on it counts as texture or edge."""
LUMA = np.array([0.299, 0.587, 0.114])  # of R, G and B, full range


def luma_gradient(image: np.ndarray) -> np.ndarray:
    """The length of the gradient of luma, grey levels a pixel, from each pixel to its lower and right neighbour.

    It is eq. 11 of the UDL paper, of luma.

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        (H − 1, W − 1).
    """
    luma = image.astype(np.float64) @ LUMA
    return np.hypot(np.diff(luma, axis=0)[:, :-1], np.diff(luma, axis=1)[:-1])


def texture_share(image: np.ndarray, steep: float = STEEP) -> float:
    """The share of pixels whose gradient of luma is at least ``steep`` grey levels, in [0, 1]."""
    return float((luma_gradient(image) >= steep).mean())


def rank_correlation_interval(a: np.ndarray, b: np.ndarray, samples: int = 2000) -> tuple[float, float, float]:
    """Spearman's correlation of two flat arrays, and its interval of 95 %: bootstrap over the pairs.

    Args:
        a, b: (n,), any values.
        samples: Of the bootstrap; the random numbers are always the same.

    Returns:
        The correlation, and the ends of its interval; 0 where one array, or what was drawn of it, is constant.
    """
    drawn = np.random.default_rng(0).integers(len(a), size=(samples, len(a)))
    low, high = np.quantile([uncertainty.rank_correlation(a[chosen], b[chosen]) for chosen in drawn], (0.025, 0.975))
    return uncertainty.rank_correlation(a, b), float(low), float(high)


class Bins(NamedTuple):
    """Sums over the pixels of one image, a row for each range of s; (bins,) each."""
    pixels: np.ndarray
    reference: np.ndarray  # sum of |x − f|, grey levels of luma
    method: np.ndarray
    reference_squares: np.ndarray
    method_squares: np.ndarray


def luma_error(sr: np.ndarray, gt: np.ndarray) -> np.ndarray:
    """|x − f| of luma in grey levels, (H, W)."""
    return np.abs((sr.astype(np.float64) - gt) @ LUMA)


def error_sums(log_scale: np.ndarray, reference: np.ndarray, method: np.ndarray, edges: np.ndarray) -> Bins:
    """Adds up two maps of errors in ranges of s.

    Args:
        log_scale: s, (H, W).
        reference, method: |x − f|, (H, W).
        edges: Inner ends of the ranges, rising; a pixel on an end belongs to the range above it.
    """
    which = np.searchsorted(edges, log_scale.ravel(), side='right')
    return Bins(*(np.bincount(which, values.ravel(), minlength=len(edges) + 1) for values in (
        np.ones_like(reference), reference, method, reference**2, method**2)))


class Change(NamedTuple):
    """Something about each range, with its interval of 95 %; (bins,) each."""
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def error_changes(images: list[Bins], samples: int = 2000) -> tuple[Change, Change, Change]:
    """By how much the errors of two runs differ in each range of s, pooled over images, which the bootstrap draws.

    Args:
        images: The sums of each image.
        samples: Of the bootstrap; the random numbers are always the same.

    Returns:
        method / reference − 1 of the mean |x − f|; the same of the mean square; and how much of the reference's whole
        squared error the method saves in this range, which is negative where it adds to it. NaN where a range is empty.
    """
    sums = np.array(images)  # (I, 5, bins)
    count = len(sums)
    weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=samples)

    def of(total: np.ndarray) -> np.ndarray:  # (…, 5, bins)
        _, a, b, aa, bb = np.moveaxis(total, -2, 0)
        with np.errstate(invalid='ignore', divide='ignore'):
            return np.stack([b / a - 1, bb / aa - 1, (aa - bb) / aa.sum(axis=-1, keepdims=True)])

    drawn = of((weights @ sums.reshape(count, -1)).reshape(samples, *sums.shape[1:]))
    values = of(sums.sum(axis=0))
    low, high = np.nanquantile(drawn, (0.025, 0.975), axis=1)
    absolute, square, saved = (Change(*of_kind) for of_kind in zip(values, low, high, strict=True))
    return absolute, square, saved
