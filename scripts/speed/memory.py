"""How many bytes a step needs at its worst moment."""
from __future__ import annotations

import gc
import os
from collections.abc import Callable

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile


def peak_memory(make: Callable[[], Callable[[], None]], device: torch.device) -> int:
    """Bytes that a step needs at its worst moment: networks, gradients, optimiser and all that a step makes.

    On a GPU the allocator keeps count. On the CPU its calls are recorded during a second step and added up, on top of
    what was there before: what the process holds (``ru_maxrss``) also counts what the C library has not given back,
    and differs from run to run by a tenth; this count is the same every time. Scratch space inside of oneDNN is in
    neither a recorded call nor this count.

    Args:
        make (Callable): Makes the contender, from :meth:`Trainer.step`; it is made and thrown away here.
        device (torch.device): Where it runs.
    """
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        run = make()
        run()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    run = make()
    run()
    run.model.optimizer_g.zero_grad()  # freeing what was there before the recording is not recorded
    there = _held(run.model)
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # else it says on stderr that there is no GPU to record
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == '[memory]']
    changes = np.array([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())], dtype=np.int64)
    return there + max(0, int(changes.cumsum().max(initial=0)))


def _held(model) -> int:
    """Bytes of a model between two steps: weights and the optimiser's state."""
    networks = [getattr(model, name, None) for name in ('net_g', 'net_u', 'frozen', 'trained')]
    tensors = [t for net in networks if net is not None for t in (*net.parameters(), *net.buffers())]
    tensors += [t for state in model.optimizer_g.state.values() for t in state.values() if torch.is_tensor(t)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
