"""udl coverage: halves that change places, shifted inputs, and the table, against the networks by hand."""
import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from basicsr.utils import img2tensor
from calibration_runs import CalibrationRun
from conftest import photograph, status_of
from legible import readable  # noqa: F401 - for all tests here

from udl_basicsr import functional as F
from udl_basicsr.cli import coverage as command
from udl_basicsr.data.degradations import degrade_bd
from udl_basicsr.deploy.judging import SHIFTS, shifted
from udl_basicsr.deploy.pictures import Pixels
from udl_basicsr.functional.risk_control import FACTORS
from udl_basicsr.reports.coverage import coverage_figure


@pytest.fixture
def run(tmp_path):
    """Two sets as udl prepare makes them: A of two images, B of eight."""
    run = CalibrationRun(tmp_path)
    for name, numbers in (('A', (20, 21)), ('B', range(8))):
        for kind in ('GTmod2', 'LRbicx2'):
            (tmp_path / name / kind).mkdir(parents=True)
        for number in numbers:
            gt = photograph(number, 32, 36)
            cv2.imwrite(str(tmp_path / name / 'GTmod2' / f'{number}.png'), gt)
            cv2.imwrite(str(tmp_path / name / 'LRbicx2' / f'{number}.png'), cv2.resize(
                gt, (18, 16), interpolation=cv2.INTER_AREA))
    return run


def by_hand(run, name, number):
    run.kept = run.root / name
    for kind, there in (('GT', 'GTmod2'), ('LQ', 'LRbicx2')):
        (run.kept / kind).exists() or (run.kept / kind).symlink_to(run.kept / there)
    f, x, half = run.by_hand(number, 0.3)
    return np.abs(x - f), half


def test_each_half_is_judged_by_the_other(run, capsys):
    out = run.root / 'out'
    assert status_of(command.main, [str(a) for a in (
        run.models.parent, '--calibrate', run.root / 'A', '--halve', run.root / 'B', '--alpha', 0.3, '--within', 150,
        '--shifts', '--device', 'cpu', '--out', out)]) == 0
    said = capsys.readouterr().out
    assert 'A + half of B calibrate (6 and 6 images), the other half judges, and exchanged: 8 images judged' in said
    assert 'between 0.700 and 0.986' in said  # 1 − α + 2/(n + 1)
    (judged, ) = json.loads((out / 'coverage.json').read_text())['runs']
    pairs = {('A', n): by_hand(run, 'A', n) for n in (20, 21)} | {('B', n): by_hand(run, 'B', n) for n in range(8)}
    limit = F.risk_limit(6, 0.3)
    for turn in (0, 1):
        on = [pairs[key] for key in pairs if key[0] == 'A' or key[1] % 2 == turn]
        grid = [np.mean([np.mean(e > factor * half) for e, half in on]) for factor in FACTORS[::40]]
        factor = judged['factors'][turn]
        assert factor == pytest.approx(FACTORS[::40][np.array(grid) <= limit][0], rel=0.05)
        ratio = np.mean([np.mean(e / (half / -np.log(0.3))) for e, half in on])
        for number in range(1 - turn, 8, 2):
            scores, (e, half) = judged['images'][f'B/{number}'], pairs['B', number]
            theta = half / -np.log(0.3)
            expected = {'coverage': np.mean(e <= factor * half), 'coverage_predicted': np.mean(e <= half),
                        'width': 2 * factor * half.mean(), 'crps_rescaled': F.laplace_crps(e, ratio * theta),
                        'ence': F.ence(e, theta), 'ause': F.ause(e, theta), 'theta': theta.mean(),
                        'interval_score': F.interval_score(e, factor * half, 0.3)}
            for key, value in expected.items():
                assert scores[key] == pytest.approx(value, rel=2e-3, abs=1e-3), key
    assert judged['auroc'].keys() == set(SHIFTS)
    assert all(0 <= value <= 1 for value in judged['auroc'].values())
    least = min(judged['images'], key=lambda name: judged['images'][name]['coverage'])
    assert judged['least_covered'] == least
    number = int(least.split('/')[1])
    e, half = pairs['B', number]
    np.testing.assert_allclose(judged['coverage_map'], F.coverage_map(e, judged['factors'][1 - number % 2] * half),
                               atol=0.01)
    assert cv2.imread(str(out / 'coverage.png')).std() > 10
    means = np.mean([scores['coverage'] for scores in judged['images'].values()])
    assert f'{means:.3f} [' in said
    assert (out / 'coverage.md').read_text().count('| x |') == 3


def judge(run, *arguments) -> int:
    return status_of(command.main, [str(a) for a in (
        run.models.parent, '--halve', run.root / 'B', '--device', 'cpu', '--out', run.root / 'out', *arguments)])


def test_a_gray_input_may_have_a_gt_in_colour(run):
    for file in run.root.glob('[AB]/LRbicx2/*.png'):
        cv2.imwrite(str(file), cv2.imread(str(file), cv2.IMREAD_GRAYSCALE))
    assert status_of(command.main, [str(a) for a in (
        run.models.parent, '--calibrate', run.root / 'A', '--halve', run.root / 'B', '--alpha', 0.3, '--device', 'cpu',
        '--out', run.root / 'out')]) == 0
    (judged, ) = json.loads((run.root / 'out' / 'coverage.json').read_text())['runs']
    by_hand(run, 'B', 0)
    for number in range(8):
        f, x, half = run.by_hand(number, 0.3)
        f, half = (each.mean(axis=2, keepdims=True) for each in (f, half))
        scores = judged['images'][f'B/{number}']
        assert scores['coverage_predicted'] == pytest.approx(np.mean(np.abs(x - f) <= half), abs=1e-3)
        assert scores['width'] == pytest.approx(2 * judged['factors'][1 - number % 2] * half.mean(), rel=1e-4)


def test_too_few_images_are_told_before_a_network_is_loaded(run, capsys):
    """4 of a half, where α = 0.1 needs 9; and 6 with A, where δ = 0.1 needs 7 for α = 0.3."""
    weights = run.models / 'net_g_latest.pth'
    weights.write_bytes(b'no network')
    assert judge(run) == 2
    assert '4 images are too few for α = 0.1: even if' in (err := capsys.readouterr().err)
    assert 'at least 9 images are needed' in err
    assert judge(run, '--calibrate', run.root / 'A', '--alpha', 0.3, '--delta', 0.1) == 2
    assert '6 images are too few for α = 0.3 with δ = 0.1: even if' in capsys.readouterr().err
    assert judge(run, '--alpha', 0.3) == 2  # enough; and now the network
    assert 'net_g_latest.pth' in capsys.readouterr().err
    assert judge(run, '--alpha', 1.5) == 2
    (run.root / 'out').mkdir()
    (run.root / 'out' / 'coverage.md').write_text('of yesterday')
    assert judge(run, '--alpha', 0.3) == 2
    assert 'coverage.md: is there already; give --overwrite or another --out' in capsys.readouterr().err
    assert judge(run, '--alpha', 0.3, '--overwrite') == 2
    assert 'net_g_latest.pth' in capsys.readouterr().err


def test_no_image_counts_twice_nor_judges_what_it_has_calibrated(run, capsys):
    for sets in ((run.root / 'B', ), (run.root / 'A', run.root / 'A')):
        assert judge(run, '--calibrate', *sets, '--alpha', 0.3) == 2
        assert f'{sets[0].name}/GTmod2/' in (said := capsys.readouterr().err)
        assert 'and would count twice' in said
    (run.root / 'out').touch()
    assert judge(run, '--alpha', 0.4) == 2
    assert '--out' in (said := capsys.readouterr().err)
    assert 'is a file, expected a folder' in said


def test_what_is_not_known_of_the_training_is_said(run, capsys):
    assert judge(run, '--alpha', 0.4) == 0
    said, told = capsys.readouterr()
    content = json.loads((run.root / 'out' / 'coverage.json').read_text())
    expected = [f'{run.models}/net_{label}_latest.pth: no option file beside it says what it was trained on'
                for label in 'gu']
    assert content['runs'][0]['training'] == {'compared': [], 'unknown': expected}
    for line in expected:
        assert f'Not compared with what was trained on: {line}' in told
        assert line in said
        assert line in content['protocol']
    assert 'between 0.600 and 1.000' in said  # 1 - α + 2/(n + 1) is 1 here; of fewer images it would be more
    run.trained_on(run.root / 'B' / 'GTmod2')
    assert judge(run, '--alpha', 0.4, '--overwrite') == 2
    assert '8 of the images are in' in capsys.readouterr().err


@pytest.mark.parametrize(('log_scale', 'told'), [(0., False), (11., True)])
def test_intervals_over_most_grey_levels_are_told(run, capsys, log_scale, told):
    """Half of them is 0.01, the smallest factor, times ln(1/0.8) times e¹¹ grey levels: 134."""
    run.constant(log_scale)
    gray = {key: torch.zeros_like(value) for key, value in run.network.state_dict().items()}
    torch.save({'params': gray}, run.models / 'net_g_latest.pth')
    assert judge(run, '--alpha', 0.8) == 0
    assert ('grey levels wide in the mean, where there are 256' in capsys.readouterr().err) == told


def test_no_factor_suffices(run, capsys):
    run.constant(-12.)  # a thousand times as much is 6 thousandths of a grey level
    assert judge(run, '--alpha', 0.3) == 2
    assert 'no factor up to 1000 leaves as few pixels outside as α = 0.3 asks for' in capsys.readouterr().err


def test_flips_and_rcps_are_judged(run, capsys):
    """The eight turns by torch and by hand, their spread beside θ; λ by the limit of RCPS."""
    assert judge(run, '--alpha', 0.4, '--delta', 0.3, '--self_ensemble', '--spread', '--tile', 8, '--overlap', 12) == 0
    (judged, ), said = json.loads((run.root / 'out' / 'coverage.json').read_text())['runs'], capsys.readouterr().out
    assert 'RCPS, α = 0.4, δ = 0.3: with probability 0.7' in said
    assert 'mean over the 8 flips and turns, and how far they differ is a part of θ.' in said
    images = []
    for number in range(8):
        lq = img2tensor(cv2.imread(str(run.root / 'B' / 'LRbicx2' / f'{number}.png')).astype(np.float32) / 255)[None]
        truth = img2tensor(cv2.imread(str(run.root / 'B' / 'GTmod2' / f'{number}.png')).astype(np.float32))
        means, squares = [], []
        with torch.no_grad():
            for turns in range(8):
                turned = torch.rot90(lq.flip(3) if turns > 3 else lq, turns % 4, (2, 3))
                back = [torch.rot90(out, -(turns % 4), (2, 3))
                        for out in (run.network(turned), run.net_u(turned)[1].exp())]
                mean, theta = ((out.flip(3) if turns > 3 else out)[0].double().numpy() for out in back)
                means.append(255 * mean)
                squares.append(theta**2)
        variance = 2 * np.mean(squares, 0) + np.var(means, 0)
        error = np.abs(truth.numpy() - np.mean(means, 0).clip(0, 255))
        images.append((error, -np.log(0.4) * np.sqrt(variance / 2)))
        coverage = judged['images'][f'B/{number}']['coverage_predicted']
        assert coverage == pytest.approx(np.mean(images[-1][0] <= images[-1][1]), abs=2e-3)
    limit = F.risk_limit(4, 0.4, 0.3)
    assert limit < F.risk_limit(4, 0.4)
    for factor, half in zip(judged['factors'], (images[0::2], images[1::2]), strict=True):
        enough, too_small = (np.mean([np.mean(e > f * w) for e, w in half]) for f in (1.002 * factor, factor / 1.003))
        assert enough <= limit < too_small


def test_shifts_take_sixteen_bits_for_what_they_are():
    """The same picture in 16 bits becomes what it becomes in 8; noise would be cut off at 255 of 65535."""
    gt = photograph(1, 60, 64)[..., ::-1].copy()
    lq = cv2.resize(gt, (32, 30), interpolation=cv2.INTER_AREA)
    for kind in SHIFTS:
        usual, deep = (shifted(Pixels(lq.astype(kind_) * factor), Pixels(gt.astype(kind_) * factor), kind, 2).colour
                       for kind_, factor in ((np.uint8, 1), (np.uint16, 257)))
        np.testing.assert_array_equal(deep, usual)
        assert deep.dtype == np.uint8


@pytest.mark.parametrize('kind', SHIFTS)
def test_shifts_of_gray_pictures_are_gray(kind):
    gt = photograph(1, 60, 64)[..., :1].copy()
    made = shifted(Pixels(gt[::2, ::2].copy()), Pixels(gt), kind, 2).colour
    assert made.shape[2] == 3
    assert (made == made[..., :1]).all()


def test_shifts_are_what_they_say():
    original = Pixels(photograph(1, 60, 64)[..., ::-1].copy())
    lq = cv2.resize(original.colour, (32, 30), interpolation=cv2.INTER_AREA)
    made = {kind: shifted(Pixels(lq), original, kind, 2).colour for kind in SHIFTS}
    np.testing.assert_array_equal(made['BD'], degrade_bd(original.colour, 2))
    difference = made['noise'].astype(float) - lq
    assert np.std(difference[(lq > 40) & (lq < 215)]) == pytest.approx(10, rel=0.1)
    coded = cv2.imdecode(cv2.imencode('.jpg', lq[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(made['JPEG'], coded[..., ::-1])
    assert made['scale'].shape == (20, 21, 3)


@pytest.mark.parametrize('count', [2, 6])
def test_the_figure_of_many_runs_is_no_wider(count, tmp_path):
    """Letters of a figure that grew to the side would be too small on a page; it grows downwards."""
    runs = [SimpleNamespace(name=f'a run with a long name, number {n}', images={'1': {'coverage': 0.8 + n / 50}, '2': {
        'coverage': 0.95}}, least_covered=f'B/{n}', coverage_map=np.full((3, 4), n / 6)) for n in range(count)]
    out = coverage_figure(runs, 0.1, tmp_path / 'coverage.png')
    assert cv2.imread(str(out)).shape[1] == 7 * 150
