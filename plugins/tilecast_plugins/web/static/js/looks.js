// How the channels look: the one place that holds black and white points, colours and which channels are shown.

const TINTS = ['#ffffff', '#3ddc84', '#ff4fd8', '#35b6ff', '#ffb02e', '#ff5a4f', '#b18cff', '#e8e36a'];
const NAMED = {
  red: '#ff4040', green: '#3ddc84', blue: '#4f8bff', cyan: '#2ad4e8', magenta: '#ff4fd8', yellow: '#f2e24b',
  white: '#ffffff', grey: '#ffffff', gray: '#ffffff',
};

/** '#rrggbb' of whatever a run says of a channel's colour, or null. */
export function channelColor(given, n, count) {
  if (typeof given === 'string') {
    const text = given.trim().toLowerCase();
    if (NAMED[text]) return NAMED[text];
    if (/^#?[0-9a-f]{6}$/.test(text)) return text.startsWith('#') ? text : `#${text}`;
  }
  if (Array.isArray(given) && given.length >= 3) {
    return `#${given.slice(0, 3).map((v) => Math.round(v).toString(16).padStart(2, '0')).join('')}`;
  }
  return count === 1 ? TINTS[0] : TINTS[1 + (n % (TINTS.length - 1))];
}

export class Looks extends EventTarget {
  /** Begin with a run's channels: [{ c, name, color, window }]; their numbers may have gaps. */
  open(channels, dtype) {
    // Until the histogram is counted: what the server says of the data, or what was right for the run before.
    const before = this.dtype === dtype ? (this.list ?? []) : [];
    this.dtype = dtype;
    this.selected = 0;
    this.auto = true; // black and white points follow the data until a person moves them
    const hi = dtype === '|u1' ? 255 : dtype === '<u2' ? 65535 : 1;
    const pointsOf = (c, window) => {
      if (window && !(window[0] === 0 && window[1] === hi)) return { lo: window[0], hi: window[1] };
      const same = before.find((look) => look.c === c);
      return same ? { lo: same.lo, hi: same.hi } : { lo: 0, hi };
    };
    this.list = channels.map(({ c, name, color, window }, n) => ({
      c,
      name: name || `channel ${n}`,
      visible: true,
      ...pointsOf(c, window),
      gamma: 1,
      invert: false,
      map: 'tint',
      color: channelColor(color, n, channels.length),
    }));
    this.#tell();
  }

  #tell() {
    this.dispatchEvent(new Event('change'));
  }

  get visible() {
    return this.list.flatMap((look) => (look.visible ? [look.c] : []));
  }

  /** The look of a channel by its number. */
  of(c) {
    return this.list.find((look) => look.c === c);
  }

  /** Change some of a channel's look. */
  set(n, change) {
    Object.assign(this.list[n], change);
    const look = this.list[n];
    if (!(look.hi > look.lo)) look.hi = look.lo + (this.dtype === '<f4' ? 1e-6 : 1);
    if (!this.list.some(({ visible }) => visible)) look.visible = true; // an empty picture helps nobody
    this.#tell();
  }

  select(n) {
    this.selected = n;
    this.#tell();
  }

  setAuto(auto) {
    this.auto = auto;
    this.#tell();
  }

  asMap() {
    return new Map(this.list.map((look) => [look.c, look]));
  }

  /** For a link: one text. */
  toText() {
    const short = (value) => String(Number(value.toPrecision(6)));
    return this.list
      .map(({ visible, lo, hi, gamma, invert, map, color }) =>
        [visible ? 1 : 0, short(lo), short(hi), short(gamma), invert ? 1 : 0, map, color.slice(1)].join(':'),
      )
      .join(';');
  }

  /** From such a text; what it does not say or says wrongly stays. */
  fromText(text) {
    text.split(';').forEach((one, n) => {
      const [visible, lo, hi, gamma, invert, map, color] = one.split(':');
      if (!this.list[n] || ![lo, hi, gamma].every((value) => Number.isFinite(Number(value)))) return;
      if (!/^[0-9a-f]{6}$/.test(color ?? '') || !(Number(gamma) > 0)) return;
      Object.assign(this.list[n], {
        visible: visible === '1', lo: Number(lo), hi: Number(hi), gamma: Number(gamma), invert: invert === '1', map,
        color: `#${color}`,
      });
    });
    this.#tell();
  }
}
