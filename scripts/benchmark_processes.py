#!/usr/bin/env python
"""One process of one thread, one of several threads, and torchrun's processes of one: samples a second in training.

    python scripts/benchmark_processes.py --out results/processes.json

A step of L1 with EDSR-S x4 on the CPU, of as many samples in all. The contenders run in turn, round by round, each in
processes of its own; ratios are taken within a round.
"""
import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import speed
from udl_basicsr.utils import exits, processor
from udl_basicsr.utils.command_line import to_file, whole
from udl_basicsr.utils.distributed import init_dist
from udl_basicsr.utils.files import write_text
from udl_basicsr.utils.tables import text_table


@exits.command()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workers', type=whole(1), default=2, help='threads, and processes; default 2')
    parser.add_argument('--network', choices=list(speed.NETWORKS), default='EDSR-S', metavar='NAME',
                        help=f'of {", ".join(speed.NETWORKS)}; default EDSR-S')
    parser.add_argument('--batch', type=whole(1), default=8, help='samples in all; default 8')
    parser.add_argument('--patch', type=whole(1), default=24, help='in LQ pixels; default 24')
    parser.add_argument('--steps', type=whole(1), default=8,
                        help='timed in each round, after two that are not; default 8')
    parser.add_argument('--rounds', type=whole(1), default=3)
    parser.add_argument('--out', type=to_file, metavar='FILE', help='JSON to write')
    parser.add_argument('--as_worker', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.batch % args.workers:
        parser.error(f'--batch {args.batch}: expected a multiple of --workers {args.workers}')
    if args.as_worker:
        return work(args)
    contenders = {'one thread': (1, 1), f'{args.workers} threads': (1, args.workers),
                  f'{args.workers} processes': (args.workers, 1)}
    found: dict[str, list[list[float]]] = {name: [] for name in contenders}
    for number in range(args.rounds):
        for name in [*contenders][::-1 if number % 2 else 1]:
            found[name].append(start(*contenders[name], sys.argv[1:] if argv is None else argv))
            print(f'{name}: {speed.figure(found[name][-1])["median"]:.3f} s a step', file=sys.stderr)
    medians = {name: [speed.figure(steps)['median'] for steps in rounds] for name, rounds in found.items()}
    rows = []
    for name, rounds in found.items():
        ratio = speed.figure(speed.ratios(medians['one thread'], medians[name]))
        rows.append([name, f'{args.batch / min(map(min, rounds)):.1f}',
                     f'{args.batch / speed.figure(medians[name])["median"]:.1f}',
                     f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"])
    print(text_table(['samples a second', 'best step', 'median', 'times one thread'], rows))
    if args.out:
        write_text(args.out, json.dumps({'processor': processor.name(torch.device('cpu')), 'cores': os.cpu_count(),
                                         'batch': args.batch, 'patch': args.patch, 'seconds': found}, indent=1) + '\n')
    return 0


def start(processes: int, threads: int, arguments: list[str]) -> list[float]:
    """Seconds of each step of a contender, in processes of its own."""
    torchrun = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}']
    command = [sys.executable, *(torchrun if processes > 1 else []), __file__, *arguments, '--as_worker']
    done = subprocess.run(command, env={**os.environ, 'OMP_NUM_THREADS': str(threads)}, stdout=subprocess.PIPE,
                          text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def work(args: argparse.Namespace) -> int:
    """Trains, and prints the seconds of each step: with one process those between two ends, with several rank 0's."""
    processes = int(os.environ.get('WORLD_SIZE', 1))
    if processes > 1:
        init_dist('pytorch', on_gpu=False)
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    processor.keep_freed_memory()  # as a training does
    with tempfile.TemporaryDirectory() as folder:
        case = speed.Case(args.network, args.batch // processes, args.patch)
        step = speed.Trainer(case, torch.device('cpu'), Path(folder)).step('l1', speed.Settings(True, fused=True))
        ends = []
        for _ in range(2 + args.steps):
            step()
            ends.append(time.perf_counter())
    if int(os.environ.get('RANK', 0)) == 0:
        print(json.dumps([end - begin for begin, end in itertools.pairwise(ends[1:])]))
    return 0


if __name__ == '__main__':
    exits.print_anything()
    sys.exit(main())
