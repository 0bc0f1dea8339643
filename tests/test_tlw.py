"""Trainable loss weights: the steps of both networks, whole runs, two processes."""
import copy
import math
import re

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from basicsr.archs import build_network
from conftest import assert_same_weights, batch
from forked import ranks
from test_tlw_loss import mean_square
from whole_runs import files, train

from udl_basicsr.functional import tlw
from udl_basicsr.options.parse import OptionError, parse_options
from udl_basicsr.training import loop
from udl_basicsr.utils import distributed
from udl_basicsr.utils.checkpoints import CheckpointError

_TWO = ['datasets:train:batch_size_per_gpu=2', 'train:accumulate=2', 'logger:save_checkpoint_freq=2', 'val=~']


@pytest.fixture
def tlw_project(project):
    (project.root / 'tlw.yml').write_text(yaml.safe_dump({
        '_base_': '_base_.yml', 'name': 'tlw', 'model_type': 'TLWModel', 'network_u': None,
        'network_w': {'type': 'TLWNet', 'num_feat': 8},
        'train': {'tlw_opt': {'type': 'TLWLoss', 'judge': 'squeeze', 'judge_random': True, 'k_tau': 2},
                  'optim_w': {'type': 'Adam', 'lr': 1e-2}},
    }))
    return project


def step(model, number):
    model.iters_per_epoch = 3
    torch.manual_seed(number)
    model.update_learning_rate(number)
    model.feed_data(batch(number))
    model.optimize_parameters(number)


@pytest.mark.parametrize('force', [
    (), ('train:tlw_opt:base=mse', 'train:tlw_opt:deterministic=true', 'train:optim_w=~'),
    ('train:tlw_opt:order=joint', 'train:tlw_opt:form=log_sum_exp'),
    ('train:amp=bf16', 'train:accumulate=2', 'train:grad_clip=0.1', 'train:ema_decay=0.9', 'train:channels_last=true'),
    ('train:amp=fp16', 'train:grad_clip=0.1', 'train:pixel_opt={type: MSELoss}'),
], ids=['l1', 'mse', 'joint', 'bf16', 'fp16'])
def test_both_networks_learn(tlw_project, force):
    model = tlw_project.model('tlw', *force)
    before = [{k: v.clone() for k, v in n.state_dict().items()} for n in (model.net_g, model.net_w)]
    for number in range(1, 5):
        step(model, number)
        assert model.get_current_log()['k'] == pytest.approx(tlw.k_schedule((number - 1) // 3, tau=2.))
    for network, old in zip((model.net_g, model.net_w), before, strict=True):
        changed = [k for k, v in network.state_dict().items() if not torch.equal(v, old[k])]
        assert len(changed) > 0.9 * len(old)
    log = model.get_current_log()
    others = ['l_pix'] if 'train:pixel_opt={type: MSELoss}' in force else []
    figures = ['l_tlw', *others, 'wc_mean', 'w_mean', 'k', 'grad_norm']
    joint = 'train:tlw_opt:order=joint' in force
    assert list(log) == (['l_wc', *figures, 'grad_norm_w'] if joint else ['l_wc', 'grad_norm_w', *figures])
    assert log['w_mean'] == pytest.approx(log['k'], rel=1e-4)
    assert all(np.isfinite(v) for v in log.values())
    assert all(p.grad is None for p in model.criteria['tlw_opt'].parameters())


def algorithm_1(net_g, net_w, optim_g, optim_w, data, k, parts, clip):
    """An iteration as it is printed, with formulas of its own; the batch in parts, whose gradients add up."""
    batches = [(lq, gt, len(lq) / len(data['lq'])) for lq, gt in zip(
        data['lq'].chunk(parts), data['gt'].chunk(parts), strict=True)]

    def g(x, f):
        p = torch.sigmoid(net_w.body(torch.cat([x, f], dim=1)))
        total, count = p.sum((2, 3), keepdim=True), p[0, 0].numel()
        return torch.where(k * count > total, p + (k * count - total) / (count - total) * (1 - p),
                           p * (k * count / total))

    def draw(p):
        u = torch.rand((1, *p.shape), dtype=p.dtype)[0]
        odds = p / (1 - p) * u / (1 - u)
        return odds**10 / (1 + odds**10)  # temperature 0.1

    def wc(w, f, x):
        over = (w * f + (1 - w) * x - x).square().mean((1, 2, 3)) + 0.001
        return over / (((1 - w) * f + w * x - x).square().mean((1, 2, 3)) + 0.001)

    def train(network, optimizer, loss):
        optimizer.zero_grad()
        for lq, gt, share in batches:
            (share * loss(lq, gt)).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()

    def loss_phi(y, x):
        f = net_g(y).detach()
        return -wc(draw(g(x, f)), f, x).log().mean()

    def loss_theta(y, x):
        f = net_g(y)
        with torch.no_grad():
            samples = torch.rand((3, *x.shape), dtype=x.dtype)  # T = 3 in one call, as the loss draws them
            p = g(x, f)
            odds = [(p / (1 - p) * u / (1 - u))**10 for u in samples]
            weight = sum(wc(w, f, x).view(-1, 1, 1, 1) * w for w in (o / (1 + o) for o in odds))
        return (weight * (x - f).abs()).mean()

    train(net_w, optim_w, loss_phi)
    train(net_g, optim_g, loss_theta)


@pytest.mark.parametrize(('parts', 'clip'), [(1, math.inf), (2, 0.05)])
def test_an_iteration_is_algorithm_1(tlw_project, parts, clip):
    """Both optimisers in float64: phi steps first, and theta's weights come from the phi that has stepped."""
    force = [f'train:accumulate={parts}', *([] if clip == math.inf else [f'train:grad_clip={clip}'])]
    model = tlw_project.model('tlw', *force)
    del model.criteria['tlw_opt'].judge  # the module, which a function cannot take the place of
    model.criteria['tlw_opt'].judge = mean_square
    nets = [n.double() for n in (model.net_g, model.net_w)]
    own = [copy.deepcopy(n) for n in nets]
    optimizers = [torch.optim.Adam(n.parameters(), lr=lr) for n, lr in zip(own, (1e-3, 1e-2), strict=True)]
    start = copy.deepcopy(own[0].state_dict())
    for number in range(1, 5):
        data = {key: value.double() for key, value in batch(number).items()}
        model.iters_per_epoch = 3
        torch.manual_seed(number)
        model.feed_data(data)
        model.optimize_parameters(number)
        torch.manual_seed(number)
        algorithm_1(*own, *optimizers, data, tlw.k_schedule((number - 1) // 3, tau=2.), parts, clip)
    for net, expected in zip(nets, own, strict=True):
        learned = {k for k, _ in net.named_parameters()}
        assert_same_weights({k: v for k, v in net.state_dict().items() if k in learned},
                            {k: v for k, v in expected.state_dict().items() if k in learned}, rtol=0, atol=1e-9)
    assert any((v - start[k]).abs().max() > 1e-3 for k, v in own[0].state_dict().items())


def test_each_image_passes_the_batch_norm_of_the_mean_network_once(tlw_project):
    """With train.accumulate the first half restores without a graph: what it does to buffers is taken back."""
    for parts in (1, 2):
        model = tlw_project.model('tlw', f'train:accumulate={parts}')
        model.net_g.register_buffer('images', torch.zeros(()))
        model.net_g.register_forward_hook(lambda net, args, out: net.images.add_(len(out)) and None)
        step(model, 1)
        assert model.net_g.images == 4


def test_what_is_not_finite_is_left_out_with_what_follows(tlw_project):
    """phi's half: neither network steps. theta's half: phi has stepped, theta does not."""
    for label, moved in (('w', ()), ('g', ('w', ))):
        model = tlw_project.model('tlw', 'train:skip_nonfinite=1', 'train:ema_decay=0.5')
        nets = {'g': model.net_g, 'w': model.net_w}
        before = {name: copy.deepcopy(net.state_dict()) for name, net in nets.items()}
        ema = copy.deepcopy(model.net_g_ema.state_dict())
        handle = next(nets[label].parameters()).register_hook(lambda grad: grad * math.nan)
        step(model, 1)
        assert model.skipped == 1
        for name, net in nets.items():
            same = [torch.equal(p, before[name][k]) for k, p in net.named_parameters()]
            assert not any(same) if name in moved else all(same)
            assert all(torch.equal(b, before[name][k]) for k, b in net.named_buffers())
        assert_same_weights(model.net_g_ema.state_dict(), ema)
        log = model.get_current_log()
        assert [name for name, v in log.items() if not np.isfinite(v)] == [f'grad_norm_{label}'.removesuffix('_g')]
        with pytest.raises(FloatingPointError, match='2 times in a row'):
            step(model, 2)
        handle.remove()
        step(model, 3)
        assert model.skipped_in_a_row == 0


def test_the_scaler_finds_its_scale_with_two_steps(tlw_project):
    """float16's first scale is too large for phi alone: its step is left out, the scale halved once an iteration."""
    model = tlw_project.model('tlw', 'train:amp=fp16')
    before = copy.deepcopy(model.net_w.state_dict())
    scale = model.scaler.get_scale()
    handle = next(model.net_w.parameters()).register_hook(lambda grad: grad * math.inf)
    step(model, 1)
    assert model.scaler.get_scale() == scale / 2
    assert all(torch.equal(p, before[k]) for k, p in model.net_w.named_parameters())
    handle.remove()
    step(model, 2)
    assert model.scaler.get_scale() == scale / 2
    assert any(not torch.equal(p, before[k]) for k, p in model.net_w.named_parameters())


def test_the_weighting_network_learns_what_the_judge_sees(tlw_project):
    """One batch whose prediction does not move: -log WC falls."""
    model = tlw_project.model('tlw', 'train:optim_g:lr=1e-30', 'train:tlw_opt:deterministic=true')
    model.iters_per_epoch = 100
    data = batch()
    data['gt'] = torch.nn.functional.interpolate(data['lq'], scale_factor=2)
    with torch.no_grad():
        model.net_g.conv_last.weight.zero_()
    model.net_g.mean.zero_()
    model.net_g.conv_last.bias.data.zero_()
    model.feed_data(data)
    values = []
    for _ in range(25):
        model.optimize_parameters(1)
        values.append(model.get_current_log()['l_wc'])
    assert np.mean(values[-3:]) < values[0] - 0.1


def test_the_weighting_network_has_its_own_schedule(tlw_project):
    shared, own = (tlw_project.model('tlw', 'train:scheduler:milestones=[2]', *force) for force in (
        (), ('train:scheduler_w={type: MultiStepLR, milestones: [1, 2], gamma: 0.1}', )))
    for number in range(1, 5):
        for model in (shared, own):
            step(model, number)
    rates = [[group['lr'] for o in m.optimizers for group in o.param_groups] for m in (shared, own)]
    assert rates == [pytest.approx([5e-4, 5e-3]), pytest.approx([5e-4, 1e-4])]


def test_units_of_k(tlw_project):
    """Epochs of 3 iterations (6 images x 2, batches of 4), whether the loop says so or, as BasicSR's own, does not."""
    for unit, told, k in (('epoch', None, 2), ('epoch', 3, 2), ('epoch', 7, 1), ('iter', None, 7)):
        model = tlw_project.model('tlw', f'train:tlw_opt:k_unit={unit}')
        if told:
            model.iters_per_epoch = told
        model.feed_data(batch())
        model.optimize_parameters(8)
        assert model.get_current_log()['k'] == pytest.approx(tlw.k_schedule(k, tau=2.))


@pytest.mark.parametrize(('force', 'problem'), [
    (['network_w=~'], 'network_w: missing'),
    (['train:tlw_opt=~'], 'train.tlw_opt: missing'),
    (['train:tlw_opt:sampels=2'], "did you mean 'samples'"),
    (['train:tlw_opt:base=l2'], 'base: expected one of l1, mse'),
    (['train:tlw_opt={type: L1Loss}'], 'put it in pixel_opt'),
    (['train:pixel_opt={type: TLWLoss}'], 'for tlw_opt'),
    (['train:likelihood_opt={type: ESULoss}'], 'TLWModel does not read this key'),
    (['stage=plain'], 'TLWModel does not read this key'),
    (['model_type=UDLModel', 'stage=plain', 'train:pixel_opt={type: L1Loss}'], 'network_w: UDLModel does not read'),
    (['network_w:num_feet=3'], "did you mean 'num_feat'"),
    (['network_w:num_in_ch=1'], 'network_w.num_in_ch: 1 is not what the images have, 3 channel(s)'),
    (['datasets:train:color=y'], 'network_w.num_in_ch: 3 is not what the images have, 1 channel(s)'),
    (['train:optim_w:lrr=3'], "did you mean 'lr'"),
    (['train:optim_v={type: Adam}'], 'train.optim_v: unknown key'),
    (['train:scheduler_w={type: MultiStep, milestones: [1]}'], "did you mean 'MultiStepLR'"),
    (['datasets:train:gt_size=16'], 'too small for LPIPS'),
    (['path:pretrain_network_w=nowhere.pth'], 'pretrain_network_w: no such file'),
    (['path:pretrain_network_u=nowhere.pth'], 'there is no network_u'),
])
def test_options(tlw_project, force, problem):
    with pytest.raises(OptionError, match=re.escape(problem)):
        tlw_project.parse('tlw', *force)


def test_missing_judge_weights_stop_the_run_before_anything_is_made(tlw_project, monkeypatch, tmp_path):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    with pytest.raises(CheckpointError, match=r'squeezenet1_1-b8a52dc0\.pth'):
        train(tlw_project, 'tlw', 'train:tlw_opt:judge_random=false')
    assert not (tlw_project.root / 'experiments').exists()


def test_whole_run_resumes_exactly_and_stock_basicsr_loads_the_network(tlw_project):
    force = ('logger:save_checkpoint_freq=3', 'train:amp=fp16', 'train:ema_decay=0.9')
    parsed = train(tlw_project, 'tlw', *force, 'name=straight')
    train(tlw_project, 'tlw', *force, 'train:total_iter=6')
    train(tlw_project, 'tlw', *force, auto_resume=True)
    assert 'iterations 7 to 8' in tlw_project.log('tlw')
    for label in 'gw':
        assert_same_weights(*(tlw_project.weights(run, label=label) for run in ('straight', 'tlw')))
    states = [torch.load(tlw_project.root / 'experiments' / run / 'training_states' / '6.state', weights_only=True)
              for run in ('straight', 'tlw')]
    assert [len(s['optimizers']) for s in states] == [2, 2]
    run = tlw_project.root / 'experiments' / 'straight'
    assert files(run / 'models') == {f'net_{n}_{i}.pth' for n in 'gw' for i in (3, 6, 8, 'latest')}
    assert re.search(r'l_wc: \S+ grad_norm_w: \S+ l_tlw: \S+ wc_mean: \S+ w_mean: \S+ k: ',
                     tlw_project.log('straight'))
    build_network(parsed.flat['network_g']).load_state_dict(tlw_project.weights('straight'), strict=True)
    # a new run from both networks
    weights = [f'path:pretrain_network_{n}={run}/models/net_{n}_latest.pth' for n in 'gw']
    model = tlw_project.model('tlw', *weights)
    assert_same_weights(model.net_w.state_dict(), tlw_project.weights('straight', label='w'))
    # states without their weighting network are of no use
    for number in (3, 6, 8):
        (tlw_project.root / f'experiments/tlw/models/net_w_{number}.pth').unlink()
    with pytest.raises(CheckpointError, match=r'none of the 3 states can be used:\n.*net_w_8\.pth: missing'):
        train(tlw_project, 'tlw', *force, auto_resume=True)


def rank_in_step(root):
    """Trains, resumes, and meets images that are NaN on one rank: the networks of both stay the same."""
    distributed.init_dist('pytorch', backend='gloo')
    rank, build, models = dist.get_rank(), loop.build_model, []
    loop.build_model = lambda opt: models.append(build(opt)) or models[-1]
    for name, total, *more in (('straight', 4), ('resumed', 2), ('resumed', 4), ('whole', 2, 'train:accumulate=1')):
        force = [*_TWO, f'name={name}', f'train:total_iter={total}', *more]
        loop.train(parse_options('tlw.yml', root_path=root, is_train=True, auto_resume=True, rank=rank, world_size=2,
                                 dist=True, num_gpu_available=0, force_yml=force))
        if name == 'whole':  # one rank's images are NaN, after which the graph of the mean network is left unused
            model, good = models[-1], {k: torch.rand(2, 3, s, s) for k, s in (('lq', 16), ('gt', 32))}
            model.skip_nonfinite = 1
            for number, factor in ((3, 1), (4, torch.nan if rank else 1), (5, 1)):
                model.feed_data({k: v * factor for k, v in good.items()})
                model.optimize_parameters(number)
            assert (model.skipped, model.skipped_in_a_row) == (1, 0)
        for network in models[-1].networks_in_training().values():
            mine = torch.cat([p.detach().flatten() for p in network.parameters()])
            both = [torch.empty_like(mine) for _ in range(2)]
            dist.all_gather(both, mine)
            assert torch.equal(*both)


def test_two_processes_stay_in_step_and_resume_exactly(tlw_project):
    for child in ranks(rank_in_step, str(tlw_project.root), cwd=tlw_project.root):
        assert child.wait() == 0, child.stderr[-3000:]
    for label in 'gw':
        assert_same_weights(*(tlw_project.weights(name, label=label) for name in ('straight', 'resumed')))
