"""What a network costs to make one HR image of a given size: multiply-accumulate operations and run time.

The network is built anew from its block of an option file; what it costs does not depend on its weights.
"""
from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence

import torch
from basicsr.archs import build_network
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from udl_basicsr.archs.traits import size_multiple

from .printed import HR_SIZE


def count_macs(network: Mapping, scale: int, size: Sequence[int] = HR_SIZE, channels: int | None = None) -> int:
    """The multiply-accumulate operations of one HR image, by torch's own flop counter, which counts each as two flops.

    Convolutions, matrix products and attention count; sums and activations do not, as in the papers. Nothing is
    computed: network and image are on the device `meta`.

    Args:
        network: A block `network_g`, e.g. `{'type': 'EDSR', ...}`.
        scale: Upscaling factor.
        size: Height and width of the HR image; the LR image has them divided by the scale, rounded up
            to what the network takes.
        channels: Of the LR image; by default what its block says, or 3.

    Raises:
        Exception: What the network itself raises, where it cannot be built or run without memory.
    """
    with torch.device('meta'), torch.no_grad():
        net = build_network(dict(network)).eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, channels or _channels(network), *_low(size, scale, net, network)))
    return counter.get_total_flops() // 2


def run_time(network: Mapping, scale: int, size: Sequence[int] = HR_SIZE, repeats: int = 5,
             channels: int | None = None) -> float:
    """Milliseconds for one HR image in float32, on the GPU if there is one: the median of some runs after a first one.

    Args:
        network, scale, size, channels: See :func:`count_macs`.
        repeats: How many runs.
    """
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    net = build_network(dict(network)).eval().to(device)
    image = torch.rand(1, channels or _channels(network), *_low(size, scale, net, network), device=device)
    seconds = []
    with torch.no_grad():
        for _ in range(repeats + 1):
            started = time.perf_counter()
            net(image)
            if device.type == 'cuda':
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[1:])


def _low(size: Sequence[int], scale: int, net: nn.Module, block: Mapping) -> list[int]:
    multiple = size_multiple(type(net), block)
    return [math.ceil(side / scale / multiple) * multiple for side in size]


def _channels(network: Mapping) -> int:
    return int(network.get('num_in_ch', 3))


