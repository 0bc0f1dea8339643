"""Mutated checkpoints, training states and safetensors: accepted, and then used, or refused with a message that names
the file, never with a library's exception.

The suite looks at a few, always the same ones. The long run draws so many new ones of each kind, uses each that was
accepted, and prints how many there were:

    UDL_FUZZ=7000 python -m pytest -q -s tests/test_fuzz_checkpoints.py
"""
import io
import json
import logging
import os
import pickle
import re
import time
import warnings
import zipfile
from collections import Counter, OrderedDict
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import safetensors.torch
import torch
from basicsr.archs import build_network
from basicsr.models import build_model
from conftest import Project, batch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from test_convert import TheirCARN
from test_fuzz import LONG, _memory, anything, bounded, mutated  # noqa: F401 - a fixture of its module and of this one

from udl_basicsr.deploy.convert import convert_file
from udl_basicsr.deploy.export import ExportError
from udl_basicsr.deploy.infer import InferenceError, load_restorer
from udl_basicsr.options.parse import OptionError
from udl_basicsr.training import loop
from udl_basicsr.training.run_folder import resume_state
from udl_basicsr.training.states import essence, note_changes
from udl_basicsr.utils.checkpoints import CheckpointError, load_network

REFUSALS = (CheckpointError, ExportError, OptionError, InferenceError)
EDSR = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1, 'upscale': 2}
NET_U = {'type': 'UncertaintyNet', 'head': {'type': 'UDLHead', 'num_feat': 4}}
HOSTILE = 'x\x1b[2J\n2026-01-01 INFO: fake\u202e'

KEYS = [HOSTILE, '', 5, -1, 2**70, None, True, 0.5, (1, 2), 'params', 'params_ema', 'state_dict', 'weight', 'module.x',
        'conv_first.weight', 'x' * 5000, 'é', '\ud800', 'state', 'param_groups', 'params.x', 'step', 'options']
PLAIN = [None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63 - 1, -2**63, 2**70, 0.5, -1e308, 1e-300, float('nan'),
         float('inf'), '', 'x', HOSTILE, 'x' * 9000, [], {}, (), [None], [1, 2], [[1]], {'x': 1}, {1: 2}, {None: None},
         (1., 2.), [0.1], [float('nan')], [0.1, 0.2, 0.3], OrderedDict(a=1), Counter('aab'), {'better': 'higher'},
         {'psnr': {'better': 'higher', 'val': 1, 'iter': 1}}, {'state': {}, 'param_groups': []}, torch.Size([1, 2]),
         torch.float32]
UNREADABLE = [{1, 2}, b'x', complex(1, 2), torch.device('cpu'), torch.strided, range(3), 10**5000, Exception]


class File(bytes):
    """Bytes that do not fill the screen when an example fails; what was done to them is noted."""

    def __repr__(self) -> str:
        return f'<{len(self)} bytes>'


# ---------------------------------------------------------------------------------------------------------- mutations
def tensors_like(old: torch.Tensor | None) -> dict:
    """Tensors that some reader of ``old`` stumbles over, each made when it is asked for."""
    old = old.detach() if isinstance(old, torch.Tensor) and old.is_floating_point() else torch.rand(4, 3, 3, 3)
    first = old.flatten()[:1]
    return {
        'empty': lambda: old.flatten()[:0], 'scalar': lambda: first.sum(), 'flat': lambda: old.flatten(),
        'deep': lambda: old[None], 'cut': lambda: old[:1], 'twice': lambda: torch.cat([old, old]) if old.ndim else old,
        'turned': lambda: old.movedim(0, -1) if old.ndim else old, 'strided': lambda: old.T if old.ndim == 2 else old,
        'repeated': lambda: first.expand(old.shape), 'huge': lambda: first.expand(10**6, 10**6),
        'nan': lambda: torch.full_like(old, float('nan')), 'inf': lambda: torch.full_like(old, float('inf')),
        'large': lambda: torch.full_like(old, 1e38), 'negative': lambda: -old.abs() - 1, 'zero': lambda: old * 0,
        'leaf': lambda: torch.nn.Parameter(old), 'half': lambda: old.half(), 'brain': lambda: old.bfloat16(),
        'double': lambda: old.double() * 1e300, 'float8': lambda: old.to(torch.float8_e4m3fn),
        'int8': lambda: old.to(torch.int8), 'int64': lambda: old.long(), 'bool': lambda: old > 0,
        'complex': lambda: old.to(torch.complex64), 'sparse': lambda: old.to_sparse(),
        'rows': lambda: torch.eye(3).to_sparse_csr(), 'meta': lambda: old.to('meta'),
        'quantised': lambda: torch.quantize_per_tensor(old, 0.1, 0, torch.qint8),
        'ragged': lambda: torch.nested.nested_tensor([torch.rand(2), torch.rand(3)])}


@st.composite
def odd_values(draw, old):
    """Anything, a tensor of another kind, or something around or inside of what stands there."""
    how = draw(st.sampled_from(['plain', 'tensor', 'tensor', 'tensor', 'wrap', 'number']))
    if how == 'tensor':
        name = draw(st.sampled_from(sorted(tensors_like(None))))
        note(name)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return tensors_like(old)[name]()
    if how == 'wrap':
        return draw(st.sampled_from([[old], (old, ), {'x': old}, {0: old}, {HOSTILE: old}, OrderedDict(params=old)]))
    if how == 'number' and isinstance(old, (int, float)) and not isinstance(old, bool) and abs(old) < 2**64:
        return draw(st.sampled_from([-old, old + 1, old * 1000, float(old), str(old), old / 7, 10**30 * (old or 1)]))
    return deepcopy(draw(st.sampled_from(PLAIN if draw(st.integers(0, 19)) else UNREADABLE)))


def nodes(value, at: tuple = ()) -> list[tuple]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([at] if at else []), *(path for key, child in children for path in nodes(child, (*at, key)))]


@st.composite
def changed(draw, content):
    """``content`` (dictionaries and lists of tensors and values) with one to three things changed."""
    content = [_copied(content)]  # in a list, so that the whole can be replaced as well
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        paths = nodes(content)
        deep = [path for path in paths if len(path) > 3] or paths
        lists = [paths[1:] or paths, deep, deep, [path for path in paths if len(path) == 2] or paths]
        path = draw(st.sampled_from(draw(st.sampled_from(lists)) if draw(st.integers(0, 19)) else paths))
        block = content
        for key in path[:-1]:
            block = block[key]
        key, old = path[-1], block[path[-1]]
        how = draw(st.sampled_from(['set', 'set', 'set', 'set', 'delete', 'rename', 'insert', 'swap']))
        if how == 'set':
            block[key] = draw(odd_values(old))
        elif how == 'delete' and len(path) > 1:
            del block[key]
        elif how == 'rename' and isinstance(block, dict):
            near = [f'{key}x', str(key)[1:], f'module.{key}'] if isinstance(key, str) else []
            block[draw(st.sampled_from([*near, *KEYS]))] = block.pop(key)
        elif how == 'insert' and isinstance(old, dict):
            old[draw(st.sampled_from(KEYS))] = draw(odd_values(None))
        elif how == 'insert' and isinstance(old, list):
            old.append(draw(odd_values(None)))
        elif how == 'swap':
            other = draw(st.sampled_from(list(block))) if isinstance(block, dict) else 0
            block[key], block[other] = block[other], old
    return content[0]


def _copied(value):
    """Containers anew, tensors as they are."""
    if isinstance(value, dict):
        return {key: _copied(child) for key, child in value.items()}
    return [_copied(child) for child in value] if isinstance(value, list) else value


@st.composite
def damaged(draw, data: bytes, most: int = 4000) -> bytes:
    """Bytes of which some are others, most of them near the beginning or the end, where readers look."""
    for _ in range(draw(st.sampled_from([1, 1, 2, 5]))):
        size = max(len(data), 1)
        start = draw(st.sampled_from([0, max(0, size - most), draw(st.integers(0, size - 1))]))
        at = min(start + draw(st.integers(0, most)), size - 1)
        how = draw(st.sampled_from(['flip', 'flip', 'set', 'cut', 'insert', 'drop', 'zero', 'twice', 'number']))
        if how == 'flip':
            data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))] if data else []) + data[at + 1:]
        elif how == 'set':
            data = data[:at] + draw(st.binary(min_size=1, max_size=8)) + data[at + 8:]
        elif how == 'cut':
            data = data[:at]
        elif how == 'insert':
            data = data[:at] + draw(st.binary(min_size=1, max_size=20)) + data[at:]
        elif how == 'drop':
            data = data[:at] + data[at + draw(st.integers(1, 64)):]
        elif how == 'zero':
            data = data[:at] + bytes(min(64, len(data) - at)) + data[at + 64:]
        elif how == 'twice':
            data = data[:at] + data[max(0, at - 64):at] + data[at:]
        else:
            number = draw(st.sampled_from([0, 1, 0xff, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1]))
            data = data[:at] + number.to_bytes(8, 'little') + data[at + 8:]
    return data


def packed(content, old: bool = False) -> bytes:
    data = io.BytesIO()
    torch.save(content, data, _use_new_zipfile_serialization=not old)
    return data.getvalue()


@st.composite
def damaged_archive(draw, data: bytes) -> bytes:
    """torch's archive, one record of which is damaged, left out or called otherwise, while the archive is in order."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    names = [*([name for name in records if name.endswith('data.pkl')] * 4), *records]
    name = draw(st.sampled_from(names))
    how = draw(st.sampled_from(['damage', 'damage', 'damage', 'damage', 'drop', 'rename', 'empty', 'double']))
    if how == 'damage':
        records[name] = draw(damaged(records[name], 300))
    elif how == 'drop':
        del records[name]
    elif how == 'rename':
        near = [f'{name}x', f'/{name}', f'../{name}', name.upper(), 'x', ' ']
        records[draw(st.sampled_from(near))] = records.pop(name)
    else:
        records[name] = records[name] * (2 if how == 'double' else 0)
    out = io.BytesIO()
    compression = draw(st.sampled_from([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED]))
    with zipfile.ZipFile(out, 'w', compression) as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    return out.getvalue()


@st.composite
def torch_files(draw, contents: list) -> bytes:
    """A file of torch's, in its present or its old format, whose content or bytes are mutated."""
    content = draw(st.sampled_from(contents))
    how = draw(st.sampled_from(['content'] * 6 + ['archive', 'archive', 'bytes', 'old content', 'old bytes']))
    note(how)
    if how.endswith('content'):
        try:
            return packed(draw(changed(content)), how.startswith('old'))
        except (RuntimeError, NotImplementedError, AttributeError, pickle.PicklingError, ValueError, TypeError,
                UnicodeEncodeError):
            return packed(content)[:-7]  # torch does not save everything that can be made
    if how == 'archive':
        return draw(damaged_archive(packed(content)))
    return draw(damaged(packed(content, how.startswith('old'))))


@st.composite
def safetensors_files(draw, weights: dict, networks: dict) -> bytes:
    """A safetensors file whose options, header or bytes are mutated."""
    how = draw(st.sampled_from(['networks', 'networks', 'text', 'header', 'header', 'bytes']))
    note(how)
    text = json.dumps(networks)
    if how == 'networks':
        changed_networks = draw(mutated(networks))
        text = json.dumps(changed_networks, default=str)
        note(text[:2000])
    elif how == 'text':
        text = draw(st.sampled_from([
            '5', '[]', '', 'null', '"x"', '[' * 10**5, '{"a":' * 10**4, text[:-1], text * 2, text + '\x1b[2J', '\ud800',
            '{"network_g": 5}', '{"network_g": null}', '{"network_g": {"type": null}}', '1' * 5000, '- x', '*a',
            HOSTILE, '!!python/object/apply:os.system ["touch owned"]', text.replace('4', '1' + '0' * 400),
            'é' * 10**5]))
    metadata = {'format': 'pt', 'networks': text.encode('utf-8', 'backslashreplace').decode()}
    data = safetensors.torch.save({key: value.contiguous() for key, value in weights.items()}, metadata)
    if how == 'bytes':
        return draw(damaged(data, 400))
    if how != 'header':
        return data
    size = int.from_bytes(data[:8], 'little')
    header = json.loads(data[8:8 + size])
    for _ in range(draw(st.sampled_from([1, 1, 2]))):
        paths = nodes(header)
        path = draw(st.sampled_from(paths))
        block = header
        for key in path[:-1]:
            block = block[key]
        odd = st.sampled_from(['F16', 'BF16', 'I8', 'U8', 'BOOL', 'C64', 'F8_E4M3', 'F4', 'F64', 'x', HOSTILE, 0, -1,
                               2**63, 2**64, [], [0], [2**40, 2**40], [1] * 100, {}, None, 1.5, [0, 8]]) | anything
        if draw(st.booleans()) or not isinstance(block, dict):
            block[path[-1]] = draw(odd)
        else:
            block[draw(st.sampled_from([str(key) for key in KEYS if isinstance(key, str)]))] = block.pop(path[-1])
    text = json.dumps(header, default=str).encode('utf-8', 'backslashreplace')
    return len(text).to_bytes(8, 'little') + text + data[8 + size:]


# ------------------------------------------------------------------------------------------------------- what must hold
@dataclass
class Tally:
    """What became of the files."""
    kind: str
    refused: int = 0
    accepted: int = 0
    reasons: Counter = field(default_factory=Counter)
    started: float = field(default_factory=time.monotonic)

    def attempt(self, path: Path, action) -> bool:
        """Whether a file was accepted; it was refused as it should be, or this fails."""
        try:
            with bounded(60):
                action()
        except REFUSALS as error:
            text = str(error)
            assert path.name in text, text
            assert all(line.isprintable() for line in text.split('\n')), text
            assert len(text) < 9000
            assert text.count('\n') < 12
            self.refused += 1
            self.reasons[re.sub(r"'[^']*'|[\d.]+|\([^)]*\)", '_', text.split(path.name, 1)[1])[:60]] += 1
            return False
        self.accepted += 1
        return True

    def report(self) -> None:
        print(f'\n{self.refused + self.accepted} {self.kind}: {self.refused} refused, {self.accepted} accepted, '
              f'{len(self.reasons)} kinds of reasons, in {time.monotonic() - self.started:.0f} s')


def attempts(function):
    """So many examples of a test as are asked for."""
    return settings(max_examples=LONG or 100, derandomize=not LONG, deadline=None, print_blob=True,
                    suppress_health_check=list(HealthCheck), **({} if LONG else {'database': None}))(function)


def _conv(name: str, *shape: int) -> dict:
    return {f'{name}.weight': torch.randn(shape) / 9, f'{name}.bias': torch.randn(shape[0])}


def of_other_programs() -> list[dict]:
    edsr = {**_conv('head.0', 4, 3, 3, 3), **_conv('body.0.body.0', 4, 4, 3, 3), **_conv('body.0.body.2', 4, 4, 3, 3),
            **_conv('body.1', 4, 4, 3, 3), **_conv('tail.0.0', 16, 4, 3, 3), **_conv('tail.1', 3, 4, 3, 3)}
    shift = {f'{name}_mean.{part}': value for name in ('sub', 'add')
             for part, value in (('weight', torch.eye(3).view(3, 3, 1, 1)), ('bias', torch.zeros(3)))}
    head = {**_conv('var_conv.0', 4, 4, 3, 3), **_conv('var_conv.2', 4, 4, 3, 3), **_conv('var_conv.4', 3, 4, 3, 3)}
    udl = {**edsr, **head}
    two = {f'{net}.{key}': value for net in ('EDSR_var', 'EDSR_U') for key, value in udl.items()}
    carns = [TheirCARN(mobile, width=4, groups=2, scales=(2, )).weights for mobile in (False, True)]
    return [edsr, {'state_dict': {**edsr, **shift}}, udl, {'model': two}, *carns]


def test_mutated_checkpoints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'opt.yml').write_text(json.dumps({'network_g': EDSR, 'network_u': NET_U}))
    network, net_u = build_network(EDSR), build_network({'backbone': EDSR, **NET_U})
    ours = {'params': network.state_dict(), 'params_ema': network.state_dict()}
    theirs = of_other_programs()
    contents = [ours, ours, {'params': net_u.state_dict()}, *theirs]
    path, out, opt, tally = tmp_path / 'net.pth', tmp_path / 'out', tmp_path / 'opt.yml', Tally('checkpoints')
    for content in contents:
        torch.save(content, path)
        assert tally.attempt(path, lambda: convert_file(path, f'{out}.safetensors', opt=opt, force=True))

    @attempts
    @given(st.data())
    def attempt(draw):
        path.write_bytes(draw.draw(torch_files(contents).map(File), 'file'))
        key = draw.draw(st.sampled_from(['params', 'params_ema', None]))
        doors = {
            'load': lambda: load_network(network, path, key), 'lax': lambda: load_network(network, path, key, False),
            'uncertainty': lambda: load_network(net_u, path, key),
            'infer': lambda: load_restorer(path, opt=opt, device='cpu', param_key='params_ema'),
            'to ours': lambda: convert_file(path, f'{out}.pth', out_u=None, force=True, param_key=draw.draw(
                st.sampled_from([None, None, None, 'params', 'model']))),
            'export': lambda: convert_file(path, f'{out}.safetensors', opt=opt, force=True),
            'to edsr': lambda: convert_file(path, f'{out}.pt', to='edsr', opt=opt, force=True),
            'to udl': lambda: convert_file(path, f'{out}.pt', to='udl', opt=opt, force=True)}
        door = draw.draw(st.sampled_from(sorted(doors)))
        tally.attempt(path, doors[door])
        assert {p.name for p in tmp_path.iterdir()} <= {'net.pth', 'opt.yml', 'out.pth', 'out.safetensors', 'out.pt'}

    attempt()
    tally.report()
    assert tally.refused > 20
    assert tally.accepted > len(contents)


def test_mutated_safetensors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    networks = {'network_g': EDSR, 'network_u': NET_U}
    network = build_network(EDSR)
    weights = {'network_g': network.state_dict(), 'carn': of_other_programs()[-1]}
    path, out, tally = tmp_path / 'net.safetensors', tmp_path / 'out.safetensors', Tally('safetensors')

    @attempts
    @given(st.sampled_from(['network_g', 'network_g', 'carn']).flatmap(
        lambda key: safetensors_files(weights[key], networks)).map(File), st.integers(0, 3))
    def attempt(data, number):
        path.write_bytes(data)
        doors = [lambda: load_restorer(path, device='cpu'), lambda: load_restorer(path, device='cpu'),
                 lambda: convert_file(path, out, force=True), lambda: load_network(network, path)]
        tally.attempt(path, doors[number])
        assert {p.name for p in tmp_path.iterdir()} <= {'net.safetensors', 'out.safetensors'}

    attempt()
    tally.report()
    assert tally.refused > 20
    assert tally.accepted > 3


@pytest.fixture(scope='module')
def trained(tmp_path_factory, pairs):
    """Runs of two iterations, with the options that going on from them takes."""
    project = Project(tmp_path_factory.mktemp('fuzzed'), pairs)
    starts = []
    sgd = ['name=sgd', 'train:optim_g={type: SGD, lr: 1e-3, momentum: 0.9}',
           'train:scheduler={type: CosineAnnealingRestartLR, periods: [8]}']
    for stage, more in (('plain', ['train:ema_decay=0.9']), ('plain', sgd),
                        ('esu', ['train:amp=fp16', 'train:skip_nonfinite=9'])):
        force = [*more, 'network_g:num_feat=4', 'train:total_iter=2', 'logger:save_checkpoint_freq=1', 'val:val_freq=1']
        loop.train(project.parse(stage, *force))
        starts.append((stage, force))
    return project, starts


def test_mutated_states(trained, monkeypatch):
    project, starts = trained
    monkeypatch.setattr(logging.root.manager, 'disable', logging.CRITICAL)  # of each network that is built
    tally = Tally('states')
    cases = []
    for stage, force in starts:
        opt = project.parse(stage, *force, 'train:total_iter=3').opt
        folder = Path(opt['path']['experiments_root'])
        for name in ('training_states/2.state', 'models/net_g_2.pth', *(['models/net_u_2.pth'] * (stage == 'esu'))):
            content = torch.load(folder / name, weights_only=True)
            cases += [(opt, folder, name, content)] * (6 if name.endswith('state') else 1)

    @attempts
    @given(st.integers(0, len(cases) - 1), st.data())
    def attempt(number, draw):
        opt, folder, name, content = cases[number]
        data = draw.draw(torch_files([content]).map(File), 'file')
        path = folder / name
        path.write_bytes(data)
        try:
            named = deepcopy(opt)
            named['path']['resume_state'] = str(folder / 'training_states' / '2.state')
            if tally.attempt(path, lambda: go_on(named)) or tally.refused % 10:
                return
            found = deepcopy(opt)
            found['auto_resume'] = True
            assert resume_state(found)['iter'] == 1  # the state before
        finally:
            torch.save(content, path)

    attempt()
    tally.report()
    assert tally.refused > 20
    assert tally.accepted > 3


def go_on(opt: dict) -> None:
    """What loop.train does with a state, up to the next one, which is written nowhere."""
    state = resume_state(opt)
    opt['path']['training_states'] = os.devnull
    model = build_model(opt)
    model.resume_training(state)
    note_changes(state, {'world_size': 2, 'options': {**essence(opt), 'train.optim_g.lr': 0.5}})
    model.update_learning_rate(3)
    model.feed_data(batch(size=2, lq=8))
    try:
        model.optimize_parameters(3)
    except FloatingPointError:
        return  # weights may be anything, and steps that are not finite are reported
    model.get_current_log()
    model._initialize_best_metric_results('val')
    model._update_best_metric_result('val', 'psnr', 20., 3)
    model.metric_results = {'psnr': 20.}
    model._log_validation_metric_values(3, 'val', None)
    torch.save({'optimizers': [o.state_dict() for o in model.optimizers], 'best': model.best_metric_results,
                'schedulers': [s.state_dict() for s in model.schedulers]}, io.BytesIO())
