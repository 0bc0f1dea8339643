"""A plan of several networks, and its option files."""
import importlib.util
from pathlib import Path

import pytest
import yaml

DATA = {'type': 'PairedImageDataset', 'io_backend': {'type': 'disk'}}
METRICS = {'psnr': {'type': 'calculate_psnr', 'crop_border': '${scale}', 'test_y_channel': True}}
EDSR = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1, 'upscale': '${scale}'}
UNCERTAINTY = {'type': 'UncertaintyNet', 'head': {'type': 'UDLHead', 'num_feat': 4}}
FILES = {
    'train.yml': {
        'model_type': 'UDLModel',
        'datasets': {'train': {**DATA, 'name': 'DIV2K', 'dataroot_gt': 'data/train/GT', 'dataroot_lq': 'data/train/LR',
                               'gt_size': 96, 'use_hflip': True, 'use_rot': True, 'num_worker_per_gpu': 6,
                               'batch_size_per_gpu': 16, 'dataset_enlarge_ratio': 1, 'prefetch_mode': None},
                     'val': {**DATA, 'name': 'Set5', 'dataroot_gt': 'data/Set5/GT', 'dataroot_lq': 'data/Set5/LR'}},
        'train': {'optim_g': {'type': 'Adam', 'lr': 0.1}, 'total_iter': 4000, 'warmup_iter': 10, 'accumulate': 2,
                  'scheduler': {'type': 'MultiStepLR', 'milestones': [2000], 'gamma': 0.5}},
        'val': {'val_freq': 1000, 'metrics': METRICS, 'save_best': {'metric': 'psnr', 'dataset': 'Set5'}},
        'logger': {'print_freq': 100, 'save_checkpoint_freq': 1000, 'use_tb_logger': True}},
    'test.yml': {'datasets': {f'test_{i}': {**DATA, 'name': name, 'dataroot_gt': f'data/{name}/GT',
                                            'dataroot_lq': f'data/{name}/LR'}
                              for i, name in enumerate(('Set5', 'Set14'), 1)}, 'val': {'metrics': METRICS}},
    'edsr.yml': {'network_g': EDSR, 'train': {'optim_g': {'lr': 0.2}}},
    'l1.yml': {'stage': 'plain', 'train': {'pixel_opt': {'type': 'L1Loss'}}},
    'esu.yml': {'stage': 'esu', 'network_u': UNCERTAINTY, 'train': {'likelihood_opt': {'type': 'ESULoss'}}},
    'udl.yml': {'stage': 'udl', 'network_u': UNCERTAINTY, 'train': {'udl_opt': {'type': 'UDLLoss'}}},
    'tlw.yml': {'model_type': 'TLWModel', 'network_w': {'type': 'TLWNet', 'num_feat': 4},
                'train': {'tlw_opt': {'type': 'TLWLoss', 'judge': 'squeeze'}}},
}
PLAN = {
    'name': 'table', 'title': 'UDL paper', 'table': 'udl-5', 'reference': 'L1', 'train': 'train.yml',
    'test': 'test.yml', 'seeds': [0, 1], 'lengths': 'own', 'deterministic': True,
    'networks': {'EDSR-S': {'base': 'edsr.yml'},
                 'ESPCN': {'options': {'network_g': {'type': 'ESPCN', 'num_feat': 8, 'upscale': '${scale}'}},
                           'scales': ['x3'], 'methods': ['L1']}},
    'scales': {'x2': None, 'x3': {'train': {'train': {'optim_g': {'lr': 0.15, 'weight_decay': 0.5}}},
                                  'test': {'datasets': {'test_2': None}}}},
    'first': {'ESU': {'base': 'esu.yml', 'train': {'total_iter': 1000}}},
    'methods': {'L1': {'label': 'Original', 'base': 'l1.yml'},
                'UDL': {'label': 'L_UDL-Ours', 'after': 'ESU', 'base': ['l1.yml', 'udl.yml'],
                        'options': {'train': {'pixel_opt': None, 'total_iter': 3000, 'optim_g': {'lr': 0.3}}}}}}


@pytest.fixture
def write(tmp_path):
    """Writes the files of a plan; ``write(seeds=[1])`` changes the plan, ``write({'train.yml': {...}})`` a file."""
    def write(files: dict | None = None, /, **changes) -> Path:
        for name, content in {**FILES, **(files or {}), 'plan.yml': {**PLAN, **changes}}.items():
            (tmp_path / name).write_text(yaml.safe_dump(content))
        return tmp_path / 'plan.yml'
    return write


@pytest.fixture
def script():
    return importlib.import_module('udl_basicsr.cli.compare')


def everything(folder: Path) -> dict:
    return {p: p.lstat().st_mtime_ns for p in folder.rglob('*')}
