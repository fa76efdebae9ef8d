// The keyboard: what each key does, and the page that lists it.

const HELP = [
  ["Images", [
    ["Page down, J", "next image"], ["Page up, H", "previous image"],
    ["← →", "previous and next, while no box is selected"],
    ["Enter", "done: all is right, mark as a human's and go to the next"],
    ["D", "done, or not after all"], ["F", "to the filter of findings"],
  ]],
  ["Boxes", [
    ["1 … 9", "choose the region: face, hand, …"], ["V", "select, move, resize"],
    ["B", "draw a box with the mouse"], ["A", "add a box in the middle of the view"],
    ["X, Shift X", "select the next, the previous box"],
    ["Arrows", "move the selected box by 1 px; with Shift by 10"],
    ["Alt arrows", "resize it"], ["Delete", "delete it"], ["Escape", "select nothing"],
    ["N", "none here: the image has no such region"],
  ]],
  ["Masks", [
    ["P, E", "paint, erase"], ["[ ]", "smaller, larger brush"],
    ["Arrows, Space", "move the brush and dab, without a mouse"],
    ["Shift Delete", "remove the mask"], ["M", "show or hide masks"],
  ]],
  ["View", [
    ["Wheel, + −", "zoom"], ["0", "fit into the window"], ["Space drag", "pan"],
    ["K", "show or hide what the crop leaves out"],
  ]],
  ["Edit", [
    ["C", "caption; Escape leaves it"], ["Ctrl Z, Ctrl Y", "undo, redo"], ["?", "this list"],
  ]],
];

const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};

export function listKeys(place) {
  for (const [title, keys] of HELP) {
    const part = document.createElement("section"), head = document.createElement("h3");
    const list = document.createElement("dl");
    head.textContent = title;
    for (const [key, does] of keys) {
      const term = document.createElement("dt"), text = document.createElement("dd");
      for (const name of key.split(", ")) {
        const shown = document.createElement("kbd");
        shown.textContent = name;
        term.append(shown, " ");
      }
      text.textContent = does;
      list.append(term, text);
    }
    part.append(head, list);
    place.append(part);
  }
}

// `actions` are the page's functions, by name; see app.js.
export function bindKeys(actions) {
  const plain = {
    PageDown: () => actions.go(1), j: () => actions.go(1),
    PageUp: () => actions.go(-1), h: () => actions.go(-1),
    Enter: () => actions.accept(), d: () => actions.toggleDone(),
    v: () => actions.tool("select"), b: () => actions.tool("box"),
    p: () => actions.tool("paint"), e: () => actions.tool("erase"),
    a: () => actions.addBox(), x: () => actions.cycle(1), X: () => actions.cycle(-1),
    n: () => actions.none(), Escape: () => actions.deselect(),
    Delete: () => actions.remove(), Backspace: () => actions.remove(),
    "[": () => actions.brush(-1), "]": () => actions.brush(1),
    "+": () => actions.zoom(1.25), "=": () => actions.zoom(1.25), "-": () => actions.zoom(0.8),
    0: () => actions.fit(), m: () => actions.toggleMasks(), k: () => actions.toggleCrop(),
    c: () => actions.caption(), f: () => actions.filter(), "?": () => actions.help(),
  };
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    const writes = event.target.closest("textarea, input:not([type=range], [type=checkbox]), select");
    if (writes) {
      if (event.key === "Escape" || (event.key === "Enter" && event.ctrlKey)) {
        event.target.blur();
        if (event.key === "Enter") actions.accept();
        event.preventDefault();
      }
      return;
    }
    const onButton = event.target.closest("button, [type=checkbox]");
    if (onButton && (event.key === "Enter" || event.key === " ")) return;
    if (act(event)) event.preventDefault();
  });
  document.addEventListener("keyup", (event) => { if (event.key === " ") actions.space(false); });

  function act(event) {
    if (event.ctrlKey || event.metaKey) {
      const key = event.key.toLowerCase();
      if (key === "z") return actions[event.shiftKey ? "redo" : "undo"](), true;
      if (key === "y") return actions.redo(), true;
      return false;
    }
    const arrow = ARROWS[event.key];
    if (arrow) {
      const by = event.shiftKey ? 10 : 1;
      return actions.arrow(arrow[0] * by, arrow[1] * by, event.altKey);
    }
    if (event.altKey) return false;
    if (event.key === " ") return actions.space(true, event.repeat), true;
    if (event.key === "Delete" && event.shiftKey) return actions.removeMask(), true;
    if (/^[1-9]$/.test(event.key)) return actions.region(Number(event.key) - 1), true;
    const does = plain[event.key];
    does?.();
    return Boolean(does);
  }
}
