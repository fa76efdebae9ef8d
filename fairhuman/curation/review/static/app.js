// The page: one image at a time, as a draft that is saved whenever it changes.

import * as api from "./api.js";
import {Boxes} from "./boxes.js";
import {Canvas, clamp} from "./canvas.js";
import {History} from "./history.js";
import {bindKeys, listKeys} from "./keys.js";
import {List} from "./list.js";
import {Masks} from "./masks.js";
import {Panel} from "./panel.js";
import {Saver} from "./saver.js";

const at = (id) => document.getElementById(id);
const AHEAD = 2, SIDE = 2048;
const HINTS = {
  select: "Click a box to select it; drag to move, corners to resize. Wheel zooms, dragging the image pans.",
  box: "Drag from corner to corner. Or press A for a box in the middle, and move it with the arrows.",
  paint: "Drag to paint. [ ] change the brush. Or move it with the arrows and dab with Space.",
  erase: "Drag to erase. [ ] change the brush. Or move it with the arrows and dab with Space.",
};

const overview = await api.overview().catch((error) => { fail(error); throw error; });
const colours = overview.regions;
const canvas = new Canvas(at("stage"));
const list = new List(overview, open);
const panel = new Panel(colours, overview.kinds, {region: setRegion, select, caption});
const boxes = new Boxes(canvas, colours, {
  selected: (choice) => {
    if (choice && choice.region !== active) setRegion(choice.region);
    showDraft();
    if (choice) say(`${choice.region} ${choice.index + 1} selected`);
  },
  changed: (region, found) => change(region, {boxes: found}),
});
const masks = new Masks(canvas, colours, {
  painted: (region, mask) => change(region, {mask}),
  refused: (error) => { fail(error); masks.show(draft().regions); },
});
const saver = new Saver({
  saved: (saved) => {
    state = saved;
    list.update(saved);
    panel.showState(saved);
    canvas.showCrop(showsCrop && saved.crop);
    list.show(saved.number);
    showProgress();
    showDraft();
    showTrained();
    status("Saved");
  },
  refused: (error) => {
    if (error.status === 409) return conflict(error);
    fail(error);
    if (error.status === 422) step("undo", false);  // the draft could not be trained on
  },
  busy: (busy) => { if (busy) status("Saving …"); },
});

let state = null, history = null;
let active = Object.keys(colours)[0], tool = "select", showsCrop = true;
let opening = 0, target = null;  // the image that is on its way to be shown, or is shown
const ahead = new Map();

const draft = () => history.current;

function draftOf(found) {
  const regions = Object.entries(found.regions).map(([region, one]) =>
    [region, one && {boxes: one.boxes, mask: one.mask}]);
  return {text: found.text, regions: Object.fromEntries(regions)};
}

// Open an image; what is being saved of the former one is waited for.
async function open(number) {
  if (number === undefined) return;
  const turn = ++opening;
  target = number;
  if (history) panel.flush();
  await masks.idle();
  await saver.idle();
  if (turn !== opening) return;
  let found;
  try {
    if (!at("conflict").open) found = await api.state(number);
  } catch (error) {
    fail(error);
  }
  if (!found) {
    target = state?.number;
    return;
  }
  if (turn !== opening) return;
  show(found);
  canvas.close();
  masks.open(number);
  boxes.choice = null;
  if (found.size) {
    try {
      const image = await photograph(number);
      if (turn !== opening) return;
      canvas.open(image, found.size);
      canvas.showCrop(showsCrop && found.crop);
    } catch {
      at("problem").textContent = "The image cannot be read.";
      at("problem").hidden = false;
    }
  }
  redraw();
  list.show(number);
  showProgress();
  showTrained();
  status(found.done ? "Done" : "");
  say(`${found.name}, ${found.findings.length} findings`);
  api.goTo(number).catch(fail);
  for (let by = 1; by <= AHEAD; by += 1) photograph(list.step(number, by)).catch(() => {});
}

function show(found) {
  state = found;
  history = new History(draftOf(found));
  saver.open(found.number, found.version);
  panel.showState(found);
  at("caption").value = found.text;
  at("problem").hidden = !found.problem;
}

// Photographs are asked for before they are needed; the last few are kept.
function photograph(number) {
  if (number === undefined) return Promise.resolve(null);
  if (!ahead.has(number)) ahead.set(number, api.load(api.photographUrl(number, SIDE)));
  if (ahead.size > 3 * AHEAD) ahead.delete(ahead.keys().next().value);
  return ahead.get(number);
}

function redraw() {
  boxes.active = active;
  boxes.show(draft().regions);
  masks.show(draft().regions);
  showDraft();
}

function showDraft() {
  if (!history) return;
  panel.showDraft(draft(), active, boxes.choice);
  at("undo").disabled = !history.canUndo;
  at("redo").disabled = !history.canRedo;
}

function commit(next) {
  history.push(next);
  redraw();
  save();
}

const save = (done = state.done) => saver.save(draft(), done);

function change(region, part) {
  const former = draft().regions[region] || {boxes: [], mask: null};
  commit({...draft(), regions: {...draft().regions, [region]: {...former, ...part}}});
}

function caption(text) {
  if (history && text !== draft().text) commit({...draft(), text});
}

async function step(which, saves = true) {
  panel.flush();
  await masks.idle();
  const former = draft();
  if (history[which]() === former) return;
  at("caption").value = draft().text;
  redraw();
  if (saves) save();
  say(which);
}

function select(choice) {
  setTool("select");
  boxes.select(choice);
}

function setRegion(region) {
  active = region;
  boxes.active = region;
  setTool(tool);
  boxes.redraw();
  showDraft();
}

function setTool(name) {
  tool = name;
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.setAttribute("aria-pressed", String(button.dataset.tool === name));
  }
  const paints = name === "paint" || name === "erase";
  if (name !== "select" && boxes.choice) boxes.select(null);
  boxes.selectable = name === "select";
  boxes.redraw();
  masks.setTool(paints ? name : null, active);
  if (paints) setMasks(true);
  at("stage").dataset.tool = name;
  at("hint").textContent = HINTS[name];
  at("brush-label").classList.toggle("idle", !paints);
}

function setMasks(shown) {
  masks.group.visible(shown);
  at("show-masks").setAttribute("aria-pressed", String(shown));
}

function setCrop(shown) {
  showsCrop = shown;
  canvas.showCrop(shown && state?.crop);
  at("show-crop").setAttribute("aria-pressed", String(shown));
}

function setBrush(size) {
  at("brush").value = size;
  masks.setSize(Number(at("brush").value));
  at("brush-size").textContent = `${at("brush").value} px`;
}

async function accept() {
  panel.flush();
  await masks.idle();
  const number = state.number;
  await save(true);
  if (state.number !== number || !state.done) return;
  const next = list.step(number, 1);
  if (next === undefined) status("Done: the last image of this list");
  else await open(next);
}

function conflict(error) {
  status("Not saved");
  const mine = draft(), done = state.done, dialog = at("conflict");
  at("reload").onclick = () => {
    dialog.close();
    show(error.state);
    masks.open(error.state.number);
    redraw();
    showTrained();
    status("Reloaded");
  };
  at("overwrite").onclick = () => {
    dialog.close();
    saver.open(error.state.number, error.state.version);
    saver.save(mine, done);
  };
  dialog.showModal();
}

// Somebody else may have written while another window was in front.
async function lookAgain() {
  if (document.hidden || !history || at("conflict").open) return;
  panel.flush();
  await masks.idle();
  await saver.idle();
  const {number, version} = state;
  const found = await api.state(number).catch(fail);
  if (found && state.number === number && state.version === version && found.version !== version) {
    show(found);
    redraw();
    showTrained();
    status("Reloaded: it has changed on disk");
  }
}

function showTrained() {
  const {number, version} = state;
  panel.showTrained(number, overview.resolution,
    () => state.number === number && state.version === version);
}

function showProgress() {
  const all = list.worst.length, done = list.doneCount, place = list.numbers.indexOf(state.number);
  at("bar").max = all;
  at("bar").value = done;
  const where = place < 0 ? "not in this list" : `${place + 1} of ${list.numbers.length}`;
  at("count").textContent = `${where} · ${done} of ${all} done`;
  at("previous").disabled = place <= 0;
  at("next").disabled = place >= 0 && place === list.numbers.length - 1;
}

function showKinds() {
  const options = [["", `all images (${list.worst.length})`]];
  const wrong = list.worst.filter((entry) => list.mistakes(entry).length).length;
  options.push(["any", `any mistake (${wrong})`]);
  for (const [kind, [text]] of Object.entries(overview.kinds)) {
    const count = list.count(kind);
    if (count) options.push([kind, `${text} (${count})`]);
  }
  const chosen = at("kind").value;
  at("kind").replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  at("kind").value = options.some(([value]) => value === chosen) ? chosen : "";
}

function refilter() {
  list.filter({
    kind: at("kind").value, order: at("order").value, search: at("search").value,
    open: at("open").checked,
  });
  if (!list.numbers.length) status("No image fits");
  if (list.numbers.length && !list.numbers.includes(state.number)) open(list.numbers[0]);
  else { list.show(state.number); showProgress(); }
}

function status(text) {
  at("saved").textContent = text;
  at("saved").classList.remove("bad");
}

function say(text) { at("status").textContent = text; }

function fail(error) {
  at("saved").textContent = error.message;
  at("saved").classList.add("bad");
}

bindKeys({
  go: (by) => open(list.step(target, by)),
  accept, tool: setTool, toggleDone: () => save(!state.done),
  addBox: () => { setTool("select"); boxes.addInMiddle(active); },
  cycle: (by) => { setTool("select"); boxes.cycle(by); },
  none: () => at("none").click(),
  deselect: () => (boxes.choice ? boxes.select(null) : setTool("select")),
  remove: () => boxes.remove(),
  removeMask: () => at("mask-off").click(),
  brush: (by) => setBrush(Math.round(masks.size * (by > 0 ? 1.2 : 1 / 1.2)) + by),
  zoom: (factor) => canvas.zoom(factor),
  fit: () => canvas.fit(),
  toggleMasks: () => setMasks(!masks.group.visible()),
  toggleCrop: () => setCrop(!showsCrop),
  caption: () => at("caption").focus(),
  filter: () => at("kind").focus(),
  help: () => at("keys").showModal(),
  undo: () => step("undo"),
  redo: () => step("redo"),
  region: (index) => { const name = Object.keys(colours)[index]; if (name) setRegion(name); },
  space: (down, repeats) => {
    if (down && !repeats && masks.tool) masks.dab();
    canvas.space = down && !masks.tool;
  },
  arrow: (dx, dy, resize) => {
    if (masks.tool) masks.nudge(dx, dy);
    else if (boxes.choice) boxes.nudge(dx, dy, resize);
    else if (dx && !resize) open(list.step(target, Math.sign(dx)));
    return true;
  },
});

canvas.moved = () => boxes.redraw();
canvas.panFrom = (event) => {
  const onImage = event.target === canvas.stage;
  if (tool === "select" && onImage && boxes.choice) boxes.select(null);
  return tool === "select" && onImage;
};
boxes.drawsInto = () => (tool === "box" && state?.size ? active : null);

const clicks = {
  none: () => change(active, {boxes: [], mask: null}),
  delete: () => boxes.remove(),
  "mask-off": () => change(active, {mask: null}),
  undo: () => step("undo"), redo: () => step("redo"),
  fit: () => canvas.fit(),
  "show-masks": () => setMasks(!masks.group.visible()),
  "show-crop": () => setCrop(!showsCrop),
  previous: () => open(list.step(target, -1)),
  next: () => open(list.step(target, 1)),
  accept, help: () => at("keys").showModal(),
  "keys-close": () => at("keys").close(),
};
for (const [id, does] of Object.entries(clicks)) at(id).addEventListener("click", () => does());
for (const button of document.querySelectorAll("[data-tool]")) {
  button.addEventListener("click", () => setTool(button.dataset.tool));
}
// After a click with the mouse, keys are meant for the image and not for the button.
document.addEventListener("click", (event) => {
  if (event.detail) event.target.closest?.("button")?.blur();
});
at("done").addEventListener("change", () => save(at("done").checked));
at("brush").addEventListener("input", () => setBrush(clamp(at("brush").value, 2, 400)));
for (const id of ["kind", "order", "open"]) at(id).addEventListener("change", refilter);
at("search").addEventListener("input", refilter);
at("kind").addEventListener("focus", showKinds);
window.addEventListener("focus", lookAgain);
at("conflict").addEventListener("cancel", (event) => event.preventDefault());

listKeys(at("key-list"));
at("folder").textContent = overview.folder;
document.title = `${overview.folder} · FairHuman review`;
showKinds();
setTool("select");
setBrush(40);
await open(overview.at ?? list.numbers[0]);
