"""Uncertainty-driven losses for single-image super-resolution, as a BasicSR extension.

``import udl_basicsr`` registers the networks, losses, models and metrics of this package in BasicSR's registries and
has no other effect on BasicSR.
"""
import os
import sys

if 'torch' not in sys.modules:  # whose MKL ends a process in a folder that is gone, and says that a library is missing
    try:
        os.getcwd()
    except FileNotFoundError:
        sys.exit('the working folder has been deleted: change to one that is there')

from .utils import children  # noqa: F401 - notes at once which process has started this one
from .utils.version import __version__


def _answers() -> bool:
    """Whether this process is ``udl``, or ``python -m udl_basicsr``: they register once ``--import`` has been read."""
    by_name = sys.argv[:1] == ['-m'] and sys.orig_argv[-len(sys.argv)] == __name__  # while Python looks for it
    return by_name or getattr(sys.modules.get('udl_command'), 'answering', False)


if not _answers():
    from .register import archs, data, functional, losses, metrics, models

__all__ = ['__version__', 'archs', 'data', 'functional', 'losses', 'metrics', 'models']
