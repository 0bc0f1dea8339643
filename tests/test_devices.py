"""What would go wrong on GPUs alone, seen without one: which are used, and how."""
import dataclasses
import datetime
import json
import os
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from basicsr.data.prefetch_dataloader import CUDAPrefetcher
from basicsr.utils import get_root_logger
from conftest import batch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from udl_basicsr.archs import UncertaintyNet
from udl_basicsr.data import loader, uncertainty_cache
from udl_basicsr.data.loader import build_dataset
from udl_basicsr.models import validation
from udl_basicsr.options.parse import OptionError
from udl_basicsr.training import launch, loop
from udl_basicsr.training.log import RunLog
from udl_basicsr.utils import distributed
from udl_basicsr.utils.gpus import gpu_count, gpu_names
from udl_basicsr.utils.kernels import exact_kernels, training_kernels

EDSR = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'upscale': 2}


@pytest.fixture
def four_gpus(monkeypatch):
    """What torch says on a machine with four GPUs, of which none is touched."""
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)


# ------------------------------------------------------------------------------------------------------ which GPUs, how

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


def test_hooks_of_others_on_the_tap_can_be_removed():
    """A handle finds its hook in the dictionary that it was put into."""
    net, calls = UncertaintyNet(EDSR).eval(), []
    handle = net.mean_network.get_submodule(net.tap).register_forward_pre_hook(lambda *_: calls.append(1))
    lq = torch.rand(1, 3, 8, 8)
    net(lq)
    net.log_scale(lq)
    assert len(calls) == 2
    handle.remove()
    net(lq)
    assert len(calls) == 2


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


@pytest.mark.parametrize(('backend', 'gpus', 'processes', 'bound', 'refused'), [
    (None, 4, 5, False, True), ('nccl', 4, 8, True, True), ('gloo', 4, 5, False, False), (None, 4, 4, False, False),
    (None, 1, 4, False, True), (None, 1, 4, True, False)])  # the last: each process may see one of its own
def test_more_processes_than_gpus_are_refused_before_they_meet(four_gpus, monkeypatch, backend, gpus, processes, bound,
                                                               refused):
    met = []
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if bound:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '1')
    monkeypatch.setattr(torch.cuda, 'set_device', lambda n: None)
    monkeypatch.setattr(dist, 'init_process_group', lambda **kwargs: met.append(kwargs))
    for name, value in {'RANK': 1, 'LOCAL_RANK': 1, 'WORLD_SIZE': processes, 'LOCAL_WORLD_SIZE': processes,
                        'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': 29400}.items():
        monkeypatch.setenv(name, str(value))
    if refused:
        with pytest.raises(distributed.LaunchError, match=rf'{processes} pro.*{gpus} GPU.*--nproc_per_node={gpus}'):
            distributed.init_dist('pytorch', backend)
    else:
        distributed.init_dist('pytorch', backend)
    assert len(met) == (not refused)


def test_ddp_wraps_the_compiled_network(project, monkeypatch):
    """The other way round dynamo would compile what DDP does to gradients."""
    model = project.model('esu')
    model.settings = dataclasses.replace(model.settings, compile=True)
    monkeypatch.setattr('udl_basicsr.models.step.DistributedDataParallel', lambda net, **_: ('ddp', net))
    monkeypatch.setattr(torch, 'compile', lambda net: ('compiled', net))
    model.opt['dist'] = True
    assert model.model_to_device(model.net_u) == ('ddp', ('compiled', model.net_u))


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
        (on, os.environ.get('CUBLAS_WORKSPACE_CONFIG'))))
    for force in ((), ('deterministic=true', )):
        loop._begin(project.parse('plain', *force), RunLog(get_root_logger()))
    assert seen == [(False, None), (True, ':4096:8')]
    os.environ.pop('CUBLAS_WORKSPACE_CONFIG')


def test_deterministic_kernels_fill_no_memory():
    with training_kernels(True), profile(activities=[ProfilerActivity.CPU]) as seen:
        torch.empty(8)
    assert {event.name for event in seen.events()} >= {'aten::empty'}
    assert 'aten::fill_' not in {event.name for event in seen.events()}


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


def test_a_metric_is_told_which_gpu_has_the_network(project, monkeypatch):
    """By number: the threads that measure are on the first one, whatever that of the process is."""
    model = project.model('plain', 'val:metrics={lpips: {type: calculate_lpips, random_weights: true}}')
    told = []
    monkeypatch.setattr(validation, 'calculate_metric', lambda data, _: told.append(data['device']) or 0)
    image = np.zeros((48, 56, 3), np.uint8)
    model._measure(image, image, None)
    model.net_g.parameters = lambda: iter([SimpleNamespace(device=torch.device('cuda', 1))])
    model._measure(image, image, None)
    assert told == ['cpu', 'cuda:1']


def test_what_is_measured_on_the_cpu_is_not_uploaded(project, monkeypatch):
    model = project.model('plain')
    model.scores, given, test = {}, [], type(model).test
    monkeypatch.setattr(type(model), 'test', lambda self: (given.append(self.gt), test(self)))
    assert model.validation(loop._loaders(project.parse('plain').opt, 'val')[0], 1, None)['psnr'] > 0
    assert given == [None] * 3


@pytest.mark.parametrize('late', [False, True])
def test_the_average_takes_as_many_launches_for_a_network_of_any_size(project, late):
    """And its weights lie in memory as those of the network do, so that none of them is copied into another order."""
    launches = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            launches[-1] += 1
            return function(*args, **(kwargs or {}))

    for blocks in (1, 4):
        model = project.model('plain', 'train:ema_decay=0.9', 'train:channels_last=true',
                              f'network_g:num_block={blocks}')
        model.guard.late = late
        launches.append(0)
        with Count():
            model.model_ema(0.9)
        for own, average in zip(model.net_g.parameters(), model.net_g_ema.parameters(), strict=True):
            assert own.stride() == average.stride()
    assert model.net_g_ema.conv_first.weight.is_contiguous(memory_format=torch.channels_last)
    assert launches[0] == launches[1] < 8


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
