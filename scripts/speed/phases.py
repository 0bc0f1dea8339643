"""What a command spends its processor time on, by the names of parts: of each thread what it computes itself."""
from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class Phases:
    """Adds up the processor time of parts. Of a part within another one the time counts for the inner one alone.

    Others who compute on the same machine do not lengthen it; what sleeps or waits for a disk is not in it.

    Attributes:
        spent (dict): Name to seconds, since :meth:`take`.
    """
    REST = 'the rest'

    def __init__(self):
        self.spent: dict[str, float] = {}
        self._local, self._lock = threading.local(), threading.Lock()
        self._taken = 0.

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        stack = self._local.__dict__.setdefault('stack', [])
        begin = time.thread_time()
        stack.append(0.)  # of the parts within
        try:
            yield
        finally:
            whole, within = time.thread_time() - begin, stack.pop()
            if stack:
                stack[-1] += whole
            with self._lock:
                self.spent[name] = self.spent.get(name, 0.) + whole - within

    @contextmanager
    def watched(self, parts: Mapping[str, Iterable[tuple[Any, str]]]) -> Iterator[None]:
        """Makes functions of modules and classes parts, for a time: name to ``(owner, attribute)``."""
        before = [(owner, attribute, getattr(owner, attribute))
                  for those in parts.values() for owner, attribute in those]
        try:
            for name, those in parts.items():
                for owner, attribute in those:
                    setattr(owner, attribute, self._timed(getattr(owner, attribute), name))
            yield
        finally:
            for owner, attribute, function in before:
                setattr(owner, attribute, function)

    def _timed(self, function: Callable, name: str) -> Callable:
        def timed(*args, **kwargs):
            with self.part(name):
                return function(*args, **kwargs)
        return timed

    def take(self) -> dict[str, float]:
        """All parts since the last call, with what the process has spent on none of them; begins anew."""
        now = time.process_time()
        with self._lock:
            spent, self.spent = self.spent, {}
        rest, self._taken = now - self._taken - sum(spent.values()), now
        return {**spent, self.REST: rest}
