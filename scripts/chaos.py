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
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from killing.chains import DONE, ITERATIONS, Chain, Comparison
from killing.equality import differing
from killing.output import began_at, last_step
from killing.processes import ROOT, Run
from udl_basicsr.utils import exits
from udl_basicsr.utils.command_line import to_file, whole
from udl_basicsr.utils.files import write_text

MOMENT, WRITE, LAST, CACHE = 'a moment', 'a write', 'the last validation', 'the cache'
AIMS = (MOMENT, WRITE, MOMENT, WRITE, LAST, LAST, CACHE, CACHE, CACHE, MOMENT, WRITE, MOMENT, WRITE, LAST)
"""What the kills of one training are aimed at, in the order in which the two stages come to it."""
ALL, PARENT = 'all processes', 'the parent alone'


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
    parser.add_argument('--kills', type=whole(1), default=40, metavar='N')
    parser.add_argument('--out', type=to_file, required=True, metavar='FILE.json', help='where the report goes')
    parser.add_argument('--seed', type=whole(0), default=0, help='of the moments')
    args = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix='chaos_'))
    chaos = Chaos(args.kills, args.seed, folder, demo_data())
    try:
        chaos.run()
    finally:
        if Run.last and not Run.last.ended():  # it has a group of its own, which Ctrl-C does not reach
            Run.last.kill()
    report = chaos.report()
    write_text(args.out, json.dumps(report, indent=1) + '\n')
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
