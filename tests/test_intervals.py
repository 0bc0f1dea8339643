"""What intervals are worth: closed forms by quadrature, bins and strata by loops, pairs counted one by one."""
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from udl_basicsr import functional as F
from udl_basicsr.functional.densities import Density


@pytest.fixture
def drawn():
    """|residual| and θ of 30×40 values, θ 0.8 of what it should be."""
    generator = np.random.default_rng(0)
    scale = np.exp(generator.uniform(-1, 3, (30, 40)))
    return np.abs(generator.laplace(scale=scale / 0.8)), scale


@pytest.mark.parametrize(('error', 'scale'), [(0., 1.), (0.3, 2.), (7., 1.5), (2., 30.)])
@pytest.mark.parametrize(('crps', 'density'), [
    (F.laplace_crps, scipy.stats.laplace()), (F.gaussian_crps, scipy.stats.norm(scale=np.sqrt(np.pi / 2)))])
def test_crps_is_its_integral(crps, density, error, scale):
    below = scipy.integrate.quad(lambda t: density.cdf(t / scale)**2, -60 * scale, error, points=[0.], limit=200)[0]
    above = scipy.integrate.quad(lambda t: density.sf(t / scale)**2, error, error + 60 * scale, limit=200)[0]
    assert crps(np.array([error]), np.array([scale])) == pytest.approx(below + above, rel=1e-6)


def test_crps_is_least_for_the_truth(drawn):
    error, scale = drawn
    scores = [F.laplace_crps(error, c * scale) for c in (0.6, 0.8, 1 / 0.8, 2., 3.)]
    assert int(np.argmin(scores)) == 2
    assert F.laplace_crps(error, np.full_like(scale, 1e-9)) == pytest.approx(error.mean())


def test_intervals_against_loops(drawn):
    error, scale = drawn
    half = Density('laplace').half_width(scale, 0.1)
    assert scipy.stats.laplace(scale=scale[0, 0]).sf(half[0, 0]) * 2 == pytest.approx(0.1)
    values = list(zip(error.flat, half.flat, strict=True))
    assert F.coverage(error, half) == np.mean([e <= w for e, w in values])
    # of x above f + w; the score is symmetric
    score = [2 * w + 2 / 0.1 * (e - w) * (e > w) for e, w in values]
    assert F.interval_score(error, half) == pytest.approx(np.mean(score))
    assert F.interval_score(error, half / 0.8) < min(F.interval_score(error, half / 0.8 * c) for c in (0.7, 1.4))
    quarters = np.array_split(np.array([e > w for e, w in sorted(values, key=lambda pair: pair[1])]), 4)
    np.testing.assert_allclose(F.stratified_risks(error, half), [q.mean() for q in quarters])
    shares = [np.mean([error[i, j] <= half[i, j] for i in range(r, min(r + 16, 30)) for j in range(c, min(c + 16, 40))])
              for r in (0, 16) for c in (0, 16, 32)]
    np.testing.assert_allclose(F.coverage_map(error, half).ravel(), shares)
    colour = np.stack([error, error * 2, error * 0], axis=2), np.stack([half] * 3, axis=2)
    np.testing.assert_allclose(F.coverage_map(*colour), np.mean([F.coverage_map(a, half) for a in (
        error, error * 2, error * 0)], axis=0))


def test_an_interval_may_be_a_point():
    error, half = np.array([0., 1.]), np.zeros(2)
    assert F.coverage(error, half) == 0.5
    assert F.interval_score(error, half, 0.1) == pytest.approx(2 / 0.1 * 0.5)
    with pytest.raises(ValueError, match='half-widths of intervals, finite numbers ≥ 0'):
        F.coverage(error, -half - 1)


def test_groups_of_nothing_are_refused():
    for values, strata in ((3, 4), (3, 0)):
        with pytest.raises(ValueError, match=f'as there are values, 3, got {strata}'):
            F.stratified_risks(np.ones(values), np.ones(values), strata)


def test_what_rounding_hides_counts_in_part():
    assert F.coverage(np.array([0.]), np.array([0.25]), rounding=1.) == pytest.approx(0.5)
    assert F.coverage(np.array([3.]), np.array([2.75]), rounding=1.) == pytest.approx(0.25)
    assert F.coverage(np.array([3.]), np.array([2.4]), rounding=1.) == 0


def test_calibration_by_bins_against_a_loop(drawn):
    error, scale = drawn
    pairs = sorted(zip(scale.flat, error.flat, strict=True))
    gaps, squares = [], []
    for number in range(20):
        part = pairs[number * 60:(number + 1) * 60]
        variance, mse = (sum(x) / 60 for x in ([2 * t * t for t, _ in part], [e * e for _, e in part]))
        gaps.append(abs(mse**0.5 - variance**0.5) / variance**0.5)
        squares.append(abs(mse - variance))
    assert F.ence(error, scale) == pytest.approx(np.mean(gaps))
    assert F.uce(error, scale) == pytest.approx(np.mean(squares))
    with pytest.raises(ValueError, match='bins: expected at most'):
        F.ence(error[0, :9], scale[0, :9])


def test_strata_do_not_depend_on_the_side_of_the_truth():
    """Skewed residuals with their exact quantiles: the risk is 0.10 in every stratum, whether widths differ or not."""
    generator = np.random.default_rng(0)
    residual = generator.exponential(size=100_000) - 1
    low, high = -np.log([0.95, 0.05]) - 1
    assert -low < high / 2
    for scale in (np.ones(residual.size), np.exp(generator.uniform(0, 2, residual.size))):
        half = scale * np.where(residual > 0, high, -low)
        risks = F.stratified_risks(np.abs(scale * residual), half, width=scale * (high - low))
        np.testing.assert_allclose(risks, 0.1, atol=4 * np.sqrt(0.1 * 0.9 / 25_000))


def test_bins_of_a_calibrated_prediction():
    generator = np.random.default_rng(0)
    scale = np.exp(generator.uniform(0, 2, 200_000))
    error = np.abs(generator.laplace(scale=scale))
    assert F.ence(error, scale) < 0.02
    assert F.ence(error, scale / 2) == pytest.approx(1, abs=0.03)  # RMSE is twice what is said
    assert F.uce(error, 2 * scale) == pytest.approx(3 * np.mean(2 * scale**2), rel=0.02)


def test_bins_of_widths_hold_what_they_promise():
    """Calibrated intervals lie on the diagonal, in narrow bins too, where rounding hides most of the error."""
    generator = np.random.default_rng(0)
    scale = np.exp(generator.uniform(-2, 3, 200_000))
    half = Density('laplace').half_width(scale, 0.2)
    error = np.abs(generator.laplace(scale=scale))
    promised, observed = F.binned_widths(error, half, 0.2)
    order = np.argsort(half)
    np.testing.assert_allclose(promised, [half[part].mean() for part in np.array_split(order, 20)])
    shares = [(error[part] <= limit).mean() for part, limit in zip(np.array_split(order, 20), observed, strict=True)]
    np.testing.assert_allclose(shares, 0.8, atol=1e-3)
    np.testing.assert_allclose(observed, promised, rtol=0.05)
    rounded = error.round()
    widened = F.binned_widths(rounded, half, 0.2, rounding=1.)[1]
    exact = [F.coverage(rounded[part], np.full(len(part), limit), rounding=1.)
             for part, limit in zip(np.array_split(order, 20), widened, strict=True)]
    np.testing.assert_allclose(exact, 0.8, atol=0.01)
    assert widened.min() > 0


def test_aurg_and_ause_share_the_oracles_gain(drawn):
    error, scale = drawn
    for measure in ('mae', 'rmse'):
        gain = F.area_between(np.ones(100), F.oracle_curve(error, measure=measure))
        assert F.aurg(error, scale, measure=measure) + F.ause(error, scale, measure=measure) == pytest.approx(gain)
    assert F.aurg(error, scale) > 0 > F.aurg(error, 1 / scale)
    assert F.aurg(error, np.ones_like(scale)) == pytest.approx(0, abs=1e-12)


def test_auroc_counts_pairs():
    generator = np.random.default_rng(0)
    inliers, outliers = generator.integers(0, 9, 31), generator.integers(2, 12, 17)
    pairs = [(a < b) + 0.5 * (a == b) for a in inliers for b in outliers]
    assert F.auroc(inliers, outliers) == pytest.approx(np.mean(pairs))
    assert F.auroc([1., 2.], [3.]) == 1
    assert F.auroc([1., 2.], [1., 2.]) == 0.5
    with pytest.raises(ValueError, match='expected finite values'):
        F.auroc([], [1.])
