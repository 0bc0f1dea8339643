(() => {
'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const byId = id => document.getElementById(id);
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

/** Makes an element; children are nodes or text, which is never read as HTML. */
function make(tag, attributes = {}, ...children) {
  const svg = ['svg', 'g', 'path', 'line', 'circle', 'text'].includes(tag);
  const node = svg ? document.createElementNS('http://www.w3.org/2000/svg', tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

// ---------------------------------------------------------------- tables

for (const table of document.querySelectorAll('table.sortable')) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector('button').addEventListener('click', () => {
    const value = row => row.cells[column].dataset.v;
    const numeric = [...body.rows].every(row => value(row) === '' || !Number.isNaN(Number(value(row))));
    const before = head.getAttribute('aria-sort');
    const down = before === 'none' ? numeric : before === 'ascending';
    heads.forEach(other => other.setAttribute('aria-sort', other === head ? (down ? 'descending' : 'ascending') : 'none'));
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === '' || y === '') return (x === '') - (y === '');  // what is missing stays below
      const order = numeric ? x - y : x.localeCompare(y);
      return down ? -order : order;
    });
    body.append(...rows);
  }));
}

for (const tabs of document.querySelectorAll('[data-tabs]')) {
  const panels = [];
  for (let node = tabs.nextElementSibling; node && node.matches('.of-metric'); node = node.nextElementSibling) panels.push(node);
  const show = () => panels.forEach(panel => { panel.hidden = panel.dataset.metric !== tabs.querySelector('input:checked').value; });
  tabs.hidden = false;
  tabs.addEventListener('change', show);
  show();
}

// ---------------------------------------------------------------- curves

const swatch = style => make('svg', {class: `swatch ${style}`, 'aria-hidden': 'true'}, make('path', {d: 'M0 4H22'}));
const signed = (value, digits) => {
  const text = Math.abs(value).toFixed(digits);
  return (Number(text) ? value > 0 ? '+' : '−' : '') + text;
};

function linearTicks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find(k => power * k >= raw * .999), ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) ticks.push(k * step);
  return {ticks, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9))};
}

function logTicks(low, high) {
  const ticks = [];
  for (let p = Math.floor(Math.log10(low)); p <= Math.log10(high); p++)
    for (const k of [1, 2, 5]) if (k * 10 ** p >= low && k * 10 ** p <= high) ticks.push(k * 10 ** p);
  return ticks;
}

function curves(box) {
  const off = new Set(), {methods, charts, switches} = box, colour = index => box.styles[index];
  let chart = charts[0], near = null, at = null;
  const pick = make('select', {'aria-label': 'Curve', onchange: () => { chart = charts[pick.value]; at = null; update(); }},
    ...charts.map((c, i) => make('option', {value: i}, c.title)));
  const minus = make('input', {type: 'checkbox', checked: '', onchange: () => update()});
  const minusBox = make('label', {class: 'check'}, minus, box.reference === null ? '' : `minus ${methods[box.reference]}`);
  const svg = make('svg', {role: 'application', tabindex: 0}), read = make('div', {class: 'read', hidden: '', 'aria-live': 'polite'});
  const said = make('p', {class: 'note', 'aria-live': 'polite'});
  const legend = make('div', {class: 'legend', role: 'group', 'aria-label': 'Lines shown'});
  byId('curves').append(make('div', {class: 'chart-head'}, pick, minusBox),
    make('div', {class: 'chart'}, svg, read), legend, said);
  const buttons = methods.map((name, index) => make('button', {
    type: 'button', 'aria-pressed': 'true',
    onclick: () => { off.has(index) ? off.delete(index) : off.add(index); draw(); },
    onpointerenter: () => { near = index; draw(); }, onpointerleave: () => { near = null; draw(); },
    onfocus: event => { if (event.target.matches(':focus-visible')) { near = index; draw(); } }, onblur: () => { near = null; draw(); },
  }, swatch(colour(index)), name));
  const all = make('button', {type: 'button', onclick: () => {
    if (off.size) off.clear(); else chart.lines.forEach(line => off.add(line.m));
    draw();
  }}, 'All or none');
  legend.append(...buttons, all);
  let plot = null;  // what the hover needs of the last drawing

  function update() {
    minusBox.hidden = !chart.delta;
    svg.setAttribute('aria-label', `${chart.title} over the iterations. Left and right read the values.`);
    const seeds = chart.delta && minus.checked ? `paired by seed, ${methods[box.reference]} by straight lines between its validations; ` : '';
    said.textContent = `${chart.title}: mean over seeds, ${seeds}pale: from the lowest to the highest seed. ○: where a second stage begins.`;
    draw();
  }

  function draw() {
    const width = svg.clientWidth || 600, height = clamp(width * .46, 260, 420), left = 58, right = 26, top = 30, bottom = 40;
    const delta = chart.delta && minus.checked, [key, from, to] = delta ? ['delta', 'delta_low', 'delta_high'] : ['mean', 'low', 'high'];
    buttons.forEach((button, index) => {
      button.hidden = !chart.lines.some(line => line.m === index);
      button.setAttribute('aria-pressed', String(!off.has(index)));
    });
    const lines = chart.lines.filter(line => line[key] && !off.has(line.m))
      .map(line => delta ? {...line, iter: line.delta_iter} : line);
    svg.replaceChildren();
    svg.setAttribute('height', height);
    plot = null;
    read.hidden = true;
    if (!lines.length) {
      svg.append(make('text', {x: width / 2, y: height / 2, 'text-anchor': 'middle'}, 'No line is shown'));
      return;
    }
    const few = lines.length < 4;  // else the ranges are shown one at a time, and need not all be in view
    const values = lines.flatMap(line => few ? [...line[from], ...line[to]] : line[key]), steps = lines.flatMap(line => line.iter);
    const log = chart.log && values.every(v => v > 0);
    let low = Math.min(...values), high = Math.max(...values);
    if (high - low < 1e-9) { low -= .01; high += .01; }
    if (log) { low /= 1.05; high *= 1.05; } else { const pad = .04 * (high - low); low -= pad; high += pad; }
    const first = Math.min(...steps), last = Math.max(...steps), scale = log ? Math.log : v => v;
    const x = i => left + (i - first) / Math.max(last - first, 1) * (width - left - right);
    const y = v => top + clamp((scale(high) - scale(v)) / (scale(high) - scale(low)), 0, 1) * (height - top - bottom);
    const linear = linearTicks(low, high, 7);
    const ticks = log ? logTicks(low, high) : linear.ticks;
    for (const tick of ticks) {
      const label = log ? String(Number(tick.toPrecision(2))) : delta ? (Math.abs(tick) < 1e-12 ? '0' : signed(tick, linear.digits)) : tick.toFixed(linear.digits);
      svg.append(make('line', {class: delta && Math.abs(tick) < 1e-12 ? 'zero' : 'grid', x1: left, x2: width - right, y1: y(tick), y2: y(tick)}),
        make('text', {x: left - 8, y: y(tick) + 4, 'text-anchor': 'end'}, label));
    }
    for (const tick of linearTicks(first, Math.max(last, first + 1), width < 500 ? 3 : 6).ticks)
      svg.append(make('text', {x: x(tick), y: height - bottom + 19, 'text-anchor': 'middle'}, tick.toLocaleString('en').replaceAll(',', ' ')));
    svg.append(make('text', {x: (left + width - right) / 2, y: height - 4, 'text-anchor': 'middle'}, 'iterations'),
      make('text', {x: 2, y: 14}, delta ? `${chart.axis}, minus ${methods[box.reference]}` : chart.axis));
    for (const line of [...lines].sort((a, b) => (a.m === near) - (b.m === near))) {
      const dim = near !== null && near !== line.m ? ' dim' : '', point = (v, i) => `${x(line.iter[i]).toFixed(1)} ${y(v).toFixed(1)}`;
      const path = line[key].map(point).join('L'), group = make('g', {class: `${colour(line.m)}${dim}`});
      if (near === line.m || few)
        group.append(make('path', {class: 'range', d: `M${line[to].map(point).join('L')}L${line[from].map(point).reverse().join('L')}Z`}));
      group.append(make('path', {class: `line ${colour(line.m)}`, d: `M${path}`}));
      for (const end of switches[line.m]) {
        const i = line.iter.findIndex(step => step >= end);
        if (i >= 0) group.append(make('circle', {class: 'switch', cx: x(line.iter[i]), cy: y(line[key][i]), r: 3.5}));
      }
      svg.append(group);
    }
    const cursor = make('g');
    svg.append(cursor);
    plot = {lines, key, x, y, left, width, height, top, bottom, cursor, delta, steps: [...new Set(steps)].sort((a, b) => a - b)};
    if (at !== null) readOut();
  }

  function readOut() {
    if (!plot) return;
    const {lines, key, x, y, cursor, delta} = plot;
    cursor.replaceChildren();
    read.hidden = at === null;
    if (at === null) return;
    const here = lines.map(line => ({line, i: line.iter.indexOf(at)})).filter(h => h.i >= 0)
      .map(({line, i}) => ({m: line.m, v: line[key][i]})).sort((a, b) => b.v - a.v);
    cursor.append(make('line', {class: 'cursor', x1: x(at), x2: x(at), y1: plot.top, y2: plot.height - plot.bottom}),
      ...here.map(h => make('circle', {class: `dot ${colour(h.m)}`, cx: x(at), cy: y(h.v), r: 3.5})));
    const digits = chart.digits + (delta ? 1 : 0);
    read.replaceChildren(make('p', {}, make('b', {}, `${at.toLocaleString('en').replaceAll(',', ' ')} iterations`)),
      ...here.map(h => make('p', {}, swatch(colour(h.m)), make('em', {}, methods[h.m]),
        make('span', {}, delta ? signed(h.v, digits) : h.v.toFixed(digits)))));
    const right = x(at) > plot.width / 2;
    read.style.left = right ? 'auto' : `${x(at) + 24}px`;
    read.style.right = right ? `${plot.width - x(at) + 24}px` : 'auto';
    read.style.top = `${Math.max(14, (plot.height - read.offsetHeight) / 2)}px`;
  }

  for (const kind of ['pointermove', 'pointerdown']) svg.addEventListener(kind, event => {
    if (!plot) return;
    const px = event.clientX - svg.getBoundingClientRect().left;
    at = plot.steps.reduce((a, b) => Math.abs(plot.x(b) - px) < Math.abs(plot.x(a) - px) ? b : a);
    readOut();
  });
  const leave = event => { if (event.pointerType !== 'touch') { at = null; readOut(); } };
  svg.addEventListener('pointerleave', leave);
  svg.addEventListener('blur', leave);
  svg.addEventListener('keydown', event => {
    if (!plot || !['ArrowLeft', 'ArrowRight', 'Home', 'End', 'Escape'].includes(event.key)) return;
    event.preventDefault();
    const last = plot.steps.length - 1, now = at === null ? last + 1 : plot.steps.indexOf(at);
    const next = {ArrowLeft: now - 1, ArrowRight: at === null ? 0 : now + 1, Home: 0, End: last}[event.key];
    at = event.key === 'Escape' ? null : plot.steps[clamp(next, 0, last)];
    readOut();
  });
  new ResizeObserver(() => { if (svg.clientWidth !== plot?.width) draw(); }).observe(svg);
  update();
}

for (const box of data.curves) {
  if (data.curves.length > 1) byId('curves').append(make('h3', {}, box.title));
  curves(box);
}

// ---------------------------------------------------------------- pictures

function viewer() {
  const {pictures} = data, stage = byId('stage'), divider = byId('divider');
  const selects = {a: byId('left'), b: byId('right')};
  const panes = ['a', 'b'].map(side => {
    const root = stage.querySelector(`.pane.${side}`), [img, map] = root.querySelectorAll('img');
    return {side, root, sheet: root.querySelector('.sheet'), img, map, tag: stage.querySelector(`.tag.${side}`)};
  });
  // The view: zoom 1 shows all; (x, y) is the point of the picture, from 0 to 1, that lies in the middle.
  let picture = pictures[0], mode = 'slider', zoom = 1, x = .5, y = .5, split = .5, strip = [];
  const chosen = {a: null, b: null};
  const most = 40;

  byId('viewer').hidden = false;
  pictures.forEach((p, index) => byId('thumbs').append(make('button', {
    type: 'button', role: 'radio', title: p.name, onclick: () => open(index),
    onkeydown: event => {
      const by = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
      if (!by) return;
      event.preventDefault();
      open((index + by + pictures.length) % pictures.length).focus();
    },
  }, make('img', {src: (p.layers.find(l => l.key === 'gt') || p.layers[0]).src, alt: ''}), make('span', {}, p.name),
  ...(new Set(pictures.map(q => q.group)).size > 1 ? [make('span', {}, p.group)] : []))));

  const layer = side => picture.layers.find(l => l.key === chosen[side]) || picture.layers[0];
  const text = l => l.scores.map(score => score.replaceAll(' ', '\u00a0')).join(' · ') || (l.key === 'lq' ? `1/${picture.scale} of the size` : '');

  function open(index) {
    picture = pictures[index];
    [...byId('thumbs').children].forEach((button, i) => {
      button.setAttribute('aria-checked', String(i === index));
      button.tabIndex = i === index ? 0 : -1;
    });
    const has = key => key !== null && picture.layers.some(l => l.key === key);
    const best = picture.layers.filter(l => l.key.startsWith('method:') && l.key !== picture.reference)
      .sort((a, b) => (b.rank ?? -Infinity) - (a.rank ?? -Infinity))[0];
    if (!has(chosen.a)) chosen.a = has(picture.reference) ? picture.reference : has('bicubic') ? 'bicubic' : picture.layers[0].key;
    if (!has(chosen.b)) chosen.b = (best || picture.layers[picture.layers.length - 1]).key;
    for (const side of ['a', 'b']) {
      selects[side].replaceChildren(...picture.layers.map(l => make('option', {value: l.key}, l.label)));
      selects[side].value = chosen[side];
    }
    byId('part').textContent = picture.part ? `Shown: ${picture.part}; the scores are those of the whole picture.` : '';
    strip = picture.layers.map(l => {
      const img = make('img', {src: l.src, alt: '', draggable: 'false'}), view = make('span', {class: 'view'}, img, ...(l.map ? [make('span', {class: 'badge', title: 'has an uncertainty'}, 'θ')] : []));
      const button = make('button', {type: 'button', onclick: event => choose(event.shiftKey ? 'a' : 'b', l.key)},
        view, make('span', {class: 'what'}, make('b', {}, l.label), make('small', {}, (l.scores[0] ?? text(l)) || '\u00a0')));
      return {l, img, view, button};
    });
    byId('strip').replaceChildren(...strip.map(s => s.button));
    fit();
    load();
    return byId('thumbs').children[index];
  }

  function choose(side, key) {
    chosen[side] = key;
    selects[side].value = key;
    load();
  }

  function load() {
    for (const pane of panes) {
      const l = layer(pane.side);
      pane.img.src = l.src;
      pane.img.alt = `${pane.side === 'a' ? 'Left' : 'Right'}: ${l.label}`;
      pane.map.hidden = !l.map;
      if (l.map) pane.map.src = l.map; else pane.map.removeAttribute('src');
      pane.tag.replaceChildren(make('b', {}, l.label), text(l));
    }
    if (mode === 'difference') panes[0].tag.replaceChildren(make('b', {}, `| ${layer('a').label} − ${layer('b').label} |`), 'black where they are the same');
    for (const s of strip) {
      s.button.className = s.l.key === chosen.a ? 'left' : s.l.key === chosen.b ? 'right' : '';
      const where = [s.l.key === chosen.a && 'on the left', s.l.key === chosen.b && 'on the right'].filter(Boolean).join(' and ');
      s.button.setAttribute('aria-label', `${s.l.label}, ${text(s.l)}${where ? `, ${where}` : ''}`);
    }
    overlay();
    render();
  }

  function overlay() {
    const any = panes.some(pane => layer(pane.side).map), shown = mode !== 'difference' && any ? Number(byId('opacity').value) : 0;
    byId('map-box').hidden = mode === 'difference' || !picture.layers.some(l => l.map);
    byId('opacity').disabled = !any;
    byId('map-box').querySelector('output').textContent = any ? `${byId('opacity').value} %` : 'none here, see θ';
    byId('colours').hidden = !shown;
    byId('gain-box').hidden = mode !== 'difference';
    byId('gain-box').querySelector('output').textContent = `×${byId('gain').value}`;
    for (const pane of panes) pane.map.style.opacity = shown / 100;
    byId('panes').style.filter = mode === 'difference' ? `brightness(${byId('gain').value})` : '';
  }

  /** CSS pixels for each pixel of the picture in a box, so that zoom 1 shows all of it. */
  const unit = box => Math.min(box.clientWidth / picture.width, box.clientHeight / picture.height) * zoom;

  function place(box, images) {
    const u = unit(box), w = picture.width * u, h = picture.height * u;
    const left = w <= box.clientWidth ? (box.clientWidth - w) / 2 : clamp(box.clientWidth / 2 - x * w, box.clientWidth - w, 0);
    const top = h <= box.clientHeight ? (box.clientHeight - h) / 2 : clamp(box.clientHeight / 2 - y * h, box.clientHeight - h, 0);
    for (const img of images) {
      img.style.width = `${picture.width}px`;
      img.style.height = `${picture.height}px`;
      img.style.transform = `translate(${left}px, ${top}px) scale(${u})`;
      img.classList.toggle('pixels', u * devicePixelRatio >= 2);
    }
  }

  /** The low resolution shows its pixels, unless they are too small to be drawn evenly. */
  const blocks = (box, img) => img.classList.toggle('pixels', unit(box) * picture.scale * devicePixelRatio >= 3);

  function render() {
    stage.dataset.mode = mode;
    stage.classList.toggle('zoomed', zoom > 1.001);
    for (const pane of panes) {
      place(pane.root, [pane.img, pane.map]);
      if (layer(pane.side).key === 'lq') blocks(pane.root, pane.img);
    }
    panes[1].sheet.style.clipPath = mode === 'slider' ? `inset(0 0 0 ${split * 100}%)` : '';
    panes[0].sheet.style.clipPath = mode === 'slider' ? `inset(0 ${100 - split * 100}% 0 0)` : '';
    divider.style.left = `${split * 100}%`;
    divider.setAttribute('aria-valuenow', Math.round(split * 100));
    divider.setAttribute('aria-valuetext', `${layer('a').label} to ${Math.round(split * 100)} %, then ${layer('b').label}`);
    for (const s of strip) {
      place(s.view, [s.img]);
      if (s.l.key === 'lq') blocks(s.view, s.img);
    }
    byId('level').textContent = `${(unit(panes[0].root) * 100).toFixed(0)} %`;
  }

  /** Keeps the middle where the picture still fills the box. */
  function settle() {
    const box = panes[0].root, u = unit(box), w = box.clientWidth / (picture.width * u) / 2, h = box.clientHeight / (picture.height * u) / 2;
    x = w >= .5 ? .5 : clamp(x, w, 1 - w);
    y = h >= .5 ? .5 : clamp(y, h, 1 - h);
    render();
  }

  function fit() { zoom = 1; x = y = .5; render(); }

  function move(dx, dy) {  // in CSS pixels
    const u = unit(panes[0].root);
    x -= dx / (picture.width * u);
    y -= dy / (picture.height * u);
    settle();
  }

  /** The pane under a point of the page, and the point's distance from that pane's middle. */
  function under(event) {
    const pane = mode === 'sides' && document.elementsFromPoint(event.clientX, event.clientY).includes(panes[1].root) ? panes[1] : panes[0];
    const r = pane.root.getBoundingClientRect();
    return [event.clientX - r.left - r.width / 2, event.clientY - r.top - r.height / 2];
  }

  function zoomBy(factor, [dx, dy] = [0, 0]) {
    const before = unit(panes[0].root);
    zoom = clamp(zoom * factor, 1, most);
    const after = unit(panes[0].root);
    x += dx * (1 / before - 1 / after) / picture.width;
    y += dy * (1 / before - 1 / after) / picture.height;
    settle();
  }

  function splitAt(event) {
    const r = stage.getBoundingClientRect();
    split = clamp((event.clientX - r.left) / r.width, 0, 1);
    render();
  }

  let timer = 0;
  function hint(message) {
    byId('hint').textContent = message;
    byId('hint').classList.add('on');
    clearTimeout(timer);
    timer = setTimeout(() => byId('hint').classList.remove('on'), 1600);
  }

  // One finger or the mouse drags the line, or the picture once it is enlarged; two fingers zoom and move.
  const fingers = new Map();
  let dragging = '', spread = 0;
  stage.addEventListener('pointerdown', event => {
    if (event.button) return;
    stage.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, event);
    const onLine = divider.contains(event.target);
    dragging = mode === 'slider' && (onLine || zoom <= 1.001) ? 'line' : 'picture';
    if (fingers.size === 2) { dragging = 'pinch'; spread = 0; }
    else if (dragging === 'line' && !onLine && event.pointerType === 'mouse') splitAt(event);
    (onLine ? divider : stage).focus({preventScroll: true, focusVisible: false});
  });
  stage.addEventListener('pointermove', event => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    fingers.set(event.pointerId, event);
    if (dragging === 'line') splitAt(event);
    else if (dragging === 'picture') move(event.clientX - before.clientX, event.clientY - before.clientY);
    else if (dragging === 'pinch' && fingers.size === 2) {
      const [one, two] = [...fingers.values()], wide = Math.hypot(one.clientX - two.clientX, one.clientY - two.clientY);
      move((event.clientX - before.clientX) / 2, (event.clientY - before.clientY) / 2);
      if (spread) zoomBy(wide / spread, under({clientX: (one.clientX + two.clientX) / 2, clientY: (one.clientY + two.clientY) / 2}));
      spread = wide;
    }
  });
  for (const kind of ['pointerup', 'pointercancel']) stage.addEventListener(kind, event => {
    fingers.delete(event.pointerId);
    dragging = fingers.size === 1 ? 'picture' : fingers.size ? dragging : '';
  });
  stage.addEventListener('dblclick', event => { if (!divider.contains(event.target)) zoomBy(event.shiftKey ? .5 : 2, under(event)); });
  stage.addEventListener('wheel', event => {
    if (!event.ctrlKey && !event.metaKey && !stage.contains(document.activeElement)) {
      hint('Click the picture, or hold Ctrl, to zoom with the wheel');
      return;
    }
    event.preventDefault();
    zoomBy(Math.exp(-clamp(event.deltaY * (event.deltaMode ? 30 : 1), -120, 120) * (event.ctrlKey ? .008 : .003)), under(event));
  }, {passive: false});

  function swap() {
    [chosen.a, chosen.b] = [chosen.b, chosen.a];
    selects.a.value = chosen.a;
    selects.b.value = chosen.b;
    load();
  }

  stage.addEventListener('keydown', event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const onLine = event.target === divider, step = event.shiftKey ? 160 : 40;
    const keys = {
      '+': () => zoomBy(1.4), '=': () => zoomBy(1.4), '-': () => zoomBy(1 / 1.4), '_': () => zoomBy(1 / 1.4), '0': fit, s: swap, S: swap,
      ArrowLeft: () => onLine ? line(-1) : move(step, 0), ArrowRight: () => onLine ? line(1) : move(-step, 0),
      ArrowUp: () => move(0, step), ArrowDown: () => move(0, -step),
      ...(onLine ? {Home: () => line(-Infinity), End: () => line(Infinity), PageDown: () => line(-5), PageUp: () => line(5)} : {}),
    };
    const line = by => { split = clamp(split + by * (event.shiftKey ? .1 : .02), 0, 1); render(); };
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  byId('in').addEventListener('click', () => zoomBy(1.4));
  byId('out').addEventListener('click', () => zoomBy(1 / 1.4));
  byId('fit').addEventListener('click', fit);
  byId('swap').addEventListener('click', swap);
  for (const side of ['a', 'b']) selects[side].addEventListener('change', () => choose(side, selects[side].value));
  byId('modes').addEventListener('change', event => { mode = event.target.value; stage.dataset.mode = mode; load(); settle(); });
  byId('opacity').addEventListener('input', overlay);
  byId('gain').addEventListener('input', overlay);
  for (const [place, label] of data.ticks) {
    const tick = make('span', {}, label);
    tick.style.left = `${place * 100}%`;
    byId('colours').firstElementChild.append(tick);
  }
  new ResizeObserver(() => render()).observe(stage);
  open(0);
}

if (data.pictures.length) viewer();
})();
