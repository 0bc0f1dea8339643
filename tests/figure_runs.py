"""Runs, records and folders that figures are made of."""
import importlib.util
import json

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs import build_network
from conftest import photograph

SET = 'toys'
IMAGES = {'a': (48, 64), 'a_2': (32, 32)}  # one name begins with the other


def main(*argv):
    return importlib.import_module('udl_basicsr.cli.figures').main([str(a) for a in argv])


def rgb(seed, height=48, width=64):
    return photograph(seed, height, width)[..., ::-1].copy()


def disturbed(gt, seed, least=1, most=9):
    """GT with an error of `least` to `most` grey levels in every value."""
    generator = np.random.default_rng(seed)
    step = generator.integers(least, most + 1, gt.shape)
    return np.where(gt >= 128, gt - step, gt + step).astype(np.uint8)


# ----------------------------------------------------------------------------------------------------------------- maps

def sobel(image, **border):
    """By OpenCV, in float64, of luma in [0, 1]."""
    gray = (image / 255.) @ [0.299, 0.587, 0.114]
    return [cv2.Sobel(gray, cv2.CV_64F, dx, dy, ksize=3, **border) for dx, dy in ((1, 0), (0, 1))]


# ---------------------------------------------------------------------------------------- sigma, and what networks cost

SIGMA_NETS = {'network_g': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1,
                            'upscale': 2},
              'network_u': {'type': 'UncertaintyNet', 'head': {'type': 'SigmaHead', 'num_feat': 4}}}


@pytest.fixture
def sigma_folder(tmp_path):
    """A run whose sigma goes to 0: at iterations 2 and 30 its last convolution says −2 and −8 plus little."""
    folder = tmp_path / 'experiments' / 'eq6'
    (folder / 'models').mkdir(parents=True)
    net = build_network({'backbone': SIGMA_NETS['network_g'], **SIGMA_NETS['network_u']})
    torch.nn.init.normal_(net.head.conv_last.weight, std=0.3)
    for iteration, logit in ((2, -2.), (30, -8.)):
        torch.nn.init.constant_(net.head.conv_last.bias, logit)
        torch.save({'params': net.state_dict()}, folder / 'models' / f'net_u_{iteration}.pth')
    (folder / 'models' / 'net_u_latest.pth').write_bytes((folder / 'models' / 'net_u_30.pth').read_bytes())
    (folder / 'train_eq6.yml').write_text(yaml.safe_dump({'stage': 'sigma', **SIGMA_NETS}))
    entries = [{'head': 'x'}, {'iter': 2, 'sigma_mean': 0.12}, {'iter': 20, 'dataset': SET, 'psnr': 20.},
               {'iter': 30, 'sigma_mean': 0.0003, 'l_sigma': 0.1}]
    (folder / 'history.jsonl').write_text(''.join(json.dumps(entry) + '\n' for entry in entries))
    return folder


# ------------------------------------------------------------------------------------------------------------------ TLW

TLW_OPT = {'type': 'TLWLoss', 'k_start': 0.2, 'k_gain': 0.5, 'k_tau': 2}


@pytest.fixture
def tlw_folder(tmp_path):
    folder = tmp_path / 'experiments' / 'TLW'
    (folder / 'models').mkdir(parents=True)
    nets = {'network_g': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1, 'upscale': 2},
            'network_w': {'type': 'TLWNet', 'num_feat': 4}}
    for iteration in (4, 9):
        for label in 'gw':
            torch.save({'params': build_network(nets[f'network_{label}']).state_dict()},
                       folder / 'models' / f'net_{label}_{iteration}.pth')
    (folder / 'models' / 'net_w_latest.pth').write_bytes((folder / 'models' / 'net_w_9.pth').read_bytes())
    (folder / 'train_TLW.yml').write_text(yaml.safe_dump({**nets, 'train': {'tlw_opt': TLW_OPT}}))
    (folder / 'history.jsonl').write_text('{"initial_weights": "a", "iters_per_epoch": 4}\n{"iter": 1}\n')
    return folder
