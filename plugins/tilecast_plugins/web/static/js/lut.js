// Look-up tables: from a raw pixel to a colour, by black and white points, gamma, inversion and a colour map.
// Pure arithmetic. A look is { lo, hi, gamma, invert, map, color }; `map` is 'tint' (black to `color`) or a name below.

// 17 colours each, evenly spaced, interpolated in between.
const ANCHORS = {
  viridis: '44015448186a472d7b4240863b528b33638d2c728e26828e21918c1fa08828ae803fbc735ec96284d44baddc30d8e219fde725',
  magma: '0000040a08221d114736106b51127c6a1c818326819c2e7fb73779d0416fe75263f56b5cfc8961fea772fec488fde2a3fcfdbf',
  inferno: '0000040b0724210c4a3d096557106e71196e8a226aa32c61bc3754d24644e45a31f1731df98e09fcac11f9cb35f2ea69fcffa4',
  turbo: '30123b4040a2466be34294ff28bceb18ddc232f2986dfe62a4fc3ccdec34eecf3afdac34fb7e21eb500ed02f05a916017a0403',
  hot: '0b00003500005f0000890000b30000dd0000ff0800ff3200ff5c00ff8600ffb000ffda00ffff07ffff46ffff85ffffc4ffffff',
};
const FLOAT_STEPS = 4096;

/** Names of the colour maps, for a menu. */
export const MAPS = ['tint', ...Object.keys(ANCHORS), 'limits'];

/** '#rrggbb' as [r, g, b]. */
export function parseColor(color) {
  const value = parseInt(color.slice(1), 16);
  return [(value >> 16) & 255, (value >> 8) & 255, value & 255];
}

/** A colour map as 256 × [r, g, b]. */
export function mapColors(map, color) {
  const out = new Uint8ClampedArray(256 * 3);
  const tint = parseColor(color);
  const anchors = ANCHORS[map];
  for (let i = 0; i < 256; i++) {
    for (let k = 0; k < 3; k++) {
      if (anchors) {
        const at = (i / 255) * 16;
        const n = Math.min(15, Math.floor(at));
        const a = parseInt(anchors.substr((n * 3 + k) * 2, 2), 16);
        const b = parseInt(anchors.substr((n * 3 + k) * 2 + 6, 2), 16);
        out[i * 3 + k] = a + (b - a) * (at - n);
      } else {
        out[i * 3 + k] = (i * tint[k]) / 255;
      }
    }
  }
  if (map === 'limits') {
    // Grey, with black in blue and white in red: what is cut off can be seen.
    for (let i = 0; i < 256; i++) out.fill(i, i * 3, i * 3 + 3);
    out.set([40, 90, 255], 0);
    out.set([255, 40, 40], 255 * 3);
  }
  return out;
}

/** How bright (0 to 1) a value is shown: between the points, to the power 1/gamma, perhaps inverted. */
export function toneOf(value, { lo, hi, gamma, invert }) {
  let t = hi > lo ? (value - lo) / (hi - lo) : value >= hi ? 1 : 0;
  t = t <= 0 ? 0 : t >= 1 ? 1 : Math.pow(t, 1 / gamma);
  return invert ? 1 - t : t;
}

/**
 * The table of a look for a type of pixels.
 * @returns { table: Uint32Array of packed RGBA (little-endian), index: null where pixels are the index themselves,
 *   else { lo, scale } for floats }
 */
export function buildLut(dtype, look) {
  const colors = mapColors(look.map, look.color);
  const packed = new Uint32Array(256);
  for (let i = 0; i < 256; i++) {
    packed[i] = (255 << 24) | (colors[i * 3 + 2] << 16) | (colors[i * 3 + 1] << 8) | colors[i * 3];
  }
  if (dtype === '<f4') {
    const table = new Uint32Array(FLOAT_STEPS);
    const unit = { ...look, lo: 0, hi: FLOAT_STEPS - 1 };
    for (let i = 0; i < FLOAT_STEPS; i++) table[i] = packed[Math.round(toneOf(i, unit) * 255)];
    const span = look.hi > look.lo ? look.hi - look.lo : 1e-30;
    return { table, index: { lo: look.lo, scale: (FLOAT_STEPS - 1) / span } };
  }
  const n = dtype === '|u1' ? 256 : 65536;
  const table = new Uint32Array(n);
  const first = Math.min(n, Math.max(0, Math.ceil(look.lo)));
  const last = Math.min(n, Math.max(first, Math.floor(look.hi)));
  table.fill(packed[Math.round(toneOf(look.lo - 1, look) * 255)], 0, first);
  for (let i = first; i < last; i++) table[i] = packed[Math.round(toneOf(i, look) * 255)];
  if (last < n) {
    table[last] = packed[Math.round(toneOf(last, look) * 255)];
    table.fill(packed[look.invert ? 0 : 255], last + 1);
  }
  return { table, index: null };
}
