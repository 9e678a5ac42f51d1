// Where things are: tiles, level-0 pixels and stage micrometres; and how lengths are written.
// Pure arithmetic. Pixels are [row, col] with edges at whole numbers; stage positions are [x_um, y_um]:
//     (x_um, y_um) = affine · (col, row)

/** The stage position of a pixel position. */
export function stageOfPixel(affine, row, col) {
  const [[a, b], [c, d]] = affine;
  return [a * col + b * row, c * col + d * row];
}

/** The pixel position [row, col] of a stage position. */
export function pixelOfStage(affine, x_um, y_um) {
  const [[a, b], [c, d]] = affine;
  const det = a * d - b * c;
  return [(a * y_um - c * x_um) / det, (d * x_um - b * y_um) / det];
}

/** Micrometres of one step along a row (x) and along a column (y). */
export function pixelSizeUm(affine) {
  const [[a, b], [c, d]] = affine;
  return [Math.hypot(a, c), Math.hypot(b, d)];
}

const MOST_ASPECT = 16;

/** How tall a pixel is drawn, in its own widths, so that µm are as long in both directions; 1 beyond what helps. */
export function aspectOf(affine) {
  const [x_um, y_um] = pixelSizeUm(affine);
  const aspect = y_um / x_um;
  return aspect >= 1 / MOST_ASPECT && aspect <= MOST_ASPECT ? aspect : 1;
}

/**
 * What the picture cannot show of how the camera lies on the stage, in words, or ''. Columns run to the right and rows
 * downwards on screen, whatever their directions on the stage; lengths along both are right.
 */
export function axesText(affine) {
  const [[a, b], [c, d]] = affine;
  const [x_um, y_um] = pixelSizeUm(affine);
  const degrees = (angle) => (angle * 180) / Math.PI;
  const said = [];
  if (aspectOf(affine) === 1 && Math.abs(y_um / x_um - 1) > 1e-3) said.push('drawn with square pixels');
  // What is left of a right angle between the two axes; for the lengths of lines that run aslant.
  const shear = degrees(Math.asin(Math.max(-1, Math.min(1, (a * b + c * d) / (x_um * y_um)))));
  if (Math.abs(shear) > 0.05) said.push(`drawn without their shear of ${shear.toFixed(1)}°`);
  const turned = degrees(Math.atan2(c, a));
  if (Math.abs(turned) > 0.05) said.push(`${turned.toFixed(1)}° to stage x`);
  return said.join(', ');
}

/** Length in µm of the straight line between two pixel positions. */
export function lengthUm(affine, [row0, col0], [row1, col1]) {
  const [x0, y0] = stageOfPixel(affine, row0, col0);
  const [x1, y1] = stageOfPixel(affine, row1, col1);
  return Math.hypot(x1 - x0, y1 - y0);
}

/** A round length (1, 2 or 5 times a power of ten) that is at most `max`. */
export function niceLength(max) {
  if (!(max > 0) || !Number.isFinite(max)) return 0;
  const power = 10 ** Math.floor(Math.log10(max) + 1e-12);
  for (const step of [5, 2, 1]) if (step * power <= max * (1 + 1e-12)) return step * power;
  return power;
}

/** A length with its unit: 20 µm, 1.5 mm, 250 nm. */
export function formatLength(um) {
  const trim = (value) => String(Number(value.toPrecision(3)));
  if (Math.abs(um) >= 1000) return `${trim(um / 1000)} mm`;
  if (Math.abs(um) >= 1 || um === 0) return `${trim(um)} µm`;
  return `${trim(um * 1000)} nm`;
}

/** The tile at a level that holds a level-0 pixel position: {row, col} of the tile, and the pixel inside it. */
export function tileAt(row, col, level, tileSize) {
  const scale = 2 ** level;
  const r = Math.floor(row / scale);
  const c = Math.floor(col / scale);
  const tileRow = Math.floor(r / tileSize);
  const tileCol = Math.floor(c / tileSize);
  return { row: tileRow, col: tileCol, inRow: r - tileRow * tileSize, inCol: c - tileCol * tileSize };
}

/** The level-0 rectangle [row0, col0, row1, col1] of a tile, half-open. */
export function tileRect(level, row, col, tileSize) {
  const size = tileSize * 2 ** level;
  return [row * size, col * size, (row + 1) * size, (col + 1) * size];
}

/** The rectangle that two rectangles share, or null. */
export function intersect(a, b) {
  const rect = [Math.max(a[0], b[0]), Math.max(a[1], b[1]), Math.min(a[2], b[2]), Math.min(a[3], b[3])];
  return rect[0] < rect[2] && rect[1] < rect[3] ? rect : null;
}

/** The smallest rectangle around all of these, or null for none. */
export function union(rects) {
  let all = null;
  for (const r of rects) {
    if (!r || r[0] >= r[2] || r[1] >= r[3]) continue;
    all = all
      ? [Math.min(all[0], r[0]), Math.min(all[1], r[1]), Math.max(all[2], r[2]), Math.max(all[3], r[3])]
      : [...r];
  }
  return all;
}

/** A rectangle given by any two of its corners. */
export function rectOf([row0, col0], [row1, col1]) {
  return [Math.min(row0, row1), Math.min(col0, col1), Math.max(row0, row1), Math.max(col0, col1)];
}
