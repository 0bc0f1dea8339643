"""One HTML file of a comparison or of test runs: tables, intervals, curves, and pictures to compare by hand.

The page is self-contained: its pictures, style and script are in it, and a content security policy forbids it to load
anything or to run any script but its own. Its templates lie in ``templates/``; they escape whatever they are given, and
nothing but the packaged style and script is exempt. Here is what they are given; tables and intervals need no script.
"""
from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from udl_basicsr.experiments.record_files import Record
from udl_basicsr.experiments.statistics import means
from udl_basicsr.utils.scores import protocol_notes

from .html_curves import curves_of
from .html_groups import AHEAD, BEHIND, OPEN, Group, difference_view, digits_of, first_metric, read_groups, unit
from .html_intervals import forest, intervals_in_words
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
    seeds = sorted({r.seed for r in records})
    images = {name: len(next(r.datasets[name].images for r in records if name in r.datasets))
              for name in group.datasets}
    facts = [('Network', _some(r.network_title or r.network for r in records)),
             ('Parameters', _some(f'{r.parameters:,}'.replace(',', ' ') for r in records if r.parameters)),
             ('Scale', f'×{group.scale}' + ''.join(f', {d}' for d in {r.degradation for r in records} if d)),
             ('Test data', ', '.join(f'{name} ({count})' for name, count in images.items())),
             ('Budget', _some(_count(sum(s.iterations for s in r.stages), 'iteration') for r in records if r.stages)),
             ('Seeds', _seeds(seeds) if group.trained else ''),
             ('Machine', _some(r.machine for r in records))]
    return [(name, value) for name, value in facts if value]


def _seeds(seeds: list[int]) -> str:
    """How many, and which: a mere 0 would look like none."""
    return f'{len(seeds)} (seed{"s" * (len(seeds) > 1)} {", ".join(map(str, seeds))})'


def _stages(record: Record) -> str:
    return ' → '.join(f'{stage.name} {stage.iterations}' for stage in record.stages)


def _cards(group: Group) -> list[dict]:
    """A card for each data set: the best mean, and its difference from the reference."""
    metric, cards = first_metric(group), []
    if metric is None:
        return []
    facts = group.facts(metric)
    for dataset in group.datasets:
        found = {m: value['mean'] for m in group.methods
                 if (value := means(group.records, m, dataset, metric, group.scale))}
        if not found or (len(found) > 1 and not facts.sign):
            continue
        best = max(found, key=lambda m: facts.sign * found[m])
        seeds = len({r.seed for r in group.of(best)})
        tail = ', the highest mean' if len(found) > 1 and facts.higher_is_better else ''
        tail += f', {_count(seeds, "seed")}' if seeds < len({r.seed for r in group.records}) else ''
        cards.append({'dataset': dataset, 'value': facts.text(found[best]), 'unit': unit(facts),
                      'style': group.style(best), 'label': group.methods[best], 'tail': tail,
                      'difference': difference_view(group.difference(best, dataset, metric))})
    return cards


def _verdicts(group: Group) -> dict | None:
    """In words: which methods' intervals lie above or below zero on every data set."""
    metric = first_metric(group)
    if group.reference is None or metric is None or not group.facts(metric).sign:
        return None
    kinds: dict[str, list[str]] = {AHEAD: [], OPEN: [], BEHIND: []}
    for method, label in group.methods.items():
        found = [d for name in group.datasets if (d := group.difference(method, name, metric))]
        seen = {d['verdict'] for d in found}
        if found:
            kinds[seen.pop() if len(seen) == 1 else OPEN].append(label)
    where = 'on every data set' if len(group.datasets) > 1 else f'on {group.datasets[0]}'
    reference = group.methods[group.reference]
    titles = {AHEAD: f'Ahead of {reference} {where}', OPEN: 'Undecided, or not the same on all',
              BEHIND: f'Behind {reference} {where}'}
    return {'kinds': [(kind, titles[kind], labels) for kind, labels in kinds.items()],
            'note': f'Ahead and behind: zero lies outside {intervals_in_words(group)}, for '
                    f'{group.facts(metric).title(metric)}.'}


# ---------------------------------------------------------------- tables

def _table(group: Group, metric: str) -> dict:
    datasets = [name for name in group.datasets if any(metric in r.datasets[name].mean for r in group.records
                                                       if name in r.datasets)]
    values = {name: {m: v for m in group.methods if (v := means(group.records, m, name, metric, group.scale))}
              for name in datasets}
    facts = group.facts(metric)
    ranks = {name: places({m: v['mean'] for m, v in values[name].items()}, facts) for name in datasets}

    def cell(method: str, name: str) -> dict | None:
        value = values[name].get(method)
        return value and {
            'value': repr(value['mean']), 'text': facts.text(value['mean']),
            'tag': {1: 'b', 2: 'u'}.get(ranks[name].get(method, 0), 'span'),
            'sd': f'±{value["sd"]:.{digits_of(facts)}f}' if math.isfinite(value['sd']) else '',
            'difference': difference_view(group.difference(method, name, metric))}

    rows = [{'label': label, 'style': group.style(method), 'reference': method == group.reference,
             'told': (_count(len(group.of(method)), 'seed') + (', reference' if method == group.reference else '')
                      if group.trained else ''),
             'cells': [cell(method, name) for name in datasets]} for method, label in group.methods.items()]
    how = 'Mean over seeds and images, ± standard deviation over seeds' if group.trained else 'Mean over images'
    if group.reference:
        how += f'; below it the difference from {group.methods[group.reference]} with its 95 % bootstrap interval'
    marks = ' Best in bold, second-best underlined.' if len(group.methods) > 1 and facts.sign else ''
    return {'title': facts.title(metric), 'told': f'{group.title}. {how}.{marks} The headings sort.',
            'head': ['Method', *datasets], 'rows': rows}


def _image_table(group: Group, dataset: str) -> dict:
    """The scores of each image, for a few runs."""
    runs = [r for r in group.records if dataset in r.datasets]
    facts = {metric: group.facts(metric) for metric in group.metrics}
    columns = [(r, metric) for metric in facts for r in runs if metric in r.datasets[dataset].mean]
    several = len({r.method for r in runs}) > 1
    rows = []
    for image in dict.fromkeys(name for r in runs for name in r.datasets[dataset].images):
        scores = [(r.datasets[dataset].images.get(image, {}).get(metric), metric) for r, metric in columns]
        rows.append({'label': image, 'cells': [
            {'value': '' if value is None else repr(value), 'text': facts[metric].text(value)}
            for value, metric in scores]})
    return {'dataset': dataset, 'rows': rows, 'head': [
        'Image', *(f'{facts[metric].title(metric)}{" " + r.label if several else ""}' for r, metric in columns)]}


def _runs(group: Group) -> dict:
    """What was run, when, on what, with which versions, and how it was measured."""
    header = ['Method', 'Stages and iterations', 'Seeds', 'Minutes a run', 'Machine', 'Date', 'Commit']
    rows = []
    for method, label in group.methods.items():
        runs = group.of(method)
        seconds = [r.seconds for r in runs if r.seconds]
        rows.append([label, _some(map(_stages, runs)),
                     _seeds([r.seed for r in runs]) if group.trained else '',
                     f'{np.mean(seconds) / 60:.1f}' if seconds else '',
                     *(_some(getattr(r, key) for r in runs) for key in ('machine', 'date', 'commit'))])
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    versions = dict.fromkeys(', '.join(f'{k} {v}' for k, v in r.versions.items()) for r in group.records)
    return {'head': [header[i] for i in kept], 'rows': [[row[i] or '–' for i in kept] for row in rows],
            'notes': [*protocol_notes(group.records, group.metrics), *(f'{text}.' for text in versions if text)]}


# ---------------------------------------------------------------- page

def _view(group: Group) -> dict[str, Any]:
    """All of a group that the templates show."""
    return {'title': group.title, 'facts': _facts(group), 'cards': _cards(group), 'verdicts': _verdicts(group),
            'first': first_metric(group), 'runs': _runs(group),
            'metrics': [{'id': m, 'title': group.facts(m).title(m), 'forest': forest(group, m),
                         'table': _table(group, m)} for m in group.metrics],
            'images': [_image_table(group, d) for d in group.datasets] if len(group.records) <= 3 else []}


def templates() -> jinja2.Environment:
    """The environment of the page's templates: it escapes everything, and an unknown name is an error."""
    env = jinja2.Environment(loader=jinja2.PackageLoader('udl_basicsr.reports'), autoescape=True,
                             undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    # `tojson` writes no sign that could end a script element or begin a comment.
    env.policies['json.dumps_kwargs'] = {'ensure_ascii': False, 'separators': (',', ':'), 'allow_nan': False}
    return env


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
        notes.insert(0, 'There are no pictures here, only scores. ' + groups[0].remedy)

    style, script = ((files('udl_basicsr.reports') / 'templates' / f'report.{kind}').read_text(encoding='utf-8')
                     for kind in ('css', 'js'))
    policy = (f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
              "base-uri 'none'; form-action 'none'")
    return templates().get_template('report.html').render(
        policy=policy, title=title, groups=[_view(group) for group in groups], notes=notes,
        data={'curves': curves, 'pictures': pictures, 'ticks': theta_ticks(*span) if span else []},
        style=Markup(style), script=Markup(script)), notes


def _extreme(group: Group) -> str:
    metric = first_metric(group)
    return 'worst' if metric and group.facts(metric).sign else 'lowest'


def _title(groups: Sequence[Group]) -> str:
    comparisons = dict.fromkeys(r.comparison for g in groups for r in g.records if r.comparison)
    names = comparisons or dict.fromkeys(r.name for g in groups for r in g.records)
    networks = _some(g.title for g in groups)
    if comparisons:
        return f'{", ".join(names)}: losses compared on {networks}'
    return f'{", ".join(names)}: {networks}' if len(names) <= 3 else f'{len(names)} runs: {networks}'
