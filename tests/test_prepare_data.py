"""Data preparation against independent references, and what it refuses."""
# ruff: noqa: F811 - fixtures that come from prepared_data
import math
import os
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from basicsr.data.paired_image_dataset import PairedImageDataset
from conftest import cannot_be_made
from forked import within
from PIL import Image
from prepared_data import encode, out, picture, run, source, tree  # noqa: F401
from scipy import ndimage

from udl_basicsr.data import prepare as prepare_module
from udl_basicsr.data.degradations import DEGRADATIONS, degrade_bd, degrade_bic, sub_image_corners, to_uint8
from udl_basicsr.data.images import ImageError, decode_rgb
from udl_basicsr.data.prepare import PreparationError, Workers


def png16(img):
    return cv2.imencode('.png', img)[1].tobytes()


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[..., ::-1]


# ------------------------------------------------------------------------------------------------------------- formulas

def bicubic_matrix(length, new_length):
    """MATLAB's imresize along one axis as a float64 matrix: Keys' kernel (a = -1/2), widened when shrinking."""
    factor = new_length / length
    stretch = min(factor, 1)
    matrix = np.zeros((new_length, length))
    for row in range(new_length):
        centre = (row + 0.5) / factor - 0.5
        taps = np.arange(math.floor(centre - 2 / stretch), math.ceil(centre + 2 / stretch) + 1)
        x = np.abs((centre - taps) * stretch)
        weight = np.where(x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1,
                          np.where(x <= 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
        mirrored = taps % (2 * length)
        np.add.at(matrix[row], np.where(mirrored < length, mirrored, 2 * length - 1 - mirrored), weight / weight.sum())
    return matrix


@pytest.mark.parametrize('scale', [2, 3, 4, 8])
def test_bicubic_is_matlabs(scale):
    img = np.random.default_rng(scale).integers(0, 256, (9 * scale, 22 * scale, 3), dtype=np.uint8)
    rows, columns = bicubic_matrix(len(img), 9), bicubic_matrix(img.shape[1], 22)
    expected = np.clip(np.einsum('hi,ijc,wj->hwc', rows, img.astype(float), columns), 0, 255)
    result = degrade_bic(img, scale)
    assert result.dtype == np.uint8
    assert np.abs(result - expected).max() <= 0.5 + 1e-3  # the nearest grey level everywhere, borders too


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_bd_is_blur_then_nearest(scale):
    img = picture(12 * scale, 9 * scale)
    grid = np.arange(-5, 6)
    kernel = np.exp(-(grid[:, None]**2 + grid**2) / (2 * 1.6**2))
    blurred = ndimage.correlate(img.astype(float), (kernel / kernel.sum())[..., None], mode='nearest')
    start = {2: 1, 3: 1, 4: 2}[scale]
    assert np.abs(degrade_bd(img, scale) - blurred[start::scale, start::scale]).max() <= 0.5 + 1e-9


@pytest.mark.parametrize('degrade', DEGRADATIONS.values())
def test_a_single_channel_stays_one(degrade):
    img = picture(24, 36)
    np.testing.assert_array_equal(degrade(img[..., 1:2], 3), degrade(img, 3)[..., 1:2])


def test_rounding_is_half_away_from_zero():
    assert to_uint8(np.array([-3, 0.49, 0.5, 1.5, 2.5, 254.5, 300])).tolist() == [0, 0, 1, 2, 3, 255, 255]


def test_sub_image_corners():
    assert sub_image_corners(8, 8, 8, 4) == [(0, 0)]
    assert sub_image_corners(8, 14, 8, 4) == [(0, 0), (0, 4), (0, 6)]
    assert sub_image_corners(12, 8, 8, 4) == [(0, 0), (4, 0)]


# ---------------------------------------------------------------------------------------------------------------- files

def test_folders_pairs_and_sub_images(source, out):
    options = ['--degradation', 'bic', 'bd', '--sub-images', '48', '--step', '24']
    assert run(source, out, '--scale', '2', '3', *options) == 0
    folders = {f'{kind}{scale}' for kind in ('GTmod', 'LRbicx', 'LRbdx') for scale in (2, 3)}
    assert {path.name for path in out.iterdir()} == folders | {f'{name}_sub' for name in folders} | {'prepare.json'}
    for scale in (2, 3):
        for path in source.iterdir():
            whole = read(path)
            cropped = whole[:whole.shape[0] // scale * scale, :whole.shape[1] // scale * scale]
            assert np.array_equal(read(out / f'GTmod{scale}' / path.name), cropped)
            corners = sub_image_corners(*cropped.shape[:2], 48, 24)
            for kind, degrade in DEGRADATIONS.items():
                lq = read(out / f'LR{kind}x{scale}' / path.name)
                assert np.array_equal(lq, degrade(cropped, scale))
                for index, (top, left) in enumerate(corners, 1):
                    name = f'{path.stem}_s{index:03d}.png'
                    y, x, side = top // scale, left // scale, 48 // scale
                    assert np.array_equal(read(out / f'GTmod{scale}_sub' / name),
                                          cropped[top:top + 48, left:left + 48])
                    assert np.array_equal(read(out / f'LR{kind}x{scale}_sub' / name), lq[y:y + side, x:x + side])
                assert not (out / f'LR{kind}x{scale}_sub' / f'{path.stem}_s{len(corners) + 1:03d}.png').exists()


@pytest.mark.parametrize('ending', ['', '_sub', '.lmdb', '_sub.lmdb'])
def test_basicsr_reads_the_pairs(source, out, ending):
    options = (['--sub-images', '48'] if 'sub' in ending else []) + (['--lmdb'] if 'lmdb' in ending else [])
    assert run(source, out, '--scale', '2', *options) == 0
    data = PairedImageDataset({
        'dataroot_gt': str(out / f'GTmod2{ending}'), 'dataroot_lq': str(out / f'LRbicx2{ending}'), 'phase': 'val',
        'io_backend': {'type': 'lmdb' if 'lmdb' in ending else 'disk'}, 'filename_tmpl': '{}', 'scale': 2})
    folder = ending.removesuffix('.lmdb')
    assert len(data) == len(list((out / f'GTmod2{folder}').iterdir()))
    for sample in data:
        name = f'{Path(sample["gt_path"]).stem}.png'
        for key, kind in (('gt', 'GTmod2'), ('lq', 'LRbicx2')):
            pixels = (sample[key].permute(1, 2, 0).numpy() * 255).round()
            assert np.array_equal(pixels, read(out / f'{kind}{folder}' / name))
    if 'lmdb' in ending:
        for line in (out / f'LRbicx2{ending}' / 'meta_info.txt').read_text().splitlines():
            name, shape, level = line.split(' ')
            assert shape == str(read(out / f'LRbicx2{folder}' / name).shape).replace(' ', '')
            assert level == '3'


def test_report(source, out, capsys):
    assert run(source, out, '--scale', '3', '--report-bicubic') == 0
    scores = []
    for path in sorted(source.iterdir()):
        gt, lq = read(out / 'GTmod3' / path.name), read(out / 'LRbicx3' / path.name)
        rows, columns = (bicubic_matrix(n, 3 * n) for n in lq.shape[:2])
        sr = np.floor(np.clip(np.einsum('hi,ijc,wj->hwc', rows, lq.astype(float), columns), 0, 255) + 0.5)
        difference = ((sr - gt) @ [65.481, 128.553, 24.966] / 255)[3:-3, 3:-3]
        scores.append(20 * math.log10(255) - 10 * math.log10((difference**2).mean()))
    printed = capsys.readouterr().out
    assert float(printed.partition('PSNR ')[2].split()[0]) == pytest.approx(np.mean(scores), abs=0.006)


COLOUR, DEEP = picture(40, 48), np.random.default_rng(0).integers(0, 65536, (40, 48, 4), dtype=np.uint16)
DEEP[..., 3] = 65535
OPAQUE = np.dstack([COLOUR, np.full((40, 48), 255, np.uint8)])
GLASS = np.dstack([COLOUR, np.full((40, 48), 254, np.uint8)])
GRAY = COLOUR[..., 0]
PALETTE = Image.fromarray(COLOUR).quantize(64)
TURNED = Image.Exif()
TURNED[0x0112] = 6


def test_a_prepared_file_that_cannot_be_read_back_is_named(tmp_path):
    job = prepare_module.Job(tmp_path, tmp_path, scales=(2, ))
    with pytest.raises(PreparationError, match=r'GTmod2/a\.png: cannot be read back'):
        prepare_module.bicubic_scores(job, ['a.png'], Workers(1))


def deep_rgb(img):
    return np.round(img[..., 2::-1] / 257).astype(np.uint8)


@pytest.mark.parametrize(('data', 'expected', 'notes'), [
    (encode(COLOUR), COLOUR, []),
    (encode(COLOUR, 'BMP'), COLOUR, []),
    (encode(GRAY), np.dstack([GRAY] * 3), ['gray stored as RGB']),
    (encode(COLOUR, 'TIFF', compression='tiff_lzw'), COLOUR, []),
    (encode(OPAQUE, 'TIFF'), COLOUR, ['opaque alpha channel dropped']),
    (encode(COLOUR, 'WEBP', lossless=True), COLOUR, []),
    (encode(OPAQUE), COLOUR, ['opaque alpha channel dropped']),
    (encode(PALETTE), np.asarray(PALETTE.convert('RGB')), ['palette stored as RGB']),
    (png16(DEEP[..., :3]), deep_rgb(DEEP), ['16 bits rounded to 8']),
    (png16(DEEP), deep_rgb(DEEP), ['16 bits rounded to 8', 'opaque alpha channel dropped']),
    (png16(DEEP[..., 0]), deep_rgb(DEEP[..., [0, 0, 0]]), ['16 bits rounded to 8', 'gray stored as RGB']),
], ids=['rgb', 'bmp', 'gray', 'tiff', 'tiff with alpha', 'webp', 'alpha', 'palette', 'rgb16', 'rgba16', 'gray16'])
def test_what_is_converted(data, expected, notes):
    img, said = decode_rgb(data)
    assert np.array_equal(img, expected)
    assert said == notes


@pytest.mark.parametrize('kind', ['JPEG', 'TIFF', 'WEBP'])
def test_orientation_is_applied(kind):
    upright, _ = decode_rgb(encode(COLOUR, kind))
    turned, notes = decode_rgb(encode(COLOUR, kind, exif=TURNED))
    assert np.array_equal(turned, np.rot90(upright, -1))
    assert notes == ['EXIF orientation applied']


BAD_FILES = {
    'empty': (b'', r'is empty \(0 bytes\)'),
    'text': (b'no image', 'damaged, truncated or something else'),
    'half a PNG': (encode(COLOUR)[:2000], 'truncated'),
    'half a JPEG': (encode(COLOUR, 'JPEG')[:800], 'truncated'),
    'GIF': (encode(COLOUR, 'GIF'), 'cannot be read as PNG, JPEG, BMP, WebP or TIFF of 8 bits'),
    'TIFF of 16 bits': (cv2.imencode('.tif', DEEP[..., :3])[1].tobytes(), 'read of a PNG alone'),
    'gray TIFF of 16 bits': (cv2.imencode('.tif', DEEP[..., 0])[1].tobytes(), 'read of a PNG alone'),
    'TIFF of two pages': (encode(COLOUR, 'TIFF', save_all=True, append_images=[Image.fromarray(COLOUR[::-1])]),
                          'holds several'),
    'CMYK': (encode(COLOUR, 'JPEG', 'CMYK'), 'colour mode CMYK'),
    'animation': (encode(COLOUR, save_all=True, append_images=[Image.fromarray(COLOUR[::-1])]), 'holds several'),
    'transparency': (encode(GLASS), 'transparent pixels'),
    'transparent 16-bit': (png16(np.minimum(DEEP, 65534)), 'transparent pixels'),
    'transparent colour': (encode(COLOUR, transparency=tuple(COLOUR[0, 0].tolist())), 'transparent pixels'),
}


@pytest.mark.parametrize(('data', 'message'), BAD_FILES.values(), ids=BAD_FILES)
def test_what_is_refused(data, message):
    with pytest.raises(ImageError, match=message):
        decode_rgb(data)


def test_too_many_pixels(monkeypatch):
    monkeypatch.setattr('udl_basicsr.data.images.MAX_PIXELS', 900)
    with pytest.raises(ImageError, match='larger than the 900 pixels, and 1048576 a side, that are read: cut it'):
        decode_rgb(encode(COLOUR))


# ------------------------------------------------------------------------------------------------------------- refusals

def test_all_bad_files_are_named_at_once_and_nothing_is_written(source, out, capsys):
    for index, (data, _) in enumerate(BAD_FILES.values()):
        (source / f'bad{index}.png').write_bytes(data)
    (source / 'small.png').write_bytes(encode(COLOUR[:31]))
    (source / 'scan.gif').write_bytes(b'')
    (source / '0.JPG').write_bytes(encode(COLOUR, 'JPEG'))
    (source / 'gone.png').symlink_to('nowhere.png')
    (source / 'notes.txt').write_text('no image, no matter')
    assert run(source, out, '--scale', '2', '4') == 2
    said = capsys.readouterr().err
    for index in range(len(BAD_FILES)):
        assert f'bad{index}.png: ' in said
    assert 'small.png: is 48x31, x4 needs at least 32x32' in said
    assert 'scan.gif: .gif files are not read' in said
    assert '0.JPG, 0.png: would all be written as one PNG' in said
    assert 'gone.png: cannot be opened (No such file' in said
    assert 'notes.txt' not in said
    assert not out.exists()


@pytest.mark.parametrize(('where', 'options', 'message'), [
    ('nowhere', [], 'no such folder'),
    ('HR/0.png', [], 'HR/0.png: is no folder; give the folder that holds the HR images'),
    ('empty', [], 'holds no images'),
    ('HR', ['--out', 'HR/out'], 'lies inside the folder of HR images'),
    ('HR', ['--out', 'HR'], 'HR: is the folder of HR images HR;'),
    ('HR', ['--out', 'HR/0.png'], 'is a file where a folder is to be made'),
    ('HR', ['--out', 'HR/0.png/x'], '0.png is a file, expected a folder; choose another --out'),
    ('HR', ['--out', 'taken'], 'GTmod2: exists and was not made by udl prepare'),
    ('HR', ['--out', 'foreign'], 'is not a record that this version of udl prepare wrote'),
    ('taken/GTmod2', ['--out', 'taken'], 'is a folder that udl prepare writes'),
    ('HR', ['--sub-images', '96'], '2.png: is 80x75 and gives no sub-image of 96'),
    ('dotted', ['--lmdb'], "a.b.png: BasicSR's LMDB needs ASCII names without a further dot"),
])
def test_bad_folders(source, tmp_path, monkeypatch, capsys, where, options, message):
    monkeypatch.chdir(tmp_path)
    for folder in ('empty', 'taken/GTmod2', 'foreign', 'dotted'):
        Path(folder).mkdir(parents=True)
    Path('taken/GTmod2/0.png').write_bytes(encode(COLOUR))
    Path('dotted/a.b.png').write_bytes(encode(COLOUR))
    Path('foreign/prepare.json').write_text('[]')
    before = tree(tmp_path)
    assert run(where, 'out', '--scale', '2', *options) == 2
    assert message in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_a_folder_that_takes_nothing_is_told_before_anything_is_made(source, out, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, 'TemporaryFile', cannot_be_made)
    assert run(source, out, '--scale', '2') == 2
    assert f'{out}: {out.parent} cannot be written to; choose another --out' in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='there are no pipes on this system')
def test_a_pipe_is_not_waited_for(source, out, capsys):
    os.mkfifo(source / 'pipe.png')
    with within(20):
        assert run(source, out) == 2
    assert 'pipe.png: is a pipe or a device, no image; move it away' in capsys.readouterr().err
    assert not out.exists()


def test_a_flag_of_several_scales_may_stand_several_times(source, out):
    assert run(source, out, '--scale', '2', '--degradation', 'bd', '--scale', '4') == 0
    assert {path.name for path in out.iterdir() if path.is_dir()} == {'GTmod2', 'GTmod4', 'LRbdx2', 'LRbdx4'}


@pytest.mark.parametrize(('options', 'message'), [
    (['--out', ''], 'an argument behind --out is empty; is a variable of your shell not set?'),
    (['--scale', '1'], 'expected a whole number from 2 to 8'),
    (['--scale', '2.5'], 'expected a whole number from 2 to 8'),
    (['--degradation', 'bicubic'], 'invalid choice'),
    (['--step', '24'], 'give --sub_images too'),
    (['--sub-images', '50', '--scale', '2', '3'], '--sub_images 50 is no multiple of scale 3'),
    (['--sub-images', '48', '--step', '10', '--scale', '4'], '--step 10 is no multiple of scale 4'),
    (['--workers', '0'], 'expected a whole number from 1 to 1024'),
])
def test_bad_arguments(source, out, capsys, options, message):
    with pytest.raises(SystemExit, match='2'):
        run(source, out, *options)
    assert message in capsys.readouterr().err
