"""What was measured as text, as a picture and as JSON."""
from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path

from udl_basicsr.reports.figures import FONT, WIDTH, framed
from udl_basicsr.reports.figures import save as save_figure
from udl_basicsr.reports.method_styles import WORSE
from udl_basicsr.reports.plots import tidy
from udl_basicsr.utils.files import write_text
from udl_basicsr.utils.tables import text_table

from .contenders import Case, Settings
from .measuring import GOALS, ITERATIONS


def tables(report: Mapping) -> str:
    """The report as text for the terminal."""
    who = report['machine']
    parts = [f"{who['device']}, {who['cpu']}, {who['threads']} thread(s) on {who['cores']} core(s), "
             f"{'with' if who['bf16'] else 'without'} bf16 in hardware, load {(who['load'] or [float('nan')])[0]:.1f}, "
             f"torch {who['versions']['torch']}; seconds by the {who['clock']} clock"]
    for name, result in report['networks'].items():
        case = Case(**result['case'])
        less = '' if case.batch == result['asked_for'] else f" (of {result['asked_for']}, which do not fit)"
        parts.append(f"{case}{less}; best settings: {Settings(**result['best'])}")
        parts.append(text_table(['stage 2 with', 's a step', 'times faster than plain', 'quartiles'], [
            [lever, f"{statistics.median(values['seconds']):.4f}", *_cells(values['speedup'])]
            for lever, values in result['levers'].items()]))
        parts += [f'not available: {lever} ({why})' for lever, why in result['unavailable'].items()]
        of = Case(**result['memory_case'])
        parts.append(text_table(['contender', 's a step', 'quartiles', 'iterations a second', 'hours as printed',
                                 f'peak MiB, {of.batch} of {of.patch}'], [
            [kind, f"{values['seconds']['median']:.4f}",
             f"{values['seconds']['low']:.4f} to {values['seconds']['high']:.4f}",
             f"{1 / values['seconds']['median']:.2f}", f'{hours(kind, values):.1f}',
             f"{result['memory'][kind] / 2**20:.0f}"] for kind, values in result['contenders'].items()]))
        if name != next(iter(report['networks'])):
            parts.append(text_table(['ratio', 'median', 'quartiles'], [
                [key, *_cells(values)] for key, values in result['figures'].items()]))
    for name, result in report['validation'].items():
        cpu = f", in processor time {statistics.median(result['cpu_ratios']):.2f} : 1" if who['device'] == 'cpu' else ''
        parts.append(f"validation with {name}, {result['images']} images: BasicSR "
                     f"{statistics.median(result['seconds']['basicsr']):.3f} s, ours "
                     f"{statistics.median(result['seconds']['ours']):.3f} s, the network alone "
                     f"{statistics.median(result['seconds']['network']):.3f} s; beyond it "
                     f"{statistics.median(result['ratios']):.2f} : 1{cpu}; "
                     f"figures differ by {result['difference']:.1e}")
    if report['data']:
        parts.append(text_table(['training data', 's a step', 's with a batch that is there', 'share waiting'], [
            [name, f"{v['step']:.4f}", f"{v['fixed']:.4f}", f"{v['share']:.1%}"]
            for name, v in report['data'].items()]))
    if report['growth']:
        stages = list(report['growth'][0]['seconds'])
        parts.append(text_table(['s a step / peak MiB', *stages], [
            [row['name'] + (f", {row['case']['width']} channels" if row['case']['width'] else ''),
             *(f"{row['seconds'][s]['median']:.4f} / {row['memory'][s] / 2**20:.0f}" for s in stages)]
            for row in report['growth']]))
    parts.append(text_table(['ratio', 'median', 'quartiles', 'goal'], [
        [key, *_cells(values), ' '.join(map(str, reversed(GOALS[key]))) if key in GOALS else '']
        for key, values in report['figures'].items()]))
    return '\n\n'.join(parts) + '\n'


def hours(kind: str, values: Mapping) -> float:
    """What the training of a contender takes that the UDL paper prints; nothing for reading and validation."""
    return ITERATIONS[kind.partition('_')[0]] * values['seconds']['median'] / 3600


def _cells(values: Mapping) -> tuple[str, str]:
    return f"{values['median']:.2f}", f"{values['low']:.2f} to {values['high']:.2f}"


NAMES = {
    'published_over_ours': 'stage 2, published : ours',
    'stage2_over_l1': 'stage 2 : L1, both ours',
    'stage2_cached_over_l1': 'stage 2 with the cache : L1, both ours',
    'stage1_over_l1': 'stage 1 : L1, both ours',
    'memory_published_over_ours': 'peak memory of stage 2, published : ours',
    'validation_basicsr_over_ours': 'validation beyond the network, BasicSR : ours',
    'basicsr': 'L1, stock BasicSR',
    'published': 'stage 2 (UDL), published',
    'l1': 'L1, ours',
    'esu': 'stage 1 (ESU), ours',
    'udl': 'stage 2 (UDL), ours',
    'udl_cached': 'stage 2 (UDL), ours, with the cache',
}
"""Of ratios and contenders, as the figure prints them; those that end in ``_float32`` have the fast head alone."""


def name_of(key: str) -> str:
    """What a bar is called."""
    plain = key.removesuffix('_float32')
    return NAMES.get(plain, plain) + (', fast head alone' if plain != key else '')


def draw(report: Mapping, path: str | Path) -> None:
    """The ratios and the time of each contender as bars with their quartiles, as a PNG."""
    name, result = next(iter(report['networks'].items()))
    ratios = {key: report['figures'][key] for key in GOALS if key in report['figures']}
    panels = [('ratios, and what they should be', 'ratio', ratios),
              (f'{name}: one training step', 'seconds (lower is better)',
               {key: value['seconds'] for key, value in result['contenders'].items()}),
              ('levers of stage 2', 'times as fast as plain (higher is better)',
               {key: value['speedup'] for key, value in result['levers'].items()})]
    rows = [len(bars) for *_, bars in panels]
    who = report['machine']
    figure = framed(WIDTH, 0.17 * sum(rows) + 0.6 * len(rows), 150, f"{Case(**result['case'])}, {who['device']}: "
                    f"{who['cpu']}", f"Bars: medians; black: quartiles; seconds by the {who['clock']} clock. Orange: "
                    'the goal of a ratio, at least ▸ or at most ◂.')
    for ax, (title, axis, bars) in zip(figure.subplots(len(rows), 1, height_ratios=rows), panels, strict=True):
        medians = [bar['median'] for bar in bars.values()]
        spread = [[bar['median'] - bar['low'] for bar in bars.values()],
                  [bar['high'] - bar['median'] for bar in bars.values()]]
        ax.barh(range(len(bars)), medians, xerr=spread, color='#7fb2d6', ecolor='black', capsize=2,
                error_kw={'elinewidth': 0.8})
        ax.set_yticks(range(len(bars)), map(name_of, bars))
        ax.invert_yaxis()
        ax.set(title=title, xlabel=axis)
        tidy(ax, 'x')
        ax.tick_params(axis='y', length=0, labelsize=FONT)
        for row, key in enumerate(bars if bars is ratios else ()):
            goal, relation = GOALS[key]
            ax.plot([goal] * 2, [row - 0.45, row + 0.45], color=WORSE, linewidth=1.6)
            ax.plot(goal, row, '>' if relation == '≥' else '<', color=WORSE, markersize=4, clip_on=False)
    save_figure(figure, path)


def save(report: Mapping, path: str | Path) -> None:
    """Writes the JSON alone."""
    write_text(Path(path), json.dumps(report, indent=1) + '\n')


def write(report: Mapping, path: str | Path) -> tuple[Path, Path]:
    """Writes the JSON and, beside it, the figure; returns both paths."""
    path = Path(path)
    picture = path.with_suffix('.png')
    save(report, path)
    draw(report, picture)
    return path, picture
