"""A network that restores the image and says, per pixel, how uncertain it is.

Ning et al., Uncertainty-Driven Loss for Single Image Super-Resolution, NeurIPS 2021, figure 2. What differs: the paper
builds the second branch into each network by hand; here any registered network is the backbone and stays as it is.
"""
import difflib
import inspect

import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

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


class _TapReached(Exception):
    """Ends a backbone's forward once the tap has its input: what follows is not needed."""


@ARCH_REGISTRY.register()
class UDLHead(nn.Module):
    """The uncertainty head of the UDL paper: nearest x scale, conv3x3 ELU, conv3x3 ELU, conv3x3 ELU.

    Since it ends in ELU, s > -1: nothing below a Laplace scale of e^-1 grey levels can be said.

    Args:
        num_in_ch (int): Channels of the tapped features.
        num_out_ch (int): Channels of s, those of the image.
        scale (int): From the tapped features' size to the image's.
        num_feat (int | None): Width of the two inner convolutions; None takes ``num_in_ch``, as the paper does.
    """

    def __init__(self, num_in_ch: int, num_out_ch: int, scale: int, num_feat: int | None = None):
        super().__init__()
        num_feat = num_feat or num_in_ch
        self.scale = scale
        self.conv1 = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.conv2 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv3 = nn.Conv2d(num_feat, num_out_ch, 3, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(N, num_in_ch, h, w) features to s, (N, num_out_ch, scale*h, scale*w), in 0-255 units, > -1."""
        if self.scale != 1:
            features = F.interpolate(features, scale_factor=self.scale, mode='nearest')
        return F.elu(self.conv3(F.elu(self.conv2(F.elu(self.conv1(features))))))


@ARCH_REGISTRY.register()
class UncertaintyNet(nn.Module):
    """Any super-resolution network together with an uncertainty head: ``(mean, log_scale)``.

    The head reads the input of one module of the backbone, the tap. (Its *input*, since many networks, BasicSR's EDSR
    among them, add in place to what a module has put out.) Sizes and channels are found by one run of the backbone on
    a small image when the network is built, not from names.

    Args:
        backbone (dict): ``{type: EDSR, ...}``, any network of ARCH_REGISTRY from (N, C, h, w) to (N, C, H, W).
        head (dict | None): ``{type: UDLHead, num_feat: 64}``; ``num_in_ch``, ``num_out_ch`` and ``scale`` are found.
        tap (str | None): Name of a module of the backbone, as in ``named_modules()``. None takes the known tap of EDSR,
            RCAN, MSRResNet, SwinIR and RRDBNet.

    Attributes:
        mean_network (nn.Module): The bare backbone, unchanged.
        head (nn.Module): Tapped features to s.
        scale (int): From the input's size to the image's.

    Raises:
        TapError: No such tap (the message lists those that exist), or a tap whose input is not a feature map.
    """

    def __init__(self, backbone: dict, head: dict | None = None, tap: str | None = None):
        super().__init__()
        self.mean_network = build_network(backbone)
        name = backbone['type']
        calls, lq_size, mean = _dry_run(self.mean_network, backbone)
        self.tap = _choose_tap(name, self.mean_network, tap, calls, mean)
        features, self._tap_calls = calls[self.tap]
        self.scale = _ratio(mean, lq_size, f'{name} puts out')
        self._kept = None
        self.head = build_network({
            'type': 'UDLHead',
            **(head or {}),
            'num_in_ch': features[1],
            'num_out_ch': mean[1],
            'scale': _ratio(mean, features[-2:], f"the tap '{self.tap}' of {name} reads"),
        })

    def forward(self, lq: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            lq (Tensor): (N, C, h, w), in [0, 1].

        Returns:
            tuple: mean (N, C, H, W) in [0, 1], and s (N, C, H, W), natural log of the Laplace scale in 0-255 units.
        """
        if self._kept is not None:
            self._kept.clear()
            mean, features = self.mean_network(lq), self._kept[-1]
        else:
            features, mean = self._run_backbone(lq, stop_at_tap=False)
        return mean, self._log_scale(features, lq)

    def log_scale(self, lq: Tensor) -> Tensor:
        """s alone, (N, C, H, W): the backbone stops at the tap, so its tail is never computed.

        Of a head that puts out something else (SigmaHead: sigma), s is what its ``to_log_scale`` makes of that.
        """
        features, _ = self._run_backbone(lq, stop_at_tap=True)
        to_log_scale = getattr(self.head, 'to_log_scale', None)
        out = self._log_scale(features, lq)
        return out if to_log_scale is None else to_log_scale(out)

    def keep_hook(self) -> 'UncertaintyNet':
        """Hooks the tap for good, for torch.compile, which knows only the hooks that are there when it traces."""
        self._kept = []
        tap = self.mean_network.get_submodule(self.tap)
        tap.register_forward_pre_hook(
            lambda _, args, kwargs: self._kept.append(_first_tensor(args, kwargs)), with_kwargs=True)
        return self

    def _log_scale(self, features: Tensor, lq: Tensor) -> Tensor:
        # Networks that pad inside put out more than scale * input and crop; so does s.
        height, width = (self.scale * size for size in lq.shape[-2:])
        return self.head(features)[..., :height, :width]

    def _run_backbone(self, lq: Tensor, stop_at_tap: bool) -> tuple[Tensor, Tensor | None]:
        tap = self.mean_network.get_submodule(self.tap)
        seen = []

        def hook(module, args, kwargs):
            if module is not tap:  # DataParallel's replicas share their hooks; each sees to its own module
                return
            seen.append(_first_tensor(args, kwargs))
            if stop_at_tap and len(seen) == self._tap_calls:
                raise _TapReached

        # Hooked for this call only: ``mean_network`` used alone must neither run the hook nor keep features alive.
        handle = tap.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            mean = self.mean_network(lq)
        except _TapReached:
            mean = None
        finally:
            handle.remove()
        return seen[-1], mean


def _first_tensor(args: tuple, kwargs: dict) -> Tensor | None:
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def _dry_run(network: nn.Module, options: dict) -> tuple[dict, tuple, tuple]:
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
            value = _first_tensor(args, kwargs)
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


def _choose_tap(name: str, network: nn.Module, tap: str | None, calls: dict, mean: tuple) -> str:
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


def _ratio(mean: tuple, size: tuple, what: str) -> int:
    ratios = {mean[2] / size[0], mean[3] / size[1]}
    ratio = ratios.pop()
    if ratios or ratio != int(ratio):
        raise TapError(f'{what} {tuple(size)} for an image of {tuple(mean[2:])}: expected one whole factor')
    return int(ratio)
