"""Cached uncertainty: the same patches and steps as without a cache, and the command."""
# ruff: noqa: F811 - fixtures that come from cached_uncertainty
import contextlib
import json
import random
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from cached_uncertainty import KEY, log_scale, options, prepared, ready  # noqa: F401
from conftest import assert_same_weights, batch
from forked import forked, udl
from torch.nn.functional import pad as reflected
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import normalize

from udl_basicsr.cli import cache
from udl_basicsr.data.loader import build_dataset, train_batches
from udl_basicsr.data.uncertainty_cache import CacheError, dequantise, fingerprint, prepare, quantise
from udl_basicsr.options.parse import OptionError
from udl_basicsr.training import stages
from udl_basicsr.utils.checkpoints import CheckpointError

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


@pytest.mark.parametrize('tile', [None, {'size': 10, 'overlap': 8}])
def test_a_network_with_windows_gets_whole_images_padded(ready, tile):
    """BasicSR's SwinIR takes multiples of its window alone: patches of 16 in training, and no image of 24x28."""
    network_g = {'type': 'SwinIR', 'upscale': 2, 'embed_dim': 8, 'depths': [1], 'num_heads': [2], 'window_size': 8,
                 'img_size': 16, 'mlp_ratio': 2, 'upsampler': 'pixelshuffledirect'}
    torch.manual_seed(3)
    network = build_network({'type': 'UncertaintyNet', 'backbone': network_g, 'head': {'type': 'UDLHead'}}).eval()
    weights = ready.root / 'swin.pth'
    torch.save({'params': network.state_dict()}, weights)
    opt = dict(options(ready, *([f'val:tile={json.dumps(tile)}'] if tile else [])))
    opt |= {'network_g': network_g, 'path': {**opt['path'], 'pretrain_network_u': str(weights)}}
    dataset = prepare(build_dataset(opt['datasets']['train']), opt, torch.device('cpu'))
    rgb = torch.from_numpy(cv2.imread(str(ready.lq / '0.png'))[..., ::-1].copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        s = network.log_scale(reflected(rgb, (0, 4, 0, 0), mode='reflect'))[0, :, :48, :56].permute(1, 2, 0)
    entry = dataset.cache.maps['0.png']
    got = dequantise(dataset.cache.levels('0.png'), entry['low'], entry['high'])
    assert got.shape == (48, 56, 3)
    if tile is None:
        np.testing.assert_allclose(got, s, atol=1e-4)


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


# --------------------------------------------------------------------------------------------------------- command line

def test_the_command_line(ready, monkeypatch, capsys):
    weights = ready.root / 'experiments/esu/models/net_u_latest.pth'
    arguments = ['-opt', str(ready.root / 'udl.yml'), '--force_yml']
    arguments += [f'{KEY}={ready.cache}', f'path:pretrain_network_u={weights}']
    made = forked(udl, 'cache', *arguments, cwd=ready.root)
    assert made.returncode == 0, made.stderr
    assert '%|' not in made.stderr  # a bar, which is for terminals
    prepared(ready)  # is what training wants, and there
    assert len(list(ready.cache.glob('*.npy'))) == 6

    def status(*more) -> tuple[int, str]:
        monkeypatch.chdir(ready.root)
        return cache.main([*arguments, *more]), capsys.readouterr().err

    assert status()[0] == 0
    cv2.imwrite(str(ready.lq / '1.png'), 255 - cv2.imread(str(ready.lq / '1.png')))
    code, said = status()
    assert code == 2
    assert str(ready.cache) in said
    assert 'changed since: 1.png' in said
    code, said = status(f'{KEY}=~')
    assert code == 2
    assert 'uncertainty_cache: missing' in said


def test_the_command_says_what_is_missing(project):
    with pytest.raises(OptionError, match='stage: esu reads no uncertainty; give the option file of stage udl'):
        stages.cache_uncertainty(project.parse('esu'))
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
