"""The scores of one test run: checked, printed, written, read back.

A run's scores are :class:`Scores`, and one plain object of a JSON file, so that any tool can make or read one::

    {'name': 'EDSR_UDL_x4', 'scale': 4, 'network': 'EDSR', 'weights': 'experiments/…/net_g_latest.pth',
     'weights_hash': '5d41402abc4b2a76b9719d911017c592',
     'protocol': 'PSNR/SSIM on Y (ITU-R BT.601), border of 4 px cropped, SR rounded to 8 bits',
     'datasets': {'Set5': {'images': {'baby': {'psnr': 33.91, 'ssim': 0.8966}, …}, 'mean': {'psnr': …, 'ssim': …}}},
     'metrics': {'psnr': {'higher_is_better': True, 'decimals': 2, 'unit': 'dB'}, …},
     'measured': {'rounded': True, 'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 4, …}, …}},
     'versions': {'udl_basicsr': '0.1.0', 'torch': '2.4.0'}}

`metrics` says of each metric which way is up (None: neither, or nobody knows) and how it is printed. Scores from before
it was kept lack it: there the usual names alone are known (:func:`udl_basicsr.utils.metric_facts.facts_by_name`).
`measured` says how each metric was measured, and `protocol` says the same in words; of scores without `measured` the
words are all that is known.

A value that is infinite or NaN is null, a dash in tables, as is the mean of its data set. No such file is read back.
"""
from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, Self

from .errors import MISUSED, UdlError
from .files import write_text
from .json_files import JsonError, read_json
from .metric_facts import MetricFacts, facts_by_name, read_facts
from .tables import markdown_table, text_table

FIELDS = {'name': str, 'scale': int, 'network': str, 'weights': str, 'protocol': str, 'datasets': dict,
          'versions': dict}
CSV_FIELDS = ('dataset', 'image')  # of scores.csv, before the metrics
HISTORY_FIELDS = ('iter', 'dataset', 'initial_weights', 'iters_per_epoch', 'seconds')
"""What the lines of a run's history hold beside losses and metrics, which therefore cannot be called like this."""

_CROPPED_IN_PAPERS = ('calculate_psnr', 'calculate_ssim')  # on the other metrics papers do not agree


class ScoresError(UdlError, ValueError):
    """Scores that do not follow the schema; the message says where and what was expected."""
    status = MISUSED


@dataclass(frozen=True)
class SetScores:
    """The scores of one data set."""
    images: dict[str, dict[str, float | None]]
    """Image → metric → value; None where it is no finite number."""
    mean: dict[str, float | None]
    """Metric → mean over the images."""

    @classmethod
    def of(cls, images: dict[str, dict[str, float | None]]) -> SetScores:
        """Those of these images, with their mean."""
        return cls(images, mean_scores(images))


@dataclass(frozen=True)
class Measured:
    """How the metrics of scores were measured."""
    rounded: bool
    """Whether SR images were rounded to 8 bits first."""
    metrics: dict[str, dict[str, Any]]
    """Metric → its block of ``val.metrics``."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of one test run; the head of this module shows them as a JSON file has them."""
    name: str
    scale: int
    network: str
    weights: str
    weights_hash: str = ''
    """:func:`udl_basicsr.data.uncertainty_maps.fingerprint` of the tested network; empty where it was not kept."""
    protocol: str
    """How the metrics were measured, in words."""
    measured: Measured | None = None
    """None: scores from before it was kept."""
    datasets: dict[str, SetScores]
    metrics: dict[str, MetricFacts] = field(default_factory=dict)
    """Those that say something of themselves."""
    versions: dict[str, str]

    LEFT_OUT: ClassVar[tuple[str, ...]] = ('measured', 'weights_hash')
    """Fields that a file does not have where they are as they are by default."""

    @classmethod
    def from_json(cls, content: Any, source: str = 'scores', finite: bool = True) -> Self:
        """Checks what a JSON file has.

        Args:
            content: What should be the scores of a run; keys that are no fields are passed over.
            source: Named at the head of the error.
            finite: Refuse values that are null, infinite or NaN; else they become None.

        Raises:
            ScoresError: Says what is missing or wrong, and where.
        """
        cls._check(content, source, finite)
        given = {one.name: content[one.name] for one in fields(cls) if one.name in content}
        return cls(**given | cls._parts(content))

    @classmethod
    def _parts(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that are more than a JSON file has."""
        parts: dict[str, Any] = {'datasets': {
            name: SetScores({image: _floats(values) for image, values in dataset['images'].items()},
                            _floats(dataset['mean']))
            for name, dataset in content['datasets'].items()}}
        if 'metrics' in content:
            parts['metrics'] = {metric: read_facts(values) for metric, values in content['metrics'].items()}
        if 'measured' in content:
            parts['measured'] = Measured(content['measured']['rounded'], content['measured']['metrics'])
        return parts

    @classmethod
    def _check(cls, content: Any, source: str, finite: bool) -> None:
        """Raises ScoresError where a JSON file does not follow the schema."""
        _check_scores(content, source, finite)

    def to_json(self) -> dict[str, Any]:
        """What a JSON file has, in the order of the fields."""
        content = asdict(self)
        for one in fields(self):
            if one.name in self.LEFT_OUT and content[one.name] == one.default:
                del content[one.name]
        return content


# ---------------------------------------------------------------- metrics

def metric_facts(runs: Iterable[Scores], metric: str) -> MetricFacts:
    """What scores or records say of a metric; where none of them says anything, what its name alone does.

    Raises:
        ScoresError: By one of them higher values are better, and by another lower ones.
    """
    found: MetricFacts | None = None
    source = ''
    for run in runs:
        facts = run.metrics.get(metric)
        if facts is None:
            continue
        if found is None or found.higher_is_better is None:
            found, source = facts, run.name
        elif facts.higher_is_better not in (None, found.higher_is_better):
            raise ScoresError(f'{metric}: {found.better} values are better by {source}, and {facts.better} ones by '
                              f'{run.name}. They are no scores of one metric: call one of them otherwise')
    return facts_by_name(metric) if found is None else found


def _is_finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def mean_scores(images: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    """The mean of each metric over the images of a data set; None where one of them is not finite.

    Example:
        >>> mean_scores({'a': {'psnr': 30.0}, 'b': {'psnr': 33.0}})
        {'psnr': 31.5}
    """
    columns = {metric: [image[metric] for image in images.values()] for metric in next(iter(images.values()), {})}
    return {metric: math.fsum(finite) / len(column)
            if len(finite := [value for value in column if value is not None and math.isfinite(value)]) == len(column)
            else None for metric, column in columns.items()}


def unmeasured(scores: Scores) -> list[str]:
    """Which values are infinite or NaN, one line for each data set and metric; empty where all are numbers."""
    return [f'{name}: {metric} is {", ".join(f"{value} for {image}" for image, value in odd[:5])}'
            + (f' and {len(odd) - 5} more images' if len(odd) > 5 else '')
            for name, dataset in scores.datasets.items() for metric in dataset.mean
            if (odd := [(image, values[metric]) for image, values in dataset.images.items()
                        if not _is_finite(values[metric])])]


def protocol_sentence(metrics_opt: Mapping[str, Mapping[str, Any]], scale: int, rounded: bool = True) -> str:
    """One sentence that says how the metrics of a YAML's `val.metrics` are measured.

    Args:
        metrics_opt: The block `val.metrics`, e.g. `{'psnr': {'type': 'calculate_psnr', 'crop_border': 4}}`.
        scale: The upscaling factor; a border that differs from it is pointed out, since papers crop the scale.
        rounded: Whether the SR image was rounded to 8 bits first.

    Returns:
        str: The sentence, metrics measured alike named together.

    Example:
        >>> protocol_sentence({'psnr': {'type': 'calculate_psnr', 'crop_border': 4, 'test_y_channel': True}}, 4)
        'PSNR on Y (ITU-R BT.601), border of 4 px cropped, SR rounded to 8 bits'
    """
    alike: dict[str, list[str]] = {}
    for name, opt in metrics_opt.items():
        how = 'on Y (ITU-R BT.601)' if opt.get('test_y_channel') or opt.get('convert_to') == 'y' else 'on RGB'
        border = opt.get('crop_border', 0)
        told = {'type', 'better', 'input_order', 'crop_border', 'test_y_channel', 'convert_to'}
        if opt.get('type') == 'calculate_lpips':  # a value means nothing without its network
            how = f'(net {opt.get("net", "alex")}, version {opt.get("version", "0.1")}) on RGB in [−1, 1]'
            told |= {'net', 'version'}
        how += f', border of {border} px cropped' if border else ', no border cropped'
        if border != scale and str(opt.get('type')).startswith(_CROPPED_IN_PAPERS):
            how += f' (papers crop {scale})'
        how += ''.join(f', {key} {value}' for key, value in opt.items() if key not in told)
        alike.setdefault(how, []).append(name.upper())
    if not alike:
        return 'No metrics were asked for'
    return '; '.join(f'{"/".join(names)} {how}' for how, names in alike.items()) + (
        ', SR rounded to 8 bits' if rounded else ', SR not rounded to 8 bits')


def protocol_of(run: Scores, metrics: Iterable[str]) -> str:
    """How some metrics of a run were measured, in a sentence; of scores without `measured` the sentence on them all."""
    measured = run.measured
    if measured is None:
        return run.protocol
    return protocol_sentence({m: measured.metrics[m] for m in metrics if m in measured.metrics}, run.scale,
                             measured.rounded)


def protocol_notes(runs: Sequence[Scores], metrics: Sequence[str]) -> list[str]:
    """How runs of one scale were measured, and which of the metrics cannot be compared: a sentence each.

    Metrics are compared one by one: runs that differ in a further metric alone are of one protocol.
    """
    whole: dict[str, list[str]] = {}
    for run in runs:
        whole.setdefault(protocol_of(run, metrics), []).append(run.name)
    if len({run.protocol for run in runs}) == 1 or len(whole) == 1:
        return [f'{text}.' for text in whole][:1]
    notes = [f'{", ".join(names[:3])}{f" and {len(names) - 3} more" if len(names) > 3 else ""}: {text}.'
             for text, names in whole.items()]
    for metric in metrics:
        having = [run for run in runs if any(metric in d.mean for d in run.datasets.values())]
        if len({protocol_of(run, [metric]) for run in having}) > 1:
            notes.append(f'{metric.upper()} was measured by different protocols and cannot be compared.')
    return notes


# ---------------------------------------------------------------- schema

def _floats(values: Mapping[str, Any]) -> dict[str, float | None]:
    return {metric: float(value) if _is_finite(value) else None for metric, value in values.items()}


def _check_scores(scores: Any, source: str, finite: bool) -> None:
    def need(condition: bool, what: str) -> None:
        if not condition:
            raise ScoresError(f'{source}: {what}. udl test writes such scores; run it again.')

    def need_numbers(values: Any, where: str) -> None:
        need(isinstance(values, Mapping), f'{where} should map metrics to numbers, got {values!r}')
        for metric, value in values.items():
            need(value is None or (isinstance(value, Real) and not isinstance(value, bool)),
                 f'{where}.{metric} should be a number, got {value!r}')
            if finite and not _is_finite(value):
                value = 'null' if value is None else value
                raise ScoresError(f'{source}: {where}.{metric} is {value}: it could not be measured, or is infinite as '
                                  'the PSNR of two equal images is. Leave the metric or the image out, or take other '
                                  'weights, and test again.')

    need(isinstance(scores, Mapping), f'expected an object with {", ".join(FIELDS)}, got {type(scores).__name__}')
    for name, kind in FIELDS.items():
        need(name in scores, f'`{name}` is missing')
        need(isinstance(scores[name], kind) and not isinstance(scores[name], bool),
             f'`{name}` should be of type {kind.__name__}, got {scores[name]!r}')
    need(scores['scale'] > 0, f'`scale` should be positive, got {scores["scale"]}')

    for name, dataset in scores['datasets'].items():
        where = f'datasets.{name}'
        need(isinstance(dataset, Mapping) and isinstance(dataset.get('images'), Mapping) and 'mean' in dataset,
             f'{where} should hold `images` and `mean`')
        need_numbers(dataset['mean'], f'{where}.mean')
        for image, values in dataset['images'].items():
            need_numbers(values, f'{where}.images.{image}')
        for image, values in dataset['images'].items():
            need(values.keys() == dataset['mean'].keys(),
                 f'{where}.images.{image} has the metrics {sorted(values)}, '
                 f'but the mean has {sorted(dataset["mean"])}')
    stated = scores.get('metrics', {})
    need(isinstance(stated, Mapping), f'`metrics` should be of type dict, got {stated!r}')
    for metric, values in stated.items():
        try:
            read_facts(values)
        except ValueError as error:
            need(False, f'metrics.{metric}: {error}')
    if 'measured' in scores:
        ways = scores['measured']
        need(isinstance(ways, Mapping) and isinstance(ways.get('rounded'), bool)
             and isinstance(ways.get('metrics'), Mapping)
             and all(isinstance(way, Mapping) for way in ways['metrics'].values()),
             f'`measured` should hold `rounded` and, for each of `metrics`, its options, got {ways!r:.80}')


# ---------------------------------------------------------------- tables

def _with_mean(dataset: SetScores) -> list[tuple[str, Mapping]]:
    """The rows of a data set, the mean last, also where an image is called so."""
    return [*dataset.images.items(), ('mean', dataset.mean)]


def _dataset_rows(scores: Scores, dataset: SetScores) -> tuple[list[str], list[list[str]]]:
    facts = {metric: metric_facts([scores], metric) for metric in dataset.mean}
    rows = [[image, *(facts[m].text(values[m]) for m in facts)] for image, values in _with_mean(dataset)]
    return ['image', *(facts[m].title(m) for m in facts)], rows


def _summary_rows(scores: Scores) -> tuple[list[str], list[list[str]]]:
    facts = {metric: metric_facts([scores], metric) for metric in _all_metrics(scores)}
    rows = [[name, str(len(dataset.images)), *(facts[m].text(dataset.mean.get(m)) for m in facts)]
            for name, dataset in scores.datasets.items()]
    return ['data set', 'images', *(facts[m].title(m) for m in facts)], rows


def _all_metrics(scores: Scores) -> list[str]:
    """Every metric of every data set, each once, in order."""
    return list(dict.fromkeys(metric for dataset in scores.datasets.values() for metric in dataset.mean))


def format_scores(scores: Scores) -> str:
    """What a test prints at its end: a table per data set, how it was measured, and the means together."""
    parts = [f'{name}\n{text_table(*_dataset_rows(scores, dataset))}' for name, dataset in scores.datasets.items()]
    parts.append(f'{scores.name}: {scores.network} ×{scores.scale}, {scores.weights}\n'
                 f'{text_table(*_summary_rows(scores))}\n{scores.protocol}.')
    return '\n\n'.join(parts)


def _markdown(scores: Scores) -> str:
    parts = [f'# {scores.name}', f'{scores.network} ×{scores.scale}, `{scores.weights}`. '
                                    f'{scores.protocol}.', markdown_table(*_summary_rows(scores))]
    parts += [f'## {name}\n\n{markdown_table(*_dataset_rows(scores, ds))}' for name, ds in scores.datasets.items()]
    parts.append(', '.join(f'{package} {version}' for package, version in scores.versions.items()))
    return '\n\n'.join(parts).rstrip() + '\n'


def _csv(scores: Scores) -> str:
    metrics = _all_metrics(scores)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow([*CSV_FIELDS, *metrics])
    for name, dataset in scores.datasets.items():
        for image, values in _with_mean(dataset):
            # repr gives back the very same float: the CSV loses nothing against the JSON file.
            writer.writerow([name, image, *('' if values.get(m) is None else repr(values[m]) for m in metrics)])
    return text.getvalue()


# ---------------------------------------------------------------- files

def write_scores(scores: Scores, folder: str | Path) -> list[Path]:
    """Writes scores.json, scores.csv (a row per image, and `mean` as the last row of a data set) and scores.md.

    Args:
        scores: Of one test run; values that are not finite are written as null.
        folder: Made when missing, usually `results/<name>`.

    Returns:
        list[Path]: The three files.

    Raises:
        ScoresError: A field is of the wrong type; nothing is written.
    """
    scores, folder = Scores.from_json(scores.to_json(), finite=False), Path(folder)
    text = json.dumps(scores.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    return [write_text(folder / 'scores.json', text + '\n'),
            write_text(folder / 'scores.csv', _csv(scores)),
            write_text(folder / 'scores.md', _markdown(scores))]


def read_scores(path: str | Path) -> Scores:
    """Reads the scores of a run.

    Args:
        path: A scores.json, or the results folder that holds it.

    Raises:
        FileNotFoundError: There is no such file; the message says how to make it.
        ScoresError: The file is no JSON, does not follow the schema, or has values that are not finite numbers.
    """
    path = Path(path)
    file = path / 'scores.json' if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f'No scores at {file}. Test the network first: '
                                f'udl test -opt <test.yml> writes results/<name>/scores.json.')
    try:
        content = read_json(file)
    except JsonError as error:
        raise ScoresError(f'{file} is no JSON file ({error}). Run the test again.') from error
    return Scores.from_json(content, str(file))
