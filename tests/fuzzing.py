"""Mutations of options and of their text, and what bounds the time and the memory of a test."""
import contextlib
import os
import resource
import signal
from copy import deepcopy
from os import path as osp
from pathlib import Path

import pytest
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY
from hypothesis import strategies as st

from udl_basicsr.options import schema

LONG = int(os.environ.get('UDL_FUZZ', 0))
# Values that some reader of some key stumbles over.
ODD = [
    None, True, False, 0, -1, 1, 2, 3, 7, 64, 2**31, 2**63 - 1, 10**30, -10**30, 10**400, 0.5, -0.5, 1.0, 1e-300, 1e300,
    float('inf'), float('-inf'), float('nan'), '', ' ', 'x', '0', '1e-4', 'None', '~', '..', '../x', '/', 'a/b', 'a\\b',
    '{}', '{}{}', '{0.__class__}', '{x}', '${name}', '${scale}', '${nope}', '${', 'é', '中文', '\u202e', '\ud7ff',
    'x' * 300, 'a\nb', 'a\0b', '\x1b[2J', [], {}, [[]], [None], [1], [1, 'a'], [-1], [0, 0, 0], [1, 2], {'type': None},
    {'type': [1]}, {'a': {'b': 1}}, {'type': 'L1Loss'}, 'udl', 'plain', 'mean', 'none', 'NUL', 'params', 'y']
NAMES = sorted({name for registry in (ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY)
                for name, _ in registry}
               | {'SGD', 'AdamW', 'LBFGS', 'Rprop', 'CosineAnnealingRestartLR', 'MultiStepLR'})
KEYS = sorted({key for table in (schema.OPTIONS, schema.TRAIN, schema.VAL, schema.LOGGER, schema.PATH, schema.DATASET,
                                 schema.LOADER) for key in table if '*' not in key}
              | {'_base_', 'type', 'lr', 'color', 'pixel_opt', 'gan_opt', 'val_2', 'test_1', '<<', 'is_train', 'phase'})
LINES = [
    '\ttab: 1', 'a: !!python/object/apply:os.system ["touch owned"]', 'a: !!python/name:os.system', 'a: &x [*x]',
    'a: *x', '<<: *x', '<<: {scale: 3}', '<<: 3', '? [a]\n: b', '- 1', '---', '...', '%YAML 9.9', '{', '}', ']', '"',
    "'", 'a: |', ':', '1: 2', '~: 1', 'a: !!int x', 'a: !!bool x', "a: !!int ''", 'a: !!binary aGk=', 'a: !!set {x}',
    'name: a: b', 'scale: 0x', 'a: ' + '[' * 2000, 'a: ' + '{a: ' * 40 + '1' + '}' * 40, '\ufeff', 'a: "\\ud800"',
    'x: 1_0_0', 'a: 12:30:45', 'a: =']


# ------------------------------------------------------------------------------------------------------------ mutations

def _nodes(value, at: tuple = ()) -> list[tuple]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([at] if at else []), *(path for key, child in children for path in _nodes(child, (*at, key)))]


def _unshared(value):
    """A copy in which no block stands in two places, so that none can be put into itself."""
    if isinstance(value, dict):
        return {key: _unshared(child) for key, child in value.items()}
    return [_unshared(child) for child in value] if isinstance(value, list) else deepcopy(value)


def _parent(value, path: tuple):
    for key in path[:-1]:
        value = value[key]
    return value


anything = st.one_of(
    st.sampled_from(ODD), st.sampled_from(NAMES), st.integers(), st.floats(allow_subnormal=False), st.text(max_size=12),
    st.lists(st.one_of(st.integers(-3, 9), st.floats(allow_subnormal=False), st.text(max_size=3)), max_size=4))


@st.composite
def values(draw, old):
    """A value for a key: any at all, or one that is not far from what stands there."""
    how = draw(st.sampled_from(['any', 'any', 'near', 'near', 'near', 'near', 'near', 'wrap', 'unwrap']))
    if how == 'near' and isinstance(old, (int, float)) and not isinstance(old, bool):
        return draw(st.sampled_from([-old, old + 1, old - 1, old * 2, old * 1000, old / 7, str(old), float(old), 0,
                                     old + 0.5, 10**30]) | st.integers(0, 300) | st.floats(0, 2, allow_subnormal=False))
    if how == 'near' and isinstance(old, list):
        return draw(st.sampled_from([old[:-1], old + old[:1], old[::-1], old * 40, [old], [str(v) for v in old]]))
    if how == 'near' and isinstance(old, str):
        return draw(st.sampled_from([old + 'x', old[:-1], old.upper(), f' {old}', f'{old}/', [old], f'../{old}',
                                     f'{old}\n', old * 20]) | st.sampled_from(NAMES))
    if how == 'wrap':
        return draw(st.sampled_from([[old], {'type': old}, {'x': old}]))
    if how == 'unwrap' and isinstance(old, dict) and old:
        return draw(st.sampled_from(list(old.values())))
    return draw(anything)


@st.composite
def mutated(draw, flat: dict, keys: list[str] = KEYS) -> dict:
    """``flat`` with one thing changed; ``keys``: names that new keys get."""
    flat = _unshared(flat)
    nodes = _nodes(flat)
    numbers = [n for n in nodes if isinstance(_parent(flat, n)[n[-1]], (int, float))]
    types = [n for n in nodes if n[-1] == 'type']
    path = draw(st.sampled_from(draw(st.sampled_from([nodes, numbers or nodes, types or nodes]))))
    block, key = _parent(flat, path), path[-1]
    old = block[key]
    how = draw(st.sampled_from(['set', 'set', 'set', 'set', 'delete', 'rename', 'swap', 'insert', 'nest', 'move']))
    if how == 'set':
        block[key] = draw(values(old))
    elif how == 'delete':
        del block[key]
    elif how == 'rename' and isinstance(block, dict):
        new = draw(st.sampled_from([f'{key}s', str(key)[1:], str(key).upper(), f'{key} ', f'{key}.x', ''])
                   | st.sampled_from(keys) | st.text(max_size=8))
        block[new] = block.pop(key)
    elif how == 'swap':
        other = draw(st.sampled_from(_nodes(flat)))
        if other[:len(path)] != path and path[:len(other)] != other:
            there = _parent(flat, other)
            block[key], there[other[-1]] = there[other[-1]], old
    elif how == 'insert' and isinstance(old, dict):
        old[draw(st.sampled_from(keys))] = draw(values(1))
    elif how == 'insert' and isinstance(old, list):
        old.append(draw(anything))
    elif how == 'nest':
        block[key] = {draw(st.sampled_from(keys)): old}
    else:
        flat[draw(st.sampled_from(keys))] = deepcopy(old)
    return flat


@st.composite
def garbled(draw, text: bytes) -> bytes:
    """``text`` with one thing changed that the YAML parser sees."""
    lines = text.split(b'\n')
    number = draw(st.integers(0, len(lines) - 1))
    position = draw(st.integers(0, len(text)))
    how = draw(st.sampled_from(['line', 'line', 'drop', 'twice', 'indent', 'cut', 'bytes', 'sign', 'encode', 'anchor']))
    if how == 'line':
        lines.insert(number, draw(st.sampled_from(LINES)).encode())
    elif how == 'drop':
        del lines[number]
    elif how == 'twice':
        lines.insert(number, lines[number])
    elif how == 'indent':
        lines[number] = draw(st.sampled_from([b' ', b'\t', b'    '])) + lines[number]
    elif how == 'cut':
        return text[:position]
    elif how == 'bytes':
        return text[:position] + draw(st.binary(min_size=1, max_size=8)) + text[position:]
    elif how == 'sign':
        sign = draw(st.sampled_from(':{}[]&*!|>%@`"\'#-?,\t\r\0~=<')).encode()
        return text[:position] + sign + text[position:]
    elif how == 'encode':
        return draw(st.sampled_from([text.replace(b'\n', b'\r\n'), b'\xef\xbb\xbf' + text, text + b'\xff', text * 2,
                                     b'', text.decode('utf-8', 'replace').encode('utf-16')]))
    elif b': ' in lines[number]:
        key, value = lines[number].split(b': ', 1)
        tag = draw(st.sampled_from(['&x ', '*x #', '!!str ', '!!int ', '!!python/tuple ', '!x ', '!!float ', '!!bool ',
                                    '!!null ', '!!map ', '${']))
        lines[number] = key + b': ' + tag.encode() + value
    return b'\n'.join(lines)


# ------------------------------------------------------------------------------------------------------- what must hold

class TooLongError(BaseException):
    """No Exception, since the checks turn those of the libraries that they try into messages."""


@contextlib.contextmanager
def bounded(seconds: int):
    """Ends in TooLongError what takes more of the CPU, or waits ten times as long; others may use the machine too."""
    def stop(number, _):
        raise TooLongError(f'longer than {seconds} s, {signal.Signals(number).name}')
    before = [(number, signal.signal(number, stop)) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.alarm(10 * seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in before:
            signal.signal(number, handler)


def listing(root: Path) -> set[str]:
    return {osp.join(folder, name) for folder, folders, names in os.walk(root) for name in (*folders, *names)}


@pytest.fixture(scope='module', autouse=True)
def _memory():
    """What asks for more memory than any of this needs is an error, not the death of the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
