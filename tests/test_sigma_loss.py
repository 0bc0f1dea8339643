"""The sigma branch of the expected L1 loss, and its head."""
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from basicsr.archs import build_network
from loss_checks import arguments

from udl_basicsr.archs import SigmaHead, UncertaintyNet
from udl_basicsr.functional import losses as F
from udl_basicsr.losses import SigmaLoss


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


def block_of_option_file(**changes):
    file = Path(__file__).parent.parent / 'options/_base_/sigma.yml'
    block = yaml.safe_load(file.read_text(encoding='utf-8'))['train']['sigma_opt'] | changes
    assert block.pop('type') == 'SigmaLoss'
    return block


def test_eq_10_alone_is_as_printed_in_the_plan_of_table_1():
    plan = yaml.safe_load((Path(__file__).parent.parent / 'options/papers/le-1.yml').read_text(encoding='utf-8'))
    changes = plan['methods']['sigma_alone']['options']['train']['sigma_opt']
    loss = SigmaLoss(**block_of_option_file(**changes, loss_weight=1.))
    pred, target, sigma = arguments('SigmaLoss')
    pred.requires_grad_()
    out = loss(pred, target, sigma)
    out.backward()
    x, mu = target.numpy(), pred.detach().numpy()
    np.testing.assert_allclose(out.item(), np.abs(x - mu - sigma.numpy()).mean(), rtol=1e-12)
    np.testing.assert_allclose(pred.grad, np.sign(mu + sigma.numpy() - x) / x.size, rtol=1e-12)


def test_what_the_option_file_teaches_sigma_is_the_error_and_not_0():
    # e is exponentially distributed, 63 % of it below its mean; the best constant for |e - sigma| is the median
    error = -torch.log1p(-(torch.arange(4096, dtype=torch.float64) + 0.5) / 4096).view(1, 1, 64, 64) / 20
    loss, zero = SigmaLoss(**block_of_option_file()), torch.zeros_like(error)
    sigmas = torch.linspace(0, 0.1, 201, dtype=torch.float64)
    values = [loss(zero, error, torch.full_like(error, sigma)) for sigma in sigmas.tolist()]
    assert sigmas[int(torch.stack(values).argmin())].item() == pytest.approx(math.log(2) / 20, abs=3e-4)


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
