"""Option files as plain dictionaries: safe YAML, ``_base_`` inheritance, ``${key}`` and ``--force_yml``.

Nothing here knows what the keys mean; ``schema.py`` does.
"""
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from os import path as osp
from typing import Any

import yaml
from yaml.composer import ComposerError

from .errors import MISUSED, UdlError
from .files import did_you_mean_file, is_stream
from .text import did_you_mean

_FLOAT = re.compile(r'^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)$')  # YAML 1.1 wants a dot and a sign
_REFERENCE = re.compile(r'\$\{([^{}]*)\}')  # also of what is no key: ${train.total_iter} would else name a folder
# No honest option file comes near any of these; a hostile one must cost neither time nor memory.
_MAX_BYTES = 2**16  # of a file with all its bases; PyYAML reads some 100 kB a second
_MAX_FILES = 100  # a base that names two bases that name two bases grows exponentially
_MAX_NODES = 20_000  # values once aliases are expanded: aliases of aliases grow exponentially
_MAX_DEPTH = 32  # blocks within blocks
_MAX_TEXT = 10_000  # characters of one text once its ``${key}`` are replaced, which grows exponentially as well

Locate = Callable[[dict, Callable[[str], str]], None]


class OptionError(UdlError, ValueError):
    """What is wrong with an option file: problems of the form ``<file>: <key path>: <expected, and what to do>``."""
    status = MISUSED

    def __init__(self, problems: str | Iterable[str]) -> None:
        super().__init__([problems] if isinstance(problems, str) else problems)  # keys and values may have line breaks


# ---------------------------------------------------------------------------------------------------- reading YAML
class _Loader(yaml.SafeLoader):
    """SafeLoader with ``1e-4`` as a float, dates as text, and no other tag than those of plain data."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in pairs if not tag.endswith(':timestamp')]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth = getattr(self, 'depth', 0) + 1
        if self.depth > _MAX_DEPTH + 1:
            self.refuse_depth()
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def fetch_flow_collection_start(self, token_class: type[yaml.Token]) -> None:
        if self.flow_level > _MAX_DEPTH:  # the scanner looks ahead of the composer, in time that grows with the square
            self.refuse_depth()
        super().fetch_flow_collection_start(token_class)

    def refuse_depth(self) -> None:
        raise ComposerError(None, None, f'more than {_MAX_DEPTH} blocks within one another', self.get_mark())

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """A key that stands twice in one block is refused, also in one that is only merged into another."""
        node = super().compose_mapping_node(anchor)  # pyright: ignore[reportArgumentType] - its stub is wrong
        seen: set[tuple[str, str]] = set()
        for key_node, _ in node.value:
            if key_node.tag not in ('tag:yaml.org,2002:str', 'tag:yaml.org,2002:merge'):
                continue  # no text (`1: x`, `[a]: x`): refused below
            if (key := (key_node.tag, key_node.value)) in seen:
                remedy = ': merge a list, <<: [*a, *b]' if key[0].endswith(':merge') else ''
                raise yaml.constructor.ConstructorError(None, None, f"key '{key_node.value}' stands here twice{remedy}",
                                                        key_node.start_mark)
            seen.add(key)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Puts what ``<<: *anchor`` merges into the mapping."""
        super().flatten_mapping(node)
        if len(node.value) > _MAX_NODES:
            raise yaml.constructor.ConstructorError(None, None, f'more than {_MAX_NODES} values once merged',
                                                    node.start_mark)
        for key_node, value_node in node.value:
            if key_node.tag != 'tag:yaml.org,2002:str':
                remedy = 'put it in quotes'
                if key_node.tag.endswith((':int', ':float')) and value_node.value == '':  # `{lr: 0,001}`
                    remedy = 'write decimals with a point, no comma, or put it in quotes'
                raise yaml.constructor.ConstructorError(
                    None, None, f"a key must be text, got '{getattr(key_node, 'value', '?')}': {remedy}",
                    key_node.start_mark)


def _refuse_tag(loader: _Loader, node: yaml.Node) -> None:
    raise yaml.constructor.ConstructorError(
        None, None, f"tag '{node.tag}' is not allowed: option files hold numbers, text, lists and mappings only",
        node.start_mark)


def _scalar(construct: Callable[[_Loader, yaml.Node], Any]) -> Callable[[_Loader, yaml.Node], Any]:
    """A constructor of a single value whose every failure says where it was."""
    def constructor(loader: _Loader, node: yaml.Node) -> Any:
        try:
            value = construct(loader, node)
        except (ValueError, KeyError, IndexError, OverflowError) as error:  # `!!bool perhaps`, `!!int ''`
            problem = f"'{_short(node.value)}' is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error
        if problem := _unusable(value):
            raise yaml.constructor.ConstructorError(None, None, f"'{_short(node.value)}' {problem}", node.start_mark)
        return value
    return constructor


def _short(text: Any) -> str:
    text = str(text)
    return text if len(text) <= 60 else f'{text[:57]}...'


def _unusable(value: Any) -> str:
    """Why nothing that reads options could use a value; empty where it can."""
    if isinstance(value, int) and abs(value) >= 2**63:
        return 'is beyond 64 bits: write a smaller number, or put it in quotes if it is text'
    # no name, path or number holds control characters; tabs and line breaks are white space
    if isinstance(value, str) and (strange := next(
            (c for c in value if unicodedata.category(c) in ('Cc', 'Cs') and c not in '\t\n'), None)):
        return f'has the control character U+{ord(strange):04X}: remove it'
    return ''


_SCALARS = [f'tag:yaml.org,2002:{t}' for t in ('null', 'bool', 'int', 'float', 'str')]
_Loader.yaml_constructors = {
    **{tag: _scalar(yaml.SafeLoader.yaml_constructors[tag]) for tag in _SCALARS},
    **{tag: yaml.SafeLoader.yaml_constructors[tag] for tag in ('tag:yaml.org,2002:seq', 'tag:yaml.org,2002:map')},
}
_Loader.add_constructor(None, _refuse_tag)  # pyright: ignore[reportArgumentType] - PyYAML's word for any other
_Loader.add_implicit_resolver('tag:yaml.org,2002:float', _FLOAT, list('-+.0123456789'))


class _Dumper(yaml.SafeDumper):
    """Writes what both BasicSR's loader and ours read back as the same values."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_list(dumper: _Dumper, data: list) -> yaml.Node:
    plain = not any(isinstance(v, (dict, list)) for v in data)
    return dumper.represent_sequence('tag:yaml.org,2002:seq', data, flow_style=plain)


_Dumper.add_representer(list, _represent_list)
# so that the *text* '1e-4' is written in quotes
_Dumper.add_implicit_resolver('tag:yaml.org,2002:float', _FLOAT, list('-+.0123456789'))


def _unshare(value: Any, nodes: Iterator[int], parents: tuple[int, ...] = ()) -> Any:
    """Copies ``value`` so that two aliases of one anchor are two objects."""
    if next(nodes) > _MAX_NODES:
        raise ValueError(f'more than {_MAX_NODES} values once its aliases are expanded')
    if not isinstance(value, (dict, list)):
        return value
    if id(value) in parents:
        raise ValueError('an anchor contains itself')
    if len(parents) >= _MAX_DEPTH:
        raise ValueError(f'more than {_MAX_DEPTH} blocks within one another')
    parents = (*parents, id(value))
    if isinstance(value, dict):
        return {k: _unshare(v, nodes, parents) for k, v in value.items()}
    return [_unshare(v, nodes, parents) for v in value]


def _read(text: str, source: str) -> Any:
    """Parses YAML text; every failure is an OptionError with ``source`` and the line."""
    try:
        return _unshare(yaml.load(text, Loader=_Loader), iter(range(_MAX_NODES + 2)))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f'{source}:{mark.line + 1}' if mark else source
        remedy = '; use spaces' if '\\t' in str(error.problem) else ''
        raise OptionError(f'{where}: {error.problem or error.context}{remedy}') from None
    except (yaml.YAMLError, ValueError) as error:
        raise OptionError(f'{source}: not valid YAML: {str(error).splitlines()[0]}') from None


def read_block(text: str, source: str) -> dict:
    """A block of options that stands in another file than an option file, under the same limits; JSON is YAML too.

    Raises:
        OptionError: Names ``source``: too long or too deep, not YAML, or no mapping.
    """
    if len(text) > _MAX_BYTES:
        raise OptionError(f'{source}: expected a block of options, at most {_MAX_BYTES} characters, got {len(text)}')
    block = _read(text, source)
    if not isinstance(block, dict):
        raise OptionError(f'{source}: expected a block of options, got {_short(block)!r}')
    return block


# ------------------------------------------------------------------------------------------ inheritance, references
def merge(base: dict, over: dict) -> dict:
    """Deep merge, ``over`` wins.

    A null over an inherited block removes the block. A block whose ``type`` changes replaces the inherited block, since
    the arguments of one class mean nothing to another.
    """
    merged = dict(base)
    for key, value in over.items():
        inherited = merged.get(key)
        if value is None and isinstance(inherited, dict):
            del merged[key]
        elif isinstance(value, dict) and isinstance(inherited, dict):
            new_type = 'type' in value and 'type' in inherited and value['type'] != inherited['type']
            merged[key] = value if new_type else merge(inherited, value)
        else:
            merged[key] = value
    return merged


def _read_text(path: str, by: str) -> str:
    try:
        if is_stream(path):
            raise OptionError(f'{path}: cannot read this option file{by}: it is a pipe or a device')
        with open(path, 'rb') as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise OptionError(f'{path}: cannot read this option file{by}: it is larger than {_MAX_BYTES} bytes')
        return data.decode('utf-8-sig')
    except OSError as error:
        hint = did_you_mean_file(path) if isinstance(error, FileNotFoundError) else ''
        raise OptionError(f'{path}: cannot read this option file{by}: {error.strerror}{hint}') from None
    except UnicodeDecodeError as error:
        line = error.object[:error.start].count(b'\n') + 1
        remedy = 'save the file as UTF-8' if path.endswith(('.yml', '.yaml')) else 'give an option file, NAME.yml'
        raise OptionError(f'{path}:{line}: expected text in UTF-8, found the byte {error.object[error.start]:#04x}; '
                          f'{remedy}') from None


def _locate(opt: dict, absolute: Callable[[str], str]) -> None:
    for key in ('stage1', 'tested_on'):
        if isinstance(opt.get(key), str):
            opt[key] = absolute(opt[key])


def _load(path: str, parents: tuple[str, ...], texts: list[str], locate: Locate) -> dict:
    path = osp.abspath(osp.expanduser(path))
    real = osp.realpath(path)
    if real in parents:
        raise OptionError(f'{path}: _base_ goes round in a circle: {" -> ".join((*parents, real))}')
    texts.append(_read_text(path, f' (named by {parents[-1]})' if parents else ''))
    if len(texts) > _MAX_FILES or sum(map(len, texts)) > _MAX_BYTES:
        raise OptionError(f'{parents[0]}: _base_: more than {_MAX_FILES} files, or {_MAX_BYTES} bytes, are to be read')

    opt = _read(texts[-1], path)
    if not isinstance(opt, dict):
        got = 'nothing' if opt is None else type(opt).__name__
        raise OptionError(f'{path}: expected `key: value` lines, got {got}')
    folder = osp.dirname(path)
    # a path is relative to the file that holds it, so it is made absolute before files are merged
    locate(opt, lambda name: osp.normpath(osp.join(folder, osp.expanduser(name))))
    bases = opt.pop('_base_', None)
    bases = [] if bases is None else [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(b, str) and b for b in bases):
        raise OptionError(f'{path}: _base_: expected a file name or a list of file names, got {_short(repr(bases))}')
    merged: dict = {}
    for base in bases:
        merged = merge(merged, _load(osp.join(folder, osp.expanduser(base)), (*parents, real), texts, locate))
    return merge(merged, opt)


def interpolate(opt: dict, source: str = 'options') -> dict:
    """Replaces ``${key}`` in text by the top-level value of ``key``; text that is only ``${key}`` takes its type."""

    known: dict[str, Any] = {}

    def value_of(key: str, parents: tuple[str, ...]) -> Any:
        if key not in opt:
            raise OptionError(f"{source}: ${{{key}}}: there is no top-level key '{key}'{did_you_mean(key, opt)}")
        why = 'refers to itself' if key in parents else 'is no single value' if isinstance(opt[key], (dict, list)) \
            else f'goes on through more than {_MAX_DEPTH} keys' if len(parents) > _MAX_DEPTH else ''
        if why:
            raise OptionError(f'{source}: ${{{key}}}: {key} {why}')
        if key not in known:
            known[key] = resolve(opt[key], (*parents, key))
        return known[key]

    def resolve(value: Any, parents: tuple[str, ...] = ()) -> Any:
        if isinstance(value, dict):
            return {k: resolve(v, parents) for k, v in value.items()}
        if isinstance(value, list):
            return [resolve(v, parents) for v in value]
        if not isinstance(value, str):
            return value
        whole = _REFERENCE.fullmatch(value)
        if whole:
            return value_of(whole[1], parents)
        count = len(_REFERENCE.findall(value))
        if 0 < count <= _MAX_DEPTH:
            value = _REFERENCE.sub(lambda match: str(value_of(match[1], parents)), value)
        if count > _MAX_DEPTH or (count and len(value) > _MAX_TEXT):
            raise OptionError(f'{source}: {_short(value)}: more than {_MAX_DEPTH} references, or more than {_MAX_TEXT} '
                              'characters once they are replaced')
        return value

    return {key: resolve(value, (key,) if not isinstance(value, (dict, list)) else ()) for key, value in opt.items()}


def load_yaml(path: str, references: bool = True, locate: Locate = _locate) -> dict:
    """Reads an option file with everything it inherits.

    Args:
        path: the file. ``_base_: file`` or ``_base_: [files]`` inside it names files to start from, relative to it.
        references: replace ``${key}``; False leaves it in place, for whoever changes values first.
        locate: makes the names of option files in a file absolute: ``locate(opt, absolute)``, before it is merged.

    Returns:
        A dictionary of plain data that shares nothing with any other.

    Raises:
        OptionError: unreadable, not YAML, a tag that is not plain data, a key twice, a circle of bases.
    """
    opt = _load(path, (), [], locate)
    return interpolate(opt, str(path)) if references else opt


def apply_force_yml(opt: dict, entries: Iterable[str] | None) -> dict:
    """Applies ``--force_yml`` entries such as ``train:optim_g:lr=1e-4`` and returns the new options.

    Values follow the rules of the option files (``-1``, ``1e-4``, ``[1, 2]``, ``true``, ``~``), and ``None`` is null as
    in BasicSR. Null removes a block. Keys may be created; whether they are valid is judged with the rest.
    """
    opt = deepcopy(opt)
    problems = []
    for entry in entries or ():
        keys, equals, text = str(entry).partition('=')
        keys, source = [k.strip() for k in keys.split(':')], f'--force_yml {entry}'
        if not equals or not all(keys) or not text.strip():
            why = '; null is written ~' if equals and all(keys) else ''  # an empty variable of the shell is none
            problems.append(f'{source}: expected key:key=value, such as train:optim_g:lr=1e-4{why}')
            continue
        if len(keys) == 1 and text == osp.expanduser('~') != '~':  # bash takes name=~ for an assignment
            problems.append(f'{source}: your shell has put your home folder for ~; null is written {keys[0]}=None too')
            continue
        if meant := _with_colons(keys, opt):
            problems.append(f'{source}: keys are joined by a colon, not by a dot; did you mean {meant}={text}?')
            continue
        if len(keys) > _MAX_DEPTH or any(map(_unusable, keys)):
            problems.append(f'{source}: more than {_MAX_DEPTH} keys, or a control character in one')
            continue
        try:
            value = None if text.strip().lower() == 'none' else _read(text, source)
        except OptionError as error:
            quoted = text.replace("'", "''")
            problems += [f'{problem}; text with signs of YAML in it needs quotes in quotes: '
                         f'"{":".join(keys)}=\'{quoted}\'"' for problem in error.problems]
            continue
        block = opt
        for depth, key in enumerate(keys[:-1]):
            if block.get(key) is None:
                block[key] = {}
            block = block[key]
            if not isinstance(block, dict):
                problems.append(f'{source}: {":".join(keys[:depth + 1])} is a value, not a block of keys')
                break
        else:
            if value is None and isinstance(block.get(keys[-1]), dict):
                del block[keys[-1]]
            else:
                block[keys[-1]] = value
    if problems:
        raise OptionError(problems)
    return opt


def _with_colons(keys: list[str], opt: dict) -> str | None:
    """The keys that were meant where somebody has written train.total_iter, as messages name them; else None.

    Blocks that take names of one's own, such as the metrics, may have keys with dots.
    """
    block = opt
    for depth, key in enumerate(keys):
        if not isinstance(block, dict):
            return None
        if '.' in key and key not in block and (depth == 0 or key.partition('.')[0] in block):
            return ':'.join(keys).replace('.', ':')
        block = block.get(key)
    return None


def dump_flat(flat: dict) -> str:
    """Resolved options as YAML that BasicSR's own loader reads back unchanged."""
    return yaml.dump(flat, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=110)


def dump_compact(options: dict) -> str:
    """The same in fewer lines, for people: blocks without further blocks in one line each."""
    return yaml.dump(options, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
