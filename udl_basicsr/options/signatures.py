"""What a class or function accepts, found by reading it, so that no list of names has to be kept by hand.

Two sources: signatures (networks, losses, metrics, optimizers, schedulers) and, for what takes one ``opt`` dictionary
(data sets, models), the keys that its source code reads.
"""
import ast
import functools
import inspect
import math
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from udl_basicsr.utils.text import did_you_mean

_LIBRARY = {'torch', 'builtins', 'typing', 'abc', 'collections'}


def describe(value: Any) -> str:
    """A value as an error message shows it."""
    text = repr(value)
    return 'null' if value is None else f'{text[:57] + "..." if len(text) > 60 else text} ({type(value).__name__})'


# ----------------------------------------------------------------------------------------------- keys read from source
class _KeyReader(ast.NodeVisitor):
    """Collects the paths ``('train', 'ema_decay')`` that code reads from the dictionary called ``opt``."""

    def __init__(self, roots: Iterable[str]) -> None:
        self.roots = dict.fromkeys(roots, ())
        self.names: dict[str, tuple[str, ...]] = dict(self.roots)
        self.attributes: dict[str, tuple[str, ...]] = dict(self.roots)
        self.paths: set[tuple[str, ...]] = set()
        self.open = False  # the whole dictionary goes where we cannot follow

    def path_of(self, node: ast.AST) -> tuple[str, ...] | None:
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == 'self':
            return self.attributes.get(node.attr)
        if isinstance(node, ast.Subscript):
            owner, key = self.path_of(node.value), node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args \
                and node.func.attr in ('get', 'pop', 'setdefault'):
            owner, key = self.path_of(node.func.value), node.args[0]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == 'copy':
            return self.path_of(node.func.value)
        elif isinstance(node, ast.Call) and getattr(node.func, 'id', getattr(node.func, 'attr', '')) in (
                'deepcopy', 'dict') and len(node.args) == 1 and not node.keywords:
            return self.path_of(node.args[0])
        else:
            return None
        if owner is None or not (isinstance(key, ast.Constant) and isinstance(key.value, str)):
            return None
        return (*owner, key.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.names = dict(self.roots)  # local names end with their function
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=False))
            for left, right in pairs:
                path = self.path_of(right)
                if path is None:
                    continue
                if isinstance(left, ast.Name):
                    self.names[left.id] = path
                elif isinstance(left, ast.Attribute):
                    self.attributes[left.attr] = path

    def visit_Compare(self, node: ast.Compare) -> None:
        self.generic_visit(node)
        if isinstance(node.left, ast.Constant) and isinstance(node.left.value, str):
            for operator, right in zip(node.ops, node.comparators, strict=True):
                path = self.path_of(right)
                if isinstance(operator, (ast.In, ast.NotIn)) and path is not None:
                    self.paths.add((*path, node.left.value))

    def visit_Call(self, node: ast.Call) -> None:
        to_base = isinstance(node.func, ast.Attribute) and node.func.attr == '__init__'  # the bases are read as well
        name = getattr(node.func, 'id', getattr(node.func, 'attr', ''))
        harmless = name in ('deepcopy', 'dict', 'len', 'print', 'str')
        arguments = [*node.args, *(k.value for k in node.keywords)]
        if not to_base and not harmless and any(self.path_of(a) == () for a in arguments):
            self.open = True
        self.generic_visit(node)

    def generic_visit(self, node: ast.AST) -> None:
        path = self.path_of(node)
        if path:
            self.paths.update(path[:i] for i in range(1, len(path) + 1))
        super().generic_visit(node)


def _sources(target: type | Callable) -> list[ast.Module] | None:
    """Syntax trees of a function, or of a class and its bases; None where the source cannot be had."""
    parts = [c for c in target.__mro__ if c.__module__.split('.')[0] not in _LIBRARY] \
        if inspect.isclass(target) else [target]
    try:
        return [ast.parse(textwrap.dedent(inspect.getsource(part))) for part in parts]
    except (OSError, TypeError, SyntaxError):
        return None


@functools.cache
def keys_read(target: type | Callable, roots: tuple[str, ...] = ('opt',)) -> frozenset[tuple[str, ...]] | None:
    """Paths of keys that ``target`` reads from its options; None: cannot be known, so anything may be read."""
    trees = _sources(target)
    if trees is None:
        return None
    reader = _KeyReader(roots)
    for tree in trees * 2:  # twice: an attribute may be used in the source before it is assigned
        reader.visit(tree)
    return None if reader.open else frozenset(reader.paths)


@functools.cache
def keys_needed(target: type, phase: str) -> frozenset[str]:
    """Top-level keys that a data set reads as ``opt['key']`` on every path through ``__init__`` and ``__getitem__``."""
    reader, needed = _KeyReader(('opt',)), set()

    def walk(node: ast.AST, sure: bool) -> None:
        if not sure or isinstance(node, (ast.For, ast.While, ast.Try, ast.Lambda)):
            return
        if isinstance(node, (ast.If, ast.IfExp)):
            walk(node.test, True)
            if isinstance(node, ast.If) and re.fullmatch(r".*\['phase'\] == 'train'", ast.unparse(node.test)):
                for child in node.body:
                    walk(child, phase == 'train')
            return
        if isinstance(node, ast.BoolOp):
            walk(node.values[0], True)
            return
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            path = reader.path_of(node)
            if path and len(path) == 1:
                needed.add(path[0])
        for child in ast.iter_child_nodes(node):
            walk(child, True)

    found_getitem = False
    for tree in _sources(target) or ():
        for method in tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else ():
            if not isinstance(method, ast.FunctionDef) or method.name not in ('__init__', '__getitem__'):
                continue
            if method.name == '__getitem__':
                if found_getitem:
                    continue  # overridden by the class above
                found_getitem = True
            for statement in method.body:
                walk(statement, True)
    return frozenset(needed)


@functools.cache
def names_compared(function: Callable, variable: str) -> frozenset[str]:
    """Text that ``function`` compares ``variable`` with: the type names that a BasicSR builder knows."""
    found: set[str] = set()
    for tree in _sources(function) or ():
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare) and isinstance(node.left, ast.Name) and node.left.id == variable:
                found.update(c.value for right in node.comparators for c in ast.walk(right)
                             if isinstance(c, ast.Constant) and isinstance(c.value, str))
    return frozenset(found)


# ------------------------------------------------------------------------------------------------------- signatures
def _kwargs_go_to_base(function: Callable, name: str) -> bool | None:
    """How ``**name`` is used: None not at all, True only passed to ``super().__init__``, False otherwise or unknown."""
    trees = _sources(function)
    if trees is None:
        return False
    uses = [n for t in trees for n in ast.walk(t) if isinstance(n, ast.Name) and n.id == name]
    passed = [k.value for t in trees for n in ast.walk(t) if isinstance(n, ast.Call)
              and isinstance(n.func, ast.Attribute) and n.func.attr == '__init__' for k in n.keywords if k.arg is None]
    return None if not uses else all(any(use is p for p in passed) for use in uses)


@functools.cache
def parameters(target: Callable) -> tuple[dict[str, inspect.Parameter], bool]:
    """Parameters by name, and whether others may be given as well.

    A ``**kwargs`` that the code never looks at accepts nothing: what it swallows is a typing error.
    """
    if inspect.isclass(target):
        functions = [vars(c)['__init__'] for c in target.__mro__ if '__init__' in vars(c)
                     and c.__module__ != 'torch.nn.modules.module' and c is not object]
    else:
        functions = [target]
    found: dict[str, inspect.Parameter] = {}
    for function in functions:
        try:
            here = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):
            return found, True
        if inspect.isclass(target):
            here = here[1:]  # self
        rest = next((p.name for p in here if p.kind is p.VAR_KEYWORD), None)
        for p in here:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                found.setdefault(p.name, p)
        to_base = None if rest is None else _kwargs_go_to_base(function, rest)
        if to_base is None:
            return found, False
        if to_base is False:
            return found, True
    return found, False


_DOC_ARGUMENT = re.compile(r'^\s*(\w+) \(([^\n]*?)\)\s*:', re.MULTILINE)
_PLAIN_TYPES: dict[str, Any] = {'int': int, 'float': float, 'bool': bool, 'str': str}


def fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value can be what a type annotation says; True where that cannot be told."""
    if hint is None or hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if hint is str:
        return isinstance(value, str)
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, h) for h in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    plain = origin or hint
    if isinstance(plain, type) and issubclass(plain, (list, tuple)):
        return isinstance(value, list)
    if isinstance(plain, type) and issubclass(plain, dict):
        return isinstance(value, dict)
    return getattr(plain, '__name__', '') != 'Tensor'  # which no YAML can write


def _hint(function: Callable, owner: Any, parameter: inspect.Parameter) -> Any:
    """The type that a parameter wants: from its annotation, else its docstring, else its default; Any: unknown."""
    if parameter.annotation is not inspect.Parameter.empty:
        try:
            return typing.get_type_hints(function).get(parameter.name, Any)
        except Exception:
            return _PLAIN_TYPES.get(str(parameter.annotation), Any)
    default = parameter.default
    documented = dict(_DOC_ARGUMENT.findall(f'{owner.__doc__ or ""}\n{function.__doc__ or ""}')).get(parameter.name)
    if documented is not None:
        name = documented.replace(', optional', '').strip()
        hint = _PLAIN_TYPES.get(name, Any)
        if re.fullmatch(r'(list|tuple)(\W\w+\W)?', name):
            hint = list
    elif isinstance(default, bool):
        hint = bool
    elif isinstance(default, (int, float)):
        hint = float  # `res_scale=1` takes 0.1: an integer default does not ask for integers
    else:
        hint = str if isinstance(default, str) else Any
    return hint if hint is Any or default is not None else hint | None


def _hint_name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return 'one of ' + ', '.join(map(str, typing.get_args(hint)))
    return {int: 'an integer', float: 'a number', bool: 'true or false', str: 'text', list: 'a list'}.get(
        hint, str(hint).replace('typing.', '').replace('NoneType', 'null').replace('None', 'null'))


def call_problems(target: Callable, kwargs: Mapping[str, Any], supplied: Iterable[str] = (),
                  partial: bool = False) -> Iterator[tuple[str, str]]:
    """What is wrong with ``target(**kwargs)``, without calling it.

    Args:
        target: a class or function.
        kwargs: arguments from an option file.
        supplied: parameters that the program gives, not the file.
        partial: the program gives what is missing as well.

    Yields:
        (name of the argument, problem).
    """
    params, others = parameters(target)
    supplied = set(supplied)
    name = getattr(target, '__name__', str(target))
    for key, value in kwargs.items():
        if key not in params or key in supplied:
            if not others:
                yield key, f'{name} has no such argument{did_you_mean(key, set(params) - supplied)}'
            continue
        hint = _hint(target.__init__ if inspect.isclass(target) else target, target, params[key])
        if not fits(value, hint):
            yield key, f'{name} expects {_hint_name(hint)}, got {describe(value)}'
    for key, parameter in params.items():
        if parameter.default is parameter.empty and key not in kwargs and key not in supplied and not partial:
            yield key, f'{name} needs this argument, which is missing'
