"""Images kept apart from training: pairs of GT and LQ in folders, and whether training has seen them after all."""
from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2

from udl_basicsr.data.images import SUFFIXES, ImageError, same_names
from udl_basicsr.utils.errors import UdlError
from udl_basicsr.utils.json_files import JsonError, read_json
from udl_basicsr.utils.shipped_weights import locate_weights
from udl_basicsr.utils.text import some
from udl_basicsr.utils.yaml_files import load_yaml

from .pictures import read_header

_MANIFEST = 'prepare.json'  # of udl prepare, beside the folders that it makes


class KeptApartError(UdlError, RuntimeError):
    """Images that cannot be calibrated or judged on; the message names them and says what was expected."""


@dataclass(frozen=True)
class ImagePair:
    """An image as it should be, and as the network gets it."""
    gt: Path
    lq: Path

    @property
    def name(self) -> str:
        """Of the data set, as its folder is called, and of the image."""
        return f'{self.gt.absolute().parent.parent.name}/{self.gt.stem}'

    def described(self) -> dict[str, str]:
        """Names and SHA-256 of both files."""
        return {key: value for kind, path in (('gt', self.gt), ('lq', self.lq))
                for key, value in ((kind, str(path)), (f'{kind}_sha256', _sha256(path.read_bytes())))}


def find_pairs(gt: Sequence[str | Path], lq: Sequence[str | Path]) -> list[ImagePair]:
    """The pairs of several folders, those of each sorted by name.

    An LQ has the name of its GT, or that name with its scale (``baby.png`` and ``babyx4.png``).

    Raises:
        KeptApartError: No such folder, not as many of one kind as of the other, an image without a partner, or two
            images that are the same.
    """
    if len(gt) != len(lq):
        raise KeptApartError(f'--gt and --lq: expected as many folders of each, got {len(gt)} and {len(lq)}')
    pairs = []
    for gt_folder, lq_folder in zip(map(Path, gt), map(Path, lq), strict=True):
        originals, inputs = find_pictures(gt_folder), find_pictures(lq_folder)
        bare = {re.sub(r'_?x\d+$', '', stem, flags=re.IGNORECASE): path for stem, path in inputs.items()}
        if alone := [stem for stem in originals if stem not in inputs and stem not in bare]:
            raise KeptApartError(f'{lq_folder}: has no partner of {some(alone)} in {gt_folder}; names must be equal')
        found = [ImagePair(path, inputs.get(stem) or bare[stem]) for stem, path in originals.items()]
        if alone := [path.name for path in inputs.values() if path not in {pair.lq for pair in found}]:
            raise KeptApartError(f'{gt_folder}: has no partner of {some(alone)} in {lq_folder}; names must be equal')
        pairs += found
    check_once(pairs)
    return pairs


def check_once(pairs: Iterable[ImagePair]) -> None:
    """Refuses images of which two are the same: a promise counts them, and none may judge what it has calibrated.

    Raises:
        KeptApartError: Names both.
    """
    seen: dict[str, Path] = {}
    for pair in pairs:
        content = _sha256(pair.gt.read_bytes())
        if content in seen:
            raise KeptApartError(f'{pair.gt}: is the same image as {seen[content]}, and would count twice; remove one, '
                                 'or give its folder once')
        seen[content] = pair.gt


def find_pictures(folder: Path) -> dict[str, Path]:
    """The images of a folder by their names without endings, sorted.

    Raises:
        KeptApartError: No such folder, no image in it, or two that are called the same.
    """
    if not folder.is_dir():
        raise KeptApartError(f'{folder}: no such folder; expected one of images')
    found = sorted(filter(_is_picture, folder.iterdir()))
    if not found:
        raise KeptApartError(f'{folder}: holds no image ({", ".join(SUFFIXES)})')
    if twice := same_names(path.name for path in found):
        raise KeptApartError(f'{folder}: {some(twice)}: one would take the place of the other; rename or remove one')
    return {path.stem: path for path in found}


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith('.')


# ---------------------------------------------------------------- has training seen them?

def check_apart(pairs: Iterable[ImagePair], checkpoints: Iterable[str | Path]) -> dict[str, list[str]]:
    """Refuses images that these checkpoints were trained on, as far as that can be known.

    What a run trained on stands in the option file in its folder, and so does which weights it started from
    (``path.pretrain_network_*``): those that were refined, or given a head. They are asked as well, and what they
    started from. An image is known again by its pixels, and, where both were made by udl prepare, by the file that it
    was made from, so that crops are known as well.

    Returns:
        ``{'compared': folders, 'unknown': [of what nothing could be compared, and why]}``.

    Raises:
        KeptApartError: An image that training has seen.
    """
    pairs, compared, unknown = list(pairs), [], []
    for checkpoint, runs in _with_those_before(checkpoints):
        folder, meta, why = _training_images(checkpoint, runs)
        if folder is None:
            unknown.append(why)
        elif (folder, meta) not in compared:
            if not (there := _listed(folder, meta)):
                unknown.append(f'{checkpoint}: {folder}, on which it was trained, holds none of its images any more')
                continue
            if seen := _seen(pairs, folder, there):
                raise KeptApartError(f'{some(seen)}: {len(seen)} of the images are in {folder}, on which '
                                     f'{checkpoint} was trained; give images that were kept apart')
            compared.append((folder, meta))
    return {'compared': list(dict.fromkeys(str(folder) for folder, _ in compared)), 'unknown': unknown}


def started_from(run: Path, options: dict) -> dict[str, Path]:
    """The weights that a run began with, by the key of ``path`` (``pretrain_network_u``), whether they are there or
    not."""
    path, found = options.get('path') or {}, {}
    for key, value in (path.items() if isinstance(path, dict) else ()):
        if key.startswith('pretrain_network_') and isinstance(value, str):
            with contextlib.suppress(ValueError):  # udl:NAME of another version
                value = locate_weights(value)
            found[key] = _placed(run, value)
    return found


def options_of(run: Path) -> list[dict]:
    """What stands in the option files of a run's folder."""
    return [load_yaml(str(file)) for file in sorted(run.glob('*.yml'))]


def _placed(run: Path, name: str) -> Path:
    """What a run calls by this name: paths begin where it was started, here or in the folder that holds experiments."""
    places = [start / Path(name).expanduser() for start in (Path.cwd(), run.parent.parent)]
    return next((place for place in places if place.exists()), places[-1])


def _with_those_before(checkpoints: Iterable[str | Path]) -> Iterator[tuple[Path, list[dict]]]:
    """Each checkpoint and those that its run started from, each once, with the options of its run."""
    waiting, met = list(map(Path, checkpoints)), set()
    while waiting:
        checkpoint = waiting.pop(0)
        if (place := checkpoint.resolve()) in met:
            continue
        met.add(place)
        run = checkpoint.absolute().parent.parent
        runs = options_of(run) if checkpoint.absolute().parent.name == 'models' else []
        yield checkpoint, runs
        waiting += [start for options in runs for start in started_from(run, options).values()]


def _training_images(checkpoint: Path, runs: Iterable[dict]) -> tuple[Path | None, Path | None, str]:
    """The folder of a run's GT and its list of names, or why they are not known."""
    for options in runs:
        train = (options.get('datasets') or {}).get('train') or {}
        if isinstance(root := train.get('dataroot_gt'), str):
            run, meta = checkpoint.absolute().parent.parent, train.get('meta_info_file')
            if (folder := _placed(run, root)).is_dir() and not root.endswith('.lmdb'):
                return folder, _placed(run, meta) if isinstance(meta, str) else None, ''
            return None, None, f'{checkpoint}: {root}, on which it was trained, is not here as a folder of images'
    return None, None, f'{checkpoint}: no option file beside it says what it was trained on'


def _listed(folder: Path, meta: Path | None) -> list[Path]:
    """The images that were trained on: those of the list, also in folders below; without one, as BasicSR, of the folder
    itself, but where a list was named that is gone all that may have been on it."""
    if meta is None:
        return sorted(filter(_is_picture, folder.iterdir()))
    if not meta.is_file():
        return sorted(filter(_is_picture, folder.rglob('*')))
    names = (line.split(' ')[0] for line in meta.read_text(encoding='utf-8').splitlines())
    return [folder / name for name in names if name and (folder / name).is_file()]


def _seen(pairs: list[ImagePair], folder: Path, there: list[Path]) -> list[str]:
    made_from = _made_from(folder)
    sources = {_source(path, made_from) for path in there} - {None}
    wanted = {_size(pair.gt) for pair in pairs}
    pixels = {_pixels(path) for path in there if _size(path) in wanted}
    known = {parent: _made_from(parent) for parent in {pair.gt.parent for pair in pairs}}
    return [pair.name for pair in pairs
            if _source(pair.gt, known[pair.gt.parent]) in sources or _pixels(pair.gt) in pixels]


def _source(path: Path, made_from: dict[str, str]) -> str | None:
    """The file that an image was made from, whole or as one of its crops."""
    return made_from.get(path.stem) or made_from.get(re.sub(r'_s\d+$', '', path.stem))


def _made_from(folder: Path) -> dict[str, str]:
    """SHA-256 of the file that each image of a folder was made from, by its name; empty where nobody has noted it."""
    try:
        images = read_json(folder.parent / _MANIFEST)['images']
        return {Path(name).stem: record['sha256'] for name, record in images.items()}
    except (OSError, JsonError, KeyError, TypeError, AttributeError):
        return {}


def _size(path: Path) -> tuple[int, int] | None:
    try:
        header = read_header(path)
    except (ImageError, OSError):
        return None
    return header.width, header.height


def _pixels(path: Path) -> str:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    return '' if image is None else _sha256(image.tobytes())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
