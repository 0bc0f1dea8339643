"""Options of a run: read, completed as BasicSR completes them, and checked before anything is created.

    parsed = parse_options('options/train_EDSR_UDL_x4.yml', root_path='.', is_train=True)
    parsed.opt    what BasicSR's models and loaders want
    parsed.flat   what the user asked for, in one piece; stock BasicSR trains it as well
"""
import contextlib
import functools
import random
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from os import path as osp
from typing import Any

from udl_basicsr.losses.perceptual import NETS, find_backbone_weights
from udl_basicsr.utils.checkpoints import CheckpointError, unpacks
from udl_basicsr.utils.gpus import gpu_count
from udl_basicsr.utils.shipped_weights import locate_weights
from udl_basicsr.utils.yaml_files import OptionError, apply_force_yml, dump_flat, interpolate, load_yaml, merge

from .data_sets import Images, check_data, where
from .keys import Findings, block_of
from .schema import OPTIONS
from .testing import as_test, tests, trains
from .training_values import judge_of
from .trials import try_model
from .values import Checker

__all__ = ['OptionError', 'Parsed', 'apply_force_yml', 'dump_flat', 'load_yaml', 'parse_options', 'renamed']

_TORCHRUN = 'torchrun --nproc_per_node={} -m udl_basicsr train -opt ... --launcher pytorch'
_DEBUG_FREQUENCIES = {'val': {'val_freq': 8}, 'logger': {'print_freq': 1, 'save_checkpoint_freq': 8}}
_DEBUG_ITERATIONS = 16  # of each stage: two validations, and about a minute for a small network


@dataclass(frozen=True)
class Parsed:
    """Options of one run."""

    file: str
    """The option file, absolute."""
    flat: dict
    """Resolved options as the user may write them; ``dump_flat(flat)`` is the file for the run's folder."""
    opt: dict
    """Runtime options, as basicsr.utils.options.parse_options builds them."""
    stage1: 'Parsed | None' = None
    """The options of stage 1, where ``stage1`` names its file or says what it changes in this one."""
    warnings: tuple[str, ...] = field(default=())
    """What is legal but probably not meant."""
    notes: tuple[str, ...] = field(default=())
    """What has been decided where the file leaves it open, for the log."""


def parse_options(file: str, *, root_path: str, is_train: bool, force_yml: Iterable[str] = (),
                  auto_resume: bool = False, debug: bool = False, rank: int = 0, world_size: int = 1,
                  dist: bool = False, num_gpu_available: int | None = None, check_files: bool = True,
                  check_images: bool = True, deep: bool = False) -> Parsed:
    """Reads an option file, applies ``--force_yml``, and checks everything.

    Args:
        file: option file.
        root_path: the folder of ``experiments/`` and ``results/``.
        is_train: training, or test.
        force_yml: entries such as ``train:optim_g:lr=1e-4``. They do not reach the file that ``stage1`` names.
        auto_resume: put into the options as it is.
        debug: BasicSR's debug mode: the name gets ``debug_`` before it, everything happens every few iterations; and
            each stage ends after 16 of them.
        rank: this process.
        world_size: number of processes.
        dist: whether there are several.
        num_gpu_available: number of GPUs; None asks torch.
        check_files: False leaves out every check that looks at the disk.
        check_images: False leaves out those that look at the data sets.
        deep: decode every image (on rank 0), where else only headers are read.

    Returns:
        The options. Nothing on disk has been touched.

    Raises:
        OptionError: with every problem found.
    """
    process = {'dist': dist, 'rank': rank, 'world_size': world_size, 'auto_resume': auto_resume, 'debug': debug}
    return _parse(file, (), root_path=root_path, is_train=is_train, force_yml=tuple(force_yml or ()), process=process,
                  num_gpu_available=gpu_count() if num_gpu_available is None else num_gpu_available,
                  files=check_files,
                  images=Images(deep and rank == 0, quiet=rank != 0) if check_files and check_images else None)


def _parse(file: str, parents: tuple[str, ...], *, root_path: str, is_train: bool, force_yml: tuple[str, ...],
           process: dict, num_gpu_available: int, files: bool, images: Images | None,
           within: dict | None = None) -> Parsed:
    file = osp.abspath(osp.expanduser(file))
    root_path = osp.abspath(root_path)
    flat = load_yaml(file, references=False) if within is None else within
    if 'methods' in flat and 'network_g' not in flat:
        raise OptionError(f'{file}: is the plan of a comparison, expected the option file of one run; give it to udl '
                          'compare')
    if is_train and tests(flat):
        raise OptionError(f'{file}: is the option file of a test, expected that of a training; give it to udl test')
    if not is_train and trains(flat):
        # once on the training, whose name and scale they may change, and once more on the test
        flat = as_test(apply_force_yml(flat, force_yml), file, root_path)
    flat = interpolate(apply_force_yml(flat, force_yml), file)
    if isinstance(flat.get('stage1'), str):
        flat['stage1'] = osp.abspath(flat['stage1'])  # only --force_yml can have left it relative, to where we are
    _complete(flat, process['debug'])

    report, stage1, promised = Findings(), None, {}
    if isinstance(flat.get('stage1'), (str, dict)) and is_train:
        stage1 = _parse_stage1(flat, report, (*parents, osp.realpath(file)), root_path=root_path, is_train=True,
                               force_yml=(), process=process, num_gpu_available=num_gpu_available, files=files,
                               images=images)
        promised = _fill_stage1_weights(flat, stage1, root_path)
        if isinstance(flat['stage1'], dict):
            report.warnings += _set_by_block(flat['stage1'], force_yml)
        else:
            report.elsewhere += _out_of_reach(flat['stage1'], force_yml, report.elsewhere)
    elif flat.get('stage1') is not None and not is_train:
        report.add('stage1', 'belongs in a training file; remove it')
    checker = Checker(flat, is_train, report)
    checker.run()
    if not _can_build(flat):
        raise _error(file, report)
    train = block_of(flat, 'train') if process['debug'] else {}
    for key in ('total_iter', 'warmup_iter'):  # now that they have been checked as they are
        if isinstance(train.get(key), (int, float)):
            train[key] = min(train[key], _DEBUG_ITERATIONS)
    if is_train and 'debug' in flat['name']:  # as BasicSR has it
        for block, frequencies in _DEBUG_FREQUENCIES.items():
            if isinstance(flat.get(block), dict):
                flat[block] |= frequencies
        if not process['debug']:
            report.warnings.append(f'name: {flat["name"]!r} has debug in it: as in BasicSR, this run logs each '
                                   'iteration, and validates and saves every 8; choose another name if you do not want '
                                   'that')

    if is_train and flat.get('manual_seed') is None:
        flat['manual_seed'] = random.SystemRandom().randint(1, 10000)  # leaves the global random state alone
    opt = _runtime(flat, root_path, is_train, num_gpu_available) | process
    _check_machine(opt, flat, num_gpu_available, report)
    if files:
        _check_weights(flat, promised, root_path, is_train, report)
        _check_places(opt, report)
        if isinstance(tested_on := flat.get('tested_on'), str) and not osp.isfile(tested_on):
            report.add('tested_on', f'no such file: {tested_on}; correct the path, or remove the key')
    if images:
        check_data(opt, root_path, report, images)
        # of models that are not ours, only their code knows what they need
        if not (report.problems or checker.ours) and (problem := try_model(checker.model, opt)):
            report.add('model_type', problem)
    if report.problems or report.elsewhere:
        raise _error(file, report)
    return Parsed(file, flat, opt, stage1, tuple(f'{file}: {w}' for w in report.warnings))


def changed(parsed: Parsed, changes: dict) -> Parsed:
    """The same run with other values, which are right: they are not checked."""
    flat = merge(parsed.flat, changes)
    process = {key: parsed.opt[key] for key in ('dist', 'rank', 'world_size', 'auto_resume', 'debug')}
    opt = _runtime(flat, parsed.opt['root_path'], True, parsed.opt['num_gpu'])
    return replace(parsed, flat=flat, opt=opt | process)


def renamed(parsed: Parsed, name: str, **path: str) -> Parsed:
    """The same options for another run: under another name, from other weights, and with no stage before it.

    What ``path`` says of the old weights, a state to go on from and the entries of their files, is no longer true.
    """
    flat = {key: value for key, value in parsed.flat.items() if key not in ('stage1', 'rounds')}
    kept = {key: value for key, value in flat['path'].items() if not key.startswith(('resume_state', 'param_key_'))}
    flat |= {'name': name, 'path': {**kept, **path}}
    return changed(replace(parsed, flat=flat, stage1=None, notes=()), {})


def _error(file: str, report: Findings) -> OptionError:
    # both stages usually train on the same data: what is missing for both is said once
    elsewhere = [line for line in report.elsewhere if not line.endswith(tuple(f': {p}' for p in report.problems))]
    return OptionError([*(f'{file}: {p}' for p in report.problems), *elsewhere])


def _complete(flat: dict, debug: bool) -> None:
    """Sorts the keys as BasicSR does, and adds those that stock BasicSR takes for granted."""
    name = flat.get('name')
    if debug and isinstance(name, str) and not name.startswith('debug'):
        flat['name'] = f'debug_{name}'
    if flat.get('num_gpu') is None:
        flat['num_gpu'] = OPTIONS['num_gpu'].default
    if flat.get('path') is None:
        flat['path'] = {}
    for block, keys in (('val', ('save_img', 'suffix')), ('logger', ('use_tb_logger', ))):
        if isinstance(flat.get(block), dict):
            flat[block] |= {key: OPTIONS[block].kind[key].default for key in keys if key not in flat[block]}
    order = {key: i for i, key in enumerate(OPTIONS)}
    for key in sorted(flat, key=lambda k: order.get(k, len(order))):
        flat[key] = flat.pop(key)


def _parse_stage1(flat: dict, report: Findings, parents: tuple[str, ...], **arguments: Any) -> Parsed | None:
    """Checks the option file of stage 1, and that stage 2 can start from what it trains."""
    first, within = flat['stage1'], None
    if isinstance(first, dict):
        rest = deepcopy({k: v for k, v in flat.items() if k not in ('stage1', 'rounds', 'path')})
        if isinstance(rest.get('train'), dict):  # losses are each stage's own: one beside udl_opt is none of stage 1
            rest['train'] = {k: v for k, v in rest['train'].items() if not k.endswith('_opt')}
        if first.get('stage', flat.get('stage')) != 'udl' and isinstance(block_of(rest, 'datasets').get('train'), dict):
            rest['datasets']['train'].pop('uncertainty_cache', None)  # stage 1 makes what stage 2 reads
        within = merge(rest, first)
        within['name'] = first.get('name', f'{flat.get("name")}_stage1')
        first, parents = parents[-1], parents[:-1]
    elif osp.realpath(first) in parents:
        report.add('stage1', f'goes round in a circle: {" -> ".join((*parents, osp.realpath(first)))}')
        return None
    elif not osp.exists(first):
        report.add('stage1', f'no such file: {first}; correct the path')
        return None
    try:
        stage1 = _parse(first, parents, within=within, **arguments)
    except OptionError as error:
        report.elsewhere += [p.replace(f'{first}: ', f'{first}: in stage1: ', 1) if within else p
                             for p in error.problems]
        return None
    for key in ('scale', 'network_g'):
        if flat.get(key) != stage1.flat.get(key):
            report.add(key, f'{flat.get(key)} is not what stage 1 trains, {stage1.flat.get(key)} ({first})')
    ours, theirs = ({'backbone': f.get('network_g'), **f['network_u']} if isinstance(f.get('network_u'), dict) else None
                    for f in (flat, stage1.flat))
    if ours and theirs and ours != theirs and flat['network_u'] != stage1.flat['network_u']:  # else network_g said it
        report.add('network_u', f'{flat["network_u"]} is not what stage 1 trains, {stage1.flat["network_u"]} ({first})')
    if ours and not theirs and flat.get('stage') != 'esu' and not flat['path'].get('pretrain_network_u'):
        report.add('stage1', f'trains no network_u ({first}); expected the option file of stage esu')
    return stage1


def _out_of_reach(file: str, force_yml: Iterable[str], problems: list[str]) -> list[str]:
    """Of what is wrong in the file of stage 1, what the command line seems to put right and does not."""
    keys = [entry.partition('=')[0] for entry in force_yml]
    kept = [key for key in keys if any(f': {key.replace(":", ".")}' in problem for problem in problems)]
    return [f'{file}: --force_yml {", ".join(kept)} changes stage 2 alone; change this file as well'] if kept else []


def _set_by_block(stage1: dict, force_yml: Iterable[str]) -> list[str]:
    """Of what the command line sets, what the block of stage 1 sets for itself, so that it does not get there."""
    said = []
    for entry in force_yml:
        *blocks, key = keys = entry.partition('=')[0].split(':')
        if functools.reduce(block_of, blocks, stage1).get(key) is not None:
            said.append(f'--force_yml {entry} changes stage 2 alone, since the block stage1 sets {".".join(keys)} '
                        f'itself; for stage 1: --force_yml stage1:{entry}')
    return said


def _fill_stage1_weights(flat: dict, stage1: Parsed | None, root_path: str) -> dict[str, str]:
    """Names the weights that stage 1 will leave, where the file names no others; returns them."""
    if stage1 is None or not isinstance(flat['path'], dict):
        return {}
    models = osp.join(root_path, 'experiments', stage1.flat['name'], 'models')
    promised = {}
    for label in ('g', 'u'):
        key, weights = f'pretrain_network_{label}', osp.join(models, f'net_{label}_latest.pth')
        known = f'network_{label}' in flat and f'network_{label}' in stage1.flat
        if known and flat['path'].get(key) in (None, weights):  # a flat file of an earlier run names them already
            promised[key] = flat['path'][key] = weights
    return promised


def _can_build(flat: dict) -> bool:
    """Whether the skeleton is sound enough to look at the rest too."""
    datasets = flat.get('datasets')
    return isinstance(flat.get('name'), str) and isinstance(flat['path'], dict) and isinstance(datasets, dict) \
        and all(isinstance(d, dict) for d in datasets.values()) \
        and all(isinstance(flat.get(k, {}), dict) for k in ('val', 'logger'))


def _runtime(flat: dict, root_path: str, is_train: bool, num_gpu_available: int) -> dict:
    """Adds what basicsr.utils.options.parse_options and train_pipeline add."""
    opt = deepcopy(flat)
    opt.update(is_train=is_train, root_path=root_path)
    if opt['num_gpu'] == 'auto':
        opt['num_gpu'] = min(num_gpu_available, 1)
    for key, dataset in opt['datasets'].items():
        dataset['phase'] = key.split('_')[0]
        if 'scale' in opt:
            dataset['scale'] = opt['scale']
        for place in ('dataroot_gt', 'dataroot_lq', 'meta_info_file', 'meta_info'):
            if isinstance(dataset.get(place), str):
                dataset[place] = osp.expanduser(dataset[place])
    path = opt['path']
    for key, value in path.items():
        if isinstance(value, str) and ('resume_state' in key or 'pretrain_network' in key):
            with contextlib.suppress(ValueError):  # said with the other findings
                path[key] = _weights_file(value)
    if is_train:
        root = path['experiments_root'] = osp.join(root_path, 'experiments', opt['name'])
        path['models'] = osp.join(root, 'models')
        path['training_states'] = osp.join(root, 'training_states')
    else:
        root = path['results_root'] = osp.join(root_path, 'results', opt['name'])
    path['log'] = root
    path['visualization'] = osp.join(root, 'visualization')
    return opt


def no_data_parallel(gpus: int, lever: str) -> str:
    """What is said of ``num_gpu`` where DataParallel, whose threads know nothing of autocast, meets a lever."""
    return f'{gpus} GPUs of one process (DataParallel) cannot be trained with {lever}; use auto, or a process for ' \
           f'each: {_TORCHRUN.format(gpus)}'


def _check_machine(opt: dict, flat: dict, num_gpu_available: int, report: Findings) -> None:
    wanted = flat['num_gpu']
    if isinstance(wanted, int) and wanted > num_gpu_available:
        report.add('num_gpu', f'{wanted} is more than the {num_gpu_available} that this machine shows; use auto')
    if opt['is_train'] and not opt['dist']:
        levers = [key for key in ('amp', 'compile') if block_of(opt, 'train').get(key)]
        if isinstance(wanted, int) and wanted > 1 and levers:
            report.add('num_gpu', no_data_parallel(wanted, f'train.{levers[0]}'))
        elif wanted == 'auto' and num_gpu_available > 1:
            report.warnings.append(f'num_gpu: auto trains on one of the {num_gpu_available} GPUs here. For all of '
                                   f'them: {_TORCHRUN.format(num_gpu_available)}')
    train = opt['datasets'].get('train', {})
    if train.get('prefetch_mode') == 'cuda':
        if opt['num_gpu'] == 0 or not num_gpu_available:
            report.add('datasets.train.prefetch_mode', 'cuda needs a GPU, and none is used here; use cpu or ~')
        if train.get('pin_memory') is False:
            report.add('datasets.train.pin_memory', 'must not be false with prefetch_mode: cuda')


def _weights_file(text: str) -> str:
    """The path that ``path.pretrain_network_*`` names, of weights that come with the package (``udl:NAME``) too."""
    return osp.expanduser(locate_weights(text))


def _check_weights(flat: dict, promised: dict, root_path: str, is_train: bool, report: Findings) -> None:
    """Weights and states that are named must be there, but for those that stage 1 will leave."""
    for key, value in flat['path'].items():
        if not isinstance(value, str) or key in promised or report.has(f'path.{key}') or not (
                'pretrain_network' in key or key == 'resume_state'):
            continue
        try:
            file = _weights_file(value)
        except ValueError as error:
            report.add(f'path.{key}', str(error))
            continue
        if not osp.isfile(file):
            remedy = 'correct the path' if is_train else f'train first, or set path.{key}'
            found = 'a folder, expected a file' if osp.isdir(file) else 'no such file'
            report.add(f'path.{key}', f'{found}: {where(value, root_path)}; {remedy}')
        elif unpacks(file):
            report.add(f'path.{key}', f'{where(value, root_path)} is compressed, as torch writes none: what it unpacks '
                       'to may fill the memory; fetch it again, or save it anew with torch.save')
    # TLW's judge is built with its model; that of a likelihood not before the first step, when it would be late to say.
    judge, weights = judge_of(block_of(flat, 'train').get('likelihood_opt'))
    if judge in NETS and isinstance(weights, str | None):
        try:
            find_backbone_weights(judge, weights)
        except CheckpointError as error:
            report.add('train.likelihood_opt.judge', str(error).replace('weights_path', 'judge_weights'))


def _check_places(opt: dict, report: Findings) -> None:
    """The folders of the run can be made: nothing that is no folder stands in their place, or in that of the lock."""
    run = opt['path']['experiments_root' if opt['is_train'] else 'results_root']
    for folder in (run, osp.join(opt['root_path'], 'tb_logger', opt['name'])):
        there = folder
        while not osp.lexists(there) and osp.dirname(there) != there:
            there = osp.dirname(there)
        if not osp.isdir(there):
            kind = 'a file' if osp.exists(there) else 'a link to what is not there'
            report.add('name', f'the folder {folder} cannot be made: {there} is {kind}; remove or rename it')
    lock = osp.join(run, '.lock')
    if osp.lexists(lock) and not osp.isfile(lock):
        report.add('name', f'{lock} is no file; expected the lock of a run. Remove it, or choose another name')
