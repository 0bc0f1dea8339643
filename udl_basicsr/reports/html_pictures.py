"""The pictures of a page: read, cut to a window, and encoded so that they lie in the page itself."""
from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from basicsr.metrics import calculate_metric
from PIL import Image

from udl_basicsr.data.degradations import resize_bicubic
from udl_basicsr.experiments.record_files import Record
from udl_basicsr.functional.image_statistics import busiest_box

from .html_bounds import bounds, check_folder
from .html_groups import Group, first_metric, unit
from .pictures import ReportError, Run, on_y, read_partner

LIMIT = 5_000_000  # bytes; pictures that were not asked for by name are left out beyond it
WINDOW = 224  # pixels; without loss 13 methods then take some 1.5 MB for each picture
_LARGEST = 16383  # pixels a side of a WebP
MAP_QUALITY = 85  # of WebP, for the maps of s, which lie over a picture and are looked at, not measured
# Viridis, which is ordered by lightness in itself and for the colour-blind; the same stops are in report.css.
_STOPS = np.array([[68, 1, 84], [71, 45, 123], [59, 82, 139], [44, 114, 142], [33, 145, 140], [40, 174, 128],
                   [94, 201, 98], [173, 220, 48], [253, 231, 37]], dtype=np.float64)


@dataclass(frozen=True)
class Layer:
    """One picture that the slider can show.

    Attributes:
        key: What it is chosen by: `method:<id>`, `gt`, `bicubic`, `lq`, `lower`, `upper` or `within`.
        label: How it is printed.
        image: (H, W, 3) uint8 RGB, or Y repeated where a method restored Y alone; the LQ is smaller by the scale.
        scores: Of the whole image; empty for GT and LQ.
        log_scale: s, (H, W), where the method has an uncertainty.
    """
    key: str
    label: str
    image: np.ndarray
    scores: Mapping[str, float | None]
    log_scale: np.ndarray | None = None


@dataclass(frozen=True)
class Picture:
    """An image of a test set in all its versions; all but the LQ are of one size, ``whole`` is (width, height)."""
    group: Group
    dataset: str
    image: str
    layers: tuple[Layer, ...]
    whole: tuple[int, int]

    @property
    def name(self) -> str:
        return f'{self.dataset}/{self.image}'


def picture_folder(record: Record) -> Path | None:
    """The folder of a run's pictures; a relative one is looked for from here."""
    folder = record.pictures
    return Path(folder) if isinstance(folder, str) and folder and Path(folder).is_dir() else None


def _roots(group: Group, key: str) -> dict[str, list[Path]]:
    """GT or LQ folders of the data sets, where the test's option file, beside the pictures, names what is there."""
    found: dict[str, list[Path]] = {}
    for record in group.records:
        folder = picture_folder(record)
        for file in sorted(folder.parent.glob('*.yml')) if folder else ():
            try:
                datasets = (yaml.safe_load(file.read_text(encoding='utf-8')) or {}).get('datasets') or {}
                roots = {d['name']: Path(d[key]) for d in datasets.values() if d and d.get('name') and d.get(key)}
            except (yaml.YAMLError, AttributeError, TypeError, UnicodeDecodeError):
                continue  # no option file of ours: --gt and --lq say what it would
            for name, root in roots.items():
                if root.is_dir() and root not in found.setdefault(name, []):
                    found[name].append(root)
    return found


def _partner(folders: Sequence[Path], image: str, what: str, size: tuple[int, int]) -> np.ndarray | None:
    """The GT or LQ of the given (height, width) from the first folder that has it so: folders of several scales."""
    errors = []
    for folder in folders:
        found = read_partner(folder, image, what)
        if found.shape[:2] == size:
            return found
        errors.append(f'{folder} has {image} with {found.shape[1]}×{found.shape[0]} pixels')
    if errors:
        raise ReportError(f'{"; ".join(errors)}, but its {what} should have {size[1]}×{size[0]}. Is it the {what} '
                          'folder of this scale?')
    return None


def _layers(group: Group, dataset: str, image: str, seed: int | None, gt: Sequence[Path],
            lq: Sequence[Path], intervals: Sequence[Path]) -> tuple[tuple[Layer, ...], str]:
    """Every version of an image that there is, the methods first; none where no method kept it.

    And what there is to say of its intervals.
    """
    if any(Path(part).name != part or part in ('', '..') for part in (dataset, image)):
        return (), ''  # a name that leads elsewhere: no picture of ours
    layers: list[Layer] = []
    weights: dict[str, str] = {}
    for method, label in group.methods.items():
        for record in group.of(method):
            folder = picture_folder(record)
            if folder is None or (seed is not None and record.seed != seed):
                continue
            if dataset not in record.datasets or image not in record.datasets[dataset].images:
                continue
            if not any((folder / dataset).glob('*.png')):
                continue
            run = Run(label, str(folder), folder, group.scale, record.datasets)
            has_s = (folder / dataset / f'{image}_log_scale.png').is_file()
            layers.append(Layer(f'method:{method}', label, run.sr(dataset, image), run.scores(dataset, image),
                                run.log_scale(dataset, image) if has_s else None))
            weights[label] = record.weights_hash
            break
    if not layers:
        return (), ''
    size = layers[0].image.shape[:2]
    for layer in layers:
        for array in (layer.image, layer.log_scale):
            if array is not None and array.shape[:2] != size:
                raise ReportError(f'{dataset}/{image}: {layer.label} has a picture of {array.shape[1]}×'
                                  f'{array.shape[0]} pixels, {layers[0].label} one of {size[1]}×{size[0]}. They are '
                                  'not of one test: make them again')
    gray = any(layer.image.ndim == 2 for layer in layers)
    ends, note = bounds(intervals, image, size, weights)
    layers += [Layer(key, label, array, {}) for key, label, array in ends]
    truth = _partner(gt, image, 'GT', size)
    if any(n % group.scale for n in size):
        lq = ()
    small = _partner(lq, image, 'LQ', (size[0] // group.scale, size[1] // group.scale))
    if small is not None:
        bicubic = resize_bicubic(small, group.scale)
        layers[:0] = [Layer('lq', 'Low resolution', small, {}),
                      Layer('bicubic', 'Bicubic', bicubic, _bicubic_scores(group, bicubic, truth, gray))]
    if truth is not None:
        layers.append(Layer('gt', 'Ground truth', truth, {}))
    return tuple(replace(layer, image=on_y(layer.image)) if gray else layer for layer in layers), note


def _bicubic_scores(group: Group, bicubic: np.ndarray, truth: np.ndarray | None, gray: bool) -> dict[str, float]:
    """PSNR and SSIM of the bicubic image, where the runs say how theirs were measured, and all the same.

    Those of ``gray`` SR images were measured on Y, whatever they say.
    """
    measured = [r.measured for r in group.records if r.measured]
    if truth is None or len(measured) < len(group.records):
        return {}
    img, img2 = (on_y(image)[..., 0] if gray else image[..., ::-1] for image in (bicubic, truth))
    scores = {}
    for metric in group.metrics:
        ways = [each.metrics[metric] for each in measured if metric in each.metrics]
        if ways and ways.count(ways[0]) == len(ways) and ways[0].get('type') in ('calculate_psnr', 'calculate_ssim'):
            scores[metric] = float(calculate_metric({'img': img, 'img2': img2}, ways[0]))
    return scores


def _cut(picture: Picture, window: int) -> Picture:
    """The part of ``window`` × ``window`` pixels that has most detail; small pictures stay whole."""
    height, width = picture.layers[-1].image.shape[:2]
    if not window or (height <= window and width <= window):
        return picture
    scale = picture.group.scale
    side = max(min(window, height, width) // scale, 1) * scale
    left, top, *_ = (n // scale * scale for n in busiest_box(picture.layers[-1].image, side))

    def part(array: np.ndarray | None) -> np.ndarray | None:
        if array is None:
            return None
        by = 1 if array.shape[:2] == (height, width) else scale
        return array[top // by:(top + side) // by, left // by:(left + side) // by]

    return replace(picture, layers=tuple(replace(layer, image=part(layer.image), log_scale=part(layer.log_scale))
                                         for layer in picture.layers))


def _order(group: Group, dataset: str) -> list[str]:
    """The images of a data set: that on which scores spread most (of one run: the worst), the middle one, the rest."""
    metric = first_metric(group)
    values: dict[str, list[float]] = {}
    for record in group.records:
        for image, scores in record.datasets[dataset].images.items() if dataset in record.datasets else ():
            score = scores.get(metric) if metric else None
            values.setdefault(image, []).append(0. if score is None else score)
    alone = len(group.records) == 1
    sign = -1 if not alone or (metric and group.facts(metric).higher_is_better is False) else 1
    order = sorted(values, key=lambda image: sign * (values[image][0] if alone else np.std(values[image])))
    middle = order[len(order) // 2:len(order) // 2 + 1]
    return list(dict.fromkeys([*order[:1], *middle, *order]))


def encode(image: np.ndarray, quality: int | None) -> str:
    """A picture as a data URL: WebP, without loss unless a quality from 1 to 100 is given."""
    data = io.BytesIO()
    how = {'lossless': True} if quality is None else {'quality': quality}
    Image.fromarray(np.ascontiguousarray(image)).save(data, 'WEBP', method=4, **how)
    return 'data:image/webp;base64,' + base64.b64encode(data.getvalue()).decode('ascii')


def colour_map(log_scale: np.ndarray, low: float, high: float) -> np.ndarray:
    """s (H, W) in the colours of viridis from ``low`` to ``high``: (H, W, 3) uint8."""
    at = ((log_scale - low) / (high - low)).clip(0, 1) * (len(_STOPS) - 1)
    return np.stack([np.interp(at, range(len(_STOPS)), _STOPS[:, c]) for c in range(3)], -1).round().astype(np.uint8)


def _encoded(picture: Picture, quality: int | None) -> dict:
    """A picture for the script, but for the maps of s, whose colours depend on all pictures."""
    height, width = picture.layers[-1].image.shape[:2]
    if max(height, width) > _LARGEST:
        raise ReportError(f'{picture.name}: {width}×{height} pixels are more than the {_LARGEST} a side that WebP '
                          'holds; give a smaller --window')
    first = first_metric(picture.group)  # which every layer shows first, so that the small pictures compare
    facts = {metric: picture.group.facts(metric) for metric in sorted(picture.group.metrics, key=lambda m: m != first)}
    layers = [{'key': layer.key, 'label': layer.label, 'src': encode(layer.image, quality), 'scores': [
        f'{facts[m].title(m)} {facts[m].text(layer.scores[m])}{unit(facts[m])}'
        for m in facts if m in layer.scores]}
        for layer in picture.layers]
    part = '' if (width, height) == picture.whole else f'{width}×{height} of {picture.whole[0]}×{picture.whole[1]} px'
    sign = facts[first].sign if first else 0
    for entry, layer in zip(layers, picture.layers, strict=True):
        score = layer.scores.get(first) if first else None
        if sign and score is not None and math.isfinite(score):
            entry['rank'] = sign * score
    group, reference = picture.group, picture.group.reference
    return {'name': picture.name, 'group': group.title, 'scale': group.scale, 'width': width, 'height': height,
            'part': part, 'layers': layers, 'reference': f'method:{reference}' if reference else None}


def choose_pictures(groups: Sequence[Group], wanted: Sequence[str] = (), gt: Mapping[str, Sequence[Path]] | None = None,
                    lq: Mapping[str, Sequence[Path]] | None = None, seed: int | None = None,
                    quality: int | None = None, window: int = WINDOW,
                    limit: int = LIMIT, intervals: Mapping[str, Sequence[Path]] | None = None,
                    ) -> tuple[list[dict], tuple[float, float] | None, list[str]]:
    """Reads, cuts and encodes the pictures of a page.

    Args:
        groups: As :func:`read_groups` gives them.
        wanted: ``DATASET/NAME``; by default, in turns over the data sets, those that `_order` puts first, one or two
            for each set, as many as ``limit`` bytes hold.
        gt: Folders of HR images for each data set.
        lq: Folders of LR images for each data set.
        seed: Whose pictures; by default the first that has any.
        quality: Of WebP with loss; None: without.
        window: Side of the part that is shown of larger pictures; 0: all of it.
        limit: Bytes of all pictures that were not asked for by name.
        intervals: Folders of ``udl infer --intervals`` for each data set.

    Returns:
        The pictures for the script, the range of s that their maps' colours span, and what was left out, in words.

    Raises:
        ReportError: A picture that was asked for does not exist, or pictures that do not belong together; intervals of
            which nothing can be shown.
    """
    gt, lq, intervals = dict(gt or {}), dict(lq or {}), dict(intervals or {})
    names = {f'{d}/{i}' for g in groups for d in g.datasets for i in _order(g, d)}
    for name in wanted:
        if name not in names:
            near = sorted(names)
            shown = ', '.join(near[:20]) + (f' and {len(near) - 20} more' if len(near) > 20 else '')
            raise ReportError(f'--images: there is no {name}. There are: {shown}')
    for what, given in (('--gt', gt), ('--lq', lq), ('--intervals', intervals)):
        known = list(dict.fromkeys(d for g in groups for d in g.datasets))
        for name, folders in given.items():
            if name not in known:
                raise ReportError(f'{what}: there is no data set {name}. There are: {", ".join(known)}')
            for folder in folders:
                if not folder.is_dir():
                    raise ReportError(f'{what} {name}={folder}: no such folder')
                if what == '--intervals':
                    check_folder(folder, name, dict.fromkeys(i for g in groups for i in _order(g, name)))

    if seed is not None and not any(r.seed == seed for g in groups for r in g.records):
        raise ReportError(f'--seed: there is no run of seed {seed}. There are: '
                          f'{", ".join(map(str, sorted({r.seed for g in groups for r in g.records})))}')

    candidates = []
    for group in groups:
        roots = {key: {**_roots(group, key), **given} for key, given in (('dataroot_gt', gt), ('dataroot_lq', lq))}
        for dataset in group.datasets:
            images = [i for i in _order(group, dataset) if not wanted or f'{dataset}/{i}' in wanted]
            candidates += [(place, group, dataset, image, roots) for place, image in
                           enumerate(images if wanted else images[:2])]
    if not wanted:
        candidates.sort(key=lambda c: c[0])  # stable: the first of every set, then the second
    chosen, maps, notes, left_out, total, without = [], [], [], [], 0, []
    for _, group, dataset, image, roots in candidates:
        layers, of_bounds = _layers(group, dataset, image, seed, roots['dataroot_gt'].get(dataset, ()),
                                    roots['dataroot_lq'].get(dataset, ()), intervals.get(dataset, ()))
        if not layers:
            without.append(f'{dataset}/{image}')
            continue
        picture = Picture(group, dataset, image, layers, layers[-1].image.shape[1::-1])
        picture = _cut(picture, window)
        entry = _encoded(picture, quality)
        size = sum(len(layer['src']) for layer in entry['layers'])
        # The maps' colours depend on all pictures; in colours of their own they take as much space.
        size += sum(len(encode(colour_map(s, *_span([s])), MAP_QUALITY)) for layer in picture.layers
                    if (s := layer.log_scale) is not None)
        if not wanted and total + size > limit:
            left_out.append(f'{picture.name} ({size / 1e6:.1f} MB)')
            continue
        total += size
        chosen.append(entry)
        if of_bounds:
            notes.append(f'Intervals of {picture.name}: {of_bounds}.')
        maps.append([layer.log_scale for layer in picture.layers])
    if wanted and without:
        raise ReportError(f'{", ".join(without)}: {"no run" if seed is None else f"no run of seed {seed}"} kept this '
                          f'picture here. {groups[0].remedy}')
    for name in intervals:
        if not any(entry['name'].startswith(f'{name}/') and any(layer['key'] == 'lower' for layer in entry['layers'])
                   for entry in chosen):
            raise ReportError(' '.join([f'--intervals {name}: none can be shown, since no picture of {name} on this '
                                        'page has any.', *(note for note in notes if f' {name}/' in note)]))
    found = {c[2] for c in candidates if f'{c[2]}/{c[3]}' not in without}
    bare = [name for name in dict.fromkeys(c[2] for c in candidates) if name not in found]
    if chosen and bare:
        notes.append(f'No pictures of {", ".join(bare)} are here. {groups[0].remedy}')
    if left_out:
        notes.append(f'Left out to stay below {limit / 1e6:g} MB: {", ".join(left_out)}. --quality 90 takes a tenth '
                     'of the space, with some loss; --images DATASET/NAME puts in what you name.')
    return chosen, _add_maps(chosen, maps), notes


def _span(maps: Sequence[np.ndarray]) -> tuple[float, float]:
    """The range of s that colours are given to: a few pixels far off must not darken all others."""
    low, high = (float(v) for v in np.percentile(np.concatenate([m.ravel() for m in maps]), (1, 99)))
    return low, max(high, low + 0.1)


def _add_maps(chosen: Sequence[dict], maps: Sequence[Sequence[np.ndarray | None]]) -> tuple[float, float] | None:
    """Adds the maps of s in colours that mean the same in all pictures; returns the range that they span."""
    every = [m for layers in maps for m in layers if m is not None]
    if not every:
        return None
    low, high = _span(every)
    for picture, layers in zip(chosen, maps, strict=True):
        for entry, log_scale in zip(picture['layers'], layers, strict=True):
            if log_scale is not None:
                entry['map'] = encode(colour_map(log_scale, low, high), MAP_QUALITY)
    return low, high


def theta_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Places in [0, 1] and labels of θ = exp(s) in grey levels, at 1, 2, 5 times powers of ten."""
    values = [k * 10. ** p for p in range(-1, 3) for k in (1, 2, 5)]
    return [((math.log(v) - low) / (high - low), f'{v:g}') for v in values if low <= math.log(v) <= high]
