"""What the super-resolution networks of this package share: checked arguments, interpolation, He initialisation."""
from torch import Tensor, nn
from torch.nn import functional as F

SCALES = (2, 3, 4)


def check_arguments(name: str, upscale: int, *, multiple_of: int = 1, **counts: int) -> None:
    """Refuses sizes that a network cannot be built with, before any layer is.

    Args:
        name: The network, for the message.
        upscale: Must be one of SCALES.
        multiple_of: What ``counts['num_feat']`` must be a multiple of.
        **counts: Channels and layers, each a whole number from 1.

    Raises:
        ValueError: Names the argument, what was expected and what was given.
    """
    if type(upscale) is not int or upscale not in SCALES:
        raise ValueError(f'{name}: upscale: expected 2, 3 or 4, got {upscale!r}')
    for key, value in counts.items():
        if type(value) is not int or value < 1:
            raise ValueError(f'{name}: {key}: expected a whole number from 1, got {value!r}')
    if counts.get('num_feat', 0) % multiple_of:
        raise ValueError(f"{name}: num_feat: expected a multiple of {multiple_of}, got {counts['num_feat']}")


def check_same_channels(name: str, num_in_ch: int, num_out_ch: int) -> None:
    """Raises ValueError where a network that adds to its interpolated input is asked for other channels."""
    if num_in_ch != num_out_ch:
        raise ValueError(f'{name} adds what it computes to the interpolated input, so num_out_ch must be num_in_ch: '
                         f'got num_in_ch {num_in_ch} and num_out_ch {num_out_ch}')


def bicubic(lq: Tensor, scale: int) -> Tensor:
    """(N, C, h, w) to (N, C, scale*h, scale*w): torch's bicubic (a = -0.75; the papers' MATLAB has a = -0.5)."""
    size = (scale * lq.shape[2], scale * lq.shape[3])  # scale_factor makes the sizes floats in an exported graph
    return F.interpolate(lq, size, mode='bicubic', align_corners=False)


def start_bias(conv: nn.Conv2d | nn.ConvTranspose2d, value: float = 0.) -> None:
    """Sets the bias of a convolution, where it has one."""
    if conv.bias is not None:
        nn.init.constant_(conv.bias, value)


def he_init(network: nn.Module, negative_slope: float = 0.) -> None:
    """He et al., ICCV 2015: normal weights with the fan-in, no bias, for every convolution of ``network``."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, a=negative_slope)
            start_bias(module)
