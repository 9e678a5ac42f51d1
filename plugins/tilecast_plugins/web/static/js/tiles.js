// The raw tiles that the page holds. A changed tile is fetched in the background and replaced when all of it is here:
// until then the old one is shown, so nothing ever flickers. Which tiles are held is decided by the viewer.

import { viewRaw } from './paint.js';
import { tileRect, union } from './geometry.js';

// A browser opens six connections to a server: one is the stream of events, one is left for questions.
const CONNECTIONS = 4;
const RETRY_MS = 1000;

export class Tile {
  constructor(level, row, col) {
    this.level = level;
    this.row = row;
    this.col = col;
    this.layers = new Map(); // channel → { t, z, pixels, mask, rev }; pixels null where there is no such tile
    this.dirty = new Set(); // channels that changed since they were asked for
    this.version = 0; // of what is held
    this.painted = ''; // which version and look the canvas shows
    this.canvas = null;
    this.busy = null;
    this.retryAt = 0;
    this.t_recv_ns = null; // when the oldest frame arrived that is on its way to the screen
    this.shown_t_recv_ns = null; // the same, of what has been fetched and is not yet painted
  }

  get key() {
    return `${this.level}/${this.row}/${this.col}`;
  }
}

export class Tiles {
  /** @param onArrival called without arguments when a tile has new pixels */
  constructor(api, onArrival) {
    this.api = api;
    this.onArrival = onArrival;
    this.held = new Map();
    this.unreadable = new Map(); // key of a tile that is held → why the server cannot give it
    this.waiting = [];
    this.nFetching = 0;
    this.nFetched = 0;
    this.generation = 0;
    this.aborter = new AbortController();
  }

  /** Begin with a run; what was held is forgotten. */
  open(info) {
    this.aborter.abort();
    this.aborter = new AbortController();
    this.generation++;
    this.held.clear();
    this.unreadable.clear();
    this.waiting.length = 0;
    this.nFetching = 0;
    this.info = info; // { run, epoch, rev, dtype, tileSize }
    this.bounds = new Map(); // 't,c,z' → level-0 rectangle outside of which there are no tiles
    this.view = { t: 0, z: 0, channels: [0] };
  }

  /** Which plane and channels are shown from now on. */
  setView(view) {
    this.view = view;
    this.unreadable.clear();
    for (const tile of this.held.values()) tile.retryAt = 0;
  }

  setBounds(t, c, z, rect) {
    this.bounds.set(`${t},${c},${z}`, rect);
  }

  /** Another history: everything is asked for again, and shown until it is there. */
  setEpoch(epoch, rev) {
    this.info = { ...this.info, epoch, rev };
    for (const tile of this.held.values()) this.#soil(tile);
  }

  #soil(tile) {
    for (const c of tile.layers.keys()) tile.dirty.add(c);
    tile.retryAt = 0;
  }

  /** Tiles [t, c, z, level, row, col] were written in a commit. */
  changed(tiles, rev, t_recv_ns = null) {
    this.info.rev = Math.max(this.info.rev, rev);
    const { tileSize } = this.info;
    for (const [t, c, z, level, row, col] of tiles) {
      const plane = `${t},${c},${z}`;
      if (level === 0) this.bounds.set(plane, union([this.bounds.get(plane), tileRect(0, row, col, tileSize)]));
      const tile = this.held.get(`${level}/${row}/${col}`);
      if (!tile || t !== this.view.t || z !== this.view.z) continue;
      tile.dirty.add(c);
      tile.retryAt = 0;
      if (t_recv_ns !== null && this.view.channels.includes(c)) {
        tile.t_recv_ns = Math.min(tile.t_recv_ns ?? Infinity, t_recv_ns);
      }
    }
  }

  /** The tile that the viewer wants, once it is here; one that does not exist is empty. */
  async acquire(level, row, col, isWanted = () => true) {
    const key = `${level}/${row}/${col}`;
    let tile = this.held.get(key);
    if (!tile) {
      tile = new Tile(level, row, col);
      this.held.set(key, tile);
    }
    await this.refresh(tile, { first: true, isWanted });
    return tile;
  }

  drop(tile) {
    if (this.held.get(tile.key) !== tile) return;
    this.held.delete(tile.key);
    this.unreadable.delete(tile.key);
  }

  /** The tile is on screen: see to it that it is up to date. */
  touch(tile) {
    if (this.held.get(tile.key) !== tile) this.held.set(tile.key, tile);
    if (!tile.busy && this.#missing(tile).length && performance.now() >= tile.retryAt) this.refresh(tile);
  }

  /** Channels of a tile that have to be asked for. */
  #missing(tile) {
    const { t, z, channels } = this.view;
    return channels.filter((c) => {
      const layer = tile.layers.get(c);
      return !layer || layer.t !== t || layer.z !== z || tile.dirty.has(c);
    });
  }

  /** Whether a tile holds all that is to be shown of it, up to date. */
  isCurrent(tile) {
    return !tile.busy && this.#missing(tile).length === 0;
  }

  refresh(tile, { first = false, isWanted = () => true } = {}) {
    tile.busy ??= this.#refresh(tile, first, isWanted).finally(() => {
      tile.busy = null;
    });
    return tile.busy;
  }

  async #refresh(tile, first, isWanted) {
    const generation = this.generation;
    const { t, z } = this.view;
    const missing = this.#missing(tile);
    if (!missing.length) return;
    for (const c of missing) tile.dirty.delete(c);
    const { t_recv_ns } = tile;
    tile.t_recv_ns = null;
    const answers = await Promise.allSettled(missing.map((c) => this.#fetch(tile, t, c, z, !first, isWanted)));
    if (generation !== this.generation) return;
    const problems = answers.flatMap(({ reason }) => (reason ? [reason] : []));
    if (problems.some(({ name }) => name === 'AbortError')) return;
    // All channels of a tile are replaced together, but for those that the server has and cannot read.
    const unreadable = problems.find(({ status }) => status >= 500);
    if (unreadable) this.unreadable.set(tile.key, unreadable.message);
    else this.unreadable.delete(tile.key);
    missing.forEach((c, n) => {
      const { value } = answers[n];
      if (value && (unreadable || !problems.length)) tile.layers.set(c, { ...value, t, z });
      else tile.dirty.add(c);
      const layer = tile.layers.get(c);
      // Nothing rather than the pixels of another plane.
      if (unreadable && layer && (layer.t !== t || layer.z !== z)) tile.layers.delete(c);
    });
    if (!problems.length && t_recv_ns !== null) tile.shown_t_recv_ns = Math.min(tile.shown_t_recv_ns ?? Infinity, t_recv_ns);
    if (problems.length) {
      tile.t_recv_ns = t_recv_ns;
      tile.retryAt = performance.now() + RETRY_MS;
      setTimeout(this.onArrival, RETRY_MS + 1);
    }
    if (unreadable || !problems.length) {
      tile.version++;
      this.onArrival();
    }
  }

  async #fetch(tile, t, c, z, urgent, isWanted) {
    const { run, epoch, rev, dtype, tileSize } = this.info;
    const { level, row, col } = tile;
    const absent = { pixels: null, mask: null, rev: 0 };
    const bounds = this.bounds.get(`${t},${c},${z}`);
    if (!bounds || !overlaps(bounds, tileRect(level, row, col, tileSize))) return absent;
    await this.#turn(urgent);
    const { generation } = this;
    try {
      if (!isWanted()) throw new DOMException('not wanted any more', 'AbortError');
      const path = `runs/${run}/tiles/${epoch}/${t}/${c}/${z}/${level}/${row}/${col}.raw`;
      const answer = await this.api.fetch(path, { query: { mask: 1, rev }, signal: this.aborter.signal });
      const buffer = await answer.arrayBuffer();
      this.nFetched++;
      return { ...viewRaw(buffer, dtype, tileSize), rev: Number(answer.headers.get('X-Tilecast-Rev') ?? rev) };
    } catch (error) {
      if (error.status === 404) return absent;
      throw error;
    } finally {
      if (generation === this.generation) this.#next();
    }
  }

  /** Wait for a connection; what replaces something on screen goes first. */
  #turn(urgent) {
    if (this.nFetching < CONNECTIONS) {
      this.nFetching++;
      return Promise.resolve();
    }
    return new Promise((resolve) => {
      if (urgent) this.waiting.unshift(resolve);
      else this.waiting.push(resolve);
    });
  }

  #next() {
    const resolve = this.waiting.shift();
    if (resolve) resolve();
    else this.nFetching--;
  }

  /** The layers of a tile that are shown now, in the order of the channels. */
  layersOf(tile) {
    const found = [];
    for (const c of this.view.channels) {
      const layer = tile.layers.get(c);
      if (layer?.pixels) found.push({ c, ...layer });
    }
    return found;
  }

  /** The finest tile held, from a level upwards, that shows a level-0 position, or null. */
  find(row, col, level, topLevel) {
    for (let l = level; l <= topLevel; l++) {
      const size = this.info.tileSize * 2 ** l;
      const tile = this.held.get(`${l}/${Math.floor(row / size)}/${Math.floor(col / size)}`);
      if (tile?.version && !this.unreadable.has(tile.key)) return tile;
    }
    return null;
  }
}

function overlaps(a, b) {
  return a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
}
