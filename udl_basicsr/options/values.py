"""Checks how the values of an option file fit together, without a look at the data."""
import importlib.util
import re
from typing import Any

from basicsr.data.paired_image_dataset import PairedImageDataset

from udl_basicsr.data.whole_images import WholeImageDataset
from udl_basicsr.functional.densities import DENSITIES, not_decided
from udl_basicsr.losses.perceptual import VERSIONS, find_backbone_weights
from udl_basicsr.metrics import calculate_lpips
from udl_basicsr.metrics.facts import block_facts, stated_facts
from udl_basicsr.utils.checkpoints import CheckpointError
from udl_basicsr.utils.scores import CSV_FIELDS, HISTORY_FIELDS
from udl_basicsr.utils.text import did_you_mean

from . import schema
from .keys import block_of, lookup
from .signatures import describe, keys_read, parameters
from .training_values import TrainingChecker

LONGEST_NAME = 150  # bytes; file systems allow 255, and `train_<name>_<time>.log` is to fit
_LONGEST_SUFFIX = 50
_RESERVED = re.compile(r'(con|prn|aux|nul|com\d|lpt\d)(\..*)?', re.IGNORECASE)  # results are looked at on Windows too
_MOST_WORKERS = 128
_OF_TRAINING_SETS = ('first_iter', 'in_memory', 'skip_broken', 'uncertainty_cache')  # BasicSR's keys are let pass
# What stands beside the metrics where they are kept, or is passed beside them.
_FIELDS = {*HISTORY_FIELDS, *CSV_FIELDS, 'iteration', 'self'}


def bad_name(name: str, longest: int) -> str:
    """Why text is no name for a folder or file on any system; empty where it is one."""
    if not name.isprintable():
        return 'has characters that cannot be seen'
    if len(name.encode()) > longest:
        return f'is longer than {longest} bytes'
    if _RESERVED.fullmatch(name):
        return 'is the name of a device on Windows'
    return 'begins with ~ or -, or ends with a dot' if name[0] in '~-' or name[-1] == '.' else ''


class Checker(TrainingChecker):
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
        names = {'name': (self.opt.get('name'), LONGEST_NAME),
                 **{f'datasets.{key}.name': (block.get('name'), LONGEST_NAME) for key, block in self.blocks().items()},
                 'val.suffix': (block_of(self.opt, 'val').get('suffix'), _LONGEST_SUFFIX)}
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
                self.report.add(where, 'a test set in a training file: call it val, or use it with udl test')
            if not self.is_train and phase == 'train':
                self.report.add(where, 'a training set in a test file: udl test takes test, test_1, ...; is this a '
                                'training file?')
            if not isinstance(block, dict):
                continue
            name, cls = str(block.get('name')), lookup('data set', block.get('type'))
            if phase != 'train' and names.setdefault(name, where) != where:
                self.report.add(f'{where}.name', f'{name!r} is the name of {names[name]} already; results would mix')
            if block.get('persistent_workers') and (phase != 'train' or not block.get('num_worker_per_gpu')):
                self.report.add(f'{where}.persistent_workers', 'needs worker processes, which '
                                + ('num_worker_per_gpu: 0 has not' if phase == 'train' else 'validation has not'))
            self.check_numbers(block, where)
            if cls is WholeImageDataset and block.get('batch_size_per_gpu', 1) != 1:
                self.report.add(f'{where}.batch_size_per_gpu', 'whole images differ in size and make no batch; set it '
                                'to 1')
            if phase != 'train':
                for own in filter(block.get, _OF_TRAINING_SETS):
                    self.report.add(f'{where}.{own}', 'only the training set has it; remove it')
            elif block.get('in_memory') is True and cls not in (None, PairedImageDataset):
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

    def check_paths(self) -> None:
        path = self.opt.get('path')
        if not self.is_train and isinstance(path, dict) and path.get('pretrain_network_g') is None:
            self.report.add('path.pretrain_network_g', 'missing; which weights are to be tested? Train first, or set '
                            'path.pretrain_network_g')

    def check_validation(self) -> None:
        val, sets = block_of(self.opt, 'val'), {k: d for k, d in self.blocks().items() if k.split('_')[0] != 'train'}
        metrics, best, tile = block_of(val, 'metrics'), val.get('save_best'), val.get('tile')
        if isinstance(best, dict):
            for key, names in (('metric', metrics), ('dataset', [d['name'] for d in sets.values() if 'name' in d])):
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
            elif 'density' in takes and 'density' not in metric and (says := self.head_says()) not in DENSITIES:
                self.report.add(f'val.metrics.{name}', not_decided(metric['type'], says))
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
        if not isinstance(block, dict) or lookup('metric', block.get('type')) is None \
                or self.report.has(f'val.metrics.{name}') or block_facts(block).sign:
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
        if not self.ours:
            return f'model_type {self.opt.get("model_type")} has none: use UDLModel'
        if not isinstance(self.opt.get('network_u'), dict):
            return 'there is none without network_u: train stage esu, sigma or udl'
        if not self.is_train and block_of(self.opt, 'path').get('pretrain_network_u') is None:
            return 'path.pretrain_network_u is missing: name the net_u_*.pth of a stage-1 run'
        return ''

    def check_logger(self) -> None:
        port, logger = block_of(self.opt, 'dist_params').get('port'), block_of(self.opt, 'logger')
        if isinstance(port, int) and port > 65535:
            self.report.add('dist_params.port', f'expected integer, 1 ≤ x ≤ 65535, got {port}')
        project, run = (block_of(logger, 'wandb').get(key) for key in ('project', 'resume_id'))
        if isinstance(run, str) and not schema.FOLDER_NAME.accepts(run):  # wandb names a folder after it
            self.report.add('logger.wandb.resume_id', f'expected {schema.FOLDER_NAME.label}, got {describe(run)}')
        if project and logger.get('use_tb_logger') is not True:
            self.report.add('logger.use_tb_logger', 'must be true, since wandb reads what TensorBoard is given')
        for wanted, package in ((project, 'wandb'), (logger.get('use_tb_logger'), 'tensorboard')):
            if wanted and importlib.util.find_spec(package) is None:
                self.report.add('logger', f'{package} is not installed: pip install {package}, or turn it off')
