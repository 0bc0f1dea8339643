"""Colours and dashes: a method has the same in every figure and in the report, and no two methods have both alike."""
from __future__ import annotations

from typing import Any

COLOURS = ('#0072b2', '#d55e00', '#00906a', '#b5489a', '#a07000', '#6a51c7', '#11879a', '#77771a')
"""As dark as text on white must be, and told apart by the colour-blind as far as eight are. Black: the reference."""
DASHES = ('-', (0, (4, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
"""In units of the line's width; templates/report.css has the same in pixels."""
BETTER, WORSE, GRAY = '#0072b2', '#b4440b', '#6b6b6b'
"""Of what is decided either way, and of what is not."""


def style_of(number: int) -> dict[str, Any]:
    """Colour and dashes of the curve of that number: 40 that can be told apart, the first eight by colour alone."""
    return {'color': COLOURS[number % len(COLOURS)], 'linestyle': DASHES[number // len(COLOURS) % len(DASHES)]}


def class_of(position: int) -> str:
    """The same as classes of the report's style sheet, for a method's position: the reference, which is first, is ink.

    Example:
        >>> class_of(0), class_of(1), class_of(10)
        ('ink', 'c0 d0', 'c1 d1')
    """
    if not position:
        return 'ink'
    number = position - 1
    return f'c{number % len(COLOURS)} d{number // len(COLOURS) % len(DASHES)}'
