"""What the uncertainty may touch: faithful and post hoc training leave the mean network as it were without a head."""
from pathlib import Path

import pytest
import torch
import yaml
from basicsr.utils.registry import ARCH_REGISTRY
from conftest import assert_same_weights, batch
from torch import nn

from udl_basicsr.archs import UncertaintyNet
from udl_basicsr.losses import ESULoss, EULoss
from udl_basicsr.options.parse import OptionError, parse_options
from udl_basicsr.training.stages import train

NAMES = ('none', 'mean', 'features', 'all')


class NormNet(nn.Module):
    """Batch norm and dropout: what would betray training mode, and a random state that a head has touched."""
    default_tap = 'up'

    def __init__(self, num_feat=8):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, num_feat, 3, 1, 1), nn.BatchNorm2d(num_feat), nn.ReLU(), nn.Dropout(0.2))
        self.up = nn.Sequential(nn.Conv2d(num_feat, 12, 3, 1, 1), nn.PixelShuffle(2))

    def forward(self, lq):
        return self.up(self.body(lq))


ARCH_REGISTRY.register()(NormNet)


@pytest.fixture
def write(project):
    """Writes an option file of the project: stage, name, and what else is to be."""

    def put(name, stage, train_opt, network=None, **others):
        options = {'_base_': '_base_.yml', 'name': name, 'stage': stage, 'train': train_opt, **others}
        if network:
            options['network_g'] = network
        (project.root / f'{name}.yml').write_text(yaml.safe_dump(options))
        return name

    return put


def state_of(project, run):
    folder = project.root / 'experiments' / run / 'training_states'
    return torch.load(next(folder.glob('8.state')), weights_only=True)['optimizers'][0]


L1 = {'type': 'L1Loss'}
CASES = {
    'float32': ({'pixel_opt': L1, 'grad_clip': 0.05, 'ema_decay': 0.9}, {}),
    'bf16': ({'pixel_opt': L1, 'amp': 'bf16', 'channels_last': True, 'accumulate': 2, 'grad_clip': 0.05,
              'optim_g': {'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 0.1, 'fused': True}}, {}),
    'random': ({'pixel_opt': {'type': 'ExpectedL1Loss'}, 'optim_g': {'type': 'Adam', 'lr': 1e-3, 'foreach': True}},
               {'network': {'type': 'NormNet'}}),
}


@pytest.mark.parametrize('case', CASES)
def test_faithful_training_gives_bit_for_bit_the_network_of_plain_training(project, write, case):
    options, others = CASES[case]
    for name, stage, more, network_u in (('alone', 'plain', {}, {'network_u': None}), ('faithful', 'esu', {
            'likelihood_opt': {'type': 'EULoss', 'detach': 'all', 'loss_weight': 50.}}, {})):
        write(name, stage, {**options, **more}, **others, **network_u)
        train(project.parse(name))
    for key in ('params', 'params_ema') if options.get('ema_decay') else ('params', ):
        for iteration in (4, 8, 'latest'):
            assert_same_weights(project.weights('alone', iteration, key=key),
                                project.weights('faithful', iteration, key=key))
    alone, both = state_of(project, 'alone'), state_of(project, 'faithful')
    assert 0 < len(alone['state']) < len(both['state'])
    for index, moments in alone['state'].items():
        assert_same_weights(moments, both['state'][index])
    before, after = (project.weights('faithful', iteration, 'u') for iteration in (4, 8))
    assert all((after[key] != before[key]).any() for key in after if key.startswith('head.'))


def test_without_detaching_the_likelihood_trains_the_image_as_well(project, write):
    for name in ('mean', 'all'):
        write(name, 'esu', {'pixel_opt': L1, 'likelihood_opt': {'type': 'EULoss', 'detach': name}})
        train(project.parse(name))
    a, b = (project.weights(name) for name in ('mean', 'all'))
    assert any((a[key] != b[key]).any() for key in a)


def test_post_hoc_the_head_alone_is_trained(project, write):
    network = {'type': 'NormNet'}
    write('first', 'plain', {'pixel_opt': L1, 'ema_decay': 0.5}, network, network_u=None)
    train(project.parse('first'))
    weights = project.root / 'experiments/first/models/net_g_latest.pth'
    write('head', 'esu', {'likelihood_opt': {'type': 'ESULoss', 'detach': 'all'}, 'ema_decay': 0.9,
                          'optim_g': {'type': 'AdamW', 'lr': 1e-2, 'weight_decay': 0.5}}, network,
          path={'pretrain_network_g': str(weights)})
    train(project.parse('head'))
    before = project.weights('first', key='params_ema')  # what a test would take
    assert any((before[key] != value).any() for key, value in project.weights('first').items())
    assert 'num_batches_tracked' in ' '.join(before)
    for iteration in (4, 'latest'):
        for key in ('params', 'params_ema'):
            assert_same_weights(before, project.weights('head', iteration, key=key))
        in_u = project.weights('head', iteration, 'u')
        assert_same_weights(before, {key.removeprefix('mean_network.'): value for key, value in in_u.items()
                                     if not key.startswith('head.')})
    assert any((value != project.weights('head', 4, 'u')[key]).any() for key, value in in_u.items() if 'head' in key)
    assert len(state_of(project, 'head')['state']) == sum(key.startswith('head.') for key in in_u)
    # interrupted and resumed it ends the same
    state = project.root / 'experiments/head/training_states/4.state'
    (project.root / 'experiments/head').rename(project.root / 'whole')
    moved = project.root / 'experiments/head'
    for file in ('models/net_g_4.pth', 'models/net_u_4.pth', 'training_states/4.state'):
        (moved / file).parent.mkdir(parents=True, exist_ok=True)
        (moved / file).write_bytes((project.root / 'whole' / file).read_bytes())
    train(project.parse('head', auto_resume=True))
    assert state.exists()
    assert_same_weights(in_u, project.weights('head', label='u'))


def test_post_hoc_needs_a_network_that_is_trained(project, write):
    write('head', 'esu', {'likelihood_opt': {'type': 'ESULoss', 'detach': 'all'}})
    with pytest.raises(OptionError, match=r'path\.pretrain_network_g: missing; with train\.likelihood_opt'):
        project.parse('head')


@pytest.mark.parametrize(('train_opt', 'network_u', 'message'), [
    ({'pixel_opt': L1, 'likelihood_opt': {'type': 'EULoss', 'detach': 'mean'}}, {'detach': 'features'},
     r"network_u\.detach: 'features' \(str\) contradicts train\.likelihood_opt\.detach: mean"),
    ({'pixel_opt': L1, 'likelihood_opt': {'type': 'EULoss', 'detach': 'all'}}, {'freeze': True},
     r'network_u\.freeze: True \(bool\) contradicts train\.likelihood_opt\.detach: all'),
    ({'likelihood_opt': {'type': 'EULoss', 'detach': 'mean'}}, {},
     r'train\.likelihood_opt\.detach: mean without another loss'),
])
def test_what_contradicts_the_detach_of_the_loss_is_refused(project, write, train_opt, network_u, message):
    write('wrong', 'esu', train_opt, network_u={'type': 'UncertaintyNet', **network_u})
    with pytest.raises(OptionError, match=message):
        project.parse('wrong')


def test_udl_by_an_s_that_goes_on_learning(project, write):
    write('both', 'esu', {'likelihood_opt': {'type': 'ESULoss', 'detach': 'all'}, 'udl_opt': {'type': 'UDLLoss'}},
          stage1='esu.yml')
    train(project.parse('both'))
    log = project.log('both')
    assert 'l_udl' in log
    assert 'l_fidelity' in log
    assert Path(project.root / 'experiments/esu/models/net_u_latest.pth').exists()  # which came first
    model = project.model('both')
    model.feed_data(batch())
    model.optimize_parameters(1)
    start = project.weights('esu', label='u')
    with torch.no_grad():  # the weights of the error are the s that the head says before the step
        net = UncertaintyNet(model.opt['network_g'], model.opt['network_u']['head'])
        net.load_state_dict(start)
        mean, s = net(batch()['lq'])
    expected = ((s - s.amin(dim=(1, 2, 3), keepdim=True)) * (batch()['gt'] - mean).abs()).mean()
    assert model.get_current_log()['l_udl'] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize('detach', NAMES)
def test_what_each_gradient_reaches(detach):
    torch.manual_seed(0)
    net = UncertaintyNet(NormNet(), {'type': 'UDLHead'}, detach=detach).eval().double()
    data = {key: value.double() for key, value in batch().items()}

    def gradients(loss):
        grads = torch.autograd.grad(loss, list(net.mean_network.parameters()), allow_unused=True, retain_graph=True)
        return {name: grad is not None and bool(grad.any())
                for (name, _), grad in zip(net.mean_network.named_parameters(), grads, strict=True)}

    mean, s = net(data['lq'])
    by_s = gradients(s.sum())
    assert by_s['body.0.weight'] is (detach in ('none', 'mean'))
    assert not by_s['up.0.weight']
    by_loss = gradients(EULoss(detach=detach)(mean, data['gt'], s))
    assert by_loss['up.0.weight'] is (detach in ('none', 'features'))
    assert by_loss['body.0.weight'] is (detach != 'all')


def test_a_frozen_mean_network_stays_in_eval_mode():
    net = UncertaintyNet(NormNet(), {'type': 'UDLHead'}, freeze=True)
    assert net.train().head.training
    assert not any(module.training for module in net.mean_network.modules())
    assert {name.split('.')[0] for name, p in net.named_parameters() if p.requires_grad} == {'head'}


def test_wrong_names_are_refused():
    with pytest.raises(ValueError, match='detach: expected one of none, mean, features, all'):
        ESULoss(detach='yes')
    with pytest.raises(ValueError, match='detach: expected one of none, mean, features, all'):
        UncertaintyNet(NormNet(), detach='image')


@pytest.mark.parametrize(('head', 'loss', 'message'), [
    ({}, {'type': 'QuantileLoss'}, 'QuantileLoss trains a head of distribution quantile, and network_u.head is of lap'),
    ({'distribution': 'gaussian'}, {'type': 'ESULoss'}, 'ESULoss trains a head of distribution laplace'),
    ({'distribution': 'quantile', 'level': 0.8}, {'type': 'QuantileLoss'}, r'likelihood_opt\.level: 0\.9 \(float\) is'),
    ({}, {'type': 'GRAMLoss', 'norm': 'l2'}, 'GRAMLoss trains a head of distribution gaussian'),
    ({'type': 'ConstantHead'}, {'type': 'QuantileLoss'}, 'and network_u.head is of laplace'),
    ({'type': 'UDLHed'}, {'type': 'QuantileLoss'}, "did you mean 'UDLHead'"),
])
def test_a_loss_that_does_not_fit_the_head_is_refused(project, write, head, loss, message):
    network_u = {'type': 'UncertaintyNet', 'head': {'type': 'UDLHead', **head}}
    write('wrong', 'esu', {'likelihood_opt': loss}, network_u=network_u)
    with pytest.raises(OptionError, match=message):
        project.parse('wrong')


@pytest.mark.parametrize(('head', 'loss'), [
    ({'distribution': 'quantile'}, {'type': 'QuantileLoss', 'detach': 'all'}),
    ({'distribution': 'generalised_gaussian'}, {'type': 'GeneralisedGaussianLoss', 'detach': 'mean'}),
])
def test_heads_of_two_maps_are_trained_and_weight_the_second_stage(project, write, head, loss):
    network_u = {'type': 'UncertaintyNet', 'head': {'type': 'UDLHead', **head}}
    write('one', 'esu', {'pixel_opt': L1, 'likelihood_opt': loss, 'total_iter': 4}, network_u=network_u)
    write('two', 'udl', {'udl_opt': {'type': 'UDLLoss'}, 'total_iter': 4}, network_u=network_u, stage1='one.yml')
    train(project.parse('two'))
    assert 's_mean' in project.log('one')
    assert torch.isfinite(torch.cat([v.flatten() for v in project.weights('two').values()])).all()


def test_one_option_file_refines_a_network_that_is_trained(project, write):
    """Stage 1 as a block: the head is trained post hoc on somebody's weights, then UDL goes on from these."""
    write('first', 'plain', {'pixel_opt': L1}, network_u=None)
    train(project.parse('first'))
    weights = str(project.root / 'experiments/first/models/net_g_latest.pth')
    write('refine', 'udl', {'udl_opt': {'type': 'UDLLoss'}, 'pixel_opt': L1, 'total_iter': 4}, stage1={
        'stage': 'esu', 'path': {'pretrain_network_g': weights},
        'train': {'likelihood_opt': {'type': 'EULoss', 'detach': 'all'}, 'total_iter': 2}})
    parsed = project.parse('refine')
    assert parsed.stage1.flat['name'] == 'refine_stage1'
    # with a loss of stage 2 the head would not be alone, and the network no constant
    assert not {'udl_opt', 'pixel_opt'} & parsed.stage1.flat['train'].keys()
    train(parsed)
    assert_same_weights(project.weights('first'), project.weights('refine_stage1'))
    moved = project.weights('refine')
    assert any((moved[key] != value).any() for key, value in project.weights('first').items())
    # the run's own file says all of it, and is trained from again
    again = parse_options(str(project.root / 'experiments/refine/refine.yml'), root_path=str(project.root),
                          is_train=True, num_gpu_available=0)
    assert again.stage1.flat == parsed.stage1.flat
    (project.root / 'experiments/first/models/net_g_latest.pth').unlink()
    with pytest.raises(OptionError, match=r'refine\.yml: in stage1: path\.pretrain_network_g: no such file'):
        project.parse('refine')
