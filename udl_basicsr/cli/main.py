"""The one door: ``udl <command>``."""
from __future__ import annotations

import importlib
import sys

from udl_basicsr.utils import exits, plugins
from udl_basicsr.utils.text import did_you_mean
from udl_basicsr.utils.version import __version__

COMMANDS = {
    'prepare': 'make the paired images of a data set from its HR images',
    'train': 'train all stages of an option file',
    'test': 'score a network on test sets',
    'infer': 'super-resolve pictures, with their uncertainty',
    'calibrate': 'calibrate uncertainty intervals on images kept apart',
    'convert': 'convert weights from and to other programs, safetensors and ONNX',
    'cache': 'compute the uncertainty of the training images ahead of stage 2',
    'compare': 'train, test and compare losses, or a table of a paper',
    'scores': 'join the scores of several tests into one table',
    'tables': "make the papers' tables of comparisons",
    'report': 'make one HTML file of a comparison or of tests',
    'figures': 'draw the figures of the papers',
    'uncertainty': 'score and draw the uncertainty of several tests',
    'coverage': 'judge the calibrated intervals of several runs on other images',
    'complexity': 'count the parameters and operations of a network',
    'options': 'list or copy the option files in the package',
}
_USAGE = 'usage: udl [--help] [--version] COMMAND ... [--import MODULE]'


def usage() -> str:
    """The help of ``udl``."""
    width = max(map(len, COMMANDS))
    return '\n'.join([
        _USAGE, '', 'Uncertainty-driven losses for super-resolution, on BasicSR.', '', 'commands:',
        *(f'  {name:<{width}}  {does}' for name, does in COMMANDS.items()), '',
        'udl COMMAND --help explains the arguments. Every command takes --import MODULE, also several times: a module',
        'of your own that registers networks, losses or metrics.'])


@exits.command()
def main(argv: list[str] | None = None) -> int:
    """Runs ``udl``; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ('-h', '--help'):
        print(usage())
        return 0 if argv else exits.MISUSED
    if argv[0] == '--version':
        print(f'udl_basicsr {__version__}')
        return 0
    argv, modules = plugins.split(argv)
    if not argv or argv[0] not in COMMANDS:
        name = argv[0] if argv else ''
        print(f'udl: there is no command {name!r}{did_you_mean(name, COMMANDS)}\n{_USAGE}', file=sys.stderr)
        return exits.MISUSED
    plugins.ask_for(modules)
    sys.argv = [f'udl {argv[0]}', *argv[1:]]
    return importlib.import_module(f'udl_basicsr.cli.{argv[0]}').main(argv[1:])
