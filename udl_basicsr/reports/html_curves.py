"""The curves of a page, as its script takes them: a chart for each data set and metric, and one for each loss."""
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from udl_basicsr.experiments.statistics import value_at
from udl_basicsr.utils.scores import ScoresError

from .html_groups import Group


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
    there = {i: [value_at(run, i) for run in theirs.values()] for i in iterations} if theirs else {}
    both = [i for i, values in there.items() if None not in values]
    if both:
        delta = np.array([[mine[seed][i] - there[i][n] for i in both] for n, seed in enumerate(theirs)])
        line |= {'delta_iter': both, 'delta': _short(delta.mean(0)), 'delta_low': _short(delta.min(0)),
                 'delta_high': _short(delta.max(0))}
    return line


def _short(values: np.ndarray) -> list[float]:
    return [float(f'{value:.6g}') for value in values]


def curves_of(group: Group) -> dict | None:
    """The curves of a group for the script: a chart for each data set and metric, and one for each loss."""
    def found(*path: str) -> dict[str, dict[int, Mapping]]:
        lines: dict[str, dict[int, Mapping]] = {}
        for record in group.records:
            value: Any = record.curve
            for key in path:
                value = value.get(key) if isinstance(value, Mapping) else None
            if isinstance(value, Mapping):
                lines.setdefault(record.method, {})[record.seed] = value
        return lines

    charts = []
    vals = [r.curve.get('val') for r in group.records]
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
        stages = group.of(method)[0].stages
        ends = np.cumsum([s['iterations'] for s in stages])
        switches.append([int(end) for end in ends[:-1]])
    return {'title': group.title, 'charts': charts, 'methods': list(group.methods.values()),
            'styles': [group.style(method) for method in group.methods], 'switches': switches,
            'reference': list(group.methods).index(group.reference) if group.reference else None}
