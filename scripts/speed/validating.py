"""BasicSR's validation against ours."""
from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from basicsr.models import build_model
from torch.utils.data import DataLoader

from udl_basicsr.data.loader import build_dataset
from udl_basicsr.utils.kernels import exact_kernels

from .contenders import Case, quiet_basicsr, runtime
from .pairing import paired
from .pictures import SpeedError


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
        with quiet_basicsr():
            models[name] = build_model({
                'name': name, 'model_type': kind, 'network_g': case.options(), 'path': {},
                'val': {'metrics': metrics}, **runtime(device, case.scale, is_train=False)})
    images = [sample['lq'].to(device) for sample in loader]
    net = models['ours'].net_g.eval()

    def network() -> None:
        with torch.no_grad():
            for image in images:
                net(image)

    def validate(model) -> None:
        with quiet_basicsr():
            model.validation(loader, 0, None)

    contenders = {'basicsr': partial(validate, models['basicsr']), 'ours': partial(validate, models['ours']),
                  'network': network}
    cpu = {name: [] for name in contenders}

    def on_the_processor(name: str) -> None:
        begin = time.process_time()
        contenders[name]()
        cpu[name].append(time.process_time() - begin)

    with exact_kernels():  # which ours has on a GPU; with TF32 BasicSR's figures would differ, and the network's time
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
