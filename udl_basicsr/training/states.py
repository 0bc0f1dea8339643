"""Training states: whether one is whole and belongs to a run, and in which options the run has changed since.

A state comes from a disk, and what the disk gives may be anything. What is odd in it would be found in mid-run, by an
optimiser, or never; here it is found before anything is made, so that the run can resume from the state before it.
"""
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeGuard

import torch
from basicsr.utils import get_root_logger

from udl_basicsr.options.keys import lookup
from udl_basicsr.options.trials import build_network, try_moments
from udl_basicsr.utils.checkpoints import CheckpointError, why_no_tensor
from udl_basicsr.utils.settings import ValSettings
from udl_basicsr.utils.text import one_line

_NEEDED = ('iter', 'epoch', 'optimizers', 'schedulers')
_DATA = ('world_size', 'images', 'batch_size')  # of `run`, as note_changes() names them
# What does not decide what is trained: where the data lie, how fast they come, and how long the run is to be.
_NO_MATTER = {'dataroot_gt', 'dataroot_lq', 'meta_info_file', 'io_backend', 'name', 'phase', 'scale', 'in_memory',
              'num_worker_per_gpu', 'prefetch_mode', 'num_prefetch_queue', 'pin_memory', 'persistent_workers',
              'batch_size_per_gpu', 'uncertainty_cache', 'skip_broken'}
_CACHED = 'datasets.train.uncertainty_cache'  # where the cache lies is no matter, but whether s comes from one is
_LONGEST_VALUE = 80


def trained_blocks(opt: dict) -> dict[str, tuple[dict, dict]] | None:
    """``{label: (block of the network, block of its optimiser)}`` of the model of runtime options, in the order of its
    optimisers; None for models that do not say."""
    blocks = getattr(lookup('model', opt.get('model_type')), 'trained_blocks', None)
    return blocks and blocks(opt)


# ------------------------------------------------------------------------------------------------------- what is whole
def check_state(state: dict, path: Any, opt: dict) -> None:
    """Finds a training state whole, and of a run with these options.

    Each optimiser takes a step with its moments, on parameters of zeros: only its code knows which it needs.

    Args:
        state: As it was read.
        path: Its file, for the message.
        opt: Runtime options of the run that is to resume from it.

    Raises:
        CheckpointError: Names the file, the entry, and what is wrong with it.
    """
    for problem in _problems(state, opt):
        raise CheckpointError(f'{path}: cannot be resumed: {problem}')


def _problems(state: dict, opt: dict) -> Iterator[str]:
    absent = [key for key in _NEEDED if key not in state]
    if absent:
        yield f'it lacks {", ".join(absent)}. Expected training_states/<iteration>.state of a run'
    for key in ('iter', 'epoch'):
        if not _is_integer(state[key]):
            yield f'{key}: expected integer ≥ 0, got {_shown(state[key])}'
    for key, kind in (('optimizers', list), ('schedulers', list), ('scaler', dict), ('best_metric_results', dict),
                      ('run', dict)):
        if not isinstance(state.get(key, kind()), kind):
            yield f'{key}: expected a {kind.__name__}, got {_shown(state[key])}'
    yield from _problems_of_run(state.get('run', {}), opt)
    yield from _problems_of_optimizers(state['optimizers'], trained_blocks(opt))
    yield from _problems_of_schedulers(state['schedulers'], state['optimizers'], state['iter'])
    yield from _problems_of_scaler(state.get('scaler', {}))
    if not _is_list(skipped := state.get('skipped', [0, 0]), _is_integer) or len(skipped) != 2:
        yield f'skipped: expected two integers ≥ 0, got {_shown(skipped)}'
    for name, record in state.get('best_metric_results', {}).items():
        if not isinstance(record, dict) or not all(map(_is_best, record.values())):
            yield f'best_metric_results: {one_line(name, _LONGEST_VALUE)}: expected the best of each metric'


def _problems_of_run(run: dict, opt: dict) -> Iterator[str]:
    for key in ('manual_seed', *_DATA):
        if run.get(key) is not None and not (_is_integer(run[key]) and run[key] < 2**32):
            yield f'run: {one_line(key)}: expected integer, 0 ≤ x < 2³², got {_shown(run[key])}'
    options = run.get('options', {})
    if not isinstance(options, dict) or not all(isinstance(key, str) and _is_plain(options[key]) for key in options):
        yield f'run: options: expected plain values by the names of options, got {_shown(options)}'
    now = essence(opt) if options else {}
    for key in now.keys() & options:
        is_type = key in ('model_type', 'stage') or (key.startswith('train.optim_') and key.endswith('.type'))
        if is_type and options[key] != now[key]:
            yield (f'{key} was {_shown(options[key])}, now it is {now[key]}, which cannot resume from it. Give this '
                   'run another name; its weights can be started from, path.pretrain_network_*')


def _problems_of_optimizers(optimizers: list, blocks: dict[str, tuple[dict, dict]] | None) -> Iterator[str]:
    if blocks is not None and len(optimizers) != len(blocks):
        yield f'optimizers: expected {len(blocks)}, got {len(optimizers)}'
    labels = list(blocks or {})
    for number, saved in enumerate(optimizers):
        where = f'optimizers: {number}'
        if not isinstance(saved, dict) or not isinstance(saved.get('state'), dict) \
                or not isinstance(saved.get('param_groups'), list):
            yield f'{where}: expected state and param_groups, got {_shown(saved)}'
        groups = saved['param_groups']
        if not groups or not all(isinstance(g, dict) and _is_list(g.get('params'), _is_integer) for g in groups):
            yield f'{where}: param_groups: expected groups with the numbers of their params'
        indices = [index for group in groups for index in group['params']]
        if indices != list(range(len(indices))):
            yield f'{where}: param_groups: expected the params 0, 1, 2, ...'
        for index, moments in saved['state'].items():
            if not _is_integer(index) or index >= len(indices):
                yield f'{where}: state: {_shown(index)}: there is no such parameter, param_groups has {len(indices)}'
            if not isinstance(moments, dict):
                yield f'{where}: state: {index}: expected the moments of a parameter, got {_shown(moments)}'
            for name, value in moments.items():
                odd = isinstance(value, torch.Tensor) and (why_no_tensor(value) or (
                    '' if value.is_floating_point() else f'is of type {value.dtype}'))
                if odd:
                    yield f'{where}: state: {index}: {one_line(name, _LONGEST_VALUE)} {odd}'
        if blocks is not None:
            yield from _problems_of_moments(saved, *blocks[labels[number]], where)


def _problems_of_moments(saved: dict, block: dict, optim: dict, where: str) -> Iterator[str]:
    network = build_network(lookup('network', block.get('type')), block)
    if isinstance(network, str):
        return  # the options' affair
    shapes = [p.shape for p in network.parameters() if p.requires_grad]
    groups, arguments = saved['param_groups'], {key: value for key, value in optim.items() if key != 'type'}
    if len(groups) != 1 or len(groups[0]['params']) != len(shapes):
        yield (f'{where}: is of {sum(len(g["params"]) for g in groups)} parameters in {len(groups)} group(s), and the '
               f'network has {len(shapes)} in one: it was saved by another network or stage')
    elif problem := try_moments(lookup('optimizer', optim['type']), arguments, shapes, groups[0], saved['state']):
        yield f'{where}: {problem}'


def _problems_of_schedulers(schedulers: list, optimizers: list, iteration: int) -> Iterator[str]:
    if len(schedulers) != len(optimizers):
        yield f'schedulers: expected {len(optimizers)}, one for each optimiser, got {len(schedulers)}'
    for number, (saved, optimizer) in enumerate(zip(schedulers, optimizers, strict=True)):
        where, count = f'schedulers: {number}', len(optimizer['param_groups'])
        if not isinstance(saved, dict):
            yield f'{where}: expected a schedule, got {_shown(saved)}'
        for key in ('last_epoch', '_step_count'):
            if not _is_integer(saved.get(key)) or saved[key] > iteration + 1:
                yield f'{where}: {key}: expected integer, 0 ≤ x ≤ {iteration + 1}, got {_shown(saved.get(key))}'
        for key in ('base_lrs', '_last_lr'):
            if not _is_list(saved.get(key), _is_number) or len(saved[key]) != count:
                yield f'{where}: {key}: expected {count} learning rate(s), got {_shown(saved.get(key))}'


def _problems_of_scaler(scaler: dict) -> Iterator[str]:
    kinds: dict[str, Callable[[Any], TypeGuard[float]]] = {
        'scale': _is_number, 'growth_factor': _is_number, 'backoff_factor': _is_number,
        'growth_interval': _is_integer, '_growth_tracker': _is_integer}
    for key, accepts in kinds.items() if scaler else ():
        value = scaler.get(key)
        if not accepts(value) or (value <= 0 and key != '_growth_tracker'):
            yield f'scaler: {key}: expected a number > 0, got {_shown(value)}'


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**63 \
        and math.isfinite(value)


def _is_list(value: Any, accepts: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(accepts, value))


def _is_plain(value: Any, depth: int = 4) -> bool:
    if isinstance(value, list):
        return depth > 0 and all(_is_plain(child, depth - 1) for child in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _is_best(record: Any) -> bool:
    return isinstance(record, dict) and record.get('better') in ('higher', 'lower') \
        and isinstance(record.get('val'), float) and isinstance(record.get('iter'), int)


def _shown(value: Any) -> str:
    """A value as a message shows it: numbers and text themselves, of anything larger what it is."""
    if isinstance(value, int) and abs(value) >= 2**63:
        return 'a number beyond 64 bits'
    if value is None or isinstance(value, (bool, int, float, str)):
        return one_line(value, _LONGEST_VALUE)
    if _is_list(value, lambda v: isinstance(v, (bool, int, float, str))) and len(value) < 9:
        return one_line(f'[{", ".join(map(_shown, value))}]', _LONGEST_VALUE)
    return type(value).__name__


# ----------------------------------------------------------------------------------------------------- what has changed
def essence(opt: dict) -> dict[str, Any]:
    """The options that decide what is trained, by their dotted keys; they are kept with every state."""
    data = {key: value for key, value in opt['datasets']['train'].items() if key not in _NO_MATTER}
    train = {key: value for key, value in opt['train'].items() if key != 'total_iter'}
    parts = {key: value for key, value in opt.items() if key in ('model_type', 'stage') or key.startswith('network_')}
    metrics = ValSettings.of(opt.get('val')).metrics
    # `better: higher` was long what a block without it meant, and is filled in now
    metrics = {name: {key: value for key, value in block.items() if (key, value) != ('better', 'higher')}
               for name, block in metrics.items() if block}
    cached = {_CACHED: bool(opt['datasets']['train'].get('uncertainty_cache'))} if opt.get('stage') == 'udl' else {}
    return dict(leaves({**parts, 'datasets.train': data, 'train': train, 'val.metrics': metrics, **cached}))


def leaves(value: Any, at: str = '') -> Iterator[tuple[str, Any]]:
    """The values within blocks by their dotted keys, but for those that are null."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from leaves(child, f'{at}.{key}' if at else key)
    elif value is not None:
        yield at, list(value) if isinstance(value, tuple) else value


def listed(keys: Iterable[str], then: dict, now: dict) -> str:
    """What options were and are, for a message."""
    return ', '.join(f'{one_line(key)} {_shown(then.get(key))} -> {_shown(now.get(key))}' for key in keys)


def note_changes(state: dict, run: dict) -> None:
    """Says in the log what differs from the run that saved ``state``, where that decides what is trained next.

    Args:
        state: A training state, with ``run`` as it was when it was saved (absent in BasicSR's).
        run: ``world_size``, ``batch_size`` (of one process, with all its GPUs), ``images`` (of the training set) and
            ``options`` (:func:`essence`) now; and ``uncertainty``, the fingerprint of the network that weights the
            error and is not trained.

    Raises:
        CheckpointError: That network is another one: half of the training would have followed it, half the other.
    """
    before = state.get('run')
    if not before:
        get_root_logger().warning('This state does not say with how many processes and images it was trained: whether '
                                  'what follows is what would have followed cannot be told.')
        return
    if 'uncertainty' in run and before.get('uncertainty', run['uncertainty']) != run['uncertainty']:
        raise CheckpointError('path.pretrain_network_u: the state that training is to go on from was trained with '
                              'another uncertainty network than this one, perhaps that of a stage 1 that was trained '
                              'again since. Start anew without --auto_resume (the folder of this run is then kept as '
                              '_archived_<time>), or give this run another name')
    changed = [f'{name.replace("_", " ")} {before.get(name)} -> {run[name]}' for name in _DATA
               if name in run and before.get(name) != run[name]]
    if changed:
        # of the same images the processes together take the same, whatever their number
        same = before.get('images') == run.get('images') and len({of.get('world_size', 0) * of.get('batch_size', 0)
                                                                  for of in (before, run)}) == 1
        get_root_logger().warning(
            f'Not as when the state was saved: {", ".join(changed)}. Training goes on at the same iteration, ' + (
                'with the same images in each batch: what differs from an uninterrupted run is rounding, and what '
                'each process draws or normalises by itself.' if same else
                'but the images of each batch are no longer those of an uninterrupted run.'))
    then, now = before.get('options'), run.get('options')
    if not then or not now:
        return
    if _CACHED in now:  # states did not always say it
        then = {_CACHED: now[_CACHED], **then}
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    kept = [key for key in keys if key.startswith('train.optim_')]
    if keys:
        without = (f'Without effect: {", ".join(map(one_line, kept))}, since an optimiser goes on with the settings it '
                   'was saved with; to change these, start another run from the weights (path.pretrain_network_*). ')
        get_root_logger().warning(
            f'Not the options that the state was saved with: {listed(keys, then, now)}. ' + (without if kept else '')
            + ('The others hold from this iteration on.' if len(keys) > len(kept) else ''))
