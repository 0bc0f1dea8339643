"""Files that are written as a whole or not at all: a reader never sees half of one."""
import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that it is either complete or absent, whenever the process dies.

    Args:
        path: Where to write; its folder exists.
        data: The content.

    Raises:
        OSError: If it cannot be written, with ``path`` as its file name.
    """
    part = path.with_name(f'.{os.getpid()}.part')
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:  # Ctrl-C
        part.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> Path:
    """Writes a file as a whole or not at all: a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    try:
        with open(handle, 'w', encoding='utf-8', newline='') as file:
            file.write(text)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp keeps the file to its owner
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    return path
