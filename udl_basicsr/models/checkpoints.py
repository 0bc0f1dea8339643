"""Checkpoints: written whole or not at all, read without running what is in them, refused with the reason."""
import contextlib
import errno
import os
import pickle
import zipfile
from pathlib import Path

import torch
from torch import nn


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, written or used; the message names the file, the reason and the remedy."""


def save_atomic(content: dict, path: str | Path) -> None:
    """Writes aside, flushes to the disk, then renames: at any moment ``path`` is the old file or the new one, whole.

    Args:
        content (dict): What ``torch.save`` takes.
        path (str | Path): Where to.

    Raises:
        CheckpointError: The disk is full, the folder cannot be written, ... What was there before is untouched.
    """
    path = Path(path)
    aside = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        with open(aside, 'wb') as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError of its zip writer
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise CheckpointError(f'{path}: cannot be saved ({reason}); what was there before is kept. '
                              'Free some space or check the permissions, then resume with --auto_resume') from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def read_checkpoint(path: str | Path, map_location='cpu') -> dict:
    """Reads a checkpoint of tensors and plain values; pickled objects of any other kind are refused, never run.

    The tensors of a ``.safetensors`` file come as ``{'params': ...}``.

    Raises:
        CheckpointError: Missing, truncated, no checkpoint at all, or not a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f'{path}: no such file. Expected a checkpoint (.pth, .safetensors or .state)')
    if path.suffix == '.safetensors':
        return {'params': _read_safetensors(path, map_location)}
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if 'Weights only load failed' in reason or isinstance(error, pickle.UnpicklingError):
            reason = 'it is no checkpoint of plain tensors (broken, or it holds pickled objects, which are never run)'
        elif not path.stat().st_size:
            reason = 'it is empty'
        elif isinstance(error, EOFError) or getattr(error, 'errno', None) == errno.EINVAL:
            reason = 'it is cut off'  # torch's reader seeks to where its end should be
        raise CheckpointError(f'{path}: cannot be read: {reason}') from error
    if not isinstance(content, dict):
        raise CheckpointError(f'{path}: expected a mapping, got {type(content).__name__}')
    return content


def _read_safetensors(path: Path, map_location) -> dict:
    try:
        import safetensors.torch
        return safetensors.torch.load_file(path, device=str(map_location))
    except ImportError as error:
        raise CheckpointError(f"{path}: reading it needs safetensors: pip install 'udl_basicsr[export]'") from error
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f'{path}: cannot be read as safetensors: {error}') from error


def network_weights(path: str | Path, param_key: str | None = 'params') -> dict:
    """The weights under ``param_key``; ``params`` where the key is ``params_ema`` and the file has none.

    ``param_key=None`` takes the file's top level. DDP's ``module.`` is removed.
    """
    content = read_checkpoint(path)
    if Path(path).suffix == '.safetensors':
        param_key = 'params'  # it has one set of weights, whatever that was called before
    if param_key is not None:
        if param_key not in content and param_key == 'params_ema':
            param_key = 'params'
        if param_key not in content:
            raise CheckpointError(f"{path}: has no '{param_key}', it has: {_some(content)}. "
                                  'Name the right one in path.param_key_*')
        content = content[param_key]
    wrong = [key for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if wrong:
        raise CheckpointError(f'{path}: expected tensors only, {_some(wrong)} is not')
    return {key.removeprefix('module.'): value for key, value in content.items()}


def load_network(network: nn.Module, path: str | Path, param_key: str | None = 'params', strict: bool = True) -> None:
    """Loads a network, or says in what the checkpoint differs from it.

    With ``strict=False`` weights that are absent or of another shape are left as they are.

    Raises:
        CheckpointError: With the keys and shapes that differ, and what the file seems to be.
    """
    weights = network_weights(path, param_key)
    own = network.state_dict()
    missing = [key for key in own if key not in weights]
    unexpected = [key for key in weights if key not in own]
    reshaped = [key for key in own if key in weights and own[key].shape != weights[key].shape]
    if strict and (missing or unexpected or reshaped):
        raise CheckpointError('\n'.join([
            f'{path}: is not a checkpoint of this {type(network).__name__}. ' +
            _explain(set(own), set(weights), missing, unexpected, reshaped),
            *[f'  missing:    {_some(missing)}' for _ in missing[:1]],
            *[f'  unexpected: {_some(unexpected)}' for _ in unexpected[:1]],
            *[f'  {key}: {tuple(weights[key].shape)} in the file, {tuple(own[key].shape)} in the network'
              for key in reshaped[:4]],
        ]))
    network.load_state_dict({k: v for k, v in weights.items() if k not in reshaped}, strict=strict)


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


def _some(keys, count: int = 4) -> str:
    keys = list(keys)
    return ', '.join(map(str, keys[:count])) + (f', and {len(keys) - count} more' if len(keys) > count else '')
