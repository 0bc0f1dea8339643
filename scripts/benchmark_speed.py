#!/usr/bin/env python
"""What a training step and a validation cost beside stock BasicSR and the published stage 2, as paired ratios.

    python scripts/benchmark_speed.py --out results/speed.json            # an hour or two on a CPU
    python scripts/benchmark_speed.py --out results/speed.json --quick    # two minutes

The JSON, with all raw samples, is written anew whenever a part has been measured; at the end a figure of the same name
is drawn beside it.
"""
import argparse
import sys
from functools import partial
from pathlib import Path

import torch

import speed
from udl_basicsr.utils import exits
from udl_basicsr.utils.command_line import to_file, whole


@exits.command()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=to_file, required=True, metavar='FILE',
                        help='JSON to write; a .png goes beside it')
    parser.add_argument('--quick', action='store_true', help='few rounds, on small patches on a CPU, and no growth')
    parser.add_argument('--networks', nargs='+', choices=list(speed.NETWORKS), metavar='NAME',
                        help=f'of {", ".join(speed.NETWORKS)}; the figures are of the first (default: EDSR-S, EDSR, '
                             'RCAN, SwinIR and HAT, quick: EDSR-S)')
    parser.add_argument('--batch', type=whole(1),
                        help='of EDSR-S, quick: of all (default: as printed on a GPU, 4 or less on a CPU)')
    parser.add_argument('--patch', type=whole(1),
                        help='in LQ pixels, likewise (default: as printed, quick on a CPU: 24)')
    parser.add_argument('--rounds', type=whole(1), help='of each comparison, at most (default: 20, quick: 9)')
    parser.add_argument('--seconds', type=whole(1),
                        help='for each comparison, which has 3 rounds at least (default: 300, quick: 15)')
    parser.add_argument('--val', nargs=2, type=Path, metavar=('GT', 'LQ'),
                        help='folders of images of the same names, GT four times as large; default: made here')
    parser.add_argument('--compile', nargs='*', choices=list(speed.NETWORKS), metavar='NAME',
                        help='networks with torch.compile among the levers, which costs minutes each on a CPU '
                             '(default: all, quick: none)')
    parser.add_argument('--clock', choices=list(speed.CLOCKS),
                        help='what a step is timed by; processor, for one thread on a CPU: the time that it computes, '
                             'where others compute on the same machine; gpu: its own events (default: gpu where '
                             'there is one, else wall)')
    parser.add_argument('--device', choices=['auto', 'cpu', 'cuda'], default='auto')
    args = parser.parse_args(argv)
    if args.out.suffix == '.png':
        parser.error(f'--out {args.out}: expected the name of a JSON file')
    if 'cuda' in (args.device, 'cuda' if args.clock == 'gpu' else '') and not torch.cuda.is_available():
        parser.error('--device cuda, --clock gpu: torch finds no GPU here')
    if args.clock == 'processor' and (args.device == 'cuda' or torch.get_num_threads() > 1):
        parser.error('--clock processor: adds up the time of all threads; set OMP_NUM_THREADS=1, and --device cpu')
    device = torch.device('cuda' if args.device != 'cpu' and torch.cuda.is_available() else 'cpu')
    clock = args.clock or ('gpu' if device.type == 'cuda' else 'wall')
    if args.val:
        speed.check_folders(*args.val, scale=4)
    plan = speed.make_plan(device, args.quick, args.networks, args.batch, args.patch, args.rounds, args.seconds,
                           clock, args.compile)
    report = speed.run(plan, device, args.val, save=partial(speed.save, path=args.out))
    files = speed.write(report, args.out)
    print(speed.tables(report))
    print('Written:', *files)
    return 0


if __name__ == '__main__':
    sys.exit(main())
