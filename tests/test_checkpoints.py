"""Checkpoints: what is refused, with which words, and that nothing is lost or run."""
import os
import pickle

import pytest
import torch
from basicsr.archs import build_network

from udl_basicsr.models.checkpoints import CheckpointError, load_network, read_checkpoint, save_atomic

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
    load_network(other, tmp_path / 'net.pth', 'params_ema')  # falls back to params, as BasicSR does
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in other.state_dict().items())
    with pytest.raises(CheckpointError, match="has no 'ema', it has: params"):
        load_network(other, tmp_path / 'net.pth', 'ema')


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


def test_a_save_that_fails_keeps_what_was_there(tmp_path):
    path = tmp_path / 'net.pth'
    save_atomic({'params': {'a': torch.ones(2)}}, path)
    with pytest.raises(TypeError):
        save_atomic({'params': {'a': (i for i in range(3))}}, path)  # a generator cannot be pickled
    assert list(tmp_path.iterdir()) == [path]
    assert torch.equal(read_checkpoint(path)['params']['a'], torch.ones(2))
    with pytest.raises(CheckpointError, match=r'cannot be saved .*kept'):
        save_atomic({'params': {}}, tmp_path / 'no such folder' / 'net.pth')


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    full = open('/dev/full', 'wb')  # noqa: SIM115 - closed by save_atomic
    monkeypatch.setattr('udl_basicsr.models.checkpoints.open', lambda *_: full, raising=False)
    with pytest.raises(CheckpointError, match='Free some space'):
        save_atomic({'params': {'a': torch.ones(1000)}}, tmp_path / 'net.pth')
