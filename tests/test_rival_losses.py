"""Gradient variance, expected L1 with its sigma branch and SSIM, against computations written out here in float64."""
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from basicsr.losses import build_loss
from scipy import ndimage, stats
from skimage.metrics import structural_similarity

from udl_basicsr.archs import SigmaHead, UncertaintyNet
from udl_basicsr.functional import losses as F
from udl_basicsr.losses import ExpectedL1Loss, GradientVarianceLoss, SigmaLoss, SSIMLoss, TrainedExpectedL1Loss
from udl_basicsr.options.parse import OptionError, parse_options

OPTIONS = Path(__file__).resolve().parents[1] / 'options'
SHAPE = (2, 3, 13, 14)
NAMES = ['GradientVarianceLoss', 'ExpectedL1Loss', 'TrainedExpectedL1Loss', 'SigmaLoss', 'SSIMLoss']
WITH_SIGMA = ('SigmaLoss', 'TrainedExpectedL1Loss')
SAMPLED = ('ExpectedL1Loss', 'TrainedExpectedL1Loss')


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


# --------------------------------------------------------------------------------------------------- gradient variance


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


# ---------------------------------------------------------------------------------------------------------- expected L1


def test_adaptive_sigma_by_hand():
    error = torch.tensor([[[[0.0, 0.1, 0.2, 0.5]]], [[[1.0, 1.0, 1.0, 1.0]]]])  # means 0.2 and 1, image by image
    np.testing.assert_array_equal(F.adaptive_sigma(error).flatten(), np.float32([0, 0, 0.2, 0.5, 1, 1, 1, 1]))
    assert F.adaptive_sigma(error, 'none') is error
    assert F.adaptive_sigma(torch.zeros(1, 3, 2, 2)).abs().max() == 0


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


# --------------------------------------------------------------------------------------------------- sigma, its branch


@pytest.mark.parametrize('signed', [False, True])
@pytest.mark.parametrize('detach', [True, False])
@pytest.mark.parametrize(('threshold', 'mean_over'), [('mean', 'image'), ('mean', 'batch'), ('none', 'image')])
def test_sigma_loss(threshold, mean_over, detach, signed):
    pred, target, sigma = arguments('SigmaLoss')
    target[1] += 0.3
    pred.requires_grad_()
    sigma.requires_grad_()
    residual = (target - pred.detach()).numpy()
    mean = np.abs(residual).mean(axis=(1, 2, 3) if mean_over == 'image' else None, keepdims=True)
    kept = np.abs(residual) >= (mean if threshold == 'mean' else 0)
    wanted = np.where(kept, residual if signed else np.abs(residual), 0)
    options = {'threshold': threshold, 'mean_over': mean_over, 'detach': detach, 'signed': signed}
    out = SigmaLoss(loss_weight=0.01, **options)(pred, target, sigma)
    out.backward()
    s = sigma.detach().numpy()
    np.testing.assert_allclose(out.item(), 0.01 * np.abs(wanted - s).mean(), rtol=1e-12)
    np.testing.assert_allclose(sigma.grad, 0.01 * np.sign(s - wanted) / s.size, rtol=1e-12)
    if detach:
        assert pred.grad is None  # f is a constant of it
        return
    slope = np.where(kept, -1. if signed else -np.sign(residual), 0)
    np.testing.assert_allclose(pred.grad, 0.01 * np.sign(wanted - s) * slope / s.size, rtol=1e-12)


@pytest.mark.parametrize('scale', [1, 2, 3, 4, 8])
def test_sigma_head_sizes_and_range(scale):
    head = SigmaHead(5, 3, scale, num_feat=6)
    sigma = head(10 * torch.randn(2, 5, 4, 6))
    assert sigma.shape == (2, 3, 4 * scale, 6 * scale)
    assert ((sigma >= 0) & (sigma <= 1)).all()


def test_sigma_head_written_out():
    head = SigmaHead(5, 3, 2, num_feat=6).double()
    weights = head.state_dict()
    features = torch.randn(1, 5, 4, 6, dtype=torch.float64)
    x = features
    for number in range(4):
        x = torch.nn.functional.conv2d(x, weights[f'body.{2 * number}.weight'], weights[f'body.{2 * number}.bias'],
                                       padding=1)
        x = torch.where(x > 0, x, weights[f'body.{2 * number + 1}.weight'] * x)
    x = torch.nn.functional.conv2d(x, weights['upsample.0.weight'], weights['upsample.0.bias'], padding=1)
    x = x.view(1, 6, 2, 2, 4, 6).permute(0, 1, 4, 2, 5, 3).reshape(1, 6, 8, 12)  # pixel shuffle
    x = torch.nn.functional.conv2d(x, weights['conv_last.weight'], weights['conv_last.bias'], padding=1)
    torch.testing.assert_close(head(features), 1 / (1 + torch.exp(-x)))


def test_sigma_head_is_the_papers():
    head = build_network({'type': 'SigmaHead', 'num_in_ch': 64, 'num_out_ch': 3, 'scale': 4})
    convs = [m for m in head.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convs] == [
        (64, 160), (160, 160), (160, 160), (160, 160), (160, 640), (160, 640), (160, 3)]
    with pytest.raises(ValueError, match='scale 6'):
        SigmaHead(5, 3, 6)


def test_the_sigma_branch_learns_a_small_error_and_does_not_die():
    """A target of a few grey levels, 5 where the features are positive and 15 elsewhere."""
    torch.manual_seed(0)
    features = torch.randn(1, 1, 8, 8).sign()
    target = torch.where(features > 0, 5 / 255, 15 / 255)
    head = SigmaHead(1, 1, 1, num_feat=8)
    assert head(features).mean().item() == pytest.approx(1 / (1 + math.exp(3)), rel=0.2)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    for _ in range(400):
        optimizer.zero_grad()
        loss = SigmaLoss(loss_weight=0.01, threshold='none')(torch.zeros_like(target), target, head(features))
        loss.backward()
        optimizer.step()
    assert loss.item() / 0.01 * 255 < 2  # grey levels, on average


@pytest.mark.parametrize('detach', [True, False])
def test_eq_10_reaches_the_body_through_the_features(detach):
    """The image is detached, the features are shared: body and head learn, what comes after the tap does not."""
    net = UncertaintyNet({'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'upscale': 2},
                         head={'type': 'SigmaHead', 'num_feat': 8}).double()
    lq, target = torch.rand(2, 3, 8, 8, dtype=torch.float64), torch.rand(2, 3, 16, 16, dtype=torch.float64)
    mean, sigma = net(lq)
    assert sigma.shape == mean.shape
    SigmaLoss(detach=detach)(mean, target, sigma).backward()
    reached = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    everything = {name for name, _ in net.named_parameters()}
    tail = {name for name in everything if name.startswith(('mean_network.upsample', 'mean_network.conv_last'))}
    assert len(tail) == 4
    assert reached == (everything - tail if detach else everything)
    # by finite differences of the branch alone, the image held
    weight, step = net.mean_network.conv_first.weight, 1e-6
    e_t = F.adaptive_sigma((target - mean).abs()).detach()
    if detach:
        for index in ((0, 0, 1, 1), (5, 2, 0, 2)):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    weight[index] += sign * step
                    values.append((e_t - net(lq)[1]).abs().mean().item())
                    weight[index] -= sign * step
            assert weight.grad[index].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5, abs=1e-10)


# ----------------------------------------------------------------------------------------------------------------- SSIM


def ssim(pred, target):
    """scikit-image's map, cut to where the window fits."""
    maps = []
    for p, t in zip(pred, target, strict=True):
        _, full = structural_similarity(p, t, channel_axis=0, data_range=1, gaussian_weights=True, sigma=1.5,
                                        use_sample_covariance=False, full=True)
        maps.append(full[:, 5:-5, 5:-5])
    return np.stack(maps)


@pytest.mark.parametrize('shape', [(2, 3, 16, 21), (1, 1, 11, 11), (1, 3, 11, 30)])
def test_ssim_value_and_gradient(shape):
    pred, target = images(shape)
    np.testing.assert_allclose(F.ssim_map(torch.tensor(pred), torch.tensor(target)), ssim(pred, target), atol=1e-12)
    assert_value_and_gradient(SSIMLoss(), lambda p, t: 1 - ssim(p, t).mean(), pred, target)


def test_ssim_in_float32_where_the_image_is_flat_and_bright():
    """Variances are differences of nearly equal numbers there."""
    pred, target = (0.9 + 0.01 * (image - 0.5) for image in images((1, 3, 24, 24)))
    value = SSIMLoss()(torch.tensor(pred, dtype=torch.float32), torch.tensor(target, dtype=torch.float32)).item()
    assert value == pytest.approx(1 - ssim(pred, target).mean(), rel=1e-3)


# ----------------------------------------------------------------------------------------------------------- all losses


@pytest.mark.parametrize('name', NAMES)
def test_float32_under_autocast(name):
    """bf16 keeps 8 bits: a loss computed in it would be off by about 0.4 %, SSIM's and GV's variances by far more."""
    loss = build_loss({'type': name})
    args = tuple(a.float() for a in arguments(name))

    def value(*args):
        torch.manual_seed(0)
        return loss(*args)

    torch.manual_seed(0)
    z = torch.randn(SHAPE).double()
    exact = [a.double() for a in args]
    reference = (F.expected_l1_map(*exact, z).mean() if name == 'ExpectedL1Loss' else
                 F.noisy_l1_map(*exact, z).mean() if name in SAMPLED else value(*exact))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out, half = value(*args), value(*(a.bfloat16() for a in args))
    assert out.dtype == half.dtype == torch.float32
    assert out.item() == pytest.approx(reference.item(), rel=1e-5)
    assert half.item() == pytest.approx(value(*(a.bfloat16().float() for a in args)).item(), rel=1e-6)


@pytest.mark.parametrize(('name', 'shape'), [('GradientVarianceLoss', (2, 1, 1, 1)), ('ExpectedL1Loss', SHAPE),
                                             ('SigmaLoss', SHAPE), ('TrainedExpectedL1Loss', SHAPE),
                                             ('SSIMLoss', (2, 3, 3, 4))])
def test_reduction_and_weight(name, shape):
    args = arguments(name)

    def value(**options):
        torch.manual_seed(0)
        return build_loss({'type': name, **options})(*args)

    full = value(reduction='none')
    assert full.shape == shape
    assert value().item() == pytest.approx(full.mean().item())
    assert value(loss_weight=3.).item() == pytest.approx(3 * full.mean().item())
    assert value(reduction='sum').item() == pytest.approx(full.sum().item())


@pytest.mark.parametrize('name', NAMES)
def test_channels_last_is_the_same(name):
    args = arguments(name)
    loss = {'ExpectedL1Loss': lambda p, t: F.expected_l1_map(p, t, torch.ones_like(p)).mean(),
            'TrainedExpectedL1Loss': lambda p, t, s: F.noisy_l1_map(p, t, s, torch.ones_like(p)).mean()
            }.get(name) or build_loss({'type': name})
    torch.testing.assert_close(loss(*args), loss(*(a.to(memory_format=torch.channels_last) for a in args)))


def zeros(*shape):
    return torch.zeros(shape)


@pytest.mark.parametrize(('make', 'named'), [
    *((lambda name=name: build_loss({'type': name, 'reduction': 'average'}), 'reduction') for name in NAMES),
    *((lambda n=n: GradientVarianceLoss(patch_size=n), 'patch_size.*no variance') for n in (1, 0, -3, 2.5)),
    (lambda: GradientVarianceLoss(border='reflect'), 'border: expected one of replicate, zeros'),
    (lambda: GradientVarianceLoss(norm='l1'), 'norm: expected one of mse, l2'),
    (lambda: GradientVarianceLoss(gray='y'), 'gray: expected one of bt601, released'),
    (lambda: GradientVarianceLoss()(zeros(1, 3, 7, 9), zeros(1, 3, 7, 9)), 'patch of 8x8 .* image, 7x9'),
    (lambda: GradientVarianceLoss()(zeros(1, 4, 8, 8), zeros(1, 4, 8, 8)), r'gray or an RGB .*\(1, 4, 8, 8\)'),
    (lambda: GradientVarianceLoss()(zeros(1, 3, 8, 8), zeros(1, 1, 8, 8)), 'pred .* target'),
    (lambda: ExpectedL1Loss(threshold='median'), "threshold: expected one of mean, none, got 'median'"),
    (lambda: SigmaLoss(threshold=0.5), 'threshold'),
    *((lambda c=c: c(mean_over='channel'), 'mean_over: expected one of image, batch')
      for c in (ExpectedL1Loss, SigmaLoss)),
    *((lambda c=c: c(noise='uniform'), 'noise: expected one of gaussian, laplace')
      for c in (ExpectedL1Loss, TrainedExpectedL1Loss)),
    (lambda: ExpectedL1Loss(sigma=0), 'sigma: expected a number > 0'),
    (lambda: TrainedExpectedL1Loss()(zeros(1, 3, 4, 4), zeros(1, 3, 4, 4), zeros(1, 1, 4, 4)), 'sigma'),
    (lambda: ExpectedL1Loss()(zeros(1, 3, 4, 4), zeros(1, 3, 4, 5)), 'pred .* target'),
    (lambda: SigmaLoss()(zeros(1, 3, 4, 4), zeros(1, 3, 4, 4), zeros(1, 1, 4, 4)), 'sigma'),
    (lambda: SSIMLoss()(zeros(1, 3, 10, 12), zeros(1, 3, 10, 12)), 'at least 11x11 .* got 10x12'),
    (lambda: SSIMLoss()(zeros(1, 3, 12, 10), zeros(1, 3, 12, 10)), 'at least 11x11 .* got 12x10'),
    (lambda: SSIMLoss()(zeros(1, 3, 12, 12), zeros(1, 1, 12, 12)), 'pred .* target'),
])
def test_bad_arguments_are_named(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize('name', ['GradientVarianceLoss', 'ExpectedL1Loss', 'SSIMLoss'])
def test_trains_beside_a_pixel_loss(project, name):
    """From a YAML, in the frame that all losses share; the value in the log is the loss's own."""
    model = project.model('plain', f'train:rival_opt={{type: {name}, loss_weight: 0.1}}')
    generator = torch.Generator().manual_seed(0)
    model.feed_data({'lq': torch.rand(2, 3, 16, 16, generator=generator),
                     'gt': torch.rand(2, 3, 32, 32, generator=generator)})
    model.optimize_parameters(1)
    log = model.get_current_log()
    assert math.isfinite(log['l_rival'])
    assert log['l_rival'] > 0


@pytest.mark.parametrize('sigma_opt', ['{type: SigmaLoss, detach: false}',
                                       '{type: SigmaLoss, detach: false, signed: true, threshold: none}',
                                       '{type: TrainedExpectedL1Loss}'])
def test_a_sigma_loss_that_trains_the_image_may_stand_alone(project, sigma_opt):
    """Eq. 10 alone (table 1, row 3) and eq. 6: every weight of network and branch moves."""
    head = 'network_u={type: UncertaintyNet, head: {type: SigmaHead, num_feat: 8}}'
    model = project.model('plain', 'stage=sigma', 'train:pixel_opt=~', head, f'train:sigma_opt={sigma_opt}')
    before = {k: p.clone() for k, p in model.net_u.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for number in (1, 2):
        model.feed_data({'lq': torch.rand(2, 3, 16, 16, generator=generator),
                         'gt': torch.rand(2, 3, 32, 32, generator=generator)})
        model.optimize_parameters(number)
    assert all(not torch.equal(p, before[k]) for k, p in model.net_u.named_parameters())
    assert {'l_sigma', 'sigma_mean'} <= set(model.get_current_log())
    with pytest.raises(OptionError, match=r'no loss: add pixel_opt.*detach: false'):
        project.parse('plain', 'stage=sigma', 'train:pixel_opt=~', head, 'train:sigma_opt={type: SigmaLoss}')


# -------------------------------------------------------------------------------------------------------- option files


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
