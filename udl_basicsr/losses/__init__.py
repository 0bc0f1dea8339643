"""Losses. The formulas are ``udl_basicsr.functional``; these are the registered classes around them."""
from .expected_l1_loss import ExpectedL1Loss, SigmaLoss, TrainedExpectedL1Loss
from .gradient_variance_loss import GradientVarianceLoss
from .ssim_loss import SSIMLoss
from .tlw_loss import TLWLoss
from .ueo_loss import UEOLoss
from .uncertainty_loss import (
    BetaNLLLoss,
    ESULoss,
    EULoss,
    GaussianNLLLoss,
    GeneralisedGaussianLoss,
    GRAMLoss,
    QuantileLoss,
    UDLLoss,
    WeightMapLoss,
)

__all__ = ['BetaNLLLoss', 'ESULoss', 'EULoss', 'ExpectedL1Loss', 'GRAMLoss', 'GaussianNLLLoss',
           'GeneralisedGaussianLoss', 'GradientVarianceLoss', 'QuantileLoss', 'SSIMLoss', 'SigmaLoss', 'TLWLoss',
           'TrainedExpectedL1Loss', 'UDLLoss', 'UEOLoss', 'WeightMapLoss']
