// Sliders for time and depth, where a run has them.

import { $, h } from './dom.js';

export function planesPanel({ onChange }) {
  const element = $('planes');
  let shape = '';
  let ends = { t: 1, z: 1 };
  let view = { t: 0, z: 0 };

  function slider(axis, label) {
    const name = { t: '[ and ]', z: ', and .' }[axis];
    return h(
      'div',
      { class: 'row' },
      h('label', { htmlFor: `plane-${axis}` }, label),
      h('input', {
        type: 'range',
        id: `plane-${axis}`,
        min: 0,
        max: ends[axis] - 1,
        step: 1,
        value: view[axis],
        title: `Keys ${name}`,
        oninput: (event) => set(axis, Number(event.target.value)),
      }),
      h('output', { id: `plane-${axis}-value` }),
    );
  }

  function set(axis, n) {
    const wanted = Math.max(0, Math.min(ends[axis] - 1, n));
    if (wanted === view[axis]) return;
    view = { ...view, [axis]: wanted };
    render();
    onChange(view);
  }

  function render() {
    for (const axis of ['t', 'z']) {
      const field = $(`plane-${axis}`);
      if (!field) continue;
      field.value = view[axis];
      $(`plane-${axis}-value`).textContent = `${view[axis] + 1}/${ends[axis]}`;
    }
  }

  /** Adapt to a run that may have grown. */
  function update(nT, nZ, present) {
    ends = { t: nT, z: nZ };
    view = { t: present.t, z: present.z };
    const now = `${nT} ${nZ}`;
    if (now !== shape) {
      shape = now;
      element.hidden = nT < 2 && nZ < 2;
      element.replaceChildren(nT > 1 ? slider('t', 'Time') : '', nZ > 1 ? slider('z', 'Depth') : '');
    }
    render();
  }

  return { update, step: (axis, by) => set(axis, view[axis] + by) };
}
