"""How messages quote what comes out of files and libraries: in one line, without a character that moves the cursor."""
import difflib
from collections.abc import Iterable
from typing import Any

_LONGEST = 8000
_LONGEST_NAME = 200


def one_line(text: Any, longest: int = _LONGEST) -> str:
    """``text`` in one line: line breaks, escape sequences and invisible characters are written out, what is long is
    cut off."""
    text = str(text)
    shown = ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text[:longest])
    return shown if len(text) <= longest else f'{shown}... ({len(text)} characters)'


def some(names: Iterable[Any], count: int = 4) -> str:
    """The first names of many, such as the keys of a file, and how many more there are."""
    names = list(names)
    rest = f', and {len(names) - count} more' if len(names) > count else ''
    return ', '.join(one_line(name, _LONGEST_NAME) for name in names[:count]) + rest


def duration(seconds: float) -> str:
    """Seconds for people."""
    for unit, size in (('years', 365 * 86400), ('d', 86400), ('h', 3600), ('min', 60)):
        if seconds >= 2 * size:
            return f'{seconds / size:,.1f} {unit}'
    return f'{seconds:.0f} s'


def signed(value: float, digits: int) -> str:
    """A difference as it is printed, with a true minus sign; what rounds to zero has none."""
    text = f'{value:+.{digits}f}'
    return text[1:] if not float(text) else text.replace('-', '−')


def first_line(error: BaseException) -> str:
    """What an exception of a library says, as a part of a line; the name of its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return one_line(lines[0], 300) if lines else type(error).__name__


def kind_and_line(error: BaseException) -> str:
    """The same behind the name of its class, where the sentence alone would not say what went wrong."""
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f'{kind}: {line}'


def nearest(name: Any, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is nearest to an unknown one, whatever their case; None where none is near.

    Args:
        name: The unknown one.
        known: Those that there are.
        cutoff: How near it must be, from 0 to 1 (``difflib.get_close_matches``).
    """
    lower = {k.lower(): k for k in sorted({str(k) for k in known})}
    name = str(name)[:100].lower()
    near = difflib.get_close_matches(name, lower, cutoff=cutoff)
    if not near:
        return None

    def distance(known_name: str) -> tuple[float, bool]:
        # of names as near, that with the same letters in another order: EDRS is EDSR, not EDVR
        return -difflib.SequenceMatcher(None, known_name, name).ratio(), sorted(known_name) != sorted(name)

    return lower[min(near, key=distance)]


def did_you_mean(name: Any, known: Iterable[str], listing: int = 12) -> str:
    """What to say after an unknown name: the nearest known one, or else all of them when they are few."""
    known = sorted({str(k) for k in known})
    if near := nearest(name, known):
        return f"; did you mean '{near}'?"
    if not known or not listing:
        return ''
    return f'; known: {", ".join(known[:listing])}{", ..." if len(known) > listing else ""}'
