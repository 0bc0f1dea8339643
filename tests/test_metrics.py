"""Metrics against SciPy, brute force and closed forms; their option blocks; a validation; the report."""
import importlib
import json
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
from basicsr.metrics.metric_util import to_y_channel
from basicsr.models import build_model
from basicsr.utils import tensor2img
from conftest import photograph
from torch.utils.data import DataLoader

from udl_basicsr import functional as F
from udl_basicsr import metrics
from udl_basicsr.data.loader import build_dataset
from udl_basicsr.functional.log_scale_maps import encode_log_scale
from udl_basicsr.functional.uncertainty import LEVELS, STEPS
from udl_basicsr.losses.perceptual import build_lpips
from udl_basicsr.metrics import perceptual
from udl_basicsr.metrics.fidelity import Fidelity, y_channel
from udl_basicsr.metrics.perceptual import _judge
from udl_basicsr.options.parse import OptionError
from udl_basicsr.reports.uncertainty import ReportError, read_errors, read_images
from udl_basicsr.training import loop, stages
from udl_basicsr.utils.scores import protocol_sentence

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def drawn():
    """Laplace residuals r with scales θ, and f = 128."""
    generator = np.random.default_rng(0)
    scale = np.exp(generator.uniform(-1, 3, (100, 200)))
    return generator.laplace(scale=scale), scale


# ---------------------------------------------------------------------------------------------------------- formulas


def test_log_likelihoods_are_those_of_scipy(drawn):
    residual, scale = drawn
    e = np.abs(residual)
    laplace = scipy.stats.laplace.logpdf(residual + 128, loc=128, scale=scale)
    gaussian = scipy.stats.norm.logpdf(residual + 128, loc=128, scale=scipy.stats.laplace.std(scale=scale))
    assert F.laplace_log_likelihood(e, scale) == pytest.approx(laplace.mean(), rel=1e-12)
    assert F.gaussian_log_likelihood(e, scale) == pytest.approx(gaussian.mean(), rel=1e-12)
    assert F.laplace_log_likelihood(e, scale) > max(F.laplace_log_likelihood(e, c * scale) for c in (0.8, 1.25))


def test_spearman_with_ties_is_that_of_scipy(drawn):
    residual, scale = drawn
    e = np.abs(residual)
    for error, theta in ((e, scale), (e.round(), scale), (e.round(), scale.round() + 1), (e, -e + e.max() + 1)):
        expected = scipy.stats.spearmanr(error.ravel(), theta.ravel()).statistic
        assert F.spearman(error, theta) == pytest.approx(expected, abs=1e-12)
    np.testing.assert_array_equal(F.average_ranks(e.round().ravel()), scipy.stats.rankdata(e.round().ravel()))


def brute_force(e, ranking, steps, power=1):
    """One pixel after the other, the most uncertain first."""
    left = sorted(zip(ranking, e, strict=True))
    curve = []
    for step in range(steps):
        while len(left) > len(e) - step * len(e) // steps:
            left.pop()
        curve.append((sum(x**power for _, x in left) / len(left))**(1 / power))
    return np.array(curve) / curve[0]


@pytest.mark.parametrize(('measure', 'power'), [('mae', 1), ('rmse', 2)])
def test_sparsification_is_that_of_a_loop(drawn, measure, power):
    residual, scale = (a.ravel()[:400] for a in drawn)
    e = np.abs(residual)
    by_scale, by_error = brute_force(e, scale, 20, power), brute_force(e, e, 20, power)
    np.testing.assert_allclose(F.sparsification_curve(e, scale, 20, measure), by_scale, rtol=1e-12)
    np.testing.assert_allclose(F.oracle_curve(e, 20, measure), by_error, rtol=1e-12)
    expected = scipy.integrate.trapezoid(by_scale - by_error, dx=1 / 20)
    assert F.ause(e, scale, 20, measure) == pytest.approx(expected, rel=1e-10)
    assert F.ause(e, e + 1e-9, 20, measure) == pytest.approx(0, abs=1e-12)
    assert F.ause(e, 1 / (e + 1e-9), 20, measure) > 1.5 * F.ause(e, np.ones_like(e), 20, measure) > 0


def test_ties_are_removed_in_random_order():
    """Against the mean over many orders; and a constant map is chance, whatever the order of the pixels."""
    generator = np.random.default_rng(0)
    e, scale = generator.exponential(size=40), generator.integers(1, 5, 40)
    orders = [brute_force(e, scale + 1e-6 * generator.random(40), 10) for _ in range(3000)]
    np.testing.assert_allclose(F.sparsification_curve(e, scale, 10), np.mean(orders, axis=0), atol=0.03)
    np.testing.assert_allclose(F.sparsification_curve(np.sort(e), np.ones(40)), 1)
    np.testing.assert_allclose(F.sparsification_curve(np.sort(e), np.ones(40), measure='rmse'), 1)


def test_calibration_of_known_distributions(drawn):
    residual, scale = drawn
    e = np.abs(residual)
    assert F.calibration_error(e, scale) < 0.01
    # an interval of a θ that is c times too large covers 1 − (1 − p)^c
    for c in (0.5, 2.):
        expected = 1 - (1 - LEVELS)**c
        np.testing.assert_allclose(F.calibration_curve(e, c * scale), expected, atol=0.015)
        assert F.calibration_error(e, c * scale) == pytest.approx(np.abs(expected - LEVELS).mean(), abs=0.01)
    loop = [np.mean([x <= -t * np.log(1 - p) for x, t in zip(e.flat, scale.flat, strict=True)]) for p in (0.1, 0.5)]
    np.testing.assert_allclose(F.calibration_curve(e, scale, np.array([0.1, 0.5])), loop, atol=1e-12)


def test_calibration_of_rounded_images():
    """θ near one grey level: what the rounding hides is counted by the share of ±e ± ½ within the interval."""
    generator = np.random.default_rng(0)
    scale = generator.uniform(0.7, 3, 40000)
    e = np.abs(np.round(generator.laplace(scale=scale)))
    assert (e == 0).mean() > 0.2
    assert 0.015 > F.calibration_error(e, scale, rounding=1.) < F.calibration_error(e, scale) / 3
    spread = np.abs(np.sign(generator.random(e.shape) - 0.5) * e[None] + generator.uniform(-0.5, 0.5, (50, e.size)))
    expected = F.calibration_curve(spread, np.broadcast_to(scale, spread.shape))
    np.testing.assert_allclose(F.calibration_curve(e, scale, rounding=1.), expected, atol=2e-3)


def test_recalibration_finds_the_factor(drawn):
    residual, scale = drawn
    e = np.abs(residual)
    for factor in (0.3, 1., 4.):
        assert F.recalibration_factor(e, scale / factor) == pytest.approx(factor, rel=0.02)
    wrong = scale**1.5  # no factor makes this right; the most likely one is found all the same
    best = F.recalibration_factor(e, wrong)
    grid = best * np.linspace(0.9, 1.1, 201)
    assert grid[np.argmax([F.laplace_log_likelihood(e, c * wrong) for c in grid])] == pytest.approx(best)


def test_sigma_psnr(drawn):
    residual, scale = drawn
    e = np.abs(residual)
    expected = 10 * np.log10(1 / np.mean((e / 255 - scale / 255)**2))  # in [0, 1] with peak 1
    assert F.sigma_psnr(e, scale) == pytest.approx(expected, rel=1e-12)
    assert F.sigma_psnr(np.full(3, 255.), np.full(3, 1e6)) == F.sigma_psnr(e + 1, e + 1) == float('inf')


def test_constant_maps_and_no_error():
    zero, one = np.zeros((4, 5)), np.ones((4, 5))
    e = np.arange(20.).reshape(4, 5)
    assert F.spearman(e, one) == F.spearman(zero, e + 1) == 0
    assert F.ause(zero, e + 1) == 0
    assert F.ause(e, one) > 0
    assert F.recalibration_factor(zero, one) == 0
    np.testing.assert_array_equal(F.calibration_curve(zero, one), 1)
    for function in (F.laplace_log_likelihood, F.ause, F.spearman, F.calibration_curve):
        for error, scale in ((e, zero), (e, one * np.nan), (-one, one), (e * np.inf, one), (e, one[0]), ([], [])):
            with pytest.raises(ValueError, match='expected'):
                function(error, scale)


# ------------------------------------------------------------------------------------------ PSNR and SSIM as BasicSR's


def test_y_is_basicsrs_for_each_colour():
    green, red = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    for blue in range(256):
        img = np.stack([np.full_like(green, blue), green, red], -1)
        assert np.array_equal(y_channel(img), to_y_channel(img)[..., 0]), blue


def fidelity_pairs():
    generator = np.random.default_rng(0)
    for size in ((11, 11), (12, 43), (48, 56), (97, 20)):  # 32 windows are a strip
        noise = generator.integers(0, 256, (2, *size, 3), np.uint8)
        flat = np.full((*size, 3), 200, np.uint8)
        img = photograph(1, *size)
        near = (img + generator.normal(0, 3, img.shape)).clip(0, 255).astype(np.uint8)
        yield from (noise, (flat, flat), (flat, flat // 2), (img, near), (img, img), (flat, noise[0]))


@pytest.mark.parametrize('border', [0, 1, 4])
def test_psnr_and_ssim_are_basicsrs(border):
    compared = 0
    for img, img2 in fidelity_pairs():
        fidelity = Fidelity(img, img2)
        if min(img.shape[:2]) - 2 * border < 11:  # no window: left to BasicSR
            assert fidelity({'type': 'calculate_ssim', 'crop_border': border, 'test_y_channel': True}) is None
            continue
        for name, tolerance in (('psnr', 0), ('ssim', 1e-10)):
            block = {'type': f'calculate_{name}', 'crop_border': border, 'test_y_channel': True, 'better': 'higher'}
            stock = calculate_metric({'img': img, 'img2': img2}, block)
            assert fidelity(block) == stock or abs(fidelity(block) - stock) <= tolerance, (name, img.shape)
            compared += 1
    assert compared >= 20


def test_other_metrics_and_images_are_left_to_basicsr():
    block = {'type': 'calculate_psnr', 'crop_border': 2, 'test_y_channel': True}
    img = photograph(1, 24, 30)
    assert Fidelity(img, img[::-1])(block) is not None
    for other in ({'type': 'calculate_niqe'}, {'test_y_channel': False}, {'input_order': 'CHW'}, {'crop_border': -1},
                  {'crop_border': None}, {'crop_border': 7}, {'type': 'calculate_psnr_pt'}, {'unknown': 1}):
        assert Fidelity(img, img[::-1])({**block, **other}) is None, other
    for images in ((img[..., 0], img[..., 0]), (img[..., :1], img[..., :1]), (img / 255, img / 255), (img, img[1:])):
        assert Fidelity(*images)(block) is None


# -------------------------------------------------------------------------------------------------------- val.metrics

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


# ------------------------------------------------------------------------------------------------------------ options


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


# --------------------------------------------------------------------------------------------- validation and report


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


def test_a_model_without_uncertainty_says_so(project):
    parsed = project.parse('plain')
    parsed.opt['val']['metrics'] = {'m': BLOCKS['ause']}
    with pytest.raises(ValueError, match='m: calculate_ause measures an uncertainty, and this model has'):
        build_model(parsed.opt).validation(loop._loaders(parsed.opt, 'val')[0], 1, None)


@pytest.fixture
def results(tmp_path):
    """Two runs on two data sets: θ known, f = x + Laplace; the second run says half of θ."""
    generator = np.random.default_rng(0)
    for dataset, factor in (('A', 1.), ('B', 3.)):
        (tmp_path / dataset).mkdir()
        for image in ('1', '1_b'):
            s = generator.uniform(1.5, 3, (60, 70))
            gt = photograph(7, 60, 70) // 3 + 85
            sr = gt + generator.laplace(scale=factor * np.exp(s)[..., None], size=gt.shape)
            cv2.imwrite(str(tmp_path / dataset / f'{image}.png'), gt)
            for run, c in (('good', 1.), ('half', 0.5)):
                folder = tmp_path / 'results' / run / 'visualization' / dataset
                folder.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / f'{image}x2_{run}.png'), sr.round().clip(0, 255).astype(np.uint8))
                cv2.imwrite(str(folder / f'{image}x2_log_scale.png'), encode_log_scale(s + np.log(c)))
    return tmp_path


def test_the_report(results, capsys):
    main = importlib.import_module('udl_basicsr.cli.uncertainty').main
    runs = [str(results / 'results' / run) for run in ('good', 'half')]
    options = ['--dataset', 'B', '--gt', str(results / 'B'), '--crop_border', '2', '--out', str(results / 'out')]
    assert main([*runs, *options, '--calibrate', 'A', str(results / 'A')]) == 0
    said = capsys.readouterr().out
    assert 'B, all values of RGB pooled, border of 2 px cropped' in said
    assert 'recalibration fitted on A; per image: ' in said
    good, half = json.loads((results / 'out' / 'uncertainty.json').read_text())['runs']
    assert (good['images'], good['values']) == (2, 2 * 56 * 66 * 3)
    assert good['recalibrated']['factor'] == pytest.approx(1, abs=0.03)
    assert half['recalibrated']['factor'] == pytest.approx(2, abs=0.06)
    # B's errors are three times what is said, whatever was fitted on A
    assert good['recalibrated']['calibration_error'] == pytest.approx(half['recalibrated']['calibration_error'],
                                                                      abs=1e-3)
    error, scale, _ = read_errors(results / 'results' / 'half', 'B', results / 'B', 2)
    assert half['scores']['log_likelihood_laplace'] == pytest.approx(
        scipy.stats.laplace.logpdf(error, scale=scale).mean())
    assert half['scores']['ause_rmse'] == pytest.approx(F.ause(error, scale, measure='rmse'))
    assert half['scores']['spearman'] == pytest.approx(good['scores']['spearman'], abs=1e-5)  # maps in 16 bits
    assert len(good['sparsification']) == len(good['oracle']) == len(good['fractions']) == STEPS
    # per image, and the bins of all: half of θ is as wrong everywhere as its factor says
    images = list(read_images(results / 'results' / 'half', 'B', results / 'B', 2))
    for key, value in (('crps', F.laplace_crps), ('ence', F.ence), ('aurg', F.aurg),
                       ('width', lambda e, t: 2 * np.log(10) * t.mean())):
        mean, low, high = half['by_image'][key]
        values = [value(*pair) for pair in images]
        assert mean == pytest.approx(np.mean(values))
        assert min(values) - 1e-9 <= low <= mean <= high <= max(values) + 1e-9
    assert half['by_image_recalibrated']['width'][0] == pytest.approx(
        half['recalibrated']['factor'] * half['by_image']['width'][0])
    np.testing.assert_allclose(np.divide(half['rmse'], half['spread']), 6, rtol=0.2)  # 3 times the error, half of θ
    csv = (results / 'out' / 'uncertainty.csv').read_text().splitlines()
    assert len(csv) == 5
    assert float(csv[3].split(',')[2]) == half['scores']['log_likelihood_laplace']
    assert (results / 'out' / 'uncertainty.md').read_text().count('\n| ') == 9
    assert cv2.imread(str(results / 'out' / 'uncertainty.png')).std() > 10

    error, _, _ = read_errors(results / 'results' / 'good', 'A', results / 'A', share=0.25)
    assert error.size == pytest.approx(2 * 60 * 70 * 3 / 4, rel=0.05)
    for dataset, gt, message in (('C', 'A', 'val.save_img: true'), ('A', 'C', 'is it the GT folder')):
        with pytest.raises(ReportError, match=message):
            read_errors(results / 'results' / 'good', dataset, results / gt)
    assert main([runs[0], '--dataset', 'C', '--gt', 'no', '--out', 'no']) == 1
    assert 'error: ' in capsys.readouterr().err
    folder = results / 'results' / 'good' / 'visualization' / 'A'
    (folder / '1x2_good.png').unlink()
    with pytest.raises(ReportError, match='expected one SR image'):
        read_errors(results / 'results' / 'good', 'A', results / 'A')


def test_training_keeps_the_best_by_an_uncertainty(project):
    """The whole run: better: lower, save_best and the log."""
    stages.train(project.parse('esu', force({'ause': BLOCKS['ause']}), 'val:save_best={metric: ause, dataset: val}'),
                 'the command')
    assert 'Best ause on val so far' in project.log('esu')
    assert (project.root / 'experiments/esu/models/net_u_best.pth').exists()
