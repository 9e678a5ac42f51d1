// The facts of the run, and its report.

import { $, h } from './dom.js';
import { extentOf, rangesText } from './run.js';
import { axesText, formatLength, pixelSizeUm } from './geometry.js';
import { formatBytes } from './status.js';
import { formatTime } from './runs.js';

const EXPLAINED = {
  missing: 'missing', duplicate: 'sent twice', resent: 'sent again', malformed: 'malformed', late: 'late',
  camera_dropped: 'dropped by the camera', lost_before_start: 'lost before the start',
};

/** [name, value, level] of a report: what is wrong first, nothing that is zero. */
export function reportLines(report) {
  const lines = [];
  // One that was ended early expected what came; what was planned is what a person wants to compare with.
  const expected = Math.max(report.expected ?? 0, report.planned ?? 0) || null;
  lines.push(['Received', expected ? `${report.received} of ${expected} frames` : `${report.received} frames`,
    expected && report.received < expected ? 'warn' : 'good']);
  if (report.n_missing) lines.push(['Missing', `${report.n_missing} ${report.n_missing === 1 ? 'frame' : 'frames'}: ${rangesText(report.missing ?? [])}`, 'bad']);
  if (report.n_unplaced) {
    const why = Object.entries(report.unplaced ?? {}).map(([reason, ranges]) => `${reason}: ${rangesText(ranges)}`);
    lines.push(['No place', `${report.n_unplaced} (${why.join('; ')})`, 'bad']);
  }
  const rejected = Object.entries(report.rejected ?? {}).filter(([, n]) => n);
  if (rejected.length) lines.push(['Refused', rejected.map(([reason, n]) => `${n} ${reason}`).join(', '), 'bad']);
  for (const key of ['duplicate', 'late', 'malformed', 'camera_dropped', 'lost_before_start']) {
    if (report[key]) lines.push([EXPLAINED[key][0].toUpperCase() + EXPLAINED[key].slice(1), String(report[key]), 'warn']);
  }
  const odd = Object.entries(report.by_status ?? {}).filter(([status, n]) => status !== 'good' && n);
  if (odd.length) lines.push(['Quality', odd.map(([status, n]) => `${n} ${status}`).join(', '), 'warn']);
  if (report.joined) {
    const { position_bound_um } = report.joined;
    if (position_bound_um > 0.001) lines.push(['Positions', `within ${formatLength(position_bound_um)}`, '']);
  }
  return lines;
}

export function renderReport(run, { report, final, nFrames, nHoles }) {
  const extent = extentOf(run);
  const [x_um, y_um] = pixelSizeUm(run.affine);
  const facts = [];
  const planned = run.nExpected;
  facts.push(['Frames', planned ? `${nFrames} of ${planned}` : String(nFrames)]);
  if (extent) {
    const [rows, cols] = [extent[2] - extent[0], extent[3] - extent[1]];
    facts.push(['Mosaic', `${formatLength(cols * x_um)} × ${formatLength(rows * y_um)}`]);
    facts.push(['', `${cols.toLocaleString()} × ${rows.toLocaleString()} px`]);
  }
  facts.push(['Pixel', Math.abs(x_um - y_um) < 1e-9 ? formatLength(x_um) : `${formatLength(x_um)} × ${formatLength(y_um)}`]);
  const axes = axesText(run.affine);
  if (axes) facts.push(['Axes', axes, axes.startsWith('drawn') ? 'warn' : '']);
  facts.push(['From', `${run.instrument} / ${run.stream}`]);
  if (run.created_ns) facts.push(['Begun', formatTime(run.created_ns)]);
  if (run.blend) facts.push(['Overlaps', run.blend]);
  if (run.nbytes) facts.push(['On disk', formatBytes(run.nbytes)]);
  const pairs = (rows) =>
    h('dl', { class: 'facts' }, rows.flatMap(([name, value, level]) => [h('dt', {}, name), h('dd', { class: level ?? '' }, value)]));
  const parts = [h('h2', {}, final ? 'Report' : 'Run')];
  if (report) {
    const lines = reportLines(report);
    if (!final) lines.splice(0, 1); // how many were received says nothing before the end
    const how = report.reason && report.reason !== 'done' ? [['Ended', report.reason, 'warn']] : [];
    if (lines.length || how.length) parts.push(pairs([...how, ...lines]));
  } else if (nHoles) parts.push(pairs([['Lacking', `${nHoles} frames`, 'bad']]));
  parts.push(pairs(facts));
  if (report) parts.push(h('details', {}, h('summary', {}, 'Everything'), h('pre', {}, JSON.stringify(report, null, 1))));
  const open = $('report').querySelector('details')?.open;
  $('report').replaceChildren(...parts);
  if (open) $('report').querySelector('details').open = true;
}
