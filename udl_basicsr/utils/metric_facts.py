"""What is known of a metric beside its values: which way is up, with how many decimals and in which unit it is printed.

Metrics state it where they are registered (:mod:`udl_basicsr.metrics.facts`); scores and records keep it.
"""
from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class MetricFacts:
    """Facts of one metric.

    Attributes:
        higher_is_better: None where neither is, or nobody has said: such a metric is ranked nowhere.
        decimals: It is printed with, from 0 to 17.
        unit: Of its values, such as ``dB``; may be empty.

    Raises:
        ValueError: A value of another kind.
    """
    higher_is_better: bool | None = None
    decimals: int = 4
    unit: str = ''

    def __post_init__(self) -> None:
        if self.higher_is_better is not None and not isinstance(self.higher_is_better, bool):
            raise ValueError(f'higher_is_better: expected true, false or none, got {self.higher_is_better!r}')
        if isinstance(self.decimals, bool) or not isinstance(self.decimals, int) or not 0 <= self.decimals <= 17:
            raise ValueError(f'decimals: expected an integer from 0 to 17, got {self.decimals!r}')
        if not isinstance(self.unit, str):
            raise ValueError(f'unit: expected a text, got {self.unit!r}')

    @property
    def sign(self) -> int:
        """1 where higher is better, −1 where lower is, 0 where neither is known."""
        return {True: 1, False: -1, None: 0}[self.higher_is_better]

    @property
    def better(self) -> str | None:
        """The direction in BasicSR's words, ``higher`` or ``lower``."""
        return {True: 'higher', False: 'lower', None: None}[self.higher_is_better]

    def title(self, metric: str) -> str:
        """The heading of the metric's column.

        Example:
            >>> MetricFacts(False).title('lpips')
            'LPIPS ↓'
        """
        return metric.upper().replace('_', ' ') + (' ↓' if self.higher_is_better is False else '')

    @property
    def in_unit(self) -> str:
        """What follows the name of a value with a unit: ``', dB'``; empty without one."""
        return f', {self.unit}' if self.unit else ''

    def axis(self, metric: str, of: str = '') -> str:
        """The name of an axis: metric, what of it, unit and direction.

        Example:
            >>> MetricFacts(True, 2, 'dB').axis('psnr', ' minus that of L1')
            'PSNR minus that of L1, dB (higher is better)'
        """
        name = metric.upper().replace('_', ' ') + of + self.in_unit
        return f'{name} ({self.better} is better)' if self.better else name

    def text(self, value: float | None) -> str:
        """A value as it is printed; a dash where there is none, or none that is finite."""
        return '–' if value is None or not math.isfinite(value) else f'{value:.{self.decimals}f}'


def read_facts(values: Any) -> MetricFacts:
    """Facts as a JSON file has them.

    Raises:
        ValueError: Something else than an object of exactly these fields.
    """
    names = [field.name for field in fields(MetricFacts)]
    if not isinstance(values, dict) or values.keys() != {*names}:
        raise ValueError(f'expected an object with {", ".join(names)}, got {values!r:.80}')
    return MetricFacts(**values)


_BY_NAME = {
    'psnr': MetricFacts(True, 2, 'dB'),
    'ssim': MetricFacts(True),
    'lpips': MetricFacts(False),
    'niqe': MetricFacts(False),
    'pll': MetricFacts(True, 2, 'nats'),
    'sigma_psnr': MetricFacts(True, 2, 'dB'),
    'likelihood': MetricFacts(True, 4, 'nats'),
    'ause': MetricFacts(False),
    'spearman': MetricFacts(True),
    'calibration': MetricFacts(False),
    'fitting': MetricFacts(False),
}
"""The names of printed tables, of our option files, and of scores from before these facts were stored with them."""


def facts_by_name(metric: str) -> MetricFacts:
    """What is known of a metric by its name alone, exactly as it is written; of any other name nothing.

    Example:
        >>> facts_by_name('lpips').higher_is_better, facts_by_name('my_lpips').higher_is_better
        (False, None)
    """
    return _BY_NAME.get(metric, MetricFacts())
