"""Whole runs on the device: how data reach it, the cache, resuming to the bit, and a process for each GPU."""
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import assert_same_weights

from udl_basicsr.cli import train as command
from udl_basicsr.data import uncertainty_cache
from udl_basicsr.data.loader import build_dataset
from udl_basicsr.training import stages

from .conftest import CUDA, DeviceProject, needs_cuda

_EXACT = ('deterministic=true', )


def train(project, stage, *force, **kwargs):
    stages.train(project.parse(stage, *force, **kwargs), 'the command')


@pytest.mark.parametrize('force', [
    ('datasets:train:pin_memory=true', 'datasets:train:num_worker_per_gpu=2', 'datasets:train:prefetch_mode=cpu'),
    ('datasets:train:in_memory=true', 'datasets:train:pin_memory=true'),
    pytest.param(('datasets:train:pin_memory=true', 'datasets:train:prefetch_mode=cuda',
                  'datasets:train:num_worker_per_gpu=2'), marks=needs_cuda),
])
def test_how_data_reach_the_device_does_not_change_what_is_trained(project, force):
    train(project, 'plain', *_EXACT)
    train(project, 'plain', *_EXACT, *force, 'name=other')
    assert_same_weights(project.weights('other'), project.weights('plain'))


@needs_cuda
def test_a_fast_run_is_in_bf16_and_late(project, monkeypatch):
    monkeypatch.chdir(project.root)
    assert command.main(['-opt', 'udl.yml', '--fast']) == 0
    said = project.log('udl')
    assert torch.cuda.get_device_name() in said
    expected = 'bf16' if torch.cuda.get_device_capability() >= (8, 0) else 'float32'
    for stage in ('esu', 'udl'):
        assert f'{stage} is trained with {expected}' in project.log(stage)
    assert all(value.isfinite().all() for value in project.weights('udl').values())


@pytest.mark.parametrize('stage', ['plain', 'esu', 'udl', 'sigma', 'tlw'])
def test_resuming_is_exact_where_it_is_asked_for(project, stage):
    more = () if stage == 'tlw' else ('train:channels_last=true', )
    force = (*_EXACT, 'train:ema_decay=0.9', 'train:amp=bf16', *more)
    if stage == 'udl':
        project.make_stage1()
    train(project, stage, *force)
    straight = project.weights(stage), project.weights(stage, key='params_ema')
    for path in (project.root / 'experiments' / stage).rglob('*_latest.pth'):
        path.unlink()
    (project.root / 'experiments' / stage / 'training_states/8.state').unlink()
    train(project, stage, *force, auto_resume=True)
    assert 'iterations 5 to 8' in project.log(stage)
    for key, weights in zip(('params', 'params_ema'), straight, strict=True):
        assert_same_weights(project.weights(stage, key=key), weights)


def test_the_cache_is_that_of_the_cpu(pairs, tmp_path):
    maps = []
    for kind in ('cpu', 'cuda' if CUDA else 'cpu'):
        root = tmp_path / f'{kind}_{len(maps)}'
        shutil.copytree(pairs, root / 'pairs')
        project = DeviceProject(root, root / 'pairs')
        project.make_stage1()
        opt = project.parse('udl', f'datasets:train:uncertainty_cache={root}/s', f'num_gpu={int(kind == "cuda")}').opt
        torch.backends.cudnn.allow_tf32 = True
        dataset = uncertainty_cache.prepare(build_dataset(opt['datasets']['train']), opt, torch.device(kind))
        maps.append([uncertainty_cache.dequantise(dataset.cache.levels(name), entry['low'], entry['high'])
                     for name, entry in dataset.cache.maps.items()])
    for here, there in zip(*maps, strict=True):
        step = (here.max() - here.min()) / 65535
        assert np.abs(here - there).max() < 1e-5 + 1.5 * step


def test_both_stages_from_one_file_with_the_cache(project):
    levers = ('train:amp=bf16', 'train:channels_last=true', 'datasets:train:in_memory=true')
    train(project, 'udl', f'datasets:train:uncertainty_cache={project.root}/s', *levers)
    assert (project.root / 's/manifest.json').exists()
    assert (project.root / 'experiments/esu/models/net_u_latest.pth').exists()
    assert all(value.isfinite().all() for value in project.weights('udl').values())


@pytest.mark.parametrize('stage', ['plain', 'esu', 'tlw'])
def test_a_process_for_each_gpu_trains_as_one_with_the_whole_batch(project, stage):
    """NCCL where there are GPUs, else two processes by gloo."""
    count = torch.cuda.device_count() if CUDA else 2
    if 4 % count:
        pytest.skip(f'a batch of 4 on {count} GPUs')
    force = ['train:optim_g={type: SGD, lr: 0.01}', 'train:total_iter=4', *_EXACT]
    train(project, stage, *force, 'name=one')
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    (project.root / 'entry.py').write_text(
        'from pathlib import Path; from udl_basicsr.train import main; main(Path.cwd())')
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', f'--nproc_per_node={count}', f'--master_port={port}',
         'entry.py', '-opt', f'{stage}.yml', '--launcher', 'pytorch', '--force_yml', *force, 'name=many',
         f'datasets:train:batch_size_per_gpu={4 // count}'],
        cwd=project.root, capture_output=True, text=True, timeout=200, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr[-3000:]
    if stage == 'tlw' and count > 1:  # batch norm sees the images of one process
        assert all(value.isfinite().all() for value in project.weights('many').values())
    else:
        assert_same_weights(project.weights('many'), project.weights('one'), rtol=1e-3, atol=1e-5)
    flat = yaml.safe_load((project.root / 'experiments/many' / f'{stage}.yml').read_text())
    assert flat['name'] == 'many'
