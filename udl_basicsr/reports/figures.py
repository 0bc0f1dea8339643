"""Figures of super-resolved photographs: pictures and maps beside one another, drawn without a display.

What is drawn is computed in `functional.image_statistics`; curves, histograms and intervals are drawn in `plots.py`.
"""
from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from udl_basicsr.utils.files import write_atomically

from .method_styles import GRAY
from .text_lines import wrapped

FORMATS = {'.png': {'Software': None}, '.pdf': {'CreationDate': None}, '.svg': {'Date': None}}
"""Endings of figures, and what to leave out of a file so that the same figure is the same file."""
WIDTH = 7.
"""Inches: the text of a paper with two columns."""
FONT = 7.
"""Points. 11 pixels on a page that shows the 7 inches 800 pixels wide."""
OUTSIDE: Any = 'outside center right'
"""Where the legend of a whole figure stands; matplotlib's own types do not know it."""
# kind of map → colour map, perceptually uniform and told apart by the colour-blind, and what its colour bar says
MAPS = {
    'error': ('inferno', '|error|, grey levels'),
    'scale': ('viridis', 'uncertainty θ, grey levels'),
    'log_scale': ('viridis', 's = ln θ, θ in grey levels'),
    'stretched': ('viridis', 'percentile of s in its map'),
    'weight': ('cividis', 'weight, mean\u00a0=\u00a01'),
    'share': ('cividis', 'weight w'),
    'gradient': ('RdBu_r', 'derivative of luma'),
}
LOG_SCALE_LIMITS = (-1., 5.)
"""The fixed scale of s: from the floor of ELU to θ = 148 grey levels."""
MARK = '#00d9ff'  # found in few photographs
_FRAME = {'linewidth': 0.6, 'color': '#666666'}


@dataclass(frozen=True)
class Panel:
    """One picture of a figure.

    Attributes:
        title: Printed above it; may have two lines.
        image: (H, W, 3) uint8 RGB for the kind `image`, else a map (H, W).
        kind: `image`, or one of `MAPS`. Maps of one kind share their colours, so that they can be compared:
            `log_scale` lies on a fixed scale, `stretched` and `share` in [0, 1], `gradient` around 0, the others from 0
            to almost their maximum, `scale` on a logarithmic scale.
    """
    title: str
    image: np.ndarray
    kind: str = 'image'


# ---------------------------------------------------------------- files

def check_out(out: str | Path) -> Path:
    """The file of a figure, refused with a ValueError unless its ending is one of `FORMATS`."""
    out = Path(out)
    if out.suffix.lower() not in FORMATS:
        raise ValueError(f'{out}: expected a name that ends in {", ".join(FORMATS)}')
    return out


def new_figure(width: float, height: float, dpi: int) -> Figure:
    """An empty white figure of so many inches."""
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor='white')
    FigureCanvasAgg(figure)
    return figure


def framed(width: float, height: float, dpi: int, title: str, note: str = '', axis: str = '') -> Figure:
    """An empty figure for plots, with a title above them and in gray below them how they are to be read.

    Both are broken where they are too long. The plots are laid out so that nothing that belongs to them is cut off.

    Args:
        width: Of the figure, in inches.
        height: Of the plots, in inches; title and note come on top of it.
        dpi: Resolution of a PNG.
        title: Bold, at the left.
        note: Gray and small; may be empty.
        axis: The name of an axis that all plots share, centred below them; may be empty.
    """
    edge, line = 0.06, 0.125
    title = wrapped(title, width - 2 * edge, FONT + 0.5, 'bold')
    note = wrapped(note, width - 2 * edge, FONT - 0.5)
    axis = wrapped(axis, width - 2 * edge, FONT)
    head, noted, named = (edge + line * (1 + text.count('\n')) if text else 0.
                          for text in (title, note, axis))
    whole = head + height + named + noted
    figure = new_figure(width, whole, dpi)
    figure.text(edge / width, 1 - edge / whole, title, fontsize=FONT + 0.5, fontweight='bold', va='top')
    figure.text(0.5, (noted + 0.75 * edge) / whole, axis, fontsize=FONT, ha='center', va='bottom')
    figure.text(edge / width, 0.5 * edge / whole, note, fontsize=FONT - 0.5, color=GRAY, va='bottom')
    figure.set_layout_engine('constrained', rect=(0., (noted + named) / whole, 1., height / whole))
    return figure


def save(figure: Figure, out: str | Path) -> Path:
    """Writes a figure, whole or not at all, with the fonts inside.

    Returns:
        Path: `out`.

    Raises:
        ValueError: Its ending is none of `FORMATS`, or its plots have no room beside their names.
    """
    out, content = check_out(out), io.BytesIO()
    suffix = out.suffix.lower()
    if suffix == '.png':
        for ax in figure.axes:
            for picture in ax.images:
                # Photographs alone: a map keeps its values.
                array = picture.get_array()
                if array is not None and array.ndim == 3 and array.shape[1] > ax.get_window_extent().width:
                    picture.set_interpolation('hanning')
    # Type 3 fonts, matplotlib's default, are refused by many publishers; the salt makes names of SVG elements constant.
    with matplotlib.rc_context({'pdf.fonttype': 42, 'svg.hashsalt': 'udl_basicsr'}), warnings.catch_warnings():
        warnings.filterwarnings('error', 'constrained_layout not applied')
        try:
            figure.savefig(content, format=suffix[1:], dpi=figure.dpi, metadata=FORMATS[suffix])
        except UserWarning as error:
            raise ValueError(f'the names in this figure leave no room for its plots in {figure.get_figwidth():g} '
                             'inches: give it more') from error
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, content.getvalue())
    return out


# ---------------------------------------------------------------- colours

def norm_of(kind: str, values: np.ndarray, limits: tuple[float, float] = LOG_SCALE_LIMITS) -> Normalize:
    """From values to colours; a few pixels far off must not darken all others.

    θ spans orders of magnitude between sky and edges, so its colours are logarithmic.

    Args:
        kind: One of `MAPS`.
        values: All that share the colours.
        limits: Ends of the fixed scale of `log_scale`.
    """
    if kind == 'log_scale':
        return Normalize(*limits)
    if kind in ('stretched', 'share'):
        return Normalize(0, 1)
    if kind == 'gradient':
        high = max(np.percentile(np.abs(values), 99.), 1e-6)
        return Normalize(-high, high)
    low, high = np.percentile(values, [0.5, 99. if kind == 'weight' else 99.7])
    if kind == 'scale':
        low = max(low, 1e-3)
        return LogNorm(low, max(high, 1.01 * low), clip=True)
    return Normalize(0, max(high, 1e-6))


def _norms(panels: Sequence[Panel], limits: tuple[float, float] = LOG_SCALE_LIMITS) -> dict[str, Normalize]:
    return {kind: norm_of(kind, np.stack([p.image for p in panels if p.kind == kind]), limits)
            for kind in MAPS if any(p.kind == kind for p in panels)}


def _draw(ax: Axes, panel: Panel, image: np.ndarray, norms: dict[str, Normalize], fontsize: float):
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set(**_FRAME)
    colours = {} if panel.kind == 'image' else {'cmap': MAPS[panel.kind][0], 'norm': norms[panel.kind]}
    ax.set_title(panel.title, fontsize=fontsize, pad=0.45 * fontsize, linespacing=1.15)
    return ax.imshow(image, interpolation='none', **colours)  # so that PDF and SVG hold the very pixels


def _mark(ax: Axes, box: tuple[int, int, int, int], width: float = 1.4) -> None:
    left, top, box_width, box_height = box
    mark = Rectangle((left - 0.5, top - 0.5), box_width, box_height, fill=False, edgecolor=MARK, linewidth=width)
    mark.set_path_effects([Stroke(linewidth=width + 1.2, foreground='black'), Normal()])
    ax.add_patch(mark)


def _bar(figure: Figure, ax: Axes, drawn, kind: str, fontsize: float, orientation: str = 'vertical') -> None:
    """The colour bar of a kind, in `ax`."""
    extend = {'error': 'max', 'weight': 'max', 'stretched': 'neither', 'share': 'neither'}.get(kind, 'both')
    size = ax.get_window_extent().bounds[3 if orientation == 'vertical' else 2] / figure.dpi
    bar = figure.colorbar(drawn, cax=ax, extend=extend, extendfrac=0.07 / size, orientation=orientation)
    axis = bar.ax.yaxis if orientation == 'vertical' else bar.ax.xaxis
    if kind == 'scale':
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(StrMethodFormatter('{x:g}'))
    elif kind == 'stretched':
        bar.set_ticks([0, 1], labels=['1st', '99th'])
    else:
        axis.set_major_locator(MaxNLocator(5, integer=kind in ('error', 'log_scale')))
    bar.set_label(wrapped(MAPS[kind][1], size, fontsize), fontsize=fontsize)
    bar.ax.tick_params(labelsize=fontsize - 1, length=2)
    bar.outline.set_linewidth(0.6)


def crop(image: np.ndarray, box: tuple[int, int, int, int] | None) -> np.ndarray:
    """What lies in a box (left, top, width, height), all of it for None.

    Raises:
        ValueError: The box does not lie within the image.
    """
    if box is None:
        return image
    height, width = image.shape[:2]
    left, top, box_width, box_height = box
    if min(left, top) < 0 or min(box_width, box_height) < 1 or left + box_width > width or top + box_height > height:
        raise ValueError(f'the box {box} does not lie within the {width}×{height} image')
    return image[top:top + box_height, left:left + box_width]


# ---------------------------------------------------------------- figures

def comparison_figure(panels: Sequence[Panel], box: tuple[int, int, int, int], out: str | Path,
                      whole: Sequence[Panel] = (), columns: int | None = None, title: str = '',
                      dpi: int = 150, width: float | None = None) -> Path:
    """Draws whole pictures with a box marked, and beside them what is in that box, panel by panel.

    Args:
        panels: All of the same height and width; shown cropped to the box, row by row.
        box: (left, top, width, height) in pixels of the panels.
        out: The picture to write; the format follows the ending.
        whole: Panels shown in full, one above the other in the first column; the first panel when empty.
        columns: Columns of crops; by default as many as make two rows.
        title: Above everything.
        dpi: Resolution of a PNG.
        width: Of the figure in inches; by default a crop is 2 inches wide. A single whole picture beside several rows
            is as tall as they are where a width is given.

    Returns:
        Path: `out`.

    Raises:
        ValueError: A box that does not lie within the panels, or too many columns for the width.
    """
    panels, whole = list(panels), list(whole) or list(panels[:1])
    full_height, full_width = panels[0].image.shape[:2]
    crop(panels[0].image, box)
    box_width, box_height = box[2:]

    columns = columns or max(1, (len(panels) + 1) // 2)
    rows = max(-(-len(panels) // columns), len(whole))
    font = 12. if width is None else FONT  # the wider figure is shown smaller
    gap, bar = (0.10, 1.02) if width is None else (0.06, 0.62)
    norms = _norms([*panels, *whole])
    span = rows if width is not None and len(whole) == 1 else 1  # rows that a whole picture is as tall as

    def titles(inches: float) -> list[str]:
        return [wrapped(panel.title, inches, font) for panel in panels]

    cell, fixed, head = 2., (columns + 2) * gap + len(norms) * bar, 0.
    for _ in range(2 if width is not None else 1):  # a narrower cell may need one more line above it, once
        lines = 1 + max(title.count('\n') for title in titles(cell)) if head else 2
        head = 0.09 + 1.2 * font / 72 * max(lines, 2)
        if width is not None:  # of gap + wide + columns * cell …, in which wide = (span * tall + …) * aspect
            aspect = full_width / full_height
            cell = (width - fixed - (span - 1) * head * aspect) / (columns + span * aspect * box_height / box_width)
            if cell < 0.3:
                raise ValueError(f'{columns} columns do not fit into {width} inches: give fewer panels or more rows')
    panels = [replace(panel, title=title) for panel, title in zip(panels, titles(cell), strict=True)]
    tall = cell * box_height / box_width
    wide = (span * tall + (span - 1) * head) * full_width / full_height  # whole pictures are as tall as their rows
    whole = [replace(panel, title=wrapped(panel.title, wide, font)) for panel in whole]
    top_margin = 0.45 if title else 0.02
    figure_width = fixed + wide + columns * cell
    figure_height = top_margin + rows * (tall + head) + gap
    figure = new_figure(figure_width, figure_height, dpi)

    def axes(x: float, row: float, w: float, h: float):
        y = figure_height - top_margin - row * (tall + head) - head - h
        return figure.add_axes((x / figure_width, y / figure_height, w / figure_width, h / figure_height))

    drawn = {}
    for row, panel in enumerate(whole):
        ax = axes(gap, row, wide, span * tall + (span - 1) * head)
        drawn[panel.kind] = _draw(ax, panel, panel.image, norms, font)
        _mark(ax, box)
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        ax = axes(2 * gap + wide + column * (cell + gap), row, cell, tall)
        drawn[panel.kind] = _draw(ax, panel, crop(panel.image, box), norms, font)
        ax.spines[:].set(linewidth=1.4, color=MARK)
    for number, kind in enumerate(norms):
        x = 2 * gap + wide + columns * (cell + gap) + number * bar
        _bar(figure, axes(x, 0, 0.11, tall + (rows - 1) * (tall + head)), drawn[kind], kind, font - 0.5)
    if title:
        figure.suptitle(title, x=gap / figure_width, y=1 - 0.12 / figure_height, ha='left', va='top', fontsize=11,
                        fontweight='bold')
    return save(figure, out)


def draw_grid(rows: Sequence[Sequence[Panel | str]], bars: str = 'right',
              box: tuple[int, int, int, int] | None = None, limits: tuple[float, float] = LOG_SCALE_LIMITS,
              foot: float = 0., dpi: int = 150, width: float = WIDTH) -> Figure:
    """Draws pictures and maps in rows and columns, with one colour bar for each kind of map.

    Args:
        rows: Panels of one height and width; a text is written where no picture is.
        bars: `right`: at the right of the rows in which a kind is found; `below`: beneath its columns. No two kinds may
            have a row (a column) in common.
        box: Marked in the panels of the kind `image`.
        limits: Ends of the fixed scale of `log_scale`.
        foot: Inches left empty at the bottom, for something else.
        dpi: Resolution of a PNG.
        width: Of the figure, in inches.

    Raises:
        ValueError: Too many columns for the width.
    """
    panels = [panel for row in rows for panel in row if isinstance(panel, Panel)]
    full_height, full_width = panels[0].image.shape[:2]
    norms, columns = _norms(panels, limits), max(map(len, rows))
    places = {kind: sorted({r if bars == 'right' else c for r, row in enumerate(rows) for c, panel in enumerate(row)
                            if isinstance(panel, Panel) and panel.kind == kind}) for kind in norms}

    gap, margin = 0.06, 0.02
    below = 0.04 if bars == 'right' or not norms else 0.52
    for lines, right in enumerate((0.6, 0.73, 0.86) if bars == 'right' and norms else (0.02, ), 1):
        cell = (width - margin - right - (columns - 1) * gap) / columns
        if cell < 0.3:
            raise ValueError(f'{columns} columns do not fit into {width} inches: give fewer')
        tall = cell * full_height / full_width
        if all(wrapped(MAPS[kind][1], tall * (1 + max(at) - min(at)) - 0.08, FONT).count('\n') < lines
               for kind, at in places.items()):
            break  # else the name of a bar takes one more line
    rows = [[replace(panel, title=wrapped(panel.title, cell, FONT)) if isinstance(panel, Panel) else panel
             for panel in row] for row in rows]
    heads = [max((1 + p.title.count('\n') for p in row if isinstance(p, Panel) and p.title), default=0) * 0.125 + 0.06
             for row in rows]
    figure_height = sum(heads) + len(rows) * tall + below + foot
    figure = new_figure(width, figure_height, dpi)
    tops = [sum(heads[:r + 1]) + r * tall for r in range(len(rows))]  # of the pictures, from above

    def axes(x: float, top: float, w: float, h: float) -> Axes:
        return figure.add_axes((x / width, 1 - (top + h) / figure_height, w / width, h / figure_height))

    drawn = {}
    for r, row in enumerate(rows):
        for c, panel in enumerate(row):
            x = margin + c * (cell + gap)
            if isinstance(panel, str):
                figure.text((x + cell / 2) / width, 1 - (tops[r] + tall / 2) / figure_height, panel, fontsize=FONT,
                            ha='center', va='center')
                continue
            ax = axes(x, tops[r], cell, tall)
            drawn[panel.kind] = _draw(ax, panel, panel.image, norms, FONT)
            if box is not None and panel.kind == 'image':
                _mark(ax, box, 1.)
    for kind, found in places.items():
        first, last = found[0], found[-1]
        if bars == 'right':
            ax = axes(width - right + 0.06, tops[first] + 0.04, 0.09, tops[last] + tall - tops[first] - 0.08)
            _bar(figure, ax, drawn[kind], kind, FONT)
        else:
            length = (last - first + 1) * (cell + gap) - gap
            ax = axes(margin + first * (cell + gap) + 0.06 * length, tops[-1] + tall + 0.06, 0.88 * length, 0.08)
            _bar(figure, ax, drawn[kind], kind, FONT, 'horizontal')
    return figure
