"""Trains, tests and compares losses: same network, first weights, crops and budget, several seeds.

    udl compare options/compare/tiny_x4.yml
    udl compare options/compare/tiny_x4.yml --seeds 3 4     # two more seeds, another day
    udl compare options/compare/tiny_x4.yml --dry_run       # what is missing, and for how long
    udl compare options/compare/tiny_x4.yml --trial         # a few iterations of each run, to see whether it works

Each run leaves a record in results/<name>/records (docs/results/<name> if docs/results exists), from which tables,
figures and the report are made. Finished runs are not repeated; after a stop, the same command continues. --jobs N
makes N runs at a time on each GPU, or on the CPU.
"""
from __future__ import annotations

from pathlib import Path

from udl_basicsr.training.arguments import option_file
from udl_basicsr.utils import exits
from udl_basicsr.utils.command_line import CommandParser, whole


@exits.command('Run the same command again; it continues where it stopped.')
def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(told=__doc__, description='Trains, tests and compares losses.')
    parser.add_argument('plan', type=lambda text: Path(option_file(text)),
                        help='YAML file, such as options/compare/tiny_x4.yml, or udl:papers/udl-5')
    parser.add_argument('--only', nargs='+', default=[], metavar='WORD', help='only the runs of these networks, scales '
                        '(x4), methods and seeds (seed0)')
    parser.add_argument('--methods', nargs='+', help='only these methods')
    parser.add_argument('--seeds', nargs='+', type=whole(0, 2**32 - 1), help='these instead of the seeds of the plan')
    parser.add_argument('--jobs', type=whole(1, 1024), default=1, help='runs at a time on each GPU, or on the CPU, '
                        'each best with OMP_NUM_THREADS=1; default 1')
    parser.add_argument('--out', type=Path, help='folder of the records; default docs/results/<name> where '
                        'docs/results exists, else results/<name>/records')
    parser.add_argument('--root', type=Path, default=Path.cwd(),
                        help='where experiments/ and results/ are; default: here')
    parser.add_argument('--metrics', nargs='+', help='of the last table, unless it is the table of a paper; '
                        'default: psnr')
    parser.add_argument('--markdown', action='store_true', help='print the last table as Markdown')
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument('--dry_run', action='store_true', help='say what is there, what is missing, which data it '
                         'needs and how long it will take; train nothing')
    instead.add_argument('--retest', action='store_true', help='test finished runs again whose records lack a metric '
                         'or data set that is tested now, such as LPIPS once its weights are there; train nothing')
    parser.add_argument('--trial', action='store_true', help='see whether all of it works: a few iterations of every '
                        'cell, on two photographs, in trials/<name>')
    args = parser.parse_args(argv)
    unused = [name for name in ('dry_run', 'retest', 'out', 'metrics', 'markdown') if getattr(args, name)]
    if args.trial and unused:
        parser.error(f'--trial tries all cells in trials/<name> and shows how they ended; it takes no --{unused[0]}')
    import udl_basicsr.register  # noqa: F401 - networks, losses and metrics by their names
    from udl_basicsr.cli.comparing import run
    return run(args)
