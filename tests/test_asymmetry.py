"""Heads other than Laplace's from the command to the pictures and the table, by hand: quantiles, generalised Gauss."""
import json

import cv2
import numpy as np
import pytest
import torch
from basicsr.utils import img2tensor
from calibration_runs import CalibrationRun
from conftest import status_of
from infer_runs import SMALL
from scipy import stats
from scipy.special import gamma
from test_calibrate import deep

from udl_basicsr.archs import UncertaintyNet
from udl_basicsr.cli import coverage
from udl_basicsr.deploy.calibration import read_calibration


class OtherHead(CalibrationRun):
    """A run whose head has another distribution; what it puts out varies from pixel to pixel."""

    def __init__(self, root, distribution):
        super().__init__(root)
        head = {'type': 'UDLHead', 'num_feat': 8, 'distribution': distribution}
        self.net_u = UncertaintyNet({'type': 'EDSR', **SMALL}, head).eval()
        # quantile: some 5 and 25 grey levels; else theta of some 10, and shapes on both sides of Laplace's
        first, second = (4., 24.) if distribution == 'quantile' else (2.3, 0.1)
        with torch.no_grad():
            last = self.net_u.head.conv3
            last.weight.mul_(2 if distribution == 'quantile' else 0.1)
            last.bias.copy_(torch.tensor([first] * 3 + [second] * 3))
        torch.save({'params': self.net_u.state_dict()}, self.models / 'net_u_latest.pth')
        self.options({'type': 'EDSR', **SMALL}, {'type': 'UncertaintyNet', 'head': head})
        self.distribution = distribution

    def maps(self, number, alpha):
        """f, x, below, above and theta of an image, (H, W, 3) in grey levels, float64."""
        lq = img2tensor(cv2.imread(str(self.kept / 'LQ' / f'{number}.png')).astype(np.float32) / 255)[None]
        with torch.no_grad():
            f, raw = self.network(lq), self.net_u(lq)[1]
        f, one, two = (a[0].permute(1, 2, 0).numpy().astype(np.float64) for a in (f, *raw.split(3, dim=1)))
        if self.distribution == 'quantile':
            below, above = ((1 + raw) * np.log(alpha) / np.log(0.1) for raw in (one, two))
            theta = (2 + one + two) / 2 / np.log(10)
        else:
            theta, beta = np.exp(one), 2**(-two / (1 + abs(two)))
            below = above = stats.gennorm(beta, scale=theta * gamma(1 / beta) / gamma(2 / beta)).isf(alpha / 2)
            assert beta.min() < 1 < beta.max()
        x = cv2.imread(str(self.kept / 'GT' / f'{number}.png'))[..., ::-1].astype(np.float64)
        return 255 * f.clip(0, 1), x, below, above, theta


def outside(f, x, below, above, factor=1.):
    return (x < f - factor * below) | (x > f + factor * above)


@pytest.mark.parametrize('distribution', ['quantile', 'generalised_gaussian'])
def test_other_heads_are_calibrated_written_and_judged(tmp_path, distribution):
    run = OtherHead(tmp_path, distribution)
    assert run.calibrate('--within', 200, alpha=0.25) == 0
    found, images = read_calibration(run.file), [run.maps(number, 0.25) for number in range(6)]

    def risk(factor):
        return np.mean([outside(*image[:4], factor).mean() for image in images])
    assert risk(1.0001 * found.factor) <= 0.25 - 0.75 / 6 < risk(found.factor / 1.0012)
    width = np.mean([(below + above).mean() for _, _, below, above, _ in images])
    assert found.mean_width == pytest.approx(found.factor * width, rel=1e-4)

    assert run(run.kept / 'LQ', *run.options_u, '--intervals', '--within', 200) == 0
    for number, (f, _, below, above, theta) in enumerate(images):
        lower, upper, written = (deep(run.out / f'{number}_{kind}.png') for kind in ('lower', 'upper', 'theta'))
        np.testing.assert_allclose(lower, (f - found.factor * below).clip(0, 255), atol=0.01, rtol=1e-4)
        np.testing.assert_allclose(upper, (f + found.factor * above).clip(0, 255), atol=0.01, rtol=1e-4)
        np.testing.assert_allclose(written, theta, atol=0.005, rtol=1e-4)
        mask = cv2.imread(str(run.out / f'{number}_within.png'), cv2.IMREAD_UNCHANGED) == 255
        expected = np.maximum(below, above).max(2) <= found.within['200']
        assert (mask == expected).mean() > 0.999

    for name, prepared in (('GT', 'GTmod2'), ('LQ', 'LRbicx2')):
        (run.kept / prepared).symlink_to(run.kept / name)
    out = run.root / 'judged'
    assert status_of(coverage.main, list(map(str, (
        run.models.parent, '--halve', run.kept, '--alpha', 0.4, '--device', 'cpu', '--out', out)))) == 0
    (judged, ) = json.loads((out / 'coverage.json').read_text())['runs']
    for number in range(6):
        f, x, below, above, theta = run.maps(number, 0.4)
        factor, scores = judged['factors'][1 - number % 2], judged['images'][f'kept/{number}']
        low, high = f - factor * below, f + factor * above
        missed = outside(f, x, below, above, factor).ravel()
        quarters = np.array_split(missed[np.argsort((high - low).ravel(), kind='stable')], 4)
        far = np.maximum(low - x, 0) + np.maximum(x - high, 0)
        expected = {'coverage': 1 - missed.mean(), 'coverage_predicted': 1 - outside(f, x, below, above).mean(),
                    'width': (high - low).mean(), 'worst_quarter': max(map(np.mean, quarters)),
                    'interval_score': (high - low + 2 / 0.4 * far).mean(), 'theta': theta.mean()}
        for key, value in expected.items():
            assert scores[key] == pytest.approx(value, rel=1e-4, abs=2e-3), key
    halves = [[run.maps(number, 0.4) for number in range(turn, 6, 2)] for turn in (0, 1)]
    for factor, images in zip(judged['factors'], halves, strict=True):
        enough, too_small = (np.mean([outside(*image[:4], f).mean() for image in images])
                             for f in (1.0001 * factor, factor / 1.0012))
        assert enough <= 0.4 - 0.6 / 3 < too_small
