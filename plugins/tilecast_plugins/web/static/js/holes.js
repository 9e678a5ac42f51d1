// Frames that are missing or have no place, and where they would lie, judged by their neighbours. Pure arithmetic.

/** Numbers of ranges [[first, last], …], at most so many. */
export function numbersOf(ranges, most = 2000) {
  const found = [];
  for (const [first, last] of ranges) {
    for (let n = first; n <= last; n++) {
      if (found.length >= most) return found;
      found.push(n);
    }
  }
  return found;
}

/**
 * Where frames without a place would lie: between the nearest frames before and after them, as far along as their
 * number is. At the ends there is only one neighbour, and nothing is said.
 * @param placed Map of frame → { rect, plane }
 * @param wanted [{ frame, reason }]
 */
export function estimateHoles(placed, wanted) {
  const frames = [...placed.keys()].sort((a, b) => a - b);
  if (!frames.length) return [];
  const holes = [];
  for (const { frame, reason } of wanted) {
    let low = 0;
    let high = frames.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (frames[middle] < frame) low = middle + 1;
      else high = middle;
    }
    if (low === 0 || low === frames.length) continue;
    const before = placed.get(frames[low - 1]);
    const after = placed.get(frames[low]);
    if (String(before.plane) !== String(after.plane)) continue;
    const share = (frame - frames[low - 1]) / (frames[low] - frames[low - 1]);
    const row = before.rect[0] + (after.rect[0] - before.rect[0]) * share;
    const col = before.rect[1] + (after.rect[1] - before.rect[1]) * share;
    const [height, width] = [before.rect[2] - before.rect[0], before.rect[3] - before.rect[1]];
    holes.push({ frame, rect: [row, col, row + height, col + width], plane: before.plane, label: `${frame} ${reason}` });
  }
  return holes;
}
