// Raw pixels to the colours of a tile, through look-up tables. Pure, and the innermost loop of the page.

function indexOf(lut, value) {
  if (lut.index === null) return value;
  const i = (value - lut.index.lo) * lut.index.scale;
  return i <= 0 ? 0 : i >= lut.table.length - 1 ? lut.table.length - 1 : i | 0;
}

/**
 * Paint layers into packed RGBA; several are added up.
 * @param out Uint32Array, changed; uncovered pixels become transparent
 * @param layers [{ pixels: typed array, mask: Uint8Array or null (all covered), lut: of buildLut }]
 */
export function paint(out, layers) {
  if (layers.length === 1) {
    const { pixels, mask, lut } = layers[0];
    const { table } = lut;
    if (lut.index === null && mask === null) {
      for (let i = 0; i < out.length; i++) out[i] = table[pixels[i]];
    } else if (lut.index === null) {
      for (let i = 0; i < out.length; i++) out[i] = mask[i] ? table[pixels[i]] : 0;
    } else {
      for (let i = 0; i < out.length; i++) {
        out[i] = (mask === null || mask[i]) && Number.isFinite(pixels[i]) ? table[indexOf(lut, pixels[i])] : 0;
      }
    }
    return;
  }
  out.fill(0);
  for (const { pixels, mask, lut } of layers) {
    const { table } = lut;
    for (let i = 0; i < out.length; i++) {
      if (mask !== null && !mask[i]) continue;
      if (lut.index !== null && !Number.isFinite(pixels[i])) continue;
      const add = table[indexOf(lut, pixels[i])];
      const old = out[i];
      if (old === 0) {
        out[i] = add;
        continue;
      }
      const r = (old & 255) + (add & 255);
      const g = ((old >> 8) & 255) + ((add >> 8) & 255);
      const b = ((old >> 16) & 255) + ((add >> 16) & 255);
      out[i] = (255 << 24) | ((b > 255 ? 255 : b) << 16) | ((g > 255 ? 255 : g) << 8) | (r > 255 ? 255 : r);
    }
  }
}

/** A typed view of raw little-endian bytes; the mask follows the pixels, one byte each, if there is one. */
export function viewRaw(buffer, dtype, size) {
  const n = size * size;
  const make = { '|u1': Uint8Array, '<u2': Uint16Array, '<f4': Float32Array }[dtype];
  if (!make) throw new Error(`pixels of type ${dtype} are not known here; expected |u1, <u2 or <f4`);
  const nbytes = n * make.BYTES_PER_ELEMENT;
  if (buffer.byteLength !== nbytes && buffer.byteLength !== nbytes + n) {
    throw new Error(`a tile of ${size} × ${size} ${dtype} has ${nbytes} bytes (and a mask ${n} more), got ${buffer.byteLength}`);
  }
  const pixels = new make(buffer, 0, n);
  let mask = buffer.byteLength > nbytes ? new Uint8Array(buffer, nbytes, n) : null;
  if (mask !== null && !mask.includes(0)) mask = null;
  return { pixels, mask };
}
