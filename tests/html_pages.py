"""Comparisons and test runs for the HTML report, and a page of them, parsed."""
import importlib.util
import json
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from udl_basicsr.experiments.record_files import Record, write_record
from udl_basicsr.functional.log_scale_maps import encode_log_scale
from udl_basicsr.reports import html
from udl_basicsr.utils.scores import mean_scores

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


@pytest.fixture(scope='module')
def trial(tmp_path_factory):
    root = tmp_path_factory.mktemp('trial')
    folder = write_comparison(root / 'records', root / 'results')
    gt, lq = write_data(root / 'datasets')
    page, notes = html.make_page([folder], gt=gt, lq=lq)
    return {'root': root, 'folder': folder, 'gt': gt, 'lq': lq, 'page': page, 'notes': notes}
