"""Networks, registered in BasicSR's ARCH_REGISTRY."""
from .uncertainty_arch import TapError, UDLHead, UncertaintyNet

__all__ = ['TapError', 'UDLHead', 'UncertaintyNet']
