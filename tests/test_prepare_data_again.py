"""Data preparation again: interrupted, changed, killed."""
# ruff: noqa: F811 - fixtures that come from prepared_data
import json
import os
import time

import pytest
from forked import Forked, udl, within
from prepared_data import encode, out, picture, run, source, tree  # noqa: F401

from udl_basicsr.data import prepare as prepare_module
from udl_basicsr.data.prepare import PreparationError, Workers
from udl_basicsr.utils.locks import locked


def test_second_run_adds_and_rewrites_nothing(source, out):
    assert run(source, out, '--scale', '2') == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob('*.png')}
    assert run(source, out, '--scale', '2', '3', '--degradation', 'bd', '--sub-images', '48', '--lmdb') == 0
    assert run(source, out, '--scale', '2', '--lmdb') == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {'GTmod3', 'LRbdx3_sub', 'LRbdx2_sub.lmdb', 'GTmod2.lmdb'} <= {path.name for path in out.iterdir()}


def test_other_images_are_never_mixed_in(source, out, capsys):
    assert run(source, out, '--scale', '2', '--sub-images', '48') == 0
    before = tree(out)
    (source / '0.png').write_bytes(encode(picture(seed=9)))
    (source / '1.png').rename(source / 'new.png')
    assert run(source, out, '--scale', '2', '--sub-images', '40') == 2
    said = capsys.readouterr().err
    assert 'was prepared from other images (changed 0.png; new new.png; gone 1.png)' in said
    assert 'holds sub-images of 48 with step 24, asked for are 40 and 20' in said
    assert tree(out) == before


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='there are no pipes on this system')
def test_a_pipe_in_the_place_of_a_prepared_image_is_not_waited_for(source, out, capsys):
    assert run(source, out, '--scale', '2') == 0
    (source / '0.png').unlink()
    os.mkfifo(source / '0.png')
    with within(20):
        assert run(source, out, '--scale', '2') == 2
    assert '0.png: is a pipe or a device, no image' in capsys.readouterr().err


def test_changed_while_running(source, out, monkeypatch, capsys):
    inspect = prepare_module._inspect
    monkeypatch.setattr(prepare_module, '_inspect', lambda path: {**inspect(path), 'sha256': 'of another file'})
    assert run(source, out) == 2
    assert '0.png: changed while it was being prepared' in capsys.readouterr().err


@pytest.mark.parametrize(('error', 'status', 'message'), [
    (KeyboardInterrupt(), 130, 'Stopped by SIGINT. Run the same command again'),
    (OSError(28, 'No space left on device'), 1, '1.png: No space left on device'),
])
def test_interrupted_in_the_middle(source, out, monkeypatch, capsys, error, status, message):
    replace, calls = os.replace, []

    def fail_at_the_fifth(*paths):
        calls.append(paths)
        if len(calls) == 5:
            raise error
        replace(*paths)
    monkeypatch.setattr(os, 'replace', fail_at_the_fifth)
    assert run(source, out, '--scale', '2') == status
    assert message in capsys.readouterr().err
    assert not list(out.rglob('*.part'))
    monkeypatch.undo()
    assert run(source, out, '--scale', '2') == 0
    assert run(source, out.with_name('straight'), '--scale', '2') == 0
    assert tree(out) == tree(out.with_name('straight'))


def test_killed_with_its_workers_and_started_again(source, out):
    for index in range(3, 30):
        (source / f'{index}.png').write_bytes(encode(picture(200, 240, index)))
    options = ['--scale', '2', '4', '--sub-images', '64', '--step', '64']
    child = Forked(udl, 'prepare', source, '--out', out, '--workers', '2', *options, cwd=source.parent)
    deadline = time.monotonic() + 300  # processes start slowly on a busy machine
    while len(list(out.glob('GTmod2/*.png'))) < 4:
        assert child.process.is_alive(), child.stderr
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.process.kill()
    child.wait()
    count = -1
    while count != len(tree(out)):  # the workers notice and end
        assert time.monotonic() < deadline
        count = len(tree(out))
        time.sleep(1)
    (out / 'GTmod2' / '.0123456789abcdef.part').write_bytes(b'what a killed run leaves')
    assert 0 < len(list((out / 'GTmod2').glob('*.png'))) < 30
    assert run(source, out, *options) == 0
    assert run(source, out.with_name('straight'), *options) == 0
    assert tree(out) == tree(out.with_name('straight'))


def test_one_process_at_a_time(source, out, monkeypatch, capsys):
    """Two that ran at once removed each other's unfinished files, and ended with "No such file or directory"."""
    with locked(out):
        held = tree(out)
        assert run(source, out, '--scale', '2') == 2
        assert f'{out}: is being prepared by process {os.getpid()} on ' in capsys.readouterr().err
        assert tree(out) == held

    check = prepare_module._place_problems

    def after_another(*args):
        monkeypatch.undo()
        assert run(source, out, '--scale', '3') == 0
        return check(*args)

    monkeypatch.setattr(prepare_module, '_place_problems', after_another)
    assert run(source, out, '--scale', '2') == 2
    assert 'another process has prepared images there meanwhile; run again' in capsys.readouterr().err
    assert run(source, out, '--scale', '2') == 0
    assert run(source, out.with_name('straight'), '--scale', '3', '2') == 0
    assert tree(out) == tree(out.with_name('straight'))


def test_manifest_names_no_place(source, out):
    assert run(source, out, '--scale', '2') == 0
    assert str(source.parent) not in (out / 'prepare.json').read_text()
    assert json.loads((out / 'prepare.json').read_text())['images']['0.png']['height'] == 101


@pytest.mark.parametrize('wrong', [
    lambda known: known.pop('images'), lambda known: known.pop('sub_images'), lambda known: known.update(sub_images=[]),
    lambda known: known.update(folders=[None]), lambda known: known['images'].update({'0.png': {}}),
    lambda known: known['images']['1.png'].update(height='101')])
def test_a_record_that_says_too_little_is_refused(source, out, capsys, wrong):
    assert run(source, out, '--scale', '2') == 0
    known = json.loads((out / 'prepare.json').read_text())
    wrong(known)
    (out / 'prepare.json').write_text(json.dumps(known))
    before = tree(out)
    assert run(source, out, '--scale', '2', '--sub-images', '48') == 2
    assert 'prepare.json: is not a record that this version of udl prepare wrote' in capsys.readouterr().err
    assert tree(out) == before


def test_workers_keep_the_order_and_pass_errors_on():
    with Workers(1) as workers:
        assert workers.map(divmod, [(7, 2), (9, 4)], 'test') == [(3, 1), (2, 1)]
        with pytest.raises(ZeroDivisionError):
            workers.map(divmod, [(1, 0)], 'test')
    assert PreparationError(['x']).problems == ('x',)
