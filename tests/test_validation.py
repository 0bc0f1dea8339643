"""What validation and tests do with values that are no numbers, and with images whose names or files are in the way."""
import csv
import json
import math
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.utils.registry import METRIC_REGISTRY
from conftest import status_of
from torch.utils.data import DataLoader

from udl_basicsr import test as test_script
from udl_basicsr import train as train_script
from udl_basicsr.data.loader import build_dataset
from udl_basicsr.models import validation
from udl_basicsr.options.parse import OptionError
from udl_basicsr.training import loop
from udl_basicsr.training.history import read_history
from udl_basicsr.utils import scores


@METRIC_REGISTRY.register()
def mean_level(img, **kwargs):
    """Needs no GT, as NIQE does not."""
    return float(np.mean(img))


mean_level.higher_is_better = True


@pytest.fixture
def tested(project, pairs, tmp_path):
    """``tested(change)``: the test option file of a network whose weights were changed, and its folder of results."""
    def write(change=lambda weights: weights, **options):
        model = project.model('plain')
        weights = tmp_path / 'net_g.pth'
        torch.save({'params': {k: change(v) for k, v in model.net_g.state_dict().items()}}, weights)
        blocks = yaml.safe_load((tmp_path / '_base_.yml').read_text())
        for key in ('train', 'logger', 'network_u'):
            del blocks[key]
        blocks['datasets'] = {'test': {**blocks['datasets']['val'], 'name': 'tiny'}}
        blocks['val'] = {'metrics': blocks['val']['metrics'], 'save_img': True}
        blocks.update({'name': 'tested', 'path': {'pretrain_network_g': str(weights)}, **options})
        (tmp_path / 'test.yml').write_text(yaml.safe_dump(blocks))
        return tmp_path / 'results' / 'tested'
    return write


def run_test(tmp_path, monkeypatch, *arguments) -> int:
    monkeypatch.setattr('sys.argv', ['test.py', '-opt', str(tmp_path / 'test.yml'), *arguments])
    return status_of(test_script.main, root_path=tmp_path)


# ------------------------------------------------------------------------------------------------------------- no GT
def test_images_without_gt_have_the_metrics_that_need_none(tested, project, pairs, tmp_path, monkeypatch):
    alone = {'name': 'alone', 'type': 'SingleImageDataset', 'dataroot_lq': str(pairs / 'val/lq'),
             'io_backend': {'type': 'disk'}}
    results = tested(datasets={'test': alone}, val={'metrics': {'level': {'type': 'mean_level'}}})
    assert run_test(tmp_path, monkeypatch) == 0
    network = project.model('plain').net_g.eval()
    network.load_state_dict(torch.load(tmp_path / 'net_g.pth')['params'])
    for image, values in scores.read_scores(results / 'scores.json').datasets['alone'].images.items():
        lq = torch.from_numpy(cv2.imread(str(pairs / f'val/lq/{image}.png'))[..., ::-1].transpose(2, 0, 1).copy())
        with torch.no_grad():
            expected = 255 * network(lq[None] / 255).clamp(0, 1).mean().item()
        assert values['level'] == pytest.approx(expected, abs=0.1)


# -------------------------------------------------------------------------------------------------------- not rounded
def test_an_image_can_be_measured_before_it_is_rounded(tested, project, pairs, tmp_path, monkeypatch):
    """Against PSNR on Y (BT.601) of the network's own output, in float64."""
    metrics = {'psnr': {'type': 'calculate_psnr', 'crop_border': 0, 'test_y_channel': True}}
    results = tested(val={'metrics': metrics, 'rounded': False})
    assert run_test(tmp_path, monkeypatch) == 0
    found = scores.read_scores(results / 'scores.json')
    assert 'SR not rounded to 8 bits' in found.protocol

    network = project.model('plain').net_g.eval().double()
    network.mean = network.mean.double()
    network.load_state_dict(torch.load(tmp_path / 'net_g.pth', weights_only=True)['params'])
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64).view(3, 1, 1)
    rounded = []

    def psnr(difference: torch.Tensor) -> float:
        return 20 * math.log10(255) - 10 * difference.square().mean().log10().item()

    for name, values in found.datasets['tiny'].images.items():
        gt, lq = (torch.from_numpy(cv2.imread(str(pairs / 'val' / kind / f'{name}.png'))[..., ::-1].copy())
                  .permute(2, 0, 1).double() / 255 for kind in ('gt', 'lq'))
        with torch.no_grad():
            sr = network(lq[None])[0].clamp(0, 1)
        difference = (weights * (sr - gt)).sum(0)
        assert values['psnr'] == pytest.approx(psnr(difference), abs=1e-5)
        rounded.append(psnr((weights * ((255 * sr).round() / 255 - gt)).sum(0)))
    assert found.datasets['tiny'].mean['psnr'] != pytest.approx(np.mean(rounded), abs=2e-5)


# ------------------------------------------------------------------------------------------------------ not finite
@pytest.mark.parametrize('change', [lambda v: v * float('nan'), lambda v: v * 1e30], ids=['nan', '1e30'])
def test_a_test_of_broken_weights_is_no_result(tested, tmp_path, monkeypatch, capsys, change):
    results = tested(change)
    assert run_test(tmp_path, monkeypatch) == 1
    said = capsys.readouterr().err
    assert 'tiny: the output of EDSR is not finite for 3 of 3 images (0, 1, 2)' in said
    assert str(tmp_path / 'net_g.pth') in said
    assert 'Nothing is scored' in said
    assert not list(results.rglob('scores.*'))
    assert not list(results.rglob('*.png'))  # they would be black


def test_an_infinite_metric_is_null(tested, pairs, tmp_path, monkeypatch, capsys):
    """One image that is restored exactly, as black ones are: its PSNR is infinite and the mean is nothing."""
    results = tested(torch.zeros_like, datasets={'test': {
        'name': 'tiny', 'type': 'PairedImageDataset', 'dataroot_gt': str(tmp_path / 'gt'),
        'dataroot_lq': str(tmp_path / 'lq'), 'io_backend': {'type': 'disk'}}})
    for kind in ('gt', 'lq'):
        (tmp_path / kind).mkdir()
        image = cv2.imread(str(pairs / 'val' / kind / '0.png'))
        # without weights EDSR gives its mean, which is 0.4488, 0.4371, 0.4040 of 255
        cv2.imwrite(str(tmp_path / kind / 'flat.png'), np.full_like(image, np.round([103.02, 111.46, 114.44])))
        cv2.imwrite(str(tmp_path / kind / 'other.png'), image)
    assert run_test(tmp_path, monkeypatch) == 1
    said = capsys.readouterr()
    assert 'tiny: psnr is inf for flat' in said.err
    assert 'null in scores.json' in said.err

    def no_constant(name):
        raise AssertionError(f'{name} is no JSON')

    written = json.loads((results / 'scores.json').read_text(), parse_constant=no_constant)['datasets']['tiny']
    assert written['mean'] == {'psnr': None}
    assert written['images']['flat'] == {'psnr': None}
    assert 5 < written['images']['other']['psnr'] < 30
    rows = {row['image']: row['psnr'] for row in csv.DictReader((results / 'scores.csv').read_text().splitlines())}
    assert rows['flat'] == rows['mean'] == ''
    assert '| mean | – |' in (results / 'scores.md').read_text()
    with pytest.raises(scores.ScoresError, match=r'tiny\.mean\.psnr is null'):
        scores.read_scores(results)


def broken_validation(project, model, poison) -> dict:
    """The means of a validation in which the output is changed by ``poison(number of the image, output)``."""
    restored = type(model).restoring(model, model.net_g)
    numbers = iter(range(100))
    model.restoring = lambda network: lambda lq: poison(next(numbers), restored(lq))
    loader = DataLoader(build_dataset(model.opt['datasets']['val']))
    return model.validation(loader, 4, None, False)


def test_training_goes_on_without_a_best(project, caplog):
    model = project.model('plain', 'val:save_best={metric: psnr, dataset: val}')
    saved = []
    model.save_networks = saved.append
    nan, inf = float('nan'), float('inf')
    with caplog.at_level('WARNING'):
        for number, value in enumerate((nan, inf), 1):
            assert broken_validation(project, model, lambda n, out, v=value: out * (v if n == 1 else 1)) == {}
            assert caplog.text.count('WARNING') == number
            assert 'val: the output of EDSR is not finite for 1 of 3 images (1) at iteration 4' in caplog.text
    assert set(model.scores['val']) == {'0', '2'}
    assert not hasattr(model, 'best_metric_results')
    assert saved == []
    means = broken_validation(project, model, lambda n, out: out)
    assert math.isfinite(means['psnr'])
    assert saved == ['best']


def test_a_metric_that_is_not_finite_is_no_best(project, caplog, monkeypatch):
    model = project.model('plain', 'val:metrics:ssim={type: calculate_ssim, crop_border: 2}',
                          'val:save_best={metric: psnr, dataset: val}')
    model.save_networks = lambda _: pytest.fail('it is no best')
    exact = {1}  # the output is the GT: an infinite PSNR, and an SSIM of 1
    gts = [sample['gt'][None] for sample in build_dataset(model.opt['datasets']['val'])]
    with caplog.at_level('WARNING'):
        means = broken_validation(project, model, lambda n, out: gts[n] if n in exact else out)
    assert means.keys() == {'ssim'}
    assert 'val: psnr is inf for 1 of 3 images (1) at iteration 4: it has no mean and no best' in caplog.text
    assert model.best_metric_results['val']['ssim']['iter'] == 4


def test_a_run_whose_validation_breaks_says_so_and_ends(project, monkeypatch):
    """No entry in its history, and all checkpoints."""
    restoring = validation.ValidatedModel.restoring
    monkeypatch.setattr(validation.ValidatedModel, 'restoring',
                        lambda self, network: lambda lq: restoring(self, network)(lq) * float('nan'))
    loop.train(project.parse('plain', 'train:total_iter=4'))
    assert not [e for e in read_history(project.root / 'experiments/plain/history.jsonl') if 'dataset' in e]
    assert 'not finite for 3 of 3 images' in project.log('plain')
    assert (project.root / 'experiments/plain/models/net_g_latest.pth').exists()


# ----------------------------------------------------------------------------------------------------- which weights
def test_the_entry_that_the_options_name_is_tested(tested, project, tmp_path, monkeypatch, capsys):
    """A file with two entries: each is scored as itself, and one that is missing is not replaced by the other.

    Where none is named it is the EMA's, which training validates.
    """
    file = tmp_path / 'net_g.pth'
    tested()
    weights = torch.load(file)['params']
    torch.save({'params': weights, 'params_ema': {k: 0.5 * v for k, v in weights.items()}}, file)

    def score(name: str, *entry: str) -> float:
        assert run_test(tmp_path, monkeypatch, '--force_yml', f'name={name}', *entry) == 0
        found = scores.read_scores(tmp_path / 'results' / name)
        assert found.weights == str(file) + (' [params_ema]' if name in 'ac' else '')
        return found.datasets['tiny'].mean['psnr']

    ema = score('c', 'path:param_key_g=params_ema')
    assert score('a') == ema != score('b', 'path:param_key_g=params')
    assert f'from {file} [params_ema]' in next((tmp_path / 'results' / 'a').glob('test_a_*.log')).read_text() + \
        capsys.readouterr().out
    torch.save({'params': {k: 0.5 * v for k, v in weights.items()}}, file)
    assert score('d') == ema
    capsys.readouterr()
    assert run_test(tmp_path, monkeypatch, '--force_yml', 'name=e', 'path:param_key_g=params_ema') == 2
    assert f"{file}: has no 'params_ema', it has: params. Name the right one in path.param_key_" in \
        capsys.readouterr().err
    assert not (tmp_path / 'results' / 'e').exists()


# ------------------------------------------------------------------------------------------------- images in mid-run
def images_of_our_own(pairs, tmp_path) -> str:
    shutil.copytree(pairs / 'val', tmp_path / 'val')
    return f'datasets:val={{name: val, type: PairedImageDataset, dataroot_gt: {tmp_path}/val/gt, ' \
           f'dataroot_lq: {tmp_path}/val/lq, io_backend: {{type: disk}}}}'


@pytest.mark.parametrize('kind', ['gt', 'lq'])
@pytest.mark.parametrize('harm', [
    Path.unlink, lambda p: p.write_bytes(p.read_bytes()[:-30]), lambda p: p.write_text('')], ids=['gone', 'cut', '0'])
def test_a_validation_image_that_breaks_in_mid_run_is_named(project, pairs, tmp_path, monkeypatch, capsys, kind, harm):
    own = images_of_our_own(pairs, tmp_path)
    broken = tmp_path / 'val' / kind / '1.png'
    validate = loop._validate

    def breaks(model, loaders, iteration, *rest):
        if iteration == 8:
            harm(broken)
        validate(model, loaders, iteration, *rest)

    monkeypatch.setattr(loop, '_validate', breaks)
    monkeypatch.setattr('sys.argv', ['train.py', '-opt', str(tmp_path / 'plain.yml'), '--force_yml', own])
    assert status_of(train_script.main, root_path=tmp_path) == 1
    said = capsys.readouterr().err
    assert re.search(rf'(^|\n){broken}: .*(cannot be read for validation|is cut off|is empty).*--auto_resume', said)
    assert 'NoneType' not in said
    assert (tmp_path / 'experiments/plain/models/net_g_4.pth').exists()


def test_channels_that_the_network_does_not_take(project, tmp_path):
    """Training on Y and validating on RGB passed every check, and failed at the first validation."""
    network = 'network_g={type: MSRResNet, num_in_ch: 1, num_out_ch: 1, num_feat: 8, num_block: 1, upscale: 2}'
    one = (network, 'datasets:train:color=y', 'val:metrics:psnr:test_y_channel=false')
    with pytest.raises(OptionError, match=r'val.color: gives images of 3 channel\(s\) and datasets.train of 1, '):
        project.parse('plain', *one)
    with pytest.raises(OptionError, match=r'val.color: gives images of 1 channel\(s\)'):
        project.parse('plain', 'datasets:val:color=y')
    loop.train(project.parse('plain', *one, 'datasets:val:color=y', 'train:total_iter=4'))
    assert '# psnr' in project.log('plain')
