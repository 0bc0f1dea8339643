"""Cached uncertainty: the same patches, the maps of the frozen network cut with them, and no cache of other things."""
import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from conftest import Project, assert_same_weights, batch, status_of
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import normalize

from udl_basicsr import train as train_script
from udl_basicsr.cli import cache
from udl_basicsr.data import uncertainty_cache
from udl_basicsr.data.loader import SeededDataset, build_dataset, train_batches
from udl_basicsr.data.uncertainty_cache import CacheError, dequantise, fingerprint, prepare, quantise
from udl_basicsr.options.parse import OptionError
from udl_basicsr.training import stages
from udl_basicsr.utils.checkpoints import CheckpointError, save_atomic

ROOT = Path(__file__).resolve().parents[1]
KEY = 'datasets:train:uncertainty_cache'


@pytest.fixture
def ready(tmp_path, pairs):
    """A project with its own copy of the images and a (random) stage-1 network; the cache is to be in ``s``."""
    shutil.copytree(pairs, tmp_path / 'pairs')
    project = Project(tmp_path, tmp_path / 'pairs')
    options = project.parse('esu').flat
    torch.manual_seed(7)
    project.net_u = build_network({'backbone': options['network_g'], **options['network_u']}).eval()
    models = tmp_path / 'experiments/esu/models'
    models.mkdir(parents=True)
    save_atomic({'params': project.net_u.state_dict()}, models / 'net_u_latest.pth')
    save_atomic({'params': project.net_u.mean_network.state_dict()}, models / 'net_g_latest.pth')
    project.cache = tmp_path / 's'
    project.lq = tmp_path / 'pairs/train/lq'
    return project


def options(project, *force):
    return project.parse('udl', f'{KEY}={project.cache}', *force).opt


def prepared(project, *force):
    opt = options(project, *force)
    return prepare(build_dataset(opt['datasets']['train']), opt, torch.device('cpu'))


def log_scale(project, path) -> np.ndarray:
    """s of a whole image by the network alone, (H, W, C)."""
    lq = torch.from_numpy(cv2.imread(str(path))[..., ::-1].copy()).permute(2, 0, 1) / 255
    with torch.no_grad():
        return project.net_u.log_scale(lq[None])[0].permute(1, 2, 0).numpy()


# ---------------------------------------------------------------------------------------------------------- 16-bit maps


@pytest.mark.parametrize(('low', 'high'), [(-1, 5.5), (0.2, 0.2001), (-30, 40)])
def test_rounding_is_half_a_step_at_most(low, high):
    s = torch.rand(3, 40, 50, dtype=torch.float64) * (high - low) + low
    s[0, 0, 0], s[2, 5, 6] = low, high
    levels, given_low, given_high = quantise(s)
    assert (given_low, given_high) == (low, high)
    assert (levels.min(), levels.max()) == (0, 65535)
    exact = levels.astype(np.float64) * (high - low) / 65535 + low
    wanted = s.permute(1, 2, 0).numpy()
    assert np.abs(exact - wanted).max() <= (high - low) / 131070 * (1 + 1e-9)
    # in float32, which is what is trained with: beside its own rounding no more than that
    rounding = 2**-22 * max(abs(low), abs(high))
    assert np.abs(dequantise(levels, low, high) - wanted).max() <= (high - low) / 131070 + rounding
    assert np.abs(exact - wanted).max() > (high - low) / 131070 * 0.9  # the bound is no wider than need be


def test_a_constant_map_stays_what_it_is():
    levels, low, high = quantise(torch.full((1, 4, 5), 0.375))
    assert (dequantise(levels, low, high) == 0.375).all()


def test_the_fingerprint_sees_every_weight():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    before = fingerprint(net)
    assert fingerprint(net.to(memory_format=torch.channels_last)) == before
    for value in net.state_dict().values():
        kept = value.clone()
        value.view(-1)[-1:] += 1
        assert fingerprint(net) != before
        value.copy_(kept)
    assert fingerprint(net) == before


# -------------------------------------------------------------------------------------------------------------- patches


def turned(image: np.ndarray, hflip: bool, vflip: bool, rot90: bool) -> np.ndarray:
    image = image[:, ::-1] if hflip else image
    image = image[::-1] if vflip else image
    return image.transpose(1, 0, 2) if rot90 else image


def by_hand(whole: np.ndarray, scale: int, size: int, seed: int) -> np.ndarray:
    """Crop, flips and transposition as BasicSR draws them (transforms.py:63, 110)."""
    random.seed(seed)
    top = random.randint(0, whole.shape[0] // scale - size // scale) * scale
    left = random.randint(0, whole.shape[1] // scale - size // scale) * scale
    return turned(whole[top:top + size, left:left + size], *(random.random() < 0.5 for _ in range(3)))


def check_samples(project, dataset, plain, name_of, seeds=range(12)):
    states = set()
    for seed in seeds:
        index = seed % len(plain)
        random.seed(seed)
        wanted = plain[index]
        state = random.getstate()
        random.seed(seed)
        sample = dataset[index]
        assert random.getstate() == state  # the same random numbers are used up
        assert sample['lq_path'] == wanted['lq_path']
        assert torch.equal(sample['lq'], wanted['lq'])
        assert torch.equal(sample['gt'], wanted['gt'])

        whole = log_scale(project, project.lq / name_of(wanted['lq_path']))
        expected = by_hand(whole, 2, 32, seed)
        assert sample['log_scale'].shape == sample['gt'].shape
        assert sample['log_scale'].dtype == torch.float32
        np.testing.assert_allclose(sample['log_scale'].permute(1, 2, 0).numpy(), expected, rtol=0,
                                   atol=np.ptp(whole) / 131070 + 1e-6)
        # and the image as well, which proves that ``by_hand`` does what the data set does
        gt = cv2.imread(str(project.root / 'pairs/train/gt' / name_of(wanted['gt_path'])))[..., ::-1]
        np.testing.assert_allclose(by_hand(gt, 2, 32, seed) / 255, sample['gt'].permute(1, 2, 0).numpy(), atol=1e-6)
        random.seed(seed)
        random.randint(0, 8), random.randint(0, 12)
        states.add(tuple(random.random() < 0.5 for _ in range(3)))
    assert len(states) >= 5  # most of the 8 ways to turn have been seen


def test_patches_follow_the_images(ready):
    dataset = prepared(ready)
    check_samples(ready, dataset, build_dataset(options(ready)['datasets']['train']), lambda p: Path(p).name)
    # nor does reading turn what lies on the disk
    before = {p: p.read_bytes() for p in ready.cache.glob('*.npy')}
    assert len(before) == 6
    for index in range(6):
        dataset[index]
    assert {p: p.read_bytes() for p in before} == before


def test_a_list_of_images(ready):
    (ready.root / 'list.txt').write_text('4.png (48,56,3)\n1.png (48,56,3)\n1.png (48,56,3)\n')
    force = f'datasets:train:meta_info_file={ready.root}/list.txt'
    dataset = prepared(ready, force)
    plain = build_dataset(options(ready, force)['datasets']['train'])
    check_samples(ready, dataset, plain, lambda p: Path(p).name)
    assert sorted(p.name for p in ready.cache.iterdir()) == ['1.png.npy', '4.png.npy', 'manifest.json']


def test_images_in_lmdb(ready):
    for kind in ('gt', 'lq'):
        names = [f'{n}.png' for n in range(6)]
        with contextlib.redirect_stdout(None):
            make_lmdb_from_imgs(str(ready.root / f'pairs/train/{kind}'), str(ready.root / f'{kind}.lmdb'), names,
                                [n[:-4] for n in names])
    force = [f'datasets:train:dataroot_{k}={ready.root}/{k}.lmdb' for k in ('gt', 'lq')]
    force.append('datasets:train:io_backend:type=lmdb')
    plain = build_dataset(options(ready, *force)['datasets']['train'])
    samples = []
    for _ in range(2):  # made, then found
        dataset = prepared(ready, *force)
        random.seed(1)
        samples.append(dataset[3])
        del dataset
    random.seed(1)
    wanted = plain[3]
    for sample in samples:
        assert torch.equal(sample['gt'], wanted['gt'])
        np.testing.assert_allclose(sample['log_scale'].permute(1, 2, 0).numpy(),
                                   by_hand(log_scale(ready, ready.lq / '3.png'), 2, 32, 1), atol=3e-4)


def test_the_network_sees_what_it_sees_in_training(ready):
    """``mean`` and ``std`` of the data set go for the cached s as well, and a cache with others is refused."""
    force = ['datasets:train:mean=[0.4, 0.5, 0.6]', 'datasets:train:std=[0.5, 1.0, 2.0]']
    dataset = prepared(ready, *force)
    rgb = torch.from_numpy(cv2.imread(str(ready.lq / '0.png'))[..., ::-1].copy()).permute(2, 0, 1) / 255
    with torch.no_grad():
        s = ready.net_u.log_scale(normalize(rgb, [.4, .5, .6], [.5, 1., 2.])[None])[0].permute(1, 2, 0)
    entry = dataset.cache.maps['0.png']
    np.testing.assert_allclose(dequantise(dataset.cache.levels('0.png'), entry['low'], entry['high']), s, atol=3e-4)
    with pytest.raises(CacheError, match=r'input: .*0\.4.* there, '):
        prepared(ready)


def test_another_way_to_crop_is_noticed(ready):
    dataset = prepared(ready)

    class Restless(Dataset):
        def __getitem__(self, index):
            random.random()
            return plain[index]

    plain, dataset.dataset = dataset.dataset, Restless()
    with pytest.raises(CacheError, match='Restless draws other random numbers'):
        dataset[0]


# ------------------------------------------------------------------------------------------------------------- training


def test_cached_and_computed_step_agree(ready):
    """One step with s from the batch is the step that computes the same s; also in parts."""
    data = batch()
    for force in ((), ('train:accumulate=2',)):
        computed, cached = (ready.model('udl', 'train:optim_g={type: SGD, lr: 0.1}', *force) for _ in range(2))
        with torch.no_grad():
            s = ready.net_u.log_scale(data['lq'])
        for model, given in ((computed, data), (cached, {**data, 'log_scale': s})):
            model.feed_data(given)
            model.optimize_parameters(1)
        assert computed.get_current_log() == pytest.approx(cached.get_current_log(), abs=1e-6)
        assert_same_weights(computed.net_g.state_dict(), cached.net_g.state_dict(), rtol=0, atol=1e-7)
        # and it is the given s that counts
        cached.feed_data({**data, 'log_scale': torch.zeros_like(s)})
        cached.optimize_parameters(2)
        assert cached.get_current_log()['l_udl'] == 0


def test_both_stages_through_the_entry_point(project):
    cache = project.root / 's'
    stages.train(project.parse('udl', f'{KEY}={cache}'), 'the command')
    assert json.loads((cache / 'manifest.json').read_text())['maps'].keys() == {f'{n}.png' for n in range(6)}
    assert re.search(r'6 maps, .* rounded by at most \d\.\de-\d\d', project.log('udl'))
    straight = project.weights('udl')

    # it was used, not computed anew: a cache of zeros trains nothing
    before = {p: p.stat().st_mtime_ns for p in cache.iterdir()}
    stages.train(project.parse('udl', f'{KEY}={cache}', 'name=again'), '')
    assert_same_weights(project.weights('again'), straight)
    assert {p: p.stat().st_mtime_ns for p in cache.iterdir()} == before
    assert 'uncertainty of 6 images is there' in project.log('again')

    # resumed: bit for bit; and with loader processes
    models = project.root / 'experiments/udl/models'
    for path in (*models.glob('*_8.pth'), *models.glob('*latest*'), models.parent / 'training_states/8.state'):
        path.unlink()
    stages.train(project.parse('udl', f'{KEY}={cache}', 'datasets:train:num_worker_per_gpu=1', auto_resume=True), '')
    assert 'iterations 5 to 8' in project.log('udl')
    assert_same_weights(project.weights('udl'), straight)

    # and it is not far from what s per patch gives, though the borders differ
    stages.train(project.parse('udl', 'name=computed'), '')
    computed, start = project.weights('computed'), project.weights('esu')
    way = torch.cat([(straight[k] - start[k]).flatten() for k in start])
    other = torch.cat([(computed[k] - start[k]).flatten() for k in start])
    assert not torch.equal(way, other)
    assert torch.nn.functional.cosine_similarity(way, other, dim=0) > 0.9


def test_each_round_has_its_own(project):
    still = ('train:optim_g:lr=1e-4', 'train:total_iter=1', 'val=~')
    with pytest.raises(OptionError, match=r'each of the rounds has another .*use auto'):
        project.parse('udl', 'rounds=2', f'{KEY}={project.root}/s')
    local = Path(project.parse('udl').opt['datasets']['train']['dataroot_lq'])
    try:
        stages.train(project.parse('udl', 'rounds=2', f'{KEY}=auto', *still), '')
        made = list(local.parent.glob('lq_uncertainty_*'))
        assert len(made) == 2
        assert all((folder / 'manifest.json').exists() for folder in made)
    finally:
        for folder in local.parent.glob('lq_uncertainty_*'):
            shutil.rmtree(folder)


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


def test_an_unfinished_build_of_other_weights_is_refused(ready):
    ready.cache.mkdir()
    (ready.cache / 'part_3.jsonl').write_text(json.dumps({'made_by': {'weights': 'abc'}, 'name': '0.png'}) + '\n')
    with pytest.raises(CacheError, match='weights: abc there, '):
        prepared(ready)


_WORKER = """
import sys, torch, torch.distributed as dist
import udl_basicsr
from udl_basicsr import train as train_script
from udl_basicsr.data import uncertainty_cache
from udl_basicsr.data.loader import build_dataset
from udl_basicsr.options.parse import parse_options
file, root, rank = sys.argv[1:]
dist.init_process_group('gloo', init_method=f'file://{root}/store', rank=int(rank), world_size=2)
for folder in ('s', 's', 'bad'):
    opt = parse_options(file, root_path=root, is_train=True, rank=int(rank), world_size=2, dist=True,
                        force_yml=[f'datasets:train:uncertainty_cache={root}/{folder}'], num_gpu_available=0).opt
    if folder == 'bad' and rank == '1':
        uncertainty_cache.quantise = lambda s: (_ for _ in ()).throw(uncertainty_cache.CacheError('rank 1 cannot'))
    dataset = build_dataset(opt['datasets']['train'])
    try:
        print('maps', len(uncertainty_cache.prepare(dataset, opt, torch.device('cpu')).cache.maps))
    except uncertainty_cache.CacheError as error:
        print('error', error)
"""


def test_two_processes_share_the_work_and_each_others_errors(ready):
    processes = [subprocess.Popen([sys.executable, '-c', _WORKER, str(ready.root / 'udl.yml'), str(ready.root), rank],
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for rank in '01']
    for process in processes:
        out, errors = process.communicate(timeout=300)
        said = [line for line in out.splitlines() if line.startswith(('maps', 'error'))]
        assert said == ['maps 6', 'maps 6', 'error rank 1 cannot'], errors
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


def test_a_worker_says_so_in_one_line(ready, monkeypatch, capsys):
    prepared(ready)
    for path in ready.cache.glob('*.npy'):
        path.write_bytes(path.read_bytes()[:-1] + b'x')
    monkeypatch.setattr('sys.argv', ['train.py', '-opt', str(ready.root / 'udl.yml'), '--force_yml',
                                     f'{KEY}={ready.cache}', 'datasets:train:num_worker_per_gpu=1'])
    assert status_of(train_script.main, root_path=ready.root) == 1
    said = capsys.readouterr().err
    last = said.strip().splitlines()[-1]
    assert re.fullmatch(rf'CacheError: {ready.cache}/\d\.png\.npy: its bytes, .* computed anew', last)
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
    for folder, message in (('file', 'is a file; expected a folder'), ('file/s', 'is no folder that can be written'),
                            ('mine', 'is not empty and no uncertainty cache')):
        with pytest.raises(OptionError, match=f'datasets.train.uncertainty_cache: {ready.root}/{folder} .*{message}'):
            ready.parse('udl', f'{KEY}={ready.root}/{folder}')
    assert sorted(ready.root.rglob('*')) == before

    def full(path, data):
        raise OSError(28, 'No space left on device', str(path))

    monkeypatch.setattr(uncertainty_cache, 'write_atomically', full)
    with pytest.raises(CacheError, match=r's/0\.png\.npy: cannot be written \(No space left on device\)\. Free some'):
        prepared(ready)


@pytest.mark.parametrize(('stage', 'force', 'message'), [
    ('esu', f'{KEY}=auto', 'not used in stage esu'),
    ('udl', 'datasets:val:uncertainty_cache=auto', 'only the training set has one'),
    ('udl', f'{KEY}=3', 'expected text, got'),
    ('udl', 'datasets:train:uncertainty_cach=auto', "did you mean 'uncertainty_cache'"),
])
def test_the_key_is_checked(ready, stage, force, message):
    with pytest.raises(OptionError, match=message):
        ready.parse(stage, force)


# --------------------------------------------------------------------------------------------------------- command line


def test_the_command_line(ready, monkeypatch, capsys):
    weights = ready.root / 'experiments/esu/models/net_u_latest.pth'
    arguments = ['-opt', str(ready.root / 'udl.yml'), '--force_yml']
    arguments += [f'{KEY}={ready.cache}', f'path:pretrain_network_u={weights}']
    made = subprocess.run([sys.executable, '-m', 'udl_basicsr', 'cache', *arguments],
                          capture_output=True, text=True, cwd=ready.root)
    assert made.returncode == 0, made.stderr
    assert '6/6' in made.stderr  # the bar
    prepared(ready)  # is what training wants, and there
    assert len(list(ready.cache.glob('*.npy'))) == 6

    def status(*more) -> tuple[int, str]:
        monkeypatch.chdir(ready.root)
        return cache.main([*arguments, *more]), capsys.readouterr().err

    assert status()[0] == 0
    cv2.imwrite(str(ready.lq / '1.png'), 255 - cv2.imread(str(ready.lq / '1.png')))
    code, said = status()
    assert code == 1
    assert f'CacheError: {ready.cache}' in said
    assert 'changed since: 1.png' in said
    code, said = status(f'{KEY}=~')
    assert code == 2
    assert 'uncertainty_cache: missing' in said


def test_the_command_says_what_is_missing(project):
    with pytest.raises(OptionError, match='uncertainty_cache: missing; name a folder, or add --force_yml'):
        stages.cache_uncertainty(project.parse('udl'))
    with pytest.raises(CheckpointError, match=r'net_u_latest.pth: missing.*udl train -opt .*esu.yml'):
        stages.cache_uncertainty(project.parse('udl', f'{KEY}={project.root}/s'))
    assert not (project.root / 's').exists()
    assert not (project.root / 'experiments').exists()


def test_stock_loaders_and_workers_read_it(ready):
    opt = options(ready)
    opt['manual_seed'] = 1
    results = []
    for workers in (0, 2):
        opt['datasets']['train']['num_worker_per_gpu'] = workers
        dataset = prepare(build_dataset(opt['datasets']['train']), opt, torch.device('cpu'))
        results.append(list(train_batches(dataset, opt, 4)[1]))
    assert len(results[0]) == 4
    for a, b in zip(*results, strict=True):
        assert torch.equal(a['log_scale'], b['log_scale'])
        assert a['log_scale'].shape == a['gt'].shape
    assert next(iter(DataLoader(dataset, batch_size=3)))['log_scale'].shape == (3, 3, 32, 32)
