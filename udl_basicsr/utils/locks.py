"""Locks of folders and files, which the system lets go of when their process ends, however it does."""
import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TextIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = '.lock'
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}  # some shared disks have none


class HeldError(Exception):
    """Another process has the lock; the message says which."""


def take(folder: Path, waiting: Callable[[str], object] | None = None) -> TextIO | None:
    """Takes the lock of a folder: ``.lock`` in it, held until that file is closed.

    Args:
        folder: It exists.
        waiting: Told which process has the lock, which is then waited for; None: it is not.

    Returns:
        The open file; None where the system or the disk has no locks.

    Raises:
        HeldError: Another process has it, and there is no ``waiting``.
    """
    if fcntl is None:
        return None
    with contextlib.ExitStack() as unless_taken:
        file = unless_taken.enter_context(open(folder / NAME, 'a+', encoding='utf-8'))
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or 'another process'
                if waiting is None:
                    raise HeldError(holder) from None
                waiting(holder)
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return None
            raise
        if not _is_there(file):  # the one before has removed it at its end
            return take(folder, waiting)
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}')
        file.flush()
        unless_taken.pop_all()
        return file


def alone(path: Path) -> IO[bytes] | None:
    """Opens a file, new or left by a process that has ended, for one writer at a time: until it is closed, no other
    process or thread of this machine gets it.

    Returns:
        The open file, of which nothing is changed; None where somebody has it, or where it cannot be had so: the folder
        is closed, the file a link or another user's, the system or the disk without locks.
    """
    if fcntl is None:
        return None
    with contextlib.suppress(OSError), contextlib.ExitStack() as unless_taken:
        file = unless_taken.enter_context(open(path, 'ab', opener=_no_link))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        except OSError:
            path.unlink(missing_ok=True)  # where there are no locks nobody writes to it
            return None
        if _is_there(file) and os.fstat(file.fileno()).st_uid == os.geteuid():
            unless_taken.pop_all()
            return file
    return None


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _is_there(file: IO) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
    return False


@contextlib.contextmanager
def locked(folder: Path, waiting: Callable[[str], object] | None = None) -> Iterator[None]:
    """While active, no other process is in such a block of this folder, which is made; arguments as of :func:`take`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = take(folder, waiting)
    try:
        yield
    finally:
        if file is not None:
            (folder / NAME).unlink(missing_ok=True)
            file.close()
