"""How every command ends: with a status, and with a message where the user can put right what is wrong.

The message of a :class:`~udl_basicsr.utils.errors.UdlError` is for the user: it is said, and so is an error of the
system about a file. Anything else is a fault of the program, and its traceback says where.
"""
import contextlib
import errno
import functools
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from .errors import FAILED, MISUSED, UdlError

NO_BASICSR = 'BasicSR is not installed. Install it with: python -m udl_install_basicsr'
_OF_FILES = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
_OF_MACHINES = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.EFBIG}
_OF_DISKS = {*_OF_MACHINES, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTEMPTY}


class Terminated(KeyboardInterrupt):
    """SIGTERM, which goes the way of Ctrl-C: everything is left in order, and nothing that catches errors stops it."""


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """While active, SIGTERM raises :class:`Terminated` where nobody else takes it; a second one ends the process."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Terminated

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def print_anything() -> None:
    """What the terminal has no characters for (LC_ALL=C: ×, −, file names) is printed escaped, and ends no command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and (stream.errors == 'strict' or not _has_ours(stream.encoding)):
            stream.reconfigure(errors='backslashreplace')


def _has_ours(encoding: str) -> bool:
    try:
        '→×−≥'.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def explain(error: BaseException) -> str | None:
    """The message of an error that the user can put right; None of any other, which is a fault of the program."""
    if isinstance(error, OSError) and (isinstance(error, _OF_FILES) or error.errno in _OF_DISKS):
        if error.strerror is None:  # raised with a message of ours
            return str(error)
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        nameless = 'the working folder' if isinstance(error, FileNotFoundError) else 'the disk'
        return f'{" -> ".join(names) or nameless}: {error.strerror}'
    if isinstance(error, ModuleNotFoundError) and error.name == 'basicsr':
        return NO_BASICSR
    if isinstance(error, RuntimeError) and str(error).startswith('Symlink loop'):  # pathlib's, until Python 3.13
        return f'{error}: these links lead to one another'
    return str(error) if isinstance(error, UdlError) else None


def status_of(error: BaseException, misused: bool = False) -> int:
    """The exit status that belongs to an error.

    Args:
        error: What ends a command.
        misused: Whether the command does nothing before it is sure of everything, so that what it was given is to blame
            for whatever goes wrong. Only a full disk and the like are not what it was given.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _OF_MACHINES:
            return FAILED
        cause = cause.__cause__ or cause.__context__
    return MISUSED if misused else error.status if isinstance(error, UdlError) else FAILED


def of_signal(error: KeyboardInterrupt) -> tuple[str, int]:
    """The name of the signal that stopped a command, and the status that shells give to what it stops."""
    number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
    return number.name, 128 + number


def command(remedy: str = '', misused: bool = False) -> Callable[[Callable[..., int | None]], Callable[..., int]]:
    """Decorates the ``main`` of a command, which returns its exit status.

    What ``main`` does not catch itself ends with a message and the status of :func:`status_of`; Ctrl-C and SIGTERM with
    130 and 143, and ``remedy``; a reader of the output that has gone away (``| head``) with 141.
    """
    def decorate(main: Callable[..., int | None]) -> Callable[..., int]:
        @functools.wraps(main)
        def run(*args, **kwargs) -> int:
            print_anything()
            try:
                with sigterm_as_ctrl_c():
                    status = main(*args, **kwargs) or 0
                    sys.stdout.flush()  # here, where it can be told that nobody reads it
                    return status
            except KeyboardInterrupt as error:
                name, status = of_signal(error)
                print(f'Stopped by {name}. {remedy}'.rstrip(), file=sys.stderr)
                return status
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python flushes it once more
                return 128 + getattr(signal, 'SIGPIPE', 13)
            except Exception as error:
                if (message := explain(error)) is None:
                    raise
                print(f'error: {message}', file=sys.stderr)
                return status_of(error, misused)
        return run
    return decorate
