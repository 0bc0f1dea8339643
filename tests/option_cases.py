"""Options of tiny runs, parsed, and refused."""
from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from PIL import Image

from udl_basicsr.options.parse import OptionError, parse_options

EDSR = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'upscale': 2}


def images(folder: Path, size: tuple[int, int], count: int = 4) -> str:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new('RGB', size, (i, 0, 0)).save(folder / f'{i}.png')
    return str(folder)


def write(path: Path, opt: dict | str) -> str:
    path.write_text(opt if isinstance(opt, str) else yaml.safe_dump(opt, sort_keys=False))
    return str(path)


@pytest.fixture
def train_opt(tmp_path: Path) -> dict:
    """A valid training of stage plain."""
    data = {'name': 'Tiny', 'type': 'PairedImageDataset', 'dataroot_gt': images(tmp_path / 'gt', (64, 48)),
            'dataroot_lq': images(tmp_path / 'lq', (32, 24)), 'io_backend': {'type': 'disk'}}
    return {
        'name': 'run', 'model_type': 'UDLModel', 'stage': 'plain', 'scale': 2, 'num_gpu': 'auto', 'manual_seed': 1,
        'datasets': {'train': {**data, 'gt_size': 32, 'use_hflip': True, 'use_rot': True, 'num_worker_per_gpu': 0,
                               'batch_size_per_gpu': 2},
                     'val': deepcopy(data)},
        'network_g': dict(EDSR),
        'path': {'pretrain_network_g': None},
        'train': {'optim_g': {'type': 'Adam', 'lr': 1e-4, 'betas': [0.9, 0.99]},
                  'scheduler': {'type': 'MultiStepLR', 'milestones': [50], 'gamma': 0.5},
                  'total_iter': 100, 'warmup_iter': -1, 'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0}},
        'val': {'val_freq': 50, 'save_img': False,
                'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 2, 'test_y_channel': True}}},
        'logger': {'print_freq': 10, 'save_checkpoint_freq': 50},
    }


@pytest.fixture
def parse(tmp_path: Path):
    """Parses a dictionary as a file; keyword arguments as those of parse_options."""
    def parse_dict(opt: dict, force: tuple[str, ...] = (), name: str = 'opt.yml', **kwargs):
        kwargs = {'root_path': str(tmp_path), 'is_train': True, 'num_gpu_available': 0, **kwargs}
        return parse_options(write(tmp_path / name, opt), force_yml=force, **kwargs)
    return parse_dict


def refused(parse, opt: dict, *force: str, **kwargs) -> str:
    with pytest.raises(OptionError) as error:
        parse(opt, force, **kwargs)
    return str(error.value)
