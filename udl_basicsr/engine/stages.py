"""The chain of stages: stage 2's YAML names stage 1's, which is trained first when its weights are missing."""
from pathlib import Path

from basicsr.utils import get_root_logger

from . import loop
from .options import Parsed, parse_options


def train(parsed: Parsed, command: str = '', **parse_args) -> None:
    """Trains the stage that ``stage1`` names, and so on down the chain, as far as weights are missing; then this one.

    Args:
        parsed (Parsed): The checked options of the last stage. Those of the stages before were checked with them.
        command (str): The command line, noted in each run's copy of its YAML.
        **parse_args: What else ``parse_options`` was called with, for the stages before.
    """
    opt = parsed.opt
    first = opt.get('stage1')
    if first:
        needed = [opt['path'][key] for key in ('pretrain_network_g', 'pretrain_network_u') if opt['path'].get(key)]
        missing = loop.broadcast([path for path in needed if not Path(path).exists()])
        logger = get_root_logger()
        if missing:
            logger.info(f'Stage 1 comes first: {missing[0]} is missing. Training {first}')
            # An interrupted stage 1 goes on where it was.
            before = parse_options(first, **{**parse_args, 'force_yml': (), 'auto_resume': True})
            train(before, command, **parse_args)
        else:
            logger.info(f'Stage 1 is there: {", ".join(needed)}')
    loop.train(parsed, command)
