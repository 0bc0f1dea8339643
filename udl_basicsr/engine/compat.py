"""Every repair of BasicSR in one place. Features are detected, versions are never compared.

Line numbers are those of BasicSR 1.4.2 as published on the package index.
"""
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
    shim.rgb_to_grayscale = rgb_to_grayscale
    sys.modules[name] = shim


class LaunchError(RuntimeError):
    """Processes that were not started as ``--launcher`` says."""


def init_dist(launcher: str, backend: str | None = None, port: int | None = None, **kwargs) -> None:
    """Starts torch.distributed under torchrun (``pytorch``) or Slurm, with or without GPUs.

    BasicSR divides by the number of GPUs (dist_util.py:24, :50) and ignores ``dist_params.backend`` for ``pytorch``
    (options.py:104); without a GPU its default, nccl, cannot work.

    Args:
        launcher (str): ``'pytorch'`` or ``'slurm'``.
        backend (str | None): None, or nccl where there is no GPU: nccl on GPUs, gloo elsewhere.
        port (int | None): Of the master, for Slurm.
    """
    import os
    import subprocess

    import torch
    import torch.distributed as dist
    import torch.multiprocessing as mp

    if mp.get_start_method(allow_none=True) is None:
        mp.set_start_method('spawn')
    if launcher == 'slurm' and 'SLURM_PROCID' not in os.environ:
        raise LaunchError('--launcher slurm: not started by srun. Use: srun python udl_basicsr/train.py ...')
    if launcher == 'slurm':
        nodes = subprocess.run(['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']],
                               capture_output=True, text=True, check=True)
        os.environ.update({
            'MASTER_ADDR': nodes.stdout.split()[0],
            'MASTER_PORT': str(port or os.environ.get('MASTER_PORT', 29500)),
            'WORLD_SIZE': os.environ['SLURM_NTASKS'],
            'RANK': os.environ['SLURM_PROCID'],
            'LOCAL_RANK': os.environ.get('SLURM_LOCALID', '0'),
        })
    elif 'RANK' not in os.environ:
        raise LaunchError('--launcher pytorch: not started by torchrun. '
                          'Use: torchrun --nproc_per_node=N udl_basicsr/train.py -opt FILE --launcher pytorch')
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(int(os.environ.get('LOCAL_RANK', os.environ['RANK'])) % gpus)
    elif backend in (None, 'nccl'):
        backend = 'gloo'
    dist.init_process_group(backend=backend or 'nccl', **_fresh_store(), **kwargs)


def _fresh_store() -> dict:
    """Where torchrun has started the processes of one machine anew: a part of its store that only these have seen.

    Without ``--standalone`` or ``--rdzv_backend`` they meet in the store of their predecessors, find the addresses of
    the dead ones there, and gloo cannot connect (as in pytorch/pytorch#135712). On several machines the number of
    restarts is not the same everywhere; there ``--rdzv_backend=c10d`` makes a new store.
    """
    import os

    from torch.distributed import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    restart = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
    if restart == '0' or os.environ.get('GROUP_WORLD_SIZE') != '1':
        return {}
    store, rank, world_size = next(rendezvous('env://'))
    return {'store': PrefixStore(f'restart_{restart}', store), 'rank': rank, 'world_size': world_size}


def init_wandb_logger(opt: dict) -> None:
    """BasicSR's, also where ``wandb.util.generate_id`` is gone (logger.py:138; wandb >= 0.31)."""
    import uuid

    import wandb
    from basicsr.utils import logger
    if not hasattr(wandb.util, 'generate_id'):
        wandb.util.generate_id = lambda: uuid.uuid4().hex[:8]
    logger.init_wandb_logger(opt)
