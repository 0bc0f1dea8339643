"""The expected L1 losses: values, gradients, their signs, their noise."""
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from loss_checks import SHAPE, assert_value_and_gradient, images, tensors
from scipy import stats

from udl_basicsr.functional import losses as F
from udl_basicsr.losses import ExpectedL1Loss, GradientVarianceLoss, SigmaLoss, SSIMLoss, TrainedExpectedL1Loss
from udl_basicsr.options.parse import parse_options

OPTIONS = Path(__file__).resolve().parents[1] / 'options'


# ---------------------------------------------------------------------------------------------------------- expected L1

def test_adaptive_sigma_by_hand():
    error = torch.tensor([[[[0.0, 0.1, 0.2, 0.5]]], [[[1.0, 1.0, 1.0, 1.0]]]])  # means 0.2 and 1, image by image
    np.testing.assert_array_equal(F.adaptive_sigma(error).flatten(), np.float32([0, 0, 0.2, 0.5, 1, 1, 1, 1]))
    assert F.adaptive_sigma(error, 'none') is error
    assert F.adaptive_sigma(torch.zeros(1, 3, 2, 2)).abs().max() == 0


@pytest.mark.parametrize('mean_over', F.MEAN_OVER)
def test_equal_errors_are_all_chosen(mean_over):
    """In float32 the mean of 0.1 over 16x16 pixels is a little more than 0.1."""
    error = torch.full((1, 3, 16, 16), 0.1)
    assert error.mean() > 0.1
    assert torch.equal(F.adaptive_sigma(error, mean_over=mean_over), error)
    assert torch.equal(F.adaptive_sigma(-error, mean_over=mean_over), -error)


@pytest.mark.parametrize(('threshold', 'mean_over'), [('mean', 'image'), ('mean', 'batch'), ('none', 'image')])
def test_expected_l1_value_and_gradient(threshold, mean_over):
    pred, target = images()
    target[1] += 0.3  # so that the mean of the batch is not that of each image
    torch.manual_seed(5)
    z = torch.randn(SHAPE, dtype=torch.float64).numpy()

    def reference(pred, target):
        error = np.abs(target - pred)
        e_t = error.copy()
        for n in range(len(error) if threshold == 'mean' else 0):
            e_t[n][error[n] < (error[n] if mean_over == 'image' else error).mean()] = 0
        return np.abs(target - (pred + e_t * z)).mean()

    def loss(pred, target):
        torch.manual_seed(5)
        return ExpectedL1Loss(threshold=threshold, mean_over=mean_over)(pred, target)

    assert_value_and_gradient(loss, reference, pred, target)


def test_a_constant_sigma_and_a_trained_one():
    """Eq. 7 and 6, the second for its sigma as well."""
    pred, target = images()
    torch.manual_seed(5)
    z = torch.randn(SHAPE, dtype=torch.float64).numpy()
    sigma = np.random.default_rng(8).random(SHAPE)

    def seeded(value):
        def call(*args):
            torch.manual_seed(5)
            return value(*args)

        return call

    assert_value_and_gradient(seeded(ExpectedL1Loss(sigma=0.02)), lambda p, t: np.abs(t - p - 0.02 * z).mean(),
                              pred, target)
    trained = seeded(TrainedExpectedL1Loss())
    assert_value_and_gradient(lambda p, t: trained(p, t, torch.tensor(sigma)),
                              lambda p, t: np.abs(t - p - sigma * z).mean(), pred, target)
    assert_value_and_gradient(lambda s, t: trained(torch.tensor(pred), t, s),
                              lambda s, t: np.abs(t - pred - s * z).mean(), sigma, target)


def test_a_trained_sigma_dies_away():
    """Figure 2 and the Jensen gap: E|e - sigma*z|, e as it is, is least at sigma = 0, and descent goes there."""
    target = torch.full((1, 1, 64, 64), 0.1)
    logit = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([logit], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        TrainedExpectedL1Loss()(torch.zeros_like(target), target, logit.sigmoid().expand_as(target)).backward()
        optimizer.step()
    assert logit.sigmoid().item() < 0.05 < 0.5


def test_noise_of_laplace():
    """Footnote 1 with a uniform variable, where it is the inverse of Laplace's distribution function."""
    z = F.draw_noise(torch.empty(400, 500, dtype=torch.float64), 'laplace').numpy().ravel()
    assert np.isfinite(z).all()
    assert stats.kstest(z, 'laplace').pvalue > 1e-4
    u = np.array([-0.49, -0.2, 0.1, 0.4])
    np.testing.assert_allclose(-np.sign(u) * np.log(1 - 2 * np.abs(u)), stats.laplace.ppf(u + 0.5))
    # E|1 - z| = 1 + 1/e
    target = torch.zeros(1, 1, 500, 500, dtype=torch.float64)
    loss = ExpectedL1Loss(threshold='none', noise='laplace')
    assert loss(target + 0.1, target).item() == pytest.approx(0.1 * (1 + math.exp(-1)), rel=1e-2)


def test_expectation_of_expected_l1():
    """E|1 - z| = 2*phi(1) + Phi(1) - Phi(-1): the mean over many draws is e times that, so its optimum is l1's."""
    factor = 2 * stats.norm.pdf(1) + stats.norm.cdf(1) - stats.norm.cdf(-1)
    target = torch.zeros(1, 1, 1000, 1000, dtype=torch.float64)
    for sign in (-1, 1):
        value = ExpectedL1Loss(threshold='none')(target + 0.1 * sign, target).item()
        assert value == pytest.approx(0.1 * factor, rel=3e-3)


def count_wrong_signs(value, draws=200):
    """The share of pixels, over many draws of z, at which the gradient has not l1's sign."""
    pred, target = tensors(seed=3)
    pred.requires_grad_()
    wrong = 0
    for _ in range(draws):
        gradient, = torch.autograd.grad(value(pred, target, torch.randn_like(pred)).sum(), pred)
        wrong += (gradient.sign() != (pred - target).sign()).double().mean().item()
    return wrong / draws


@pytest.mark.parametrize('threshold', ['mean', 'none'])
def test_the_gradient_always_has_the_sign_of_l1(threshold):
    """Eq. 9. Not so for Noise2Noise, whose sigma is constant, nor without the gradient through e_t."""
    assert count_wrong_signs(lambda p, t, z: F.expected_l1_map(p, t, z, threshold)) == 0
    assert count_wrong_signs(lambda p, t, z: (t - (p + 0.3 * z)).abs()) > 0.1

    def stopped(p, t, z):
        return (t - (p + F.adaptive_sigma((t - p).abs(), threshold).detach() * z)).abs()

    # where e_t = e the sign turns when sgn(r)*z > 1, which has the probability 0.159
    wrong = count_wrong_signs(stopped)
    assert wrong == pytest.approx(stats.norm.sf(1), rel=0.05) if threshold == 'none' else 0.03 < wrong < 0.159


def test_an_image_is_worth_the_same_in_any_batch():
    pred, target = tensors()
    target[1] += 5  # a batch mean would switch off all of image 0
    for loss in (SigmaLoss(reduction='none'), SSIMLoss(reduction='none')):
        extra = (torch.zeros_like(pred), ) if isinstance(loss, SigmaLoss) else ()
        torch.testing.assert_close(loss(pred, target, *extra)[:1],
                                   loss(pred[:1], target[:1], *(e[:1] for e in extra)))


def test_z_comes_from_the_global_generator_and_anew_each_time():
    pred, target = tensors()
    loss = ExpectedL1Loss()
    torch.manual_seed(1)
    first, second = loss(pred, target), loss(pred, target)
    torch.manual_seed(1)
    assert torch.equal(first, loss(pred, target))
    assert not torch.equal(first, second)


def test_no_error_no_gradient():
    """e = 0: nothing to divide by, nothing to push."""
    target = torch.rand(SHAPE)
    pred = target.clone().requires_grad_()
    sigma = torch.full(SHAPE, 0.25, requires_grad=True)
    for loss in (ExpectedL1Loss(), ExpectedL1Loss(threshold='none'), GradientVarianceLoss(patch_size=4), SSIMLoss()):
        pred.grad = None
        out = loss(pred, target)
        out.backward()
        assert out.item() == pytest.approx(0, abs=1e-6)
        assert pred.grad.abs().max() < 1e-6
    out = SigmaLoss()(pred, target, sigma)
    out.backward()
    assert out.item() == 0.25
    torch.testing.assert_close(sigma.grad, torch.full(SHAPE, 1 / sigma.numel()))


# --------------------------------------------------------------------------------------------------------- option files

def trained_with(file, tmp_path):
    """Of the flat options: the losses, and all the rest."""
    parsed = parse_options(str(OPTIONS / file), root_path=str(tmp_path), is_train=True, check_files=False,
                           num_gpu_available=0)
    assert not parsed.warnings
    rest = dict(parsed.flat)
    name, train = rest.pop('name'), dict(rest.pop('train'))
    losses = {key: train.pop(key) for key in list(train) if key.endswith('_opt')}
    assert name == Path(file).stem.replace('train', 'small', 1)
    return losses, (rest, train)


def test_the_expected_l1_loss_is_all_that_differs_from_l1(tmp_path):
    _, baseline = trained_with('small/train_L1_x4.yml', tmp_path)
    losses, rest = trained_with('small/train_ExpectedL1_x4.yml', tmp_path)
    assert losses == {'pixel_opt': {'type': 'ExpectedL1Loss'}}
    assert rest == baseline
