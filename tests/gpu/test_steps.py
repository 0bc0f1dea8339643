"""A training step on the device against the same step on the CPU in float32: every stage, precision and lever."""
import shutil

import pytest
import torch
from conftest import FOLLOWS_HOOKS, assert_same_weights, batch

from .conftest import CUDA, STAGES, needs_cuda

_SGD = 'train:optim_g={type: SGD, lr: 0.001}'  # Adam's first step is a sign, which amplifies rounding

# Triton starts a C compiler for what it launches, the CPU's code is C++.
_COMPILERS = ('cc', 'gcc', 'clang') if CUDA else ('g++', )


def steps(model, first=1, last=1, seed=None):
    for number in range(first, last + 1):
        torch.manual_seed(number)
        model.update_learning_rate(number)
        model.feed_data(batch(number if seed is None else seed))
        model.optimize_parameters(number)
    return model


def gradients(model) -> dict:
    return {f'{label}.{name}': parameter.grad.cpu() for label, network in model.networks_in_training().items()
            for name, parameter in network.named_parameters()}


@pytest.mark.rehearsed
@pytest.mark.parametrize('stage', STAGES)
def test_float32_is_that_of_the_cpu(project, stage):
    here, there = project.twins(stage)
    assert there.device.type == ('cuda' if CUDA else 'cpu')
    steps(here), steps(there)
    for name, value in here.get_current_log().items():
        assert there.get_current_log()[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    largest = max(gradient.abs().max() for gradient in gradients(here).values())
    for name, gradient in gradients(here).items():
        torch.testing.assert_close(gradients(there)[name], gradient, rtol=1e-3, atol=1e-5 * float(largest), msg=name)


@pytest.mark.parametrize('amp', ['bf16', 'fp16'])
@pytest.mark.parametrize('stage', STAGES)
def test_short_types_are_near_it_and_train(project, stage, amp):
    here, there = project.twins(stage, f'train:amp={amp}')
    before = {name: value.clone() for name, value in there.net_g.state_dict().items()}
    steps(here), steps(there)
    for name, value in here.get_current_log().items():
        if not name.startswith('grad_norm') or amp == 'bf16':  # infinite while the scaler is in search of its scale
            assert there.get_current_log()[name] == pytest.approx(value, rel=0.05, abs=0.03), name
    steps(there, 2, 20, seed=1)  # a scale of 65536 is halved until gradients of 0-255 units fit
    assert there.skipped == 0
    assert any(not torch.equal(value, before[name]) for name, value in there.net_g.state_dict().items())
    for network in there.networks_in_training().values():
        for parameter in network.parameters():
            assert parameter.dtype == torch.float32
            assert parameter.isfinite().all()
    assert not there.scaler.is_enabled() or 1 <= there.scaler.get_scale() < 65536 * 4


@pytest.mark.parametrize('stage', STAGES)
@pytest.mark.parametrize('force', [
    ('train:channels_last=true', ), ('train:accumulate=2', ), ('train:ema_decay=0.9', 'train:grad_clip=0.5')])
def test_levers_change_nothing_but_rounding(project, stage, force):
    if stage == 'tlw' and 'accumulate' in force[0]:
        pytest.skip('batch norm sees each part')
    here, there = project.twins(stage, *force)
    steps(here), steps(there)
    log = here.get_current_log()
    for name, value in there.get_current_log().items():
        assert value == pytest.approx(log[name], rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize('stage', ['esu', 'udl'])
def test_fused_adam_is_adam(project, stage):
    plain, fused = (project.twins(stage, f'train:optim_g={{type: Adam, lr: 1e-3{how}}}')[1]
                    for how in ('', ', fused: true'))
    plain.trained.load_state_dict(fused.trained.state_dict())
    steps(plain, 1, 3), steps(fused, 1, 3)
    # three steps of at most 1e-3 each; rounding decides the sign where a gradient is next to nothing
    apart = [(a - b).abs().mean() for a, b in zip(plain.trained.parameters(), fused.trained.parameters(), strict=True)]
    assert max(apart) < 1e-4


@pytest.mark.skipif(not any(map(shutil.which, _COMPILERS)), reason=f'torch.compile needs one of {_COMPILERS}')
@pytest.mark.parametrize('stage', ['plain', 'esu', 'udl'])
def test_compiled_steps(project, stage):
    if stage == 'esu' and not FOLLOWS_HOOKS:
        pytest.skip('older releases were seen to fail inside torch._dynamo on the hook of the tap')
    here, there = project.twins(stage, _SGD, 'train:compile=true')
    here.optimizer_g.param_groups[0]['lr'] = 0  # of Adam; the first step is what is compared
    steps(here), steps(there)
    for name, value in here.get_current_log().items():
        assert there.get_current_log()[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    steps(there, 2, 4, seed=1)
    assert there.get_current_log()['grad_norm'] > 0


@pytest.mark.parametrize('optimizer', ['{type: Adam, lr: 0.001}', '{type: Adam, lr: 0.001, fused: true}'])
@pytest.mark.parametrize('amp', ['~', 'bf16', 'fp16'])
def test_a_step_that_is_not_finite_is_left_out(project, amp, optimizer):
    project.make_stage1()
    model = project.model('udl', f'train:amp={amp}', 'train:skip_nonfinite=2', 'train:ema_decay=0.9',
                          f'train:optim_g={optimizer}')
    assert model.guard.late == (CUDA and 'fused' in optimizer)
    steps(model, 1, 20)
    before = {name: value.clone() for name, value in model.net_g.state_dict().items()}
    model.feed_data({**batch(), 'lq': torch.full((4, 3, 16, 16), torch.nan), 'lq_path': ['bad.png']})
    model.optimize_parameters(21)
    assert model.get_current_log()['skipped'] == 1
    assert_same_weights(model.net_g.state_dict(), before)
    steps(model, 22, 22)
    assert any(not torch.equal(value, before[name]) for name, value in model.net_g.state_dict().items())


@needs_cuda
@pytest.mark.parametrize('amp', ['~', 'bf16'])
@pytest.mark.parametrize('stage', STAGES)
def test_a_step_waits_for_nothing(project, stage, amp):
    """torch raises at whatever waits for the device. Calls 1, 2, 4, 8 of a loss look whether s is on its floor."""
    model = steps(project.twins(stage, f'train:amp={amp}', 'train:ema_decay=0.9', 'train:grad_clip=1',
                                'train:skip_nonfinite=2', 'train:channels_last=true',
                                'train:optim_g={type: Adam, lr: 0.001, fused: true}')[1], 1, 8)
    assert model.guard.late
    pinned = {key: value.pin_memory() for key, value in batch(9).items()}
    torch.cuda.set_sync_debug_mode('error')
    try:
        for number in range(9, 13):
            torch.manual_seed(number)
            model.update_learning_rate(number)
            model.feed_data(pinned)
            model.optimize_parameters(number)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert model.get_current_log()['grad_norm'] > 0
