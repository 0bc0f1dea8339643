"""Runs of several processes: they agree, and each says what is wrong with it."""
import os
import re
import signal
import socket
import sys
import time

import pytest
import torch
import torch.distributed as dist
from basicsr.models import build_model
from forked import Forked, command_line, free_port, ranks

from udl_basicsr.data import loader
from udl_basicsr.data.images import BrokenImageError
from udl_basicsr.models import saving
from udl_basicsr.models.step import StepModel
from udl_basicsr.options.parse import parse_options
from udl_basicsr.training import launch, stages
from udl_basicsr.training.loop import _loaders
from udl_basicsr.utils import children, distributed

_TORCHRUN = ('--launcher', 'pytorch')


def two_ranks(file, root):
    """What each of two processes does, and what it reports of it."""
    distributed.init_dist('pytorch')
    rank = dist.get_rank()
    parsed = parse_options(file, root_path=root, is_train=True, rank=rank, world_size=2, dist=True,
                           force_yml=['train:skip_nonfinite=1'])
    model = build_model(parsed.opt)
    before = {k: v.clone() for k, v in model.net_g.state_dict().items()}
    for number in (1, 2):
        data = {'lq': torch.rand(2, 3, 8, 8), 'gt': torch.rand(2, 3, 16, 16), 'lq_path': [f'rank{rank}.png'] * 2}
        if rank == 1:  # the gradient is finite on both ranks, the loss on one of them is not
            hook = model.criteria['pixel_opt'].register_forward_hook(lambda m, args, out: out + torch.tensor(torch.inf))
        model.feed_data(data)
        try:
            model.optimize_parameters(number)
            same = all(torch.equal(v, before[k]) for k, v in model.net_g.state_dict().items())
            print(f'step {number}: skipped {model.skipped}, unchanged {same}')
        except FloatingPointError as error:
            print(f'stopped: {error}')
        if rank == 1:
            hook.remove()
    reduce, reductions = dist.all_reduce, []
    dist.all_reduce = lambda *args: reductions.append(args) or reduce(*args)
    model.asked_to_stop = lambda: rank == 1
    model.feed_data(data)
    model.optimize_parameters(3)
    print(f'stops: {model.guard.stop}, {len(reductions)} reduction')
    model.net_g.register_buffer('seen', torch.full((), 5. + rank))  # as batch norm, of its own images
    model.validation(_loaders(parsed.opt, 'val')[0], 3, None)
    print(f'validates with {model.net_g.seen.item():g}')
    dist.barrier()
    dist.destroy_process_group()


def test_every_rank_says_what_is_wrong_with_it(project, monkeypatch):
    for rank, child in enumerate(ranks(command_line, ['-opt', 'nope.yml', *_TORCHRUN], cwd=project.root)):
        assert child.wait() == 2, child.stderr
        assert re.fullmatch(rf'rank {rank}: \S*nope\.yml: cannot read this option file: No such.*\n', child.stderr)
    alone = Forked(command_line, ['-opt', 'nope.yml'], cwd=project.root, RANK='1')  # no launcher: not one of several
    assert alone.wait() == 2
    assert re.fullmatch(r'\S*nope\.yml: cannot read this option file: No such.*\n', alone.stderr)

    step = StepModel.optimize_parameters

    def breaks(self, current_iter):
        if self.opt['rank'] == 1:
            raise BrokenImageError('a.png: cannot be read')
        step(self, current_iter)

    monkeypatch.setattr(StepModel, 'optimize_parameters', breaks)
    first, second = ranks(command_line, ['-opt', 'plain.yml', *_TORCHRUN], cwd=project.root)
    assert (first.wait(), second.wait()) == (1, 1)
    assert second.stderr.splitlines()[-1] == 'rank 1: a.png: cannot be read'
    assert first.stderr.splitlines()[-1].startswith('rank 0: another process has ended, and says why: ')
    assert 'Traceback' not in first.stderr + second.stderr


@pytest.mark.parametrize(('variables', 'message'), [
    ({'RANK': 'abc'}, "variable RANK: expected an integer from 0 to 1, got 'abc'"),
    ({'RANK': '2'}, "variable RANK: expected an integer from 0 to 1, got '2'"),
    ({'RANK': '-1'}, "variable RANK: expected an integer from 0 to 1, got '-1'"),
    ({'RANK': None}, 'not started by torchrun'),
    ({'WORLD_SIZE': '0'}, "variable WORLD_SIZE: expected an integer ≥ 1, got '0'"),
    ({'WORLD_SIZE': None}, 'variable WORLD_SIZE: expected an integer ≥ 1, got none'),
    ({'LOCAL_RANK': '²'}, "variable LOCAL_RANK: expected an integer ≥ 0, got '²'"),
    ({'MASTER_PORT': '70000'}, "variable MASTER_PORT: expected an integer from 1 to 65535, got '70000'"),
    ({'MASTER_PORT': None}, 'variable MASTER_PORT: expected an integer from 1 to 65535, got none'),
    ({'MASTER_ADDR': '\x1b[2J..'}, 'variable MASTER_ADDR: expected the address of the first process, got'),
    ({'launcher': 'slurm'}, 'not started by srun'),
    ({'launcher': 'slurm', 'SLURM_PROCID': '0'}, 'scontrol cannot say which machines'),
    ({'scontrol': 'exit 3', 'SLURM_PROCID': '0'}, 'scontrol cannot say which machines SLURM_NODELIST=node-[1-2] means'),
    ({'scontrol': 'echo', 'SLURM_PROCID': '0'}, 'variable SLURM_NTASKS: expected an integer ≥ 1, got none'),
    ({'scontrol': 'echo a', 'SLURM_PROCID': '2', 'SLURM_NTASKS': '2'}, 'variable SLURM_PROCID: expected an integer '),
    ({'scontrol': 'echo a', 'SLURM_PROCID': '1', 'SLURM_NTASKS': '2', 'SLURM_LOCALID': 'x'}, 'variable SLURM_LOCALID'),
    ({'TORCHELASTIC_RESTART_COUNT': 'x'}, 'variable TORCHELASTIC_RESTART_COUNT: expected an integer ≥ 0'),
])
def test_variables_of_the_launcher_are_checked(project, monkeypatch, capsys, variables, message):
    given = {'RANK': '0', 'WORLD_SIZE': '2', 'LOCAL_RANK': '0', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': '29500',
             'SLURM_NODELIST': 'node-[1-2]', **variables}
    launcher = given.pop('launcher', 'slurm' if 'scontrol' in given else 'pytorch')
    if script := given.pop('scontrol', None):
        (project.root / 'scontrol').write_text(f'#!/bin/sh\n{script}\n')
        (project.root / 'scontrol').chmod(0o755)
        monkeypatch.setenv('PATH', str(project.root), prepend=os.pathsep)
    for name, value in given.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, 'argv', ['train.py', '-opt', str(project.root / 'plain.yml'), '--launcher', launcher])
    assert launch.run(stages.train, is_train=True, root_path=project.root) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count('\n') == 1
    assert said[:-1].isprintable()


def test_processes_that_do_not_meet_say_so(project):
    with socket.socket() as other:  # of another program, on the port that was meant for the first process
        other.bind(('127.0.0.1', 0))
        other.listen()
        port = other.getsockname()[1]
        child = Forked(command_line, ['-opt', 'plain.yml', *_TORCHRUN], cwd=project.root, RANK='0', WORLD_SIZE='1',
                       LOCAL_RANK='0', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
        assert child.wait() == 2, child.stderr
    assert f'rank 0: the 1 processes do not find one another at 127.0.0.1, port {port}: ' in child.stderr
    assert 'Traceback' not in child.stderr


def test_a_rank_whose_torchrun_has_ended_ends_too(project, monkeypatch):
    monkeypatch.setattr(children, '_STARTED_BY', -1)
    for launched, status in (({}, 0), ({'TORCHELASTIC_RUN_ID': 'none'}, 143)):  # else it may be started by hand
        child = Forked(command_line, ['-opt', 'plain.yml', *_TORCHRUN], cwd=project.root, RANK='0', WORLD_SIZE='1',
                       LOCAL_RANK='0', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()), **launched)
        assert child.wait() == status, child.stderr
    assert child.stderr.startswith('rank 0: Stopped by SIGTERM. What was saved before is kept')


def one_is_slow():
    distributed.init_dist('pytorch', timeout=1 / 60)
    rank = dist.get_rank()
    print(distributed.together(lambda: (rank == 0 and time.sleep(4), rank)))
    try:
        distributed.broadcast(rank == 0 and time.sleep(4))
    except RuntimeError:
        print('no longer waits')


def test_a_cache_is_waited_for_as_long_as_it_takes(tmp_path):
    for rank, child in enumerate(ranks(one_is_slow, cwd=tmp_path)):
        assert child.wait() == 0, child.stderr[-3000:]
        assert child.stdout.splitlines()[0] == '[(None, 0), (False, 1)]'
        assert (child.stdout.splitlines()[1:] == ['no longer waits']) or rank == 0  # all else is not


def test_the_images_that_any_rank_skips_are_counted(project, monkeypatch):
    collate = loader._collate
    monkeypatch.setattr(loader, '_collate', lambda samples: {**collate(samples), 'broken': 1 + 2 * dist.get_rank()})
    argv = ['-opt', 'plain.yml', *_TORCHRUN, '--force_yml', 'datasets:train:skip_broken=true', 'val=~',
            'datasets:train:batch_size_per_gpu=2', 'train:total_iter=2']
    for child in ranks(command_line, argv, cwd=project.root):
        assert child.wait() == 0, child.stderr[-3000:]
    assert 'broken_images: 8.0' in project.log('plain')


def test_a_rank_that_is_stopped_waits_until_rank_0_has_saved(project, monkeypatch):
    """Once one has ended, what supervises them ends the others."""
    step, save = StepModel.optimize_parameters, saving.save_atomic

    def stopped(self, current_iter):
        if self.opt['rank'] == 1 and current_iter == 2:
            signal.raise_signal(signal.SIGTERM)
        step(self, current_iter)

    monkeypatch.setattr(StepModel, 'optimize_parameters', stopped)
    monkeypatch.setattr(saving, 'save_atomic', lambda *args: time.sleep(2) or save(*args))
    force = ('--force_yml', 'datasets:train:batch_size_per_gpu=2')
    saves, waits = ranks(command_line, ['-opt', 'plain.yml', *_TORCHRUN, *force], cwd=project.root)
    assert waits.wait() == 75, waits.stderr
    assert (project.root / 'experiments/plain/training_states/2.state').exists()
    assert saves.wait() == 75


def test_ranks_agree_on_steps_signals_and_buffers(project):
    for child in ranks(two_ranks, str(project.root / 'plain.yml'), str(project.root), cwd=project.root):
        assert child.wait() == 0, child.stderr[-3000:]
        step, stopped, asked, validated = child.stdout.splitlines()
        assert step == 'step 1: skipped 1, unchanged True'
        assert stopped.startswith('stopped: ')
        assert 'rank 0: l_pix 0.' in stopped
        assert 'rank 1: l_pix inf' in stopped
        assert 'images rank1.png, rank1.png' in stopped
        assert asked == 'stops: True, 1 reduction'  # one tells of the step and of the signal to rank 1
        assert validated == 'validates with 5'  # what rank 0 saves
