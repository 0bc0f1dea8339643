"""Calibrates uncertainty intervals on images kept apart from training, with their ground truth.

Examples:
    udl calibrate experiments/EDSR_ESU_x4 --gt kept/GTmod4 --lq kept/LRbicx4
    udl calibrate experiments/EDSR_ESU_x4 --gt A/GTmod4 B/GTmod4 --lq A/LRbicx4 B/LRbicx4 --alpha 0.1 --delta 0.1
    udl calibrate --weights experiments/EDSR_UDL_x4/models/net_g_latest.pth \\
        --uncertainty experiments/EDSR_ESU_x4/models/net_u_latest.pth --gt kept/GTmod4 --lq kept/LRbicx4

The result lies beside net_u and holds for these networks alone; udl infer --intervals uses it. Without --delta the
promise is one of the mean over images (at least 1/α − 1 of them), with it one that fails with probability δ at most
(22 images for α = δ = 0.1). See docs/UNCERTAINTY.md.

Exit status: 0; 2 when nothing was written, because images, networks or the command are wrong, or too few images given.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from udl_basicsr.cli.restoring import add_promise, add_restoring, check_restoring, positive, weights_file
from udl_basicsr.training.arguments import option_file
from udl_basicsr.utils import exits
from udl_basicsr.utils.command_line import CommandParser
from udl_basicsr.utils.errors import UdlError
from udl_basicsr.utils.files import why_not_to


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = CommandParser(
        told=__doc__,
        description='Finds the factor that calibrates the intervals of an uncertainty network, and writes it beside '
        'net_u.', epilog='The images must be like those that you will restore, and the networks must not have been '
        'trained on them. See docs/UNCERTAINTY.md.')
    parser.add_argument('run', nargs='?', type=Path, metavar='RUN', help="a run's folder, experiments/<name>: its "
                        'net_g_latest.pth, and net_u_latest.pth of it or of its stage 1; or give both files')
    parser.add_argument('--gt', nargs='+', required=True, metavar='FOLDER', help='HR images')
    parser.add_argument('--lq', nargs='+', required=True, metavar='FOLDER', help='their LR versions')
    add_promise(parser)
    parser.add_argument('--within', nargs='+', type=positive, metavar='E', default=[4., 8., 16., 32.],
                        help='errors in grey levels for which masks are calibrated; default 4 8 16 32')
    parser.add_argument('--weights', type=weights_file, metavar='FILE', help='net_g_*')
    parser.add_argument('--uncertainty', type=weights_file, metavar='FILE', help='net_u_*; not needed with --member '
                        'or --spread')
    parser.add_argument('-opt', '--opt', metavar='YAML', type=option_file,
                        help="of the networks; default: the option file in the weights' run")
    parser.add_argument('--param_key', metavar='KEY', help='entry of net_g; default: params_ema, else params')
    parser.add_argument('--member', nargs='+', action='append', default=[], type=weights_file, metavar='FILE',
                        help='net_g and net_u of a further network of the ensemble; once for each. udl infer needs the '
                        'same --member, --self_ensemble, --spread and --amp')
    add_restoring(parser)
    parser.add_argument('--out', type=Path, metavar='FILE', help='default: net_u_*.calibration.json beside net_u, '
                        'or beside net_g if there is no net_u')
    parser.add_argument('--overwrite', action='store_true', help='replace a calibration that is there')
    args = parser.parse_args(argv)
    check_restoring(parser, args)
    args.ensemble = bool(args.member or args.spread)
    if args.run is None and (args.weights is None or (args.uncertainty is None and not args.ensemble)):
        parser.error("give a run's folder, or --weights and --uncertainty")
    return args


@exits.command()
def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    args = parse_args(argv)
    import udl_basicsr.register  # noqa: F401 - networks, losses and metrics by their names
    from udl_basicsr.deploy.calibration import CalibrationError, calibrate, file_beside, networks_of, write_calibration
    from udl_basicsr.deploy.kept_apart import find_pairs
    from udl_basicsr.deploy.restorer import load_restorer
    from udl_basicsr.functional.risk_control import THRESHOLDS, risk_limit
    from udl_basicsr.utils.checkpoints import EMA_FIRST
    try:
        if args.run is not None:
            found = networks_of(args.run, needs_uncertainty=not args.ensemble)
            args.weights, args.uncertainty = args.weights or found[0], args.uncertainty or found[1]
        out = args.out or file_beside(args.uncertainty or args.weights)
        if problem := why_not_to(out):  # before images are restored for an hour
            raise CalibrationError(f'--out {out}: {problem}; give another name')
        if out.exists() and not args.overwrite:
            raise CalibrationError(f'{out}: is there already; give --overwrite or another --out')
        pairs = find_pairs(args.gt, args.lq)
        risk_limit(len(pairs), args.alpha, args.delta)  # before networks are loaded: too few images end it here
        restorer = load_restorer(args.weights, opt=args.opt, uncertainty=args.uncertainty,
                                 param_key=args.param_key or EMA_FIRST, device=args.device, tile=args.tile,
                                 overlap=args.overlap, self_ensemble=args.self_ensemble, spread=args.spread,
                                 members=args.member, amp=args.amp)
        done = iter(range(1, len(pairs) + 1))
        found = calibrate(restorer, pairs, args.alpha, args.delta, args.within,
                          [file for member in ([args.weights, args.uncertainty], *args.member) for file in member
                           if file is not None],
                          lambda pair: print(f'{next(done)}/{len(pairs)} {pair.name}', flush=True))
    except UdlError as error:
        print(f'Nothing was done:\n{error}', file=sys.stderr)
        return exits.MISUSED
    write_calibration(found, out)
    print(f'{found.promise}.\nλ = {found.factor:.4g} on the intervals that the head says hold {1 - found.alpha:g}; '
          f'{100 * found.mean_risk:.2f} % of the values of these images lie outside (up to {100 * found.limit:.2f} % '
          f'would do); mean width {found.mean_width:.2f} grey levels')
    for error, threshold in found.within.items():
        which = 'no pixel can be promised'
        if threshold:
            which = f'pixels of a half-width up to {threshold:.3g}' if threshold < THRESHOLDS[-1] else 'every pixel'
        print(f'within {error} grey levels: {which}')
    for doubt in found.doubts:
        print(f'Warning: {doubt}', file=sys.stderr)
    for why in found.training['unknown']:
        print(f'Not compared with what was trained on: {why}', file=sys.stderr)
    print(f'Wrote {out}')
    return 0
