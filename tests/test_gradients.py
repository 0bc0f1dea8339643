"""Gradients of every loss by finite differences in float64, and what each does at the edges of its domain."""
import math

import pytest
import torch
from torch.autograd import gradcheck

from udl_basicsr.functional import losses as F
from udl_basicsr.functional.tlw import fixed_sum
from udl_basicsr.losses import (
    ESULoss,
    EULoss,
    ExpectedL1Loss,
    GaussianNLLLoss,
    GradientVarianceLoss,
    GRAMLoss,
    SigmaLoss,
    SSIMLoss,
    TLWLoss,
    UDLLoss,
    WeightMapLoss,
)

SHAPE = (2, 3, 4, 5)
LIKELIHOODS = [EULoss(), ESULoss(), GaussianNLLLoss(), GRAMLoss(), GRAMLoss(norm='l2')]
UDL = [UDLLoss(scaling=scaling, offset=offset) for scaling in F.SCALINGS for offset in (0., 1.)]
MAPS = [WeightMapLoss(weight_map=name) for name in ('error', 'hr_gradient', 'lr_gradient')]
IMAGE_LOSSES = [ExpectedL1Loss(), ExpectedL1Loss(threshold='none'), ExpectedL1Loss(sigma=0.1),
                ExpectedL1Loss(noise='laplace'), GradientVarianceLoss(patch_size=2),
                GradientVarianceLoss(patch_size=2, norm='l2', border='zeros'), SSIMLoss()]


def label(loss):
    shown = [str(getattr(loss, name)) for name in ('scaling', 'offset', 'norm', 'weight_map', 'threshold')
             if hasattr(loss, name)]
    return '-'.join([type(loss).__name__, *shown])


def pair(shape=SHAPE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))


def with_same_noise(loss):
    def value(*args):
        torch.manual_seed(0)  # the same z, or samples, at each evaluation
        return loss(*args)

    return value


@pytest.mark.parametrize('s_value', [None, -20., 20.])
@pytest.mark.parametrize('loss', LIKELIHOODS, ids=label)
def test_likelihoods(loss, s_value):
    pred, target = pair()
    s = torch.randn(SHAPE, dtype=torch.float64) if s_value is None else torch.full_like(pred, s_value)
    # exp(20) is 5e8 and exp(-20) 2e-9, so each check is made relative; the image stands in the fidelity term alone,
    # whose digits would be lost beside the log term's
    power = 2 if isinstance(loss, GaussianNLLLoss) or getattr(loss, 'norm', '') == 'l2' else 1
    scale = math.exp(-s.min() * power)
    assert gradcheck(lambda p: loss.terms(p, target, s)[0] / scale, pred.clone().requires_grad_())
    scale = max(scale, 1.)
    if not isinstance(loss, GRAMLoss):
        assert gradcheck(lambda s: loss(pred, target, s) / scale, s.clone().requires_grad_())
        return
    # The weight sg[sigmoid(s)] is a constant of the gradient: the same with the weight held is what is differentiated.
    e = 255 * (pred - target).abs()
    weight = torch.sigmoid(power * s)
    leaf = s.clone().requires_grad_()
    loss(pred, target, leaf).backward()
    held = s.clone().requires_grad_()
    assert gradcheck(lambda s: (weight * (torch.exp(-power * s) * e**power + power * s)).mean() / scale, held)
    (weight * (torch.exp(-power * held) * e**power + power * held)).mean().backward()
    torch.testing.assert_close(leaf.grad, held.grad, rtol=1e-12, atol=0)


@pytest.mark.parametrize('s_value', [None, -20., 20.])
@pytest.mark.parametrize('loss', UDL, ids=label)
def test_udl(loss, s_value):
    pred, target = pair(seed=1)
    s = torch.randn(SHAPE, dtype=torch.float64) if s_value is None else torch.full_like(pred, s_value)
    scale = max(1., float(F.scale_log_scale(s, loss.scaling, loss.offset, loss.min_over).max()))
    assert gradcheck(lambda p: loss(p, target, s) / scale, pred.requires_grad_())


@pytest.mark.parametrize('loss', MAPS, ids=label)
def test_weight_maps(loss):
    pred, target = pair(seed=2)
    lq = torch.rand(2, 3, 2, 5, dtype=torch.float64) if loss.weight_map == 'lr_gradient' else None
    if lq is not None:
        lq, pred, target = lq[..., :2], pred[..., :4], target[..., :4]
    if loss.weight_map != 'error':
        extra = () if lq is None else (lq, )
        assert gradcheck(lambda p: loss(p, target, *extra), pred.requires_grad_())
        return
    # w = sg[e]: the gradient is that of l1 with the weight held.
    leaf = pred.clone().requires_grad_()
    loss(leaf, target).backward()
    e = (pred - target).abs()
    weight = e - e.amin(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(leaf.grad, weight * torch.sign(pred - target) / e.numel(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize('loss', IMAGE_LOSSES, ids=label)
def test_image_losses(loss):
    pred, target = pair((1, 1, 12, 11) if isinstance(loss, SSIMLoss) else SHAPE, seed=3)
    assert gradcheck(with_same_noise(lambda p: loss(p, target)), pred.requires_grad_())


@pytest.mark.parametrize('threshold', ['mean', 'none'])
def test_sigma(threshold):
    (pred, target), sigma = pair(seed=4), torch.rand(SHAPE, dtype=torch.float64)
    assert gradcheck(lambda s: SigmaLoss(threshold=threshold)(pred, target, s), sigma.requires_grad_())


def mean_square(a, b):
    """A judge with a closed form: image m against target m mod N."""
    return (a.unflatten(0, (-1, len(b))) - b).square().mean(dim=(2, 3, 4)).flatten()


def tlw(**kwargs):
    loss = TLWLoss(**kwargs)
    loss.judge = mean_square
    return loss


@pytest.mark.parametrize('k', [0., 0.4, 1.])
@pytest.mark.parametrize('deterministic', [False, True])
@pytest.mark.parametrize('base', ['l1', 'mse'])
def test_tlw(base, deterministic, k):
    loss = tlw(base=base, deterministic=deterministic)
    pred, target = pair((1, 2, 3, 3), seed=5)
    raw = torch.rand(1, 2, 3, 3, dtype=torch.float64)

    # the weighting network's side, through FixedSum, sampling and the judge
    assert gradcheck(with_same_noise(lambda r: loss(pred, target, fixed_sum(r, k))[1]), raw.clone().requires_grad_(),
                     atol=1e-4)

    # the SR network's side: WC and (for mse) 1/(|x - f| + 0.1) are constants, so the map of weights is held
    leaf = pred.clone().requires_grad_()
    weighted, _, _ = with_same_noise(loss)(leaf, target, fixed_sum(raw, k))
    weighted.backward()
    e = (pred - target).abs()
    slope = torch.sign(pred - target) if base == 'l1' else 2 * (pred - target) / (e + 0.1)
    value = e if base == 'l1' else e**2 / (e + 0.1)
    # weighted = sum(W*value)/N has the gradient W*slope/N, so grad*value/slope sums to the loss itself
    torch.testing.assert_close((leaf.grad * value / slope).sum(), weighted.detach(), rtol=1e-10, atol=1e-14)


# --------------------------------------------------------------------------------------------------------------- edges


@pytest.mark.parametrize('shape', [SHAPE, (1, 1, 1, 1)], ids=['image', 'one-pixel'])
@pytest.mark.parametrize('s_value', [-20., 0., 20.])
@pytest.mark.parametrize('loss', [*LIKELIHOODS, *UDL], ids=label)
def test_no_error(loss, s_value, shape):
    """e = 0: nothing moves the image; a likelihood still lowers s, by its log term alone."""
    target = torch.rand(shape, dtype=torch.float64)
    pred, s = target.clone().requires_grad_(), torch.full_like(target, s_value, requires_grad=True)
    out = loss(pred, target, s)
    out.backward()
    assert (pred.grad == 0).all()
    if isinstance(loss, UDLLoss):
        assert out.item() == 0
        return
    power = 2 if getattr(loss, 'norm', '') == 'l2' else 1
    factor = {EULoss: 1., ESULoss: 2., GaussianNLLLoss: 1.,
              GRAMLoss: power / (1 + math.exp(-power * s_value))}[type(loss)]
    assert out.item() == pytest.approx(factor * s_value, rel=1e-12)
    torch.testing.assert_close(s.grad, torch.full_like(target, factor / target.numel()), rtol=1e-12, atol=0)


@pytest.mark.parametrize('loss', [*LIKELIHOODS, *UDL, *MAPS], ids=label)
def test_one_pixel(loss):
    """The minimum of a single pixel is that pixel: where it is subtracted, the offset alone remains as its weight."""
    e, s = 0.25, 1.5
    pred, target = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64), torch.full((1, 1, 1, 1), 0.5 + e,
                                                                               dtype=torch.float64)
    log_scale = torch.full_like(pred, s)
    power = 2 if getattr(loss, 'norm', '') == 'l2' else 1
    sigmoid = 1 / (1 + math.exp(-power * s))
    if isinstance(loss, EULoss | ESULoss | GaussianNLLLoss | GRAMLoss):
        scaled = 255 * e
        expected = {
            EULoss: math.exp(-s) * scaled + s,
            ESULoss: math.exp(-s) * scaled + 2 * s,
            GaussianNLLLoss: math.exp(-2 * s) * scaled**2 / 2 + s,
            GRAMLoss: sigmoid * (math.exp(-power * s) * scaled**power + power * s),
        }[type(loss)]
        out = loss(pred, target, log_scale)
    elif isinstance(loss, UDLLoss):
        expected = e * ({'exp': math.exp(s), 'sqrt_exp': math.exp(s / 2)}.get(loss.scaling, 0.) + loss.offset)
        out = loss(pred, target, log_scale)
    else:
        expected = 0.  # the minimum of the map is subtracted
        out = loss(pred, target, *((pred, ) if loss.weight_map == 'lr_gradient' else ()))
    assert out.item() == pytest.approx(expected, rel=1e-12)


def test_one_pixel_of_the_others():
    pred, target = torch.full((1, 3, 1, 1), 0.25), torch.full((1, 3, 1, 1), 0.75)
    torch.manual_seed(1)
    z = torch.randn(1, 3, 1, 1)
    torch.manual_seed(1)
    # e equals its mean, so e_t = e
    assert ExpectedL1Loss()(pred, target).item() == pytest.approx((0.5 * (1 - z).abs()).mean().item(), rel=1e-5)
    assert SigmaLoss()(pred, target, torch.full_like(pred, 0.1)).item() == pytest.approx(0.4)
    with pytest.raises(ValueError, match='patch_size: a patch of 8x8 is larger than the image, 1x1'):
        GradientVarianceLoss()(pred, target)
    with pytest.raises(ValueError, match='patch_size: expected a whole number of 2 or more'):
        GradientVarianceLoss(patch_size=1)
    with pytest.raises(ValueError, match='at least 11x11'):
        SSIMLoss()(pred, target)


@pytest.mark.parametrize('prob', [0., 1.])
@pytest.mark.parametrize('k', [0., 1.])
@pytest.mark.parametrize('shape', [(2, 3, 4, 4), (1, 1, 1, 1)], ids=['image', 'one-pixel'])
@pytest.mark.parametrize('same', [False, True], ids=['error', 'no-error'])
def test_tlw_at_the_edges(prob, k, shape, same):
    """k = 0 and 1, S = 0 and N, no error, one pixel: finite values and gradients, and weights of exactly k."""
    loss = tlw(deterministic=True)
    pred, target = (t.float() for t in pair(shape, seed=6))
    pred = (target.clone() if same else pred).requires_grad_()
    raw = torch.full(shape, prob, requires_grad=True)
    weighted, weighting, wc = loss(pred, target, fixed_sum(raw, k))
    (weighted + weighting).backward()
    assert pred.grad.isfinite().all()
    assert raw.grad.isfinite().all()
    # w = 1 everywhere: D(f, x) against D(x, x) = 0; w = 0 the reverse
    distance = (pred - target).detach().square().mean(dim=(1, 2, 3))
    ratio = (distance + loss.eps) / loss.eps
    torch.testing.assert_close(wc.flatten(), ratio if k == 1 else 1 / ratio, rtol=1e-4, atol=0)
    expected = (ratio.view(-1, 1, 1, 1) * (pred - target).detach().abs()).mean() * k
    torch.testing.assert_close(weighted.detach(), expected, rtol=1e-4, atol=1e-9)
    # and with samples: no infinities from certain probabilities
    assert all(torch.isfinite(part).all() for part in tlw()(pred, target, fixed_sum(raw, k)))
