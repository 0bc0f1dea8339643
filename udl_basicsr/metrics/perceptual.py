"""LPIPS (Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, CVPR 2018)."""
import contextlib
import functools
import threading
from typing import Literal

import numpy as np
import torch
from basicsr.metrics.metric_util import reorder_image
from basicsr.utils.registry import METRIC_REGISTRY
from torch import nn

from udl_basicsr.losses.perceptual import build_lpips
from udl_basicsr.utils.kernels import exact_kernels

from .facts import states
from .uncertainty import inner

_LOCK = threading.Lock()
"""Images are measured in several threads: one judge for all, and on a GPU, where its features take memory, one call."""


@functools.lru_cache(maxsize=4)
def _judge(net: str, version: str, weights_path: str | None, random_weights: bool, device: str) -> nn.Module:
    """Loaded once and kept: a validation asks for it at every image."""
    return build_lpips(net=net, weights_path=weights_path, random_weights=random_weights, version=version).to(device)


@METRIC_REGISTRY.register()
@states(higher_is_better=False)
def calculate_lpips(img: np.ndarray, img2: np.ndarray, crop_border: int = 0,
                    net: Literal['alex', 'vgg', 'squeeze'] = 'alex', version: str | float = '0.1',
                    weights_path: str | None = None, random_weights: bool = False, input_order: str = 'HWC',
                    device: str | None = None, **kwargs) -> float:
    """LPIPS of two images, which the network is given as RGB in [−1, 1].

    Args:
        img (ndarray): SR, (H, W, 3) in BGR as BasicSR has it, or (H, W) gray, in 0–255; order ``input_order``.
        img2 (ndarray): GT of the same shape.
        crop_border (int): Pixels left out at each edge; papers disagree, so state it.
        net (str): The network that judges: ``alex``, ``vgg`` or ``squeeze``. Values of one say nothing of another.
        version (str | float): ``0.1``, or ``0.0`` with its known error of normalisation.
        weights_path (str | None): The network's ImageNet weights, a file of torchvision; None: torch's cache.
        random_weights (bool): A judge that was never trained, for trials alone.
        input_order (str): ``HWC`` or ``CHW``.
        device (str | None): Where the network judges; None: a GPU where there is one, and in a validation or test that
            of the model.

    Returns:
        float: ≥ 0, 0 for equal images.

    Raises:
        ValueError: The sizes differ, or too little is left without the border.
        CheckpointError: The weights are missing; it says which file to put where.
    """
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    with _LOCK:
        judge = _judge(net, str(version), weights_path, random_weights, device)

    def tensor(image: np.ndarray) -> torch.Tensor:
        rgb = inner(reorder_image(np.asarray(image), input_order), crop_border)[..., ::-1]
        return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1), dtype=np.float32))[None].to(device) / 255

    alone = contextlib.nullcontext() if device == 'cpu' else _LOCK
    with alone, exact_kernels(), torch.no_grad():
        return judge(tensor(img), tensor(img2)).item()
