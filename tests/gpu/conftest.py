"""A project on the device under test, in float32 proper unless a test says otherwise."""
from pathlib import Path

import pytest
import torch
import yaml
from basicsr.archs import build_network
from conftest import DEVICE, Project

from udl_basicsr.utils.checkpoints import save_atomic

CUDA = DEVICE == 'cuda'
needs_cuda = pytest.mark.skipif(not CUDA, reason='cannot be rehearsed on a CPU')
_MORE = {
    'sigma': {'stage': 'sigma', 'network_u': {'head': {'type': 'SigmaHead', 'num_feat': 8}},
              'train': {'pixel_opt': {'type': 'L1Loss'}, 'sigma_opt': {'type': 'SigmaLoss'}}},
    'tlw': {'model_type': 'TLWModel', 'network_u': None, 'network_w': {'type': 'TLWNet', 'num_feat': 8},
            'train': {'tlw_opt': {'type': 'TLWLoss', 'judge': 'squeeze', 'judge_random': True, 'deterministic': True}}},
}
STAGES = ('plain', 'esu', 'udl', *_MORE)

# Minutes for one answer each.
_LAST = ('test_compiled_steps', 'test_a_process_for_each_gpu_trains_as_one_with_the_whole_batch')


def pytest_collection_modifyitems(items):
    """A GPU may be lent for minutes: numbers and steps come before whole runs."""
    items.sort(key=lambda item: (item.path.parent == Path(__file__).parent) * (
        1 + (item.path.stem == 'test_runs') + 2 * (item.originalname in _LAST)))


@pytest.fixture(scope='session')
def device() -> torch.device:
    if CUDA:
        assert torch.cuda.is_available(), 'UDL_TEST_DEVICE=cuda, and torch finds no GPU'
    return torch.device(DEVICE or 'cpu')


@pytest.fixture(autouse=True)
def _exact():
    """Neither TF32 nor what another test has asked for."""
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


class DeviceProject(Project):
    """With option files of all stages, and weights for stage 2 in ``experiments/esu``."""
    gpus = int(CUDA)

    def __init__(self, root, pairs):
        super().__init__(root, pairs)
        for name, options in _MORE.items():
            (root / f'{name}.yml').write_text(yaml.safe_dump({'_base_': '_base_.yml', 'name': name, **options}))

    def make_stage1(self) -> None:
        flat = self.parse('esu').flat
        torch.manual_seed(7)
        network = build_network({'backbone': flat['network_g'], **flat['network_u']})
        models = self.root / 'experiments/esu/models'
        models.mkdir(parents=True)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
        save_atomic({'params': network.state_dict()}, models / 'net_u_latest.pth')
        save_atomic({'params': network.mean_network.state_dict()}, models / 'net_g_latest.pth')

    def twins(self, stage: str, *force: str):
        """The same model twice: on the CPU in float32, and on the device with what is forced."""
        if stage == 'udl' and not (self.root / 'experiments').exists():
            self.make_stage1()
        there, here = self.model(stage, *force), self.model(stage, 'num_gpu=0')
        for label in ('net_g', 'net_u', 'net_w'):
            if getattr(there, label, None) is not None:
                getattr(here, label).load_state_dict(getattr(there, label).state_dict())
        return here, there


@pytest.fixture
def project(tmp_path, pairs) -> DeviceProject:
    return DeviceProject(tmp_path, pairs)
