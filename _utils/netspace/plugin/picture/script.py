"""Script of the picture's page: search, filters, details, zoom. It never makes markup from a text, and loads nothing.

All that it shows comes from the JSON in the page: ``n`` nodes, ``g`` boxes, ``l`` lines. Each of these is a list.
:mod:`netspace.plugin.picture.page` defines the order of its elements.
"""

TEXT = r"""'use strict';
(() => {
const $ = id => document.getElementById(id);
const D = JSON.parse($('data').textContent);
const N = D.n.map((a, i) => ({i, kind: 'n', name: a[0], label: a[1], box: a[2], team: a[3], mark: a[4], change: a[5],
  facts: a[6], el: $('n' + i), out: [], into: []}));
const G = D.g.map((a, i) => ({i, kind: 'b', name: a[0], level: a[1], mark: a[2], change: a[3], facts: a[4],
  el: $('b' + i), nodes: [], box: i}));
const L = D.l.map((a, i) => ({i, kind: 'l', from: N[a[0]], to: N[a[1]], change: a[2], mark: a[3], rules: a[4],
  el: $('l' + i), w: $('w' + i)}));
for (const n of N) G[n.box].nodes.push(n);
for (const l of L) { l.from.out.push(l); l.to.into.push(l); l.name = l.from.name + ' \u2192 ' + l.to.name; }
for (const x of [...N, ...G]) {
  x.text = [x.name, x.team, x.kind === 'n' ? G[x.box].name : '', ...x.facts.map(f => f[1])].join('\n').toLowerCase();
}
const map = $('map'), more = $('more'), hits = $('hits');
const make = (tag, text, ...kids) => {
  const e = document.createElement(tag);
  if (text) e.textContent = text;
  e.append(...kids);
  return e;
};
const NS = 'http://www.w3.org/2000/svg';
const dot = mark => {
  const s = document.createElementNS(NS, 'svg'), u = document.createElementNS(NS, 'use');
  s.setAttribute('class', 'dot ' + mark);
  s.setAttribute('viewBox', '0 0 14 14');
  s.setAttribute('role', 'img');
  s.setAttribute('aria-label', D.words[mark]);
  u.setAttribute('href', '#s-' + mark);
  s.append(u);
  return s;
};

/* Zoom and pan: the part of the picture that is seen. */
const whole = {x: 0, y: 0, w: D.size[0], h: D.size[1]};
let v = {...whole};
const scale = () => Math.min(map.clientWidth / v.w, map.clientHeight / v.h);
const show = () => {
  map.setAttribute('viewBox', [v.x, v.y, v.w, v.h].map(a => Math.round(a * 10) / 10).join(' '));
  map.classList.toggle('isfar', scale() < .5);
};
const zoom = (by, at) => {
  const s = Math.min(Math.max(scale() * by, .02), 6) / scale();
  const c = at || {x: v.x + v.w / 2, y: v.y + v.h / 2};
  v = {x: c.x - (c.x - v.x) / s, y: c.y - (c.y - v.y) / s, w: v.w / s, h: v.h / s};
  show();
};
const fit = r => {
  const k = Math.max(r.w / Math.max(map.clientWidth, 1), r.h / Math.max(map.clientHeight, 1), r === whole ? 0 : 1);
  const w = k * map.clientWidth, h = k * map.clientHeight;
  v = {x: r.x + r.w / 2 - w / 2, y: r.y + r.h / 2 - h / 2, w, h};
  show();
};
const point = e => {
  const r = map.getBoundingClientRect(), s = scale();
  return {x: v.x + v.w / 2 + (e.clientX - r.left - r.width / 2) / s,
    y: v.y + v.h / 2 + (e.clientY - r.top - r.height / 2) / s};
};
const bounds = list => {
  const r = list.map(x => x.el.getBBox()).map((b, i) => {
    const t = list[i].el.transform.baseVal.consolidate();
    return t ? {x: b.x + t.matrix.e, y: b.y + t.matrix.f, width: b.width, height: b.height} : b;
  });
  const x = Math.min(...r.map(b => b.x)), y = Math.min(...r.map(b => b.y));
  return {x: x - 30, y: y - 30, w: Math.max(...r.map(b => b.x + b.width)) - x + 60,
    h: Math.max(...r.map(b => b.y + b.height)) - y + 60};
};
map.addEventListener('wheel', e => {
  e.preventDefault();
  zoom(Math.exp(-e.deltaY / 400), point(e));
}, {passive: false});
const held = new Map();
let moved = 0;
map.addEventListener('pointerdown', e => { held.set(e.pointerId, e); if (held.size === 1) moved = 0; });
addEventListener('pointermove', e => {
  const was = held.get(e.pointerId);
  if (!was) return;
  const other = [...held.values()].find(o => o.pointerId !== e.pointerId);
  if (other) {
    const far = o => Math.hypot(o.clientX - other.clientX, o.clientY - other.clientY);
    zoom(far(e) / Math.max(far(was), 1), point(other));
  } else {
    v.x -= (e.clientX - was.clientX) / scale();
    v.y -= (e.clientY - was.clientY) / scale();
    show();
  }
  moved += Math.abs(e.clientX - was.clientX) + Math.abs(e.clientY - was.clientY);
  held.set(e.pointerId, e);
});
for (const end of ['pointerup', 'pointercancel']) addEventListener(end, e => held.delete(e.pointerId));

/* Selection, and its details. */
let chosen = null;
const button = (x, text, small) => {
  const b = make('button', '', ...(x.mark ? [dot(x.mark)] : []), make('span', text));
  b.type = 'button';
  if (small) b.append(make('small', small));
  b.addEventListener('click', () => choose(x, true));
  return b;
};
const facts = list => make('dl', '', ...list.flatMap(f => [make('dt', f[0]), make('dd', f[1])]));
const linked = (title, lines, end) => lines.length ? [make('h3', title), make('ul', '', ...lines.map(l => {
  const row = make('li', '', button(l, l[end].name, l.rules.map(r => r[0]).join(', ')));
  row.firstChild.dataset.line = l.i;
  return row;
}))] : [];
const details = x => {
  more.replaceChildren();
  if (!x) { more.append(make('p', D.hint)); more.lastChild.className = 'note'; return; }
  more.append(make('h2', x.name || 'outside'));
  if (x.change) { const p = make('p', D.changes[x.change]); p.className = 'state ' + x.change; more.append(p); }
  if (x.mark) {
    const p = make('p', '', dot(x.mark), make('span', D.words[x.mark]));
    p.className = 'state ' + x.mark;
    more.append(p);
  }
  if (x.kind === 'l') {
    for (const r of x.rules) more.append(make('h3', r[0]), facts(r[1]));
    more.append(make('h3', 'Ends'), make('ul', '', make('li', '', button(x.from, x.from.name)),
      make('li', '', button(x.to, x.to.name))));
    return;
  }
  more.append(facts(x.facts));
  if (x.kind === 'b') {
    more.append(make('h3', 'Environments'), make('ul', '', ...x.nodes.map(n => make('li', '', button(n, n.label)))));
  } else {
    if (G[x.box].name) more.append(make('h3', 'Host'), make('ul', '', make('li', '', button(G[x.box], G[x.box].name))));
    more.append(...linked('May reach', x.out, 'to'), ...linked('May be reached by', x.into, 'from'));
    if (!x.out.length && !x.into.length) more.append(make('h3', 'No rule leads to or from it'));
  }
};
const choose = (x, look) => {
  for (const e of document.querySelectorAll('.on,.sel')) e.classList.remove('on', 'sel');
  chosen = x;
  map.classList.toggle('picked', !!x);
  if (x) {
    const of = n => [...n.out, ...n.into];
    const lines = x.kind === 'l' ? [x] : x.kind === 'n' ? of(x) : x.nodes.flatMap(of);
    if (x.kind === 'b') for (const n of x.nodes) n.el.classList.add('on');
    for (const l of lines) for (const e of [l.el, l.w, l.from.el, l.to.el]) if (e) e.classList.add('on');
    x.el.classList.add('sel');
    if (look) {
      const near = x.kind === 'l' ? [x.from, x.to] : [x];
      const r = bounds(near);
      const out = r.x < v.x || r.y < v.y || r.x + r.w > v.x + v.w || r.y + r.h > v.y + v.h;
      if (out || scale() < .5) fit(r);
    }
  }
  details(x);
  more.scrollTop = 0;
  if (look && x) more.focus({preventScroll: innerWidth > 960});
  for (const b of hits.querySelectorAll('button')) {
    b.setAttribute('aria-current', String(!!x && b.dataset.of === x.kind + x.i));
  }
  const hash = x ? '#' + x.kind + '=' + encodeURIComponent(x.name) : ' ';
  try { history.replaceState(null, '', hash); } catch (e) { /* some browsers forbid it for a file */ }
};
map.addEventListener('click', e => {
  if (moved > 6) return;
  const g = e.target.closest('.n,.b,.l');
  if (!g || !g.id) { choose(null); return; }
  choose({n: N, b: G, l: L}[g.id[0]][Number(g.id.slice(1))]);
});
map.addEventListener('dblclick', e => {
  const g = e.target.closest('.b,.n');
  if (g && g.id) fit(bounds(g.id[0] === 'b' ? [G[Number(g.id.slice(1))]] : [N[Number(g.id.slice(1))]]));
});

/* Search and filters. */
const value = id => $(id) ? $(id).value : '';
const fits = x => {
  const host = G[x.box], mark = value('fm'), plan = value('fc');
  if (mark && (mark === '!' ? !['bad', 'unknown', 'odd'].includes(x.mark) : x.mark !== mark)) return false;
  if (value('fl') && (host.level || '?') !== value('fl')) return false;
  if (value('ft') && (x.kind === 'b' || x.team !== value('ft'))) return false;
  if (plan && !x.change && !(x.out || []).concat(x.into || []).some(l => l.change)) return false;
  return words.every(w => x.text.includes(w));
};
let words = [];
const MOST = 400;
const seek = () => {
  words = value('q').toLowerCase().split(/\s+/).filter(Boolean);
  const any = words.length || value('fm') || value('fl') || value('ft') || value('fc');
  const rows = [];
  let found = 0, hosts = 0;
  for (const g of D.order.map(i => G[i])) {
    const own = fits(g) && g.name, inside = g.nodes.filter(fits);
    g.el.classList.toggle('dim', !own && !inside.length);
    const kept = new Set(inside);
    for (const n of g.nodes) n.el.classList.toggle('dim', !kept.has(n));
    found += inside.length;
    if (g.name && (own || inside.length)) {
      hosts += 1;
      rows.push([g, 'host', [g.level, inside.length + ' of ' + g.nodes.length].filter(Boolean).join(' \u00b7 ')]);
    }
    for (const n of inside) rows.push([n, g.name ? 'in' : '', '']);
  }
  const dim = x => x.el.classList.contains('dim');
  for (const l of L) l.el.classList.toggle('dim', dim(l.from) && dim(l.to));
  hits.replaceChildren(...rows.slice(0, MOST).map(([x, kind, small]) => {
    const li = make('li', '', button(x, x.label || x.name, small));
    li.className = kind;
    li.firstChild.dataset.of = x.kind + x.i;
    return li;
  }));
  if (rows.length > MOST) {
    hits.append(make('li', 'and ' + (rows.length - MOST) + ' more: search for them'));
    hits.lastChild.className = 'note';
  }
  $('count').textContent = any ? found + ' of ' + N.length + ' match, on ' + hosts + ' hosts' :
    G.filter(g => g.name).length + ' hosts, ' + N.filter(n => G[n.box].name).length + ' environments, ' +
    L.length + ' links';
};
for (const id of ['q', 'fm', 'fl', 'ft', 'fc']) if ($(id)) $(id).addEventListener('input', seek);
$('q').addEventListener('keydown', e => {
  const first = hits.querySelector(words.length ? 'li.in button' : 'button') || hits.querySelector('button');
  if (e.key === 'Enter' && first) first.click();
  if (e.key === 'ArrowDown' && first) { e.preventDefault(); hits.querySelector('button').focus(); }
});
hits.addEventListener('keydown', e => {
  const step = {ArrowDown: 1, ArrowUp: -1}[e.key];
  if (!step) return;
  e.preventDefault();
  const all = [...hits.querySelectorAll('button')], to = all[all.indexOf(document.activeElement) + step];
  (to || $('q')).focus();
});
$('lines').addEventListener('change', () => {
  map.classList.remove('every', 'many', 'none');
  map.classList.add(value('lines'));
});
$('scheme').addEventListener('change', () => { document.documentElement.dataset.scheme = value('scheme'); });
$('in').addEventListener('click', () => zoom(1.4));
$('out').addEventListener('click', () => zoom(1 / 1.4));
$('fit').addEventListener('click', () => fit(whole));
addEventListener('keydown', e => {
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  if (e.key === 'Escape') { if (chosen) choose(null); else { $('q').value = ''; seek(); } return; }
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(e.target.tagName)) return;
  const pan = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[e.key];
  if (pan && document.activeElement === map) {
    v.x += pan[0] * v.w / 8; v.y += pan[1] * v.h / 8;
    show();
  } else if (e.key === '/') { $('q').focus(); $('q').select(); }
  else if (e.key === '+' || e.key === '=') zoom(1.4);
  else if (e.key === '-') zoom(1 / 1.4);
  else if (e.key === '0') fit(whole);
  else return;
  e.preventDefault();
});
addEventListener('resize', show);

seek();
fit(whole);
const at = decodeURIComponent(location.hash.slice(1)), of = {n: N, b: G, l: L}[at[0]];
if (of && at[1] === '=') {
  const x = of.find(y => y.name === at.slice(2));
  if (x) choose(x, true);
}
})();
"""
