"""The parser of all commands: one spelling of flags, BasicSR's ``--force_yml``, and examples at the end of the help."""
import argparse
import sys
import textwrap
from typing import Any


class CommandParser(argparse.ArgumentParser):
    """An ArgumentParser that takes ``--dry-run`` for ``--dry_run`` too.

    Args:
        told: The docstring of the command's module; its indented lines are the examples that ``--help`` ends with.
    """

    def __init__(self, *args: Any, told: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        lines = [line for line in (told or '').splitlines()[1:] if line.startswith('    ')]
        self.examples = textwrap.indent(textwrap.dedent('\n'.join(lines)), '  ')

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
