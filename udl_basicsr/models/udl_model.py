"""The two stages of uncertainty-driven training (Ning et al., NeurIPS 2021, section 3.3)."""
from typing import cast

import torch
from basicsr.archs import build_network
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor

from udl_basicsr.archs import UncertaintyNet
from udl_basicsr.functional.distributions import LaplaceDistribution
from udl_basicsr.functional.losses import floor_share
from udl_basicsr.utils.checkpoints import EMA_FIRST, CheckpointError
from udl_basicsr.utils.kernels import exact_kernels
from udl_basicsr.utils.settings import RunSettings

from .stage_table import STAGES, detach_of, trains_head_alone
from .step import StepModel


@MODEL_REGISTRY.register()
class UDLModel(StepModel):
    """Which stage is trained is the top-level key ``stage``:

    - ``esu``: the mean network and its uncertainty head together, as one UncertaintyNet, with a likelihood loss
      ``train.likelihood_opt`` (EULoss, ESULoss, GRAMLoss, ...). Its option ``detach: all`` keeps the likelihood away
      from the mean network. With another loss for the image, ``train.pixel_opt``, that is trained bit for bit as in
      stage ``plain`` (*faithful*); ``train.udl_opt`` weights the image's error with the s that is being learned. With
      no other loss the mean network is frozen and the head is trained alone (*post hoc*), on the EMA's weights where
      the file has them, as in a test.
    - ``udl``: the bare mean network, with ``train.udl_opt`` (UDLLoss); the uncertainty comes from the frozen
      UncertaintyNet of ``path.pretrain_network_u``.
    - ``sigma``: the mean network with ordinary losses (ExpectedL1Loss), and beside it a sigma branch that shares its
      features, with ``train.sigma_opt`` (SigmaLoss; Revisiting l1, eq. 10). A ``sigma_opt`` that trains the image too
      (``SigmaLoss(detach=False)``, TrainedExpectedL1Loss) may stand alone.
    - ``plain``: the bare mean network with ordinary losses; the baseline in the same frame.

    Other losses (``train.pixel_opt``, ...) stand beside these in every stage. Checkpoints: ``net_g_*`` is the mean
    network alone; ``net_u_*`` of stages ``esu`` and ``sigma`` is the whole UncertaintyNet.

    Attributes:
        net_u (UncertaintyNet | None): Bare; trained in stages ``esu`` and ``sigma``, else frozen.
    """

    def build_networks(self) -> None:
        if self.is_train and self.device.type == 'cpu':
            # The slope of ELU is exp(x), and x is in the hundreds below 0 when a head begins to read features in 0-255
            # units: numbers below 1e-38, which took a step of stage 1 ten times as long. In all stages, so that a run
            # does not depend on what was trained before it in the same process.
            torch.set_flush_denormal(True)
        self.stage = STAGES[self.opt.get('stage', RunSettings.stage)]
        self.trains_u = self.stage.trains == 'u'
        self.net_u = None
        stage, train = self.opt.get('stage', RunSettings.stage), self.opt.get('train')
        self.detach = detach_of(stage, train)
        self.head_alone = self.is_train and trains_head_alone(stage, train)
        if self.opt.get('network_u') and ('network_u' in self.stage.networks or not self.is_train):
            self.net_u = build_network(
                _network_u(self.opt['network_g'], self.opt['network_u'], stage, train))
        if self.trains_u and self.is_train:
            assert self.net_u is not None  # such a stage has the block network_u
            self.net_g = self.net_u.mean_network
            self.trained = self.model_to_device(self.net_u)
            self.print_network(self.net_u)
            return
        super().build_networks()
        if self.net_u is not None:
            # Never in DDP, never in an optimiser, always in eval mode: it is a constant of the loss.
            self.net_u.to(self.device, memory_format=self.memory_format).eval().requires_grad_(False)

    def load_networks(self) -> None:
        path = self.opt['path'].get('pretrain_network_u')
        if self.net_u is not None and path is not None:
            self.load_pretrained(self.net_u, 'u')
        elif 'network_u' in self.stage.networks and not self.trains_u and self.is_train:
            raise CheckpointError("path.pretrain_network_u: stage 'udl' needs the net_u_*.pth of a stage-1 run; "
                                  "give it, or name that run's YAML as stage1")
        elif not self.is_train:
            self.net_u = None  # an untrained head has nothing to show
        # After net_u: where that is trained, the mean network is a part of it, and the one that is named wins.
        as_in_a_test = self.head_alone and 'param_key_g' not in self.opt['path']
        self.load_pretrained(self.net_g, 'g', EMA_FIRST if as_in_a_test else None)

    def init_training_settings(self) -> None:
        super().init_training_settings()
        if self.head_alone and self.ema_decay > 0:
            self.net_g_ema.load_state_dict(self.net_g.state_dict())
        if self.stage.loss:  # the first of the sum
            self.listed = {self.stage.loss: self.criteria[self.stage.loss], **self.criteria}

    def clipped_apart(self, label: str) -> dict[str, list[Tensor]]:
        if self.detach != 'all':
            return super().clipped_apart(label)
        # In one norm the head would shorten the steps of a mean network that is to know nothing of it.
        assert self.net_u is not None
        head = {'grad_norm_u': list(self.net_u.head.parameters())}
        return head if self.head_alone else {'grad_norm': list(self.net_g.parameters()), **head}

    def model_ema(self, decay: float = 0.999) -> None:
        if not self.head_alone:  # the average of what does not move would differ from it by rounding
            super().model_ema(decay)

    def compute_losses(self, lq: Tensor, gt: Tensor, **given: Tensor) -> tuple[dict, dict]:
        gives, own = self.stage.gives, {}
        if gives is None:
            return super().compute_losses(lq, gt, **given)
        net_u = cast(UncertaintyNet, self.net_u)  # of such a stage, but where s is cached
        with self.autocast():
            if self.trains_u:
                self.output, raw = self.trained(lq)
                uncertainty = net_u.distribution.log_scale(raw) if gives == 'log_scale' else raw
                own = {self.stage.loss: {gives: raw}}  # all that the head says; the others get s
            else:
                # First, so that what it needs is given back before the trained network keeps its own for the backward.
                with torch.no_grad():
                    uncertainty = given[gives] if gives in given else net_u.log_scale(lq)
                self.output = self.trained(lq)
        losses = self.losses(self.output, own, **{**given, 'target': gt, 'lq': lq, gives: uncertainty})
        uncertainty = uncertainty.detach().float()
        figures = {self.stage.figure: uncertainty.mean()}
        if gives == 'log_scale':
            kind = net_u.distribution if net_u is not None else LaplaceDistribution()
            figures['s_floor'] = floor_share(uncertainty, kind.floor)
        return losses, figures

    @exact_kernels()
    def log_scale(self, lq: Tensor) -> Tensor | None:
        if self.net_u is None:
            return None
        was_training = self.net_u.training
        self.net_u.eval()
        log_scale = self.restoring(self.net_u.log_scale)(lq)
        self.net_u.train(was_training)
        return log_scale

    @property
    def density(self) -> str:
        return super().density if self.net_u is None else self.net_u.distribution.name

    @staticmethod
    def trained_blocks(opt: dict) -> dict[str, tuple[dict, dict]]:
        label, block = 'g', opt['network_g']
        if STAGES[opt.get('stage', RunSettings.stage)].trains == 'u':
            label, block = 'u', _network_u(block, opt['network_u'], opt['stage'], opt['train'])
        return {label: (block, opt['train']['optim_g'])}

    def networks_to_save(self) -> dict:
        # net_g last: that it is there tells that a stage has ended, and the disk may be full before
        networks_u = {'net_u': {'params': self.net_u}} if self.trains_u else {}
        return {**networks_u, **super().networks_to_save()}


def _network_u(network_g: dict, network_u: dict, stage: str, train: dict | None) -> dict:
    """The block of the UncertaintyNet, with what the losses leave of it to be trained."""
    block, detach = {'backbone': network_g, **network_u}, detach_of(stage, train)
    return block if detach == 'none' else {**block, 'detach': detach, 'freeze': trains_head_alone(stage, train)}
