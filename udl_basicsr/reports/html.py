"""One HTML file of a comparison or of test runs: tables, intervals, curves, and pictures to compare by hand.

The page is self-contained: its pictures, style and script are in it, a content security policy forbids it to load
anything or to run any script but its own, and whatever comes from a file is escaped. Layout and script lie in
``templates/``; the tables and intervals are plain HTML that needs no script.
"""
from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from udl_basicsr.experiments.comparison import means
from udl_basicsr.utils.scores import ScoresError

from .html_groups import (
    AHEAD,
    BEHIND,
    OPEN,
    Group,
    difference_text,
    digits_of,
    first_metric,
    interval_text,
    read_groups,
    signed,
    unit,
)
from .html_pictures import WINDOW, choose_pictures, theta_ticks
from .score_table import places

COLOURS = 16  # of methods, as in templates/report.css; further ones begin anew


# ---------------------------------------------------------------- headline

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
             ('Seeds', ', '.join(map(str, seeds)) if group.trained else ''),
             ('Machine', _some(r.get('machine') for r in records))]
    return [(name, value) for name, value in facts if value]


def _budget(record: Mapping) -> str:
    stages = record.get('stages') or []
    return _count(sum(s['iterations'] for s in stages), 'iteration') if stages else ''


def _stages(record: Mapping) -> str:
    return ' → '.join(f'{s.get("name", "")} {s["iterations"]}' for s in record.get('stages') or [])


def _cards(group: Group) -> str:
    """A card for each data set: the best mean, and its difference from the reference."""
    metric, cards = first_metric(group), []
    facts = group.facts(metric) if metric else None
    for dataset in group.datasets if metric else ():
        found = {m: means(group.records, m, dataset, metric, group.scale) for m in group.methods}
        found = {m: value['mean'] for m, value in found.items() if value}
        if not found or (len(found) > 1 and not facts.sign):
            continue
        best = max(found, key=lambda m: facts.sign * found[m])
        difference = group.difference(best, dataset, metric)
        seeds = len({r['seed'] for r in group.of(best)})
        fewer = f', {_count(seeds, "seed")}' if seeds < len({r['seed'] for r in group.records}) else ''
        lines = [f'<p class="set">{escape(dataset)}</p>',
                 f'<p class="big">{facts.text(found[best])}<span>{escape(unit(facts))}</span></p>',
                 f'<p class="who"><i class="swatch {_colour(group, best)}"></i>{escape(group.methods[best])}'
                 f'{", the highest mean" if len(found) > 1 and facts.higher_is_better else ""}{fewer}</p>']
        if difference:
            lines.append(f'<p class="delta {difference["verdict"]}">{difference_text(difference)}'
                         f'{escape(unit(facts))} <span>{interval_text(difference)}</span></p>')
        cards.append(f'<div class="card">{"".join(lines)}</div>')
    return f'<div class="cards">{"".join(cards)}</div>'


def _summary(group: Group) -> str:
    """In words: which methods' intervals lie above or below zero on every data set."""
    metric = first_metric(group)
    if group.reference is None or metric is None or not group.facts(metric).sign:
        return ''
    kinds: dict[str, list[str]] = {AHEAD: [], BEHIND: [], OPEN: []}
    for method, label in group.methods.items():
        found = [d for name in group.datasets if (d := group.difference(method, name, metric))]
        seen = {d['verdict'] for d in found}
        if found:
            kinds[seen.pop() if len(seen) == 1 else OPEN].append(label)
    where = 'on every data set' if len(group.datasets) > 1 else f'on {escape(group.datasets[0])}'
    reference = escape(group.methods[group.reference])

    titles = {AHEAD: f'Ahead of {reference} {where}', OPEN: 'Undecided, or not the same on all',
              BEHIND: f'Behind {reference} {where}'}
    rows = ''.join(f'<dt>{title}</dt><dd class="{kind}">'
                   + (''.join(f'<span>{escape(label)}</span>' for label in kinds[kind]) or 'none') + '</dd>'
                   for kind, title in titles.items())
    return (f'<dl class="verdicts">{rows}</dl><p class="note">Ahead and behind: zero lies outside '
            f'{_intervals(group)}, for {escape(group.facts(metric).title(metric))}.</p>')


def _intervals(group: Group) -> str:
    if not group.trained:
        return 'the 95 % interval over images, which says nothing of other seeds'
    return 'both 95 % intervals: that over seeds and images, and that over seeds'


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
    # The reference itself, run twice, differs by nothing and says nothing of what is usual.
    reach = sorted(r for low, high in intervals if (r := max(abs(low), abs(high)))) or [1e-3]
    usual = reach[math.ceil(0.75 * len(reach)) - 1]
    limit = max(r for r in reach if r <= 3 * usual)
    low = max(min(0., *(a for a, _ in intervals)), -limit)
    high = min(max(0., *(b for _, b in intervals)), limit)
    if low == high:
        low, high = -limit, limit
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
    usual = max(d['seeds'] for d in every)
    low, high = axis_range([(d['low'], d['high']) for d in every])
    ticks = axis_ticks(low, high)
    tick_digits = max((len(f'{tick:g}'.partition('.')[2]) for tick in ticks), default=0)
    overall = {m: float(np.mean([found[m]['mean'] for found in results.values() if m in found]))
               for m in group.methods if any(m in found for found in results.values())}
    facts = group.facts(metric)
    order = sorted(overall, key=lambda m: -facts.sign * overall[m])

    def x(value: float) -> str:
        return f'{100 * (min(max(value, low), high) - low) / (high - low):.2f}%'

    def line(kind: str, start: float, end: float) -> str:
        return f'<line class="{kind}" x1="{x(start)}" x2="{x(end)}" y1="50%" y2="50%"/>'

    grid = ''.join(f'<line class="{"zero" if tick == 0 else "grid"}" x1="{x(tick)}" x2="{x(tick)}" y1="0" y2="100%"/>'
                   for tick in ticks)
    panels = []
    for name, found in results.items():
        rows = []
        for method in order:
            if method not in found:
                continue
            d, kind = found[method], found[method]['verdict']
            marks = []
            if math.isfinite(d.get('seed_low', math.nan)):
                marks.append(line('seeds', d['seed_low'], d['seed_high']))
            marks.append(line('interval', d['low'], d['high']))
            if low <= d['mean'] <= high:
                marks.append(f'<circle cx="{x(d["mean"])}" cy="50%" r="4.5"/>')
            else:
                sign, anchor, place = ('◀', 'start', '0') if d['mean'] < low else ('▶', 'end', '100%')
                marks.append(f'<text class="off" x="{place}" y="50%" dy=".35em" text-anchor="{anchor}">{sign}</text>')
            says = (f'{group.methods[method]}: {difference_text(d)}, 95 % interval {interval_text(d)}'
                    + (f', ahead on {d["ahead"]} of {d["pairs"]} pairs of seed and image' if facts.sign else ''))
            rows.append(
                f'<li><span class="name"><i class="swatch {_colour(group, method)}"></i>'
                f'{escape(group.methods[method])}{"" if d["seeds"] == usual else " ({})".format(d["seeds"])}</span>'
                f'<svg class="{kind}" role="img" aria-label="{escape(says)}"><title>{escape(says)}</title>{grid}'
                f'{"".join(marks)}</svg><span class="num {kind}">{difference_text(d)}</span></li>')
        labels = ''.join(f'<text x="{x(tick)}" y="14" text-anchor="middle">'
                         f'{"0" if tick == 0 else signed(tick, tick_digits)}</text>' for tick in ticks)
        panels.append(f'<figure class="panel"><figcaption>{escape(name)}</figcaption><ul>{"".join(rows)}'
                      f'<li class="axis" aria-hidden="true"><span></span><svg>{labels}</svg><span></span></li></ul>'
                      '</figure>')
    fewer = f' In brackets: seeds, where they are not {usual}.' if any(d['seeds'] != usual for d in every) else ''
    better = {1: ' <small>better →</small>', -1: ' <small>← better</small>', 0: ''}[facts.sign]
    if group.trained:
        note = ('Line: 95 % bootstrap interval over seeds and images. Pale band: 95 % interval of Student’s t over the '
                'seeds, on these very images; one seed has none, and decides nothing.')
    else:
        note = 'Line: 95 % bootstrap interval over images, for these very weights.'
    note += f' Coloured and filled: zero lies outside {_intervals(group)}. ◀ ▶: beyond the axis.{fewer}'
    return (f'<h3>{escape(facts.title(metric))} minus that of {escape(group.methods[group.reference])}'
            f'{escape(f" ({facts.unit})") if facts.unit else ""}{better}</h3>'
            f'<div class="forest">{"".join(panels)}</div><p class="note">{note}</p>')


# ---------------------------------------------------------------- tables

def _table(group: Group, metric: str) -> str:
    datasets = [name for name in group.datasets if any(metric in r['datasets'][name]['mean'] for r in group.records
                                                       if name in r['datasets'])]
    values = {name: {m: v for m in group.methods if (v := means(group.records, m, name, metric, group.scale))}
              for name in datasets}
    facts = group.facts(metric)
    ranks = {name: places({m: v['mean'] for m, v in values[name].items()}, facts) for name in datasets}
    head = ''.join(f'<th scope="col" aria-sort="none"><button type="button">{escape(name)}</button></th>'
                   for name in ['Method', *datasets])
    rows = []
    for method, label in group.methods.items():
        runs = group.of(method)
        cells = [f'<th scope="row" data-v="{escape(label)}"><span><i class="swatch {_colour(group, method)}"></i>'
                 f'{escape(label)}</span>'
                 + (f'<small>{_count(len(runs), "seed")}{", reference" if method == group.reference else ""}</small>'
                    if group.trained else '') + '</th>']
        for name in datasets:
            value = values[name].get(method)
            if value is None:
                cells.append('<td data-v="">–</td>')
                continue
            text = facts.text(value['mean'])
            tag = {1: 'b', 2: 'u'}.get(ranks[name].get(method), 'span')
            text = f'<{tag}>{text}</{tag}>'
            if math.isfinite(value['sd']):
                text += f' <small class="sd">±{value["sd"]:.{digits_of(facts)}f}</small>'
            difference = group.difference(method, name, metric)
            if difference:
                text += (f'<small class="{difference["verdict"]}">{difference_text(difference)} '
                         f'<span>{interval_text(difference)}</span></small>')
            cells.append(f'<td data-v="{value["mean"]!r}">{text}</td>')
        rows.append(f'<tr{" class=reference" if method == group.reference else ""}>{"".join(cells)}</tr>')
    how = 'Mean over seeds and images, ± standard deviation over seeds' if group.trained else 'Mean over images'
    if group.reference:
        how += (f'; below it the difference from {escape(group.methods[group.reference])} with its 95 % bootstrap '
                'interval')
    marks = 'Best in bold, second-best underlined. ' if len(group.methods) > 1 and facts.sign else ''
    title = escape(facts.title(metric))
    return (f'<div class="scroll" tabindex="0" role="region" aria-label="Table of {title}">'
            f'<table class="sortable"><caption><div><b>{title}</b>, {escape(group.title)}. '
            f'{how}. {marks}The headings sort.</div></caption><thead><tr>{head}</tr></thead>'
            f'<tbody>{"".join(rows)}</tbody></table></div>')


def _image_table(group: Group, dataset: str) -> str:
    """The scores of each image, for a few runs."""
    runs = [r for r in group.records if dataset in r['datasets']]
    facts = {metric: group.facts(metric) for metric in group.metrics}
    columns = [(r, metric) for metric in facts for r in runs if metric in r['datasets'][dataset]['mean']]
    several = len({r['method'] for r in runs}) > 1
    head = ''.join(f'<th scope="col" aria-sort="none"><button type="button">{escape(text)}</button></th>' for text in [
        'Image', *(f'{facts[metric].title(metric)}{" " + r["label"] if several else ""}' for r, metric in columns)])
    rows = []
    for image in dict.fromkeys(name for r in runs for name in r['datasets'][dataset]['images']):
        cells = [r['datasets'][dataset]['images'].get(image, {}).get(metric) for r, metric in columns]
        rows.append(f'<tr><th scope="row" data-v="{escape(image)}">{escape(image)}</th>' + ''.join(
            f'<td data-v="{"" if value is None else repr(value)}">{facts[metric].text(value)}</td>'
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
            first = first_metric(group)
            choices = ''.join(f'<label><input type="radio" name="metric{number}" value="{escape(m)}"'
                              f'{" checked" if m == first else ""}><span>{escape(group.facts(m).title(m))}</span>'
                              '</label>'
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
                         ', '.join(str(r['seed']) for r in runs) if group.trained else '',
                         f'{np.mean(seconds) / 60:.1f}' if seconds else '',
                         *(_some(r.get(key) for r in runs) for key in ('machine', 'date', 'commit'))])
        kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
        if len(kept) > 1:
            cells = ''.join('<tr>' + ''.join(f'<{"th scope=row" if not i else "td"}>{escape(row[i] or "–")}</'
                                             f'{"td" if i else "th"}>' for i in kept) + '</tr>' for row in rows)
            parts.append('<div class="scroll" tabindex="0" role="region" aria-label="Runs"><table class="plain">'
                         f'<caption><div>{escape(group.title)}</div></caption><thead><tr>'
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
    kinds = [(('val', name), name, True) for name in sets] + [(('loss', ), 'Training', False)]
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
                facts = group.facts(metric)
                charts.append({'title': f'{title}: {facts.title(metric) if val else metric}', 'log': not val,
                               'digits': facts.decimals if val else 4, 'lines': lines,
                               'delta': any('delta' in line for line in lines) and len(lines) > 1})
    if not charts:
        return None
    switches = []
    for method in group.methods:
        stages = group.of(method)[0].get('stages') or []
        ends = np.cumsum([s['iterations'] for s in stages])
        switches.append([int(end) for end in ends[:-1]])
    return {'title': group.title, 'charts': charts, 'methods': list(group.methods.values()), 'switches': switches,
            'reference': list(group.methods).index(group.reference) if group.reference else None}

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
            what = 'scores spread most, and that of median spread' if len(groups[0].records) > 1 else \
                f'score is {_extreme(groups[0])}, and that of median score'
            notes.insert(1, f'Chosen by rule: of each data set the image on which the {what}.')
    else:
        notes.insert(0, 'There are no pictures here, only scores. They are made by: ' + groups[0].remedy)

    templates = files('udl_basicsr.reports') / 'templates'
    page, style, script = ((templates / f'report.{kind}').read_text(encoding='utf-8')
                           for kind in ('html', 'css', 'js'))
    data = {'curves': curves, 'pictures': pictures, 'ticks': theta_ticks(*span) if span else []}
    policy = (f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
              "base-uri 'none'; form-action 'none'")
    return Template(page).substitute(
        policy=policy, title=escape(title), style=style, script=script, header=_header(groups, title),
        results=_results(groups), runs=_runs(groups), data=_safe_json(data),
        bare='' if pictures else 'bare', no_curves='' if curves else 'hidden',
        no_pictures='' if pictures else 'hidden',
        notes=''.join(f'<p class="note">{escape(note)}</p>' for note in notes)), notes


def _extreme(group: Group) -> str:
    metric = first_metric(group)
    return 'worst' if metric and group.facts(metric).sign else 'lowest'


def _title(groups: Sequence[Group]) -> str:
    comparisons = dict.fromkeys(r['comparison'] for g in groups for r in g.records if 'comparison' in r)
    names = comparisons or dict.fromkeys(r['name'] for g in groups for r in g.records)
    networks = _some(g.title for g in groups)
    if comparisons:
        return f'{", ".join(names)}: losses compared on {networks}'
    return f'{", ".join(names)}: {networks}' if len(names) <= 3 else f'{len(names)} runs: {networks}'
