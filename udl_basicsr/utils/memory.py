"""When the memory does not suffice: by which errors that is known, and how what is left of the try is given back."""
import gc

import torch

# cuDNN and cuBLAS, which ask for memory of their own, say it in words of theirs
_SAYS = ('allocate memory', 'out of memory', 'alloc_failed', 'unable to find an engine', 'valid cudnn algorithm')


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, of a library below it or of Python says that the memory did not suffice."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _SAYS)


def give_back(device: torch.device) -> None:
    """Frees what a try has left, on the device too.

    To be called once the error is handled: while it is, its traceback holds the tensors of every function it passed.
    """
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.empty_cache()
