"""Pictures as they are: gray or colour, 8 or 16 bits, with transparency and colour profile, read and written.

Unlike ``data/images.py``, which turns everything into the 8-bit RGB that benchmarks need, nothing is lost here. Pillow
reads and writes what has 8 bits; of 16-bit RGB it would cut off the low byte, so that OpenCV reads those and PNGs are
written here.
"""
import io
import struct
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import TiffImageFile

from udl_basicsr.data.images import (
    ORIENTATION,
    ImageError,
    decode_with_opencv,
    read_png_chunks,
    spread_transparency,
)
from udl_basicsr.functional.log_scale_maps import encode_log_scale

# Pillow's formats, MPO being what many cameras write as .jpg, and the ending that ours get.
FORMATS = {'PNG': '.png', 'JPEG': '.jpg', 'MPO': '.jpg', 'BMP': '.bmp', 'TIFF': '.tif', 'WEBP': '.webp'}
DEEP_SUFFIXES = ('.png', '.tif')
OPAQUE_SUFFIXES = ('.jpg', '.bmp')
_LARGEST = {'.jpg': 65500, '.webp': 16383}  # pixels a side
_WRITTEN = {
    '.png': {'format': 'PNG'},
    '.jpg': {'format': 'JPEG', 'quality': 95, 'subsampling': 0},
    '.bmp': {'format': 'BMP'},
    '.tif': {'format': 'TIFF', 'compression': 'tiff_adobe_deflate'},
    '.webp': {'format': 'WEBP', 'lossless': True, 'exact': True},  # the colour also where it is transparent
}
_MODES = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA')
# Tags of a TIFF, the value with which OpenCV reads another picture out of 16 bits, and what it means.
_ODD_DEEP_TIFFS = {262: (0, 'white is 0'), 284: (2, 'the channels lie one behind the other'),
                   338: (1, 'transparency is multiplied into the colours')}
_DEEP_MODES = ('I', 'I;16', 'I;16B', 'LA', 'RGB', 'RGBA')
# As EXIF counts them, of an array (H, W, ...).
_UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


@dataclass(frozen=True)
class Header:
    """What is known of a picture before its pixels are read."""
    suffix: str
    """Of a file of the same format, as we write it."""
    bits: int
    """8 or 16."""
    transparent: bool
    """It has an alpha channel or a transparent colour."""
    width: int
    height: int


@dataclass(frozen=True)
class Pixels:
    """Pixels, upright."""
    colour: np.ndarray
    """(H, W, 1) gray or (H, W, 3) RGB, uint8 or uint16."""
    alpha: np.ndarray | None = None
    """(H, W) of the same type, not multiplied into the colour."""
    icc: bytes | None = None
    """The colour profile."""
    text: Mapping[str, str] = field(default_factory=dict)
    """ASCII texts by their keywords, which a PNG keeps."""


def read_header(path: Path) -> Header:
    """Reads what a file says of itself.

    Raises:
        ImageError: No picture, or one that cannot be kept as it is; the message leaves the file's name to the caller.
        OSError: The file cannot be read.
    """
    with open(path, 'rb') as file:
        start = file.read(26)
        file.seek(0)
        with _open(file) as img:
            return _header(img, start)


def read_picture(path: Path) -> Pixels:
    """Reads a picture. A palette becomes RGB; an EXIF orientation is applied.

    Raises:
        ImageError: As :func:`read_header`, or it is damaged.
        OSError: The file cannot be read.
    """
    data = path.read_bytes()
    with _open(io.BytesIO(data)) as img:
        header = _header(img, data[:26])
        try:
            img.load()  # of 16-bit images too: OpenCV fills what is missing of a truncated one with black
            if _described(img, data[:26]).transparent != header.transparent:
                raise ValueError('its transparent colour stands behind the pixels')
            spread_transparency(img, data)
            orientation = img.getexif().get(ORIENTATION, 1)  # Pillow and OpenCV turn TIFFs themselves
        except Exception as error:  # damaged files make Pillow raise almost anything
            raise _damaged(error) from error
        if header.bits == 16:
            planes, icc = _decode_16_bit(data, img), img.info.get('icc_profile')
        else:
            gray = img.mode in ('1', 'L', 'LA')
            mode = ('L' if gray else 'RGB') + ('A' if header.transparent else '')
            icc = img.info.get('icc_profile')
            planes = np.asarray(img if img.mode == mode else img.convert(mode))
            planes = planes[..., None] if planes.ndim == 2 else planes
    planes = _UPRIGHT.get(orientation, _UPRIGHT[1])(planes)
    count = planes.shape[2]
    alpha = np.ascontiguousarray(planes[..., -1]) if count in (2, 4) else None
    return Pixels(planes[..., :3 if count > 2 else 1], alpha, icc)


def check_size(suffix: str, height: int, width: int) -> None:
    """Raises ImageError where a format cannot hold so large a picture."""
    if max(height, width) > _LARGEST.get(suffix, 2**31 - 1):
        raise ImageError(f'would become {width}x{height} pixels, more than the {_LARGEST[suffix]} a side that '
                         f'{suffix} holds: write PNG')


def encode_picture(picture: Pixels, suffix: str) -> bytes:
    """The content of a file.

    Args:
        picture: What to encode; 16 bits for ``DEEP_SUFFIXES`` only, no alpha for ``OPAQUE_SUFFIXES``.
        suffix: ``.png``, ``.jpg`` (quality 95, colour at full resolution), ``.bmp``, ``.tif`` or ``.webp`` (lossless).
            A 16-bit TIFF is written without its colour profile.
    """
    planes = picture.colour if picture.alpha is None else np.dstack([picture.colour, picture.alpha])
    if planes.dtype == np.uint16 and suffix == '.png':
        return _encode_16_bit_png(planes, picture.icc, picture.text)
    if planes.dtype == np.uint16:
        order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[planes.shape[2]]
        return cv2.imencode('.tiff', np.ascontiguousarray(planes[..., order]))[1].tobytes()
    file = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(planes[..., 0] if planes.shape[2] == 1 else planes))
    options: dict[str, Any] = {'icc_profile': picture.icc} if picture.icc else {}
    if picture.text and suffix == '.png':
        options['pnginfo'] = info = PngInfo()
        for keyword, text in picture.text.items():
            info.add_text(keyword, text)
    image.save(file, **_WRITTEN[suffix], **options)
    return file.getvalue()


def log_scale_picture(log_scale: np.ndarray) -> Pixels:
    """The picture of s, (H, W, C): its mean over the channels, as :func:`encode_log_scale` has it."""
    return Pixels(encode_log_scale(log_scale.mean(axis=2, keepdims=True)))


def _open(file) -> Image.Image:
    if file.read(8) == b'\x89PNG\r\n\x1a\n':
        read_png_chunks(file)
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of damaged files too: the error below says it with the file's name
            return Image.open(file, formats=[name for name in FORMATS if name != 'MPO'])
    except Image.DecompressionBombError as error:
        most = 2 * Image.MAX_IMAGE_PIXELS  # pyright: ignore[reportOperatorIssue] - where None, none is too large
        raise ImageError(f'is larger than the {most} pixels that Pillow reads: cut it into smaller images') from error
    except Exception as error:
        raise _damaged(error) from error


def _damaged(error: Exception) -> ImageError:
    reason = str(error).partition('<')[0].strip() or type(error).__name__
    return ImageError(f'cannot be read as PNG, JPEG, BMP, TIFF or WebP, it is damaged, truncated or something else '
                      f'({reason}): fetch it again or remove it')


def _header(img: Image.Image, start: bytes) -> Header:
    try:
        return _described(img, start)
    except ImageError:
        raise
    except Exception as error:  # Pillow reads some of a TIFF's tags when they are asked for
        raise _damaged(error) from error


def _described(img: Image.Image, start: bytes) -> Header:
    bits, kinds = 8, ()
    if img.format == 'PNG':
        bits = start[24]
    elif isinstance(img, TiffImageFile):
        bits, kinds = max(img.tag_v2.get(258, (1, ))), img.tag_v2.get(339, ())
        for tag, (value, what) in _ODD_DEEP_TIFFS.items():
            there = img.tag_v2.get(tag, ())
            if bits == 16 and value in (there if isinstance(there, tuple) else (there, )):
                raise ImageError(f'is a TIFF of 16 bits in which {what}: convert it to a PNG')
    bits = max(bits, 8)
    # Not their number: to count the pages of a TIFF, Pillow reads them all. Of an MPO the first is the photograph.
    if getattr(img, 'is_animated', False) and img.format != 'MPO':
        raise ImageError('holds several pictures: save the one you want as a file of its own')
    if bits not in (8, 16) or any(kind != 1 for kind in kinds) or img.mode not in (
            _MODES if bits == 8 else _DEEP_MODES):
        raise ImageError(f'has the colour mode {img.mode} with {bits} bits, expected gray or RGB with 8 or 16: convert '
                         'it to a PNG')
    transparent = img.mode in ('LA', 'PA', 'RGBA') or 'transparency' in img.info
    return Header(FORMATS[img.format or ''], bits, transparent, *img.size)


def _decode_16_bit(data: bytes, img: Image.Image) -> np.ndarray:
    """(H, W, 1 to 4): gray or RGB, and alpha where ``img``, the same file as Pillow sees it, has some."""
    deep = decode_with_opencv(data, cv2.IMREAD_UNCHANGED)
    if deep is None or deep.dtype != np.uint16:
        raise ImageError('is a 16-bit image that OpenCV cannot read: save it as a PNG')
    deep = np.atleast_3d(deep)
    # Of a PNG the header has to be asked: Pillow and OpenCV make RGBA of 16-bit gray with alpha.
    gray = data[25] in (0, 4) if img.format == 'PNG' else img.mode.startswith('I')
    colour = deep[..., :1] if gray else deep[..., 2::-1]
    if img.mode in ('LA', 'RGBA'):
        return np.dstack([colour, deep[..., -1]])
    if 'transparency' in img.info:
        opaque = (colour != np.asarray(img.info['transparency'])).any(axis=2)
        return np.dstack([colour, np.where(opaque, 65535, 0).astype(np.uint16)])
    return colour


def _encode_16_bit_png(planes: np.ndarray, icc: bytes | None, text: Mapping[str, str]) -> bytes:
    """PNG (ISO/IEC 15948) of (H, W, 1 to 4) uint16, each row stored as its difference to the one above."""
    height, width, count = planes.shape
    rows = np.ascontiguousarray(planes, dtype='>u2').view(np.uint8).reshape(height, -1)
    stored = np.empty((height, rows.shape[1] + 1), np.uint8)
    stored[:, 0] = 2  # the filter "Up"
    stored[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=stored[1:, 1:])

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))

    colour_type = {1: 0, 3: 2, 2: 4, 4: 6}[count]
    return b''.join([
        b'\x89PNG\r\n\x1a\n',
        chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 16, colour_type, 0, 0, 0)),
        chunk(b'iCCP', b'ICC profile\0\0' + zlib.compress(icc)) if icc else b'',
        *(chunk(b'tEXt', f'{keyword}\0{content}'.encode('ascii')) for keyword, content in text.items()),
        chunk(b'IDAT', zlib.compress(stored.data, 4)),
        chunk(b'IEND', b''),
    ])
