"""The papers' tables, against values worked out by hand."""
import copy
import csv
import importlib.util
import json
import re
import statistics
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from invented import invented_record

from udl_basicsr.experiments import complexity, record_files
from udl_basicsr.experiments import printed as papers
from udl_basicsr.reports import paper_tables, score_table
from udl_basicsr.utils.metric_facts import MetricFacts
from udl_basicsr.utils.scores import ScoresError

ROOT = Path(__file__).parents[1]


def make_record(method, seed=0, scale=4, network='EDSR 4×16', name='rivals', iterations=(1500,), degradation='BI',
                **sets):
    """A record with the given (PSNR, SSIM) pairs, one per image, of each data set."""
    datasets = {}
    for dataset, pairs in sets.items():
        images = {f'img{i}': {'psnr': psnr, 'ssim': ssim} for i, (psnr, ssim) in enumerate(pairs)}
        datasets[dataset] = {'images': images, 'mean': {
            'psnr': statistics.fmean(pair[0] for pair in pairs), 'ssim': statistics.fmean(pair[1] for pair in pairs)}}
    return invented_record(
        name=f'{method}_x{scale}_seed{seed}', scale=scale, protocol='PSNR/SSIM on Y', datasets=datasets,
        comparison=name, method=method, seed=seed, degradation=degradation, network_title=network, parameters=43211,
        stages=[{'name': 'x', 'iterations': count} for count in iterations], initial_weights=f'weights{seed}',
        data_order=f'order{seed}')


@pytest.fixture
def records():
    """L1 has 30.0, 30.2, 30.4 on Set5; UDL, with the same mean to two digits, 30.201; ESU one seed."""
    return [*(make_record('L1', seed, Set5=[(29 + 0.2 * seed, 0.85), (31 + 0.2 * seed, 0.87)]) for seed in range(3)),
            *(make_record('ESU_UDL', seed, iterations=(500, 1000), Set5=[(30.201, 0.8625)],
                          Set14=[(27.123456789, 0.75)]) for seed in range(3)),
            make_record('GRAM', 0, iterations=(500,), Set5=[(29.5, 0.84)]),
            make_record('ESU', 0, Set5=[(40., 0.9)])]  # in none of the tables tested


@pytest.fixture
def paper():
    """The packaged file with invented rows alone for table udl-2 (one network) and udl-5 (three)."""
    paper = copy.deepcopy(papers.load_paper())
    for key in ('rows', 'misprints', 'suspects'):
        paper[key] = [entry for entry in paper[key] if entry.get('table') not in ('udl-2', 'udl-5')]
    paper['rows'] += [
        {'source': 'UDL', 'table': 'udl-2', 'network': 'EDSR-S', 'method': 'L1', 'degradation': 'BI', 'scale': 4,
         'scores': {'Set5': [32.01, None]}},
        {'source': 'UDL', 'table': 'udl-2', 'network': 'EDSR-S', 'method': 'ESU → UDL', 'degradation': 'BI', 'scale': 4,
         'scores': {'Set5': [32.22, 0.8951]}},
        {'source': 'UDL', 'table': 'udl-5', 'network': 'EDSR', 'method': 'UDL', 'degradation': 'BI', 'scale': 4,
         'scores': {'Set5': [32.77, 0.9]}},
        {'source': 'UDL', 'table': 'udl-5', 'network': 'SRCNN', 'method': 'charbonnier', 'degradation': 'BI',
         'scale': 8, 'scores': {'General100': [25.5, 0.7]}}]
    for name in ('udl-2', 'udl-5'):
        paper['tables'][name]['read_from'] = 'an invented page'
    return paper


def save(paper, path):
    path.write_text(json.dumps(paper), encoding='utf-8')
    return path


def cells(markdown, *start):
    """The cells after the given first ones."""
    lines = [line.strip('|') for line in markdown.splitlines() if line.startswith('|')]
    rows = [[cell.strip() for cell in line.split('|')] for line in lines]
    [found] = [row[len(start):] for row in rows if row[:len(start)] == list(start)]
    return found


def latex_is_sound(text):
    """Braces and environments close, rows have as many cells as columns, nothing is left that pdflatex cannot set."""
    assert text.isascii()
    body = re.sub(r'(?m)(?<!\\)%.*$', '', text)
    depth = 0
    for sign in re.sub(r'\\[\\{}$%&_#]', '', body):
        depth += (sign == '{') - (sign == '}')
        assert depth >= 0
    assert depth == 0
    assert len(re.findall(r'(?<!\\)\$', body)) % 2 == 0
    outside = re.sub(r'(?<!\\)\$[^$]*\$', '', body)
    assert not re.search(r'(?<!\\)[_^#]', outside)
    assert re.findall(r'\\begin{(\w+)}', body) == re.findall(r'\\end{(\w+)}', body)[::-1]
    columns = len(re.search(r'\\begin{tabular}{(\w+)}', body)[1])
    rows = [line for line in body.splitlines() if line.endswith('\\\\')]
    assert all(len(re.findall(r'(?<!\\)&', row)) == columns - 1 for row in rows)
    return rows


# ---------------------------------------------------------------- figures

def test_means_over_seeds_and_their_spread(records, paper):
    markdown = paper_tables.render(paper_tables.make_table('udl-5', records, paper))
    # L1: 30.0, 30.2, 30.4 have the mean 30.2 and the sample standard deviation 0.2; all have SSIM 0.86.
    assert cells(markdown, 'EDSR 4×16', '×4', 'Original')[:2] == ['3', '**30.20** ± 0.20 / <u>0.8600</u> ± 0.0000']
    # 30.201 is no better than 30.2 as printed, 0.8625 is better than 0.86.
    assert cells(markdown, 'EDSR 4×16', '×4', 'L_UDL-Ours')[:4] == [
        '3', '**30.20** ± 0.00 / **0.8625** ± 0.0000', '–', '27.12 ± 0.00 / 0.7500 ± 0.0000']
    assert cells(markdown, 'EDSR 4×16', '×4', 'GRAM')[:2] == ['1', '<u>29.50</u>/0.8400']
    assert '40.00' not in markdown


def test_caption_tells_ours_from_printed(records, paper):
    table = paper_tables.make_table('udl-5', records, paper)
    ours, protocol, printed = table.caption
    assert ours == ('Ours: EDSR 4×16, 43 211 parameters, comparison rivals; iterations 1500 (GRAM: 500); '
                    'seeds 0, 1, 2 (GRAM: 0). Means over the seeds ± their standard deviation.')
    assert protocol == 'Ours at ×4: PSNR/SSIM on Y.'
    assert 'read from an invented page' in printed
    assert 'EDSR 4×16 is no network of the paper' in printed
    records[0] = replace(records[0], protocol='PSNR on RGB')
    assert 'cannot be compared' in paper_tables.make_table('udl-5', records, paper).caption[1]


def test_single_network_of_a_paper_stands_beside_ours(records, paper):
    markdown = paper_tables.render(paper_tables.make_table('udl-2', records, paper))
    header = cells(markdown, 'network', 'scale', 'loss')
    assert header[:4] == ['seeds', 'Set5, ours', 'Set5, printed', 'Set14, ours']
    assert cells(markdown, 'EDSR 4×16', '×4', 'Original')[2] == '<u>32.01</u>/–'
    assert cells(markdown, 'EDSR 4×16', '×4', 'L_ESU + L_UDL')[2] == '**32.22**/0.8951'
    assert 'L_EU + L_UDL' not in markdown  # neither trained nor in these rows
    assert 'EDSR-S |' not in markdown


def test_namesakes_share_rows_and_others_follow(records, paper):
    records += [make_record('ESU_UDL', 0, network='edsr', name='large', Set5=[(32.5, 0.89)]),
                make_record('L1', 0, network='EDSR', name='larger', Set5=[(32.4, 0.88)]),
                make_record('L1', 0, scale=2, network='EDSR-baseline', name='twice', Set5=[(37., 0.95)]),
                make_record('L1', 0, scale=3, network='EDSR', name='blurred', degradation='BD', Set5=[(33., 0.9)])]
    table = paper_tables.make_table('udl-5', records, paper)
    markdown = paper_tables.render(table)
    assert cells(markdown, 'edsr', '×4', 'L_UDL-Ours')[:3] == ['1', '32.50/0.8900', '32.77/0.9000']
    assert cells(markdown, 'EDSR', '×4', 'Original')[1] == '32.40/0.8800'
    assert cells(markdown, 'EDSR-baseline', '×2', 'Original')[1] == '37.00/0.9500'
    blocks = list(dict.fromkeys((line.scale, line.network) for line in table.lines))
    assert blocks == [(2, 'EDSR-baseline'), (4, 'edsr'), (4, 'EDSR'), (4, 'EDSR 4×16'), (8, 'SRCNN')]
    degraded = paper_tables.render(paper_tables.make_table('udl-6', [
        *records, make_record('L1', 0, network='EDSR', name='blurred', degradation='BD', Set5=[(33., 0.9)])], paper))
    assert cells(degraded, 'EDSR', '×4', 'Original')[1:3] == ['33.00/0.9000', '<u>32.17</u>/<u>0.8975</u>']
    assert 'rivals' not in degraded
    assert 'blurred' not in markdown
    two = [*records, make_record('L1', 0, name='longer', Set5=[(31., 0.8)])]
    labels = {line.network for line in paper_tables.make_table('udl-5', two, paper).lines}
    assert {'EDSR 4×16 (rivals)', 'EDSR 4×16 (longer)'} <= labels


def test_a_new_printed_row_is_data_alone(records, paper):
    """Networks, losses, scales, data sets and metrics that no layout knows appear by their rows."""
    table = paper_tables.make_table('udl-5', records, paper)
    assert table.datasets == ('Set5', 'Set14', 'BSD100', 'Urban100', 'Manga109', 'General100')
    line = next(line for line in table.lines if (line.scale, line.network, line.method) == (8, 'SRCNN', 'charbonnier'))
    assert line.printed['General100', 'psnr'].value == 25.5
    paper['rows'].append({**paper['rows'][-1], 'method': 'L1', 'metrics': ['lpips'], 'scores': {'Set5': [0.25]}})
    assert paper_tables.make_table('udl-5', records, paper).metrics == ('psnr', 'ssim', 'lpips')


def test_labels_of_the_paper_find_ours():
    """Plans go by the paper's labels, which may be one word for several losses: `EDSR + GV` and `VDSR + GV` are two."""
    records = [replace(make_record(method, network=network, scale=2, name='gv-1', Set5=[(psnr, 0.9)]), label=label)
               for network, method, label, psnr in (('VDSR', 'own', 'VDSR', 30.), ('VDSR', 'gv', 'VDSR+GV', 31.),
                                                    ('EDSR', 'own', 'EDSR', 35.), ('EDSR', 'gv', 'EDSR + GV', 36.))]
    table = paper_tables.make_table('gv-1', records, papers.load_paper())
    found = {(line.network, line.method): line.ours['Set5', 'psnr'].mean for line in table.lines if line.ours}
    assert found == {('VDSR', 'MSE'): 30., ('VDSR', 'MSE + GV'): 31., ('EDSR', 'L1'): 35., ('EDSR', 'L1 + GV'): 36.}
    assert len(table.lines) == 18  # as many as are printed

    records = [replace(make_record(f'run{n}', network='VDSR', name='le-4', Set5=[(30. + n, 0.9)]), label=label)
               for n, label in enumerate(('ℓ2', 'DIV2K', 'Edge', 'Ours'))]
    table = paper_tables.make_table('le-4', records, papers.load_paper())
    found = {line.label: line.ours['Set5', 'psnr'].mean for line in table.lines if line.ours}
    assert found == {'ℓ2': 30., 'DIV2K': 31., 'Ours': 33.}  # Edge is cited: it stays printed alone
    assert {line.label for line in table.lines if line.cited} == {'Edge', 'Riemann', 'Teacher'}


@pytest.mark.parametrize(('name', 'cited', 'rows'), [
    ('le-3', {'IMDN', 'OISR'}, 6), ('le-4', {'Edge', 'Riemann', 'Teacher'}, 3 + 6 + 9),
    ('le-5', {'DPS', 'KPN', 'LP-KPN'}, 9), ('le-6', {'SAN', 'HAN', 'NLSA'}, 9)])
def test_what_a_paper_only_cites_stands_without_ours(name, cited, rows, records):
    paper = papers.load_paper()
    more = [make_record('L1', network=title, name='own', degradation=paper['tables'][name]['degradation'],
                        Set5=[(30., 0.9)]) for title in cited]
    table = paper_tables.make_table(name, [*records, *more], paper)
    assert not any(line.ours for line in table.lines if line.cited)
    lines = [line for line in paper_tables.render(table).splitlines() if '| cited |' in line]
    assert len(lines) == rows
    assert all(any(f'| {title} |' in line for title in cited) for line in lines)


def test_costs_stand_beside_the_printed_ones():
    """Our EDSR-baseline and VDSR are the paper's: the same parameters, and MACs by torch's counter as printed."""
    blocks = {'VDSR': {'type': 'VDSR', 'upscale': 2}, 'EDSR-baseline': {
        'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 64, 'num_block': 16, 'upscale': 2}}
    records = [replace(make_record('L1', network=network, scale=2, name=network, Set5=[(30., 0.9)]),
                       parameters=parameters, costs={'macs': complexity.count_macs(block, 2), 'runtime': 12.34},
                       run_time=record_files.RunTime(12.34, [720, 1280], 'a GPU'))
               for (network, block), parameters in zip(blocks.items(), (667_008, 1_369_859), strict=True)]
    markdown = paper_tables.paper_table('le-3', records, 'md')
    header = cells(markdown, 'network', 'scale', 'loss', 'seeds')
    assert header[:6] == ['#Param., ours', '#Param., printed', 'MAC, ours', 'MAC, printed', 'Runtime, ours',
                          'Runtime, printed']
    assert cells(markdown, 'EDSR-baseline', '×2', 'EDSR-baseline', '1')[:6] == [
        '1.37M', '1370K', '316.2G', '316.2G', '12.3ms', '56.5ms']
    assert cells(markdown, 'VDSR', '×2', 'VDSR', '1')[:4] == ['667K', '668K', '614.7G', '614.7G']
    assert cells(markdown, 'VDSR', '×2', 'VDSR+Ours', '–')[:6] == ['–'] * 6
    assert 'Ours, Runtime: measured on a GPU.' in markdown
    # Table 5 prints no MACs; and a CPU measures a small image, which is no figure of the table
    real = replace(records[0], network_title='SRResNet', degradation='RealSR', costs={'macs': 5},
                   run_time=record_files.RunTime(1., [180, 320], 'a CPU'))
    table = paper_tables.make_table('le-5', [real], papers.load_paper())
    assert [line.our_costs for line in table.lines if line.ours] == [{'parameters': 667_008}]
    assert 'Ours, Runtime: measured on a CPU, 320×180 pixels alone, and not shown, since the paper has 2200×1200.' in (
        table.caption)
    trained = replace(make_record('L1', network='EDSR-baseline', scale=2, Set14=[(30., 0.9)]), costs={'training': 19.})
    assert '| 19.00 ms/iter | 2.00 ms/iter |' in paper_tables.paper_table('le-1', [trained], 'md')


def test_costs_are_counted_and_measured():
    block = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'upscale': 2}
    # 3 → 8, three of 8 → 8, 8 → 32 before the shuffle: all at LR; then 8 → 3 at HR
    low, high = 9 * (3 * 8 + 3 * 64 + 8 * 32), 9 * 8 * 3
    assert complexity.count_macs(block, 2, (12, 20)) == 6 * 10 * low + 12 * 20 * high
    assert 0 < complexity.run_time(block, 2, (12, 20), repeats=2, device='cpu') < 1000


def test_amounts_are_read_and_written_as_printed():
    paper = papers.load_paper()
    for row in paper['rows']:
        for cost, text in row.get('costs', {}).items():
            value = papers.parse_amount(text)
            assert papers.parse_amount(papers.format_amount(cost, value)) == pytest.approx(value, rel=5e-3)
    assert papers.parse_amount('15.44M') == 15_440_000
    assert papers.format_amount('runtime', papers.parse_amount('1,587.9ms')) == '1587.9ms'
    assert papers.format_amount('macs', 614.7e9) == '614.7G'


def test_a_trial_shows_its_own_photographs(records):
    trial = [make_record('L1', demo=[(25., 0.7)]), make_record('ESU_UDL', demo=[(26., 0.8)])]
    table = paper_tables.make_table('udl-2', trial, papers.load_paper())
    assert table.datasets[-1] == 'demo'
    assert 'demo' not in paper_tables.make_table('udl-2', [
        *trial, make_record('L1', 1, Set5=[(25., 0.7)])], papers.load_paper()).datasets


def test_paper_table_grows():
    """What a comparison prints while it is made: dashes first, and each record as soon as it is there."""
    assert '–: not trained here' in paper_tables.paper_table('udl-5')
    empty = paper_tables.paper_table('udl-5', [], 'csv')
    assert ',ours,' not in empty
    one = paper_tables.paper_table('udl-5', [make_record('UDL', network='EDSR-S', scale=3, Set5=[(34., 0.92)])], 'csv')
    ours = [row for row in csv.DictReader(one.splitlines()) if row['kind'] == 'ours']
    assert [(row['network'], row['scale'], row['label'], row['metric'], float(row['value'])) for row in ours] == [
        ('EDSR-S', '3', 'L_UDL-Ours', 'psnr', 34.), ('EDSR-S', '3', 'L_UDL-Ours', 'ssim', 0.92)]
    lines = paper_tables.paper_table('udl-5', [make_record('UDL', network='EDSR-S', scale=3, Set5=[(34., 0.92)]),
                                               make_record('UDL', 1, network='EDSR-S', scale=3, Set5=[(34.2, 0.93)])],
                                     notes=False).splitlines()
    at = next(number for number, line in enumerate(lines) if 'ours' in line)  # ours above printed
    expected = 'EDSR-S ×3 L_UDL-Ours ours, 2 seeds 34.10 ± 0.14 / 0.9250 ± 0.0071 – – – –'
    assert ' '.join(lines[at].split()) == expected
    assert lines[at + 1].split()[:2] == ['printed', '34.15/0.9251']
    assert len(lines) == 4 + 27 + 1  # title, empty line, head, rule; what is printed; ours
    assert 'L_UDL-Ours' not in paper_tables.paper_table('le-4', notes=False)
    with pytest.raises(ScoresError, match='did you mean udl-5'):
        paper_tables.paper_table('udl5')


def test_misprints(records, paper, tmp_path):
    packaged = papers.load_paper()
    markdown = paper_tables.render(paper_tables.make_table('udl-6', [], packaged))
    assert cells(markdown, 'EDSR', '×4', 'L_UDL-Ours')[4] == '27.74<sup>a</sup>/**0.7867**'
    assert 'Misprint: PSNR 27.74 for EDSR UDL ×4 on Set14' in markdown
    assert '0.85456<sup>a</sup>' in paper_tables.paper_table('gv-1', fmt='md')
    assert 'Doubtful, but as printed: DPS ×2, 32.71.' in paper_tables.paper_table('le-5', fmt='md')
    paper['misprints'].append({'table': 'udl-2', 'network': 'EDSR-S', 'method': 'L1', 'scale': 4, 'dataset': 'Set5',
                               'metric': 'ssim', 'printed': 0.9899, 'note': 'Too good.'})
    table = paper_tables.make_table('udl-2', records, paper)
    markdown = paper_tables.render(table)
    # the best, but unmarked
    assert cells(markdown, 'EDSR 4×16', '×4', 'Original')[2] == '<u>32.01</u>/0.9899<sup>a</sup>'
    assert '<sup>a</sup> Misprint: SSIM 0.9899 for EDSR-S L1 ×4 on Set5. Too good.' in markdown
    papers.load_paper(save(paper, tmp_path / 'mine.json'))
    paper['misprints'][-1]['metric'] = 'psnr'
    with pytest.raises(ScoresError, match=r'udl-2: the row of a misprint holds 32\.01, expected null'):
        papers.load_paper(save(paper, tmp_path / 'mine.json'))


def test_decimals_are_those_of_the_paper():
    """TLW prints PSNR with four decimals, a last 0 too, and once with three; ours beside it has four."""
    records = [make_record('UDL', network='HAT', name='tlw-2', Set5=[(32.5, 0.9)])]
    markdown = paper_tables.paper_table('tlw-2', records, 'md')
    assert cells(markdown, 'HAT', '×4', 'L1-UDL')[3:5] == ['32.5000/–', '32.0091/0.2084']
    assert cells(markdown, 'HAT', '×4', 'L1-UDL')[8] == '27.573/0.3480'
    assert '<u>0.2800</u>' in markdown
    for name, cell in (('tlw-1', '36.6390/0.0534'), ('gv-2', '30.13/0.887736'), ('le-2', '33.605/0.9176'),
                       ('le-7', '2.60/39.08')):
        assert f' {cell}' in paper_tables.paper_table(name)


# ---------------------------------------------------------------- formats

def test_csv_reads_back_in_full_precision(records, paper):
    table = paper_tables.make_table('udl-5', records, paper)
    rows = list(csv.DictReader(paper_tables.render(table, 'csv').splitlines()))
    keys = 'network', 'scale', 'method', 'dataset', 'metric', 'kind'
    by_key = {tuple(row[key] for key in keys): row for row in rows}
    l1 = by_key['EDSR 4×16', '4', 'L1', 'Set5', 'psnr', 'ours']
    seeds = [30.0, 30.2, 30.4]
    assert float(l1['value']) == pytest.approx(statistics.fmean(seeds), abs=1e-13)
    assert float(l1['sd']) == pytest.approx(statistics.stdev(seeds), abs=1e-13)
    assert (l1['seeds'], l1['comparison'], l1['degradation']) == ('3', 'rivals', 'BI')
    assert float(by_key['EDSR 4×16', '4', 'UDL', 'Set14', 'psnr', 'ours']['value']) == 27.123456789
    assert by_key['EDSR 4×16', '4', 'GRAM', 'Set5', 'psnr', 'ours']['sd'] == ''
    assert by_key['EDSR', '4', 'UDL', 'Set5', 'psnr', 'printed']['value'] == '32.77'
    rows = csv.DictReader(paper_tables.paper_table('udl-6', fmt='csv').splitlines())
    assert [row['value'] for row in rows if row['note'].startswith('Misprint')] == ['27.74']
    rows = csv.DictReader(paper_tables.paper_table('le-6', fmt='csv').splitlines())
    assert [row['value'] for row in rows if row['network'] == 'SAN' and row['metric'] == 'runtime'] == [
        '4817.6', '1587.9', '880.0']


def test_latex(records, paper):
    records = [replace(record, comparison='my_50%&#runs') for record in records]
    text = paper_tables.render(paper_tables.make_table('udl-5', records, paper), 'latex')
    rows = latex_is_sound(text)
    assert ('EDSR 4$\\times$16 & $\\times$4 & L\\_UDL-Ours & 3 & '
            '\\textbf{30.20} $\\pm$ 0.00 / \\textbf{0.8625} $\\pm$ 0.0000 & '
            '-- & 27.12 $\\pm$ 0.00 / 0.7500 $\\pm$ 0.0000') in '\n'.join(rows)
    assert 'comparison my\\_50\\%\\&\\#runs;' in text
    assert '27.74\\textsuperscript{a}/' in paper_tables.paper_table('udl-6', fmt='latex')
    assert '\\underline{32.01}/-- &' in '\n'.join(latex_is_sound(
        paper_tables.render(paper_tables.make_table('udl-2', records, paper), 'latex')))


def test_special_characters_of_latex():
    assert score_table.latex_text(r'\a{b}$^_~%&#') == (
        r'\textbackslash{}a\{b\}\$\textasciicircum{}\_\textasciitilde{}\%\&\#')
    assert score_table.latex_text('ℓ_E ±σ → –') == r'$\ell$\_E $\pm$$\sigma$ $\rightarrow$ --'


@pytest.mark.parametrize('name', papers.load_paper()['tables'])
@pytest.mark.parametrize('given', [True, False], ids=['ours', 'nothing'])
def test_every_table(name, given, records):
    """With our runs and without any: every format can be made, is well-formed, and says what it lacks."""
    records = records if given else []
    paper = papers.load_paper()
    table = paper_tables.make_table(name, records, paper)
    markdown = paper_tables.render(table)
    assert len({len(re.findall(r'(?<!\\)\|', line)) for line in markdown.splitlines() if line.startswith('|')}) == 1
    assert 'not transcribed' not in markdown
    text = paper_tables.render(table, 'text', notes=False).splitlines()[2:]
    assert len({len(line) for line in text}) == 1
    assert len(text[0]) <= 150 or given
    assert paper['tables'][name]['layout'] in markdown
    latex_is_sound(paper_tables.render(table, 'latex'))
    rows = list(csv.DictReader(paper_tables.render(table, 'csv').splitlines()))
    assert any(row['kind'] == 'ours' for row in rows) == any(line.ours for line in table.lines)
    if not given:
        assert table.caption[0] == 'Ours: no run with figures for this table yet.'


# ---------------------------------------------------------------- the data file

COUNTS = {  # rows, figures without misprints and lost ones, costs, sum of the figures: counted in the papers' texts
    'udl-1': (3, 30, 0, '421.3538'), 'udl-2': (3, 30, 0, '439.5397'), 'udl-3': (5, 25, 0, '711.44'),
    'udl-4': (5, 25, 0, '713.3'), 'udl-5': (27, 270 - 6 - 2, 0, '4253.9982'), 'udl-6': (9, 90 - 1, 0, '1301.0031'),
    'tlw-1': (36 + 3, 390, 0, '5911.0864'), 'tlw-2': (3, 30, 0, '438.1097'), 'gv-1': (18, 144 - 1, 0, '1987.569'),
    'gv-2': (9, 18, 0, '288.104899'), 'le-1': (5, 10, 5, '172.7597'), 'le-2': (5, 10, 0, '172.8534'),
    'le-3': (21, 168 - 9, 45, '2576.1003'), 'le-4': (48, 96, 0, '3077.12'), 'le-5': (21 + 3, 24 - 1, 30, '710.31'),
    'le-6': (21, 210, 30, '3471.3229'), 'le-7': (12, 96, 0, '1683.88')}


def test_tables_rows_and_figures_are_complete():
    paper = papers.load_paper()
    rows = {name: [row for row in paper['rows'] if row.get('table') == name] for name in paper['tables']}
    figures = {name: [value for row in found for values in row['scores'].values() for value in values]
               for name, found in rows.items()}
    known = {name: [Decimal(score_table.printed_text(value, MetricFacts())) for value in found if value is not None]
             for name, found in figures.items()}
    assert {name: (len(rows[name]), len(known[name]), sum(len(row.get('costs', ())) for row in rows[name]),
                   f'{sum(known[name]).normalize():f}') for name in rows} == COUNTS
    assert len(paper['rows']) == 257 + 6
    assert len(paper['misprints']) == 5
    assert sum(len(values) for values in figures.values()) == 1646 + 5 + 3  # misprints; lost, beside one that is not
    for name, table in paper['tables'].items():
        cells_of = [(row['network'], row['method'], row['scale']) for row in rows[name]]
        assert len(set(cells_of)) == len(cells_of)
        assert {scale for *_, scale in cells_of} == {*table['scales']}
        assert {row['degradation'] for row in rows[name]} == {table['degradation']}
        for row in rows[name]:
            assert {*row['scores']} <= {*table['datasets']}
            assert papers.row_metrics(row) == table['metrics']
    # The same figure where two tables print the same run
    by_cell = {(row['table'], row['network'], row['method'], row['scale']): row['scores'] for row in paper['rows']
               if 'table' in row}
    assert by_cell['udl-2', 'EDSR-S', 'ESU → UDL', 4] == by_cell['udl-5', 'EDSR-S', 'UDL', 4]
    for number, method in (('3', 'uncertainty'), ('4', 'linear: s − min s')):
        assert {name: [psnr] for name, (psnr, _) in by_cell['udl-5', 'EDSR-S', 'UDL', 4].items()} == by_cell[
            f'udl-{number}', 'EDSR-S', method, 4]
    assert by_cell['le-1', 'EDSR-baseline', 'ℓ_E + σ', 2] == {
        'Set14': by_cell['le-3', 'EDSR-baseline', 'ℓ_E + σ', 2]['Set14']}


def test_printed_gains_are_the_differences_of_papers():
    """The UDL paper prints the gains over its baseline too, in tables 3 and 4: rows that were confused would show."""
    paper = papers.load_paper()
    gains = {'uncertainty': (0.29, 0.15, 0.10, 0.29, 0.46), 'error': (0.16, 0.08, 0.05, 0.15, 0.26),
             'HR gradient': (0.07, 0.05, 0.05, 0.17, 0.14), 'LR gradient': (0.08, 0.07, 0.05, 0.13, 0.19)}
    rows = {row['method']: row['scores'] for row in paper['rows'] if row.get('table') == 'udl-3'}
    for method, expected in gains.items():
        assert [rows[method][name][0] - rows['L1'][name][0] for name in rows['L1']] == pytest.approx(expected)


def test_every_printed_figure_has_its_source():
    paper = papers.load_paper()
    for row in paper['rows']:
        place = paper['tables'][row['table']] if 'table' in row else paper['sources'][row['source']]
        assert place['read_from']
    assert all(source['read_from'] for source in paper['sources'].values())


@pytest.mark.parametrize(('change', 'message'), [
    (lambda paper: paper['tables']['udl-2'].update(read_from=None), 'udl-2 has rows, but its `read_from` does not say'),
    (lambda paper: paper['rows'][-1].update(table='udl-9'), "KeyError 'udl-9'"),
    (lambda paper: paper['rows'][-1].update(source='EDSR'), 'the table udl-5 is of UDL'),
    (lambda paper: paper['rows'][-1].update(scores={'Set5': [32.]}), '1 values for the metrics psnr, ssim'),
    (lambda paper: paper['rows'][-1].update(scores={'Set5': [32., '0.9']}), "expected numbers or null, got .*'0.9'"),
    (lambda paper: paper['tables']['gv-1'].pop('layout'), "KeyError 'layout'"),
    (lambda paper: paper['tables']['gv-1'].update(scales=[]), 'gv-1: `methods` and `scales`'),
    (lambda paper: paper['tables']['gv-1'].update(metrics='psnr'), 'gv-1.metrics: expected a list'),
    (lambda paper: paper['tables']['gv-1']['methods'].update(L1='L1'), 'gv-1.methods.L1: expected a list'),
    (lambda paper: paper['misprints'][0].pop('printed'), "KeyError 'printed'"),
    (lambda paper: paper['misprints'][0].pop('method'), "KeyError 'method'"),
    (lambda paper: paper['suspects'][0].pop('note'), "KeyError 'note'"),
    (lambda paper: paper['tables']['le-3']['labels'].update(UDL='Ours'), 'le-3.labels.UDL: expected one of'),
    (lambda paper: paper['tables']['le-3'].update(cited=['EDSR']), "le-3.cited: 'EDSR' is no network and no method"),
    (lambda paper: paper['tables']['udl-6'].update(costs={'price': 'Price'}), "udl-6.costs: .*got 'price'"),
    (lambda paper: paper['rows'][-1].update(costs={'macs': '3G'}), 'SRCNN charbonnier ×8, costs.macs'),
])
def test_broken_data_is_refused(paper, tmp_path, change, message):
    change(paper)
    with pytest.raises(ScoresError, match=r'(?s)mine\.json does not have the form.*' + message):
        papers.load_paper(save(paper, tmp_path / 'mine.json'))


def test_benchmark_table_joins_metric_by_metric(paper):
    """Two papers print EDSR with L1; one of them in two tables, of which the first lacks what the second has."""
    def row(table, metrics, **sets):
        return {'source': 'UDL', 'table': table, 'network': 'EDSR', 'method': 'L1', 'degradation': 'BI', 'scale': 4,
                'metrics': metrics, 'scores': sets}

    paper['rows'] += [row('udl-5', ['psnr'], Set5=[32.5], Set14=[28.5]),
                      row('udl-2', ['psnr', 'ssim'], Set5=[30., 0.895], BSD100=[27., 0.7])]
    printed = papers.printed_rows(paper, 'EDSR')
    [mine] = [found for found in printed if (found['source'], found['method']) == ('UDL', 'L1')]
    assert mine['values'] == {'Set5': {'psnr': 32.5, 'ssim': 0.895}, 'Set14': {'psnr': 28.5},
                              'BSD100': {'psnr': 27., 'ssim': 0.7}}
    run = replace(make_record('L1', Set5=[(32., 0.88)], Set14=[(28., 0.77)]), name='EDSR_L1_x4')
    table = score_table.join([run], printed=[found for found in printed if found['source'] != 'Revisiting L1'])
    differences = {row.label: row.values for row in table.rows if row.kind == 'difference'}
    assert list(differences) == ['− EDSR L1 † EDSR', '− EDSR L1 † TLW', '− EDSR L1 † GV', '− EDSR L1 † UDL']
    ours = differences['− EDSR L1 † UDL']
    assert ours['Set5'] == {'psnr': pytest.approx(-0.5), 'ssim': pytest.approx(-0.015)}
    assert ours['Set14']['psnr'] == pytest.approx(-0.5)
    assert ours['Set14']['ssim'] is None
    assert differences['− EDSR L1 † EDSR']['Set5']['psnr'] == pytest.approx(32. - 32.46)
    assert differences['− EDSR L1 † TLW']['Set5'] == {'psnr': pytest.approx(32. - 30.6984), 'ssim': None}  # has LPIPS
    text = score_table.render(table, 'md')
    assert '| EDSR L1 † TLW | ×4 | 30.6984/– |' in text
    assert '| − EDSR L1 † UDL | ×4 | −0.50/−0.0150 | −0.50/– |' in text


@pytest.mark.parametrize(('run', 'expected'), [
    ('EDSR_L1_TLW_x4', 'L1 + TLW'), ('EDSR_L1_x4', 'L1'), ('EDSR_TLW_MSE_x4', 'MSE + TLW'), ('EDSR_MSE_x4', 'MSE'),
    ('EDSR_ExpectedL1_x4', None)])
def test_a_run_finds_its_printed_partner_by_its_name(run, expected):
    printed = [row for row in papers.printed_rows(papers.load_paper(), 'EDSR') if row['source'] == 'TLW']
    table = score_table.join([replace(make_record('x', Set5=[(32., 0.88)]), name=run)], printed=printed)
    assert [row.label for row in table.rows if row.kind == 'difference'] == [f'− EDSR {expected} †'] * bool(expected)


# ---------------------------------------------------------------- command line

@pytest.fixture
def main():
    return importlib.import_module('udl_basicsr.cli.tables').main


def test_command_line(records, paper, main, tmp_path, capsys):
    for record in records:
        record_files.write_record(record, tmp_path / 'rivals')
    folder, out = str(tmp_path / 'rivals'), tmp_path / 'new' / 'tables'
    assert main(['--list']) == 0
    listed = capsys.readouterr().out
    assert 'le-7    Revisiting L1, table 7' in listed
    assert '(12 printed rows, 96 figures)' in listed
    assert 'not transcribed' not in listed
    assert len(listed.splitlines()) == 17
    assert main(['--table', 'tlw-2', '--format', 'text']) == 0  # as printed, without any run of ours
    assert '32.2084/0.2053' in capsys.readouterr().out
    assert main([folder, '--table', 'udl-5', 'gv-2']) == 0
    printed = capsys.readouterr().out
    assert [printed.count('**UDL, table 5.'), printed.count('**GV, table 2.')] == [1, 1]
    assert '| EDSR 4×16 | ×4 | Original | 3 |' in printed
    assert main([folder, '--format', 'latex', '--out', str(out)]) == 0
    assert {file.name for file in out.iterdir()} == {f'{name}.tex' for name in paper['tables']}
    capsys.readouterr()
    own = str(save(paper, tmp_path / 'my.json'))
    assert main([folder, '--format', 'csv', '--table', 'udl-2', '--paper_file', own]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert {row['kind'] for row in rows} == {'ours', 'printed'}


def test_wrong_input_ends_with_2(records, main, tmp_path, capsys):
    for record in records[:2]:
        record_files.write_record(record, tmp_path / 'rivals')
    folder, out = str(tmp_path / 'rivals'), tmp_path / 'out'

    def error(*arguments):
        assert main([*arguments, '--out', str(out)]) == 2
        assert not out.exists() or out.is_file()
        return capsys.readouterr().err

    assert 'no records' in error(str(tmp_path / 'nowhere'))
    assert 'did you mean udl-5? There are: udl-1,' in error(folder, '--table', 'udl_5')
    assert '2 records of one run: rivals, EDSR 4×16, L1, 4, BI, 0' in error(folder, folder)
    assert 'does not have the form' in error(folder, '--paper_file', str(save([], tmp_path / 'mine.json')))
    (tmp_path / 'rivals' / 'L1_x4_seed0.json').write_text('{')
    assert 'L1_x4_seed0.json is no JSON' in error(folder)
    (tmp_path / 'rivals' / 'L1_x4_seed0.json').unlink()
    out.write_text('mine')
    assert 'is a file; --out takes a folder' in error(folder)
    assert out.read_text() == 'mine'
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2


def test_latex_speaks_to_the_reader_alone(records, paper):
    """A caption says what the figures are; where they were read stands below, and nobody is told to edit files."""
    for name in paper['tables']:
        for ours in (records, []):
            latex = paper_tables.render(paper_tables.make_table(name, ours, paper), 'latex')
            caption = next(line for line in latex.splitlines() if line.startswith('\\caption'))
            assert 'read from' not in caption
            assert not re.search(r'\b(Add|Compare|paper\\_scores|json)\b', latex)
            assert '−' not in latex
