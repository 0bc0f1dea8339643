"""Losses state what they need, and get it: from the model, or from the batch, whatever its data set calls it."""
import pytest
import torch
from basicsr.losses.basic_loss import L1Loss, WeightedTVLoss
from basicsr.losses.gan_loss import GANLoss
from basicsr.utils.registry import LOSS_REGISTRY
from conftest import batch
from torch import nn

from udl_basicsr import losses
from udl_basicsr.losses.base import WeightedLoss, inputs_of
from udl_basicsr.models.stage_table import STAGES


class MaskedLoss(WeightedLoss):
    """Mean error where a mask of the data set is 1."""
    needs = ('mask', )

    def forward(self, pred, target, mask):
        return self.loss_weight * (mask * (pred - target).abs()).mean()


class TwoTerms(nn.Module):
    """Returns as many as BasicSR's PerceptualLoss, of which one is None where it has no weight."""

    def forward(self, x, gt):
        return (x - gt).abs().mean(), None, (x - gt).square().mean()


def test_a_loss_of_several_terms_may_stand_in_a_block_of_any_name(project, monkeypatch):
    monkeypatch.setitem(LOSS_REGISTRY._obj_map, 'TwoTerms', TwoTerms)
    model = project.model('plain', 'train:pixel_opt=~', 'train:vgg_opt={type: TwoTerms}')
    model.feed_data(batch())
    model.optimize_parameters(1)
    error, log = (model.output - model.gt).detach(), model.get_current_log()
    assert log['l_vgg'] == pytest.approx(error.abs().mean().item())
    assert log['l_vgg_3'] == pytest.approx(error.square().mean().item())
    assert 'l_vgg_2' not in log


@pytest.mark.parametrize('own', [True, False])
def test_losses_of_ones_own_get_what_they_need_in_float32(project, monkeypatch, own):
    """The head puts out s in the type of the convolutions; a loss that is not ours has no way to know."""
    class Asks(nn.Module):
        def forward(self, pred, target, log_scale):
            types.update(value.dtype for value in (pred, target, log_scale))
            return (log_scale.exp() - pred).abs().mean()

    types = set()
    monkeypatch.setitem(LOSS_REGISTRY._obj_map, 'Asks', Asks)
    block = 'likelihood_opt' if own else 'udl_opt'
    model = project.model('esu', 'train:amp=bf16', f'train:{block}={{type: Asks}}')
    model.feed_data(batch())
    model.optimize_parameters(1)
    assert types == {torch.float32}


@pytest.fixture
def masked(monkeypatch):
    monkeypatch.setitem(LOSS_REGISTRY._obj_map, 'MaskedLoss', MaskedLoss)
    return 'train:pixel_opt={type: MaskedLoss}'


@pytest.mark.parametrize(('loss', 'needs'), [
    ('ESULoss', 'log_scale'), ('EULoss', 'log_scale'), ('GRAMLoss', 'log_scale'), ('GaussianNLLLoss', 'log_scale'),
    ('UDLLoss', 'log_scale'), ('SigmaLoss', 'sigma'), ('TrainedExpectedL1Loss', 'sigma'), ('WeightMapLoss', 'lq'),
    ('TLWLoss', 'weight_map'), ('ExpectedL1Loss', None), ('SSIMLoss', None), ('GradientVarianceLoss', None)])
def test_ours_state_it(loss, needs):
    assert inputs_of(getattr(losses, loss)) == dict.fromkeys(['target', *([needs] if needs else [])], True)


def test_of_others_the_arguments_are_looked_at():
    class Mine(nn.Module):
        def forward(self, pred, gt, lq, log_scale=None):
            return pred.mean()

    class Bare(nn.Module):
        def forward(self, pred):
            return pred.mean()

    assert inputs_of(Mine) == inputs_of(Mine()) == {'target': True, 'lq': True, 'log_scale': False}
    assert inputs_of(L1Loss) == inputs_of(GANLoss) == {'target': True}
    assert inputs_of(WeightedTVLoss) == inputs_of(Bare) == inputs_of(Bare()) == {}


@pytest.mark.parametrize('stage', ['plain', 'esu', 'udl'])
@pytest.mark.parametrize('force', [(), ('train:accumulate=2', )])
def test_an_entry_of_the_batch_reaches_the_loss_that_needs_it(project, masked, tmp_path, stage, force):
    if stage == 'udl':
        weights = tmp_path / 'net_u.pth'
        torch.save({'params': project.model('esu').net_u.state_dict()}, weights)
        force = (*force, 'stage1=~', f'path:pretrain_network_u={weights}')
    model, data = project.model(stage, masked, *force), batch()
    mask = torch.zeros_like(data['gt'])
    mask[:1] = 1  # of the first image alone, so that parts must not be mixed
    model.feed_data({**data, 'mask': mask, 'other': 'text that no loss needs'})
    model.optimize_parameters(1)
    log = model.get_current_log()
    assert model.given.keys() <= {'mask', 'log_scale'}
    model.feed_data({**data, 'mask': torch.zeros_like(mask)})
    model.optimize_parameters(2)
    assert log['l_pix'] > 0 == model.get_current_log()['l_pix']


def test_what_nobody_has_is_named(project, masked):
    model = project.model('plain', masked)
    model.feed_data(batch())
    with pytest.raises(ValueError, match=r'train\.pixel_opt: MaskedLoss needs mask, and there is target, lq alone'):
        model.optimize_parameters(1)


def test_a_stage_is_a_row():
    assert {name: (row.loss, row.gives, row.trains) for name, row in STAGES.items()} == {
        'plain': (None, None, 'g'), 'esu': ('likelihood_opt', 'log_scale', 'u'), 'udl': ('udl_opt', 'log_scale', 'g'),
        'sigma': ('sigma_opt', 'sigma', 'u')}
