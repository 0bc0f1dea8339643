"""What README.md and the notebook say is done, not only read."""
import importlib
import inspect
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from skimage.metrics import peak_signal_noise_ratio

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')


def test_the_python_of_the_readme_runs():
    page = README + (ROOT / 'docs/API.md').read_text(encoding='utf-8')
    for code in re.findall(r'```python\n(.*?)```', page, re.S):
        if 'MyNet' not in code:
            exec(compile(code, 'README.md', 'exec'), {})


def test_the_files_that_the_readme_names_are_there():
    named = re.findall(r'(?:options|scripts|docs|udl_basicsr)/[\w./-]+\.(?:yml|py|sh|md|png)', README)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_links_of_the_pages_lead_somewhere():
    broken = []
    for page in (ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *(ROOT / 'docs').glob('*.md')):
        links = re.findall(r'\]\(((?!https?:|#)[^)#]+)', page.read_text(encoding='utf-8'))
        broken += [f'{page.name}: {link}' for link in links if not (page.parent / link).exists()]
    assert broken == []


def test_the_readme_links_each_page_once():
    for page in (ROOT / 'docs').glob('*.md'):
        assert README.count(f'](docs/{page.name})') == 1, page.name


@pytest.mark.parametrize('layer', ['losses', 'archs', 'metrics', 'functional'])
def test_the_reference_describes_arguments_that_exist(layer):
    """One each: mkdocs warns of other names, which ends the build of the site."""
    module, strange = importlib.import_module(f'udl_basicsr.{layer}'), []
    items = {name: getattr(module, name) for name in module.__all__}
    for name, part in items.copy().items():  # of metrics, all are modules
        if inspect.ismodule(part):
            items |= {f'{name}.{key}': item for key, item in vars(items.pop(name)).items()
                      if getattr(item, '__module__', '') == part.__name__}
    assert len(items) > 5
    for name, item in items.items():
        section = re.search(r'^Args:\n((?:    .*\n?|\n)*)', inspect.getdoc(item) or '', re.M)
        entries = re.findall(r'^    (\S[^:(]*)', section[1], re.M) if section else []
        known = inspect.signature(item).parameters
        strange += [f'{name}: {entry}' for entry in entries if entry.strip(' *') not in known]
    assert strange == []


def test_the_notebook_runs_and_its_claims_hold(monkeypatch, tmp_path):
    """Without Jupyter, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    plt.switch_backend('Agg')
    monkeypatch.setattr(plt, 'show', lambda: plt.close('all'))
    names = {}
    for cell in json.loads((ROOT / 'examples/uncertainty.ipynb').read_text(encoding='utf-8'))['cells']:
        if cell['cell_type'] == 'code':
            exec(compile(''.join(cell['source']), 'uncertainty.ipynb', 'exec'), names)
    psnr = {name: peak_signal_noise_ratio(names['gt'], image.round().astype('uint8'))
            for name, image in names['sr'].items()}
    assert names['psnr'] == pytest.approx(psnr)
    assert psnr['UDL'] > psnr['L1']
    assert list(tmp_path.iterdir()) == []
    for errors in names['by_part'].values():  # the less sure, the worse
        assert errors[:5].max() < errors[5]
        assert all(errors[5:-1] < errors[6:])
    assert all(names['promised'] < names['by_part']['UDL'])
