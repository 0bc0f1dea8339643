"""A network that restores the image and says, per pixel, how uncertain it is.

Ning et al., Uncertainty-Driven Loss for Single Image Super-Resolution, NeurIPS 2021, figure 2. What differs: the paper
builds the second branch into each network by hand; here any registered network is the backbone and stays as it is.
"""
from typing import Any

import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from udl_basicsr.functional.distributions import Distribution, LaplaceDistribution
from udl_basicsr.functional.losses import DETACH, check_choice
from udl_basicsr.utils.text import first_line

from . import udl_head_arch  # noqa: F401  registers the head that is built when none is named
from .taps import Tap, TapError, find_tap, first_tensor


class _TapReached(Exception):
    """Ends a backbone's forward once the tap has its input: what follows is not needed."""


@ARCH_REGISTRY.register()
class UncertaintyNet(nn.Module):
    """Any super-resolution network together with an uncertainty head: ``(mean, log_scale)``.

    The head reads the input of one module of the backbone, the tap. (Its *input*, since many networks, BasicSR's EDSR
    among them, add in place to what a module has put out.) Sizes and channels are found by one run of the backbone on
    a small image when the network is built, not from names.

    Args:
        backbone (dict | nn.Module): ``{type: EDSR, ...}``, any network of ARCH_REGISTRY from (N, C, h, w) to
            (N, C, H, W); or such a network, built, which is taken as it is and not copied.
        head (dict | nn.Module | None): ``{type: UDLHead, num_feat: 64}``; ``num_in_ch``, ``num_out_ch`` and ``scale``
            are found, and others refused. Or a head, built: its input is the tapped features, and it has to put out s
            as large as the image, with as many channels.
        tap (str | None): Name of a module of the backbone, as in ``named_modules()``. None takes the backbone's own
            default: its class attribute ``default_tap``, a name or several of which the first that runs is taken. Our
            own networks and spandrel's have it; those of BasicSR's are in ``traits``.
        detach (str): With ``'features'`` and ``'all'`` no gradient goes from the head into the backbone, with
            ``'none'`` and ``'mean'`` it does. What goes into the image is the affair of the losses, whose ``detach``
            has the same names.
        freeze (bool): The backbone is a constant: its weights take no gradient, and it stays in eval mode.

    Attributes:
        mean_network (nn.Module): The bare backbone, unchanged.
        head (nn.Module): Tapped features to s.
        scale (int): From the input's size to the image's.

    Raises:
        TapError: No such tap (the message lists those that exist), or a tap whose input is not a feature map; or a
            head, built or not, that does not fit.
        TypeError: A backbone or a head that is neither.
        ValueError: Unknown ``detach``.

    Example:
        >>> import torch
        >>> from basicsr.archs.edsr_arch import EDSR
        >>> network = EDSR(num_in_ch=3, num_out_ch=3, num_feat=8, num_block=1, upscale=2)
        >>> mean, log_scale = UncertaintyNet(network)(torch.rand(1, 3, 8, 8))
        >>> tuple(log_scale.shape)
        (1, 3, 16, 16)
    """

    def __init__(self, backbone: dict | nn.Module, head: dict | nn.Module | None = None, tap: str | None = None,
                 detach: str = 'none', freeze: bool = False):
        super().__init__()
        check_choice('detach', detach, DETACH)
        for name, given in (('backbone', backbone), ('head', {} if head is None else head)):
            if not isinstance(given, (dict, nn.Module)):
                raise TypeError(f'{name}: expected {{type: ..., ...}} or a network, got {type(given).__name__}')
        built = isinstance(backbone, nn.Module)
        self.mean_network = backbone if built else build_network(backbone)
        self.detach, self.freeze = detach, freeze
        self._hooked, self._kept = False, []
        # What is random after this is what it would be without a head: the same noise, the same dropout.
        with torch.random.fork_rng(devices=[]):
            found = find_tap(self.mean_network, {'type': type(backbone).__name__} if built else backbone, tap)
            self.tap, self.scale, self._tap_calls = found.name, found.scale, found.calls
            self._tap_overwritten = found.overwritten
            if isinstance(head, nn.Module):
                _check_head(head, found, next(self.mean_network.parameters(), torch.zeros(0)))
                self.head = head
            else:
                sizes = {'num_in_ch': found.channels, 'num_out_ch': found.out_channels, 'scale': found.enlargement}
                for key, value in sizes.items():
                    if (asked := (head or {}).get(key, value)) != value:
                        raise TapError(f'head.{key}: {asked!r} is not what the network has at the tap {found.name!r}, '
                                       f'{value}: remove it')
                self.head = build_network({'type': 'UDLHead', **(head or {}), **sizes})
                if built and (weights := next(self.mean_network.parameters(), None)) is not None:
                    self.head.to(weights)  # the device and the type of the numbers
        if freeze:
            self.mean_network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> 'UncertaintyNet':
        """As of any network, but for a backbone that is frozen: batch norm would go on learning."""
        super().train(mode)
        if self.freeze:
            self.mean_network.eval()
        return self

    def forward(self, lq: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            lq (Tensor): (N, C, h, w), in [0, 1].

        Returns:
            tuple: mean (N, C, H, W) in [0, 1], and s (N, C, H, W), natural log of the Laplace scale in 0-255 units; or
                what else the head puts out, (N, maps*C, H, W).

        Raises:
            TapError: In training, a tap that runs without gradients though the head is to train the features.
        """
        if self._hooked and self.mean_network.training:
            self._kept.clear()
            mean, features = self.mean_network(lq), self._kept[-1]
            self._kept.clear()
        else:
            features, mean = self._run_backbone(lq, stop_at_tap=False)
        if self.detach in ('features', 'all'):
            features = features.detach()
        return mean, self._log_scale(features, lq)

    @property
    def distribution(self) -> Distribution:
        """How what the head puts out is read: the head's attribute ``distribution``, or else Laplace's."""
        return getattr(self.head, 'distribution', None) or LaplaceDistribution()

    def log_scale(self, lq: Tensor) -> Tensor:
        """s alone, (N, C, H, W), in 0-255 units: the backbone stops at the tap, so its tail is never computed."""
        return self.distribution.log_scale(self.head_output(lq))

    def variance(self, lq: Tensor) -> Tensor:
        """Of the truth around the image, (N, C, H, W), in 0-255 units squared; as :meth:`log_scale`, no tail."""
        return self.distribution.variance(self.head_output(lq))

    def interval(self, lq: Tensor, level: float) -> tuple[Tensor, Tensor]:
        """How far the truth may lie from the image: (below, above), each (N, C, H, W), >= 0, in 0-255 units.

        By what the head says, [mean - below, mean + above] holds the truth with probability ``level``; whether that is
        so only images can tell, and a calibration widens both by one factor. As :meth:`log_scale`, without the tail.
        """
        return self.distribution.interval(self.head_output(lq), level)

    def head_output(self, lq: Tensor) -> Tensor:
        """What ``distribution`` reads, (N, maps*C, H, W), without the backbone's tail.

        Of a head that puts out something else (SigmaHead: sigma), what its ``to_log_scale`` makes of that.
        """
        features, _ = self._run_backbone(lq, stop_at_tap=True)
        to_log_scale = getattr(self.head, 'to_log_scale', None)
        out = self._log_scale(features, lq)
        return out if to_log_scale is None else to_log_scale(out)

    def keep_hook(self) -> 'UncertaintyNet':
        """Hooks the tap for good, for torch.compile, which knows only the hooks that are there when it traces.

        In training alone: the mean network is validated by itself, and its features are then nobody's.
        """
        self._hooked, self._kept = True, []

        def keep(tap, args, kwargs):
            if tap.training:
                self._kept.append(self._features(args, kwargs))

        self.mean_network.get_submodule(self.tap).register_forward_pre_hook(keep, with_kwargs=True)
        return self

    def _features(self, args: tuple, kwargs: dict) -> Tensor | None:
        """What the tap is given, as it is at that moment: the head reads it when the backbone has ended."""
        features = first_tensor(args, kwargs)
        return features.clone() if self._tap_overwritten and features is not None else features

    def _log_scale(self, features: Tensor, lq: Tensor) -> Tensor:
        # Networks that pad inside put out more than scale * input and crop; so does s.
        height, width = (self.scale * size for size in lq.shape[-2:])
        return self.head(features)[..., :height, :width]

    def _run_backbone(self, lq: Tensor, stop_at_tap: bool) -> tuple[Tensor, Any]:
        """What the tap was given last, and the image, or None where the backbone stopped before it."""
        tap = self.mean_network.get_submodule(self.tap)
        seen = []
        trains = not stop_at_tap and self.training and self.detach in ('none', 'mean') and torch.is_grad_enabled()

        def hook(module, args, kwargs):
            if trains and not torch.is_grad_enabled():  # as torch's older way to checkpoint runs what it is given
                raise TapError(f'tap: {self.tap!r} of {type(self.mean_network).__name__} runs without gradients, as '
                               'within torch.utils.checkpoint(use_reentrant=True), so that the head could not train '
                               'the network. Name a module outside of it, do without checkpoints, or detach the '
                               'features')
            seen.append(self._features(args, kwargs))
            if stop_at_tap and len(seen) == self._tap_calls:
                raise _TapReached

        if getattr(tap, '_is_replica', False):
            # DataParallel's, one a thread, share the dictionaries of their hooks; here each gets its own.
            for hooks in ('_forward_pre_hooks', '_forward_pre_hooks_with_kwargs'):
                setattr(tap, hooks, getattr(tap, hooks).copy())
        # Hooked for this call only: ``mean_network`` used alone must neither run the hook nor keep features alive.
        handle = tap.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            mean = self.mean_network(lq)
        except _TapReached:
            mean = None
        finally:
            handle.remove()
        return seen[-1], mean


def _check_head(head: nn.Module, tap: Tap, like: Tensor) -> None:
    """Runs a built head on features of the tap's kind; nothing of it changes."""
    name, size = type(head).__name__, 8
    maps = getattr(getattr(head, 'distribution', None), 'maps', 1)
    expected = (1, maps * tap.out_channels, tap.enlargement * size, tap.enlargement * size)
    modes = [(module, module.training) for module in head.modules()]
    try:
        with torch.no_grad():
            out = head.eval()(like.new_zeros(1, tap.channels, size, size))
    except Exception as error:  # whatever a network says to what it cannot take
        raise TapError(f'head: {name} cannot read the {tap.channels} channels that the tap {tap.name!r} gives: '
                       f'{first_line(error)}') from error
    finally:
        for module, training in modes:
            module.training = training
    got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    if got != expected:
        raise TapError(f'head: {name} makes {got} of {(1, tap.channels, size, size)}, expected {expected}')
