"""What ``udl compare`` does: the runs of a plan are chosen, checked, made, and shown as a table."""
from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from udl_basicsr.experiments import runner, trial
from udl_basicsr.experiments.overview import describe_runs, needed_data
from udl_basicsr.experiments.plan import Plan, PlannedRun, read_plan, select
from udl_basicsr.experiments.record_files import (
    Record,
    folder_of_records,
    read_record,
    read_records,
    record_file,
    write_record,
)
from udl_basicsr.experiments.records import as_planned, lacking, made_with_other_options
from udl_basicsr.experiments.statistics import format_summary
from udl_basicsr.options.parse import OptionError
from udl_basicsr.reports.paper_tables import paper_table
from udl_basicsr.training.interrupts import EXIT_INTERRUPTED
from udl_basicsr.training.run_folder import EXIT_BUSY
from udl_basicsr.utils.files import why_not_into
from udl_basicsr.utils.gpus import gpu_names
from udl_basicsr.utils.text import did_you_mean, duration


def run(args: argparse.Namespace) -> int:
    root = args.root.resolve()
    plan = read_plan(args.plan, root, args.seeds)
    gpus = (gpu_names() or [None]) * args.jobs  # one after another on each before a second one anywhere
    if args.trial:
        return try_all(args, root / 'trials' / plan.name, gpus)
    runs = choose(plan, args)
    out = args.out or records_folder(args.root, plan.name)
    differ = {r.name: problem for r in runs if (problem := made_with_other_options(r, out, args.root))}
    if differ and not args.dry_run:
        raise OptionError(differ.values())
    if not args.dry_run:
        tell_anew(plan, out)
    metrics = check_metrics(plan, args.metrics, out) if args.metrics else ('psnr', )
    missing = [r for r in runs if not r.record(out).exists()]
    if args.retest:
        missing = to_test_again([r for r in runs if r not in missing], out)
    what = 'tested again' if args.retest else 'made'
    print(f'{len(runs)} runs, {len(missing)} to be {what}; records in {out}', flush=True)
    if args.dry_run:
        whole = {run.name for run in missing if all(Path(path).exists() for _, path, _ in needed_data([run]))}
        runner.check([run for run in missing if run.name in whole], args.root, plan.file)
        runner.check([run for run in missing if run.name not in whole], args.root, plan.file, data=False)
        records = {record_file(out, r.method, r.scale, r.seed, r.network_id): r
                   for r in read_or_none(out)}
        print(f'\n{describe_runs(runs, plan.runs, records, out, args.root, differ, args.markdown)}', flush=True)
    elif missing:
        if why := why_not_into(out):  # before days of training
            raise OptionError(f'{out}, for the records: {why}; give another folder as --out')
        runner.check(missing, args.root, plan.file, trains=not args.retest)
        runner.write_options(missing)
        status = train(plan, missing, out, args.root, gpus)
        if status:
            return status
    show(plan, out, metrics, args.markdown)
    if differ:
        raise OptionError(differ.values())
    return 0


def tell_anew(plan: Plan, out: Path) -> None:
    """Names and reference of the plan, which may have changed, for the records that are there.

    What is no record is refused here, before days of training rather than in their midst.
    """
    for run in plan.runs:
        if (file := run.record(out)).exists():
            record = read_record(file)
            if (now := as_planned(record, run)) != record:
                write_record(now, out)
    read_or_none(out)


def to_test_again(runs: list[PlannedRun], out: Path) -> list[PlannedRun]:
    """The runs whose records lack a metric that is measured now, or a data set."""
    runs = [run for run in runs if lacking(run, out)]
    gone = [f'--retest: {file} is not there any more, and without the network {run.shown} cannot be tested again'
            for run in runs for key, file in run.test_flat['path'].items()
            if key.startswith('pretrain_') and not Path(file).exists()]
    if gone:
        raise OptionError(gone)
    return runs


def records_folder(root: Path, name: str) -> Path:
    """Where the records of a comparison lie: in ``docs/results`` of a project that has such a folder, as ours has."""
    docs = root / 'docs' / 'results'
    return docs / name if docs.is_dir() else root / 'results' / name / 'records'


def choose(plan: Plan, args: argparse.Namespace) -> list[PlannedRun]:
    """The runs that --only and --methods leave."""
    runs = select(plan, args.only)
    methods = list(dict.fromkeys(r.method for r in plan.runs))
    unknown = [m for m in args.methods or () if m not in methods]
    if unknown:
        raise OptionError(f'--methods: {unknown[0]} is not in {args.plan}, which has {", ".join(methods)}')
    return [r for r in runs if not args.methods or r.method in args.methods]


def check_metrics(plan: Plan, metrics: Sequence[str], out: Path) -> Sequence[str]:
    """What --metrics asks for, where the plan or a record in ``out`` measures it, and the last table can show it."""
    if plan.table:
        raise OptionError(f'--metrics: {plan.file} is shown as the table {plan.table} of a paper, which has metrics of '
                          'its own; leave --metrics out')
    known = dict.fromkeys([*(m for run in plan.runs for m in run.test_flat['val']['metrics']),
                           *(m for r in read_or_none(out) for scores in r.datasets.values() for m in scores.mean)])
    if unknown := [metric for metric in metrics if metric not in known]:
        raise OptionError(f'--metrics: nothing measures {unknown[0]!r}{did_you_mean(unknown[0], known)}')
    return metrics


def try_all(args: argparse.Namespace, folder: Path, gpus: list) -> int:
    plan = read_plan(args.plan, folder, args.seeds)
    runs = trial.prepare(plan, choose(plan, args), folder)
    print(f'{len(runs)} cells to be tried, in {folder}', flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return trial.run_trial(runs, folder, gpus)
    except KeyboardInterrupt:
        print('\nStopped', flush=True)
        return EXIT_INTERRUPTED


SILENCE = 300.
"""Seconds between two lines that say how far the runs are, where the output is no terminal."""


def train(plan: Plan, missing: list[PlannedRun], out: Path, root: Path, gpus: list) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the runs in progress save their state
    outlook, told = runner.Outlook(missing, root), time.time()
    events = runner.make_all(missing, out, root, gpus)
    failed, busy, ended, last, begun = [], [], 0, {}, set()
    clear = '\r\033[K' if sys.stdout.isatty() else ''
    try:
        for event in events:
            run = event.run
            if event.status is None:
                last[run.name] = f'{run.shown}: {event.iteration}/{run.iterations}'
                if run.name not in begun:
                    begun.add(run.name)
                    print(f'{clear}{run.shown} begins, {len(begun)} of {len(missing)}; log: {event.log}', flush=True)
                if clear:
                    print(clear + fitting('   '.join(last.values()) + until(outlook)), end='', flush=True)
                elif time.time() - told > SILENCE:
                    told = time.time()
                    print('   '.join(last.values()) + until(outlook), flush=True)
                continue
            last.pop(run.name, None)
            ended += 1
            if event.status == EXIT_BUSY:  # of a comparison that was killed, or that somebody else has started
                busy.append(event)
                print(f'{clear}{event.last_lines(1)}', flush=True)
                continue
            if event.status:
                failed.append(event)
                print(f'{clear}{run.name}: {event.failure(3)}', flush=True)
            else:
                print(clear, end='')
                if ended < len(missing) or failed or busy:  # else the caller shows it
                    show(plan, out)
            print(f'{run.shown} has ended: {ended} of {len(missing)}{until(outlook) if ended < len(missing) else ""}',
                  flush=True)
    except KeyboardInterrupt:
        print('\nStopping; the runs in progress save their state', flush=True)
        return EXIT_INTERRUPTED
    finally:
        events.close()
    for event in failed:
        print(f'{event.run.name}: failed, see {event.log}', file=sys.stderr)
    for event in busy:
        print(f'{event.run.name}: left out, since another process trains it. Start again when that has ended',
              file=sys.stderr)
    return 1 if failed else EXIT_BUSY if busy else 0


def fitting(line: str) -> str:
    """As much of a line as the terminal has in one row: of one that is wrapped, only the last row would be cleared."""
    return line[:shutil.get_terminal_size().columns - 1]


def until(outlook: runner.Outlook) -> str:
    """When all will have been made."""
    left = outlook.seconds()
    if left is None:
        return ''
    end = time.localtime(time.time() + left)
    return f'; all ends in about {duration(left)}, {time.strftime("%H:%M" if left < 72_000 else "%d %B", end)}'


def read_or_none(out: Path) -> list[Record]:
    try:
        return read_records(out) if folder_of_records(out) == Path(out) else []  # not those of an --out inside it
    except FileNotFoundError:
        return []


def show(plan: Plan, out: Path, metrics: Sequence[str] = ('psnr', ), markdown: bool = False) -> None:
    """The table of what there is: the printed one with ours beside it where the plan names one."""
    if records := read_or_none(out):
        text = paper_table(plan.table, records, 'md' if markdown else 'text') if plan.table \
            else format_summary(records, metrics, markdown)
        print(f'\n{text}\n', flush=True)
