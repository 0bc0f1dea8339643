"""The keys of an option file as a JSON Schema, from which editors complete and explain them.

It knows less than ``udl`` checks: a file that builds on others (``_base_``) need not be whole, and models of BasicSR
and of one's own read further keys.
"""
from __future__ import annotations

import inspect
import json
import re
from typing import Any

from . import schema
from .keys import SUPPLIED, known
from .schema import Built, Key
from .signatures import parameters

_BUILT = ('network', 'loss', 'metric', 'optimizer', 'scheduler')
_NOT_HERE = {'$ref': '#/definitions/null or ${key}'}


def json_schema() -> dict[str, Any]:
    """The schema, draft 7, with the names of everything that is registered."""
    whole = _block(schema.OPTIONS)
    whole['properties'] |= {
        '_base_': {'description': 'option files to start from, relative to this file; later ones win',
                   'anyOf': [{'type': 'string'}, {'type': 'array', 'items': {'type': 'string'}}]},
        'model_type': _named('model', schema.OPTIONS['model_type'])}
    sets = whole['properties']['datasets']['anyOf'][0]
    for one in (*sets['properties'].values(), *sets['patternProperties'].values()):
        one['anyOf'][0]['properties']['type'] = _named('data set', schema.DATASET['type'])
    return {'$schema': 'http://json-schema.org/draft-07/schema#', 'title': 'An option file of udl_basicsr', **whole,
            'definitions': {_NOT_HERE['$ref'].rpartition('/')[2]: {'anyOf': [
                {'type': 'null'}, {'type': 'string', 'pattern': r'\$\{\w+\}'}]},
                **{what: _built(what) for what in _BUILT}}}


def _block(table: dict[str, Key]) -> dict[str, Any]:
    block: dict[str, Any] = {'type': 'object', 'properties': {}, 'patternProperties': {}}
    for name, entry in table.items():
        if '*' in name:
            block['patternProperties'][f'^{re.escape(name)}$'.replace(r'\*', '.*')] = _value(entry)
        else:
            block['properties'][name] = _value(entry)
    return block


def _value(entry: Key) -> dict[str, Any]:
    if isinstance(entry.kind, dict):
        what = _block(entry.kind)
    else:
        what = {'$ref': f'#/definitions/{entry.kind.what}'} if isinstance(entry.kind, Built) else entry.kind.json
    default = {} if entry.default is None else {'default': entry.default}
    return {'description': entry.doc, 'anyOf': [what, _NOT_HERE], **default}


def _named(what: str, entry: Key) -> dict[str, Any]:
    return {'description': entry.doc, 'anyOf': [{'enum': sorted(known(what))}, {'type': 'string'}]}


def _built(what: str) -> dict[str, Any]:
    """A block ``{type: name, ...}``: the names, and for each of them its arguments with their defaults."""
    classes = known(what)
    arguments = {name: {key: _default(parameter) for key, parameter in parameters(classes[name])[0].items()
                        if key not in SUPPLIED.get(what, ())} for name in sorted(classes)}
    return {'type': 'object', 'properties': {'type': _named(what, Key(schema.TEXT, f'{what}, by its registered name'))},
            'allOf': [{'if': {'properties': {'type': {'const': name}}, 'required': ['type']},
                       'then': {'properties': its}} for name, its in arguments.items() if its]}


def _default(parameter: inspect.Parameter) -> dict[str, Any]:
    try:
        return {} if parameter.default in (parameter.empty, None) else \
            {'default': json.loads(json.dumps(parameter.default, allow_nan=False))}
    except (TypeError, ValueError):  # an object that YAML cannot say
        return {}
