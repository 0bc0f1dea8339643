"""Runs of a plan: checked, then made in processes of their own, with their progress and what is left of them."""
from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path

from udl_basicsr.options.parse import OptionError, parse_options
from udl_basicsr.training import launch, loop, stages
from udl_basicsr.training.history import read_history
from udl_basicsr.utils.children import end_with_parent
from udl_basicsr.utils.files import write_text
from udl_basicsr.utils.scores import read_scores
from udl_basicsr.utils.yaml_files import dump_flat

from .costs import is_deterministic, iteration_operations
from .plan import PlannedRun, Stage
from .record_files import read_record, write_record
from .records import make_record, peak_memory, retested


def check(runs: Iterable[PlannedRun], root: Path, file: str, data: bool = True, trains: bool = True) -> None:
    """Checks the options of all runs as those of option files are checked. Nothing is left on the disk.

    What differs in nothing but its seed is checked once: seeds were checked with the plan.

    Args:
        runs: Of the plan.
        root: Where ``experiments/`` and ``results/`` are.
        file: The plan, for messages.
        data: Look at the images too, of each set of folders once, and whether LPIPS has its weights. Weights that a
            run starts from are looked for in any case.
        trains: Look at the trainings too; to test again, their images need not be there any more.

    Raises:
        OptionError: Everything that is wrong, by the plan's own names.
    """
    problems: dict[str, None] = {}
    checked: set[str] = set()
    with tempfile.TemporaryDirectory(prefix='udl_plan_') as folder:
        weights = Path(folder, 'net.pth')  # those that will be tested are yet to be trained
        weights.touch()
        for run in runs:
            chain = [dict(stage.flat) for stage in run.stages]
            tested = {**run.test_flat, 'path': {key: str(weights) if key.startswith('pretrain_') else value
                                                for key, value in run.test_flat['path'].items()}}
            if not data:
                tested['val'] = {**tested['val'], 'metrics': without_lpips_weights(tested['val']['metrics'])}
            files = [Path(folder, name) for name in (*(stage.file.name for stage in run.stages), run.test_file.name)]
            for path, later in zip(files, chain[1:], strict=False):
                later['stage1'] = str(path)
            names = {f'{path}:': f'{file}: {path.stem}:' for path in files}
            for path, flat in zip(files, (*chain, tested), strict=True):
                path.write_text(dump_flat(flat), encoding='utf-8')
            for path, flats in ((files[-2], chain), (files[-1], [tested]))[not trains:]:
                # a run's name and seed decide nothing that is still to be checked, nor do the weights to be tested
                tests = path == files[-1]
                key = json.dumps([{**flat, 'name': '', 'manual_seed': 0, 'stage1': '',
                                   'path': '' if tests else flat.get('path')} for flat in flats], sort_keys=True)
                images = json.dumps([flat['datasets'] for flat in flats], sort_keys=True)
                if key in checked:
                    continue
                try:
                    parse_options(str(path), root_path=str(root), is_train=not tests, auto_resume=True,
                                  check_images=data and images not in checked)
                except OptionError as error:
                    problems.update(dict.fromkeys(_renamed(problem, names) for problem in error.problems))
                checked |= {key, images}
    if problems:
        raise OptionError(problems)


def _renamed(problem: str, names: dict[str, str]) -> str:
    return next((name + problem[len(file):] for file, name in names.items() if problem.startswith(file)), problem)


def without_lpips_weights(metrics: dict) -> dict:
    """``val.metrics`` with a random backbone for LPIPS, which is enough to try everything else."""
    return {name: {**block, 'random_weights': True} if isinstance(block, dict)
            and block.get('type') == 'calculate_lpips' else block for name, block in metrics.items()}


def write_options(runs: Iterable[PlannedRun]) -> None:
    """Writes the option files of runs, which have been checked."""
    for run in runs:
        for stage in run.stages:
            write_text(stage.file, dump_flat(stage.flat))
        write_text(run.test_file, dump_flat(run.test_flat))


# ---------------------------------------------------------------- one run, in a process of its own

_HAS_MASKS = hasattr(signal, 'pthread_sigmask')  # Windows has none


@contextmanager
def _ctrl_c_later() -> Iterator[None]:
    """While active, Ctrl-C waits, and in the processes started meanwhile until they ask for it.

    A fork server ignores it only once it has imported all that it preloads, which takes seconds; before that it would
    die of it with a traceback, and a run would that is just being started.
    """
    if not _HAS_MASKS:
        yield
        return
    resource_tracker.ensure_running()  # started in here, it would let SIGINT through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def make(run: PlannedRun, out: Path, root: Path, log: Path, gpu: str | None, first_only: bool = False) -> None:
    """Trains, tests and records one run, or tests it again where it has a record; ends with the exit status of that.

    Args:
        gpu: Which one it sees, as ``CUDA_VISIBLE_DEVICES`` names it; None leaves that as it is.
        first_only: Trains the stages before the last and nothing else.
    """
    end_with_parent()
    if _HAS_MASKS:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if gpu is not None:
        os.environ['CUDA_VISIBLE_DEVICES'] = gpu
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, 'a', encoding='utf-8') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    started, step, memory = time.time(), None, None
    before = run.record(out)
    for stage in run.stages[:-1] if first_only else () if before.exists() else run.stages:
        if not stage.weights(root, 'g').exists():
            whole, began = not begun(root, stage), time.time()
            exact = ['--force_yml', 'deterministic=true'] if is_deterministic(stage.flat) else []
            _command(['train.py', '-opt', str(stage.file), '--auto_resume', *exact], stages.train, True, root)
            step, memory = 1000 * (time.time() - began) / stage.iterations if whole else None, \
                peak_memory(stage.flat)
    if not first_only:
        _command(['test.py', '-opt', str(run.test_file)], lambda parsed, _: loop.test(parsed), False, root)
        write_record(retested(read_record(before), read_scores(root / 'results' / run.name)) if before.exists() else
                     make_record(run, root, time.time() - started, step, memory), out)
    sys.exit(0)


def _command(argv: list[str], action: Callable, is_train: bool, root: Path) -> None:
    sys.argv = argv
    launch.run_or_exit(action, is_train, root)


# ---------------------------------------------------------------- all of them

@dataclass
class Event:
    """What happened last: a run has ended, or goes on."""
    run: PlannedRun
    status: int | None  # exit status; None: in progress
    iteration: int = 0
    log: Path = Path()
    seconds: float = 0.  # of its processes; of stage 1, that of the run that it was trained for

    def last_lines(self, count: int) -> str:
        """The end of the log. What writes there need not write UTF-8, and who is killed does not end a character."""
        return '\n'.join(self.log.read_text(encoding='utf-8', errors='replace').splitlines()[-count:])

    def failure(self, count: int) -> str:
        """How a run failed, with the last lines of its log, which one that is killed early does not have."""
        status = self.status or 0
        how = f'failed with status {status}' if status >= 0 else \
            f'was killed by signal {-status}' + ', for lack of memory perhaps' * (status == -9)
        if not self.log.exists():
            return f'{how}, before it could write {self.log}'
        return f'{how}; the end of {self.log}:\n{self.last_lines(count)}'


def make_all(runs: list[PlannedRun], out: Path, root: Path, gpus: list[str | None],
             ) -> Generator[Event, None, None]:
    """Makes the records of runs, one run on each of ``gpus`` (see :func:`gpu_names`; None is the CPU).

    Those that have a record are tested again, and not trained.

    Every run has a process of its own, so that one that fails takes no other with it. When this generator is closed,
    the runs in progress save their state and end; they go on the next time.

    Yields:
        Event: Each end of a run, and some ten times a minute how far the others are.
    """
    context = multiprocessing.get_context('spawn') if sys.platform == 'win32' else \
        multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([__name__])
    there = {run.name for run in runs if run.record(out).exists()}
    waiting = list(runs)
    free, busy, spent = list(gpus), {}, dict.fromkeys((run.name for run in waiting), 0.)
    try:
        while waiting or busy:
            for run in list(waiting):
                log = root / 'results' / run.plan / 'logs' / f'{run.name}.log'
                # another process has made it since: made anew it would tell of its test alone
                if run.name not in there and run.record(out).exists():
                    waiting.remove(run)
                    yield Event(run, 0, log=log, seconds=spent[run.name])
                    continue
                missing = set() if run.name in there else {
                    stage.name for stage in run.stages[:-1] if not stage.weights(root, 'g').exists()}
                in_work = {name for names, *_ in busy.values() for name in names}
                if not free or missing & in_work:  # another run trains a stage that both begin with
                    continue
                gpu = free.pop(0)
                alone = bool(missing)
                process = context.Process(target=make, args=(run, out, root, log, gpu, alone))
                with _ctrl_c_later():
                    process.start()
                    busy[process] = (missing or {run.name}, run, gpu, alone, log)
                spent[run.name] -= time.time()
                waiting.remove(run)
            ended = [p for p in busy if not p.is_alive()]
            for process in ended:
                process.join()
                _, run, gpu, alone, log = busy.pop(process)
                spent[run.name] += time.time()
                free.append(gpu)
                if alone and process.exitcode == 0:
                    waiting.insert(0, run)  # what it begins with is there: now the rest
                else:
                    yield Event(run, process.exitcode or 0, log=log, seconds=spent[run.name])
            if not ended and busy:
                time.sleep(0.5)
                for _, run, _, _, log in list(busy.values()):
                    yield Event(run, None, progress(run, root), log)
    finally:
        for process in busy:
            process.terminate()  # SIGTERM: it saves its state
        for process in busy:
            process.join()


def progress(run: PlannedRun, root: Path) -> int:
    """How many iterations of a run are done, all its stages together."""
    return sum(done(root, stage) for stage in run.stages)


def done(root: Path, stage: Stage) -> int:
    """How many iterations of a stage are done."""
    if stage.weights(root, 'g').exists():
        return stage.iterations
    history = read_history(root / 'experiments' / stage.name / 'history.jsonl')[1:]
    return max((entry['iter'] for entry in history), default=0)


def begun(root: Path, stage: Stage) -> bool:
    """Whether a stage goes on from what it did before: one that is stopped early has a state, and logged nothing."""
    return done(root, stage) > 0 or any((root / 'experiments' / stage.name / 'training_states').glob('*.state'))


class Outlook:
    """When the runs of a plan that are missing will have been made, by what has been done since it was begun.

    A stage counts by the operations of its iterations. Validation and tests are not counted apart, and slow down all.

    Args:
        runs: Those that are missing.
        root: Where ``experiments/`` is.
    """

    def __init__(self, runs: Iterable[PlannedRun], root: Path) -> None:
        self.root = root
        # a stage 1 that several share is trained once
        self.stages = {stage.name: (stage, _operations(stage)) for run in runs for stage in run.stages}
        self.whole = sum(stage.iterations * each for stage, each in self.stages.values())
        self.began, self.before = time.time(), self._made()

    def _made(self) -> float:
        return sum(done(self.root, stage) * each for stage, each in self.stages.values())

    def seconds(self) -> float | None:
        """Seconds that are left; None while nothing has been done from which they could be told."""
        made = self._made()
        if made <= self.before:
            return None
        return (self.whole - made) * (time.time() - self.began) / (made - self.before)


def _operations(stage: Stage) -> float:
    try:
        return iteration_operations(stage.flat)
    except Exception:  # of a network that cannot be counted; the iterations still can
        return 1.
