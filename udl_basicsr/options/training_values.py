"""How the values of the block ``train`` fit together, and fit the stage: losses, optimisers and schedules."""
import inspect
from typing import Any

from basicsr.data.paired_image_dataset import PairedImageDataset
from torch import nn

from udl_basicsr.archs.traits import argument
from udl_basicsr.data.uncertainty_cache import AUTO
from udl_basicsr.functional.distributions import LaplaceDistribution
from udl_basicsr.losses import TLWLoss
from udl_basicsr.losses.base import inputs_of
from udl_basicsr.losses.perceptual import NETS, smallest_image
from udl_basicsr.models.loss_blocks import log_names
from udl_basicsr.models.stage_table import STAGES, detach_of, trains_head_alone

from . import schema
from .keys import block_of, lookup
from .network_values import NetworkChecker
from .signatures import describe
from .trials import build_network, try_loss, try_parameters


def _detaches(block: Any) -> bool:
    """Whether a loss of the sigma branch takes the image as a constant."""
    target = lookup('loss', block.get('type')) if isinstance(block, dict) else None
    named = inspect.signature(target).parameters if target else {}
    return bool(block.get('detach', named['detach'].default)) if 'detach' in named else target is None


def judge_of(block: Any) -> tuple[Any, Any]:
    """Backbone and file of the LPIPS judge that a loss has; None of both where it has none, or a random one."""
    target = lookup('loss', block.get('type')) if isinstance(block, dict) else None
    named = inspect.signature(target).parameters if target else {}
    if 'judge' not in named or block.get('judge_random'):
        return None, None
    return block.get('judge', named['judge'].default), block.get('judge_weights')


class TrainingChecker(NetworkChecker):
    """Checks what is trained and how, beside the networks."""

    def check_stage(self, train: dict) -> None:
        """What TLWModel and each stage of UDLModel train with, and which losses need more than an image."""
        losses = {k for k, v in train.items() if k.endswith('_opt') and isinstance(v, dict)}
        # what the loss of a stage takes
        gives = {stage.loss: stage.gives for stage in STAGES.values() if stage.loss and stage.gives}
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
        if self.ours:
            self.check_weights(train, losses)
        for key in sorted(losses):
            target = lookup('loss', train[key].get('type'))
            takes = inputs_of(target) if hasattr(target, 'forward') else {}
            if target and key in gives and gives[key] not in takes:
                self.report.add(f'train.{key}.type', f'{target.__name__} does not look at the uncertainty (its forward '
                                f'has no argument {gives[key]}); put it in pixel_opt')
            if target and key in ordinary and any(takes.get(name) for name in gives.values()):
                places = [f'{stage.loss} (stage {name})' for name, stage in STAGES.items()
                          if stage.gives and takes.get(stage.gives)]
                self.report.add(f'train.{key}.type', f'{target.__name__} needs the uncertainty; put it in '
                                + ' or '.join(places))
            if target and ('weight_map' in takes) != (key == 'tlw_opt'):
                self.report.add(f'train.{key}.type', f'{target.__name__} is ' + (
                    'no loss that a network weights; put it in pixel_opt' if key == 'tlw_opt' else
                    'for tlw_opt (model_type: TLWModel)'))
            if target and self.ours and not self.report.has(f'train.{key}'):
                self.check_loss(key, target, train)

    def check_weights(self, train: dict, losses: set[str]) -> None:
        """That the losses are made smaller, and that there is one to make smaller."""
        weights = {key: train[key].get('loss_weight') for key in sorted(losses)}
        for key, weight in weights.items():
            if isinstance(weight, (int, float)) and weight < 0:
                self.report.add(f'train.{key}.loss_weight', f'expected number ≥ 0, got {describe(weight)}, with which '
                                'training would make the loss larger')
        if weights and all(weight == 0 for weight in weights.values()):
            self.report.add(f'train.{next(iter(weights))}.loss_weight', 'no loss has another weight than 0, so nothing '
                            'would be learned; expected a number > 0')

    def check_loss(self, key: str, target: type, train: dict) -> None:
        """That training gets one number from a loss, at the size that is trained at."""
        block, where, accumulate = train[key], f'train.{key}', self.given('train', 'accumulate')
        reduction = block.get('reduction', 'mean')
        if reduction == 'none':
            self.report.add(f'{where}.reduction', 'expected mean or sum, got none: training needs one number')
        elif reduction == 'sum' and accumulate != 1:
            self.report.add(f'{where}.reduction', 'expected mean, got sum: with train.accumulate it would depend on '
                            'the number of parts')
        elif accumulate != 1 and (over := [o for o in ('min_over', 'mean_over') if block.get(o) == 'batch']):
            self.report.add(f'{where}.{over[0]}', 'expected image, got batch: with train.accumulate it would be over a '
                            'part of the batch')
        elif accumulate != 1 and block.get('criterion') == 'fro':
            self.report.add(f'{where}.criterion', 'expected l1 or l2, got fro: with train.accumulate this norm would '
                            'be over a part of the batch')
        elif key != 'tlw_opt':
            scale = self.opt['scale'] if isinstance(self.opt.get('scale'), int) else 1
            side = self.patch(scale) if self.opt.get('scale') else 48
            if 'judge_random' in inspect.signature(target).parameters:
                block = {**block, 'judge_random': True}  # whether its weights are there is asked with the other files
            problem, differs = try_loss(key, target, block, self.channels(), side, scale, accumulate != 1)
            if problem:
                self.report.add(where, problem)
            if differs:
                self.report.warnings.append(f'{where}: {target.__name__} of a batch is not the mean over its images: '
                                            'with train.accumulate, which takes each part of the batch by itself, the '
                                            'gradient is another one')

    def check_weighting(self, train: dict, losses: set[str]) -> None:
        add, loss = self.report.add, train.get('tlw_opt')
        judge = loss.get('judge', inspect.signature(TLWLoss).parameters['judge'].default) if isinstance(
            loss, dict) else None
        if 'tlw_opt' not in losses:
            add('train.tlw_opt', f'missing; {self.model.__name__} needs it, such as {{type: TLWLoss, base: l1}}')
        if not isinstance(self.opt.get('network_w'), dict):
            add('network_w', f'missing; {self.model.__name__} needs it, such as {{type: TLWNet}}')
        elif target := lookup('network', self.opt['network_w'].get('type')):
            takes = argument(target, self.opt['network_w'], 'num_in_ch')
            if isinstance(takes, int) and takes != self.channels():
                add('network_w.num_in_ch', f'{takes} is not what the images have, {self.channels()} channel(s)')
        gt_size = self.blocks().get('train', {}).get('gt_size')
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
        if self.given('rounds') != 1 and not (stage == 'udl' and self.opt.get('stage1')):
            add('rounds', 'only stage udl with a stage1 can be gone through several times')
        with_s = {other.loss for other in STAGES.values() if row.trains == 'u' and other.trains == 'g'
                  and other.gives == row.gives}  # it may weight with an s that is being learned
        for key in sorted(losses - ordinary - with_s - {wanted}):
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
        backbone = self.opt['network_u'].get('backbone') if has_u else None
        if row.trains == 'u' and backbone not in (None, self.opt.get('network_g')):
            add('network_u.backbone', f'is not network_g, in whose place stage {stage} would train it; remove it')
        self.check_cache(stage)
        self.check_head(train, wanted)
        self.check_detach(stage, train, losses - {wanted})
        path = self.opt.get('path')
        if trains_head_alone(stage, train) and isinstance(path, dict) and not self.opt.get('stage1') and not any(
                path.get(key) for key in ('pretrain_network_g', 'pretrain_network_u', 'resume_state')):
            add('path.pretrain_network_g', f'missing; with train.{wanted}.detach: all and no other loss the head alone '
                'is trained, on a network that is: name its weights, or add pixel_opt: {type: L1Loss}, which trains it')
        # where stage1 is given, it is its own file that explains why nothing could be filled in
        if stage == 'udl' and isinstance(path, dict) and not (path.get('pretrain_network_u') or self.opt.get('stage1')):
            add('path.pretrain_network_u', 'missing; stage udl weights with the uncertainty of stage 1: name its '
                'option file with the top-level key stage1, or its weights here')

    def check_detach(self, stage: str, train: dict, others: set[str]) -> None:
        """That the loss of the stage and the block of the network say the same of what it trains."""
        detach, network_u = detach_of(stage, train), self.opt.get('network_u')
        where = f'train.{STAGES[stage].loss}.detach'
        if detach == 'mean' and not others:
            self.report.add(where, 'mean without another loss trains the features of an image that nothing trains: '
                            'add pixel_opt: {type: L1Loss}, or set none, or all, which trains the head alone')
        if detach == 'none' or not isinstance(network_u, dict):
            return
        for key, value in (('detach', detach), ('freeze', trains_head_alone(stage, train))):
            if network_u.get(key, value) != value:
                self.report.add(f'network_u.{key}', f'{describe(network_u[key])} contradicts {where}: {detach}, which '
                                'decides what is trained; remove it')

    def head_says(self) -> str:
        """The distribution of what the head puts out, by its block."""
        head = block_of(block_of(self.opt, 'network_u'), 'head')
        cls = lookup('network', head.get('type', 'UDLHead'))
        named = inspect.signature(cls).parameters.get('distribution') if cls else None
        return str(head.get('distribution', named.default)) if named else LaplaceDistribution.name

    def check_head(self, train: dict, wanted: str | None) -> None:
        """That the loss of the stage trains what the head puts out."""
        block, network_u = block_of(train, wanted or ''), self.opt.get('network_u')
        target = lookup('loss', block.get('type'))
        trains = getattr(target, 'trains', None)
        trained = trains(block) if trains else getattr(target, 'distribution', None)
        head = (network_u.get('head') or {}) if isinstance(network_u, dict) else None
        if trained is None or not isinstance(head, dict):
            return
        cls, says = lookup('network', head.get('type', 'UDLHead')), self.head_says()
        if says != trained:
            self.report.add(f'train.{wanted}.type', f'{target.__name__} trains a head of distribution {trained}, and '
                            f'network_u.head is of {says}: set its distribution: {trained}')
        for key in ('level', ) if trained == says == 'quantile' else ():
            ours, theirs = (b.get(key, inspect.signature(c).parameters[key].default) for b, c in
                            ((block, target), (head, cls)))
            if ours != theirs:
                self.report.add(f'train.{wanted}.{key}', f'{describe(ours)} is not that of network_u.head, '
                                f'{describe(theirs)}; set both')

    def check_cache(self, stage: str) -> None:
        train, where = self.blocks().get('train', {}), 'datasets.train.uncertainty_cache'
        folder = train.get('uncertainty_cache')
        if not isinstance(folder, str):
            return
        cls = lookup('data set', train.get('type'))
        if stage != 'udl':
            self.report.add(where, f'not used in stage {stage}; remove it, or change stage')
        elif cls and not issubclass(cls, PairedImageDataset):
            self.report.add(where, f'needs a PairedImageDataset, whose crops and flips the maps can follow, got '
                            f'{cls.__name__}; remove it')
        elif self.given('rounds') != 1 and folder != AUTO:
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
        total, warmup = train.get('total_iter'), self.given('train', 'warmup_iter')
        add = self.report.add
        if not isinstance(total, int) or total < 1:
            return
        if isinstance(warmup, int) and warmup > total:
            add('train.warmup_iter', f'{warmup} is longer than the training, total_iter: {total}')
        scheduler = block_of(train, 'scheduler')
        for key in ('milestones', 'periods'):
            steps, where = scheduler.get(key), f'train.scheduler.{key}'
            if steps is None or self.report.has(where):
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
        for key in ('optim_g', 'optim_w'):
            if block_of(train, key).get('lr') == 0 and not scheduler.get('eta_min'):
                add(f'train.{key}.lr', '0, with which nothing would be learned; expected number > 0')
        accumulate, batch = self.given('train', 'accumulate'), self.blocks().get('train', {}).get('batch_size_per_gpu')
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
