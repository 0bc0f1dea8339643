"""Cached uncertainty: builds that stop and go on, and caches that are refused."""
# ruff: noqa: F811 - fixtures that come from cached_uncertainty
import json
import os
import random
import re
import shutil
import time

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
from cached_uncertainty import KEY, log_scale, options, prepared, ready  # noqa: F401
from forked import Forked, command_line, forked

from udl_basicsr.data import uncertainty_cache
from udl_basicsr.data.loader import SeededDataset, build_dataset
from udl_basicsr.data.uncertainty_cache import CacheError, dequantise, fingerprint, prepare
from udl_basicsr.options.parse import OptionError, parse_options
from udl_basicsr.utils import exits
from udl_basicsr.utils.checkpoints import save_atomic

# --------------------------------------------------------------------------------------------------------- interruption

def test_a_build_that_was_interrupted_goes_on(ready, monkeypatch):
    computed = []
    write = uncertainty_cache.UncertaintyCache._write

    def counted(self, name, s):
        if len(computed) == 4 and not resumed:
            raise KeyboardInterrupt
        computed.append(name)
        return write(self, name, s)

    monkeypatch.setattr(uncertainty_cache.UncertaintyCache, '_write', counted)
    resumed = False
    with pytest.raises(KeyboardInterrupt):
        prepared(ready)
    assert not (ready.cache / 'manifest.json').exists()
    with open(ready.cache / 'part_0.jsonl', 'a') as file:
        file.write('{"name": "4.png", "si')  # killed in the middle of a line
    first, second, third, _ = computed[:4]
    (ready.cache / f'{first}.npy').unlink()
    (ready.cache / f'{second}.npy').write_bytes(b'cut off')
    image = cv2.imread(str(ready.lq / third))
    cv2.imwrite(str(ready.lq / third), 255 - image)

    resumed, computed = True, []
    dataset = prepared(ready)
    assert sorted(computed) == sorted([first, second, third, '4.png', '5.png'])
    assert not list(ready.cache.glob('part_*'))
    assert not list(ready.cache.glob('.*'))
    for name in dataset.cache.maps:
        entry = dataset.cache.maps[name]
        s = dequantise(dataset.cache.levels(name), entry['low'], entry['high'])
        np.testing.assert_allclose(s, log_scale(ready, ready.lq / name), atol=3e-4)


def build_slowly(ready):
    write = uncertainty_cache.UncertaintyCache._write

    def late(self, name, s):
        time.sleep(0.3)
        return write(self, name, s)

    uncertainty_cache.UncertaintyCache._write = late
    prepared(ready, 'val:tile:size=8', 'val:tile:overlap=0')


def test_of_two_that_start_at_once_one_builds_and_the_other_waits(ready, monkeypatch, caplog):
    """Both built, and where their maps differed, as in tiles, a finished cache had maps that were not its own."""
    child = Forked(build_slowly, ready, cwd=ready.root)
    while not list(ready.cache.glob('part_*')):
        assert child.process.is_alive(), child.stderr
        time.sleep(0.01)
    monkeypatch.setattr(uncertainty_cache.UncertaintyCache, 'build', None)
    cache = prepared(ready).cache
    assert f'is being computed by process {child.process.pid} on ' in caplog.text
    assert child.wait() == 0, child.stderr
    assert all(cache.levels(name).any() for name in cache.maps)
    assert not list(ready.cache.glob('.*'))


def test_a_lock_that_was_left_is_no_file_of_somebody_else(ready):
    ready.cache.mkdir()
    (ready.cache / '.lock').write_text('process 1 on another machine')
    assert options(ready)


def test_an_unfinished_build_of_other_weights_is_refused(ready):
    ready.cache.mkdir()
    (ready.cache / 'part_3.jsonl').write_text(json.dumps({'made_by': {'weights': 'abc'}, 'name': '0.png'}) + '\n')
    with pytest.raises(CacheError, match='weights: abc there, '):
        prepared(ready)


def cache_of_a_rank(root, rank):
    dist.init_process_group('gloo', init_method=f'file://{root}/store', rank=rank, world_size=2)
    for folder in ('s', 's', 'bad'):
        opt = parse_options(f'{root}/udl.yml', root_path=str(root), is_train=True, rank=rank, world_size=2, dist=True,
                            force_yml=[f'{KEY}={root}/{folder}'], num_gpu_available=0).opt
        if folder == 'bad' and rank == 1:
            uncertainty_cache.quantise = lambda s: (_ for _ in ()).throw(CacheError('rank 1 cannot'))
        dataset = build_dataset(opt['datasets']['train'])
        try:
            print('maps', len(prepare(dataset, opt, torch.device('cpu')).cache.maps))
        except CacheError as error:
            print('error', error)


def test_two_processes_share_the_work_and_each_others_errors(ready):
    for child in [Forked(cache_of_a_rank, ready.root, rank, cwd=ready.root) for rank in (0, 1)]:
        child.wait()
        assert child.stdout.splitlines() == ['maps 6', 'maps 6', 'error rank 1 cannot'], child.stderr
    alone = prepared(ready, f'{KEY}={ready.root}/alone').cache.maps
    assert json.loads((ready.cache / 'manifest.json').read_text())['maps'] == alone
    for name in alone:
        assert (ready.cache / f'{name}.npy').read_bytes() == (ready.root / f'alone/{name}.npy').read_bytes()
    assert not (ready.root / 'bad/manifest.json').exists()


# ------------------------------------------------------------------------------------------------------------- refusals

def refused(ready, *needles, force=()):
    """The message holds all that is named, the folder and a remedy; the cache is left as it is."""
    before = {p: p.read_bytes() for p in ready.cache.iterdir() if p.is_file()}
    with pytest.raises(CacheError) as error:
        prepared(ready, *force)
    message = str(error.value)
    for needle in (*needles, str(ready.cache), uncertainty_cache.REMEDY):
        assert needle in message, message
    assert {p: p.read_bytes() for p in ready.cache.iterdir() if p.is_file()} == before


def test_other_weights_are_refused(ready):
    prepared(ready)
    state = ready.net_u.state_dict()
    was = fingerprint(ready.net_u)
    state['head.body.0.bias' if 'head.body.0.bias' in state else list(state)[-1]].view(-1)[0] += 1e-3
    save_atomic({'params': state}, ready.root / 'experiments/esu/models/net_u_latest.pth')
    refused(ready, f'weights: {was} there, {fingerprint(ready.net_u)} here')
    # auto gives them a folder of their own
    one = prepared(ready, f'{KEY}=auto').cache.folder
    assert one.parent == ready.lq.parent
    assert one.name.startswith('lq_uncertainty_')


def test_another_network_or_scale_is_refused(ready):
    dataset = prepared(ready)
    path = ready.cache / 'manifest.json'
    manifest = json.loads(path.read_text())
    assert manifest['made_by'] == dataset.cache.made_by
    assert manifest['made_by']['scale'] == 2
    for key, value in (('scale', 4), ('network', {'type': 'UncertaintyNet'}), ('input', {})):
        path.write_text(json.dumps({**manifest, 'made_by': {**manifest['made_by'], key: value}}))
        refused(ready, f'{key}: {value} there, ')


def test_changed_added_and_removed_images_are_refused(ready):
    prepared(ready)
    kept = (ready.lq / '2.png').read_bytes()
    cv2.imwrite(str(ready.lq / '2.png'), 255 - cv2.imread(str(ready.lq / '2.png')))
    refused(ready, 'changed since: 2.png')
    (ready.lq / '2.png').write_bytes(kept)
    prepared(ready)  # the date of the file is another, its content the same

    gt = ready.lq.parent / 'gt'
    for folder in (ready.lq, gt):
        shutil.copy(folder / '0.png', folder / '9.png')
    refused(ready, 'not in the cache: 9.png')
    for folder in (ready.lq, gt):
        (folder / '9.png').unlink()
        (folder / '5.png').unlink()
    refused(ready, 'in the cache alone: 5.png')


def test_the_same_images_elsewhere_are_the_same(ready):
    prepared(ready)
    for kind in ('gt', 'lq'):
        shutil.copytree(ready.lq.parent / kind, ready.root / f'moved/{kind}', copy_function=shutil.copyfile)
    shutil.move(ready.cache, ready.root / 'moved/s')
    before = (ready.root / 'moved/s/0.png.npy').stat().st_mtime_ns
    prepared(ready, f'{KEY}={ready.root}/moved/s', *(f'datasets:train:dataroot_{k}={ready.root}/moved/{k}'
                                                     for k in ('gt', 'lq')))
    assert (ready.root / 'moved/s/0.png.npy').stat().st_mtime_ns == before
    assert not ready.cache.exists()


def test_broken_files_are_refused(ready):
    dataset = prepared(ready)
    path, manifest = ready.cache / '3.png.npy', ready.cache / 'manifest.json'
    for content in (path.read_bytes()[:-1], b'', None):
        path.write_bytes(content) if content is not None else path.unlink()
        refused(ready, f'{path}: missing or cut off.')
        with pytest.raises(CacheError, match=f'{path}: missing or cut off .*delete this one'):
            dataset[3]  # broken while training goes on
    for text in ('{"made_by": {}', '[]', '{"made_by": {}, "maps": {"0.png": {}}}', '{"made_by": {}, "maps": {"0": 1}}'):
        manifest.write_text(text)
        refused(ready, f'{manifest}: is no manifest')
    shutil.rmtree(ready.cache)
    prepared(ready)  # as the messages said


def test_changed_maps_are_refused(ready):
    """Of the right size, and as old as they were: their bytes tell."""
    prepared(ready)
    path, manifest = ready.cache / '3.png.npy', ready.cache / 'manifest.json'
    whole, entries, time = path.read_bytes(), manifest.read_text(), path.stat().st_mtime_ns
    for at in (0, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
        os.utime(path, ns=(time, time))
        dataset = prepared(ready)
        dataset[2]
        with pytest.raises(CacheError, match=f'{path}: its bytes, .* have changed since .*delete this one'):
            dataset[3]
    path.write_bytes(whole)
    prepared(ready)[3]
    known = json.loads(entries)
    known['maps']['3.png']['low'] += 1e-3
    manifest.write_text(json.dumps(known))
    with pytest.raises(CacheError, match=r'or its entry in .* have changed'):
        prepared(ready)[3]


def test_caches_without_checksums_are_read_with_a_warning(ready, caplog):
    dataset = prepared(ready)
    random.seed(0)
    sample = dataset[3]['log_scale']
    manifest = ready.cache / 'manifest.json'
    known = json.loads(manifest.read_text())
    for entry in known['maps'].values():
        del entry['crc']
    manifest.write_text(json.dumps(known))
    with caplog.at_level('WARNING'):
        old = prepared(ready)
    assert '6 maps of this uncertainty cache were made without a checksum' in caplog.text
    random.seed(0)
    assert torch.equal(old[3]['log_scale'], sample)
    for key, value in (('bytes', '7'), ('size', [48, 56]), ('size', [48, 0, 3]), ('low', float('nan')), ('crc', 'x'),
                       ('more', 1)):
        manifest.write_text(json.dumps({**known, 'maps': {**known['maps'], '0.png': {**known['maps']['0.png'],
                                                                                     key: value}}}))
        refused(ready, f'0.png: {key} missing or wrong')


def test_a_worker_says_so_in_one_line(ready):
    prepared(ready)
    for path in ready.cache.glob('*.npy'):
        path.write_bytes(path.read_bytes()[:-1] + b'x')
    done = forked(command_line, ['-opt', 'udl.yml', '--force_yml', f'{KEY}={ready.cache}',
                                 'datasets:train:num_worker_per_gpu=1'], cwd=ready.root)
    assert done.returncode == 1
    said = done.stderr
    last = said.strip().splitlines()[-1]
    assert re.fullmatch(rf'{ready.cache}/\d\.png\.npy: its bytes, .* computed anew', last)
    assert 'Traceback' not in said.rpartition('CacheError')[0].rpartition('\n')[0]


def test_a_broken_map_is_no_broken_image(ready):
    """What leaves out broken images must not leave out those whose map is broken."""
    opt = options(ready, 'datasets:train:skip_broken=true')
    dataset = SeededDataset(prepare(build_dataset(opt['datasets']['train']), opt, torch.device('cpu')), 1)
    (ready.cache / '2.png.npy').unlink()
    with pytest.raises(CacheError, match=r's/2\.png\.npy: missing'):
        dataset[0, 2]


def test_a_broken_image_is_named(ready):
    (ready.lq / '4.png').write_bytes((ready.lq / '4.png').read_bytes()[:60])
    opt = ready.parse('udl', f'{KEY}={ready.cache}', check_files=False).opt
    with pytest.raises(CacheError, match=r'lq/4\.png or its partner: cannot be read .*Mend or remove'):
        prepare(build_dataset(opt['datasets']['train']), opt, torch.device('cpu'))
    assert len(list(ready.cache.glob('*.npy'))) == 4  # what came before is kept


def test_a_network_that_diverged_makes_no_cache(ready):
    state = ready.net_u.state_dict()
    state[list(state)[-1]].fill_(float('nan'))
    save_atomic({'params': state}, ready.root / 'experiments/esu/models/net_u_latest.pth')
    with pytest.raises(CacheError, match=r'0\.png: .* NaN or infinity .*Take the weights of an earlier'):
        prepared(ready)
    assert not (ready.cache / 'manifest.json').exists()


def test_folders_that_cannot_be_used_are_refused_before_anything_is_made(ready, monkeypatch):
    (ready.root / 'file').write_text('')
    (ready.root / 'mine').mkdir()
    (ready.root / 'mine/photo.png').write_text('')
    before = sorted(ready.root.rglob('*'))
    for folder, message in (('file', 'is a file; expected a folder'), ('file/s', 'file is a file, expected'),
                            ('mine', 'is not empty and no uncertainty cache')):
        with pytest.raises(OptionError, match=f'datasets.train.uncertainty_cache: {ready.root}/{folder} .*{message}'):
            ready.parse('udl', f'{KEY}={ready.root}/{folder}')
    assert sorted(ready.root.rglob('*')) == before

    def full(path, data):
        raise OSError(28, 'No space left on device', str(path))

    monkeypatch.setattr(uncertainty_cache, 'write_atomically', full)
    with pytest.raises(CacheError) as refused:
        prepared(ready)
    refused.match(r's/0\.png\.npy: cannot be written \(No space left on device\)\. Free some')
    assert exits.status_of(refused.value) == 1


@pytest.mark.parametrize(('stage', 'force', 'message'), [
    ('esu', f'{KEY}=auto', 'not used in stage esu'),
    ('udl', 'datasets:val:uncertainty_cache=auto', 'only the training set has it'),
    ('udl', f'{KEY}=3', 'expected text, got'),
    ('udl', 'datasets:train:uncertainty_cach=auto', "did you mean 'uncertainty_cache'"),
])
def test_the_key_is_checked(ready, stage, force, message):
    with pytest.raises(OptionError, match=message):
        ready.parse(stage, force)
