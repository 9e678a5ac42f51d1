// Histograms, and black and white points from them. Pure arithmetic on raw pixels.

export const BINS = 256;

/** The range that a histogram of this type is taken over: [lo, hi]. */
export function typeRange(dtype) {
  if (dtype === '|u1') return [0, 255];
  if (dtype === '<u2') return [0, 65535];
  return [0, 1];
}

/** An empty fine histogram: all values of integers; of floats, 4096 steps between the two ends. */
export function emptyHistogram(dtype, lo, hi) {
  const integer = dtype !== '<f4';
  const n = dtype === '|u1' ? 256 : dtype === '<u2' ? 65536 : 4096;
  const range = integer ? typeRange(dtype) : [lo, hi > lo ? hi : lo + 1];
  return { counts: new Uint32Array(n), lo: range[0], hi: range[1], integer, n: 0 };
}

/**
 * Count the covered pixels of a part of a tile.
 * @param histogram as of emptyHistogram; changed
 * @param pixels typed array, row-major, `size` wide
 * @param mask bytes, 0 where uncovered, or null where all is covered
 * @param part [row0, col0, row1, col1] inside the tile
 * @param step only every so many rows and columns
 */
export function countPixels(histogram, pixels, mask, size, [row0, col0, row1, col1], step = 1) {
  const { counts, lo, hi, integer } = histogram;
  const last = counts.length - 1;
  const scale = counts.length / (hi - lo);
  let n = 0;
  for (let row = row0; row < row1; row += step) {
    for (let i = row * size + col0, end = row * size + col1; i < end; i += step) {
      if (mask && !mask[i]) continue;
      const value = pixels[i];
      if (integer) counts[value]++;
      else {
        if (!Number.isFinite(value)) continue;
        const bin = Math.floor((value - lo) * scale);
        counts[bin < 0 ? 0 : bin > last ? last : bin]++;
      }
      n++;
    }
  }
  histogram.n += n;
}

/** The value below which this share (0 to 1) of the counted pixels lies. */
export function quantile(histogram, share) {
  const { counts, lo, hi, integer, n } = histogram;
  if (!n) return lo;
  const wanted = share * n;
  let sum = 0;
  for (let bin = 0; bin < counts.length; bin++) {
    sum += counts[bin];
    if (sum > wanted || (sum === n && sum >= wanted)) {
      return integer ? bin : lo + ((bin + 0.5) * (hi - lo)) / counts.length;
    }
  }
  return hi;
}

/** Black and white points from the data: all but the darkest and the brightest few pixels. */
export function autoWindow(histogram, dark = 0.002, bright = 0.998) {
  if (!histogram.n) return null;
  const lo = quantile(histogram, dark);
  let hi = quantile(histogram, bright);
  const least = histogram.integer ? 1 : (histogram.hi - histogram.lo) / histogram.counts.length;
  if (hi - lo < least) hi = lo + least;
  return [lo, hi];
}

/** The counts of `bins` equal steps between two values, for drawing. */
export function rebin(histogram, lo, hi, bins = BINS) {
  const out = new Float64Array(bins);
  const { counts } = histogram;
  const width = histogram.integer ? 1 : (histogram.hi - histogram.lo) / counts.length;
  const first = histogram.integer ? 0 : histogram.lo;
  const span = hi - lo;
  if (!(span > 0)) return out;
  const from = Math.max(0, Math.floor((lo - first) / width) - 1);
  const to = Math.min(counts.length, Math.ceil((hi - first) / width) + 1);
  for (let i = from; i < to; i++) {
    if (!counts[i]) continue;
    // A value's pixels are spread over the bins that it spans, so that few values do not look like a comb.
    const a = ((first + i * width - lo) / span) * bins;
    const b = ((first + (i + 1) * width - lo) / span) * bins;
    const size = b - a;
    for (let bin = Math.max(0, Math.floor(a)); bin < Math.min(bins, Math.ceil(b)); bin++) {
      const share = (Math.min(b, bin + 1) - Math.max(a, bin)) / size;
      if (share > 0) out[bin] += counts[i] * share;
    }
  }
  return out;
}

/** Least, largest and mean of numbers, leaving out null and NaN; null for none. */
export function summary(values) {
  let n = 0;
  let sum = 0;
  let min = Infinity;
  let max = -Infinity;
  for (const value of values) {
    if (value === null || !Number.isFinite(value)) continue;
    n++;
    sum += value;
    if (value < min) min = value;
    if (value > max) max = value;
  }
  return n ? { n, min, max, mean: sum / n } : null;
}
