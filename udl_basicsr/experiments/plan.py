"""Plans: which networks are trained with which losses, from which weights, for how long, and tested on what.

A plan is a YAML file (``options/compare/``, ``options/papers/``); docs/COMPARE.md describes its form. The options of a
run are merged in this order, and the last one wins: ``train``, what the scale changes in it, the network's base and
options, the method's base and options. A method with a stage before it takes its iterations from the same budget, and
goes on in the same order of crops. The schedule of ``train`` is stretched to the length of each stage. LPIPS is
measured too where its weights are at hand.
"""
from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udl_basicsr.losses.perceptual import find_backbone_weights
from udl_basicsr.options import schema
from udl_basicsr.options.keys import block_of
from udl_basicsr.options.parse import OptionError, load_yaml
from udl_basicsr.options.signatures import describe
from udl_basicsr.options.values import LONGEST_NAME, bad_name
from udl_basicsr.utils.checkpoints import CheckpointError
from udl_basicsr.utils.settings import RunSettings
from udl_basicsr.utils.text import did_you_mean, nearest
from udl_basicsr.utils.yaml_files import interpolate, merge

from .plan_keys import Changes, PlanFile, check_plan, is_list, locate_files
from .printed import HR_SIZE, load_paper
from .record_files import record_file

# What makes a run what it is; the rest says where its data lie and what is logged.
_ESSENCE = ('model_type', 'stage', 'scale', 'manual_seed', 'degradation', 'network_g', 'network_u', 'network_w',
            'train')
_OF_DATA = ('name', 'type', 'gt_size', 'use_hflip', 'use_rot', 'batch_size_per_gpu', 'dataset_enlarge_ratio',
            'first_iter')
# As well, but older records lack it: what a record does not have of this is not known.
NOTED_LATER = {'path': ('pretrain_network_g', 'pretrain_network_u', 'pretrain_network_w'),
               'data': ('uncertainty_cache', 'mean', 'std', 'color')}


@dataclass(frozen=True)
class Stage:
    """One training of a run."""
    name: str  # of its folder in experiments
    file: Path
    flat: dict  # its resolved options

    @property
    def iterations(self) -> int:
        return int(self.flat['train']['total_iter'])

    @property
    def essence(self) -> dict:
        """What its results depend on."""
        data, path = self.flat['datasets']['train'], block_of(self.flat, 'path')
        later = {k: data.get(k) for k in NOTED_LATER['data']}
        later['uncertainty_cache'] = bool(later['uncertainty_cache'])  # where it lies is no matter
        return {**{k: self.flat[k] for k in _ESSENCE if self.flat.get(k) is not None},
                'path': {k: None if self._trained_before(k, path.get(k)) else path.get(k) for k in NOTED_LATER['path']},
                'data': {**{k: data[k] for k in _OF_DATA if data.get(k) is not None}, **later}}

    def _trained_before(self, key: str, weights: Any) -> bool:
        """Whether weights are those of the stage before, which the plan tells of and a training fills in."""
        stage1 = self.flat.get('stage1')
        if not (isinstance(weights, str) and isinstance(stage1, str)):
            return False
        before = self.name.removesuffix(self.file.stem) + Path(stage1).stem
        return Path(weights).parts[-3:] == (before, 'models', f'net_{key[-1]}_latest.pth')

    def kept(self, root: Path) -> Path:
        """Its options as its training has them, which has decided what they leave open."""
        return root / 'experiments' / self.name / self.file.name

    def weights(self, root: Path, label: str) -> Path:
        return root / 'experiments' / self.name / 'models' / f'net_{label}_latest.pth'


@dataclass(frozen=True)
class PlannedRun:
    """What one record comes from: one or two trainings, and a test."""
    plan: str
    title: str
    reference: str
    method: str
    label: str
    order: int  # of the method in the plan
    scale: int
    seed: int
    stages: tuple[Stage, ...]
    test_file: Path
    test_flat: dict
    network: str | None = None  # its id, in plans with several
    lengths: str = 'shared'
    size: tuple[int, int] = HR_SIZE
    """Height and width of the output image whose cost is told."""

    @property
    def name(self) -> str:
        return self.stages[-1].name

    @property
    def shown(self) -> str:
        """As it is printed."""
        return f'{self.network + " " if self.network else ""}{self.label} ×{self.scale} seed {self.seed}'

    @property
    def iterations(self) -> int:
        return sum(stage.iterations for stage in self.stages)

    @property
    def degradation(self) -> str:
        return RunSettings.of(self.stages[-1].flat).degradation

    def record(self, out: Path) -> Path:
        """Where its record lies."""
        return record_file(out, self.method, self.scale, self.seed, self.network)


@dataclass(frozen=True)
class Plan:
    """A plan that was read, with the options of all its runs."""
    file: str
    name: str
    title: str
    table: str | None
    runs: tuple[PlannedRun, ...]
    """In the order in which they are made: by network and scale, all methods of the first seed, then of the next."""


def read_plan(file: str | Path, root: Path, seeds: list[int] | None = None) -> Plan:
    """Reads a plan and makes the options of all its runs, which :func:`udl_basicsr.experiments.runner.check` checks.

    Writes nothing.

    Args:
        file: The plan.
        root: Where ``experiments/`` and ``results/`` are.
        seeds: Instead of those of the plan.

    Raises:
        OptionError: What is wrong with the plan, by its keys.
    """
    file = str(file)
    plan = load_yaml(file, references=False, locate=locate_files)  # ${scale} in options is that of each run
    if 'network_g' in plan and 'methods' not in plan:
        raise OptionError(f'{file}: is the option file of one run, expected a plan (docs/COMPARE.md); give it to udl '
                          'train -opt, or to udl test -opt')
    plan |= interpolate({key: value for key, value in plan.items() if not isinstance(value, dict)}, file)
    if seeds:
        plan['seeds'] = seeds
        for block in plan['methods'].values() if isinstance(plan.get('methods'), dict) else ():
            if isinstance(block, dict):
                block.pop('seeds', None)
    if problems := check_plan(plan):
        raise OptionError(f'{file}: {problem}' for problem in problems)
    size = HR_SIZE
    asked = PlanFile.of(plan)
    if table := asked.table:
        known = load_paper()['tables']
        if table not in known:
            raise OptionError(f'{file}: table: there is no {table!r} in experiments/paper_scores.json'
                              f'{did_you_mean(table, known, listing=20)}')
        size = tuple(known[table].get('size', HR_SIZE))
    runs = tuple(_Expansion(file, asked, root, size).runs())
    names = [run.name for run in runs]
    if len({*names}) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise OptionError(f'{file}: networks, methods: two runs would be called {twice}; choose other ids')
    if not runs:
        raise OptionError(f'{file}: networks: nothing is left to be run')
    return Plan(file, asked.name, asked.title, asked.table, runs)


class _Expansion:
    """The runs of a plan."""

    def __init__(self, file: str, plan: PlanFile, root: Path, size: tuple[int, int]) -> None:
        self.file, self.plan, self.root, self.size = file, plan, root, size
        self.folder = root / 'results' / plan.name / 'options'
        self.shared = plan.lengths == 'shared'
        self.files: dict[str, dict] = {}

    def runs(self) -> Iterable[PlannedRun]:
        plan = self.plan
        train, test = self.load(plan.train, 'train'), self.load(plan.test, 'test')
        seeds = dict.fromkeys([*plan.seeds, *(s for m in plan.methods.values() for s in m.seeds or ())])
        for network, choice in plan.networks.items():
            methods = [(order, *item) for order, item in enumerate(plan.methods.items())
                       if choice.methods is None or item[0] in choice.methods]
            for scale, changes in plan.scales.items():
                if choice.scales is not None and scale not in choice.scales:
                    continue
                given = {'scale': int(scale[1:])}
                trained = self.own(merge(train, {**given, **changes.get('train', {})}), choice, f'networks.{network}')
                tested = merge(test, {**given, **changes.get('test', {})})
                for seed in seeds:
                    for order, method, block in methods:
                        if seed in (plan.seeds if block.seeds is None else block.seeds):
                            yield self.run(network, order, method, trained, tested, given['scale'], seed)

    def load(self, path: str, key: str) -> dict:
        """An option file that the plan names."""
        if path not in self.files:
            try:
                self.files[path] = load_yaml(path, references=False)
            except OptionError as error:
                raise OptionError(f'{self.file}: {key}: {problem}' for problem in error.problems) from None
        return self.files[path]

    def own(self, flat: dict, changes: Changes, where: str) -> dict:
        """``flat`` with what the base files and the options of a network or method say."""
        for name in changes.base:
            flat = merge(flat, self.load(name, f'{where}.base'))
        return merge(flat, changes.options)

    def run(self, network: str | None, order: int, method: str, train: dict, test: dict, scale: int,
            seed: int) -> PlannedRun:
        plan, block = self.plan, self.plan.methods[method]
        label, prefix = block.label or method, f'{network}_' if network else ''
        tail, after = f'x{scale}_seed{seed}', block.after

        chain, before = [], 0
        for name in self.stages_before(after):
            first = plan.first[name]
            flat = self.own(train, first, f'first.{name}')
            length = (first.iterations or plan.first_iterations or 0) if self.shared else 0
            chain.append(self.stage(f'{prefix}first_{name}_{tail}', flat, seed, length, before))
            before += length
        flat = self.own(train, block, f'methods.{method}')
        chain.append(self.stage(f'{prefix}{method}_{tail}', flat, seed, None, before, block.iterations))
        for earlier, later in itertools.pairwise(chain):
            later.flat['stage1'] = str(earlier.file)
        return PlannedRun(plan.name, network or plan.title, plan.reference, method, label, order, scale, seed,
                          tuple(chain), self.folder / f'test_{prefix}{method}_{tail}.yml',
                          self.test(f'{prefix}{method}_{tail}', test, chain, seed), network,
                          'own' if block.iterations else plan.lengths, self.size)

    def stages_before(self, after: str | None) -> list[str]:
        """The stages of ``first`` that a method comes after, in the order in which they are trained."""
        return [] if after is None else [*self.stages_before(self.plan.first[after].after), after]

    def stage(self, name: str, flat: dict, seed: int, iterations: int | None, before: int,
              budget: int | None = None) -> Stage:
        """The options of one stage.

        Args:
            iterations: Of a stage 1, where the budget is shared; None: what is left of it.
            before: Iterations of the budget that a stage before this one takes.
            budget: None: that of the option file.
        """
        plan, where = self.plan, f'{self.file}: {name}'
        self.need_blocks(flat, ('train', 'datasets', 'datasets.train', 'network_g'), where)
        flat = {**flat, 'name': f'{plan.name}_{name}', 'manual_seed': seed}
        if problem := bad_name(flat['name'], LONGEST_NAME):
            raise OptionError(f'{where}: name: {describe(flat["name"])} {problem}; choose a shorter name of the plan '
                              'or shorter ids')
        flat.pop('tested_on', None)  # the plan says what its runs are tested on
        if plan.deterministic is not None:
            flat['deterministic'] = plan.deterministic
        flat = interpolate(flat, where)
        flat['datasets'] = self.given_blocks(flat['datasets'], f'{where}: datasets')
        train = flat['train']
        total = train.get('total_iter')
        if not schema.COUNT.accepts(total):
            raise OptionError(f'{where}: train.total_iter: expected {schema.COUNT.label}, got {describe(total)}')
        if self.shared:
            budget = budget or total
            if before + (iterations or 0) >= budget:
                raise OptionError(f'{self.file}: first.iterations: {before + (iterations or 0)} leaves none of the '
                                  f'{budget} iterations of {plan.train if budget == total else where}')
            length = iterations or budget - before
            flat['train'] = {**train, 'total_iter': length}
            if 'scheduler' in train:
                flat['train']['scheduler'] = _stretched(train['scheduler'], length / total)
            if before:
                flat['datasets'] = {**flat['datasets'], 'train': {**flat['datasets']['train'], 'first_iter': before}}
        return Stage(flat['name'], self.folder / f'{name}.yml', flat)

    def test(self, name: str, flat: dict, chain: Sequence[Stage], seed: int) -> dict:
        """The options of the test of what a chain of stages has trained."""
        where, last = f'{self.file}: test_{name}', chain[-1]
        stage = RunSettings.of(last.flat).stage
        flat = merge(flat, {'name': last.flat['name'], 'stage': stage,
                            'path': {'pretrain_network_g': str(last.weights(self.root, 'g'))}})
        flat |= {'model_type': 'UDLModel', 'network_g': last.flat['network_g']}
        flat.pop('network_u', None)
        flat['path'].pop('pretrain_network_u', None)
        source = {'udl': chain[-2] if len(chain) > 1 else None, 'esu': last,
                  'sigma': last}.get(stage if isinstance(stage, str) else '')
        if source and 'network_u' in last.flat:
            flat['network_u'] = last.flat['network_u']
            flat['path']['pretrain_network_u'] = str(source.weights(self.root, 'u'))
        val = flat.get('val')
        flat['val'] = {} if val is None else val
        self.need_blocks(flat, ('datasets', 'val'), where)
        flat['datasets'] = self.given_blocks(flat['datasets'], f'{where}: datasets')
        metrics = {} if (metrics := flat['val'].get('metrics')) is None else metrics
        metrics = self.given_blocks(metrics, f'{where}: val.metrics') if isinstance(metrics, dict) else metrics
        if not isinstance(metrics, dict) or not metrics:
            raise OptionError(f'{where}: val.metrics: expected a block of at least one, got {describe(metrics)}')
        # Pictures of one seed are enough to look at.
        flat['val'] = {**flat['val'], 'save_img': seed == self.plan.seeds[0],
                       'metrics': {**_lpips_if_there(last.flat['scale']), **metrics}}
        return interpolate(flat, where)

    @staticmethod
    def given_blocks(blocks: dict, where: str) -> dict:
        """Without those that are null, which the plan does without."""
        given = {key: block for key, block in blocks.items() if block is not None}
        for key, block in given.items():
            if not isinstance(block, dict):
                raise OptionError(f'{where}.{key}: expected a block of keys, got {describe(block)}')
        return given

    @staticmethod
    def need_blocks(flat: dict, keys: Iterable[str], where: str) -> None:
        for key in keys:
            value: Any = flat
            for part in key.split('.'):
                value = value.get(part) if isinstance(value, dict) else None
            if not isinstance(value, dict):
                raise OptionError(f'{where}: {key}: expected a block of keys, got {describe(value)}')


def _lpips_if_there(scale: int) -> dict:
    try:
        find_backbone_weights('alex')
    except CheckpointError:
        return {}
    return {'lpips': {'type': 'calculate_lpips', 'net': 'alex', 'crop_border': scale}}


def _stretched(scheduler: Any, factor: float) -> Any:
    """A learning-rate schedule made for another length of training; what is none is left for the checks to refuse."""
    if not isinstance(scheduler, dict):
        return scheduler
    found = dict(scheduler)
    for key in ('milestones', 'restarts'):
        if key in found and is_list(found[key], schema.integer(0).accepts):
            found[key] = [round(at * factor) for at in found[key]]
    if 'periods' in found and is_list(found['periods'], schema.COUNT.accepts):
        # rounded each by itself they may end before the training does
        ends = [round(end * factor) for end in itertools.accumulate(found['periods'])]
        found['periods'] = [end - start for start, end in itertools.pairwise([0, *ends])]
    return found


def select(plan: Plan, words: Iterable[str]) -> list[PlannedRun]:
    """The runs that some words name: ids of networks, scales (``x4``), ids or labels of methods, seeds (``seed0``).

    Words of one kind are alternatives; a run must fit each kind.

    Raises:
        OptionError: A word that is nothing of the plan, with the nearest that is; or no run is left.
    """
    kinds = [lambda run: {run.network} - {None}, lambda run: {f'x{run.scale}'}, lambda run: {run.method, run.label},
             lambda run: {f'seed{run.seed}'}]
    runs, wanted, words = list(plan.runs), {}, list(words)
    for word in words:
        kind = next((kind for kind in kinds if any(word in kind(run) for run in plan.runs)), None)
        if kind is None:
            known = {name for kind in kinds for run in plan.runs for name in kind(run)}
            near = nearest(word, known, cutoff=0.4)  # of short names like x4 and L1 the usual cutoff says nothing
            meant = f". Did you mean '{near}'?" if near else ''
            raise OptionError(f'--only {word}: {plan.file} has no such method, seed, network or scale; it has '
                              f'{", ".join(sorted(known))}{meant}')
        wanted.setdefault(kind, set()).add(word)
    for kind, names in wanted.items():
        runs = [run for run in runs if kind(run) & names]
    if not runs:
        raise OptionError(f'--only: {plan.file} has no run that is all of: {", ".join(words)}')
    return runs

