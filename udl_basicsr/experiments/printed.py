"""What the papers print: scores, costs, and the tables they stand in (``paper_scores.json``)."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from udl_basicsr.utils.json_files import read_json
from udl_basicsr.utils.metric_facts import MetricFacts
from udl_basicsr.utils.scores import ScoresError

DATASETS = ('Set5', 'Set14', 'BSD100', 'Urban100', 'Manga109')
ALIASES = {'b100': 'BSD100', 'bsds100': 'BSD100'}  # BasicSR and the papers do not agree on its name
COSTS = ('parameters', 'macs', 'runtime', 'training')
Values = dict[str, dict[str, float | None]]
HR_SIZE = (720, 1280)
"""Height and width that the papers say it of."""


class PrintedFloat(float):
    """A figure that keeps the decimals it was printed with.

    Example:
        >>> PrintedFloat('30.3200') + 1, PrintedFloat('30.3200').decimals
        (31.32, 4)
    """
    decimals: int

    def __new__(cls, text: str | float):
        self = super().__new__(cls, text)
        self.decimals = len(str(text).partition('.')[2])
        return self


def dataset_name(name: str) -> str:
    """The one name by which a data set is known here."""
    return {**ALIASES, **{known.lower(): known for known in DATASETS}}.get(name.lower(), name)


def load_paper(file: str | Path | None = None) -> dict:
    """Reads printed scores; the packaged ones unless a file of the same form is given.

    Raises:
        ScoresError: The file does not have the form of the packaged one, whose head describes it; says where.
    """
    source = Path(file) if file else Path(__file__).with_name('paper_scores.json')
    try:
        paper = read_json(source, PrintedFloat)
        tables = paper.setdefault('tables', {})
        for row in paper['rows']:
            _ = paper['sources'][row['source']]['title']
            _ = row['network'], row['method'], row['degradation'], row['scale']
            _check_row(row, tables)
        for name, table in tables.items():
            _check_table(name, table, paper)
        for misprint in paper.setdefault('misprints', []):
            _ = tables[misprint['table']]
            _ = float(misprint['printed']), misprint['dataset'], misprint['metric'], misprint['note']
            _ = misprint['network'], misprint['method'], misprint['scale']
            for row in paper['rows']:
                if all(row.get(key) == misprint[key] for key in ('table', 'network', 'method', 'scale')):
                    value = printed_values(row).get(dataset_name(misprint['dataset']), {}).get(misprint['metric'])
                    if value is not None:
                        raise ValueError(f'{misprint["table"]}: the row of a misprint holds {value}, expected null')
        for suspect in paper.setdefault('suspects', []):
            _ = tables[suspect['table']], suspect['where'], suspect['note']
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # ValueError: no JSON, or what the checks found
        raise ScoresError(f'{source} does not have the form of udl_basicsr/experiments/paper_scores.json: '
                          f'{type(error).__name__} {error}') from error
    return paper


def _check_row(row: Mapping, tables: Mapping) -> None:
    where = f'{row["source"]} {row["network"]} {row["method"]} ×{row["scale"]}'
    for name, text in row.get('costs', {}).items():
        if name not in tables[row['table']].get('costs', {}) or not isinstance(text, str):
            raise ValueError(f'{where}, costs.{name}: {text!r}: expected a text as it is printed, and a key of `costs` '
                             f'of the table {row["table"]}')
    for dataset, values in row['scores'].items():
        if len(values) != len(row_metrics(row)):
            raise ValueError(f'{where}, {dataset}: {len(values)} values for the metrics {", ".join(row_metrics(row))}')
        if not all(value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
                   for value in values):
            raise ValueError(f'{where}, {dataset}: expected numbers or null, got {values}')
    if 'table' in row:
        table = tables[row['table']]
        if table['source'] != row['source']:
            raise ValueError(f'{where}: the table {row["table"]} is of {table["source"]}')
        if not table['read_from']:
            raise ValueError(f'{where}: the table {row["table"]} has rows, but its `read_from` does not say where they '
                             f'were read')


def _check_table(name: str, table: Mapping, paper: Mapping) -> None:
    _ = paper['sources'][table['source']]['title'], paper['sources'][table['source']]['url']
    _ = table['number'], table['title'], table['layout'], table['degradation'], table['read_from']
    if not table['methods'] or not table['scales']:
        raise ValueError(f'{name}: `methods` and `scales` hold the rows of the table and must not be empty')
    for key in ('networks', 'methods'):
        for label, names in table[key].items():
            if not isinstance(names, list):
                raise ValueError(f'{name}.{key}.{label}: expected a list of our names, got {names!r}')
    for label in table.get('labels', {}):
        if label not in table['methods']:
            raise ValueError(f'{name}.labels.{label}: expected one of the methods {", ".join(table["methods"])}')
    for cited in table.get('cited', []):
        if cited not in table['networks'] and cited not in table['methods']:
            raise ValueError(f'{name}.cited: {cited!r} is no network and no method of the table')
    for cost in table.get('costs', {}):
        if cost not in COSTS:
            raise ValueError(f'{name}.costs: expected some of {", ".join(COSTS)}, got {cost!r}')
    for key in ('scales', 'datasets', 'metrics'):
        if not isinstance(table[key], list):
            raise ValueError(f'{name}.{key}: expected a list, got {table[key]!r}')


def row_metrics(row: Mapping) -> list[str]:
    """The metrics of a printed row, in the order of its values."""
    return row.get('metrics', ['psnr', 'ssim'])


def printed_text(value: float | None, facts: MetricFacts) -> str:
    """A printed figure with the decimals it was printed with, or those of its metric where they are more."""
    return replace(facts, decimals=max(facts.decimals, getattr(value, 'decimals', 0))).text(value)


def printed_values(row: Mapping) -> Values:
    """A printed row as data set → metric → value."""
    return {dataset_name(name): dict(zip(row_metrics(row), values, strict=True))
            for name, values in row['scores'].items()}


def printed_rows(paper: Mapping, network: str, degradation: str = 'BI') -> list[dict]:
    """The printed scores of one network; what a source prints in several of its tables, once.

    Tables are joined figure by figure: one that has PSNR alone, or fewer data sets, takes nothing from another that
    has more. Of two figures of one data set and metric the first one counts.

    Returns:
        list: A dict for each source, method and scale: those keys, `network`, `names` (which a run of ours may have for
        that method) and `values` (data set → metric → value).

    Raises:
        ScoresError: There are none; the message lists those that exist.
    """
    joined: dict[tuple, dict] = {}
    for row in paper['rows']:
        if row['network'].lower() == network.lower() and row['degradation'] == degradation:
            keys = 'source', 'method', 'scale'
            found = joined.setdefault(tuple(row[key] for key in keys), {
                **{key: row[key] for key in keys}, 'network': row['network'], 'names': [], 'values': {}})
            table = paper['tables'].get(row.get('table'), {})
            found['names'] += [name for name in table.get('methods', {}).get(row['method'], ())
                               if name not in found['names']]
            for dataset, values in printed_values(row).items():
                known = found['values'].setdefault(dataset, {})
                known |= {metric: value for metric, value in values.items() if known.get(metric) is None}
    if not joined:
        known = sorted({f'{row["network"]} ({row["degradation"]})' for row in paper['rows']})
        raise ScoresError(f'No printed scores of {network} ({degradation}). There are: {", ".join(known) or "none"}. '
                          f'Others can be given as a file of the same form (--paper_file).')
    return list(joined.values())


def parse_amount(text: str) -> float:
    """A printed amount as a number: parameters and operations in ones, times in milliseconds.

    Example:
        >>> parse_amount('1370K'), parse_amount('316.2G'), parse_amount('1,587.9ms'), parse_amount('2.00 ms/iter')
        (1370000.0, 316200000000.0, 1587.9, 2.0)
    """
    text = text.replace(',', '').removesuffix('/iter').removesuffix('ms').strip()
    factor = {'K': 1e3, 'M': 1e6, 'G': 1e9}.get(text[-1:], 1.)
    return round(float(text.rstrip('KMG')) * factor, 6)


def format_amount(cost: str, value: float) -> str:
    """An amount as the papers print it.

    Example:
        >>> [format_amount(*a) for a in (('parameters', 667_000), ('parameters', 1.37e6), ('macs', 3.162e11))]
        ['667K', '1.37M', '316.2G']
        >>> format_amount('runtime', 56.54), format_amount('training', 2.004)
        ('56.5ms', '2.00 ms/iter')
    """
    if cost == 'parameters':
        return f'{value / 1e3:.0f}K' if value < 1e6 else f'{value / 1e6:.2f}M'
    if cost == 'macs':
        return f'{value / 1e9:.1f}G'
    return f'{value:.1f}ms' if cost == 'runtime' else f'{value:.2f} ms/iter'
