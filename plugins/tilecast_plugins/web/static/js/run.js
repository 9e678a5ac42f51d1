// What the page knows of a run, from what the server tells of it.

import { pixelOfStage, union } from './geometry.js';

/** The facts that the page works with, from the answer to `runs/{run}`. */
export function runOf(answer) {
  const start = answer.start ?? {};
  const { affine } = answer;
  return {
    run: answer.run,
    name: answer.name ?? '',
    instrument: answer.instrument,
    stream: answer.stream,
    state: answer.state,
    epoch: answer.epoch,
    rev: answer.rev,
    levels: Math.max(1, answer.levels),
    tileSize: answer.tile_size,
    dtype: answer.dtype,
    affine,
    channels: answer.channels,
    nT: answer.n_times,
    nZ: answer.n_slices,
    bboxes: boxes(answer),
    planned: plannedRect(start.extent_um, affine),
    frameShape: answer.frame_shape?.length === 2 ? answer.frame_shape : [512, 512],
    blend: answer.blend,
    created_ns: answer.created_ns,
    nFrames: answer.n_frames,
    nExpected: start.n_expected ?? null,
    nbytes: answer.nbytes,
    report: answer.report ?? null,
  };
}

/** [[t, c, z], [row0, col0, row1, col1]] pairs of what is covered. */
function boxes(answer) {
  return (answer.planes ?? []).map(({ t, c, z, bbox }) => [[t, c, z], rectOf(bbox)]).filter(([, rect]) => rect !== null);
}

function rectOf(rect) {
  return rect && rect[0] < rect[2] && rect[1] < rect[3] ? [...rect] : null;
}

/** What the run says it is going to scan, level-0 pixels, or null. */
function plannedRect(extent_um, affine) {
  if (!extent_um) return null;
  const [[x0, y0], [x1, y1]] = extent_um;
  const corners = [[x0, y0], [x0, y1], [x1, y0], [x1, y1]].map(([x, y]) => pixelOfStage(affine, x, y));
  const rows = corners.map(([row]) => row);
  const cols = corners.map(([, col]) => col);
  return rectOf([Math.min(...rows), Math.min(...cols), Math.max(...rows), Math.max(...cols)]);
}

/** What is covered in any plane, level-0 pixels, or null. */
export const extentOf = (run) => union(run.bboxes.map(([, rect]) => rect));

/** Numbers of frames as ranges, in words: 3, 7–9. */
export function rangesText(ranges, most = 12) {
  const said = ranges.slice(0, most).map(([first, last]) => (first === last ? `${first}` : `${first}–${last}`));
  return said.join(', ') + (ranges.length > most ? ` and ${ranges.length - most} more` : '');
}
