// What is drawn over and under the mosaic, chosen by check boxes; kept in this browser.

import { $, h } from './dom.js';

const KEY = 'tilecast.layers';
const LAYERS = [
  ['stage', 'Stage', 'mark'],
  ['last', 'Newest frame', 'accent'],
  ['frames', 'All frames', 'accent'],
  ['holes', 'Missing and without place', 'bad'],
  ['planned', 'Planned area', 'line-strong'],
];

export function layersPanel({ onChange }) {
  const show = { stage: true, last: true, frames: false, holes: true, planned: true };
  try {
    const kept = JSON.parse(localStorage.getItem(KEY) ?? '{}');
    for (const key of Object.keys(show)) if (typeof kept[key] === 'boolean') show[key] = kept[key];
  } catch {
    // What cannot be read is as if it were not there.
  }
  const counts = {};
  const boxes = {};
  const rows = LAYERS.map(([key, label, tone]) => {
    counts[key] = h('small', {});
    boxes[key] = h('input', { type: 'checkbox', id: `layer-${key}`, checked: show[key], onchange: (e) => set(key, e.target.checked) });
    const sample = h('i', {});
    sample.style.color = `var(--${tone})`;
    if (key === 'holes' || key === 'planned') sample.style.borderStyle = 'dashed';
    return h('label', { class: 'check' }, boxes[key], sample, label, counts[key]);
  });
  $('layers').replaceChildren(h('h2', {}, 'Shown over the mosaic'), ...rows);

  function set(key, value) {
    show[key] = value;
    boxes[key].checked = value;
    localStorage.setItem(KEY, JSON.stringify(show));
    onChange();
  }

  return {
    show,
    toggle: (key) => set(key, !show[key]),
    count: (key, n) => {
      counts[key].textContent = n ? String(n) : '';
    },
  };
}
