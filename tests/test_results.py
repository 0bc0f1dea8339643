"""docs/RESULTS.md and the README: the figures of their tables are those of the records in docs/results."""
import itertools
import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from udl_basicsr.experiments import statistics
from udl_basicsr.experiments.plan import read_plan
from udl_basicsr.experiments.record_files import read_records
from udl_basicsr.experiments.records import made_with_other_options

DOCS = Path(__file__).parents[1] / 'docs'
SETS = ('Set5', 'Set14', 'BSD100')
METHODS = {
    'L1': 'L1', 'L1 → L1': 'L1_restart', 'L1 → MSE': 'L1_MSE', 'ESU → UDL': 'ESU_UDL', 'MSE': 'MSE',
    'ℓ_E': 'ExpectedL1', 'ℓ_E + eq. 10': 'sigma', 'L1 + GV, weight 0.01': 'GV', 'GRAM': 'GRAM', 'EU → UDL': 'EU_UDL',
    'ESU → UDL, offset 1': 'ESU_UDL_1', 'L1 + s → UDL': 'faithful_UDL', 'L1 → s → UDL': 'post_hoc_UDL',
    'ESU → UDL, s learns on': 'ESU_learning', 'UDL and s, one stage': 'learning', 'weights |x − f|': 'weights_error',
    'weights log(∇x)': 'weights_hr_gradient_log', 'weights ∇y': 'weights_lr_gradient',
    'ESU → UDL, 1/12': 'UDL_12', 'ESU → UDL, 1/6': 'UDL_6', 'ESU → UDL, 1/3': 'ESU_UDL', 'ESU → UDL, 1/2': 'UDL_2',
    **{f'{label}, 1.54 × the iterations': f'{method}_longer' for label, method in (
        ('L1', 'L1'), ('L1 → L1', 'L1_restart'), ('L1 → MSE', 'L1_MSE'))}}
FOLDERS = {'1,500': 'stages_x4', '3,000': 'budget_3000', '6,000': 'quick_x4', '12,000': 'budget_12000',
           '24,000': 'budget_24000', '12,000, batch 16': 'small_x4'}
STAGE_1 = 'Which stage 1, and is one enough?'


@cache
def records(*folders):
    """Those of the folders, each run once: a folder's own L1 may be that of another."""
    found = {}
    for folder in folders:
        for record in read_records(DOCS / 'results' / folder):
            found.setdefault((record.method, record.scale, record.seed), record)
    return [*found.values()]


def section(heading, page='RESULTS.md'):
    text = (DOCS / page).read_text(encoding='utf-8')
    return text.split(f'\n## {heading}\n')[1].split('\n## ')[0]


def tables(heading, page='RESULTS.md'):
    """The tables below a heading, each as rows {column: cell}; a difference's column has its data set before it."""
    found = []
    for block in re.findall(r'(?:^\|.*\n)+', section(heading, page), flags=re.M):
        lines = re.sub(r'\[([^]]+)\]\([^)]*\)', r'\1', block).splitlines()  # links
        header, _, *rows = [[cell.strip(' *').replace('\\|', '|') for cell in re.split(r'(?<!\\)\|', line.strip('|'))]
                            for line in lines]
        names, dataset = [], ''
        for name in header:
            dataset = next((one for one in SETS if name.startswith(one)), dataset)
            names.append(f'{dataset} {name}' if '−' in name else name)
        found.append([dict(zip(names, row, strict=True)) for row in rows])
    return found


class Cells:
    """What a table says beside what the records give, to the last digit that is shown."""

    def __init__(self, given, seed=None):
        self.given = [record for record in given if seed in (None, record.seed)]
        self.wrong, self.count = [], 0

    def compare(self, place, shown, values):
        texts = re.findall(r'[+−]?\d+(?:\.\d+)?', shown)
        self.count += 1
        good = len(texts) == len(values) and all(
            abs(float(text.replace('−', '-')) - value) <= 0.5001 * 10**-len(text.partition('.')[2])
            for text, value in zip(texts, values, strict=True))
        if not good:
            self.wrong.append((*place, shown, [round(float(value), 5) for value in values]))

    def number(self, place, shown, value):
        self.compare(place, shown, [value])

    def mean(self, place, shown, method, dataset, metric, scale=4):
        self.compare(place, shown, [statistics.means(self.given, method, dataset, metric, scale)['mean']])

    def difference(self, place, shown, method, reference, dataset, metric, scale=4):
        result = statistics.paired_difference(self.given, method, dataset, metric, scale, reference)
        self.compare(place, shown, [result[key] for key in ('mean', 'low', 'high')])
        return result['seeds']

    def methods(self, rows, metric):
        """A table with a row for each method: seeds, means, differences from L1, and operations."""
        operations = {method: np.mean([r.costs['operations'] for r in self.given if r.method == method])
                      for method in {r.method for r in self.given}}
        for row in rows:
            label = row.get('method') or row['way']
            method = METHODS[label]
            if 'seeds' in row:
                self.number((label, ), row['seeds'], len([r for r in self.given if r.method == method]))
            for dataset in SETS:
                column = dataset if metric == 'lpips' else f'{dataset} PSNR'
                self.mean((label, dataset), row[column], method, dataset, metric)
                if method != 'L1':
                    self.difference((label, dataset), row[f'{dataset} − L1'], method, 'L1', dataset, metric)
            if 'operations' in row:
                self.number((label, ), row['operations'], operations[method] / operations['L1'])
            if 'memory' in row:
                peaks = [r.peak_memory.bytes for r in self.given if r.method == method]
                self.number((label, 'memory'), row['memory'], np.mean(peaks) / 1e9)
            if row.get('time', '–') != '–':
                fastest = min(r.seconds_of_steps for r in self.given if r.method == method and r.seconds_of_steps)
                self.number((label, 'time'), row['time'], fastest / 60)
            if method != 'L1' and 'BSD100 LPIPS − L1' in row:
                self.difference((label, 'lpips'), row['BSD100 LPIPS − L1'], method, 'L1', 'BSD100', 'lpips')

    def end(self, least):
        assert not self.wrong
        assert self.count >= least


@pytest.mark.parametrize(('heading', 'folder', 'seed'), [
    ('The yardstick', 'small_x4', None), ('The comparison at 6,000 iterations', 'quick_x4', None),
    ('With the share of stage 1', 'budget_12000', 0), (STAGE_1, 'stages_x4', None),
    ('The rivals', 'stages_x4', None)])
def test_the_methods_of_a_comparison(heading, folder, seed):
    cells = Cells(records(folder), seed)
    cells.methods(tables(heading)[0], 'psnr')
    cells.end(25)


def test_both_intervals_of_the_yardstick():
    cells = Cells(records('small_x4'))
    for row in tables('The yardstick')[1]:
        ours, theirs = (METHODS[label] for label in row['difference'].split(' minus '))
        place, found = (row['difference'], row['set']), {
            metric: statistics.paired_difference(cells.given, ours, row['set'], metric, 4, theirs)
            for metric in ('psnr', 'ssim', 'lpips')}
        for metric, result in found.items():
            values = [result[key] for key in ('mean', 'low', 'high')]
            cells.compare(place, row[f'{metric.upper()}, bootstrap'], values)
        psnr = found['psnr']
        cells.compare(place, row["Student's t"], [psnr['seed_low'], psnr['seed_high']])
        cells.compare(place, row['by seed'], [*psnr['by_seed'].values()])
        cells.compare(place, row['images ahead'], [psnr['ahead'], psnr['pairs']])
    cells.end(90)


@pytest.mark.parametrize(('length', 'table', 'seed'), [('6,000', 0, None), ('12,000', 1, 0)])
def test_lpips(length, table, seed):
    cells = Cells(records(FOLDERS[length]), seed)
    cells.methods(tables('LPIPS')[table], 'lpips')
    cells.end(25)


def test_the_spread_between_seeds():
    for row in tables('How far to trust an interval')[0]:
        cells = Cells(records(FOLDERS[row['iterations']]))
        for column in (*SETS, 'LPIPS, BSD100'):
            dataset, metric = ('BSD100', 'lpips') if 'LPIPS' in column else (column, 'psnr')
            squares = degrees = 0
            for method in {r.method for r in cells.given} - {'L1'}:
                by_seed = [*statistics.paired_difference(cells.given, method, dataset, metric, 4)['by_seed'].values()]
                squares += np.var(by_seed) * len(by_seed)
                degrees += len(by_seed) - 1
            cells.number((column, ), row[column], (squares / degrees)**0.5)
        cells.end(4)


def test_the_uncertainties():
    found = json.loads((DOCS / 'results/uncertainty_x4/uncertainty.json').read_text(encoding='utf-8'))['runs']
    runs, cells = {run['name'].split('_')[2]: run for run in found}, Cells([])
    columns = ('factor', 'log_likelihood_laplace', 'log_likelihood_gaussian', 'sigma_psnr', 'ause_mae', 'spearman',
               'calibration_error')
    for row in tables('What the uncertainties are worth')[0]:
        name, recalibrated, _ = row['run'].partition(', recalibrated')
        scores = runs[name]['recalibrated' if recalibrated else 'scores']
        for (column, shown), key in zip([*row.items()][1:], columns, strict=True):
            cells.number((row['run'], column), shown, scores[key])
    cells.end(42)


def test_the_calibrated_intervals():
    runs = json.loads((DOCS / 'results/uncertainty_x4/coverage.json').read_text(encoding='utf-8'))['runs']
    names = {'ESU, two seeds as an ensemble': 'ESU, ensemble of 2', 'ESU, three seeds': 'ESU, ensemble of 3',
             'L1 + s (faithful)': 'L1 + s', 'L1, then s (post hoc)': 'L1, then s'}
    cells, found = Cells([]), {run['name']: run for run in runs}
    for row in tables('What the uncertainties are worth')[1]:
        run = found[names.get(row[''], row[''])]
        cells.number((row[''], 'λ'), row['λ'], np.mean(run['factors']))
        for column, key in (('coverage', 'coverage'), ('mean width', 'width'), ('interval score', 'interval_score'),
                            ('AUSE', 'ause')):
            cells.number((row[''], column), row[column], np.mean([image[key] for image in run['images'].values()]))
    cells.end(50)


@pytest.mark.parametrize(('table', 'reference', 'column'), [(0, 'L1', '{} UDL − L1'), (1, 'L1_MSE', '{}')])
def test_the_lead_by_the_budget(table, reference, column):
    for row in tables('With the budget')[table]:
        cells = Cells(records(FOLDERS[row['iterations']]))
        for dataset in SETS:
            seeds = cells.difference((dataset, ), row[column.format(dataset)], 'ESU_UDL', reference, dataset, 'psnr')
            cells.number(('seeds', ), row['seeds'], seeds)
            if reference == 'L1':
                cells.mean((dataset, ), row[f'{dataset}: L1'], 'L1', dataset, 'psnr')
        cells.end(6)


def test_longer_controls():
    for row in tables('With longer controls')[0]:
        cells = Cells(records(FOLDERS[row["UDL's iterations"]]))
        for dataset in SETS:
            seeds = cells.difference((row['control'], dataset), row[dataset], 'ESU_UDL',
                                     f"{METHODS[row['control']]}_longer", dataset, 'psnr')
            cells.number(('seeds', ), row['seeds'], seeds)
        cells.end(6)


def test_the_shares_of_the_lead():
    for row in tables('What of the lead needs no uncertainty')[0]:
        cells, method = Cells(records(FOLDERS[row['iterations']])), METHODS[row['control']]
        columns = {**dict.fromkeys(SETS, 'psnr'), 'SSIM, BSD100': 'ssim', 'LPIPS, BSD100': 'lpips'}
        for column, metric in columns.items():
            found = statistics.share_of_lead(cells.given, method, 'ESU_UDL', column.split()[-1], metric, 4)
            cells.compare((method, column), row[column], [100 * found[key] for key in ('share', 'low', 'high')])
            cells.number(('seeds', ), row['seeds'], found['seeds'])
        cells.end(10)


@pytest.mark.parametrize(('heading', 'column', 'seed'), [
    ('With the scale', 'scale', 0), ('With the network', 'network', None)])
def test_the_lead_by_the_scale_and_by_the_network(heading, column, seed):
    comparisons = {'×2, 6,000': ('x2', 2), '×3, 6,000': ('x3', 3), '×4, 6,000': ('quick_x4', 4),
                   '×2, 24,000': ('weights', 2), '×3, 24,000': ('weights', 3), '×4, 24,000': ('budget_24000', 4),
                   'EDSR 8×32': ('quick_x4', 4), 'RCAN 2×4×32': ('RCAN', 4), 'CARN 32': ('CARN', 4),
                   'EDSR-S': ('EDSR-S', 4)}
    for row in tables(heading)[0]:
        name = f"{row['scale']}, {row['iterations']}" if column == 'scale' else row[column]
        folder, scale = comparisons[name]
        cells = Cells(records(folder), seed)
        if column == 'network':
            assert row['parameters'] == f'{cells.given[0].parameters:,}'
            cells.number((name, ), row['seeds'], len({r.seed for r in cells.given}))
        for dataset in SETS:
            place = name, dataset
            cells.difference(place, row[f'{dataset} UDL − L1'], 'ESU_UDL', 'L1', dataset, 'psnr', scale)
            cells.mean(place, row[f'{dataset}: L1'], 'L1', dataset, 'psnr', scale)
        cells.end(6)


def test_the_yardstick_on_another_processor():
    text = ' '.join(section('The yardstick').split())
    there, here = records('small_x4_on_amx'), records('small_x4')
    assert len(there) == 1
    cells = Cells([*there, *(r for r in here if r.method == 'GV')], 0)
    own, ends = (re.findall(r'[+−]?\d[\d.]*(?: \[[^]]+\])?', text.split(words)[1])
                 for words in ('of the L1 of its own processor by', 'ends'))
    for dataset, lead, higher in zip(SETS, own, ends, strict=False):
        cells.difference((dataset, ), lead, 'GV', 'L1', dataset, 'psnr')
        a, b = (statistics.means([r for r in found if r.seed == 0], 'L1', dataset, 'psnr', 4)['mean']
                for found in (there, here))
        cells.number((dataset, 'L1'), higher, a - b)
    cells.end(6)


def test_lpips_by_the_scale():
    text, cells = ' '.join(section('With the scale').split()), Cells(records('weights'), 0)
    shown = re.findall(r'\d[\d.]* \[[^]]+\]', text.split('In LPIPS it is ahead by')[1])[:6]
    for cell, (scale, dataset) in zip(shown, itertools.product((2, 3), SETS), strict=True):
        cells.difference((scale, dataset), cell, 'L1', 'ESU_UDL', dataset, 'lpips', scale)
    cells.end(6)


def test_tlw():
    cells, metric = Cells(records('tlw_x4', 'stages_x4'), 0), ''
    for row in tables('TLW')[0]:
        _, minus, reference = row[''].rpartition('minus ')
        metric = metric if minus else row[''].lower()
        for dataset in SETS:
            if minus:
                cells.difference((metric, reference, dataset), row[dataset], 'TLW', METHODS[reference], dataset, metric)
            else:
                cells.mean((metric, dataset), row[dataset], 'TLW', dataset, metric)
    cells.end(20)


def test_the_readme():
    folder, count = '', 0
    for row in tables('Does it help?', '../README.md')[0]:
        when, _, seeds = row['iterations'].rpartition(', ')
        if 'the same' not in row['iterations']:
            folder = FOLDERS.get(when, 'small_x4')
        cells = Cells(records(folder), 0 if seeds == 'seed 0' else None)
        reference = METHODS[row['UDL minus']]
        for dataset in SETS:
            found = cells.difference((reference, dataset), row[dataset], 'ESU_UDL', reference, dataset, 'psnr')
            assert found == {'seed 0': 1, 'two seeds': 2, 'three seeds': 3}.get(seeds, found), row
            count += 1
        cells.end(3)
    assert count >= 15


@pytest.mark.parametrize(('heading', 'words', 'folder', 'ours', 'theirs', 'metric', 'seed'), [
    ('The yardstick', 'of each channel), is behind UDL by', 'small_x4', 'ESU_UDL', 'ESU_UDL_1', 'psnr', 0),
    ('The yardstick', 'is behind ESU → UDL by', 'small_x4', 'ESU_UDL', 'EU_UDL', 'psnr', 0),
    ('The yardstick', 'On seed 0 it is behind UDL by', 'small_x4', 'ESU_UDL', 'weights_error', 'psnr', 0),
    ('The yardstick', 'and ahead of L1 → MSE by', 'small_x4', 'weights_error', 'L1_MSE', 'psnr', 0),
    ('The yardstick', 'tiny network](results/tiny_x4/README.md), is behind UDL by', 'small_x4', 'ESU_UDL',
     'weights_hr_gradient_log', 'psnr', 0),
    ('The yardstick', '∇y minus UDL is', 'small_x4', 'weights_lr_gradient', 'ESU_UDL', 'psnr', 0),
    ('The yardstick', 'In SSIM it is behind UDL, by', 'small_x4', 'ESU_UDL', 'weights_lr_gradient', 'ssim', 0),
    ('The yardstick', 'ahead on every image, by', 'small_x4', 'ESU_UDL', 'weights_lr_gradient', 'lpips', 0),
    ('The yardstick', 'In SSIM it is behind L1, by', 'small_x4', 'L1', 'MSE', 'ssim', 0),
    ('The yardstick', 'It is behind L1 → MSE by', 'small_x4', 'L1_MSE', 'MSE', 'psnr', 0),
    ('The yardstick', 'told from L1.** It is ahead by', 'small_x4', 'ExpectedL1', 'L1', 'psnr', 0),
    ('The yardstick', 'In PSNR it is ahead by', 'small_x4', 'GV', 'L1', 'psnr', 0),
    ('The yardstick', 'In SSIM it is ahead by', 'small_x4', 'GV', 'L1', 'ssim', 0),
    ('The yardstick', 'behind L1**, on 116 of 119 images: by', 'small_x4', 'L1', 'GRAM', 'psnr', 0),
    ('The yardstick', 'ahead of UDL, on 116 of 119 images: by', 'small_x4', 'L1_MSE_longer', 'ESU_UDL', 'psnr', 0),
    ('The comparison at 6,000 iterations', 'ahead of L1 → MSE by', 'quick_x4', 'ESU_UDL', 'L1_MSE', 'ssim', None),
    ('With the budget', 'In SSIM it is behind, by', 'budget_24000', 'L1', 'ESU_UDL', 'ssim', None),
    ('With the budget', 'lower than that of L1 → MSE by', 'budget_24000', 'L1_MSE', 'ESU_UDL', 'lpips', 0),
    ('With the budget', 'L1 → L1 minus L1 is', 'budget_12000', 'L1_restart', 'L1', 'psnr', 0),
    ('With the budget', 'UDL minus L1 → L1 is', 'budget_12000', 'ESU_UDL', 'L1_restart', 'psnr', 0),
    ('With the budget', 'In SSIM UDL is behind L1 → L1 by', 'budget_24000', 'L1_restart', 'ESU_UDL', 'ssim', 0),
    ('With the budget', 'In LPIPS it is ahead by', 'budget_24000', 'L1_restart', 'ESU_UDL', 'lpips', 0),
    ('With the share of stage 1', 'It is behind a third by', 'budget_12000', 'ESU_UDL', 'UDL_2', 'psnr', 0),
    ('With the share of stage 1', 'A twelfth is ahead of a third by', 'budget_12000', 'UDL_12', 'ESU_UDL', 'psnr', 0),
        ('With the share of stage 1', 'UDL minus L1 is', 'budget_24000_bf16', 'UDL_12', 'L1', 'psnr', 0),
    ('With longer controls', 'UDL is ahead of L1 by', 'budget_3000', 'L1_longer', 'ESU_UDL', 'lpips', 0),
    ('With longer controls', 'L1 → L1 of UDL by', 'budget_3000', 'ESU_UDL', 'L1_restart_longer', 'lpips', 0),
    ('With the network', 'EDSR gains by it: L1 → MSE minus L1 is', 'EDSR-S', 'L1_MSE', 'L1', 'psnr', None),
    ('With the network', 'with both seeds, by', 'EDSR-S', 'ESU_UDL', 'L1_MSE', 'psnr', None),
    (STAGE_1, "from ESU's.** It is ahead by", 'stages_x4', 'faithful_UDL', 'ESU_UDL', 'psnr', None),
    (STAGE_1, 'controls), in LPIPS by', 'stages_x4', 'ESU_UDL', 'L1_restart_longer', 'lpips', None),
    (STAGE_1, 'of "L1 + s" by', 'stages_x4', 'L1_restart_longer', 'faithful_UDL', 'psnr', None),
    (STAGE_1, 'is behind ESU by', 'stages_x4', 'ESU_UDL', 'post_hoc_UDL', 'psnr', None),
    (STAGE_1, 'That costs', 'stages_x4', 'ESU_UDL', 'ESU_learning', 'psnr', None),
    ('The rivals', 'behind ESU → UDL by', 'stages_x4', 'ESU_UDL', 'EU_UDL', 'psnr', 0),
    ('The rivals', 'ahead of ℓ_E alone by', 'stages_x4', 'sigma', 'ExpectedL1', 'psnr', 0),
    ('The rivals', '**offset 1** by', 'stages_x4', 'ESU_UDL', 'ESU_UDL_1', 'psnr', 0),
    ('LPIPS', 'it is lower than L1 → MSE by', 'quick_x4', 'L1_MSE', 'ESU_UDL', 'lpips', None),
    ('LPIPS', 'UDL beats only L1**, by', 'quick_x4', 'L1_longer', 'ESU_UDL', 'lpips', None),
    ('LPIPS', 'seed 0: L1 → MSE by', 'quick_x4', 'ESU_UDL', 'L1_MSE_longer', 'lpips', 0),
    ('LPIPS', 'UDL minus L1 → MSE is', 'budget_12000', 'ESU_UDL', 'L1_MSE', 'lpips', 0)])
def test_the_figures_in_a_sentence(heading, words, folder, ours, theirs, metric, seed):
    """Three differences with their intervals, of the three sets, behind the words."""
    text, cells = ' '.join(section(heading).split()), Cells(records(folder), seed)
    assert text.count(words) == 1, f'{heading}: expected once: {words!r}'
    shown = re.findall(r'[+−]?\d[\d.]* \[[^]]+\]', text.split(words)[1])
    for dataset, cell in zip(SETS, shown, strict=False):
        cells.difference((words, dataset), cell, ours, theirs, dataset, metric)
    cells.end(3)


def test_every_record_is_of_the_plan_of_its_name(tmp_path):
    """As `udl compare` would find, before it went on with them."""
    count, options = 0, DOCS.parent / 'options' / 'compare'
    for file in (*options.glob('[!_]*.yml'), *options.glob('lead/[!_]*.yml')):
        out = DOCS / 'results' / file.stem
        for run in read_plan(file, tmp_path).runs:
            if run.record(out).exists():
                assert made_with_other_options(run, out, tmp_path) is None
                count += 1
    assert count > 200
