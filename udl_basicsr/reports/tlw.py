"""What the weighting network of a TLW run said at its checkpoints, from the run's folder alone."""
from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from udl_basicsr.deploy.export import build_loaded
from udl_basicsr.deploy.kept_apart import options_of
from udl_basicsr.functional.image_statistics import to_tensor
from udl_basicsr.functional.tlw import relaxed_bernoulli
from udl_basicsr.losses.tlw_loss import TLWLoss
from udl_basicsr.training.history import read_history

from .pictures import ReportError, as_trained


@dataclass(frozen=True)
class TLWRun:
    """A run of TLWModel.

    Attributes:
        folder: `experiments/<name>`.
        options: Its resolved option file.
        loss: Its criterion, without the judge.
        iterations: Those with a checkpoint of both networks, ascending.
        iters_per_epoch: As the history says; None where `k_unit` is `iter`.
    """
    folder: Path
    options: dict
    loss: TLWLoss
    iterations: tuple[int, ...]
    iters_per_epoch: int | None


    def position(self, iteration: int) -> int:
        """The epoch, or the iterations done, that k follows in an iteration (1 is the first)."""
        return iteration - 1 if self.iters_per_epoch is None else (iteration - 1) // self.iters_per_epoch

    def k(self, iteration: int) -> float:
        """k in that iteration."""
        return self.loss.k(self.position(iteration))


@dataclass(frozen=True)
class TLWMaps:
    """One image at one checkpoint; all (H, W, C) of the GT's size, with as many channels as the networks take.

    Attributes:
        iteration, k: When, and the mean that the weights had then.
        sr: f, uint8.
        sigmoid: What the weighting network's last convolution says, before FixedSum, in [0, 1].
        weights: What the weighting network says, in [0, 1].
        sample: One w drawn from it, in [0, 1].
    """
    iteration: int
    k: float
    sr: np.ndarray
    sigmoid: np.ndarray
    weights: np.ndarray
    sample: np.ndarray


def open_tlw_run(folder: str | Path) -> TLWRun:
    """Finds the checkpoints of a run.

    Raises:
        ReportError: No TLW run, or it kept no checkpoints.
    """
    folder = Path(folder)
    found = [options for options in options_of(folder) if 'tlw_opt' in (options.get('train') or {})]
    if not found:
        raise ReportError(f'{folder}: has no option file with train.tlw_opt. Expected experiments/<name> of a run of '
                          'TLWModel')
    iterations = {label: {int(m[1]) for p in (folder / 'models').glob(f'net_{label}_*.pth')
                          if (m := re.fullmatch(rf'net_{label}_(\d+)', p.stem))} for label in 'gw'}
    both = tuple(sorted(iterations['g'] & iterations['w']))
    if not both:
        raise ReportError(f'{folder}/models: has no net_g_<iter>.pth and net_w_<iter>.pth of the same iteration. '
                          'Train with logger.save_checkpoint_freq')
    options, per_epoch = found[0], None
    loss = TLWLoss(**{key: value for key, value in options['train']['tlw_opt'].items() if key != 'type'})
    if loss.k_unit == 'epoch':
        head = next(iter(read_history(folder / 'history.jsonl')), {})
        per_epoch = head.get('iters_per_epoch')
        if not isinstance(per_epoch, int) or per_epoch < 1:
            raise ReportError(f'{folder}/history.jsonl: its first line does not say how many iterations an epoch has '
                              '(iters_per_epoch), which k follows. Write it there, as the log has it')
    return TLWRun(folder, options, loss, both, per_epoch)


@torch.no_grad()
def tlw_maps(run: TLWRun, iteration: int, gt: np.ndarray, lq: np.ndarray) -> TLWMaps:
    """Restores and weights one image as the networks of a checkpoint do.

    As in training, except that the whole image stands for a patch (the mean of each channel is k) and that batch norm
    uses its running statistics.

    Args:
        run: The run.
        iteration: One of its `iterations`.
        gt: x, (H, W, 3) uint8 RGB.
        lq: y, (h, w, 3).

    Raises:
        ReportError: The image does not fit the network's scale.
        ExportError, CheckpointError: A network cannot be built or loaded.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        models = run.folder / 'models'
        nets = {label: build_loaded(models / f'net_{label}_{iteration}.pth', run.options, 'params', label)
                for label in 'gw'}
        target, small = (to_tensor(as_trained(image, run.options)) for image in (gt, lq))
        pred = nets['g'](small)
        if pred.shape != target.shape:
            raise ReportError(f'{run.folder}: makes {pred.shape[3]}×{pred.shape[2]} pixels of this LQ, but the GT has '
                              f'{target.shape[3]}×{target.shape[2]}')
        loss, k, body = run.loss, run.k(iteration), nets['w'].get_submodule('body')
        sigmoid, weights = body(torch.cat([target, pred], dim=1)).sigmoid(), nets['w'](target, pred, k)
        sample = weights if loss.deterministic else relaxed_bernoulli(weights, loss.temperature, 1)[0]
    sr = (pred.clamp(0, 1) * 255).round().to(torch.uint8)
    return TLWMaps(iteration, k, *(t[0].permute(1, 2, 0).numpy() for t in (sr, sigmoid, weights, sample)))
