"""The benchmark table: several runs, and what papers printed, in the layout of super-resolution papers.

Rows are scale × method, columns are data sets with one value per metric in a cell. Under each run stand its differences
to a reference run and to the printed figures of the same method.
"""
from __future__ import annotations

import csv
import io
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from udl_basicsr.experiments.printed import DATASETS, Values, dataset_name, printed_text
from udl_basicsr.utils.metric_facts import MetricFacts
from udl_basicsr.utils.scores import Scores, ScoresError, metric_facts, protocol_notes
from udl_basicsr.utils.tables import markdown_table, text_table
from udl_basicsr.utils.text import did_you_mean

Key = TypeVar('Key', bound=Hashable)
METRICS = ('psnr', 'ssim')
"""Of papers, so that a column of dashes says that it was not measured."""
FORMATS = ('text', 'md', 'csv', 'latex')
MARKS = {'md': ('**{}**', '<u>{}</u>'), 'latex': ('\\textbf{{{}}}', '\\underline{{{}}}')}  # best, second-best

_TEX = str.maketrans({
    '\\': '\\textbackslash{}', '{': '\\{', '}': '\\}', '$': '\\$', '^': '\\textasciicircum{}', '_': '\\_',
    '~': '\\textasciitilde{}', '%': '\\%', '&': '\\&', '#': '\\#', '<': '$<$', '>': '$>$', '|': '$|$',
    '×': '$\\times$', '±': '$\\pm$', '−': '$-$', '–': '--', '·': '$\\cdot$', '→': '$\\rightarrow$', '√': '$\\surd$',
    '↓': '$\\downarrow$', '↑': '$\\uparrow$', '†': '$\\dagger$', 'ℓ': '$\\ell$', 'σ': '$\\sigma$', 'β': '$\\beta$',
    'θ': '$\\theta$', 'ŝ': '$\\hat{s}$', '…': '\\ldots{}', '’': "'"})


@dataclass(frozen=True)
class Row:
    """One row of the table."""
    scale: int
    label: str     # a run's name, a printed network and method, or what a difference is taken to
    kind: str      # 'run', 'paper' or 'difference'
    values: Values  # data set → metric → value


@dataclass(frozen=True)
class Table:
    """The joined table, before it takes a format."""
    datasets: tuple[str, ...]
    facts: Mapping[str, MetricFacts]  # of each metric of the cells, in their order
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(self.facts)


def _partners(run: str, printed: Sequence[Mapping]) -> list[Mapping]:
    """The printed rows that a run is compared with: of each source the one whose method, or one of its names, has most
    words in common with the run's name (`EDSR_L1_TLW_x4` → `L1 + TLW` and not `L1`)."""
    words = _words(run)
    best: dict[str, tuple[tuple, Mapping]] = {}
    for row in printed:
        for name in [row['method'], *row['names']]:
            parts = _words(name)
            if parts and any(words[i:i + len(parts)] == parts for i in range(len(words))):
                rank = len(parts), name == row['method']
                if row['source'] not in best or rank > best[row['source']][0]:
                    best[row['source']] = rank, row
    return [row for _, row in best.values()]


def _words(text: str) -> list[str]:
    return [word for word in re.split(r'[\W_]+', text.lower()) if word]


def _means(scores: Scores) -> Values:
    return {dataset_name(name): dict(dataset.mean) for name, dataset in scores.datasets.items()}


def _printed_label(row: Mapping, printed: Iterable[Mapping]) -> str:
    twins = {other['source'] for other in printed
             if all(other[key] == row[key] for key in ('network', 'method', 'scale'))}
    return f'{row["network"]} {row["method"]} †' + (f' {row["source"]}' if len(twins) > 1 else '')


def _difference(values: Values, base: Values) -> Values:
    def minus(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else a - b
    return {name: {metric: minus(value, base.get(name, {}).get(metric)) for metric, value in metrics.items()}
            for name, metrics in values.items()}


def join(results: Iterable[Scores], reference: Sequence[str] = (), printed: Sequence[Mapping] = (),
         metrics: Sequence[str] = METRICS) -> Table:
    """Joins runs and printed scores.

    Args:
        results: Scores as `read_scores` gives them.
        reference: Names of runs; each run is compared with the first of them that has its scale.
        printed: What `printed_rows` gave; a run is compared with the row of its scale, and of each source, whose method
            is found in the run's name (`EDSR_UDL_x4` → `UDL`), metric by metric.
        metrics: What the cells hold.

    Raises:
        ScoresError: No results, two of the same name and scale, a reference that is not among them, or a metric that
            nobody has.
    """
    results = sorted(results, key=lambda scores: scores.scale)
    if not results:
        raise ScoresError('There are no results to join.')
    names = [(scores.name, scores.scale) for scores in results]
    for name, scale in names:
        if names.count((name, scale)) > 1:
            raise ScoresError(f'Two results are called {name} ×{scale}. Test one of them under another name.')
    for name in reference:
        if name not in {run for run, _ in names}:
            raise ScoresError(f'The reference {name} is not among the results: {", ".join(run for run, _ in names)}.')

    known = dict.fromkeys(m for values in (*map(_means, results), *(row['values'] for row in printed))
                          for of_set in values.values() for m in of_set)
    if unknown := [metric for metric in metrics if metric not in known and metric not in METRICS]:
        raise ScoresError(f'No result has the metric {unknown[0]!r}{did_you_mean(unknown[0], known)}')

    seen = list(dict.fromkeys(name for scores in results for name in _means(scores)))
    datasets = [name for name in DATASETS if name in seen] + [name for name in seen if name not in DATASETS]
    rows: list[Row] = []
    notes: list[str] = []
    for scale in dict.fromkeys(scores.scale for scores in results):
        runs = [scores for scores in results if scores.scale == scale]
        papers = [row for row in printed if row['scale'] == scale and any(  # else it would be a row of dashes
            row['values'].get(name, {}).get(metric) is not None for name in datasets for metric in metrics)]
        bases = [scores for name in reference for scores in runs if scores.name == name]
        rows += [Row(scale, _printed_label(row, printed), 'paper', row['values']) for row in papers]
        for scores in runs:
            means = _means(scores)
            rows.append(Row(scale, scores.name, 'run', means))
            if bases and bases[0] is not scores:
                rows.append(Row(scale, f'− {bases[0].name}', 'difference', _difference(means, _means(bases[0]))))
            rows += [Row(scale, f'− {_printed_label(row, printed)}', 'difference', _difference(means, row['values']))
                     for row in _partners(scores.name, papers)]
        notes += [f'×{scale}: {note}' for note in protocol_notes(runs, metrics)]
    return Table(tuple(datasets), {m: metric_facts(results, m) for m in metrics}, tuple(rows), tuple(notes))


def ranks(table: Table, scale: int, dataset: str, metric: str) -> dict[str, int]:
    """The best (1) and second-best (2) runs of a column, by the value as it is printed: what looks equal ranks equal.

    Printed scores take no part, and a lone run has nobody to win against.
    """
    return places({row.label: value for row in table.rows if row.kind == 'run' and row.scale == scale
                   and (value := row.values.get(dataset, {}).get(metric)) is not None}, table.facts[metric])


def places(values: Mapping[Key, float], facts: MetricFacts, digits: int | None = None) -> dict[Key, int]:
    """Who is best (1) and second-best (2) by the value as it is printed.

    Nobody, where there is nobody to win against, or the metric has no direction.

    Example:
        >>> places({'L1': 30.001, 'UDL': 30.114, 'ESU': 30.109}, MetricFacts(True, decimals=2))
        {'L1': 2, 'UDL': 1, 'ESU': 1}
    """
    if len(values) < 2 or not facts.sign:
        return {}
    digits = facts.decimals if digits is None else digits
    order = sorted({round(value, digits) for value in values.values()}, reverse=facts.sign > 0)
    found = {key: order.index(round(value, digits)) + 1 for key, value in values.items()}
    return {key: place for key, place in found.items() if place <= 2}


def render(table: Table, fmt: str = 'text') -> str:
    """Writes the table out.

    Args:
        table: What `join` gave.
        fmt: `text` for the terminal, `md`, `latex` (booktabs; best bold, second-best underlined in both), or `csv`
            (full precision, a column per data set and metric).
    """
    if fmt == 'csv':
        return _csv(table)
    marks = MARKS.get(fmt, ('{}', '{}'))

    def cell(row: Row, dataset: str) -> str:
        values = row.values.get(dataset, {})
        if all(values.get(metric) is None for metric in table.metrics):
            return '–'
        parts = []
        for metric, facts in table.facts.items():
            value = values.get(metric)
            if row.kind == 'difference' and value is not None:
                parts.append(f'{value:+.{facts.decimals}f}'.replace('-', '−'))
                continue
            place = ranks(table, row.scale, dataset, metric).get(row.label) if row.kind == 'run' else None
            text = printed_text(value, facts) if row.kind == 'paper' else facts.text(value)
            parts.append((marks[place - 1] if place else '{}').format(text))
        return '/'.join(parts)

    def label(row: Row) -> str:
        return f'  {row.label}' if row.kind == 'difference' and fmt == 'text' else row.label

    titles = '/'.join(facts.title(metric) for metric, facts in table.facts.items())
    header = ['method', 'scale', *(f'{name} {titles}' for name in table.datasets)]
    rows = [[label(row), f'×{row.scale}', *(cell(row, name) for name in table.datasets)] for row in table.rows]
    if fmt == 'latex':
        return _latex(table, header, rows)
    body = markdown_table(header, rows) if fmt == 'md' else text_table(header, rows)
    return '\n\n'.join([body, '\n'.join(table.notes)] if fmt == 'text' else [body, *table.notes]) + '\n'


def _csv(table: Table) -> str:
    columns = [(name, metric) for name in table.datasets for metric in table.metrics]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['scale', 'method', 'kind', *(f'{name}_{metric}' for name, metric in columns)])
    for row in table.rows:
        cells = [row.values.get(name, {}).get(metric) for name, metric in columns]
        writer.writerow([row.scale, row.label, row.kind, *('' if value is None else repr(value) for value in cells)])
    return text.getvalue()


def latex_text(text: str) -> str:
    """Text as LaTeX prints it: its special characters escaped, the signs of this module as mathematics.

    Example:
        >>> print(latex_text('tiny_L1 ×4: 5 % ±0.1'))
        tiny\\_L1 $\\times$4: 5 \\% $\\pm$0.1
    """
    return text.translate(_TEX)


def _latex(table: Table, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    columns = 'l' + 'c' * (len(header) - 1)
    lines = [f'\\begin{{tabular}}{{{columns}}}', '\\toprule', ' & '.join(map(latex_text, header)) + ' \\\\']
    previous = None
    for row, source in zip(rows, table.rows, strict=True):
        if source.scale != previous:
            lines.append('\\midrule')
        previous = source.scale
        cells = (cell.replace('–', '--').replace('−', '$-$') for cell in row[2:])  # numbers, marks and LaTeX of ours
        lines.append(' & '.join([*map(latex_text, row[:2]), *cells]) + ' \\\\')
    return '\n'.join([*lines, '\\bottomrule', '\\end{tabular}', *(f'% {note}' for note in table.notes)]) + '\n'
