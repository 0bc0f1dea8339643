"""Scores of intervals and of calibration by bins for the blocks of ``val.metrics``, per image.

Called as those of :mod:`.uncertainty`, whose arguments and caveats hold here as well. Intervals are the central ones of
``density``, of Laplace's f ± θ ln(1/α); with ``recalibration`` θ is multiplied by it, so that for these
λ ln(1/α') / ln(1/α) gives the calibrated intervals of a λ that was found for α'. Grey levels throughout.
"""
from typing import Literal

import numpy as np
from basicsr.utils.registry import METRIC_REGISTRY

from udl_basicsr.functional import intervals as I
from udl_basicsr.functional import uncertainty as U
from udl_basicsr.functional.densities import Density, DensityName

from .facts import states
from .uncertainty import ROUNDING, error_and_scale


@METRIC_REGISTRY.register()
@states(higher_is_better=False)
def calculate_ence(img: np.ndarray, img2: np.ndarray, log_scale: np.ndarray, crop_border: int = 0, bins: int = I.BINS,
                   recalibration: float = 1., density: DensityName = 'laplace', input_order: str = 'HWC',
                   **kwargs) -> float:
    """Expected normalised calibration error over ``bins`` bins of equally many values, no unit; 0 is calibrated."""
    return I.ence(*error_and_scale(img, img2, log_scale, crop_border, input_order, recalibration), bins,
                  Density(density).variance)


@METRIC_REGISTRY.register()
@states(higher_is_better=False, decimals=2, unit='grey levels²')
def calculate_uce(img: np.ndarray, img2: np.ndarray, log_scale: np.ndarray, crop_border: int = 0, bins: int = I.BINS,
                  recalibration: float = 1., density: DensityName = 'laplace', input_order: str = 'HWC',
                  **kwargs) -> float:
    """Uncertainty calibration error over ``bins`` bins of equally many values, in squared grey levels."""
    return I.uce(*error_and_scale(img, img2, log_scale, crop_border, input_order, recalibration), bins,
                 Density(density).variance)


@METRIC_REGISTRY.register()
@states(higher_is_better=None)
def calculate_picp(img: np.ndarray, img2: np.ndarray, log_scale: np.ndarray, crop_border: int = 0, alpha: float = 0.1,
                   recalibration: float = 1., rounding: float = ROUNDING, density: DensityName = 'laplace',
                   input_order: str = 'HWC', **kwargs) -> float:
    """Share of values within their intervals of 1 − α, in [0, 1]; to be 1 − α, so that neither way is better."""
    error, scale = error_and_scale(img, img2, log_scale, crop_border, input_order, recalibration)
    return I.coverage(error, Density(density).half_width(scale, alpha), rounding)


@METRIC_REGISTRY.register()
@states(higher_is_better=False, decimals=2, unit='grey levels')
def calculate_interval_width(img: np.ndarray, img2: np.ndarray, log_scale: np.ndarray, crop_border: int = 0,
                             alpha: float = 0.1, recalibration: float = 1., density: DensityName = 'laplace',
                             input_order: str = 'HWC', **kwargs) -> float:
    """Mean width of the intervals of 1 − α; lower is better at equal coverage alone."""
    _, scale = error_and_scale(img, img2, log_scale, crop_border, input_order, recalibration)
    return float(2 * Density(density).half_width(scale, alpha).mean())


@METRIC_REGISTRY.register()
@states(higher_is_better=False, decimals=2, unit='grey levels')
def calculate_interval_score(img: np.ndarray, img2: np.ndarray, log_scale: np.ndarray, crop_border: int = 0,
                             alpha: float = 0.1, recalibration: float = 1., density: DensityName = 'laplace',
                             input_order: str = 'HWC', **kwargs) -> float:
    """Mean of width + 2/α times the distance of what lies outside, for intervals of 1 − α."""
    error, scale = error_and_scale(img, img2, log_scale, crop_border, input_order, recalibration)
    return I.interval_score(error, Density(density).half_width(scale, alpha), alpha)


@METRIC_REGISTRY.register()
@states(higher_is_better=False)
def calculate_size_stratified_risk(img: np.ndarray, img2: np.ndarray, log_scale: np.ndarray, crop_border: int = 0,
                                   alpha: float = 0.1, strata: int = I.STRATA, recalibration: float = 1.,
                                   rounding: float = ROUNDING, density: DensityName = 'laplace',
                                   input_order: str = 'HWC', **kwargs) -> float:
    """The largest share outside among ``strata`` groups of values by the width of their intervals, in [0, 1]."""
    error, scale = error_and_scale(img, img2, log_scale, crop_border, input_order, recalibration)
    return float(I.stratified_risks(error, Density(density).half_width(scale, alpha), strata, rounding).max())


@METRIC_REGISTRY.register()
@states(higher_is_better=False, decimals=3, unit='grey levels')
def calculate_crps(img: np.ndarray, img2: np.ndarray, log_scale: np.ndarray, crop_border: int = 0,
                   recalibration: float = 1., density: DensityName = 'laplace', input_order: str = 'HWC',
                   **kwargs) -> float:
    """Mean continuous ranked probability score of the density."""
    return Density(density).crps(*error_and_scale(img, img2, log_scale, crop_border, input_order, recalibration))


@METRIC_REGISTRY.register()
@states(higher_is_better=True)
def calculate_aurg(img: np.ndarray, img2: np.ndarray, log_scale: np.ndarray, crop_border: int = 0,
                   measure: Literal['mae', 'rmse'] = 'mae', steps: int = U.STEPS, input_order: str = 'HWC',
                   **kwargs) -> float:
    """Area between the flat sparsification curve of chance and that by θ, no unit; ``measure`` as for the AUSE."""
    return U.aurg(*error_and_scale(img, img2, log_scale, crop_border, input_order), steps, measure)
