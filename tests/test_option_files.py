"""The repository's option files: all are valid and what their names say, and every training trains."""
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.models import build_model
from conftest import photograph

from udl_basicsr.engine.options import dump_flat, parse_options

OPTIONS = Path(__file__).resolve().parents[1] / 'options'
FILES = sorted(str(file.relative_to(OPTIONS)) for file in OPTIONS.rglob('*.yml')
               if not {'_base_', 'compare', 'papers'} & {*file.parts} and not file.name.startswith('_'))
TRAIN = [file for file in FILES if Path(file).name.startswith('train_')]
# Made tiny, EDSR-S is EDSR.
TO_TRAIN = [file for file in TRAIN if not file.startswith('train_EDSR_')]
# Each network as the papers have it: what its option file is to say in so many words.
PUBLISHED = {
    'EDSR': {'type': 'EDSR', 'num_block': 32, 'num_feat': 256},
    'EDSR-S': {'type': 'EDSR', 'num_block': 16, 'num_feat': 64},
    'DPDNN': {'type': 'DPDNN', 'num_iter': 6, 'num_level': 4, 'num_feat': 64},
    'RCAN': {'type': 'RCAN', 'num_group': 10, 'num_block': 20, 'num_feat': 64, 'squeeze_factor': 16},
    'HAT': {'type': 'HAT', 'embed_dim': 180, 'depths': [6] * 6, 'num_heads': [6] * 6, 'window_size': 16,
            'mlp_ratio': 2, 'compress_ratio': 3, 'squeeze_factor': 30, 'upsampler': 'pixelshuffle'},
    'VDSR': {'type': 'VDSR', 'num_conv': 20, 'num_feat': 64},
    'ESPCN': {'type': 'ESPCN', 'num_feat': 64},
    'CARN': {'type': 'CARN', 'num_block': 3, 'num_feat': 64},
    'IDN': {'type': 'IDN', 'num_block': 4, 'num_feat': 64},
    'SRResNet': {'type': 'MSRResNet', 'num_block': 16, 'num_feat': 64},
}
# Small enough for two iterations in a fraction of a second.
TINY = {
    'EDSR': {'num_block': 1, 'num_feat': 8},
    'DPDNN': {'num_iter': 2, 'num_level': 2, 'num_feat': 8},
    'RCAN': {'num_group': 1, 'num_block': 1, 'num_feat': 16, 'squeeze_factor': 2},
    'HAT': {'img_size': 8, 'window_size': 8, 'embed_dim': 16, 'depths': [1], 'num_heads': [2], 'squeeze_factor': 2,
            'num_feat': 8},
    'VDSR': {'num_conv': 3, 'num_feat': 8},
    'ESPCN': {'num_feat': 8},
    'CARN': {'num_block': 1, 'num_feat': 8},
    'IDN': {'num_block': 1, 'num_feat': 16},
    'MSRResNet': {'num_block': 1, 'num_feat': 8},
}


def parse(file: str, tmp_path: Path, *force: str):
    """Without the checks that look at the disk: here are neither data nor weights."""
    return parse_options(str(OPTIONS / file), root_path=str(tmp_path), is_train=Path(file).name.startswith('train_'),
                         check_files=False, num_gpu_available=0, force_yml=force)


def kind_and_name(file: str) -> tuple[str, str]:
    kind, _, name = Path(file).stem.partition('_')
    return kind, name


# ----------------------------------------------------------------------------------------------------------- the texts


@pytest.mark.parametrize('file', FILES)
def test_is_valid(file, tmp_path):
    kind, name = kind_and_name(file)
    assert kind in ('train', 'test')
    parsed = parse(file, tmp_path)
    assert not parsed.warnings
    assert (OPTIONS / file).read_text().startswith('# ')
    flat = parsed.flat
    assert '${' not in dump_flat(flat)
    scale = flat['scale']
    assert flat['network_g']['upscale'] == scale
    folder = Path(file).parent.name
    if folder not in ('', 'networks') or file == 'networks/test_x4.yml':
        return
    assert flat['name'] == name
    assert scale == int(name[-1])
    published = PUBLISHED[name.split('_')[0]]
    assert published.items() <= flat['network_g'].items()
    data = [flat['datasets']['train'], flat['datasets']['val']] if kind == 'train' else flat['datasets'].values()
    if kind == 'train':
        assert data[0]['gt_size'] == 48 * scale
    else:
        assert len(data) == 5
        assert flat['val']['metrics']['psnr']['crop_border'] == scale
    assert all(('bd' if 'BD' in name else 'bic') + f'x{scale}' in d['dataroot_lq'] for d in data)
    assert all(f'GTmod{scale}' in d['dataroot_gt'] for d in data)


def test_the_papers_tables_are_complete():
    """Tables 5 and 6 of the UDL paper: three networks, three trainings, four settings; each can be tested too."""
    paper = {f'{network}_{loss}_{setting}.yml' for network in ('EDSR', 'EDSR-S', 'DPDNN')
             for loss in ('L1', 'ESU', 'UDL') for setting in ('x2', 'x3', 'x4', 'BDx3')}
    released = {f'{network}_UDL_released_x4.yml' for network in ('EDSR', 'EDSR-S')}
    for kind in ('train', 'test'):
        assert {file for file in FILES if '/' not in file and file.startswith(kind)} == \
            {f'{kind}_{name}' for name in paper | released}


RIVALS = {
    'TLW': (('RCAN', 'VDSR', 'EDSR', 'HAT'), {'tlw_opt': {'type': 'TLWLoss', 'base': 'l1', 'judge': 'vgg',
                                                          'judge_linear': False}}),
    'L1_GV': (('EDSR', ), {'pixel_opt': {'type': 'L1Loss'},
                           'gv_opt': {'type': 'GradientVarianceLoss', 'loss_weight': 0.01, 'patch_size': 16}}),
    'L2_GV': (('VDSR', 'ESPCN'), {'pixel_opt': {'type': 'MSELoss'},
                                  'gv_opt': {'type': 'GradientVarianceLoss', 'loss_weight': 0.01, 'patch_size': 16}}),
    'ExpectedL1': (('EDSR-S', 'RCAN', 'VDSR', 'CARN', 'IDN', 'SRResNet'), {'pixel_opt': {'type': 'ExpectedL1Loss'}}),
}


def test_the_rivals_losses_are_there_on_their_papers_networks(tmp_path):
    """And none has more iterations than the paper's L1, or other data."""
    baseline = parse('train_EDSR-S_L1_x4.yml', tmp_path).flat
    expected = {f'networks/train_{network}_{loss}_x4.yml': losses
                for loss, (networks, losses) in RIVALS.items() for network in networks}
    assert expected.keys() == {file for file in TRAIN if file.startswith('networks/')}
    for file, losses in expected.items():
        flat = parse(file, tmp_path).flat
        train = flat['train']
        assert {key for key in train if key.endswith('_opt')} == losses.keys()
        assert all(block.items() <= train[key].items() for key, block in losses.items())
        assert flat['datasets'] == baseline['datasets']
        assert [train[key] for key in ('total_iter', 'scheduler', 'optim_g')] == \
            [baseline['train'][key] for key in ('total_iter', 'scheduler', 'optim_g')]


@pytest.mark.parametrize('network', ['EDSR', 'EDSR-S', 'DPDNN'])
def test_the_baseline_has_the_budget_of_both_stages(network, tmp_path):
    l1, esu, udl = (parse(f'train_{network}_{method}_x4.yml', tmp_path).flat['train']['total_iter']
                    for method in ('L1', 'ESU', 'UDL'))
    assert l1 == esu + udl


def test_no_base_is_left_over():
    files = {file.resolve() for file in OPTIONS.rglob('*.yml')}
    named = set()
    for file in files:
        content = yaml.safe_load(file.read_text())
        bases = content.get('_base_') or []
        bases = [bases] if isinstance(bases, str) else bases
        # the plan of a comparison names the files that its trainings and tests share
        bases += [content[key] for key in ('train', 'test') if isinstance(content.get(key), str)]
        named |= {(file.parent / base).resolve() for base in bases}
    assert {file for file in files if file.name.startswith('_') or file.parent.name == '_base_'} <= named <= files


# ----------------------------------------------------------------------------------------------------------- trainings


def tiny(file: str, tmp_path: Path, *force: str):
    """The parsed options with a network and images so small that an iteration takes no time."""
    flat = parse(file, tmp_path).flat
    small = [f'network_g:{key}={value}' for key, value in TINY[flat['network_g']['type']].items()]
    if 'tlw_opt' in flat['train']:
        small.append('train:tlw_opt:judge_random=true')
    return parse(file, tmp_path, *small, f'datasets:train:gt_size={8 * flat["scale"]}', *force)


def images(size: int, scale: int, seed: int) -> dict:
    """Two photographs, (2, 3, size, size), and their reductions."""
    gt = np.stack([photograph(seed + n, size, size) for n in range(2)])
    lq = np.stack([cv2.resize(image, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA) for image in gt])
    return {key: torch.from_numpy(value.astype(np.float32) / 255).permute(0, 3, 1, 2)
            for key, value in (('gt', gt), ('lq', lq))}


def train(parsed, iterations: int = 2):
    """The model after so many iterations, each checked: finite losses, and every weight that is to learn moves."""
    model = build_model(parsed.opt)
    model.iters_per_epoch = 1  # what an epoch is: else TLW counts the images on the disk
    learning = {f'{label}.{name}': weight for label, network in model.networks_in_training().items()
                for name, weight in network.named_parameters() if weight.requires_grad}
    before = {name: weight.detach().clone() for name, weight in learning.items()}
    for iteration in range(1, iterations + 1):
        model.update_learning_rate(iteration, warmup_iter=parsed.flat['train'].get('warmup_iter', -1))
        model.feed_data(images(parsed.flat['datasets']['train']['gt_size'], parsed.flat['scale'], 10 * iteration))
        model.optimize_parameters(iteration)
        log = {key: value for key, value in model.get_current_log().items() if key.startswith('l_')}
        assert log
        assert np.isfinite(list(log.values())).all()
    assert not [name for name, weight in learning.items() if torch.equal(weight, before[name])]
    assert all(weight.isfinite().all() for weight in learning.values())
    return model


@pytest.mark.parametrize('file', TO_TRAIN)
def test_trains(file, tmp_path):
    flat, force = parse(file, tmp_path).flat, []
    if flat.get('stage1'):
        model = train(tiny(flat['stage1'], tmp_path), 1)
        weights = {'pretrain_network_g': model.net_g, 'pretrain_network_u': model.net_u}
        force.append('stage1=~')  # whose network would not be the tiny one
        for key in flat['path'].keys() & weights.keys():  # what the checker had this stage read
            torch.save({'params': weights[key].state_dict()}, tmp_path / f'{key}.pth')
            force.append(f'path:{key}={tmp_path / key}.pth')
        assert len(force) > 1
    train(tiny(file, tmp_path, *force))
