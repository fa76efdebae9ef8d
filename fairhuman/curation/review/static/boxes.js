// The boxes on the canvas: drawn, selected, moved, resized.

import {clamp} from "./canvas.js";

const LEAST = 2;  // pixels of a box's side
const SMALL = 40;  // pixels of the screen: below, handles on the sides would hide the box
const CORNERS = ["top-left", "top-right", "bottom-left", "bottom-right"];
const SIDES = ["top-center", "middle-left", "middle-right", "bottom-center"];

export class Boxes {
  // told: {selected(choice), changed(region, boxes, index)}; a choice is {region, index} or null
  constructor(canvas, colours, told) {
    this.canvas = canvas;
    this.colours = colours;
    this.told = told;
    this.group = new Konva.Group();
    this.transformer = new Konva.Transformer({
      rotateEnabled: false, flipEnabled: false, keepRatio: false, ignoreStroke: true,
      anchorSize: 9, anchorCornerRadius: 2, borderEnabled: false,
      boundBoxFunc: (former, next) =>
        Math.min(next.width, next.height) < LEAST * canvas.scale ? former : next,
    });
    canvas.over.add(this.group, this.transformer);
    this.regions = {};
    this.choice = null;
    this.active = null;
    this.selectable = true;
    this.#drawing();
  }

  show(regions) {
    this.regions = regions;
    if (this.choice && !this.#chosen()) this.choice = null;
    this.redraw();
  }

  select(choice) {
    this.choice = choice;
    this.redraw();
    this.told.selected(choice);
  }

  // Select the box after or before the chosen one.
  cycle(step) {
    const all = Object.entries(this.regions).flatMap(
      ([region, found]) => (found?.boxes || []).map((_, index) => ({region, index})));
    if (!all.length) return;
    const at = this.choice ? all.findIndex((one) => same(one, this.choice)) : step > 0 ? -1 : 0;
    this.select(all[(at + step + all.length) % all.length]);
  }

  // Move the chosen box, or its lower right corner.
  nudge(dx, dy, resize) {
    const box = this.#chosen();
    if (!box) return;
    const [x, y, width, height] = box;
    const moved = resize ? [x, y, width + dx, height + dy] : [x + dx, y + dy, width, height];
    this.#change(this.choice, moved, !resize);
  }

  add(region, box) {
    const boxes = [...(this.regions[region]?.boxes || []), this.#inside(box, true)];
    this.choice = {region, index: boxes.length - 1};
    this.told.changed(region, boxes);
    this.told.selected(this.choice);
  }

  addInMiddle(region) {
    const {x, y} = this.canvas.middle();
    const side = Math.min(...this.canvas.size) / 6;
    this.add(region, [x - side / 2, y - side / 2, side, side]);
  }

  remove() {
    if (!this.#chosen()) return;
    const {region, index} = this.choice;
    this.choice = null;
    this.told.changed(region, this.regions[region].boxes.filter((_, at) => at !== index));
    this.told.selected(null);
  }

  redraw() {
    const scale = this.canvas.scale;
    this.group.destroyChildren();
    this.transformer.nodes([]);
    for (const [region, found] of Object.entries(this.regions)) {
      (found?.boxes || []).forEach((box, index) => this.#draw({region, index}, box, scale));
    }
    this.transformer.moveToTop();
  }

  #draw(place, [x, y, width, height], scale) {
    const chosen = same(place, this.choice), colour = this.colours[place.region];
    const rect = new Konva.Rect({
      x, y, width, height, stroke: colour, strokeWidth: chosen ? 3 : 2, strokeScaleEnabled: false,
      hitStrokeWidth: 12 / scale, fill: chosen ? "rgba(255, 255, 255, .06)" : "transparent",
      draggable: this.selectable && chosen, listening: this.selectable,
      opacity: place.region === this.active || !this.active ? 1 : 0.75,
    });
    const label = new Konva.Label({
      x, y, scaleX: 1 / scale, scaleY: 1 / scale, listening: false, opacity: chosen ? 1 : 0.85,
    });
    label.add(new Konva.Tag({fill: colour, cornerRadius: [3, 3, 3, 0]}));
    label.add(new Konva.Text({
      text: `${place.region} ${place.index + 1}`, fontSize: 10, fontStyle: "bold", padding: 2,
      fill: "#10151b", fontFamily: "system-ui, sans-serif",
    }));
    label.offsetY(label.height());
    rect.on("pointerdown", (event) => {
      if (event.evt.button || this.canvas.space) return;
      if (!same(place, this.choice)) this.select(place);
    });
    rect.on("dragmove", () => label.position(rect.position()));
    rect.on("dragend transformend", () => {
      const box = [rect.x(), rect.y(), rect.width() * rect.scaleX(), rect.height() * rect.scaleY()];
      this.#change(place, box, rect.scaleX() === 1 && rect.scaleY() === 1);
    });
    this.group.add(rect, label);
    if (chosen && this.selectable) {
      this.transformer.enabledAnchors(
        Math.min(width, height) * scale < SMALL ? CORNERS : [...CORNERS, ...SIDES]);
      this.transformer.nodes([rect]);
    }
  }

  #change(place, box, whole) {
    const boxes = this.regions[place.region].boxes.slice();
    boxes[place.index] = this.#inside(box, whole);
    this.told.changed(place.region, boxes);
  }

  // Keep a box in the image: moved as it is where `whole`, else cut off. Hundredths of pixels.
  #inside([x, y, width, height], whole) {
    const [across, down] = this.canvas.size;
    if (whole) {
      x = clamp(x, 0, Math.max(0, across - width));
      y = clamp(y, 0, Math.max(0, down - height));
    }
    const left = clamp(x, 0, across - LEAST), top = clamp(y, 0, down - LEAST);
    const right = clamp(x + width, left + LEAST, across);
    const bottom = clamp(y + height, top + LEAST, down);
    return [left, top, right - left, bottom - top].map((value) => Math.round(value * 100) / 100);
  }

  // The box tool: drag from corner to corner.
  #drawing() {
    let start = null, rubber = null;
    this.drawsInto = () => null;  // the region, while the tool is the box
    this.canvas.stage.on("pointerdown", (event) => {
      const region = this.drawsInto();
      if (!region || event.evt.button || this.canvas.space) return;
      start = this.canvas.pointer();
      rubber = new Konva.Rect({
        stroke: this.colours[region], strokeWidth: 2, dash: [6, 4], strokeScaleEnabled: false,
        listening: false,
      });
      this.canvas.over.add(rubber);
    });
    window.addEventListener("pointermove", (event) => {
      if (!start) return;
      this.canvas.stage.setPointersPositions(event);
      const now = this.canvas.pointer();
      rubber.setAttrs({
        x: Math.min(start.x, now.x), y: Math.min(start.y, now.y),
        width: Math.abs(now.x - start.x), height: Math.abs(now.y - start.y),
      });
    });
    const end = (kept) => {
      if (!start) return;
      const {x, y, width, height} = rubber.attrs;
      rubber.destroy();
      start = rubber = null;
      const region = this.drawsInto();
      if (kept && region && width * this.canvas.scale >= 4 && height * this.canvas.scale >= 4) {
        const left = Math.max(0, x), top = Math.max(0, y);
        this.add(region, [left, top, Math.min(x + width, this.canvas.size[0]) - left,
                          Math.min(y + height, this.canvas.size[1]) - top]);
      }
    };
    window.addEventListener("pointerup", () => end(true));
    window.addEventListener("pointercancel", () => end(false));
  }

  #chosen() { return this.choice && this.regions[this.choice.region]?.boxes[this.choice.index]; }
}

const same = (one, other) => Boolean(
  one && other && one.region === other.region && one.index === other.index);
