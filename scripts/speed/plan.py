"""What one run measures, and for how long."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from .contenders import Case
from .pairing import CLOCKS, paired

_SAMPLE = 0.5  # seconds of steps that are timed together, at most


@dataclass(frozen=True)
class Plan:
    """What one run measures, and for how long.

    Attributes:
        cases (tuple): The first is the one that the figures are of.
        rounds (int): Of every comparison, at most.
        seconds (float): For every comparison: it ends with the round in which they are over, but not before three.
        memory (Case | None): What the memory of the first network is measured of; None: of the first case.
        compiled (tuple): Networks with torch.compile among the levers.
        growth (tuple): Cases, of which time and memory are put side by side.
        validated (tuple): Networks whose validation is measured; the first is the one that the figure is of. May be
            empty.
        images (int): Synthetic images for that.
        image_size (tuple): Their height and width.
        backends (tuple): Ways to store the training data, of which waiting is measured.
        workers (tuple): Loader processes, likewise.
        clock (str): What steps are timed by, one of ``CLOCKS``: the time on the wall, or that of this process on the
            processors, which others who compute on the same machine do not lengthen by much, or the GPU's.
        steps (int): How many are timed together, or as many as take half a second, where that is less.
    """
    cases: tuple[Case, ...]
    rounds: int
    seconds: float
    memory: Case | None = None
    compiled: tuple[str, ...] = ()
    growth: tuple[Case, ...] = ()
    validated: tuple[str, ...] = ('tiny', )
    images: int = 20
    image_size: tuple[int, int] = (320, 480)
    backends: tuple[str, ...] = ()
    workers: tuple[int, ...] = ()
    clock: str = 'wall'
    steps: int = 1

    def time(self, contenders: Mapping[str, Callable[[], object]], warmup: int, title: str = '', share: float = 1
             ) -> dict[str, list[float]]:
        """:func:`paired`, by this plan, in a ``share`` of its seconds."""
        clock, steps = CLOCKS[self.clock], self.steps
        if steps > 1:  # the host need not run ahead of steps that are long: HAT's would take minutes
            first = next(iter(contenders.values()))
            first()
            steps = max(1, min(steps, int(_SAMPLE / max(clock(first), 1e-6))))
        return paired(contenders, self.rounds, warmup, self.seconds * share, title, clock, steps)


def make_plan(device: torch.device, quick: bool, networks: Sequence[str] | None = None,
              batch: int | None = None, patch: int | None = None, rounds: int | None = None,
              seconds: float | None = None, clock: str = 'wall',
              compiled: Sequence[str] | None = None) -> Plan:
    """A plan for a device; what is None follows from the device and from ``quick`` (two minutes on two CPU cores)."""
    gpu = device.type == 'cuda'
    steps = 5 if gpu else 1
    networks = networks or (('EDSR-S', ) if quick else ('EDSR-S', 'EDSR', 'RCAN', 'SwinIR', 'HAT'))
    if quick:
        cases = tuple(Case.printed(name, batch, patch) if gpu else Case(name, batch or 2, patch or 24)
                      for name in networks)
        # What is beyond the network is the same for all: on a GPU, where each has a run of its own, once.
        validated = () if gpu and 'EDSR-S' not in networks else ('tiny', )
        return Plan(cases, rounds or 9, seconds or 15, compiled=tuple(compiled or ()), validated=validated, images=10,
                    clock=clock, steps=steps)
    base = Case(batch=batch or (16 if gpu else 4), patch=patch or 48)
    cases = tuple(replace(base, network=name) if name == 'EDSR-S' else Case.printed(name) if gpu else Case(name, 1, 16)
                  for name in networks)
    middle = base if gpu else replace(base, batch=1, patch=24)
    growth = [replace(middle, patch=n) for n in ((24, 48, 96) if gpu else (12, 24, 48))]
    growth += [replace(middle, batch=n) for n in ((1, 4, 16, 64) if gpu else (1, 2, 4))]
    growth += [replace(middle, scale=n) for n in (2, 3, 4)]
    growth += [replace(middle, width=n) for n in (32, 64, 128)]
    return Plan(
        cases, rounds or 20, seconds or 300,
        memory=replace(base, batch=16 if gpu else 4, patch=48) if cases[0] == base else None,
        compiled=tuple(networks if compiled is None else compiled), growth=tuple(dict.fromkeys(growth)),
        validated=('tiny', 'EDSR-S') if gpu else ('tiny', ), images=20, backends=('disk', 'lmdb', 'memory'),
        workers=(0, 1, 2), clock=clock, steps=steps)
