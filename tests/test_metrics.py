"""Metrics as `val.metrics` has them: blocks, validation, and the report."""
import contextlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import lpips
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from basicsr.metrics import calculate_metric
from basicsr.models import build_model
from basicsr.utils import tensor2img
from conftest import photograph
from torch.utils.data import DataLoader

from udl_basicsr import functional as F
from udl_basicsr import metrics
from udl_basicsr.data.loader import build_dataset
from udl_basicsr.losses.perceptual import build_lpips
from udl_basicsr.metrics import perceptual
from udl_basicsr.metrics.perceptual import _judge
from udl_basicsr.options.parse import OptionError
from udl_basicsr.training import loop, stages
from udl_basicsr.utils.scores import protocol_sentence

# ---------------------------------------------------------------------------------------------------------- val.metrics

BLOCKS = {
    'log_likelihood': {'type': 'calculate_log_likelihood'},
    'gaussian': {'type': 'calculate_log_likelihood', 'distribution': 'gaussian', 'recalibration': 1.5},
    'sigma_psnr': {'type': 'calculate_sigma_psnr'},
    'pll': {'type': 'calculate_pll'},
    'constant_pll': {'type': 'calculate_constant_pll', 'sigma': 0.05},
    'constant_psnr': {'type': 'calculate_constant_sigma_psnr', 'sigma': 0.05},
    'fitting_error': {'type': 'calculate_fitting_error', 'better': 'lower'},
    'ause': {'type': 'calculate_ause', 'measure': 'rmse', 'steps': 20, 'better': 'lower'},
    'spearman': {'type': 'calculate_spearman', 'better': 'higher'},
    'calibration': {'type': 'calculate_calibration_error', 'better': 'lower'},
    'recalibration': {'type': 'calculate_recalibration'},
    'ence': {'type': 'calculate_ence', 'bins': 10},
    'uce': {'type': 'calculate_uce', 'recalibration': 2.},
    'picp': {'type': 'calculate_picp', 'alpha': 0.2},
    'width': {'type': 'calculate_interval_width', 'alpha': 0.2},
    'interval_score': {'type': 'calculate_interval_score', 'alpha': 0.2, 'better': 'lower'},
    'stratified': {'type': 'calculate_size_stratified_risk', 'strata': 3},
    'crps': {'type': 'calculate_crps'},
    'aurg': {'type': 'calculate_aurg', 'steps': 20, 'better': 'higher'},
}


def by_hand(e, s):
    theta = np.exp(s.astype(np.float64))
    return {
        'log_likelihood': scipy.stats.laplace.logpdf(e, scale=theta).mean(),
        'gaussian': scipy.stats.norm.logpdf(e, scale=1.5 * np.sqrt(2) * theta).mean(),
        'sigma_psnr': 20 * np.log10(255) - 10 * np.log10(np.mean((theta.clip(max=255) - e)**2)),
        'pll': scipy.stats.norm.logpdf(e / 255, scale=theta / 255).mean(),  # pixels in [0, 1], sigma as predicted
        'constant_pll': scipy.stats.norm.logpdf(e / 255, scale=0.05).mean(),
        'constant_psnr': -10 * np.log10(np.mean((0.05 - e / 255)**2)),
        'fitting_error': (e / 255).mean(),
        'ause': F.ause(e, theta, 20, 'rmse'),
        'spearman': scipy.stats.spearmanr(e.ravel(), s.ravel()).statistic,
        'calibration': F.calibration_error(e, theta, rounding=1.),
        'recalibration': (e / theta).mean(),
        'ence': F.ence(e, theta, 10),
        'uce': F.uce(e, 2 * theta),
        'picp': F.coverage(e, theta * np.log(5), rounding=1.),
        'width': 2 * np.log(5) * theta.mean(),
        'interval_score': np.mean(2 * np.log(5) * theta + 10 * (e - np.log(5) * theta).clip(min=0)),
        'stratified': F.stratified_risks(e, theta * np.log(10), 3, rounding=1.).max(),
        'crps': np.mean(e + theta * np.exp(-e / theta) - 0.75 * theta),
        'aurg': F.area_between(np.ones(20), F.sparsification_curve(e, theta, 20)),
    }


def test_registered_metrics_crop_and_know_their_channels():
    """Called as BasicSR calls them, on BGR images in (H, W, C)."""
    generator = np.random.default_rng(0)
    img, img2 = photograph(1, 24, 30), photograph(2, 24, 30)
    s = generator.normal(3, 1, img.shape).astype(np.float32)
    e = np.abs(img.astype(float) - img2)[4:-4, 4:-4]
    for name, block in BLOCKS.items():
        value = calculate_metric({'img': img, 'img2': img2, 'log_scale': s}, {**block, 'crop_border': 4})
        assert value == pytest.approx(by_hand(e, s[4:-4, 4:-4])[name], rel=1e-9), name
        chw = {k: np.moveaxis(a, 2, 0) for k, a in (('img', img), ('img2', img2), ('log_scale', s))}
        assert calculate_metric(chw, {**block, 'crop_border': 4, 'input_order': 'CHW'}) == pytest.approx(value)
    # one map for three channels, and gray images
    gray = metrics.calculate_spearman(img, img2, s[..., :1])
    assert gray == pytest.approx(metrics.calculate_spearman(img, img2, s[..., :1].repeat(3, axis=2)))
    assert metrics.calculate_spearman(img[..., 0], img2[..., 0], s[..., 0]) == pytest.approx(
        metrics.calculate_spearman(img[..., :1], img2[..., :1], s[..., :1]))
    for kwargs, message in (({'log_scale': s[1:]}, 'one size'), ({'log_scale': s[..., :2]}, 'one size'),
                            ({'log_scale': s, 'crop_border': 12}, 'crop_border: 12'),
                            ({'log_scale': s, 'recalibration': 0.}, 'recalibration')):
        with pytest.raises(ValueError, match=message):
            metrics.calculate_log_likelihood(img, img2, **kwargs)


@pytest.mark.parametrize('net', ['alex', 'squeeze'])
def test_lpips_is_that_of_the_package(net):
    img, img2 = photograph(1, 48, 56), photograph(2, 48, 56)
    value = metrics.calculate_lpips(img, img2, crop_border=4, net=net, random_weights=True, better='lower')
    judge = _judge(net, '0.1', None, True, 'cpu').model
    assert type(judge) is lpips.LPIPS  # called by hand, past all of our own code

    def rgb(image):  # in [-1, 1]
        image = cv2.cvtColor(image[4:-4, 4:-4], cv2.COLOR_BGR2RGB)
        return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 * 2 - 1

    with torch.no_grad():
        expected = judge.cpu()(rgb(img), rgb(img2)).item()
        swapped = judge(rgb(img).flip(1), rgb(img2).flip(1)).item()
    assert value == pytest.approx(expected, rel=1e-4)
    assert abs(value - expected) < 0.1 * abs(value - swapped)  # BGR would have been noticed
    assert metrics.calculate_lpips(img, img, net=net, random_weights=True) == 0
    assert metrics.calculate_lpips(img[..., 0], img2[..., 0], net=net, random_weights=True) == pytest.approx(
        metrics.calculate_lpips(img[..., :1].repeat(3, 2), img2[..., :1].repeat(3, 2), net=net, random_weights=True))


def test_one_lpips_judge_serves_all_threads(monkeypatch):
    """Images are measured in several threads at once; each would load a judge, and a random one be another network."""
    built = []
    monkeypatch.setattr(perceptual, 'build_lpips', lambda **kwargs: built.append(kwargs) or build_lpips(**kwargs))
    _judge.cache_clear()
    img, img2 = photograph(1, 48, 56), photograph(2, 48, 56)
    with ThreadPoolExecutor(4) as threads:
        values = list(threads.map(lambda _: metrics.calculate_lpips(img, img2, net='squeeze', random_weights=True),
                                  range(4)))
    assert len(built) == 1
    assert values == [values[0]] * 4


@pytest.mark.parametrize(('device', 'patience', 'at_once'), [('cpu', 20, 3), ('cpu:0', 0.2, 1)])
def test_lpips_is_computed_alone_on_a_device(monkeypatch, device, patience, at_once):
    """Its features take memory there. On a CPU one call does not wait for another; by another name it is a device."""
    inside, seen, together = [], [], threading.Barrier(3)

    def judge(*pair):
        inside.append(pair)
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(patience)
        seen.append(len(inside))
        inside.pop()
        return torch.zeros(())

    monkeypatch.setattr(perceptual, '_judge', lambda *_: judge)
    img = photograph(1, 48, 56)
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda _: metrics.calculate_lpips(img, img, device=device), range(3)))
    assert max(seen) == at_once


def test_lpips_judges_where_the_model_is(project, monkeypatch):
    """num_gpu: 0 on a machine with a GPU, which this one would notice not to have."""
    lpips_opt = {'type': 'calculate_lpips', 'net': 'squeeze', 'random_weights': True}
    model = project.model('plain', 'num_gpu=0', force({'lpips': lpips_opt}))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    img = photograph(1, 48, 56)
    assert model._measure(img, img, None) == {'lpips': 0}


def test_protocol_names_the_judge():
    lpips_opt = {'type': 'calculate_lpips', 'better': 'lower', 'crop_border': 4}
    assert protocol_sentence({'lpips': lpips_opt}, 4) == (
        'LPIPS (net alex, version 0.1) on RGB in [−1, 1], border of 4 px cropped, SR rounded to 8 bits')
    sentence = protocol_sentence({'lpips': {**lpips_opt, 'net': 'vgg', 'crop_border': 0}, 'ause': BLOCKS['ause']}, 4)
    assert 'LPIPS (net vgg, version 0.1) on RGB in [−1, 1], no border cropped; AUSE on RGB, no border' in sentence


def test_the_baseline_of_table_7(project):
    """A plain network tested on its training set gives the constant sigma, with which it is then scored."""
    fitting = {'fitting_error': BLOCKS['fitting_error']}
    model = build_model(project.parse('plain', force(fitting)).opt)
    val_opt, train_opt = (model.opt['datasets'][phase] for phase in ('val', 'train'))
    roots = {key: train_opt[key] for key in ('dataroot_gt', 'dataroot_lq')}
    train_set, val_set = build_dataset({**val_opt, **roots}), build_dataset(val_opt)
    sigma = model.validation(DataLoader(train_set), 0, None)['fitting_error']
    errors = []
    for index in range(len(train_set)):
        pair = train_set[index]
        with torch.no_grad():
            sr = tensor2img(model.net_g(pair['lq'][None]))
        errors.append(np.abs(sr.astype(float) - tensor2img(pair['gt'])).mean() / 255)
    assert sigma == pytest.approx(np.mean(errors), rel=1e-12)
    scored = build_model(project.parse('plain', force({'pll': {'type': 'calculate_constant_pll', 'sigma': sigma}})).opt)
    scored.net_g.load_state_dict(model.net_g.state_dict())
    pll = scored.validation(DataLoader(val_set), 0, None)['pll']
    # the mean log density of N(f, sigma^2), from the mean squares alone
    squares = []
    for index in range(len(val_set)):
        pair = val_set[index]
        with torch.no_grad():
            sr = tensor2img(model.net_g(pair['lq'][None]))
        squares.append(np.square(sr.astype(float) - tensor2img(pair['gt'])).mean() / 255**2)
    expected = -0.5 * np.log(2 * np.pi * sigma**2) - np.mean(squares) / (2 * sigma**2)
    assert pll == pytest.approx(expected, rel=1e-10)
    with pytest.raises(ValueError, match='sigma: expected a number > 0'):
        metrics.calculate_constant_pll(sr, sr, sigma=0.)


# -------------------------------------------------------------------------------------------------------------- options

def force(block: dict) -> str:
    return 'val:metrics=' + json.dumps(block)


def test_blocks_are_accepted(project):
    lpips_opt = {'type': 'calculate_lpips', 'version': 0.1, 'random_weights': True, 'better': 'lower'}
    opt = project.parse('esu', force({**BLOCKS, 'lpips': lpips_opt})).opt
    assert opt['val']['metrics']['ause'] == BLOCKS['ause']


@pytest.mark.parametrize(('stage', 'block', 'message'), [
    ('esu', {'type': 'calculate_log_likelyhood'}, "did you mean 'calculate_log_likelihood'?"),
    ('esu', {'type': 'calculate_ause', 'mesure': 'mae'}, "did you mean 'measure'?"),
    ('esu', {'type': 'calculate_ause', 'measure': 'mse'}, 'expects one of mae, rmse'),
    ('esu', {'type': 'calculate_log_likelihood', 'distribution': 'normal'}, 'expects one of laplace, gaussian'),
    ('esu', {'type': 'calculate_spearman', 'log_scale': 3}, 'calculate_spearman has no such argument'),
    ('esu', {'type': 'calculate_lpips', 'net': 'alexnet'}, 'expects one of alex, vgg, squeeze'),
    ('esu', {'type': 'calculate_lpips', 'version': 0.2, 'random_weights': True}, 'version: expected 0.1 or 0.0, got'),
    ('esu', {'type': 'calculate_lpips', 'weights_path': 'no.pth'}, 'no.pth is not there. Put the file there'),
    ('plain', {'type': 'calculate_spearman'}, 'val.metrics.m: calculate_spearman measures the predicted uncertainty, '
     'and there is none without network_u: train stage esu, sigma or udl, or remove the metric'),
])
def test_wrong_blocks_are_refused(project, stage, block, message):
    with pytest.raises(OptionError) as error:
        project.parse(stage, force({'m': block}))
    assert message in str(error.value)


def test_a_test_without_uncertainty_is_refused(project):
    (project.root / 'net_g.pth').write_bytes(b'')
    text = (f'_base_: _base_.yml\nname: t\ndatasets: {{train: ~}}\ntrain: ~\nlogger: ~\n'
            f'path: {{pretrain_network_g: {project.root / "net_g.pth"}}}\n'
            'val: {val_freq: ~, metrics: {m: {type: calculate_ause}}}\n')
    (project.root / 'test.yml').write_text(text)
    with pytest.raises(OptionError, match='pretrain_network_u is missing: name the net_u'):
        project.parse('test', is_train=False)


# ------------------------------------------------------------------------------------------------ validation and report

@pytest.mark.parametrize('save_img', [False, True])
def test_validation_scores_the_network_of_stage_1(project, monkeypatch, save_img):
    """Every value by hand from the network, whose s is computed once for each image."""
    parsed = project.parse('esu', force({**BLOCKS, 'psnr': {'type': 'calculate_psnr', 'crop_border': 0}}))
    parsed.opt['path']['visualization'] = str(project.root / 'visualization')
    model = build_model(parsed.opt)
    (loader, ) = loop._loaders(parsed.opt, 'val')
    calls, log_scale = [], model.log_scale
    monkeypatch.setattr(model, 'log_scale', lambda lq: calls.append(1) or log_scale(lq))
    means = model.validation(loader, 4, None, save_img)
    assert len(calls) == 3
    assert len(list((project.root / 'visualization').glob('*/*_log_scale.png'))) == 3 * save_img

    dataset, expected = build_dataset(parsed.opt['datasets']['val']), {}
    model.net_u.eval()
    for data in dataset:
        with torch.no_grad():
            mean, s = model.net_u(data['lq'][None])
        e = np.abs(tensor2img(mean, rgb2bgr=False).astype(float) - tensor2img(data['gt'], rgb2bgr=False))
        expected[Path(data['lq_path']).stem] = by_hand(e, s[0].permute(1, 2, 0).numpy())
    for image, values in expected.items():
        for name, value in values.items():
            # the network's whole forward and its shortcut to s differ in the last digits of float32
            assert model.scores['val'][image][name] == pytest.approx(value, rel=1e-4), (image, name)
    assert means['spearman'] == pytest.approx(np.mean([v['spearman'] for v in expected.values()]), rel=1e-4)


def by_a_gaussian(e, sigma):
    """With SciPy's density of the sigma that the head puts out."""
    normal = scipy.stats.norm(scale=sigma)
    half, step = scipy.stats.norm.ppf(0.9) * sigma, 0.5

    def share(half):  # of an error that is known to half a grey level
        return np.mean((np.minimum(e + step, half) - np.maximum(e - step, -half)).clip(min=0))

    order = np.argsort(sigma.ravel(), kind='stable')
    bins = [(np.sqrt(np.mean(s**2)), np.sqrt(np.mean(r**2))) for s, r in (
        (sigma.ravel()[part], e.ravel()[part]) for part in np.array_split(order, 10))]
    levels = np.arange(1, 50) / 50
    return {
        'log_likelihood': normal.logpdf(e).mean(),
        'gaussian': scipy.stats.norm.logpdf(e, scale=1.5 * sigma).mean(),
        'pll': scipy.stats.norm.logpdf(e / 255, scale=sigma / 255).mean(),
        'calibration': np.mean([abs(share(scipy.stats.norm.ppf((1 + p) / 2) * sigma) - p) for p in levels]),
        'ence': np.mean([abs(rmse - s) / s for s, rmse in bins]),
        'picp': share(half),
        'width': 2 * half.mean(),
        'interval_score': np.mean(2 * half + 10 * (e - half).clip(min=0)),
    }


def crps_of_a_gaussian(e, sigma):
    return np.mean([scipy.integrate.quad(lambda t, r=r, s=s: (scipy.stats.norm.cdf(t / s) - (t >= r))**2, -12 * s,
                                         max(2 * r, 12 * s), points=[r], limit=200)[0]
                    for r, s in zip(e.ravel(), sigma.ravel(), strict=True)])


def test_validation_measures_the_density_of_a_gaussian_head(project):
    blocks = {name: BLOCKS[name] for name in ('log_likelihood', 'gaussian', 'pll', 'calibration', 'ence', 'picp',
                                              'width', 'interval_score')}
    said = {'type': 'calculate_log_likelihood', 'density': 'laplace'}
    parsed = project.parse('esu', force({**blocks, 'as_laplace': said}), 'network_u:head:distribution=gaussian',
                           'train:likelihood_opt:type=GaussianNLLLoss')
    model = build_model(parsed.opt)
    model.validation(loop._loaders(parsed.opt, 'val')[0], 4, None)
    model.net_u.eval()
    data = build_dataset(parsed.opt['datasets']['val'])[0]
    with torch.no_grad():
        mean, log_sigma = model.net_u(data['lq'][None])
    e = np.abs(tensor2img(mean, rgb2bgr=False).astype(float) - tensor2img(data['gt'], rgb2bgr=False))
    sigma = log_sigma[0].permute(1, 2, 0).double().exp().numpy()
    found, expected = model.scores['val'][Path(data['lq_path']).stem], by_a_gaussian(e, sigma)
    for name in blocks:
        assert found[name] == pytest.approx(expected[name], rel=2e-4), name
    theta = np.sqrt(2 / np.pi) * sigma
    assert found['as_laplace'] == pytest.approx(scipy.stats.laplace.logpdf(e, scale=theta).mean(), rel=2e-4)
    few = slice(None, None, 20), slice(None, None, 20)
    crps = metrics.calculate_crps(tensor2img(mean)[few], tensor2img(data['gt'])[few], np.log(theta[few][..., ::-1]),
                                  density='gaussian')
    assert crps == pytest.approx(crps_of_a_gaussian(e[few], sigma[few]), rel=1e-6)


def test_a_density_that_s_does_not_decide_is_asked_for(project):
    head = ('network_u:head:distribution=quantile', 'train:likelihood_opt:type=QuantileLoss')
    block = {'type': 'calculate_picp', 'crop_border': 0}
    with pytest.raises(OptionError, match=r'val\.metrics\.m: calculate_picp measures .* laplace or gaussian, and the '
                                          'head says quantile: give density: laplace'):
        project.parse('esu', force({'m': block}), *head)
    parsed = project.parse('esu', force({'m': {**block, 'density': 'laplace'}, 'rank': BLOCKS['spearman']}), *head)
    assert build_model(parsed.opt).validation(loop._loaders(parsed.opt, 'val')[0], 1, None)['m'] > 0
    parsed.opt['val']['metrics']['m'].pop('density')  # as under another program than ours, which checks no options
    with pytest.raises(ValueError, match='the head says quantile'):
        build_model(parsed.opt).validation(loop._loaders(parsed.opt, 'val')[0], 1, None)


def test_images_that_are_not_rounded_are_not_measured_as_if_they_were(project):
    """Shares of the network's own errors within θ ln 10, counted."""
    metrics = {name: {'type': f'calculate_{kind}', 'crop_border': 0, **more} for name, kind, more in (
        ('picp', 'picp', {}), ('risk', 'size_stratified_risk', {'strata': 1}), ('rounded', 'picp', {'rounding': 1.}))}
    parsed = project.parse('esu', force(metrics))
    parsed.opt['val']['rounded'] = False
    model = build_model(parsed.opt)
    (loader, ) = loop._loaders(parsed.opt, 'val')
    means = model.validation(loader, 4, None, False)
    model.net_u.eval()
    shares = []
    for data in build_dataset(parsed.opt['datasets']['val']):
        with torch.no_grad():
            mean, s = model.net_u(data['lq'][None])
        error = 255 * (mean.clamp(0, 1) - data['gt']).abs()
        shares.append((error <= np.log(10) * s.exp()).double().mean().item())
    assert means['picp'] == pytest.approx(np.mean(shares), abs=1e-4)
    assert means['risk'] == pytest.approx(1 - np.mean(shares), abs=1e-4)
    assert means['rounded'] != pytest.approx(means['picp'], abs=1e-4)


def test_a_model_without_uncertainty_says_so(project):
    parsed = project.parse('plain')
    parsed.opt['val']['metrics'] = {'m': BLOCKS['ause']}
    with pytest.raises(ValueError, match='m: calculate_ause measures an uncertainty, and this model has'):
        build_model(parsed.opt).validation(loop._loaders(parsed.opt, 'val')[0], 1, None)


def test_training_keeps_the_best_by_an_uncertainty(project):
    """The whole run: better: lower, save_best and the log."""
    stages.train(project.parse('esu', force({'ause': BLOCKS['ause']}), 'val:save_best={metric: ause, dataset: val}'),
                 'the command')
    assert 'Best ause on val so far' in project.log('esu')
    assert (project.root / 'experiments/esu/models/net_u_best.pth').exists()
