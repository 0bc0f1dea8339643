"""The parser of all commands: one spelling of flags, BasicSR's ``--force_yml``, and examples at the end of the help."""
import argparse
import re
import sys
import textwrap
from typing import Any


class CommandParser(argparse.ArgumentParser):
    """An ArgumentParser that takes ``--dry-run`` for ``--dry_run`` too.

    Args:
        told: The docstring of the command's module; its lines that begin with ``udl``, and what continues them after
            a backslash, are the examples that ``--help`` ends with. That they are indented says nothing: Python 3.13
            takes the indentation off a docstring that has nothing else after its first line.
    """

    def __init__(self, *args: Any, told: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        examples = re.findall(r'^ *udl (?:.*\\\n)*.*', told or '', re.M)
        self.examples = textwrap.indent('\n'.join(map(textwrap.dedent, examples)), '  ')

    def parse_known_args(self, args=None, namespace=None):
        return super().parse_known_args([_spelt(text) for text in (sys.argv[1:] if args is None else args)], namespace)

    def format_help(self) -> str:
        return super().format_help() + (f'\nexamples:\n{self.examples}\n' if self.examples else '')


def _spelt(text: str) -> str:
    """A flag with underscores; what follows ``=`` stays as it is."""
    if not isinstance(text, str) or not text.startswith('--') or text == '--':
        return text
    name, equals, value = text[2:].partition('=')
    return f'--{name.replace("-", "_")}{equals}{value}'
