"""udl calibrate and the intervals of udl infer: by hand from the networks, from the command to the pictures."""
# ruff: noqa: F811 - a fixture that comes from calibration_runs
import json

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs.edsr_arch import EDSR
from calibration_runs import HEAD, run  # noqa: F401
from conftest import photograph, status_of
from infer_runs import SMALL
from PIL import Image

from udl_basicsr.archs import UncertaintyNet
from udl_basicsr.deploy.calibration import CalibrationError, file_beside, networks_of, read_calibration
from udl_basicsr.deploy.restorer import load_restorer
from udl_basicsr.utils.shipped_weights import locate_weights


def deep(path) -> np.ndarray:
    """RGB in grey levels."""
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[..., ::-1].astype(np.float64) / 257


def test_the_factor_is_the_smallest_that_keeps_the_promise(run, capsys):
    assert run.calibrate('--within', 90, 200, alpha=0.25) == 0
    said, found = capsys.readouterr().out, read_calibration(run.file)
    assert 'On average over images, at most 25 % of the values of an image lie outside' in said
    by_hand = [run.by_hand(number, 0.25) for number in range(6)]

    def risk(factor):
        return np.mean([np.mean(np.abs(x - f) > factor * half) for f, x, half in by_hand])
    limit = 0.25 - 0.75 / 6
    assert risk(1.0001 * found.factor) <= limit < risk(found.factor / 1.0012)
    assert found.mean_risk == pytest.approx(risk(found.factor), abs=1e-3)
    width = np.mean([2 * found.factor * half.mean() for _, _, half in by_hand])
    assert found.mean_width == pytest.approx(width, rel=1e-4)

    def mask_risk(within, threshold):
        shares = []
        for f, x, half in by_hand:
            mask = half.max(2) <= threshold
            shares.append((mask & (np.abs(x - f).max(2) > within)).sum() / max(mask.sum(), 0.01 * mask.size))
        return np.mean(shares)
    assert found.within.keys() == {'90', '200'}
    for within, threshold in found.within.items():
        assert mask_risk(float(within), threshold) <= limit
    content = json.loads(run.file.read_text())
    assert content['method'] == 'crc'
    assert len(content['data']) == content['images'] == 6
    assert all(len(entry['gt_sha256']) == 64 for entry in content['data'])
    assert content['versions']['torch'] == torch.__version__


def test_the_pictures_hold_what_is_promised(run):
    assert run.calibrate('--within', 200, alpha=0.25) == 0
    factor = read_calibration(run.file).factor
    assert run(run.kept / 'LQ', *run.options_u, '--intervals', '--within', 200) == 0
    outside = []
    for number in range(6):
        f, x, half = run.by_hand(number, 0.25)
        lower, upper, theta = (deep(run.out / f'{number}_{kind}.png') for kind in ('lower', 'upper', 'theta'))
        # rounded outwards, by less than a step of 16 bits
        for end, exact in ((lower, f - factor * half), (-upper, -f - factor * half)):
            exact = exact.clip(-255, 255) if end is not lower else exact.clip(0, 255)
            assert (end <= exact + 2e-4 * factor).all()
            assert (end >= exact - 1 / 257 - 2e-4 * factor).all()
        np.testing.assert_allclose(theta, half / -np.log(0.25), atol=1 / 257 + 1e-3)
        outside.append(np.mean((x < lower) | (x > upper)))
        mask = cv2.imread(str(run.out / f'{number}_within.png'), cv2.IMREAD_UNCHANGED)
        threshold = read_calibration(run.file).within['200']
        np.testing.assert_array_equal(mask == 255, half.max(2) <= threshold)
        assert set(np.unique(mask)) <= {0, 255}
    assert np.mean(outside) <= 0.25 - 0.75 / 6 + 1e-3
    # the same picture as without intervals, and what it all means
    plain = run.root / 'plain'
    assert run(run.kept / 'LQ' / '1.png', *run.options_u, out=plain) == 0
    for name in ('1.png', '1_log_scale.png'):
        assert (plain / name).read_bytes() == (run.out / name).read_bytes()
    text = Image.open(run.out / '1_lower.png').text
    assert 'in grey levels (0 to 255) times 257. On average over images, at most 25 %' in text['Description']
    facts = json.loads(text['udl'])
    assert (facts['steps_per_unit'], facts['alpha'], facts['factor']) == (257, 0.25, factor)
    assert '200 grey levels' in Image.open(run.out / '1_within.png').text['Description']


def test_gray_pictures_and_tiles(run):
    assert run.calibrate('--tile', 8, '--overlap', 16) == 0
    gray = run.root / 'gray.png'
    cv2.imwrite(str(gray), photograph(9, 12, 14)[..., 0])
    assert run(gray, *run.options_u, '--intervals', '--tile', 8, '--overlap', 16) == 0
    lower, upper = (cv2.imread(str(run.out / f'gray_{kind}.png'), cv2.IMREAD_UNCHANGED) for kind in ('lower', 'upper'))
    assert lower.shape == upper.shape == (24, 28)
    assert (lower.astype(int) < upper).all()


def test_rcps_asks_for_more(run):
    assert run.calibrate(alpha=0.4) == 0
    mean = read_calibration(run.file)
    assert run.calibrate('--delta', 0.3, '--overwrite', alpha=0.4) == 0
    probable = read_calibration(run.file)
    assert probable.factor > mean.factor
    assert probable.promise.startswith('With probability 0.7 over the images calibrated on')


def test_intervals_that_say_nothing_are_doubted(run, capsys):
    """A head that says the same of all pixels is the yardstick; one that was hardly trained says anything."""
    run.constant(3.)
    assert run.calibrate() == 0
    found = read_calibration(run.file)
    assert found.constant_width == pytest.approx(found.mean_width, rel=2e-3)
    assert 'twice' not in capsys.readouterr().err
    run.options_u = run.add_uncertainty()
    with torch.no_grad():
        s = run.net_u.log_scale(torch.rand(1, 3, 14, 14))
        run.net_u.head.conv3.weight.mul_(20 / s.max())
    torch.save({'params': run.net_u.state_dict()}, run.models / 'net_u_latest.pth')
    assert run.calibrate('--overwrite') == 0
    again, err = read_calibration(run.file), capsys.readouterr().err
    assert again.constant_width == found.constant_width
    assert again.mean_width > max(2 * found.mean_width, 255)
    assert f'Warning: intervals {again.mean_width:.0f} grey levels wide in the mean' in err
    assert f'Warning: intervals {found.constant_width:.2f} grey levels wide at every pixel would keep the same' in err


# ----------------------------------------------------------------------------------------------------------- refusals


def test_too_few_images_are_refused_with_how_many_it_takes(run, capsys):
    for arguments, needed in (((), 9), (('--delta', 0.1), 22)):
        assert run.calibrate(*arguments, alpha=0.1) == 2
        assert f'at least {needed} images are needed' in capsys.readouterr().err
    assert not run.file.exists()


def test_a_calibration_is_not_overwritten_by_chance(run, capsys):
    run.file.write_text('mine')
    assert run.calibrate() == 2
    assert 'is there already; give --overwrite' in capsys.readouterr().err
    assert run.file.read_text() == 'mine'
    assert run.calibrate('--out', run.file / 'x.json') == 2  # where nothing can be: said before an image is restored
    said = capsys.readouterr()
    assert 'x.json: its folder is a file, expected a folder' in said.err
    assert '1/' not in said.out


@pytest.mark.parametrize('change', ['weights', 'uncertainty', 'ensemble'])
def test_other_networks_are_refused(run, capsys, change):
    assert run.calibrate() == 0
    more = ()
    if change == 'weights':
        torch.save({'params': EDSR(**SMALL).state_dict()}, run.models / 'net_g_latest.pth')
    elif change == 'uncertainty':
        torch.save({'params': UncertaintyNet({'type': 'EDSR', **SMALL}, HEAD).state_dict()},
                   run.models / 'net_u_latest.pth')
    else:
        more = ('--self-ensemble', )
    assert run(run.kept / 'LQ' / '1.png', *run.options_u, '--intervals', *more) == 2
    err = capsys.readouterr().err
    assert ('was made with --self_ensemble no, and now it is yes' if change == 'ensemble' else
            f'was made with --{change}') in err
    assert 'calibrate these with udl calibrate' in err
    assert not run.out.exists()


def test_the_same_weights_read_otherwise_are_refused(run, capsys):
    """Of equal weights, what is in the blocks decides: another distribution or factor is another interval."""
    network_g = {'type': 'EDSR', **SMALL}
    assert run.calibrate() == 0

    def now(block_g=network_g, **block_u) -> tuple[int, str]:
        run.options(block_g, {'type': 'UncertaintyNet', 'head': HEAD, **block_u})
        capsys.readouterr()
        return run(run.kept / 'LQ' / '1.png', *run.options_u, '--intervals', '--overwrite'), capsys.readouterr().err
    for blocks, told in (({'head': {**HEAD, 'distribution': 'gaussian'}}, 'network_u.head.distribution laplace'),
                         ({'tap': 'conv_last'}, 'network_u.tap'), ({'block_g': {**network_g, 'res_scale': 0.5}},
                                                                    'network_g.res_scale 1, and here it is 0.5')):
        status, err = now(**blocks)
        assert status == 2
        assert told in err
    assert not run.out.exists()
    # and what is the same though it is written otherwise
    for blocks in ({'tap': 'upsample', 'detach': 'all', 'freeze': True, 'head': {**HEAD, 'level': 0.9}},
                   {'block_g': {**network_g, 'res_scale': 1.0, 'img_range': 255}}, {'tap': None}):
        assert now(**blocks) == (0, '')


@pytest.mark.parametrize('scale', [2, 4])
def test_the_calibrations_that_are_shipped_hold(scale, tmp_path):
    """And so do older ones, whose blocks leave out what is the default and say nothing of taps."""
    weights, uncertainty = (locate_weights(f'udl:{name}_x{scale}') for name in ('UDL', 'ESU'))
    restorer = load_restorer(weights, uncertainty=uncertainty, device='cpu')
    shipped = read_calibration(file_beside(uncertainty))
    shipped.check(restorer, 'shipped')
    for key, name in (('weights', 'UDL'), ('uncertainty', 'ESU')):  # not by this machine's paths
        assert shipped.networks[key] == restorer.made_by[key] == f'udl:{name}_x{scale}'
    for network in (shipped.networks['network_g'], shipped.networks['network_u']['backbone']):
        network['res_scale'] = 1.
    del shipped.networks['network_u']['tap']
    shipped.check(restorer, 'older')
    shipped.networks['network_u']['backbone']['res_scale'] = 0.1
    with pytest.raises(CalibrationError, match=r'network_u\.backbone\.res_scale 0\.1, and here it is 1'):
        shipped.check(restorer, 'other')


def test_what_is_no_calibration(run, capsys):
    picture = run.kept / 'LQ' / '1.png'
    assert run(picture, *run.options_u, '--intervals') == 2
    assert 'make it with udl calibrate' in capsys.readouterr().err
    assert run.calibrate('--within', 30) == 0
    good = json.loads(run.file.read_text())
    assert run(picture, *run.options_u, '--intervals', '--within', 31) == 2
    assert 'has no mask for errors within 31 grey levels, it has those for 30' in capsys.readouterr().err
    for broken in ({**good, 'factor': 'x'}, {**good, 'alpha': 2.}, {**good, 'format': 0}, [],
                   {**good, 'within': {'1': 'x'}}, {**good, 'delta': 1.5},
                   *({key: good[key] for key in good if key != gone} for gone in ('networks', 'delta'))):
        run.file.write_text(json.dumps(broken))
        with pytest.raises(CalibrationError, match='make it with udl calibrate'):
            read_calibration(run.file)
    assert status_of(run, picture, '--intervals') == 2
    assert '--intervals needs --uncertainty' in capsys.readouterr().err


def test_nothing_is_ignored(run, capsys):
    """Options that another one is needed for, and tiles that no network could restore."""
    picture = run.kept / 'LQ' / '1.png'
    for call, told in ((lambda: run.calibrate('--overlap', 8), '--overlap is around tiles: give --tile'),
                       (lambda: run.calibrate('--tile', -3), 'expected a whole number from 8'),
                       (lambda: run.calibrate('--spread'), 'give --self_ensemble with it'),
                       (lambda: status_of(run, picture, '--overlap', 8), '--overlap is around tiles: give --tile'),
                       (lambda: status_of(run, picture, *run.options_u, '--within', 8), 'give --intervals with it')):
        assert call() == 2
        assert told in capsys.readouterr().err
    assert not run.out.exists()
    assert not run.file.exists()
    assert run.calibrate('--overwrite', '--out', run.root) == 2
    assert f'--out {run.root}: is a folder, expected a file' in capsys.readouterr().err


def test_a_mask_of_every_pixel_says_so(run, capsys):
    """No error exceeds 255; and the PNG says in which unit the error is."""
    assert run.calibrate('--within', 1, 255) == 0
    said = capsys.readouterr().out
    assert 'within 1 grey levels: pixels of a half-width up to ' in said
    assert 'within 255 grey levels: every pixel\n' in said
    for within, words in ((255, 'from the truth, here every pixel. On average'), (1, 'from the truth. On average')):
        out = run.root / str(within)
        assert run(run.kept / 'LQ' / '1.png', *run.options_u, '--intervals', '--within', within, out=out) == 0
        mask = Image.open(out / '1_within.png')
        assert (np.asarray(mask) == 255).all() == (within == 255)
        assert words in mask.text['Description']
        facts = json.loads(mask.text['udl'])
        assert (facts['within'], facts['unit'], facts['steps_per_unit']) == (within, 'grey level', None)
    capsys.readouterr()
    assert run(run.kept / 'LQ' / '1.png', *run.options_u, '--intervals') == 2  # 16, by default
    assert 'has no mask for errors within 16 grey levels, it has those for 1, 255: give --within 1, or calibrate' \
        in capsys.readouterr().err


def test_results_of_another_calibration_are_not_mixed(run, capsys):
    assert run.calibrate() == 0
    assert run(run.kept / 'LQ' / '1.png', *run.options_u, '--intervals') == 0
    assert run.calibrate('--overwrite', alpha=0.3) == 0
    capsys.readouterr()
    assert run(run.kept / 'LQ' / '2.png', *run.options_u, '--intervals') == 2
    assert '--intervals: alpha 0.25' in capsys.readouterr().err


def test_a_gt_of_another_size_is_named(run, capsys):
    cv2.imwrite(str(run.kept / 'GT' / '2.png'), photograph(2, 29, 28))
    assert run.calibrate() == 2
    assert '2.png: has 28×29 pixels' in capsys.readouterr().err


def test_stage_2_uses_the_uncertainty_of_stage_1(run):
    """The folder of a run without net_u: its option file says where that is."""
    second = run.root / 'experiments' / 'y' / 'models'
    second.mkdir(parents=True)
    torch.save({'params': run.network.state_dict()}, second / 'net_g_latest.pth')
    with pytest.raises(CalibrationError, match='no such file'):
        networks_of(second.parent)
    (second.parent / 'y.yml').write_text(yaml.safe_dump({'path': {
        'pretrain_network_u': 'experiments/x/models/net_u_latest.pth'}}))
    assert networks_of(second.parent) == (second / 'net_g_latest.pth', run.models / 'net_u_latest.pth')
