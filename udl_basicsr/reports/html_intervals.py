"""The intervals of a page: a panel for each data set, with the differences from the reference."""
from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from .html_groups import Group, difference_text, interval_text, signed

COLOURS = 16  # of methods, as in templates/report.css; further ones begin anew


def intervals_in_words(group: Group) -> str:
    if not group.trained:
        return 'the 95 % interval over images, which says nothing of other seeds'
    return 'both 95 % intervals: that over seeds and images, and that over seeds'


def colour_of(group: Group, method: str) -> str:
    return f'm{list(group.methods).index(method) % COLOURS}'


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


def forest(group: Group, metric: str) -> str:
    """A panel for each data set: dots and intervals of the differences from the reference, on one axis for all."""
    results = {name: {m: d for m in group.methods if (d := group.difference(m, name, metric))}
               for name in group.datasets}
    results = {name: found for name, found in results.items() if found}
    every = [d for found in results.values() for d in found.values()]
    if not every:
        return ''
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

    def line(kind: str, start: float, end: float) -> str:
        return f'<line class="{kind}" x1="{x(start)}" x2="{x(end)}" y1="50%" y2="50%"/>'

    grid = ''.join(f'<line class="{"zero" if tick == 0 else "grid"}" x1="{x(tick)}" x2="{x(tick)}" y1="0" y2="100%"/>'
                   for tick in ticks)
    panels = []
    for name, found in results.items():
        rows = []
        for method in order:
            if method not in found:
                continue
            d, kind = found[method], found[method]['verdict']
            marks = []
            if math.isfinite(d.get('seed_low', math.nan)):
                marks.append(line('seeds', d['seed_low'], d['seed_high']))
            marks.append(line('interval', d['low'], d['high']))
            if low <= d['mean'] <= high:
                marks.append(f'<circle cx="{x(d["mean"])}" cy="50%" r="4.5"/>')
            else:
                sign, anchor, place = ('◀', 'start', '0') if d['mean'] < low else ('▶', 'end', '100%')
                marks.append(f'<text class="off" x="{place}" y="50%" dy=".35em" text-anchor="{anchor}">{sign}</text>')
            says = (f'{group.methods[method]}: {difference_text(d)}, 95 % interval {interval_text(d)}'
                    + (f', ahead on {d["ahead"]} of {d["pairs"]} pairs of seed and image' if facts.sign else ''))
            rows.append(
                f'<li><span class="name"><i class="swatch {colour_of(group, method)}"></i>'
                f'{escape(group.methods[method])}{"" if d["seeds"] == usual else " ({})".format(d["seeds"])}</span>'
                f'<svg class="{kind}" role="img" aria-label="{escape(says)}"><title>{escape(says)}</title>{grid}'
                f'{"".join(marks)}</svg><span class="num {kind}">{difference_text(d)}</span></li>')
        labels = ''.join(f'<text x="{x(tick)}" y="14" text-anchor="middle">'
                         f'{"0" if tick == 0 else signed(tick, tick_digits)}</text>' for tick in ticks)
        panels.append(f'<figure class="panel"><figcaption>{escape(name)}</figcaption><ul>{"".join(rows)}'
                      f'<li class="axis" aria-hidden="true"><span></span><svg>{labels}</svg><span></span></li></ul>'
                      '</figure>')
    fewer = f' In brackets: seeds, where they are not {usual}.' if any(d['seeds'] != usual for d in every) else ''
    better = {1: ' <small>better →</small>', -1: ' <small>← better</small>', 0: ''}[facts.sign]
    if group.trained:
        note = ('Line: 95 % bootstrap interval over seeds and images. Pale band: 95 % interval of Student’s t over the '
                'seeds, on these very images; one seed has none, and decides nothing.')
    else:
        note = 'Line: 95 % bootstrap interval over images, for these very weights.'
    note += f' Coloured and filled: zero lies outside {intervals_in_words(group)}. ◀ ▶: beyond the axis.{fewer}'
    return (f'<h3>{escape(facts.title(metric))} minus that of {escape(group.methods[group.reference])}'
            f'{escape(f" ({facts.unit})") if facts.unit else ""}{better}</h3>'
            f'<div class="forest">{"".join(panels)}</div><p class="note">{note}</p>')
