"""spandrel's super-resolution networks in BasicSR's ARCH_REGISTRY, under spandrel's names.

Code and state_dict keys are spandrel's (https://github.com/chaiNNer-org/spandrel), which took each network from its
authors' release: what is trained here, spandrel's loader reads. What differs is in the classes ``_*`` below: only what
keeps a network from being trained or from taking any image size. A name that is taken already (BasicSR's SwinIR and
RCAN) stays what it was; spandrel's is then ``SwinIR_spandrel``. ``udl_basicsr.register`` has these registered last,
when all others have their names.
"""
import functools
import importlib
import math
from typing import Any, NamedTuple

from basicsr.utils.registry import ARCH_REGISTRY, Registry
from torch import Tensor, nn
from torch.nn import functional as F

from .traits import SWIN

_VERSION = '0.4.2'  # the one that was tried


def _unused(module: Any) -> list[nn.Module]:
    kind = type(module).__name__
    if kind == 'Conv3XC':  # SPAN: of evaluation, computed anew from the others in each forward there
        return [module.eval_conv]
    if kind == 'ConvBlock' and not module.use_act:  # SwiftSRGAN
        return [module.act]
    if kind == 'SimplifiedDATBlock':  # FDAT: each kind of block has one of the two gates
        return [module.inter.sg if module.btype == 'spatial' else module.inter.cg]
    return []


class _Unused(nn.Module):
    """Freezes what no forward in training mode reads: parameters without a gradient stop DistributedDataParallel."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        for module in self.modules():
            for part in _unused(module):
                part.requires_grad_(False)


class _AnySize(nn.Module):
    """Pads images to the multiple that the network needs, and crops."""

    hyperparameters: dict[str, Any]

    def forward(self, x: Tensor) -> Tensor:
        options = self.hyperparameters
        multiple = math.lcm(*options['split_size']) if 'split_size' in options else options['window_size']
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, -width % multiple, 0, -height % multiple), 'replicate')
        image = super().forward(padded)
        scale = image.shape[-1] // padded.shape[-1]
        return image[..., :height * scale, :width * scale]


class _SeemoRe(nn.Module):
    """Evaluates its mixture of experts as in training, which is the same sum: the other way takes one image only."""

    def train(self, mode: bool = True) -> '_SeemoRe':
        super().train(mode)
        for module in self.modules():
            if type(module).__name__ == 'MoELayer':
                module.training = True
        return self


class _RCAN(nn.Module):
    """Leaves the image as it is given (spandrel's multiplies it in place) and the channels' means frozen."""

    sub_mean: nn.Module
    add_mean: nn.Module

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.sub_mean.requires_grad_(False)
        self.add_mean.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clone())


class Network(NamedTuple):
    """Where a network is found in spandrel, and what it needs here."""
    tap: str | tuple[str, ...]
    """Default tap of UncertaintyNet."""
    package: str = ''
    """Of ``spandrel.architectures``, where it is not called like the network."""
    repair: type | None = None
    """Put over spandrel's class."""


NETWORKS: dict[str, Network] = {
    'ATD': Network(SWIN),
    'CRAFT': Network('upsample'),
    'Compact': Network('body.-1'),
    'DAT': Network(SWIN, repair=_AnySize),
    'DCTLSA': Network('upsampler'),
    'DITN': Network('upsample'),
    'DRCT': Network(SWIN, repair=_AnySize),
    'ESRGAN': Network('model.2'),
    'FDAT': Network('upsampler', repair=_Unused),
    'GRL': Network(SWIN),
    'HAT': Network(SWIN),
    'IPT': Network('tail.0'),
    'MoESR': Network('upscale'),
    'MoSR': Network('upsampler'),
    'OmniSR': Network('up'),
    'PLKSR': Network('feats.-1'),
    'RCAN': Network('tail', repair=_RCAN),
    'RGT': Network(SWIN),
    'RealPLKSR': Network('feats.-1', package='PLKSR'),
    'SAFMN': Network('to_img'),
    'SPAN': Network('upsampler', repair=_Unused),
    'SeemoRe': Network('upsampler', repair=_SeemoRe),
    'SwiftSRGAN': Network('upsampler', repair=_Unused),
    'Swin2SR': Network(SWIN),
    'SwinIR': Network(SWIN),
}
_RESTORES = 'its image has the size of what goes in: it restores and does not super-resolve'
_FACES = 'it restores faces of one size with a generative prior, and does not super-resolve'
# Not registered, and why.
REFUSED: dict[str, str] = {
    **dict.fromkeys(('DRUNet', 'DnCNN', 'FBCNN', 'FFTformer', 'HVICIDNet', 'KBNet_l', 'KBNet_s', 'MixDehazeNet',
                     'NAFNet', 'RetinexFormer', 'SAFMNBCIE', 'SCUNet', 'Uformer'), _RESTORES),
    'AuraSR': 'it is the generator of a GAN: with each draw of its noise another image, so there is no mean to learn',
    'GFPGAN': _FACES,
    'LaMa': 'it fills in masked regions and does not super-resolve',
    'MMRealSR': 'spandrel has its inference form only, which makes degradation scores beside the image; those need '
                'losses of their own',
    'RealCUGAN': "its convolutions do not pad, so none of its feature maps lies on the image's grid",
    'RestoreFormer': _FACES,
}


class _Missing(nn.Module):
    """In the place of a network when there is no spandrel; says so when it is built, whatever its arguments."""
    reason: str

    def __init__(self, **options: Any):
        del options  # nobody can say which of them are right
        raise ImportError(self.reason)


@functools.cache
def _classes() -> dict[str, type[nn.Module]]:
    """A class for each of ``NETWORKS``: all of spandrel's, or where one of them cannot be had, none."""
    try:
        found = {name: getattr(importlib.import_module(f'spandrel.architectures.{network.package or name}'), name)
                 for name, network in NETWORKS.items()}
    except (ImportError, AttributeError) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == 'spandrel'
        state = 'is not installed' if missing else f'is older or newer than {_VERSION} ({error})'
        reason = f"it is one of spandrel's networks, and spandrel {state}: pip install 'spandrel>={_VERSION}'"
        return {name: type(name, (_Missing, ), {'reason': reason, '__module__': __name__}) for name in NETWORKS}
    return {name: type(name, (network.repair, found[name]) if network.repair else (found[name], ), {
        'default_tap': network.tap, '__module__': __name__,
        '__doc__': f'{name} of spandrel.\n\n{found[name].__doc__ or ""}'.strip(),
    }) for name, network in NETWORKS.items()}


def __getattr__(name: str) -> type[nn.Module]:
    # The classes by their names: for imports, and for pickle, which looks them up here.
    if name in NETWORKS:
        return _classes()[name]
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def register_spandrel(registry: Registry = ARCH_REGISTRY) -> dict[str, str]:
    """Registers all of spandrel's super-resolution networks, or none of them; a second call changes nothing.

    Where spandrel is missing or lacks one of them, each name holds a class that says so when it is built.

    Returns:
        dict[str, str]: The names in the registry by spandrel's names.

    Raises:
        ValueError: A name and its ``_spandrel`` are both taken; nothing has been registered then.
    """
    there, names = dict(list(registry)), {}
    for name, network in _classes().items():
        names[name] = next((n for n in (name, f'{name}_spandrel') if there.get(n, network) is network), None)
        if names[name] is None:
            raise ValueError(f'{name} and {name}_spandrel are both registered already, by {there[name].__module__} '
                             f'and {there[f"{name}_spandrel"].__module__}')
    for name, registered in names.items():
        if registered not in there:
            network = _classes()[name]
            registry.register(network) if registered == name else registry._do_register(name, network, 'spandrel')
    return names
