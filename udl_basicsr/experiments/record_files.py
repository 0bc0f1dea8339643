"""Records as files: where the record of a run lies, what it must hold, and which of them are pairs.

A record is one JSON file for each run, ``docs/results/<comparison>/<method>_x<scale>_seed<seed>.json``, with the
network's id before the method where there are several networks: the scores of its test
(:mod:`udl_basicsr.utils.scores`), and what one must know to compare them with those of another run.
"""
from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from udl_basicsr.utils.files import write_text
from udl_basicsr.utils.json_files import JsonError, read_json
from udl_basicsr.utils.scores import Scores, ScoresError

FIELDS = {'comparison': str, 'method': str, 'label': str, 'reference': str, 'seed': int, 'degradation': str,
          'network_title': str, 'parameters': int, 'stages': list, 'options': list, 'initial_weights': str,
          'data_order': str, 'seconds': float, 'machine': str, 'date': str, 'curve': dict}
_LATER = {'order': int, 'lengths': str, 'costs': dict, 'commit': str}  # which older records lack
Series = dict[str, list]
"""``iter``, and of each name as many values; None where a stage did not log it."""


@dataclass(frozen=True)
class TrainedStage:
    """A stage that a run went through."""
    name: str
    iterations: int
    seconds: float | None = None
    """That its steps took, undisturbed; None where they were not timed."""


@dataclass(frozen=True)
class RunTime:
    """The time that one image took."""
    ms: float
    size: list[int]
    """Height and width of the image."""
    device: str


@dataclass(frozen=True)
class PeakMemory:
    """The most memory that a training had."""
    bytes: int
    of: str
    """``GPU``: what torch allocated there; ``process``: all of it."""


@dataclass(frozen=True)
class Curve:
    """What was logged, over the iterations of all stages."""
    loss: Series = field(default_factory=dict)
    val: dict[str, Series] = field(default_factory=dict)
    """Of each data set."""


@dataclass(frozen=True, kw_only=True)
class Record(Scores):
    """The record of one run. What has a default was not kept from the beginning, or is unknown of mere test runs."""
    comparison: str = ''
    method: str
    """Its id."""
    label: str
    """Of the method, as it is printed."""
    order: int = 0
    """Of the method among those of the plan."""
    reference: str
    """Id of the method that differences are taken to."""
    seed: int
    degradation: str = ''
    network_title: str = ''
    network_id: str | None = None
    """In comparisons of several networks."""
    lengths: str = 'shared'
    parameters: int = 0
    """Of the network; 0 where unknown."""
    costs: dict[str, float] = field(default_factory=dict)
    """``macs`` and ``runtime`` of an image, ``training`` of an iteration, times in milliseconds; ``operations`` of all
    iterations."""
    run_time: RunTime | None = None
    peak_memory: PeakMemory | None = None
    stages: list[TrainedStage] = field(default_factory=list)
    """Empty for a mere test run."""
    options: list[dict[str, Any]] = field(default_factory=list)
    """What decides of each stage's result."""
    initial_weights: str = ''
    data_order: str = ''
    seconds: float = 0.
    """Of training and test; 0 where unknown."""
    machine: str = ''
    date: str = ''
    commit: str = ''
    curve: Curve = field(default_factory=Curve)
    pictures: str | None = None
    """Their folder, where they were kept."""

    LEFT_OUT: ClassVar[tuple[str, ...]] = (*Scores.LEFT_OUT, 'network_id', 'lengths')

    @property
    def seconds_of_steps(self) -> float | None:
        """Of all stages together, undisturbed; None where one of them was not timed."""
        known = [stage.seconds for stage in self.stages if stage.seconds is not None]
        return sum(known) if known and len(known) == len(self.stages) else None

    @classmethod
    def _check(cls, content: Any, source: str, finite: bool) -> None:
        super()._check(content, source, finite)
        _need(content, FIELDS | {name: kind for name, kind in _LATER.items() if name in content}, source)
        _need(content.get('costs', {}), dict.fromkeys(content.get('costs', {}), float), source, 'costs.')
        for stage in content['stages']:
            if not isinstance(stage, dict):
                raise ScoresError(f'{source}: `stages` should hold objects with `name` and `iterations`, got {stage!r}')
            _need(stage, {'name': str, 'iterations': int, **({'seconds': float} if 'seconds' in stage else {})}, source,
                  'stages.')
        for name, kinds in {'run_time': {'ms': float, 'size': list, 'device': str},
                            'peak_memory': {'bytes': int, 'of': str}}.items():
            if content.get(name) is not None:
                _need(content, {name: dict}, source)
                _need(content[name], kinds, source, f'{name}.')
        size = (content.get('run_time') or {}).get('size', (0, 0))
        if len(size) != 2 or not all(isinstance(side, int) for side in size):
            raise ScoresError(f'{source}: `run_time.size` should be a height and a width, got {size!r}')
        curve = content['curve']
        _need({'loss': {}, 'val': {}, **curve}, {'loss': dict, 'val': dict}, source, 'curve.')
        for where, series in (('loss', curve.get('loss', {})), *curve.get('val', {}).items()):
            if not _is_series(series):
                raise ScoresError(f'{source}: a curve is malformed: `curve`, {where} should hold `iter`, and of each '
                                  'name as many values')

    @classmethod
    def _parts(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        parts = {name: _made(kind, content[name]) for name, kind in (
            ('run_time', RunTime), ('peak_memory', PeakMemory), ('curve', Curve)) if content.get(name) is not None}
        return {**super()._parts(content), **parts, 'stages': [_made(TrainedStage, s) for s in content['stages']]}

    def to_json(self) -> dict[str, Any]:
        content = super().to_json()
        for stage in content['stages']:
            if stage['seconds'] is None:
                del stage['seconds']
        return content


def _made(kind: type, content: Mapping) -> Any:
    return kind(**{one.name: content[one.name] for one in fields(kind) if one.name in content})


def _need(content: Mapping, kinds: Mapping[str, type], source: str, where: str = '') -> None:
    for name, kind in kinds.items():
        value = content.get(name)
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or isinstance(value, bool):
            raise ScoresError(f'{source}: `{where}{name}` should be of type {kind.__name__}, got {value!r}. '
                              'udl compare writes such records')


def _is_series(series: Any) -> bool:
    if not isinstance(series, dict) or not all(isinstance(values, list) for values in series.values()):
        return False
    iterations = series.get('iter')
    if iterations is None:
        return not series
    return (all(isinstance(i, int) for i in iterations)
            and all(len(values) == len(iterations) for values in series.values()))


def record_file(folder: str | Path, method: str, scale: int, seed: int, network: str | None = None) -> Path:
    """Where the record of a run lies; ``network``: its id, in comparisons of several."""
    return Path(folder) / f'{network + "_" if network else ""}{method}_x{scale}_seed{seed}.json'


def write_record(record: Record, folder: str | Path) -> Path:
    """Writes a record as a whole or not at all.

    Raises:
        ScoresError: A field is of the wrong type, or a score is not finite; nothing is written.
    """
    record = Record.from_json(record.to_json(), 'record')
    file = record_file(folder, record.method, record.scale, record.seed, record.network_id)
    return write_text(file, json.dumps(record.to_json(), ensure_ascii=False, separators=(',', ':')) + '\n')


def read_record(file: str | Path) -> Record:
    """The record of one run.

    Raises:
        ScoresError: The file is no JSON or no record.
        OSError: It cannot be read.
    """
    try:
        content = read_json(file)
    except JsonError as error:
        raise ScoresError(f'{file} is no JSON file ({error}), expected a record of udl compare. If it was one, move it '
                          'away and run the comparison again') from error
    return Record.from_json(content, str(file))


def folder_of_records(folder: str | Path) -> Path:
    """The folder itself, or its ``records``, as ``udl compare`` makes it by default, where only that has some."""
    inside = Path(folder, 'records')
    return inside if not _record_files(folder) and _record_files(inside) else Path(folder)


def _record_files(folder: str | Path) -> list[Path]:
    return sorted(Path(folder).glob('*_x*_seed*.json'))


def read_records(folder: str | Path) -> list[Record]:
    """The records of a comparison, by method, scale and seed.

    Args:
        folder: ``docs/results/<comparison>``, or ``results/<comparison>`` with the records in its folder ``records``.

    Raises:
        FileNotFoundError: There are none; the message says how to make them.
        ScoresError: A file that is no JSON or no record, or two runs of one seed that are no pair: they began with
            other weights, saw other crops, or trained another network.
    """
    files = _record_files(folder_of_records(folder))
    if not files:
        raise FileNotFoundError(f'{folder}: no records <method>_x<scale>_seed<seed>.json. Make them: udl compare '
                                'FILE.yml')
    records = [read_record(file) for file in files]
    check_pairs(records)
    return sorted(records, key=lambda r: (r.scale, r.method, r.seed))


def read_comparisons(folders: Iterable[str | Path]) -> dict[str, list[Record]]:
    """The records of several comparisons, each as of :func:`read_records`; a folder that is given twice counts once.

    Returns:
        dict: By the names of the folders. Where two are alike, as all are that ``udl compare`` makes by default
        (``results/<comparison>/records``), by the names of the comparisons; by their paths where these are alike too.
    """
    once = list({folder_of_records(folder).resolve(): Path(folder) for folder in folders}.values())
    found = [read_records(folder) for folder in once]
    for names in ([folder.resolve().name for folder in once], [records[0].comparison for records in found]):
        if len({*names}) == len(names):
            return dict(zip(names, found, strict=True))
    return dict(zip(map(str, once), found, strict=True))


def check_pairs(records: Iterable[Record]) -> None:
    """Finds runs that cannot be compared pair by pair.

    Each network of a comparison is compared with itself. Where each method has a length of its own (``lengths: own``),
    runs see different numbers of crops, and their order is not compared.

    Raises:
        ScoresError: Names both runs and what differs.
    """
    first: dict[tuple, Record] = {}
    for record in sorted(records, key=lambda r: r.lengths == 'own'):  # what others are compared with has all to compare
        other = first.setdefault((record.network_id, record.scale, record.seed), record)
        own = 'own' in (record.lengths, other.lengths)
        for name in ('network_title', ) if own else ('network_title', 'initial_weights', 'data_order'):
            mine, theirs = getattr(record, name), getattr(other, name)
            if mine != theirs:
                raise ScoresError(f'{record.name} and {other.name} are no pair: `{name}` is {mine} in '
                                  f'one and {theirs} in the other. Keep them in different comparisons')
