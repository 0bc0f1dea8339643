"""The kinds of ``udl figures``: each reads what it draws, and draws it."""
from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from udl_basicsr.experiments.printed import load_paper
from udl_basicsr.experiments.record_files import (
    Record,
    folder_of_records,
    read_comparisons,
    read_records,
    record_file,
)
from udl_basicsr.experiments.statistics import methods_of
from udl_basicsr.functional import image_statistics as stats
from udl_basicsr.reports import figures, plots, variance_plots, where
from udl_basicsr.reports import lead as leads
from udl_basicsr.reports.figures import Panel
from udl_basicsr.reports.paper_tables import make_table
from udl_basicsr.reports.pictures import Run, comparable, open_run, read_image, read_partner, same_size
from udl_basicsr.reports.sigma import sigma_curve, sigma_figure, sigma_pixels
from udl_basicsr.reports.tlw import TLWRun, open_tlw_run, tlw_maps
from udl_basicsr.reports.tradeoff import tradeoff_dots, tradeoff_figure
from udl_basicsr.reports.uncertainty import Report, ReportError, uncertainty_figure
from udl_basicsr.utils.files import write_text
from udl_basicsr.utils.json_files import read_json

_WEIGHTS = {'error': 'error |x − f|', 'hr_gradient': 'HR gradient', 'lr_gradient': 'LR gradient',
            'uncertainty': 'uncertainty (UDL)'}


class _Pictures:
    """One image: its GT, what each run made of it, and the part that is shown."""

    def __init__(self, args: argparse.Namespace):
        self.dataset, self.image = args.dataset, args.image
        self.runs = [open_run(given) for given in args.runs]
        lq = [read_partner(args.lq, self.image, 'LQ')] if getattr(args, 'lq', None) else []
        self.sr, (self.gt, *lq) = comparable([run.sr(self.dataset, self.image) for run in self.runs],
                                             read_partner(args.gt, self.image), *lq)
        same_size({'the GT': self.gt, **{run.source: sr for run, sr in zip(self.runs, self.sr, strict=True)}})
        self.box = None if args.box is None else _box(args.box, self.gt)
        self.lq, self.scale = next(iter(lq), None), self.runs[0].scale
        if self.lq is not None:
            same_size({'the GT': self.gt, f'the LQ ×{self.scale}': stats.nearest(self.lq, self.scale)})

    def log_scale(self, run):
        log_scale = run.log_scale(self.dataset, self.image)
        same_size({'the GT': self.gt, f'the map of s of {run.source}': log_scale})
        return log_scale

    def cut(self, image):
        return figures.crop(image, self.box)

    def caption(self, run) -> str:
        return run.caption(self.dataset, self.image)


def _box(given: list[int], image) -> tuple[int, int, int, int]:
    if len(given) not in (1, 4) or min(given) < 0 or min(given[-2:]) < 1:
        raise ReportError(f'--box {" ".join(map(str, given))}: expected LEFT TOP WIDTH HEIGHT in pixels of the GT, or '
                          'the side of a square that is put where the detail is')
    if len(given) == 1:
        return stats.busiest_box(image, given[0])
    left, top, width, height = given
    box = left, top, width, height
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
    p = _Pictures(args)
    panels = [Panel(f'{run.label}\n{p.caption(run)}', sr) for run, sr in zip(p.runs, p.sr, strict=True)]
    if p.lq is not None:
        panels.insert(0, Panel('low resolution\npixels repeated', stats.nearest(p.lq, p.scale)))
    panels.append(Panel('ground truth\nPSNR / SSIM', p.gt))
    whole = Panel(f'{p.dataset}: {p.image}, ×{p.scale}', p.gt)
    return figures.comparison_figure(panels, p.box or _box([96], p.gt), args.out, [whole], args.columns, **look)


def errors(args, look: dict) -> Path:
    p = _Pictures(args)
    panels = [Panel('ground truth', p.cut(p.gt))]
    for run, sr in zip(p.runs, p.sr, strict=True):
        error = stats.error_map(sr, p.gt)
        panels.append(Panel(f'{run.label}: mean {p.cut(error).mean():.2f}\n{p.caption(run)}', p.cut(error), 'error'))
    return figures.save(figures.draw_grid(_wrapped(panels, args.columns), **look), args.out)


def uncertainty(args, look: dict) -> Path:
    low, high = args.limits
    if not low < high:
        raise ReportError(f'--limits {low:g} {high:g}: expected two numbers, the smaller one first')
    p, rows = _Pictures(args), []
    for run, sr in zip(p.runs, p.sr, strict=True):
        s = p.cut(p.log_scale(run))
        unit, bottom, top = stats.stretch(s)
        rows.append([Panel(f'{run.label}\n{p.caption(run)}', p.cut(sr)),
                     Panel('|x − f|', p.cut(stats.error_map(sr, p.gt)), 'error'),
                     Panel(f'fixed scale\nmean s = {s.mean():.2f}', s, 'log_scale'),
                     Panel(f'own scale\ns = {bottom:.2f} to {top:.2f}', unit, 'stretched')])
    return figures.save(figures.draw_grid(rows, 'below', limits=(low, high), **look), args.out)


def weights(args, look: dict) -> Path:
    args.runs = [args.run, args.uncertainty or args.run]
    p = _Pictures(args)
    found = stats.weight_maps(p.sr[0], p.gt, p.lq,  # pyright: ignore[reportArgumentType] - --lq is required
                              p.log_scale(p.runs[1]), args.scaling, args.offset, args.min_over)
    panels = [Panel('ground truth\n10 % of the pixels hold', p.cut(p.gt))]
    panels += [Panel(f'{_WEIGHTS[name]}\n{stats.top_share(weight):.0%} of the weight'.replace('%', ' %'), p.cut(weight),
                     'weight') for name, weight in found.items()]
    return figures.save(figures.draw_grid(_wrapped(panels, args.columns), **look), args.out)


def gradients(args, look: dict) -> Path:
    p = _Pictures(args)
    pictures = {'ground truth': p.gt, **{f'{run.label}\n{p.caption(run)}': sr
                                         for run, sr in zip(p.runs, p.sr, strict=True)}}
    found = [stats.gradients(image) for image in pictures.values()]  # of the whole image: a crop has a border
    rows = [[Panel(title, p.cut(image)) for title, image in pictures.items()]]
    rows += [[Panel(f'{name}: mean |G| = {np.abs(p.cut(both[axis])).mean():.3f}', p.cut(both[axis]), 'gradient')
              for both in found] for axis, name in enumerate(('Gx', 'Gy'))]
    return figures.save(figures.draw_grid(rows, **look), args.out)


def gv(args, look: dict) -> Path:
    runs, images, size, gt, sr = _variances(args, args.patch_size)
    pooled = {label: np.concatenate(found, axis=1).ravel() for label, found in sr.items()}
    return variance_plots.variances_figure(np.concatenate(gt, axis=1).ravel(), pooled, size, args.out,
                                  f'{args.dataset} ×{runs[0].scale}, {len(images)} images', **look)


def variances(args, look: dict) -> Path:
    runs, images, size, gt, sr = _variances(args, args.patch_size or 8, args.images)
    pooled = {label: np.concatenate(found, axis=1) for label, found in sr.items()}
    which = ', '.join(images) if args.images else f'{len(images)} images'
    return variance_plots.variance_peaks_figure(np.concatenate(gt, axis=1), pooled, size, args.out,
                                       f'{args.dataset} ×{runs[0].scale}, {which}', **look)


def _variances(args: argparse.Namespace, size: int | None, images: list[str] | None = None) -> tuple:
    """Runs, images, size of a patch, and of each image the variances along x and y, (2, P): of the GT, of each run."""
    runs = [open_run(given) for given in args.runs]
    labels = [run.label for run in runs]
    if len(set(labels)) < len(labels):
        raise ReportError(f'two runs are called {", ".join(labels)}: tell them apart with LABEL=PATH')
    images, size = images or runs[0].images(args.dataset), size or (8 if runs[0].scale == 2 else 16)
    gt, sr = [], {run.label: [] for run in runs}
    for image in images:
        pictures, (target, ) = comparable([run.sr(args.dataset, image) for run in runs], read_partner(args.gt, image))
        same_size({'the GT': target, **{run.source: sr for run, sr in zip(runs, pictures, strict=True)}})
        try:
            gt.append(stats.patch_variances(target, size).reshape(2, -1))
        except ValueError as error:
            raise ReportError(f'--patch_size: {error}') from error
        for run, picture in zip(runs, pictures, strict=True):
            sr[run.label].append(stats.patch_variances(picture, size).reshape(2, -1))
    return runs, images, size, gt, sr


def tlw(args, look: dict) -> Path:
    run = open_tlw_run(args.experiment)
    gt, lq = read_image(args.gt), read_image(args.lq)
    _has_checkpoints(run, args.iterations or (), '--iterations')
    count = min(4, len(run.iterations))  # as many as are still large in print, from the first to the last
    chosen = args.iterations or sorted({run.iterations[round(i * (len(run.iterations) - 1) / max(count - 1, 1))]
                                        for i in range(count)})
    box = None if args.box is None else _box(args.box, gt)
    return plots.tlw_figure(run, [tlw_maps(run, i, gt, lq) for i in chosen], gt, args.out, box, **look)


def fixed_sum(args, look: dict) -> Path:
    run = open_tlw_run(args.experiment)
    gt, lq = read_image(args.gt), read_image(args.lq)
    box = None if args.box is None else _box(args.box, gt)
    _has_checkpoints(run, () if args.iteration is None else [args.iteration], '--iteration')
    found = tlw_maps(run, run.iterations[-1] if args.iteration is None else args.iteration, gt, lq)
    return plots.layers_figure(found, args.out, box, **look)


def _has_checkpoints(run: TLWRun, wanted, option: str) -> None:
    missing = [i for i in wanted if i not in run.iterations]
    if missing:
        raise ReportError(f'{option}: {run.folder} has no checkpoints of {", ".join(map(str, missing))}, it has '
                          f'{", ".join(map(str, run.iterations))}')


def sigma(args, look: dict) -> Path:
    pixels = sigma_pixels(args.experiments[0], read_image(args.lq), args.pixels) if args.lq else None
    return sigma_figure([sigma_curve(folder) for folder in args.experiments], pixels, args.out, **look)


def tradeoff(args, look: dict) -> Path:
    records, paper = [record for folder in args.records for record in read_records(folder)], load_paper()
    tables = [make_table(name, records, paper) for name in args.tables]
    dots = tradeoff_dots(tables, args.dataset, args.scale, args.cost, args.metric)
    return tradeoff_figure(dots, args.dataset, args.scale, args.out, args.cost, args.metric, **look)


def calibration(args, look: dict) -> Path:
    path = Path(args.report)
    try:
        content = read_json(path)
        reports, protocol = [Report(**run) for run in content['runs']], str(content.get('protocol', ''))
    except (ValueError, TypeError, KeyError) as error:
        raise ReportError(f'{path}: is no uncertainty.json of udl uncertainty ({error})') from error
    return uncertainty_figure(reports, args.out, protocol, **look)


def differences(args, look: dict) -> Path:
    return plots.differences_figure(_records(args.records, args.network), args.out, args.metric, args.scale,
                                    args.methods, **look)


def curves(args, look: dict) -> Path:
    return plots.curves_figure(_records(args.records, args.network), args.dataset, args.out, args.metric, args.scale,
                               args.methods, **look)


def _records(folder: str, network: str | None) -> list[Record]:
    return _of_network(read_records(folder), folder, network)


def _of_network(records: list[Record], where: str, network: str | None) -> list[Record]:
    """The records of one network: what may be compared with one another."""
    known = list(dict.fromkeys(r.network_id for r in records if r.network_id))
    if network not in known and (network is not None or len(known) > 1):
        raise ReportError(f'{where}: has the networks {", ".join(known) or "of one title alone"}; choose one of them '
                          f'with --network' + (f', not {network}' if network else ''))
    return [r for r in records if network in (None, r.network_id)]


def _of_one_scale(args) -> tuple[list[Record], int, list[str]]:
    """The records of one network and scale, that scale, and the labels of the reference and the method asked for."""
    records, scale = plots.one_scale(_records(args.records, args.network), args.scale)
    pair = args.reference or records[0].reference, args.method
    known = plots.chosen_methods(records, pair)
    return records, scale, [known[method] for method in pair]


def _numbers(args, found: dict) -> None:
    """Writes what a figure shows as numbers, where they are asked for."""
    if args.numbers:
        write_text(args.numbers, json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + '\n')


def texture(args, look: dict) -> Path:
    records, scale, labels = _of_one_scale(args)
    found = where.gains_by_texture(records, args.method, args.dataset, args.gt, args.metric, scale, args.reference,
                                   args.steep)
    _numbers(args, found.numbers())
    return where.texture_figure(found, labels, args.dataset, args.out, args.metric, **look)


def deciles(args, look: dict) -> Path:
    records, scale, labels = _of_one_scale(args)

    def run(method: str) -> Run:
        plots.chosen_methods(records, [method])
        file = record_file(folder_of_records(args.records), method, scale, args.seed, records[0].network_id)
        if not file.exists():
            raise ReportError(f'--seed {args.seed}: no {file}')
        return open_run(str(file))

    found = where.errors_by_decile(run(args.reference or records[0].reference), run(args.method),
                                   run(args.uncertainty or args.method), args.dataset, args.gt)
    _numbers(args, found.numbers())
    return where.deciles_figure(found, labels, args.dataset, args.out, **look, seed=args.seed)


def lead(args, look: dict) -> Path:
    folders = {name: _of_network(records, name, args.network)
               for name, records in read_comparisons(args.records).items()}
    every = [r for records in folders.values() for r in records]
    seeds = sorted({r.seed for r in every})
    if unknown := [seed for seed in args.seeds or () if seed not in seeds]:
        raise ReportError(f'--seeds: no records of {", ".join(map(str, unknown))}, but of {", ".join(map(str, seeds))}')
    folders = {name: [r for r in records if r.seed in (args.seeds or seeds)] for name, records in folders.items()}
    labels = methods_of(every)
    for method in args.method:
        if method not in labels:
            raise ReportError(f'--method {method}: no records of it. There are: {", ".join(labels)}')
    known = list(dict.fromkeys(name for r in every for name in r.datasets))
    datasets = args.datasets or known
    if unknown := [name for name in datasets if name not in known]:
        raise ReportError(f'--datasets: none was tested on {", ".join(unknown)}, but on {", ".join(known)}')
    series = {name: points for name in datasets
              if (points := leads.lead_points(folders, args.method, name, args.axis, args.metric))}
    _numbers(args, leads.lead_numbers(series))
    both = labels.get(every[0].reference, every[0].reference), leads.lead_label(every, args.method)
    return leads.lead_figure(series, args.axis, both, args.out, args.metric, **look)
