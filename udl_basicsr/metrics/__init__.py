"""Metrics for ``val.metrics``. ``functional`` holds the formulas, the other files register them.

``fidelity`` computes BasicSR's PSNR and SSIM on Y faster, and registers nothing.
"""
from . import fidelity, functional
from .perceptual import calculate_lpips
from .uncertainty import (
    calculate_ause,
    calculate_calibration_error,
    calculate_log_likelihood,
    calculate_recalibration,
    calculate_sigma_psnr,
    calculate_spearman,
)

__all__ = ['calculate_ause', 'calculate_calibration_error', 'calculate_log_likelihood', 'calculate_lpips',
           'calculate_recalibration', 'calculate_sigma_psnr', 'calculate_spearman', 'fidelity', 'functional']
