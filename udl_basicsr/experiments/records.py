"""What the record of a run holds beside its scores, and whether what is there is what a plan asks for."""
from __future__ import annotations

import datetime
import hashlib
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

import torch
from basicsr.archs import build_network

from udl_basicsr.data.images import channels_of
from udl_basicsr.data.loader import TrainBatches, build_dataset
from udl_basicsr.options.parse import OptionError, load_yaml
from udl_basicsr.training.history import read_history
from udl_basicsr.training.states import leaves
from udl_basicsr.utils import processor
from udl_basicsr.utils.json_files import read_json
from udl_basicsr.utils.scores import HISTORY_FIELDS, Scores, ScoresError, read_scores
from udl_basicsr.utils.settings import LoaderSettings, RunSettings
from udl_basicsr.utils.shipped_weights import locate_weights

from .costs import amp_of, device_of, measure_image, training_operations
from .plan import NOTED_LATER, PlannedRun, Stage
from .record_files import Curve, PeakMemory, Record, Series, TrainedStage, read_record


def make_record(run: PlannedRun, root: Path, seconds: float, step: float | None = None,
                memory: PeakMemory | None = None) -> Record:
    """The record of a run that has been trained and tested.

    Args:
        run: The run.
        root: Where its ``experiments/`` and ``results/`` are.
        seconds: What training and test took in this process.
        step: Milliseconds of an iteration of the last stage, validation and all; None where this process has not
            trained it from its beginning.
        memory: Of :func:`peak_memory`, after the training; None where this process has not trained.
    """
    histories = [read_history(root / 'experiments' / stage.name / 'history.jsonl') for stage in run.stages]
    visualization = Path('results') / run.name / 'visualization'
    has_pictures = any((root / visualization).glob('*/*.png'))
    last, kept = run.stages[-1].flat, run.stages[-1].kept(root)
    network = last['network_g']
    costs, measured = measure_image(network, last['scale'], run.size, channels_of(last['datasets']['train']))
    training = {} if step is None else {'training': round(step, 3)}
    with suppress(Exception):  # of a network that cannot be counted
        training['operations'] = training_operations(run.stages)
    scores = vars(read_scores(root / 'results' / run.name))
    return Record(
        **{**scores, 'scale': run.scale,  # of the plan: networks for aligned pairs (RealSR) keep the size
           'weights': f'experiments/{run.name}/models/net_g_latest.pth'},
        comparison=run.plan, method=run.method, label=run.label, order=run.order,
        reference=run.reference, seed=run.seed, degradation=run.degradation, network_title=run.title,
        network_id=run.network or None, lengths=run.lengths,
        parameters=sum(p.numel() for p in build_network(network).parameters()),
        costs={**costs, **training}, run_time=measured, peak_memory=memory,
        stages=[_stage(stage, history) for stage, history in zip(run.stages, histories, strict=True)],
        options=[stage.essence for stage in run.stages],
        initial_weights=histories[0][0]['initial_weights'],
        data_order=data_order(run.stages),
        seconds=round(seconds, 1), machine=machine(load_yaml(str(kept)) if kept.is_file() else last),
        date=datetime.date.today().isoformat(),
        commit=_commit(), curve=_curve(run.stages, histories),
        pictures=str(visualization) if has_pictures else None,
    )


def lacking(run: PlannedRun, out: Path) -> list[str]:
    """The metrics that a run's test measures now and that its record does not have of each data set."""
    record, tested = read_record(run.record(out)), run.test_flat
    sets = {block.get('name') for block in tested['datasets'].values() if isinstance(block, dict)}
    return [metric for metric in tested['val']['metrics']
            if not all(name in record.datasets and metric in record.datasets[name].mean for name in sets)]


def retested(record: Record, scores: Scores) -> Record:
    """A record with the scores of a further test of its network; what it says of the training stays.

    Raises:
        ScoresError: The network that was tested is not that of the record.
    """
    if record.weights_hash and scores.weights_hash != record.weights_hash:
        raise ScoresError(f'{record.name}: the network that was tested now, {scores.weights}, is not the one of the '
                          'record: their weights differ. The record stays as it was')
    for name, before in record.datasets.items():
        for metric, value in before.mean.items():
            again = scores.datasets[name].mean.get(metric) if name in scores.datasets else None
            if value is None or again is None or abs(again - value) > 1e-3 * max(1., abs(value)):
                raise ScoresError(f'{record.name}: {metric} on {name} was {value} and is {again} now. The record stays '
                                  'as it was')
    return replace(record, **{one.name: getattr(scores, one.name) for one in fields(Scores)
                              if one.name not in ('name', 'scale', 'weights')})


def as_planned(record: Record, run: PlannedRun) -> Record:
    """A record as its plan tells of the run now: how things are called, and the reference, decide nothing of it."""
    return replace(record, method=run.method, label=run.label, order=run.order, reference=run.reference,
                   network_title=run.title)


def peak_memory(flat: Mapping) -> PeakMemory | None:
    """The most memory that this process, which trains with these options, had so far: what torch allocated on the GPU,
    where that is used, else all of the process.

    Returns:
        PeakMemory | None: None where the system does not tell.
    """
    if device_of(flat).type == 'cuda':
        return PeakMemory(torch.cuda.max_memory_allocated(), 'GPU')
    with suppress(ImportError):  # Windows
        import resource
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return PeakMemory(peak if sys.platform == 'darwin' else peak * 1024, 'process')
    return None


def data_order(chain: Iterable[Stage]) -> str:
    """A SHA-256 of the samples that the stages ask for, one after another: (epoch, index) decides image and crop."""
    digest = hashlib.sha256()
    for stage in chain:
        opt = {**stage.flat['datasets']['train'], 'phase': 'train', 'scale': stage.flat['scale']}
        dataset, settings = build_dataset(opt), LoaderSettings.of(opt)
        length = len(dataset)  # pyright: ignore[reportArgumentType] - torch's base class has none, BasicSR's have
        sampler = TrainBatches(length, opt['batch_size_per_gpu'], stage.iterations,
                               first_iter=settings.first_iter, ratio=settings.dataset_enlarge_ratio,
                               seed=stage.flat['manual_seed'])
        for batch in sampler:
            digest.update(repr((stage.flat['manual_seed'], batch)).encode())
    return digest.hexdigest()


def _stage(stage: Stage, history: list[dict]) -> TrainedStage:
    """What a stage was, and what its steps took if none had been disturbed: their median, as often as there are."""
    steps = [entry['seconds'] for entry in history if 'seconds' in entry]
    return TrainedStage(RunSettings.of(stage.flat).stage, stage.iterations,
                        float(f'{statistics.median(steps) * stage.iterations:.4g}') if steps else None)


def _curve(chain: Iterable[Stage], histories: Iterable[list[dict]]) -> Curve:
    """Losses and validations over the whole budget: a second stage goes on counting."""
    losses: Series = {}
    validations: dict[str, Series] = {}
    before = 0
    for stage, history in zip(chain, histories, strict=True):
        for entry in history[1:]:
            point = {'iter': before + entry['iter'],
                     **{k: float(f'{v:.6g}') for k, v in entry.items() if k not in HISTORY_FIELDS}}
            target = validations.setdefault(entry['dataset'], {}) if 'dataset' in entry else losses
            count = len(target.get('iter', ()))
            for key, value in point.items():
                target.setdefault(key, [None] * count).append(value)  # what stage 1 did not log is null there
            for values in target.values():
                values.extend([None] * (count + 1 - len(values)))
        before += stage.iterations
    return Curve(losses, validations)


def machine(flat: Mapping) -> str:
    """The kind of machine that a run with these options computes on here, and what it computes in."""
    kind = processor.name(device := device_of(flat))
    if device.type == 'cpu':
        kind += f' ({processor.instructions()}), {os.cpu_count()} CPU cores, {torch.get_num_threads()} thread(s)'
    return f"{kind}, {amp_of(flat) or 'float32'}"


def _commit() -> str:
    """Of the package's own repository; nothing where it is installed, be it within a repository of the user's."""
    here = Path(__file__)

    def git(*words: str) -> str:
        return subprocess.run(['git', *words], cwd=here.parent, check=True, capture_output=True, text=True).stdout

    with suppress(OSError, subprocess.CalledProcessError):
        git('ls-files', '--error-unmatch', here.name)
        return git('rev-parse', '--short', 'HEAD').strip()
    return ''


# ---------------------------------------------------------------- what is there

def made_with_other_options(run: PlannedRun, out: Path, root: Path) -> str | None:
    """Why what is there of a run is not what the plan asks for, or None."""
    file = run.record(out)
    if file.exists():
        try:
            found = read_json(file)['options']
            if not (isinstance(found, list) and all(isinstance(stage, dict) for stage in found)):
                raise TypeError(f'options: expected one block for each stage, got {found!r:.60}')
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f'{file}: is no record ({error!r}); remove it'
        return _difference(found, [stage.essence for stage in run.stages], str(file))
    for stage in run.stages:
        kept = stage.kept(root)
        if kept.exists():
            try:
                old = Stage(stage.name, kept, load_yaml(str(kept))).essence
            except (OptionError, KeyError, TypeError, AttributeError) as error:
                return f'{kept}: is no option file of a run ({error}); remove {kept.parent}'
            if problem := _difference([old], [stage.essence], str(kept.parent)):
                return problem
    return None


def _difference(found: list, wanted: list, where: str) -> str | None:
    for a, b in zip(found, wanted, strict=False):
        before, now = dict(leaves(a)), dict(leaves(b))
        for key in sorted({*before, *now}):
            old, new = before.get(key), now.get(key)
            decided = (key, new) == ('train.amp', 'auto')  # which the run has decided
            if old != new and not (decided or _unknown(key, a) or _same_weights(key, old, new)):
                return (f'{where}: was made with {key}: {old}, and the plan now says {new}. Give the plan another '
                        'name, or remove it to make it anew')
    if len(found) != len(wanted):
        return f'{where}: was made in {len(found)} stages, the plan has {len(wanted)}'
    return None


def _unknown(key: str, found: dict) -> bool:
    """Whether an option was not noted yet when a record was made."""
    block, _, name = key.partition('.')
    return name in NOTED_LATER.get(block, ()) and name not in (found.get(block) or {})


def _same_weights(key: str, *paths: object) -> bool:
    """Whether two paths of start weights lead to one file."""
    if not (key.startswith('path.') and all(isinstance(path, str) for path in paths)):
        return False
    with suppress(ValueError):  # no weights of the package have that name
        return len({os.path.realpath(os.path.expanduser(locate_weights(str(path)))) for path in paths}) == 1
    return False
