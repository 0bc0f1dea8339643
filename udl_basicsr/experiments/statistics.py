"""What the records of a comparison say: means over seeds, paired differences, their intervals, and tables of both."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from scipy.special import stdtrit  # a fifth of the time that scipy.stats takes to import

from udl_basicsr.utils.scores import metric_facts, protocol_notes
from udl_basicsr.utils.tables import markdown_table, text_table
from udl_basicsr.utils.text import duration

from .record_files import Record

SAMPLES = 10_000  # of the bootstrap


def scores_matrix(records: Iterable[Record], method: str, dataset: str, metric: str,
                  scale: int) -> tuple[list[int], list[str], np.ndarray]:
    """The scores of a method as (seeds, images, array of shape (S, I)); empty where it was not run."""
    runs = {r.seed: r.datasets[dataset].images for r in records
            if r.method == method and r.scale == scale and dataset in r.datasets
            and metric in r.datasets[dataset].mean}
    seeds = sorted(runs)
    images = sorted(set.intersection(*(set(run) for run in runs.values()))) if runs else []
    scores = np.array([[runs[s][i][metric] for i in images] for s in seeds])
    return seeds, images, scores.reshape(len(seeds), len(images))


class Means(TypedDict):
    """What :func:`means` finds."""
    mean: float
    sd: float
    seeds: int


def means(records: Iterable[Record], method: str, dataset: str, metric: str, scale: int) -> Means | None:
    """Mean over seeds and images, and the standard deviation over seeds of the mean over images (NaN for one seed).

    Returns:
        ``{'mean', 'sd', 'seeds'}``, or None where the method was not run.
    """
    seeds, _, scores = scores_matrix(records, method, dataset, metric, scale)
    if not scores.size:
        return None
    by_seed = scores.mean(axis=1)
    return {'mean': float(by_seed.mean()), 'sd': float(by_seed.std(ddof=1)) if len(seeds) > 1 else float('nan'),
            'seeds': len(seeds)}


def paired_scores(records: Sequence[Record], method: str, reference: str, dataset: str, metric: str,
                  scale: int) -> tuple[list[int], list[str], np.ndarray]:
    """The seeds and images that two methods have in common, and method minus reference there, (S, I)."""
    seeds, images, (ours, theirs) = _in_common(*(scores_matrix(records, name, dataset, metric, scale)
                                                 for name in (method, reference)))
    return seeds, images, ours - theirs


def _in_common(*found: tuple[list[int], list[str], np.ndarray]) -> tuple[list[int], list[str], list[np.ndarray]]:
    """Of several (seeds, images, values (S, I)) the seeds and images that all have, and the values of each there."""
    seeds, images = (sorted(set.intersection(*map(set, names))) for names in list(zip(*found, strict=True))[:2])
    return seeds, images, [values[np.ix_([rows.index(s) for s in seeds], [columns.index(i) for i in images])]
                           for rows, columns, values in found]


def paired_difference(records: Sequence[Record], method: str, dataset: str, metric: str, scale: int,
                      reference: str | None = None, samples: int = SAMPLES) -> dict[str, Any] | None:
    """A method against the reference, pair by pair: same seed, same image.

    Two intervals of 95 % answer two questions. ``low`` and ``high``: would it hold for other images *and* other seeds?
    A bootstrap that draws seeds and images with replacement. ``seed_low`` and ``seed_high``: would it hold on these
    very images for other seeds? Student's t over the seeds' means; wide when seeds are few, as it should be.

    Args:
        records: As read by :func:`~udl_basicsr.experiments.record_files.read_records`.
        method: Id of the method.
        dataset: Name of the test set.
        metric: ``psnr``, ``ssim`` or ``lpips``.
        scale: Upscaling factor.
        reference: Id; by default the one that the records name.
        samples: Bootstrap samples; the random numbers are always the same.

    Returns:
        ``{'mean', 'low', 'high', 'seed_low', 'seed_high', 'by_seed', 'seeds', 'images', 'ahead', 'pairs', 'facts'}``:
        differences in the metric's units, positive where the method's value is larger, of each seed in ``by_seed``;
        ``ahead`` of ``pairs`` (seed, image) on which the method is better, None for a metric without direction; its
        facts. None where the two have no seed in common.
    """
    mine = [r for r in records if r.method == method]
    if not mine:
        return None
    reference = reference or mine[0].reference
    seeds, images, difference = paired_scores(records, method, reference, dataset, metric, scale)
    if not seeds or not images:
        return None
    low, high = bootstrap_interval(difference, samples)
    by_seed, count = difference.mean(axis=1), len(seeds)
    half = float('nan')
    if count > 1:
        half = stdtrit(count - 1, 0.975) * by_seed.std(ddof=1) / np.sqrt(count)
    facts = metric_facts([*records], metric)
    mean = float(by_seed.mean())
    return {'mean': mean, 'low': low, 'high': high, 'seed_low': float(mean - half), 'seed_high': float(mean + half),
            'by_seed': dict(zip(seeds, by_seed.tolist(), strict=True)), 'seeds': count, 'images': len(images),
            'pairs': difference.size, 'facts': facts,
            'ahead': int((facts.sign * difference > 0).sum()) if facts.sign else None}


def bootstrap_interval(values: np.ndarray, samples: int = SAMPLES) -> tuple[float, float]:
    """Percentile interval of 95 % of the mean of ``values`` (S, I), rows and columns both drawn with replacement.

    Too narrow where there are few: beside Student's t 0.62 times as wide for five images, 0.08 times for two seeds.
    """
    return _percentiles(_drawn_means(values, samples))


def _drawn_means(values: np.ndarray, samples: int) -> np.ndarray:
    """Means of values (S, I) with rows and columns drawn anew, (samples, ): of equal shapes, the same draws."""
    random = np.random.default_rng(0)
    rows, columns = (random.multinomial(n, np.full(n, 1 / n), size=samples) / n for n in values.shape)
    return ((rows @ values) * columns).sum(axis=1)


def _percentiles(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def share_of_lead(records: Sequence[Record], method: str, leader: str, dataset: str, metric: str, scale: int,
                  reference: str | None = None, samples: int = SAMPLES) -> dict[str, Any] | None:
    """How much of a leader's difference from the reference another method has: what a control explains of a gain.

    Args:
        records: As read by :func:`~udl_basicsr.experiments.record_files.read_records`.
        method: Id of the method whose difference is divided.
        leader: Id of the method by whose difference it is divided.
        dataset: Name of the test set.
        metric: ``psnr``, ``ssim`` or ``lpips``.
        scale: Upscaling factor.
        reference: Id; by default the one that the records name.
        samples: Bootstrap samples.

    Returns:
        ``{'share', 'low', 'high', 'seeds', 'images'}``: the quotient of the two mean differences, over the seeds and
        images that all three methods have; and its 95 % interval, by a bootstrap that draws the same seeds and images
        for both. A draw in which the lead has changed its sign counts as a share beyond all numbers, on the side on
        which the method is. The interval has no bounds where that of the lead holds 0, since a share of what may be
        nothing is any number. None where the three have no seed or image in common.
    """
    reference = reference or records[0].reference
    seeds, images, (ours, lead) = _in_common(*(paired_scores(records, name, reference, dataset, metric, scale)
                                               for name in (method, leader)))
    if not seeds or not images:
        return None
    low, high = bootstrap_interval(lead, samples)
    if low <= 0 <= high:
        low, high = -np.inf, np.inf
    else:
        sign = np.sign(lead.mean())
        part, whole = (sign * _drawn_means(values, samples) for values in (ours, lead))
        ahead = whole > 0
        # the quotient passes through infinity where the lead passes through 0
        low, high = _percentiles(np.where(ahead, part / np.where(ahead, whole, 1), np.copysign(np.inf, part)))
    return {'share': float(ours.mean() / lead.mean()) if lead.any() else float('nan'), 'low': low, 'high': high,
            'seeds': len(seeds), 'images': len(images)}


def value_at(curve: Mapping[int, float], iteration: int) -> float | None:
    """What a curve has at an iteration, by a straight line between its points; None outside them.

    Methods of two stages are validated at other iterations than those of one.

    Example:
        >>> value_at({100: 20., 200: 30.}, 150), value_at({100: 20., 200: 30.}, 250)
        (25.0, None)
    """
    if not curve or not min(curve) <= iteration <= max(curve):
        return None
    at = sorted(curve)
    return float(np.interp(iteration, at, [curve[i] for i in at]))


def methods_of(records: Iterable[Record]) -> dict[str, str]:
    """Ids and labels of the methods: the reference first, then by the order in the comparison's file, if kept."""
    found: dict[str, tuple] = {}
    for r in records:
        found.setdefault(r.method, (r.method != r.reference, r.order, r.method, r.label))
    return {key[2]: key[3] for key in sorted(found.values())}


def difference_cell(result: Mapping | None) -> str:
    """``+0.12 [+0.05, +0.19]``, or a dash."""
    if result is None:
        return '–'
    mean, low, high = (f'{result[key]:+.{result["facts"].decimals}f}'.replace('-', '−')
                       for key in ('mean', 'low', 'high'))
    return f'{mean} [{low}, {high}]'


def summary_rows(records: Sequence[Record], scale: int,
                 metrics: Sequence[str] = ('psnr', 'ssim')) -> tuple[list[str], list[list[str]]]:
    """One row for each method: its mean on each data set, and its difference from the reference with its interval."""
    records = [r for r in records if r.scale == scale]
    datasets = list(dict.fromkeys(name for r in records for name in r.datasets))
    shown = [m for m in metrics if any(m in d.mean for r in records for d in r.datasets.values())]
    facts = {m: metric_facts(records, m) for m in shown}
    header = ['method', 'seeds', *(f'{d} {facts[m].title(m)}{tail}' for d in datasets for m in shown
                                   for tail in ('', ' − reference'))]
    rows = []
    for method, label in methods_of(records).items():
        row = [label, str(len({r.seed for r in records if r.method == method}))]
        is_reference = any(r.method == method == r.reference for r in records)
        for dataset in datasets:
            for metric in shown:
                value = means(records, method, dataset, metric, scale)
                row.append(facts[metric].text(value['mean'] if value else None))
                result = None if is_reference else paired_difference(records, method, dataset, metric, scale)
                row.append(difference_cell(result))
        rows.append(row)
    costs = _costs(records)
    if any(cells != _UNKNOWN for cells in costs.values()):
        header += ['operations', 'training', 'memory']
        rows = [row + costs[method] for row, method in zip(rows, methods_of(records), strict=True)]
    return header, rows


_UNKNOWN = ['–'] * 3


def _costs(records: Sequence[Record]) -> dict[str, list[str]]:
    """Of each method what its training took: operations beside the reference's, time, and the most memory.

    Means over seeds; time, of whose seeds some may have had a busy machine, is the least.
    """
    def mean(method: str, values: Callable[[Record], float | None]) -> float | None:
        found = [value for r in records if r.method == method and (value := values(r)) is not None]
        return sum(found) / len(found) if found else None

    def operations(record: Record) -> float | None:
        return record.costs.get('operations')

    found = {}
    for method in methods_of(records):
        own, base = mean(method, operations), mean(records[0].reference, operations)
        times = [r.seconds_of_steps for r in records if r.method == method and r.seconds_of_steps is not None]
        memory = mean(method, lambda r: r.peak_memory.bytes if r.peak_memory else None)
        found[method] = [f'× {own / base:.2f}' if own and base else '–', duration(min(times)) if times else '–',
                         f'{memory / 1e9:.2f} GB' if memory and own else '–']
    return found


def format_summary(records: Sequence[Record], metrics: Sequence[str] = ('psnr', ), markdown: bool = False) -> str:
    """The table of a comparison as it stands, for the terminal or in Markdown: one for each network and scale.

    Below it stands how the metrics were measured, and which seeds a method has, where that is not the same in all runs.
    """
    table, gap = (markdown_table, '\n\n') if markdown else (text_table, '\n')
    groups: dict[tuple, list[Record]] = {}
    for record in sorted(records, key=lambda r: r.scale):
        groups.setdefault((record.network_id or '', record.scale), []).append(record)
    parts = []
    for (network, scale), group in groups.items():
        parts.append(f'{f"{network} ×{scale}".strip()}{gap}{table(*summary_rows(group, scale, metrics))}')
        notes = protocol_notes(group, metrics)
        parts += ['\n'.join(notes)] if len(notes) > 1 else []
        parts += _seeds_note(group)
    return '\n\n'.join(parts)


def _seeds_note(records: Sequence[Record]) -> list[str]:
    """Why a difference need not be that of two means: nothing where all methods have the seeds of the reference."""
    labels, reference = methods_of(records), records[0].reference
    seeds = {method: ', '.join(map(str, sorted({r.seed for r in records if r.method == method}))) for method in labels}
    if reference not in seeds or len({*seeds.values()}) == 1:
        return []
    told = '; '.join(f'{label}: {seeds[method]}' for method, label in labels.items()
                     if method == reference or seeds[method] != seeds[reference])
    return ['A mean is over the seeds of its method, a difference over those that the reference has too. '
            f'Seeds: {told}.']
