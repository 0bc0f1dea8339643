"""Weights of other programs into ours and back, each conversion proved by the same pixels before and after.

What the other programs do, from their sources:

========== ======================================== ===================================================================
name       from                                     network
========== ======================================== ===================================================================
udl        QianNing0/UDL, model/edsr.py             EDSR on 0-255 pixels, no mean shift, ``head body tail`` and
                                                    ``var_conv`` (conv ELU conv ELU conv ELU on nearest-upsampled
                                                    features), res_scale 0.1
udl_two    QianNing0/UDL, model/edsr_two.py         two of these: ``EDSR_var`` frozen, ``EDSR_U`` trained by stage 2
edsr       sanghyun-son/EDSR-PyTorch, model/edsr.py EDSR on 0-255 pixels with ``sub_mean`` and ``add_mean``
carn       nmhkahn/CARN-pytorch, model/carn.py      CARN on [0, 1], one upsampler for each of x2, x3 and x4
carn_m     the same, model/carn_m.py                CARN-M
========== ======================================== ===================================================================

Weights do not hold everything that makes the pixels: ``res_scale``, ``img_range`` and ``rgb_mean`` are options, which
is why every conversion comes with the ``network_g`` block that its weights belong to.
"""
import inspect
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from udl_basicsr.utils.checkpoints import CheckpointError, check_weights, read_checkpoint, save_atomic
from udl_basicsr.utils.text import first_line, some

from .export import (
    ExportError,
    build_from,
    build_loaded,
    export_onnx,
    export_safetensors,
    find_options,
    refuse_existing,
)

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
_SUFFIXES = ('.pth', '.pt', '.safetensors', '.onnx')
_WRAPPERS = ('params_ema', 'params', 'state_dict', 'model', 'net')
_MOST_UPSAMPLERS = 4  # by 2 each; with one more, an image of a few pixels asks for four times the memory
_HEAD = {'head.conv1': 'var_conv.0', 'head.conv2': 'var_conv.2', 'head.conv3': 'var_conv.4'}
_UDL_NETWORK_U = {'type': 'UncertaintyNet', 'tap': 'upsample', 'head': {'type': 'UDLHead'}}


class ConversionError(ExportError):
    """A file that cannot be converted; the message says what it seems to be, why, and what can be."""


@dataclass(frozen=True)
class Ours:
    """A conversion into this package's form."""
    params: Weights
    """Of the mean network, for ``net_g``."""
    blocks: dict
    """``network_g``, and ``network_u`` where there is a head: the options that the weights belong to."""
    params_u: Weights | None = None
    """Of the whole UncertaintyNet, for ``net_u``."""
    notes: tuple[str, ...] = ()
    """What was assumed, and how to change it."""


# ------------------------------------------------------------------------------------------------- reading, naming
def read_weights(path: str | Path, param_key: str | None = None) -> tuple[Weights, str | None]:
    """The tensors of a checkpoint of any program, out of their wrappers.

    Args:
        path: Zip or older torch file, or ``.safetensors``. Pickled objects are never run.
        param_key: The wrapper. None takes the first that is there of params_ema, params, state_dict, model, net, or
            the file itself.

    Returns:
        The weights, without a ``module.`` or ``model.`` that all of them begin with, and the wrapper they were in.

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
        if all(k.startswith(prefix) for k in content):
            content = {k.removeprefix(prefix): v for k, v in content.items()}
    return content, key


def detect(weights: Weights) -> str:
    """The name of the format, one of ``FORMATS`` and ``OURS``, from the keys.

    Raises:
        ConversionError: None of these; says what it seems to be.
    """
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
    raise ConversionError(f'unknown weights, {_guess(weights)}. Understood are: '
                          + '; '.join((FORMATS | OURS).values())
                          + ". Weights of BasicSR's and spandrel's networks need no conversion to be used here")


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


# --------------------------------------------------------------------------------------- the other programs' pixels
def _conv(weights: Weights, name: str, x: Tensor) -> Tensor:
    weight = weights[f'{name}.weight'].to(x)
    bias = weights[f'{name}.bias'].to(x)
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=x.shape[1] // weight.shape[1])


def run_edsr(weights: Weights, image: Tensor, res_scale: float) -> tuple[Tensor, Tensor | None]:
    """What formats ``edsr`` and ``udl`` compute: image and, where there is a ``var_conv``, s, of 0-255 pixels."""
    x = _conv(weights, 'sub_mean', image) if 'sub_mean.weight' in weights else image
    first = x = _conv(weights, 'head.0', x)
    count = _num_block(weights, 'body.{}.body.0.weight')
    for i in range(count):
        x = x + res_scale * _conv(weights, f'body.{i}.body.2', F.relu(_conv(weights, f'body.{i}.body.0', x)))
    up = features = first + _conv(weights, f'body.{count}', x)
    for name in _upsamplers(weights, 'tail.0'):
        up = _conv(weights, name, up)
        up = F.pixel_shuffle(up, 3 if up.shape[1] == 9 * features.shape[1] else 2)
    out = _conv(weights, 'tail.1', up)
    out = _conv(weights, 'add_mean', out) if 'add_mean.weight' in weights else out
    if 'var_conv.0.weight' not in weights:
        return out, None
    s = F.interpolate(features, scale_factor=out.shape[-1] // features.shape[-1], mode='nearest')
    for name in _HEAD.values():
        s = F.elu(_conv(weights, name, s))
    return out, s


def run_carn(weights: Weights, image: Tensor, upsampler: str) -> Tensor:
    """What formats ``carn`` and ``carn_m`` compute of [0, 1] pixels, by ``upsample.up`` or ``upsample.up<scale>``."""
    def unit(name, x):
        out = _conv(weights, f'{name}.body.2', F.relu(_conv(weights, f'{name}.body.0', x)))
        if f'{name}.body.4.weight' in weights:
            out = _conv(weights, f'{name}.body.4', F.relu(out))
        return F.relu(out + x)

    def cascade(prefix, x, run):
        collected = x
        for i in range(1, _num_block(weights, f'{prefix}c{{}}.body.0.weight', 1) + 1):
            own = any(key.startswith(f'{prefix}b{i}.') for key in weights)
            collected = torch.cat([collected, run(f'{prefix}b{i if own else 1}', x)], 1)
            x = F.relu(_conv(weights, f'{prefix}c{i}.body.0', collected))
        return x

    features = x = cascade('', _conv(weights, 'entry', _conv(weights, 'sub_mean.shifter', image)),
                           lambda name, x: cascade(f'{name}.', x, unit))
    for name in _upsamplers(weights, f'{upsampler}.body', step=3):
        x = F.relu(_conv(weights, name, x))
        x = F.pixel_shuffle(x, 3 if x.shape[1] == 9 * features.shape[1] else 2)
    return _conv(weights, 'add_mean.shifter', _conv(weights, 'exit', x))


def _num_block(weights: Weights, pattern: str, start: int = 0) -> int:
    return next(i for i in itertools.count() if pattern.format(i + start) not in weights)


def _upsamplers(weights: Weights, name: str, step: int = 2) -> list[str]:
    """Names of the convolutions before the pixel shuffles: 0, 2, 4, ... (with an activation between: 0, 3, ...)."""
    names = (f'{name}.{i}' for i in itertools.count(0, step))
    return list(itertools.takewhile(lambda n: f'{n}.weight' in weights, names))


def _scale(weights: Weights, convolutions: list[str]) -> int:
    """From the shapes of an upsampler's convolutions."""
    if not 0 < len(convolutions) <= _MOST_UPSAMPLERS:
        raise ConversionError(f'not the network that its first keys promise: it has {len(convolutions)} upsamplers; '
                              f'expected 1 to {_MOST_UPSAMPLERS}')
    ratios = [weights[f'{name}.weight'].shape[0] // weights[f'{name}.weight'].shape[1] for name in convolutions]
    return 3 if ratios == [9] else 2**len(ratios)


# ----------------------------------------------------------------------------------------------------- into our form
def to_ours(weights: Weights, *, res_scale: float | None = None, rgb_range: float | None = None,
            scale: int | None = None) -> Ours:
    """Converts weights of any of ``FORMATS``, and compares pixels (and s) before and after.

    Args:
        weights: As :func:`read_weights` gives them.
        res_scale: Of EDSR, which its weights do not tell. None: 0.1 for the UDL authors' and for a width of 256, else
            1, as their authors trained them.
        rgb_range: The largest pixel that formats ``edsr`` and ``udl`` were trained on. None: 255, or 1 where the mean
            shift is that of pixels in [0, 1].
        scale: Which upsampler to take of a CARN that has several.

    Raises:
        ConversionError: Unknown or already ours, an option is missing, does not belong here or is no number > 0, or the
            pixels differ.
    """
    for option, value in (('res_scale', res_scale), ('rgb_range', rgb_range)):
        if value is not None and not 0 < value < math.inf:
            raise ConversionError(f'--{option}: expected a number > 0, got {value:g}')
    kind = detect(weights)
    if kind in OURS:
        raise ConversionError(f'these are weights of {OURS[kind]} already; --to says into what they are to be '
                              'converted: udl, udl_two or edsr, or --out ends in .safetensors or .onnx')
    _check_convolutions(weights, kind)
    weights = {key: value.float() for key, value in weights.items()}
    try:
        if kind in ('carn', 'carn_m'):
            _refuse_given(kind, res_scale=res_scale, rgb_range=rgb_range)
            return _carn_to_ours(weights, kind, scale)
        _refuse_given(kind, scale=scale)
        if kind == 'udl_two':
            return _edsr_two_to_ours(weights, res_scale, rgb_range)
        return _edsr_to_ours(weights, kind, res_scale, rgb_range)
    except KeyError as error:
        raise ConversionError(f'it lacks {some(error.args)}, which {FORMATS[kind]} has') from error
    except (RuntimeError, ArithmeticError) as error:  # torch's, of channels of one layer that are not the next one's
        if isinstance(error, (ExportError, CheckpointError)):
            raise
        raise ConversionError(f'its layers do not fit one another: {first_line(error)}') from error


def _check_convolutions(weights: Weights, kind: str) -> None:
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


def _edsr_two_to_ours(weights: Weights, res_scale: float | None, rgb_range: float | None) -> Ours:
    nets = [_edsr_to_ours({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}, 'udl',
                          res_scale, rgb_range) for prefix in ('EDSR_U.', 'EDSR_var.')]
    mean, uncertainty = nets
    if mean.blocks != uncertainty.blocks:
        raise ConversionError(f'EDSR_U and EDSR_var differ: {mean.blocks} and {uncertainty.blocks}')
    return Ours(mean.params, mean.blocks, uncertainty.params_u, mean.notes)


def _refuse_given(kind: str, **options) -> None:
    given = [f'--{name}' for name, value in options.items() if value is not None]
    if given:
        raise ConversionError(f'{", ".join(given)} means nothing for {FORMATS[kind]}')


def _edsr_to_ours(weights: Weights, kind: str, res_scale: float | None, rgb_range: float | None) -> Ours:
    num_feat, num_in_ch = weights['head.0.weight'].shape[:2]
    if num_in_ch != 3:
        raise ConversionError(f"BasicSR's EDSR takes 3 channels, this one {num_in_ch}")
    notes = []
    shifted = 'sub_mean.weight' in weights
    if shifted != ('add_mean.weight' in weights):
        raise ConversionError('expected both sub_mean and add_mean, or neither')
    if rgb_range is None:
        unit = shifted and 0 < weights['sub_mean.bias'].abs().max() <= 1
        rgb_range = 1. if unit else 255.
        notes.append(f'pixels of 0 to {rgb_range:g} assumed; --rgb_range changes it')
    if res_scale is None:
        res_scale = 0.1 if kind == 'udl' or num_feat == 256 else 1.
        notes.append(f'res_scale {res_scale:g} assumed, which the weights do not tell; --res_scale changes it')
    if kind == 'edsr' and not shifted:
        notes.append('no mean shift in the file: rgb_mean is 0')
    count = _num_block(weights, 'body.{}.body.0.weight')
    names = _edsr_names(count, _upsamplers(weights, 'tail.0'))
    params = {f'{ours}.{part}': weights[f'{theirs}.{part}'].clone() for ours, theirs in names.items()
              for part in ('weight', 'bias')}
    known = {f'{name}.{part}' for name in (*names.values(), 'sub_mean', 'add_mean', *_HEAD.values())
             for part in ('weight', 'bias')}
    unknown = sorted(set(weights) - known)
    if unknown:
        raise ConversionError(f'not the network that its first keys promise: {some(unknown)} '
                              f'{"does" if len(unknown) == 1 else "do"} not belong to {FORMATS[kind]}')
    rgb_mean = _fold_mean_shift(params, weights, rgb_range) if shifted else [0., 0., 0.]
    network_g = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': weights['tail.1.weight'].shape[0], 'num_feat': num_feat,
                 'num_block': count, 'upscale': _scale(weights, _upsamplers(weights, 'tail.0')), 'res_scale': res_scale,
                 'img_range': rgb_range, 'rgb_mean': rgb_mean}
    blocks, params_u = {'network_g': network_g}, None
    if kind == 'udl':
        blocks['network_u'] = _UDL_NETWORK_U
        params_u = {f'mean_network.{key}': value for key, value in params.items()}
        params_u |= {f'{ours}.{part}': weights[f'{theirs}.{part}'].clone() for ours, theirs in _HEAD.items()
                     for part in ('weight', 'bias')}
    converted = Ours(params, blocks, params_u, tuple(notes))
    compare_edsr(converted, weights, rgb_range)
    return converted


def _edsr_names(num_block: int, upsamplers: list[str]) -> dict[str, str]:
    """Our layers by theirs."""
    return {'conv_first': 'head.0', 'conv_after_body': f'body.{num_block}', 'conv_last': 'tail.1',
            **{f'body.{i}.conv{j}': f'body.{i}.body.{2 * j - 2}' for i in range(num_block) for j in (1, 2)},
            **{f'upsample.{2 * i}': name for i, name in enumerate(upsamplers)}}


def _fold_mean_shift(params: Weights, weights: Weights, rgb_range: float) -> list[float]:
    """The mean that ``sub_mean`` subtracts, of pixels in [0, 1].

    It was meant to be frozen, but in early versions of the code it was trained with the rest. What it does beyond
    subtracting a mean goes into the first and last convolution, which is exact: the one before pads with zeros after
    the shift, and the one after pads nothing.
    """
    matrix, bias = (weights[f'sub_mean.{part}'].double() for part in ('weight', 'bias'))
    after, shift = (weights[f'add_mean.{part}'].double() for part in ('weight', 'bias'))
    matrix, after = matrix[..., 0, 0], after[..., 0, 0]
    try:
        mean = -torch.linalg.solve(matrix, bias) / rgb_range
    except RuntimeError as error:
        raise ConversionError(f'sub_mean.weight cannot be inverted: {matrix.tolist()}') from error
    rounded = mean.round(decimals=4)
    mean = rounded if (mean - rounded).abs().max() < 1e-7 else mean  # 0.4488 and not 0.44880001306
    eye, left = torch.eye(3, dtype=torch.double), shift - rgb_range * mean
    if not torch.equal(matrix, eye):
        params['conv_first.weight'] = torch.einsum('oihw,ij->ojhw', params['conv_first.weight'].double(),
                                                   matrix).float()
    if not torch.equal(after, eye) or left.abs().max() > 1e-6 * rgb_range:
        params['conv_last.weight'] = torch.einsum('oi,ijhw->ojhw', after, params['conv_last.weight'].double()).float()
        params['conv_last.bias'] = (after @ params['conv_last.bias'].double() + left).float()
    return mean.tolist()


def _carn_to_ours(weights: Weights, kind: str, scale: int | None) -> Ours:
    there = {f'up{s}': s for s in (2, 3, 4) if f'upsample.up{s}.body.0.weight' in weights}
    if not there and 'upsample.up.body.0.weight' in weights:
        there = {'up': _scale_of_group(weights, 'upsample.up.body')}
    name = next((n for n, s in there.items() if scale in (None, s)), None)
    if name is None or (scale is None and len(there) > 1):
        raise ConversionError(f'--scale: expected one of {sorted(there.values())}, the scales of this file; '
                              f'got {scale}')
    params = {key.replace(f'upsample.{name}.', f'upsample.up{there[name]}.'): value.clone()
              for key, value in weights.items() if not key.startswith('upsample.') or f'.{name}.' in key}
    num_feat = weights['entry.weight'].shape[0]
    network_g = {'type': 'CARN' if kind == 'carn' else 'CARN_M', 'num_in_ch': weights['entry.weight'].shape[1],
                 'num_out_ch': weights['exit.weight'].shape[0], 'num_feat': num_feat,
                 'num_block': _num_block(weights, 'c{}.body.0.weight', 1), 'upscale': there[name]}
    if kind == 'carn_m':
        network_g['num_group'] = num_feat // weights['b1.b1.body.0.weight'].shape[1]
    net = _build(network_g, params)
    image = _image()
    _compare({'image': (run_carn(weights, image, f'upsample.{name}'), net(image))})
    return Ours(params, {'network_g': network_g})


def _scale_of_group(weights: Weights, name: str) -> int:
    """As :func:`_scale`, where group convolutions hide the number of channels that go in."""
    convolutions = _upsamplers(weights, name, step=3)
    ratio = weights[f'{convolutions[0]}.weight'].shape[0] // weights['entry.weight'].shape[0]
    return 3 if ratio == 9 else 2**len(convolutions)


# ----------------------------------------------------------------------------------------------- out of our form
def from_ours(blocks: dict, params: Weights, params_u: Weights | None, to: str) -> tuple[Weights, tuple[str, ...]]:
    """Converts our EDSR into another program's, and compares pixels (and s) before and after.

    Args:
        blocks: ``network_g`` of the EDSR.
        params: Of the mean network.
        params_u: Of the UncertaintyNet with a UDLHead at its upsampler. ``udl_two`` takes the frozen network from it
            and ``params`` for the trained one; ``udl`` takes the head alone.
        to: ``udl``, ``udl_two`` or ``edsr``.

    Returns:
        The weights, and notes on what to set in that program.

    Raises:
        ConversionError: Another network, a head that the format has no place for or needs, options that it cannot
            express, or pixels that differ.
    """
    if blocks['network_g'].get('type') != 'EDSR':
        raise ConversionError(f"format '{to}' is an EDSR, and network_g is {blocks['network_g'].get('type')}")
    if (to == 'edsr') == (params_u is not None):
        raise ConversionError(f"format '{to}' " + ('has no place for an uncertainty: give net_g' if to == 'edsr' else
                                                   'needs the uncertainty network of stage esu: give net_u'))
    defaults = {name: p.default for name, p in inspect.signature(ARCH_REGISTRY.get('EDSR')).parameters.items()}
    options = defaults | blocks['network_g']
    rgb_mean = torch.tensor(options['rgb_mean'], dtype=torch.double)
    if to != 'edsr' and rgb_mean.abs().max() > 0:
        raise ConversionError(f"format '{to}' subtracts no mean, and network_g has rgb_mean {options['rgb_mean']}. The "
                              'pixels at the border could not be the same; train with rgb_mean: [0, 0, 0], or convert '
                              'to edsr')
    weights = _edsr_from_ours(params, options)
    if to == 'edsr':
        for name, sign in (('sub_mean', -1), ('add_mean', 1)):
            weights |= {f'{name}.weight': torch.eye(3).view(3, 3, 1, 1),
                        f'{name}.bias': (sign * 255 * rgb_mean).float()}
        compare_edsr(Ours(params, {'network_g': options}), weights)
    else:
        weights |= _head_from_ours(params_u, options)
        pairs = {'EDSR_U.': (params, weights)}
        if to == 'udl_two':
            frozen = {k.removeprefix('mean_network.'): v for k, v in params_u.items() if k.startswith('mean_network.')}
            pairs['EDSR_var.'] = (frozen, {**weights, **_edsr_from_ours(frozen, options)})
        head = {k: v for k, v in params_u.items() if k.startswith('head.')}
        for mean, theirs in pairs.values():
            compare_edsr(Ours(mean, {'network_u': _UDL_NETWORK_U, **blocks, 'network_g': options},
                              {**{f'mean_network.{k}': v for k, v in mean.items()}, **head}), theirs)
        if to == 'udl_two':
            weights = {prefix + k: v for prefix, (_, theirs) in pairs.items() for k, v in theirs.items()}
    notes = [f'run it with --n_resblocks {options["num_block"]} --n_feats {options["num_feat"]} --res_scale '
             f'{options["res_scale"]:g} --scale {options["upscale"]} --rgb_range 255']
    if to != 'edsr' and (options['num_block'], options['num_feat']) != (16, 64):
        notes.append('16 blocks of 64 features are written into their code/model/edsr.py; change them there')
    return weights, tuple(notes)


def _edsr_from_ours(params: Weights, options: dict) -> Weights:
    count = len([key for key in params if key.startswith('upsample.') and key.endswith('.weight')])
    names = _edsr_names(options['num_block'], [f'tail.0.{2 * i}' for i in range(count)])
    weights = {f'{theirs}.{part}': params[f'{ours}.{part}'].clone() for ours, theirs in names.items()
               for part in ('weight', 'bias')}
    factor = options['img_range'] / 255
    if factor != 1:  # theirs is fed 255 * pixel where ours is fed img_range * pixel
        weights['head.0.weight'] *= factor
        weights['tail.1.weight'] /= factor
        weights['tail.1.bias'] /= factor
    return weights


def _head_from_ours(params_u: Weights, options: dict) -> Weights:
    head = {key: value for key, value in params_u.items() if key.startswith('head.')}
    wanted = {f'{ours}.{part}': f'{theirs}.{part}' for ours, theirs in _HEAD.items() for part in ('weight', 'bias')}
    if head.keys() != wanted.keys() or head['head.conv1.weight'].shape[:2] != (options['num_feat'], ) * 2:
        raise ConversionError(f"the UDL authors' head is a UDLHead as wide as the network ({options['num_feat']}), "
                              f'this one has: {", ".join(f"{k} {tuple(v.shape)}" for k, v in head.items())}')
    return {wanted[key]: value.clone() for key, value in head.items()}


# ---------------------------------------------------------------------------------------------------------- proof
def compare_edsr(ours: Ours, weights: Weights, rgb_range: float = 255.) -> None:
    """Runs both on an image, ours on [0, 1] and theirs on 0 to ``rgb_range``.

    Raises:
        ConversionError: They differ by more than 1e-5 of a pixel, or in s.
    """
    network_g = ours.blocks['network_g']
    image = _image()
    out, s = run_edsr(weights, rgb_range * image, network_g['res_scale'])
    pairs = {'image': (out / rgb_range, _build(network_g, ours.params)(image))}
    if ours.params_u is not None:
        net = _build({'backbone': network_g, **ours.blocks['network_u']}, ours.params_u)
        mean, log_scale = net(image)
        pairs |= {'image of net_u': (out / rgb_range, mean), 's': (s, log_scale)}
    _compare(pairs)


def _build(options: dict, params: Weights) -> torch.nn.Module:
    try:
        return build_from(options, params, 'converted')
    except CheckpointError as error:
        raise ConversionError(str(error)) from error


def _image() -> Tensor:
    return torch.rand(1, 3, 13, 18, generator=torch.Generator().manual_seed(0))


def _compare(pairs: dict[str, tuple[Tensor, Tensor]]) -> None:
    for name, (before, after) in pairs.items():
        if before.shape != after.shape:
            raise ConversionError(f'{name}: {tuple(before.shape)} before, {tuple(after.shape)} after')
        difference = (before - after).abs().max().item()
        if not difference <= TOLERANCE * max(1., before.abs().max().item()):  # NaN fails too
            raise ConversionError(f'{name}: differs by {difference:.1e} before and after; nothing is written')


# ---------------------------------------------------------------------------------------------------------- files
def convert_file(source: str | Path, out: str | Path, *, to: str | None = None, out_u: str | Path | None = None,
                 in_u: str | Path | None = None, opt: str | Path | None = None, param_key: str | None = None,
                 res_scale: float | None = None, rgb_range: float | None = None, scale: int | None = None,
                 force: bool = False) -> tuple[dict, tuple[str, ...]]:
    """Reads one file and writes another; ``out`` ends in .pth (or .pt), .safetensors or .onnx.

    Args:
        source: A checkpoint of any of ``FORMATS``; or of ours, for ``to``, .onnx and .safetensors. Any checkpoint can
            become safetensors; one of ``FORMATS`` is brought into our form on the way.
        out: The mean network (``net_g``), or with ``to`` the other program's file.
        to: ``udl``, ``udl_two`` or ``edsr``: from ours into that.
        out_u: Where ``net_u`` goes, of formats ``udl`` and ``udl_two``.
        in_u: Our ``net_u``, for ``udl_two`` beside ``source``, the ``net_g`` of stage udl.
        opt: Option file with the ``network_g`` (and ``network_u``) of our checkpoint; see :func:`find_options`.
        param_key: Entry of ``source`` that holds the weights; see :func:`read_weights`.
        res_scale: See :func:`to_ours`.
        rgb_range: See :func:`to_ours`.
        scale: See :func:`to_ours`.
        force: Overwrite what exists.

    Returns:
        The options that the written weights belong to (empty where they are not known), and notes for the user.

    Raises:
        ExportError: What cannot be converted. Nothing has been written then.
        CheckpointError: What cannot be read or saved.
        OptionError: An option file that cannot be read.
    """
    for path, kinds in ((out, _SUFFIXES[:2] if to else _SUFFIXES), (out_u, _SUFFIXES[:3])):
        if path is not None and Path(path).suffix not in kinds:
            raise ConversionError(f'{path}: expected a name that ends in {", ".join(kinds)}')
    if out_u is not None and Path(out_u).absolute() == Path(out).absolute():
        raise ConversionError(f'{out}: --out and --out_u must differ')
    refuse_existing(out, out_u, force=force)
    weights, key = read_weights(source, param_key)
    try:
        kind = detect(weights)
        if kind not in OURS and to is not None:
            raise ConversionError(f'seems to be {FORMATS[kind]}; --to {to} takes a checkpoint of ours. Convert it '
                                  'without --to first')
        if kind in OURS and to is None and Path(out).suffix in _SUFFIXES[:2]:
            raise ConversionError(f'holds weights of {OURS[kind]} already. --to udl, udl_two or edsr converts them, '
                                  'and so does a name of .safetensors or .onnx')
    except ConversionError as error:
        if to is not None or Path(out).suffix in _SUFFIXES[:2]:
            raise ConversionError(f'{source}: {error}') from None
        kind = None  # any network can be exported
    read = f'{source}: {(FORMATS | OURS).get(kind, "a network of another kind")}' + (f", its '{key}'" if key else '')

    if kind in FORMATS:
        try:
            ours = to_ours(weights, res_scale=res_scale, rgb_range=rgb_range, scale=scale)
        except ConversionError as error:
            raise ConversionError(f'{source}: {error}') from error
        if out_u is not None and ours.params_u is None:
            raise ConversionError(f'{source}: has no uncertainty head, so there is nothing for --out_u')
        blocks = ours.blocks if out_u else {'network_g': ours.blocks['network_g']}
        _write(ours.params, out, blocks)
        if out_u is not None:
            _write(ours.params_u, out_u, blocks)
        left = ours.params_u is not None and out_u is None
        return blocks, (read, *ours.notes, *['its uncertainty head is left out; --out_u keeps it' for _ in range(left)])

    given = {'--res_scale': res_scale, '--rgb_range': rgb_range, '--scale': scale, '--out_u': out_u}
    if to != 'udl_two':
        given['--in_u'] = in_u
    for name in (name for name, value in given.items() if value is not None):
        raise ConversionError(f'{name} means nothing for what {source} holds; its options stand in its YAML, see --opt')
    found = find_options(source, opt)
    if found is None and (to is not None or Path(out).suffix == '.onnx'):
        raise ConversionError(f'{source}: its weights do not tell which network they belong to, and there is no option '
                              "file in a run's folder around it: give one with network_g as --opt")
    blocks, place = found or ({}, None)
    read += f'; options from {place}' if place else '; its options are not known, so none are put into the file (--opt)'
    if to is None:
        # also where a safetensors needs no network: metadata of another one would mislead
        label = 'u' if kind == 'UncertaintyNet' and Path(out).suffix != '.onnx' else 'g'
        if blocks.get(f'network_{label}'):
            build_loaded(source, blocks, key, label)
        report = _write(weights, out, blocks)
        return blocks, (read, *report)

    if (kind == 'UncertaintyNet') != (to == 'udl'):
        raise ConversionError(f'{source}: is {OURS[kind]}; --to {to} takes net_' + ('u' if to == 'udl' else 'g'))
    if to == 'udl_two' and in_u is None:
        raise ConversionError('--to udl_two takes the net_u of stage esu beside the net_g: give it as --in_u')
    blocks = {'network_u': _UDL_NETWORK_U, **blocks}
    params_u = None
    if to != 'edsr':
        path_u, key_u = (source, key) if to == 'udl' else (in_u, read_weights(in_u)[1])
        params_u = build_loaded(path_u, blocks, key_u, 'u').state_dict()
    params = build_loaded(source, blocks, key).state_dict() if to != 'udl' else \
        {k.removeprefix('mean_network.'): v for k, v in params_u.items() if k.startswith('mean_network.')}
    try:
        theirs, notes = from_ours(blocks, params, params_u, to)
    except ConversionError as error:
        raise ConversionError(f'{source}: {error}') from error
    save_atomic(theirs, out)  # no wrapper: that is how these programs load
    return {'network_g': blocks['network_g']}, (read, *notes)


def _write(params: Weights, path: str | Path, blocks: dict) -> list[str]:
    if Path(path).suffix == '.safetensors':
        export_safetensors(params, path, blocks)
    elif Path(path).suffix == '.onnx':
        report = export_onnx(_build(blocks['network_g'], params), path)
        return [f'opset {report.opset}, {report.exporter} exporter, '
                + ('batch, height and width' if report.dynamic_batch else 'height and width (one image at a time)')
                + f' dynamic; onnxruntime differs from torch by {report.difference:.1e} on '
                + ', '.join('x'.join(map(str, shape)) for shape in report.shapes)
                + (f'; it does not take {", ".join(f"{h}x{w}" for h, w in report.refused)}: pad images to a multiple '
                   'of what the network divides them into' if report.refused else '')]
    else:
        save_atomic({'params': params}, path)
    return []
