// The view as a PNG: what is on screen, with marks, line and scale bar, without the page around it.

import { drawOverlay } from './overlay.js';

/** A PNG of the view; `scene` as for drawOverlay, `canvas` the one with the mosaic. */
export async function viewAsPng(canvas, scene) {
  const out = document.createElement('canvas');
  out.width = canvas.width;
  out.height = canvas.height;
  const context = out.getContext('2d');
  context.fillStyle = '#000';
  context.fillRect(0, 0, out.width, out.height);
  context.drawImage(canvas, 0, 0);
  const over = document.createElement('canvas');
  over.style.cssText = 'position:fixed;visibility:hidden;pointer-events:none;left:0;top:0';
  over.style.width = `${canvas.clientWidth}px`;
  over.style.height = `${canvas.clientHeight}px`;
  document.body.append(over);
  drawOverlay(over, scene);
  context.drawImage(over, 0, 0, out.width, out.height);
  over.remove();
  return new Promise((resolve) => {
    out.toBlob(resolve, 'image/png');
  });
}
