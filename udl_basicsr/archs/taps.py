"""Where an uncertainty head reads a network: found by running it once, named for the networks that are known."""
import difflib
import inspect

import torch
from torch import Tensor, nn

# The module whose *input* is the feature map after the global skip and before upsampling (first name that exists).
DEFAULT_TAPS = {
    'EDSR': ('upsample', ),
    'RCAN': ('upsample', ),
    'MSRResNet': ('upconv1', ),
    'SwinIR': ('conv_before_upsample', 'upsample', 'conv_last'),
    'RRDBNet': ('conv_up1', ),
}
_INPUT_CHANNEL_ARGS = ('num_in_ch', 'in_chans', 'in_nc', 'in_channels')


class TapError(ValueError):
    """A backbone or a tap that no uncertainty head fits on; the message says what does."""


def first_tensor(args: tuple, kwargs: dict) -> Tensor | None:
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def dry_run(network: nn.Module, options: dict) -> tuple[dict, tuple, tuple]:
    """Runs the network on a small image and notes what each module is given.

    Returns:
        tuple: ``{module name: (shape of its first input, number of calls)}``, the input's (h, w), the output's shape.
    """
    signature = inspect.signature(type(network)).parameters

    def argument(name, default=None):
        default = signature[name].default if name in signature else default
        return options.get(name, default)

    first_conv = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    channels = next((argument(n) for n in _INPUT_CHANNEL_ARGS if isinstance(argument(n), int)), None)
    channels = channels or (first_conv.in_channels if first_conv is not None else 3)
    window = argument('window_size')
    window = window if isinstance(window, int) else 1
    calls = {}

    def note(name):

        def hook(module, args, kwargs):
            value = first_tensor(args, kwargs)
            if value is not None:
                calls[name] = (tuple(value.shape), calls.get(name, (None, 0))[1] + 1)

        return hook

    parameter = next(network.parameters(), torch.zeros(0))
    failure = None
    training = network.training
    network.eval()
    for size in (16, 48, 64):  # most networks take any size; windows and strides want multiples
        size = -(-size // window) * window
        calls.clear()
        handles = [m.register_forward_pre_hook(note(n), with_kwargs=True) for n, m in network.named_modules() if n]
        try:
            with torch.no_grad():
                mean = network(parameter.new_zeros(1, channels, size, size))
            break
        except Exception as error:
            failure = error
        finally:
            for handle in handles:
                handle.remove()
    else:
        raise TapError(f'{type(network).__name__} cannot be run on a {channels}-channel image of 16, 48 or 64 '
                       f'pixels: {failure}') from failure
    network.train(training)
    if not isinstance(mean, Tensor) or mean.ndim != 4:
        got = tuple(mean.shape) if isinstance(mean, Tensor) else type(mean).__name__
        raise TapError(f'{type(network).__name__} cannot be the mean network: expected an image (N, C, H, W), '
                       f'got {got}')
    return dict(calls), (size, size), tuple(mean.shape)


def _is_feature_map(shape: tuple, mean: tuple) -> bool:
    return (len(shape) == 4 and mean[2] % max(shape[2], 1) == 0 and mean[3] % max(shape[3], 1) == 0
            and mean[2] // shape[2] == mean[3] // shape[3])


def choose_tap(name: str, network: nn.Module, tap: str | None, calls: dict, mean: tuple) -> str:
    modules = [n for n, _ in network.named_modules() if n]
    usable = [n for n in modules if n in calls and _is_feature_map(calls[n][0], mean)]
    # A deep network has thousands of modules; those near the top are the ones anyone would tap.
    shown = usable if len(usable) <= 60 else [n for n in usable if n.count('.') == 0]
    listing = f'Modules of {name} that can be tapped: {", ".join(shown)}'
    if len(shown) < len(usable):
        listing += f' (and {len(usable) - len(shown)} inside them)'
    if tap is None:
        tap = next((t for t in DEFAULT_TAPS.get(name, ()) if t in calls), None)
        if tap is None:
            raise TapError(f'tap: {name} has no default, name the module that upsamples. {listing}')
    if tap not in modules:
        close = difflib.get_close_matches(tap, modules, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ''
        raise TapError(f"tap: {name} has no module '{tap}'.{hint} {listing}")
    if tap not in calls:
        raise TapError(f"tap: the module '{tap}' of {name} is never given a tensor. {listing}")
    if tap not in usable:
        raise TapError(f"tap: the module '{tap}' of {name} reads {calls[tap][0]}, expected a feature map "
                       f"(N, C, h, w) whose size divides the image's {mean[2:]}. {listing}")
    return tap


def ratio(mean: tuple, size: tuple, what: str) -> int:
    ratios = {mean[2] / size[0], mean[3] / size[1]}
    ratio = ratios.pop()
    if ratios or ratio != int(ratio):
        raise TapError(f'{what} {tuple(size)} for an image of {tuple(mean[2:])}: expected one whole factor')
    return int(ratio)
