"""Checks an option file key by key: known keys, types, arguments of what the registries hold."""
import inspect
from collections.abc import Iterable
from typing import Any

import torch
from basicsr.data import build_dataloader
from basicsr.models import lr_scheduler
from basicsr.utils import FileClient
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

from udl_basicsr.archs.spandrel_archs import REFUSED
from udl_basicsr.metrics.facts import stated_facts
from udl_basicsr.utils.text import did_you_mean, first_line, kind_and_line, nearest

from . import schema
from .schema import Built, Key
from .signatures import call_problems, describe, keys_needed, keys_read, names_compared, parameters
from .trials import quietly, try_optimizer, try_scheduler

_PACKAGE = __name__.split('.')[0]
SUPPLIED = {'metric': {'img', 'img2', 'log_scale'}, 'optimizer': {'params'}, 'scheduler': {'optimizer', 'last_epoch'}}
_NEEDS_MORE = {'LBFGS', 'SparseAdam'}  # a closure, sparse gradients: neither is what a training step has
# by the program, at the top level
_FILLED_IN = {'is_train', 'dist', 'rank', 'world_size', 'auto_resume', 'debug', 'root_path'}
_RUNTIME_KEYS = {'phase', 'scale'}  # BasicSR fills them into every data set


class Findings:
    """Collects what is wrong; ``at`` is the dotted path of a key."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.elsewhere: list[str] = []  # complete lines, about the file of stage 1
        self.warnings: list[str] = []

    def add(self, at: str, message: str) -> None:
        if (line := f'{at}: {message}') not in self.problems:
            self.problems.append(line)

    def warn(self, at: str, message: str) -> None:
        if (line := f'{at}: {message}') not in self.warnings:
            self.warnings.append(line)

    def has(self, at: str) -> bool:
        """Whether something is wrong at or below a key."""
        return any(line.startswith((f'{at}.', f'{at}:')) for line in self.problems)


def _place(name: str, table: dict[str, Key] = schema.OPTIONS, at: str = '') -> str:
    """The dotted path of the first key of the table that is called so; '' where none is."""
    for key, entry in table.items() if name != 'type' else ():
        if key == name:
            return at + key
        if isinstance(entry.kind, dict) and (found := _place(name, entry.kind, f'{at}{key}.')):
            return found
    return ''


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


def lookup(what: str, name: Any) -> Any:
    """The class or function of that name, or None."""
    return known(what).get(name) if isinstance(name, str) else None


def block_of(options: dict, key: str) -> dict:
    """The block under a key; an empty one where there is none, or what is no block, which is reported by itself."""
    return value if isinstance(value := options.get(key), dict) else {}


class KeyChecker:
    """Walks options along the table of ``schema.py``. Accepted values are converted in place."""

    def __init__(self, opt: dict, is_train: bool, report: Findings) -> None:
        self.opt, self.is_train, self.report = opt, is_train, report
        models = known('model')
        name = str(opt.get('model_type'))
        # the nearest, so that a typing error there hides no other problem
        self.model: Any = models.get(name) or models.get(nearest(name, models) or '')  # None where none is near
        bases = self.model.__mro__ if self.model else ()
        self.ours = any(c.__module__.split('.')[0] == _PACKAGE for c in bases)
        self.reads = keys_read(self.model) if self.model else None
        # BasicSR's own files have keys that nothing reads; who wrote a model knows what it reads
        self.lenient = self.model is not None and self.model.__module__.startswith('basicsr.')

    def stray(self, at: str, message: str, name: str = '', known: Iterable[str] = ()) -> None:
        """Says that nothing reads a key, and which one of those that are read is near."""
        if self.lenient:
            self.report.warn(at, message + did_you_mean(name, known, listing=0))
        else:
            self.report.add(at, message + did_you_mean(name, known))

    def check_keys(self) -> None:
        """Checks every key against the table."""
        val = self.opt.get('val')
        if self.lenient and not self.is_train and val is None:
            self.opt['val'] = {'save_img': False, 'suffix': None}  # BasicSR would stop at a KeyError
            self.report.warn('val', 'missing; nothing is measured and no image is saved. Add val: {save_img: true, '
                             'suffix: ~, metrics: {psnr: {type: calculate_psnr, crop_border: 4}}}')
        elif not self.is_train and isinstance(val, dict) and not val.get('metrics') and not val.get('save_img'):
            self.report.add('val', 'this test neither measures nor saves an image; add metrics, or save_img: true')
        self.walk(self.opt, schema.OPTIONS, ())
        name = self.opt.get('model_type')
        if isinstance(name, str) and lookup('model', name) is None:
            self.report.add('model_type', f'no model {name!r} is registered{did_you_mean(name, known("model"))}')

    def given(self, *path: str) -> Any:
        """The value of a key of the table, or its default."""
        table, block = schema.OPTIONS, self.opt
        for name in path[:-1]:
            table, block = table[name].kind, block_of(block, name)
        value = block.get(path[-1])
        return table[path[-1]].default if value is None else value

    def model_reads(self, path: tuple[str, ...]) -> bool:
        return self.reads is None or path in self.reads

    def legal(self, path: tuple[str, ...], entry: Key | None) -> bool:
        if entry is None:
            # a key of `path` that the table does not know would become a folder (basicsr/utils/misc.py:46)
            return path[0] not in ('path', *_FILLED_IN) and len(path) <= 2 and self.model_reads(path)
        if entry.only:
            return self.model_reads((entry.only, ))
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
                elif at == ('datasets',):
                    self.dataset(value, entry.kind, path)
                else:
                    # the arguments of network_u are those of its class, which check_networks() asks
                    self.walk(value, entry.kind, path, value if name == 'network_u' else ())
            elif not entry.kind.accepts(value):
                self.report.add(where, f'expected {entry.kind.label}, got {describe(value)}')
            elif entry.kind.convert:
                block[name] = entry.kind.convert(value)
        for name, entry in table.items():
            if entry.need in ('both', 'train' if self.is_train else 'test') and name not in block:
                label = 'a block of keys' if isinstance(entry.kind, dict) else entry.kind.label
                self.report.add('.'.join((*at, name)), f'missing; expected {label}')

    def unknown(self, path: tuple[str, ...], table: dict[str, Key], others: Iterable[str]) -> None:
        where, name = '.'.join(path), path[-1]
        entry = schema.find(table, name)
        if path[0] == 'path' and entry:
            self.report.add(where, f"there is no network_{name.rpartition('_')[2]} in this file")
        elif entry and self.model:
            if entry.ours:  # what only our models can do was meant to be done
                self.report.add(where, f'{self.model.__name__} does not read this key; remove it')
            else:
                self.stray(where, f'{self.model.__name__} does not read this key; remove it')
        else:
            depth = len(path)
            read = {p[-1] for p in self.reads or () if len(p) == depth and p[:-1] == path[:-1]}
            legal = {k for k, e in table.items() if '*' not in k and self.legal((*path[:-1], k), e)}
            if path[0] == 'path':
                read = set()
            read = (legal | read | set(others)) - _FILLED_IN
            place = '' if nearest(name, read) else _place(name)
            if path[0] in ('path', *_FILLED_IN):  # these would be folders, and be written over
                self.report.add(where, f'unknown key{did_you_mean(name, read)}')
            elif place:
                self.stray(where, f"unknown key; did you mean '{place}'?")
            else:
                self.stray(where, 'unknown key', name, read)

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
        if not isinstance(name, str) or name not in names:
            if where == 'network_u.head':  # which is a network, but of these the fewest are heads
                what, names = 'head', [n for n in names if n.endswith('Head')]
            problem = 'missing' if name is None else f'no {what} {name!r} is known'
            if what == 'network' and isinstance(name, str) and name in REFUSED:
                self.report.add(f'{where}.type', f'{name} cannot be trained here: {REFUSED[name]}')
            else:
                yours = ' (if it is your own, name its module with --import)'
                self.report.add(f'{where}.type', problem + did_you_mean(name or '', names)
                                + (yours if name and what in ('network', 'head', 'loss', 'metric') else ''))
            return
        target, arguments = names[name], {k: v for k, v in block.items() if k != 'type'}
        if what == 'metric':
            arguments.pop('better', None)
            self.direction(block, where)
        if what == 'loss' and arguments.get('reduction', 'mean') not in ('mean', 'sum', 'none'):
            self.report.add(f'{where}.reduction', f'expected mean, sum or none, got {describe(arguments["reduction"])}')
        known_here, others = parameters(target)
        # what has a near name is a typing error, after which another network would be trained
        for key in [k for k in arguments if self.lenient and not (others or k in known_here or nearest(k, known_here))]:
            self.stray(f'{where}.{key}', f'{name} has no such argument; it is left out')
            del block[key], arguments[key]
        for key, problem in call_problems(target, arguments, SUPPLIED.get(what, ()), kind.partial):
            self.report.add(f'{where}.{key}', problem)
        if what == 'optimizer' and 'lr' not in arguments:
            self.report.add(f'{where}.lr', 'missing; expected the learning rate')
        if len(self.report.problems) == before and (problem := self.trial(what, target, arguments)):
            self.report.add(where, problem)

    def direction(self, block: dict, where: str) -> None:
        """Checks the ``better`` of a metric, or fills it in where the metric's function states it."""
        said, name = block.get('better'), block['type']
        try:
            facts = stated_facts(name)
        except ValueError as error:
            self.report.add(f'{where}.type', f'{name}.{error}')
            return
        if said is not None and said not in ('higher', 'lower'):
            self.report.add(f'{where}.better', f'expected higher or lower, got {describe(said)}')
        elif facts is None:
            return
        elif said is not None and said != facts.better:
            knows = f'{facts.better} values of {name} are better' if facts.better else \
                f'neither higher nor lower values of {name} are better'
            self.report.add(f'{where}.better', f'{said}, but {knows}; remove it')
        elif facts.better:
            block['better'] = facts.better

    def trial(self, what: str, target: Any, arguments: dict) -> str:
        """Builds what is cheap to build, since only its constructor knows which values it takes."""
        try:
            if what == 'optimizer':
                try_optimizer(target, arguments)
            elif what == 'scheduler':
                try_scheduler(target, arguments)
            elif what == 'loss' and not any(isinstance(v, (dict, list)) for v in arguments.values()) \
                    and target.__module__.split('.')[0] in (_PACKAGE, 'basicsr'):
                with quietly():
                    target(**arguments)  # those with a network inside (perceptual losses) take a dictionary of layers
        except Exception as error:
            says_all = isinstance(error, (ValueError, AssertionError))
            return f'{target.__name__} refuses these arguments: {(first_line if says_all else kind_and_line)(error)}'
        return ''

    def dataset(self, block: dict, table: dict[str, Key], at: tuple[str, ...]) -> None:
        where, target = '.'.join(at), lookup('data set', block.get('type'))
        read = keys_read(target) if target else None
        loader = {*schema.LOADER, *(p[0] for p in keys_read(build_dataloader, ('dataset_opt',)) or ())}
        legal = {'name', 'type', *loader, *(p[0] for p in read or ())} - _RUNTIME_KEYS
        for key in block if read is not None else ():
            if key not in legal:
                self.stray(f'{where}.{key}', f'unknown key: neither {target.__name__} nor the loader reads it', key,
                           legal)
        self.walk(block, table, at, block)
        if 'type' in block and target is None:
            if not self.report.has(f'{where}.type'):
                self.report.add(f'{where}.type', f'no data set {block["type"]!r} is known'
                                f'{did_you_mean(block["type"], known("data set"))}')
            return
        phase = at[-1].split('_')[0]
        needed = set(keys_needed(target, phase)) if target else set()
        if phase == 'train':
            needed |= {'batch_size_per_gpu', 'num_worker_per_gpu'}
        backend = block_of(block, 'io_backend')
        client = FileClient._backends.get(str(backend.get('type')))
        arguments = {k: v for k, v in backend.items() if k != 'type'} if client else {}
        for key, problem in call_problems(client, arguments, partial=True) if client else ():
            self.report.add(f'{where}.io_backend.{key}', problem)
        for key in sorted(set(arguments) - {'readahead'}) if client and backend['type'] == 'lmdb' else ():
            # the data set names the databases; a lock, or what is not read-only, would write beside them
            self.report.add(f'{where}.io_backend.{key}', 'is not to be set; remove it')
        for key in sorted(needed - _RUNTIME_KEYS - set(block)):
            self.report.add(f'{where}.{key}', f'missing; {target.__name__ if target else "the loader"} needs it')
