"""The papers' tables: our comparisons beside the printed figures, in the papers' layouts.

A table's layout and its printed figures are data (paper_scores.json, whose head describes both); ours come from records
of scripts/compare_losses.py. Rows are scale × network × loss, columns are data sets, ours and printed, and what the
networks cost where the paper says it. A row that the paper does not have is there only if ours has figures for it; what
the paper only cites stands without ours. A network of ours that is none of the paper's has rows of its own; where the
paper has a single network, ours stands beside it.

    print(paper_table('udl-5', read_records('docs/results/udl-5')))
"""
from __future__ import annotations

import csv
import difflib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from udl_basicsr.experiments.comparison import means
from udl_basicsr.experiments.printed import (
    DATASETS,
    HR_SIZE,
    dataset_name,
    format_amount,
    load_paper,
    parse_amount,
    printed_text,
    printed_values,
    row_metrics,
)
from udl_basicsr.utils.metric_facts import MetricFacts, facts_by_name
from udl_basicsr.utils.scores import ScoresError, metric_facts
from udl_basicsr.utils.tables import markdown_table, text_table

from .score_table import MARKS, latex_text, places

FORMATS = {'md': 'md', 'text': 'txt', 'csv': 'csv', 'latex': 'tex'}  # name → suffix of a file
CSV_COLUMNS = ('table', 'degradation', 'scale', 'network', 'comparison', 'method', 'label', 'dataset', 'metric', 'kind',
               'value', 'sd', 'seeds', 'note')
CITED = 'cited'


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
class _Group:
    """The records of one network in one comparison: what may be compared with one another."""
    comparison: str
    network: str
    records: list[Mapping]
    methods: dict[str, str] = field(default_factory=dict)  # the table's method → our id


# ---------------------------------------------------------------- joining

def paper_table(name: str, ours: Sequence[Mapping] = (), fmt: str = 'text', notes: bool = True,
                paper: Mapping | None = None) -> str:
    """A paper's table, ours beside printed, as it stands now: cells that are not trained yet are dashes.

    Args:
        name: Id of the table, e.g. `udl-5`; `scripts/paper_tables.py --list` lists them.
        ours: Records of our runs, as `comparison.read_records` gives them or `write_record` takes them, of any number
            of comparisons; none is fine. A record is placed by its `network_title`, `method` or `label`, `scale` and
            `degradation`; what the table has no place for is left out.
        fmt: `text` for the terminal, `md`, `latex` or `csv`.
        notes: See :func:`render`; without them a table that grows is short.
        paper: What `benchmark.load_paper` gave; by default the packaged figures.

    Raises:
        ScoresError: See :func:`make_table`.
    """
    return render(make_table(name, ours, paper or load_paper()), fmt, notes)


def make_table(name: str, records: Sequence[Mapping], paper: Mapping) -> PaperTable:
    """Joins our records with the printed figures of one table.

    Args:
        name: A key of `paper['tables']`, e.g. `udl-5`.
        records: As `comparison.read_records` gives them; several comparisons may be joined, each has rows of its own.
            Their `costs` may hold `macs`, `runtime` and `training`, the latter two in milliseconds.
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
    printed = _printed_figures(rows, misprints, footnotes)
    metrics = list(dict.fromkeys([*layout['metrics'], *(metric for row in rows for metric in row_metrics(row))]))
    groups = _groups(records, layout, networks, methods, metrics, {cell[:2] for cell in printed})

    scales = sorted({*layout['scales'], *(row['scale'] for row in rows),
                     *(record['scale'] for group in groups for record in group.records)})
    printed_costs = {_cell_of(row): row.get('costs', {}) for row in rows}
    lines = tuple(line for scale in scales for line in _lines(
        scale, groups, networks, methods, metrics, printed, layout, printed_costs))
    seen = sorted({dataset for line in lines for dataset, _ in [*line.printed, *line.ours]},
                  key=lambda dataset: (DATASETS.index(dataset) if dataset in DATASETS else len(DATASETS), dataset))
    printed_sets = {*layout['datasets'], *(dataset for line in lines for dataset, _ in line.printed)}
    our_sets = {dataset for line in lines for dataset, _ in line.ours}
    # Ours of other data sets are another table's, unless ours has nothing else: a trial, on photographs at hand.
    shown = printed_sets if printed_sets & our_sets else printed_sets | our_sets
    datasets = layout['datasets'] + [dataset for dataset in seen if dataset not in layout['datasets']
                                     and dataset in shown]
    measured = {metric for line in lines for _, metric in [*line.ours, *line.printed]}
    metrics = [metric for metric in metrics if metric in measured] or metrics
    facts = {metric: metric_facts([r for group in groups for r in group.records], metric) for metric in metrics}
    source = paper['sources'][layout['source']]
    suspects = [f'Doubtful, but as printed: {suspect["where"]}, {", ".join(suspect["printed"])}. {suspect["note"]}'
                for suspect in paper['suspects'] if suspect['table'] == name]
    return PaperTable(
        name, f'{layout["source"]}, {layout["number"]}. {layout["title"]}: '
              + '/'.join(_title(facts[metric], metric) for metric in metrics),
        layout['degradation'], tuple(datasets), facts, layout.get('costs', {}), lines,
        caption=(*_about_ours(groups), *_about_costs(groups, layout),
                 _about_printed(name, layout, rows, networks, groups, source)),
        remarks=(f'Layout. {layout["layout"]}', *suspects),
        notes=footnotes)


def _cell_of(entry: Mapping) -> tuple:
    return entry['network'], entry['method'], entry['scale']


def _title(facts: MetricFacts, metric: str) -> str:
    return facts.title(metric).replace('_', ' ')


def _with_new(known: Mapping[str, list[str]], more: Iterable[str]) -> dict[str, list[str]]:
    return {**known, **{name: [] for name in more if name not in known}}


def _refuse_twins(records: Iterable[Mapping]) -> None:
    keys = 'comparison', 'network_title', 'method', 'scale', 'degradation', 'seed'
    for run, count in Counter(tuple(record[key] for key in keys) for record in records).items():
        if count > 1:
            raise ScoresError(f'{count} records of one run: {", ".join(map(str, run))}. Give each folder of records '
                              f'once, and different comparisons different names.')


def _misprint(misprint: Mapping) -> str:
    facts = facts_by_name(misprint['metric'])
    return (f'Misprint: {_title(facts, misprint["metric"])} {printed_text(misprint["printed"], facts)} for '
            f'{misprint["network"]} '
            f'{misprint["method"]} ×{misprint["scale"]} on {misprint["dataset"]}. {misprint["note"]}')


def _printed_figures(rows: Iterable[Mapping], misprints: Iterable[Mapping],
                     footnotes: dict[str, str]) -> dict[tuple, dict[tuple[str, str], Printed]]:
    """(network, method, scale) → (data set, metric) → figure. Adds the misprints to the footnotes."""
    figures: dict[tuple, dict[tuple[str, str], Printed]] = {}
    for row in rows:
        figures.setdefault(_cell_of(row), {}).update({
            (dataset, metric): Printed(value) for dataset, values in printed_values(row).items()
            for metric, value in values.items() if value is not None})
    for misprint in misprints:
        mark = chr(ord('a') + len(footnotes))
        footnotes[mark] = _misprint(misprint)
        cell = dataset_name(misprint['dataset']), misprint['metric']
        figures.setdefault(_cell_of(misprint), {})[cell] = Printed(misprint['printed'], mark)
    return figures


def _label(layout: Mapping, method: str, network: str) -> str:
    return layout.get('labels', {}).get(method, method).replace('{network}', network)


def _plainly(name: str) -> str:
    """`L1 + TLW`, `L1+TLW` and `L1_TLW` are one name."""
    return re.sub(r'[\s_+-]+', '', name.casefold())


def _groups(records: Iterable[Mapping], layout: Mapping, networks: Mapping[str, list[str]],
            methods: Mapping[str, list[str]], metrics: Iterable[str], pairs: set[tuple[str, str]]) -> list[_Group]:
    """The networks of ours that have a method and a metric of the table, each with its records of those methods."""
    found: dict[tuple[str, str], _Group] = {}
    for record in records:
        measured = {metric for dataset in record['datasets'].values() for metric in dataset['mean']}
        if record['degradation'] == layout['degradation'] and measured & {*metrics}:
            key = record['comparison'], record['network_title']
            found.setdefault(key, _Group(*key, [])).records.append(record)
    for group in found.values():
        group.methods = _match(group, layout, networks, methods, pairs)
        group.records = [record for record in group.records if record['method'] in group.methods.values()]
    return [group for group in found.values() if group.records]


def _match(group: _Group, layout: Mapping, networks: Mapping[str, list[str]], methods: Mapping[str, list[str]],
           pairs: set[tuple[str, str]]) -> dict[str, str]:
    """The table's methods and our ids of them, each id once.

    What the paper prints for this network comes first: its labels and our ids may stand for several losses, since
    `VDSR + GV` is MSE + GV, and `EDSR + GV` L1 + GV. Ids come before labels, and the names of this project first.
    """
    ids, labels = ({_plainly(record[key]): record['method'] for record in group.records} for key in ('method', 'label'))
    same = [network for network, names in networks.items() if _is_one_of(group, network, names)]
    ours = {method: [method, *names] for method, names in methods.items() if method not in layout.get('cited', ())}
    printed = {method: [_label(layout, method, network) for network in same or [group.network]] for method in ours}
    expected = [method for method in ours if any((network, method) in pairs for network in same)]
    found: dict[str, str] = {}
    for chosen, known, names in ((expected, ids, ours), (expected, labels, ours), (expected, labels, printed),
                                 (ours, ids, ours), (ours, labels, ours), ([] if same else ours, labels, printed)):
        for method in chosen:
            here = (known.get(_plainly(name)) for name in names[method])
            if method not in found and (match := next((m for m in here if m and m not in found.values()), None)):
                found[method] = match
    return {method: found[method] for method in methods if method in found}


def _is_one_of(group: _Group, network: str, names: Iterable[str]) -> bool:
    return group.network.casefold() in {title.casefold() for title in [network, *names]}


def _lines(scale: int, groups: Sequence[_Group], networks: Mapping[str, list[str]], methods: Iterable[str],
           metrics: Iterable[str], printed: Mapping[tuple, Mapping], layout: Mapping,
           printed_costs: Mapping[tuple, Mapping]) -> Iterable[Line]:
    """The rows of one scale: the paper's networks with our namesakes, then our other networks."""
    here = [group for group in groups if any(record['scale'] == scale for record in group.records)]
    cited = layout.get('cited', ())
    blocks: list[tuple[str | None, _Group | None]] = []
    for network, names in networks.items():
        namesakes = [group for group in here if network not in cited and _is_one_of(group, network, names)]
        blocks += [(network, group) for group in namesakes] or [(network, None)]
    others = [group for group in here if group not in [known for _, known in blocks]]
    if len(blocks) == 1 and blocks[0][1] is None and others:  # a single network of the paper's: ours stand beside it
        blocks = [(blocks[0][0], group) for group in others]
    else:
        blocks += [(None, group) for group in others]
    titles = Counter(group.network for _, group in blocks if group)
    for network, group in blocks:
        title = network if group is None else group.network
        if group and titles[group.network] > 1:
            title = f'{title} ({group.comparison})'
        for method in methods:
            cell = network, method, scale
            ours = _our_figures(group, method, metrics, scale) if group else {}
            if ours or cell in printed or (network and not printed):
                yield Line(scale, title, group.comparison if group else '', method,
                           _label(layout, method, network or group.network), network in cited or method in cited, ours,
                           printed.get(cell, {}), _our_costs(group, method, scale, layout) if ours else {},
                           printed_costs.get(cell, {}))


def _our_figures(group: _Group, method: str, metrics: Iterable[str], scale: int) -> dict[tuple[str, str], Ours]:
    name = group.methods.get(method)
    datasets = dict.fromkeys(dataset for record in group.records for dataset in record['datasets'])
    found = {(dataset, metric): means(group.records, name, dataset, metric, scale)
             for dataset in datasets for metric in metrics if name}
    return {(dataset_name(dataset), metric): Ours(figure['mean'], figure['sd'] if figure['seeds'] > 1 else None,
                                                  figure['seeds'])
            for (dataset, metric), figure in found.items() if figure}


def _our_costs(group: _Group, method: str, scale: int, layout: Mapping) -> dict[str, float]:
    """What ours costs, of the costs that the table has, by its first record."""
    record = next(record for record in group.records
                  if record['method'] == group.methods[method] and record['scale'] == scale)
    known = {'parameters': record['parameters'], **record.get('costs', {})}
    return {cost: known[cost] for cost in layout.get('costs', {}) if cost in known}


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


def _about_costs(groups: Sequence[_Group], layout: Mapping) -> list[str]:
    """Where run times of ours were measured; those of another size than the paper's are no figures of its table."""
    if 'runtime' not in layout.get('costs', {}):
        return []
    head, (height, width) = layout['costs']['runtime'], layout.get('size', HR_SIZE)
    texts = {}
    for record in (record for group in groups for record in group.records if record.get('run_time')):
        known, (rows, columns) = record['run_time'], record['run_time']['size']
        texts[f'Ours, {head}: measured on {known["device"]}' + (
            '.' if 'runtime' in record.get('costs', {}) else
            f', {columns}×{rows} pixels alone, and not shown, since the paper has {width}×{height}.')] = None
    return [*texts]


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
                f'experiments/paper_scores.json with table: {name}, and where they were read to read_from of the '
                'table.')
    strange = [group.network for group in groups
               if not any(_is_one_of(group, network, names) for network, names in networks.items())]
    return (f'Printed: {source["title"]}, {layout["number"]}, {source["url"]}; read from {layout["read_from"]}. '
            + (f'{" and ".join(dict.fromkeys(strange))} is no network of the paper. ' if strange else '')
            + 'Compare the differences between the losses where data or budget are not those of the paper.')


def _about_marks(lines: Sequence[Line], fmt: str) -> str:
    marks = 'Best bold, second-best underlined, as rounded here, ours and printed apart, within a network and scale'
    seeds = any(figure.sd is not None for line in lines for figure in line.ours.values())
    cited = any(line.cited for line in lines)
    return ((f'{marks}. ' if fmt in MARKS else '') + '–: not trained here, or not known from the paper'
            + ('; cited: the paper cites it' if cited else '')
            + ('; ± is the spread of each loss by itself, not of its paired difference from another' if seeds else '')
            + '.')


# ---------------------------------------------------------------- formats

def render(table: PaperTable, fmt: str = 'md', notes: bool = True) -> str:
    """Writes the table out.

    Args:
        table: What `make_table` gave.
        fmt: `md`; `text` for the terminal, ours above printed; `latex` (booktabs, a whole table environment); or `csv`
            (a line per figure, in full precision).
        notes: Whether `md` and `text` say below what everything is.
    """
    if fmt == 'csv':
        return render_csv([table])
    plain = _plain(fmt)
    pairs = {dataset for line in table.lines for dataset, _ in line.printed}
    ranked = {kind: {(dataset, metric): _places(table, kind, dataset, metric)
                     for dataset in table.datasets for metric in table.metrics} for kind in ('ours', 'printed')}
    facts = [(replace(known, decimals=table.digits(metric)), known) for metric, known in table.facts.items()]

    def cell(number: int, kind: str, dataset: str) -> str:
        return _cell([getattr(table.lines[number], kind).get((dataset, metric)) for metric in table.metrics],
                     [ranked[kind][dataset, metric].get(number) for metric in table.metrics], facts, fmt)

    def cost(line: Line, kind: str, name: str) -> str:
        if kind == 'printed':
            return plain(line.printed_costs.get(name, '–'))
        return plain(format_amount(name, line.our_costs[name]) if name in line.our_costs else '–')

    def kinds(dataset: str) -> Sequence[str]:
        return ('ours', 'printed') if dataset in pairs else ('ours',)

    if fmt == 'text':
        return _text(table, cell, cost, notes)
    header = ['network', 'scale', 'loss', 'seeds',
              *(f'{head}, {kind}' for head in table.costs.values() for kind in ('ours', 'printed')),
              *(f'{dataset}, {kind}' for dataset in table.datasets for kind in kinds(dataset)),
              *([] if pairs else ['printed'])]
    rows = [[plain(line.network), plain(f'×{line.scale}'), plain(line.label),
             plain(CITED if line.cited else str(line.seeds or '–')),
             *(cost(line, kind, name) for name in table.costs for kind in ('ours', 'printed')),
             *(cell(number, kind, dataset) for dataset in table.datasets for kind in kinds(dataset)),
             *([] if pairs else [plain('–')])] for number, line in enumerate(table.lines)]
    if fmt == 'latex':
        return _latex(table, header, rows)
    return '\n\n'.join([f'**{table.title}**', markdown_table(header, rows), *_below(table, fmt, notes)]) + '\n'


def _text(table: PaperTable, cell: Callable[[int, str, str], str], cost: Callable[[Line, str, str], str],
          notes: bool) -> str:
    rows = []
    for number, line in enumerate(table.lines):
        told = {'ours': f'ours, {line.seeds} seed{"s" * (line.seeds > 1)}',
                'printed': CITED if line.cited else 'printed'}
        head = [line.network, f'×{line.scale}', line.label]
        for kind in [kind for kind in told if getattr(line, kind)] or ['printed']:
            rows.append([*head, told[kind], *(cost(line, kind, name) for name in table.costs),
                         *(cell(number, kind, dataset) for dataset in table.datasets)])
            head = [''] * 3
    header = ['network', 'scale', 'loss', '', *table.costs.values(), *table.datasets]
    below = '\n'.join(_below(table, 'text', notes))
    return '\n\n'.join([table.title, text_table(header, rows), *([below] if below else [])]) + '\n'


def _below(table: PaperTable, fmt: str, notes: bool) -> list[str]:
    marks = [f'{_raised(mark, fmt)} {text}' for mark, text in table.notes.items()]
    return [*table.caption, *table.remarks, _about_marks(table.lines, fmt), *marks] if notes else []


def _places(table: PaperTable, kind: str, dataset: str, metric: str) -> dict[int, int]:
    """Line → place within its network, comparison and scale. Misprints take no part."""
    found: dict[int, int] = {}
    for block in dict.fromkeys((line.scale, line.network) for line in table.lines):
        values = {}
        for number, line in enumerate(table.lines):
            figure = getattr(line, kind).get((dataset, metric))
            if (line.scale, line.network) == block and figure is not None and not getattr(figure, 'mark', ''):
                values[number] = figure.mean if kind == 'ours' else figure.value
        found |= places(values, table.facts[metric], table.digits(metric))
    return found


def _cell(figures: Sequence[Ours | Printed | None], ranks: Sequence[int | None],
          metrics: Iterable[tuple[MetricFacts, MetricFacts]], fmt: str) -> str:
    """The figures of a data set; ``metrics`` hold how ours and the printed ones are put."""
    plain = _plain(fmt)
    if not any(figures):
        return plain('–')
    parts = []
    for figure, place, (ours, printed) in zip(figures, ranks, metrics, strict=True):
        text = ours.text(figure.mean) if isinstance(figure, Ours) else printed_text(figure and figure.value, printed)
        text = plain(text)
        text = MARKS[fmt][place - 1].format(text) if place and fmt in MARKS else text
        if isinstance(figure, Ours) and figure.sd is not None:
            text += plain(f' ± {figure.sd:.{ours.decimals}f}')
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
    return {'latex': f'\\textsuperscript{{{mark}}}', 'text': f'^{mark}'}.get(fmt, f'<sup>{mark}</sup>')


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
    below = [*map(latex_text, [*table.remarks, _about_marks(table.lines, 'latex')]),
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
            row = table.name, table.degradation, line.scale, line.network, line.comparison, line.method, line.label
            for key, ours in line.ours.items():
                sd = '' if ours.sd is None else repr(ours.sd)
                writer.writerow([*row, *key, 'ours', repr(ours.mean), sd, ours.seeds, ''])
            for key, printed in line.printed.items():
                writer.writerow([*row, *key, 'printed', printed_text(printed.value, table.facts[key[1]]), '', '',
                                 table.notes.get(printed.mark, '')])
            for cost, value in line.our_costs.items():
                writer.writerow([*row, '', cost, 'ours', repr(value), '', '', ''])
            for cost, text_of_cost in line.printed_costs.items():
                writer.writerow([*row, '', cost, 'printed', repr(parse_amount(text_of_cost)), '', '', text_of_cost])
    return text.getvalue()
