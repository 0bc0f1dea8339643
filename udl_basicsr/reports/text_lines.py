"""How wide a text is in print, and where it is broken so that it fits."""
from __future__ import annotations

from functools import lru_cache

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path


@lru_cache(maxsize=4096)
def text_inches(text: str, size: float, weight: str = 'normal') -> float:
    """The most that one line takes in the font of all figures: a PNG's letters stand on whole pixels.

    Args:
        text: Without line breaks.
        size: In points.
        weight: `normal` or `bold`.
    """
    points, *_ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size, weight=weight), False)
    return 1.06 * points / 72


def wrapped(text: str, inches: float, size: float, weight: str = 'normal') -> str:
    """Breaks a text at its spaces, and a longer word anywhere, so that no line is wider than so many inches.

    A no-break space is none of the spaces. A single character may be wider.

    Example:
        >>> wrapped('26.30 dB / 0.7587', 0.7, 7)
        '26.30 dB /\\n0.7587'
    """
    def fits(line: str) -> bool:
        return text_inches(line, size, weight) <= inches

    lines = []
    for given in text.split('\n'):
        line = ''
        for word in given.split(' '):
            longer = f'{line} {word}' if line else word
            if fits(longer):
                line = longer
                continue
            lines += [line] if line else []
            while len(word) > 1 and not fits(word):
                length = next((n for n in range(len(word) - 1, 1, -1) if fits(word[:n])), 1)
                lines.append(word[:length])
                word = word[length:]
            line = word
        lines.append(line)
    return '\n'.join(lines)
