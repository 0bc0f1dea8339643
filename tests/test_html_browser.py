"""The HTML report in a browser: its slider, its tables and curves, by mouse, fingers and keyboard."""
# ruff: noqa: F811 - fixtures that come from html_pages
import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from html_pages import COLOURS, HOSTILE, trial, write_comparison  # noqa: F401
from PIL import Image

from udl_basicsr.experiments.record_files import read_record, read_records, write_record
from udl_basicsr.experiments.statistics import paired_difference
from udl_basicsr.reports import html, method_styles

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)
in_browser = pytest.mark.skipif(CHROMIUM is None, reason='no Chromium is installed (Debian: apt install chromium)')


class Browser:
    """A page in a headless Chromium, driven by Playwright."""

    def __init__(self, browser):
        self.browser, self.context = browser, None

    def open(self, path, width=1280, height=900, phone=False, dark=False, still=False):
        if self.context:
            self.context.close()
        self.context = self.browser.new_context(
            viewport={'width': width, 'height': height}, is_mobile=phone, has_touch=phone,
            color_scheme='dark' if dark else 'light', reduced_motion='reduce' if still else 'no-preference')
        self.page, self.requested, self.complaints = self.context.new_page(), [], []
        self.protocol = self.context.new_cdp_session(self.page)
        self.page.on('request', lambda request: self.requested.append(request.url))
        self.page.on('pageerror', lambda error: self.complaints.append(str(error)))
        self.page.on('console', lambda message: self.complaints.append(message.text))
        self.page.goto(path.as_uri())
        self.settle()

    def js(self, code):
        return self.page.evaluate(code)

    def settle(self):
        self.js('new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))')

    def key(self, key):
        self.page.keyboard.press(key)

    def box(self, selector):
        """(left, top, width, height) on the screen, after scrolling there."""
        return self.js(f"""(() => {{ const node = document.querySelector({json.dumps(selector)});
            node.scrollIntoView({{block: 'center', behavior: 'instant'}}); const r = node.getBoundingClientRect();
            return [r.left, r.top, r.width, r.height]; }})()""")

    def move(self, x, y):
        self.page.mouse.move(x, y)

    def wheel(self, x, y):
        """One step upwards."""
        self.move(x, y)
        self.page.mouse.wheel(0, -100)
        self.settle()

    def drag(self, start, end):
        self.move(*start)
        self.page.mouse.down()
        self.page.mouse.move(*end, steps=2)
        self.page.mouse.up()

    def touch(self, kind, *points):
        """Fingers, which Playwright itself has one of."""
        self.protocol.send('Input.dispatchTouchEvent', {
            'type': kind, 'touchPoints': [{'x': a, 'y': b, 'id': i} for i, (a, b) in enumerate(points)]})

    def screen(self):
        """What is seen, (H, W, 3) RGB."""
        self.settle()
        return np.array(Image.open(io.BytesIO(self.page.screenshot())).convert('RGB')).astype(int)


@pytest.fixture(scope='module')
def browser():
    api = pytest.importorskip('playwright.sync_api', reason='pip install playwright')
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        except api.Error as error:
            pytest.skip(f'{CHROMIUM} does not start: {error}')
        yield Browser(browser)
        browser.close()


@pytest.fixture(scope='module')
def file(trial):
    path = trial['root'] / 'report.html'
    path.write_text(trial['page'], encoding='utf-8')
    return path


def choose(browser, side, key):
    browser.js(f"""(() => {{ const s = document.getElementById('{side}'); s.value = '{key}';
                   s.dispatchEvent(new Event('change')); }})()""")


def open_both(browser, file):
    """L1 on the left, UDL on the right."""
    browser.open(file)
    choose(browser, 'left', 'method:L1')
    choose(browser, 'right', 'method:UDL')


def close(pixel, colour, tolerance=3):
    return np.abs(np.subtract(pixel, colour)).max() <= tolerance


@in_browser
def test_opens_from_disk_without_a_request_or_a_complaint(browser, file):
    browser.open(file)
    assert browser.js('document.title').startswith('trial: losses compared')
    assert not browser.complaints
    assert all(url.startswith(('file:', 'data:')) for url in browser.requested)
    assert browser.js('[...document.images].every(i => !i.getAttribute("src") || i.complete)')
    # Every control has a name that is read out.
    nameless = browser.js("""[...document.querySelectorAll('button, select, input, [role=slider], [role=application]')]
        .filter(n => !(n.ariaLabel || n.textContent.trim() || n.labels?.[0]?.textContent.trim() ||
        n.getAttribute('aria-label'))).map(n => n.outerHTML)""")
    assert nameless == []


@in_browser
def test_the_line_divides_what_is_seen(browser, file):
    open_both(browser, file)
    x, y, w, h = browser.box('#stage')
    row, left, right = int(y + h * .75), int(x + w * .4), int(x + w * .6)
    screen = browser.screen()
    assert close(screen[row, left], COLOURS['L1'])
    assert close(screen[row, right], COLOURS['UDL'])
    browser.drag((x + w / 2, y + h / 2), (x + w * .7, y + h / 2))
    assert close(browser.screen()[row, right], COLOURS['L1'])
    assert browser.js("document.getElementById('divider').ariaValueNow") == '70'
    browser.js("document.getElementById('divider').focus()")
    for _ in range(20):
        browser.key('ArrowLeft')
    assert browser.js("document.getElementById('divider').getAttribute('aria-valuenow')") == '30'
    assert close(browser.screen()[row, left], COLOURS['UDL'])
    browser.key('s')
    assert browser.js("document.getElementById('left').value") == 'method:UDL'
    assert close(browser.screen()[row, left], COLOURS['L1'])
    assert 'evil' not in browser.js("document.getElementById('stage').textContent")


TRANSFORMS = """(() => ['.pane.a', '.pane.b'].map(p => { const box = document.querySelector(p).getBoundingClientRect();
    const m = new DOMMatrix(getComputedStyle(document.querySelector(p + ' img')).transform);
    return [m.a, (box.width / 2 - m.e) / m.a, (box.height / 2 - m.f) / m.a]; }))()"""


@in_browser
@pytest.mark.parametrize('mode', ['slider', 'sides'])
def test_both_sides_zoom_and_move_together(browser, file, mode):
    browser.open(file)
    browser.js(f"document.querySelector('[name=mode][value={mode}]').click()")
    before = browser.js(TRANSFORMS)
    browser.js("document.getElementById('stage').focus()")
    for key in ('+', '+', '+', 'ArrowRight', 'ArrowDown'):
        browser.key(key)
    a, b = browser.js(TRANSFORMS)
    assert a == pytest.approx(b)
    assert a[0] == pytest.approx(before[0][0] * 1.4**3)
    assert a[1] > 32 or mode == 'slider'  # to the right and down; a wide slider may have no room to the side
    assert a[2] > 32
    # The small pictures show the same point in their middles.
    middles = browser.js("""[...document.querySelectorAll('#strip .view')].map(v => {
        const m = new DOMMatrix(getComputedStyle(v.querySelector('img')).transform);
        return (v.clientHeight / 2 - m.f) / m.a; })""")
    assert len(set(np.round(middles, 3))) == 1
    browser.key('0')
    assert browser.js(TRANSFORMS) == before


@in_browser
def test_the_wheel_scrolls_the_page_until_the_picture_has_the_focus(browser, file):
    browser.open(file)
    x, y, w, h = browser.box('#stage')
    zoom = browser.js(TRANSFORMS)[0][0]
    browser.wheel(x + w / 2, y + h / 3)
    assert browser.js(TRANSFORMS)[0][0] == zoom
    assert 'Ctrl' in browser.js("document.getElementById('hint').textContent")
    browser.js("document.getElementById('stage').focus({preventScroll: true})")
    x, y, w, h = browser.box('#stage')
    browser.wheel(x + w / 2, y + h / 2)
    assert browser.js(TRANSFORMS)[0][0] > 1.2 * zoom


@in_browser
def test_two_fingers_zoom_on_a_phone(browser, file):
    browser.open(file, 390, 844, phone=True)
    x, y, w, h = browser.box('#stage')
    zoom = browser.js(TRANSFORMS)[0][0]

    middle, centre = y + h * .3, x + w / 2
    browser.touch('touchStart', (centre - 30, middle), (centre + 30, middle))
    for by in (40, 60, 90):
        browser.touch('touchMove', (centre - by, middle), (centre + by, middle))
    browser.touch('touchEnd')
    assert browser.js(TRANSFORMS)[0][0] > 1.5 * zoom
    assert not browser.complaints


@in_browser
def test_uncertainty_lies_over_its_side(browser, file):
    open_both(browser, file)
    browser.js("(() => { const o = document.getElementById('opacity'); o.value = 100;"
               "o.dispatchEvent(new Event('input')); })()")
    x, y, w, h = browser.box('#stage')
    screen = browser.screen()
    assert close(screen[int(y + h * .75), int(x + w * .4)], COLOURS['L1'])  # has no map
    top, low = (screen[int(y + h * at), int(x + w * .6)] for at in (.25, .96))
    assert low[0] > 200  # s rises downwards, from the violet to the yellow end of viridis
    assert low[1] > 200
    assert top[2] > top[0]
    assert browser.js("document.querySelectorAll('#colours span').length") > 2
    choose(browser, 'right', 'gt')
    assert browser.js("document.getElementById('opacity').disabled")


@in_browser
def test_difference_is_the_absolute_difference(browser, file):
    open_both(browser, file)
    browser.js("document.querySelector('[name=mode][value=difference]').click()")
    browser.js("(() => { const o = document.getElementById('gain'); o.value = 1;"
               "o.dispatchEvent(new Event('input')); })()")
    x, y, w, h = browser.box('#stage')
    pixel = browser.screen()[int(y + h * .75), int(x + w * .5)]
    assert close(pixel, np.abs(np.subtract(COLOURS['L1'], COLOURS['UDL'])))
    choose(browser, 'right', 'method:L1')
    assert close(browser.screen()[int(y + h * .75), int(x + w * .5)], (0, 0, 0), 0)


@in_browser
def test_small_pictures_and_thumbnails_choose(browser, file):
    browser.open(file)
    browser.js("[...document.querySelectorAll('#strip button')].find(b => b.textContent.includes('Bicubic')).click()")
    assert browser.js("document.getElementById('right').value") == 'bicubic'
    names = browser.js("[...document.querySelectorAll('#thumbs button')].map(b => b.title)")
    browser.js("document.querySelector('#thumbs button').focus()")
    browser.key('ArrowRight')
    assert browser.js('document.activeElement.title') == names[1]
    assert browser.js("document.querySelector('#thumbs [aria-checked=true]').title") == names[1]
    assert browser.js("document.getElementById('right').value") == 'bicubic'  # the choice is kept


@in_browser
def test_tables_sort_by_keyboard(browser, file):
    browser.open(file)
    browser.js("document.querySelector('table.sortable th:nth-child(2) button').focus()")

    def column():
        return browser.js("[...document.querySelectorAll('table.sortable tbody')][0].innerText")
    labels = ['ESU → UDL', 'L1', HOSTILE]
    browser.key('Enter')
    assert sorted(labels, key=column().index) == labels  # 28.8, 28.6, 27.5 on Set5
    assert browser.js("document.querySelector('table.sortable th:nth-child(2)').ariaSort") == 'descending'
    browser.key('Enter')
    assert sorted(labels, key=column().index) == labels[::-1]
    assert browser.js("document.querySelector('.of-metric[data-metric=ssim]').hidden")
    browser.js("document.querySelector('[data-tabs] input[value=ssim]').click()")
    assert not browser.js("document.querySelector('.of-metric[data-metric=ssim]').hidden")
    assert browser.js("document.querySelector('.of-metric[data-metric=psnr]').hidden")


@in_browser
def test_curves_read_out_and_hide_lines(browser, file):
    browser.open(file)
    lines = "document.querySelectorAll('.chart path.line').length"
    assert browser.js(lines) == 3
    browser.js("document.querySelector('.legend button').click()")
    assert browser.js(lines) == 2
    browser.js("document.querySelector('.legend button').click()")
    browser.js("document.querySelector('.chart svg').focus()")
    browser.key('End')
    read = browser.js("document.querySelector('.read').innerText")
    assert '300 iterations' in read
    assert '+0.250' in read  # minus L1 to begin with: differences of losses are small beside what all learn
    browser.js("document.querySelector('.check input').click()")
    x, y, w, h = browser.box('.chart svg')
    browser.move(x + w - 30, y + h / 2)
    assert '30.35' in browser.js("document.querySelector('.read').innerText")  # (30.3 + 30.4) / 2


@in_browser
@pytest.mark.parametrize('dark', [False, True])
def test_fits_a_phone_in_both_schemes(browser, file, dark):
    browser.open(file, 390, 844, phone=True, dark=dark, still=True)
    assert browser.js('document.documentElement.scrollWidth') <= 390
    outside = browser.js("""[...document.querySelectorAll('header *, #stage, .panel, .card, h2, h3, select, .bar > *')]
        .filter(n => n.getBoundingClientRect().width && !n.closest('#thumbs, #strip')
                && n.getBoundingClientRect().right > 391).map(n => n.tagName + n.className)""")
    assert outside == []
    background = browser.screen()[200, 2]
    assert (background.max() < 60) if dark else (background.min() > 200)
    assert browser.js('getComputedStyle(document.documentElement).scrollBehavior') == 'auto'
    assert not browser.complaints


@in_browser
def test_focus_is_seen(browser, file):
    browser.open(file)
    seen = []
    for _ in range(14):
        browser.key('Tab')
        seen.append(browser.js("""(() => { const n = document.activeElement, s = getComputedStyle(n),
            near = [n.nextElementSibling, n.firstElementChild].filter(Boolean).map(m => getComputedStyle(m));
            return [n.id || n.className || n.tagName, [s, ...near].some(c => c.outlineStyle === 'solid')]; })()"""))
    assert all(shown for _, shown in seen), seen
    assert len({name for name, _ in seen}) > 6


@in_browser
def test_results_come_before_pictures_and_no_name_is_cut(browser, file):
    """On a phone too: what was found, then what it looks like; names wrap where they are long."""
    for width, phone in ((1440, False), (390, True)):
        browser.open(file, width, 844, phone=phone)
        tops = browser.js("""['#main', '#pictures', '#curves', '#runs'].map(
            s => document.querySelector(s).getBoundingClientRect().top)""")
        assert tops == sorted(tops)
        cut = browser.js("""[...document.querySelectorAll('.panel .name, .name span, #strip b, .tag b, #thumbs span')]
            .filter(n => n.scrollWidth > n.clientWidth + 1 || getComputedStyle(n).textOverflow === 'ellipsis')
            .map(n => n.className + n.textContent)""")
        assert cut == []
        strip = browser.js("document.querySelector('#strip').getBoundingClientRect().height")
        assert not phone or strip < 250  # one row, however many methods there are


@in_browser
def test_a_colour_and_dash_for_each_method(browser, tmp_path):
    """29 methods, as the largest comparison has: no two lines of the curves look alike."""
    folder = write_comparison(tmp_path / 'trial')
    record = read_record(folder / 'UDL_x4_seed0.json')
    for number in range(26):
        write_record(replace(record, name=f'm{number}', method=f'm{number}', label=f'm{number}', order=number), folder)
    path = tmp_path / 'report.html'
    path.write_text(html.make_page([folder])[0], encoding='utf-8')
    browser.open(path)
    shown = '.of-metric:not([hidden]) '
    for selector in (f'{shown} .panel:first-child .name .swatch', '.chart path.line', '.legend .swatch'):
        looks = browser.js(f"""[...document.querySelectorAll('{selector}')].map(n => {{ const s = getComputedStyle(n);
            return s.stroke + s.strokeDasharray; }})""")
        assert len(looks) >= 28
        assert len(set(looks)) == len(looks)
    light = [f'#{r:02x}{g:02x}{b:02x}' for r, g, b in (map(int, re.findall(r'\d+', look)[:3]) for look in looks[1:9])]
    assert tuple(light) == method_styles.COLOURS  # those of the figures, in their order


@in_browser
def test_what_lies_beyond_the_axis_is_marked(browser, trial, file):
    browser.open(file)
    marks = browser.js("""[...document.querySelectorAll('.of-metric:not([hidden]) .panel li:not(.axis)')].map(li => [
        li.querySelector('title').textContent.split(',')[0],
        [...li.querySelectorAll('text.off')].map(t => t.textContent).join('')])""")
    d = paired_difference(read_records(trial['folder']), 'UDL', 'Set14', 'psnr', 4)
    assert d['seed_low'] < -1.2  # t of two seeds is wider than the axis, which the other methods' means decide
    assert d['seed_high'] > 1.2
    assert dict(marks) == {'ESU → UDL: +0.250': '', 'ESU → UDL: 0.000': '◀▶', f'{HOSTILE}: −1.000': '',
                           f'{HOSTILE}: +0.900': ''}
