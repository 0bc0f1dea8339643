"""Mutated images: each is accepted, and then is what it was taken for, or refused with a message that names the file.

The suite looks at a few mutations of small images of every format, always the same ones. The long run draws new ones:

    UDL_FUZZ=20000 python -m pytest -q -s tests/test_fuzz_images.py

Each goes through every door that images have: the check before training (headers, and every pixel with ``--deep``),
validation and training in mid-run, ``udl prepare`` and ``udl infer``. What the long run finds is shrunk by
hypothesis, printed, and kept in ``.hypothesis`` to be tried first the next time.
"""
import io
import os
import signal
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import photograph
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from udl_basicsr.data import prepare
from udl_basicsr.data.images import MAX_PIXELS, BrokenImageError
from udl_basicsr.data.loader import SeededDataset, ValidationImages, build_dataset
from udl_basicsr.deploy import infer, infer_plan
from udl_basicsr.options.data_sets import Images, _open_file

LONG = int(os.environ.get('UDL_FUZZ', 0))
SECONDS = 10
"""Of CPU, which no image of these sizes needs, however it is broken and whatever else the machine does."""
HEIGHT, WIDTH = 24, 36
SUFFIX = {'PNG': '.png', 'JPEG': '.jpg', 'MPO': '.jpg', 'BMP': '.bmp', 'TIFF': '.tif', 'WEBP': '.webp', 'PPM': '.ppm'}


# ------------------------------------------------------------------------------------------------- where it starts from
def _encoded(image: Image.Image, kind: str, *more: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image, *more = (i.copy() for i in (image, *more))  # what Pillow keeps in it for one format it hands to the next
    image.save(file, kind, **({'save_all': True, 'append_images': more} if more else {}), **options)
    return file.getvalue()


def _starts() -> dict[str, list[bytes]]:
    """Sound images by their formats, of every kind that some reader treats apart."""
    pixels = photograph(0, HEIGHT, WIDTH)
    image, other = Image.fromarray(pixels), Image.fromarray(pixels[::-1].copy())
    deep = np.random.default_rng(0).integers(0, 2**16, (HEIGHT, WIDTH, 3), dtype=np.uint16)
    exif = Image.Exif()
    exif[0x112] = 6
    texts = PngImagePlugin.PngInfo()
    texts.add_text('a', 'b' * 50, zip=True)
    texts.add_itxt('c', 'd' * 50, zip=True)
    modes = [image.convert(mode) for mode in ('RGB', 'L', '1', 'P', 'RGBA', 'LA')]
    return {
        'PNG': [*(_encoded(m, 'PNG') for m in modes), _encoded(image, 'PNG', pnginfo=texts, icc_profile=b'profile'),
                _encoded(image, 'PNG', exif=exif), _encoded(image, 'PNG', other), _encoded(image, 'PNG', other,
                                                                                          default_image=True),
                cv2.imencode('.png', deep)[1].tobytes(), cv2.imencode('.png', deep[..., 0])[1].tobytes()],
        'JPEG': [_encoded(image, 'JPEG'), _encoded(image.convert('L'), 'JPEG'), _encoded(image, 'JPEG', exif=exif),
                 _encoded(image, 'JPEG', progressive=True), _encoded(image.convert('CMYK'), 'JPEG'),
                 _encoded(image, 'MPO', other), _encoded(image, 'JPEG', icc_profile=bytes(200), comment=b'comment')],
        'BMP': [*(_encoded(m, 'BMP') for m in modes[:5])],
        'TIFF': [*(_encoded(m, 'TIFF') for m in modes), _encoded(image, 'TIFF', compression='tiff_lzw'),
                 _encoded(image, 'TIFF', compression='tiff_adobe_deflate'), _encoded(image, 'TIFF', other),
                 _encoded(image, 'TIFF', compression='jpeg'), cv2.imencode('.tiff', deep)[1].tobytes(),
                 _encoded(image, 'TIFF', exif=exif), _encoded(image, 'TIFF', other, compression='tiff_lzw')],
        'WEBP': [_encoded(image, 'WEBP'), _encoded(image, 'WEBP', lossless=True), _encoded(modes[4], 'WEBP'),
                 _encoded(image, 'WEBP', other), _encoded(image, 'WEBP', exif=exif)],
        'PPM': [_encoded(image, 'PPM'), _encoded(modes[1], 'PPM')],
    }


STARTS = _starts()
NUMBERS = [0, 1, 2, 3, 7, 8, 16, 255, 256, 32767, 32768, 60000, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1]
CHUNKS = [b'acTL', b'fcTL', b'fdAT', b'eXIf', b'zTXt', b'iTXt', b'tEXt', b'iCCP', b'gAMA', b'cHRM', b'sRGB', b'tRNS',
          b'PLTE', b'IHDR', b'IDAT', b'IEND', b'sBIT', b'bKGD', b'pHYs', b'tIME', b'hIST', b'sPLT', b'CgBI', b'ABCD',
          b'abCd', b'\0\0\0\0']
SEGMENTS = [0x01, 0xC0, 0xC1, 0xC2, 0xC4, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE]
_TURNED = Image.Exif()
_TURNED[0x112] = 8
CONTENTS = [b'', b'\0', b'a\0\0' + zlib.compress(bytes(4_000_000), 9), b'a\0\1\0\0\0' + zlib.compress(bytes(4_000_000)),
            b'a\0\0' + zlib.compress(b'text'), b'a\0\0not compressed', struct.pack('>II', 2, 0), bytes(26), b'x' * 3000,
            _TURNED.tobytes(), _TURNED.tobytes().removeprefix(b'Exif\0\0'), b'Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3',
            b'Raw profile type exif\0\0' + zlib.compress(b'\nexif\n  8\n4578696600004d4d\n'), b'ICC_PROFILE\0\1\1abc',
            b'MPF\0MM\0*\0\0\0\x08\0\1', struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0)]
contents = st.sampled_from(CONTENTS) | st.binary(max_size=40)


# ------------------------------------------------------------------------------------------------------ how it changes
def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """(kind, content) of each whole chunk."""
    found, at = [], 8
    while at + 12 <= len(data):
        length, kind = struct.unpack('>I4s', data[at:at + 8])
        found.append((kind, data[at + 8:at + 8 + length]))
        at += 12 + length
    return found


def png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """With right lengths and checksums, so that readers look at what is in the chunks."""
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))
        for kind, content in chunks)


@st.composite
def position(draw, data: bytes) -> int:
    """A place in a file, its first bytes more often than the others."""
    return draw(st.integers(0, max(0, min(draw(st.sampled_from([30, 60, 200, len(data)])), len(data)) - 1)))


@st.composite
def changed_chunks(draw, data: bytes) -> bytes:
    chunks = png_chunks(data)
    if not chunks:
        return data
    at = draw(st.integers(0, len(chunks) - 1))
    how = draw(st.sampled_from(['insert', 'insert', 'drop', 'twice', 'move', 'content', 'kind', 'header', 'pixels']))
    if how == 'insert':
        chunks.insert(at + draw(st.integers(0, 1)), (draw(st.sampled_from(CHUNKS)), draw(contents)))
    elif how == 'drop':
        del chunks[at]
    elif how == 'twice':
        chunks.insert(at, chunks[at])
    elif how == 'move':
        chunks.insert(draw(st.integers(0, len(chunks) - 1)), chunks.pop(at))
    elif how == 'content':
        chunks[at] = chunks[at][0], draw(mutated(chunks[at][1], 'OTHER'))
    elif how == 'kind':
        chunks[at] = draw(st.sampled_from(CHUNKS)), chunks[at][1]
    elif how == 'header' and chunks[0][0] == b'IHDR' and len(chunks[0][1]) == 13:
        header = list(struct.unpack('>IIBBBBB', chunks[0][1]))
        field = draw(st.integers(0, 6))
        header[field] = draw(st.sampled_from(NUMBERS)) % (2**32 if field < 2 else 256)
        chunks[0] = b'IHDR', struct.pack('>IIBBBBB', *header)
    else:  # what the pixels unpack to: more, fewer, or other filters
        pixels = b''.join(content for kind, content in chunks if kind == b'IDAT')
        try:
            pixels = zlib.decompress(pixels)
        except zlib.error:
            return png_of(chunks)
        pixels = draw(st.sampled_from([pixels[:-1], pixels[:len(pixels) // 2], pixels + bytes(5), b'',
                                       b'\7' + pixels[1:]]))
        kept = [chunk for chunk in chunks if chunk[0] != b'IDAT']
        chunks = [*kept[:-1], (b'IDAT', zlib.compress(pixels)), *kept[-1:]]
    return png_of(chunks)


@st.composite
def changed_segments(draw, data: bytes) -> bytes:
    """One more segment behind the start of a JPEG, or another size in its frame header."""
    if draw(st.booleans()):
        content = draw(contents)[:65533]
        return data[:2] + bytes([0xFF, draw(st.sampled_from(SEGMENTS))]) + struct.pack('>H', len(content) + 2) + \
            content + data[2:]
    at = next((i for i in range(2, len(data) - 9) if data[i] == 0xFF and data[i + 1] in (0xC0, 0xC1, 0xC2)), None)
    if at is None:
        return data
    field, value = draw(st.sampled_from([4, 5, 7, 9])), draw(st.sampled_from(NUMBERS))
    return data[:at + field] + struct.pack('>H', value % 2**16) + data[at + field + 2:]


@st.composite
def changed_entries(draw, data: bytes) -> bytes:
    """Another tag, type, count or value in the first directory of a TIFF."""
    order = '>' if data[:2] == b'MM' else '<'
    if len(data) < 8:
        return data
    at = struct.unpack(f'{order}I', data[4:8])[0]
    if at + 2 > len(data):
        return data
    count = struct.unpack(f'{order}H', data[at:at + 2])[0]
    at += 2 + 12 * draw(st.integers(0, max(0, min(count, 40))))
    field, code = draw(st.sampled_from([(0, 'H'), (2, 'H'), (4, 'I'), (8, 'I'), (8, 'H')]))
    value = draw(st.sampled_from([*NUMBERS, at, 256, 257, 258, 259, 262, 273, 274, 277, 284, 322, 330, 339]))
    value = struct.pack(f'{order}{code}', value % 2**(8 * struct.calcsize(code)))
    return data[:at + field] + value + data[at + field + len(value):]


@st.composite
def mutated(draw, data: bytes, kind: str) -> bytes:
    """``data`` with one thing changed."""
    by_kind = {'PNG': changed_chunks, 'JPEG': changed_segments, 'TIFF': changed_entries}
    if kind in by_kind and draw(st.booleans()):
        return draw(by_kind[kind](data))
    at = draw(position(data))
    how = draw(st.sampled_from(['flip', 'flip', 'byte', 'number', 'number', 'cut', 'cut', 'drop', 'twice', 'insert',
                                'append', 'splice', 'zeros']))
    if how == 'flip' and data:
        return data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1:]
    if how == 'byte':
        return data[:at] + draw(st.sampled_from([b'\0', b'\1', b'\x7f', b'\x80', b'\xff'])) + data[at + 1:]
    if how == 'number':
        number = draw(st.sampled_from(NUMBERS))
        field = struct.pack(draw(st.sampled_from('<>')) + ('H' if number < 2**16 else 'I'), number)
        return data[:at] + field + data[at + len(field):]
    if how == 'cut':
        return data[:draw(st.integers(0, len(data)))]
    length = draw(st.sampled_from([1, 2, 4, 12, 50, 500]))
    if how == 'drop':
        return data[:at] + data[at + length:]
    if how == 'twice':
        return data[:at + length] + data[at:]
    if how == 'insert':
        return data[:at] + draw(contents) + data[at:]
    if how == 'append':
        return data + draw(contents | st.sampled_from([data, data[:50]]))
    if how == 'zeros':
        return data[:at] + bytes(min(length, len(data) - at)) + data[at + length:]
    other = draw(st.sampled_from([start for starts in STARTS.values() for start in starts]))
    return data[:at] + other[draw(position(other)):]


@st.composite
def cases(draw) -> tuple[str, bytes]:
    """The ending of a file's name, and its content."""
    kind = draw(st.sampled_from(['PNG', 'PNG', 'PNG', 'JPEG', 'JPEG', 'TIFF', 'TIFF', 'BMP', 'WEBP', 'WEBP', 'PPM']))
    data = draw(st.sampled_from(STARTS[kind]))
    for _ in range(draw(st.sampled_from([1, 1, 1, 1, 2, 3]))):
        data = draw(mutated(data, kind))
    suffix = SUFFIX[kind]
    if draw(st.sampled_from([False] * 9 + [True])):  # under a name that promises something else
        suffix = draw(st.sampled_from(sorted(set(SUFFIX.values()))))
    return suffix, data


# ------------------------------------------------------------------------------------------------------- what must hold
class TooLongError(BaseException):
    """Of no class that the program catches."""


def said(message: str) -> str:
    """A message of ours, whatever a library has put into it."""
    assert message
    assert message.isprintable(), message
    assert 'Traceback' not in message
    assert 'object at 0x' not in message
    assert len(message) < 1000, message
    return message


def result_of(act: Callable, refusal: type[Exception], name: str):
    """What a door gives, or None where it refuses with a message that names the file."""
    try:
        return act()
    except refusal as error:
        message = said(str(error))
    assert name in message
    return None


def through_every_door(path: Path, folder: Path) -> Counter:
    """What became of an image at each door; anything but acceptance or a message is an error."""
    became = Counter()
    name = str(path)

    # the check before training
    known = {}
    for deep in (False, True):
        images = Images(deep=deep)
        images.look([name], _open_file, 'fuzz')
        known[deep] = images.known[name]
        if isinstance(known[deep], str):
            said(known[deep])
        else:
            width, height = known[deep]
            assert 0 < width * height <= MAX_PIXELS
    assert isinstance(known[True], str) or known[True] == known[False]

    # mid-run: what was accepted is an image of that size, or is named
    roots = {'dataroot_gt': str(folder), 'dataroot_lq': str(folder)}
    common = {'type': 'PairedImageDataset', **roots, 'io_backend': {'type': 'disk'}, 'scale': 1, 'name': 'fuzz'}
    if isinstance(known[False], str):
        became['refused by its header'] += 1
        with pytest.raises(BrokenImageError) as error:
            ValidationImages(build_dataset({**common, 'phase': 'val'}))[0]
        assert name in said(str(error.value))
    elif known[False][0] * known[False][1] <= 10**6:
        val = {**common, 'phase': 'val'}
        sample = result_of(lambda: ValidationImages(build_dataset(val))[0], BrokenImageError, name)
        if sample is None:
            assert isinstance(known[True], str)  # which --deep finds out before
            became['refused in mid-run'] += 1
        else:
            assert tuple(sample['lq'].shape) == (3, *known[False][::-1])
            became['validated on'] += 1
        train = {**common, 'phase': 'train', 'gt_size': 1, 'use_hflip': False, 'use_rot': False}
        if result_of(lambda: SeededDataset(build_dataset(train), 0)[0, 0], BrokenImageError, name) is None:
            assert isinstance(known[True], str)

    # udl prepare
    record = prepare._inspect(path)
    if isinstance(record, str):
        assert said(record).startswith(f'{path.name}: ')
    else:
        became['prepared'] += 1
        assert 0 < record['height'] * record['width'] <= MAX_PIXELS
        for each in record['notes']:
            said(each)
        if not isinstance(known[True], str):
            assert known[True] == (record['width'], record['height'])

    # infer.py
    plan = result_of(lambda: infer_plan.make_plan([path], folder / 'out'), infer_plan.InferenceError, f'{path}: ')
    if plan is None:
        return became
    job, = plan.jobs
    picture = infer._try_to_read(job)
    if isinstance(picture, Exception):
        said(infer_plan.problem_of(path, picture))
    else:
        became['inferred'] += 1
        header, shape = job.header, picture.colour.shape
        assert {header.height, header.width} == set(shape[:2])
        assert shape[2] in (1, 3)
        assert picture.colour.dtype == (np.uint8 if header.bits == 8 else np.uint16)
        assert (picture.alpha is not None) == header.transparent
        assert picture.alpha is None or picture.alpha.shape == shape[:2]
    return became


def test_mutated_images(tmp_path):
    folder, became, begun = tmp_path / 'images', Counter(), time.process_time()
    folder.mkdir()

    def stop(*_):
        raise TooLongError

    before = signal.signal(signal.SIGPROF, stop)

    @settings(max_examples=LONG or 150, derandomize=not LONG, deadline=None, print_blob=True,
              suppress_health_check=list(HealthCheck), **({} if LONG else {'database': None}))
    @given(cases())
    def attempt(case):
        suffix, data = case
        note(f'{suffix}: {data.hex() if len(data) < 20_000 else len(data)}')
        path = folder / f'image{suffix}'
        path.write_bytes(data)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            became.update(through_every_door(path, folder))
        except TooLongError as error:
            raise AssertionError(f'longer than {SECONDS} s') from error  # an example that hypothesis shows
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            path.unlink()
        became['images'] += 1

    try:
        attempt()
    finally:
        signal.signal(signal.SIGPROF, before)
    print(f'\n{dict(became)} in {time.process_time() - begun:.0f} s of CPU')
    assert became['refused by its header'] > 20
    assert min(became['validated on'], became['prepared'], became['inferred']) > 10


def test_what_it_starts_from_is_sound(tmp_path):
    """Or nothing would be found out: each start is taken by some door."""
    for kind, starts in STARTS.items():
        for number, data in enumerate(starts):
            path = tmp_path / f'{kind}{number}' / f'image{SUFFIX[kind]}'
            path.parent.mkdir()
            path.write_bytes(data)
            became = through_every_door(path, path.parent)
            assert became['validated on'] or became['prepared'] or became['inferred'] or (kind, number) in {
                ('PNG', 8), ('PNG', 9), ('JPEG', 4), ('TIFF', 8), ('TIFF', 12), ('WEBP', 3)}, (kind, number, became)
