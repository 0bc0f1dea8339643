"""The papers' tables, against values worked out by hand."""
# ruff: noqa: F811 - fixtures that come from paper_table_cases
import csv
import importlib.util
import re
from dataclasses import replace

import pytest
from conftest import status_of
from paper_table_cases import make_record, paper, records, save  # noqa: F401

from udl_basicsr.experiments import complexity, record_files
from udl_basicsr.experiments import printed as papers
from udl_basicsr.reports import paper_tables
from udl_basicsr.utils.scores import ScoresError


def cells(markdown, *start):
    """The cells after the given first ones."""
    lines = [line.strip('|') for line in markdown.splitlines() if line.startswith('|')]
    rows = [[cell.strip() for cell in line.split('|')] for line in lines]
    [found] = [row[len(start):] for row in rows if row[:len(start)] == list(start)]
    return found


# -------------------------------------------------------------------------------------------------------------- figures

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


@pytest.mark.parametrize(('name', 'network'), [
    ('le-3', 'CARN'), ('le-4', 'CARN'), ('le-5', 'RCAN'), ('le-6', 'RCAN')])
def test_eq_8_alone_is_not_what_revisiting_l1_calls_ours(name, network):
    paper = papers.load_paper()
    own = {'network': network, 'degradation': paper['tables'][name]['degradation'], 'RealSR': [(30., 0.9)],
           'Set5': [(30., 0.9)]}
    records = [make_record(method, **own) for method in ('L1', 'ExpectedL1')]
    with_branch = [*records, make_record('sigma', **own)]
    found = [{line.method for line in paper_tables.make_table(name, given, paper).lines if line.ours}
             for given in (records, with_branch)]
    assert not any('σ' in method for method in found[0])
    assert found[1] == {*found[0], 'ℓ_E + σ'}


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
    assert 0 < complexity.run_time(block, 2, (12, 20), repeats=2) < 1000


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


# --------------------------------------------------------------------------------------------------------- command line

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
        assert status_of(main, [*arguments, '--out', str(out)]) == 2
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
    assert f'--out: {out}: is a file, expected a folder' in error(folder)
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
