"""What is measured is computed in float32 proper, whatever speeds training up."""
import contextlib
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
