"""Where a method's lead comes from, and how it moves: by image, by uncertainty, by budget, stage 1's share and network.

The UDL paper says that the loss helps where texture and edges are. Two looks at that: the gain of each image against
its share of textured pixels, and the error in each tenth of the pixels when they are ordered by s. All of it is
computed from what tests and comparisons leave: records, pictures, maps of s. The definitions here are ours.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from udl_basicsr.experiments.statistics import SAMPLES, paired_difference, scores_matrix
from udl_basicsr.functional.uncertainty import spearman
from udl_basicsr.utils.metric_facts import MetricFacts
from udl_basicsr.utils.scores import ScoresError, metric_facts

from .figures import WIDTH, new_figure, save
from .pictures import Run, read_partner, same_size
from .plots import BETTER, COLOURS, GRAY, WORSE, tidy

STEEP = 16.
"""Grey levels from a pixel to its lower and right neighbour (eq. 11 of the UDL paper) from which on it is textured."""
LUMA = np.array([0.299, 0.587, 0.114])
TENTHS = 10
AXES = {'budget': 'iterations in all', 'share': 'share of stage 1', 'parameters': 'parameters of the network',
        'scale': 'scale'}


# ---------------------------------------------------------------- by image

def texture_share(image: np.ndarray, steep: float = STEEP) -> float:
    """The share of pixels whose gradient of luma is at least ``steep``, in [0, 1].

    Args:
        image (ndarray): (H, W, 3) uint8 RGB.
        steep (float): In grey levels a pixel.
    """
    luma = image.astype(np.float64) @ LUMA
    down, right = np.diff(luma, axis=0)[:, :-1], np.diff(luma, axis=1)[:-1]
    return float((np.hypot(down, right) >= steep).mean())


class Gains(NamedTuple):
    """Of each image of a data set: its share of textured pixels, and by how much a method is ahead on it."""
    images: list[str]
    shares: np.ndarray  # (I,), in [0, 1]
    gains: np.ndarray  # (I,), mean over seeds, in units of the metric, positive where the method is better
    correlation: float  # Spearman's, of the two
    low: float  # its interval of 95 %: bootstrap over images
    high: float
    facts: MetricFacts  # of the metric


def gains_by_texture(records: Sequence[Mapping], method: str, dataset: str, gt: str | Path, metric: str = 'psnr',
                     scale: int = 4, reference: str | None = None, steep: float = STEEP) -> Gains:
    """The gain of each image against its share of texture and edges.

    Args:
        records: As read by ``read_records``.
        method: Id of the method.
        dataset: Name of the test set.
        gt: Its folder of GT images.
        metric: A metric of the records.
        scale: Upscaling factor.
        reference: Id; by default the one that the records name.
        steep: See :func:`texture_share`.

    Raises:
        ScoresError: The two have no seed in common, or fewer than three images; or the metric has no direction.
        ReportError: A GT image is missing.
    """
    reference, facts = reference or records[0]['reference'], metric_facts(records, metric)
    (seeds, images, mine), (their_seeds, their_images, theirs) = (
        scores_matrix(records, name, dataset, metric, scale) for name in (method, reference))
    common = sorted({*seeds} & {*their_seeds})
    if not common or images != their_images or len(images) < 3:
        raise ScoresError(f'{method} and {reference} have {len(common)} seeds and {len(images)} images of {dataset} in '
                          'common at this scale: expected one seed and three images at least')
    gains = (mine[[seeds.index(s) for s in common]] - theirs[[their_seeds.index(s) for s in common]]).mean(axis=0)
    if not facts.sign:
        raise ScoresError(f'{metric} has no known direction: neither of the two is ahead. Say `better` in its block of '
                          'val.metrics, and test again')
    gains = facts.sign * gains
    shares = np.array([texture_share(read_partner(gt, image), steep) for image in images])
    low, high = _bootstrap_correlation(shares, gains)
    return Gains(images, shares, gains, spearman(shares, _positive(gains)), low, high, facts)


def _positive(values: np.ndarray) -> np.ndarray:
    return values - values.min() + 1  # ranks stay as they are; spearman() is made for scales, which are > 0


def _bootstrap_correlation(shares: np.ndarray, gains: np.ndarray, samples: int = 2000) -> tuple[float, float]:
    random = np.random.default_rng(0)
    chosen = random.integers(len(shares), size=(samples, len(shares)))
    found = [spearman(shares[i], _positive(gains[i])) for i in chosen]
    return float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))


# ---------------------------------------------------------------- by uncertainty

class Deciles(NamedTuple):
    """Errors of two runs in each tenth of a data set's pixels, the most certain tenth first."""
    edges: np.ndarray  # (11,) of s, natural log of θ in grey levels
    reference: np.ndarray  # (10,), mean |x − f| in grey levels
    method: np.ndarray  # (10,)
    low: np.ndarray  # (10,), of method / reference − 1: bootstrap over images, 95 %
    high: np.ndarray
    squares: np.ndarray  # (2, 10), mean squared errors of reference and method


def errors_by_decile(reference: Run, method: Run, uncertainty: Run, dataset: str, gt: str | Path) -> Deciles:
    """The mean error of two runs where the same s is low and where it is high.

    s comes from one run for both, so that both are judged on the same pixels. Errors are of luma, without a border of
    ``scale`` pixels, as PSNR is.

    Args:
        reference: Run whose pictures are there, usually L1.
        method: The same.
        uncertainty: Run whose maps of s are there.
        dataset: Name of the test set.
        gt: Its folder of GT images.

    Raises:
        ReportError: A picture or a map is missing, or of another size.
    """
    border, found = reference.scale, []
    for image in reference.images(dataset):
        target, log_scale = read_partner(gt, image), uncertainty.log_scale(dataset, image)
        pictures = {run.source: run.sr(dataset, image) for run in (reference, method)}
        same_size({'the GT': target, 'the map of s': log_scale, **pictures})
        errors = [np.abs((picture.astype(np.float64) - target) @ LUMA) for picture in pictures.values()]
        if len(errors) == 1:  # a run compared with itself
            errors *= 2
        inside = (slice(border, -border), ) * 2
        found.append(np.stack([log_scale[inside].ravel(), *(error[inside].ravel() for error in errors)]))
    edges = np.quantile(np.concatenate([f[0] for f in found]), np.linspace(0, 1, TENTHS + 1))
    # Sums for each image: (I, tenth, [pixels, |e| of the reference, |e| of the method, e² of both])
    sums = np.zeros((len(found), TENTHS, 5))
    for row, (s, a, b) in zip(sums, found, strict=True):
        tenth = np.searchsorted(edges[1:-1], s, side='right')
        for column, values in enumerate((np.ones_like(a), a, b, a * a, b * b)):
            row[:, column] = np.bincount(tenth, values, minlength=TENTHS)
    random = np.random.default_rng(0)
    drawn = random.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=SAMPLES // 5) @ sums.reshape(
        len(sums), -1)
    drawn = drawn.reshape(-1, TENTHS, 5)
    with np.errstate(invalid='ignore', divide='ignore'):
        ratios = drawn[..., 2] / drawn[..., 1] - 1
        total = sums.sum(axis=0)
        means = (total[:, 1:] / total[:, :1]).T
    return Deciles(edges, means[0], means[1], np.nanquantile(ratios, 0.025, axis=0),
                   np.nanquantile(ratios, 0.975, axis=0), means[2:])


# ---------------------------------------------------------------- by what was changed between comparisons

class Point(NamedTuple):
    """The difference of a method from the reference in one comparison."""
    x: float
    name: str  # of the comparison
    difference: dict  # see paired_difference


def lead_points(comparisons: Mapping[str, Sequence[Mapping]], method: str, dataset: str, axis: str,
                metric: str = 'psnr') -> list[Point]:
    """How a method's difference from the reference moves from one comparison to the next.

    Args:
        comparisons: Name and records of each.
        method: Id of the method.
        dataset: Name of the test set.
        axis: A key of ``AXES``, what is different between the comparisons: read from the method's records.
        metric: A metric of the records.

    Returns:
        list: By the value of ``axis``; comparisons without this method, or without a seed in common, are left out.
    """
    if axis not in AXES:
        raise ValueError(f'axis: expected one of {", ".join(AXES)}, got {axis!r}')
    points = []
    for name, records in comparisons.items():
        for scale in sorted({record['scale'] for record in records}):
            mine = [r for r in records if r['method'] == method and r['scale'] == scale]
            found = paired_difference(records, method, dataset, metric, scale) if mine else None
            if found:
                lengths = [stage['iterations'] for stage in mine[0]['stages']]
                x = {'budget': sum(lengths), 'share': lengths[0] / sum(lengths) if len(lengths) > 1 else 0.,
                     'parameters': mine[0]['parameters'], 'scale': scale}[axis]
                points.append(Point(float(x), name, found))
    return sorted(points)


# ---------------------------------------------------------------- drawn

def texture_figure(gains: Gains, label: str, dataset: str, out: str | Path, metric: str = 'psnr', width: float = WIDTH,
                   dpi: int = 150) -> Path:
    """Draws each image as a dot: its share of texture and edges, and by how much the method is ahead on it."""
    figure = new_figure(width, 0.5 * width, dpi)
    ax = figure.add_axes((0.1, 0.17, 0.87, 0.7))
    ax.axhline(0, color='black', linewidth=0.8)
    colours = [BETTER if gain > 0 else WORSE for gain in gains.gains]
    ax.scatter(100 * gains.shares, gains.gains, s=12, c=colours, linewidths=0)
    ax.set_xlabel('share of pixels with texture or an edge, %')
    gain = f'{label} − reference' if gains.facts.sign > 0 else f'reference − {label}'
    ax.set_ylabel(f'{gains.facts.title(metric)}: {gain}')
    ax.set_title(f'{dataset}: ahead on {(gains.gains > 0).sum()} of {len(gains.gains)} images; rank correlation '
                 f'{gains.correlation:.2f} [{gains.low:.2f}, {gains.high:.2f}]')
    tidy(ax)
    return save(figure, out)


def deciles_figure(deciles: Deciles, labels: Sequence[str], dataset: str, out: str | Path, width: float = WIDTH,
                   dpi: int = 150) -> Path:
    """Draws the errors of two runs by tenths of s, and by how many per cent the second one's is smaller."""
    figure = new_figure(width, 0.42 * width, dpi)
    left, right = figure.add_axes((0.075, 0.2, 0.4, 0.68)), figure.add_axes((0.58, 0.2, 0.4, 0.68))
    tenths = np.arange(1, TENTHS + 1)
    for values, label, colour in zip((deciles.reference, deciles.method), labels, ('black', COLOURS[0]), strict=True):
        left.plot(tenths, values, 'o-', markersize=3, linewidth=1, color=colour, label=label)
    left.set_ylabel('mean |x − f|, grey levels')
    left.legend(fontsize=6.5, frameon=False)
    left.set_title(dataset)
    change = 100 * (deciles.method / deciles.reference - 1)
    ends = 100 * np.stack([deciles.low, deciles.high])
    colours = [BETTER if high < 0 else WORSE if low > 0 else GRAY for low, high in ends.T]
    right.axhline(0, color='black', linewidth=0.8)
    right.vlines(tenths, *ends, color=colours, linewidth=1.6)
    right.scatter(tenths, change, s=14, c=colours, zorder=3)
    right.set_ylabel('change of the error, %')
    right.set_title(f'{labels[1]} against {labels[0]}')
    for ax in (left, right):
        ax.set_xlabel('tenths of the pixels by s, the most certain first')
        ax.set_xticks(tenths)
        tidy(ax)
    return save(figure, out)


def lead_figure(series: Mapping[str, Iterable[Point]], axis: str, label: str, out: str | Path, metric: str = 'psnr',
                width: float = WIDTH, dpi: int = 150) -> Path:
    """Draws differences with their intervals of 95 % (bootstrap; thin: Student's t over seeds) along an axis.

    Args:
        series: Data set and its points.
        axis: A key of ``AXES``.
        label: Of the method.
        out: The picture to write.

    Raises:
        ScoresError: There is nothing to draw.
    """
    series = {name: list(points) for name, points in series.items()}
    if not any(series.values()):
        raise ScoresError('nothing to draw: expected comparisons in which the method and the reference share a seed')
    figure = new_figure(width, 0.5 * width, dpi)
    ax = figure.add_axes((0.1, 0.17, 0.87, 0.7))
    ax.axhline(0, color='black', linewidth=0.8)
    ratio = axis in ('budget', 'parameters')
    for number, (name, points) in enumerate(series.items()):
        shift = (number - (len(series) - 1) / 2) * 0.03
        span = max(p.x for p in points) - min(p.x for p in points) or 1.
        x = np.array([p.x * (1 + shift) if ratio else p.x + shift * span for p in points])
        colour = COLOURS[number % len(COLOURS)]
        ax.plot(x, [p.difference['mean'] for p in points], 'o-', markersize=3.5, linewidth=1, color=colour, label=name)
        for key, thick in (('', 1.8), ('seed_', 0.6)):
            ax.vlines(x, [p.difference[f'{key}low'] for p in points], [p.difference[f'{key}high'] for p in points],
                      color=colour, linewidth=thick)
    if ratio:
        ax.set_xscale('log')
        ticks = sorted({p.x for points in series.values() for p in points})
        ax.set_xticks(ticks, [f'{tick:,.0f}' for tick in ticks])
        ax.minorticks_off()
    seen = [p.difference[end] for points in series.values() for p in points for end in ('low', 'high')]
    margin = 0.3 * (max(*seen, 0) - min(*seen, 0)) + 1e-9  # t of two seeds is far wider, and may leave the picture
    ax.set_ylim(min(*seen, 0) - margin, max(*seen, 0) + margin)
    ax.set_xlabel(AXES[axis])
    facts = next(p.difference['facts'] for points in series.values() for p in points)
    ax.set_ylabel(f'{facts.title(metric)}: {label} − reference')
    ax.legend(fontsize=6.5, frameon=False)
    tidy(ax)
    return save(figure, out)
