"""The trial of a plan: every cell, small. And its dry run, of what is done; how runs begin and fail."""
# ruff: noqa: F811 - fixtures that come from plan_cases
import json
import signal
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from forked import forked
from plan_cases import FILES, METRICS, PLAN, everything, script, write  # noqa: F401
from stopped_runs import _ctrl_c  # noqa: F401

from udl_basicsr.experiments import plan, runner, trial
from udl_basicsr.options.parse import OptionError


@pytest.mark.usefixtures('fork_server')
def test_the_trial_of_a_table_goes_through_every_cell(write, tmp_path, script, capsys, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    metrics = {**METRICS, 'lpips': {'type': 'calculate_lpips', 'net': 'squeeze', 'better': 'lower'}}
    files = {'train.yml': {**FILES['train.yml'], 'degradation': 'BD'},
             'test.yml': {**FILES['test.yml'], 'val': {'metrics': metrics}}}
    methods = {**PLAN['methods'], 'TLW': {'label': 'L1-TLW', 'base': 'tlw.yml'}}
    file = write(files, methods=methods)
    before = everything(tmp_path)
    assert script.main([str(file), '--root', str(tmp_path), '--trial', '--only', 'ESPCN', 'EDSR-S', 'x3']) == 0
    said = capsys.readouterr().out
    assert '4 of 4 cells run' in said
    folder = tmp_path / 'trials' / 'table'
    assert {p for p in everything(tmp_path) if folder not in (p, *p.parents)} == {*before, folder.parent}
    found = {file.stem: json.loads(file.read_text()) for file in (folder / 'records').iterdir()}
    assert found.keys() == {f'{cell}_x3_seed0' for cell in ('EDSR-S_L1', 'EDSR-S_UDL', 'EDSR-S_TLW', 'ESPCN_L1')}
    udl = found['EDSR-S_UDL_x3_seed0']
    assert [stage['iterations'] for stage in udl['stages']] == [trial.ITERATIONS] * 2
    assert (udl['network_title'], udl['degradation'], udl['scale']) == ('EDSR-S', 'BD', 3)
    assert udl['datasets']['Set5']['mean'].keys() == {'psnr', 'lpips'}
    # the network is the plan's own, and its costs are those of 144x144 output pixels, here in closed form
    weights = found['ESPCN_L1_x3_seed0']['parameters'] - 8 - 4 - 27  # biases
    assert found['ESPCN_L1_x3_seed0']['costs']['macs'] == weights * 48**2
    assert udl['run_time']['ms'] > 0
    assert udl['costs']['training'] > 0
    assert udl['peak_memory']['bytes'] > 2**20
    # a second trial takes the place of the first; a folder of somebody's own is left alone
    (folder / '.trial').unlink()
    assert script.main([str(file), '--root', str(tmp_path), '--trial']) == 2
    assert 'no trial has made it' in capsys.readouterr().err


@pytest.mark.parametrize(('name', 'methods'), [('udl-2', ['ESU_UDL']), ('le-1', ['sigma_alone', 'L1_sigma', 'sigma'])])
@pytest.mark.usefixtures('fork_server')
def test_the_trial_of_a_printed_table(name, methods, tmp_path, script, capsys):
    """Two stages, and each form of the sigma branch, as the plans of the papers have them."""
    file = Path(__file__).parent.parent / 'options' / 'papers' / f'{name}.yml'
    assert script.main([str(file), '--root', str(tmp_path), '--trial', '--jobs', '2', '--only', *methods]) == 0
    assert f'{len(methods)} of {len(methods)} cells run' in capsys.readouterr().out
    runs = [run for run in plan.read_plan(file, tmp_path).runs if run.method in methods]
    found = {file.stem for file in (tmp_path / 'trials' / name / 'records').iterdir()}
    assert found == {run.record(tmp_path).stem for run in runs}
    assert len(runs) == len(methods)


@pytest.mark.usefixtures('fork_server')
def test_a_trial_says_which_cell_fails(write, tmp_path, script, capsys):
    methods = {'L1': PLAN['methods']['L1'], 'explodes': {'base': 'l1.yml', 'options': {
        'train': {'optim_g': {'type': 'SGD', 'lr': 1e30}}}}}
    file = write(methods=methods, first={}, networks={'EDSR-S': {'base': 'edsr.yml'}}, scales={'x2': {}})
    assert script.main([str(file), '--root', str(tmp_path), '--trial']) == 1
    said = capsys.readouterr().out
    assert 'EDSR-S explodes ×2 seed 0: failed with status 1' in said
    assert 'not finite' in said
    assert '1 of 2 cells run' in said


def test_a_run_that_is_killed_early_says_so_without_its_log(tmp_path):
    log = tmp_path / 'run.log'
    assert runner.Event(None, 1, log=log).failure(3) == f'failed with status 1, before it could write {log}'
    log.write_text('a\nb\n')
    assert runner.Event(None, -9, log=log).failure(1) == \
        f'was killed by signal 9, for lack of memory perhaps; the end of {log}:\nb'


def test_the_end_of_a_log_is_shown_whatever_is_in_it(tmp_path):
    log = tmp_path / 'run.log'
    log.write_bytes('ok\nends with ×'.encode('latin-1') + b'\n\xe2\x88')
    event = runner.Event(None, -9, log=log)
    assert event.last_lines(2) == 'ends with \ufffd\n\ufffd'
    log.write_bytes(b'')
    assert event.last_lines(1) == ''


@pytest.mark.skipif(not hasattr(signal, 'pthread_sigmask'), reason='Windows has no masks')
def test_ctrl_c_while_a_run_is_being_started_waits_and_ends_it(write, tmp_path, monkeypatch):
    """The fork server, which inherits the mask, had died of it with a traceback while it imported."""
    first, *_ = plan.read_plan(write(), tmp_path).runs
    arguments = first, tmp_path / 'records', tmp_path
    calls = []

    def start(process):
        signal.raise_signal(signal.SIGINT)
        calls.append('started')

    for name, call in (('start', start), ('terminate', lambda _: calls.append('ended')), ('join', lambda _: None)):
        monkeypatch.setattr(BaseProcess, name, call)
    with pytest.raises(KeyboardInterrupt):
        next(runner.make_all([first], *arguments[1:], [None]))
    assert calls == ['started', 'ended']
    monkeypatch.undo()

    def in_the_child():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        runner._command = lambda *_: sys.exit(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        runner.make(*arguments, tmp_path / 'log', None)

    assert forked(in_the_child, cwd=tmp_path).returncode == 0


def test_a_stage_that_was_stopped_before_its_first_line_has_begun(write, tmp_path):
    """Its time is that of the rest, and no iteration's."""
    stage = plan.read_plan(write(), tmp_path).runs[0].stages[0]
    assert not runner.begun(tmp_path, stage)
    states = tmp_path / 'experiments' / stage.name / 'training_states'
    states.mkdir(parents=True)
    assert not runner.begun(tmp_path, stage)
    (states / '4.state').touch()
    assert runner.begun(tmp_path, stage)
    assert runner.done(tmp_path, stage) == 0


def test_the_trial_takes_the_smallest_crop_that_is_enough(write, tmp_path):
    runs = plan.read_plan(write(), tmp_path).runs
    runs = [run for run in runs if (run.network, run.scale, run.seed) == ('EDSR-S', 2, 0)]
    assert trial._smallest_side(runs, tmp_path, 'plan.yml') == 16
    gv = {'type': 'GradientVarianceLoss', 'patch_size': 40}
    large = plan.read_plan(write({'l1.yml': {'stage': 'plain', 'train': {'gv_opt': gv}}}), tmp_path).runs[0]
    assert trial._smallest_side([large], tmp_path, 'plan.yml') == 24  # 48 HR pixels hold a patch of 40, 32 do not


def test_every_seed_and_method_is_checked_before_the_first_begins(write, tmp_path):
    methods = {**PLAN['methods'], 'late': {'base': 'l1.yml', 'seeds': [3], 'options': {
        'train': {'pixel_opt': {'type': 'L2Loss'}}}}}
    read = plan.read_plan(write(methods=methods), tmp_path)
    with pytest.raises(OptionError, match=r'plan\.yml: EDSR-S_late_x2_seed3: train\.pixel_opt\.type') as error:
        runner.check(read.runs, tmp_path, read.file, data=False)
    assert len(error.value.problems) == 2  # of both scales


def test_a_dry_run_asks_for_nothing_that_is_done(script, tmp_path, capsys):
    """Of weights and data of runs that have their records."""
    root = Path(__file__).parents[1]
    words = [str(root / 'options/compare/refine_CARN_M_x4.yml'), '--seeds', '0', '--root', str(tmp_path), '--dry_run']
    assert script.main([*words, '--out', str(root / 'docs/results/refine_CARN_M_x4')]) == 0
    assert '3 runs, 0 to be made' in capsys.readouterr().out
    assert script.main([*words, '--out', str(tmp_path / 'none')]) == 2
    assert 'pretrain_network_g: no such file: ' in capsys.readouterr().err


@pytest.mark.skipif(not Path('/proc/self').exists(), reason='of Linux')
def test_records_that_could_not_be_written_are_known_before_the_training(write, tmp_path, script, capsys):
    assert script.main([str(write()), '--root', str(tmp_path), '--out', '/proc/x']) == 2
    assert 'error: /proc/x, for the records: /proc cannot be written to' in capsys.readouterr().err
    assert not (tmp_path / 'experiments').exists()
