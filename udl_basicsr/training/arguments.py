"""BasicSR's command line, which training and testing share."""
import argparse

from udl_basicsr.utils.option_files import locate

TRAINS = 'Trains what an option file says, all its stages.'
TESTS = 'Tests a network on the sets of an option file, and writes the table of its scores.'


def launch_parser(does: str) -> argparse.ArgumentParser:
    """``-opt --launcher --auto_resume --debug --force_yml``, and ``--deep``, which is ours."""
    parser = argparse.ArgumentParser(description=does)
    prefixes = ('test_', '') if does == TESTS else ('train_', '')
    parser.add_argument('-opt', required=True, metavar='FILE', type=lambda text: option_file(text, prefixes),
                        help='option file (YAML), or udl:NAME, one that comes with the package (udl options)')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none', help='job launcher')
    parser.add_argument('--auto_resume', action='store_true', help='go on from the last state of the run, if any')
    parser.add_argument('--debug', action='store_true', help='validate and save every 8 iterations, log each')
    parser.add_argument('--deep', action='store_true', help='decode every image before anything begins')
    if does == TRAINS:
        parser.add_argument('--fast', action='store_true', help='turn on what the file leaves open and makes a step '
                            'fast on this machine; with --auto_resume what the run was begun with')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument('--force_yml', nargs='+', default=[], metavar='KEY:KEY=VALUE',
                        help='set options over the file, e.g. train:ema_decay=0.999')
    return parser


def option_file(text: str, prefixes: tuple[str, ...] = ('train_', '')) -> str:
    """For argparse: the path of an option file or plan, ``udl:NAME`` too."""
    try:
        return locate(text, prefixes)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
