"""Reading of photographs as the 8-bit RGB images that super-resolution is trained and tested on.

Every kind of file is either converted without loss of what matters, with a note that says so, or refused with the
reason: a decoder that quietly drops bits, transparency or frames would change the benchmark.
"""
import io
import os
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp')
# Refused by name; anything else in a folder (text files, thumbnails' caches) is no image and is passed over.
OTHER_IMAGE_SUFFIXES = ('.tif', '.tiff', '.gif', '.webp', '.ppm', '.pgm', '.jp2', '.heic', '.avif', '.npy', '.exr')
ORIENTATION = 0x0112  # EXIF tag


class ImageError(ValueError):
    """An image that cannot be used; the message says why and what to do, and leaves the file's name to the caller."""


def decode_rgb(data: bytes) -> tuple[np.ndarray, list[str]]:
    """Decodes the bytes of a PNG, JPEG or BMP file.

    Gray and palette images become RGB, 16-bit values are rounded to 8 bits (v / 257), an alpha channel that is opaque
    everywhere is dropped, and a JPEG's EXIF orientation is applied. Embedded colour profiles are ignored, as they are
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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            img = Image.open(io.BytesIO(data), formats=('PNG', 'JPEG', 'BMP'))
            pictures = getattr(img, 'n_frames', 1)
            img.load()
            orientation = img.getexif().get(ORIENTATION, 1)
    except Image.DecompressionBombError as error:
        raise ImageError(f'is larger than the {2 * Image.MAX_IMAGE_PIXELS} pixels that Pillow reads: '
                         'cut it into smaller images') from error
    except Exception as error:  # damaged files make Pillow raise almost anything: OSError, SyntaxError, struct.error
        raise ImageError('cannot be read as PNG, JPEG or BMP, it is damaged, truncated or something else '
                         f'({str(error).partition("<")[0].strip()}): fetch it again or remove it') from error
    if pictures > 1:
        raise ImageError(f'holds {pictures} pictures: save the one you want as a PNG of its own')
    # Pillow reads 16-bit RGB as 8-bit by cutting off the low byte, so that the header has to be asked.
    if img.format == 'PNG' and data[24] == 16:
        return _decode_16_bit(data, plain=orientation == 1 and 'transparency' not in img.info)
    if img.mode not in ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA'):
        raise ImageError(f'has the colour mode {img.mode}, expected gray or RGB: convert it to an RGB PNG')

    notes = []
    if orientation != 1:
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


def _decode_16_bit(data: bytes, plain: bool) -> tuple[np.ndarray, list[str]]:
    if not plain:
        raise ImageError('is a 16-bit PNG with an EXIF orientation or a transparent colour: save it without')
    deep = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
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


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that it is either complete or absent, whenever the process dies.

    Args:
        path: Where to write; its folder exists.
        data: The content.

    Raises:
        OSError: If it cannot be written, with ``path`` as its file name.
    """
    part = path.with_name(f'.{os.getpid()}.part')
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:  # Ctrl-C
        part.unlink(missing_ok=True)
        raise
