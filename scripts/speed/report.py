"""What was measured as text, as a picture and as JSON."""
from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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


def draw(report: Mapping, path: str | Path) -> None:
    """The ratios and the time of each contender as bars with their quartiles, as a PNG."""
    name, result = next(iter(report['networks'].items()))
    panels = [
        ('ratio, goal as a line', {key: report['figures'][key] for key in GOALS if key in report['figures']}),
        (f'{name}: seconds a step', {key: value['seconds'] for key, value in result['contenders'].items()}),
        ('stage 2: times faster than plain', {key: value['speedup'] for key, value in result['levers'].items()}),
    ]
    drawing = Figure(figsize=(15, 5), layout='constrained')
    FigureCanvasAgg(drawing)
    for axes, (title, bars) in zip(drawing.subplots(1, 3), panels, strict=True):
        medians = [bar['median'] for bar in bars.values()]
        spread = [[bar['median'] - bar['low'] for bar in bars.values()],
                  [bar['high'] - bar['median'] for bar in bars.values()]]
        axes.barh(range(len(bars)), medians, xerr=spread, color='#4878a8', ecolor='#202020', capsize=3)
        axes.set_yticks(range(len(bars)), bars)
        axes.invert_yaxis()
        axes.set_title(title)
        for row, key in enumerate(bars):
            if key in GOALS and bars is panels[0][1]:
                axes.plot([GOALS[key][0]] * 2, [row - 0.4, row + 0.4], color='#d04020', linewidth=2)
    drawing.suptitle(f"{Case(**result['case'])}, {report['machine']['device']}: {report['machine']['cpu']}")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=110)


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
