"""beta-NLL, generalised Gaussian, quantiles and UEO: SciPy's densities, finite differences, limits and minimisers."""
import math

import numpy as np
import pytest
import torch
from scipy import stats

from udl_basicsr.functional import likelihoods as L
from udl_basicsr.functional import tlw
from udl_basicsr.functional.distributions import GeneralisedGaussianDistribution
from udl_basicsr.losses import (
    BetaNLLLoss,
    ESULoss,
    EULoss,
    GaussianNLLLoss,
    GeneralisedGaussianLoss,
    QuantileLoss,
    UEOLoss,
)


def images(channels: int = 1, seed: int = 0):
    """f, x and what a head says, in float64; no error is near 0, where slopes jump."""
    generator = torch.Generator().manual_seed(seed)
    pred = torch.rand(2, 3, 20, 20, generator=generator, dtype=torch.float64)
    sign = torch.randint(0, 2, pred.shape, generator=generator) * 2 - 1
    target = pred + sign * (0.01 + 0.05 * torch.rand(pred.shape, generator=generator, dtype=torch.float64))
    raw = torch.randn(2, 3 * channels, 20, 20, generator=generator, dtype=torch.float64).clamp(-0.9, 3)
    return pred, target, raw


def shape_of(beta: float) -> float:
    """The second map that says beta."""
    power = -math.log2(beta)
    return power / (1 - abs(power)) if abs(power) < 1 else math.copysign(1e300, power)


LOSSES = {'beta': BetaNLLLoss(beta=0.5), 'generalised': GeneralisedGaussianLoss(), 'quantile': QuantileLoss(level=0.8)}


@pytest.mark.parametrize('name', LOSSES)
def test_gradients_are_those_of_finite_differences(name):
    loss = LOSSES[name]
    pred, target, raw = images(1 if name == 'beta' else 2)
    variables = [pred[..., :2, :2].clone().requires_grad_(), raw[..., :2, :2].clone().requires_grad_()]
    target = target[..., :2, :2]
    if name == 'beta':  # whose weight is a constant: the gradient is that of EU times theta^beta
        weight = (0.5 * variables[1]).exp().detach()
        reference = (weight * EULoss(reduction='none')(variables[0], target, variables[1])).mean()
        expected = torch.autograd.grad(reference, variables)
        for got, wanted in zip(torch.autograd.grad(loss(variables[0], target, variables[1]), variables), expected,
                               strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0)
        return
    assert torch.autograd.gradcheck(lambda f, s: loss(f, target, s), variables, eps=1e-7, atol=1e-5, rtol=1e-5)


def test_beta_nll_is_eu_at_0_and_l1_for_the_image_at_1():
    pred, target, raw = images()
    torch.testing.assert_close(BetaNLLLoss(beta=0.)(pred, target, raw), EULoss()(pred, target, raw), rtol=0, atol=0)
    pred.requires_grad_()
    gradient, = torch.autograd.grad(BetaNLLLoss(beta=1.)(pred, target, raw), pred)
    l1, = torch.autograd.grad(255 * (target - pred).abs().mean(), pred)
    torch.testing.assert_close(gradient, l1, rtol=1e-12, atol=0)
    fidelity, log_term = L.beta_nll_terms(torch.tensor(3.), torch.tensor(0.7), 0.5)
    assert (fidelity + log_term).item() == pytest.approx(math.exp(0.35) * (3 * math.exp(-0.7) + 0.7))


@pytest.mark.parametrize('beta', [0.6, 1., 1.4, 2.])
def test_generalised_gaussian_is_scipys_density(beta):
    pred, target, _ = images()
    s = torch.full_like(pred, 1.2)
    alpha = math.exp(1.2) * math.gamma(1 / beta) / math.gamma(2 / beta)
    raw = torch.cat((s, torch.full_like(pred, shape_of(beta))), dim=1)
    loss = GeneralisedGaussianLoss(reduction='none')(pred, target, raw)
    density = stats.gennorm(beta, scale=alpha).logpdf(255 * (target - pred).numpy())
    np.testing.assert_allclose(loss.numpy(), -density - math.log(2), rtol=1e-9)
    if beta == 1:
        torch.testing.assert_close(loss, EULoss(reduction='none')(pred, target, s), rtol=1e-9, atol=1e-9)
    if beta == 2:  # alpha = sqrt(2) sigma
        gauss = GaussianNLLLoss(reduction='none')(pred, target, torch.full_like(s, math.log(alpha / math.sqrt(2))))
        torch.testing.assert_close(loss - gauss, torch.full_like(loss, 0.5 * math.log(math.pi / 2)), rtol=1e-9,
                                   atol=1e-9)


def test_generalised_gaussian_finds_the_shape_it_was_drawn_from():
    error = torch.from_numpy(np.abs(stats.gennorm(0.7, scale=2.).rvs(200_000, random_state=0))).view(1, 1, -1, 1)
    raw = torch.zeros(1, 2, 1, 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([raw], max_iter=60, line_search_fn='strong_wolfe')

    def closure():
        optimizer.zero_grad()
        loss = sum(L.generalised_gaussian_nll_terms(error, raw)).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    log_alpha, beta = GeneralisedGaussianDistribution.parameters(raw.detach())
    assert beta.item() == pytest.approx(0.7, rel=0.02)
    assert log_alpha.exp().item() == pytest.approx(2., rel=0.03)


def test_no_error_at_all_gives_finite_gradients_whatever_the_shape():
    pred = torch.zeros(1, 1, 1, 3, requires_grad=True)
    raw = torch.tensor([0., 0., 0., -0.9, 0., 3.]).view(1, 2, 1, 3).requires_grad_()
    gradients = torch.autograd.grad(GeneralisedGaussianLoss()(pred, torch.zeros_like(pred), raw), (pred, raw))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize('level', [0.5, 0.9])
def test_the_least_pinball_loss_is_at_the_empirical_quantiles(level):
    residual = torch.from_numpy(stats.skewnorm(4, loc=-1).rvs(2001, random_state=1))
    grid = torch.linspace(-1, 6, 7001, dtype=torch.float64)
    for index, quantile in ((0, (1 - level) / 2), (1, (1 + level) / 2)):
        raw = grid.expand(2, -1).clone().view(1, 2, -1, 1)
        # one residual after the other, so that memory stays small
        losses = sum(L.quantile_terms(r.expand(1, 1, 7001, 1), raw, level)[index].view(-1) for r in residual)
        best = 1 + grid[losses.argmin()].item()
        assert (-best if index == 0 else best) == pytest.approx(np.quantile(residual, quantile), abs=0.01)
    assert L.pinball(torch.tensor([2., -2.]), 0.9).tolist() == pytest.approx([1.8, 0.2])


def test_detach_mean_keeps_the_value_and_takes_the_gradient():
    for loss, maps in ((BetaNLLLoss, 1), (GeneralisedGaussianLoss, 2), (QuantileLoss, 2)):
        pred, target, raw = images(maps)
        pred.requires_grad_()
        raw.requires_grad_()
        held, free = loss(detach='mean')(pred, target, raw), loss()(pred, target, raw)
        assert held.item() == free.item()
        assert torch.autograd.grad(held, pred, allow_unused=True, retain_graph=True) == (None, )
        torch.testing.assert_close(*(torch.autograd.grad(value, raw)[0] for value in (held, free)), rtol=0, atol=0)


def test_ueo_is_esu_and_the_log_ratio_of_the_judge():
    pred, target, raw = (value.float() for value in images())
    raw.requires_grad_()
    loss = UEOLoss(judge='vgg', judge_random=True, judge_weight=0.3, k=0.4, samples=2)
    torch.manual_seed(5)
    terms = loss.terms(pred, target, raw)
    torch.testing.assert_close(terms[0] + terms[1], ESULoss()(pred, target, raw))
    # eq. 4 written out: the images with the chosen pixels and with the others, each by itself
    torch.manual_seed(5)
    weights = tlw.relaxed_bernoulli(tlw.fixed_sum(raw.sigmoid(), 0.4), 0.1, 2)
    assert weights.shape == (2, *pred.shape)
    ratios = []
    for draw in weights:
        for n in range(2):
            over = loss.judge((draw * pred + (1 - draw) * target)[n:n + 1], target[n:n + 1])
            under = loss.judge(((1 - draw) * pred + draw * target)[n:n + 1], target[n:n + 1])
            ratios.append(((over + 1e-3) / (under + 1e-3)).item())
    assert terms[2].item() == pytest.approx(-0.3 * np.log(ratios).mean(), rel=1e-3)
    torch.manual_seed(5)
    loss.reduction = 'sum'  # the terms keep their proportions
    for one, of_sum in zip(terms, loss.terms(pred, target, raw), strict=True):
        torch.testing.assert_close(of_sum, one * pred.numel(), rtol=1e-4, atol=0)
    gradient, = torch.autograd.grad(terms[2], raw)
    assert gradient.abs().sum() > 0
    assert not any(p.requires_grad for p in loss.judge.parameters())


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: BetaNLLLoss(beta=1.5), r'beta: expected a number in \[0, 1\], got 1.5'),
    (lambda: QuantileLoss(level=1.), 'level: expected a probability'),
    (lambda: UEOLoss(k=0.), 'k: expected a number between 0 and 1'),
    (lambda: UEOLoss(reduction='none'), 'reduction: expected one of mean, sum'),
    (lambda: UEOLoss(samples=0), 'samples: expected a number > 0'),
    (lambda: QuantileLoss()(*(torch.rand(1, 3, 4, 4), ) * 3), r'a head of distribution quantile puts out, \(1, 6'),
])
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
