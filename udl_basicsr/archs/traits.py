"""What must be known of a network beside its code: where a head reads it, which sizes it takes, what tells the scale.

A class states its own in the attributes ``default_tap``, ``multiple_of`` and ``scale_argument``, which are those of
:class:`Traits`; for BasicSR's networks they are here.
"""
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Traits:
    """Traits of one class of networks."""
    default_tap: tuple[str, ...] = ()
    """The module whose *input* is the feature map after the global skip and before upsampling: the first name that
    runs. ``-1`` is a list's last module. Of a class one name will do."""
    multiple_of: int | str = 'window_size'
    """What height and width of an image must be multiples of, or the argument that says it, where there is one."""
    multiples: Mapping[int, int] | None = None
    """Of an argument that says it in other words: what each of its values means; any other, that all sizes do."""
    scale_argument: tuple[str, ...] = ('upscale', 'scale', 'up_scale', 'upscaling_factor', 'upscale_factor')
    """The argument that is the upscaling factor: the first name that the class has. Of a class one name will do."""


SWIN = ('conv_before_upsample', 'upsample', 'conv_last')  # whatever the upsampler
_OF_BASICSR = {
    'EDSR': Traits(('upsample', )),
    'RCAN': Traits(('upsample', )),
    'MSRResNet': Traits(('upconv1', )),
    'SwinIR': Traits(SWIN),
    'RRDBNet': Traits(('conv_up1', ), 'scale', {1: 4, 2: 2}),  # it unshuffles what it enlarges by four
    'SRVGGNetCompact': Traits(('body.-1', )),
    'ECBSR': Traits(('backbone.-1', )),
}


def traits_of(target: type[nn.Module]) -> Traits:
    """The traits that a class states, those of BasicSR's that it is or derives from, or else what is usual."""
    usual = next((_OF_BASICSR[c.__name__] for c in target.__mro__
                  if c.__module__.startswith('basicsr.') and c.__name__ in _OF_BASICSR), Traits())
    def names(trait: str) -> tuple[str, ...]:
        value = getattr(target, trait, getattr(usual, trait))
        return (value, ) if isinstance(value, str) else tuple(value)

    own = getattr(target, 'multiple_of', None)
    return Traits(names('default_tap'), usual.multiple_of if own is None else own,
                  usual.multiples if own is None else None, names('scale_argument'))


def argument(target: type[nn.Module], block: Mapping[str, Any], name: str) -> Any:
    """What a network is built with: as the block of options has it, else by default; None where there is neither."""
    if name in block:
        return block[name]
    parameter = inspect.signature(target).parameters.get(name)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def size_multiple(target: type[nn.Module], block: Mapping[str, Any]) -> int:
    """What height and width of an image must be multiples of for a network that is built from a block of options."""
    traits = traits_of(target)
    multiple = traits.multiple_of
    value = argument(target, block, multiple) if isinstance(multiple, str) else multiple
    value = value if traits.multiples is None else traits.multiples.get(value)
    return value if isinstance(value, int) and value > 0 else 1


def window_grid(target: type[nn.Module], block: Mapping[str, Any]) -> int:
    """At multiples of what a part of an image has to begin so that a network's windows in it are those of the whole.

    Beside :func:`size_multiple` these are the windows and stripes of networks that pad images to them themselves.
    """
    sizes = [size_multiple(target, block)]
    for name in ('window_size', 'split_size', 'stripe_size'):
        value = argument(target, block, name)
        sizes += value if isinstance(value, (list, tuple)) else [value]
    return math.lcm(*(size for size in sizes if isinstance(size, int) and size > 0))
