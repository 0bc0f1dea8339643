"""Figures of comparisons, of sigma, of costs and of trained weights."""
# ruff: noqa: F811 - fixtures that come from figure_runs
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs import build_network
from figure_runs import IMAGES, SET, SIGMA_NETS, main, rgb, sigma_folder, sobel, tlw_folder  # noqa: F401
from invented import invented_record
from legible import unreadable

from udl_basicsr.experiments.printed import load_paper
from udl_basicsr.experiments.record_files import TrainedStage
from udl_basicsr.functional import image_statistics as stats
from udl_basicsr.reports import figures, plots, sigma, tlw, tradeoff, variance_plots
from udl_basicsr.reports.paper_tables import make_table
from udl_basicsr.reports.uncertainty import ReportError
from udl_basicsr.training import stages
from udl_basicsr.utils import scores

# ----------------------------------------------------------------------------------------------------------- comparison

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
    assert drawn[0].texts[0].get_text() == 'EDSR ×2: difference from label of L1, 2 seeds'
    ax, = drawn[0].axes
    points = {line.get_ydata()[0]: line.get_xdata() for line in ax.lines if line.get_marker() == '.'}
    assert list(points) == pytest.approx([0.33, 2.33])  # each seed, below its method; none where there is only one
    assert list(points.values()) == [pytest.approx([0.3, 0.3]), pytest.approx([-0.2, -0.2])]
    assert [t.get_text() for t in ax.get_yticklabels()] == ['label of better', 'label of once (1 seed)',
                                                            'label of worse']
    dots = [line for line in ax.lines if line.get_marker() == 'o']
    assert [line.get_xdata()[0] for line in dots] == pytest.approx([0.3, 0.1, -0.2])
    # no scatter at all: the intervals are the means themselves, and exclude 0; but one seed says nothing of seeds
    assert [line.get_markerfacecolor() for line in dots] == [plots.BETTER, 'white', plots.WORSE]
    assert [t.get_text() for t in ax.texts] == ['+0.30', '+0.10', '−0.20']


def test_points_are_the_seeds_own_differences(drawn):
    runs = [*records(), record('noisy', 0, 1.), record('noisy', 1, -0.9)]
    plots.differences_figure(runs, 'f.png', methods=['noisy'])
    ax, = drawn[0].axes
    assert [list(line.get_xdata()) for line in ax.lines if line.get_marker() == '.'] == [pytest.approx([1., -0.9])]


def test_comparisons_can_be_read(drawn):
    """With long names, many digits and several plots beside each other; and the axes say which way is better."""
    runs = [replace(r, label=f'{r.label}, with 1.54 times the iterations') for r in records()]
    for r in runs:
        for values in [*r.datasets[SET].images.values(), r.datasets[SET].mean]:
            values['lpips'] = values['psnr'] / 100
        r.datasets.update(dict.fromkeys(('Set14', 'BSD100'), r.datasets[SET]))
    for metric in ('psnr', 'lpips'):
        plots.differences_figure(runs, 'f.png', metric)
    plots.curves_figure(runs, SET, 'f.png')
    variances = np.random.default_rng(0).exponential(1, (2, 400))
    variance_plots.variances_figure(variances[0], {'a run': variances[1]}, 8, 'f.png', 'toys')
    variance_plots.variance_peaks_figure(variances, {'a run': variances / 2}, 8, 'f.png', 'toys')
    assert [unreadable(figure) for figure in drawn] == [[]] * 5
    assert 'PSNR minus that of label of L1, with 1.54 times the iterations, dB (higher is better)' in [
        text.get_text() for text in drawn[0].texts]
    assert drawn[1].texts[1].get_text().endswith('(lower is better)')


def test_what_cannot_be_read_is_found():
    """So that the tests with it mean something."""
    figure = figures.new_figure(3, 2, 100)
    left, right = (figure.add_axes((x, 0.2, 0.3, 0.5)) for x in (0.2, 0.6))
    assert unreadable(figure) == []
    left.set_title('far too long for so narrow a plot')
    right.set_title('another')
    left.set_ylabel('a name')
    left.yaxis.set_label_coords(-0.8, 0.5)
    right.plot([0, 1, 2], [0, 1, 2], label='a line')
    right.legend(loc='center')
    left.text(1.4, 0.5, '0.25', transform=left.transAxes)
    found = '; '.join(unreadable(figure))
    for fault in ("'another' lies on", "'a name' is cut off", "legend of 'another' lies on data", "'0.25' lies under"):
        assert fault in found or (fault.startswith("'another'") and "lies on 'another'" in found)


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


# ---------------------------------------------------------------------------------------- sigma, and what networks cost

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


# ------------------------------------------------------------------------------------------------------------------ TLW

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
