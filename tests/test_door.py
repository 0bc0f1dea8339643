"""The command udl: what it answers without loading a network, modules of one's own, option files of the package."""
import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from udl_basicsr.cli import figures as figures_command
from udl_basicsr.cli import main as door
from udl_basicsr.functional import attribution
from udl_basicsr.functional import losses as formulas
from udl_basicsr.reports import figures, html_pictures, lead, paper_formats, score_table, tradeoff
from udl_basicsr.training.arguments import TRAINS, launch_parser
from udl_basicsr.utils import option_files, plugins

ROOT = Path(__file__).parents[1]
OWN = """
import torch
from basicsr.utils.registry import ARCH_REGISTRY

@ARCH_REGISTRY.register()
class OwnNet(torch.nn.Sequential):
    def __init__(self, upscale=2):
        super().__init__(torch.nn.Conv2d(3, 3 * upscale**2, 3, padding=1), torch.nn.PixelShuffle(upscale))
"""


def udl(folder: Path, *argv: str, light: str = '') -> subprocess.CompletedProcess:
    """``udl`` in a process of its own; with ``light``, status 99 if a module of that name was loaded."""
    code = ('import sys, udl_command\ntry:\n    udl_command.main()\nfinally:\n'
            f'    if {light!r} and {light!r} in sys.modules: sys.exit(99)')
    return subprocess.run([sys.executable, '-c', code, *argv], cwd=folder, capture_output=True, text=True, timeout=300,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)})


# ---------------------------------------------------------------------------------------------------- without a network


@pytest.mark.parametrize('argv', [['--help'], ['--version'], ['options'],
                                  ['tables', '--list'], *([name, '--help'] for name in door.COMMANDS)],
                         ids=lambda argv: ' '.join(argv))
def test_what_needs_no_network_loads_no_torch(tmp_path, argv):
    done = udl(tmp_path, *argv, light='torch')
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_tables_of_records_load_no_torch(tmp_path):
    done = udl(tmp_path, 'tables', str(ROOT / 'docs/results/tiny_x4'), '--table', 'udl-1', light='torch')
    assert done.returncode == 0, done.stderr
    assert 'udl-1' in done.stdout or 'table 1' in done.stdout


def test_the_first_command_of_a_new_user(tmp_path):
    (tmp_path / 'photos').mkdir()
    Image.new('RGB', (32, 32)).save(tmp_path / 'photos/a.png')
    done = udl(tmp_path, 'prepare', 'photos', '--out', 'data', '--scale', '2', '--workers', '1')
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'data/LRbicx2/a.png').exists()


def test_a_report_in_a_process_of_its_own(tmp_path):
    (tmp_path / 'records').mkdir()
    for method in ('L1', 'ESU_UDL'):
        shutil.copy(ROOT / f'docs/results/tiny_x4/{method}_x4_seed0.json', tmp_path / 'records')
    done = udl(tmp_path, 'report', 'records', '--out', 'report.html')
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'report.html').exists()


def test_uncertainty_without_results_in_a_process_of_its_own(tmp_path):
    done = udl(tmp_path, 'uncertainty', 'nothing', '--dataset', 'Set5', '--gt', '.', '--out', 'out')
    assert done.returncode == 2
    assert 'Traceback' not in done.stderr


def test_what_it_does_not_know(tmp_path):
    done = udl(tmp_path, 'trian', light='torch')
    assert done.returncode == 2
    assert "there is no command 'trian'; did you mean 'train'?" in done.stderr
    assert udl(tmp_path).returncode == 2


def test_every_command_is_listed_and_every_module_is_one():
    helpers = {'__init__', 'main', 'comparing', 'drawing', 'restoring'}
    assert {path.stem for path in (ROOT / 'udl_basicsr/cli').glob('*.py')} - helpers == door.COMMANDS.keys()


def known(option: str, kind: str):
    """The choices of an option of udl figures, or its default."""
    kinds = next(a for a in figures_command._parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    sub = kinds[kind]
    action = next(a for a in sub._actions if option in a.option_strings)
    return list(action.choices) if action.choices else action.default


def test_what_parsers_write_out_is_what_the_modules_know():
    """Parsers name choices and defaults themselves, since the modules that define them are heavy."""
    assert known('--scaling', 'weights') == list(formulas.SCALINGS)
    assert known('--min_over', 'weights') == list(formulas.MIN_OVER)
    assert known('--cost', 'tradeoff') == list(tradeoff.UNITS)
    assert known('--axis', 'lead') == list(lead.AXES)
    assert known('--steep', 'texture') == attribution.STEEP
    assert known('--limits', 'uncertainty') == figures.LOG_SCALE_LIMITS
    assert known('--width', 'crops') == figures.WIDTH
    for name, formats in (('tables', paper_formats.FORMATS), ('scores', score_table.FORMATS)):
        with pytest.raises(SystemExit):
            importlib.import_module(f'udl_basicsr.cli.{name}').main(['x', '--format', 'nope'])
        source = (ROOT / f'udl_basicsr/cli/{name}.py').read_text()
        assert f'choices={list(formats)!r}' in source
    assert f'default={html_pictures.WINDOW},' in (ROOT / 'udl_basicsr/cli/report.py').read_text()


# ---------------------------------------------------------------------------------------------------- of one's own


def test_a_network_of_ones_own(tmp_path):
    (tmp_path / 'own_nets.py').write_text(OWN)
    (tmp_path / 'a.yml').write_text(json.dumps({'scale': 2, 'network_g': {'type': 'OwnNet', 'upscale': 2}}))
    done = udl(tmp_path, '--import=own_nets', 'complexity', 'a.yml')
    assert done.returncode == 0, done.stderr
    assert 'OwnNet' in done.stdout
    command = [sys.executable, '-um', 'udl_basicsr', 'complexity', 'a.yml', '--import', 'own_nets']  # as torchrun's
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)}).stdout == done.stdout
    assert plugins.split(['complexity', 'a.yml', '--import', 'own_nets']) == (['complexity', 'a.yml'], ['own_nets'])


def test_installed_plugins_and_processes_that_a_command_starts(tmp_path, monkeypatch):
    (tmp_path / 'own_nets.py').write_text(f'{OWN}\n@ARCH_REGISTRY.register()\nclass HAT(OwnNet):\n    pass\n')
    (tmp_path / 'installed.py').write_text(OWN.replace('OwnNet', 'InstalledNet'))
    info = tmp_path / 'own_nets-1.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: own-nets\nVersion: 1.0\n')
    (info / 'entry_points.txt').write_text(f'[{plugins.GROUP}]\nnets = installed\n')
    monkeypatch.setenv(plugins.VARIABLE, 'own_nets')  # as --import leaves it
    code = ('import udl_basicsr; from basicsr.utils.registry import ARCH_REGISTRY as known; '
            'print(*(known.get(name).__module__ for name in ("OwnNet", "InstalledNet", "HAT", "HAT_spandrel", "DAT")))')
    done = subprocess.run([sys.executable, '-c', code], cwd='/', timeout=120, capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': os.pathsep.join((str(ROOT), str(tmp_path)))})
    theirs = 'udl_basicsr.archs.spandrel_archs'  # HAT is the name of its author's repository too
    assert done.stdout.split() == ['own_nets', 'installed', 'own_nets', theirs, theirs], done.stderr


@pytest.mark.parametrize(('argv', 'said'), [
    (['complexity', 'udl:EDSR_UDL_x4', '--import', 'broken'], '/parts.py:2). Expected a module that can be'),
    (['complexity', 'x.yml', '--import', 'parts/nets.py'],
     'expected the name of a module, got that of a file: --import nets, in the folder'),
    (['complexity', 'x.yml', '--import'], '--import: expected the name of a module'),
])
def test_what_cannot_be_imported_is_named(tmp_path, argv, said):
    (tmp_path / 'broken.py').write_text('import parts\n')
    (tmp_path / 'parts.py').write_text('# divides\n1 / 0\n')
    done = udl(tmp_path, *argv)
    assert done.returncode == 2
    assert said in done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('argv', [['infer', '', '--out', 'sr'], ['infer', 'a.png', '--out='],
                                  ['train', '-opt', ''], ['report', 'results/a', '--gt', '', '--out', 'x.html']])
def test_an_empty_argument_is_not_the_working_folder(tmp_path, argv, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a.png').write_bytes(b'')
    with pytest.raises(SystemExit, match='2'):
        door.main(argv)
    assert ' is empty; is a variable of your shell not set?' in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['a.png']


@pytest.mark.parametrize('words', ['a=1 b=2 --force_yml c=3', 'a=1 --force-yml b=2 --deep --force_yml=c=3'])
def test_a_flag_of_lists_that_stands_several_times_loses_nothing(words):
    parser = launch_parser(TRAINS)
    assert parser.parse_args(['-opt', 'x.yml', '--force_yml', *words.split()]).force_yml == ['a=1', 'b=2', 'c=3']
    assert parser.parse_args(['-opt', 'x.yml']).force_yml == []


# ---------------------------------------------------------------------------------------------------- option files


def test_option_files_that_come_with_the_package():
    assert option_files.locate('udl:EDSR_UDL_x4') == str(ROOT / 'options/train_EDSR_UDL_x4.yml')
    assert option_files.locate('udl:EDSR_UDL_x4', ('test_', '')) == str(ROOT / 'options/test_EDSR_UDL_x4.yml')
    assert option_files.locate('udl:papers/udl-5') == str(ROOT / 'options/papers/udl-5.yml')
    assert option_files.locate('my.yml') == 'my.yml'
    for wrong in ('udl:EDSR_UDLx4', 'udl:../setup', 'udl:', 'udl:_base_/udl'):
        with pytest.raises(ValueError, match='no option file of this name'):
            option_files.locate(wrong)
    for prefix in ('train_', 'test_'):
        with pytest.raises(ValueError, match=f"did you mean '{prefix}EDSR_UDL_x4'"):
            option_files.locate('udl:EDSR_UDL_x44', (prefix, ''))


def test_they_are_copied_whole(tmp_path):
    assert udl(tmp_path, 'options', 'copy', 'mine').returncode == 0
    whole = {p.relative_to(ROOT / 'options') for p in (ROOT / 'options').rglob('*.yml')}
    assert {p.relative_to(tmp_path / 'mine') for p in (tmp_path / 'mine').rglob('*.yml')} == whole
    done = udl(tmp_path, 'options', 'copy', 'mine')
    assert done.returncode == 2
    assert 'mine exists' in done.stderr
