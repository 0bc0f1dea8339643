"""What would go wrong on GPUs alone, seen without one: devices that are said to be there, threads, and counting."""
import contextlib
import copy
import datetime
import json
import sys
import threading

import numpy as np
import pytest
import torch
import torch.distributed as dist
from basicsr.archs import build_network
from basicsr.data.prefetch_dataloader import CUDAPrefetcher
from basicsr.utils import get_root_logger
from conftest import assert_same_weights, batch
from test_step import nan_batch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from udl_basicsr.archs import UncertaintyNet
from udl_basicsr.data import loader, uncertainty_cache
from udl_basicsr.data.loader import build_dataset
from udl_basicsr.functional.tlw import relaxed_bernoulli
from udl_basicsr.options.parse import OptionError
from udl_basicsr.training import launch, loop
from udl_basicsr.training.log import RunLog
from udl_basicsr.utils import distributed
from udl_basicsr.utils.gpus import gpu_count, gpu_names
from udl_basicsr.utils.kernels import exact_kernels

EDSR = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'upscale': 2}
FUSED = 'train:optim_g={type: Adam, lr: 1e-3, fused: true}'


@pytest.fixture
def four_gpus(monkeypatch):
    """What torch says on a machine with four GPUs, of which none is touched."""
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)


# ----------------------------------------------------------------------------------------------------- which GPUs, how


def test_auto_is_one_gpu_and_says_so(project):
    project.gpus = 4
    parsed = project.parse('plain')
    assert parsed.opt['num_gpu'] == 1
    assert any('one of the 4 GPUs' in w and 'torchrun --nproc_per_node=4' in w for w in parsed.warnings)
    shared = project.parse('plain', 'datasets:train:batch_size_per_gpu=1', dist=True, world_size=4)
    assert shared.warnings == ()
    project.gpus = 1
    assert project.parse('plain').warnings == ()


@pytest.mark.parametrize('lever', ['amp=bf16', 'compile=true'])
def test_gpus_of_one_process_are_refused_where_they_would_compute_something_else(project, lever):
    """The threads of DataParallel do not know the type of the autocast, and a compiled network not its replicas."""
    project.gpus = 4
    assert project.parse('plain', 'num_gpu=2').opt['num_gpu'] == 2
    with pytest.raises(OptionError, match=rf'num_gpu: 2 GPUs of one process.*train\.{lever.split("=")[0]}; .*torchrun'):
        project.parse('plain', 'num_gpu=2', f'train:{lever}')


def test_as_many_gpus_as_asked_for(project, monkeypatch):
    made = []
    monkeypatch.setattr('udl_basicsr.models.step.DataParallel', lambda net, ids: made.append(list(ids)) or net)
    model = project.model('plain')
    model.opt['num_gpu'] = 2
    model.model_to_device(model.net_g)
    assert made == [[0, 1]]


def replica(module: nn.Module) -> nn.Module:
    """As torch.nn.parallel.replicate makes it: a module of its own, whose dictionaries of hooks are the original's."""
    copied = module._replicate_for_data_parallel()
    for name, child in module.named_children():
        copied._modules[name] = replica(child)
    copied._former_parameters = {}
    for name, parameter in module._parameters.items():
        setattr(copied, name, parameter)
    return copied


def test_replicas_do_not_see_one_anothers_hooks():
    net = UncertaintyNet(EDSR).eval()
    images = [torch.rand(1, 3, 8, 8) for _ in range(4)]
    with torch.no_grad():
        expected = [net(image)[1] for image in images]
    problems, interval = [], sys.getswitchinterval()

    def run(image, wanted):
        try:
            other = replica(net)
            with torch.no_grad():
                for _ in range(25):
                    torch.testing.assert_close(other(image)[1], wanted)
        except BaseException as error:
            problems.append(error)

    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=run, args=pair) for pair in zip(images, expected, strict=True)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    finally:
        sys.setswitchinterval(interval)
    assert not problems


def test_a_hook_that_stays_keeps_nothing_outside_of_training():
    net = UncertaintyNet(EDSR)
    lq = torch.rand(2, 3, 8, 8)
    expected = net(lq)
    net.keep_hook()
    for ours, theirs in zip(net(lq), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert net._kept == []
    net.mean_network.eval()
    for _ in range(3):  # a validation
        net.mean_network(lq)
    assert net._kept == []
    torch.testing.assert_close(net.eval()(lq)[1], expected[1])


@pytest.mark.parametrize(('given', 'names'), [
    (None, ['0', '1', '2', '3']), ('2,5,6,7', ['2', '5', '6', '7']),
    ('GPU-8f2a, MIG-1c,3,0', ['GPU-8f2a', 'MIG-1c', '3', '0'])])
def test_a_comparison_takes_the_gpus_that_it_was_given(four_gpus, monkeypatch, given, names):
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if given is not None:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', given)
    assert gpu_names() == names


def test_a_driver_that_is_too_old_has_no_gpus(four_gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)  # torch still counts four
    assert gpu_count() == 0
    assert gpu_names() == []


@pytest.mark.parametrize(('options', 'backend', 'minutes'), [
    ('', 'cpu:gloo,cuda:nccl', 30), ('num_gpu: 0', 'gloo', 30),
    ('dist_params: {backend: nccl, timeout: 90}', 'nccl', 90),
    ('dist_params: {timeout: soon}', 'cpu:gloo,cuda:nccl', 30)])
def test_backend_and_patience(four_gpus, monkeypatch, tmp_path, options, backend, minutes):
    (tmp_path / 'x.yml').write_text(f'name: x\n{options}\n')
    started = {}
    monkeypatch.setattr(torch.cuda, 'set_device', lambda n: None)
    monkeypatch.setattr(dist, 'init_process_group', lambda **kwargs: started.update(kwargs))
    monkeypatch.setattr(torch.multiprocessing, 'set_start_method', lambda method: None)
    for name, value in {'RANK': 0, 'WORLD_SIZE': 1, 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': 29400}.items():
        monkeypatch.setenv(name, str(value))
    distributed.init_dist('pytorch', **launch._dist_params(str(tmp_path / 'x.yml'), ['train:total_iter=1']))
    assert (started['backend'], started['timeout']) == (backend, datetime.timedelta(minutes=minutes))
    assert launch._dist_params(str(tmp_path / 'x.yml'), ['num_gpu=0'])['on_gpu'] is False


@pytest.mark.parametrize('fails', [True, False])
def test_who_fails_alone_leaves_the_group_as_it_is(project, monkeypatch, fails):
    """Its end waits for the others, and they for it."""
    ended = []
    monkeypatch.setattr(dist, 'is_initialized', lambda: True)
    monkeypatch.setattr(dist, 'destroy_process_group', lambda: ended.append(True))
    monkeypatch.setattr(launch, '_act', lambda *args: 1 / 0 if fails == 2 else (_ for _ in ()).throw(
        FloatingPointError('nan')) if fails else None)
    assert launch.run(lambda *_: None, is_train=True, argv=['-opt', str(project.root / 'plain.yml')]) == int(fails)
    assert ended == [True] * (not fails)


def test_deterministic_kernels_have_their_workspace_before_a_gpu_is_asked(project, monkeypatch):
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG', raising=False)
    seen = []
    monkeypatch.setattr(torch, 'use_deterministic_algorithms', lambda on: seen.append(
        (on, loop.os.environ.get('CUBLAS_WORKSPACE_CONFIG'))))
    for force in ((), ('deterministic=true', )):
        loop._begin(project.parse('plain', *force), RunLog(get_root_logger()))
    assert seen == [(False, None), (True, ':4096:8')]
    loop.os.environ.pop('CUBLAS_WORKSPACE_CONFIG')


# ------------------------------------------------------------------------------------------------ float32, caches, data


def test_what_is_measured_is_float32_proper(project):
    """TF32 and tuning are for training: the flags that a GPU would obey, as the networks find them."""
    model = project.model('esu')
    seen = []
    model.net_g.register_forward_pre_hook(
        lambda *_: seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark)))
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    try:
        model.feed_data(batch())
        model.optimize_parameters(1)
        model.test()
        model.log_scale(model.lq)
        with exact_kernels():
            model.test()  # within one another, as from several threads
            model.net_g(model.lq)
        model.net_g(model.lq)
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = True, False
    assert seen == [(True, True), *[(False, False)] * 4, (True, True)]


@pytest.fixture
def stage1(project):
    options = project.parse('esu').flat
    torch.manual_seed(7)
    network = build_network({'backbone': options['network_g'], **options['network_u']}).eval()
    models = project.root / 'experiments/esu/models'
    models.mkdir(parents=True)
    torch.save({'params': network.state_dict()}, models / 'net_u_latest.pth')
    torch.save({'params': network.mean_network.state_dict()}, models / 'net_g_latest.pth')
    return network


def test_a_cache_in_tiles_says_where_it_was_computed(project, stage1, monkeypatch):
    opts = {name: project.parse('udl', f'datasets:train:uncertainty_cache={project.root}/{name}', *force).opt
            for name, force in (('whole', ()), ('tiles', ('val:tile={size: 10, overlap: 8}', )))}
    maps, widths = {}, []
    stage1_log_scale = UncertaintyNet.log_scale
    monkeypatch.setattr(UncertaintyNet, 'log_scale', lambda self, lq: widths.append(lq.shape[-1]) or stage1_log_scale(
        self, lq))
    for name, opt in opts.items():
        cache = uncertainty_cache.prepare(build_dataset(opt['datasets']['train']), opt, torch.device('cpu')).cache
        maps[name] = {key: uncertainty_cache.dequantise(cache.levels(key), entry['low'], entry['high'])
                      for key, entry in cache.maps.items()}
        written = json.loads((project.root / name / 'manifest.json').read_text())
        assert written['computed'] == {'device': 'cpu', 'precision': 'float32', 'tile': opt['val'].get('tile')}
    assert max(widths[:6]) == 28
    assert max(widths[6:]) <= 26
    for key, whole in maps['whole'].items():  # the overlap covers the receptive field
        level = (whole.max() - whole.min()) / 65535
        assert np.abs(maps['tiles'][key] - whole).max() < 1e-5 + 1.5 * level


def test_a_cache_that_does_not_fit_names_the_remedy(project, stage1, monkeypatch):
    def too_much(self, lq):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB.')

    monkeypatch.setattr(UncertaintyNet, 'log_scale', too_much)
    opt = project.parse('udl', f'datasets:train:uncertainty_cache={project.root}/s').opt
    remedy = r'0\.png: its pixels do not fit into the memory of cpu: give val\.tile: \{size: 128, overlap: 32\}'
    with pytest.raises(uncertainty_cache.CacheError, match=remedy):
        uncertainty_cache.prepare(build_dataset(opt['datasets']['train']), opt, torch.device('cpu'))


def test_batches_are_pinned_on_a_gpu_and_only_there(project, monkeypatch):
    given = []

    class Loader:
        def __init__(self, **kwargs):
            given.append(kwargs['pin_memory'])

        def __iter__(self):
            return iter(())

    monkeypatch.setattr(loader, 'DataLoader', Loader)
    for gpus, force in ((0, ()), (1, ()), (1, ('datasets:train:pin_memory=false', ))):
        project.gpus = gpus
        opt = project.parse('plain', *force).opt
        loader.train_batches(build_dataset(opt['datasets']['train']), opt)
    assert given == [False, True, False]


def test_a_prefetched_batch_belongs_to_the_stream_that_uses_it(monkeypatch):
    class OnDevice(torch.Tensor):
        is_cuda = True

        def record_stream(self, stream):
            recorded.append(stream)

    recorded, lq = [], torch.rand(2).as_subclass(OnDevice)
    prefetcher = loader._DevicePrefetcher.__new__(loader._DevicePrefetcher)
    monkeypatch.setattr(CUDAPrefetcher, 'next', lambda self: {'lq': lq, 'lq_path': ['a']})
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda: 'mine')
    assert prefetcher.next()['lq'] is lq
    assert recorded == ['mine']


def test_the_seed_of_a_sample_stays_on_the_cpu(monkeypatch):
    loader.seed_all(3, 1, 4)
    expected = torch.rand(3)
    monkeypatch.setattr(torch, 'manual_seed', lambda seed: pytest.fail('asks CUDA too'))
    loader.seed_all(3, 1, 4, devices=False)
    assert torch.equal(torch.rand(3), expected)


# --------------------------------------------------------------------------------------------------- a step, read late


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


@pytest.mark.parametrize('stage', ['plain', 'esu'])
def test_steps_left_out_on_the_device_are_those_left_out_by_the_host(project, stage, caplog):
    force = ('train:skip_nonfinite=2', 'train:ema_decay=0.9', 'train:grad_clip=1')
    models = late_twin(project, stage, *force)
    data = [batch(1), nan_batch(), nan_batch(), batch(2), nan_batch(), batch(3)]
    for model in models:
        with seeing(model):
            for number, each in enumerate(data, 1):
                model.update_learning_rate(number)
                model.feed_data(each)
                model.optimize_parameters(number)
    at_once, late = models
    assert late.get_current_log() == pytest.approx(at_once.get_current_log())
    assert (late.skipped, late.skipped_in_a_row) == (3, 0)
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


# What a step may wait for, by stage: nothing. The log waits when it is written, every print_freq iterations.
_ALLOWED: dict[str, set] = {}


@pytest.mark.parametrize('stage', ['plain', 'esu', 'udl', 'sigma', 'tlw'])
def test_a_step_waits_for_nothing(project, stage1, stage):
    more = {
        'sigma': {'stage': 'sigma', 'network_u': {'head': {'type': 'SigmaHead', 'num_feat': 8}},
                  'train': {'pixel_opt': {'type': 'ExpectedL1Loss'}, 'sigma_opt': {'type': 'SigmaLoss'}}},
        'tlw': {'model_type': 'TLWModel', 'network_u': None, 'network_w': {'type': 'TLWNet', 'num_feat': 8},
                'train': {'tlw_opt': {'type': 'TLWLoss', 'judge': 'squeeze', 'judge_random': True},
                          'optim_w': {'type': 'Adam', 'lr': 1e-4, 'fused': True}}},
    }
    if stage in more:
        (project.root / f'{stage}.yml').write_text(json.dumps({'_base_': '_base_.yml', 'name': stage, **more[stage]}))
    model = project.model(stage, FUSED, 'train:ema_decay=0.9', 'train:grad_clip=1', 'train:skip_nonfinite=2')
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
