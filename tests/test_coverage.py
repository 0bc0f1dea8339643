"""udl coverage: halves that change places, shifted inputs, and the table, against the networks by hand."""
import json

import cv2
import numpy as np
import pytest
from conftest import photograph, status_of
from test_calibrate import CalibrationRun

from udl_basicsr import functional as F
from udl_basicsr.cli import coverage as command
from udl_basicsr.data.degradations import degrade_bd
from udl_basicsr.deploy.judging import SHIFTS, shifted
from udl_basicsr.deploy.pictures import Pixels
from udl_basicsr.functional.risk_control import FACTORS


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
