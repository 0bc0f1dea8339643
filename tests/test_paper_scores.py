"""The printed figures and the formats of the papers' tables."""
# ruff: noqa: F811 - fixtures that come from paper_table_cases
import csv
import re
import statistics
from dataclasses import replace
from decimal import Decimal

import pytest
from paper_table_cases import make_record, paper, records, save  # noqa: F401

from udl_basicsr.experiments import printed as papers
from udl_basicsr.reports import paper_tables, score_table
from udl_basicsr.utils.metric_facts import MetricFacts
from udl_basicsr.utils.scores import ScoresError


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


# -------------------------------------------------------------------------------------------------------------- formats

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


# -------------------------------------------------------------------------------------------------------- the data file

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
    everything = {row.label for row in score_table.join([run], printed=printed).rows}
    assert 'EDSR ℓ_E + σ †' in everything
    assert 'EDSR σ branch †' not in everything  # printed for other data sets alone
    assert '| − EDSR L1 † UDL | ×4 | −0.50/−0.0150 | −0.50/– |' in text


@pytest.mark.parametrize(('run', 'expected'), [
    ('EDSR_L1_TLW_x4', 'L1 + TLW'), ('EDSR_L1_x4', 'L1'), ('EDSR_TLW_MSE_x4', 'MSE + TLW'), ('EDSR_MSE_x4', 'MSE'),
    ('EDSR_ExpectedL1_x4', None)])
def test_a_run_finds_its_printed_partner_by_its_name(run, expected):
    printed = [row for row in papers.printed_rows(papers.load_paper(), 'EDSR') if row['source'] == 'TLW']
    table = score_table.join([replace(make_record('x', Set5=[(32., 0.88)]), name=run)], printed=printed)
    assert [row.label for row in table.rows if row.kind == 'difference'] == [f'− EDSR {expected} †'] * bool(expected)
