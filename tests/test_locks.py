"""Locks of folders: one process at a time, whatever becomes of the others."""
import errno
import fcntl
import os
import time

import pytest
from forked import Forked

from udl_basicsr.utils import locks


def hold(folder, seconds):
    with locks.locked(folder):
        (folder / 'held').write_text('')
        time.sleep(seconds)


def held_by_another(folder, seconds) -> Forked:
    child = Forked(hold, folder, seconds, cwd=folder.parent)
    while not (folder / 'held').exists():
        assert child.process.is_alive()
        time.sleep(0.01)
    return child


def test_another_process_is_named_and_waited_for(tmp_path):
    folder = tmp_path / 'a'
    child = held_by_another(folder, 0.3)
    holder = f'process {child.process.pid} on '
    with pytest.raises(locks.HeldError, match=holder), locks.locked(folder):
        pass
    told = []
    with locks.locked(folder, told.append):  # the file that it waits for is gone by then
        assert [text.startswith(holder) for text in told] == [True]
        assert (folder / '.lock').read_text().startswith(f'process {os.getpid()} on ')
        with pytest.raises(locks.HeldError), locks.locked(folder):
            pass
    assert [file.name for file in folder.iterdir()] == ['held']
    assert child.wait() == 0


def test_a_process_that_is_killed_leaves_nothing_locked(tmp_path):
    child = held_by_another(tmp_path / 'a', 600)
    child.process.kill()
    child.wait()
    assert (tmp_path / 'a/.lock').exists()
    with locks.locked(tmp_path / 'a'):
        pass


@pytest.mark.parametrize('number', [errno.ENOSYS, errno.ENOLCK, errno.EIO])
def test_a_disk_without_locks_does_without(tmp_path, monkeypatch, number):
    """Such as Lustre that is mounted without: nobody else trains there, and there is nothing to wait for."""
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, 'flock', refuse)
    if number == errno.EIO:
        with pytest.raises(OSError, match='Input/output'):
            locks.take(tmp_path)
    else:
        assert locks.take(tmp_path) is None
        with locks.locked(tmp_path):
            pass
