"""Checks of resolved options that need no look at the data: keys, types, arguments, and how they fit together."""
import contextlib
import functools
import importlib.util
import inspect
import json
from collections.abc import Iterable
from typing import Any

import torch
from basicsr.data import build_dataloader
from basicsr.models import lr_scheduler
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY
from torch import nn

from . import schema
from .introspect import call_problems, describe, keys_needed, keys_read, names_compared, parameters
from .schema import Built, Key
from .yaml_files import did_you_mean

_PACKAGE = __package__.split('.')[0]
_SUPPLIED = {'metric': {'img', 'img2'}, 'optimizer': {'params'}, 'scheduler': {'optimizer', 'last_epoch'}}
_NEEDS_MORE = {'LBFGS', 'SparseAdam'}  # a closure, sparse gradients: neither is what a training step has
_RUNTIME_KEYS = {'phase', 'scale'}  # BasicSR fills them into every data set


class Report:
    """Collects what is wrong; ``at`` is the dotted path of a key."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.elsewhere: list[str] = []  # complete lines, about the file of stage 1
        self.warnings: list[str] = []

    def add(self, at: str, message: str) -> None:
        if (line := f'{at}: {message}') not in self.problems:
            self.problems.append(line)

    def has(self, at: str) -> bool:
        """Whether something is wrong at or below a key."""
        return any(line.startswith((f'{at}.', f'{at}:')) for line in self.problems)


def known(what: str) -> dict[str, Any]:
    """Classes and functions by the names that option files give them."""
    if what == 'optimizer':
        return {name: c for name, c in vars(torch.optim).items() if inspect.isclass(c)
                and issubclass(c, torch.optim.Optimizer) and c is not torch.optim.Optimizer and name not in _NEEDS_MORE}
    if what == 'scheduler':
        classes = {name: c for name, c in vars(lr_scheduler).items()
                   if inspect.isclass(c) and c.__module__ == lr_scheduler.__name__}
        return {'MultiStepLR': classes['MultiStepRestartLR'], **classes}  # BasicSR's two names for one class
    registry = {'network': ARCH_REGISTRY, 'loss': LOSS_REGISTRY, 'metric': METRIC_REGISTRY, 'model': MODEL_REGISTRY,
                'data set': DATASET_REGISTRY}[what]
    entries = list(registry)  # pairs; dict(registry) would look for keys() first
    return {name.removesuffix('_basicsr'): target for name, target in entries} | {**dict(entries)}


@functools.lru_cache(maxsize=32)
def _build_network(block: str) -> nn.Module | str:
    """The network of a JSON block, or why it cannot be built.

    On the meta device where its constructor allows that, which costs no memory. Not through BasicSR's build_network: that
    would open the log before the run has a folder.
    """
    arguments = json.loads(block)
    target = known('network')[arguments.pop('type')]
    error = ''
    for device in ('meta', 'cpu'):
        try:
            with torch.random.fork_rng(devices=[]), torch.device(device), contextlib.redirect_stdout(None):
                return target(**arguments)
        except Exception as e:
            error = f'{target.__name__} cannot be built: {type(e).__name__}: {e}'.splitlines()[0]
    return error


class Checker:
    """Walks options along the table of ``schema.py``. Accepted values are converted in place."""

    def __init__(self, opt: dict, is_train: bool, report: Report) -> None:
        self.opt, self.is_train, self.report = opt, is_train, report
        models = known('model')
        name = str(opt.get('model_type'))
        near = did_you_mean(name, models).partition("'")[2][:-2]  # so that a typing error there hides no other problem
        self.model = models.get(name) or models.get(near)
        bases = self.model.__mro__ if self.model else ()
        self.ours = any(c.__module__.split('.')[0] == _PACKAGE for c in bases)
        self.reads = keys_read(self.model) if self.model else None

    def run(self) -> None:
        self.walk(self.opt, schema.OPTIONS, ())
        if 'model_type' in self.opt and self.opt['model_type'] not in known('model'):
            self.report.add('model_type', f'no model {describe(self.opt["model_type"])} is registered'
                            f'{did_you_mean(self.opt["model_type"], known("model"))}')
        self.check_datasets()
        self.check_networks()
        self.check_paths()
        self.check_stage()
        if self.is_train and isinstance(self.opt.get('train'), dict):
            self.check_schedule(self.opt['train'])
        self.check_validation()
        self.check_logger()

    # ---------------------------------------------------------------------------------------------- keys and types
    def model_reads(self, path: tuple[str, ...]) -> bool:
        return self.reads is None or path in self.reads

    def legal(self, path: tuple[str, ...], entry: Key | None) -> bool:
        if entry is None:
            return self.model_reads(path) and len(path) <= 2
        if path[0] == 'train' and path[-1].endswith('_opt'):
            return self.ours or self.model_reads(path)
        if path[0] == 'path' and path[-1].startswith(('pretrain_', 'param_key_', 'strict_load_')):
            network = 'network_' + path[-1].rpartition('_')[2]
            return network in self.opt or self.model_reads(path)
        return not entry.ours or self.ours or self.model_reads(path)

    def walk(self, block: dict, table: dict[str, Key], at: tuple[str, ...], others: Iterable[str] = ()) -> None:
        """Checks ``block`` against ``table``; ``others`` are legal keys that the table does not know."""
        for name, value in list(block.items()):
            path, where, entry = (*at, name), '.'.join((*at, name)), schema.find(table, name)
            if name in others and entry is None:
                continue
            if not self.legal(path, entry):
                self.unknown(path, table, others)
            elif entry is None:
                self.extra(path, block)
            elif value is None:
                if not entry.null or isinstance(entry.kind, (dict, Built)):
                    del block[name]  # null means: not given; BasicSR would stumble over some of them
            elif isinstance(entry.kind, Built):
                self.built(entry.kind, value, where)
            elif isinstance(entry.kind, dict):
                if not isinstance(value, dict):
                    self.report.add(where, f'expected a block of keys, got {describe(value)}')
                elif entry.kind is schema.OPTIONS['datasets'].kind['train'].kind or at == ('datasets',):
                    self.dataset(value, entry.kind, path)
                else:
                    # the arguments of network_u are those of its class, which check_networks() asks
                    self.walk(value, entry.kind, path, value if name == 'network_u' else ())
            elif not entry.kind.accepts(value):
                label = entry.kind.label.replace('\\|', '|')
                self.report.add(where, f'expected {label}, got {describe(value)}')
            elif entry.kind.convert:
                block[name] = entry.kind.convert(value)
        for name, entry in table.items():
            if entry.need in ('both', 'train' if self.is_train else 'test') and name not in block:
                label = 'a block of keys' if isinstance(entry.kind, dict) else entry.kind.label.replace('\\|', '|')
                self.report.add('.'.join((*at, name)), f'missing; expected {label}')

    def unknown(self, path: tuple[str, ...], table: dict[str, Key], others: Iterable[str]) -> None:
        where, name = '.'.join(path), path[-1]
        entry = schema.find(table, name)
        if path[0] == 'path' and entry:
            self.report.add(where, f"there is no network_{name.rpartition('_')[2]} in this file")
        elif entry and self.model:
            self.report.add(where, f'{self.model.__name__} does not read this key; remove it')
        else:
            depth = len(path)
            read = {p[-1] for p in self.reads or () if len(p) == depth and p[:-1] == path[:-1]}
            legal = {k for k, e in table.items() if '*' not in k and self.legal((*path[:-1], k), e)}
            runtime = {'is_train', 'dist', 'rank', 'world_size'}
            self.report.add(where, f'unknown key{did_you_mean(name, (legal | read | set(others)) - runtime)}')

    def extra(self, path: tuple[str, ...], block: dict) -> None:
        """A key that only the model's source knows."""
        for prefix, what in (('network_', 'network'), ('optim_', 'optimizer')):
            if path[-1].startswith(prefix) and block[path[-1]] is not None:
                self.built(Built(what), block[path[-1]], '.'.join(path))

    def built(self, kind: Built, block: Any, where: str) -> None:
        """Checks ``{type: name, ...}``."""
        what = kind.what
        if not isinstance(block, dict):
            self.report.add(where, f'expected a block with `type`, got {describe(block)}')
            return
        names, before = known(what), len(self.report.problems)
        if not self.ours and self.model:
            # BasicSR's own builders know a few names only
            builder, variable = {'optimizer': ('get_optimizer', 'optim_type'),
                                 'scheduler': ('setup_schedulers', 'scheduler_type')}.get(what, ('', ''))
            few = names_compared(getattr(self.model, builder), variable) if builder else ()
            names = {k: v for k, v in names.items() if k in few} if few else names
        name = block.get('type')
        if name is None or name not in names:
            problem = 'missing' if name is None else f'no {what} {name!r} is known'
            self.report.add(f'{where}.type', problem + did_you_mean(name or '', names))
            return
        target, arguments = names[name], {k: v for k, v in block.items() if k != 'type'}
        if what == 'metric' and arguments.pop('better', 'higher') not in ('higher', 'lower'):
            self.report.add(f'{where}.better', f'expected higher or lower, got {describe(block["better"])}')
        if what == 'loss' and arguments.get('reduction', 'mean') not in ('mean', 'sum', 'none'):
            self.report.add(f'{where}.reduction', f'expected mean, sum or none, got {describe(arguments["reduction"])}')
        for key, problem in call_problems(target, arguments, _SUPPLIED.get(what, ()),
                                          optional=None if kind.partial else ()):
            self.report.add(f'{where}.{key}', problem)
        if len(self.report.problems) == before and (problem := self.trial(what, target, arguments)):
            self.report.add(where, problem)

    def trial(self, what: str, target: Any, arguments: dict) -> str:
        """Builds what is cheap to build, since only its constructor knows which values it takes."""
        try:
            if what == 'optimizer':
                target([nn.Parameter(torch.zeros(1))], **arguments)
            elif what == 'scheduler':
                optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.)
                target(optimizer, **arguments)
            elif what == 'loss' and not any(isinstance(v, (dict, list)) for v in arguments.values()) \
                    and target.__module__.split('.')[0] in (_PACKAGE, 'basicsr'):
                with torch.random.fork_rng(devices=[]):
                    target(**arguments)  # those with a network inside (perceptual losses) take a dictionary of layers
        except Exception as error:
            return f'{target.__name__} refuses these arguments: {error}'.splitlines()[0]
        return ''

    # ------------------------------------------------------------------------------------------------ how it fits
    def dataset(self, block: dict, table: dict[str, Key], at: tuple[str, ...]) -> None:
        where, target = '.'.join(at), known('data set').get(block.get('type'))
        read = keys_read(target) if target else None
        loader = {*schema.LOADER, *(p[0] for p in keys_read(build_dataloader, ('dataset_opt',)) or ())}
        legal = {'name', 'type', *loader, *(p[0] for p in read or ())} - _RUNTIME_KEYS
        for key in block if read is not None else ():
            if key not in legal:
                self.report.add(f'{where}.{key}', f'unknown key: neither {target.__name__} nor the loader reads it'
                                f'{did_you_mean(key, legal)}')
        self.walk(block, table, at, block)
        if 'type' in block and target is None:
            self.report.add(f'{where}.type', f'no data set {block["type"]!r} is known{did_you_mean(block["type"], known("data set"))}')
            return
        phase = at[-1].split('_')[0]
        needed = set(keys_needed(target, phase)) if target else set()
        if phase == 'train':
            needed |= {'batch_size_per_gpu', 'num_worker_per_gpu'}
        for key in sorted(needed - _RUNTIME_KEYS - set(block)):
            self.report.add(f'{where}.{key}', f'missing; {target.__name__ if target else "the loader"} needs it')

    def check_datasets(self) -> None:
        datasets = self.opt.get('datasets')
        if not isinstance(datasets, dict):
            return
        names: dict[str, str] = {}
        for key, block in datasets.items():
            phase, where = key.split('_')[0], f'datasets.{key}'
            if self.is_train and phase == 'test':
                self.report.add(where, 'a test set in a training file: call it val, or use it with test.py')
            if not self.is_train and phase == 'train':
                self.report.add(where, 'a training set in a test file: test.py takes test, test_1, ...; is this a '
                                'training file?')
            if not isinstance(block, dict):
                continue
            name = block.get('name')
            if phase != 'train' and names.setdefault(name, where) != where:
                self.report.add(f'{where}.name', f'{name!r} is the name of {names[name]} already; results would mix')
            if block.get('persistent_workers') and (phase != 'train' or not block.get('num_worker_per_gpu')):
                self.report.add(f'{where}.persistent_workers', 'needs worker processes, which '
                                + ('num_worker_per_gpu: 0 has not' if phase == 'train' else 'validation has not'))
        if self.is_train and not isinstance(datasets.get('train'), dict):
            self.report.add('datasets.train', 'missing; expected the training set')
        if not self.is_train and not any(k.split('_')[0] in ('test', 'val') for k in datasets):
            self.report.add('datasets', 'no set to test on: add datasets.test or datasets.test_1')

    def check_networks(self) -> None:
        scale, block = self.opt.get('scale'), self.opt.get('network_g')
        if self.ours and scale is None:
            self.report.add('scale', 'missing; expected the upscaling factor, an integer ≥ 1')
        network = self.check_network(block, 'network_g', scale)
        uncertainty = self.opt.get('network_u')
        if not isinstance(uncertainty, dict):
            return
        target = known('network').get(uncertainty.get('type'))
        if target is None:
            self.report.add('network_u.type', f'no network {uncertainty.get("type")!r} is known; expected UncertaintyNet')
            return
        for key, problem in call_problems(target, {k: v for k, v in uncertainty.items() if k != 'type'}, optional=None):
            self.report.add(f'network_u.{key}', problem)
        if isinstance(uncertainty.get('backbone'), dict):
            network = self.check_network(uncertainty['backbone'], 'network_u.backbone', scale)
        tap = uncertainty.get('tap')
        if isinstance(network, nn.Module) and isinstance(tap, str):
            modules = [n for n, _ in network.named_modules() if n]
            if tap not in modules:
                near = [n for n in modules if n.count('.') == tap.count('.')]
                self.report.add('network_u.tap', f'{type(network).__name__} has no module {tap!r}{did_you_mean(tap, near)}')

    def check_network(self, block: Any, where: str, scale: Any) -> nn.Module | None:
        target = known('network').get(block.get('type')) if isinstance(block, dict) else None
        if target is None or self.report.has(where):
            return None
        params, _ = parameters(target)
        for key in ('upscale', 'scale'):
            if key in params and isinstance(scale, int):
                value = block.get(key, params[key].default)
                if isinstance(value, int) and value != scale:
                    said = '' if key in block else f' (the default of {target.__name__})'
                    self.report.add(f'{where}.{key}', f'{value}{said} disagrees with scale: {scale}')
        network = _build_network(json.dumps(block, sort_keys=True))
        if isinstance(network, str):
            self.report.add(where, network)
            return None
        return network

    def check_paths(self) -> None:
        path = self.opt.get('path')
        if not self.is_train and isinstance(path, dict) and path.get('pretrain_network_g') is None:
            self.report.add('path.pretrain_network_g', 'missing: which weights are to be tested? Train first, or name them')

    def check_stage(self) -> None:
        """What each stage of UDLModel trains with."""
        train = self.opt.get('train')
        if not self.is_train or not isinstance(train, dict):
            return
        losses = {k for k, v in train.items() if k.endswith('_opt') and isinstance(v, dict)}
        ordinary = losses - {'likelihood_opt', 'udl_opt'}
        if not (self.ours and self.model_reads(('stage',))):
            if not losses and self.model and self.model.__module__.startswith('basicsr.'):
                self.report.add('train', 'no loss: add pixel_opt: {type: L1Loss, loss_weight: 1.0, reduction: mean}')
        else:
            self.check_stage_blocks(train, losses, ordinary)
        for key in losses:
            target = known('loss').get(train[key].get('type'))
            takes = inspect.signature(target.forward).parameters if hasattr(target, 'forward') else {}
            wants = 'log_scale' in takes
            if target and key in ('likelihood_opt', 'udl_opt') and not wants:
                self.report.add(f'train.{key}.type', f'{target.__name__} does not look at the uncertainty: its forward has '
                                'no argument log_scale; put it in pixel_opt')
            elif target and key in ordinary and wants and takes['log_scale'].default is inspect.Parameter.empty:
                self.report.add(f'train.{key}.type', f'{target.__name__} needs the uncertainty: put it in likelihood_opt '
                                '(stage esu) or udl_opt (stage udl)')

    def check_stage_blocks(self, train: dict, losses: set[str], ordinary: set[str]) -> None:
        stage, add = self.opt.get('stage'), self.report.add
        if stage not in ('plain', 'esu', 'udl'):
            if stage is None:
                add('stage', 'missing; expected plain, esu or udl')
            return
        wanted = {'esu': 'likelihood_opt', 'udl': 'udl_opt'}.get(stage)
        example = {'esu': '{type: ESULoss}', 'udl': '{type: UDLLoss}'}.get(stage)
        if wanted and wanted not in losses:
            add(f'train.{wanted}', f'missing; stage {stage} needs it, such as {example}')
        for key in sorted(losses - ordinary - {wanted}):
            add(f'train.{key}', f'not used in stage {stage}; remove it, or change stage')
        if stage == 'plain' and not ordinary:
            add('train', 'no loss: add pixel_opt: {type: L1Loss, loss_weight: 1.0, reduction: mean}')
        has_u = isinstance(self.opt.get('network_u'), dict)
        if stage == 'plain' and has_u:
            add('network_u', 'not used in stage plain; remove it, or change stage')
        if stage != 'plain' and not has_u:
            add('network_u', f'missing; stage {stage} needs it, such as {{type: UncertaintyNet, head: {{type: UDLHead}}}}')
        path = self.opt.get('path')
        if stage == 'udl' and isinstance(path, dict) and path.get('pretrain_network_u') is None:
            add('path.pretrain_network_u', 'missing; stage udl weights with the uncertainty of stage 1: name its option '
                'file with the top-level key stage1, or its weights here')

    def check_schedule(self, train: dict) -> None:
        total, warmup = train.get('total_iter'), train.get('warmup_iter', -1)
        add = self.report.add
        if not isinstance(total, int):
            return
        if isinstance(warmup, int) and warmup > total:
            add('train.warmup_iter', f'{warmup} is longer than the training, total_iter: {total}')
        scheduler = train.get('scheduler') if isinstance(train.get('scheduler'), dict) else {}
        for key in ('milestones', 'periods'):
            steps, where = scheduler.get(key), f'train.scheduler.{key}'
            if steps is None:
                continue
            if not isinstance(steps, list) or not steps or not all(schema.COUNT.accepts(s) for s in steps):
                add(where, f'expected a list of iterations, integers ≥ 1, got {describe(steps)}')
            elif key == 'periods' and sum(steps) < total:
                add(where, f'they end at {sum(steps)}, before total_iter: {total}; BasicSR has no learning rate after that')
            elif key == 'milestones' and steps != sorted(steps):
                add(where, f'expected increasing iterations, got {steps}')
            elif key == 'milestones' and steps[0] > total:
                self.report.warnings.append(f'{where}: all come after total_iter: {total}; the learning rate stays constant')
        accumulate, data = train.get('accumulate'), (self.opt.get('datasets') or {}).get('train')
        batch = data.get('batch_size_per_gpu') if isinstance(data, dict) else None
        if isinstance(accumulate, int) and isinstance(batch, int) and accumulate > 0 and batch % accumulate:
            add('train.accumulate', f'{accumulate} does not divide datasets.train.batch_size_per_gpu: {batch}')

    def check_validation(self) -> None:
        val, datasets = self.opt.get('val'), self.opt.get('datasets')
        if not isinstance(val, dict) or not isinstance(datasets, dict):
            return
        sets = {k: d for k, d in datasets.items() if k.split('_')[0] != 'train' and isinstance(d, dict)}
        metrics, best, tile = val.get('metrics') or {}, val.get('save_best'), val.get('tile')
        if isinstance(best, dict):
            names = [d.get('name') for d in sets.values()]
            for key, names in (('metric', metrics), ('dataset', names)):
                if isinstance(best.get(key), str) and best[key] not in names:
                    self.report.add(f'val.save_best.{key}', f'there is no {key} {best[key]!r} here{did_you_mean(best[key], names)}')
        if isinstance(tile, dict) and all(isinstance(tile.get(k), int) for k in ('size', 'overlap')) \
                and tile['overlap'] >= tile['size']:
            self.report.add('val.tile.overlap', f'{tile["overlap"]} must be less than size: {tile["size"]}')
        for name, metric in metrics.items() if isinstance(metrics, dict) else ():
            target = known('metric').get(metric.get('type')) if isinstance(metric, dict) else None
            p = parameters(target)[0].get('img2') if target else None
            for key, block in sets.items() if p is not None and p.default is p.empty else ():
                read = keys_read(c) if (c := known('data set').get(block.get('type'))) else None
                if read and ('dataroot_gt',) not in read:
                    self.report.add(f'val.metrics.{name}', f'{metric["type"]} compares with the HR image, and '
                                    f'datasets.{key} ({block["type"]}) has none; remove the metric, or use PairedImageDataset')

    def check_logger(self) -> None:
        logger = self.opt.get('logger')
        if not isinstance(logger, dict):
            return
        wandb = logger.get('wandb')
        project = wandb.get('project') if isinstance(wandb, dict) else None
        if project and logger.get('use_tb_logger') is not True:
            self.report.add('logger.use_tb_logger', 'must be true, since wandb reads what TensorBoard is given')
        for wanted, package in ((project, 'wandb'), (logger.get('use_tb_logger'), 'tensorboard')):
            if wanted and importlib.util.find_spec(package) is None:
                self.report.add('logger', f'{package} is not installed: pip install {package}, or turn it off')
