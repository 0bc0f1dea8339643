"""Trainable loss weights (Mellatshahi and Kasaei, arXiv 2301.10575)."""
import contextlib
from copy import deepcopy
from typing import cast

import torch
from basicsr.archs import build_network
from basicsr.data import build_dataset
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn

from udl_basicsr.losses.tlw_loss import TLWLoss
from udl_basicsr.utils.settings import LoaderSettings

from .step import StepModel

_RELEASED_OPTIM = {'type': 'Adam', 'lr': 1e-4, 'betas': (0.5, 0.999)}


@MODEL_REGISTRY.register()
class TLWModel(StepModel):
    """Trains the mean network ``network_g`` and beside it the network ``network_w`` (TLWNet) that weights its loss.

    YAML: ``network_w``; ``train.tlw_opt`` (TLWLoss), beside which other losses may stand; ``train.optim_w``, by default
    as released: Adam at 1e-4 with betas of 0.5 and 0.999, and ``fused`` where ``optim_g`` of the same type is;
    ``train.scheduler_w``, by default ``train.scheduler``; ``path.pretrain_network_w``. Checkpoints: ``net_g_*`` is the
    mean network alone, ``net_w_*`` the weighting network, which nothing but training needs.

    An iteration is that of algorithm 1: one weight map is drawn and judged, and the weighting network steps; T new ones
    are drawn from what it says now, and the mean network steps. With ``tlw_opt.order: joint`` (ours) one draw of T
    serves both, and both step together. A step that is not finite is left out, and with it the one after.
    ``train.grad_clip`` holds for each network apart, ``train.ema_decay`` is the mean network's alone; batch norm sees
    the images of one process, and of one part with ``train.accumulate``.

    Attributes:
        iters_per_epoch (int | None): What an epoch is, for ``k_unit: epoch``. Our training loop says so;
            under BasicSR's own the images are counted.
        tlw (TLWLoss): The loss of both networks.
        k (float): Mean of the weights in the present iteration.
    """
    iters_per_epoch: int | None = None

    def build_networks(self) -> None:
        super().build_networks()
        if self.is_train:
            self.net_w = build_network(self.opt['network_w'])
            self.trained_w = self.model_to_device(self.net_w)
            self.print_network(self.net_w)

    def load_networks(self) -> None:
        super().load_networks()
        if self.is_train:
            self.load_pretrained(self.net_w, 'w')

    def networks_in_training(self) -> dict[str, nn.Module]:
        return {**super().networks_in_training(), 'w': self.trained_w}

    def init_training_settings(self) -> None:
        super().init_training_settings()
        self.trained_w.train()
        self.tlw = cast(TLWLoss, self.listed.pop('tlw_opt'))  # which has its own place in an iteration
        self.tlw.build_judge()
        self.tlw.to(self.device)

    def setup_optimizers(self) -> None:
        super().setup_optimizers()
        options, optim_g = dict(self.opt['train'].get('optim_w') or _RELEASED_OPTIM), self.opt['train']['optim_g']
        if options['type'] == optim_g['type'] and optim_g.get('fused') and not options.get('foreach'):
            options.setdefault('fused', True)  # one that is not makes the host wait for both
        self.optimizer_w = self.get_optimizer(options.pop('type'), self.trained_w.parameters(), **options)
        self.optimizers.append(self.optimizer_w)

    def setup_schedulers(self) -> None:
        super().setup_schedulers()
        own = self.opt['train'].get('scheduler_w')
        if own:
            # BasicSR's builder makes train.scheduler for all optimisers; here it makes another one for ours.
            shared, optimizers, schedulers = self.opt['train']['scheduler'], self.optimizers, self.schedulers
            self.opt['train']['scheduler'], self.optimizers, self.schedulers = deepcopy(own), [self.optimizer_w], []
            super().setup_schedulers()
            schedulers[-1:] = self.schedulers
            self.opt['train']['scheduler'], self.optimizers, self.schedulers = shared, optimizers, schedulers

    def optimize_parameters(self, current_iter: int) -> None:
        criterion, done = self.tlw, current_iter - 1
        if criterion.k_unit == 'epoch':
            if self.iters_per_epoch is None:
                self.iters_per_epoch = self._count_iters_per_epoch()
            done //= self.iters_per_epoch
        self.k = criterion.k(done)
        super().optimize_parameters(current_iter)

    def _count_iters_per_epoch(self) -> int:
        data = self.opt['datasets']['train']
        images = len(build_dataset(data)) * LoaderSettings.of(data).dataset_enlarge_ratio
        return max(1, int(images // (data['batch_size_per_gpu'] * self.opt['world_size'])))

    def updates(self) -> list:
        if self.tlw.order == 'joint':
            return super().updates()
        return [(self.weighting_losses, ('w', )), (self.weighted_losses, ('g', ))]

    def weighting_losses(self, lq: Tensor, gt: Tensor, **given: Tensor) -> tuple[dict, dict]:
        """Algorithm 1, first half: of the weighting network, from one weight map."""
        if self._is_whole(lq):  # the second half goes on from this output
            pred = self._restore(lq)
        else:  # Kept for all parts, the graphs would take the memory that train.accumulate is there to save.
            with torch.no_grad(), _same_buffers(self.net_g):
                pred = self._restore(lq)
        weighting, _ = self.tlw.weighting_loss(pred, gt, self._weigh(gt, pred))
        return {'l_wc': weighting}, {}

    def weighted_losses(self, lq: Tensor, gt: Tensor, **given: Tensor) -> tuple[dict, dict]:
        """Algorithm 1, second half: of the mean network, from T weight maps of the weighting network as it is now."""
        pred = self.output if self._is_whole(lq) else self._restore(lq)
        with torch.no_grad():
            weight_map = self._weigh(gt, pred)
        weighted, criterion = self.tlw.weighted_loss(pred, gt, weight_map)
        return self._losses(weighted, pred, target=gt, lq=lq, **given), self._figures(criterion, weight_map)

    def compute_losses(self, lq: Tensor, gt: Tensor, **given: Tensor) -> tuple[dict, dict]:
        """Of both networks, from the same T weight maps."""
        pred = self._restore(lq)
        weight_map = self._weigh(gt, pred)
        weighted, weighting, criterion = self.tlw(pred, gt, weight_map)
        losses = self._losses(weighted, pred, target=gt, lq=lq, **given)
        return {'l_wc': weighting, **losses}, self._figures(criterion, weight_map)

    def _is_whole(self, lq: Tensor) -> bool:
        """Whether the batch is computed in one part."""
        return len(lq) == len(self.lq)

    def _restore(self, lq: Tensor) -> Tensor:
        with self.autocast():
            self.output = self.trained(lq)
        return self.output

    def _weigh(self, gt: Tensor, pred: Tensor) -> Tensor:
        # A tensor: torch.compile may compile anew for each number.
        k = gt.new_full((len(gt), 1, 1, 1), self.k)
        with self.autocast():
            return self.trained_w(gt, pred.detach(), k)

    def _losses(self, weighted: Tensor, pred: Tensor, **inputs: Tensor) -> dict:
        return {'l_tlw': weighted, **self.losses(pred, **inputs)}

    def _figures(self, criterion: Tensor, weight_map: Tensor) -> dict:
        return {'wc_mean': criterion.mean(), 'w_mean': weight_map.detach().mean(), 'k': criterion.new_full((), self.k)}

    @staticmethod
    def trained_blocks(opt: dict) -> dict[str, tuple[dict, dict]]:
        optim_w = opt['train'].get('optim_w') or _RELEASED_OPTIM
        return {'g': (opt['network_g'], opt['train']['optim_g']), 'w': (opt['network_w'], optim_w)}

    def networks_to_save(self) -> dict:
        return {**super().networks_to_save(), 'net_w': {'params': self.net_w}}


@contextlib.contextmanager
def _same_buffers(network: nn.Module):
    """Gives the buffers back as they were: batch norm is to take in each image once."""
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    yield
    for buffer, value in before:
        buffer.copy_(value)
