"""The table of judged intervals: each run in a row, each score as its mean over images with a bootstrap interval."""
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from udl_basicsr.deploy.judging import Judgement
from udl_basicsr.experiments.statistics import bootstrap_interval
from udl_basicsr.utils.files import write_text
from udl_basicsr.utils.tables import markdown_table, text_table

from .figures import FONT, WIDTH, framed, save
from .method_styles import GRAY, style_of
from .plots import tidy
from .text_lines import wrapped

FILES = 'coverage.json', 'coverage.md', 'coverage.png'
COLUMNS = {
    'coverage_predicted': ('coverage, λ = 1', 3),
    'coverage': ('coverage', 3),
    'width': ('width ↓', 2),
    'worst_quarter': ('risk of the worst quarter ↓', 3),
    'interval_score': ('interval score ↓', 2),
    'masked': ('masked ↑', 3),
    'mask_risk': ('wrong in the mask', 3),
    'ence': ('ENCE ↓', 3),
    'ence_rescaled': ('ENCE, θ rescaled ↓', 3),
    'ause': ('AUSE ↓', 4),
    'aurg': ('AURG ↑', 4),
    'crps': ('CRPS ↓', 3),
    'crps_rescaled': ('CRPS, θ rescaled ↓', 3),
}
"""Score → heading and decimals."""


def summary(judgement: Judgement) -> dict[str, tuple[float, float, float]]:
    """Of each score the mean over images and the ends of its 95 % interval."""
    found = {}
    for key in COLUMNS:
        values = np.array([[scores[key] for scores in judgement.images.values()]])
        found[key] = (float(values.mean()), *bootstrap_interval(values))
    return found


def allowed(judgement: Judgement, alpha: float) -> tuple[float, float]:
    """Between which figures theory puts the expected coverage: 1 − α and 1 − α + 2/(n + 1), which is no more than 1.

    Angelopoulos et al., Conformal Risk Control, theorems 1 and 2; the upper one for risks without jumps.
    """
    return 1 - alpha, min(1 - alpha + 2 / (min(judgement.calibrated_on) + 1), 1.)


def _tables(judgements: Sequence[Judgement]) -> list[tuple[list[str], list[list[str]]]]:
    means = {j.name: summary(j) for j in judgements}
    keys = list(COLUMNS)
    tables = []
    for part in (keys[:7], keys[7:]):
        head = ['run', *(['λ'] if part == keys[:7] else []), *(COLUMNS[key][0] for key in part)]
        rows = []
        for j in judgements:
            cells = []
            for key in part:
                digits = COLUMNS[key][1]
                mean, low, high = means[j.name][key]
                cells.append(f'{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]')
            factors = [' / '.join(f'{f:.2f}' for f in j.factors)] if part == keys[:7] else []
            rows.append([j.name, *factors, *cells])
        tables.append((head, rows))
    if shifts := list(dict.fromkeys(kind for j in judgements for kind in j.auroc)):
        tables.append((['run, AUROC of mean θ', *shifts], [
            [j.name, *(f'{j.auroc[kind]:.3f}' if kind in j.auroc else '–' for kind in shifts)] for j in judgements]))
    return tables


def format_coverage(judgements: Sequence[Judgement], protocol: str, markdown: bool = False) -> str:
    """The tables, and how it was measured."""
    table = markdown_table if markdown else text_table
    return '\n\n'.join([*(table(*part) for part in _tables(judgements)), f'{protocol}.'])


def coverage_figure(judgements: Sequence[Judgement], alpha: float, out: str | Path) -> Path:
    """Draws the coverage of each image, from the least to the best, and where the least covered one is not covered.

    Returns:
        Path: ``out``.
    """
    count, level = len(judgements), f'{100 - 100 * alpha:g}\u00a0%'
    columns = min(count, 4)
    maps = [f'map {n}' for n in range(count)]
    layout: list[Any]
    if count == 1:
        layout, tall = [['curves', *maps]], 2.4
    else:
        filled = maps + ['.'] * (-count % columns)
        # The curves and their names share a width that is a multiple of the columns of maps.
        layout = [['curves'] * 2 * columns + ['names'] * columns,
                  *([name for name in filled[at:at + columns] for _ in range(3)] for at in range(0, count, columns))]
        tall = 2.4 + 1.35 * (len(layout) - 1)
    least = dict.fromkeys(j.least_covered for j in judgements)
    images = len(judgements[0].images)
    figure = framed(WIDTH, tall, 150, f'Coverage of {level} intervals: each of {images} images, and where the least '
                    'covered one is not covered',
                    f'Coverage: the share of the values of an image that lie inside their intervals; {level} (dotted) '
                    f'is promised on average. The map is of {", ".join(least)}, in blocks of 16×16 pixels.')
    axes = figure.subplot_mosaic(layout, height_ratios=[2.4, *([1.35] * (len(layout) - 1))] if count > 1 else None)
    for number, judgement in enumerate(judgements):
        axes['curves'].plot(sorted(scores['coverage'] for scores in judgement.images.values()), linewidth=1.2,
                            label=wrapped(judgement.name, 1.6, FONT), **style_of(number))
    axes['curves'].axhline(1 - alpha, color=GRAY, linewidth=1, linestyle=':', label='promised')
    axes['curves'].set(xlabel='images, the least covered first', ylabel='coverage of the image')
    tidy(axes['curves'])
    if count > 1:
        axes['names'].set_axis_off()
        axes['names'].legend(*axes['curves'].get_legend_handles_labels(), fontsize=FONT, frameon=False,
                             loc='center left', borderaxespad=0)
    for name, judgement in zip(maps, judgements, strict=True):
        drawn = axes[name].imshow(judgement.coverage_map, cmap='viridis', vmin=0, vmax=1)
        axes[name].set(xticks=[], yticks=[], title=wrapped(judgement.name + (
            f': {judgement.least_covered}' if len(least) > 1 else ''), 0.8 * WIDTH / max(columns, 2), FONT))
        axes[name].title.set_fontsize(FONT)
    bar = figure.colorbar(drawn, ax=[axes[name] for name in maps], shrink=0.8, pad=0.02)
    bar.set_label('coverage', fontsize=FONT)
    bar.ax.tick_params(labelsize=FONT - 0.5)
    return save(figure, out)


def write_coverage(judgements: Sequence[Judgement], protocol: str, alpha: float, folder: str | Path) -> list[Path]:
    """Writes coverage.json, with the scores of each image, coverage.md and coverage.png.

    Returns:
        The files.
    """
    content = {'protocol': protocol, 'runs': [asdict(j) for j in judgements]}
    numbers, table, figure = (Path(folder) / name for name in FILES)
    return [write_text(numbers, json.dumps(content, indent=1, ensure_ascii=False) + '\n'),
            write_text(table, format_coverage(judgements, protocol, markdown=True) + '\n'),
            coverage_figure(judgements, alpha, figure)]
