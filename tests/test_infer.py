"""udl infer: pixels against BasicSR's network run by hand, for every kind of picture and way to run."""
# ruff: noqa: F811 - fixtures that come from infer_runs
import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from basicsr.archs.edsr_arch import EDSR
from basicsr.utils import img2tensor, tensor2img
from basicsr.utils.color_util import rgb2ycbcr
from basicsr.utils.matlab_functions import imresize
from conftest import photograph
from infer_runs import SMALL, NearestForTests, noise, pixels, png, run, twice  # noqa: F401
from PIL import Image, ImageCms, ImageOps

from udl_basicsr.deploy import infer as module
from udl_basicsr.deploy.infer_plan import InferenceError, make_plan
from udl_basicsr.deploy.pictures import read_picture
from udl_basicsr.deploy.restorer import Restorer
from udl_basicsr.functional import inference
from udl_basicsr.functional.log_scale_maps import decode_log_scale
from udl_basicsr.utils import processor

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()


class Viewing(EDSR):
    """As some attention does: all of its maps in one row."""
    refuses = False

    def forward(self, x):
        if self.refuses:
            raise RuntimeError('it refuses')
        return super().forward(x.view(1, -1).view(x.shape))


# --------------------------------------------------------------------------------------------------------------- pixels

@pytest.mark.parametrize('key', [None, 'params', 'none'])
def test_the_pixels_are_those_of_basicsr(run, key):
    path = run.picture()
    if key == 'none':  # as other programs save weights
        torch.save(run.other.state_dict(), run.models / 'net_g_latest.pth')
    assert run(path, *(['--param-key', key] if key == 'params' else [])) == 0
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


# ------------------------------------------------------------------------------------------------ ways to run a network

def test_tiles_make_the_same_picture(run):
    image = noise(40, 53, 3, bits=16)
    cv2.imwrite(str(run.root / 'a.png'), image)
    for name, options in (('whole', []), ('tiles', ['--tile', 16, '--overlap', 8]),
                          ('seams', ['--tile', 16, '--overlap', 0])):
        assert run(run.root / 'a.png', *options, out=run.root / name) == 0
    whole, tiles, seams = (pixels(run.root / n / 'a.png').astype(int) for n in ('whole', 'tiles', 'seams'))
    assert np.abs(whole - tiles).max() <= 1  # the receptive field is 7 pixels
    assert np.abs(whole - seams).max() > 100


@pytest.mark.parametrize('network_g', [
    {'type': 'WindowsForTests', 'split_size': [4, 6]},
    {'type': 'SwinIR_spandrel', 'upscale': 2, 'embed_dim': 4, 'depths': [2], 'num_heads': [1], 'mlp_ratio': 1,
     'window_size': 4, 'upsampler': 'pixelshuffledirect'}])
def test_tiles_have_the_windows_of_the_whole_picture(run, network_g):
    """Of networks that pad images themselves too: their windows would begin anew in each tile."""
    if 'spandrel' in network_g['type']:
        pytest.importorskip('spandrel')
    network = build_network(dict(network_g)).eval()
    for p in network.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    torch.save({'params': network.state_dict()}, run.models / 'net_g_latest.pth')
    run.options(network_g)
    cv2.imwrite(str(run.root / 'a.png'), noise(37, 43, 3, bits=16))
    assert run(run.root / 'a.png') == 0
    assert run(run.root / 'a.png', '--tile', 9, '--overlap', 23, out=run.root / 'tiles') == 0
    whole, tiles = (pixels(folder / 'a.png').astype(int) for folder in (run.out, run.root / 'tiles'))
    assert np.abs(whole - tiles).max() <= 1


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


@pytest.mark.parametrize('tiles', [True, False])
def test_bf16_is_near_and_another(run, tiles, monkeypatch):
    monkeypatch.setattr(processor, 'has_tiles', lambda: tiles)
    path = run.picture()
    assert run(path) == 0
    assert run(path, '--amp', 'bf16', out=run.root / 'bf16') == 0
    difference = np.abs(pixels(run.out / 'a.png').astype(int) - pixels(run.root / 'bf16' / 'a.png'))
    assert 0 < difference.max() < 12


@pytest.mark.parametrize('amp', ['bf16', None])
@pytest.mark.parametrize('tiles', [True, False])
def test_maps_are_channels_last_where_tiles_of_bf16_are_multiplied(tiles, amp, monkeypatch):
    monkeypatch.setattr(processor, 'has_tiles', lambda: tiles)
    network, seen = EDSR(**SMALL), set()
    network.body.register_forward_pre_hook(
        lambda module, maps: seen.add(maps[0].is_contiguous(memory_format=torch.channels_last)))
    assert Restorer(network, amp=amp).traits == (3, 2, 1)  # found by running it
    assert seen == {tiles and amp == 'bf16'}


@pytest.mark.parametrize('tiles', [True, False])
def test_a_network_that_views_its_maps_runs_in_their_usual_format(tiles, monkeypatch):
    monkeypatch.setattr(processor, 'has_tiles', lambda: tiles)
    network = Viewing(**SMALL)
    assert Restorer(network, amp='bf16').traits == (3, 2, 1)
    network.refuses = True
    with pytest.raises(InferenceError, match='it refuses'):
        Restorer(network, amp='bf16')


def test_a_network_that_has_no_memory_left_is_not_tried_again():
    tries = []

    def restore(lq):
        tries.append(lq)
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(RuntimeError, match='allocate memory'):
        inference.in_memory_format(restore, torch.channels_last)(torch.rand(1, 3, 8, 8))
    assert len(tries) == 1


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
