"""udl train --fast and amp: auto: what is decided, what is left alone, and that a resume takes the same."""
import pytest
import torch
import yaml

from udl_basicsr.cli import train as command
from udl_basicsr.training import fast
from udl_basicsr.utils import processor

_SECONDS = {('bf16', True): 0.1, ('bf16', False): 0.2, (None, True): 0.5, (None, False): 0.4}


@pytest.fixture
def machine(monkeypatch):
    """What steps take and the processor has; a test may change it."""
    seconds, flags = dict(_SECONDS), {'avx512_bf16'}
    monkeypatch.setattr(fast, 'seconds_a_step', lambda parsed, amp, last, fused: seconds[amp, last])
    monkeypatch.setattr(processor, 'features', lambda: frozenset(flags))
    return seconds, flags


def levers(flat) -> tuple:
    train, data = flat['train'], flat['datasets']['train']
    return (train.get('amp'), train.get('channels_last'), train['optim_g'].get('fused'), data.get('in_memory'),
            data.get('uncertainty_cache'))


@pytest.mark.parametrize(('flag', 'expected'), [('avx512_bf16', ('bf16', True)), ('amx_bf16', ('bf16', True)),
                                                ('avx2', (None, None))])
def test_both_stages_take_what_is_fastest_here(project, machine, flag, expected):
    machine[1].clear()
    machine[1].add(flag)
    settled = fast.settle(project.parse('udl'), True)
    assert levers(settled.flat) == (*expected, True, True, 'auto')
    assert levers(settled.stage1.flat) == (*expected, True, True, None)
    assert levers(settled.opt) == levers(settled.flat)


def test_what_the_file_says_is_left_alone(project, machine):
    said = ('train:amp=fp16', 'train:channels_last=false', 'train:optim_g={type: Adam, lr: 0.001, fused: false}',
            'datasets:train:in_memory=false')
    settled = fast.settle(project.parse('plain', *said), True)
    assert levers(settled.flat) == ('fp16', False, False, False, None)
    parsed = project.parse('plain')
    assert fast.settle(parsed, False) is parsed  # nothing without being asked


@pytest.mark.parametrize(('flag', 'amp'), [('avx512_bf16', 'bf16'), ('avx512f', None)])
def test_auto_is_bf16_in_hardware_and_nothing_else(project, machine, flag, amp):
    machine[1].clear()
    machine[1].add(flag)
    settled = fast.settle(project.parse('plain', 'train:amp=auto'), False)
    assert levers(settled.flat) == (amp, None, None, None, None)


def test_a_resume_takes_what_the_run_was_begun_with(project, machine, monkeypatch):
    monkeypatch.chdir(project.root)
    arguments = ['-opt', str(project.root / 'plain.yml'), '--fast', '--force_yml']
    assert command.main([*arguments, 'train:total_iter=4']) == 0
    saved = yaml.safe_load((project.root / 'experiments/plain/plain.yml').read_text())
    assert levers(saved) == ('bf16', True, True, True, None)
    assert 'plain is trained with bf16, channels_last, fused, in_memory' in project.log('plain')
    machine[0][None, False] = 0.01  # another day, or another machine
    (project.root / 'experiments/plain/models/net_g_latest.pth').unlink()
    assert command.main([*arguments, 'train:total_iter=6', '--auto_resume']) == 0
    assert levers(yaml.safe_load((project.root / 'experiments/plain/plain.yml').read_text())) == levers(saved)
    assert 'Not the options that the state was saved with' not in project.log('plain')


def test_steps_are_timed_and_leave_nothing_behind(project):
    parsed = project.parse('udl')
    ticks = iter(range(100))
    assert fast.seconds_a_step(parsed, None, True, True, clock=lambda: float(next(ticks))) == 1
    assert not (project.root / 'experiments').exists()


def test_bf16_on_this_processor():
    """As Linux lists it, beside torch, which knows AMX."""
    assert processor.has_bf16(torch.device('cpu')) or not torch.cpu._is_amx_tile_supported()
