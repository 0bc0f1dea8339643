"""The uncertainty head of Ning et al., Uncertainty-Driven Loss for Single Image Super-Resolution (NeurIPS 2021)."""
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from udl_basicsr.functional.distributions import DISTRIBUTIONS, QuantileDistribution
from udl_basicsr.functional.losses import check_choice
from udl_basicsr.utils import processor

from .upsampled_conv import upsampled_conv2d


@ARCH_REGISTRY.register()
class UDLHead(nn.Module):
    """The uncertainty head of UDL: nearest x scale as printed (figure 2); conv3x3 ELU, three times, as released.

    Since it ends in ELU, s >= -1: nothing below a Laplace scale of e^-1 grey levels can be said. That it may say more
    than a Laplace scale is ours: with another ``distribution`` its last convolution is as wide as that one's maps.

    Args:
        num_in_ch (int): Channels of the tapped features.
        num_out_ch (int): Channels of s, those of the image.
        scale (int): From the tapped features' size to the image's.
        num_feat (int | None): Width of the two inner convolutions; None takes ``num_in_ch``, as released.
        distribution (str): What is put out, and so which losses can train it; a name in
            :data:`~udl_basicsr.functional.distributions.DISTRIBUTIONS`: ``'laplace'``, ``'gaussian'``,
            ``'generalised_gaussian'`` or ``'quantile'``.
        level (float): Of ``'quantile'``: the share of the truth between the quantiles, as the loss has it.

    Raises:
        ValueError: Unknown ``distribution``, or a ``level`` that is no probability.

    Attributes:
        distribution (Distribution): How the output is read.
    """

    def __init__(self, num_in_ch: int, num_out_ch: int, scale: int, num_feat: int | None = None,
                 distribution: str = 'laplace', level: float = 0.9):
        super().__init__()
        check_choice('distribution', distribution, tuple(DISTRIBUTIONS))
        kind = DISTRIBUTIONS[distribution]
        self.distribution = kind(level) if kind is QuantileDistribution else kind()
        num_feat = num_feat or num_in_ch
        self.scale = scale
        self.conv1 = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.conv2 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv3 = nn.Conv2d(num_feat, kind.maps * num_out_ch, 3, 1, 1)
        processor.map_expm1()  # for ELU

    def forward(self, features: Tensor) -> Tensor:
        """(N, num_in_ch, h, w) features to s, (N, num_out_ch, scale*h, scale*w), in 0-255 units, >= -1.

        Or to the maps of another ``distribution``, (N, maps*num_out_ch, scale*h, scale*w).
        """
        memory_format = torch.contiguous_format
        if features.is_contiguous(memory_format=torch.channels_last):
            memory_format = torch.channels_last
        elif features.device.type == 'cpu':
            # On the CPU convolutions at the image's size are 1.3 times faster so, whatever the network around uses.
            features = features.contiguous(memory_format=torch.channels_last)
        log_scale = F.elu(self.conv3(_elu(self.conv2(self._first(features)))))
        return self.distribution.learned(log_scale).contiguous(memory_format=memory_format)

    def _first(self, features: Tensor) -> Tensor:
        # Measured on a CPU: at x4 computing on the small map is faster, below it is not, as the copying to pixels
        # costs what the multiplications save. Not measured on a GPU, where fewer bytes are moved as well.
        if self.scale >= 4:
            return upsampled_conv2d(features, self.conv1.weight, self.conv1.bias, self.scale, _elu)
        if self.scale > 1:
            features = F.interpolate(features, scale_factor=self.scale, mode='nearest')
        return _elu(self.conv1(features))


def _elu(features: Tensor) -> Tensor:
    """ELU of what nobody else reads, in its place: its slope is then found from its value v, as v + 1 below 0.

    In float32 that is the slope to 6e-8, without a second map to keep nor a second exponential. In shorter types v + 1
    is too coarse.
    """
    return F.elu(features, inplace=features.dtype in (torch.float32, torch.float64))
