"""What BasicSR 1.4.2 imports and newer torchvision lacks. Nothing but torchvision is imported here."""
import importlib.util
import sys
import types


def install_torchvision_shim() -> None:
    """Provides ``torchvision.transforms.functional_tensor``, which BasicSR imports and torchvision >= 0.17 lacks.

    basicsr/data/degradations.py:8 does ``from torchvision.transforms.functional_tensor import rgb_to_grayscale``. The
    same function lives in ``torchvision.transforms.functional`` in every release. The shim goes into ``sys.modules``
    when ``udl_basicsr`` is imported, so that spawned workers, which import the package again, have it too.
    """
    name = 'torchvision.transforms.functional_tensor'
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return
    from torchvision.transforms.functional import rgb_to_grayscale
    shim = types.ModuleType(name, 'Stand-in made by udl_basicsr for BasicSR.')
    shim.__dict__['rgb_to_grayscale'] = rgb_to_grayscale
    sys.modules[name] = shim
