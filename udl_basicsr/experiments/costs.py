"""What networks and trainings cost: operations counted by torch, run time measured, time of training estimated.

Counted is what ``torch.utils.flop_counter`` counts: convolutions, matrix products and attention, two operations for
each multiplication with its addition (a MAC). Activations, normalisation, interpolation and the optimiser, which take
little beside them, are left out, as they are in the papers' own figures.
"""
from __future__ import annotations

import functools
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from basicsr.archs import build_network as build_real
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from udl_basicsr.data.images import channels_of
from udl_basicsr.losses.perceptual import NETS, build_lpips
from udl_basicsr.models.stage_table import trains_head_alone
from udl_basicsr.options.keys import block_of, lookup
from udl_basicsr.options.training_values import judge_of
from udl_basicsr.options.trials import build_network, quietly
from udl_basicsr.utils import processor
from udl_basicsr.utils.gpus import gpu_count
from udl_basicsr.utils.kernels import training_kernels
from udl_basicsr.utils.settings import RunSettings, TrainSettings

from .complexity import count_macs, run_time
from .plan import PlannedRun, Stage
from .record_files import Record, RunTime

_ON_CPU = (180, 320)
_AMP: dict[str | None, torch.dtype] = {'bf16': torch.bfloat16, 'fp16': torch.float16}
_CROP = 48
_WHOLE = 392  # side of a square of 480×320 pixels, as many images of BSDS have, where whole ones are trained on
_BACKWARD = 3  # forward and backward in forwards: gradients to the input and to the weights cost one each
_SECONDS = 1.0


@functools.lru_cache(maxsize=256)
def _forward(network: str, channels: int, height: int, width: int, weighs: bool = False,
             method: str = 'forward') -> int:
    """Operations of one forward on an input of that size: on no data where the network allows it, else on a crop.

    One that ``weighs`` takes two images and the mean of its weights, as :class:`TLWNet` does. A ``method`` of the
    network may be counted in place of its forward.
    """
    def given(height: int, width: int, device: str = 'cpu') -> list[torch.Tensor]:
        image = torch.rand(1, channels, height, width, device=device)
        return [image, image, image.new_full((1, 1, 1, 1), 0.5)] if weighs else [image]

    block = json.loads(network)
    net = build_network(lookup('network', block['type']), block)
    if isinstance(net, nn.Module) and all(p.is_meta for p in net.parameters()):
        try:
            return _count(getattr(net.eval(), method), *given(height, width, 'meta'))
        except Exception:
            pass  # what looks at values cannot run on the meta device
    with quietly():
        function = getattr(build_real(dict(block)).eval(), method)
    with suppress(Exception):  # of a network that takes no such crop
        return round(_count(function, *given(_CROP, _CROP)) * height * width / _CROP**2)
    return _count(function, *given(height, width))


def _count(function: Callable[..., object], *images: torch.Tensor) -> int:
    with quietly(), torch.no_grad(), torch.device(images[0].device), FlopCounterMode(display=False) as counter:
        function(*images)
    return counter.get_total_flops()


@functools.lru_cache(maxsize=8)
def _judge(net: str, side: int) -> int:
    """Operations of LPIPS for one image of a training patch."""
    with quietly():
        judge = build_lpips(net, random_weights=True)
    images = [torch.rand(1, 3, side, side) for _ in range(2)]
    return _count(judge, *images) // 2


def measure_image(network: Mapping, scale: int, size: Sequence[int],
                  channels: int = 3) -> tuple[dict[str, float], RunTime | None]:
    """What one image costs: operations counted, run time measured here.

    Args:
        network: The block ``network_g`` of options.
        scale: How many times it enlarges.
        size: Height and width of the output image. A CPU is timed on at most 180×320, which says so.
        channels: Of the image that it is given.

    Returns:
        tuple: The record's ``costs``: ``macs`` of the image and, if it was timed as a whole, ``runtime`` in ms; and its
            ``run_time``, None of a network that takes no image of that size.
    """
    found = {}
    with suppress(Exception):  # a network that looks at values cannot be counted without computing
        found['macs'] = count_macs(network, scale, size, channels)
    gpu = torch.cuda.is_available()
    timed = list(size) if gpu else [min(pair) for pair in zip(size, _ON_CPU, strict=True)]
    try:
        with quietly():
            ms = round(run_time(network, scale, timed, repeats=3, channels=channels), 3)
    except Exception:  # its training and its test are done, and must not be lost for this
        return found, None
    if timed == list(size):
        found['runtime'] = ms
    device = torch.cuda.get_device_name() if gpu else f'CPU, {torch.get_num_threads()} thread(s)'
    return found, RunTime(ms, timed, device)


# ---------------------------------------------------------------- training

def iteration_operations(flat: Mapping) -> int:
    """Operations of one step of a stage: forward and backward of what is trained, forward of what is frozen."""
    data, train = flat['datasets']['train'], flat['train']
    side = _side(flat)

    def forward(block: Mapping, method: str = 'forward') -> int:
        return _forward(json.dumps(block, sort_keys=True), channels_of(data), side, side, method=method)

    stage, image = RunSettings.of(flat).stage, forward(flat['network_g'])
    one = _BACKWARD * image
    if stage != 'plain' and 'network_u' in flat:
        network_u = {'backbone': flat['network_g'], **flat['network_u']}
        if stage != 'udl':
            one = _BACKWARD * forward(network_u)
            if trains_head_alone(stage, train):
                one -= (_BACKWARD - 1) * image
        elif not data.get('uncertainty_cache'):
            one += forward(network_u, 'log_scale')  # frozen, and without the backbone's tail
    joint = block_of(train, 'tlw_opt').get('order') == 'joint'
    if 'network_w' in flat:  # it learns, and then says once more where the loss is to look
        weighing = _forward(json.dumps(flat['network_w'], sort_keys=True), channels_of(data), side * flat['scale'],
                            side * flat['scale'], weighs=True)
        one += (_BACKWARD + (not joint)) * weighing
    for key, usual in (('tlw_opt', 3), ('likelihood_opt', 1)):
        block = block_of(train, key)
        judge, _ = judge_of({**block, 'judge_random': False})  # a random one costs as much
        if judge in NETS:
            # A weight map is judged by two images beside the target. The judge is frozen: a gradient through it costs
            # as much as a forward. TLW's alternating order has one for a map that is drawn apart from the T others.
            maps = 1 if block.get('deterministic') else block.get('samples', usual)
            images = 2 * maps + 2 * 2 + 2 if key == 'tlw_opt' and not joint else 2 * 2 * maps + 1
            one += images * _judge(judge, side * flat['scale'])
    return one * int(data['batch_size_per_gpu'])


def training_operations(stages: Iterable[Stage]) -> float:
    """Operations of all iterations of some stages. A float, since records keep it, and integers of 19 digits, which
    the large networks of the papers reach, are refused in JSON files."""
    return float(sum(iteration_operations(stage.flat) * stage.iterations for stage in stages))


def _side(flat: Mapping) -> int:
    """LR pixels of the side of a training crop."""
    data = flat['datasets']['train']
    return max(1, int(data.get('gt_size', _WHOLE)) // flat['scale'])


def _steps_a_second(step: Callable[[], None], device: torch.device) -> float:
    """From about a second of them."""
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < _SECONDS:
        step()
        _wait(device)
        count += 1
    return count / (time.perf_counter() - started)


@functools.lru_cache(maxsize=4)
def device_speed(amp: str | None, device: torch.device) -> float:
    """Operations a second of a device in training, from about a second of convolutions of 64 channels."""
    dtype = _AMP.get(amp)
    with quietly(), torch.enable_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        net = nn.Sequential(*(nn.Conv2d(64, 64, 3, padding=1) for _ in range(4))).to(device)
        image = torch.rand(8, 64, _CROP, _CROP, device=device)
        with FlopCounterMode(display=False) as counter:
            net(image).sum().backward()
        return counter.get_total_flops() * _steps_a_second(lambda: net(image).sum().backward(), device)


@functools.lru_cache(maxsize=64)
def _network_speed(network: str, channels: int, side: int, batch: int, amp: str | None, deterministic: bool,
                   device: torch.device) -> float:
    """Operations a second of a network's own steps, from about a second of them, without the optimiser."""
    block, dtype = json.loads(network), _AMP.get(amp)
    with quietly(), torch.enable_grad(), training_kernels(deterministic), \
            torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        net = build_real(dict(block)).to(device)
        images = torch.rand(batch, channels, side, side, device=device)
        def step() -> None:
            net(images).float().mean().backward()

        for _ in range(3):  # the first ones look for kernels and for memory
            step()
        _wait(device)
        rate = _steps_a_second(step, device)
    return rate * _BACKWARD * _forward(network, channels, side, side) * batch


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def device_of(flat: Mapping) -> torch.device:
    """What a run computes on here."""
    return torch.device('cuda' if flat.get('num_gpu') != 0 and gpu_count() else 'cpu')


def amp_of(flat: Mapping) -> str | None:
    """What a run computes in here."""
    amp = TrainSettings.of(flat['train']).amp
    return processor.auto_amp(device_of(flat)) if amp == 'auto' else amp


def is_deterministic(flat: Mapping) -> bool:
    """Whether a run of a plan is, where its options leave it open: on a GPU a run that was stopped would else differ
    from another, since kernels round as they happen to run."""
    return flat.get('deterministic', device_of(flat).type == 'cuda')


def training_speed(flat: Mapping) -> float:
    """Operations a second of the steps of a stage here.

    On a CPU that of any convolutions. A GPU takes wide networks at ten times the speed of narrow ones, so that each is
    tried, as long as it fits, with the kernels that it will be trained with.
    """
    amp, device = amp_of(flat), device_of(flat)
    if device.type == 'cuda':
        with suppress(Exception):  # out of memory, or a network that takes no image of random numbers
            data = flat['datasets']['train']
            return _network_speed(json.dumps(flat['network_g'], sort_keys=True), channels_of(data), _side(flat),
                                  int(data['batch_size_per_gpu']), amp, is_deterministic(flat), device)
    return device_speed(amp, device)


class Estimate:
    """How long runs take here: by records of the same network made on a machine like this, else by operations.

    Operations leave out what is no training: loading of data, validation, test.

    Args:
        runs: Of the plan, whose records may be there.
        records: By file, of the plan.
        machine: This one, as records name it, by a run's options.
    """

    def __init__(self, runs: Iterable[PlannedRun], records: Mapping[Path, Record], out: Path,
                 machine: Callable[[Mapping], str]) -> None:
        same: dict[tuple, list[float]] = {}
        rates: dict[str, list[float]] = {}
        for run in runs:
            record = records.get(run.record(out))
            last = run.stages[-1]  # stage 1 has a process of its own, whose time no record holds
            if record and record.machine == machine(last.flat):
                # a run that was stopped tells of the process that ended it alone, and its steps of them all
                seconds = max(record.seconds, record.stages[-1].seconds or 0. if record.stages else 0.)
                same.setdefault(self._key(run), []).append(seconds)
                rates.setdefault(run.title, []).append(seconds / training_operations([last]))
        self.same = {key: statistics.mean(values) for key, values in same.items()}
        self.rates = {title: statistics.mean(values) for title, values in rates.items()}

    @staticmethod
    def _key(run: PlannedRun) -> tuple:
        return run.title, run.method, run.scale

    def seconds(self, run: PlannedRun, stage: Stage, share: float = 1.) -> tuple[float, bool]:
        """What a stage takes of which this share is left; and whether records say so."""
        if stage is run.stages[-1] and (known := self.same.get(self._key(run))):
            return known * share, True
        if rate := self.rates.get(run.title):
            return rate * training_operations([stage]) * share, True
        return training_operations([stage]) * share / training_speed(stage.flat), False
