"""How a method's lead moves from one comparison to the next: with budget, share of stage 1, network, scale."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from udl_basicsr.experiments.record_files import Record
from udl_basicsr.experiments.statistics import methods_of, paired_difference
from udl_basicsr.utils.scores import ScoresError

from .figures import FONT, WIDTH, framed, save
from .method_styles import COLOURS
from .plots import P95, interval, seeds_told, tidy

AXES = {'budget': 'iterations in all', 'share': 'share of stage 1 in all iterations',
        'parameters': 'parameters of the network', 'scale': 'scale'}


class Point(NamedTuple):
    """The difference of a method from the reference in one comparison."""
    x: float
    name: str  # of the comparison
    method: str
    network: str  # its title
    difference: dict  # see paired_difference


def lead_points(comparisons: Mapping[str, Sequence[Record]], methods: Sequence[str], dataset: str, axis: str,
                metric: str = 'psnr') -> list[Point]:
    """How the difference from the reference moves from one comparison, or one method, to the next.

    Args:
        comparisons: Name and records of each.
        methods: Their ids; several where a comparison has one for each value of the axis.
        dataset: Name of the test set.
        axis: A key of ``AXES``, what is different between the comparisons: read from the records of the methods.
        metric: A metric of the records.

    Returns:
        list: By the value of ``axis``; comparisons without these methods, or without a seed in common, are left out.
    """
    points = []
    for name, records in comparisons.items():
        runs = {(r.scale, r.method): r for r in records if r.method in methods}
        for (scale, method), run in runs.items():
            found = paired_difference(records, method, dataset, metric, scale)
            if found:
                lengths = [stage.iterations for stage in run.stages]
                x = {'budget': sum(lengths), 'share': lengths[0] / sum(lengths) if len(lengths) > 1 else 0.,
                     'parameters': run.parameters, 'scale': scale}[axis]
                points.append(Point(float(x), name, method, run.network_title, found))
    return sorted(points, key=lambda p: p[:3])


def lead_label(records: Iterable[Record], methods: Sequence[str]) -> str:
    """What the methods are called together: their label, or what stands before its comma where they share that."""
    labels = dict.fromkeys(label for method, label in methods_of(records).items() if method in methods)
    heads = dict.fromkeys(label.partition(',')[0] for label in labels)
    return ', '.join(labels if len(labels) == 1 else heads)


def lead_numbers(series: Mapping[str, Iterable[Point]]) -> dict[str, Any]:
    """The points for a JSON file, by data set."""
    keys = 'mean', 'low', 'high', 'seed_low', 'seed_high', 'seeds', 'images', 'ahead', 'pairs'
    return {name: [{'x': p.x, 'comparison': p.name, 'method': p.method, 'network': p.network,
                    **{key: None if p.difference[key] != p.difference[key] else p.difference[key] for key in keys}}
                   for p in points] for name, points in series.items()}


def lead_figure(series: Mapping[str, Iterable[Point]], axis: str, labels: Sequence[str], out: str | Path,
                metric: str = 'psnr', width: float = WIDTH, dpi: int = 150) -> Path:
    """Draws differences from a reference along an axis, with their intervals of 95 %.

    Thick: bootstrap over seeds and images; thin: Student's t over seeds, with an arrow where it leaves the picture.

    Args:
        series: Data set and its points.
        axis: A key of ``AXES``.
        labels: Of the reference and of the method.
        out: The picture to write; the format follows the ending.

    Raises:
        ScoresError: There is nothing to draw.
    """
    series = {name: list(points) for name, points in series.items()}
    every = [p for points in series.values() for p in points]
    if not every:
        raise ScoresError('nothing to draw: expected comparisons in which the method and the reference share a seed')
    facts, seeds = every[0].difference['facts'], seeds_told(p.difference['seeds'] for p in every)
    pair = f'{labels[1]} minus {labels[0]}'
    figure = framed(width, 0.45 * width, dpi, f'{pair}, by {AXES[axis]}; {seeds}',
                    f'Dots: means over seeds and images. Thick: {P95} by a bootstrap over them; thin: {P95} by '
                    "Student's t over the seeds, where there are several.")
    ax = figure.subplots()
    ax.axhline(0, color='black', linewidth=0.8)
    # Equal steps on the axis: what was tried, not how far apart it is, decides where the next point lies.
    ticks = sorted({p.x for p in every})
    seen = [0., *(p.difference[end] for p in every for end in ('low', 'high'))]
    margin = 0.15 * (max(seen) - min(seen)) + 1e-9  # t of two seeds is far wider, and may leave the picture
    ax.set_ylim(min(seen) - margin, max(seen) + margin)
    for number, (name, points) in enumerate(series.items()):
        x = np.array([ticks.index(p.x) for p in points]) + (number - (len(series) - 1) / 2) * 0.09
        colour = COLOURS[number % len(COLOURS)]
        ax.plot(x, [p.difference['mean'] for p in points], 'o-', markersize=3.5, linewidth=0.8, color=colour,
                label=name)
        for at, point in zip(x, points, strict=True):
            interval(ax, at, point.difference, colour, vertical=True)
    ax.set_xlim(-0.5, len(ticks) - 0.5)
    ax.set_xticks(range(len(ticks)), [_tick(axis, tick, every) for tick in ticks])
    ax.set_xlabel(AXES[axis])
    ax.set_ylabel(facts.axis(metric, f': {pair}'))
    tidy(ax)
    ax.legend(fontsize=FONT - 0.5, frameon=False, ncols=len(series), loc='lower left', bbox_to_anchor=(0, 1))
    return save(figure, out)


def _tick(axis: str, value: float, points: Iterable[Point]) -> str:
    mine = [p for p in points if p.x == value]
    seeds = seeds_told(p.difference['seeds'] for p in mine)
    if axis == 'parameters':
        names = ', '.join(dict.fromkeys(p.network for p in mine if p.network))
        return '\n'.join(filter(None, (names, f'{value:,.0f}', seeds)))
    return {'budget': f'{value:,.0f}', 'share': f'{100 * value:.0f} %', 'scale': f'×{value:g}'}[axis] + f'\n{seeds}'
