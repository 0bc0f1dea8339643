"""What the processor or the GPU computes in hardware."""
import ctypes
import logging
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
    """Whether bfloat16 is in hardware. Where it is not it is emulated, and much slower than float32: twice to three
    times with AVX-512, a hundred times with AVX2."""
    if device.type == 'cuda':
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(features() & _BF16)


def warn_where_emulated(amp: str | None, device: torch.device) -> None:
    """Says in the log that ``bf16`` was asked for where it is known not to be in hardware."""
    if amp == 'bf16' and not has_bf16(device) and (device.type == 'cuda' or features()):
        logging.getLogger('basicsr').warning(
            f'amp: bf16: {name(device)} has no bfloat16 in hardware. It is emulated, and may take a hundred times as '
            'long as float32, which is what it computes without amp')


def name(device: torch.device) -> str:
    """What people call it."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r'^model name\s*:(.*)$', Path('/proc/cpuinfo').read_text(encoding='utf-8'), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def keep_freed_memory() -> bool:
    """Tells the C library to keep what is freed, in place of giving it back to the system after every large tensor.

    A step frees and asks for the same sizes again, and each page that comes back from the system is cleared first: 6 to
    12 % of a step's time. The process holds what it held at its worst moment. Only glibc can be told.

    Returns:
        bool: Whether it was.
    """
    if platform.libc_ver()[0] != 'glibc':
        return False
    trim_threshold, mmap_threshold = -1, -3
    mallopt = ctypes.CDLL(None).mallopt
    mapped = mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25)  # the most that older ones take
    return bool(mapped and mallopt(trim_threshold, 2**31 - 1))


def map_expm1() -> None:
    """Has the system map the page that :func:`torch.expm1`, and so ELU below 0, reads for -0.0 alone.

    With AVX-512 that value is loaded under a mask, which the processor gives up slowly, for every sixteen numbers anew,
    as long as its page was never read: 20 ms instead of 3 for 64 maps of 192x192 on an EPYC (Zen 4). -0.0 reads it.
    """
    torch.expm1(torch.full((16, ), -0.0))
