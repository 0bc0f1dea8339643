"""Losses. The formulas are ``udl_basicsr.functional``; these are the registered classes around them."""
from .expected_l1_loss import ExpectedL1Loss, SigmaLoss, TrainedExpectedL1Loss
from .gradient_variance_loss import GradientVarianceLoss
from .ssim_loss import SSIMLoss
from .tlw_loss import TLWLoss
from .uncertainty_loss import ESULoss, EULoss, GaussianNLLLoss, GRAMLoss, UDLLoss, WeightMapLoss

__all__ = ['ESULoss', 'EULoss', 'ExpectedL1Loss', 'GRAMLoss', 'GaussianNLLLoss', 'GradientVarianceLoss', 'SSIMLoss',
           'SigmaLoss', 'TLWLoss', 'TrainedExpectedL1Loss', 'UDLLoss', 'WeightMapLoss']
