"""BasicSR's command line: what ``train.py`` and ``test.py`` share."""
import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch.distributed as dist
from basicsr.utils.dist_util import get_dist_info

from udl_basicsr.data.images import BrokenImageError
from udl_basicsr.options import schema
from udl_basicsr.options.keys import block_of
from udl_basicsr.options.parse import load_yaml, parse_options
from udl_basicsr.options.trials import forbid_pickles
from udl_basicsr.utils import exits
from udl_basicsr.utils.checkpoints import CheckpointError
from udl_basicsr.utils.distributed import init_dist, launch_number
from udl_basicsr.utils.text import first_line, one_line
from udl_basicsr.utils.yaml_files import apply_force_yml

from .arguments import TESTS, TRAINS, launch_parser
from .fast import settle

_SAVED = 'What was saved before is kept'
_LOST = re.compile(r'connection (was )?(closed|reset|refused)|broken pipe|remote process exited', re.IGNORECASE)


def run(action: Callable[..., object], is_train: bool, root_path: Path | None = None, does: str = '',
        argv: Sequence[str] | None = None) -> int:
    """Parses the command line, starts torch.distributed, checks the options and acts.

    Args:
        action (Callable): ``action(parsed, command)``.
        is_train (bool): For training or for testing.
        root_path (Path | None): Where ``experiments/`` and ``results/`` go; None is the working directory.
        does (str): What the command does, for its help; by default that it trains or tests.
        argv (Sequence[str] | None): The arguments; None is ``sys.argv``.

    Returns:
        int: Exit status: 0, 1 when a run failed in a way that is understood, 2 when its options or files are wrong and
            nothing was begun, 69 when another process trains it, 75 when it was interrupted and has saved its state,
            130 or 143 when Ctrl-C or SIGTERM came while there was nothing to save. Any other failure is raised, and
            ends the process with a traceback and status 1. Of several processes each says its own, behind its rank.
    """
    exits.print_anything()
    args = launch_parser(does or (TRAINS if is_train else TESTS)).parse_args(argv)
    forbid_pickles()
    command = ' '.join(sys.argv if sys.argv[0].startswith('udl ') else [Path(sys.executable).name, *sys.argv])
    try:
        with exits.sigterm_as_ctrl_c():
            _act(action, args, is_train, root_path, command)
    except KeyboardInterrupt as error:
        name, status = exits.of_signal(error)
        _say(f'Stopped by {name}. {_SAVED}{", and --auto_resume goes on from there" if is_train else ""}', args)
        return status
    except Exception as error:
        message = _explain(error)
        if message is None:
            raise
        _say(message, args)
        return exits.status_of(error)
    # Only where all have ended well: the group of a process that fails alone would wait for the others, it for them.
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    return 0


def run_or_exit(action: Callable[..., object], is_train: bool, root_path: Path | None = None) -> int:
    """As :func:`run`, but returns only 0: any other status ends the process.

    Raises:
        SystemExit: With that status.
    """
    status = run(action, is_train, root_path)
    if status:
        raise SystemExit(status)
    return 0


def _act(action: Callable[..., object], args: argparse.Namespace, is_train: bool, root_path: Path | None,
         command: str) -> None:
    # torchrun starts all processes anew when one has failed (--max-restarts): they go on.
    restarted = launch_number('TORCHELASTIC_RESTART_COUNT', 0, default=0) > 0
    if args.launcher != 'none':
        init_dist(args.launcher, **_dist_params(args.opt, args.force_yml))
    rank, world_size = get_dist_info()
    parsed = parse_options(
        args.opt, root_path=str(root_path or Path.cwd()), is_train=is_train, force_yml=args.force_yml,
        auto_resume=args.auto_resume or restarted, debug=args.debug, rank=rank, world_size=world_size,
        dist=args.launcher != 'none', deep=args.deep)
    action(settle(parsed, args.fast) if is_train and 'fast' in args else parsed, command)


def _dist_params(file: str, force_yml: Sequence[str] | None) -> dict:
    """What is needed before the options can be checked, since those depend on the number of processes."""
    flat = apply_force_yml(load_yaml(file, references=False), force_yml or ())
    params = block_of(flat, 'dist_params')
    known = {key: params[key] for key in ('backend', 'port') if key in params}
    if schema.COUNT.accepts(params.get('timeout')):  # else the check of the options says it
        known['timeout'] = params['timeout']
    return {**known, 'on_gpu': flat.get('num_gpu') != 0}


def _explain(error: Exception) -> str | None:
    """What is said of an error; None of a fault of the program."""
    # That of a data worker comes with its traceback, whose last line it is.
    own_words = str(error).rsplit(f'{type(error).__name__}: ', 1)[-1].rstrip()
    if isinstance(error, (BrokenImageError, CheckpointError, FloatingPointError)):
        return own_words
    if isinstance(error, OSError):
        message = exits.explain(error)
        return message and (f'{message}. {_SAVED}. Free some space or check the permissions, then go on with '
                            '--auto_resume')
    if isinstance(error, RuntimeError) and 'torch.use_deterministic_algorithms' in str(error):
        return (f'{first_line(error)} deterministic: true asks for what torch does not have for this network or loss '
                'on a GPU: do without it')
    if isinstance(error, RuntimeError) and dist.is_available() and dist.is_initialized() and _LOST.search(str(error)):
        return f'another process has ended, and says why: {first_line(error)}'
    return exits.explain(error)


def _say(message: str, args: argparse.Namespace) -> None:
    """Behind the number of the process, where there are several; in one piece, lest their lines mix."""
    rank = os.environ.get({'pytorch': 'RANK', 'slurm': 'SLURM_PROCID'}.get(args.launcher, ''))
    head = '' if rank is None else f'rank {one_line(rank, 20)}: '
    print('\n'.join(f'{head}{line}' for line in message.splitlines()), file=sys.stderr, flush=True)
