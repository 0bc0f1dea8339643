"""What every model shares: one optimisation step and its checkpoints. Models say only which losses they compute.

Built on BasicSR's SRModel, whose faults are mended where they are (file:line of BasicSR 1.4.2), so that BasicSR's own
``train_pipeline`` can drive these models as well as ours.
"""
import contextlib
import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, cast

import torch
import torch.distributed as dist
from basicsr.archs import build_network
from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from udl_basicsr.archs import UncertaintyNet
from udl_basicsr.functional.channels_last import FastGradients
from udl_basicsr.functional.losses import at_least_float32
from udl_basicsr.losses.base import inputs_of
from udl_basicsr.utils import processor
from udl_basicsr.utils.checkpoints import EMA_FIRST, ParamKey, load_network
from udl_basicsr.utils.settings import RunSettings, TrainSettings, strict_load
from udl_basicsr.utils.shipped_weights import shown_weights
from udl_basicsr.utils.text import some

from .guard import StepGuard, clip_grad_norm, leaves_out_by_itself, starts_from_anything
from .loss_blocks import build_loss, losses_of
from .saving import SavedModel

_AMP_DTYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16}


class StepModel(SavedModel):
    """Trains one network with the losses that the YAML lists (``train.<x>_opt``).

    YAML keys beyond BasicSR's, all off unless given: ``train.accumulate`` (the batch is computed in that many parts:
    the same gradient, less memory), ``train.grad_clip`` (largest norm of the gradient), ``train.amp`` (``bf16`` or
    ``fp16``; losses stay in float32), ``train.channels_last``, ``train.compile``, ``train.skip_nonfinite`` (so many
    steps in a row may be left out because a loss or gradient is not finite), ``logger.keep_last``.

    Attributes:
        settings (TrainSettings): What the block ``train`` says, but for losses, optimisers and schedules.
        entries (dict[str, str | None]): Which entry of its file each network has, by its label.
        trained (nn.Module): What the step runs and the optimiser owns, wrapped for several devices.
        criteria (dict[str, nn.Module]): The losses by their option blocks.
        listed (dict[str, nn.Module]): Those that :meth:`losses` calls, in the order in which they are summed.
        inputs (set[str]): What is taken of a batch beside ``lq`` and ``gt``, since a loss needs it.
        asked_to_stop (Callable): Whether this process was; asked in every step, for all ranks to agree on.
    """
    asked_to_stop: Callable[[], bool] = staticmethod(lambda: False)

    def __init__(self, opt):
        # A copy: BasicSR pops keys out of the options (sr_model.py:113, base_model.py:114), which are not ours.
        BaseModel.__init__(self, deepcopy(opt))
        self.settings = TrainSettings.of(self.opt.get('train'))
        self.amp_dtype = _AMP_DTYPES.get(self.settings.amp or '')
        processor.warn_where_emulated(self.settings.amp, self.device)
        self.memory_format = torch.channels_last if self.settings.channels_last else torch.contiguous_format
        self.scores = {}
        self.inputs, self.entries = set(), {}
        self.build_networks()
        self.load_networks()
        if self.is_train:
            self.init_training_settings()

    # ------------------------------------------------------------------ for subclasses

    def build_networks(self) -> None:
        """Sets ``net_g`` and ``trained``."""
        self.net_g = build_network(self.opt['network_g'])
        self.trained = self.model_to_device(self.net_g)
        self.print_network(self.net_g)

    def load_networks(self) -> None:
        """Loads what ``path.pretrain_network_*`` names."""
        self.load_pretrained(self.net_g, 'g')

    def compute_losses(self, lq: Tensor, gt: Tensor, **given: Tensor) -> tuple[dict, dict]:
        """One forward of ``trained``.

        Args:
            lq (Tensor): (N, C, h, w), in [0, 1].
            gt (Tensor): (N, C, H, W), in [0, 1].
            given (Tensor): What the batch holds beside these and a loss needs: ``log_scale`` (N, C, H, W), where s is
                cached.

        Returns:
            tuple: The losses, ``{name: scalar with gradient}``, of which the sum is minimised; and figures for the log.
        """
        with self.autocast():
            self.output = self.trained(lq)
        return self.losses(self.output, target=gt, lq=lq, **given), {}

    def updates(self) -> list[tuple[Callable[..., tuple[dict, dict]], tuple[str, ...]]]:
        """The parts of an iteration, in order: what computes losses, and the labels of the networks that step on them.

        Each is a backward pass and a step of its own; the next sees networks that have stepped. The losses of one must
        reach the networks of that one alone. The functions are called as :meth:`compute_losses` is.
        """
        return [(self.compute_losses, tuple(self.networks_in_training()))]

    def networks_in_training(self) -> dict[str, nn.Module]:
        """``{label: network}``, wrapped as they run, in the order of ``optimizers``: each has one of its own."""
        return {'g': self.trained}

    def clipped_apart(self, label: str) -> dict[str, list[Tensor]]:
        """The parameters of a network in training, in groups with a norm of the gradient each, by its log name."""
        return {f'grad_norm_{label}'.removesuffix('_g'): [*self.networks_in_training()[label].parameters()]}

    @staticmethod
    def trained_blocks(opt: dict) -> dict[str, tuple[dict, dict]]:
        """``{label: (block of the network, block of its optimiser)}`` in the order of ``optimizers``, from runtime
        options alone: what a training state must fit before anything is built."""
        return {'g': (opt['network_g'], opt['train']['optim_g'])}

    def networks_to_save(self) -> dict:
        """``{label: {param_key: network}}`` for ``<label>_<iter>.pth``."""
        ema = {'params_ema': self.net_g_ema} if self.ema_decay > 0 else {}
        return {'net_g': {'params': self.net_g, **ema}}

    # ------------------------------------------------------------------ set-up

    def load_pretrained(self, network: nn.Module, label: str, param_key: ParamKey = None) -> None:
        """Loads ``path.pretrain_network_<label>`` if given, strictly unless ``path.strict_load_<label>`` is false.

        Where no entry of the file is named, a test takes the EMA's if there is one, as validation does in training.
        """
        path_opt = self.opt['path']
        path = path_opt.get(f'pretrain_network_{label}')
        if path is None or path in path_opt.get('promised', ()):  # by a stage before, which is still to be trained
            return
        param_key = param_key or path_opt.get(f'param_key_{label}', 'params' if self.is_train else EMA_FIRST)
        entry = load_network(network, path, param_key, strict_load(path_opt, label))
        self.entries[label] = entry
        get_root_logger().info(f'Loaded {type(network).__name__} from {shown_weights(path)} [{entry}].')

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """To the device, compiled and wrapped as asked for. BasicSR's (base_model.py:98) needs a GPU for DDP."""
        net = net.to(self.device).to(memory_format=self.memory_format)
        if not self.is_train:
            return net
        if self.settings.compile:
            net = cast(nn.Module, torch.compile(net.keep_hook() if isinstance(net, UncertaintyNet) else net))
        if self.opt['dist']:
            device_ids = [torch.cuda.current_device()] if self.device.type == 'cuda' else None
            unused = self.opt.get('find_unused_parameters', RunSettings.find_unused_parameters)
            return DistributedDataParallel(net, device_ids=device_ids, find_unused_parameters=unused)
        # Not torch's default, all GPUs that there are.
        return DataParallel(net, range(self.opt['num_gpu'])) if self.opt['num_gpu'] > 1 else net

    def init_training_settings(self) -> None:
        train_opt = self.opt['train']
        self.trained.train()
        self.accumulate, self.ema_decay = self.settings.accumulate, self.settings.ema_decay
        self.grad_clip, self.skip_nonfinite = self.settings.grad_clip, self.settings.skip_nonfinite
        self.skipped, self.skipped_in_a_row = 0, 0
        self.run = {}  # what the loop wants to find again in a training state
        fast = FastGradients(torch.backends.cpu.get_cpu_capability(), processor.has_tiles())
        pays = fast.pays and self.device.type == 'cpu' and not self.settings.compile
        self.fast_gradients = fast if pays else contextlib.nullcontext()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.settings.amp == 'fp16')
        if self.ema_decay > 0:
            self.net_g_ema = build_network(self.opt['network_g']).to(self.device, memory_format=self.memory_format)
            self.net_g_ema.load_state_dict(self.net_g.state_dict())
            self.net_g_ema.eval().requires_grad_(False)
            self.load_pretrained(self.net_g_ema, 'g', (EMA_FIRST[0], self.entries.get('g')))
        self.criteria = {
            key: build_loss(key, block).to(self.device)
            for key, block in train_opt.items() if key.endswith('_opt') and block
        }
        self.listed = dict(self.criteria)
        self.inputs = {name for criterion in self.criteria.values() for name in inputs_of(criterion)} - {'target', 'lq'}
        for key, criterion in self.criteria.items():
            reduction = getattr(criterion, 'reduction', 'mean')
            if reduction == 'none' or (reduction == 'sum' and self.accumulate > 1):
                raise ValueError(f"train.{key}.reduction: expected 'mean', got {reduction!r}: training needs a number, "
                                 'and with train.accumulate one that does not depend on the number of parts')
            for option, value, other in (('min_over', 'batch', 'image'), ('mean_over', 'batch', 'image'),
                                         ('criterion_type', 'fro', 'l1')):  # the last of BasicSR's PerceptualLoss
                if self.accumulate > 1 and getattr(criterion, option, None) == value:
                    raise ValueError(f"train.{key}.{option.removesuffix('_type')}: expected {other!r}, got {value!r}: "
                                     'with train.accumulate it would be over a part of the batch')
            if untrained := [name for name, p in criterion.named_parameters() if p.requires_grad]:
                get_root_logger().warning(
                    f'train.{key}: {type(criterion).__name__} has parameters that no optimiser trains, since it is a '
                    f'loss: {some(untrained)}. They stay what they are; if they are to, requires_grad_(False)')
        self.setup_optimizers()
        self.setup_schedulers()
        late = self.device.type == 'cuda'  # on a CPU nothing waits
        self.guard = StepGuard(self.device, self.opt['world_size'] if self.opt['dist'] else 1, self.skip_nonfinite,
                               late and all(map(leaves_out_by_itself, self.optimizers)))

    def get_optimizer(self, optim_type: str, params, lr: float, **kwargs) -> torch.optim.Optimizer:
        """Any optimiser of torch.optim by its name."""
        optimizer = getattr(torch.optim, optim_type, None)
        if not (inspect.isclass(optimizer) and issubclass(optimizer, torch.optim.Optimizer)):
            raise ValueError(f'train.optim_g.type: torch.optim has no optimiser {optim_type!r}')
        made = optimizer(params, lr, **kwargs)  # pyright: ignore[reportArgumentType] - each takes a rate
        if starts_from_anything(made):
            made._step_supports_amp_scaling = False  # pyright: ignore[reportAttributeAccessIssue] - the host decides
        return made

    def setup_optimizers(self) -> None:
        options = dict(self.opt['train']['optim_g'])
        params = [p for p in self.trained.parameters() if p.requires_grad]
        self.optimizer_g = self.get_optimizer(options.pop('type'), params, **options)
        self.optimizers.append(self.optimizer_g)

    # ------------------------------------------------------------------ the step

    def autocast(self):
        return torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None)

    def feed_data(self, data: dict) -> None:
        self.lq = data['lq'].to(self.device, memory_format=self.memory_format, non_blocking=True)
        self.gt = data['gt'].to(self.device, non_blocking=True) if 'gt' in data else None
        self.given = {key: data[key].to(self.device, non_blocking=True) for key in self.inputs if key in data}
        self.images = data.get('lq_path', ())

    def losses(self, pred: Tensor, own: dict[Any, dict] | None = None, /, **inputs: Tensor) -> dict:
        """The losses of :attr:`listed` by their log names, in float32 outside of autocast.

        Args:
            pred (Tensor): What the trained network made of ``lq``.
            own (dict): What a single loss gets in the place of these inputs, by its option block.
            inputs (Tensor): All that losses may need, by name: ``target``, ``lq``, what the batch holds beside these,
                and what the model has computed.
        """
        losses = {}
        with torch.autocast(self.device.type, enabled=False):
            pred, inputs = pred.float(), _in_float32(inputs)
            for key, criterion in self.listed.items():
                losses.update(losses_of(key, criterion, pred, inputs | _in_float32((own or {}).get(key, {}))))
        return losses

    def optimize_parameters(self, current_iter: int) -> None:
        """One iteration: for each of :meth:`updates` forward and backward in ``accumulate`` parts, clip, step; EMA.

        An update that is not finite is left out, and with it those that would have followed.

        Raises:
            FloatingPointError: A loss or gradient is not finite, on any rank, and no more steps may be skipped. The
                networks of that update and of those after it are as they were before. On a GPU it may be the update
                of the iteration before (see :class:`StepGuard`); then this one was left out as well.
        """
        networks = self.networks_in_training()
        optimizers = dict(zip(networks, self.optimizers, strict=True))
        # Batch norm takes in what it sees even where no step follows.
        buffers = [(b, b.clone()) for n in networks.values() for b in n.buffers()] if self.skip_nonfinite else []
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self._log, minimised = {}, {}
        self.guard.begin()
        for compute_losses, labels in self.updates():
            losses, norms = self._backward(compute_losses), {}
            for label in labels:
                self.scaler.unscale_(optimizers[label])
                for name, parameters in self.clipped_apart(label).items():
                    norms[name] = clip_grad_norm(parameters, self.grad_clip)
            self._log |= norms
            minimised |= {**losses, **norms}
            if self.guard.refuses(self._finite(losses, norms), self.asked_to_stop()):
                for buffer, before in buffers:
                    buffer.copy_(before)
                self._leave_out(current_iter, minimised, self.images)
                if self.scaler.is_enabled():
                    self.scaler.update(self.scaler.get_scale())  # NaN says nothing about the scale
                break
            for label in labels:
                self.guard.step(optimizers[label], self.scaler)
        else:
            self.guard.update(self.scaler)
            if self.guard.late:
                for buffer, before in buffers:
                    buffer.copy_(torch.where(self.guard.left_out > 0, before, buffer))
            if self.ema_decay > 0:  # which takes the buffers
                self.model_ema(self.ema_decay)
            if not self.guard.late:
                self.skipped_in_a_row = 0
                return
            self._read_late()  # of the iteration before, now that this one is on its way
            self.guard.end((current_iter, minimised, self.images))

    def _read_late(self) -> None:
        """Reports the iteration of which the host has not read yet whether it was left out."""
        left_out, note = self.guard.read()
        if left_out:
            self._leave_out(*note)
        elif note is not None:
            self.skipped_in_a_row = 0

    def _backward(self, compute_losses: Callable[..., tuple[dict, dict]]) -> dict[str, Tensor]:
        """The gradient of the batch's losses, part by part; notes losses and figures for the log.

        Returns:
            dict: The losses of the batch.
        """
        means: dict[str, Tensor] = {}
        batch = len(self.lq)
        assert self.gt is not None  # of a training set
        parts = list(zip(self.lq.chunk(self.accumulate), self.gt.chunk(self.accumulate), strict=True))
        given = {key: value.chunk(self.accumulate) for key, value in self.given.items()}
        for number, (lq, gt) in enumerate(parts, 1):
            with contextlib.ExitStack() as waiting:
                for network in self.networks_in_training().values():
                    if isinstance(network, DistributedDataParallel) and number < len(parts):
                        waiting.enter_context(network.no_sync())
                waiting.enter_context(self.fast_gradients)
                losses, figures = compute_losses(lq, gt, **{key: part[number - 1] for key, part in given.items()})
                share = len(lq) / batch
                self.scaler.scale(functools.reduce(torch.add, losses.values()) * share).backward()
            for name, value in {**losses, **figures}.items():
                means[name] = means.get(name, 0) + value.detach() * share
        self._log |= means
        return {name: means[name] for name in losses}

    def _finite(self, losses: dict[str, Tensor], norms: dict[str, Tensor]) -> Tensor:
        """Whether losses and gradients are finite on this rank, on the device."""
        finite, norms_too = (torch.stack([value.float() for value in values.values()]).isfinite().all()
                             for values in (losses, norms))
        if self.scaler.is_enabled():
            # One in search of its scale skips steps with infinite gradients itself. At 1 nothing is scaled.
            norms_too = norms_too | (self.scaler.scale(torch.ones((), device=self.device)) > 1)
        return finite & norms_too

    def _leave_out(self, iteration: int, minimised: dict[str, Tensor], images: Sequence[str]) -> None:
        """Reports a step that was not finite; raises where no more may be left out. Called by all ranks together."""
        self.skipped += 1
        self.skipped_in_a_row += 1
        terms = ', '.join(f'{name} {float(value):.4g}' for name, value in minimised.items())
        part = f'{terms}; images {", ".join(map(str, images)) or "unknown"}'
        parts = [part]
        if self.opt['dist']:
            parts = [None] * self.opt['world_size']
            dist.all_gather_object(parts, part)
            parts = [f'rank {rank}: {text}' for rank, text in enumerate(parts)]
        report = f'iteration {iteration}: a loss or gradient is not finite. ' + '. '.join(parts)
        if self.skipped_in_a_row > self.skip_nonfinite:
            row = f', {self.skipped_in_a_row} times in a row' if self.skip_nonfinite else ''
            raise FloatingPointError(
                f'{report}. Stopped{row}; the networks are no worse for it, and checkpoints are kept. Look at these '
                'images, lower train.optim_g.lr, set train.grad_clip, use amp: bf16 in place of fp16, or let some '
                'steps be left out by train.skip_nonfinite')
        row = f'{self.skipped_in_a_row} of {self.skip_nonfinite} in a row'
        get_root_logger().warning(f'{report}. Step left out ({row})')

    @torch.no_grad()
    def model_ema(self, decay: float = 0.999) -> None:
        """BasicSR's EMA (base_model.py:75), all parameters at once, with the buffers, which it leaves out."""
        averages, own = list(self.net_g_ema.parameters()), list(self.net_g.parameters())
        if self.guard.late:  # only the device knows whether there was a step
            share = (1 - decay) * (1 - self.guard.left_out)
            torch._foreach_mul_(averages, 1 - share)  # pyright: ignore[reportPrivateImportUsage] - as torch.optim does
            torch._foreach_add_(averages, torch._foreach_mul(own, share))  # pyright: ignore[reportPrivateImportUsage]
        else:
            torch._foreach_mul_(averages, decay)  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_add_(averages, own, alpha=1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        for ema, own in zip(self.net_g_ema.buffers(), self.net_g.buffers(), strict=True):
            ema.copy_(own)

    def get_current_log(self) -> dict:
        """The figures of the last step, averaged over the ranks; of one that was left out not all are finite.

        Read back here only: it costs a synchronisation.
        """
        self._read_late()
        log = {**self._log, **({'skipped': self.skipped} if self.skipped else {})}
        values = torch.stack([torch.as_tensor(v, dtype=torch.float32, device=self.device) for v in log.values()])
        if self.opt['dist']:
            dist.all_reduce(values)
            values /= self.opt['world_size']
        return OrderedDict(zip(log, values.tolist(), strict=True))

    def resume_training(self, resume_state: dict) -> None:
        super().resume_training(resume_state)
        self.guard.resume(self.skipped_in_a_row)

    def save(self, epoch: int, current_iter: int) -> None:
        self._read_late()  # an iteration that must end the run is not saved
        super().save(epoch, current_iter)


def _in_float32(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """What autocast has made of half precision; losses that are not ours need not know of it."""
    return {name: at_least_float32(value) for name, value in values.items()}
