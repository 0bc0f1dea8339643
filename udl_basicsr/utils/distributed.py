"""Several processes: how they are started under torchrun and Slurm, and what they tell one another.

Line numbers are those of BasicSR 1.4.2 as published on the package index.
"""
import datetime
import math
import os
import re
import socket
import subprocess
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from .children import end_with_torchrun
from .errors import MISUSED, UdlError
from .gpus import gpu_count
from .text import first_line, one_line

TIMEOUT = 30
"""Minutes; gloo's own."""
_AS_LONG_AS_IT_TAKES = datetime.timedelta(days=30)


class LaunchError(UdlError, RuntimeError):
    """Processes that were not started as ``--launcher`` says."""
    status = MISUSED


def launch_number(variable: str, low: int, high: float = math.inf, default: int | None = None) -> int:
    """A number that the launcher has left in the environment.

    Raises:
        LaunchError: It is missing, no number, or out of range; names the variable.
    """
    value = os.environ.get(variable)
    if value is None and default is not None:
        return default
    if value is None or not re.fullmatch(r'\d{1,9}', value, re.ASCII) or not low <= int(value) <= high:
        wanted = f'an integer ≥ {low}' if high == math.inf else f'an integer from {low} to {high}'
        raise LaunchError(f'the environment variable {variable}: expected {wanted}, got '
                          f'{"none" if value is None else repr(one_line(value, 60))}. torchrun and srun set it')
    return int(value)


def init_dist(launcher: str, backend: str | None = None, port: int | None = None, timeout: float = TIMEOUT,
              on_gpu: bool = True) -> None:
    """Starts torch.distributed under torchrun (``pytorch``) or Slurm, with or without GPUs.

    BasicSR divides by the number of GPUs (dist_util.py:24, :50) and ignores ``dist_params.backend`` for ``pytorch``
    (options.py:104); without a GPU its default, nccl, cannot work.

    Args:
        launcher (str): ``'pytorch'`` or ``'slurm'``.
        backend (str | None): None is gloo, and on GPUs nccl for what lies there. Where none is used always gloo.
        port (int | None): Of the master, for Slurm.
        timeout (float): Minutes that a process waits for the others, which rank 0 may need for data and validation;
            nccl's own 10 would end that.
        on_gpu (bool): Whether GPUs are used where there are any.

    Raises:
        LaunchError: The launcher's variables are missing or wrong, there are fewer GPUs than processes for nccl, or the
            processes do not find one another.
    """
    import torch
    import torch.multiprocessing as mp

    if mp.get_start_method(allow_none=True) is None:
        mp.set_start_method('spawn')
    if 'TORCHELASTIC_RUN_ID' in os.environ:
        end_with_torchrun()
    if launcher == 'slurm':
        _as_torchrun(port)
    elif 'RANK' not in os.environ:
        raise LaunchError('--launcher pytorch: not started by torchrun. '
                          'Use: torchrun --nproc_per_node=N -m udl_basicsr train -opt FILE --launcher pytorch')
    world_size = launch_number('WORLD_SIZE', 1)
    rank = launch_number('RANK', 0, world_size - 1)
    local_rank = launch_number('LOCAL_RANK', 0, default=rank)
    address, port = os.environ.get('MASTER_ADDR', ''), launch_number('MASTER_PORT', 1, 65535)
    try:
        socket.getaddrinfo(address, port)
    except (OSError, UnicodeError) as error:  # torch would try again for half an hour
        raise LaunchError('the environment variable MASTER_ADDR: expected the address of the first process, got '
                          f'{one_line(repr(address), 60)} ({first_line(error)}). torchrun and srun set it') from error
    gpus = gpu_count() if on_gpu else 0
    here = launch_number('LOCAL_WORLD_SIZE', 1, default=1)  # torchrun's; under Slurm each may see GPUs of its own
    own = gpus == 1 and 'CUDA_VISIBLE_DEVICES' in os.environ  # what starts torchrun's processes may give each its own
    if 0 < gpus < here and not own and backend in (None, 'nccl'):
        raise LaunchError(f'{here} processes on this machine, and {gpus} GPU(s): nccl needs one for each process. '
                          f'Start --nproc_per_node={gpus}, or give dist_params: {{backend: gloo}} to share them, or '
                          'num_gpu: 0')
    if gpus:
        torch.cuda.set_device(local_rank % gpus)
    elif backend in (None, 'nccl'):
        backend = 'gloo'
    try:
        dist.init_process_group(backend=backend or 'cpu:gloo,cuda:nccl', timeout=datetime.timedelta(minutes=timeout),
                                **_fresh_store())
    except (RuntimeError, ValueError, OSError) as error:  # of many kinds, by version and backend
        raise LaunchError(f'the {world_size} processes do not find one another at {address}, port {port}: '
                          f'{first_line(error)}') from error


def _as_torchrun(port: int | None) -> None:
    """Puts Slurm's variables under torchrun's names."""
    if 'SLURM_PROCID' not in os.environ:
        raise LaunchError('--launcher slurm: not started by srun. Use: srun udl train ... --launcher slurm')
    nodes = os.environ.get('SLURM_NODELIST', '')
    try:
        names = subprocess.run(['scontrol', 'show', 'hostnames', nodes], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise LaunchError(f'--launcher slurm: scontrol cannot say which machines SLURM_NODELIST={one_line(nodes, 60)} '
                          f'means: {first_line(error)}') from error
    size = launch_number('SLURM_NTASKS', 1)
    os.environ.update({
        'MASTER_ADDR': (names.stdout.split() or [''])[0],
        'MASTER_PORT': str(port or launch_number('MASTER_PORT', 1, 65535, default=29500)),
        'WORLD_SIZE': str(size),
        'RANK': str(launch_number('SLURM_PROCID', 0, size - 1)),
        'LOCAL_RANK': str(launch_number('SLURM_LOCALID', 0, default=0)),
    })


def _fresh_store() -> dict:
    """Where torchrun has started the processes of one machine anew: a part of its store that only these have seen.

    Without ``--standalone`` or ``--rdzv_backend`` they meet in the store of their predecessors, find the addresses of
    the dead ones there, and gloo cannot connect (as in pytorch/pytorch#135712). On several machines the number of
    restarts is not the same everywhere; there ``--rdzv_backend=c10d`` makes a new store.
    """
    from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage] - documented by torch
    from torch.distributed.rendezvous import rendezvous

    restart = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
    if restart == '0' or os.environ.get('GROUP_WORLD_SIZE') != '1':
        return {}
    store, rank, world_size = next(rendezvous('env://'))
    return {'store': PrefixStore(f'restart_{restart}', store), 'rank': rank, 'world_size': world_size}


def broadcast(value):
    """Rank 0's value in every process: what depends on the disk or on chance is decided once."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def together(action: Callable) -> list:
    """Acts in every process; what fails in one is raised in all, where the others would wait for it in vain.

    They wait as long as it takes, whatever ``dist_params.timeout`` says: a cache may take one of them hours.

    Returns:
        list: The result of each process.

    Raises:
        UdlError: This process's own, or else the first one's. Errors of other kinds are not told to the others.
    """
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    group: Any = dist.new_group(timeout=_AS_LONG_AS_IT_TAKES) if several else None
    problem = result = None
    try:
        result = action()
    except UdlError as error:
        problem = error
    outcomes: list[Any] = [(result, problem)]
    if group is not None:
        mine, outcomes = outcomes[0], [None] * dist.get_world_size()
        dist.all_gather_object(outcomes, mine, group=group)
        dist.destroy_process_group(group)
    if problem is not None:
        raise problem
    for _, elsewhere in outcomes:
        if elsewhere is not None:
            raise elsewhere
    return [result for result, _ in outcomes]
