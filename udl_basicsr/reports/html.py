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

from udl_basicsr.experiments.statistics import means

from .html_curves import curves_of
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
    unit,
)
from .html_intervals import colour_of, forest, intervals_in_words
from .html_pictures import WINDOW, choose_pictures, theta_ticks
from .score_table import places

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
                 f'<p class="who"><i class="swatch {colour_of(group, best)}"></i>{escape(group.methods[best])}'
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
            f'{intervals_in_words(group)}, for {escape(group.facts(metric).title(metric))}.</p>')


def _header(groups: Sequence[Group], title: str) -> str:
    parts = [f'<h1>{escape(title)}</h1>']
    for group in groups:
        if len(groups) > 1:
            parts.append(f'<h2>{escape(group.title)}</h2>')
        facts = ''.join(f'<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>' for name, value in _facts(group))
        parts += [f'<dl class="facts">{facts}</dl>', _cards(group), _summary(group)]
    return ''.join(parts)


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
        cells = [f'<th scope="row" data-v="{escape(label)}"><span><i class="swatch {colour_of(group, method)}"></i>'
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
        parts += [f'<div class="of-metric" data-metric="{escape(m)}">{forest(group, m)}{_table(group, m)}</div>'
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
              window: int = WINDOW,
              intervals: Mapping[str, Sequence[Path]] | None = None) -> tuple[str, list[str]]:
    """Makes the page.

    Args:
        folders: Folders of records, ``docs/results/<comparison>``, or of test runs, ``results/<name>``.
        images, gt, lq, seed, quality, window, intervals: As :func:`choose_pictures` says.

    Returns:
        The HTML, and what its pictures are and what was left out, a sentence each.

    Raises:
        FileNotFoundError, ScoresError, ReportError: As :func:`read_groups` and :func:`choose_pictures` say.
    """
    groups = read_groups(folders)
    curves = [curve for group in groups if (curve := curves_of(group))]
    pictures, span, notes = choose_pictures(groups, images, gt, lq, seed, quality, window, intervals=intervals)
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
