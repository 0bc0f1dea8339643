"""Networks, registered in BasicSR's ARCH_REGISTRY."""
from .sigma_head_arch import SigmaHead
from .tlw_arch import TLWNet
from .uncertainty_arch import TapError, UDLHead, UncertaintyNet

__all__ = ['SigmaHead', 'TLWNet', 'TapError', 'UDLHead', 'UncertaintyNet']
