"""The chain of stages: stage 2's YAML names stage 1's, which is trained first when its weights are missing."""
from dataclasses import replace
from pathlib import Path

from basicsr.utils import get_root_logger

from . import loop
from .options import Parsed


def train(parsed: Parsed, command: str = '') -> None:
    """Trains the stages before as far as their weights are missing, then this one.

    Args:
        parsed (Parsed): Checked options of the last stage; those of the stages before hang on it.
        command (str): The command line, noted in each run's copy of its YAML.
    """
    if parsed.stage1 is not None:
        path = parsed.opt['path']
        needed = [path[key] for key in ('pretrain_network_g', 'pretrain_network_u') if path.get(key)]
        missing = loop.broadcast([weights for weights in needed if not Path(weights).exists()])
        if missing:
            get_root_logger().info(f'Stage 1 comes first ({missing[0]} is missing): {parsed.stage1.file}')
            # A stage 1 that was interrupted goes on where it was.
            train(replace(parsed.stage1, opt={**parsed.stage1.opt, 'auto_resume': True}), command)
        else:
            get_root_logger().info(f'Stage 1 is there: {", ".join(needed)}')
    loop.train(parsed, command)
