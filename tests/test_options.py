"""Option files: how they are read, what is checked, and with which words."""
import ast
import json
import random
import re
from copy import deepcopy
from dataclasses import fields
from pathlib import Path

import basicsr
import numpy as np
import pytest
import torch
import yaml
from basicsr.utils.options import ordered_yaml
from basicsr.utils.registry import DATASET_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY
from PIL import Image

from udl_basicsr.options import schema, trials
from udl_basicsr.options.parse import OptionError, apply_force_yml, dump_flat, load_yaml, parse_options
from udl_basicsr.utils import settings

ROOT = Path(__file__).resolve().parents[1]
EDSR = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'upscale': 2}


def images(folder: Path, size: tuple[int, int], count: int = 4) -> str:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new('RGB', size, (i, 0, 0)).save(folder / f'{i}.png')
    return str(folder)


def write(path: Path, opt: dict | str) -> str:
    path.write_text(opt if isinstance(opt, str) else yaml.safe_dump(opt, sort_keys=False))
    return str(path)


@pytest.fixture
def train_opt(tmp_path: Path) -> dict:
    """A valid training of stage plain."""
    data = {'name': 'Tiny', 'type': 'PairedImageDataset', 'dataroot_gt': images(tmp_path / 'gt', (64, 48)),
            'dataroot_lq': images(tmp_path / 'lq', (32, 24)), 'io_backend': {'type': 'disk'}}
    return {
        'name': 'run', 'model_type': 'UDLModel', 'stage': 'plain', 'scale': 2, 'num_gpu': 'auto', 'manual_seed': 1,
        'datasets': {'train': {**data, 'gt_size': 32, 'use_hflip': True, 'use_rot': True, 'num_worker_per_gpu': 0,
                               'batch_size_per_gpu': 2},
                     'val': deepcopy(data)},
        'network_g': dict(EDSR),
        'path': {'pretrain_network_g': None},
        'train': {'optim_g': {'type': 'Adam', 'lr': 1e-4, 'betas': [0.9, 0.99]},
                  'scheduler': {'type': 'MultiStepLR', 'milestones': [50], 'gamma': 0.5},
                  'total_iter': 100, 'warmup_iter': -1, 'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0}},
        'val': {'val_freq': 50, 'save_img': False,
                'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 2, 'test_y_channel': True}}},
        'logger': {'print_freq': 10, 'save_checkpoint_freq': 50},
    }


@pytest.fixture
def parse(tmp_path: Path):
    """Parses a dictionary as a file; keyword arguments as those of parse_options."""
    def parse_dict(opt: dict, force: tuple[str, ...] = (), name: str = 'opt.yml', **kwargs):
        kwargs = {'root_path': str(tmp_path), 'is_train': True, 'num_gpu_available': 0, **kwargs}
        return parse_options(write(tmp_path / name, opt), force_yml=force, **kwargs)
    return parse_dict


def refused(parse, opt: dict, *force: str, **kwargs) -> str:
    with pytest.raises(OptionError) as error:
        parse(opt, force, **kwargs)
    return str(error.value)


# ---------------------------------------------------------------------------------------------------- reading files
def test_numbers_are_read_as_people_write_them(tmp_path):
    opt = load_yaml(write(tmp_path / 'a.yml', 'a: 1e-4\nb: !!float 1e-4\nc: -1\nd: 2E+3\ne: "1e-4"\nf: 2020-01-01\n'))
    assert opt == {'a': 1e-4, 'b': 1e-4, 'c': -1, 'd': 2e3, 'e': '1e-4', 'f': '2020-01-01'}


@pytest.mark.parametrize(('text', 'message'), [
    ('a: !!python/object/apply:os.system ["touch owned"]', 'a.yml:1: tag'),
    ('x: 1\na: !!python/name:os.system', 'a.yml:2: tag'),
    ('a: !!binary aGk=', 'is not allowed'),
    ('a: 1\nb: 2\na: 3', "a.yml:3: key 'a' stands here twice"),
    ('a:\n  b: 1\n  b: 2', "a.yml:3: key 'b' stands here twice"),
    ('a: &x {k: 1}\nb: &y {k: 2}\nc:\n  <<: *x\n  <<: *y', r"a.yml:5: key '<<' stands here twice: merge a list"),
    ('a: &x {k: 1}\nc:\n  <<: {<<: *x, <<: *x}', "a.yml:3: key '<<' stands here twice"),
    ('c:\n  <<: {k: 1, k: 2}', "a.yml:2: key 'k' stands here twice"),
    ('a: [1, 2', 'a.yml:'),
    ('a: !!float x', "a.yml:1: 'x' is no float"),
    ('1: 2', "a key must be text, got '1'"),
    ('- 1', 'expected `key: value` lines, got list'),
    ('', 'got nothing'),
    ('a: &a [*a]', 'contains itself'),
    ('_base_: [3]', '_base_: expected a file name'),
    ('_base_: no.yml', 'no.yml: cannot read this option file (named by'),
    ('_base_: a.yml', 'goes round in a circle'),
    ('a: ${nam}\nname: x', "there is no top-level key 'nam'; did you mean 'name'?"),
    ('a: ${a}', 'refers to itself'),
    ('l0: &l0 [1,1,1,1,1,1,1,1,1]\n' + ''.join(f'l{i}: &l{i} [{",".join([f"*l{i - 1}"] * 9)}]\n' for i in range(1, 9)),
     'once its aliases are expanded'),
])
def test_hostile_and_broken_files(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError) as error:
        load_yaml(write(tmp_path / 'a.yml', text))
    assert message in str(error.value)
    assert str(tmp_path / 'a.yml') in str(error.value)
    assert not (tmp_path / 'owned').exists()


def test_inheritance(tmp_path):
    (tmp_path / 'sub').mkdir()
    write(tmp_path / 'sub' / 'grand.yml', 'a: 1\nblock: {type: A, x: 1}\nlist: [1, 2]\nstage1: s.yml\nscale: 2')
    write(tmp_path / 'sub' / 'one.yml', '_base_: grand.yml\na: 2\nb: {c: {d: 1, e: 2}}\ngone: {x: 1}')
    write(tmp_path / 'two.yml', 'b: {c: {e: 3}}')
    opt = load_yaml(write(tmp_path / 'leaf.yml',
                          '_base_: [sub/one.yml, two.yml]\nblock: {type: B, y: 2}\nlist: [3]\ngone: ~\nb: {f: ~}\n'
                          'scale: 4\nn: n_x${scale}\nm: {k: "${scale}", t: "${n}.pth"}'))
    assert opt == {'a': 2, 'block': {'type': 'B', 'y': 2}, 'list': [3], 'b': {'c': {'d': 1, 'e': 3}, 'f': None},
                   'stage1': str(tmp_path / 'sub' / 's.yml'), 'scale': 4, 'n': 'n_x4', 'm': {'k': 4, 't': 'n_x4.pth'}}


def test_anchors_are_copies(tmp_path):
    opt = load_yaml(write(tmp_path / 'a.yml', 'a: &x {k: [1]}\nb: *x\nc: {<<: *x, l: 2}\nd: {<<: [*x, {m: 3}], k: 4}'))
    assert opt['c'] == {'k': [1], 'l': 2}
    assert opt['d'] == {'k': 4, 'm': 3}
    opt['a']['k'].append(2)
    assert opt['b'] == {'k': [1]}
    assert opt['c']['k'] == [1]


def test_force_yml():
    opt = {'train': {'lr': 1, 'gone': {'a': 1}}, 'name': 'x'}
    before = deepcopy(opt)
    new = apply_force_yml(opt, ['train:lr=1e-4', 'train:warmup_iter=-1', 'val:tile:size=[1, 2]', 'name=a=b',
                                'train:gone=~', 'path:pretrain=None', 'flag=true', 'text="1"'])
    assert new == {'train': {'lr': 1e-4, 'warmup_iter': -1}, 'name': 'a=b', 'val': {'tile': {'size': [1, 2]}},
                   'path': {'pretrain': None}, 'flag': True, 'text': '1'}
    assert opt == before
    for entry, message in (('name', 'expected key:key=value'), ('a::b=1', 'expected key:key=value'),
                           ('name:x=1', 'name is a value, not a block'), ('a=[1', '--force_yml a=[1'),
                           ('a=!!python/name:os.system', 'is not allowed')):
        with pytest.raises(OptionError, match=message.replace('[', r'\[')):
            apply_force_yml(opt, [entry])
    for entry, meant in (('train.total_iter=10', 'train:total_iter=10'),
                         ('train.optim_g:lr=1.5', 'train:optim_g:lr=1.5'),
                         ('train:optim_g.lr=1.5', 'train:optim_g:lr=1.5'), ('nope.x=1', 'nope:x=1')):
        with pytest.raises(OptionError, match=re.escape(f'by a colon, not by a dot; did you mean {meant}?')):
            apply_force_yml({'train': {'optim_g': {'lr': 1}}}, [entry])
    named = {'val': {'metrics': {'psnr.y': {'crop_border': 2}}}}
    assert apply_force_yml(named, ['val:metrics:psnr.y:crop_border=4', 'val:metrics:ssim.y={}'])['val']['metrics'] == {
        'psnr.y': {'crop_border': 4}, 'ssim.y': {}}
    assert apply_force_yml({}, ['a=__import__("os").getcwd()']) == {'a': '__import__("os").getcwd()'}


# --------------------------------------------------------------------------------------------------------- parsing
def test_runtime_options_are_those_of_basicsr(parse, train_opt, tmp_path):
    parsed = parse(train_opt, auto_resume=True)
    opt, root = parsed.opt, str(tmp_path / 'experiments' / 'run')
    assert opt['path'] == {'pretrain_network_g': None, 'experiments_root': root, 'models': f'{root}/models',
                           'training_states': f'{root}/training_states', 'log': root,
                           'visualization': f'{root}/visualization'}
    assert (opt['is_train'], opt['dist'], opt['rank'], opt['world_size'], opt['num_gpu']) == (True, False, 0, 1, 0)
    assert opt['auto_resume'] is True
    assert opt['datasets']['train']['phase'] == 'train'
    assert opt['datasets']['val'] | {'phase': 'val', 'scale': 2} == opt['datasets']['val']
    assert 'phase' not in parsed.flat['datasets']['val']
    assert not (tmp_path / 'experiments').exists()


def test_debug(parse, train_opt):
    parsed = parse(train_opt, debug=True)
    assert parsed.opt['name'] == parsed.flat['name'] == 'debug_run'
    assert (parsed.opt['val']['val_freq'], parsed.opt['logger']['print_freq']) == (8, 1)
    assert parsed.flat['val']['val_freq'] == 50
    assert parsed.opt['train']['total_iter'] == parsed.flat['train']['total_iter'] == 16
    assert parse(train_opt | {'name': 'debug_by_name'}).opt['train']['total_iter'] == 100


def test_a_seed_is_drawn_and_noted(parse, train_opt):
    del train_opt['manual_seed']
    parsed = parse(train_opt)
    assert parsed.opt['manual_seed'] == parsed.flat['manual_seed'] > 0


def test_counts_may_be_floats(parse, train_opt):
    train_opt['train']['total_iter'] = 1e2
    train_opt['val']['val_freq'] = 5e1
    flat = parse(train_opt).flat
    assert isinstance(flat['train']['total_iter'], int)
    assert isinstance(flat['val']['val_freq'], int)


def test_two_parses_share_nothing(parse, train_opt):
    first = parse(train_opt)
    first.opt['train']['optim_g'].pop('type')
    first.flat['train']['optim_g'].pop('type')
    second = parse(train_opt)
    assert second.opt['train']['optim_g']['type'] == second.flat['train']['optim_g']['type'] == 'Adam'
    second.opt['train']['optim_g'].clear()
    assert second.flat['train']['optim_g']


def test_flat_file_is_read_back_the_same(parse, train_opt, tmp_path):
    train_opt['train']['optim_g'].update(lr=1e-5, eps=1e-8)
    flat = parse(train_opt).flat
    text = dump_flat(flat)
    # the loader of BasicSR itself is not a safe one, but this text is ours
    assert yaml.load(text, Loader=ordered_yaml()[0]) == flat
    assert load_yaml(write(tmp_path / 'flat.yml', text)) == flat
    assert '&id' not in dump_flat({'a': (x := [1]), 'b': x})
    tricky = {'a': '1e-4', 'b': '2020-01-01', 'c': 1e20, 'd': 'on', 'e': None, 'f': 'x: y', 'g': 'é',
              'h': [[1], {'i': 2}]}
    assert load_yaml(write(tmp_path / 'tricky.yml', dump_flat(tricky))) == tricky
    assert yaml.safe_load(dump_flat(tricky)) == tricky


# -------------------------------------------------------------------------------------------------- keys and values
@pytest.mark.parametrize(('force', 'message'), [
    ('nmae=x', "nmae: unknown key; did you mean 'name'?"),
    ('train:lossses=1', 'train.lossses: unknown key'),
    ('train:total_itr=1', "train.total_itr: unknown key; did you mean 'total_iter'?"),
    ('train:total_iter=many', "train.total_iter: expected iterations, integer, 1 ≤ x ≤ 10⁹, got 'many' (str)"),
    ('train:total_iter=1.5', 'train.total_iter: expected'),
    ('train:total_iter=~', 'train.total_iter: missing'),
    ('train:ema_decay=1', 'train.ema_decay: expected number, 0 ≤ x < 1, got 1'),
    ('train:amp=half', 'train.amp: expected bf16 | fp16'),
    ('train:compile=1', 'train.compile: expected true | false, got 1 (int)'),
    ('train:grad_clip=0', 'train.grad_clip: expected number > 0'),
    ('train:accumulate=3', 'train.accumulate: 3 does not divide datasets.train.batch_size_per_gpu: 2'),
    ('train:warmup_iter=101', 'train.warmup_iter: 101 is longer than the training'),
    ('train=3', 'train: expected a block of keys, got 3'),
    ('name=a/b', 'name: expected name of a folder'),
    ('name=..', 'name: expected name of a folder'),
    ('name=""', 'name: expected name of a folder'),
    ('name=~', 'name: missing'),
    ('model_type=UDLModl', "model_type: no model 'UDLModl' is registered; did you mean 'UDLModel'?"),
    ('stage=two', 'stage: expected plain | esu | udl'),
    ('stage=~', 'stage: missing; expected plain, esu, udl, sigma'),
    ('num_gpu=1', 'num_gpu: 1 is more than the 0 that this machine shows; use auto'),
    ('num_gpu=-1', 'num_gpu: expected auto | integer ≥ 0'),
    ('manual_seed=x', 'manual_seed: expected integer'),
    ('path:models=x', 'path.models: unknown key'),
    ('path:pretrain_network_q=x', 'path.pretrain_network_q: there is no network_q in this file'),
    ('path:strict_load_g=1', 'path.strict_load_g: expected true | false'),
    ('path:pretrain_network_g=no.pth', 'path.pretrain_network_g: no such file: /'),
    ('path:resume_state=no.state', 'path.resume_state: no such file: /'),
    ('logger:print_feq=1', "logger.print_feq: unknown key; did you mean 'print_freq'?"),
    ('logger:wandb:projct=a', "logger.wandb.projct: unknown key; did you mean 'project'?"),
    ('logger:wandb:project=a', 'logger.use_tb_logger: must be true'),
    ('network_g:num_feats=3', "network_g.num_feats: EDSR has no such argument; did you mean 'num_feat'?"),
    ('network_g:num_feat=8.5', 'network_g.num_feat: EDSR expects an integer, got 8.5 (float)'),
    ('network_g:type=EDSRR', "network_g.type: no network 'EDSRR' is known; did you mean 'EDSR'?"),
    ('network_g:num_in_ch=~', 'network_g.num_in_ch: EDSR expects an integer, got null'),
    ('network_g:upscale=4', 'network_g.upscale: 4 disagrees with scale: 2'),
    ('network_g:num_feat=-8', 'network_g: EDSR cannot be built'),
    ('train:pixel_opt:type=L2', "train.pixel_opt.type: no loss 'L2' is known"),
    ('train:pixel_opt:loss_wieght=1',
     "train.pixel_opt.loss_wieght: L1Loss has no such argument; did you mean 'loss_weight'"),
    ('train:pixel_opt:reduction=avg', 'train.pixel_opt.reduction: expected mean, sum or none'),
    ('train:pixel_opt:type=ESULoss', 'train.pixel_opt.type: ESULoss needs the uncertainty; put it in likelihood_opt'),
    ('train:pixel_opt=~', 'train: no loss: add pixel_opt'),
    ('train:likelihood_opt:type=ESULoss', 'train.likelihood_opt: not used in stage plain'),
    ('train:optim_g:type=Adamm', "train.optim_g.type: no optimizer 'Adamm' is known; did you mean 'Adam'?"),
    ('train:optim_g:lr=-1', 'train.optim_g: Adam refuses these arguments: Invalid learning rate'),
    ('train:optim_g:betta=1', "train.optim_g.betta: Adam has no such argument; did you mean 'betas'?"),
    ('train:scheduler:type=Step', 'train.scheduler.type: no scheduler'),
    ('train:scheduler:gama=1', "train.scheduler.gama: MultiStepRestartLR has no such argument; did you mean 'gamma'?"),
    ('train:scheduler:milestones=[5, 2]', 'train.scheduler.milestones: expected increasing'),
    ('train:scheduler:milestones=7', 'train.scheduler.milestones: MultiStepRestartLR expects a list, got 7'),
    ('train:optim_g:lr=.inf', 'train.optim_g.lr: Adam expects'),
    ('datasets:train:type=[1]', 'datasets.train.type: expected text'),
    ('model_type={a: 1}', 'model_type: expected text'),
    ('train:scheduler={type: CosineAnnealingRestartLR, periods: [50]}',
     'train.scheduler.periods: they end at 50, before'),
    ('train:scheduler={type: CosineAnnealingRestartLR, periods: [50, 50]}', 'should have the same length'),
    ('val:metrics:psnr:type=calculate_pnsr', "did you mean 'calculate_psnr'?"),
    ('val:metrics:psnr:test_y=true',
     "val.metrics.psnr.test_y: calculate_psnr has no such argument; did you mean 'test_y_"),
    ('val:metrics:psnr:test_y_channel=1', 'val.metrics.psnr.test_y_channel: calculate_psnr expects true or false'),
    ('val:metrics:psnr:better=up', 'val.metrics.psnr.better: expected higher or lower'),
    ('val:metrics:psnr=3', 'val.metrics.psnr: expected a block with `type`'),
    ('val:metrics:ssim={type: calculate_ssim}', 'val.metrics.ssim.crop_border: calculate_ssim needs this argument'),
    ('val:save_best={metric: ssim, dataset: Tiny}', "val.save_best.metric: there is no metric 'ssim' here"),
    ('val:save_best={metric: psnr, dataset: Tinny}', "no dataset 'Tinny' here; did you mean 'Tiny'?"),
    *((f'val:metrics={{{name}: {{type: calculate_psnr, crop_border: 2}}}}',
       f'val.metrics.{name}: is a field of history.jsonl, of scores.csv or of the records of comparisons; call')
      for name in ('iter', 'dataset', 'image', 'initial_weights', 'iteration', 'self')),
    ('train:pix_opt={type: MSELoss}', 'train.pix_opt: its loss would be called l_pix, as that of train.pixel_opt is'),
    ('val:save_best={metric: psnr}', 'val.save_best.dataset: missing'),
    ('val:tile={size: 8, overlap: 8}', 'val.tile.overlap: 8 must be less than size: 8'),
    ('val:val_freq=~', 'val.val_freq: missing'),
    ('datasets:train:gt_sise=8',
     'datasets.train.gt_sise: unknown key: neither PairedImageDataset nor the loader reads it'),
    ('datasets:train:type=Paired', 'datasets.train.type: no data set'),
    ('datasets:train:use_rot=~', 'datasets.train.use_rot: missing; PairedImageDataset needs it'),
    ('datasets:train:batch_size_per_gpu=~', 'datasets.train.batch_size_per_gpu: missing'),
    ('datasets:train:io_backend:type=dsk', 'datasets.train.io_backend.type: expected disk | lmdb | memcached'),
    ('datasets:train:io_backend:path=x', 'datasets.train.io_backend.path: HardDiskBackend has no such argument'),
    ('datasets:train:prefetch_mode=cuda', 'datasets.train.prefetch_mode: cuda needs a GPU'),
    ('datasets:train:prefetch_mode=gpu', 'datasets.train.prefetch_mode: expected cpu | cuda'),
    ('datasets:train:persistent_workers=true', 'datasets.train.persistent_workers: needs worker processes'),
    ('datasets:train:filename_tmpl=x4', 'datasets.train.filename_tmpl: expected text with {}'),
    ('datasets:train=~', 'datasets.train: missing'),
    ('datasets:test={name: t}', 'datasets.test: a test set in a training file'),
    ('datasets:vall={name: t}', "datasets.vall: unknown key; did you mean 'val'?"),
    ('datasets:val_2={name: Tiny, type: PairedImageDataset}',
     "datasets.val_2.name: 'Tiny' is the name of datasets.val"),
    ('datasets=3', 'datasets: expected a block of keys'),
])
def test_messages(parse, train_opt, tmp_path, force, message):
    text = refused(parse, train_opt, force)
    assert message in text
    assert all(line.startswith(f'{tmp_path / "opt.yml"}: ') for line in text.splitlines())
    assert not (tmp_path / 'experiments').exists()


@pytest.mark.parametrize(('force', 'message'), [
    ('name=con', "name: 'con' (str) is the name of a device on Windows; choose another"),
    ('datasets:train:num_worker_per_gpu=1000', 'num_worker_per_gpu: 1000 are too many processes; expected at most 128'),
    ('datasets:train:dataset_enlarge_ratio=1e9', 'dataset_enlarge_ratio: 4 images x 1000000000 are more than 50000000'),
    ('datasets:val:mean=[0.5, 0.5, 0.5]', 'datasets.val.std: missing; mean and std are given both or not at all'),
    ('datasets:val={mean: [0, 0], std: [1, 1]}', 'datasets.val.mean: expected 1 or 3 numbers, got 2'),
    ('datasets:val={mean: [0], std: [0]}', 'datasets.val.std: the images are divided by it, and it has a 0'),
    ('train:total_iter=9223372036854775807', 'train.total_iter: expected iterations, integer, 1 ≤ x ≤ 10⁹'),
    ('train:optim_g={type: Muon, lr: 1e-3}', 'train.optim_g: Muon cannot train EDSR: ValueError: Muon only'),
    ('network_g:num_block=10000000', 'network_g: EDSR cannot be built: it has more than 500 modules'),
    ('network_g:num_feat=1000000', 'network_g: EDSR cannot be built: it has more than 4.3e+09 parameters'),
    ('network_g:num_in_ch=1', 'network_g: EDSR does not take an image of 3 channels and 16x16'),
    ('network_g={type: MSRResNet, num_out_ch: 1, num_feat: 8, num_block: 1, upscale: 2}', 'network_g: MSRResNet '),
    ('network_g={type: TLWNet}', 'network_g: TLWNet does not take an image of 3 channels and 16x16: TypeError'),
    ('network_g={type: VGGStyleDiscriminator, num_in_ch: 3, num_feat: 8}', 'network_g: VGGStyleDiscriminator does not'),
    ('train:pixel_opt:reduction="none"', 'train.pixel_opt.reduction: expected mean or sum, got none'),
    ('train={accumulate: 2, pixel_opt: {type: L1Loss, reduction: sum}}', 'reduction: expected mean, got sum'),
    ('train:gv_opt={type: GradientVarianceLoss, patch_size: 33}',
     'train.gv_opt: GradientVarianceLoss fails on images of 32x32: ValueError'),
    ('train:gan_opt={type: GANLoss, gan_type: vanilla}', 'train.gan_opt: GANLoss fails on images of 32x32: '),
    ('train:optim_g={type: Adam, lr: 1e-4, foreach: true, fused: true}', 'train.optim_g: Adam refuses these arguments'),
    ('train:optim_g=~', 'train.optim_g: missing'),
    ('train:optim_g:lr=~', 'train.optim_g.lr: Adam expects'),
    ('train:optim_g={type: Adam}', 'train.optim_g.lr: missing; expected the learning rate'),
    ('train:optim_g={type: Adam, lr: 1e-4, betas: [0.9]}', 'train.optim_g: Adam refuses these arguments'),
    ('train:scheduler={restarts: [0, 5], restart_weights: [1]}',
     'train.scheduler.restart_weights: expected one for each of restarts, 2, got [1]'),
    ('train:scheduler={restarts: [7], restart_weights: [a]}',
     "train.scheduler.restart_weights: expected a list of numbers > 0, got ['a']"),
    ('val:metrics:psnr:input_order=CHW', 'val.metrics.psnr.input_order: images come as HWC here'),
    ('val:metrics:psnr:crop_border=24', 'val.metrics.psnr: calculate_psnr '),
    ('dist_params:port=70000', 'dist_params.port: expected integer, 1 ≤ x ≤ 65535, got 70000'),
])
def test_what_would_fail_later(parse, train_opt, force, message, monkeypatch):
    """Networks, losses, metrics and optimizers are tried on next to nothing; random states do not notice."""
    monkeypatch.setattr(trials, 'MOST_MODULES', 500)
    opt = deepcopy(train_opt)
    key, value = force.split('=', 1)
    block = yaml.safe_load(value)
    if isinstance(block, dict) and 'type' not in block:  # merged into what is there
        force = [f'{key}:{k}={json.dumps(v)}' for k, v in block.items()]
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    text = refused(parse, opt, *([force] if isinstance(force, str) else force))
    assert message in text
    assert len(text) < 1000
    assert torch.equal(torch.random.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()
    assert random.getstate() == state[2]


@pytest.mark.parametrize('force', ['stage={a: 1}', 'network_g:type=[1]', 'stage=[plain]', 'train:pixel_opt:type={}'])
def test_what_fuzzing_found(parse, train_opt, force):
    """Values of a type that nobody writes, where they are looked up or looked into before their type is known."""
    assert force.split('=')[0].replace(':', '.') in refused(parse, train_opt, force)
    del train_opt['stage']
    assert 'train.tlw_opt: ' in refused(parse, train_opt, 'model_type=TLWModel', 'train:tlw_opt=x')


def test_the_head_is_tried(parse, two_stages):
    text = refused(parse, two_stages[0], 'network_u:head={type: UDLHead, num_feat: -1}')
    assert 'opt.yml: network_u: UncertaintyNet cannot be built: ' in text


def test_models_of_basicsr_are_tried(parse, train_opt):
    del train_opt['stage']
    parse(train_opt, ['model_type=SRModel'])
    assert "model_type: SRGANModel cannot be built from these options: KeyError: 'network_d'" in refused(
        parse, train_opt, 'model_type=SRGANModel')


def test_all_problems_at_once(parse, train_opt):
    text = refused(parse, train_opt, 'nmae=x', 'train:total_iter=0', 'network_g:num_feats=3',
                   'datasets:train:dataroot_gt=nowhere', 'datasets:val:dataroot_lq=nowhere')
    assert len(text.splitlines()) == 5


@pytest.mark.parametrize('force', [
    'train:optim_g={type: SGD, lr: 0.1, momentum: 0.9}',
    'train:scheduler={type: CosineAnnealingRestartLR, periods: [100]}',
    'logger:wandb={project: ~, resume_id: ~}', 'val:metrics:psnr:better=higher', 'val=~', 'datasets:val=~',
    'train:perceptual_opt={type: PerceptualLoss, layer_weights: {conv5_4: 1}}', 'network_g:res_scale=0.1',
    'val:tile={size: 8, overlap: 2}', 'train:grad_clip=0.5', 'datasets:train:use_shuffle=true', 'val:suffix=~',
    'train:pixel_opt={type: WeightMapLoss, weight_map: hr_gradient}', 'train:amp=bf16', 'val:self_ensemble=true',
])
def test_what_is_fine_passes(parse, train_opt, force):
    parse(train_opt, [force])


# --------------------------------------------------------------------------------------------- models of other people
def test_stock_models_take_what_their_source_reads(parse, train_opt):
    gan = deepcopy(train_opt) | {
        'model_type': 'ESRGANModel', 'network_d': {'type': 'VGGStyleDiscriminator', 'num_in_ch': 3, 'num_feat': 4}}
    del gan['stage']
    gan['train'] |= {'optim_d': {'type': 'Adam', 'lr': 1e-4}, 'net_d_iters': 1, 'net_d_init_iters': 0,
                     'gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla', 'loss_weight': 5e-3}}
    gan['path']['strict_load_d'] = True
    parse(gan)
    warning, = parse(gan, ['train:net_d_itters=1']).warnings
    assert "train.net_d_itters: unknown key; did you mean 'net_d_iters'" in warning
    assert 'VGGStyleDiscriminator has no such argument' in refused(parse, gan, 'network_d:num_feats=3')
    assert 'train.optim_d.beta' in refused(parse, gan, 'train:optim_d:beta=1')
    assert 'train.accumulate: ESRGANModel does not read this key' in refused(parse, gan, 'train:accumulate=2')
    assert 'train.udl_opt: ESRGANModel does not read' in refused(parse, gan, 'train:udl_opt:type=UDLLoss')
    # BasicSR 1.4.2 builds few optimizers; what it cannot build is refused before, not by a traceback
    if 'SGD' not in Path(__import__('basicsr.models.base_model', fromlist=['x']).__file__).read_text():
        assert 'train.optim_g.type' in refused(parse, gan, 'train:optim_g={type: SGD, lr: 0.1}')


def test_classes_of_users(parse, train_opt, monkeypatch):
    from basicsr.data.paired_image_dataset import PairedImageDataset
    from basicsr.losses.basic_loss import L1Loss
    from basicsr.models.sr_model import SRModel

    class MyData(PairedImageDataset):
        def __init__(self, opt):
            super().__init__(opt)
            self.noise = opt.get('noise', 0)

    class MyLoss(L1Loss):
        def __init__(self, power: int = 1, **kwargs):
            super().__init__(**kwargs)

    class MyModel(SRModel):
        def init_training_settings(self):
            settings = self.opt['train']
            self.beta = settings['beta']
            super().init_training_settings()

    for registry, cls in ((DATASET_REGISTRY, MyData), (LOSS_REGISTRY, MyLoss), (MODEL_REGISTRY, MyModel)):
        monkeypatch.setitem(registry._obj_map, cls.__name__, cls)
    train_opt['datasets']['train'] |= {'type': 'MyData', 'noise': 3}
    train_opt['train']['pixel_opt'] = {'type': 'MyLoss', 'power': 2, 'loss_weight': 1.0}
    parse(train_opt)
    assert "did you mean 'noise'" in refused(parse, train_opt, 'datasets:train:nois=3')
    assert "did you mean 'loss_weight'" in refused(parse, train_opt, 'train:pixel_opt:los_weight=3')
    del train_opt['stage']
    train_opt['model_type'] = 'MyModel'
    parse(train_opt, ['train:beta=3'])
    assert "did you mean 'beta'" in refused(parse, train_opt, 'train:betta=3')


# ------------------------------------------------------------------------------------------------------------ stages
@pytest.fixture
def two_stages(train_opt, tmp_path):
    """Files of stage 1 and stage 2."""
    first, second = deepcopy(train_opt), deepcopy(train_opt)
    first |= {'name': 'one', 'stage': 'esu', 'network_u': {'type': 'UncertaintyNet', 'tap': 'upsample'}}
    second |= {'name': 'two', 'stage': 'udl', 'network_u': first['network_u'], 'stage1': 'one.yml'}
    del first['train']['pixel_opt'], second['train']['pixel_opt'], second['path']
    first['train']['likelihood_opt'] = {'type': 'ESULoss'}
    second['train']['udl_opt'] = {'type': 'UDLLoss'}
    write(tmp_path / 'one.yml', first)
    return first, second


def test_stage_2_finds_the_weights_of_stage_1(parse, two_stages, tmp_path):
    parsed = parse(two_stages[1])
    models = tmp_path / 'experiments' / 'one' / 'models'
    assert parsed.flat['path'] == {'pretrain_network_g': str(models / 'net_g_latest.pth'),
                                   'pretrain_network_u': str(models / 'net_u_latest.pth')}
    assert parsed.flat['stage1'] == str(tmp_path / 'one.yml')
    assert parsed.stage1.opt['name'] == 'one'
    again = tmp_path / 'flat.yml'
    again.write_text(dump_flat(parsed.flat))
    assert parse_options(str(again), root_path=str(tmp_path), is_train=True, num_gpu_available=0).flat == parsed.flat


def test_stage_messages(parse, two_stages, tmp_path):
    first, second = two_stages
    assert 'opt.yml: stage1: goes round in a circle' in refused(parse, second, 'stage1=' + str(tmp_path / 'opt.yml'))
    assert 'none.yml: cannot read this option file' in refused(parse, second, 'stage1=none.yml')
    assert 'is not what stage 1 trains' in refused(parse, second, 'network_g:num_block=2')
    assert 'network_u: ' in refused(parse, second, 'network_u:head={type: UDLHead, num_feat: 4}')
    assert 'train.udl_opt: missing; stage udl needs it' in refused(parse, second, 'train:udl_opt=~')
    assert 'network_u: missing; stage udl needs it' in refused(parse, second, 'network_u=~')
    text = refused(parse, second, 'train:udl_opt:scaling=cubic')
    assert 'train.udl_opt: UDLLoss refuses these arguments' in text
    assert 'does not look at the uncertainty' in refused(parse, second, 'train:udl_opt={type: L1Loss}')
    assert 'path.pretrain_network_u: missing' in refused(parse, second, 'stage1=~')
    message = refused(parse, first, 'network_u:tap=upsampl')
    assert "network_u.tap: EDSR has no module 'upsampl'; did you mean 'upsample'?" in message
    assert 'it has conv_first, body, conv_after_body, upsample, conv_last' in message
    assert "did you mean 'upsample'" in refused(parse, first, 'network_u:tap=upsampl')
    assert 'network_u.tapp: UncertaintyNet has no such' in refused(parse, first, 'network_u:tapp=upsample')
    assert 'network_u.head.num_feats: UDLHead has no such' in refused(parse, first,
                                                                      'network_u:head={type: UDLHead, num_feats: 3}')
    assert 'network_u: not used in stage plain' in refused(parse, first, 'stage=plain')
    del first['network_u']
    write(tmp_path / 'one.yml', first)
    assert f'{tmp_path / "one.yml"}: network_u: missing' in refused(parse, second)


# -------------------------------------------------------------------------------------------------------------- test
def test_test_files(parse, train_opt, tmp_path):
    opt = {k: v for k, v in train_opt.items() if k not in ('train', 'logger', 'stage')}
    opt['datasets'] = {'test_1': train_opt['datasets']['val']}
    opt['val'] = {'metrics': train_opt['val']['metrics']}
    weights = tmp_path / 'net.pth'
    opt['path'] = {'pretrain_network_g': str(weights)}
    text = refused(parse, opt, is_train=False)
    assert f'path.pretrain_network_g: no such file: {weights}; train first, or set path.pretrain_network_g' in text
    weights.write_bytes(b'')
    parsed = parse(opt, is_train=False)
    assert parsed.opt['path']['results_root'] == str(tmp_path / 'results' / 'run')
    assert parsed.opt['val']['save_img'] is False
    assert 'path.pretrain_network_g: missing' in refused(parse, opt, 'path=~', is_train=False)
    assert '--force_yml datasets:test_1=~' in refused(parse, opt, 'datasets:test_1:dataroot_gt=nowhere', is_train=False)
    assert 'datasets: no set to test on' in refused(parse, opt, 'datasets:test_1=~', 'datasets:x=~', is_train=False)
    text = refused(parse, train_opt, is_train=False)  # taken as what it has trained, which is not there
    assert text.splitlines()[0].startswith(f"{tmp_path / 'opt.yml'}: path.pretrain_network_g: no such file: "
                                           f"{tmp_path / 'experiments/run/models/net_g_latest.pth'}; train first")
    del train_opt['train']
    assert 'is this a training file?' in refused(parse, train_opt, is_train=False)
    assert 'has none; remove the metric' in refused(
        parse, opt, f'datasets:test_1={{name: a, type: SingleImageDataset, dataroot_lq: {tmp_path / "lq"}, '
        'io_backend: {type: disk}}', is_train=False)


def test_the_table_of_keys_is_up_to_date():
    text = (ROOT / 'docs' / 'OPTIONS.md').read_text()
    assert schema.markdown() in text, 'write the table anew: python -m udl_basicsr.options.schema docs/OPTIONS.md'


def test_a_network_that_cannot_be_trained_says_why(project):
    with pytest.raises(OptionError, match=r'network_g\.type: NAFNet cannot be trained here: its image has the size of'):
        project.parse('plain', 'network_g={type: NAFNet}', check_files=False)


def tables(table=schema.OPTIONS):
    """All tables of the schema, the inner ones too."""
    yield table
    for entry in table.values():
        if isinstance(entry.kind, dict):
            yield from tables(entry.kind)


def test_a_default_is_stated_once():
    """The typed views and the table have the same keys; each default is a value that may be written."""
    views = {settings.RunSettings: schema.OPTIONS, settings.LoaderSettings: schema.LOADER,
             settings.TrainSettings: schema.TRAIN, settings.ValSettings: schema.VAL,
             settings.LoggerSettings: schema.LOGGER}
    for view, table in views.items():
        assert {f.name for f in fields(view)} <= table.keys()
        assert view.of(dict.fromkeys(table)) == view.of(None) == view()
    for table in tables():
        for name, entry in table.items():
            if entry.default is not None:
                assert entry.kind.accepts(entry.default), name
                assert 'default' not in entry.doc, name
    assert settings.TrainSettings.of({'accumulate': 4, 'pixel_opt': {}}) == settings.TrainSettings(accumulate=4)


@pytest.mark.parametrize('module', ['train.py', 'models/base_model.py', 'models/sr_model.py', 'data/__init__.py'])
def test_defaults_are_those_of_basicsr(module):
    source = (Path(basicsr.__file__).parent / module).read_text()
    stated = {key: ast.literal_eval(value) for key, value in re.findall(r"\.get\('(\w+)', ([^()]+)\)", source)}
    ours = {name: entry.default for table in tables() for name, entry in table.items() if entry.default is not None}
    assert stated
    for key in stated.keys() & ours.keys() - {'pin_memory'}:  # ours are pinned where there is a GPU to send them to
        assert stated[key] == ours[key], key
