"""What the head of an image file says before it is read, and what is refused by it."""
import io
import struct
import time
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from udl_basicsr.data.images import MAX_PIXELS, ImageError, decode_rgb, read_header


def png_header(width: int, height: int, bits: int = 8, colour: int = 2) -> bytes:
    """A PNG of hardly any bytes that says it has this size."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, bits, colour, 0, 0, 0)) + \
        chunk(b'IDAT', zlib.compress(b'\0' * 1000)) + chunk(b'IEND', b'')


@pytest.mark.parametrize(('mode', 'suffix'), [('RGB', 'png'), ('L', 'png'), ('1', 'png'), ('RGB', 'jpg'), ('L', 'jpg'),
                                              ('RGB', 'bmp'), ('RGB', 'tif'), ('RGB', 'webp'), ('RGB', 'ppm')])
def test_headers_of_what_is_fine(tmp_path, mode, suffix):
    path = tmp_path / f'a.{suffix}'
    Image.new(mode, (37, 21)).save(path)
    with open(path, 'rb') as file:
        assert read_header(file) == (37, 21)
    assert cv2.imread(str(path)).shape == (21, 37, 3)


@pytest.mark.parametrize(('mode', 'what'), [('P', 'palette'), ('RGBA', 'RGB with alpha'), ('LA', 'gray with alpha'),
                                            ('I;16', '16 bits')])
def test_headers_of_the_wrong_kind(tmp_path, mode, what):
    path = tmp_path / 'a.png'
    Image.new(mode, (37, 21)).save(path)
    with open(path, 'rb') as file, pytest.raises(ImageError, match=what):
        read_header(file)
    cv2.imwrite(str(tmp_path / 'b.png'), np.zeros((21, 37, 3), np.uint16))
    with open(tmp_path / 'b.png', 'rb') as file, pytest.raises(ImageError, match='16 bits'):
        read_header(file)


@pytest.mark.parametrize('suffix', ['png', 'bmp', 'tif'])
def test_decompression_bombs(tmp_path, suffix):
    path = tmp_path / f'a.{suffix}'
    if suffix == 'png':
        path.write_bytes(png_header(60000, 60000))
    elif suffix == 'bmp':
        Image.new('RGB', (8, 8)).save(path)
        path.write_bytes(path.read_bytes()[:18] + struct.pack('<ii', 60000, 60000) + path.read_bytes()[26:])
    else:
        Image.new('L', (8, 8)).save(path)
        data = path.read_bytes()
        for tag in (256, 257):  # width and height, one 4-byte or 2-byte value each
            at = next(i for i in range(len(data)) if data[i:i + 2] == struct.pack('<H', tag))
            data = data[:at + 2] + struct.pack('<HII', 4, 1, 60000) + data[at + 12:]
        path.write_bytes(data)
    with open(path, 'rb') as file, pytest.raises(ImageError, match=f'{MAX_PIXELS} '):
        read_header(file)
    if suffix != 'tif':
        with pytest.raises(ImageError, match=f'{MAX_PIXELS} '):
            decode_rgb(path.read_bytes())


def test_a_side_that_opencv_does_not_read():
    file = io.BytesIO()
    Image.new('L', (2**20 + 1, 1)).save(file, 'TIFF')
    file.seek(0)
    with pytest.raises(ImageError, match=f'more than the {2**20} a side'):
        read_header(file)
    with pytest.raises(ImageError, match=f'more than the {2**20} a side'):
        read_header(io.BytesIO(png_header(2**20 + 1, 1)))


def encoded(*images: Image.Image, kind: str = 'PNG', **options) -> bytes:
    file = io.BytesIO()
    more = {'save_all': True, 'append_images': images[1:]} if images[1:] else {}
    images[0].save(file, kind, **more, **options)
    return file.getvalue()


@pytest.mark.parametrize(('kind', 'options'), [
    ('PNG', {}), ('PNG', {'default_image': True}), ('WEBP', {}), ('TIFF', {}), ('TIFF', {'compression': 'tiff_lzw'}),
    ('MPO', {})])
def test_several_pictures_in_one_file(kind, options):
    """OpenCV, and so BasicSR, would take the first of them without a word."""
    gray = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    one, other = (Image.fromarray(g) for g in (gray, gray[::-1].copy()))
    data = encoded(one, other, kind=kind, **options)
    first = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert first is None or first.shape == (24, 32, 3)  # OpenCV 4.9 reads no moving WebP
    with pytest.raises(ImageError, match='holds several pictures'):
        read_header(io.BytesIO(data))
    assert read_header(io.BytesIO(encoded(one, kind='JPEG' if kind == 'MPO' else kind))) == (32, 24)


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP', 'TIFF'])
def test_an_exif_orientation(kind):
    exif = Image.Exif()
    for orientation in (3, 6):  # 3 leaves the size as it is
        exif[0x112] = orientation
        with pytest.raises(ImageError, match=f'EXIF orientation {orientation}'):
            read_header(io.BytesIO(encoded(Image.new('RGB', (32, 24)), kind=kind, exif=exif)))
    exif[0x112] = 1
    assert read_header(io.BytesIO(encoded(Image.new('RGB', (32, 24)), kind=kind, exif=exif))) == (32, 24)


def png_with(kind: bytes, content: bytes, last: bool = False) -> bytes:
    """A PNG with one more chunk, before its pixels or behind them."""
    data = encoded(Image.new('RGB', (32, 24)))
    at = len(data) - 12 if last else 33
    return data[:at] + struct.pack('>I', len(content)) + kind + content + struct.pack(
        '>I', zlib.crc32(kind + content)) + data[at:]


def test_an_orientation_behind_the_pixels():
    exif = Image.Exif()
    exif[0x112] = 6
    data = png_with(b'eXIf', exif.tobytes().removeprefix(b'Exif\0\0'), last=True)
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape == (32, 24, 3)  # turned
    with pytest.raises(ImageError, match='EXIF orientation 6'):
        read_header(io.BytesIO(data))
    assert read_header(io.BytesIO(png_with(b'eXIf', b'nonsense'))) == (32, 24)


@pytest.mark.parametrize('last', [False, True])
@pytest.mark.parametrize(('kind', 'head'), [(b'zTXt', b'a\0\0'), (b'iTXt', b'a\0\1\0en\0b\0'), (b'iCCP', b'a\0\0')])
def test_texts_that_unpack_to_any_size(kind, head, last):
    data = png_with(kind, head + zlib.compress(bytes(50_000_000), 1), last)
    for read in (lambda: read_header(io.BytesIO(data)), lambda: decode_rgb(data)):
        begun = time.process_time()
        with pytest.raises(ImageError, match=f'unpack to more than {2**20} bytes'):
            read()
        assert time.process_time() - begun < 0.5
    assert read_header(io.BytesIO(png_with(kind, head + zlib.compress(bytes(2**20)), last))) == (32, 24)
    assert read_header(io.BytesIO(png_with(kind, head + b'nothing packed', last))) == (32, 24)
    assert read_header(io.BytesIO(png_with(b'tEXt', b'a\0' + bytes(2**21), last))) == (32, 24)


def test_a_part_that_says_it_is_larger_than_any_memory():
    data = png_with(b'tEXt', b'a')
    data = data[:33] + struct.pack('>I', 2**31 - 1) + data[37:]
    for read in (lambda: read_header(io.BytesIO(data)), lambda: decode_rgb(data)):
        with pytest.raises(ImageError, match=f'says that it has {2**31 - 1} bytes'):
            read()


def test_the_largest_image_that_is_read():
    assert read_header(io.BytesIO(png_header(2**14, MAX_PIXELS // 2**14))) == (2**14, MAX_PIXELS // 2**14)
    with pytest.raises(ImageError):
        read_header(io.BytesIO(png_header(2**14, MAX_PIXELS // 2**14 + 1)))
