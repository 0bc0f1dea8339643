"""From a folder of HR images to the paired folders that BasicSR trains and tests on. See docs/DATA.md.

    udl prepare path/to/Set5 --out datasets/Set5 --scale 2 3 4 --report_bicubic
    udl prepare path/to/DIV2K_train_HR --out datasets/DIV2K --scale 4 --sub_images 480 --lmdb
"""
from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING

from udl_basicsr.utils import exits
from udl_basicsr.utils.command_line import CommandParser, whole

if TYPE_CHECKING:
    from udl_basicsr.data.prepare import Job
    from udl_basicsr.data.workers import Workers


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line and refuses what cannot work together."""
    parser = CommandParser(
        told=__doc__,
        description='Makes mod-cropped HR images and their LR versions, in the folders that BasicSR expects. '
        'If it was interrupted, start it again: it makes what is missing.')
    parser.add_argument('source', type=Path, help='folder of HR images: PNG, JPEG, BMP, TIFF, WebP')
    parser.add_argument('--out', type=Path, required=True, help='folder in which GTmod<s>, LRbicx<s>, ... are made')
    parser.add_argument('--scale', type=whole(2, 8), nargs='+', default=[2, 3, 4], help='default: 2 3 4')
    parser.add_argument('--degradation', nargs='+', choices=['bic', 'bd'], default=['bic'],
                        help='bic: MATLAB bicubic (default); bd: 11x11 Gaussian blur of sigma 1.6, then nearest')
    parser.add_argument('--sub_images', type=whole(1), metavar='SIZE',
                        help='also cut square sub-images of this side in HR pixels, into <folder>_sub')
    parser.add_argument('--step', type=whole(1), help='distance of neighbouring sub-images; default: half their side')
    parser.add_argument('--lmdb', action='store_true', help='also make LMDBs, of the sub-images with --sub_images')
    parser.add_argument('--workers', type=whole(1, 1024), help='processes; default: one per CPU, and per 16 images')
    parser.add_argument('--report_bicubic', action='store_true',
                        help="print plain bicubic upsampling's PSNR and SSIM, to compare with published figures")
    args = parser.parse_args(argv)
    if args.step and not args.sub_images:
        parser.error('--step is the distance of sub-images: give --sub_images too')
    if args.sub_images:
        args.step = args.step or args.sub_images // 2
        for name, value in (('--sub_images', args.sub_images), ('--step', args.step)):
            if wrong := [s for s in args.scale if value % s]:
                parser.error(f'{name} {value} is no multiple of scale {wrong[0]}, so LR and HR would not line up')
    return args


def default_workers(source: Path) -> int:
    """One process per CPU, but no more than are worth the seconds that each takes to start."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    images = sum(1 for _ in source.iterdir()) if source.is_dir() else 0
    return max(1, min(cpus, images // 16))


def summarize(job: Job, records: dict[str, dict]) -> None:
    """Prints what was converted and where the pairs lie."""
    notes = {}
    for name, record in records.items():
        for note in record['notes']:
            notes.setdefault(note, []).append(name)
    for note, names in notes.items():
        print(f'{note}: {len(names)} ({", ".join(names[:5])}{", ..." if len(names) > 5 else ""})')
    images = '1 image' if len(records) == 1 else f'{len(records)} images'
    print(f'{images} in {job.out}, as BasicSR pairs (dataroot_gt, dataroot_lq):')
    ending = ('_sub' if job.sub_size else '') + ('.lmdb' if job.lmdb else '')
    for kind, scale in job.kinds():
        if kind != 'GT':
            print(f'  {job.folder("GT", scale)}{ending}  {job.folder(kind, scale)}{ending}')


def report(job: Job, records: dict[str, dict], workers: Workers) -> None:
    """Prints the scores of plain bicubic upsampling."""
    from udl_basicsr.data.prepare import bicubic_scores
    scores = bicubic_scores(job, list(records), workers)
    print('Plain bicubic upsampling: Y channel, border cropped by the scale, rounded to 8 bits, mean over the images')
    for (kind, scale), (psnr, ssim) in scores.items():
        print(f'  {kind:>3} x{scale}  PSNR {psnr:.2f} dB  SSIM {ssim:.4f}')


@exits.command('Run the same command again; it continues where it stopped.')
def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    args = parse_args(argv)
    import udl_basicsr.register  # noqa: F401 - before BasicSR is imported, for its shim
    from udl_basicsr.data.prepare import Job, PreparationError, prepare
    from udl_basicsr.data.workers import Workers
    # dict.fromkeys drops what was given twice and keeps the order
    job = Job(args.source, args.out, tuple(dict.fromkeys(args.scale)), tuple(dict.fromkeys(args.degradation)),
              args.sub_images, args.step, args.lmdb)
    try:
        with Workers(args.workers or default_workers(args.source)) as workers:
            records = prepare(job, workers)
            summarize(job, records)
            if args.report_bicubic:
                report(job, records, workers)
    except PreparationError as error:
        print(f'Cannot prepare {job.source}, {len(error.problems)} problem(s) to put right:', file=sys.stderr)
        print('\n'.join(f'  {problem}' for problem in error.problems), file=sys.stderr)
        return exits.MISUSED
    except BrokenProcessPool:
        print('A worker process was killed, for lack of memory perhaps. Run the same command again with fewer '
              '--workers; it continues where it stopped.', file=sys.stderr)
        return 1
    except OSError as error:
        print(f'{error.filename or job.out}: {error.strerror or error}. Put it right and run the same command again; '
              'it continues where it stopped.', file=sys.stderr)
        return 1
    return 0
