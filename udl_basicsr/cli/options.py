"""The option files that come with the package.

    udl options                     # their names; each goes behind -opt udl:
    udl options copy my_options     # all of them, to start from
    udl options schema              # a JSON Schema of their keys, with which editors complete them
"""
from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from udl_basicsr.utils import exits, option_files
from udl_basicsr.utils.command_line import CommandParser
from udl_basicsr.utils.files import why_not_into


@exits.command()
def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(told=__doc__, description='Lists the option files that come with the package, copies them, '
                           'or prints a JSON Schema of their keys.')
    parser.add_argument('action', nargs='?', choices=['list', 'copy', 'schema'], default='list', help='default: list')
    parser.add_argument('folder', nargs='?', type=Path, help='where copies go; it must not exist')
    args = parser.parse_args(argv)
    if (args.folder is None) != (args.action != 'copy'):
        parser.error('copy takes a folder, list and schema take none')
    if args.action == 'schema':
        import udl_basicsr.register  # noqa: F401 - networks, losses and metrics by their names
        from udl_basicsr.options.json_schema import json_schema
        print(json.dumps(json_schema(), indent=1))
        return 0
    if args.action == 'list':
        print(f'In {option_files.folder()}, for -opt udl:NAME, where train_ and test_ may be left out:')
        print('\n'.join(f'  {name}' for name in option_files.names()))
        return 0
    if args.folder.exists():
        print(f'error: {args.folder} exists; expected the name of a new folder', file=sys.stderr)
        return exits.MISUSED
    if why := why_not_into(args.folder):
        print(f'error: {args.folder}: {why}; give another folder', file=sys.stderr)
        return exits.MISUSED
    shutil.copytree(option_files.folder(), args.folder, ignore=shutil.ignore_patterns('__pycache__', '*.py'))
    print(f'Copied. Next: udl train -opt {args.folder}/train_EDSR_UDL_x4.yml')
    return 0
