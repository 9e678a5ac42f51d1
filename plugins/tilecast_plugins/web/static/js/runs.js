// The list of runs with thumbnails, newest first, and what operators may do with them.

import { $, ask, h, icon, throttle, toast } from './dom.js';

const AGAIN_MS = 5000;

export function formatTime(ns) {
  const date = new Date(ns / 1e6);
  const sameDay = date.toDateString() === new Date().toDateString();
  const time = date.toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' });
  return sameDay ? `today ${time}` : `${date.toLocaleDateString()} ${time}`;
}

export class Runs {
  /** @param onOpen called with a run's id; @param current gives the id of the run that is shown */
  constructor(api, { onOpen, current, onChange }) {
    Object.assign(this, { api, onOpen, current, onChange });
    this.list = [];
    this.element = $('runs');
    this.search = h('input', {
      type: 'search',
      placeholder: 'Find a run',
      'aria-label': 'Find a run',
      oninput: () => this.#render(),
    });
    this.items = h('ol', {});
    this.element.append(h('header', {}, this.search), this.items);
    setInterval(() => {
      if (!this.element.hidden) this.load().catch(() => {});
    }, AGAIN_MS);
  }

  async load() {
    this.list = (await this.api.json('runs')).runs;
    this.#render();
    return this.list;
  }

  /** Something happened to some run: what is on screen should not say otherwise. */
  heard = throttle(300, () => {
    if (!this.element.hidden) this.load().catch(() => {});
  });

  toggle(show = this.element.hidden) {
    this.element.hidden = !show;
    $('runs-button').setAttribute('aria-expanded', String(show));
    if (show) this.load().catch((error) => toast(error.message));
  }

  #render() {
    const wanted = this.search.value.trim().toLowerCase();
    const shown = this.list.filter(({ name = '', run, instrument = '' }) =>
      `${name} ${run} ${instrument}`.toLowerCase().includes(wanted),
    );
    // Items are kept where they are, so that a list that is looked at does not jump or load its pictures again.
    const old = new Map([...this.items.children].map((item) => [item.dataset.run, item]));
    this.items.replaceChildren(
      ...shown.map((run) => {
        const stamp = JSON.stringify([run.name, run.state, run.n_frames, run.rev, run.run === this.current()]);
        const before = old.get(run.run);
        if (before?.dataset.stamp === stamp) return before;
        const item = this.#item(run, before?.querySelector('img'));
        item.dataset.stamp = stamp;
        return item;
      }),
    );
    if (!shown.length) {
      this.items.append(h('p', { class: 'hint' }, wanted ? 'No run is called so.' : 'There are no runs yet.'));
    }
  }

  #item(run, oldPicture) {
    const live = run.state === 'open';
    // A picture that changes is loaded before it is shown.
    const picture = oldPicture ?? h('img', { class: 'thumb', alt: '', loading: 'lazy' });
    if (run.rev && picture.dataset.rev !== String(run.rev)) {
      picture.dataset.rev = run.rev;
      const next = new Image();
      next.onload = () => {
        picture.src = next.src;
      };
      next.src = this.api.url(`runs/${run.run}/thumbnail.png`, { rev: run.rev });
    }
    return h(
      'li',
      {
        'data-run': run.run,
        'aria-current': String(run.run === this.current()),
        tabIndex: 0,
        onclick: () => this.onOpen(run.run),
        onkeydown: (event) => {
          if (event.key === 'Enter') this.onOpen(run.run);
        },
      },
      picture,
      h(
        'div',
        {},
        h('b', { title: run.name }, run.name || run.run.slice(0, 8)),
        h('small', {}, run.created_ns ? formatTime(run.created_ns) : run.run.slice(0, 8)),
        run.error
          ? h('small', { title: run.error }, run.error)
          : h('small', { class: live ? 'live' : '' }, `${live ? 'scanning' : run.state}, ${run.n_frames} frames`),
      ),
      h(
        'button',
        {
          title: 'More',
          'aria-label': `More about ${run.name}`,
          onclick: (event) => {
            event.stopPropagation();
            this.#menu(run, event.currentTarget);
          },
        },
        icon('M8 3.5v.01M8 8v.01M8 12.5v.01'),
      ),
    );
  }

  #menu(run, button) {
    document.querySelector('.menu')?.remove();
    const box = button.getBoundingClientRect();
    const entry = (text, action, props = {}) =>
      h('button', { ...props, onclick: () => { menu.remove(); action(); } }, text);
    const menu = h(
      'div',
      { class: 'menu', role: 'menu' },
      entry('Rename …', () => this.rename(run)),
      entry('Note …', () => this.note(run)),
      entry('End …', () => this.end(run), { disabled: run.state !== 'open' && run.state !== 'idle' }),
      entry('Delete …', () => this.remove(run), { class: 'danger' }),
    );
    menu.style.left = `${Math.max(4, Math.min(box.left, window.innerWidth - 170))}px`;
    menu.style.top = `${Math.min(box.bottom + 2, window.innerHeight - 150)}px`;
    document.body.append(menu);
    const away = (event) => {
      if (menu.contains(event.target)) return;
      menu.remove();
      document.removeEventListener('pointerdown', away, true);
    };
    document.addEventListener('pointerdown', away, true);
    menu.querySelector('button').focus();
  }

  async #order(what, path, options) {
    try {
      await this.api.fetch(path, options);
      toast(what);
    } catch (error) {
      toast(`Not done: ${error.message}`, 8);
      return false;
    }
    await this.load().catch(() => {});
    this.onChange();
    return true;
  }

  async rename(run) {
    const field = h('input', { type: 'text', value: run.name, maxLength: 500, id: 'new-name' });
    const name = await ask({ title: 'Rename the run', agree: 'Rename', body: field, result: () => field.value });
    if (name !== null) await this.#order('Renamed', `runs/${run.run}`, { method: 'PATCH', body: { name } });
  }

  async note(run) {
    const field = h('textarea', { maxLength: 10000, id: 'new-note' });
    const text = await ask({ title: `Note to ${run.name}`, agree: 'Keep', body: field, result: () => field.value });
    if (text) await this.#order('The note is kept with the run', `runs/${run.run}/notes`, { method: 'POST', body: { text } });
  }

  async end(run) {
    const sure = await ask({
      title: `End ${run.name}?`,
      body: h('p', {}, 'No more frames are expected; the run report is written. Frames that still come are counted as late.'),
      agree: 'End the run',
    });
    if (sure) await this.#order('Ended', `runs/${run.run}/end`, { method: 'POST' });
  }

  async remove(run) {
    const sure = await ask({
      title: `Delete ${run.name}?`,
      body: h('p', {}, `Its ${run.n_frames ?? ''} frames and its mosaic are removed from the disk. This cannot be undone.`),
      agree: 'Delete for good',
      danger: true,
    });
    if (sure) await this.#order('Deleted', `runs/${run.run}`, { method: 'DELETE' });
  }
}
