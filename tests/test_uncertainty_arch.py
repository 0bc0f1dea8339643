"""UncertaintyNet around BasicSR's networks, and the ways to name a wrong tap."""
import copy
import re

import pytest
import torch
from basicsr.archs import build_network
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from udl_basicsr.archs import UDLHead, UncertaintyNet
from udl_basicsr.archs.bounded import Bounded
from udl_basicsr.archs.taps import TapError, find_tap
from udl_basicsr.losses import ESULoss, EULoss

EDSR = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 2}
SWINIR = {'type': 'SwinIR', 'in_chans': 3, 'img_size': 16, 'window_size': 8, 'depths': [2, 2], 'embed_dim': 12,
          'num_heads': [2, 2], 'mlp_ratio': 2}
BACKBONES = {
    **{f'EDSR-x{s}': {**EDSR, 'upscale': s} for s in (2, 3, 4)},
    'MSRResNet-gray': {'type': 'MSRResNet', 'num_in_ch': 1, 'num_out_ch': 1, 'num_feat': 8, 'num_block': 2,
                       'upscale': 2},
    **{f'RCAN-x{s}': {'type': 'RCAN', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_group': 2, 'num_block': 1,
                      'squeeze_factor': 4, 'upscale': s} for s in (2, 4)},
    **{f'MSRResNet-x{s}': {'type': 'MSRResNet', 'num_feat': 8, 'num_block': 2, 'upscale': s} for s in (2, 3, 4)},
    'SwinIR-x2': {**SWINIR, 'upscale': 2, 'upsampler': 'pixelshuffle'},
    'SwinIR-light-x4': {**SWINIR, 'upscale': 4, 'upsampler': 'pixelshuffledirect'},
    **{f'RRDBNet-x{s}': {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'scale': s, 'num_feat': 8, 'num_block': 1,
                         'num_grow_ch': 4} for s in (2, 4)},
}
pytestmark = pytest.mark.filterwarnings('ignore:torch.meshgrid')


def image(options, size=(16, 24)):
    return torch.rand(2, options.get('num_in_ch', 3), *size)


@pytest.mark.parametrize('name', BACKBONES)
def test_any_backbone(name):
    options = BACKBONES[name]
    net = UncertaintyNet(copy.deepcopy(options))
    scale = options.get('upscale', options.get('scale'))
    lq = image(options)
    mean, log_scale = net(lq)
    assert mean.shape == log_scale.shape == (2, lq.shape[1], 16 * scale, 24 * scale)
    assert net.scale == scale

    # the mean is the bare network's, bit for bit, and the bare network is BasicSR's own
    net.eval()
    stock = build_network(copy.deepcopy(options)).eval()
    stock.load_state_dict(net.mean_network.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(net(lq)[0], stock(lq))
        assert torch.equal(net.log_scale(lq), net(lq)[1])
    # a gradient reaches every parameter: nothing for DDP to miss
    net.train()
    mean, log_scale = net(lq)
    ESULoss()(mean, torch.rand_like(mean), log_scale).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []


def test_s_is_the_head_of_the_features_written_out():
    net = UncertaintyNet({**EDSR, 'upscale': 3}).double().eval()
    body = net.mean_network
    lq = torch.rand(1, 3, 7, 9, dtype=torch.float64)
    with torch.no_grad():
        first = body.conv_first((lq - body.mean) * body.img_range)
        features = body.conv_after_body(body.body(first.clone())) + first  # BasicSR: res += x
        up = features.repeat_interleave(3, -1).repeat_interleave(3, -2)
        for conv in (net.head.conv1, net.head.conv2, net.head.conv3):
            out = F.conv2d(up, conv.weight, conv.bias, padding=1)
            up = torch.where(out > 0, out, out.exp() - 1)
        torch.testing.assert_close(net.log_scale(lq), up, rtol=1e-12, atol=1e-12)


def test_log_scale_never_computes_the_tail():
    net = UncertaintyNet({**EDSR, 'upscale': 2})
    ran = []
    for name in ('upsample', 'conv_last'):
        net.mean_network.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    net.log_scale(torch.rand(1, 3, 8, 8))
    assert ran == []
    net(torch.rand(1, 3, 8, 8))
    assert ran == ['upsample', 'conv_last']


@pytest.mark.parametrize('kept', [False, True])
def test_features_that_the_network_writes_over_are_read_as_they_were(kept):
    """A tap at a ReLU in place: s is that of the convolution before it, in training and where it is wanted alone."""
    net = UncertaintyNet({'type': 'VDSR', 'num_feat': 8, 'num_conv': 3, 'upscale': 2}, tap='body.1')
    net = net.keep_hook() if kept else net
    lq = torch.rand(2, 3, 7, 9)
    up = F.interpolate(lq, scale_factor=2, mode='bicubic', align_corners=False)
    expected = net.head(net.mean_network.body[0](up))
    mean, log_scale = net(lq)
    torch.testing.assert_close(log_scale, expected, rtol=0, atol=0)
    torch.testing.assert_close(net.log_scale(lq), expected, rtol=0, atol=0)
    assert torch.equal(mean, net.mean_network(lq))
    first = net.mean_network.body[0].weight
    gradients = [torch.autograd.grad(s.sum(), first, retain_graph=True)[0] for s in (log_scale, expected)]
    torch.testing.assert_close(*gradients)


def test_nothing_stays_on_the_backbone():
    net = UncertaintyNet({**EDSR, 'upscale': 2})
    net(torch.rand(1, 3, 8, 8))
    net.log_scale(torch.rand(1, 3, 8, 8))
    assert all(not m._forward_pre_hooks for m in net.mean_network.modules())


def test_an_error_in_the_backbone_is_not_swallowed():
    net = UncertaintyNet({**EDSR, 'upscale': 2})
    with pytest.raises(RuntimeError, match='must match the size'):
        net.log_scale(torch.rand(1, 5, 8, 8))
    assert all(not m._forward_pre_hooks for m in net.mean_network.modules())


@pytest.mark.parametrize(('tap', 'expected'), [
    ('upsampel', r"no module 'upsampel'. Did you mean 'upsample'\?.*conv_first.*body.*upsample.*conv_last"),
    ('body.0.relu.x', "no module 'body.0.relu.x'"),
])
def test_wrong_tap_lists_those_that_exist(tap, expected):
    with pytest.raises(ValueError, match=expected):
        UncertaintyNet({**EDSR, 'upscale': 2}, tap=tap)


def test_tap_that_is_no_feature_map():
    with pytest.raises(ValueError, match=r"'layers.0' of SwinIR reads .*conv_after_body"):
        UncertaintyNet(BACKBONES['SwinIR-x2'], tap='layers.0')


def test_unknown_network_without_a_tap_is_told_what_there_is():
    ridnet = {'type': 'RIDNet', 'in_channels': 3, 'mid_channels': 16, 'out_channels': 3, 'num_block': 1}
    with pytest.raises(ValueError, match=r'RIDNet has no default.*tapped: .*tail'):
        UncertaintyNet(ridnet)
    net = UncertaintyNet(ridnet, tap='tail')
    assert net.scale == net.head.scale == 1


class Padding(nn.Module):
    """Enlarges twice; pads to a multiple of 8 and by 8 more, as CRAFT does; its tap is its own."""
    default_tap = ('none', 'parts.-1')

    def __init__(self, num_in_ch=3):
        super().__init__()
        self.parts = nn.ModuleList([nn.Conv2d(num_in_ch, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 12, 3, 1, 1)])

    def forward(self, x):
        height, width = x.shape[-2:]
        x = F.pad(x, (0, 8 + -width % 8, 0, 8 + -height % 8))
        for part in self.parts:
            x = part(x)
        return F.pixel_shuffle(x, 2)[..., :2 * height, :2 * width]


class Squares(Padding):
    """Takes 48 x 48 alone, and looks at values, which the meta device has not."""

    def forward(self, x):
        if x.shape[-2:] != (48, 48) or not bool(x.isfinite().all()):
            raise ValueError('48 x 48, please')
        for part in self.parts:
            x = part(x)
        return F.pixel_shuffle(x, 2)


def test_the_scale_is_right_where_a_network_pads():
    tap = find_tap(Padding(), {'type': 'Padding'})
    assert (tap.name, tap.channels, tap.enlargement, tap.out_channels, tap.scale) == ('parts.2', 4, 2, 3, 2)


def test_a_network_that_takes_squares_only_is_run_on_one():
    tap = find_tap(Squares(), {'type': 'Squares'})
    assert (tap.name, tap.enlargement, tap.scale) == ('parts.2', 2, 2)


def test_a_network_that_cannot_be_run_is_answered_with_why():
    class Never(Padding):
        def forward(self, x):
            raise RuntimeError('out of order')

    with pytest.raises(ValueError, match=r'Never cannot be run .* out of order'):
        find_tap(Never(), {'type': 'Never'})


@pytest.mark.parametrize('on_meta', [True, False])
def test_finding_a_tap_changes_nothing(on_meta):
    net = (Padding if on_meta else Squares)()
    net.train()
    net.parts[1].eval()  # a part may be in another mode than the whole
    before = copy.deepcopy(net.state_dict())
    find_tap(net, {'type': 'any'})
    assert [net.training, *(p.training for p in net.parts)] == [True, True, False, True]
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert all(not m._forward_pre_hooks for m in net.modules())


def test_a_large_network_is_not_computed_to_find_its_tap():
    class Counting(Padding):
        def forward(self, x):
            seen.append(x.device.type)
            return super().forward(x)

    seen = []
    find_tap(Counting(), {'type': 'Counting'})
    assert seen == ['meta']


def test_a_subclass_of_a_known_network_has_its_tap():
    from basicsr.archs.edsr_arch import EDSR as Known

    class Mine(Known):
        pass

    class EDSR_(nn.Module):  # no relation, whatever its name
        forward = Padding.forward

        def __init__(self):
            super().__init__()
            self.parts = Padding().parts

    EDSR_.__name__ = 'EDSR'
    assert find_tap(Mine(3, 3, num_feat=4, num_block=1, upscale=2), {'type': 'Mine'}).name == 'upsample'
    with pytest.raises(ValueError, match='EDSR has no default'):
        find_tap(EDSR_(), {'type': 'EDSR'})


def test_a_network_that_makes_no_image():
    with pytest.raises(ValueError, match='VGGStyleDiscriminator cannot be'):
        UncertaintyNet({'type': 'VGGStyleDiscriminator', 'num_in_ch': 3, 'num_feat': 4}, tap='conv0_0')


@pytest.mark.parametrize('scale', [1, 2, 3, 4])
def test_head(scale):
    head = UDLHead(8, 3, scale, num_feat=6)
    s = head(torch.randn(2, 8, 5, 4) * 100)
    assert s.shape == (2, 3, 5 * scale, 4 * scale)
    assert s.min() >= -1
    assert [m.weight.shape[:2] for m in head.modules() if isinstance(m, nn.Conv2d)] == [(6, 8), (6, 6), (3, 6)]


def test_a_constant_uncertainty_is_the_mean_error_and_trains_the_image_as_l1():
    net = UncertaintyNet(copy.deepcopy(BACKBONES['EDSR-x2']), head={'type': 'ConstantHead'})
    lq, gt = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16)
    mean, log_scale = net(lq)
    assert mean.shape == log_scale.shape == net.log_scale(lq).shape
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        net.head.log_scale.fill_(2.2957)  # in bfloat16 2.2969
        assert net.log_scale(lq).unique().item() == pytest.approx(2.2957, abs=1e-6)
    error = 255 * (gt - mean).abs().mean().item()

    # the gradient to the image is L1's times one number
    with torch.no_grad():
        net.head.log_scale.fill_(0.5)
    mean, log_scale = net(lq)
    eu = torch.autograd.grad(EULoss()(mean, gt, log_scale), mean, retain_graph=True)[0]
    l1 = torch.autograd.grad(F.l1_loss(mean, gt), mean)[0]
    torch.testing.assert_close(eu, l1 * 255 * torch.tensor(-0.5).exp())

    # and s comes to rest at the mean error
    optimizer = torch.optim.SGD([net.head.log_scale], lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        EULoss()(mean.detach(), gt, net.head(lq)).backward()
        optimizer.step()
        optimizer.param_groups[0]['lr'] = min(1., 0.5 + net.head.log_scale.exp().item() / error)
    assert net.head.log_scale.exp().item() == pytest.approx(error, rel=1e-3)


class LooksAtValues(nn.Module):
    """Cannot run on torch's meta device, and asks for much of a large image."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.up = nn.Conv2d(width, 12, 1)

    def forward(self, x):
        x = x + x.amax().item()
        return F.pixel_shuffle(self.up(self.conv(x)), 2)


def test_a_network_that_is_run_with_true_values_is_bounded(monkeypatch):
    options = {'type': 'LooksAtValues'}
    network = LooksAtValues(8)
    assert find_tap(network, options, 'up').channels == 8
    with Bounded() as bounded, torch.no_grad():
        image = torch.rand(1, 3, 16, 32)
        out = network(image)
    assert bounded.operations == 2 * 16 * 32 * (27 * 8 + 8 * 12)
    assert torch.equal(out, network(image))
    with pytest.raises(TapError, match=r'LooksAtValues cannot be run on an image of 16x32 pixels: it makes a tensor of '
                                       r'1\.91 GiB'):
        find_tap(LooksAtValues(10**6), options, 'up')
    monkeypatch.setattr('udl_basicsr.archs.bounded.MOST_OPERATIONS', bounded.operations - 1)
    with pytest.raises(TapError, match=r'it takes more than 3\.2e'):
        find_tap(network, options, 'up')


def test_a_deep_network_that_fails_is_not_run_on_every_size():
    network, shapes = build_network({**EDSR, 'num_block': 500, 'num_out_ch': 5, 'num_feat': 4, 'upscale': 2}), []
    network.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape))
    with pytest.raises(TapError, match=r'EDSR cannot be run on a 3-channel image .*tensor a \(5\) must match'):
        find_tap(network, EDSR)
    assert len(shapes) < 6


# ------------------------------------------------------------------------------------------- networks that are built


def test_a_network_that_is_built_is_taken_as_it_is():
    network = build_network({**EDSR, 'upscale': 2}).double().train()
    net = UncertaintyNet(network, {'type': 'UDLHead', 'num_feat': 6})
    assert net.mean_network is network
    assert (net.tap, net.scale, net.head.conv1.weight.shape[:2]) == ('upsample', 2, (6, 8))
    lq = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    mean, log_scale = net(lq)  # the head has the backbone's type of numbers
    assert torch.equal(mean, network(lq))
    assert log_scale.shape == mean.shape
    other = UncertaintyNet({**EDSR, 'upscale': 2}, {'type': 'UDLHead', 'num_feat': 6}).double()
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(lq)[1], log_scale)


def test_a_head_that_is_built_is_taken_as_it_is():
    head = nn.Sequential(nn.BatchNorm2d(8), nn.Upsample(scale_factor=2), nn.Conv2d(8, 3, 3, padding=1))
    before = copy.deepcopy(head.state_dict())
    for backbone in ({**EDSR, 'upscale': 2}, build_network({**EDSR, 'upscale': 2})):
        net = UncertaintyNet(backbone, head)
        assert net.head is head
        assert head.training
        assert head[0].training
        assert all(torch.equal(before[key], value) for key, value in head.state_dict().items())
        assert net(torch.rand(1, 3, 8, 8))[1].shape == (1, 3, 16, 16)
        head.load_state_dict(before)


@pytest.mark.parametrize(('backbone', 'head', 'error', 'said'), [
    ('EDSR', None, TypeError, 'backbone: expected {type: ..., ...} or a network, got str'),
    (EDSR, 3, TypeError, 'head: expected {type: ..., ...} or a network, got int'),
    (EDSR, nn.Conv2d(5, 3, 3), TapError, "head: Conv2d cannot read the 8 channels that the tap 'upsample' gives: "),
    (EDSR, nn.Conv2d(8, 3, 3, padding=1), TapError, 'head: Conv2d makes (1, 3, 8, 8) of (1, 8, 8, 8), expected '
     '(1, 3, 32, 32)'),
    (EDSR, {'num_out_ch': 1}, TapError, "head.num_out_ch: 1 is not what the network has at the tap 'upsample', 3: "),
    (Padding.__base__(), None, TapError, 'Module cannot be run'),
])
def test_what_is_no_network_or_does_not_fit_is_refused(backbone, head, error, said):
    with pytest.raises(error, match=re.escape(said)):
        UncertaintyNet(backbone, head)


@pytest.mark.parametrize('reentrant', [False, True])
def test_a_tap_whose_features_have_lost_their_gradient_is_refused(reentrant):
    """Within a checkpoint of the older kind the head had no gradient for the network, without a word."""

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.up = nn.Conv2d(3, 8, 3, 1, 1), nn.Sequential(nn.Conv2d(8, 12, 3, 1, 1), nn.PixelShuffle(2))

        def forward(self, lq):
            return checkpoint(self.up, self.body(lq), use_reentrant=reentrant)

    network = UncertaintyNet(Checkpointed(), tap='up')
    lq = torch.rand(1, 3, 8, 8)
    network.log_scale(lq)
    with torch.no_grad():
        network(lq)
    for each in (network.eval(), UncertaintyNet(Checkpointed(), tap='up', detach='all')):
        each(lq)
    network.train()
    if reentrant:
        with pytest.raises(TapError, match="'up' of Checkpointed runs without gradients"):
            network(lq)
    else:
        network(lq)[1].sum().backward()
        assert network.mean_network.body.weight.grad.abs().max() > 0
