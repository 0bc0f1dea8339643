"""Gradients of channels_last maps: torch's, whatever the shapes, and ours only where they pay."""
import pytest
import torch
from basicsr.archs.edsr_arch import EDSR
from torch import nn
from torch.nn import functional as F

from udl_basicsr.archs import UDLHead, UncertaintyNet
from udl_basicsr.functional import channels_last
from udl_basicsr.functional.channels_last import FastGradients, weight_gradient
from udl_basicsr.models.guard import clip_grad_norm
from udl_basicsr.utils import processor

LAST = torch.channels_last


@pytest.mark.parametrize('memory_format', [LAST, torch.contiguous_format])
@pytest.mark.parametrize(('batch', 'channels', 'out', 'size', 'kernel', 'padding'), [
    (2, 9, 16, (11, 9), (3, 3), (1, 1)),
    (1, 9, 3, (40, 30), (3, 3), (1, 1)),  # an image
    (2, 5, 12, (50, 20), (2, 2), (1, 1)),  # the upsampled convolution's
    (1, 4, 9, (31, 17), (3, 5), (0, 2)),
    (2, 4, 3, (31, 17), (5, 1), (2, 0)),
    (1, 4, 8, (9, 400), (7, 7), (3, 3)),  # several blocks, a padding higher than some
    (1, 4, 8, (5, 900), (3, 3), (1, 1)),  # rows longer than a block
    (1, 4, 4, (8, 8), (2, 2), (2, 2)),  # a padding larger than the kernel needs
    (1, 4, 8, (3, 400), (1, 3), (2, 1)),  # the same, and blocks that lie in it
    (1, 4, 8, (40, 3), (1, 7), (0, 2)),  # taps that lie beside the map
])
def test_it_is_the_gradient(batch, channels, out, size, kernel, padding, memory_format):
    x = torch.randn(batch, channels, *size, dtype=torch.float64).contiguous(memory_format=memory_format)
    weight = torch.randn(out, channels, *kernel, dtype=torch.float64, requires_grad=True)
    y = F.conv2d(x, weight, padding=padding)
    grad = torch.randn_like(y).contiguous(memory_format=memory_format)
    expected, = torch.autograd.grad(y, weight, grad)
    torch.testing.assert_close(weight_gradient(x, grad, kernel, padding), expected, rtol=1e-11, atol=1e-11)


def test_to_an_image_in_bfloat16_it_is_the_gradient_rounded():
    """Over several pictures: sums of bfloat16 would lose what the last ones add."""
    x, grad = torch.randn(16, 32, 12, 12).bfloat16(), torch.randn(16, 3, 12, 12).bfloat16()
    weight = torch.zeros(3, 32, 3, 3, dtype=torch.float64, requires_grad=True)
    expected, = torch.autograd.grad(F.conv2d(x.double(), weight, padding=1), weight, grad.double())
    mine = weight_gradient(x, grad, (3, 3), (1, 1))
    assert mine.dtype == torch.bfloat16
    # rounded twice: each picture's, and the sum
    assert (mine.double() - expected).abs().max() < 2**-8 * expected.abs().max()


def gradients(net: nn.Module, lq: torch.Tensor, *modes) -> list[torch.Tensor]:
    lq = lq.detach().requires_grad_()
    for mode in modes:
        mode.__enter__()
    mean, s = net(lq)
    for mode in modes:
        mode.__exit__(None, None, None)
    (mean.square().mean() + s.exp().mean()).backward()
    found = [lq.grad, *(p.grad for p in net.parameters())]
    net.zero_grad()
    return found


def test_a_network_has_the_same_gradients():
    """Of all its layers, as near to float64's as torch's own."""
    net = UncertaintyNet(EDSR(3, 3, num_feat=40, num_block=1, upscale=2)).to(memory_format=LAST)
    lq = torch.rand(1, 3, 44, 44).contiguous(memory_format=LAST)
    stock, ours = gradients(net, lq), gradients(net, lq, FastGradients('AVX2'))
    exact = gradients(net.double(), lq.double())
    differ = 0
    for theirs, mine, expected in zip(stock, ours, exact, strict=True):
        scale = expected.abs().max()
        errors = [(value - expected).abs().max() / scale for value in (theirs, mine)]
        assert errors[1] < max(2 * errors[0], 2e-6)
        differ += not torch.equal(theirs, mine)
    assert differ >= 5  # those that were computed otherwise


@pytest.mark.parametrize(('vectors', 'change', 'ours'), [
    ('AVX2', {}, True), ('AVX2', {'memory_format': torch.contiguous_format}, False), ('AVX2', {'channels': 16}, False),
    ('AVX2', {'size': 20}, False), ('AVX2', {'stride': 2}, False), ('AVX2', {'groups': 2}, False),
    ('AVX2', {'dilation': 2}, False), ('AVX2', {'dtype': torch.bfloat16}, False), ('AVX2', {'kernel': 1}, False),
    ('AVX2', {'frozen': True}, False), ('AVX2', {'amp': True}, False), ('AVX2', {'padding': 'same'}, False),
    ('AVX2', {'out': 3}, True), ('AVX2', {'bias': False}, True),
    ('AVX512', {}, False), ('AVX512', {'out': 3}, True), ('AVX512', {'out': 3, 'amp': True}, True),
    ('AVX512', {'out': 3, 'amp': True, 'bias': False}, True), ('AVX512', {'amp': True}, False),
    ('AVX512', {'out': 3, 'dtype': torch.bfloat16}, True), ('AVX512', {'out': 3, 'dtype': torch.float64}, False),
    ('AVX512', {'out': 3, 'dtype': torch.float64, 'amp': True}, False), ('AVX512', {'out': 3, 'stride': 2}, False),
    ('AMX', {'out': 3}, True), ('AMX', {'out': 3, 'amp': True}, False), ('AMX', {}, False),
    ('DEFAULT', {'out': 3}, False), ('DEFAULT', {}, False)])
def test_others_are_left_to_torch(vectors, change, ours):
    channels, size = change.get('channels', 48), change.get('size', 40)
    conv = nn.Conv2d(channels, change.get('out', 48), change.get('kernel', 3), change.get('stride', 1),
                     change.get('padding', 1), change.get('dilation', 1), change.get('groups', 1),
                     change.get('bias', True), dtype=change.get('dtype'))
    conv.requires_grad_(not change.get('frozen'))
    x = torch.rand(1, channels, size, size, dtype=change.get('dtype')).requires_grad_()
    x = x.contiguous(memory_format=change.get('memory_format', LAST))
    mode = FastGradients('AVX512', tiles=True) if vectors == 'AMX' else FastGradients(vectors)
    with mode, torch.autocast('cpu', enabled=change.get('amp', False)):
        y = conv(x)
        assert y.dtype == F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation,
                                   conv.groups).dtype
    with torch.autocast('cpu', enabled=change.get('amp', False)):
        torch.testing.assert_close(y, conv(x))
    assert ('_Convolution' in type(y.grad_fn).__name__) == ours


@pytest.mark.parametrize(('batch', 'one'), [(1, 1), (1, [1]), (1, (1, 1)), (0, 1)])
def test_it_takes_what_torch_takes(batch, one):
    """A padding, stride or dilation of one number, and a batch of nothing."""
    x = torch.rand(batch, 48, 40, 40).contiguous(memory_format=LAST)
    weight = torch.rand(48, 48, 3, 3, requires_grad=True)
    results = []
    for mode in (FastGradients('AVX2'), torch.autocast('cpu', enabled=False)):
        with mode:
            y = F.conv2d(x, weight, None, one, one, one)
        results.append([y, *torch.autograd.grad(y.sum(), weight)])
    torch.testing.assert_close(*results)


def test_a_backward_pass_under_autocast_keeps_float32():
    """Of a forward pass outside of it; torch's own convolutions do."""
    x, weight = torch.rand(1, 48, 40, 40).contiguous(memory_format=LAST), torch.rand(3, 48, 3, 3, requires_grad=True)
    results = []
    for mode in (FastGradients('AVX2'), torch.autocast('cpu', enabled=False)):
        with mode:
            y = F.conv2d(x, weight, padding=1)
        with torch.autocast('cpu'):
            results += torch.autograd.grad(y, weight, torch.ones_like(y))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_it_can_be_differentiated_again():
    """A loss of someone's may look at the gradient."""
    conv = nn.Conv2d(32, 32, 3, padding=1)
    x = torch.rand(1, 32, 56, 56).contiguous(memory_format=LAST).requires_grad_()
    results = []
    for mode in (FastGradients('AVX2'), torch.autocast('cpu', enabled=False)):
        with mode:
            y = conv(x).square().sum()
        slope, = torch.autograd.grad(y, conv.weight, create_graph=True)
        results.append(torch.autograd.grad(slope.square().sum(), x)[0])
    assert results[0].abs().max() > 0
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('memory_format', [LAST, torch.contiguous_format])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(('shape', 'factor'), [
    ((2, 128, 5, 7), 2), ((1, 288, 4, 3), 3), ((2, 512, 3, 2), 4), ((2, 32, 4, 5), 1), ((1, 128, 1, 1), 2),
    ((2, 124, 5, 7), 2), ((2, 3, 4, 5), 1), ((128, 5, 7), 2)])
def test_the_gradient_of_a_pixel_shuffle_is_the_same_bit_for_bit(shape, factor, dtype, memory_format):
    x = torch.randn(shape, dtype=dtype)
    x = (x.contiguous(memory_format=memory_format) if x.dim() == 4 else x).requires_grad_()
    weights = torch.randn_like(torch.pixel_shuffle(x, factor)).detach()
    results = []
    for mode in (FastGradients('AVX2'), torch.autocast('cpu', enabled=False)):
        with mode:
            y = nn.PixelShuffle(factor)(x) if factor != 3 else F.pixel_shuffle(x, upscale_factor=factor)
        for last in (False, True):
            grad = weights.contiguous(memory_format=LAST) if last and weights.dim() == 4 else weights
            results += [y, *torch.autograd.grad(y, x, grad, retain_graph=True)]
    assert all(map(torch.equal, results[:4], results[4:]))
    assert ('_PixelShuffle' in type(results[0].grad_fn).__name__) == (
        len(shape) == 4 and shape[1] >= 32 * factor**2 and x.is_contiguous(memory_format=LAST))


def test_a_pixel_shuffle_can_be_differentiated_otherwise():
    """Twice, forward, and by torch.func, as what was compiled in part."""
    x = torch.randn(1, 128, 5, 7, dtype=torch.float64).contiguous(memory_format=LAST).requires_grad_()
    tangent = torch.randn_like(x)

    def shuffled(x):
        return torch.pixel_shuffle(x, 2)

    with FastGradients('AVX2'):
        y = shuffled(x)
        assert '_PixelShuffle' in type(y.grad_fn).__name__
        slope, = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        again, = torch.autograd.grad(slope.square().sum(), x)
        by_func = torch.func.grad(lambda x: shuffled(x).pow(3).sum())(x)
        with torch.autograd.forward_ad.dual_level():
            dual = shuffled(torch.autograd.forward_ad.make_dual(x, tangent))
            forward = torch.autograd.forward_ad.unpack_dual(dual).tangent
        compiled = torch.compile(shuffled, backend='eager')(x)
        of_compiled, = torch.autograd.grad(compiled.pow(3).sum(), x)
    torch.testing.assert_close(again, 36 * x.detach()**3)  # of (3 x^2)^2
    torch.testing.assert_close(by_func, 3 * x.detach()**2)
    torch.testing.assert_close(of_compiled, 3 * x.detach()**2)
    assert torch.equal(forward, shuffled(tangent))


@pytest.mark.parametrize(('vectors', 'tiles', 'amp', 'rounding'), [
    ('AVX2', False, '~', 1e-5), ('AVX512', False, '~', 1e-5), ('AVX512', False, 'bf16', 2**-7),
    ('AVX512', True, '~', 1e-5), ('AVX512', True, 'bf16', 2**-7)])
def test_a_step_takes_it_where_it_pays_and_is_the_same(vectors, tiles, amp, rounding, project, monkeypatch):
    networks, taken = [], set()
    monkeypatch.setattr(processor, 'has_tiles', lambda: tiles)
    monkeypatch.setattr(channels_last, 'weight_gradient', lambda *args: taken.add(known) or weight_gradient(*args))
    for known in (vectors, 'DEFAULT'):
        monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda known=known: known)
        torch.manual_seed(0)
        model = project.model('esu', 'network_g:num_feat=48', 'train:channels_last=true', 'train:accumulate=2',
                              f'train:amp={amp}')
        assert isinstance(model.fast_gradients, FastGradients) == (known == vectors)
        torch.manual_seed(1)
        model.feed_data({'lq': torch.rand(2, 3, 28, 28), 'gt': torch.rand(2, 3, 56, 56)})
        model.optimize_parameters(1)
        networks.append([p.grad for p in model.trained.parameters()])
    assert taken == (set() if tiles and amp == 'bf16' else {vectors})
    for mine, theirs in zip(*networks, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=rounding * float(theirs.abs().max()))


def test_elu_in_its_place_has_the_slope():
    """That of s by all features, from far below 0 to far above, beside float64's."""
    head = UDLHead(8, 3, 2)
    x = torch.linspace(-100, 100, 8 * 36).view(1, 8, 6, 6)
    results = []
    for number in (torch.float32, torch.float64):
        features = x.to(number, copy=True).requires_grad_()
        out = head.to(number)(features)
        head.zero_grad()
        out.sum().backward()
        results.append([out.detach().double(), features.grad.double(), *(p.grad.double() for p in head.parameters())])
    for mine, expected in zip(*results, strict=True):
        assert (mine - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize('largest', [None, 0.5, 1e9])
def test_the_norm_is_torchs_and_clips_alone_where_asked(largest):
    values = [torch.randn(3, 4), torch.randn(7), torch.randn(2, 2)]
    mine, theirs = ([nn.Parameter(torch.zeros_like(v)) for v in values] for _ in range(2))
    for parameters in (mine, theirs):
        for p, value in zip(parameters[:2], values, strict=False):  # the last has no gradient
            p.grad = value.clone()
    norm = clip_grad_norm(iter(mine), largest)
    assert torch.equal(norm, nn.utils.clip_grad_norm_(theirs, largest or float('inf')))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(mine[:2], theirs[:2], strict=True))
    assert clip_grad_norm(mine[2:], largest) == 0


def test_memory_that_was_freed_is_kept():
    """Pages that the system has to give anew for 40 MiB, which are 10,240 each time, unless freed memory is kept."""
    resource = pytest.importorskip('resource')
    if not processor.keep_freed_memory():
        pytest.skip('no glibc')
    given = []
    for _ in range(8):  # the first ones grow the heap, as far as what other tests have left does not suffice
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(10 * 2**20)
        given.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert min(given) < 100, given
