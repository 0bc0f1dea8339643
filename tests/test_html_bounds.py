"""Calibrated intervals under the report's slider."""
import json

import cv2
import numpy as np
import pytest
from html_pages import SIZE, script, write_comparison
from PIL import Image

from udl_basicsr.deploy.pictures import Pixels, encode_picture
from udl_basicsr.reports import html_bounds, html_groups, html_pictures
from udl_basicsr.reports.uncertainty import ReportError


@pytest.fixture
def folder(tmp_path):
    """Of Set5/bird: 100 to 140 grey levels, and a mask of the left half; as udl infer writes them."""
    facts = {'udl': json.dumps({'alpha': 0.1, 'within': 16.})}
    for kind, value in (('lower', 100), ('upper', 140)):
        planes = np.full((SIZE, SIZE, 3), value * 257, np.uint16)
        (tmp_path / f'bird_{kind}.png').write_bytes(encode_picture(Pixels(planes, text=facts), '.png'))
    mask = np.zeros((SIZE, SIZE, 1), np.uint8)
    mask[:, :SIZE // 2] = 255
    (tmp_path / 'bird_within.png').write_bytes(encode_picture(Pixels(mask, text=facts), '.png'))
    return tmp_path


def test_the_layers_are_the_files(folder):
    keys, labels, pictures = zip(*html_bounds.bounds([folder / 'no', folder], 'bird', (SIZE, SIZE)), strict=True)
    assert keys == ('lower', 'upper', 'within')
    assert labels == ('Lower end, 90 %', 'Upper end, 90 %', 'Within 16 grey levels: bright')
    lower, upper, within = pictures
    assert (lower == 100).all()
    assert (upper == 140).all()
    assert (within[:, :SIZE // 2] == 120).all()
    assert (within[:, SIZE // 2:] == 24).all()
    assert html_bounds.bounds([folder], 'other', (SIZE, SIZE)) == html_bounds.bounds([], 'bird', (SIZE, SIZE)) == []


def test_they_lie_under_the_slider(folder, tmp_path, capsys):
    records = write_comparison(tmp_path / 'records', tmp_path / 'pictures')
    groups = html_groups.read_groups([records])
    (picture, ) = html_pictures.choose_pictures(groups, ['Set5/bird'], intervals={'Set5': [folder]})[0]
    keys = [layer['key'] for layer in picture['layers']]
    assert keys[-3:] == ['lower', 'upper', 'within']
    assert [layer['scores'] for layer in picture['layers'][-3:]] == [[]] * 3
    assert script().main([str(records), '--images', 'Set5/bird', '--intervals', f'Set5={folder}', '--out',
                          str(tmp_path / 'r.html')]) == 0
    assert 'Within 16 grey levels: bright' in (tmp_path / 'r.html').read_text()
    assert script().main([str(records), '--intervals', f'Set6={folder}', '--out', str(tmp_path / 'r2.html')]) == 2
    assert '--intervals: there is no data set Set6' in capsys.readouterr().err


@pytest.mark.parametrize('broken', ['gone', 'size', 'bits', 'text'])
def test_files_that_are_none(folder, broken):
    file = folder / 'bird_upper.png'
    if broken == 'gone':
        file.unlink()
    elif broken == 'size':
        cv2.imwrite(str(file), np.zeros((9, 9, 3), np.uint16))
    elif broken == 'bits':
        cv2.imwrite(str(file), np.zeros((SIZE, SIZE, 3), np.uint8))
    else:
        Image.open(folder / 'bird_within.png').save(folder / 'bird_within.png')  # without its texts
        assert html_bounds.bounds([folder], 'bird', (SIZE, SIZE))[2][1] == 'Within ? grey levels: bright'
        return
    with pytest.raises(ReportError, match=r'bird_upper\.png: expected what udl infer --intervals writes'):
        html_bounds.bounds([folder], 'bird', (SIZE, SIZE))
