"""What networks state of themselves, and who listens: the tap, the padding of validation, the check of the scale."""
import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from infer_runs import WindowsForTests
from torch import nn

from udl_basicsr.archs import traits
from udl_basicsr.options.network_values import check_networks
from udl_basicsr.options.parse import OptionError


@pytest.fixture
def registered():
    """Registers classes for one test."""
    names = []

    def register(cls):
        ARCH_REGISTRY.register(cls)
        names.append(cls.__name__)
        return cls

    yield register
    for name in names:
        del ARCH_REGISTRY._obj_map[name]


class Whole(nn.Module):
    """Takes sizes that are multiples of ``block`` alone, and says so."""
    multiple_of = 'block'
    scale_argument = 'enlarge'

    def __init__(self, block=6, enlarge=2, window_size=5):
        super().__init__()
        self.block = block
        self.upsample = nn.Upsample(scale_factor=enlarge)
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x):
        if x.shape[-1] % self.block or x.shape[-2] % self.block:
            raise ValueError(f'expected multiples of {self.block}')
        return self.gain * self.upsample(x)


def test_what_a_class_states_comes_before_what_is_usual():
    swin = ARCH_REGISTRY.get('SwinIR')
    assert traits.traits_of(swin).default_tap[0] == 'conv_before_upsample'
    assert traits.size_multiple(swin, {}) == 7  # by default of BasicSR's class, which pads nothing
    assert traits.size_multiple(swin, {'window_size': 8}) == 8
    assert traits.size_multiple(type('Own', (swin, ), {'multiple_of': 3}), {'window_size': 8}) == 3
    assert traits.traits_of(type('Own', (swin, ), {'default_tap': 'conv_last'})).default_tap == ('conv_last', )
    assert traits.size_multiple(Whole, {}) == 6
    assert traits.size_multiple(ARCH_REGISTRY.get('EDSR'), {'upscale': 2}) == 1


@pytest.mark.parametrize('scale', [1, 2, 4])
def test_what_rrdbnet_unshuffles_into(scale):
    """By trying: the smallest multiple of which it takes two sizes. It asserts so below a scale of 4, pads nothing."""
    block = {'num_in_ch': 3, 'num_out_ch': 3, 'scale': scale, 'num_feat': 4, 'num_block': 1, 'num_grow_ch': 4}
    network = ARCH_REGISTRY.get('RRDBNet')(**block)

    def takes(multiple):
        try:
            return network(torch.zeros(1, 3, 5 * multiple, 7 * multiple)).shape[2:] == (5 * scale * multiple,
                                                                                          7 * scale * multiple)
        except AssertionError:
            return False

    assert traits.size_multiple(type(network), block) == next(filter(takes, range(1, 9)))
    assert traits.size_multiple(type('Own', (type(network), ), {'multiple_of': 3}), block) == 3


@pytest.mark.parametrize('extra', [{}, {'block': 4}])
def test_validation_pads_to_what_the_network_takes(project, registered, extra):
    registered(Whole)
    model = project.model('plain')
    model.net_g, model.opt['network_g'] = Whole(**extra), {'type': 'Whole', **extra}
    image = torch.rand(1, 3, 13, 10)
    assert torch.equal(model.restoring(model.net_g)(image), image.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_validation_in_tiles_has_the_windows_of_the_whole_image(project):
    block = {'type': 'WindowsForTests', 'split_size': [4, 6]}
    model = project.model('plain')
    model.net_g, model.opt['network_g'] = WindowsForTests([4, 6]), block
    image = torch.rand(1, 3, 37, 43)
    with torch.no_grad():
        whole = model.restoring(model.net_g)(image)
        model.opt['val'] = {**model.opt['val'], 'tile': {'size': 9, 'overlap': 23}}
        assert torch.allclose(model.restoring(model.net_g)(image), whole, atol=1e-6)


@pytest.mark.parametrize(('block', 'key'), [
    ({'type': 'OmniSR', 'up_scale': 3}, 'up_scale'),
    ({'type': 'SAFMN', 'dim': 36, 'upscaling_factor': 3}, 'upscaling_factor'),
    ({'type': 'SwiftSRGAN', 'upscale_factor': 3}, 'upscale_factor'), ({'type': 'PLKSR'}, 'upscaling_factor')])
def test_the_scale_is_compared_with_spandrels_names(project, block, key):
    pytest.importorskip('spandrel')
    with pytest.raises(OptionError, match=rf'network_g\.{key}: \d.* disagrees with scale: 2'):
        project.parse('plain', 'network_g=~', f'network_g={block}'.replace("'", ''), check_files=False)


def test_a_network_names_its_own_argument(project, registered):
    registered(Whole)
    check_networks({'network_g': {'type': 'Whole', 'enlarge': 3}}, 'x')
    with pytest.raises(OptionError, match=r'network_g\.enlarge: 3 disagrees with scale: 2'):
        project.parse('plain', 'network_g=~', 'network_g={type: Whole, enlarge: 3}', check_files=False)
