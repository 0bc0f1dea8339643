"""Checkpoints: what is refused, with which words, and that nothing is lost or run."""
import contextlib
import importlib.util
import json
import os
import pickle
import re
import resource
import warnings

import cv2
import pytest
import safetensors.torch
import torch
from basicsr.archs import build_network
from conftest import photograph

from udl_basicsr.archs import bounded
from udl_basicsr.options import trials
from udl_basicsr.training import loop
from udl_basicsr.utils.checkpoints import EMA_FIRST, CheckpointError, load_network, read_checkpoint, save_atomic

EDSR = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'upscale': 2}


def network(**changes):
    return build_network({**EDSR, **changes})


def uncertainty(tap='upsample', **changes):
    return build_network({'type': 'UncertaintyNet', 'backbone': {**EDSR, **changes}, 'tap': tap,
                          'head': {'type': 'UDLHead', 'num_feat': changes.get('num_feat', 8)}})


@pytest.mark.parametrize(('saved', 'wanted', 'reason'), [
    (network, uncertainty, 'no uncertainty head'),
    (uncertainty, network, 'It is an UncertaintyNet'),
    (lambda: network(upscale=4), network, 'another scale'),
    (lambda: network(upscale=3), network, 'another scale'),
    (lambda: uncertainty(upscale=4), uncertainty, 'another scale'),
    (lambda: network(num_feat=16), network, r'other settings(.|\n)*conv_first.weight: \(16, 3, 3, 3\) in the file'),
    (lambda: network(num_block=2), network, r'other settings(.|\n)*unexpected: body.1'),
    (lambda: build_network({'type': 'MSRResNet', 'num_feat': 8, 'num_block': 1, 'upscale': 2}), network, 'network'),
    (lambda: uncertainty(num_feat=16), uncertainty, 'other settings'),
    (lambda: uncertainty(tap='conv_last'), lambda: build_network(
        {'type': 'UncertaintyNet', 'backbone': EDSR, 'head': {'type': 'UDLHead', 'num_feat': 4}}), 'the head does not'),
])
def test_a_checkpoint_of_something_else_is_refused_with_the_reason(tmp_path, saved, wanted, reason):
    path = tmp_path / 'net.pth'
    save_atomic({'params': saved().state_dict()}, path)
    net = wanted()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=reason) as error:
        load_network(net, path)
    assert str(path) in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_what_is_saved_is_loaded(tmp_path):
    net, other = network(), network()
    save_atomic({'params': {f'module.{k}': v for k, v in net.state_dict().items()}}, tmp_path / 'net.pth')
    load_network(other, tmp_path / 'net.pth')
    load_network(other, tmp_path / 'net.pth', EMA_FIRST)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in other.state_dict().items())
    for key in ('ema', 'params_ema'):
        with pytest.raises(CheckpointError, match=f"net.pth: has no '{key}', it has: params. Name the right one"):
            load_network(other, tmp_path / 'net.pth', key)


def test_not_strict_keeps_what_does_not_fit(tmp_path):
    save_atomic({'params': network(upscale=4).state_dict()}, tmp_path / 'net.pth')
    net = network()
    kept = net.upsample[0].weight.clone()
    load_network(net, tmp_path / 'net.pth', strict=False)
    saved = read_checkpoint(tmp_path / 'net.pth')['params']
    assert torch.equal(net.conv_first.weight, saved['conv_first.weight'])
    assert kept.shape == net.upsample[0].weight.shape


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path, )


@pytest.mark.parametrize('content', ['missing', 'empty', 'text', 'truncated', 'pickle', 'list', 'object'])
def test_broken_and_hostile_files(tmp_path, content):
    path, went_off = tmp_path / 'net.pth', tmp_path / 'went_off'
    if content == 'empty':
        path.touch()
    elif content == 'text':
        path.write_text('<!doctype html>not found')
    elif content == 'truncated':
        torch.save({'params': network().state_dict()}, path)
        path.write_bytes(path.read_bytes()[:-4000])
    elif content == 'pickle':
        path.write_bytes(pickle.dumps({'params': Bomb(went_off)}))
    elif content == 'list':
        torch.save([1, 2], path)
    elif content == 'object':
        torch.save({'params': Bomb(went_off)}, path)
    with pytest.raises(CheckpointError, match=str(path)):
        read_checkpoint(path)
    assert not went_off.exists()


@pytest.mark.parametrize('text', ['hello', 'a text', 'qqq some text', '# weights'])
def test_a_text_is_said_to_be_no_checkpoint(tmp_path, text):
    (tmp_path / 'net.pth').write_text(text)
    with pytest.raises(CheckpointError, match='it is no checkpoint of plain tensors'):
        read_checkpoint(tmp_path / 'net.pth')
    (tmp_path / 'net.pth').rename(tmp_path / 'net.onnx')
    with pytest.raises(CheckpointError, match='it is an ONNX file, which is written and never read'):
        read_checkpoint(tmp_path / 'net.onnx')


def test_a_save_that_fails_keeps_what_was_there(tmp_path):
    path = tmp_path / 'net.pth'
    save_atomic({'params': {'a': torch.ones(2)}}, path)
    with pytest.raises(TypeError):
        save_atomic({'params': {'a': (i for i in range(3))}}, path)  # a generator cannot be pickled
    assert list(tmp_path.iterdir()) == [path]
    assert torch.equal(read_checkpoint(path)['params']['a'], torch.ones(2))
    with pytest.raises(CheckpointError, match=r'cannot be saved .*kept'):
        save_atomic({'params': {}}, tmp_path / 'no such folder' / 'net.pth')


def test_processes_of_equal_number_do_not_write_into_one_another(tmp_path):
    """Containers on one disk number their processes alike; the module, loaded anew, is another one's."""
    spec = importlib.util.find_spec('udl_basicsr.utils.files')
    writers = [importlib.util.module_from_spec(spec) for _ in range(2)]
    names = [tmp_path / name for name in ('a.npy', 'b.npy')]
    with contextlib.ExitStack() as stack:
        for writer, name in zip(writers, names, strict=True):
            spec.loader.exec_module(writer)
            stack.enter_context(writer.written_aside(name)).write_text(name.stem)
    assert [name.read_text() for name in names] == ['a', 'b']


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    full = open('/dev/full', 'wb')  # noqa: SIM115 - closed by save_atomic
    monkeypatch.setattr('udl_basicsr.utils.checkpoints.open', lambda *_: full, raising=False)
    with pytest.raises(CheckpointError, match='Free some space'):
        save_atomic({'params': {'a': torch.ones(1000)}}, tmp_path / 'net.pth')


# -------------------------------------------------------------------------------- what a file may hold in their place
def sparse(weights):
    return {**weights, 'conv_first.weight': weights['conv_first.weight'].to_sparse()}


def quantised(weights):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        weight = torch.quantize_per_tensor(weights['conv_first.weight'], 0.1, 0, torch.qint8)
    return {**weights, 'conv_first.weight': weight}


def other(change):
    return lambda weights: {**weights, 'conv_first.weight': change(weights['conv_first.weight'])}


ODD = {
    'list': (lambda w: [*w.values()], '(got|of type) list'), 'number': (lambda w: 5, '(got|of type) int'),
    'nothing': (lambda w: None, '(got|of type) NoneType'), 'empty': (lambda w: {}, 'is empty'),
    'integer keys': (lambda w: {**w, 5: torch.zeros(1)}, "'5' is a name of type int"),
    'text': (other(lambda v: 'weights'), "'conv_first.weight' is of type str"),
    'nested': (other(lambda v: {'weight': v}), "'conv_first.weight' is of type dict"),
    'sparse': (sparse, "'conv_first.weight' is not dense, it is sparse_coo"),
    'quantised': (quantised, "'conv_first.weight' is quantised"),
    'meta': (other(lambda v: v.to('meta')), "'conv_first.weight' has no values"),
    'complex': (other(lambda v: v.to(torch.complex64)), "'conv_first.weight' is of type torch.complex64"),
    'repeated': (other(lambda v: torch.zeros(1).expand(10**9, 10**9)), "'conv_first.weight' says that it is"),
    'int8': (other(lambda v: v.to(torch.int8)), r'torch.int8'),
    'rank': (other(lambda v: v.flatten()), r'conv_first.weight(: \(216,\) in the file| is \(216,\); expected)'),
    'control characters': (lambda w: {**w, 'x\x1b[2J\n2026 INFO fake': torch.zeros(1)},
                           r'x\\x1b\[2J\\n2026 INFO fake'),
}


def script(name):
    return importlib.import_module(f'udl_basicsr.cli.{name}').main


class Doors:
    """Every way into the program for a file of weights; each gives the message with which it was refused."""

    def __init__(self, project, capsys):
        self.project, self.capsys = project, capsys
        self.root = project.root
        (self.root / 'opt.yml').write_text(json.dumps({'network_g': EDSR}))
        cv2.imwrite(str(self.root / 'a.png'), photograph(0, 12, 14))

    def raised(self, action):
        with pytest.raises(CheckpointError) as error:
            action()
        return str(error.value)

    def printed(self, status, main, *argv):
        assert main([str(a) for a in argv]) == status
        return self.capsys.readouterr().err

    def load(self, path):
        return self.raised(lambda: load_network(network(), path))

    def infer(self, path):
        return self.printed(2, script('infer'), self.root / 'a.png', '--out', self.root / 'out', '--weights', path,
                            '-opt', self.root / 'opt.yml', '--device', 'cpu')

    def convert(self, path):
        return self.printed(2, script('convert'), path, '--out', self.root / 'out.safetensors', '--opt',
                            self.root / 'opt.yml')

    def test(self, path):
        return self.raised(lambda: loop.test(self.project.parse('tests', f'path:pretrain_network_g={path}',
                                                                is_train=False)))

    def train(self, path):
        return self.raised(lambda: loop.train(self.project.parse('plain', f'path:pretrain_network_g={path}')))

    def resume(self, path):
        """As the network that was saved with a state."""
        run = self.root / 'experiments' / 'plain'
        for folder in ('training_states', 'models'):
            (run / folder).mkdir(parents=True, exist_ok=True)
        model = self.project.model('plain')
        model.run = {}
        model.opt['path'] = {'training_states': str(run / 'training_states')}
        model.save_training_state(0, 4)
        os.replace(path, run / 'models' / 'net_g_4.pth')
        text = self.raised(lambda: loop.train(self.project.parse('plain', auto_resume=True)))
        os.replace(run / 'models' / 'net_g_4.pth', path)
        return text.replace('net_g_4.pth', path.name)


@pytest.fixture
def doors(project, capsys):
    opt = json.loads(json.dumps(project.parse('plain').flat))
    opt['datasets'] = {'test': opt['datasets']['val']}
    opt = {k: v for k, v in opt.items() if k not in ('train', 'logger', 'network_u')}
    (project.root / 'tests.yml').write_text(json.dumps(
        {**opt, 'val': {'metrics': opt['val']['metrics']}, 'path': {'pretrain_network_g': 'none.pth'}}))
    return Doors(project, capsys)


@pytest.mark.parametrize('door', ['load', 'infer', 'convert', 'test', 'train', 'resume'])
def test_weights_that_are_none(doors, door):
    """At every door: refused by file and key, in lines that move no cursor, and nothing is made."""
    weights, path = network().state_dict(), doors.root / 'odd.pth'
    for content, reason in ODD.values():
        torch.save({'params': content(weights)}, path)
        before = {p for p in doors.root.rglob('*') if p.parent.name == doors.root.name}
        text = getattr(doors, door)(path)
        assert 'odd.pth' in text
        assert re.search(reason, text), text
        assert text.replace('\n', '').isprintable()
        assert {p for p in doors.root.rglob('*') if p.parent.name == doors.root.name} - before <= {
            doors.root / 'experiments'}


@pytest.fixture
def little_memory():
    """What asks for more than any of this needs is an error, not the death of the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize(('networks', 'reason'), [
    ('5', 'expected a block of options, got'), ('[]', 'expected a block of options, got'), ('', 'expected a block'),
    ('[' * 10**5, 'at most 65536 characters, got 100000'), ('[' * 10**4, 'more than 32 blocks within one another'),
    ('{"network_g": 5}', 'no network_g'), ('{"network_g": {"type": "x\\u001b[2J"}}', 'control character'),
    (json.dumps({'network_g': {**EDSR, 'type': 'Nothing'}}), r"network_g\.type: no network 'Nothing' is known"),
    (json.dumps({'network_g': {**EDSR, 'num_feat': 100_000}}), r'network_g: .*more than 4\.3e\+09 parameters'),
    (json.dumps({'network_g': {**EDSR, 'num_block': 10**8}}), r'network_g: .*more than 500 modules'),
    (json.dumps({'network_g': {**EDSR, 'num_feat': 4000}}), r'\(8, 3, 3, 3\) in the file, \(4000, 3, 3, 3\)'),
    (json.dumps({'network_g': {**EDSR, 'num_feat': [8]}}), r'network_g\.num_feat: EDSR expects'),
    (json.dumps({'network_g': EDSR, 'network_u': {'type': 'EDSR', 'tap': 5}}), 'network_u'),
    (json.dumps({'network_g': {**EDSR, 'num_out_ch': 580_899}, 'network_u': {'type': 'UncertaintyNet'}}),
     r'network_u: .* on an image of 16x32 pixels: it makes a tensor of 4\.43 GiB'),
    (json.dumps({'network_g': {**EDSR, 'num_feat': 5000, 'num_out_ch': 5}, 'network_u': {'type': 'UncertaintyNet'}}),
     'network_u: UncertaintyNet cannot be built: TapError: EDSR cannot be run'),
    (json.dumps({'network_g': {**EDSR, 'num_feat': 1000, 'num_out_ch': 5}, 'network_u': {'type': 'UncertaintyNet'}}),
     r'network_u: .* it takes more than 3\.4e\+10 operations'),
])
@pytest.mark.parametrize('door', ['infer', 'convert'])
def test_networks_that_a_file_asks_for(doors, little_memory, monkeypatch, door, networks, reason):
    """The limits of option files hold for metadata too; nothing is built that the weights do not fill."""
    monkeypatch.setattr(trials, 'MOST_MODULES', 500)  # which are counted sooner than as many as there may be
    monkeypatch.setattr(bounded, 'MOST_OPERATIONS', 2**35)
    path, argv = doors.root / 'odd.safetensors', ('--out', doors.root / 'out.safetensors')
    safetensors.torch.save_file(network().state_dict(), path, {'format': 'pt', 'networks': networks})
    if door == 'infer':
        argv = (doors.root / 'a.png', '--out', doors.root / 'out', '--device', 'cpu', '--weights')
    text = doors.printed(2, script('infer' if door == 'infer' else 'convert'),
                         *argv, path)
    assert 'odd.safetensors' in text
    assert re.search(reason, text), text
    assert text.replace('\n', '').isprintable()
    assert not (doors.root / 'out').exists()
    assert not (doors.root / 'out.safetensors').exists()


def edsr_pytorch():
    shapes = {'head.0': (4, 3, 3, 3), 'body.0.body.0': (4, 4, 3, 3), 'body.0.body.2': (4, 4, 3, 3),
              'body.1': (4, 4, 3, 3), 'tail.0.0': (16, 4, 3, 3), 'tail.1': (3, 4, 3, 3)}
    return {f'{name}.{part}': torch.rand(shape if part == 'weight' else shape[:1]) for name, shape in shapes.items()
            for part in ('weight', 'bias')}


@pytest.mark.parametrize(('key', 'change', 'reason'), [
    ('head.0.weight', torch.flatten, r'\(108,\); expected \(out, in, k, k\)'),
    ('head.0.weight', lambda w: w[:0], r'expected \(out, in, k, k\)'),
    ('head.0.weight', lambda w: w.to(torch.int8), 'int8; expected floats'),
    ('body.1.weight', lambda w: w[:, :, :2, :2], 'k odd'),
    ('body.1.bias', lambda w: w[:2], 'one value for each channel'),
    ('body.0.body.2.weight', lambda w: torch.cat([w, w], 1), 'do not fit one another'),
    ('tail.0.0.bias', None, 'tail.0.0.weight does not belong'), ('body.1.', None, 'lacks body.1.weight'),
    ('tail.0.', None, 'has 0 upsamplers'),
])
def test_weights_of_other_programs_whose_layers_are_wrong(doors, key, change, reason):
    weights = edsr_pytorch()
    if change:
        weights[key] = change(weights[key])
    else:
        weights = {k: v for k, v in weights.items() if not k.startswith(key)}
    torch.save(weights, doors.root / 'odd.pth')
    text = doors.printed(2, script('convert'), doors.root / 'odd.pth', '--out', doors.root / 'out.pth')
    assert 'odd.pth: ' in text
    assert re.search(reason, text), text
    assert not (doors.root / 'out.pth').exists()


def test_damaged_bytes_of_the_old_format(tmp_path):
    """torch's old reader raises AttributeError, TypeError, struct.error, ... of what it stumbles over."""
    path = tmp_path / 'net.pth'
    torch.save({'params': network().state_dict()}, path, _use_new_zipfile_serialization=False)
    whole, refused = path.read_bytes(), 0
    for position in range(0, 1200, 3):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1:])
        with contextlib.suppress(CheckpointError):
            load_network(network(), path)
            continue
        refused += 1
    assert refused > 200


def test_the_same_weight_twice(tmp_path):
    weights = network().state_dict()
    save_atomic({'params': {**weights, 'module.conv_last.bias': torch.ones(3)}}, tmp_path / 'net.pth')
    with pytest.raises(CheckpointError, match=r"twice, with and without 'module\.': conv_last\.bias"):
        load_network(network(), tmp_path / 'net.pth')
