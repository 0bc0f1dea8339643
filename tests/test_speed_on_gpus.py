"""The benchmark of speed on a GPU: its clock, and the networks with the batches that the papers print."""
import time

import pytest
import torch
from basicsr.archs import build_network

import speed


def test_the_clock_of_a_gpu_goes_by_its_events(monkeypatch):
    """Here with events that have the processor's time, in milliseconds as torch has it: a pause is not in it."""
    made = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.time = time.process_time()
            made.append(self)

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return 1000 * (end.time - self.time)

    monkeypatch.setattr(torch.cuda, 'Event', Event)

    def contender():
        time.sleep(0.05)
        begin = time.process_time()
        while time.process_time() - begin < 0.02:
            pass

    assert 0.019 < speed.Plan((), 1, 9, clock='gpu', steps=2).time({'a': contender}, 0)['a'][0] < 0.04
    speed.Plan((), 2, 9, clock='gpu').time({'a': lambda: None}, 0)
    assert len({*made}) == 8  # each sample has its own, since torch tells the time between two in float32


@pytest.mark.parametrize(('seconds', 'together'), [(0.02, 5), (0.2, 2), (3., 1)])
def test_long_steps_are_timed_alone(monkeypatch, seconds, together):
    clock, calls = [0.], []

    def step():
        clock[0] += seconds
        calls.append(1)

    monkeypatch.setitem(speed.CLOCKS, 'gpu', speed.by(lambda: clock[0]))
    samples = speed.Plan((), 1, 9, clock='gpu', steps=5).time({'a': step}, 0)['a']
    assert samples == pytest.approx([seconds])
    assert len(calls) == 2 + together  # one that is not timed, one that tells how long they are


def test_on_a_gpu_each_network_has_the_batch_and_the_crop_that_are_printed():
    gpu, printed = torch.device('cuda'), {'EDSR-S': (16, 48), 'EDSR': (16, 48), 'RCAN': (16, 48), 'SwinIR': (32, 48),
                                          'HAT': (32, 64)}
    for plan in (speed.make_plan(gpu, False), speed.make_plan(gpu, True, list(printed))):
        assert {case.network: (case.batch, case.patch) for case in plan.cases} == printed
    assert speed.make_plan(gpu, True, ['HAT'], batch=4).cases == (speed.Case('HAT', 4, 64), )
    assert [speed.make_plan(gpu, True, names).validated for names in (None, ['HAT'])] == [('tiny', ), ()]


@pytest.mark.parametrize('network', ['EDSR-S', 'EDSR', 'RCAN', 'SwinIR', 'HAT'])
def test_the_networks_are_those_of_the_papers(network):
    net = build_network(speed.Case(network).options())
    millions = {'EDSR-S': 1.5, 'EDSR': 43.1, 'RCAN': 15.6, 'SwinIR': 11.9, 'HAT': 20.8}
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions[network], abs=0.1)
