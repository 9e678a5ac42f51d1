// The strip at the bottom: how the daemon does, and how long a frame takes to reach the screen.

import { $, h } from './dom.js';

const ASK_MS = 1000;
const RECENT = 200;
const SOON_S = 24 * 3600; // a disk that is full by then is told of
const URGENT_S = 3600;

export function formatBytes(n) {
  const units = ['B', 'kB', 'MB', 'GB', 'TB', 'PB'];
  let k = 0;
  let value = n;
  while (value >= 1000 && k < units.length - 1) {
    value /= 1000;
    k++;
  }
  return `${value >= 100 || k === 0 ? Math.round(value) : value.toPrecision(2)} ${units[k]}`;
}

/** The value below which this share of numbers lies. */
export function percentile(values, share) {
  if (!values.length) return null;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)];
}

export class Status {
  constructor(api) {
    this.api = api;
    this.updates = []; // ms from a frame's arrival to its picture on screen, newest last
    this.daemon = null;
    this.error = null;
    setInterval(() => {
      if (!document.hidden) this.#ask();
    }, ASK_MS);
    this.#ask();
  }

  /** A frame that arrived then (ns, UTC) has just been painted. */
  painted(t_recv_ns) {
    const ms = performance.timeOrigin + performance.now() - t_recv_ns / 1e6;
    this.updates.push(ms);
    if (this.updates.length > RECENT) this.updates.shift();
  }

  async #ask() {
    if (this.asking) return;
    this.asking = true;
    try {
      const { daemon, error } = await this.api.json('status');
      this.daemon = daemon;
      this.error = error;
    } catch (error) {
      this.daemon = null;
      this.error = error.message;
    }
    this.asking = false;
    this.render();
  }

  render() {
    const { daemon } = this;
    if (!daemon) {
      $('strip').replaceChildren(item('Daemon', 'not there', 'warn', this.error ?? ''));
      return;
    }
    const rates = daemon.rates ?? {};
    const latency = daemon.latency_ms ?? {};
    const items = [
      item('Rate', `${(rates.images_per_s ?? 0).toFixed(1)} /s`, '', `${formatBytes(rates.image_bytes_per_s ?? 0)}/s`),
    ];
    // Clocks of two machines may differ; then only the daemon's own figure means anything.
    const p99 = percentile(this.updates, 0.99);
    const sensible = p99 !== null && Math.min(...this.updates) >= 0 && p99 < 60000;
    if (sensible) {
      const text = `${Math.round(percentile(this.updates, 0.5))} ms, p99 ${Math.round(p99)}`;
      items.push(item('To screen', text, p99 > 1000 ? 'warn' : '', 'From the arrival of a frame until it is on this screen'));
    } else if (latency.n) {
      items.push(item('Latency', `${Math.round(latency.p50)} ms, p99 ${Math.round(latency.p99)}`, '', 'Frame arrived → committed'));
    }
    const queues = Object.entries(daemon.queues ?? {});
    const fullest = Math.max(0, ...queues.map(([, q]) => (q.max_bytes ? q.nbytes / q.max_bytes : 0)));
    const depth = queues.reduce((sum, [, q]) => sum + q.depth, 0);
    items.push(
      item(
        'Queues',
        fullest > 0.005 ? `${depth} (${Math.round(fullest * 100)} % full)` : String(depth),
        fullest > 0.8 ? 'bad' : fullest > 0.4 ? 'warn' : '',
        queues.map(([name, q]) => `${name}: ${q.depth} waiting, ${formatBytes(q.nbytes)} of ${formatBytes(q.max_bytes)}`).join('\n'),
      ),
    );
    const disk = daemon.disk ?? {};
    const room = typeof disk === 'string' ? disk : disk.room;
    const free = daemon.free_bytes ?? disk.free_bytes ?? daemon.store?.free_bytes;
    const level = { warn: 'warn', stop: 'bad', full: 'bad' }[room] ?? '';
    // Only of what may happen while somebody can still do something about it; the rest is in the tooltip.
    const soon = daemon.forecast && (daemon.full_in_s ?? Infinity) < SOON_S;
    items.push(
      item(
        'Disk',
        [free === undefined ? '–' : `${formatBytes(free)} free`, soon ? daemon.forecast : ''].filter(Boolean).join(', '),
        level || (soon ? (daemon.full_in_s < URGENT_S ? 'bad' : 'warn') : ''),
        [daemon.forecast ?? '', ...(daemon.problems ?? [])].filter(Boolean).join('\n'),
      ),
    );
    const problems = daemon.problems ?? [];
    items.push(item('Daemon', daemon.state ?? '–', daemon.ready === false ? 'warn' : problems.length ? 'warn' : '', problems.join('\n')));
    $('strip').replaceChildren(...items);
  }
}

function item(name, value, level = '', title = '') {
  return h('span', { class: level, title, 'data-item': name }, h('i', {}, name), value);
}
