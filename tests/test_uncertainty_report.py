"""`udl uncertainty`: every score from its definition, and which density it is of."""
import csv
import importlib
import json
import shutil

import cv2
import numpy as np
import pytest
import scipy.stats
from conftest import photograph
from legible import readable  # noqa: F401 - for all tests here

from udl_basicsr import functional as F
from udl_basicsr.functional.log_scale_maps import encode_log_scale
from udl_basicsr.functional.uncertainty import STEPS
from udl_basicsr.reports.uncertainty import BY_IMAGE, COLUMNS, ReportError, read_images

SIGMA = np.sqrt(np.pi / 2)  # of a normal distribution with E|x − f| = 1


@pytest.fixture
def results(tmp_path):
    """Runs on two data sets: θ known, f = x + Laplace; `half` says half of θ, and the errors of `normal` are normal."""
    generator = np.random.default_rng(0)
    for dataset, factor in (('A', 1.), ('B', 3.)):
        (tmp_path / dataset).mkdir()
        for image in ('1', '1_b'):
            s = generator.uniform(1.5, 3, (60, 70))
            gt = photograph(7, 60, 70) // 3 + 85
            theta = factor * np.exp(s)[..., None]
            laplace = gt + generator.laplace(scale=theta, size=gt.shape)
            normal = gt + generator.normal(scale=SIGMA * theta, size=gt.shape)
            cv2.imwrite(str(tmp_path / dataset / f'{image}.png'), gt)
            for run, sr, c in (('good', laplace, 1.), ('half', laplace, 0.5), ('normal', normal, 1.)):
                folder = tmp_path / 'results' / run / 'visualization' / dataset
                folder.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / f'{image}x2_{run}.png'), sr.round().clip(0, 255).astype(np.uint8))
                cv2.imwrite(str(folder / f'{image}x2_log_scale.png'), encode_log_scale(s + np.log(c)))
    return tmp_path


def errors(*arguments, **options) -> tuple[np.ndarray, np.ndarray]:
    """e and θ of all images."""
    error, scale = (np.concatenate(part) for part in zip(*read_images(*arguments, **options), strict=True))
    return error, scale


def report(results, *runs: str, dataset: str = 'B', more: tuple[str, ...] = ()) -> dict:
    """What uncertainty.json holds."""
    main = importlib.import_module('udl_basicsr.cli.uncertainty').main
    assert main([*(str(results / 'results' / run) for run in runs), '--dataset', dataset, '--gt',
                 str(results / dataset), '--crop_border', '2', '--out', str(results / 'out'), *more]) == 0
    return json.loads((results / 'out' / 'uncertainty.json').read_text())


def head(results, run: str, text: str) -> None:
    (results / 'results' / run / f'{run}.yml').write_text(f'network_u: {{head: {text}}}\n')


def by_definition(error, theta, density, half, variance) -> dict[str, float]:
    """Of an image whose values have these errors: sums over sorted values, integrals over grids."""
    within = np.mean([np.abs(error + u) <= half for u in np.arange(-0.495, 0.5, 0.01)], axis=0)  # within a rounding
    rising = np.argsort(theta, kind='stable')
    bins = [(np.mean(error[part]**2), np.mean(variance * theta[part]**2)) for part in np.array_split(rising, 20)]
    kept = [rising[:round(len(rising) * (1 - i / 100))] for i in range(100)]
    best = np.sort(error)
    oracle = np.array([best[:len(part)].mean() for part in kept]) / error.mean()
    curve = np.array([error[part].mean() for part in kept]) / error.mean()
    probabilities = np.arange(0.001, 1, 0.002)
    pinball = [2 * np.mean(((gap := error - theta * density.ppf(p)) > 0) * gap * p - (gap <= 0) * gap * (1 - p))
               for p in probabilities]  # the CRPS is twice the mean of all quantiles' pinball losses
    return {'picp': within.mean(), 'width': 2 * half.mean(),
            'interval_score': np.mean([2 * w + 20 * (e - w) * (e > w) for e, w in zip(error, half, strict=True)]),
            'worst_quarter': 1 - min(within[part].mean() for part in np.array_split(rising, 4)),
            'crps': np.mean(pinball), 'ence': np.mean([abs(m**0.5 - v**0.5) / v**0.5 for m, v in bins]),
            'uce': np.mean([abs(m - v) for m, v in bins]), 'ause': np.trapezoid(curve - oracle, dx=0.01),
            'aurg': np.trapezoid(1 - curve, dx=0.01)}


def test_every_score_by_image_is_its_definition(results):
    kinds = {'half': ('laplace', scipy.stats.laplace(), 2),
             'normal': ('gaussian', scipy.stats.norm(scale=SIGMA), SIGMA**2)}
    for run, (distribution, *_) in kinds.items():
        head(results, run, f'{{type: UDLHead, distribution: {distribution}}}')
    content = report(results, *kinds)
    assert 'note' not in content
    rows = iter(csv.DictReader((results / 'out' / 'uncertainty.csv').open()))
    for found, (run, (distribution, density, variance)) in zip(content['runs'], kinds.items(), strict=True):
        assert found['density'] == found['head'] == distribution
        images = list(read_images(results / 'results' / run, 'B', results / 'B', 2))
        for name, pooled, scores in ((run, found['scores'], found['by_image']),
                                     (f'{run}, recalibrated', found['recalibrated'], found['by_image_recalibrated'])):
            factor = pooled['factor']
            each = [by_definition(error, factor * theta, density, factor * theta * density.ppf(0.95), variance)
                    for error, theta in images]
            assert each[0].keys() == scores.keys() == BY_IMAGE.keys()
            for key, (mean, low, high) in scores.items():
                values = [image[key] for image in each]
                assert mean == pytest.approx(np.mean(values), rel=3e-3), key
                assert low <= mean <= high
                assert [low, high] == pytest.approx([min(values), max(values)], rel=0.02), key  # of two images
            row = next(rows)
            assert (row['run'], row['head'], row['density']) == (name, distribution, distribution)
            assert {key: float(row[key]) for key in COLUMNS} == pooled
            assert {key: [float(row[f'{key}{end}']) for end in ('', '_low', '_high')] for key in BY_IMAGE} == scores
        # calibrated by the factor, which is right for either: θ is E|x − f|
        assert found['by_image_recalibrated']['picp'][0] == pytest.approx(0.9, abs=0.01)
        assert found['recalibrated']['calibration_error'] < 0.01
        assert found['by_image_recalibrated']['ence'][0] < 0.08  # 0.11 for a normal one taken for Laplace's
        np.testing.assert_allclose(np.divide(found['quantile'], found['half_width']), found['recalibrated']['factor'],
                                   rtol=0.15)
        error, theta = errors(results / 'results' / run, 'B', results / 'B', 2)
        assert found['scores']['log_likelihood_gaussian'] == pytest.approx(
            scipy.stats.norm.logpdf(error, scale=np.sqrt(variance) * theta).mean())
    assert not list(rows)


def test_scores_of_another_density_than_the_heads_are_marked(results, capsys):
    head(results, 'good', '~')  # not given: UDLHead
    head(results, 'half', '{type: UDLHead, distribution: quantile, level: 0.9}')
    content = report(results, 'good', 'half', 'normal', dataset='A')
    note = '† Of a Laplace density with this θ, not of what the head says (quantile, unknown)'
    said, page = capsys.readouterr().out, (results / 'out' / 'uncertainty.md').read_text()
    assert content['note'] == note
    assert f'\n{note}.\n' in said
    assert f'\n{note}.\n' in page
    assert [(run['head'], run['density']) for run in content['runs']] == [
        ('laplace', 'laplace'), ('quantile', 'laplace'), ('', 'laplace')]
    good, half = content['runs'][:2]
    assert good['by_image']['picp'][0] == pytest.approx(0.9, abs=0.01)  # the density is Laplace's in truth
    # what needs no density has no mark
    lines = {line.split(' | ')[0]: line for line in page.splitlines()}
    assert [line.count('†') for line in page.splitlines() if line.startswith('| good')] == [0] * 4
    assert [line.count('†') for line in page.splitlines() if line.startswith('| half')] == [1, 1, 7, 7]
    mean, low, high = half['by_image']['ause']
    assert lines['| half'].endswith('{:.4f} [{:.4f}, {:.4f}] |'.format(*half['by_image']['aurg']))
    assert f' {mean:.4f} [{low:.4f}, {high:.4f}] |' in lines['| half']


def test_the_report(results, capsys):
    main = importlib.import_module('udl_basicsr.cli.uncertainty').main
    runs = [str(results / 'results' / run) for run in ('good', 'half')]
    options = ['--dataset', 'B', '--gt', str(results / 'B'), '--crop_border', '2', '--out', str(results / 'out')]
    assert main([*runs, *options, '--calibrate', 'A', str(results / 'A')]) == 0
    said = capsys.readouterr().out
    assert 'B, all values of RGB (of gray: Y) pooled, border of 2 px cropped' in said
    assert 'recalibration fitted on A; per image: ' in said
    good, half = json.loads((results / 'out' / 'uncertainty.json').read_text())['runs']
    assert (good['images'], good['values']) == (2, 2 * 56 * 66 * 3)
    assert good['recalibrated']['factor'] == pytest.approx(1, abs=0.03)
    assert half['recalibrated']['factor'] == pytest.approx(2, abs=0.06)
    # B's errors are three times what is said, whatever was fitted on A
    assert good['recalibrated']['calibration_error'] == pytest.approx(half['recalibrated']['calibration_error'],
                                                                      abs=1e-3)
    error, scale = errors(results / 'results' / 'half', 'B', results / 'B', 2)
    assert half['scores']['log_likelihood_laplace'] == pytest.approx(
        scipy.stats.laplace.logpdf(error, scale=scale).mean())
    assert half['scores']['ause_rmse'] == pytest.approx(F.ause(error, scale, measure='rmse'))
    assert half['scores']['spearman'] == pytest.approx(good['scores']['spearman'], abs=1e-5)  # maps in 16 bits
    assert len(good['sparsification']) == len(good['oracle']) == len(good['fractions']) == STEPS
    # the bins of all: half of θ is as wrong everywhere as its factor says
    np.testing.assert_allclose(np.divide(half['rmse'], half['spread']), 6, rtol=0.25)  # 3 times the error, half of θ
    assert (results / 'out' / 'uncertainty.md').read_text().count('\n| ') == 9
    assert cv2.imread(str(results / 'out' / 'uncertainty.png')).std() > 10

    error, _ = errors(results / 'results' / 'good', 'A', results / 'A', share=0.25)
    assert error.size == pytest.approx(2 * 60 * 70 * 3 / 4, rel=0.05)
    for dataset, gt, message in (('C', 'A', 'val.save_img: true'), ('A', 'C', 'is it the GT folder')):
        with pytest.raises(ReportError, match=message):
            errors(results / 'results' / 'good', dataset, results / gt)
    assert main([runs[0], '--dataset', 'C', '--gt', 'no', '--out', 'no']) == 2
    assert 'error: ' in capsys.readouterr().err
    folder = results / 'results' / 'good' / 'visualization' / 'A'
    (folder / '1x2_good.png').unlink()
    with pytest.raises(ReportError, match='expected one SR image'):
        errors(results / 'results' / 'good', 'A', results / 'A')


def test_what_nothing_can_be_said_of_is_refused(results, capsys):
    """SR images that are the GT, too few values, and a place where no folder can be."""
    main = importlib.import_module('udl_basicsr.cli.uncertainty').main
    run = results / 'results' / 'good'
    options = [str(run), '--dataset', 'B', '--gt', str(results / 'B'), '--out']
    (results / 'file').touch()
    with pytest.raises(SystemExit, match='2'):
        main([*options, str(results / 'file')])
    assert f'--out: {results / "file"}: is a file, expected a folder' in capsys.readouterr().err
    assert main([*options, str(results / 'out'), '--share', '1e-3']) == 2
    assert 'a share of 0.001 leaves 1' in (said := capsys.readouterr().err)
    assert f'of its {60 * 70 * 3} values, expected at least 20' in said
    for image in ('1', '1_b'):
        shutil.copy(results / 'B' / f'{image}.png', run / 'visualization' / 'B' / f'{image}x2_good.png')
    assert main([*options, str(results / 'out')]) == 2
    assert f'error: {run}: all SR images of B are equal to the GT' in capsys.readouterr().err
    assert not (results / 'out').exists()


def test_gray_pictures_are_y(results):
    """Of networks that were trained with `color: y`; Y of BT.601 by its definition."""
    folder = results / 'results' / 'good' / 'visualization' / 'B'
    for image in ('1', '1_b'):
        blue, green, red = np.moveaxis(cv2.imread(str(results / 'B' / f'{image}.png')) / 255., 2, 0)
        y = np.floor(16 + 65.481 * red + 128.553 * green + 24.966 * blue + 0.5)
        cv2.imwrite(str(folder / f'{image}x2_good.png'), (y + 3).astype(np.uint8))
    (results / 'B' / '1.png').rename(results / 'B' / '1.PNG')
    images = list(read_images(results / 'results' / 'good', 'B', results / 'B'))
    assert all(error.size == scale.size == 60 * 70 for error, scale in images)
    assert all((error == 3).all() for error, _ in images)
