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
from udl_basicsr.models.guard import leaves_out_by_itself
from udl_basicsr.models.step import StepModel
from udl_basicsr.training import fast, stages
from udl_basicsr.utils import processor

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


@pytest.fixture
def late(monkeypatch):
    """Late is what steps with fused optimisers are on a GPU; here on a CPU too. The guards of all models made."""
    guards, settings = [], StepModel.init_training_settings

    def init(self):
        settings(self)
        assert self.guard.late == (CUDA and all(map(leaves_out_by_itself, self.optimizers)))
        self.guard.late = all(map(leaves_out_by_itself, self.optimizers))
        guards.append(self.guard)

    monkeypatch.setattr(StepModel, 'init_training_settings', init)
    return guards


def test_a_fast_run_is_in_bf16_and_late(project, late, monkeypatch):
    """Where bf16 in channels_last is the fastest, which is not for this test to find out."""
    monkeypatch.chdir(project.root)
    monkeypatch.setattr(fast, 'seconds_a_step', lambda parsed, amp, last, *_: 2. - bool(amp) - last / 2)
    monkeypatch.setattr(processor, 'features', lambda: frozenset({'avx512_bf16'}))
    assert command.main(['-opt', 'udl.yml', '--fast']) == 0
    if CUDA:
        assert torch.cuda.get_device_name() in project.log('udl')
    expected = 'bf16' if not CUDA or torch.cuda.get_device_capability() >= (8, 0) else 'float32'
    for stage in ('esu', 'udl'):
        assert f'{stage} is trained with {expected}, channels_last, fused' in project.log(stage)
    assert [guard.late for guard in late] == [True, True]
    assert all(value.isfinite().all() for value in project.weights('udl').values())


@pytest.mark.parametrize(('stage', 'amp', 'fused'), [
    *((stage, 'bf16', False) for stage in ('plain', 'esu', 'udl', 'sigma', 'tlw')), ('esu', '~', True),
    ('tlw', 'bf16', True), ('plain', 'fp16', False), ('esu', 'fp16', True)])
def test_resuming_is_exact_where_it_is_asked_for(project, late, stage, amp, fused):
    more = () if stage == 'tlw' else ('train:channels_last=true', )
    force = (*_EXACT, 'train:ema_decay=0.9', f'train:amp={amp}', *more, 'train:skip_nonfinite=2',
             f'train:optim_g={{type: Adam, lr: 1e-3, fused: {str(fused).lower()}}}')
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
    assert [guard.late for guard in late] == [fused, fused]


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


@pytest.mark.parametrize(('stage', 'amp'), [('plain', '~'), ('esu', '~'), ('tlw', '~'), ('esu', 'bf16')])
def test_a_process_for_each_gpu_trains_as_one_with_the_whole_batch(project, stage, amp):
    """NCCL where there are GPUs, else two processes by gloo."""
    count = min(torch.cuda.device_count(), 12) if CUDA else 2  # 12 samples an epoch
    if CUDA and count == 1 and (stage, amp) != ('esu', '~'):
        pytest.skip('one GPU, which has no one to agree with: once is enough')
    each = max(1, 4 // count)
    rate = 1e-5 if stage == 'esu' else 0.01  # of a loss in 0-255 units
    force = [f'train:optim_g={{type: SGD, lr: {rate}}}', 'train:total_iter=4', f'train:amp={amp}', *_EXACT]
    train(project, stage, *force, 'name=one', f'datasets:train:batch_size_per_gpu={count * each}')
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    (project.root / 'entry.py').write_text(
        'from pathlib import Path; from udl_basicsr.train import main; main(Path.cwd())')
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', f'--nproc_per_node={count}', f'--master_port={port}',
         'entry.py', '-opt', f'{stage}.yml', '--launcher', 'pytorch', '--force_yml', *force, 'name=many',
         f'datasets:train:batch_size_per_gpu={each}'],
        cwd=project.root, capture_output=True, text=True, timeout=200, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr[-3000:]
    if stage == 'tlw' and count > 1:  # batch norm sees the images of one process
        assert all(value.isfinite().all() for value in project.weights('many').values())
    else:
        near = {'rtol': 1e-3, 'atol': 1e-5} if amp == '~' else {'rtol': 0.01, 'atol': 2e-5}
        assert_same_weights(project.weights('many'), project.weights('one'), **near)
    flat = yaml.safe_load((project.root / 'experiments/many' / f'{stage}.yml').read_text())
    assert flat['name'] == 'many'
