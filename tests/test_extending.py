"""docs/EXTENDING.md, followed to the letter in an empty folder: its files, its commands, and the lines it counts."""
import json
import re
from pathlib import Path

import pytest
from forked import forked, script, udl

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / 'docs/EXTENDING.md').read_text(encoding='utf-8')
LANGUAGES = {'py': 'python', 'yml': 'yaml', 'json': 'json'}


def blocks() -> list[tuple[str, str, str]]:
    """Language and text of each block of code, and the last file that the paragraph before it names."""
    parts = re.split(r'^```(\w*)\n(.*?)^```$', PAGE, flags=re.MULTILINE | re.DOTALL)
    found = []
    for before, language, text in zip(parts[::3], parts[1::3], parts[2::3], strict=False):
        names = re.findall(r'`([\w./]+\.(?:py|yml|json))`', before.strip().split('\n\n')[-1])
        found.append((language, names[-1] if names else '', text))
    return found


FILES = {name: text for language, name, text in blocks()
         if name and LANGUAGES[name.rpartition('.')[2]] == language}
COMMANDS = [line for language, _, text in blocks() if language == 'bash' for line in text.splitlines()]


@pytest.mark.parametrize(('what', 'python', 'others'), [
    ('a loss', ['my_sr/losses.py'], [['mine.yml']]),
    ('a network', ['my_sr/networks.py'], [['mynet_esu.yml', 'mynet_udl.yml']]),
    ('a metric', ['my_sr/metrics.py'], [['best.yml']]),
    ('a stage', ['my_sr/stages.py'], [['joint.yml']]),
    ("a paper's table", [], [['test.yml', 'plan.yml'], ['my_paper.json']]),
])
def test_the_page_counts_its_lines(what, python, others):
    counts = [str(sum(bool(line.strip()) for name in names for line in FILES[name].splitlines()))
              for names in (python, *others)]
    row, = re.findall(rf'^\| \[{what}\].*$', PAGE, re.MULTILINE)
    assert re.findall(r'\d+', row.partition(')')[2]) == counts


def test_the_page_can_be_followed(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding='utf-8')
    said = []
    for command in COMMANDS:
        program, *words = command.split()
        done = forked({'udl': udl, 'python': script}[program], *words, cwd=tmp_path)
        assert done.returncode == 0, f'{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}'
        said.append(done.stdout)
    assert (tmp_path / 'experiments/tiny_best/models/net_g_best.pth').exists()
    assert (tmp_path / 'sr/0.png').exists()
    assert 'MyNet' in said[-3]
    assert (tmp_path / 'experiments/tiny_joint/models/net_u_latest.pth').exists()
    assert 'random' in json.loads((tmp_path / 'results/tiny_joint/scores.json').read_text())['datasets']
    assert re.findall(r'printed +(\S+)', said[-1]) == ['20.11', '20.15']
