"""The intervals of a page: a panel for each data set, with the differences from the reference."""
from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from udl_basicsr.utils.text import signed

from .html_groups import Group, difference_text, digits_of, interval_text


def intervals_in_words(group: Group) -> str:
    if not group.trained:
        return 'the 95 % interval over images, which says nothing of other seeds'
    return 'both 95 % intervals: that over seeds and images, and that over seeds'


def axis_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round values within [low, high], about ``count`` of them, in steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= raw * 0.999)
    return [round(k * step, 12) + 0. for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def axis_range(intervals: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The range of an axis that shows zero and the intervals; one method far off does not flatten the others.

    Args:
        intervals: (low, high) of each method.
    """
    # The reference itself, run twice, differs by nothing and says nothing of what is usual.
    reach = sorted(r for low, high in intervals if (r := max(abs(low), abs(high)))) or [1e-3]
    usual = reach[math.ceil(0.75 * len(reach)) - 1]
    limit = max(r for r in reach if r <= 3 * usual)
    low = max(min(0., *(a for a, _ in intervals)), -limit)
    high = min(max(0., *(b for _, b in intervals)), limit)
    if low == high:
        low, high = -limit, limit
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def forest(group: Group, metric: str) -> dict | None:
    """A panel for each data set: dots and intervals of the differences from the reference, on one axis for all."""
    results = {name: {m: d for m in group.methods if (d := group.difference(m, name, metric))}
               for name in group.datasets}
    results = {name: found for name, found in results.items() if found}
    every = [d for found in results.values() for d in found.values()]
    if group.reference is None or not every:
        return None
    usual = max(d['seeds'] for d in every)
    low, high = axis_range([(d['low'], d['high']) for d in every])
    ticks = axis_ticks(low, high)
    tick_digits = max((len(f'{tick:g}'.partition('.')[2]) for tick in ticks), default=0)
    overall = {m: float(np.mean([found[m]['mean'] for found in results.values() if m in found]))
               for m in group.methods if any(m in found for found in results.values())}
    facts = group.facts(metric)
    order = sorted(overall, key=lambda m: -facts.sign * overall[m])

    def x(value: float) -> str:
        return f'{100 * (min(max(value, low), high) - low) / (high - low):.2f}%'

    def row(method: str, d: dict) -> dict:
        seeds = [d['seed_low'], d['seed_high']] if math.isfinite(d.get('seed_low', math.nan)) else []
        says = (f'{group.methods[method]}: {difference_text(d)}, 95 % interval {interval_text(d)}'
                + (f', ahead on {d["ahead"]} of {d["pairs"]} pairs of seed and image' if facts.sign else '')
                + (', over seeds [{}, {}]'.format(*(signed(end, digits_of(facts)) for end in seeds)) if seeds else ''))
        ends = [d['low'], d['high'], *seeds]
        return {'label': group.methods[method] + ('' if d['seeds'] == usual else f' ({d["seeds"]})'),
                'style': group.style(method), 'verdict': d['verdict'], 'says': says, 'text': difference_text(d),
                'seeds': [x(end) for end in seeds], 'interval': [x(d['low']), x(d['high'])],
                'dot': x(d['mean']) if low <= d['mean'] <= high else None,
                'beyond': [min(ends) < low, max(ends) > high]}

    fewer = f' In brackets: seeds, where they are not {usual}.' if any(d['seeds'] != usual for d in every) else ''
    if group.trained:
        note = ('Thick: 95 % bootstrap interval over seeds and images. Thin: 95 % interval of Student’s t over the '
                'seeds, on these very images; one seed has none, and decides nothing.')
    else:
        note = 'Thick: 95 % bootstrap interval over images, for these very weights.'
    return {
        'title': f'{facts.title(metric)} minus that of {group.methods[group.reference]}'
                 + (f' ({facts.unit})' if facts.unit else ''),
        'better': {1: 'better →', -1: '← better', 0: ''}[facts.sign],
        'ticks': [{'x': x(tick), 'zero': not tick, 'text': signed(tick, tick_digits) if tick else '0'}
                  for tick in ticks],
        'panels': [{'dataset': name, 'rows': [row(m, found[m]) for m in order if m in found]}
                   for name, found in results.items()],
        'note': f'{note} Coloured and filled: zero lies outside {intervals_in_words(group)}. ◀ ▶: it goes on beyond '
                f'the axis.{fewer}'}
