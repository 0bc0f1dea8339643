"""Networks, registered in BasicSR's ARCH_REGISTRY."""
from . import spandrel_archs  # noqa: F401
from .carn_arch import CARN, CARN_M
from .constant_head_arch import ConstantHead
from .dpdnn_arch import DPDNN
from .espcn_arch import ESPCN
from .idn_arch import IDN
from .sigma_head_arch import SigmaHead
from .taps import TapError
from .tlw_arch import TLWNet
from .udl_head_arch import UDLHead
from .uncertainty_arch import UncertaintyNet
from .vdsr_arch import VDSR

__all__ = ['CARN', 'CARN_M', 'DPDNN', 'ESPCN', 'IDN', 'VDSR', 'ConstantHead', 'SigmaHead', 'TLWNet', 'TapError',
           'UDLHead', 'UncertaintyNet']
