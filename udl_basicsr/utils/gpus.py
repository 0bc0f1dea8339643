"""Which GPUs there are, and by what name another process is given one of them."""
import os

import torch


def gpu_count() -> int:
    """How many GPUs can be used: none where the driver is too old for torch, which counts them all the same."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def gpu_names() -> list[str]:
    """What to put into ``CUDA_VISIBLE_DEVICES`` of another process for each GPU that this one sees.

    An entry of the variable itself where it is set: a number of the machine, or the UUID that a scheduler gives.
    """
    count, given = gpu_count(), os.environ.get('CUDA_VISIBLE_DEVICES')
    names = map(str, range(count)) if given is None else (name.strip() for name in given.split(','))
    return list(names)[:count]
