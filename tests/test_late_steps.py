"""Steps that are read late and wait for nothing, as on a GPU."""
import contextlib
import copy
import json
from pathlib import Path

import pytest
import torch
from basicsr.models.base_model import BaseModel
from conftest import assert_same_weights, batch
from test_step import nan_batch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from udl_basicsr.functional.tlw import relaxed_bernoulli
from udl_basicsr.losses.uncertainty_loss import _FloorWatch
from udl_basicsr.models.guard import StepGuard, leaves_out_by_itself
from udl_basicsr.utils.checkpoints import read_checkpoint

FUSED = 'train:optim_g={type: Adam, lr: 1e-3, fused: true}'


# ---------------------------------------------------------------------------------------------------- a step, read late

def late_twin(project, stage, *force):
    """Two models of the same weights: one that is read at once, and one that is read late, as on a GPU."""
    at_once, late = (project.model(stage, FUSED, *force) for _ in range(2))
    for label in ('net_g', 'net_u', 'net_g_ema'):
        if getattr(at_once, label, None) is not None:
            getattr(late, label).load_state_dict(getattr(at_once, label).state_dict())
    late.guard.late = True
    return at_once, late


@contextlib.contextmanager
def seeing(model):
    """A network that notes what it sees in a buffer, as batch norm does."""
    for network in (model.net_g, getattr(model, 'net_g_ema', None)):
        if network is not None:
            network.register_buffer('seen', torch.zeros(()))

    def note(network, args, out):
        network.seen += out.detach().float().mean()

    handle = model.net_g.register_forward_hook(note)
    yield
    handle.remove()


@pytest.mark.parametrize(('stage', 'amp'), [('plain', '~'), ('esu', '~'), ('esu', 'fp16')])
def test_steps_left_out_on_the_device_are_those_left_out_by_the_host(project, stage, amp, caplog):
    """With fp16 also those that the scaler leaves out in search of its scale, which NaN does not change."""
    force = ('train:skip_nonfinite=2', 'train:ema_decay=0.9', 'train:grad_clip=1', f'train:amp={amp}')
    models = late_twin(project, stage, *force)
    data = [batch(1), nan_batch(), nan_batch(), batch(2), nan_batch(), batch(3), nan_batch()]
    for model in models:
        with seeing(model):
            for number, each in enumerate(data, 1):
                model.update_learning_rate(number)
                model.feed_data(each)
                model.optimize_parameters(number)
    at_once, late = models
    if amp == 'fp16':
        assert 1 < late.scaler.get_scale() == at_once.scaler.get_scale() < 2**16
    assert late.get_current_log() == pytest.approx(at_once.get_current_log(), nan_ok=True)
    assert (late.skipped, late.skipped_in_a_row) == (4, 1)
    assert_same_weights(late.trained.state_dict(), at_once.trained.state_dict())
    assert_same_weights(late.net_g_ema.state_dict(), at_once.net_g_ema.state_dict(), rtol=1e-6, atol=1e-7)
    assert caplog.text.count('iteration 3: a loss or gradient is not finite') == 2
    assert caplog.text.count('Step left out (2 of 2 in a row)') == 2


@pytest.mark.parametrize('allowed', [0, 1])
def test_a_run_that_must_end_ends_with_the_weights_from_before(project, allowed):
    _, model = late_twin(project, 'plain', f'train:skip_nonfinite={allowed}', 'train:ema_decay=0.9')
    model.feed_data(batch(1))
    model.optimize_parameters(1)
    before = copy.deepcopy((model.net_g.state_dict(), model.net_g_ema.state_dict()))
    for number in range(2, 3 + allowed):
        model.feed_data(nan_batch())
        model.optimize_parameters(number)
    model.feed_data({**batch(2), 'lq_path': ['a/good.png']})
    with pytest.raises(FloatingPointError, match=rf'iteration {2 + allowed}: .*images a/bad\.png'):
        model.optimize_parameters(3 + allowed)
    assert_same_weights(model.net_g.state_dict(), before[0])
    assert_same_weights(model.net_g_ema.state_dict(), before[1])


@pytest.mark.parametrize('is_late', [False, True])
def test_steps_left_out_in_a_row_are_counted_across_a_resume(project, is_late):
    """Three may be: the fourth ends the run, also where a state was saved after the second."""
    models = late_twin(project, 'plain', 'train:skip_nonfinite=3')
    first, second = models[is_late], project.model('plain', FUSED, 'train:skip_nonfinite=3')
    second.guard.late = is_late

    def step(model, number, data):
        model.feed_data(data)
        model.optimize_parameters(number)

    for number, data in enumerate([batch(1), nan_batch(), nan_batch()], 1):
        step(first, number, data)
    for folder in ('models', 'training_states'):
        Path(first.opt['path'][folder]).mkdir(parents=True, exist_ok=True)
    first.save(0, 3)
    second.resume_training(read_checkpoint(Path(first.opt['path']['training_states']) / '3.state'))
    second.net_g.load_state_dict(first.net_g.state_dict())
    step(second, 4, nan_batch())
    assert second.get_current_log()['skipped'] == 3
    if is_late:  # the step after it tells
        step(second, 5, nan_batch())
    with pytest.raises(FloatingPointError, match=r'iteration 5: .* Stopped, 4 times in a row'):
        step(second, 5 + is_late, batch(2) if is_late else nan_batch())
    assert_same_weights(second.net_g.state_dict(), first.net_g.state_dict())


@pytest.mark.parametrize('amp', ['~', 'fp16'])
@pytest.mark.parametrize('options', ['{type: SGD, lr: 0.01, momentum: 0.9, fused: true}',
                                     '{type: SGD, lr: 0.01, fused: true}'])
def test_an_optimiser_that_begins_with_a_step_left_out_begins_where_it_should(project, amp, options):
    """torch's fused SGD leaves its momentum as uninitialised memory then."""
    plain, fused = (project.model('plain', f'train:amp={amp}', 'train:skip_nonfinite=1', f'train:optim_g={each}')
                    for each in (options.replace('fused: true', 'fused: false'), options))
    fused.net_g.load_state_dict(plain.net_g.state_dict())
    fused.guard.late = leaves_out_by_itself(fused.optimizer_g)
    assert fused.guard.late == ('momentum' not in options)
    garbage = [torch.full_like(p, 1e6) for p in fused.net_g.parameters()]
    del garbage  # the allocator hands it out again
    for model in (plain, fused):
        for number, data in enumerate([nan_batch(), batch(1), batch(2)], 1):
            model.feed_data(data)
            model.optimize_parameters(number)
    assert_same_weights(fused.net_g.state_dict(), plain.net_g.state_dict(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('ask', ['get_current_log', 'save'])
def test_nothing_is_logged_or_saved_before_it_is_known(project, ask):
    _, model = late_twin(project, 'plain')
    model.feed_data(nan_batch())
    model.optimize_parameters(1)
    with pytest.raises(FloatingPointError, match='iteration 1'):
        model.get_current_log() if ask == 'get_current_log' else model.save(0, 1)


@pytest.mark.parametrize('amp', ['~', 'fp16'])
def test_fused_that_is_new_on_resume_is_fused(project, amp):
    """The flags of the state, which say how another machine computed, must not undo those of the options."""
    plain = project.model('plain', f'train:amp={amp}')
    for number in range(1, 4):
        plain.feed_data(batch(number))
        plain.optimize_parameters(number)
    state = {'epoch': 0, 'iter': 3, 'optimizers': [copy.deepcopy(o.state_dict()) for o in plain.optimizers],
             'schedulers': [s.state_dict() for s in plain.schedulers], 'scaler': plain.scaler.state_dict()}
    fused = project.model('plain', f'train:amp={amp}', FUSED)
    fused.net_g.load_state_dict(plain.net_g.state_dict())
    fused.resume_training(state)
    assert fused.optimizer_g.param_groups[0]['fused'] is True
    for model in (plain, fused):
        model.feed_data(batch(4))
        model.optimize_parameters(4)
    assert_same_weights(fused.net_g.state_dict(), plain.net_g.state_dict(), rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------------------ what a step waits for

class Waits(TorchDispatchMode):
    """Counts what would make the host wait for a GPU, or the GPU for the host.

    Numbers and decisions that are read back, and tensors that are made where torch makes them when it is told nothing:
    on the meta device here, on the CPU beside a GPU.
    """
    READS = ('_local_scalar_dense', 'nonzero', 'masked_select', 'equal', 'is_nonzero', 'unique')

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split('::')[-1].split('.')[0]
        out = function(*args, **(kwargs or {}))
        chosen = args[1] if name == 'index' else ()
        if name in self.READS or any(index is not None and index.dtype == torch.bool for index in chosen):
            self.found.append(f'read back: {name}')
        if isinstance(out, torch.Tensor) and out.device.type == 'meta':
            self.found.append(f'made on the CPU: {name}')
        return out


def test_waits_are_seen():
    with torch.device('meta'), Waits() as waits:
        cpu = torch.ones(3, device='cpu')
        bool(cpu.isfinite().all()), cpu[cpu > 0], torch.zeros(2), cpu.new_zeros(2), cpu[[0, 2]]
    assert waits.found == ['read back: _local_scalar_dense', 'read back: index', 'made on the CPU: zeros']


def option_file(project, stage):
    """Of the stages that the project has none of."""
    more = {
        'sigma': {'stage': 'sigma', 'network_u': {'head': {'type': 'SigmaHead', 'num_feat': 8}},
                  'train': {'pixel_opt': {'type': 'ExpectedL1Loss'}, 'sigma_opt': {'type': 'SigmaLoss'}}},
        'tlw': {'model_type': 'TLWModel', 'network_u': None, 'network_w': {'type': 'TLWNet', 'num_feat': 8},
                'train': {'tlw_opt': {'type': 'TLWLoss', 'judge': 'squeeze', 'judge_random': True}}},
    }
    if stage in more:
        (project.root / f'{stage}.yml').write_text(json.dumps({'_base_': '_base_.yml', 'name': stage, **more[stage]}))


# What a step may wait for, by stage: nothing. The log waits when it is written, every print_freq iterations.
_ALLOWED: dict[str, set] = {}


@pytest.mark.parametrize(('stage', 'amp'), [
    ('plain', '~'), ('esu', '~'), ('udl', '~'), ('sigma', '~'), ('tlw', '~'), ('esu', 'fp16')])
def test_a_step_waits_for_nothing(project, stage1, stage, amp):
    option_file(project, stage)
    model = project.model(stage, FUSED, 'train:ema_decay=0.9', 'train:grad_clip=1', 'train:skip_nonfinite=2',
                          f'train:amp={amp}')
    assert all(map(leaves_out_by_itself, model.optimizers))
    model.iters_per_epoch, model.guard.late = 1, True
    for number in (1, 2, 3, 4, 5):  # a loss looks at the floor of s in calls 1, 2, 4, 8, ...
        model.update_learning_rate(number)
        model.feed_data(batch(number, size=2))
        if number < 5:
            model.optimize_parameters(number)
            continue
        with torch.device('meta'), Waits() as waits:
            model.optimize_parameters(number)
    assert {*waits.found} <= _ALLOWED.get(stage, set()), waits.found
    assert model.get_current_log()['grad_norm'] > 0


def test_the_temperature_is_filled_in_where_the_weights_are():
    with torch.device('meta'), Waits() as waits:
        out = relaxed_bernoulli(torch.full((2, 3), 0.3, device='cpu'), 0.1, 4)
    assert out.shape == (4, 2, 3)
    assert not waits.found


# ------------------------------------------------------------------------------------------------ what stays on the CPU

class OneDevice(TorchDispatchMode):
    """Refuses what a GPU refuses: tensors of two devices in one operation. A single number may come from the CPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf) and leaf.dim()}
        assert len(devices) < 2 or 'copy' in function.name(), f'{function.name()} of tensors on {devices}'
        return function(*args, **(kwargs or {}))


def test_two_devices_are_refused():
    with OneDevice(), pytest.raises(AssertionError, match='aten::mul'):
        torch.ones(3) * torch.ones(3, device='meta')


@pytest.mark.filterwarnings('ignore:.*copying from a non-meta parameter')
@pytest.mark.parametrize(('stage', 'force'), [
    ('plain', ('pixel_opt={type: ExpectedL1Loss, noise: laplace}', 'gv_opt={type: GradientVarianceLoss}',
               'ssim_opt={type: SSIMLoss}', 'map_opt={type: WeightMapLoss, weight_map: lr_gradient}')),
    ('esu', ('likelihood_opt={type: UEOLoss, judge: squeeze, judge_random: true}', )),
    ('esu', ('likelihood_opt={type: GeneralisedGaussianLoss}',
             'network_u:head={type: UDLHead, distribution: generalised_gaussian}')),
    ('udl', ('udl_opt={type: UDLLoss, scaling: log}', 'accumulate=2')),
    ('sigma', ()), ('tlw', ())])
def test_nothing_that_a_step_needs_stays_on_the_cpu(project, stage1, monkeypatch, stage, force):
    """The meta device in the place of a GPU: what was made with a model, and what its first step has kept."""
    option_file(project, stage)
    begin = BaseModel.__init__

    def on_meta(self, opt):
        begin(self, opt)
        self.device = torch.device('meta')

    monkeypatch.setattr(BaseModel, '__init__', on_meta)
    monkeypatch.setattr(torch, 'autocast', lambda *_, **__: contextlib.nullcontext())  # which knows no meta device
    monkeypatch.setattr(_FloorWatch, '__call__', lambda *_: None)  # it reads a value, as the host's guard does
    monkeypatch.setattr(StepGuard, 'refuses', lambda self, finite, asked: False)
    model = project.model(stage, 'train:ema_decay=0.9', 'train:grad_clip=1', 'train:skip_nonfinite=2',
                          *(each if each.startswith('network') else f'train:{each}' for each in force))
    model.iters_per_epoch = 1
    for number in (1, 2):
        model.update_learning_rate(number)
        model.feed_data(batch(number, size=2))
        with OneDevice():
            model.optimize_parameters(number)
    assert {value.device.type for value in model.trained.parameters()} == {'meta'}
