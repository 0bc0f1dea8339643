"""What the console shows of a run's options: those that differ from the defaults. The log of the run has all."""
from typing import Any

from udl_basicsr.utils.yaml_files import dump_compact

from . import schema
from .keys import lookup
from .parse import Parsed
from .signatures import parameters


def describe_options(parsed: Parsed) -> str:
    """The options of the last stage that differ from the defaults, and what is different in each stage before it."""
    last = _beyond_defaults(parsed.flat, schema.OPTIONS)
    lines = [f'Options of {parsed.file} beyond the defaults:', _indented(last)]
    before = parsed.stage1
    while before is not None:
        lines += [f'Other in the stage before, {before.file}:',
                  _indented(_other_than(_beyond_defaults(before.flat, schema.OPTIONS), last))]
        before = before.stage1
    return '\n'.join(lines)


def _indented(options: dict) -> str:
    return '\n'.join(f'  {line}' for line in dump_compact(options).splitlines())


def _beyond_defaults(block: dict, table: dict[str, schema.Key]) -> dict:
    shown = {}
    for key, value in block.items():
        entry = schema.find(table, key)
        kind = entry.kind if entry else None
        if isinstance(value, dict):
            if isinstance(kind, schema.Built):
                value = _beyond_signature(value, kind.what)
            elif isinstance(kind, dict):
                value = _beyond_defaults(value, kind)
            if not value:
                continue
        elif value is None or (entry and _same(entry.default, value) and key != 'stage'):  # which everybody looks for
            continue
        shown[key] = value
    return shown


def _beyond_signature(block: dict, what: str) -> dict:
    target = lookup(what, block.get('type'))
    known = parameters(target)[0] if target else {}
    return {key: value for key, value in block.items()
            if not (key in known and _same(known[key].default, value)) and not (what == 'metric' and key == 'better')}


def _same(default: Any, value: Any) -> bool:
    plain = list(default) if isinstance(default, tuple) else default
    return type(plain) is type(value) and plain == value


def _other_than(block: dict, last: dict) -> dict:
    """What ``block`` has otherwise; null stands for what it has not."""
    other = {}
    for key in dict.fromkeys([*block, *last]):
        ours, theirs = block.get(key), last.get(key)
        if isinstance(ours, dict) and isinstance(theirs, dict) and ours.get('type') == theirs.get('type'):
            if inner := _other_than(ours, theirs):
                other[key] = inner
        elif ours != theirs and key not in ('stage1', 'path', 'tested_on'):  # these say what comes before and after
            other[key] = ours
    return other
