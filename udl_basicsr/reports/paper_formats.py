"""A table of a paper as text, Markdown, LaTeX or CSV."""
from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from udl_basicsr.experiments.printed import format_amount, parse_amount, printed_text
from udl_basicsr.utils.metric_facts import MetricFacts
from udl_basicsr.utils.tables import markdown_table, text_table

from .paper_rows import Line, Ours, PaperTable, Printed
from .score_table import MARKS, latex_text, places

FORMATS = {'md': 'md', 'text': 'txt', 'csv': 'csv', 'latex': 'tex'}  # name → suffix of a file
CSV_COLUMNS = ('table', 'degradation', 'scale', 'network', 'comparison', 'method', 'label', 'dataset', 'metric', 'kind',
               'value', 'sd', 'seeds', 'note')
CITED = 'cited'


def _about_marks(lines: Sequence[Line], fmt: str) -> str:
    marks = 'Best bold, second-best underlined, as rounded here, ours and printed apart, within a network and scale'
    seeds = any(figure.sd is not None for line in lines for figure in line.ours.values())
    cited = any(line.cited for line in lines)
    return ((f'{marks}. ' if fmt in MARKS else '') + '–: not trained here, or not known from the paper'
            + ('; cited: the paper cites it' if cited else '')
            + ('; ± is the spread of each loss by itself, not of its paired difference from another' if seeds else '')
            + '.')


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
             f'\\caption{{{latex_text(" ".join([f"{table.title}.", *table.caption[:-1]]))}}}',
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
    below = [*map(latex_text, [table.caption[-1], *table.remarks, _about_marks(table.lines, 'latex')]),
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
