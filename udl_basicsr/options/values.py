"""Checks how the values of an option file fit together, without a look at the data."""
import importlib.util
import inspect
import re
from copy import deepcopy
from typing import Any

from basicsr.data.paired_image_dataset import PairedImageDataset
from torch import nn

from udl_basicsr.data.uncertainty_cache import AUTO
from udl_basicsr.data.whole_images import WholeImageDataset
from udl_basicsr.losses import TLWLoss
from udl_basicsr.losses.base import inputs_of
from udl_basicsr.losses.perceptual import NETS, VERSIONS, find_backbone_weights, smallest_image
from udl_basicsr.metrics import calculate_lpips
from udl_basicsr.metrics.facts import block_facts, stated_facts
from udl_basicsr.models.stage_table import STAGES
from udl_basicsr.models.step import log_names
from udl_basicsr.utils.checkpoints import CheckpointError
from udl_basicsr.utils.scores import CSV_FIELDS, HISTORY_FIELDS
from udl_basicsr.utils.yaml_files import OptionError, did_you_mean

from . import schema
from .keys import KeyChecker, Report, lookup
from .signatures import call_problems, describe, keys_read, parameters
from .trials import build_network, try_loss, try_network, try_parameters

LONGEST_NAME = 150  # bytes; file systems allow 255, and `train_<name>_<time>.log` is to fit
_LONGEST_SUFFIX = 50
_RESERVED = re.compile(r'(con|prn|aux|nul|com\d|lpt\d)(\..*)?', re.IGNORECASE)  # results are looked at on Windows too
_LARGEST_PATCH = 512  # LQ pixels; networks that can be trained on larger ones are not tried on them
_MOST_WORKERS = 128
_NETWORKS = ('network_g', 'network_u', 'network_w')
# What stands beside the metrics where they are kept, or is passed beside them.
_FIELDS = {*HISTORY_FIELDS, *CSV_FIELDS, 'iteration', 'self'}


def _detaches(block: Any) -> bool:
    """Whether a loss of the sigma branch takes the image as a constant."""
    target = lookup('loss', block.get('type')) if isinstance(block, dict) else None
    named = inspect.signature(target).parameters if target else {}
    return bool(block.get('detach', named['detach'].default)) if 'detach' in named else target is None


def bad_name(name: str, longest: int) -> str:
    """Why text is no name for a folder or file on any system; empty where it is one."""
    if not name.isprintable():
        return 'has characters that cannot be seen'
    if len(name.encode()) > longest:
        return f'is longer than {longest} bytes'
    if _RESERVED.fullmatch(name):
        return 'is the name of a device on Windows'
    return 'begins with ~ or -, or ends with a dot' if name[0] in '~-' or name[-1] == '.' else ''


def check_networks(blocks: dict, where: str) -> None:
    """Checks the blocks ``network_*`` alone, where there is no option file around them: arguments and sizes.

    Raises:
        OptionError: Names ``where`` they stand and the key. Nothing has been built that takes memory.
    """
    blocks = {key: value for key, value in deepcopy(blocks).items() if key in _NETWORKS}
    checker = Checker(blocks, False, Report())
    checker.walk(blocks, {key: schema.OPTIONS[key] for key in _NETWORKS}, ())
    checker.check_networks()
    if checker.report.problems:
        raise OptionError(f'{where}: {problem}' for problem in checker.report.problems)


class Checker(KeyChecker):
    """Every check of resolved options. Accepted values are converted in place."""

    def run(self) -> None:
        self.check_keys()
        self.check_names()
        self.check_datasets()
        self.check_networks()
        if self.is_train and isinstance(self.opt.get('train'), dict):
            self.check_stage(self.opt['train'])
            self.check_schedule(self.opt['train'])
            self.check_optimizers()
        self.check_paths()
        self.check_validation()
        self.check_logger()

    def check_names(self) -> None:
        """Names become those of folders and files."""
        datasets, val = self.opt.get('datasets'), self.opt.get('val')
        names = {'name': (self.opt.get('name'), LONGEST_NAME)}
        for key, block in datasets.items() if isinstance(datasets, dict) else ():
            names[f'datasets.{key}.name'] = (block.get('name') if isinstance(block, dict) else None, LONGEST_NAME)
        names['val.suffix'] = (val.get('suffix') if isinstance(val, dict) else None, _LONGEST_SUFFIX)
        for where, (name, longest) in names.items():
            if isinstance(name, str) and not self.report.has(where) and (problem := bad_name(name, longest)):
                self.report.add(where, f'{describe(name)} {problem}; choose another')

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
            name = str(block.get('name'))
            if phase != 'train' and names.setdefault(name, where) != where:
                self.report.add(f'{where}.name', f'{name!r} is the name of {names[name]} already; results would mix')
            if block.get('persistent_workers') and (phase != 'train' or not block.get('num_worker_per_gpu')):
                self.report.add(f'{where}.persistent_workers', 'needs worker processes, which '
                                + ('num_worker_per_gpu: 0 has not' if phase == 'train' else 'validation has not'))
            self.check_numbers(block, where)
            if lookup('data set', block.get('type')) is WholeImageDataset and block.get('batch_size_per_gpu', 1) != 1:
                self.report.add(f'{where}.batch_size_per_gpu', 'whole images differ in size and make no batch; set it '
                                'to 1')
            if block.get('uncertainty_cache') and phase != 'train':
                self.report.add(f'{where}.uncertainty_cache', 'only the training set has one; remove it')
            if block.get('in_memory') is True:
                if phase != 'train':
                    self.report.add(f'{where}.in_memory', 'only the training set is held in memory; remove it')
                elif (cls := lookup('data set', block.get('type'))) not in (None, PairedImageDataset):
                    self.report.add(f'{where}.in_memory', f'needs a PairedImageDataset, got {cls.__name__}; remove it')
        if self.is_train and not isinstance(datasets.get('train'), dict):
            self.report.add('datasets.train', 'missing; expected the training set')
        if not self.is_train and not any(k.split('_')[0] in ('test', 'val') for k in datasets):
            self.report.add('datasets', 'no set to test on: add datasets.test or datasets.test_1')

    def check_numbers(self, block: dict, where: str) -> None:
        """What is no more than a number in the file, and would ask the machine for more than it has."""
        for key, most, what in (('num_worker_per_gpu', _MOST_WORKERS, 'processes'),
                                ('num_prefetch_queue', 1024, 'batches in memory')):
            if isinstance(block.get(key), int) and block[key] > most:
                self.report.add(f'{where}.{key}', f'{block[key]} are too many {what}; expected at most {most}')
        mean, std = block.get('mean'), block.get('std')
        for key, values in (('mean', mean), ('std', std)):
            if (mean is None) != (std is None) and values is None:
                self.report.add(f'{where}.{key}', 'missing; mean and std are given both or not at all')
            elif isinstance(values, list) and len(values) not in (1, 3):
                self.report.add(f'{where}.{key}', f'expected 1 or 3 numbers, got {len(values)}')
        if isinstance(std, list) and 0 in std:
            self.report.add(f'{where}.std', f'the images are divided by it, and it has a 0: {describe(std)}')

    def check_networks(self) -> None:
        scale, block = self.opt.get('scale'), self.opt.get('network_g')
        if self.ours and scale is None:
            self.report.add('scale', 'missing; expected the upscaling factor, an integer ≥ 1')
        network = self.check_network(block, 'network_g', scale)
        if isinstance(network, nn.Module) and self.ours and not self.report.has('network_g'):
            self.check_channels(block, scale)
        uncertainty = self.opt.get('network_u')
        if not isinstance(uncertainty, dict):
            return
        target = lookup('network', uncertainty.get('type'))
        if target is None:
            self.report.add('network_u.type', f'no network {uncertainty.get("type")!r} is known; expected '
                            'UncertaintyNet')
            return
        for key, problem in call_problems(target, {k: v for k, v in uncertainty.items() if k != 'type'}, optional=None):
            self.report.add(f'network_u.{key}', problem)
        backbone = uncertainty.get('backbone', block)
        if isinstance(uncertainty.get('backbone'), dict):
            network = self.check_network(backbone, 'network_u.backbone', scale)
        tap = uncertainty.get('tap')
        if isinstance(network, nn.Module) and isinstance(tap, str):
            modules = [n for n, _ in network.named_modules() if n]
            if tap not in modules:
                near = [n for n in modules if n.count('.') == tap.count('.')]
                top = [n for n in modules if '.' not in n]
                self.report.add('network_u.tap', f'{type(network).__name__} has no module {tap!r}'
                                f'{did_you_mean(tap, near)} (it has {", ".join(top)}, and what is inside of these)')
        if not isinstance(network, nn.Module) or self.report.has('network_u') or self.report.has('network_g'):
            return
        built = build_network(target, {**uncertainty, 'backbone': backbone})
        if isinstance(built, str):
            self.report.add('network_u', built)

    def check_network(self, block: Any, where: str, scale: Any) -> nn.Module | None:
        target = lookup('network', block.get('type')) if isinstance(block, dict) else None
        if target is None or self.report.has(where):
            return None
        params, _ = parameters(target)
        for key in ('upscale', 'scale'):
            if key in params and isinstance(scale, int):
                value = block.get(key, params[key].default)
                if isinstance(value, int) and value != scale:
                    said = '' if key in block else f' (the default of {target.__name__})'
                    self.report.add(f'{where}.{key}', f'{value}{said} disagrees with scale: {scale}')
        network = build_network(target, block)
        if isinstance(network, str):
            self.report.add(where, network)
            return None
        if self.ours and isinstance(scale, int) and not self.report.has('scale') \
                and (problem := try_network(target, block, self.channels(), self.patch(scale), scale)):
            self.report.add(where, problem)
        return network

    def blocks(self) -> dict[str, dict]:
        """The data sets that are blocks, by their keys."""
        datasets = self.opt.get('datasets')
        return {k: d for k, d in datasets.items() if isinstance(d, dict)} if isinstance(datasets, dict) else {}

    def channels(self, key: str = 'train') -> int:
        """Of the images that a data set gives, or the first of a test: BasicSR reads gray images as RGB too."""
        blocks = self.blocks()
        return 1 if blocks.get(key, next(iter(blocks.values()), {})).get('color') == 'y' else 3

    def check_channels(self, block: dict, scale: Any) -> None:
        """That the network, which takes the images of one data set, takes those of the others."""
        target, first = lookup('network', block.get('type')), 'train' if 'train' in self.blocks() else next(
            iter(self.blocks()), '')
        for key in self.blocks():
            if isinstance(scale, int) and not self.report.has('scale') and self.channels(key) != self.channels() and (
                    problem := try_network(target, block, self.channels(key), self.patch(scale), scale)):
                self.report.add(f'datasets.{key}.color', f'gives images of {self.channels(key)} channel(s) and '
                                f'datasets.{first} of {self.channels()}, and {problem}; give both the same color')

    def patch(self, scale: int) -> int:
        """Side of an LQ image that the networks are going to see."""
        gt_size = self.blocks().get('train', {}).get('gt_size')
        usable = isinstance(gt_size, int) and gt_size % scale == 0 and 0 < gt_size // scale <= _LARGEST_PATCH
        return gt_size // scale if usable else 48

    def check_paths(self) -> None:
        path = self.opt.get('path')
        if not self.is_train and isinstance(path, dict) and path.get('pretrain_network_g') is None:
            self.report.add('path.pretrain_network_g', 'missing; which weights are to be tested? Train first, or set '
                            'path.pretrain_network_g')

    def check_stage(self, train: dict) -> None:
        """What TLWModel and each stage of UDLModel train with, and which losses need more than an image."""
        losses = {k for k, v in train.items() if k.endswith('_opt') and isinstance(v, dict)}
        gives = {stage.loss: stage.gives for stage in STAGES.values() if stage.loss}  # what the loss of a stage takes
        ordinary = losses - gives.keys()
        if self.ours and self.model_reads(('network_w',)):
            self.check_weighting(train, losses)
        elif not (self.ours and self.model_reads(('stage',))):
            if not losses and self.model and self.model.__module__.startswith('basicsr.'):
                self.report.add('train', 'no loss: add pixel_opt: {type: L1Loss, loss_weight: 1.0, reduction: mean}')
        else:
            self.check_stage_blocks(train, losses, ordinary)
        logged: dict[str, str] = {}
        for key in sorted(losses, key=lambda key: log_names(key) == (f'l_{key[:-4]}', )) if self.ours else ():
            for name in log_names(key):  # those with names of their own first, which no user has chosen
                if (other := logged.setdefault(name, key)) != key:
                    self.report.add(f'train.{key}', f'its loss would be called {name}, as that of train.{other} is, '
                                    'and one of them be left out; rename it')
        for key in sorted(losses):
            target = lookup('loss', train[key].get('type'))
            takes = inputs_of(target) if hasattr(target, 'forward') else {}
            if target and key in gives and gives[key] not in takes:
                self.report.add(f'train.{key}.type', f'{target.__name__} does not look at the uncertainty (its forward '
                                f'has no argument {gives[key]}); put it in pixel_opt')
            if target and key in ordinary and any(takes.get(name) for name in gives.values()):
                places = [f'{stage.loss} (stage {name})' for name, stage in STAGES.items() if takes.get(stage.gives)]
                self.report.add(f'train.{key}.type', f'{target.__name__} needs the uncertainty; put it in '
                                + ' or '.join(places))
            if target and ('weight_map' in takes) != (key == 'tlw_opt'):
                self.report.add(f'train.{key}.type', f'{target.__name__} is ' + (
                    'no loss that a network weights; put it in pixel_opt' if key == 'tlw_opt' else
                    'for tlw_opt (model_type: TLWModel)'))
            if target and self.ours and not self.report.has(f'train.{key}'):
                self.check_loss(key, target, train)

    def check_loss(self, key: str, target: type, train: dict) -> None:
        """That training gets one number from a loss, at the size that is trained at."""
        block, where, accumulate = train[key], f'train.{key}', train.get('accumulate')
        reduction = block.get('reduction', 'mean')
        if reduction == 'none':
            self.report.add(f'{where}.reduction', 'expected mean or sum, got none: training needs one number')
        elif reduction == 'sum' and accumulate not in (None, 1):
            self.report.add(f'{where}.reduction', 'expected mean, got sum: with train.accumulate it would depend on '
                            'the number of parts')
        elif key != 'tlw_opt':
            scale = self.opt['scale'] if isinstance(self.opt.get('scale'), int) else 1
            side = self.patch(scale) if self.opt.get('scale') else 48
            if problem := try_loss(key, target, block, self.channels(), side, scale):
                self.report.add(where, problem)

    def check_weighting(self, train: dict, losses: set[str]) -> None:
        add, loss = self.report.add, train.get('tlw_opt')
        judge = loss.get('judge', inspect.signature(TLWLoss).parameters['judge'].default) if isinstance(
            loss, dict) else None
        if 'tlw_opt' not in losses:
            add('train.tlw_opt', f'missing; {self.model.__name__} needs it, such as {{type: TLWLoss, base: l1}}')
        if not isinstance(self.opt.get('network_w'), dict):
            add('network_w', f'missing; {self.model.__name__} needs it, such as {{type: TLWNet}}')
        data = self.opt['datasets'].get('train') if isinstance(self.opt.get('datasets'), dict) else None
        gt_size = data.get('gt_size') if isinstance(data, dict) else None
        if judge in NETS and isinstance(gt_size, int) and gt_size < smallest_image(judge):
            add('datasets.train.gt_size', f'{gt_size} is too small for LPIPS with {judge}, which needs at least '
                f'{smallest_image(judge)}')

    def check_stage_blocks(self, train: dict, losses: set[str], ordinary: set[str]) -> None:
        stage, add = self.opt.get('stage'), self.report.add
        if not isinstance(stage, str) or stage not in STAGES:
            if stage is None:
                add('stage', f'missing; expected {", ".join(STAGES)}')
            return
        row = STAGES[stage]
        wanted = row.loss
        if wanted and wanted not in losses:
            add(f'train.{wanted}', f'missing; stage {stage} needs it, such as {row.example}')
        if self.opt.get('rounds', 1) != 1 and not (stage == 'udl' and self.opt.get('stage1')):
            add('rounds', 'only stage udl with a stage1 can be gone through several times')
        for key in sorted(losses - ordinary - {wanted}):
            add(f'train.{key}', f'not used in stage {stage}; remove it, or change stage')
        if not ordinary and (stage == 'plain' or (stage == 'sigma' and _detaches(train.get('sigma_opt')))):
            alone = ', or let sigma_opt train the image as well, by detach: false' if stage == 'sigma' else ''
            add('train', 'no loss: add pixel_opt: {type: L1Loss, loss_weight: 1.0, reduction: mean}' + alone)
        has_u = isinstance(self.opt.get('network_u'), dict)
        needs_u = 'network_u' in row.networks
        if has_u and not needs_u:
            add('network_u', f'not used in stage {stage}; remove it, or change stage')
        if needs_u and not has_u:
            add('network_u', f'missing; stage {stage} needs it, such as {{type: UncertaintyNet}}')
        self.check_cache(stage)
        path = self.opt.get('path')
        # where stage1 is given, it is its own file that explains why nothing could be filled in
        if stage == 'udl' and isinstance(path, dict) and not (path.get('pretrain_network_u') or self.opt.get('stage1')):
            add('path.pretrain_network_u', 'missing; stage udl weights with the uncertainty of stage 1: name its '
                'option file with the top-level key stage1, or its weights here')

    def check_cache(self, stage: str) -> None:
        datasets, where = self.opt.get('datasets'), 'datasets.train.uncertainty_cache'
        train = datasets.get('train') if isinstance(datasets, dict) else None
        folder = train.get('uncertainty_cache') if isinstance(train, dict) else None
        if not isinstance(folder, str):
            return
        cls = lookup('data set', train.get('type'))
        if stage != 'udl':
            self.report.add(where, f'not used in stage {stage}; remove it, or change stage')
        elif cls and not issubclass(cls, PairedImageDataset):
            self.report.add(where, f'needs a PairedImageDataset, whose crops and flips the maps can follow, got '
                            f'{cls.__name__}; remove it')
        elif self.opt.get('rounds', 1) != 1 and folder != AUTO:
            self.report.add(where, 'each of the rounds has another stage-1 network, and so another cache; use auto')

    def check_optimizers(self) -> None:
        """That each takes the parameters it is to train: Muon takes matrices, and kernels of convolutions are none."""
        keys = ('model_type', 'stage', 'network_g', 'network_u', 'network_w', 'train')
        if not hasattr(self.model, 'trained_blocks') or any(map(self.report.has, keys)):
            return
        for label, (block, optim) in self.model.trained_blocks(self.opt).items():
            network, target = build_network(lookup('network', block['type']), block), lookup('optimizer', optim['type'])
            arguments = {key: value for key, value in optim.items() if key != 'type'}
            if isinstance(network, nn.Module) and (problem := try_parameters(target, arguments, network)):
                self.report.add('train.optim_w' if label == 'w' else 'train.optim_g', problem)

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
                add(where, f'they end at {sum(steps)}, before total_iter: {total}; BasicSR has no learning rate after '
                    'that')
            elif key == 'milestones' and steps != sorted(steps):
                add(where, f'expected increasing iterations, got {steps}')
            elif key == 'milestones' and steps[0] > total:
                self.report.warnings.append(f'{where}: all come after total_iter: {total}; the learning rate stays '
                                            'constant')
        self.check_restarts(scheduler)
        datasets = self.opt.get('datasets')
        accumulate, data = train.get('accumulate'), datasets.get('train') if isinstance(datasets, dict) else None
        batch = data.get('batch_size_per_gpu') if isinstance(data, dict) else None
        if isinstance(accumulate, int) and isinstance(batch, int) and accumulate > 0 and batch % accumulate:
            add('train.accumulate', f'{accumulate} does not divide datasets.train.batch_size_per_gpu: {batch}')

    def check_restarts(self, scheduler: dict) -> None:
        """Lists of the schedulers that are looked at in mid-run only."""
        for key, kind, what in (('restarts', schema.integer(0), 'iterations, integers ≥ 0'),
                                ('restart_weights', schema.POSITIVE, 'numbers > 0')):
            values = scheduler.get(key)
            if isinstance(values, list) and not all(map(kind.accepts, values)):
                self.report.add(f'train.scheduler.{key}', f'expected a list of {what}, got {describe(values)}')
        pair = 'periods' if 'periods' in scheduler else 'restarts'
        first, weights = scheduler.get(pair, [0]), scheduler.get('restart_weights', [1])
        if isinstance(first, list) and isinstance(weights, list) and len(first) != len(weights):
            self.report.add('train.scheduler.restart_weights', f'expected one for each of {pair}, {len(first)}, got '
                            f'{describe(weights)}; they should have the same length')

    def check_validation(self) -> None:
        val, datasets = self.opt.get('val'), self.opt.get('datasets')
        if not isinstance(val, dict) or not isinstance(datasets, dict):
            return
        sets = {k: d for k, d in datasets.items() if k.split('_')[0] != 'train' and isinstance(d, dict)}
        metrics, best, tile = val.get('metrics'), val.get('save_best'), val.get('tile')
        metrics = metrics if isinstance(metrics, dict) else {}
        if isinstance(best, dict):
            for key, names in (('metric', metrics), ('dataset', [d.get('name') for d in sets.values()])):
                if isinstance(best.get(key), str) and best[key] not in names:
                    self.report.add(f'val.save_best.{key}', f'there is no {key} {best[key]!r} here'
                                    f'{did_you_mean(best[key], names)}')
            self.check_best(best.get('metric'), metrics)
        if isinstance(tile, dict) and all(isinstance(tile.get(k), int) for k in ('size', 'overlap')) \
                and tile['overlap'] >= tile['size']:
            self.report.add('val.tile.overlap', f'{tile["overlap"]} must be less than size: {tile["size"]}')
        for name, metric in metrics.items():
            if name in _FIELDS:
                self.report.add(f'val.metrics.{name}', 'is a field of history.jsonl, of scores.csv or of the records '
                                f'of comparisons; call the metric otherwise, such as {name}_1')
            target = lookup('metric', metric.get('type')) if isinstance(metric, dict) else None
            takes = parameters(target)[0] if target else {}
            if 'log_scale' in takes and (problem := self.why_no_log_scale()):
                self.report.add(f'val.metrics.{name}', f'{metric["type"]} measures the predicted uncertainty, and '
                                f'{problem}, or remove the metric')
            if target is calculate_lpips and not self.report.has(f'val.metrics.{name}'):
                self.check_lpips(metric, f'val.metrics.{name}')
            if isinstance(metric, dict) and metric.get('input_order', 'HWC') != 'HWC':
                self.report.add(f'val.metrics.{name}.input_order', 'images come as HWC here; remove it')
            border = metric.get('crop_border') if isinstance(metric, dict) else None
            if isinstance(border, (int, float)) and not schema.integer(0).accepts(border):
                self.report.add(f'val.metrics.{name}.crop_border', f'expected integer ≥ 0, got {describe(border)}')
            p = takes.get('img2')
            for key, block in sets.items() if p is not None and p.default is p.empty else ():
                read = keys_read(c) if (c := lookup('data set', block.get('type'))) else None
                if read and ('dataroot_gt',) not in read:
                    self.report.add(f'val.metrics.{name}', f'{metric["type"]} compares with the HR image, and '
                                    f'datasets.{key} ({block["type"]}) has none; remove the metric, or use '
                                    'PairedImageDataset')

    def check_best(self, name: Any, metrics: dict) -> None:
        """That the metric by which the best checkpoint is kept has a best."""
        block = metrics.get(name) if isinstance(name, str) else None
        target = lookup('metric', block.get('type')) if isinstance(block, dict) else None
        if target is None or self.report.has(f'val.metrics.{name}') or block_facts(block).sign:
            return
        if stated_facts(block['type']):
            remedy = f'of {block["type"]} neither higher nor lower values are better; choose another metric'
        else:
            remedy = (f'{block["type"]} does not say which way is up; set val.metrics.{name}.better: higher or lower, '
                      f'or the attribute {block["type"]}.higher_is_better')
        self.report.add('val.save_best.metric', f'there is no best {name}: {remedy}')

    def check_lpips(self, block: dict, where: str) -> None:
        if str(block.get('version', '0.1')) not in VERSIONS:
            self.report.add(f'{where}.version', f'expected {" or ".join(VERSIONS)}, got {describe(block["version"])}')
        if not block.get('random_weights'):
            try:
                find_backbone_weights(block.get('net', 'alex'), block.get('weights_path'))
            except CheckpointError as error:
                self.report.add(where, str(error))

    def why_no_log_scale(self) -> str:
        """Why there is no s to measure in validation; empty where there is."""
        path = self.opt.get('path') if isinstance(self.opt.get('path'), dict) else {}
        if not self.ours:
            return f'model_type {self.opt.get("model_type")} has none: use UDLModel'
        if not isinstance(self.opt.get('network_u'), dict):
            return 'there is none without network_u: train stage esu, sigma or udl'
        if not self.is_train and path.get('pretrain_network_u') is None:
            return 'path.pretrain_network_u is missing: name the net_u_*.pth of a stage-1 run'
        return ''

    def check_logger(self) -> None:
        params, logger = self.opt.get('dist_params'), self.opt.get('logger')
        port = params.get('port') if isinstance(params, dict) else None
        if isinstance(port, int) and port > 65535:
            self.report.add('dist_params.port', f'expected integer, 1 ≤ x ≤ 65535, got {port}')
        if not isinstance(logger, dict):
            return
        wandb = logger.get('wandb')
        project = wandb.get('project') if isinstance(wandb, dict) else None
        run = wandb.get('resume_id') if isinstance(wandb, dict) else None
        if isinstance(run, str) and not schema.FOLDER_NAME.accepts(run):  # wandb names a folder after it
            self.report.add('logger.wandb.resume_id', f'expected {schema.FOLDER_NAME.label}, got {describe(run)}')
        if project and logger.get('use_tb_logger') is not True:
            self.report.add('logger.use_tb_logger', 'must be true, since wandb reads what TensorBoard is given')
        for wanted, package in ((project, 'wandb'), (logger.get('use_tb_logger'), 'tensorboard')):
            if wanted and importlib.util.find_spec(package) is None:
                self.report.add('logger', f'{package} is not installed: pip install {package}, or turn it off')
