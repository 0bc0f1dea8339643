"""The chain of stages: stage 2's YAML names stage 1's, which is trained first when its weights are missing.

With ``rounds: N`` the two go on in turns (UDL paper, section 3.3): the uncertainty is estimated anew with the better
mean network, then weights the error again. Round r > 1 is kept in ``<name>_round<r>``.
"""
from dataclasses import replace
from pathlib import Path

import torch
from basicsr.utils import get_root_logger

from udl_basicsr.data import uncertainty_cache
from udl_basicsr.data.loader import build_dataset
from udl_basicsr.options.parse import OptionError, Parsed, renamed
from udl_basicsr.utils.checkpoints import CheckpointError
from udl_basicsr.utils.distributed import broadcast

from . import loop
from .log import run_log


def train(parsed: Parsed, command: str = '') -> None:
    """Trains the stages before as far as their weights are missing, then this one, then the further rounds.

    Args:
        parsed (Parsed): Checked options of the last stage; those of the stages before hang on it.
        command (str): The command line, noted in each run's copy of its YAML.
    """
    rounds = parsed.opt.get('rounds', 1)
    if parsed.stage1 is not None:
        path = parsed.opt['path']
        needed = [path[key] for key in ('pretrain_network_g', 'pretrain_network_u') if path.get(key)]
        missing = broadcast([weights for weights in needed if not Path(weights).exists()])
        if missing:
            get_root_logger().info(f'Stage 1 comes first ({missing[0]} is missing): {parsed.stage1.file}')
            # A stage 1 that was interrupted goes on where it was.
            train(replace(parsed.stage1, opt={**parsed.stage1.opt, 'auto_resume': True}), command)
        else:
            get_root_logger().info(f'Stage 1 is there: {", ".join(needed)}')
    _train_unless_done(parsed, command, may_be_done=rounds > 1)

    mean, uncertainty = parsed, path['pretrain_network_u'] if rounds > 1 else None
    for number in range(2, rounds + 1):
        first = renamed(parsed.stage1, f"{parsed.stage1.opt['name']}_round{number}",
                        pretrain_network_g=_latest(mean, 'g'), pretrain_network_u=uncertainty)
        first.opt['auto_resume'] = parsed.opt['auto_resume']
        _train_unless_done(first, command)
        uncertainty = _latest(first, 'u')
        mean = renamed(parsed, f"{parsed.opt['name']}_round{number}",
                       pretrain_network_g=_latest(first, 'g'), pretrain_network_u=uncertainty)
        _train_unless_done(mean, command)


def cache_uncertainty(parsed: Parsed, command: str = '') -> None:
    """Makes the cache that ``datasets.train.uncertainty_cache`` names, or finds that it is there and the right one.

    Args:
        parsed (Parsed): Checked options of stage ``udl``.
        command (str): Of no use here; there is no run's folder.

    Raises:
        OptionError: The options ask for no cache.
        CheckpointError: Stage 1 has not been trained; or the cache is one of something else, or cannot be made.
    """
    opt = parsed.opt
    if not opt['datasets']['train'].get('uncertainty_cache'):
        raise OptionError([f'{parsed.file}: datasets.train.uncertainty_cache: missing; name a folder, or add '
                           '--force_yml datasets:train:uncertainty_cache=auto here and when training'])
    weights = opt['path']['pretrain_network_u']
    if not Path(weights).exists():
        raise CheckpointError(f'{weights}: missing, since stage 1 has not been trained. Train it first: '
                              f'python udl_basicsr/train.py -opt {parsed.stage1.file}')
    with run_log(opt['rank']):
        device = torch.device('cuda' if opt['num_gpu'] else 'cpu')
        uncertainty_cache.prepare(build_dataset(opt['datasets']['train']), opt, device)


def _latest(parsed: Parsed, label: str) -> str:
    return str(Path(parsed.opt['path']['models']) / f'net_{label}_latest.pth')


def _train_unless_done(parsed: Parsed, command: str, may_be_done: bool = True) -> None:
    """Of a chain that is resumed, the runs that have ended are left as they are."""
    done = broadcast(Path(_latest(parsed, 'g')).exists())
    if may_be_done and parsed.opt['auto_resume'] and done:
        get_root_logger().info(f"{parsed.opt['name']} has ended.")
    else:
        loop.train(parsed, command)
