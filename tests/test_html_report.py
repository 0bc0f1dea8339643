"""The HTML report: what is in it, what must not be in it, and how it behaves in a browser where one is found."""
import base64
import hashlib
import importlib.util
import io
import json
import math
import re
import shutil
import statistics
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from invented import invented_record
from PIL import Image

from udl_basicsr.experiments.record_files import Curve, Record, read_record, read_records, write_record
from udl_basicsr.experiments.statistics import paired_difference
from udl_basicsr.functional.log_scale_maps import encode_log_scale
from udl_basicsr.reports import html, html_groups, html_intervals, html_pictures, method_styles
from udl_basicsr.utils.metric_facts import MetricFacts, facts_by_name
from udl_basicsr.utils.scores import SetScores, mean_scores

ROOT = Path(__file__).parents[1]
HOSTILE = '<script>alert(1)</script>'
HOSTILE_IMAGE = '"><img src=x onerror=alert(1)>'
COLOURS = {'L1': (200, 40, 40), 'UDL': (40, 60, 210), 'evil': (40, 190, 60)}  # of the pictures, RGB
SIZE = 64  # of the GT
MEASURED = {'rounded': True, 'metrics': {m: {'type': f'calculate_{m}', 'crop_border': 4, 'test_y_channel': True}
                                         for m in ('psnr', 'ssim')}}
LABELS = {'L1': 'L1', 'UDL': 'ESU → UDL', 'evil': HOSTILE}
SEEDS = {'L1': (0, 1), 'UDL': (0, 1), 'evil': (0, )}
# PSNR by method, seed and image of two data sets: nothing that a formula of ours made.
PSNR = {'Set5': {'L1': [[30.0, 27.0], [30.2, 27.1]], 'UDL': [[30.3, 27.2], [30.4, 27.4]], 'evil': [[29.0, 26.0]]},
        'Set14': {'L1': [[25.0], [25.4]], 'UDL': [[24.9], [25.5]], 'evil': [[25.9]]}}
IMAGES = {'Set5': ['bird', HOSTILE_IMAGE], 'Set14': ['comic']}


def script():
    return importlib.import_module('udl_basicsr.cli.report')


def write_png(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image)


def picture(method, image='bird'):
    """A picture of one colour, with a pattern that tells the images apart."""
    array = np.full((SIZE, SIZE, 3), COLOURS[method], np.uint8)
    array[:8, :8] = np.arange(8)[:, None] * len(image)
    return array


def write_comparison(folder, pictures=None):
    """Records of three methods on two data sets, and their pictures in `pictures`."""
    for method, seeds in SEEDS.items():
        for index, seed in enumerate(seeds):
            datasets = {}
            for name, values in PSNR.items():
                images = {image: {'psnr': psnr, 'ssim': psnr / 40}
                          for image, psnr in zip(IMAGES[name], values[method][index], strict=True)}
                datasets[name] = {'images': images, 'mean': mean_scores(images)}
            name = f'{method}_x4_seed{seed}'
            kept = None
            if pictures:
                kept = str(pictures / name / 'visualization')
                for dataset, images in IMAGES.items():
                    for image in images:
                        write_png(Path(kept) / dataset / f'{image}_{name}.png', picture(method, image))
                        if method == 'UDL':
                            s = np.linspace(0, 3, SIZE * SIZE).reshape(SIZE, SIZE)
                            write_png(Path(kept) / dataset / f'{image}_log_scale.png', encode_log_scale(s))
            stages = [{'name': 'esu', 'iterations': 100}, {'name': 'udl', 'iterations': 200}]
            write_record(Record.from_json({
                'name': name, 'scale': 4, 'network': 'EDSR', 'weights': 'net_g_latest.pth', 'protocol':
                'PSNR/SSIM on Y (ITU-R BT.601), border of 4 px cropped, SR rounded to 8 bits',
                'measured': MEASURED, 'datasets': datasets,
                'versions': {'torch': '2.4'}, 'comparison': 'trial', 'method': method, 'label': LABELS[method],
                'reference': 'L1', 'seed': seed, 'degradation': 'BI', 'network_title': 'EDSR 4×16',
                'parameters': 51523, 'stages': stages if method == 'UDL' else [{'name': 'plain', 'iterations': 300}],
                'options': [], 'initial_weights': f'w{seed}', 'data_order': f'd{seed}', 'seconds': 90.,
                'machine': '2 CPU cores', 'date': '2026-11-21', 'commit': 'abc1234', 'pictures': kept, 'curve': {
                    'loss': {'iter': [100, 200, 300], 'l_pix': [.1, .05, .04 + .001 * seed]},
                    'val': {'Set5': {'iter': [100, 200, 300], 'psnr': [26., 27., PSNR['Set5'][method][index][0]]}}},
            }), folder)
    return folder


def write_data(folder):
    """GT and LQ of the data sets; the LQ's blocks are the GT's, so that a shift would show."""
    generator = np.random.default_rng(0)
    for dataset, images in IMAGES.items():
        for image in images:
            lq = generator.integers(0, 256, (SIZE // 4, SIZE // 4, 3), dtype=np.uint8)
            write_png(folder / dataset / 'LQ' / f'{image}.png', lq)
            write_png(folder / dataset / 'GT' / f'{image}.png', lq.repeat(4, 0).repeat(4, 1))
    return {d: [folder / d / 'GT'] for d in IMAGES}, {d: [folder / d / 'LQ'] for d in IMAGES}


class Parsed(HTMLParser):
    """The elements of a page, and the text of those whose text is asked for."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.open = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.texts.append('')
        if tag not in ('meta', 'link', 'img', 'input', 'br'):
            self.open.append((tag, len(self.elements) - 1))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.texts.append('')

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for _, index in self.open:
            self.texts[index] += data

    def all(self, tag):
        return [(attrs, text) for (name, attrs), text in zip(self.elements, self.texts, strict=True) if name == tag]


def data_of(page):
    return json.loads(next(text for attrs, text in Parsed(page).all('script') if attrs.get('id') == 'data'))


def decoded(url):
    kind, _, text = url.partition(',')
    assert kind == 'data:image/webp;base64'
    return np.array(Image.open(io.BytesIO(base64.b64decode(text))).convert('RGB'))


@pytest.fixture(scope='module')
def trial(tmp_path_factory):
    root = tmp_path_factory.mktemp('trial')
    folder = write_comparison(root / 'records', root / 'results')
    gt, lq = write_data(root / 'datasets')
    page, notes = html.make_page([folder], gt=gt, lq=lq)
    return {'root': root, 'folder': folder, 'gt': gt, 'lq': lq, 'page': page, 'notes': notes}


# ---------------------------------------------------------------- nothing from outside

def test_the_page_needs_and_loads_nothing(trial):
    parsed = Parsed(trial['page'])
    for tag, attrs in parsed.elements:
        for name, value in attrs.items():
            assert not name.startswith('on'), f'{tag} {name}'
            if name in ('src', 'href', 'srcset', 'action', 'data', 'poster', 'background', 'xlink:href'):
                assert value.startswith(('data:', '#')), f'{tag} {name}={value[:60]}'
        assert tag not in ('iframe', 'object', 'embed', 'base', 'form')
    (_, style), = parsed.all('style')
    assert not re.search(r'url\(|@import|https?:', style)
    code = next(text for attrs, text in parsed.all('script') if 'type' not in attrs)
    # The one address in it names the language of vector graphics and is never fetched.
    assert re.findall(r'https?://[^\']*', code) == ['http://www.w3.org/2000/svg']
    assert not re.search(r'\b(fetch|XMLHttpRequest|WebSocket|EventSource|sendBeacon|eval|Function|Worker|innerHTML|'
                         r'outerHTML|insertAdjacentHTML)\b|document\.write|import\s*[({*]', code)


def test_the_policy_allows_the_pages_own_script_and_style_alone(trial):
    parsed = Parsed(trial['page'])
    policy = next(a['content'] for a, _ in parsed.all('meta') if a.get('http-equiv') == 'Content-Security-Policy')
    rules = dict(rule.strip().split(' ', 1) for rule in policy.split(';'))

    def sha(text):
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert rules['default-src'] == "'none'"
    assert rules['img-src'] == 'data:'
    assert rules['style-src'] == sha(parsed.all('style')[0][1])
    assert rules['script-src'] == sha(next(t for a, t in parsed.all('script') if 'type' not in a))
    assert not [a for _, a in parsed.elements if 'style' in a], 'the policy would drop it'


def test_names_from_files_stay_text(trial):
    parsed = Parsed(trial['page'])
    assert [a.get('type') for a, _ in parsed.all('script')] == ['application/json', None]
    assert not [a for a, _ in parsed.all('img') if a.get('src') == 'x']
    assert HOSTILE not in trial['page']
    assert any(HOSTILE in text for _, text in parsed.all('th'))
    data = data_of(trial['page'])
    assert data['curves'][0]['methods'] == ['L1', 'ESU → UDL', HOSTILE]
    assert f'Set5/{HOSTILE_IMAGE}' in [p['name'] for p in data['pictures']]


def test_json_cannot_end_its_element():
    given = {'b': '</script><!--\u2028&', 'a': 'ESU → UDL'}
    text = html.templates().from_string('{{ given|tojson }}').render(given=given)
    assert not set('<>&') & set(text)
    assert json.loads(text) == given
    assert list(json.loads(text)) == ['b', 'a']


def hostile(records):
    """Every name in the records that a user chooses, now with markup that runs where one escape is forgotten."""
    def named(name):
        return f'{name}{HOSTILE}"\'{{{{ 7 * 7 }}}}'

    def scores(values):
        return {named(metric): value for metric, value in values.items()}

    texts = ('name', 'label', 'network', 'network_title', 'degradation', 'weights', 'comparison', 'machine', 'date',
             'commit', 'protocol', 'method', 'reference')
    return [replace(
        r, **{key: named(getattr(r, key)) for key in texts},
        stages=[replace(stage, name=named(stage.name)) for stage in r.stages],
        versions={named(k): named(v) for k, v in r.versions.items()},
        metrics={named(m): MetricFacts(True, 2, named('dB')) for m in ('psnr', 'ssim')},
        datasets={named(d): SetScores({named(i): scores(x) for i, x in v.images.items()}, scores(v.mean))
                  for d, v in r.datasets.items()},
        curve=Curve({'iter': [1, 2], named('l_pix'): [.2, .1]},
                    {named('Set5'): {'iter': [1, 2], named('psnr'): [26., 27.]}})) for r in records]


def test_no_name_that_a_user_chooses_becomes_markup(tmp_path, monkeypatch):
    records = hostile(read_records(write_comparison(tmp_path / 'trial')))
    for chosen in (records, [r for r in records if r.seed == 0][:2]):  # a few runs have tables image by image
        monkeypatch.setattr(html_groups, 'read_records', lambda folder, chosen=chosen: chosen)
        page, _ = html.make_page([tmp_path / 'trial'])
        assert '<script>alert' not in page
        parsed = Parsed(page)
        assert [a.get('type') for a, _ in parsed.all('script')] == ['application/json', None]
        assert not [name for _, attrs in parsed.elements for name in attrs if name.startswith('on')]
        seen = ' '.join(text for _, text in parsed.all('html'))
        assert '{{ 7 * 7 }}' in seen  # a name is no template either
        for word in ('psnr', 'dB', 'Set5', 'L1', 'EDSR 4×16', '2 CPU cores', 'abc1234', 'esu', '2.4'):
            assert f'{word}{HOSTILE}'.lower() in seen.lower(), word


def test_templates_escape_everything():
    """Nothing switches the escaping off, but for the style and the script of the package itself."""
    folder = ROOT / 'udl_basicsr/reports/templates'
    for file in folder.glob('*.html'):
        assert not re.search(r'\|\s*(safe|escape|forceescape)|autoescape', file.read_text(encoding='utf-8')), file
    code = ''.join(file.read_text(encoding='utf-8') for file in (ROOT / 'udl_basicsr/reports').glob('*.py'))
    assert re.findall(r'Markup\((\w+)\)', code) == ['style', 'script']
    assert html.templates().from_string('{{ x }}').render(x='<b>') == '&lt;b&gt;'


# ---------------------------------------------------------------- figures

def test_table_holds_the_means_and_marks_the_best(trial):
    tables = [t for t in trial['page'].split('<table class="sortable">')[1:] if '<b>PSNR</b>' in t]
    rows = re.findall(r'<tr[^>]*>(<th scope="row".*?)</tr>', tables[0])
    found = {}
    for row in rows:
        label = re.search(r'data-v="([^"]*)"', row)[1]
        cells = re.findall(r'<td data-v="([^"]*)"><(b|u|span)>([^<]*)</', row)
        found[label] = [(float(v), tag, text) for v, tag, text in cells]
    flat = {m: [statistics.fmean(v for seed in PSNR[d][m] for v in seed) for d in PSNR] for m in PSNR['Set5']}
    escaped = {'L1': 'L1', 'UDL': 'ESU → UDL', 'evil': '&lt;script&gt;alert(1)&lt;/script&gt;'}
    for method, values in flat.items():
        assert [v for v, *_ in found[escaped[method]]] == pytest.approx(values)
        assert [text for *_, text in found[escaped[method]]] == [f'{v:.2f}' for v in values]
    assert [tag for _, tag, _ in found['ESU → UDL']] == ['b', 'u']  # 30.83/2; 25.20 and 25.20 tie behind 25.90
    assert [tag for _, tag, _ in found['L1']] == ['u', 'u']
    assert [tag for _, tag, _ in found[escaped['evil']]] == ['span', 'b']


def test_differences_are_those_of_the_statistics(trial):
    records = read_records(trial['folder'])
    for dataset in PSNR:
        d = paired_difference(records, 'UDL', dataset, 'psnr', 4)
        text = f'{html_groups.signed(d["mean"], 3)}, 95 % interval [{html_groups.signed(d["low"], 3)}, ' \
               f'{html_groups.signed(d["high"], 3)}], ahead on {d["ahead"]} of {d["pairs"]} pairs of seed and image, ' \
               f'over seeds [{html_groups.signed(d["seed_low"], 3)}, {html_groups.signed(d["seed_high"], 3)}]'
        assert f'<title>ESU → UDL: {text}</title>' in trial['page']
    # by hand: Set5 +0.3 +0.2 (seed 0), +0.2 +0.3 (seed 1); every resample lies above zero
    assert 'ESU → UDL: +0.250, 95 % interval [+0.2' in trial['page']
    assert re.search(r'<dt>Undecided.*?<span>ESU → UDL</span>', trial['page'])  # ahead on Set5 only


def test_what_was_run_is_said(trial):
    facts = re.findall(r'<dt>([^<]*)</dt><dd>([^<]*)</dd>', trial['page'])
    assert ('Budget', '300 iterations') in facts
    assert ('Seeds', '0, 1') in facts
    assert ('Test data', 'Set5 (2), Set14 (1)') in facts
    assert ('Network', 'EDSR 4×16') in facts
    assert 'esu 100 → udl 200' in trial['page']


@pytest.mark.parametrize(('value', 'text'), [(0.1234, '+0.123'), (-0.1, '−0.100'), (-0.0001, '0.000'), (0., '0.000')])
def test_signed(value, text):
    assert html_groups.signed(value, 3) == text


@pytest.mark.parametrize(('metric', 'ends', 'verdict', 'of_weights'), [
    ('psnr', (.1, .2, .1, .3), 'ahead', 'ahead'), ('psnr', (-.2, -.1, -.3, -.1), 'behind', 'behind'),
    ('psnr', (-.1, .1, .1, .2), 'open', 'open'), ('psnr', (.1, .2, -.1, .3), 'open', 'ahead'),
    ('lpips', (.1, .2, .1, .3), 'behind', 'behind'), ('lpips', (-.2, -.1, -.3, -.1), 'ahead', 'ahead'),
    ('my_lpips', (.1, .2, .1, .3), 'open', 'open'),
    ('ssim', (0., .1, .1, .2), 'open', 'open'), ('psnr', (.1, .2, math.nan, math.nan), 'open', 'ahead')])
def test_verdict(metric, ends, verdict, of_weights):
    difference = dict(zip(('low', 'high', 'seed_low', 'seed_high'), ends, strict=True), facts=facts_by_name(metric))
    assert html_groups.verdict(difference) == verdict
    assert html_groups.verdict(difference, trained=False) == of_weights


def test_axis():
    assert html_intervals.axis_ticks(-.11, .23) == pytest.approx([-.1, 0., .1, .2])
    assert html_intervals.axis_ticks(0, 7) == [0, 2, 4, 6]
    low, high = html_intervals.axis_range([(-.1, .05), (0., .2)])
    assert (low, high) == pytest.approx((-.115, .215))
    low, high = html_intervals.axis_range([(-.1, .05), (0., .2), (-.1, .1), (-5., -4.)])  # one far off is cut
    assert low > -.4
    low, high = html_intervals.axis_range([(0., 0.)])
    assert low < 0 < high  # the same figures in both: nothing to divide by


def test_curves_are_means_and_paired_differences(trial):
    charts = {chart['title']: chart for chart in data_of(trial['page'])['curves'][0]['charts']}
    assert list(charts) == ['Set5: PSNR', 'Training: l_pix']
    lines = {line['m']: line for line in charts['Set5: PSNR']['lines']}
    methods = data_of(trial['page'])['curves'][0]['methods']
    udl, evil = lines[methods.index('ESU → UDL')], lines[methods.index(HOSTILE)]
    assert udl['iter'] == [100, 200, 300]
    assert udl['mean'] == pytest.approx([26, 27, (30.3 + 30.4) / 2])
    assert (udl['low'][2], udl['high'][2]) == pytest.approx((30.3, 30.4))
    assert udl['delta'] == pytest.approx([0, 0, (.3 + .2) / 2])
    assert evil['delta'][2] == pytest.approx(29 - 30)  # seed 0 alone, against seed 0 alone
    assert data_of(trial['page'])['curves'][0]['switches'][methods.index('ESU → UDL')] == [100]


# ---------------------------------------------------------------- pictures

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


# ---------------------------------------------------------------- test runs

@pytest.fixture
def runs(tmp_path):
    """Two test runs, as test.py leaves them."""
    gt, lq = write_data(tmp_path / 'datasets')
    for method in ('L1', 'UDL'):
        folder = tmp_path / 'results' / method
        images = {'bird': {'psnr': PSNR['Set5'][method][0][0], 'ssim': .9}}
        for image in images:
            write_png(folder / 'visualization' / 'Set5' / f'{image}_{method}.png', picture(method, image))
        (folder / 'scores.json').write_text(json.dumps({
            'name': method, 'scale': 4, 'network': 'EDSR', 'weights': 'w', 'protocol': 'PSNR on Y', 'versions': {},
            'datasets': {'Set5': {'images': images, 'mean': mean_scores(images)}}}))
        (folder / 'test.yml').write_text(f'datasets:\n  test_1:\n    name: Set5\n    dataroot_gt: {gt["Set5"][0]}\n'
                                         f'    dataroot_lq: {lq["Set5"][0]}\n')
    return tmp_path / 'results'


def test_report_of_test_runs(runs, capsys):
    assert script().main([str(runs / 'L1'), str(runs / 'UDL')]) == 0
    assert re.search(r'Wrote .*report\.html, 0\.\d MB', capsys.readouterr().out)
    page = (runs / 'L1' / 'report.html').read_text(encoding='utf-8')
    layers = [layer['key'] for layer in data_of(page)['pictures'][0]['layers']]
    assert layers == ['lq', 'bicubic', 'method:L1', 'method:UDL', 'gt']  # the data are those of test.yml
    assert 'PSNR minus that of L1' in page
    assert '+0.300' in page
    assert 'Set5, image by image' in page


def test_report_of_one_run(runs):
    page, _ = html.make_page([runs / 'UDL'])
    assert 'minus that' not in page
    assert 'Ahead of' not in page
    assert '30.30' in page


# ---------------------------------------------------------------- wrong input

@pytest.mark.parametrize(('args', 'message'), [
    (['{root}/nowhere'], 'no such folder. Expected docs/results/<comparison>'),
    (['{root}'], 'no records'),
    (['{folder}', '--images', 'Set5/dog'], 'there is no Set5/dog. There are: '),
    (['{folder}', '--gt', 'Set6={root}'], '--gt: there is no data set Set6. There are: '),
    (['{folder}', '--gt', 'Set5={root}/nowhere'], 'nowhere: no such folder'),
    (['{folder}', '--gt', 'Set5={root}/datasets/Set14/GT'], 'has no bird.png'),
    (['{folder}', '--gt', 'Set5={root}/datasets/Set5/LQ'], 'but its GT should have 64×64'),
    (['{folder}', '--lq', 'Set5={root}/datasets/Set5/GT'], 'but its LQ should have 16×16'),
    (['{folder}', '--seed', '7'], 'there is no run of seed 7. There are: 0, 1'),
])
def test_wrong_input_is_refused_and_nothing_is_touched(trial, tmp_path, capsys, args, message):
    out = tmp_path / 'new' / 'report.html'
    kept = tmp_path / 'kept.html'
    kept.write_text('old')
    for target in (out, kept):
        status = script().main([a.format(**trial) for a in args] + ['--out', str(target)])
        assert status == 2
        assert message in capsys.readouterr().err
    assert not out.parent.exists()
    assert kept.read_text() == 'old'


@pytest.mark.parametrize('args', [['--gt', 'Set5'], ['--quality', '0'], ['--quality', 'x'], ['--window', '-1']])
def test_wrong_arguments(trial, args):
    with pytest.raises(SystemExit) as error:
        script().main([str(trial['folder']), *args])
    assert error.value.code == 2


def test_a_picture_that_no_run_kept(tmp_path, capsys):
    folder = write_comparison(tmp_path / 'trial')
    assert script().main([str(folder), '--images', 'Set5/bird']) == 2
    assert 'Set5/bird: no run kept this picture here. They are made by: udl compare' in capsys.readouterr().err


def test_pictures_of_other_sizes_are_refused(tmp_path, capsys):
    folder = write_comparison(tmp_path / 'trial', tmp_path / 'results')
    write_png(tmp_path / 'results' / 'UDL_x4_seed0' / 'visualization' / 'Set14' / 'comic_UDL_x4_seed0.png',
              picture('UDL')[:32])
    assert script().main([str(folder)]) == 2
    assert 'Set14/comic: ESU → UDL has a picture of 64×32 pixels' in capsys.readouterr().err


@pytest.mark.parametrize(('change', 'message'), [
    (lambda r: r['stages'].append(3), '`stages` should hold objects'),
    (lambda r: r['stages'].append({'name': 'udl'}), '`stages.iterations` should be of type int, got None'),
    (lambda r: r.update(run_time={'ms': 1, 'size': [8], 'device': 'CPU'}), '`run_time.size` should be a height'),
    (lambda r: r.update(peak_memory=3), '`peak_memory` should be of type dict'),
    (lambda r: r['curve'].update(loss=3), '`curve.loss` should be of type dict'),
    (lambda r: r['curve']['val']['Set5']['psnr'].pop(), 'a curve is malformed'),
    (lambda r: r.update(label=3), '`label` should be of type str'),
])
def test_malformed_records_are_refused(tmp_path, capsys, change, message):
    folder = write_comparison(tmp_path / 'trial')
    file = folder / 'UDL_x4_seed0.json'
    record = json.loads(file.read_text(encoding='utf-8'))
    change(record)
    file.write_text(json.dumps(record))
    assert script().main([str(folder)]) == 2
    assert message in capsys.readouterr().err


def test_a_failed_write_leaves_the_old_page(trial, tmp_path, monkeypatch, capsys):
    out = tmp_path / 'report.html'
    out.write_text('old')

    def full(*_):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr('os.replace', full)
    assert script().main([str(trial['folder']), '--out', str(out)]) == 1
    assert 'No space left on device' in capsys.readouterr().err
    assert out.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [out]


def test_templates_are_installed_with_the_package():
    assert "'templates/*'" in (ROOT / 'setup.py').read_text(encoding='utf-8')


# ---------------------------------------------------------------- in a browser

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)
in_browser = pytest.mark.skipif(CHROMIUM is None, reason='no Chromium is installed (Debian: apt install chromium)')


class Browser:
    """A page in a headless Chromium, driven by Playwright."""

    def __init__(self, browser):
        self.browser, self.context = browser, None

    def open(self, path, width=1280, height=900, phone=False, dark=False, still=False):
        if self.context:
            self.context.close()
        self.context = self.browser.new_context(
            viewport={'width': width, 'height': height}, is_mobile=phone, has_touch=phone,
            color_scheme='dark' if dark else 'light', reduced_motion='reduce' if still else 'no-preference')
        self.page, self.requested, self.complaints = self.context.new_page(), [], []
        self.protocol = self.context.new_cdp_session(self.page)
        self.page.on('request', lambda request: self.requested.append(request.url))
        self.page.on('pageerror', lambda error: self.complaints.append(str(error)))
        self.page.on('console', lambda message: self.complaints.append(message.text))
        self.page.goto(path.as_uri())
        self.settle()

    def js(self, code):
        return self.page.evaluate(code)

    def settle(self):
        self.js('new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))')

    def key(self, key):
        self.page.keyboard.press(key)

    def box(self, selector):
        """(left, top, width, height) on the screen, after scrolling there."""
        return self.js(f"""(() => {{ const node = document.querySelector({json.dumps(selector)});
            node.scrollIntoView({{block: 'center', behavior: 'instant'}}); const r = node.getBoundingClientRect();
            return [r.left, r.top, r.width, r.height]; }})()""")

    def move(self, x, y):
        self.page.mouse.move(x, y)

    def wheel(self, x, y):
        """One step upwards."""
        self.move(x, y)
        self.page.mouse.wheel(0, -100)
        self.settle()

    def drag(self, start, end):
        self.move(*start)
        self.page.mouse.down()
        self.page.mouse.move(*end, steps=2)
        self.page.mouse.up()

    def touch(self, kind, *points):
        """Fingers, which Playwright itself has one of."""
        self.protocol.send('Input.dispatchTouchEvent', {
            'type': kind, 'touchPoints': [{'x': a, 'y': b, 'id': i} for i, (a, b) in enumerate(points)]})

    def screen(self):
        """What is seen, (H, W, 3) RGB."""
        self.settle()
        return np.array(Image.open(io.BytesIO(self.page.screenshot())).convert('RGB')).astype(int)


@pytest.fixture(scope='module')
def browser():
    api = pytest.importorskip('playwright.sync_api', reason='pip install playwright')
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        except api.Error as error:
            pytest.skip(f'{CHROMIUM} does not start: {error}')
        yield Browser(browser)
        browser.close()


@pytest.fixture(scope='module')
def file(trial):
    path = trial['root'] / 'report.html'
    path.write_text(trial['page'], encoding='utf-8')
    return path


def choose(browser, side, key):
    browser.js(f"""(() => {{ const s = document.getElementById('{side}'); s.value = '{key}';
                   s.dispatchEvent(new Event('change')); }})()""")


def close(pixel, colour, tolerance=3):
    return np.abs(np.subtract(pixel, colour)).max() <= tolerance


@in_browser
def test_opens_from_disk_without_a_request_or_a_complaint(browser, file):
    browser.open(file)
    assert browser.js('document.title').startswith('trial: losses compared')
    assert not browser.complaints
    assert all(url.startswith(('file:', 'data:')) for url in browser.requested)
    assert browser.js('[...document.images].every(i => !i.getAttribute("src") || i.complete)')
    # Every control has a name that is read out.
    nameless = browser.js("""[...document.querySelectorAll('button, select, input, [role=slider], [role=application]')]
        .filter(n => !(n.ariaLabel || n.textContent.trim() || n.labels?.[0]?.textContent.trim() ||
        n.getAttribute('aria-label'))).map(n => n.outerHTML)""")
    assert nameless == []


@in_browser
def test_the_line_divides_what_is_seen(browser, file):
    browser.open(file)
    choose(browser, 'left', 'method:L1')
    choose(browser, 'right', 'method:UDL')
    x, y, w, h = browser.box('#stage')
    row, left, right = int(y + h * .75), int(x + w * .4), int(x + w * .6)
    screen = browser.screen()
    assert close(screen[row, left], COLOURS['L1'])
    assert close(screen[row, right], COLOURS['UDL'])
    browser.drag((x + w / 2, y + h / 2), (x + w * .7, y + h / 2))
    assert close(browser.screen()[row, right], COLOURS['L1'])
    assert browser.js("document.getElementById('divider').ariaValueNow") == '70'
    browser.js("document.getElementById('divider').focus()")
    for _ in range(20):
        browser.key('ArrowLeft')
    assert browser.js("document.getElementById('divider').getAttribute('aria-valuenow')") == '30'
    assert close(browser.screen()[row, left], COLOURS['UDL'])
    browser.key('s')
    assert browser.js("document.getElementById('left').value") == 'method:UDL'
    assert close(browser.screen()[row, left], COLOURS['L1'])
    assert 'evil' not in browser.js("document.getElementById('stage').textContent")


TRANSFORMS = """(() => ['.pane.a', '.pane.b'].map(p => { const box = document.querySelector(p).getBoundingClientRect();
    const m = new DOMMatrix(getComputedStyle(document.querySelector(p + ' img')).transform);
    return [m.a, (box.width / 2 - m.e) / m.a, (box.height / 2 - m.f) / m.a]; }))()"""


@in_browser
@pytest.mark.parametrize('mode', ['slider', 'sides'])
def test_both_sides_zoom_and_move_together(browser, file, mode):
    browser.open(file)
    browser.js(f"document.querySelector('[name=mode][value={mode}]').click()")
    before = browser.js(TRANSFORMS)
    browser.js("document.getElementById('stage').focus()")
    for key in ('+', '+', '+', 'ArrowRight', 'ArrowDown'):
        browser.key(key)
    a, b = browser.js(TRANSFORMS)
    assert a == pytest.approx(b)
    assert a[0] == pytest.approx(before[0][0] * 1.4**3)
    assert a[1] > 32 or mode == 'slider'  # to the right and down; a wide slider may have no room to the side
    assert a[2] > 32
    # The small pictures show the same point in their middles.
    middles = browser.js("""[...document.querySelectorAll('#strip .view')].map(v => {
        const m = new DOMMatrix(getComputedStyle(v.querySelector('img')).transform);
        return (v.clientHeight / 2 - m.f) / m.a; })""")
    assert len(set(np.round(middles, 3))) == 1
    browser.key('0')
    assert browser.js(TRANSFORMS) == before


@in_browser
def test_the_wheel_scrolls_the_page_until_the_picture_has_the_focus(browser, file):
    browser.open(file)
    x, y, w, h = browser.box('#stage')
    zoom = browser.js(TRANSFORMS)[0][0]
    browser.wheel(x + w / 2, y + h / 3)
    assert browser.js(TRANSFORMS)[0][0] == zoom
    assert 'Ctrl' in browser.js("document.getElementById('hint').textContent")
    browser.js("document.getElementById('stage').focus({preventScroll: true})")
    x, y, w, h = browser.box('#stage')
    browser.wheel(x + w / 2, y + h / 2)
    assert browser.js(TRANSFORMS)[0][0] > 1.2 * zoom


@in_browser
def test_two_fingers_zoom_on_a_phone(browser, file):
    browser.open(file, 390, 844, phone=True)
    x, y, w, h = browser.box('#stage')
    zoom = browser.js(TRANSFORMS)[0][0]

    middle, centre = y + h * .3, x + w / 2
    browser.touch('touchStart', (centre - 30, middle), (centre + 30, middle))
    for by in (40, 60, 90):
        browser.touch('touchMove', (centre - by, middle), (centre + by, middle))
    browser.touch('touchEnd')
    assert browser.js(TRANSFORMS)[0][0] > 1.5 * zoom
    assert not browser.complaints


@in_browser
def test_uncertainty_lies_over_its_side(browser, file):
    browser.open(file)
    choose(browser, 'left', 'method:L1')
    choose(browser, 'right', 'method:UDL')
    x, y, w, h = browser.box('#stage')
    browser.js("(() => { const o = document.getElementById('opacity'); o.value = 100;"
               "o.dispatchEvent(new Event('input')); })()")
    x, y, w, h = browser.box('#stage')
    screen = browser.screen()
    assert close(screen[int(y + h * .75), int(x + w * .4)], COLOURS['L1'])  # has no map
    top, low = (screen[int(y + h * at), int(x + w * .6)] for at in (.25, .96))
    assert low[0] > 200  # s rises downwards, from the violet to the yellow end of viridis
    assert low[1] > 200
    assert top[2] > top[0]
    assert browser.js("document.querySelectorAll('#colours span').length") > 2
    choose(browser, 'right', 'gt')
    assert browser.js("document.getElementById('opacity').disabled")


@in_browser
def test_difference_is_the_absolute_difference(browser, file):
    browser.open(file)
    choose(browser, 'left', 'method:L1')
    choose(browser, 'right', 'method:UDL')
    browser.js("document.querySelector('[name=mode][value=difference]').click()")
    browser.js("(() => { const o = document.getElementById('gain'); o.value = 1;"
               "o.dispatchEvent(new Event('input')); })()")
    x, y, w, h = browser.box('#stage')
    pixel = browser.screen()[int(y + h * .75), int(x + w * .5)]
    assert close(pixel, np.abs(np.subtract(COLOURS['L1'], COLOURS['UDL'])))
    choose(browser, 'right', 'method:L1')
    assert close(browser.screen()[int(y + h * .75), int(x + w * .5)], (0, 0, 0), 0)


@in_browser
def test_small_pictures_and_thumbnails_choose(browser, file):
    browser.open(file)
    browser.js("[...document.querySelectorAll('#strip button')].find(b => b.textContent.includes('Bicubic')).click()")
    assert browser.js("document.getElementById('right').value") == 'bicubic'
    names = browser.js("[...document.querySelectorAll('#thumbs button')].map(b => b.title)")
    browser.js("document.querySelector('#thumbs button').focus()")
    browser.key('ArrowRight')
    assert browser.js('document.activeElement.title') == names[1]
    assert browser.js("document.querySelector('#thumbs [aria-checked=true]').title") == names[1]
    assert browser.js("document.getElementById('right').value") == 'bicubic'  # the choice is kept


@in_browser
def test_tables_sort_by_keyboard(browser, file):
    browser.open(file)
    browser.js("document.querySelector('table.sortable th:nth-child(2) button').focus()")

    def column():
        return browser.js("[...document.querySelectorAll('table.sortable tbody')][0].innerText")
    labels = ['ESU → UDL', 'L1', HOSTILE]
    browser.key('Enter')
    assert sorted(labels, key=column().index) == labels  # 28.8, 28.6, 27.5 on Set5
    assert browser.js("document.querySelector('table.sortable th:nth-child(2)').ariaSort") == 'descending'
    browser.key('Enter')
    assert sorted(labels, key=column().index) == labels[::-1]
    assert browser.js("document.querySelector('.of-metric[data-metric=ssim]').hidden")
    browser.js("document.querySelector('[data-tabs] input[value=ssim]').click()")
    assert not browser.js("document.querySelector('.of-metric[data-metric=ssim]').hidden")
    assert browser.js("document.querySelector('.of-metric[data-metric=psnr]').hidden")


@in_browser
def test_curves_read_out_and_hide_lines(browser, file):
    browser.open(file)
    lines = "document.querySelectorAll('.chart path.line').length"
    assert browser.js(lines) == 3
    browser.js("document.querySelector('.legend button').click()")
    assert browser.js(lines) == 2
    browser.js("document.querySelector('.legend button').click()")
    browser.js("document.querySelector('.chart svg').focus()")
    browser.key('End')
    read = browser.js("document.querySelector('.read').innerText")
    assert '300 iterations' in read
    assert '+0.250' in read  # minus L1 to begin with: differences of losses are small beside what all learn
    browser.js("document.querySelector('.check input').click()")
    x, y, w, h = browser.box('.chart svg')
    browser.move(x + w - 30, y + h / 2)
    assert '30.35' in browser.js("document.querySelector('.read').innerText")  # (30.3 + 30.4) / 2


@in_browser
@pytest.mark.parametrize('dark', [False, True])
def test_fits_a_phone_in_both_schemes(browser, file, dark):
    browser.open(file, 390, 844, phone=True, dark=dark, still=True)
    assert browser.js('document.documentElement.scrollWidth') <= 390
    outside = browser.js("""[...document.querySelectorAll('header *, #stage, .panel, .card, h2, h3, select, .bar > *')]
        .filter(n => n.getBoundingClientRect().width && !n.closest('#thumbs, #strip')
                && n.getBoundingClientRect().right > 391).map(n => n.tagName + n.className)""")
    assert outside == []
    background = browser.screen()[200, 2]
    assert (background.max() < 60) if dark else (background.min() > 200)
    assert browser.js('getComputedStyle(document.documentElement).scrollBehavior') == 'auto'
    assert not browser.complaints


@in_browser
def test_focus_is_seen(browser, file):
    browser.open(file)
    seen = []
    for _ in range(14):
        browser.key('Tab')
        seen.append(browser.js("""(() => { const n = document.activeElement, s = getComputedStyle(n),
            near = [n.nextElementSibling, n.firstElementChild].filter(Boolean).map(m => getComputedStyle(m));
            return [n.id || n.className || n.tagName, [s, ...near].some(c => c.outlineStyle === 'solid')]; })()"""))
    assert all(shown for _, shown in seen), seen
    assert len({name for name, _ in seen}) > 6


@in_browser
def test_results_come_before_pictures_and_no_name_is_cut(browser, file):
    """On a phone too: what was found, then what it looks like; names wrap where they are long."""
    for width, phone in ((1440, False), (390, True)):
        browser.open(file, width, 844, phone=phone)
        tops = browser.js("""['#main', '#pictures', '#curves', '#runs'].map(
            s => document.querySelector(s).getBoundingClientRect().top)""")
        assert tops == sorted(tops)
        cut = browser.js("""[...document.querySelectorAll('.panel .name, .name span, #strip b, .tag b, #thumbs span')]
            .filter(n => n.scrollWidth > n.clientWidth + 1 || getComputedStyle(n).textOverflow === 'ellipsis')
            .map(n => n.className + n.textContent)""")
        assert cut == []
        strip = browser.js("document.querySelector('#strip').getBoundingClientRect().height")
        assert not phone or strip < 250  # one row, however many methods there are


@in_browser
def test_a_colour_and_dash_for_each_method(browser, tmp_path):
    """29 methods, as the largest comparison has: no two lines of the curves look alike."""
    folder = write_comparison(tmp_path / 'trial')
    record = read_record(folder / 'UDL_x4_seed0.json')
    for number in range(26):
        write_record(replace(record, name=f'm{number}', method=f'm{number}', label=f'm{number}', order=number), folder)
    path = tmp_path / 'report.html'
    path.write_text(html.make_page([folder])[0], encoding='utf-8')
    browser.open(path)
    shown = '.of-metric:not([hidden]) '
    for selector in (f'{shown} .panel:first-child .name .swatch', '.chart path.line', '.legend .swatch'):
        looks = browser.js(f"""[...document.querySelectorAll('{selector}')].map(n => {{ const s = getComputedStyle(n);
            return s.stroke + s.strokeDasharray; }})""")
        assert len(looks) >= 28
        assert len(set(looks)) == len(looks)
    light = [f'#{r:02x}{g:02x}{b:02x}' for r, g, b in (map(int, re.findall(r'\d+', look)[:3]) for look in looks[1:9])]
    assert tuple(light) == method_styles.COLOURS  # those of the figures, in their order


@in_browser
def test_what_lies_beyond_the_axis_is_marked(browser, trial, file):
    browser.open(file)
    marks = browser.js("""[...document.querySelectorAll('.of-metric:not([hidden]) .panel li:not(.axis)')].map(li => [
        li.querySelector('title').textContent.split(',')[0],
        [...li.querySelectorAll('text.off')].map(t => t.textContent).join('')])""")
    d = paired_difference(read_records(trial['folder']), 'UDL', 'Set14', 'psnr', 4)
    assert d['seed_low'] < -1.2  # t of two seeds is wider than the axis, which the other methods' means decide
    assert d['seed_high'] > 1.2
    assert dict(marks) == {'ESU → UDL: +0.250': '', 'ESU → UDL: 0.000': '◀▶', f'{HOSTILE}: −1.000': '',
                           f'{HOSTILE}: +0.900': ''}
