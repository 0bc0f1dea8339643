"""Plans of several networks: what they run, what is wrong with them, what they cost."""
# ruff: noqa: F811 - fixtures that come from plan_cases
import importlib
import json
import time
from copy import deepcopy

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from plan_cases import EDSR, FILES, METRICS, PLAN, everything, script, write  # noqa: F401
from test_records import record

from udl_basicsr.cli import comparing
from udl_basicsr.experiments import costs, plan, record_files, records, statistics
from udl_basicsr.options.parse import OptionError
from udl_basicsr.utils.scores import ScoresError
from udl_basicsr.utils.text import duration

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
    (tmp_path / 'mine').mkdir()  # a plan that starts from this one: files are relative to the plan that names them
    (tmp_path / 'mine/plan.yml').write_text('_base_: ../plan.yml\n')
    assert plan.read_plan(tmp_path / 'mine/plan.yml', tmp_path).runs == read.runs


def test_only_names_networks_scales_methods_and_seeds(write, tmp_path):
    read = plan.read_plan(write(), tmp_path)

    def chosen(*words):
        return [run.name.removeprefix('table_') for run in plan.select(read, words)]
    assert chosen('EDSR-S', 'x3', 'UDL', 'seed1') == chosen('EDSR-S', 'x3', 'L_UDL-Ours', 'seed1') \
        == ['EDSR-S_UDL_x3_seed1']
    assert chosen('seed0', 'L1', 'x2', 'x3') == ['EDSR-S_L1_x2_seed0', 'EDSR-S_L1_x3_seed0', 'ESPCN_L1_x3_seed0']
    assert len(chosen()) == 10
    for words, message in ((['EDSR'], r"--only EDSR: .* no such .*\. Did you mean 'EDSR-S'\?$"), (['X4'], 'x2, x3'),
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
    for others in ([], [one('RCAN', 'GV', 1., data_order='longest', lengths='own')]):
        with pytest.raises(ScoresError, match='`data_order`'):
            record_files.check_pairs([*others, one('RCAN', 'L1', 1.), one('RCAN', 'UDL', 1., data_order='longer')])


def test_the_printed_table_stands_beside_ours(write, tmp_path, capsys):
    out = tmp_path / 'records'
    for method, label, value in (('L1', 'Original', 34.5), ('UDL', 'L_UDL-Ours', 35.25)):
        record_files.write_record(record(method, 0, {'a': value}, label=label, network_title='EDSR-S',
                                       network_id='EDSR-S'), out)
    comparing.show(plan.read_plan(write(), tmp_path), out)
    table = capsys.readouterr().out.split()
    assert {'34.50/–', '35.25/–', '38.00/0.9605'} <= {*table}  # ours twice, and a cell that is not trained here


# -------------------------------------------------------------------------------------------------------- what is wrong

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
    ('methods.UDL.iterations', 5000, 'methods.UDL.iterations'),
    ('methods.UDL.iterations', 0, 'methods.UDL.iterations'),
    ('scales.x3.test', {'datasets': {'test_9': 5}}, 'test_EDSR-S_L1_x3_seed0: datasets.test_9'),
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
    (['--jobs', '0'], 'expected a whole number from 1 to 1024'),
    (['--jobs', '-1'], 'expected a whole number from 1 to 1024'),
    (['--jobs', 'two'], 'expected a whole number from 1 to 1024')])
def test_no_jobs_are_refused(write, script, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        script.main([str(write()), *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(('more', 'message'), [
    (['--trial', '--dry_run'], '--trial tries all cells in trials/<name> and shows how they ended; it takes no --dry'),
    (['--trial', '--out', 'records'], 'it takes no --out'), (['--trial', '--metrics', 'psnr'], 'it takes no --metrics'),
    (['--metrics', 'pnsr'], "--metrics: nothing measures 'pnsr'; did you mean 'psnr'?"),
    (['--metrics', 'psnr', 'lpips'], "--metrics: nothing measures 'lpips'; known: psnr"),
])
def test_what_would_be_ignored_is_refused(write, tmp_path, script, capsys, monkeypatch, more, message):
    monkeypatch.setattr(plan, '_lpips_if_there', lambda scale: {})
    file = write(table=None)
    before = everything(tmp_path)
    try:
        status = script.main([str(file), '--root', str(tmp_path), *more])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert message in capsys.readouterr().err
    assert everything(tmp_path) == before


def test_a_paper_s_table_has_metrics_of_its_own(write, tmp_path, script, capsys):
    assert script.main([str(write()), '--root', str(tmp_path), '--metrics', 'psnr']) == 2
    assert 'is shown as the table udl-5 of a paper' in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------- what it costs

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
    # stage 1's network is frozen: a forward without the image's upsampler, 4 channels to 16, and its last convolution
    tail = 2 * 16 * (48**2 * 4 * 16 * 9 + 96**2 * 4 * 3 * 9)
    assert both == image + esu // 3 - tail
    cached = {**udl[1].flat, 'datasets': {'train': {**l1['datasets']['train'], 'uncertainty_cache': 'auto'}}}
    assert costs.iteration_operations(cached) == image
    assert costs.iteration_operations({**l1, 'train': {**l1['train'], 'tlw_opt': FILES['tlw.yml']['train']['tlw_opt']}}
                                      ) > image


class Choosy(torch.nn.Module):
    """A network of a user's, which takes sides that are multiples of 32 and looks at values."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 12, 3, padding=1)

    def forward(self, x):
        if x.mean().isnan().item() or x.shape[-1] % 32 or x.shape[-2] % 32:
            raise ValueError('expected multiples of 32')
        return torch.nn.functional.pixel_shuffle(self.conv(x), 2)


def test_a_network_of_gray_images_is_counted_whatever_it_calls_its_channels(write, tmp_path):
    """The images have as many as their data set gives: with three, SwinIR's record was lost after its training."""
    flat = plan.read_plan(write(), tmp_path).runs[0].stages[0].flat
    network = {'type': 'SwinIR', 'in_chans': 1, 'upscale': 2, 'img_size': 16, 'window_size': 8, 'embed_dim': 8,
               'depths': [1], 'num_heads': [1], 'mlp_ratio': 2, 'upsampler': 'pixelshuffledirect'}
    flat = {**flat, 'network_g': network, 'datasets': {'train': {**flat['datasets']['train'], 'color': 'y'}}}
    assert costs.iteration_operations(flat) > 0
    assert costs.measure_image(network, 2, (64, 128), channels=1)[1].size == [64, 128]


def test_what_cannot_be_measured_costs_no_record(write, tmp_path, monkeypatch, capsys):
    """It is measured when training and test are done. An image of 720x1280 has sides of 360 and 640 at x2."""
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'Choosy', Choosy)
    flat = plan.read_plan(write(), tmp_path).runs[0].stages[0].flat
    flat = {**flat, 'network_g': {'type': 'Choosy'}}
    flat['datasets'] = {'train': {**flat['datasets']['train'], 'gt_size': 128, 'batch_size_per_gpu': 1}}
    assert costs.iteration_operations(flat) == 3 * 2 * 12 * 3 * 3 * 3 * 64**2
    assert costs.measure_image({'type': 'Choosy'}, 2, (720, 1280)) == ({}, None)
    assert costs.measure_image({'type': 'Choosy'}, 2, (64, 128))[1].size == [64, 128]
    complexity = importlib.import_module('udl_basicsr.cli.complexity')
    file = tmp_path / 'own.yml'
    for scale, message in ((2, 'the macs of Choosy for an image of 720 x 1280 cannot be told'),
                           (0, 'expected scale, integer ≥ 1'), (-2, 'integer ≥ 1'), ('true', 'integer ≥ 1')):
        file.write_text(f'scale: {scale}\nnetwork_g: {{type: Choosy}}\n')
        assert complexity.main([str(file)]) == 2
        assert f'error: {file}: ' in (said := capsys.readouterr().err)
        assert message in said


def test_time_by_records_of_the_same_cell_of_the_same_network_or_by_operations(write, tmp_path, monkeypatch):
    monkeypatch.setattr(costs, 'device_speed', lambda *_: 1e6)
    runs = plan.read_plan(write(), tmp_path).runs
    made = next(run for run in runs if run.name == 'table_EDSR-S_L1_x2_seed0')
    there = {made.record(tmp_path): record('L1', 0, {'a': 1.}, seconds=50., machine='here')}
    estimate = costs.Estimate(runs, there, tmp_path, lambda flat: 'here')
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
    stopped = record('L1', 0, {'a': 1.}, seconds=5., machine='here',  # and gone on with: its last process took 5 s
                     stages=[{'name': 'plain', 'iterations': 4000, 'seconds': 50.}])
    estimate = costs.Estimate(runs, {made.record(tmp_path): stopped}, tmp_path, lambda flat: 'here')
    assert estimate.seconds(again, again.stages[0]) == (50., True)
    elsewhere = costs.Estimate(runs, there, tmp_path, lambda flat: 'a faster one')
    assert not elsewhere.seconds(again, again.stages[0])[1]


def test_on_a_gpu_each_network_is_timed_by_its_own_steps(write, tmp_path, monkeypatch):
    monkeypatch.setattr(costs, '_SECONDS', 0.05)
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', False)
    flat = plan.read_plan(write(), tmp_path).runs[0].stages[0].flat
    asked, measure = [], costs._network_speed.__wrapped__
    kernels = []
    monkeypatch.setattr(costs, '_network_speed',
                        lambda *key: asked.append(key) or measure(*key[:-1], torch.device('cpu')))
    build = costs.build_real
    monkeypatch.setattr(costs, 'build_real', lambda block: kernels.append((
        torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled())) or build(block))
    monkeypatch.setattr(costs, 'device_speed', lambda *_: 1.)
    assert costs.training_speed(flat) == 1.  # no GPU
    assert not asked
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    started = time.perf_counter()
    speed = costs.training_speed(flat)
    elapsed = time.perf_counter() - started
    (network, channels, side, batch, amp, deterministic, device), = asked
    assert deterministic  # as the runs of a plan are on a GPU
    assert json.loads(network) == flat['network_g']
    assert (channels, batch, amp, device.type) == (3, 16, None, 'cuda')
    assert side == flat['datasets']['train']['gt_size'] // flat['scale']
    # no step was faster than it may have been: what was counted was done within the time that passed
    assert costs.iteration_operations(flat) / elapsed < speed
    assert not torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()
    costs.training_speed({**flat, 'deterministic': False})
    assert kernels == [(False, True), (True, False)]
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


def test_a_plan_does_without_what_is_null(write, tmp_path):
    """Also where there is nothing to be removed: dry run and trial had stumbled over it."""
    nothing = {'datasets': {'val_9': None}}
    scales = {'x3': {'train': nothing, 'test': {**nothing, 'val': {'metrics': {'rgb': None}}}}}
    for run in plan.read_plan(write(scales=scales, networks={'EDSR-S': PLAN['networks']['EDSR-S']}), tmp_path).runs:
        for flat in (*(stage.flat for stage in run.stages), run.test_flat):
            assert 'val_9' not in flat['datasets']
        assert 'rgb' not in run.test_flat['val']['metrics']


def test_the_degradation_is_what_the_options_say(write, tmp_path):
    shared = plan.read_plan(write({'train.yml': {**FILES['train.yml'], 'degradation': 'BD'}}), tmp_path)
    assert {run.degradation for run in shared.runs} == {'BD'}
    assert {run.degradation for run in plan.read_plan(write(), tmp_path).runs} == {'BI'}
    difference = records._difference([shared.runs[0].stages[0].essence],
                                     [plan.read_plan(write(), tmp_path).runs[0].stages[0].essence], 'record')
    assert 'degradation: BD' in difference


def test_what_is_written_over_stays_in_one_row(monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    assert comparing.fitting('x' * 100) == 'x' * 79
    assert comparing.fitting('L1, seed 0: 3/9') == 'L1, seed 0: 3/9'
