// The side panel: findings, regions, caption, the trainer's view.

import * as api from "./api.js";

const at = (id) => document.getElementById(id);
const OWNERS = {detector: "by a detector", human: "by a human"};

export class Panel {
  // told: {region(name), select(choice), caption(text)}
  constructor(colours, kinds, told) {
    this.colours = colours;
    this.kinds = kinds;
    this.told = told;
    at("caption").addEventListener("change", () => told.caption(at("caption").value));
    let pause;
    at("caption").addEventListener("input", () => {
      clearTimeout(pause);
      pause = setTimeout(() => told.caption(at("caption").value), 700);
    });
    at("regions").addEventListener("keydown", (event) => this.#arrows(event));
  }

  // What is typed and not told yet.
  flush() { this.told.caption(at("caption").value); }

  showState(state) {
    at("name").textContent = state.name;
    at("name").title = state.name;
    at("problem").textContent = state.problem || "";
    at("problem").hidden = !state.problem;
    const counts = new Map();
    for (const [kind, text] of state.findings) {
      counts.set(text, {kind, times: (counts.get(text)?.times || 0) + 1});
    }
    const shown = [...counts].map(([text, {kind, times}]) => {
      const item = document.createElement("li");
      item.className = this.kinds[kind]?.[1] ? "note" : "mistake";
      item.textContent = times > 1 ? `${text} (${times} times)` : text;
      return item;
    });
    if (!shown.length) {
      const item = document.createElement("li");
      item.className = "fine";
      item.textContent = "Nothing is wrong";
      shown.push(item);
    }
    at("findings").replaceChildren(...shown);
    at("done").checked = state.done;
    this.owners = Object.fromEntries(
      Object.entries(state.regions).map(([region, found]) => [region, found?.owner]));
  }

  showDraft(draft, active, choice) {
    if (at("caption") !== document.activeElement) at("caption").value = draft.text;
    const names = Object.keys(this.colours);
    at("regions").replaceChildren(...names.flatMap((region, index) => {
      const found = draft.regions[region];
      return [this.#tab(region, index, found, active), ...this.#chips(region, found, choice)];
    }));
    const found = draft.regions[active], boxes = found?.boxes.length || 0;
    at("none").disabled = Boolean(found) && !boxes && !found.mask;
    at("delete").disabled = !choice;
    at("mask-off").disabled = !found?.mask;
    at("region-note").textContent = !found
      ? `Nobody has looked for a ${active}: draw one, or say that there is none.`
      : found.mask
        ? `The trainer takes the ${active} mask, not the boxes.`
        : boxes ? `The trainer takes the ${active} boxes; painting begins from them.`
          : `There is no ${active} in this image.`;
  }

  #tab(region, index, found, active) {
    const tab = document.createElement("button");
    tab.type = "button";
    tab.className = "region";
    tab.dataset.region = region;
    tab.setAttribute("role", "radio");
    tab.setAttribute("aria-checked", String(region === active));
    tab.tabIndex = region === active ? 0 : -1;
    tab.style.setProperty("--colour", this.colours[region]);
    const boxes = found?.boxes.length || 0;
    const what = !found ? "not looked for"
      : [boxes ? `${boxes} box${boxes === 1 ? "" : "es"}` : "", found.mask ? "mask" : ""]
        .filter(Boolean).join(", ") || "none here";
    const owner = found && OWNERS[this.owners?.[region]] || "";
    const parts = [["b", region], ["span", what], ["i", owner], ["kbd", index < 9 ? index + 1 : ""]];
    tab.append(...parts.map(([kind, text]) => {
      const part = document.createElement(kind);
      part.textContent = text;
      return part;
    }));
    tab.addEventListener("click", () => this.told.region(region));
    return tab;
  }

  #chips(region, found, choice) {
    if (!found?.boxes.length) return [];
    const row = document.createElement("div");
    row.className = "chips";
    row.append(...found.boxes.map((box, index) => {
      const chip = document.createElement("button");
      const [, , width, height] = box.map(Math.round);
      chip.type = "button";
      chip.textContent = `${index + 1}: ${width} × ${height}`;
      chip.ariaLabel = `${region} ${index + 1}, ${width} by ${height} pixels`;
      const chosen = choice?.region === region && choice.index === index;
      chip.setAttribute("aria-pressed", String(chosen));
      chip.addEventListener("click", () => this.told.select({region, index}));
      return chip;
    }));
    return [row];
  }

  // Arrow keys go through the regions, as in any group of radio buttons.
  #arrows(event) {
    const step = {ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1}[event.key];
    if (!step || event.target.getAttribute("role") !== "radio") return;
    event.preventDefault();
    event.stopPropagation();
    const names = Object.keys(this.colours);
    const next = names[(names.indexOf(event.target.dataset.region) + step + names.length)
                       % names.length];
    this.told.region(next);
    at("regions").querySelector(`[data-region="${CSS.escape(next)}"]`).focus();
  }

  async showTrained(number, resolution, isCurrent) {
    const image = at("trained"), note = at("trained-note");
    try {
      const url = await api.trainedUrl(number);
      if (!isCurrent()) return URL.revokeObjectURL(url);
      if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
      image.src = url;
      image.hidden = false;
      note.textContent = `At ${resolution} px: the crop, and the masks in latent cells.`;
    } catch (error) {
      if (!isCurrent()) return;
      image.hidden = true;
      note.textContent = `It cannot be trained on: ${error.message}`;
    }
  }
}
