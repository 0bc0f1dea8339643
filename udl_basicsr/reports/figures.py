"""Figures of super-resolved photographs, computed from plain arrays and drawn without a display."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

# kind of map → colour map and what its colour bar says
MAPS = {'error': ('inferno', '|error|, grey levels'), 'scale': ('viridis', 'uncertainty θ, grey levels')}
MARK = '#00d9ff'  # found in few photographs


@dataclass(frozen=True)
class Panel:
    """One picture of a figure.

    Attributes:
        title: Printed above it; may have two lines.
        image: (H, W, 3) uint8 RGB for the kind `image`, else a map (H, W) of non-negative numbers.
        kind: `image`, `error` or `scale`. Maps of one kind share their colours, so that they can be compared.
    """
    title: str
    image: np.ndarray
    kind: str = 'image'

    def __post_init__(self):
        if self.kind != 'image' and self.kind not in MAPS:
            raise ValueError(f'panel {self.title!r}: unknown kind {self.kind!r}, expected image, {" or ".join(MAPS)}')
        if self.kind == 'image' and (self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8):
            raise ValueError(f'panel {self.title!r}: expected an (H, W, 3) uint8 image, '
                             f'got {self.image.shape} {self.image.dtype}')
        if self.kind in MAPS and self.image.ndim != 2:
            raise ValueError(f'panel {self.title!r}: expected an (H, W) map, got {self.image.shape}')


def nearest(lq: np.ndarray, scale: int) -> np.ndarray:
    """Enlarges an image by repeating its pixels: what a low-resolution image looks like at the size of the others."""
    return lq.repeat(scale, axis=0).repeat(scale, axis=1)


def error_map(sr: np.ndarray, gt: np.ndarray) -> np.ndarray:
    """|SR − GT| in grey levels, mean over the channels: two (H, W, 3) uint8 images to (H, W)."""
    if sr.shape != gt.shape:
        raise ValueError(f'expected two images of the same size, got {sr.shape} and {gt.shape}')
    return np.abs(sr.astype(np.float64) - gt).mean(axis=2)


def scale_map(log_scale: np.ndarray) -> np.ndarray:
    """θ = exp(s), the Laplace scale in grey levels, mean over the channels: (H, W) or (H, W, C) to (H, W)."""
    theta = np.exp(log_scale.astype(np.float64))
    return theta if theta.ndim == 2 else theta.mean(axis=2)


def busiest_box(image: np.ndarray, size: int, step: int = 8) -> tuple[int, int, int, int]:
    """The square with the most detail, by the mean gradient magnitude of the gray image.

    Args:
        image: (H, W, 3).
        size: Side of the square, at most the image's shorter side.
        step: Distance between the squares that are looked at.

    Returns:
        (left, top, width, height).
    """
    size = min(size, *image.shape[:2])
    rows, columns = np.gradient(image.astype(np.float64).mean(axis=2))
    total = np.pad(np.hypot(rows, columns).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = total[size:, size:] - total[:-size, size:] - total[size:, :-size] + total[:-size, :-size]
    top, left = np.unravel_index(sums[::step, ::step].argmax(), sums[::step, ::step].shape)
    return int(left) * step, int(top) * step, size, size


def _norm(kind: str, values: np.ndarray) -> Normalize:
    """From values to colours; a few pixels far off must not darken all others.

    θ spans orders of magnitude between sky and edges, so its colours are logarithmic.
    """
    low, high = np.percentile(values, [0.5, 99.9])
    if kind == 'scale':
        low = max(low, 1e-3)
        return LogNorm(low, max(high, 1.01 * low), clip=True)
    return Normalize(0, max(high, 1e-6))


def comparison_figure(panels: Sequence[Panel], box: tuple[int, int, int, int], out: str | Path,
                      whole: Sequence[Panel] = (), columns: int | None = None, title: str = '',
                      dpi: int = 150) -> Path:
    """Draws whole pictures with a box marked, and beside them what is in that box, panel by panel.

    Args:
        panels: All of the same height and width; shown cropped to the box, row by row.
        box: (left, top, width, height) in pixels of the panels.
        out: The picture to write; the format follows the ending.
        whole: Panels shown in full, one above the other in the first column; the first panel when empty.
        columns: Columns of crops; by default as many as make two rows.
        title: Above everything.
        dpi: Resolution of a PNG; a crop is 2 inches wide.

    Returns:
        Path: `out`.

    Raises:
        ValueError: No panels, panels of different sizes, or a box that does not lie within them.
    """
    panels, whole = list(panels), list(whole) or list(panels[:1])
    if not panels:
        raise ValueError('a figure needs at least one panel')
    sizes = {panel.image.shape[:2] for panel in [*panels, *whole]}
    if len(sizes) > 1:
        raise ValueError(f'all panels should have the same size, got {sorted(sizes)}')
    height, width = sizes.pop()
    left, top, box_width, box_height = box
    if min(left, top) < 0 or min(box_width, box_height) < 1 or left + box_width > width or top + box_height > height:
        raise ValueError(f'the box {box} does not lie within the {width}×{height} image')

    columns = columns or max(1, (len(panels) + 1) // 2)
    rows = max(-(-len(panels) // columns), len(whole))
    cell = 2.  # inches, the width of a crop
    tall = cell * box_height / box_width
    wide = tall * width / height  # whole pictures are as tall as a crop
    gap, head, bar = 0.10, 0.42, 0.58
    top_margin = 0.45 if title else 0.1
    kinds = [kind for kind in MAPS if any(panel.kind == kind for panel in [*panels, *whole])]
    figure_width = gap + wide + columns * (cell + gap) + gap + len(kinds) * (bar + 0.25)
    figure_height = top_margin + rows * (tall + head) + gap
    figure = Figure(figsize=(figure_width, figure_height), dpi=dpi, facecolor='white')
    FigureCanvasAgg(figure)

    def axes(x: float, row: float, w: float, h: float):
        y = figure_height - top_margin - row * (tall + head) - head - h
        return figure.add_axes((x / figure_width, y / figure_height, w / figure_width, h / figure_height))

    norms = {kind: _norm(kind, np.stack([p.image for p in [*panels, *whole] if p.kind == kind])) for kind in kinds}
    drawn = {}

    def draw(ax, panel: Panel, image: np.ndarray) -> None:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set(linewidth=0.6, color='#666666')
        if panel.kind == 'image':
            ax.imshow(image, interpolation='nearest')
        else:
            drawn[panel.kind] = ax.imshow(image, cmap=MAPS[panel.kind][0], norm=norms[panel.kind],
                                          interpolation='nearest')
        ax.set_title(panel.title, fontsize=8.5, pad=4, linespacing=1.15)

    for row, panel in enumerate(whole):
        ax = axes(gap, row, wide, tall)
        draw(ax, panel, panel.image)
        mark = Rectangle((left - 0.5, top - 0.5), box_width, box_height, fill=False, edgecolor=MARK, linewidth=1.4)
        mark.set_path_effects([Stroke(linewidth=2.6, foreground='black'), Normal()])
        ax.add_patch(mark)
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        ax = axes(2 * gap + wide + column * (cell + gap), row, cell, tall)
        draw(ax, panel, panel.image[top:top + box_height, left:left + box_width])
        ax.spines[:].set(linewidth=1.4, color=MARK)
    for number, kind in enumerate(kinds):
        x = 2 * gap + wide + columns * (cell + gap) + number * (bar + 0.25)
        ax = axes(x, 0, 0.11, tall + (rows - 1) * (tall + head))
        colour_bar = figure.colorbar(drawn[kind], cax=ax, extend='max' if kind == 'error' else 'both')
        if kind == 'scale':
            colour_bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            colour_bar.ax.yaxis.set_minor_locator(NullLocator())
            colour_bar.ax.yaxis.set_major_formatter(StrMethodFormatter('{x:g}'))
        colour_bar.set_label(MAPS[kind][1], fontsize=8)
        colour_bar.ax.tick_params(labelsize=7, length=2)
        colour_bar.outline.set_linewidth(0.6)
    if title:
        figure.suptitle(title, x=gap / figure_width, y=1 - 0.12 / figure_height, ha='left', va='top', fontsize=11,
                        fontweight='bold')
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=dpi)
    return out
