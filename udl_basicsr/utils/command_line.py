"""The parser of all commands: one spelling of flags, one reader of whole numbers, examples at the end of the help."""
import argparse
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .files import why_not_into, why_not_to
from .text import one_line

_MOST_DIGITS = 18  # all have room in 64 bits


class _Store(argparse.Action):
    """Stores what is given. What a flag of lists is given several times is one list, of which nothing is lost."""

    def __call__(self, parser, namespace, values, option_string=None):
        given = getattr(namespace, self.dest, None)
        if option_string and self.nargs in ('+', '*') and given is not self.default:
            values = [*(given or ()), *(values or ())]
        setattr(namespace, self.dest, values)


class CommandParser(argparse.ArgumentParser):
    """An ArgumentParser that takes ``--dry-run`` for ``--dry_run`` too, and refuses empty arguments.

    Args:
        told: The docstring of the command's module; its lines that begin with ``udl``, and what continues them after
            a backslash, are the examples that ``--help`` ends with. That they are indented says nothing: Python 3.13
            takes the indentation off a docstring that has nothing else after its first line.
    """

    def __init__(self, *args: Any, told: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in (None, 'store'):  # which flags are by default, and those of groups with them
            self.register('action', name, _Store)
        self.register('action', 'last', argparse._StoreAction)  # several values that are one thing, such as a box
        examples = re.findall(r'^ *udl (?:.*\\\n)*.*', told or '', re.M)
        self.examples = textwrap.indent('\n'.join(map(textwrap.dedent, examples)), '  ')

    def parse_known_args(self, args=None, namespace=None):
        words = [_spelt(text) for text in (sys.argv[1:] if args is None else args)]
        for before, word in zip(['', *words], words, strict=False):
            if not word or re.fullmatch('--[a-z_]+=', word):  # as a path the working folder, with all that is in it
                which = f'argument {word[:-1]}' if word else f'an argument behind {before}' if before else 'an argument'
                self.error(f'{which} is empty; is a variable of your shell not set?')
        return super().parse_known_args(words, namespace)

    def format_help(self) -> str:
        return super().format_help() + (f'\nexamples:\n{self.examples}\n' if self.examples else '')


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """For argparse: reads a whole number within bounds, of which the lower one is not below 0.

    Example:
        >>> whole(1)('16'), whole(0, 255)('0')
        (16, 0)
    """
    wanted = f'a whole number from {least}' + ('' if most is None else f' to {most}')

    def convert(text: str) -> int:
        # int() would take 1_000, spaces and the digits of every script as well
        value = int(text) if re.fullmatch(r'[0-9]+', text) and len(text) <= _MOST_DIGITS else -1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f'expected {wanted}, got {one_line(text, 60)!r}')
        return value
    return convert


def to_file(text: str) -> Path:
    """For argparse: a file that can be written. It and its folder need not be there; nothing is made."""
    if why := why_not_to(text):
        raise argparse.ArgumentTypeError(f'{text}: {why}; give another name')
    return Path(text)


def into_folder(text: str) -> Path:
    """For argparse: a folder that can be written into. It need not be there; nothing is made."""
    if why := why_not_into(text):
        raise argparse.ArgumentTypeError(f'{text}: {why}; give another name')
    return Path(text)


def _spelt(text: str) -> str:
    """A flag with underscores; what follows ``=`` stays as it is."""
    if not text.startswith('--'):
        return text
    name, equals, value = text[2:].partition('=')
    return f'--{name.replace("-", "_")}{equals}{value}'
