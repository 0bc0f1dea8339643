"""How good a predicted uncertainty is: formulas in plain NumPy.

Every function takes the absolute error e = |x − f| and the predicted Laplace scale θ = exp(s) of the same pixels, both
in 0–255 units (grey levels), as arrays of one shape, whatever it is: a channel, an image, a whole data set. They are
computed in float64. The Laplace distribution has E e = θ and the variance σ² = 2θ²; wherever a formula wants a standard
deviation, it is σ = √2·θ.
"""
import numpy as np

STEPS = 100
"""Points of a sparsification curve: 0, 1, …, 99 % of the pixels are removed."""
LEVELS = np.arange(1, 50) / 50
"""Expected coverages of a calibration curve: 2, 4, …, 98 %."""


def flat_pair(error: np.ndarray, scale: np.ndarray, half_widths: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Both as flat float64 arrays, refused where no formula holds: a scale of 0, unless it is ``half_widths``."""
    if np.shape(error) != np.shape(scale):
        raise ValueError(f'expected an error and a scale for each pixel, got the shapes {np.shape(error)} and '
                         f'{np.shape(scale)}')
    if np.size(error) == 0:
        raise ValueError('expected at least one pixel, got none')
    error, scale = np.ravel(error).astype(np.float64), np.ravel(scale).astype(np.float64)
    # written so that NaN fails as well
    if not (error.min() >= 0 and np.isfinite(error).all()):
        raise ValueError('expected absolute errors, finite numbers ≥ 0')
    if half_widths and not (scale.min() >= 0 and np.isfinite(scale).all()):
        raise ValueError('expected half-widths of intervals, finite numbers ≥ 0')
    if not half_widths and not (scale.min() > 0 and np.isfinite(scale).all()):
        raise ValueError('expected Laplace scales, finite numbers > 0: is this exp(s), and s finite?')
    return error, scale


# ---------------------------------------------------------------- likelihood and calibration

def laplace_log_likelihood(error: np.ndarray, scale: np.ndarray) -> float:
    """The mean log density of the truth under Laplace(f, θ): mean(−ln 2θ − e/θ), in nats per value; higher is better.

    The density is one over grey levels; for pixels in [0, 1] add ln 255 = 5.54.
    """
    error, scale = flat_pair(error, scale)
    return float(np.mean(-np.log(2 * scale) - error / scale))


def predictive_log_likelihood(error: np.ndarray, sigma: np.ndarray) -> float:
    """The mean log density of the truth under N(f, σ²): mean(−½ ln 2πσ² − e²/2σ²), in nats per value; higher is better.

    With σ as it is predicted and both in [0, 1] this is the PLL of He and Cheng, "Revisiting L1 Loss in
    Super-Resolution", eq. 11. In other units by c it is less by ln c.
    """
    error, sigma = flat_pair(error, sigma)
    return float(np.mean(-0.5 * np.log(2 * np.pi * sigma**2) - error**2 / (2 * sigma**2)))


def calibration_curve(error: np.ndarray, scale: np.ndarray, levels: np.ndarray = LEVELS,
                      rounding: float = 0., quantiles: np.ndarray | None = None) -> np.ndarray:
    """The share of values that lie within the central Laplace interval of each expected coverage p.

    The interval is e ≤ q, q = −θ·ln(1 − p). Kuleshov et al., Accurate Uncertainties for Deep Learning Using Calibrated
    Regression, ICML 2018, with central intervals in place of one-sided ones.

    An error of an image that was rounded to 8 bits is known to ±½ only: in smooth places it is exactly 0 for a fifth of
    all values and more, which lie within every interval, however small. With ``rounding`` 1 such an error counts by the
    share of x − f = ±e ± ½ that lies within ±q.

    Args:
        error (ndarray): e in 0–255 units.
        scale (ndarray): θ in 0–255 units, of the same shape.
        levels (ndarray): Expected coverages in [0, 1), shape (L,).
        rounding (float): The step to which the images were rounded, in 0–255 units; 0: they were not.
        quantiles (ndarray | None): q/θ of each level, of another distribution than Laplace's; shape (L,).

    Returns:
        ndarray: Observed coverages in [0, 1], shape (L,). On the diagonal: calibrated. Below: θ is too small
            (overconfident); above: too large.
    """
    error, scale = flat_pair(error, scale)
    if quantiles is None:
        quantiles = -np.log1p(-np.asarray(levels, dtype=np.float64))
    if not rounding:  # e ≤ qθ where and only where e/θ ≤ q: one sort serves all levels
        return np.searchsorted(np.sort(error / scale), quantiles, side='right') / error.size
    low, high = error - rounding / 2, error + rounding / 2
    # one level at a time: all at once would take the memory of as many images
    return np.array([(np.minimum(high, q * scale) - np.maximum(low, -q * scale)).clip(min=0).mean() / rounding
                     for q in quantiles])


def calibration_error(error: np.ndarray, scale: np.ndarray, levels: np.ndarray = LEVELS,
                      rounding: float = 0.) -> float:
    """mean |expected − observed coverage| over the levels, in [0, 1]; 0 is calibrated."""
    return float(np.abs(calibration_curve(error, scale, levels, rounding) - levels).mean())


def recalibration_factor(error: np.ndarray, scale: np.ndarray) -> float:
    """The one number c that makes c·θ most likely: c = mean(e/θ), the maximum of mean(−ln 2cθ − e/cθ).

    To be fitted on a validation set and applied to others. Above 1: the prediction was overconfident. It changes
    likelihood, PSNR and calibration, and no ranking. An e that is 0 everywhere gives 0, which is no usable scale.
    """
    error, scale = flat_pair(error, scale)
    return float(np.mean(error / scale))


# ---------------------------------------------------------------- the map and its ranking

def sigma_psnr(error: np.ndarray, scale: np.ndarray) -> float:
    """PSNR in dB between the predicted and the true map of |error|, peak 255; higher is better.

    He and Cheng, "Revisiting L1 Loss in Super-Resolution", table 7: their σ is what the branch predicts for |x − f|.
    For a Laplace distribution that is E|x − f| = θ, not the standard deviation. Both maps in 0–255 units (the same dB
    as for maps in [0, 1] with peak 1), θ clipped to 255 as an image is. Maps that agree exactly: infinity.
    """
    error, scale = flat_pair(error, scale)
    mse = np.mean((np.minimum(scale, 255.) - error)**2)
    return float('inf') if mse == 0 else float(10 * np.log10(255**2 / mse))


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks 1 … n of a flat array, ties all with the mean of the ranks that they take up, shape (n,)."""
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[group]


def spearman(error: np.ndarray, scale: np.ndarray) -> float:
    """Spearman's rank correlation of e and θ in [−1, 1], ties by average ranks; 0 where either map is constant."""
    return rank_correlation(*flat_pair(error, scale))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's of any two flat arrays."""
    x, y = (ranks - ranks.mean() for ranks in map(average_ranks, (a, b)))
    norm = np.sqrt(np.dot(x, x) * np.dot(y, y))
    return float(np.dot(x, y) / norm) if norm > 0 else 0.


def sparsification_curve(error: np.ndarray, ranking: np.ndarray, steps: int = STEPS,
                         measure: str = 'mae') -> np.ndarray:
    """The error of the pixels that remain when the most uncertain ones are removed, over the error of all pixels.

    Ilg et al., "Uncertainty Estimates and Multi-hypotheses Networks for Optical Flow", ECCV 2018, §3. Pixels of equal
    uncertainty are removed in random order, and the curve is the expectation over it: a constant map gives the flat
    curve of chance. Parts of a pixel count in proportion, so that nothing is rounded.

    Args:
        error (ndarray): e in 0–255 units.
        ranking (ndarray): What the pixels are ranked by, > 0, of the same shape: θ; e itself (plus any constant) is the
            oracle.
        steps (int): N; the fractions removed are i/N, i = 0 … N − 1.
        measure (str): ``mae`` or ``rmse``.

    Returns:
        ndarray: Shape (N,), 1 at its begin, no unit. Ones where all errors are 0.

    Raises:
        ValueError: An unknown measure.
    """
    if measure not in ('mae', 'rmse'):
        raise ValueError(f'measure: expected mae or rmse, got {measure!r}')
    error, ranking = flat_pair(error, ranking)
    error = error if measure == 'mae' else error**2
    _, group, count = np.unique(ranking, return_inverse=True, return_counts=True)
    kept_sum = np.cumsum(np.bincount(group, weights=error))  # from the most certain group upwards
    if kept_sum[-1] == 0:
        return np.ones(steps)
    kept = error.size * (1 - np.arange(steps) / steps)
    # linear between the groups: within a group every pixel is as likely to be among those that remain
    curve = np.interp(kept, np.append(0, np.cumsum(count)), np.append(0, kept_sum)) / kept / (kept_sum[-1] / error.size)
    return curve if measure == 'mae' else np.sqrt(curve)


def oracle_curve(error: np.ndarray, steps: int = STEPS, measure: str = 'mae') -> np.ndarray:
    """:func:`sparsification_curve` of the best possible ranking, that by the error itself, shape (N,)."""
    return sparsification_curve(error, np.asarray(error, dtype=np.float64) + 1, steps, measure)


def area_between(curve: np.ndarray, oracle: np.ndarray) -> float:
    """The area between two sparsification curves of N points, trapezoidal rule over the fractions 0 … (N − 1)/N."""
    gap = np.asarray(curve) - oracle
    return float((gap.sum() - (gap[0] + gap[-1]) / 2) / len(gap))


def ause(error: np.ndarray, scale: np.ndarray, steps: int = STEPS, measure: str = 'mae') -> float:
    """Area under the sparsification error: between the curve by θ and the oracle's; ≥ 0, lower is better, 0 is ideal.

    Normalised by the error of all pixels (both curves begin at 1), so it has no unit, and is not divided by the
    oracle's or by chance's own area. See :func:`sparsification_curve` for the arguments.
    """
    return area_between(sparsification_curve(error, scale, steps, measure), oracle_curve(error, steps, measure))


def aurg(error: np.ndarray, scale: np.ndarray, steps: int = STEPS, measure: str = 'mae') -> float:
    """Area under the random gain: between the flat curve of a random order and that by θ; higher is better.

    Poggi et al., On the Uncertainty of Self-Supervised Monocular Depth Estimation, CVPR 2020. No unit; 0 is chance,
    and AUSE + AURG is the oracle's own gain. See :func:`sparsification_curve` for the arguments.
    """
    return area_between(np.ones(steps), sparsification_curve(error, scale, steps, measure))
