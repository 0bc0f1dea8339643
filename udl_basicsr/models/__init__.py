"""Models. ``step`` and ``validation`` hold what they share, the ``*_model.py`` say which losses they compute."""
from .tlw_model import TLWModel
from .udl_model import UDLModel

__all__ = ['TLWModel', 'UDLModel']
