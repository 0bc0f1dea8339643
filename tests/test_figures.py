"""The papers' figures: the maps against the losses themselves and closed forms, the drawings by what they hold."""
import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs import build_network
from conftest import photograph
from invented import invented_record

from udl_basicsr.experiments.printed import load_paper
from udl_basicsr.experiments.record_files import TrainedStage
from udl_basicsr.functional import image_statistics as stats
from udl_basicsr.functional.log_scale_maps import encode_log_scale
from udl_basicsr.losses import UDLLoss
from udl_basicsr.losses.uncertainty_loss import WeightMapLoss
from udl_basicsr.reports import figures, pictures, plots, sigma, tlw, tradeoff, variance_plots
from udl_basicsr.reports.figures import Panel
from udl_basicsr.reports.paper_tables import make_table
from udl_basicsr.reports.uncertainty import ReportError
from udl_basicsr.training import stages
from udl_basicsr.utils import scores

ROOT = Path(__file__).parents[1]
SET = 'toys'
IMAGES = {'a': (48, 64), 'a_2': (32, 32)}  # one name begins with the other


def main(*argv):
    return importlib.import_module('udl_basicsr.cli.figures').main([str(a) for a in argv])


def rgb(seed, height=48, width=64):
    return photograph(seed, height, width)[..., ::-1].copy()


def disturbed(gt, seed, least=1, most=9):
    """GT with an error of `least` to `most` grey levels in every value."""
    generator = np.random.default_rng(seed)
    step = generator.integers(least, most + 1, gt.shape)
    return np.where(gt >= 128, gt - step, gt + step).astype(np.uint8)


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


# ---------------------------------------------------------------- maps

def gradient_of(loss, sr, gt, **more):
    """|dL/df| of mean(w |x − f|) summed is w where x ≠ f: what the loss really weights with, (H, W)."""
    pred = stats.to_tensor(sr).requires_grad_()
    loss(pred, stats.to_tensor(gt), **more).sum().backward()
    return pred.grad.abs()[0].mean(0).double().numpy()


@pytest.mark.parametrize(('scaling', 'offset', 'min_over'), [('linear', 0., 'image'), ('log', 1., 'channel'),
                                                             ('sqrt_exp', 0., 'image')])
def test_weight_maps_are_those_of_the_losses(scaling, offset, min_over):
    gt = rgb(3)
    sr, lq, s = disturbed(gt, 0), gt[::2, ::2].copy(), np.random.default_rng(1).uniform(-1, 4, gt.shape[:2])
    found = stats.weight_maps(sr, gt, lq, s, scaling, offset, min_over)
    how = {'scaling': scaling, 'offset': offset, 'min_over': min_over, 'reduction': 'none'}
    expected = {name: gradient_of(WeightMapLoss(weight_map=name, **how), sr, gt, lq=stats.to_tensor(lq))
                for name in WeightMapLoss.WEIGHT_MAPS}
    expected['uncertainty'] = gradient_of(UDLLoss(**how), sr, gt,
                                          log_scale=torch.from_numpy(s).float().expand(1, 3, -1, -1))
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        np.testing.assert_allclose(found[name], weight / weight.mean(), rtol=1e-5, atol=1e-7, err_msg=name)
        assert found[name].mean() == pytest.approx(1)


def test_weight_maps_refuse_and_bear_nothing():
    gt = rgb(3)
    found = stats.weight_maps(gt, gt, gt[::2, ::2], np.zeros((48, 64)))
    assert found['error'].max() == found['uncertainty'].max() == 0  # no error, a constant s: no weight, and no NaN
    with pytest.raises(ValueError, match='one size'):
        stats.weight_maps(gt, gt, gt[::2, ::2], np.zeros((48, 63)))
    with pytest.raises(ValueError, match='multiples'):
        stats.weight_maps(gt, gt, gt[:31, ::2], np.zeros((48, 64)))


def test_top_share():
    assert stats.top_share(np.full((10, 10), 3.)) == pytest.approx(0.1)
    one = np.zeros((10, 10))
    one[4, 4] = 2
    assert stats.top_share(one) == 1
    assert stats.top_share(np.arange(1., 101).reshape(10, 10)) == pytest.approx(sum(range(91, 101)) / 5050)
    assert stats.top_share(np.zeros((10, 10))) == 0.1


def test_stretch():
    values = np.arange(101.).reshape(1, -1)  # percentile p is p
    unit, low, high = stats.stretch(values)
    assert (low, high) == (1, 99)
    np.testing.assert_allclose(unit[0], [0, *((np.arange(1, 100) - 1) / 98), 1])
    np.testing.assert_allclose(stats.stretch(5 * values - 7)[0], unit)  # whatever the level
    assert stats.stretch(np.full((2, 2), 3.))[0].tolist() == [[0, 0], [0, 0]]


def test_patch_variances_against_opencv():
    image, n = rgb(5, 37, 53), 8
    gray = (image / 255.) @ [0.299, 0.587, 0.114]
    expected = []
    for dx, dy in ((1, 0), (0, 1)):
        sobel = cv2.Sobel(gray, cv2.CV_64F, dx, dy, ksize=3, borderType=cv2.BORDER_REPLICATE)
        expected += [sobel[r:r + n, c:c + n].var(ddof=1) for r in range(0, 32, n) for c in range(0, 48, n)]
    np.testing.assert_allclose(stats.patch_variances(image, n), expected, rtol=1e-4, atol=1e-9)


def sobel(image, **border):
    """By OpenCV, in float64, of luma in [0, 1]."""
    gray = (image / 255.) @ [0.299, 0.587, 0.114]
    return [cv2.Sobel(gray, cv2.CV_64F, dx, dy, ksize=3, **border) for dx, dy in ((1, 0), (0, 1))]


def test_gradients_against_opencv():
    image = rgb(5, 37, 53)
    np.testing.assert_allclose(stats.gradients(image), sobel(image, borderType=cv2.BORDER_REPLICATE), atol=1e-5)


def test_peaks():
    values = np.random.default_rng(0).exponential(1, 103)
    assert stats.peaks(values, 103).tolist() == values.tolist()
    found = stats.peaks(values, 10)  # three groups of 11, seven of 10
    assert found[0] == values[:11].max()
    assert found[-1] == values[-10:].max()
    assert found.max() == values.max()


def test_histogram_keeps_every_patch():
    values = np.concatenate([np.zeros(7), 10. ** np.random.default_rng(0).uniform(-9, 3, 500)])
    edges = np.logspace(-4, 1, 21)
    counts = stats.log_histogram(values, edges)
    assert counts.sum() == values.size
    assert counts[0] == (values < edges[1]).sum()
    assert counts[-1] == (values >= edges[-2]).sum()
    edges = stats.logarithmic_edges([values])
    assert edges[-1] >= values.max()
    np.testing.assert_allclose(np.diff(np.log10(edges)), 1 / 8)
    assert np.log10(edges[0]) == round(np.log10(edges[0]))
    assert len(stats.logarithmic_edges([np.zeros(3)])) == 2


def test_variance_ratio():
    gt = np.random.default_rng(0).exponential(1, 1000)
    at, ratio = stats.variance_ratio(np.append(np.where(gt > 1, 0.25, 0.5) * gt, 9), np.append(gt, 0), groups=5)
    assert (np.diff(at) > 0).all()
    np.testing.assert_allclose(ratio, np.where(at > 1, 0.25, 0.5))
    assert stats.variance_ratio(np.ones(3), np.zeros(3))[1].size == 0


# ---------------------------------------------------------------- drawing

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
    error, s = Panel('e', np.ones((4, 4)), 'error'), Panel('s', np.ones((4, 4)), 'log_scale')
    with pytest.raises(ValueError, match='share a row'):
        figures.draw_grid([[error, s]])
    with pytest.raises(ValueError, match='share a column'):
        figures.draw_grid([[error], [s]], 'below')
    with pytest.raises(ValueError, match='do not fit'):
        figures.draw_grid([[error] * 30])
    with pytest.raises(ValueError, match='at least one panel'):
        figures.draw_grid([['text']])


@pytest.mark.parametrize('suffix', ['.png', '.pdf', '.svg'])
def test_a_figure_is_the_same_file_each_time(tmp_path, suffix):
    magic = {'.png': b'\x89PNG', '.pdf': b'%PDF', '.svg': b'<?xml'}[suffix]
    panel = Panel('θ', np.arange(16.).reshape(4, 4), 'error')
    a, b = (figures.save(figures.draw_grid([[panel]], width=2), tmp_path / f'{name}{suffix}') for name in 'ab')
    assert a.read_bytes() == b.read_bytes()
    assert a.read_bytes().startswith(magic)
    assert b'Type3' not in a.read_bytes()


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


# ---------------------------------------------------------------- runs

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


# ---------------------------------------------------------------- comparison

CURVE = [10, 20]


def record(method, seed, shift, order=0, scale=2):
    """L1 is 30 dB on the first image and 32 on the second, plus a tenth of the seed; others are `shift` above."""
    values = {name: {'psnr': 30. + 2 * i + seed / 10 + shift} for i, name in enumerate(IMAGES)}
    return invented_record(
        method=method, label=f'label of {method}', seed=seed, scale=scale, order=order,
        datasets={SET: {'images': values, 'mean': scores.mean_scores(values)}},
        curve={'val': {SET: {'iter': CURVE, 'psnr': [29 + seed, 30 + seed + shift]}}})


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, instead of files."""
    kept = []
    for module in (plots, variance_plots):
        monkeypatch.setattr(module, 'save', lambda figure, out: kept.append(figure) or Path(out))
    return kept


def records():
    return [record(method, seed, shift) for method, shift in (('L1', 0.), ('worse', -0.2), ('better', 0.3))
            for seed in (0, 1)] + [record('once', 0, 0.1)]


def test_differences_show_the_means(drawn):
    plots.differences_figure(records(), 'f.png')
    ax, = drawn[0].axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ['label of better', 'label of once (1 seed)',
                                                            'label of worse']
    dots = [line for line in ax.lines if line.get_marker() == 'o']
    assert [line.get_xdata()[0] for line in dots] == pytest.approx([0.3, 0.1, -0.2])
    # no scatter at all: the intervals are the means themselves, and exclude 0; but one seed says nothing of seeds
    assert [line.get_markerfacecolor() for line in dots] == [plots.BETTER, 'white', plots.WORSE]
    assert [t.get_text() for t in ax.texts] == ['+0.30', '+0.10', '−0.20']


def test_differences_that_scatter_are_hollow(drawn):
    runs = [*records(), record('noisy', 0, 1.), record('noisy', 1, -0.9)]
    plots.differences_figure(runs, 'f.png', methods=['noisy', 'better'])
    ax, = drawn[0].axes
    dots = {line.get_ydata()[0]: line.get_markerfacecolor() for line in ax.lines if line.get_marker() == 'o'}
    assert dots == {0: plots.BETTER, 1: 'white'}


def test_differences_where_less_is_more(drawn):
    runs = records()
    for r in runs:
        for values in [*r.datasets[SET].images.values(), r.datasets[SET].mean]:
            values['lpips'] = values.pop('psnr') / 100
    plots.differences_figure(runs, 'f.png', 'lpips')
    ax, = drawn[0].axes
    assert ax.get_yticklabels()[0].get_text() == 'label of worse'
    dots = [line for line in ax.lines if line.get_marker() == 'o']
    assert [line.get_markerfacecolor() for line in dots] == [plots.BETTER, 'white', plots.WORSE]


def test_comparisons_refuse():
    runs = records()
    with pytest.raises(scores.ScoresError, match='metrics psnr'):
        plots.differences_figure(runs, 'f.png', 'ssim')
    with pytest.raises(scores.ScoresError, match=r'method nobody\. There are: L1, better'):
        plots.differences_figure(runs, 'f.png', methods=['nobody'])
    with pytest.raises(scores.ScoresError, match='scales 2, 4: choose one'):
        plots.differences_figure([*runs, record('L1', 0, 0., scale=4)], 'f.png')
    with pytest.raises(scores.ScoresError, match='no record is of scale 3, they are of 2'):
        plots.curves_figure(runs, SET, 'f.png', scale=3)
    with pytest.raises(scores.ScoresError, match=r'no record has a curve of psnr on Set5. There are: toys \(psnr\)'):
        plots.curves_figure(runs, 'Set5', 'f.png')


def test_curves_are_paired_seed_by_seed(drawn):
    plots.curves_figure(records(), SET, 'f.png')
    left, right = drawn[0].axes
    lines = {line.get_label(): list(line.get_ydata()) for line in left.lines}
    assert lines['label of L1'] == [29.5, 30.5]
    assert lines['label of better'] == pytest.approx([29.5, 30.8])
    assert lines['label of once'] == pytest.approx([29, 30.1])  # of seed 0 alone: below L1 …
    lines = {line.get_label(): list(line.get_ydata()) for line in right.lines if len(line.get_xdata()) == 2}
    assert lines['label of once'] == pytest.approx([0, 0.1])  # … and above it, pair by pair
    assert lines['label of worse'] == pytest.approx([0, -0.2])
    assert 'label of L1' not in lines
    colours = [(line.get_color(), line.get_linestyle()) for line in left.lines]
    assert len(set(colours)) == 4


def test_variances_figure(drawn):
    gt = np.random.default_rng(0).exponential(1, 400)
    variance_plots.variances_figure(gt, {'half': gt / 2, 'same': gt}, 8, 'f.png')
    left, right = drawn[0].axes
    assert [patch.get_data().values.sum() for patch in left.patches] == pytest.approx([100, 100, 100])
    lines = {line.get_label(): line.get_ydata() for line in right.lines if len(line.get_xdata()) == 10}
    assert set(lines) == {f'half: {2 * (gt ** 2 / 4).mean():.4f}', 'same: 0.0000'}
    assert np.concatenate(list(lines.values())).tolist() == pytest.approx([0.5] * 10 + [1] * 10)
    with pytest.raises(ValueError, match='expected 400 patches'):
        variance_plots.variances_figure(gt, {'less': gt[1:]}, 8, 'f.png')


def test_variance_peaks_figure(drawn):
    """Patch after patch, of each run and direction, against OpenCV; the peaks of GT are there, smoothed by a run."""
    gt, n = rgb(5, 32, 48), 8
    blurred = cv2.GaussianBlur(gt, (0, 0), 1.5)
    both = {name: stats.patch_variances(image, n).reshape(2, -1) for name, image in (('gt', gt), ('blurred', blurred))}
    variance_plots.variance_peaks_figure(both['gt'], {'blurred': both['blurred']}, n, 'f.png')
    for number, ax in enumerate(drawn[0].axes):
        for line, image in zip(ax.lines, (gt, blurred), strict=True):
            slope = sobel(image, borderType=cv2.BORDER_REPLICATE)[number]
            expected = [slope[r:r + n, c:c + n].var(ddof=1) for r in range(0, 32, n) for c in range(0, 48, n)]
            np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-4, atol=1e-9)
            assert line.get_label().endswith(f': mean {np.mean(expected):.4f}')
        assert max(ax.lines[0].get_ydata()) > 2 * max(ax.lines[1].get_ydata())
    variance_plots.variance_peaks_figure(both['gt'], {}, n, 'f.png', points=5)
    assert len(drawn[1].axes[0].lines[0].get_ydata()) == 5
    with pytest.raises(ValueError, match='expected 24 patches'):
        variance_plots.variance_peaks_figure(both['gt'], {'less': both['gt'][:, 1:]}, n, 'f.png')


# ---------------------------------------------------------------- sigma, and what networks cost

SIGMA_NETS = {'network_g': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1,
                            'upscale': 2},
              'network_u': {'type': 'UncertaintyNet', 'head': {'type': 'SigmaHead', 'num_feat': 4}}}


@pytest.fixture
def sigma_folder(tmp_path):
    """A run whose sigma goes to 0: at iterations 2 and 30 its last convolution says −2 and −8 plus little."""
    folder = tmp_path / 'experiments' / 'eq6'
    (folder / 'models').mkdir(parents=True)
    net = build_network({'backbone': SIGMA_NETS['network_g'], **SIGMA_NETS['network_u']})
    torch.nn.init.normal_(net.head.conv_last.weight, std=0.3)
    for iteration, logit in ((2, -2.), (30, -8.)):
        torch.nn.init.constant_(net.head.conv_last.bias, logit)
        torch.save({'params': net.state_dict()}, folder / 'models' / f'net_u_{iteration}.pth')
    (folder / 'models' / 'net_u_latest.pth').write_bytes((folder / 'models' / 'net_u_30.pth').read_bytes())
    (folder / 'train_eq6.yml').write_text(yaml.safe_dump({'stage': 'sigma', **SIGMA_NETS}))
    entries = [{'head': 'x'}, {'iter': 2, 'sigma_mean': 0.12}, {'iter': 20, 'dataset': SET, 'psnr': 20.},
               {'iter': 30, 'sigma_mean': 0.0003, 'l_sigma': 0.1}]
    (folder / 'history.jsonl').write_text(''.join(json.dumps(entry) + '\n' for entry in entries))
    return folder


def test_sigma_is_that_of_history_and_checkpoints(sigma_folder, tmp_path):
    curve = sigma.sigma_curve(sigma_folder)
    assert (curve.name, curve.iterations.tolist(), curve.means.tolist()) == ('eq6', [2, 30], [0.12, 0.0003])
    lq = rgb(0, 16, 24)
    found = sigma.sigma_pixels(sigma_folder, lq, 5)
    assert found.iterations.tolist() == [2, 30]
    nets = []
    for iteration in (2, 30):  # by hand: the features, the branch, the sigmoid
        net = build_network({'backbone': SIGMA_NETS['network_g'], **SIGMA_NETS['network_u']})
        state = torch.load(sigma_folder / 'models' / f'net_u_{iteration}.pth', weights_only=True)['params']
        net.load_state_dict(state)
        with torch.no_grad():
            nets.append(net(stats.to_tensor(lq))[1].flatten())
    ranks = nets[0].sort().values[torch.linspace(0, nets[0].numel() - 1, 5).round().long()]
    np.testing.assert_allclose(found.pixels[0], ranks.numpy(), rtol=1e-6)
    np.testing.assert_allclose(found.means, [net.mean().item() for net in nets], rtol=1e-5)
    # logits are 6 lower at the second checkpoint, so sigma is e^-6 of itself wherever it is small
    logits = np.log(found.pixels / (1 - found.pixels))
    np.testing.assert_allclose(logits[0] - logits[1], 6., rtol=1e-3)
    out = sigma.sigma_figure([curve], found, tmp_path / 'sigma.png', dpi=60)
    assert out.stat().st_size > 2000
    (sigma_folder / 'history.jsonl').write_text('{"iter": 2, "l_pix": 1.0}\n')
    with pytest.raises(ReportError, match='no sigma_mean'):
        sigma.sigma_curve(sigma_folder)
    for file in (sigma_folder / 'models').glob('net_u_*'):
        file.unlink()
    with pytest.raises(ReportError, match='save_checkpoint_freq'):
        sigma.sigma_pixels(sigma_folder, lq)


def test_sigma_of_a_run(project, pairs, tmp_path):
    """A run of eq. 6 leaves what the figure reads."""
    (project.root / 'eq6.yml').write_text(yaml.safe_dump({
        '_base_': '_base_.yml', 'name': 'eq6', 'stage': 'sigma', 'network_u': SIGMA_NETS['network_u'],
        'train': {'sigma_opt': {'type': 'TrainedExpectedL1Loss'}}}))
    stages.train(project.parse('eq6'), 'the command')
    folder = project.root / 'experiments' / 'eq6'
    curve = sigma.sigma_curve(folder)
    assert curve.iterations.tolist() == [2, 4, 6, 8]
    assert ((curve.means > 0) & (curve.means < 1)).all()
    assert sigma.sigma_pixels(folder, rgb(0, 16, 24), 3).iterations.tolist() == [4, 8]
    assert main('sigma', folder, '--lq', pairs / 'val' / 'lq' / '0.png', '--out', tmp_path / 's.png', '--dpi', 50) == 0


def test_tradeoff_dots_are_the_printed_ones_and_ours(tmp_path):
    paper = load_paper()
    ours = record('L1', 0, 0., scale=3)
    ours = replace(ours, comparison='large', parameters=43_000_000, costs={'runtime': 250.},
                   stages=[TrainedStage('plain', 5)], datasets={'Set5': ours.datasets[SET]})
    tables = [make_table(name, [ours], paper) for name in ('le-3', 'le-6')]
    dots = {(dot.label, dot.ours): dot for dot in tradeoff.tradeoff_dots(tables, 'Set5', 3)}
    # copied from the paper: run time in ms, PSNR on Set5 at ×3, parameters
    for label, cost, score, parameters in (('VDSR', 117.3, 33.66, 668e3), ('VDSR+Ours', 117.3, 34.18, 668e3),
                                           ('EDSR', 493.8, 34.65, 43.68e6), ('EDSR+Ours', 493.8, 34.70, 43.68e6),
                                           ('SAN', 1587.9, 34.75, 15.90e6), ('CARN', 30.7, 34.29, 1149e3)):
        dot = dots[label, False]
        assert (dot.cost, dot.score, dot.parameters) == (cost, score, parameters)
    assert len(dots) == 14 + 1
    mine = dots['EDSR', True]
    assert (mine.cost, mine.score, mine.parameters) == (250., pytest.approx(31.), 43e6)
    assert len(tradeoff.tradeoff_dots(tables, 'Set5', 3, 'macs')) == 7  # table 6 prints none
    assert tradeoff.area([1e6, 40e6, 1e3]).tolist() == pytest.approx([20., 800., 4.])
    assert tradeoff.tradeoff_figure([*dots.values()], 'Set5', 3, tmp_path / 'f.png', dpi=60).stat().st_size > 2000
    with pytest.raises(scores.ScoresError, match='nothing to draw: no row has psnr on toys ×3 and a macs'):
        tradeoff.tradeoff_figure([], SET, 3, tmp_path / 'g.png', 'macs')


# ---------------------------------------------------------------- TLW

TLW_OPT = {'type': 'TLWLoss', 'k_start': 0.2, 'k_gain': 0.5, 'k_tau': 2}


@pytest.fixture
def tlw_folder(tmp_path):
    folder = tmp_path / 'experiments' / 'TLW'
    (folder / 'models').mkdir(parents=True)
    nets = {'network_g': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1, 'upscale': 2},
            'network_w': {'type': 'TLWNet', 'num_feat': 4}}
    for iteration in (4, 9):
        for label in 'gw':
            torch.save({'params': build_network(nets[f'network_{label}']).state_dict()},
                       folder / 'models' / f'net_{label}_{iteration}.pth')
    (folder / 'models' / 'net_w_latest.pth').write_bytes((folder / 'models' / 'net_w_9.pth').read_bytes())
    (folder / 'train_TLW.yml').write_text(yaml.safe_dump({**nets, 'train': {'tlw_opt': TLW_OPT}}))
    (folder / 'history.jsonl').write_text('{"initial_weights": "a", "iters_per_epoch": 4}\n{"iter": 1}\n')
    return folder


def test_tlw_maps(tlw_folder):
    run = tlw.open_tlw_run(tlw_folder)
    assert run.iterations == (4, 9)
    # iteration 4 is the last of epoch 0, 9 the first of epoch 2: k = 0.5 (1 − exp(−epoch / 2)) + 0.2
    assert [run.k(i) for i in run.iterations] == pytest.approx([0.2, 0.5 * (1 - np.exp(-1)) + 0.2])
    gt = rgb(0)
    torch.manual_seed(7)
    found = tlw.tlw_maps(run, 9, gt, gt[::2, ::2])
    assert found.sr.shape == found.weights.shape == found.sample.shape == gt.shape
    np.testing.assert_allclose(found.weights.mean(axis=(0, 1)), found.k, rtol=1e-5)  # FixedSum, each channel
    assert 0 <= found.sample.min() < 0.05
    assert 0.95 < found.sample.max() <= 1
    # P(sample > 1/2) = w; 9216 values, of which each is within 1/2
    assert (found.sample > 0.5).mean() == pytest.approx(found.k, abs=5 * 0.5 / np.sqrt(found.sample.size))
    after = torch.rand(1)
    torch.manual_seed(7)
    assert torch.rand(1) == after  # nobody's random numbers are used up
    np.testing.assert_array_equal(tlw.tlw_maps(run, 9, gt, gt[::2, ::2]).sample, found.sample)
    net = build_network(run.options['network_g'])
    net.load_state_dict(torch.load(tlw_folder / 'models' / 'net_g_9.pth', weights_only=True)['params'])
    expected = net(stats.to_tensor(gt[::2, ::2])).detach().clamp(0, 1)[0].permute(1, 2, 0).numpy() * 255
    np.testing.assert_array_equal(found.sr, expected.round())


def test_layers_of_the_weights(tlw_folder, drawn):
    run, gt = tlw.open_tlw_run(tlw_folder), rgb(0)
    found = tlw.tlw_maps(run, 9, gt, gt[::2, ::2])
    # FixedSum by the paper's eq. 5, in float64, of what the sigmoid says
    raw, pixels = found.sigmoid.astype(np.float64), gt.shape[0] * gt.shape[1]
    total, wanted = raw.sum(axis=(0, 1)), found.k * pixels
    expected = np.where(wanted > total, raw + (wanted - total) / (pixels - total) * (1 - raw), raw * wanted / total)
    np.testing.assert_allclose(found.weights, expected, atol=1e-5)
    plots.layers_figure(found, 'f.png', bins=8)
    above, below = drawn[0].axes[:3], drawn[0].axes[-3:]
    for ax, panel, values in zip(below, above, (found.sigmoid, found.weights, found.sample), strict=True):
        heights, edges, _ = ax.patches[0].get_data()
        assert edges.tolist() == [i / 8 for i in range(9)]
        place = np.minimum((values.ravel() * 8).astype(int), 7)
        assert heights.tolist() == pytest.approx([100 * float((place == i).mean()) for i in range(8)])
        np.testing.assert_array_equal(panel.images[0].get_array(), values.mean(2))
        assert f'mean {values.mean():.3f}' in panel.get_title()


def test_tlw_in_iterations_needs_no_history(tlw_folder):
    options = yaml.safe_load((tlw_folder / 'train_TLW.yml').read_text())
    (tlw_folder / 'history.jsonl').unlink()
    with pytest.raises(ReportError, match='how many iterations an epoch has'):
        tlw.open_tlw_run(tlw_folder)
    options['train']['tlw_opt'].update(k_unit='iter', k_tau=4, deterministic=True)
    (tlw_folder / 'train_TLW.yml').write_text(yaml.safe_dump(options))
    run = tlw.open_tlw_run(tlw_folder)
    assert run.k(9) == pytest.approx(0.5 * (1 - np.exp(-8 / 4)) + 0.2)
    found = tlw.tlw_maps(run, 4, rgb(0), rgb(0)[::2, ::2])
    np.testing.assert_array_equal(found.sample, found.weights)


# ---------------------------------------------------------------- command line

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
    assert main(*commands[kind], '--out', out, '--dpi', 60) == 0
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
