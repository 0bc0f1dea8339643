"""Weights for other programs: safetensors, ONNX, stock BasicSR, spandrel."""
import hashlib
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from basicsr.archs import build_network
from basicsr.models import build_model
from other_programs import _no_grad, close, run  # noqa: F401
from torch import nn

from udl_basicsr.cli import convert as script
from udl_basicsr.deploy import export
from udl_basicsr.options.parse import parse_options
from udl_basicsr.training import loop
from udl_basicsr.utils.checkpoints import CheckpointError, load_network, read_checkpoint, save_atomic
from udl_basicsr.utils.version import __version__

ROOT = Path(__file__).parents[1]


# ---------------------------------------------------------------------------------------------------------- safetensors

def test_safetensors_bit_for_bit(tmp_path, capsys):
    safetensors = pytest.importorskip('safetensors')
    from safetensors.torch import load_file
    weights = {'a.weight': torch.tensor([float('nan'), -0., 1e-42]), 'b': torch.rand(3, 4).half().t(),
               'c': torch.tensor(7), 'd': torch.rand(2, 2).bfloat16()}
    weights['e'] = weights['a.weight']  # shares memory
    save_atomic({'params': weights}, tmp_path / 'm.pth')
    run(capsys, tmp_path / 'm.pth', '--out', tmp_path / 'm.safetensors')
    back = load_file(tmp_path / 'm.safetensors')
    assert back.keys() == weights.keys()
    for key, value in weights.items():
        assert back[key].dtype == value.dtype
        assert back[key].shape == value.shape
        assert back[key].numpy(force=True).tobytes() == value.contiguous().numpy().tobytes() \
            if value.dtype != torch.bfloat16 else torch.equal(back[key], value)
    with safetensors.safe_open(tmp_path / 'm.safetensors', 'pt') as file:
        assert file.metadata() == {'format': 'pt'}
    # and back, of a network that nobody here knows: as BasicSR keeps weights
    run(capsys, tmp_path / 'm.safetensors', '--out', tmp_path / 'back.pth')
    again = torch.load(tmp_path / 'back.pth', weights_only=True)
    assert list(again) == ['params']
    assert again['params'].keys() == weights.keys()
    for key, value in weights.items():
        assert again['params'][key].dtype == value.dtype
        assert torch.equal(again['params'][key].nan_to_num(5), value.nan_to_num(5))


@pytest.mark.parametrize('ending', ['pth', 'safetensors', 'onnx'])
def test_a_full_disk_is_not_bad_input(tmp_path, capsys, ending):
    resource = pytest.importorskip('resource')
    if ending == 'onnx':
        pytest.importorskip('onnxruntime')
    block = {'type': 'ESPCN', 'upscale': 2}
    (tmp_path / 'opt.yml').write_text(yaml.safe_dump({'network_g': block}))
    weights, out = {'params': build_network(dict(block)).state_dict()}, tmp_path / f'out.{ending}'
    save_atomic(weights, tmp_path / 'm.pth')
    run(capsys, tmp_path / 'm.pth', '--out', tmp_path / 'm.safetensors')
    before = sorted(tmp_path.iterdir())
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, limit[1]))
        status = script.main([str(tmp_path / f'm.{"safetensors" if ending == "pth" else "pth"}'), '--out', str(out),
                              '--opt', str(tmp_path / 'opt.yml')])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    said = capsys.readouterr().err
    assert status == 1
    assert re.search(rf'^error: {out}: cannot be (saved|written) \(.*File too large\); what was there before is kept',
                     said)
    assert 'auto_resume' not in said
    assert sorted(tmp_path.iterdir()) == before


def test_safetensors_know_their_network_and_train_on(tmp_path, capsys, project):
    safetensors = pytest.importorskip('safetensors')
    model = project.model('plain')
    parsed = project.parse('plain')
    folder = tmp_path / 'run' / 'models'
    folder.mkdir(parents=True)
    save_atomic({'params': model.net_g.state_dict()}, folder / 'net_g_latest.pth')
    (tmp_path / 'run' / 'run.yml').write_text(yaml.safe_dump(parsed.flat))
    out = tmp_path / 'x.safetensors'
    run(capsys, folder / 'net_g_latest.pth', '--out', out)
    with safetensors.safe_open(out, 'pt') as file:
        metadata = file.metadata()
    assert metadata['network'] == 'EDSR'
    assert json.loads(metadata['networks'])['network_g'] == parsed.flat['network_g']

    again = build_model(project.parse('plain', f'path:pretrain_network_g={out}').opt)
    for key, value in again.net_g.state_dict().items():
        assert torch.equal(value, model.net_g.state_dict()[key])
    load_network(model.net_g, out, None)  # param_key: ~ as well
    run(capsys, out, '--to', 'edsr', '--out', tmp_path / 'e.pt')  # needs no --opt
    assert (tmp_path / 'e.pt').exists()

    run(capsys, out, '--out', tmp_path / 'net_g.pth')
    for key, value in torch.load(tmp_path / 'net_g.pth', weights_only=True)['params'].items():
        assert torch.equal(value, model.net_g.state_dict()[key])

    out.write_bytes(out.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=r'x\.safetensors: cannot be read as safetensors'):
        read_checkpoint(out)
    run(capsys, out, '--to', 'edsr', '--out', tmp_path / 'f.pt', fails='cannot be read as safetensors')


def test_a_network_that_keeps_all_in_one_submodule(tmp_path, capsys):
    """spandrel's ESRGAN calls it ``model``, as other programs call what they wrap; spandrel's own loader reads it."""
    safetensors, spandrel = pytest.importorskip('safetensors.torch'), pytest.importorskip('spandrel')
    network_g = {'type': 'ESRGAN', 'num_filters': 4, 'num_blocks': 1, 'scale': 2}
    net = build_network(network_g).eval()
    torch.save({'params': net.state_dict()}, tmp_path / 'g.pth')
    (tmp_path / 'x.yml').write_text(yaml.safe_dump({'network_g': network_g}))
    run(capsys, tmp_path / 'g.pth', '--out', tmp_path / 'g.safetensors', '--opt', tmp_path / 'x.yml')
    theirs = spandrel.ModelLoader().load_from_state_dict(safetensors.load_file(tmp_path / 'g.safetensors')).model
    image = torch.rand(1, 3, 9, 12)
    with torch.no_grad():
        assert torch.equal(theirs(image), net(image))
    run(capsys, tmp_path / 'g.safetensors', '--out', tmp_path / 'back.pth')
    assert torch.load(tmp_path / 'back.pth', weights_only=True)['params'].keys() == net.state_dict().keys()


def test_safetensors_are_not_labelled_with_another_network(tmp_path, capsys, project):
    pytest.importorskip('safetensors')
    save_atomic({'params': project.model('plain').net_g.state_dict()}, tmp_path / 'net.pth')
    other = tmp_path / 'other.yml'
    other.write_text('network_g: {type: EDSR, num_in_ch: 3, num_out_ch: 3, num_feat: 8, num_block: 1, upscale: 4}')
    run(capsys, tmp_path / 'net.pth', '--out', tmp_path / 'x.safetensors', '--opt', other, fails='another scale')
    assert not (tmp_path / 'x.safetensors').exists()


# ----------------------------------------------------------------------------------------------------------------- ONNX

NETWORKS = {
    'EDSR': {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'upscale': 3},
    'RRDBNet': {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'scale': 4},
    'VDSR': {'num_feat': 8, 'num_conv': 3, 'upscale': 2},
    'SwinIR': {'upscale': 2, 'img_size': 16, 'window_size': 4, 'img_range': 1., 'depths': [2], 'embed_dim': 8,
               'num_heads': [2], 'mlp_ratio': 2, 'upsampler': 'pixelshuffle', 'resi_connection': '1conv'},
    'HAT': {'upscale': 2, 'img_size': 16, 'window_size': 8, 'compress_ratio': 2, 'squeeze_factor': 4, 'depths': [1],
            'embed_dim': 8, 'num_heads': [2], 'num_feat': 8, 'upsampler': 'pixelshuffle', 'resi_connection': '1conv'},
}


@pytest.mark.parametrize(('name', 'sizes'), [
    ('EDSR', [(1, 17, 23), (3, 8, 40)]), ('RRDBNet', [(1, 17, 23), (2, 8, 24)]), ('VDSR', [(1, 9, 23), (3, 8, 12)]),
    ('SwinIR', [(1, 20, 24), (1, 8, 36)]), ('HAT', [(1, 24, 24), (1, 8, 40)])])
def test_onnx(tmp_path, capsys, name, sizes):
    pytest.importorskip('onnx')
    runtime = pytest.importorskip('onnxruntime')
    network_g = {'type': name, **NETWORKS[name]}
    net = build_network(network_g).eval()
    for parameter in net.parameters():
        parameter += 0.05 * torch.randn_like(parameter)  # attention that attends to something
    save_atomic({'params': net.state_dict()}, tmp_path / 'g.pth')
    (tmp_path / 'x.yml').write_text(yaml.safe_dump({'network_g': network_g}))
    _, notes = run(capsys, tmp_path / 'g.pth', '--out', tmp_path / 'g.onnx', '--opt', tmp_path / 'x.yml')
    assert 'opset 18' in notes
    assert ('one image at a time' in notes) == (name in ('SwinIR', 'HAT'))
    session = runtime.InferenceSession(str(tmp_path / 'g.onnx'), providers=['CPUExecutionProvider'])
    said = session.get_modelmeta().custom_metadata_map  # as another program reads it
    assert {key: said[key] for key in ('scale', 'colour', 'layout', 'udl_basicsr', 'weights_sha256')} == {
        'scale': str(network_g.get('upscale', 4)), 'colour': 'RGB', 'layout': 'NCHW', 'udl_basicsr': __version__,
        'weights_sha256': hashlib.sha256((tmp_path / 'g.pth').read_bytes()).hexdigest()}
    assert '16-bit pixels / 65535' in said['range']
    assert said['mean'].startswith('none')
    assert json.loads(said['network']) == network_g
    for n, h, w in sizes:
        lq = torch.rand(n, 3, h, w)
        close(torch.from_numpy(session.run(['sr'], {'lq': lq.numpy()})[0]), net(lq))
    assert not list(tmp_path.glob('.*'))


class Frozen(nn.Module):
    """Computes with a size in Python, which tracing turns into a constant without any error."""

    def forward(self, x):
        return x * (float(x.shape[-1]) / 40)


class Restless(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


@pytest.mark.parametrize('network', [Frozen, Restless])
def test_onnx_that_differs_is_not_kept(tmp_path, monkeypatch, network):
    pytest.importorskip('onnxruntime')
    monkeypatch.setattr(export, '_WAYS', (('torchscript', True), ('torchscript', False)))
    (tmp_path / 'x.onnx').write_text('of yesterday')
    with pytest.raises(export.ExportError, match=r'nothing was kept(.|\n)*batch of 1: .*differs by'):
        export.export_onnx(network(), tmp_path / 'x.onnx')
    assert [p.name for p in tmp_path.iterdir()] == ['x.onnx']
    assert (tmp_path / 'x.onnx').read_text() == 'of yesterday'
    with pytest.raises(export.ExportError, match='nothing was kept'):
        export.export_onnx(network(), tmp_path / 'new' / 'folder' / 'x.onnx')
    assert [p.name for p in tmp_path.iterdir()] == ['x.onnx']


@pytest.mark.parametrize(('module', 'name'), [('onnx', 'x.onnx'), ('onnxruntime', 'x.onnx'),
                                              ('safetensors.torch', 'x.safetensors')])
def test_what_is_not_installed_is_named_with_its_remedy(tmp_path, monkeypatch, capsys, module, name):
    network_g = {'type': 'EDSR', **NETWORKS['EDSR']}
    save_atomic({'params': build_network(network_g).state_dict()}, tmp_path / 'g.pth')
    (tmp_path / 'x.yml').write_text(yaml.safe_dump({'network_g': network_g}))
    monkeypatch.setitem(sys.modules, module, None)
    run(capsys, tmp_path / 'g.pth', '--out', tmp_path / name, '--opt', tmp_path / 'x.yml',
        fails=rf"needs {module.partition('.')[0]}: pip install 'udl_basicsr\[export\]'")
    assert not (tmp_path / name).exists()


# ----------------------------------------------------------------------------------------------- used by other programs

STOCK = """
name: stock
model_type: SRModel
scale: 2
num_gpu: auto
manual_seed: 0
datasets:
  test_1:
    name: val
    type: PairedImageDataset
    dataroot_gt: {root}/val/gt
    dataroot_lq: {root}/val/lq
    io_backend: {{type: disk}}
network_g: {{type: EDSR, num_in_ch: 3, num_out_ch: 3, num_feat: 8, num_block: 1, upscale: 2}}
path: {{pretrain_network_g: {weights}, strict_load_g: true, resume_state: ~}}
val:
  save_img: false
  suffix: ~
  metrics: {{psnr: {{type: calculate_psnr, crop_border: 2, test_y_channel: true}}}}
"""


def test_stock_basicsr_tests_our_checkpoint(tmp_path, pairs, project):
    model = project.model('plain')
    model.opt['path']['models'] = str(tmp_path)
    model.save(epoch=-1, current_iter=-1)
    file = tmp_path / 'stock.yml'
    file.write_text(STOCK.format(root=pairs, weights=tmp_path / 'net_g_latest.pth'))
    # of ours only the modules that newer libraries lack; udl_basicsr itself is never imported
    code = (f'import os, runpy, sys; runpy.run_path({str(ROOT / "udl_basicsr" / "utils" / "shims.py")!r})'
            '["install_shims"](); from basicsr.test import test_pipeline; test_pipeline(os.getcwd()); '
            'sys.exit(3 * ("udl_basicsr" in sys.modules))')
    done = subprocess.run([sys.executable, '-c', code, '-opt', str(file)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    log = next((tmp_path / 'results' / 'stock').glob('test_stock_*.log')).read_text()
    stock = float(re.search(r'# psnr: ([\d.]+)', log)[1])

    parsed = parse_options(str(file), root_path=str(tmp_path), is_train=False, num_gpu_available=0,
                           force_yml=['name=ours', 'model_type=UDLModel'])
    ours = loop.test(parsed).datasets['val'].mean['psnr']
    assert abs(ours - stock) < 1e-4
    assert 5 < ours < 50


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
@pytest.mark.parametrize(('name', 'architecture'), [('RRDBNet', 'ESRGAN'), ('SwinIR', 'SwinIR'), ('HAT', 'HAT')])
def test_spandrel_runs_our_weights(tmp_path, capsys, name, architecture, suffix):
    spandrel = pytest.importorskip('spandrel')
    network_g = {'type': name, **NETWORKS[name]}
    net = build_network(network_g).eval()
    for parameter in net.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    path = tmp_path / 'net_g.pth'
    save_atomic({'params': net.state_dict()}, path)
    if suffix == 'safetensors':
        pytest.importorskip('safetensors')
        (tmp_path / 'x.yml').write_text(yaml.safe_dump({'network_g': network_g}))
        run(capsys, path, '--out', tmp_path / 'net_g.safetensors', '--opt', tmp_path / 'x.yml')
        path = tmp_path / 'net_g.safetensors'
    found = spandrel.ModelLoader(device='cpu').load_from_file(path)
    assert found.architecture.id == architecture
    lq = torch.rand(1, 3, 24, 40)
    close(found.model.eval()(lq), net(lq))
