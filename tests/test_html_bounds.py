"""Calibrated intervals under the report's slider: from udl infer and udl test to the page, and files that are none."""
import importlib
import json

import cv2
import numpy as np
import pytest
import torch
import yaml
from calibration_runs import HEAD, CalibrationRun
from conftest import status_of
from html_pages import SIZE, data_of, script, write_comparison
from infer_runs import SMALL
from PIL import Image

from udl_basicsr.deploy.pictures import Pixels, encode_picture
from udl_basicsr.reports import html_bounds
from udl_basicsr.reports.uncertainty import ReportError


@pytest.fixture
def folder(tmp_path):
    """Of Set5/bird: 100 to 140 grey levels, and a mask of the left half; as udl infer writes them."""
    facts = {'udl': json.dumps({'alpha': 0.1, 'within': 16., 'weights': '1234567890abcdef'})}
    for kind, value in (('lower', 100), ('upper', 140)):
        planes = np.full((SIZE, SIZE, 3), value * 257, np.uint16)
        (tmp_path / f'bird_{kind}.png').write_bytes(encode_picture(Pixels(planes, text=facts), '.png'))
    mask = np.zeros((SIZE, SIZE, 1), np.uint8)
    mask[:, :SIZE // 2] = 255
    (tmp_path / 'bird_within.png').write_bytes(encode_picture(Pixels(mask, text=facts), '.png'))
    return tmp_path


def test_the_layers_are_the_files(folder):
    shown = {'L1': 'another', 'UDL': '1234567890abcdef'}
    layers, note = html_bounds.bounds([folder / 'no', folder], 'bird', (SIZE, SIZE), shown)
    keys, labels, (lower, upper, within) = zip(*layers, strict=True)
    assert keys == ('lower', 'upper', 'within')
    assert labels == ('Lower end, 90 %, UDL', 'Upper end, 90 %, UDL', 'Within 16 grey levels, UDL: bright')
    assert not note
    assert (lower == 100).all()
    assert (upper == 140).all()
    assert (within[:, :SIZE // 2] == 120).all()
    assert (within[:, SIZE // 2:] == 24).all()
    assert html_bounds.bounds([folder], 'other', (SIZE, SIZE), shown) == ([], f'{folder} has none')
    assert html_bounds.bounds([], 'bird', (SIZE, SIZE), shown) == ([], '')
    # of none of the methods; and where one says nothing of its weights, nobody knows
    layers, note = html_bounds.bounds([folder], 'bird', (SIZE, SIZE), {'L1': 'another'})
    assert (layers, note) == ([], f'those in {folder} are of other weights (12345678) than the methods shown')
    layers, note = html_bounds.bounds([folder], 'bird', (SIZE, SIZE), {'L1': 'another', 'UDL': ''})
    assert layers[0][1] == 'Lower end, 90 %, weights 12345678'
    assert note.startswith('whether they belong to a method shown is not known')


def test_from_the_networks_to_the_slider(tmp_path, monkeypatch, capsys):
    """The files of udl infer, and the scores and pictures of udl test: for the same weights, for others, for both."""
    run = CalibrationRun(tmp_path)
    assert run.calibrate('--within', 200, alpha=0.25) == 0
    assert run(run.kept / 'LQ', *run.options_u, '--intervals', '--within', 200) == 0
    monkeypatch.chdir(tmp_path)
    torch.save({'params': run.other.state_dict()}, tmp_path / 'other.pth')
    for name, weights in (('same', run.models / 'net_g_latest.pth'), ('other', tmp_path / 'other.pth')):
        (tmp_path / f'{name}.yml').write_text(yaml.safe_dump({
            'name': name, 'model_type': 'UDLModel', 'stage': 'udl', 'scale': 2, 'num_gpu': 0,
            'datasets': {'test': {'name': 'Kept', 'type': 'PairedImageDataset', 'io_backend': {'type': 'disk'},
                                  'dataroot_gt': str(run.kept / 'GT'), 'dataroot_lq': str(run.kept / 'LQ')}},
            'network_g': {'type': 'EDSR', **SMALL}, 'network_u': {'type': 'UncertaintyNet', 'head': HEAD},
            'path': {'pretrain_network_g': str(weights), 'pretrain_network_u': str(run.models / 'net_u_latest.pth')},
            'val': {'save_img': True, 'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 2}}}}))
        assert status_of(importlib.import_module('udl_basicsr.cli.test').main, ['-opt', f'{name}.yml']) in (0, None)

    def report(*runs: str, intervals=run.out) -> int:
        return script().main([*(f'results/{run}' for run in runs), '--images', 'Kept/1', '--window', '0', '--intervals',
                              f'Kept={intervals}', '--out', 'page.html'])

    capsys.readouterr()
    for runs in (['same'], ['other', 'same']):
        assert report(*runs) == 0
        (picture, ) = data_of((tmp_path / 'page.html').read_text())['pictures']
        labels = {layer['key']: layer['label'] for layer in picture['layers']}
        assert [labels[key] for key in ('lower', 'upper', 'within')] == [
            'Lower end, 75 %, same', 'Upper end, 75 %, same', 'Within 200 grey levels, same: bright']
        assert 'Intervals of' not in capsys.readouterr().out
    assert report('other') == 2
    assert 'than the methods shown' in capsys.readouterr().err
    assert report('same', intervals=run.kept / 'LQ') == 2
    error = capsys.readouterr().err
    assert f'--intervals Kept={run.kept / "LQ"}: holds no <image>_lower.png of this data set (' in error
    # scores from before the weights were kept
    scores = json.loads((tmp_path / 'results/other/scores.json').read_text())
    assert scores.pop('weights_hash') != json.loads((tmp_path / 'results/same/scores.json').read_text())['weights_hash']
    (tmp_path / 'results/other/scores.json').write_text(json.dumps(scores))
    assert report('other') == 0
    assert 'Intervals of Kept/1: whether they belong to a method shown is not known' in capsys.readouterr().out


def test_a_data_set_that_is_not_there(folder, tmp_path, capsys):
    records = write_comparison(tmp_path / 'records', tmp_path / 'pictures')
    assert script().main([str(records), '--intervals', f'Set6={folder}', '--out', str(tmp_path / 'r.html')]) == 2
    assert '--intervals: there is no data set Set6' in capsys.readouterr().err
    # one picture has intervals, the others are said to have none
    assert script().main([str(records), '--intervals', f'Set5={folder}', '--out', str(tmp_path / 'r.html')]) == 0
    assert 'Intervals of Set5/&#34;&gt;&lt;img' in (tmp_path / 'r.html').read_text()


@pytest.mark.parametrize('broken', ['gone', 'size', 'bits', 'text'])
def test_files_that_are_none(folder, broken):
    file = folder / 'bird_upper.png'
    message = r'bird_upper\.png: expected what udl infer --intervals writes'
    if broken == 'gone':
        file.unlink()
    elif broken == 'size':
        cv2.imwrite(str(file), np.zeros((9, 9, 3), np.uint16))
    elif broken == 'bits':
        cv2.imwrite(str(file), np.zeros((SIZE, SIZE, 3), np.uint8))
    else:
        Image.open(folder / 'bird_within.png').save(folder / 'bird_within.png')  # without its texts
        message = r'bird_within\.png are not of one run of udl infer'
    with pytest.raises(ReportError, match=message):
        html_bounds.bounds([folder], 'bird', (SIZE, SIZE), {'UDL': ''})


def test_files_that_say_nothing(folder):
    for kind in html_bounds.KINDS:
        pixels = cv2.imread(str(folder / f'bird_{kind}.png'), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(folder / f'bird_{kind}.png'), pixels)
    layers, note = html_bounds.bounds([folder], 'bird', (SIZE, SIZE), {'UDL': 'known'})
    assert [label for _, label, _ in layers] == [
        'Lower end, ? %, unknown weights', 'Upper end, ? %, unknown weights',
        'Within ? grey levels, unknown weights: bright']
    assert 'is not known' in note
