// The keyboard. The table is also what the help shows.

import { ask, h } from './dom.js';

/** Install shortcuts: [[keys, what, action], …]; they do nothing while a person types. */
export function installKeys(shortcuts) {
  const table = new Map(shortcuts.flatMap(([keys, , action]) => keys.map((key) => [key.toLowerCase(), action])));
  window.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { target } = event;
    const typing = target.matches?.('input:not([type=checkbox]):not([type=range]):not([type=color]), textarea, select');
    if (event.key === 'Escape' && typing) target.blur();
    if (typing || document.querySelector('dialog[open]')) return;
    if (target.matches?.('input[type=range]') && event.key.startsWith('Arrow')) return;
    if (target.matches?.('button') && (event.key === 'Enter' || event.key === ' ')) return;
    const action = table.get(event.key.toLowerCase());
    if (!action) return;
    event.preventDefault();
    action(event);
  });
}

const WORDS = { arrowleft: '←', arrowright: '→', arrowup: '↑', arrowdown: '↓', escape: 'Esc', ' ': 'Space' };

export function showKeys(shortcuts) {
  const name = (key) => WORDS[key.toLowerCase()] ?? (key.length === 1 ? key.toUpperCase() : key);
  const entries = shortcuts
    .filter(([, what]) => what)
    .flatMap(([keys, what]) => [
      h('span', {}, keys.slice(0, 4).flatMap((key) => [h('kbd', {}, name(key)), ' '])),
      h('span', {}, what),
    ]);
  return ask({ title: 'Keys', agree: '', body: h('div', { class: 'keys' }, entries) });
}
