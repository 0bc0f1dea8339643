"""A run with both networks, and pairs of images kept apart."""
import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.utils import img2tensor
from conftest import photograph, status_of
from infer_runs import SMALL, Run

from udl_basicsr.archs import UncertaintyNet
from udl_basicsr.cli import calibrate as command
from udl_basicsr.deploy.calibration import file_beside

HEAD = {'type': 'UDLHead', 'num_feat': 8}


class CalibrationRun(Run):
    """``experiments/x`` with both networks, and ``kept/{GT,LQ}`` of six pairs."""

    def __init__(self, root):
        super().__init__(root)
        self.options_u = self.add_uncertainty()
        with torch.no_grad():  # θ of some ten grey levels
            self.net_u.head.conv3.weight.mul_(0.05)
            self.net_u.head.conv3.bias.fill_(3)
        torch.save({'params': self.net_u.state_dict()}, self.models / 'net_u_latest.pth')
        self.kept = root / 'kept'
        for kind in ('GT', 'LQ'):
            (self.kept / kind).mkdir(parents=True)
        for number in range(6):
            gt = photograph(number, 20 + 4 * number, 28)
            cv2.imwrite(str(self.kept / 'GT' / f'{number}.png'), gt)
            cv2.imwrite(str(self.kept / 'LQ' / f'{number}.png'), cv2.resize(
                gt, (14, gt.shape[0] // 2), interpolation=cv2.INTER_AREA))
        self.file = file_beside(self.models / 'net_u_latest.pth')

    def constant(self, log_scale: float) -> None:
        """Puts a head in the place of the usual one that says the same of every pixel."""
        network_g, head = {'type': 'EDSR', **SMALL}, {'type': 'ConstantHead'}
        self.net_u = UncertaintyNet(network_g, head).eval()
        with torch.no_grad():
            self.net_u.head.log_scale.fill_(log_scale)
        torch.save({'params': self.net_u.state_dict()}, self.models / 'net_u_latest.pth')
        self.options(network_g, {'type': 'UncertaintyNet', 'head': head})

    def calibrate(self, *arguments, alpha=0.25) -> int:
        return status_of(command.main, [str(a) for a in (
            self.models.parent, '--gt', self.kept / 'GT', '--lq', self.kept / 'LQ', '--alpha', alpha, '--device', 'cpu',
            *arguments)])

    def trained_on(self, folder, **more) -> None:
        file = self.models.parent / 'x.yml'
        file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), 'datasets': {'train': {
            'dataroot_gt': str(folder), **more}}}))

    def by_hand(self, number: int, alpha: float):
        """f (not rounded), x and half the Laplace interval of 1 − α, (H, W, 3) RGB in grey levels."""
        lq = img2tensor(cv2.imread(str(self.kept / 'LQ' / f'{number}.png')).astype(np.float32) / 255)[None]
        with torch.no_grad():
            f, (_, s) = self.network(lq), self.net_u(lq)
        f, s = (a[0].permute(1, 2, 0).numpy().astype(np.float64) for a in (f, s))
        x = cv2.imread(str(self.kept / 'GT' / f'{number}.png'))[..., ::-1].astype(np.float64)
        return 255 * f.clip(0, 1), x, -np.log(alpha) * np.exp(s)


@pytest.fixture
def run(tmp_path):
    return CalibrationRun(tmp_path)
