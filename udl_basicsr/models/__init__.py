"""Models: what one training step does. ``step`` holds what they share."""
from .udl_model import UDLModel

__all__ = ['UDLModel']
