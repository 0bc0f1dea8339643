"""LPIPS as a judge: frozen, with gradients to its inputs, and never a download.

Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, CVPR 2018. The package ``lpips``
brings the networks and its own linear weights; the ImageNet weights of the backbone are torchvision's.
"""
from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torchvision
from torch import Tensor, nn

from udl_basicsr.utils.checkpoints import CheckpointError, network_weights

if TYPE_CHECKING:
    import lpips

#: LPIPS' name of a backbone: torchvision's name, and the smallest side of an image that passes through all its layers.
_BACKBONES = {'alex': ('alexnet', 31), 'vgg': ('vgg16', 16), 'squeeze': ('squeezenet1_1', 17)}
NETS = tuple(_BACKBONES)
VERSIONS = ('0.1', '0.0')


class PerceptualDistance(nn.Module):
    """LPIPS of pairs of images; made by :func:`build_lpips`.

    The distances are those of ``lpips.LPIPS``. Its own ``forward`` is not used since its gradient is NaN wherever all
    features of a place are 0, and since it computes the features of the target anew for each image that is compared.

    Args:
        model (lpips.LPIPS): Network, linear layers and version.
        linear (bool): Whether the linear layers weight the channels of the features; ``False`` adds them up, as the
            package does with ``lpips=False``.
    """

    def __init__(self, model: lpips.LPIPS, linear: bool = True):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.linear = linear
        self.min_size = smallest_image(model.pnet_type)

    def train(self, mode: bool = True) -> PerceptualDistance:
        """Stays in eval mode: dropout would make the judge a random one."""
        return super().train(False)

    def _features(self, img: Tensor) -> list[Tensor]:
        if img.shape[1] == 1:
            img = img.expand(-1, 3, -1, -1)
        img = 2 * img.float() - 1
        if self.model.version == '0.1':  # version 0.0 was trained without this
            img = self.model.scaling_layer(img)
        maps = self.model.net(img)
        # As lpips.normalize_tensor, but for the derivative of a square root at 0.
        return [m / (m.square().sum(1, keepdim=True).clamp_min(1e-20).sqrt() + 1e-10) for m in maps]

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """
        Args:
            pred (Tensor): RGB (or gray) in [0, 1], (M, C, H, W); brought to the [-1, 1] that LPIPS wants here.
            target (Tensor): The same, (N, C, H, W), M a multiple of N: image m is compared with target m mod N.

        Returns:
            Tensor: (M, ), >= 0, float32 whatever the autocast.

        Raises:
            ValueError: Neither gray nor RGB, images too small for the backbone, or shapes that do not belong together.
        """
        if pred.shape[1:] != target.shape[1:] or len(pred) % len(target) or pred.shape[1] not in (1, 3):
            raise ValueError(f'expected RGB or gray images of one size, pred (M, C, H, W) and target (N, C, H, W) with '
                             f'M a multiple of N, got {tuple(pred.shape)} and {tuple(target.shape)}')
        if min(pred.shape[-2:]) < self.min_size:
            raise ValueError(f'LPIPS with {self.model.pnet_type} needs images of at least {self.min_size} pixels a '
                             f'side, got {tuple(pred.shape[-2:])}')
        distance = pred.new_zeros(len(pred), dtype=torch.float32)
        with torch.autocast(pred.device.type, enabled=False):
            for lin, a, b in zip(self.model.lins, self._features(pred), self._features(target), strict=True):
                difference = (a.unflatten(0, (-1, len(target))) - b).flatten(0, 1)
                square = difference.square()
                square = lin(square) if self.linear else square.sum(dim=1, keepdim=True)
                distance = distance + square.mean(dim=(1, 2, 3))
        return distance


def smallest_image(net: str) -> int:
    """The smallest side, in pixels, of the images that LPIPS with this backbone can compare."""
    return _BACKBONES[net][1]


def _weights_url(net: str) -> str:
    if net not in _BACKBONES:
        raise ValueError(f'net: expected one of {", ".join(NETS)}, got {net!r}')
    return torchvision.models.get_model_weights(_BACKBONES[net][0])['IMAGENET1K_V1'].url


def backbone_file(net: str = 'alex', weights_path: str | Path | None = None) -> Path:
    """Where the ImageNet weights of an LPIPS backbone should lie; arguments as for :func:`find_backbone_weights`."""
    name = _weights_url(net).rsplit('/', 1)[-1]
    return Path(weights_path).expanduser() if weights_path else Path(torch.hub.get_dir()) / 'checkpoints' / name


def find_backbone_weights(net: str = 'alex', weights_path: str | Path | None = None) -> Path:
    """The file with the ImageNet weights of an LPIPS backbone.

    Args:
        net (str): ``'alex'``, ``'vgg'`` or ``'squeeze'``.
        weights_path (str | Path | None): The file; None is torchvision's file in torch's cache.

    Raises:
        ValueError: Unknown ``net``.
        CheckpointError: It is not there; the message says which file to put where.
    """

    path, url = backbone_file(net, weights_path), _weights_url(net)
    if not path.is_file():
        raise CheckpointError(f'LPIPS ({net}) needs the ImageNet weights {url.rpartition("/")[2]}, and {path} is not '
                              f'there. Put the file there (from {url}), or name another place as its weights_path. '
                              'Nothing is downloaded by itself')
    return path


def build_lpips(net: str = 'alex', weights_path: str | Path | None = None, random_weights: bool = False,
                version: str = '0.1', linear: bool = True) -> PerceptualDistance:
    """LPIPS, frozen and in eval mode, on the CPU. Leaves the random state as it was.

    Args:
        net (str): The backbone: ``'alex'``, ``'vgg'`` or ``'squeeze'``.
        weights_path (str | Path | None): torchvision's ImageNet weights of the backbone; None looks in torch's cache.
        random_weights (bool): A random backbone instead, always the same one, for trials without weights. It is no
            measure of perception, which a warning in the log says.
        version (str): ``'0.1'``, or ``'0.0'`` with its known error of normalisation.
        linear (bool): With the linear layers that were learned from human judgements, or the plain sum of the channels.

    Raises:
        ValueError: Unknown ``net`` or ``version``.
        CheckpointError: The weights are missing or do not fit.
    """

    import lpips  # here: whoever has no judge need not wait for it

    if version not in VERSIONS:
        raise ValueError(f'version: expected one of {", ".join(VERSIONS)}, got {version!r}')
    if net not in _BACKBONES:
        raise ValueError(f'net: expected one of {", ".join(NETS)}, got {net!r}')
    path = None if random_weights else find_backbone_weights(net, weights_path)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.default_generator.manual_seed(0)  # torch.manual_seed would leave all GPUs at 0, in the midst of a step
        warnings.simplefilter('ignore')  # lpips calls torchvision with an argument that has been renamed
        # Without weights: lpips would fetch those of the backbone, and read its own without weights_only.
        model = lpips.LPIPS(pretrained=False, net=net, version=version, pnet_rand=True, verbose=False)
    model.load_state_dict(network_weights(Path(lpips.__file__).parent / 'weights' / f'v{version}' / f'{net}.pth', None),
                          strict=False)
    if path is None:
        logging.getLogger('basicsr').warning(
            f'LPIPS ({net}) has a random backbone, as random_weights asks for: its distances mean nothing to the eye.')
    else:
        weights = network_weights(path, None)
        # lpips cuts torchvision's `features` into slices that keep the numbers of the layers: slice2.3 is features.3
        renamed = {key: f'features.{key.split(".", 1)[1]}' for key in model.net.state_dict()}
        own = model.net.state_dict()
        wrong = [name for key, name in renamed.items() if name not in weights or weights[name].shape != own[key].shape]
        if wrong:
            raise CheckpointError(f"{path}: is no checkpoint of torchvision's {_BACKBONES[net][0]}; it lacks "
                                  f'{wrong[0]}, or has it in another shape')
        model.net.load_state_dict({key: weights[name] for key, name in renamed.items()})
    return PerceptualDistance(model, linear)
