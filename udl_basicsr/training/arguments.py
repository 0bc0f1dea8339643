"""BasicSR's command line, which training and testing share."""
import argparse
import os
from pathlib import Path

from udl_basicsr.utils.command_line import CommandParser
from udl_basicsr.utils.option_files import locate

TRAINS = 'Trains all stages of an option file.'
TESTS = 'Tests a network on the sets of an option file, and writes the table of its scores.'


def launch_parser(does: str, told: str | None = None) -> argparse.ArgumentParser:
    """``-opt --launcher --auto_resume --debug --force_yml``, and ``--deep``, which is ours."""
    parser = CommandParser(description=does, told=told)
    if does == TESTS:
        parser.add_argument('-opt', '--opt', required=True, metavar='FILE', type=tested_file,
                            help='option file (YAML) of a test or a training, the folder of a run '
                            '(experiments/NAME), or udl:NAME, a file that comes with the package (udl options)')
    else:
        parser.add_argument('-opt', '--opt', required=True, metavar='FILE', type=option_file,
                            help='option file (YAML), or udl:NAME, a file that comes with the package (udl options)')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none', help='job launcher')
    parser.add_argument('--auto_resume', action='store_true', help='continue from the last state of the run, if any')
    parser.add_argument('--debug', action='store_true', help='a run of about a minute, to see whether all of it works: '
                        '16 iterations of each stage, validated on 2 images of each set and saved every 8, in '
                        'debug_<name>')
    parser.add_argument('--deep', action='store_true', help='decode every image before anything begins')
    if does == TRAINS:
        parser.add_argument('--fast', action='store_true', help='turn on the options that make a step faster on this '
                            'machine, unless the file sets them; with --auto_resume, those that the run began with')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument('--force_yml', nargs='+', default=[], metavar='KEY:KEY=VALUE',
                        help='set options, whatever the file says, e.g. train:ema_decay=0.999; those of a stage 1 that '
                        'is a file of its own stay')
    return parser


def tested_file(text: str) -> str:
    """The option file of a test or a training; of a run's folder, the newest of the resolved files in it."""
    if not os.path.isdir(text):  # which is false, too, of what is no name of a file at all
        return option_file(text, ('test_', 'train_', ''))
    files = sorted(Path(text).glob('*.yml'), key=lambda file: file.stat().st_mtime)
    if not files:
        raise argparse.ArgumentTypeError(f'{text}: has no option file in it; expected the folder of a run, such as '
                                         'experiments/NAME')
    return str(files[-1])


def option_file(text: str, prefixes: tuple[str, ...] = ('train_', '')) -> str:
    """For argparse: the path of an option file or plan, ``udl:NAME`` too."""
    try:
        return locate(text, prefixes)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
