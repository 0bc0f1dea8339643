"""Reading of photographs as the 8-bit RGB images that super-resolution is trained and tested on.

Every kind of file is either converted without loss of what matters, with a note that says so, or refused with the
reason: a decoder that quietly drops bits, transparency or frames would change the benchmark.
"""
import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from udl_basicsr.utils.errors import UdlError

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp')
# Refused by name; anything else in a folder (text files, thumbnails' caches) is no image and is passed over.
OTHER_IMAGE_SUFFIXES = ('.gif', '.ppm', '.pgm', '.jp2', '.heic', '.avif', '.npy', '.exr')
ORIENTATION = 0x0112  # EXIF tag
MAX_PIXELS = 2**27
"""More than any photograph has; a file of a few kilobytes can unpack to any size."""
MAX_SIDE = 2**20
"""Pixels a side that OpenCV reads."""
MAX_TEXT = 2**20
"""Bytes that the compressed texts and colour profile of a PNG may unpack to; Pillow has the same limit for each."""
_PNG, _PNG_END = b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR', b'\0\0\0\0IEND\xaeB`\x82'
_PNG_KINDS = {0: 'gray', 2: 'RGB', 3: 'palette', 4: 'gray with alpha', 6: 'RGB with alpha'}
_READ_BY_BASICSR = ('PNG', 'JPEG', 'BMP', 'TIFF', 'WEBP', 'PPM')  # and by Pillow without a helper program
_MODES = {'P': 'palette', 'PA': 'palette with alpha', 'LA': 'gray with alpha', 'RGBA': 'RGB with alpha'}
_CONVERT = 'udl prepare converts it, or refuses it with the reason'
_SEVERAL = 'holds several pictures: save the one you want as a PNG of its own'


def channels_of(dataset: Mapping) -> int:
    """Of the images that the block of a data set asks for: BasicSR reads gray images as RGB, but for ``color: y``."""
    return 1 if dataset.get('color') == 'y' else 3


class ImageError(UdlError, ValueError):
    """An image that cannot be used; the message says why and what to do, and leaves the file's name to the caller."""


class BrokenImageError(UdlError, RuntimeError):
    """An image that cannot be read or used in mid-run, though it seemed so when the run began; the message names it."""


def same_names(paths: Iterable[str]) -> list[str]:
    """Groups of files, `a.png and a.bmp`, whose names without folder and ending are the same.

    Scores and pictures of results are kept under these names, so that one would take the place of the other.
    """
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(Path(path).stem, []).append(str(path))
    return [' and '.join(group) for group in groups.values() if len(group) > 1]


def read_header(file: BinaryIO) -> tuple[int, int]:
    """What the header says of an image that data sets are going to read: 8-bit RGB or gray, whole, of a sane size.

    BasicSR reads with OpenCV, which cuts 16 bits down to 8, drops an alpha channel and all pictures but the first, and
    turns what has an EXIF orientation, in some formats in some of its versions, without a word; where only one image
    of a pair is turned, training would learn nothing. No pixel is decoded here.

    Args:
        file: The file, open for reading in binary.

    Returns:
        (width, height).

    Raises:
        ImageError: If the image is empty, cut off, no image, too large, turned by EXIF, or of another kind.
        OSError: If it cannot be read.
    """
    head = file.read(29)
    if not head:
        raise ImageError('is empty (0 bytes): fetch it again or remove it')
    if head[:16] == _PNG and len(head) == 29:
        width, height, bits, colour = struct.unpack('>IIBB', head[16:26])
        kind = _PNG_KINDS.get(colour, 'unknown')
        several, orientation = read_png_chunks(file)
    else:
        file.seek(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # Image.DecompressionBombWarning: our own limit is below
                image = Image.open(file, formats=_READ_BY_BASICSR)
                several = getattr(image, 'is_animated', False)
                orientations = [image.getexif().get(ORIENTATION, 1), *map(_orientation, _exif_blocks(image))]
                orientation = next((o for o in orientations if o != 1), 1)
        except Image.DecompressionBombError:
            raise ImageError(f'is larger than {MAX_PIXELS} pixels: cut it into smaller images') from None
        except Exception as error:  # damaged files make Pillow raise almost anything
            raise ImageError('cannot be read as an image, it is damaged or something else: fetch it again or remove '
                             'it') from error
        (width, height), mode = image.size, image.mode
        bits = 16 if mode in ('I', 'F') or mode.startswith('I;') or _bits_of_tiff(image) > 8 else 8
        kind = _MODES.get(mode, mode if mode in ('CMYK', 'YCbCr', 'LAB', 'HSV') else 'RGB')
    if width * height > MAX_PIXELS:
        raise ImageError(f'says it has {width}x{height} pixels, more than the {MAX_PIXELS} that are read: cut it into '
                         'smaller images')
    if max(width, height) > MAX_SIDE:
        raise ImageError(f'says it has {width}x{height} pixels, more than the {MAX_SIDE} a side that are read: cut it '
                         'into smaller images')
    if not width or not height:
        raise ImageError(f'says it has {width}x{height} pixels: fetch it again or remove it')
    if several:
        raise ImageError(_SEVERAL)
    if bits == 16:
        raise ImageError(f'has 16 bits a channel, which BasicSR would cut down to 8: {_CONVERT}')
    if kind not in ('RGB', 'gray'):
        raise ImageError(f'has the colour mode {kind}, expected RGB or gray: {_CONVERT}')
    if orientation != 1:
        raise ImageError(f'has the EXIF orientation {orientation}, by which readers turn it or do not: save it upright '
                         'and without, as udl prepare does')
    if head[:16] == _PNG:
        file.seek(0, os.SEEK_END)
        file.seek(max(file.tell() - len(_PNG_END), 0))
        if file.read() != _PNG_END:
            raise ImageError('is cut off: fetch it again or remove it')
    return width, height


def read_png_chunks(file: BinaryIO) -> tuple[bool, int]:
    """What a PNG holds beside its picture. The pixels are passed over.

    Args:
        file: The file, open for reading in binary, anywhere.

    Returns:
        Whether it is an animation, and its EXIF orientation (1: upright).

    Raises:
        ImageError: It has two headers; or its compressed texts and profile unpack to more than MAX_TEXT bytes, and may
            to a thousand times the file's size; OpenCV would unpack them at every reading.
    """
    animated, orientation, room, headers = False, 1, MAX_TEXT, 0
    largest = max(file.seek(0, os.SEEK_END), 2**26)
    file.seek(8)
    while len(start := file.read(8)) == 8:
        length, kind = struct.unpack('>I4s', start)
        if length > largest:  # OpenCV asks for as much memory before it sees that nothing is there
            raise ImageError(f'is damaged, a part of it says that it has {length} bytes: fetch it again or remove it')
        headers += kind == b'IHDR'
        if headers > 1:  # of which some readers take the first, and some the last
            raise ImageError('is damaged, it has two headers: fetch it again or remove it')
        if kind not in (b'acTL', b'eXIf', b'zTXt', b'iTXt', b'iCCP'):
            file.seek(length + 4, os.SEEK_CUR)
            continue
        content = file.read(length + 4)[:length]
        if kind == b'acTL':
            animated = True
        elif kind == b'eXIf':
            orientation = _orientation(content) if orientation == 1 else orientation
        else:
            room -= _unpacked(kind, content, room)
        if room < 0:
            raise ImageError(f'has texts or a profile that unpack to more than {MAX_TEXT} bytes: save it without them')
    return animated, orientation


def _exif_blocks(image: Image.Image) -> list[bytes]:
    """Those of a JPEG one by one, since it may have several, of which readers take the first, or one that is sound."""
    return [image.info.get('exif', b''), *(content for name, content in getattr(image, 'applist', ())
                                           if name == 'APP1' and content[:6] == b'Exif\0\0')]


def _orientation(exif: bytes) -> int:
    """As OpenCV reads it, where Pillow gives up: the first entry of that number, whatever its type is said to be."""
    exif = exif.removeprefix(b'Exif\0\0')
    order = '<' if exif[:2] == b'II' else '>'
    if len(exif) < 8:
        return 1
    first = struct.unpack_from(f'{order}I', exif, 4)[0]
    count = struct.unpack_from(f'{order}H', exif, first)[0] if first + 2 <= len(exif) else 0
    for entry in range(first + 2, min(first + 2 + 12 * count, len(exif) - 9), 12):
        tag, value = struct.unpack_from(f'{order}H6xH', exif, entry)
        if tag == ORIENTATION:
            return value if 1 <= value <= 8 else 1
    return 1


def _unpacked(kind: bytes, content: bytes, most: int) -> int:
    """Bytes that a chunk's compressed text has, or ``most + 1`` where it has more."""
    text = content.partition(b'\0')[2]
    if kind == b'iTXt' and text[:1] == b'\1':  # behind flag and method: language, translated keyword
        text = b'\0' + text[2:].partition(b'\0')[2].partition(b'\0')[2]
    elif kind == b'iTXt':
        return 0
    try:
        return len(zlib.decompressobj().decompress(text[1:], most + 1))
    except zlib.error:
        return 0


def decode_rgb(data: bytes) -> tuple[np.ndarray, list[str]]:
    """Decodes the bytes of a PNG, JPEG, BMP, TIFF or WebP file.

    Gray and palette images become RGB, 16-bit values of a PNG are rounded to 8 bits (v / 257), an alpha channel that is
    opaque everywhere is dropped, and an EXIF orientation is applied. Embedded colour profiles are ignored, as they are
    by OpenCV and hence by BasicSR.

    Args:
        data: The whole file.

    Returns:
        (H, W, 3) RGB uint8, and notes on what was converted.

    Raises:
        ImageError: If the data is empty, damaged, truncated, animated, transparent, or in colours other than gray and
            RGB.
    """
    if not data:
        raise ImageError('is empty (0 bytes): fetch it again or remove it')
    if data[:16] == _PNG:
        read_png_chunks(io.BytesIO(data))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of DecompressionBombWarning our own limit is below
            img = Image.open(io.BytesIO(data), formats=('PNG', 'JPEG', 'BMP', 'TIFF', 'WEBP'))
            if img.width * img.height > MAX_PIXELS or max(img.size) > MAX_SIDE:
                raise Image.DecompressionBombError
            several, deep = getattr(img, 'is_animated', False), _bits_of_tiff(img) > 8
            said = img.getexif().get(ORIENTATION, 1)
            img.load()  # which turns a TIFF
            spread_transparency(img, data)
            orientation = img.getexif().get(ORIENTATION, 1)
    except Image.DecompressionBombError as error:
        raise ImageError(f'is larger than the {MAX_PIXELS} pixels, and {MAX_SIDE} a side, that are read: cut it into '
                         'smaller images') from error
    except Exception as error:  # damaged files make Pillow raise almost anything: OSError, SyntaxError, struct.error
        reason = str(error).partition('<')[0].strip()
        raise ImageError('cannot be read as PNG, JPEG, BMP, WebP or TIFF of 8 bits, it is damaged, truncated or '
                         f'something else ({reason}): fetch it again or remove it') from error
    if several:
        raise ImageError(_SEVERAL)
    # Pillow reads 16-bit RGB as 8-bit by cutting off the low byte, so that the header has to be asked.
    if img.format == 'PNG' and data[24] == 16:
        return _decode_16_bit(data, plain=orientation == 1 and 'transparency' not in img.info)
    if deep:  # Pillow cuts the low bytes off
        raise ImageError('has more than 8 bits a channel, which are read of a PNG alone: save it as PNG')
    if img.mode not in ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA'):
        raise ImageError(f'has the colour mode {img.mode}, expected gray or RGB: convert it to an RGB PNG')

    notes = []
    if said != 1:
        img = ImageOps.exif_transpose(img)
        notes.append('EXIF orientation applied')
    if img.mode in ('LA', 'PA', 'RGBA') or 'transparency' in img.info:
        img = img.convert('RGBA')
        _refuse_transparency(np.asarray(img)[..., 3], 255)
        notes.append('opaque alpha channel dropped')
    if img.mode in ('1', 'L'):
        notes.append('gray stored as RGB')
    elif img.mode == 'P':
        notes.append('palette stored as RGB')
    return np.asarray(img.convert('RGB')), notes


def spread_transparency(img: Image.Image, data: bytes) -> None:
    """Of a gray PNG of 1, 2 or 4 bits Pillow spreads the values over 0-255, but not the one that is transparent."""
    if img.format == 'PNG' and data[24] < 8 and data[25] == 0 and 'transparency' in img.info:
        most = 2**data[24] - 1
        # The remainder is what stands in the file, whether Pillow has spread it or not.
        img.info['transparency'] = (img.info['transparency'] & most) * 255 // most


def _bits_of_tiff(img: Image.Image) -> int:
    bits = img.tag_v2.get(258, 8) if isinstance(img, TiffImagePlugin.TiffImageFile) else 8
    return max(bits) if isinstance(bits, tuple) else bits


def _decode_16_bit(data: bytes, plain: bool) -> tuple[np.ndarray, list[str]]:
    if not plain:
        raise ImageError('is a 16-bit PNG with an EXIF orientation or a transparent colour: save it without')
    deep = decode_with_opencv(data, cv2.IMREAD_UNCHANGED)
    if deep is None or deep.dtype != np.uint16:
        raise ImageError('is a 16-bit PNG that OpenCV cannot read: save it with 8 bits per channel')
    notes = ['16 bits rounded to 8']
    if deep.ndim == 2:
        deep = cv2.cvtColor(deep, cv2.COLOR_GRAY2BGR)
        notes.append('gray stored as RGB')
    elif deep.shape[2] == 4:
        _refuse_transparency(deep[..., 3], 65535)
        notes.append('opaque alpha channel dropped')
    return ((deep[..., 2::-1].astype(np.uint32) + 128) // 257).astype(np.uint8), notes


def decode_with_opencv(data: bytes, flags: int = cv2.IMREAD_COLOR) -> np.ndarray | None:
    """``cv2.imdecode``, and None also for what it raises an error for, in one version or another."""
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


def _refuse_transparency(alpha: np.ndarray, opaque: int) -> None:
    if (alpha != opaque).any():
        raise ImageError('has transparent pixels, whose colour is undefined: flatten it onto a background first')


def encode_png(img: np.ndarray, level: int) -> bytes:
    """Encodes an image as PNG.

    Args:
        img: (H, W, 3) RGB uint8.
        level: zlib's compression level, 0-9.

    Returns:
        The file's bytes; the same image always gives the same bytes.
    """
    return cv2.imencode('.png', img[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, level])[1].tobytes()


