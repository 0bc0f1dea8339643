"""Values and gradients of losses against references in float64."""

import numpy as np
import torch

SHAPE = (2, 3, 13, 14)
WITH_SIGMA = ('SigmaLoss', 'TrainedExpectedL1Loss')


def images(shape=SHAPE, seed=0):
    generator = np.random.default_rng(seed)
    return generator.random(shape), generator.random(shape)


def tensors(shape=SHAPE, seed=0):
    return tuple(torch.tensor(image) for image in images(shape, seed))


def arguments(name, shape=SHAPE, seed=0):
    pred, target = tensors(shape, seed)
    return (pred, target, torch.rand_like(pred)) if name in WITH_SIGMA else (pred, target)


def numeric_gradient(value, image, at, step=1e-5):
    """Central differences of an independent NumPy function, at a few pixels."""
    result = []
    for index in at:
        moved = [image.copy(), image.copy()]
        moved[0][index] += step
        moved[1][index] -= step
        result.append((value(moved[0]) - value(moved[1])) / (2 * step))
    return np.array(result)


def assert_value_and_gradient(loss, reference, pred, target, seed=0):
    leaf = torch.tensor(pred, requires_grad=True)
    out = loss(leaf, torch.tensor(target))
    out.backward()
    assert out.dtype == torch.float64
    np.testing.assert_allclose(out.item(), reference(pred, target), rtol=1e-10)
    flat = np.random.default_rng(seed).choice(pred.size, 12, replace=False)
    at = [*zip(*np.unravel_index(flat, pred.shape), strict=True), (0, ) * 4, tuple(n - 1 for n in pred.shape)]
    expected = numeric_gradient(lambda p: reference(p, target), pred, at)
    np.testing.assert_allclose([leaf.grad[index].item() for index in at], expected, rtol=1e-5, atol=1e-9)
