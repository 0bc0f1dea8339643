"""What is killed: trainings of both stages, and comparisons, each in a folder with its option files."""
from __future__ import annotations

import sys
from pathlib import Path

from .output import VAL_FREQ, last_step
from .processes import ROOT, Run

STAGES = ('chaos_ESU', 'chaos_UDL')
ITERATIONS = 215  # of each stage; neither frequency divides it
SAVE_FREQ = 10
DONE = 'all', None  # where there is nothing to go on with: the kill came after the last record
_ENTRY = 'from pathlib import Path; from udl_basicsr.train import main; main(Path.cwd())'
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
        there = {file for kind in ('models', 'training_states')
                 for file in self.folder.glob(f'experiments/*/{kind}/.*.part')}
        self.abandoned &= there  # the next process clears them away, and may write under the same names
        return sorted(there - self.abandoned)

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
        return [sys.executable, '-m', 'udl_basicsr', 'compare', 'plan.yml', '--root', '.', '--out', 'records']

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
