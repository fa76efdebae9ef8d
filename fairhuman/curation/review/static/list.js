// Which images are gone through, in which order; and the strip of small pictures.

import * as api from "./api.js";

const AROUND = 7, KEPT = 200;

export class List {
  // chosen(number): an image of the strip was clicked
  constructor(overview, chosen) {
    this.worst = overview.images;
    this.kinds = overview.kinds;
    this.entries = new Map(overview.images.map((entry) => [entry.number, entry]));
    this.chosen = chosen;
    this.strip = document.getElementById("strip");
    this.thumbs = new Map();
    this.filter({kind: "", order: "worst", search: "", open: false});
  }

  get doneCount() { return this.worst.filter((entry) => entry.done).length; }
  entry(number) { return this.entries.get(number); }
  mistakes(entry) { return entry.kinds.filter((kind) => !this.kinds[kind][1]); }

  // What is filtered out is decided here once: an image that is corrected stays where it is.
  filter({kind, order, search, open}) {
    const words = search.toLowerCase();
    const fits = (entry) =>
      (!open || !entry.done) && entry.name.toLowerCase().includes(words) &&
      (!kind || (kind === "any" ? this.mistakes(entry).length : entry.kinds.includes(kind)));
    const found = this.worst.filter(fits);
    if (order === "name") found.sort((a, b) => (a.name < b.name ? -1 : 1));
    this.numbers = found.map((entry) => entry.number);
  }

  count(kind) {
    return this.worst.filter((entry) => entry.kinds.includes(kind)).length;
  }

  step(number, by) {
    const at = this.numbers.indexOf(number);
    return at < 0 ? this.numbers[0] : this.numbers[at + by];
  }

  update(state) {
    const entry = this.entry(state.number);
    entry.kinds = state.kinds;
    entry.done = state.done;
  }

  show(number) {
    const at = this.numbers.indexOf(number), first = Math.max(0, at - AROUND);
    const shown = at < 0 ? [number] : this.numbers.slice(first, at + AROUND + 1);
    this.strip.replaceChildren(...shown.map((one) => this.#thumb(one, one === number)));
    const current = this.strip.querySelector("[aria-current]");
    this.strip.scrollLeft =
      current.offsetLeft - (this.strip.clientWidth - current.offsetWidth) / 2;
  }

  #thumb(number, current) {
    let button = this.thumbs.get(number);
    if (!button) {
      button = document.createElement("button");
      button.type = "button";
      const image = new Image();
      image.alt = "";
      image.src = api.photographUrl(number, 160);
      button.append(image);
      button.addEventListener("click", () => this.chosen(number));
      this.thumbs.set(number, button);
      if (this.thumbs.size > KEPT) this.thumbs.delete(this.thumbs.keys().next().value);
    }
    const entry = this.entry(number), wrong = this.mistakes(entry).length > 0;
    button.title = entry.name;
    button.ariaLabel = `${entry.name}${entry.done ? ", done" : ""}${wrong ? ", has mistakes" : ""}`;
    button.classList.toggle("done", entry.done);
    button.classList.toggle("wrong", wrong);
    if (current) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
    return button;
  }
}
