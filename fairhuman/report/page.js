// Tooltips: the step under the pointer (or reached by the arrow keys) and the numbers there.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);

const nearest = (grid, step) => {
  let low = 0, high = grid.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (grid[middle] <= step) low = middle; else high = middle;
  }
  return step - grid[low] <= grid[high] - step ? low : high;
};
const shown = (value) =>
  value === null ? "–" : Number.isInteger(value) ? String(value) : String(+value.toPrecision(4));

for (const figure of document.querySelectorAll("figure.chart")) {
  const svg = figure.querySelector("svg"), cross = figure.querySelector(".cross");
  const [low, high, start, end] = JSON.parse(figure.dataset.x);
  const lines = JSON.parse(figure.dataset.lines).map((line) => {
    const [grid, values] = data.columns[line.column];
    return { ...line, grid: data.grids[grid], values };
  });
  const finest = lines.reduce((a, b) => (b.grid.length > a.grid.length ? b : a)).grid;
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  figure.append(tip);
  let at = finest.length - 1;

  const show = (index) => {
    at = index;
    const step = finest[index];
    const x = start + ((end - start) * (step - low)) / (high - low);
    cross.setAttribute("x1", x);
    cross.setAttribute("x2", x);
    cross.removeAttribute("hidden");
    const list = document.createElement("ul");
    for (const line of lines) {
      const i = nearest(line.grid, step), item = document.createElement("li");
      const text = document.createElement("span");
      const where = line.grid[i] === step ? "" : ` (step ${line.grid[i]})`;
      text.textContent = `${line.label}: ${shown(line.values[i])}${where}`;
      item.className = line.colour;
      item.append(text);
      list.append(item);
    }
    tip.replaceChildren(`step ${step}`, list);
    tip.hidden = false;
    const box = svg.getBoundingClientRect(), outer = figure.getBoundingClientRect();
    const left = box.left - outer.left + (x / svg.viewBox.baseVal.width) * box.width;
    const room = figure.clientWidth - tip.offsetWidth;
    const beside = left + 12 <= room ? left + 12 : left - 12 - tip.offsetWidth;
    tip.style.left = `${Math.max(0, Math.min(room, beside))}px`;
    tip.style.top = `${box.top - outer.top + 8}px`;
  };
  const hide = () => {
    tip.hidden = true;
    cross.setAttribute("hidden", "");
  };
  const follow = (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    show(nearest(finest, low + ((x - start) / (end - start)) * (high - low)));
  };
  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") hide();
    if (!by) return;
    event.preventDefault();
    show(Math.max(0, Math.min(finest.length - 1, tip.hidden ? at : at + by)));
  });
}
