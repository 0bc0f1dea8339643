"""Whole runs as users start them: the test, the commands, stock BasicSR, torchrun."""
import argparse
import importlib
import json
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import scipy.ndimage
import torch
import yaml
from basicsr.archs import build_network
from basicsr.metrics import calculate_psnr
from basicsr.utils import imfrombytes, img2tensor, tensor2img
from conftest import assert_same_weights
from forked import command_line, forked, ranks, script, udl
from whole_runs import files, run, train

from udl_basicsr.models.step import StepModel
from udl_basicsr.options.parse import parse_options
from udl_basicsr.training import arguments, loop
from udl_basicsr.utils import shims

ROOT = Path(__file__).resolve().parents[1]


# ----------------------------------------------------------------------------------------------------------------- test

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
    # there whole, here in tiles, of which a value may be rounded the other way
    expected = {n: pytest.approx(image, abs=1e-3) for n, image in images.items()}
    again = project.parse('udl', is_train=False)
    whole = loop.test(again).datasets
    assert whole.keys() == {'val'}
    assert whole['val'].images == expected
    assert 'network_u' not in again.opt
    moved = (project.root / 'experiments' / 'udl').rename(project.root / 'elsewhere')
    folder = parse_options(arguments.tested_file(str(moved)), root_path=str(project.root), is_train=False,
                           num_gpu_available=0)
    assert folder.opt['path']['pretrain_network_g'] == str(moved / 'models' / 'net_g_latest.pth')
    assert loop.test(folder).datasets == whole
    # of a stage that trains it, the uncertainty is tested too, with what another file says
    (project.root / 'on.yml').write_text(yaml.safe_dump({
        'datasets': {'test': {**blocks['datasets']['val'], 'name': '${name}'}},
        'val': {'metrics': {'ause': {'type': 'calculate_ause', 'crop_border': '${scale}'}}}}))
    esu = loop.test(project.parse('esu', f'tested_on={project.root / "on.yml"}', is_train=False))
    assert (list(esu.datasets), list(esu.metrics)) == (['esu'], ['ause'])
    with pytest.raises(argparse.ArgumentTypeError, match='has no option file in it; expected the folder of a run'):
        arguments.tested_file(str(results / 'visualization'))


# --------------------------------------------------------------------------------------------- other processes, BasicSR

def test_what_scipy_2_will_lack_is_provided(monkeypatch):
    monkeypatch.delitem(sys.modules, 'scipy.ndimage.filters', raising=False)
    monkeypatch.delattr('scipy.ndimage.filters', raising=False)
    monkeypatch.setattr('scipy.ndimage.__path__', [])  # as where there is no such module
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module('scipy.ndimage.filters')
    shims.install_shims()
    assert importlib.import_module('scipy.ndimage.filters').convolve is scipy.ndimage.convolve


def test_stock_basicsr_trains_the_resolved_file(project):
    train(project, 'udl')
    resolved = project.root / 'experiments' / 'udl' / 'udl.yml'
    (project.root / 'stock.py').write_text('import udl_basicsr\nfrom basicsr.train import train_pipeline\n'
                                           f'train_pipeline({str(project.root / "stock")!r})')
    done = forked(script, 'stock.py', '-opt', resolved, cwd=project.root)
    assert done.returncode == 0, done.stderr[-2000:]
    models = project.root / 'stock' / 'experiments' / 'udl' / 'models'
    assert (models / 'net_g_latest.pth').exists()
    log = ''.join(p.read_text() for p in models.parent.glob('*.log'))
    assert log.count('l_udl') == 4
    build_network(yaml.safe_load(resolved.read_text())['network_g']).load_state_dict(
        torch.load(models / 'net_g_latest.pth', weights_only=True)['params'], strict=True)


def test_the_command_line(project):
    """Every failure has a status, and no run has been started."""
    done = run(ROOT / 'udl_basicsr' / 'train.py', '-opt', 'plain.yml', '--force_yml', 'train:total_itr=2',
               'datasets:train:batch_size_per_gpu=99', cwd=project.root)
    assert done.returncode == 2
    assert "did you mean 'total_iter'" in done.stderr
    assert 'Traceback' not in done.stderr
    assert not (project.root / 'experiments').exists()


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
    done = forked(script, 'own.py', '-opt', 'plain.yml', '--force_yml', *force, cwd=project.root)
    assert done.returncode == status, done.stderr[-2000:]
    assert (project.root / 'experiments/plain/models/net_g_latest.pth').exists() == (status == 0)
    assert ('Stopped by SIGTERM after iteration 1 of 2' in done.stderr) == bool(interrupted)
    assert 'Traceback' not in done.stderr


def test_the_console_says_which_stage_it_is_and_what_to_type_next(project):
    force = ['train:total_iter=2', 'val=~']
    done = forked(udl, 'train', '-opt', 'udl.yml', '--force_yml', *force, cwd=project.root)
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
    done = forked(udl, *words, cwd=project.root)  # it can be typed
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(files(project.root / 'sr')) >= 6

    done = forked(udl, 'train', '-opt', 'plain.yml', '--debug', '--force_yml', 'train:total_iter=500000',
                  cwd=project.root)
    assert 'Stage 1 of' not in done.stderr + done.stdout
    assert '--weights experiments/debug_plain/models/net_g_latest.pth' in done.stderr + done.stdout
    history = [json.loads(line) for line in (project.root / 'experiments/debug_plain/history.jsonl').open()]
    assert [entry['iter'] for entry in history if 'dataset' in entry] == [8, 16]


def test_warnings_of_stage_2_come_before_stage_1_is_trained(project):
    """Of the README's option file, given few iterations: the block of stage 1 has its own, of which there are many."""
    options = yaml.safe_load((project.root / 'udl.yml').read_text())
    options['stage1'] = {'stage': 'esu', 'train': {'likelihood_opt': {'type': 'ESULoss'}, 'total_iter': 3}}
    (project.root / 'udl.yml').write_text(yaml.safe_dump(options))
    done = forked(udl, 'train', '-opt', 'udl.yml', '--force_yml', 'train:total_iter=2', 'val=~', cwd=project.root)
    assert done.returncode == 0, done.stderr[-2000:]
    before = (done.stderr + done.stdout).split('INFO: Stage 1 of 2')[0]
    assert '--force_yml train:total_iter=2 changes stage 2 alone' in before
    assert 'changes stage 2 alone' in project.log('udl')


def test_a_slow_training_says_early_how_long_it_takes(project, monkeypatch):
    clock, step = [0], StepModel.optimize_parameters

    def slow(self, iteration):
        clock[0] += 100 if iteration == 1 else 25
        step(self, iteration)
    monkeypatch.setattr(StepModel, 'optimize_parameters', slow)
    monkeypatch.setattr(loop, 'time', SimpleNamespace(time=lambda: clock[0]))
    force = ['train:total_iter=8', 'val=~']
    train(project, 'plain', *force, 'logger:print_freq=8')
    assert re.findall('Iteration .*', project.log('plain')) == [
        'Iteration 4 of 8, 25.0 s each: 0:01:40 to go. The losses are logged every 8 iterations.']
    train(project, 'plain', *force, 'logger:print_freq=3', 'name=said')
    assert 'to go.' not in project.log('said')


def both_ranks(project, *force) -> None:
    argv = ['-opt', 'udl.yml', '--launcher', 'pytorch', '--force_yml', *force]
    for child in ranks(command_line, argv, cwd=project.root):
        assert child.wait() == 0, child.stderr[-3000:]


def test_two_processes_train_as_one_with_the_doubled_batch(project):
    """Both stages with gloo. Plain SGD: Adam's first steps are signs, which amplify rounding."""
    sgd = ('train:optim_g={type: SGD, lr: 0.01}', 'val:save_img=true')
    train(project, 'udl', *sgd, 'name=one', 'train:total_iter=4', 'datasets:train:batch_size_per_gpu=4')
    esu = project.weights('esu', label='u')
    single = {p.stem: p.read_text() for p in project.root.glob('*.yml')}
    for path in (project.root / 'experiments').glob('esu*'):
        path.rename(path.with_name(f'single_{path.name}'))
    (project.root / '_base_.yml').write_text(single['_base_'].replace('batch_size_per_gpu: 4', 'batch_size_per_gpu: 2'))
    both_ranks(project, *sgd, 'name=two', 'train:total_iter=4')
    assert_same_weights(project.weights('esu', label='u'), esu, rtol=1e-3, atol=2e-4)  # 8 steps of Adam
    assert (project.root / 'experiments/esu/models/net_u_latest.pth').exists()
    # stage 2 from the very same stage 1
    models = project.root / 'experiments' / 'single_esu' / 'models'
    weights = [f'path:pretrain_network_{n}={models / f"net_{n}_latest.pth"}' for n in 'gu']
    both_ranks(project, *sgd, 'name=two', 'train:total_iter=4', 'stage1=~', *weights)
    assert_same_weights(project.weights('two'), project.weights('one'), rtol=1e-5, atol=1e-6)
    scores = [re.findall(r'# psnr: (\S+)', project.log(name))[-1] for name in ('one', 'two')]
    assert float(scores[0]) == pytest.approx(float(scores[1]), abs=1e-3)
    assert len(files(project.root / 'experiments/two/visualization')) == 6  # every image once, by one rank or the other
