"""The HTML report: what is in it, what must not be in it, and what it says of wrong input."""
# ruff: noqa: F811 - fixtures that come from html_pages
import base64
import hashlib
import json
import math
import re
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from html_pages import (  # noqa: F401
    HOSTILE,
    HOSTILE_IMAGE,
    PSNR,
    ROOT,
    Parsed,
    data_of,
    picture,
    script,
    trial,
    write_comparison,
    write_data,
    write_png,
)

from udl_basicsr.experiments.record_files import Curve, read_records
from udl_basicsr.experiments.statistics import paired_difference
from udl_basicsr.reports import html, html_groups, html_intervals
from udl_basicsr.utils.metric_facts import MetricFacts, facts_by_name
from udl_basicsr.utils.scores import SetScores, mean_scores

# ------------------------------------------------------------------------------------------------- nothing from outside

def test_the_page_needs_and_loads_nothing(trial):
    parsed = Parsed(trial['page'])
    for tag, attrs in parsed.elements:
        for name, value in attrs.items():
            assert not name.startswith('on'), f'{tag} {name}'
            if name in ('src', 'href', 'srcset', 'action', 'data', 'poster', 'background', 'xlink:href'):
                assert value.startswith(('data:', '#')), f'{tag} {name}={value[:60]}'
        assert tag not in ('iframe', 'object', 'embed', 'base', 'form')
    (_, style), = parsed.all('style')
    assert not re.search(r'url\(|@import|https?:', style)
    code = next(text for attrs, text in parsed.all('script') if 'type' not in attrs)
    # The one address in it names the language of vector graphics and is never fetched.
    assert re.findall(r'https?://[^\']*', code) == ['http://www.w3.org/2000/svg']
    assert not re.search(r'\b(fetch|XMLHttpRequest|WebSocket|EventSource|sendBeacon|eval|Function|Worker|innerHTML|'
                         r'outerHTML|insertAdjacentHTML)\b|document\.write|import\s*[({*]', code)


def test_the_policy_allows_the_pages_own_script_and_style_alone(trial):
    parsed = Parsed(trial['page'])
    policy = next(a['content'] for a, _ in parsed.all('meta') if a.get('http-equiv') == 'Content-Security-Policy')
    rules = dict(rule.strip().split(' ', 1) for rule in policy.split(';'))

    def sha(text):
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert rules['default-src'] == "'none'"
    assert rules['img-src'] == 'data:'
    assert rules['style-src'] == sha(parsed.all('style')[0][1])
    assert rules['script-src'] == sha(next(t for a, t in parsed.all('script') if 'type' not in a))
    assert not [a for _, a in parsed.elements if 'style' in a], 'the policy would drop it'


def test_names_from_files_stay_text(trial):
    parsed = Parsed(trial['page'])
    assert [a.get('type') for a, _ in parsed.all('script')] == ['application/json', None]
    assert not [a for a, _ in parsed.all('img') if a.get('src') == 'x']
    assert HOSTILE not in trial['page']
    assert any(HOSTILE in text for _, text in parsed.all('th'))
    data = data_of(trial['page'])
    assert data['curves'][0]['methods'] == ['L1', 'ESU → UDL', HOSTILE]
    assert f'Set5/{HOSTILE_IMAGE}' in [p['name'] for p in data['pictures']]


def test_json_cannot_end_its_element():
    given = {'b': '</script><!--\u2028&', 'a': 'ESU → UDL'}
    text = html.templates().from_string('{{ given|tojson }}').render(given=given)
    assert not set('<>&') & set(text)
    assert json.loads(text) == given
    assert list(json.loads(text)) == ['b', 'a']


def hostile(records):
    """Every name in the records that a user chooses, now with markup that runs where one escape is forgotten."""
    def named(name):
        return f'{name}{HOSTILE}"\'{{{{ 7 * 7 }}}}'

    def scores(values):
        return {named(metric): value for metric, value in values.items()}

    texts = ('name', 'label', 'network', 'network_title', 'degradation', 'weights', 'comparison', 'machine', 'date',
             'commit', 'protocol', 'method', 'reference')
    return [replace(
        r, **{key: named(getattr(r, key)) for key in texts},
        stages=[replace(stage, name=named(stage.name)) for stage in r.stages],
        versions={named(k): named(v) for k, v in r.versions.items()},
        metrics={named(m): MetricFacts(True, 2, named('dB')) for m in ('psnr', 'ssim')},
        datasets={named(d): SetScores({named(i): scores(x) for i, x in v.images.items()}, scores(v.mean))
                  for d, v in r.datasets.items()},
        curve=Curve({'iter': [1, 2], named('l_pix'): [.2, .1]},
                    {named('Set5'): {'iter': [1, 2], named('psnr'): [26., 27.]}})) for r in records]


def test_no_name_that_a_user_chooses_becomes_markup(tmp_path, monkeypatch):
    records = hostile(read_records(write_comparison(tmp_path / 'trial')))
    for chosen in (records, [r for r in records if r.seed == 0][:2]):  # a few runs have tables image by image
        monkeypatch.setattr(html_groups, 'read_comparisons', lambda folders, chosen=chosen: {'trial': chosen})
        page, _ = html.make_page([tmp_path / 'trial'])
        assert '<script>alert' not in page
        parsed = Parsed(page)
        assert [a.get('type') for a, _ in parsed.all('script')] == ['application/json', None]
        assert not [name for _, attrs in parsed.elements for name in attrs if name.startswith('on')]
        seen = ' '.join(text for _, text in parsed.all('html'))
        assert '{{ 7 * 7 }}' in seen  # a name is no template either
        for word in ('psnr', 'dB', 'Set5', 'L1', 'EDSR 4×16', '2 CPU cores', 'abc1234', 'esu', '2.4'):
            assert f'{word}{HOSTILE}'.lower() in seen.lower(), word


def test_templates_escape_everything():
    """Nothing switches the escaping off, but for the style and the script of the package itself."""
    folder = ROOT / 'udl_basicsr/reports/templates'
    for file in folder.glob('*.html'):
        assert not re.search(r'\|\s*(safe|escape|forceescape)|autoescape', file.read_text(encoding='utf-8')), file
    code = ''.join(file.read_text(encoding='utf-8') for file in (ROOT / 'udl_basicsr/reports').glob('*.py'))
    assert re.findall(r'Markup\((\w+)\)', code) == ['style', 'script']
    assert html.templates().from_string('{{ x }}').render(x='<b>') == '&lt;b&gt;'


# -------------------------------------------------------------------------------------------------------------- figures

def test_table_holds_the_means_and_marks_the_best(trial):
    tables = [t for t in trial['page'].split('<table class="sortable">')[1:] if '<b>PSNR</b>' in t]
    rows = re.findall(r'<tr[^>]*>(<th scope="row".*?)</tr>', tables[0])
    found = {}
    for row in rows:
        label = re.search(r'data-v="([^"]*)"', row)[1]
        cells = re.findall(r'<td data-v="([^"]*)"><(b|u|span)>([^<]*)</', row)
        found[label] = [(float(v), tag, text) for v, tag, text in cells]
    flat = {m: [statistics.fmean(v for seed in PSNR[d][m] for v in seed) for d in PSNR] for m in PSNR['Set5']}
    escaped = {'L1': 'L1', 'UDL': 'ESU → UDL', 'evil': '&lt;script&gt;alert(1)&lt;/script&gt;'}
    for method, values in flat.items():
        assert [v for v, *_ in found[escaped[method]]] == pytest.approx(values)
        assert [text for *_, text in found[escaped[method]]] == [f'{v:.2f}' for v in values]
    assert [tag for _, tag, _ in found['ESU → UDL']] == ['b', 'u']  # 30.83/2; 25.20 and 25.20 tie behind 25.90
    assert [tag for _, tag, _ in found['L1']] == ['u', 'u']
    assert [tag for _, tag, _ in found[escaped['evil']]] == ['span', 'b']


def test_differences_are_those_of_the_statistics(trial):
    records = read_records(trial['folder'])
    for dataset in PSNR:
        d = paired_difference(records, 'UDL', dataset, 'psnr', 4)
        text = f'{html_groups.signed(d["mean"], 3)}, 95 % interval [{html_groups.signed(d["low"], 3)}, ' \
               f'{html_groups.signed(d["high"], 3)}], ahead on {d["ahead"]} of {d["pairs"]} pairs of seed and image, ' \
               f'over seeds [{html_groups.signed(d["seed_low"], 3)}, {html_groups.signed(d["seed_high"], 3)}]'
        assert f'<title>ESU → UDL: {text}</title>' in trial['page']
    # by hand: Set5 +0.3 +0.2 (seed 0), +0.2 +0.3 (seed 1); every resample lies above zero
    assert 'ESU → UDL: +0.250, 95 % interval [+0.2' in trial['page']
    assert re.search(r'<dt>Undecided.*?<span>ESU → UDL</span>', trial['page'])  # ahead on Set5 only


def test_what_was_run_is_said(trial):
    facts = re.findall(r'<dt>([^<]*)</dt><dd>([^<]*)</dd>', trial['page'])
    assert ('Budget', '300 iterations') in facts
    assert ('Seeds', '2 (seeds 0, 1)') in facts
    assert ('Test data', 'Set5 (2), Set14 (1)') in facts
    assert ('Network', 'EDSR 4×16') in facts
    assert 'esu 100 → udl 200' in trial['page']


@pytest.mark.parametrize(('value', 'text'), [(0.1234, '+0.123'), (-0.1, '−0.100'), (-0.0001, '0.000'), (0., '0.000')])
def test_signed(value, text):
    assert html_groups.signed(value, 3) == text


@pytest.mark.parametrize(('metric', 'ends', 'verdict', 'of_weights'), [
    ('psnr', (.1, .2, .1, .3), 'ahead', 'ahead'), ('psnr', (-.2, -.1, -.3, -.1), 'behind', 'behind'),
    ('psnr', (-.1, .1, .1, .2), 'open', 'open'), ('psnr', (.1, .2, -.1, .3), 'open', 'ahead'),
    ('lpips', (.1, .2, .1, .3), 'behind', 'behind'), ('lpips', (-.2, -.1, -.3, -.1), 'ahead', 'ahead'),
    ('my_lpips', (.1, .2, .1, .3), 'open', 'open'),
    ('ssim', (0., .1, .1, .2), 'open', 'open'), ('psnr', (.1, .2, math.nan, math.nan), 'open', 'ahead')])
def test_verdict(metric, ends, verdict, of_weights):
    difference = dict(zip(('low', 'high', 'seed_low', 'seed_high'), ends, strict=True), facts=facts_by_name(metric))
    assert html_groups.verdict(difference) == verdict
    assert html_groups.verdict(difference, trained=False) == of_weights


def test_axis():
    assert html_intervals.axis_ticks(-.11, .23) == pytest.approx([-.1, 0., .1, .2])
    assert html_intervals.axis_ticks(0, 7) == [0, 2, 4, 6]
    low, high = html_intervals.axis_range([(-.1, .05), (0., .2)])
    assert (low, high) == pytest.approx((-.115, .215))
    low, high = html_intervals.axis_range([(-.1, .05), (0., .2), (-.1, .1), (-5., -4.)])  # one far off is cut
    assert low > -.4
    low, high = html_intervals.axis_range([(0., 0.)])
    assert low < 0 < high  # the same figures in both: nothing to divide by


def test_curves_are_means_and_paired_differences(trial):
    charts = {chart['title']: chart for chart in data_of(trial['page'])['curves'][0]['charts']}
    assert list(charts) == ['Set5: PSNR', 'Training: l_pix']
    lines = {line['m']: line for line in charts['Set5: PSNR']['lines']}
    methods = data_of(trial['page'])['curves'][0]['methods']
    udl, evil = lines[methods.index('ESU → UDL')], lines[methods.index(HOSTILE)]
    assert udl['iter'] == [100, 200, 300]
    assert udl['mean'] == pytest.approx([26, 27, (30.3 + 30.4) / 2])
    assert (udl['low'][2], udl['high'][2]) == pytest.approx((30.3, 30.4))
    assert udl['delta'] == pytest.approx([0, 0, (.3 + .2) / 2])
    assert evil['delta'][2] == pytest.approx(29 - 30)  # seed 0 alone, against seed 0 alone
    assert data_of(trial['page'])['curves'][0]['switches'][methods.index('ESU → UDL')] == [100]


# ------------------------------------------------------------------------------------------------------------ test runs

@pytest.fixture
def runs(tmp_path):
    """Two test runs, as test.py leaves them."""
    gt, lq = write_data(tmp_path / 'datasets')
    for method in ('L1', 'UDL'):
        folder = tmp_path / 'results' / method
        images = {'bird': {'psnr': PSNR['Set5'][method][0][0], 'ssim': .9}}
        for image in images:
            write_png(folder / 'visualization' / 'Set5' / f'{image}_{method}.png', picture(method, image))
        (folder / 'scores.json').write_text(json.dumps({
            'name': method, 'scale': 4, 'network': 'EDSR', 'weights': 'w', 'protocol': 'PSNR on Y', 'versions': {},
            'datasets': {'Set5': {'images': images, 'mean': mean_scores(images)}}}))
        (folder / 'test.yml').write_text(f'datasets:\n  test_1:\n    name: Set5\n    dataroot_gt: {gt["Set5"][0]}\n'
                                         f'    dataroot_lq: {lq["Set5"][0]}\n')
    return tmp_path / 'results'


def test_report_of_test_runs(runs, capsys):
    assert script().main([str(runs / 'L1'), str(runs / 'UDL')]) == 0
    assert re.search(r'Wrote .*report\.html, 0\.\d MB', capsys.readouterr().out)
    page = (runs / 'L1' / 'report.html').read_text(encoding='utf-8')
    layers = [layer['key'] for layer in data_of(page)['pictures'][0]['layers']]
    assert layers == ['lq', 'bicubic', 'method:L1', 'method:UDL', 'gt']  # the data are those of test.yml
    assert 'PSNR minus that of L1' in page
    assert '+0.300' in page
    assert 'Set5, image by image' in page


def test_folders_of_one_name_are_told_apart_and_counted_once(tmp_path):
    """results/<comparison>/records, where there is no docs/results: all folders of records have one name."""
    for comparison in ('one', 'two'):
        folder = write_comparison(tmp_path / comparison / 'records')
        for file in folder.glob('*.json'):
            file.write_text(file.read_text().replace('"comparison":"trial"', f'"comparison":"{comparison}"'))
    folders = [tmp_path / name / 'records' for name in ('one', 'two')]
    groups = html_groups.read_groups([*folders, folders[0] / '..' / 'records'])
    assert [group.title.partition(':')[0] for group in groups] == ['one', 'two']
    assert [len(group.of('L1')) for group in groups] == [2, 2]  # its seeds


def test_report_of_one_run(runs):
    page, _ = html.make_page([runs / 'UDL'])
    assert 'minus that' not in page
    assert 'Ahead of' not in page
    assert '30.30' in page


# ---------------------------------------------------------------------------------------------------------- wrong input

@pytest.mark.parametrize(('args', 'message'), [
    (['{root}/nowhere'], 'no such folder. Expected docs/results/<comparison>'),
    (['{root}/datasets'], 'no records'),
    (['{folder}', '--images', 'Set5/dog'], 'there is no Set5/dog. There are: '),
    (['{folder}', '--gt', 'Set6={root}'], '--gt: there is no data set Set6. There are: '),
    (['{folder}', '--gt', 'Set5={root}/nowhere'], 'nowhere: no such folder'),
    (['{folder}', '--gt', 'Set5={root}/datasets/Set14/GT'], 'has no bird.png'),
    (['{folder}', '--gt', 'Set5={root}/datasets/Set5/LQ'], 'but its GT should have 64×64'),
    (['{folder}', '--lq', 'Set5={root}/datasets/Set5/GT'], 'but its LQ should have 16×16'),
    (['{folder}', '--seed', '7'], 'there is no run of seed 7. There are: 0, 1'),
])
def test_wrong_input_is_refused_and_nothing_is_touched(trial, tmp_path, capsys, args, message):
    out = tmp_path / 'new' / 'report.html'
    kept = tmp_path / 'kept.html'
    kept.write_text('old')
    for target in (out, kept):
        status = script().main([a.format(**trial) for a in args] + ['--out', str(target)])
        assert status == 2
        assert message in capsys.readouterr().err
    assert not out.parent.exists()
    assert kept.read_text() == 'old'


@pytest.mark.parametrize('args', [['--gt', 'Set5'], ['--quality', '0'], ['--quality', 'x'], ['--window', '-1']])
def test_wrong_arguments(trial, args):
    with pytest.raises(SystemExit) as error:
        script().main([str(trial['folder']), *args])
    assert error.value.code == 2


def test_a_picture_that_no_run_kept(tmp_path, capsys):
    folder = write_comparison(tmp_path / 'trial')
    assert script().main([str(folder), '--images', 'Set5/bird']) == 2
    assert 'Set5/bird: no run kept this picture here. They are made by: udl compare' in capsys.readouterr().err


def test_pictures_below_another_folder_are_said_to_be_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_comparison(tmp_path / 'trial', Path('results'))  # relative, as udl compare names them
    assert 'no pictures' not in html.make_page([folder])[1][0]
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')
    note = html.make_page([folder])[1][0]
    assert f'They were looked for in {tmp_path}/elsewhere/results/' in note
    assert 'run this in the folder where the comparison ran. They are made by' in note


def test_pictures_of_other_sizes_are_refused(tmp_path, capsys):
    folder = write_comparison(tmp_path / 'trial', tmp_path / 'results')
    write_png(tmp_path / 'results' / 'UDL_x4_seed0' / 'visualization' / 'Set14' / 'comic_UDL_x4_seed0.png',
              picture('UDL')[:32])
    assert script().main([str(folder)]) == 2
    assert 'Set14/comic: ESU → UDL has a picture of 64×32 pixels' in capsys.readouterr().err


@pytest.mark.parametrize(('change', 'message'), [
    (lambda r: r['stages'].append(3), '`stages` should hold objects'),
    (lambda r: r['stages'].append({'name': 'udl'}), '`stages.iterations` should be of type int, got None'),
    (lambda r: r.update(run_time={'ms': 1, 'size': [8], 'device': 'CPU'}), '`run_time.size` should be a height'),
    (lambda r: r.update(peak_memory=3), '`peak_memory` should be of type dict'),
    (lambda r: r['curve'].update(loss=3), '`curve.loss` should be of type dict'),
    (lambda r: r['curve']['val']['Set5']['psnr'].pop(), 'a curve is malformed'),
    (lambda r: r.update(label=3), '`label` should be of type str'),
])
def test_malformed_records_are_refused(tmp_path, capsys, change, message):
    folder = write_comparison(tmp_path / 'trial')
    file = folder / 'UDL_x4_seed0.json'
    record = json.loads(file.read_text(encoding='utf-8'))
    change(record)
    file.write_text(json.dumps(record))
    assert script().main([str(folder)]) == 2
    assert message in capsys.readouterr().err


def test_a_failed_write_leaves_the_old_page(trial, tmp_path, monkeypatch, capsys):
    out = tmp_path / 'report.html'
    out.write_text('old')

    def full(*_):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr('os.replace', full)
    assert script().main([str(trial['folder']), '--out', str(out)]) == 1
    assert 'No space left on device' in capsys.readouterr().err
    assert out.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [out]
