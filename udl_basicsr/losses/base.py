"""What the losses share: a weight and a reduction, float32 under autocast, and the check of shapes."""
import functools
import inspect

import torch
from torch import Tensor, nn

from udl_basicsr.functional import losses as F


def full_precision(forward):
    """Runs a loss outside of autocast, its inputs in at least float32, as the models do; for those who call it."""

    @functools.wraps(forward)
    def wrapper(self, pred: Tensor, *args, **kwargs):
        def promote(value):
            return F.at_least_float32(value) if isinstance(value, Tensor) else value

        with torch.autocast(device_type=pred.device.type, enabled=False):
            return forward(self, promote(pred), *map(promote, args), **{k: promote(v) for k, v in kwargs.items()})

    return wrapper


KNOWN_INPUTS = ('lq', 'log_scale', 'sigma', 'weight_map')
"""What models give to losses that say nothing of it, by the names of the arguments of their ``forward``."""


def inputs_of(loss: type[nn.Module] | nn.Module) -> dict[str, bool]:
    """What a loss takes beside the prediction, by name, and whether it cannot do without.

    ``target``, and what the attribute ``needs`` of its class names. Of a loss without that attribute, such as
    BasicSR's, the arguments of ``forward`` are looked at: (pred, target, ...), or (pred) and (pred, weight) of its TV
    loss.
    """
    needs = getattr(loss, 'needs', None)
    if needs is not None:
        return dict.fromkeys(('target', *needs), True)
    arguments = dict(inspect.signature(loss.forward).parameters)
    if isinstance(loss, type):
        arguments.pop(next(iter(arguments)))  # self
    names = list(arguments)
    alone = len(names) < 2 or names[1] == 'weight'
    return {**({} if alone else {'target': True}),
            **{name: arguments[name].default is inspect.Parameter.empty for name in KNOWN_INPUTS if name in names}}


class WeightedLoss(nn.Module):
    """What every loss has: a weight, a reduction, and ``needs``.

    Args:
        loss_weight (float): Weight of the loss.
        reduction (str): ``'none'``, ``'mean'`` or ``'sum'``.

    Raises:
        ValueError: Unknown ``reduction``.

    Attributes:
        needs (tuple[str, ...]): What ``forward`` takes beside prediction and target: what the model computes (``lq``,
            ``log_scale``, ``sigma``, ``weight_map``), or any other entry of the batch.
    """
    needs: tuple[str, ...] = ()

    def __init__(self, loss_weight: float = 1.0, reduction: str = 'mean'):
        super().__init__()
        F.check_choice('reduction', reduction, ('none', 'mean', 'sum'))
        self.loss_weight = loss_weight
        self.reduction = reduction

    def _reduce(self, loss: Tensor) -> Tensor:
        return self.loss_weight * F.reduce(loss, self.reduction)


def check_shapes(**maps: Tensor) -> None:
    """Refuses maps of different shapes: broadcasting would quietly compute another loss."""
    shapes = {name: tuple(value.shape) for name, value in maps.items()}
    if len(set(shapes.values())) > 1:
        got = ', '.join(f'{name} {shape}' for name, shape in shapes.items())
        raise ValueError(f'expected maps of one shape (N, C, H, W), got {got}')
