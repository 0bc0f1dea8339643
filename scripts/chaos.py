#!/usr/bin/env python
"""Kills trainings with SIGKILL again and again, resumes them each time, and compares with what was left alone.

    python scripts/chaos.py --kills 40 --out chaos.json

Three quarters of the kills go to a training of both stages (ESU, then UDL with cached uncertainty) on the demo's
photographs, which are prepared first where they are missing: at random moments, in start-up too; while a checkpoint is
being written, once the file that is written aside is seen, before it is whole and renamed; in the last validation of a
stage; and while the cache is made. The others go to a comparison of losses (udl compare): by turns to all
of its processes, and to the one alone that started the others, which then have to end by themselves. After each kill
the same command goes on. It must go on from the last state that was complete, and all that is left at the end
(networks, their averages, the best ones, states of optimisers and schedulers, the maps of the cache, the records of the
comparison) must be bit for bit what was left without a kill.

The exit status is 0 only if every kill was resumed and all is equal. It works in a folder of its own, which is kept if
not. 40 kills take about 15 minutes on 2 idle cores.
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from udl_basicsr.utils import exits

ROOT = Path(__file__).resolve().parents[1]
STAGES = ('chaos_ESU', 'chaos_UDL')
ITERATIONS = 215  # of each stage; neither frequency divides it
SAVE_FREQ, VAL_FREQ = 10, 40
MOMENT, WRITE, LAST, CACHE = 'a moment', 'a write', 'the last validation', 'the cache'
AIMS = (MOMENT, WRITE, MOMENT, WRITE, LAST, LAST, CACHE, CACHE, CACHE, MOMENT, WRITE, MOMENT, WRITE, LAST)
"""What the kills of one training are aimed at, in the order in which the two stages come to it."""
DONE = 'all', None  # where there is nothing to go on with: the kill came after the last record
ALL, PARENT = 'all processes', 'the parent alone'
# Of the records of comparisons; the rest is measured by the clock, or says on what machine and when.
_RESULTS = {'method', 'scale', 'seed', 'network', 'parameters', 'stages', 'options', 'initial_weights', 'data_order',
            'curve', 'datasets'}
_ENTRY = 'import sys; from pathlib import Path; from udl_basicsr.train import main; sys.exit(main(Path.cwd()))'
_BASE = """\
_base_: {demo}/train_ESU.yml
name: ~
stage: ~
datasets:
  train:
    dataroot_gt: {data}/train/GTmod2_sub
    dataroot_lq: {data}/train/LRbicx2_sub
    num_worker_per_gpu: 2
    batch_size_per_gpu: 4
  val:
    dataroot_gt: {data}/val/GTmod2
    dataroot_lq: {data}/val/LRbicx2
network_g:
  num_feat: 16
  num_block: 2
train:
  likelihood_opt: ~
  total_iter: {iterations}
  ema_decay: 0.95
  scheduler:
    periods: [{iterations}]
val:
  val_freq: {val_freq}
logger:
  print_freq: 1
  save_checkpoint_freq: {save_freq}
  keep_last: 3
"""
_TRAININGS = {
    'train_ESU.yml': """\
_base_: base.yml
name: chaos_ESU
stage: esu
train: {likelihood_opt: {type: ESULoss}}
""",
    'train_UDL.yml': """\
_base_: base.yml
name: chaos_UDL
stage: udl
stage1: train_ESU.yml
datasets: {train: {uncertainty_cache: cache}}
train: {udl_opt: {type: UDLLoss}}
""",
}
_PLAN = """\
name: chaos
title: EDSR 2×16
train: base.yml
test: test.yml
reference: L1
seeds: [0, 1]
scales: {x2: ~}
first: {iterations: 35, ESU: {stage: esu, train: {likelihood_opt: {type: ESULoss}}}}
methods:
  L1: {options: {stage: plain, network_u: ~, train: {pixel_opt: {type: L1Loss}}}}
  UDL: {after: ESU, options: {stage: udl, train: {udl_opt: {type: UDLLoss}}}}
"""
_TEST = """\
_base_: base.yml
train: ~
logger: ~
datasets:
  train: ~
  val: ~
  test:
    name: demo
    type: PairedImageDataset
    dataroot_gt: {data}/val/GTmod2
    dataroot_lq: {data}/val/LRbicx2
    io_backend: {{type: disk}}
val: {{val_freq: ~, save_best: ~}}
"""


@dataclass
class Kill:
    """One kill, and how the run went on.

    Attributes:
        what: The folder of what was killed.
        aim: What was to be hit; what was hit is the ``phase``.
        seconds: Since the process was started.
        stage, iteration: Of the last step that it logged; None before the first.
        phase: ``start-up``, ``cache``, ``training``, ``validation``, ``last validation``, or ``saving`` (a file that
            was being written is left behind).
        file, bytes_written: What was being written, and how much of it was there.
        ended_after: Seconds until the children of a parent that was killed alone had ended by themselves.
        state: The last complete state on the disk as (stage, iteration): from here it has to go on. Without an
            iteration, the test of that run is still to be done.
        resumed_from: Where it did; None if that was never seen.
    """
    number: int
    what: str
    aim: str
    seconds: float
    stage: str | None
    iteration: int | None
    phase: str
    file: str | None
    bytes_written: int | None
    ended_after: float | None
    state: tuple[str, int | None]
    resumed_from: tuple[str, int | None] | None = None

    @property
    def resumed(self) -> bool:
        return self.resumed_from == self.state


class Chain:
    """A folder in which both stages are trained, by one process after the other."""

    iterations = ITERATIONS

    def __init__(self, folder: Path, data: Path):
        self.folder = folder
        folder.mkdir()
        (folder / 'base.yml').write_text(_BASE.format(
            demo=ROOT / 'options/demo', data=data, iterations=self.iterations, save_freq=SAVE_FREQ, val_freq=VAL_FREQ))
        self.starts = 0
        self.abandoned: set[Path] = set()  # by processes that were killed
        self.write_options(data)

    def write_options(self, data: Path) -> None:
        for name, text in _TRAININGS.items():
            (self.folder / name).write_text(text)

    def command(self) -> list[str]:
        resume = ['--auto_resume'] if self.starts > 1 else []
        return [sys.executable, '-c', _ENTRY, '-opt', 'train_UDL.yml', *resume]

    def start(self) -> Run:
        self.starts += 1
        return Run(self.command(), self.folder, self.folder / f'output_{self.starts:03d}.txt')

    def said(self, run: Run) -> str:
        """What the training said since the process was started."""
        return run.text()

    def being_written(self) -> list[Path]:
        return [file for kind in ('models', 'training_states')
                for file in self.folder.glob(f'experiments/*/{kind}/.*.part') if file not in self.abandoned]

    def last_state(self, name: str) -> int:
        """The iteration of the last complete state of a run; 0 where there is none."""
        states = (self.folder / 'experiments' / name / 'training_states').glob('*.state')
        return max((int(state.stem) for state in states), default=0)

    def has_ended(self, name: str) -> bool:
        labels = 'gu' if 'ESU' in name else 'g'
        return all((self.folder / 'experiments' / name / 'models' / f'net_{x}_latest.pth').exists() for x in labels)

    def position(self) -> tuple[str, int | None]:
        """The stage, and the iteration of its last complete state (0: none yet)."""
        stage = STAGES[self.has_ended(STAGES[0])]
        return stage, self.last_state(stage)

    def in_last_validation(self, run: Run) -> bool:
        stage, _, phase = last_step(self.said(run))
        return phase == 'last validation' and not self.has_ended(stage)

    def in_cache(self, run: Run) -> bool:
        return last_step(self.said(run))[2] == 'cache' and not self.has_cache()

    def has_cache(self) -> bool:
        return (self.folder / 'cache' / 'manifest.json').exists()

    def left(self) -> dict[str, Path]:
        """What is compared at the end: the last and the best networks, the last states, and the cache."""
        found = {}
        for run in sorted((self.folder / 'experiments').iterdir()):
            states = sorted((run / 'training_states').glob('*.state'), key=lambda p: int(p.stem))
            for file in (*run.glob('models/*_latest.pth'), *run.glob('models/*_best.pth'), *states[-1:]):
                found[f'{run.name}/{file.name}'] = file
        for file in (*self.folder.glob('cache/*.npy'), *self.folder.glob('cache/*.json*')):
            found[f'cache/{file.name}'] = file
        return found


class Comparison(Chain):
    """A folder in which a comparison of two losses is made: seeds 0 and 1, one run after the other."""

    iterations = 95

    def write_options(self, data: Path) -> None:
        (self.folder / 'plan.yml').write_text(_PLAN, encoding='utf-8')
        (self.folder / 'test.yml').write_text(_TEST.format(data=data))
        self.heard: dict[Path, int] = {}

    def command(self) -> list[str]:
        return [sys.executable, str(ROOT / 'udl compare'), 'plan.yml', '--root', '.', '--out', 'records']

    def start(self) -> Run:
        self.heard = {log: log.stat().st_size for log in self.logs()}
        return super().start()

    def logs(self) -> list[Path]:
        return sorted(self.folder.glob('results/chaos/logs/*.log'), key=lambda p: p.stat().st_mtime_ns)

    def said(self, run: Run) -> str:
        return ''.join(log.read_bytes()[self.heard.get(log, 0):].decode(errors='replace') for log in self.logs())

    def position(self) -> tuple[str, int | None]:
        for seed in (0, 1):
            for method, stages in (('L1', ('L1', )), ('UDL', ('first_ESU', 'UDL'))):
                if not self.record(f'chaos_{method}_x2_seed{seed}').exists():
                    name = next((n for n in (f'chaos_{stage}_x2_seed{seed}' for stage in stages)
                                 if not self.has_ended(n)), None)
                    return (name, self.last_state(name)) if name else (f'chaos_{method}_x2_seed{seed}', None)
        return DONE

    def record(self, name: str) -> Path:
        return self.folder / 'records' / f'{name.removeprefix("chaos_")}.json'

    def left(self) -> dict[str, Path]:
        return super().left() | {file.name: file for file in self.folder.glob('records/*.json')}


class Run:
    """One process with its children, all in a process group and a session of their own."""

    last: Run | None = None

    def __init__(self, command: list[str], folder: Path, output: Path):
        self.output = output
        self.started = time.monotonic()
        environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONUNBUFFERED': '1',
                       'PYTHONPATH': os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH'))))}
        with open(output, 'wb') as file:
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file,
                                            stderr=subprocess.STDOUT, start_new_session=True)
        Run.last = self

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def ended(self) -> bool:
        return self.process.poll() is not None

    def wait_until(self, seconds: float) -> bool:
        """Whether it still runs then."""
        try:
            self.process.wait(max(seconds - self.seconds, 0))
        except subprocess.TimeoutExpired:
            return True
        return False

    def kill(self) -> None:
        """SIGKILL to the process and all its children."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def kill_parent(self, patience: float) -> float | None:
        """SIGKILL to the process alone. Returns after how many seconds its children had ended, or None if not."""
        self.process.kill()
        self.process.wait()
        begun = time.monotonic()
        while members(self.process.pid):
            if time.monotonic() - begun > patience:
                os.killpg(self.process.pid, signal.SIGKILL)
                return None
            time.sleep(0.1)
        return round(time.monotonic() - begun, 2)

    def kill_when(self, there: Callable[[], bool], delay: float) -> bool:
        """Kills ``delay`` seconds into what is waited for. False if the process ended before.

        It is halted first, so that there is time to make sure that it is still at it; if not, the next time is taken.
        """
        while not self.ended():
            if not there():
                time.sleep(0.002)
                continue
            time.sleep(delay)
            os.killpg(self.process.pid, signal.SIGSTOP)
            if there():
                self.kill()
                return True
            os.killpg(self.process.pid, signal.SIGCONT)
        return False

    def text(self) -> str:
        return self.output.read_text(encoding='utf-8', errors='replace')


def members(session: int) -> list[int]:
    """The processes of a session that live, by /proc."""
    found = []
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try:
            state, _, _, of, *_ = stat.read_text().rpartition(')')[2].split()
        except OSError:  # it has just ended
            continue
        if int(of) == session and state != 'Z':
            found.append(int(stat.parent.name))
    return found


_NAME = re.compile(r'^ {0,2}name: (\S+)$', re.MULTILINE)  # of a run; those of its data sets stand further in


def began_at(text: str) -> tuple[str, int] | None:
    """Stage and iteration from which a process trained on, by what it printed; None if it did not come so far."""
    found = re.search(r'.* iterations (\d+) to \d+\.', text)
    names = _NAME.findall(text[:found.start()]) if found else []
    return (names[-1], int(found[1]) - 1) if names else None


def last_step(text: str) -> tuple[str | None, int | None, str]:
    """Stage and iteration of the last step that a process logged, and what it was about to do."""
    begins = list(_NAME.finditer(text))
    if not begins:
        return None, None, 'start-up'
    stage, text = begins[-1][1], text[begins[-1].end():]
    steps = list(re.finditer(r'iter: *([\d,]+), lr', text))
    iteration = int(steps[-1][1].replace(',', '')) if steps else None
    if 'End of training.' in text:
        return stage, iteration, 'last validation'
    if not steps:
        makes = 'computing the uncertainty of' in text and 'rounded by at most' not in text
        return stage, None, 'cache' if makes else \
            'training' if re.search(r' iterations \d+ to \d+\.', text) else 'start-up'
    validates = iteration % VAL_FREQ == 0 and 'Validation' not in text[steps[-1].end():]
    return stage, iteration, 'validation' if validates else 'training'


def equal(a, b) -> bool:
    """Whether two checkpoints hold the same, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(
            a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def content(file: Path):
    """What is compared of a file: all of it, of a record what does not depend on the clock."""
    if file.suffix in ('.pth', '.state'):
        return torch.load(file, map_location='cpu', weights_only=True)
    if file.suffix == '.json':
        return {k: v for k, v in json.loads(file.read_text(encoding='utf-8')).items() if k in _RESULTS}
    return file.read_bytes()


def differing(reference: Chain, other: Chain) -> list[str]:
    """The files of both chains that are not equal, or that one of them lacks."""
    a, b = reference.left(), other.left()
    return sorted(name for name in a.keys() | b.keys()
                  if name not in a or name not in b or not equal(content(a[name]), content(b[name])))


class Chaos:
    """The kill test. After ``run``, ``kills`` and ``report`` say how it went."""

    def __init__(self, wanted: int, seed: int, folder: Path, data: Path):
        self.wanted, self.folder, self.data = wanted, folder, data
        self.seed, self.random = seed, random.Random(seed)
        self.kills: list[Kill] = []
        self.chains, self.different, self.compared, self.problem = [], [], [], None
        self.begun = time.monotonic()

    def run(self) -> None:
        of_comparisons = self.wanted // 4
        self._torment(Chain, 'training', self.wanted - of_comparisons, AIMS)
        if of_comparisons:
            self._torment(Comparison, 'comparison', of_comparisons, (PARENT, ALL))

    def _torment(self, kind: type[Chain], name: str, count: int, aims: tuple[str, ...]) -> None:
        """Makes one without a kill, and as many with as it takes to place ``count`` kills."""
        if self.problem is not None:
            return
        print(f'A {name} without a kill.', flush=True)
        reference = kind(self.folder / f'{name}_reference', self.data)
        run = reference.start()
        self.start_up = self._first_step(reference, run)
        if not self._finish(reference, run, 7200):
            return
        self.compared += sorted(f'{name}/{file}' for file in reference.left())
        work = run.seconds - self.start_up
        print(f'It took {run.seconds:.0f} s, {self.start_up:.0f} of them to start up. Now {count} kills.', flush=True)
        # How long a process may work at most, so that the kills are spread over all of it.
        self.beyond = 2 * work / len(aims if kind is Chain else range(count))
        self.patience = 10 * (self.start_up + work) + 120
        left, number = count, 0
        while left > 0 and self.problem is None:
            number += 1
            chain = kind(self.folder / f'{name}_{number}', self.data)
            self.chains.append(chain)
            wanted = [aims[i % len(aims)] for i in range(left if kind is Comparison else min(left, len(aims)))]
            left -= self._kill_all(chain, wanted)
            if self.problem is None:
                self.different += [f'{chain.folder.name}/{file}' for file in differing(reference, chain)]

    def _kill_all(self, chain: Chain, aims: list[str]) -> int:
        """Kills until there have been enough kills, or until all is done. Returns how many there were."""
        for number, aim in enumerate(aims):
            run = chain.start()
            if aim == CACHE and chain.has_cache():  # an earlier kill came too late to leave it to be made
                aim = MOMENT
            killed, ended_after = self._kill(chain, run, aim)
            self._settle(chain, chain.said(run))
            if not killed:
                self._check_end(run)
                return number
            self._note(chain, run, aim, ended_after)
            if self.problem is not None:
                return number + 1
        run = chain.start()
        self._finish(chain, run, self.patience)
        self._settle(chain, chain.said(run))
        return len(aims)

    def _kill(self, chain: Chain, run: Run, aim: str) -> tuple[bool, float | None]:
        """Whether it could be killed before it ended, and how long its children lived on."""
        if aim == LAST:
            return run.kill_when(lambda: chain.in_last_validation(run), self.random.uniform(0, 0.2)), None
        if aim == CACHE:
            return run.kill_when(lambda: chain.in_cache(run), self.random.uniform(0, 1)), None
        if aim != WRITE and self.random.random() < 1 / 3:
            alive = run.wait_until(self.random.uniform(0, self.start_up))
        else:
            self._first_step(chain, run)  # however long that takes on a busy machine
            alive = run.wait_until(run.seconds + self.random.uniform(0, self.beyond))
        if aim == WRITE:
            return run.kill_when(chain.being_written, self.random.uniform(0, 0.003)), None
        if alive and aim == PARENT:
            ended_after = run.kill_parent(self.patience)
            if ended_after is None:
                self.problem = f'{run.output}: after {self.patience:.0f} s its children trained on'
            return True, ended_after
        if alive:
            run.kill()
        return alive, None

    def _first_step(self, chain: Chain, run: Run) -> float:
        while not run.ended() and last_step(chain.said(run))[1] is None:
            time.sleep(0.1)
        return run.seconds

    def _finish(self, chain: Chain, run: Run, patience: float) -> bool:
        if run.wait_until(run.seconds + patience):
            run.kill()
            self.problem = f'{run.output}: still running after {patience:.0f} s'
            return False
        return self._check_end(run)

    def _check_end(self, run: Run) -> bool:
        if run.process.returncode != 0:
            self.problem = f'{run.output}: exit status {run.process.returncode}\n{run.text()[-2000:]}'
        return self.problem is None

    def _settle(self, chain: Chain, text: str) -> None:
        """Notes for the kills before where the process went on. One that was killed too early does not tell."""
        began = began_at(text)
        for kill in self.kills:
            if kill.what != chain.folder.name or kill.resumed_from is not None:
                continue
            if kill.state[1] is None:
                if chain.position() != kill.state:  # the test is done
                    kill.resumed_from = kill.state
            elif began:
                kill.resumed_from = began

    def _note(self, chain: Chain, run: Run, aim: str, ended_after: float | None) -> None:
        stage, iteration, phase = last_step(chain.said(run))
        written = chain.being_written()
        file = max(written, key=lambda p: p.stat().st_mtime_ns) if written else None
        kill = Kill(len(self.kills) + 1, chain.folder.name, aim, round(run.seconds, 2), stage, iteration,
                    'saving' if file else phase, file.name.split('.', 1)[1].rsplit('.', 2)[0] if file else None,
                    file.stat().st_size if file else None, ended_after, chain.position())
        if kill.state == DONE:
            kill.resumed_from = DONE
        self.kills.append(kill)
        chain.abandoned.update(written)
        what = f'writing {kill.file}, {kill.bytes_written} bytes' if kill.file else phase
        alone = f', children ended after {ended_after:.1f} s' if ended_after is not None else ''
        print(f'kill {kill.number}/{self.wanted} after {kill.seconds:.1f} s, aimed at {aim}: {stage or "-"} '
              f'{iteration or "-"}, {what}{alone}; last state {kill.state[0]} {kill.state[1]}; '
              f'{time.monotonic() - self.begun:.0f} s so far', flush=True)

    def report(self) -> dict:
        phases = [kill.phase for kill in self.kills]
        return {
            'kills': len(self.kills),
            'resumed': sum(kill.resumed for kill in self.kills),
            'during_write': phases.count('saving'),
            'phases': {phase: phases.count(phase) for phase in sorted(set(phases))},
            'in_comparisons': sum(kill.aim in (ALL, PARENT) for kill in self.kills),
            'children_ended_after': max((k.ended_after for k in self.kills if k.ended_after is not None), default=None),
            'bitwise_equal': self.problem is None and bool(self.chains) and not self.different,
            'compared': self.compared,
            'different': self.different,
            'problem': self.problem,
            'trainings': len(self.chains),
            'iterations': ITERATIONS,
            'seed': self.seed,
            'seconds': round(time.monotonic() - self.begun),
            'machine': f'{platform.machine()}, {os.cpu_count()} CPU cores, torch {torch.__version__}',
            'records': [{**asdict(kill), 'resumed': kill.resumed} for kill in self.kills],
        }


def demo_data() -> Path:
    """The folder of the demo's photographs, which are prepared where they are missing."""
    data = ROOT / 'datasets/demo'
    if not all((data / part).is_dir() for part in ('train/GTmod2_sub', 'train/LRbicx2_sub', 'val/LRbicx2')):
        made = subprocess.run(['bash', str(ROOT / 'scripts/demo.sh'), '--data-only'])
        if made.returncode:
            raise FileNotFoundError(f'{data}: the photographs could not be prepared, see above')
    return data


@exits.command()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
    parser.add_argument('--kills', type=int, default=40, metavar='N')
    parser.add_argument('--out', type=Path, required=True, metavar='FILE.json', help='where the report goes')
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    args = parser.parse_args(argv)
    if args.kills < 1:
        parser.error(f'--kills: expected at least 1, got {args.kills}')
    if args.out.is_dir() or not args.out.parent.is_dir():
        parser.error(f'--out {args.out}: expected a file in a folder that is there')
    folder = Path(tempfile.mkdtemp(prefix='chaos_'))
    chaos = Chaos(args.kills, args.seed, folder, demo_data())
    try:
        chaos.run()
    finally:
        if Run.last and not Run.last.ended():  # it has a group of its own, which Ctrl-C does not reach
            Run.last.kill()
    report = chaos.report()
    args.out.write_text(json.dumps(report, indent=1) + '\n', encoding='utf-8')
    good = report['bitwise_equal'] and report['resumed'] == report['kills'] == args.kills
    print(f"{report['resumed']} of {report['kills']} kills resumed, {report['phases']}; bitwise equal: "
          f"{report['bitwise_equal']}; {report['seconds']} s. Report in {args.out}")
    if not good:
        print('\n'.join(filter(None, (report['problem'], *report['different']))), f'Kept: {folder}', file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == '__main__':
    sys.exit(main())
