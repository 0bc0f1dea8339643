"""Makes one HTML file of a comparison or of test runs, which opens in any browser, without a network.

Examples:
    udl report docs/results/tiny_x4 --gt Set5=datasets/Set5/GTmod4 --lq Set5=datasets/Set5/LRbicx4
    udl report results/EDSR_L1_x4 results/EDSR_UDL_x4 --images Set5/butterfly --window 0

Exit status: 0; 1 when the file could not be written; 2 when something is wrong with what was given, and nothing was.
"""
from __future__ import annotations

import argparse
from pathlib import Path

from udl_basicsr.utils import exits
from udl_basicsr.utils.command_line import CommandParser, to_file, whole


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    def folder_of(text: str) -> tuple[str, Path]:
        name, sign, folder = text.partition('=')
        if not (name and sign and folder):
            raise argparse.ArgumentTypeError(f'expected DATASET=FOLDER, got {text!r}')
        return name, Path(folder)

    parser = CommandParser(told=__doc__,
                           description='Makes one self-contained HTML file of a comparison or of test runs.')
    parser.add_argument('folders', nargs='+', metavar='FOLDER', help='docs/results/<comparison>, with the records of '
                        'udl compare, or results/<name>, with the scores.json of udl test')
    parser.add_argument('--out', type=to_file, metavar='FILE', help='default: report.html in the first folder')
    parser.add_argument('--images', nargs='+', default=[], metavar='DATASET/NAME', help='which pictures to put in; '
                        'default: one or two of each data set, by a rule that the page states, below 5 MB')
    parser.add_argument('--gt', nargs='+', action='extend', default=[], type=folder_of, metavar='DATASET=FOLDER',
                        help="HR images; default: those that the test's option file names")
    parser.add_argument('--lq', nargs='+', action='extend', default=[], type=folder_of, metavar='DATASET=FOLDER',
                        help='LR images, from which bicubic is made as well; default: likewise')
    parser.add_argument('--intervals', nargs='+', action='extend', default=[], type=folder_of,
                        metavar='DATASET=FOLDER', help='what udl infer --intervals made of the LR images of the data '
                        'set: bounds and mask under the slider')
    parser.add_argument('--seed', type=whole(0, 2**32 - 1), metavar='S', help='whose pictures; default: the first that '
                        'has any. The tables are over all seeds')
    parser.add_argument('--window', type=whole(0, 10**5), default=224, metavar='N', help='show N x N pixels, '
                        'where there is most detail, of larger pictures; 0: all; default 224')
    parser.add_argument('--quality', type=whole(1, 100), metavar='Q', help='pictures as WebP with loss, 1 to 100; '
                        'default: lossless, about ten times as large')
    return parser.parse_args(argv)


@exits.command(misused=True)
def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    args = parse_args(argv)
    import udl_basicsr.register  # noqa: F401 - before BasicSR is imported, for its shim
    from udl_basicsr.reports.html import make_page
    from udl_basicsr.reports.uncertainty import ReportError
    from udl_basicsr.utils.files import why_not_to, write_text
    folders: dict[str, dict[str, list[Path]]] = {'gt': {}, 'lq': {}, 'intervals': {}}
    for kind, found in folders.items():
        for name, folder in getattr(args, kind):
            found.setdefault(name, []).append(folder)
    out = args.out or Path(args.folders[0]) / 'report.html'
    if why := why_not_to(out):
        raise ReportError(f'{out}: {why}; give another name as --out')
    page, notes = make_page(args.folders, args.images, folders['gt'], folders['lq'], args.seed, args.quality,
                            args.window, folders['intervals'])
    write_text(out, page)
    print(*notes, sep='\n')
    print(f'Wrote {out}, {len(page.encode("utf-8")) / 1e6:.1f} MB')
    return 0
