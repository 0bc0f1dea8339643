"""One training run and one test run, from checked options to saved results."""
import datetime
import math
import time
from pathlib import Path
from typing import cast

import basicsr
import numpy
import torch
import torch.distributed as dist
from basicsr.models import build_model
from basicsr.utils import AvgTimer, MessageLogger, get_env_info, get_time_str
from basicsr.utils.logger import init_tb_logger
from basicsr.utils.options import dict2str
from torch.utils.data import DataLoader

from udl_basicsr.data import uncertainty_cache
from udl_basicsr.data.loader import ValidationImages, build_dataset, seed_all, train_batches
from udl_basicsr.data.uncertainty_maps import fingerprint
from udl_basicsr.metrics.facts import facts_for_scores, without_better
from udl_basicsr.options.parse import Parsed
from udl_basicsr.options.summary import describe_options
from udl_basicsr.utils import processor
from udl_basicsr.utils.distributed import broadcast
from udl_basicsr.utils.errors import begun
from udl_basicsr.utils.kernels import set_training_kernels
from udl_basicsr.utils.scores import (
    Measured,
    Scores,
    SetScores,
    format_scores,
    protocol_sentence,
    unmeasured,
    write_scores,
)
from udl_basicsr.utils.settings import LoaderSettings, LoggerSettings, RunSettings, TrainSettings, ValSettings
from udl_basicsr.utils.shipped_weights import shown_weights
from udl_basicsr.utils.version import __version__

from .history import History, weights_digest
from .interrupts import Interrupted, Interrupts
from .log import RunLog, init_wandb_logger, run_log
from .run_folder import find_best, make_folders, resume_state
from .states import essence, note_changes

_DEBUG_IMAGES = 2  # of each set, with --debug
_SILENT = 60  # seconds without a line of the log, after which one says how long a step takes


def train(parsed: Parsed, command: str = '') -> None:
    """Trains what the options say. Nothing is created before data, networks and checkpoints have been found right.

    Args:
        parsed (Parsed): Checked options.
        command (str): The command line, noted in the run's copy of the YAML.

    Raises:
        CheckpointError: A checkpoint that does not fit, or that cannot be read or saved.
        BrokenImageError: An image that cannot be read.
        FloatingPointError: A loss or gradient that is not finite.
        Interrupted: SIGTERM or SIGINT came; the state is saved.
        RunBusyError: Another process is training in the same folder.
    """
    opt = parsed.opt
    with run_log(opt['rank']) as log:
        logger = log.logger
        _begin(parsed, log)
        state = resume_state(opt)
        start_iter = state['iter'] if state else 0
        if state and state.get('run', {}).get('manual_seed') is not None:
            opt['manual_seed'] = parsed.flat['manual_seed'] = state['run']['manual_seed']
        total_iter = int(opt['train']['total_iter'])
        val_loaders = _loaders(opt, 'val')
        train_set = build_dataset(opt['datasets']['train'])
        seed_all(opt['manual_seed'])  # the same initial weights in every process, whatever was drawn before
        options = essence(opt)  # before BasicSR's models, which take keys out of it
        model = build_model(opt)
        if LoaderSettings.of(opt['datasets']['train']).uncertainty_cache:
            train_set = uncertainty_cache.prepare(train_set, opt, model.device)
        sampler, batches = train_batches(train_set, opt, start_iter)
        model.iters_per_epoch = sampler.iters_per_epoch  # for schedules in epochs
        network = getattr(model, 'net_g', None)  # models of other kinds may call theirs otherwise
        head = {'initial_weights': network and weights_digest(network), 'iters_per_epoch': sampler.iters_per_epoch}
        model.run = _run(train_set, sampler, opt, options, model)
        if state:
            model.resume_training(state)
            note_changes(state, model.run)
            if opt['num_gpu'] and not RunSettings.of(opt).deterministic:
                logger.info('On a GPU only deterministic: true resumes to the bit: what follows may differ by rounding '
                            'from an uninterrupted run.')
            logger.info(f"Resuming training from epoch: {state['epoch']}, iter: {start_iter}.")
        lock = make_folders(parsed, command, keep=start_iter if state else None)
        if state and hasattr(model, 'networks_to_save'):
            _go_on_with_best(model, opt)
        if opt['rank'] == 0:
            log.to_file(Path(opt['path']['log']) / f"train_{opt['name']}_{get_time_str()}.log")
        tb_logger = _tb_logger(opt)
        history = None if opt['rank'] else History(Path(opt['path']['log']) / 'history.jsonl', start_iter, head,
                                                   validates_again=start_iter >= total_iter)
        logger.info(f'{len(train_set)} training images, batch {sampler.batch_size} x {opt["world_size"]} process(es), '
                    f'{sampler.iters_per_epoch} iterations an epoch, '
                    + (f'iterations {start_iter + 1} to {total_iter}.' if start_iter < total_iter else
                       f'all {total_iter} iterations are done.'))
        with begun(), Interrupts() as interrupts:
            _iterate(model, batches, sampler, val_loaders, opt, tb_logger, history, start_iter, total_iter, interrupts)
            interrupts.at_once(f'after iteration {total_iter} of {total_iter}, which is saved; the last validation is '
                               'still to be done. Go on with --auto_resume')
            if opt.get('val'):
                _validate(model, val_loaders, total_iter, tb_logger, history, opt)
                model.save(_epoch(total_iter, sampler), total_iter)  # once more: now it knows of the best metric
            # Last of all, since it tells the next stage that this one has ended: a run that was killed in its last
            # validation has to make up for it, and for the best weights that it may find.
            model.save(epoch=-1, current_iter=-1)  # BasicSR's way to say 'latest'
        if tb_logger:
            tb_logger.close()
        if lock:
            lock.close()


def _run(train_set, sampler, opt: dict, options: dict, model) -> dict:
    """What decides, beside the iteration, which images are trained next, and how; kept with every state."""
    net_u = getattr(model, 'net_u', None)
    frozen = {} if net_u is None or getattr(model, 'trains_u', True) else {'uncertainty': fingerprint(net_u)}
    return {'manual_seed': opt['manual_seed'], 'world_size': opt['world_size'], 'images': len(train_set),
            'batch_size': sampler.batch_size, 'options': options, **frozen}


def _go_on_with_best(model, opt: dict) -> None:
    """The best networks of ``val.save_best`` are those of the record in the state; else the next validation is best."""
    rule = ValSettings.of(opt.get('val')).save_best or {}
    record: dict[str, dict] = model.best_metric_results.get(rule.get('dataset'), {})
    if not record:
        return
    best = record.get(rule['metric'])
    if best is None or not broadcast(opt['rank'] == 0 and find_best(opt, model.networks_to_save(), best['iter'])):
        better = opt['val']['metrics'][rule['metric']].get('better', 'higher')
        record[rule['metric']] = {'better': better, 'val': -math.inf if better == 'higher' else math.inf, 'iter': -1}


def _iterate(model, batches, sampler, val_loaders, opt, tb_logger, history, start_iter, total_iter,
             interrupts) -> None:
    logger_opt, val_opt, seed = opt['logger'], opt.get('val'), opt['manual_seed']
    warmup_iter = TrainSettings.of(opt['train']).warmup_iter
    skips = LoaderSettings.of(opt['datasets']['train']).skip_broken
    message_logger = MessageLogger(opt, start_iter, tb_logger)
    message_logger.max_iters += 1  # it counts from 0 (basicsr/utils/logger.py:101); the last line had an ETA of -1 day
    data_timer, iter_timer, started = AvgTimer(), AvgTimer(), time.time()
    logger, broken, minute = message_logger.logger, 0, _FirstMinute()
    model.asked_to_stop = lambda: interrupts.signal is not None
    for iteration, batch in enumerate(batches, start_iter + 1):
        data_timer.record()
        broken += batch.pop('broken', 0)
        epoch, last = _epoch(iteration, sampler), iteration == total_iter
        # What a step draws (dropout, sampling losses) depends on its number, not on what came before: a resumed run
        # draws the same, and no random state needs to be saved.
        seed_all(seed, iteration, opt['rank'])
        model.update_learning_rate(iteration, warmup_iter=warmup_iter)
        model.feed_data(batch)
        model.optimize_parameters(iteration)
        logged = iteration % logger_opt['print_freq'] == 0 or last
        losses = model.get_current_log() if logged else {}  # waits for a GPU, whose time is that of the steps
        iter_timer.record()
        if logged:
            count = _of_all_ranks(broken, model.device) if skips and opt['dist'] else broken
            message_logger({
                'epoch': epoch,
                'iter': iteration,
                'lrs': model.get_current_learning_rate(),
                'time': iter_timer.get_avg_time(),
                'data_time': data_timer.get_avg_time(),
                **losses,
                **({'broken_images': count} if count else {}),
            })
            if history:
                history.add(iteration, **losses, seconds=round(iter_timer.get_avg_time(), 5))
        if each := minute.step(logged):
            left = datetime.timedelta(seconds=int(each * (total_iter - iteration)))
            logger.info(f'Iteration {iteration} of {total_iter}, {each:.1f} s each: {left} to go. The losses are '
                        f'logged every {logger_opt["print_freq"]} iterations.')
        if val_opt and iteration % val_opt['val_freq'] == 0 and not last:
            _validate(model, val_loaders, iteration, tb_logger, history, opt)
        # Our models' ranks have agreed in the step, where they tell one another whether it is finite.
        stop = model.guard.stop if opt['dist'] and hasattr(model, 'guard') else interrupts.agreed(model.device)
        # After validation, so that the state knows of the best metric that was just reached; but before the last one,
        # which may take longer than a machine that is being shut down allows.
        if stop or last or iteration % logger_opt['save_checkpoint_freq'] == 0:
            logger.info('Saving models and training states.')
            model.save(epoch, iteration)
        if stop:
            broadcast(None)  # all wait for rank 0 to save: when one has ended, what supervises them ends the others
            by = interrupts.signal or 'a signal to another rank'
            raise Interrupted(f'Stopped by {by} after iteration {iteration} of {total_iter}, which is saved. Go on '
                              'with --auto_resume')
        data_timer.start()
        iter_timer.start()
    logger.info(f'End of training. Time consumed: {datetime.timedelta(seconds=int(time.time() - started))}')


class _FirstMinute:
    """Whoever waits for the first line of the log is told once, after a minute, how long a step takes."""

    def __init__(self) -> None:
        self.steps, self.begin, self.over = 0, 0., False

    def step(self, logged: bool) -> float | None:
        """Seconds of a step when they are to be told, from the second step on: the first may have to be compiled."""
        self.over |= logged
        if self.over or not self.begin:
            self.begin = time.time()
            return None
        self.steps += 1
        seconds = time.time() - self.begin
        self.over = seconds > _SILENT
        return seconds / self.steps if self.over else None


def _of_all_ranks(count: int, device: torch.device) -> int:
    total = torch.tensor(count, device=device)
    dist.all_reduce(total)
    return int(total)


def _epoch(iteration: int, sampler) -> int:
    return (iteration - 1) // sampler.iters_per_epoch


def _validate(model, val_loaders, iteration, tb_logger, history, opt) -> None:
    for loader in val_loaders:
        means = model.validation(loader, iteration, tb_logger, ValSettings.of(opt['val']).save_img)
        if history and means:
            history.add(iteration, dataset=loader.dataset.opt['name'], **means)


def test(parsed: Parsed) -> Scores:
    """Tests on every data set of the options; writes and prints the table of scores.

    Returns:
        Scores: As in ``results/<name>/scores.json``.

    Raises:
        FloatingPointError: The network's output is not finite, and nothing is written; or a metric is not, which is
            null in scores.json.
    """
    opt = parsed.opt
    with run_log(opt['rank']) as log:
        logger = log.logger
        logger.info(describe_options(parsed))
        _begin(parsed, log)
        loaders = _loaders(opt, 'test', 'val')
        model = build_model(opt)
        make_folders(parsed, '')
        if opt['rank'] == 0:
            log.to_file(Path(opt['path']['log']) / f"test_{opt['name']}_{get_time_str()}.log")
        for loader in loaders:
            images = cast(ValidationImages, loader.dataset)
            logger.info(f"Testing {images.opt['name']}: {len(images)} images.")
            model.validation(loader, opt['name'], None, ValSettings.of(opt['val']).save_img)
        scores = _scores(model, opt)
        if opt['rank'] == 0 and scores.datasets:
            for path in write_scores(scores, opt['path']['results_root']):
                logger.info(f'Scores written to {path}')
            logger.info('\n' + format_scores(scores))
        if odd := unmeasured(scores):
            raise FloatingPointError(f'{"; ".join(odd)}. They are null in scores.json, and so is their mean: leave the '
                                     'metric or the image out and test again. Two equal images have an infinite PSNR')
    return scores


def _scores(model, opt: dict) -> Scores:
    val = ValSettings.of(opt['val'])
    metrics, rounded = val.metrics, val.rounded
    return Scores(
        name=opt['name'],
        scale=opt['scale'],
        network=opt['network_g']['type'],
        weights=_weights(model, opt['path']),
        weights_hash=fingerprint(model.get_bare_model(model.net_g)) if hasattr(model, 'net_g') else '',
        protocol=protocol_sentence(metrics, opt['scale'], rounded),
        measured=Measured(rounded, {name: without_better(m) for name, m in metrics.items()}),
        datasets={name: SetScores.of(images) for name, images in model.scores.items() if images and metrics},
        metrics=facts_for_scores(metrics),
        versions={'udl_basicsr': __version__, **{m.__name__: m.__version__ for m in (basicsr, torch, numpy)}},
    )


def _weights(model, path: dict) -> str:
    """Which were tested; the entry of the file too where it is not the usual one."""
    key = getattr(model, 'entries', {}).get('g', path.get('param_key_g', 'params'))  # BasicSR's models do not say it
    return shown_weights(str(path.get('pretrain_network_g'))) + (f' [{key}]' if key not in ('params', None) else '')


def _loaders(opt: dict, *phases: str) -> list[DataLoader]:
    """One loader for each ``val``, ``val_1``, ... (or ``test``, ...) block, by name, as BasicSR orders them."""
    return [DataLoader(ValidationImages(build_dataset(block), most=_DEBUG_IMAGES if opt.get('debug') else None),
                       batch_size=1)
            for key, block in sorted(opt['datasets'].items()) if key.split('_')[0] in phases]


def _begin(parsed: Parsed, log: RunLog) -> None:
    """What comes first in every run: one seed for all ranks; what runs here and all options go to the log's file."""
    opt = parsed.opt
    opt['manual_seed'] = parsed.flat['manual_seed'] = broadcast(opt.get('manual_seed'))
    log.keep(get_env_info())
    log.keep(dict2str(opt))
    for note in parsed.notes:
        log.logger.info(note)
    for warning in parsed.warnings:
        log.logger.warning(warning)
    set_training_kernels(RunSettings.of(opt).deterministic)
    processor.keep_freed_memory()


def _tb_logger(opt: dict):
    settings = LoggerSettings.of(opt['logger'])
    if 'debug' in opt['name'] or not settings.use_tb_logger:
        return None
    if settings.wandb.get('project') and opt['rank'] == 0:
        init_wandb_logger(opt)
    return init_tb_logger(log_dir=str(Path(opt['root_path']) / 'tb_logger' / opt['name']))
