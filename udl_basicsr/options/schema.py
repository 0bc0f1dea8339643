"""The keys of an option file: one table, from which files are checked and docs/OPTIONS.md is written.

``python -m udl_basicsr.options.schema docs/OPTIONS.md`` writes the table in it anew.
"""
import fnmatch
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from udl_basicsr.models.stage_table import STAGES
from udl_basicsr.utils.distributed import TIMEOUT
from udl_basicsr.utils.settings import (
    LoaderSettings,
    LoggerSettings,
    RunSettings,
    Settings,
    TrainSettings,
    ValSettings,
)


@dataclass(frozen=True)
class Kind:
    """What a value may be."""

    label: str
    accepts: Callable[[Any], bool]
    convert: Callable[[Any], Any] | None = None
    """Applied to accepted values: BasicSR's own files write ``!!float 5e3`` where a count is meant."""
    json: dict[str, Any] = field(default_factory=dict)
    """The same as JSON Schema, as far as it can be said there."""


@dataclass(frozen=True)
class Built:
    """A block ``{type: name, argument: value, ...}`` that a class is built from; checked against its signature."""

    what: str
    partial: bool = False
    """The program fills in what the block leaves out."""

    @property
    def label(self) -> str:
        return f'block: {self.what} `type` and its arguments'


@dataclass(frozen=True)
class Key:
    """One key of the table."""

    kind: Any
    """Kind, Built, or a dict: the table of a block."""
    doc: str
    need: str = ''
    """'' optional, or 'train', 'test', 'both': where it must be given."""
    ours: bool = False
    """Read by the models of this package; BasicSR's would silently ignore it."""
    only: str = ''
    """Read by those models alone that read this top-level key."""
    null: bool = False
    """Null may be written, and means: not given."""
    default: Any = None
    """What holds where the key is not given; None: nothing does, or ``doc`` says what."""


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return _is_number(value) and value == int(value)


def integer(low: int, label: str = '') -> Kind:
    return Kind(label or f'integer ≥ {low}', lambda v: _is_count(v) and v >= low, int,
                {'type': 'integer', 'minimum': low})


def one_of(*choices: str) -> Kind:
    return Kind(' | '.join(choices), lambda v: isinstance(v, str) and v in choices, json={'enum': [*choices]})


def _is_folder_name(value: Any) -> bool:
    return isinstance(value, str) and value.strip() == value != '' and value not in ('.', '..') \
        and not any(c in value for c in '/\\\0:*?"<>|\n')


_TEXT = {'type': 'string', 'minLength': 1}
BOOL = Kind('true | false', lambda v: isinstance(v, bool), json={'type': 'boolean'})
TEXT = Kind('text', lambda v: isinstance(v, str) and v != '', json=_TEXT)
FILE_OR_BLOCK = Kind('text, or block of options', lambda v: isinstance(v, dict) or TEXT.accepts(v),
                     json={'anyOf': [_TEXT, {'type': 'object'}]})
FOLDER_NAME = Kind('name of a folder: text without / \\ : * ? " < > | and not . or ..', _is_folder_name, json=_TEXT)
POSITIVE = Kind('number > 0', lambda v: _is_number(v) and v > 0, json={'type': 'number', 'exclusiveMinimum': 0})
DECAY = Kind('number, 0 ≤ x < 1', lambda v: _is_number(v) and 0 <= v < 1,
             json={'type': 'number', 'minimum': 0, 'exclusiveMaximum': 1})
NAMES = Kind('list of text', lambda v: isinstance(v, list) and all(isinstance(i, str) for i in v),
             json={'type': 'array', 'items': {'type': 'string'}})
ANY = Kind('anything', lambda v: True)
COUNT = integer(1)
FREQUENCY = integer(1, 'iterations, integer ≥ 1')
LENGTH = Kind('iterations, integer, 1 ≤ x ≤ 10⁹', lambda v: _is_count(v) and 1 <= v <= 10**9, int,
              {'type': 'integer', 'minimum': 1, 'maximum': 10**9})
GPUS = Kind('auto | integer ≥ 0', lambda v: v == 'auto' or (_is_int(v) and v >= 0),
            json={'anyOf': [{'enum': ['auto']}, {'type': 'integer', 'minimum': 0}]})
SEED = Kind('integer, 0 ≤ x < 2³²', lambda v: _is_int(v) and 0 <= v < 2**32,
            json={'type': 'integer', 'minimum': 0, 'maximum': 2**32 - 1})
CHANNELS = Kind('list of numbers, one per channel', lambda v: isinstance(v, list) and all(map(_is_number, v)),
                json={'type': 'array', 'items': {'type': 'number'}})


def _with_defaults(table: dict[str, Key], settings: type[Settings]) -> dict[str, Key]:
    """The table with the defaults of its typed view."""
    known = {f.name: f.default for f in fields(settings) if f.default is not MISSING}
    return {name: replace(entry, default=known.get(name, entry.default)) for name, entry in table.items()}


DATASET = {
    'name': Key(FOLDER_NAME, 'name in logs and tables, and of the folder of its results', need='both'),
    'type': Key(TEXT, 'a class of DATASET_REGISTRY', need='both'),
    'dataroot_gt': Key(TEXT, 'folder (or .lmdb) of the HR images', null=True),
    'dataroot_lq': Key(TEXT, 'folder (or .lmdb) of the LR images', null=True),
    'meta_info_file': Key(TEXT, 'text file that lists the GT images to use, one a line', null=True),
    'filename_tmpl': Key(Kind('text with {}', lambda v: isinstance(v, str) and _formats(v)),
                         "name of the LR file made from the GT's, such as '{}x4'", default='{}'),
    'io_backend': Key({'type': Key(one_of('disk', 'lmdb', 'memcached'), 'where the images lie', need='both'),
                       '*': Key(ANY, 'further arguments of the backend')}, 'how images are read'),
    'gt_size': Key(COUNT, 'side of the HR training patch, a multiple of scale; a training set of pairs needs it'),
    'use_hflip': Key(BOOL, 'random horizontal flips; a training set of pairs needs it'),
    'use_rot': Key(BOOL, 'random vertical flips and transposition; a training set of pairs needs it'),
    'mean': Key(CHANNELS, 'subtracted from the images', null=True),
    'std': Key(CHANNELS, 'the images are divided by it', null=True),
}
LOADER = _with_defaults({
    'batch_size_per_gpu': Key(COUNT, 'images a step, on each GPU or process'),
    'num_worker_per_gpu': Key(integer(0), 'loader processes, for each GPU or process'),
    'skip_broken': Key(BOOL, 'skip and count training images that become unreadable during the run, instead of '
                       'stopping; those that the check at the start finds are refused', ours=True),
    'first_iter': Key(integer(0), 'skip this many iterations of the order of the crops, to continue where another '
                      'stage ended', ours=True),
    'dataset_enlarge_ratio': Key(COUNT, 'lengthens an epoch, for small data sets'),
    'use_shuffle': Key(BOOL, 'accepted as in the files of BasicSR, where training data are always shuffled'),
    'prefetch_mode': Key(one_of('cpu', 'cuda'), 'cuda needs a GPU', null=True),
    'num_prefetch_queue': Key(COUNT, 'batches held ready by prefetch_mode cpu'),
    'pin_memory': Key(BOOL, 'copy batches to the GPU from page-locked memory'),
    'in_memory': Key(BOOL, 'hold the decoded training images in memory, 8 bits a value: a sample then costs a '
                     'twentieth; each process of torchrun holds a copy, its loader processes share it however they '
                     'are started',
                     ours=True),
    'persistent_workers': Key(BOOL, 'accepted as in the files of BasicSR; loader processes are always kept between '
                              'epochs'),
    'uncertainty_cache': Key(TEXT, 'stage udl: folder of the s of each training image, made if it is missing; '
                             'auto: beside dataroot_lq, one for each stage-1 network', ours=True, only='stage',
                             null=True),
}, LoaderSettings)
VAL = _with_defaults({
    'val_freq': Key(FREQUENCY, 'validate every so many iterations', need='train'),
    'save_img': Key(BOOL, 'write the SR images'),
    'pbar': Key(BOOL, 'progress bar'),
    'suffix': Key(FOLDER_NAME, 'appended to the names of the SR images', null=True),
    'metrics': Key({'*': Key(Built('metric'), 'any name; `better: higher | lower` says which is better if '
                         'the metric itself does not')},
                   'what to measure, under names of your choice', null=True),
    'save_best': Key({'metric': Key(TEXT, 'a name in val.metrics', need='both'),
                      'dataset': Key(TEXT, 'the `name` of a validation set', need='both')},
                     'keep the checkpoint that is best by this metric on this set', ours=True, null=True),
    'rounded': Key(BOOL, 'measure the SR image rounded to 8 bits, as it is saved', ours=True),
    'tile': Key({'size': Key(COUNT, 'side of a tile in LR pixels', need='both'),
                 'overlap': Key(integer(0), 'LR pixels by which neighbours overlap, less than size', need='both')},
                'super-resolve in tiles, if whole images do not fit into the memory', ours=True, null=True),
    'self_ensemble': Key(BOOL, 'average over the 8 flips and rotations', ours=True),
}, ValSettings)
TRAIN = _with_defaults({
    'ema_decay': Key(DECAY, 'exponential moving average of the weights, used for validation; 0: none'),
    'optim_g': Key(Built('optimizer'), 'any class of torch.optim', need='train'),
    'scheduler': Key(Built('scheduler'), 'learning rate schedule: MultiStepLR, CosineAnnealingRestartLR', need='train'),
    'total_iter': Key(LENGTH, 'length of the training', need='train'),
    'warmup_iter': Key(integer(-1), 'linear warm-up, in iterations; -1: none'),
    'optim_w': Key(Built('optimizer'), 'of network_w; default Adam with lr 1e-4, betas [0.5, 0.999]; `fused` as '
                   'optim_g, if of the same type', ours=True, only='network_w'),
    'scheduler_w': Key(Built('scheduler'), 'of network_w; default: as scheduler', ours=True, only='network_w'),
    'likelihood_opt': Key(Built('loss'), 'stage esu: EULoss, ESULoss, GRAMLoss, BetaNLLLoss, ...; its `detach` says '
                          'what it does not train: none, mean (the image), features, all', ours=True, only='stage'),
    'udl_opt': Key(Built('loss'), 'stage udl: UDLLoss; in stage esu it weights with the s that is being learned',
                   ours=True, only='stage'),
    'sigma_opt': Key(Built('loss'), 'stage sigma: SigmaLoss, TrainedExpectedL1Loss', ours=True, only='stage'),
    'tlw_opt': Key(Built('loss'), 'TLWModel: TLWLoss', ours=True, only='network_w'),
    '*_opt': Key(Built('loss'), 'further losses: pixel_opt, perceptual_opt, ...'),
    'accumulate': Key(COUNT, 'compute the batch in so many parts', ours=True),
    'grad_clip': Key(POSITIVE, 'largest norm of the gradient', ours=True, null=True),
    'skip_nonfinite': Key(integer(0), 'skip up to this many steps in a row whose loss or gradient is not finite; '
                          '0 stops at the first', ours=True),
    'amp': Key(one_of('bf16', 'fp16', 'auto'), 'mixed precision; auto: bf16 if the hardware has it', ours=True,
               null=True),
    'channels_last': Key(BOOL, 'memory format', ours=True),
    'compile': Key(BOOL, 'torch.compile', ours=True),
}, TrainSettings)
PATH = {
    'pretrain_network_*': Key(TEXT, 'weights to start from (`_g`, `_u`, `_w`: one per network)', null=True),
    'param_key_*': Key(TEXT, 'params | params_ema; null: the file is the weights themselves; default: params, and in '
                         'a test params_ema if the file has it', null=True),
    'strict_load_*': Key(BOOL, 'every weight must be found', default=True),
    'resume_state': Key(TEXT, 'a .state file to resume from', null=True),
    'ignore_resume_networks': Key(NAMES, 'networks that do not resume from it', null=True),
}
LOGGER = _with_defaults({
    'print_freq': Key(FREQUENCY, 'log every so many iterations', need='train'),
    'save_checkpoint_freq': Key(FREQUENCY, 'save every so many iterations', need='train'),
    'use_tb_logger': Key(BOOL, 'TensorBoard'),
    'keep_last': Key(COUNT, 'keep only the last checkpoints, this many; default all', ours=True, null=True),
    'wandb': Key({'project': Key(TEXT, 'project on wandb', null=True),
                  'resume_id': Key(TEXT, 'run to continue', null=True)}, 'Weights & Biases', null=True),
}, LoggerSettings)
NETWORK_U = {
    'type': Key(TEXT, 'UncertaintyNet', need='both'),
    'backbone': Key(Built('network'), 'default: network_g'),
    'head': Key(Built('network', partial=True), 'default: UDLHead'),
    'tap': Key(TEXT, 'the module of the backbone whose input the head reads; default: the one of docs/NETWORKS.md, or '
               '`default_tap` of the class', null=True),
}
OPTIONS = _with_defaults({
    'name': Key(FOLDER_NAME, 'name of the experiment, and of its folder', need='both'),
    'model_type': Key(TEXT, "a class of MODEL_REGISTRY: UDLModel, TLWModel, or BasicSR's SRModel, ...", need='both'),
    # a package of one's own may add a row to the table of stages
    'stage': Key(replace(one_of(*STAGES), accepts=lambda v: isinstance(v, str) and v in STAGES),
                 'of UDLModel: plain trains with ordinary losses, esu learns the uncertainty, udl weights with it, '
                 'sigma learns a sigma branch that shares the features', ours=True, only='stage'),
    'stage1': Key(FILE_OR_BLOCK, 'the option file of stage 1, relative to this file, or what stage 1 changes in this '
                  'one, with its own losses; trained first if its weights are missing', ours=True, null=True),
    'rounds': Key(COUNT, 'go through both stages this many times, each from the weights of the one before',
                  ours=True, only='stage'),
    'tested_on': Key(TEXT, 'the option file, relative to this one, whose data sets and `val` udl test takes when it is '
                     'given this training; default: what it is validated on', null=True),
    'scale': Key(COUNT, 'upscaling factor'),
    'degradation': Key(TEXT, 'how the LR images were made, for records and tables: BI, BD, ...', ours=True),
    'num_gpu': Key(GPUS, 'auto: one, if there is one; use torchrun for several', default='auto'),
    'manual_seed': Key(SEED, 'default: a random one', null=True),
    'deterministic': Key(BOOL, 'deterministic kernels, which exact resuming on a GPU needs'),
    'find_unused_parameters': Key(BOOL, 'for DistributedDataParallel'),
    'datasets': Key({'train': Key({**DATASET, **LOADER}, 'training set'),
                     'val': Key({**DATASET, **LOADER}, 'validation sets: val, val_1, ...'),
                     'val_*': Key({**DATASET, **LOADER}, ''),
                     'test': Key({**DATASET, **LOADER}, 'test sets, for test.py: test, test_1, ...'),
                     'test_*': Key({**DATASET, **LOADER}, '')}, 'data', need='both'),
    'network_g': Key(Built('network'), 'the network that super-resolves', need='both'),
    'network_u': Key(NETWORK_U, 'network_g with an uncertainty head (all stages but plain)', ours=True, only='stage'),
    'network_w': Key(Built('network'), 'TLWModel: the network that weights the loss, TLWNet', ours=True,
                     only='network_w'),
    'path': Key(PATH, 'weights and states to start from'),
    'train': Key(TRAIN, 'training', need='train'),
    'val': Key(VAL, 'validation and test', need='test'),
    'logger': Key(LOGGER, 'logging and checkpoints', need='train'),
    'dist_params': Key({'backend': Key(one_of('nccl', 'gloo'), 'default: nccl on GPUs and gloo for all else'),
                        'port': Key(integer(1), 'port of the first process (slurm)'),
                        'timeout': Key(COUNT, 'minutes that processes wait for one another; for the uncertainty '
                                       'cache they wait as long as it takes', default=TIMEOUT)}, 'several processes'),
}, RunSettings)


def _formats(template: str) -> bool:
    # nothing is formatted to find out: {0.__class__} looks into objects, {:>9999999999} takes gigabytes
    return template.count('{}') == 1 and not set(template.replace('{}', '')) & set('{}')


def find(table: dict[str, Key], name: str) -> Key | None:
    """The entry for a key: its own, else the first pattern that fits."""
    return table.get(name) or next((entry for pattern, entry in table.items()
                                    if '*' in pattern and fnmatch.fnmatchcase(name, pattern)), None)


def _as_yaml(value: Any) -> str:
    if isinstance(value, str):
        return value if value.isalnum() else repr(value)
    return str(value).lower()


def _rows(table: dict[str, Key], at: str = '') -> Iterator[str]:
    for name, entry in table.items():
        if not entry.doc:
            continue
        block = isinstance(entry.kind, dict)
        shown = {'val': 'val, val_*', 'test': 'test, test_*'}.get(name, name) if at == 'datasets:' else name
        default = '' if entry.default is None else f'; default {_as_yaml(entry.default)}'
        need = {'': '', 'train': 'training', 'test': 'test', 'both': 'yes'}[entry.need]
        label = 'block' if block else entry.kind.label
        cells = [f'`{at}{shown}`', f'{label}{" or null" if entry.null else ""}', need,
                 f'{entry.doc}{default}{" †" if entry.ours else ""}']
        yield '| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |'
        if block and not (at == 'datasets:' and name != 'train'):  # the sets all have the keys of `train`
            yield from _rows(entry.kind, f'{at}{name}:')


def markdown() -> str:
    """The table as Markdown."""
    head = ['| key | value | needed | what it does |', '|---|---|---|---|']
    return '\n'.join([*head, *_rows(OPTIONS)]) + '\n'


if __name__ == '__main__':
    document = Path(sys.argv[1])
    text = document.read_text(encoding='utf-8')
    document.write_text(text[:text.index('| key |')] + markdown(), encoding='utf-8')
