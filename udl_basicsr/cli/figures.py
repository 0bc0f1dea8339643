"""Draws the figures of the papers from what tests and trainings left: pictures, checkpoints, records.

Examples:
    udl figures crops results/EDSR_L1_x4 UDL=results/EDSR_UDL_x4 --dataset Set14 --image barbara \\
        --gt datasets/Set14/GTmod4 --lq datasets/Set14/LRbicx4 --box 64 --out crops.pdf
    udl figures tlw experiments/EDSR_TLW_x4 --gt datasets/Set5/GTmod4/butterfly.png \\
        --lq datasets/Set5/LRbicx4/butterfly.png --out tlw.pdf
    udl figures differences docs/results/tiny_x4 --out differences.pdf

Tests keep their pictures with val.save_img: true, and the uncertainty with path.pretrain_network_u.
"""
from __future__ import annotations

import argparse
import sys

from udl_basicsr.utils import exits
from udl_basicsr.utils.command_line import CommandParser, to_file, whole


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(told=__doc__, description='Draws the figures of the papers.')
    kinds = parser.add_subparsers(dest='kind', required=True, metavar='KIND')

    def kind(name: str, told: str, width: bool = True) -> argparse.ArgumentParser:
        sub = kinds.add_parser(name, help=told.replace('%', '%%'),
                               description=told[0].upper() + told[1:] + '.')
        sub.add_argument('--out', required=True, type=to_file, metavar='FILE', help='.png, .pdf or .svg')
        if width:
            sub.add_argument('--width', type=float, default=7., metavar='INCHES',
                             help='default 7, the text of a paper with two columns; letters have 7 points at any width')
        sub.add_argument('--dpi', type=whole(10), default=150, help='resolution of a PNG; default 150')
        return sub

    def pictures(sub: argparse.ArgumentParser, runs: bool = True) -> None:
        told = 'results folder of a test with val.save_img: true, or the record of a comparison'
        if runs:
            sub.add_argument('runs', nargs='+', metavar='[LABEL=]RUN', help=told)
        else:
            sub.add_argument('run', metavar='RUN', help=told)
        sub.add_argument('--dataset', required=True, help="the data set's name in the tests")
        sub.add_argument('--gt', required=True, metavar='FOLDER', help='its HR images')

    def numbers(sub: argparse.ArgumentParser) -> None:
        sub.add_argument('--numbers', type=to_file, metavar='FILE.json',
                         help='also write the numbers that the figure shows')

    def of_one_network(sub: argparse.ArgumentParser) -> None:
        sub.add_argument('--network', metavar='ID', help='needed if a comparison has several')

    def one_image(sub: argparse.ArgumentParser, box: str = 'default: all of it', columns: bool = True) -> None:
        sub.add_argument('--image', required=True, help='its name in the scores')
        if columns:
            sub.add_argument('--columns', type=whole(1), help='pictures in a row')
        boxed(sub, box)

    def boxed(sub: argparse.ArgumentParser, box: str = 'default: all of it') -> None:
        sub.add_argument('--box', type=whole(0), nargs='+', action='last', metavar='N',
                         help='the part that is shown: LEFT TOP WIDTH HEIGHT in pixels of the GT, or the side of a '
                              f'square put where the detail is; {box}')

    sub = kind('crops', 'what each run makes of a part of an image, beside the whole')
    pictures(sub)
    one_image(sub, 'default 96')
    sub.add_argument('--lq', metavar='FOLDER', help='the LR images, to show them too')

    sub = kind('errors', '|x − f| of each run, on one scale')
    pictures(sub)
    one_image(sub)

    sub = kind('uncertainty', 'the uncertainty of each run, on a fixed scale and from its 1st to its 99th percentile')
    pictures(sub)
    one_image(sub, columns=False)
    sub.add_argument('--limits', type=float, nargs=2, default=(-1., 5.), metavar=('LOW', 'HIGH'),
                     help='of s on the fixed scale; default -1 5')

    sub = kind('weights', 'the weight maps of table 3 of the UDL paper')
    pictures(sub, runs=False)
    one_image(sub)
    sub.add_argument('--lq', required=True, metavar='FOLDER', help='the LR images')
    sub.add_argument('--uncertainty', metavar='RUN', help='the run whose map of s is taken; default: RUN itself')
    sub.add_argument('--scaling', choices=['linear', 'exp', 'sqrt_exp', 'log'], default='linear',
                     help='of table 4; default linear')
    sub.add_argument('--offset', type=float, default=0., help='added to the weights; 1 in the released code')
    sub.add_argument('--min_over', choices=['image', 'channel', 'batch'], default='image')

    sub = kind('gv', 'how much variance of the gradient the runs keep, over a data set')
    pictures(sub)
    sub.add_argument('--patch_size', type=whole(2), help='default 8 at ×2, 16 otherwise, as in the GV paper')

    sub = kind('gradients', 'the gradient maps of an image, along x and y (figure 1 of the GV paper)')
    pictures(sub)
    one_image(sub, columns=False)

    sub = kind('variances', 'the variance of the gradient patch after patch, along x and y (figure 2 of the GV paper)')
    pictures(sub)
    sub.add_argument('--images', nargs='+', metavar='NAME', help='their names in the scores; default: all')
    sub.add_argument('--patch_size', type=whole(2), help='default 8, as in that figure')

    for sub in (kind('tlw', "TLW's weights over the training"),
                kind('fixed_sum', 'what sigmoid, FixedSum and sampling make of the weights of an image, and how they '
                     'are distributed (figure 4 of TLW)')):
        sub.add_argument('experiment', metavar='RUN', help='experiments/<name> of a run of TLWModel')
        sub.add_argument('--gt', required=True, metavar='FILE', help='an HR image')
        sub.add_argument('--lq', required=True, metavar='FILE', help='its LR image')
        if sub.prog.endswith('tlw'):
            sub.add_argument('--iterations', type=whole(0), nargs='+', metavar='N',
                             help='of the checkpoints to draw; default: up to four')
        else:
            sub.add_argument('--iteration', type=whole(0), metavar='N', help='of a checkpoint; default: the last')
        boxed(sub)

    sub = kind('sigma', 'the mean of σ during training, and σ of pixels of one image (figure 2 of Revisiting L1)')
    sub.add_argument('experiments', nargs='+', metavar='RUN', help='experiments/<name> of runs of stage sigma')
    sub.add_argument('--lq', metavar='FILE', help='an LR image, whose pixels are followed through the checkpoints of '
                     'the first run')
    sub.add_argument('--pixels', type=whole(1), default=12, help='how many; default 12')

    sub = kind('tradeoff', 'what networks reach and what they cost, printed and ours (figure 4 of Revisiting L1)')
    sub.add_argument('records', nargs='*', metavar='FOLDER', help='docs/results/<comparison>')
    sub.add_argument('--tables', nargs='+', default=['le-3', 'le-6'], metavar='TABLE', help='default le-3 le-6')
    sub.add_argument('--dataset', default='Set5', help='default Set5')
    sub.add_argument('--scale', type=whole(1), default=3, help='default 3')
    sub.add_argument('--cost', choices=['runtime', 'macs'], default='runtime', help='default runtime')
    sub.add_argument('--metric', default='psnr')

    sub = kind('calibration', 'sparsification and calibration, from the uncertainty.json of udl uncertainty',
               width=False)
    sub.add_argument('report', metavar='FILE', help='uncertainty.json')

    for sub in (kind('differences', 'differences of each method from the reference, a plot for each data set, with '
                     'intervals of 95 % and the single seeds'),
                kind('curves', 'validations of a comparison during training')):
        sub.add_argument('records', metavar='FOLDER', help='docs/results/<comparison>')
        sub.add_argument('--metric', default='psnr')
        sub.add_argument('--scale', type=whole(1), help='needed if there are several')
        of_one_network(sub)
        sub.add_argument('--methods', nargs='+', default=[], metavar='ID', help='default: all')
        if sub.prog.endswith('curves'):
            sub.add_argument('--dataset', required=True, help='the validation set')

    for sub in (kind('texture', 'the gain of each image against its share of texture and edges'),
                kind('deciles', 'the errors of two losses in each tenth of the pixels, by uncertainty')):
        sub.add_argument('records', metavar='FOLDER', help='docs/results/<comparison>')
        sub.add_argument('--method', required=True, metavar='ID', help='whose lead it is')
        sub.add_argument('--reference', metavar='ID', help='default: that of the comparison')
        sub.add_argument('--dataset', required=True, help="the data set's name in the tests")
        sub.add_argument('--gt', required=True, metavar='FOLDER', help='its HR images')
        sub.add_argument('--scale', type=whole(1), help='needed if there are several')
        of_one_network(sub)
        numbers(sub)
        if sub.prog.endswith('texture'):
            sub.add_argument('--metric', default='psnr')
            sub.add_argument('--steep', type=float, default=16.,
                             help='a gradient of this many grey levels or more is texture; default 16')
        else:
            sub.add_argument('--uncertainty', metavar='ID',
                             help='the method whose maps of s order the pixels; default: --method')
            sub.add_argument('--seed', type=whole(0, 2**32 - 1), default=0, help='whose pictures were kept; default 0')

    sub = kind('lead', 'how a lead moves from one comparison to the next: with budget, share of stage 1, network, '
               'scale')
    sub.add_argument('records', nargs='+', metavar='FOLDER', help='docs/results/<comparison>, of plans such as '
                     'options/compare/lead/*.yml')
    sub.add_argument('--method', required=True, nargs='+', metavar='ID', help='whose lead it is; several where a '
                     'comparison has one for each value of the axis (budget_12000.yml: UDL_12 UDL_6 ESU_UDL UDL_2)')
    of_one_network(sub)
    numbers(sub)
    sub.add_argument('--axis', required=True, choices=['budget', 'share', 'parameters', 'scale'],
                     help='what differs between the comparisons')
    sub.add_argument('--seeds', nargs='+', type=whole(0, 2**32 - 1), help='only these, so that no point has others '
                     'than the next; default: all that there are')
    sub.add_argument('--datasets', nargs='+', metavar='NAME', help='default: all that they were tested on')
    sub.add_argument('--metric', default='psnr')
    return parser


@exits.command(misused=True)
def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if hasattr(args, 'width') and not args.width >= 0.5:
        parser.error(f'--width: expected a number of at least 0.5, got {args.width:g}')
    import udl_basicsr.register  # noqa: F401 - networks, losses and metrics by their names
    from udl_basicsr.cli import drawing
    from udl_basicsr.reports import figures
    try:
        figures.check_out(args.out)
        draw = getattr(drawing, args.kind)
        out = draw(args, {key: getattr(args, key) for key in ('width', 'dpi') if hasattr(args, key)})
    except ValueError as error:  # of an ending, a size or a box, as the drawing finds them
        print(f'error: {error}', file=sys.stderr)
        return exits.MISUSED
    print(f'Wrote {out}')
    return 0
