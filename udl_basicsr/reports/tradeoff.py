"""What networks reach and what they cost: figure 4 of Revisiting L1, from the papers' tables and ours."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from udl_basicsr.experiments.printed import parse_amount
from udl_basicsr.utils.metric_facts import facts_by_name
from udl_basicsr.utils.scores import ScoresError

from .figures import WIDTH, new_figure, save
from .method_styles import COLOURS
from .paper_rows import PaperTable
from .plots import tidy

UNITS = {'runtime': ('run time, ms', 1.), 'macs': ('multiply-accumulate operations, G', 1e9)}


@dataclass(frozen=True)
class Dot:
    """One network with one loss."""
    network: str
    label: str
    cost: float  # of `UNITS`: milliseconds, or operations in ones
    score: float
    parameters: float
    ours: bool


def tradeoff_dots(tables: Iterable[PaperTable], dataset: str, scale: int, cost: str = 'runtime',
                  metric: str = 'psnr') -> list[Dot]:
    """The rows of some tables that have a cost and a score.

    A loss changes nothing at test time: where the paper prints the cost of a network once, all its rows have it.

    Args:
        tables: As `make_table` gives them.
        dataset, scale, metric: Of the scores.
        cost: A key of `UNITS`.
    """
    dots = []
    for table in tables:
        lines = [line for line in table.lines if line.scale == scale]
        for line in lines:
            for ours, figure, score in ((False, line.printed.get((dataset, metric)), 'value'),
                                        (True, line.ours.get((dataset, metric)), 'mean')):
                known = line.our_costs if ours else next(
                    ({name: parse_amount(text) for name, text in other.printed_costs.items()} for other in lines
                     if other.network == line.network and other.printed_costs), {})
                if figure is not None and {cost, 'parameters'} <= known.keys():
                    dots.append(Dot(line.network, line.label, known[cost], getattr(figure, score), known['parameters'],
                                    ours))
    return dots


def tradeoff_figure(dots: Sequence[Dot], dataset: str, scale: int, out: str | Path, cost: str = 'runtime',
                    metric: str = 'psnr', width: float = WIDTH, dpi: int = 150) -> Path:
    """Draws what networks reach over what they cost; the area of a dot is the number of parameters.

    Args:
        dots: See :func:`tradeoff_dots`; printed ones are hollow, ours are filled.
        dataset, scale, cost, metric: Of the dots.
        out: The picture to write; the format follows the ending.

    Raises:
        ScoresError: There are none.
    """
    if not dots:
        raise ScoresError(f'nothing to draw: no row has {metric} on {dataset} ×{scale} and a {cost}')
    head, unit = UNITS[cost]
    figure = new_figure(width, 0.6 * width, dpi)
    ax = figure.add_axes((0.1, 0.14, 0.87, 0.78))
    colours = {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(dict.fromkeys(dot.network for dot in dots))}
    for name, colour in colours.items():
        mine = [dot for dot in dots if dot.network == name]
        for ours in (False, True):
            group = [dot for dot in mine if dot.ours == ours]
            ax.plot([dot.cost / unit for dot in group], [dot.score for dot in group], color=colour, linewidth=0.8)
            ax.scatter([dot.cost / unit for dot in group], [dot.score for dot in group],
                       s=area([dot.parameters for dot in group]), edgecolors=colour, linewidths=1.2,
                       facecolors=colour if ours else 'white', zorder=3)
            for dot in group:
                _name(ax, dot, dot.cost / unit, {d.score for d in mine if d.cost == dot.cost}, colour)
    ax.set_xscale('log')
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(StrMethodFormatter('{x:g}'))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.margins(0.12)
    size = {'runtime': 'as their tables say', 'macs': '1280×720 pixels'}[cost]
    least, most = (end(dot.parameters for dot in dots) / 1e6 for end in (min, max))
    ax.set(xlabel=f'{head} ({size})', ylabel=facts_by_name(metric).title(metric),
           title=f'{dataset} ×{scale}; area: parameters, {least:.2f}M to {most:.2f}M; hollow: printed')
    tidy(ax)
    return save(figure, out)


def _name(ax: Axes, dot: Dot, x: float, scores: set[float], colour: str) -> None:
    """Writes what a dot is: above the best of those that cost the same, below the worst, elsewhere at its right."""
    away = float(np.sqrt(area([dot.parameters])[0] / np.pi)) + 2
    side = 0 if len(scores) == 1 else 1 if dot.score == max(scores) else -1 if dot.score == min(scores) else 0
    ax.annotate(dot.label + (' (ours)' if dot.ours else ''), (x, dot.score), color=colour, fontsize=6.5,
                textcoords='offset points', xytext=(0, side * away) if side else (away, 0),
                ha='center' if side else 'left', va={1: 'bottom', 0: 'center', -1: 'top'}[side])


def area(parameters: Sequence[float]) -> np.ndarray:
    """Square points of a dot: 20 for a million parameters, 4 at least, so that it can be seen."""
    return np.maximum(20e-6 * np.asarray(parameters), 4.)
