// What is drawn under and over the mosaic: planned area, holes, frames, the stage, marks, the scale bar.
// Each thing is drawn by a function of its own, from the scene it is given; nothing is remembered here.

import { color, fitCanvas } from './dom.js';
import { formatLength, niceLength, pixelOfStage, pixelSizeUm } from './geometry.js';
import { pixelsOf } from './marks.js';

/** From level-0 pixels to CSS pixels of the view, which is so wide and high. */
export function projection(viewRect, width, height) {
  const [row0, col0, row1, col1] = viewRect;
  const scale = width / (col1 - col0);
  const down = height / (row1 - row0);
  return {
    scale,
    down,
    x: (col) => (col - col0) * scale,
    y: (row) => (row - row0) * down,
  };
}

function strokeRect(context, at, [row0, col0, row1, col1]) {
  const x = Math.round(at.x(col0)) + 0.5;
  const y = Math.round(at.y(row0)) + 0.5;
  context.strokeRect(x, y, Math.round(at.x(col1)) + 0.5 - x, Math.round(at.y(row1)) + 0.5 - y);
}

/** Behind the mosaic: where frames are planned or should be, so that what is not covered is seen as such. */
export function drawUnderlay(canvas, { viewRect, planned, covered, show }) {
  const { context, width, height } = fitCanvas(canvas);
  const at = projection(viewRect, width, height);
  const rect = planned ?? covered;
  if (!rect || !show.holes) return;
  const [row0, col0, row1, col1] = rect;
  context.save();
  context.beginPath();
  context.rect(at.x(col0), at.y(row0), at.x(col1) - at.x(col0), at.y(row1) - at.y(row0));
  context.clip();
  context.fillStyle = color('ground');
  context.fill();
  context.strokeStyle = color('hatch');
  context.lineWidth = 1;
  context.beginPath();
  for (let x = -height; x < width; x += 12) {
    context.moveTo(x, height);
    context.lineTo(x + height, 0);
  }
  context.stroke();
  context.restore();
  context.strokeStyle = color('line-strong');
  context.setLineDash([4, 4]);
  if (show.planned) strokeRect(context, at, rect);
}

/** Over the mosaic. `scene`: viewRect, affine, show, frames, holes, lastFrame, stage, marks, draft, profile. */
export function drawOverlay(canvas, scene) {
  const { context, width, height } = fitCanvas(canvas);
  const at = projection(scene.viewRect, width, height);
  const { show } = scene;
  context.lineWidth = 1;
  if (show.frames) drawFrames(context, at, scene.frames, width, height);
  if (show.holes) drawHoles(context, at, scene.holes);
  drawMarks(context, at, scene);
  if (scene.profile) drawProfileLine(context, at, scene.profile);
  if (show.last && scene.lastFrame) drawLastFrame(context, at, scene.lastFrame);
  if (show.stage && scene.stage) drawStage(context, at, scene, width, height);
  drawScaleBar(context, scene, width, height);
}

function drawFrames(context, at, frames, width, height) {
  context.strokeStyle = color('accent');
  context.globalAlpha = 0.45;
  for (const { rect } of frames) {
    if (at.x(rect[3]) < 0 || at.y(rect[2]) < 0 || at.x(rect[1]) > width || at.y(rect[0]) > height) continue;
    strokeRect(context, at, rect);
  }
  context.globalAlpha = 1;
}

function drawHoles(context, at, holes) {
  context.strokeStyle = color('bad');
  context.fillStyle = color('bad');
  context.setLineDash([5, 3]);
  context.font = '12px system-ui, sans-serif';
  context.textBaseline = 'middle';
  context.textAlign = 'center';
  for (const { rect, label } of holes) {
    strokeRect(context, at, rect);
    const w = at.x(rect[3]) - at.x(rect[1]);
    const h = at.y(rect[2]) - at.y(rect[0]);
    context.globalAlpha = 0.1;
    context.fillRect(at.x(rect[1]), at.y(rect[0]), w, h);
    context.globalAlpha = 1;
    if (w > context.measureText(label).width + 8 && h > 16) {
      context.fillText(label, at.x(rect[1]) + w / 2, at.y(rect[0]) + h / 2);
    }
  }
  context.setLineDash([]);
}

function drawLastFrame(context, at, { rect }) {
  context.strokeStyle = color('accent');
  context.lineWidth = 2;
  strokeRect(context, at, rect);
  context.lineWidth = 1;
}

function drawStage(context, at, { stage, affine }, width, height) {
  const [row, col] = pixelOfStage(affine, stage.x_um, stage.y_um);
  const x = at.x(col);
  const y = at.y(row);
  context.strokeStyle = color('mark');
  context.fillStyle = color('mark');
  context.lineWidth = 1.5;
  const margin = 14;
  if (x < margin || y < margin || x > width - margin || y > height - margin) {
    // Out of sight: an arrow at the edge says where it is.
    const angle = Math.atan2(y - height / 2, x - width / 2);
    const px = Math.min(width - margin, Math.max(margin, x));
    const py = Math.min(height - margin, Math.max(margin, y));
    context.save();
    context.translate(px, py);
    context.rotate(angle);
    context.beginPath();
    context.moveTo(10, 0);
    context.lineTo(-5, -6);
    context.lineTo(-5, 6);
    context.fill();
    context.restore();
    context.lineWidth = 1;
    return;
  }
  context.beginPath();
  for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
    context.moveTo(x + dx * 5, y + dy * 5);
    context.lineTo(x + dx * 16, y + dy * 16);
  }
  context.stroke();
  context.lineWidth = 1;
}

function drawMarks(context, at, { marks, affine, draft }) {
  context.strokeStyle = color('mark');
  context.font = '600 12px system-ui, sans-serif';
  context.textBaseline = 'bottom';
  context.textAlign = 'left';
  for (const mark of marks) {
    const corners = pixelsOf(mark, affine);
    if (mark.kind === 'point') {
      const [row, col] = corners[0];
      const x = at.x(col);
      const y = at.y(row);
      context.beginPath();
      context.arc(x, y, 6, 0, 2 * Math.PI);
      context.moveTo(x - 10, y);
      context.lineTo(x + 10, y);
      context.moveTo(x, y - 10);
      context.lineTo(x, y + 10);
      context.stroke();
      label(context, mark.name, x + 10, y - 6);
    } else {
      const [[r0, c0], [r1, c1]] = corners;
      strokeRect(context, at, [Math.min(r0, r1), Math.min(c0, c1), Math.max(r0, r1), Math.max(c0, c1)]);
      label(context, mark.name, at.x(Math.min(c0, c1)) + 3, at.y(Math.min(r0, r1)) - 2);
    }
  }
  if (draft) {
    context.setLineDash([4, 3]);
    strokeRect(context, at, draft);
    context.setLineDash([]);
  }
}

function label(context, text, x, y) {
  context.lineWidth = 3;
  context.strokeStyle = 'rgb(0 0 0 / 0.7)';
  context.strokeText(text, x, y);
  context.lineWidth = 1;
  context.fillStyle = color('mark');
  context.fillText(text, x, y);
  context.strokeStyle = color('mark');
}

function drawProfileLine(context, at, { from, to }) {
  context.beginPath();
  context.moveTo(at.x(from[1]), at.y(from[0]));
  context.lineTo(at.x(to[1]), at.y(to[0]));
  context.lineWidth = 3;
  context.strokeStyle = 'rgb(0 0 0 / 0.6)';
  context.stroke();
  context.lineWidth = 1.5;
  context.strokeStyle = color('mark');
  context.stroke();
  for (const [row, col] of [from, to]) {
    context.beginPath();
    context.arc(at.x(col), at.y(row), 4.5, 0, 2 * Math.PI);
    context.fillStyle = color('mark');
    context.fill();
  }
  context.lineWidth = 1;
}

/** White, but for eyes that are used to the dark. */
const barColor = () => (document.documentElement.dataset.theme === 'night' ? color('text-strong') : '#fff');

/** A bar of a round length, at the lower right. */
export function drawScaleBar(context, { viewRect, affine }, width, height, size = 1) {
  const at = projection(viewRect, width, height);
  const [x_um, y_um] = pixelSizeUm(affine);
  const perUm = at.scale / x_um;
  // Where µm are not as long downwards as to the right, there is a second bar, upright.
  const downUm = at.down / y_um;
  const upright = Math.abs(downUm / perUm - 1) > 0.01;
  const length = niceLength(Math.min(220 * size, width / 4) / perUm);
  if (!length) return;
  const bar = length * perUm;
  const text = formatLength(length);
  context.font = `600 ${13 * size}px system-ui, sans-serif`;
  context.textAlign = 'center';
  context.textBaseline = 'bottom';
  const x = width - 16 * size - bar;
  const y = height - 16 * size;
  const box = Math.max(bar, context.measureText(text).width) + 16 * size;
  context.fillStyle = 'rgb(0 0 0 / 0.55)';
  context.beginPath();
  context.roundRect(x + bar / 2 - box / 2, y - 24 * size, box, 33 * size, 4 * size);
  context.fill();
  context.fillStyle = barColor();
  context.fillRect(x, y, bar, 3 * size);
  context.fillText(text, x + bar / 2, y - 3 * size);
  if (upright) drawUprightBar(context, downUm, width, height, size);
}

/** The same for lengths down the view, above the other one. */
function drawUprightBar(context, perUm, width, height, size) {
  const length = niceLength(Math.min(160 * size, height / 4) / perUm);
  if (!length) return;
  const bar = length * perUm;
  const text = formatLength(length);
  const box = context.measureText(text).width + 24 * size;
  const x = width - 16 * size;
  const bottom = height - 56 * size;
  context.fillStyle = 'rgb(0 0 0 / 0.55)';
  context.beginPath();
  context.roundRect(x - box + 6 * size, bottom - bar - 8 * size, box + 4 * size, bar + 16 * size, 4 * size);
  context.fill();
  context.fillStyle = barColor();
  context.fillRect(x - 3 * size, bottom - bar, 3 * size, bar);
  context.textAlign = 'right';
  context.textBaseline = 'middle';
  context.fillText(text, x - 8 * size, bottom - bar / 2);
}
