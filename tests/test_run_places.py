"""Runs in odd places and on broken data: what is wrong is named."""
# ruff: noqa: F811 - fixtures that come from stopped_runs
import re
import shutil
from pathlib import Path

import pytest
from stopped_runs import _ctrl_c, at_iteration, run_of  # noqa: F401
from whole_runs import train

from udl_basicsr.data.images import BrokenImageError
from udl_basicsr.options import parse as options
from udl_basicsr.options.parse import OptionError
from udl_basicsr.training import run_folder, stages
from udl_basicsr.training.history import read_history

# --------------------------------------------------------------------------------------------------------------- places

def test_runs_of_one_second_are_all_kept(project, monkeypatch):
    monkeypatch.setattr(run_folder, 'get_time_str', lambda: '20260101_000000')
    for iterations in (1, 2, 3, 4):
        train(project, 'plain', f'train:total_iter={iterations}', 'val=~', 'logger:use_tb_logger=true')
    for kind in ('experiments', 'tb_logger'):
        names = ['plain', *(f'plain_archived_20260101_000000{tail}' for tail in ('', '_2', '_3'))]
        assert sorted(p.name for p in (project.root / kind).iterdir()) == names
    kept = [next((project.root / 'experiments' / name / 'training_states').iterdir()).stem for name in names]
    assert kept == ['4', '1', '2', '3']


@pytest.mark.parametrize(('place', 'make', 'message'), [
    ('experiments', Path.touch, 'experiments is a file; remove or rename it'),
    ('experiments', lambda path: path.symlink_to('nowhere'), 'experiments is a link to what is not there; remove'),
    ('experiments/plain', Path.touch, 'experiments/plain is a file; remove'),
    ('tb_logger', Path.touch, 'tb_logger is a file; remove'),
    ('experiments/plain/.lock', Path.mkdir, r'plain/\.lock is no file; expected the lock of a run'),
])
def test_what_stands_in_the_place_of_a_folder_is_named(project, place, make, message):
    path = project.root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)
    before = sorted(project.root.rglob('*'))
    with pytest.raises(OptionError, match=rf'plain\.yml: name: \S*.*{message}'):
        project.parse('plain')
    assert sorted(project.root.rglob('*')) == before


@pytest.mark.parametrize('name', ['models', 'history.jsonl', '.lock'])
def test_an_option_file_may_be_called_like_a_part_of_the_run(project, name):
    file = project.root / name
    file.write_text((project.root / 'plain.yml').read_text())
    for kwargs in ({}, {'auto_resume': True}):
        parsed = options.parse_options(str(file), root_path=str(project.root), is_train=True, **kwargs,
                                       force_yml=['train:total_iter=2'])
        stages.train(parsed)
    run = run_of(project, 'plain')
    assert options.load_yaml(str(run / f'{name}.yml'))['train']['total_iter'] == 2
    assert read_history(run / 'history.jsonl')[-1]['iter'] == 2


# ----------------------------------------------------------------------------------------------------------------- data

@pytest.fixture
def broken_pairs(project, pairs):
    """The project on data of its own, of which an image breaks once it has been checked."""
    own = project.root / 'pairs'
    shutil.copytree(pairs, own)
    base = project.root / '_base_.yml'
    base.write_text(base.read_text().replace(str(pairs), str(own)))
    return own / 'train' / 'lq' / '3.png'


@pytest.mark.parametrize('workers', [0, 2])
def test_an_image_that_breaks_stops_the_run_by_its_name(project, broken_pairs, workers):
    parsed = project.parse('plain', f'datasets:train:num_worker_per_gpu={workers}')
    broken_pairs.write_bytes(b'')
    # the one that is broken, not its partner
    with pytest.raises(BrokenImageError, match=r'(^|: )\S*lq/3\.png: cannot be read for training(.|\n)*skip_brok'):
        stages.train(parsed)
    assert not list(run_of(project, 'plain').rglob('*latest*'))


@pytest.mark.parametrize('workers', [0, 2])
def test_or_is_left_out_and_counted(project, broken_pairs, workers):
    parsed = project.parse('plain', f'datasets:train:num_worker_per_gpu={workers}', 'datasets:train:skip_broken=true')
    broken_pairs.write_bytes(b'')
    stages.train(parsed)
    # 8 batches of 4, in epochs of 12 samples: each image twice in every 3 batches
    assert 'broken_images: ' in project.log('plain')
    last = project.log('plain').rsplit('broken_images: ', 1)[1].split()[0]
    assert 4 <= float(last) <= 6
    assert len(re.findall(r'Left out, now and whenever', project.log('plain'))) <= max(workers, 1)
    with pytest.raises(OptionError, match='1 of 12 images cannot be used'):  # the check at the start lets none pass
        project.parse('plain', 'datasets:train:skip_broken=true')


def test_a_disk_that_is_gone_does_not_go_unnoticed(project, broken_pairs, at_iteration):
    at_iteration(2, lambda: shutil.rmtree(broken_pairs.parent))
    with pytest.raises(BrokenImageError, match='20 training images in a row cannot be read'):
        train(project, 'plain', 'datasets:train:skip_broken=true')
