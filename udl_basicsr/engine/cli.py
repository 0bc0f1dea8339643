"""BasicSR's command line: what ``train.py`` and ``test.py`` share."""
import argparse
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
from basicsr.utils.dist_util import get_dist_info

from udl_basicsr.archs import TapError
from udl_basicsr.data.images import BrokenImageError
from udl_basicsr.models.checkpoints import CheckpointError

from .compat import LaunchError, init_dist
from .interrupt import EXIT_INTERRUPTED, Interrupted
from .options import OptionError, load_yaml, parse_options
from .run_folder import EXIT_BUSY, RunBusyError
from .trials import forbid_pickles

_NOT_WRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


def run(action: Callable[..., None], is_train: bool, root_path: Path | None = None, does: str = '') -> int:
    """Parses the command line, starts torch.distributed, checks the options and acts.

    Args:
        action (Callable): ``action(parsed, command)``.
        is_train (bool): For training or for testing.
        root_path (Path | None): Where ``experiments/`` and ``results/`` go; None is the working directory.
        does (str): What the command does, for its help; by default that it trains or tests.

    Returns:
        int: Exit status: 0, 1 when a run failed in a way that is understood, 2 when its options are wrong, 69 when
            another process trains it, 75 when it was interrupted and has saved its state. Any other failure is raised,
            and ends the process with a traceback and status 1.
    """
    parser = argparse.ArgumentParser(description=does or ('Train.' if is_train else 'Test.'))
    parser.add_argument('-opt', required=True, metavar='FILE', help='option file (YAML)')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none', help='job launcher')
    parser.add_argument('--auto_resume', action='store_true', help='go on from the last state of the run, if any')
    parser.add_argument('--debug', action='store_true', help='validate and save every 8 iterations, log each')
    parser.add_argument('--deep', action='store_true', help='decode every image before anything begins')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument('--force_yml', nargs='+', default=[], metavar='KEY:KEY=VALUE',
                        help='set options over the file, e.g. train:ema_decay=0.999')
    args = parser.parse_args()
    forbid_pickles()
    # torchrun starts all processes anew when one has failed (--max-restarts): they go on.
    restarted = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) > 0
    command = ' '.join([Path(sys.executable).name, *sys.argv])
    try:
        if args.launcher != 'none':
            init_dist(args.launcher, **_dist_params(args.opt))
        rank, world_size = get_dist_info()
        parsed = parse_options(
            args.opt, root_path=str(root_path or Path.cwd()), is_train=is_train, force_yml=args.force_yml,
            auto_resume=args.auto_resume or restarted, debug=args.debug, rank=rank, world_size=world_size,
            dist=args.launcher != 'none', deep=args.deep)
        action(parsed, command)
    except (LaunchError, OptionError, TapError) as error:
        _say(f'{error}')
        return 2
    except Interrupted as error:
        _say(f'{error}')
        return EXIT_INTERRUPTED
    except BrokenImageError as error:  # met by one rank alone, whichever it is
        print(_own_words(error), file=sys.stderr, flush=True)
        return 1
    except RunBusyError as error:
        _say(f'{error}')
        return EXIT_BUSY
    except (CheckpointError, FloatingPointError) as error:
        _say(f'{type(error).__name__}: {_own_words(error)}')
        return 1
    except OSError as error:  # of any rank
        if error.errno not in _NOT_WRITABLE:
            raise
        print(f"{error.filename or 'experiments, results or tb_logger'}: {error.strerror}. What was saved before is "
              'kept. Free some space or check the permissions, then go on with --auto_resume', file=sys.stderr,
              flush=True)
        return 1
    finally:
        if dist.is_available() and dist.is_initialized() and sys.exc_info()[0] is None:
            dist.destroy_process_group()
    return 0


def _own_words(error: Exception) -> str:
    """The message; that of a data worker comes with its traceback, whose last line it is."""
    return str(error).rsplit(f'{type(error).__name__}: ', 1)[-1].rstrip()


def _dist_params(file: str) -> dict:
    """``dist_params`` is needed before the options can be checked, since those depend on the number of processes."""
    params = load_yaml(file).get('dist_params')
    return {k: v for k, v in params.items() if k in ('backend', 'port')} if isinstance(params, dict) else {}


def _say(message: str) -> None:
    if int(os.environ.get('RANK', 0)) == 0:
        print(message, file=sys.stderr, flush=True)
