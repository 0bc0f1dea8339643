"""What README.md says is done, not only read."""
import re
from pathlib import Path

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
