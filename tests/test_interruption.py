"""Runs that are stopped or doubled: nothing is lost, and they go on."""
# ruff: noqa: F811 - fixtures that come from stopped_runs
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import assert_same_weights
from stopped_runs import Child, _ctrl_c, at_iteration, run_of  # noqa: F401
from whole_runs import train

from udl_basicsr.data.loader import build_dataset, train_batches
from udl_basicsr.models.step import StepModel
from udl_basicsr.options import parse as options
from udl_basicsr.training import launch, loop, run_folder, stages
from udl_basicsr.training.history import read_history
from udl_basicsr.training.interrupts import EXIT_INTERRUPTED, Interrupted, Interrupts
from udl_basicsr.training.states import note_changes
from udl_basicsr.utils.checkpoints import CheckpointError

# -------------------------------------------------------------------------------------------------------------- signals

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


def test_a_second_signal_is_not_kept(monkeypatch):
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # of torchrun, which passes on what has reached the rank as well
        assert interrupts.agreed(torch.device('cpu'))
        later = time.monotonic() + 3
        monkeypatch.setattr(time, 'monotonic', lambda: later)
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
    assert 'Stopped by SIGTERM after iteration' in run.stderr


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
    assert child.stderr.splitlines()[-1].startswith(f'Stopped by {number.name}. What was saved before is kept')
    assert 'Traceback' not in child.stderr
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


# ---------------------------------------------------------------------------------------------------------- checkpoints

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


def test_processes_that_share_the_same_batches_otherwise_are_no_other_training(caplog):
    run = {'manual_seed': 3, 'world_size': 2, 'batch_size': 4, 'images': 6}
    for change, said in (({'world_size': 1, 'batch_size': 8}, 'with the same images in each batch'),
                         ({'world_size': 1, 'batch_size': 4}, 'are no longer those'),
                         ({'world_size': 1, 'batch_size': 8, 'images': 7}, 'are no longer those')):
        caplog.clear()
        note_changes({'run': run}, {**run, **change})
        assert 'world size 2 -> 1' in caplog.text
        assert said in caplog.text


def test_the_batch_that_a_state_notes_is_that_of_all_gpus_of_a_process(project):
    """DataParallel's is shared among them: with another number of GPUs other images are trained."""
    opt = project.parse('plain', 'val=~').opt
    noted = []
    for gpus in (0, 2):
        train_set = build_dataset(opt['datasets']['train'])
        sampler, _ = train_batches(train_set, {**opt, 'num_gpu': gpus})
        noted.append(loop._run(train_set, sampler, opt, {}, None)['batch_size'])
    assert noted == [4, 8]


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
        assert 'after iteration 6 of 6, which is saved; the last validation is still to be done' in run.stderr
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
