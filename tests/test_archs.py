"""DPDNN, VDSR, ESPCN, CARN, CARN_M and IDN: sizes and values against the papers, stock torch and sums written out."""
import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.matlab_functions import imresize
from torch import nn
from torch.nn import functional as F

from udl_basicsr.archs import UncertaintyNet
from udl_basicsr.archs.dpdnn_arch import BicubicDownsampling
from udl_basicsr.archs.idn_arch import _TransposedConv

NETWORKS = {
    'DPDNN': {'num_feat': 8, 'num_level': 3, 'num_iter': 3},
    'VDSR': {'num_feat': 8, 'num_conv': 5},
    'ESPCN': {'num_feat': 8},
    'CARN': {'num_feat': 8, 'num_block': 2},
    'CARN_M': {'num_feat': 8, 'num_block': 2},
    'IDN': {'num_feat': 16, 'num_block': 2},
}
each_network = pytest.mark.parametrize('name', NETWORKS)


def build(name, **options):
    return build_network({'type': name, **NETWORKS[name], **options})


def paper_size(name, **options):
    return build_network({'type': name, **options})


def count(network, weights_only=False):
    return sum(p.numel() for n, p in network.named_parameters() if not (weights_only and n.endswith('bias')))


def randomise_biases(network):
    """Zero at the start, a bias that is forgotten or added twice would not show."""
    for name, parameter in network.named_parameters():
        if name.endswith('bias'):
            nn.init.normal_(parameter, std=0.1)
    return network


# --- against the papers' sizes

def test_vdsr_size():
    # 20 layers of 64 3x3 filters on luminance: 9*64 + 18*9*64*64 + 9*64 weights = 664,704, and 19*64 + 1 biases. CARN's
    # table says 665K (the weights, or both rounded down), IMDN's 666K (both).
    gray = paper_size('VDSR', num_in_ch=1, num_out_ch=1, upscale=2)
    assert count(gray, weights_only=True) == 9 * 64 + 18 * 9 * 64 * 64 + 9 * 64 == 664_704
    assert count(gray) == 664_704 + 19 * 64 + 1 == 665_921
    # RGB: two more input and two more output channels in the first and last layer
    assert count(paper_size('VDSR')) == 665_921 + 2 * 9 * 64 + 2 * (9 * 64 + 1)


def test_vdsr_receptive_field():
    # section 3.1 of the paper: (2D + 1) x (2D + 1), 41 x 41 with D = 20
    net = paper_size('VDSR', num_in_ch=1, num_out_ch=1, num_feat=2)
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.1)  # positive: no ReLU closes
    image = torch.rand(1, 1, 51, 51, requires_grad=True)
    net.conv_last(net.body(image))[0, 0, 25, 25].backward()
    seen = image.grad[0, 0].nonzero()
    assert seen.min(0).values.tolist() == [5, 5]
    assert seen.max(0).values.tolist() == [45, 45]
    assert len(seen) == 41 * 41


@pytest.mark.parametrize(('scale', 'parameters'), [(2, 21_284), (3, 22_729), (4, 24_752)])
def test_espcn_size(scale, parameters):
    # The paper gives the layers, (5, 64), (3, 32), 3 and r*r channels, but no sum.
    written_out = (25 * 64 + 64) + (9 * 64 * 32 + 32) + (9 * 32 * scale**2 + scale**2)
    net = paper_size('ESPCN', num_in_ch=1, num_out_ch=1, upscale=scale)
    assert count(net) == written_out == parameters


def carn_of_all_scales(name, **options):
    """What the papers' tables count: one trunk with the upsamplers of x2, x3 and x4."""
    nets = [paper_size(name, upscale=scale) for scale in (2, 3, 4)]
    return count(nets[0], **options) + sum(count(net.upsample, **options) for net in nets[1:])


def test_carn_size():
    # 1,592K in the paper's table: 1,591,939, of all scales. One scale alone has fewer.
    assert carn_of_all_scales('CARN') == 1_591_939
    assert count(paper_size('CARN', upscale=4)) == 1_591_939 - 64 * 64 * 9 * (4 + 9) - 64 * (4 + 9)
    # 412K: 412,032 weights of all scales, without the 2,755 biases. (Where 1,592K comes from, biases are counted; of
    # the weights alone it would be 1,589K. The paper does not say why; with them it is 415K.)
    assert carn_of_all_scales('CARN_M', weights_only=True) == 412_032
    assert carn_of_all_scales('CARN_M') == 414_787


def test_idn_size():
    # 553K in the table of IMDN, by the same authors: luminance, 552,769. Written out from the paper's D and s:
    block = ((9 * 64 * 48 + 48) + (9 * 12 * 32 + 32) + (9 * 32 * 64 + 64)
             + (9 * 48 * 64 + 64) + (9 * 16 * 48 + 48) + (9 * 48 * 80 + 80) + (80 * 64 + 64))
    written_out = (9 * 64 + 64) + (9 * 64 * 64 + 64) + 4 * block + (17 * 17 * 64 + 1)
    for scale in (2, 3, 4):  # the transposed convolution's kernel is 17 x 17 at every scale
        assert count(paper_size('IDN', num_in_ch=1, num_out_ch=1, upscale=scale)) == written_out == 552_769
    assert count(paper_size('IDN')) == 552_769 + 2 * 9 * 64 + 2 * (17 * 17 * 64) + 2


def test_dpdnn_size():
    # The paper gives no sum. From the authors' TensorFlow code, one channel: encoders of 4 convolutions, the bottom,
    # decoders of a transposed convolution without bias, a 1x1 and 4 convolutions, the last, and 6 delta and eta.
    conv = 9 * 64 * 64 + 64
    encoders = (9 * 64 + 64) + 15 * conv
    decoders = 4 * (9 * 64 * 64 + (128 * 64 + 64) + 4 * conv)
    written_out = encoders + conv + decoders + (9 * 64 + 1) + 12
    net = paper_size('DPDNN', num_in_ch=1, num_out_ch=1, upscale=2)
    assert count(net) == written_out == 1_363_405
    assert count(paper_size('DPDNN', num_in_ch=1, num_out_ch=1, num_iter=1)) == written_out - 10  # one U-net for all
    assert net.delta.tolist() == pytest.approx([0.1] * 6)
    assert net.eta.tolist() == pytest.approx([0.9] * 6)


# --- what every network does

@each_network
@pytest.mark.parametrize('scale', [2, 3, 4])
def test_sizes(name, scale):
    net = build(name, upscale=scale).eval()
    with torch.no_grad():
        for height, width in ((1, 1), (1, 6), (5, 7), (8, 12)):
            assert net(torch.rand(2, 3, height, width)).shape == (2, 3, scale * height, scale * width)
        gray = build(name, upscale=scale, num_in_ch=1, num_out_ch=1).eval()
        assert gray(torch.rand(1, 1, 5, 6)).shape == (1, 1, 5 * scale, 6 * scale)


@each_network
def test_gradient_reaches_every_parameter(name):
    net = randomise_biases(build(name, upscale=2))
    out = net(torch.rand(2, 3, 12, 9))
    (out * torch.randn_like(out)).sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@each_network
def test_autocast_and_memory_format(name):
    net = randomise_biases(build(name, upscale=3)).eval()
    lq = torch.rand(1, 3, 9, 10)
    with torch.no_grad():
        plain = net(lq)
        with torch.autocast('cpu', torch.bfloat16):
            half = net(lq).float()
        last = net.to(memory_format=torch.channels_last)(lq.to(memory_format=torch.channels_last))
    assert (half - plain).abs().max() < 0.03 * plain.abs().max()  # bfloat16 has 8 bits, the networks a dozen layers
    torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(('name', 'channels', 'high_resolution'), [
    ('DPDNN', 8, True), ('VDSR', 8, True), ('ESPCN', 4, False), ('CARN', 8, False), ('CARN_M', 8, False),
    ('IDN', 16, False)])
def test_default_tap(name, channels, high_resolution):
    net = UncertaintyNet({'type': name, **NETWORKS[name], 'upscale': 3}).eval()
    seen = []
    module = net.mean_network.get_submodule(net.mean_network.default_tap)
    module.register_forward_pre_hook(lambda _, args: seen.append((args[0], args[0].clone())))
    lq = torch.rand(1, 3, 8, 7)
    with torch.no_grad():
        mean, log_scale = net(lq)
        assert torch.equal(net.log_scale(lq), log_scale)  # though DPDNN comes by its tap in every iteration
    assert mean.shape == log_scale.shape == (1, 3, 24, 21)
    features, before = seen[-1]
    assert torch.equal(features, before)  # nothing adds to it in place afterwards
    # a feature map, not an image: at high resolution where the network works there, else before upsampling
    assert features.shape == (1, channels, *((24, 21) if high_resolution else (8, 7)))


@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize(('name', 'last'), [('VDSR', 'conv_last'), ('IDN', 'upsample.conv')])
def test_bicubic_plus_residual(name, last, scale):
    net = build(name, upscale=scale)
    for parameter in net.get_submodule(last).parameters():
        nn.init.zeros_(parameter)
    lq = torch.rand(2, 3, 7, 6)
    expected = F.interpolate(lq, scale_factor=scale, mode='bicubic', align_corners=False)
    torch.testing.assert_close(net(lq), expected, rtol=0, atol=1e-6)
    nn.init.constant_(net.get_submodule(last).bias, 0.25)
    torch.testing.assert_close(net(lq), expected + 0.25, rtol=0, atol=1e-6)


@pytest.mark.parametrize(('name', 'options', 'message'), [
    *((name, {'upscale': 5}, f'{name}: upscale: expected 2, 3 or 4, got 5') for name in NETWORKS),
    ('CARN', {'upscale': 2.0}, 'CARN: upscale: expected 2, 3 or 4, got 2.0'),
    ('VDSR', {'num_feat': 0}, 'VDSR: num_feat: expected a whole number from 1, got 0'),
    ('VDSR', {'num_conv': 1}, 'VDSR: num_conv: expected at least the first and the last, 2, got 1'),
    ('DPDNN', {'num_iter': True}, 'DPDNN: num_iter: expected a whole number from 1, got True'),
    ('DPDNN', {'num_out_ch': 1}, 'num_out_ch must be num_in_ch: got num_in_ch 3 and num_out_ch 1'),
    ('VDSR', {'num_out_ch': 1}, 'num_out_ch must be num_in_ch'),
    ('IDN', {'num_out_ch': 1}, 'num_out_ch must be num_in_ch'),
    ('IDN', {'num_feat': 24}, 'IDN: num_feat: expected a multiple of 16, got 24'),
    ('ESPCN', {'num_feat': 7}, 'ESPCN: num_feat: expected a multiple of 2, got 7'),
    ('CARN_M', {'num_feat': 10}, 'CARN_M: num_feat: expected a multiple of 4, got 10'),
    ('CARN_M', {'num_group': 0}, 'CARN_M: num_group: expected a whole number from 1, got 0'),
    ('CARN', {'num_in_ch': 4}, r'CARN: num_in_ch: expected 3 \(RGB\) or 1, for which there is a mean, got 4'),
])
def test_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, **options)


# --- values against sums written out

def test_espcn_written_out():
    net = randomise_biases(build('ESPCN', upscale=3)).double()
    lq = torch.rand(1, 3, 5, 4, dtype=torch.float64)
    (w1, b1, w2, b2, w3, b3), x = net.state_dict().values(), lq
    x = F.conv2d(F.conv2d(x, w1, b1, padding=2).tanh(), w2, b2, padding=1).tanh()
    x = F.conv2d(x, w3, b3, padding=1).view(1, 3, 3, 3, 5, 4)  # C, r rows, r columns, h, w
    torch.testing.assert_close(net(lq), x.permute(0, 1, 4, 2, 5, 3).reshape(1, 3, 15, 12), rtol=0, atol=1e-12)


def published_carn_keys(mobile):
    """The keys of carn.pth and carn_m.pth, which hold the upsamplers of all scales."""
    layers = [f'{n}_mean.shifter' for n in ('sub', 'add')] + ['entry', 'exit']
    for block in ('b1', 'b2', 'b3'):
        layers += [f'{block}.b1.body.{i}' for i in (0, 2, 4)] if mobile else [
            f'{block}.{unit}.body.{i}' for unit in ('b1', 'b2', 'b3') for i in (0, 2)]
        layers += [f'{block}.{fusion}.body.0' for fusion in ('c1', 'c2', 'c3')]
    layers += [f'{fusion}.body.0' for fusion in ('c1', 'c2', 'c3')]
    layers += [f'upsample.{up}' for up in ('up2.body.0', 'up3.body.0', 'up4.body.0', 'up4.body.3')]
    return {f'{layer}.{kind}' for layer in layers for kind in ('weight', 'bias')}


def carn_written_out(w, x, scale, groups):
    """The forward pass in terms of the published names."""

    def conv(name, x, padding=1, groups=1):
        return F.conv2d(x, w[f'{name}.weight'], w[f'{name}.bias'], padding=padding, groups=groups)

    def residual(name, x):
        if groups == 1:
            return (conv(f'{name}.body.2', conv(f'{name}.body.0', x).relu()) + x).relu()
        y = conv(f'{name}.body.2', conv(f'{name}.body.0', x, groups=groups).relu(), groups=groups).relu()
        return (conv(f'{name}.body.4', y, padding=0) + x).relu()

    def cascade(prefix, unit, x):
        c1 = torch.cat([x, unit(1, x)], 1)
        o1 = conv(f'{prefix}c1.body.0', c1, 0).relu()
        c2 = torch.cat([c1, unit(2, o1)], 1)
        o2 = conv(f'{prefix}c2.body.0', c2, 0).relu()
        c3 = torch.cat([c2, unit(3, o2)], 1)
        return conv(f'{prefix}c3.body.0', c3, 0).relu()

    def block(number, x):
        prefix = f'b{number}.'
        return cascade(prefix, lambda i, x: residual(f'{prefix}b{i if groups == 1 else 1}', x), x)

    x = cascade('', block, conv('entry', conv('sub_mean.shifter', x, 0)))
    for layer, factor in {2: ((0, 2), ), 3: ((0, 3), ), 4: ((0, 2), (3, 2))}[scale]:
        x = F.pixel_shuffle(conv(f'upsample.up{scale}.body.{layer}', x, groups=groups).relu(), factor)
    return conv('add_mean.shifter', conv('exit', x), 0)


@pytest.mark.parametrize('name', ['CARN', 'CARN_M'])
def test_published_carn_weights_load_by_selection(name):
    nets = {scale: build(name, num_block=3, upscale=scale).double().eval() for scale in (2, 3, 4)}
    published = {}
    for net in nets.values():
        published.update(net.state_dict())
    assert set(published) == published_carn_keys(mobile=name == 'CARN_M')
    published = {k: v if 'mean' in k else v + 0.05 * torch.rand_like(v) for k, v in published.items()}
    lq = torch.rand(1, 3, 6, 5, dtype=torch.float64)
    for scale, net in nets.items():
        net.load_state_dict({k: v for k, v in published.items()
                             if not k.startswith('upsample.') or k.startswith(f'upsample.up{scale}.')}, strict=True)
        expected = carn_written_out(published, lq, scale, groups=4 if name == 'CARN_M' else 1)
        torch.testing.assert_close(net(lq), expected, rtol=1e-10, atol=1e-10)


def test_carn_mean():
    # DIV2K's mean goes off and on again: what is between sees 0 for it
    for channels, mean in ((3, [0.4488, 0.4371, 0.4040]), (1, [(0.4488 + 0.4371 + 0.4040) / 3])):
        net = build('CARN', num_in_ch=channels, num_out_ch=channels)
        mean = torch.tensor(mean).view(1, -1, 1, 1).expand(1, channels, 4, 4)
        torch.testing.assert_close(net.sub_mean(mean), torch.zeros_like(mean), rtol=0, atol=1e-7)
        torch.testing.assert_close(net.add_mean(torch.zeros_like(mean)), mean, rtol=0, atol=1e-7)


def test_idn_block_written_out():
    block = randomise_biases(build('IDN')).body[0].double()
    w = list(block.state_dict().values())
    x = torch.randn(1, 16, 5, 4, dtype=torch.float64)

    def conv(x, layer, groups=1):
        weight = w[2 * layer]
        y = F.conv2d(x, weight, w[2 * layer + 1], padding=weight.shape[-1] // 2, groups=groups)
        return torch.where(y > 0, y, 0.05 * y)

    p = conv(conv(conv(x, 0), 1, 4), 2)
    below = conv(conv(conv(p[:, 4:], 3), 4, 4), 5)
    expected = conv(torch.cat([x, p[:, :4]], 1) + below, 6)
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_idn_upsampler_is_the_released_one(scale):
    # The released network pads by 8 and has scale * (h - 1) + 1 rows; its test script adds them to the bicubic image
    # without the first scale - 1.
    upsample = randomise_biases(_TransposedConv(4, 1, scale)).double()
    x = torch.randn(1, 4, 6, 5, dtype=torch.float64)
    released = F.conv_transpose2d(x, upsample.conv.weight, upsample.conv.bias, stride=scale, padding=8)
    assert released.shape[2:] == (5 * scale + 1, 4 * scale + 1)
    ours = upsample(x)
    assert ours.shape[2:] == (6 * scale, 5 * scale)
    torch.testing.assert_close(ours[..., scale - 1:, scale - 1:], released, rtol=0, atol=1e-12)


# --- DPDNN

@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize('size', [(1, 1), (2, 5), (9, 8)])
def test_downsampling_and_its_adjoint(scale, size):
    degradation = BicubicDownsampling(2, scale).double()
    x = torch.randn(3, 2, scale * size[0], scale * size[1], dtype=torch.float64)
    y = torch.randn(3, 2, *size, dtype=torch.float64)
    stock = F.interpolate(x, size, mode='bicubic', antialias=True)
    torch.testing.assert_close(degradation(x), stock, rtol=0, atol=1e-6)
    left, right = scale**2 * (degradation(x) * y).sum(), (x * degradation.adjoint(y)).sum()
    assert (left - right).abs() < 1e-12 * (x.norm() * y.norm() * scale**2)


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_downsampling_is_matlabs_and_its_adjoint_bicubic_interpolation(scale):
    degradation = BicubicDownsampling(1, scale).double()
    x = torch.rand(1, 1, 12 * scale, 12 * scale, dtype=torch.float64)
    matlab = imresize(x[0, 0].numpy()[..., None].astype(np.float32), 1 / scale)[..., 0]
    inner = (..., slice(2, -2), slice(2, -2))  # beyond the reach of the border, which MATLAB mirrors
    np.testing.assert_allclose(degradation(x)[0, 0].numpy()[inner], matlab[inner], atol=2e-6)

    y = torch.rand(1, 1, 12, 12, dtype=torch.float64)
    inner = (..., slice(4 * scale, -4 * scale), slice(4 * scale, -4 * scale))
    up = F.interpolate(y, scale_factor=scale, mode='bicubic', antialias=True)
    torch.testing.assert_close(degradation.adjoint(y)[inner], up[inner], rtol=0, atol=1e-6)


@pytest.mark.parametrize('scale', [2, 3])
def test_dpdnn_iterations_written_out(scale):
    h, w = 4, 3
    net = build('DPDNN', num_iter=2, upscale=scale).double()
    net.denoiser = nn.Conv2d(3, 3, 1, bias=False).double()  # f(x) = x + Bx, that can be written out
    with torch.no_grad():
        net.delta.copy_(torch.tensor([0.3, 0.7]))
        net.eta.copy_(torch.tensor([0.9, 0.2]))
    mixing = net.denoiser.weight.detach()[:, :, 0, 0].numpy()
    # A as a matrix, from stock torch's antialiased bicubic of every unit image
    units = torch.eye(h * w * scale**2, dtype=torch.float64).view(-1, 1, scale * h, scale * w)
    matrix = F.interpolate(units, (h, w), mode='bicubic', antialias=True).flatten(1).T.numpy()

    lq = torch.rand(1, 3, h, w, dtype=torch.float64)
    y = lq[0].flatten(1).numpy()
    x = F.interpolate(lq, scale_factor=scale, mode='bicubic', align_corners=False)[0].flatten(1).numpy()
    for delta, eta in ((0.3, 0.9), (0.7, 0.2)):
        denoised = x + mixing @ x
        gradient = scale**2 * (x @ matrix.T - y) @ matrix
        x = x - delta * (gradient + eta * (x - denoised))
    got = net(lq)[0].flatten(1).detach().numpy()
    np.testing.assert_allclose(got, x, rtol=0, atol=2e-6)  # the kernel is kept in float32


@pytest.mark.parametrize('size', [(8, 16), (13, 7), (1, 3)])
def test_dpdnn_denoiser_written_out(size):
    denoiser = randomise_biases(build('DPDNN')).denoiser.double()
    w = denoiser.state_dict()
    x = torch.rand(1, 3, *size, dtype=torch.float64)
    expected = x

    def conv(name, x, **options):
        weight = w[f'{name}.weight']
        return F.conv2d(x, weight, w[f'{name}.bias'], padding=weight.shape[-1] // 2, **options)

    skips = []
    for level in range(3):
        for layer in (0, 2, 4):
            expected = conv(f'encoders.{level}.body.{layer}', expected).relu()
        skips.append(expected)
        expected = conv(f'encoders.{level}.down.0', expected, stride=2).relu()
    expected = conv('bottom.0', expected).relu()
    for level in range(3):
        skip = skips.pop()
        up = nn.ConvTranspose2d(8, 8, 3, 2, 1, bias=False).double()
        up.weight = nn.Parameter(w[f'decoders.{level}.up.weight'])
        expected = torch.cat([up(expected, output_size=skip.shape[2:]), skip], 1)  # torch's own way to a wanted size
        expected = conv(f'decoders.{level}.fuse.0', expected).relu()
        for layer in (0, 2, 4, 6):
            expected = conv(f'decoders.{level}.body.{layer}', expected).relu()
    torch.testing.assert_close(denoiser(x), conv('conv_last', expected), rtol=0, atol=1e-12)
