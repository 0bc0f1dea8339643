"""What is computed on the device is what the CPU computes: losses, the fast head, LPIPS, validation, pictures."""
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs.edsr_arch import EDSR
from conftest import photograph
from torch.nn import functional as F

from udl_basicsr import losses
from udl_basicsr.archs import UDLHead
from udl_basicsr.archs.upsampled_conv import upsampled_conv2d
from udl_basicsr.cli import infer
from udl_basicsr.functional import losses as formulas
from udl_basicsr.functional import tlw
from udl_basicsr.losses.perceptual import build_lpips
from udl_basicsr.metrics.perceptual import calculate_lpips

from .conftest import needs_cuda

_S, _TWO = ('log_scale', ), ('two_maps', )  # a head with two maps for each channel
_JUDGE = {'judge': 'squeeze', 'judge_random': True}
_LOSSES = {
    'EULoss': ({}, _S), 'ESULoss': ({}, _S), 'GRAMLoss': ({'norm': 'l2'}, _S), 'GaussianNLLLoss': ({}, _S),
    'UDLLoss': ({'offset': 1.0, 'min_over': 'channel'}, _S), 'GradientVarianceLoss': ({'patch_size': 8}, ()),
    'WeightMapLoss': ({'weight_map': 'lr_gradient', 'scaling': 'exp'}, ('lq', )), 'SSIMLoss': ({}, ()),
    'SigmaLoss': ({'detach': False}, ('sigma', )), 'BetaNLLLoss': ({'beta': 0.5}, _S),
    'GeneralisedGaussianLoss': ({}, _TWO), 'QuantileLoss': ({}, _TWO), 'ExpectedL1Loss': ({}, ()),
    'TrainedExpectedL1Loss': ({'noise': 'laplace'}, ('sigma', )), 'UEOLoss': (_JUDGE, _S),
    'TLWLoss': (_JUDGE, ('weight_map', )),
}


def on(device, tensors: dict, dtype=torch.float64) -> dict:
    return {name: value.detach().to(device, dtype).requires_grad_() for name, value in tensors.items()}


def compare(compute, tensors: dict, device, **tolerance) -> None:
    """Value and gradients of a function on the device and on the CPU, in float64."""
    results = []
    for where in ('cpu', device):
        given = on(where, tensors)
        value = compute(**given)
        grads = torch.autograd.grad(value.sum(), list(given.values()), allow_unused=True)
        results.append([value, *(g for g in grads if g is not None)])
    assert len(results[0]) > 1
    for here, there in zip(*results, strict=True):
        torch.testing.assert_close(there.cpu(), here, **(tolerance or {'rtol': 1e-10, 'atol': 1e-13}))


@pytest.mark.rehearsed
@pytest.mark.parametrize('name', _LOSSES)
def test_losses_are_those_of_the_cpu(device, name, monkeypatch):
    """And their gradients; what a loss draws is drawn once, since a GPU draws other numbers."""
    arguments, needs = _LOSSES[name]
    loss = getattr(losses, name)(**arguments)
    if 'judge' in arguments:
        loss.judge = build_lpips('squeeze', random_weights=True)
    loss = loss.double()
    size = (2, 3, 32, 32)
    drawn = torch.randn(size, dtype=torch.float64)
    monkeypatch.setattr(formulas, 'draw_noise', lambda like, noise: drawn.to(like.device))
    monkeypatch.setattr(tlw, 'relaxed_bernoulli', lambda prob, temperature, samples: torch.sigmoid(
        prob.logit() + drawn.to(prob.device)).expand(samples, *prob.shape))
    tensors = {'pred': torch.rand(size), 'target': torch.rand(size), 'log_scale': torch.randn(size),
               'two_maps': torch.randn(2, 6, 32, 32), 'sigma': torch.rand(size), 'weight_map': torch.rand(size),
               'lq': torch.rand(2, 3, 8, 8)}
    tensors = {key: value for key, value in tensors.items() if key in ('pred', 'target', *needs)}

    def compute(two_maps=None, **given):
        if two_maps is not None:
            given['log_scale'] = two_maps
        out = loss.to(given['pred'].device)(**given)
        return torch.stack([value.mean() for value in out]) if isinstance(out, tuple) else out

    compare(compute, tensors, device)


@pytest.mark.rehearsed
@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_the_fast_convolution_is_exact(device, scale, memory_format):
    x = torch.randn(2, 5, 7, 4, dtype=torch.float64, device=device).to(memory_format=memory_format)
    weight, bias = torch.randn(6, 5, 3, 3, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    out = upsampled_conv2d(x, weight.to(device), bias.to(device), scale, F.elu)
    plain = F.elu(F.conv2d(F.interpolate(x.cpu(), scale_factor=scale, mode='nearest'), weight, bias, padding=1))
    torch.testing.assert_close(out.cpu(), plain, rtol=1e-12, atol=1e-12)


@pytest.mark.rehearsed
@pytest.mark.parametrize('scale', [2, 4])
def test_the_head_is_that_of_the_cpu(device, scale):
    head = UDLHead(8, 3, scale).double()

    def compute(features):
        return head.to(features.device)(features)

    compare(compute, {'features': torch.randn(2, 8, 6, 5)}, device)


def test_lpips_is_that_of_the_cpu_from_several_threads(device, project):
    pairs = [(photograph(n, 64, 72), photograph(n + 50, 64, 72)) for n in range(8)]
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True  # as in training; LPIPS is to leave it aside
    with ThreadPoolExecutor(8) as threads:
        there = list(threads.map(lambda pair: calculate_lpips(*pair, random_weights=True), pairs))
    torch.backends.cudnn.allow_tf32 = before
    judge = build_lpips('alex', random_weights=True)
    for (a, b), value in zip(pairs, there, strict=True):
        tensors = [torch.from_numpy(x[..., ::-1].copy()).permute(2, 0, 1)[None] / 255 for x in (a, b)]
        assert value == pytest.approx(judge(*tensors).item(), rel=1e-4)


@pytest.mark.rehearsed
@pytest.mark.parametrize('stage', ['plain', 'udl'])
def test_validation_is_float32_proper(project, stage):
    """TF32 rounds factors to 10 bits, which moved 1.7 % of 8-bit values; training may have it, figures may not.

    Here it moves the image by 2e-4 and s by 0.015. float32 on a CPU is off by 1e-7 and 2e-5, on a GPU perhaps by ten
    times that: cuDNN may multiply by Winograd's method.
    """
    here, there = project.twins(stage, 'train:amp=bf16')
    torch.backends.cudnn.allow_tf32 = True
    lq = torch.rand(1, 3, 40, 40)
    exact = here.net_g.double().eval()(lq.double())
    there.feed_data({'lq': lq})
    there.test()
    assert (there.output.cpu().double() - exact).abs().max() < 1e-5
    if stage == 'udl':
        s = here.net_u.double().log_scale(lq.double())
        assert (there.log_scale(there.lq).cpu().double() - s).abs().max() < 5e-4


@needs_cuda
def test_what_does_not_fit_into_the_memory_is_restored_in_tiles(tmp_path, caplog):
    torch.manual_seed(0)
    network = EDSR(3, 3, num_feat=16, num_block=2, upscale=2)
    models = tmp_path / 'experiments/x/models'
    models.mkdir(parents=True)
    torch.save({'params': network.state_dict()}, models / 'net_g_latest.pth')
    (tmp_path / 'experiments/x/x.yml').write_text('name: x\nnetwork_g: {type: EDSR, num_in_ch: 3, num_out_ch: 3, '
                                                  'num_feat: 16, num_block: 2, upscale: 2}\n')
    cv2.imwrite(str(tmp_path / 'large.png'), photograph(0, 1200, 1200))
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 400 * 2**20) / total)
    command = [str(tmp_path / 'large.png'), '--weights', str(models / 'net_g_latest.pth'), '--device', 'cuda', '--out',
               str(tmp_path / 'out')]
    try:
        assert infer.main(command) == 0
        assert 'do not fit into the memory of the device (cuda): they are restored in tiles of 256' in caplog.text
    finally:
        torch.cuda.set_per_process_memory_fraction(1.)
    picture = cv2.imread(str(next((tmp_path / 'out').glob('*.png')))).astype(int)
    lq = torch.from_numpy(photograph(0, 1200, 1200)[..., ::-1].copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        exact = network.eval()(lq)[0].permute(1, 2, 0).flip(-1).mul(255).clip(0, 255).round().int().numpy()
    assert np.abs(picture - exact).max() <= 1
