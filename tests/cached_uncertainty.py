"""A trained first stage, and its uncertainty in a cache."""
import shutil

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from conftest import Project

from udl_basicsr.data.loader import build_dataset
from udl_basicsr.data.uncertainty_cache import prepare
from udl_basicsr.utils.checkpoints import save_atomic

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
