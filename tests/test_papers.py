"""docs/PAPERS.md: every name in it exists, and means what the page says."""
import fnmatch
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import torch
import yaml
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

import udl_basicsr
from udl_basicsr.cli import figures
from udl_basicsr.cli.main import COMMANDS as UDL
from udl_basicsr.options import schema

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / 'docs/PAPERS.md').read_text(encoding='utf-8')
NAMES = sorted(set(re.findall(r'`([^`\n]+)`', re.sub(r'```.*?```', '', PAGE, flags=re.DOTALL))))
COMMANDS = [line.split('  #')[0].strip() for block in re.findall(r'```bash\n(.*?)```', PAGE, flags=re.DOTALL)
            for line in block.splitlines()]
REGISTRIES = LOSS_REGISTRY, ARCH_REGISTRY, MODEL_REGISTRY, METRIC_REGISTRY


def schema_keys(table: dict) -> set[str]:
    found = set()
    for name, key in table.items():
        found.add(name)
        if isinstance(key.kind, dict):
            found |= schema_keys(key.kind)
    return found


@pytest.fixture(scope='module')
def known() -> dict:
    """Functions and classes of the package by name, and what calls and option files may say."""
    modules = [importlib.import_module(info.name)
               for info in pkgutil.walk_packages(udl_basicsr.__path__, 'udl_basicsr.')
               if info.name.rpartition('.')[2] not in ('train', 'test')]
    things = {name: thing for module in modules for name, thing in vars(module).items()
              if callable(thing) and not name.startswith('_')}
    things |= {name: thing for registry in REGISTRIES for name, thing in registry}
    keys = schema_keys(schema.OPTIONS)
    arguments = {parameter for thing in things.values()
                 if inspect.isfunction(thing) or (inspect.isclass(thing) and issubclass(thing, torch.nn.Module))
                 for parameter in inspect.signature(thing).parameters}
    return {'things': things, 'keys': keys | arguments}


def is_scheduler(name: str) -> bool:
    return hasattr(torch.optim.lr_scheduler, name)


@pytest.mark.parametrize('name', [n for n in NAMES if '/' not in n and ': ' not in n and not n.startswith('udl ')])
def test_a_name_is_that_of_a_function_a_class_or_a_key(known, name):
    short = name.removesuffix('_x4')
    assert short in known['things'] or is_scheduler(short) \
        or any(fnmatch.fnmatch(short, key) for key in known['keys'] - {'*', '*_opt'}), f'{name}: nothing has this name'


@pytest.mark.parametrize('name', [n for n in NAMES if ': ' in n])
def test_a_setting_is_one_that_something_takes(known, name):
    ((key, value), ) = yaml.safe_load(name).items()
    if key in schema_keys(schema.OPTIONS):
        return
    takers = [thing for _, thing in LOSS_REGISTRY
              if inspect.isclass(thing) and thing.__module__.startswith('udl_basicsr')
              and key in inspect.signature(thing).parameters]
    takers += [thing for _, thing in ARCH_REGISTRY if thing.__module__.startswith('udl_basicsr')
               and key in inspect.signature(thing).parameters]
    assert takers, f'{name}: no loss and no network of ours takes {key}'
    refused = []
    for taker in takers:
        needed = {'judge_weights': 'none'} if 'judge' in inspect.signature(taker).parameters else {}
        try:
            if not needed:
                taker(**{key: value})
            return
        except (ValueError, TypeError) as error:
            refused.append(error)
    pytest.fail(f'{name}: refused by all of {takers}: {refused}')


@pytest.mark.parametrize('name', [n for n in NAMES if '/' in n])
def test_a_file_is_there(name):
    assert (ROOT / name).exists(), f'{name}: no such file'


@pytest.mark.parametrize('name', [n for n in NAMES if n.startswith('udl ') and not n.startswith('udl figures ')])
def test_a_command_is_there_and_knows_its_flags(name, capsys):
    _, command, *words = name.split()
    with pytest.raises(SystemExit):
        importlib.import_module(f'udl_basicsr.cli.{command}').main(['--help'])
    told = capsys.readouterr().out
    for word in words:
        assert word in told, f'udl {command} has no {word}'


def test_the_figures_are_sub_commands():
    wanted = {n.split()[2] for n in NAMES if n.startswith('udl figures ')}
    listed = set(re.findall(r'^ {4}(\w+)', figures._parser().format_help(), flags=re.MULTILINE))
    assert wanted <= listed, f'not in udl figures: {sorted(wanted - listed)}'


def test_every_printed_table_has_its_plan_on_the_page():
    plans = {f'options/papers/{p.name}' for p in (ROOT / 'options/papers').glob('*.yml') if not p.name.startswith('_')}
    assert plans == {n for n in NAMES if n.startswith('options/papers/') and n.endswith('.yml')}


@pytest.mark.parametrize('command', COMMANDS)
def test_a_command_names_what_is_there(command):
    udl, name, file, *_ = command.split()
    assert udl == 'udl'
    assert name in UDL
    assert (ROOT / file).exists()
