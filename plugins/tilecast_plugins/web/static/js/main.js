// The page put together: which run is shown, how it looks, and who is told of what. The one module that knows all parts.

import { $, copyText, download, h, icon, throttle, toast } from './dom.js';
import { Api } from './api.js';
import { contrastPanel, floatRanges, histogramsOf } from './contrast.js';
import { Events } from './events.js';
import { extentOf, runOf } from './run.js';
import { Frames } from './frames.js';
import { fromHash, toHash } from './link.js';
import { formatLength, pixelOfStage, stageOfPixel, tileAt, union } from './geometry.js';
import { installKeys, showKeys } from './keys.js';
import { layersPanel } from './layers.js';
import { Looks } from './looks.js';
import { Marks, pixelsOf } from './marks.js';
import { marksPanel } from './marks-panel.js';
import { Mosaic } from './mosaic.js';
import { drawOverlay, drawUnderlay } from './overlay.js';
import { planesPanel } from './planes.js';
import { Profile } from './profile.js';
import { renderReport } from './report.js';
import { Runs } from './runs.js';
import { Status } from './status.js';
import { Tiles } from './tiles.js';
import { Tools } from './tools.js';
import { viewAsPng } from './png.js';

const THEMES = ['dark', 'night', 'light'];
const OLD_MS = 5000; // without news for so long, what is seen may be old

const api = new Api();
const state = {
  run: null, t: 0, z: 0, follow: false, stage: null, hover: null, draft: null, live: 'connecting', asked: 0,
  newest: false, // the newest run is shown, and will be when there is a newer one
  known: new Set(), // runs that have been looked at for that
};
const tiles = new Tiles(api, () => mosaic.redraw());
const looks = new Looks();
const marks = new Marks();
const status = new Status(api);
const mosaic = new Mosaic($('viewer'), tiles, {
  onDrawn: () => {
    overlays();
    contrast.refresh();
    keepLink();
  },
  onPainted: (t_recv_ns) => status.painted(t_recv_ns),
});
const frames = new Frames(api, () => {
  layers.count('holes', frames.nLacking);
  overlays();
  facts();
});
const contrast = contrastPanel(looks, {
  getHistograms: () => {
    const ranges = looks.dtype === '<f4' ? floatRanges(tiles, mosaic.drawn) : new Map();
    return mosaic.drawn.length ? histogramsOf(tiles, mosaic.drawn, mosaic.viewRect(), looks.dtype, ranges) : new Map();
  },
});
const layers = layersPanel({ onChange: () => overlays() });
const planes = planesPanel({
  onChange: ({ t, z }) => {
    Object.assign(state, { t, z });
    showPlane();
  },
});
const profile = new Profile(api, {
  run: () => state.run,
  view: () => state,
  looks: () => looks,
  onChange: () => overlays(),
});
const runs = new Runs(api, {
  current: () => state.run?.run,
  onOpen: (run) => {
    if (run !== state.run?.run) open(run);
  },
  onChange: () => refreshInfo(),
});
marksPanel(marks, { run: () => state.run, goTo });
const tools = new Tools(mosaic, {
  point: (at) => marked(marks.add('point', [at])),
  rect: (from, to) => marked(marks.add('rect', [from, to])),
  draft: (rect) => {
    state.draft = rect;
    overlays();
  },
  line: (from, to) => profile.set(from, to),
  getLine: () => profile.line,
  hover: (at) => {
    state.hover = at;
    showCursor();
  },
  touched: (dragged) => {
    state.whole = false;
    // Whoever moves the map wants to look at something else than the stage.
    if (dragged && state.follow) follow(false);
  },
});
const events = new Events(api, {
  commit: onCommit,
  resync: onResync,
  frame: onFrame,
  stage: onStage,
  run: onRunNotice,
  report: () => refreshInfo(),
  gap: ({ detail }) => {
    frames.refreshHoles();
    const n = detail?.missing?.reduce?.((sum, [a, b]) => sum + b - a + 1, 0);
    toast(n ? `${n} frames are missing` : 'Frames are missing');
  },
  heartbeat: (beat) => {
    state.beat = { ...beat, at: performance.now() };
    showLive();
    if (state.newest && state.run.state !== 'open') lookForNewer(beat.runs ?? []);
  },
  state: (live) => {
    state.live = live;
    showLive();
  },
});

// A run --------------------------------------------------------------------------------------------------------------

async function open(id, wanted = {}) {
  const asked = ++state.asked;
  let run;
  try {
    run = runOf(await api.json(`runs/${id}`));
  } catch (error) {
    if (asked === state.asked) toast(`The run cannot be shown: ${error.message}`, 8);
    return;
  }
  if (asked !== state.asked) return;
  const placed = frames.open(run); // forgets those of the run before at once
  placed.catch(() => {}); // who follows below knows what to do
  const clamp = (n, end) => Math.max(0, Math.min(end - 1, n ?? 0));
  Object.assign(state, { run, t: clamp(wanted.t, run.nT), z: clamp(wanted.z, run.nZ), stage: null, draft: null });
  state.fitted = false;
  profile.clear();
  tiles.open(run);
  for (const [[t, c, z], rect] of run.bboxes) tiles.setBounds(t, c, z, rect);
  looks.open(run.channels, run.dtype);
  tiles.setView({ t: state.t, z: state.z, channels: looks.visible });
  if (wanted.looks) {
    looks.auto = Boolean(wanted.auto);
    looks.fromText(wanted.looks);
  }
  marks.open(run);
  await mosaic.open(run);
  if (state.run !== run) return; // by now another one is here; one that is only asked for may never come
  mosaic.setLooks(looks.asMap());
  if (wanted.scale) {
    mosaic.setScale(wanted.scale, wanted.row, wanted.col, true);
    mosaic.panTo(wanted.row, wanted.col, true);
    state.fitted = true;
    state.whole = false;
  } else fit(true);
  follow(Boolean(wanted.follow));
  planes.update(run.nT, run.nZ, state);
  head();
  facts();
  runs.load().then(([newest]) => {
    state.newest = newest?.run === run.run;
  }, () => {});
  state.known = new Set([run.run]);
  events.follow(() => ({ run: state.run.run, epoch: state.run.epoch, rev: state.run.rev }));
  placed.then(() => {
    if (state.run !== run) return;
    facts();
    overlays();
  }, () => {});
}

/** The run that is shown is over: when another one begins, a page that shows the newest goes on with it. */
async function lookForNewer(loaded) {
  if (loaded.every(([id]) => state.known.has(id))) return;
  for (const [id] of loaded) state.known.add(id);
  const [newest] = (await runs.load()).filter(({ error }) => !error);
  if (newest?.state === 'open' && newest.run !== state.run.run) await open(newest.run);
}

/** What is to be seen as a whole: what is planned, or else what there is. */
const wholeRect = () => union([state.run?.planned, extentOf(state.run)]);

function fit(immediately = false) {
  const rect = state.run && wholeRect();
  if (!rect) return;
  mosaic.fit(rect, { immediately });
  state.fitted = true;
  state.whole = true;
}

/** The window or the mosaic grew: whoever looked at all of it wants to go on doing so. */
const stayWhole = throttle(200, () => {
  if (state.whole) fit(true);
});

function showPlane() {
  tiles.setView({ t: state.t, z: state.z, channels: looks.visible });
  mosaic.redraw();
  profile.refresh();
}

/** Metadata anew: the state, the name, the report; and levels and boxes, if they changed. */
const refreshInfo = throttle(500, async () => {
  const { run } = state;
  if (!run) return;
  let fresh;
  try {
    fresh = runOf(await api.json(`runs/${run.run}`));
  } catch (error) {
    if (error.status === 404 && state.run === run) gone();
    return;
  }
  if (state.run !== run) return;
  const { epoch, rev } = run;
  Object.assign(run, fresh, { epoch, rev: Math.max(rev, fresh.epoch === epoch ? fresh.rev : 0) });
  if (fresh.epoch !== epoch) {
    run.epoch = fresh.epoch;
    run.rev = fresh.rev;
    tiles.setEpoch(fresh.epoch, fresh.rev);
  }
  for (const [[t, c, z], rect] of run.bboxes) tiles.setBounds(t, c, z, rect);
  mosaic.setLevels(run.levels);
  planes.update(run.nT, run.nZ, state);
  if (String(run.channels.map(({ c }) => c)) !== String(looks.list.map(({ c }) => c))) looks.open(run.channels, run.dtype);
  head();
  facts();
  if (!state.fitted) fit(true);
  else if (!run.planned) stayWhole();
  overlays();
});

function gone() {
  toast('This run has been deleted', 8);
  state.run.state = 'deleted';
  head();
}

// What happens -------------------------------------------------------------------------------------------------------

function onCommit({ run, epoch, rev, tiles: written, gone: vanished, t_recv_ns }) {
  if (run !== state.run?.run) return;
  if (epoch !== state.run.epoch) {
    onResync({ run, epoch, rev });
    return;
  }
  state.run.rev = Math.max(state.run.rev, rev);
  const top = written.reduce((most, tile) => Math.max(most, tile[3]), 0);
  const planesGrew = written.some(([t, c, z]) => t >= state.run.nT || z >= state.run.nZ || !looks.of(c));
  tiles.changed(written, rev, t_recv_ns);
  tiles.changed(vanished, rev);
  if (top + 1 > state.run.levels) {
    state.run.levels = top + 1;
    mosaic.setLevels(top + 1);
  }
  if (planesGrew || !state.fitted || !state.run.bboxes.length) refreshInfo();
  else refreshSoon();
  mosaic.refresh();
  if (profile.line) refreshProfile();
  showLive();
}

const refreshSoon = throttle(10000, () => refreshInfo());
const refreshProfile = throttle(1000, () => profile.refresh());

function onResync({ run, epoch, rev }) {
  if (run !== state.run?.run) return;
  Object.assign(state.run, { epoch, rev });
  tiles.setEpoch(epoch, rev);
  refreshInfo();
  mosaic.redraw();
}

function onFrame(frame) {
  if (frame.run && frame.run !== state.run?.run) return;
  frames.add(frame);
  cover(frame);
  factsSoon();
  overlays();
}

/** What is covered grows with a frame, before anybody asks for the run's boxes anew. */
function cover({ plane, rect }) {
  const box = state.run.bboxes.find(([one]) => String(one) === String(plane));
  if (box) box[1] = union([box[1], rect]);
}

const factsSoon = throttle(1000, () => facts());

function onStage({ run, x_um, y_um, z_um }) {
  if (run && run !== state.run?.run) return;
  state.stage = { x_um, y_um, z_um };
  if (state.follow) followStage();
  overlays();
}

function onRunNotice({ run, kind }) {
  runs.heard();
  if (run !== state.run?.run) return;
  if (kind === 'deleted') gone();
  else refreshInfo();
}

// The stage ----------------------------------------------------------------------------------------------------------

function follow(on) {
  state.follow = on;
  $('tool-follow').setAttribute('aria-pressed', String(on));
  if (on) {
    state.whole = false;
    followStage();
  }
  keepLink();
}

function followStage() {
  if (!state.stage || !state.run) return;
  const [row, col] = pixelOfStage(state.run.affine, state.stage.x_um, state.stage.y_um);
  mosaic.panTo(row, col);
}

// Drawing ------------------------------------------------------------------------------------------------------------

function scene() {
  return {
    viewRect: mosaic.viewRect(),
    affine: state.run.affine,
    show: layers.show,
    frames: layers.show.frames ? frames.of(state.t, state.z) : [],
    holes: frames.holes?.filter(({ plane }) => plane[0] === state.t && plane[2] === state.z) ?? [],
    lastFrame: state.run.state === 'open' ? frames.last : null,
    stage: state.run.state === 'open' ? state.stage : null,
    marks: marks.list,
    draft: state.draft,
    profile: profile.line,
    planned: state.run.planned,
    covered: extentOf(state.run),
  };
}

let overlayDue = false;
function overlays() {
  if (overlayDue || !state.run) return;
  overlayDue = true;
  requestAnimationFrame(() => {
    overlayDue = false;
    const now = scene();
    const ground = JSON.stringify([now.viewRect, now.planned ?? now.covered, now.show, document.documentElement.dataset.theme,
      $('view').clientWidth, $('view').clientHeight]);
    if (ground !== state.ground) drawUnderlay($('underlay'), now);
    state.ground = ground;
    drawOverlay($('overlay'), now);
  });
}

/** Position and value under the cursor; at a coarse level the exact value is asked for, and replaces the mean. */
function showCursor(exact = null) {
  const { hover, run } = state;
  if (!hover || !run) {
    $('cursor').textContent = '';
    return;
  }
  const [row, col] = hover;
  const [x, y] = stageOfPixel(run.affine, row, col);
  const where = `x ${x.toFixed(2)} µm  y ${y.toFixed(2)} µm   row ${Math.floor(row)} col ${Math.floor(col)}`;
  const tile = tiles.find(row, col, 0, run.levels - 1);
  let values = exact;
  if (values === null) {
    if (tile) {
      const { inRow, inCol } = tileAt(row, col, tile.level, run.tileSize);
      const at = inRow * run.tileSize + inCol;
      const layersOf = new Map(tiles.layersOf(tile).map((layer) => [layer.c, layer]));
      values = looks.visible.map((c) => {
        const layer = layersOf.get(c);
        return layer && (layer.mask === null || layer.mask[at]) ? layer.pixels[at] : null;
      });
    } else values = looks.visible.map(() => null);
    if (!tile || tile.level > 0) askValue(row, col);
  }
  const number = (v) => (v === null ? 'no frame' : Number.isInteger(v) ? v : v.toPrecision(5));
  const about = exact === null && tile?.level > 0 ? '≈ ' : '';
  const said = looks.visible.map((c, n) =>
    looks.list.length > 1 ? `${looks.of(c).name} ${about}${number(values[n])}` : `${about}${number(values[n])}`,
  );
  $('cursor').textContent = `${where}   ${said.join('  ')}`;
}

const askValue = throttle(120, async (row, col) => {
  const { hover, run } = state;
  if (!hover || !run || hover[0] !== row || hover[1] !== col) return;
  const query = { row: Math.floor(row), col: Math.floor(col), t: state.t, z: state.z, c: looks.visible.join(',') };
  try {
    const { values } = await api.json(`runs/${run.run}/value`, { query });
    if (state.hover === hover && state.run === run) showCursor(values);
  } catch {
    // The value of the coarse level stays.
  }
});

function head() {
  const { run } = state;
  $('run-name').textContent = run.name || run.run.slice(0, 8);
  $('run-name').title = `${run.name} (${run.run})`;
  document.title = `${run.name || 'run'} – tilecast`;
  const words = { open: 'scanning', idle: 'idle', ended: 'ended', sealed: 'ended, sealed', deleted: 'deleted' };
  $('run-state').hidden = false;
  $('run-state').textContent = words[run.state] ?? run.state;
  $('run-state').dataset.level = { open: 'good', idle: 'warn', deleted: 'bad' }[run.state] ?? '';
  $('empty').hidden = run.bboxes.length > 0;
  if (!run.bboxes.length) $('empty').replaceChildren(h('b', {}, 'Nothing yet'), 'The mosaic appears with the first frame.');
}

function facts() {
  const { run } = state;
  if (!run) return;
  // One number, shown in two places at the same time: what the server knew last, or what has been heard of since.
  const nFrames = Math.max(run.nFrames ?? 0, frames.placed.size);
  layers.count('frames', nFrames);
  renderReport(run, {
    report: run.report,
    final: ['ended', 'sealed', 'idle'].includes(run.state),
    nFrames,
    nHoles: frames.nLacking ?? 0,
  });
}

/** Whether what is seen is of now; if not, since when. */
function showLive() {
  const badge = $('live');
  const old = $('old');
  const open = state.run?.state === 'open';
  const silent = events.silence;
  const daemonSilent = state.beat ? (state.beat.heard_s ?? Infinity) * 1000 + performance.now() - state.beat.at : null;
  const ago = (ms) => (ms < 90000 ? `${Math.round(ms / 1000)} s` : `${Math.round(ms / 60000)} min`);
  if (state.live !== 'live' || silent > OLD_MS) {
    badge.textContent = silent > OLD_MS ? `no connection, ${ago(silent)} old` : 'connecting …';
    badge.dataset.level = silent > OLD_MS ? 'bad' : 'warn';
    old.hidden = silent <= OLD_MS;
    old.textContent = `What you see is ${ago(silent)} old: the server does not answer. Trying again by itself.`;
  } else if (open && daemonSilent !== null && daemonSilent > OLD_MS) {
    const since = Number.isFinite(daemonSilent) ? ` for ${ago(daemonSilent)}` : '';
    badge.textContent = `daemon silent${since}`;
    badge.dataset.level = 'warn';
    old.hidden = false;
    old.textContent = `The daemon has said nothing${since}: what you see may be old.`;
  } else {
    badge.textContent = open ? 'live' : 'connected';
    badge.dataset.level = 'good';
    // Where pixels should be and cannot be read there must not seem to be none.
    const { size } = tiles.unreadable;
    old.hidden = size === 0;
    if (size) old.textContent = `${size === 1 ? 'A tile' : `${size} tiles`} cannot be shown: ${[...tiles.unreadable.values()][0]}`;
  }
}
setInterval(showLive, 1000);

// What a person does ---------------------------------------------------------------------------------------------------

function marked(mark) {
  toast(`${mark.name} is kept in the list of marks`);
}

function goTo(mark) {
  const corners = pixelsOf(mark, state.run.affine);
  follow(false);
  state.whole = false;
  if (mark.kind === 'point') mosaic.panTo(...corners[0]);
  else {
    const [[r0, c0], [r1, c1]] = corners;
    mosaic.fit([Math.min(r0, r1), Math.min(c0, c1), Math.max(r0, r1), Math.max(c0, c1)], { room: 0.3 });
  }
}

function link() {
  const [row, col] = mosaic.centre();
  const { run, t, z } = state;
  const hash = toHash({
    run: run.run, row, col, scale: mosaic.scale(false), t, z,
    looks: looks.toText(), auto: looks.auto, follow: state.follow,
  });
  return new URL(hash, location.href).href;
}

const keepLink = throttle(400, () => {
  if (!state.run || !state.fitted) return;
  history.replaceState(null, '', link());
});

async function savePng() {
  const blob = await viewAsPng(mosaic.canvas, { ...scene(), lastFrame: null, stage: null });
  const name = (state.run.name || 'view').replace(/[^\w.-]+/g, '-');
  download(`${name}.png`, blob);
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem('tilecast.theme', theme);
  overlays();
  contrast.render();
}

function nextTheme() {
  const now = THEMES.indexOf(document.documentElement.dataset.theme);
  const theme = THEMES[(now + 1) % THEMES.length];
  setTheme(theme);
  toast({ dark: 'Dark', night: 'Red on black, for eyes used to the dark', light: 'Light' }[theme], 2);
}

function zoom(factor) {
  state.whole = false;
  mosaic.zoomBy(factor);
}

function togglePanel() {
  $('panel').hidden = !$('panel').hidden;
}

function toggleChannel(n) {
  if (looks.list?.[n]) looks.set(n, { visible: !looks.list[n].visible });
}

const shortcuts = [
  [['ArrowLeft', 'ArrowRight', 'ArrowUp', 'ArrowDown'], 'Move', ({ key, shiftKey }) => {
    const by = shiftKey ? 0.5 : 0.12;
    follow(false);
    state.whole = false;
    mosaic.panBy(by * ((key === 'ArrowRight') - (key === 'ArrowLeft')), by * ((key === 'ArrowDown') - (key === 'ArrowUp')));
  }],
  [['+', '='], 'Nearer', () => zoom(1.5)],
  [['-', '_'], 'Farther', () => zoom(1 / 1.5)],
  [['0', 'Home'], 'Show everything', () => fit()],
  [['f'], 'Follow the stage', () => follow(!state.follow)],
  [['\\'], 'One camera pixel per screen pixel', () => {
    state.whole = false;
    mosaic.setScale(1 / (window.devicePixelRatio || 1));
  }],
  [['a'], 'Auto contrast', () => contrast.toggleAuto()],
  [['i'], 'Invert', () => looks.set(looks.selected, { invert: !looks.list[looks.selected].invert })],
  [['p'], 'Mark points', () => tools.choose('point')],
  [['m'], 'Mark rectangles', () => tools.choose('rect')],
  [['l'], 'Line profile', () => tools.choose('line')],
  [['h'], 'Missing frames', () => layers.toggle('holes')],
  [['o'], 'Outlines of frames', () => layers.toggle('frames')],
  [[',', '.'], 'Depth', ({ key }) => planes.step('z', key === '.' ? 1 : -1)],
  [['[', ']'], 'Time', ({ key }) => planes.step('t', key === ']' ? 1 : -1)],
  [['1', '2', '3', '4'], 'Channels', ({ key }) => toggleChannel(Number(key) - 1)],
  [['5', '6', '7', '8', '9'], '', ({ key }) => toggleChannel(Number(key) - 1)],
  [['r'], 'Runs', () => runs.toggle()],
  [['s'], 'Save the view as PNG', () => savePng()],
  [['c'], 'Copy a link to this view', () => copyText(link())],
  [['d'], 'Dark, red, light', nextTheme],
  [['b'], 'Hide or show the panel', togglePanel],
  [['?'], 'This help', () => showKeys(shortcuts)],
  [['Escape'], 'Put the tool away', () => {
    if (!$('runs').hidden) runs.toggle(false);
    else if (tools.tool !== 'pan') tools.choose('pan');
    else profile.clear();
  }],
];

const BUTTONS = [
  ['point', 'Mark points (P)', 'M8 1.5v4M8 10.5v4M1.5 8h4M10.5 8h4M8 8v.01', () => tools.choose('point')],
  ['rect', 'Mark rectangles (M)', 'M2.5 4h11v8h-11z', () => tools.choose('rect')],
  ['line', 'Line profile (L)', 'M1.5 12l3-1 2-6 2.5 8 2-5 3.5 1', () => tools.choose('line')],
  null,
  ['fit', 'Show everything (0)', 'M2 6V2h4M10 2h4v4M14 10v4h-4M6 14H2v-4', () => fit()],
  ['follow', 'Follow the stage (F)', 'M8 4.5a3.5 3.5 0 1 0 0 7a3.5 3.5 0 1 0 0-7zM8 1v3M8 12v3M1 8h3M12 8h3', () => follow(!state.follow)],
  null,
  ['save', 'Save the view as PNG (S)', 'M8 2v8M4.5 7L8 10.5 11.5 7M2.5 13.5h11', () => savePng()],
  ['link', 'Copy a link to this view (C)', 'M6.5 9.5l3-3M7 4.5l1.5-1.5a2.8 2.8 0 0 1 4 4L11 8.5M9 11.5L7.5 13a2.8 2.8 0 0 1-4-4L5 7.5', () => copyText(link())],
  ['theme', 'Dark, red, light (D)', 'M13 9.5A5.5 5.5 0 0 1 6.5 3 5.5 5.5 0 1 0 13 9.5z', nextTheme],
  ['help', 'Keys (?)', 'M5.5 6a2.5 2.5 0 1 1 3.7 2.2C8.300 8.700 8 9.200 8 10M8 13v.01', () => showKeys(shortcuts)],
];

$('tools').append(
  ...BUTTONS.map((button) => {
    if (!button) return h('span', { class: 'gap' });
    const [name, title, path, action] = button;
    const toggles = ['point', 'rect', 'line', 'follow'].includes(name);
    return h(
      'button',
      { class: 'quiet icon', id: `tool-${name}`, title, 'aria-label': title, 'aria-pressed': toggles ? 'false' : null, onclick: action },
      icon(path),
    );
  }),
);
$('runs-button').addEventListener('click', () => runs.toggle());
$('panel-button').addEventListener('click', togglePanel);
tools.addEventListener('change', () => {
  for (const name of ['point', 'rect', 'line']) {
    $(`tool-${name}`).setAttribute('aria-pressed', String(tools.tool === name));
  }
  $('view').dataset.tool = tools.tool;
});
$('view').dataset.tool = 'pan';
looks.addEventListener('change', () => {
  if (!state.run) return;
  const { channels } = tiles.view;
  if (String(channels) !== String(looks.visible)) showPlane();
  mosaic.setLooks(looks.asMap());
  keepLink();
});
marks.addEventListener('change', () => overlays());
installKeys(shortcuts);
new ResizeObserver(() => {
  overlays();
  stayWhole();
}).observe($('view'));
window.addEventListener('hashchange', async ({ newURL }) => {
  const wanted = fromHash(new URL(newURL).hash); // by now the link of the view may be in its place
  if (!wanted.run) return;
  await open(wanted.run, wanted);
  if (!state.run) openNewest();
});

// For tests and for the curious.
globalThis.tilecast = { state, tiles, looks, marks, mosaic, status, frames, events, formatLength };

setTheme(THEMES.includes(localStorage.getItem('tilecast.theme')) ? localStorage.getItem('tilecast.theme') : 'dark');

/** Open the newest run, as soon as there is one; unless a link to another comes meanwhile. */
async function openNewest() {
  const asked = location.hash;
  try {
    const [newest] = (await runs.load()).filter(({ error }) => !error);
    if (location.hash !== asked) return;
    if (newest) {
      await open(newest.run);
      return;
    }
    $('empty').hidden = false;
    $('empty').replaceChildren(h('b', {}, 'No runs yet'), 'The first one appears here when a scan begins.');
    $('live').textContent = 'connected';
    $('live').dataset.level = 'good';
  } catch (error) {
    $('empty').hidden = false;
    $('empty').replaceChildren(h('b', {}, 'The server does not answer'), error.message);
  }
  setTimeout(begin, 2000);
}

async function begin() {
  const asked = location.hash;
  const wanted = fromHash(asked);
  if (wanted.run) await open(wanted.run, wanted);
  if (!state.run && location.hash === asked) openNewest();
}
begin();
