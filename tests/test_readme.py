"""What README.md says is done, not only read."""
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text()


def test_the_python_of_the_readme_runs():
    for code in re.findall(r'```python\n(.*?)```', README, re.S):
        if 'MyNet' not in code:
            exec(compile(code, 'README.md', 'exec'), {})


def test_the_files_that_the_readme_names_are_there():
    named = re.findall(r'(?:options|scripts|docs|udl_basicsr)/[\w./-]+\.(?:yml|py|sh|md|png)', README)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []
