"""Work beside the network: the next image is read and the last ones are measured while this one is restored.

In threads, since what takes time (decoding, filters, encoding) is OpenCV and NumPy, which let go of the interpreter.
"""
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor


def read_ahead(keys: Iterable, read: Callable) -> Iterator[tuple]:
    """``(key, read(key))`` in order; the next is being read while this one is used.

    Raises:
        Exception: What ``read`` raised, at its key.
    """
    with ThreadPoolExecutor(1) as pool:
        reading = deque()
        for key in keys:
            reading.append((key, pool.submit(read, key)))
            if len(reading) > 1:
                key, future = reading.popleft()
                yield key, future.result()
        for key, future in reading:
            yield key, future.result()


class Background:
    """Calls that are made aside. Their results are kept by key; the first error of any of them is raised.

    At most two calls for each thread wait at a time, so that a fast network does not fill the memory with images.

    Args:
        threads (int): How many at once; see :func:`spare_threads`.
    """

    def __init__(self, threads: int):
        self.results = {}
        self._pool = ThreadPoolExecutor(threads)
        self._waiting = deque()
        self._limit = 2 * threads

    def call(self, key, function: Callable, *args) -> None:
        """Calls ``function(*args)`` soon. The very first call is made at once.

        What a metric sets up when it is first used (a judge's weights, a cache) is thus set up once, by one thread.
        """
        if not self.results and not self._waiting:
            self.results[key] = function(*args)
            return
        if len(self._waiting) == self._limit:
            self._collect()
        self._waiting.append((key, self._pool.submit(function, *args)))

    def _collect(self) -> None:
        key, future = self._waiting.popleft()
        self.results[key] = future.result()

    def __enter__(self) -> 'Background':
        return self

    def __exit__(self, kind, value, traceback) -> None:
        try:
            while kind is None and self._waiting:
                self._collect()
        finally:
            self._pool.shutdown(cancel_futures=True)


def spare_threads(processes: int) -> int:
    """Threads for each of ``processes`` that share this machine: at most 8, at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return max(1, min(8, cpus // processes))
