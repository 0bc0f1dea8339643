"""Whole runs on tiny data: both stages, their files, resuming."""
import re
import time
from pathlib import Path
from urllib.error import URLError

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs import build_network
from basicsr.data import build_dataset
from basicsr.models.sr_model import SRModel
from basicsr.utils import tensor2img
from conftest import assert_same_weights
from forked import command_line
from torch.utils.data import DataLoader
from whole_runs import files, train

from udl_basicsr.functional.log_scale_maps import decode_log_scale
from udl_basicsr.models.step import StepModel
from udl_basicsr.options.parse import parse_options, renamed
from udl_basicsr.training import stages
from udl_basicsr.training.history import read_history
from udl_basicsr.utils.checkpoints import CheckpointError
from udl_basicsr.utils.scores import CSV_FIELDS, HISTORY_FIELDS, Scores, SetScores, _csv

# --------------------------------------------------------------------------------------------------------------- stages

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
    # from another program's file, of which only the first round is to know how it is read
    torch.save(project.model('plain', 'manual_seed=9').net_g.state_dict(), project.root / 'plain.pth')
    esu = yaml.safe_load((project.root / 'esu.yml').read_text())
    (project.root / 'esu.yml').write_text(yaml.safe_dump(
        {**esu, 'path': {'pretrain_network_g': str(project.root / 'plain.pth'), 'param_key_g': None}}))
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
    assert 'all 8 iterations are done' in project.log('udl_round2')  # it had only to be finished
    assert (experiments / 'udl_round3/models/net_g_latest.pth').exists()
    assert not list(experiments.glob('*_archived_*'))

    # a state is one round's: the next one is not to go on from it
    state = f"path:resume_state={experiments / 'udl/training_states/8.state'}"
    assert 'resume_state' not in renamed(project.parse('udl', 'rounds=2', state), 'udl_round2').opt['path']

    # lengthened: each run of the stage goes on
    train(project, 'udl', 'rounds=2', *still, 'train:total_iter=9', auto_resume=True)
    assert 'iterations 9 to 9' in project.log('udl_round2')


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


@pytest.fixture
def status(project, capsys):
    """How a training by the command line ends, with a message in which something is said."""
    def ended(says, stage, *force):
        argv = ['-opt', project.root / f'{stage}.yml', '--force_yml', 'train:total_iter=1', 'val=~', *force]
        number = command_line(argv, root=project.root)
        assert says in capsys.readouterr().err
        return number
    return ended


@pytest.mark.parametrize('stage', ['plain', 'udl'])
def test_weights_of_another_network_are_refused_before_any_stage_is_trained(project, status, stage):
    other = project.root / 'other.pth'
    torch.save({'params': {'a.weight': torch.ones(2)}}, other)
    for label, network in {'g': 'EDSR', 'u': 'UncertaintyNet'}.items() if stage == 'udl' else {'g': 'EDSR'}.items():
        says = f'{other}: is not a checkpoint of this {network}. It '
        assert status(says, stage, f'path:pretrain_network_{label}={other}') == 2
    state = project.root / '1.state'
    torch.save({'iter': 1}, state)
    assert status(f'{state}: cannot be resumed: it lacks', stage, f'path:resume_state={state}') == 2
    assert not (project.root / 'experiments').exists()


def test_losses_without_their_weights_are_refused_before_any_stage_is_trained(project, status, monkeypatch):
    def refuse(*_, **__):
        raise URLError('no network')

    monkeypatch.setattr('torch.hub.urlopen', refuse)
    monkeypatch.setenv('TORCH_HOME', str(project.root))
    loss = '{type: PerceptualLoss, layer_weights: {conv5_4: 1}}'
    assert status('needs weights that cannot be downloaded', 'udl', f'train:perceptual_opt={loss}') == 2
    assert not (project.root / 'experiments').exists()


def test_what_is_bad_input_is_a_failure_once_a_stage_was_trained(project, status):
    """Only now is it known that this is the cache of another network."""
    cache = project.root / 's'
    cache.mkdir()
    (cache / 'manifest.json').write_text('{"made_by": {}, "maps": {}}')
    refused = 'made by something else', 'udl', f'datasets:train:uncertainty_cache={cache}'
    assert status(*refused) == 1
    assert (project.root / 'experiments/esu/models/net_g_latest.pth').exists()
    assert status(*refused) == 2
    assert [path.name for path in (project.root / 'experiments').iterdir()] == ['esu']


@pytest.mark.parametrize(('there', 'trained', 'status'), [
    ((), ['esu', 'udl', 'esu_round2'], 1),
    (('esu', 'udl', 'esu_round2'), [], 2),  # by the command before: this one has begun nothing
    (('esu', 'udl'), ['esu_round2'], 1)])
def test_the_status_of_a_chain_of_rounds_tells_whether_anything_was_begun(project, monkeypatch, there, trained, status):
    seen = []

    def fake(parsed, command):
        if parsed.opt['name'] == 'udl_round2':
            raise CheckpointError('of something else')
        seen.append(parsed.opt['name'])
        leave(parsed.opt['name'])

    def leave(name):
        models = project.root / 'experiments' / name / 'models'
        models.mkdir(parents=True)
        for label in 'gu':
            (models / f'net_{label}_latest.pth').touch()

    for name in there:
        leave(name)
    monkeypatch.setattr(stages.loop, 'train', fake)
    with pytest.raises(CheckpointError) as refused:
        train(project, 'udl', 'rounds=2', auto_resume=True)
    assert (seen, refused.value.status) == (trained, status)


# ----------------------------------------------------------------------------------------------------------------- runs

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
    assert re.findall(r'eta: ([^,]+),', log)[-1] == '0:00:00'  # where BasicSR has -1 day
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


def test_the_seconds_of_a_step_hold_what_the_log_waits_for(project, monkeypatch):
    """On a GPU that is the step itself."""
    get_current_log = StepModel.get_current_log
    monkeypatch.setattr(StepModel, 'get_current_log', lambda self: time.sleep(0.6) or get_current_log(self))
    train(project, 'plain', 'train:total_iter=2', 'val=~')
    entries = read_history(project.root / 'experiments' / 'plain' / 'history.jsonl')
    assert [entry['seconds'] > 0.3 for entry in entries if 'seconds' in entry] == [True]  # the mean of two steps


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
