"""Ensembles of networks and of flips: moments as NumPy's, mixtures as SciPy's densities, and the pictures of infer."""
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs.edsr_arch import EDSR
from basicsr.utils import img2tensor
from calibration_runs import CalibrationRun
from conftest import status_of
from infer_runs import SMALL, Run, pixels
from PIL import Image
from scipy import integrate, special, stats

from udl_basicsr.archs import UncertaintyNet
from udl_basicsr.archs.ensemble_arch import EnsembleNet
from udl_basicsr.cli import coverage
from udl_basicsr.deploy.calibration import read_calibration
from udl_basicsr.deploy.pictures import Pixels
from udl_basicsr.deploy.restorer import Restorer
from udl_basicsr.functional.ensembles import mean_and_variance, total_log_scale
from udl_basicsr.functional.inference import self_ensembled
from udl_basicsr.functional.log_scale_maps import decode_log_scale


def test_moments_are_numpys_however_far_from_zero():
    members = 255 + 1e-3 * torch.randn(7, 2, 3, 4, 5)
    mean, variance = mean_and_variance(iter(members))
    np.testing.assert_allclose(mean, members.double().mean(0), rtol=1e-7)
    np.testing.assert_allclose(variance, members.double().numpy().var(0), rtol=1e-6)
    assert (mean_and_variance([members[0]])[1] == 0).all()
    with pytest.raises(ValueError, match='at least one member'):
        mean_and_variance([])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_moments_are_not_rounded_to_half_precision(dtype):
    """In bfloat16 the step is a grey level between 1/2 and 1; in float16 a variance of 1/255 of that is 0."""
    members = 0.75 + torch.tensor([0., 1., 3.])[:, None] * torch.finfo(dtype).eps
    mean, variance = mean_and_variance(members.to(dtype))
    np.testing.assert_allclose(mean, members.double().mean(0), rtol=1e-7)
    np.testing.assert_allclose(variance, members.double().numpy().var(0), rtol=1e-6)


def test_the_total_scale_has_the_variance_of_the_mixture():
    images, scales = np.array([100., 103., 98.]), np.array([2., 0.7, 1.5])

    def density(x):
        return np.mean([stats.laplace(f, s).pdf(x) for f, s in zip(images, scales, strict=True)])

    moments = [integrate.quad(lambda x, k=k: x**k * density(x), 60, 140, limit=500, points=sorted(images))[0]
               for k in (1, 2)]
    _, spread = mean_and_variance(torch.tensor(images)[:, None])
    s = total_log_scale(spread, torch.tensor((2 * scales**2).mean()))
    assert 2 * (2 * s).exp().item() == pytest.approx(moments[1] - moments[0]**2, rel=1e-6)
    assert total_log_scale(torch.zeros(1)).isfinite().all()


def nets(count, **head):
    members = [UncertaintyNet(EDSR(**SMALL), {'type': 'UDLHead', 'num_feat': 8, **head}).eval() for _ in range(count)]
    with torch.no_grad():
        for member in members:
            for parameter in member.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return members


@torch.no_grad()
@pytest.mark.parametrize(('distribution', 'variance'), [
    ('gaussian', lambda raw: np.exp(raw)**2),
    ('generalised_gaussian', lambda raw: stats.gennorm.var(  # theta = alpha Gamma(2/beta)/Gamma(1/beta)
        beta := 2**(-raw[:, 3:] / (1 + abs(raw[:, 3:]))),
        scale=np.exp(raw[:, :3]) * special.gamma(1 / beta) / special.gamma(2 / beta))),
])
def test_the_variance_of_a_member_is_that_of_its_own_density(distribution, variance):
    members, lq = nets(2, distribution=distribution), torch.rand(1, 3, 9, 8)
    images = np.stack([255 * member.mean_network(lq).double().numpy() for member in members])
    each = [variance(member.head_output(lq).double().numpy()) for member in members]
    ensemble = EnsembleNet([member.mean_network for member in members], members)
    np.testing.assert_allclose(2 * (2 * ensemble.log_scale(lq)).exp(), np.mean(each, axis=0) + images.var(0), rtol=1e-4)


@torch.no_grad()
def test_an_ensemble_answers_as_its_members_do():
    members, lq = nets(3), torch.rand(1, 3, 12, 14)
    means = [member.mean_network for member in members]
    ensemble = EnsembleNet(means, members)
    images = np.stack([255 * mean(lq).double().numpy() for mean in means])
    squares = np.stack([(2 * member.log_scale(lq).double()).exp().numpy() for member in members])
    np.testing.assert_allclose(255 * ensemble(lq), images.mean(0), rtol=1e-5)
    np.testing.assert_allclose(ensemble.spread(lq), images.std(0), rtol=1e-4, atol=1e-4)
    variance = 2 * squares.mean(0) + images.var(0)
    np.testing.assert_allclose(2 * (2 * ensemble.log_scale(lq)).exp(), variance, rtol=1e-4)
    torch.testing.assert_close(ensemble.interval(lq, 0.9)[1], np.log(10) * ensemble.log_scale(lq).exp())
    torch.testing.assert_close(EnsembleNet(means[:1], members[:1]).log_scale(lq), members[0].log_scale(lq),
                               rtol=1e-5, atol=1e-5)
    flips = EnsembleNet(means[:1], flips=True)
    torch.testing.assert_close(flips(lq), self_ensembled(means[0])(lq))
    assert (flips.spread(lq) > 0).any()
    square = torch.rand(1, 3, 9, 9)  # what is symmetrical itself leaves nothing to disagree on
    symmetrical = sum(torch.rot90(part, k, (-2, -1)) for part in (square, square.flip(-1)) for k in range(4)) / 8
    turned = EnsembleNet([torch.nn.Upsample(scale_factor=2)], flips=True)
    assert turned.spread(symmetrical).max() < 1e-3
    with pytest.raises(ValueError, match='an uncertainty for each or none, got 3 and 2'):
        EnsembleNet(means, members[:2])


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


@torch.no_grad()
@pytest.mark.parametrize('options', [{}, {'tile': 8, 'overlap': 12}, {'self_ensemble': True}])
def test_one_run_of_each_network_serves_all_that_is_asked_of_a_picture(options):
    members, counts = nets(2), [0, 0]
    ensemble = EnsembleNet([member.mean_network for member in members], members)
    restorer = Restorer(ensemble, ensemble, **options)
    for number, member in enumerate(members):  # a run that ends at the tap is none of the whole network
        member.mean_network.register_forward_hook(lambda *_, i=number: counts.__setitem__(i, counts[i] + 1))
    picture, ticks = Pixels(np.random.default_rng(0).integers(0, 256, (12, 14, 3), dtype=np.uint8)), []
    prediction = restorer.prediction(picture, 0.9, lambda: ticks.append(1))
    spread, s = (f(picture, lambda: ticks.append(1)) for f in (restorer.disagreement, restorer.log_scale))
    sr = restorer.sr(picture, 8, lambda: ticks.append(1))
    runs = {'tile': 4, 'self_ensemble': 8}.get(next(iter(options), ''), 1)
    assert counts == [runs, runs]
    assert len(ticks) == runs

    def one_by_one(function):  # each map by itself
        lq = torch.from_numpy(picture.colour.transpose(2, 0, 1).copy())[None] / 255
        return (self_ensembled(function) if 'self_ensemble' in options else function)(lq)[0].permute(1, 2, 0).numpy()

    for found, expected in ((prediction.planes, one_by_one(ensemble)), (spread, one_by_one(ensemble.spread)),
                            (prediction.log_scale, one_by_one(ensemble.log_scale)),
                            (prediction.above, one_by_one(lambda lq: ensemble.interval(lq, 0.9)[1]))):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert (sr.colour == (255 * one_by_one(ensemble).clip(0, 1)).round()).mean() > 0.99
    assert np.abs(decode_log_scale(s.colour[..., 0]) - prediction.log_scale.mean(2).clip(-2, 6)).max() < 1e-4


def add_other(run) -> tuple[UncertaintyNet, Path]:
    """A second run, experiments/y."""
    other = nets(1)[0]
    folder = run.models.parents[1] / 'y' / 'models'
    folder.mkdir(parents=True)
    (folder.parent / 'y.yml').write_text((run.models.parent / 'x.yml').read_text().replace('name: x', 'name: y'))
    torch.save({'params': other.mean_network.state_dict()}, folder / 'net_g_latest.pth')
    torch.save({'params': other.state_dict()}, folder / 'net_u_latest.pth')
    return other, folder


def test_infer_takes_members_and_their_spread(run, capsys):
    path, options = run.picture(), run.add_uncertainty()
    other, folder = add_other(run)
    member = ['--member', folder / 'net_g_latest.pth', folder / 'net_u_latest.pth']
    assert run(path, *options, *member, '--tile', 8, '--overlap', 12) == 0
    lq = torch.from_numpy(pixels(path).transpose(2, 0, 1).copy())[None] / 255
    with torch.no_grad():
        image = (run.network(lq) + other.mean_network(lq)) / 2
        variance = 255**2 * ((run.network(lq) - other.mean_network(lq)) / 2).square()
        squares = sum((2 * net.log_scale(lq)).exp() for net in (run.net_u, other)) / 2
    expected = 255 * image[0].numpy().transpose(1, 2, 0).clip(0, 1)
    assert np.abs(pixels(run.out / 'a.png') - expected).max() < 0.501
    s = 0.5 * (squares + variance / 2).log().mean(1)[0].numpy()
    assert np.abs(decode_log_scale(pixels(run.out / 'a_log_scale.png')) - s.clip(-2, 6)).max() < 2e-4

    assert run(path, *options) == 2  # without the member these are other pictures
    assert '--weights' in capsys.readouterr().err
    assert run(path, *options, *member[:2]) == 2
    assert 'expected net_g and net_u, as --weights has' in capsys.readouterr().err
    assert run(path, *options, '--spread', out=run.root / 'flips') == 2
    assert 'give --self_ensemble with it' in capsys.readouterr().err
    assert run(path, *options, '--spread', '--self_ensemble', out=run.root / 'flips') == 0
    assert run(path, *options, '--self_ensemble', out=run.root / 'mean') == 0
    same, maps = ([cv2.imread(str(run.root / name / f'a{end}.png'), -1).astype(int) for name in ('flips', 'mean')]
                  for end in ('', '_log_scale'))
    assert np.abs(same[0] - same[1]).max() <= 1
    assert (maps[0] >= maps[1] - 2).all()  # the spread, and by Jensen the mean of squares, only add
    assert (maps[0] > maps[1] + 10).any()


def test_how_far_members_differ_is_an_uncertainty_of_its_own(tmp_path, capsys):
    """Networks without a head: s and intervals of their spread alone, which is a picture as well."""
    run = CalibrationRun(tmp_path)
    other, folder = add_other(run)
    picture, member = run.kept / 'LQ' / '1.png', ['--member', folder / 'net_g_latest.pth']
    lq = torch.from_numpy(pixels(picture).transpose(2, 0, 1).copy())[None] / 255
    with torch.no_grad():
        std = 255 * (run.network(lq) - other.mean_network(lq))[0].abs().numpy().transpose(1, 2, 0) / 2
    for path in (run.models / 'net_u_latest.pth', folder / 'net_u_latest.pth'):
        path.unlink()
    assert run.calibrate() == 2
    assert 'net_u_latest.pth: no such file' in capsys.readouterr().err
    assert run.calibrate(*member) == 0
    found = read_calibration(run.models / 'net_g_latest.calibration.json')
    assert run(picture, *member, '--intervals') == 0
    spread, upper, theta = ([pixels(run.out / f'1_{kind}.png') / 257 for kind in ('spread', 'upper', 'theta')])
    np.testing.assert_allclose(spread, std.clip(0, 255), atol=0.003)
    np.testing.assert_allclose(theta, std / np.sqrt(2), atol=0.003, rtol=1e-3)
    mean = pixels(run.out / '1.png')
    seen = (upper > 0) & (upper < 255)
    half = found.factor * np.log(4) * std / np.sqrt(2)
    assert np.abs(upper - mean - half)[seen].max() < 0.51 + 1e-3 * half.max()
    text = Image.open(run.out / '1_spread.png').text
    assert 'standard deviation over the members' in text['Description']
    assert json.loads(text['udl'])['steps_per_unit'] == 257

    flips = run.root / 'flips'
    assert run(picture, '--self_ensemble', '--spread', out=flips) == 0
    with torch.no_grad():
        turned = [torch.rot90(run.network(torch.rot90(x, k, (2, 3))), -k, (2, 3)) for x in (lq, lq.flip(3))
                  for k in range(4)]
    turns = torch.stack([*turned[:4], *(x.flip(3) for x in turned[4:])]).double().numpy()
    std = 255 * turns.std(0)[0].transpose(1, 2, 0)
    np.testing.assert_allclose(pixels(flips / '1_spread.png') / 257, std.clip(0, 255), atol=0.003)
    s = np.log(std / np.sqrt(2)).mean(2)
    assert np.abs(decode_log_scale(pixels(flips / '1_log_scale.png')) - s.clip(-2, 6)).max() < 1e-3
    assert run(picture, '--self_ensemble', out=run.root / 'mean') == 0
    assert not (run.root / 'mean' / '1_spread.png').exists()


def test_an_ensemble_is_calibrated_and_judged(tmp_path, capsys):
    run = CalibrationRun(tmp_path)
    other, folder = add_other(run)
    member = ['--member', folder / 'net_g_latest.pth', folder / 'net_u_latest.pth']
    assert run.calibrate(*member) == 0
    found = read_calibration(run.file)

    ensemble = EnsembleNet([run.network, other.mean_network], [run.net_u, other])
    errors, halves = [], []
    for number in range(6):
        lq = img2tensor(cv2.imread(str(run.kept / 'LQ' / f'{number}.png')).astype(np.float32) / 255)[None]
        truth = img2tensor(cv2.imread(str(run.kept / 'GT' / f'{number}.png')).astype(np.float32))[None]
        with torch.no_grad():
            errors.append((truth - 255 * ensemble(lq).clip(0, 1)).abs().numpy())
            halves.append(np.log(4) * ensemble.log_scale(lq).exp().numpy())

    def risk(factor):
        return np.mean([np.mean(error > factor * half) for error, half in zip(errors, halves, strict=True)])

    assert risk(1.003 * found.factor) <= found.limit < risk(found.factor / 1.003)

    picture = run.picture()
    intervals = ['--intervals', '--within', 16]
    assert run(picture, *run.options_u, *intervals) == 2  # one network alone has not been calibrated
    assert 'calibrate these with udl calibrate' in capsys.readouterr().err
    assert run(picture, *run.options_u, *member, *intervals) == 0

    for name, prepared in (('GT', 'GTmod2'), ('LQ', 'LRbicx2')):
        (run.kept / prepared).symlink_to(run.kept / name)
    runs, out = [run.models.parent, folder.parent], run.root / 'judged'
    arguments = ['--halve', run.kept, '--alpha', 0.4, '--device', 'cpu', '--out', out]
    capsys.readouterr()
    assert status_of(coverage.main, [str(a) for a in (
        f'one={runs[0]}', '--ensemble', f'two={runs[0]}', runs[1], *arguments)]) == 0
    one, two = json.loads((out / 'coverage.json').read_text())['runs']
    assert (one['name'], two['name']) == ('one', 'two')
    for number, (error, half) in enumerate(zip(errors, halves, strict=True)):
        half = half / np.log(4) * np.log(2.5)
        expected = np.mean(error <= half)
        assert two['images'][f'kept/{number}']['coverage_predicted'] == pytest.approx(expected, abs=2e-3)
    for wrong, told in ((['--ensemble', runs[0]], 'expected two runs or more'),
                        (['--ensemble', runs[0], runs[1], runs[0]], 'net_u_latest.pth: given twice'),
                        ([], 'give a run, or --ensemble'),
                        ([runs[0], f'x={runs[1]}'], 'two runs have the same name: x, x; give them others')):
        assert status_of(coverage.main, [str(a) for a in (*wrong, *arguments, '--overwrite')]) == 2
        assert told in capsys.readouterr().err
