"""Hostile option files, checkpoints, images and names: nothing of them runs, nothing is written where it should not be.

docs/SECURITY.md has the list with the answers. Every attack that could run code would make the file ``owned``.
"""
# ruff: noqa: F811 - fixtures that come from option_cases
import io
import json
import os
import pickle
import struct
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from option_cases import parse, train_opt  # noqa: F401
from PIL import Image
from test_image_headers import png_header

from udl_basicsr.data.prepare import Job, PreparationError, prepare
from udl_basicsr.data.workers import Workers
from udl_basicsr.options.pairs import why_outside
from udl_basicsr.options.parse import OptionError, apply_force_yml, load_yaml
from udl_basicsr.training import launch, loop
from udl_basicsr.utils.checkpoints import CheckpointError, read_checkpoint, unpacks

TOUCH = 'touch owned'


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, (TOUCH, )


@pytest.fixture(autouse=True)
def canary(tmp_path, monkeypatch):
    """Everything happens in ``tmp_path/work``; whatever appears outside of it, or is called owned, has escaped."""
    (tmp_path / 'work').mkdir()
    monkeypatch.chdir(tmp_path / 'work')
    yield
    assert not list(tmp_path.rglob('owned*'))
    assert not Path('/owned').exists()


@pytest.fixture
def refused(parse, tmp_path):
    """Parses, expects a refusal, and that nothing was made or changed by it; the message."""
    def attempt(opt: dict, *force: str, **kwargs) -> str:
        (tmp_path / 'opt.yml').touch()
        before = listing(tmp_path)
        with pytest.raises(OptionError) as error:
            parse(opt, force, **kwargs)
        assert listing(tmp_path) == before
        return str(error.value)
    return attempt


def listing(root: Path) -> set[str]:
    return {str(p) for p in root.rglob('*')}


def bounded(action, seconds: float = 5, megabytes: float = 64):
    """Acts, and asserts that it took neither much of the processor's time, busy or not, nor much memory."""
    tracemalloc.start()
    began = time.process_time()
    try:
        return action()
    finally:
        took, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        assert took < seconds, f'{took:.1f} s'
        assert peak < megabytes, f'{peak:.0f} MiB'


# --------------------------------------------------------------------------------------------------------------- YAML
@pytest.mark.parametrize('tag', [
    f'!!python/object/apply:os.system ["{TOUCH}"]', f'!!python/object/new:os.system ["{TOUCH}"]',
    '!!python/object/apply:subprocess.Popen [["touch", "owned"]]', '!!python/name:os.system',
    '!!python/object/apply:eval ["open(\'owned\', \'w\')"]', '!!python/module:antigravity', '!!python/tuple [1]',
    '!python/object/apply:os.system ["x"]', '!<tag:yaml.org,2002:python/object/apply:os.system> ["touch owned"]',
    '!!binary aGk=', '!!set {a}', '!!omap [a: 1]', '!!timestamp 2020-01-01', '!include /etc/passwd', '!ENV ${HOME}'])
def test_tags(tmp_path, tag):
    file = tmp_path / 'a.yml'
    for text in (f'name: {tag}\n', f'a:\n- 1\n- b: {tag}\n', f'{tag}\n', f'? {tag}\n: 1\n', f'a: &x {tag}\nb: *x\n'):
        file.write_text(text)
        with pytest.raises(OptionError, match=r'is not allowed|a key must be text'):
            load_yaml(str(file))
    with pytest.raises(OptionError):
        apply_force_yml({}, [f'name={tag}'])


def laughs(levels: int, row: str) -> str:
    rows = (f'l{i}: &l{i} {row.format(*[f"*l{i - 1}"] * 9, i)}\n' for i in range(1, levels))
    return 'l0: &l0 {a0: 1}\n' + ''.join(rows)


def laughing_bases(folder: Path) -> str:
    for i in range(40):
        (folder / f'b{i}.yml').write_text(f'_base_: [b{i + 1}.yml, b{i + 1}.yml]\n')
    (folder / 'b40.yml').write_text('a: 1\n')
    return '_base_: b0.yml\n'


@pytest.mark.parametrize(('make', 'said'), [
    (lambda _: laughs(40, '[{}, {}, {}, {}, {}, {}, {}, {}, {}]'), 'once its aliases are expanded'),
    (lambda _: ''.join(f'a{i}: "' + f'${{a{i + 1}}}' * 9 + '"\n' for i in range(30)) + 'a30: laugh\n',
     'once they are replaced'),
    (lambda _: ''.join(f'a{i}: ${{a{i + 1}}}\n' for i in range(2000)) + 'a2000: 1\n', 'goes on through more than'),
    (laughing_bases, 'more than 100 files'),
    (lambda _: 'a: &a [*a]\n', 'contains itself'),
    (lambda _: 'a: &a {b: *a}\n', 'contains itself'),
    (lambda _: 'a: ' + '[' * 60_000, 'within one another'),
    (lambda _: 'a: ' + '{a: ' * 15_000, 'within one another'),
    (lambda _: ''.join(' ' * i + 'a:\n' for i in range(300)), 'within one another'),
    (lambda _: 'a: ' + '1' * 50_000, 'is no int'),
    (lambda _: 'a: 1' + '0' * 400, 'is beyond 64 bits'),
    (lambda _: 'a: ' + '"' + 'x' * 2**19 + '"', 'larger than'),
    (lambda _: '? ' * 30_000, 'within one another|a key must be text'),
    (lambda _: 'a: ' + '- ' * 30_000, 'not allowed here|within one another'),
])
def test_bombs_of_yaml(tmp_path, make, said):
    (tmp_path / 'a.yml').write_text(make(tmp_path))

    def read():
        with pytest.raises(OptionError, match=said):
            load_yaml(str(tmp_path / 'a.yml'))

    bounded(read, seconds=10)


def test_merges_do_not_multiply(tmp_path):
    """Nine merges of nine merges: refused, or, since PyYAML 6.0.4, each key merged once."""
    (tmp_path / 'a.yml').write_text(laughs(40, '{{<<: [{}, {}, {}, {}, {}, {}, {}, {}, {}], a{}: 1}}'))

    said = ''

    def read():
        nonlocal said
        try:
            assert set(load_yaml(str(tmp_path / 'a.yml'))['l39']) == {f'a{i}' for i in range(40)}
        except OptionError as error:
            said = str(error)

    bounded(read, seconds=10)
    assert not said or 'once merged' in said


@pytest.mark.parametrize('device', ['/dev/zero', '/dev/stdin', 'pipe'])
def test_devices_and_pipes_are_no_option_files(tmp_path, device):
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'a.yml').write_text(f'_base_: {device}\n')
    if device == '/dev/stdin' and not sys.stdin.isatty() and not Path('/dev/stdin').is_char_device():
        pytest.skip('stdin is a file here')
    with pytest.raises(OptionError, match='it is a pipe or a device'):
        load_yaml(str(tmp_path / 'a.yml'))


def test_text_from_files_moves_no_cursor(tmp_path):
    """What an error message quotes cannot clear the screen or fake a line of the log."""
    for text in ('a: "\\e[2J"', 'a: "\\x9b"', 'a: "\\0"', '"a\\nb: 1": 1\n"a\\nb: 1": 1', '"\\u202e": 1\n"\\u202e": 2'):
        (tmp_path / 'a.yml').write_text(text)
        with pytest.raises(OptionError) as error:
            load_yaml(str(tmp_path / 'a.yml'))
        assert all(c.isprintable() for c in str(error.value))


# ---------------------------------------------------------------------------------------------------------- --force_yml
@pytest.mark.parametrize('entry', [
    f"name=__import__('os').system('{TOUCH}')", f"train:total_iter=__import__('os').system('{TOUCH}')",
    f"datasets:train:gt_size=[__import__('os').system('{TOUCH}')]", f"name']=__import__('os').system('{TOUCH}');x['a=1",
    f"x'] = __import__('os').system('{TOUCH}') #:b=1", '__class__:__init__=1', f'name=$({TOUCH})', f'name=`{TOUCH}`',
    f'name=!!python/object/apply:os.system ["{TOUCH}"]', 'datasets:train:filename_tmpl={0.__class__.__globals__}'])
def test_force_yml(parse, train_opt, entry):
    """BasicSR puts keys through exec and lists through eval (basicsr/utils/options.py)."""
    try:
        parsed = parse(train_opt, [entry])
    except OptionError:
        return
    assert parsed.opt['name'] == entry.partition('=')[2]  # a strange name, and text


# ---------------------------------------------------------------------------------------------------------- checkpoints
def archive_with(pickled: bytes, compression=zipfile.ZIP_STORED, record: bytes = b'') -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, 'w', compression) as file:
        file.writestr('archive/data.pkl', pickled)
        file.writestr('archive/version', '3\n')
        file.writestr('archive/data/0', record)
    return data.getvalue()


EVIL = pickle.dumps({'params': Evil()})
OLD_FORMAT = (0x1950a86a20f9469cfc6c, 1001, {}, {'params': Evil()}, [])
CHECKPOINTS = {
    'pickle': EVIL, 'archive': archive_with(EVIL), 'protocol 5': pickle.dumps(Evil(), 5),
    'old format': b''.join(pickle.dumps(part, 2) for part in OLD_FORMAT),
    'global': b'cos\nsystem\n(S"touch owned"\ntR.', 'eval': b'cbuiltins\neval\n(S"open(\'owned\', \'w\')"\ntR.',
    'reference to itself': b'\x80\x02]q\x00h\x00a.', 'no memory': b'\x80\x02}X\xff\xff\xff\x7fparams'}


@pytest.mark.parametrize('content', CHECKPOINTS.values(), ids=list(CHECKPOINTS))
@pytest.mark.parametrize('name', ['a.pth', 'a.state', 'a.safetensors'])
def test_pickled_checkpoints(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize('key', ['path:pretrain_network_g', 'path:resume_state'])
def test_a_run_that_is_given_a_pickle(project, key):
    evil = project.root / '8.state'
    evil.write_bytes(CHECKPOINTS['archive'])
    with pytest.raises(CheckpointError, match='never run'):
        loop.train(project.parse('plain', f'{key}={evil}'))
    assert not (project.root / 'experiments').exists()


def test_auto_resume_with_a_pickle(project):
    states = project.root / 'experiments' / 'plain' / 'training_states'
    states.mkdir(parents=True)
    (states / '4.state').write_bytes(CHECKPOINTS['archive'])
    with pytest.raises(CheckpointError):
        loop.train(project.parse('plain', auto_resume=True))


def test_networks_that_load_a_file_themselves(parse, train_opt, tmp_path, monkeypatch):
    """basicsr/archs/spynet_arch.py:40 hands its argument to torch.load."""
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')  # as torch before 2.6 does by itself
    (tmp_path / 'evil.pth').write_bytes(CHECKPOINTS['archive'])
    with pytest.raises(OptionError, match='network_g: SpyNet cannot be built'):
        parse(train_opt, [f'network_g={{type: SpyNet, load_path: {tmp_path / "evil.pth"}}}'])


def test_compressed_checkpoints(refused, train_opt, tmp_path):
    bomb = tmp_path / 'bomb.pth'
    bomb.write_bytes(archive_with(pickle.dumps({}), zipfile.ZIP_DEFLATED, bytes(2**26)))
    assert bomb.stat().st_size < 2**18
    text = bounded(lambda: refused(train_opt, f'path:pretrain_network_g={bomb}'))
    assert 'path.pretrain_network_g' in text
    assert 'is compressed, as torch writes none' in text
    torch.save({'params': {'a': torch.zeros(1000)}}, tmp_path / 'fine.pth')
    assert not unpacks(tmp_path / 'fine.pth')


# --------------------------------------------------------------------------------------------------------------- images
def test_decompression_bombs_at_the_start(refused, train_opt, tmp_path):
    (tmp_path / 'gt' / '1.png').write_bytes(png_header(60000, 60000))
    text = bounded(lambda: refused(train_opt))
    assert 'says it has 60000x60000 pixels, more than the' in text


def test_decompression_bombs_in_preparation(tmp_path):
    source = tmp_path / 'source'
    source.mkdir()
    (source / 'bomb.png').write_bytes(png_header(60000, 60000))
    Image.new('RGB', (8, 8)).save(tmp_path / 'small.bmp')
    data = (tmp_path / 'small.bmp').read_bytes()
    (source / 'bomb2.bmp').write_bytes(data[:18] + struct.pack('<ii', 60000, 60000) + data[26:])
    with pytest.raises(PreparationError) as error, Workers(1) as workers:
        bounded(lambda: prepare(Job(source, tmp_path / 'out'), workers))
    assert len(error.value.problems) == 2
    assert all('a side, that are read' in problem for problem in error.value.problems)
    assert not (tmp_path / 'out').exists()


# ---------------------------------------------------------------------------------------------------------------- names
NAMES = ['..', '.', '../escape', 'a/../../escape', '/tmp/escape', 'a/b', 'a\\b', 'C:\\x', '~', '~root', '-rf', 'a\0b',
         'a\nb', 'a\tb', '\x1b[2J', '\u202etxt.gpj', '\u200b', 'x' * 300, 'é' * 100, 'nul', 'CON', 'com1.txt', 'a.',
         ' a', 'a ', '', ' ', 'a*', 'a?', '<a>', 'a|b', '"a"', '$(touch owned)/x']


@pytest.mark.parametrize('name', NAMES, ids=[ascii(n)[:20] for n in NAMES])
def test_names_of_folders(refused, train_opt, name):
    for key in ('name', 'datasets.val.name', 'val.suffix'):
        opt = json.loads(json.dumps(train_opt))
        block, last = (opt, key) if '.' not in key else (opt[key.split('.')[0]], key.split('.')[-1])
        block = block['val'] if key.startswith('datasets') else block
        block[last] = name
        assert key in refused(opt) or any(ord(c) < 32 for c in name)


@pytest.mark.parametrize('force', [
    'path:models=/tmp/escape', 'path:log=../escape', 'path:visualization=..', 'path:training_states=x',
    'path:results_root=/', 'path:experiments_root=/', 'path:anything=../escape', 'root_path=/tmp', 'is_train=false',
    'path:root=..', 'rank=1',
    'logger:wandb={project: a, resume_id: ../../escape}', 'datasets:train:filename_tmpl=../{}',
    'datasets:train:filename_tmpl=/etc/{}', 'datasets:train:filename_tmpl="{0.__class__}"',
    'datasets:train:filename_tmpl="{:>99999999999}"',
    'datasets:train:io_backend={type: lmdb, readonly: false, lock: true}'])
def test_keys_that_would_write_elsewhere(refused, train_opt, force):
    """BasicSR makes a folder of any key under path (basicsr/utils/misc.py:46)."""
    assert force.replace(':', '.').split('=')[0].split('.')[0] in bounded(lambda: refused(train_opt, force))


def test_why_outside():
    for name in ('a.png', 'a b.png', 'sub/a.png', 'a..b.png', 'é.png', '0001_s001.png', '(480,480,3)', 'a...png'):
        assert not why_outside(name), name
    for name in ('../a.png', '/etc/a.png', 'a/../../b.png', '..', 'a\\..\\..\\b.png', '\\\\host\\a.png', 'C:\\a.png',
                 '.hidden', 'a/.b', 'a\nb.png', 'a\0b.png', '...png'):
        assert why_outside(name), name


@pytest.mark.parametrize('name', ['../gt/0.png', '/etc/passwd', 'a/../../gt/0.png', '..\\0.png', '.0.png'])
def test_names_in_lists_of_images(refused, train_opt, tmp_path, name):
    meta = tmp_path / 'meta.txt'
    meta.write_text(f'0.png (48,64,3)\n{name} (48,64,3)\n')
    assert 'meta_info_file: line 2: ' in refused(train_opt, f'datasets:train:meta_info_file={meta}')
    folder = tmp_path / 'a.lmdb'
    folder.mkdir()
    (folder / 'meta_info.txt').write_text(f'{name} (48,64,3) 1\n')
    text = refused(train_opt, f'datasets:train:dataroot_gt={folder}', f'datasets:train:dataroot_lq={folder}',
                   'datasets:train:io_backend={type: lmdb}')
    assert 'meta_info.txt: line 1: ' in text


@pytest.mark.parametrize('name', [b'a\nb.png', b'\xff.png', b'\x1b[2J.png', '\u202egnp.a.png'.encode()])
def test_names_of_images(refused, train_opt, tmp_path, name):
    for folder, size in ((b'gt', (64, 48)), (b'lq', (32, 24))):
        data = io.BytesIO()
        Image.new('RGB', size).save(data, 'png')
        with open(os.path.join(os.fsencode(tmp_path), folder, name), 'wb') as file:
            file.write(data.getvalue())
    assert 'dataroot_gt: has files whose names have characters that cannot be seen' in refused(train_opt)


def test_results_stay_in_their_folder(project, tmp_path):
    """Image names that a shell or a path would read otherwise: the results lie in the run's folder."""
    pairs = project.root / 'strange'
    names = ['$(touch owned)', '; touch owned;', '~', '-rf', '%s{}', "a'b", 'a..', 'a %d', '`touch owned`', 'C:a']
    for kind, size in (('gt', 32), ('lq', 16)):
        (pairs / kind).mkdir(parents=True)
        for name in names:
            cv2.imwrite(str(pairs / kind / f'{name}.png'), np.zeros((size, size, 3), np.uint8))
    torch.save({'params': project.model('plain').net_g.state_dict()}, project.root / 'net.pth')
    opt = yaml.safe_load((project.root / '_base_.yml').read_text())
    opt['datasets'] = {'test': {**opt['datasets']['val'], **{f'dataroot_{kind}': str(pairs / kind)
                                                             for kind in ('gt', 'lq')}}}
    opt = {k: v for k, v in opt.items() if k not in ('train', 'logger', 'network_u')}
    opt['val'] = {'save_img': True, 'metrics': opt['val']['metrics']}
    (project.root / 'strange.yml').write_text(yaml.safe_dump(
        {**opt, 'name': 'strange', 'path': {'pretrain_network_g': str(project.root / 'net.pth')}}))
    before = listing(tmp_path)
    loop.test(project.parse('strange', is_train=False))
    made = listing(tmp_path) - before
    folder = project.root / 'results'
    assert all(path == str(folder) or path.startswith(f'{folder}/') for path in made)
    pictures = folder / 'strange' / 'visualization' / 'val'
    assert sorted(p.name for p in pictures.iterdir()) == sorted(f'{n}_strange.png' for n in names)


# ---------------------------------------------------------------------------------------------------- the whole program
def test_the_program_refuses(tmp_path, monkeypatch, capsys):
    """Through the command line: status 2, one message, no folder."""
    monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', raising=False)
    (tmp_path / 'a.yml').write_text(f'name: !!python/object/apply:os.system ["{TOUCH}"]\n')
    for arguments in (['-opt', str(tmp_path / 'a.yml')], ['-opt', str(tmp_path / 'none.yml')], ['-opt', '/dev/zero'],
                      ['-opt', str(tmp_path)]):
        monkeypatch.setattr(sys, 'argv', ['train.py', *arguments])
        assert launch.run(loop.train, is_train=True, root_path=tmp_path) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / 'experiments').exists()
