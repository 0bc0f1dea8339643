"""Stage 2 as the UDL authors published it, implemented anew: the reference that ours is measured against."""
from __future__ import annotations

from collections.abc import Mapping

import torch
from basicsr.archs import build_network
from torch import Tensor, nn
from torch.nn import functional as F

from udl_basicsr.archs import UDLHead, UncertaintyNet

LR = 1e-4


class PlainHead(nn.Module):
    """A UDLHead's layers computed as the paper draws them: upsample to the image's size, then three convolutions.

    Args:
        head (UDLHead): Its convolutions are shared, not copied.
    """

    def __init__(self, head: UDLHead):
        super().__init__()
        self.scale, self.conv1, self.conv2, self.conv3 = head.scale, head.conv1, head.conv2, head.conv3

    def forward(self, features: Tensor) -> Tensor:
        if self.scale > 1:
            features = F.interpolate(features, scale_factor=self.scale, mode='nearest')
        for conv in (self.conv1, self.conv2, self.conv3):
            features = F.elu(conv(features))
        return features


class TwoBranches(nn.Module):
    """A network as the UDL authors published it: image and uncertainty are both computed on every forward.

    Args:
        net (UncertaintyNet): Its modules are shared, not copied.
    """

    def __init__(self, net: UncertaintyNet):
        super().__init__()
        self.mean_network, self.var_conv = net.mean_network, PlainHead(net.head)
        self._tapped = None
        net.mean_network.get_submodule(net.tap).register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, args: tuple) -> None:
        self._tapped = args[0]

    def forward(self, lq: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.mean_network(lq)
        features, self._tapped = self._tapped, None
        return mean, self.var_conv(features)[..., :mean.shape[-2], :mean.shape[-1]]


class PublishedStage2:
    """Stage 2 as the UDL authors published it (github.com/QianNing0/UDL, edsr_two.py and trainer.py), in float32.

    Two whole networks: the frozen one computes its image for nothing, the trained one its uncertainty, whose
    activations are kept for a backward that never comes. Weight s - min s + 1, the minimum per image and channel. Every
    step reads the loss back, as theirs does to decide whether to skip it.

    Args:
        block (dict): Options of the UncertaintyNet.
        weights (dict): Its ``state_dict``, of stage 1.
        device (torch.device): Where to train.
    """

    def __init__(self, block: dict, weights: dict, device: torch.device):
        nets = [build_network(block) for _ in range(2)]
        for net in nets:
            net.load_state_dict(weights)
        self.device = device
        self.frozen, self.trained = (TwoBranches(net).to(device).train() for net in nets)
        self.optimizer_g = torch.optim.Adam([*self.frozen.parameters(), *self.trained.parameters()], LR)

    def step(self, data: Mapping[str, Tensor]) -> float:
        """One step on ``lq`` (N, C, h, w) and ``gt`` (N, C, H, W); returns the loss."""
        lq, gt = data['lq'].to(self.device), data['gt'].to(self.device)
        self.optimizer_g.zero_grad()
        with torch.no_grad():
            log_scale = self.frozen(lq)[1]
        mean = self.trained(lq)[0]
        weight = log_scale - log_scale.amin((-2, -1), keepdim=True) + 1
        loss = F.l1_loss(mean * weight, gt * weight)
        value = loss.item()
        loss.backward()
        self.optimizer_g.step()
        return value
