"""Timing side by side: contenders in turn, ratios within a round, medians and quartiles over the rounds."""
from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from tqdm import tqdm

_MIN_ROUNDS = 3


def now() -> float:
    """Seconds, once the accelerator has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def by(clock: Callable[[], float]) -> Callable[[Callable[[], object]], float]:
    """What tells how many seconds of a clock a function takes."""
    def seconds(run: Callable[[], object]) -> float:
        started = clock()
        run()
        return clock() - started
    return seconds


def gpu(run: Callable[[], object]) -> float:
    """Seconds between an event before a function's first kernel and one after its last, by the GPU's own clock.

    Where the host is late with a launch the GPU's idle time counts, as it does in a training. Each sample has events
    of its own, since torch tells what lies between two in float32: an hour to a quarter of a millisecond.
    """
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


CLOCKS = {'wall': by(now), 'processor': by(time.process_time), 'gpu': gpu}


def paired(contenders: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2, seconds: float = float('inf'),
           title: str = '', clock: Callable[[Callable[[], object]], float] = CLOCKS['wall'], steps: int = 1,
           ) -> dict[str, list[float]]:
    """Times contenders in turn. Each round begins with another one, and every other round goes backwards.

    Args:
        contenders (Mapping): Name to what is timed.
        rounds (int): How many, 1 or more.
        warmup (int): Rounds before these, not timed.
        seconds (float): No round is begun after so long, once there are three. The warm-up counts.
        title (str): Of the progress bar on stderr; none where it is empty.
        clock (Callable): Tells the seconds that a function takes, one of ``CLOCKS``.
        steps (int): How often a contender is called for each sample, so that on a GPU the host can run ahead.

    Returns:
        dict: Name to the seconds of a call in each round; all lists are equally long.
    """
    names, samples, spent = list(contenders), {name: [] for name in contenders}, 0.
    bar = tqdm(range(-warmup, rounds), title, unit='round', disable=not title, dynamic_ncols=True)
    for number in bar:
        if number >= _MIN_ROUNDS and spent > seconds:
            break
        first = number % len(names)
        order = names[first:] + names[:first]
        for name in order if number % 2 == 0 else reversed(order):
            taken = clock(lambda name=name: [contenders[name]() for _ in range(steps)])
            spent += taken
            if number >= 0:
                samples[name].append(taken / steps)
    bar.close()
    return samples


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(numerator, denominator, strict=True)]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile, by linear interpolation; of one value three times it."""
    if len(values) == 1:
        return (values[0], ) * 3
    return tuple(statistics.quantiles(values, n=4, method='inclusive'))


def figure(values: Sequence[float]) -> dict:
    """``{median, low, high, samples}`` of raw values."""
    low, median, high = quartiles(values)
    return {'median': median, 'low': low, 'high': high, 'samples': list(values)}
