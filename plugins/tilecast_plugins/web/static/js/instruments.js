// All instruments side by side: what each does, its newest run, and a picture of it that grows with the run. What is
// known of an instrument that has fallen silent stays on screen, and is marked as old.

import { Api } from './api.js';
import { $, h } from './dom.js';
import { formatBytes } from './status.js';

const AGAIN_MS = 1000;

const LEVELS = { ready: 'good', silent: 'bad', failed: 'bad', files: '' };

function formatAge(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

function stateText({ state, heard_s }) {
  if (state === 'files') return 'files only';
  if (state !== 'silent') return state;
  return heard_s === null ? 'not heard of' : `silent for ${formatAge(heard_s)}`;
}

function runText(run) {
  if (!run) return 'no runs yet';
  return `${run.state === 'open' ? 'scanning' : run.state}, ${run.n_frames} frames`;
}

/** One instrument on screen. */
export class Card {
  constructor(name, path) {
    this.picture = h('img', { alt: '' });
    this.badge = h('span', { class: 'badge' });
    this.run = h('b');
    this.state = h('small');
    this.more = h('small', { class: 'weak' });
    this.element = h(
      'li',
      { 'data-name': name },
      h(
        'a',
        { href: path },
        h('header', {}, h('h2', {}, name), h('span', { class: 'grow' }), this.badge),
        h('div', { class: 'frame' }, this.picture),
        h('div', { class: 'words' }, this.run, this.state, this.more),
      ),
    );
  }

  show(told) {
    this.element.dataset.state = told.state;
    this.badge.dataset.level = LEVELS[told.state] ?? 'warn';
    this.badge.textContent = stateText(told);
    this.run.textContent = told.run?.name || told.run?.run.slice(0, 8) || '';
    this.state.textContent = runText(told.run);
    this.state.className = told.run?.state === 'open' && told.state === 'ready' ? 'live' : '';
    const free = told.free_bytes === null ? '' : `${formatBytes(told.free_bytes)} free`;
    this.more.textContent = told.error ?? free;
    this.more.title = told.error ?? '';
    this.#paint(told.run);
  }

  #paint(run) {
    const wanted = run?.rev ? run.thumbnail : '';
    if (wanted === this.wanted) return;
    this.wanted = wanted;
    if (!wanted) {
      this.picture.removeAttribute('src');
      return;
    }
    // The old picture stays until the new one is here; one that does not come is asked for again with the next rev.
    const next = new Image();
    next.onload = () => {
      if (this.wanted === wanted) this.picture.src = next.src;
    };
    next.onerror = () => {
      if (this.wanted === wanted) this.wanted = undefined;
    };
    next.src = new URL(wanted, document.baseURI);
  }
}

export class Instruments {
  constructor(api, list, badge) {
    Object.assign(this, { api, list, badge });
    this.cards = new Map();
  }

  async load() {
    try {
      const { instruments } = await this.api.json('instruments');
      for (const told of instruments) {
        if (!this.cards.has(told.name)) {
          const card = new Card(told.name, told.path);
          this.cards.set(told.name, card);
          this.list.append(card.element);
        }
        this.cards.get(told.name).show(told);
      }
      this.#say('live', 'good');
    } catch (error) {
      this.#say(error.message, 'bad');
    }
  }

  #say(text, level) {
    this.badge.textContent = text;
    this.badge.dataset.level = level;
  }

  /** Ask again and again, one question at a time, while somebody can see it. */
  async watch() {
    for (;;) {
      if (!document.hidden) await this.load();
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
  }
}

document.documentElement.dataset.theme = localStorage.getItem('tilecast.theme') ?? 'dark';
new Instruments(new Api(), $('instruments'), $('live')).watch();
