"""Scores the uncertainty of several runs from the pictures that test.py saved, and draws its curves.

Example:
    udl uncertainty results/EDSR_ESU_x4 results/EDSR_EU_x4 --dataset Set14 \\
        --gt datasets/Set14/GTmod4 --calibrate Set5 datasets/Set5/GTmod4 --crop_border 4 --out results/uncertainty
"""
from __future__ import annotations

from pathlib import Path

from udl_basicsr.utils import exits
from udl_basicsr.utils.command_line import CommandParser, into_folder, whole


@exits.command(misused=True)
def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(told=__doc__, description='Scores the uncertainty of several runs and draws its curves.')
    parser.add_argument('results', nargs='+', help='results folders of tests with val.save_img: true')
    parser.add_argument('--dataset', required=True, help="the data set's name in those tests")
    parser.add_argument('--gt', required=True, metavar='FOLDER', help='its HR images')
    parser.add_argument('--calibrate', nargs=2, metavar=('NAME', 'FOLDER'),
                        help='the data set that the recalibration is fitted on, and its HR images; default: the same')
    parser.add_argument('--crop_border', type=whole(0), default=0, help='pixels left out at each edge; default 0')
    parser.add_argument('--share', type=float, default=1., help='share of the values to draw, 0 to 1, if all of them '
                        'do not fit into the memory (about 100 bytes each); default 1')
    parser.add_argument('--alpha', type=float, default=0.1, help='coverage and width are those of intervals that '
                        'should leave out this share; default 0.1')
    parser.add_argument('--out', required=True, type=into_folder, metavar='FOLDER',
                        help='for uncertainty.{json,csv,md,png}')
    args = parser.parse_args(argv)
    import numpy as np

    import udl_basicsr.register  # noqa: F401 - before BasicSR is imported, for its shim
    from udl_basicsr.functional.uncertainty import recalibration_factor
    from udl_basicsr.reports.uncertainty import (
        ReportError,
        format_reports,
        head_of,
        make_report,
        read_images,
        write_reports,
    )
    names = [Path(folder).resolve().name for folder in args.results]
    if len(set(names)) < len(names):
        parser.error(f'two results folders have the same name: {", ".join(names)}')
    if not 0 < args.share <= 1:
        parser.error(f'--share: expected 0 < x ≤ 1, got {args.share}')
    if not 0 < args.alpha < 1:
        parser.error(f'--alpha: expected 0 < x < 1, got {args.alpha}')

    fitted_on, fitted_gt = args.calibrate or (args.dataset, args.gt)
    protocol = (f'{args.dataset}, all values of RGB (of gray: Y) pooled, '
                + (f'border of {args.crop_border} px cropped' if args.crop_border else 'no border cropped')
                + (f', {args.share:g} of them drawn' if args.share < 1 else '')
                + '; SR rounded to 8 bits, θ = exp(s), s the mean over the channels; nats and grey levels; '
                f'recalibration fitted on {fitted_on}' + ('' if args.calibrate else ' itself')
                + f'; per image: mean and 95 % bootstrap interval over images, intervals of {1 - args.alpha:g}, ENCE '
                'and UCE over 20 bins of equal counts')
    reports = []
    for name, folder in zip(names, args.results, strict=True):
        pairs = list(read_images(folder, args.dataset, args.gt, args.crop_border, args.share))
        fit = list(read_images(folder, fitted_on, fitted_gt, args.crop_border, args.share)) if args.calibrate \
            else pairs
        factor = recalibration_factor(*(np.concatenate(part) for part in zip(*fit, strict=True)))
        if not factor > 0:
            raise ReportError(f'{folder}: all SR images of {fitted_on} are equal to the GT: without errors nothing '
                              'can be said of their uncertainty')
        reports.append(make_report(name, pairs, factor, args.alpha, head_of(folder)))
    files = write_reports(reports, protocol, args.out)
    print(format_reports(reports, protocol))
    for path in files:
        print(f'Wrote {path}')
    return 0
