"""What a page shows, in groups: the runs that are compared with each other, and how their numbers are put."""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from udl_basicsr.experiments.record_files import Record, read_comparisons
from udl_basicsr.experiments.statistics import methods_of, paired_difference
from udl_basicsr.utils.metric_facts import MetricFacts
from udl_basicsr.utils.scores import ScoresError, metric_facts, read_scores
from udl_basicsr.utils.text import one_line, signed

from .method_styles import class_of

AHEAD, BEHIND, OPEN = 'ahead', 'behind', 'open'  # also the classes that templates/report.css colours


@dataclass(frozen=True)
class Group:
    """Runs that are compared with each other: of one network, scale and degradation.

    Attributes:
        title: Its heading.
        records: As :func:`udl_basicsr.experiments.record_files.read_records` gives them; of plain test runs,
            what is known.
        command: What makes the pictures where there are none.
    """
    title: str
    records: list[Record]
    command: str
    _differences: dict[tuple[str, str, str], dict | None] = field(default_factory=dict, compare=False, repr=False)

    @property
    def remedy(self) -> str:
        """Where there are no pictures: where they were looked for, and how to get them."""
        made = f'They are made by: {self.command}'
        gone = [Path(r.pictures) for r in self.records if isinstance(r.pictures, str) and r.pictures
                and not Path(r.pictures).is_dir()]
        if not gone:
            return made
        where = f'They were looked for in {one_line(gone[0].absolute(), 300)}, which is not there'
        if not gone[0].is_absolute():
            where += ': run this in the folder where the comparison ran'
        return f'{where}. {made}'

    @property
    def scale(self) -> int:
        return self.records[0].scale

    @property
    def methods(self) -> dict[str, str]:
        """Ids and labels, the reference first."""
        return methods_of(self.records)

    @property
    def reference(self) -> str | None:
        """Id of the method that differences are taken to; None where it was not run or nothing is to be compared."""
        name = self.records[0].reference
        return name if name in self.methods and len(self.methods) > 1 else None

    @property
    def trained(self) -> bool:
        """Whether these are the runs of a comparison, of which it is known how they were trained; else mere tests."""
        return bool(self.records[0].stages)

    @property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(name for r in self.records for name in r.datasets))

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(m for r in self.records for d in r.datasets.values() for m in d.mean))

    def style(self, method: str) -> str:
        """The classes of a method's colour and dashes, see :mod:`.method_styles`."""
        return class_of(list(self.methods).index(method))

    def facts(self, metric: str) -> MetricFacts:
        return metric_facts(self.records, metric)

    def of(self, method: str) -> list[Record]:
        """The runs of a method, by seed."""
        return sorted((r for r in self.records if r.method == method), key=lambda r: r.seed)

    def difference(self, method: str, dataset: str, metric: str) -> dict | None:
        """The paired difference from the reference with its `verdict`; None for the reference or where it has none."""
        if self.reference in (None, method):
            return None
        key = (method, dataset, metric)
        if key not in self._differences:  # a bootstrap takes a while
            found = paired_difference(self.records, method, dataset, metric, self.scale, self.reference)
            # Where an image was restored without any error its PSNR is infinite, and nothing can be said of means.
            self._differences[key] = None if found is None or not math.isfinite(found['mean']) else {
                **found, 'verdict': verdict(found, self.trained)}
        return self._differences[key]


# ---------------------------------------------------------------- reading

def read_groups(folders: Iterable[str | Path]) -> list[Group]:
    """Reads folders of records, and results folders of test runs, which are compared with the first of them.

    Args:
        folders: ``docs/results/<comparison>`` or ``results/<name>``, in any mixture.

    Raises:
        FileNotFoundError: A folder that does not exist or holds neither.
        ScoresError: Records or scores that are malformed.
    """
    groups: dict[tuple, list[Record]] = {}
    remedies, tested, compared = {}, {}, []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f'{folder}: no such folder. Expected docs/results/<comparison>, with the records '
                                    'of udl compare, or results/<name>, with the scores.json of udl test')
        if (folder / 'scores.json').is_file():
            tested[folder.resolve()] = None
        else:
            compared.append(folder)
    for name, records in read_comparisons(compared).items():
        for record in records:
            key = (name, record.network_title, record.scale, record.degradation)
            groups.setdefault(key, []).append(record)
            remedies[key] = ('udl compare FILE.yml --out FOLDER (a new one: runs with a record '
                             'there are not made again)')
    for record in _as_records([*tested]):
        key = ('tests', '', record.scale, '')
        groups.setdefault(key, []).append(record)
        remedies[key] = 'udl test -opt FILE.yml --force_yml val:save_img=true'
    found = []
    for key, records in groups.items():
        name, network, scale, degradation = key
        network = network or ', '.join(dict.fromkeys(r.network for r in records))
        alone = len({k[0] for k in groups}) == 1
        title = f'{network}, ×{scale}' + (f', {degradation}' if degradation else '')
        found.append(Group(title if alone else f'{name}: {title}', records, remedies[key]))
    return found


def _as_records(folders: Sequence[Path]) -> list[Record]:
    """Test runs in the form of records, as far as they say what records say."""
    scores = [read_scores(folder) for folder in folders]
    for folder in folders:
        if [f.name for f in folders].count(folder.name) > 1:
            raise ScoresError(f'Two results folders are called {folder.name}. Rename one of them.')
    first = {s.scale: f.name for f, s in zip(reversed(folders), reversed(scores), strict=True)}
    return [Record(**vars(s), method=f.name, label=f.name, reference=first[s.scale], seed=0, order=i,
                   pictures=str(f / 'visualization')) for i, (f, s) in enumerate(zip(folders, scores, strict=True))]


# ---------------------------------------------------------------- words and numbers

def digits_of(facts: MetricFacts) -> int:
    """One more than the metric itself has: differences of losses are small."""
    return facts.decimals + 1


def difference_text(difference: Mapping) -> str:
    """The mean of a paired difference."""
    return signed(difference['mean'], digits_of(difference['facts']))


def interval_text(difference: Mapping) -> str:
    """The bootstrap interval of a paired difference."""
    return '[{}, {}]'.format(*(signed(difference[end], digits_of(difference['facts'])) for end in ('low', 'high')))


def difference_view(difference: Mapping | None) -> dict | None:
    """What a template shows of a paired difference."""
    return None if difference is None else {
        'verdict': difference['verdict'], 'text': difference_text(difference), 'unit': unit(difference['facts']),
        'interval': interval_text(difference)}


def verdict(difference: Mapping, trained: bool = True) -> str:
    """`ahead` or `behind` where the intervals leave out zero and the metric has a direction, else `open`.

    Args:
        difference: As :func:`udl_basicsr.experiments.statistics.paired_difference` gives it.
        trained: Asks both intervals, that over seeds and images and that over seeds, so that a single seed decides
            nothing. Otherwise that over images: it is weights that are compared then, not ways to train.
    """
    sign = difference['facts'].sign
    ends = [sign * difference[end] for end in ('low', 'high', *(('seed_low', 'seed_high') if trained else ()))]
    if all(end > 0 for end in ends):
        return AHEAD
    if all(end < 0 for end in ends):
        return BEHIND
    return OPEN  # NaN too, the interval over one seed


def unit(facts: MetricFacts) -> str:
    """A unit as it stands behind a value."""
    return f' {facts.unit}' if facts.unit else ''


def first_metric(group: Group) -> str | None:
    """The metric by which a group is judged: PSNR, or the first that has a direction, or the first."""
    directed = [metric for metric in group.metrics if group.facts(metric).sign]
    return 'psnr' if 'psnr' in directed else next(iter(directed or group.metrics), None)
