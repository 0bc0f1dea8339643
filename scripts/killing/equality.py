"""Whether two trainings have left the same, bit for bit."""
from __future__ import annotations

import json
from pathlib import Path

import torch

from .chains import Chain

# Of the records of comparisons; the rest is measured by the clock, or says on what machine and when.
_RESULTS = {'method', 'scale', 'seed', 'network', 'parameters', 'stages', 'options', 'initial_weights', 'data_order',
            'curve', 'datasets'}


def equal(a, b) -> bool:
    """Whether two checkpoints hold the same, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(
            a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def content(file: Path):
    """What is compared of a file: all of it, of a record what does not depend on the clock."""
    if file.suffix in ('.pth', '.state'):
        return torch.load(file, map_location='cpu', weights_only=True)
    if file.suffix == '.json':
        record = {k: v for k, v in json.loads(file.read_text(encoding='utf-8')).items() if k in _RESULTS}
        for stage in record.get('stages', ()):
            stage.pop('seconds', None)
        return record
    return file.read_bytes()


def differing(reference: Chain, other: Chain) -> list[str]:
    """The files of both chains that are not equal, or that one of them lacks."""
    a, b = reference.left(), other.left()
    return sorted(name for name in a.keys() | b.keys()
                  if name not in a or name not in b or not equal(content(a[name]), content(b[name])))
