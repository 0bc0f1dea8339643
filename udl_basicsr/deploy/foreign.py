"""Weights of other programs, whatever the format: read, recognised by their keys, and proved by the same pixels."""
import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from udl_basicsr.utils.checkpoints import CheckpointError, check_weights, read_checkpoint
from udl_basicsr.utils.text import some

from .export import ExportError, build_from

Weights = dict[str, Tensor]
TOLERANCE = 1e-5  # of a pixel in [0, 1], and of s
FORMATS = {
    'udl': "the UDL authors' edsr (head, body, tail, var_conv)",
    'udl_two': "the UDL authors' edsr_two (EDSR_var.*, EDSR_U.*)",
    'edsr': 'EDSR-PyTorch (head, body, tail, sub_mean, add_mean)',
    'carn': 'CARN-pytorch, carn (entry, b1.b1, ..., upsample.up2, up3, up4)',
    'carn_m': 'CARN-pytorch, carn_m',
}
OURS = {'EDSR': "BasicSR's EDSR (net_g)", 'UncertaintyNet': 'UncertaintyNet (net_u)'}
_WRAPPERS = ('params_ema', 'params', 'state_dict', 'model', 'net')
_MOST_UPSAMPLERS = 4  # by 2 each; with one more, an image of a few pixels asks for four times the memory


class ConversionError(ExportError):
    """A file that cannot be converted; the message says what it seems to be, why, and what can be."""


@dataclass(frozen=True)
class Converted:
    """A conversion into this package's form."""
    params: Weights
    """Of the mean network, for ``net_g``."""
    blocks: dict
    """``network_g``, and ``network_u`` where there is a head: the options that the weights belong to."""
    params_u: Weights | None = None
    """Of the whole UncertaintyNet, for ``net_u``."""
    notes: tuple[str, ...] = ()
    """What was assumed, and how to change it."""


def read_weights(path: str | Path, param_key: str | None = None) -> tuple[Weights, str | None]:
    """The tensors of a checkpoint of any program, out of their wrappers.

    Args:
        path: Zip or older torch file, or ``.safetensors``. Pickled objects are never run.
        param_key: The wrapper. None takes the first that is there of params_ema, params, state_dict, model, net, or
            the file itself.

    Returns:
        The weights, and the wrapper they were in. A ``module.`` that all of them begin with is taken off, and so is a
        ``model.`` with which programs keep networks of ``FORMATS``; spandrel's ESRGAN has one of its own.

    Raises:
        CheckpointError: It cannot be read, has no such wrapper, or holds something else than tensors.
    """
    content = read_checkpoint(path)
    key = param_key or next((k for k in _WRAPPERS if isinstance(content.get(k), dict)), None)
    if key is not None:
        if not isinstance(content.get(key), dict):
            raise CheckpointError(f"{path}: has no weights under '{key}'; it has: {some(content, 8)}")
        content = content[key]
    try:
        content = check_weights(content, str(path))
    except CheckpointError as error:
        raise CheckpointError(f'{error}. --param_key names the entry that holds the weights') from None
    for prefix in ('module.', 'model.'):
        # the networks of other programs may have a submodule of that name beside others
        bare = {k.removeprefix(prefix): v for k, v in content.items() if k.startswith(prefix)}
        if len(bare) == len(content) and (prefix == 'module.' or _kind(bare)):
            content = bare
    return content, key


def detect(weights: Weights) -> str:
    """The name of the format, one of ``FORMATS`` and ``OURS``, from the keys.

    Raises:
        ConversionError: None of these; says what it seems to be.
    """
    if kind := _kind(weights):
        return kind
    raise ConversionError(f'unknown weights, {_guess(weights)}. Understood are: '
                          + '; '.join((FORMATS | OURS).values())
                          + ". Weights of BasicSR's and spandrel's networks need no conversion to be used here")


def _kind(weights: Weights) -> str | None:
    def has(*keys):
        return all(key in weights for key in keys)

    edsr_like = ('head.0.weight', 'body.0.body.0.weight', 'body.0.body.2.weight', 'tail.1.weight')
    if has(*(f'{net}.{key}' for net in ('EDSR_var', 'EDSR_U') for key in (*edsr_like, 'var_conv.0.weight'))):
        return 'udl_two'
    if has(*edsr_like):
        return 'udl' if has('var_conv.0.weight') else 'edsr'
    if has('entry.weight', 'exit.weight', 'b1.b1.body.0.weight', 'c1.body.0.weight'):
        return 'carn_m' if has('b1.b1.body.4.weight') else 'carn'
    if any(key.startswith('mean_network.') for key in weights) and any(key.startswith('head.') for key in weights):
        return 'UncertaintyNet'
    if has('conv_first.weight', 'body.0.conv1.weight', 'conv_after_body.weight', 'conv_last.weight'):
        return 'EDSR'
    return None


def _guess(weights: Weights) -> str:
    if any('conv_du' in key for key in weights):
        return "it seems to be RCAN in its authors' layout"
    if any(key.startswith('pre_process.') for key in weights):
        return 'it seems to be MDSR of EDSR-PyTorch'
    try:
        from spandrel import MAIN_REGISTRY
        found = next((a.architecture.name for a in MAIN_REGISTRY.architectures('detection')
                      if a.architecture.detect(weights)), None)
    except (ImportError, AttributeError):
        found = None
    if found:
        return f'it seems to be {found} (as spandrel tells it)'
    return f'the first of {len(weights)}: {some(weights)}'


def check_convolutions(weights: Weights, kind: str) -> None:
    """All of ``FORMATS`` are made of convolutions of odd size alone, each with a bias."""
    for key, value in weights.items():
        name, _, part = key.rpartition('.')
        shape, problem = tuple(value.shape), ''
        if part not in ('weight', 'bias') or f'{name}.weight' not in weights or f'{name}.bias' not in weights:
            problem = f'does not belong to {FORMATS[kind]}: expected convolutions alone, each with weight and bias'
        elif not value.is_floating_point():
            problem = f'is {value.dtype}; expected floats'
        elif part == 'weight' and (len(shape) != 4 or shape[2] != shape[3] or shape[2] % 2 == 0 or not all(shape)):
            problem = f'is {shape}; expected (out, in, k, k), k odd'
        elif part == 'bias' and shape != tuple(weights[f'{name}.weight'].shape[:1]):
            problem = f'is {shape}; expected one value for each channel that {name}.weight makes'
        if problem:
            raise ConversionError(f'not the network that its first keys promise: {some([key])} {problem}')


def conv(weights: Weights, name: str, x: Tensor) -> Tensor:
    weight = weights[f'{name}.weight'].to(x)
    bias = weights[f'{name}.bias'].to(x)
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=x.shape[1] // weight.shape[1])


def num_block(weights: Weights, pattern: str, start: int = 0) -> int:
    return next(i for i in itertools.count() if pattern.format(i + start) not in weights)


def upsamplers(weights: Weights, name: str, step: int = 2) -> list[str]:
    """Names of the convolutions before the pixel shuffles: 0, 2, 4, ... (with an activation between: 0, 3, ...)."""
    names = (f'{name}.{i}' for i in itertools.count(0, step))
    return list(itertools.takewhile(lambda n: f'{n}.weight' in weights, names))


def scale_of(weights: Weights, convolutions: list[str]) -> int:
    """From the shapes of an upsampler's convolutions."""
    if not 0 < len(convolutions) <= _MOST_UPSAMPLERS:
        raise ConversionError(f'not the network that its first keys promise: it has {len(convolutions)} upsamplers; '
                              f'expected 1 to {_MOST_UPSAMPLERS}')
    ratios = [weights[f'{name}.weight'].shape[0] // weights[f'{name}.weight'].shape[1] for name in convolutions]
    return 3 if ratios == [9] else 2**len(ratios)


def build_converted(options: dict, params: Weights) -> torch.nn.Module:
    try:
        return build_from(options, params, 'converted')
    except (CheckpointError, ExportError) as error:
        raise ConversionError(str(error)) from error


def trial_image() -> Tensor:
    return torch.rand(1, 3, 13, 18, generator=torch.Generator().manual_seed(0))


def compare(pairs: dict[str, tuple[Tensor, Tensor]]) -> None:
    for name, (before, after) in pairs.items():
        if before.shape != after.shape:
            raise ConversionError(f'{name}: {tuple(before.shape)} before, {tuple(after.shape)} after')
        difference = (before - after).abs().max().item()
        if not difference <= TOLERANCE * max(1., before.abs().max().item()):  # NaN fails too
            raise ConversionError(f'{name}: differs by {difference:.1e} before and after; nothing is written')
