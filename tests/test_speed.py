"""The benchmark of speed: its reference is the published form, its arithmetic is right, its report is whole."""
import json
import runpy
import statistics
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.models.sr_model import SRModel
from conftest import photograph
from torch.nn import functional as F

import speed
from speed import loading, measuring, report, validating

CPU = torch.device('cpu')
CASE = speed.Case('tiny', batch=2, patch=12)
SCRIPT = Path(__file__).parents[1] / 'scripts' / 'benchmark_speed.py'


def trainer(folder, case=CASE):
    trainer = speed.Trainer(case, CPU, folder)
    torch.manual_seed(1)
    for value in trainer.weights.values():  # an untrained head says s = 0 nearly everywhere
        value += 0.1 * torch.randn_like(value)
    torch.save({'params': trainer.weights}, trainer.path)
    return trainer


# ---------------------------------------------------------------------------------------------------------- arithmetic


class Clock:
    """A clock that only the contenders move."""

    def __init__(self):
        self.time, self.calls = 0., []

    def __call__(self):
        return self.time

    def contender(self, name, *seconds):
        durations = iter(seconds)

        def run():
            self.calls.append(name)
            self.time += next(durations)
        return run


def test_rounds_are_paired_and_their_order_alternates():
    clock = Clock()
    samples = speed.paired({'a': clock.contender('a', 9, 1, 2, 4), 'b': clock.contender('b', 9, 3, 3, 3),
                            'c': clock.contender('c', 9, 5, 6, 7)}, rounds=3, warmup=1, clock=speed.by(clock))
    assert samples == {'a': [1, 2, 4], 'b': [3, 3, 3], 'c': [5, 6, 7]}  # the warm-up's 9 are in none
    rounds = [''.join(clock.calls[i:i + 3]) for i in range(0, 12, 3)]
    assert all(sorted(order) == ['a', 'b', 'c'] for order in rounds)
    assert len(set(rounds[1:])) == 3
    assert speed.ratios(samples['c'], samples['a']) == [5, 3, 1.75]


def test_a_round_is_not_begun_after_its_time_but_there_are_three():
    clock = Clock()
    assert len(speed.paired({'a': clock.contender('a', *[2] * 9)}, 9, 0, seconds=7, clock=speed.by(clock))['a']) == 4
    assert len(speed.paired({'a': clock.contender('a', *[2] * 9)}, 9, 0, seconds=0, clock=speed.by(clock))['a']) == 3


def test_steps_that_are_timed_together_are_averaged():
    clock = Clock()
    samples = speed.paired({'a': clock.contender('a', 9, 9, 1, 2, 3, 5)}, 2, 1, clock=speed.by(clock), steps=2)
    assert samples == {'a': [1.5, 4]}


def test_hours_are_those_of_the_printed_training():
    """UDL, tables 1 to 6: 120,000 iterations of stage 1 and 400,000 of stage 2, and L1 as long as both."""
    an_hour = {'seconds': {'median': 3600.}}
    assert [report.hours(kind, an_hour) for kind in ('l1_float32', 'esu', 'udl_cached')] == [520_000, 120_000, 400_000]


def test_a_plan_times_by_its_clock():
    """That of the processor does not run while others do."""
    measured = {clock: speed.Plan((), 1, 9, clock=clock).time({'sleep': lambda: time.sleep(0.05)}, 0)['sleep']
                for clock in ('wall', 'processor')}
    assert measured['wall'][0] >= 0.05
    assert measured['processor'][0] < measured['wall'][0] / 5


def test_medians_and_quartiles():
    values = [7., 1., 3., 10., 4.]
    assert speed.figure(values) == {'low': np.percentile(values, 25), 'median': np.percentile(values, 50),
                                    'high': np.percentile(values, 75), 'samples': values}
    assert speed.quartiles([2.]) == (2., 2., 2.)


def test_the_fastest_settings_and_compiling_for_a_tenth_alone():
    plain, fused, compiled = speed.Settings(), speed.Settings(fused=True), speed.Settings(compile=True)
    assert speed.fastest({plain: [1, 1, 9], fused: [2, 2, 1], compiled: [0.92, 0.92, 0]}) == plain
    assert speed.fastest({plain: [1, 1, 9], fused: [2, 2, 1], compiled: [0.88, 0.88, 9]}) == compiled


# ------------------------------------------------------------------------------------------------------- the reference


@pytest.mark.parametrize('scale', [2, 4])
def test_the_published_step_is_our_step(tmp_path, scale):
    ours_and_theirs = trainer(tmp_path, speed.Case('tiny', batch=2, patch=8, scale=scale))
    data = {key: ours_and_theirs.data[key] for key in ('lq', 'gt')}
    published, ours = ours_and_theirs.model('published'), ours_and_theirs.model('udl', speed.Settings(fast_head=True))
    ours.net_g.load_state_dict(published.trained.mean_network.state_dict())
    ours.criteria['udl_opt'].offset, ours.criteria['udl_opt'].min_over = 1.0, 'channel'

    with torch.no_grad():  # trainer.py of the release, on paper: the weight multiplies both images
        mean, s = published.trained(data['lq'])
        weight = s - s.flatten(2).min(-1).values[..., None, None] + 1
        expected = (weight * mean - weight * data['gt']).abs().mean()
    assert s.std() > 0.01
    assert published.step(data) == pytest.approx(expected.item(), rel=1e-5)
    ours.feed_data(data)
    ours.optimize_parameters(1)
    assert ours.get_current_log()['l_udl'] == pytest.approx(expected.item(), rel=1e-5)

    theirs = dict(published.trained.mean_network.named_parameters())
    for name, parameter in ours.net_g.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-7, msg=name)
        torch.testing.assert_close(parameter, theirs[name], rtol=1e-4, atol=1e-6, msg=name)
    unused = [*published.frozen.parameters(), *published.trained.var_conv.parameters()]
    assert all(p.grad is None for p in unused)


def test_the_published_head_is_convolutions_of_the_upsampled_map(tmp_path):
    net = trainer(tmp_path).model('published').frozen.double()
    conv1, conv2, conv3 = net.var_conv.conv1, net.var_conv.conv2, net.var_conv.conv3
    features = torch.randn(1, 8, 3, 5, dtype=torch.float64)
    out = features.repeat_interleave(4, -1).repeat_interleave(4, -2)
    for conv in (conv1, conv2, conv3):
        out = F.conv2d(out, conv.weight, conv.bias, padding=1)
        out = torch.where(out > 0, out, out.exp() - 1)
    torch.testing.assert_close(net.var_conv(features), out, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('kind', ['esu', 'udl'])
def test_levers_do_not_change_what_is_trained(tmp_path, kind):
    given = trainer(tmp_path)
    losses = {}
    for settings in speed.levers(CPU, with_compile=False):
        run = given.step(kind, settings, cached=False)
        run.model.net_g.load_state_dict({k.removeprefix('mean_network.'): v for k, v in given.weights.items()
                                         if k.startswith('mean_network.')})
        run()
        losses[settings] = sum(v for k, v in run.model.get_current_log().items() if k.startswith('l_'))
    plain = losses.pop(speed.Settings())
    for settings, loss in losses.items():
        assert loss == pytest.approx(plain, rel=2e-2 if settings.amp else 1e-5), settings


def test_a_head_that_is_not_fast_is_trained_all_the_same(tmp_path):
    run = trainer(tmp_path).step('esu')
    assert isinstance(run.model.net_u.head, speed.PlainHead)
    before = run.model.net_u.head.conv2.weight.clone()
    run()
    assert not torch.equal(before, run.model.net_u.head.conv2.weight)


def test_the_cached_step_reads_s_from_the_batch(tmp_path):
    run = trainer(tmp_path).step('udl', cached=True)
    run.model.net_u = None
    run()
    assert run.model.get_current_log()['s_mean'] == pytest.approx(0.5, abs=0.05)  # the batch's is uniform noise


# ------------------------------------------------------------------------------------------------------------- memory


class Step:
    """A step that needs known amounts of memory."""

    def __init__(self):
        self.net_g = torch.nn.Linear(256, 256, bias=False)
        self.optimizer_g = torch.optim.Adam(self.net_g.parameters())
        self.model = self

    def __call__(self):
        one = torch.zeros(1 << 20)
        two = torch.zeros(1 << 19)
        del one, two
        torch.zeros(1 << 18)


def test_the_peak_is_what_is_held_and_the_most_that_is_there_at_once():
    weights, at_once = 256 * 256 * 4, (2**20 + 2**19) * 4
    assert speed.peak_memory(Step, CPU) == pytest.approx(weights + at_once, rel=0.01)


def test_the_published_form_keeps_what_ours_does_not(tmp_path):
    given = trainer(tmp_path)
    peaks = {kind: speed.peak_memory(lambda kind=kind: given.step(kind, *([] if kind == 'published' else [
        speed.Settings(fast_head=True)])), CPU) for kind in ('published', 'udl', 'l1')}
    assert peaks['published'] > peaks['udl'] > peaks['l1']


# -------------------------------------------------------------------------------------------------- validation and data


def test_validation_figures_are_basicsrs(tmp_path, monkeypatch):
    """On a GPU too: its TF32, which ours leaves aside, would make other figures of BasicSR's."""
    folders, tf32, test = speed.make_images(tmp_path, 3, 64, 80, 4), [], SRModel.test
    monkeypatch.setattr(SRModel, 'test', lambda self: (tf32.append(torch.backends.cudnn.allow_tf32), test(self)))
    result = speed.validation(CASE, *folders, CPU, rounds=1)
    assert {*tf32} == {False}
    assert result['images'] == 3
    assert result['difference'] < 1e-9
    assert 5 < result['figures']['psnr'] < 60
    for times, key in (('seconds', 'ratios'), ('cpu_seconds', 'cpu_ratios')):
        theirs, ours, network = (result[times][name][0] for name in ('basicsr', 'ours', 'network'))
        assert min(theirs, ours, network) > 0
        # three tiny images: on a busy machine BasicSR may have been quicker than the network alone
        assert result[key] == [(theirs - network) / max(ours - network, (theirs - network) / 10)
                               if theirs > network else 0]
    assert result['beyond_network']['ours'][0] == result['seconds']['ours'][0] - result['seconds']['network'][0]


def test_validation_beyond_the_network_is_never_less_than_nothing():
    beyond = {'basicsr': [8., 8., 8., -1.], 'ours': [2., 0.01, -3., 1.]}
    assert validating._beyond_ratios(beyond) == [4, 10, 10, 0]


def test_figures_that_differ_are_an_error(tmp_path, monkeypatch):
    folders = speed.make_images(tmp_path, 2, 64, 80, 4)
    monkeypatch.setattr('udl_basicsr.models.udl_model.UDLModel._measure', lambda *_: {'psnr': 1., 'ssim': 1.})
    with pytest.raises(speed.SpeedError, match='differ by more than 1e-4'):
        speed.validation(CASE, *folders, CPU, rounds=1)


def test_waiting_is_what_a_step_takes_longer_than_with_a_batch_that_is_there(tmp_path, monkeypatch):
    """By a clock that only steps and the loader move: on a GPU the host runs ahead, and so next() says nothing."""
    folders, clock = speed.make_images(tmp_path, 4, 64, 64, 4), Clock()
    monkeypatch.setattr(loading, 'now', clock)
    batches = loading.train_batches

    def slow_batches(*args):
        sampler, given = batches(*args)

        def slowly():
            for number, batch in enumerate(given):
                clock.time += 0.5 if number > 2 else 0.  # what it has in stock comes at once
                yield batch
        return sampler, slowly()

    monkeypatch.setattr(loading, 'train_batches', slow_batches)
    trainer = speed.Trainer(CASE, CPU, tmp_path)
    step = trainer.step('udl').model
    monkeypatch.setattr(trainer, 'step', lambda *_: step)
    step.model = step
    monkeypatch.setattr(step, 'optimize_parameters', lambda _: setattr(clock, 'time', clock.time + 2))
    results = speed.waiting(trainer, speed.Settings(), *folders, ['disk', 'lmdb', 'memory'], [0], 2)
    assert results == {f'{name}, 0 workers': {'step': 2.5, 'fixed': 2., 'share': pytest.approx(0.2)}
                       for name in ('disk', 'lmdb', 'memory')}


# -------------------------------------------------------------------------------------------------------- the whole run


def test_plans_can_be_made():
    quick, full = (speed.make_plan(CPU, quick) for quick in (True, False))
    assert len(quick.cases) == 1 < len(full.cases)
    assert full.compiled
    assert speed.make_plan(CPU, False, compiled=[]).compiled == quick.compiled == ()


def test_a_batch_that_does_not_fit_is_halved_and_the_table_says_so(tmp_path, monkeypatch):
    asked = []

    def step(self, kind, settings=None, cached=False):
        asked.append(self.case.batch)
        if self.case.batch > 2:
            raise torch.OutOfMemoryError('CUDA out of memory.')
        return Step()

    monkeypatch.setattr(speed.Trainer, 'step', step)
    monkeypatch.setattr(measuring, 'peak_memory', lambda *_: 1)
    result = measuring.measure_largest(speed.Case('tiny', 8, 8), CPU, tmp_path, speed.Plan((), 1, 9), False)
    assert asked[:3] == [8, 4, 2]
    assert (result['case']['batch'], result['asked_for']) == (2, 8)
    who = {'device': 'a', 'cpu': 'b', 'threads': 1, 'cores': 1, 'bf16': False, 'load': [0.], 'clock': 'gpu',
           'versions': {'torch': '2'}}
    text = report.tables({'machine': who, 'networks': {'tiny': result}, 'validation': {}, 'data': {}, 'growth': [],
                          'figures': {}})
    assert 'tiny ×4, batch 2 of 8×8 (of 8, which do not fit)' in text


def script(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', [str(SCRIPT), *map(str, args)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name='__main__')
    return end.value.code


def test_the_script_writes_all_figures_with_their_samples(tmp_path, monkeypatch, capsys):
    gt, lq = speed.make_images(tmp_path, 2, 64, 80, 4)
    plan = speed.Plan((CASE, ), rounds=2, seconds=60, growth=(CASE, ), validated=('tiny', ))
    monkeypatch.setattr(speed, 'make_plan', lambda *_: plan)
    path = tmp_path / 'new' / 'speed.json'
    assert script(monkeypatch, '--quick', '--out', path, '--val', gt, lq, '--device', 'cpu') == 0
    out = capsys.readouterr().out
    assert cv2.imread(str(path.with_suffix('.png'))).std() > 1
    report = json.loads(path.read_text())
    for key in speed.GOALS:
        assert key in out
        assert report[key] == statistics.median(report['figures'][key]['samples'])
    network = report['networks']['tiny']
    assert set(network['levers']) == {str(settings) for settings in speed.levers(CPU, False)}
    assert network['unavailable'] == {'compile': 'not tried, compiling takes minutes'}
    assert report['machine']['clock'] == 'wall'
    assert speed.Settings(**network['best']) in speed.levers(CPU, False)
    seconds = {name: value['seconds']['samples'] for name, value in network['contenders'].items()}
    assert all(len(values) == 2 for values in seconds.values())
    assert report['figures']['stage2_over_l1']['samples'] == [
        a / b for a, b in zip(seconds['udl'], seconds['l1'], strict=True)]
    figures = report['figures']
    assert figures['validation_basicsr_over_ours'] == figures['validation_basicsr_over_ours_wall']
    assert figures['validation_basicsr_over_ours_processor']['samples'] == report['validation']['tiny']['cpu_ratios']
    assert report['memory_published_over_ours'] == network['memory']['published'] / network['memory']['udl']
    assert report['machine']['versions']['torch'] == torch.__version__
    assert report['validation']['tiny']['images'] == 2
    assert report['growth'][0]['memory']['published'] == network['memory']['published']


def test_what_is_measured_is_saved_at_once(tmp_path, monkeypatch):
    """Of a run of hours that is interrupted, what was done is not lost."""
    folders, path = speed.make_images(tmp_path, 2, 64, 80, 4), tmp_path / 'speed.json'
    monkeypatch.setattr(measuring, 'validation', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        speed.run(speed.Plan((CASE, ), 1, 60), CPU, folders, False, lambda report: speed.save(report, path))
    report = json.loads(path.read_text())
    assert report['stage2_over_l1'] == report['figures']['stage2_over_l1']['median'] > 0
    assert report['validation_basicsr_over_ours'] is None
    assert speed.write(report, path)[1].is_file()


def test_the_script_refuses_images_that_do_not_fit(tmp_path, monkeypatch, capsys):
    gt, lq = speed.make_images(tmp_path, 2, 64, 80, 4)
    cv2.imwrite(str(gt / '0001.png'), photograph(0, 60, 80))
    assert script(monkeypatch, '--out', tmp_path / 'speed.json', '--val', gt, lq) == 1
    assert '60x80 is not 4 times 16x20' in capsys.readouterr().err
    (lq / '0000.png').unlink()
    assert script(monkeypatch, '--out', tmp_path / 'speed.json', '--val', gt, lq) == 1
    assert 'only in one: 0000.png' in capsys.readouterr().err
    assert script(monkeypatch, '--out', tmp_path / 'speed.json', '--val', gt, tmp_path / 'none') == 1
    assert 'expected a folder' in capsys.readouterr().err
    assert not (tmp_path / 'speed.json').exists()


@pytest.mark.parametrize('args', [['--out', '{}'], ['--out', '{}/a.png'], ['--out', '{}/file/a.json'],
                                  ['--out', '{}/a.json', '--rounds', '0'],
                                  ['--out', '{}/a.json', '--clock', 'processor', '--device', 'cuda']])
def test_the_script_refuses_wrong_arguments(tmp_path, monkeypatch, args):
    (tmp_path / 'file').touch()
    assert script(monkeypatch, *(arg.format(tmp_path) for arg in args)) == 2
