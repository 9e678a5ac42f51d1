// The line profile: values along a line on the map, at full resolution, with their plot.

import { $, color, download, fitCanvas, h, icon } from './dom.js';
import { formatLength, lengthUm, niceLength } from './geometry.js';
import { summary } from './stats.js';

const MOST_SAMPLES = 4000;

export class Profile {
  /** @param context { run, view, looks } functions that give the present ones; onChange: the line changed */
  constructor(api, { run, view, looks, onChange }) {
    Object.assign(this, { api, run, view, looks, onChange });
    this.line = null;
    this.data = null;
    this.asking = false;
    this.canvas = h('canvas', { onpointermove: (event) => this.#point(event), onpointerleave: () => this.#draw() });
    this.caption = h('span', { class: 'num' });
    $('profile').replaceChildren(
      h(
        'header',
        {},
        this.caption,
        h('span', { class: 'grow' }),
        h('button', { class: 'small quiet', title: 'Save as CSV', onclick: () => this.#save() }, 'CSV'),
        h('button', { class: 'small quiet icon', title: 'Close (Esc)', onclick: () => this.clear() }, icon('M4 4l8 8M12 4l-8 8')),
      ),
      this.canvas,
    );
    new ResizeObserver(() => this.#draw()).observe(this.canvas);
  }

  set(from, to) {
    this.line = { from, to };
    $('profile').hidden = false;
    this.onChange();
    this.refresh();
  }

  clear() {
    this.line = null;
    this.data = null;
    $('profile').hidden = true;
    this.onChange();
  }

  /** Ask for the values anew; while one question is under way, only the newest waits. */
  async refresh() {
    if (!this.line) return;
    if (this.asking) {
      this.again = true;
      return;
    }
    this.asking = true;
    const { from, to } = this.line;
    const { t, z } = this.view();
    const channels = this.looks().visible;
    const pixels = Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1])) + 1;
    try {
      const answer = await this.api.json(`runs/${this.run().run}/profile`, {
        query: {
          row0: from[0], col0: from[1], row1: to[0], col1: to[1], t, z,
          c: channels.join(','),
          samples: Math.max(2, Math.min(MOST_SAMPLES, pixels)),
        },
      });
      if (this.line) this.#show(answer);
    } catch (error) {
      this.caption.textContent = error.message;
    }
    this.asking = false;
    if (this.again) {
      this.again = false;
      this.refresh();
    }
  }

  #show(answer) {
    this.data = answer;
    this.#draw();
  }

  #draw(at = null) {
    if (!this.canvas.isConnected || !this.canvas.clientWidth) return;
    const { context, width, height } = fitCanvas(this.canvas);
    if (!this.data || !this.line) return;
    const { points, channels } = this.data;
    const all = summary(points.flatMap(({ values }) => values));
    const length = lengthUm(this.run().affine, this.line.from, this.line.to);
    if (!all) {
      this.caption.textContent = `${formatLength(length)}: nothing is covered here`;
      return;
    }
    const pad = { left: 48, right: 8, top: 8, bottom: 18 };
    const span = all.max - all.min || 1;
    const x = (i) => pad.left + (i / (points.length - 1)) * (width - pad.left - pad.right);
    const y = (v) => pad.top + (1 - (v - all.min) / span) * (height - pad.top - pad.bottom);
    context.font = '11px system-ui, sans-serif';
    context.fillStyle = color('text-weak');
    context.strokeStyle = color('line');
    context.textAlign = 'right';
    context.textBaseline = 'middle';
    for (const value of [all.min, all.min + span / 2, all.max]) {
      context.beginPath();
      context.moveTo(pad.left, y(value));
      context.lineTo(width - pad.right, y(value));
      context.stroke();
      context.fillText(String(Number(value.toPrecision(4))), pad.left - 6, y(value));
    }
    const step = niceLength(length / 3) || length;
    context.textAlign = 'center';
    context.textBaseline = 'bottom';
    for (let d = 0; d <= length * 1.0001; d += step) {
      const px = pad.left + (d / (length || 1)) * (width - pad.left - pad.right);
      context.fillText(formatLength(d), Math.min(px, width - 24), height);
    }
    channels.forEach((c, n) => {
      const look = this.looks().of(c);
      context.strokeStyle = channels.length === 1 ? color('accent') : look.color;
      context.lineWidth = 1.3;
      context.lineJoin = 'round';
      context.beginPath();
      let pen = false;
      points.forEach(({ values }, i) => {
        const value = values[n];
        if (value === null) {
          pen = false; // a gap in the mosaic is a gap in the curve
        } else if (pen) context.lineTo(x(i), y(value));
        else {
          context.moveTo(x(i), y(value));
          pen = true;
        }
      });
      context.stroke();
    });
    context.lineWidth = 1;
    if (at !== null) {
      context.strokeStyle = color('text-weak');
      context.beginPath();
      context.moveTo(x(at), pad.top);
      context.lineTo(x(at), height - pad.bottom);
      context.stroke();
      const { values, distance_um } = points[at];
      this.caption.textContent = `${formatLength(distance_um)}: ${values.map((v) => v ?? '–').join(', ')}`;
    } else {
      const mean = Number(all.mean.toPrecision(4));
      this.caption.textContent = `Profile, ${formatLength(length)}: least ${all.min}, largest ${all.max}, mean ${mean}`;
    }
  }

  #point(event) {
    if (!this.data) return;
    const box = this.canvas.getBoundingClientRect();
    const share = (event.clientX - box.left - 48) / (box.width - 56);
    this.#draw(Math.max(0, Math.min(this.data.points.length - 1, Math.round(share * (this.data.points.length - 1)))));
  }

  #save() {
    if (!this.data) return;
    const names = this.data.channels.map((c) => this.looks().of(c).name.replaceAll(',', ' '));
    const lines = [
      ['distance_um', 'row', 'col', ...names].join(','),
      ...this.data.points.map(({ distance_um, row, col, values }) =>
        [distance_um.toFixed(4), row, col, ...values.map((v) => v ?? '')].join(','),
      ),
    ];
    download('profile.csv', `${lines.join('\n')}\n`, 'text/csv');
  }
}
