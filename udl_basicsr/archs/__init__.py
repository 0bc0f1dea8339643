"""Networks, registered in BasicSR's ARCH_REGISTRY."""
from .sigma_head_arch import SigmaHead
from .taps import TapError
from .tlw_arch import TLWNet
from .udl_head_arch import UDLHead
from .uncertainty_arch import UncertaintyNet

__all__ = ['SigmaHead', 'TLWNet', 'TapError', 'UDLHead', 'UncertaintyNet']
