"""How good the uncertainty of test runs is, pooled over a data set: from the pictures that test.py saved.

With `val.save_img: true` test.py writes the SR image and `<image>_log_scale.png`: the mean of s over the channels,
clipped to [−2, 6], in 16 bits. One θ therefore stands for the three channels of a pixel; the errors are those of each.
Gray SR images are Y, and compared with Y of the GT.

θ alone decides what a Laplace or a normal distribution says, but not what a generalised Gaussian or two quantiles do.
Where the head is of these, or unknown, the scores that need a distribution are those of Laplace, and are marked.
"""
from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np
import yaml
from basicsr.utils import bgr2ycbcr
from matplotlib.ticker import LogLocator, NullLocator

from udl_basicsr.experiments.statistics import bootstrap_interval
from udl_basicsr.functional import intervals as I
from udl_basicsr.functional import uncertainty as F
from udl_basicsr.functional.densities import DENSITIES, Density
from udl_basicsr.functional.distributions import LaplaceDistribution
from udl_basicsr.functional.log_scale_maps import decode_log_scale
from udl_basicsr.metrics.uncertainty import ROUNDING, error_and_scale
from udl_basicsr.utils.files import write_text
from udl_basicsr.utils.tables import markdown_table, text_table

from .figures import FONT, WIDTH, framed, save
from .method_styles import GRAY, style_of
from .pictures import ReportError, ending_of, partner_of, read_pixels
from .plots import tidy
from .text_lines import wrapped

# score → heading and decimals
COLUMNS = {
    'factor': ('θ ×', 3),
    'log_likelihood_laplace': ('log p Laplace ↑', 4),
    'log_likelihood_gaussian': ('log p Gaussian ↑', 4),
    'sigma_psnr': ('PSNR(θ, |e|) ↑', 2),
    'ause_mae': ('AUSE MAE ↓', 4),
    'ause_rmse': ('AUSE RMSE ↓', 4),
    'spearman': ('Spearman ↑', 4),
    'calibration_error': ('calibration error ↓', 4),
    'mae': ('mean |e|', 3),
}
# score → heading and decimals, of the mean over images and its interval
BY_IMAGE = {
    'picp': ('coverage', 3),
    'width': ('width ↓', 2),
    'interval_score': ('interval score ↓', 2),
    'worst_quarter': ('risk of the worst quarter ↓', 3),
    'crps': ('CRPS ↓', 3),
    'ence': ('ENCE ↓', 3),
    'uce': ('UCE ↓', 1),
    'ause': ('AUSE ↓', 4),
    'aurg': ('AURG ↑', 4),
}
NEED_DENSITY = {'calibration_error', *BY_IMAGE} - {'ause', 'aurg'}
"""Scores that θ alone does not decide, and that do not name their density."""
MARK = '†'


@dataclass(frozen=True)
class Report:
    """The scores of one run on one data set.

    Attributes:
        name: Of the run.
        images: How many.
        values: How many values (pixels times channels) were pooled.
        scores: As predicted, keys of `COLUMNS`.
        recalibrated: With θ multiplied by `factor`.
        fractions: Shares of removed pixels in [0, 1), for `sparsification` and its `oracle` (MAE, 1 at their begin).
        levels: Expected coverages, for `coverage` and `coverage_recalibrated`.
        spread: Predicted σ in grey levels, of 20 bins of equally many values.
        rmse: The error's root mean square in each.
        by_image: Keys of `BY_IMAGE`: the mean over images and the ends of its 95 % interval.
        by_image_recalibrated: With θ multiplied by `factor`. Files of an earlier version lack what has a default.
        half_width: Mean of w in grey levels, of 20 bins of equally many values, for intervals f ± w of 1 − `alpha`.
        quantile: The error that a share 1 − `alpha` of each bin stays below.
        alpha: The share that the intervals leave out.
        head: The distribution of the head, a key of `DISTRIBUTIONS`; empty: unknown.
        density: That of the scores: the head's own, or `laplace` where θ does not decide it.
    """
    name: str
    images: int
    values: int
    scores: dict[str, float]
    recalibrated: dict[str, float]
    fractions: list[float]
    sparsification: list[float]
    oracle: list[float]
    levels: list[float]
    coverage: list[float]
    coverage_recalibrated: list[float]
    spread: list[float] = field(default_factory=list)
    rmse: list[float] = field(default_factory=list)
    by_image: dict[str, list[float]] = field(default_factory=dict)
    by_image_recalibrated: dict[str, list[float]] = field(default_factory=dict)
    half_width: list[float] = field(default_factory=list)
    quantile: list[float] = field(default_factory=list)
    alpha: float = 0.1
    head: str = ''
    density: str = LaplaceDistribution.name

    @property
    def mark(self) -> str:
        """Behind what is not said of the head's own distribution."""
        return '' if self.head == self.density else MARK


# ---------------------------------------------------------------- reading

def read_images(results: str | Path, dataset: str, gt: str | Path, crop_border: int = 0,
                share: float = 1.) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The errors and scales of the values of each image.

    Args:
        results: The folder of a test run, `results/<name>`.
        dataset: The data set's name in that test.
        gt: Folder of its HR images.
        crop_border: Pixels left out at each edge.
        share: Share of the values that is drawn at random (always the same), for sets that fill the memory.

    Yields:
        e and θ in 0–255 units, flat.

    Raises:
        ReportError: Images that are missing, ambiguous or of another size, or of which too few values are left.
    """
    folder, gt = Path(results) / 'visualization' / dataset, Path(gt)
    maps = {p.name.removesuffix('_log_scale.png'): p for p in sorted(folder.glob('*_log_scale.png'))}
    if not maps:
        raise ReportError(f'{folder} has no *_log_scale.png. Test with val.save_img: true and with '
                          'path.pretrain_network_u, so that the uncertainty is saved beside the images')
    ending, generator = ending_of(folder, maps), np.random.default_rng(0)
    for image, path in maps.items():
        sr = read_pixels(folder / f'{image}_{ending}.png', cv2.IMREAD_UNCHANGED)
        truth = read_pixels(partner_of(gt, image))
        if sr.ndim == 2:  # of a network of one channel, which has been trained with `color: y`
            truth = bgr2ycbcr(truth, y_only=True)
        levels = read_pixels(path, cv2.IMREAD_UNCHANGED)
        try:
            pair = error_and_scale(sr, truth, decode_log_scale(levels), crop_border)
        except ValueError as error:
            raise ReportError(f'{path}: {error}') from error
        drawn = generator.random(pair[0].shape) < share
        if (left := drawn.sum()) < I.BINS:
            raise ReportError(f'{path}: a share of {share:g} leaves {left} of its {drawn.size} values, expected at '
                              f'least {I.BINS}; draw a larger one, or crop less')
        yield pair[0][drawn], pair[1][drawn]


def head_of(results: str | Path) -> str:
    """The distribution of the uncertainty head of a test run, by the option file beside its scores; empty: unknown."""
    for file in sorted(Path(results).glob('*.yml'), key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            head = yaml.safe_load(file.read_text(encoding='utf-8'))['network_u'].get('head') or {}  # that is UDLHead
            return str(head.get('distribution', LaplaceDistribution.name))
        except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError):
            continue
    return ''


# ---------------------------------------------------------------- scores

def _by_image(pairs: Sequence[tuple[np.ndarray, np.ndarray]], factor: float, alpha: float,
              density: Density) -> dict[str, list[float]]:
    scores = {key: [] for key in BY_IMAGE}
    for error, scale in pairs:
        scale = factor * scale
        half = density.half_width(scale, alpha)
        for key, value in {
                'picp': I.coverage(error, half, ROUNDING), 'width': float(2 * half.mean()),
                'interval_score': I.interval_score(error, half, alpha),
                'worst_quarter': float(I.stratified_risks(error, half, rounding=ROUNDING).max()),
                'crps': density.crps(error, scale), 'ence': I.ence(error, scale, variance=density.variance),
                'uce': I.uce(error, scale, variance=density.variance),
                'ause': F.ause(error, scale), 'aurg': F.aurg(error, scale)}.items():
            scores[key].append(value)
    return {key: [float(np.mean(values)), *bootstrap_interval(np.array([values]))] for key, values in scores.items()}


def make_report(name: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]], factor: float,
                alpha: float = 0.1, head: str = '') -> Report:
    """Computes everything.

    Args:
        name: Of the run.
        pairs: :func:`read_images`.
        factor: Of the recalibration.
        alpha: Of the intervals whose coverage and width are measured.
        head: :func:`head_of`.
    """
    density = Density(head if head in DENSITIES else LaplaceDistribution.name)
    error, scale = (np.concatenate(part) for part in zip(*pairs, strict=True))
    fractions = np.arange(F.STEPS) / F.STEPS
    curves = {measure: (F.sparsification_curve(error, scale, measure=measure), F.oracle_curve(error, measure=measure))
              for measure in ('mae', 'rmse')}
    ranking = {'ause_mae': F.area_between(*curves['mae']), 'ause_rmse': F.area_between(*curves['rmse']),
               'spearman': F.spearman(error, scale)}

    def scores(c: float, observed: np.ndarray) -> dict[str, float]:
        values = {'factor': c,
                  'log_likelihood_laplace': F.laplace_log_likelihood(error, c * scale),
                  'log_likelihood_gaussian': F.predictive_log_likelihood(error, density.variance**0.5 * c * scale),
                  'sigma_psnr': F.sigma_psnr(error, c * scale),
                  'calibration_error': float(np.abs(observed - F.LEVELS).mean()), 'mae': float(error.mean()), **ranking}
        return {key: values[key] for key in COLUMNS}

    as_predicted, recalibrated = (density.calibration(error, c * scale, ROUNDING) for c in (1., factor))
    (sparsification, oracle), (spread, rmse) = curves['mae'], I.binned_spread(error, scale, variance=density.variance)
    half_width, quantile = I.binned_widths(error, density.half_width(scale, alpha), alpha, rounding=ROUNDING)
    return Report(name, len(pairs), error.size, scores(1., as_predicted), scores(factor, recalibrated),
                  fractions.tolist(), sparsification.tolist(), oracle.tolist(), F.LEVELS.tolist(),
                  as_predicted.tolist(), recalibrated.tolist(), spread.tolist(), rmse.tolist(),
                  _by_image(pairs, 1., alpha, density), _by_image(pairs, factor, alpha, density),
                  half_width.tolist(), quantile.tolist(), alpha, head, density.name)


Row = tuple[str, dict[str, float], dict[str, list[float]], Report]


def _rows(reports: Sequence[Report]) -> list[Row]:
    """As predicted and recalibrated, in turn: name, pooled scores, scores by image, and whose they are."""
    return [row for r in reports for row in (
        (r.name, r.scores, r.by_image, r), (f'{r.name}, recalibrated', r.recalibrated, r.by_image_recalibrated, r))]


def _mark(report: Report, key: str) -> str:
    return report.mark if key in NEED_DENSITY else ''


def _cells(reports: Sequence[Report]) -> tuple[list[str], list[list[str]]]:
    header = ['run', *(heading for heading, _ in COLUMNS.values())]
    return header, [[name, *(f'{scores[key]:.{digits}f}{_mark(r, key)}' for key, (_, digits) in COLUMNS.items())]
                    for name, scores, _, r in _rows(reports)]


def _image_cells(reports: Sequence[Report]) -> tuple[list[str], list[list[str]]]:
    return ['run, per image', *(heading for heading, _ in BY_IMAGE.values())], [
        [name, *('{0:.{3}f}{4} [{1:.{3}f}, {2:.{3}f}]'.format(*scores[key], digits, _mark(r, key))
                 for key, (_, digits) in BY_IMAGE.items())] for name, _, scores, r in _rows(reports)]


def footnote(reports: Sequence[Report]) -> str:
    """What the mark means, of these runs; empty where none is marked."""
    heads = dict.fromkeys(r.head.replace('_', ' ') or 'unknown' for r in reports if r.mark)
    return f'{MARK} Of a Laplace density with this θ, not of what the head says ({", ".join(heads)})' if heads else ''


def format_reports(reports: Sequence[Report], protocol: str) -> str:
    """The tables for the terminal, and how it was measured."""
    return '\n'.join([text_table(*_cells(reports)), '', text_table(*_image_cells(reports)),
                      *(f'{text}.' for text in (footnote(reports), protocol) if text)])


def write_reports(reports: Sequence[Report], protocol: str, folder: str | Path) -> list[Path]:
    """Writes uncertainty.json (with the curves), uncertainty.csv, uncertainty.md and uncertainty.png.

    The CSV has every score of a run in one row: those by image as `<score>`, `<score>_low` and `<score>_high`, and last
    the head and the density that the scores are of.

    Returns:
        The four files.
    """
    folder, text, note = Path(folder), io.StringIO(), footnote(reports)
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['run', *COLUMNS, *(f'{key}{end}' for key in BY_IMAGE for end in ('', '_low', '_high')),
                     'head', 'density'])
    writer.writerows([name, *(repr(scores[key]) for key in COLUMNS),
                      *(repr(value) for key in BY_IMAGE for value in by_image[key]), r.head, r.density]
                     for name, scores, by_image, r in _rows(reports))
    content = {'protocol': protocol, **({'note': note} if note else {}), 'runs': [asdict(r) for r in reports]}
    return [write_text(folder / 'uncertainty.json', json.dumps(content, indent=2, ensure_ascii=False) + '\n'),
            write_text(folder / 'uncertainty.csv', text.getvalue()),
            write_text(folder / 'uncertainty.md', '\n\n'.join([
                markdown_table(*_cells(reports)), markdown_table(*_image_cells(reports)),
                *([f'{note}.'] if note else []), f'{protocol}.\n'])),
            uncertainty_figure(reports, folder / 'uncertainty.png', protocol)]


# ---------------------------------------------------------------- the figure

def uncertainty_figure(reports: Sequence[Report], out: str | Path, protocol: str = '', dpi: int = 150) -> Path:
    """Draws sparsification, calibration as predicted and recalibrated, and error against spread and width, of all runs.

    Args:
        reports: Of the runs.
        out: The picture to write; the format follows the ending.
        protocol: How it was measured, printed below the plots.
        dpi: Resolution of a PNG.

    Returns:
        Path: `out`.
    """
    told = ['Sparsification: dashed, with the pixels ordered by their true error; dotted, at random. Calibration and '
            'spread: dotted, as it should be; below that line the calibration says that θ is too small.',
            footnote(reports), protocol]
    figure = framed(WIDTH, 5. + 0.28 * len(reports), dpi, 'What the predicted uncertainties are worth',
                    ' '.join(f'{text.rstrip(".")}.' for text in told if text))
    (left, middle, right), (spreads, widths, names) = figure.subplots(2, 3)
    for number, report in enumerate(reports):
        style = style_of(number)
        percent = 100 * np.array(report.fractions)
        left.plot(percent, report.sparsification, **style, linewidth=1.4, label=f'{report.scores["ause_mae"]:.3f}')
        left.plot(percent, report.oracle, color=style['color'], linewidth=0.8, linestyle=(0, (4, 2)))
        for ax, observed, scores in ((middle, report.coverage, report.scores),
                                     (right, report.coverage_recalibrated, report.recalibrated)):
            times = '' if ax is middle else f'θ × {scores["factor"]:.2f}: '
            ax.plot(report.levels, observed, **style, linewidth=1.4,
                    label=f'{times}{scores["calibration_error"]:.3f}{report.mark}')
        for ax, x, y, key in ((spreads, report.spread, report.rmse, 'ence'),
                              (widths, report.half_width, report.quantile, 'picp')):
            if x:
                ax.loglog(x, y, **style, linewidth=1.4, marker='o', markersize=2.5,
                          label=f'{report.by_image[key][0]:.2f}{report.mark}')
        names.plot([], [], **style, linewidth=1.4, label=wrapped(report.name, 1.7, FONT))
    share = ', '.join(dict.fromkeys(f'{100 - 100 * report.alpha:g}' for report in reports))
    spreads.set(title='error against spread', xlabel='predicted σ, grey levels', ylabel='RMSE of the bin, grey levels')
    widths.set(title='error against interval width', xlabel=f'half of the {share} % interval, grey levels',
               ylabel=f'{share} % are nearer, grey levels')
    for ax in (spreads, widths):
        ends = [min(*ax.get_xlim(), *ax.get_ylim()), max(*ax.get_xlim(), *ax.get_ylim())]
        ax.plot(ends, ends, color=GRAY, linewidth=1, linestyle=':', zorder=0)
        ax.set(xlim=ends, ylim=ends, aspect='equal')
        for axis in (ax.xaxis, ax.yaxis):
            axis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter='{x:g}', minor_locator=NullLocator())
    left.axhline(1, color=GRAY, linewidth=1, linestyle=':')
    left.set(title='sparsification', xlabel='most uncertain pixels removed, %', xlim=(0, 100),
             ylabel='mean |error| of the others (all: 1)', ylim=(0, max(1.05, *left.get_ylim())))
    for ax, title in ((middle, 'calibration, as predicted'), (right, 'calibration, θ rescaled')):
        ax.plot([0, 1], [0, 1], color=GRAY, linewidth=1, linestyle=':', zorder=0)
        ax.set(title=title, xlabel='expected coverage', ylabel='observed coverage', xlim=(0, 1), ylim=(0, 1),
               aspect='equal')
    for ax, score in ((left, 'AUSE ↓'), (middle, 'calibration error ↓'), (right, 'calibration error ↓'),
                      (spreads, 'ENCE per image ↓'), (widths, f'coverage per image (goal {share} %)'), (names, '')):
        tidy(ax)
        if ax.get_legend_handles_labels()[1]:
            ax.legend(title=score, title_fontsize=FONT, fontsize=FONT, frameon=False, borderaxespad=0,
                      **{'loc': 'upper center', 'bbox_to_anchor': (0.5, -0.3)} if score else {'loc': 'center'})
    names.set_axis_off()
    return save(figure, out)
