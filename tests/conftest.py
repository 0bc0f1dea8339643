"""Shared by all tests: fixed seeds, and a project folder with tiny images and runs."""
import errno
import os
from multiprocessing import forkserver
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

import udl_basicsr  # noqa: F401 - before anything imports basicsr, which needs its shims

# isort: split
from basicsr.archs import build_network
from basicsr.models import build_model
from basicsr.utils import get_root_logger

from udl_basicsr.options.parse import parse_options

# Tests compare with what a CPU computes, so a GPU is hidden from all but those in tests/gpu, which have their own run:
# UDL_TEST_DEVICE=cuda python -m pytest tests/gpu (cpu rehearses them; some always are). Before anything asks CUDA.
DEVICE = os.environ.get('UDL_TEST_DEVICE', '')
if DEVICE == 'cuda':
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # read once, by the first test that multiplies
else:
    os.environ['CUDA_VISIBLE_DEVICES'] = ''
_FOR_GPUS = Path(__file__).parent / 'gpu'

get_root_logger()  # here, or its stream would be that of the test that logs first, which closes it


def pytest_collection_modifyitems(items):
    for item in items:
        rehearsed = not DEVICE and item.get_closest_marker('rehearsed')
        if item.path.is_relative_to(_FOR_GPUS) != bool(DEVICE) and not rehearsed:
            item.add_marker(pytest.mark.skip('UDL_TEST_DEVICE is set, which is for tests/gpu' if DEVICE else
                                             'for a GPU: UDL_TEST_DEVICE=cuda python -m pytest tests/gpu'))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    np.random.seed(0)
    torch.set_num_threads(1)  # the networks are tiny: more threads only wait for one another


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    # Reading options forbids pickles to the whole process; spandrel's loader, which one test uses, asks for one.
    monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', raising=False)


@pytest.fixture(scope='session')
def fork_server():
    """From which the runs of comparisons are forked: with all that each of them would import for seconds."""
    forkserver.set_forkserver_preload(['udl_basicsr.experiments.runner', 'torch._dynamo'])
    forkserver.ensure_running()


def photograph(seed: int, height: int, width: int) -> np.ndarray:
    """A smooth random image with edges, uint8 BGR: something a network can learn on in seconds."""
    generator = np.random.default_rng(seed)
    coarse = generator.random((height // 8 + 1, width // 8 + 1, 3)).astype(np.float32)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    stripes = (np.add.outer(np.arange(height), np.arange(width)) // 5 % 2)[..., None]
    return ((0.7 * image + 0.3 * stripes).clip(0, 1) * 255).round().astype(np.uint8)


@pytest.fixture(scope='session')
def pairs(tmp_path_factory):
    """A folder with ``train/{gt,lq}`` (6 pairs) and ``val/{gt,lq}`` (3 pairs) at x2; GT is 48x56."""
    root = tmp_path_factory.mktemp('pairs')
    for split, count in (('train', 6), ('val', 3)):
        for kind in ('gt', 'lq'):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            gt = photograph(number + 100 * (split == 'val'), 48, 56)
            lq = cv2.resize(gt, (28, 24), interpolation=cv2.INTER_AREA)
            cv2.imwrite(str(root / split / 'gt' / f'{number}.png'), gt)
            cv2.imwrite(str(root / split / 'lq' / f'{number}.png'), lq)
    return root


_BASE = """
model_type: UDLModel
scale: 2
num_gpu: auto
manual_seed: 3
datasets:
  train:
    name: train
    type: PairedImageDataset
    dataroot_gt: {root}/train/gt
    dataroot_lq: {root}/train/lq
    io_backend: {{type: disk}}
    gt_size: 32
    use_hflip: true
    use_rot: true
    num_worker_per_gpu: 0
    batch_size_per_gpu: 4
    dataset_enlarge_ratio: 2
  val:
    name: val
    type: PairedImageDataset
    dataroot_gt: {root}/val/gt
    dataroot_lq: {root}/val/lq
    io_backend: {{type: disk}}
network_g: {{type: EDSR, num_in_ch: 3, num_out_ch: 3, num_feat: 8, num_block: 1, upscale: 2}}
network_u: {{type: UncertaintyNet, head: {{type: UDLHead}}}}
train:
  optim_g: {{type: Adam, lr: 1e-3}}
  scheduler: {{type: MultiStepLR, milestones: [6], gamma: 0.5}}
  total_iter: 8
val:
  val_freq: 4
  metrics: {{psnr: {{type: calculate_psnr, crop_border: 2, test_y_channel: true}}}}
logger: {{print_freq: 2, save_checkpoint_freq: 4}}
"""
_STAGES = {
    'plain': {'network_u': None, 'train': {'pixel_opt': {'type': 'L1Loss'}}},
    'esu': {'train': {'likelihood_opt': {'type': 'ESULoss'}}},
    'udl': {'stage1': 'esu.yml', 'train': {'udl_opt': {'type': 'UDLLoss'}}},
}


class Project:
    """A folder with the option files ``plain.yml``, ``esu.yml`` and ``udl.yml`` of tiny runs, on the CPU unless told.

    Attributes:
        gpus (int): That the options are told of.
    """
    gpus = 0

    def __init__(self, root: Path, pairs: Path):
        self.root, self.pairs = root, pairs
        (root / '_base_.yml').write_text(_BASE.format(root=pairs))
        for stage, options in _STAGES.items():
            (root / f'{stage}.yml').write_text(yaml.safe_dump(
                {'_base_': '_base_.yml', 'name': stage, 'stage': stage, **options}))

    def parse(self, stage: str, *force: str, is_train: bool = True, **kwargs):
        return parse_options(str(self.root / f'{stage}.yml'), root_path=str(self.root), is_train=is_train,
                             force_yml=force, num_gpu_available=self.gpus, **kwargs)

    def model(self, stage: str, *force: str, **kwargs):
        """A model ready to train, without data and folders."""
        return build_model(self.parse(stage, *force, **kwargs).opt)

    def weights(self, run: str, iteration='latest', label: str = 'g', key: str = 'params') -> dict:
        path = self.root / 'experiments' / run / 'models' / f'net_{label}_{iteration}.pth'
        return torch.load(path, weights_only=True)[key]

    def log(self, run: str) -> str:
        return ''.join(p.read_text() for p in sorted((self.root / 'experiments' / run).glob('train_*.log')))


@pytest.fixture
def project(tmp_path, pairs):
    return Project(tmp_path, pairs)


@pytest.fixture
def stage1(project):
    """The uncertainty network of ``esu.yml``, untrained, where its run would have left it."""
    options = project.parse('esu').flat
    torch.manual_seed(7)
    network = build_network({'backbone': options['network_g'], **options['network_u']}).eval()
    models = project.root / 'experiments/esu/models'
    models.mkdir(parents=True)
    torch.save({'params': network.state_dict()}, models / 'net_u_latest.pth')
    torch.save({'params': network.mean_network.state_dict()}, models / 'net_g_latest.pth')
    return network


# Of which dynamo follows the hook of the tap. Older ones were seen to fail there.
FOLLOWS_HOOKS = tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 14)


def cannot_be_made(*_, **__):
    """In the place of what makes a file, in a folder that takes none: for root no mode makes one."""
    raise PermissionError(errno.EACCES, 'Permission denied')


def status_of(main, *args, **kwargs) -> int:
    """The status that a command ends with, whether it returns or raises it."""
    try:
        return main(*args, **kwargs)
    except SystemExit as end:
        return end.code


def batch(seed: int = 0, size: int = 4, lq: int = 16, scale: int = 2) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {'lq': torch.rand(size, 3, lq, lq, generator=generator),
            'gt': torch.rand(size, 3, lq * scale, lq * scale, generator=generator)}


def assert_same_weights(a: dict, b: dict, **tolerance) -> None:
    """Bit for bit, unless a tolerance is given."""
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], **(tolerance or {'rtol': 0, 'atol': 0}),
                                   msg=lambda m, k=key: f'{k}: {m}')
