"""The curves of a page, as its script takes them: a chart for each data set and metric, and one for each loss."""
from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from udl_basicsr.experiments.record_files import Series
from udl_basicsr.experiments.statistics import value_at

from .html_groups import Group


def _curve(runs: Mapping[int, Series], base: Mapping[int, Series], metric: str) -> dict | None:
    """One line: the mean over seeds at the iterations that all have, their range, and the mean paired difference.

    Args:
        runs: Of each seed, the iterations and values, ``{'iter': […], metric: […]}``.
        base: The same of the reference.
        metric: Which values.
    """
    def points(run: Series) -> dict[int, float]:
        return {i: float(v) for i, v in zip(run['iter'], run[metric], strict=True)
                if isinstance(v, (int, float)) and math.isfinite(v)}

    mine = {seed: points(run) for seed, run in runs.items() if metric in run}
    theirs = {seed: points(run) for seed, run in base.items() if seed in mine and metric in run}
    iterations = sorted(set.intersection(*map(set, mine.values()))) if mine else []
    if not iterations:
        return None
    line = {'iter': iterations}
    values = np.array([[mine[seed][i] for i in iterations] for seed in mine])
    line |= {'mean': _short(values.mean(0)), 'low': _short(values.min(0)), 'high': _short(values.max(0))}
    there = {i: [value for run in theirs.values() if (value := value_at(run, i)) is not None] for i in iterations}
    both = [i for i, found in there.items() if found and len(found) == len(theirs)]
    if both:
        delta = np.array([[mine[seed][i] - there[i][n] for i in both] for n, seed in enumerate(theirs)])
        line |= {'delta_iter': both, 'delta': _short(delta.mean(0)), 'delta_low': _short(delta.min(0)),
                 'delta_high': _short(delta.max(0))}
    return line


def _short(values: np.ndarray) -> list[float]:
    return [float(f'{value:.6g}') for value in values]


def curves_of(group: Group) -> dict | None:
    """The curves of a group for the script: a chart for each data set and metric, and one for each loss."""
    charts = []
    sets = dict.fromkeys(name for record in group.records for name in record.curve.val)
    for title, val in [*((name, True) for name in sets), ('Training', False)]:
        runs: dict[str, dict[int, Series]] = {}
        for record in group.records:
            runs.setdefault(record.method, {})[record.seed] = (
                record.curve.val.get(title, {}) if val else record.curve.loss)
        keys = dict.fromkeys(k for seeds in runs.values() for run in seeds.values() for k in run if k != 'iter')
        for metric in keys:
            lines = []
            for index, method in enumerate(group.methods):
                base = runs.get(group.reference, {}) if val and group.reference else {}
                line = _curve(runs.get(method, {}), base, metric)
                if line:
                    lines.append({'m': index, **line})
            if lines:
                facts = group.facts(metric)
                charts.append({'title': f'{title}: {facts.title(metric) if val else metric}', 'log': not val,
                               'axis': facts.axis(metric) if val else metric,
                               'digits': facts.decimals if val else 4, 'lines': lines,
                               'delta': any('delta' in line for line in lines) and len(lines) > 1})
    if not charts:
        return None
    switches = []
    for method in group.methods:
        stages = group.of(method)[0].stages
        ends = np.cumsum([stage.iterations for stage in stages])
        switches.append([int(end) for end in ends[:-1]])
    return {'title': group.title, 'charts': charts, 'methods': list(group.methods.values()),
            'styles': [group.style(method) for method in group.methods], 'switches': switches,
            'reference': list(group.methods).index(group.reference) if group.reference else None}
