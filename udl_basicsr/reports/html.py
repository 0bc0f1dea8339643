"""One HTML file of a comparison or of test runs: tables, intervals, curves, and pictures to compare by hand.

The page is self-contained: its pictures, style and script are in it, a content security policy forbids it to load
anything or to run any script but its own, and whatever comes from a file is escaped. Layout and script lie in
``templates/``; the tables and intervals are plain HTML that needs no script.
"""
from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import cv2
import numpy as np
import yaml
from basicsr.metrics import calculate_psnr
from PIL import Image

from udl_basicsr.data.degradations import resize_bicubic

from .comparison import means, methods_of, paired_difference, read_records
from .figures import busiest_box
from .pictures import Run, read_partner
from .scores import ScoresError, decimals, format_value, lower_is_better, metric_title, read_scores
from .uncertainty import ReportError

LIMIT = 5_000_000  # bytes; pictures that were not asked for by name are left out beyond it
WINDOW = 224  # pixels; without loss 13 methods then take some 1.5 MB for each picture
COLOURS = 16  # of methods, as in templates/report.css; further ones begin anew
MAP_QUALITY = 85  # of WebP, for the maps of s, which lie over a picture and are looked at, not measured
# Viridis, which is ordered by lightness in itself and for the colour-blind; the same stops are in report.css.
_STOPS = np.array([[68, 1, 84], [71, 45, 123], [59, 82, 139], [44, 114, 142], [33, 145, 140], [40, 174, 128],
                   [94, 201, 98], [173, 220, 48], [253, 231, 37]], dtype=np.float64)
_AHEAD, _BEHIND, _OPEN = 'ahead', 'behind', 'open'


@dataclass(frozen=True)
class Group:
    """Runs that are compared with each other: of one network, scale and degradation.

    Attributes:
        title: Its heading.
        records: As :func:`udl_basicsr.reports.comparison.read_records` gives them; of plain test runs, what is known.
        remedy: The command that makes the pictures where there are none.
    """
    title: str
    records: list[dict]
    remedy: str

    @property
    def scale(self) -> int:
        return self.records[0]['scale']

    @property
    def methods(self) -> dict[str, str]:
        """Ids and labels, the reference first."""
        return methods_of(self.records)

    @property
    def reference(self) -> str | None:
        """Id of the method that differences are taken to; None where it was not run or nothing is to be compared."""
        name = self.records[0]['reference']
        return name if name in self.methods and len(self.methods) > 1 else None

    @property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(name for r in self.records for name in r['datasets']))

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(m for r in self.records for d in r['datasets'].values() for m in d['mean']))

    def of(self, method: str) -> list[dict]:
        """The runs of a method, by seed."""
        return sorted((r for r in self.records if r['method'] == method), key=lambda r: r['seed'])

    def difference(self, method: str, dataset: str, metric: str) -> dict | None:
        """The paired difference from the reference; None for the reference and where there is none."""
        if self.reference in (None, method):
            return None
        return paired_difference(self.records, method, dataset, metric, self.scale, self.reference)


# ---------------------------------------------------------------- reading

def read_groups(folders: Iterable[str | Path]) -> list[Group]:
    """Reads folders of records, and results folders of test runs, which are compared with the first of them.

    Args:
        folders: ``docs/results/<comparison>`` or ``results/<name>``, in any mixture.

    Raises:
        FileNotFoundError: A folder that does not exist or holds neither.
        ScoresError: Records or scores that are malformed.
    """
    groups: dict[tuple, list[dict]] = {}
    remedies, tested = {}, []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f'{folder}: no such folder. Expected docs/results/<comparison>, with the records '
                                    'of scripts/compare_losses.py, or results/<name>, with the scores.json of test.py')
        if (folder / 'scores.json').is_file():
            tested.append(folder)
            continue
        for record in read_records(folder):
            key = (record['comparison'], record['network_title'], record['scale'], record['degradation'])
            groups.setdefault(key, []).append(record)
            remedies[key] = 'python scripts/compare_losses.py FILE.yml'
    for record in _as_records(tested):
        key = ('tests', '', record['scale'], '')
        groups.setdefault(key, []).append(record)
        remedies[key] = 'python udl_basicsr/test.py -opt FILE.yml --force_yml val:save_img=true'
    found = []
    for key, records in groups.items():
        comparison, network, scale, degradation = key
        network = network or ', '.join(dict.fromkeys(r['network'] for r in records))
        alone = len({k[0] for k in groups}) == 1
        title = f'{network}, ×{scale}' + (f', {degradation}' if degradation else '')
        found.append(Group(title if alone else f'{comparison}: {title}', records, remedies[key]))
    return found


def _as_records(folders: Sequence[Path]) -> list[dict]:
    """Test runs in the form of records, as far as they say what records say."""
    folders = [folder.resolve() for folder in folders]
    scores = [read_scores(folder) for folder in folders]
    for folder in folders:
        if [f.name for f in folders].count(folder.name) > 1:
            raise ScoresError(f'Two results folders are called {folder.name}. Rename one of them.')
    first = {s['scale']: f.name for f, s in zip(reversed(folders), reversed(scores), strict=True)}
    return [{**s, 'method': f.name, 'label': f.name, 'reference': first[s['scale']], 'seed': 0, 'order': i,
             'pictures': str(f / 'visualization')} for i, (f, s) in enumerate(zip(folders, scores, strict=True))]


# ---------------------------------------------------------------- words and numbers

def signed(value: float, digits: int) -> str:
    """A difference as it is printed, with a true minus sign; what rounds to zero has none."""
    text = f'{value:+.{digits}f}'
    return text[1:] if not float(text) else text.replace('-', '−')


def _digits(metric: str) -> int:
    """One more than the metric itself has: differences of losses are small."""
    return decimals(metric) + 1


def _interval(difference: Mapping, metric: str, keys: tuple[str, str] = ('low', 'high')) -> str:
    return f'[{", ".join(signed(difference[key], _digits(metric)) for key in keys)}]'


def verdict(difference: Mapping, metric: str) -> str:
    """`ahead` or `behind` where the interval leaves out zero, else `open`."""
    if difference['low'] <= 0 <= difference['high']:
        return _OPEN
    return _AHEAD if (difference['mean'] > 0) != lower_is_better(metric) else _BEHIND


def _unit(metric: str) -> str:
    return ' dB' if 'psnr' in metric.lower() else ''


def _first_metric(group: Group) -> str | None:
    return 'psnr' if 'psnr' in group.metrics else next(iter(group.metrics), None)


def _count(number: int, what: str) -> str:
    return f'{number:,} {what}{"" if number == 1 else "s"}'.replace(',', ' ')


def _some(values: Iterable[Any]) -> str:
    return ', '.join(dict.fromkeys(str(value) for value in values if value not in (None, '')))


def _facts(group: Group) -> list[tuple[str, str]]:
    """What one must know of a group before its figures mean anything."""
    records = group.records
    seeds = sorted({r['seed'] for r in records})
    images = {name: len(next(r['datasets'][name]['images'] for r in records if name in r['datasets']))
              for name in group.datasets}
    facts = [('Network', _some(r.get('network_title') or r['network'] for r in records)),
             ('Parameters', _some(f'{r["parameters"]:,}'.replace(',', ' ') for r in records if 'parameters' in r)),
             ('Scale', f'×{group.scale}' + ''.join(f', {d}' for d in {r.get('degradation') for r in records} if d)),
             ('Test data', ', '.join(f'{name} ({count})' for name, count in images.items())),
             ('Budget', _some(_budget(r) for r in records)),
             ('Seeds', ', '.join(map(str, seeds)) if 'stages' in records[0] else ''),
             ('Machine', _some(r.get('machine') for r in records))]
    return [(name, value) for name, value in facts if value]


def _budget(record: Mapping) -> str:
    stages = record.get('stages') or []
    return _count(sum(int(s.get('iterations') or 0) for s in stages), 'iteration') if stages else ''


def _stages(record: Mapping) -> str:
    return ' → '.join(f'{s.get("name", "")} {s.get("iterations", "")}' for s in record.get('stages') or [])


# ---------------------------------------------------------------- headline

def _cards(group: Group) -> str:
    """A card for each data set: the best mean, and its difference from the reference."""
    metric, cards = _first_metric(group), []
    for dataset in group.datasets if metric else ():
        found = {m: means(group.records, m, dataset, metric, group.scale) for m in group.methods}
        found = {m: value['mean'] for m, value in found.items() if value}
        if not found:
            continue
        best = (min if lower_is_better(metric) else max)(found, key=found.get)
        difference = group.difference(best, dataset, metric)
        seeds = len({r['seed'] for r in group.of(best)})
        fewer = f', {_count(seeds, "seed")}' if seeds < len({r['seed'] for r in group.records}) else ''
        lines = [f'<p class="set">{escape(dataset)}</p>',
                 f'<p class="big">{format_value(metric, found[best])}<span>{_unit(metric)}</span></p>',
                 f'<p class="who"><i class="swatch {_colour(group, best)}"></i>{escape(group.methods[best])}'
                 f'{", the highest mean" if len(found) > 1 and not lower_is_better(metric) else ""}{fewer}</p>']
        if difference:
            lines.append(f'<p class="delta {verdict(difference, metric)}">{signed(difference["mean"], _digits(metric))}'
                         f'{_unit(metric)} <span>{_interval(difference, metric)}</span></p>')
        cards.append(f'<div class="card">{"".join(lines)}</div>')
    return f'<div class="cards">{"".join(cards)}</div>'


def _summary(group: Group) -> str:
    """In words: which methods' intervals lie above or below zero on every data set."""
    metric = _first_metric(group)
    if group.reference is None or metric is None:
        return ''
    kinds: dict[str, list[str]] = {_AHEAD: [], _BEHIND: [], _OPEN: []}
    for method, label in group.methods.items():
        found = [d for name in group.datasets if (d := group.difference(method, name, metric))]
        seen = {verdict(d, metric) for d in found}
        if found:
            kinds[seen.pop() if len(seen) == 1 else _OPEN].append(label)
    where = 'on every data set' if len(group.datasets) > 1 else f'on {escape(group.datasets[0])}'
    reference = escape(group.methods[group.reference])

    titles = {_AHEAD: f'Ahead of {reference} {where}', _OPEN: 'Undecided, or not the same on all',
              _BEHIND: f'Behind {reference} {where}'}
    rows = ''.join(f'<dt>{title}</dt><dd class="{kind}">'
                   + (''.join(f'<span>{escape(label)}</span>' for label in kinds[kind]) or 'none') + '</dd>'
                   for kind, title in titles.items())
    return (f'<dl class="verdicts">{rows}</dl><p class="note">Ahead and behind: the 95 % interval of the difference in '
            f'{escape(metric_title(metric))}, over seeds and images, leaves out zero.</p>')


def _header(groups: Sequence[Group], title: str) -> str:
    parts = [f'<h1>{escape(title)}</h1>']
    for group in groups:
        if len(groups) > 1:
            parts.append(f'<h2>{escape(group.title)}</h2>')
        facts = ''.join(f'<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>' for name, value in _facts(group))
        parts += [f'<dl class="facts">{facts}</dl>', _cards(group), _summary(group)]
    return ''.join(parts)


# ---------------------------------------------------------------- intervals

def _colour(group: Group, method: str) -> str:
    return f'm{list(group.methods).index(method) % COLOURS}'


def axis_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round values within [low, high], about ``count`` of them, in steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= raw * 0.999)
    return [round(k * step, 12) + 0. for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def axis_range(intervals: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The range of an axis that shows zero and the intervals; one method far off does not flatten the others.

    Args:
        intervals: (low, high) of each method.
    """
    reach = sorted(max(abs(low), abs(high)) for low, high in intervals)
    usual = reach[math.ceil(0.75 * len(reach)) - 1]
    limit = max(r for r in reach if r <= 3 * usual) or 1e-3
    low = max(min(0., *(a for a, _ in intervals)), -limit)
    high = min(max(0., *(b for _, b in intervals)), limit)
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def _forest(group: Group, metric: str) -> str:
    """A panel for each data set: dots and intervals of the differences from the reference, on one axis for all."""
    results = {name: {m: d for m in group.methods if (d := group.difference(m, name, metric))}
               for name in group.datasets}
    results = {name: found for name, found in results.items() if found}
    every = [d for found in results.values() for d in found.values()]
    if not every:
        return ''
    low, high = axis_range([(d['low'], d['high']) for d in every])
    ticks = axis_ticks(low, high)
    tick_digits = max((len(f'{tick:g}'.partition('.')[2]) for tick in ticks), default=0)
    overall = {m: float(np.mean([found[m]['mean'] for found in results.values() if m in found]))
               for m in group.methods if any(m in found for found in results.values())}
    order = sorted(overall, key=overall.get, reverse=not lower_is_better(metric))

    def x(value: float) -> str:
        return f'{100 * (min(max(value, low), high) - low) / (high - low):.2f}%'

    grid = ''.join(f'<line class="{"zero" if tick == 0 else "grid"}" x1="{x(tick)}" x2="{x(tick)}" y1="0" y2="100%"/>'
                   for tick in ticks)
    panels = []
    for name, found in results.items():
        rows = []
        for method in order:
            if method not in found:
                continue
            d, kind = found[method], verdict(found[method], metric)
            marks = []
            if math.isfinite(d.get('seed_low', math.nan)):
                marks.append(f'<line class="seeds" x1="{x(d["seed_low"])}" x2="{x(d["seed_high"])}" y1="50%" y2="50%"/>')
            marks.append(f'<line class="interval" x1="{x(d["low"])}" x2="{x(d["high"])}" y1="50%" y2="50%"/>')
            if low <= d['mean'] <= high:
                marks.append(f'<circle cx="{x(d["mean"])}" cy="50%" r="4.5"/>')
            else:
                sign, anchor, place = ('◀', 'start', '0') if d['mean'] < low else ('▶', 'end', '100%')
                marks.append(f'<text class="off" x="{place}" y="50%" dy=".35em" text-anchor="{anchor}">{sign}</text>')
            says = (f'{group.methods[method]}: {signed(d["mean"], _digits(metric))}, 95 % interval '
                    f'{_interval(d, metric)}, ahead on {d["ahead"]} of {d["pairs"]} pairs of seed and image')
            rows.append(
                f'<li><span class="name"><i class="swatch {_colour(group, method)}"></i>'
                f'{escape(group.methods[method])}</span>'
                f'<svg class="{kind}" role="img" aria-label="{escape(says)}"><title>{escape(says)}</title>{grid}'
                f'{"".join(marks)}</svg><span class="num {kind}">{signed(d["mean"], _digits(metric))}</span></li>')
        labels = ''.join(f'<text x="{x(tick)}" y="14" text-anchor="middle">'
                         f'{"0" if tick == 0 else signed(tick, tick_digits)}</text>' for tick in ticks)
        panels.append(f'<figure class="panel"><figcaption>{escape(name)}</figcaption><ul>{"".join(rows)}'
                      f'<li class="axis" aria-hidden="true"><span></span><svg>{labels}</svg><span></span></li></ul>'
                      '</figure>')
    better = '← better' if lower_is_better(metric) else 'better →'
    seeds = any(math.isfinite(d.get('seed_low', math.nan)) for d in every)
    note = ('Line: 95 % bootstrap interval over seeds and images. '
            + ('Pale band: 95 % interval of Student’s t over the seeds alone, on these very images. ' if seeds else
               'There is one seed, so the interval is over images only. ')
            + 'Filled: the interval leaves out zero. ◀ ▶: beyond the axis.')
    return (f'<h3>{escape(metric_title(metric))} minus that of {escape(group.methods[group.reference])}'
            f'{escape(f" ({_unit(metric).strip()})") if _unit(metric) else ""} <small>{better}</small></h3>'
            f'<div class="forest">{"".join(panels)}</div><p class="note">{note}</p>')


# ---------------------------------------------------------------- tables

def places(values: Mapping[str, float], metric: str) -> dict[str, int]:
    """The best (1) and second-best (2), by the value as it is printed; a lone one has nobody to win against."""
    if len(values) < 2:
        return {}
    shown = {name: round(value, decimals(metric)) for name, value in values.items()}
    order = sorted(set(shown.values()), reverse=not lower_is_better(metric))
    return {name: place for name, value in shown.items() if (place := order.index(value) + 1) <= 2}


def _table(group: Group, metric: str) -> str:
    datasets = [name for name in group.datasets if any(metric in r['datasets'][name]['mean'] for r in group.records
                                                       if name in r['datasets'])]
    values = {name: {m: v for m in group.methods if (v := means(group.records, m, name, metric, group.scale))}
              for name in datasets}
    ranks = {name: places({m: v['mean'] for m, v in values[name].items()}, metric) for name in datasets}
    several = any('stages' in r for r in group.records)
    head = ''.join(f'<th scope="col" aria-sort="none"><button type="button">{escape(name)}</button></th>'
                   for name in ['Method', *datasets])
    rows = []
    for method, label in group.methods.items():
        runs = group.of(method)
        cells = [f'<th scope="row" data-v="{escape(label)}"><span><i class="swatch {_colour(group, method)}"></i>'
                 f'{escape(label)}</span>'
                 + (f'<small>{_count(len(runs), "seed")}{", reference" if method == group.reference else ""}</small>'
                    if several else '') + '</th>']
        for name in datasets:
            value = values[name].get(method)
            if value is None:
                cells.append('<td data-v="">–</td>')
                continue
            text = format_value(metric, value['mean'])
            tag = {1: 'b', 2: 'u'}.get(ranks[name].get(method), 'span')
            text = f'<{tag}>{text}</{tag}>'
            if math.isfinite(value['sd']):
                text += f' <small class="sd">±{value["sd"]:.{_digits(metric)}f}</small>'
            difference = group.difference(method, name, metric)
            if difference:
                text += (f'<small class="{verdict(difference, metric)}">{signed(difference["mean"], _digits(metric))} '
                         f'<span>{_interval(difference, metric)}</span></small>')
            cells.append(f'<td data-v="{value["mean"]!r}">{text}</td>')
        rows.append(f'<tr{" class=reference" if method == group.reference else ""}>{"".join(cells)}</tr>')
    how = 'Mean over seeds and images, ± standard deviation over seeds' if several else 'Mean over images'
    if group.reference:
        how += (f'; below it the difference from {escape(group.methods[group.reference])} with its 95 % bootstrap '
                'interval')
    marks = 'Best in bold, second-best underlined. ' if len(group.methods) > 1 else ''
    return (f'<div class="scroll" tabindex="0" role="region" aria-label="Table of {escape(metric_title(metric))}">'
            f'<table class="sortable"><caption><b>{escape(metric_title(metric))}</b>, {escape(group.title)}. {how}. '
            f'{marks}The headings sort.</caption><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
            '</div>')


def _image_table(group: Group, dataset: str) -> str:
    """The scores of each image, for a few runs."""
    runs = [r for r in group.records if dataset in r['datasets']]
    columns = [(r, metric) for metric in group.metrics for r in runs if metric in r['datasets'][dataset]['mean']]
    several = len({r['method'] for r in runs}) > 1
    head = ''.join(f'<th scope="col" aria-sort="none"><button type="button">{escape(text)}</button></th>' for text in [
        'Image', *(f'{metric_title(metric)}{" " + r["label"] if several else ""}' for r, metric in columns)])
    rows = []
    for image in dict.fromkeys(name for r in runs for name in r['datasets'][dataset]['images']):
        cells = [r['datasets'][dataset]['images'].get(image, {}).get(metric) for r, metric in columns]
        rows.append(f'<tr><th scope="row" data-v="{escape(image)}">{escape(image)}</th>' + ''.join(
            f'<td data-v="{"" if value is None else repr(value)}">{format_value(metric, value)}</td>'
            for value, (_, metric) in zip(cells, columns, strict=True)) + '</tr>')
    return (f'<details><summary>{escape(dataset)}, image by image</summary><div class="scroll" tabindex="0" '
            f'role="region" aria-label="Scores of each image of {escape(dataset)}"><table class="sortable"><thead><tr>'
            f'{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div></details>')


def _results(groups: Sequence[Group]) -> str:
    parts = []
    for number, group in enumerate(groups):
        if len(groups) > 1:
            parts.append(f'<h2>{escape(group.title)}</h2>')
        metrics = group.metrics
        if len(metrics) > 1:
            first = _first_metric(group)
            choices = ''.join(f'<label><input type="radio" name="metric{number}" value="{escape(m)}"'
                              f'{" checked" if m == first else ""}><span>{escape(metric_title(m))}</span></label>'
                              for m in metrics)
            parts.append(f'<fieldset class="tabs" data-tabs hidden><legend>Metric</legend>{choices}</fieldset>')
        parts += [f'<div class="of-metric" data-metric="{escape(m)}">{_forest(group, m)}{_table(group, m)}</div>'
                  for m in metrics]
        if len(group.records) <= 3:
            parts += [_image_table(group, dataset) for dataset in group.datasets]
    return ''.join(parts)


def _runs(groups: Sequence[Group]) -> str:
    """What was run, when, on what, and with which versions."""
    parts = []
    for group in groups:
        header = ['Method', 'Stages and iterations', 'Seeds', 'Minutes a run', 'Machine', 'Date', 'Commit']
        rows = []
        for method, label in group.methods.items():
            runs = group.of(method)
            seconds = [r['seconds'] for r in runs if 'seconds' in r]
            rows.append([label, _some(map(_stages, runs)),
                         ', '.join(str(r['seed']) for r in runs) if 'stages' in runs[0] else '',
                         f'{np.mean(seconds) / 60:.1f}' if seconds else '',
                         *(_some(r.get(key) for r in runs) for key in ('machine', 'date', 'commit'))])
        kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
        if len(kept) > 1:
            cells = ''.join('<tr>' + ''.join(f'<{"th scope=row" if not i else "td"}>{escape(row[i] or "–")}</'
                                             f'{"td" if i else "th"}>' for i in kept) + '</tr>' for row in rows)
            parts.append('<div class="scroll" tabindex="0" role="region" aria-label="Runs"><table class="plain">'
                         f'<caption>{escape(group.title)}</caption><thead><tr>'
                         + ''.join(f'<th scope="col">{header[i]}</th>' for i in kept)
                         + f'</tr></thead><tbody>{cells}</tbody></table></div>')
        protocols = dict.fromkeys(r['protocol'] for r in group.records)
        versions = dict.fromkeys(', '.join(f'{k} {v}' for k, v in r['versions'].items()) for r in group.records)
        parts += [f'<p class="note">{escape(text)}.</p>' for text in (*protocols, *versions) if text]
        if len(protocols) > 1:
            parts.append('<p class="note"><b>These runs were measured by different protocols and cannot be '
                         'compared.</b></p>')
    return ''.join(parts)


# ---------------------------------------------------------------- curves

def _curve(runs: Mapping[int, Mapping], base: Mapping[int, Mapping], metric: str) -> dict | None:
    """One line: the mean over seeds at the iterations that all have, their range, and the mean paired difference.

    Args:
        runs: Of each seed, the iterations and values, ``{'iter': […], metric: […]}``.
        base: The same of the reference.
        metric: Which values.
    """
    def points(run: Mapping) -> dict[int, float]:
        return {int(i): float(v) for i, v in zip(run['iter'], run[metric], strict=True)
                if isinstance(v, (int, float)) and math.isfinite(v)}

    try:
        mine = {seed: points(run) for seed, run in runs.items() if run and metric in run}
        theirs = {seed: points(run) for seed, run in base.items() if seed in mine and run and metric in run}
    except (KeyError, TypeError, ValueError) as error:
        raise ScoresError(f'a curve is malformed, expected as many iterations as values of {metric}: '
                          f'{type(error).__name__} {error}') from error
    iterations = sorted(set.intersection(*map(set, mine.values()))) if mine else []
    if not iterations:
        return None
    line = {'iter': iterations}
    values = np.array([[mine[seed][i] for i in iterations] for seed in mine])
    line |= {'mean': _short(values.mean(0)), 'low': _short(values.min(0)), 'high': _short(values.max(0))}
    if theirs and all(i in run for run in theirs.values() for i in iterations):
        delta = np.array([[mine[seed][i] - theirs[seed][i] for i in iterations] for seed in theirs])
        line |= {'delta': _short(delta.mean(0)), 'delta_low': _short(delta.min(0)), 'delta_high': _short(delta.max(0))}
    return line


def _short(values: np.ndarray) -> list[float]:
    return [float(f'{value:.6g}') for value in values]


def _curves(group: Group) -> dict | None:
    """The curves of a group for the script: a chart for each data set and metric, and one for each loss."""
    def found(*path: str) -> dict[str, dict[int, Mapping]]:
        lines: dict[str, dict[int, Mapping]] = {}
        for record in group.records:
            value: Any = record.get('curve') or {}
            for key in path:
                value = value.get(key) if isinstance(value, Mapping) else None
            if isinstance(value, Mapping):
                lines.setdefault(record['method'], {})[record['seed']] = value
        return lines

    charts = []
    vals = [r['curve'].get('val') for r in group.records if isinstance(r.get('curve'), Mapping)]
    sets = list(dict.fromkeys(name for val in vals if isinstance(val, Mapping) for name in val))
    kinds = [(('val', name), name, True) for name in sets] + [(('loss', ), 'Training loss', False)]
    for path, title, val in kinds:
        runs = found(*path)
        keys = dict.fromkeys(k for seeds in runs.values() for run in seeds.values() for k in run if k != 'iter')
        for metric in keys:
            lines = []
            for index, method in enumerate(group.methods):
                base = runs.get(group.reference, {}) if val else {}
                line = _curve(runs.get(method, {}), base, metric)
                if line:
                    lines.append({'m': index, **line})
            if lines:
                charts.append({'title': f'{title}: {metric_title(metric) if val else metric}', 'log': not val,
                               'digits': decimals(metric) if val else 4, 'lines': lines,
                               'delta': any('delta' in line for line in lines) and len(lines) > 1})
    if not charts:
        return None
    switches = []
    for method in group.methods:
        stages = group.of(method)[0].get('stages') or []
        ends = np.cumsum([int(s.get('iterations') or 0) for s in stages])
        switches.append([int(end) for end in ends[:-1]])
    return {'title': group.title, 'charts': charts, 'methods': list(group.methods.values()), 'switches': switches,
            'reference': list(group.methods).index(group.reference) if group.reference else None}


# ---------------------------------------------------------------- pictures

@dataclass(frozen=True)
class Layer:
    """One picture that the slider can show.

    Attributes:
        key: What it is chosen by: `method:<id>`, `gt`, `bicubic` or `lq`.
        label: How it is printed.
        image: (H, W, 3) uint8 RGB; the LQ is smaller by the scale.
        scores: Of the whole image; empty for GT and LQ.
        log_scale: s, (H, W), where the method has an uncertainty.
    """
    key: str
    label: str
    image: np.ndarray
    scores: Mapping[str, float]
    log_scale: np.ndarray | None = None


@dataclass(frozen=True)
class Picture:
    """An image of a test set in all its versions; all but the LQ are of one size, ``whole`` is (width, height)."""
    group: Group
    dataset: str
    image: str
    layers: tuple[Layer, ...]
    whole: tuple[int, int]

    @property
    def name(self) -> str:
        return f'{self.dataset}/{self.image}'


def picture_folder(record: Mapping) -> Path | None:
    """The folder of a run's pictures; a relative one is looked for from here."""
    folder = record.get('pictures')
    return Path(folder) if isinstance(folder, str) and folder and Path(folder).is_dir() else None


def _roots(group: Group, key: str) -> dict[str, list[Path]]:
    """GT or LQ folders of the data sets, where a test.yml beside the pictures names them and they are there."""
    found: dict[str, list[Path]] = {}
    for record in group.records:
        folder = picture_folder(record)
        file = folder.parent / 'test.yml' if folder else None
        if file is None or not file.is_file():
            continue
        try:
            datasets = (yaml.safe_load(file.read_text(encoding='utf-8')) or {}).get('datasets') or {}
            roots = {d['name']: Path(d[key]) for d in datasets.values() if d and d.get('name') and d.get(key)}
        except (yaml.YAMLError, AttributeError, TypeError, UnicodeDecodeError):
            continue  # no option file of ours: --gt and --lq say what it would
        for name, root in roots.items():
            if root.is_dir() and root not in found.setdefault(name, []):
                found[name].append(root)
    return found


def _partner(folders: Sequence[Path], image: str, what: str, size: tuple[int, int]) -> np.ndarray | None:
    """The GT or LQ of the given (height, width) from the first folder that has it so: folders of several scales."""
    errors = []
    for folder in folders:
        found = read_partner(folder, image, what)
        if found.shape[:2] == size:
            return found
        errors.append(f'{folder} has {image} with {found.shape[1]}×{found.shape[0]} pixels')
    if errors:
        raise ReportError(f'{"; ".join(errors)}, but its {what} should have {size[1]}×{size[0]}. Is it the {what} '
                          'folder of this scale?')
    return None


def _layers(group: Group, dataset: str, image: str, seed: int | None, gt: Sequence[Path],
            lq: Sequence[Path]) -> tuple[Layer, ...]:
    """Every version of an image that there is, the methods first; empty where no method kept it."""
    if any(Path(part).name != part for part in (dataset, image)):
        return ()  # a name that leads elsewhere: no picture of ours
    layers: list[Layer] = []
    for method, label in group.methods.items():
        for record in group.of(method):
            folder = picture_folder(record)
            if folder is None or (seed is not None and record['seed'] != seed):
                continue
            if image not in record['datasets'].get(dataset, {'images': {}})['images']:
                continue
            if not any((folder / dataset).glob('*.png')):
                continue
            run = Run(label, str(folder), folder, group.scale, record['datasets'])
            has_s = (folder / dataset / f'{image}_log_scale.png').is_file()
            layers.append(Layer(f'method:{method}', label, run.sr(dataset, image), run.scores(dataset, image),
                                run.log_scale(dataset, image) if has_s else None))
            break
    if not layers:
        return ()
    size = layers[0].image.shape[:2]
    for layer in layers:
        for array in (layer.image, layer.log_scale):
            if array is not None and array.shape[:2] != size:
                raise ReportError(f'{dataset}/{image}: {layer.label} has a picture of {array.shape[1]}×'
                                  f'{array.shape[0]} pixels, {layers[0].label} one of {size[1]}×{size[0]}. They are '
                                  'not of one test: make them again')
    truth = _partner(gt, image, 'GT', size)
    if any(n % group.scale for n in size):
        lq = ()
    small = _partner(lq, image, 'LQ', (size[0] // group.scale, size[1] // group.scale))
    if small is not None:
        bicubic = resize_bicubic(small, group.scale)
        layers[:0] = [Layer('lq', 'Low resolution', small, {}),
                      Layer('bicubic', 'Bicubic', bicubic, _bicubic_scores(group, bicubic, truth))]
    if truth is not None:
        layers.append(Layer('gt', 'Ground truth', truth, {}))
    return tuple(layers)


def _bicubic_scores(group: Group, bicubic: np.ndarray, truth: np.ndarray | None) -> dict[str, float]:
    """PSNR of the bicubic image, where the runs were measured by the papers' protocol, which is computed here."""
    usual = f'on Y (ITU-R BT.601), border of {group.scale} px cropped'
    if truth is None or not all(r['protocol'].startswith('PSNR') and usual in r['protocol'] for r in group.records):
        return {}
    return {'psnr': float(calculate_psnr(bicubic[..., ::-1], truth[..., ::-1], crop_border=group.scale,
                                         test_y_channel=True))}


def _cut(picture: Picture, window: int) -> Picture:
    """The part of ``window`` × ``window`` pixels that has most detail; small pictures stay whole."""
    height, width = picture.layers[-1].image.shape[:2]
    if not window or (height <= window and width <= window):
        return picture
    scale = picture.group.scale
    side = max(min(window, height, width) // scale, 1) * scale
    left, top, *_ = (n // scale * scale for n in busiest_box(picture.layers[-1].image, side))

    def part(array: np.ndarray | None) -> np.ndarray | None:
        if array is None:
            return None
        by = 1 if array.shape[:2] == (height, width) else scale
        return array[top // by:(top + side) // by, left // by:(left + side) // by]

    return replace(picture, layers=tuple(replace(layer, image=part(layer.image), log_scale=part(layer.log_scale))
                                         for layer in picture.layers))


def _order(group: Group, dataset: str) -> list[str]:
    """The images of a data set: that on which the methods' scores spread most, then that of median spread, the rest."""
    metric = _first_metric(group)
    values: dict[str, list[float]] = {}
    for record in group.records:
        for image, scores in record['datasets'].get(dataset, {'images': {}})['images'].items():
            values.setdefault(image, []).append(scores.get(metric, 0.))
    order = sorted(values, key=lambda image: -np.std(values[image]))
    middle = order[len(order) // 2:len(order) // 2 + 1]
    return list(dict.fromkeys([*order[:1], *middle, *order]))


def encode(image: np.ndarray, quality: int | None) -> str:
    """A picture as a data URL: WebP, without loss unless a quality from 1 to 100 is given."""
    data = io.BytesIO()
    how = {'lossless': True} if quality is None else {'quality': quality}
    Image.fromarray(np.ascontiguousarray(image)).save(data, 'WEBP', method=4, **how)
    return 'data:image/webp;base64,' + base64.b64encode(data.getvalue()).decode('ascii')


def colour_map(log_scale: np.ndarray, low: float, high: float) -> np.ndarray:
    """s (H, W) in the colours of viridis from ``low`` to ``high``: (H, W, 3) uint8."""
    at = ((log_scale - low) / (high - low)).clip(0, 1) * (len(_STOPS) - 1)
    return np.stack([np.interp(at, range(len(_STOPS)), _STOPS[:, c]) for c in range(3)], -1).round().astype(np.uint8)


def _encoded(picture: Picture, quality: int | None) -> dict:
    """A picture for the script, but for the maps of s, whose colours depend on all pictures."""
    height, width = picture.layers[-1].image.shape[:2]
    metrics = picture.group.metrics
    layers = [{'key': layer.key, 'label': layer.label, 'src': encode(layer.image, quality), 'scores': [
        f'{format_value(m, layer.scores[m])}{_unit(m) or " " + metric_title(m)}' for m in metrics if m in layer.scores]}
        for layer in picture.layers]
    part = '' if (width, height) == picture.whole else f'{width}×{height} of {picture.whole[0]}×{picture.whole[1]} px'
    for entry, layer in zip(layers, picture.layers, strict=True):
        if (first := _first_metric(picture.group)) in layer.scores:
            entry['rank'] = -layer.scores[first] if lower_is_better(first) else layer.scores[first]
    group, reference = picture.group, picture.group.reference
    return {'name': picture.name, 'group': group.title, 'scale': group.scale, 'width': width, 'height': height,
            'part': part, 'layers': layers, 'reference': f'method:{reference}' if reference else None}


def choose_pictures(groups: Sequence[Group], wanted: Sequence[str] = (), gt: Mapping[str, Sequence[Path]] | None = None,
                    lq: Mapping[str, Sequence[Path]] | None = None, seed: int | None = None,
                    quality: int | None = None, window: int = WINDOW,
                    limit: int = LIMIT) -> tuple[list[dict], tuple[float, float] | None, list[str]]:
    """Reads, cuts and encodes the pictures of a page.

    Args:
        groups: As :func:`read_groups` gives them.
        wanted: ``DATASET/NAME``; by default, in turns over the data sets, those that `_order` puts first, one or two
            for each set, as many as ``limit`` bytes hold.
        gt: Folders of HR images for each data set.
        lq: Folders of LR images for each data set.
        seed: Whose pictures; by default the first that has any.
        quality: Of WebP with loss; None: without.
        window: Side of the part that is shown of larger pictures; 0: all of it.
        limit: Bytes of all pictures that were not asked for by name.

    Returns:
        The pictures for the script, the range of s that their maps' colours span, and what was left out, in words.

    Raises:
        ReportError: A picture that was asked for does not exist, or pictures that do not belong together.
    """
    gt, lq = dict(gt or {}), dict(lq or {})
    names = {f'{d}/{i}' for g in groups for d in g.datasets for i in _order(g, d)}
    for name in wanted:
        if name not in names:
            near = sorted(names)
            shown = ', '.join(near[:20]) + (f' and {len(near) - 20} more' if len(near) > 20 else '')
            raise ReportError(f'--images: there is no {name}. There are: {shown}')
    for what, given in (('--gt', gt), ('--lq', lq)):
        known = list(dict.fromkeys(d for g in groups for d in g.datasets))
        for name, folders in given.items():
            if name not in known:
                raise ReportError(f'{what}: there is no data set {name}. There are: {", ".join(known)}')
            for folder in folders:
                if not folder.is_dir():
                    raise ReportError(f'{what} {name}={folder}: no such folder')

    if seed is not None and not any(r['seed'] == seed for g in groups for r in g.records):
        raise ReportError(f'--seed: there is no run of seed {seed}. There are: '
                          f'{", ".join(map(str, sorted({r["seed"] for g in groups for r in g.records})))}')

    candidates = []
    for group in groups:
        roots = {key: {**_roots(group, key), **given} for key, given in (('dataroot_gt', gt), ('dataroot_lq', lq))}
        for dataset in group.datasets:
            images = [i for i in _order(group, dataset) if not wanted or f'{dataset}/{i}' in wanted]
            candidates += [(place, group, dataset, image, roots) for place, image in
                           enumerate(images if wanted else images[:2])]
    if not wanted:
        candidates.sort(key=lambda c: c[0])  # stable: the first of every set, then the second
    chosen, maps, notes, left_out, total, without = [], [], [], [], 0, []
    for _, group, dataset, image, roots in candidates:
        layers = _layers(group, dataset, image, seed, *(roots[k].get(dataset, ()) for k in roots))
        if not layers:
            without.append(f'{dataset}/{image}')
            continue
        picture = Picture(group, dataset, image, layers, layers[-1].image.shape[1::-1])
        picture = _cut(picture, window)
        entry = _encoded(picture, quality)
        size = sum(len(layer['src']) for layer in entry['layers'])
        if not wanted and total + size > limit:
            left_out.append(f'{picture.name} ({size / 1e6:.1f} MB)')
            continue
        total += size
        chosen.append(entry)
        maps.append([layer.log_scale for layer in picture.layers])
    if wanted and without:
        raise ReportError(f'{", ".join(without)}: {"no run" if seed is None else f"no run of seed {seed}"} kept this '
                          f'picture here. They are made by: {groups[0].remedy}')
    if left_out:
        notes.append(f'Left out to stay below {limit / 1e6:g} MB: {", ".join(left_out)}. --quality 90 takes a tenth '
                     'of the space, with some loss; --images DATASET/NAME puts in what you name.')
    return chosen, _add_maps(chosen, maps), notes


def _add_maps(chosen: Sequence[dict], maps: Sequence[Sequence[np.ndarray | None]]) -> tuple[float, float] | None:
    """Adds the maps of s in colours that mean the same in all pictures; returns the range that they span."""
    every = [m.ravel() for layers in maps for m in layers if m is not None]
    if not every:
        return None
    low, high = (float(v) for v in np.percentile(np.concatenate(every), (1, 99)))
    high = max(high, low + 0.1)
    for picture, layers in zip(chosen, maps, strict=True):
        for entry, log_scale in zip(picture['layers'], layers, strict=True):
            if log_scale is not None:
                entry['map'] = encode(colour_map(log_scale, low, high), MAP_QUALITY)
    return low, high


def _theta_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Places in [0, 1] and labels of θ = exp(s) in grey levels, at 1, 2, 5 times powers of ten."""
    values = [k * 10. ** p for p in range(-1, 3) for k in (1, 2, 5)]
    return [((math.log(v) - low) / (high - low), f'{v:g}') for v in values if low <= math.log(v) <= high]


# ---------------------------------------------------------------- page

def _safe_json(value: Any) -> str:
    """JSON for a script element: no text in it can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(',', ':'), allow_nan=False)
    for sign in '<>&\u2028\u2029':
        text = text.replace(sign, f'\\u{ord(sign):04x}')
    return text


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"


def make_page(folders: Sequence[str | Path], images: Sequence[str] = (), gt: Mapping[str, Sequence[Path]] | None = None,
              lq: Mapping[str, Sequence[Path]] | None = None, seed: int | None = None, quality: int | None = None,
              window: int = WINDOW) -> tuple[str, list[str]]:
    """Makes the page.

    Args:
        folders: Folders of records, ``docs/results/<comparison>``, or of test runs, ``results/<name>``.
        images, gt, lq, seed, quality, window: As :func:`choose_pictures` says.

    Returns:
        The HTML, and what its pictures are and what was left out, a sentence each.

    Raises:
        FileNotFoundError, ScoresError, ReportError: As :func:`read_groups` and :func:`choose_pictures` say.
    """
    groups = read_groups(folders)
    curves = [curve for group in groups if (curve := _curves(group))]
    pictures, span, notes = choose_pictures(groups, images, gt, lq, seed, quality, window)
    title = _title(groups)
    if pictures:
        names = dict.fromkeys(p['name'] for p in pictures)
        how = 'without loss' if quality is None else f'with some loss (WebP, quality {quality})'
        notes.insert(0, f'{_count(len(names), "picture")} {how}: {", ".join(names)}.')
        if not images:
            notes.insert(1, 'Chosen by rule: of each data set the image on which the scores spread most, and that of '
                            'median spread.')
    else:
        notes.insert(0, 'There are no pictures here, only scores. They are made by: ' + groups[0].remedy)

    templates = files('udl_basicsr.reports') / 'templates'
    page, style, script = ((templates / f'report.{kind}').read_text(encoding='utf-8')
                           for kind in ('html', 'css', 'js'))
    data = {'curves': curves, 'pictures': pictures, 'ticks': _theta_ticks(*span) if span else []}
    policy = (f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
              "base-uri 'none'; form-action 'none'")
    return Template(page).substitute(
        policy=policy, title=escape(title), style=style, script=script, header=_header(groups, title),
        results=_results(groups), runs=_runs(groups), data=_safe_json(data),
        bare='' if pictures else 'bare', no_curves='hidden' if not curves else '', no_pictures='hidden' if not pictures else '',
        notes=''.join(f'<p class="note">{escape(note)}</p>' for note in notes)), notes


def _title(groups: Sequence[Group]) -> str:
    comparisons = dict.fromkeys(r['comparison'] for g in groups for r in g.records if 'comparison' in r)
    names = comparisons or dict.fromkeys(r['name'] for g in groups for r in g.records)
    networks = _some(g.title for g in groups)
    if comparisons:
        return f'{", ".join(names)}: losses compared on {networks}'
    return f'{", ".join(names)}: {networks}' if len(names) <= 3 else f'{len(names)} runs: {networks}'
