"""Mutations of checkpoints, training states and safetensors."""
import io
import pickle
import re
import time
import warnings
import zipfile
from collections import Counter, OrderedDict
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from fuzzing import LONG, bounded
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st

from udl_basicsr.deploy.export import ExportError
from udl_basicsr.deploy.infer_plan import InferenceError
from udl_basicsr.options.parse import OptionError
from udl_basicsr.utils.checkpoints import CheckpointError

REFUSALS = (CheckpointError, ExportError, OptionError, InferenceError)
HOSTILE = 'x\x1b[2J\n2026-01-01 INFO: fake\u202e'
KEYS = [HOSTILE, '', 5, -1, 2**70, None, True, 0.5, (1, 2), 'params', 'params_ema', 'state_dict', 'weight', 'module.x',
        'conv_first.weight', 'x' * 5000, 'é', '\ud800', 'state', 'param_groups', 'params.x', 'step', 'options']
PLAIN = [None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63 - 1, -2**63, 2**70, 0.5, -1e308, 1e-300, float('nan'),
         float('inf'), '', 'x', HOSTILE, 'x' * 9000, [], {}, (), [None], [1, 2], [[1]], {'x': 1}, {1: 2}, {None: None},
         (1., 2.), [0.1], [float('nan')], [0.1, 0.2, 0.3], OrderedDict(a=1), Counter('aab'), {'better': 'higher'},
         {'psnr': {'better': 'higher', 'val': 1, 'iter': 1}}, {'state': {}, 'param_groups': []}, torch.Size([1, 2]),
         torch.float32]
UNREADABLE = [{1, 2}, b'x', complex(1, 2), torch.device('cpu'), torch.strided, range(3), 10**5000, Exception]


class File(bytes):
    """Bytes that do not fill the screen when an example fails; what was done to them is noted."""

    def __repr__(self) -> str:
        return f'<{len(self)} bytes>'


# ------------------------------------------------------------------------------------------------------------ mutations

def tensors_like(old: torch.Tensor | None) -> dict:
    """Tensors that some reader of ``old`` stumbles over, each made when it is asked for."""
    old = old.detach() if isinstance(old, torch.Tensor) and old.is_floating_point() else torch.rand(4, 3, 3, 3)
    first = old.flatten()[:1]
    return {
        'empty': lambda: old.flatten()[:0], 'scalar': lambda: first.sum(), 'flat': lambda: old.flatten(),
        'deep': lambda: old[None], 'cut': lambda: old[:1], 'twice': lambda: torch.cat([old, old]) if old.ndim else old,
        'turned': lambda: old.movedim(0, -1) if old.ndim else old, 'strided': lambda: old.T if old.ndim == 2 else old,
        'repeated': lambda: first.expand(old.shape), 'huge': lambda: first.expand(10**6, 10**6),
        'nan': lambda: torch.full_like(old, float('nan')), 'inf': lambda: torch.full_like(old, float('inf')),
        'large': lambda: torch.full_like(old, 1e38), 'negative': lambda: -old.abs() - 1, 'zero': lambda: old * 0,
        'leaf': lambda: torch.nn.Parameter(old), 'half': lambda: old.half(), 'brain': lambda: old.bfloat16(),
        'double': lambda: old.double() * 1e300, 'float8': lambda: old.to(torch.float8_e4m3fn),
        'int8': lambda: old.to(torch.int8), 'int64': lambda: old.long(), 'bool': lambda: old > 0,
        'complex': lambda: old.to(torch.complex64), 'sparse': lambda: old.to_sparse(),
        'rows': lambda: torch.eye(3).to_sparse_csr(), 'meta': lambda: old.to('meta'),
        'quantised': lambda: torch.quantize_per_tensor(old, 0.1, 0, torch.qint8),
        'ragged': lambda: torch.nested.nested_tensor([torch.rand(2), torch.rand(3)])}


@st.composite
def odd_values(draw, old):
    """Anything, a tensor of another kind, or something around or inside of what stands there."""
    how = draw(st.sampled_from(['plain', 'tensor', 'tensor', 'tensor', 'wrap', 'number']))
    if how == 'tensor':
        name = draw(st.sampled_from(sorted(tensors_like(None))))
        note(name)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return tensors_like(old)[name]()
    if how == 'wrap':
        return draw(st.sampled_from([[old], (old, ), {'x': old}, {0: old}, {HOSTILE: old}, OrderedDict(params=old)]))
    if how == 'number' and isinstance(old, (int, float)) and not isinstance(old, bool) and abs(old) < 2**64:
        return draw(st.sampled_from([-old, old + 1, old * 1000, float(old), str(old), old / 7, 10**30 * (old or 1)]))
    return deepcopy(draw(st.sampled_from(PLAIN if draw(st.integers(0, 19)) else UNREADABLE)))


def nodes(value, at: tuple = ()) -> list[tuple]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([at] if at else []), *(path for key, child in children for path in nodes(child, (*at, key)))]


@st.composite
def changed(draw, content):
    """``content`` (dictionaries and lists of tensors and values) with one to three things changed."""
    content = [_copied(content)]  # in a list, so that the whole can be replaced as well
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        paths = nodes(content)
        deep = [path for path in paths if len(path) > 3] or paths
        lists = [paths[1:] or paths, deep, deep, [path for path in paths if len(path) == 2] or paths]
        path = draw(st.sampled_from(draw(st.sampled_from(lists)) if draw(st.integers(0, 19)) else paths))
        block = content
        for key in path[:-1]:
            block = block[key]
        key, old = path[-1], block[path[-1]]
        how = draw(st.sampled_from(['set', 'set', 'set', 'set', 'delete', 'rename', 'insert', 'swap']))
        if how == 'set':
            block[key] = draw(odd_values(old))
        elif how == 'delete' and len(path) > 1:
            del block[key]
        elif how == 'rename' and isinstance(block, dict):
            near = [f'{key}x', str(key)[1:], f'module.{key}'] if isinstance(key, str) else []
            block[draw(st.sampled_from([*near, *KEYS]))] = block.pop(key)
        elif how == 'insert' and isinstance(old, dict):
            old[draw(st.sampled_from(KEYS))] = draw(odd_values(None))
        elif how == 'insert' and isinstance(old, list):
            old.append(draw(odd_values(None)))
        elif how == 'swap':
            other = draw(st.sampled_from(list(block))) if isinstance(block, dict) else 0
            block[key], block[other] = block[other], old
    return content[0]


def _copied(value):
    """Containers anew, tensors as they are."""
    if isinstance(value, dict):
        return {key: _copied(child) for key, child in value.items()}
    return [_copied(child) for child in value] if isinstance(value, list) else value


@st.composite
def damaged(draw, data: bytes, most: int = 4000) -> bytes:
    """Bytes of which some are others, most of them near the beginning or the end, where readers look."""
    for _ in range(draw(st.sampled_from([1, 1, 2, 5]))):
        size = max(len(data), 1)
        start = draw(st.sampled_from([0, max(0, size - most), draw(st.integers(0, size - 1))]))
        at = min(start + draw(st.integers(0, most)), size - 1)
        how = draw(st.sampled_from(['flip', 'flip', 'set', 'cut', 'insert', 'drop', 'zero', 'twice', 'number']))
        if how == 'flip':
            data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))] if data else []) + data[at + 1:]
        elif how == 'set':
            data = data[:at] + draw(st.binary(min_size=1, max_size=8)) + data[at + 8:]
        elif how == 'cut':
            data = data[:at]
        elif how == 'insert':
            data = data[:at] + draw(st.binary(min_size=1, max_size=20)) + data[at:]
        elif how == 'drop':
            data = data[:at] + data[at + draw(st.integers(1, 64)):]
        elif how == 'zero':
            data = data[:at] + bytes(min(64, len(data) - at)) + data[at + 64:]
        elif how == 'twice':
            data = data[:at] + data[max(0, at - 64):at] + data[at:]
        else:
            number = draw(st.sampled_from([0, 1, 0xff, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1]))
            data = data[:at] + number.to_bytes(8, 'little') + data[at + 8:]
    return data


def packed(content, old: bool = False) -> bytes:
    data = io.BytesIO()
    torch.save(content, data, _use_new_zipfile_serialization=not old)
    return data.getvalue()


@st.composite
def damaged_archive(draw, data: bytes) -> bytes:
    """torch's archive, one record of which is damaged, left out or called otherwise, while the archive is in order."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    names = [*([name for name in records if name.endswith('data.pkl')] * 4), *records]
    name = draw(st.sampled_from(names))
    how = draw(st.sampled_from(['damage', 'damage', 'damage', 'damage', 'drop', 'rename', 'empty', 'double']))
    if how == 'damage':
        records[name] = draw(damaged(records[name], 300))
    elif how == 'drop':
        del records[name]
    elif how == 'rename':
        near = [f'{name}x', f'/{name}', f'../{name}', name.upper(), 'x', ' ']
        records[draw(st.sampled_from(near))] = records.pop(name)
    else:
        records[name] = records[name] * (2 if how == 'double' else 0)
    out = io.BytesIO()
    compression = draw(st.sampled_from([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED]))
    with zipfile.ZipFile(out, 'w', compression) as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    return out.getvalue()


@st.composite
def torch_files(draw, contents: list) -> bytes:
    """A file of torch's, in its present or its old format, whose content or bytes are mutated."""
    content = draw(st.sampled_from(contents))
    how = draw(st.sampled_from(['content'] * 6 + ['archive', 'archive', 'bytes', 'old content', 'old bytes']))
    note(how)
    if how.endswith('content'):
        try:
            return packed(draw(changed(content)), how.startswith('old'))
        except (RuntimeError, NotImplementedError, AttributeError, pickle.PicklingError, ValueError, TypeError,
                UnicodeEncodeError):
            return packed(content)[:-7]  # torch does not save everything that can be made
    if how == 'archive':
        return draw(damaged_archive(packed(content)))
    return draw(damaged(packed(content, how.startswith('old'))))


# ------------------------------------------------------------------------------------------------------- what must hold

@dataclass
class Tally:
    """What became of the files."""
    kind: str
    refused: int = 0
    accepted: int = 0
    reasons: Counter = field(default_factory=Counter)
    started: float = field(default_factory=time.monotonic)

    def attempt(self, path: Path, action) -> bool:
        """Whether a file was accepted; it was refused as it should be, or this fails."""
        try:
            with bounded(60):
                action()
        except REFUSALS as error:
            text = str(error)
            assert path.name in text, text
            assert all(line.isprintable() for line in text.split('\n')), text
            assert len(text) < 9000
            assert text.count('\n') < 12
            self.refused += 1
            self.reasons[re.sub(r"'[^']*'|[\d.]+|\([^)]*\)", '_', text.split(path.name, 1)[1])[:60]] += 1
            return False
        self.accepted += 1
        return True

    def report(self) -> None:
        print(f'\n{self.refused + self.accepted} {self.kind}: {self.refused} refused, {self.accepted} accepted, '
              f'{len(self.reasons)} kinds of reasons, in {time.monotonic() - self.started:.0f} s')


def attempts(function):
    """So many examples of a test as are asked for."""
    return settings(max_examples=LONG or 100, derandomize=not LONG, deadline=None, print_blob=True,
                    suppress_health_check=list(HealthCheck), **({} if LONG else {'database': None}))(function)
