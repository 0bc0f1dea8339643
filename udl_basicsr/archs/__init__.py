"""Networks, registered in BasicSR's ARCH_REGISTRY."""
from .uncertainty_arch import UDLHead, UncertaintyNet

__all__ = ['UDLHead', 'UncertaintyNet']
