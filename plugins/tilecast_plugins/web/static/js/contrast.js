// Histogram with black and white points, channels with colours, gamma, inversion and colour maps: the panel's first part.

import { $, color, fitCanvas, h, icon, throttle } from './dom.js';
import { MAPS, toneOf } from './lut.js';
import { autoWindow, BINS, countPixels, emptyHistogram, rebin, typeRange } from './stats.js';
import { intersect, tileRect } from './geometry.js';

const GRAB_PX = 14;
const MOST_PIXELS = 1 << 20; // in a histogram; more are counted in steps

/** Histograms of the channels of what is in view, from the tiles on screen. */
export function histogramsOf(tiles, drawn, viewRect, dtype, ranges) {
  const { tileSize } = tiles.info;
  const found = new Map();
  // A tile may be drawn below finer ones: where several cover a place, only those of the finest level are counted.
  const finest = Math.min(...drawn.map(({ level }) => level));
  const counted = drawn.filter(({ level }) => level === finest);
  const step = Math.max(1, Math.round(Math.sqrt((counted.length * tileSize * tileSize) / MOST_PIXELS)));
  for (const tile of counted) {
    const rect = intersect(tileRect(tile.level, tile.row, tile.col, tileSize), viewRect);
    if (!rect) continue;
    const size = 2 ** tile.level;
    const part = [
      Math.max(0, Math.floor(rect[0] / size) - tile.row * tileSize),
      Math.max(0, Math.floor(rect[1] / size) - tile.col * tileSize),
      Math.min(tileSize, Math.ceil(rect[2] / size) - tile.row * tileSize),
      Math.min(tileSize, Math.ceil(rect[3] / size) - tile.col * tileSize),
    ];
    for (const { c, pixels, mask } of tiles.layersOf(tile)) {
      if (!found.has(c)) found.set(c, emptyHistogram(dtype, ...(ranges.get(c) ?? [0, 1])));
      countPixels(found.get(c), pixels, mask, tileSize, part, step);
    }
  }
  return found;
}

/** The least and the largest finite value of float tiles on screen, per channel: the range of their histograms. */
export function floatRanges(tiles, drawn) {
  const ranges = new Map();
  for (const tile of drawn) {
    for (const { c, pixels, mask } of tiles.layersOf(tile)) {
      const range = ranges.get(c) ?? [Infinity, -Infinity];
      for (let i = 0; i < pixels.length; i += 3) {
        const value = pixels[i];
        if ((mask && !mask[i]) || !Number.isFinite(value)) continue;
        if (value < range[0]) range[0] = value;
        if (value > range[1]) range[1] = value;
      }
      ranges.set(c, range);
    }
  }
  for (const [c, [lo, hi]] of ranges) if (!(hi > lo)) ranges.set(c, lo === hi ? [lo, lo + 1] : [0, 1]);
  return ranges;
}

export function contrastPanel(looks, { getHistograms }) {
  const element = $('contrast');
  let histograms = new Map();
  let zoomed = true;
  let range = [0, 1];
  let dragging = null;
  let canvas = null;

  const look = () => looks.list[looks.selected];
  const integer = () => looks.dtype !== '<f4';
  const tidy = (value) => (integer() ? Math.round(value) : Number(value.toPrecision(5)));

  /** Values at the left and right edge of the plot. */
  function plotRange() {
    const full = integer() ? typeRange(looks.dtype) : null;
    const histogram = histograms.get(look().c);
    if (!zoomed && full) return full;
    const data = histogram ? autoWindow(histogram, 0, 0.9999) : null;
    let lo = Math.min(look().lo, data?.[0] ?? look().lo);
    let hi = Math.max(look().hi, data?.[1] ?? look().hi);
    const room = (hi - lo) * 0.05 || 1;
    lo -= room;
    hi += room;
    return full ? [Math.max(full[0] - room, lo), Math.min(full[1] + room, hi)] : [lo, hi];
  }

  function draw() {
    if (!canvas?.isConnected) return;
    const { context, width, height } = fitCanvas(canvas);
    if (!dragging) range = plotRange();
    const [lo, hi] = range;
    const x = (value) => ((value - lo) / (hi - lo)) * width;
    const histogram = histograms.get(look().c);
    if (histogram?.n) {
      const bins = rebin(histogram, lo, hi, Math.min(BINS, Math.floor(width)));
      const most = Math.log1p(Math.max(...bins));
      // A channel shown in white has the colour of the text, which can be seen in every theme.
      context.fillStyle = look().map === 'tint' && look().color !== '#ffffff' ? look().color : color('text');
      context.globalAlpha = 0.55;
      context.beginPath();
      context.moveTo(0, height);
      bins.forEach((count, n) => {
        const y = height - (Math.log1p(count) / (most || 1)) * (height - 6);
        context.lineTo((n / bins.length) * width, y);
        context.lineTo(((n + 1) / bins.length) * width, y);
      });
      context.lineTo(width, height);
      context.fill();
      context.globalAlpha = 1;
    }
    // The curve from raw to shown, between the two points.
    context.strokeStyle = color('text-strong');
    context.globalAlpha = 0.7;
    context.beginPath();
    for (let px = 0; px <= width; px += 2) {
      const y = height - 2 - toneOf(lo + (px / width) * (hi - lo), look()) * (height - 4);
      if (px) context.lineTo(px, y);
      else context.moveTo(px, y);
    }
    context.stroke();
    context.globalAlpha = 1;
    for (const [key, fill] of [['lo', '#000'], ['hi', '#fff']]) {
      const at = x(look()[key]);
      context.strokeStyle = color('accent');
      context.lineWidth = dragging === key ? 2 : 1;
      context.beginPath();
      context.moveTo(at, 0);
      context.lineTo(at, height);
      context.stroke();
      context.beginPath();
      context.moveTo(at - 6, height);
      context.lineTo(at + 6, height);
      context.lineTo(at, height - 9);
      context.closePath();
      context.fillStyle = fill;
      context.fill();
      context.stroke();
      context.lineWidth = 1;
    }
  }

  function valueAt(event) {
    const box = canvas.getBoundingClientRect();
    return range[0] + ((event.clientX - box.left) / box.width) * (range[1] - range[0]);
  }

  function onDown(event) {
    const box = canvas.getBoundingClientRect();
    const x = event.clientX - box.left;
    const px = (value) => ((value - range[0]) / (range[1] - range[0])) * box.width;
    const [toLo, toHi] = [Math.abs(x - px(look().lo)), Math.abs(x - px(look().hi))];
    if (Math.min(toLo, toHi) <= GRAB_PX) dragging = toLo < toHi || (toLo === toHi && x < px(look().lo)) ? 'lo' : 'hi';
    else if (valueAt(event) > look().lo && valueAt(event) < look().hi) dragging = 'both';
    else dragging = valueAt(event) <= look().lo ? 'lo' : 'hi';
    onDown.from = { value: valueAt(event), lo: look().lo, hi: look().hi };
    canvas.setPointerCapture(event.pointerId);
    looks.auto = false;
    onMove(event);
  }

  function onMove(event) {
    if (!dragging) return;
    const value = valueAt(event);
    const least = integer() ? 1 : (range[1] - range[0]) / 1000;
    const { from } = onDown;
    if (dragging === 'lo') looks.set(looks.selected, { lo: Math.min(tidy(value), look().hi - least) });
    else if (dragging === 'hi') looks.set(looks.selected, { hi: Math.max(tidy(value), look().lo + least) });
    else {
      const by = value - from.value;
      looks.set(looks.selected, { lo: tidy(from.lo + by), hi: tidy(from.hi + by) });
    }
  }

  function onUp() {
    dragging = null;
    draw();
  }

  function channelRow(channel, n) {
    return h(
      'div',
      {
        class: 'channel',
        'aria-current': String(n === looks.selected),
        'data-channel': n,
        onclick: () => looks.select(n),
      },
      h('input', {
        type: 'checkbox',
        checked: channel.visible,
        title: `Show (${n + 1})`,
        'aria-label': `Show ${channel.name}`,
        onclick: (event) => event.stopPropagation(),
        onchange: (event) => looks.set(n, { visible: event.target.checked }),
      }),
      h('input', {
        type: 'color',
        value: channel.color,
        title: 'Colour',
        'aria-label': `Colour of ${channel.name}`,
        onclick: (event) => event.stopPropagation(),
        oninput: (event) => looks.set(n, { color: event.target.value, map: 'tint' }),
      }),
      h('span', {}, channel.name),
      h('small', {}, ''),
    );
  }

  function numberField(key, title) {
    return h('input', {
      type: 'number',
      id: `point-${key}`,
      title,
      'aria-label': title,
      step: integer() ? 1 : 'any',
      value: look()[key],
      onchange: (event) => {
        looks.auto = false;
        if (Number.isFinite(event.target.valueAsNumber)) looks.set(looks.selected, { [key]: event.target.valueAsNumber });
      },
    });
  }

  let built = '';
  function render() {
    if (!looks.list?.length) return;
    const shape = `${looks.list.length} ${looks.selected} ${looks.dtype} ${looks.list.map(({ name }) => name)}`;
    if (shape !== built) build();
    built = shape;
    const set = (id, property, value) => {
      const field = $(id);
      if (document.activeElement !== field || field.type === 'range') field[property] = value;
    };
    set('point-lo', 'value', tidy(look().lo));
    set('point-hi', 'value', tidy(look().hi));
    set('gamma', 'value', Math.log2(look().gamma));
    $('gamma-value').textContent = look().gamma.toFixed(2);
    $('invert').checked = look().invert;
    $('map').value = look().map;
    $('auto').setAttribute('aria-pressed', String(looks.auto));
    element.querySelectorAll('.channel').forEach((row, n) => {
      const channel = looks.list[n];
      row.querySelector('[type=checkbox]').checked = channel.visible;
      row.querySelector('[type=color]').value = channel.color;
      row.querySelector('small').textContent = `${tidy(channel.lo)}–${tidy(channel.hi)}`;
    });
    draw();
  }

  function build() {
    canvas = h('canvas', {
      id: 'histogram',
      tabIndex: 0,
      title: 'Drag the black and the white point; between them, drag both. Double-click: auto',
      'aria-label': 'Histogram of what is in view',
      onpointerdown: onDown,
      onpointermove: onMove,
      onpointerup: onUp,
      onpointercancel: onUp,
      ondblclick: () => auto(),
    });
    element.replaceChildren(
      h(
        'h2',
        {},
        'Contrast',
        h('span', { class: 'grow' }),
        h('button', { class: 'small', id: 'auto', title: 'Black and white from what is in view, and keep it so (A)', onclick: toggleAuto }, 'Auto'),
        h('button', {
          class: 'small',
          id: 'full-range',
          title: 'Plot the whole range of the camera, or the range of the data',
          onclick: () => {
            zoomed = !zoomed;
            draw();
          },
        }, icon('M1 8h14M4 5L1 8l3 3M12 5l3 3-3 3')),
      ),
      canvas,
      h('div', { class: 'row' }, numberField('lo', 'Black point'), numberField('hi', 'White point')),
      h(
        'div',
        { class: 'row' },
        h('label', { htmlFor: 'gamma' }, 'Gamma'),
        h('input', {
          type: 'range',
          id: 'gamma',
          min: -2.3,
          max: 2.3,
          step: 0.02,
          title: 'Double-click: 1',
          oninput: (event) => looks.set(looks.selected, { gamma: 2 ** Number(event.target.value) }),
          ondblclick: () => looks.set(looks.selected, { gamma: 1 }),
        }),
        h('output', { id: 'gamma-value' }),
      ),
      h(
        'div',
        { class: 'row' },
        h('label', { htmlFor: 'map' }, 'Colours'),
        h(
          'select',
          { id: 'map', onchange: (event) => looks.set(looks.selected, { map: event.target.value }) },
          MAPS.map((name) =>
            h('option', { value: name }, { tint: 'one colour', limits: 'grey, limits marked' }[name] ?? name),
          ),
        ),
        h('label', { class: 'check', title: 'Invert (I)' },
          h('input', {
            type: 'checkbox',
            id: 'invert',
            onchange: (event) => looks.set(looks.selected, { invert: event.target.checked }),
          }),
          'Invert',
        ),
      ),
      ...looks.list.map(channelRow),
    );
    new ResizeObserver(draw).observe(canvas);
  }

  /** Set black and white of all shown channels from what is in view. */
  function auto() {
    histograms = getHistograms();
    for (const [c, histogram] of histograms) {
      const window = autoWindow(histogram);
      if (window && looks.of(c)) Object.assign(looks.of(c), { lo: window[0], hi: window[1] });
    }
    looks.setAuto(looks.auto);
  }

  function toggleAuto() {
    if (looks.auto) looks.setAuto(false);
    else {
      looks.auto = true;
      auto();
    }
  }

  /** The picture changed: count again, and if asked, set the points anew. */
  const refresh = throttle(250, () => {
    if (!looks.list?.length || dragging) return;
    if (looks.auto) {
      histograms = getHistograms();
      let moved = false;
      for (const [c, histogram] of histograms) {
        const window = autoWindow(histogram);
        const look = looks.of(c);
        if (!window || !look) continue;
        const { lo, hi } = look;
        // Small changes are left alone: a picture that pulses is worse than one that is a little off.
        const change = Math.max(Math.abs(window[0] - lo), Math.abs(window[1] - hi)) / Math.max(hi - lo, 1e-12);
        if (change < 0.06) continue;
        Object.assign(look, { lo: window[0], hi: window[1] });
        moved = true;
      }
      if (moved) looks.setAuto(true);
    } else histograms = getHistograms();
    draw();
  });

  looks.addEventListener('change', render);
  return { refresh, auto, toggleAuto, render, histogram: () => histograms.get(look().c) };
}
