"""The JSON Schema of option files says what the program checks, and nothing against any file that it takes."""
import json
import re

import pytest

from udl_basicsr.cli.options import main
from udl_basicsr.options import schema
from udl_basicsr.options.json_schema import json_schema
from udl_basicsr.options.schema import Kind
from udl_basicsr.utils import option_files
from udl_basicsr.utils.yaml_files import load_yaml

TYPES = {'object': dict, 'array': list, 'string': str, 'boolean': bool, 'null': type(None)}


def valid(value, rule, root):
    """Whether a value follows a rule: the keywords that are used here, as draft 7 defines them."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)

    def holds(key, says):
        if key == '$ref':
            return valid(value, root['definitions'][says.rpartition('/')[2]], root)
        if key == 'type':
            return number and (says == 'number' or value == int(value)) if says in ('number', 'integer') else \
                isinstance(value, TYPES[says])
        if key in ('anyOf', 'allOf'):
            return (any if key == 'anyOf' else all)(valid(value, one, root) for one in says)
        if key == 'if':
            return not valid(value, says, root) or valid(value, rule['then'], root)
        if key in ('enum', 'const'):
            return value in says if key == 'enum' else value == says
        if key in ('minLength', 'pattern'):
            return not isinstance(value, str) or \
                (len(value) >= says if key == 'minLength' else re.search(says, value) is not None)
        if key in ('minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum'):
            return not number or {'minimum': value >= says, 'maximum': value <= says, 'exclusiveMinimum': value > says,
                                  'exclusiveMaximum': value < says}[key]
        if key == 'items':
            return not isinstance(value, list) or all(valid(one, says, root) for one in value)
        if key == 'properties':
            return not isinstance(value, dict) or all(valid(value[k], says[k], root) for k in says.keys() & value)
        if key == 'patternProperties':
            return not isinstance(value, dict) or all(valid(one, its, root) for pattern, its in says.items()
                                                      for k, one in value.items() if re.search(pattern, k))
        if key == 'required':
            return not isinstance(value, dict) or set(says) <= value.keys()
        assert key in ('$schema', 'title', 'description', 'definitions', 'default', 'then'), key
        return True

    return all(holds(key, says) for key, says in rule.items())


@pytest.fixture(scope='module')
def root():
    return json_schema()


def kinds(table):
    for entry in table.values():
        if isinstance(entry.kind, dict):
            yield from kinds(entry.kind)
        elif isinstance(entry.kind, Kind):
            yield entry.kind


VALUES = [None, True, False, -2, -1, 0, 1, 2, 0.5, 1.0, 1.5, 5e3, 10**9, 10**9 + 1, 2**32 - 1, 2**32, '', 'text', 'a/b',
          '..', '{}x4', 'disk', 'esu', 'auto', 'bf16', 'cuda', 'gloo', [], [1, 2.5], ['a'], [1, 'a'], {}, {'a': 1}]


@pytest.mark.parametrize('kind', {kind.label: kind for kind in kinds(schema.OPTIONS)}.values(), ids=lambda k: k.label)
def test_a_value_is_taken_by_both_or_by_neither(kind):
    only_here = [] if kind.json else VALUES  # text with {}, and anything
    only_here = ['a/b', '..'] if kind is schema.FOLDER_NAME else only_here
    for value in VALUES:
        if value not in only_here and not (isinstance(value, float) and value.is_integer()):  # JSON's 1.0 is 1
            assert valid(value, kind.json, {}) == bool(kind.accepts(value)), value
        assert valid(value, kind.json, {}) or not kind.accepts(value), value


def test_every_file_of_ours_follows_it(root):
    names = [name for name in option_files.names() if re.match(r'(\w+/)?(train|test)', name)]
    assert len(names) > 30
    for name in names:
        assert valid(load_yaml(option_files.folder() / f'{name}.yml', references=False), root, root), name


@pytest.mark.parametrize('change', [
    {'stage': 'edl'}, {'scale': 0}, {'scale': 'four'}, {'datasets': {'val_1': {'io_backend': {'type': 'disc'}}}},
    {'train': {'amp': 'fp8'}}, {'train': {'udl_opt': []}}, {'val': {'metrics': {'psnr': {'type': 4}}}},
    {'_base_': 4}, {'path': {'strict_load_g': 'yes'}}])
def test_mistakes_do_not(root, change):
    assert not valid(change, root, root)
    assert valid({'scale': '${scale}', 'val': None, 'train': {'mine_opt': {'type': 'MyLoss'}}, 'other': 1}, root, root)


def test_names_and_arguments_are_offered(root, capsys):
    loss = root['definitions']['loss']
    assert 'UDLLoss' in loss['properties']['type']['anyOf'][0]['enum']
    arguments = {rule['if']['properties']['type']['const']: rule['then']['properties'] for rule in loss['allOf']}
    assert arguments['UDLLoss']['scaling'] == {'default': 'linear'}
    assert main(['schema']) == 0
    assert json.loads(capsys.readouterr().out) == root
