"""The convolution of a nearest-upsampled map, against that map written out."""
import multiprocessing
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from udl_basicsr.archs import UDLHead
from udl_basicsr.archs.upsampled_conv import upsampled_conv2d

EXACT = {'rtol': 1e-13, 'atol': 1e-12}  # float64, sums of up to 500 terms of size 1
FORMATS = [torch.contiguous_format, torch.channels_last]


def plain(x, weight, bias, scale):
    return F.conv2d(F.interpolate(x, scale_factor=scale, mode='nearest'), weight, bias, padding=1)


def plain_head(head, features):
    first = F.elu(plain(features, head.conv1.weight, head.conv1.bias, head.scale))
    return F.elu(head.conv3(F.elu(head.conv2(first))))


def inputs(size=(3, 4), memory_format=torch.contiguous_format, dtype=torch.float64):
    tensors = (torch.randn(2, 5, *size, dtype=dtype).to(memory_format=memory_format),
               torch.randn(6, 5, 3, 3, dtype=dtype), torch.randn(6, dtype=dtype))
    return [t.requires_grad_() for t in tensors]


def assert_same(out, expected, given, size, memory_format):
    """And so are the gradients to what is given."""
    torch.testing.assert_close(out, expected, **EXACT)
    if min(size) > 1:
        assert out.is_contiguous(memory_format=memory_format)
    grad = torch.randn_like(expected)
    for ours, theirs in zip(torch.autograd.grad(out, given, grad), torch.autograd.grad(expected, given, grad),
                            strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize('memory_format', FORMATS)
@pytest.mark.parametrize('size', [(1, 1), (1, 6), (5, 1), (2, 2), (7, 4)])
@pytest.mark.parametrize('scale', [2, 3, 4, 5])
def test_values_and_gradients_are_those_of_the_upsampled_map(scale, size, memory_format):
    given = inputs(size, memory_format)
    expected = F.elu(plain(*given, scale))
    out = upsampled_conv2d(*given, scale, F.elu)
    assert_same(out, expected, given, size, memory_format)


def test_there_need_be_no_bias():
    x, weight, _ = inputs()
    torch.testing.assert_close(upsampled_conv2d(x, weight, None, 4), plain(x, weight, None, 4), **EXACT)


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_gradients_are_differences(scale):
    given = [t.detach()[:1, :2].requires_grad_() if t.ndim == 4 else t.detach()[:1].requires_grad_()
             for t in inputs((2, 3))]
    assert torch.autograd.gradcheck(lambda *args: upsampled_conv2d(*args, scale), given)


def test_float32_is_as_close_to_float64_as_the_plain_form():
    given = inputs((9, 8))
    expected = plain(*given, 4)
    short = [t.detach().float() for t in given]
    ours, theirs = ((form(*short, 4) - expected).abs().max() for form in (upsampled_conv2d, plain))
    assert ours < 2 * theirs < 1e-4


def test_weights_are_summed_before_they_are_rounded_to_bfloat16():
    x = torch.ones(1, 1, 3, 3)
    weight = torch.full((1, 1, 3, 3), 2.**-9)
    weight[0, 0, 1, 1] = 1  # in bfloat16 1 + 2^-9 is 1: a sum of rounded sums would stay there
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = upsampled_conv2d(x, weight, torch.zeros(1), 4)
    assert out.dtype == torch.bfloat16
    assert out[0, 0, 5, 5] == torch.tensor(1 + 8 * 2.**-9).bfloat16()


@pytest.mark.parametrize('kwargs', [{'scale': 1}, {'scale': 2, 'weight': torch.zeros(1, 1, 5, 5)}])
def test_what_it_cannot_do_is_refused(kwargs):
    with pytest.raises(ValueError, match='expected a'):
        upsampled_conv2d(**{'x': torch.zeros(1, 1, 2, 2), 'weight': torch.zeros(1, 1, 3, 3),
                            'bias': torch.zeros(1), **kwargs})


@pytest.mark.parametrize('memory_format', FORMATS)
@pytest.mark.parametrize('size', [(1, 1), (5, 3)])
@pytest.mark.parametrize('scale', [1, 2, 3, 4, 5])
def test_the_head_is_the_plain_head(scale, size, memory_format):
    head = UDLHead(5, 3, scale, num_feat=6).double()
    features = inputs(size, memory_format)[0]
    leaves = [features, *head.parameters()]
    expected, out = plain_head(head, features), head(features)
    assert_same(out, expected, leaves, size, memory_format)


@pytest.mark.parametrize('scale', [2, 4])
def test_a_checkpoint_of_the_plain_head_is_one_of_this(scale):
    shapes = {name: tuple(value.shape) for name, value in UDLHead(5, 3, scale, num_feat=6).state_dict().items()}
    assert shapes == {'conv1.weight': (6, 5, 3, 3), 'conv1.bias': (6, ), 'conv2.weight': (6, 6, 3, 3),
                      'conv2.bias': (6, ), 'conv3.weight': (3, 6, 3, 3), 'conv3.bias': (3, )}


def test_the_head_under_autocast():
    head = UDLHead(5, 3, 4, num_feat=6)
    features = inputs((6, 7), dtype=torch.float32)[0]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = head(features)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), plain_head(head, features), rtol=0.05, atol=0.02)
    out.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in head.parameters())


def test_a_step_on_the_cpu_does_not_wait_for_the_slopes_that_are_next_to_nothing(project):
    def slope():
        return torch.autograd.grad(F.elu(x), x)[0].item()

    x = torch.tensor([-95.], requires_grad=True)
    if not torch.set_flush_denormal(False):
        pytest.skip('this processor has no such switch')
    assert 0 < slope() < torch.finfo(torch.float32).tiny
    try:
        project.model('esu')
        assert slope() == 0
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.skipif(not Path('/proc/self/smaps').exists(), reason='only Linux says how much of a library is mapped')
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != 'AVX512', reason='only AVX-512 loads under a mask')
@pytest.mark.parametrize('head_on', [None, 'cpu', 'meta'])
def test_a_head_maps_what_expm1_reads_for_negative_zero(head_on):
    """ELU is slow while that page is not mapped. Reading it maps it, and torch's library then takes more memory."""
    def call():
        torch.expm1(torch.linspace(-3, 3, 64))  # maps all else that it reads
        if head_on:
            with torch.device(head_on):
                UDLHead(4, 3, 4)
        before = mapped_of_torch()
        torch.expm1(torch.full((16, ), -0.0))
        grown.value = mapped_of_torch() - before

    context = multiprocessing.get_context('fork')
    grown = context.Value('i', -1)
    process = context.Process(target=call)  # a fork does not inherit mapped pages of files
    process.start()
    process.join()
    assert (grown.value > 0, grown.value == 0) == (not head_on, bool(head_on))


def mapped_of_torch():
    """Kilobytes of torch's library that this process can read without a page fault."""
    total, counts = 0, False
    for line in Path('/proc/self/smaps').read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(':'):
            counts = 'libtorch_cpu' in line
        elif counts and name == 'Rss:':
            total += int(rest[0])
    return total
