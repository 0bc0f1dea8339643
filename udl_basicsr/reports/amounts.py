"""What networks cost, as the papers print it: parameters, multiply-accumulate operations, run time, training time."""
from __future__ import annotations

HR_SIZE = (720, 1280)
"""Height and width of the HR image that the papers say it of, unless a table says another."""


def parse_amount(text: str) -> float:
    """A printed amount as a number: parameters and operations in ones, times in milliseconds.

    Example:
        >>> parse_amount('1370K'), parse_amount('316.2G'), parse_amount('1,587.9ms'), parse_amount('2.00 ms/iter')
        (1370000.0, 316200000000.0, 1587.9, 2.0)
    """
    text = text.replace(',', '').removesuffix('/iter').removesuffix('ms').strip()
    factor = {'K': 1e3, 'M': 1e6, 'G': 1e9}.get(text[-1:], 1.)
    return round(float(text.rstrip('KMG')) * factor, 6)


def format_amount(cost: str, value: float) -> str:
    """An amount as the papers print it.

    Example:
        >>> [format_amount(*a) for a in (('parameters', 667_000), ('parameters', 1.37e6), ('macs', 3.162e11))]
        ['667K', '1.37M', '316.2G']
        >>> format_amount('runtime', 56.54), format_amount('training', 2.004)
        ('56.5ms', '2.00 ms/iter')
    """
    if cost == 'parameters':
        return f'{value / 1e3:.0f}K' if value < 1e6 else f'{value / 1e6:.2f}M'
    if cost == 'macs':
        return f'{value / 1e9:.1f}G'
    return f'{value:.1f}ms' if cost == 'runtime' else f'{value:.2f} ms/iter'
