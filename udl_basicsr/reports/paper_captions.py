"""What stands below a table of a paper: what ours is, and what the printed is."""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from udl_basicsr.experiments.printed import HR_SIZE
from udl_basicsr.experiments.record_files import Record
from udl_basicsr.utils.scores import protocol_notes

from .paper_rows import RecordGroup, is_one_of


def about_ours(groups: Sequence[RecordGroup], metrics: Sequence[str]) -> list[str]:
    """A sentence on every network of ours: comparison, size, budget, seeds; then how all were measured."""
    if not groups:
        return ['Ours: no run with figures for this table yet.']
    texts = []
    for group in groups:
        sizes = sorted({f'{record.parameters:,}'.replace(',', ' ') for record in group.records})
        iterations = _usual(group, lambda record: str(sum(stage.iterations for stage in record.stages)))
        texts.append(f'Ours: {group.network}, {" and ".join(sizes)} parameters, '
                     f'comparison {group.comparison}; iterations {iterations}; '
                     f'seeds {_usual(group, lambda record: str(record.seed))}. '
                     f'Means over the seeds ± their standard deviation.')
    records = [record for group in groups for record in group.records]
    for scale in sorted({record.scale for record in records}):
        notes = protocol_notes([record for record in records if record.scale == scale], metrics)
        texts.append(f'Ours at ×{scale}: {" ".join(notes)}')
    return texts


def about_costs(groups: Sequence[RecordGroup], layout: Mapping) -> list[str]:
    """Where run times of ours were measured; those of another size than the paper's are no figures of its table."""
    if 'runtime' not in layout.get('costs', {}):
        return []
    head, (height, width) = layout['costs']['runtime'], layout.get('size', HR_SIZE)
    texts = {}
    for record in (record for group in groups for record in group.records):
        if record.run_time is None:
            continue
        rows, columns = record.run_time.size
        texts[f'Ours, {head}: measured on {record.run_time.device}' + (
            '.' if 'runtime' in record.costs else
            f', {columns}×{rows} pixels alone, and not shown, since the paper has {width}×{height}.')] = None
    return [*texts]


def _usual(group: RecordGroup, value: Callable[[Record], str]) -> str:
    """What most methods of a group have, and in brackets those that have something else."""
    values: dict[str, set[str]] = {}
    for label, name in group.methods.items():
        values[label] = {value(record) for record in group.records if record.method == name}
    texts = {label: ', '.join(sorted(found, key=_natural)) for label, found in values.items()}
    common = Counter(texts.values()).most_common(1)[0][0]
    others = [f'{label}: {text}' for label, text in texts.items() if text != common]
    return common + (f' ({"; ".join(others)})' if others else '')


def _natural(text: str) -> list:
    return [(int(part), '') if part.isdigit() else (0, part) for part in re.split(r'(\d+)', text) if part]


def about_printed(name: str, layout: Mapping, rows: Sequence[Mapping], networks: Mapping, groups: Sequence[RecordGroup],
                   source: Mapping) -> str:
    if not rows:
        return f'Printed: {source["title"]}, {layout["number"]}, whose figures are not known here.'
    strange = [group.network for group in groups
               if not any(is_one_of(group, network, names) for network, names in networks.items())]
    return (f'Printed: {source["title"]}, {layout["number"]}, {source["url"]}; read from {layout["read_from"]}. '
            + (f'{" and ".join(dict.fromkeys(strange))} is no network of the paper. ' if strange else '')
            + 'Where data or budget are not those of the paper, only the differences between the losses compare.')
