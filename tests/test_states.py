"""Training states: what is odd in one is found before anything is made, and what has changed since is said."""
import shutil
from copy import deepcopy

import pytest
import torch
import yaml
from basicsr.models import build_model
from conftest import Project, assert_same_weights
from whole_runs import train

from udl_basicsr.options.parse import OptionError
from udl_basicsr.training import loop
from udl_basicsr.training.run_folder import RunBusyError, goes_on_from, has_ended, make_folders, resume_state
from udl_basicsr.utils.checkpoints import CheckpointError, read_checkpoint


@pytest.fixture(scope='module')
def trained(tmp_path_factory, pairs):
    """Runs of 8 iterations with states at 4 and 8, of which each test gets a copy."""
    project = Project(tmp_path_factory.mktemp('trained'), pairs)
    for stage in ('plain', 'esu'):
        loop.train(project.parse(stage, 'train:ema_decay=0.9'))
    return project


@pytest.fixture
def run(trained, tmp_path, pairs):
    shutil.copytree(trained.root, tmp_path, dirs_exist_ok=True)
    return Project(tmp_path, pairs)


def change(*path):
    """Sets the last of ``path`` in a state: ``change('optimizers', 0, 'state', 5)``."""
    def act(state):
        for key in path[:-2]:
            state = state[key]
        state[path[-2]] = path[-1]
    return act


def drop(*path):
    def act(state):
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]
    return act


def moments(**values):
    return lambda state: state['optimizers'][0]['state'][0].update(values)


def group(**values):
    return lambda state: state['optimizers'][0]['param_groups'][0].update(values)


@pytest.mark.parametrize(('odd', 'reason'), [
    (drop('iter'), 'it lacks iter'), (change('iter', 'x\x1b[2J\n'), r'iter: expected integer ≥ 0, got x\\x1b\[2J\\n'),
    (change('iter', 2**70), 'a number beyond 64 bits'), (change('epoch', None), 'epoch: expected integer'),
    (change('optimizers', 5), 'optimizers: expected a list, got 5'), (change('optimizers', []), 'expected 1, got 0'),
    (change('optimizers', [5]), 'optimizers: 0: expected state and param_groups, got 5'),
    (change('optimizers', 0, 'param_groups', []), 'param_groups: expected groups'),
    (group(params=[5]), 'expected the params 0, 1, 2'),
    (group(params=[0]), 'state: 1: there is no such parameter, param_groups has 1'),
    (lambda state: (group(params=[0])(state), change('optimizers', 0, 'state', {})(state)),
     'is of 1 parameters in 1 group'),
    (group(lr='fast'), 'Adam cannot take a step'), (group(betas=None), 'Adam cannot take a step'),
    (group(eps=float('nan')), 'is not finite'),
    (group(momentum=0.9), 'was saved by another optimizer than Adam: it has momentum'),
    (change('optimizers', 0, 'state', 'x', {}), 'state: x: there is no such parameter'),
    (change('optimizers', 0, 'state', 0, 5), 'state: 0: expected the moments of a parameter, got 5'),
    (drop('optimizers', 0, 'state', 0, 'exp_avg'), r'state: 0: Adam cannot take a step .*exp_avg'),
    (moments(exp_avg=torch.zeros(3)), 'state: 0: Adam cannot take a step'),
    (moments(exp_avg=torch.zeros(8, 3, 3, 3, dtype=torch.int8)), 'exp_avg is of type torch.int8'),
    (moments(exp_avg=torch.zeros(8, 3, 3, 3).to_sparse()), 'exp_avg is not dense'),
    (moments(exp_avg=torch.full((8, 3, 3, 3), float('inf'))), 'is not finite'),
    (moments(step=torch.tensor(-1.)), 'state: 0: '), (moments(step='x'), 'state: 0: '),
    (change('schedulers', {}), 'schedulers: expected a list'), (change('schedulers', []), 'expected 1, one for each'),
    (change('schedulers', 0, 'last_epoch', 10**6), 'last_epoch: expected integer, 0 ≤ x ≤ 9'),
    (change('schedulers', 0, '_last_lr', [1, 2]), r'_last_lr: expected 1 learning rate\(s\), got \[1, 2\]'),
    (change('scaler', {'scale': 0}), 'scaler: scale'), (change('run', 5), 'run: expected a dict, got 5'),
    (change('run', 'manual_seed', -1), 'manual_seed: expected integer'), (change('run', 'options', 3), 'run: options'),
    (change('best_metric_results', {'val': {'psnr': 3}}), 'best_metric_results: val'),
    (change('skipped', [1, -1]), r'skipped: expected two integers ≥ 0, got \[1, -1\]'),
    (change('skipped', 3), 'skipped: expected two'), (change('skipped', [1]), 'skipped: expected two'),
])
def test_a_state_of_odd_content_is_broken(run, odd, reason):
    path = run.root / 'experiments' / 'esu' / 'training_states' / '8.state'
    state = deepcopy(read_checkpoint(path))
    odd(state)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=f'8.state: cannot be resumed: .*{reason}') as error:
        resume_state(run.parse('esu', f'path:resume_state={path}').opt)
    assert str(error.value).isprintable()
    assert resume_state(run.parse('esu', auto_resume=True).opt)['iter'] == 4


def test_networks_of_another_shape_are_broken(run):
    models = run.root / 'experiments' / 'plain' / 'models'
    saved = torch.load(models / 'net_g_8.pth')
    for key in ('params', 'params_ema'):
        torch.save({**saved, key: {**saved[key], 'conv_first.bias': torch.zeros(9)}}, models / 'net_g_8.pth')
        assert resume_state(run.parse('plain', 'train:ema_decay=0.9', auto_resume=True).opt)['iter'] == 4


def test_an_average_may_begin_on_resume(run):
    file = run.root / 'experiments' / 'plain' / 'models' / 'net_g_8.pth'
    torch.save({'params': run.weights('plain', 8)}, file)
    opt = run.parse('plain', 'train:ema_decay=0.9', auto_resume=True).opt
    assert resume_state(opt)['iter'] == 8
    assert_same_weights(build_model(opt).net_g_ema.state_dict(), run.weights('plain', 8))


def test_networks_that_are_not_to_go_on(run):
    """The optimiser's moments and the iteration are the state's; the weights are those that the file names."""
    models = run.root / 'experiments' / 'plain' / 'models'
    force = ('path:ignore_resume_networks=[network_g]', f'path:pretrain_network_g={models}/net_g_4.pth')
    opt = run.parse('plain', *force, auto_resume=True).opt
    assert resume_state(opt)['iter'] == 8
    assert_same_weights(build_model(opt).net_g.state_dict(), run.weights('plain', 4))
    assert_same_weights(build_model({**opt, 'path': {**opt['path'], 'pretrain_network_g': f'{models}/net_g_8.pth'}})
                        .net_g.state_dict(), run.weights('plain', 8))


def test_a_run_that_goes_on_from_another_ones_state_has_a_lock(project):
    parsed = project.parse('plain', 'name=another')
    lock = make_folders(parsed, '', keep=4)
    with pytest.raises(RunBusyError):
        make_folders(parsed, '', keep=4)
    lock.close()


@pytest.mark.parametrize('why', ['named', 'broken'])
def test_later_states_than_that_which_a_run_goes_on_from(run, why):
    """They are not those of this run any more: neither to be gone back to nor to be counted as its last ones."""
    states, ema = run.root / 'experiments' / 'plain' / 'training_states', 'train:ema_decay=0.9'
    force = [ema, 'train:total_iter=6', 'logger:keep_last=1']
    if why == 'broken':
        (states / '8.state').write_bytes(b'')
    else:
        force.append(f'path:resume_state={states}/4.state')
    loop.train(run.parse('plain', *force, auto_resume=why == 'broken'))
    assert [path.name for path in states.iterdir()] == ['6.state']
    aside, = states.parent.glob('later_archived_*')
    assert [path.name for path in aside.glob('*/*.state')] == ['8.state']
    assert resume_state(run.parse('plain', ema, auto_resume=True).opt)['iter'] == 6
    if why == 'named':  # the way that was left can be gone on
        resumed = run.parse('plain', ema, f'path:resume_state={aside}/training_states/8.state').opt
        assert resume_state(resumed)['iter'] == 8
        assert resumed['path']['pretrain_network_g'] == f'{aside}/models/net_g_8.pth'


def test_a_run_that_is_lengthened_has_not_ended(run):
    """Else a chain that is resumed would take the weights that were its last before."""
    latest = run.root / 'experiments' / 'esu' / 'models' / 'net_u_latest.pth'
    for total_iter, there in ((8, True), (12, False)):
        parsed = run.parse('esu', f'train:total_iter={total_iter}', auto_resume=True)
        make_folders(parsed, '', keep=8).close()
        assert latest.exists() == has_ended(parsed) == there


def test_a_run_without_states_goes_on_from_the_one_that_is_named(run):
    state = run.root / 'experiments' / 'plain' / 'training_states' / '4.state'
    parsed = run.parse('plain', 'name=another', 'train:ema_decay=0.9', f'path:resume_state={state}', auto_resume=True)
    assert resume_state(parsed.opt)['iter'] == 4
    assert goes_on_from(parsed, resumes=True) == state.parent.parent


def test_a_state_of_another_uncertainty_is_refused(project):
    train(project, 'udl', 'val=~')
    before = project.weights('udl')
    train(project, 'esu', 'manual_seed=5', 'val=~')
    with pytest.raises(CheckpointError, match='trained with another uncertainty network than this one'):
        train(project, 'udl', 'val=~', auto_resume=True)
    assert_same_weights(project.weights('udl'), before)


@pytest.mark.parametrize('best_before', [True, False])
@pytest.mark.parametrize('name', ['plain', 'another'])
def test_the_best_checkpoint_is_that_of_the_record_whatever_a_run_goes_on_from(project, name, best_before):
    often, save_best = ('val:val_freq=2', 'logger:save_checkpoint_freq=2'), 'val:save_best={metric: psnr, dataset: val}'
    train(project, 'plain', *often, *[save_best] * best_before)
    folder = project.root / 'experiments'
    other = {'name': name, 'train:optim_g:lr': 1e-12, 'train:total_iter': 6,
             'path:resume_state': folder / 'plain/training_states/4.state'}
    train(project, 'plain', *often, save_best, *(f'{key}={value}' for key, value in other.items()))
    best = read_checkpoint(folder / name / 'training_states/6.state')['best_metric_results']['val']['psnr']['iter']
    run = name if best > 4 else 'plain'
    assert_same_weights(project.weights(name, 'best'), project.weights(run, best))


def test_whatever_else_is_called_a_state(run):
    states = run.root / 'experiments' / 'plain' / 'training_states'
    for name in ('².state', '٣.state', '-9.state', 'latest.state', '9.state.part'):
        (states / name).write_bytes(b'')
    loop.train(run.parse('plain', 'train:total_iter=12', 'logger:keep_last=2', auto_resume=True))
    assert {p.name for p in states.iterdir()} >= {'8.state', '12.state', '².state', '٣.state'}


@pytest.mark.parametrize('optimizer', ['SGD', 'RMSprop', 'Adagrad', 'AdamW', 'NAdam', 'RAdam', 'Rprop', 'ASGD'])
def test_states_of_every_optimizer_are_whole(project, optimizer):
    force = (f'train:optim_g={{type: {optimizer}, lr: 1e-4}}', 'train:total_iter=2', 'logger:save_checkpoint_freq=1')
    loop.train(project.parse('plain', *force))
    straight = project.weights('plain')
    models = project.root / 'experiments' / 'plain' / 'models'
    (models / 'net_g_2.pth').unlink()
    loop.train(project.parse('plain', *force, auto_resume=True))
    assert 'iterations 2 to 2' in project.log('plain')
    assert_same_weights(project.weights('plain'), straight)


# ----------------------------------------------------------------------------------------------------- what has changed
def state_of(run, iteration):
    return read_checkpoint(run.root / 'experiments' / 'plain' / 'training_states' / f'{iteration}.state')


def refused(run, stage, *force, **kwargs):
    with pytest.raises((CheckpointError, OptionError)) as error:
        loop.train(run.parse(stage, *force, **{'auto_resume': True, **kwargs}))
    return str(error.value)


def test_another_stage_or_optimizer_under_the_same_name(run):
    before = {p: p.read_bytes() for p in (run.root / 'experiments').rglob('*') if p.is_file()}
    text = refused(run, 'plain', 'name=esu')
    assert 'none of the 2 states can be used' in text
    assert '8.state: cannot be resumed: stage was esu, now it is plain' in text
    assert 'Give this run another name' in text
    assert 'stage was plain, now it is esu' in refused(run, 'esu', 'name=plain')
    text = refused(run, 'plain', 'train:optim_g={type: SGD, lr: 0.1, momentum: 0.9}')
    assert 'train.optim_g.type was Adam, now it is SGD' in text
    assert {p: p.read_bytes() for p in before} == before


def test_a_network_of_other_shapes_under_the_same_name(run):
    text = refused(run, 'plain', 'network_g:num_feat=16')
    assert 'they are of a weight of (8, 3, 3, 3), which is (16, 3, 3, 3) in this network. Give the network its' in text


def test_another_stage_of_a_state_that_does_not_tell(run):
    """As BasicSR's, and those saved before states told their options."""
    for stage in ('plain', 'esu'):
        for path in (run.root / 'experiments' / stage / 'training_states').iterdir():
            state = read_checkpoint(path)
            del state['run']
            torch.save(state, path)
    assert 'it was saved by another network or stage' in refused(run, 'esu', 'name=plain')
    assert 'parameters in 1 group(s), and the network has' in refused(run, 'plain', 'name=esu')
    assert 'Adam: it has' not in refused(run, 'plain', 'train:optim_g={type: SGD, lr: 0.1}', 'name=esu')
    assert 'by another optimizer than SGD: it has' in refused(run, 'plain', 'train:optim_g={type: SGD, lr: 0.1}')


def test_fewer_iterations_than_are_done(run):
    before = {p: p.read_bytes() for p in (run.root / 'experiments').rglob('*') if p.is_file()}
    text = refused(run, 'plain', 'train:total_iter=3')
    assert 'train.total_iter: 3 is less than the 8 iterations that are done' in text
    assert '8.state' in text
    path = run.root / 'experiments' / 'plain' / 'training_states' / '8.state'
    assert 'less than the 8' in refused(run, 'plain', 'train:total_iter=3', f'path:resume_state={path}',
                                        auto_resume=False)
    assert {p: p.read_bytes() for p in before} == before


def test_other_options_are_said_in_one_warning(run, caplog):
    loop.train(run.parse('plain', 'train:ema_decay=0.9', 'train:total_iter=12', 'train:optim_g:lr=1e-2',
                         'train:pixel_opt:type=MSELoss', 'datasets:train:gt_size=24', auto_resume=True))
    said = [r.getMessage() for r in caplog.records if 'Not the options' in r.getMessage()]
    assert len(said) == 1
    assert 'train.optim_g.lr 0.001 -> 0.01' in said[0]
    assert 'train.pixel_opt.type L1Loss -> MSELoss' in said[0]
    assert 'datasets.train.gt_size 32 -> 24' in said[0]
    assert 'Without effect: train.optim_g.lr, since' in said[0]
    assert 'total_iter' not in said[0]
    assert 'Not the options' in run.log('plain')
    assert state_of(run, 12)['schedulers'][0]['_last_lr'] == [5e-4]


def test_the_same_options_are_not_worth_a_word(run):
    loop.train(run.parse('plain', 'train:ema_decay=0.9', 'train:total_iter=12', auto_resume=True))
    assert 'Not the options' not in run.log('plain')


@pytest.mark.parametrize('metrics', [
    '{psnr: {type: calculate_psnr, crop_border: 2}, ssim: {type: calculate_ssim, crop_border: 2}}',
    '{renamed: {type: calculate_psnr, crop_border: 2}}',
    '{psnr: {type: calculate_fitting_error, crop_border: 2}}'])
def test_metrics_that_are_new_begin_with_their_own_best(run, metrics):
    loop.train(run.parse('plain', 'train:total_iter=12', f'val:metrics={metrics}', auto_resume=True))
    best = state_of(run, 12)['best_metric_results']['val']
    assert all(record['iter'] == 12 or (name == 'psnr' and record['better'] == 'higher')
               for name, record in best.items())
    assert all(torch.isfinite(torch.tensor(record['val'])) for record in best.values())


def test_a_schedule_that_is_lengthened_goes_on(project):
    """The state holds the old one, which has no learning rate beyond its end."""
    cosine = 'train:scheduler={{type: CosineAnnealingRestartLR, periods: [{0}], restart_weights: [1], eta_min: 1e-7}}'
    loop.train(project.parse('plain', cosine.format(4), 'train:total_iter=4'))
    loop.train(project.parse('plain', cosine.format(8), auto_resume=True))
    assert 'train.scheduler.periods [4] -> [8]' in project.log('plain')
    assert state_of(project, 8)['schedulers'][0]['periods'] == [8]


def test_discriminators_of_basicsrs_own_models_go_on(project):
    """A network that none of our models has is found beside the state as well."""
    (project.root / 'gan.yml').write_text(yaml.safe_dump({
        '_base_': '_base_.yml', 'name': 'gan', 'model_type': 'SRGANModel', 'network_u': None, 'val': None,
        'network_d': {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4},
        'train': {'pixel_opt': {'type': 'L1Loss'}, 'gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla'},
                  'optim_d': {'type': 'Adam', 'lr': 1e-3}}}))
    loop.train(project.parse('gan'))
    straight = {label: project.weights('gan', label=label) for label in 'gd'}
    experiment = project.root / 'experiments' / 'gan'
    for file in (*experiment.glob('models/*_8.pth'), *experiment.glob('*/*latest*'), *experiment.glob('*/8.state')):
        file.unlink()  # as if killed after iteration 4
    loop.train(project.parse('gan', auto_resume=True))
    for label, weights in straight.items():
        assert_same_weights(project.weights('gan', label=label), weights)


def test_a_first_stage_that_was_trained_otherwise_is_told(project, caplog):
    """It is done and is not trained again, though its options have changed since."""
    def told(*force):
        caplog.clear()
        train(project, 'udl', 'name=again', 'train:total_iter=1', *force)
        return [record.message for record in caplog.records if 'the options that it has now' in record.message]

    train(project, 'esu', 'train:amp=bf16')  # which --fast may have chosen
    file = project.root / 'esu.yml'
    assert told() == []
    options = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(options | {'val': {'val_freq': 2}, 'logger': {'print_freq': 1}}))
    assert told('train:optim_g:lr=1e-5') == []  # neither changes the weights of stage 1
    changed = {'train': {'likelihood_opt': {'type': 'EULoss'}, 'optim_g': {'lr': 2e-3}, 'total_iter': 9},
               'path': {'pretrain_network_g': str(project.root / 'experiments/esu/models/net_g_4.pth')}}
    file.write_text(yaml.safe_dump(options | changed))
    message, = told()
    for part in ('train.likelihood_opt.type ESULoss -> EULoss', 'train.optim_g.lr 0.001 -> 0.002',
                 'train.total_iter 8 -> 9', 'path.pretrain_network_g None -> ', 'experiments/esu away'):
        assert part in message
    for change, key in (({'tap': 'conv_first'}, 'tap None -> conv_first'), (
            {'head': {'type': 'UDLHead', 'num_feat': 5}}, 'head.num_feat None -> 5')):
        network_u = {'type': 'UncertaintyNet', 'head': {'type': 'UDLHead'}, **change}
        file.write_text(yaml.safe_dump({**options, 'network_u': network_u}))
        with pytest.raises(OptionError, match=f'stage 1 was trained with another network: network_u.{key}'):
            train(project, 'udl', 'name=third', f'network_u={network_u}')
    network_u = {'type': 'UncertaintyNet', 'head': {'type': 'UDLHead'}, 'tap': 'upsample'}  # where it was, now named
    file.write_text(yaml.safe_dump({**options, 'network_u': network_u}))
    assert told(f'network_u={network_u}') == []
    file.write_text(yaml.safe_dump(options))
    assert not (project.root / 'experiments/third').exists()
    (project.root / 'experiments/esu/esu.yml').write_text('mine: 1')
    message, = told()
    assert 'is not known: ' in message
    assert 'experiments/esu/esu.yml cannot be read' in message
