"""What the commands that restore images have in common: how their arguments are read, and those that decide pixels."""
from __future__ import annotations

import argparse

from udl_basicsr.utils.command_line import whole
from udl_basicsr.utils.shipped_weights import locate_weights

OVERLAP = 32


def weights_file(text: str) -> str:
    """For argparse: the path of weights, ``udl:NAME`` too."""
    try:
        return locate_weights(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def positive(text: str) -> float:
    """For argparse: a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.
    if not 0 < value < float('inf'):
        raise argparse.ArgumentTypeError(f'expected a number above 0, got {text!r}')
    return value


def share(text: str) -> float:
    """For argparse: a number between 0 and 1."""
    if not 0 < (value := positive(text)) < 1:
        raise argparse.ArgumentTypeError(f'expected a number between 0 and 1, got {text!r}')
    return value


def add_promise(parser: argparse.ArgumentParser) -> None:
    """``--alpha`` and ``--delta``."""
    parser.add_argument('--alpha', type=share, default=0.1, help='share of values that may lie outside; default 0.1')
    parser.add_argument('--delta', type=share, help='probability with which the promise may fail (RCPS); default: '
                        'a promise about the mean over images (conformal risk control)')


def add_restoring(parser: argparse.ArgumentParser) -> None:
    """What decides pixels, or where they are computed, for :func:`check_restoring`."""
    parser.add_argument('--tile', type=whole(8), metavar='N', help='restore tiles of N x N input pixels: less memory')
    parser.add_argument('--overlap', type=whole(0), metavar='M', help='input pixels around each tile that the network '
                        f'sees as well; default {OVERLAP}')
    parser.add_argument('--self_ensemble', action='store_true', help='mean over the 8 flips and turns; 8 times as slow')
    parser.add_argument('--spread', action='store_true', help='with --self_ensemble: make how far the 8 differ a part '
                        'of s and of the intervals')
    parser.add_argument('--amp', choices=['bf16', 'fp16'], help='compute in 16 bits; default: float32')
    parser.add_argument('--device', choices=['auto', 'cpu', 'cuda'], default='auto',
                        help='default: a GPU if there is one')


def check_restoring(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuses what would be ignored, and fills in the default of ``--overlap``."""
    if args.overlap is not None and args.tile is None:
        parser.error('--overlap is around tiles: give --tile N with it')
    args.overlap = OVERLAP if args.overlap is None else args.overlap
