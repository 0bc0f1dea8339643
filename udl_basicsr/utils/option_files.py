"""The option files that come with the package: ``udl:NAME`` in place of a path.

They lie in ``options/`` of the repository, and beside the package where it is installed.
"""
from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .text import did_you_mean, nearest

PREFIX = 'udl:'


def folder() -> Path:
    """Where they lie."""
    package = Path(__file__).resolve().parents[1]
    installed = package / 'option_files'
    return installed if installed.is_dir() else package.parent / 'options'


def names() -> list[str]:
    """What may stand behind ``udl:``, without what other files build on (``_base_/``, ``_losses_.yml``)."""
    root = folder()
    found = (path.relative_to(root).with_suffix('') for path in root.rglob('*.yml'))
    return sorted(path.as_posix() for path in found if not any(part.startswith('_') for part in path.parts))


def locate(text: str, prefixes: Iterable[str] = ('', 'train_')) -> str:
    """The path of an option file: ``text`` itself, or the file that ``udl:NAME`` means.

    Args:
        text (str): A path, or ``udl:EDSR_UDL_x4``, ``udl:papers/udl-5``.
        prefixes (Iterable[str]): May be left out of the name, the likeliest first.

    Raises:
        ValueError: No file of that name comes with the package; names the nearest.
    """
    if not text.startswith(PREFIX):
        return text
    name, known, prefixes = text[len(PREFIX):].removesuffix('.yml'), names(), list(prefixes)
    head, _, last = name.rpartition('/')
    for prefix in prefixes:
        if (full := f'{head}/{prefix}{last}' if head else prefix + last) in known:
            return str(folder() / f'{full}.yml')
    # as the names may be written; of two files of one such name, the one that it would have meant
    written = {}
    for prefix in reversed(prefixes):
        for full in known:
            head, slash, last = full.rpartition('/')
            if last.startswith(prefix):
                written[head + slash + last.removeprefix(prefix)] = full
    near = nearest(name, written)
    hint = f"; did you mean '{written[near]}'?" if near else did_you_mean(name, known)
    raise ValueError(f'{text}: no option file of this name comes with the package, see udl options{hint}')
