"""Option files: how they are read, what is filled in, and the test files."""
# ruff: noqa: F811 - fixtures that come from option_cases
import ast
import re
from copy import deepcopy
from dataclasses import fields
from pathlib import Path

import basicsr
import pytest
import yaml
from basicsr.utils.options import ordered_yaml
from basicsr.utils.registry import DATASET_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY
from option_cases import parse, refused, train_opt, write  # noqa: F401

from udl_basicsr.options import schema
from udl_basicsr.options.parse import OptionError, apply_force_yml, dump_flat, load_yaml
from udl_basicsr.utils import settings
from udl_basicsr.utils.text import nearest

ROOT = Path(__file__).resolve().parents[1]


# -------------------------------------------------------------------------------------------------------- reading files

def test_numbers_are_read_as_people_write_them(tmp_path):
    opt = load_yaml(write(tmp_path / 'a.yml', 'a: 1e-4\nb: !!float 1e-4\nc: -1\nd: 2E+3\ne: "1e-4"\nf: 2020-01-01\n'))
    assert opt == {'a': 1e-4, 'b': 1e-4, 'c': -1, 'd': 2e3, 'e': '1e-4', 'f': '2020-01-01'}


@pytest.mark.parametrize(('text', 'message'), [
    ('a: !!python/object/apply:os.system ["touch owned"]', 'a.yml:1: tag'),
    ('x: 1\na: !!python/name:os.system', 'a.yml:2: tag'),
    ('a: !!binary aGk=', 'is not allowed'),
    ('a: 1\nb: 2\na: 3', "a.yml:3: key 'a' stands here twice"),
    ('a:\n\tb: 1', r"a.yml:2: found character '\t' that cannot start any token; use spaces"),
    ('a:\n  b: 1\n  b: 2', "a.yml:3: key 'b' stands here twice"),
    ('a: &x {k: 1}\nb: &y {k: 2}\nc:\n  <<: *x\n  <<: *y', r"a.yml:5: key '<<' stands here twice: merge a list"),
    ('a: &x {k: 1}\nc:\n  <<: {<<: *x, <<: *x}', "a.yml:3: key '<<' stands here twice"),
    ('c:\n  <<: {k: 1, k: 2}', "a.yml:2: key 'k' stands here twice"),
    ('a: [1, 2', 'a.yml:'),
    ('a: !!float x', "a.yml:1: 'x' is no float"),
    ('1: 2', "a key must be text, got '1': put it in quotes"),
    ('a: 1\nb: {lr: 0,001}', "a.yml:2: a key must be text, got '001': write decimals with a point"),
    ('- 1', 'expected `key: value` lines, got list'),
    ('', 'got nothing'),
    ('a: &a [*a]', 'contains itself'),
    ('_base_: [3]', '_base_: expected a file name'), ("_base_: ''", '_base_: expected a file name'),
    ('_base_: false', '_base_: expected a file name'),
    ('_base_: no.yml', 'no.yml: cannot read this option file (named by'),
    ('_base_: a.yml', 'goes round in a circle'),
    ('a: ${nam}\nname: x', "there is no top-level key 'nam'; did you mean 'name'?"),
    ('a: ${a}', 'refers to itself'),
    ('name: x_${train.total_iter}\ntrain: {total_iter: 5}', '${train.total_iter}: there is no top-level key'),
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


@pytest.mark.parametrize(('data', 'message'), [
    ('a: 1\nb: für'.encode('latin-1'), 'a.yml:2: expected text in UTF-8, found the byte 0xfc; save the file as UTF-8'),
    ('a: 1'.encode('utf-16'), 'a.yml:1: expected text in UTF-8, found the byte 0xff'),
])
def test_other_encodings_are_refused(tmp_path, data, message):
    (tmp_path / 'a.yml').write_bytes(data)
    with pytest.raises(OptionError) as error:
        load_yaml(tmp_path / 'a.yml')
    assert message in str(error.value)
    (tmp_path / 'a.yml').rename(tmp_path / 'net_g.pth')
    with pytest.raises(OptionError, match=r'; give an option file, NAME\.yml$'):
        load_yaml(tmp_path / 'net_g.pth')


def test_a_misspelt_file_name(tmp_path):
    write(tmp_path / 'train_EDSR_x4.yml', 'a: 1')
    write(tmp_path / 'train_EDSR_x4.txt', '')
    (tmp_path / 'EDSR_UDL_x4').mkdir()  # of a run
    for name, meant in (('train_EDRS_x4.yml', 'train_EDSR_x4.yml'), ('train_EDSR_x4', 'train_EDSR_x4.yml'),
                        ('EDSR_UDL_x', 'EDSR_UDL_x4')):
        with pytest.raises(OptionError, match=rf"{name}: cannot read .*; did you mean '{re.escape(meant)}'\?"):
            load_yaml(tmp_path / name)
    with pytest.raises(OptionError, match=r'No such file or directory$'):
        load_yaml(tmp_path / 'quite_other.yml')
    with pytest.raises(OptionError, match=r'directory\. Expected an option file.*; udl test also takes the folder of'):
        load_yaml(tmp_path / 'quite_other')


@pytest.mark.parametrize(('slip', 'meant'), [
    ('ESULos', 'ESULoss'),  # one letter off; EULoss has the same letters as the slip, but is two off
    ('EDRS', 'EDSR'),  # EDVR is as near by the letters in their order
    ('edsr', 'EDSR'),
    ('nothing', None),
])
def test_the_nearest_name(slip, meant):
    assert nearest(slip, ['EULoss', 'ESULoss', 'UDLLoss', 'EDSR', 'EDVR']) == meant


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
    for entry, message in (('name', 'expected key:key=value'),
                           (f'val={Path.home()}', 'home folder for ~; null is written val=None too'),
                           ('name=', 'expected key:key=value, .*; null is written ~'),
                           ('train:lr= ', 'null is written ~'), ('a::b=1', 'expected key:key=value'),
                           ('name:x=1', 'name is a value, not a block'), ('a=[1', '--force_yml a=[1'),
                           ('train:tmpl={}x4', '''needs quotes in quotes: "train:tmpl='{}x4'"'''),
                           ('a=!!python/name:os.system', 'is not allowed')):
        with pytest.raises(OptionError, match=message.replace('[', r'\[')):
            apply_force_yml(opt, [entry])
    assert apply_force_yml(opt, ["train:tmpl='{}x4'"])['train']['tmpl'] == '{}x4'
    for entry, meant in (('train.total_iter=10', 'train:total_iter=10'),
                         ('train.optim_g:lr=1.5', 'train:optim_g:lr=1.5'),
                         ('train:optim_g.lr=1.5', 'train:optim_g:lr=1.5'), ('nope.x=1', 'nope:x=1')):
        with pytest.raises(OptionError, match=re.escape(f'by a colon, not by a dot; did you mean {meant}?')):
            apply_force_yml({'train': {'optim_g': {'lr': 1}}}, [entry])
    named = {'val': {'metrics': {'psnr.y': {'crop_border': 2}}}}
    assert apply_force_yml(named, ['val:metrics:psnr.y:crop_border=4', 'val:metrics:ssim.y={}'])['val']['metrics'] == {
        'psnr.y': {'crop_border': 4}, 'ssim.y': {}}
    assert apply_force_yml({}, ['a=__import__("os").getcwd()']) == {'a': '__import__("os").getcwd()'}


# -------------------------------------------------------------------------------------------------------------- parsing

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


# ----------------------------------------------------------------------------------------------- models of other people

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


# ----------------------------------------------------------------------------------------------------------------- test

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
    assert 'val: this test neither measures nor saves an image' in refused(parse, opt, 'val:metrics=~', is_train=False)
    parse(opt, ['val:metrics=~', 'val:save_img=true'], is_train=False)
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


def test_a_training_is_tested_as_it_was_trained(parse, train_opt, tmp_path):
    """With the same --force_yml: the weights of that name, and what ${scale} stands for."""
    psnr = train_opt['val']['metrics']['psnr']
    psnr['crop_border'] = train_opt['network_g']['upscale'] = '${scale}'
    train_opt['datasets']['val']['dataroot_gt'] = 'data/GTmod${scale}'
    (tmp_path / 'models').mkdir()  # one of another project, beside the option file
    force = 'name=other', 'scale=3', ' tested_on =~'
    tested = parse(train_opt, force, is_train=False, check_files=False)
    assert tested.flat['path']['pretrain_network_g'] == str(tmp_path / 'experiments/other/models/net_g_latest.pth')
    assert tested.flat['val']['metrics']['psnr']['crop_border'] == tested.flat['network_g']['upscale'] == 3
    assert tested.flat['datasets']['val']['dataroot_gt'] == 'data/GTmod3'
    (tmp_path / 'training_states').mkdir()  # then it is the folder of a run, whose weights they are
    run = parse(train_opt, force, is_train=False, check_files=False)
    assert run.flat['path']['pretrain_network_g'] == str(tmp_path / 'models/net_g_latest.pth')
    assert run.flat['name'] == 'other'
