"""Records as files: where the record of a run lies, what it must hold, and which of them are pairs.

A record is one JSON file for each run, ``docs/results/<comparison>/<method>_x<scale>_seed<seed>.json``, with the
network's id before the method where there are several networks: the scores of its test
(:mod:`udl_basicsr.utils.scores`), and what one must know to compare them with those of another run.
"""
from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from udl_basicsr.utils.files import write_text
from udl_basicsr.utils.json_files import JsonError, read_json
from udl_basicsr.utils.scores import ScoresError, check_scores

FIELDS = {'comparison': str, 'method': str, 'label': str, 'reference': str, 'seed': int, 'degradation': str,
          'network_title': str, 'parameters': int, 'stages': list, 'options': list, 'initial_weights': str,
          'data_order': str, 'seconds': float, 'machine': str, 'date': str, 'curve': dict}


def record_file(folder: str | Path, method: str, scale: int, seed: int, network: str | None = None) -> Path:
    """Where the record of a run lies; ``network``: its id, in comparisons of several."""
    return Path(folder) / f'{network + "_" if network else ""}{method}_x{scale}_seed{seed}.json'


def check_record(record: Any, source: str = 'record') -> dict:
    """Checks a record against the schema.

    Raises:
        ScoresError: Says which field is missing or wrong.
    """
    record = check_scores(record, source)
    for field, kind in FIELDS.items():
        value = record.get(field)
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or isinstance(value, bool):
            raise ScoresError(f'{source}: `{field}` should be of type {kind.__name__}, got {value!r}. '
                              'udl compare writes such records')
    return record


def write_record(record: Mapping, folder: str | Path) -> Path:
    """Writes a record as a whole or not at all.

    Raises:
        ScoresError: It does not follow the schema; nothing is written.
    """
    record = check_record(record)
    file = record_file(folder, record['method'], record['scale'], record['seed'], record.get('network_id'))
    return write_text(file, json.dumps(record, ensure_ascii=False, separators=(',', ':')) + '\n')


def read_records(folder: str | Path) -> list[dict]:
    """The records of a comparison, by method, scale and seed.

    Args:
        folder: ``docs/results/<comparison>``.

    Raises:
        FileNotFoundError: There are none; the message says how to make them.
        ScoresError: A file that is no JSON or no record, or two runs of one seed that are no pair: they began with
            other weights, saw other crops, or trained another network.
    """
    files = sorted(Path(folder).glob('*_x*_seed*.json'))
    if not files:
        raise FileNotFoundError(f'{folder}: no records <method>_x<scale>_seed<seed>.json. Make them: '
                                'udl compare FILE.yml')
    records = []
    for file in files:
        try:
            record = read_json(file)
        except JsonError as error:
            raise ScoresError(f'{file} is no JSON file ({error}). Remove it and run the comparison again') from error
        records.append(check_record(record, str(file)))
    check_pairs(records)
    return sorted(records, key=lambda r: (r['scale'], r['method'], r['seed']))


def check_pairs(records: Iterable[Mapping]) -> None:
    """Finds runs that cannot be compared pair by pair.

    Each network of a comparison is compared with itself. Where each method has a length of its own (``lengths: own``),
    runs see different numbers of crops, and their order is not compared.

    Raises:
        ScoresError: Names both runs and what differs.
    """
    first: dict[tuple, Mapping] = {}
    for record in records:
        other = first.setdefault((record.get('network_id'), record['scale'], record['seed']), record)
        own = 'own' in (record.get('lengths'), other.get('lengths'))
        for field in ('network_title', ) if own else ('network_title', 'initial_weights', 'data_order'):
            if record[field] != other[field]:
                raise ScoresError(f'{record["name"]} and {other["name"]} are no pair: `{field}` is {record[field]} in '
                                  f'one and {other[field]} in the other. Keep them in different comparisons')
