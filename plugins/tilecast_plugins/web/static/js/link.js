// A link that reproduces the view: everything that decides what is seen, in the part of the address after '#'.

/** { run, row, col, scale, t, z, looks, auto, follow } as text. */
export function toHash({ run, row, col, scale, t, z, looks, auto, follow }) {
  const number = (value, digits) => String(Number(value.toFixed(digits)));
  const parts = {
    run,
    at: `${number(row, 1)},${number(col, 1)}`,
    s: String(Number(scale.toPrecision(5))),
    ...(t ? { t } : {}),
    ...(z ? { z } : {}),
    c: looks,
    ...(auto ? { auto: 1 } : {}),
    ...(follow ? { follow: 1 } : {}),
  };
  return `#${Object.entries(parts).map(([key, value]) => `${key}=${encodeURIComponent(value)}`).join('&')}`;
}

/** The same back; what is missing or nonsense is undefined. */
export function fromHash(hash) {
  const query = new URLSearchParams(hash.replace(/^#/, ''));
  const number = (key) => {
    const value = query.has(key) ? Number(query.get(key)) : NaN;
    return Number.isFinite(value) ? value : undefined;
  };
  const at = (query.get('at') ?? '').split(',').map(Number);
  const placed = at.length === 2 && at.every(Number.isFinite) && number('s') > 0;
  const run = query.get('run') ?? '';
  return {
    run: /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(run) ? run : undefined,
    row: placed ? at[0] : undefined,
    col: placed ? at[1] : undefined,
    scale: placed ? number('s') : undefined,
    t: Math.max(0, Math.floor(number('t') ?? 0)),
    z: Math.max(0, Math.floor(number('z') ?? 0)),
    looks: query.get('c') ?? undefined,
    auto: query.get('auto') === '1',
    follow: query.get('follow') === '1',
  };
}
