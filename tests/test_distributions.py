"""What heads say: against SciPy's distributions in float64, and as a network answers it."""
import math

import pytest
import torch
from basicsr.archs.edsr_arch import EDSR
from scipy import integrate, stats

from udl_basicsr.archs import UncertaintyNet
from udl_basicsr.functional.distributions import DISTRIBUTIONS, QuantileDistribution
from udl_basicsr.functional.losses import scale_log_scale

LOG_SCALES = (-0.9, 0., 1.7)
SHAPES = (-0.95, 0., 0.6, 8.)  # beta 1.4, 1, 0.77, 0.54


def _raw(*maps):
    return torch.tensor([float(value) for value in maps], dtype=torch.float64).view(1, -1, 1, 1)


def _cases():
    for s in LOG_SCALES:
        yield 'laplace', _raw(s), stats.laplace(scale=math.exp(s))
        yield 'gaussian', _raw(s), stats.norm(scale=math.exp(s))
        for shape in SHAPES:
            beta = 2**(-shape / (1 + abs(shape)))
            alpha = math.exp(s) * math.gamma(1 / beta) / math.gamma(2 / beta)
            yield 'generalised_gaussian', _raw(s, shape), stats.gennorm(beta, scale=alpha)


@pytest.mark.parametrize(('name', 'raw', 'truth'), list(_cases()))
def test_scale_variance_and_interval_are_those_of_the_density(name, raw, truth):
    kind = DISTRIBUTIONS[name]()
    mean = 2 * integrate.quad(lambda x: x * truth.pdf(x), 0, truth.isf(1e-14), limit=400, epsabs=1e-11)[0]
    assert kind.scale(raw).item() == pytest.approx(mean, rel=2e-6)
    assert kind.log_scale(raw).item() == pytest.approx(math.log(mean), abs=2e-6)
    assert kind.variance(raw).item() == pytest.approx(truth.var(), rel=1e-8)
    for level in (0.1, 0.5, 0.9, 0.99):
        below, above = (value.item() for value in kind.interval(raw, level))
        assert truth.cdf(above) - truth.cdf(-below) == pytest.approx(level, abs=1e-9)
        assert below == above


@pytest.mark.parametrize('name', DISTRIBUTIONS)
def test_half_precision_holds_what_a_head_says(name):
    """float16 ends at 65504, the variance of a Laplace scale of 181 grey levels."""
    kind = DISTRIBUTIONS[name]()
    raw = torch.full((1, kind.maps, 1, 1), 5.5)
    kind.interval(raw.clone().requires_grad_(), 0.9)  # of a network that is not frozen
    for say in (kind.scale, kind.variance, lambda r: kind.interval(r, 0.9)[1]):
        assert say(raw.half()).item() == pytest.approx(say(raw.double()).item(), rel=1e-6)


def test_quantiles_are_what_was_trained_and_widen_as_a_laplace_density():
    kind, raw = QuantileDistribution(0.8), _raw(1.5, 4.)
    assert [value.item() for value in kind.interval(raw, 0.8)] == [2.5, 5.]
    laplace = stats.laplace()
    factor = laplace.interval(0.95)[1] / laplace.interval(0.8)[1]
    assert [value.item() for value in kind.interval(raw, 0.95)] == pytest.approx([2.5 * factor, 5 * factor])
    assert kind.scale(raw).item() == pytest.approx(3.75 / laplace.interval(0.8)[1])


@pytest.mark.parametrize(('name', 'least'), [  # E|x - f| in grey levels where ELU has come to -1
    ('laplace', math.exp(-1)), ('gaussian', math.exp(-1) * stats.halfnorm.mean()),
    ('generalised_gaussian', math.exp(-1)), ('quantile', 1 / 8)])
def test_the_floor_of_s_is_what_a_head_that_ends_in_elu_cannot_go_below(name, least):
    kind = DISTRIBUTIONS[name]()
    raw = torch.nn.functional.elu(torch.full((1, kind.maps, 2, 2), -50.))
    assert kind.floor == pytest.approx(kind.log_scale(raw).min().item(), abs=1e-6)
    assert kind.floor == pytest.approx(math.log(least), abs=0.1)


def test_one_empty_interval_leaves_the_weights_of_udl_what_they_were():
    """s - min s of quantiles: of all but one pixel the weight must still tell hard ones from easy ones."""
    kind, raw = QuantileDistribution(), torch.rand(1, 6, 8, 8, dtype=torch.float64) * 8
    raw[..., 0, 0] = -1.
    weight = scale_log_scale(kind.log_scale(raw))[..., 1:]
    theta = (1 + raw.unflatten(1, (2, 3)).mean(1)) / math.log(10)
    torch.testing.assert_close(weight, (theta.log() + 2)[..., 1:])
    assert weight.max() / weight.min() > 1.5


@pytest.mark.parametrize('level', [0., 1., -1., math.nan])
def test_a_level_that_is_none_is_refused(level):
    for kind in DISTRIBUTIONS.values():
        with pytest.raises(ValueError, match='level: expected a probability'):
            kind().interval(_raw(*[0.] * kind.maps), level)
    with pytest.raises(ValueError, match='level: expected a probability'):
        QuantileDistribution(level)


@pytest.mark.parametrize('name', DISTRIBUTIONS)
def test_a_network_answers_whatever_its_head_says(name):
    network = EDSR(num_in_ch=3, num_out_ch=3, num_feat=8, num_block=1, upscale=2)
    net_u = UncertaintyNet(network, {'type': 'UDLHead', 'distribution': name, 'level': 0.8}).eval()
    lq = torch.rand(1, 3, 8, 10)
    with torch.no_grad():
        mean, raw = net_u(lq)
        below, above = net_u.interval(lq, 0.8)
        s = net_u.log_scale(lq)
    assert raw.shape[1] == 3 * net_u.distribution.maps
    assert below.shape == above.shape == s.shape == mean.shape == (1, 3, 16, 20)
    assert (below > 0).all()
    assert (above > 0).all()
    torch.testing.assert_close(s.exp(), net_u.distribution.scale(raw))
    built = UncertaintyNet(network, net_u.head)  # a head that is built is measured by its own maps
    torch.testing.assert_close(built.log_scale(lq), s)


def test_bfloat16_is_read_in_single_precision():
    raw = torch.randn(1, 6, 4, 4)
    for kind in ('generalised_gaussian', 'quantile'):
        short = DISTRIBUTIONS[kind]().log_scale(raw.bfloat16())
        assert short.dtype == torch.float32
        torch.testing.assert_close(short, DISTRIBUTIONS[kind]().log_scale(raw.bfloat16().float()))
        assert short.isfinite().all()


def test_a_generalised_gaussian_head_passes_on_a_tenth_of_the_shapes_gradient():
    raw = torch.randn(1, 6, 3, 3, dtype=torch.float64, requires_grad=True)
    kind = DISTRIBUTIONS['generalised_gaussian']()
    passed_on = kind.learned(raw)
    assert torch.equal(passed_on, raw)
    gradient, = torch.autograd.grad(passed_on.square().sum(), raw)
    torch.testing.assert_close(gradient[:, :3], 2 * raw[:, :3])
    torch.testing.assert_close(gradient[:, 3:], 0.2 * raw[:, 3:])
    assert kind.learned(raw.detach()).grad_fn is None
