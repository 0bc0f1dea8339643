"""Where an uncertainty head reads a network: found by running it on a small image, named for the networks we know."""
import contextlib
import copy
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from udl_basicsr.utils.errors import MISUSED, UdlError
from udl_basicsr.utils.text import nearest

from .bounded import Bounded, TooMuchError
from .traits import argument, size_multiple, traits_of

_INPUT_CHANNEL_ARGS = ('num_in_ch', 'in_chans', 'in_nc', 'in_channels', 'in_ch')
# Short sides. Powers of two suit most windows and strides; 48 is IPT's.
_SIDES = (16, 32, 48, 64)
_MOST_CALLS = 5000
"""Of its modules, after which a network that has always failed is run no more: two or three runs of the deepest."""


class TapError(UdlError, ValueError):
    """A backbone or a tap that no uncertainty head fits on; the message says what does."""
    status = MISUSED


@dataclass(frozen=True)
class DryRun:
    """One run of a network on a small image."""
    calls: dict[str, tuple[tuple[int, ...], int]]
    """By the name of each module: the shape of its first input, and how often it was called."""
    lq: tuple[int, int]
    """Height and width that went in."""
    mean: tuple[int, ...]
    """Shape of the image that came out."""
    overwritten: frozenset[str]
    """Modules whose last input was written over afterwards, as by a ReLU in place."""

    def enlargement(self, features: tuple[int, ...]) -> int | None:
        """From the size of ``features`` to the image's; None where there is no whole factor."""
        if len(features) != 4:
            return None
        if self.lq[0] == self.lq[1]:
            lq, image, here = self.lq[0], self.mean[2], features[2]
        else:
            lq, image, here = self.lq[1] - self.lq[0], self.mean[3] - self.mean[2], features[3] - features[2]
        if here <= 0 or image % here or max(lq, here) % min(lq, here):  # the last: padding grew with the image
            return None
        factor = image // here
        return factor if factor * features[2] >= self.mean[2] and factor * features[3] >= self.mean[3] else None


@dataclass(frozen=True)
class Tap:
    """A tap and what a head has to know about it."""
    name: str
    """The module, as in ``named_modules()``."""
    calls: int
    """How often the module is called in one forward; the head reads the last."""
    channels: int
    """Of the tapped features."""
    enlargement: int
    """From the tapped features' size to the image's."""
    out_channels: int
    """Of the image."""
    scale: int
    """From the size of what goes into the network to the image's."""
    overwritten: bool = False
    """Whether the network writes over the tapped features later on, so that the head needs a copy."""


def first_tensor(args: tuple, kwargs: dict) -> Tensor | None:
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def find_tap(network: nn.Module, options: dict, tap: str | None = None) -> Tap:
    """Finds where a head reads ``network``, by running it. Nothing of it changes.

    Args:
        network (nn.Module): From (N, C, h, w) to (N, C, H, W).
        options (dict): ``{type: name, ...}``, what it was built from.
        tap (str | None): Name of a module; None takes the network's default.

    Raises:
        TapError: The network cannot be run or makes no image, or the tap is none; the message lists those that are.
    """
    name = options['type']
    problem: TapError | None = None
    for run in _dry_runs(network, options):
        try:
            return _fit(name, network, tap, run)
        except _NotHere as error:  # perhaps in a larger image, which the network need not pad
            problem = error
    assert problem is not None  # there is a run, or an error instead
    raise problem


class _NotHere(TapError):
    """The module exists and runs; its input is no feature map of this image."""


def _fit(name: str, network: nn.Module, tap: str | None, run: DryRun) -> Tap:
    modules = [n for n, _ in network.named_modules() if n]
    usable = {n: factor for n in modules if n in run.calls and (factor := run.enlargement(run.calls[n][0]))}
    # A deep network has thousands of modules; those near the top are the ones anyone would tap.
    shown = list(usable) if len(usable) <= 60 else [n for n in usable if n.count('.') == 0]
    listing = f'Modules of {name} that can be tapped: {", ".join(shown)}'
    if len(shown) < len(usable):
        listing += f' (and {len(usable) - len(shown)} inside them)'
    if tap is None:
        tap = next((t for t in _default_taps(network) if t in run.calls), None)
        if tap is None:
            raise TapError(f'tap: {name} has no default, name the module that upsamples. {listing}')
    if tap not in modules:
        near = nearest(tap, modules)
        meant = f" Did you mean '{near}'?" if near else ''
        raise TapError(f"tap: {name} has no module '{tap}'.{meant} {listing}")
    if tap not in run.calls:
        raise TapError(f"tap: the module '{tap}' of {name} is never given a tensor. {listing}")
    features, calls = run.calls[tap]
    if tap not in usable:
        raise _NotHere(f"tap: the module '{tap}' of {name} reads {features}, expected a feature map (N, C, h, w) whose "
                       f"size divides the image's {run.mean[2:]}. {listing}")
    scales = {run.mean[2] / run.lq[0], run.mean[3] / run.lq[1]}
    scale = scales.pop()
    if scales or scale != int(scale):
        raise TapError(f'{name} makes an image of {run.mean[2:]} from {run.lq}: expected one whole factor')
    return Tap(tap, calls, features[1], usable[tap], run.mean[1], int(scale), tap in run.overwritten)


def _default_taps(network: nn.Module) -> Iterator[str]:
    for tap in traits_of(type(network)).default_tap:
        parent, _, last = tap.rpartition('.')
        if last == '-1':
            tap = f'{parent}.{len(cast(nn.Sequential, network.get_submodule(parent))) - 1}'
        yield tap


def _dry_runs(network: nn.Module, options: dict) -> Iterator[DryRun]:
    """Runs ``network`` on images of growing size, each when it is asked for, and notes what each module is given."""
    # The argument need not be right: of a network that unshuffles its input it may count what comes after that.
    first_conv = next((m.in_channels for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    told = [argument(type(network), options, name) for name in _INPUT_CHANNEL_ARGS]
    channels = [c for c in dict.fromkeys([*(c for c in told if isinstance(c, int)), first_conv, 3]) if c]
    multiple = size_multiple(type(network), options)
    failure, ran, bounded, calls = None, False, Bounded(), Counter()
    with_values = next((p for p in network.parameters()), torch.zeros(0)).device.type != 'meta'
    for ratio in (2, 1):  # oblong, since what a network pads to cancels out of width - height; a few take squares only
        for side in _SIDES:
            if calls.total() > _MOST_CALLS and not ran:
                break
            height = -(-side // multiple) * multiple
            for count, on_meta in itertools.product(channels, (True, False) if with_values else (True, )):
                try:
                    with contextlib.nullcontext() if on_meta else bounded:
                        run = _dry_run(network, (1, count, height, ratio * height), on_meta, calls)
                except TapError:
                    raise
                except TooMuchError as error:
                    if ran:
                        return
                    raise TapError(f'{options["type"]} cannot be run on an image of {height}x{ratio * height} pixels: '
                                   f'{error}') from error
                except Exception as error:
                    failure = failure if failure or (on_meta and with_values) else error
                else:
                    ran = True
                    yield run
                    break
        if ran:
            return
    raise TapError(f'{options["type"]} cannot be run on a {channels[0]}-channel image of 16 to 128 pixels: '
                   f'{failure}') from failure


def _dry_run(network: nn.Module, shape: tuple[int, int, int, int], on_meta: bool, made: Counter) -> DryRun:
    """On torch's meta device nothing is computed; a few networks look at values and need the true run.

    ``made`` counts the calls of each module, also where the run fails.
    """
    calls, given = {}, {}

    def note(name):

        def hook(module, args, kwargs):
            made[name] += 1
            value = first_tensor(args, kwargs)
            if value is not None:
                calls[name] = (tuple(value.shape), calls.get(name, (None, 0))[1] + 1)
                given[name] = value, _version(value)

        return hook

    image = next(network.parameters(), torch.zeros(0)).new_zeros(shape)
    if on_meta:
        image = image.to('meta')
        # the modules alone are copied, and no weight
        network = copy.deepcopy(network, {id(t): _to_meta(t) for t in (*network.parameters(), *network.buffers())})
    modes = [(module, module.training) for module in network.modules()]
    handles = [m.register_forward_pre_hook(note(n), with_kwargs=True) for n, m in network.named_modules() if n]
    try:
        network.eval()
        with torch.no_grad():
            mean = network(image)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    if not isinstance(mean, Tensor) or mean.ndim != 4:
        got = tuple(mean.shape) if isinstance(mean, Tensor) else type(mean).__name__
        raise TapError(f'{type(network).__name__} cannot be the mean network: expected an image (N, C, H, W), '
                       f'got {got}')
    overwritten = frozenset(name for name, (value, version) in given.items() if _version(value) != version)
    return DryRun(calls, shape[2:], tuple(mean.shape), overwritten)


def _version(tensor: Tensor) -> int:
    """How often a tensor has been written over; not known in inference mode."""
    return 0 if tensor.is_inference() else tensor._version


def _to_meta(tensor: Tensor) -> Tensor:
    there = tensor.detach().to('meta')
    return nn.Parameter(there, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else there
