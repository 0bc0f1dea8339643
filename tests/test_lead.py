"""Where a lead comes from and how it moves, against values worked out by hand."""
import importlib.util
import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
from invented import invented_record
from legible import readable  # noqa: F401 - for all tests here
from scipy.stats import spearmanr

from udl_basicsr.experiments import record_files
from udl_basicsr.functional import attribution
from udl_basicsr.functional.log_scale_maps import encode_log_scale
from udl_basicsr.reports import figures, lead, plots, where
from udl_basicsr.reports.pictures import Run
from udl_basicsr.utils.scores import ScoresError, SetScores


def record(method, seed, psnr, stages=(400, 800), comparison='c', **more):
    images = {name: {'psnr': value} for name, value in psnr.items()}
    return invented_record(**{
        'method': method, 'seed': seed, 'parameters': 1000, 'comparison': comparison,
        'stages': [{'name': 's', 'iterations': n} for n in stages],
        'datasets': {'toys': {'images': images, 'mean': {'psnr': float(np.mean(list(psnr.values())))}}}, **more})


def save(path, rgb):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), rgb[..., ::-1])


def test_texture_share_of_stripes():
    image = np.zeros((9, 9, 3), np.uint8)
    image[:, 4:] = 200  # one edge, between columns 3 and 4: one of the 8 differences of each row
    assert attribution.texture_share(image) == pytest.approx(1 / 8)
    assert attribution.texture_share(image, steep=201) == 0
    assert attribution.luma_gradient(image).mean() == pytest.approx(200 / 8)


def test_luma_gradient_pixel_by_pixel():
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    luma = [[0.299 * float(r) + 0.587 * float(g) + 0.114 * float(b) for r, g, b in row] for row in image]
    found = attribution.luma_gradient(image)
    assert found.shape == (4, 5)
    for i in range(4):
        for j in range(5):
            down, right = luma[i + 1][j] - luma[i][j], luma[i][j + 1] - luma[i][j]
            assert found[i, j] == pytest.approx((down**2 + right**2) ** 0.5)


def test_rank_correlation_and_its_interval_are_those_of_scipy():
    random = np.random.default_rng(1)
    a = random.normal(size=40).round(1)  # with ties
    b = a + random.normal(size=40).round(1)
    value, low, high = attribution.rank_correlation_interval(a, b)
    assert value == pytest.approx(spearmanr(a, b).statistic)
    drawn = np.random.default_rng(2).integers(40, size=(500, 40))
    assert (low, high) == pytest.approx(np.quantile([spearmanr(a[i], b[i]).statistic for i in drawn], (.025, .975)),
                                        abs=0.05)
    assert attribution.rank_correlation_interval(a, np.ones(40)) == (0, 0, 0)


def test_gains_by_texture(tmp_path):
    names, random = [f'i{n}' for n in range(6)], np.random.default_rng(0)
    for n, name in enumerate(names):  # more and more noise, so more and more texture
        save(tmp_path / f'{name}.png', random.integers(0, 4 + 10 * n, (24, 24, 3)).astype(np.uint8))
    gain = dict(zip(names, (0.1, -0.1, 0.3, 0.2, 0.5, 0.4), strict=True))
    base = dict.fromkeys(names, 30.0)
    records = [record('L1', seed, base) for seed in (0, 1)]
    records += [record('UDL', seed, {n: base[n] + gain[n] + shift for n in names})
                for seed, shift in ((0, 0.1), (1, -0.1))]
    found = where.gains_by_texture(records, 'UDL', 'toys', tmp_path, scale=2)
    assert found.gains == pytest.approx([gain[name] for name in found.images])  # the seeds' shifts cancel
    for name, (value, low, high) in found.correlations.items():
        assert value == pytest.approx(spearmanr(found.texture[name], found.gains).statistic)
        assert low <= value <= high
    numbers = found.numbers()
    assert numbers['mean gain'] == pytest.approx(1.4 / 6)
    assert (numbers['ahead'], numbers['of'], numbers['seeds']) == (5, 6, 2)
    assert where.texture_figure(found, ('L1', 'UDL'), 'toys', tmp_path / 'texture.png').stat().st_size > 0
    more = [record('UDL', 0, {'another': 20., **{n: base[n] + gain[n] for n in names}})]  # an image that L1 lacks
    again = where.gains_by_texture(records[:2] + more, 'UDL', 'toys', tmp_path, scale=2)
    assert (again.images, again.gains) == (found.images, pytest.approx(found.gains))
    with pytest.raises(ScoresError, match='0 seeds'):
        where.gains_by_texture(records[:3], 'GRAM', 'toys', tmp_path, scale=2)


def test_error_sums_and_changes_pixel_by_pixel():
    random, edges = np.random.default_rng(3), np.array([0., 1.])
    maps = [(random.choice([-0.5, 0., 0.5, 1., 2.], (7, 9)), random.uniform(0, 9, (7, 9)), random.uniform(0, 9, (7, 9)))
            for _ in range(4)]
    sums = [attribution.error_sums(*one, edges) for one in maps]
    total = np.zeros((5, 3))
    for (s, a, b), found in zip(maps, sums, strict=True):
        by_hand = np.zeros((5, 3))
        for i in range(7):
            for j in range(9):
                row = 0 if s[i, j] < 0 else 1 if s[i, j] < 1 else 2
                by_hand[:, row] += 1, a[i, j], b[i, j], a[i, j] ** 2, b[i, j] ** 2
        np.testing.assert_allclose(np.stack(found), by_hand)
        total += by_hand
    error, square, saved = attribution.error_changes(sums)
    np.testing.assert_allclose(error.value, total[2] / total[1] - 1)
    np.testing.assert_allclose(square.value, total[4] / total[3] - 1)
    np.testing.assert_allclose(saved.value, (total[3] - total[4]) / total[3].sum())
    drawn = np.random.default_rng(4).integers(4, size=(3000, 4))
    by_draw = [np.sum([sums[i] for i in draw], axis=0) for draw in drawn]
    ends = np.quantile([one[2] / one[1] - 1 for one in by_draw], (0.025, 0.975), axis=0)
    np.testing.assert_allclose([error.low, error.high], ends, atol=0.02)


def test_errors_by_decile(tmp_path):
    """s rises from row to row; the method halves the error where s is high and leaves it where s is low."""
    side, datasets = 44, {'toys': SetScores({'a': {}, 'b': {}}, {})}
    rows = np.arange(side)[:, None]
    inside = rows[2:-2]
    high = rows >= np.median(inside)
    for name in 'ab':
        gt = np.full((side, side, 3), 100, np.uint8)
        save(tmp_path / 'gt' / f'{name}.png', gt)
        for run, error in (('l1', np.full((side, 1), 8)), ('udl', np.where(high, 4, 8))):
            picture = gt + np.broadcast_to(error[..., None], gt.shape).astype(np.uint8)
            save(tmp_path / run / 'toys' / f'{name}_{run}.png', picture)
            s = np.broadcast_to(rows / side, (side, side))
            cv2.imwrite(str(tmp_path / run / 'toys' / f'{name}_log_scale.png'), encode_log_scale(s))
    l1, udl = (Run(name, name, tmp_path / name, 2, datasets) for name in ('l1', 'udl'))
    found = where.errors_by_decile(l1, udl, udl, 'toys', tmp_path / 'gt')
    assert found.reference == pytest.approx(np.full(10, 8.))
    assert found.method == pytest.approx([8.] * 5 + [4.] * 5)
    assert found.square.value == pytest.approx([0.] * 5 + [-0.75] * 5)
    assert found.error.low == pytest.approx([0.] * 5 + [-0.5] * 5)  # both images say the same
    assert found.error.high == pytest.approx(found.error.low)
    assert found.saved.value == pytest.approx([0.] * 5 + [0.075] * 5)
    assert (np.diff(found.edges) > 0).all()
    assert json.loads(json.dumps(found.numbers()))['saved of the squared error, in all'] == pytest.approx(0.375)
    assert where.deciles_figure(found, ('L1', 'UDL'), 'toys', tmp_path / 'deciles.png').stat().st_size > 0
    same = where.errors_by_decile(l1, l1, udl, 'toys', tmp_path / 'gt')
    assert same.method == pytest.approx(same.reference)


@pytest.mark.parametrize(('axis', 'values'), [('budget', (900, 1800)), ('share', (1 / 3, 1 / 3)), ('scale', (2, 2)),
                                              ('parameters', (1000, 2000))])
def test_lead_points(axis, values, tmp_path):
    def comparison(factor, gain):
        return [record('L1', 0, {'a': 30., 'b': 31.}, (900 * factor, ), parameters=1000 * factor),
                record('UDL', 0, {'a': 30. + gain, 'b': 31. + gain}, (300 * factor, 600 * factor),
                       parameters=1000 * factor)]

    points = lead.lead_points({'long': comparison(2, 0.2), 'short': comparison(1, 0.1), 'empty': []}, ['UDL'], 'toys',
                              axis)
    assert sorted(p.x for p in points) == pytest.approx(values)
    assert {p.name: round(p.difference['mean'], 9) for p in points} == {'short': 0.1, 'long': 0.2}
    assert lead.lead_figure({'toys': points, 'others': points}, axis, ('L1', 'UDL'),
                            tmp_path / 'lead.png').stat().st_size > 0
    with pytest.raises(ScoresError, match='nothing to draw'):
        lead.lead_figure({'toys': []}, axis, ('L1', 'UDL'), tmp_path / 'no.png')


def test_shares_of_one_comparison():
    """A comparison that has a method for each share of stage 1, as options/compare/lead/budget_12000.yml."""
    records = [record('L1', 0, {'a': 30.}, (1200, ))]
    records += [record(f'UDL_{part}', 0, {'a': 30. + part / 10}, (1200 // part, 1200 - 1200 // part),
                       label=f'ESU → UDL, 1/{part}') for part in (2, 3, 12)]
    methods = ['UDL_12', 'UDL_2', 'UDL_3']
    points = lead.lead_points({'share': records}, methods, 'toys', 'share')
    assert [(p.x, p.method) for p in points] == [(pytest.approx(1 / n), f'UDL_{n}') for n in (12, 3, 2)]
    assert [p['mean'] for p in lead.lead_numbers({'toys': points})['toys']] == pytest.approx([1.2, 0.3, 0.2])
    assert lead.lead_numbers({'toys': points})['toys'][0]['seed_low'] is None  # one seed says nothing of seeds
    assert lead.lead_label(records, methods) == 'ESU → UDL'
    assert lead.lead_label(records, ['UDL_3']) == 'ESU → UDL, 1/3'


@pytest.mark.parametrize('vertical', [False, True])
def test_what_leaves_the_picture_is_marked(vertical):
    ax = figures.new_figure(2, 2, 50).add_axes((0, 0, 1, 1))
    ax.set(xlim=(-1, 1), ylim=(-1, 1))
    plots.interval(ax, 0.5, {'low': -0.5, 'high': 0.5, 'seed_low': -3., 'seed_high': 0.9}, 'red', vertical)
    (x, y, marker), = [(*line.get_xdata(), *line.get_ydata(), line.get_marker()) for line in ax.lines]
    assert (x, y, marker) == ((0.5, -1, 'v') if vertical else (-1, 0.5, '<'))
    plots.interval(ax, 0., {'low': -0.5, 'high': 2., 'seed_low': np.nan, 'seed_high': np.nan}, 'red', vertical)
    assert [line.get_marker() for line in ax.lines][1:] == ['^' if vertical else '>']


# ---------------------------------------------------------------- command line

def main(*argv):
    return importlib.import_module('udl_basicsr.cli.figures').main([str(a) for a in argv])


@pytest.fixture
def comparisons(tmp_path):
    """Records as a comparison leaves them, of two budgets, with the pictures of seed 0 and their GT."""
    random, names = np.random.default_rng(0), ['a', 'b', 'c']
    for name in names:
        save(tmp_path / 'gt' / f'{name}.png', random.integers(40, 200, (40, 44, 3)).astype(np.uint8))
    for folder, factor in (('short', 1), ('long', 2)):
        for method, gain, error in (('L1', 0., 8), ('UDL', 0.1 * factor, 6)):
            run = f'{folder}_{method}_x2_seed0'
            pictures = tmp_path / 'results' / run / 'toys'
            for name in names:
                gt = cv2.imread(str(tmp_path / 'gt' / f'{name}.png'))[..., ::-1]
                save(pictures / f'{name}_{run}.png', gt + error)
                cv2.imwrite(str(pictures / f'{name}_log_scale.png'),
                            encode_log_scale(random.uniform(-1, 4, gt.shape[:2])))
            psnr = {name: 30. + gain * (1 + i) for i, name in enumerate(names)}
            record_files.write_record(
                record(method, 0, psnr, (400 * factor, 800 * factor), folder, name=run, label=f'label of {method}',
                       pictures=str(pictures.parent)), tmp_path / 'records' / folder)
    return tmp_path


def test_commands_of_the_lead(comparisons, capsys, monkeypatch):
    """Each command draws what the functions compute from the same files."""
    records, gt = comparisons / 'records', comparisons / 'gt'
    one = [records / 'short', '--method', 'UDL', '--dataset', 'toys', '--gt', gt]
    drawn = {}
    for kind in ('texture', 'deciles', 'lead'):
        module = lead if kind == 'lead' else where
        original = getattr(module, f'{kind}_figure')
        monkeypatch.setattr(module, f'{kind}_figure', lambda *a, original=original, kind=kind, **k: (
            drawn.update({kind: a}), original(*a, **k))[1])
    numbers = comparisons / 'numbers.json'
    assert main('texture', *one, '--out', comparisons / 't.png', '--dpi', 50, '--numbers', numbers) == 0
    gains, labels, *_ = drawn['texture']
    assert gains.gains == pytest.approx([0.1, 0.2, 0.3])
    images = [cv2.imread(str(gt / f'{name}.png'))[..., ::-1] for name in 'abc']
    assert gains.texture['share'] == pytest.approx([attribution.texture_share(image) for image in images])
    assert labels == ['label of L1', 'label of UDL']
    assert json.loads(numbers.read_text())['images']['b']['gain'] == pytest.approx(0.2)
    assert main('deciles', *one, '--out', comparisons / 'd.png', '--dpi', 50) == 0
    deciles, labels, *_ = drawn['deciles']
    assert deciles.reference == pytest.approx(np.full(10, 8.))
    assert deciles.method == pytest.approx(np.full(10, 6.))
    assert labels == ['label of L1', 'label of UDL']
    lead_of = [records / 'long', records / 'short', '--method', 'UDL']
    assert main('lead', *lead_of, '--axis', 'budget', '--out', comparisons / 'l.png', '--dpi', 50) == 0
    [(name, points)] = drawn['lead'][0].items()
    assert name == 'toys'
    assert [(p.x, p.name, round(p.difference['mean'], 9)) for p in points] == [
        (1200, 'short', 0.2), (2400, 'long', 0.4)]
    for file in 'tdl':
        assert cv2.imread(str(comparisons / f'{file}.png')).shape[1] == pytest.approx(350, abs=1)
    capsys.readouterr()
    for argv, message in (
            (['texture', *one, '--method', 'GRAM'], 'no records of the method GRAM. There are: L1, UDL'),
            (['texture', *one, '--gt', records], 'has no a.png: is it the GT folder'),
            (['deciles', *one, '--seed', 3], '--seed 3: no '),
            (['lead', records / 'short', '--method', 'GRAM', '--axis', 'scale'], '--method GRAM: no records of it'),
            (['lead', records / 'short', '--method', 'UDL', '--axis', 'scale', '--datasets', 'toys', 'Set5'],
             '--datasets: none was tested on Set5, but on toys'),
            (['lead', records / 'short', '--method', 'UDL', '--axis', 'scale', '--metric', 'ssim'], 'nothing to draw'),
            (['lead', records / 'short', '--method', 'UDL', '--axis', 'scale', '--seeds', 0, 5],
             '--seeds: no records of 5, but of 0'),
            (['lead', comparisons, '--method', 'UDL', '--axis', 'scale'], 'no records <method>')):
        assert main(*argv, '--out', comparisons / 'no.png') == 2
        assert message in capsys.readouterr().err
    assert not (comparisons / 'no.png').exists()

    for folder in ('short', 'long'):  # and of a second network, which must not be mixed with the first
        for file in list((records / folder).glob('*.json')):
            kept = record_files.read_record(file)
            file.unlink()
            for network, more in (('CARN', 5.), ('EDSR', 0.)):
                images = kept.datasets['toys'].images.items()
                more *= kept.method == 'UDL'
                other = record(kept.method, 0, {name: values['psnr'] + more for name, values in images}).datasets
                record_files.write_record(replace(kept, network_id=network, network_title=network, datasets=other),
                                          records / folder)
    for argv in (['texture', *one], ['deciles', *one], ['lead', *lead_of, '--axis', 'budget'], [
            'differences', records / 'short'], ['curves', records / 'short', '--dataset', 'toys']):
        assert main(*argv, '--out', comparisons / 'no.png') == 2
        assert 'has the networks CARN, EDSR; choose one of them with --network' in capsys.readouterr().err
    for network, expected in (('CARN', [5.1, 5.2, 5.3]), ('EDSR', [0.1, 0.2, 0.3])):
        for argv in (['texture', *one], ['deciles', *one], ['lead', *lead_of, '--axis', 'budget']):
            assert main(*argv, '--network', network, '--out', comparisons / 't.png', '--dpi', 50) == 0
        assert drawn['texture'][0].gains == pytest.approx(expected)
        assert drawn['lead'][0]['toys'][0].difference['mean'] == pytest.approx(expected[1])


def test_the_lead_of_some_seeds(comparisons):
    short, long, numbers = *(comparisons / 'records' / name for name in ('short', 'long')), comparisons / 'numbers.json'
    for method, psnr, lengths in (('L1', 30., (1200, )), ('UDL', 31., (400, 800))):
        record_files.write_record(record(method, 1, dict.fromkeys('abc', psnr), lengths, 'short'), short)
    for seeds, gains in (([], [0.6, 0.4]), (['--seeds', 0], [0.2, 0.4]), (['--seeds', 1], [1.0])):
        assert main('lead', long, short, '--method', 'UDL', '--axis', 'budget', *seeds, '--out', comparisons / 'l.png',
                    '--dpi', 50, '--numbers', numbers) == 0
        [points] = json.loads(numbers.read_text()).values()
        assert [p['mean'] for p in points] == pytest.approx(gains)


def test_folders_of_one_name_are_several_comparisons(comparisons):
    """As udl compare leaves them where there is no docs/results: results/<comparison>/records."""
    folders = [comparisons / 'results' / name / 'records' for name in ('short', 'long')]
    for folder in folders:
        shutil.copytree(comparisons / 'records' / folder.parent.name, folder)
    numbers, out = comparisons / 'numbers.json', comparisons / 'lead.png'
    lead_of = ['--method', 'UDL', '--axis', 'budget', '--out', out, '--dpi', 50, '--numbers', numbers]
    assert main('lead', *folders, folders[0], *lead_of) == 0
    [points] = json.loads(numbers.read_text()).values()
    assert [(p['x'], p['comparison'], round(p['mean'], 9)) for p in points] == [
        (1200, 'short', 0.2), (2400, 'long', 0.4)]


def test_names_of_comparisons_are_those_that_differ(tmp_path):
    """Folders' names, else the comparisons', else the paths."""
    for folder, comparison in (('a/x', 'one'), ('b/x', 'two'), ('c/x', 'one'), ('c/y', 'one')):
        record_files.write_record(record('L1', 0, {'i': 30.}, comparison=comparison), tmp_path / folder)

    def names(*folders):
        return list(record_files.read_comparisons([tmp_path / folder for folder in folders]))

    assert names('a/x', 'c/y', 'a/../a/x') == ['x', 'y']
    assert names('a/x', 'b/x') == ['one', 'two']
    assert names('a/x', 'c/x') == [str(tmp_path / 'a/x'), str(tmp_path / 'c/x')]
