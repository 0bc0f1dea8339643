"""What the processor or the GPU computes in hardware, and what makes the processor compute faster."""
import ctypes
import functools
import logging
import os
import platform
import re
from pathlib import Path

import torch

# bfloat16 products: Intel's tiles (from 2023), the vectors of Intel (from Cooper Lake) and AMD (from Zen 4), and Arm's
_BF16 = {'amx_bf16', 'avx512_bf16', 'bf16'}
# The names that oneDNN, which computes convolutions, has for Intel's and AMD's instructions before these
_OLDER = re.compile(r'sse41|avx|avx2(_vnni(_2)?)?|avx512_mic(_4ops)?|avx512_core(_vnni)?', re.IGNORECASE)
_WITH_TILES = re.compile(r'(default|all|\w+_amx(_\w+)?)?', re.IGNORECASE)


@functools.cache
def features() -> frozenset[str]:
    """The processor's flags as Linux lists them; none on other systems."""
    try:
        text = Path('/proc/cpuinfo').read_text(encoding='utf-8', errors='replace')
    except OSError:
        return frozenset()
    found = re.search(r'^(?:flags|Features)\s*:(.*)$', text, re.MULTILINE)
    return frozenset(found[1].split() if found else ())


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is in hardware, and oneDNN not told to do without it (``ONEDNN_MAX_CPU_ISA``).

    Otherwise it is emulated, and slower than float32: two to three times with AVX-512, a hundred times with AVX2 alone.
    """
    if device.type == 'cuda':
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(features() & _BF16) and not _OLDER.fullmatch(_told())


def has_tiles() -> bool:
    """Whether the processor multiplies tiles of bfloat16 (AMX), and oneDNN is not told to do without them."""
    return 'amx_bf16' in features() and bool(_WITH_TILES.fullmatch(_told()))


def _told() -> str:
    """The newest instructions that oneDNN may use, in its own words; empty where it has its choice."""
    return os.environ.get('ONEDNN_MAX_CPU_ISA') or os.environ.get('DNNL_MAX_CPU_ISA', '')


def auto_amp(device: torch.device) -> str | None:
    """What ``amp: auto`` is: ``bf16`` where it is in hardware, else None, float32."""
    return 'bf16' if has_bf16(device) else None


def warn_where_emulated(amp: str | None, device: torch.device) -> None:
    """Warns in the log if ``amp`` is ``bf16`` and the hardware is known not to compute it."""
    if amp == 'bf16' and not has_bf16(device) and (device.type == 'cuda' or features()):
        logging.getLogger('basicsr').warning(
            f'amp: bf16: {name(device)} computes no bfloat16 in hardware. It is emulated, and may take a hundred times '
            'as long as float32. Leave out amp to compute in float32')


def inference_format(amp: str | None, device: torch.device) -> torch.memory_format:
    """The memory format of the images that networks restore: channels_last where a CPU multiplies tiles of bfloat16.

    EDSR-S then takes less than a quarter of the time, RCAN 0.6 of it; SwinIR and HAT take as long as before. Not in
    float32: results would differ in their last digits from machine to machine.
    """
    tiles = amp == 'bf16' and device.type == 'cpu' and has_tiles()
    return torch.channels_last if tiles else torch.contiguous_format


def instructions() -> str:
    """The newest instructions that a CPU computes networks with: ``AMX``, ``AVX512_BF16``, else as torch names them."""
    if has_tiles():
        return 'AMX'
    bf16 = 'avx512_bf16' in features() and has_bf16(torch.device('cpu'))
    return 'AVX512_BF16' if bf16 else torch.backends.cpu.get_cpu_capability()


def name(device: torch.device) -> str:
    """The name that people know the processor or the GPU by."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r'^model name\s*:(.*)$', Path('/proc/cpuinfo').read_text(encoding='utf-8'), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def keep_freed_memory() -> bool:
    """Tells the C library to keep freed memory, which it would give back to the system after every large tensor.

    Each step asks for the same sizes again. The system clears each page before it hands it out: 6 to 12 % of a step's
    time. The process then holds its peak until it ends. Only glibc can be told.

    Returns:
        bool: Whether it was told.
    """
    if platform.libc_ver()[0] != 'glibc':
        return False
    trim_threshold, mmap_threshold = -1, -3
    mallopt = ctypes.CDLL(None).mallopt
    mapped = mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25)  # the most that older versions take
    return bool(mapped and mallopt(trim_threshold, 2**31 - 1))


def map_expm1() -> None:
    """Has the system map the page that :func:`torch.expm1`, and so ELU, reads for -0.0 alone.

    With AVX-512 the result for -0.0 is loaded under a mask. Until its page has been read once, the processor is slow to
    give up each masked load, one for every sixteen numbers: ELU of 64 maps of 192x192 takes 20 ms instead of 3 on an
    EPYC (Zen 4). Computing expm1(-0.0) reads the page.
    """
    torch.expm1(torch.full((16, ), -0.0, dtype=torch.float32, device='cpu'))  # whatever the defaults are
