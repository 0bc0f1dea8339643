"""Scripts for developers are run, at the smallest size that tells something; benchmark_speed.py: test_speed.py."""
import json
import shutil
from pathlib import Path

import cv2
import pytest
import torch
from basicsr.archs import build_network
from conftest import status_of
from test_commands import script

from udl_basicsr.deploy.restorer import load_restorer
from udl_basicsr.experiments.record_files import read_record
from udl_basicsr.utils import shipped_weights
from udl_basicsr.utils.checkpoints import safetensors_metadata

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = ROOT / 'options' / 'compare'
RECORDS = ROOT / 'docs' / 'results' / 'small_x4'


def test_what_the_command_spends(project, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    module, before = script('benchmark_command'), sorted(tmp_path.iterdir())
    gt, lq = (str(project.pairs / 'val' / name) for name in ('gt', 'lq'))
    for words, said in ((['-opt', 'plain.yml'], 'plain.yml: stage1: missing; expected the option file of a second'),
                        (['-opt', 'udl.yml', '--val', 'none', lq], 'none: expected a folder of images')):
        assert status_of(module.main, words) in (1, 2)
        assert said in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
    assert module.main(['-opt', 'udl.yml', '--val', gt, lq, '--out', 'out.json']) == 0
    report, out = json.loads(Path('out.json').read_text()), capsys.readouterr().out
    assert list(report['segments']) == [module.START, module.BETWEEN, module.VALIDATION]
    for title, spent in report['segments'].items():
        assert all(seconds >= 0 for part, seconds in spent.items() if not part.startswith(('import', 'the rest')))
        assert f'{title}: {sum(spent.values()):.2f} s' in out
    assert report['segments'][module.START]['the step itself'] > 0
    assert report['segments'][module.VALIDATION]['network'] > 0
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / 'out.json'])


def test_how_fast_pictures_are_restored(pairs, tmp_path, capsys):
    module, out = script('benchmark_infer'), tmp_path / 'new' / 'infer.json'
    words = ['--pictures', str(pairs / 'val' / 'lq'), '--count', '1', '--rounds', '2', '--only', 'ours', 'basicsr']
    assert module.main([*words, '--out', str(out)]) == 0
    report = json.loads(out.read_text())
    assert {name: len(rounds) for name, rounds in report['contenders'].items()} == {'ours': 2, 'basicsr': 2}
    assert all(result['seconds'] > 0 for rounds in report['contenders'].values() for result in rounds)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows[2:]] == ['ours', 'basicsr']
    assert rows[2][2] == '1.00'
    (tmp_path / 'b.png').write_text('no picture')
    with pytest.raises(SystemExit):
        module.main(['--pictures', str(tmp_path)])
    assert f'{tmp_path / "b.png"}: no image' in capsys.readouterr().err


def test_what_each_loss_costs(tmp_path, capsys):
    plan = tmp_path / 'plan.yml'
    plan.write_text(f"""
name: two
title: tiny
train: {OPTIONS / '_tiny_.yml'}
test: {OPTIONS / '_tiny_test_.yml'}
reference: L1
seeds: [0]
scales: {{x4: {{}}}}
first: {{iterations: 8, ESU: {{stage: esu, train: {{likelihood_opt: {{type: ESULoss}}}}}}}}
methods:
  L1: {{options: {{stage: plain, network_u: ~, train: {{pixel_opt: {{type: L1Loss}}}}}}}}
  UDL: {{after: ESU, options: {{stage: udl, train: {{udl_opt: {{type: UDLLoss}}}}}}}}
""")
    module = script('benchmark_losses')
    small = ['network_g:num_feat=4', 'network_g:num_block=1', 'datasets:train:batch_size_per_gpu=1']
    assert module.main([str(plan), '--rounds', '1', '--force_yml', *small]) == 0
    rows = [line.split('|')[1:3] for line in capsys.readouterr().out.splitlines() if line.startswith('| ')][1:]
    assert {name.strip(): float(ratio) > 0 for name, ratio in rows} == {'L1': True, 'UDL': True}
    assert [' L1 ', ' 1.00 '] in rows
    assert module.main([str(plan), '--force_yml', 'train:foo=3']) == 2
    assert capsys.readouterr().err.startswith(f'error: {plan}: two_first_ESU_x4_seed0.yml: train.foo: unknown')


def test_processes_and_threads(monkeypatch, tmp_path, capsys):
    module, threads = script('benchmark_processes'), torch.get_num_threads()
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    small = ['--network', 'tiny', '--batch', '4', '--patch', '8', '--steps', '2', '--rounds', '2']
    assert module.main([*small, '--as_worker']) == 0
    torch.set_num_threads(threads)
    assert [seconds > 0 for seconds in json.loads(capsys.readouterr().out)] == [True, True]
    seconds = {(1, 1): 0.4, (1, 2): 0.2, (2, 1): 0.1}
    monkeypatch.setattr(module, 'start', lambda processes, threads, words: [seconds[processes, threads]] * 2)
    assert module.main([*small, '--out', str(tmp_path / 'out.json')]) == 0
    rows = [line.split('  ') for line in capsys.readouterr().out.splitlines()[2:]]
    assert [[cell.strip() for cell in row if cell.strip()] for row in rows] == [
        ['one thread', '10.0', '10.0', '1.00 (1.00 to 1.00)'], ['2 threads', '20.0', '20.0', '2.00 (2.00 to 2.00)'],
        ['2 processes', '40.0', '40.0', '4.00 (4.00 to 4.00)']]
    assert json.loads((tmp_path / 'out.json').read_text())['seconds']['2 threads'] == [[0.2, 0.2], [0.2, 0.2]]


def test_weights_are_shipped_all_or_none(monkeypatch, tmp_path, capsys):
    shipped = tmp_path / 'weights'
    shutil.copytree(shipped_weights.folder(), shipped)
    module = script('ship_weights')
    monkeypatch.setattr(module, 'folder', lambda: shipped)
    content = {file.name: file.read_bytes() for file in shipped.iterdir()}
    assert module.main([]) == 0
    assert {file.name: file.read_bytes() for file in shipped.iterdir()} == content

    file = RECORDS / 'ESU_UDL_x4_seed0.json'
    record = read_record(file)
    last = tmp_path / record.weights
    first = tmp_path / record.weights.replace('_ESU_UDL_', '_first_ESU_')
    blocks = record.options[0]
    network_u = build_network({'backbone': blocks['network_g'], **blocks['network_u']})
    for path, network in ((last, network_u.mean_network), (first.with_name('net_u_latest.pth'), network_u)):
        path.parent.mkdir(parents=True)
        torch.save({'params': network.state_dict()}, path)
    first.parents[1].joinpath('history.jsonl').write_text(
        '{"iter": 8, "l_log_scale": 1}\n{"iter": 9, "dataset": "Set5", "psnr": 28.5, "ssim": 0.81}\n')
    for other, said in ((RECORDS / 'L1_MSE_x4_seed0.json', 'is of the method L1_MSE, expected L1 or ESU_UDL'),
                        (RECORDS / 'L1_x4_seed0.json', 'net_g_latest.pth: no such file'),
                        (ROOT / 'README.md', 'is no JSON file')):
        assert module.main([str(file), str(other), '--root', str(tmp_path)]) in (1, 2)
        assert said in capsys.readouterr().err
        assert {file.name: file.read_bytes() for file in shipped.iterdir()} == content
    assert module.main([str(file), '--root', str(tmp_path)]) == 0
    assert capsys.readouterr().out.count('Wrote ') == 3
    restorer = load_restorer(shipped / 'UDL_x4.safetensors', uncertainty=shipped / 'ESU_x4.safetensors', device='cpu')
    assert restorer.traits[1] == 4
    assert json.loads(safetensors_metadata(shipped / 'ESU_x4.safetensors')['scores']) == {
        'Set5': {'psnr': 28.5, 'ssim': 0.81}}
    assert '28.50 / 0.8100' in (shipped / 'README.md').read_text()


def test_the_figure_of_the_demo(monkeypatch, tmp_path):
    module = script('demo')
    monkeypatch.setattr(module, 'DATA', tmp_path / 'data')
    monkeypatch.setattr(module, 'RESULTS', tmp_path / 'results')
    monkeypatch.setattr(module, 'PHOTOS', {'test': ['astronaut.png']})
    module.photos()
    photo = cv2.imread(str(tmp_path / 'data/photos/test/astronaut.png'))[::2, ::2]
    gt, lq = tmp_path / 'data/test/GTmod2', tmp_path / 'data/test/LRbicx2'
    for folder, image in ((gt, photo), (lq, photo[::2, ::2])):
        folder.mkdir(parents=True)
        cv2.imwrite(str(folder / 'astronaut.png'), image)
    metrics = {name: {'type': f'calculate_{name}', 'crop_border': 2} for name in ('psnr', 'ssim')}
    for run in module.RUNS:
        module.write_bicubic(run, 'demo', gt, lq, 2, metrics, tmp_path / 'results')
    cv2.imwrite(str(tmp_path / 'results/demo_UDL/visualization/demo/astronaut_log_scale.png'),
                photo.astype('uint16') * 257)
    module.figure()
    assert cv2.imread(str(tmp_path / 'results/demo/astronaut.png')).std() > 1
