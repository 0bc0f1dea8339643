"""Makes the papers' tables of our comparisons, with the printed figures beside ours where they are known.

Example:
    udl tables --list
    udl tables --table udl-5                           # as printed
    udl tables docs/results/tiny_x4 --table udl-3
    udl tables docs/results/tiny_x4 docs/results/quick_x4 --format latex --out tables
"""
from __future__ import annotations

from udl_basicsr.utils import exits
from udl_basicsr.utils.command_line import CommandParser, into_folder


def listing(paper: dict) -> str:
    """The tables that can be made, with the printed rows and figures of each that are known."""
    from udl_basicsr.experiments.printed import printed_values
    lines = []
    for name, table in paper['tables'].items():
        rows = [row for row in paper['rows'] if row.get('table') == name]
        figures = sum(value is not None for row in rows for values in printed_values(row).values()
                      for value in values.values())
        lines.append(f'{name:<8}{table["source"]}, {table["number"]}: {table["title"]} '
                     f'({f"{len(rows)} printed rows, {figures} figures" if rows else "not transcribed"})')
    return '\n'.join(lines)


@exits.command(misused=True)
def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(told=__doc__, description="Makes the papers' tables of our comparisons.")
    parser.add_argument('records', nargs='*', help='folders of records, docs/results/<comparison>')
    parser.add_argument('--table', nargs='+', metavar='TABLE', help='which, e.g. udl-5 (default: all; see --list)')
    parser.add_argument('--format', choices=['md', 'text', 'csv', 'latex'], default='md')
    parser.add_argument('--out', type=into_folder, metavar='FOLDER',
                        help='write <table>.<suffix> there instead of printing')
    parser.add_argument('--list', action='store_true', help='list the tables and end')
    parser.add_argument('--paper_file', help='printed scores of your own, in the form of '
                        'udl_basicsr/experiments/paper_scores.json')
    args = parser.parse_args(argv)
    from udl_basicsr.experiments.printed import load_paper
    from udl_basicsr.experiments.record_files import read_records
    from udl_basicsr.reports.paper_formats import FORMATS, render, render_csv
    from udl_basicsr.reports.paper_tables import make_table
    from udl_basicsr.utils.files import write_text
    if not (args.records or args.table or args.list):
        parser.error('give folders of records (udl compare writes them), or --table, or --list')

    paper = load_paper(args.paper_file)
    if args.list:
        print(listing(paper))
        return 0
    records = [record for folder in args.records for record in read_records(folder)]
    tables = [make_table(name, records, paper) for name in args.table or paper['tables']]
    if args.out:
        for table in tables:
            file = args.out / f'{table.name}.{FORMATS[args.format]}'
            print(f'Wrote {write_text(file, render(table, args.format))}')
    elif args.format == 'csv':
        print(render_csv(tables), end='')
    else:
        print('\n'.join(render(table, args.format) for table in tables), end='')
    return 0
