"""What networks reach and what they cost: figure 4 of Revisiting L1, from the papers' tables and ours."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from matplotlib.transforms import Bbox

from udl_basicsr.experiments.printed import parse_amount
from udl_basicsr.utils.metric_facts import facts_by_name
from udl_basicsr.utils.scores import ScoresError

from .figures import FONT, WIDTH, framed, save
from .method_styles import COLOURS
from .paper_rows import PaperTable
from .plots import tidy
from .text_lines import text_inches

UNITS = {'runtime': ('run time, ms', 1.), 'macs': ('multiply-accumulate operations, G', 1e9)}

_SIZE = FONT - 0.5


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
    size = {'runtime': 'as their tables say', 'macs': '1280×720 pixels'}[cost]
    least, most = (end(dot.parameters for dot in dots) / 1e6 for end in (min, max))
    figure = framed(width, 0.56 * width, dpi, f'{dataset} ×{scale}: what networks reach and what they cost',
                    f'The area of a dot is the number of parameters, {least:.2f}M to {most:.2f}M. Hollow: printed in '
                    'the papers; filled: ours. A line joins the losses of one network.')
    ax = figure.subplots()
    colours = {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(dict.fromkeys(dot.network for dot in dots))}
    for name, colour in colours.items():
        mine = [dot for dot in dots if dot.network == name]
        for ours in (False, True):
            group = [dot for dot in mine if dot.ours == ours]
            ax.plot([dot.cost / unit for dot in group], [dot.score for dot in group], color=colour, linewidth=0.8)
            ax.scatter([dot.cost / unit for dot in group], [dot.score for dot in group],
                       s=area([dot.parameters for dot in group]), edgecolors=colour, linewidths=1.2,
                       facecolors=colour if ours else 'white', zorder=3)
    ax.set_xscale('log')
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(StrMethodFormatter('{x:g}'))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.margins(0.12)
    ax.set(xlabel=f'{head} ({size})', ylabel=facts_by_name(metric).axis(metric))
    tidy(ax)
    _names(figure, ax, dots, unit, colours)
    return save(figure, out)


def _names(figure: Figure, ax: Axes, dots: Sequence[Dot], unit: float, colours: Mapping[str, str]) -> None:
    """Writes at each dot what it is, at the first place near it that is free, the largest dots first."""
    figure.draw_without_rendering()  # after which it is known where the axes lie
    inside = ax.get_window_extent()
    pixels = figure.dpi / 72
    centres = {dot: ax.transData.transform((dot.cost / unit, dot.score)) for dot in dots}
    radii = {dot: pixels * (float(np.sqrt(area([dot.parameters])[0] / np.pi)) + 1) for dot in dots}
    taken = [Bbox.from_extents(*(centres[dot] - radii[dot]), *(centres[dot] + radii[dot])) for dot in dots]
    for dot in sorted(dots, key=lambda d: -d.parameters):
        text = dot.label + (' (ours)' if dot.ours else '')
        size = np.array([text_inches(text, _SIZE) * figure.dpi, 1.25 * _SIZE * pixels])
        places = []
        for away in (1., 2., 3.5):
            reach = radii[dot] + pixels * (2 + 4 * (away - 1))
            for x, y in ((1, 0), (0, 1), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)):
                middle = centres[dot] + np.array([x, y]) * (reach + size / 2)
                box = Bbox.from_extents(*(middle - size / 2), *(middle + size / 2))
                covered = sum(max(shared.width * shared.height, 1) for other in taken
                              if (shared := Bbox.intersection(box, other)))
                outside = not inside.contains(*box.min) or not inside.contains(*box.max)
                places.append((covered + 1e6 * outside, middle, box))
        _, middle, box = min(places, key=lambda place: place[0])  # the first of those that cover least
        taken.append(box)
        ax.annotate(text, (dot.cost / unit, dot.score), (middle - centres[dot]) / pixels, fontsize=_SIZE, ha='center',
                    va='center', textcoords='offset points', color=colours[dot.network],
                    arrowprops={'arrowstyle': '-', 'linewidth': 0.4, 'color': colours[dot.network], 'shrinkB': 2}
                    if np.hypot(*(middle - centres[dot])) > radii[dot] + size.max() else None)


def area(parameters: Sequence[float]) -> np.ndarray:
    """Square points of a dot: 20 for a million parameters, 4 at least, so that it can be seen."""
    return np.maximum(20e-6 * np.asarray(parameters), 4.)
