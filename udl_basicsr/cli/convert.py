"""Converts weights between this package and other programs, and exports them as safetensors or ONNX.

Examples:
    udl convert edsr_x4.pt --out net_g.pth                    # EDSR-PyTorch
    udl convert model_best.pt --out net_g.pth --out_u net_u.pth   # the UDL authors'
    udl convert carn.pth --scale 4 --out net_g.pth
    udl convert experiments/x/models/net_g_latest.pth --out net_g.onnx
    udl convert experiments/x/models/net_u_latest.pth --out edsr.pt --to udl

The keys of the file show what it holds. The pixels before and after are compared; if they differ, nothing is
written. The options that the written weights belong to (network_g, ...) go to the standard output as YAML, everything
else to the standard error.
"""
from __future__ import annotations

import sys

from udl_basicsr.training.arguments import option_file
from udl_basicsr.utils import exits
from udl_basicsr.utils.command_line import CommandParser


@exits.command(misused=True)
def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(
        told=__doc__,
        description='Converts weights from and to other programs, and exports them as safetensors or ONNX.',
        epilog="Understood: the UDL authors' weights (udl, udl_two), EDSR-PyTorch's (edsr), CARN-pytorch's (carn, "
        'carn_m), and ours.')
    parser.add_argument('weights', help='checkpoint of ours or of another program; pickled objects are never run')
    parser.add_argument('--out', required=True, metavar='FILE',
                        help='.pth or .pt, .safetensors, or .onnx; the mean network, or with --to theirs')
    parser.add_argument('--to', choices=['udl', 'udl_two', 'edsr'], help='convert our EDSR into this format')
    parser.add_argument('--out_u', metavar='FILE', help='where to write net_u, from formats udl and udl_two')
    parser.add_argument('--in_u', metavar='FILE', help='our net_u, for --to udl_two beside net_g')
    parser.add_argument('-opt', '--opt', metavar='YAML', type=option_file,
                        help="option file with our network_g; default: the one in the run's "
                        'folder, or what a .safetensors says')
    parser.add_argument('--param_key', help='entry with the weights; default: params_ema, else params, state_dict, ...')
    parser.add_argument('--res_scale', type=float, help="of an EDSR from elsewhere; default: 0.1 for the UDL authors' "
                        'and for 256 channels, else 1')
    parser.add_argument('--rgb_range', type=float, help='largest pixel of an EDSR from elsewhere; default 255')
    parser.add_argument('--scale', type=int, choices=[2, 3, 4], help='of a CARN that was trained for several')
    parser.add_argument('--force', action='store_true', help='overwrite what exists')
    args = vars(parser.parse_args(argv))
    import udl_basicsr.register  # noqa: F401 - networks, losses and metrics by their names
    from udl_basicsr.deploy.convert import convert_file
    from udl_basicsr.utils.yaml_files import dump_flat
    options, notes = convert_file(args.pop('weights'), **args)
    for note in notes:
        print(note, file=sys.stderr)
    print(f'Wrote {args["out"]}' + (f' and {args["out_u"]}' if args['out_u'] else ''), file=sys.stderr)
    if options:
        print(dump_flat(options), end='')
    return 0
