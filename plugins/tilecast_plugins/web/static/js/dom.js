// Small helpers for the page's elements.

/** An element: h('button', { class: 'small', onclick }, 'Save'). Properties that start with on are listeners. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith('on')) element.addEventListener(key.slice(2), value);
    else if (key in element && key !== 'list') {
      if (key === 'hidden' || typeof element[key] !== 'object') element[key] = value;
      else element.setAttribute(key, value);
    } else element.setAttribute(key === 'class' ? 'class' : key, value === true ? '' : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export const $ = (id) => document.getElementById(id);

/** A line drawing of 16 × 16 units. */
export function icon(path) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('viewBox', '0 0 16 16');
  svg.setAttribute('aria-hidden', 'true');
  const line = document.createElementNS('http://www.w3.org/2000/svg', 'path');
  line.setAttribute('d', path);
  svg.append(line);
  return svg;
}

/** Say something for some seconds. */
export function toast(text, seconds = 4) {
  const element = $('toast');
  element.textContent = text;
  element.hidden = false;
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => {
    element.hidden = true;
  }, seconds * 1000);
}

/** Ask in a dialog; gives what `result` gives when the person agrees, else null. */
export function ask({ title, body, agree = 'OK', danger = false, result = () => true }) {
  const dialog = $('dialog');
  return new Promise((resolve) => {
    const done = (value) => {
      dialog.close();
      resolve(value);
    };
    const form = h(
      'form',
      {
        method: 'dialog',
        onsubmit: (event) => {
          event.preventDefault();
          done(result());
        },
      },
      h('h2', {}, title),
      body,
      h(
        'div',
        { class: 'buttons' },
        agree ? h('button', { type: 'button', onclick: () => done(null) }, 'Cancel') : null,
        h('button', { type: 'submit', class: danger ? 'danger' : '' }, agree || 'Close'),
      ),
    );
    dialog.replaceChildren(form);
    dialog.oncancel = () => resolve(null);
    dialog.showModal();
  });
}

/** Offer text or a blob as a file to save. */
export function download(name, content, type = 'application/json') {
  const blob = content instanceof Blob ? content : new Blob([content], { type });
  const link = h('a', { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast('Copied');
  } catch {
    // Without the clipboard (plain HTTP from another machine) a person can still copy by hand.
    const field = h('textarea', { readOnly: true });
    field.value = text;
    await ask({ title: 'Copy this', body: field, agree: '' });
  }
}

/** Size a canvas to its place on screen, in device pixels; gives its context, scaled to CSS pixels, and the size. */
export function fitCanvas(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  const w = Math.round(width * ratio);
  const hh = Math.round(height * ratio);
  if (canvas.width !== w || canvas.height !== hh) {
    canvas.width = w;
    canvas.height = hh;
  }
  const context = canvas.getContext('2d');
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

const colors = new Map();

/** A colour of the theme. */
export function color(name) {
  const key = `${document.documentElement.dataset.theme} ${name}`;
  if (!colors.has(key)) colors.set(key, getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim());
  return colors.get(key);
}

/** At most one call in so many milliseconds; the last one is never lost. */
export function throttle(ms, call) {
  let timer = null;
  let last = -Infinity;
  return (...args) => {
    clearTimeout(timer);
    const wait = last + ms - performance.now();
    const run = () => {
      last = performance.now();
      call(...args);
    };
    if (wait <= 0) run();
    else timer = setTimeout(run, wait);
  };
}
