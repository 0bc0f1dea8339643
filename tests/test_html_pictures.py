"""The pictures of the HTML report: which, whole or cut, scored, coloured and encoded."""
# ruff: noqa: F811 - fixtures that come from html_pages
import base64
import io
import re

import cv2
import numpy as np
import pytest
from html_pages import COLOURS, IMAGES, ROOT, data_of, picture, trial, write_comparison, write_png  # noqa: F401
from invented import invented_record
from PIL import Image

from udl_basicsr.reports import html, html_groups, html_pictures
from udl_basicsr.reports.pictures import ReportError


def decoded(url):
    kind, _, text = url.partition(',')
    assert kind == 'data:image/webp;base64'
    return np.array(Image.open(io.BytesIO(base64.b64decode(text))).convert('RGB'))


def test_pictures_are_the_files_bit_for_bit(trial):
    pictures = {p['name']: p for p in data_of(trial['page'])['pictures']}
    assert set(pictures) == {f'{d}/{i}' for d, images in IMAGES.items() for i in images}
    for dataset, images in IMAGES.items():
        for image in images:
            layers = {layer['key']: layer for layer in pictures[f'{dataset}/{image}']['layers']}
            assert list(layers)[:2] == ['lq', 'bicubic']
            assert list(layers)[-1] == 'gt'
            for method in COLOURS:
                assert np.array_equal(decoded(layers[f'method:{method}']['src']), picture(method, image))
            gt = cv2.imread(str(trial['gt'][dataset][0] / f'{image}.png'))[..., ::-1]
            assert np.array_equal(decoded(layers['gt']['src']), gt)
            assert np.array_equal(decoded(layers['lq']['src']), gt[::4, ::4])
            assert ['map' in layers[f'method:{m}'] for m in ('L1', 'UDL', 'evil')] == [False, True, False]
    layers = {layer['key']: layer for layer in pictures['Set5/bird']['layers']}
    assert layers['method:UDL']['scores'] == ['PSNR 30.30 dB', 'SSIM 0.7575']  # of the seed that is shown


def test_bicubic_is_scored_by_the_papers_protocol(trial):
    layers = {layer['key']: layer for layer in data_of(trial['page'])['pictures'][0]['layers']}

    def luma(image):
        y = np.float64(image) @ [65.481, 128.553, 24.966] / 255 + 16
        return y[4:-4, 4:-4]
    error = luma(decoded(layers['bicubic']['src'])) - luma(decoded(layers['gt']['src']))
    assert float(layers['bicubic']['scores'][0].split()[1]) == pytest.approx(
        10 * np.log10(255**2 / np.mean(error**2)), abs=0.006)


def test_maps_share_their_colours(trial):
    s = np.linspace(0, 3, 7).reshape(1, 7)
    colours = html_pictures.colour_map(s, 0, 3)
    assert colours[0, 0].tolist() == [68, 1, 84]
    assert colours[0, -1].tolist() == [253, 231, 37]
    assert (np.diff(colours.astype(int).sum(-1)[0]) > 0).all()  # brighter where s is larger
    assert np.array_equal(html_pictures.colour_map(s - 10, 0, 3)[0, -1], colours[0, 0])  # clipped
    css = (ROOT / 'udl_basicsr/reports/templates/report.css').read_text()
    stops = re.search(r'linear-gradient\(90deg, (#440154[^)]*)\)', css)[1].split(', ')
    assert [[int(c[i:i + 2], 16) for i in (1, 3, 5)] for c in stops] == html_pictures._STOPS.tolist()


def test_the_window_cuts_all_versions_alike(trial):
    for window in (16, 24, 30):
        pictures, *_ = html_pictures.choose_pictures(html_groups.read_groups([trial['folder']]), ['Set5/bird'],
                                                     trial['gt'], trial['lq'], window=window)
        layers = {layer['key']: decoded(layer['src']) for layer in pictures[0]['layers']}
        side = window // 4 * 4
        assert layers['gt'].shape == layers['method:L1'].shape == (side, side, 3)
        assert np.array_equal(layers['lq'].repeat(4, 0).repeat(4, 1), layers['gt'])
        assert pictures[0]['part'] == f'{side}×{side} of 64×64 px'


def test_the_window_begins_where_a_pixel_of_the_lq_begins():
    lq = np.zeros((30, 30, 3), np.uint8)
    lq[14:22, 11:19] = np.random.default_rng(0).integers(0, 256, (8, 8, 3))  # the detail, at no multiple of 8
    gt = lq.repeat(3, 0).repeat(3, 1)
    group = html_groups.Group('', [invented_record(method='L1', scale=3, datasets={})], '')
    whole = html_pictures.Picture(group, 'Set5', 'bird', (html_pictures.Layer('lq', '', lq, {}),
                                                          html_pictures.Layer('gt', '', gt, {}, gt[..., 0])), (90, 90))
    small, large = html_pictures._cut(whole, 25).layers
    assert large.image.shape == (24, 24, 3)
    assert large.image.any()
    assert np.array_equal(small.image.repeat(3, 0).repeat(3, 1), large.image)
    assert np.array_equal(large.log_scale, large.image[..., 0])


def test_lossy_pictures_are_smaller_and_say_so(trial):
    generator = np.random.default_rng(1)
    noise = cv2.GaussianBlur(generator.integers(0, 256, (128, 128, 3), dtype=np.uint8), (0, 0), 1)
    assert len(html_pictures.encode(noise, 50)) < 0.3 * len(html_pictures.encode(noise, None))
    assert np.array_equal(decoded(html_pictures.encode(noise, None)), noise)
    page, notes = html.make_page([trial['folder']], quality=50)
    assert 'with some loss (WebP, quality 50)' in page
    assert 'with some loss' in notes[0]
    assert 'without loss' in trial['notes'][0]


def test_what_does_not_fit_is_left_out_and_named(trial):
    def size_of(pictures):
        return sum(len(layer['src']) + len(layer.get('map', '')) for p in pictures for layer in p['layers'])

    groups = html_groups.read_groups([trial['folder']])
    whole = size_of(html_pictures.choose_pictures(groups)[0])
    pictures, _, notes = html_pictures.choose_pictures(groups, limit=whole - 1)
    assert len(pictures) == 2
    assert size_of(pictures) < whole
    assert 'Left out to stay below' in notes[0]
    for name in {f'{d}/{i}' for d in IMAGES for i in IMAGES[d]} - {p['name'] for p in pictures}:
        assert name in notes[0]
    named, _, notes = html_pictures.choose_pictures(groups, ['Set14/comic'], limit=1)  # asked for by name: no limit
    assert [p['name'] for p in named] == ['Set14/comic']
    assert not notes


def test_seed_chooses_whose_pictures(trial):
    groups = html_groups.read_groups([trial['folder']])
    pictures, *_ = html_pictures.choose_pictures(groups, ['Set5/bird'], seed=1)
    assert {layer['key']: layer['scores'][0] for layer in pictures[0]['layers']} == {
        'method:L1': 'PSNR 30.20 dB', 'method:UDL': 'PSNR 30.40 dB'}  # the third method has no seed 1


def test_pictures_that_spread_most_come_first():
    def record(method, **scores):
        return invented_record(method=method, reference='a', datasets={
            'X': {'images': {k: {'psnr': v} for k, v in scores.items()}, 'mean': {'psnr': 0.}}})
    group = html_groups.Group('', [record('a', p=30, q=30, r=30), record('b', p=30.1, q=32, r=30.5)], '')
    assert html_pictures._order(group, 'X') == ['q', 'r', 'p']
    group = html_groups.Group('', [record('b', p=30.1, q=32, r=30.5)], '')
    assert html_pictures._order(group, 'X') == ['p', 'r', 'q']  # of one run the worst


def test_names_do_not_lead_out_of_the_folder(tmp_path):
    write_png(tmp_path / 'secret' / 'a_run.png', picture('L1'))
    (tmp_path / 'results' / 'visualization' / 'Set5').mkdir(parents=True)
    write_png(tmp_path / 'results' / 'a_run.png', picture('L1'))
    for dataset, image in (('Set5', '../../../secret/a'), ('..', 'a'), ('../../secret', 'a')):
        scores = {'images': {image: {'psnr': 30.}}, 'mean': {'psnr': 30.}}
        record = invented_record(method='a', reference='a', datasets={dataset: scores},
                                 pictures=str(tmp_path / 'results' / 'visualization'))
        pictures, *_ = html_pictures.choose_pictures([html_groups.Group('', [record], '')])
        assert not pictures


def test_a_clone_without_pictures_has_tables_and_curves(tmp_path):
    page, notes = html.make_page([write_comparison(tmp_path / 'trial')])
    assert 'udl compare' in page
    assert 'udl compare' in notes[0]
    data = data_of(page)
    assert not data['pictures']
    assert data['curves']
    assert '<b>PSNR</b>' in page


def test_a_picture_that_is_too_wide_for_webp(tmp_path):
    write_png(tmp_path / 'p' / 'S' / 'strip_x.png', np.zeros((8, 16384, 3), np.uint8))
    record = invented_record(method='L1', datasets={'S': {'images': {'strip': {'psnr': 30.}}, 'mean': {'psnr': 30.}}},
                             pictures=str(tmp_path / 'p'))
    group = html_groups.Group('', [record], '')
    with pytest.raises(ReportError, match=r'S/strip: 16384×8 pixels are more than the 16383 .* smaller --window'):
        html_pictures.choose_pictures([group], window=0)
    assert html_pictures.choose_pictures([group])[0][0]['part'] == '8×8 of 16384×8 px'
