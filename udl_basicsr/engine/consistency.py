"""Checks how the values of an option file fit together, without a look at the data."""
import contextlib
import functools
import importlib.util
import inspect
import json
from collections.abc import Callable
from typing import Any

import torch
from basicsr.data.paired_image_dataset import PairedImageDataset
from torch import nn

from udl_basicsr.data.uncertainty_cache import AUTO
from udl_basicsr.losses.perceptual import NETS, VERSIONS, find_backbone_weights, smallest_image
from udl_basicsr.metrics import calculate_lpips
from udl_basicsr.models.checkpoints import CheckpointError

from . import schema
from .checks import KeyChecker, lookup
from .introspect import call_problems, describe, keys_read, parameters
from .yaml_files import did_you_mean


@functools.lru_cache(maxsize=32)
def _build_network(target: Callable[..., nn.Module], arguments: str) -> nn.Module | str:
    """The network, or why it cannot be built; arguments as JSON.

    On the meta device where its constructor allows that, which costs no memory. Not through BasicSR's build_network:
    that would open the log before the run has a folder.
    """
    error = ''
    for device in ('meta', 'cpu'):
        try:
            with torch.random.fork_rng(devices=[]), torch.device(device), contextlib.redirect_stdout(None):
                return target(**json.loads(arguments))
        except Exception as e:
            error = f'{target.__name__} cannot be built: {type(e).__name__}: {e}'.splitlines()[0]
    return error


class Checker(KeyChecker):
    """Every check of resolved options. Accepted values are converted in place."""

    def run(self) -> None:
        self.check_keys()
        self.check_datasets()
        self.check_networks()
        if self.is_train and isinstance(self.opt.get('train'), dict):
            self.check_stage(self.opt['train'])
            self.check_schedule(self.opt['train'])
        self.check_paths()
        self.check_validation()
        self.check_logger()

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
            if block.get('uncertainty_cache') and phase != 'train':
                self.report.add(f'{where}.uncertainty_cache', 'only the training set has one; remove it')
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
        target = lookup('network', uncertainty.get('type'))
        if target is None:
            self.report.add('network_u.type', f'no network {uncertainty.get("type")!r} is known; expected '
                            'UncertaintyNet')
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
                top = [n for n in modules if '.' not in n]
                self.report.add('network_u.tap', f'{type(network).__name__} has no module {tap!r}'
                                f'{did_you_mean(tap, near)} (it has {", ".join(top)}, and what is inside of these)')

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
        arguments = {k: v for k, v in block.items() if k != 'type'}
        network = _build_network(target, json.dumps(arguments, sort_keys=True))
        if isinstance(network, str):
            self.report.add(where, network)
            return None
        return network

    def check_paths(self) -> None:
        path = self.opt.get('path')
        if not self.is_train and isinstance(path, dict) and path.get('pretrain_network_g') is None:
            self.report.add('path.pretrain_network_g', 'missing; which weights are to be tested? Train first, or set '
                            'path.pretrain_network_g')

    def check_stage(self, train: dict) -> None:
        """What TLWModel and each stage of UDLModel train with, and which losses need more than an image."""
        losses = {k for k, v in train.items() if k.endswith('_opt') and isinstance(v, dict)}
        own = {example.split(':')[0] for example in schema.STAGES.values() if example}
        ordinary = losses - own
        if self.ours and self.model_reads(('network_w',)):
            self.check_weighting(train, losses)
        elif not (self.ours and self.model_reads(('stage',))):
            if not losses and self.model and self.model.__module__.startswith('basicsr.'):
                self.report.add('train', 'no loss: add pixel_opt: {type: L1Loss, loss_weight: 1.0, reduction: mean}')
        else:
            self.check_stage_blocks(train, losses, ordinary)
        for key in losses:
            target = lookup('loss', train[key].get('type'))
            takes = inspect.signature(target.forward).parameters if hasattr(target, 'forward') else {}
            looks_at = 'sigma' if key == 'sigma_opt' else 'log_scale'
            if target and key in own and looks_at not in takes:
                self.report.add(f'train.{key}.type', f'{target.__name__} does not look at the uncertainty (its forward '
                                f'has no argument {looks_at}); put it in pixel_opt')
            needs = [n for n in ('log_scale', 'sigma') if n in takes and takes[n].default is inspect.Parameter.empty]
            if target and key in ordinary and needs:
                self.report.add(f'train.{key}.type', f'{target.__name__} needs the uncertainty; put it in '
                                + ('sigma_opt (stage sigma)' if needs == ['sigma'] else
                                   'likelihood_opt (stage esu) or udl_opt (stage udl)'))
            if target and ('weight_map' in takes) != (key == 'tlw_opt'):
                self.report.add(f'train.{key}.type', f'{target.__name__} is ' + (
                    'no loss that a network weights; put it in pixel_opt' if key == 'tlw_opt' else
                    'for tlw_opt (model_type: TLWModel)'))

    def check_weighting(self, train: dict, losses: set[str]) -> None:
        add, judge = self.report.add, (train.get('tlw_opt') or {}).get('judge', 'alex')
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
        if stage not in schema.STAGES:
            if stage is None:
                add('stage', f'missing; expected {", ".join(schema.STAGES)}')
            return
        wanted, _, example = (schema.STAGES[stage] or '').partition(': ')
        if wanted and wanted not in losses:
            add(f'train.{wanted}', f'missing; stage {stage} needs it, such as {example}')
        if self.opt.get('rounds', 1) != 1 and not (stage == 'udl' and self.opt.get('stage1')):
            add('rounds', 'only stage udl with a stage1 can be gone through several times')
        for key in sorted(losses - ordinary - {wanted}):
            add(f'train.{key}', f'not used in stage {stage}; remove it, or change stage')
        if stage in ('plain', 'sigma') and not ordinary:
            add('train', 'no loss: add pixel_opt: {type: L1Loss, loss_weight: 1.0, reduction: mean}')
        has_u = isinstance(self.opt.get('network_u'), dict)
        if stage == 'plain' and has_u:
            add('network_u', 'not used in stage plain; remove it, or change stage')
        if stage != 'plain' and not has_u:
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
        datasets = self.opt.get('datasets')
        accumulate, data = train.get('accumulate'), datasets.get('train') if isinstance(datasets, dict) else None
        batch = data.get('batch_size_per_gpu') if isinstance(data, dict) else None
        if isinstance(accumulate, int) and isinstance(batch, int) and accumulate > 0 and batch % accumulate:
            add('train.accumulate', f'{accumulate} does not divide datasets.train.batch_size_per_gpu: {batch}')

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
        if isinstance(tile, dict) and all(isinstance(tile.get(k), int) for k in ('size', 'overlap')) \
                and tile['overlap'] >= tile['size']:
            self.report.add('val.tile.overlap', f'{tile["overlap"]} must be less than size: {tile["size"]}')
        for name, metric in metrics.items():
            target = lookup('metric', metric.get('type')) if isinstance(metric, dict) else None
            takes = parameters(target)[0] if target else {}
            if 'log_scale' in takes and (problem := self.why_no_log_scale()):
                self.report.add(f'val.metrics.{name}', f'{metric["type"]} measures the predicted uncertainty, and '
                                f'{problem}, or remove the metric')
            if target is calculate_lpips and not self.report.has(f'val.metrics.{name}'):
                self.check_lpips(metric, f'val.metrics.{name}')
            p = takes.get('img2')
            for key, block in sets.items() if p is not None and p.default is p.empty else ():
                read = keys_read(c) if (c := lookup('data set', block.get('type'))) else None
                if read and ('dataroot_gt',) not in read:
                    self.report.add(f'val.metrics.{name}', f'{metric["type"]} compares with the HR image, and '
                                    f'datasets.{key} ({block["type"]}) has none; remove the metric, or use '
                                    'PairedImageDataset')

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
