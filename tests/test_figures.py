"""Figures: drawing, pictures of runs, and the command line."""
# ruff: noqa: F811 - fixtures that come from figure_runs
import json
import re

import cv2
import legible
import numpy as np
import pytest
from figure_runs import IMAGES, SET, disturbed, main, rgb, sigma_folder, tlw_folder  # noqa: F401

from udl_basicsr.functional import image_statistics as stats
from udl_basicsr.functional.log_scale_maps import encode_log_scale
from udl_basicsr.reports import figures, pictures
from udl_basicsr.reports.figures import Panel
from udl_basicsr.reports.uncertainty import ReportError
from udl_basicsr.utils import scores


@pytest.fixture
def toys(tmp_path):
    """Folders `gt`, `lq` (×2) and `results/{one,two}` of a test on two images; `two` has an uncertainty."""
    for number, (name, size) in enumerate(IMAGES.items()):
        gt = rgb(number, *size)
        files = {f'gt/{name}.png': gt, f'lq/{name}.png': gt[::2, ::2]}
        for seed, run in enumerate(('one', 'two')):
            files[f'results/{run}/visualization/{SET}/{name}_{run}.png'] = disturbed(gt, 10 * seed + number)
        for path, image in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / path), np.ascontiguousarray(image[..., ::-1]))
        s = np.random.default_rng(number).uniform(-1, 4, size)
        cv2.imwrite(str(tmp_path / 'results' / 'two' / 'visualization' / SET / f'{name}_log_scale.png'),
                    encode_log_scale(s))
    for number, run in enumerate(('one', 'two')):
        values = {name: {'psnr': 30. + number, 'ssim': 0.8} for name in IMAGES}
        scores.write_scores(scores.Scores(name=run, scale=2, network='EDSR', weights='x', protocol='p', versions={},
                                          datasets={SET: scores.SetScores.of(values)}),
                            tmp_path / 'results' / run)
    return tmp_path


# -------------------------------------------------------------------------------------------------------------- drawing

def colour_at(figure, title, row, column):
    """The colour that is drawn at a pixel of the panel of that title."""
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())
    ax = next(ax for ax in figure.axes if ax.get_title() == title)
    x, y = ax.transData.transform((column, row))
    return tuple(int(v) for v in drawn[int(drawn.shape[0] - y), int(x)])


def test_fixed_scale_gives_a_value_one_colour_everywhere():
    rng = np.random.default_rng(0)
    rows = []
    for name, low, high in (('dark', -1., 1.), ('bright', 1., 4.)):
        s = rng.uniform(low, high, (12, 12))
        s[5, 6] = 1.
        rows.append([Panel(f'{name} fixed', s, 'log_scale'), Panel(f'{name} own', stats.stretch(s)[0], 'stretched')])
    together = figures.draw_grid(rows, 'below', width=3)
    alone = figures.draw_grid(rows[:1], 'below', width=3)
    expected = colour_at(together, 'dark fixed', 5, 6)
    assert colour_at(together, 'bright fixed', 5, 6) == expected == colour_at(alone, 'dark fixed', 5, 6)
    assert colour_at(together, 'bright own', 5, 6) != colour_at(together, 'dark own', 5, 6)
    # of viridis, at (1 − −1) / (5 − −1)
    assert expected == pytest.approx(tuple(255 * v for v in figures.matplotlib.colormaps['viridis'](2 / 6)), abs=1)
    other = figures.draw_grid(rows[:1], 'below', limits=(0, 2), width=3)
    assert colour_at(other, 'dark fixed', 5, 6) != expected


def test_grid_refuses():
    with pytest.raises(ValueError, match='do not fit'):
        figures.draw_grid([[Panel('e', np.ones((4, 4)), 'error')] * 30])


@pytest.mark.parametrize('suffix', ['.png', '.pdf', '.svg'])
def test_a_figure_is_the_same_file_each_time(tmp_path, suffix):
    magic = {'.png': b'\x89PNG', '.pdf': b'%PDF', '.svg': b'<?xml'}[suffix]
    panel = Panel('θ', np.arange(16.).reshape(4, 4), 'error')
    a, b = (figures.save(figures.draw_grid([[panel]], width=2), tmp_path / f'{name}{suffix}') for name in 'ab')
    assert a.read_bytes() == b.read_bytes()
    assert a.read_bytes().startswith(magic)
    assert b'Type3' not in a.read_bytes()


@pytest.mark.parametrize('count', [5, 8])
def test_long_titles_of_small_pictures_are_broken(tmp_path, count):
    """Neither does one lie on the next, nor is one cut off; nor the name of a colour bar that is short."""
    gt, title = rgb(0), 'ESU → UDL\n26.47 dB / 0.7605'
    legible.watch()
    figures.comparison_figure([Panel(title, gt)] * count, (8, 8, 16, 16), tmp_path / 'f.png', [Panel('whole', gt)],
                              width=5)
    figures.save(figures.draw_grid([[Panel(title, gt[..., 0] / 255., 'weight')] * count], width=7),
                 tmp_path / 'g.png')
    assert legible.found() == []


@pytest.mark.parametrize('count', [2, 7])
def test_crops_fit_the_width(tmp_path, count):
    gt = rgb(0)
    figure = figures.comparison_figure([Panel('p', gt)] * count, (8, 8, 16, 16), tmp_path / 'f.png', width=5, dpi=100)
    assert cv2.imread(str(figure)).shape[1] == pytest.approx(500, abs=1)
    with pytest.raises(ValueError, match='do not fit'):
        figures.comparison_figure([Panel('p', gt)] * 60, (8, 8, 16, 16), tmp_path / 'f.png', width=5)


def test_vector_formats_hold_the_very_pixels(tmp_path):
    gt = rgb(0)
    out = figures.comparison_figure([Panel('p', gt)], (8, 8, 20, 12), tmp_path / 'f.pdf', width=5)
    content = out.read_bytes()
    heights, widths = ([int(n) for n in re.findall(rb'/%b (\d+)' % side, content)] for side in (b'Height', b'Width'))
    assert sorted(zip(heights, widths, strict=True)) == [(12, 20), (48, 64)]


def test_a_photograph_made_smaller_is_no_sieve(tmp_path):
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    out = figures.save(figures.draw_grid([[Panel('', stripes)]], width=1, dpi=50), tmp_path / 'f.png')
    inside = cv2.imread(str(out))[15:40, 10:40]
    assert np.abs(inside.astype(int) - 127).max() < 40  # the mean of the stripes, not some of them


# ----------------------------------------------------------------------------------------------------------------- runs

def test_pictures_of_a_run(toys):
    run = pictures.open_run(str(toys / 'results' / 'two'))
    assert (run.label, run.scale) == ('two', 2)
    assert run.caption(SET, 'a') == '31.00 dB / 0.8000'
    np.testing.assert_array_equal(run.sr(SET, 'a_2'), disturbed(rgb(1, 32, 32), 11))
    np.testing.assert_array_equal(run.sr(SET, 'a'), disturbed(rgb(0), 10))
    np.testing.assert_allclose(run.log_scale(SET, 'a'), np.random.default_rng(0).uniform(-1, 4, (48, 64)), atol=1e-4)
    with pytest.raises(ReportError, match='was not tested on Set5, but on toys'):
        run.sr('Set5', 'a')
    with pytest.raises(ReportError, match="no image 'b', it has a, a_2"):
        run.sr(SET, 'b')
    one = pictures.open_run(f'L1={toys / "results" / "one"}')
    assert one.label == 'L1'
    with pytest.raises(ReportError, match='pretrain_network_u'):
        one.log_scale(SET, 'a')
    (one.folder / SET / 'a_log_scale.png').write_bytes((one.folder / SET / 'a_one.png').read_bytes())
    with pytest.raises(ReportError, match='16-bit'):
        one.log_scale(SET, 'a')


def test_a_record_stands_for_its_run(toys):
    path = toys / 'two_x2_seed0.json'
    record = {**scores.read_scores(toys / 'results' / 'two').to_json(), 'label': 'ESU → UDL',
              'pictures': str(toys / 'results' / 'two' / 'visualization')}
    path.write_text(json.dumps(record))
    run = pictures.open_run(str(path))
    assert run.label == 'ESU → UDL'
    np.testing.assert_array_equal(run.sr(SET, 'a'), disturbed(rgb(0), 10))
    path.write_text(json.dumps({**record, 'pictures': None}))
    with pytest.raises(ReportError, match='they were not kept'):
        pictures.open_run(str(path))
    path.write_text('{')
    with pytest.raises(ReportError, match='no JSON'):
        pictures.open_run(str(path))


def test_partner_without_the_scale_in_its_name(toys):
    np.testing.assert_array_equal(pictures.read_partner(toys / 'gt', 'ax4'), rgb(0))
    with pytest.raises(ReportError, match='is it the GT folder'):
        pictures.read_partner(toys / 'gt', 'nobody')


# --------------------------------------------------------------------------------------------------------- command line

@pytest.fixture
def commands(toys, tlw_folder, sigma_folder):
    """Arguments of each kind that work, without --out."""
    results, gt, lq = toys / 'results', toys / 'gt', toys / 'lq'
    image = ['--dataset', SET, '--gt', gt, '--image', 'a']
    return {
        'crops': ['crops', f'L1={results}/one', results / 'two', *image, '--lq', lq, '--box', 24],
        'errors': ['errors', results / 'one', results / 'two', *image, '--box', 4, 8, 40, 32],
        'uncertainty': ['uncertainty', results / 'two', *image, '--limits', -1, 4],
        'weights': ['weights', results / 'one', '--uncertainty', results / 'two', *image, '--lq', lq],
        'gv': ['gv', results / 'one', results / 'two', '--dataset', SET, '--gt', gt],
        'gradients': ['gradients', f'MSE={results}/one', f'GV={results}/two', *image],
        'variances': ['variances', results / 'one', results / 'two', '--dataset', SET, '--gt', gt, '--images', 'a_2'],
        'tlw': ['tlw', tlw_folder, '--gt', gt / 'a.png', '--lq', lq / 'a.png'],
        'fixed_sum': ['fixed_sum', tlw_folder, '--gt', gt / 'a.png', '--lq', lq / 'a.png', '--box', 24],
        'sigma': ['sigma', sigma_folder, '--lq', lq / 'a.png', '--pixels', 4],
        'tradeoff': ['tradeoff', '--cost', 'macs', '--tables', 'le-3'],
    }


@pytest.mark.parametrize(('kind', 'suffix'), [('crops', '.png'), ('errors', '.pdf'), ('uncertainty', '.png'),
                                              ('weights', '.svg'), ('gv', '.pdf'), ('tlw', '.png'),
                                              ('gradients', '.png'), ('variances', '.svg'), ('fixed_sum', '.png'),
                                              ('sigma', '.pdf'), ('tradeoff', '.pdf')])
def test_command_line(commands, kind, suffix, tmp_path, capsys):
    out = tmp_path / 'new' / f'{kind}{suffix}'
    legible.watch()
    assert main(*commands[kind], '--out', out, '--dpi', 60) == 0
    assert legible.found() == []
    assert capsys.readouterr().out == f'Wrote {out}\n'
    assert out.stat().st_size > 2000
    if suffix == '.png':
        assert cv2.imread(str(out)).shape[1] == pytest.approx(7 * 60, abs=1)
        assert len(np.unique(cv2.imread(str(out)).reshape(-1, 3), axis=0)) > 300
    if kind == 'weights':
        text = re.sub(r'<path.*?>', '', out.read_text())
        assert 'uncertainty (UDL)' in text


@pytest.mark.parametrize(('kind', 'more', 'message'), [
    ('crops', ['--out', 'f.jpg'], r'f\.jpg: expected a name that ends in \.png, \.pdf, \.svg'),
    ('crops', ['--box', '60', '0', '16', '16'], r'--box: the box \(60, 0, 16, 16\) does not lie within the 64×48'),
    ('crops', ['--box', '1', '2', '3'], '--box 1 2 3: expected LEFT TOP WIDTH HEIGHT'),
    ('errors', ['--image', 'nobody'], "toys has no image 'nobody'"),
    ('errors', ['--gt', '.'], 'has no a.png: is it the GT folder'),
    ('uncertainty', ['--limits', '3', '1'], '--limits 3 1: expected two numbers, the smaller one first'),
    ('weights', ['--uncertainty', 'nowhere'], 'No scores at nowhere'),
    ('gv', ['--patch_size', '64'], '--patch_size: patch_size: a patch of 64x64 is larger than the image'),
    ('tlw', ['--iterations', '5'], 'has no checkpoints of 5, it has 4, 9'),
    ('tlw', ['--lq', 'nowhere.png'], 'nowhere.png: no such file'),
    ('fixed_sum', ['--iteration', '5'], '--iteration: .* has no checkpoints of 5, it has 4, 9'),
    ('variances', ['--images', 'nobody'], "no image 'nobody'|no nobody.png"),
    ('sigma', ['--lq', 'nowhere.png'], 'nowhere.png: no such file'),
    ('tradeoff', ['--scale', '8'], 'nothing to draw: no row has psnr on Set5 ×8 and a macs'),
    ('tradeoff', ['--tables', 'le3'], 'did you mean le-3'),
])
def test_wrong_input_is_refused(commands, kind, more, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob('*'))
    assert main(*commands[kind], '--out', 'f.png', *more) == 2
    assert re.search('^error: .*' + message, capsys.readouterr().err, re.DOTALL)
    assert sorted(tmp_path.rglob('*')) == before


def test_other_refusals(commands, toys, tmp_path, capsys):
    folder = toys / 'results' / 'two'
    assert main('uncertainty', *commands['uncertainty'][1:2], toys / 'results' / 'one', *commands['uncertainty'][2:],
                '--out', tmp_path / 'f.png') == 2
    assert 'path.pretrain_network_u' in capsys.readouterr().err
    assert main('gv', folder, *commands['gv'][2:], '--out', tmp_path / 'f.png') == 2
    assert 'LABEL=PATH' in capsys.readouterr().err
    cv2.imwrite(str(folder / 'visualization' / SET / 'a_two.png'), np.zeros((8, 8, 3), np.uint8))
    assert main(*commands['errors'], '--out', tmp_path / 'f.png') == 2
    assert 'not of one size: the GT 64×48' in capsys.readouterr().err
    with pytest.raises(SystemExit, match='2'):
        main(*commands['errors'], '--out', tmp_path / 'f.png', '--width', 0)
    assert '--width: expected a number of at least 0.5, got 0' in capsys.readouterr().err
    assert not (tmp_path / 'f.png').exists()
