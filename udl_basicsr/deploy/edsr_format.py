"""EDSR as EDSR-PyTorch (edsr) and, with a head for s, the UDL authors (udl, udl_two) keep it: to our form and back."""
import inspect

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from udl_basicsr.utils.text import some

from .foreign import (
    FORMATS,
    ConversionError,
    Converted,
    Weights,
    build_converted,
    compare,
    conv,
    num_block,
    scale_of,
    trial_image,
    upsamplers,
)

_HEAD = {'head.conv1': 'var_conv.0', 'head.conv2': 'var_conv.2', 'head.conv3': 'var_conv.4'}
UDL_NETWORK_U = {'type': 'UncertaintyNet', 'tap': 'upsample', 'head': {'type': 'UDLHead'}}


def run_edsr(weights: Weights, image: Tensor, res_scale: float) -> tuple[Tensor, Tensor | None]:
    """What formats ``edsr`` and ``udl`` compute: image and, where there is a ``var_conv``, s, of 0-255 pixels."""
    x = conv(weights, 'sub_mean', image) if 'sub_mean.weight' in weights else image
    first = x = conv(weights, 'head.0', x)
    count = num_block(weights, 'body.{}.body.0.weight')
    for i in range(count):
        x = x + res_scale * conv(weights, f'body.{i}.body.2', F.relu(conv(weights, f'body.{i}.body.0', x)))
    up = features = first + conv(weights, f'body.{count}', x)
    for name in upsamplers(weights, 'tail.0'):
        up = conv(weights, name, up)
        up = F.pixel_shuffle(up, 3 if up.shape[1] == 9 * features.shape[1] else 2)
    out = conv(weights, 'tail.1', up)
    out = conv(weights, 'add_mean', out) if 'add_mean.weight' in weights else out
    if 'var_conv.0.weight' not in weights:
        return out, None
    s = F.interpolate(features, scale_factor=out.shape[-1] // features.shape[-1], mode='nearest')
    for name in _HEAD.values():
        s = F.elu(conv(weights, name, s))
    return out, s


def edsr_two_to_ours(weights: Weights, res_scale: float | None, rgb_range: float | None) -> Converted:
    nets = [edsr_to_ours({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}, 'udl',
                         res_scale, rgb_range) for prefix in ('EDSR_U.', 'EDSR_var.')]
    mean, uncertainty = nets
    if mean.blocks != uncertainty.blocks:
        raise ConversionError(f'EDSR_U and EDSR_var differ: {mean.blocks} and {uncertainty.blocks}')
    return Converted(mean.params, mean.blocks, uncertainty.params_u, mean.notes)


def edsr_to_ours(weights: Weights, kind: str, res_scale: float | None, rgb_range: float | None) -> Converted:
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
    count = num_block(weights, 'body.{}.body.0.weight')
    names = _edsr_names(count, upsamplers(weights, 'tail.0'))
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
                 'num_block': count, 'upscale': scale_of(weights, upsamplers(weights, 'tail.0')),
                 'res_scale': res_scale, 'img_range': rgb_range, 'rgb_mean': rgb_mean}
    blocks, params_u = {'network_g': network_g}, None
    if kind == 'udl':
        blocks['network_u'] = UDL_NETWORK_U
        params_u = {f'mean_network.{key}': value for key, value in params.items()}
        params_u |= {f'{ours}.{part}': weights[f'{theirs}.{part}'].clone() for ours, theirs in _HEAD.items()
                     for part in ('weight', 'bias')}
    converted = Converted(params, blocks, params_u, tuple(notes))
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
                              'its net_g with --to edsr, without the head')
    weights = _edsr_from_ours(params, options)
    if params_u is None:
        for name, sign in (('sub_mean', -1), ('add_mean', 1)):
            weights |= {f'{name}.weight': torch.eye(3).view(3, 3, 1, 1),
                        f'{name}.bias': (sign * 255 * rgb_mean).float()}
        compare_edsr(Converted(params, {'network_g': options}), weights)
    else:
        weights |= _head_from_ours(params_u, options)
        pairs = {'EDSR_U.': (params, weights)}
        if to == 'udl_two':
            frozen = {k.removeprefix('mean_network.'): v for k, v in params_u.items() if k.startswith('mean_network.')}
            pairs['EDSR_var.'] = (frozen, {**weights, **_edsr_from_ours(frozen, options)})
        head = {k: v for k, v in params_u.items() if k.startswith('head.')}
        for mean, theirs in pairs.values():
            compare_edsr(Converted(mean, {'network_u': UDL_NETWORK_U, **blocks, 'network_g': options},
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


def compare_edsr(ours: Converted, weights: Weights, rgb_range: float = 255.) -> None:
    """Runs both on an image, ours on [0, 1] and theirs on 0 to ``rgb_range``.

    Raises:
        ConversionError: They differ by more than 1e-5 of a pixel, or in s.
    """
    network_g = ours.blocks['network_g']
    image = trial_image()
    out, s = run_edsr(weights, rgb_range * image, network_g['res_scale'])
    pairs: dict[str, tuple[Tensor, Tensor]] = {
        'image': (out / rgb_range, build_converted(network_g, ours.params)(image))}
    if ours.params_u is not None:
        if s is None:
            raise ConversionError('s: has a head on one side alone; nothing is written')
        net = build_converted({'backbone': network_g, **ours.blocks['network_u']}, ours.params_u)
        mean, log_scale = net(image)
        pairs |= {'image of net_u': (out / rgb_range, mean), 's': (s, log_scale)}
    compare(pairs)
