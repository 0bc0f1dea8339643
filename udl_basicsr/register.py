"""Importing this registers networks, losses, metrics, data sets and models in BasicSR's registries, then plugins.

``import udl_basicsr`` does so by itself. The command ``udl`` alone comes here later: its help and its tables need no
network, and so wait for none.
"""
import importlib.util

from .utils.exits import NO_BASICSR
from .utils.shims import install_shims

if importlib.util.find_spec('basicsr') is None:
    raise ModuleNotFoundError(NO_BASICSR, name='basicsr')
install_shims()  # before anything imports basicsr

from . import archs, data, functional, losses, metrics, models  # noqa: E402, F401
from .utils import plugins  # noqa: E402

plugins.load()
archs.spandrel_archs.register_spandrel()  # last: a plugin may bring its author's own HAT or DAT by that name
