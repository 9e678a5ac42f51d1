// The mosaic on OpenSeadragon: a tile source over signed tiles, and a drawer that paints raw pixels through look-up
// tables. OpenSeadragon decides which tiles are needed and moves the view; the pixels stay with `Tiles`, so that a tile
// that changed is replaced in place, and black and white points act without fetching anything.
//
// In the viewport's coordinates one unit is the width of a level-0 pixel, and (0, 0) is where the stage is at (0, 0). A
// pixel is as many units tall as it is taller than wide on the stage (`aspect`), so that µm are as long in both directions.
// Everything outside of this module counts pixels.

import { aspectOf } from './geometry.js';
import { buildLut } from './lut.js';
import { paint } from './paint.js';

const OSD = globalThis.OpenSeadragon;
const DATA = 'tilecastTile';
// Places lie within ±2^30 pixels; the source spans a little more than the tiles that can hold them.
const HALF_TILES_LOG2 = 23;

/** A tile source over all tiles that there may ever be; the levels that exist are set while the run grows. */
function makeSource(tiles, tileSize, aspect) {
  const width = tileSize * 2 ** (HALF_TILES_LOG2 + 1);
  const source = new OSD.TileSource({
    width,
    height: width * aspect,
    tileWidth: tileSize,
    tileHeight: tileSize * aspect,
    tileOverlap: 0,
    minLevel: HALF_TILES_LOG2 + 1,
    maxLevel: Math.ceil(Math.log2(width)),
    ready: true,
  });
  const finest = source.maxLevel;
  const half = (level) => 2 ** (HALF_TILES_LOG2 - level);
  Object.assign(source, {
    topLevel: 0,
    half: width / 2,
    place: (x, y, osdLevel) => {
      const level = finest - osdLevel;
      return { level, row: y - half(level), col: x - half(level) };
    },
    setLevels(n) {
      source.topLevel = Math.max(0, Math.min(n - 1, HALF_TILES_LOG2));
      source.minLevel = finest - source.topLevel;
    },
    getTileUrl: (osdLevel, x, y) => `tile:${osdLevel}/${x}/${y}`,
    getTileHashKey: (osdLevel, x, y) => `${tiles.info.run}:${osdLevel}/${x}/${y}`,
    hasTransparency: () => true,
    getClosestLevel: () => source.minLevel,
    downloadTileStart(job) {
      const { level, row, col } = source.place(job.tile.x, job.tile.y, job.tile.level);
      job.userData.wanted = true;
      tiles
        .acquire(level, row, col, () => job.userData.wanted)
        .then((tile) => job.finish(tile, null, DATA))
        .catch((error) => job.fail(String(error.message ?? error), null));
    },
    downloadTileAbort(job) {
      job.userData.wanted = false;
    },
  });
  source.setLevels(1);
  return source;
}

/** Draws raw tiles; `scene` holds what is needed for it: { tiles, aspect(), paintTile, onDrawn }. */
function makeDrawerClass(scene) {
  return class MosaicDrawer extends OSD.DrawerBase {
    static isSupported() {
      return true;
    }

    getType() {
      return 'tilecast';
    }

    getSupportedDataFormats() {
      return [DATA];
    }

    canRotate() {
      return false;
    }

    setImageSmoothingEnabled() {}

    _createDrawingElement() {
      const canvas = document.createElement('canvas');
      canvas.id = 'mosaic';
      this.context = canvas.getContext('2d');
      return canvas;
    }

    destroy() {
      super.destroy();
      this.canvas.remove();
    }

    draw(tiledImages) {
      const size = this._calculateCanvasSize();
      const { canvas, context } = this;
      const bounds = this.viewport.getBoundsNoRotate(true);
      const scale = size.x / bounds.width;
      const tileSize = scene.tiles.info.tileSize;
      const aspect = scene.aspect();
      // Painted first and shown in one go, so that no moment is without pixels.
      const ready = [];
      for (const { tile: osdTile } of tiledImages.flatMap((image) => image.getTilesToDraw())) {
        const tile = this.getDataToDraw(osdTile);
        if (!tile) continue;
        scene.tiles.touch(tile);
        ready.push({ tile, picture: scene.paintTile(tile), stamp: `${tile.key} ${tile.painted}` });
      }
      // While the view stands still and no level lies over another, only what changed is drawn again.
      const place = `${bounds.x} ${bounds.y} ${scale} ${size.x} ${size.y} ${scene.tiles.generation}`;
      const flat = ready.every(({ tile }) => tile.level === ready[0].tile.level);
      const keep = flat && this.shown?.flat && this.shown.place === place && covers(ready, this.shown.stamps);
      if (!keep) {
        if (canvas.width !== size.x || canvas.height !== size.y) {
          canvas.width = size.x;
          canvas.height = size.y;
        } else context.clearRect(0, 0, size.x, size.y);
      }
      // Edges are computed from the same numbers for both neighbours, and are whole pixels: no seams.
      for (const { tile, picture, stamp } of ready) {
        if (keep && this.shown.stamps.get(tile.key) === stamp) continue;
        const side = tileSize * 2 ** tile.level;
        const x0 = Math.round((tile.col * side - bounds.x) * scale);
        const y0 = Math.round((tile.row * side * aspect - bounds.y) * scale);
        const x1 = Math.round(((tile.col + 1) * side - bounds.x) * scale);
        const y1 = Math.round(((tile.row + 1) * side * aspect - bounds.y) * scale);
        context.clearRect(x0, y0, x1 - x0, y1 - y0);
        if (!picture) continue;
        const magnified = [x1 - x0, y1 - y0].map((length) => length / tileSize);
        const asItIs = magnified.every((times) => times === 1);
        // Camera pixels are shown as they are; a coarse level that stands in for a finer one is not.
        context.imageSmoothingEnabled = !asItIs && (Math.min(...magnified) < 2 || tile.level > 0);
        context.imageSmoothingQuality = 'low';
        context.drawImage(picture, x0, y0, x1 - x0, y1 - y0);
      }
      this.shown = { place, flat, stamps: new Map(ready.map(({ tile, stamp }) => [tile.key, stamp])) };
      // Not within the drawing: OpenSeadragon forgets a redraw that is asked for while it draws.
      const drawn = ready.map(({ tile }) => tile);
      queueMicrotask(() => scene.onDrawn(drawn, bounds, scale));
    }
  };
}

/** Whether everything that is on the canvas is still among the tiles to draw. */
function covers(ready, stamps) {
  const keys = new Set(ready.map(({ tile }) => tile.key));
  for (const key of stamps.keys()) if (!keys.has(key)) return false;
  return true;
}

export class Mosaic {
  /**
   * @param element where the viewer goes
   * @param tiles of Tiles
   * @param onDrawn called with (tiles on screen, bounds, canvas pixels per level-0 pixel) after each drawing
   * @param onPainted called with the arrival time (ns) of the oldest frame that just became visible in a tile
   */
  constructor(element, tiles, { onDrawn, onPainted }) {
    this.tiles = tiles;
    this.onPainted = onPainted;
    this.onDrawn = onDrawn;
    this.luts = new Map();
    this.lookStamp = 0;
    this.dtype = '<u2';
    this.levels = 1;
    this.aspect = 1; // how tall a pixel is drawn, in its own widths
    this.drawn = [];
    const scene = {
      tiles,
      aspect: () => this.aspect,
      paintTile: (tile) => this.#paintTile(tile),
      onDrawn: (drawn, bounds, scale) => {
        this.drawn = drawn;
        this.onDrawn(drawn, bounds, scale);
      },
    };
    if (!OSD.converter.tilecastKnown) {
      OSD.converter.learn(DATA, DATA, (_tile, data) => data, 0, 0);
      OSD.converter.learnDestroy(DATA, (tile) => tiles.drop(tile));
      OSD.converter.tilecastKnown = true;
    }
    this.viewer = new OSD.Viewer({
      element,
      drawer: makeDrawerClass(scene),
      showNavigationControl: false,
      keyboardNavEnabled: false,
      animationTime: 0.35,
      springStiffness: 9,
      blendTime: 0,
      immediateRender: false,
      minPixelRatio: 0.7,
      visibilityRatio: 0,
      constrainDuringPan: false,
      maxImageCacheCount: 600,
      imageLoaderLimit: 12,
      timeout: 120000,
      preserveImageSizeOnResize: true,
      // Nothing else may choose what is in view: the source as a whole has more tiles than any list can hold.
      preserveViewport: true,
      minZoomLevel: 1e-9,
      maxZoomLevel: 1,
      zoomPerScroll: 1.25,
      zoomPerClick: 1,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: false, flickEnabled: false },
      gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: true, pinchRotate: false, flickEnabled: true },
      gestureSettingsPen: { clickToZoom: false, dblClickToZoom: false },
    });
    this.viewer.innerTracker.keyHandler = null;
    this.viewer.innerTracker.keyDownHandler = null;
  }

  get viewport() {
    return this.viewer.viewport;
  }

  get canvas() {
    return this.viewer.drawer.canvas;
  }

  /** Show another run, described by { tileSize, dtype, levels, affine }. */
  async open({ tileSize, dtype, levels, affine }) {
    this.dtype = dtype;
    this.aspect = aspectOf(affine);
    const source = makeSource(this.tiles, tileSize, this.aspect);
    source.setLevels(levels);
    this.source = source;
    this.viewer.world.removeAll();
    const { half } = source;
    // The view must be of a sensible size before the first drawing: the source is larger than any list of tiles.
    this.#limitZoom();
    const side = tileSize * 2 ** levels;
    this.viewport.fitBounds(new OSD.Rect(-side, -side, 2 * side, 2 * side), true);
    const image = await new Promise((resolve, reject) => {
      this.viewer.addTiledImage({
        tileSource: source,
        x: -half,
        y: -half * this.aspect,
        width: 2 * half,
        success: ({ item }) => resolve(item),
        error: (event) => reject(new Error(event.message)),
      });
    });
    // Another run was opened while this one was being added: only the newest stays.
    if (source !== this.source) this.viewer.world.removeItem(image);
    else this.image = image;
  }

  /** From one level-0 pixel as 40 on screen to a tile of the top level as 48: never more tiles than can be handled. */
  #limitZoom() {
    const width = this.viewport.getContainerSize().x;
    this.viewport.maxZoomLevel = 40 / width;
    const side = this.tiles.info.tileSize * Math.min(1, this.aspect) * 2 ** this.source.topLevel;
    this.viewport.minZoomLevel = 48 / side / width;
  }

  setLevels(n) {
    if (!this.source || n - 1 === this.source.topLevel) return;
    this.source.setLevels(n);
    this.#limitZoom();
    this.image.savedCutOffLevel = this.source.minLevel;
    this.image._needsUpdate = true;
    this.redraw();
  }

  /** How channels look: Map of channel → { lo, hi, gamma, invert, map, color }. */
  setLooks(looks) {
    this.luts = new Map([...looks].map(([c, look]) => [c, buildLut(this.dtype, look)]));
    this.lookStamp++;
    this.redraw();
  }

  redraw() {
    this.viewer.forceRedraw();
  }

  /** Tiles changed: those on screen are asked for at once, others when they come into view. */
  refresh() {
    for (const tile of this.drawn) this.tiles.touch(tile);
  }

  /** The picture of a tile with the present looks, or null where there is nothing. */
  #paintTile(tile) {
    const layers = this.tiles.layersOf(tile);
    const stamp = `${tile.version} ${this.lookStamp} ${layers.map(({ c }) => c)}`;
    if (tile.painted !== stamp) {
      if (layers.length) {
        const { tileSize } = this.tiles.info;
        if (!tile.canvas) {
          tile.canvas = document.createElement('canvas');
          tile.canvas.width = tile.canvas.height = tileSize;
          tile.context = tile.canvas.getContext('2d', { willReadFrequently: true });
          tile.image = tile.context.createImageData(tileSize, tileSize);
          tile.packed = new Uint32Array(tile.image.data.buffer);
        }
        paint(
          tile.packed,
          layers.map(({ c, pixels, mask }) => ({ pixels, mask, lut: this.luts.get(c) })),
        );
        tile.context.putImageData(tile.image, 0, 0);
      }
      tile.painted = stamp;
      if (tile.shown_t_recv_ns !== null) {
        this.onPainted(tile.shown_t_recv_ns);
        tile.shown_t_recv_ns = null;
      }
    }
    return layers.length ? tile.canvas : null;
  }

  // What is in view ------------------------------------------------------------------------------------------------

  /** The level-0 rectangle in view, [row0, col0, row1, col1], fractional. */
  viewRect(current = true) {
    const b = this.viewport.getBounds(current);
    return [b.y / this.aspect, b.x, (b.y + b.height) / this.aspect, b.x + b.width];
  }

  /** CSS pixels on screen per level-0 pixel, along a row; down a column `aspect` times as many. */
  scale(current = true) {
    return this.viewport.getContainerSize().x / this.viewport.getBounds(current).width;
  }

  /** The level that is drawn at the present scale. */
  level() {
    const perPixel = 1 / (this.scale() * OSD.pixelDensityRatio);
    const level = Math.floor(Math.log2(perPixel / 0.7) + 1e-9) ;
    return Math.max(0, Math.min(this.source?.topLevel ?? 0, level));
  }

  /** The level-0 position [row, col] under a point of the viewer's element, CSS pixels. */
  positionAt(x, y) {
    const point = this.viewport.viewerElementToViewportCoordinates(new OSD.Point(x, y));
    return [point.y / this.aspect, point.x];
  }

  /** Show a level-0 rectangle, with some room around it. */
  fit([row0, col0, row1, col1], { immediately = false, room = 0.06 } = {}) {
    const height = row1 - row0;
    const width = col1 - col0;
    const rect = new OSD.Rect(
      col0 - width * room,
      (row0 - height * room) * this.aspect,
      width * (1 + 2 * room),
      height * (1 + 2 * room) * this.aspect,
    );
    this.viewport.fitBounds(rect, immediately);
    this.redraw();
  }

  panTo(row, col, immediately = false) {
    this.viewport.panTo(new OSD.Point(col, row * this.aspect), immediately);
  }

  centre() {
    const { x, y } = this.viewport.getCenter(false);
    return [y / this.aspect, x];
  }

  /** Show so many CSS pixels per level-0 pixel, around a position. */
  setScale(scale, row, col, immediately = false) {
    const zoom = scale / this.viewport.getContainerSize().x;
    this.viewport.zoomTo(zoom, col === undefined ? undefined : new OSD.Point(col, row * this.aspect), immediately);
  }

  zoomBy(factor) {
    this.viewport.zoomBy(factor);
    this.viewport.applyConstraints();
  }

  panBy(dx, dy) {
    const size = this.viewport.getContainerSize();
    this.viewport.panBy(this.viewport.deltaPointsFromPixels(new OSD.Point(dx * size.x, dy * size.y)));
  }
}
