"""Trainable loss weights: the formulas and the loss against independent ones."""
import math

import numpy as np
import pytest
import torch
from scipy import stats

from udl_basicsr.archs import TLWNet
from udl_basicsr.functional import tlw
from udl_basicsr.functional.tlw import fixed_sum
from udl_basicsr.losses import TLWLoss

# ------------------------------------------------------------------------------------------------------------- FixedSum

def fixed_sum_in_numpy(x: np.ndarray, k: float) -> np.ndarray:
    """Equation 5 for one channel, as it is printed."""
    n, s = x.size, x.sum()
    return x + (k * n - s) / (n - s) * (1 - x) if k * n > s else x * (k * n / s)


def jacobian_in_numpy(x: np.ndarray, k: float) -> np.ndarray:
    """Equation 6 for one channel: rows are outputs."""
    n, s, x = x.size, x.sum(), x.ravel()
    if k * n > s:
        return n * (1 - k) / (n - s) * (np.eye(n) - (1 - x)[:, None] / (n - s))
    return k * n / s * (np.eye(n) - x[:, None] / s)


@pytest.mark.parametrize('k', [0., 0.05, 0.3, 0.62, 0.9, 1.])
def test_fixed_sum(k):
    x = torch.rand(2, 3, 5, 7, dtype=torch.float64) ** torch.tensor([0.2, 1, 5]).view(3, 1, 1)  # high, middle, low sums
    y = fixed_sum(x, k)
    for image, result in zip(x.numpy().reshape(6, 5, 7), y.numpy().reshape(6, 5, 7), strict=True):
        np.testing.assert_allclose(result, fixed_sum_in_numpy(image, k), rtol=0, atol=1e-14)
    np.testing.assert_allclose(y.sum((2, 3)), k * 35, rtol=0, atol=1e-12)
    assert y.min() >= 0
    assert y.max() <= 1
    short = fixed_sum(x.float(), k)
    assert short.min() >= 0
    assert short.max() <= 1
    torch.testing.assert_close(short.double(), y, rtol=0, atol=1e-6)


@pytest.mark.parametrize('k', [0., 0.2, 0.5, 0.8, 1.])
def test_derivative_of_fixed_sum(k):
    x = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: fixed_sum(v[None, None], k), x)
    jacobian = torch.autograd.functional.jacobian(lambda v: fixed_sum(v, k), x).reshape(12, 12)
    np.testing.assert_allclose(jacobian, jacobian_in_numpy(x.detach().numpy(), k), rtol=0, atol=1e-13)


@pytest.mark.parametrize('value', [0., 1.])
@pytest.mark.parametrize('k', [0., 0.4, 1.])
@pytest.mark.parametrize('size', [1, 6])
def test_edges_of_fixed_sum(value, k, size):
    x = torch.full((1, 2, size, size), value, requires_grad=True)
    y = fixed_sum(x, k)
    torch.testing.assert_close(y, torch.full_like(y, k))
    y.square().sum().backward()
    assert x.grad.isfinite().all()


def test_fixed_sum_takes_a_k_for_each_image():
    x, k = torch.rand(3, 2, 4, 4), torch.tensor([0.1, 0.5, 0.9]).view(3, 1, 1, 1)
    one_by_one = [fixed_sum(image, float(mean)) for image, mean in zip(x, k, strict=True)]
    torch.testing.assert_close(fixed_sum(x, k), torch.stack(one_by_one))
    with pytest.raises(ValueError, match='k: expected'):
        fixed_sum(x, 1.2)


# ------------------------------------------------------------------------------------------------------------- formulas

@pytest.mark.parametrize('temperature', [0.1, 0.5, 2.])
@pytest.mark.parametrize('prob', [0.2, 0.5, 0.9])
def test_relaxed_bernoulli(prob, temperature):
    draws = tlw.relaxed_bernoulli(torch.full((100, 100), prob, dtype=torch.float64), temperature, 3).flatten()
    assert draws.min() >= 0
    assert draws.max() <= 1
    assert (draws > 0.5).double().mean().item() == pytest.approx(prob, abs=0.012)  # 5 standard deviations or more
    # the whole distribution: temperature * logit(w) - logit(prob) is logistic
    noise = temperature * torch.logit(draws, 1e-12).clamp(-25, 25) - math.log(prob / (1 - prob))
    inner = noise[(draws > 1e-9) & (draws < 1 - 1e-9)]
    if len(inner) == len(noise):
        assert stats.kstest(inner.numpy(), 'logistic').pvalue > 1e-4


def test_relaxed_bernoulli_is_differentiable_and_bears_certain_probabilities():
    prob = torch.tensor([0., 0.3, 1., 1 + 1e-7], requires_grad=True)
    draws = tlw.relaxed_bernoulli(prob, 0.5, 8)
    draws.sum().backward()
    assert prob.grad.isfinite().all()
    assert prob.grad[1] > 0
    assert (draws[:, 0] < 0.1).all()
    assert (draws[:, 2:] > 0.9).all()


def mean_square(pred, target):
    """A judge that can be computed by hand."""
    return (pred.unflatten(0, (-1, len(target))) - target).square().mean((2, 3, 4)).flatten()


def criterion(w, f, x, eps):
    return tlw.weight_criterion(*tlw.judged_distances(w, f, x, mean_square), eps)


def test_weight_criterion_by_hand():
    w, f, x = (torch.rand(*shape, 3, 4, 5, dtype=torch.float64) for shape in ((2, 6), (6, ), (6, )))
    wc = criterion(w, f, x, 0.01)
    assert wc.shape == (2, 6)
    for t in range(2):
        for n in range(6):
            a, b, c = w[t, n].numpy(), f[n].numpy(), x[n].numpy()
            over = np.mean((a * b + (1 - a) * c - c)**2) + 0.01
            under = np.mean(((1 - a) * b + a * c - c)**2) + 0.01
            assert wc[t, n].item() == pytest.approx(over / under, rel=1e-12)
    assert torch.autograd.gradcheck(lambda v: criterion(v, f[:1], x[:1], 0.01), w[:, :1].clone().requires_grad_())
    # w that holds all the error, none of it, and half of it
    error = torch.zeros(1, 3, 4, 5, dtype=torch.float64)
    error[..., :2] = 0.5
    for weights, expected in (((error > 0).double(), (0.1 + 0.01) / 0.01), (torch.ones_like(error), 0.11 / 0.01),
                              (torch.zeros_like(error), 0.01 / 0.11), (torch.full_like(error, 0.5), 1.)):
        assert criterion(weights[None], x[:1] + error, x[:1], 0.01).item() == pytest.approx(expected, rel=1e-12)


def test_schedule_of_k():
    for epoch, k in ((0, 0.3), (200, 0.6 * (1 - 1 / math.e) + 0.3), (10**6, 0.9)):
        assert tlw.k_schedule(epoch) == pytest.approx(k, abs=1e-12)
    loss = TLWLoss(k_start=0.5, k_gain=-0.2, k_tau=10, k_unit='iter')
    assert loss.k(10) == pytest.approx(0.5 - 0.2 * (1 - math.exp(-1)))
    assert TLWLoss(k_tau=100).k(100) == pytest.approx(0.6 * (1 - 1 / math.e) + 0.3)  # as released


def test_the_released_offset_in_its_unit():
    """The program adds 0.2 to errors of pixels in [-1, 1]; 0.1 does the same to those of pixels in [0, 1]."""
    pred, target = torch.rand(2, 1, 3, 4, 5, dtype=torch.float64)
    wide = (2 * target - 1) - (2 * pred - 1)
    torch.testing.assert_close(2 * tlw.pixel_error(pred, target, 'mse'), wide**2 / (wide.abs() + 0.2))


@pytest.mark.parametrize('form', ['sum', 'log_sum_exp'])
@pytest.mark.parametrize('base', ['l1', 'mse'])
@pytest.mark.parametrize('deterministic', [False, True])
def test_loss_by_hand(base, deterministic, form):
    """Both sides from one draw, as ``order: joint`` has them, against loops over images and samples."""
    loss = TLWLoss(2., base=base, samples=4, temperature=0.7, deterministic=deterministic, eps=0.02, form=form,
                   mse_offset=0.2)
    loss.judge = mean_square
    f = torch.rand(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    x = torch.rand_like(f)
    p = torch.rand_like(f).requires_grad_()
    torch.manual_seed(5)
    weighted, weighting, wc = loss(f, x, p)
    torch.manual_seed(5)
    w = p[None] if deterministic else tlw.relaxed_bernoulli(p, 0.7, 4)
    w = w.detach().numpy()

    def by_hand(f_now, held):
        """The SR network's loss of an image; ``held`` is the image that the weights were made for."""
        total, logs = 0., []
        for n in range(2):
            likelihood, probs = 0., 0.
            for t in range(len(w)):
                over = np.square(w[t, n] * (held[n] - x_[n])).mean()
                under = np.square((1 - w[t, n]) * (held[n] - x_[n])).mean() + 0.02
                logs.append(math.log((over + 0.02) / under))
                e = np.abs(f_now[n] - x_[n])
                pixel = w[t, n] * (e if base == 'l1' else e**2 / (np.abs(held[n] - x_[n]) + 0.2))
                if form == 'sum':
                    total += 2 * (over + 0.02) / under * pixel.sum() / f_now.size
                likelihood += over / under * math.exp(-pixel.mean())
                probs += over / under
            if form == 'log_sum_exp':
                total += -math.log(likelihood / probs)  # weight 2, two images
        return total, -np.mean(logs)

    f_, x_ = f.detach().numpy(), x.numpy()
    expected, logs = by_hand(f_, f_)
    assert weighted.item() == pytest.approx(expected, rel=1e-12)
    assert weighting.item() == pytest.approx(logs, rel=1e-12)
    assert not wc.requires_grad
    # each side has its own network
    assert torch.autograd.grad(weighted, p, retain_graph=True, allow_unused=True) == (None, )
    assert torch.autograd.grad(weighting, f, retain_graph=True, allow_unused=True) == (None, )
    assert torch.autograd.grad(weighting, p, retain_graph=True)[0].abs().sum() > 0
    # weights, WC and the divisor of the MSE are constants of the SR network's loss: finite differences with them held
    gradient, = torch.autograd.grad(weighted, f)
    for index in ((0, 0, 1, 2), (1, 2, 3, 4), (1, 0, 0, 0)):
        moved = [f_.copy(), f_.copy()]
        moved[0][index] += 1e-6
        moved[1][index] -= 1e-6
        slope = (by_hand(moved[0], f_)[0] - by_hand(moved[1], f_)[0]) / 2e-6
        assert gradient[index].item() == pytest.approx(slope, rel=1e-5)
    # one side at a time, as algorithm 1 has them
    torch.manual_seed(5)
    alone, wc_alone = loss.weighted_loss(f, x, p)
    torch.testing.assert_close((alone, wc_alone), (weighted, wc), rtol=1e-12, atol=0)
    assert torch.autograd.grad(alone, p, retain_graph=True, allow_unused=True) == (None, )
    torch.testing.assert_close(torch.autograd.grad(alone, f)[0], gradient, rtol=1e-12, atol=0)
    torch.manual_seed(5)
    alone, wc_alone = loss.weighting_loss(f, x, p)
    assert wc_alone.shape == (1, 2)
    assert alone.item() == pytest.approx(-wc_alone.log().mean().item(), rel=1e-12)
    assert torch.autograd.grad(alone, f, retain_graph=True, allow_unused=True) == (None, )
    assert torch.autograd.grad(alone, p)[0].abs().sum() > 0


@pytest.mark.parametrize(('given', 'offset'), [({}, 0.1), ({'mse_offset': 0.2}, 0.2)])
def test_weights_of_the_squared_error(given, offset):
    """Section III-C: w/(|x - f| + 0.1) in front of the square; 0.2 as released for weights that are drawn."""
    pred, target, w = torch.rand(3, 1, 3, 4, 5, dtype=torch.float64)
    loss = TLWLoss(base='mse', deterministic=True, **given)
    loss.judge = lambda images, of: torch.ones(len(images), dtype=images.dtype)  # WC = 1
    e = np.abs(target.numpy() - pred.numpy())
    assert loss.weighted_loss(pred, target, w)[0].item() == pytest.approx(
        (w.numpy() / (e + offset) * e**2).mean(), rel=1e-12)


def test_log_sum_exp_without_any_error():
    """All p_t are 0 where the judge sees no difference: 0, and no NaN."""
    loss = TLWLoss(form='log_sum_exp')
    loss.judge = mean_square
    target = torch.rand(2, 3, 4, 4)
    pred = target.clone().requires_grad_()
    weighted, _ = loss.weighted_loss(pred, target, torch.full_like(target, 0.5))
    weighted.backward()
    assert weighted.item() == pytest.approx(0, abs=1e-6)
    assert pred.grad.isfinite().all()


@pytest.mark.parametrize('wrong', [{'base': 'l2'}, {'judge': 'alexnet'}, {'k_unit': 'epochs'}, {'samples': 0},
                                   {'temperature': 0.}, {'eps': 0.}, {'k_tau': 0.}, {'k_start': 0.5}, {'k_gain': -0.4},
                                   {'order': 'both'}, {'form': 'mean'}, {'mse_offset': 0.}])
def test_arguments_of_the_loss(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TLWLoss(**wrong)


def test_a_loss_without_its_judge_says_so():
    image = torch.rand(1, 3, 32, 32)
    with pytest.raises(RuntimeError, match=r'call build_judge\(\) first'):
        TLWLoss()(image, image, image)


def test_weighting_network():
    net = TLWNet(num_in_ch=3, num_feat=8)
    kinds = [m for m in net.body if not isinstance(m, torch.nn.ReLU)]
    assert [m.kernel_size[0] for m in kinds if isinstance(m, torch.nn.Conv2d)] == [7, 5, 3, 3]
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in kinds) == 3
    gt, pred = torch.rand(2, 2, 3, 12, 14)
    for k in (0.3, torch.full((2, 1, 1, 1), 0.3)):
        w = net(gt, pred, k)
        assert w.shape == gt.shape
        torch.testing.assert_close(w.mean((2, 3)), torch.full((2, 3), 0.3))
    with torch.autocast('cpu', torch.bfloat16):
        assert net(gt, pred, 0.3).dtype == torch.float32
