"""What a plan amounts to before anything is trained: its cells, what each takes, and the data it needs."""
from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from os import path as osp
from pathlib import Path

from udl_basicsr.losses.perceptual import NETS, backbone_file
from udl_basicsr.options.training_values import judge_of
from udl_basicsr.utils.tables import markdown_table, text_table
from udl_basicsr.utils.text import duration

from .costs import Estimate, amp_of, training_speed
from .plan import PlannedRun
from .record_files import Record
from .records import machine
from .runner import done

_ROOTS = ('dataroot_gt', 'dataroot_lq', 'meta_info_file')


def describe_runs(runs: Sequence[PlannedRun], everything: Iterable[PlannedRun], records: Mapping[Path, Record],
                  out: Path, root: Path, differ: Container[str] = (), markdown: bool = False) -> str:
    """The cells of a plan, one a line, then their sum and where their times come from, then the data they need.

    Args:
        runs: Those that are listed.
        everything: All runs of the plan: records of the others tell of the networks too.
        records: What there is in ``out``, by file.
        out: Folder of the records.
        root: Where ``experiments/`` is.
        differ: Names of runs of which there is something that was made with other options.
        markdown: Tables in Markdown.
    """
    estimate = Estimate(everything, records, out, machine)
    counted: dict[str | None, list[float]] = {}
    rows, total, measured, started = [], 0., False, set()
    for run in runs:
        state, seconds = 'done', 0.
        if not run.record(out).exists():
            at = [done(root, stage) for stage in run.stages]
            state = f'at {sum(at)}' if sum(at) else 'to do'
            for stage, iterations in zip(run.stages, at, strict=True):
                if stage.name in started or iterations >= stage.iterations:
                    continue
                started.add(stage.name)  # a stage 1 that several share is trained once
                needed, by_records = estimate.seconds(run, stage, 1 - iterations / stage.iterations)
                seconds += needed
                measured |= by_records
                if not by_records:
                    counted.setdefault(amp_of(stage.flat), []).append(training_speed(stage.flat))
        if run.name in differ:
            state = 'made otherwise'
        total += seconds
        lengths = ' + '.join(str(stage.iterations) for stage in run.stages)
        rows.append([run.network or run.title, f'×{run.scale}', run.label, str(run.seed), lengths, state,
                     duration(seconds) if seconds else '–'])
    table = markdown_table if markdown else text_table
    sources = ['records made on a machine like this'] if measured else []
    for amp, speeds in sorted(counted.items(), key=str):
        speed = ' to '.join(dict.fromkeys(f'{end(speeds) / 1e9:,.0f}' for end in (min, max))) + ' GFLOP/s'
        sources.append(f'operations counted, over the {speed} measured here' + (f' in {amp}' if amp else ''))
    lines = [table(['network', 'scale', 'method', 'seed', 'iterations', 'state', 'time'], rows), '',
             f'In all {duration(total)}, one run after another on this machine'
             + (f': by {"; by ".join(sources)}.' if sources else '.')]
    data = [[name, osp.abspath(path), 'there' if osp.exists(path) else 'missing', ', '.join(uses)]
            for name, path, uses in needed_data(runs)]
    return '\n'.join([*lines, '', table(['data', 'where', 'state', 'for'], data)])


def needed_data(runs: Iterable[PlannedRun]) -> Iterator[tuple[str, str, list[str]]]:
    """Each folder and file that runs need: of which data, its path, and what for."""
    needed: dict[tuple[str, str], dict[str, None]] = {}
    for run in runs:
        sets = [(f'training ×{run.scale}', stage.flat['datasets']) for stage in run.stages]
        for use, datasets in [*sets, (f'test ×{run.scale}', run.test_flat['datasets'])]:
            for block in datasets.values():
                for key in _ROOTS:
                    if isinstance(block.get(key), str):
                        needed.setdefault((str(block.get('name')), osp.expanduser(block[key])), {})[use] = None
        judges = [judge for stage in run.stages if (judge := judge_of(stage.flat['train'].get('tlw_opt')))[0] in NETS]
        judges += [(block.get('net', 'alex'), block.get('weights_path'))
                   for block in run.test_flat['val']['metrics'].values()
                   if block.get('type') == 'calculate_lpips' and not block.get('random_weights')]
        for net, file in judges:
            needed.setdefault((f'LPIPS, {net}', str(backbone_file(net, file))), {})[f'×{run.scale}'] = None
    for (name, path), uses in needed.items():
        yield name, path, list(uses)
