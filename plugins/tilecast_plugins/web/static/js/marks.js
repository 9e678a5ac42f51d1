// Marks: points and rectangles on the map, where they are on the stage, and their export. Kept in this browser.
// A mark is { id, name, kind: 'point' | 'rect', um: [[x_um, y_um], …] }, one corner for a point, two for a rectangle:
// stage positions, so that they stay right whatever happens to the mosaic.

import { pixelOfStage, rectOf, stageOfPixel } from './geometry.js';

/** The corners of a mark as pixel positions [row, col]. */
export function pixelsOf(mark, affine) {
  return mark.um.map(([x, y]) => pixelOfStage(affine, x, y));
}

/** Stage positions [x_um, y_um] of the frames that cover a rectangle of pixels: their centres, row by row. */
export function framesOver([row0, col0, row1, col1], affine, [rows, cols], overlap = 0.1) {
  const along = (from, to, size) => {
    const step = Math.max(1, size * (1 - overlap));
    const n = Math.max(1, Math.ceil((to - from - size) / step - 1e-9) + 1);
    const centre = (from + to) / 2;
    return Array.from({ length: n }, (_, i) => centre + (i - (n - 1) / 2) * step);
  };
  return along(row0, row1, rows).flatMap((row, r) =>
    along(col0, col1, cols).map((col, c) => ({ r, c, um: stageOfPixel(affine, row, col) })),
  );
}

const round = (um) => Math.round(um * 1000) / 1000;

/** The marks as plain data, for a file. */
export function asJson(marks, run) {
  return {
    run: run.run,
    run_name: run.name,
    unit: 'um',
    marks: marks.map(({ name, kind, um }) => ({ name, kind, corners_um: um.map((at) => at.map(round)) })),
  };
}

/** A plan for useq-schema: a position for each point, and the frames that cover each rectangle, all tile centres. */
export function asUseq(marks, run, overlap = 0.1) {
  const positions = marks.flatMap((mark) => {
    if (mark.kind === 'point') return [{ x: round(mark.um[0][0]), y: round(mark.um[0][1]), name: mark.name }];
    const rect = rectOf(...pixelsOf(mark, run.affine));
    return framesOver(rect, run.affine, run.frameShape, overlap).map(({ r, c, um: [x, y] }) => ({
      x: round(x),
      y: round(y),
      name: `${mark.name} r${r} c${c}`,
    }));
  });
  return { axis_order: 'tpgcz', stage_positions: positions, metadata: { tilecast: { run: run.run, name: run.name } } };
}

/** The marks of one run, kept over a reload. */
export class Marks extends EventTarget {
  constructor(storage = localStorage) {
    super();
    this.storage = storage;
    this.list = [];
  }

  open(run) {
    this.run = run;
    this.list = [];
    try {
      const kept = JSON.parse(this.storage.getItem(this.#key()) ?? '[]');
      this.list = kept.filter((mark) => mark && Array.isArray(mark.um) && mark.um.flat().every(Number.isFinite));
    } catch {
      // What cannot be read is as if it were not there.
    }
    this.dispatchEvent(new Event('change'));
  }

  #key() {
    return `tilecast.marks.${this.run.run}`;
  }

  #keep() {
    try {
      this.storage.setItem(this.#key(), JSON.stringify(this.list));
    } catch {
      // A full or forbidden storage: the marks live as long as the page.
    }
    this.dispatchEvent(new Event('change'));
  }

  /** Add a mark given by pixel positions [row, col]. */
  add(kind, corners) {
    const id = Math.max(0, ...this.list.map((mark) => mark.id)) + 1;
    const um = corners.map(([row, col]) => stageOfPixel(this.run.affine, row, col));
    const mark = { id, name: `${kind === 'point' ? 'P' : 'R'}${id}`, kind, um };
    this.list.push(mark);
    this.#keep();
    return mark;
  }

  rename(id, name) {
    this.list = this.list.map((mark) => (mark.id === id ? { ...mark, name: name.trim() || mark.name } : mark));
    this.#keep();
  }

  remove(id) {
    this.list = this.list.filter((mark) => mark.id !== id);
    this.#keep();
  }

  clear() {
    this.list = [];
    this.#keep();
  }
}
