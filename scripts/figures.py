#!/usr/bin/env python
"""Draws the figures of the papers from what tests and trainings left: pictures, checkpoints, records.

Examples:
    python scripts/figures.py crops results/EDSR_L1_x4 UDL=results/EDSR_UDL_x4 --dataset Set14 --image barbara \
        --gt datasets/Set14/GTmod4 --lq datasets/Set14/LRbicx4 --box 64 --out crops.pdf
    python scripts/figures.py tlw experiments/EDSR_TLW_x4 --gt datasets/Set5/GTmod4/butterfly.png \
        --lq datasets/Set5/LRbicx4/butterfly.png --out tlw.pdf
    python scripts/figures.py differences docs/results/rivals --out differences.pdf

Tests keep their pictures with val.save_img: true, and the uncertainty with path.pretrain_network_u.
"""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from udl_basicsr.deploy.export import ExportError
from udl_basicsr.engine.options import OptionError
from udl_basicsr.losses.functional import MIN_OVER, SCALINGS
from udl_basicsr.models.checkpoints import CheckpointError
from udl_basicsr.reports import figures, maps, plots
from udl_basicsr.reports.comparison import read_records
from udl_basicsr.reports.figures import Panel
from udl_basicsr.reports.pictures import open_run, read_image, read_partner, same_size
from udl_basicsr.reports.tlw import open_tlw_run, tlw_maps
from udl_basicsr.reports.uncertainty import Report, ReportError, uncertainty_figure

_WEIGHTS = {'error': 'error |x − f|', 'hr_gradient': 'HR gradient', 'lr_gradient': 'LR gradient',
            'uncertainty': 'uncertainty (UDL)'}


class _Pictures:
    """One image: its GT, what each run made of it, and the part that is shown."""

    def __init__(self, args: argparse.Namespace):
        self.dataset, self.image = args.dataset, args.image
        self.runs = [open_run(given) for given in args.runs]
        self.sr = [run.sr(self.dataset, self.image) for run in self.runs]
        self.gt = read_partner(args.gt, self.image)
        same_size({'the GT': self.gt, **{run.source: sr for run, sr in zip(self.runs, self.sr, strict=True)}})
        self.box = _box(args.box, self.gt)
        self.lq, self.scale = None, self.runs[0].scale
        if getattr(args, 'lq', None):
            self.lq = read_partner(args.lq, self.image, 'LQ')
            same_size({'the GT': self.gt, f'the LQ ×{self.scale}': maps.nearest(self.lq, self.scale)})

    def log_scale(self, run):
        log_scale = run.log_scale(self.dataset, self.image)
        same_size({'the GT': self.gt, f'the map of s of {run.source}': log_scale})
        return log_scale

    def cut(self, image):
        return figures.crop(image, self.box)

    def caption(self, run) -> str:
        return run.caption(self.dataset, self.image)


def _box(given: list[int] | None, image) -> tuple[int, int, int, int] | None:
    if given is None:
        return None
    if len(given) not in (1, 4) or min(given) < 0 or min(given[-2:]) < 1:
        raise ReportError(f'--box {" ".join(map(str, given))}: expected LEFT TOP WIDTH HEIGHT in pixels of the GT, or '
                          'the side of a square that is put where the detail is')
    box = maps.busiest_box(image, given[0]) if len(given) == 1 else tuple(given)
    try:
        figures.crop(image, box)
    except ValueError as error:
        raise ReportError(f'--box: {error}') from error
    return box


def _wrapped(panels: list[Panel], columns: int | None, most: int = 5) -> list[list[Panel]]:
    """Panels in as few rows as `columns` allow (at most 5 where nothing is said), the rows about equally long."""
    if not columns:
        columns = -(-len(panels) // -(-len(panels) // most))
    return [panels[i:i + columns] for i in range(0, len(panels), columns)]


# ---------------------------------------------------------------- kinds

def crops(args, look: dict) -> Path:
    args.box = args.box or [96]
    p = _Pictures(args)
    panels = [Panel(f'{run.label}\n{p.caption(run)}', sr) for run, sr in zip(p.runs, p.sr, strict=True)]
    if p.lq is not None:
        panels.insert(0, Panel('low resolution\npixels repeated', maps.nearest(p.lq, p.scale)))
    panels.append(Panel('ground truth\nPSNR / SSIM', p.gt))
    whole = Panel(f'{p.dataset}: {p.image}, ×{p.scale}', p.gt)
    return figures.comparison_figure(panels, p.box, args.out, [whole], args.columns, **look)


def errors(args, look: dict) -> Path:
    p = _Pictures(args)
    panels = [Panel('ground truth', p.cut(p.gt))]
    for run, sr in zip(p.runs, p.sr, strict=True):
        error = maps.error_map(sr, p.gt)
        panels.append(Panel(f'{run.label}: mean {p.cut(error).mean():.2f}\n{p.caption(run)}', p.cut(error), 'error'))
    return figures.save(figures.draw_grid(_wrapped(panels, args.columns), **look), args.out)


def uncertainty(args, look: dict) -> Path:
    low, high = args.limits
    if not low < high:
        raise ReportError(f'--limits {low:g} {high:g}: expected two numbers, the smaller one first')
    p, rows = _Pictures(args), []
    for run, sr in zip(p.runs, p.sr, strict=True):
        s = p.cut(p.log_scale(run))
        unit, bottom, top = maps.stretch(s)
        rows.append([Panel(f'{run.label}\n{p.caption(run)}', p.cut(sr)),
                     Panel('|x − f|', p.cut(maps.error_map(sr, p.gt)), 'error'),
                     Panel(f'fixed scale\nmean s = {s.mean():.2f}', s, 'log_scale'),
                     Panel(f'own scale\ns = {bottom:.2f} to {top:.2f}', unit, 'stretched')])
    return figures.save(figures.draw_grid(rows, 'below', limits=(low, high), **look), args.out)


def weights(args, look: dict) -> Path:
    args.runs = [args.run, args.uncertainty or args.run]
    p = _Pictures(args)
    found = maps.weight_maps(p.sr[0], p.gt, p.lq, p.log_scale(p.runs[1]), args.scaling, args.offset, args.min_over)
    panels = [Panel('ground truth\n10 % of the pixels bear', p.cut(p.gt))]
    panels += [Panel(f'{_WEIGHTS[name]}\n{maps.top_share(weight):.0%} of the weight'.replace('%', ' %'), p.cut(weight),
                     'weight') for name, weight in found.items()]
    return figures.save(figures.draw_grid(_wrapped(panels, args.columns), **look), args.out)


def gv(args, look: dict) -> Path:
    runs = [open_run(given) for given in args.runs]
    labels = [run.label for run in runs]
    if len(set(labels)) < len(labels):
        raise ReportError(f'two runs are called {", ".join(labels)}: tell them apart with LABEL=PATH')
    images, size = runs[0].images(args.dataset), args.patch_size or (8 if runs[0].scale == 2 else 16)
    gt, sr = [], {run.label: [] for run in runs}
    for image in images:
        target = read_partner(args.gt, image)
        pictures = {run.source: run.sr(args.dataset, image) for run in runs}
        same_size({'the GT': target, **pictures})
        try:
            gt.append(maps.patch_variances(target, size))
        except ValueError as error:
            raise ReportError(f'--patch_size: {error}') from error
        for run in runs:
            sr[run.label].append(maps.patch_variances(pictures[run.source], size))
    pooled = {label: np.concatenate(found) for label, found in sr.items()}
    return plots.variances_figure(np.concatenate(gt), pooled, size, args.out,
                                  f'{args.dataset} ×{runs[0].scale}, {len(images)} images', **look)


def tlw(args, look: dict) -> Path:
    run = open_tlw_run(args.experiment)
    gt, lq = read_image(args.gt), read_image(args.lq)
    missing = [i for i in args.iterations or () if i not in run.iterations]
    if missing:
        raise ReportError(f'--iterations: {args.experiment} has no checkpoints of {", ".join(map(str, missing))}, it '
                          f'has {", ".join(map(str, run.iterations))}')
    count = min(4, len(run.iterations))  # as many as are still large in print, from the first to the last
    chosen = args.iterations or sorted({run.iterations[round(i * (len(run.iterations) - 1) / max(count - 1, 1))]
                                        for i in range(count)})
    box = _box(args.box, gt)
    return plots.tlw_figure(run, [tlw_maps(run, i, gt, lq) for i in chosen], gt, args.out, box, **look)


def calibration(args, look: dict) -> Path:
    path = Path(args.report)
    try:
        reports = [Report(**run) for run in json.loads(path.read_text(encoding='utf-8'))['runs']]
    except (ValueError, TypeError, KeyError) as error:
        raise ReportError(f'{path}: is no uncertainty.json of scripts/uncertainty_report.py ({error})') from error
    return uncertainty_figure(reports, args.out, **look)


def differences(args, look: dict) -> Path:
    return plots.differences_figure(read_records(args.records), args.out, args.metric, args.scale, args.methods, **look)


def curves(args, look: dict) -> Path:
    return plots.curves_figure(read_records(args.records), args.dataset, args.out, args.metric, args.scale,
                               args.methods, **look)


# ---------------------------------------------------------------- command line

def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description='Draws the figures of the papers.')
    kinds = parser.add_subparsers(dest='kind', required=True, metavar='KIND')

    def kind(draw, told: str, width: bool = True) -> argparse.ArgumentParser:
        sub = kinds.add_parser(draw.__name__, help=told, description=told[0].upper() + told[1:] + '.')
        sub.set_defaults(draw=draw)
        sub.add_argument('--out', required=True, metavar='FILE', help='.png, .pdf or .svg')
        if width:
            sub.add_argument('--width', type=float, default=figures.WIDTH, metavar='INCHES',
                             help='default 7, the text of a paper with two columns; letters have 7 points at any width')
        sub.add_argument('--dpi', type=int, default=150, help='resolution of a PNG; default 150')
        return sub

    def pictures(sub: argparse.ArgumentParser, runs: bool = True) -> None:
        told = 'results folder of a test with val.save_img: true, or the record of a comparison'
        if runs:
            sub.add_argument('runs', nargs='+', metavar='[LABEL=]RUN', help=told)
        else:
            sub.add_argument('run', metavar='RUN', help=told)
        sub.add_argument('--dataset', required=True, help="the data set's name in the tests")
        sub.add_argument('--gt', required=True, metavar='FOLDER', help='its HR images')

    def one_image(sub: argparse.ArgumentParser, box: str = 'default: all of it', columns: bool = True) -> None:
        sub.add_argument('--image', required=True, help='its name in the scores')
        if columns:
            sub.add_argument('--columns', type=int, help='of pictures')
        boxed(sub, box)

    def boxed(sub: argparse.ArgumentParser, box: str = 'default: all of it') -> None:
        sub.add_argument('--box', type=int, nargs='+', metavar='N', help='the part that is shown: LEFT TOP WIDTH HEIGHT'
                         f' in pixels of the GT, or the side of a square put where the detail is; {box}')

    sub = kind(crops, 'what each run makes of a part of an image, beside the whole')
    pictures(sub)
    one_image(sub, 'default 96')
    sub.add_argument('--lq', metavar='FOLDER', help='the LR images, to show them too')

    sub = kind(errors, '|x − f| of each run, on one scale')
    pictures(sub)
    one_image(sub)

    sub = kind(uncertainty, 'the uncertainty of each run, on a fixed scale and from its 1st to its 99th percentile')
    pictures(sub)
    one_image(sub, columns=False)
    sub.add_argument('--limits', type=float, nargs=2, default=figures.LOG_SCALE_LIMITS, metavar=('LOW', 'HIGH'),
                     help='of s on the fixed scale; default -1 5')

    sub = kind(weights, 'the weight maps of table 3 of the UDL paper')
    pictures(sub, runs=False)
    one_image(sub)
    sub.add_argument('--lq', required=True, metavar='FOLDER', help='the LR images')
    sub.add_argument('--uncertainty', metavar='RUN', help='the run whose map of s is taken; default: RUN itself')
    sub.add_argument('--scaling', choices=SCALINGS, default='linear', help='of table 4; default linear')
    sub.add_argument('--offset', type=float, default=0., help='added to the weights; 1 in the released code')
    sub.add_argument('--min_over', choices=MIN_OVER, default='image')

    sub = kind(gv, 'how much variance of the gradient the runs keep, over a data set')
    pictures(sub)
    sub.add_argument('--patch_size', type=int, help='default 8 at ×2, 16 otherwise, as in the GV paper')

    sub = kind(tlw, "TLW's weights over the training")
    sub.add_argument('experiment', metavar='RUN', help='experiments/<name> of a run of TLWModel')
    sub.add_argument('--gt', required=True, metavar='FILE', help='an HR image')
    sub.add_argument('--lq', required=True, metavar='FILE', help='its LR image')
    sub.add_argument('--iterations', type=int, nargs='+', metavar='N', help='of checkpoints; default: up to four')
    boxed(sub)

    sub = kind(calibration, 'sparsification and calibration, from the uncertainty.json of uncertainty_report.py',
               width=False)
    sub.add_argument('report', metavar='FILE', help='uncertainty.json')

    for sub in (kind(differences, 'differences of a comparison from its reference, with intervals of 95 %'),
                kind(curves, 'validations of a comparison during training')):
        sub.add_argument('records', metavar='FOLDER', help='docs/results/<comparison>')
        sub.add_argument('--metric', default='psnr')
        sub.add_argument('--scale', type=int, help='where there are several')
        sub.add_argument('--methods', nargs='+', default=[], metavar='ID', help='default: all')
        if sub.prog.endswith('curves'):
            sub.add_argument('--dataset', required=True, help='that was validated on')
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    for name, low in (('width', 0.5), ('dpi', 10), ('columns', 1), ('patch_size', 2)):
        value = getattr(args, name, None)
        if value is not None and not value >= low:
            parser.error(f'--{name}: expected a number of at least {low:g}, got {value:g}')
    try:
        figures.check_out(args.out)
        out = args.draw(args, {key: getattr(args, key) for key in ('width', 'dpi') if hasattr(args, key)})
    except (ValueError, OSError, CheckpointError, ExportError, OptionError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'Wrote {out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
