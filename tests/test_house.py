"""The house: arrows point down, no file is too large, no name is given twice, and the door opens without LPIPS."""
import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = 'udl_basicsr'
LAYERS = ('utils', 'functional', 'archs', 'losses', 'metrics', 'data', 'models', 'options', 'training', 'experiments',
          'deploy', 'reports', 'cli')
"""Each imports itself and what is below it. What registers the layers and what is run stand outside."""
DOOR = {'__init__.py', '__main__.py', 'register.py', 'train.py', 'test.py'}
LARGEST = 400
Import = ast.Import | ast.ImportFrom


def sources(root: Path, folder: str = PACKAGE) -> list[Path]:
    return sorted((root / folder).rglob('*.py'))


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding='utf-8'))


def imported(path: Path, root: Path, node: Import) -> list[str]:
    """The modules of the package that an import statement names, in full, perhaps with a name inside them."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        here = path.relative_to(root).parts[:-1]
        base = '.'.join(here[:len(here) + 1 - node.level]) if node.level else ''
        module = '.'.join(filter(None, (base, node.module)))
        names = [f'{module}.{alias.name}' for alias in node.names]
    return [name for name in names if name.split('.')[0] == PACKAGE]


def imports(path: Path, root: Path) -> Iterator[tuple[str, int]]:
    """Everything of the package that a file imports, wherever in it, and the line."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, Import):
            yield from ((name, node.lineno) for name in imported(path, root, node))


def upwards(root: Path) -> list[str]:
    found = []
    for path in sources(root):
        place = path.relative_to(root / PACKAGE).parts
        if place[0] in DOOR:
            continue
        for name, line in imports(path, root):
            if place[0] == 'cli' and name == 'udl_basicsr.register':  # before it looks anything up by its name
                continue
            parts = name.split('.')
            layer = parts[1] if len(parts) > 1 else ''
            if place[0] not in LAYERS or layer not in LAYERS or LAYERS.index(layer) > LAYERS.index(place[0]):
                found.append(f'{path.relative_to(root)}:{line} imports {name}')
    return found


def hidden(root: Path) -> list[str]:
    found = set()
    for path in sources(root):
        if path.relative_to(root / PACKAGE).parts[0] == 'cli':  # a command imports what is heavy when it is called
            continue
        for function in ast.walk(parsed(path)):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                found |= {f'{path.relative_to(root)}:{node.lineno} imports {name}' for node in ast.walk(function)
                          if isinstance(node, Import) for name in imported(path, root, node)}
    return sorted(found)


def too_large(root: Path) -> dict[str, int]:
    lines = {path.relative_to(root).as_posix(): len(path.read_text(encoding='utf-8').splitlines())
             for folder in (PACKAGE, 'scripts', 'tests') for path in sources(root, folder)}
    return {name: count for name, count in lines.items() if count > LARGEST}


def twice(root: Path) -> dict[str, list[str]]:
    """Classes whose name another class of the package has as well."""
    places = defaultdict(list)
    for path in sources(root):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f'{path.relative_to(root)}:{node.lineno}')
    return {name: where for name, where in places.items() if len(where) > 1}


def test_imports_point_down():
    assert upwards(ROOT) == []


def test_no_import_hides_in_a_function():
    assert hidden(ROOT) == []


def test_no_file_is_too_large():
    assert too_large(ROOT) == {}


def test_each_class_has_a_name_of_its_own():
    assert twice(ROOT) == {}


def test_every_module_says_what_it_is_for():
    silent = [str(path.relative_to(ROOT)) for path in sources(ROOT)
              if path.stat().st_size and not ast.get_docstring(parsed(path))]
    assert silent == []


def test_nobody_waits_for_lpips_nor_for_the_compiler():
    """torchvision asks torch's compiler for something, and importing that takes as long as torch."""
    command = """if True:
        import sys, torch
        already = 'torch._dynamo' in sys.modules
        import udl_basicsr, udl_basicsr.metrics, udl_basicsr.losses.perceptual
        sys.exit('lpips' in sys.modules or 'torch._dynamo' in sys.modules and not already)"""
    assert subprocess.run([sys.executable, '-c', command], cwd=ROOT).returncode == 0


# ------------------------------------------------------------------------------------- and that each of them can fail


@pytest.fixture
def house(tmp_path):
    """A house whose files a test writes."""
    def build(**files: str) -> Path:
        for name, text in files.items():
            path = tmp_path / f'{name.replace("__", "/")}.py'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path
    return build


@pytest.mark.parametrize(('line', 'name'), [
    ('import udl_basicsr.losses.base', 'udl_basicsr.losses.base'),
    ('from udl_basicsr import losses', 'udl_basicsr.losses'),
    ('from udl_basicsr.losses import UDLLoss', 'udl_basicsr.losses.UDLLoss'),
    ('from ..losses.base import Loss', 'udl_basicsr.losses.base.Loss'),
    ('from .. import losses', 'udl_basicsr.losses'),
    ('import udl_basicsr', 'udl_basicsr'),
    ('from udl_basicsr.train import main', 'udl_basicsr.train.main'),
])
def test_an_arrow_that_points_up_is_seen(house, line, name):
    root = house(udl_basicsr__archs__a=f'import torch\nfrom .b import c\n{line}\n', udl_basicsr__train=f'{line}\n')
    assert upwards(root) == [f'udl_basicsr/archs/a.py:3 imports {name}']


def test_arrows_that_point_down_are_no_matter(house):
    text = 'from . import x\nfrom .x import y\nfrom ..utils import z\nfrom udl_basicsr.archs.a import b\nimport sys\n'
    assert upwards(house(udl_basicsr__losses__a=text)) == []


def test_a_folder_that_is_no_layer_is_seen(house):
    root = house(udl_basicsr__attic__a='from udl_basicsr.utils import files\n')
    assert upwards(root) == ['udl_basicsr/attic/a.py:1 imports udl_basicsr.utils.files']


def test_an_import_in_a_function_is_seen(house):
    text = 'class A:\n    def f(self):\n        import os\n        if os:\n            from .b import c\n'
    root = house(udl_basicsr__archs__a=text, udl_basicsr__cli__a=text)
    assert hidden(root) == ['udl_basicsr/archs/a.py:5 imports udl_basicsr.archs.b.c']


def test_a_large_file_and_a_name_given_twice_are_seen(house):
    text = 'class A:\n    pass\n'
    root = house(udl_basicsr__archs__a=text, udl_basicsr__utils__b=text, scripts__a=text + '\n' * (LARGEST - 1),
                 scripts__b=text + '\n' * (LARGEST - 2), tests__gpu__test_a=text + '\n' * LARGEST)
    assert too_large(root) == {'scripts/a.py': LARGEST + 1, 'tests/gpu/test_a.py': LARGEST + 2}
    assert twice(root) == {'A': ['udl_basicsr/archs/a.py:1', 'udl_basicsr/utils/b.py:1']}
