"""Which way is up, decimals and unit of the metrics of ``val.metrics``: stated on the functions, ours and yours.

A function of your own states it by attributes, of which each may be missing::

    @METRIC_REGISTRY.register()
    def my_lpips(img, img2, **kwargs): ...
    my_lpips.higher_is_better = False  # or True; None: neither
    my_lpips.decimals, my_lpips.unit = 4, ''
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from basicsr.utils.registry import METRIC_REGISTRY

from udl_basicsr.utils.metric_facts import MetricFacts, facts_by_name

_BASICSR = {'calculate_psnr': 'psnr', 'calculate_psnr_pt': 'psnr', 'calculate_ssim': 'ssim',
            'calculate_ssim_pt': 'ssim', 'calculate_niqe': 'niqe'}
_DIRECTIONS = {'higher': True, 'lower': False}


def states(higher_is_better: bool | None, decimals: int = 4, unit: str = '') -> Callable[[Callable], Callable]:
    """A decorator that puts facts on a metric's function; below the one that registers it."""
    def put(function: Callable) -> Callable:
        function.higher_is_better, function.decimals, function.unit = higher_is_better, decimals, unit
        return function
    return put


def stated_facts(metric: str) -> MetricFacts | None:
    """What a registered function states of itself; None where it says nothing of its direction.

    Args:
        metric: The ``type`` of a block, such as ``calculate_psnr``.

    Raises:
        ValueError: An attribute of another kind.
    """
    if metric in _BASICSR:
        return facts_by_name(_BASICSR[metric])
    function = dict(iter(METRIC_REGISTRY)).get(metric)
    if function is None or not hasattr(function, 'higher_is_better'):
        return None
    return _read(function, function.higher_is_better)


def block_facts(block: Mapping[str, Any]) -> MetricFacts:
    """Facts of a block of ``val.metrics``: those of its function, or else the direction that its ``better`` says.

    Example:
        >>> block_facts({'type': 'calculate_ause'}).better
        'lower'
    """
    if (stated := stated_facts(block['type'])) is not None:
        return stated
    return _read(dict(iter(METRIC_REGISTRY)).get(block['type']), _DIRECTIONS.get(block.get('better', '')))


def without_better(block: Mapping[str, Any]) -> dict[str, Any]:
    """A block as BasicSR's ``calculate_metric`` takes it, which hands all but its ``type`` on to the function."""
    return {key: value for key, value in block.items() if key != 'better'}


def facts_for_scores(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, MetricFacts]:
    """The field ``metrics`` of scores: the facts of each block of ``val.metrics``, by its name."""
    return {name: block_facts(block) for name, block in metrics.items()}


def _read(function: Callable | None, higher_is_better: bool | None) -> MetricFacts:
    return MetricFacts(higher_is_better, getattr(function, 'decimals', 4), getattr(function, 'unit', ''))
