"""Values and gradients against closed forms written out here in float64, and the traps of DESIGN's mathematics."""
import logging
import math

import numpy as np
import pytest
import torch
from basicsr.losses import build_loss

from udl_basicsr.functional import losses as F
from udl_basicsr.losses import (
    ESULoss,
    EULoss,
    GaussianNLLLoss,
    GeneralisedGaussianLoss,
    GRAMLoss,
    QuantileLoss,
    UDLLoss,
    WeightMapLoss,
)

SHAPE = (2, 3, 4, 5)


def maps(seed=0, requires_grad=False):
    generator = np.random.default_rng(seed)
    pred, target = generator.random(SHAPE), generator.random(SHAPE)
    log_scale = generator.normal(0.5, 1.0, SHAPE).clip(-0.95)
    return tuple(torch.tensor(m, requires_grad=requires_grad) for m in (pred, target, log_scale))


def sigmoid(s):
    return 1 / (1 + np.exp(-s))


# loss, value per pixel, d/de and d/ds per pixel, all as functions of e (0-255 units) and s
LIKELIHOODS = {
    'EU': (EULoss(), lambda e, s: np.exp(-s) * e + s,
           lambda e, s: np.exp(-s), lambda e, s: 1 - np.exp(-s) * e),
    'ESU': (ESULoss(), lambda e, s: np.exp(-s) * e + 2 * s,
            lambda e, s: np.exp(-s), lambda e, s: 2 - np.exp(-s) * e),
    'Gaussian': (GaussianNLLLoss(), lambda e, s: e**2 / (2 * np.exp(s)**2) + 0.5 * np.log(np.exp(s)**2),
                 lambda e, s: e * np.exp(-2 * s), lambda e, s: 1 - e**2 * np.exp(-2 * s)),
    'GRAM-l1': (GRAMLoss(), lambda e, s: sigmoid(s) * (np.exp(-s) * e + s),
                lambda e, s: sigmoid(s) * np.exp(-s), lambda e, s: sigmoid(s) * (1 - np.exp(-s) * e)),
    'GRAM-l2': (GRAMLoss(norm='l2'), lambda e, s: sigmoid(2 * s) * (np.exp(-2 * s) * e**2 + 2 * s),
                lambda e, s: sigmoid(2 * s) * np.exp(-2 * s) * 2 * e,
                lambda e, s: sigmoid(2 * s) * 2 * (1 - np.exp(-2 * s) * e**2)),
}


@pytest.mark.parametrize('name', LIKELIHOODS)
def test_likelihood_value_and_gradient(name):
    loss, value, d_error, d_scale = LIKELIHOODS[name]
    pred, target, log_scale = maps(requires_grad=True)
    p, t, s = (m.detach().numpy() for m in (pred, target, log_scale))
    e = 255 * np.abs(p - t)
    out = loss(pred, target, log_scale)
    out.backward()
    assert out.dtype == torch.float64
    np.testing.assert_allclose(out.item(), value(e, s).mean(), rtol=1e-12)
    # the stop-gradient of GRAM is in the hand-written derivative: a gradient through sigmoid(s) would show here
    np.testing.assert_allclose(pred.grad, d_error(e, s) * 255 * np.sign(p - t) / e.size, rtol=1e-10)
    np.testing.assert_allclose(log_scale.grad, d_scale(e, s) / e.size, rtol=1e-10)


@pytest.mark.parametrize(('loss', 'optimum'), [
    (EULoss(), lambda e: math.log(e)),
    (GaussianNLLLoss(), lambda e: math.log(e)),
    (ESULoss(), lambda e: math.log(e / 2)),
    (GRAMLoss(norm='l2'), lambda e: math.log(e)),
])
def test_optimum_of_s_alone(loss, optimum):
    error = 3.5
    target = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    pred = target + error / 255
    s = torch.zeros_like(target, requires_grad=True)
    optimizer = torch.optim.LBFGS([s], lr=0.5, max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        value = loss(pred, target, s)
        value.backward()
        return value

    optimizer.step(closure)
    assert s.item() == pytest.approx(optimum(error), abs=1e-5)


def test_terms_sum_to_the_loss_and_are_apart():
    pred, target, log_scale = maps(2)
    fidelity, log_term = ESULoss(loss_weight=0.5).terms(pred, target, log_scale)
    error = 255 * (pred - target).abs()
    assert fidelity.item() == pytest.approx(0.5 * (torch.exp(-log_scale) * error).mean().item())
    assert log_term.item() == pytest.approx(log_scale.mean().item())  # 0.5 * 2s
    assert ESULoss(loss_weight=0.5)(pred, target, log_scale).item() == pytest.approx((fidelity + log_term).item())


@pytest.mark.parametrize('value', [-20., 20.])
def test_extreme_s_stays_finite(value):
    target = torch.rand(SHAPE)
    s = torch.full(SHAPE, value, requires_grad=True)
    for loss in (EULoss(), ESULoss(), GaussianNLLLoss(), GRAMLoss()):
        out = loss(target, target, s)  # e = 0
        out.backward()
        assert torch.isfinite(out)
        assert torch.isfinite(s.grad).all()


# ---------------------------------------------------------------------------------------------------------------- UDL

SCALINGS = {
    'linear': lambda s, m: s - m,
    'exp': lambda s, m: np.exp(s),
    'sqrt_exp': lambda s, m: np.exp(s)**0.5,
    'log': lambda s, m: np.log(1 + s - m),
}


@pytest.mark.parametrize('scaling', SCALINGS)
@pytest.mark.parametrize('min_over', ['image', 'channel', 'batch'])
@pytest.mark.parametrize('offset', [0.0, 1.0])
def test_udl_value_and_gradient(scaling, min_over, offset):
    pred, target, log_scale = maps(3, requires_grad=True)
    p, t, s = (m.detach().numpy() for m in (pred, target, log_scale))
    weight = np.empty_like(s)
    for n in range(SHAPE[0]):
        for c in range(SHAPE[1]):
            minimum = {'image': s[n], 'channel': s[n, c], 'batch': s}[min_over].min()
            weight[n, c] = SCALINGS[scaling](s[n, c], minimum) + offset
    out = UDLLoss(scaling=scaling, offset=offset, min_over=min_over)(pred, target, log_scale)
    out.backward()
    np.testing.assert_allclose(out.item(), (weight * np.abs(p - t)).mean(), rtol=1e-12)
    np.testing.assert_allclose(pred.grad, weight * np.sign(p - t) / p.size, rtol=1e-12, atol=1e-18)
    assert log_scale.grad is None  # the uncertainty is frozen


def test_gradient_map_by_hand():
    image = np.random.default_rng(5).random((2, 1, 5, 7))
    expected = np.zeros_like(image)
    for i in range(5):
        for j in range(7):
            down = image[:, :, i + 1, j] - image[:, :, i, j] if i < 4 else 0
            right = image[:, :, i, j + 1] - image[:, :, i, j] if j < 6 else 0
            expected[:, :, i, j] = np.sqrt(np.square(down) + np.square(right))
    np.testing.assert_allclose(F.gradient_map(torch.tensor(image)), expected, atol=1e-15)


@pytest.mark.parametrize('scaling', SCALINGS)
@pytest.mark.parametrize('img_range', [1., 255.])
@pytest.mark.parametrize('weight_map', WeightMapLoss.WEIGHT_MAPS)
def test_weight_maps_in_every_scaling(weight_map, img_range, scaling):
    if 'exp' in scaling and img_range > 1:
        return  # refused
    pred, target, _ = maps(6)
    lq = target[..., ::2, :]
    found = {'error': (pred - target).abs(), 'hr_gradient': F.gradient_map(target),
             'lr_gradient': F.gradient_map(lq).repeat_interleave(2, -2)}[weight_map].numpy() * img_range
    weight = np.stack([SCALINGS[scaling](one, one.min()) for one in found])
    loss = WeightMapLoss(weight_map=weight_map, scaling=scaling, img_range=img_range)
    expected = (weight * (pred - target).abs().numpy()).mean()
    assert loss(pred, target, lq=lq).item() == pytest.approx(expected, rel=1e-12)
    if weight_map == 'lr_gradient':
        with pytest.raises(ValueError, match='low-quality input'):
            loss(pred, target)
        with pytest.raises(ValueError, match='gradients_of_lq'):  # which would broadcast
            loss(pred, target, lq=lq[:, :1])
    # the steepest image there is: still a number in float32
    steep = torch.zeros(1, 1, 4, 4)
    steep[..., 1, 1] = 1
    assert loss(torch.zeros_like(steep), steep, lq=steep).isfinite()


def test_no_gradient_through_the_error_map():
    pred, target, _ = maps(7, requires_grad=True)
    WeightMapLoss(weight_map='error')(pred, target).backward()
    e = (pred - target).detach()
    weight = e.abs() - e.abs().amin((1, 2, 3), keepdim=True)
    torch.testing.assert_close(pred.grad, weight * e.sign() / e.numel())


# ----------------------------------------------------------------------------------------------------------- all losses


@pytest.mark.parametrize('name', ['EULoss', 'ESULoss', 'GaussianNLLLoss', 'GRAMLoss', 'UDLLoss'])
def test_float32_under_autocast(name):
    """bf16 keeps 8 bits: a loss computed in it would be off by about 0.4 %."""
    loss = build_loss({'type': name})
    pred, target, log_scale = (m.float() for m in maps(8))
    reference = loss(pred.double(), target.double(), log_scale.double())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = loss(pred, target, log_scale)
        half = loss(pred.bfloat16(), target.bfloat16(), log_scale.bfloat16())
    assert out.dtype == half.dtype == torch.float32
    assert out.item() == pytest.approx(reference.item(), rel=1e-6)
    rounded = loss(*(m.bfloat16().double() for m in (pred, target, log_scale)))
    assert half.item() == pytest.approx(rounded.item(), rel=1e-6)


@pytest.mark.parametrize('name', ['EULoss', 'ESULoss', 'GaussianNLLLoss', 'GRAMLoss', 'UDLLoss', 'WeightMapLoss'])
def test_reduction_and_weight(name):
    args = maps(9) if name != 'WeightMapLoss' else maps(9)[:2]
    full = build_loss({'type': name, 'reduction': 'none'})(*args)
    assert full.shape == SHAPE
    assert build_loss({'type': name, 'loss_weight': 3.})(*args).item() == pytest.approx(3 * full.mean().item())
    assert build_loss({'type': name, 'reduction': 'sum'})(*args).item() == pytest.approx(full.sum().item())


@pytest.mark.parametrize(('make', 'named'), [
    (lambda: EULoss(reduction='average'), 'reduction'),
    (lambda: EULoss(img_range=0), 'img_range'),
    (lambda: GRAMLoss(norm='l3'), 'norm'),
    (lambda: UDLLoss(scaling='square'), 'scaling'),
    (lambda: UDLLoss(min_over='row'), 'min_over'),
    (lambda: WeightMapLoss(weight_map='sobel'), 'weight_map'),
    (lambda: WeightMapLoss(img_range=0), 'img_range: expected a positive number'),
    (lambda: WeightMapLoss(scaling='exp', img_range=255), 'img_range: scaling exp of maps up to 361 passes the range'),
    (lambda: WeightMapLoss(scaling='sqrt_exp', img_range=255), 'scaling sqrt_exp of maps up to 361'),
    (lambda: EULoss()(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5)), 'log_scale'),
])
def test_bad_arguments_are_named(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.fixture
def warned(caplog):
    """The warnings of what is called."""
    def of(call, *args):
        caplog.clear()
        with caplog.at_level(logging.WARNING, 'basicsr'):
            logging.getLogger('basicsr').addHandler(caplog.handler)
            call(*args)
            logging.getLogger('basicsr').removeHandler(caplog.handler)
        return {record.getMessage() for record in caplog.records}
    return of


def test_floor_is_noticed_once_with_its_cause(warned):
    pred, target, _ = maps(10)
    on_floor = torch.full(SHAPE, -0.999)
    loss = EULoss(img_range=1.)

    def several():
        for _ in range(8):
            loss(pred, target, on_floor)
        EULoss()(pred, target, torch.zeros(SHAPE))

    (message, ) = warned(several)
    assert 'img_range=1' in message


@pytest.mark.parametrize(('loss', 'count', 'floor'), [
    (GaussianNLLLoss(img_range=1.), 1, '-1.23'), (GRAMLoss(norm='l2', img_range=1.), 1, '-1.23'),
    (GeneralisedGaussianLoss(img_range=1.), 2, '-1'), (QuantileLoss(img_range=1., level=0.5), 2, '-2')])
def test_the_floor_of_any_head_is_noticed(warned, loss, count, floor):
    pred, target, _ = maps(10)
    (message, ) = warned(loss, pred, target, torch.full((SHAPE[0], count * SHAPE[1], *SHAPE[2:]), -0.999))
    assert f'(s = {floor})' in message
    assert 'img_range=1' in message
    assert not warned(type(loss)(), pred, target, torch.zeros(SHAPE[0], count * SHAPE[1], *SHAPE[2:]))


def test_udl_knows_the_floor_by_its_weights(warned):
    """Of a Gaussian head s = ln(sigma) - 0.23: below -1 it still tells pixels apart, until all are the same."""
    pred, target, _ = maps(10)
    varied = torch.linspace(-1.2, -1., pred.numel()).view(SHAPE)
    assert not warned(UDLLoss(), pred, target, varied)
    (message, ) = warned(UDLLoss(), pred, target, torch.full(SHAPE, -1.2258))
    assert 'the weights are constant there' in message


def test_the_floor_trap_itself():
    """With pixels in [0, 1] and img_range 1, a head that ends in ELU is driven to its floor; with 255 it is not."""
    torch.manual_seed(0)
    target = torch.rand(1, 3, 8, 8)
    pred = target + 3.5 / 255
    shares = {}
    for img_range in (1., 255.):
        raw = torch.zeros_like(target, requires_grad=True)
        optimizer = torch.optim.Adam([raw], lr=0.3)
        for _ in range(300):
            optimizer.zero_grad()
            ESULoss(img_range=img_range)(pred, target, torch.nn.functional.elu(raw)).backward()
            optimizer.step()
        shares[img_range] = F.floor_share(torch.nn.functional.elu(raw)).item()
    assert shares == {1.: 1., 255.: 0.}
