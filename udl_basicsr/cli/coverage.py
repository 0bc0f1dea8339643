"""Judges the intervals of several runs on images that they were not calibrated on.

    udl coverage experiments/EU_x4 experiments/ESU_x4 --calibrate datasets/Set5 datasets/Set14 \\
        --halve datasets/BSD100 --out results/coverage

Set5, Set14 and one half of BSD100 calibrate, the other half judges, and the halves change places. Data sets are folders
that udl prepare has made. With --shifts also how well the mean θ tells inputs of another kind. Several runs that differ
in their seed are judged as one with --ensemble:

    udl coverage ESU=experiments/ESU_seed0 --ensemble three=experiments/ESU_seed0 experiments/ESU_seed1 \\
        experiments/ESU_seed2 --calibrate datasets/Set5 datasets/Set14 --halve datasets/BSD100 --out results/coverage
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from udl_basicsr.cli.restoring import add_promise, add_restoring, check_restoring, positive
from udl_basicsr.utils import exits
from udl_basicsr.utils.command_line import CommandParser, into_folder
from udl_basicsr.utils.text import some

if TYPE_CHECKING:
    from udl_basicsr.deploy.judging import Judgement


@exits.command(misused=True)
def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(told=__doc__,
                           description='Judges calibrated intervals on images kept apart, and prints each '
                                     'score with its interval over images.')
    parser.add_argument('runs', nargs='*', metavar='[NAME=]RUN', help='folders of runs, experiments/<name>; NAME is '
                        "what the table says, by default the folder's")
    parser.add_argument('--ensemble', nargs='+', action='append', default=[], metavar='RUN', help='folders of runs '
                        'that are judged as one: their mean, with how far they differ as a part of θ. NAME= goes '
                        'before the first; once for each ensemble')
    parser.add_argument('--calibrate', nargs='*', default=[], metavar='FOLDER', help='data sets that only calibrate')
    parser.add_argument('--halve', required=True, metavar='FOLDER', help='data set of which each half judges once')
    add_promise(parser)
    parser.add_argument('--within', type=positive, default=16., metavar='E', help='error of the mask, in grey levels; '
                        'default 16')
    parser.add_argument('--shifts', action='store_true', help='also restore shifted inputs; five times as slow')
    add_restoring(parser)
    parser.add_argument('--out', required=True, type=into_folder, metavar='FOLDER',
                        help='for coverage.json, coverage.md and coverage.png')
    parser.add_argument('--overwrite', action='store_true', help='replace those that are there')
    args = parser.parse_args(argv)
    check_restoring(parser, args)
    from tqdm import tqdm

    import udl_basicsr.register  # noqa: F401 - networks by their names
    from udl_basicsr.deploy.calibration import CalibrationError, doubts_of_width, networks_of
    from udl_basicsr.deploy.judging import SHIFTS, check_enough, judge, prepared_pairs
    from udl_basicsr.deploy.restorer import load_restorer
    from udl_basicsr.reports.coverage import FILES, format_coverage, write_coverage
    for members in args.ensemble:
        if len(members) < 2:
            parser.error(f'--ensemble {members[0]}: expected two runs or more')
    judged = [_named(run) for run in args.runs] + [_named(*members) for members in args.ensemble]
    names = [name for name, _ in judged]
    if not names:
        parser.error('give a run, or --ensemble with some')
    if len(set(names)) < len(names):
        parser.error(f'two runs have the same name: {", ".join(names)}; give them others, as NAME=RUN')
    there = [file for name in FILES if (file := args.out / name).exists()]
    if there and not args.overwrite:
        raise CalibrationError(f'{there[0]}: is there already; give --overwrite or another --out')
    check_enough(args.calibrate, args.halve, args.alpha, args.delta)
    judgements = []
    for name, runs in judged:
        members = [[file for file in networks_of(run, needs_uncertainty=len(runs) == 1 and not args.spread) if file]
                   for run in runs]
        (weights, *uncertainty), *others = members
        restorer = load_restorer(weights, uncertainty=next(iter(uncertainty), None), members=others, tile=args.tile,
                                 overlap=args.overlap, self_ensemble=args.self_ensemble, spread=args.spread,
                                 amp=args.amp, device=args.device)
        scale = restorer.traits[1]
        calibrating = [pair for root in args.calibrate for pair in prepared_pairs(root, scale)]
        halved = prepared_pairs(args.halve, scale)
        total = len(calibrating) + len(halved) * (1 + len(SHIFTS) * args.shifts)
        with tqdm(total=total, desc=name, unit='image', disable=None, file=sys.stderr) as bar:
            judgements.append(judge(name, restorer, calibrating, halved, args.alpha, args.delta, args.within,
                                    args.shifts, [file for member in members for file in member], bar.update))
    training = {key: list(dict.fromkeys(line for judgement in judgements for line in judgement.training[key]))
                for key in ('compared', 'unknown')}
    protocol = _protocol(args, judgements[0], training)
    for why in training['unknown']:
        print(f'Not compared with what was trained on: {why}', file=sys.stderr)
    for judgement in judgements:
        widths = [image['width'] for image in judgement.images.values()]
        for doubt in doubts_of_width(sum(widths) / len(widths)):
            print(f'Warning: {judgement.name}: {doubt}', file=sys.stderr)
    files = write_coverage(judgements, protocol, args.alpha, args.out)
    print(format_coverage(judgements, protocol))
    for path in files:
        print(f'Wrote {path}')
    return 0


def _protocol(args: argparse.Namespace, first: Judgement, training: dict[str, list[str]]) -> str:
    """How it was measured, but for the last full stop."""
    from udl_basicsr.reports.coverage import allowed
    low, high = allowed(first, args.alpha)
    sets = ' + '.join([*(Path(root).name for root in args.calibrate), f'half of {Path(args.halve).name}'])
    if args.delta is None:
        promise = f'Conformal risk control, α = {args.alpha:g}: theory puts the expected coverage between {low:.3f} ' \
                  f'and {high:.3f}'
    else:
        promise = f'RCPS, α = {args.alpha:g}, δ = {args.delta:g}: with probability {1 - args.delta:g} over the ' \
                  f'images calibrated on, the expected coverage is at least {low:.3f}'
    how = ('Each network takes the mean over the 8 flips and turns' * args.self_ensemble
           + ', and how far they differ is a part of θ' * args.spread + '. ' * args.self_ensemble
           + f'Computed in {args.amp}. ' * bool(args.amp))
    apart = f'. None of the images is in {some(training["compared"])}, on which networks were trained' \
        if training['compared'] else ''
    if training['unknown']:
        apart += f'. Not compared with what was trained on: {some(training["unknown"])}'
    return (f'{sets} calibrate ({" and ".join(map(str, first.calibrated_on))} images), the other half '
            f'judges, and exchanged: {len(first.images)} images judged once each. {promise}. {how}Mean over '
            'images of all their values in RGB, no border cropped, SR not rounded; grey levels; in brackets '
            f'the 95 % bootstrap interval over images. Mask: within {args.within:g} grey levels. ENCE: 20 bins of '
            'equal counts. Rescaled: θ times the mean of e/θ over the images calibrated on. ENCE and CRPS take '
            f'θ for the scale of a Laplace distribution, whatever the head{apart}')


def _named(first: str, *others: str) -> tuple[str, list[Path]]:
    """What the table calls a run or an ensemble, and the folders."""
    name, equals, path = first.partition('=')
    if not equals or Path(first).is_dir():
        name, path = '', first
    runs = [Path(path), *map(Path, others)]
    return name or runs[0].resolve().name + (f' and {len(others)} more' if others else ''), runs
