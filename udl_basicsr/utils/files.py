"""Files that are written as a whole or not at all: a reader never sees half of one."""
import contextlib
import os
import secrets
from collections.abc import Iterator
from os import path as osp
from pathlib import Path


@contextlib.contextmanager
def written_aside(path: str | Path, suffix: str = '') -> Iterator[Path]:
    """A name to write to, in the folder of ``path``, that becomes ``path`` where no error ends the block.

    Args:
        path: Where to; its folder exists.
        suffix: The end of the name, for writers that go by it. It comes after ``.part``.

    Raises:
        OSError: ``path`` cannot be written, and is the file name of the error. What was there before is untouched.
    """
    path = Path(path)
    # Drawn, since threads may write into one folder, and machines that share a disk give their processes equal numbers.
    part = path.with_name(f'.{os.getpid()}_{secrets.randbelow(10**12)}.part{suffix}')
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


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
    """Why nothing can be written into a folder, which need not be there yet; empty where it can. Nothing is touched."""
    folder = Path(folder).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    which = '' if there == folder else f'{there} '
    if not there.is_dir():
        return f'{which}is a file, expected a folder'
    return '' if os.access(there, os.W_OK | os.X_OK) else f'{which}cannot be written to'
