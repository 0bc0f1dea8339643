"""Whole runs on tiny data: both stages, their files, resuming, scores, stock BasicSR and several processes."""
import argparse
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs import build_network
from basicsr.data import build_dataset
from basicsr.metrics import calculate_psnr
from basicsr.models.sr_model import SRModel
from basicsr.utils import imfrombytes, img2tensor, tensor2img
from conftest import assert_same_weights
from torch.utils.data import DataLoader

from udl_basicsr.functional.log_scale_maps import decode_log_scale
from udl_basicsr.options.parse import parse_options
from udl_basicsr.training import arguments, loop, stages
from udl_basicsr.training.history import read_history
from udl_basicsr.utils.checkpoints import CheckpointError
from udl_basicsr.utils.scores import CSV_FIELDS, HISTORY_FIELDS, Scores, SetScores, _csv

ROOT = Path(__file__).resolve().parents[1]


def train(project, stage, *force, **kwargs):
    parsed = project.parse(stage, *force, **kwargs)
    stages.train(parsed, 'the command')
    return parsed


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file() and p.suffix != '.log'}


# -------------------------------------------------------------------------------------------------------------- stages


def test_two_stages_from_one_option_file(project):
    parsed = train(project, 'udl', 'val:save_img=true')
    experiments = project.root / 'experiments'
    assert files(experiments / 'esu' / 'models') == {f'net_{n}_{i}.pth' for n in 'gu' for i in (4, 8, 'latest')}
    assert files(experiments / 'udl' / 'models') == {f'net_g_{i}.pth' for i in (4, 8, 'latest')}

    # net_u is the whole UncertaintyNet, net_g its mean network, loadable strictly by stock BasicSR's own EDSR
    stage1_u = project.weights('esu', label='u')
    stage1_g = {k.removeprefix('mean_network.'): v for k, v in stage1_u.items() if k.startswith('mean_network.')}
    assert_same_weights(stage1_g, project.weights('esu'))
    stock = build_network(parsed.flat['network_g']).eval()
    stock.load_state_dict(project.weights('udl'), strict=True)

    # the same pixels: the picture that was saved at the end is what stock EDSR makes of the input
    data = next(iter(DataLoader(build_dataset(parsed.opt['datasets']['val']))))
    name = Path(data['lq_path'][0]).stem
    with torch.no_grad():
        picture = tensor2img([stock(data['lq'])])
    visualization = experiments / 'udl' / 'visualization' / name
    assert np.array_equal(cv2.imread(str(visualization / f'{name}_8.png')), picture)

    # and beside it s of the frozen stage-1 network, on the documented scale
    net_u = build_network({'backbone': parsed.flat['network_g'], **parsed.flat['network_u']}).eval()
    net_u.load_state_dict(stage1_u)
    with torch.no_grad():
        s = net_u.log_scale(data['lq'])[0].mean(0).numpy()
    saved = cv2.imread(str(visualization / f'{name}_8_log_scale.png'), cv2.IMREAD_UNCHANGED)
    np.testing.assert_allclose(decode_log_scale(saved), s.clip(-2, 6), atol=1e-3)

    # stage 2 starts from stage 1, and a second call does not train stage 1 again
    before = (experiments / 'esu' / 'models' / 'net_u_latest.pth').stat().st_mtime_ns
    train(project, 'udl', 'name=again', 'train:total_iter=1', 'train:optim_g:lr=1e-12')
    assert (experiments / 'esu' / 'models' / 'net_u_latest.pth').stat().st_mtime_ns == before
    assert_same_weights(project.weights('again'), project.weights('esu'), rtol=0, atol=1e-9)


def test_an_interrupted_first_stage_goes_on(project):
    train(project, 'esu')
    straight = project.weights('esu', label='u')
    models = project.root / 'experiments' / 'esu' / 'models'
    for path in (*models.glob('*_8.pth'), *models.glob('*latest*'), models.parent / 'training_states' / '8.state'):
        path.unlink()  # as if killed after iteration 4
    train(project, 'udl', 'train:total_iter=2')
    assert_same_weights(project.weights('esu', label='u'), straight)
    assert 'iterations 5 to 8' in project.log('esu')


def test_the_stages_in_turns(project):
    experiments, still = project.root / 'experiments', ('train:optim_g:lr=1e-12', 'val=~', 'logger:keep_last=1')
    train(project, 'udl', 'rounds=2', *still)
    assert {p.name for p in experiments.iterdir()} == {'esu', 'udl', 'esu_round2', 'udl_round2'}
    # with a rate of nothing each run ends where it began, so what it began with shows
    assert_same_weights(project.weights('udl'), project.weights('esu'), rtol=0, atol=1e-9)
    second = project.weights('esu_round2', label='u')
    assert_same_weights(project.weights('udl_round2'), project.weights('esu_round2'), rtol=0, atol=1e-9)

    # round 2 of stage 1 goes on from the mean network of stage 2 and the head of round 1, and does train
    given = yaml.safe_load((experiments / 'esu_round2' / 'esu.yml').read_text())['path']
    assert Path(given['pretrain_network_g']) == experiments / 'udl/models/net_g_latest.pth'
    assert Path(given['pretrain_network_u']) == experiments / 'esu/models/net_u_latest.pth'
    assert any(not torch.equal(v, project.weights('esu', label='u')[k]) for k, v in second.items())

    # resumed: what has ended stays, the last run goes on
    done = {p: p.stat().st_mtime_ns for p in experiments.rglob('*_latest.pth') if 'udl_round2' not in str(p)}
    (experiments / 'udl_round2/models/net_g_latest.pth').unlink()
    train(project, 'udl', 'rounds=3', *still, auto_resume=True)
    assert {p: p.stat().st_mtime_ns for p in done} == done
    assert 'iterations 9 to 8' in project.log('udl_round2')  # it had only to be finished
    assert (experiments / 'udl_round3/models/net_g_latest.pth').exists()
    assert not list(experiments.glob('*_archived_*'))


def test_the_sigma_branch_beside_the_expected_l1(project):
    """It shares the features: with eq. 10 the body has another gradient than without, and the tail the same."""
    expected_l1 = 'train:pixel_opt={type: ExpectedL1Loss}'
    train(project, 'plain', expected_l1)
    (project.root / 'sigma.yml').write_text(yaml.safe_dump({
        '_base_': '_base_.yml', 'name': 'sigma', 'stage': 'sigma',
        'network_u': {'head': {'type': 'SigmaHead', 'num_feat': 8}},
        'train': {'pixel_opt': {'type': 'ExpectedL1Loss'}, 'sigma_opt': {'type': 'SigmaLoss', 'loss_weight': 0.01}}}))
    model = project.model('sigma')
    model.net_g.load_state_dict(project.weights('plain', 4))
    other = project.model('plain', expected_l1)
    other.net_g.load_state_dict(project.weights('plain', 4))
    data = next(iter(DataLoader(build_dataset(model.opt['datasets']['train']), batch_size=4)))
    for each in (model, other):
        torch.manual_seed(5)
        each.feed_data(data)
        each.optimize_parameters(1)
    grads, without = ({k: p.grad for k, p in m.net_g.named_parameters()} for m in (model, other))
    tail = {k for k in grads if k.startswith(('upsample', 'conv_last'))}
    assert {k for k in grads if not torch.equal(grads[k], without[k])} == grads.keys() - tail
    assert {'l_sigma', 'l_pix', 'sigma_mean'} <= set(model.get_current_log())

    train(project, 'sigma', 'val:save_img=true', 'val:metrics:ause={type: calculate_ause, crop_border: 2}')
    assert '# ause' in project.log('sigma')
    straight = project.weights('sigma', label='u')
    (project.root / 'experiments/sigma/training_states/8.state').unlink()
    train(project, 'sigma', auto_resume=True)  # the noise of the loss depends on the iteration, not on the past
    assert_same_weights(project.weights('sigma', label='u'), straight)
    train(project, 'udl', 'stage1=~', 'network_u={type: UncertaintyNet, head: {type: SigmaHead, num_feat: 8}}', *(
        f'path:pretrain_network_{n}={project.root}/experiments/sigma/models/net_{n}_latest.pth' for n in 'gu'))
    assert 'l_udl' in project.log('udl')


def test_losses_fall_and_the_terms_are_logged_apart(project):
    train(project, 'esu', 'train:total_iter=60', 'train:optim_g:lr=0.005', 'train:scheduler:milestones=[50]',
          'logger:save_checkpoint_freq=100', 'val=~')
    values = [[float(v) for v in row] for row in re.findall(
        r'l_fidelity: (\S+) l_log_scale: (\S+) s_mean: (\S+) s_floor: (\S+)', project.log('esu'))]
    fidelity, log_term, s_mean, s_floor = np.array(values).T
    assert len(values) == 30
    assert (fidelity + log_term)[-5:].mean() < 0.5 * (fidelity + log_term)[:2].mean()
    np.testing.assert_allclose(log_term, 2 * s_mean, rtol=1e-3)
    assert ((s_floor >= 0) & (s_floor <= 1)).all()


def test_the_frozen_uncertainty_stays_as_it_was(project):
    train(project, 'esu')
    model = project.model('udl')
    frozen = {k: v.clone() for k, v in model.net_u.state_dict().items()}
    owned = {id(p) for group in model.optimizer_g.param_groups for p in group['params']}
    model.feed_data(next(iter(DataLoader(build_dataset(model.opt['datasets']['train']), batch_size=4))))
    model.optimize_parameters(1)
    assert_same_weights(model.net_u.state_dict(), frozen)
    assert not model.net_u.training
    assert not any(id(p) in owned or p.requires_grad for p in model.net_u.parameters())
    assert not any('head' in name for name, _ in model.trained.named_parameters())


@pytest.mark.parametrize(('changes', 'reason'), [
    ({'network_g:num_feat': 16}, 'network'),
    ({'path:pretrain_network_u': 'net_g_latest.pth'}, 'no uncertainty head'),
])
def test_a_first_stage_of_another_network_is_refused_before_anything_is_made(project, changes, reason):
    train(project, 'esu', 'train:total_iter=1', 'val=~')
    models = project.root / 'experiments' / 'esu' / 'models'
    force = {f'path:pretrain_network_{n}': models / f'net_{n}_latest.pth' for n in 'gu'} | {'stage1': '~'}
    force.update({k: models / v if str(v).endswith('.pth') else v for k, v in changes.items()})
    with pytest.raises(CheckpointError, match=reason):
        train(project, 'udl', *(f'{k}={v}' for k, v in force.items()))
    assert not (project.root / 'experiments' / 'udl').exists()


# ---------------------------------------------------------------------------------------------------------------- runs


def test_iterations_are_counted_exactly(project):
    """6 images x 2 in batches of 4 are 3 iterations an epoch; 8 are not a whole number of epochs."""
    train(project, 'plain')
    state = torch.load(project.root / 'experiments/plain/training_states/8.state', weights_only=True)
    assert state['iter'] == 8
    assert state['epoch'] == 2
    assert {int(s['step']) for s in state['optimizers'][0]['state'].values()} == {8}
    log = project.log('plain')
    assert [int(n) for n in re.findall(r'iter: +(\d+),', log)] == [2, 4, 6, 8]
    assert '@ 8 iter' in log  # the final validation, not one or two iterations past it
    assert log.count('Validation val') == 2


def test_the_final_iteration_is_validated_and_logged_where_frequencies_do_not_divide_it(project):
    train(project, 'plain', 'train:total_iter=7')
    log = project.log('plain')
    assert [int(n) for n in re.findall(r'iter: +(\d+),', log)] == [2, 4, 6, 7]
    assert log.count('Validation val') == 2
    assert re.search(r'Validation val(?:(?!Validation).)*$', log, re.S)


@pytest.mark.parametrize('stage', ['plain', 'esu', 'udl'])
@pytest.mark.parametrize('extra', [
    (), ('train:ema_decay=0.9', 'train:amp=fp16', 'datasets:train:num_worker_per_gpu=1')], ids=['', 'ema-fp16-worker'])
def test_resuming_is_exact(project, stage, extra):
    force = ('logger:save_checkpoint_freq=3', 'val:save_best={metric: psnr, dataset: val}', *extra)
    if stage == 'udl':
        train(project, 'esu')
    train(project, stage, *force, f'name={stage}_straight')
    train(project, stage, *force, 'train:total_iter=6')
    resumed = train(project, stage, *force, auto_resume=True)
    keys = ('params', 'params_ema') if extra else ('params', )
    for key in keys:
        for at in ('latest', 'best'):
            assert_same_weights(project.weights(f'{stage}_straight', at, key=key), project.weights(stage, at, key=key))
    # the resolved file in the run's folder resumes it as well, though it is the file that is written
    again = project.root / 'experiments' / stage / f'{stage}.yml'
    assert yaml.safe_load(again.read_text()) == resumed.flat
    assert '# the command' in again.read_text()
    (project.root / f'{stage}.yml').unlink()
    stages.train(parse_options(str(again), root_path=str(project.root), is_train=True, auto_resume=True,
                               force_yml=['train:total_iter=9']))
    assert 'iterations 9 to 9' in project.log(stage)  # the last one is saved, whatever the frequency


def test_no_metric_is_called_like_a_field_of_what_keeps_it(project):
    """The lists that options are checked against are those of the files themselves."""
    train(project, 'plain', 'train:total_iter=4')
    entries = read_history(project.root / 'experiments' / 'plain' / 'history.jsonl')
    fields = {key for entry in entries for key in entry} - {'psnr', 'l_pix', 'grad_norm'}
    assert fields == set(HISTORY_FIELDS)
    scores = Scores(name='a', scale=2, network='EDSR', weights='w', protocol='p', versions={},
                    datasets={'val': SetScores.of({'0': {'psnr': 1.}})})
    assert _csv(scores).splitlines()[0].split(',') == [*CSV_FIELDS, 'psnr']


def test_an_old_run_is_kept(project):
    train(project, 'plain', 'train:total_iter=1', 'val=~')
    old = files(project.root / 'experiments' / 'plain')
    train(project, 'plain', 'train:total_iter=2', 'val=~')
    archived = list((project.root / 'experiments').glob('plain_archived_*'))
    assert len(archived) == 1
    assert files(archived[0]) == old


def test_best_checkpoint_is_that_of_the_best_validation(project):
    train(project, 'plain', 'val:save_best={metric: psnr, dataset: val}', 'val:val_freq=2', 'train:optim_g:lr=0.05',
          'logger:save_checkpoint_freq=2')
    scores = {int(i): float(v) for v, i in re.findall(r'# psnr: (\S+)\tBest: \S+ @ (\d+) iter', project.log('plain'))}
    best = int(re.findall(r'Best: \S+ @ (\d+) iter', project.log('plain'))[-1])
    assert scores[best] == max(scores.values())
    assert_same_weights(project.weights('plain', 'best'), project.weights('plain', best))


def test_only_the_last_checkpoints_are_kept(project):
    train(project, 'esu', 'logger:save_checkpoint_freq=2', 'logger:keep_last=2', 'val=~')
    run = project.root / 'experiments' / 'esu'
    assert {p.stem for p in (run / 'training_states').iterdir()} == {'6', '8'}
    assert files(run / 'models') == {f'net_{n}_{i}.pth' for n in 'gu' for i in (6, 8, 'latest')}


def test_validation_gives_stock_basicsrs_figures(project):
    parsed = train(project, 'plain')
    stock = SRModel({**parsed.opt, 'is_train': False, 'path': {
        'pretrain_network_g': str(project.root / 'experiments/plain/models/net_g_latest.pth')}})
    stock.nondist_validation(DataLoader(build_dataset(parsed.opt['datasets']['val'])), 8, None, False)
    ours = float(re.findall(r'# psnr: (\S+)', project.log('plain'))[-1])
    assert ours == pytest.approx(stock.metric_results['psnr'], abs=1e-4)


def test_gray_images_train_both_stages(project):
    """One channel, Y of BT.601; the score is that of pixels computed here."""
    base = project.root / '_base_.yml'
    options = yaml.safe_load(base.read_text())
    options['network_g'] |= {'type': 'MSRResNet', 'num_in_ch': 1, 'num_out_ch': 1}  # EDSR subtracts a mean RGB
    for data in options['datasets'].values():
        data['color'] = 'y'
    base.write_text(yaml.safe_dump(options))
    parsed = train(project, 'udl', 'train:total_iter=4')
    model = build_network(parsed.opt['network_g'])
    model.load_state_dict(project.weights('udl'))
    scores = []
    for path in (project.pairs / 'val' / 'lq').glob('*.png'):
        lq, gt = (cv2.imread(str(project.pairs / 'val' / kind / path.name)) @ (24.966, 128.553, 65.481) / 255 + 16
                  for kind in ('lq', 'gt'))
        with torch.no_grad():
            sr = 255 * model(torch.tensor(lq[None, None] / 255, dtype=torch.float32)).clamp(0, 1)[0, 0].numpy()
        error = (sr.round() - gt.round())[2:-2, 2:-2]
        scores.append(10 * np.log10(255**2 / (error**2).mean()))
    assert float(re.findall(r'# psnr: (\S+)', project.log('udl'))[-1]) == pytest.approx(np.mean(scores), abs=1e-3)


def test_tensorboard_shows_the_losses_and_s(project):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    train(project, 'esu', 'logger:use_tb_logger=true')
    events = EventAccumulator(str(project.root / 'tb_logger' / 'esu')).Reload()
    assert {'losses/l_fidelity', 'losses/l_log_scale', 's_mean', 's_floor', 'metrics/val/psnr'} <= set(
        events.Tags()['scalars'])
    assert [e.step for e in events.Scalars('metrics/val/psnr')] == [4, 8]
    assert sorted(events.Tags()['images']) == ['log_scale/val/0', 'log_scale/val/1', 'log_scale/val/2']


# ---------------------------------------------------------------------------------------------------------------- test


def test_scores(project, pairs):
    parsed = train(project, 'udl')
    blocks = {**parsed.flat, 'path': {k: v for k, v in parsed.flat['path'].items() if k.startswith('pretrain')}}
    del blocks['stage1'], blocks['train'], blocks['logger']
    blocks['datasets'] = {'test': {**parsed.flat['datasets']['val'], 'name': 'tiny'}}
    blocks['path']['pretrain_network_g'] = str(project.root / 'experiments/udl/models/net_g_latest.pth')
    blocks['val'] = {'save_img': True, 'metrics': parsed.flat['val']['metrics'], 'tile': {'size': 12, 'overlap': 8}}
    (project.root / 'test.yml').write_text(yaml.safe_dump({**blocks, 'name': 'tested'}))
    scores = loop.test(project.parse('test', is_train=False))

    # by hand, with stock EDSR and BasicSR's PSNR
    net = build_network(parsed.flat['network_g']).eval()
    net.load_state_dict(project.weights('udl'))
    expected = {}
    for path in sorted((pairs / 'val' / 'lq').iterdir()):
        lq = img2tensor(imfrombytes(path.read_bytes(), float32=True))
        with torch.no_grad():
            sr = tensor2img([net(lq[None])])
        gt = cv2.imread(str(pairs / 'val' / 'gt' / path.name))
        expected[path.stem] = calculate_psnr(sr, gt, crop_border=2, test_y_channel=True)
    images = scores.datasets['tiny'].images
    assert {k: v['psnr'] for k, v in images.items()} == pytest.approx(expected, abs=1e-4)
    assert scores.datasets['tiny'].mean['psnr'] == pytest.approx(np.mean(list(expected.values())), abs=1e-4)
    results = project.root / 'results' / 'tested'
    assert {'scores.json', 'scores.csv', 'scores.md'} <= {p.name for p in results.iterdir()}
    assert json.loads((results / 'scores.json').read_text())['datasets'] == scores.to_json()['datasets']
    # a set that is called val in a test file is tested as well, as BasicSR does, and not passed over in silence
    blocks['datasets'] = {'val': blocks['datasets']['test']}
    (project.root / 'test.yml').write_text(yaml.safe_dump({**blocks, 'name': 'called_val'}))
    assert loop.test(project.parse('test', is_train=False)).datasets == scores.datasets
    pictures = {f'{n}_{kind}.png' for n in range(3) for kind in ('tested', 'log_scale')}
    assert files(results / 'visualization' / 'tiny') == pictures

    # the training file, and the folder of the run wherever it lies, are enough: tested on what it was validated on
    expected = scores.datasets['tiny']
    again = project.parse('udl', is_train=False)
    assert loop.test(again).datasets == {'val': expected}
    assert 'network_u' not in again.opt
    moved = (project.root / 'experiments' / 'udl').rename(project.root / 'elsewhere')
    folder = parse_options(arguments.tested_file(str(moved)), root_path=str(project.root), is_train=False,
                           num_gpu_available=0)
    assert folder.opt['path']['pretrain_network_g'] == str(moved / 'models' / 'net_g_latest.pth')
    assert loop.test(folder).datasets == {'val': expected}
    # of a stage that trains it, the uncertainty is tested too, with what another file says
    (project.root / 'on.yml').write_text(yaml.safe_dump({
        'datasets': {'test': {**blocks['datasets']['val'], 'name': '${name}'}},
        'val': {'metrics': {'ause': {'type': 'calculate_ause', 'crop_border': '${scale}'}}}}))
    esu = loop.test(project.parse('esu', f'tested_on={project.root / "on.yml"}', is_train=False))
    assert (list(esu.datasets), list(esu.metrics)) == (['esu'], ['ause'])
    with pytest.raises(argparse.ArgumentTypeError, match='has no option file in it; expected the folder of a run'):
        arguments.tested_file(str(results / 'visualization'))


# -------------------------------------------------------------------------------------------- other processes, BasicSR


def run(*args, cwd, **env):
    environment = {**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1', **env}
    return subprocess.run([sys.executable, *map(str, args)], cwd=cwd, env=environment, capture_output=True, text=True,
                          timeout=300, check=False)


def test_stock_basicsr_trains_the_resolved_file(project):
    train(project, 'udl')
    resolved = project.root / 'experiments' / 'udl' / 'udl.yml'
    code = ('import sys, udl_basicsr; from basicsr.train import train_pipeline; '
            f'sys.argv = ["train.py", "-opt", {str(resolved)!r}]; train_pipeline({str(project.root / "stock")!r})')
    done = run('-c', code, cwd=project.root)
    assert done.returncode == 0, done.stderr[-2000:]
    models = project.root / 'stock' / 'experiments' / 'udl' / 'models'
    assert (models / 'net_g_latest.pth').exists()
    log = ''.join(p.read_text() for p in models.parent.glob('*.log'))
    assert log.count('l_udl') == 4
    build_network(yaml.safe_load(resolved.read_text())['network_g']).load_state_dict(
        torch.load(models / 'net_g_latest.pth', weights_only=True)['params'], strict=True)


def test_the_command_line(project):
    """From another folder, as people call it; every failure has a status and no run has been started."""
    script = ROOT / 'udl_basicsr' / 'train.py'
    code = ('import sys; from pathlib import Path; from udl_basicsr.train import main; '
            'main(Path(sys.argv.pop(1)))')
    done = run('-c', code, project.root, '-opt', 'plain.yml', '--force_yml', 'train:total_iter=2', 'val=~', 'name=cli',
               cwd=project.root)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (project.root / 'experiments' / 'cli' / 'models' / 'net_g_latest.pth').exists()

    done = run(script, '-opt', 'plain.yml', '--force_yml', 'train:total_itr=2', 'datasets:train:batch_size_per_gpu=99',
               cwd=project.root)
    assert done.returncode == 2
    assert "did you mean 'total_iter'" in done.stderr
    assert 'Traceback' not in done.stderr
    assert not (ROOT / 'experiments' / 'plain').exists()


@pytest.mark.parametrize(('command', 'interrupted', 'status'), [('train', False, 2), ('test', False, 2),
                                                              ('train', True, 75), ('train', None, 0)])
def test_a_script_of_ones_own_ends_with_the_status(project, command, interrupted, status):
    """``import my_networks``, and ``main()`` as the last line: nothing but ``main`` can hand the status on."""
    (project.root / 'my_networks.py').write_text(f"""
import signal
from udl_basicsr.models.step import StepModel
step = StepModel.optimize_parameters
def stopped(self, iteration):
    signal.raise_signal(signal.SIGTERM)
    step(self, iteration)
if {interrupted}:
    StepModel.optimize_parameters = stopped
""")
    (project.root / 'own.py').write_text(f'import my_networks\nfrom udl_basicsr.{command} import main\nmain()\n')
    force = ['train:total_itr=2'] if interrupted is False else ['train:total_iter=2', 'val=~']
    done = run('own.py', '-opt', 'plain.yml', '--force_yml', *force, cwd=project.root)
    assert done.returncode == status, done.stderr[-2000:]
    assert ('Stopped by SIGTERM after iteration 1 of 2' in done.stderr) == bool(interrupted)
    assert 'Traceback' not in done.stderr


def test_the_console_says_which_stage_it_is_and_what_to_type_next(project):
    force = ['train:total_iter=2', 'val=~']
    done = run('-m', 'udl_basicsr', 'train', '-opt', 'udl.yml', '--force_yml', *force, cwd=project.root,
               PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-2000:]
    said = re.findall(r'(?:INFO: )(Stage \d of .*)', done.stderr + done.stdout)
    assert said == ['Stage 1 of 2: esu', 'Stage 2 of 2: udl']
    shown, rest = (done.stderr + done.stdout).split('INFO: Stage 1')[0], done.stderr + done.stdout
    assert rest.count(' beyond the defaults:') == 1
    # once, in YAML: what was asked for, less what is so in any case; of stage 1 what is other
    options, other = (yaml.safe_load('\n'.join(re.findall('^  .*$', text, re.MULTILINE)))
                      for text in shown.split('Other in the stage before'))
    assert (options['name'], options['stage'], options['train']['total_iter']) == ('udl', 'udl', 2)
    assert 'val' not in options
    assert 'reduction' not in options['train']['udl_opt']
    assert (other['name'], other['stage'], other['train']['udl_opt']) == ('esu', 'esu', None)
    assert not {'datasets', 'network_g', 'scale'} & set(other)
    whole = next((project.root / 'experiments' / 'udl').glob('train_udl_*.log')).read_text(encoding='utf-8')
    for text in ('Version Information', 'find_unused_parameters', 'auto_resume: False'):
        assert (text in rest, text in whole) == (False, text != 'find_unused_parameters')
    last = (done.stderr + done.stdout).rstrip().splitlines()[-2:]
    assert last[0].endswith('The weights are in experiments/udl/models/net_g_latest.pth. To super-resolve pictures '
                            'with them:')
    words = shlex.split(last[1])
    assert words == ['udl', 'infer', 'PICTURES', '--out', 'FOLDER', '--weights',
                     'experiments/udl/models/net_g_latest.pth', '--uncertainty',
                     'experiments/esu/models/net_u_latest.pth']
    words = [{'PICTURES': str(project.pairs / 'val' / 'lq'), 'FOLDER': 'sr'}.get(word, word) for word in words[1:]]
    done = run('-m', 'udl_basicsr', *words, cwd=project.root, PYTHONPATH=str(ROOT))  # it can be typed
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(files(project.root / 'sr')) >= 6

    done = run('-m', 'udl_basicsr', 'train', '-opt', 'plain.yml', '--debug', '--force_yml', 'train:total_iter=500000',
               cwd=project.root)
    assert 'Stage 1 of' not in done.stderr + done.stdout
    assert '--weights experiments/debug_plain/models/net_g_latest.pth' in done.stderr + done.stdout
    history = [json.loads(line) for line in (project.root / 'experiments/debug_plain/history.jsonl').open()]
    assert [entry['iter'] for entry in history if 'dataset' in entry] == [8, 16]


def torchrun(project, *args, processes=2):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    code = 'from pathlib import Path; from udl_basicsr.train import main; main(Path.cwd())'
    (project.root / 'entry.py').write_text(code)
    return run('-m', 'torch.distributed.run', f'--nproc_per_node={processes}', f'--master_port={port}', 'entry.py',
               *args, '--launcher', 'pytorch', cwd=project.root)


def test_two_processes_train_as_one_with_the_doubled_batch(project):
    """Both stages with torchrun and gloo. Plain SGD: Adam's first steps are signs, which amplify rounding."""
    sgd = ('train:optim_g={type: SGD, lr: 0.01}', 'val:save_img=true')
    train(project, 'udl', *sgd, 'name=one', 'train:total_iter=4', 'datasets:train:batch_size_per_gpu=4')
    esu = project.weights('esu', label='u')
    single = {p.stem: p.read_text() for p in project.root.glob('*.yml')}
    for path in (project.root / 'experiments').glob('esu*'):
        path.rename(path.with_name(f'single_{path.name}'))
    (project.root / '_base_.yml').write_text(single['_base_'].replace('batch_size_per_gpu: 4', 'batch_size_per_gpu: 2'))
    done = torchrun(project, '-opt', 'udl.yml', '--force_yml', *sgd, 'name=two', 'train:total_iter=4')
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_weights(project.weights('esu', label='u'), esu, rtol=1e-3, atol=2e-4)  # 8 steps of Adam
    assert (project.root / 'experiments/esu/models/net_u_latest.pth').exists()
    # stage 2 from the very same stage 1
    models = project.root / 'experiments' / 'single_esu' / 'models'
    weights = [f'path:pretrain_network_{n}={models / f"net_{n}_latest.pth"}' for n in 'gu']
    done = torchrun(project, '-opt', 'udl.yml', '--force_yml', *sgd, 'name=two', 'train:total_iter=4', 'stage1=~',
                    *weights)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_weights(project.weights('two'), project.weights('one'), rtol=1e-5, atol=1e-6)
    scores = [re.findall(r'# psnr: (\S+)', project.log(name))[-1] for name in ('one', 'two')]
    assert float(scores[0]) == pytest.approx(float(scores[1]), abs=1e-3)
    assert len(files(project.root / 'experiments/two/visualization')) == 6  # every image once, by one rank or the other


def test_a_wrong_file_fails_on_every_rank(project):
    done = torchrun(project, '-opt', 'udl.yml', '--force_yml', 'train:udl_opt:scalling=exp')
    assert done.returncode != 0
    said = re.findall(r"^rank (\d): .*did you mean 'scaling'", done.stderr, re.MULTILINE)
    assert said
    assert sorted(said) == sorted({*said} & {'0', '1'})  # each once; torchrun may end one before it can say it
