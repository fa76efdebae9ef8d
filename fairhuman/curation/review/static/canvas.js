// The stage: the photograph, the crop, zooming and panning. Coordinates are the upright image's.

const LEAST = 0.02, MOST = 32;
const MARGIN = 12, BELOW = 48;  // around a fitted image; the hint is below

export class Canvas {
  constructor(container) {
    this.container = container;
    this.stage = new Konva.Stage({container, width: 10, height: 10});
    this.under = new Konva.Layer({listening: false});
    this.masks = new Konva.Layer({listening: false});
    this.over = new Konva.Layer();
    this.stage.add(this.under, this.masks, this.over);
    this.photograph = new Konva.Image({});
    this.shade = new Konva.Shape({fill: "rgba(0, 0, 0, .55)", visible: false, sceneFunc: shade});
    this.under.add(this.photograph);
    this.masks.add(this.shade);
    this.size = [1, 1];
    this.fitted = true;
    this.moved = () => {};
    new ResizeObserver(() => this.#resize()).observe(container);
    this.stage.on("wheel", (event) => {
      event.evt.preventDefault();
      this.zoom(Math.exp(-event.evt.deltaY * 0.0015), this.stage.getPointerPosition());
    });
    this.#panning();
  }

  get scale() { return this.stage.scaleX(); }

  open(image, size) {
    this.size = size;
    this.photograph.setAttrs({image, width: size[0], height: size[1]});
    this.fit();
  }

  close() {
    this.photograph.image(null);
    this.shade.visible(false);
  }

  showCrop(crop) {
    this.shade.setAttrs({inner: crop, outer: this.size, visible: Boolean(crop)});
  }

  fit() {
    const [width, height] = this.size;
    const room = [this.stage.width() - 2 * MARGIN, this.stage.height() - MARGIN - BELOW];
    const scale = Math.max(LEAST, Math.min(room[0] / width, room[1] / height));
    this.stage.scale({x: scale, y: scale});
    this.stage.position({
      x: MARGIN + (room[0] - width * scale) / 2, y: MARGIN + (room[1] - height * scale) / 2,
    });
    this.fitted = true;
    this.moved();
  }

  zoom(factor, at = {x: this.stage.width() / 2, y: this.stage.height() / 2}) {
    const scale = Math.min(MOST, Math.max(LEAST, this.scale * factor));
    const point = this.toImage(at);
    this.stage.scale({x: scale, y: scale});
    this.stage.position({x: at.x - point.x * scale, y: at.y - point.y * scale});
    this.fitted = false;
    this.moved();
  }

  toImage(point) {
    return {
      x: (point.x - this.stage.x()) / this.scale, y: (point.y - this.stage.y()) / this.scale,
    };
  }

  pointer() {
    const point = this.stage.getPointerPosition();
    return point && this.toImage(point);
  }

  middle() {
    const down = (this.stage.height() + MARGIN - BELOW) / 2;
    const {x, y} = this.toImage({x: this.stage.width() / 2, y: down});
    return {x: clamp(x, 0, this.size[0]), y: clamp(y, 0, this.size[1])};
  }

  // Pans while the space bar or the middle button is held, or where `begin` says so.
  #panning() {
    let last = null;
    this.space = false;
    this.panFrom = () => false;
    this.stage.on("pointerdown", (event) => {
      if (event.evt.button === 1 || this.space || this.panFrom(event)) {
        last = this.stage.getPointerPosition();
        event.evt.preventDefault();
      }
    });
    window.addEventListener("pointermove", (event) => {
      if (!last) return;
      this.stage.setPointersPositions(event);
      const now = this.stage.getPointerPosition();
      this.stage.position({x: this.stage.x() + now.x - last.x, y: this.stage.y() + now.y - last.y});
      this.fitted = false;
      last = now;
    });
    for (const name of ["pointerup", "pointercancel"]) {
      window.addEventListener(name, () => { last = null; });
    }
  }

  #resize() {
    const {clientWidth, clientHeight} = this.container;
    if (!clientWidth || !clientHeight) return;
    this.stage.size({width: clientWidth, height: clientHeight});
    if (this.fitted) this.fit();
  }
}

function shade(context, shape) {
  const {inner, outer} = shape.attrs;
  const [x, y, width, height] = inner;
  context.beginPath();
  context.rect(0, 0, ...outer);
  context.moveTo(x, y);  // the other way around: a hole
  context.lineTo(x, y + height);
  context.lineTo(x + width, y + height);
  context.lineTo(x + width, y);
  context.closePath();
  context.fillShape(shape);
}

export const clamp = (value, least, most) => Math.min(most, Math.max(least, value));
