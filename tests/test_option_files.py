"""The repository's option files: all are valid and what their names say, and every training trains.

And its plans of the papers' tables: one for each, valid, of the papers' lengths and crops, with every cell of theirs.
"""
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs import build_network
from basicsr.models import build_model
from conftest import photograph
from invented import invented_record

from udl_basicsr.experiments import runner
from udl_basicsr.experiments.plan import Plan, read_plan
from udl_basicsr.experiments.printed import load_paper
from udl_basicsr.experiments.record_files import Record
from udl_basicsr.options.parse import dump_flat, load_yaml, parse_options
from udl_basicsr.reports.paper_tables import make_table

OPTIONS = Path(__file__).resolve().parents[1] / 'options'
FILES = sorted(str(file.relative_to(OPTIONS)) for file in OPTIONS.rglob('*.yml')
               if not {'_base_', 'compare', 'papers'} & {*file.parts} and not file.name.startswith('_'))
TRAIN = [file for file in FILES if Path(file).name.startswith('train_')]
# Made tiny, EDSR-S is EDSR.
TO_TRAIN = [file for file in TRAIN if not file.startswith('train_EDSR_')]
# Each network as the papers have it: what its option file is to say in so many words.
PUBLISHED = {
    'EDSR': {'type': 'EDSR', 'num_block': 32, 'num_feat': 256},
    'EDSR-S': {'type': 'EDSR', 'num_block': 16, 'num_feat': 64},
    'DPDNN': {'type': 'DPDNN', 'num_iter': 6, 'num_level': 4, 'num_feat': 64},
    'RCAN': {'type': 'RCAN', 'num_group': 10, 'num_block': 20, 'num_feat': 64, 'squeeze_factor': 16},
    'HAT': {'type': 'HAT', 'embed_dim': 180, 'depths': [6] * 6, 'num_heads': [6] * 6, 'window_size': 16,
            'mlp_ratio': 2, 'compress_ratio': 3, 'squeeze_factor': 30, 'upsampler': 'pixelshuffle'},
    'VDSR': {'type': 'VDSR', 'num_conv': 20, 'num_feat': 64},
    'ESPCN': {'type': 'ESPCN', 'num_feat': 64},
    'CARN': {'type': 'CARN', 'num_block': 3, 'num_feat': 64},
    'IDN': {'type': 'IDN', 'num_block': 4, 'num_feat': 64},
}
# Small enough for two iterations in a fraction of a second.
TINY = {
    'EDSR': {'num_block': 1, 'num_feat': 8},
    'DPDNN': {'num_iter': 2, 'num_level': 2, 'num_feat': 8},
    'HAT': {'img_size': 8, 'window_size': 8, 'embed_dim': 16, 'depths': [1], 'num_heads': [2], 'squeeze_factor': 2,
            'num_feat': 8},
    'VDSR': {'num_conv': 3, 'num_feat': 8},
    'CARN': {'num_block': 1, 'num_feat': 8},
    'CARN_M': {'num_block': 1, 'num_feat': 8},
}


def parse(file: str, tmp_path: Path, *force: str):
    """Without the checks that look at the disk: here are neither data nor weights."""
    return parse_options(str(OPTIONS / file), root_path=str(tmp_path), is_train=Path(file).name.startswith('train_'),
                         check_files=False, num_gpu_available=0, force_yml=force)


def kind_and_name(file: str) -> tuple[str, str]:
    kind, _, name = Path(file).stem.partition('_')
    return kind, name


# ----------------------------------------------------------------------------------------------------------- the texts


@pytest.mark.parametrize('file', FILES)
def test_is_valid(file, tmp_path):
    kind, name = kind_and_name(file)
    assert kind in ('train', 'test')
    parsed = parse(file, tmp_path)
    assert not parsed.warnings
    assert (OPTIONS / file).read_text().startswith('# ')
    flat = parsed.flat
    assert '${' not in dump_flat(flat)
    scale = flat['scale']
    assert flat['network_g']['upscale'] == scale
    folder = Path(file).parent.name
    if folder:
        return
    assert flat['name'] == name
    assert scale == int(name[-1])
    published = PUBLISHED[name.split('_')[0]]
    assert published.items() <= flat['network_g'].items()
    data = [flat['datasets']['train'], flat['datasets']['val']] if kind == 'train' else flat['datasets'].values()
    if kind == 'train':
        assert data[0]['gt_size'] == 48 * scale
    else:
        assert len(data) == 5
        assert flat['val']['metrics']['psnr']['crop_border'] == scale
    assert all(f'bicx{scale}' in d['dataroot_lq'] for d in data)
    assert all(f'GTmod{scale}' in d['dataroot_gt'] for d in data)


def test_the_top_holds_what_a_user_starts_from():
    """Two networks, three trainings, three scales, and the released form of UDL; two tests, spelled out."""
    names = {f'{network}_{loss}_x{scale}.yml' for network in ('EDSR', 'EDSR-S') for loss in ('L1', 'ESU', 'UDL')
             for scale in (2, 3, 4)} | {f'{network}_UDL_released_x4.yml' for network in ('EDSR', 'EDSR-S')}
    assert {file for file in FILES if '/' not in file} == {
        *(f'train_{name}' for name in names), 'test_EDSR_UDL_x4.yml', 'test_EDSR_ESU_x4.yml'}


@pytest.mark.parametrize('file', [file for file in FILES if file.startswith('train_')])
def test_a_training_file_is_a_test_as_well(file, tmp_path):
    """Network, weights, scale, data sets and metrics follow from it; where a test is spelled out, they are the same."""
    arguments = {'root_path': str(tmp_path), 'is_train': False, 'check_files': False, 'num_gpu_available': 0}
    flat = parse_options(str(OPTIONS / file), **arguments).flat
    trained, name = parse(file, tmp_path).flat, Path(file).stem.partition('_')[2]
    models = f'{tmp_path}/experiments/{name}/models'
    assert flat['path']['pretrain_network_g'] == f'{models}/net_g_latest.pth'
    assert {key: flat[key] for key in ('name', 'scale', 'network_g')} == {
        key: trained[key] for key in ('name', 'scale', 'network_g')}
    assert [block['name'] for block in flat['datasets'].values()] == ['Set5', 'Set14', 'BSD100', 'Urban100', 'Manga109']
    assert all(f'bicx{flat["scale"]}' in block['dataroot_lq'] for block in flat['datasets'].values())
    assert flat['val']['metrics']['psnr']['crop_border'] == flat['scale']
    assert flat['path'].get('pretrain_network_u') == (f'{models}/net_u_latest.pth' if '_ESU_' in file else None)
    assert ('ause' in flat['val']['metrics']) == ('_ESU_' in file)
    spelled_out = OPTIONS / file.replace('train_', 'test_')
    if spelled_out.exists():
        other = parse_options(str(spelled_out), **arguments).flat
        assert {**other, 'path': {k: f'{tmp_path}/{v}' for k, v in other['path'].items()}} == flat


@pytest.mark.parametrize('network', PUBLISHED)
def test_networks_have_the_sizes_of_their_papers(network):
    flat = load_yaml(str(OPTIONS / '_base_' / f'{network.lower().replace("-", "_")}.yml'), references=False)
    assert PUBLISHED[network].items() <= flat['network_g'].items()


@pytest.mark.parametrize('network', ['EDSR', 'EDSR-S'])
def test_the_baseline_has_the_budget_of_both_stages(network, tmp_path):
    l1, esu, udl = (parse(f'train_{network}_{method}_x4.yml', tmp_path).flat['train']['total_iter']
                    for method in ('L1', 'ESU', 'UDL'))
    assert l1 == esu + udl


def test_no_base_is_left_over():
    files = {file.resolve() for file in OPTIONS.rglob('*.yml')}
    named = set()
    for file in files:
        content = yaml.safe_load(file.read_text())
        bases = content.get('_base_') or []
        bases = [bases] if isinstance(bases, str) else bases
        # the plan of a comparison names the files that its trainings and tests share, and those of its parts
        bases += [content[key] for key in ('train', 'test', 'tested_on') if isinstance(content.get(key), str)]
        for part in ('networks', 'first', 'methods'):
            for block in (content.get(part) or {}).values():
                own = block.get('base', []) if isinstance(block, dict) else []
                bases += [own] if isinstance(own, str) else own
        named |= {(file.parent / base).resolve() for base in bases}
    assert {file for file in files if file.name.startswith('_') or file.parent.name == '_base_'} <= named <= files


# --------------------------------------------------------------------------------------------------- the papers' tables

PAPER = load_paper()
PLANS = {file.stem: read_plan(file, Path('nowhere')) for file in sorted((OPTIONS / 'papers').glob('[!_]*.yml'))}
# Rows that nobody but the paper fills, and why: le-5's SRResNet is not described; le-4's l1 of IDN was trained on other
# data; which scaling functions udl-3's three maps have is not printed, so that ours have rows of their own.
LEFT = {'le-4': {('IDN', 'L1')}, 'le-5': {('SRResNet', 'Original'), ('SRResNet', 'ℓ_E + σ')},
        'udl-3': {('EDSR-S', name) for name in ('error', 'HR gradient', 'LR gradient')}}


def record(run, metrics: list[str]) -> Record:
    """As if a run had been made."""
    mean = dict.fromkeys(metrics, 1.)
    names = [block['name'] for block in run.test_flat['datasets'].values()]
    return invented_record(
        name=run.name, comparison=run.plan, network_title=run.title, method=run.method, label=run.label,
        scale=run.scale, seed=run.seed, degradation=run.degradation,
        stages=[{'name': stage.name, 'iterations': stage.iterations} for stage in run.stages],
        datasets={name: {'images': {'a': mean}, 'mean': mean} for name in names})


def stages_of(name: str, **wanted):
    """The options of the stages of the runs with these attributes."""
    found = [stage.flat for run in PLANS[name].runs for stage in run.stages
             if all(getattr(run, key) == value for key, value in wanted.items())]
    assert found
    return found


def test_each_printed_table_has_a_plan():
    assert len(PLANS) == 17
    assert PLANS.keys() == PAPER['tables'].keys()
    assert all(plan.name == plan.table == name for name, plan in PLANS.items())
    assert all((OPTIONS / 'papers' / f'{name}.yml').read_text().startswith('# ') for name in PLANS)


@pytest.mark.parametrize('plan', PLANS.values(), ids=PLANS)
def test_the_options_that_a_plan_makes_are_valid(plan: Plan, tmp_path):
    """At its largest scale; the others differ in numbers."""
    largest = max(run.scale for run in plan.runs)
    runner.check([run for run in plan.runs if run.scale == largest], tmp_path, plan.file, data=False)


@pytest.mark.parametrize('name', PLANS)
def test_a_plan_fills_every_row_that_its_paper_trained(name):
    metrics = PAPER['tables'][name]['metrics']
    runs = PLANS[name].runs
    assert all({*metrics} <= run.test_flat['val']['metrics'].keys() for run in runs)
    table = make_table(name, [record(run, metrics) for run in runs], PAPER)
    printed = [line for line in table.lines if line.printed and not line.cited and line.method != 'bicubic']
    assert {(line.network, line.method) for line in printed if not line.ours} == LEFT.get(name, set())
    for line in printed:  # on all the sets that the paper has, and no others
        assert not line.ours or {dataset for dataset, _ in line.ours} == {*PAPER['tables'][name]['datasets']}
    # and every run of ours has a line
    assert sum(bool(line.ours) for line in table.lines) == len(runs)


def test_udl_has_the_papers_lengths_and_crops():
    """1.2e5 and 4e5 iterations of 16 LR patches of 48x48, the rate halved every 2e5; table 6 has BD at x4."""
    for name in ('udl-2', 'udl-3', 'udl-4', 'udl-5', 'udl-6'):
        for run in PLANS[name].runs:
            assert [stage.iterations for stage in run.stages] == [120000, 400000][-len(run.stages):] or \
                run.method == 'L1_both'
            for flat in (stage.flat for stage in run.stages):
                data, train = flat['datasets']['train'], flat['train']
                assert (data['gt_size'], data['batch_size_per_gpu']) == (48 * run.scale, 16)
                assert train['optim_g'] == {'type': 'Adam', 'lr': 1e-4, 'betas': [0.9, 0.999]}
                halved = [at for at in train['scheduler']['milestones'] if at < train['total_iter']]
                assert halved == list(range(200000, train['total_iter'], 200000))
    assert {flat['train']['total_iter'] for flat in stages_of('udl-1')} == {120000}
    assert {run.scale for run in PLANS['udl-6'].runs} == {4}
    assert {run.degradation for run in PLANS['udl-6'].runs} == {'BD'}
    assert all('LRbdx4' in flat['datasets']['train']['dataroot_lq'] for flat in stages_of('udl-6'))
    assert all('LRbdx4' in block['dataroot_lq'] for run in PLANS['udl-6'].runs
               for block in run.test_flat['datasets'].values())


def test_the_rivals_have_their_papers_settings():
    for name in ('le-1', 'le-2', 'le-3', 'le-4', 'le-6', 'le-7'):
        for flat in stages_of(name):
            data, train = flat['datasets']['train'], flat['train']
            assert (data['gt_size'], data['batch_size_per_gpu']) == (48 * flat['scale'], 16)
            assert train['total_iter'] == 10**6
            assert train['scheduler']['milestones'] == list(range(2 * 10**5, 10**6, 2 * 10**5))
    for flat in (flat for name in ('le-1', 'le-2', 'le-3', 'le-4', 'le-5', 'le-6', 'le-7')
                 for flat in stages_of(name, method='sigma')):
        assert flat['network_u']['head'] == {'type': 'SigmaHead', 'num_feat': 160}
        assert flat['train']['pixel_opt']['type'] == 'ExpectedL1Loss'
        assert flat['train']['sigma_opt']['loss_weight'] == 0.01
    for run in PLANS['le-5'].runs:
        flat = run.stages[-1].flat
        assert (flat['datasets']['train']['gt_size'], flat['scale'], flat['degradation']) == (192, 1, 'RealSR')
        assert flat['train']['scheduler']['milestones'] == [flat['train']['total_iter']]
        assert run.test_flat['val']['metrics']['psnr']['crop_border'] == run.scale
    own = {flat['network_g']['type']: flat['train']['pixel_opt']['type']
           for flat in stages_of('le-3', method='Original')}
    assert own == {'VDSR': 'MSELoss', 'EDSR': 'L1Loss', 'CARN': 'L1Loss'}
    assert all(flat['deterministic'] for name in ('gv-1', 'gv-2') for flat in stages_of(name))
    patches = {run.scale: stage.flat['train']['gv_opt']['patch_size'] for run in PLANS['gv-1'].runs
               for stage in run.stages if 'gv_opt' in stage.flat['train']}
    assert patches == {2: 8, 3: 16, 4: 16}
    for name in ('tlw-1', 'tlw-2', 'gv-1', 'gv-2'):
        assert all(run.test_flat['val']['rounded'] is False for run in PLANS[name].runs)
    first, second = (stage.iterations for stage in next(r for r in PLANS['tlw-2'].runs if r.method == 'UDL').stages)
    assert first * 5 == first + second == stages_of('tlw-2', method='L1')[0]['train']['total_iter']  # 10 of 50 epochs


def test_tlw_has_the_values_of_its_authors_program():
    """The paper prints none of them but k; see docs/PAPERS.md."""
    for name in ('tlw-1', 'tlw-2'):
        for flat in (flat for flat in stages_of(name) if 'tlw_opt' in flat['train']):
            loss = flat['train']['tlw_opt']
            assert (loss['samples'], loss['temperature'], loss['eps']) == (3, 0.1, 0.001)
            assert (loss['judge'], loss['judge_linear'], loss['order']) == ('vgg', False, 'alternating')
            assert (loss['k_start'], loss['k_gain'], loss['k_tau'], loss['k_unit']) == (0.3, 0.6, 200, 'epoch')
            assert flat['train']['optim_g'] == flat['train']['optim_w'] == {
                'type': 'Adam', 'lr': 1e-4, 'betas': [0.5, 0.999]}


def test_the_rate_of_edsr_s_is_halved_every_200000_iterations_in_every_stage():
    for run in read_plan(OPTIONS / 'compare' / 'EDSR-S_x4.yml', Path('nowhere')).runs:
        assert sum(stage.iterations for stage in run.stages) == 520000
        for train in (stage.flat['train'] for stage in run.stages):
            assert train['scheduler']['gamma'] == 0.5
            halved = [at for at in train['scheduler']['milestones'] if at < train['total_iter']]
            assert halved == list(range(200000, train['total_iter'], 200000))


def test_table_2_of_gv_differs_in_the_losses_alone():
    def losses_and_rest(flat: dict) -> tuple[dict, dict]:
        losses = {key: block['type'] for key, block in flat['train'].items() if key.endswith('_opt')}
        rest = {key: value for key, value in flat['train'].items() if key not in losses}
        return losses, {**flat, 'name': '', 'train': rest}

    pixel = {'L2': 'MSELoss', 'L1': 'L1Loss', 'SSIM': 'SSIMLoss'}
    beside = {'': {}, '_TV': {'tv_opt': 'WeightedTVLoss'}, '_GV': {'gv_opt': 'GradientVarianceLoss'}}
    found = {run.method: losses_and_rest(run.stages[-1].flat) for run in PLANS['gv-2'].runs}
    assert {method: losses for method, (losses, _) in found.items()} == {
        f'{p}{b}': {'pixel_opt': pixel[p], **beside[b]} for p in pixel for b in beside}
    assert all(rest == found['L2'][1] for _, rest in found.values())


# ----------------------------------------------------------------------------------------------------------- trainings


def tiny(file: str, tmp_path: Path, *force: str):
    """The parsed options with a network and images so small that an iteration takes no time."""
    flat = parse(file, tmp_path).flat
    small = [f'network_g:{key}={value}' for key, value in TINY[flat['network_g']['type']].items()]
    small += [f'train:{key}:judge_random=true' for key, block in flat['train'].items()
              if key.endswith('_opt') and block and 'judge' in block]
    return parse(file, tmp_path, *small, f'datasets:train:gt_size={8 * flat["scale"]}', *force)


def images(size: int, scale: int, seed: int) -> dict:
    """Two photographs, (2, 3, size, size), and their reductions."""
    gt = np.stack([photograph(seed + n, size, size) for n in range(2)])
    lq = np.stack([cv2.resize(image, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA) for image in gt])
    return {key: torch.from_numpy(value.astype(np.float32) / 255).permute(0, 3, 1, 2)
            for key, value in (('gt', gt), ('lq', lq))}


def train(parsed, iterations: int = 2):
    """The model after so many iterations, each checked: finite losses, and every weight that is to learn moves."""
    model = build_model(parsed.opt)
    model.iters_per_epoch = 1  # what an epoch is: else TLW counts the images on the disk
    learning = {f'{label}.{name}': weight for label, network in model.networks_in_training().items()
                for name, weight in network.named_parameters() if weight.requires_grad}
    before = {name: weight.detach().clone() for name, weight in learning.items()}
    for iteration in range(1, iterations + 1):
        model.update_learning_rate(iteration, warmup_iter=parsed.flat['train'].get('warmup_iter', -1))
        model.feed_data(images(parsed.flat['datasets']['train']['gt_size'], parsed.flat['scale'], 10 * iteration))
        model.optimize_parameters(iteration)
        log = {key: value for key, value in model.get_current_log().items() if key.startswith('l_')}
        assert log
        assert np.isfinite(list(log.values())).all()
    assert not [name for name, weight in learning.items() if torch.equal(weight, before[name])]
    assert all(weight.isfinite().all() for weight in learning.values())
    return model


@pytest.mark.parametrize('file', TO_TRAIN)
def test_trains(file, tmp_path):
    flat, force = parse(file, tmp_path).flat, []
    if isinstance(flat.get('stage1'), dict):  # on weights of somebody's
        theirs = build_network(tiny(file, tmp_path).opt['network_g']).state_dict()
        torch.save({'params': theirs}, tmp_path / 'their.pth')
        stage1 = tiny(file, tmp_path, f'stage1:path:pretrain_network_g={tmp_path / "their.pth"}').stage1
    elif flat.get('stage1'):
        stage1 = tiny(flat['stage1'], tmp_path)
    elif flat['path'].get('pretrain_network_g'):
        force.append('path:pretrain_network_g=~')
    if flat.get('stage1'):
        model = train(stage1, 1)
        weights = {'pretrain_network_g': model.net_g, 'pretrain_network_u': model.net_u}
        force.append('stage1=~')  # whose network would not be the tiny one
        for key in flat['path'].keys() & weights.keys():  # what the checker had this stage read
            torch.save({'params': weights[key].state_dict()}, tmp_path / f'{key}.pth')
            force.append(f'path:{key}={tmp_path / key}.pth')
        assert len(force) > 1
    train(tiny(file, tmp_path, *force))
