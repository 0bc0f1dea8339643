"""The gradient variance loss against references, and as printed and as released."""
import numpy as np
import pytest
import torch
from loss_checks import assert_value_and_gradient, images, tensors
from scipy import ndimage

from udl_basicsr.functional import losses as F
from udl_basicsr.losses import GradientVarianceLoss


def gradient_variance(pred, target, n, border='replicate', norm='mse', gray=(0.299, 0.587, 0.114)):
    """SciPy's Sobel filter, explicit loops over the patches."""
    mode = {'replicate': 'nearest', 'zeros': 'constant'}[border]
    maps = []
    for image in (pred, target):
        gray_image = image[:, 0] if image.shape[1] == 1 else np.tensordot(image, gray, axes=(1, 0))
        maps.append([[ndimage.sobel(one, axis=axis, mode=mode) for axis in (1, 0)] for one in gray_image])
    total, norms, count = 0, 0, 0
    for image_p, image_t in zip(*maps, strict=True):
        squares = np.zeros(2)
        for i in range(pred.shape[2] // n):
            for j in range(pred.shape[3] // n):
                patch = np.s_[i * n:(i + 1) * n, j * n:(j + 1) * n]
                squares += [(np.var(p[patch], ddof=1) - np.var(t[patch], ddof=1))**2
                            for p, t in zip(image_p, image_t, strict=True)]
                count += 1
        total += squares.sum()
        norms += np.sqrt(squares).sum()
    return total / count if norm == 'mse' else norms / len(pred)


@pytest.mark.parametrize(('shape', 'n'), [
    ((2, 3, 16, 24), 8),
    ((2, 1, 8, 12), 4),    # gray
    ((1, 3, 13, 11), 4),   # odd sizes, a remainder on both sides
    ((1, 3, 8, 8), 8),     # a patch as large as the image
    ((1, 1, 5, 9), 5),     # ... and a remainder on one side
    ((1, 3, 6, 7), 2),
])
def test_gradient_variance_value_and_gradient(shape, n):
    assert_value_and_gradient(GradientVarianceLoss(patch_size=n), lambda p, t: gradient_variance(p, t, n),
                              *images(shape, seed=n))


@pytest.mark.parametrize('norm', ['mse', 'l2'])
@pytest.mark.parametrize('border', ['replicate', 'zeros'])
def test_gradient_variance_as_released_and_as_printed(border, norm):
    loss = GradientVarianceLoss(patch_size=4, border=border, norm=norm, gray='released')
    assert_value_and_gradient(loss, lambda p, t: gradient_variance(p, t, 4, border, norm, (0.2989, 0.5870, 0.1140)),
                              *images((2, 3, 9, 12), seed=1))
    # eq. 2 is unsquared: the square of the range, not its fourth power; and no NaN where there is no difference
    pred, target = tensors((2, 3, 9, 12))
    grown = loss(255 * pred, 255 * target) / loss(pred, target)
    assert grown.item() == pytest.approx(255**(2 if norm == 'l2' else 4), rel=1e-10)
    pred.requires_grad_()
    out = loss(pred, pred.detach().clone())
    out.backward()
    assert out.item() == 0
    assert (pred.grad == 0).all()


def test_gradient_variance_as_the_released_program_computes_it():
    """Convolutions padded with zeros, unfold, torch.var, two mean squares."""
    pred, target = tensors((2, 3, 16, 24))
    weights = torch.tensor([0.2989, 0.5870, 0.1140], dtype=torch.float64).view(1, 3, 1, 1)
    sobel = torch.tensor([[-1., 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64)[None, None]

    def variances(image, kernel):
        maps = torch.nn.functional.conv2d((weights * image).sum(1, keepdim=True), kernel, padding=1)
        return torch.nn.functional.unfold(maps, 8, stride=8).var(dim=1)

    expected = sum(torch.nn.functional.mse_loss(variances(pred, kernel), variances(target, kernel))
                   for kernel in (sobel, sobel.mT))
    loss = GradientVarianceLoss(patch_size=8, border='zeros', norm='mse', gray='released')
    torch.testing.assert_close(loss(pred, target), expected, rtol=1e-12, atol=0)


def test_sobel_maps():
    image, _ = images((1, 1, 6, 7))
    for border, mode in (('replicate', 'nearest'), ('zeros', 'constant')):
        maps = F.sobel_maps(torch.tensor(image), border).numpy()
        np.testing.assert_allclose(maps[0, 0], ndimage.sobel(image[0, 0], axis=1, mode=mode), atol=1e-14)
        np.testing.assert_allclose(maps[0, 1], ndimage.sobel(image[0, 0], axis=0, mode=mode), atol=1e-14)
    assert F.sobel_maps(torch.full((1, 1, 4, 4), 0.7)).abs().max() < 1e-6  # a border is no edge
    assert F.sobel_maps(torch.full((1, 1, 4, 4), 0.7), 'zeros').abs().max() > 1


def test_luma_is_bt601():
    rgb = torch.eye(3, dtype=torch.float64).view(3, 3, 1, 1)  # pure red, green, blue
    np.testing.assert_allclose(F.luma(rgb).flatten(), [0.299, 0.587, 0.114])
    np.testing.assert_allclose(F.luma(rgb, 'released').flatten(), [0.2989, 0.5870, 0.1140])
    gray = torch.rand(1, 1, 2, 2)
    assert F.luma(gray) is gray


def test_gray_is_rgb_of_equal_channels():
    pred, target = tensors((2, 1, 16, 16))
    loss = GradientVarianceLoss()
    torch.testing.assert_close(loss(pred, target), loss(pred.repeat(1, 3, 1, 1), target.repeat(1, 3, 1, 1)))


def test_the_remainder_is_left_out():
    """9 rows of which patches of 4 fill 8: the ninth counts through the Sobel filter alone, an eleventh not at all."""
    pred, target = tensors((1, 1, 11, 8))
    pred.requires_grad_()
    GradientVarianceLoss(patch_size=4)(pred, target).backward()
    rows = pred.grad.abs().amax(dim=(0, 1, 3))
    assert (rows[:9] > 0).all()
    assert (rows[9:] == 0).all()


def test_gradient_variance_grows_with_the_fourth_power_of_the_range():
    pred, target = tensors()
    assert GradientVarianceLoss()(255 * pred, 255 * target).item() == pytest.approx(
        255**4 * GradientVarianceLoss()(pred, target).item(), rel=1e-10)


def test_gradient_variance_is_blind_to_brightness_and_ramps():
    """What a pixel loss has to stand beside it for."""
    pred, _ = tensors((1, 1, 16, 16))
    loss = GradientVarianceLoss(patch_size=4)
    assert loss(pred, pred + 0.3).item() < 1e-25
    assert loss(pred, pred).item() == 0
