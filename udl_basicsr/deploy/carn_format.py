"""CARN and CARN-M as CARN-pytorch keeps them (carn, carn_m), into our form."""
import torch
from torch import Tensor
from torch.nn import functional as F

from .foreign import (
    ConversionError,
    Converted,
    Weights,
    build_converted,
    compare,
    conv,
    num_block,
    trial_image,
    upsamplers,
)


def run_carn(weights: Weights, image: Tensor, upsampler: str) -> Tensor:
    """What formats ``carn`` and ``carn_m`` compute of [0, 1] pixels, by ``upsample.up`` or ``upsample.up<scale>``."""
    def unit(name, x):
        out = conv(weights, f'{name}.body.2', F.relu(conv(weights, f'{name}.body.0', x)))
        if f'{name}.body.4.weight' in weights:
            out = conv(weights, f'{name}.body.4', F.relu(out))
        return F.relu(out + x)

    def cascade(prefix, x, run):
        collected = x
        for i in range(1, num_block(weights, f'{prefix}c{{}}.body.0.weight', 1) + 1):
            own = any(key.startswith(f'{prefix}b{i}.') for key in weights)
            collected = torch.cat([collected, run(f'{prefix}b{i if own else 1}', x)], 1)
            x = F.relu(conv(weights, f'{prefix}c{i}.body.0', collected))
        return x

    features = x = cascade('', conv(weights, 'entry', conv(weights, 'sub_mean.shifter', image)),
                           lambda name, x: cascade(f'{name}.', x, unit))
    for name in upsamplers(weights, f'{upsampler}.body', step=3):
        x = F.relu(conv(weights, name, x))
        x = F.pixel_shuffle(x, 3 if x.shape[1] == 9 * features.shape[1] else 2)
    return conv(weights, 'add_mean.shifter', conv(weights, 'exit', x))


def carn_to_ours(weights: Weights, kind: str, scale: int | None) -> Converted:
    there = {f'up{s}': s for s in (2, 3, 4) if f'upsample.up{s}.body.0.weight' in weights}
    if not there and 'upsample.up.body.0.weight' in weights:
        there = {'up': _scale_of_group(weights, 'upsample.up.body')}
    name = next((n for n, s in there.items() if scale in (None, s)), None)
    if name is None or (scale is None and len(there) > 1):
        raise ConversionError(f'--scale: expected {" or ".join(map(str, sorted(there.values())))}, which this file '
                              'holds; ' + ('none was given' if scale is None else f'got {scale}'))
    params = {key.replace(f'upsample.{name}.', f'upsample.up{there[name]}.'): value.clone()
              for key, value in weights.items() if not key.startswith('upsample.') or f'.{name}.' in key}
    num_feat = weights['entry.weight'].shape[0]
    network_g = {'type': 'CARN' if kind == 'carn' else 'CARN_M', 'num_in_ch': weights['entry.weight'].shape[1],
                 'num_out_ch': weights['exit.weight'].shape[0], 'num_feat': num_feat,
                 'num_block': num_block(weights, 'c{}.body.0.weight', 1), 'upscale': there[name]}
    if kind == 'carn_m':
        network_g['num_group'] = num_feat // weights['b1.b1.body.0.weight'].shape[1]
    net = build_converted(network_g, params)
    image = trial_image()
    compare({'image': (run_carn(weights, image, f'upsample.{name}'), net(image))})
    return Converted(params, {'network_g': network_g})


def _scale_of_group(weights: Weights, name: str) -> int:
    """As :func:`scale_of`, where group convolutions hide the number of channels that go in."""
    convolutions = upsamplers(weights, name, step=3)
    ratio = weights[f'{convolutions[0]}.weight'].shape[0] // weights['entry.weight'].shape[0]
    return 3 if ratio == 9 else 2**len(convolutions)
