"""What BasicSR 1.4.2 imports and newer torchvision and SciPy lack. Nothing else is imported here."""
import contextlib
import importlib.util
import sys
import types
from collections.abc import Iterator


def install_shims() -> None:
    """Provides both modules where they are lacking."""
    _install_torchvision_shim()
    name = 'scipy.ndimage.filters'  # basicsr/metrics/niqe.py:5; SciPy 2 is to have scipy.ndimage alone
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        sys.modules[name] = importlib.import_module('scipy.ndimage')


def _install_torchvision_shim() -> None:
    """Provides ``torchvision.transforms.functional_tensor``, which BasicSR imports and torchvision >= 0.17 lacks.

    basicsr/data/degradations.py:8 does ``from torchvision.transforms.functional_tensor import rgb_to_grayscale``. The
    same function lives in ``torchvision.transforms.functional`` in every release. The shim goes into ``sys.modules``
    when ``udl_basicsr`` is imported, so that spawned workers, which import the package again, have it too.
    """
    name = 'torchvision.transforms.functional_tensor'
    with _compiler_later():
        if name in sys.modules or importlib.util.find_spec(name) is not None:
            return
        from torchvision.transforms.functional import rgb_to_grayscale
    shim = types.ModuleType(name, 'Stand-in made by udl_basicsr for BasicSR.')
    shim.__dict__['rgb_to_grayscale'] = rgb_to_grayscale
    sys.modules[name] = shim


@contextlib.contextmanager
def _compiler_later() -> Iterator[None]:
    """While torchvision is imported, torch's compiler is not, unless it is there already.

    torchvision/ops/roi_align.py:7 takes ``is_compile_supported`` from it, for an operation that nothing here needs.
    That takes two seconds, as long as torch itself, in every command and in each loader process that is spawned.
    """
    name = 'torch._dynamo.utils'
    if name in sys.modules or 'torch._dynamo' in sys.modules:
        yield
        return

    def real():
        if sys.modules.get(name) is later:
            del sys.modules[name]
        return importlib.import_module(name)

    later = types.ModuleType(name, 'Stand-in made by udl_basicsr while torchvision is imported.')
    def anything_else(attribute: str):
        if attribute.startswith('__'):  # inspect looks for __file__ in all modules that there are
            raise AttributeError(attribute)
        return getattr(real(), attribute)

    later.__dict__['is_compile_supported'] = lambda device: real().is_compile_supported(device)
    later.__dict__['__getattr__'] = anything_else
    sys.modules[name] = later
    try:
        yield
    finally:
        if sys.modules.get(name) is later:
            del sys.modules[name]
