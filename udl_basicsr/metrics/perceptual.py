"""LPIPS (Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018)."""
import functools
from typing import Literal

import numpy as np
import torch
from basicsr.metrics.metric_util import reorder_image
from basicsr.utils.registry import METRIC_REGISTRY
from torch import nn


@functools.lru_cache(maxsize=4)
def _judge(net: str, version: str, weights_path: str | None, random_weights: bool) -> nn.Module:
    """Loaded once and kept: a validation asks for it at every image."""
    from udl_basicsr.losses.perceptual import build_lpips  # only where LPIPS is asked for

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    with torch.random.fork_rng():  # what training draws must not depend on whether it is validated
        judge = build_lpips(net=net, weights_path=weights_path, random_weights=random_weights, version=version)
    return judge.to(device).eval().requires_grad_(False)


@METRIC_REGISTRY.register()
def calculate_lpips(img: np.ndarray, img2: np.ndarray, crop_border: int = 0,
                    net: Literal['alex', 'vgg', 'squeeze'] = 'alex', version: Literal['0.0', '0.1'] = '0.1',
                    weights_path: str | None = None, random_weights: bool = False, input_order: str = 'HWC',
                    **kwargs) -> float:
    """LPIPS of two images, given to the network as RGB in [−1, 1]. Lower is better; not clipped.

    Args:
        img (ndarray): SR, (H, W, 3) in BGR as BasicSR has it, or (H, W) gray, in 0–255; order ``input_order``.
        img2 (ndarray): GT of the same shape.
        crop_border (int): Pixels left out at each edge; papers disagree, so state it.
        net (str): The network that judges: ``alex``, ``vgg`` or ``squeeze``. Values of one say nothing of another.
        version (str): Of the linear weights; ``0.1`` is the authors' current one.
        weights_path (str | None): Weights of the network's body; None: torch's usual cache, downloaded when missing.
        random_weights (bool): A judge that was never trained, for tests alone.
        input_order (str): ``HWC`` or ``CHW``.

    Returns:
        float: ≥ 0, 0 for equal images.

    Raises:
        ValueError: The sizes differ, or nothing is left without the border.
    """
    img, img2 = (reorder_image(np.asarray(a), input_order) for a in (img, img2))
    if img.shape != img2.shape:
        raise ValueError(f'expected two images of one size, got {img.shape} and {img2.shape}')
    height, width = img.shape[:2]
    if not 0 <= 2 * crop_border < min(height, width):
        raise ValueError(f'crop_border: {crop_border} leaves nothing of an image of {height}×{width}')
    judge = _judge(net, version, weights_path, random_weights)
    device = next(judge.parameters()).device

    def tensor(image: np.ndarray) -> torch.Tensor:
        image = image[crop_border:height - crop_border, crop_border:width - crop_border, ::-1]
        image = image.repeat(3 // image.shape[2], axis=2).transpose(2, 0, 1)  # gray: three equal channels
        return torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None].to(device) / 127.5 - 1

    with torch.no_grad():
        return float(judge(tensor(img), tensor(img2)))
