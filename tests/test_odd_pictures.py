"""Pictures that readers take for others: values of a few bits that are transparent, and TIFFs of 16 bits."""
import io
import struct
import zlib

import numpy as np
import pytest

from udl_basicsr.data.images import ImageError, decode_rgb
from udl_basicsr.data.images import read_header as read_header_of_data
from udl_basicsr.deploy.pictures import Pixels, encode_picture, read_header, read_picture


def png(values: np.ndarray, bits: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Gray, one row."""
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))

    text = ''.join(f'{value:0{bits}b}' for value in values)
    row = int(text, 2).to_bytes(len(text) // 8, 'big')
    header = struct.pack('>IIBBBBB', len(values), 1, bits, 0, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*c) for c in (
        (b'IHDR', header), *chunks, (b'IDAT', zlib.compress(b'\0' + row)), (b'IEND', b'')))


def tiff(planes: np.ndarray, order: str, **changed: int) -> bytes:
    """(H, W, C), uncompressed, in one strip for each plane: TIFF 6.0 by the letter."""
    height, width, count = planes.shape
    bits, strips = 8 * planes.dtype.itemsize, count if changed.get('planar') == 2 else 1
    pixels = np.ascontiguousarray(planes.transpose(2, 0, 1) if strips > 1 else planes)
    pixels = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    part = len(pixels) // strips
    tags = {256: ('I', [width]), 257: ('I', [height]), 258: ('H', [bits] * count), 259: ('H', [1]),
            262: ('H', [changed.get('photometric', 2 if count > 1 else 1)]), 273: ('I', [0] * strips),
            277: ('H', [count]), 278: ('I', [height]), 279: ('I', [part] * strips),
            284: ('H', [changed.get('planar', 1)])}
    if count == 4:
        tags[338] = ('H', [changed.get('extra', 2)])
    behind = 8 + 2 + 12 * len(tags) + 4
    sizes = {tag: struct.calcsize(kind) * len(values) for tag, (kind, values) in tags.items()}
    start = behind + sum(size for size in sizes.values() if size > 4)
    tags[273] = ('I', [start + n * part for n in range(strips)])
    entries = far = b''
    for tag, (kind, values) in tags.items():
        content = struct.pack(f'{order}{len(values)}{kind}', *values)
        if sizes[tag] > 4:
            content, far = struct.pack(f'{order}I', behind + len(far)), far + content
        entries += struct.pack(f'{order}HHI', tag, {'H': 3, 'I': 4}[kind], len(values)) + content.ljust(4, b'\0')
    return (b'II' if order == '<' else b'MM') + struct.pack(f'{order}HIH', 42, 8, len(tags)) + entries \
        + bytes(4) + far + pixels


@pytest.mark.parametrize('bits', [1, 2, 4, 8])
def test_a_gray_value_of_few_bits_that_is_transparent(tmp_path, bits):
    values = np.arange(8) % 2**bits
    path = tmp_path / 'a.png'
    path.write_bytes(png(values, bits, (b'tRNS', struct.pack('>H', 1))))
    picture = read_picture(path)
    np.testing.assert_array_equal(picture.colour[0, :, 0], values * 255 // (2**bits - 1))
    np.testing.assert_array_equal(picture.alpha[0], np.where(values == 1, 0, 255))
    with pytest.raises(ImageError, match='transparent pixels'):
        decode_rgb(path.read_bytes())


@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize(('count', 'changed', 'what'), [
    (1, {}, ''), (3, {}, ''), (4, {}, ''), (1, {'photometric': 0}, 'white is 0'),
    (3, {'planar': 2}, 'one behind the other'), (4, {'extra': 1}, 'multiplied into the colours')])
def test_a_tiff_of_16_bits_is_read_as_it_is_or_refused(tmp_path, order, count, changed, what):
    """OpenCV makes a negative of the first, reads the memory behind the second, and takes the third for the usual."""
    planes = np.random.default_rng(0).integers(0, 65536, (4, 5, count)).astype(np.uint16)
    path = tmp_path / 'a.tif'
    path.write_bytes(tiff(planes, order, **changed))
    if what:
        for read in (read_header, read_picture):
            with pytest.raises(ImageError, match=f'{what}|cannot be read'):  # of the first Pillow knows one order
                read(path)
        return
    picture = read_picture(path)
    np.testing.assert_array_equal(picture.colour, planes[..., :3])
    assert (picture.alpha is None) == (count != 4)
    if picture.alpha is not None:
        np.testing.assert_array_equal(picture.alpha, planes[..., 3])


@pytest.mark.parametrize('changed', [{}, {'photometric': 0}, {'planar': 2}])
def test_a_tiff_of_8_bits_may_be_of_any_kind(tmp_path, changed):
    planes = np.random.default_rng(0).integers(0, 256, (4, 5, 1 if 'photometric' in changed else 3)).astype(np.uint8)
    path = tmp_path / 'a.tif'
    path.write_bytes(tiff(planes, '<', **changed))
    np.testing.assert_array_equal(read_picture(path).colour, 255 - planes if 'photometric' in changed else planes)


def test_training_takes_no_tiff_of_16_bits():
    """Pillow calls their mode RGB, as it does those of 8 bits; OpenCV would drop the low byte."""
    planes = np.zeros((4, 5, 3), np.uint16)
    with pytest.raises(ImageError, match='16 bits a channel'):
        read_header_of_data(io.BytesIO(tiff(planes, '<')))
    assert read_header_of_data(io.BytesIO(tiff(planes.astype(np.uint8), '<'))) == (5, 4)


@pytest.mark.parametrize('suffix', ['.png', '.tif', '.webp'])
def test_colours_that_cannot_be_seen_are_kept(tmp_path, suffix):
    """Whoever takes the transparency off sees them."""
    planes = np.random.default_rng(0).integers(0, 256, (9, 8, 4), dtype=np.uint8)
    planes[:5, :, 3] = 0
    (tmp_path / f'a{suffix}').write_bytes(encode_picture(Pixels(planes[..., :3], planes[..., 3]), suffix))
    picture = read_picture(tmp_path / f'a{suffix}')
    np.testing.assert_array_equal(np.dstack([picture.colour, picture.alpha]), planes)
