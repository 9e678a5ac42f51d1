// Where frames lie, followed while a run grows, and which are missing: for outlines, holes and the report.

import { throttle } from './dom.js';
import { estimateHoles, numbersOf } from './holes.js';

const MOST = 20000; // outlines kept; a larger run shows its newest

export class Frames {
  constructor(api, onChange) {
    this.api = api;
    this.onChange = onChange;
    this.placed = new Map();
    this.refreshHoles = throttle(5000, () => this.#loadHoles());
  }

  async open(run) {
    this.run = run;
    this.placed = new Map();
    this.lacking = { missing: [], unplaced: {}, final: false };
    this.last = null;
    this.holes = [];
    this.nLacking = 0;
    let since = 0;
    for (let page = 0; page < 5; page++) {
      const { placements, more } = await this.api.json(`runs/${run.run}/placements`, { query: { since } });
      if (this.run !== run) return;
      for (const one of placements) this.#add(one);
      if (!more || !placements.length) break;
      since = placements.at(-1).rev;
    }
    await this.#loadHoles();
  }

  #add({ frame, t, c, z, row, col, height, width }) {
    this.placed.set(frame, { rect: [row, col, row + height, col + width], plane: [t, c, z] });
    if (this.placed.size > MOST) this.placed.delete(this.placed.keys().next().value);
  }

  /** A frame was placed a moment ago. */
  add({ frame, rect, plane }) {
    this.placed.set(frame, { rect, plane });
    this.last = { frame, rect, plane };
    if (this.placed.size > MOST) this.placed.delete(this.placed.keys().next().value);
    this.refreshHoles();
  }

  async #loadHoles() {
    const { run } = this;
    try {
      this.lacking = await this.api.json(`runs/${run.run}/holes`);
    } catch {
      return; // shown as they were; the strip says if the server is away
    }
    if (this.run !== run) return;
    const wanted = numbersOf(this.lacking.missing).map((frame) => ({ frame, reason: 'missing' }));
    for (const [reason, ranges] of Object.entries(this.lacking.unplaced)) {
      wanted.push(...numbersOf(ranges).map((frame) => ({ frame, reason })));
    }
    this.holes = estimateHoles(this.placed, wanted);
    this.nLacking = wanted.length;
    this.onChange();
  }

  /** Those of a plane of (t, z), any channel. */
  of(t, z) {
    return [...this.placed.values()].filter(({ plane }) => plane[0] === t && plane[2] === z);
  }
}
