"""Models: what one training step does. ``step`` holds what they share."""
from .tlw_model import TLWModel
from .udl_model import UDLModel

__all__ = ['TLWModel', 'UDLModel']
