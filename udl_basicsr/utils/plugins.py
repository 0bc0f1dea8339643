"""Networks, losses, metrics and data sets of one's own: modules that register them when they are imported.

Two ways lead here, and none through an option file, which must stay unable to run code: ``--import MODULE`` on the
command line, and the entry-point group ``udl_basicsr.plugins`` of an installed package. What the command line asks for
stands in the environment, where the processes that a command starts find it too.
"""
from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path

from .errors import MISUSED, UdlError
from .text import kind_and_line

GROUP = 'udl_basicsr.plugins'
VARIABLE = 'UDL_BASICSR_IMPORT'


class PluginError(UdlError):
    """A module of the user's that cannot be imported; the message names it and says why."""
    status = MISUSED


def split(argv: Iterable[str]) -> tuple[list[str], list[str]]:
    """Takes every ``--import MODULE`` out of a command line.

    Returns:
        tuple: The arguments that are left, and the names of the modules.

    Raises:
        PluginError: ``--import`` stands last.
    """
    rest, modules, argv = [], [], iter(argv)
    for word in argv:
        if word == '--import' or word.startswith('--import='):
            module = next(argv, '') if word == '--import' else word.partition('=')[2]
            if not module or module.startswith('-'):
                raise PluginError('--import: expected the name of a module, such as --import my_networks')
            modules.append(module)
        else:
            rest.append(word)
    return rest, modules


def ask_for(modules: Iterable[str]) -> None:
    """Has :func:`load` import these, in this process and in those that it starts."""
    if names := list(dict.fromkeys([*asked_for(), *modules])):
        os.environ[VARIABLE] = ','.join(names)


def asked_for() -> list[str]:
    """The modules of every ``--import``, of this process and of those that started it."""
    return [name for name in os.environ.get(VARIABLE, '').split(',') if name]


def load() -> None:
    """Imports what was asked for, and what installed packages offer.

    Modules are looked for in the working folder too.

    Raises:
        PluginError: One cannot be imported.
    """
    asked = asked_for()
    if asked and '' not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in asked:
        try:
            importlib.import_module(name)
        except Exception as error:
            if name.endswith('.py'):
                raise PluginError(f'--import {name}: expected the name of a module, got that of a file: --import '
                                  f'{Path(name).stem}, in the folder that holds it') from error
            raise PluginError(f'--import {name}: {kind_and_line(error)}{_where(error)}. Expected a module that can be '
                              f'imported from {os.getcwd()} or is installed') from error
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:
            raise PluginError(f'the installed plugin {entry.name} ({entry.value}): {kind_and_line(error)}'
                              f'{_where(error)}. Mend or uninstall it') from error


def _where(error: Exception) -> str:
    """The lines of the user's module, and of what it calls, that an error came through; not those of the import."""
    own = (__file__, os.path.dirname(importlib.__file__), '<frozen importlib')
    lines = [f'{frame.filename}:{frame.lineno}' for frame in traceback.extract_tb(error.__traceback__)
             if not frame.filename.startswith(own)]
    return f' ({" -> ".join(lines[-4:])})' if lines else ''
