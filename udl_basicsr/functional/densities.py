"""What theta alone says of the error, where the shape of the distribution is fixed: plain NumPy for scores."""
from typing import Literal, get_args

import numpy as np
import torch

from . import intervals, uncertainty
from .distributions import DISTRIBUTIONS

DensityName = Literal['laplace', 'gaussian']
DENSITIES = get_args(DensityName)
"""Of heads of which s is all."""


def not_decided(metric: str, head: str) -> str:
    """What is said of a metric of a density, where the head has one that s does not decide."""
    return (f'{metric} measures a density that s alone decides, {" or ".join(DENSITIES)}, and the head says {head}: '
            'give density: laplace to measure a Laplace density with the same scale, or remove the metric; udl '
            'coverage measures what the head says')


class Density:
    """One of :data:`DENSITIES`; e and theta in 0-255 units, arrays of one shape.

    Args:
        name (str): Which.

    Raises:
        ValueError: s does not decide it.

    Attributes:
        variance (float): sigma^2/theta^2: 2 of Laplace, pi/2 of Gauss.
    """

    def __init__(self, name: str = 'laplace'):
        if name not in DENSITIES:
            raise ValueError(f'density: expected {" or ".join(DENSITIES)}, which theta alone decides, got {name!r}')
        self.name, self._kind = name, DISTRIBUTIONS[name]()
        raw = torch.zeros(1, dtype=torch.float64)
        self.variance = float(self._kind.variance(raw) / self._kind.scale(raw)**2)

    def half_width(self, scale: np.ndarray, alpha: float) -> np.ndarray:
        """Half of the central interval that leaves out a share alpha, in grey levels."""
        if not 0 < alpha < 1:
            raise ValueError(f'alpha: expected a number between 0 and 1, got {alpha}')
        return self._kind.half_width(1 - alpha) * scale

    def calibration(self, error: np.ndarray, scale: np.ndarray, rounding: float = 0.) -> np.ndarray:
        """:func:`~udl_basicsr.functional.uncertainty.calibration_curve` over its usual levels."""
        quantiles = np.array([self._kind.half_width(level) for level in uncertainty.LEVELS])
        return uncertainty.calibration_curve(error, scale, rounding=rounding, quantiles=quantiles)

    def crps(self, error: np.ndarray, scale: np.ndarray) -> float:
        """Mean continuous ranked probability score, in grey levels."""
        return (intervals.gaussian_crps if self.name == 'gaussian' else intervals.laplace_crps)(error, scale)
