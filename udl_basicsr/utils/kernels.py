"""How a GPU computes: in training as fast as it can or always the same, in what is measured in float32 proper."""
import contextlib
import os
import threading
from collections.abc import Iterator

import torch

_LOCK = threading.Lock()
_FLAGS = ((torch.backends.cudnn, 'allow_tf32'), (torch.backends.cuda.matmul, 'allow_tf32'),
          (torch.backends.cudnn, 'benchmark'))
_inside, _before = 0, []


@contextlib.contextmanager
def exact_kernels() -> Iterator[None]:
    """While any thread is inside: no TF32 on a GPU, and no tuning of cuDNN for each size of image.

    TF32, torch's default in convolutions, rounds factors to 10 bits. A training does not notice, while 1.7 % of the
    8-bit values of an image moved. Tuning pays for a crop that comes back ten thousand times, not for whole images.
    """
    global _inside, _before
    with _LOCK:
        if not _inside:
            _before = [getattr(backend, flag) for backend, flag in _FLAGS]
            for backend, flag in _FLAGS:
                setattr(backend, flag, False)
        _inside += 1
    try:
        yield
    finally:
        with _LOCK:
            _inside -= 1
            if not _inside:
                for (backend, flag), value in zip(_FLAGS, _before, strict=True):
                    setattr(backend, flag, value)


def set_training_kernels(deterministic: bool) -> None:
    """As ``deterministic`` of an option file has it: kernels that give the same each time, or the fastest."""
    if deterministic:  # before the first product on a GPU, where cuBLAS reads it
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic)
    # Else torch fills each new map first, 120 to 200 kernels more in a step of an EDSR of one block, for programs that
    # read what they have not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


@contextlib.contextmanager
def training_kernels(deterministic: bool) -> Iterator[None]:
    """Those of a training, to time its steps; afterwards those of before."""
    before = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    set_training_kernels(deterministic)
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before[0]
        torch.use_deterministic_algorithms(before[1])
