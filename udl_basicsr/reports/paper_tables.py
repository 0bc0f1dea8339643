"""The papers' tables: our comparisons beside the printed figures, in the papers' layouts.

A table's layout and its printed figures are data (paper_scores.json, whose head describes both); ours come from records
of scripts/compare_losses.py. Rows are scale × network × loss, columns are data sets, ours and printed. A network of
ours that is none of the paper's has rows of its own; where the paper has a single network, ours stands beside it. A
network without any figure at a scale takes a single row.
"""
from __future__ import annotations

import csv
import difflib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from udl_basicsr.reports.benchmark import DATASETS, MARKS, dataset_name, latex_text, places, printed_values, row_metrics
from udl_basicsr.reports.comparison import means
from udl_basicsr.reports.scores import ScoresError, decimals, format_value, markdown_table, metric_title

FORMATS = {'md': 'md', 'csv': 'csv', 'latex': 'tex'}  # name → suffix of a file
CSV_COLUMNS = ('table', 'degradation', 'scale', 'network', 'comparison', 'method', 'dataset', 'metric', 'kind', 'value',
               'sd', 'seeds', 'note')


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
    ours: Mapping[tuple[str, str], Ours]
    printed: Mapping[tuple[str, str], Printed]

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
    metrics: tuple[str, ...]
    lines: tuple[Line, ...]
    caption: tuple[str, ...]  # what ours is and what the printed is
    remarks: tuple[str, ...]
    notes: Mapping[str, str]  # mark → footnote


@dataclass
class _Group:
    """The records of one network in one comparison: what may be compared with one another."""
    comparison: str
    network: str
    records: list[Mapping]
    methods: dict[str, str] = field(default_factory=dict)  # the table's method → our id


# ---------------------------------------------------------------- joining

def make_table(name: str, records: Sequence[Mapping], paper: Mapping) -> PaperTable:
    """Joins our records with the printed figures of one table.

    Args:
        name: A key of `paper['tables']`, e.g. `udl-5`.
        records: As `comparison.read_records` gives them; several comparisons may be joined, each has rows of its own.
        paper: What `benchmark.load_paper` gave.

    Raises:
        ScoresError: No such table, or two records of the same comparison, network, method, scale, degradation and seed.
    """
    if name not in paper['tables']:
        near = difflib.get_close_matches(name, paper['tables'], 1)
        raise ScoresError(f'There is no table {name}' + (f'; did you mean {near[0]}?' if near else '.')
                          + f' There are: {", ".join(paper["tables"])}.')
    _refuse_twins(records)
    layout = paper['tables'][name]
    rows = [row for row in paper['rows'] if row.get('table') == name]
    methods = _with_new(layout['methods'], (row['method'] for row in rows))
    networks = _with_new(layout['networks'], (row['network'] for row in rows))
    footnotes: dict[str, str] = {}
    misprints = [misprint for misprint in paper['misprints'] if misprint['table'] == name]
    printed = _printed_figures(layout, rows, paper, misprints, footnotes)
    metrics = list(dict.fromkeys([*layout['metrics'], *(metric for row in rows for metric in row_metrics(row))]))
    groups = _groups(records, layout['degradation'], methods, metrics)

    scales = sorted({*layout['scales'], *(row['scale'] for row in rows),
                     *(record['scale'] for group in groups for record in group.records)})
    lines = tuple(line for scale in scales for line in _lines(scale, groups, networks, methods, metrics, printed))
    seen = sorted({dataset for line in lines for dataset, _ in [*line.printed, *line.ours]},
                  key=lambda dataset: (DATASETS.index(dataset) if dataset in DATASETS else len(DATASETS), dataset))
    printed_sets = {dataset for line in lines for dataset, _ in line.printed}
    datasets = layout['datasets'] + [dataset for dataset in seen if dataset not in layout['datasets']
                                     and (dataset in printed_sets or not layout['datasets'])]
    measured = {metric for line in lines for _, metric in [*line.ours, *line.printed]}
    metrics = [metric for metric in metrics if metric in measured] or metrics
    source = paper['sources'][layout['source']]
    unplaced = [_misprint(misprint) for misprint in misprints if not misprint['method']]
    return PaperTable(
        name, f'{layout["source"]}, {layout["number"]}. {layout["title"]}: {"/".join(map(_metric_title, metrics))}',
        layout['degradation'], tuple(datasets), tuple(metrics), lines,
        caption=(*_about_ours(groups), _about_printed(name, layout, rows, networks, groups, source)),
        remarks=(f'Layout. {layout["layout"]}', *unplaced, _about_marks(lines)),
        notes=footnotes)


def _metric_title(metric: str) -> str:
    return metric_title(metric).replace('_', ' ')


def _with_new(known: Mapping[str, list[str]], more: Iterable[str]) -> dict[str, list[str]]:
    return {**known, **{name: [] for name in more if name not in known}}


def _refuse_twins(records: Iterable[Mapping]) -> None:
    keys = 'comparison', 'network_title', 'method', 'scale', 'degradation', 'seed'
    for run, count in Counter(tuple(record[key] for key in keys) for record in records).items():
        if count > 1:
            raise ScoresError(f'{count} records of one run: {", ".join(map(str, run))}. Give each folder of records '
                              f'once, and different comparisons different names.')


def _misprint(misprint: Mapping) -> str:
    metric = misprint['metric']
    where = ' '.join(filter(None, [misprint['network'], misprint['method'], f'×{misprint["scale"]}']))
    return (f'Misprint: {_metric_title(metric)} {format_value(metric, misprint["printed"])} for {where} on '
            f'{misprint["dataset"]}. {misprint["note"]}')


def _printed_figures(layout: Mapping, rows: Iterable[Mapping], paper: Mapping, misprints: Iterable[Mapping],
                     footnotes: dict[str, str]) -> dict[tuple, dict[tuple[str, str], Printed]]:
    """(network, method, scale) → (data set, metric) → figure. Adds what they need to the footnotes."""
    figures: dict[tuple, dict[tuple[str, str], Printed]] = {}

    def note(text: str) -> str:
        mark = next((mark for mark, known in footnotes.items() if known == text), None)
        if mark is None:
            mark = chr(ord('a') + len(footnotes))
            footnotes[mark] = text
        return mark

    for row in rows:
        cells = figures.setdefault((row['network'], row['method'], row['scale']), {})
        cells.update({(dataset, metric): Printed(value) for dataset, values in printed_values(row).items()
                      for metric, value in values.items() if value is not None})
    for row in paper['rows']:
        if (row['source'] in layout.get('also', []) and row['degradation'] == layout['degradation']
                and row['network'] in layout['networks'] and row['method'] in layout['methods']):
            source = paper['sources'][row['source']]
            cells = figures.setdefault((row['network'], row['method'], row['scale']), {})
            for dataset, values in printed_values(row).items():
                for metric, value in values.items():
                    if value is not None and (dataset, metric) not in cells:
                        cells[dataset, metric] = Printed(
                            value, note(f'Not of this table, but printed in {source["title"]}, {source["url"]}'))
    for misprint in misprints:
        if misprint['method']:
            cells = figures.setdefault(tuple(misprint[key] for key in ('network', 'method', 'scale')), {})
            cells[dataset_name(misprint['dataset']), misprint['metric']] = Printed(misprint['printed'],
                                                                                   note(_misprint(misprint)))
    return figures


def _groups(records: Iterable[Mapping], degradation: str, methods: Mapping[str, list[str]],
            metrics: Iterable[str]) -> list[_Group]:
    """The networks of ours that have a method and a metric of the table, each with its records of those methods."""
    found: dict[tuple[str, str], _Group] = {}
    for record in records:
        measured = {metric for dataset in record['datasets'].values() for metric in dataset['mean']}
        if record['degradation'] == degradation and measured & {*metrics}:
            key = record['comparison'], record['network_title']
            found.setdefault(key, _Group(*key, [])).records.append(record)
    for group in found.values():
        here = {record['method'] for record in group.records}
        group.methods = {label: next(name for name in [label, *names] if name in here)
                         for label, names in methods.items() if here & {label, *names}}
        group.records = [record for record in group.records if record['method'] in group.methods.values()]
    return [group for group in found.values() if group.records]


def _lines(scale: int, groups: Sequence[_Group], networks: Mapping[str, list[str]], methods: Iterable[str],
           metrics: Iterable[str], printed: Mapping[tuple, Mapping]) -> Iterable[Line]:
    """The rows of one scale: the paper's networks with our namesakes, then our other networks."""
    here = [group for group in groups if any(record['scale'] == scale for record in group.records)]
    blocks: list[tuple[str | None, _Group | None]] = []
    for network, names in networks.items():
        same = {title.casefold() for title in [network, *names]}
        namesakes = [group for group in here if group.network.casefold() in same]
        blocks += [(network, group) for group in namesakes] or [(network, None)]
    others = [group for group in here if group not in [known for _, known in blocks]]
    if len(blocks) == 1 and blocks[0][1] is None and others:  # a single network of the paper's: ours stand beside it
        blocks = [(blocks[0][0], group) for group in others]
    else:
        blocks += [(None, group) for group in others]
    titles = Counter(group.network for _, group in blocks if group)
    for network, group in blocks:
        label = network if group is None else group.network
        if group and titles[group.network] > 1:
            label = f'{label} ({group.comparison})'
        lines = [Line(scale, label, group.comparison if group else '', method,
                      _our_figures(group, method, metrics, scale) if group else {},
                      printed.get((network, method, scale), {})) for method in methods]
        if not any(line.ours or line.printed for line in lines):
            lines = [Line(scale, label, '', ', '.join(methods), {}, {})]
        yield from lines


def _our_figures(group: _Group, method: str, metrics: Iterable[str], scale: int) -> dict[tuple[str, str], Ours]:
    name = group.methods.get(method)
    datasets = dict.fromkeys(dataset for record in group.records for dataset in record['datasets'])
    found = {(dataset, metric): means(group.records, name, dataset, metric, scale)
             for dataset in datasets for metric in metrics if name}
    return {(dataset_name(dataset), metric): Ours(figure['mean'], figure['sd'] if figure['seeds'] > 1 else None,
                                                  figure['seeds'])
            for (dataset, metric), figure in found.items() if figure}


# ---------------------------------------------------------------- the caption

def _about_ours(groups: Sequence[_Group]) -> list[str]:
    """A sentence on every network of ours: comparison, size, budget, seeds; then how all were measured."""
    if not groups:
        return ['Ours: no run with figures for this table yet.']
    texts = []
    for group in groups:
        sizes = sorted({f'{record["parameters"]:,}'.replace(',', ' ') for record in group.records})
        iterations = _usual(group, lambda record: str(sum(stage['iterations'] for stage in record['stages'])))
        texts.append(f'Ours: {group.network}, {" and ".join(sizes)} parameters, '
                     f'comparison {group.comparison}; iterations {iterations}; '
                     f'seeds {_usual(group, lambda record: str(record["seed"]))}. '
                     f'Means over the seeds ± their standard deviation.')
    records = [record for group in groups for record in group.records]
    for scale in sorted({record['scale'] for record in records}):
        protocols = dict.fromkeys(record['protocol'] for record in records if record['scale'] == scale)
        texts.append(f'Ours at ×{scale}: {"; or: ".join(protocols)}.' + (
            ' These are different protocols, whose figures cannot be compared.' if len(protocols) > 1 else ''))
    return texts


def _usual(group: _Group, value: Callable[[Mapping], str]) -> str:
    """What most methods of a group have, and in brackets those that have something else."""
    values: dict[str, set[str]] = {}
    for label, name in group.methods.items():
        values[label] = {value(record) for record in group.records if record['method'] == name}
    texts = {label: ', '.join(sorted(found, key=_natural)) for label, found in values.items()}
    common = Counter(texts.values()).most_common(1)[0][0]
    others = [f'{label}: {text}' for label, text in texts.items() if text != common]
    return common + (f' ({"; ".join(others)})' if others else '')


def _natural(text: str) -> list:
    return [(int(part), '') if part.isdigit() else (0, part) for part in re.split(r'(\d+)', text) if part]


def _about_printed(name: str, layout: Mapping, rows: Sequence[Mapping], networks: Mapping, groups: Sequence[_Group],
                   source: Mapping) -> str:
    if not rows:
        return (f'Printed: not transcribed. Add the rows of {source["title"]}, {layout["number"]}, to '
                f'reports/paper_scores.json with table: {name}, and where they were read to read_from of the table.')
    same = {title.casefold() for network, names in networks.items() for title in [network, *names]}
    strange = [group.network for group in groups if group.network.casefold() not in same]
    return (f'Printed: {source["title"]}, {layout["number"]}, {source["url"]}; read from {layout["read_from"]}. '
            + (f'{" and ".join(dict.fromkeys(strange))} is no network of the paper; ' if strange else '')
            + 'ours and theirs differ in training data and budget: compare the differences between the losses, not the '
              'figures.')


def _about_marks(lines: Iterable[Line]) -> str:
    seeds = any(figure.sd is not None for line in lines for figure in line.ours.values())
    return ('Best bold, second-best underlined, as rounded here, ours and printed apart, within a network and scale'
            + ('; ± is the spread of each loss by itself, not of its paired difference from another' if seeds else '')
            + '. –: not trained here, or not known from the paper.')


# ---------------------------------------------------------------- formats

def render(table: PaperTable, fmt: str = 'md') -> str:
    """Writes the table out.

    Args:
        table: What `make_table` gave.
        fmt: `md`; `latex` (booktabs, a whole table environment); or `csv` (a line per figure, in full precision).
    """
    if fmt == 'csv':
        return render_csv([table])
    plain = _plain(fmt)
    pairs = {dataset for line in table.lines for dataset, _ in line.printed}
    ranked = {kind: {(dataset, metric): _places(table, kind, dataset, metric)
                     for dataset in table.datasets for metric in table.metrics} for kind in ('ours', 'printed')}

    def cell(number: int, kind: str, dataset: str) -> str:
        return _cell([getattr(table.lines[number], kind).get((dataset, metric)) for metric in table.metrics],
                     [ranked[kind][dataset, metric].get(number) for metric in table.metrics], table.metrics, fmt)

    def kinds(dataset: str) -> Sequence[str]:
        return ('ours', 'printed') if dataset in pairs else ('ours',)

    header = ['network', 'scale', 'loss', 'seeds', *(f'{dataset}, {kind}' for dataset in table.datasets
                                                    for kind in kinds(dataset)), *([] if pairs else ['printed'])]
    rows = [[plain(line.network or '–'), plain(f'×{line.scale}'), plain(line.method), plain(str(line.seeds or '–')),
             *(cell(number, kind, dataset) for dataset in table.datasets for kind in kinds(dataset)),
             *([] if pairs else [plain('–')])] for number, line in enumerate(table.lines)]
    if fmt == 'latex':
        return _latex(table, header, rows)
    below = *table.caption, *table.remarks, *(f'{_raised(mark, fmt)} {text}' for mark, text in table.notes.items())
    return '\n\n'.join([f'**{table.title}**', markdown_table(header, rows), *below]) + '\n'


def _places(table: PaperTable, kind: str, dataset: str, metric: str) -> dict[int, int]:
    """Line → place within its network, comparison and scale. Misprints and figures of other sources take no part."""
    found: dict[int, int] = {}
    for block in dict.fromkeys((line.scale, line.network) for line in table.lines):
        values = {}
        for number, line in enumerate(table.lines):
            figure = getattr(line, kind).get((dataset, metric))
            if (line.scale, line.network) == block and figure is not None and not getattr(figure, 'mark', ''):
                values[number] = figure.mean if kind == 'ours' else figure.value
        found |= places(values, metric)
    return found


def _cell(figures: Sequence[Ours | Printed | None], ranks: Sequence[int | None], metrics: Sequence[str],
          fmt: str) -> str:
    plain = _plain(fmt)
    if not any(figures):
        return plain('–')
    parts = []
    for figure, place, metric in zip(figures, ranks, metrics, strict=True):
        value = figure.mean if isinstance(figure, Ours) else figure.value if figure else None
        text = plain(format_value(metric, value))
        text = MARKS[fmt][place - 1].format(text) if place else text
        if isinstance(figure, Ours) and figure.sd is not None:
            text += plain(f' ± {figure.sd:.{decimals(metric)}f}')
        parts.append(text)
    marks = [figure.mark if isinstance(figure, Printed) else '' for figure in figures]
    if len({*marks}) > 1:
        parts = [part + _raised(mark, fmt) for part, mark in zip(parts, marks, strict=True)]
    separator = ' / ' if any(' ' in part for part in parts) else '/'  # room for ±
    return separator.join(parts) + (_raised(marks[0], fmt) if len({*marks}) == 1 else '')


def _plain(fmt: str) -> Callable[[str], str]:
    return latex_text if fmt == 'latex' else str


def _raised(mark: str, fmt: str) -> str:
    if not mark:
        return ''
    return f'\\textsuperscript{{{mark}}}' if fmt == 'latex' else f'<sup>{mark}</sup>'


def _latex(table: PaperTable, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ['% needs the packages booktabs and graphicx', '\\begin{table}', '\\centering',
             f'\\caption{{{latex_text(" ".join([f"{table.title}.", *table.caption]))}}}',
             f'\\label{{tab:{table.name}}}', '\\resizebox{\\textwidth}{!}{%',
             f'\\begin{{tabular}}{{{"lclc" + "c" * (len(header) - 4)}}}', '\\toprule',
             ' & '.join(map(latex_text, header)) + ' \\\\']
    previous = None
    for row, line in zip(rows, table.lines, strict=True):
        if (line.scale, line.network) != previous:
            lines.append('\\midrule')
        previous = line.scale, line.network
        lines.append(' & '.join(row) + ' \\\\')
    lines += ['\\bottomrule', '\\end{tabular}}']
    below = [*map(latex_text, table.remarks),
             *(f'{_raised(mark, "latex")} {latex_text(text)}' for mark, text in table.notes.items())]
    lines += ['\\par\\footnotesize', *(f'{text}\\par' for text in below)]
    return '\n'.join([*lines, '\\end{table}']) + '\n'


def render_csv(tables: Iterable[PaperTable]) -> str:
    """All figures of some tables, a line each, in full precision; the marks of the notes are spelt out."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(CSV_COLUMNS)
    for table in tables:
        for line in table.lines:
            row = table.name, table.degradation, line.scale, line.network, line.comparison, line.method
            for key, ours in line.ours.items():
                sd = '' if ours.sd is None else repr(ours.sd)
                writer.writerow([*row, *key, 'ours', repr(ours.mean), sd, ours.seeds, ''])
            for key, printed in line.printed.items():
                writer.writerow([*row, *key, 'printed', repr(printed.value), '', '', table.notes.get(printed.mark, '')])
    return text.getvalue()
