"""Checkpoints: written whole or not at all, read without running what is in them, refused with the reason."""
import contextlib
import errno
import os
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import MISUSED, UdlError
from .files import written_aside
from .text import first_line, one_line, some

ParamKey = str | tuple[str | None, ...] | None
EMA_FIRST = ('params_ema', 'params')
"""Entries of a network's file: the running mean of its weights where there is one."""
IS_ONNX = 'it is an ONNX file, which is written and never read; give the .pth or .safetensors it was made from'
_ORDINARY = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8, torch.int8,
             torch.int16, torch.int32, torch.int64}


class CheckpointError(UdlError, RuntimeError):
    """A checkpoint that cannot be read, written or used; the message names the file, the reason and the remedy."""
    status = MISUSED


def save_atomic(content: dict, path: str | Path, then: str = 'try again') -> None:
    """Writes aside, flushes to the disk, then renames: at any moment ``path`` is the old file or the new one, whole.

    Args:
        content (dict): What ``torch.save`` takes.
        path (str | Path): Where to.
        then (str): What an error advises once there is room.

    Raises:
        CheckpointError: The disk is full, the folder cannot be written, ... What was there before is untouched.
    """
    try:
        with written_aside(path) as part, open(part, 'wb') as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError of its zip writer
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = getattr(reason, 'strerror', None) or reason
        raise CheckpointError(f'{path}: cannot be saved ({reason}); what was there before is kept. '
                              f'Free some space or check the permissions, then {then}') from error


def read_checkpoint(path: str | Path) -> dict:
    """Reads a checkpoint of tensors and plain values; pickled objects of any other kind are refused, never run.

    The tensors of a ``.safetensors`` file come as ``{'params': ...}``.

    Raises:
        CheckpointError: Missing, truncated, compressed, no checkpoint at all, not a mapping, or with tensors that are
            larger than the file.
    """
    path = Path(path)
    if not path.is_file():
        found = 'is a folder' if path.is_dir() else 'no such file'
        raise CheckpointError(f'{path}: {found}. Expected a checkpoint (.pth, .safetensors or .state)')
    if path.suffix == '.safetensors':
        with _safetensors(path) as safetensors:
            return {'params': safetensors.torch.load_file(path)}
    if unpacks(path):
        raise CheckpointError(f'{path}: is compressed, as torch writes none: what it unpacks to may fill the memory. '
                              'Fetch it again, or save it anew with torch.save')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # torch's, of what it is about to refuse
            content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # of broken bytes torch's readers raise anything, from AttributeError to struct.error
        raise CheckpointError(f'{path}: cannot be read: {_why_unreadable(path, error)}') from error
    if not isinstance(content, dict):
        raise CheckpointError(f'{path}: expected a mapping, got {type(content).__name__}')
    # A few bytes may tell of a tensor of any size, whose values are then those that the memory happens to hold.
    storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in _tensors(content) if _is_dense(t))}
    if sum(storages.values()) > path.stat().st_size:
        raise CheckpointError(f'{path}: cannot be read: its tensors take {sum(storages.values())} bytes, more than it '
                              f'has, {path.stat().st_size}')
    return content


def _why_unreadable(path: Path, error: Exception) -> str:
    reason = first_line(error)
    if path.suffix.lower() == '.onnx':
        return IS_ONNX
    # torch's unpickler takes the letters of a text for its commands, some of which look something up: LookupError
    if 'Weights only load failed' in reason or isinstance(error, (pickle.UnpicklingError, LookupError)):
        return 'it is no checkpoint of plain tensors (broken, or it holds pickled objects, which are never run)'
    if not path.stat().st_size:
        return 'it is empty'
    if isinstance(error, EOFError) or getattr(error, 'errno', None) == errno.EINVAL:
        return 'it is cut off'  # torch's reader seeks to where its end should be
    if isinstance(error, (OSError, RuntimeError, zipfile.BadZipFile)):
        return reason
    return f'it is broken ({type(error).__name__}: {reason})'


def unpacks(path: str | Path) -> bool:
    """Whether a checkpoint takes more memory than its file says: torch's own are archives without compression."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(member.file_size > member.compress_size for member in archive.infolist())
    except Exception:
        return False  # reading it will say what it is


def _tensors(content: Any) -> Iterator[Tensor]:
    """All tensors in mappings and lists, however deep; each container once, since one may contain itself."""
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (Mapping, list, tuple, set, frozenset)) and id(value) not in seen:
            seen.add(id(value))
            waiting += [*value, *value.values()] if isinstance(value, Mapping) else value


def _is_dense(value: Tensor) -> bool:
    return value.layout == torch.strided and not value.is_quantized and not value.is_nested \
        and value.device.type != 'meta'


@contextlib.contextmanager
def _safetensors(path: Path) -> Iterator[Any]:
    """The module; what it says of a broken file becomes a CheckpointError."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise CheckpointError(f'{path}: reading it needs safetensors: pip install safetensors') from error
    try:
        yield safetensors
    except Exception as error:  # SafetensorError, OSError, KeyError of a type that torch has no name for, ...
        raise CheckpointError(f'{path}: cannot be read as safetensors: {first_line(error)}') from error


def safetensors_metadata(path: str | Path) -> dict[str, str]:
    """What the header of a ``.safetensors`` file says beside its tensors.

    Raises:
        CheckpointError: It cannot be read.
    """
    with _safetensors(Path(path)) as safetensors, safetensors.safe_open(path, 'pt') as file:
        return file.metadata() or {}


def check_weights(weights: Any, where: str) -> dict[str, Tensor]:
    """The weights themselves, if they are what every reader of weights takes for granted.

    That is a mapping from text to tensors that are dense, hold values of their own (none that repeats one in the file),
    and are of a type that other floats and integers convert to: not complex, quantised, sparse or without values.

    Args:
        weights: What a file holds.
        where: Its name, and the entry.

    Raises:
        CheckpointError: Names the first key that is something else.
    """
    if not isinstance(weights, Mapping):
        raise CheckpointError(f'{where}: expected weights, tensors by their names, got {type(weights).__name__}')
    if not weights:
        raise CheckpointError(f'{where}: expected weights, tensors by their names; it is empty')
    for key, value in weights.items():
        problem = why_no_tensor(value) if isinstance(key, str) else f'is a name of type {type(key).__name__}, no text'
        if problem:
            raise CheckpointError(f'{where}: expected weights, dense tensors of floats or integers by their names; '
                                  f"'{one_line(key, 200)}' {problem}")
    return {key: value.detach() for key, value in weights.items()}


def why_no_tensor(value: Any) -> str:
    """Why a value from a file is no ordinary tensor; empty where it is one."""
    if not isinstance(value, Tensor):
        return f'is of type {type(value).__name__}'
    if not _is_dense(value):
        return 'is quantised' if value.is_quantized else 'has no values (it is on the device meta)' \
            if value.device.type == 'meta' else f'is not dense, it is {value.layout}'.replace('torch.', '')
    if value.dtype not in _ORDINARY:
        return f'is of type {value.dtype}'
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f'says that it is {tuple(value.shape)}, but holds {value.untyped_storage().nbytes()} bytes'
    return ''


def network_weights(path: str | Path, param_key: ParamKey = 'params') -> dict[str, Tensor]:
    """The weights of a file alone, as :func:`read_entry` finds them."""
    return read_entry(path, param_key)[1]


def read_entry(path: str | Path, param_key: ParamKey = 'params') -> tuple[str | None, dict[str, Tensor]]:
    """The entry of a file that was taken, None for its top level, and its weights.

    Those under ``param_key``, or under the first of several that the file has; where it has none of these and nothing
    but tensors, as files of other programs, its top level.

    ``param_key=None`` takes the file's top level. DDP's ``module.`` is removed. BasicSR takes ``params`` where
    ``params_ema`` is missing (base_model.py:287), so that a test could score another network than it was told to.

    Raises:
        CheckpointError: As :func:`read_checkpoint` and :func:`check_weights`; no such entry; or two keys that differ by
            ``module.`` alone.
    """
    content, where = read_checkpoint(path), str(path)
    if Path(path).suffix == '.safetensors':
        param_key = 'params'  # it has one set of weights, whatever that was called before
    if isinstance(param_key, tuple):
        bare = bool(content) and all(isinstance(value, Tensor) for value in content.values())
        param_key = next((key for key in param_key if key in content), None if bare else param_key[-1])
    if param_key is not None:
        if param_key not in content:
            raise CheckpointError(f"{path}: has no '{param_key}', it has: {some(content)}. "
                                  'Name the right one in path.param_key_*, or by --param_key')
        content, where = content[param_key], f"{path}: '{param_key}'"
    content = check_weights(content, where)
    weights = {key.removeprefix('module.'): value for key, value in content.items()}
    if len(weights) < len(content):
        twice = [key for key in content if f'module.{key}' in content]
        raise CheckpointError(f"{where}: has some weights twice, with and without 'module.': {some(twice)}")
    return param_key, weights


def load_network(network: nn.Module, path: str | Path, param_key: ParamKey = 'params',
                 strict: bool = True) -> str | None:
    """Loads a network, or says in what the checkpoint differs from it.

    With ``strict=False`` weights that are absent or of another shape are left as they are.

    Returns:
        str | None: The entry of the file that was taken; None: its top level.

    Raises:
        CheckpointError: As :func:`read_entry` and :func:`check_fit`.
    """
    entry, weights = read_entry(path, param_key)
    check_fit(network, weights, path, strict)
    own = network.state_dict()
    network.load_state_dict({key: value for key, value in weights.items()
                             if key not in own or own[key].shape == value.shape}, strict=strict)
    return entry


def check_fit(network: nn.Module, weights: Mapping[str, Tensor], path: str | Path, strict: bool = True) -> None:
    """Raises unless weights are those of a network, which may be on the device meta and so cost no memory.

    Raises:
        CheckpointError: With the keys and shapes that differ (if ``strict``), and what the file seems to be; or where
            a value of the file cannot be one of the network's, such as an integer where it has floats.
    """
    own = network.state_dict()
    missing = [key for key in own if key not in weights]
    unexpected = [key for key in weights if key not in own]
    reshaped = [key for key in own if key in weights and own[key].shape != weights[key].shape]
    if strict and (missing or unexpected or reshaped):
        raise CheckpointError('\n'.join([
            f'{path}: is not a checkpoint of this {type(network).__name__}. ' +
            _explain(set(own), set(weights), missing, unexpected, reshaped),
            *[f'  missing:    {some(missing)}' for _ in missing[:1]],
            *[f'  unexpected: {some(unexpected)}' for _ in unexpected[:1]],
            *[f'  {key}: {tuple(weights[key].shape)} in the file, {tuple(own[key].shape)} in the network'
              for key in reshaped[:4]],
        ]))
    for key in own:
        if key in weights and not _converts(weights[key].dtype, own[key].dtype):
            raise CheckpointError(f'{path}: {key} is of type {weights[key].dtype} in the file, {own[key].dtype} in the '
                                  'network, and what it means is lost in between. Expected weights as they are trained')


def _converts(given: torch.dtype, wanted: torch.dtype) -> bool:
    return torch.can_cast(given, wanted) and given.is_floating_point == wanted.is_floating_point


def _explain(own: set, given: set, missing: list, unexpected: list, reshaped: list) -> str:
    def has_head(keys):
        return any(key.startswith('mean_network.') for key in keys)

    if has_head(own) and not has_head(given):
        return 'It has no uncertainty head: it is a plain network. Give net_u_* of a stage-1 run (stage: esu).'
    if has_head(given) and not has_head(own):
        return 'It is an UncertaintyNet (net_u_*). Give net_g_*, the mean network of the same run.'
    if has_head(own) and all(key.startswith('head.') for key in (*missing, *unexpected, *reshaped)):
        return 'The backbone fits, the head does not: network_u.head or the tap differs from stage 1.'
    if all('upsampl' in key or 'upconv' in key or key.rsplit('.', 2)[0].endswith('.tail') for key in
           (*missing, *unexpected, *reshaped)):
        return 'Only the upsampler differs: it was trained for another scale.'
    if len(own & given) < len(own) / 2:
        return 'It was made by another network.'
    return 'It was made by a network with other settings.'
