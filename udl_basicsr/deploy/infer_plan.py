"""What inference has to do: the pictures that are there and the names of their outputs, before anything is made."""
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from udl_basicsr.data.images import OTHER_IMAGE_SUFFIXES, SUFFIXES, ImageError
from udl_basicsr.utils.errors import MISUSED, UdlError
from udl_basicsr.utils.files import is_stream, why_not_into

from .pictures import OPAQUE_SUFFIXES, Header, read_header

_LONGEST_NAME = 255  # bytes, on the file systems of today
INTERVALS = ('lower', 'upper', 'theta', 'within')
"""What intervals are written as: their ends, the expected error, and the mask of pixels within an error."""
MAPS = ('log_scale', 'spread', *INTERVALS)
"""What stands behind the names of results beside the restored picture."""


class InferenceError(UdlError, RuntimeError):
    """Why nothing was done."""
    status = MISUSED


@dataclass(frozen=True)
class PictureJob:
    """One picture and what is to be made of it."""
    source: Path
    header: Header
    sr: Path | None
    """Where the restored picture goes; None where it lies there already."""
    log_scale: Path | None
    """Where the map of s goes; None where it lies there already or is not asked for."""
    spread: Path | None = None
    """Where the picture goes of how far the members of an ensemble differ; likewise."""
    intervals: Mapping[str, Path] = field(default_factory=dict)
    """Where those of INTERVALS go that are asked for and do not lie there already."""

    @property
    def results(self) -> list[Path]:
        """All that is to be made."""
        return [path for path in (self.sr, self.log_scale, self.spread, *self.intervals.values()) if path]


@dataclass(frozen=True)
class InferencePlan:
    """What is to be done, and what is not."""
    jobs: tuple[PictureJob, ...]
    done: int
    """Pictures of which all outputs exist."""
    passed_over: dict[str, int]
    """Files in the folders that are no picture of a known format, by their endings."""
    there: int
    """Results that exist, whether they are to be made again or not."""


def make_plan(inputs: Iterable[str | Path], out: str | Path, *, suffix: str = '', file_format: str = 'png',
              log_scale: bool = False, spread: bool = False, intervals: bool = False, overwrite: bool = False,
              ) -> InferencePlan:
    """Finds the pictures and names their outputs; looks at headers only and changes nothing.

    ``<out>/<folders below the input folder>/<name>[_<suffix>].<format>``, and ``..._log_scale.png`` for the map of s,
    ``..._spread.png`` for that of how far members differ, ``..._lower.png``, ``..._upper.png``, ``..._theta.png`` and
    ``..._within.png`` for intervals.

    Args:
        inputs: Files, and folders that are walked, also where they are links; hidden files and what lies below
            ``out`` are passed over.
        out: Folder for the outputs.
        suffix: Put behind the names.
        file_format: ``png``, ``jpg``, or ``same`` as the input's.
        log_scale: Whether maps of s are wanted.
        spread: Whether those of how far members differ are.
        intervals: Whether intervals are wanted.
        overwrite: Make again what exists.

    Raises:
        InferenceError: With everything that is wrong.
    """
    out, problems, passed_over = Path(out), [], Counter()
    if {'/', os.sep} & set(suffix):
        problems.append(f'--suffix {suffix}: expected a part of a file name, without {os.sep}')
    if problem := why_not_into(out):
        problems.append(f'--out {out}: {problem}')
    sources = _sources(inputs, out, passed_over, problems)
    unique = {_place(path): (path, folder) for path, folder in reversed(sources.items())}
    originals = {*unique, *(path.resolve() for path, _ in unique.values())}

    jobs, done, there, owners = [], 0, 0, {}
    for path, folder in reversed(unique.values()):
        if is_stream(path):
            problems.append(f'{path}: is a pipe or a device, no picture')
            continue
        try:
            header = read_header(path)
        except (ImageError, OSError) as error:
            other = path.suffix.lower()
            problems.append(f'{path}: {other} files are not read: convert it to PNG' if other in OTHER_IMAGE_SUFFIXES
                            else problem_of(path, error))
            continue
        ending = header.suffix if file_format == 'same' else f'.{file_format}'
        if header.transparent and ending in OPAQUE_SUFFIXES:
            problems.append(f'{path}: has transparency, which {ending[1:]} cannot hold: use --format png')
        name = f'{path.stem}_{suffix}' if suffix else path.stem
        kinds = ('log_scale', ) * log_scale + ('spread', ) * spread + INTERVALS * intervals
        targets = [out / folder / f'{name}{ending}', *(out / folder / f'{name}_{kind}.png' for kind in kinds)]
        longest = max((target.name for target in targets), key=_bytes)
        if _bytes(longest) > _LONGEST_NAME:
            problems.append(f'{path}: the name of its result, {longest[:40]}..., would be longer than {_LONGEST_NAME} '
                            'bytes: give a shorter --suffix, or rename it')
            continue
        told = set()  # pictures that share a name share those of all their results
        for target in targets:
            place = _place(target)
            if place in originals:
                problems.append(f'{path}: {target} would be written over an input: give another --out or a --suffix')
            elif owners.get(place) in told:
                continue
            elif place in owners:
                told.add(owners[place])
                other = '' if kinds or file_format == 'same' else ', or --format same'  # maps are PNGs in any case
                problems.append(f'{path}: would become {target}, and so would {owners[place]}: give them different '
                                f'names{other}')
            elif target.is_dir():
                problems.append(f'{path}: would become {target}, which is a folder')
            owners.setdefault(place, path)
        there += sum(target.exists() for target in targets)
        wanted = [target if overwrite or not target.exists() else None for target in targets]
        if any(wanted):
            maps = {kind: target for kind, target in zip(kinds, wanted[1:], strict=True) if target}
            single = {kind: maps.pop(kind, None) for kind in ('log_scale', 'spread')}
            jobs.append(PictureJob(path, header, wanted[0], **single, intervals=maps))
        else:
            done += 1
    if problems:
        raise InferenceError(problems)
    return InferencePlan(tuple(jobs), done, dict(passed_over), there)


def _sources(inputs: Iterable[str | Path], out: Path, passed_over: Counter,
             problems: list[str]) -> dict[Path, Path]:
    """The folder in ``out`` of each file that is given or lies in a folder that is; one that is named twice is one."""
    sources: dict[Path, Path] = {}
    for given in map(Path, inputs):
        if given.is_dir():
            if given.resolve() == out.resolve():
                problems.append(f'{given}: is the folder of --out, whose results would be its next pictures: give '
                                'another --out')
                continue
            known = len(problems)
            files = list(_walk(given, out, passed_over, problems))
            if not files and len(problems) == known:
                problems.append(f'{given}: holds no picture ({", ".join(SUFFIXES)})')
            for path in files:
                sources.setdefault(path, path.parent.relative_to(given))
        elif given.exists():
            sources.setdefault(given, Path())
        else:
            problems.append(f'{given}: no such file or folder')
    return sources


def _walk(folder: Path, out: Path, passed_over: Counter, problems: list[str]) -> Iterable[Path]:
    def closed(error: OSError) -> None:  # which os.walk would pass over, with all the pictures in it
        problems.append(problem_of(Path(error.filename), error))

    met = {folder.resolve(), out.resolve()}  # links may lead in a circle, or to the results
    for parent, folders, files in os.walk(folder, onerror=closed, followlinks=True):
        places = {name: Path(parent, name).resolve() for name in sorted(folders) if not name.startswith('.')}
        folders[:] = [name for name, place in places.items() if place not in met]
        met.update(places.values())
        for name in sorted(files):
            ending = Path(name).suffix.lower()
            if name.startswith('.'):
                continue
            if ending in SUFFIXES:
                yield Path(parent, name)
            else:
                passed_over[ending or name] += 1


def _bytes(name: str) -> int:
    return len(os.fsencode(name))  # which takes names that are no UTF-8, as old archives have them


def _place(path: Path) -> Path:
    """Where a file's name lies, so that two spellings of it can be compared."""
    return path.parent.resolve() / path.name


def problem_of(path: Path, error: Exception) -> str:
    return f'{path}: {error.strerror if isinstance(error, OSError) and error.strerror else error}'
