"""Option files: what is wrong with a key or value is said, and what is fine passes."""
# ruff: noqa: F811 - fixtures that come from option_cases
import json
import random
import re
import sys
from copy import deepcopy

import numpy as np
import pytest
import torch
import yaml
from option_cases import parse, refused, train_opt, write  # noqa: F401
from torch import nn

from udl_basicsr.options import trials
from udl_basicsr.options.parse import dump_flat, parse_options
from udl_basicsr.options.summary import describe_options
from udl_basicsr.options.training_values import judge_of

# ------------------------------------------------------------------------------------------------------ keys and values

@pytest.mark.parametrize(('force', 'message'), [
    ('nmae=x', "nmae: unknown key; did you mean 'name'?"),
    ('train:lossses=1', 'train.lossses: unknown key'),
    ('total_iter=1', "total_iter: unknown key; did you mean 'train.total_iter'?"),  # of another block
    ('train:val_freq=1', "train.val_freq: unknown key; did you mean 'val.val_freq'?"),
    ('gt_size=32', "gt_size: unknown key; did you mean 'datasets.train.gt_size'?"),
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
    ('path:pretrain_network_g=/', 'path.pretrain_network_g: a folder, expected a file: /; correct the path'),
    ('path:resume_state=no.state', 'path.resume_state: no such file: /'),
    ('logger:print_feq=1', "logger.print_feq: unknown key; did you mean 'print_freq'?"),
    ('logger:wandb:projct=a', "logger.wandb.projct: unknown key; did you mean 'project'?"),
    ('logger:wandb:project=a', 'logger.use_tb_logger: must be true'),
    ('network_g:num_feats=3', "network_g.num_feats: EDSR has no such argument; did you mean 'num_feat'?"),
    ('network_g:num_feat=8.5', 'network_g.num_feat: EDSR expects an integer, got 8.5 (float)'),
    ('network_g:type=EDRS', "network_g.type: no network 'EDRS' is known; did you mean 'EDSR'? (if it is your own, "
     'name its module with --import)'),
    ('network_g:num_in_ch=~', 'network_g.num_in_ch: EDSR expects an integer, got null'),
    ('network_g:upscale=4', 'network_g.upscale: 4 disagrees with scale: 2'),
    ('network_g:num_feat=-8', 'network_g: EDSR cannot be built'),
    ('network_g:img_range=0', 'network_g.img_range: expected a positive number, got 0'),
    ('train:pixel_opt:type=L2', "train.pixel_opt.type: no loss 'L2' is known"),
    ('train:pixel_opt:loss_wieght=1',
     "train.pixel_opt.loss_wieght: L1Loss has no such argument; did you mean 'loss_weight'"),
    ('train:pixel_opt:reduction=avg', 'train.pixel_opt.reduction: expected mean, sum or none'),
    ('train:pixel_opt:type=ESULoss', 'train.pixel_opt.type: ESULoss needs the uncertainty; put it in likelihood_opt'),
    ('train:pixel_opt=~', 'train: no loss: add pixel_opt'),
    ('train:likelihood_opt:type=ESULoss', 'train.likelihood_opt: not used in stage plain'),
    ('train:optim_g:type=Adamm', "train.optim_g.type: no optimizer 'Adamm' is known; did you mean 'Adam'?"),
    ('train:optim_g:lr=-1', 'train.optim_g: Adam refuses these arguments: Invalid learning rate'),
    ('train:optim_g:lr=0', 'train.optim_g.lr: 0, with which nothing would be learned; expected number > 0'),
    ('train:pixel_opt:loss_weight=0', 'train.pixel_opt.loss_weight: no loss has another weight than 0'),
    ('train:pixel_opt:loss_weight=-0.1', 'train.pixel_opt.loss_weight: expected number ≥ 0, got -0.1'),
    ('train:optim_g:betta=1', "train.optim_g.betta: Adam has no such argument; did you mean 'betas'?"),
    ('train:scheduler:type=Step', 'train.scheduler.type: no scheduler'),
    ('train:scheduler:gama=1', "train.scheduler.gama: MultiStepRestartLR has no such argument; did you mean 'gamma'?"),
    ('train:scheduler:milestones=[5, 2]', 'train.scheduler.milestones: expected increasing'),
    ('train:scheduler:milestones=7', 'train.scheduler.milestones: MultiStepRestartLR expects a list, got 7'),
    ('train:scheduler:milestones=[x]', 'train.scheduler.milestones: expected a list of iterations, integers ≥ 1, got'),
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
    keys = [line.split(': ')[1] for line in text.splitlines()]
    assert len(keys) == len({*keys})  # each is said once
    assert not (tmp_path / 'experiments').exists()


def test_the_file_of_a_test_is_not_trained(parse, train_opt):
    val = train_opt['datasets'].pop('val')
    opt = {**train_opt, 'datasets': {'test_1': val}, 'val': {'metrics': train_opt['val']['metrics']}}
    del opt['train'], opt['logger']
    text = refused(parse, opt)
    assert text.endswith('opt.yml: is the option file of a test, expected that of a training; give it to udl test')


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
    text = refused(parse, two_stages[0], 'network_u:head={type: Foo}')
    assert "network_u.head.type: no head 'Foo' is known; known: ConstantHead, SigmaHead, UDLHead (if it is" in text


def test_models_of_basicsr_are_tried(parse, train_opt):
    del train_opt['stage']
    parse(train_opt, ['model_type=SRModel'])
    assert "model_type: SRGANModel cannot be built from these options: KeyError: 'network_d'" in refused(
        parse, train_opt, 'model_type=SRGANModel')


def test_networks_and_losses_may_write_to_the_console(capsys):
    """As torch.hub does when it fetches weights; while they are tried nothing of it is shown."""
    class Talks(nn.Conv2d):
        def forward(self, x):
            sys.stdout.write('I compute')
            print('and print', flush=True)
            return super().forward(x)

    block = {'in_channels': 3, 'out_channels': 3, 'kernel_size': 1}
    assert not trials.try_network(Talks, block, channels=3, side=8, scale=1)
    assert not capsys.readouterr().out


def test_all_problems_at_once(parse, train_opt):
    text = refused(parse, train_opt, 'nmae=x', 'train:total_iter=0', 'network_g:num_feats=3',
                   'datasets:train:dataroot_gt=nowhere', 'datasets:val:dataroot_lq=nowhere')
    assert len(text.splitlines()) == 5


@pytest.mark.parametrize('force', [
    'train:optim_g={type: SGD, lr: 0.1, momentum: 0.9}',
    'train:scheduler={type: CosineAnnealingRestartLR, periods: [100]}',
    'logger:wandb={project: ~, resume_id: ~}', 'val:metrics:psnr:better=higher', 'val=~', 'datasets:val=~',
    'train:perceptual_opt={type: PerceptualLoss, layer_weights: {conv5_4: 1}}', 'network_g:res_scale=0.1',
    'val:tile={size: 8, overlap: 2}', 'train:gv_opt={type: GradientVarianceLoss, loss_weight: 0}',
    'train:scheduler={type: CosineAnnealingRestartLR, periods: [100], eta_min: 1e-5}', 'train:grad_clip=0.5',
    'datasets:train:use_shuffle=true', 'val:suffix=~',
    'train:pixel_opt={type: WeightMapLoss, weight_map: hr_gradient}', 'train:amp=bf16', 'val:self_ensemble=true',
])
def test_what_is_fine_passes(parse, train_opt, force):
    parse(train_opt, [force])


# --------------------------------------------------------------------------------------------------------------- stages

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


def test_what_the_command_line_does_not_change_in_stage_1_is_said(parse, two_stages, tmp_path):
    first, second = two_stages
    first['datasets']['train']['dataroot_gt'] = 'nowhere'
    write(tmp_path / 'one.yml', first)
    gt = second['datasets']['train']['dataroot_gt']
    said = f'{tmp_path / "one.yml"}: --force_yml datasets:train:dataroot_gt changes stage 2 alone; change this file'
    assert said in refused(parse, second, f'datasets:train:dataroot_gt={gt}', 'manual_seed=4')
    assert '--force_yml' not in refused(parse, second, 'manual_seed=4')


def test_a_block_of_stage_1_leaves_the_uncertainty_cache_to_stage_2(parse, two_stages):
    second = two_stages[1]
    second['stage1'] = {'stage': 'esu', 'train': {'likelihood_opt': {'type': 'ESULoss'}}}
    parsed = parse(second, ('datasets:train:uncertainty_cache=auto', ))
    assert parsed.flat['datasets']['train']['uncertainty_cache'] == 'auto'
    assert 'uncertainty_cache' not in parsed.stage1.flat['datasets']['train']
    second['stage1']['datasets'] = {'train': {'uncertainty_cache': 'auto'}}
    assert 'in stage1: datasets.train.uncertainty_cache: not used in stage esu' in refused(parse, second)


def test_what_a_block_of_stage_1_sets_for_itself_is_said(parse, two_stages):
    """An option of the command line goes into the file around the block, which wins."""
    second = two_stages[1]
    own = {'stage': 'esu', 'train': {'likelihood_opt': {'type': 'ESULoss'}, 'total_iter': 9}}
    second['stage1'] = own

    def parsed(*force):
        found = parse(second, force)
        return found.flat['train']['total_iter'], found.stage1.flat['train']['total_iter'], [
            warning for warning in found.warnings if '--force_yml' in warning]
    both = parsed('train:total_iter=7', 'train:optim_g:lr=1e-5')
    assert both[:2] == (7, 9)
    assert len(both[2]) == 1
    assert ': --force_yml train:total_iter=7 changes stage 2 alone, since the block stage1 sets' in both[2][0]
    assert both[2][0].endswith('--force_yml stage1:train:total_iter=7')
    assert parsed('stage1:train:total_iter=7')[1:] == (7, [])
    assert parsed('train:optim_g:lr=1e-5')[2] == []


def test_a_name_that_turns_on_basicsrs_debug_mode_is_warned_of(parse, train_opt):
    assert any("'nodebugging' has debug in it" in w for w in parse(train_opt, ['name=nodebugging']).warnings)
    assert not any('debug' in w for w in parse(train_opt, debug=True).warnings)


def test_the_console_shows_how_often_a_debug_run_validates_and_saves(parse, train_opt):
    train_opt |= {'val': {'val_freq': 5000}, 'logger': {'print_freq': 100, 'save_checkpoint_freq': 5000}}
    told = describe_options(parse(train_opt, debug=True))
    assert re.findall(r'(\w+)_freq: (\d+)', told) == [('val', '8'), ('print', '1'), ('save_checkpoint', '8')]


def test_debug_is_short_only_once_the_options_were_checked(parse, two_stages):
    """A schedule that is right for the whole run is not warned of, and one that is wrong is refused."""
    second = two_stages[1]
    second['train'] |= {'total_iter': 100, 'scheduler': {'type': 'MultiStepLR', 'milestones': [50], 'gamma': 0.5}}
    parsed = parse(second, debug=True)
    assert (parsed.flat['train']['total_iter'], parsed.warnings) == (16, ())
    assert parsed.stage1.flat['train']['total_iter'] <= 16
    periods = 'train:scheduler={type: CosineAnnealingRestartLR, periods: [40], restart_weights: [1]}'
    assert 'they end at 40, before total_iter: 100' in refused(parse, second, periods, debug=True)


def test_stage_messages(parse, two_stages, tmp_path):
    first, second = two_stages
    assert 'opt.yml: stage1: goes round in a circle' in refused(parse, second, 'stage1=' + str(tmp_path / 'opt.yml'))
    assert 'opt.yml: stage1: no such file: /' in refused(parse, second, 'stage1=none.yml')
    assert 'opt.yml: tested_on: no such file: /no.yml; ' in refused(parse, second, 'tested_on=/no.yml', is_train=False)
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
    other = 'network_u:backbone={type: EDSR, num_in_ch: 3, num_out_ch: 3, num_feat: 4, num_block: 1, upscale: 2}'
    assert 'network_u.backbone: is not network_g, in whose place stage esu would' in refused(parse, first, other)
    parse(first, ('network_u:backbone=' + json.dumps(first['network_g']), ))
    assert 'network_u: not used in stage plain' in refused(parse, first, 'stage=plain')
    del first['network_u']
    write(tmp_path / 'one.yml', first)
    assert f'{tmp_path / "one.yml"}: network_u: missing' in refused(parse, second)


def test_the_weights_of_a_judge_are_a_file_like_others(parse, train_opt, tmp_path, monkeypatch):
    """Asked for before anything is made, whether the option file names the judge or leaves it to the loss."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    opt = deepcopy(train_opt)
    opt.update(stage='esu', network_u={'type': 'UncertaintyNet', 'head': {'type': 'UDLHead'}})
    del opt['train']['pixel_opt']
    opt['train']['likelihood_opt'] = {'type': 'UEOLoss'}
    where = tmp_path / 'torch' / 'hub' / 'checkpoints'
    assert judge_of(opt['train']['likelihood_opt']) == ('vgg', None)  # the loss's own
    opt['train']['likelihood_opt']['judge'] = 'squeeze'
    text, file = refused(parse, opt), 'squeezenet1_1-b8a52dc0.pth'
    assert f'train.likelihood_opt.judge: LPIPS (squeeze) needs the ImageNet weights {file}, and {where / file} ' in text
    assert 'as its judge_weights' in text
    parse(opt, check_files=False)
    parse(opt, ('train:likelihood_opt:judge_random=true', ))
    (tmp_path / file).write_bytes(b'')
    parse(opt, (f'train:likelihood_opt:judge_weights={tmp_path / file}', ))
    assert 'is not there' not in refused(parse, opt, 'train:likelihood_opt:judge_weights=3')
