"""Weights from other programs and back: the same pixels as their networks."""
import os
import tempfile

import pytest
import torch
import yaml
from basicsr.archs import build_network
from conftest import cannot_be_made
from other_programs import MEAN, TheirCARN, _no_grad, close, run  # noqa: F401
from torch import nn

from udl_basicsr.deploy import edsr_format
from udl_basicsr.utils.checkpoints import read_checkpoint, save_atomic

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


# -------------------------------------------------------------------------------------------------------------- helpers

def image(*size):
    return torch.rand(2, 3, *(size or (11, 14)))


def loaded(path, options):
    net = build_network(options)
    net.load_state_dict(torch.load(path, weights_only=True)['params'], strict=True)
    return net.eval()


# ---------------------------------------------------------------------------------------------------------- conversions

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
    for option in ('--opt', '--in_u'):
        (tmp_path / 'edsr.yml').write_text('network_g: {type: EDSR, res_scale: 0.3}')
        run(capsys, tmp_path / 'plain.pt', '--out', tmp_path / 'q.pth', option, tmp_path / 'edsr.yml',
            fails=f'{option} means nothing for EDSR-PyTorch')
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


# ------------------------------------------------------------------------------------------------- reading and refusing

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


def test_what_exists_stays(tmp_path, capsys, monkeypatch):
    torch.save(TheirEDSR(2, var=True).state_dict(), tmp_path / 'm.pt')
    (tmp_path / 'u.pth').write_text('mine')
    both = ('--out', tmp_path / 'g.pth', '--out_u', tmp_path / 'u.pth')
    run(capsys, tmp_path / 'm.pt', *both, fails='u.pth: exists already; .* --force')
    run(capsys, tmp_path / 'm.pt', '--out', tmp_path / 'm.pt' / 'g.pth', fails='its folder is a file')
    run(capsys, tmp_path / 'm.pt', '--out', tmp_path / 'no' / 'g.pth', '--scale', 2, fails='--scale means nothing')
    run(capsys, tmp_path / 'm.pt', '--out', tmp_path / 'g', fails=r'ends in \.pth')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['m.pt', 'u.pth']
    assert (tmp_path / 'u.pth').read_text() == 'mine'
    with monkeypatch.context() as patch:  # for root, no mode makes a folder read-only
        patch.setattr(tempfile, 'TemporaryFile', cannot_be_made)
        run(capsys, tmp_path / 'm.pt', '--out', tmp_path / 'g.onnx', fails='g.onnx: its folder cannot be written to')
    for name in ('g.pth', 'g.safetensors'):
        run(capsys, tmp_path / 'm.pt', '--out', tmp_path / 'new' / name[2:] / name)
        assert (tmp_path / 'new' / name[2:] / name).is_file()
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
    attempt(r'subtracts no mean, and network_g has rgb_mean \(0.4488.* its net_g with --to edsr', options, head)
    attempt('a UDLHead as wide as the network', zero, {**head, 'head': {'type': 'UDLHead', 'num_feat': 4}})
    attempt('a UDLHead as wide as the network', zero, {**head, 'head': {'type': 'SigmaHead', 'num_feat': 4}})
    attempt('s: differs by', {**zero, 'num_block': 2}, {**head, 'tap': 'body'})
    attempt('--to udl takes net_u', zero, head, weights='g')
    attempt('--to edsr takes net_g', zero, head, to='edsr')
    attempt('give it as --in_u', zero, head, to='udl_two', weights='g')
