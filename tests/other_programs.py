"""Other programs' networks, written after their weights, and `udl convert` from Python."""
import re

import pytest
import torch
import yaml
from torch.nn import functional as F

from udl_basicsr.cli import convert as script

MEAN = (0.4488, 0.4371, 0.4040)


# ----------------------------------------------------------------------------------------- the other programs' networks

class TheirCARN:
    """Weights by their released names, and what is computed with them; ``mobile`` is CARN-M."""

    def __init__(self, mobile, width=8, groups=4, scales=(2, 3, 4)):
        self.mobile, self.groups = mobile, groups if mobile else 1
        shapes = {'entry': (width, 3, 3), 'exit': (3, width, 3), 'sub_mean.shifter': (3, 3, 1),
                  'add_mean.shifter': (3, 3, 1)}
        for b in ('b1', 'b2', 'b3'):
            for u in ('b1', ) if mobile else ('b1', 'b2', 'b3'):
                shapes |= {f'{b}.{u}.body.{i}': (width, width // self.groups, 3) for i in (0, 2)}
                shapes |= {f'{b}.{u}.body.4': (width, width, 1)} if mobile else {}
        for prefix in ('', 'b1.', 'b2.', 'b3.'):
            shapes |= {f'{prefix}c{i}.body.0': (width, width * (i + 1), 1) for i in (1, 2, 3)}
        for scale in scales:
            name = f'up{scale}' if len(scales) > 1 else 'up'
            for i, r in enumerate([3] if scale == 3 else [2] * (scale // 2)):
                shapes[f'upsample.{name}.body.{3 * i}'] = (r * r * width, width // self.groups, 3)
        self.weights = {}
        for name, (o, i, k) in shapes.items():
            self.weights[f'{name}.weight'] = torch.randn(o, i, k, k) / (i * k * k)**0.5
            self.weights[f'{name}.bias'] = 0.1 * torch.randn(o)
        for name, sign in (('sub', -1), ('add', 1)):
            self.weights[f'{name}_mean.shifter.weight'] = torch.eye(3)[..., None, None]
            self.weights[f'{name}_mean.shifter.bias'] = sign * torch.tensor(MEAN)

    def conv(self, name, x, groups=1):
        weight = self.weights[f'{name}.weight']
        return F.conv2d(x, weight, self.weights[f'{name}.bias'], padding=weight.shape[-1] // 2, groups=groups)

    def unit(self, name, x):
        y = self.conv(f'{name}.body.2', self.conv(f'{name}.body.0', x, self.groups).relu(), self.groups)
        return ((self.conv(f'{name}.body.4', y.relu()) if self.mobile else y) + x).relu()

    def block(self, name, x):
        c, y = x, x
        for i in (1, 2, 3):
            c = torch.cat([c, self.unit(f'{name}.b{1 if self.mobile else i}', y)], 1)
            y = self.conv(f'{name}.c{i}.body.0', c).relu()
        return y

    def __call__(self, x, scale, name):
        x = self.conv('entry', self.conv('sub_mean.shifter', x))
        c, y = x, x
        for i in (1, 2, 3):
            c = torch.cat([c, self.block(f'b{i}', y)], 1)
            y = self.conv(f'c{i}.body.0', c).relu()
        for i, r in enumerate([3] if scale == 3 else [2] * (scale // 2)):
            y = F.pixel_shuffle(self.conv(f'upsample.{name}.body.{3 * i}', y, self.groups).relu(), r)
        return self.conv('add_mean.shifter', self.conv('exit', y))


# -------------------------------------------------------------------------------------------------------------- helpers

def run(capsys, *argv, fails=None):
    """The script, as a user calls it: the YAML that it prints, or the error that it must end with."""
    status = script.main([str(a) for a in argv])
    printed = capsys.readouterr()
    if fails:
        assert status == 2
        assert re.search(fails, printed.err), printed.err
        assert not printed.out
    else:
        assert status == 0, printed.err
    return (yaml.safe_load(printed.out), printed.err) if printed.out else (None, printed.err)


def close(a, b):
    # of a pixel in [0, 1]; more where random weights make pixels larger than 1
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * max(1, b.abs().max().item()))


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield
