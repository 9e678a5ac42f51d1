// The list of marks in the panel.

import { $, ask, copyText, download, h, icon } from './dom.js';
import { asJson, asUseq } from './marks.js';
import { formatLength } from './geometry.js';

const number = (um) => um.toFixed(Math.abs(um) < 100 ? 2 : 1);

function describe({ kind, um }) {
  const [[x0, y0], second] = um;
  if (kind === 'point') return `${number(x0)}, ${number(y0)} µm`;
  const [x1, y1] = second;
  const size = `${formatLength(Math.abs(x1 - x0))} × ${formatLength(Math.abs(y1 - y0))}`;
  return `${number((x0 + x1) / 2)}, ${number((y0 + y1) / 2)} µm, ${size}`;
}

/** The stage position of a mark as text: a point, or the centre of a rectangle. */
export function centreText({ um }) {
  const x = um.reduce((sum, at) => sum + at[0], 0) / um.length;
  const y = um.reduce((sum, at) => sum + at[1], 0) / um.length;
  return `${x.toFixed(3)}, ${y.toFixed(3)}`;
}

export function marksPanel(marks, { run, goTo }) {
  const element = $('marks');
  const fileName = (ending) => `${(run().name || 'run').replace(/[^\w.-]+/g, '-')}-marks${ending}`;

  async function exportUseq() {
    const overlap = h('input', { type: 'number', value: 10, min: 0, max: 90, step: 1, id: 'useq-overlap' });
    const agreed = await ask({
      title: 'Plan of positions for useq-schema',
      agree: 'Save',
      body: h(
        'div',
        {},
        h('p', { class: 'hint' }, 'Points become positions; rectangles are covered with frames. All are frame centres.'),
        h('div', { class: 'row' }, h('label', {}, 'Overlap'), overlap, h('span', {}, '%')),
      ),
      result: () => Math.min(90, Math.max(0, Number(overlap.value))) / 100,
    });
    if (agreed === null) return;
    download(fileName('.useq.json'), JSON.stringify(asUseq(marks.list, run(), agreed), null, 2));
  }

  function item(mark) {
    return h(
      'li',
      { 'data-mark': mark.id },
      h('b', { title: 'Show it', onclick: () => goTo(mark) }, icon(mark.kind === 'point' ? 'M8 2v4M8 10v4M2 8h4M10 8h4M8 8v.01' : 'M2.5 4.5h11v7h-11z')),
      h('input', {
        type: 'text',
        value: mark.name,
        'aria-label': 'Name of the mark',
        onchange: (event) => marks.rename(mark.id, event.target.value),
      }),
      h(
        'button',
        { title: 'Copy x, y in µm', onclick: () => copyText(centreText(mark)) },
        icon('M5 5V2.5h8.5V11H11M2.5 5H11v8.5H2.5z'),
      ),
      h('button', { title: 'Delete', onclick: () => marks.remove(mark.id) }, icon('M4 4l8 8M12 4l-8 8')),
      h('small', {}, describe(mark)),
    );
  }

  function render() {
    const any = marks.list.length > 0;
    element.replaceChildren(
      h('h2', {}, 'Marks', h('span', { class: 'grow' }), any ? h('span', {}, String(marks.list.length)) : null),
      any
        ? h('ol', {}, marks.list.map(item))
        : h('p', { class: 'hint' }, 'Mark a point (P) or a rectangle (M) to keep its stage position.'),
    );
    if (!any) return;
    const all = () => marks.list.map((mark) => `${mark.name}\t${centreText(mark)}`).join('\n');
    element.append(
      h(
        'div',
        { class: 'buttons' },
        h('button', { class: 'small', onclick: () => copyText(all()) }, 'Copy all'),
        h(
          'button',
          {
            class: 'small',
            id: 'marks-json',
            onclick: () => download(fileName('.json'), JSON.stringify(asJson(marks.list, run()), null, 2)),
          },
          'JSON',
        ),
        h('button', { class: 'small', id: 'marks-useq', onclick: exportUseq }, 'useq plan'),
        h('button', { class: 'small danger', onclick: () => marks.clear() }, 'Clear'),
      ),
    );
  }
  marks.addEventListener('change', render);
  return { render };
}
