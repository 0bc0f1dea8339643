"""The weights that come with the package: ``udl:UDL_x4`` in place of a path.

Small networks for a first look, in ``udl_basicsr/weights``; README.md there is their model card.
"""
from __future__ import annotations

from pathlib import Path

from .option_files import PREFIX
from .text import did_you_mean


def folder() -> Path:
    """Where they lie."""
    return Path(__file__).resolve().parents[1] / 'weights'


def names() -> list[str]:
    """What may stand behind ``udl:`` where weights are named."""
    return sorted(path.stem for path in folder().glob('*.safetensors'))


def scales() -> list[int]:
    """The scales that there are weights for."""
    return sorted({int(name.rpartition('_x')[2]) for name in names()})


def locate_weights(text: str) -> str:
    """The path of weights: ``text`` itself, or the file that ``udl:NAME`` means.

    Args:
        text (str): A path, or ``udl:UDL_x4``, ``udl:ESU_x4``.

    Raises:
        ValueError: No weights of that name come with the package; names the nearest.
    """
    if not text.startswith(PREFIX):
        return text
    name = text[len(PREFIX):].removesuffix('.safetensors')
    if name not in names():
        raise ValueError(f'{text}: no weights of this name come with the package{did_you_mean(name, names())}')
    return str(folder() / f'{name}.safetensors')


def shown_weights(path: str | Path) -> str:
    """What a record calls the file ``path``: ``udl:NAME`` for one of the package, whose folder differs by machine."""
    path = Path(path)
    return f'{PREFIX}{path.stem}' if path.resolve().parent == folder() and path.stem in names() else str(path)
