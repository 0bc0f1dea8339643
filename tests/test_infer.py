"""udl infer: pixels against BasicSR's network run by hand, kinds of pictures, resuming, refusals."""
import errno
import io
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs.edsr_arch import EDSR
from basicsr.utils import img2tensor, tensor2img
from basicsr.utils.color_util import rgb2ycbcr
from basicsr.utils.matlab_functions import imresize
from basicsr.utils.registry import ARCH_REGISTRY
from conftest import photograph
from PIL import Image, ImageCms, ImageOps
from torch import nn
from torch.nn import functional as F

from udl_basicsr.archs import UncertaintyNet
from udl_basicsr.cli import infer as script
from udl_basicsr.deploy import infer as module
from udl_basicsr.deploy.export import export_safetensors
from udl_basicsr.deploy.infer import Restorer, make_plan
from udl_basicsr.deploy.infer_record import NAME
from udl_basicsr.deploy.pictures import read_header, read_picture
from udl_basicsr.functional.log_scale_maps import decode_log_scale

SMALL = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'upscale': 2}
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()


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


# ---------------------------------------------------------------------------------------------------------- pixels
@pytest.mark.parametrize('key', [None, 'params'])
def test_the_pixels_are_those_of_basicsr(run, key):
    path = run.picture()
    assert run(path, *(['--param-key', key] if key else [])) == 0
    lq = img2tensor([cv2.imread(str(path)).astype(np.float32) / 255])[0][None]
    with torch.no_grad():
        expected = tensor2img([(run.other if key else run.network)(lq)])
    np.testing.assert_array_equal(cv2.imread(str(run.out / 'a.png')), expected)


def test_16_bits_are_kept(run):
    image = cv2.resize(noise(6, 7, 3, bits=16), (28, 24), interpolation=cv2.INTER_LINEAR)
    cv2.imwrite(str(run.root / 'a.png'), image[..., ::-1])
    assert run(run.root / 'a.png') == 0
    sr = pixels(run.out / 'a.png')
    network = EDSR(**SMALL).double()
    network.load_state_dict(run.network.state_dict())
    network.mean = network.mean.double()
    with torch.no_grad():
        exact = network(torch.from_numpy(image.transpose(2, 0, 1)[None] / 65535.))[0].numpy().transpose(1, 2, 0)
    assert sr.dtype == np.uint16
    assert len(np.unique(sr)) > 1000
    assert np.abs(sr - 65535 * exact.clip(0, 1)).max() < 1


@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('planes', ['L', 'LA', 'RGB', 'RGBA'])
def test_every_kind_of_png_stays_what_it_is(run, planes, bits):
    image = noise(9, 11, len(planes), bits=bits)
    (run.root / 'a.png').write_bytes(png(image))
    run.nearest()
    assert run(run.root / 'a.png') == 0
    width, height, depth, colour_type, content = parse_png(run.out / 'a.png')
    assert (width, height, depth) == (22, 18, bits)
    assert colour_type == {'L': 0, 'RGB': 2, 'LA': 4, 'RGBA': 6}[planes]
    np.testing.assert_array_equal(content, twice(image))


@pytest.mark.parametrize('count', [1, 3])
def test_transparent_colours_of_16_bits(run, count):
    image = noise(5, 6, count, bits=16)
    (run.root / 'a.png').write_bytes(png(image, transparent=image[2, 3]))
    run.nearest()
    assert run(run.root / 'a.png') == 0
    *_, content = parse_png(run.out / 'a.png')
    opaque = np.full((5, 6), 65535)
    opaque[2, 3] = 0
    np.testing.assert_array_equal(content[..., :count], twice(image))
    np.testing.assert_array_equal(content[..., count], twice(opaque))


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


def parse_png(path: Path):
    """The header's fields, and (H, W, C) as OpenCV decodes it (which makes BGRA of gray with alpha)."""
    data = path.read_bytes()
    width, height = (int.from_bytes(data[i:i + 4], 'big') for i in (16, 20))
    image = np.atleast_3d(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))
    order = {0: [0], 2: [2, 1, 0], 4: [0, 3], 6: [2, 1, 0, 3]}[data[25]]
    return width, height, data[24], data[25], image[..., order]


def test_palettes_bits_and_transparent_colours(run):
    colours = noise(4, 3)
    index = np.random.randint(0, 4, (6, 8)).astype(np.uint8)
    for name, transparency in (('palette', None), ('holes', bytes([255, 0, 255, 128]))):
        image = Image.fromarray(index).convert('P')
        image.putdata(index.ravel().tolist())
        image.putpalette(colours.tobytes())
        image.save(run.root / f'{name}.png', **({'transparency': transparency} if transparency else {}))
    Image.fromarray(index > 1).save(run.root / 'bits.png')
    Image.fromarray(index).save(run.root / 'key.png', transparency=2)
    run.nearest()
    assert run(*(run.root / f'{name}.png' for name in ('palette', 'holes', 'bits', 'key'))) == 0
    np.testing.assert_array_equal(np.asarray(Image.open(run.out / 'palette.png')), twice(colours[index]))
    alpha = np.array([255, 0, 255, 128], np.uint8)[index]
    np.testing.assert_array_equal(np.asarray(Image.open(run.out / 'holes.png')),
                                  twice(np.dstack([colours[index], alpha])))
    np.testing.assert_array_equal(np.asarray(Image.open(run.out / 'bits.png')), twice(255 * (index > 1)))
    np.testing.assert_array_equal(np.asarray(Image.open(run.out / 'key.png')),
                                  twice(np.dstack([index, 255 * (index != 2)])))


@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation_is_applied_and_profiles_are_kept(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    rgb, gray = Image.fromarray(noise(16, 24, 3)), Image.fromarray(noise(16, 24, bits=16))
    for image, name in ((rgb, 'a.jpg'), (rgb, 'a.png'), (rgb, 'a.webp'), (gray, 'b.png')):
        image.save(tmp_path / name, exif=exif, icc_profile=ICC)
        picture = read_picture(tmp_path / name)
        np.testing.assert_array_equal(picture.colour.squeeze(), ImageOps.exif_transpose(Image.open(tmp_path / name)))
        assert picture.icc == ICC
    for image, name in ((rgb, 'a.png'), (gray, 'b.png')):  # Pillow and OpenCV turn TIFFs when they load them
        image.save(tmp_path / 'c.tif', exif=exif)
        np.testing.assert_array_equal(read_picture(tmp_path / 'c.tif').colour, read_picture(tmp_path / name).colour)


@pytest.mark.parametrize('bits', [8, 16])
def test_the_profile_goes_into_the_result(run, bits):
    file = io.BytesIO()
    Image.fromarray(noise(5, 6, 3)).save(file, format='PNG', icc_profile=ICC)
    data = file.getvalue()
    if bits == 16:  # the profile's chunk into a 16-bit PNG
        deep, start = png(noise(5, 6, 3, bits=16)), data.index(b'iCCP') - 4
        data = deep[:33] + data[start:start + 12 + int.from_bytes(data[start:start + 4], 'big')] + deep[33:]
    (run.root / 'a.png').write_bytes(data)
    assert run(run.root / 'a.png') == 0
    with Image.open(run.out / 'a.png') as image:
        assert image.info['icc_profile'] == ICC
    assert (run.out / 'a.png').read_bytes()[24] == bits


def test_gray_is_the_mean_of_what_an_rgb_network_makes(run):
    gray = noise(10, 12)
    Image.fromarray(gray).save(run.root / 'a.png')
    assert run(run.root / 'a.png') == 0
    with torch.no_grad():
        sr = run.network(torch.from_numpy(gray / np.float32(255)).expand(1, 3, 10, 12))
    expected = (sr.double().mean(1).clamp(0, 1) * 255)[0].numpy()
    assert pixels(run.out / 'a.png').ndim == 2
    assert np.abs(pixels(run.out / 'a.png') - expected).max() <= 0.501


def test_a_network_of_one_channel_restores_y_and_chroma_is_bicubic(run):
    image = (photograph(1, 24, 32).astype(np.uint16) * 180 + 10000)  # away from black and white
    Image.fromarray(noise(9, 7)).save(run.root / 'gray.png')
    cv2.imwrite(str(run.root / 'a.png'), image[..., ::-1])
    run.nearest(num_ch=1)
    assert run(run.root / 'a.png', run.root / 'gray.png') == 0
    lq = rgb2ycbcr((image / 65535).astype(np.float32))
    sr = rgb2ycbcr((pixels(run.out / 'a.png') / 65535).astype(np.float32))
    np.testing.assert_allclose(sr[..., 0], twice(lq[..., 0]), atol=3e-5)
    # Pillow's border is renormalised, MATLAB's is mirrored
    np.testing.assert_allclose(sr[4:-4, 4:-4, 1:], imresize(lq[..., 1:], 2)[4:-4, 4:-4], atol=3e-5)
    np.testing.assert_array_equal(pixels(run.out / 'gray.png'), twice(pixels(run.root / 'gray.png')))


def test_alpha_is_restored_as_gray_and_exact_where_it_is_flat(run):
    alpha = np.full((16, 18), 255, np.uint8)
    alpha[:, :6] = 0
    alpha[5:11, 9:] = 77
    Image.fromarray(np.dstack([noise(16, 18, 3), alpha])).save(run.root / 'a.png')
    assert run(run.root / 'a.png') == 0
    got = np.asarray(Image.open(run.out / 'a.png'))[..., 3]
    around = np.pad(alpha, 1, mode='edge')
    windows = np.lib.stride_tricks.sliding_window_view(around, (3, 3)).reshape(16, 18, 9)
    flat = windows.min(-1) == windows.max(-1)
    with torch.no_grad():
        sr = run.network(torch.from_numpy(alpha / np.float32(255)).expand(1, 3, 16, 18))
    by_network = (sr.mean(1).clamp(0, 1) * 255).round()[0].numpy()
    assert (by_network != twice(alpha))[twice(flat)].any()  # what the exception is for
    np.testing.assert_array_equal(got[twice(flat)], twice(alpha)[twice(flat)])
    assert np.abs(got.astype(int) - by_network)[twice(~flat)].max() <= 1


# ---------------------------------------------------------------------------------------------- ways to run a network
def test_tiles_make_the_same_picture(run):
    image = noise(40, 53, 3, bits=16)
    cv2.imwrite(str(run.root / 'a.png'), image)
    for name, options in (('whole', []), ('tiles', ['--tile', 16, '--overlap', 8]),
                          ('seams', ['--tile', 16, '--overlap', 0])):
        assert run(run.root / 'a.png', *options, out=run.root / name) == 0
    whole, tiles, seams = (pixels(run.root / n / 'a.png').astype(int) for n in ('whole', 'tiles', 'seams'))
    assert np.abs(whole - tiles).max() <= 1  # the receptive field is 7 pixels
    assert np.abs(whole - seams).max() > 100


def test_self_ensemble_is_the_mean_over_the_symmetries(run):
    path = run.picture()
    assert run(path, '--self-ensemble') == 0
    lq = torch.from_numpy(pixels(path).transpose(2, 0, 1).copy())[None] / 255
    views = [(dims, turned) for turned in (False, True) for dims in ((), (2, ), (3, ), (2, 3))]
    with torch.no_grad():
        total = 0
        for dims, turned in views:
            x = lq.transpose(2, 3) if turned else lq
            y = run.network(x.flip(dims)).flip(dims)
            total = total + (y.transpose(2, 3) if turned else y)
    expected = (total / 8).clamp(0, 1)[0].numpy().transpose(1, 2, 0) * 255
    assert np.abs(pixels(run.out / 'a.png') - expected).max() <= 0.501


def test_bf16_is_near_and_another(run):
    path = run.picture()
    assert run(path) == 0
    assert run(path, '--amp', 'bf16', out=run.root / 'bf16') == 0
    difference = np.abs(pixels(run.out / 'a.png').astype(int) - pixels(run.root / 'bf16' / 'a.png'))
    assert 0 < difference.max() < 12


@pytest.mark.parametrize('multiple', [8, 7])
def test_sizes_that_a_network_does_not_take_are_padded(run, multiple):
    sizes = [(1, 1), (3, 9), (13, 16)]
    for height, width in sizes:
        Image.fromarray(noise(height, width, 3)).save(run.root / f'{height}.png')
    run.nearest(multiple=multiple)
    assert run(*(run.root / f'{h}.png' for h, _ in sizes)) == 0
    for height, _ in sizes:
        np.testing.assert_array_equal(pixels(run.out / f'{height}.png'), twice(pixels(run.root / f'{height}.png')))


def test_padding_is_left_out_where_a_network_does_without():
    assert Restorer(NearestForTests()).traits == (3, 2, 1)
    assert Restorer(NearestForTests(1, multiple=8)).traits == (1, 2, 8)


def test_the_map_is_the_networks_own(run):
    path, options = run.picture(), run.add_uncertainty()
    for name, more in (('whole', []), ('tiles', ['--tile', 8, '--overlap', 12])):
        assert run(path, *options, *more, out=run.root / name) == 0
        lq = torch.from_numpy(pixels(path).transpose(2, 0, 1).copy())[None] / 255
        with torch.no_grad():
            s = run.net_u.log_scale(lq).double().mean(1)[0].numpy()
        got = decode_log_scale(pixels(run.root / name / 'a_log_scale.png'))
        assert got.shape == (24, 28)
        assert ((s > -2) & (s < 6)).mean() > 0.5
        assert s.std() > 0.1
        assert np.abs(got - s.clip(-2, 6)).max() < 1e-4  # of 16 bits
        assert (run.root / name / 'a.png').exists()


def test_progress_counts_what_is_run(run):
    options = run.add_uncertainty()
    path = run.picture(height=20, width=30)
    for tile, ensemble in ((None, False), (8, False), (8, True)):
        restorer = Restorer(run.network, run.net_u, tile=tile, self_ensemble=ensemble)
        job = make_plan([path], run.out, log_scale=bool(options)).jobs[0]
        ticks = []
        module._restore(job, read_picture(path), restorer, lambda ticks=ticks: ticks.append(1))
        assert len(ticks) == restorer.runs(job) == (1 if tile is None else 12) * (8 if ensemble else 1) * 2


# --------------------------------------------------------------------------------------------------- files, resuming
def test_folders_are_kept_and_the_results_in_them_passed_over(run, capsys):
    for number, name in enumerate(('top.png', 'deep/er/a.png', 'deep/a.png', '.hidden.png')):
        run.picture(f'in/{name}', 3, 4, number)
    (run.root / 'in' / 'notes.txt').write_text('no picture')
    for _ in range(2):
        assert run(run.root / 'in', out=run.root / 'in' / 'sr') == 0
    results = run.root / 'in' / 'sr'
    found = {str(p.relative_to(results)) for p in results.rglob('*') if p.is_file() and p.name != NAME}
    assert found == {'top.png', 'deep/er/a.png', 'deep/a.png'}
    out = capsys.readouterr().out
    assert '1 .txt' in out
    assert '3 done before, skipped' in out


def test_only_what_is_missing_is_made(run, capsys):
    path, options = run.picture(), run.add_uncertainty()
    assert run(path) == 0
    (run.out / 'a.png').write_bytes(b'kept')
    assert run(path, *options) == 0
    assert (run.out / 'a.png').read_bytes() == b'kept'
    assert (run.out / 'a_log_scale.png').exists()
    assert 'skipped' not in capsys.readouterr().out
    assert run(path, *options) == 0
    assert '1 done before, skipped' in capsys.readouterr().out
    assert run(path, *options, '--overwrite') == 0
    assert pixels(run.out / 'a.png').shape == (24, 28, 3)


def refused(run, capsys, *arguments) -> str:
    """Status 2, and not a byte of the folder has changed; what was said."""
    before = {p: p.read_bytes() for p in run.out.rglob('*') if p.is_file()}
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert 'Give another --out or --suffix, or make all of them again with --overwrite' in said
    assert {p: p.read_bytes() for p in run.out.rglob('*') if p.is_file()} == before
    return said


def test_results_of_other_weights_or_options_are_not_mixed(run, capsys):
    path, other = run.picture(), run.picture('b.png', seed=1)
    assert run(path) == 0
    assert f'{run.out}: holds pictures that were made otherwise' in (
        said := refused(run, capsys, path, '--param-key', 'params'))
    assert re.search(r'--weights: \S+net_g_latest.pth \(\w{8}\) there, \S+net_g_latest.pth \(\w{8}\) now', said)
    assert '--self_ensemble: no there, yes now' in refused(run, capsys, other, '--self-ensemble')
    assert '--amp: no there, bf16 now' in refused(run, capsys, path, '--amp', 'bf16')
    run.options({'type': 'EDSR', **SMALL, 'res_scale': 0.5})
    assert 'network_g.res_scale: not set there, 0.5 now' in refused(run, capsys, path)
    run.options({'type': 'EDSR', **SMALL})
    assert run(path, '--tile', '8', '--overlap', '4') == 0  # the same pixels, all but

    assert run(path, '--suffix', 'raw', '--param-key', 'params') == 0  # beside one another, under other names
    assert run(path) == run(path, '--suffix', 'raw', '--param-key', 'params') == 0
    assert run(path, '--param-key', 'params', '--overwrite') == 0
    np.testing.assert_array_equal(pixels(run.out / 'a.png'), pixels(run.out / 'a_raw.png'))
    assert run(path, '--param-key', 'params') == 0
    refused(run, capsys, path)
    for file in run.out.glob('*.png'):
        file.unlink()
    assert run(path) == 0  # nothing is left to be mixed with


def test_maps_of_other_weights_are_not_mixed(run, capsys):
    path, options = run.picture(), run.add_uncertainty()
    assert run(path, *options) == 0
    assert run(path) == 0  # leaves the map, and what made it
    run.add_uncertainty()
    said = refused(run, capsys, path, *options)
    assert '--uncertainty: ' in said
    assert '--weights' not in said


@pytest.mark.parametrize('record', [None, '', '[]', '{"": [3]}', '{"": 3}', '{"": [{"weights": []}]}'])
def test_pictures_that_nothing_is_known_of_are_not_taken_for_results(run, capsys, record):
    path = run.picture()
    assert run(path) == 0
    (run.out / NAME).unlink()
    if record is not None:
        (run.out / NAME).write_text(record)
    said = refused(run, capsys, path)
    assert ('nothing says which weights made them' in said) == (record is None or 'weights' not in record)
    assert run(path, '--overwrite') == run(path) == 0


def test_an_overwriting_that_has_not_come_to_its_end_is_a_mix(run, capsys):
    paths = [run.picture(f'in/{name}.png', seed=n) for n, name in enumerate('ab')]
    assert run(*paths) == 0
    whole = paths[1].read_bytes()
    (run.root / 'in' / 'b.png').write_bytes(whole[:len(whole) // 2])
    other = ['--param-key', 'params']
    assert run(*paths, *other, '--overwrite') == 1
    refused(run, capsys, *paths, *other)
    refused(run, capsys, *paths)
    paths[1].write_bytes(whole)
    assert run(*paths, *other, '--overwrite') == run(*paths, *other) == 0


@pytest.mark.parametrize(('name', 'file_format', 'expected'), [
    ('a.JPG', 'same', 'a_x2.jpg'), ('a.webp', 'same', 'a_x2.webp'), ('a.tif', 'same', 'a_x2.tif'),
    ('a.bmp', 'same', 'a_x2.bmp'), ('a.png', 'jpg', 'a_x2.jpg'), ('a.jpg', 'png', 'a_x2.png')])
def test_formats_and_names(run, name, file_format, expected):
    Image.fromarray(photograph(0, 10, 12)).save(run.root / name)
    run.nearest()
    assert run(run.root / name, '--format', file_format, '--suffix', 'x2') == 0
    assert made(run.out) == [expected]
    assert read_header(run.out / expected).suffix == Path(expected).suffix
    difference = twice(np.asarray(Image.open(run.root / name))).astype(int) - np.asarray(Image.open(run.out / expected))
    assert np.abs(difference).max() <= (0 if not expected.endswith('jpg') else 24)


def test_deep_tiff_and_deep_to_jpeg(run):
    image = noise(8, 9, 3, bits=16)
    cv2.imwrite(str(run.root / 'a.tif'), image[..., ::-1])
    run.nearest()
    assert run(run.root / 'a.tif', '--format', 'same') == 0
    np.testing.assert_array_equal(pixels(run.out / 'a.tif'), twice(image))
    assert run(run.root / 'a.tif', '--format', 'jpg') == 0
    assert pixels(run.out / 'a.jpg').dtype == np.uint8


def test_safetensors_hold_their_options(run):
    pytest.importorskip('safetensors')
    path = run.picture()
    export_safetensors(run.network.state_dict(), run.root / 'g.safetensors', {'network_g': {'type': 'EDSR', **SMALL}})
    assert run(path) == 0
    assert script.main([str(path), '--out', str(run.root / 'st'), '--weights', str(run.root / 'g.safetensors')]) == 0
    np.testing.assert_array_equal(pixels(run.out / 'a.png'), pixels(run.root / 'st' / 'a.png'))


# ---------------------------------------------------------------------------------------------- failures, refusals
def test_a_broken_picture_does_not_stop_the_others(run, capsys):
    for number in range(3):
        run.picture(f'in/{number}.png', seed=number)
    data = (run.root / 'in' / '1.png').read_bytes()
    (run.root / 'in' / '1.png').write_bytes(data[:len(data) // 2])
    assert run(run.root / 'in') == 1
    assert made(run.out) == ['0.png', '2.png']
    said = capsys.readouterr()
    assert '2 done' in said.out
    assert '1 failed:' in said.err
    assert '1.png: cannot be read' in said.err


@pytest.mark.parametrize('bits', [8, 16])
def test_truncated_pictures_are_not_filled_with_black(run, bits):
    data = png(noise(40, 40, 3, bits=bits))
    (run.root / 'a.png').write_bytes(data[:len(data) // 2])
    assert run(run.root / 'a.png') == 1
    assert no_files(run.out)


def test_too_little_memory_names_the_remedy(run, capsys):
    paths = [run.picture('small.png', 10, 10), run.picture('large.png', 40, 40)]
    run.nearest(fails_above=600)
    assert run(*paths) == 1
    assert (run.out / 'small.png').exists()
    assert 'large.png: its 40x40 pixels do not fit into the memory' in (said := capsys.readouterr().err)
    assert '--tile' in said
    assert run(*paths, '--tile', 8, '--overlap', 4) == 0
    np.testing.assert_array_equal(pixels(run.out / 'large.png'), twice(pixels(paths[1])))


def test_values_that_are_not_finite_are_no_picture(run, capsys):
    path = run.picture()
    run.nearest()
    torch.save({'params': {'gain': torch.full((3, 1, 1, 1), torch.nan)}}, run.models / 'net_g_latest.pth')
    assert run(path) == 1
    assert 'not finite' in capsys.readouterr().err
    assert no_files(run.out)


def test_a_full_disk_ends_the_run(run, capsys, monkeypatch):
    paths = [run.picture(f'{n}.png') for n in range(3)]
    write = module.write_atomically

    def full(path, data):
        if path.name != '0.png':
            raise OSError(errno.ENOSPC, 'No space left on device', str(path))
        write(path, data)

    monkeypatch.setattr(module, 'write_atomically', full)
    assert run(*paths) == 1
    assert 'No space left on device' in capsys.readouterr().err
    assert made(run.out) == ['0.png']
    monkeypatch.undo()
    assert run(*paths) == 0
    assert len(made(run.out)) == 3


def test_all_that_is_wrong_is_said_at_once(run, capsys, monkeypatch):
    root = run.root
    good = run.picture()
    run.picture('other/a.jpg')
    (root / 'empty').mkdir()
    (root / 'text.png').write_text('no picture')
    (root / 'nothing.png').write_bytes(b'')
    run.picture('large.png', 40, 40)
    frames = [Image.fromarray(noise(4, 4, 3)) for _ in range(2)]
    frames[0].save(root / 'moving.webp', save_all=True, append_images=frames[1:])
    Image.fromarray(np.random.rand(4, 4).astype(np.float32)).save(root / 'float.tif')
    Image.fromarray(noise(4, 4, 4)).convert('CMYK').save(root / 'cmyk.jpg')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 500)
    assert run(good, root / 'gone.png', root / 'other', root / 'empty', root / 'text.png', root / 'nothing.png',
               root / 'large.png', root / 'moving.webp', root / 'float.tif', root / 'cmyk.jpg') == 2
    said = capsys.readouterr().err
    for problem in ('gone.png: no such file or folder', f'a.jpg: would become {run.out}/a.png, and so would',
                    'empty: holds no picture', 'text.png: cannot be read', 'nothing.png: cannot be read',
                    'large.png: is larger than the 1000 pixels', 'moving.webp: holds several pictures',
                    'float.tif: has the colour mode F', 'cmyk.jpg: has the colour mode CMYK'):
        assert problem in said
    assert len(said.splitlines()) == 10
    assert no_files(run.out)


@pytest.mark.parametrize('compression', [None, 'tiff_lzw'])
def test_a_tiff_of_two_pages_that_is_cut_off(run, capsys, compression):
    """Wherever it is cut: Pillow reads the second page's entries when it is asked how many there are."""
    pages = [Image.fromarray(noise(4, 4, 3)) for _ in range(2)]
    path = run.root / 'pages.tif'
    pages[0].save(path, save_all=True, append_images=pages[1:], **({'compression': compression} if compression else {}))
    whole = path.read_bytes()
    for length in (*range(0, len(whole), 7), len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(module.InferenceError, match=r'pages\.tif: (cannot be read|holds several|has the colour)'):
            make_plan([path], run.out)
    path.write_bytes(whole[:142])
    assert run(path) == 2
    assert 'pages.tif: ' in capsys.readouterr().err


def test_texts_that_unpack_to_any_size(run, capsys):
    path = run.picture('a.png')
    data = path.read_bytes()
    text = b'a\0\0' + zlib.compress(bytes(50_000_000), 1)
    chunk = struct.pack('>I', len(text)) + b'zTXt' + text + struct.pack('>I', zlib.crc32(b'zTXt' + text))
    path.write_bytes(data[:-12] + chunk + data[-12:])
    assert run(path) == 2
    assert f'{path}: has texts or a profile that unpack to more than 1048576 bytes' in capsys.readouterr().err


def test_nothing_is_written_over_an_input(run, capsys):
    path = run.picture('in/a.png')
    before = path.read_bytes()
    (run.root / 'link').symlink_to(run.root / 'in')
    assert run(path, out=run.root / 'in', ) == 2
    assert run(path, out=run.root / 'link') == 2
    assert run(path, '--overwrite', out=run.root / 'in') == 2
    assert capsys.readouterr().err.count('would be written over an input') == 3
    assert run(run.root / 'in', out=run.root / 'link' / '.') == 2
    assert 'is the folder of --out' in capsys.readouterr().err
    assert run(path, '--suffix', 'x2', out=run.root / 'in') == 0
    assert path.read_bytes() == before


def test_a_name_that_no_file_can_have_is_refused(run, capsys):
    path = run.picture('in/a.png')
    assert run(path, '--suffix', 'é' * 130) == 2
    assert 'in/a.png: the name of its result, a_ééé' in capsys.readouterr().err
    assert no_files(run.out)


def test_a_map_and_a_picture_do_not_share_a_name(run, capsys):
    paths = [run.picture('a.png'), run.picture('a_log_scale.png')]
    assert run(*paths, *run.add_uncertainty()) == 2
    assert f'would become {run.out}/a_log_scale.png, and so would' in capsys.readouterr().err
    assert no_files(run.out)


def test_one_file_under_two_names_is_one_picture(run):
    path = run.picture('in/a.png')
    assert len(make_plan([path, run.root / 'in', run.root / 'in' / '..' / 'in' / 'a.png'], run.out).jobs) == 1


def test_what_a_format_cannot_hold_is_refused(run, capsys, monkeypatch):
    Image.fromarray(noise(4, 4, 4)).save(run.root / 'a.png')
    assert run(run.root / 'a.png', '--format', 'jpg') == 2
    assert 'has transparency, which jpg cannot hold' in capsys.readouterr().err
    Image.fromarray(noise(1, 8200, 3)).save(run.root / 'long.webp', lossless=True)
    run.nearest()
    assert run(run.root / 'long.webp', '--format', 'same') == 1
    assert 'more than the 16383 a side' in capsys.readouterr().err
    assert no_files(run.out)


def test_a_folder_that_is_a_file_is_refused(run, capsys):
    path = run.picture()
    assert run(path, out=path / 'sr') == 2
    assert 'is a file, expected a folder' in capsys.readouterr().err
    assert run(path, '--suffix', '../x') == 2
    assert 'expected a part of a file name' in capsys.readouterr().err


@pytest.mark.parametrize(('change', 'problem'), [
    (lambda run: (run.models / 'net_g_latest.pth').unlink(), 'net_g_latest.pth: no such file'),
    (lambda run: (run.models.parent / 'x.yml').unlink(), 'which network is it?'),
    (lambda run: run.options({'type': 'EDSR', **SMALL, 'num_feat': 16}), 'made by a network with other settings'),
    (lambda run: run.options({'type': 'NoSuchNet'}), 'NoSuchNet'),
    (lambda run: (run.models / 'net_g_latest.pth').write_bytes(b'no checkpoint'), 'cannot be read'),
    (lambda run: (run.models.parent / 'x.yml').write_text('network_g: !!python/object/apply:os.getcwd []'), 'tag'),
])
def test_networks_that_do_not_fit_are_refused(run, capsys, change, problem):
    path = run.picture()
    change(run)
    assert run(path) == 2
    assert problem in capsys.readouterr().err
    assert no_files(run.out)


def test_an_uncertainty_that_does_not_fit_is_refused(run, capsys):
    path, options = run.picture(), run.add_uncertainty()
    run.options({'type': 'EDSR', **SMALL})
    assert run(path, *options) == 2
    assert 'have no network_u' in capsys.readouterr().err
    run.add_uncertainty()
    run.nearest()
    (run.root / 'u').mkdir()
    four = {'type': 'EDSR', **SMALL, 'upscale': 4}
    net_u = UncertaintyNet(four, {'type': 'UDLHead', 'num_feat': 8})
    other = run.root / 'experiments' / 'u' / 'models' / 'net_u_latest.pth'
    other.parent.mkdir(parents=True)
    torch.save({'params': net_u.state_dict()}, other)
    (other.parents[1] / 'u.yml').write_text(yaml.safe_dump({'network_g': four, 'network_u': {
        'type': 'UncertaintyNet', 'head': {'type': 'UDLHead', 'num_feat': 8}}}))
    assert run(path, '--uncertainty', other) == 2
    assert 'it belongs to another network' in capsys.readouterr().err
    assert no_files(run.out)


def test_a_network_that_makes_no_larger_picture_is_refused():
    with pytest.raises(module.InferenceError, match='cannot restore pictures'):
        Restorer(nn.Conv2d(3, 1, 3)).traits  # noqa: B018
    with pytest.raises(module.InferenceError, match='cannot restore pictures'):
        Restorer(nn.Conv2d(4, 4, 3, padding=1)).traits  # noqa: B018


@pytest.mark.parametrize('arguments', [['--tile', '0'], ['--overlap', '-1'], ['--amp', 'fp8'], ['--format', 'gif']])
def test_wrong_options_exit_with_2(run, arguments):
    with pytest.raises(SystemExit) as exit_status:
        run(run.picture(), *arguments)
    assert exit_status.value.code == 2
    assert no_files(run.out)


def test_the_command_line(run):
    """A process of its own, from another folder: status 1 for a broken picture, and the other one is made."""
    run.picture('in/a.png')
    (run.root / 'in' / 'b.png').write_bytes(png(noise(20, 20, 3))[:300])
    result = subprocess.run(
        [sys.executable, '-m', 'udl_basicsr', 'infer', 'in', '--out', 'sr', '--weights',
         'experiments/x/models/net_g_latest.pth', '-opt', 'experiments/x/x.yml'],
        cwd=run.root, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1, result.stderr
    assert made(run.root / 'sr') == ['a.png']
    assert '1/2 in/a.png -> sr/a.png' in result.stdout
    assert 'b.png: cannot be read' in result.stderr
