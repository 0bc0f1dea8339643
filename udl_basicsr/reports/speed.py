"""What training, validation and reading cost against stock BasicSR and the published code, measured side by side.

Everything that is compared runs in the same process, in turn, round by round, so that whatever else the machine does
falls on all alike. A ratio is taken within a round; its median and quartiles over the rounds are what is reported.
"""
from __future__ import annotations

import gc
import json
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import basicsr
import cv2
import numpy as np
import torch
from basicsr.archs import build_network
from basicsr.models import build_model
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader
from tqdm import tqdm

from udl_basicsr.archs import UDLHead, UncertaintyNet
from udl_basicsr.data.loader import build_dataset, train_batches
from udl_basicsr.utils.checkpoints import save_atomic
from udl_basicsr.utils.files import write_text
from udl_basicsr.utils.tables import text_table

# What the issue of speed is measured by: figure → what it must reach, and whether more or less is better.
GOALS = {
    'published_over_ours': (6, '≥'),  # on a CPU with AMX; 4 on a GPU
    'stage2_over_l1': (1.35, '≤'),
    'stage2_cached_over_l1': (1.05, '≤'),
    'stage1_over_l1': (1.5, '≤'),
    'memory_published_over_ours': (2, '≥'),
    'validation_basicsr_over_ours': (2, '≥'),
}
# Figure → the two contenders whose ratio it is.
FIGURES = {
    'published_over_ours': ('published', 'udl'),
    'published_over_ours_cached': ('published', 'udl_cached'),
    'published_over_ours_float32': ('published', 'udl_float32'),
    'stage2_over_l1': ('udl', 'l1'),
    'stage2_cached_over_l1': ('udl_cached', 'l1'),
    'stage1_over_l1': ('esu', 'l1'),
    'stage2_over_l1_float32': ('udl_float32', 'l1_float32'),
    'stage1_over_l1_float32': ('esu_float32', 'l1_float32'),
    'basicsr_l1_over_ours': ('basicsr', 'l1'),
}
LR = 1e-4
_MIN_ROUNDS = 3


class SpeedError(ValueError):
    """Something that cannot be measured; the message says what to change."""


# ----------------------------------------------------------------------------------------------------------- arithmetic


@contextmanager
def _quiet_basicsr():
    """BasicSR prints each network that is built; here there are dozens."""
    logger = logging.getLogger('basicsr')
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def now() -> float:
    """Seconds, once the accelerator has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


CLOCKS = {'wall': now, 'processor': time.process_time}


def paired(contenders: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2, seconds: float = float('inf'),
           title: str = '', clock: Callable[[], float] = now) -> dict[str, list[float]]:
    """Times contenders in turn. Each round begins with another one, and every other round goes backwards.

    Args:
        contenders (Mapping): Name to what is timed.
        rounds (int): How many, 1 or more.
        warmup (int): Rounds before these, not timed.
        seconds (float): No round is begun after so long, once there are three. The warm-up counts.
        title (str): Of the progress bar on stderr; none where it is empty.
        clock (Callable): Seconds.

    Returns:
        dict: Name to the seconds in each round; all lists are equally long.
    """
    names, samples, begin = list(contenders), {name: [] for name in contenders}, clock()
    bar = tqdm(range(-warmup, rounds), title, unit='round', disable=not title, dynamic_ncols=True)
    for number in bar:
        if number >= _MIN_ROUNDS and clock() - begin > seconds:
            break
        first = number % len(names)
        order = names[first:] + names[:first]
        for name in order if number % 2 == 0 else reversed(order):
            started = clock()
            contenders[name]()
            if number >= 0:
                samples[name].append(clock() - started)
    bar.close()
    return samples


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(numerator, denominator, strict=True)]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile, by linear interpolation; of one value three times it."""
    if len(values) == 1:
        return (values[0], ) * 3
    return tuple(statistics.quantiles(values, n=4, method='inclusive'))


def figure(values: Sequence[float]) -> dict:
    """``{median, low, high, samples}`` of raw values."""
    low, median, high = quartiles(values)
    return {'median': median, 'low': low, 'high': high, 'samples': list(values)}


# ------------------------------------------------------------------------------------------------ the published stage 2


class PlainHead(nn.Module):
    """A UDLHead's layers computed as the paper draws them: upsample to the image's size, then three convolutions.

    Args:
        head (UDLHead): Its convolutions are shared, not copied.
    """

    def __init__(self, head: UDLHead):
        super().__init__()
        self.scale, self.conv1, self.conv2, self.conv3 = head.scale, head.conv1, head.conv2, head.conv3

    def forward(self, features: Tensor) -> Tensor:
        if self.scale > 1:
            features = F.interpolate(features, scale_factor=self.scale, mode='nearest')
        for conv in (self.conv1, self.conv2, self.conv3):
            features = F.elu(conv(features))
        return features


class TwoBranches(nn.Module):
    """A network as the UDL authors published it: image and uncertainty are both computed on every forward.

    Args:
        net (UncertaintyNet): Its modules are shared, not copied.
    """

    def __init__(self, net: UncertaintyNet):
        super().__init__()
        self.mean_network, self.var_conv = net.mean_network, PlainHead(net.head)
        self._tapped = None
        net.mean_network.get_submodule(net.tap).register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, args: tuple) -> None:
        self._tapped = args[0]

    def forward(self, lq: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.mean_network(lq)
        features, self._tapped = self._tapped, None
        return mean, self.var_conv(features)[..., :mean.shape[-2], :mean.shape[-1]]


class PublishedStage2:
    """Stage 2 as the UDL authors published it (github.com/QianNing0/UDL, edsr_two.py and trainer.py), in float32.

    Two whole networks: the frozen one computes its image for nothing, the trained one its uncertainty, whose
    activations are kept for a backward that never comes. Weight s - min s + 1, the minimum per image and channel. Every
    step reads the loss back, as theirs does to decide whether to skip it.

    Args:
        block (dict): Options of the UncertaintyNet.
        weights (dict): Its ``state_dict``, of stage 1.
        device (torch.device): Where to train.
    """

    def __init__(self, block: dict, weights: dict, device: torch.device):
        nets = [build_network(block) for _ in range(2)]
        for net in nets:
            net.load_state_dict(weights)
        self.device = device
        self.frozen, self.trained = (TwoBranches(net).to(device).train() for net in nets)
        self.optimizer_g = torch.optim.Adam([*self.frozen.parameters(), *self.trained.parameters()], LR)

    def step(self, data: Mapping[str, Tensor]) -> float:
        """One step on ``lq`` (N, C, h, w) and ``gt`` (N, C, H, W); returns the loss."""
        lq, gt = data['lq'].to(self.device), data['gt'].to(self.device)
        self.optimizer_g.zero_grad()
        with torch.no_grad():
            log_scale = self.frozen(lq)[1]
        mean = self.trained(lq)[0]
        weight = log_scale - log_scale.amin((-2, -1), keepdim=True) + 1
        loss = F.l1_loss(mean * weight, gt * weight)
        value = loss.item()
        loss.backward()
        self.optimizer_g.step()
        return value


# ------------------------------------------------------------------------------------------------------- the contenders


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

    def options(self) -> dict:
        """``network_g`` of an option file."""
        block = {**NETWORKS[self.network], 'num_in_ch': 3, 'num_out_ch': 3, 'upscale': self.scale}
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


NETWORKS = {
    'EDSR-S': {'type': 'EDSR', 'num_feat': 64, 'num_block': 16},
    'EDSR': {'type': 'EDSR', 'num_feat': 256, 'num_block': 32, 'res_scale': 0.1},
    'RCAN': {'type': 'RCAN', 'num_feat': 64, 'num_group': 10, 'num_block': 20, 'squeeze_factor': 16},
    'SwinIR': {'type': 'SwinIR', 'img_size': 48, 'window_size': 8, 'embed_dim': 180, 'depths': [6] * 6,
               'num_heads': [6] * 6, 'mlp_ratio': 2, 'upsampler': 'pixelshuffle', 'img_range': 1.},
    'tiny': {'type': 'EDSR', 'num_feat': 8, 'num_block': 1},  # where what is beside the network is looked at
}


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
            **_runtime(self.device, self.case.scale, is_train=True),
        }
        with _quiet_basicsr():
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
                with _quiet_basicsr():  # noise has no uncertainty worth a weight: the warnings are right and of no use
                    model.optimize_parameters(1)
        run.model = model
        return run


def _runtime(device: torch.device, scale: int, is_train: bool) -> dict:
    """What BasicSR's and our options resolve to on one device."""
    return {'is_train': is_train, 'dist': False, 'rank': 0, 'world_size': 1, 'scale': scale, 'manual_seed': 0,
            'num_gpu': 1 if device.type == 'cuda' else 0, 'logger': {}}


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


# --------------------------------------------------------------------------------------------------------------- memory


def peak_memory(make: Callable[[], Callable[[], None]], device: torch.device) -> int:
    """Bytes that a step needs at its worst moment: networks, gradients, optimiser and all that a step makes.

    On a GPU the allocator keeps count. On the CPU its calls are recorded during a second step and added up, on top of
    what was there before: what the process holds (``ru_maxrss``) also counts what the C library has not given back,
    and differs from run to run by a tenth; this count is the same every time. Scratch space inside of oneDNN is in
    neither a recorded call nor this count.

    Args:
        make (Callable): Makes the contender, from :meth:`Trainer.step`; it is made and thrown away here.
        device (torch.device): Where it runs.
    """
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        run = make()
        run()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    run = make()
    run()
    run.model.optimizer_g.zero_grad()  # freeing what was there before the recording is not recorded
    there = _held(run.model)
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # else it says on stderr that there is no GPU to record
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == '[memory]']
    changes = np.array([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())], dtype=np.int64)
    return there + max(0, int(changes.cumsum().max(initial=0)))


def _held(model) -> int:
    """Bytes of a model between two steps: weights and the optimiser's state."""
    networks = [getattr(model, name, None) for name in ('net_g', 'net_u', 'frozen', 'trained')]
    tensors = [t for net in networks if net is not None for t in (*net.parameters(), *net.buffers())]
    tensors += [t for state in model.optimizer_g.state.values() for t in state.values() if torch.is_tensor(t)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


# ----------------------------------------------------------------------------------------------------------- validation


def make_images(folder: Path, count: int, height: int, width: int, scale: int, seed: int = 0) -> tuple[Path, Path]:
    """PNG pairs of smooth noise with edges and grain, about as hard to decode as photographs.

    Returns:
        tuple: The folders of GT (height, width) and of LQ images.
    """
    generator = np.random.default_rng(seed)
    folders = folder / 'gt', folder / 'lq'
    for path in folders:
        path.mkdir(parents=True)
    for number in range(count):
        coarse = generator.random((height // 16 + 1, width // 16 + 1, 3)).astype(np.float32)
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        image += 0.2 * (np.add.outer(np.arange(height), np.arange(width)) // 7 % 2)[..., None]
        image += generator.normal(0, 0.01, image.shape)
        gt = (image.clip(0, 1) * 255).round().astype(np.uint8)
        lq = cv2.resize(gt, (width // scale, height // scale), interpolation=cv2.INTER_AREA)
        for path, picture in zip(folders, (gt, lq), strict=True):
            cv2.imwrite(str(path / f'{number:04d}.png'), picture)
    return folders


def check_folders(gt: Path, lq: Path, scale: int) -> None:
    """
    Raises:
        SpeedError: Not two folders with images of the same names, GT ``scale`` times as large as LQ.
    """
    names = {}
    for path in (gt, lq):
        if not path.is_dir():
            raise SpeedError(f'{path}: expected a folder of images')
        names[path] = {p.name for p in path.iterdir() if p.is_file() and not p.name.startswith('.')}
    if not names[gt] or names[gt] != names[lq]:
        odd = sorted(names[gt] ^ names[lq])[:3]
        raise SpeedError(f'{gt} and {lq}: expected images of the same names' +
                         (f'; only in one: {", ".join(odd)}' if odd else ', found none'))
    for name in sorted(names[gt]):
        sizes = []
        for path in (gt / name, lq / name):
            image = cv2.imread(str(path))
            if image is None:
                raise SpeedError(f'{path}: is no image that OpenCV can read')
            sizes.append(image.shape[:2])
        if sizes[0] != tuple(scale * side for side in sizes[1]):
            large, small = (f'{height}x{width}' for height, width in sizes)
            raise SpeedError(f'{gt / name}: {large} is not {scale} times {small} of {lq / name}. '
                             'Crop it with udl prepare')


def validation(case: Case, gt: Path, lq: Path, device: torch.device, rounds: int, seconds: float = float('inf'),
               title: str = '') -> dict:
    """BasicSR's validation against ours: PSNR and SSIM on Y of the same network and images, beyond the network's time.

    Ours reads and measures beside the network. By the clock it may thus take no longer than the network alone, which
    counts as a tenth of BasicSR's time beyond it: 10 means 10 or more; the processor's time says what is computed,
    hidden or not.

    Args:
        case (Case): The network; its batch and patch play no part.
        gt (Path): Folder of GT images.
        lq (Path): Folder of LQ images, of the same names.
        device (torch.device): Where the network runs.
        rounds (int): See :func:`paired`; so are ``seconds`` and ``title``.

    Returns:
        dict: ``seconds`` of ``basicsr``, ``ours`` and the ``network`` alone, and their ``cpu_seconds`` in all threads;
            ``beyond_network`` and ``ratios`` by the clock, ``cpu_ratios`` by the processor; the largest ``difference``
            between a figure of BasicSR's and ours.

    Raises:
        SpeedError: The figures differ by more than 1e-4.
    """
    metrics = {name: {'type': f'calculate_{name}', 'crop_border': case.scale, 'test_y_channel': True}
               for name in ('psnr', 'ssim')}
    data_opt = {'name': 'images', 'type': 'PairedImageDataset', 'dataroot_gt': str(gt), 'dataroot_lq': str(lq),
                'io_backend': {'type': 'disk'}, 'phase': 'val', 'scale': case.scale}
    loader = DataLoader(build_dataset(data_opt), batch_size=1)
    models = {}
    for name, kind in (('basicsr', 'SRModel'), ('ours', 'UDLModel')):
        torch.manual_seed(0)  # the same weights
        with _quiet_basicsr():
            models[name] = build_model({
                'name': name, 'model_type': kind, 'network_g': case.options(), 'path': {},
                'val': {'metrics': metrics}, **_runtime(device, case.scale, is_train=False)})
    images = [sample['lq'].to(device) for sample in loader]
    net = models['ours'].net_g.eval()

    def network() -> None:
        with torch.no_grad():
            for image in images:
                net(image)

    def validate(model) -> None:
        with _quiet_basicsr():
            model.validation(loader, 0, None)

    contenders = {'basicsr': partial(validate, models['basicsr']), 'ours': partial(validate, models['ours']),
                  'network': network}
    cpu = {name: [] for name in contenders}

    def on_the_processor(name: str) -> None:
        begin = time.process_time()
        contenders[name]()
        cpu[name].append(time.process_time() - begin)

    samples = paired({name: partial(on_the_processor, name) for name in contenders}, rounds, 1, seconds, title)
    cpu = {name: values[-len(samples[name]):] for name, values in cpu.items()}  # without the warm-up
    difference = max(abs(models['basicsr'].metric_results[m] - models['ours'].metric_results[m]) for m in metrics)
    if not difference <= 1e-4:
        raise SpeedError(f"validation: BasicSR's figures {models['basicsr'].metric_results} and ours "
                         f"{models['ours'].metric_results} differ by more than 1e-4 on {gt}")
    beyond, beyond_cpu = ({name: np.subtract(times[name], times['network']).tolist() for name in models}
                          for times in (samples, cpu))
    return {'case': asdict(case), 'images': len(images), 'seconds': samples, 'cpu_seconds': cpu,
            'beyond_network': beyond, 'ratios': _beyond_ratios(beyond), 'cpu_ratios': _beyond_ratios(beyond_cpu),
            'difference': difference, 'figures': dict(models['ours'].metric_results)}


def _beyond_ratios(beyond: Mapping[str, Sequence[float]]) -> list[float]:
    return [theirs / max(ours, theirs / 10) if theirs > 0 else 0.
            for theirs, ours in zip(beyond['basicsr'], beyond['ours'], strict=True)]


# ----------------------------------------------------------------------------------------------------------------- data


def waiting(trainer: Trainer, settings: Settings, gt: Path, lq: Path, backends: Sequence[str], workers: Sequence[int],
            steps: int) -> dict[str, dict]:
    """The share of the training time in which a stage-2 step waits for its batch, with the real loader.

    Args:
        trainer (Trainer): Whose case's batches are read.
        settings (Settings): Of the step.
        gt (Path): Folder of GT images.
        lq (Path): Folder of LQ images.
        backends (Sequence): Of ``disk``, ``lmdb`` and ``memory``, which is ``in_memory: true``.
        workers (Sequence): Values of ``num_worker_per_gpu``.
        steps (int): Timed, after as many that are not.

    Returns:
        dict: ``'disk, 2 workers'`` and so on to ``{share, wait, step}``, the last two in seconds.
    """
    model, results = trainer.step('udl', settings).model, {}
    for backend in backends:
        roots = {'gt': gt, 'lq': lq}
        if backend == 'lmdb':
            roots = {key: as_lmdb(path) for key, path in roots.items()}
        for count in workers:
            options = {
                'name': 'train', 'type': 'PairedImageDataset', 'phase': 'train', 'scale': trainer.case.scale,
                'dataroot_gt': str(roots['gt']), 'dataroot_lq': str(roots['lq']),
                'io_backend': {'type': 'lmdb' if backend == 'lmdb' else 'disk'}, 'in_memory': backend == 'memory',
                'gt_size': trainer.case.patch * trainer.case.scale, 'use_hflip': True, 'use_rot': True,
                'batch_size_per_gpu': trainer.case.batch, 'num_worker_per_gpu': count,
                'prefetch_mode': 'cpu' if count else None, 'pin_memory': True, 'dataset_enlarge_ratio': 1000,
            }
            opt = {'datasets': {'train': options}, 'train': {'total_iter': 2 * steps},
                   **_runtime(trainer.device, trainer.case.scale, is_train=True)}
            dataset = build_dataset(options)
            _, batches = train_batches(dataset, opt)
            waits, begin = [], now()
            for number in range(2 * steps):
                asked = now()
                data = next(batches)
                arrived = now()
                if number == steps:
                    begin, waits = asked, []
                waits.append(arrived - asked)
                model.feed_data(data)
                with _quiet_basicsr():
                    model.optimize_parameters(1)
            total = now() - begin
            del batches, dataset
            gc.collect()
            results[f'{backend}, {count} workers'] = {
                'share': sum(waits) / total, 'wait': sum(waits) / steps, 'step': total / steps}
    return results


def as_lmdb(folder: Path) -> Path:
    """Makes BasicSR's LMDB of the PNG images of a folder, beside it; returns where."""
    from basicsr.utils.lmdb_util import make_lmdb_from_imgs
    path = folder.with_suffix('.lmdb')
    if not path.exists():
        names = sorted(p.name for p in folder.glob('*.png'))
        with open(os.devnull, 'w') as silence, redirect_stdout(silence):
            make_lmdb_from_imgs(str(folder), str(path), names, [Path(name).stem for name in names])
    return path


# ------------------------------------------------------------------------------------------------------- all of it


@dataclass(frozen=True)
class Plan:
    """What one run measures, and for how long.

    Attributes:
        cases (tuple): The first is the one that the figures are of.
        rounds (int): Of every comparison, at most.
        seconds (float): For every comparison: it ends with the round in which they are over, but not before three.
        memory (Case | None): What the memory of the first network is measured of; None: of the first case.
        compiled (tuple): Networks with torch.compile among the levers.
        growth (tuple): Cases, of which time and memory are put side by side.
        validated (tuple): Networks whose validation is measured; the first is the one that the figure is of.
        images (int): Synthetic images for that.
        image_size (tuple): Their height and width.
        backends (tuple): Ways to store the training data, of which waiting is measured.
        workers (tuple): Loader processes, likewise.
        clock (str): What steps are timed by, one of ``CLOCKS``: the time on the wall, or that of this process on the
            processors, which others who compute on the same machine do not lengthen by much.
    """
    cases: tuple[Case, ...]
    rounds: int
    seconds: float
    memory: Case | None = None
    compiled: tuple[str, ...] = ()
    growth: tuple[Case, ...] = ()
    validated: tuple[str, ...] = ('tiny', )
    images: int = 20
    image_size: tuple[int, int] = (320, 480)
    backends: tuple[str, ...] = ()
    workers: tuple[int, ...] = ()
    clock: str = 'wall'

    def time(self, contenders: Mapping[str, Callable[[], object]], warmup: int, title: str = '', share: float = 1
             ) -> dict[str, list[float]]:
        """:func:`paired`, by this plan, in a ``share`` of its seconds."""
        return paired(contenders, self.rounds, warmup, self.seconds * share, title, CLOCKS[self.clock])


def make_plan(device: torch.device, quick: bool, networks: Sequence[str] = ('EDSR-S', 'EDSR', 'RCAN', 'SwinIR'),
              batch: int | None = None, patch: int | None = None, rounds: int | None = None,
              seconds: float | None = None, clock: str = 'wall',
              compiled: Sequence[str] | None = None) -> Plan:
    """A plan for a device; what is None follows from the device and from ``quick`` (two minutes on two CPU cores)."""
    gpu = device.type == 'cuda'
    if quick:
        case = Case(batch=batch or (16 if gpu else 2), patch=patch or (48 if gpu else 24))
        return Plan((case, ), rounds or 9, seconds or 15, compiled=tuple(compiled or ()), images=10, clock=clock)
    base = Case(batch=batch or (16 if gpu else 4), patch=patch or 48)
    large = Case(batch=16 if gpu else 1, patch=48 if gpu else 16)
    cases = tuple(replace(base if name == 'EDSR-S' else large, network=name) for name in networks)
    middle = base if gpu else replace(base, batch=1, patch=24)
    growth = [replace(middle, patch=n) for n in ((24, 48, 96) if gpu else (12, 24, 48))]
    growth += [replace(middle, batch=n) for n in ((1, 4, 16, 64) if gpu else (1, 2, 4))]
    growth += [replace(middle, scale=n) for n in (2, 3, 4)]
    growth += [replace(middle, width=n) for n in (32, 64, 128)]
    return Plan(
        cases, rounds or 20, seconds or 300,
        memory=replace(base, batch=16 if gpu else 4, patch=48) if cases[0] == base else None,
        compiled=tuple(networks if compiled is None else compiled), growth=tuple(dict.fromkeys(growth)),
        validated=('tiny', 'EDSR-S') if gpu else ('tiny', ), images=20, backends=('disk', 'lmdb', 'memory'),
        workers=(0, 1, 2), clock=clock)


def run(plan: Plan, device: torch.device, folders: tuple[Path, Path] | None = None, progress: bool = True,
        save: Callable[[dict], object] = lambda report: None) -> dict:
    """Measures what a plan says, the first network and all that is measured with it first.

    Args:
        plan (Plan): See :func:`make_plan`.
        device (torch.device): Where the networks run.
        folders (tuple | None): GT and LQ images to validate on; None makes some.
        progress (bool): Whether to show progress, with the time that is left, on stderr.
        save (Callable): Called with the report whenever a part of it is there; the other figures are None.

    Returns:
        dict: What :func:`write` writes.

    Raises:
        SpeedError: Validation figures that differ from BasicSR's.
    """
    torch.backends.cudnn.benchmark = True  # as in BasicSR's and our training
    report = dict.fromkeys(GOALS)
    report |= {'figures': {}, 'machine': {**machine(device), 'clock': plan.clock}, 'networks': {}, 'growth': [],
               'validation': {}, 'data': {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        first = report['networks'][plan.cases[0].network] = measure_case(plan.cases[0], device, folder, plan, progress,
                                                                         plan.memory)
        report['figures'] |= first['figures']
        best = Settings(**first['best'])
        _headlines(report, save)
        gt, lq = folders or make_images(folder / 'val', plan.images, *plan.image_size, plan.cases[0].scale)
        for network in plan.validated:
            measured = validation(replace(plan.cases[0], network=network), gt, lq, device, plan.rounds, plan.seconds,
                                  f'validation, {network}' if progress else '')
            report['validation'][network] = measured
        measured = report['validation'][plan.validated[0]]
        beyond = {'wall': measured['ratios'], 'processor': measured['cpu_ratios']}
        report['figures']['validation_basicsr_over_ours'] = figure(beyond[plan.clock])
        report['figures'] |= {f'validation_basicsr_over_ours_{clock}': figure(beyond[clock]) for clock in CLOCKS}
        _headlines(report, save)
        if plan.backends:
            case = plan.cases[0]
            trained_on = make_images(folder / 'train', max(8, case.batch), 480, 480, case.scale)
            report['data'] = waiting(Trainer(case, device, folder), best, *trained_on, plan.backends, plan.workers,
                                     steps=10 if device.type == 'cuda' else 5)
            _headlines(report, save)
        if plan.growth:
            # Compiled anew for each size, and so without.
            report['growth'] = growth(plan.growth, replace(best, compile=False), device, folder, plan, progress)
            _headlines(report, save)
        for case in plan.cases[1:]:
            report['networks'][case.network] = measure_case(case, device, folder, plan, progress)
            _headlines(report, save)
    return report


def _headlines(report: dict, save: Callable[[dict], object]) -> None:
    report |= {key: report['figures'][key]['median'] for key in GOALS if key in report['figures']}
    save(report)


def fastest(samples: Mapping[Settings, Sequence[float]]) -> Settings:
    """The settings with the smallest median; compiling, which takes minutes at each start, has to gain a tenth."""
    return min(samples, key=lambda settings: statistics.median(samples[settings]) * (1 + settings.compile / 9))


def measure_case(case: Case, device: torch.device, folder: Path, plan: Plan, progress: bool = True,
                 memory: Case | None = None) -> dict:
    """All contenders of one network.

    The levers are compared first, and the best settings are chosen from that; then these are measured anew against the
    published form and stock BasicSR, so that the figures owe nothing to having been picked.

    Args:
        case (Case): What is timed.
        device (torch.device): Where to train.
        folder (Path): For weights.
        plan (Plan): Rounds and levers.
        progress (bool): Whether to show progress on stderr.
        memory (Case | None): What the memory is measured of; None: of ``case``.

    Returns:
        dict: ``best`` settings, ``levers`` and ``contenders`` (seconds a step), ``figures`` and ``memory`` in bytes.
    """
    trainer = Trainer(case, device, folder)
    result = {'case': asdict(case), 'unavailable': {}, 'levers': {}}
    if case.network not in plan.compiled:
        result['unavailable'][str(Settings(compile=True))] = 'not tried, compiling takes minutes'
    steps = {}
    for settings in levers(device, case.network in plan.compiled):
        try:
            step = trainer.step('udl', settings)
            step()  # torch.compile compiles here
        except Exception as error:  # a compiler or a type that this machine lacks: said, and not measured
            if settings == Settings():
                raise
            result['unavailable'][str(settings)] = f'{type(error).__name__}: {str(error).splitlines()[0][:200]}'
            continue
        steps[settings] = step
    samples = plan.time(steps, 0, f'{case.network}: levers' if progress else '')  # each has made a step above
    del step, steps
    for settings, seconds in samples.items():
        result['levers'][str(settings)] = {'settings': asdict(settings), 'seconds': seconds,
                                           'speedup': figure(ratios(samples[Settings()], seconds))}
    best = fastest(samples)
    result['best'] = asdict(best)

    # Float32 without any lever but what leaves results and settings alone, the fast head.
    plain = Settings(fast_head=True)
    contenders = {'basicsr': ('basicsr', ), 'published': ('published', )}
    for kind in ('l1', 'esu', 'udl'):
        contenders[kind] = kind, best
        contenders[f'{kind}_float32'] = kind, plain
    contenders['udl_cached'] = 'udl', best, True
    steps = {name: trainer.step(*args) for name, args in contenders.items()}
    samples = plan.time(steps, 1, f'{case.network}: against others' if progress else '')
    del steps
    result['contenders'] = {name: {'seconds': figure(seconds)} for name, seconds in samples.items()}
    result['figures'] = {key: figure(ratios(samples[a], samples[b])) for key, (a, b) in FIGURES.items()}
    contenders['udl_bf16'] = 'udl', Settings(amp='bf16', channels_last=True, fused=True, fast_head=True)
    if memory:
        trainer = Trainer(memory, device, folder)
    result['memory'], result['memory_case'] = {}, asdict(trainer.case)
    for name, args in tqdm(contenders.items(), f'{case.network}: memory', disable=not progress, dynamic_ncols=True):
        result['memory'][name] = peak_memory(lambda args=args: trainer.step(*args), device)
    for key, name in (('', 'udl'), ('_cached', 'udl_cached'), ('_float32', 'udl_float32'), ('_bf16', 'udl_bf16')):
        result['figures'][f'memory_published_over_ours{key}'] = figure(
            [result['memory']['published'] / result['memory'][name]])
    return result


def growth(cases: Sequence[Case], settings: Settings, device: torch.device, folder: Path, plan: Plan,
           progress: bool = True) -> list[dict]:
    """Time and memory of each stage for each case: ``{case, seconds, memory}``, both by stage."""
    rows = []
    for case in tqdm(cases, 'growth', unit='case', disable=not progress, dynamic_ncols=True):
        trainer = Trainer(case, device, folder)
        stages = {'published': ('published', ), **{kind: (kind, settings) for kind in ('l1', 'esu', 'udl')},
                  'udl_cached': ('udl', settings, True)}
        samples = plan.time({name: trainer.step(*args) for name, args in stages.items()}, 1, share=1 / len(cases))
        memory = {name: peak_memory(lambda args=args, t=trainer: t.step(*args), device)
                  for name, args in stages.items()}
        rows.append({'case': asdict(case), 'name': str(case), 'memory': memory,
                     'seconds': {name: figure(values) for name, values in samples.items()}})
    return rows


def machine(device: torch.device) -> dict:
    """What the figures were measured on and with."""
    flags = Path('/proc/cpuinfo').read_text() if Path('/proc/cpuinfo').exists() else ''
    models = [line.split(':', 1)[1].strip() for line in flags.splitlines() if line.startswith('model name')]
    return {
        'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else 'cpu',
        'cpu': models[0] if models else platform.processor() or platform.machine(),
        'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        'threads': torch.get_num_threads(),
        'load': list(os.getloadavg()) if hasattr(os, 'getloadavg') else None,
        'amx': 'amx_bf16' in flags,
        'tf32_convolutions': torch.backends.cudnn.allow_tf32 if device.type == 'cuda' else False,
        'versions': {'python': platform.python_version(), 'torch': torch.__version__, 'basicsr': basicsr.__version__,
                     'numpy': np.__version__, 'opencv': cv2.__version__},
    }


# ----------------------------------------------------------------------------------------------------------- the report


def tables(report: Mapping) -> str:
    """The report as text for the terminal."""
    who = report['machine']
    parts = [f"{who['device']}, {who['cpu']}, {who['threads']} thread(s) on {who['cores']} core(s), "
             f"{'with' if who['amx'] else 'without'} AMX, load {(who['load'] or [float('nan')])[0]:.1f}, "
             f"torch {who['versions']['torch']}; seconds by the {who['clock']} clock"]
    for name, result in report['networks'].items():
        parts.append(f"{Case(**result['case'])}; best settings: {Settings(**result['best'])}")
        parts.append(text_table(['stage 2 with', 's a step', 'times faster than plain', 'quartiles'], [
            [lever, f"{statistics.median(values['seconds']):.4f}", *_cells(values['speedup'])]
            for lever, values in result['levers'].items()]))
        parts += [f'not available: {lever} ({why})' for lever, why in result['unavailable'].items()]
        of = Case(**result['memory_case'])
        parts.append(text_table(['contender', 's a step', 'quartiles', f'peak MiB, {of.batch} of {of.patch}'], [
            [kind, f"{values['seconds']['median']:.4f}",
             f"{values['seconds']['low']:.4f} to {values['seconds']['high']:.4f}",
             f"{result['memory'][kind] / 2**20:.0f}"] for kind, values in result['contenders'].items()]))
        if name != next(iter(report['networks'])):
            parts.append(text_table(['ratio', 'median', 'quartiles'], [
                [key, *_cells(values)] for key, values in result['figures'].items()]))
    for name, result in report['validation'].items():
        parts.append(f"validation with {name}, {result['images']} images: BasicSR "
                     f"{statistics.median(result['seconds']['basicsr']):.3f} s, ours "
                     f"{statistics.median(result['seconds']['ours']):.3f} s, the network alone "
                     f"{statistics.median(result['seconds']['network']):.3f} s; beyond it "
                     f"{statistics.median(result['ratios']):.2f} : 1, in processor time "
                     f"{statistics.median(result['cpu_ratios']):.2f} : 1; figures differ by {result['difference']:.1e}")
    if report['data']:
        parts.append(text_table(['training data', 'share waiting', 's waiting', 's a step in all'], [
            [name, f"{v['share']:.1%}", f"{v['wait']:.4f}", f"{v['step']:.4f}"] for name, v in report['data'].items()]))
    if report['growth']:
        stages = list(report['growth'][0]['seconds'])
        parts.append(text_table(['s a step / peak MiB', *stages], [
            [row['name'] + (f", {row['case']['width']} channels" if row['case']['width'] else ''),
             *(f"{row['seconds'][s]['median']:.4f} / {row['memory'][s] / 2**20:.0f}" for s in stages)]
            for row in report['growth']]))
    parts.append(text_table(['ratio', 'median', 'quartiles', 'goal'], [
        [key, *_cells(values), ' '.join(map(str, reversed(GOALS[key]))) if key in GOALS else '']
        for key, values in report['figures'].items()]))
    return '\n\n'.join(parts) + '\n'


def _cells(values: Mapping) -> tuple[str, str]:
    return f"{values['median']:.2f}", f"{values['low']:.2f} to {values['high']:.2f}"


def draw(report: Mapping, path: str | Path) -> None:
    """The ratios and the time of each contender as bars with their quartiles, as a PNG."""
    name, result = next(iter(report['networks'].items()))
    panels = [
        ('ratio, goal as a line', {key: report['figures'][key] for key in GOALS}),
        (f'{name}: seconds a step', {key: value['seconds'] for key, value in result['contenders'].items()}),
        ('stage 2: times faster than plain', {key: value['speedup'] for key, value in result['levers'].items()}),
    ]
    drawing = Figure(figsize=(15, 5), layout='constrained')
    FigureCanvasAgg(drawing)
    for axes, (title, bars) in zip(drawing.subplots(1, 3), panels, strict=True):
        medians = [bar['median'] for bar in bars.values()]
        spread = [[bar['median'] - bar['low'] for bar in bars.values()],
                  [bar['high'] - bar['median'] for bar in bars.values()]]
        axes.barh(range(len(bars)), medians, xerr=spread, color='#4878a8', ecolor='#202020', capsize=3)
        axes.set_yticks(range(len(bars)), bars)
        axes.invert_yaxis()
        axes.set_title(title)
        for row, key in enumerate(bars):
            if key in GOALS and bars is panels[0][1]:
                axes.plot([GOALS[key][0]] * 2, [row - 0.4, row + 0.4], color='#d04020', linewidth=2)
    drawing.suptitle(f"{Case(**result['case'])}, {report['machine']['device']}: {report['machine']['cpu']}")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=110)


def save(report: Mapping, path: str | Path) -> None:
    """Writes the JSON alone."""
    write_text(Path(path), json.dumps(report, indent=1) + '\n')


def write(report: Mapping, path: str | Path) -> tuple[Path, Path]:
    """Writes the JSON and, beside it, the figure; returns both paths."""
    path = Path(path)
    picture = path.with_suffix('.png')
    save(report, path)
    draw(report, picture)
    return path, picture
