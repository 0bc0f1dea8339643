"""Trainable loss weights: the formulas against independent computations, the judge, and whole runs."""
import copy
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
from udl_basicsr.functional import tlw
from udl_basicsr.functional.tlw import fixed_sum
from udl_basicsr.losses import TLWLoss
from udl_basicsr.losses.perceptual import NETS, build_lpips, find_backbone_weights, smallest_image
from udl_basicsr.options.parse import OptionError
from udl_basicsr.utils.checkpoints import CheckpointError

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


def criterion(w, f, x, eps):
    return tlw.weight_criterion(*tlw.judged_distances(w, f, x, mean_square), eps)


def test_weight_criterion_by_hand():
    w, f, x = (torch.rand(*shape, 3, 4, 5, dtype=torch.float64) for shape in ((2, 6), (6, ), (6, )))
    wc = criterion(w, f, x, 0.01)
    assert wc.shape == (2, 6)
    for t in range(2):
        for n in range(6):
            a, b, c = w[t, n].numpy(), f[n].numpy(), x[n].numpy()
            over = np.mean((a * b + (1 - a) * c - c)**2) + 0.01
            under = np.mean(((1 - a) * b + a * c - c)**2) + 0.01
            assert wc[t, n].item() == pytest.approx(over / under, rel=1e-12)
    assert torch.autograd.gradcheck(lambda v: criterion(v, f[:1], x[:1], 0.01), w[:, :1].clone().requires_grad_())
    # w that holds all the error, none of it, and half of it
    error = torch.zeros(1, 3, 4, 5, dtype=torch.float64)
    error[..., :2] = 0.5
    for weights, expected in (((error > 0).double(), (0.1 + 0.01) / 0.01), (torch.ones_like(error), 0.11 / 0.01),
                              (torch.zeros_like(error), 0.01 / 0.11), (torch.full_like(error, 0.5), 1.)):
        assert criterion(weights[None], x[:1] + error, x[:1], 0.01).item() == pytest.approx(expected, rel=1e-12)


def test_schedule_of_k():
    for epoch, k in ((0, 0.3), (200, 0.6 * (1 - 1 / math.e) + 0.3), (10**6, 0.9)):
        assert tlw.k_schedule(epoch) == pytest.approx(k, abs=1e-12)
    loss = TLWLoss(k_start=0.5, k_gain=-0.2, k_tau=10, k_unit='iter')
    assert loss.k(10) == pytest.approx(0.5 - 0.2 * (1 - math.exp(-1)))
    released = TLWLoss(k_start=0, k_gain=1, k_tau=100, k_growth='linear')  # epoch/100
    assert [released.k(epoch) for epoch in (0, 25, 100, 120)] == [0, 0.25, 1, 1]


@pytest.mark.parametrize('form', ['sum', 'log_sum_exp'])
@pytest.mark.parametrize('base', ['l1', 'mse'])
@pytest.mark.parametrize('deterministic', [False, True])
def test_loss_by_hand(base, deterministic, form):
    """Both sides from one draw, as ``order: joint`` has them, against loops over images and samples."""
    loss = TLWLoss(2., base=base, samples=4, temperature=0.7, deterministic=deterministic, eps=0.02, form=form,
                   mse_offset=0.2)
    loss.judge = mean_square
    f = torch.rand(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    x = torch.rand_like(f)
    p = torch.rand_like(f).requires_grad_()
    torch.manual_seed(5)
    weighted, weighting, wc = loss(f, x, p)
    torch.manual_seed(5)
    w = p[None] if deterministic else tlw.relaxed_bernoulli(p, 0.7, 4)
    w = w.detach().numpy()

    def by_hand(f_now, held):
        """The SR network's loss of an image; ``held`` is the image that the weights were made for."""
        total, logs = 0., []
        for n in range(2):
            likelihood, probs = 0., 0.
            for t in range(len(w)):
                over = np.square(w[t, n] * (held[n] - x_[n])).mean()
                under = np.square((1 - w[t, n]) * (held[n] - x_[n])).mean() + 0.02
                logs.append(math.log((over + 0.02) / under))
                e = np.abs(f_now[n] - x_[n])
                pixel = w[t, n] * (e if base == 'l1' else e**2 / (np.abs(held[n] - x_[n]) + 0.2))
                if form == 'sum':
                    total += 2 * (over + 0.02) / under * pixel.sum() / f_now.size
                likelihood += over / under * math.exp(-pixel.mean())
                probs += over / under
            if form == 'log_sum_exp':
                total += -math.log(likelihood / probs)  # weight 2, two images
        return total, -np.mean(logs)

    f_, x_ = f.detach().numpy(), x.numpy()
    expected, logs = by_hand(f_, f_)
    assert weighted.item() == pytest.approx(expected, rel=1e-12)
    assert weighting.item() == pytest.approx(logs, rel=1e-12)
    assert not wc.requires_grad
    # each side has its own network
    assert torch.autograd.grad(weighted, p, retain_graph=True, allow_unused=True) == (None, )
    assert torch.autograd.grad(weighting, f, retain_graph=True, allow_unused=True) == (None, )
    assert torch.autograd.grad(weighting, p, retain_graph=True)[0].abs().sum() > 0
    # weights, WC and the divisor of the MSE are constants of the SR network's loss: finite differences with them held
    gradient, = torch.autograd.grad(weighted, f)
    for index in ((0, 0, 1, 2), (1, 2, 3, 4), (1, 0, 0, 0)):
        moved = [f_.copy(), f_.copy()]
        moved[0][index] += 1e-6
        moved[1][index] -= 1e-6
        slope = (by_hand(moved[0], f_)[0] - by_hand(moved[1], f_)[0]) / 2e-6
        assert gradient[index].item() == pytest.approx(slope, rel=1e-5)
    # one side at a time, as algorithm 1 has them
    torch.manual_seed(5)
    alone, wc_alone = loss.weighted_loss(f, x, p)
    torch.testing.assert_close((alone, wc_alone), (weighted, wc), rtol=1e-12, atol=0)
    assert torch.autograd.grad(alone, p, retain_graph=True, allow_unused=True) == (None, )
    torch.testing.assert_close(torch.autograd.grad(alone, f)[0], gradient, rtol=1e-12, atol=0)
    torch.manual_seed(5)
    alone, wc_alone = loss.weighting_loss(f, x, p)
    assert wc_alone.shape == (1, 2)
    assert alone.item() == pytest.approx(-wc_alone.log().mean().item(), rel=1e-12)
    assert torch.autograd.grad(alone, f, retain_graph=True, allow_unused=True) == (None, )
    assert torch.autograd.grad(alone, p)[0].abs().sum() > 0


@pytest.mark.parametrize(('given', 'offset'), [({}, 0.1), ({'mse_offset': 0.2}, 0.2)])
def test_weights_of_the_squared_error(given, offset):
    """Section III-C: w/(|x - f| + 0.1) in front of the square; 0.2 as released for weights that are drawn."""
    pred, target, w = torch.rand(3, 1, 3, 4, 5, dtype=torch.float64)
    loss = TLWLoss(base='mse', deterministic=True, **given)
    loss.judge = lambda images, of: torch.ones(len(images), dtype=images.dtype)  # WC = 1
    e = np.abs(target.numpy() - pred.numpy())
    assert loss.weighted_loss(pred, target, w)[0].item() == pytest.approx(
        (w.numpy() / (e + offset) * e**2).mean(), rel=1e-12)


def test_log_sum_exp_without_any_error():
    """All p_t are 0 where the judge sees no difference: 0, and no NaN."""
    loss = TLWLoss(form='log_sum_exp')
    loss.judge = mean_square
    target = torch.rand(2, 3, 4, 4)
    pred = target.clone().requires_grad_()
    weighted, _ = loss.weighted_loss(pred, target, torch.full_like(target, 0.5))
    weighted.backward()
    assert weighted.item() == pytest.approx(0, abs=1e-6)
    assert pred.grad.isfinite().all()


@pytest.mark.parametrize('wrong', [{'base': 'l2'}, {'judge': 'alexnet'}, {'k_unit': 'epochs'}, {'samples': 0},
                                   {'temperature': 0.}, {'eps': 0.}, {'k_tau': 0.}, {'k_start': 0.5}, {'k_gain': -0.4},
                                   {'order': 'both'}, {'form': 'mean'}, {'mse_offset': 0.}, {'k_growth': 'exp'}])
def test_arguments_of_the_loss(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TLWLoss(**wrong)


def test_a_loss_without_its_judge_says_so():
    image = torch.rand(1, 3, 32, 32)
    with pytest.raises(RuntimeError, match=r'call build_judge\(\) first'):
        TLWLoss()(image, image, image)


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
        assert all(np.isfinite(v) for v in model.get_current_log().values())
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


def test_two_processes_stay_in_step_and_resume_exactly(tlw_project):
    (tlw_project.root / 'entry.py').write_text(f"""
import torch, torch.distributed as dist, udl_basicsr
from udl_basicsr.training import loop
from udl_basicsr.utils import distributed
from udl_basicsr.options.parse import parse_options
distributed.init_dist('pytorch', backend='gloo')
build, models = loop.build_model, []
loop.build_model = lambda opt: models.append(build(opt)) or models[-1]
for name, total, *more in (('straight', 4), ('resumed', 2), ('resumed', 4), ('whole', 2, 'train:accumulate=1')):
    loop.train(parse_options('tlw.yml', root_path='.', is_train=True, auto_resume=True, rank=dist.get_rank(),
                             world_size=2, dist=True, num_gpu_available=0, force_yml={_TWO} + [
                                 f'name={{name}}', f'train:total_iter={{total}}', *more]))
    if name == 'whole':  # one rank's images are NaN, after which the graph of the mean network is left unused
        model, good = models[-1], {{k: torch.rand(2, 3, s, s) for k, s in (('lq', 16), ('gt', 32))}}
        model.skip_nonfinite = 1
        for number, factor in ((3, 1), (4, torch.nan if dist.get_rank() else 1), (5, 1)):
            model.feed_data({{k: v * factor for k, v in good.items()}})
            model.optimize_parameters(number)
        assert (model.skipped, model.skipped_in_a_row) == (1, 0)
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
