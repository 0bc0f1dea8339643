"""Trainable loss weights (Mellatshahi and Kasaei, arXiv 2301.10575)."""
from copy import deepcopy

from basicsr.archs import build_network
from basicsr.data import build_dataset
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn

from .step import StepModel


@MODEL_REGISTRY.register()
class TLWModel(StepModel):
    """Trains the mean network ``network_g`` and beside it the network ``network_w`` (TLWNet) that weights its loss.

    YAML: ``network_w``; ``train.tlw_opt`` (TLWLoss), beside which other losses may stand; ``train.optim_w``, by default
    Adam at 1e-4; ``train.scheduler_w``, by default ``train.scheduler``; ``path.pretrain_network_w``. Checkpoints:
    ``net_g_*`` is the mean network alone, ``net_w_*`` the weighting network, which nothing but training needs.

    An iteration is one of the paper's algorithm 1: weight maps are drawn and judged once (expectation), and both
    networks take a step on them (maximisation). ``train.grad_clip`` holds for each network apart, ``train.ema_decay``
    is the mean network's alone; batch norm sees the images of one process, and of one part with ``train.accumulate``.

    Attributes:
        iters_per_epoch (int | None): What an epoch is, for ``k_unit: epoch``. Our training loop says so;
            under BasicSR's own the images are counted.
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
        self.criteria['tlw_opt'].build_judge()
        self.criteria['tlw_opt'].to(self.device)

    def setup_optimizers(self) -> None:
        super().setup_optimizers()
        options = dict(self.opt['train'].get('optim_w') or {'type': 'Adam', 'lr': 1e-4})
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
        criterion, done = self.criteria['tlw_opt'], current_iter - 1
        if criterion.k_unit == 'epoch':
            if self.iters_per_epoch is None:
                self.iters_per_epoch = self._count_iters_per_epoch()
            done //= self.iters_per_epoch
        self.k = criterion.k(done)
        super().optimize_parameters(current_iter)

    def _count_iters_per_epoch(self) -> int:
        data = self.opt['datasets']['train']
        images = len(build_dataset(data)) * data.get('dataset_enlarge_ratio', 1)
        return max(1, int(images // (data['batch_size_per_gpu'] * self.opt['world_size'])))

    def compute_losses(self, lq: Tensor, gt: Tensor) -> tuple[dict, dict]:
        # A tensor: torch.compile may compile anew for each number.
        k = gt.new_full((len(gt), 1, 1, 1), self.k)
        with self.autocast():
            self.output = self.trained(lq)
            weight_map = self.trained_w(gt, self.output.detach(), k)
        weighted, weighting, criterion = self.criteria['tlw_opt'](self.output, gt, weight_map)
        losses = {'l_tlw': weighted, 'l_wc': weighting,
                  **self.listed_losses(self.output, gt, lq, skip=('tlw_opt', ))}
        return losses, {'wc_mean': criterion.mean(), 'w_mean': weight_map.detach().mean(), 'k': k.mean()}

    def networks_to_save(self) -> dict:
        return {**super().networks_to_save(), 'net_w': {'params': self.net_w}}
