"""The records of a comparison: their statistics in closed form, and what their files hold."""
# ruff: noqa: F811 - a fixture that comes from plan_cases
import contextlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import batch
from invented import invented_record
from plan_cases import FILES, write  # noqa: F401
from torch.utils.flop_counter import FlopCounterMode

from udl_basicsr.cli import comparing
from udl_basicsr.experiments import costs, record_files, records, statistics
from udl_basicsr.experiments.plan import NOTED_LATER, Plan, PlannedRun, Stage, read_plan
from udl_basicsr.utils import processor
from udl_basicsr.utils.scores import ScoresError

ROOT = Path(__file__).resolve().parents[1]


def record(method: str, seed: int, scores: dict, **fields) -> record_files.Record:
    images = {name: {'psnr': value} for name, value in scores.items()}
    datasets = {'Set5': {'images': images, 'mean': {'psnr': sum(scores.values()) / len(scores)}}}
    return invented_record(**{
        'name': f'{method}_{seed}', 'method': method, 'seed': seed, 'datasets': datasets,
        'initial_weights': f'w{seed}', 'data_order': f'd{seed}', **fields})


# ----------------------------------------------------------------------------------------------------------- statistics

def test_a_table_says_where_runs_were_measured_by_different_protocols():
    def measured(border):
        return {'rounded': True, 'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': border}}}
    l1, udl = record('L1', 0, {'a': 30.}, measured=measured(2)), record('UDL', 0, {'a': 31.}, measured=measured(2))
    assert 'protocol' not in statistics.format_summary([l1, udl])
    said = statistics.format_summary([l1, replace(udl, measured=None, protocol='PSNR without a border')])
    assert 'UDL_0: PSNR without a border.' in said
    assert 'PSNR was measured by different protocols and cannot be compared.' in said


def test_means_and_paired_differences_in_closed_form():
    records = [record('L1', 0, {'a': 30., 'b': 20.}), record('L1', 1, {'a': 31., 'b': 21.}),
               record('UDL', 0, {'a': 30.5, 'b': 20.5}), record('UDL', 1, {'a': 31.1, 'b': 21.1}),
               record('UDL', 2, {'a': 99., 'b': 99.})]  # a seed that L1 lacks is no pair
    assert statistics.means(records[:4], 'L1', 'Set5', 'psnr', 2) == {
        'mean': 25.5, 'sd': pytest.approx(np.sqrt(.5)), 'seeds': 2}
    result = statistics.paired_difference(records, 'UDL', 'Set5', 'psnr', 2)
    assert (result['seeds'], result['images'], result['ahead'], result['pairs']) == (2, 2, 4, 4)
    assert result['mean'] == pytest.approx(0.3)
    # every image differs alike, so that the bootstrap has the seeds alone: means of two draws out of 0.5 and 0.1
    assert (result['low'], result['high']) == (pytest.approx(0.1), pytest.approx(0.5))
    # Student's t with one degree of freedom is Cauchy's, whose quantiles are a tangent; the standard error is 0.2.
    assert result['seed_low'] == pytest.approx(0.3 - np.tan(np.pi * 0.475) * 0.2)
    assert result['seed_high'] == pytest.approx(0.3 + np.tan(np.pi * 0.475) * 0.2)
    assert statistics.paired_difference(records, 'none', 'Set5', 'psnr', 2) is None
    assert statistics.paired_difference(records, 'UDL', 'Set14', 'psnr', 2) is None


@pytest.mark.parametrize(('seeds', 'quantile'), [
    (3, 0.95 * np.sqrt(2 / (1 - 0.95**2))),  # two degrees of freedom: in closed form
    (5, 2.776), (31, 2.042), (41, 2.021), (121, 1.980)])  # as printed in tables
def test_the_interval_over_seeds_is_students(seeds, quantile):
    gains = np.random.default_rng(0).normal(0.1, 0.05, seeds)
    records = [record(method, seed, {'a': 30. + gain, 'b': 20. + gain}) for seed in range(seeds)
               for method, gain in (('L1', 0.), ('UDL', gains[seed]))]
    result = statistics.paired_difference(records, 'UDL', 'Set5', 'psnr', 2, samples=10)
    half = quantile * np.sqrt(sum((gains - gains.mean())**2) / (seeds - 1) / seeds)
    assert result['seed_low'] == pytest.approx(gains.mean() - half, abs=2e-4 * half + 1e-12)
    assert result['seed_high'] == pytest.approx(gains.mean() + half, abs=2e-4 * half + 1e-12)


def test_the_reference_differs_from_itself_by_nothing():
    records = [record('L1', seed, {'a': 30. + seed, 'b': 20.}) for seed in range(3)]
    result = statistics.paired_difference(records, 'L1', 'Set5', 'psnr', 2)
    assert (result['mean'], result['low'], result['high'], result['ahead']) == (0, 0, 0, 0)


def test_bootstrap_of_one_seed_is_that_of_a_mean():
    values = np.random.default_rng(1).normal(0.2, 1, (1, 400))
    low, high = statistics.bootstrap_interval(values)
    error = values.std() / 20  # of the mean of 400
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_bootstrap_covers_what_it_should():
    # 95 % intervals of many data sets with a seed effect and an image effect contain the truth nearly that often. With
    # few seeds they fall short, as bootstrap intervals do; with 20 they come close.
    random, hits = np.random.default_rng(2), 0
    for _ in range(200):
        seeds, images = random.normal(0, 1, (20, 1)), random.normal(0, 1, (1, 40))
        low, high = statistics.bootstrap_interval(0.3 + seeds + images + random.normal(0, 1, (20, 40)), 500)
        hits += low <= 0.3 <= high
    assert 0.88 <= hits / 200 <= 0.99


def leads(ours, lead):
    """Records of a reference of 30 dB, of a method and of a leader, by their differences from it, (seeds, images)."""
    return [record(method, seed, {f'{image:03}': 30. + gain for image, gain in enumerate(gains)})
            for method, table in (('L1', 0 * lead), ('MSE', ours), ('UDL', lead)) for seed, gains in enumerate(table)]


def test_the_share_of_a_lead_in_closed_form():
    ours, lead = np.array([[.1, .1], [.3, .3]]), np.array([[.2, .2], [.4, .4]])
    found = statistics.share_of_lead(leads(ours, lead), 'MSE', 'UDL', 'Set5', 'psnr', 2)
    # all images alike, so that the bootstrap has the seeds alone: 0.1 / 0.2, 0.4 / 0.6 and 0.3 / 0.4
    assert found == {'share': pytest.approx(2 / 3), 'low': pytest.approx(1 / 2), 'high': pytest.approx(3 / 4),
                     'seeds': 2, 'images': 2}
    lead[0] = -.5  # of 3 draws in 4 the lead is below 0 where the seeds' mean is: no bounds
    found = statistics.share_of_lead(leads(ours, lead), 'MSE', 'UDL', 'Set5', 'psnr', 2)
    assert (found['low'], found['high']) == (-np.inf, np.inf)
    assert statistics.share_of_lead(leads(ours, lead), 'none', 'UDL', 'Set5', 'psnr', 2) is None


def test_the_share_of_a_lead_has_the_standard_error_of_a_quotient():
    random = np.random.default_rng(3)
    lead = random.normal(0.3, 0.1, (1, 400))
    ours = 0.6 * lead + random.normal(0, 0.05, (1, 400))
    found = statistics.share_of_lead(leads(ours, lead), 'MSE', 'UDL', 'Set5', 'psnr', 2)
    share = ours.mean() / lead.mean()
    error = (ours - share * lead).std() / 20 / lead.mean()  # by the delta method
    assert found['low'] == pytest.approx(share - 1.96 * error, abs=0.1 * error)
    assert found['high'] == pytest.approx(share + 1.96 * error, abs=0.1 * error)


def test_the_share_of_a_lead_that_hardly_leaves_out_0():
    """Its ends are Fieller's: the shares r of which 0 is within the interval of the mean of ours - r*lead."""
    lead, ours = np.array([[.55, .59, .3, -.23, .17]]), np.array([[.02, .21, .4, .3, .74]])
    found = statistics.share_of_lead(leads(ours, lead), 'MSE', 'UDL', 'Set5', 'psnr', 2)
    assert 0 < statistics.bootstrap_interval(lead)[0] < 0.01

    def holds(share):
        low, high = statistics.bootstrap_interval(ours - share * lead)
        return low <= 0 <= high

    assert [holds(found['low'] + step) for step in (-0.02, 0.02)] == [False, True]
    assert [holds(found['high'] + step) for step in (-5, 5)] == [True, False]
    # what the method is behind by counts the other way
    other = statistics.share_of_lead(leads(-ours, lead), 'MSE', 'UDL', 'Set5', 'psnr', 2)
    assert (other['low'], other['high']) == (pytest.approx(-found['high']), pytest.approx(-found['low']))
    other = statistics.share_of_lead(leads(-ours, -lead), 'MSE', 'UDL', 'Set5', 'psnr', 2)
    assert other == pytest.approx(found)


def test_records_are_read_back_and_checked(tmp_path):
    record_files.write_record(record('L1', 0, {'a': 30.}), tmp_path)
    record_files.write_record(record('UDL', 0, {'a': 31.}), tmp_path)
    assert [r.method for r in record_files.read_records(tmp_path)] == ['L1', 'UDL']
    with pytest.raises(FileNotFoundError, match='udl compare'):
        record_files.read_records(tmp_path / 'none')
    with pytest.raises(ScoresError, match='`seed` should be of type int'):
        record_files.write_record(replace(record('L1', 0, {'a': 30.}), seed='0'), tmp_path)
    for field, value in (('initial_weights', 'others'), ('data_order', 'other'), ('network_title', 'RCAN')):
        record_files.write_record(record('UDL', 0, {'a': 31.}, **{field: value}), tmp_path)
        with pytest.raises(ScoresError, match=f'are no pair: `{field}`'):
            record_files.read_records(tmp_path)
    for field, value in (('costs', None), ('costs', {'operations': 'many'}), ('order', 'first'), ('commit', 1)):
        with pytest.raises(ScoresError, match=rf'`{field}(\.operations)?` should be of type'):
            record_files.Record.from_json({**record('UDL', 0, {'a': 31.}).to_json(), field: value})
    (tmp_path / 'UDL_x2_seed0.json').write_text('{')
    with pytest.raises(ScoresError, match=r'UDL_x2_seed0\.json is no JSON'):
        record_files.read_records(tmp_path)


def test_the_folder_around_the_records_is_taken_for_theirs(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'tiny: no records .* Make them: udl compare'):
        record_files.read_records(tmp_path / 'tiny')
    record_files.write_record(record('L1', 0, {'a': 30.}), tmp_path / 'tiny' / 'records')
    found = record_files.read_comparisons([tmp_path / 'tiny', tmp_path / 'tiny' / 'records' / '..'])
    assert [(name, [r.method for r in records]) for name, records in found.items()] == [('tiny', ['L1'])]
    record_files.write_record(record('UDL', 0, {'a': 31.}), tmp_path / 'tiny')  # its own go before
    assert [r.method for r in record_files.read_records(tmp_path / 'tiny')] == ['UDL']


@pytest.mark.skipif(shutil.which('git') is None, reason='needs git')
def test_the_commit_is_that_of_the_package_and_not_of_a_repository_around_it(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *words], cwd=tmp_path, check=True)

    file = tmp_path / '.venv' / 'records.py'
    file.parent.mkdir()
    file.touch()
    monkeypatch.setattr(records, '__file__', str(file))
    git('init', '--quiet')
    git('commit', '--quiet', '--allow-empty', '-m', 'a')
    assert records._commit() == ''
    git('add', str(file))
    git('commit', '--quiet', '-m', 'b')
    assert re.fullmatch('[0-9a-f]{7,}', records._commit())


def test_start_weights_cache_and_normalisation_are_of_a_run(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base, data = FILES['train.yml'], FILES['train.yml']['datasets']['train']

    def essence(weights: str | None = None, **of_data) -> dict:
        file = write({'train.yml': {**base, 'path': {'pretrain_network_g': weights},
                                    'datasets': {**base['datasets'], 'train': {**data, **of_data}}}})
        return read_plan(file, tmp_path).runs[0].stages[0].essence

    def difference(before: dict, now: dict) -> str | None:
        return records._difference([json.loads(json.dumps(before))], [now], 'record')

    without, started = essence(), essence('weights/a.pth')
    for now in (started, essence(uncertainty_cache='auto'), essence(mean=[0.5], std=[0.5]), essence(color='y')):
        older = {**without, **{block: {key: value for key, value in without[block].items() if key not in later}
                               for block, later in NOTED_LATER.items()}}
        assert difference(older, now) is None  # which does not tell
        assert difference(without, now)
        assert difference(now, without)
    assert 'path.pretrain_network_g: weights/a.pth, and the plan now says weights/b.pth' in difference(
        started, essence('weights/b.pth'))
    assert difference(started, essence(str(tmp_path / 'weights/../weights/a.pth'))) is None
    assert difference(essence(uncertainty_cache='auto'), essence(uncertainty_cache='elsewhere')) is None

    # a training fills in the weights of its stage 1; others in their place are others
    run = next(run for run in read_plan(write(), tmp_path).runs if len(run.stages) > 1)
    stage = run.stages[-1]
    models = tmp_path / 'experiments' / stage.name.replace('UDL', 'first_ESU') / 'models'
    own = {f'pretrain_network_{label}': str(models / f'net_{label}_latest.pth') for label in 'gu'}
    assert replace(stage, flat={**stage.flat, 'path': own}).essence == stage.essence
    other = {**own, 'pretrain_network_u': str(models.parent / 'net_u.pth')}
    assert difference(replace(stage, flat={**stage.flat, 'path': other}).essence, stage.essence)
    for odd in 'x', {'pretrain_network_g': 5}:  # which the checks refuse later
        assert replace(stage, flat={**stage.flat, 'path': odd}).essence
    stage.kept(tmp_path).parent.mkdir(parents=True)
    stage.kept(tmp_path).write_text('datasets: {train: []}')
    assert 'is no option file of a run' in records.made_with_other_options(run, tmp_path / 'none', tmp_path)


def test_files_stay_as_they_are(tmp_path):
    """A record that is read and written again is the same file; of an old one, what was not kept is not known."""
    files = sorted((ROOT / 'docs' / 'results' / 'quick_x4').glob('*_seed0.json'))
    for file in files:
        again = record_files.write_record(record_files.read_record(file), tmp_path)
        assert (again.name, again.read_bytes()) == (file.name, file.read_bytes())
    assert len(list(tmp_path.iterdir())) == len(files) > 1
    content = json.loads(again.read_text())
    for name in ('measured', 'metrics', 'order', 'costs', 'run_time', 'peak_memory', 'commit', 'pictures'):
        del content[name]
    old = record_files.Record.from_json({**content, 'unknown': 1})
    assert (old.measured, old.metrics, old.costs, old.pictures, old.order) == (None, {}, {}, None, 0)
    assert old.datasets == record_files.read_record(again).datasets


def test_the_operations_of_a_large_network_are_read_back(tmp_path):
    """Table 5 of the UDL paper reaches 7e18: as an integer its digits would be too many, and the record be refused."""
    network = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'upscale': 2}
    stage = Stage('L1', tmp_path / 'L1.yml', {
        'scale': 2, 'network_g': network, 'datasets': {'train': {'gt_size': 96, 'batch_size_per_gpu': 16}},
        'train': {'total_iter': 10**9}})
    operations = costs.training_operations([stage])
    assert operations > 1e18
    file = record_files.write_record(record('L1', 0, {'a': 30.}, costs={'operations': operations}), tmp_path)
    assert record_files.read_record(file).costs == {'operations': operations}


def planned(method: str, **fields) -> PlannedRun:
    return PlannedRun(**{'plan': 'c', 'title': 'EDSR 4×16', 'reference': 'UDL', 'method': method, 'label': f'{method}!',
                         'order': 3, 'scale': 2, 'seed': 0, 'stages': (), 'test_file': Path(), 'test_flat': {},
                         **fields})


def test_records_are_called_as_their_plan_calls_them_now(tmp_path):
    """A title that was changed while runs were missing had made those that came later no pair of the others."""
    plan = Plan('plan.yml', 'c', 'EDSR 4×16', None, (planned('L1'), planned('UDL'), planned('EU')))
    old, new = record('L1', 0, {'a': 30.}), record('UDL', 0, {'a': 31.}, network_title='EDSR 4×16')
    for one in (old, new):
        record_files.write_record(one, tmp_path)
    comparing.tell_anew(plan, tmp_path)
    found = {r.method: r for r in record_files.read_records(tmp_path)}
    assert found == {'L1': replace(old, label='L1!', order=3, reference='UDL', network_title='EDSR 4×16'),
                     'UDL': replace(new, label='UDL!', order=3, reference='UDL')}
    before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    comparing.tell_anew(plan, tmp_path)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before
    (tmp_path / 'else_x2_seed0.json').write_text('{}')  # which the first table would come upon, in the midst of runs
    with pytest.raises(ScoresError, match='else_x2_seed0'):
        comparing.tell_anew(plan, tmp_path)


def test_a_record_lacks_what_is_tested_now(tmp_path):
    record_files.write_record(record('L1', 0, {'a': 30.}), tmp_path)

    def lacking(sets, *metrics):
        test = {'datasets': {f'test_{name}': {'name': name} for name in sets},
                'val': {'metrics': {metric: {} for metric in metrics}}}
        return records.lacking(planned('L1', test_flat=test), tmp_path)
    assert lacking(['Set5'], 'psnr') == []
    assert lacking(['Set5'], 'psnr', 'ssim') == ['ssim']
    assert lacking(['Set5', 'Set14'], 'psnr') == ['psnr']


def test_a_machine_is_named_with_what_it_computes_in():
    """Times in bfloat16 tell nothing of those in float32."""
    short, full = (records.machine({'train': {'amp': amp, 'total_iter': 1}}) for amp in ('bf16', None))
    assert (short.removesuffix('bf16'), full.rsplit(' ', 1)[1]) == (full.removesuffix('float32'), 'float32')


@pytest.mark.parametrize('has_bf16', [True, False])
def test_a_machine_is_named_by_what_really_computes(monkeypatch, has_bf16):
    monkeypatch.setattr(processor, 'has_bf16', lambda device: has_bf16)
    assert records.machine({'train': {'amp': 'auto'}}).endswith(', bf16' if has_bf16 else ', float32')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda *_: 'a GPU')
    monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda: 5)
    for on_gpu in ({}, {'num_gpu': 'auto'}, {'num_gpu': 1}):
        assert records.machine({**on_gpu, 'train': {}}) == 'a GPU, float32'
        assert records.peak_memory(on_gpu) == record_files.PeakMemory(5, 'GPU')
        assert costs.is_deterministic(on_gpu)
    assert 'CPU cores' in records.machine({'num_gpu': 0, 'train': {}})
    monkeypatch.setattr(processor, 'instructions', lambda: 'those of another')
    assert '(those of another)' in records.machine({'num_gpu': 0, 'train': {}})
    assert records.peak_memory({'num_gpu': 0}).of == 'process'
    assert not costs.is_deterministic({'num_gpu': 0})
    # nor is the time of a run foretold by what a GPU would do, or another type of number
    monkeypatch.setattr(costs, 'device_speed', lambda *given: given)
    assert costs.training_speed({'num_gpu': 0, 'train': {'amp': 'auto'}}) == (
        'bf16' if has_bf16 else None, torch.device('cpu'))


@pytest.mark.parametrize(('stage', 'force'), [
    ('plain', ()), ('esu', ()), ('udl', ()),
    ('esu', ('likelihood_opt={type: UEOLoss, judge: squeeze, judge_random: true}', )),
    ('esu', ('likelihood_opt={type: UEOLoss, judge: squeeze, judge_random: true, samples: 2}', )),
    ('tlw', ()), ('tlw', ('tlw_opt:order=joint', )), ('tlw', ('tlw_opt:deterministic=true', )),
    ('tlw', ('tlw_opt:samples=1', 'tlw_opt:order=joint'))])
def test_operations_of_a_step_are_those_that_it_makes(project, stage1, stage, force):
    """But for the gradient to the images, which no first convolution computes."""
    judged = {'type': 'TLWLoss', 'judge': 'squeeze', 'judge_random': True}
    (project.root / 'tlw.yml').write_text(yaml.safe_dump({
        '_base_': '_base_.yml', 'name': 'tlw', 'model_type': 'TLWModel', 'network_u': None,
        'network_w': {'type': 'TLWNet'}, 'train': {'tlw_opt': judged}}))
    force = [f'train:{entry}' for entry in force]
    model = project.model(stage, *force)
    model.fast_gradients, model.iters_per_epoch = contextlib.nullcontext(), 3
    model.feed_data(batch())
    with FlopCounterMode(display=False) as counter:
        model.optimize_parameters(1)
    assert costs.iteration_operations(project.parse(stage, *force).flat) == pytest.approx(
        counter.get_total_flops(), rel=0.04)


def test_the_summary_says_what_was_found():
    records = [record('L1', 0, {'a': 30.}), record('UDL', 0, {'a': 30.25}), record('EU', 0, {'a': 29.}, label='EU!')]
    lines = statistics.format_summary(records).splitlines()
    assert any(line.split()[:3] == ['UDL', '1', '30.25'] and '+0.25 [+0.25, +0.25]' in line for line in lines)
    assert any(line.split()[:3] == ['EU!', '1', '29.00'] and '−1.00' in line for line in lines)
    assert 'memory' not in lines[1]  # of old records nothing is known

    def of(method, seed, operations, *seconds, memory=2e9):
        return record(method, seed, {'a': 30.}, costs={'operations': operations},
                      peak_memory={'bytes': int(memory), 'of': 'process'},
                      stages=[{'name': 'esu', 'iterations': 1, **({'seconds': s} if s else {})} for s in seconds])

    records = [of('L1', 0, 1e9, 60.), of('L1', 1, 1e9, 240.), of('UDL', 0, 1.2e9, 60., 70.), of('UDL', 1, 1.3e9, 60, 0),
               of('EU', 0, 2e9, 3600., 3900., memory=3.21e9)]
    lines = statistics.format_summary(records).splitlines()
    assert lines[1].split()[-3:] == ['operations', 'training', 'memory']
    assert {line.split()[0]: re.split(' {2,}', line)[-3:] for line in lines[3:6]} == {
        'L1': ['× 1.00', '60 s', '2.00 GB'], 'UDL': ['× 1.25', '2.2 min', '2.00 GB'],
        'EU': ['× 2.00', '2.1 h', '3.21 GB']}
    # EU's difference is not that of the means
    assert lines[-1].endswith('difference over those that the reference has too. Seeds: L1: 0, 1; EU: 0.')
    assert 'Seeds' not in statistics.format_summary(records[:4])


# ------------------------------------------------------------------------------------------------------------- the plan

def test_records_lie_where_the_project_keeps_them(tmp_path):
    assert comparing.records_folder(tmp_path, 'a') == tmp_path / 'results' / 'a' / 'records'
    (tmp_path / 'docs' / 'results').mkdir(parents=True)
    assert comparing.records_folder(tmp_path, 'a') == tmp_path / 'docs' / 'results' / 'a'
