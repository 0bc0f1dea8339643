"""Losses by their option blocks: how they are built, called and named in the log."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

import torch
import torchvision
from basicsr.losses import build_loss as build_registered
from torch import Tensor, nn

from udl_basicsr.losses.base import inputs_of
from udl_basicsr.utils.checkpoints import CheckpointError

# Where the log's names are not those of the option blocks: BasicSR's, and the terms of losses that have several.
_LOG_NAMES = {'pixel_opt': ('l_pix', ), 'perceptual_opt': ('l_percep', 'l_style'),
              'likelihood_opt': ('l_fidelity', 'l_log_scale', 'l_judge'), 'tlw_opt': ('l_tlw', 'l_wc')}


def log_names(key: str) -> tuple[str, ...]:
    """What the log calls the loss of an option block such as ``pixel_opt``, or each of its terms."""
    return _LOG_NAMES.get(key, (f'l_{key[:-4]}', ))


def build_loss(key: str, block: dict) -> nn.Module:
    try:
        return build_registered(block)
    except URLError as error:  # BasicSR's PerceptualLoss, which fetches VGG through torchvision
        weights = torchvision.models.get_model_weights(block.get('vgg_type', 'vgg19'))['DEFAULT'].url.rsplit('/', 1)[-1]
        raise CheckpointError(f'train.{key}: {block["type"]} needs weights that cannot be downloaded ({error.reason}). '
                              f'Put {weights} into {Path(torch.hub.get_dir()) / "checkpoints"}') from error


def losses_of(key: str, criterion: nn.Module, pred: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Calls a loss, or its ``terms`` where it has several, with what it needs.

    Returns:
        dict: The loss, or each of its terms, by its log name.

    Raises:
        ValueError: Something that it needs is not there.
    """
    takes = inputs_of(criterion)
    if missing := [name for name, needed in takes.items() if needed and name not in inputs]:
        raise ValueError(f'train.{key}: {type(criterion).__name__} needs {" and ".join(missing)}, and there is '
                         f'{", ".join(inputs)} alone: neither the model nor the batch has more')
    target = (inputs['target'], ) if 'target' in takes else ()
    value = getattr(criterion, 'terms', criterion)(
        pred, *target, **{name: inputs[name] for name in takes if name in inputs and name != 'target'})
    values = value if isinstance(value, tuple) else (value, )
    known = log_names(key)
    # not every loss of a kind has all the terms, and one in a block of the user's own may have several
    names = [*known, *(f'{known[0]}_{number}' for number in range(len(known) + 1, len(values) + 1))][:len(values)]
    return {name: v for name, v in zip(names, values, strict=True) if v is not None}
