"""What is trained when: a function of (seed, epoch, index), whatever the workers, processes and interruptions."""
import random
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from udl_basicsr.data.loader import SeededDataset, TrainBatches, build_dataset


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
