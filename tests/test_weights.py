"""The weights that come with the package: what their card says, and what they do to a photograph."""
import hashlib
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from udl_basicsr.cli import infer
from udl_basicsr.functional.log_scale_maps import decode_log_scale
from udl_basicsr.options.parse import parse_options
from udl_basicsr.utils.checkpoints import safetensors_metadata
from udl_basicsr.utils.option_files import locate
from udl_basicsr.utils.shipped_weights import folder, locate_weights, names
from udl_basicsr.utils.yaml_files import OptionError

CARD = (folder() / 'README.md').read_text(encoding='utf-8')
RESULTS = Path(__file__).parents[1] / 'docs' / 'results'


def test_the_card_keeps_its_columns():
    assert [line for line in CARD.splitlines() if len(line) > 130 and line[0] != '|'] == []


@pytest.mark.parametrize('name', names())
def test_the_card_says_what_the_files_are(name):
    path = Path(locate_weights(f'udl:{name}'))
    assert path.stat().st_size < 1.2e6
    assert f'| {path.name} | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |' in CARD
    facts = safetensors_metadata(path)
    row = next(line for line in CARD.splitlines() if line.startswith(f'| `udl:{name}`'))
    shown = [float(text) for text in re.findall(r'(\d\d\.\d\d) /', row)]
    assert shown == [round(scores['psnr'], 2) for scores in json.loads(facts['scores']).values()]


@pytest.mark.parametrize('name', [name for name in names() if not name.startswith('ESU')])
def test_the_scores_are_those_of_the_committed_records(name):
    facts = safetensors_metadata(locate_weights(f'udl:{name}'))
    method, scale = name.split('_')
    records = [json.loads(path.read_text()) for path in
               RESULTS.glob(f'*/{ {"UDL": "ESU_UDL"}.get(method, method)}_{scale}_seed{facts["seed"]}.json')]
    record = next(r for r in records if r['options'] == json.loads(facts['training']))
    for dataset, scores in json.loads(facts['scores']).items():
        assert scores['psnr'] == pytest.approx(
            np.mean([image['psnr'] for image in record['datasets'][dataset]['images'].values()]), abs=1e-4)


@pytest.mark.parametrize('scale', sorted({int(name[-1]) for name in names()}))
def test_a_photograph_gains_and_the_uncertainty_lies_where_the_error_is(tmp_path, scale):
    gt = data.astronaut()[:192, 96:288, ::-1]
    lq = cv2.resize(gt, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(tmp_path / 'a.png'), lq)
    arguments = [str(tmp_path / 'a.png'), '--out', str(tmp_path / 'sr'), '--scale', str(scale), '--device', 'cpu']
    calibrated = (folder() / f'ESU_x{scale}.calibration.json').is_file()
    assert infer.main([*arguments, *['--intervals' for _ in range(calibrated)]]) == 0

    sr = cv2.imread(str(tmp_path / 'sr' / 'a.png'))
    bicubic = cv2.resize(lq, gt.shape[:2], interpolation=cv2.INTER_CUBIC)
    assert peak_signal_noise_ratio(gt, sr) > peak_signal_noise_ratio(gt, bicubic) + 0.3
    s = decode_log_scale(cv2.imread(str(tmp_path / 'sr' / 'a_log_scale.png'), cv2.IMREAD_UNCHANGED))
    error = np.abs(gt.astype(float) - sr).mean(2)
    sure, unsure = error[s < np.quantile(s, 0.1)].mean(), error[s > np.quantile(s, 0.9)].mean()
    assert unsure > 4 * sure
    if calibrated:
        lower, upper = (cv2.imread(str(tmp_path / 'sr' / f'a_{name}.png'), cv2.IMREAD_UNCHANGED) / 257
                        for name in ('lower', 'upper'))
        assert 0.8 < ((lower <= gt) & (gt <= upper)).mean() < 1  # promised: 0.9, over many images


def test_what_is_not_there_is_refused(tmp_path, capsys):
    for arguments, message in ((['--weights', 'udl:UDL_x9'], "udl:UDL_x9: no weights of this name .* mean 'UDL_x4'"),
                               (['--weights', 'a.pth', '--scale', '4'], '--weights has its own scale')):
        with pytest.raises(SystemExit) as stop:
            infer.main(['a.png', '--out', str(tmp_path / 'sr'), *arguments])
        assert stop.value.code == 2
        assert re.search(message, capsys.readouterr().err)
    with pytest.raises(OptionError, match='pretrain_network_g: udl:UDL: no weights of this name'):
        parse_options(locate('udl:small/weights', ('test_',)), root_path=str(tmp_path), is_train=False,
                      num_gpu_available=0, force_yml=['path:pretrain_network_g=udl:UDL'])
