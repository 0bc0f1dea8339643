"""Comparisons: plans of runs that differ in their loss alone, made, stopped and gone on with."""
import os
import re
import signal
import threading
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from invented import invented_record
from test_records import ROOT

from udl_basicsr.cli import compare
from udl_basicsr.data.loader import TrainBatches
from udl_basicsr.experiments import complexity, record_files, runner
from udl_basicsr.experiments import plan as plans
from udl_basicsr.experiments import records as kept
from udl_basicsr.models.stage_table import trains_head_alone
from udl_basicsr.options.parse import OptionError, parse_options
from udl_basicsr.training import run_folder

# ------------------------------------------------------------------------------------------------------- order of crops

def test_a_stage_goes_on_in_the_order_of_the_one_before():
    arguments = {'length': 10, 'batch_size': 3, 'ratio': 2, 'seed': 5}
    whole = list(TrainBatches(total_iter=11, **arguments))
    assert list(TrainBatches(total_iter=4, **arguments)) == whole[:4]
    assert list(TrainBatches(total_iter=7, first_iter=4, **arguments)) == whole[4:]
    assert list(TrainBatches(total_iter=7, start_iter=5, first_iter=4, **arguments)) == whole[9:]


# ------------------------------------------------------------------------------------------------------------- the plan

@pytest.fixture
def plan(tmp_path, pairs):
    """A plan of tiny runs with a stateless optimiser: two stages of L1 are then one."""
    data = {'type': 'PairedImageDataset', 'io_backend': {'type': 'disk'}}

    def split(name):
        return {**data, 'name': name, 'dataroot_gt': f'{pairs}/{name}/gt', 'dataroot_lq': f'{pairs}/{name}/lq'}

    network = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'upscale': 2}
    metrics = {'psnr': {'type': 'calculate_psnr', 'crop_border': 2, 'test_y_channel': True}}
    (tmp_path / 'train.yml').write_text(yaml.safe_dump({
        'model_type': 'UDLModel', 'num_gpu': 0, 'network_g': network, 'network_u': {
            'type': 'UncertaintyNet', 'head': {'type': 'UDLHead'}},
        'datasets': {'train': {**split('train'), 'gt_size': 32, 'use_hflip': True, 'use_rot': True,
                               'num_worker_per_gpu': 0, 'batch_size_per_gpu': 4}, 'val': split('val')},
        'train': {'optim_g': {'type': 'SGD', 'lr': 0.01}, 'grad_clip': 1.0, 'total_iter': 6,
                  'scheduler': {'type': 'MultiStepLR', 'milestones': [6], 'gamma': 0.5}},
        'val': {'val_freq': 3, 'metrics': metrics}, 'logger': {'print_freq': 1, 'save_checkpoint_freq': 2}}))
    (tmp_path / 'test.yml').write_text(yaml.safe_dump({
        'datasets': {'test': {**split('val'), 'name': 'Set5'}}, 'val': {'metrics': metrics}, 'num_gpu': 0}))
    l1 = {'stage': 'plain', 'network_u': None, 'train': {'pixel_opt': {'type': 'L1Loss'}}}
    content = {
        'name': 'trial', 'title': 'EDSR 1×8', 'train': 'train.yml', 'test': 'test.yml', 'reference': 'L1', 'seeds': [7],
        'scales': {'x2': None},
        'first': {'iterations': 4, 'L1': l1, 'ESU': {'stage': 'esu', 'train': {'likelihood_opt': {'type': 'ESULoss'}}}},
        'methods': {'L1': {'label': 'ℓ1', 'options': l1}, 'twice': {'after': 'L1', 'options': l1},
                    'UDL': {'after': 'ESU', 'options': {'stage': 'udl', 'train': {'udl_opt': {'type': 'UDLLoss'}}}}}}

    def write(**changes) -> Path:
        (tmp_path / 'plan.yml').write_text(yaml.safe_dump({**content, **changes}))
        return tmp_path / 'plan.yml'
    write.content = content
    return write


def run(plan: Path, *arguments: str) -> int:
    """``udl compare`` in this process, where the fork server of the runs is already there."""
    return compare.main([str(plan), '--root', str(plan.parent), *arguments])


@pytest.mark.usefixtures('fork_server')
def test_a_comparison_from_its_plan(plan, pairs, capsys):
    file = plan()
    out = file.parent / 'results' / 'trial' / 'records'
    assert run(file) == 0
    assert 'has ended: 3 of 3' in (printed := capsys.readouterr().out)
    assert printed.count('Set5 PSNR − reference') == 3  # a table after each run, and no second one after the last
    records = {r.method: r for r in record_files.read_records(out)}  # which checks that they are pairs
    assert records.keys() == {'L1', 'twice', 'UDL'}
    assert records['L1'].label == 'ℓ1'
    assert records['UDL'].network_title == 'EDSR 1×8'
    assert [s.iterations for s in records['UDL'].stages] == [4, 2]
    # Four iterations and two more from the weights they left are six, if the crops go on where they were: bit for bit,
    # since SGD remembers nothing.
    assert records['twice'].datasets == records['L1'].datasets
    assert records['UDL'].datasets != records['L1'].datasets
    l1, udl = records['L1'].curve, records['UDL'].curve
    assert l1.loss['iter'] == udl.loss['iter'] == [1, 2, 3, 4, 5, 6]
    assert l1.loss['l_pix'] == records['twice'].curve.loss['l_pix']
    assert udl.loss['l_udl'][:4] == [None] * 4
    assert all(udl.loss['l_udl'][4:])
    assert udl.loss['l_fidelity'][4:] == [None] * 2
    assert all(udl.loss['l_fidelity'][:4])
    assert l1.val['val']['iter'] == [3, 6]
    assert set(l1.loss) == {'iter', 'l_pix', 'grad_norm'}
    assert [len(r.stages) for r in records.values() if all(s.seconds > 0 for s in r.stages)] == [1, 2, 2]
    operations = {method: record.costs['operations'] for method, record in records.items()}
    assert operations['twice'] == operations['L1'] < operations['UDL']
    assert list((file.parent / records['UDL'].pictures / 'Set5').glob('*_log_scale.png'))
    # which crops there were decides about the loss: were they others, so were this
    assert records['L1'].data_order == kept.data_order(plans.read_plan(file, file.parent).runs[0].stages)

    # what a training fills into its options, such as the weights of stage 1, makes it no other run
    planned = plans.read_plan(file, file.parent).runs
    assert [kept.made_with_other_options(r, file.parent / 'none', file.parent) for r in planned] == [None] * 3
    before = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    assert run(file) == 0  # nothing is made twice
    assert '3 runs, 0 to be made' in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == before
    changed = plan(methods={**plan.content['methods'], 'L1': {'options': {
        **plan.content['methods']['L1']['options'], 'train': {'pixel_opt': {'type': 'MSELoss'}}}}})
    assert run(changed) == 2
    said = capsys.readouterr().err
    assert 'L1_x2_seed7.json: was made with train.pixel_opt.type: L1Loss, and the plan now says MSELoss' in said
    assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == before

    # A metric that comes later is measured with the networks that are there, and everything else stays.
    tested = yaml.safe_load((file.parent / 'test.yml').read_text())
    tested['val']['metrics']['rgb'] = {'type': 'calculate_psnr', 'crop_border': 2}
    (file.parent / 'test.yml').write_text(yaml.safe_dump(tested))
    # who needs the space has removed a network that no test needs: it is not trained anew
    (file.parent / 'experiments/trial_first_ESU_x2_seed7/models/net_g_latest.pth').unlink()
    networks = {p: p.stat().st_mtime_ns for p in (file.parent / 'experiments').rglob('*.pth')}
    assert run(plan(), '--retest', '--methods', 'L1', 'UDL') == 0
    assert '2 runs, 2 to be tested again' in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in (file.parent / 'experiments').rglob('*.pth')} == networks
    again = record_files.read_record(out / 'L1_x2_seed7.json')
    for name in ('seconds', 'stages', 'curve', 'costs', 'date', 'peak_memory', 'options', 'weights', 'weights_hash'):
        assert getattr(again, name) == getattr(records['L1'], name), name
    for image, scores in again.datasets['Set5'].images.items():
        assert scores['psnr'] == records['L1'].datasets['Set5'].images[image]['psnr']
        sr, = (file.parent / records['L1'].pictures / 'Set5').glob(f'{image}*.png')
        error = (cv2.imread(str(sr)).astype(float) - cv2.imread(f'{pairs}/val/gt/{image}.png'))[2:-2, 2:-2]
        assert scores['rgb'] == pytest.approx(10 * np.log10(255 ** 2 / np.square(error).mean()), abs=1e-9)
    assert run(file, '--retest', '--methods', 'L1', 'UDL') == 0
    assert '2 runs, 0 to be tested again' in capsys.readouterr().out
    # The network of another run is no network of this one, and one that is gone cannot be tested.
    place = file.parent / 'experiments/trial_twice_x2_seed7/models/net_g_latest.pth'
    before = (out / 'twice_x2_seed7.json').read_bytes()
    place.write_bytes((file.parent / 'experiments/trial_UDL_x2_seed7/models/net_g_latest.pth').read_bytes())
    assert run(file, '--retest') == 1
    assert 'is not the one of the record' in capsys.readouterr().out
    place.unlink()
    assert run(file, '--retest') == 2
    assert f'--retest: {place} is not there any more' in capsys.readouterr().err
    assert (out / 'twice_x2_seed7.json').read_bytes() == before


def test_who_tests_again_needs_no_training_images(plan):
    runs = plans.read_plan(plan(), plan().parent).runs[:1]
    runs[0].stages[0].flat['datasets']['train']['dataroot_gt'] = 'moved away'
    runner.check(runs, plan().parent, 'plan.yml', trains=False)
    with pytest.raises(OptionError, match=r'datasets\.train\.dataroot_gt: no such folder'):
        runner.check(runs, plan().parent, 'plan.yml')


@pytest.mark.usefixtures('fork_server')
def test_a_comparison_that_was_stopped_goes_on_and_one_failure_stops_no_other(plan, capsys):
    methods = plan.content['methods']
    broken = {'options': {'stage': 'plain', 'network_u': None,
                          'train': {'pixel_opt': {'type': 'L1Loss'}, 'optim_g': {'lr': 1e30}}}}
    file = plan(methods={'L1': methods['L1'], 'explodes': broken, 'twice': methods['twice']})
    out = file.parent / 'results' / 'trial' / 'records'
    state = file.parent / 'experiments' / 'trial_L1_x2_seed7' / 'history.jsonl'
    ended = threading.Event()

    def stop():
        while not state.exists() and not ended.wait(0.05):
            pass
        if not ended.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop)
    stopper.start()
    status = run(file)
    ended.set()
    stopper.join()
    said = capsys.readouterr()
    assert status == 75, said.out + said.err
    assert not (out / 'twice_x2_seed7.json').exists()

    assert run(file) == 1
    said = capsys.readouterr().out
    assert 'trial_explodes_x2_seed7: failed with status 1' in said
    assert 'not finite' in said
    records = {r.method: r for r in record_files.read_records(out)}
    assert records.keys() == {'L1', 'twice'}
    assert records['twice'].datasets == records['L1'].datasets


@pytest.mark.usefixtures('fork_server')
def test_what_auto_was_when_a_run_began_is_what_its_record_says(plan):
    l1 = plan.content['methods']['L1']['options']
    file = plan(methods={'L1': {'options': {**l1, 'train': {**l1['train'], 'amp': 'auto'}}}})
    planned, = plans.read_plan(file, file.parent).runs
    made = planned.record(file.parent / 'results/trial/records')
    assert run(file) == 0
    decided = kept.machine(planned.stages[0].flat).rsplit(', ')[-1]
    assert record_files.read_record(made).machine.endswith(f', {decided}')
    # one that was begun on a machine of another kind goes on as it began, and is not taken for another run
    made.unlink()
    options = planned.stages[0].kept(file.parent)
    began = yaml.safe_load(options.read_text())
    began['train']['amp'] = other = None if decided == 'bf16' else 'bf16'
    options.write_text(yaml.safe_dump(began))
    assert run(file) == 0
    assert record_files.read_record(made).machine.endswith(f", {other or 'float32'}")


@pytest.mark.usefixtures('fork_server')
def test_a_run_that_another_process_trains_is_named_and_has_not_failed(plan, capfd):
    file = plan()
    folder = file.parent / 'experiments' / 'trial_L1_x2_seed7'
    folder.mkdir(parents=True)
    held = run_folder._lock(folder)
    assert run(file, '--methods', 'L1') == run_folder.EXIT_BUSY == 69
    said = capfd.readouterr()
    assert f'trial_L1_x2_seed7: is being trained by process {os.getpid()} on ' in said.out
    assert 'trial_L1_x2_seed7: left out, since another process trains it' in said.err
    assert 'failed' not in said.out + said.err
    held.close()


@pytest.mark.usefixtures('fork_server')
def test_what_another_process_has_made_since_is_not_made_again(plan):
    """Its training is over, so that a record made anew would tell of the test alone."""
    file = plan()
    out = file.parent / 'records'
    first, second = (run for run in plans.read_plan(file, file.parent).runs if run.method != 'UDL')
    events = runner.make_all([first, second], out, file.parent, [None])  # the first fails: it has no option file
    ended = []
    for event in events:
        if event.status is None and not second.record(out).exists():
            record_files.write_record(invented_record(
                name=second.name, method=second.method, seed=7, datasets={}, seconds=1000.), out)
        if event.status is not None:
            ended.append((event.run.method, event.status))
    assert sorted(ended) == [('L1', 2), ('twice', 0)]
    assert record_files.read_record(second.record(out)).seconds == 1000
    assert not (file.parent / 'results/trial/logs/trial_twice_x2_seed7.log').exists()


@pytest.mark.parametrize(('changes', 'message'), [
    ({'sedes': [1]}, "sedes: unknown key; did you mean 'seeds'?"),
    ({'seeds': [1.5]}, 'seeds: expected a list of integers'),
    ({'seeds': []}, 'seeds: expected a list of integers'),
    ({'reference': 'L2'}, "reference: 'L2' is not under methods; known: L1, UDL, twice"),
    ({'scales': {'2': {}}}, 'scales.2: expected x2, x3, x4'),
    ({'methods': {'L1': {'label': 'a'}}}, 'methods.L1.options: missing'),
    ({'methods': {'L1': {'after': 'EU', 'options': {}}}}, "methods.L1.after: 'EU' is not under first"),
    ({'methods': {'../L1': {'options': {}}}}, 'expected a name of letters'),
    ({'first': {'iterations': 4, 'L1': {'after': 'head'}, 'head': {}}},
     'first.L1.after: expected a stage of first that stands before this one'),
    ({'first': {'iterations': 4, 'L1': {}, 'head': {'iterations': 0}}}, 'first.head.iterations: expected integer ≥ 1'),
    ({'first': {'iterations': 6, 'L1': {'stage': 'plain'}},
      'methods': {'L1': {'after': 'L1', 'options': {}}}}, 'first.iterations: 6 leaves none of the 6 iterations'),
])
def test_what_is_wrong_with_a_plan_is_said(plan, changes, message):
    file = plan(**changes)
    with pytest.raises(OptionError) as error:
        plans.read_plan(file, file.parent)
    assert message in str(error.value)
    assert not (file.parent / 'results').exists()


def test_a_plan_in_the_place_of_an_option_file_and_the_other_way_round(plan):
    file = plan()
    with pytest.raises(OptionError) as error:
        plans.read_plan(file.parent / 'train.yml', file.parent)
    assert str(error.value).startswith(f'{file.parent}/train.yml: is the option file of one run, expected a plan')
    for is_train in True, False:
        with pytest.raises(OptionError) as error:
            parse_options(str(file), root_path=str(file.parent), is_train=is_train)
        assert str(error.value) == (f'{file}: is the plan of a comparison, expected the option file of one run; give '
                                    'it to udl compare')


def test_lpips_is_measured_where_its_weights_are(plan, monkeypatch, tmp_path):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    runs = plans.read_plan(plan(), tmp_path).runs
    assert list(runs[0].test_flat['val']['metrics']) == ['psnr']
    cache = tmp_path / 'torch' / 'hub' / 'checkpoints'
    cache.mkdir(parents=True)
    (cache / 'alexnet-owt-7be5be79.pth').touch()
    runs = plans.read_plan(plan(), tmp_path).runs
    assert runs[0].test_flat['val']['metrics'].keys() == {'lpips', 'psnr'}


def test_options_that_cannot_work_are_found_before_anything_is_trained(plan):
    file = plan(methods={**plan.content['methods'], 'typo': {'options': {
        'stage': 'plain', 'network_u': None, 'train': {'pixel_opt': {'type': 'L2Loss'}}}}})
    before = sorted(file.parent.rglob('*'))
    with pytest.raises(OptionError, match=r'^plan\.yml: typo_x2_seed7: train\.pixel_opt\.type: '):
        runner.check(plans.read_plan(file, file.parent).runs, file.parent, 'plan.yml')
    assert sorted(file.parent.rglob('*')) == before


def test_the_plans_of_the_repository_can_be_read():
    for file in sorted((ROOT / 'options' / 'compare').glob('[!_]*.yml')):
        runs = plans.read_plan(file, ROOT).runs
        assert {r.reference for r in runs} <= {r.method for r in runs}
        assert len({r.name for r in runs}) == len(runs)
        totals = {r.scale: set() for r in runs}
        for r in [r for r in runs if r.lengths == 'shared'] or runs:  # a method may have a budget of its own
            # of what is refined or judged: a head that is trained alone leaves the network as it is
            apart = file.stem.startswith(('refine', 'uncertainty'))
            totals[r.scale].add(sum(stage.iterations for stage in r.stages if not apart or not
                                    trains_head_alone(stage.flat['stage'], stage.flat['train'])))
        assert all(len(budgets) == 1 for budgets in totals.values())  # the same budget for all


def test_a_dry_run_finds_what_would_fail_later(plan, pairs, tmp_path, capsys):
    """Weights that are not there, of a method that differs in nothing else; images that do not pair up."""
    l1 = plan.content['methods']['L1']['options']
    given = {'L1': {'options': l1}, 'tuned': {'options': {**l1, 'path': {'pretrain_network_g': 'nowhere.pth'}}}}
    assert run(plan(methods=given, first={'iterations': 4}), '--dry_run') == 2
    said = capsys.readouterr().err
    assert 'tuned_x2_seed7: path.pretrain_network_g: no such file' in said
    assert 'L1_x2' not in said
    options = yaml.safe_load((tmp_path / 'train.yml').read_text())
    options['datasets']['train']['dataroot_lq'] = f'{pairs}/train/gt'
    (tmp_path / 'train.yml').write_text(yaml.safe_dump(options))
    assert run(plan(methods={'L1': {'options': l1}}, first={'iterations': 4}), '--dry_run') == 2
    assert re.search(r'L1_x2_seed7: datasets\.train: in \d+ of \d+ pairs, GT is not 2 times', capsys.readouterr().err)


def test_when_all_will_have_ended(plan, tmp_path, monkeypatch):
    """By hand: of 6 + 4 + 2 iterations that cost alike, 4 were done before and 4 since, in 8 s; 4 take 8 s more."""
    clock = [100.]
    monkeypatch.setattr(runner.time, 'time', lambda: clock[0])
    monkeypatch.setattr(runner, 'iteration_operations', lambda flat: 5)
    given = plans.read_plan(plan(), tmp_path)
    runs = [r for r in given.runs if r.method in ('L1', 'twice')]
    names = [stage.name for r in runs for stage in r.stages]

    def at(name, iteration):
        folder = tmp_path / 'experiments' / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'history.jsonl').write_text(f'{{"initial_weights": "a"}}\n{{"iter": {iteration}, "l_pix": 1}}\n')

    at(names[1], 4)
    outlook = runner.Outlook(runs, tmp_path)
    assert outlook.seconds() is None
    clock[0] += 8
    at(names[0], 4)
    assert outlook.seconds() == pytest.approx(8)


def test_what_takes_some_sizes_alone_can_be_measured():
    """BasicSR's SwinIR with a window of 8 takes no image of 6, and is timed at 8."""
    block = {'type': 'SwinIR', 'upscale': 2, 'embed_dim': 8, 'depths': [1], 'num_heads': [2], 'window_size': 8,
             'img_size': 8, 'upsampler': 'pixelshuffledirect'}
    assert complexity.run_time(block, 2, (12, 12), repeats=1) > 0


def test_a_stage_between_has_iterations_of_its_own_and_shares_what_comes_before(plan):
    content = plan.content
    head = {'after': 'L1', 'iterations': 1, 'stage': 'esu',
            'train': {'likelihood_opt': {'type': 'EULoss', 'detach': 'all'}}}
    udl = content['methods']['UDL'] | {'after': 'head'}
    file = plan(first={**content['first'], 'head': head}, methods={**content['methods'], 'UDL': udl})
    runs = {run.method: run for run in plans.read_plan(file, file.parent).runs}
    chain = runs['UDL'].stages
    assert [(stage.name, stage.iterations, stage.flat['datasets']['train'].get('first_iter')) for stage in chain] == [
        ('trial_first_L1_x2_seed7', 4, None), ('trial_first_head_x2_seed7', 1, 4), ('trial_UDL_x2_seed7', 1, 5)]
    assert chain[0] == runs['twice'].stages[0]
    assert [stage.flat.get('stage1') for stage in chain] == [None, *(str(stage.file) for stage in chain[:-1])]
    assert kept.data_order(chain) == kept.data_order(runs['L1'].stages)
    runner.check([runs['UDL']], file.parent, str(file))
    wrong = replace(runs['UDL'], test_flat={**runs['UDL'].test_flat, 'colour': 1})
    with pytest.raises(OptionError, match=r'^plan\.yml: \w+: colour: '):
        runner.check([wrong], file.parent, 'plan.yml')


def test_a_method_may_have_a_budget_of_its_own(plan):
    methods = plan.content['methods']
    longer = {**methods, 'longer': {**methods['L1'], 'iterations': 9}, 'UDL': {**methods['UDL'], 'iterations': 10}}
    file = plan(methods=longer)
    runs = {run.method: run for run in plans.read_plan(file, file.parent).runs}
    # of 6 iterations, whose rate is halved at the sixth
    assert {method: [(stage.iterations, stage.flat['train']['scheduler']['milestones']) for stage in run.stages]
            for method, run in runs.items()} == {
        'L1': [(6, [6])], 'twice': [(4, [4]), (2, [2])], 'longer': [(9, [9])], 'UDL': [(4, [4]), (6, [6])]}
    assert {method: run.lengths for method, run in runs.items()} == {
        'L1': 'shared', 'twice': 'shared', 'longer': 'own', 'UDL': 'own'}
    file = plan(methods={**methods, 'UDL': {**methods['UDL'], 'iterations': 4}})
    with pytest.raises(OptionError, match=r'first\.iterations: 4 leaves none of the 4 iterations of .*: UDL_x2_seed7$'):
        plans.read_plan(file, file.parent)
