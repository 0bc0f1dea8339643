"""Plots for papers: intervals and training curves of a comparison, histograms of gradient variances, TLW's schedule."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from udl_basicsr.experiments.record_files import Record
from udl_basicsr.experiments.statistics import methods_of, paired_difference, value_at
from udl_basicsr.functional.image_statistics import error_map
from udl_basicsr.utils.scores import ScoresError, metric_facts
from udl_basicsr.utils.text import signed

from .figures import FONT, OUTSIDE, WIDTH, Panel, crop, draw_grid, framed, save
from .method_styles import BETTER, COLOURS, GRAY, WORSE, style_of
from .pictures import as_trained
from .text_lines import text_inches, wrapped
from .tlw import TLWMaps, TLWRun

P95 = '95\u00a0%'
"""Which stays in one line."""


def tidy(ax: Axes, grid: Literal['both', 'x', 'y'] = 'both') -> None:
    ax.grid(axis=grid, color='#e6e6e6', linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[['top', 'right']].set_visible(False)
    ax.spines[['left', 'bottom']].set_linewidth(0.6)
    ax.tick_params(labelsize=FONT - 0.5, length=2.5, width=0.6)
    for text in (ax.xaxis.label, ax.yaxis.label):
        text.set_fontsize(FONT)
    ax.title.set(fontsize=FONT + 0.5, fontweight='bold')


def log_numbers(axis: Axis) -> None:
    """Numbers an axis in logarithms, whose limits must be set before: also at 2 and 5 where it spans little."""
    low, high = axis.get_view_interval()
    if high < 20 * low:
        axis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter='{x:g}')
    axis.set_minor_formatter(NullFormatter())


def interval(ax: Axes, at: float, difference: Mapping, colour: str, vertical: bool = False) -> None:
    """Draws both intervals of a paired difference: the bootstrap's thick, Student's t thin.

    An end that lies outside the axes, whose limits must be set before, is marked with an arrow.
    """
    limits = ax.get_ylim() if vertical else ax.get_xlim()
    line = ax.vlines if vertical else ax.hlines
    for key, width, alpha in (('seed_', 0.8, 1.), ('', 2.6, 0.55)):
        low, high = difference[f'{key}low'], difference[f'{key}high']
        if low != low:  # NaN: t of one seed
            continue
        line(at, max(low, limits[0]), min(high, limits[1]), color=colour, linewidth=width, alpha=alpha)
        for end, outside, marker in ((limits[0], low < limits[0], 'v' if vertical else '<'),
                                     (limits[1], high > limits[1], '^' if vertical else '>')):
            if outside:
                ax.plot(*((at, end) if vertical else (end, at)), marker, markersize=3.5, color=colour, clip_on=False,
                        markeredgewidth=0)


def one_scale(records: Sequence[Record], scale: int | None) -> tuple[list[Record], int]:
    """The records of one scale, and that scale, which must be named where there are several (ScoresError)."""
    scales = sorted({r.scale for r in records})
    if scale is None and len(scales) > 1:
        raise ScoresError(f'the records are of the scales {", ".join(map(str, scales))}: choose one, --scale')
    scale = scales[0] if scale is None else scale
    chosen = [r for r in records if r.scale == scale]
    if not chosen:
        raise ScoresError(f'no record is of scale {scale}, they are of {", ".join(map(str, scales))}')
    return chosen, scale


def chosen_methods(records: Sequence[Record], methods: Sequence[str]) -> dict[str, str]:
    """Ids and labels of the methods asked for, of all where none is; an unknown one is refused with a ScoresError."""
    known = methods_of(records)
    unknown = [method for method in methods if method not in known]
    if unknown:
        raise ScoresError(f'no records of the method {", ".join(unknown)}. There are: {", ".join(known)}')
    return {method: known[method] for method in (methods or known)}


def seeds_told(counts: Iterable[int]) -> str:
    """``1 seed``, ``3 seeds``, ``1 to 3 seeds``."""
    counts = sorted({*counts})
    return ' to '.join(map(str, dict.fromkeys((counts[0], counts[-1])))) + f' seed{"s" * (counts[-1] > 1)}'


def network_of(records: Sequence[Record]) -> str:
    """What the network of some records is called."""
    return records[0].network_title or records[0].network


# ---------------------------------------------------------------- a comparison

def differences_figure(records: Sequence[Record], out: str | Path, metric: str = 'psnr', scale: int | None = None,
                       methods: Sequence[str] = (), width: float = WIDTH, dpi: int = 150) -> Path:
    """Draws how far each method is from the reference: a row for each method, a plot for each data set.

    The thick whisker is the bootstrap of 95 % over seeds and images, the thin one Student's t over seeds; see
    :func:`~udl_basicsr.experiments.statistics.paired_difference`. A dot is filled where both exclude 0, never for a
    single seed. Where there are several, each is a point below the whisker. Methods are ordered by their mean over the
    data sets, the best first; of a metric without direction they keep their order, and none is coloured.

    Args:
        records: As read by `read_records`.
        out: The picture to write; the format follows the ending.
        metric: A metric of the records.
        scale: Needed where the records have several.
        methods: Ids; by default all.
        width: In inches.
        dpi: Resolution of a PNG.

    Returns:
        Path: `out`.

    Raises:
        ScoresError: Nothing to compare, or an unknown metric, method or scale.
    """
    records, scale = one_scale(records, scale)
    labels = chosen_methods(records, methods)
    reference = records[0].reference
    labels.pop(reference, None)
    datasets = list(dict.fromkeys(name for r in records for name in r.datasets))
    found = {method: {name: paired_difference(records, method, name, metric, scale) for name in datasets}
             for method in labels}
    found = {method: row for method, row in found.items() if any(row.values())}
    datasets = [name for name in datasets if any(row[name] for row in found.values())]
    if not found:
        metrics = dict.fromkeys(m for r in records for d in r.datasets.values() for m in d.mean)
        raise ScoresError(f'nothing to compare with {reference} in {metric} at ×{scale}: expected another method with '
                          f'a seed in common, and one of the metrics {", ".join(metrics)}')
    facts = metric_facts(records, metric)
    sign = facts.sign
    order = sorted(found, key=lambda m: -sign * np.mean([r['mean'] for r in found[m].values() if r]))

    seeds = {m: max(r['seeds'] for r in found[m].values() if r) for m in order}
    usual = max(seeds.values())
    names = [labels[m] + ('' if seeds[m] == usual else f' ({seeds_told([seeds[m]])})') for m in order]
    reference_label = methods_of(records).get(reference, reference)
    told = (f'Dots and numbers: means over seeds and images. Thick: {P95} by a bootstrap over {seeds_told([usual])} '
            f"and the images; thin: {P95} by Student's t over the seeds. Points below: each seed."
            if usual > 1 else f'Dots and numbers: means over the images. Thick: {P95} by a bootstrap over them.')
    figure = framed(width, 0.45 + 0.185 * len(order), dpi,
                    f'{network_of(records)} ×{scale}: difference from {reference_label}, {seeds_told([usual])}',
                    f'{told} Hollow: 0 is not ruled out, or one seed.',
                    facts.axis(metric, f' minus that of {reference_label}'))
    seen = [0., *(value for results in found.values() for r in results.values() if r
                  for value in (r['low'], r['high'], *r['by_seed'].values()))]
    margin = 0.06 * (max(seen) - min(seen)) + 1e-9  # t of two seeds is far wider, and may leave the picture
    for column, (ax, dataset) in enumerate(zip(figure.subplots(1, len(datasets), squeeze=False)[0], datasets,
                                               strict=True)):
        ax.set(ylim=(len(order) - 0.4, -0.6), xlim=(min(seen) - margin, max(seen) + margin), title=dataset)
        for y, method in enumerate(order):
            if (result := found[method][dataset]) is None:
                continue
            ends = [sign * result[end] for end in ('low', 'high', 'seed_low', 'seed_high')]  # NaN: t of one seed
            colour = BETTER if all(end > 0 for end in ends) else WORSE if all(end < 0 for end in ends) else GRAY
            interval(ax, y, result, colour)
            ax.plot(result['mean'], y, 'o', markersize=4, markeredgewidth=1, color=colour,
                    markerfacecolor='white' if colour == GRAY else colour)
            if result['seeds'] > 1:
                ax.plot([*result['by_seed'].values()], [y + 0.33] * result['seeds'], '.', markersize=2.5, color=colour,
                        clip_on=False)
            ax.annotate(signed(result['mean'], facts.decimals), (1, y), (5, 0), color=colour, va='center',
                        xycoords=ax.get_yaxis_transform(), textcoords='offset points', fontsize=FONT - 0.5)
        ax.axvline(0, color='black', linewidth=0.8, zorder=0.5)
        ax.set_yticks(range(len(order)), names if column == 0 else [])
        tidy(ax, 'x')
        ax.tick_params(axis='y', length=0, labelsize=FONT)
        ax.spines['left'].set_visible(False)
    figure.draw_without_rendering()  # after which it is known how wide the plots are, and the numbers below them
    for ax in figure.axes:
        each = 1.2 * max(text_inches(label.get_text(), FONT - 0.5) for label in ax.get_xticklabels())
        ax.xaxis.set_major_locator(MaxNLocator(max(1, min(4, int(ax.get_window_extent().width / figure.dpi / each)))))
    return save(figure, out)


def validation_curves(records: Sequence[Record], method: str, dataset: str,
                      metric: str) -> dict[int, dict[int, float]]:
    """The validations of a method: seed → iteration → value; empty where there are none."""
    curves = {}
    for record in records:
        curve = record.curve.val.get(dataset, {})
        if record.method == method and metric in curve:
            curves[record.seed] = {i: value for i, value in zip(curve['iter'], curve[metric], strict=True)
                                   if value is not None}
    return curves


def curves_figure(records: Sequence[Record], dataset: str, out: str | Path, metric: str = 'psnr',
                  scale: int | None = None, methods: Sequence[str] = (), width: float = WIDTH, dpi: int = 150) -> Path:
    """Draws the validations during training, and beside them their differences from the reference, seed by seed.

    Lines are means over the seeds, bands reach from the smallest to the largest seed. The losses themselves are not
    drawn: each is in another unit.

    Args:
        records: As read by `read_records`.
        dataset: That was validated on.
        out: The picture to write; the format follows the ending.
        metric: That was validated.
        scale: Needed where the records have several.
        methods: Ids; by default all.
        width: In inches.
        dpi: Resolution of a PNG.

    Returns:
        Path: `out`.

    Raises:
        ScoresError: No such validations, or an unknown method or scale.
    """
    records, scale = one_scale(records, scale)
    labels, reference = chosen_methods(records, methods), records[0].reference
    curves = {m: curve for m in labels if (curve := validation_curves(records, m, dataset, metric))}
    if not curves:
        there = {f'{name} ({", ".join(k for k in curve if k != "iter")})' for r in records
                 for name, curve in r.curve.val.items()}
        raise ScoresError(f'no record has a curve of {metric} on {dataset}. There are: '
                          f'{", ".join(sorted(there)) or "none"}')
    base = validation_curves(records, reference, dataset, metric)
    facts, reference_label = metric_facts(records, metric), methods_of(records).get(reference, reference)
    counts = [len(by_seed) for by_seed in curves.values()]
    figure = framed(width, max(2.2, 0.155 * (len(curves) + 1)), dpi,  # as high as the names of all methods
                    f'{network_of(records)} ×{scale}: validation on {dataset}, {seeds_told(counts)}',
                    'Lines: means over the seeds; bands: from the smallest to the largest seed.'
                    if max(counts) > 1 else '')
    left, right = figure.subplots(1, 2)

    def line(ax: Axes, by_seed: Mapping[int, Mapping[int, float]], label: str, style: dict) -> None:
        points = sorted(set.intersection(*(set(curve) for curve in by_seed.values())))
        values = np.array([[curve[i] for i in points] for curve in by_seed.values()])
        if points:
            ax.plot(points, values.mean(0), linewidth=1.3, marker='o', markersize=2, label=label, **style)
            ax.fill_between(points, values.min(0), values.max(0), color=style['color'], linewidth=0,
                            alpha=min(0.12, 1 / len(curves)))

    others = [m for m in methods_of(records) if m != reference]  # of all, so that a choice keeps their colours
    for method, by_seed in curves.items():
        style = {'color': 'black', 'linestyle': '-'} if method == reference else style_of(others.index(method))
        line(left, by_seed, labels[method], style)
        paired = {seed: {i: value - there for i, value in curve.items()
                         if (there := value_at(base[seed], i)) is not None}
                  for seed, curve in by_seed.items() if seed in base}
        if method != reference and paired:
            line(right, paired, labels[method], style)
    left.set(ylabel=facts.axis(metric), xlabel='iteration', title='as validated')
    right.axhline(0, color='black', linewidth=0.8, zorder=0.5)
    right.set(xlabel='iteration', title='same seed, same iteration',
              ylabel=wrapped(f'difference from {reference_label}{facts.in_unit}', 1.7, FONT))
    for ax in (left, right):
        tidy(ax)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    handles, texts = left.get_legend_handles_labels()
    figure.legend(handles, texts, loc=OUTSIDE, fontsize=FONT, frameon=False)
    return save(figure, out)


# ---------------------------------------------------------------- TLW

def tlw_figure(run: TLWRun, maps: Sequence[TLWMaps], gt: np.ndarray, out: str | Path,
               box: tuple[int, int, int, int] | None = None, width: float = WIDTH, dpi: int = 150) -> Path:
    """Draws TLW's weights as training goes on, over the schedule of their mean.

    A column for each checkpoint: |x − f|, the weights, and a map that was drawn from them; all means over the channels.

    Args:
        run: The run.
        maps: Of some of its iterations.
        gt: x, (H, W, 3) uint8 RGB.
        out: The picture to write; the format follows the ending.
        box: Shown of each map; None for all.
        width: In inches.
        dpi: Resolution of a PNG.

    Returns:
        Path: `out`.

    Raises:
        ValueError: The box does not lie within the image, or the columns are too many.
    """
    unit, foot = 'epoch' if run.iters_per_epoch else 'iteration', 1.55

    def maps_of(kind: str, values: Iterable[np.ndarray], titles: Sequence[str] = ()) -> list[Panel]:
        named = zip(values, chain(titles, repeat('')), strict=False)  # which goes on without names
        return [Panel(title, crop(value, box), kind) for value, title in named]

    titles = [f'iteration {m.iteration}\nk = {m.k:.3f}' for m in maps]
    truth = as_trained(gt, run.options)
    figure = draw_grid([[Panel('ground truth', crop(gt, box)),
                         *maps_of('error', (error_map(m.sr, truth) for m in maps), titles)],
                        ['weights w', *maps_of('share', (m.weights.mean(2) for m in maps))],
                        ['one sample\nof relaxed\nBernoulli(w)', *maps_of('share', (m.sample.mean(2) for m in maps))]],
                       foot=foot, dpi=dpi, width=width)
    height = figure.get_figheight()
    ax = figure.add_axes((0.42 / width, 0.42 / height, 1 - 0.6 / width, (foot - 0.52) / height))
    done = np.array([run.position(m.iteration) for m in maps])
    end = max(3 * run.loss.k_tau, float(done.max()))
    steps = np.linspace(0, end, 300)
    ax.plot(steps, [run.loss.k(step) for step in steps], color=GRAY, linewidth=1.2, label=f'schedule k({unit})')
    ax.plot(done, [m.weights.mean() for m in maps], 'o', color=COLOURS[0], markersize=3.5,
            label='mean of w at the checkpoints')
    ax.set(xlabel=unit, ylabel='mean weight', xlim=(-0.01 * end, end), ylim=(0, 1))
    tidy(ax)
    ax.legend(fontsize=FONT, frameon=False, loc='lower right')
    return save(figure, out)


def layers_figure(maps: TLWMaps, out: str | Path, box: tuple[int, int, int, int] | None = None, bins: int = 50,
                  width: float = WIDTH, dpi: int = 150) -> Path:
    """Draws what each layer makes of the weights, and below it how its values are distributed (figure 4 of TLW).

    Sigmoid, FixedSum, and one sample of the relaxed Bernoulli distribution. Maps are means over the channels, the
    histograms hold every value of the whole image.

    Args:
        maps: One image at one checkpoint.
        out: The picture to write; the format follows the ending.
        box: Shown of each map; None for all.
        bins: Of the histograms, over [0, 1].
        width: In inches.
        dpi: Resolution of a PNG.

    Raises:
        ValueError: The box does not lie within the image.
    """
    layers = {'sigmoid': maps.sigmoid, f'FixedSum, k = {maps.k:.3f}': maps.weights, 'one sample': maps.sample}
    foot = 1.5
    figure = draw_grid([[Panel(f'{title}\nmean {values.mean():.3f}', crop(values.mean(2), box), 'share')
                         for title, values in layers.items()]], foot=foot, dpi=dpi, width=width)
    height, pictures = figure.get_figheight(), [ax.get_position() for ax in figure.axes[:len(layers)]]
    for number, (values, place) in enumerate(zip(layers.values(), pictures, strict=True)):
        left = 0.45 / width if number == 0 else 0.2 / width
        ax = figure.add_axes((place.x0 + left, 0.42 / height, place.width - left, (foot - 0.6) / height))
        ax.stairs(*share_histogram(values, bins), fill=True, color=COLOURS[0])
        ax.axvline(values.mean(), color='black', linewidth=0.8)
        ax.set(xlim=(0, 1), xlabel='weight', ylabel='values, %' if number == 0 else '')
        tidy(ax)
    return save(figure, out)


def share_histogram(values: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """How many per cent of the values lie in each of ``bins`` equal parts of [0, 1], and the ends of those."""
    counts, edges = np.histogram(values, bins, (0, 1))
    return 100 * counts / values.size, edges
