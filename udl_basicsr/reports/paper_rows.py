"""What the tables of papers are made of: figures, rows, tables, and the networks of ours that stand in them."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from udl_basicsr.experiments.record_files import Record
from udl_basicsr.utils.metric_facts import MetricFacts


@dataclass(frozen=True)
class Ours:
    """One figure of ours: the mean over seeds, and their standard deviation where there are several."""
    mean: float
    sd: float | None
    seeds: int


@dataclass(frozen=True)
class Printed:
    """One printed figure, with the mark of its footnote."""
    value: float
    mark: str = ''


@dataclass(frozen=True)
class Line:
    """One row of a table; `ours` and `printed` map data set and metric to a figure."""
    scale: int
    network: str
    comparison: str
    method: str
    label: str  # as the paper prints the method
    cited: bool  # nobody trains it here
    ours: Mapping[tuple[str, str], Ours]
    printed: Mapping[tuple[str, str], Printed]
    our_costs: Mapping[str, float]  # parameters and operations in ones, times in milliseconds
    printed_costs: Mapping[str, str]

    @property
    def seeds(self) -> int:
        return max((figure.seeds for figure in self.ours.values()), default=0)


@dataclass(frozen=True)
class PaperTable:
    """A table before it takes a format."""
    name: str
    title: str
    degradation: str
    datasets: tuple[str, ...]
    facts: Mapping[str, MetricFacts]  # of each metric, in their order
    costs: Mapping[str, str]  # and their heads, as printed
    lines: tuple[Line, ...]
    caption: tuple[str, ...]  # what ours is and what the printed is
    remarks: tuple[str, ...]
    notes: Mapping[str, str]  # mark → footnote

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(self.facts)

    def digits(self, metric: str) -> int:
        """Decimals of a metric in this table: as many as the paper prints, if more than usual."""
        return max([self.facts[metric].decimals, *(getattr(figure.value, 'decimals', 0) for line in self.lines
                                        for (_, name), figure in line.printed.items()
                                        if name == metric and not figure.mark)])


@dataclass
class RecordGroup:
    """The records of one network in one comparison: what may be compared with one another."""
    comparison: str
    network: str
    records: list[Record]
    methods: dict[str, str] = field(default_factory=dict)  # the table's method → our id


def is_one_of(group: RecordGroup, network: str, names: Iterable[str]) -> bool:
    return group.network.casefold() in {title.casefold() for title in [network, *names]}
