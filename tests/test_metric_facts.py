"""Which way is up: stated by metrics, filled into options, kept with scores, and followed by tables and reports."""
import json
from dataclasses import asdict
from pathlib import Path

import pytest
from basicsr.utils.registry import METRIC_REGISTRY
from invented import invented_record
from torch.utils.data import DataLoader

from udl_basicsr.data.loader import build_dataset
from udl_basicsr.experiments.record_files import Record, read_records
from udl_basicsr.experiments.statistics import paired_difference, summary_rows
from udl_basicsr.metrics.facts import block_facts, facts_for_scores
from udl_basicsr.options.parse import OptionError
from udl_basicsr.reports import html, html_groups, plots, score_table
from udl_basicsr.utils.metric_facts import MetricFacts, facts_by_name
from udl_basicsr.utils.scores import Scores, ScoresError, format_scores, metric_facts

TINY = Path(__file__).parents[1] / 'docs' / 'results' / 'tiny_x4'


@pytest.fixture
def mine(monkeypatch):
    """``calculate_mine``, which grows from image to image and says nothing of its direction."""
    values = iter(range(1000))

    def calculate_mine(img, img2):  # takes no `better`
        return float(next(values))

    monkeypatch.setitem(METRIC_REGISTRY._obj_map, 'calculate_mine', calculate_mine)
    return calculate_mine


def metrics(**blocks) -> str:
    return 'val:metrics=' + json.dumps({name: {'type': kind} if isinstance(kind, str) else kind
                                        for name, kind in blocks.items()})


def best(metric: str) -> str:
    return f'val:save_best={{metric: {metric}, dataset: val}}'


# ------------------------------------------------------------------------------------------------------------- stated

@pytest.mark.parametrize(('kind', 'facts'), [
    ('psnr', (True, 2, 'dB')), ('ssim', (True, 4, '')), ('niqe', (False, 4, '')), ('lpips', (False, 4, '')),
    ('pll', (True, 2, 'nats')), ('constant_pll', (True, 2, 'nats')), ('log_likelihood', (True, 4, 'nats')),
    ('sigma_psnr', (True, 2, 'dB')), ('constant_sigma_psnr', (True, 2, 'dB')), ('ause', (False, 4, '')),
    ('spearman', (True, 4, '')), ('calibration_error', (False, 4, '')), ('fitting_error', (False, 4, '')),
    ('recalibration', (None, 4, '')), ('ence', (False, 4, '')), ('uce', (False, 2, 'grey levels²')),
    ('picp', (None, 4, '')), ('interval_width', (False, 2, 'grey levels')), ('crps', (False, 3, 'grey levels')),
    ('interval_score', (False, 2, 'grey levels')), ('size_stratified_risk', (False, 4, '')),
    ('aurg', (True, 4, ''))])
def test_metrics_know_which_way_is_up(kind, facts):
    assert block_facts({'type': f'calculate_{kind}', 'crop_border': 4}) == MetricFacts(*facts)


def test_every_metric_of_ours_says_it():
    for name, function in METRIC_REGISTRY:
        if function.__module__.startswith('udl_basicsr.'):
            assert {'higher_is_better', 'decimals', 'unit'} <= vars(function).keys(), name


def test_a_metric_of_ones_own(mine):
    block = {'type': 'calculate_mine'}
    assert block_facts(block) == MetricFacts()
    assert block_facts({**block, 'better': 'lower'}) == MetricFacts(False)
    mine.higher_is_better, mine.decimals, mine.unit = True, 1, 'px'
    assert block_facts(block) == MetricFacts(True, 1, 'px')


# ------------------------------------------------------------------------------------------------------------ options

def test_better_is_filled_in(project, mine):
    force = metrics(my_lpips='calculate_fitting_error', up='calculate_psnr', mine='calculate_mine',
                    said={'type': 'calculate_mine', 'better': 'lower'}, factor='calculate_recalibration')
    parsed = project.parse('esu', force.replace('"calculate_psnr"', '"calculate_psnr", "crop_border": 2'))
    for options in (parsed.opt, parsed.flat):
        assert {name: block.get('better') for name, block in options['val']['metrics'].items()} == {
            'my_lpips': 'lower', 'up': 'higher', 'mine': None, 'said': 'lower', 'factor': None}


@pytest.mark.parametrize(('block', 'message'), [
    ({'type': 'calculate_psnr', 'crop_border': 2, 'better': 'lower'},
     'val.metrics.x.better: lower, but higher values of calculate_psnr are better; remove it'),
    ({'type': 'calculate_ause', 'better': 'higher'},
     'val.metrics.x.better: higher, but lower values of calculate_ause are better; remove it'),
    ({'type': 'calculate_recalibration', 'better': 'lower'},
     'val.metrics.x.better: lower, but neither higher nor lower values of calculate_recalibration are better'),
    ({'type': 'calculate_ause', 'better': 'up'}, 'val.metrics.x.better: expected higher or lower'),
    ({'type': 'calculate_ause', 'better': []}, 'val.metrics.x.better: expected higher or lower')])
def test_a_better_that_contradicts_the_metric_is_refused(project, block, message):
    with pytest.raises(OptionError) as error:
        project.parse('esu', metrics(x=block), check_files=False)
    assert message in str(error.value)


def test_there_is_no_best_without_direction(project, mine):
    def problem(**blocks):
        with pytest.raises(OptionError) as error:
            project.parse('esu', metrics(**blocks), best(next(iter(blocks))), check_files=False)
        return str(error.value)

    assert 'val.save_best.metric: there is no best factor: of calculate_recalibration neither higher nor lower ' \
        'values are better; choose another metric' in problem(factor='calculate_recalibration')
    assert 'set val.metrics.mine.better: higher or lower, or the attribute calculate_mine.higher_is_better' in \
        problem(mine='calculate_mine')
    project.parse('esu', metrics(mine={'type': 'calculate_mine', 'better': 'lower'}), best('mine'), check_files=False)
    mine.higher_is_better = True
    project.parse('esu', metrics(mine='calculate_mine'), best('mine'), check_files=False)
    mine.higher_is_better = 'yes'
    assert 'calculate_mine.higher_is_better: expected true, false or none' in problem(mine='calculate_mine')


# ----------------------------------------------------------------------------------------------------------- training

@pytest.mark.parametrize(('direction', 'kept'), [(False, [1]), (True, [1, 2, 3])])
def test_the_best_checkpoint_goes_the_right_way(project, mine, direction, kept):
    mine.higher_is_better = direction
    model = project.model('plain', metrics(mine='calculate_mine', factor='calculate_fitting_error'), best('mine'))
    loader, saved = DataLoader(build_dataset(model.opt['datasets']['val'])), []
    model.save_networks = lambda _: saved.append(model.best_metric_results['val']['mine']['iter'])
    for iteration in (1, 2, 3):
        model.validation(loader, iteration, None)
    assert saved == kept


def test_the_best_ause_is_the_lowest(project):
    """Without `better`, BasicSR would take it for one of which more is better."""
    model = project.model('esu', metrics(a='calculate_ause'), best('a'))
    assert model.opt['val']['metrics']['a']['better'] == 'lower'
    del model.opt['val']['metrics']['a']['better']  # as BasicSR's own loop would leave it
    model._initialize_best_metric_results('val')
    for iteration, value in enumerate((0.3, 0.1, 0.2)):
        model._update_best_metric_result('val', 'a', value, iteration)
    assert model.best_metric_results['val']['a'] == {'better': 'lower', 'val': 0.1, 'iter': 1}


def test_what_has_no_direction_has_no_best(project, caplog):
    model = project.model('esu', metrics(factor='calculate_recalibration', a='calculate_ause'))
    with caplog.at_level('INFO'):
        model.validation(DataLoader(build_dataset(model.opt['datasets']['val'])), 4, None)
    assert model.best_metric_results['val'].keys() == {'a'}
    lines = {line.split(':')[0].strip('\t #'): line for line in caplog.text.splitlines() if '# ' in line}
    assert 'Best' in lines['a']
    assert 'Best' not in lines['factor']


# --------------------------------------------------------------------------------------------- scores, tables, reports

def scores_json(name: str, value: float, metric: str = 'my_lpips', **stated) -> dict:
    images = {'a': {metric: value}, 'b': {metric: value + 1}}
    return {'name': name, 'scale': 4, 'network': 'EDSR', 'weights': 'w', 'protocol': 'p', 'versions': {},
            'datasets': {'Set5': {'images': images, 'mean': {metric: value + 0.5}}},
            **({'metrics': {metric: asdict(MetricFacts(**stated))}} if stated else {})}


def scores_of(*args, **stated) -> Scores:
    return Scores.from_json(scores_json(*args, **stated))


def test_scores_keep_the_facts(mine):
    blocks = {'my_lpips': {'type': 'calculate_lpips'}, 'mine': {'type': 'calculate_mine', 'better': 'lower'}}
    assert facts_for_scores(blocks) == {
        'my_lpips': MetricFacts(False), 'mine': MetricFacts(False)}
    stated = scores_of('x', 1., higher_is_better=False, decimals=1)
    assert metric_facts([stated], 'my_lpips') == MetricFacts(False, 1)
    assert 'MY LPIPS ↓' in format_scores(stated)
    assert '  1.5' in format_scores(stated)


@pytest.mark.parametrize('facts', [
    3, {}, {'higher_is_better': 1, 'decimals': 4, 'unit': ''}, {'higher_is_better': None, 'decimals': -1, 'unit': ''},
    {'higher_is_better': None, 'decimals': 4, 'unit': 4}, {**asdict(MetricFacts()), 'more': 1}])
def test_facts_that_are_none(facts):
    with pytest.raises(ScoresError, match=r'metrics\.my_lpips: '):
        Scores.from_json({**scores_json('x', 1.), 'metrics': {'my_lpips': facts}})


def test_old_scores_are_known_by_exact_names_alone():
    assert metric_facts([scores_of('x', 1., 'lpips')], 'lpips') == MetricFacts(False)
    for name in ('my_lpips', 'lpips_vgg', 'mae_of_mine', 'LPIPS'):
        assert facts_by_name(name).higher_is_better is None
    records = read_records(TINY)
    assert metric_facts(records, 'psnr') == MetricFacts(True, 2, 'dB')
    assert metric_facts(records, 'ssim').higher_is_better
    assert paired_difference(records, 'MSE', 'Set5', 'psnr', 4, samples=10)['ahead'] is not None


def test_runs_that_disagree_are_refused():
    up, down = (scores_of(name, 1., higher_is_better=better) for name, better in (('up', True), ('down', False)))
    with pytest.raises(ScoresError, match='my_lpips: higher values are better by up, and lower ones by down'):
        metric_facts([up, scores_of('old', 1.), down], 'my_lpips')
    assert metric_facts([scores_of('unsure', 1., decimals=4), scores_of('old', 1.), down], 'my_lpips').better == 'lower'


@pytest.mark.parametrize(('stated', 'ranks'), [
    ({}, {}), ({'decimals': 2}, {}), ({'higher_is_better': False}, {'a': 1, 'b': 2}),
    ({'higher_is_better': True}, {'a': 2, 'b': 1}), ({'higher_is_better': True, 'decimals': 0}, {'a': 1, 'b': 1})])
def test_the_table_ranks_what_has_a_direction(stated, ranks):
    table = score_table.join([scores_of('a', 1.1, **stated), scores_of('b', 1.2, **stated)], metrics=['my_lpips'])
    assert score_table.ranks(table, 4, 'Set5', 'my_lpips') == ranks
    assert ('**' in score_table.render(table, 'md')) == bool(ranks)


def record(method: str, value: float, **stated) -> Record:
    return invented_record(**scores_json(method, value, **stated), method=method,
                           stages=[{'name': 'plain', 'iterations': 1}])


def test_a_group_of_runs_without_direction_crowns_nobody(tmp_path):
    known, unknown = ([record('L1', 1., **stated), record('UDL', 2., **stated)]
                      for stated in ({'higher_is_better': False}, {}))
    for records, sign in ((known, -1), (unknown, 0)):
        group = html_groups.Group('t', records, '')
        difference = group.difference('UDL', 'Set5', 'my_lpips')
        assert difference['ahead'] == (0 if sign else None)
        assert html_groups.verdict(difference, trained=False) == ('behind' if sign else 'open')
        parts, view = html.templates().get_template('parts.html').module, html._view(group)
        page = parts.header(view) + parts.results(view, 0)
        for word in ('<b>1.5000</b>', '← better', 'Behind', 'Best in bold', 'ahead on'):
            assert (word in page) == bool(sign), word
        head, rows = summary_rows(records, 4, ['my_lpips'])
        assert ('↓' in head[2]) == bool(sign)
        assert rows[1][3] == '+1.0000 [+1.0000, +1.0000]'
        assert plots.differences_figure(records, tmp_path / 'd.png', 'my_lpips').stat().st_size > 0
