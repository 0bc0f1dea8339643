"""Runs that are stopped, broken or doubled: nothing is lost, and what happened is said."""
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import assert_same_weights

from udl_basicsr.data.images import BrokenImageError
from udl_basicsr.models.step import StepModel
from udl_basicsr.options import parse as options
from udl_basicsr.options.parse import OptionError
from udl_basicsr.training import launch, loop, run_folder, stages
from udl_basicsr.training.history import read_history
from udl_basicsr.training.interrupts import EXIT_INTERRUPTED, Interrupted, Interrupts
from udl_basicsr.utils.checkpoints import CheckpointError


def train(project, stage, *force, **kwargs):
    parsed = project.parse(stage, *force, **kwargs)
    stages.train(parsed, 'the command')
    return parsed


def run_of(project, name) -> Path:
    return project.root / 'experiments' / name


@pytest.fixture
def at_iteration(monkeypatch):
    """Does something in the middle of a step, once."""

    def arrange(number, action):
        step = StepModel.optimize_parameters

        def stepping(self, current_iter):
            if current_iter == number:
                action()
            step(self, current_iter)

        monkeypatch.setattr(StepModel, 'optimize_parameters', stepping)

    yield arrange
    monkeypatch.undo()


class Child:
    """A command line in a process of its own, forked: what the test has patched is patched there too."""

    def __init__(self, project, *argv, is_train=True, sigint=signal.default_int_handler, **environment):
        self.output = project.root / f'output_{environment.get("RANK", "")}.txt'
        self.process = multiprocessing.get_context('fork').Process(
            target=self._run, args=(project.root, argv, is_train, sigint, environment))
        self.process.start()

    def _run(self, root, argv, is_train, sigint, environment):
        os.environ.update(environment)
        with open(self.output, 'w') as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
        signal.signal(signal.SIGINT, sigint)  # pytest itself may have been started with SIGINT ignored
        sys.stdout, sys.stderr = (os.fdopen(number, 'w', 1, closefd=False) for number in (1, 2))
        sys.argv = ['train.py', *argv]
        sys.exit(launch.run(stages.train if is_train else lambda parsed, _: loop.test(parsed), is_train, root))

    def wait_for(self, file):
        end = time.monotonic() + 100
        while not file.exists():
            assert self.process.is_alive(), self.text()
            assert time.monotonic() < end, self.text()
            time.sleep(0.01)
        file.unlink()

    def stop(self, number) -> int:
        """Sends a signal; returns the exit status."""
        os.kill(self.process.pid, number)
        return self.wait()

    def wait(self) -> int:
        self.process.join(100)
        if self.process.is_alive():
            self.process.kill()
        return self.process.exitcode

    def text(self) -> str:
        return self.output.read_text()


# ------------------------------------------------------------------------------------------------------------- signals


@pytest.fixture(autouse=True)
def _ctrl_c():
    """As in a terminal; where the tests were started with ``nohup ... &``, Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_the_step_with_all_saved(project, at_iteration, number, workers):
    force = ('train:ema_decay=0.9', f'datasets:train:num_worker_per_gpu={workers}')
    train(project, 'plain', 'name=straight', *force)
    before = signal.getsignal(number)
    at_iteration(3, lambda: signal.raise_signal(number))
    with pytest.raises(Interrupted, match=f'Stopped by {number.name} after iteration 3 of 8, which is saved'):
        train(project, 'plain', *force)
    assert signal.getsignal(number) is before
    assert {p.name for p in (run_of(project, 'plain') / 'training_states').iterdir()} == {'3.state'}
    at_iteration(-1, None)
    train(project, 'plain', *force, auto_resume=True)
    for key in ('params', 'params_ema'):
        assert_same_weights(project.weights('plain', key=key), project.weights('straight', key=key))


def test_a_second_signal_is_not_kept():
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        assert interrupts.agreed(torch.device('cpu'))
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_command_that_ignores_ctrl_c_stops_on_sigterm(project, monkeypatch):
    """As `nohup python train.py ... &` starts it."""
    step, there = StepModel.optimize_parameters, project.root / 'there'

    def slow(self, current_iter):
        there.touch()
        time.sleep(0.05)
        step(self, current_iter)

    monkeypatch.setattr(StepModel, 'optimize_parameters', slow)
    run = Child(project, '-opt', str(project.root / 'plain.yml'), '--force_yml', 'train:total_iter=10000', 'val=~',
                sigint=signal.SIG_IGN)
    run.wait_for(there)
    os.kill(run.process.pid, signal.SIGINT)
    for _ in range(3):
        run.wait_for(there)  # it trains on
    assert run.stop(signal.SIGTERM) == EXIT_INTERRUPTED
    assert 'Stopped by SIGTERM after iteration' in run.text()


@pytest.mark.parametrize(('number', 'status'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize('place', ['the options are checked', 'the data are read', 'the test is made'])
def test_a_signal_before_training_leaves_no_trace(project, monkeypatch, number, status, place):
    there, stage = project.root / 'there', 'plain'

    def slow(*args, **kwargs):
        there.touch()
        time.sleep(100)

    if place == 'the options are checked':
        monkeypatch.setattr(options, 'check_data', slow)
    elif place == 'the data are read':
        monkeypatch.setattr(loop, 'build_dataset', slow)
    else:
        monkeypatch.setattr(StepModel, 'test', slow)
        stage = 'test'
        (project.root / 'test.yml').write_text(
            '_base_: plain.yml\ndatasets: {train: ~, val: ~, test: {name: t, type: PairedImageDataset, dataroot_gt: '
            f'{project.pairs}/val/gt, dataroot_lq: {project.pairs}/val/lq, io_backend: {{type: disk}}}}}}\n'
            f'train: ~\nlogger: ~\nval: {{val_freq: ~}}\npath: {{pretrain_network_g: {project.root}/g.pth}}\n')
        torch.save({'params': project.model('plain').net_g.state_dict()}, project.root / 'g.pth')
    child = Child(project, '-opt', str(project.root / f'{stage}.yml'), is_train=stage == 'plain')
    child.wait_for(there)
    assert child.stop(number) == status
    assert child.text().splitlines()[-1].startswith(f'Stopped by {number.name}. What was saved before is kept')
    assert 'Traceback' not in child.text()
    assert not (project.root / 'experiments').exists()


def test_exit_statuses_of_the_command_line(project, at_iteration, monkeypatch, capsys):
    def main(*extra):
        monkeypatch.setattr(sys, 'argv', ['train.py', '-opt', str(project.root / 'plain.yml'), *extra])
        return launch.run(stages.train, is_train=True, root_path=project.root)

    at_iteration(2, lambda: signal.raise_signal(signal.SIGTERM))
    assert main() == EXIT_INTERRUPTED == 75
    assert 'after iteration 2 of 8, which is saved. Go on with --auto_resume' in capsys.readouterr().err
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '1')  # torchrun has started the processes anew
    at_iteration(-1, None)
    assert main() == 0
    assert 'iterations 3 to 8' in project.log('plain')


# --------------------------------------------------------------------------------------------------------- checkpoints


def cut(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


@pytest.mark.parametrize(('broken', 'how'), [
    ('training_states/6.state', cut),
    ('training_states/6.state', lambda path: path.write_bytes(b'')),
    ('models/net_g_6.pth', cut),
    ('models/net_g_6.pth', Path.unlink),
    ('models/net_u_6.pth', cut),
])
def test_a_broken_latest_state_falls_back_to_the_last_good_one(project, broken, how):
    force = ('logger:save_checkpoint_freq=2', )
    train(project, 'esu', *force)
    straight = project.weights('esu', label='u')
    run = run_of(project, 'esu')
    for path in (*run.rglob('*_8.pth'), *run.rglob('*latest*'), run / 'training_states/8.state'):
        path.unlink()
    how(run / broken)
    train(project, 'esu', *force, auto_resume=True)
    assert f'{Path(broken).name}' in project.log('esu')
    assert 'Going back to' in project.log('esu')
    assert 'iterations 5 to 8' in project.log('esu')
    assert_same_weights(project.weights('esu', label='u'), straight)


def test_where_no_state_is_whole_nothing_is_touched(project):
    train(project, 'plain')
    run = run_of(project, 'plain')
    for state in (run / 'training_states').iterdir():
        cut(state)
    before = {p: p.read_bytes() for p in run.rglob('*.*') if p.is_file()}
    with pytest.raises(CheckpointError, match=r'none of the 2 states can be used:\n.*8\.state: cannot be read(.|\n)*'
                                              r'4\.state(.|\n)*Start anew without --auto_resume'):
        train(project, 'plain', auto_resume=True)
    with pytest.raises(CheckpointError, match=r'8\.state: cannot be read'):  # named: no other one will do
        train(project, 'plain', f'path:resume_state={run}/training_states/8.state')
    assert {p: p.read_bytes() for p in before} == before
    assert [p.name for p in run.parent.iterdir()] == ['plain']


def test_what_changed_since_the_state_was_saved_is_said(project):
    train(project, 'plain', 'manual_seed=~', 'train:total_iter=4')
    drawn = torch.load(run_of(project, 'plain') / 'training_states/4.state', weights_only=True)['run']['manual_seed']
    train(project, 'plain', 'manual_seed=~', 'datasets:train:batch_size_per_gpu=2', auto_resume=True)
    assert 'batch size 4 -> 2. Training goes on at the same iteration' in project.log('plain')
    resumed = torch.load(run_of(project, 'plain') / 'training_states/8.state', weights_only=True)['run']
    resumed.pop('options')
    assert resumed == {'manual_seed': drawn, 'world_size': 1, 'images': 6, 'batch_size': 2}


@pytest.mark.parametrize('val_freq', [1000, 3])
@pytest.mark.parametrize(('number', 'status'), [
    (signal.SIGTERM, EXIT_INTERRUPTED), (signal.SIGINT, EXIT_INTERRUPTED), (signal.SIGKILL, -signal.SIGKILL)])
def test_nothing_is_lost_in_the_last_validation(project, monkeypatch, number, status, val_freq):
    """It may take hours, on data sets of large images; and a run that was stopped there has not ended."""
    force = ('train:total_iter=6', f'val:val_freq={val_freq}', 'logger:save_checkpoint_freq=5000',
             'val:save_best={metric: psnr, dataset: val}')
    measure, there = StepModel._measure, project.root / 'there'

    def slow(self, *args):
        if (run_of(project, 'plain') / 'training_states' / '6.state').exists():
            there.touch()
            time.sleep(100)
        return measure(self, *args)

    monkeypatch.setattr(StepModel, '_measure', slow)
    run = Child(project, '-opt', str(project.root / 'plain.yml'), '--force_yml', *force)
    run.wait_for(there)
    assert run.stop(number) == status
    if status == EXIT_INTERRUPTED:
        assert 'after iteration 6 of 6, which is saved; the last validation is still to be done' in run.text()
    models = run_of(project, 'plain') / 'models'
    assert not (models / 'net_g_latest.pth').exists()  # or the next stage would take it for done

    monkeypatch.undo()
    train(project, 'plain', *force, auto_resume=True)
    train(project, 'plain', *force, 'name=whole')
    for label in ('best', 'latest', '6'):
        assert_same_weights(project.weights('plain', label), project.weights('whole', label))
    states = [run_of(project, name) / 'training_states' / '6.state' for name in ('plain', 'whole')]
    resumed, whole = (torch.load(state, weights_only=True) for state in states)
    assert resumed['best_metric_results'] == whole['best_metric_results']
    history, straight = (read_history(run_of(project, name) / 'history.jsonl') for name in ('plain', 'whole'))
    assert without_seconds(history) == without_seconds(straight)


def without_seconds(history: list[dict]) -> list[dict]:
    return [{key: value for key, value in entry.items() if key != 'seconds'} for entry in history]


def test_two_runs_of_one_name(project):
    train(project, 'plain')
    before = {p: p.read_bytes() for p in run_of(project, 'plain').rglob('*.pth')}
    held = run_folder._lock(run_of(project, 'plain'))
    for kwargs in ({}, {'auto_resume': True}):
        with pytest.raises(run_folder.RunBusyError, match=rf'plain: is being trained by process {os.getpid()} on '):
            train(project, 'plain', **kwargs)
    assert {p: p.read_bytes() for p in before} == before
    assert [p.name for p in run_of(project, 'plain').parent.iterdir()] == ['plain']
    held.close()
    train(project, 'plain')
    assert len(list(run_of(project, 'plain').parent.iterdir())) == 2  # the one before is archived, as ever


# -------------------------------------------------------------------------------------------------------------- places


def test_runs_of_one_second_are_all_kept(project, monkeypatch):
    monkeypatch.setattr(run_folder, 'get_time_str', lambda: '20260101_000000')
    for iterations in (1, 2, 3, 4):
        train(project, 'plain', f'train:total_iter={iterations}', 'val=~', 'logger:use_tb_logger=true')
    for kind in ('experiments', 'tb_logger'):
        names = ['plain', *(f'plain_archived_20260101_000000{tail}' for tail in ('', '_2', '_3'))]
        assert sorted(p.name for p in (project.root / kind).iterdir()) == names
    kept = [next((project.root / 'experiments' / name / 'training_states').iterdir()).stem for name in names]
    assert kept == ['4', '1', '2', '3']


@pytest.mark.parametrize(('place', 'make', 'message'), [
    ('experiments', Path.touch, 'experiments is a file; remove or rename it'),
    ('experiments', lambda path: path.symlink_to('nowhere'), 'experiments is a link to what is not there; remove'),
    ('experiments/plain', Path.touch, 'experiments/plain is a file; remove'),
    ('tb_logger', Path.touch, 'tb_logger is a file; remove'),
    ('experiments/plain/.lock', Path.mkdir, r'plain/\.lock is no file; expected the lock of a run'),
])
def test_what_stands_in_the_place_of_a_folder_is_named(project, place, make, message):
    path = project.root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)
    before = sorted(project.root.rglob('*'))
    with pytest.raises(OptionError, match=rf'plain\.yml: name: \S*.*{message}'):
        project.parse('plain')
    assert sorted(project.root.rglob('*')) == before


@pytest.mark.parametrize('name', ['models', 'history.jsonl', '.lock'])
def test_an_option_file_may_be_called_like_a_part_of_the_run(project, name):
    file = project.root / name
    file.write_text((project.root / 'plain.yml').read_text())
    for kwargs in ({}, {'auto_resume': True}):
        parsed = options.parse_options(str(file), root_path=str(project.root), is_train=True, **kwargs,
                                       force_yml=['train:total_iter=2'])
        stages.train(parsed)
    run = run_of(project, 'plain')
    assert options.load_yaml(str(run / f'{name}.yml'))['train']['total_iter'] == 2
    assert read_history(run / 'history.jsonl')[-1]['iter'] == 2


def test_a_working_folder_that_was_deleted_is_said(project, monkeypatch):
    gone = project.root / 'gone'
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    child = Child(project, '-opt', 'plain.yml')
    assert child.wait() == 2
    assert child.text() == 'the working folder has been deleted: change to one that is there\n'


# ---------------------------------------------------------------------------------------------------------------- data


@pytest.fixture
def broken_pairs(project, pairs):
    """The project on data of its own, of which an image breaks once it has been checked."""
    own = project.root / 'pairs'
    shutil.copytree(pairs, own)
    base = project.root / '_base_.yml'
    base.write_text(base.read_text().replace(str(pairs), str(own)))
    return own / 'train' / 'lq' / '3.png'


@pytest.mark.parametrize('workers', [0, 2])
def test_an_image_that_breaks_stops_the_run_by_its_name(project, broken_pairs, workers):
    parsed = project.parse('plain', f'datasets:train:num_worker_per_gpu={workers}')
    broken_pairs.write_bytes(b'')
    # the one that is broken, not its partner
    with pytest.raises(BrokenImageError, match=r'(^|: )\S*lq/3\.png: cannot be read for training(.|\n)*skip_brok'):
        stages.train(parsed)
    assert not list(run_of(project, 'plain').rglob('*latest*'))


@pytest.mark.parametrize('workers', [0, 2])
def test_or_is_left_out_and_counted(project, broken_pairs, workers):
    parsed = project.parse('plain', f'datasets:train:num_worker_per_gpu={workers}', 'datasets:train:skip_broken=true')
    broken_pairs.write_bytes(b'')
    stages.train(parsed)
    # 8 batches of 4, in epochs of 12 samples: each image twice in every 3 batches
    assert 'broken_images: ' in project.log('plain')
    last = project.log('plain').rsplit('broken_images: ', 1)[1].split()[0]
    assert 4 <= float(last) <= 6
    assert len(re.findall(r'Left out, now and whenever', project.log('plain'))) <= max(workers, 1)


def test_a_disk_that_is_gone_does_not_go_unnoticed(project, broken_pairs, at_iteration):
    at_iteration(2, lambda: shutil.rmtree(broken_pairs.parent))
    with pytest.raises(BrokenImageError, match='20 training images in a row cannot be read'):
        train(project, 'plain', 'datasets:train:skip_broken=true')


# ---------------------------------------------------------------------------------------------------- several processes

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
