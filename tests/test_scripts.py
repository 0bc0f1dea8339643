"""Every program says what it does: --help of each command and script, in one process."""
import argparse
import importlib.util
import inspect
import shlex
import sys
from pathlib import Path

import pytest

from udl_basicsr.cli import drawing, figures
from udl_basicsr.cli.main import COMMANDS
from udl_basicsr.utils.command_line import CommandParser, whole

ROOT = Path(__file__).parents[1]
PROGRAMS = [*(path for path in sorted((ROOT / 'scripts').glob('*.py')) if path.name != 'demo.py'),  # demo.sh's
            *(ROOT / 'udl_basicsr' / 'cli' / f'{name}.py' for name in COMMANDS),
            *(ROOT / 'udl_basicsr' / f'{name}.py' for name in ('train', 'test'))]


class _Found(BaseException):
    """The parser of a program, from the moment at which it would read its arguments."""


@pytest.mark.parametrize('program', PROGRAMS, ids=lambda path: path.stem)
def test_help_of_every_command(program, monkeypatch):
    def found(parser, *_):
        raise _Found(parser)

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', found)
    spec = importlib.util.spec_from_file_location(f'help_{program.stem}', program)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module.__name__, module)  # which dataclasses look into
    spec.loader.exec_module(module)
    with pytest.raises(_Found) as caught:
        module.main()
    parsers = [caught.value.args[0]]
    for parser in parsers:
        commands = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        parsers += [sub for choices in commands for sub in choices.values()]
        text = parser.format_help()
        assert text.startswith('usage: ')
        assert parser.description
        for action in parser._actions:
            assert action.help is argparse.SUPPRESS or all(option in text for option in action.option_strings)
            assert action.type is not int or action.choices or action.help is argparse.SUPPRESS  # they have no bounds
            if '-opt' in action.option_strings and program.parent.name == 'cli':
                assert Path(action.type('udl:EDSR_UDL_x4')).is_file()
        with pytest.raises(SystemExit) as stop:  # and as it is asked for
            argparse.ArgumentParser.parse_known_args(parser, ['--help'])
        assert stop.value.code == 0
        # one spelling, BasicSR's; torch.distributed.launch gives --local-rank
        flags = {flag for action in parser._actions for flag in action.option_strings} - {'--local-rank'}
        assert not [flag for flag in flags if '-' in flag.lstrip('-')]
    if program.parent.name == 'cli':
        the_examples_of_the_help_can_be_typed(caught.value.args[0], program.stem)
        without_indentation = CommandParser(told=inspect.cleandoc(module.__doc__))  # as Python 3.13 keeps it
        assert without_indentation.examples == caught.value.args[0].examples


def the_examples_of_the_help_can_be_typed(parser, command):
    text = parser.format_help().partition('\nexamples:\n')[2]
    assert all(len(line) <= 120 for line in text.splitlines())  # one backslash in a docstring joins the lines
    lines = text.replace('\\\n', ' ').splitlines()
    assert lines
    for line in lines:
        udl, name, *words = shlex.split(line, comments=True)
        assert (udl, name) == ('udl', command)
        words = words[:words.index('--import')] if '--import' in words else words
        expected = parser.parse_known_args(words)
        assert expected[1] == []
        other = [word.replace('_', '-') if word.startswith('--') else word for word in words]
        assert parser.parse_known_args(other) == expected


@pytest.mark.parametrize('text', ['-1', '1.5', '1e3', '1_0', ' 1', '²', '१', '', 'nan', '9' * 19, '9' * 5000])
def test_whole_numbers_are_read_alike(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r'^expected a whole number from 0, got '):
        whole(0)(text)


def test_whole_numbers_have_bounds():
    reads = whole(2, 8)
    assert [reads(text) for text in ('2', '008')] == [2, 8]
    for text in ('1', '9'):
        with pytest.raises(argparse.ArgumentTypeError, match=f"^expected a whole number from 2 to 8, got '{text}'$"):
            reads(text)


def test_figures_has_a_command_for_every_kind():
    """Nothing that can be drawn is missing on the command line."""
    kinds = next(a for a in figures._parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    assert {'texture', 'deciles', 'lead', 'fixed_sum', 'sigma', 'tradeoff', 'gradients', 'variances'} <= kinds.keys()
    drawn = {name for name, value in vars(drawing).items()
             if inspect.isfunction(value) and not name.startswith('_') and value.__module__ == drawing.__name__}
    assert drawn == kinds.keys()
