"""Intervals with a promise: limits against their definitions, choices against loops, promises in simulation."""
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats

from udl_basicsr import functional as F
from udl_basicsr.functional.risk_control import FACTORS, THRESHOLDS

# ------------------------------------------------------------------------------------------------------------ limits


@pytest.mark.parametrize('alpha', [0.02, 0.05, 0.1, 0.3, 0.5])
@pytest.mark.parametrize('delta', [None, 0.05, 0.1, 0.4])
def test_the_fewest_images_are_those_of_the_formula(alpha, delta):
    """By their definitions: the first n of which images of risk 0 keep the promise."""
    def promises(n):
        if delta is None:
            return 1 / (n + 1) <= alpha + 1e-12
        return (1 - alpha)**n <= delta
    needed = F.images_needed(alpha, delta)
    assert promises(needed)
    assert needed == 1 or not promises(needed - 1)
    assert 0 <= F.risk_limit(needed, alpha, delta) < alpha
    if needed > 1:
        with pytest.raises(F.TooFewImagesError, match=f'at least {needed} images') as error:
            F.risk_limit(needed - 1, alpha, delta)
        assert error.value.needed == needed


def test_the_figures_that_are_known():
    assert (F.images_needed(0.1, 0.1), F.images_needed(0.1)) == (22, 9)
    assert F.risk_limit(9, 0.1) == pytest.approx(0, abs=1e-15)
    assert F.risk_limit(99, 0.1) == pytest.approx(0.1 - 0.9 / 99)


@pytest.mark.parametrize(('images', 'risk', 'alpha'), [
    (22, 0., 0.1), (70, 0.04, 0.1), (200, 0.0731, 0.1), (50, 0.2, 0.1)])
def test_the_bound_is_that_of_its_two_parts(images, risk, alpha):
    """Hoeffding's relative entropy and Bentkus's binomial by SciPy."""
    a = min(risk, alpha)
    entropy = scipy.stats.entropy([a, 1 - a], [alpha, 1 - alpha])
    bentkus = math.e * scipy.stats.binom.cdf(math.ceil(images * risk), images, alpha)
    assert F.hoeffding_bentkus(risk, images, alpha) == pytest.approx(min(math.exp(-images * entropy), bentkus, 1.))


@pytest.mark.parametrize(('images', 'alpha', 'delta'), [
    (22, 0.1, 0.1), (69, 0.1, 0.1), (400, 0.05, 0.01), (30, 0.3, 0.4)])
def test_the_limit_is_the_largest_risk_whose_bound_is_kept(images, alpha, delta):
    limit, grid = F.risk_limit(images, alpha, delta), np.linspace(0, alpha, 2001)
    good = grid[[F.hoeffding_bentkus(r, images, alpha) <= delta for r in grid]]
    assert good.max() == pytest.approx(limit, abs=alpha / 1000)


@pytest.mark.parametrize('value', [0., 1., -0.1, float('nan')])
def test_levels_that_are_none(value):
    with pytest.raises(ValueError, match='alpha: expected'):
        F.images_needed(value)
    with pytest.raises(ValueError, match='delta: expected'):
        F.images_needed(0.1, value)


# ----------------------------------------------------------------------------------------------------------- choices


@pytest.fixture
def images():
    """Twelve images: e and θ of 20×30 pixels, how well θ fits differing from image to image."""
    generator = np.random.default_rng(0)
    pairs = []
    for fit in generator.uniform(0.5, 3, 12):
        scale = np.exp(generator.uniform(-1, 3, (20, 30)))
        pairs.append((generator.exponential(fit * scale), scale))
    return pairs


def test_the_smallest_factor_is_that_of_a_loop_over_a_grid(images):
    limit = F.risk_limit(len(images), 0.1)
    found = F.smallest_factor([F.interval_risks(*pair) for pair in images], limit)

    def risk(factor):
        return np.mean([np.mean([e > factor * t for e, t in zip(error.flat, scale.flat, strict=True)])
                        for error, scale in images])
    number = np.flatnonzero(found == FACTORS)[0]
    assert risk(FACTORS[number]) <= limit < risk(FACTORS[number - 1])
    assert FACTORS[1] / FACTORS[0] == pytest.approx(1.001, rel=1e-5)
    assert F.smallest_factor([F.interval_risks(np.full(3, 1e9), np.ones(3))], 0.05) is None


def test_the_largest_mask_is_that_of_a_loop(images):
    limit, within, thresholds = 0.2, 4., THRESHOLDS[::8]
    found = F.largest_threshold([F.mask_risks(*pair, within, thresholds) for pair in images], limit, thresholds)

    def risk(error, scale, threshold):
        mask = scale <= threshold
        return (mask & (error > within)).sum() / max(mask.sum(), 0.01 * mask.size)
    # of each image the largest risk of its masks up to a threshold
    worst = [np.mean([max(risk(*pair, t) for t in thresholds[:i + 1]) for pair in images])
             for i in range(len(thresholds))]
    assert found == thresholds[np.flatnonzero(np.array(worst) <= limit)[-1]]
    assert thresholds[0] < found < thresholds[-1]
    assert F.largest_threshold([F.mask_risks(np.full((9, 9), 50.), np.full((9, 9), 0.2), 4.)], 0.1) > 0  # none so sure
    assert F.largest_threshold([F.mask_risks(np.full((9, 9), 50.), np.full((9, 9), 0.1), 4.)], 0.1) == 0


# ---------------------------------------------------------------------------------------------------------- promises


def simulation(trials: int, images: int):
    """Images of infinitely many pixels: e is exponential with mean c·θ, ln c ~ N(0, ½²), so the risk is exp(−λ/c)."""
    fits = np.exp(np.random.default_rng(0).normal(0, 0.5, (trials, images)))
    factors = np.geomspace(0.5, 30, 400)
    return fits, factors


def expected_risk(factor: float) -> float:
    return scipy.integrate.quad(lambda z: math.exp(-factor * math.exp(-z / 2)) * scipy.stats.norm.pdf(z), -9, 9)[0]


@pytest.mark.parametrize('images', [12, 40])
def test_crc_keeps_its_promise_and_gives_little_away(images):
    """The mean risk of the next image lies between α − 2/(n + 1) and α (Angelopoulos et al., theorems 1 and 2)."""
    trials, alpha = 1500, 0.1
    fits, factors = simulation(trials, images + 1)
    limit, risks = F.risk_limit(images, alpha), []
    for fit in fits:
        chosen = F.smallest_factor(np.exp(-factors / fit[:-1, None]), limit, factors)
        risks.append(math.exp(-chosen / fit[-1]))
    error = np.std(risks) / math.sqrt(trials)
    assert alpha - 2 / (images + 1) - 3 * error <= np.mean(risks) <= alpha + 3 * error


@pytest.mark.parametrize('images', [30, 60])
def test_rcps_keeps_its_promise(images):
    """Of 600 calibrations at most δ (and three standard errors) leave an expected risk above α."""
    trials, alpha, delta = 600, 0.1, 0.1
    fits, factors = simulation(trials, images)
    limit = F.risk_limit(images, alpha, delta)
    enough = scipy.optimize.brentq(lambda factor: expected_risk(factor) - alpha, 1, 10)
    failed = np.mean([F.smallest_factor(np.exp(-factors / fit[:, None]), limit, factors) < enough for fit in fits])
    assert failed <= delta + 3 * math.sqrt(delta * (1 - delta) / trials)


def test_a_factor_of_the_mean_alone_would_break_it():
    """What the limit is for: with α itself in its place RCPS's promise fails in about half of all calibrations."""
    fits, factors = simulation(200, 22)
    enough = scipy.optimize.brentq(lambda factor: expected_risk(factor) - 0.1, 1, 10)
    failed = np.mean([F.smallest_factor(np.exp(-factors / fit[:, None]), 0.1, factors) < enough for fit in fits])
    assert failed > 0.3
