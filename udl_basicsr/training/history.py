"""What a run logs, in numbers: ``experiments/<name>/history.jsonl``, one JSON object a line.

The log is for people; this is for curves. The first line says from which weights, and how many iterations an epoch has;
the others are ``{"iter": 200, "l_pix": 0.03, ..., "seconds": 0.15}``, the seconds of one iteration without validation,
and ``{"iter": 500, "dataset": "Set5", "psnr": 29.1, ...}``. A run that is resumed goes on in the same file, from which
the iterations that are trained again are taken out first.
"""
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from udl_basicsr.utils.files import write_text


def weights_digest(network: nn.Module) -> str:
    """A SHA-256 of the names and values of a network's parameters and buffers: equal for equal networks."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class History:
    """Writes the history of a run; rank 0 only.

    Args:
        path (Path): The file, whose folder exists.
        start_iter (int): Iterations already done; what the file tells of later ones is dropped.
        head (dict): First line of a new file.
        validates_again (bool): The validation of ``start_iter`` is done again; what the file has of it is dropped too.
    """

    def __init__(self, path: Path, start_iter: int, head: dict, validates_again: bool = False):
        kept = [line for line in read_history(path) if line.get('iter', 0) <= start_iter] if start_iter else []
        if kept:
            kept[0] = {**head, **kept[0]}  # what a head did not say before
        if validates_again:
            kept = [line for line in kept if not ('dataset' in line and line.get('iter') == start_iter)]
        self._path = write_text(path, ''.join(_line(entry) for entry in kept or [head]))

    def add(self, iteration: int, /, **values: float | str) -> None:
        """Adds a line, without what is not finite: JSON has no such numbers."""
        values = {name: value for name, value in values.items() if isinstance(value, str) or math.isfinite(value)}
        with open(self._path, 'a', encoding='utf-8') as file:
            file.write(_line({'iter': iteration, **values}))


def _line(entry: dict) -> str:
    return json.dumps(entry) + '\n'


def read_history(path: Path) -> list[dict]:
    """The entries of a history, without what a killed process left of its last line."""
    return list(_entries(path)) if path.is_file() else []


def _entries(path: Path) -> Iterator[dict]:
    for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(entry, dict) or not isinstance(entry.get('iter', 0), int):
            return
        yield entry
