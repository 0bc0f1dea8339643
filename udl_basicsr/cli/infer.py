"""Super-resolves pictures: files and folders in, files out. No ground truth is needed.

Examples:
    udl infer photo.jpg --out sr                                 # with the small networks that come with the package
    udl infer photos --out photos_x4 --weights experiments/EDSR_UDL_x4/models/net_g_latest.pth
    udl infer a.png b.jpg --out sr --weights net_g.safetensors -opt options/train_EDSR_UDL_x4.yml
    udl infer photos --out sr --weights experiments/EDSR_UDL_x4/models/net_g_latest.pth \\
        --uncertainty experiments/EDSR_ESU_x4/models/net_u_latest.pth
    udl infer photos --out sr --intervals --within 8              # after udl calibrate: lower, upper, θ, mask

Gray, transparency, 16 bits, EXIF orientation and (but for 16-bit TIFF) the colour profile are kept. Started again, it
goes on where it stopped: what lies in the folder of the results is not made again without --overwrite. Which weights
and options made it is noted there, in .udl_infer.json; with others, or where nothing is noted, nothing is done.

Exit status: 0; 1 when a picture failed or a result could not be written; 2 when nothing was done, because something
is wrong with the command, the networks or the pictures' headers.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from udl_basicsr.cli.restoring import add_restoring, check_restoring, positive, weights_file
from udl_basicsr.training.arguments import option_file
from udl_basicsr.utils import exits
from udl_basicsr.utils.command_line import CommandParser
from udl_basicsr.utils.errors import UdlError
from udl_basicsr.utils.shipped_weights import scales


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = CommandParser(
        told=__doc__,
        description='Super-resolves pictures. Skips those that are done, and lists those that fail.',
        epilog='.udl_infer.json in the folder of the results says which weights, options of the networks, '
        '--self_ensemble and --amp made them (--tile, --overlap and --device do not matter). If these differ now, or '
        'the file is missing, nothing is done: give another --out or --suffix, or --overwrite. Exit status: 0; 1 if a '
        "picture failed; 2 if the command, the networks or the pictures' headers are wrong and nothing was done.")
    parser.add_argument('inputs', nargs='+', metavar='INPUT',
                        help='picture (PNG, JPEG, BMP, TIFF, WebP), or a folder, with its sub-folders')
    parser.add_argument('--out', required=True, metavar='FOLDER', help='for the results, in the same sub-folders')
    parser.add_argument('--weights', type=weights_file, metavar='FILE',
                        help='net_g_*.pth or .safetensors; default: udl:UDL_x4, the small network that comes with the '
                        'package, with its uncertainty')
    parser.add_argument('--scale', type=int, choices=scales(), metavar='N', help='of the networks that come with the '
                        f'package: {" or ".join(map(str, scales()))}; default 4')
    parser.add_argument('-opt', '--opt', metavar='YAML', type=option_file,
                        help="option file with network_g; default: the one in the weights' run")
    parser.add_argument('--param_key', metavar='KEY',
                        help='entry of the weights; default: params_ema if there is one, else params')
    parser.add_argument('--uncertainty', type=weights_file, metavar='FILE',
                        help='net_u_*.pth: also write s, -2 (black) to 6 (white), as <name>_log_scale.png, 16 bits. '
                        'Without it --member and --spread write an s too, that of how far the images differ')
    parser.add_argument('--intervals', nargs='?', const='', metavar='FILE', help='also write calibrated intervals, '
                        '<name>_lower.png, _upper.png, _theta.png (16 bits) and the mask _within.png. FILE is what '
                        'udl calibrate wrote; default: the one beside net_u')
    parser.add_argument('--within', type=positive, metavar='E', help='error in grey levels of the mask of --intervals, '
                        'one of those that were calibrated; default 16')
    parser.add_argument('--member', nargs='+', action='append', default=[], type=weights_file, metavar='FILE',
                        help='a further network, such as one of another seed: net_g, and net_u if --uncertainty is '
                        'given; once for each. The picture is the mean of all. How far they differ becomes a part of '
                        's, and is written to <name>_spread.png in grey levels')
    add_restoring(parser)
    parser.add_argument('--suffix', default='', metavar='TEXT', help='results are <name>_<TEXT>; default: <name>')
    parser.add_argument('--format', choices=['png', 'jpg', 'same'], default='png',
                        help='of the results; same: as the input; default png')
    parser.add_argument('--overwrite', action='store_true',
                        help='make again what exists, also with other weights or options')
    args = parser.parse_args(argv)
    args.shipped = args.weights is None
    if not args.shipped and args.scale:
        parser.error('--scale chooses among the networks that come with the package; --weights has its own scale')
    if args.shipped:
        scale = args.scale or 4
        args.weights = weights_file(f'udl:UDL_x{scale}')
        args.uncertainty = args.uncertainty or weights_file(f'udl:ESU_x{scale}')
    check_restoring(parser, args)
    args.ensemble = bool(args.member or args.spread)
    if args.intervals is None and args.within is not None:
        parser.error('--within is of the mask of --intervals: give --intervals with it')
    args.log_scale = args.ensemble or args.uncertainty is not None
    if args.intervals is not None and not args.log_scale:
        parser.error('--intervals needs --uncertainty, or --member or --spread')
    args.within = 16. if args.within is None else args.within
    return args


@exits.command('Run the same command again; it continues where it stopped.')
def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    args = parse_args(argv)
    import udl_basicsr.register  # noqa: F401 - networks, losses and metrics by their names
    from udl_basicsr.deploy.calibration import file_beside
    from udl_basicsr.deploy.infer import carry_out
    from udl_basicsr.deploy.infer_plan import make_plan
    from udl_basicsr.deploy.infer_record import check_folder
    from udl_basicsr.deploy.interval_pictures import load_writer
    from udl_basicsr.deploy.restorer import load_restorer
    from udl_basicsr.utils import processor
    from udl_basicsr.utils.checkpoints import EMA_FIRST
    processor.keep_freed_memory()
    try:
        plan = make_plan(args.inputs, args.out, suffix=args.suffix, file_format=args.format,
                         log_scale=args.log_scale, spread=args.ensemble,
                         intervals=args.intervals is not None, overwrite=args.overwrite)
        restorer = load_restorer(
            args.weights, opt=args.opt, uncertainty=args.uncertainty, param_key=args.param_key or EMA_FIRST,
            members=args.member, spread=args.spread, device=args.device, tile=args.tile, overlap=args.overlap,
            self_ensemble=args.self_ensemble, amp=args.amp)
        writer = None if args.intervals is None else \
            load_writer(args.intervals or file_beside(args.uncertainty or args.weights), restorer, args.within)
        record = check_folder(args.out, args.suffix, plan, restorer, args.overwrite, writer and writer.made_by)
    except UdlError as error:
        print(f'Nothing was done:\n{error}', file=sys.stderr)
        return exits.MISUSED
    if args.shipped:
        print(f'With {Path(args.weights).stem} and {Path(args.uncertainty).stem}, small networks for a first look; '
              'others with --weights')
    if plan.passed_over:
        print('Passed over in the folders, no pictures that can be read: '
              + ', '.join(f'{count} {ending}' for ending, count in sorted(plan.passed_over.items())))
    if plan.done:
        print(f'{plan.done} done before, skipped (--overwrite makes them again)')
    try:
        failures = carry_out(plan.jobs, restorer, record.begin, writer)
        if not failures:
            record.finish(path for job in plan.jobs for path in job.results)
    except OSError as error:
        print(f'{error.filename or args.out}: {error.strerror or error}. Put it right and run the same command again; '
              'it continues where it stopped.', file=sys.stderr)
        return 1
    print(f'{len(plan.jobs) - len(failures)} done, in {args.out}')
    if failures:
        print(f'{len(failures)} failed:', *failures, sep='\n  ', file=sys.stderr)
    return 1 if failures else 0
