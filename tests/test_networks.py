"""Every super-resolution network of the registry, tiny, through UncertaintyNet; and how spandrel's come to be there."""
import copy
import pickle
import sys

import pytest
import torch
import yaml
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY, Registry
from forked import command_line, forked

from udl_basicsr.archs import UncertaintyNet, spandrel_archs
from udl_basicsr.losses import ESULoss
from udl_basicsr.options.signatures import call_problems

pytestmark = pytest.mark.filterwarnings('ignore:torch.meshgrid', 'ignore:Importing from timm')

RGB = {'num_in_ch': 3, 'num_out_ch': 3}
SWIN = {'img_size': 16, 'in_chans': 3, 'embed_dim': 12, 'depths': [1, 1], 'num_heads': [2, 2], 'window_size': 8,
        'mlp_ratio': 2}
DAT = {'img_size': 16, 'embed_dim': 32, 'split_size': [4, 8], 'depth': [2], 'num_heads': [2], 'expansion_factor': 2}
PLKSR = {'dim': 16, 'n_blocks': 1, 'kernel_size': 5}

# Arguments; which of them is the factor ('scale' where several); the tap that is found.
NETWORKS = {
    # BasicSR's
    'ECBSR': ({**RGB, 'num_block': 1, 'num_channel': 8, 'with_idt': True, 'act_type': 'prelu'}, 'scale', 'backbone.2'),
    'EDSR': ({**RGB, 'num_feat': 8, 'num_block': 1}, 'upscale', 'upsample'),
    'MSRResNet': ({'num_feat': 8, 'num_block': 1}, 'upscale', 'upconv1'),
    'RCAN': ({**RGB, 'num_feat': 8, 'num_group': 1, 'num_block': 1, 'squeeze_factor': 4}, 'upscale', 'upsample'),
    'RRDBNet': ({**RGB, 'num_feat': 8, 'num_block': 1, 'num_grow_ch': 4}, 'scale', 'conv_up1'),
    'SRVGGNetCompact_basicsr': ({'num_feat': 8, 'num_conv': 1}, 'upscale', 'body.4'),
    'SwinIR': ({**SWIN, 'upsampler': 'pixelshuffle'}, 'upscale', 'conv_before_upsample'),
    'SwinIR light': ({**SWIN, 'upsampler': 'pixelshuffledirect'}, 'upscale', 'upsample'),
    # ours
    'CARN': ({'num_feat': 8, 'num_block': 1}, 'upscale', 'upsample'),
    'CARN_M': ({'num_feat': 8, 'num_block': 1, 'num_group': 2}, 'upscale', 'upsample'),
    'DPDNN': ({'num_feat': 8, 'num_level': 2, 'num_iter': 2}, 'upscale', 'denoiser.conv_last'),
    'ESPCN': ({'num_feat': 8}, 'upscale', 'conv_last'),
    'IDN': ({'num_feat': 16, 'num_block': 1}, 'upscale', 'upsample'),
    'VDSR': ({'num_feat': 8, 'num_conv': 3}, 'upscale', 'conv_last'),
    # spandrel's
    'ATD': ({**SWIN, 'upsampler': 'pixelshuffle', 'category_size': 16, 'num_tokens': 4, 'reducted_dim': 2}, 'upscale',
            'conv_before_upsample'),
    'CRAFT': ({'window_size': 16, 'embed_dim': 64, 'depths': [1], 'num_heads': [2], 'split_size_0': 4,
               'split_size_1': 8}, 'upscale', 'upsample'),
    'Compact': ({'num_feat': 8, 'num_conv': 1}, 'upscale', 'body.4'),
    'DAT': (DAT, 'upscale', 'conv_before_upsample'),
    'DAT light': ({**DAT, 'upsampler': 'pixelshuffledirect'}, 'upscale', 'upsample'),
    'DCTLSA': ({'nf': 20, 'num_head': 2}, 'upscale', 'upsampler'),
    'DITN': ({'dim': 12, 'ITL_blocks': 1, 'SAL_blocks': 1, 'patch_size': 8}, 'upscale', 'upsample'),
    'DRCT': ({**SWIN, 'embed_dim': 16, 'depths': [1], 'num_heads': [2], 'upsampler': 'pixelshuffle', 'gc': 4},
             'upscale', 'conv_before_upsample'),
    'ESRGAN': ({'num_filters': 8, 'num_blocks': 1}, 'scale', 'model.2'),
    'ESRGAN plus': ({'num_filters': 8, 'num_blocks': 1, 'upsampler': 'pixel_shuffle', 'plus': True}, 'scale',
                    'model.2'),
    'FDAT': ({'embed_dim': 16, 'num_groups': 1, 'depth_per_group': 2, 'num_heads': 2, 'mid_dim': 16}, 'scale',
             'upsampler'),
    'GRL': ({'img_size': 16, 'embed_dim': 16, 'upsampler': 'pixelshuffle', 'depths': [1], 'num_heads_window': [1],
             'num_heads_stripe': [1], 'anchor_window_down_factor': 2}, 'upscale', 'conv_before_upsample'),
    'HAT': ({**SWIN, 'num_feat': 8, 'upsampler': 'pixelshuffle', 'compress_ratio': 2, 'squeeze_factor': 2}, 'upscale',
            'conv_before_upsample'),
    'IPT': ({'patch_size': 16, 'patch_dim': 4, 'n_feats': 8, 'num_heads': 2, 'num_layers': 1}, 'scale', 'tail.0'),
    'MoESR': ({'dim': 8, 'n_blocks': 1, 'n_block': 1}, 'scale', 'upscale'),
    'MoSR': ({'n_block': 1, 'dim': 16}, 'upscale', 'upsampler'),
    'MoSR dysample': ({'n_block': 1, 'dim': 16, 'upsampler': 'dys'}, 'upscale', 'upsampler'),
    'OmniSR': ({'num_feat': 16}, 'up_scale', 'up'),
    'PLKSR': (PLKSR, 'upscaling_factor', 'feats.2'),
    'RCAN_spandrel': ({'n_resgroups': 1, 'n_resblocks': 1, 'n_feats': 8, 'reduction': 4}, 'scale', 'tail'),
    'RGT': ({'img_size': 16, 'embed_dim': 32, 'depth': [2], 'num_heads': [2], 'mlp_ratio': 2}, 'upscale',
            'conv_before_upsample'),
    'RealPLKSR': (PLKSR, 'upscaling_factor', 'feats.3'),
    'RealPLKSR dysample': ({**PLKSR, 'dysample': True, 'layer_norm': True}, 'upscaling_factor', 'feats.3'),
    'SAFMN': ({'dim': 8, 'n_blocks': 1}, 'upscaling_factor', 'to_img'),
    'SPAN': ({**RGB, 'feature_channels': 8}, 'upscale', 'upsampler'),
    'SeemoRe': ({'num_experts': 3, 'num_layers': 1, 'embedding_dim': 8}, 'scale', 'upsampler'),
    'SwiftSRGAN': ({'num_channels': 8, 'num_blocks': 1}, 'upscale_factor', 'upsampler'),
    'Swin2SR': ({**SWIN, 'upsampler': 'pixelshuffle'}, 'upscale', 'conv_before_upsample'),
    'SwinIR_spandrel': ({**SWIN, 'upsampler': 'pixelshuffle'}, 'upscale', 'conv_before_upsample'),
}
VIDEO, GAN, PART = 'reads several frames', 'makes faces from a latent code or a mask', 'judges or feeds other networks'
NOT_SR = {
    **dict.fromkeys(('BasicVSR', 'BasicVSRPlusPlus', 'DUF', 'EDVR', 'IconVSR', 'TOFlow'), VIDEO),
    **dict.fromkeys(('DFDNet', 'HiFaceGAN', 'StyleGAN2Generator'), GAN),
    **dict.fromkeys(('HiFaceGANDiscriminator', 'SpyNet', 'StyleGAN2Discriminator', 'UNetDiscriminatorSN_basicsr',
                     'VGGFeatureExtractor', 'VGGStyleDiscriminator'), PART),
    'RIDNet': 'denoises at the size of what goes in',
    **dict.fromkeys(('UncertaintyNet', 'UDLHead', 'SigmaHead', 'ConstantHead', 'TLWNet'), 'our own parts'),
}
HEAD_SCALE = {'RRDBNet': 2, 'VDSR': 1, 'DPDNN': 1}  # what is tapped has been enlarged in part or wholly
SIZES = {'IPT': (16, 16)}  # its position codes are those of patch_size x patch_size
# Of BasicSR's, SwinIR does not pad to its window, and RRDBNet x2 unshuffles its input.
SOME_SIZES = {(name, scale) for name in ('IPT', 'SwinIR', 'SwinIR light') for scale in (2, 4)} | {('RRDBNet', 2)}


def options_of(name: str, scale: int) -> dict:
    kwargs, factor, _ = NETWORKS[name]
    return {'type': name.split()[0], **copy.deepcopy(kwargs), factor: [scale] if name == 'IPT' else scale}


def test_no_network_of_the_registry_is_forgotten():
    tried = {name.split()[0] for name in NETWORKS}
    registered = {name for name, network in ARCH_REGISTRY
                  if network.__module__.partition('.')[0] in ('basicsr', 'udl_basicsr')}
    assert registered - tried - set(NOT_SR) == set(), 'put it into NETWORKS, or into NOT_SR with the reason'
    assert tried - registered == set()
    assert set(NOT_SR) - registered == set()
    assert tried & set(NOT_SR) == set()


@pytest.mark.parametrize('scale', [2, 4])
@pytest.mark.parametrize('name', NETWORKS)
def test_every_network(name, scale):
    options = options_of(name, scale)
    net = UncertaintyNet(copy.deepcopy(options))
    assert net.tap == NETWORKS[name][2]
    assert net.scale == scale
    assert net.head.scale == HEAD_SCALE.get(name, scale)
    size = SIZES.get(name, (16, 24))
    lq = torch.rand(2, 3, *size)
    given = lq.clone()

    mean, log_scale = net(lq)
    assert torch.equal(lq, given)  # a network that changes its input would change the next one's
    assert mean.shape == log_scale.shape == (2, 3, size[0] * scale, size[1] * scale)
    loss = ESULoss()(mean, torch.rand_like(mean), log_scale)
    loss.backward()
    assert torch.isfinite(loss)
    # nothing for DistributedDataParallel to miss, and the loss is felt in all but a few places
    trained = [(n, p) for n, p in net.named_parameters() if p.requires_grad]
    assert [n for n, p in trained if p.grad is None] == []
    assert sum(bool(p.grad.any()) for _, p in trained) > 0.7 * len(trained)

    # s alone, where the backbone stops at the tap, is the s of the full forward: nothing changes the features after it
    net.eval()
    stock = build_network(copy.deepcopy(options)).eval()
    stock.load_state_dict(net.mean_network.state_dict(), strict=True)
    with torch.no_grad():
        mean, log_scale = net(lq)
        torch.testing.assert_close(net.log_scale(lq), log_scale, rtol=0, atol=0)
        assert log_scale.std() > 0
        torch.testing.assert_close(stock(lq), mean, rtol=0, atol=0)
        if (name, scale) not in SOME_SIZES:  # as validation has them
            mean, log_scale = net(torch.rand(1, 3, 17, 21))
            assert mean.shape == log_scale.shape == (1, 3, 17 * scale, 21 * scale)


# --------------------------------------------------------------------------------------------------- spandrel's
def spandrels(name: str) -> type:
    """The class as spandrel has it."""
    return spandrel_archs._classes()[name].__mro__[-1 - len(torch.nn.Module.__mro__)]


def test_all_of_spandrel_is_registered_or_refused():
    from spandrel import MAIN_REGISTRY
    known = set(spandrel_archs.NETWORKS) | set(spandrel_archs.REFUSED)
    of_two = {'KBNet': {'KBNet_l', 'KBNet_s'}}
    for support in MAIN_REGISTRY:
        assert of_two.get(support.architecture.id, {support.architecture.id}) <= known
    assert not set(spandrel_archs.NETWORKS) & set(spandrel_archs.REFUSED)


def test_names_that_basicsr_has_stay_basicsrs():
    for name in ('SwinIR', 'RCAN'):
        assert ARCH_REGISTRY.get(name).__module__.startswith('basicsr.')
        assert ARCH_REGISTRY.get(f'{name}_spandrel') is spandrel_archs._classes()[name]


def test_registration_happens_once_and_wholly_or_not_at_all():
    registry = Registry('arch')
    registry._do_register('HAT', UncertaintyNet)
    names = spandrel_archs.register_spandrel(registry)
    there = dict(list(registry))
    assert names['HAT'] == 'HAT_spandrel'
    assert there['HAT'] is UncertaintyNet
    assert set(there) == {'HAT', *names.values()}
    assert spandrel_archs.register_spandrel(registry) == names
    assert dict(list(registry)) == there

    full = Registry('arch')
    for name in ('SwinIR', 'SwinIR_spandrel'):
        full._do_register(name, UncertaintyNet)
    with pytest.raises(ValueError, match='SwinIR and SwinIR_spandrel are both registered'):
        spandrel_archs.register_spandrel(full)
    assert set(full.keys()) == {'SwinIR', 'SwinIR_spandrel'}


@pytest.mark.parametrize(('arguments', 'at', 'problem'), [
    ({'embed_dims': 12}, 'embed_dims', "HAT has no such argument, did you mean 'embed_dim'"),
    ({'upsampler': 'nearest'}, 'upsampler', 'one of pixelshuffle'),
    ({'upscale': 'four'}, 'upscale', "expects a number, got 'four'"),
    ({'upscale': 4, 'depths': [2], 'num_heads': [2]}, None, ''),
])
def test_arguments_are_checked_against_spandrels_signature(arguments, at, problem):
    found = dict(call_problems(ARCH_REGISTRY.get('HAT'), arguments))
    assert list(found) == ([at] if at else [])
    assert problem.split(', ')[0] in found.get(at, '')


@pytest.mark.parametrize('name', ['Compact', 'RealPLKSR', 'SAFMN', 'SPAN'])
def test_spandrel_reads_our_checkpoints(name):
    from spandrel import ModelLoader
    net = build_network(options_of(name, 2)).eval()
    read = ModelLoader().load_from_state_dict({'params': copy.deepcopy(net.state_dict())})
    assert type(read.model) is spandrels(name)
    lq = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(read.model.eval()(lq), net(lq), rtol=0, atol=0)


@pytest.mark.parametrize('name', ['DAT', 'DRCT'])
def test_any_size_is_padded_and_cropped(name):
    net = build_network(options_of(name, 2)).eval()
    theirs = spandrels(name)(**{k: v for k, v in options_of(name, 2).items() if k != 'type'}).eval()
    theirs.load_state_dict(net.state_dict())
    lq = torch.rand(1, 3, 15, 10)
    with torch.no_grad():
        rows, columns = [*range(15), 14], [*range(10), *[9] * 6]
        expected = theirs(lq[:, :, rows][..., columns])[..., :30, :20]
        torch.testing.assert_close(net(lq), expected, rtol=0, atol=0)


def test_seemore_evaluates_a_batch_as_its_images():
    net = build_network(options_of('SeemoRe', 2))
    theirs = spandrels('SeemoRe')(**{k: v for k, v in options_of('SeemoRe', 2).items() if k != 'type'})
    theirs.load_state_dict(net.state_dict())
    net.eval(), theirs.eval()
    lq = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        expected = torch.cat([theirs(image[None]) for image in lq])  # one at a time: it takes no more
        torch.testing.assert_close(net(lq), expected, rtol=1e-5, atol=1e-6)


def test_rcan_of_spandrel_leaves_its_input_and_computes_the_same():
    options = options_of('RCAN_spandrel', 2)
    net = build_network(options)
    theirs = spandrels('RCAN')(**{k: v for k, v in options.items() if k != 'type'})
    theirs.load_state_dict(net.state_dict())
    assert not any(p.requires_grad for m in (net.sub_mean, net.add_mean) for p in m.parameters())
    lq = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(net(lq), theirs(lq.clone()), rtol=0, atol=0)


def test_classes_can_be_pickled_and_imported():
    for name in spandrel_archs.NETWORKS:
        assert pickle.loads(pickle.dumps(spandrel_archs._classes()[name])) is getattr(spandrel_archs, name)
    with pytest.raises(AttributeError, match='NoSuchNet'):
        spandrel_archs.NoSuchNet  # noqa: B018


def train_without_spandrel():
    for registered in spandrel_archs.register_spandrel().values():
        del ARCH_REGISTRY._obj_map[registered]
    for name in [name for name in sys.modules if name.partition('.')[0] == 'spandrel']:
        del sys.modules[name]
    sys.modules['spandrel'] = None
    spandrel_archs._classes.cache_clear()
    spandrel_archs.register_spandrel()
    return command_line(['-opt', 'plain.yml'])


def test_without_spandrel_the_message_says_how_to_get_it(project):
    base = yaml.safe_load((project.root / '_base_.yml').read_text())
    base['network_g'] = {'type': 'HAT', 'upscale': 2, 'upsampler': 'pixelshuffle'}
    (project.root / '_base_.yml').write_text(yaml.safe_dump(base))
    result = forked(train_without_spandrel, cwd=project.root)
    assert result.returncode == 2, result.stderr
    assert 'network_g: HAT cannot be built' in result.stderr
    assert "pip install 'spandrel>=0.4.2'" in result.stderr
    assert not (project.root / 'experiments').exists()
