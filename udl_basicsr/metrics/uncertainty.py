"""Scores of a predicted uncertainty for the blocks of ``val.metrics``, per image; formulas: ``functional.uncertainty``.

All are called as BasicSR calls its metrics, ``metric(img, img2, **options)``, and take ``log_scale`` in addition, which
the validation of this package's models supplies. Each value of a channel counts as one pixel. The error is that of the
image as it is saved, rounded to 8 bits, as for PSNR; calibration takes into account what the rounding hides, the others
do not (where e is exactly 0 it was ¼ on average, which matters where θ is well below one grey level).

``recalibration`` is a factor on θ, fitted on another data set by ``calculate_recalibration``.

``density`` is what the head says of the error, of which s alone decides Laplace's and Gauss's. The validation fills it
in, and of other heads asks for it: ``density: laplace`` measures a Laplace density with the same θ.
"""
import math
from typing import Literal

import numpy as np
from basicsr.metrics.metric_util import reorder_image
from basicsr.utils.registry import METRIC_REGISTRY

from udl_basicsr.functional import uncertainty as F
from udl_basicsr.functional.densities import Density, DensityName

from .facts import states

ROUNDING = 1.
"""Default of ``rounding``, the step in grey levels to which SR was rounded: whole ones; 0 with ``val.rounded: false``,
which the validation fills in."""


def inner(image: np.ndarray, crop_border: int) -> np.ndarray:
    """An image (H, W, C) without ``crop_border`` pixels at each edge.

    Raises:
        ValueError: Nothing would be left.
    """
    height, width = image.shape[:2]
    if not 0 <= 2 * crop_border < min(height, width):
        raise ValueError(f'crop_border: {crop_border} leaves nothing of an image of {height}×{width}')
    return image[crop_border:height - crop_border, crop_border:width - crop_border]


def error_and_scale(img: np.ndarray, img2: np.ndarray, log_scale: np.ndarray | float, crop_border: int = 0,
                    input_order: str = 'HWC', recalibration: float = 1.) -> tuple[np.ndarray, np.ndarray]:
    """What the formulas take.

    Args:
        img (ndarray): SR, (H, W, C), or (H, W), in 0–255, BGR like ``img2`` and ``log_scale``; order ``input_order``.
        img2 (ndarray): GT of the same shape.
        log_scale (ndarray | float): s, natural log of the Laplace scale in 0–255 units, float, of the same shape or
            with one channel, which then holds for all; or one number.
        crop_border (int): Pixels left out at each edge.
        input_order (str): ``HWC`` or ``CHW``.
        recalibration (float): Factor on θ, > 0.

    Returns:
        tuple: e and θ, float64, (H, W, C) without the border, in 0–255 units.

    Raises:
        ValueError: The sizes differ, nothing is left without the border, or the factor is not positive.
    """
    if np.ndim(log_scale) == 0:
        log_scale = np.full(np.shape(img), log_scale)
    img, img2, log_scale = (reorder_image(np.asarray(a, dtype=np.float64), input_order)
                            for a in (img, img2, log_scale))
    if img.shape != img2.shape or log_scale.shape[:2] != img.shape[:2] or log_scale.shape[2] not in (1, img.shape[2]):
        raise ValueError(f'expected SR, GT and s of one size, got {img.shape}, {img2.shape} and {log_scale.shape}')
    if not recalibration > 0:
        raise ValueError(f'recalibration: expected a factor > 0, got {recalibration}')
    error = inner(np.abs(img - img2), crop_border)
    return error, np.broadcast_to(np.exp(inner(log_scale, crop_border)) * recalibration, error.shape)


@METRIC_REGISTRY.register()
@states(higher_is_better=True, unit='nats')
def calculate_log_likelihood(img: np.ndarray, img2: np.ndarray, log_scale: np.ndarray, crop_border: int = 0,
                             distribution: Literal['laplace', 'gaussian', 'own'] = 'own', recalibration: float = 1.,
                             density: DensityName = 'laplace', input_order: str = 'HWC', **kwargs) -> float:
    """Mean log-likelihood in nats per value, density over grey levels.

    With ``distribution`` it is that of another than the head's ``own``: ``laplace`` with its θ, ``gaussian`` with its
    variance, which of a Laplace density is σ² = 2θ².
    """
    error, scale = error_and_scale(img, img2, log_scale, crop_border, input_order, recalibration)
    if (density if distribution == 'own' else distribution) == 'laplace':
        return F.laplace_log_likelihood(error, scale)
    return F.predictive_log_likelihood(error, Density(density).variance**0.5 * scale)


@METRIC_REGISTRY.register()
@states(higher_is_better=True, decimals=2, unit='dB')
def calculate_sigma_psnr(img: np.ndarray, img2: np.ndarray, log_scale: np.ndarray, crop_border: int = 0,
                         recalibration: float = 1., input_order: str = 'HWC', **kwargs) -> float:
    """PSNR in dB between θ, the predicted |error|, and |error|, peak 255."""
    return F.sigma_psnr(*error_and_scale(img, img2, log_scale, crop_border, input_order, recalibration))


# He and Cheng, "Revisiting L1 Loss in Super-Resolution", table 7: PLL and PSNR(σ, |e|) of the network that predicts σ,
# and of one that does not, whose σ is a constant, "their average fitting error calculated on the training dataset".

@METRIC_REGISTRY.register()
@states(higher_is_better=True, decimals=2, unit='nats')
def calculate_pll(img: np.ndarray, img2: np.ndarray, log_scale: np.ndarray, crop_border: int = 0,
                  density: DensityName = 'laplace', input_order: str = 'HWC', **kwargs) -> float:
    """PLL (eq. 11): mean log N(x; f, σ²) for pixels in [0, 1], in nats per value.

    σ is what the branch predicts, exp(s)/255, taken for the standard deviation as it is: not for a Laplace scale, as in
    ``calculate_log_likelihood``. The s of a sigma branch ends at -2, so that σ is an eighth of a grey level at
    least. Of a ``gaussian`` head it is the σ that this puts out.
    """
    error, sigma = error_and_scale(img, img2, log_scale, crop_border, input_order)
    if density == 'gaussian':
        sigma = Density(density).variance**0.5 * sigma
    return F.predictive_log_likelihood(error / 255, sigma / 255)


@METRIC_REGISTRY.register()
@states(higher_is_better=True, decimals=2, unit='nats')
def calculate_constant_pll(img: np.ndarray, img2: np.ndarray, sigma: float, crop_border: int = 0,
                           input_order: str = 'HWC', **kwargs) -> float:
    """PLL of a network without uncertainty, σ the same everywhere.

    ``sigma``, in the unit of pixels in [0, 1], is the mean of ``calculate_fitting_error`` over the training set.
    """
    error, scale = error_and_scale(img, img2, _constant(sigma), crop_border, input_order)
    return F.predictive_log_likelihood(error / 255, scale / 255)


@METRIC_REGISTRY.register()
@states(higher_is_better=True, decimals=2, unit='dB')
def calculate_constant_sigma_psnr(img: np.ndarray, img2: np.ndarray, sigma: float, crop_border: int = 0,
                                  input_order: str = 'HWC', **kwargs) -> float:
    """``calculate_sigma_psnr`` of a constant σ, in the unit of pixels in [0, 1]."""
    return F.sigma_psnr(*error_and_scale(img, img2, _constant(sigma), crop_border, input_order))


@METRIC_REGISTRY.register()
@states(higher_is_better=False)
def calculate_fitting_error(img: np.ndarray, img2: np.ndarray, crop_border: int = 0, input_order: str = 'HWC',
                            **kwargs) -> float:
    """mean |x − f| for pixels in [0, 1]; over the training set it is the baseline's constant σ."""
    return float(error_and_scale(img, img2, _constant(1.), crop_border, input_order)[0].mean() / 255)


def _constant(sigma: float) -> float:
    """s of a constant σ.

    Raises:
        ValueError: σ is no positive number.
    """
    if not sigma > 0:
        raise ValueError(f'sigma: expected a number > 0, the mean |x − f| of pixels in [0, 1], got {sigma}')
    return math.log(255 * sigma)


@METRIC_REGISTRY.register()
@states(higher_is_better=False)
def calculate_ause(img: np.ndarray, img2: np.ndarray, log_scale: np.ndarray, crop_border: int = 0,
                   measure: Literal['mae', 'rmse'] = 'mae', steps: int = F.STEPS, input_order: str = 'HWC',
                   **kwargs) -> float:
    """Area between the sparsification curve by θ and that by the true error, no unit."""
    return F.ause(*error_and_scale(img, img2, log_scale, crop_border, input_order), steps, measure)


@METRIC_REGISTRY.register()
@states(higher_is_better=True)
def calculate_spearman(img: np.ndarray, img2: np.ndarray, log_scale: np.ndarray, crop_border: int = 0,
                       input_order: str = 'HWC', **kwargs) -> float:
    """Spearman's rank correlation of θ and |error|, in [−1, 1]."""
    return F.spearman(*error_and_scale(img, img2, log_scale, crop_border, input_order))


@METRIC_REGISTRY.register()
@states(higher_is_better=False)
def calculate_calibration_error(img: np.ndarray, img2: np.ndarray, log_scale: np.ndarray, crop_border: int = 0,
                                recalibration: float = 1., rounding: float = ROUNDING, density: DensityName = 'laplace',
                                input_order: str = 'HWC', **kwargs) -> float:
    """Mean |expected − observed coverage| of central intervals, in [0, 1]."""
    pair = error_and_scale(img, img2, log_scale, crop_border, input_order, recalibration)
    return float(np.abs(Density(density).calibration(*pair, rounding) - F.LEVELS).mean())


@METRIC_REGISTRY.register()
@states(higher_is_better=None)
def calculate_recalibration(img: np.ndarray, img2: np.ndarray, log_scale: np.ndarray, crop_border: int = 0,
                            input_order: str = 'HWC', **kwargs) -> float:
    """The factor c on θ that is most likely on this image; 1 is calibrated, above is overconfident.

    Over images of one size the mean of the factors is the factor of the set.
    """
    return F.recalibration_factor(*error_and_scale(img, img2, log_scale, crop_border, input_order))
