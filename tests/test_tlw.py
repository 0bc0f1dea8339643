"""Trainable loss weights: the formulas against independent computations, the judge, and whole runs."""
import math
import re
import socket
import warnings

import lpips
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs import build_network
from conftest import assert_same_weights, batch
from scipy import stats
from test_training import files, run, train

from udl_basicsr.archs import TLWNet
from udl_basicsr.engine.options import OptionError
from udl_basicsr.losses import TLWLoss, tlw
from udl_basicsr.losses.functional import fixed_sum
from udl_basicsr.losses.perceptual import NETS, build_lpips, find_backbone_weights, smallest_image
from udl_basicsr.models.checkpoints import CheckpointError

# ------------------------------------------------------------------------------------------------------------ FixedSum


def fixed_sum_in_numpy(x: np.ndarray, k: float) -> np.ndarray:
    """Equation 5 for one channel, as it is printed."""
    n, s = x.size, x.sum()
    return x + (k * n - s) / (n - s) * (1 - x) if k * n > s else x * (k * n / s)


def jacobian_in_numpy(x: np.ndarray, k: float) -> np.ndarray:
    """Equation 6 for one channel: rows are outputs."""
    n, s, x = x.size, x.sum(), x.ravel()
    if k * n > s:
        return n * (1 - k) / (n - s) * (np.eye(n) - (1 - x)[:, None] / (n - s))
    return k * n / s * (np.eye(n) - x[:, None] / s)


@pytest.mark.parametrize('k', [0., 0.05, 0.3, 0.62, 0.9, 1.])
def test_fixed_sum(k):
    x = torch.rand(2, 3, 5, 7, dtype=torch.float64) ** torch.tensor([0.2, 1, 5]).view(3, 1, 1)  # high, middle, low sums
    y = fixed_sum(x, k)
    for image, result in zip(x.numpy().reshape(6, 5, 7), y.numpy().reshape(6, 5, 7), strict=True):
        np.testing.assert_allclose(result, fixed_sum_in_numpy(image, k), rtol=0, atol=1e-14)
    np.testing.assert_allclose(y.sum((2, 3)), k * 35, rtol=0, atol=1e-12)
    assert y.min() >= 0
    assert y.max() <= 1
    short = fixed_sum(x.float(), k)
    assert short.min() >= 0
    assert short.max() <= 1
    torch.testing.assert_close(short.double(), y, rtol=0, atol=1e-6)


@pytest.mark.parametrize('k', [0., 0.2, 0.5, 0.8, 1.])
def test_derivative_of_fixed_sum(k):
    x = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: fixed_sum(v[None, None], k), x)
    jacobian = torch.autograd.functional.jacobian(lambda v: fixed_sum(v, k), x).reshape(12, 12)
    np.testing.assert_allclose(jacobian, jacobian_in_numpy(x.detach().numpy(), k), rtol=0, atol=1e-13)


@pytest.mark.parametrize('value', [0., 1.])
@pytest.mark.parametrize('k', [0., 0.4, 1.])
@pytest.mark.parametrize('size', [1, 6])
def test_edges_of_fixed_sum(value, k, size):
    x = torch.full((1, 2, size, size), value, requires_grad=True)
    y = fixed_sum(x, k)
    torch.testing.assert_close(y, torch.full_like(y, k))
    y.square().sum().backward()
    assert x.grad.isfinite().all()


def test_fixed_sum_takes_a_k_for_each_image():
    x, k = torch.rand(3, 2, 4, 4), torch.tensor([0.1, 0.5, 0.9]).view(3, 1, 1, 1)
    one_by_one = [fixed_sum(image, float(mean)) for image, mean in zip(x, k, strict=True)]
    torch.testing.assert_close(fixed_sum(x, k), torch.stack(one_by_one))
    with pytest.raises(ValueError, match='k: expected'):
        fixed_sum(x, 1.2)


# ------------------------------------------------------------------------------------------------------------ formulas


@pytest.mark.parametrize('temperature', [0.1, 0.5, 2.])
@pytest.mark.parametrize('prob', [0.2, 0.5, 0.9])
def test_relaxed_bernoulli(prob, temperature):
    draws = tlw.relaxed_bernoulli(torch.full((100, 100), prob, dtype=torch.float64), temperature, 3).flatten()
    assert draws.min() >= 0
    assert draws.max() <= 1
    assert (draws > 0.5).double().mean().item() == pytest.approx(prob, abs=0.012)  # 5 standard deviations or more
    # the whole distribution: temperature * logit(w) - logit(prob) is logistic
    noise = temperature * torch.logit(draws, 1e-12).clamp(-25, 25) - math.log(prob / (1 - prob))
    inner = noise[(draws > 1e-9) & (draws < 1 - 1e-9)]
    if len(inner) == len(noise):
        assert stats.kstest(inner.numpy(), 'logistic').pvalue > 1e-4


def test_relaxed_bernoulli_is_differentiable_and_bears_certain_probabilities():
    prob = torch.tensor([0., 0.3, 1., 1 + 1e-7], requires_grad=True)
    draws = tlw.relaxed_bernoulli(prob, 0.5, 8)
    draws.sum().backward()
    assert prob.grad.isfinite().all()
    assert prob.grad[1] > 0
    assert (draws[:, 0] < 0.1).all()
    assert (draws[:, 2:] > 0.9).all()


def mean_square(pred, target):
    """A judge that can be computed by hand."""
    return (pred.unflatten(0, (-1, len(target))) - target).square().mean((2, 3, 4)).flatten()


def test_weight_criterion_by_hand():
    w, f, x = (torch.rand(*shape, 3, 4, 5, dtype=torch.float64) for shape in ((2, 6), (6, ), (6, )))
    wc = tlw.weight_criterion(w, f, x, mean_square, 0.01)
    assert wc.shape == (2, 6)
    for t in range(2):
        for n in range(6):
            a, b, c = w[t, n].numpy(), f[n].numpy(), x[n].numpy()
            over = np.mean((a * b + (1 - a) * c - c)**2) + 0.01
            under = np.mean(((1 - a) * b + a * c - c)**2) + 0.01
            assert wc[t, n].item() == pytest.approx(over / under, rel=1e-12)
    assert torch.autograd.gradcheck(lambda v: tlw.weight_criterion(v, f[:1], x[:1], mean_square, 0.01),
                                    w[:, :1].clone().requires_grad_())
    # w that holds all the error, none of it, and half of it
    error = torch.zeros(1, 3, 4, 5, dtype=torch.float64)
    error[..., :2] = 0.5
    for weights, expected in (((error > 0).double(), (0.1 + 0.01) / 0.01), (torch.ones_like(error), 0.11 / 0.01),
                              (torch.zeros_like(error), 0.01 / 0.11), (torch.full_like(error, 0.5), 1.)):
        got = tlw.weight_criterion(weights[None], x[:1] + error, x[:1], mean_square, 0.01).item()
        assert got == pytest.approx(expected, rel=1e-12)


def test_schedule_of_k():
    for epoch, k in ((0, 0.3), (200, 0.6 * (1 - 1 / math.e) + 0.3), (10**6, 0.9)):
        assert tlw.k_schedule(epoch) == pytest.approx(k, abs=1e-12)
    loss = TLWLoss(k_start=0.5, k_gain=-0.2, k_tau=10, k_unit='iter')
    assert loss.k(10) == pytest.approx(0.5 - 0.2 * (1 - math.exp(-1)))


@pytest.mark.parametrize('base', ['l1', 'mse'])
@pytest.mark.parametrize('deterministic', [False, True])
def test_loss_by_hand(base, deterministic):
    loss = TLWLoss(2., base=base, samples=4, temperature=0.7, deterministic=deterministic, eps=0.02)
    loss.judge = mean_square
    f = torch.rand(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    x = torch.rand_like(f)
    p = torch.rand_like(f).requires_grad_()
    torch.manual_seed(5)
    weighted, weighting, wc = loss(f, x, p)
    torch.manual_seed(5)
    w = p[None] if deterministic else tlw.relaxed_bernoulli(p, 0.7, 4)
    with torch.no_grad():
        expected, logs = 0., 0.
        for t in range(len(w)):
            for n in range(2):
                over = (w[t, n] * (f[n] - x[n])).square().mean() + 0.02
                under = ((1 - w[t, n]) * (f[n] - x[n])).square().mean() + 0.02
                e = (f[n] - x[n]).abs()
                pixel = e * w[t, n] if base == 'l1' else e**2 * w[t, n] / (e + 0.1)
                expected += 2 * (over / under * pixel).sum() / f.numel()
                logs += -torch.log(over / under) / wc.numel()
    assert weighted.item() == pytest.approx(expected.item(), rel=1e-12)
    assert weighting.item() == pytest.approx(logs.item(), rel=1e-12)
    assert not wc.requires_grad
    # each side has its own network
    assert torch.autograd.grad(weighted, p, retain_graph=True, allow_unused=True) == (None, )
    assert torch.autograd.grad(weighting, f, retain_graph=True, allow_unused=True) == (None, )
    assert torch.autograd.grad(weighting, p, retain_graph=True)[0].abs().sum() > 0
    # the weights are constants of the SR network's loss: d/df of w*|x - f| is w*sign, of w*e^2/(e + 0.1) is 2*w*e/...
    with torch.no_grad():
        weight = 2 * (wc.view(-1, 2, 1, 1, 1) * w).sum(0) / f.numel()
        if base == 'mse':
            weight = weight * 2 * (f - x).abs() / ((f - x).abs() + 0.1)
    torch.testing.assert_close(torch.autograd.grad(weighted, f)[0], weight * torch.sign(f - x).detach())


@pytest.mark.parametrize('wrong', [{'base': 'l2'}, {'judge': 'alexnet'}, {'k_unit': 'epochs'}, {'samples': 0},
                                   {'temperature': 0.}, {'eps': 0.}, {'k_tau': 0.}, {'k_start': 0.5}, {'k_gain': -0.4}])
def test_arguments_of_the_loss(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TLWLoss(**wrong)


def test_weighting_network():
    net = TLWNet(num_in_ch=3, num_feat=8)
    kinds = [m for m in net.body if not isinstance(m, torch.nn.ReLU)]
    assert [m.kernel_size[0] for m in kinds if isinstance(m, torch.nn.Conv2d)] == [7, 5, 3, 3]
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in kinds) == 3
    gt, pred = torch.rand(2, 2, 3, 12, 14)
    for k in (0.3, torch.full((2, 1, 1, 1), 0.3)):
        w = net(gt, pred, k)
        assert w.shape == gt.shape
        torch.testing.assert_close(w.mean((2, 3)), torch.full((2, 3), 0.3))
    with torch.autocast('cpu', torch.bfloat16):
        assert net(gt, pred, 0.3).dtype == torch.float32


# --------------------------------------------------------------------------------------------------------------- judge


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


def test_random_weights_are_the_same_each_time_and_said(caplog):
    torch.manual_seed(7)
    before = torch.get_rng_state()
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


# --------------------------------------------------------------------------------------------------------------- model


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
    ('train:amp=bf16', 'train:accumulate=2', 'train:grad_clip=0.1', 'train:ema_decay=0.9', 'train:channels_last=true'),
    ('train:amp=fp16', 'train:grad_clip=0.1', 'train:pixel_opt={type: MSELoss}')], ids=['l1', 'mse', 'bf16', 'fp16'])
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
    assert list(log) == ['l_tlw', 'l_wc', *others, 'wc_mean', 'w_mean', 'k', 'grad_norm', 'grad_norm_w']
    assert log['w_mean'] == pytest.approx(log['k'], rel=1e-4)
    assert all(np.isfinite(v) for v in log.values())
    assert all(p.grad is None for p in model.criteria['tlw_opt'].parameters())


def test_the_weighting_network_learns_what_the_judge_sees(tlw_project):
    """One batch whose prediction does not move: -log WC falls."""
    model = tlw_project.model('tlw', 'train:optim_g:lr=0', 'train:tlw_opt:deterministic=true')
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
    assert files(run / 'models') == {f'net_{n}_{i}.pth' for n in 'gw' for i in (3, 6, 'latest')}
    assert re.search(r'l_tlw: \S+ l_wc: \S+ wc_mean: \S+ w_mean: \S+ k: \S+', tlw_project.log('straight'))
    build_network(parsed.flat['network_g']).load_state_dict(tlw_project.weights('straight'), strict=True)
    # a new run from both networks
    weights = [f'path:pretrain_network_{n}={run}/models/net_{n}_latest.pth' for n in 'gw']
    model = tlw_project.model('tlw', *weights)
    assert_same_weights(model.net_w.state_dict(), tlw_project.weights('straight', label='w'))
    # states without their weighting network are of no use
    for number in (3, 6):
        (tlw_project.root / f'experiments/tlw/models/net_w_{number}.pth').unlink()
    with pytest.raises(CheckpointError, match=r'none of the 2 states can be used:\n.*net_w_6\.pth: missing'):
        train(tlw_project, 'tlw', *force, auto_resume=True)


def test_two_processes_stay_in_step_and_resume_exactly(tlw_project):
    (tlw_project.root / 'entry.py').write_text(f"""
import torch, torch.distributed as dist, udl_basicsr
from udl_basicsr.engine import compat, loop
from udl_basicsr.engine.options import parse_options
compat.init_dist('pytorch', backend='gloo')
build, models = loop.build_model, []
loop.build_model = lambda opt: models.append(build(opt)) or models[-1]
for name, total in (('straight', 4), ('resumed', 2), ('resumed', 4)):
    loop.train(parse_options('tlw.yml', root_path='.', is_train=True, auto_resume=True, rank=dist.get_rank(),
                             world_size=2, dist=True, num_gpu_available=0, force_yml={_TWO} + [
                                 f'name={{name}}', f'train:total_iter={{total}}']))
    for network in models[-1].networks_in_training().values():
        mine = torch.cat([p.detach().flatten() for p in network.parameters()])
        both = [torch.empty_like(mine) for _ in range(2)]
        dist.all_gather(both, mine)
        assert torch.equal(*both)
""")
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    done = run('-m', 'torch.distributed.run', '--nproc_per_node=2', f'--master_port={port}', 'entry.py',
               cwd=tlw_project.root)
    assert done.returncode == 0, done.stderr[-3000:]
    for label in 'gw':
        assert_same_weights(*(tlw_project.weights(name, label=label) for name in ('straight', 'resumed')))
