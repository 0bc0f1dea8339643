"""Metrics against SciPy, brute force, closed forms and BasicSR's."""
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from basicsr.metrics import calculate_metric
from basicsr.metrics.metric_util import to_y_channel
from conftest import photograph

from udl_basicsr import functional as F
from udl_basicsr.functional.uncertainty import LEVELS
from udl_basicsr.metrics.fidelity import Fidelity, y_channel


@pytest.fixture
def drawn():
    """Laplace residuals r with scales θ, and f = 128."""
    generator = np.random.default_rng(0)
    scale = np.exp(generator.uniform(-1, 3, (100, 200)))
    return generator.laplace(scale=scale), scale


# ------------------------------------------------------------------------------------------------------------- formulas

def test_log_likelihoods_are_those_of_scipy(drawn):
    residual, scale = drawn
    e = np.abs(residual)
    laplace = scipy.stats.laplace.logpdf(residual + 128, loc=128, scale=scale)
    gaussian = scipy.stats.norm.logpdf(residual + 128, loc=128, scale=scipy.stats.laplace.std(scale=scale))
    assert F.laplace_log_likelihood(e, scale) == pytest.approx(laplace.mean(), rel=1e-12)
    assert F.predictive_log_likelihood(e, np.sqrt(2) * scale) == pytest.approx(gaussian.mean(), rel=1e-12)
    assert F.laplace_log_likelihood(e, scale) > max(F.laplace_log_likelihood(e, c * scale) for c in (0.8, 1.25))


def test_spearman_with_ties_is_that_of_scipy(drawn):
    residual, scale = drawn
    e = np.abs(residual)
    for error, theta in ((e, scale), (e.round(), scale), (e.round(), scale.round() + 1), (e, -e + e.max() + 1)):
        expected = scipy.stats.spearmanr(error.ravel(), theta.ravel()).statistic
        assert F.spearman(error, theta) == pytest.approx(expected, abs=1e-12)
    np.testing.assert_array_equal(F.average_ranks(e.round().ravel()), scipy.stats.rankdata(e.round().ravel()))


def brute_force(e, ranking, steps, power=1):
    """One pixel after the other, the most uncertain first."""
    left = sorted(zip(ranking, e, strict=True))
    curve = []
    for step in range(steps):
        while len(left) > len(e) - step * len(e) // steps:
            left.pop()
        curve.append((sum(x**power for _, x in left) / len(left))**(1 / power))
    return np.array(curve) / curve[0]


@pytest.mark.parametrize(('measure', 'power'), [('mae', 1), ('rmse', 2)])
def test_sparsification_is_that_of_a_loop(drawn, measure, power):
    residual, scale = (a.ravel()[:400] for a in drawn)
    e = np.abs(residual)
    by_scale, by_error = brute_force(e, scale, 20, power), brute_force(e, e, 20, power)
    np.testing.assert_allclose(F.sparsification_curve(e, scale, 20, measure), by_scale, rtol=1e-12)
    np.testing.assert_allclose(F.oracle_curve(e, 20, measure), by_error, rtol=1e-12)
    expected = scipy.integrate.trapezoid(by_scale - by_error, dx=1 / 20)
    assert F.ause(e, scale, 20, measure) == pytest.approx(expected, rel=1e-10)
    assert F.ause(e, e + 1e-9, 20, measure) == pytest.approx(0, abs=1e-12)
    assert F.ause(e, 1 / (e + 1e-9), 20, measure) > 1.5 * F.ause(e, np.ones_like(e), 20, measure) > 0


def test_ties_are_removed_in_random_order():
    """Against the mean over many orders; and a constant map is chance, whatever the order of the pixels."""
    generator = np.random.default_rng(0)
    e, scale = generator.exponential(size=40), generator.integers(1, 5, 40)
    orders = [brute_force(e, scale + 1e-6 * generator.random(40), 10) for _ in range(3000)]
    np.testing.assert_allclose(F.sparsification_curve(e, scale, 10), np.mean(orders, axis=0), atol=0.03)
    np.testing.assert_allclose(F.sparsification_curve(np.sort(e), np.ones(40)), 1)
    np.testing.assert_allclose(F.sparsification_curve(np.sort(e), np.ones(40), measure='rmse'), 1)


def test_calibration_of_known_distributions(drawn):
    residual, scale = drawn
    e = np.abs(residual)
    assert F.calibration_error(e, scale) < 0.01
    # an interval of a θ that is c times too large covers 1 − (1 − p)^c
    for c in (0.5, 2.):
        expected = 1 - (1 - LEVELS)**c
        np.testing.assert_allclose(F.calibration_curve(e, c * scale), expected, atol=0.015)
        assert F.calibration_error(e, c * scale) == pytest.approx(np.abs(expected - LEVELS).mean(), abs=0.01)
    loop = [np.mean([x <= -t * np.log(1 - p) for x, t in zip(e.flat, scale.flat, strict=True)]) for p in (0.1, 0.5)]
    np.testing.assert_allclose(F.calibration_curve(e, scale, np.array([0.1, 0.5])), loop, atol=1e-12)


def test_calibration_of_rounded_images():
    """θ near one grey level: what the rounding hides is counted by the share of ±e ± ½ within the interval."""
    generator = np.random.default_rng(0)
    scale = generator.uniform(0.7, 3, 40000)
    e = np.abs(np.round(generator.laplace(scale=scale)))
    assert (e == 0).mean() > 0.2
    assert 0.015 > F.calibration_error(e, scale, rounding=1.) < F.calibration_error(e, scale) / 3
    spread = np.abs(np.sign(generator.random(e.shape) - 0.5) * e[None] + generator.uniform(-0.5, 0.5, (50, e.size)))
    expected = F.calibration_curve(spread, np.broadcast_to(scale, spread.shape))
    np.testing.assert_allclose(F.calibration_curve(e, scale, rounding=1.), expected, atol=2e-3)


def test_recalibration_finds_the_factor(drawn):
    residual, scale = drawn
    e = np.abs(residual)
    for factor in (0.3, 1., 4.):
        assert F.recalibration_factor(e, scale / factor) == pytest.approx(factor, rel=0.02)
    wrong = scale**1.5  # no factor makes this right; the most likely one is found all the same
    best = F.recalibration_factor(e, wrong)
    grid = best * np.linspace(0.9, 1.1, 201)
    assert grid[np.argmax([F.laplace_log_likelihood(e, c * wrong) for c in grid])] == pytest.approx(best)


def test_sigma_psnr(drawn):
    residual, scale = drawn
    e = np.abs(residual)
    expected = 10 * np.log10(1 / np.mean((e / 255 - scale / 255)**2))  # in [0, 1] with peak 1
    assert F.sigma_psnr(e, scale) == pytest.approx(expected, rel=1e-12)
    assert F.sigma_psnr(np.full(3, 255.), np.full(3, 1e6)) == F.sigma_psnr(e + 1, e + 1) == float('inf')


def test_constant_maps_and_no_error():
    zero, one = np.zeros((4, 5)), np.ones((4, 5))
    e = np.arange(20.).reshape(4, 5)
    assert F.spearman(e, one) == F.spearman(zero, e + 1) == 0
    assert F.ause(zero, e + 1) == 0
    assert F.ause(e, one) > 0
    assert F.recalibration_factor(zero, one) == 0
    np.testing.assert_array_equal(F.calibration_curve(zero, one), 1)
    for function in (F.laplace_log_likelihood, F.ause, F.spearman, F.calibration_curve):
        for error, scale in ((e, zero), (e, one * np.nan), (-one, one), (e * np.inf, one), (e, one[0]), ([], [])):
            with pytest.raises(ValueError, match='expected'):
                function(error, scale)


# ------------------------------------------------------------------------------------------- PSNR and SSIM as BasicSR's

def test_y_is_basicsrs_for_each_colour():
    green, red = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    for blue in range(256):
        img = np.stack([np.full_like(green, blue), green, red], -1)
        assert np.array_equal(y_channel(img), to_y_channel(img)[..., 0]), blue


def fidelity_pairs():
    generator = np.random.default_rng(0)
    for size in ((11, 11), (12, 43), (48, 56), (97, 20)):  # 32 windows are a strip
        noise = generator.integers(0, 256, (2, *size, 3), np.uint8)
        flat = np.full((*size, 3), 200, np.uint8)
        img = photograph(1, *size)
        near = (img + generator.normal(0, 3, img.shape)).clip(0, 255).astype(np.uint8)
        yield from (noise, (flat, flat), (flat, flat // 2), (img, near), (img, img), (flat, noise[0]))


@pytest.mark.parametrize('border', [0, 1, 4])
def test_psnr_and_ssim_are_basicsrs(border):
    compared = 0
    for img, img2 in fidelity_pairs():
        fidelity = Fidelity(img, img2)
        if min(img.shape[:2]) - 2 * border < 11:  # no window: left to BasicSR
            assert fidelity({'type': 'calculate_ssim', 'crop_border': border, 'test_y_channel': True}) is None
            continue
        for name, tolerance in (('psnr', 0), ('ssim', 1e-10)):
            block = {'type': f'calculate_{name}', 'crop_border': border, 'test_y_channel': True, 'better': 'higher'}
            stock = calculate_metric({'img': img, 'img2': img2}, block)
            assert fidelity(block) == stock or abs(fidelity(block) - stock) <= tolerance, (name, img.shape)
            compared += 1
    assert compared >= 20


def test_other_metrics_and_images_are_left_to_basicsr():
    block = {'type': 'calculate_psnr', 'crop_border': 2, 'test_y_channel': True}
    img = photograph(1, 24, 30)
    assert Fidelity(img, img[::-1])(block) is not None
    for other in ({'type': 'calculate_niqe'}, {'test_y_channel': False}, {'input_order': 'CHW'}, {'crop_border': -1},
                  {'crop_border': None}, {'crop_border': 7}, {'type': 'calculate_psnr_pt'}, {'unknown': 1}):
        assert Fidelity(img, img[::-1])({**block, **other}) is None, other
    for images in ((img[..., 0], img[..., 0]), (img[..., :1], img[..., :1]), (img / 255, img / 255), (img, img[1:])):
        assert Fidelity(*images)(block) is None
