"""Every command ends with a status, and says what is wrong with what it was given in place of a traceback."""
import errno
import importlib
import importlib.util
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from udl_basicsr import test as test_command
from udl_basicsr import train as train_command
from udl_basicsr.cli.main import COMMANDS as UDL
from udl_basicsr.cli.main import main as main_of_udl
from udl_basicsr.options.parse import OptionError
from udl_basicsr.utils import exits
from udl_basicsr.utils.checkpoints import CheckpointError
from udl_basicsr.utils.files import write_text

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.stem for path in (ROOT / 'scripts').glob('*.py'))
OWN = [name for name in UDL if name not in ('train', 'test', 'cache')]  # not by training/launch.py
RAN = ['train.py', 'test.py']  # as BasicSR's users type them


def script(name: str):
    if name in RAN:
        return {'train.py': train_command, 'test.py': test_command}[name]
    if name in UDL:
        return importlib.import_module(f'udl_basicsr.cli.{name}')
    spec = importlib.util.spec_from_file_location(name, ROOT / 'scripts' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there for the types
    spec.loader.exec_module(module)
    del sys.modules[name]
    return module


# ------------------------------------------------------------------------------------------------------------- endings


@pytest.mark.parametrize(('error', 'status', 'said'), [
    (KeyboardInterrupt(), 130, 'Stopped by SIGINT. Start again.\n'),
    (exits.Terminated(), 143, 'Stopped by SIGTERM. Start again.\n'),
    (OptionError('a.yml: name: missing'), 2, 'error: a.yml: name: missing\n'),
    (CheckpointError('a.pth: it is empty'), 2, 'error: a.pth: it is empty\n'),
    (FileNotFoundError('a.json: no scores. Make them'), 1, 'error: a.json: no scores. Make them\n'),
    (FileNotFoundError(errno.ENOENT, 'No such file or directory', 'a'), 1, 'error: a: No such file or directory\n'),
    (FileNotFoundError(errno.ENOENT, 'No such file or directory'), 1,
     'error: the working folder: No such file or directory\n'),
    (OSError(errno.ENAMETOOLONG, 'File name too long', 'a' * 4), 1, 'error: aaaa: File name too long\n'),
    (OSError(errno.ENOTEMPTY, 'Directory not empty', 'a', None, 'b'), 1, 'error: a -> b: Directory not empty\n'),
    (RuntimeError("Symlink loop from 'a'"), 1, "error: Symlink loop from 'a': these links lead to one another\n"),
    (SystemExit(3), SystemExit, ''),
    (ValueError('of a library'), ValueError, ''),
    (OSError(errno.ECONNREFUSED, 'Connection refused'), OSError, ''),
])
def test_how_a_command_ends(capsys, error, status, said):
    @exits.command('Start again.')
    def main():
        raise error

    if isinstance(status, type):
        with pytest.raises(status) as caught:
            main()
        assert caught.value is error
    else:
        assert main() == status
    assert capsys.readouterr().err == said
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(('error', 'status'), [
    (OSError(errno.ENOSPC, 'No space left on device', 'a'), 1), (OSError(errno.EFBIG, 'File too large', 'a'), 1),
    (FileNotFoundError(errno.ENOENT, 'No such file or directory', 'a'), 2), (CheckpointError('a: no checkpoint'), 2),
    (OSError(errno.ENAMETOOLONG, 'File name too long', 'a'), 2)])
def test_a_command_that_does_nothing_before_it_is_sure(error, status):
    """What it was given is to blame for all but a full disk, however that is told."""
    @exits.command(misused=True)
    def main(told):
        if not told:
            raise error
        try:
            raise error
        except Exception as cause:
            raise CheckpointError('a: cannot be saved') from cause

    assert main(False) == status
    assert main(True) == status


@pytest.mark.parametrize('name', [*UDL, *RAN])
def test_a_terminal_without_the_characters(monkeypatch, name):
    """LC_ALL=C PYTHONIOENCODING=ascii: the help and a mistake of every command are printed, whatever is in them."""
    for stream in ('stdout', 'stderr'):
        monkeypatch.setattr(sys, stream, io.TextIOWrapper(io.BytesIO(), encoding='ascii'))
    for words in (['--help'], ['×−≥→'], ['-opt', '×−≥→']):
        monkeypatch.setattr(sys, 'argv', [name, *words])
        with pytest.raises(SystemExit) as end:
            sys.exit(script(name).main() if name in RAN else main_of_udl([name, *words]))
        assert bool(end.value.code) == (words != ['--help'])
    print('×−≥→')
    sys.stdout.flush()
    assert sys.stdout.buffer.getvalue().endswith(rb'\xd7\u2212\u2265\u2192' + os.linesep.encode())


@pytest.mark.parametrize('argv', [['tables', '--list'], ['complexity', 'udl:EDSR-S_UDL_x4']])
def test_tables_are_printed_on_a_terminal_without_the_characters(monkeypatch, argv):
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(io.BytesIO(), encoding='ascii'))
    assert main_of_udl(argv) == 0
    assert re.search(rb'\\(xd7|u03c3)', sys.stdout.buffer.getvalue())  # × and σ


_MAIN = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
import udl_command
udl_command.answering = True  # no network is loaded, which takes seconds
from udl_basicsr.utils import exits
@exits.command('Start again.')
def main():
    print('there', flush=True)
    try:
        time.sleep(float(sys.argv[1]))
        print('x' * 10**6)
    finally:
        print('left in order', file=sys.stderr)
sys.exit(main())
"""


@pytest.mark.parametrize(('number', 'status', 'said'), [
    (signal.SIGTERM, 143, 'left in order\nStopped by SIGTERM. Start again.\n'),
    (signal.SIGINT, 130, 'left in order\nStopped by SIGINT. Start again.\n'),
    (None, 141, 'left in order\n')])
def test_signals_and_a_reader_that_has_gone_away(number, status, said):
    process = subprocess.Popen([sys.executable, '-c', _MAIN, '100' if number else '0'], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    assert process.stdout.readline() == 'there\n'
    if number:
        time.sleep(0.1)
        process.send_signal(number)
    else:
        process.stdout.close()  # as `| head -1` does
    assert process.wait(30) == status
    assert process.stderr.read() == said


@pytest.mark.parametrize('name', [*SCRIPTS, *OWN])
def test_every_script_ends_so(name):
    assert script(name).main.__wrapped__.__name__ == 'main'


# ------------------------------------------------------------------------------------------------------------- mistakes

GIVEN = ['nope', 'folder', 'empty', 'bytes', 'bytes.json', 'bytes.yml', 'list.json', 'five.yml', 'dangling', 'loop',
         'scores', 'records', 'net.pth', 'q' * 300]
OUT = ['folder', 'empty/x', 'loop/x', 'q' * 300]
_TEST = ['--dataset', 'a', '--gt', 'pictures']
COMMANDS = {
    'train.py': [['-opt', '{}']],
    'test.py': [['-opt', '{}']],
    'train': [['-opt', '{}'], ['-opt', 'udl:{}']],
    'test': [['-opt', '{}']],
    'cache': [['-opt', '{}']],
    'complexity': [['{}']],
    'options': [['{}'], ['copy'], ['copy', 'folder']],
    'benchmark_command': [['-opt', '{}']],
    'benchmark_infer': [['--pictures', '{}']],
    'benchmark_losses': [['{}']],
    'benchmark_processes': [['--network', '{}']],
    'benchmark_speed': [['--out', 'o.json', '--quick', '--val', '{}', 'pictures']],
    'scores': [['{}'], ['scores', '--paper', 'EDSR', '--paper_file', '{}']],
    'chaos': [['--kills', '0', '--out', '{}/o.json']],
    'compare': [['{}'], ['{}', '--dry_run'], ['{}', '--trial']],
    'calibrate': [['{}', '--gt', 'pictures', '--lq', 'pictures'],
                  ['--weights', 'net.pth', '--uncertainty', 'net.pth', '--gt', '{}', '--lq', 'pictures']],
    'coverage': [['{}', '--calibrate', 'pictures', '--halve', 'pictures', '--out', 'o']],
    'lpips_backbones': [['{}']],
    'ship_weights': [['{}']],
    'convert': [['{}', '--out', 'o.pth'], ['net.pth', '--out', 'o.pth', '--opt', '{}'],
                        ['net.pth', '--to', 'udl_two', '--in_u', '{}', '--out', 'o.pth']],
    'demo': [['{}'], ['bicubic'], ['figure']],
    'figures': [['errors', '{}', *_TEST, '--out', 'o.png'], ['calibration', '{}', '--out', 'o.png'],
                ['tlw', '{}', '--gt', 'pictures/a.png', '--lq', 'pictures/a.png', '--out', 'o.png'],
                ['weights', '{}', *_TEST, '--image', 'a', '--lq', 'pictures', '--out', 'o.png'],
                ['curves', '{}', '--dataset', 'a', '--out', 'o.png'], ['sigma', '{}', '--out', 'o.png']],
    'infer': [['{}', '--weights', 'net.pth', '--out', 'o'], ['pictures', '--weights', '{}', '--out', 'o'],
              ['pictures', '--weights', 'net.pth', '-opt', '{}', '--out', 'o']],
    'tables': [['{}'], ['--list', '--paper_file', '{}']],
    'prepare': [['{}', '--out', 'o', '--workers', '1']],
    'report': [['{}']],
    'uncertainty': [['{}', *_TEST, '--out', 'o'], ['scores', '--dataset', 'a', '--gt', '{}', '--out', 'o']],
}
WRITE = {
    'convert': ['net.pth', '--out'], 'figures': ['calibration', 'list.json', '--out'],
    'infer': ['pictures', '--weights', 'net.pth', '--out'], 'report': ['records', '--out'],
    'uncertainty': ['scores', *_TEST, '--out'], 'benchmark_speed': ['--quick', '--val', 'nope', 'nope', '--out'],
    'chaos': ['--kills', '0', '--out'],
}


@pytest.fixture
def mistakes(tmp_path, monkeypatch):
    """A working folder with files that are none of what a command expects."""
    monkeypatch.chdir(tmp_path)
    for folder in ('folder', 'scores', 'records', 'pictures'):
        Path(folder).mkdir()
    Path('empty').touch()
    noise = np.random.default_rng(0).bytes(500)
    for name in ('bytes', 'bytes.json', 'bytes.yml'):
        Path(name).write_bytes(noise)
    Path('list.json').write_text('[[1]]')
    Path('five.yml').write_text('5\n')
    Path('scores/scores.json').write_text('{"name": 3}')
    Path('records/L1_x2_seed0.json').write_text('{"a": 1}')
    Path('dangling').symlink_to('nowhere')
    Path('loop').symlink_to('loop')
    torch.save({'params': {'a': torch.zeros(2)}}, 'net.pth')
    cv2.imwrite('pictures/a.png', np.zeros((40, 40, 3), np.uint8))


def test_every_command_is_tried():
    assert COMMANDS.keys() == {*SCRIPTS, *UDL, *RAN}


@pytest.mark.parametrize('name', COMMANDS)
def test_mistakes_are_said_and_leave_nothing_behind(mistakes, monkeypatch, capsys, name):
    main = script(name).main
    cases = [[word.format(given) for word in argv] for argv in COMMANDS[name] for given in GIVEN]
    cases += [[*WRITE[name], out] for out in OUT] if name in WRITE else []
    before = sorted(Path.cwd().rglob('*'))
    for argv in cases:
        try:
            if name in RAN:
                monkeypatch.setattr(sys, 'argv', [name, *argv])
                status = main(Path.cwd())
            else:
                status = main(argv)
        except SystemExit as end:  # argparse, which has said why, or a sentence that Python says
            status = end.code
        said = capsys.readouterr()
        assert status, (argv, said.out)
        assert said.err.strip() or isinstance(status, str), argv
        assert len(said.err) < 3000, argv
        assert 'Traceback' not in said.err, argv
        assert sorted(Path.cwd().rglob('*')) == before, argv


@pytest.mark.skipif(not Path('/proc/self').exists(), reason='of Linux')
@pytest.mark.parametrize('argv', [
    ['scores', 'nope', '--out'], ['tables', 'nope', '--out'], ['report', 'nope', '--out'],
    ['figures', 'calibration', 'nope', '--out'],
    ['figures', 'lead', 'nope', '--method', 'a', '--axis', 'scale', '--out', 'o.png', '--numbers'],
    ['uncertainty', 'nope', *_TEST, '--out'], ['coverage', 'nope', '--halve', 'nope', '--out'],
    ['lpips_backbones', 'nope', '--out'], ['chaos', '--out'], ['benchmark_speed', '--out'],
    ['benchmark_processes', '--out'], ['benchmark_infer', '--pictures', 'nope', '--out'],
    ['benchmark_command', '-opt', 'nope', '--out']], ids=lambda argv: ' '.join(argv[:2]))
def test_an_output_that_cannot_be_written_is_refused_before_all_else(mistakes, capsys, argv):
    """Below /proc root may do all by the modes and make nothing; in the place of a device root would put the file."""
    name, *words = argv
    for out, said in (('/proc/x.png', 'cannot be written to'), ('/dev/null', 'expected a f'), ('empty/x', 'is a file')):
        with pytest.raises(SystemExit) as end:
            script(name).main([*words, out])
        assert end.value.code == 2
        assert f'error: argument {words[-1]}: {out}: ' in (text := capsys.readouterr().err)
        assert said in text
    assert script('options').main(['copy', '/proc/x']) == 2
    assert 'error: /proc/x: /proc cannot be written to; give another folder' in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='no pipes on Windows')
def test_a_pipe_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(FileExistsError, match='is a device or a pipe, expected a file'):
        write_text(tmp_path / 'pipe', 'x')
    assert (tmp_path / 'pipe').is_fifo()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='Windows deletes no folder that is in use')
@pytest.mark.parametrize('name', COMMANDS)
def test_a_working_folder_that_is_gone(tmp_path, monkeypatch, capsys, name):
    main = script(name).main
    gone = tmp_path / 'gone'
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    argv = [word.format('nope') for word in COMMANDS[name][0]]
    monkeypatch.setattr(sys, 'argv', [name, *argv])
    try:
        status = main(None) if name in RAN else main(argv)
    except SystemExit as end:
        status = end.code
    assert status
    assert capsys.readouterr().err.strip()
