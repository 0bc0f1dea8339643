"""What the processor or the GPU computes in hardware."""
import platform
import re
from pathlib import Path

import torch

# bfloat16 products: tiles of Intel's from 2023, vectors of Intel's Cooper Lake and AMD's Zen 4, and Arm's
_BF16 = {'amx_bf16', 'avx512_bf16', 'bf16'}


def features() -> frozenset[str]:
    """Flags of the processor, as Linux lists them; none where it does not."""
    try:
        text = Path('/proc/cpuinfo').read_text(encoding='utf-8', errors='replace')
    except OSError:
        return frozenset()
    found = re.search(r'^(?:flags|Features)\s*:(.*)$', text, re.MULTILINE)
    return frozenset(found[1].split() if found else ())


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is in hardware. Where it is not it is emulated, and two or three times slower than float32."""
    if device.type == 'cuda':
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(features() & _BF16)


def name(device: torch.device) -> str:
    """What people call it."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r'^model name\s*:(.*)$', Path('/proc/cpuinfo').read_text(encoding='utf-8'), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
