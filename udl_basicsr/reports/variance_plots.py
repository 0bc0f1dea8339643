"""Figures of the gradient variance: how much of it a run keeps, and where the peaks are."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import NullFormatter

from udl_basicsr.functional.image_statistics import log_histogram, logarithmic_edges, peaks, variance_ratio

from .figures import FONT, OUTSIDE, WIDTH, framed, save
from .method_styles import style_of
from .plots import log_numbers, tidy


def variances_figure(gt: np.ndarray, runs: Mapping[str, np.ndarray], patch_size: int, out: str | Path,
                     title: str = '', width: float = WIDTH, dpi: int = 150) -> Path:
    """Draws how often which variance of the gradient occurs, in the GT and in SR images, and how much of it is kept.

    Args:
        gt: Variances of all patches (`image_statistics.patch_variances`), flat.
        runs: The same patches of each run, by label.
        patch_size: Side of a patch, for the label.
        out: The picture to write; the format follows the ending.
        title: Of the histogram.
        width: In inches.
        dpi: Resolution of a PNG.

    Returns:
        Path: `out`.
    """
    edges = logarithmic_edges([gt, *runs.values()])
    figure = framed(width, 2.3, dpi, f'{title}: variance of the gradient'.lstrip(': '),
                    'Of the Sobel maps of luma in [0, 1], in patches, x and y together. Beside a run: its gradient '
                    'variance loss, lower is better. Variance kept: 1 is as much as in the ground truth.')
    left, right = figure.subplots(1, 2)

    def share(values: np.ndarray) -> np.ndarray:
        return 100 * log_histogram(values, edges) / values.size

    left.stairs(share(gt), edges, fill=True, color='#d0d0d0', label='ground truth')
    for number, (label, values) in enumerate(runs.items()):
        style = style_of(number)
        left.stairs(share(values), edges, linewidth=1.2, color=style['color'], linestyle=style['linestyle'])
        loss = np.mean((values - gt) ** 2)  # what GradientVarianceLoss says of these patches, x plus y
        right.plot(*variance_ratio(values, gt), linewidth=1.2, marker='o', markersize=2.5,
                   label=f'{label}: {2 * loss:.4f}', **style)
    left.set(xscale='log', xlim=(edges[0], edges[-1]), title='how often', ylabel='patches, %',
             xlabel=f'variance in {patch_size}×{patch_size} pixels')
    decades = np.log10(edges[[0, -1]]).round().astype(int)
    ticks = range(decades[0], decades[1] + 1, -(-(decades[1] - decades[0]) // 6))
    left.set_xticks([10. ** t for t in ticks], [('≤' if t == ticks[0] else '') + f'$10^{{{t}}}$' for t in ticks])
    right.axhline(1, color='black', linewidth=0.8, zorder=0.5)
    right.set(xscale='log', xlabel='variance in the ground truth', ylabel='median of SR : ground truth',
              title='variance kept', ylim=(0, max(1.1, right.get_ylim()[1])))
    left.xaxis.set_minor_formatter(NullFormatter())
    log_numbers(right.xaxis)
    for ax in (left, right):
        tidy(ax)
    handles, texts = left.get_legend_handles_labels()
    more = right.get_legend_handles_labels()
    figure.legend([*handles, *more[0]], [*texts, *more[1]], loc=OUTSIDE, fontsize=FONT, frameon=False)
    return save(figure, out)


def variance_peaks_figure(gt: np.ndarray, runs: Mapping[str, np.ndarray], patch_size: int, out: str | Path,
                          title: str = '', points: int = 400, width: float = WIDTH, dpi: int = 150) -> Path:
    """Draws the variances of the gradients patch after patch: where the GT has peaks, what the runs make of them.

    Figure 2 of the GV paper. The patches come in reading order, image after image; where there are more of them than
    can be told apart, the largest of each group of neighbours is drawn.

    Args:
        gt: Variances of all patches, (2, P): of the derivatives along x and y.
        runs: The same patches of each run, by label.
        patch_size: Side of a patch, for the label.
        out: The picture to write; the format follows the ending.
        title: Above everything.
        points: Drawn of each, at most.
        width: In inches.
        dpi: Resolution of a PNG.
    """
    shown = min(points, gt.shape[1])
    figure = framed(width, 2.5, dpi, f'{title}: variance of the gradient along the image'.lstrip(': '),
                    'Of the Sobel maps of luma in [0, 1], patch after patch in reading order' + (
                        f'; drawn is the largest of each {gt.shape[1] / shown:.0f} patches.'
                        if shown < gt.shape[1] else '.'))
    at = [group[0] for group in np.array_split(np.arange(gt.shape[1]), shown)]
    styles: list[dict[str, Any]] = [{'color': 'black'}, *map(style_of, range(len(runs)))]
    for number, (name, ax) in enumerate(zip('xy', figure.subplots(1, 2), strict=True)):
        for (label, values), style in zip([('ground truth', gt), *runs.items()], styles, strict=True):
            ax.plot(at, peaks(values[number], shown), linewidth=0.8, label=f'{label}: mean {values[number].mean():.4f}',
                    **style)
        ax.set(title=f'({"ab"[number]}) gradient along {name}', xlabel=f'patch of {patch_size}×{patch_size} pixels',
               ylabel='variance')
        ax.set_ylim(bottom=0)
        tidy(ax)
        ax.legend(fontsize=FONT - 0.5, frameon=False, loc='upper center', bbox_to_anchor=(0.5, -0.2))
    return save(figure, out)
