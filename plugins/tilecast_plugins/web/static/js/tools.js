// What the pointer does on the map: move it, mark points and rectangles, draw a profile line. One tool at a time.

import { rectOf } from './geometry.js';

const OSD = globalThis.OpenSeadragon;
const HANDLE_PX = 12;

export class Tools extends EventTarget {
  /**
   * @param mosaic of Mosaic
   * @param on { point(position), rect(from, to), draft(rect or null), line(from, to), hover(position or null),
   *   touched(): a person moved the view, getLine(): { from, to } or null }
   */
  constructor(mosaic, on) {
    super();
    this.mosaic = mosaic;
    this.on = on;
    this.tool = 'pan';
    this.drag = null;
    const { viewer } = mosaic;
    viewer.addHandler('canvas-press', (event) => this.#press(event));
    viewer.addHandler('canvas-drag', (event) => this.#move(event));
    viewer.addHandler('canvas-drag-end', (event) => this.#end(event));
    viewer.addHandler('canvas-release', (event) => this.#end(event));
    viewer.addHandler('canvas-click', (event) => this.#click(event));
    viewer.addHandler('canvas-scroll', () => this.on.touched(false));
    viewer.addHandler('canvas-pinch', () => this.on.touched(false));
    new OSD.MouseTracker({
      element: viewer.container,
      moveHandler: (event) => this.on.hover(this.#at(event.position)),
      leaveHandler: () => this.on.hover(null),
      preProcessEventHandler: (info) => {
        info.preventGesture = false;
      },
    });
  }

  #at(point) {
    return this.mosaic.positionAt(point.x, point.y);
  }

  choose(tool) {
    this.tool = this.tool === tool ? 'pan' : tool;
    this.drag = null;
    this.on.draft(null);
    this.dispatchEvent(new Event('change'));
  }

  /** Which end of the line is under a position: 'from', 'to' or null. */
  #handle(position) {
    const line = this.on.getLine();
    if (!line) return null;
    const near = HANDLE_PX / this.mosaic.scale();
    for (const end of ['from', 'to']) {
      if (Math.hypot((position[0] - line[end][0]) * this.mosaic.aspect, position[1] - line[end][1]) <= near) return end;
    }
    return null;
  }

  #press(event) {
    const position = this.#at(event.position);
    const handle = this.#handle(position);
    if (handle) this.drag = { kind: 'line', fixed: this.on.getLine()[handle === 'from' ? 'to' : 'from'], handle };
    else if (this.tool === 'rect') this.drag = { kind: 'rect', fixed: position };
    else if (this.tool === 'line') this.drag = { kind: 'line', fixed: position, handle: 'to' };
    else this.drag = null;
  }

  #move(event) {
    if (!this.drag) {
      this.on.touched(true);
      return;
    }
    event.preventDefaultAction = true;
    const position = this.#at(event.position);
    this.on.hover(position);
    this.drag.moved = true;
    this.drag.position = position;
    if (this.drag.kind === 'rect') this.on.draft(rectOf(this.drag.fixed, position));
    else if (this.drag.handle === 'to') this.on.line(this.drag.fixed, position);
    else this.on.line(position, this.drag.fixed);
  }

  #end(event) {
    if (!this.drag) return;
    event.preventDefaultAction = true;
    const { drag } = this;
    this.drag = null;
    if (drag.kind === 'rect') {
      this.on.draft(null);
      if (drag.moved) this.on.rect(drag.fixed, drag.position);
    }
  }

  #click(event) {
    if (!event.quick) return;
    event.preventDefaultAction = true;
    if (this.tool === 'point') this.on.point(this.#at(event.position));
  }
}
