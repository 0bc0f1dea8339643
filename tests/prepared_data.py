"""Pictures that are prepared."""
import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from udl_basicsr.cli import prepare as script


def picture(height=101, width=122, seed=0):
    """A colour image with edges and texture, (H, W, 3) RGB uint8."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.uniform(-1500, 1700, (height, width, 3)), (3, 3, 0))
    return np.clip(smooth + 128 + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)


def encode(img, format='PNG', mode=None, **options):
    buffer = io.BytesIO()
    img = img if isinstance(img, Image.Image) else Image.fromarray(img)
    (img.convert(mode) if mode else img).save(buffer, format, **options)
    return buffer.getvalue()


def run(source, out, *options):
    return script.main([str(source), '--out', str(out), '--workers', '1', *options])


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / 'HR'
    folder.mkdir()
    for index, (height, width) in enumerate(((101, 122), (96, 97), (75, 80))):
        (folder / f'{index}.png').write_bytes(encode(picture(height, width, index)))
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / 'out'
