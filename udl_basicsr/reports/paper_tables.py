"""The papers' tables: our comparisons beside the printed figures, in the papers' layouts.

A table's layout and its printed figures are data (paper_scores.json, whose head describes both); ours come from records
of udl compare. Rows are scale × network × loss, columns are data sets, ours and printed, and what the
networks cost where the paper says it. A row that the paper does not have is there only if ours has figures for it; what
the paper only cites stands without ours. A network of ours that is none of the paper's has rows of its own; where the
paper has a single network, ours stands beside it.

    print(paper_table('udl-5', read_records('docs/results/udl-5')))
"""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from udl_basicsr.experiments.printed import (
    DATASETS,
    dataset_name,
    load_paper,
    printed_text,
    printed_values,
    row_metrics,
)
from udl_basicsr.experiments.record_files import Record
from udl_basicsr.experiments.statistics import means
from udl_basicsr.utils.metric_facts import MetricFacts, facts_by_name
from udl_basicsr.utils.scores import ScoresError, metric_facts
from udl_basicsr.utils.text import nearest

from .paper_captions import about_costs, about_ours, about_printed
from .paper_formats import render
from .paper_rows import Line, Ours, PaperTable, Printed, RecordGroup, is_one_of

# ---------------------------------------------------------------- joining

def paper_table(name: str, ours: Sequence[Record] = (), fmt: str = 'text', notes: bool = True) -> str:
    """A paper's table, ours beside printed, as it stands now: cells that are not trained yet are dashes.

    Args:
        name: Id of the table, e.g. `udl-5`; `udl tables --list` lists them.
        ours: Records of our runs, as `read_records` gives them or `write_record` takes them, of any number of
            comparisons; none is fine. A record is placed by its `network_title`, `method` or `label`, `scale` and
            `degradation`; what the table has no place for is left out.
        fmt: `text` for the terminal, `md`, `latex` or `csv`.
        notes: See :func:`render`; without them a table that grows is short.

    Raises:
        ScoresError: See :func:`make_table`.
    """
    return render(make_table(name, ours, load_paper()), fmt, notes)


def make_table(name: str, records: Sequence[Record], paper: Mapping) -> PaperTable:
    """Joins our records with the printed figures of one table.

    Args:
        name: A key of `paper['tables']`, e.g. `udl-5`.
        records: As `read_records` gives them; several comparisons may be joined, each has rows of its own.
            Their `costs` may hold `macs`, `runtime` and `training`, the latter two in milliseconds.
        paper: What `load_paper` gave.

    Raises:
        ScoresError: No such table, or two records of the same comparison, network, method, scale, degradation and seed.
    """
    if name not in paper['tables']:
        near = nearest(name, paper['tables'])
        raise ScoresError(f'There is no table {name}' + (f'; did you mean {near}?' if near else '.')
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
                     *(record.scale for group in groups for record in group.records)})
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
        caption=(*about_ours(groups, metrics), *about_costs(groups, layout),
                 about_printed(name, layout, rows, networks, groups, source)),
        remarks=(f'Layout. {layout["layout"]}', *suspects),
        notes=footnotes)


def _cell_of(entry: Mapping) -> tuple:
    return entry['network'], entry['method'], entry['scale']


def _title(facts: MetricFacts, metric: str) -> str:
    return facts.title(metric).replace('_', ' ')


def _with_new(known: Mapping[str, list[str]], more: Iterable[str]) -> dict[str, list[str]]:
    return {**known, **{name: [] for name in more if name not in known}}


def _refuse_twins(records: Iterable[Record]) -> None:
    keys = 'comparison', 'network_title', 'method', 'scale', 'degradation', 'seed'
    for run, count in Counter(tuple(getattr(record, key) for key in keys) for record in records).items():
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


def _groups(records: Iterable[Record], layout: Mapping, networks: Mapping[str, list[str]],
            methods: Mapping[str, list[str]], metrics: Iterable[str], pairs: set[tuple[str, str]]) -> list[RecordGroup]:
    """The networks of ours that have a method and a metric of the table, each with its records of those methods."""
    found: dict[tuple[str, str], RecordGroup] = {}
    for record in records:
        measured = {metric for dataset in record.datasets.values() for metric in dataset.mean}
        if record.degradation == layout['degradation'] and measured & {*metrics}:
            key = record.comparison, record.network_title
            found.setdefault(key, RecordGroup(*key, [])).records.append(record)
    for group in found.values():
        group.methods = _match(group, layout, networks, methods, pairs)
        group.records = [record for record in group.records if record.method in group.methods.values()]
    return [group for group in found.values() if group.records]


def _match(group: RecordGroup, layout: Mapping, networks: Mapping[str, list[str]], methods: Mapping[str, list[str]],
           pairs: set[tuple[str, str]]) -> dict[str, str]:
    """The table's methods and our ids of them, each id once.

    What the paper prints for this network comes first: its labels and our ids may stand for several losses, since
    `VDSR + GV` is MSE + GV, and `EDSR + GV` L1 + GV. Ids come before labels, and the names of this project first.
    """
    ids = {_plainly(record.method): record.method for record in group.records}
    labels = {_plainly(record.label): record.method for record in group.records}
    same = [network for network, names in networks.items() if is_one_of(group, network, names)]
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


def _lines(scale: int, groups: Sequence[RecordGroup], networks: Mapping[str, list[str]], methods: Iterable[str],
           metrics: Iterable[str], printed: Mapping[tuple, Mapping], layout: Mapping,
           printed_costs: Mapping[tuple, Mapping]) -> Iterable[Line]:
    """The rows of one scale: the paper's networks with our namesakes, then our other networks."""
    here = [group for group in groups if any(record.scale == scale for record in group.records)]
    cited = layout.get('cited', ())
    blocks: list[tuple[str, str | None, RecordGroup | None]] = []  # how it is called, the paper's network, ours
    for network, names in networks.items():
        namesakes = [group for group in here if network not in cited and is_one_of(group, network, names)]
        blocks += [(group.network, network, group) for group in namesakes] or [(network, network, None)]
    others = [group for group in here if group not in [known for *_, known in blocks]]
    if len(blocks) == 1 and blocks[0][2] is None and others:  # a single network of the paper's: ours stand beside it
        blocks = [(group.network, blocks[0][1], group) for group in others]
    else:
        blocks += [(group.network, None, group) for group in others]
    titles = Counter(title for title, _, group in blocks if group)
    for title, network, group in blocks:
        heading = f'{title} ({group.comparison})' if group and titles[title] > 1 else title
        for method in methods:
            cell = network, method, scale
            ours = _our_figures(group, method, metrics, scale) if group else {}
            if ours or cell in printed or (network and not printed):
                yield Line(scale, heading, group.comparison if group else '', method,
                           _label(layout, method, network or title), network in cited or method in cited, ours,
                           printed.get(cell, {}), _our_costs(group, method, scale, layout) if group and ours else {},
                           printed_costs.get(cell, {}))


def _our_figures(group: RecordGroup, method: str, metrics: Iterable[str], scale: int) -> dict[tuple[str, str], Ours]:
    name = group.methods.get(method)
    datasets = dict.fromkeys(dataset for record in group.records for dataset in record.datasets)
    found = {(dataset, metric): means(group.records, name, dataset, metric, scale)
             for dataset in datasets for metric in metrics if name}
    return {(dataset_name(dataset), metric): Ours(figure['mean'], figure['sd'] if figure['seeds'] > 1 else None,
                                                  figure['seeds'])
            for (dataset, metric), figure in found.items() if figure}


def _our_costs(group: RecordGroup, method: str, scale: int, layout: Mapping) -> dict[str, float]:
    """What ours costs, of the costs that the table has, by its first record."""
    record = next(record for record in group.records
                  if record.method == group.methods[method] and record.scale == scale)
    known = {'parameters': record.parameters, **record.costs}
    return {cost: known[cost] for cost in layout.get('costs', {}) if cost in known}
