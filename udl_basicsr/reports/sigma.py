"""How sigma moves while a sigma branch is trained: the mean by the run's history, pixels by its checkpoints.

Figure 2 of Revisiting L1 shows that sigma goes to 0 where eq. 6 trains it, which makes the loss an L1 loss.
"""
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from udl_basicsr.deploy.export import build_loaded
from udl_basicsr.deploy.kept_apart import options_of
from udl_basicsr.functional.image_statistics import to_tensor
from udl_basicsr.training.history import read_history

from .figures import FONT, WIDTH, framed, save
from .method_styles import style_of
from .pictures import ReportError, as_trained
from .plots import log_numbers, tidy

LOGGED = 'sigma_mean'


@dataclass(frozen=True)
class SigmaCurve:
    """Mean of sigma over the batch, as the run logged it; in the unit of the pixels, [0, 1]."""
    name: str
    iterations: np.ndarray  # (n,)
    means: np.ndarray  # (n,)


@dataclass(frozen=True)
class SigmaPixels:
    """Sigma of some pixels of one image at the checkpoints of a run."""
    iterations: np.ndarray  # (n,)
    pixels: np.ndarray  # (n, P): each value of sigma followed by itself, the smallest first at the first checkpoint
    means: np.ndarray  # (n,): over the whole image


def sigma_curve(folder: str | Path) -> SigmaCurve:
    """What a run's history.jsonl says of sigma.

    Raises:
        ReportError: Nothing.
    """
    folder = Path(folder)
    told = [(entry['iter'], entry[LOGGED]) for entry in read_history(folder / 'history.jsonl') if LOGGED in entry]
    if not told:
        raise ReportError(f'{folder}/history.jsonl: has no {LOGGED}. Expected experiments/<name> of a run of stage '
                          'sigma')
    iterations, means = (np.array(values, dtype=float) for values in zip(*told, strict=True))
    return SigmaCurve(folder.name, iterations, means)


@torch.no_grad()
def sigma_pixels(folder: str | Path, lq: np.ndarray, count: int = 12) -> SigmaPixels:
    """Sigma of one image at each checkpoint that was kept.

    Args:
        folder: `experiments/<name>` of a run of stage sigma.
        lq: y, (h, w, 3) uint8 RGB.
        count: Of values that are followed; they are spread evenly over the order of sigma at the first checkpoint.

    Raises:
        ReportError: No such run, or it kept no checkpoints.
        ExportError, CheckpointError: A network cannot be built or loaded.
    """
    folder = Path(folder)
    found = [options for options in options_of(folder) if options.get('network_u')]
    if not found:
        raise ReportError(f'{folder}: has no option file with network_u. Expected experiments/<name> of a run of stage '
                          'sigma')
    iterations = sorted(int(m[1]) for p in (folder / 'models').glob('net_u_*.pth')
                        if (m := re.fullmatch(r'net_u_(\d+)', p.stem)))
    if not iterations:
        raise ReportError(f'{folder}/models: has no net_u_<iter>.pth. Train with logger.save_checkpoint_freq')
    image = to_tensor(as_trained(lq, found[0]))
    maps = [build_loaded(folder / 'models' / f'net_u_{iteration}.pth', found[0], 'params', 'u')(image)[1]
            .double().numpy().ravel() for iteration in iterations]
    ranks = np.linspace(0, maps[0].size - 1, min(count, maps[0].size)).round().astype(int)
    chosen = np.argsort(maps[0], kind='stable')[ranks]
    return SigmaPixels(np.array(iterations), np.stack([values[chosen] for values in maps]),
                       np.array([values.mean() for values in maps]))


def sigma_figure(curves: Sequence[SigmaCurve], pixels: SigmaPixels | None, out: str | Path, width: float = WIDTH,
                 dpi: int = 150) -> Path:
    """Draws sigma over the training, in grey levels: its mean in each run, and beside it pixels of one image.

    Args:
        curves: Of one run or several.
        pixels: Of the first run; None leaves that part out.
        out: The picture to write; the format follows the ending.
    """
    figure = framed(width, 2.4, dpi, 'σ during training, ' + ', '.join(curve.name for curve in curves),
                    f'Gray: {pixels.pixels.shape[1]} values of one image at the checkpoints of {curves[0].name}.'
                    if pixels else '')
    axes = figure.subplots(1, 1 + bool(pixels), squeeze=False)[0]
    for number, curve in enumerate(curves):
        axes[0].plot(curve.iterations, 255 * curve.means, linewidth=1.2, label=curve.name, **style_of(number))
    axes[0].set(ylabel='mean of σ, grey levels', title='mean of the batch, as logged')
    if pixels:
        axes[1].plot(pixels.iterations, 255 * pixels.pixels, linewidth=0.7, color='#999999')
        axes[1].plot(pixels.iterations, 255 * pixels.means, marker='o', markersize=2.5, linewidth=1.4,
                     label='mean of the image', **style_of(0))
        axes[1].set(ylabel='σ, grey levels', title='values of one image')
    for ax in axes:
        ax.set(yscale='log', xlabel='iteration')
        log_numbers(ax.yaxis)
        ax.legend(fontsize=FONT - 0.5, frameon=False)
        tidy(ax)
    return save(figure, out)
