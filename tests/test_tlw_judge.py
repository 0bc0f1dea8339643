"""Trainable loss weights: LPIPS as the judge."""
import re
import warnings

import lpips
import pytest
import torch
from conftest import assert_same_weights

from udl_basicsr.losses import TLWLoss
from udl_basicsr.losses.perceptual import NETS, build_lpips, find_backbone_weights, smallest_image
from udl_basicsr.utils.checkpoints import CheckpointError


def test_the_judge_is_lpips_of_rgb_from_minus_one_to_one():
    judge = build_lpips('squeeze', random_weights=True)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        reference = lpips.LPIPS(net='squeeze', pnet_rand=True, verbose=False)  # with the linear weights of the package
    reference.net.load_state_dict(judge.model.net.state_dict())
    pred, target = torch.rand(4, 3, 32, 40), torch.rand(2, 3, 32, 40)
    with torch.no_grad():
        expected = reference(2 * pred - 1, 2 * target.repeat(2, 1, 1, 1) - 1).flatten()
        torch.testing.assert_close(judge(pred, target), expected)
        assert (judge(pred.flip(1), target.flip(1)) - expected).abs().min() > 1e-4  # BGR is another distance
        gray = pred[:, :1]
        torch.testing.assert_close(judge(gray, gray[:2]), judge(gray.repeat(1, 3, 1, 1), gray[:2].repeat(1, 3, 1, 1)))
        with torch.autocast('cpu', torch.bfloat16):
            torch.testing.assert_close(judge(pred, target), expected, rtol=0, atol=0)


@pytest.mark.parametrize('version', ['0.0', '0.1'])
def test_a_judge_without_linear_layers(version):
    """As ``lpips.LPIPS(lpips=False)``, which TLW's released program trains with."""
    judge = build_lpips('squeeze', random_weights=True, version=version, linear=False)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        reference = lpips.LPIPS(net='squeeze', lpips=False, pretrained=False, pnet_rand=True, version=version,
                                verbose=False)
    reference.net.load_state_dict(judge.model.net.state_dict())
    pred, target = torch.rand(4, 3, 32, 40), torch.rand(2, 3, 32, 40)
    with torch.no_grad():
        expected = reference(2 * pred - 1, 2 * target.repeat(2, 1, 1, 1) - 1).flatten()
        torch.testing.assert_close(judge(pred, target), expected)
        assert (build_lpips('squeeze', random_weights=True, version=version)(pred, target) - expected).abs().min() > 0.1
    loss = TLWLoss(judge='squeeze', judge_random=True, judge_linear=True)
    loss.build_judge()
    assert loss.judge.linear


def test_the_judge_is_frozen_and_has_finite_gradients():
    judge = build_lpips('squeeze', random_weights=True).train()
    assert not any(m.training for m in judge.modules())
    assert not any(p.requires_grad for p in judge.parameters())
    for pred in (torch.rand(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)):
        pred.requires_grad_()
        judge(pred, torch.rand(1, 3, 32, 32)).sum().backward()
        assert pred.grad.isfinite().all()
        assert pred.grad.abs().sum() > 0
    # all features of a place are 0: the derivative of lpips' own norm is NaN there
    for layer in judge.model.net.slice1:
        if isinstance(layer, torch.nn.Conv2d):
            layer.bias.data.fill_(-100)
    pred = torch.rand(1, 3, 32, 32, requires_grad=True)
    judge(pred, torch.rand(1, 3, 32, 32)).sum().backward()
    assert pred.grad.isfinite().all()


def test_random_weights_are_the_same_each_time_and_said(caplog, monkeypatch):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    # a loss builds its judge in its first step, and what that draws next is the step's own
    monkeypatch.setattr(torch.cuda, 'manual_seed_all', lambda seed: pytest.fail('GPUs are seeded anew'))
    with caplog.at_level('WARNING', 'basicsr'):
        a = build_lpips('squeeze', random_weights=True)
    assert 'random backbone' in caplog.text
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_weights(a.state_dict(), build_lpips('squeeze', random_weights=True).state_dict())


@pytest.mark.parametrize(('net', 'name'), [('alex', 'alexnet-owt-7be5be79.pth'), ('vgg', 'vgg16-397923af.pth'),
                                           ('squeeze', 'squeezenet1_1-b8a52dc0.pth')])
def test_missing_weights_are_named(net, name, monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError('the network was asked')

    monkeypatch.setattr('torch.hub.urlopen', refuse)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    place = tmp_path / 'hub' / 'checkpoints' / name
    with pytest.raises(CheckpointError, match=re.escape(str(place))):
        build_lpips(net)
    with pytest.raises(CheckpointError, match=r'elsewhere/weights\.pth'):
        build_lpips(net, 'elsewhere/weights.pth')
    place.parent.mkdir(parents=True)
    place.touch()
    assert find_backbone_weights(net) == place


def test_weights_of_the_backbone(tmp_path):
    import torchvision
    model = torchvision.models.squeezenet1_1(weights=None)
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    judge = build_lpips('squeeze', tmp_path / 'weights.pth')
    img = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(judge.model.net(img)[-1], model.features.eval()(img))
    torch.save({'features.0.weight': torch.zeros(3)}, tmp_path / 'weights.pth')
    with pytest.raises(CheckpointError, match='squeezenet1_1'):
        build_lpips('squeeze', tmp_path / 'weights.pth')


def test_images_that_the_judge_cannot_compare():
    judge = build_lpips('squeeze', random_weights=True)
    side = smallest_image('squeeze')
    assert judge(torch.rand(1, 3, side, side), torch.rand(1, 3, side, side)).isfinite()
    for pred, target in (((1, 3, side - 1, 40), ) * 2, ((1, 4, 40, 40), ) * 2, ((3, 3, 40, 40), (2, 3, 40, 40))):
        with pytest.raises(ValueError, match=r'LPIPS|expected'):
            judge(torch.rand(pred), torch.rand(target))
    assert set(NETS) == {'alex', 'vgg', 'squeeze'}
