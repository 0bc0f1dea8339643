"""One optimisation step: against BasicSR's own, against arithmetic written out, and with each option on."""
import copy
import functools
import json
import shutil
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from basicsr.models import build_model
from basicsr.models.sr_model import SRModel
from conftest import FOLLOWS_HOOKS, assert_same_weights, batch

from udl_basicsr.deploy.restorer import Restorer
from udl_basicsr.functional import inference
from udl_basicsr.functional.log_scale_maps import decode_log_scale, encode_log_scale
from udl_basicsr.options.parse import OptionError
from udl_basicsr.utils import processor
from udl_basicsr.utils.checkpoints import CheckpointError


def run_steps(model, steps=3, **batch_args):
    for i in range(1, steps + 1):
        model.update_learning_rate(i, warmup_iter=model.opt['train'].get('warmup_iter', -1))
        model.feed_data(batch(i, **batch_args))
        model.optimize_parameters(i)
    return model


def test_plain_stage_is_stock_basicsr(project):
    opt = project.parse('plain', 'train:ema_decay=0.9').opt
    torch.manual_seed(1)
    stock = SRModel(copy.deepcopy(opt))
    torch.manual_seed(1)
    ours = project.model('plain', 'train:ema_decay=0.9')
    ours.net_g.load_state_dict(stock.net_g.state_dict())
    ours.net_g_ema.load_state_dict(stock.net_g_ema.state_dict())
    run_steps(stock)
    run_steps(ours)
    assert_same_weights(stock.net_g.state_dict(), ours.net_g.state_dict())
    assert_same_weights(stock.net_g_ema.state_dict(), ours.net_g_ema.state_dict())
    assert stock.get_current_log()['l_pix'] == pytest.approx(ours.get_current_log()['l_pix'], rel=1e-6)


def test_a_stage_has_ended_only_when_all_its_networks_are_kept(project):
    """A full disk after the first of two files: net_g_latest.pth alone had told that there is nothing left to do."""
    model = project.model('esu')
    models = Path(model.opt['path']['models'])
    (models / 'net_u_latest.pth').mkdir(parents=True)  # so that it cannot be written
    with pytest.raises(CheckpointError, match='net_u_latest'):
        model.save(epoch=-1, current_iter=-1)
    assert not (models / 'net_g_latest.pth').exists()


@pytest.mark.parametrize('stage', ['plain', 'esu'])
@pytest.mark.parametrize('parts', [2, 4])
def test_accumulation_changes_nothing_but_rounding(project, stage, parts):
    whole, split = project.model(stage), project.model(stage, f'train:accumulate={parts}')
    split.trained.load_state_dict(whole.trained.state_dict())
    for model in (whole, split):
        model.feed_data(batch())
        model.optimize_parameters(1)
    grads = [{n: p.grad for n, p in m.trained.named_parameters()} for m in (whole, split)]
    assert_same_weights(*grads, rtol=1e-4, atol=1e-5)
    for name, value in whole.get_current_log().items():
        assert split.get_current_log()[name] == pytest.approx(value, rel=1e-4)


def test_gradient_clipping(project):
    model = project.model('esu', 'train:grad_clip=0.01')
    run_steps(model, 1)
    norm = torch.cat([p.grad.flatten() for p in model.trained.parameters()]).norm().item()
    assert norm == pytest.approx(0.01, rel=1e-3)
    assert model.get_current_log()['grad_norm'] > 0.01  # the log has the norm before clipping


def test_ema_is_the_weighted_mean_of_all_weights(project):
    model = project.model('esu', 'train:ema_decay=0.75')
    expected = {k: v.clone() for k, v in model.net_g.state_dict().items()}
    for i in range(1, 4):
        model.feed_data(batch(i))
        model.optimize_parameters(i)
        expected = {k: 0.75 * v + 0.25 * model.net_g.state_dict()[k] for k, v in expected.items()}
    assert_same_weights(expected, model.net_g_ema.state_dict(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(('content', 'key', 'average'), [
    (lambda w, a: w, '~', 'w'), (lambda w, a: {'net': w}, 'net', 'w'), (lambda w, a: {'params': w}, 'params', 'w'),
    (lambda w, a: {'params': w, 'params_ema': a}, 'params', 'a')])
def test_ema_begins_with_the_average_of_a_file_or_with_the_weights_that_are_named(project, content, key, average):
    files = {name: project.model('plain', f'manual_seed={seed}').net_g.state_dict() for seed, name in enumerate('wa')}
    files['a']['conv_last.bias'] += 1
    torch.save(content(files['w'], files['a']), project.root / 'file.pth')
    model = project.model('plain', 'train:ema_decay=0.9', f'path:pretrain_network_g={project.root}/file.pth',
                          f'path:param_key_g={key}')
    assert_same_weights(model.net_g.state_dict(), files['w'])
    assert_same_weights(model.net_g_ema.state_dict(), files[average])


def test_ema_takes_the_buffers(project):
    model = project.model('plain', 'train:ema_decay=0.5')
    for net in (model.net_g, model.net_g_ema):
        net.register_buffer('count', torch.zeros(()))
    model.net_g.count.fill_(7)
    model.model_ema(0.5)
    assert model.net_g_ema.count == 7


def test_warm_up_returns_to_the_full_rate(project):
    model = project.model('plain', 'train:warmup_iter=4', 'train:optim_g:lr=0.1')
    rates = []
    for i in range(1, 9):
        model.update_learning_rate(i, warmup_iter=4)
        rates.append(model.get_current_learning_rate()[0])
        model.optimizer_g.step()
    # MultiStepLR halves after 6 steps, which is at the seventh iteration
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.05, 0.05])


@pytest.mark.filterwarnings('error:Detected call')
def test_a_step_that_is_left_out_moves_no_rate(project):
    """As in BasicSR a schedule counts iterations. torch warns where the first has no step."""
    model = project.model('plain', 'train:skip_nonfinite=1', 'train:optim_g:lr=0.1',
                          'train:scheduler:milestones=[1, 3]')
    rates = []
    for number, data in enumerate([nan_batch(), batch(), nan_batch(), batch()], 1):
        model.update_learning_rate(number)
        model.feed_data(data)
        model.optimize_parameters(number)
        rates.append(model.get_current_learning_rate()[0])
    assert model.skipped == 2
    assert rates == pytest.approx([0.1, 0.05, 0.05, 0.025])


@pytest.mark.parametrize('amp', ['bf16', 'fp16'])
@pytest.mark.parametrize('stage', ['plain', 'esu'])
def test_mixed_precision_steps(project, amp, stage):
    full, mixed = project.model(stage), project.model(stage, f'train:amp={amp}')
    mixed.trained.load_state_dict(full.trained.state_dict())
    for model in (full, mixed):
        run_steps(model, 1)
    assert all(p.dtype == torch.float32 for p in mixed.trained.parameters())
    for name, value in full.get_current_log().items():
        if name != 'grad_norm' or amp == 'bf16':  # infinite while the scaler is in search of its scale
            assert mixed.get_current_log()[name] == pytest.approx(value, rel=0.05, abs=0.02)
    assert mixed.scaler.is_enabled() == (amp == 'fp16')
    assert bool(mixed.scaler.state_dict()) == (amp == 'fp16')


@pytest.mark.parametrize(('flags', 'amp', 'said'), [
    ({'avx2'}, 'bf16', True), ({'avx2'}, 'fp16', False), ({'avx2'}, None, False),
    ({'avx512_bf16'}, 'bf16', False), (set(), 'bf16', False)])  # where the system does not tell, nobody knows
def test_bf16_that_is_emulated_is_said(project, monkeypatch, caplog, flags, amp, said):
    monkeypatch.setattr(processor, 'features', lambda: frozenset(flags))
    network = project.model('plain', f'train:amp={amp or "~"}').net_g
    assert ('computes no bfloat16 in hardware' in caplog.text) == said
    caplog.clear()
    Restorer(network, amp=amp)
    assert ('computes no bfloat16 in hardware' in caplog.text) == said


def test_channels_last_changes_nothing_but_rounding(project):
    plain, last = project.model('esu'), project.model('esu', 'train:channels_last=true')
    last.trained.load_state_dict(plain.trained.state_dict())
    for model in (plain, last):
        run_steps(model, 1)
    assert last.net_g.conv_first.weight.is_contiguous(memory_format=torch.channels_last)
    for name, value in plain.get_current_log().items():
        assert last.get_current_log()[name] == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize(('stage', 'force'), [
    ('plain', ()), ('esu', ()), ('esu', ('network_u:detach=features', 'train:pixel_opt={type: L1Loss}')),
    ('esu', ('train:likelihood_opt={type: ESULoss, detach: all}', 'train:pixel_opt={type: L1Loss}'))])
def test_compiled_steps(project, monkeypatch, stage, force):
    """The plain network by the code that torch writes; the hook of the tap by what dynamo makes of it, run as it is."""
    if stage == 'esu':
        if not FOLLOWS_HOOKS:
            pytest.skip('older releases were seen to fail inside torch._dynamo on the hook of the tap')
        monkeypatch.setattr(torch, 'compile', functools.partial(torch.compile, backend='eager'))
    elif shutil.which('g++') is None:
        pytest.skip('torch.compile needs a C++ compiler on the CPU')
    force = ('train:optim_g={type: SGD, lr: 0.001}', *force)  # Adam's first step is a sign, which amplifies rounding
    eager, compiled = project.model(stage, *force), project.model(stage, *force, 'train:compile=true')
    for label in ('net_g', 'net_u'):
        if getattr(eager, label) is not None:
            getattr(compiled, label).load_state_dict(getattr(eager, label).state_dict())
    for model in (eager, compiled):
        run_steps(model, 2)  # the second step is the compiled code alone
    for name, value in eager.get_current_log().items():
        assert compiled.get_current_log()[name] == pytest.approx(value, rel=1e-3)
    assert compiled.networks_to_save()['net_g']['params'].state_dict().keys() == eager.net_g.state_dict().keys()


def test_other_losses_beside_the_likelihood(project):
    model = project.model('esu', 'train:pixel_opt={type: MSELoss, loss_weight: 0.5}',
                          'train:tv_opt={type: WeightedTVLoss, loss_weight: 0.1}')
    run_steps(model, 1)
    with torch.no_grad():
        mse = 0.5 * (model.output - model.gt).square().mean().item()
        tv = 0.1 * ((model.output[..., 1:, :] - model.output[..., :-1, :]).abs().mean() +
                    (model.output[..., 1:] - model.output[..., :-1]).abs().mean()).item()
    log = model.get_current_log()
    assert list(log) == ['l_fidelity', 'l_log_scale', 'l_pix', 'l_tv', 's_mean', 's_floor', 'grad_norm']
    assert log['l_pix'] == pytest.approx(mse, rel=1e-5)
    assert log['l_tv'] == pytest.approx(tv, rel=1e-5)
    assert log['l_log_scale'] == pytest.approx(2 * log['s_mean'], rel=1e-5)


def test_the_share_on_the_floor_is_that_of_the_heads_own_floor(project):
    """Of a Gaussian head s = ln(sigma) - 0.23, and ELU ends at ln(sigma) = -1."""
    model = project.model('esu', 'train:likelihood_opt={type: GaussianNLLLoss}', 'network_u:head:distribution=gaussian')
    with torch.no_grad():
        model.net_u.head.conv3.weight.zero_()
        model.net_u.head.conv3.bias.fill_(-1.5)  # ELU: about -0.78, a fifth above the floor
        model.net_u.head.conv3.bias[0] = -8.
    run_steps(model, 1)
    assert model.get_current_log()['s_floor'] == pytest.approx(1 / 3)


def test_a_loss_whose_weights_cannot_be_fetched_says_which_file_to_put_where(project, monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise URLError('no network')

    monkeypatch.setattr('torch.hub.urlopen', refuse)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    expected = rf'perceptual_opt.*no network.*Put vgg19-\w+.pth into {tmp_path}/hub/checkpoints'
    with pytest.raises(CheckpointError, match=expected):
        project.model('plain', 'train:perceptual_opt={type: PerceptualLoss, layer_weights: {conv5_4: 1}}')


def test_lr_gradient_map_is_given_the_input(project):
    model = project.model('plain', 'train:pixel_opt={type: WeightMapLoss, weight_map: lr_gradient}')
    run_steps(model, 1)
    assert model.get_current_log()['l_pix'] > 0


def nan_batch():
    return {**{k: v * torch.nan for k, v in batch().items()}, 'lq_path': ['a/bad.png', 'a/worse.png']}


@pytest.mark.parametrize('force', [(), ('train:amp=fp16', ), ('train:ema_decay=0.9', 'train:grad_clip=1')])
@pytest.mark.parametrize('stage', ['plain', 'esu'])
def test_a_loss_that_is_not_finite_stops_the_run_before_the_step(project, stage, force):
    model = project.model(stage, *force)
    run_steps(model, 2)
    before = copy.deepcopy(model.net_g.state_dict())
    model.feed_data(nan_batch())
    with pytest.raises(FloatingPointError, match=r'iteration 3: .*l_.* nan, .*grad_norm nan; images a/bad.png, '
                                                 r'a/worse.png\. Stopped; .*train.optim_g.lr'):
        model.optimize_parameters(3)
    assert_same_weights(model.net_g.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize('force', [(), ('train:amp=fp16', )])
def test_steps_that_are_not_finite_are_left_out_as_often_as_allowed(project, force, caplog):
    force = ('network_g={type: MSRResNet, num_feat: 8, num_block: 1, upscale: 2}', *force)
    model, straight = (project.model('plain', 'train:skip_nonfinite=2', 'train:ema_decay=0.9', *force)
                       for _ in range(2))
    straight.net_g.load_state_dict(model.net_g.state_dict())
    straight.net_g_ema.load_state_dict(model.net_g_ema.state_dict())

    def remember(network, args, out):
        network.seen += out.detach().float().mean()

    for network in (model.net_g, straight.net_g):
        network.register_buffer('seen', torch.zeros(()))
        network.register_forward_hook(remember)
    for ema in (model.net_g_ema, straight.net_g_ema):
        ema.register_buffer('seen', torch.zeros(()))
    for number, data in enumerate([batch(), nan_batch(), nan_batch(), batch(), nan_batch()], 1):
        model.feed_data(data)
        model.optimize_parameters(number)
        if 'lq_path' not in data:
            straight.feed_data(data)
            straight.optimize_parameters(number)
    assert_same_weights(model.net_g.state_dict(), straight.net_g.state_dict(), rtol=0, atol=0)
    assert_same_weights(model.net_g_ema.state_dict(), straight.net_g_ema.state_dict(), rtol=0, atol=0)
    log = model.get_current_log()
    assert log['skipped'] == 3
    assert np.isnan(log['l_pix'])  # not 0, which nobody has measured
    assert 'iteration 3: a loss or gradient is not finite' in caplog.text
    assert 'Step left out (2 of 2 in a row)' in caplog.text
    model.feed_data(nan_batch())
    model.optimize_parameters(6)
    with pytest.raises(FloatingPointError, match='Stopped, 3 times in a row'):
        model.optimize_parameters(7)


def test_a_gradient_that_is_not_finite_counts_though_the_loss_is(project):
    model = project.model('plain', 'train:skip_nonfinite=1')
    before = copy.deepcopy(model.net_g.state_dict())
    model.net_g.conv_last.weight.register_hook(lambda grad: grad * torch.inf)
    run_steps(model, 1)
    assert model.skipped == 1
    assert_same_weights(model.net_g.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize('reduction', ['none', 'sum'])
def test_reductions_that_cannot_be_trained(project, reduction):
    with pytest.raises(ValueError, match=r'train\.pixel_opt\.reduction'):
        project.model('plain', f'train:pixel_opt:reduction={reduction}', 'train:accumulate=2', check_files=False)


@pytest.mark.parametrize(('key', 'block'), [
    ('min_over', {'type': 'WeightMapLoss'}), ('mean_over', {'type': 'ExpectedL1Loss'})])
def test_a_figure_over_the_batch_is_none_over_its_parts(project, key, block):
    parsed = project.parse('plain', f'train:pixel_opt={json.dumps({**block, key: "batch"})}')
    with pytest.raises(OptionError, match=rf'train\.pixel_opt\.{key}: expected image, got batch'):
        project.parse('plain', f'train:pixel_opt={json.dumps({**block, key: "batch"})}', 'train:accumulate=2')
    parsed.opt['train']['accumulate'] = 2
    with pytest.raises(ValueError, match=rf"train\.pixel_opt\.{key}: expected 'image'"):
        build_model(parsed.opt)


def test_options_are_left_as_they_were(project):
    parsed = project.parse('plain')
    before = copy.deepcopy(parsed.opt)
    for _ in range(2):  # a second model from the same options, in the same process
        project.model('plain')
        from basicsr.models import build_model
        build_model(parsed.opt)
    assert parsed.opt == before


# ---------------------------------------------------------------------------------------------------------- inference


def convolution():
    torch.manual_seed(0)
    conv = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 1, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 12, 5, 1, 2),
                               torch.nn.PixelShuffle(2)).double()
    return conv.requires_grad_(False)  # receptive field: 1 + 2 pixels on each side


@pytest.mark.parametrize('size', [(17, 23), (8, 8), (5, 31)])
@pytest.mark.parametrize('tile', [4, 8, 64])
def test_tiling_is_exact_once_the_overlap_covers_the_receptive_field(size, tile):
    net = convolution()
    lq = torch.rand(1, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(inference.tiled(net, tile, 3, 2)(lq), net(lq), rtol=0, atol=1e-13)
    if tile < min(size):
        assert (inference.tiled(net, tile, 1, 2)(lq) - net(lq)).abs().max() > 1e-3


def test_tiles_begin_where_a_network_unshuffles():
    """As RRDBNet does at x2: seen from an odd pixel on, the image would be another one."""
    net = torch.nn.Sequential(torch.nn.PixelUnshuffle(2), torch.nn.Conv2d(12, 48, 3, 1, 1),
                              torch.nn.PixelShuffle(4)).double().requires_grad_(False)
    lq, run = torch.rand(1, 3, 18, 25, dtype=torch.float64), inference.padded(net, 2, 2)
    torch.testing.assert_close(inference.tiled(run, 5, 4, 2, 2)(lq), run(lq), rtol=0, atol=1e-13)


def test_self_ensemble_by_hand():
    net = convolution()
    lq = torch.rand(1, 3, 6, 9, dtype=torch.float64)
    total = 0
    for h in (False, True):
        for v in (False, True):
            for t in (False, True):
                x = lq.flip(-1) if h else lq
                x = x.flip(-2) if v else x
                y = net(x.mT if t else x)
                y = y.mT if t else y
                y = y.flip(-2) if v else y
                total = total + (y.flip(-1) if h else y)
    torch.testing.assert_close(inference.self_ensembled(net)(lq), total / 8, rtol=0, atol=1e-13)


@pytest.mark.parametrize('size', [(8, 16), (9, 13), (3, 5)])
def test_padding_to_a_window(size):
    seen = []

    def net(x):
        seen.append(x.shape[-2:])
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    lq = torch.rand(1, 3, *size)
    assert torch.equal(inference.padded(net, 8, 2)(lq), net(lq))
    assert all(n % 8 == 0 for n in seen[0])


def test_log_scale_pictures_go_there_and_back():
    s = np.linspace(-2, 6, 1001)
    picture = encode_log_scale(s)
    assert picture.dtype == np.uint16
    np.testing.assert_allclose(decode_log_scale(picture), s, atol=7e-5)
    with pytest.raises(ValueError, match='16-bit'):
        decode_log_scale(picture.astype(np.uint8))
