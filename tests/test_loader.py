"""What is trained when: a function of (seed, epoch, index), whatever the workers, processes and interruptions."""
import multiprocessing
import os
import pickle
import random
import re
import resource
import shutil
import signal
import sys
from collections import Counter
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from conftest import assert_same_weights, photograph
from forked import forked
from torch.utils.data import DataLoader, Dataset

from speed import as_lmdb
from udl_basicsr.data import in_memory, loader, workers
from udl_basicsr.data.images import BrokenImageError
from udl_basicsr.data.loader import SeededDataset, TrainBatches, build_dataset, train_batches
from udl_basicsr.options.parse import OptionError
from udl_basicsr.training import stages


def batches(**kwargs):
    return list(TrainBatches(**{'length': 10, 'batch_size': 3, 'total_iter': 12, **kwargs}))


def test_exactly_the_iterations_asked_for():
    for total in (1, 3, 7, 12):
        assert len(batches(total_iter=total)) == total
    assert len(TrainBatches(10, 3, 12, 5)) == len(batches(start_iter=5)) == 7


def test_each_epoch_is_a_permutation_of_the_enlarged_set():
    sampler = TrainBatches(10, 4, 20, ratio=2)
    assert sampler.iters_per_epoch == 5
    epochs = {}
    for batch in sampler:
        for epoch, index in batch:
            epochs.setdefault(epoch, []).append(index)
    assert list(epochs) == [0, 1, 2, 3]
    orders = [tuple(e) for e in epochs.values()]
    assert len(set(orders)) == 4  # a new order every epoch
    assert all(sorted(order) == list(range(20)) for order in orders)


def test_the_order_follows_the_seed():
    assert batches(seed=1) == batches(seed=1)
    assert batches(seed=1) != batches(seed=2)


@pytest.mark.parametrize('start', [1, 3, 4, 11])
def test_going_on_from_an_iteration(start):
    assert batches(start_iter=start) == batches()[start:]


@pytest.mark.parametrize('world_size', [2, 3])
def test_processes_share_the_batch_of_one(world_size):
    alone = batches(length=40, batch_size=2 * world_size, total_iter=9)
    ranks = [batches(length=40, batch_size=2, total_iter=9, rank=r, world_size=world_size) for r in range(world_size)]
    for number, batch in enumerate(alone):
        together = [key for rank in ranks for key in rank[number]]
        assert Counter(together) == Counter(batch)


def test_fewer_samples_than_a_batch_is_an_error():
    with pytest.raises(ValueError, match=r'10 training images .* one batch of 4 x 3 process'):
        TrainBatches(10, 4, 5, world_size=3)


def test_images_come_by_name(pairs):
    """And not as the file system happens to list them: the same seed must mean the same training everywhere."""
    dataset = build_dataset({'type': 'PairedImageDataset', 'name': 'train', 'phase': 'train', 'scale': 2,
                             'dataroot_gt': str(pairs / 'train/gt'), 'dataroot_lq': str(pairs / 'train/lq'),
                             'io_backend': {'type': 'disk'}})
    assert [p['lq_path'][-5:] for p in dataset.paths] == [f'{n}.png' for n in range(6)]


class Noise(Dataset):
    """Draws from each random state that BasicSR's data sets use."""
    opt = {}

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()])


def test_augmentation_depends_on_seed_epoch_and_index_alone():
    first = SeededDataset(Noise(), seed=1)
    a = first[(0, 2)]
    random.random(), np.random.rand(), torch.rand(3)
    assert torch.equal(first[(0, 2)], a)
    for other in (first[(1, 2)], first[(0, 7)], SeededDataset(Noise(), seed=2)[(0, 2)]):  # 7 is image 2 again, enlarged
        assert other[0] == 2
        assert (other[1:] != a[1:]).all()


def test_workers_change_nothing():
    def load(workers):
        sampler = TrainBatches(5, 2, 7, ratio=2, seed=4)
        return list(DataLoader(SeededDataset(Noise(), 4), batch_sampler=sampler, num_workers=workers))

    alone, shared = load(0), load(2)
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))
    draws = torch.cat(alone)[:, 1]
    assert len(draws.unique()) == len(draws)  # no crop is seen twice


# ------------------------------------------------------------------------------------------------ images held in memory

IN_MEMORY = 'datasets:train:in_memory=true'


@pytest.fixture
def own(tmp_path, pairs):
    """Training images that a test may remove."""
    shutil.copytree(pairs / 'train', tmp_path / 'own')
    return tmp_path / 'own'


def train_options(folder, **changes):
    block = {'name': 'train', 'type': 'PairedImageDataset', 'phase': 'train', 'scale': 2, 'gt_size': 32,
             'dataroot_gt': str(folder / 'gt'), 'dataroot_lq': str(folder / 'lq'), 'io_backend': {'type': 'disk'},
             'use_hflip': True, 'use_rot': True, 'batch_size_per_gpu': 4, 'num_worker_per_gpu': 0,
             'dataset_enlarge_ratio': 4, **changes}
    return {'datasets': {'train': block}, 'train': {'total_iter': 18}, 'dist': False, 'num_gpu': 0, 'rank': 0,
            'world_size': 1, 'manual_seed': 5}


def loaded(folder, **changes):
    opt = train_options(folder, **changes)
    return train_batches(build_dataset(opt['datasets']['train']), opt)[1]


@pytest.mark.parametrize('changes', [{}, {'use_hflip': False, 'use_rot': False}, {'color': 'y'},
                                     {'mean': [0.4, 0.5, 0.6], 'std': [0.2, 0.3, 0.4]}, {'num_worker_per_gpu': 2},
                                     {'io_backend': 'lmdb'}])
def test_samples_from_memory_are_those_from_the_disk(own, changes):
    """In each of three epochs, so that what was flipped in place would be seen; and once the files are gone."""
    expected = list(loaded(own))
    if changes.get('io_backend') == 'lmdb':
        for key in ('gt', 'lq'):
            changes[f'dataroot_{key}'] = str(as_lmdb(own / key))
        changes['io_backend'] = {'type': 'lmdb'}
    elif changes:
        expected = list(loaded(own, **changes))
    held = loaded(own, in_memory=True, **changes)
    shutil.rmtree(own)
    held = list(held)
    assert len(held) == len(expected) == 18
    for ours, theirs in zip(held, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ('lq', 'gt'):
            assert ours[key].dtype == torch.float32
            assert torch.equal(ours[key], theirs[key])
        for key in ('lq_path', 'gt_path'):
            assert [Path(p).stem for p in ours[key]] == [Path(p).stem for p in theirs[key]]


@pytest.fixture
def _soon():
    """A test that waits for ever fails."""
    def give_up(*_):
        raise TimeoutError('half a minute has passed')

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures('_soon')
@pytest.mark.parametrize('how', [{'in_memory': True}, {'prefetch_mode': 'cpu', 'num_worker_per_gpu': 1}])
@pytest.mark.parametrize('skip', [False, True])
def test_an_image_that_breaks_before_it_is_read_is_named(own, skip, how):
    (own / 'lq/3.png').write_bytes(b'none')
    batches = loaded(own, skip_broken=skip, **how)
    if skip:
        assert sum(batch['broken'] for batch in batches) == 12  # its turn comes 4 times in each epoch
    else:
        with pytest.raises(BrokenImageError, match=r'lq/3\.png.*cannot be read for training'):
            list(batches)


METHODS = ['spawn'] if sys.platform == 'win32' else ['fork', 'spawn']  # those that start_method chooses from


def _look(held, place, pipe):
    """A loader process: the first pixel, and once more when it has been told; then a sample."""
    pipe.send(int(held._images[place].flat[0]))
    pipe.recv()
    pipe.send(int(held._images[place].flat[0]))
    random.seed(3)
    sample = held[2]
    pipe.send([sample[key].numpy() for key in ('lq', 'gt')])


@pytest.mark.parametrize('method', METHODS)
def test_loader_processes_share_the_images(own, method):
    """The very same memory, since they see what changes in it; and the samples are those of the disk."""
    options = train_options(own)['datasets']['train']
    held = build_dataset({**options, 'in_memory': True})
    held.load(progress=False)
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    child = context.Process(target=_look, args=(held, place := held._pairs[0][0], theirs), daemon=True)
    child.start()
    theirs.close()
    before = int(held._images[place].flat[0])
    assert ours.recv() == before
    os.pwrite(held._images._file.fileno(), bytes([before ^ 255]), held._images._places[place][0])
    ours.send(None)
    assert ours.recv() == int(held._images[place].flat[0]) == before ^ 255
    random.seed(3)
    expected = build_dataset(options)[2]
    for got, key in zip(ours.recv(), ('lq', 'gt'), strict=True):
        assert np.array_equal(got, expected[key].numpy())
    child.join(60)
    assert child.exitcode == 0


@pytest.mark.parametrize(('method', 'held'), [('fork', False), ('fork', True), ('spawn', True)])
def test_the_start_method_changes_no_sample(own, monkeypatch, method, held):
    expected = list(loaded(own))
    monkeypatch.setattr(loader, 'start_method', lambda: method)
    batches = loaded(own, in_memory=held, num_worker_per_gpu=1)
    for batch in expected:
        assert all(torch.equal(ours, batch[key]) for key, ours in next(batches).items() if torch.is_tensor(ours))
    assert next(batches, None) is None


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere they are always spawned')
def test_loader_processes_are_forked_unless_there_are_several_ranks(own, monkeypatch):
    """And not as Python would by itself."""
    default = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method('forkserver', force=True)
    before = set(multiprocessing.active_children())  # of other tests, about to end
    try:
        batches = loaded(own, num_worker_per_gpu=1)
        next(batches)
        started = set(multiprocessing.active_children()) - before
        assert [type(child).__name__ for child in started] == ['ForkProcess']
        assert len(list(batches)) == 17
    finally:
        multiprocessing.set_start_method(default, force=True)
    assert workers.start_method() == 'fork'
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    assert workers.start_method() == 'spawn'


def test_a_pickle_of_the_images_is_a_handle(own):
    """Of kilobytes; torchrun's processes spawn their loaders, and each was sent all the images."""
    cv2.imwrite(str(own / 'gt/6.png'), photograph(6, 480, 640))
    cv2.imwrite(str(own / 'lq/6.png'), photograph(6, 240, 320))
    held = build_dataset({**train_options(own)['datasets']['train'], 'in_memory': True})
    held.load(progress=False)
    pickled = ForkingPickler.dumps(SeededDataset(held, 0))
    assert len(pickled) < 4096
    assert held._images.nbytes > 1_000_000
    again = pickle.loads(pickled).dataset
    for pair in held._pairs:
        for number in pair:
            assert np.array_equal(again._images[number], held._images[number])
            assert not again._images[number].flags.writeable


@pytest.mark.skipif(not hasattr(os, 'memfd_create'), reason='the images lie among the temporary files')
def test_no_room_is_said_before_training(own):
    """A limit to what a process may write stands for a system that has no memory left. In a process of its own."""
    options = {**train_options(own)['datasets']['train'], 'in_memory': True}

    def load():
        held = build_dataset(options)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        held.load(progress=False)

    assert re.search(r'NoRoomError: datasets\.train\.in_memory: there is no room .* after 0\.0 MB \(File too large\); '
                     'remove it, and give num_worker_per_gpu more', forked(load, cwd=own).stderr)


def test_a_training_from_memory_is_the_one_from_the_disk(project):
    """Both stages, with the uncertainty of the cache beside the pairs."""
    weights, cache = [], f'datasets:train:uncertainty_cache={project.root}/s'
    for number, held in enumerate(([], [IN_MEMORY])):
        stages.train(project.parse('udl', f'name=udl{number}', cache, *held))
        weights.append(project.weights(f'udl{number}'))
    assert f'{in_memory.KEY}: 6 pairs are held in 0.1 MB' in project.log('udl1')
    assert_same_weights(*weights)


def test_too_little_memory_is_said_before_anything_begins(project, monkeypatch):
    needed = 3 * 6 * (48 * 56 + 24 * 28)
    monkeypatch.setattr(in_memory, 'free_memory', lambda: needed)
    project.parse('plain', IN_MEMORY)
    monkeypatch.setattr(in_memory, 'free_memory', lambda: needed - 1)
    with pytest.raises(OptionError, match=r'train\.in_memory: the decoded images need 0\.1 MB, and 0\.1 MB'):
        project.parse('plain', IN_MEMORY)
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')
    monkeypatch.setattr(in_memory, 'free_memory', lambda: 2 * needed - 1)
    with pytest.raises(OptionError, match='for 2 processes that hold a copy each'):
        project.parse('plain', IN_MEMORY)
    monkeypatch.setattr(in_memory, 'free_memory', lambda: None)  # not known: nothing is refused
    project.parse('plain', IN_MEMORY)


def test_memory_that_is_free_is_what_can_be_had():
    free = in_memory.free_memory()
    if free is None:
        pytest.skip('the system does not say')
    total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    assert 2**20 < free < total


@pytest.mark.parametrize(('key', 'message'), [
    *((f'datasets:val:{key}', rf'datasets\.val\.{key.partition("=")[0]}: only the training set has it')
      for key in ('in_memory=true', 'skip_broken=true', 'first_iter=3')),
    (f'{IN_MEMORY[:-4]}maybe', r'datasets\.train\.in_memory: expected true \| false'),
])
def test_it_is_for_training_sets_alone(project, key, message):
    with pytest.raises(OptionError, match=message):
        project.parse('plain', key)


def test_it_is_for_pairs_alone(project):
    with pytest.raises(OptionError, match=r'in_memory: needs a PairedImageDataset, got SingleImageDataset'):
        project.parse('plain', IN_MEMORY, 'datasets:train:type=SingleImageDataset')


# ------------------------------------------------------------------------------------------------------- whole images


def test_whole_images_are_trained_on_one_at_a_time(project, pairs, tmp_path):
    shutil.copytree(pairs / 'train', tmp_path / 'whole')
    for kind, size in (('gt', 1), ('lq', 2)):  # images differ in size
        cv2.imwrite(str(tmp_path / 'whole' / kind / '0.png'), photograph(9, 40, 60)[::size, ::size])
    options = yaml.safe_load((tmp_path / '_base_.yml').read_text())
    options.update({'name': 'whole', 'stage': 'plain'})
    del options['network_u'], options['val'], options['datasets']['val']
    options['val'] = {'val_freq': 100}
    options['train']['pixel_opt'] = {'type': 'L1Loss'}
    options['datasets']['train'] = {
        'name': 'whole', 'type': 'WholeImageDataset', 'dataroot_gt': str(tmp_path / 'whole' / 'gt'),
        'dataroot_lq': str(tmp_path / 'whole' / 'lq'), 'io_backend': {'type': 'disk'}, 'num_worker_per_gpu': 0,
        'batch_size_per_gpu': 1}
    (tmp_path / 'whole.yml').write_text(yaml.safe_dump(options))
    parsed = project.parse('whole')
    sample = build_dataset(parsed.opt['datasets']['train'])[0]
    assert sample['gt'].shape == (3, 40, 60)
    image = cv2.imread(str(tmp_path / 'whole' / 'gt' / '0.png'))[..., ::-1]
    np.testing.assert_array_equal((255 * sample['gt']).round().numpy(), image.transpose(2, 0, 1))
    stages.train(parsed)
    assert project.weights('whole')

    with pytest.raises(OptionError, match='batch_size_per_gpu: whole images differ in size'):
        project.parse('whole', 'datasets:train:batch_size_per_gpu=2')
