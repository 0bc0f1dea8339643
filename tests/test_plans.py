"""Plans of several networks, their overview and trial; what is wrong with one is said before a byte is written."""
import importlib.util
import json
import time
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import yaml
from test_compare import record

from udl_basicsr.cli import comparing
from udl_basicsr.experiments import costs, plan, record_files, records, runner, statistics, trial
from udl_basicsr.options.parse import OptionError
from udl_basicsr.utils.scores import ScoresError
from udl_basicsr.utils.text import duration

ROOT = Path(__file__).resolve().parents[1]
DATA = {'type': 'PairedImageDataset', 'io_backend': {'type': 'disk'}}
METRICS = {'psnr': {'type': 'calculate_psnr', 'crop_border': '${scale}', 'test_y_channel': True}}
EDSR = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1, 'upscale': '${scale}'}
UNCERTAINTY = {'type': 'UncertaintyNet', 'head': {'type': 'UDLHead', 'num_feat': 4}}
FILES = {
    'train.yml': {
        'model_type': 'UDLModel',
        'datasets': {'train': {**DATA, 'name': 'DIV2K', 'dataroot_gt': 'data/train/GT', 'dataroot_lq': 'data/train/LR',
                               'gt_size': 96, 'use_hflip': True, 'use_rot': True, 'num_worker_per_gpu': 6,
                               'batch_size_per_gpu': 16, 'dataset_enlarge_ratio': 1, 'prefetch_mode': None},
                     'val': {**DATA, 'name': 'Set5', 'dataroot_gt': 'data/Set5/GT', 'dataroot_lq': 'data/Set5/LR'}},
        'train': {'optim_g': {'type': 'Adam', 'lr': 0.1}, 'total_iter': 4000, 'warmup_iter': 10, 'accumulate': 2,
                  'scheduler': {'type': 'MultiStepLR', 'milestones': [2000], 'gamma': 0.5}},
        'val': {'val_freq': 1000, 'metrics': METRICS, 'save_best': {'metric': 'psnr', 'dataset': 'Set5'}},
        'logger': {'print_freq': 100, 'save_checkpoint_freq': 1000, 'use_tb_logger': True}},
    'test.yml': {'datasets': {f'test_{i}': {**DATA, 'name': name, 'dataroot_gt': f'data/{name}/GT',
                                            'dataroot_lq': f'data/{name}/LR'}
                              for i, name in enumerate(('Set5', 'Set14'), 1)}, 'val': {'metrics': METRICS}},
    'edsr.yml': {'network_g': EDSR, 'train': {'optim_g': {'lr': 0.2}}},
    'l1.yml': {'stage': 'plain', 'train': {'pixel_opt': {'type': 'L1Loss'}}},
    'esu.yml': {'stage': 'esu', 'network_u': UNCERTAINTY, 'train': {'likelihood_opt': {'type': 'ESULoss'}}},
    'udl.yml': {'stage': 'udl', 'network_u': UNCERTAINTY, 'train': {'udl_opt': {'type': 'UDLLoss'}}},
    'tlw.yml': {'model_type': 'TLWModel', 'network_w': {'type': 'TLWNet', 'num_feat': 4},
                'train': {'tlw_opt': {'type': 'TLWLoss', 'judge': 'squeeze'}}},
}
PLAN = {
    'name': 'table', 'title': 'UDL paper', 'table': 'udl-5', 'reference': 'L1', 'train': 'train.yml',
    'test': 'test.yml', 'seeds': [0, 1], 'lengths': 'own', 'deterministic': True,
    'networks': {'EDSR-S': {'base': 'edsr.yml'},
                 'ESPCN': {'options': {'network_g': {'type': 'ESPCN', 'num_feat': 8, 'upscale': '${scale}'}},
                           'scales': ['x3'], 'methods': ['L1']}},
    'scales': {'x2': None, 'x3': {'train': {'train': {'optim_g': {'lr': 0.15, 'weight_decay': 0.5}}},
                                  'test': {'datasets': {'test_2': None}}}},
    'first': {'ESU': {'base': 'esu.yml', 'train': {'total_iter': 1000}}},
    'methods': {'L1': {'label': 'Original', 'base': 'l1.yml'},
                'UDL': {'label': 'L_UDL-Ours', 'after': 'ESU', 'base': ['l1.yml', 'udl.yml'],
                        'options': {'train': {'pixel_opt': None, 'total_iter': 3000, 'optim_g': {'lr': 0.3}}}}}}


@pytest.fixture
def write(tmp_path):
    """Writes the files of a plan; ``write(seeds=[1])`` changes the plan, ``write({'train.yml': {...}})`` a file."""
    def write(files: dict | None = None, /, **changes) -> Path:
        for name, content in {**FILES, **(files or {}), 'plan.yml': {**PLAN, **changes}}.items():
            (tmp_path / name).write_text(yaml.safe_dump(content))
        return tmp_path / 'plan.yml'
    return write


@pytest.fixture
def script():
    return importlib.import_module('udl_basicsr.cli.compare')


def everything(folder: Path) -> dict:
    return {p: p.lstat().st_mtime_ns for p in folder.rglob('*')}


# ------------------------------------------------------------------------------------------------- networks and lengths


def test_networks_scales_bases_and_lengths_of_their_own(write, tmp_path):
    read = plan.read_plan(write(), tmp_path)
    assert [run.name for run in read.runs] == [
        f'table_{cell}_seed{seed}' for cells in (('EDSR-S_L1_x2', 'EDSR-S_UDL_x2'), ('EDSR-S_L1_x3', 'EDSR-S_UDL_x3'),
                                                 ('ESPCN_L1_x3', )) for seed in (0, 1) for cell in cells]
    runs = {run.name: run for run in read.runs if run.seed == 0}
    # each level over the one before: train file, scale, network, method
    rates = {name.removeprefix('table_').removesuffix('_seed0'): run.stages[-1].flat['train']['optim_g']
             for name, run in runs.items()}
    assert rates == {'EDSR-S_L1_x2': {'type': 'Adam', 'lr': 0.2}, 'EDSR-S_UDL_x2': {'type': 'Adam', 'lr': 0.3},
                     'EDSR-S_L1_x3': {'type': 'Adam', 'lr': 0.2, 'weight_decay': 0.5},
                     'EDSR-S_UDL_x3': {'type': 'Adam', 'lr': 0.3, 'weight_decay': 0.5},
                     'ESPCN_L1_x3': {'type': 'Adam', 'lr': 0.15, 'weight_decay': 0.5}}
    udl = runs['table_EDSR-S_UDL_x3_seed0']
    assert [stage.iterations for stage in udl.stages] == [1000, 3000]
    assert [stage.flat['train']['scheduler']['milestones'] for stage in udl.stages] == [[2000], [2000]]
    assert [stage.name for stage in udl.stages] == ['table_EDSR-S_first_ESU_x3_seed0', udl.name]
    assert 'pixel_opt' not in udl.stages[1].flat['train']
    assert not any('first_iter' in stage.flat['datasets']['train'] for stage in udl.stages)
    assert all(stage.flat['deterministic'] is True for run in runs.values() for stage in run.stages)
    assert udl.stages[1].flat['network_g'] == {**EDSR, 'upscale': 3}
    assert list(udl.test_flat['datasets']) == ['test_1']
    assert udl.test_flat['path']['pretrain_network_u'] == str(udl.stages[0].weights(tmp_path, 'u'))
    assert (udl.title, udl.label, udl.order) == ('EDSR-S', 'L_UDL-Ours', 1)
    assert udl.record(tmp_path) == tmp_path / 'EDSR-S_UDL_x3_seed0.json'


def test_only_names_networks_scales_methods_and_seeds(write, tmp_path):
    read = plan.read_plan(write(), tmp_path)

    def chosen(*words):
        return [run.name.removeprefix('table_') for run in plan.select(read, words)]
    assert chosen('EDSR-S', 'x3', 'UDL', 'seed1') == chosen('EDSR-S', 'x3', 'L_UDL-Ours', 'seed1') \
        == ['EDSR-S_UDL_x3_seed1']
    assert chosen('seed0', 'L1', 'x2', 'x3') == ['EDSR-S_L1_x2_seed0', 'EDSR-S_L1_x3_seed0', 'ESPCN_L1_x3_seed0']
    assert len(chosen()) == 10
    for words, message in ((['EDSR'], "'EDSR' is nothing of"), (['EDSR'], "did you mean 'EDSR-S'"), (['X4'], 'x2, x3'),
                           (['ESPCN', 'x2'], 'no run that is all of: ESPCN, x2')):
        with pytest.raises(OptionError, match=message):
            chosen(*words)


def test_pairs_and_tables_keep_networks_apart(tmp_path):
    def one(network, method, value, **fields):
        return record(method, 0, {'a': value}, network_id=network, network_title=network, initial_weights=network,
                      **fields)
    both = [one('EDSR-S', 'L1', 30.), one('EDSR-S', 'UDL', 31.), one('RCAN', 'L1', 32.)]
    for entry in both:
        record_files.write_record(entry, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {'EDSR-S_L1_x2_seed0.json', 'EDSR-S_UDL_x2_seed0.json',
                                                          'RCAN_L1_x2_seed0.json'}
    summary = statistics.format_summary(record_files.read_records(tmp_path))
    assert [line for line in summary.splitlines() if '×' in line] == ['EDSR-S ×2', 'RCAN ×2']
    # where each method has its own length, the crops are not the same, and that is no fault
    record_files.check_pairs([one('RCAN', 'L1', 1.), one('RCAN', 'UDL', 1., data_order='longer', lengths='own')])
    with pytest.raises(ScoresError, match='`data_order`'):
        record_files.check_pairs([one('RCAN', 'L1', 1.), one('RCAN', 'UDL', 1., data_order='longer')])


def test_the_printed_table_stands_beside_ours(write, tmp_path, capsys):
    out = tmp_path / 'records'
    for method, label, value in (('L1', 'Original', 34.5), ('UDL', 'L_UDL-Ours', 35.25)):
        record_files.write_record(record(method, 0, {'a': value}, label=label, network_title='EDSR-S',
                                       network_id='EDSR-S'), out)
    comparing.show(plan.read_plan(write(), tmp_path), out)
    table = capsys.readouterr().out.split()
    assert {'34.50/–', '35.25/–', '38.00/0.9605'} <= {*table}  # ours twice, and a cell that is not trained here


# ---------------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize('name', ['', '.', '..', 'a/b', '../up', '/tmp/absolute', 'a\nb', 'é' * 150, 'x' * 300, 'NUL',
                                  '~', '-x', 5, None, ['a'], 'x' * 140])
def test_a_name_that_is_none_is_refused_before_a_byte_is_written(write, tmp_path, script, capsys, name):
    file = write(name=name)
    before = everything(tmp_path.parent)
    for more in ((), ('--dry_run', ), ('--trial', )):
        assert script.main([str(file), '--root', str(tmp_path), *more]) == 2
        said = capsys.readouterr().err
        assert f'{file}: ' in said
        assert 'name: ' in said
    assert everything(tmp_path.parent) == before


def changed(path: str, value) -> dict:
    """The plan with one of its values changed."""
    content = deepcopy(PLAN)
    *parents, last = path.split('.')
    block = content
    for key in parents:
        block[key] = block[key] or {}
        block = block.setdefault(key, {})
    block[last] = value
    return content


@pytest.mark.parametrize(('path', 'value', 'key'), [
    ('scales.x2', {'train': 5}, 'scales.x2.train'), ('scales.x2', 5, 'scales.x2'), ('scales', {}, 'scales'),
    ('scales', ['x2'], 'scales'), ('scales.x0', {}, 'scales.x0'), ('scales.4', {}, 'scales.4'),
    ('scales.x2', {'train': {'train': None}}, 'EDSR-S_L1_x2_seed0: train'),
    ('scales.x2', {'train': {'datasets': 7}}, 'EDSR-S_L1_x2_seed0: datasets'),
    ('scales.x2', {'train': {'datasets': {'train': None}}}, 'EDSR-S_L1_x2_seed0: datasets.train'),
    ('scales.x2', {'test': {'val': {'metrics': None}}}, 'test_EDSR-S_L1_x2_seed0: val.metrics'),
    ('scales.x2', {'test': {'val': {'metrics': [1]}}}, 'test_EDSR-S_L1_x2_seed0: val.metrics'),
    ('scales.x2', {'test': {'val': 'psnr'}}, 'test_EDSR-S_L1_x2_seed0: val'),
    ('scales.x2', {'test': {'datasets': None}}, 'test_EDSR-S_L1_x2_seed0: datasets'),
    ('methods.UDL.options', {'train': None}, 'EDSR-S_UDL_x2_seed0: train'),
    ('methods.UDL.options', {'train': 5}, 'EDSR-S_UDL_x2_seed0: train'),
    ('methods.UDL.options', {'stage': ['udl']}, 'EDSR-S_UDL_x2_seed0: stage'),
    ('methods.UDL.options', {'stage': {'udl': 1}}, 'EDSR-S_UDL_x2_seed0: stage'),
    ('methods.UDL.options', {'network_u': 3}, 'EDSR-S_UDL_x2_seed0: network_u'),
    ('methods.UDL.options', {'network_g': 'EDSR'}, 'EDSR-S_UDL_x2_seed0: network_g'),
    ('methods.UDL.options', {'network_g': {'num_feat': []}}, 'EDSR-S_UDL_x2_seed0: network_g'),
    ('methods.UDL.options', {'train': {'total_iter': 'abc'}}, 'EDSR-S_UDL_x2_seed0: train.total_iter'),
    ('methods.UDL.options', {'train': {'total_iter': 0}}, 'EDSR-S_UDL_x2_seed0: train.total_iter'),
    ('methods.UDL.options', {'train': {'total_iter': [5]}}, 'EDSR-S_UDL_x2_seed0: train.total_iter'),
    ('methods.UDL.options', {'train': {'scheduler': 5}}, 'EDSR-S_UDL_x2_seed0: train.scheduler'),
    ('methods.UDL.options', {'train': {'scheduler': {'milestones': 'a'}}},
     'EDSR-S_UDL_x2_seed0: train.scheduler.milestones'),
    ('methods.UDL.options', {'scale': 'two'}, 'EDSR-S_UDL_x2_seed0: scale'),
    ('methods.UDL.options', {'name': '${nope}', 'val': {'suffix': '${nope}'}}, 'EDSR-S_UDL_x2_seed0: ${nope}'),
    ('methods.UDL.options', {'path': 5}, 'EDSR-S_UDL_x2_seed0: path'),
    ('methods.UDL.options', {'degradation': ['BD']}, 'EDSR-S_UDL_x2_seed0: degradation'),
    ('methods.UDL.options', 'udl', 'methods.UDL.options'), ('methods.UDL', 'udl', 'methods.UDL'),
    ('methods.UDL.base', 'none.yml', 'methods.UDL.base'), ('methods.UDL.base', [], 'methods.UDL.base'),
    ('methods.UDL.base', [['l1.yml']], 'methods.UDL.base'), ('methods.UDL.base', '', 'methods.UDL.base'),
    ('methods.UDL.base', 7, 'methods.UDL.base'), ('methods.UDL.base', ['l1.yml'] * 99, 'methods.UDL.base'),
    ('methods.UDL.label', ['UDL'], 'methods.UDL.label'), ('methods.UDL.after', ['ESU'], 'methods.UDL.after'),
    ('methods.UDL.after', 'EU', 'methods.UDL.after'), ('methods.UDL.seeds', 3, 'methods.UDL.seeds'),
    ('methods.UDL.sedes', [3], 'methods.UDL.sedes'), ('methods.U/DL', {'base': 'l1.yml'}, 'methods'),
    ('methods', {}, 'reference'), ('methods', [], 'methods'), ('methods.L1', {'label': 'a'}, 'methods.L1.options'),
    ('first.ESU', 3, 'first.ESU'), ('first.ESU.base', 3, 'first.ESU.base'), ('first', [1], 'first'),
    ('first.iterations', 5, 'first.iterations'), ('first.ESU.train', 3, 'EDSR-S_first_ESU_x2_seed0: train'),
    ('seeds', [[1]], 'seeds'), ('seeds', [True], 'seeds'), ('seeds', [0, 1099511627776], 'seeds'),
    ('seeds', [-1], 'seeds'), ('seeds', 3, 'seeds'), ('seeds', {'a': 1}, 'seeds'), ('seeds', list(range(999)), 'seeds'),
    ('networks', {}, 'networks'), ('networks', ['EDSR'], 'networks'), ('networks.EDSR-S', 'EDSR', 'networks.EDSR-S'),
    ('networks.EDSR-S.scales', ['x4'], 'networks.EDSR-S.scales'), ('networks.EDSR-S.scales', 3, 'networks.EDSR-S.sc'),
    ('networks.EDSR-S.methods', ['GV'], 'networks.EDSR-S.methods'), ('networks.', {'base': 'edsr.yml'}, 'networks'),
    ('networks.EDSR-S_first', {'base': 'none.yml'}, 'networks.EDSR-S_first.base'),
    ('networks.EDSR-S.base', 'plan.yml', 'EDSR-S_L1_x2_seed0: '),
    ('reference', ['L1'], 'reference'), ('reference', None, 'reference'), ('title', 3, 'title'),
    ('table', 'udl-9', 'table'), ('table', 5, 'table'), ('lengths', 'mine', 'lengths'),
    ('lengths', 'shared', 'first.it'),
    ('deterministic', 'yes', 'deterministic'), ('train', 'nope.yml', 'train'), ('train', '..', 'train'),
    ('train', ['train.yml'], 'train'), ('test', {'a': 1}, 'test'), ('test', '', 'test'), ('trian', 1, 'trian'),
])
def test_what_is_wrong_with_a_plan_is_said_by_file_and_key(write, tmp_path, script, capsys, path, value, key):
    file = write(**changed(path, value))
    before = everything(tmp_path)
    assert script.main([str(file), '--root', str(tmp_path), '--dry_run']) == 2
    said = capsys.readouterr().err
    assert f'{file}: {key}' in said, said
    assert everything(tmp_path) == before


def test_two_runs_of_one_name_are_refused(write, tmp_path):
    networks = {'EDSR': {'base': 'edsr.yml'}, 'EDSR_L1': {'base': 'edsr.yml'}}
    methods = {'L1': {'base': 'l1.yml'}, 'L1_L1': {'base': 'l1.yml'}}
    with pytest.raises(OptionError, match='two runs would be called table_EDSR_L1_L1_x2_seed0'):
        plan.read_plan(write(networks=networks, methods=methods), tmp_path)


@pytest.mark.parametrize(('arguments', 'message'), [
    (['--jobs', '0'], 'expected an integer ≥ 1'), (['--jobs', '-1'], 'expected an integer ≥ 1'),
    (['--jobs', 'two'], 'expected an integer ≥ 1')])
def test_no_jobs_are_refused(write, script, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        script.main([str(write()), *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- what it costs


def test_operations_of_a_step_in_closed_form(write, tmp_path):
    runs = {run.name: run for run in plan.read_plan(write(), tmp_path).runs}
    flat = runs['table_ESPCN_L1_x3_seed0'].stages[0].flat
    # 5x5 from 3 to 8, 3x3 from 8 to 4 (half), 3x3 to 3 colours of 3x3 pixels; two operations for each multiplication
    weights = [p.numel() for p in torch.nn.ModuleList([
        torch.nn.Conv2d(3, 8, 5, bias=False), torch.nn.Conv2d(8, 4, 3, bias=False),
        torch.nn.Conv2d(4, 27, 3, bias=False)]).parameters()]
    assert costs.iteration_operations(flat) == 2 * sum(weights) * 32**2 * 3 * 16
    l1, udl = runs['table_EDSR-S_L1_x2_seed0'].stages[0].flat, runs['table_EDSR-S_UDL_x2_seed0'].stages
    image, esu, both = (costs.iteration_operations(f) for f in (l1, udl[0].flat, udl[1].flat))
    assert esu > image
    assert both == image + esu // 3  # stage 1's network is frozen: forward alone
    cached = {**udl[1].flat, 'datasets': {'train': {**l1['datasets']['train'], 'uncertainty_cache': 'auto'}}}
    assert costs.iteration_operations(cached) == image
    assert costs.iteration_operations({**l1, 'train': {**l1['train'], 'tlw_opt': FILES['tlw.yml']['train']['tlw_opt']}}
                                      ) > image


def test_time_by_records_of_the_same_cell_of_the_same_network_or_by_operations(write, tmp_path, monkeypatch):
    monkeypatch.setattr(costs, 'device_speed', lambda amp: 1e6)
    runs = plan.read_plan(write(), tmp_path).runs
    made = next(run for run in runs if run.name == 'table_EDSR-S_L1_x2_seed0')
    there = {made.record(tmp_path): record('L1', 0, {'a': 1.}, seconds=50., machine='here')}
    estimate = costs.Estimate(runs, there, tmp_path, 'here')
    by_name = {run.name: run for run in runs}
    again = by_name['table_EDSR-S_L1_x2_seed1']
    assert estimate.seconds(again, again.stages[0]) == (50., True)
    assert estimate.seconds(again, again.stages[0], 0.5) == (25., True)
    other = by_name['table_EDSR-S_UDL_x3_seed0'].stages[0]
    operations = [costs.iteration_operations(stage.flat) * stage.iterations for stage in (made.stages[0], other)]
    assert estimate.seconds(by_name['table_EDSR-S_UDL_x3_seed0'], other)[0] == pytest.approx(
        50 * operations[1] / operations[0])
    espcn = by_name['table_ESPCN_L1_x3_seed0']
    seconds, measured = estimate.seconds(espcn, espcn.stages[0])
    assert not measured
    assert seconds == pytest.approx(costs.iteration_operations(espcn.stages[0].flat) * 4000 / 1e6)
    elsewhere = costs.Estimate(runs, there, tmp_path, 'a faster one')
    assert not elsewhere.seconds(again, again.stages[0])[1]


def test_on_a_gpu_each_network_is_timed_by_its_own_steps(write, tmp_path, monkeypatch):
    monkeypatch.setattr(costs, '_SECONDS', 0.05)
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', False)
    flat = plan.read_plan(write(), tmp_path).runs[0].stages[0].flat
    asked, measure = [], costs._network_speed.__wrapped__
    monkeypatch.setattr(costs, '_network_speed',
                        lambda *key: asked.append(key) or measure(*key[:-1], torch.device('cpu')))
    monkeypatch.setattr(costs, 'device_speed', lambda amp: 1.)
    assert costs.training_speed(flat) == 1.  # no GPU
    assert not asked
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    started = time.perf_counter()
    speed = costs.training_speed(flat)
    elapsed = time.perf_counter() - started
    (network, side, batch, amp, device), = asked
    assert json.loads(network) == flat['network_g']
    assert (side, batch, amp, device.type) == (flat['datasets']['train']['gt_size'] // flat['scale'], 16, None, 'cuda')
    # no step was faster than it may have been: what was counted was done within the time that passed
    assert costs.iteration_operations(flat) / elapsed < speed
    assert not torch.backends.cudnn.benchmark
    # what does not fit is timed as on a CPU
    monkeypatch.setattr(costs, '_network_speed', lambda *key: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError()))
    assert costs.training_speed(flat) == 1.


def test_a_dry_run_needs_no_data_and_writes_nothing(write, tmp_path, script, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(costs, '_SECONDS', 0.01)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    (tmp_path / 'data' / 'Set5' / 'GT').mkdir(parents=True)
    history = tmp_path / 'experiments' / 'table_EDSR-S_first_ESU_x2_seed0' / 'history.jsonl'
    history.parent.mkdir(parents=True)
    history.write_text('{"initial_weights": "a"}\n{"iter": 250, "l_pix": 1}\n')
    metrics = {**METRICS, 'lpips': {'type': 'calculate_lpips', 'net': 'vgg'}}
    file = write({'test.yml': {**FILES['test.yml'], 'val': {'metrics': metrics}}})
    before = everything(tmp_path)
    assert script.main([str(file), '--root', str(tmp_path), '--dry_run', '--only', 'x2', 'seed0']) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ['EDSR-S', '×2', 'Original', '0', '4000', 'to', 'do'] in [line[:7] for line in lines]
    assert ['EDSR-S', '×2', 'L_UDL-Ours', '0', '1000', '+', '3000', 'at', '250'] in [line[:9] for line in lines]
    assert ['Set5', str(tmp_path / 'data/Set5/GT'), 'there'] in [line[:3] for line in lines]
    assert ['Set14', str(tmp_path / 'data/Set14/GT'), 'missing', 'test', '×2'] in lines
    assert ['LPIPS,', 'vgg', str(tmp_path / 'torch/hub/checkpoints/vgg16-397923af.pth'), 'missing'] in [
        line[:4] for line in lines]
    assert everything(tmp_path) == before


def test_durations_are_for_people():
    assert [duration(s) for s in (59, 300, 7300, 3 * 86400, 1000 * 86400)] == [
        '59 s', '5.0 min', '2.0 h', '3.0 d', '2.7 years']


def test_the_degradation_is_what_the_options_say(write, tmp_path):
    shared = plan.read_plan(write({'train.yml': {**FILES['train.yml'], 'degradation': 'BD'}}), tmp_path)
    assert {run.degradation for run in shared.runs} == {'BD'}
    assert {run.degradation for run in plan.read_plan(write(), tmp_path).runs} == {'BI'}
    difference = records._difference([shared.runs[0].stages[0].essence],
                                     [plan.read_plan(write(), tmp_path).runs[0].stages[0].essence], 'record')
    assert 'degradation: BD' in difference


# ------------------------------------------------------------------------------------------------------------ the trial


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


@pytest.mark.parametrize(('name', 'cells'), [('udl-2', 4), ('le-1', 5)])
def test_the_trial_of_a_printed_table(name, cells, tmp_path, script, capsys):
    """Two stages, and each form of the sigma branch, as the plans of the papers have them."""
    file = Path(__file__).parent.parent / 'options' / 'papers' / f'{name}.yml'
    assert script.main([str(file), '--root', str(tmp_path), '--trial', '--jobs', '2']) == 0
    assert f'{cells} of {cells} cells run' in capsys.readouterr().out
    runs = plan.read_plan(file, tmp_path).runs
    found = {file.stem for file in (tmp_path / 'trials' / name / 'records').iterdir()}
    assert found == {run.record(tmp_path).stem for run in runs}
    assert len(runs) == cells


def test_a_trial_says_which_cell_fails(write, tmp_path, script, capsys):
    methods = {'L1': PLAN['methods']['L1'], 'explodes': {'base': 'l1.yml', 'options': {
        'train': {'optim_g': {'type': 'SGD', 'lr': 1e30}}}}}
    file = write(methods=methods, first={}, networks={'EDSR-S': {'base': 'edsr.yml'}}, scales={'x2': {}})
    assert script.main([str(file), '--root', str(tmp_path), '--trial']) == 1
    said = capsys.readouterr().out
    assert 'EDSR-S explodes ×2 seed 0: failed with status 1' in said
    assert 'not finite' in said
    assert '1 of 2 cells run' in said


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
