"""Networks that are tried on a small image, with true values: stopped before they take the memory or the time."""
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

MOST_BYTES = 2**30
"""Of one tensor: 64 channels of 2048x2048 pixels in float32."""
MOST_OPERATIONS = 2**37
"""More than the largest networks need on 32x64 pixels; seconds of one core."""


class TooMuchError(RuntimeError):
    """What is tried would take more than any network of this field does."""


class Bounded(TorchDispatchMode):
    """While active, each operation is asked on torch's meta device how large its result will be, before it begins.

    Raises:
        TooMuchError: A result has more than MOST_BYTES, or all together take more than MOST_OPERATIONS.
    """

    def __init__(self):
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(isinstance(leaf, Tensor) and leaf.device.type != 'meta' for leaf in tree_leaves((args, kwargs))):
            self._ask(func, *tree_map(_to_meta, (args, kwargs)))
        return func(*args, **kwargs)

    def _ask(self, func, args: tuple, kwargs: dict) -> None:
        try:
            out = func(*args, **kwargs)
        except Exception:  # it looks at values, or is wrong: then it says so itself
            return
        size = max((t.untyped_storage().nbytes() for t in tree_leaves(out) if isinstance(t, Tensor)), default=0)
        if size > MOST_BYTES:
            raise TooMuchError(f'it makes a tensor of {size / 2**30:.3g} GiB')
        if count := flop_registry.get(func.overloadpacket):
            self.operations += count(*args, **kwargs, out_val=out)
        if self.operations > MOST_OPERATIONS:
            raise TooMuchError(f'it takes more than {MOST_OPERATIONS:.1e} operations')


def _to_meta(leaf):
    if not isinstance(leaf, Tensor) or leaf.layout != torch.strided:
        return leaf
    return torch.empty_strided(leaf.size(), leaf.stride(), dtype=leaf.dtype, device='meta')
