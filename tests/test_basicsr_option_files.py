"""BasicSR's own option files through our checks: of all 70, nothing is missing but their data and weights."""
import re
from copy import deepcopy

import pytest
import yaml
from basicsr_option_files import OPTION_FILES

from udl_basicsr.options.parse import OptionError, parse_options

VIMEO = [f'train/BasicVSR/train_{network}_Vimeo90K_{blur}x4.yml' for network in ('BasicVSR', 'IconVSR')
         for blur in ('BD', 'BI')]
REAL = ['train/LDL/train_LDL_Real_x4.yml', *(f'train/RealESRGAN/train_realesr{kind}_x{scale}plus.yml'
                                             for kind in ('gan', 'net') for scale in (2, 4))]
STYLE = [f'train/StyleGAN/train_StyleGAN2_256_Cmul2_FFHQ{name}.yml' for name in ('', '_800k')]
# Keys that neither BasicSR 1.4.2 nor anything here reads.
STRAY = {
    **{name: {'datasets.train.interval_list'} for name in VIMEO},
    **{name: {'datasets.train.gt_size'} for name in REAL},
    **{name: {'train.net_d_iters', 'train.net_d_init_iters'} for name in STYLE},
    'train/EDVR/train_EDVRM_woTSA_GAN_TODO.yml': {'network_d', 'train.optim_d', 'train.gan_opt', 'train.net_d_iters',
                                                  'train.net_d_init_iters'},
    'test/EDVR/test_EDVR_L_x4_SR_Vimeo90K.yml': {'datasets.test.padding'},
    'test/TOF/test_TOF_official.yml': {'save_img'},
    'test/RCAN/test_RCAN.yml': {'val', 'suffix', 'crop_border', 'save_img'},
}
# What BasicSR 1.4.2 itself stops at: a network of the wrong scale, a loss that it does not have.
FAULTS = {'train/RCAN/train_RCAN_x2.yml': 'network_g.upscale: 4 disagrees with scale: 2',
          'train/HiFaceGAN/train_hifacegan.yml': "train.feature_matching_opt.type: no loss 'GANFeatLoss' is known"}
SHALLOW = {'num_block': 2, 'num_group': 1, 'num_reconstruct_block': 1, 'num_extract_block': 1, 'num_blocks': 1}


def parse(name: str, opt: dict, tmp_path, **arguments) -> list[str]:
    """What is wrong with an option file, or its warnings where nothing is."""
    opt = deepcopy(opt)
    network = opt['network_g']
    network |= {key: value for key, value in SHALLOW.items() if key in network}  # more of the same takes but time
    if network['type'] == 'SwinIR':
        network |= {'depths': [2], 'num_heads': [6]}
    file = tmp_path / 'file.yml'
    file.write_text(yaml.safe_dump(opt, sort_keys=False), encoding='utf-8')
    try:
        lines = parse_options(str(file), root_path=str(tmp_path), is_train=name.startswith('train/'),
                              num_gpu_available=8, **arguments).warnings
    except OptionError as error:
        lines = error.problems
    return [line.removeprefix(f'{file}: ') for line in lines]


def test_there_are_70():
    assert len(OPTION_FILES) == 70
    assert {*STRAY, *FAULTS} <= set(OPTION_FILES)


@pytest.mark.parametrize('name', OPTION_FILES)
def test_nothing_but_data_and_weights_is_missing(tmp_path, name):
    opt = OPTION_FILES[name]
    problems = parse(name, opt, tmp_path)
    faults = [p for p in problems if not re.match(r'[\w.]+: no such (folder|file): ', p)]
    assert [p for p in faults if not p.startswith(FAULTS.get(name, '\0'))] == []
    assert len(faults) == (name in FAULTS)
    assert len(problems) > len(faults)  # the data at least

    without = {key: value for key, value in opt['network_g'].items() if not key.endswith('_path')}
    lines = parse(name, {**opt, 'network_g': without}, tmp_path, check_files=False)
    stray = {line.partition(':')[0] for line in lines if name not in FAULTS} - {'num_gpu'}  # auto takes one of the 8
    assert stray == STRAY.get(name, set())


def test_weights_inside_a_network_are_named(tmp_path):
    name = 'test/BasicVSR/test_IconVSR_REDS.yml'
    problems = parse(name, OPTION_FILES[name], tmp_path)
    assert [p.partition(':')[0] for p in problems if p.startswith('network_g')] == ['network_g.spynet_path',
                                                                                     'network_g.edvr_path']


@pytest.mark.parametrize(('change', 'warning'), [
    ({'datasets': {'train': {'use_hflp': True}}},
     'datasets.train.use_hflp: unknown key: neither PairedImageDataset nor the loader reads it; '
     "did you mean 'use_hflip'?"),
    ({'train': {'ema_decy': 0.9}}, "train.ema_decy: unknown key; did you mean 'ema_decay'?"),
    ({'network_g': {'ema_decay': 0.9}}, 'network_g.ema_decay: EDSR has no such argument; it is left out'),
])
def test_a_stray_key_is_a_warning_for_their_models_and_an_error_for_ours(tmp_path, change, warning):
    name = 'train/EDSR/train_EDSR_Mx2.yml'
    opt = deepcopy(OPTION_FILES[name])
    for block, keys in change.items():
        for key, value in keys.items():
            opt[block][key] = {**opt[block][key], **value} if isinstance(value, dict) else value
    assert parse(name, opt, tmp_path, check_files=False) == [warning]
    key = warning.partition(':')[0]
    ours = parse(name, {**opt, 'model_type': 'UDLModel', 'stage': 'plain'}, tmp_path, check_files=False)
    assert any(line.startswith(f'{key}:') and 'left out' not in line for line in ours)


def test_a_misspelt_argument_of_a_network_stays_an_error(tmp_path):
    name = 'train/EDSR/train_EDSR_Mx2.yml'
    opt = deepcopy(OPTION_FILES[name])
    opt['network_g']['num_blok'] = opt['network_g'].pop('num_block')
    assert parse(name, opt, tmp_path, check_files=False) == [
        "network_g.num_blok: EDSR has no such argument; did you mean 'num_block'?"]


def test_ours_are_an_error_too_where_only_our_models_can_do_it(tmp_path):
    name = 'train/EDSR/train_EDSR_Mx2.yml'
    opt = deepcopy(OPTION_FILES[name])
    opt['train']['accumulate'] = 2
    assert parse(name, opt, tmp_path, check_files=False) == [
        'train.accumulate: SRModel does not read this key; remove it']
