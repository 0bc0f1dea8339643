"""The papers' tables, against values worked out by hand."""
import copy
import csv
import importlib.util
import json
import re
import statistics
from pathlib import Path

import pytest

from udl_basicsr.reports import benchmark, comparison, paper_tables
from udl_basicsr.reports.scores import ScoresError

ROOT = Path(__file__).parents[1]


def make_record(method, seed=0, scale=4, network='EDSR 4×16', name='rivals', iterations=(1500,), degradation='BI',
                **sets):
    """A record with the given (PSNR, SSIM) pairs, one per image, of each data set."""
    datasets = {}
    for dataset, pairs in sets.items():
        images = {f'img{i}': {'psnr': psnr, 'ssim': ssim} for i, (psnr, ssim) in enumerate(pairs)}
        datasets[dataset] = {'images': images, 'mean': {
            'psnr': statistics.fmean(pair[0] for pair in pairs), 'ssim': statistics.fmean(pair[1] for pair in pairs)}}
    return {'name': f'{method}_x{scale}_seed{seed}', 'scale': scale, 'network': 'EDSR', 'weights': 'net_g_latest.pth',
            'protocol': 'PSNR/SSIM on Y', 'datasets': datasets, 'versions': {'torch': '2.4'}, 'comparison': name,
            'method': method, 'label': method, 'reference': 'L1', 'seed': seed, 'degradation': degradation,
            'network_title': network, 'parameters': 43211,
            'stages': [{'name': 'x', 'iterations': count} for count in iterations], 'options': [{}],
            'initial_weights': f'weights{seed}', 'data_order': f'order{seed}', 'seconds': 9.5, 'machine': 'two cores',
            'date': '2026-11-21', 'commit': 'abc1234', 'curve': {}}


@pytest.fixture
def records():
    """L1 has 30.0, 30.2, 30.4 on Set5; UDL, with the same mean to two digits, 30.201; ESU one seed."""
    return [*(make_record('L1', seed, Set5=[(29 + 0.2 * seed, 0.85), (31 + 0.2 * seed, 0.87)]) for seed in range(3)),
            *(make_record('ESU_UDL', seed, iterations=(500, 1000), Set5=[(30.201, 0.8625)],
                          Set14=[(27.123456789, 0.75)]) for seed in range(3)),
            make_record('ESU', 0, iterations=(500,), Set5=[(29.5, 0.84)]),
            make_record('GRAM', 0, Set5=[(40., 0.9)])]  # in none of the tables tested


@pytest.fixture
def paper():
    """The packaged file with invented rows for table udl-2 (one network) and udl-5 (three)."""
    paper = copy.deepcopy(benchmark.load_paper())
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
    assert cells(markdown, 'EDSR 4×16', '×4', 'L1')[:2] == ['3', '**30.20** ± 0.20 / <u>0.8600</u> ± 0.0000']
    # 30.201 is no better than 30.2 as printed, 0.8625 is better than 0.86.
    assert cells(markdown, 'EDSR 4×16', '×4', 'UDL')[:4] == [
        '3', '**30.20** ± 0.00 / **0.8625** ± 0.0000', '–', '27.12 ± 0.00 / 0.7500 ± 0.0000']
    assert cells(markdown, 'EDSR 4×16', '×4', 'ESU')[:2] == ['1', '<u>29.50</u>/0.8400']
    assert '40.00' not in markdown


def test_caption_tells_ours_from_printed(records, paper):
    table = paper_tables.make_table('udl-5', records, paper)
    ours, protocol, printed = table.caption
    assert ours == ('Ours: EDSR 4×16, 43 211 parameters, comparison rivals; iterations 1500 (ESU: 500); '
                    'seeds 0, 1, 2 (ESU: 0). Means over the seeds ± their standard deviation.')
    assert protocol == 'Ours at ×4: PSNR/SSIM on Y.'
    assert 'read from an invented page' in printed
    assert 'EDSR 4×16 is no network of the paper' in printed
    records[0]['protocol'] = 'PSNR on RGB'
    assert 'cannot be compared' in paper_tables.make_table('udl-5', records, paper).caption[1]


def test_single_network_of_a_paper_stands_beside_ours(records, paper):
    markdown = paper_tables.render(paper_tables.make_table('udl-2', records, paper))
    header = cells(markdown, 'network', 'scale', 'loss')
    assert header == ['seeds', 'Set5, ours', 'Set5, printed', 'Set14, ours']
    assert cells(markdown, 'EDSR 4×16', '×4', 'L1')[2] == '<u>32.01</u>/–'
    assert cells(markdown, 'EDSR 4×16', '×4', 'ESU → UDL')[2] == '**32.22**/0.8951'
    assert cells(markdown, 'EDSR 4×16', '×4', 'EU → UDL') == ['–'] * 4
    assert 'EDSR-S |' not in markdown


def test_namesakes_share_rows_and_others_follow(records, paper):
    records += [make_record('ESU_UDL', 0, network='edsr', name='large', Set5=[(32.5, 0.89)]),
                make_record('L1', 0, network='EDSR', name='larger', Set5=[(32.4, 0.88)]),
                make_record('L1', 0, scale=2, network='EDSR-baseline', name='twice', Set5=[(37., 0.95)]),
                make_record('L1', 0, scale=3, network='EDSR', name='blurred', degradation='BD', Set5=[(33., 0.9)])]
    table = paper_tables.make_table('udl-5', records, paper)
    markdown = paper_tables.render(table)
    assert cells(markdown, 'edsr', '×4', 'UDL')[:3] == ['1', '32.50/0.8900', '32.77/0.9000']
    assert cells(markdown, 'EDSR', '×4', 'L1')[1] == '32.40/0.8800'
    assert cells(markdown, 'EDSR-baseline', '×2', 'L1')[1] == '37.00/0.9500'
    blocks = list(dict.fromkeys((line.scale, line.network) for line in table.lines))
    assert blocks == [(2, 'DPDNN'), (2, 'EDSR-baseline'), (2, 'EDSR'), (2, 'SRCNN'), (3, 'DPDNN'), (3, 'EDSR-S'),
                      (3, 'EDSR'), (3, 'SRCNN'), (4, 'DPDNN'), (4, 'EDSR-S'), (4, 'edsr'), (4, 'EDSR'), (4, 'SRCNN'),
                      (4, 'EDSR 4×16'), (8, 'DPDNN'), (8, 'EDSR-S'), (8, 'EDSR'), (8, 'SRCNN')]
    assert 'L1, ESU, UDL, charbonnier' in {line.method for line in table.lines}  # one row for what nobody has
    degraded = paper_tables.render(paper_tables.make_table('udl-6', records, paper))
    assert cells(degraded, 'EDSR', '×3', 'L1')[1] == '33.00/0.9000'
    assert 'rivals' not in degraded
    assert 'blurred' not in markdown
    assert cells(markdown, 'EDSR', '×3', 'L1')[:3] == ['–', '–', '34.65/0.9282<sup>a</sup>']
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


def test_figures_of_another_source_are_marked_and_not_ranked(records):
    paper = benchmark.load_paper()
    table = paper_tables.make_table('udl-5', records, paper)
    markdown = paper_tables.render(table)
    assert cells(markdown, 'EDSR', '×4', 'L1')[2] == '32.46/0.8968<sup>a</sup>'
    assert table.notes['a'].startswith('Not of this table, but printed in B. Lim')
    assert 'Printed: not transcribed.' in markdown
    assert 'table: udl-5' in markdown
    paper['tables']['udl-6']['also'] = ['EDSR']
    assert not paper_tables.make_table('udl-6', records, paper).notes  # those figures are of another degradation

    paper['rows'] += [{**row, 'source': 'UDL', 'table': 'udl-5'} for row in paper['rows'] if row['network'] == 'EDSR']
    assert not paper_tables.make_table('udl-5', records, paper).notes  # the table's own figures come first


def test_misprints(records, paper, tmp_path):
    assert any('SSIM 0.8594 for EDSR-S ×2 on Set5' in text
               for text in paper_tables.make_table('udl-5', records, paper).remarks)
    assert any('PSNR 27.74 for EDSR ×3 on Set14' in text
               for text in paper_tables.make_table('udl-6', records, paper).remarks)
    paper['misprints'].append({'table': 'udl-2', 'network': 'EDSR-S', 'method': 'L1', 'scale': 4, 'dataset': 'Set5',
                               'metric': 'ssim', 'printed': 0.9899, 'note': 'Too good.'})
    table = paper_tables.make_table('udl-2', records, paper)
    markdown = paper_tables.render(table)
    assert cells(markdown, 'EDSR 4×16', '×4', 'L1')[2] == '<u>32.01</u>/0.9899<sup>a</sup>'  # the best, but unmarked
    assert '<sup>a</sup> Misprint: SSIM 0.9899 for EDSR-S L1 ×4 on Set5. Too good.' in markdown
    benchmark.load_paper(save(paper, tmp_path / 'mine.json'))
    paper['misprints'][-1]['metric'] = 'psnr'
    with pytest.raises(ScoresError, match=r'udl-2: the row of a misprint holds 32\.01, expected null'):
        benchmark.load_paper(save(paper, tmp_path / 'mine.json'))


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
    assert by_key['EDSR 4×16', '4', 'ESU', 'Set5', 'psnr', 'ours']['sd'] == ''
    assert by_key['EDSR', '4', 'UDL', 'Set5', 'psnr', 'printed']['value'] == '32.77'
    assert 'B. Lim' in by_key['EDSR', '4', 'L1', 'Set5', 'psnr', 'printed']['note']


def test_latex(records, paper):
    records = [{**record, 'comparison': 'my_50%&#runs'} for record in records]
    text = paper_tables.render(paper_tables.make_table('udl-5', records, paper), 'latex')
    rows = latex_is_sound(text)
    assert ('EDSR 4$\\times$16 & $\\times$4 & UDL & 3 & '
            '\\textbf{30.20} $\\pm$ 0.00 / \\textbf{0.8625} $\\pm$ 0.0000 & '
            '-- & 27.12 $\\pm$ 0.00 / 0.7500 $\\pm$ 0.0000') in '\n'.join(rows)
    assert 'comparison my\\_50\\%\\&\\#runs;' in text
    assert '32.46/0.8968\\textsuperscript{a}' in text
    assert '\\underline{32.01}/-- &' in '\n'.join(latex_is_sound(
        paper_tables.render(paper_tables.make_table('udl-2', records, paper), 'latex')))


def test_special_characters_of_latex():
    assert benchmark.latex_text(r'\a{b}$^_~%&#') == (
        r'\textbackslash{}a\{b\}\$\textasciicircum{}\_\textasciitilde{}\%\&\#')
    assert benchmark.latex_text('ℓ_E ±σ → –') == r'$\ell$\_E $\pm$$\sigma$ $\rightarrow$ --'


@pytest.mark.parametrize('name', benchmark.load_paper()['tables'])
@pytest.mark.parametrize('given', [True, False], ids=['ours', 'nothing'])
def test_every_table(name, given, records):
    """With our runs and without any: every format can be made, is well-formed, and says what it lacks."""
    records = records if given else []
    paper = benchmark.load_paper()
    table = paper_tables.make_table(name, records, paper)
    markdown = paper_tables.render(table)
    assert len({len(re.findall(r'(?<!\\)\|', line)) for line in markdown.splitlines() if line.startswith('|')}) == 1
    transcribed = any(row.get('table') == name for row in paper['rows'])
    assert ('not transcribed' in markdown) != transcribed
    assert paper['tables'][name]['layout'] in markdown
    latex_is_sound(paper_tables.render(table, 'latex'))
    rows = list(csv.DictReader(paper_tables.render(table, 'csv').splitlines()))
    assert any(row['kind'] == 'ours' for row in rows) == any(line.ours for line in table.lines)
    if not given:
        assert table.caption[0] == 'Ours: no run with figures for this table yet.'


# ---------------------------------------------------------------- the data file

def test_every_printed_figure_has_its_source():
    paper = benchmark.load_paper()
    for row in paper['rows']:
        place = paper['tables'][row['table']] if 'table' in row else paper['sources'][row['source']]
        assert place['read_from']
    option_files = {'weights_error', 'weights_hr_gradient', 'weights_lr_gradient',
                    'scaling_exp', 'scaling_sqrt_exp', 'scaling_log'}
    known = {name for table in paper['tables'].values() for names in table['methods'].values() for name in names}
    assert option_files <= known
    for name in option_files:
        assert (ROOT / 'options' / 'ablations' / f'train_{name}.yml').is_file()


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
])
def test_broken_data_is_refused(paper, tmp_path, change, message):
    change(paper)
    with pytest.raises(ScoresError, match=r'(?s)mine\.json does not have the form.*' + message):
        benchmark.load_paper(save(paper, tmp_path / 'mine.json'))


def test_benchmark_table_with_rows_of_two_sources(paper):
    """The same network and loss in the rows of two papers: both stand there, told apart."""
    for table, psnr in (('udl-5', 32.5), ('udl-6', 30.)):  # of one paper, the first table that has it
        paper['rows'].append({**paper['rows'][-2], 'method': 'L1', 'table': table, 'network': 'EDSR', 'scale': 4,
                              'scores': {'Set5': [psnr, 0.89]}})
    printed = benchmark.printed_rows(paper, 'EDSR')
    run = {**make_record('L1', Set5=[(32., 0.88)]), 'name': 'EDSR_L1_x4'}
    table = benchmark.join([run], printed=printed)
    differences = {row.label: row.values['Set5']['psnr'] for row in table.rows if row.kind == 'difference'}
    assert differences == {'− EDSR L1 † EDSR': pytest.approx(32. - 32.46), '− EDSR L1 † UDL': pytest.approx(-0.5)}


# ---------------------------------------------------------------- command line

@pytest.fixture
def main():
    spec = importlib.util.spec_from_file_location('paper_tables_script', ROOT / 'scripts' / 'paper_tables.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_command_line(records, paper, main, tmp_path, capsys):
    for record in records:
        comparison.write_record(record, tmp_path / 'rivals')
    folder, out = str(tmp_path / 'rivals'), tmp_path / 'new' / 'tables'
    assert main(['--list']) == 0
    assert 'le-7    Revisiting L1, table 7' in capsys.readouterr().out
    assert main([folder, '--table', 'udl-5', 'gv-2']) == 0
    printed = capsys.readouterr().out
    assert [printed.count('**UDL, table 5.'), printed.count('**GV, table 2.')] == [1, 1]
    assert '| EDSR 4×16 | ×4 | L1 | 3 |' in printed
    assert main([folder, '--format', 'latex', '--out', str(out)]) == 0
    assert {file.name for file in out.iterdir()} == {f'{name}.tex' for name in paper['tables']}
    capsys.readouterr()
    own = str(save(paper, tmp_path / 'my.json'))
    assert main([folder, '--format', 'csv', '--table', 'udl-2', '--paper_file', own]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert {row['kind'] for row in rows} == {'ours', 'printed'}


def test_wrong_input_ends_with_2(records, main, tmp_path, capsys):
    for record in records[:2]:
        comparison.write_record(record, tmp_path / 'rivals')
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
