"""Joins the scores of several runs into one table in the papers' layout.

Example:
    udl scores results/EDSR_L1_x4 results/EDSR_UDL_x4 --reference EDSR_L1_x4 --paper EDSR
"""
from __future__ import annotations

from dataclasses import replace

from udl_basicsr.utils import exits
from udl_basicsr.utils.command_line import CommandParser, to_file


@exits.command(misused=True)
def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(told=__doc__, description='Joins the scores of several runs into one table.')
    parser.add_argument('results', nargs='+', help='results folders, or their scores.json; scales may differ')
    parser.add_argument('--reference', nargs='+', default=[], metavar='RUN',
                        help='names of runs, one per scale, that the others are compared with')
    parser.add_argument('--paper', metavar='NETWORK', help='add the scores that were printed for this network')
    parser.add_argument('--paper_file', help='printed scores of your own, in the form of '
                        'udl_basicsr/experiments/paper_scores.json')
    parser.add_argument('--degradation', choices=['BI', 'BD'], help='which of the printed scores; default: BI')
    parser.add_argument('--metrics', nargs='+', default=['psnr', 'ssim'])
    parser.add_argument('--format', choices=['text', 'md', 'csv', 'latex'], default='text')
    parser.add_argument('--out', type=to_file, metavar='FILE',
                        help='write the table to this file instead of the terminal')
    args = parser.parse_args(argv)
    if not args.paper and (unused := [name for name in ('paper_file', 'degradation') if getattr(args, name)]):
        parser.error(f'--{unused[0]} is of the printed scores: give --paper NETWORK with it')
    from udl_basicsr.experiments.printed import load_paper, printed_rows
    from udl_basicsr.reports.score_table import join, render
    from udl_basicsr.utils.files import write_text
    from udl_basicsr.utils.scores import read_scores
    paper = load_paper(args.paper_file)
    printed = printed_rows(paper, args.paper, args.degradation or 'BI') if args.paper else []
    table = join([read_scores(path) for path in args.results], args.reference, printed, args.metrics)
    sources = dict.fromkeys(row['source'] for row in printed)
    notes = [f'† printed in {paper["sources"][name]["title"]}, {paper["sources"][name]["url"]}' for name in sources]
    text = render(replace(table, notes=(*table.notes, *notes)), args.format)
    if args.out:
        print(f'Wrote {write_text(args.out, text)}')
    else:
        print(text, end='')
    return 0
