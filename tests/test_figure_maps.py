"""The papers' maps against the losses and against OpenCV."""
import cv2
import numpy as np
import pytest
import torch
from figure_runs import disturbed, rgb, sobel

from udl_basicsr.functional import image_statistics as stats
from udl_basicsr.losses import UDLLoss
from udl_basicsr.losses.uncertainty_loss import WeightMapLoss


def gradient_of(loss, sr, gt, **more):
    """|dL/df| of mean(w |x − f|) summed is w where x ≠ f: what the loss really weights with, (H, W)."""
    pred = stats.to_tensor(sr).requires_grad_()
    loss(pred, stats.to_tensor(gt), **more).sum().backward()
    return pred.grad.abs()[0].mean(0).double().numpy()


@pytest.mark.parametrize(('scaling', 'offset', 'min_over'), [('linear', 0., 'image'), ('log', 1., 'channel'),
                                                             ('sqrt_exp', 0., 'image')])
def test_weight_maps_are_those_of_the_losses(scaling, offset, min_over):
    gt = rgb(3)
    sr, lq, s = disturbed(gt, 0), gt[::2, ::2].copy(), np.random.default_rng(1).uniform(-1, 4, gt.shape[:2])
    found = stats.weight_maps(sr, gt, lq, s, scaling, offset, min_over)
    how = {'scaling': scaling, 'offset': offset, 'min_over': min_over, 'reduction': 'none'}
    expected = {name: gradient_of(WeightMapLoss(weight_map=name, **how), sr, gt, lq=stats.to_tensor(lq))
                for name in WeightMapLoss.WEIGHT_MAPS}
    expected['uncertainty'] = gradient_of(UDLLoss(**how), sr, gt,
                                          log_scale=torch.from_numpy(s).float().expand(1, 3, -1, -1))
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        np.testing.assert_allclose(found[name], weight / weight.mean(), rtol=1e-5, atol=1e-7, err_msg=name)
        assert found[name].mean() == pytest.approx(1)


def test_weight_maps_refuse_and_bear_nothing():
    gt = rgb(3)
    found = stats.weight_maps(gt, gt, gt[::2, ::2], np.zeros((48, 64)))
    assert found['error'].max() == found['uncertainty'].max() == 0  # no error, a constant s: no weight, and no NaN
    with pytest.raises(ValueError, match='one size'):
        stats.weight_maps(gt, gt, gt[::2, ::2], np.zeros((48, 63)))
    with pytest.raises(ValueError, match='multiples'):
        stats.weight_maps(gt, gt, gt[:31, ::2], np.zeros((48, 64)))


def test_top_share():
    assert stats.top_share(np.full((10, 10), 3.)) == pytest.approx(0.1)
    one = np.zeros((10, 10))
    one[4, 4] = 2
    assert stats.top_share(one) == 1
    assert stats.top_share(np.arange(1., 101).reshape(10, 10)) == pytest.approx(sum(range(91, 101)) / 5050)
    assert stats.top_share(np.zeros((10, 10))) == 0.1


def test_stretch():
    values = np.arange(101.).reshape(1, -1)  # percentile p is p
    unit, low, high = stats.stretch(values)
    assert (low, high) == (1, 99)
    np.testing.assert_allclose(unit[0], [0, *((np.arange(1, 100) - 1) / 98), 1])
    np.testing.assert_allclose(stats.stretch(5 * values - 7)[0], unit)  # whatever the level
    assert stats.stretch(np.full((2, 2), 3.))[0].tolist() == [[0, 0], [0, 0]]


def test_patch_variances_against_opencv():
    image, n = rgb(5, 37, 53), 8
    gray = (image / 255.) @ [0.299, 0.587, 0.114]
    expected = []
    for dx, dy in ((1, 0), (0, 1)):
        sobel = cv2.Sobel(gray, cv2.CV_64F, dx, dy, ksize=3, borderType=cv2.BORDER_REPLICATE)
        expected += [sobel[r:r + n, c:c + n].var(ddof=1) for r in range(0, 32, n) for c in range(0, 48, n)]
    np.testing.assert_allclose(stats.patch_variances(image, n), expected, rtol=1e-4, atol=1e-9)


def test_gradients_against_opencv():
    image = rgb(5, 37, 53)
    np.testing.assert_allclose(stats.gradients(image), sobel(image, borderType=cv2.BORDER_REPLICATE), atol=1e-5)


def test_peaks():
    values = np.random.default_rng(0).exponential(1, 103)
    assert stats.peaks(values, 103).tolist() == values.tolist()
    found = stats.peaks(values, 10)  # three groups of 11, seven of 10
    assert found[0] == values[:11].max()
    assert found[-1] == values[-10:].max()
    assert found.max() == values.max()


def test_histogram_keeps_every_patch():
    values = np.concatenate([np.zeros(7), 10. ** np.random.default_rng(0).uniform(-9, 3, 500)])
    edges = np.logspace(-4, 1, 21)
    counts = stats.log_histogram(values, edges)
    assert counts.sum() == values.size
    assert counts[0] == (values < edges[1]).sum()
    assert counts[-1] == (values >= edges[-2]).sum()
    edges = stats.logarithmic_edges([values])
    assert edges[-1] >= values.max()
    np.testing.assert_allclose(np.diff(np.log10(edges)), 1 / 8)
    assert np.log10(edges[0]) == round(np.log10(edges[0]))
    assert len(stats.logarithmic_edges([np.zeros(3)])) == 2


def test_variance_ratio():
    gt = np.random.default_rng(0).exponential(1, 1000)
    at, ratio = stats.variance_ratio(np.append(np.where(gt > 1, 0.25, 0.5) * gt, 9), np.append(gt, 0), groups=5)
    assert (np.diff(at) > 0).all()
    np.testing.assert_allclose(ratio, np.where(at > 1, 0.25, 0.5))
    assert stats.variance_ratio(np.ones(3), np.zeros(3))[1].size == 0
