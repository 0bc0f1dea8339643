"""Files that are written as a whole or not at all: a reader never sees half of one."""
import contextlib
import errno
import hashlib
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from os import path as osp
from pathlib import Path

from .locks import alone
from .text import nearest


@contextlib.contextmanager
def written_aside(path: str | Path, suffix: str = '') -> Iterator[Path]:
    """A name to write to, in the folder of ``path``, that becomes ``path`` where no error ends the block.

    What a process that was killed has left is written over by the next one that writes ``path`` on this machine.

    Args:
        path: Where to; its folder exists.
        suffix: The end of the name, for writers that go by it. It comes after ``.part``.

    Raises:
        OSError: ``path`` cannot be written, and is the file name of the error. What was there before is untouched.
    """
    path = Path(path)
    if is_stream(path):  # in whose place, as /dev/null, root would put the file
        raise FileExistsError(errno.EEXIST, 'is a device or a pipe, expected a file', str(path))
    # The name is that of this file on this machine: disks that several share may not know of one another's locks.
    key = hashlib.blake2b(os.fsencode(f'{socket.gethostname()}/{path.name}'), digest_size=8).hexdigest()
    part = path.with_name(f'.{key}.part{suffix}')
    lock = alone(part)
    if lock is None:
        part = path.with_name(f'.{secrets.token_hex(8)}.part{suffix}')
    with lock or contextlib.nullcontext():
        try:
            yield part
            os.replace(part, path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno is not None:
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise


def write_atomically(path: Path, data: bytes) -> None:
    """Writes ``data`` as :func:`written_aside`; the folder exists."""
    with written_aside(path) as part:
        part.write_bytes(data)


def write_text(path: str | Path, text: str) -> Path:
    """Writes text in UTF-8 as :func:`written_aside`, and makes the folder where it is missing.

    In the name of a file may be bytes that are no UTF-8; they are written as JSON escapes them.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode(errors='backslashreplace'))
    return path


def is_stream(path: str | Path) -> bool:
    """Whether it is a pipe or a device, of which reading might wait for ever."""
    return osp.exists(path) and not (osp.isfile(path) or osp.isdir(path))


def why_not_into(folder: str | Path) -> str:
    """Why nothing can be written into a folder, which need not be there yet; empty where it can. Nothing is left."""
    folder = Path(folder).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    which = '' if there == folder else f'{there} '
    if not there.is_dir():
        return f'{which}is a file, expected a folder'
    try:  # what the mode allows need not be possible: for root it allows all, also in /proc and on a disk without room
        with tempfile.TemporaryFile(dir=there):
            return ''
    except OSError as error:
        reason = '' if isinstance(error, (FileNotFoundError, PermissionError)) else f' ({error.strerror})'
        return f'{which}cannot be written to{reason}'


def why_not_to(file: str | Path) -> str:
    """Why nothing can be written to a file, which need not be there yet, nor its folder; empty where it can."""
    file = Path(file)
    if file.is_dir():
        return 'is a folder, expected a file'
    if is_stream(file):
        return 'is a device or a pipe, expected a file'
    return f'its folder {why}' if (why := why_not_into(file.parent)) else ''


def did_you_mean_file(path: str) -> str:
    """What to say after an option file, or a folder of one, that does not exist: the nearest name beside it."""
    folder, name = osp.split(path)
    folders = not name.endswith(('.yml', '.yaml'))
    expected = ' Expected an option file, NAME.yml; udl test also takes the folder of a run' if folders else ''
    with contextlib.suppress(OSError):
        if near := nearest(name, [entry.name for entry in os.scandir(folder) if entry.name.endswith(('.yml', '.yaml'))
                                  or (folders and entry.is_dir())]):
            return f"; did you mean '{near}'?{expected}"
    return expected and f'.{expected}'
