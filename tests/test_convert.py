"""Weights in and out: the same pixels as the other programs' networks, written here anew from their description."""
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from basicsr.archs import build_network
from basicsr.models import build_model
from torch import nn
from torch.nn import functional as F

from udl_basicsr.cli import convert as script
from udl_basicsr.deploy import edsr_format, export
from udl_basicsr.options.parse import parse_options
from udl_basicsr.training import loop
from udl_basicsr.utils.checkpoints import CheckpointError, load_network, read_checkpoint, save_atomic
from udl_basicsr.utils.version import __version__

ROOT = Path(__file__).parents[1]

MEAN = (0.4488, 0.4371, 0.4040)


# ----------------------------------------------------------------------------------------- the other programs' networks
def conv3(num_in, num_out):
    return nn.Conv2d(num_in, num_out, 3, padding=1)


class Block(nn.Module):
    def __init__(self, width, res_scale):
        super().__init__()
        self.body = nn.Sequential(conv3(width, width), nn.ReLU(), conv3(width, width))
        self.res_scale = res_scale

    def forward(self, x):
        return x + self.res_scale * self.body(x)


class TheirEDSR(nn.Module):
    """EDSR-PyTorch's (``shift``) and the UDL authors' (``var``), on 0-255 pixels."""

    def __init__(self, scale, width=6, blocks=2, res_scale=0.1, shift=False, var=False, rgb_range=255):
        super().__init__()
        self.scale = scale
        if shift:
            self.sub_mean, self.add_mean = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            for conv, sign in ((self.sub_mean, -1), (self.add_mean, 1)):
                conv.weight.data = torch.eye(3)[..., None, None]
                conv.bias.data = sign * rgb_range * torch.tensor(MEAN)
        self.head = nn.Sequential(conv3(3, width))
        self.body = nn.Sequential(*(Block(width, res_scale) for _ in range(blocks)), conv3(width, width))
        steps = [3] if scale == 3 else [2] * {2: 1, 4: 2, 8: 3}[scale]
        self.tail = nn.Sequential(
            nn.Sequential(*(m for r in steps for m in (conv3(width, r * r * width), nn.PixelShuffle(r)))),
            conv3(width, 3))
        if var:
            self.var_conv = nn.Sequential(conv3(width, width), nn.ELU(),
                                          conv3(width, width), nn.ELU(),
                                          conv3(width, 3), nn.ELU())
        for module in self.modules():  # layers that matter, and differ from one another
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                nn.init.normal_(module.weight, std=0.6 / module.in_channels**0.5)
                nn.init.normal_(module.bias)

    def forward(self, pixels):
        x = self.sub_mean(pixels) if hasattr(self, 'sub_mean') else pixels
        x = self.head(x)
        features = x + self.body(x)
        out = self.tail(features)
        out = self.add_mean(out) if hasattr(self, 'add_mean') else out
        if not hasattr(self, 'var_conv'):
            return out
        large = features.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)
        return out, self.var_conv(large)


class TheirEDSRTwo(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.EDSR_var, self.EDSR_U = TheirEDSR(scale, var=True), TheirEDSR(scale, var=True)

    def forward(self, pixels):
        return self.EDSR_U(pixels)[0], self.EDSR_var(pixels)[1]


class TheirCARN:
    """Weights by their released names, and what is computed with them; ``mobile`` is CARN-M."""

    def __init__(self, mobile, width=8, groups=4, scales=(2, 3, 4)):
        self.mobile, self.groups = mobile, groups if mobile else 1
        shapes = {'entry': (width, 3, 3), 'exit': (3, width, 3), 'sub_mean.shifter': (3, 3, 1),
                  'add_mean.shifter': (3, 3, 1)}
        for b in ('b1', 'b2', 'b3'):
            for u in ('b1', ) if mobile else ('b1', 'b2', 'b3'):
                shapes |= {f'{b}.{u}.body.{i}': (width, width // self.groups, 3) for i in (0, 2)}
                shapes |= {f'{b}.{u}.body.4': (width, width, 1)} if mobile else {}
        for prefix in ('', 'b1.', 'b2.', 'b3.'):
            shapes |= {f'{prefix}c{i}.body.0': (width, width * (i + 1), 1) for i in (1, 2, 3)}
        for scale in scales:
            name = f'up{scale}' if len(scales) > 1 else 'up'
            for i, r in enumerate([3] if scale == 3 else [2] * (scale // 2)):
                shapes[f'upsample.{name}.body.{3 * i}'] = (r * r * width, width // self.groups, 3)
        self.weights = {}
        for name, (o, i, k) in shapes.items():
            self.weights[f'{name}.weight'] = torch.randn(o, i, k, k) / (i * k * k)**0.5
            self.weights[f'{name}.bias'] = 0.1 * torch.randn(o)
        for name, sign in (('sub', -1), ('add', 1)):
            self.weights[f'{name}_mean.shifter.weight'] = torch.eye(3)[..., None, None]
            self.weights[f'{name}_mean.shifter.bias'] = sign * torch.tensor(MEAN)

    def conv(self, name, x, groups=1):
        weight = self.weights[f'{name}.weight']
        return F.conv2d(x, weight, self.weights[f'{name}.bias'], padding=weight.shape[-1] // 2, groups=groups)

    def unit(self, name, x):
        y = self.conv(f'{name}.body.2', self.conv(f'{name}.body.0', x, self.groups).relu(), self.groups)
        return ((self.conv(f'{name}.body.4', y.relu()) if self.mobile else y) + x).relu()

    def block(self, name, x):
        c, y = x, x
        for i in (1, 2, 3):
            c = torch.cat([c, self.unit(f'{name}.b{1 if self.mobile else i}', y)], 1)
            y = self.conv(f'{name}.c{i}.body.0', c).relu()
        return y

    def __call__(self, x, scale, name):
        x = self.conv('entry', self.conv('sub_mean.shifter', x))
        c, y = x, x
        for i in (1, 2, 3):
            c = torch.cat([c, self.block(f'b{i}', y)], 1)
            y = self.conv(f'c{i}.body.0', c).relu()
        for i, r in enumerate([3] if scale == 3 else [2] * (scale // 2)):
            y = F.pixel_shuffle(self.conv(f'upsample.{name}.body.{3 * i}', y, self.groups).relu(), r)
        return self.conv('add_mean.shifter', self.conv('exit', y))


# ---------------------------------------------------------------------------------------------------------- helpers
def image(*size):
    return torch.rand(2, 3, *(size or (11, 14)))


def run(capsys, *argv, fails=None):
    """The script, as a user calls it: the YAML that it prints, or the error that it must end with."""
    status = script.main([str(a) for a in argv])
    printed = capsys.readouterr()
    if fails:
        assert status == 2
        assert re.search(fails, printed.err), printed.err
        assert not printed.out
    else:
        assert status == 0, printed.err
    return (yaml.safe_load(printed.out), printed.err) if printed.out else (None, printed.err)


def loaded(path, options):
    net = build_network(options)
    net.load_state_dict(torch.load(path, weights_only=True)['params'], strict=True)
    return net.eval()


def close(a, b):
    # of a pixel in [0, 1]; more where random weights make pixels larger than 1
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * max(1, b.abs().max().item()))


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


# -------------------------------------------------------------------------------------------------------- conversions
@pytest.mark.parametrize('scale', [2, 3, 4, 8])
def test_released_udl_weights_and_back(tmp_path, capsys, scale):
    theirs = TheirEDSR(scale, var=True).eval()
    torch.save(theirs.state_dict(), tmp_path / 'model.pt')
    blocks, notes = run(capsys, tmp_path / 'model.pt', '--out', tmp_path / 'g.pth', '--out_u', tmp_path / 'u.pth')
    assert blocks['network_g'] == {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 6, 'num_block': 2,
                                   'upscale': scale, 'res_scale': 0.1, 'img_range': 255., 'rgb_mean': [0., 0., 0.]}
    assert 'res_scale 0.1 assumed' in notes
    lq = image()
    mean, s = theirs(255 * lq)
    assert s.std() > 0.1
    close(loaded(tmp_path / 'g.pth', blocks['network_g'])(lq), mean / 255)
    ours = loaded(tmp_path / 'u.pth', {'backbone': blocks['network_g'], **blocks['network_u']})(lq)
    close(ours[0], mean / 255)
    close(ours[1], s)

    (tmp_path / 'x.yml').write_text(yaml.safe_dump(blocks))
    run(capsys, tmp_path / 'u.pth', '--to', 'udl', '--out', tmp_path / 'back.pt', '--opt', tmp_path / 'x.yml')
    back = torch.load(tmp_path / 'back.pt', weights_only=True)
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(v, back[k]) for k, v in theirs.state_dict().items())


def test_both_networks_of_stage_2_and_back(tmp_path, capsys):
    theirs = TheirEDSRTwo(2).eval()
    torch.save(theirs.state_dict(), tmp_path / 'model.pt')
    blocks, _ = run(capsys, tmp_path / 'model.pt', '--out', tmp_path / 'g.pth', '--out_u', tmp_path / 'u.pth')
    lq = image()
    mean, s = theirs(255 * lq)
    close(loaded(tmp_path / 'g.pth', blocks['network_g'])(lq), mean / 255)
    net_u = loaded(tmp_path / 'u.pth', {'backbone': blocks['network_g'], **blocks['network_u']})
    close(net_u.log_scale(lq), s)
    (tmp_path / 'x.yml').write_text(yaml.safe_dump(blocks))
    _, notes = run(capsys, tmp_path / 'g.pth', '--to', 'udl_two', '--in_u', tmp_path / 'u.pth', '--out',
                   tmp_path / 'back.pt', '--opt', tmp_path / 'x.yml')
    assert 'change them there' in notes  # 16 blocks of 64 are written into the released code
    again = TheirEDSRTwo(2).eval()
    again.load_state_dict(torch.load(tmp_path / 'back.pt', weights_only=True), strict=True)
    for ours, before in zip(again(255 * lq), (mean, s), strict=True):
        close(ours, before)


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_edsr_pytorch_and_back(tmp_path, capsys, scale):
    theirs = TheirEDSR(scale, shift=True, res_scale=1).eval()
    torch.save(theirs.state_dict(), tmp_path / 'edsr.pt')
    blocks, notes = run(capsys, tmp_path / 'edsr.pt', '--out', tmp_path / 'g.pth')
    assert blocks['network_g']['rgb_mean'] == list(MEAN)
    assert blocks['network_g']['res_scale'] == 1
    assert '--res_scale changes it' in notes
    lq = image()
    close(loaded(tmp_path / 'g.pth', blocks['network_g'])(lq), theirs(255 * lq) / 255)
    (tmp_path / 'x.yml').write_text(yaml.safe_dump(blocks))
    run(capsys, tmp_path / 'g.pth', '--to', 'edsr', '--out', tmp_path / 'back.pt', '--opt', tmp_path / 'x.yml')
    back = torch.load(tmp_path / 'back.pt', weights_only=True)
    assert back.keys() == theirs.state_dict().keys()
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(back[key], value, rtol=1e-6, atol=0)  # the mean's last bit; all else is the same
        assert 'mean' in key or torch.equal(back[key], value)


def test_a_mean_shift_that_was_trained_is_folded_in_exactly(tmp_path, capsys):
    theirs = TheirEDSR(2, shift=True, res_scale=1).eval()
    for conv in (theirs.sub_mean, theirs.add_mean):
        conv.weight += 0.2 * torch.randn(3, 3, 1, 1)
        conv.bias += 3 * torch.randn(3)
    torch.save(theirs.state_dict(), tmp_path / 'edsr.pt')
    blocks, _ = run(capsys, tmp_path / 'edsr.pt', '--out', tmp_path / 'g.pth')
    lq = image()
    close(loaded(tmp_path / 'g.pth', blocks['network_g'])(lq), theirs(255 * lq) / 255)  # the border included


def test_options_of_edsr_from_elsewhere(tmp_path, capsys):
    theirs = TheirEDSR(2, shift=True, res_scale=0.3, rgb_range=1).eval()
    torch.save(theirs.state_dict(), tmp_path / 'edsr.pt')
    blocks, notes = run(capsys, tmp_path / 'edsr.pt', '--out', tmp_path / 'g.pth', '--res_scale', 0.3)
    assert 'pixels of 0 to 1 assumed' in notes
    assert 'res_scale' not in notes
    lq = image()
    close(loaded(tmp_path / 'g.pth', blocks['network_g'])(lq), theirs(lq))
    # without a mean shift the range cannot be seen
    theirs = TheirEDSR(2, res_scale=1).eval()
    torch.save(theirs.state_dict(), tmp_path / 'plain.pt')
    blocks, _ = run(capsys, tmp_path / 'plain.pt', '--out', tmp_path / 'p.pth', '--rgb_range', 2)
    close(loaded(tmp_path / 'p.pth', blocks['network_g'])(lq), theirs(2 * lq) / 2)
    for option in ('--rgb_range', '--res_scale'):
        for value in (-1, 0, 'nan', 'inf'):
            run(capsys, tmp_path / 'plain.pt', '--out', tmp_path / 'q.pth', option, value,
                fails=f'{option}: expected a number > 0')
    torch.save(TheirEDSR(2, width=256, blocks=1, shift=True).state_dict(), tmp_path / 'wide.pt')
    blocks, _ = run(capsys, tmp_path / 'wide.pt', '--out', tmp_path / 'w.pth')
    assert blocks['network_g']['res_scale'] == 0.1


@pytest.mark.parametrize('img_range', [1., 255.])
def test_ours_to_edsr_pytorch_from_the_folder_of_a_run(tmp_path, capsys, img_range):
    (tmp_path / 'x' / 'models').mkdir(parents=True)
    options = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 6, 'num_block': 2, 'upscale': 2,
               'img_range': img_range, 'res_scale': 0.1, 'rgb_mean': [0.1, 0.2, 0.3]}
    net = build_network(options).eval()
    path = tmp_path / 'x' / 'models' / 'net_g_8.pth'
    save_atomic({'params': build_network(options).state_dict(), 'params_ema': net.state_dict()}, path)
    run(capsys, path, '--to', 'edsr', '--out', tmp_path / 'e.pt', fails='give one with network_g as --opt')
    (tmp_path / 'x' / 'x.yml').write_text(yaml.safe_dump({'name': 'x', 'network_g': options}))
    _, notes = run(capsys, path, '--to', 'edsr', '--out', tmp_path / 'e.pt')
    assert "its 'params_ema'" in notes
    assert '--n_resblocks 2 --n_feats 6 --res_scale 0.1' in notes
    theirs = TheirEDSR(2, shift=True).eval()
    theirs.load_state_dict(torch.load(tmp_path / 'e.pt', weights_only=True), strict=True)
    lq = image()
    close(theirs(255 * lq) / 255, net(lq))


@pytest.mark.parametrize(('mobile', 'scale'), [(False, 2), (False, 3), (False, 4), (True, 2), (True, 3), (True, 4)])
def test_carn(tmp_path, capsys, mobile, scale):
    theirs = TheirCARN(mobile)
    torch.save(theirs.weights, tmp_path / 'carn.pth')
    run(capsys, tmp_path / 'carn.pth', '--out', tmp_path / 'g.pth', fails=r'--scale: expected 2 or 3 or 4')
    blocks, _ = run(capsys, tmp_path / 'carn.pth', '--out', tmp_path / 'g.pth', '--scale', scale)
    lq = image()
    before = theirs(lq, scale, f'up{scale}')
    assert before.std() > 0.1
    close(loaded(tmp_path / 'g.pth', blocks['network_g'])(lq), before)


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_carn_of_one_scale_and_other_groups(tmp_path, capsys, scale):
    theirs = TheirCARN(True, groups=2, scales=(scale, ))
    torch.save(theirs.weights, tmp_path / 'carn.pth')
    blocks, _ = run(capsys, tmp_path / 'carn.pth', '--out', tmp_path / 'g.pth')
    assert blocks['network_g']['num_group'] == 2
    lq = image()
    close(loaded(tmp_path / 'g.pth', blocks['network_g'])(lq), theirs(lq, scale, 'up'))
    run(capsys, tmp_path / 'carn.pth', '--out', tmp_path / 'h.pth', '--res_scale', 1, fails='--res_scale means nothing')


# ---------------------------------------------------------------------------------------------- reading and refusing
def _legacy(weights, path):
    torch.save(weights, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize('write', [
    lambda w, p: torch.save({'params': w}, p), lambda w, p: torch.save({'params': {}, 'params_ema': w}, p),
    lambda w, p: torch.save({'state_dict': w, 'epoch': 3}, p), lambda w, p: torch.save({'model': w}, p), _legacy,
    lambda w, p: torch.save({f'module.{k}': v for k, v in w.items()}, p),
    lambda w, p: _legacy({'state_dict': {f'module.model.{k}': v for k, v in w.items()}}, p),
    lambda w, p: torch.save({k: v.half() for k, v in w.items()}, p)])
def test_wrappers_and_old_files(tmp_path, capsys, write):
    weights = {k: v.half().float() for k, v in TheirEDSR(2, var=True).state_dict().items()}
    write(weights, tmp_path / 'm.pt')
    run(capsys, tmp_path / 'm.pt', '--out', tmp_path / 'g.pth')
    got = torch.load(tmp_path / 'g.pth', weights_only=True)['params']
    assert torch.equal(got['body.1.conv2.weight'], weights['body.1.body.2.weight'])
    assert got['body.1.conv2.weight'].dtype == torch.float32


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path, )


def test_pickles_are_not_run(tmp_path, capsys):
    for save in (torch.save, _legacy):
        save({'state_dict': Bomb(tmp_path / 'went_off')}, tmp_path / 'm.pt')
        run(capsys, tmp_path / 'm.pt', '--out', tmp_path / 'g.pth', fails='never run')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['m.pt']


@pytest.mark.parametrize(('weights', 'message'), [
    ({'head.0.weight': 0, 'body.0.body.0.weight': 0, 'body.0.body.3.conv_du.0.weight': 0}, 'seems to be RCAN'),
    ({'pre_process.0.0.body.0.weight': 0, 'head.0.weight': 0}, 'seems to be MDSR'),
    ({'a.weight': 0, 'b.weight': 0}, r'a.weight, b.weight\. Understood are: .*edsr_two'),
    ('RRDBNet', r'seems to be ESRGAN(.|\n)*need no conversion'),
    ('EDSR', "BasicSR's EDSR .net_g. already"),
    ({'params': {'x': 'text'}}, "'x' is of type str"),
    ({}, 'is empty'),
])
def test_files_of_other_kinds_are_refused(tmp_path, capsys, weights, message):
    if isinstance(weights, str):
        weights = build_network({'type': weights, 'num_in_ch': 3, 'num_out_ch': 3, 'num_block': 1}).state_dict()
    else:
        weights = {k: torch.zeros(1) if v == 0 else v for k, v in weights.items()}
    torch.save(weights, tmp_path / 'm.pt')
    run(capsys, tmp_path / 'm.pt', '--out', tmp_path / 'g.pth', fails=message)
    assert not (tmp_path / 'g.pth').exists()


def test_edsr_with_layers_of_another_is_refused(tmp_path, capsys):
    torch.save({**TheirEDSR(2, var=True).state_dict(), 'body.0.body.3.weight': torch.ones(1)}, tmp_path / 'm.pt')
    run(capsys, tmp_path / 'm.pt', '--out', tmp_path / 'g.pth', fails=r'body\.0\.body\.3\.weight does not belong')


def test_what_exists_stays(tmp_path, capsys):
    torch.save(TheirEDSR(2, var=True).state_dict(), tmp_path / 'm.pt')
    (tmp_path / 'u.pth').write_text('mine')
    both = ('--out', tmp_path / 'g.pth', '--out_u', tmp_path / 'u.pth')
    run(capsys, tmp_path / 'm.pt', *both, fails='u.pth: exists already; .* --force')
    run(capsys, tmp_path / 'm.pt', '--out', tmp_path / 'no' / 'g.pth', fails='does not exist; make it first')
    run(capsys, tmp_path / 'm.pt', '--out', tmp_path / 'g', fails=r'ends in \.pth')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['m.pt', 'u.pth']
    assert (tmp_path / 'u.pth').read_text() == 'mine'
    run(capsys, tmp_path / 'm.pt', *both, '--force')
    assert 'head.conv1.weight' in read_checkpoint(tmp_path / 'u.pth')['params']


def test_nothing_is_written_when_the_pixels_differ(tmp_path, capsys, monkeypatch):
    torch.save(TheirEDSR(2, var=True).state_dict(), tmp_path / 'm.pt')
    names = edsr_format._edsr_names

    def exchanged(*args):  # the two convolutions of each block
        return {(k[:-1] + {'1': '2', '2': '1'}.get(k[-1], k[-1])): v for k, v in names(*args).items()
                if k.startswith('body')} | {k: v for k, v in names(*args).items() if not k.startswith('body')}

    monkeypatch.setattr(edsr_format, '_edsr_names', exchanged)
    run(capsys, tmp_path / 'm.pt', '--out', tmp_path / 'g.pth', fails='image: differs by .* nothing is written')
    assert [p.name for p in tmp_path.iterdir()] == ['m.pt']


def test_what_the_udl_format_cannot_express(tmp_path, capsys):
    options = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 6, 'num_block': 1, 'upscale': 2}

    def attempt(message, network_g, network_u, to='udl', weights='u'):
        (tmp_path / 'x.yml').write_text(yaml.safe_dump({'network_g': network_g, 'network_u': network_u}))
        net_u = build_network({'backbone': network_g, **network_u})
        save_atomic({'params': net_u.state_dict()}, tmp_path / 'u.pth')
        save_atomic({'params': net_u.mean_network.state_dict()}, tmp_path / 'g.pth')
        run(capsys, tmp_path / f'{weights}.pth', '--to', to, '--out', tmp_path / 'o.pt', '--opt', tmp_path / 'x.yml',
            fails=message)
        assert not (tmp_path / 'o.pt').exists()

    head = {'type': 'UncertaintyNet', 'tap': 'upsample', 'head': {'type': 'UDLHead'}}
    zero = {**options, 'rgb_mean': [0, 0, 0]}
    attempt(r'subtracts no mean, and network_g has rgb_mean \(0.4488', options, head)
    attempt('a UDLHead as wide as the network', zero, {**head, 'head': {'type': 'UDLHead', 'num_feat': 4}})
    attempt('a UDLHead as wide as the network', zero, {**head, 'head': {'type': 'SigmaHead', 'num_feat': 4}})
    attempt('s: differs by', {**zero, 'num_block': 2}, {**head, 'tap': 'body'})
    attempt('--to udl takes net_u', zero, head, weights='g')
    attempt('--to edsr takes net_g', zero, head, to='edsr')
    attempt('give it as --in_u', zero, head, to='udl_two', weights='g')


# ---------------------------------------------------------------------------------------------------------- safetensors
def test_safetensors_bit_for_bit(tmp_path, capsys):
    safetensors = pytest.importorskip('safetensors')
    from safetensors.torch import load_file
    weights = {'a.weight': torch.tensor([float('nan'), -0., 1e-42]), 'b': torch.rand(3, 4).half().t(),
               'c': torch.tensor(7), 'd': torch.rand(2, 2).bfloat16()}
    weights['e'] = weights['a.weight']  # shares memory
    save_atomic({'params': weights}, tmp_path / 'm.pth')
    run(capsys, tmp_path / 'm.pth', '--out', tmp_path / 'm.safetensors')
    back = load_file(tmp_path / 'm.safetensors')
    assert back.keys() == weights.keys()
    for key, value in weights.items():
        assert back[key].dtype == value.dtype
        assert back[key].shape == value.shape
        assert back[key].numpy(force=True).tobytes() == value.contiguous().numpy().tobytes() \
            if value.dtype != torch.bfloat16 else torch.equal(back[key], value)
    with safetensors.safe_open(tmp_path / 'm.safetensors', 'pt') as file:
        assert file.metadata() == {'format': 'pt'}
    # and back, of a network that nobody here knows: as BasicSR keeps weights
    run(capsys, tmp_path / 'm.safetensors', '--out', tmp_path / 'back.pth')
    again = torch.load(tmp_path / 'back.pth', weights_only=True)
    assert list(again) == ['params']
    assert again['params'].keys() == weights.keys()
    for key, value in weights.items():
        assert again['params'][key].dtype == value.dtype
        assert torch.equal(again['params'][key].nan_to_num(5), value.nan_to_num(5))


def test_safetensors_know_their_network_and_train_on(tmp_path, capsys, project):
    safetensors = pytest.importorskip('safetensors')
    model = project.model('plain')
    parsed = project.parse('plain')
    folder = tmp_path / 'run' / 'models'
    folder.mkdir(parents=True)
    save_atomic({'params': model.net_g.state_dict()}, folder / 'net_g_latest.pth')
    (tmp_path / 'run' / 'run.yml').write_text(yaml.safe_dump(parsed.flat))
    out = tmp_path / 'x.safetensors'
    run(capsys, folder / 'net_g_latest.pth', '--out', out)
    with safetensors.safe_open(out, 'pt') as file:
        metadata = file.metadata()
    assert metadata['network'] == 'EDSR'
    assert json.loads(metadata['networks'])['network_g'] == parsed.flat['network_g']

    again = build_model(project.parse('plain', f'path:pretrain_network_g={out}').opt)
    for key, value in again.net_g.state_dict().items():
        assert torch.equal(value, model.net_g.state_dict()[key])
    load_network(model.net_g, out, None)  # param_key: ~ as well
    run(capsys, out, '--to', 'edsr', '--out', tmp_path / 'e.pt')  # needs no --opt
    assert (tmp_path / 'e.pt').exists()

    run(capsys, out, '--out', tmp_path / 'net_g.pth')
    for key, value in torch.load(tmp_path / 'net_g.pth', weights_only=True)['params'].items():
        assert torch.equal(value, model.net_g.state_dict()[key])

    out.write_bytes(out.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=r'x\.safetensors: cannot be read as safetensors'):
        read_checkpoint(out)
    run(capsys, out, '--to', 'edsr', '--out', tmp_path / 'f.pt', fails='cannot be read as safetensors')


def test_safetensors_are_not_labelled_with_another_network(tmp_path, capsys, project):
    pytest.importorskip('safetensors')
    save_atomic({'params': project.model('plain').net_g.state_dict()}, tmp_path / 'net.pth')
    other = tmp_path / 'other.yml'
    other.write_text('network_g: {type: EDSR, num_in_ch: 3, num_out_ch: 3, num_feat: 8, num_block: 1, upscale: 4}')
    run(capsys, tmp_path / 'net.pth', '--out', tmp_path / 'x.safetensors', '--opt', other, fails='another scale')
    assert not (tmp_path / 'x.safetensors').exists()


# ----------------------------------------------------------------------------------------------------------------- ONNX
NETWORKS = {
    'EDSR': {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'upscale': 3},
    'RRDBNet': {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'scale': 4},
    'VDSR': {'num_feat': 8, 'num_conv': 3, 'upscale': 2},
    'SwinIR': {'upscale': 2, 'img_size': 16, 'window_size': 4, 'img_range': 1., 'depths': [2], 'embed_dim': 8,
               'num_heads': [2], 'mlp_ratio': 2, 'upsampler': 'pixelshuffle', 'resi_connection': '1conv'},
    'HAT': {'upscale': 2, 'img_size': 16, 'window_size': 8, 'compress_ratio': 2, 'squeeze_factor': 4, 'depths': [1],
            'embed_dim': 8, 'num_heads': [2], 'num_feat': 8, 'upsampler': 'pixelshuffle', 'resi_connection': '1conv'},
}


@pytest.mark.parametrize(('name', 'sizes'), [
    ('EDSR', [(1, 17, 23), (3, 8, 40)]), ('RRDBNet', [(1, 17, 23), (2, 8, 24)]), ('VDSR', [(1, 9, 23), (3, 8, 12)]),
    ('SwinIR', [(1, 20, 24), (1, 8, 36)]), ('HAT', [(1, 24, 24), (1, 8, 40)])])
def test_onnx(tmp_path, capsys, name, sizes):
    pytest.importorskip('onnx')
    runtime = pytest.importorskip('onnxruntime')
    network_g = {'type': name, **NETWORKS[name]}
    net = build_network(network_g).eval()
    for parameter in net.parameters():
        parameter += 0.05 * torch.randn_like(parameter)  # attention that attends to something
    save_atomic({'params': net.state_dict()}, tmp_path / 'g.pth')
    (tmp_path / 'x.yml').write_text(yaml.safe_dump({'network_g': network_g}))
    _, notes = run(capsys, tmp_path / 'g.pth', '--out', tmp_path / 'g.onnx', '--opt', tmp_path / 'x.yml')
    assert 'opset 18' in notes
    assert ('one image at a time' in notes) == (name in ('SwinIR', 'HAT'))
    session = runtime.InferenceSession(str(tmp_path / 'g.onnx'), providers=['CPUExecutionProvider'])
    said = session.get_modelmeta().custom_metadata_map  # as another program reads it
    assert {key: said[key] for key in ('scale', 'colour', 'layout', 'udl_basicsr', 'weights_sha256')} == {
        'scale': str(network_g.get('upscale', 4)), 'colour': 'RGB', 'layout': 'NCHW', 'udl_basicsr': __version__,
        'weights_sha256': hashlib.sha256((tmp_path / 'g.pth').read_bytes()).hexdigest()}
    assert '16-bit pixels / 65535' in said['range']
    assert said['mean'].startswith('none')
    assert json.loads(said['network']) == network_g
    for n, h, w in sizes:
        lq = torch.rand(n, 3, h, w)
        close(torch.from_numpy(session.run(['sr'], {'lq': lq.numpy()})[0]), net(lq))
    assert not list(tmp_path.glob('.*'))


class Frozen(nn.Module):
    """Computes with a size in Python, which tracing turns into a constant without any error."""

    def forward(self, x):
        return x * (float(x.shape[-1]) / 40)


class Restless(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


@pytest.mark.parametrize('network', [Frozen, Restless])
def test_onnx_that_differs_is_not_kept(tmp_path, monkeypatch, network):
    pytest.importorskip('onnxruntime')
    monkeypatch.setattr(export, '_WAYS', (('torchscript', True), ('torchscript', False)))
    (tmp_path / 'x.onnx').write_text('of yesterday')
    with pytest.raises(export.ExportError, match=r'nothing was kept(.|\n)*batch of 1: .*differs by'):
        export.export_onnx(network(), tmp_path / 'x.onnx')
    assert [p.name for p in tmp_path.iterdir()] == ['x.onnx']
    assert (tmp_path / 'x.onnx').read_text() == 'of yesterday'


@pytest.mark.parametrize(('module', 'name'), [('onnx', 'x.onnx'), ('onnxruntime', 'x.onnx'),
                                              ('safetensors.torch', 'x.safetensors')])
def test_what_is_not_installed_is_named_with_its_remedy(tmp_path, monkeypatch, capsys, module, name):
    network_g = {'type': 'EDSR', **NETWORKS['EDSR']}
    save_atomic({'params': build_network(network_g).state_dict()}, tmp_path / 'g.pth')
    (tmp_path / 'x.yml').write_text(yaml.safe_dump({'network_g': network_g}))
    monkeypatch.setitem(sys.modules, module, None)
    run(capsys, tmp_path / 'g.pth', '--out', tmp_path / name, '--opt', tmp_path / 'x.yml',
        fails=rf"needs {module.partition('.')[0]}: pip install 'udl_basicsr\[export\]'")
    assert not (tmp_path / name).exists()


# ------------------------------------------------------------------------------------------ used by other programs
STOCK = """
name: stock
model_type: SRModel
scale: 2
num_gpu: auto
manual_seed: 0
datasets:
  test_1:
    name: val
    type: PairedImageDataset
    dataroot_gt: {root}/val/gt
    dataroot_lq: {root}/val/lq
    io_backend: {{type: disk}}
network_g: {{type: EDSR, num_in_ch: 3, num_out_ch: 3, num_feat: 8, num_block: 1, upscale: 2}}
path: {{pretrain_network_g: {weights}, strict_load_g: true, resume_state: ~}}
val:
  save_img: false
  suffix: ~
  metrics: {{psnr: {{type: calculate_psnr, crop_border: 2, test_y_channel: true}}}}
"""


def test_stock_basicsr_tests_our_checkpoint(tmp_path, pairs, project):
    model = project.model('plain')
    model.opt['path']['models'] = str(tmp_path)
    model.save(epoch=-1, current_iter=-1)
    file = tmp_path / 'stock.yml'
    file.write_text(STOCK.format(root=pairs, weights=tmp_path / 'net_g_latest.pth'))
    # of ours only the module that newer torchvision lacks; udl_basicsr itself is never imported
    code = (f'import os, runpy, sys; runpy.run_path({str(ROOT / "udl_basicsr" / "utils" / "torchvision_shim.py")!r})'
            '["install_torchvision_shim"](); from basicsr.test import test_pipeline; test_pipeline(os.getcwd()); '
            'sys.exit(3 * ("udl_basicsr" in sys.modules))')
    done = subprocess.run([sys.executable, '-c', code, '-opt', str(file)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    log = next((tmp_path / 'results' / 'stock').glob('test_stock_*.log')).read_text()
    stock = float(re.search(r'# psnr: ([\d.]+)', log)[1])

    parsed = parse_options(str(file), root_path=str(tmp_path), is_train=False, num_gpu_available=0,
                           force_yml=['name=ours', 'model_type=UDLModel'])
    ours = loop.test(parsed).datasets['val'].mean['psnr']
    assert abs(ours - stock) < 1e-4
    assert 5 < ours < 50


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
@pytest.mark.parametrize(('name', 'architecture'), [('RRDBNet', 'ESRGAN'), ('SwinIR', 'SwinIR'), ('HAT', 'HAT')])
def test_spandrel_runs_our_weights(tmp_path, capsys, name, architecture, suffix):
    spandrel = pytest.importorskip('spandrel')
    network_g = {'type': name, **NETWORKS[name]}
    net = build_network(network_g).eval()
    for parameter in net.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    path = tmp_path / 'net_g.pth'
    save_atomic({'params': net.state_dict()}, path)
    if suffix == 'safetensors':
        pytest.importorskip('safetensors')
        (tmp_path / 'x.yml').write_text(yaml.safe_dump({'network_g': network_g}))
        run(capsys, path, '--out', tmp_path / 'net_g.safetensors', '--opt', tmp_path / 'x.yml')
        path = tmp_path / 'net_g.safetensors'
    found = spandrel.ModelLoader(device='cpu').load_from_file(path)
    assert found.architecture.id == architecture
    lq = torch.rand(1, 3, 24, 40)
    close(found.model.eval()(lq), net(lq))
