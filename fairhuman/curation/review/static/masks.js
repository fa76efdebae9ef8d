// The masks on the canvas, and the brush that paints and erases the active region's.

import * as api from "./api.js";
import {clamp} from "./canvas.js";

export class Masks {
  // told: {painted(region, name), refused(error)}
  constructor(canvas, colours, told) {
    this.canvas = canvas;
    this.colours = colours;
    this.told = told;
    this.surfaces = {};  // by region: {name, canvas, node, strokes}
    this.regions = {};
    this.tool = null;  // "paint", "erase" or null
    this.active = null;
    this.size = 40;
    this.queue = Promise.resolve();
    this.group = new Konva.Group({opacity: 0.5});
    this.brush = new Konva.Circle({
      stroke: "#fff", strokeWidth: 1.5, strokeScaleEnabled: false, visible: false, listening: false,
      shadowColor: "#000", shadowBlur: 2, shadowOpacity: 1,
    });
    canvas.masks.add(this.group);
    canvas.over.add(this.brush);
    this.#painting();
  }

  open(number) {
    this.number = number;
    this.group.destroyChildren();
    this.surfaces = {};
  }

  // Show what a draft has; a surface that is ahead of it, because a stroke is being saved, stays.
  async show(regions) {
    this.regions = regions;
    const number = this.number;
    for (const region of Object.keys(this.colours)) {
      const name = regions[region]?.mask || null, former = this.surfaces[region];
      if (former?.strokes || (former?.name ?? null) === name) continue;
      former?.node.destroy();
      delete this.surfaces[region];
      if (!name) continue;
      const surface = this.#surface(region, name);
      try {
        const image = await api.load(api.maskUrl(number, name));
        if (this.number === number) drawMask(surface.canvas, image, this.colours[region]);
      } catch {
        this.told.refused(new Error(`${name}: the mask cannot be read`));
      }
      this.canvas.masks.batchDraw();
    }
  }

  // Resolves once every stroke is on the server.
  idle() { return this.queue; }

  setTool(tool, region) {
    this.tool = tool;
    this.active = region;
    if (!tool) this.brush.visible(false);
  }

  setSize(size) {
    this.size = size;
    this.brush.radius(size / 2);
  }

  // By keyboard: move the brush, and dab where it is.
  nudge(dx, dy) {
    const {x, y} = this.brush.visible() ? this.brush.position() : this.canvas.middle();
    this.#moveBrush({
      x: clamp(x + dx, 0, this.canvas.size[0]), y: clamp(y + dy, 0, this.canvas.size[1]),
    });
  }

  dab() {
    if (!this.brush.visible()) this.nudge(0, 0);
    this.#stroke(this.brush.position(), this.brush.position());
    this.#finish(this.active);
  }

  #surface(region, name) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = this.canvas.size;
    const node = new Konva.Image({image: canvas, listening: false});
    this.group.add(node);
    return this.surfaces[region] = {name, canvas, node, strokes: 0};
  }

  #moveBrush(position) {
    this.brush.setAttrs({...position, radius: this.size / 2, visible: true});
    this.brush.moveToTop();
  }

  #stroke(from, to) {
    const region = this.active;
    let surface = this.surfaces[region];
    if (!surface) {  // begun from the boxes: what they cover must not be lost
      surface = this.#surface(region, null);
      const context = surface.canvas.getContext("2d");
      context.fillStyle = this.colours[region];
      for (const box of this.regions[region]?.boxes || []) context.fillRect(...box);
    }
    const context = surface.canvas.getContext("2d");
    context.globalCompositeOperation = this.tool === "erase" ? "destination-out" : "source-over";
    context.strokeStyle = this.colours[region];
    context.lineWidth = this.size;
    context.lineCap = "round";
    context.beginPath();
    context.moveTo(from.x, from.y);
    context.lineTo(to.x + 0.01, to.y);  // a line of no length is not drawn
    context.stroke();
    context.globalCompositeOperation = "source-over";
    this.canvas.masks.batchDraw();
  }

  #finish(region) {
    const surface = this.surfaces[region], number = this.number;
    surface.strokes += 1;
    const png = asPng(surface.canvas);
    this.queue = this.queue.then(async () => {
      try {
        surface.name = await api.addMask(number, region, await png);
        surface.strokes -= 1;
        this.told.painted(region, surface.name);
      } catch (error) {
        surface.strokes -= 1;
        surface.name = false;  // no draft has it: what the draft has is loaded again
        this.told.refused(error);
      }
    });
  }

  #painting() {
    let last = null, region = null;
    const stage = this.canvas.stage;
    stage.on("pointerdown", (event) => {
      if (!this.tool || !this.active || event.evt.button || this.canvas.space) return;
      region = this.active;
      last = this.canvas.pointer();
      this.#moveBrush(last);
      this.#stroke(last, last);
    });
    window.addEventListener("pointermove", (event) => {
      if (!this.tool || (!last && event.target.closest?.("#stage") === null)) return;
      stage.setPointersPositions(event);
      const now = this.canvas.pointer();
      this.#moveBrush(now);
      if (last) this.#stroke(last, now);
      if (last) last = now;
    });
    for (const name of ["pointerup", "pointercancel"]) {
      window.addEventListener(name, () => {
        if (last) this.#finish(region);
        last = null;
      });
    }
  }
}

// White on black becomes the region's colour, as opaque as the mask is white.
function drawMask(canvas, image, colour) {
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < pixels.data.length; at += 4) pixels.data[at + 3] = pixels.data[at];
  context.putImageData(pixels, 0, 0);
  context.globalCompositeOperation = "source-in";
  context.fillStyle = colour;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.globalCompositeOperation = "source-over";
}

// The other way around. What is drawn later is not in it.
function asPng(canvas) {
  const copy = document.createElement("canvas");
  copy.width = canvas.width;
  copy.height = canvas.height;
  const context = copy.getContext("2d");
  context.drawImage(canvas, 0, 0);
  context.globalCompositeOperation = "source-in";
  context.fillStyle = "#fff";
  context.fillRect(0, 0, copy.width, copy.height);
  context.globalCompositeOperation = "destination-over";
  context.fillStyle = "#000";
  context.fillRect(0, 0, copy.width, copy.height);
  return new Promise((done) => copy.toBlob(done, "image/png"));
}
