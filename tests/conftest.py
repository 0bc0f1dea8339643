"""Shared by all tests: fixed seeds, few threads, and a project folder with tiny images."""
import cv2
import numpy as np
import pytest
import torch

import udl_basicsr  # noqa: F401 - before any test imports basicsr, which needs its torchvision shim


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    np.random.seed(0)


def photograph(seed: int, height: int, width: int) -> np.ndarray:
    """A smooth random image with edges, uint8 BGR: something a network can learn on in seconds."""
    generator = np.random.default_rng(seed)
    coarse = generator.random((height // 8 + 1, width // 8 + 1, 3)).astype(np.float32)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    stripes = (np.add.outer(np.arange(height), np.arange(width)) // 5 % 2)[..., None]
    return ((0.7 * image + 0.3 * stripes).clip(0, 1) * 255).round().astype(np.uint8)


@pytest.fixture(scope='session')
def pairs(tmp_path_factory):
    """A folder with ``train/{gt,lq}`` (6 pairs) and ``val/{gt,lq}`` (3 pairs) at x2; GT is 48x56."""
    root = tmp_path_factory.mktemp('pairs')
    for split, count in (('train', 6), ('val', 3)):
        for kind in ('gt', 'lq'):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            gt = photograph(number + 100 * (split == 'val'), 48, 56)
            lq = cv2.resize(gt, (28, 24), interpolation=cv2.INTER_AREA)
            cv2.imwrite(str(root / split / 'gt' / f'{number}.png'), gt)
            cv2.imwrite(str(root / split / 'lq' / f'{number}.png'), lq)
    return root
