"""What the figures of the papers show, computed from pictures: arrays in, arrays out.

Pictures are (H, W, 3) uint8 RGB; s, the natural log of the Laplace scale θ in grey levels, is (H, W). Weights and
variances come from the functions that training uses, in float32 as there.
"""
from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from . import losses as F


def nearest(lq: np.ndarray, scale: int) -> np.ndarray:
    """Enlarges an image by repeating its pixels: what a low-resolution image looks like at the size of the others."""
    return lq.repeat(scale, axis=0).repeat(scale, axis=1)


def error_map(sr: np.ndarray, gt: np.ndarray) -> np.ndarray:
    """|SR − GT| in grey levels, mean over the channels: two (H, W, 3) uint8 images to (H, W)."""
    if sr.shape != gt.shape:
        raise ValueError(f'expected two images of the same size, got {sr.shape} and {gt.shape}')
    return np.abs(sr.astype(np.float64) - gt).mean(axis=2)


def scale_map(log_scale: np.ndarray) -> np.ndarray:
    """θ = exp(s), the Laplace scale in grey levels, mean over the channels: (H, W) or (H, W, C) to (H, W)."""
    theta = np.exp(log_scale.astype(np.float64))
    return theta if theta.ndim == 2 else theta.mean(axis=2)


def busiest_box(image: np.ndarray, size: int, step: int = 8) -> tuple[int, int, int, int]:
    """The square with the most detail, by the mean gradient magnitude of the gray image.

    Args:
        image: (H, W, 3).
        size: Side of the square, at most the image's shorter side.
        step: Distance between the squares that are looked at.

    Returns:
        (left, top, width, height).
    """
    size = min(size, *image.shape[:2])
    rows, columns = np.gradient(image.astype(np.float64).mean(axis=2))
    total = np.pad(np.hypot(rows, columns).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = total[size:, size:] - total[:-size, size:] - total[size:, :-size] + total[:-size, :-size]
    top, left = np.unravel_index(sums[::step, ::step].argmax(), sums[::step, ::step].shape)
    return int(left) * step, int(top) * step, size, size


def stretch(values: np.ndarray, low: float = 1., high: float = 99.) -> tuple[np.ndarray, float, float]:
    """A map on a scale of its own, which shows its structure whatever its level: percentile `low` to 0, `high` to 1.

    Args:
        values: (H, W).
        low, high: Percentiles; what lies outside is clipped.

    Returns:
        (H, W) in [0, 1], all 0 for a constant map, and the values at the two percentiles.
    """
    bottom, top = (float(p) for p in np.percentile(values, [low, high]))
    if not top > bottom:
        return np.zeros(values.shape), bottom, top
    return ((values - bottom) / (top - bottom)).clip(0, 1), bottom, top


def to_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 to (1, 3, H, W) float32 in [0, 1], as training sees it."""
    return torch.from_numpy(image.transpose(2, 0, 1).copy())[None].float() / 255


# ---------------------------------------------------------------- weight maps

def weight_maps(sr: np.ndarray, gt: np.ndarray, lq: np.ndarray, log_scale: np.ndarray, scaling: str = 'linear',
                offset: float = 0., min_over: str = 'image') -> dict[str, np.ndarray]:
    """The weights that table 3 of the UDL paper compares (eq. 10, 11), of one whole image.

    Training takes the same of each patch, where the minimum that `linear` and `log` subtract is that of the patch.

    Args:
        sr: f, (H, W, 3).
        gt: x, the same.
        lq: y, (h, w, 3), which H and W are multiples of.
        log_scale: s, (H, W).
        scaling, offset, min_over: See :func:`~udl_basicsr.functional.losses.scale_log_scale`.

    Returns:
        `error`, `hr_gradient`, `lr_gradient` and `uncertainty`, each (H, W): the mean over the channels of the weights,
        divided by its mean. What is left is how a loss distributes the same total weight.

    Raises:
        ValueError: The sizes do not belong together, or an unknown scaling.
    """
    if sr.shape != gt.shape or log_scale.shape != gt.shape[:2]:
        raise ValueError(f'expected SR, GT and s of one size, got {sr.shape}, {gt.shape} and {log_scale.shape}')
    if any(side % small for side, small in zip(gt.shape, lq.shape, strict=True)):
        raise ValueError(f'expected a GT whose sides are multiples of those of the LQ, got {gt.shape} and {lq.shape}')
    x = to_tensor(gt)
    maps = {'error': (x - to_tensor(sr)).abs(),
            'hr_gradient': F.gradient_map(x),
            'lr_gradient': interpolate(F.gradient_map(to_tensor(lq)), size=x.shape[-2:], mode='nearest'),
            'uncertainty': torch.from_numpy(np.array(log_scale, dtype=np.float32))[None, None]}
    weights = {name: F.scale_log_scale(values, scaling, offset, min_over)[0].mean(dim=0).double().numpy()
               for name, values in maps.items()}
    # 0 everywhere: SR equals GT, or the image is one colour
    return {name: weight / weight.mean() if weight.any() else weight for name, weight in weights.items()}


def top_share(weights: np.ndarray, fraction: float = 0.1) -> float:
    """The share of all weight that lies on the heaviest `fraction` of the pixels; `fraction` where all weigh alike."""
    ordered = np.sort(weights, axis=None)[::-1]
    total = ordered.sum()
    return float(ordered[:round(fraction * ordered.size)].sum() / total) if total > 0 else fraction


# ---------------------------------------------------------------- variances of gradients

def patch_variances(image: np.ndarray, patch_size: int) -> np.ndarray:
    """The variances that the gradient variance loss compares: flat, of x and y, for pixels in [0, 1].

    Args:
        image: (H, W, 3).
        patch_size: n.

    Raises:
        ValueError: See :func:`~udl_basicsr.functional.losses.gradient_variance_maps`.
    """
    return F.gradient_variance_maps(to_tensor(image), patch_size).double().numpy().ravel()


def gradients(image: np.ndarray) -> np.ndarray:
    """The Sobel derivatives of luma along x and y, for pixels in [0, 1]: (H, W, 3) uint8 to (2, H, W)."""
    return F.sobel_maps(F.luma(to_tensor(image)))[0].double().numpy()


def peaks(values: np.ndarray, points: int) -> np.ndarray:
    """The largest of each of ``points`` groups of neighbouring values, all about equally large."""
    return np.array([group.max() for group in np.array_split(values, points)])


def log_histogram(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Counts between logarithmic edges; what lies outside, 0 included, counts in the first or last bin."""
    return np.histogram(values.clip(edges[0], edges[-1]), edges)[0]


def variance_ratio(sr: np.ndarray, gt: np.ndarray, groups: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """How much of the variance an SR image keeps, where the GT has little of it and where it has much.

    Args:
        sr, gt: Variances of the same patches, flat.
        groups: Groups of equal size that the patches are sorted into by `gt`.

    Returns:
        The median of `gt` and of sr / gt in each group; patches without any variance in the GT are left out.
    """
    kept = gt > 0
    order = np.argsort(gt[kept], kind='stable')
    parts = [part for part in np.array_split(order, groups) if part.size]
    sr, gt = sr[kept], gt[kept]
    return (np.array([np.median(gt[part]) for part in parts]),
            np.array([np.median(sr[part] / gt[part]) for part in parts]))


def logarithmic_edges(values: Iterable[np.ndarray], per_decade: int = 8) -> np.ndarray:
    """Edges of bins, whole decades around the 1st percentile and the maximum of all that is not 0."""
    pooled = np.concatenate([v[v > 0] for v in values])
    if not pooled.size:
        return np.array([1e-6, 1.])
    low = int(np.floor(np.log10(np.percentile(pooled, 1))))
    high = max(int(np.ceil(np.log10(pooled.max()))), low + 1)
    return np.logspace(low, high, (high - low) * per_decade + 1)
