"""Runs of several processes: they agree, and each says what is wrong with it."""
import os
import re
import socket
import subprocess
import sys

import pytest
from stopped_runs import Child, _ctrl_c  # noqa: F401

from udl_basicsr.data.images import BrokenImageError
from udl_basicsr.models.step import StepModel
from udl_basicsr.training import launch, stages

_TWO_RANKS = """
import sys
import torch, torch.distributed as dist, udl_basicsr
from udl_basicsr.utils import distributed
from udl_basicsr.options.parse import parse_options
from udl_basicsr.training.loop import _loaders
from basicsr.models import build_model
distributed.init_dist('pytorch')
rank = dist.get_rank()
report = open(f'{sys.argv[2]}/rank{rank}.txt', 'w', buffering=1)
parsed = parse_options(sys.argv[1], root_path=sys.argv[2], is_train=True, rank=rank, world_size=2, dist=True,
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
        print(f'rank {rank} step {number}: skipped {model.skipped}, unchanged {same}', file=report)
    except FloatingPointError as error:
        print(f'rank {rank} stopped: {error}', file=report)
    if rank == 1:
        hook.remove()
reduce, reductions = dist.all_reduce, []
dist.all_reduce = lambda *args: reductions.append(args) or reduce(*args)
model.asked_to_stop = lambda: rank == 1
model.feed_data(data)
model.optimize_parameters(3)
print(f'rank {rank} stops: {model.guard.stop}, {len(reductions)} reduction', file=report)
model.net_g.register_buffer('seen', torch.full((), 5. + rank))  # as batch norm, of its own images
model.validation(_loaders(parsed.opt, 'val')[0], 3, None)
print(f'rank {rank} validates with {model.net_g.seen.item():g}', file=report)
dist.barrier()
dist.destroy_process_group()
"""


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def ranks(project, *argv):
    """Two processes of one training, as torchrun would start them."""
    found = {'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': free_port(), 'CUDA_VISIBLE_DEVICES': ''}
    return [Child(project, *argv, '--launcher', 'pytorch', RANK=str(rank), LOCAL_RANK=str(rank), **found)
            for rank in (0, 1)]


def test_every_rank_says_what_is_wrong_with_it(project, monkeypatch):
    for rank, child in enumerate(ranks(project, '-opt', 'nope.yml')):
        assert child.wait() == 2
        assert re.fullmatch(rf'rank {rank}: \S*nope\.yml: cannot read this option file: No such.*\n', child.text())
    alone = Child(project, '-opt', 'nope.yml', RANK='1')  # no launcher, whatever the environment says
    assert alone.wait() == 2
    assert re.fullmatch(r'\S*nope\.yml: cannot read this option file: No such.*\n', alone.text())

    step = StepModel.optimize_parameters

    def breaks(self, current_iter):
        if self.opt['rank'] == 1:
            raise BrokenImageError('a.png: cannot be read')
        step(self, current_iter)

    monkeypatch.setattr(StepModel, 'optimize_parameters', breaks)
    first, second = ranks(project, '-opt', str(project.root / 'plain.yml'))
    assert (first.wait(), second.wait()) == (1, 1)
    assert second.text().splitlines()[-1] == 'rank 1: a.png: cannot be read'
    assert first.text().splitlines()[-1].startswith('rank 0: another process has ended, and says why: ')
    assert 'Traceback' not in first.text() + second.text()


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
        child = Child(project, '-opt', str(project.root / 'plain.yml'), '--launcher', 'pytorch', RANK='0',
                      WORLD_SIZE='1', LOCAL_RANK='0', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
        assert child.wait() == 2
    assert f'rank 0: the 1 processes do not find one another at 127.0.0.1, port {port}: ' in child.text()
    assert 'Traceback' not in child.text()


def test_ranks_agree_on_steps_signals_and_buffers(project):
    script = project.root / 'ranks.py'
    script.write_text(_TWO_RANKS)
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', f'--master_port={free_port()}',
         str(script), str(project.root / 'plain.yml'), str(project.root)],
        capture_output=True, text=True, timeout=240, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        step, stopped, asked, validated = (project.root / f'rank{rank}.txt').read_text().splitlines()
        assert step == f'rank {rank} step 1: skipped 1, unchanged True'
        assert stopped.startswith(f'rank {rank} stopped')
        assert 'rank 0: l_pix 0.' in stopped
        assert 'rank 1: l_pix inf' in stopped
        assert 'images rank1.png, rank1.png' in stopped
        assert asked == f'rank {rank} stops: True, 1 reduction'  # one tells of the step and of the signal to rank 1
        assert validated == f'rank {rank} validates with 5'  # what rank 0 saves
