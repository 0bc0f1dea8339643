"""Locks of folders and files: one process at a time, whatever becomes of the others."""
import errno
import fcntl
import os
import time

import pytest
from forked import Forked

from udl_basicsr.utils import locks
from udl_basicsr.utils.files import write_text, written_aside


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


# ------------------------------------------------------------------------------------------------ files written aside

def write_half(path):
    with written_aside(path) as part:
        part.write_text('half')
        time.sleep(600)


def test_what_a_killed_writer_leaves_is_written_over(tmp_path):
    folder = tmp_path / 'a'
    folder.mkdir()
    child = Forked(write_half, folder / 'x.txt', cwd=tmp_path)
    while not any(part.stat().st_size for part in folder.iterdir()):
        assert child.process.is_alive()
        time.sleep(0.01)
    child.process.kill()
    child.wait()
    left, = folder.iterdir()
    write_text(folder / 'y.txt', 'another file')
    assert left.exists()
    write_text(folder / 'x.txt', 'whole')
    assert {file.name: file.read_text() for file in folder.iterdir()} == {'x.txt': 'whole', 'y.txt': 'another file'}


def test_a_writer_that_lives_is_not_written_over(tmp_path):
    path = tmp_path / 'x.txt'
    with written_aside(path) as first:
        first.write_text('first')
        with pytest.raises(KeyError), written_aside(path) as third:
            raise KeyError
        write_text(path, 'second')
        assert path.read_text() == 'second'
        assert third.name != first.name
    assert path.read_text() == 'first'
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('why', ['no locks', 'a link', 'a folder'])
def test_files_are_written_where_none_can_be_had_alone(tmp_path, monkeypatch, why):
    other, path = tmp_path / 'other.txt', tmp_path / 'a' / 'x.txt'
    other.write_text('another file')
    write_text(path, 'before')
    with written_aside(path) as part:
        part.write_text('1')
    if why == 'no locks':
        monkeypatch.setattr(locks.fcntl, 'flock', lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, 'none')))
    elif why == 'a link':
        part.symlink_to(other)
    else:
        part.mkdir()
    write_text(path, '2')
    assert (path.read_text(), other.read_text()) == ('2', 'another file')
    assert sorted(file.name for file in path.parent.iterdir()) == [part.name] * (why != 'no locks') + ['x.txt']
