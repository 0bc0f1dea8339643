#!/usr/bin/env python
"""Kills a training with SIGKILL again and again, resumes it each time, and compares with one that was left alone.

    python scripts/chaos.py --kills 30 --out chaos.json

Both stages (ESU, then UDL) are trained on the demo's photographs, which are prepared first where they are missing.
Half of the kills come at random moments, in start-up too, half while a checkpoint is being written: once the file that
is written aside is seen, before it is whole and renamed. After each kill the same command goes on
with `--auto_resume`. It must go on from the last state that was complete, and all that is left at the end (networks,
their averages, the best ones, states of optimisers and schedulers) must be bit for bit what the undisturbed run left.

The exit status is 0 only if every kill was resumed and all is equal. It works in a folder of its own, which is kept if
not. 30 kills take about 8 minutes on 2 idle cores.
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
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
STAGES = ('chaos_ESU', 'chaos_UDL')
SAVE_FREQ, VAL_FREQ = 10, 40
_ENTRY = 'import sys; from pathlib import Path; from udl_basicsr.train import main; sys.exit(main(Path.cwd()))'
_OPTIONS = """\
_base_: {demo}/train_{stage}.yml
name: chaos_{stage}
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


@dataclass
class Kill:
    """One kill, and how the run went on.

    Attributes:
        seconds: Since the process was started.
        stage, iteration: Of the last step that it logged; None before the first.
        phase: ``start-up``, ``training``, ``validation`` or ``saving`` (a file that was being written is left behind).
        file, bytes_written: What was being written, and how much of it was there.
        state: The last complete state on the disk as (stage, iteration): from here it has to go on.
        resumed_from: Where it did; None if that was never seen.
    """
    number: int
    chain: int
    seconds: float
    stage: str | None
    iteration: int | None
    phase: str
    file: str | None
    bytes_written: int | None
    state: tuple[str, int]
    resumed_from: tuple[str, int] | None = None

    @property
    def resumed(self) -> bool:
        return self.resumed_from == self.state


class Chain:
    """A folder in which both stages are trained, by one process after the other."""

    def __init__(self, folder: Path, data: Path, iterations: int):
        self.folder = folder
        folder.mkdir()
        for stage in ('ESU', 'UDL'):
            (folder / f'train_{stage}.yml').write_text(_OPTIONS.format(
                demo=ROOT / 'options/demo', data=data, stage=stage, iterations=iterations, save_freq=SAVE_FREQ,
                val_freq=VAL_FREQ))
        with open(folder / 'train_UDL.yml', 'a', encoding='utf-8') as file:
            file.write(f'stage1: {folder / "train_ESU.yml"}\n')
        self.starts = 0
        self.abandoned: set[Path] = set()  # by processes that were killed

    def start(self) -> Run:
        self.starts += 1
        resume = ['--auto_resume'] if self.starts > 1 else []
        return Run([sys.executable, '-c', _ENTRY, '-opt', 'train_UDL.yml', *resume], self.folder,
                   self.folder / f'output_{self.starts:03d}.txt')

    def being_written(self) -> list[Path]:
        return [file for name in STAGES for kind in ('models', 'training_states')
                for file in (self.folder / 'experiments' / name / kind).glob('.*.part') if file not in self.abandoned]

    def position(self) -> tuple[str, int]:
        """The stage, and the iteration of its last complete state (0: none yet)."""
        first = self.folder / 'experiments' / STAGES[0] / 'models'
        stage = STAGES[all((first / f'net_{label}_latest.pth').exists() for label in 'gu')]
        states = (self.folder / 'experiments' / stage / 'training_states').glob('*.state')
        return stage, max((int(state.stem) for state in states), default=0)

    def left(self) -> dict[str, Path]:
        """What is compared at the end: the last and the best networks, and the last states."""
        found = {}
        for name in STAGES:
            run = self.folder / 'experiments' / name
            states = sorted((run / 'training_states').glob('*.state'), key=lambda p: int(p.stem))
            for file in (*run.glob('models/*_latest.pth'), *run.glob('models/*_best.pth'), *states[-1:]):
                found[f'{name}/{file.name}'] = file
        return found


class Run:
    """One process of training with its workers, all in a process group of their own."""

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
        """SIGKILL to the process and all its workers."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def kill_while_writing(self, chain: Chain, skip: int, delay: float) -> bool:
        """Kills ``delay`` seconds into the next write of a checkpoint but ``skip``. False if the process ended before.

        It is halted first, so that there is time to make sure that the file is still there; if not, the next write is
        taken.
        """
        seen = None
        while not self.ended():
            files = chain.being_written()
            if not files or files[0] == seen:
                time.sleep(0.0005)
                continue
            seen = files[0]
            if skip > 0:
                skip -= 1
                continue
            time.sleep(delay)
            os.kill(self.process.pid, signal.SIGSTOP)
            if chain.being_written():
                self.kill()
                return True
            os.kill(self.process.pid, signal.SIGCONT)
        return False

    def text(self) -> str:
        return self.output.read_text(encoding='utf-8', errors='replace')


def began_at(text: str) -> tuple[str, int] | None:
    """Stage and iteration from which a process trained on, by what it printed; None if it did not come so far."""
    found = re.search(rf'name: ({"|".join(STAGES)})\n(?:.*\n)*?.* iterations (\d+) to \d+\.', text)
    return (found[1], int(found[2]) - 1) if found else None


def last_step(text: str) -> tuple[str | None, int | None, str]:
    """Stage and iteration of the last step that a process logged, and what it was about to do."""
    begins = list(re.finditer(rf'^ *name: ({"|".join(STAGES)})$', text, re.MULTILINE))
    if not begins:
        return None, None, 'start-up'
    stage, text = begins[-1][1], text[begins[-1].end():]
    steps = list(re.finditer(r'iter: *([\d,]+), lr', text))
    if not steps:
        return stage, None, 'training' if re.search(r' iterations \d+ to \d+\.', text) else 'start-up'
    iteration = int(steps[-1][1].replace(',', ''))
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


def differing(reference: Chain, other: Chain) -> list[str]:
    """The files of both chains that are not equal, or that one of them lacks."""
    a, b = reference.left(), other.left()
    return sorted(name for name in a.keys() | b.keys() if name not in a or name not in b or not equal(
        *(torch.load(files[name], map_location='cpu', weights_only=True) for files in (a, b))))


class Chaos:
    """The kill test. After ``run``, ``kills`` and ``report`` say how it went."""

    def __init__(self, wanted: int, seed: int, folder: Path, data: Path):
        self.wanted, self.folder, self.data = wanted, folder, data
        self.seed, self.random = seed, random.Random(seed)
        self.iterations = 40 + SAVE_FREQ * wanted  # of each stage, enough for all kills to find something to stop
        self.kills: list[Kill] = []
        self.chains, self.different, self.problem = [], [], None
        self.begun = time.monotonic()

    def run(self) -> None:
        print(f'Training {self.iterations} iterations of ESU and of UDL without a kill.', flush=True)
        self.reference = Chain(self.folder / 'reference', self.data, self.iterations)
        run = self.reference.start()
        start_up = self._first_step(run)
        if not self._finish(run, 3600):
            return
        self.start_up, self.training = start_up, run.seconds - start_up
        print(f'It took {run.seconds:.0f} s, {start_up:.0f} of them to start up. Now {self.wanted} kills.', flush=True)
        # How long a process may train at most, so that the kills are spread over both stages.
        self.beyond = 2 * self.training / max(self.wanted, 1)
        self.patience = 5 * (start_up + self.training) + 60
        while self.problem is None and (len(self.kills) < self.wanted or not self.chains):
            chain = Chain(self.folder / f'killed_{len(self.chains)}', self.data, self.iterations)
            self.chains.append(chain)
            self._torment(chain)

    def _torment(self, chain: Chain) -> None:
        """Kills until there have been enough kills, or until the training is done."""
        while len(self.kills) < self.wanted and self.problem is None:
            run = chain.start()
            writing = len(self.kills) % 2 == 1
            skip, delay = self.random.randrange(3), self.random.uniform(0, 0.003)
            if not writing and self.random.random() < 1 / 3:
                alive = run.wait_until(self.random.uniform(0, self.start_up))
            else:
                self._first_step(run)  # however long that takes on a busy machine
                alive = run.wait_until(run.seconds + self.random.uniform(0, self.beyond))
            if alive and writing:
                alive = run.kill_while_writing(chain, skip, delay)
            elif alive:
                run.kill()
            self._settle(run.text())
            if not alive:
                self._check_end(run)
                break
            self._note(chain, run)
        else:
            if self.problem is None:
                run = chain.start()
                self._finish(run, self.patience)
                self._settle(run.text())
        if self.problem is None:
            self.different += [f'{chain.folder.name}/{name}' for name in differing(self.reference, chain)]

    def _first_step(self, run: Run) -> float:
        while not run.ended() and last_step(run.text())[1] is None:
            time.sleep(0.1)
        return run.seconds

    def _finish(self, run: Run, patience: float) -> bool:
        if run.wait_until(run.seconds + patience):
            run.kill()
            self.problem = f'{run.output}: still running after {patience:.0f} s'
            return False
        return self._check_end(run)

    def _check_end(self, run: Run) -> bool:
        if run.process.returncode != 0:
            self.problem = f'{run.output}: exit status {run.process.returncode}\n{run.text()[-2000:]}'
        return self.problem is None

    def _settle(self, text: str) -> None:
        """Notes for the kills before where the process went on. One that was killed too early does not tell."""
        began = began_at(text)
        if began:
            for kill in self.kills:
                if kill.resumed_from is None:
                    kill.resumed_from = began

    def _note(self, chain: Chain, run: Run) -> None:
        stage, iteration, phase = last_step(run.text())
        written = chain.being_written()
        file = max(written, key=lambda p: p.stat().st_mtime_ns) if written else None
        kill = Kill(len(self.kills) + 1, len(self.chains), round(run.seconds, 2), stage, iteration,
                    'saving' if file else phase, file.name.split('.', 1)[1].rsplit('.', 2)[0] if file else None,
                    file.stat().st_size if file else None, chain.position())
        self.kills.append(kill)
        chain.abandoned.update(written)
        spent = time.monotonic() - self.begun
        eta = (spent - self.start_up - self.training) / kill.number * (self.wanted - kill.number) + self.start_up
        what = f'writing {kill.file}, {kill.bytes_written} bytes' if kill.file else phase
        print(f'kill {kill.number}/{self.wanted} after {kill.seconds:.1f} s: {stage or "-"} {iteration or "-"}, '
              f'{what}; last state {kill.state[0]} {kill.state[1]}; {eta:.0f} s left', flush=True)

    def report(self) -> dict:
        resumed = sum(kill.resumed for kill in self.kills)
        return {
            'kills': len(self.kills),
            'resumed': resumed,
            'during_write': sum(kill.phase == 'saving' for kill in self.kills),
            'bitwise_equal': self.problem is None and bool(self.chains) and not self.different,
            'compared': sorted(self.reference.left()),
            'different': self.different,
            'problem': self.problem,
            'trainings': len(self.chains),
            'iterations': dict.fromkeys(STAGES, self.iterations),
            'seed': self.seed,
            'seconds': round(time.monotonic() - self.begun),
            'machine': f'{platform.machine()}, {os.cpu_count()} CPU cores, torch {torch.__version__}',
            'records': [{**asdict(kill), 'resumed': kill.resumed} for kill in self.kills],
        }


def demo_data() -> Path:
    """The folder of the demo's photographs, which are prepared where they are missing."""
    data = ROOT / 'datasets/demo'
    if not all((data / part).is_dir() for part in ('train/GTmod2_sub', 'train/LRbicx2_sub', 'val/LRbicx2')):
        subprocess.run(['bash', str(ROOT / 'scripts/demo.sh'), '--data-only'], check=True)
    return data


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
    parser.add_argument('--kills', type=int, default=30, metavar='N')
    parser.add_argument('--out', type=Path, required=True, metavar='FILE.json', help='where the report goes')
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    args = parser.parse_args()
    if args.kills < 1:
        parser.error(f'--kills: expected at least 1, got {args.kills}')
    if not args.out.parent.is_dir():
        parser.error(f'--out: {args.out.parent} is no folder')
    folder = Path(tempfile.mkdtemp(prefix='chaos_'))
    chaos = Chaos(args.kills, args.seed, folder, demo_data())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        chaos.run()
    finally:
        if Run.last and not Run.last.ended():  # it has a group of its own, which Ctrl-C does not reach
            Run.last.kill()
    report = chaos.report()
    args.out.write_text(json.dumps(report, indent=1) + '\n', encoding='utf-8')
    good = report['bitwise_equal'] and report['resumed'] == report['kills'] == args.kills
    print(f"{report['resumed']} of {report['kills']} kills resumed, {report['during_write']} of them during a write; "
          f"bitwise equal: {report['bitwise_equal']}; {report['seconds']} s. Report in {args.out}")
    if not good:
        print('\n'.join(filter(None, (report['problem'], *report['different']))), f'Kept: {folder}', file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == '__main__':
    sys.exit(main())
