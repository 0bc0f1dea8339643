"""Which files, or keys of databases, are pairs of GT and LQ, by the rules of BasicSR's PairedImageDataset."""
import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from os import path as osp
from pathlib import PurePosixPath, PureWindowsPath
from typing import BinaryIO, NamedTuple

from udl_basicsr.data.images import SUFFIXES, ImageError, read_header

from .keys import Findings
from .schema import DATASET

SHOWN = 20
"""So many offending files are named, of more the number."""
_LMDB_LINE = re.compile(r'^(?P<name>.+?) \((?P<height>\d+),\s*(?P<width>\d+),\s*\d+\)')
PREPARE = 'prepare it with udl prepare, or correct the path'

Size = tuple[int, int]


class Pair(NamedTuple):
    """The names of one pair: paths, or keys of databases."""
    gt: str
    lq: str


def some_of(names: Sequence[str], separator: str = ', ') -> str:
    names = list(names)
    return separator.join(names[:SHOWN]) + (f'{separator}... ({len(names)} in all)' if len(names) > SHOWN else '')


def _listing(folder: str) -> tuple[set[str], list[str]]:
    """The files of a folder; and links to images that are not there, which BasicSR would pass over."""
    entries = [e for e in os.scandir(folder) if not e.name.startswith('.')]
    lost = [e.name for e in entries if e.is_symlink() and not osp.exists(e.path)
            and osp.splitext(e.name)[1].lower() in SUFFIXES]
    return {e.name for e in entries if e.is_file()}, sorted(lost)


def why_outside(name: str) -> str:
    """Why a file's name, from a list that somebody else may have written, is none; empty where it is one."""
    if not name.isprintable():
        return 'has characters that cannot be seen'
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if path.root:
            return 'is an absolute path; expected one inside the folder'
        if '..' in path.parts:
            return 'climbs out of its folder with ..; expected a name inside it'
    if PurePosixPath(name).name.startswith('.'):
        return 'begins with a dot; such files are no images of a data set'
    return ''


def _lines(path: str) -> Iterator[str]:
    with open(path, encoding='utf-8') as file:
        for line in file:
            yield line.rstrip('\r\n')


def names_outside(path: str) -> str:
    """What is wrong with the names in a list of images, one a line; empty where nothing is."""
    try:
        wrong = [f'line {number}: {name[:100]!r} {problem}' for number, line in enumerate(_lines(path), 1)
                 for name in re.split(r',? ', line.strip()) if name and (problem := why_outside(name))]
    except (OSError, UnicodeDecodeError) as error:
        return f'cannot be read: {error}'
    return some_of(wrong, '; ')


def file_pairs(dataset: dict, gt_root: str, lq_root: str, at: str, report: Findings) -> list[Pair]:
    template, meta = dataset.get('filename_tmpl', DATASET['filename_tmpl'].default), dataset.get('meta_info_file')
    (gt_there, gt_lost), (lq_there, lq_lost) = _listing(gt_root), _listing(lq_root)
    for key, there, lost in (('dataroot_gt', gt_there, gt_lost), ('dataroot_lq', lq_there, lq_lost)):
        if meta is None and lost:
            report.add(f'{at}.{key}', f'has links to images that are not there: {some_of(lost)}; correct or remove '
                       'them')
        # they become those of results, and lines of logs and tables
        if strange := sorted(ascii(name) for name in there if not name.isprintable()):
            report.add(f'{at}.{key}', f'has files whose names have characters that cannot be seen: {some_of(strange)}; '
                       'rename them')
    names = sorted(gt_there)
    if meta is not None:
        names = [line.strip().split(' ')[0] for line in _lines(osp.expanduser(meta))]
        if '' in names:
            report.add(f'{at}.meta_info_file', f'line {names.index("") + 1} is empty; remove it')
        absent = [n for n in names if n and n not in gt_there and not osp.isfile(osp.join(gt_root, n))]
        if absent:
            report.add(f'{at}.meta_info_file', f'names images that are not in {osp.abspath(gt_root)}: '
                       f'{some_of(absent)}')
        names = [n for n in names if n and n not in set(absent)]
    partner = {}
    for name in names:
        stem, extension = osp.splitext(osp.basename(name))
        partner[name] = f'{template.format(stem)}{extension}'
    alone = [n for n in names if partner[n] not in lq_there]
    if alone:
        shown = [n if partner[n] == n else f'{partner[n]} for {n}' for n in alone]
        report.add(f'{at}.dataroot_lq', f'no partner in {osp.abspath(lq_root)}: {some_of(shown)}; '
                   'names must be equal, or follow filename_tmpl')
    extra = sorted(lq_there - set(partner.values())) if meta is None else []
    if extra:
        report.add(f'{at}.dataroot_lq', f'images without a partner in {osp.abspath(gt_root)}: {some_of(extra)}')
    # those that are pairs are looked at all the same: whoever mends a folder wants to know everything
    alone = set(alone)
    return [Pair(osp.join(gt_root, n), osp.join(lq_root, partner[n])) for n in names if n not in alone]


def lmdb_pairs(gt_root: str, lq_root: str, at: str, report: Findings, stack: contextlib.ExitStack,
                ) -> tuple[list[Pair], Callable[[str], BinaryIO]]:
    """Pairs of two databases whose ``meta_info.txt`` says what is in them, and how to read one."""
    keys: dict[str, set[str]] = {}
    read: dict[str, Callable[[str], bytes]] = {}
    for key, root in (('dataroot_gt', gt_root), ('dataroot_lq', lq_root)):
        if not root.endswith('.lmdb'):
            report.add(f'{at}.{key}', f'io_backend lmdb expects a folder whose name ends in .lmdb, got {root}')
            continue
        meta = osp.join(root, 'meta_info.txt')
        try:
            lines = list(_lines(meta))
        except (OSError, UnicodeDecodeError):
            report.add(f'{at}.{key}', f'cannot read {osp.abspath(meta)}; {PREPARE}')
            continue
        if outside := names_outside(meta):
            report.add(f'{at}.{key}', f'{osp.abspath(meta)}: {outside}')
            continue
        keys[root] = {line.split('.')[0] for line in lines}
        try:
            read[root], there = _open_lmdb(root, stack)
        except Exception as error:  # lmdb has a dozen kinds, and is imported only where it is needed
            report.add(f'{at}.{key}', f'{osp.abspath(root)} cannot be opened as an LMDB: {error}; {PREPARE}')
            continue
        for what, names in (('is not in the database', keys[root] - there), ('is in no line', there - keys[root])):
            if names:
                report.add(f'{at}.{key}', f'{osp.abspath(meta)} does not fit the database: {some_of(sorted(names))} '
                           f'{what}; make it anew with udl prepare')
        wrong = [f'{m["name"]} {m["width"]}x{m["height"]}, {size[0]}x{size[1]} in truth' for line in lines
                 if (m := _LMDB_LINE.match(line)) and (size := _size_of(read[root], line.split('.')[0]))
                 and size != (int(m['width']), int(m['height']))]
        if wrong:
            report.add(f'{at}.{key}', f'{osp.abspath(meta)} has other sizes than the database: {some_of(wrong)}')

    def opened(name: str) -> BinaryIO:
        root, _, key = name.rpartition('.lmdb/')
        return io.BytesIO(read[f'{root}.lmdb'](key))

    if len(read) < 2:
        return [], opened
    if keys[gt_root] != keys[lq_root]:
        report.add(f'{at}.dataroot_lq', 'its images are not those of dataroot_gt: '
                   f'{some_of(sorted(keys[gt_root] ^ keys[lq_root]))}')
    both = keys[gt_root] & keys[lq_root]
    return [Pair(f'{gt_root}/{k}', f'{lq_root}/{k}') for k in sorted(both)], opened


def _size_of(read: Callable[[str], bytes], key: str) -> Size | None:
    try:
        return read_header(io.BytesIO(read(key)))
    except ImageError:
        return None  # which is said of the pair


def _open_lmdb(root: str, stack: contextlib.ExitStack) -> tuple[Callable[[str], bytes], set[str]]:
    """How to read a database, and its keys. Nothing is written beside it: no lock."""
    import lmdb

    database = stack.enter_context(lmdb.open(root, readonly=True, lock=False, readahead=False, create=False))
    needed = (database.info()['last_pgno'] + 1) * database.stat()['psize']
    if (there := osp.getsize(osp.join(root, 'data.mdb'))) < needed:
        # reading behind the end of a file that is mapped into memory kills the process
        raise ValueError(f'data.mdb is cut off, it has {there} of {needed} bytes')
    with database.begin() as transaction:
        there = {bytes(key).decode('utf-8', 'backslashreplace') for key in transaction.cursor().iternext(values=False)}

    def read(key: str) -> bytes:
        with database.begin() as transaction:
            return transaction.get(key.encode()) or b''

    return read, there
