"""What is compared: networks with their batches, levers, and one training step of each kind."""
from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from basicsr.archs import build_network
from basicsr.models import build_model
from basicsr.utils.dist_util import get_dist_info
from torch import Tensor

from udl_basicsr.utils.checkpoints import save_atomic

from .published import LR, PlainHead, PublishedStage2


@contextmanager
def quiet_basicsr():
    """BasicSR prints each network that is built; here there are dozens."""
    logger = logging.getLogger('basicsr')
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@dataclass(frozen=True)
class Settings:
    """The levers of a training step; all off is what stock BasicSR does."""
    channels_last: bool = False
    amp: str | None = None
    fused: bool = False
    compile: bool = False
    fast_head: bool = False

    def __str__(self) -> str:
        on = {self.amp: self.amp, 'channels_last': self.channels_last, 'fused Adam': self.fused,
              'compile': self.compile, 'fast head': self.fast_head}
        return ' + '.join(name for name, value in on.items() if value) or 'plain'


@dataclass(frozen=True)
class Case:
    """A network and the batch it is trained with.

    Attributes:
        network (str): One of ``NETWORKS``.
        batch (int): Patches a step.
        patch (int): Size of an LQ patch.
        scale (int): Of the network.
        width (int | None): ``num_feat`` of the network, where it is not its own.
    """
    network: str = 'EDSR-S'
    batch: int = 16
    patch: int = 48
    scale: int = 4
    width: int | None = None

    @classmethod
    def printed(cls, network: str, batch: int | None = None, patch: int | None = None) -> Case:
        """With the batch and the crop that the papers print, or those that are given."""
        batch_printed, patch_printed = PRINTED.get(network, (16, 48))
        return cls(network, batch or batch_printed, patch or patch_printed)

    def options(self) -> dict:
        """``network_g`` of an option file."""
        block = {**NETWORKS[self.network], 'upscale': self.scale}
        return {**block, 'num_feat': self.width} if self.width else block

    def data(self, device: torch.device) -> dict[str, Tensor]:
        """A batch of noise, with s as a cache would give it."""
        generator = torch.Generator().manual_seed(0)
        size = self.patch * self.scale
        shapes = {'lq': self.patch, 'gt': size, 'log_scale': size}
        data = {key: torch.rand(self.batch, 3, n, n, generator=generator) for key, n in shapes.items()}
        return {key: value.pin_memory() for key, value in data.items()} if device.type == 'cuda' else data

    def __str__(self) -> str:
        return f'{self.network} ×{self.scale}, batch {self.batch} of {self.patch}×{self.patch}'


_RGB = {'num_in_ch': 3, 'num_out_ch': 3}
NETWORKS = {
    'EDSR-S': {'type': 'EDSR', **_RGB, 'num_feat': 64, 'num_block': 16},
    'EDSR': {'type': 'EDSR', **_RGB, 'num_feat': 256, 'num_block': 32, 'res_scale': 0.1},
    'RCAN': {'type': 'RCAN', **_RGB, 'num_feat': 64, 'num_group': 10, 'num_block': 20, 'squeeze_factor': 16},
    'SwinIR': {'type': 'SwinIR', 'img_size': 48, 'window_size': 8, 'embed_dim': 180, 'depths': [6] * 6,
               'num_heads': [6] * 6, 'mlp_ratio': 2, 'upsampler': 'pixelshuffle', 'img_range': 1.},
    'HAT': {'type': 'HAT', 'img_size': 64, 'window_size': 16, 'embed_dim': 180, 'depths': [6] * 6, 'num_heads': [6] * 6,
            'mlp_ratio': 2, 'compress_ratio': 3, 'squeeze_factor': 30, 'upsampler': 'pixelshuffle'},
    'tiny': {'type': 'EDSR', **_RGB, 'num_feat': 8, 'num_block': 1},  # where what is beside the network is looked at
}
# Batch and LQ crop that the network's own paper prints; of the others 16 of 48x48, as UDL (section 4.1) and RCAN print.
PRINTED = {'SwinIR': (32, 48), 'HAT': (32, 64)}


class Trainer:
    """Contenders of one case: each is what a training step of one kind costs, from the batch on the host on.

    Args:
        case (Case): Network and batch.
        device (torch.device): Where to train.
        folder (Path): For the weights of stage 1, which stage 2 starts from.
    """

    def __init__(self, case: Case, device: torch.device, folder: Path):
        self.case, self.device, self.folder = case, device, Path(folder)
        self.block = {'type': 'UncertaintyNet', 'backbone': case.options()}
        torch.manual_seed(0)
        net = build_network(self.block)
        self.weights = net.state_dict()
        self.path = self.folder / ('-'.join(map(str, asdict(case).values())) + '.pth')
        save_atomic({'params': self.weights}, self.path)
        self.data = case.data(device)

    def model(self, kind: str, settings: Settings = Settings()):
        """The model of one kind: ``basicsr``, ``published``, ``l1``, ``esu``, ``udl``."""
        if kind == 'published':
            return PublishedStage2(self.block, self.weights, self.device)
        losses = {
            'udl': {'udl_opt': {'type': 'UDLLoss'}},
            'esu': {'likelihood_opt': {'type': 'ESULoss'}},
        }.get(kind, {'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'}})
        train = {
            'optim_g': {'type': 'Adam', 'lr': LR, **({'fused': True} if settings.fused else {})},
            'scheduler': {'type': 'MultiStepLR', 'milestones': [1000000], 'gamma': 0.5},
            'total_iter': 1000000,
            **losses,
        }
        if kind != 'basicsr':
            train |= {'channels_last': settings.channels_last, 'compile': settings.compile, 'amp': settings.amp}
        opt = {
            'name': kind,
            'model_type': 'SRModel' if kind == 'basicsr' else 'UDLModel',
            'stage': {'l1': 'plain'}.get(kind, kind),
            'network_g': self.block['backbone'],
            'network_u': {'type': 'UncertaintyNet'},
            'path': {'pretrain_network_u': str(self.path)} if kind in ('udl', 'esu') else {},
            'train': train,
            **runtime(self.device, self.case.scale, is_train=True),
        }
        with quiet_basicsr():
            model = build_model(opt)
        model.iters_per_epoch = 1
        if kind in ('udl', 'esu') and not settings.fast_head:
            model.net_u.head = PlainHead(model.net_u.head)
        return model

    def step(self, kind: str, settings: Settings = Settings(), cached: bool = False) -> Callable[[], None]:
        """One step of a model of its own, as a function; ``.model`` is the model."""
        model = self.model(kind, settings)
        data = {key: value for key, value in self.data.items() if cached or key != 'log_scale'}
        if kind == 'published':
            def run():
                model.step(data)
        else:
            def run():
                model.feed_data(data)
                with quiet_basicsr():  # noise has no uncertainty worth a weight: the warnings are right and of no use
                    model.optimize_parameters(1)
        run.model = model
        return run


def runtime(device: torch.device, scale: int, is_train: bool) -> dict:
    """What BasicSR's and our options resolve to on one device, in this process where there are several."""
    rank, world_size = get_dist_info()
    return {'is_train': is_train, 'dist': world_size > 1, 'rank': rank, 'world_size': world_size, 'scale': scale,
            'manual_seed': 0, 'num_gpu': 1 if device.type == 'cuda' else 0, 'logger': {}}


def levers(device: torch.device, with_compile: bool) -> list[Settings]:
    """Each lever alone, and what can be had together, in float32 and in each short type the device knows."""
    alone = [Settings(), Settings(fast_head=True), Settings(channels_last=True), Settings(fused=True),
             Settings(amp='bf16')]
    together = [Settings(channels_last=True, fused=True, fast_head=True)]
    together.append(replace(together[0], amp='bf16'))
    if device.type == 'cuda':
        alone.append(Settings(amp='fp16'))
        together.append(replace(together[0], amp='fp16'))
    if with_compile:
        alone.append(Settings(compile=True))
        together += [replace(settings, compile=True) for settings in together]
    return alone + together
