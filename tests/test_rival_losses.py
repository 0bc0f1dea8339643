"""SSIM, and what all losses beside the uncertainty ones have in common."""
import math

import numpy as np
import pytest
import torch
from basicsr.losses import build_loss
from loss_checks import SHAPE, arguments, assert_value_and_gradient, images
from skimage.metrics import structural_similarity

from udl_basicsr.functional import losses as F
from udl_basicsr.losses import ExpectedL1Loss, GradientVarianceLoss, SigmaLoss, SSIMLoss, TrainedExpectedL1Loss
from udl_basicsr.options.parse import OptionError

NAMES = ['GradientVarianceLoss', 'ExpectedL1Loss', 'TrainedExpectedL1Loss', 'SigmaLoss', 'SSIMLoss']
SAMPLED = ('ExpectedL1Loss', 'TrainedExpectedL1Loss')


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
