"""Where a method's lead comes from: from which images, and from which pixels.

The UDL paper says that the loss helps where texture and edges are. Two looks at that: the gain of each image against
its texture, and the errors in each tenth of the pixels when they are ordered by s. All of it is computed from what
tests and comparisons leave: records, pictures, maps of s. The definitions are ours
(:mod:`udl_basicsr.functional.attribution`).
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from udl_basicsr.experiments.record_files import Record
from udl_basicsr.experiments.statistics import paired_scores
from udl_basicsr.functional import attribution
from udl_basicsr.utils.metric_facts import MetricFacts
from udl_basicsr.utils.scores import ScoresError, metric_facts
from udl_basicsr.utils.text import signed

from .figures import FONT, WIDTH, framed, save
from .method_styles import BETTER, COLOURS, GRAY, WORSE
from .pictures import Run, comparable, read_partner, same_size
from .plots import P95, seeds_told, tidy

TENTHS = 10
MEASURES = {'share': 'pixels with texture or an edge, %', 'gradient': 'mean gradient of luma, grey levels'}


# ---------------------------------------------------------------- by image

class Gains(NamedTuple):
    """Of each image of a data set: how much texture it has, and by how much a method is ahead on it."""
    images: list[str]
    gains: np.ndarray  # (I,), mean over seeds, in units of the metric, positive where the method is better
    texture: dict[str, np.ndarray]  # a measure of MEASURES: (I,)
    correlations: dict[str, tuple[float, float, float]]  # Spearman's with the gains, and its interval over images
    facts: MetricFacts  # of the metric
    seeds: int

    def numbers(self) -> dict[str, Any]:
        """For a JSON file."""
        return {'seeds': self.seeds, 'ahead': int((self.gains > 0).sum()), 'of': len(self.images),
                'mean gain': float(self.gains.mean()),
                'rank correlation': {m: dict(zip(('value', 'low', 'high'), c, strict=True))
                                     for m, c in self.correlations.items()},
                'images': {name: {'gain': float(gain), **{m: float(v[i]) for m, v in self.texture.items()}}
                           for i, (name, gain) in enumerate(zip(self.images, self.gains, strict=True))}}


def gains_by_texture(records: Sequence[Record], method: str, dataset: str, gt: str | Path, metric: str = 'psnr',
                     scale: int = 4, reference: str | None = None, steep: float = attribution.STEEP) -> Gains:
    """The gain of each image against its texture.

    Args:
        records: As read by ``read_records``.
        method: Id of the method.
        dataset: Name of the test set.
        gt: Its folder of GT images.
        metric: A metric of the records.
        scale: Upscaling factor.
        reference: Id; by default the one that the records name.
        steep: See :func:`~udl_basicsr.functional.attribution.texture_share`.

    Raises:
        ScoresError: The two have no seed in common, or fewer than three images; or the metric has no direction.
        ReportError: A GT image is missing.
    """
    reference, facts = reference or records[0].reference, metric_facts(records, metric)
    common, both, difference = paired_scores(records, method, reference, dataset, metric, scale)
    if not common or len(both) < 3:
        raise ScoresError(f'{method} and {reference} have {len(common)} seeds and {len(both)} images of {dataset} in '
                          f'common at this scale, with {metric}: expected one seed and three images at least')
    if not facts.sign:
        raise ScoresError(f'{metric} has no known direction: neither of the two is ahead. Say `better` in its block of '
                          'val.metrics, and test again')
    gains = facts.sign * difference.mean(axis=0)
    pictures = [read_partner(gt, image) for image in both]
    texture = {'share': np.array([attribution.texture_share(picture, steep) for picture in pictures]),
               'gradient': np.array([attribution.luma_gradient(picture).mean() for picture in pictures])}
    correlations = {name: attribution.rank_correlation_interval(values, gains) for name, values in texture.items()}
    return Gains(both, gains, texture, correlations, facts, len(common))


def texture_figure(gains: Gains, labels: Sequence[str], dataset: str, out: str | Path, metric: str = 'psnr',
                   width: float = WIDTH, dpi: int = 150) -> Path:
    """Draws each image as a dot: how much texture it has, and by how much the method is ahead on it.

    Args:
        gains: See :func:`gains_by_texture`.
        labels: Of the reference and of the method.
        dataset, metric: Of the gains.
        out: The picture to write; the format follows the ending.
    """
    ahead = f'{labels[1]} is ahead of {labels[0]} on {(gains.gains > 0).sum()} of {len(gains.gains)} images'
    figure = framed(width, 0.38 * width, dpi, f'{dataset}, {metric.upper()}: {ahead}, {seeds_told([gains.seeds])}',
                    f'A dot is an image; above 0, in blue, {labels[1]} is better. Rank correlations are '
                    f"Spearman's, with {P95} by a bootstrap over the images.")
    colours = [BETTER if gain > 0 else WORSE for gain in gains.gains]
    mine, theirs = labels[::-1] if gains.facts.sign > 0 else labels
    axes = figure.subplots(1, 2, sharey=True)
    for ax, (name, told) in zip(axes, MEASURES.items(), strict=True):
        ax.axhline(0, color='black', linewidth=0.8)
        ax.scatter((100 if name == 'share' else 1) * gains.texture[name], gains.gains, s=12, c=colours, linewidths=0)
        value, low, high = (signed(v, 2) for v in gains.correlations[name])
        ax.set(xlabel=told, title=f'rank correlation {value} [{low}, {high}]')
        tidy(ax)
    axes[0].set_ylabel(f'{gains.facts.title(metric)}: {mine} minus {theirs}{gains.facts.in_unit}')
    return save(figure, out)


# ---------------------------------------------------------------- by uncertainty

class Deciles(NamedTuple):
    """Errors of two runs in each tenth of a data set's pixels, the most certain tenth first; (10,) each."""
    images: int
    edges: np.ndarray  # (11,) of s, natural log of θ in grey levels
    reference: np.ndarray  # mean |x − f| of luma in grey levels
    method: np.ndarray
    error: attribution.Change  # of the mean |x − f|: method / reference − 1, with its interval over images
    square: attribution.Change  # the same of the mean squared error
    saved: attribution.Change  # the share of the reference's whole squared error that the method saves in this tenth

    def numbers(self) -> dict[str, Any]:
        """For a JSON file."""
        columns = {'mean |x - f|, reference': self.reference, 'mean |x - f|, method': self.method,
                   **{f'{name}, {part}': values for name, change in (
                       ('change of |x - f|', self.error), ('change of its square', self.square),
                       ('share of the squared error saved', self.saved))
                      for part, values in change._asdict().items()}}
        return {'images': self.images, 's, ends of the tenths': [float(v) for v in self.edges],
                'saved of the squared error, in all': float(self.saved.value.sum()),
                **{name: [float(v) for v in values] for name, values in columns.items()}}


def errors_by_decile(reference: Run, method: Run, uncertainty: Run, dataset: str, gt: str | Path) -> Deciles:
    """The mean error of two runs where the same s is low and where it is high.

    s comes from one run for both, so that both are judged on the same pixels. Errors are of luma, without a border of
    ``scale`` pixels, as PSNR is; of Y, which spans 219 of the 255 grey levels, where one run restored Y alone.

    Args:
        reference: Run whose pictures are there, usually L1.
        method: The same.
        uncertainty: Run whose maps of s are there.
        dataset: Name of the test set.
        gt: Its folder of GT images.

    Raises:
        ReportError: A picture or a map is missing, or of another size.
    """
    inside, found = (slice(reference.scale, -reference.scale), ) * 2, []
    for image in reference.images(dataset):
        target, log_scale = read_partner(gt, image), uncertainty.log_scale(dataset, image)
        pictures, (target, ) = comparable([run.sr(dataset, image) for run in (reference, method)], target)
        same_size({'the GT': target, 'the map of s': log_scale, f'{reference.source}': pictures[0],
                   f'{method.source} ': pictures[1]})
        found.append([log_scale[inside].astype(np.float32),
                      *(attribution.luma_error(picture, target)[inside].astype(np.float32) for picture in pictures)])
    edges = np.quantile(np.concatenate([s.ravel() for s, *_ in found]), np.linspace(0, 1, TENTHS + 1))
    sums = [attribution.error_sums(s, a.astype(np.float64), b.astype(np.float64), edges[1:-1]) for s, a, b in found]
    pixels, ours, theirs = (np.sum([getattr(one, name) for one in sums], axis=0)
                            for name in ('pixels', 'method', 'reference'))
    with np.errstate(invalid='ignore'):  # s of one value: some tenths are empty
        return Deciles(len(found), edges, theirs / pixels, ours / pixels, *attribution.error_changes(sums))


def deciles_figure(deciles: Deciles, labels: Sequence[str], dataset: str, out: str | Path, width: float = WIDTH,
                   dpi: int = 150, seed: int = 0) -> Path:
    """Draws the errors of two runs by tenths of s: the errors, their change, and where squared error was saved.

    Args:
        deciles: See :func:`errors_by_decile`.
        labels: Of the reference and of the method.
        dataset: Of the errors.
        out: The picture to write; the format follows the ending.
        width: In inches.
        dpi: Resolution of a PNG.
        seed: Of both runs.
    """
    figure = framed(width, 0.36 * width, dpi, f'{dataset}, {deciles.images} images, seed {seed}: {labels[1]} beside '
                    f'{labels[0]}, by tenths of the pixels',
                    f'Tenth 1 has the smallest s, the most certain pixels. Bars: {P95} by a bootstrap over the images. '
                    f'Blue: {labels[1]} has less error; orange: more; hollow: not decided.')
    axes, tenths = figure.subplots(1, 3), np.arange(1, TENTHS + 1)
    for values, label, colour, look in zip((deciles.reference, deciles.method), labels, ('black', COLOURS[0]),
                                           ('o-', 's--'), strict=True):
        axes[0].plot(tenths, values, look, markersize=3, linewidth=1, color=colour, label=label)
    axes[0].set(ylabel='mean |x − f|, grey levels', title='error', ylim=(0, None))
    axes[0].legend(fontsize=FONT - 0.5, frameon=False)
    for ax, change, told in ((axes[1], deciles.error, 'change of mean |x − f|, %'),
                             (axes[2], deciles.saved, f"saved, % of {labels[0]}'s squared error")):
        sign = -1 if change is deciles.saved else 1  # less error is better, more that is saved as well
        ends = 100 * np.stack([change.low, change.high])
        colours = [BETTER if (pair < 0).all() else WORSE if (pair > 0).all() else GRAY for pair in (sign * ends).T]
        ax.axhline(0, color='black', linewidth=0.8)
        ax.vlines(tenths, *ends, color=colours, linewidth=1.6)
        ax.scatter(tenths, 100 * change.value, s=12, edgecolors=colours, linewidths=1, zorder=3,
                   c=['white' if colour == GRAY else colour for colour in colours])
        ax.set_ylabel(told)
    axes[1].set_title('change of the error')
    axes[2].set_title(f'squared error saved: {100 * deciles.saved.value.sum():.1f} %')
    for ax in axes:
        ax.set_xlabel('tenth of the pixels by s')
        ax.set_xticks(tenths)
        tidy(ax)
    return save(figure, out)
