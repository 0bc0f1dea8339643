"""Reads the JSON files that people hand to the reports, which others may have made: whole and usable, or not at all."""
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import UdlError

_MOST_DIGITS = 18  # of an integer; all have room in 64 bits


class JsonError(UdlError, ValueError):
    """Why a file is no JSON that can be used, as a part of a sentence."""


def read_json(path: str | Path, parse_float: Callable[[str], float] = float) -> Any:
    """What a JSON file says.

    Numbers that are larger than a float, integers beyond 64 bits and halves of surrogate pairs (``"\\ud800"``), which
    no other program could be given, are refused here, where the file can still be named.

    Args:
        path: The file.
        parse_float: Of numbers with a point or an exponent.

    Raises:
        JsonError: It is no JSON, or has such values.
        OSError: It cannot be read.
    """
    def integer(text: str) -> int:
        if len(text.lstrip('-')) > _MOST_DIGITS:
            raise JsonError(f'the number {_short(text)} has {len(text)} digits')
        return int(text)

    def number(text: str) -> float:
        value = parse_float(text)
        if math.isinf(value):
            raise JsonError(f'the number {_short(text)} is larger than any that can be computed with')
        return value

    try:
        file = Path(path) if isinstance(path, str) else path
        content = json.loads(file.read_text(encoding='utf-8'), parse_int=integer, parse_float=number)
        json.dumps(content, ensure_ascii=False).encode('utf-8')
    except UnicodeEncodeError as error:
        raise JsonError(f'it has half a character, {error.object[error.start]!a}, which no text can hold') from error
    except RecursionError as error:
        raise JsonError('too many brackets within one another') from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise JsonError(str(error)) from error
    return content


def _short(text: str) -> str:
    return text if len(text) <= 20 else f'{text[:20]}...'
