"""Losses that train.accumulate would make others, and losses that would have to be trained themselves."""
from types import SimpleNamespace

import pytest
import torch
from basicsr.archs import vgg_arch
from basicsr.models import build_model
from basicsr.utils.registry import LOSS_REGISTRY
from conftest import batch
from torch import nn

from udl_basicsr.options.parse import OptionError
from udl_basicsr.options.trials import try_loss

FRO = 'train:perceptual_opt={type: PerceptualLoss, layer_weights: {conv1_2: 1.0}, criterion: fro}'


class OverTheBatchLoss(nn.Module):
    """The mean of |x - f|, over its largest of the batch."""

    def forward(self, pred, target):
        error = (target - pred).abs()
        return (error / error.max().detach()).mean()


class LearnedWeightLoss(nn.Module):
    """exp(-t) |x - f| + t, t a parameter."""

    def __init__(self):
        super().__init__()
        self.log_scale_of_all = nn.Parameter(torch.zeros(()))

    def forward(self, pred, target):
        return (target - pred).abs().mean() * torch.exp(-self.log_scale_of_all) + self.log_scale_of_all


for _loss in (OverTheBatchLoss, LearnedWeightLoss):
    LOSS_REGISTRY.register()(_loss)


@pytest.fixture
def random_vgg(monkeypatch):
    """Its first layers: the weights of the real one would be fetched."""
    features = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1), nn.ReLU(inplace=True), nn.Conv2d(64, 64, 3, 1, 1))
    monkeypatch.setattr(vgg_arch.vgg, 'vgg19', lambda pretrained: SimpleNamespace(features=features))


def test_a_norm_over_the_batch_is_none_over_its_parts(project, random_vgg):
    """BasicSR's PerceptualLoss with the Frobenius norm: in four parts its gradient was half as large."""
    with pytest.raises(OptionError, match=r'train\.perceptual_opt\.criterion: expected l1 or l2, got fro'):
        project.parse('plain', FRO, 'train:accumulate=4', check_files=False)
    opt = project.parse('plain', FRO, check_files=False).opt
    model = build_model(opt)
    model.feed_data(batch())
    model.optimize_parameters(1)  # in one part it is trained as ever
    opt['train']['accumulate'] = 4
    with pytest.raises(ValueError, match=r"train\.perceptual_opt\.criterion: expected 'l1', got 'fro'"):
        build_model(opt)


def test_a_loss_that_is_no_mean_over_images_is_warned_of(project):
    """Where parts are taken, and there alone; the gradient then is another one, which is why."""
    mine = 'train:pixel_opt={type: OverTheBatchLoss}'
    (warning, ) = project.parse('plain', mine, 'train:accumulate=2').warnings
    assert 'train.pixel_opt: OverTheBatchLoss of a batch is not the mean over its images' in warning
    assert project.parse('plain', mine).warnings == ()
    data = batch()
    data['gt'][:2] *= 0.1
    whole, parts = (project.model('plain', mine, f'train:accumulate={count}') for count in (1, 2))
    parts.net_g.load_state_dict(whole.net_g.state_dict())
    for model in (whole, parts):
        model.feed_data(data)
        model.optimize_parameters(1)
    one, other = (model.net_g.conv_first.weight.grad for model in (whole, parts))
    assert (one - other).abs().max() > 0.01 * one.abs().max()


@pytest.mark.parametrize(('key', 'block'), [
    ('pixel_opt', {'type': name}) for name in (
        'L1Loss', 'MSELoss', 'CharbonnierLoss', 'WeightedTVLoss', 'SSIMLoss', 'GradientVarianceLoss', 'WeightMapLoss',
        'ExpectedL1Loss')] + [
    ('likelihood_opt', {'type': name}) for name in (
        'EULoss', 'ESULoss', 'GRAMLoss', 'GaussianNLLLoss', 'BetaNLLLoss', 'GeneralisedGaussianLoss',
        'QuantileLoss')] + [
    ('udl_opt', {'type': 'UDLLoss', 'scaling': 'log'}), ('sigma_opt', {'type': 'SigmaLoss'}),
    ('sigma_opt', {'type': 'TrainedExpectedL1Loss'})])
def test_no_other_loss_is_warned_of(key, block):
    assert try_loss(key, LOSS_REGISTRY.get(block['type']), block, 3, 16, 2, in_parts=True) == ('', False)


@pytest.mark.parametrize(('block', 'differs'), [
    ({'type': 'UDLLoss', 'min_over': 'batch'}, True), ({'type': 'UDLLoss', 'reduction': 'sum'}, True),
    ({'type': 'UDLLoss', 'min_over': 'channel'}, False)])
def test_what_is_refused_for_its_parts_would_be_seen_as_well(block, differs):
    assert try_loss('udl_opt', LOSS_REGISTRY.get('UDLLoss'), block, 3, 16, 2, in_parts=True) == ('', differs)


def test_a_loss_with_parameters_is_said_not_to_be_trained(project, caplog):
    project.model('plain', 'train:gv_opt={type: GradientVarianceLoss}')
    assert 'no optimiser trains' not in caplog.text
    model = project.model('plain', 'train:pixel_opt={type: LearnedWeightLoss}')
    assert ('train.pixel_opt: LearnedWeightLoss has parameters that no optimiser trains, since it is a loss: '
            'log_scale_of_all.') in caplog.text
    model.feed_data(batch())
    model.optimize_parameters(1)
    assert not model.criteria['pixel_opt'].log_scale_of_all.detach()
