"""Figures and pages of networks of one channel, which were trained with ``color: y``: compared with Y of the GT."""
# ruff: noqa: F811 - fixtures that come from elsewhere
import json

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs import build_network
from figure_runs import SET, SIGMA_NETS, disturbed, main, rgb, sigma_folder, sobel, tlw_folder  # noqa: F401
from html_pages import COLOURS, IMAGES, SIZE, data_of, trial, write_comparison, write_data, write_png  # noqa: F401
from test_html_pictures import decoded

from udl_basicsr.cli import drawing
from udl_basicsr.functional.log_scale_maps import encode_log_scale
from udl_basicsr.reports import figures, html, plots, sigma, tlw, where
from udl_basicsr.reports.pictures import open_run
from udl_basicsr.utils import scores


def y_of(image):
    """Y of BT.601 by its definition, rounded to 8 bits."""
    return np.floor(16 + image / 255. @ [65.481, 128.553, 24.966] + 0.5).astype(np.uint8)


@pytest.fixture
def runs(tmp_path):
    """Folders `gt` and `lq`, and runs on one image: `gray` made Y and is 3 above it, `colour` made RGB."""
    gt = rgb(3)
    s = encode_log_scale(np.linspace(0, 4, gt.shape[0])[:, None].repeat(gt.shape[1], 1))
    write_png(tmp_path / 'gt' / 'a.png', gt)
    write_png(tmp_path / 'lq' / 'a.png', gt[::2, ::2])
    for run, picture in (('gray', y_of(gt) + 3), ('colour', disturbed(gt, 1))):
        write_png(tmp_path / run / 'visualization' / SET / f'a_{run}.png', picture)
        write_png(tmp_path / run / 'visualization' / SET / 'a_log_scale.png', s)
        scores.write_scores(scores.Scores(name=run, scale=2, network='EDSR', weights='x', protocol='p', versions={},
                                          datasets={SET: scores.SetScores.of({'a': {'psnr': 30.}})}), tmp_path / run)
    return tmp_path


@pytest.fixture
def panels(monkeypatch):
    """What is drawn, by the first line of its title."""
    found, draw = {}, figures.draw_grid

    def grid(rows, *args, **kwargs):
        found.update({panel.title.partition('\n')[0]: panel.image for row in rows for panel in row
                      if isinstance(panel, figures.Panel)})
        return draw(rows, *args, **kwargs)

    for module in (figures, plots):
        monkeypatch.setattr(module, 'draw_grid', grid)
    return found


def kind(runs, name, *more, image=('--image', 'a')):
    return main(name, *more, '--dataset', SET, '--gt', runs / 'gt', *image, '--out', runs / 'f.png', '--dpi', 50)


def test_errors_are_those_of_y(runs, panels):
    assert kind(runs, 'errors', runs / 'gray', runs / 'colour') == 0
    gt, colour = rgb(3), disturbed(rgb(3), 1)
    np.testing.assert_array_equal(panels['gray: mean 3.00'], 3)
    error = np.abs(y_of(colour).astype(float) - y_of(gt))
    np.testing.assert_array_equal(panels[f'colour: mean {error.mean():.2f}'], error)
    np.testing.assert_array_equal(panels['ground truth'], y_of(gt)[..., None].repeat(3, 2))
    panels.clear()
    assert kind(runs, 'errors', runs / 'colour') == 0  # alone it is judged on RGB, as ever
    error = np.abs(colour.astype(float) - gt).mean(2)
    np.testing.assert_array_equal(panels[f'colour: mean {error.mean():.2f}'], error)
    np.testing.assert_array_equal(panels['ground truth'], gt)


def test_other_maps_are_those_of_y(runs, panels, monkeypatch):
    assert kind(runs, 'uncertainty', runs / 'gray') == 0
    np.testing.assert_array_equal(panels['|x − f|'], 3)
    assert kind(runs, 'weights', runs / 'gray', '--lq', runs / 'lq', '--offset', 1) == 0
    np.testing.assert_allclose(panels['error |x − f|'], 1, atol=1e-6)  # the error is 3 everywhere
    y = y_of(rgb(3)[::2, ::2]).astype(float)
    steps = np.pad(np.diff(y, axis=0), ((0, 1), (0, 0))), np.pad(np.diff(y, axis=1), ((0, 0), (0, 1)))
    gradient = np.hypot(*steps).repeat(2, 0).repeat(2, 1) / 255
    weight = gradient - gradient.min() + 1
    np.testing.assert_allclose(panels['LR gradient'], weight / weight.mean(), rtol=1e-5)
    assert kind(runs, 'gradients', runs / 'gray') == 0
    of_y = sobel(y_of(rgb(3))[..., None].repeat(3, 2))[0]
    inside = slice(1, -1), slice(1, -1)
    drawn = next(image for title, image in panels.items() if title.startswith('Gx'))
    np.testing.assert_allclose(drawn[inside], of_y[inside], atol=1e-4)

    kept = {}
    monkeypatch.setattr(drawing.variance_plots, 'variances_figure', lambda gt, sr, *rest, **_: kept.update(gt=gt, **sr))
    kind(runs, 'gv', runs / 'gray', image=())
    np.testing.assert_allclose(kept['gray'], kept['gt'], atol=1e-6)  # 3 more everywhere, which has no gradient


def test_tenths_are_those_of_y(runs):
    gray, colour = (open_run(str(runs / name)) for name in ('gray', 'colour'))
    found = where.errors_by_decile(gray, colour, gray, SET, runs / 'gt')
    assert found.reference == pytest.approx(np.full(10, 3.))
    inside = slice(2, -2), slice(2, -2)
    error = np.abs(y_of(disturbed(rgb(3), 1)).astype(float) - y_of(rgb(3)))[inside]
    assert found.method.mean() == pytest.approx(error.mean(), rel=0.02)  # rows of one s are not split over tenths


def test_a_page_shows_and_scores_y(tmp_path):
    folder, kept = write_comparison(tmp_path / 'records', tmp_path / 'results'), []
    for file in (tmp_path / 'results').rglob('*.png'):
        if not file.name.endswith('_log_scale.png'):
            kept.append(y_of(cv2.imread(str(file))[..., ::-1]))
            write_png(file, kept[-1])
    gt, lq = write_data(tmp_path / 'data')
    for file in folder.glob('*.json'):  # a test on Y need not say so
        record = json.loads(file.read_text())
        for block in record['measured']['metrics'].values():
            block['test_y_channel'] = False
        file.write_text(json.dumps(record))
    page, _ = html.make_page([folder], gt=gt, lq=lq)
    picture = next(p for p in data_of(page)['pictures'] if p['name'] == 'Set5/bird')
    layers = {layer['key']: layer for layer in picture['layers']}
    truth = y_of(cv2.imread(str(gt['Set5'][0] / 'bird.png'))[..., ::-1])
    assert np.array_equal(decoded(layers['gt']['src']), truth[..., None].repeat(3, 2))
    assert any(np.array_equal(decoded(layers['method:L1']['src'])[..., 0], image) for image in kept)
    bicubic = decoded(layers['bicubic']['src'])[..., 0]
    error = bicubic[4:-4, 4:-4].astype(float) - truth[4:-4, 4:-4]
    assert float(layers['bicubic']['scores'][0].split()[1]) == pytest.approx(
        10 * np.log10(255**2 / np.mean(error**2)), abs=0.006)


def on_y(folder, nets, **more):
    """Makes a run's networks ones of one channel, with weights of their own."""
    nets = {**nets, 'network_g': {'type': 'MSRResNet', 'num_in_ch': 1, 'num_out_ch': 1, 'num_feat': 4, 'num_block': 1,
                                  'upscale': 2}}
    if 'network_w' in nets:
        nets['network_w'] = {**nets['network_w'], 'num_in_ch': 1}
    for file in (folder / 'models').glob('*_[0-9]*.pth'):
        label = f'network_{file.name[4]}'
        block = {'backbone': nets['network_g'], **nets[label]} if label == 'network_u' else nets[label]
        torch.save({'params': build_network(dict(block)).state_dict()}, file)
    next(folder.glob('*.yml')).write_text(yaml.safe_dump({**nets, **more, 'datasets': {'train': {'color': 'y'}}}))
    return nets


def test_maps_of_trained_weights_are_those_of_y(sigma_folder, tlw_folder, panels, tmp_path):
    gt = rgb(0)
    for name, picture in (('gt', gt), ('lq', gt[::2, ::2])):
        write_png(tmp_path / f'{name}.png', picture)
    pair = '--gt', tmp_path / 'gt.png', '--lq', tmp_path / 'lq.png'
    y = torch.from_numpy(y_of(gt[::2, ::2]))[None, None].float() / 255

    options = yaml.safe_load((tlw_folder / 'train_TLW.yml').read_text())
    nets = on_y(tlw_folder, {key: options[key] for key in ('network_g', 'network_w')}, train=options['train'])
    found = tlw.tlw_maps(tlw.open_tlw_run(tlw_folder), 9, gt, gt[::2, ::2])
    net = build_network(dict(nets['network_g']))
    net.load_state_dict(torch.load(tlw_folder / 'models' / 'net_g_9.pth', weights_only=True)['params'])
    expected = (net(y).detach()[0, 0].clamp(0, 1) * 255).round().numpy()
    np.testing.assert_array_equal(found.sr[..., 0], expected)
    assert main('tlw', tlw_folder, *pair, '--out', tmp_path / 'f.png', '--dpi', 50) == 0
    np.testing.assert_array_equal(panels['iteration 9'], np.abs(expected - y_of(gt)))
    assert main('fixed_sum', tlw_folder, *pair, '--out', tmp_path / 'f.png', '--dpi', 50) == 0

    nets = on_y(sigma_folder, SIGMA_NETS, stage='sigma')
    net = build_network({'backbone': nets['network_g'], **nets['network_u']})
    net.load_state_dict(torch.load(sigma_folder / 'models' / 'net_u_2.pth', weights_only=True)['params'])
    means = sigma.sigma_pixels(sigma_folder, gt[::2, ::2]).means
    assert means[0] == pytest.approx(net(y)[1].mean().item(), rel=1e-5)
