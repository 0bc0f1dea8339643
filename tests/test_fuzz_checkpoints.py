"""Mutated checkpoints and safetensors: accepted, and then used, or refused with a message that names
the file, never with a library's exception.

The suite looks at a few, always the same ones. The long run draws so many new ones of each kind, uses each that was
accepted, and prints how many there were:

    UDL_FUZZ=7000 python -m pytest -q -s tests/test_fuzz_checkpoints.py
"""
import json

import safetensors.torch
import torch
from basicsr.archs import build_network
from fuzzed_files import HOSTILE, KEYS, File, Tally, attempts, damaged, nodes, torch_files
from fuzzing import _memory, anything, mutated  # noqa: F401 - a fixture of its module and of this one
from hypothesis import given, note
from hypothesis import strategies as st
from other_programs import TheirCARN

from udl_basicsr.deploy.convert import convert_file
from udl_basicsr.deploy.restorer import load_restorer
from udl_basicsr.utils.checkpoints import load_network

EDSR = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1, 'upscale': 2}
NET_U = {'type': 'UncertaintyNet', 'head': {'type': 'UDLHead', 'num_feat': 4}}


# ------------------------------------------------------------------------------------------------------------ mutations

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
        needed = None if any(content is one for one in theirs) else opt
        assert tally.attempt(path, lambda needed=needed: convert_file(path, f'{out}.safetensors', opt=needed,
                                                                      force=True))

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
            'export': lambda: convert_file(path, f'{out}.safetensors', opt=draw.draw(st.sampled_from([opt, None])),
                                           force=True),
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
