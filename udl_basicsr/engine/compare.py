"""A comparison of losses: the same network, first weights, crops and budget for each, several seeds, one record a run.

The plan is a YAML file (``options/compare/``)::

    name: tiny                      # records: docs/results/tiny
    title: EDSR 4×16                # the network, as it is printed
    train: ../rivals/_base_.yml     # what all runs share: network, data, optimiser, schedule, budget (total_iter)
    test: ../rivals/test.yml        # the data sets they are tested on
    reference: L1                   # the method that differences are taken to
    seeds: [0, 1, 2]
    scales:                         # and what changes in train and test for each
      x4: {}
    first:                          # stage 1, shared by the methods that come after it
      iterations: 500               # of the budget
      ESU: {stage: esu, train: {likelihood_opt: {type: ESULoss}}}
    methods:                        # id: how it is printed, and what it changes in train
      L1: {label: L1, options: {stage: plain, network_u: ~, train: {pixel_opt: {type: L1Loss}}}}
      UDL: {label: ESU → UDL, after: ESU, options: {stage: udl, train: {udl_opt: {type: UDLLoss}}}}

A method with a stage before it takes its iterations from the same budget, and goes on in the same order of crops. The
schedule of ``train`` is stretched to the length of each stage. LPIPS is measured too where its weights are at hand.
"""
from __future__ import annotations

import datetime
import hashlib
import json
import multiprocessing
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from basicsr.archs import build_network

from udl_basicsr.data.loader import TrainBatches, build_dataset
from udl_basicsr.losses.perceptual import find_backbone_weights
from udl_basicsr.models.checkpoints import CheckpointError
from udl_basicsr.reports.comparison import record_file, write_record
from udl_basicsr.reports.scores import read_scores, write_text

from . import cli, loop, stages
from .history import read_history
from .options import OptionError, load_yaml, parse_options
from .yaml_files import did_you_mean, dump_flat, interpolate, merge

_PLAN = {'name': str, 'title': str, 'train': str, 'test': str, 'reference': str, 'seeds': list, 'scales': dict,
         'first': dict, 'methods': dict}
_METHOD = {'label': str, 'after': str, 'seeds': list, 'options': dict}
# What makes a run what it is; the rest says where its data lie and what is logged.
_ESSENCE = ('model_type', 'stage', 'scale', 'manual_seed', 'network_g', 'network_u', 'network_w', 'train')
_OF_DATA = ('name', 'type', 'gt_size', 'use_hflip', 'use_rot', 'batch_size_per_gpu', 'dataset_enlarge_ratio',
            'first_iter')


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
        data = self.flat['datasets']['train']
        return {**{k: self.flat[k] for k in _ESSENCE if self.flat.get(k) is not None},
                'data': {k: data[k] for k in _OF_DATA if data.get(k) is not None}}

    def weights(self, root: Path, label: str) -> Path:
        return root / 'experiments' / self.name / 'models' / f'net_{label}_latest.pth'


@dataclass(frozen=True)
class Run:
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

    @property
    def name(self) -> str:
        return self.stages[-1].name


# ---------------------------------------------------------------- the plan

def read_plan(file: str | Path, root: Path, seeds: list[int] | None = None) -> list[Run]:
    """The runs of a plan, in the order in which they are made: all methods of the first seed, then of the next.

    Writes nothing.

    Args:
        file: The plan.
        root: Where ``experiments/`` and ``results/`` are.
        seeds: Instead of those of the plan.

    Raises:
        OptionError: What is wrong with the plan, or with the options that it makes.
    """
    plan = load_yaml(str(file))
    _check_plan(plan, str(file))
    if seeds:
        plan['seeds'] = seeds
        plan['methods'] = {name: {k: v for k, v in block.items() if k != 'seeds'}
                           for name, block in plan['methods'].items()}
    bases = {key: load_yaml(str(Path(file).parent / plan[key]), references=False) for key in ('train', 'test')}
    folder = root / 'results' / plan['name'] / 'options'
    runs = []
    for label, changes in plan['scales'].items():
        scale, changes = int(label[1:]), changes or {}
        train, test = (merge(bases[key], {'scale': scale, **(changes.get(key) or {})}) for key in ('train', 'test'))
        everyone = plan['seeds']
        for seed in dict.fromkeys([*everyone, *(s for m in plan['methods'].values() for s in m.get('seeds', ()))]):
            for order, (method, block) in enumerate(plan['methods'].items()):
                if seed in block.get('seeds', everyone):
                    runs.append(_run(plan, order, method, train, test, scale, seed, folder, root))
    return runs


def _check_plan(plan: dict, file: str) -> None:
    problems = []

    def known(block: dict, keys: dict, where: str) -> None:
        for key, value in block.items():
            if key not in keys:
                problems.append(f'{file}: {where}{key}: unknown key{did_you_mean(key, keys)}')
            elif not isinstance(value, keys[key]):
                problems.append(f'{file}: {where}{key}: expected {keys[key].__name__}, got {value!r}')

    known(plan, _PLAN, '')
    problems += [f'{file}: {key}: missing' for key in _PLAN if key not in plan and key != 'first']
    if problems:
        raise OptionError(problems)
    methods = plan['methods']
    first = {k: v for k, v in plan.get('first', {}).items() if k != 'iterations'}
    for name, block in {**first, **methods}.items():
        if not (isinstance(name, str) and name.replace('_', '').replace('-', '').isalnum() and name.isascii()):
            problems.append(f'{file}: {name!r}: expected a name of letters, digits, _ and -')
        if not isinstance(block, dict):
            problems.append(f'{file}: {name}: expected a block, got {block!r}')
        elif name in methods:
            known(block, _METHOD, f'methods.{name}.')
            if block.get('after') not in (None, *first):
                problems.append(f'{file}: methods.{name}.after: {block["after"]!r} is not under first'
                                f'{did_you_mean(block["after"], first)}')
            if not isinstance(block.get('options'), dict):
                problems.append(f'{file}: methods.{name}.options: missing; what this method changes in {plan["train"]}')
    if plan['reference'] not in methods:
        problems.append(f'{file}: reference: {plan["reference"]!r} is not under methods'
                        f'{did_you_mean(plan["reference"], methods)}')
    if first and not isinstance(plan['first'].get('iterations'), int):
        problems.append(f'{file}: first.iterations: expected an integer, the length of stage 1')
    if not plan['seeds'] or not all(type(v) is int and v >= 0 for v in plan['seeds']):
        problems.append(f'{file}: seeds: expected a list of integers, got {plan["seeds"]!r}')
    for name, changes in plan['scales'].items():
        if not re.fullmatch(r'x[1-9]\d?', name) or not isinstance(changes or {}, dict):
            problems.append(f'{file}: scales.{name}: expected x2, x3, x4, ... and a block of what it changes in '
                            'train and test')
    if not plan['scales']:
        problems.append(f'{file}: scales: expected at least one, such as x4: {{}}')
    if problems:
        raise OptionError(problems)


def _run(plan: dict, order: int, method: str, train: dict, test: dict, scale: int, seed: int, folder: Path,
         root: Path) -> Run:
    block, tail = plan['methods'][method], f'x{scale}_seed{seed}'
    total = train['train']['total_iter']

    def stage(name: str, changes: dict, iterations: int, before: int) -> Stage:
        flat = merge(train, changes)
        flat |= {'name': f'{plan["name"]}_{name}_{tail}', 'manual_seed': seed}
        flat['train'] = {**flat['train'], 'total_iter': iterations,
                         'scheduler': _stretched(flat['train']['scheduler'], iterations / total)}
        if before:
            flat['datasets'] = {**flat['datasets'], 'train': {**flat['datasets']['train'], 'first_iter': before}}
        return Stage(flat['name'], folder / f'{name}_{tail}.yml', interpolate(flat, plan['train']))

    chain, before, after = [], 0, block.get('after')
    if after:
        before = plan['first']['iterations']
        if not 0 < before < total:
            raise OptionError(f'first.iterations: {before} leaves none of the {total} iterations of {plan["train"]}')
        chain.append(stage(f'first_{after}', plan['first'][after], before, 0))
    last = stage(method, block['options'], total - before, before)
    if after:
        last.flat['stage1'] = str(chain[0].file)
    chain.append(last)

    source = {'udl': chain[0], 'esu': last, 'sigma': last}.get(last.flat.get('stage'))
    tested = merge(test, {'name': f'{plan["name"]}_{method}_{tail}', 'stage': last.flat.get('stage', 'plain'),
                          'path': {'pretrain_network_g': str(last.weights(root, 'g'))}})
    tested |= {'model_type': 'UDLModel', 'network_g': last.flat['network_g']}
    tested.pop('network_u', None)
    tested['path'].pop('pretrain_network_u', None)
    if source:
        tested['network_u'] = last.flat['network_u']
        tested['path']['pretrain_network_u'] = str(source.weights(root, 'u'))
    val = tested.get('val', {})
    # Pictures of one seed are enough to look at.
    tested['val'] = {**val, 'save_img': seed == plan['seeds'][0],
                     'metrics': {**_lpips_if_there(scale), **val.get('metrics', {})}}
    tested = interpolate(tested, plan['test'])
    return Run(plan['name'], plan['title'], plan['reference'], method, block.get('label', method), order, scale, seed,
               tuple(chain), folder / f'test_{method}_{tail}.yml', tested)


def _lpips_if_there(scale: int) -> dict:
    try:
        find_backbone_weights('alex')
    except CheckpointError:
        return {}
    return {'lpips': {'type': 'calculate_lpips', 'net': 'alex', 'crop_border': scale, 'better': 'lower'}}


def _stretched(scheduler: dict, factor: float) -> dict:
    """A learning-rate schedule made for another length of training."""
    return {key: [round(v * factor) for v in value] if key in ('periods', 'milestones') else value
            for key, value in scheduler.items()}


def write_options(runs: Iterable[Run], root: Path) -> None:
    """Writes the option files of all runs and checks them, the data too, before the first of them begins.

    Raises:
        OptionError: What is wrong, by the plan's own names; no folder is left that was not there.
    """
    runs = list(runs)
    folder = runs[0].test_file.parent
    made = [f for f in (folder, *folder.parents) if f.is_relative_to(root) and not f.exists()]
    try:
        _write_and_check(runs, root)
    except OptionError as error:
        if made:
            shutil.rmtree(made[-1])
        names = {f'{stage.file}:': f'{run.plan}: {stage.file.stem}:' for run in runs for stage in run.stages}
        names |= {f'{run.test_file}:': f'{run.plan}: {run.test_file.stem}:' for run in runs}
        raise OptionError([_renamed(problem, names) for problem in error.problems]) from None


def _renamed(problem: str, names: dict[str, str]) -> str:
    return next((name + problem[len(file):] for file, name in names.items() if problem.startswith(file)), problem)


def _write_and_check(runs: list[Run], root: Path) -> None:
    checked: set[tuple] = set()
    for run in runs:
        for stage in run.stages:
            write_text(stage.file, dump_flat(stage.flat))
        write_text(run.test_file, dump_flat(run.test_flat))
    for run in runs:
        if (run.method, run.scale) in checked:
            continue
        looks_at_data = not any(scale == run.scale for _, scale in checked)
        checked.add((run.method, run.scale))
        parse_options(str(run.stages[-1].file), root_path=str(root), is_train=True, auto_resume=True,
                      check_files=looks_at_data)
        parse_options(str(run.test_file), root_path=str(root), is_train=False, check_files=False)


# ---------------------------------------------------------------- what is there

def made_with_other_options(run: Run, out: Path, root: Path) -> str | None:
    """Why what is there of a run is not what the plan asks for, or None."""
    file = record_file(out, run.method, run.scale, run.seed)
    if file.exists():
        try:
            found = json.loads(file.read_text(encoding='utf-8'))['options']
        except (ValueError, KeyError, TypeError) as error:
            return f'{file}: is no record ({error!r}); remove it'
        return _difference(found, [stage.essence for stage in run.stages], str(file))
    for stage in run.stages:
        kept = root / 'experiments' / stage.name / stage.file.name
        if kept.exists():
            old = Stage(stage.name, kept, load_yaml(str(kept)))
            if problem := _difference([old.essence], [stage.essence], str(kept.parent)):
                return problem
    return None


def _difference(found: list, wanted: list, where: str) -> str | None:
    for a, b in zip(found, wanted, strict=False):
        for key in sorted({*_leaves(a), *_leaves(b)}):
            old, new = _leaves(a).get(key), _leaves(b).get(key)
            if old != new:
                return (f'{where}: was made with {key}: {old}, and the plan now says {new}. Give the plan another '
                        'name, or remove it to make it anew')
    if len(found) != len(wanted):
        return f'{where}: was made in {len(found)} stages, the plan has {len(wanted)}'
    return None


def _leaves(block: dict, prefix: str = '') -> dict:
    found = {}
    for key, value in block.items():
        if isinstance(value, dict):
            found |= _leaves(value, f'{prefix}{key}.')
        else:
            found[f'{prefix}{key}'] = json.loads(json.dumps(value))
    return found


# ---------------------------------------------------------------- one run, in a process of its own

def make(run: Run, out: Path, root: Path, log: Path, gpu: int | None, first_only: bool = False) -> None:
    """Trains, tests and records one run; ends the process with its exit status.

    Args:
        first_only: Trains the stage before and nothing else.
    """
    multiprocessing.set_start_method(None, force=True)  # data workers need no server that imports all anew
    if gpu is not None:
        os.environ['CUDA_VISIBLE_DEVICES'] = str(gpu)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, 'a', encoding='utf-8') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    started = time.time()
    for stage in run.stages[:1] if first_only else run.stages:
        if not stage.weights(root, 'g').exists():
            _command(['train.py', '-opt', str(stage.file), '--auto_resume'], stages.train, True, root)
    if not first_only:
        _command(['test.py', '-opt', str(run.test_file)], lambda parsed, _: loop.test(parsed), False, root)
        write_record(_record(run, root, time.time() - started), out)
    sys.exit(0)


def _command(argv: list[str], action: Callable, is_train: bool, root: Path) -> None:
    sys.argv = argv
    status = cli.run(action, is_train=is_train, root_path=root)
    if status:
        sys.exit(status)


def _record(run: Run, root: Path, seconds: float) -> dict:
    histories = [read_history(root / 'experiments' / stage.name / 'history.jsonl') for stage in run.stages]
    visualization = Path('results') / run.name / 'visualization'
    has_pictures = any((root / visualization).glob('*/*.png'))
    return {
        **read_scores(root / 'results' / run.name),
        'comparison': run.plan, 'method': run.method, 'label': run.label, 'order': run.order,
        'reference': run.reference, 'seed': run.seed,
        'degradation': 'BD' if 'BD' in run.stages[-1].flat['datasets']['train']['name'].split('_') else 'BI',
        'network_title': run.title,
        'parameters': sum(p.numel() for p in build_network(run.stages[-1].flat['network_g']).parameters()),
        'stages': [{'name': stage.flat.get('stage', 'plain'), 'iterations': stage.iterations} for stage in run.stages],
        'options': [stage.essence for stage in run.stages],
        'weights': f'experiments/{run.name}/models/net_g_latest.pth',
        'initial_weights': histories[0][0]['initial_weights'],
        'data_order': data_order(run.stages),
        'seconds': round(seconds, 1), 'machine': machine(), 'date': datetime.date.today().isoformat(),
        'commit': _commit(), 'curve': _curve(run.stages, histories),
        'pictures': str(visualization) if has_pictures else None,
    }


def data_order(chain: Iterable[Stage]) -> str:
    """A SHA-256 of the samples that the stages ask for, one after another: (epoch, index) decides image and crop."""
    digest = hashlib.sha256()
    for stage in chain:
        opt = {**stage.flat['datasets']['train'], 'phase': 'train', 'scale': stage.flat['scale']}
        dataset = build_dataset(opt)
        sampler = TrainBatches(len(dataset), opt['batch_size_per_gpu'], stage.iterations,
                               first_iter=opt.get('first_iter', 0), ratio=opt.get('dataset_enlarge_ratio', 1),
                               seed=stage.flat['manual_seed'])
        for batch in sampler:
            digest.update(repr((stage.flat['manual_seed'], batch)).encode())
    return digest.hexdigest()


def _curve(chain: Iterable[Stage], histories: Iterable[list[dict]]) -> dict:
    """Losses and validations over the whole budget: a second stage goes on counting."""
    losses: dict[str, list] = {}
    validations: dict[str, dict[str, list]] = {}
    before = 0
    for stage, history in zip(chain, histories, strict=True):
        for entry in history[1:]:
            point = {'iter': before + entry['iter'],
                     **{k: float(f'{v:.6g}') for k, v in entry.items() if k not in ('iter', 'dataset')}}
            target = validations.setdefault(entry['dataset'], {}) if 'dataset' in entry else losses
            count = len(target.get('iter', ()))
            for key, value in point.items():
                target.setdefault(key, [None] * count).append(value)  # what stage 1 did not log is null there
            for values in target.values():
                values.extend([None] * (count + 1 - len(values)))
        before += stage.iterations
    return {'loss': losses, 'val': validations}


def machine() -> str:
    """What a run was made on, without its name."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f'{platform.machine()}, {os.cpu_count()} CPU cores, {torch.get_num_threads()} thread(s), float32'


def _commit() -> str:
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=Path(__file__).parent, check=True,
                              capture_output=True, text=True).stdout.strip()
    return ''


# ---------------------------------------------------------------- all of them

@dataclass
class Event:
    """What happened last: a run has ended, or goes on."""
    run: Run
    status: int | None  # exit status; None: in progress
    iteration: int = 0
    log: Path = Path()


def make_all(runs: list[Run], out: Path, root: Path, gpus: list[int | None]) -> Iterator[Event]:
    """Makes the records that are missing, one run on each of ``gpus`` (``[None]``: one after another on the CPU).

    Every run has a process of its own, so that one that fails takes no other with it. When this generator is closed,
    the runs in progress save their state and end; they go on the next time.

    Yields:
        Event: Each end of a run, and some ten times a minute how far the others are.
    """
    context = multiprocessing.get_context('forkserver' if sys.platform != 'win32' else 'spawn')
    context.set_forkserver_preload([__name__])
    waiting = [run for run in runs if not record_file(out, run.method, run.scale, run.seed).exists()]
    free, busy = list(gpus), {}
    try:
        while waiting or busy:
            for run in list(waiting):
                first = run.stages[0]
                in_work = {name for name, *_ in busy.values()}
                if not free or first.name in in_work:  # another run trains the stage that both begin with
                    continue
                gpu = free.pop(0)
                alone = len(run.stages) > 1 and not first.weights(root, 'g').exists()
                log = root / 'results' / run.plan / 'logs' / f'{run.name}.log'
                process = context.Process(target=make, args=(run, out, root, log, gpu, alone))
                process.start()
                busy[process] = (first.name if alone else run.name, run, gpu, alone, log)
                waiting.remove(run)
            done = [p for p in busy if not p.is_alive()]
            for process in done:
                process.join()
                _, run, gpu, alone, log = busy.pop(process)
                free.append(gpu)
                if alone and process.exitcode == 0:
                    waiting.insert(0, run)  # its first stage is there: now the rest
                else:
                    yield Event(run, process.exitcode or 0, log=log)
            if not done and busy:
                time.sleep(0.5)
                for _, run, _, _, log in list(busy.values()):
                    yield Event(run, None, _progress(run, root), log)
    finally:
        for process in busy:
            process.terminate()  # SIGTERM: it saves its state
        for process in busy:
            process.join()


def _progress(run: Run, root: Path) -> int:
    done = 0
    for stage in run.stages:
        if stage.weights(root, 'g').exists():
            done += stage.iterations
        elif history := read_history(root / 'experiments' / stage.name / 'history.jsonl')[1:]:
            done += max(entry['iter'] for entry in history)
    return done


def seconds_left(runs: Iterable[Run], records: Iterable[dict], out: Path, jobs: int) -> float | None:
    """What the missing runs will take, by those there are of the same method, or of any; None before the first."""
    by_method: dict[str, list[float]] = {}
    for record in records:
        by_method.setdefault(record['method'], []).append(record['seconds'])
    if not by_method:
        return None
    mean = {method: sum(values) / len(values) for method, values in by_method.items()}
    usual = sum(mean.values()) / len(mean)
    missing = [r for r in runs if not record_file(out, r.method, r.scale, r.seed).exists()]
    return sum(mean.get(run.method, usual) for run in missing) / jobs
