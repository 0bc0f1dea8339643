"""Networks and pictures for `udl infer`, run from Python."""
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs.edsr_arch import EDSR
from basicsr.utils.registry import ARCH_REGISTRY
from conftest import photograph
from torch import nn
from torch.nn import functional as F

from udl_basicsr.archs import UncertaintyNet
from udl_basicsr.cli import infer as script
from udl_basicsr.deploy.infer_record import NAME

SMALL = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'upscale': 2}


@ARCH_REGISTRY.register()
class NearestForTests(nn.Module):
    """Nearest-neighbour enlargement by 2, so that every output is known; takes multiples of ``multiple`` only."""

    def __init__(self, num_ch: int = 3, multiple: int = 1, fails_above: int = 10**9, fill: float = 0.):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(num_ch, 1, 1, 1))
        self.num_ch, self.multiple, self.fails_above, self.fill = num_ch, multiple, fails_above, fill

    def forward(self, x):
        height, width = x.shape[2:]
        if height * width > self.fails_above:
            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB.\nmore')
        assert height % self.multiple == 0, f'{height} is no multiple of {self.multiple}'
        assert width % self.multiple == 0, f'{width} is no multiple of {self.multiple}'
        return F.interpolate(F.conv2d(x, self.gain, groups=self.num_ch), scale_factor=2) + self.fill


@ARCH_REGISTRY.register()
class WindowsForTests(nn.Module):
    """Enlarges by 2 and adds to each pixel the mean of its window: images are padded to whole windows, and cropped."""

    def __init__(self, split_size=(2, 3)):
        super().__init__()
        self.size = split_size
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x):
        (height, width), (rows, columns) = x.shape[2:], self.size
        x = F.pad(x, (0, -width % columns, 0, -height % rows), 'replicate')
        means = F.interpolate(F.avg_pool2d(x, self.size), scale_factor=self.size)
        return F.interpolate(self.gain * (x + means), scale_factor=2)[..., :2 * height, :2 * width] / 2


class Run:
    """``experiments/x`` as a training run leaves it, and a folder to work in."""

    def __init__(self, root: Path):
        self.root, self.out = root, root / 'out'
        self.models = root / 'experiments' / 'x' / 'models'
        self.models.mkdir(parents=True)
        self.network, self.net_u = EDSR(**SMALL).eval(), None
        with torch.no_grad():
            for p in self.network.parameters():
                p.add_(0.02 * torch.randn_like(p))
        self.other = EDSR(**SMALL).eval()
        torch.save({'params': self.other.state_dict(), 'params_ema': self.network.state_dict()},
                   self.models / 'net_g_latest.pth')
        self.options({'type': 'EDSR', **SMALL})

    def options(self, network_g: dict, network_u: dict | None = None) -> None:
        (self.models.parent / 'x.yml').write_text(yaml.safe_dump(
            {'name': 'x', 'network_g': network_g, **({'network_u': network_u} if network_u else {})}))

    def add_uncertainty(self) -> list:
        self.net_u = UncertaintyNet({'type': 'EDSR', **SMALL}, {'type': 'UDLHead', 'num_feat': 8}).eval()
        torch.save({'params': self.net_u.state_dict()}, self.models / 'net_u_latest.pth')
        self.options({'type': 'EDSR', **SMALL},
                     {'type': 'UncertaintyNet', 'head': {'type': 'UDLHead', 'num_feat': 8}})
        return ['--uncertainty', self.models / 'net_u_latest.pth']

    def nearest(self, **arguments) -> None:
        """Puts the known network in the place of EDSR."""
        torch.save({'params': NearestForTests(**arguments).state_dict()}, self.models / 'net_g_latest.pth')
        self.options({'type': 'NearestForTests', **arguments})

    def __call__(self, *arguments, out=None) -> int:
        arguments = [*arguments, '--out', out or self.out, '--weights', self.models / 'net_g_latest.pth',
                     '--device', 'cpu']
        return script.main([str(a) for a in arguments])

    def picture(self, name='a.png', height=12, width=14, seed=0) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), photograph(seed, height, width))
        return path


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def pixels(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return image[..., ::-1] if image.ndim == 3 and image.shape[2] == 3 else image


def noise(*shape, bits=8) -> np.ndarray:
    return np.random.randint(0, 2**bits, shape).astype(np.uint8 if bits == 8 else np.uint16)


def twice(image: np.ndarray) -> np.ndarray:
    return image.repeat(2, 0).repeat(2, 1)


def made(folder: Path) -> list[str]:
    """The names of what lies in a folder of results, beside the record of what made it."""
    return sorted(p.name for p in folder.iterdir() if p.name != NAME)


def no_files(folder: Path) -> bool:
    return not folder.exists()


def png(image: np.ndarray, transparent: np.ndarray | None = None) -> bytes:
    """By the format's text, with no filter; the libraries at hand write no 16-bit gray with alpha."""
    height, width, count = image.shape
    rows = image.astype(image.dtype.newbyteorder('>')).reshape(height, -1)
    data = zlib.compress(b''.join(b'\0' + row.tobytes() for row in rows))

    def chunk(kind, content):
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))

    head = struct.pack('>IIBBBBB', width, height, 8 * image.itemsize, {1: 0, 2: 4, 3: 2, 4: 6}[count], 0, 0, 0)
    key = b'' if transparent is None else chunk(b'tRNS', transparent.astype('>u2').tobytes())
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + key + chunk(b'IDAT', data) + chunk(b'IEND', b'')
