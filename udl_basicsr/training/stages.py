"""The chain of stages: stage 2's YAML names stage 1's, which is trained first when its weights are missing.

With ``rounds: N`` the two go on in turns (UDL paper, section 3.3): the uncertainty is estimated anew with the better
mean network, then weights the error again. Round r > 1 is kept in ``<name>_round<r>``.
"""
import contextlib
import logging
import os
import shlex
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from basicsr.models import build_model
from basicsr.utils import get_root_logger

from udl_basicsr.data import uncertainty_cache
from udl_basicsr.data.loader import build_dataset
from udl_basicsr.options.keys import lookup
from udl_basicsr.options.parse import OptionError, Parsed, renamed
from udl_basicsr.options.summary import describe_options
from udl_basicsr.options.trials import build_network, quietly
from udl_basicsr.utils import plugins
from udl_basicsr.utils.checkpoints import CheckpointError
from udl_basicsr.utils.distributed import broadcast
from udl_basicsr.utils.errors import begun
from udl_basicsr.utils.settings import LoaderSettings, RunSettings
from udl_basicsr.utils.yaml_files import load_yaml

from . import loop
from .fast import is_ours
from .log import run_log
from .run_folder import has_ended, options_name, resume_state
from .states import essence, leaves, listed


def train(parsed: Parsed, command: str = '') -> None:
    """Trains all stages, those of :func:`_runs`, and says at the end where the weights are and what to type next."""
    # BasicSR's logger says nothing below a warning until a level is set, and the first run is announced before its own.
    get_root_logger().setLevel(logging.INFO if parsed.opt['rank'] == 0 else logging.ERROR)
    get_root_logger().info(describe_options(parsed))
    last, total = parsed, _count(parsed)
    with contextlib.ExitStack() as done:
        for number, last, may_have_ended in _runs(parsed):
            name = last.opt['name']
            if total > 1:
                get_root_logger().info(f'Stage {number} of {total}: {name}')
            if may_have_ended and last.opt['auto_resume'] and broadcast(has_ended(last)):
                get_root_logger().info(f'{name} has ended.')
                continue
            loop.train(last, command)
            done.enter_context(begun())
    if parsed.opt['rank'] == 0 and (text := _what_next(last)):
        get_root_logger().info(text)


def _count(parsed: Parsed | None) -> int:
    """How many runs an option file asks for."""
    return 0 if parsed is None else _count(parsed.stage1) + 1 + 2 * (RunSettings.of(parsed.opt).rounds - 1)


def _what_next(last: Parsed) -> str:
    """Where the weights of the last run are, and a command that uses them; nothing where there are none."""
    weights = _latest(last, 'g')
    given = [_latest(run, 'u') for run in (last, last.stage1) if run] + [last.opt['path'].get('pretrain_network_u')]
    uncertainty = next((file for file in given if file and Path(file).exists()), None)
    if not Path(weights).exists():
        return ''
    words = ['udl', 'infer', 'PICTURES', '--out', 'FOLDER', '--weights', _shown(weights)]
    if uncertainty:
        words += ['--uncertainty', _shown(uncertainty)]
    for module in plugins.asked_for():
        words += ['--import', module]
    return f'The weights are in {_shown(weights)}. To super-resolve pictures with them:\n  {shlex.join(words)}'


def _shown(file: str) -> str:
    """From the working folder, where the file lies in it."""
    return os.path.relpath(file) if Path(file).is_relative_to(Path.cwd()) else file


def _runs(parsed: Parsed) -> Iterator[tuple[int, Parsed, bool]]:
    """The stages before as far as their weights are missing, then this one, then the further rounds.

    Yields:
        tuple: The number of a run, its options, and whether a chain that is resumed leaves it as it is if it has ended.
            What comes next is decided once it has.
    """
    rounds, number = RunSettings.of(parsed.opt).rounds, 1 + _count(parsed.stage1)
    path, before = parsed.opt['path'], parsed.stage1
    if before is not None:
        needed = [path[key] for key in ('pretrain_network_g', 'pretrain_network_u') if path.get(key)]
        missing = broadcast([weights for weights in needed if not Path(weights).exists()])
        if missing:
            _rehearse(parsed, missing)
            for warning in parsed.warnings:  # when this stage begins it would be late to say
                get_root_logger().warning(warning)
            get_root_logger().info(f'Stage 1 comes first ({missing[0]} is missing): {before.file}')
            # A stage 1 that was interrupted goes on where it was.
            yield from _runs(replace(before, opt={**before.opt, 'auto_resume': True}))
        else:
            get_root_logger().info(f'Stage 1 is there: {", ".join(needed)}')
            for warning in _trained_otherwise(before):
                get_root_logger().warning(warning)
    yield number, parsed, rounds > 1

    if before is None or rounds == 1:
        return
    mean, uncertainty = parsed, path['pretrain_network_u']
    for again in range(2, rounds + 1):
        first = renamed(before, f"{before.opt['name']}_round{again}",
                        pretrain_network_g=_latest(mean, 'g'), pretrain_network_u=uncertainty)
        first.opt['auto_resume'] = parsed.opt['auto_resume']
        yield number + 1, first, True
        uncertainty = _latest(first, 'u')
        mean = renamed(parsed, f"{parsed.opt['name']}_round{again}",
                       pretrain_network_g=_latest(first, 'g'), pretrain_network_u=uncertainty)
        number += 2
        yield number, mean, True


def _trained_otherwise(before: Parsed) -> Iterator[str]:
    """Whether stage 1 may have had other options than it has now, in words; nothing where its folder keeps none.

    Raises:
        OptionError: Its networks were others: a head would read features that it does not know, and say anything.
    """
    root = before.opt['path']['experiments_root']
    file, again = Path(root, options_name(before)), f'to train it again, move {root} away or give it another name'
    if not file.is_file():
        return
    try:
        kept = load_yaml(str(file))
        then, now = _decisive(kept), _decisive(before.flat)
        keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
        if 'network_u.tap' in keys and _tap(kept) == _tap(before.flat):  # named now, and found then, or the reverse
            keys.remove('network_u.tap')
    except (OptionError, KeyError, AttributeError):  # somebody wrote in it
        yield (f'Whether stage 1 was trained with the options that it has now is not known: {file} cannot be read. It '
               f'is taken as it is; {again}')
        return
    if networks := [key for key in keys if key.startswith(('network_g.', 'network_u.tap', 'network_u.head'))]:
        raise OptionError([f'{before.file}: stage 1 was trained with another network: {listed(networks, then, now)}. '
                           f'Its head knows nothing of this one; {again}'])
    if keys:
        yield (f'Stage 1 was not trained with the options that it has now: {listed(keys, then, now)}. It is taken as '
               f'it is; {again}')


def _tap(flat: dict) -> object:
    """The module that a head reads, where the options leave it to the network too; None where nobody can tell."""
    block = {'backbone': flat['network_g'], **flat['network_u']}
    return getattr(build_network(lookup('network', block['type']), block), 'tap', None)


def _decisive(flat: dict) -> dict[str, object]:
    """The essence of options, from which weights and for how long; without metrics and what ``--fast`` may choose."""
    more = {'train.total_iter': flat['train'].get('total_iter'), **{f'path.{key}': value for key, value in (
        flat.get('path') or {}).items() if key.startswith('pretrain_network_')}}
    return {key: value for key, value in {**essence(flat), **dict(leaves(more))}.items()
            if not key.startswith(('val.', 'train.amp', 'train.channels_last')) and not key.endswith('.fused')}


def _rehearse(parsed: Parsed, missing: list[str]) -> None:
    """Builds the model of a stage but for the weights that are still to be trained.

    What is wrong with other weights, or a state, is found before hours are spent on those.
    """
    opt = deepcopy(parsed.opt)
    resume_state(opt)
    if is_ours(parsed):
        with quietly():
            build_model({**opt, 'dist': False, 'path': {**opt['path'], 'promised': missing}})


def cache_uncertainty(parsed: Parsed, command: str = '') -> None:
    """Makes the cache that ``datasets.train.uncertainty_cache`` names, or finds that it is there and the right one.

    Args:
        parsed (Parsed): Checked options of stage ``udl``.
        command (str): Of no use here; there is no run's folder.

    Raises:
        OptionError: The options are not of stage ``udl``, or ask for no cache.
        CheckpointError: Stage 1 has not been trained; or the cache is one of something else, or cannot be made.
    """
    opt = parsed.opt
    if (stage := opt.get('stage')) != 'udl':
        raise OptionError([f'{parsed.file}: stage: {stage} reads no uncertainty; give the option file of stage udl'])
    if not LoaderSettings.of(opt['datasets']['train']).uncertainty_cache:
        raise OptionError([f'{parsed.file}: datasets.train.uncertainty_cache: missing; name a folder, or add '
                           '--force_yml datasets:train:uncertainty_cache=auto here and when training'])
    weights = opt['path']['pretrain_network_u']
    if not Path(weights).exists():
        first = f' Train it first: udl train -opt {parsed.stage1.file}' if parsed.stage1 else ''
        raise CheckpointError(f'{weights}: missing, since stage 1 has not been trained.{first}')
    with run_log(opt['rank']):
        device = torch.device('cuda' if opt['num_gpu'] else 'cpu')
        uncertainty_cache.prepare(build_dataset(opt['datasets']['train']), opt, device)


def _latest(parsed: Parsed, label: str) -> str:
    return str(Path(parsed.opt['path']['models']) / f'net_{label}_latest.pth')
