"""Metrics for ``val.metrics``. The formulas are ``udl_basicsr.functional``; these files register them.

``fidelity`` computes BasicSR's PSNR and SSIM on Y faster, and registers nothing.
"""
from . import fidelity
from .intervals import (
    calculate_aurg,
    calculate_crps,
    calculate_ence,
    calculate_interval_score,
    calculate_interval_width,
    calculate_picp,
    calculate_size_stratified_risk,
    calculate_uce,
)
from .perceptual import calculate_lpips
from .uncertainty import (
    calculate_ause,
    calculate_calibration_error,
    calculate_constant_pll,
    calculate_constant_sigma_psnr,
    calculate_fitting_error,
    calculate_log_likelihood,
    calculate_pll,
    calculate_recalibration,
    calculate_sigma_psnr,
    calculate_spearman,
)

__all__ = ['calculate_aurg', 'calculate_ause', 'calculate_calibration_error', 'calculate_constant_pll',
           'calculate_constant_sigma_psnr', 'calculate_crps', 'calculate_ence', 'calculate_fitting_error',
           'calculate_interval_score', 'calculate_interval_width', 'calculate_log_likelihood', 'calculate_lpips',
           'calculate_picp', 'calculate_pll', 'calculate_recalibration', 'calculate_sigma_psnr',
           'calculate_size_stratified_risk', 'calculate_spearman', 'calculate_uce', 'fidelity']
