"""Children of multiprocessing end with the process that started them. No torch, so that it costs next to nothing."""
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

MODULE = Path(__file__).resolve().parents[1] / 'udl_basicsr' / 'utils' / 'children.py'
_MAIN = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {folder!r})
import children

def work(folder, stubborn):
    children.end_with_parent(grace=0.5)
    def keep(*_):
        (folder / 'asked').touch()
        if not stubborn:
            (folder / 'saved').touch()
            os._exit(0)
    signal.signal(signal.SIGTERM, keep)
    (folder / f'pid_{{os.getpid()}}').touch()
    while True:
        time.sleep(0.05)

if __name__ == '__main__':
    folder, method, stubborn = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == 'stubborn'
    context = multiprocessing.get_context(method)
    for _ in range(2):
        context.Process(target=work, args=(folder, stubborn)).start()
    time.sleep(100)
"""

_RANK = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {folder!r})
import children

folder, kind, launcher = Path(sys.argv[1]), sys.argv[2], os.getppid()
def keep(*_):
    (folder / 'asked').touch()
    if kind != 'stubborn':
        os._exit(0)
signal.signal(signal.SIGTERM, keep)
(folder / f'pid_{{os.getpid()}}').touch()
while kind == 'late' and os.getppid() == launcher:
    time.sleep(0.02)
children.end_with_torchrun(grace=0.5, every=0.02)
while True:
    time.sleep(0.05)
"""


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        state = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
    except OSError:
        return True
    return state == 'Z'  # nobody may be there to take note of its end


@pytest.mark.skipif(sys.platform != 'linux', reason='looks at processes through /proc')
@pytest.mark.parametrize(('method', 'kind'), [
    ('forkserver', 'obedient'), ('forkserver', 'stubborn'), ('spawn', 'obedient'), ('fork', 'obedient')])
def test_children_of_a_killed_process_are_asked_to_stop_and_then_killed(tmp_path, method, kind):
    (tmp_path / 'main.py').write_text(_MAIN.format(folder=str(MODULE.parent)))
    main = subprocess.Popen([sys.executable, str(tmp_path / 'main.py'), str(tmp_path), method, kind],
                            start_new_session=True)
    try:
        wait_for(lambda: len(list(tmp_path.glob('pid_*'))) == 2)
        pids = [int(p.name[4:]) for p in tmp_path.glob('pid_*')]
        for pid in pids:
            os.kill(pid, signal.SIGINT)  # the terminal's, which the parent passes on as SIGTERM
        time.sleep(0.2)
        assert not any(map(gone, pids))
        assert not (tmp_path / 'asked').exists()
        main.kill()
        main.wait()
        wait_for(lambda: all(map(gone, pids)))
        assert (tmp_path / 'asked').exists()
        assert (tmp_path / 'saved').exists() == (kind == 'obedient')
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(main.pid, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != 'linux', reason='looks at processes through /proc')
@pytest.mark.parametrize('kind', ['obedient', 'stubborn', 'late'])
def test_a_rank_ends_with_torchrun(tmp_path, kind):
    """Also where that has ended while the rank was still importing torch."""
    (tmp_path / 'rank.py').write_text(_RANK.format(folder=str(MODULE.parent)))
    launcher = subprocess.Popen(['sh', '-c', f'{sys.executable} {tmp_path}/rank.py {tmp_path} {kind} & wait'],
                                start_new_session=True)
    try:
        wait_for(lambda: list(tmp_path.glob('pid_*')))
        pid, = (int(p.name[4:]) for p in tmp_path.glob('pid_*'))
        time.sleep(0.2)
        assert not gone(pid)
        assert not (tmp_path / 'asked').exists()
        launcher.kill()
        launcher.wait()
        wait_for(lambda: gone(pid))
        assert (tmp_path / 'asked').exists()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)


def test_a_process_without_a_parent_is_left_as_it_is():
    spec = importlib.util.spec_from_file_location('children', MODULE)
    children = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(children)
    before = signal.getsignal(signal.SIGINT)
    children.end_with_parent()
    assert signal.getsignal(signal.SIGINT) is before
