"""Losses. ``functional`` holds the formulas, ``*_loss.py`` the registered classes around them."""
from . import functional
from .uncertainty_loss import ESULoss, EULoss, GRAMLoss, UDLLoss, WeightMapLoss

__all__ = ['ESULoss', 'EULoss', 'GRAMLoss', 'UDLLoss', 'WeightMapLoss', 'functional']
