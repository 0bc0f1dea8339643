"""Scores, the benchmark table and the figure, against values worked out by hand."""
import csv
import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from demo import write_bicubic
from udl_basicsr.experiments import printed as papers
from udl_basicsr.functional import image_statistics
from udl_basicsr.reports import figures, score_table
from udl_basicsr.utils import scores

ROOT = Path(__file__).parents[1]
METRICS = {'psnr': {'type': 'calculate_psnr', 'crop_border': 2, 'test_y_channel': True},
           'ssim': {'type': 'calculate_ssim', 'crop_border': 2, 'test_y_channel': True}}


def make_scores(name='EDSR_L1_x2', scale=2, **sets):
    """Scores with the given (PSNR, SSIM) pairs, one per image, of each data set."""
    datasets = {}
    for dataset, pairs in sets.items():
        images = {f'img{i}': {'psnr': psnr, 'ssim': ssim} for i, (psnr, ssim) in enumerate(pairs)}
        datasets[dataset] = scores.SetScores.of(images)
    return scores.Scores(name=name, scale=scale, network='EDSR', weights='net_g_latest.pth',
                         protocol=scores.protocol_sentence(METRICS, scale), datasets=datasets,
                         versions={'torch': '2.4'})


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / 'scripts' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------- scores

def test_means():
    assert scores.mean_scores({'a': {'psnr': 30., 'ssim': 0.9}, 'b': {'psnr': 33., 'ssim': 0.8}}) == {
        'psnr': 31.5, 'ssim': pytest.approx(0.85)}
    assert scores.mean_scores({}) == {}


def test_files_hold_the_same_scores(tmp_path):
    given = make_scores(Set5=[(30.123456789, 0.91), (33.2, 0.87)], Set14=[(28.5, 0.8)])
    paths = scores.write_scores(given, tmp_path / 'results' / 'run')
    assert [path.name for path in paths] == ['scores.json', 'scores.csv', 'scores.md']
    assert scores.read_scores(tmp_path / 'results' / 'run') == given
    assert scores.read_scores(paths[0]) == given

    rows = list(csv.DictReader(paths[1].read_text(encoding='utf-8').splitlines()))
    assert [(row['dataset'], row['image']) for row in rows] == [
        ('Set5', 'img0'), ('Set5', 'img1'), ('Set5', 'mean'), ('Set14', 'img0'), ('Set14', 'mean')]
    assert float(rows[0]['psnr']) == 30.123456789
    assert float(rows[2]['psnr']) == pytest.approx((30.123456789 + 33.2) / 2)
    assert '| mean | 31.66 | 0.8900 |' in paths[2].read_text(encoding='utf-8')


def test_sets_with_different_metrics(tmp_path):
    given = make_scores(Set5=[(30., 0.9)])
    given.datasets['extra'] = scores.SetScores.of({'a': {'lpips': 0.1234}})
    text = scores.format_scores(given)
    assert re.search(r'extra +1 +– +– +0\.1234', text)
    assert 'LPIPS ↓' in text
    assert ',,,0.1234' in scores.write_scores(given, tmp_path)[1].read_text(encoding='utf-8')


def test_numpy_values_are_written(tmp_path):
    given = make_scores(Set5=[(np.float64(30.5), np.float32(0.5))])
    scores.write_scores(given, tmp_path)
    assert json.loads((tmp_path / 'scores.json').read_text())['datasets']['Set5']['mean'] == {'psnr': 30.5, 'ssim': 0.5}


def test_format_scores():
    text = scores.format_scores(make_scores(Set5=[(30., 0.9), (33., 0.8)]))
    assert re.search(r'img1 +33\.00 +0\.8000', text)
    assert re.search(r'mean +31\.50 +0\.8500', text)
    assert re.search(r'Set5 +2 +31\.50 +0\.8500', text)
    assert text.endswith('PSNR/SSIM on Y (ITU-R BT.601), border of 2 px cropped, SR rounded to 8 bits.')


def test_protocol_names_what_papers_do_otherwise():
    sentence = scores.protocol_sentence({'psnr': {'type': 'calculate_psnr', 'crop_border': 0},
                                         'ssim': METRICS['ssim']}, 4)
    assert sentence == ('PSNR on RGB, no border cropped (papers crop 4); SSIM on Y (ITU-R BT.601), '
                        'border of 2 px cropped (papers crop 4), SR rounded to 8 bits')


@pytest.mark.parametrize(('change', 'message'), [
    (lambda s: s.pop('protocol'), '`protocol` is missing'),
    (lambda s: s.update(scale='2'), '`scale` should be of type int'),
    (lambda s: s.update(scale=0), '`scale` should be positive'),
    (lambda s: s['datasets'].update(Set5={'psnr': 30}), 'datasets.Set5 should hold `images` and `mean`'),
    (lambda s: s['datasets']['Set5']['mean'].update(psnr='30'), r"Set5.mean.psnr should be a number, got '30'"),
    (lambda s: s['datasets']['Set5']['images']['img0'].pop('ssim'), 'but the mean has'),
])
def test_malformed_scores_are_refused(tmp_path, change, message):
    given = make_scores(Set5=[(30., 0.9)]).to_json()
    change(given)
    with pytest.raises(scores.ScoresError, match='^scores: .*' + message):
        scores.Scores.from_json(given, finite=False)
    (tmp_path / 'scores.json').write_text(json.dumps(given))
    with pytest.raises(scores.ScoresError, match='scores.json.*' + message):
        scores.read_scores(tmp_path)


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    with pytest.raises(scores.ScoresError, match='`scale` should be positive'):
        scores.write_scores(make_scores(scale=0, Set5=[(30., 0.9)]), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf'), None])
def test_no_number_is_read_that_is_none(tmp_path, value):
    given = make_scores(Set5=[(30., 0.9)]).to_json()
    given['datasets']['Set5']['images']['img0']['psnr'] = value
    (tmp_path / 'scores.json').write_text(json.dumps(given))
    with pytest.raises(scores.ScoresError, match=r'json: datasets\.Set5\.images\.img0\.psnr is (null|-?inf|nan): '):
        scores.read_scores(tmp_path)
    assert scores.mean_scores({'a': {'psnr': 30., 'ssim': 1.}, 'b': {'psnr': value, 'ssim': 1.}}) == {
        'psnr': None, 'ssim': 1.}


def test_an_image_called_mean_does_not_vanish(tmp_path):
    given = make_scores(Set5=[(30., 0.9), (34., 0.7)])
    images = given.datasets['Set5'].images
    images['mean'] = images.pop('img0')
    paths = scores.write_scores(given, tmp_path)
    assert [line for line in paths[1].read_text().splitlines() if ',mean,' in line] == [
        'Set5,mean,30.0,0.9', f'Set5,mean,32.0,{0.8!r}']
    assert '| mean | 30.00 | 0.9000 |\n| mean | 32.00 | 0.8000 |' in paths[2].read_text(encoding='utf-8')
    assert re.search(r'mean +30\.00 +0\.9000\nmean +32\.00 +0\.8000', scores.format_scores(given))
    assert scores.read_scores(tmp_path) == given


def test_unreadable_scores(tmp_path):
    with pytest.raises(FileNotFoundError, match='udl test'):
        scores.read_scores(tmp_path)
    (tmp_path / 'scores.json').write_text('{"name": ')
    with pytest.raises(scores.ScoresError, match='no JSON'):
        scores.read_scores(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = scores.write_text(tmp_path / 'a.txt', 'old')

    def broken(*_):
        raise OSError('disk full')
    monkeypatch.setattr('os.replace', broken)
    with pytest.raises(OSError, match='disk full'):
        scores.write_text(path, 'new')
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------- benchmark table

@pytest.fixture
def results():
    return [make_scores('EDSR_UDL_x4', 4, Set5=[(32.2, 0.894)]),
            make_scores('EDSR_L1_x2', 2, Set5=[(38.0, 0.9601)], B100=[(32.1, 0.9)]),
            make_scores('EDSR_ESU_x2', 2, Set5=[(37.5, 0.9590)]),
            make_scores('EDSR_UDL_x2', 2, Set5=[(38.104, 0.9608)], Set14=[(33.6, 0.917)])]


def test_join_orders_and_subtracts(results):
    table = score_table.join(results, reference=['EDSR_L1_x2'])
    assert table.datasets == ('Set5', 'Set14', 'BSD100')  # B100 is BSD100
    assert [(row.scale, row.label, row.kind) for row in table.rows] == [
        (2, 'EDSR_L1_x2', 'run'), (2, 'EDSR_ESU_x2', 'run'), (2, '− EDSR_L1_x2', 'difference'),
        (2, 'EDSR_UDL_x2', 'run'), (2, '− EDSR_L1_x2', 'difference'), (4, 'EDSR_UDL_x4', 'run')]
    difference = table.rows[4].values
    assert difference['Set5']['psnr'] == pytest.approx(0.104)
    assert difference['Set14']['psnr'] is None


def test_ranking_is_by_printed_value_and_within_a_scale(results):
    table = score_table.join(results)
    assert score_table.ranks(table, 2, 'Set5', 'psnr') == {'EDSR_UDL_x2': 1, 'EDSR_L1_x2': 2}
    assert score_table.ranks(table, 4, 'Set5', 'psnr') == {}  # nobody to win against
    tied = score_table.join([make_scores('a', 2, Set5=[(30.001, 0.9)]), make_scores('b', 2, Set5=[(30.004, 0.8)])])
    assert score_table.ranks(tied, 2, 'Set5', 'psnr') == {'a': 1, 'b': 1}


def test_formats(results):
    table = score_table.join(results, reference=['EDSR_L1_x2'])
    markdown = score_table.render(table, 'md')
    assert '| EDSR_UDL_x2 | ×2 | **38.10**/**0.9608** | 33.60/0.9170 | – |' in markdown
    assert '| EDSR_L1_x2 | ×2 | <u>38.00</u>/<u>0.9601</u> | – | 32.10/0.9000 |' in markdown
    assert '| − EDSR_L1_x2 | ×2 | +0.10/+0.0007 | – | – |' in markdown
    assert 'EDSR\\_UDL\\_x2 & $\\times$2 & \\textbf{38.10}/\\textbf{0.9608} & 33.60/0.9170 & -- \\\\' in \
        score_table.render(table, 'latex')
    rows = list(csv.DictReader(score_table.render(table, 'csv').splitlines()))
    assert float(rows[3]['Set5_psnr']) == 38.104
    assert rows[3]['BSD100_psnr'] == ''
    text = score_table.render(table, 'text')
    assert '×2: PSNR/SSIM on Y' in text
    assert 'border of 2 px cropped (papers crop 4)' in text


def test_printed_scores_stand_beside_the_runs(results):
    printed = [row for row in papers.printed_rows(papers.load_paper(), 'EDSR') if row['source'] == 'EDSR']
    table = score_table.join(results, printed=printed)
    labels = [row.label for row in table.rows]
    assert labels[:3] == ['EDSR L1 †', 'EDSR_L1_x2', '− EDSR L1 †']
    assert table.rows[2].values['Set5']['psnr'] == pytest.approx(38.0 - 38.11)
    assert labels.count('− EDSR L1 †') == 1  # UDL and ESU have no printed partner
    assert score_table.ranks(table, 2, 'Set5', 'psnr')['EDSR_UDL_x2'] == 1


def test_join_refuses(results):
    with pytest.raises(scores.ScoresError, match='no results'):
        score_table.join([])
    with pytest.raises(scores.ScoresError, match='Two results are called EDSR_UDL_x4 ×4'):
        score_table.join([*results, results[0]])
    with pytest.raises(scores.ScoresError, match='reference nobody is not among'):
        score_table.join(results, reference=['nobody'])
    with pytest.raises(scores.ScoresError, match=r"No result has the metric 'pnsr'; did you mean 'psnr'\?"):
        score_table.join(results, metrics=['psnr', 'pnsr'])
    with pytest.raises(scores.ScoresError, match=r'No printed scores of EDSRS \(BI\). There are: .*EDSR \(BI\)'):
        papers.printed_rows(papers.load_paper(), 'EDSRS')


def test_different_protocols_are_pointed_out(results):
    results[1] = replace(results[1], protocol='PSNR on RGB')
    assert any('different protocols' in note for note in score_table.join(results).notes)


def measured(run, **metrics):
    blocks = {name: {**METRICS[name], **more} for name, more in metrics.items() if name in METRICS}
    blocks |= {name: more for name, more in metrics.items() if name not in METRICS}
    for dataset in run.datasets.values():
        for values in [*dataset.images.values(), dataset.mean]:
            values.update({name: 0.5 for name in metrics if name not in values})
    return replace(run, measured=scores.Measured(True, blocks), protocol=scores.protocol_sentence(blocks, run.scale))


def test_protocols_are_compared_metric_by_metric():
    """A further metric of one run says nothing of the others; another border says something of its own metric."""
    lpips = {'type': 'calculate_lpips', 'crop_border': 2}
    runs = [measured(make_scores(name, Set5=[(30., 0.9)]), **more) for name, more in (
        ('L1', {'psnr': {}, 'ssim': {}}), ('UDL', {'psnr': {}, 'ssim': {}, 'lpips': lpips}))]
    alike = 'PSNR/SSIM on Y (ITU-R BT.601), border of 2 px cropped, SR rounded to 8 bits.'
    assert scores.protocol_notes(runs, ['psnr', 'ssim']) == [alike]
    assert score_table.join(runs, metrics=['psnr']).notes == (f'×2: {alike.replace("/SSIM", "")}',)
    notes = scores.protocol_notes(runs, ['psnr', 'ssim', 'lpips'])
    assert len(notes) == 2
    assert not any('cannot be compared' in note for note in notes)
    runs.append(measured(make_scores('GV', Set5=[(30., 0.9)]), psnr={}, ssim={'crop_border': 0}, lpips=lpips))
    assert [note for note in scores.protocol_notes(runs, ['psnr', 'ssim', 'lpips']) if 'cannot' in note] == [
        'SSIM was measured by different protocols and cannot be compared.']
    with pytest.raises(scores.ScoresError, match='`measured` should hold'):
        scores.Scores.from_json({**runs[0].to_json(), 'measured': {'psnr': {}}})


def test_packaged_scores_are_plausible():
    paper = papers.load_paper()
    ranges = {'psnr': (19, 45), 'ssim': (0.6, 1), 'lpips': (0, 0.5), 'pll': (0, 4), 'sigma_psnr': (25, 45)}
    for row in paper['rows']:
        for values in papers.printed_values(row).values():
            for metric, value in values.items():
                low, high = ranges[metric]
                assert value is None or low < value < high
    means = {(row['network'], row['scale']): np.mean([pair[0] for pair in row['scores'].values()])
             for row in paper['rows'] if row['source'] == 'EDSR'}
    assert means['EDSR', 2] > means['EDSR', 3] > means['EDSR', 4]


def test_paper_file_of_another_form(tmp_path):
    path = tmp_path / 'mine.json'
    path.write_text('{"sources": {}, "rows": [{"source": "X"}]}')
    with pytest.raises(scores.ScoresError, match=r'mine\.json does not have the form'):
        papers.load_paper(path)


def test_command_line(tmp_path, results, capsys):
    folders = [str(tmp_path / given.name) for given in results]
    for given, folder in zip(results, folders, strict=True):
        scores.write_scores(given, folder)
    main = importlib.import_module('udl_basicsr.cli.scores').main
    assert main([*folders, '--reference', 'EDSR_L1_x2', '--paper', 'EDSR', '--format', 'md']) == 0
    assert '† printed in B. Lim' in capsys.readouterr().out
    assert main([*folders, '--out', str(tmp_path / 'table.txt')]) == 0
    assert 'EDSR_UDL_x4' in (tmp_path / 'table.txt').read_text(encoding='utf-8')
    assert main([str(tmp_path / 'nothing')]) == 2
    assert 'error: No scores at' in capsys.readouterr().err
    with pytest.raises(SystemExit, match='2'):  # which had been passed over
        main([*folders, '--degradation', 'BD'])
    assert '--degradation is of the printed scores: give --paper NETWORK' in capsys.readouterr().err


# ---------------------------------------------------------------- bicubic and figures

def test_bicubic_is_scored_like_a_run(tmp_path):
    gt = np.full((32, 40, 3), 100, np.uint8)
    gt[:, 20:] = 140
    for folder, image in (('gt', gt), ('lq', gt[::2, ::2])):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / 'a.png'), image)
    given = write_bicubic('demo_bicubic', 'demo', tmp_path / 'gt', tmp_path / 'lq', 2, METRICS, tmp_path / 'results')
    sr = cv2.imread(str(tmp_path / 'results' / 'demo_bicubic' / 'visualization' / 'demo' / 'a_demo_bicubic.png'))
    assert sr.shape == gt.shape
    # BT.601 luma of a gray level g is 16 + 219 / 255 g, so the error of Y follows from that of the gray levels.
    error = (sr[2:-2, 2:-2, 0].astype(float) - gt[2:-2, 2:-2, 0]) * 219 / 255
    expected = 10 * np.log10(255 ** 2 / (error ** 2).mean())
    assert given.datasets['demo'].mean['psnr'] == pytest.approx(expected, abs=1e-2)
    assert scores.read_scores(tmp_path / 'results' / 'demo_bicubic').name == 'demo_bicubic'
    assert 'type' in METRICS['psnr']
    (tmp_path / 'lq' / 'a.png').unlink()
    with pytest.raises(FileNotFoundError, match='no readable partner'):
        write_bicubic('x', 'demo', tmp_path / 'gt', tmp_path / 'lq', 2, METRICS, tmp_path / 'results')


def test_maps():
    gt = np.zeros((2, 3, 3), np.uint8)
    sr = gt.copy()
    sr[0, 0] = 3, 6, 0
    assert image_statistics.error_map(sr, gt).tolist() == [[3, 0, 0], [0, 0, 0]]
    with pytest.raises(ValueError, match='same size'):
        image_statistics.error_map(sr, gt[:1])
    np.testing.assert_allclose(image_statistics.scale_map(np.log([[1., 5.]])), [[1, 5]])
    np.testing.assert_allclose(image_statistics.scale_map(np.log([[[1., 2., 6.]]])), [[3]])
    assert image_statistics.nearest(np.arange(6, dtype=np.uint8).reshape(1, 2, 3), 2)[1, 3].tolist() == [3, 4, 5]


def test_busiest_box():
    image = np.zeros((64, 80, 3), np.uint8)
    image[24:40, 48:64] = np.random.default_rng(0).integers(0, 255, (16, 16, 1))
    assert image_statistics.busiest_box(image, 16) == (48, 24, 16, 16)
    assert image_statistics.busiest_box(image, 500)[1:] == (0, 64, 64)


def test_comparison_figure(tmp_path):
    rng = np.random.default_rng(0)
    gt = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
    panels = [figures.Panel('GT', gt), figures.Panel('SR\n30 dB', gt),
              figures.Panel('error', rng.random((40, 60)), 'error'), figures.Panel('θ', rng.random((40, 60)), 'scale')]
    out = figures.comparison_figure(panels, (10, 8, 16, 16), tmp_path / 'new' / 'f.png', dpi=50)
    drawn = cv2.imread(str(out))
    height, width = drawn.shape[:2]
    expected = (4 * 0.1 + 3 + 4 + 2 * 1.02) * 50, (2 * 2.49 + 0.12) * 50
    assert (width, height) == pytest.approx(expected, abs=1)  # matplotlib releases round differently
    assert (drawn.min(axis=2) > 250).mean() < 0.6  # the pictures fill it
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 500

    with pytest.raises(ValueError, match='does not lie within'):
        figures.comparison_figure(panels, (50, 8, 16, 16), tmp_path / 'g.png')
    assert not (tmp_path / 'g.png').exists()
