"""What a plan may say, what is wrong with one, and what it says, with names and types."""
from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from udl_basicsr.options import schema
from udl_basicsr.options.keys import Findings, KeyChecker
from udl_basicsr.options.schema import Key, Kind
from udl_basicsr.options.signatures import describe
from udl_basicsr.options.values import LONGEST_NAME, bad_name
from udl_basicsr.utils.text import did_you_mean

MOST_RUNS = 5000
_MOST_BASES = 20


def is_list(value: Any, accepts: Any) -> bool:
    return isinstance(value, list) and value != [] and all(map(accepts, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ''


_BLOCK = Kind('block of keys', lambda v: isinstance(v, dict))
_TEXTS = Kind('list of text', lambda v: is_list(v, _is_text))
_FILES = Kind(f'name of an option file, or a list of at most {_MOST_BASES}',
              lambda v: _is_text(v) or (is_list(v, _is_text) and len(v) <= _MOST_BASES))
_SEEDS = Kind('a list of integers, 0 ≤ x < 2³²', lambda v: is_list(v, schema.SEED.accepts))
_PLAN = {
    'name': Key(schema.FOLDER_NAME, 'of the comparison', need='both'),
    'title': Key(schema.TEXT, 'the network, as it is printed', need='both'),
    'table': Key(schema.TEXT, 'the printed table beside which ours stands', null=True),
    'reference': Key(schema.TEXT, 'the method that differences are taken to', need='both'),
    'train': Key(schema.TEXT, 'option file that all trainings share', need='both'),
    'test': Key(schema.TEXT, 'option file of the test', need='both'),
    'seeds': Key(_SEEDS, 'one run for each', need='both'),
    'lengths': Key(schema.one_of('shared', 'own'), 'one budget for all methods, or what their options say'),
    'deterministic': Key(schema.BOOL, 'for all runs'),
    'networks': Key({'*': Key({
        'base': Key(_FILES, 'option files'),
        'options': Key(_BLOCK, 'and what else changes'),
        'scales': Key(_TEXTS, 'only these'),
        'methods': Key(_TEXTS, 'only these'),
    }, 'a network')}, 'by their ids'),
    'scales': Key({'*': Key({
        'train': Key(_BLOCK, 'what changes in the training'),
        'test': Key(_BLOCK, 'what changes in the test'),
    }, 'a scale')}, 'x2, x3, x4, ...', need='both'),
    'first': Key({
        'iterations': Key(schema.COUNT, 'of the shared budget'),
        '*': Key(_BLOCK, 'options of a stage 1, beside the base that they change'),
    }, 'stages that methods come after'),
    'methods': Key({'*': Key({
        'label': Key(schema.TEXT, 'as it is printed; default: the id'),
        'after': Key(schema.TEXT, 'a stage of first', null=True),
        'seeds': Key(_SEEDS, 'instead of the seeds of the plan'),
        'iterations': Key(schema.COUNT, 'of all its stages, instead of the shared budget'),
        'base': Key(_FILES, 'option files'),
        'options': Key(_BLOCK, 'and what else changes'),
    }, 'a method')}, 'by their ids', need='both'),
}


@dataclass(frozen=True)
class Changes:
    """What changes in the options of a run: those of option files, then some more."""
    base: tuple[str, ...] = ()
    options: dict = field(default_factory=dict)


@dataclass(frozen=True)
class PlanNetwork(Changes):
    """A network of a plan."""
    scales: tuple[str, ...] | None = None
    """None: all that the plan has."""
    methods: tuple[str, ...] | None = None


@dataclass(frozen=True)
class PlanMethod(Changes):
    """A method of a plan."""
    label: str | None = None
    after: str | None = None
    seeds: tuple[int, ...] | None = None
    """None: those of the plan."""
    iterations: int | None = None
    """Of all its stages; None: the budget of the plan."""


@dataclass(frozen=True)
class PlanFirst(Changes):
    """A stage that methods, or other such stages, come after."""
    after: str | None = None
    iterations: int | None = None
    """None: those of the plan."""


@dataclass(frozen=True)
class PlanFile:
    """A plan as its file has it, once :func:`check_plan` has found nothing wrong."""
    name: str
    title: str
    reference: str
    train: str
    test: str
    seeds: tuple[int, ...]
    scales: dict[str, dict]
    methods: dict[str, PlanMethod]
    networks: dict[str | None, PlanNetwork]
    """By their ids; None where the plan has the one of ``train`` alone."""
    first: dict[str, PlanFirst]
    first_iterations: int | None = None
    table: str | None = None
    lengths: str = 'shared'
    deterministic: bool | None = None

    @classmethod
    def of(cls, plan: Mapping[str, Any]) -> PlanFile:
        own = {'base', 'after', 'iterations'}
        first = {name: {**{k: block[k] for k in own & block.keys()},
                        'options': {k: v for k, v in block.items() if k not in own}}
                 for name, block in _first(plan).items()}
        texts = {key: plan[key] for key in ('name', 'title', 'reference', 'train', 'test')}
        given = {key: plan[key] for key in ('table', 'lengths', 'deterministic') if key in plan}
        return cls(**texts, **given, seeds=tuple(plan['seeds']), scales=plan['scales'],
                   methods={name: PlanMethod(**_changes(block)) for name, block in plan['methods'].items()},
                   networks={name: PlanNetwork(**_changes(block))
                             for name, block in plan.get('networks', {None: {}}).items()},
                   first={name: PlanFirst(**_changes(block)) for name, block in first.items()},
                   first_iterations=plan.get('first', {}).get('iterations'))


def _changes(block: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a dataclass: lists as tuples, and one file as a list of it."""
    block = {**block, 'base': [block['base']] if isinstance(block.get('base'), str) else block.get('base', [])}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in block.items()}


def locate_files(plan: dict, absolute: Callable[[str], str]) -> None:
    """Makes the option files that a plan names absolute, for :func:`~udl_basicsr.utils.yaml_files.load_yaml`.

    They are relative to the file that names them, which another plan in another folder may start from. What is no name
    stays, for :func:`check_plan`.
    """
    def located(value: Any) -> Any:
        if isinstance(value, list):
            return [located(one) for one in value]
        return absolute(value) if _is_text(value) else value

    blocks = [block for key in ('networks', 'first', 'methods') if isinstance(plan.get(key), dict)
              for block in plan[key].values() if isinstance(block, dict)]
    for block, key in [(plan, 'train'), (plan, 'test'), *((block, 'base') for block in blocks)]:
        if key in block:
            block[key] = located(block[key])


class _PlanChecker(KeyChecker):
    """Checks a plan by the rules of option files, along its own table."""

    def legal(self, path: tuple[str, ...], entry: Key | None) -> bool:
        return entry is not None

    def unknown(self, path: tuple[str, ...], table: dict[str, Key], others: Iterable[str]) -> None:
        self.report.add('.'.join(path), f'unknown key{did_you_mean(path[-1], (k for k in table if "*" not in k))}')


def check_plan(plan: dict) -> list[str]:
    """What is wrong with a plan, as ``key: problem``."""
    if isinstance(plan.get('scales'), dict):
        plan['scales'] = {k: {} if v is None else v for k, v in plan['scales'].items()}
    report = Findings()
    _PlanChecker(plan, True, report).walk(plan, _PLAN, ())
    if report.problems:
        return report.problems
    add, methods, networks = report.add, plan['methods'], plan.get('networks', {})
    first = _first(plan)
    if problem := bad_name(plan['name'], LONGEST_NAME):
        add('name', f'{describe(plan["name"])} {problem}; choose another')
    for where, ids in (('methods', methods), ('first', first), ('networks', networks)):
        for name in ids:
            if not re.fullmatch(r'[A-Za-z0-9_][A-Za-z0-9_+.-]*', name):
                add(where, f'{name!r}: expected a name of letters, digits, _, -, + and .')
    for name, block in first.items():
        if not _FILES.accepts(block.get('base', 'none')):
            add(f'first.{name}.base', f'expected {_FILES.label}, got {describe(block["base"])}')
        earlier = [*itertools.takewhile(lambda other, name=name: other != name, first)]
        if block.get('after') not in (None, *earlier):  # so that there is no circle
            add(f'first.{name}.after', f'expected a stage of first that stands before this one, got '
                f'{describe(block["after"])}')
        if not schema.COUNT.accepts(block.get('iterations', 1)):
            add(f'first.{name}.iterations', f'expected {schema.COUNT.label}, got {describe(block["iterations"])}')
    for name in plan['scales']:
        if not re.fullmatch(r'x[1-9]\d?', name):
            add(f'scales.{name}', 'expected x2, x3, x4, ... and a block of what it changes in train and test')
    for key, example in (('scales', 'x4: {}'), ('methods', 'L1: {label: L1, options: {...}}')):
        if not plan[key]:
            add(key, f'expected at least one, such as {example}')
    if 'networks' in plan and not networks:
        add('networks', 'expected at least one, or no such block')
    for name, block in methods.items():
        if block.get('after') not in (None, *first):
            add(f'methods.{name}.after', f'{block["after"]!r} is not under first{did_you_mean(block["after"], first)}')
        if 'options' not in block and 'base' not in block:
            add(f'methods.{name}.options', f'missing; what this method changes in {plan["train"]}')
    for name, block in networks.items():
        for key in ('scales', 'methods'):
            for wanted in block.get(key, ()):
                if wanted not in plan[key]:
                    add(f'networks.{name}.{key}', f'{wanted!r} is not under {key}{did_you_mean(wanted, plan[key])}')
    if plan['reference'] not in methods:
        add('reference', f'{plan["reference"]!r} is not under methods{did_you_mean(plan["reference"], methods)}')
    own = plan.get('lengths') == 'own'
    if first and not own and 'iterations' not in plan['first']:
        add('first.iterations', 'missing; expected an integer, the length of stage 1')
    for key, blocks in (('first', first), ('methods', methods)) if own else ():
        for name in (name for name, block in blocks.items() if 'iterations' in block):
            add(f'{key}.{name}.iterations', 'belongs to lengths: shared; set its train.total_iter, and remove this')
    if own and 'iterations' in plan.get('first', {}):
        add('first.iterations', 'belongs to lengths: shared; set train.total_iter of each stage, and remove this')
    count = len(plan['scales']) * max(1, len(networks)) * sum(
        len({*block.get('seeds', plan['seeds'])}) for block in methods.values())
    if count > MOST_RUNS:
        add('seeds', f'there would be {count} runs; expected at most {MOST_RUNS}')
    return report.problems


def _first(plan: Mapping) -> dict[str, dict]:
    return {name: block for name, block in plan.get('first', {}).items() if name != 'iterations'}
