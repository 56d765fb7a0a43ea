"use strict";
// Pointer and brush on the photograph and the reconstruction: drags move a map, strokes paint it.
let drag = null; // { token, row, column, copies, moved } or { token, patches: Set, amount } or {}, a tap
let place = null; // row and column of the brush, when the keyboard moves it

const brush = () => {
  const { value } = document.querySelector("[name=brush]:checked");
  return value === "" ? null : +value;
};

function patchAt(stage, event) {
  const box = stage.getBoundingClientRect();
  const cell = (at, length) => Math.floor((at / length) * view.side);
  return [cell(event.clientY - box.top, box.height), cell(event.clientX - box.left, box.width)];
}
const inside = (x) => Math.min(view.side - 1, Math.max(0, x));
const winnerAt = ([row, column]) => view.current.found.winners[inside(row) * view.side + inside(column)];

// The patches under the brush.
function under([row, column]) {
  const radius = $("width").value / 2, found = [];
  for (let y = Math.ceil(row - radius); y <= row + radius; y++) {
    for (let x = Math.ceil(column - radius); x <= column + radius; x++) {
      const near = Math.hypot(y - row, x - column) <= radius;
      if (near && y === inside(y) && x === inside(x)) found.push(y * view.side + x);
    }
  }
  return found;
}

const editOf = ({ token, down, right, copies, patches, amount }) => {
  if (patches) return { kind: "paint", token, patches: [...patches], amount };
  return { kind: copies ? "copy" : "move", token, down, right };
};

// Shows the outline of the brush around a patch of a picture; null hides it.
function showBrush(stage, at) {
  const outline = stage.querySelector(".outline"), width = +$("width").value, percent = 100 / view.side;
  outline.hidden = at === null || brush() === null || view.chosen === null;
  if (outline.hidden) return;
  const [top, left] = at.map((x) => `${(x + 0.5 - width / 2) * percent}%`);
  Object.assign(outline.style, { top, left, width: `${width * percent}%` });
}

function begin(stage, event) {
  if (event.button || !view.current?.found) return;
  if (event.pointerType !== "mouse" && view.chosen === null) return void (drag = {}); // a finger may scroll
  const at = patchAt(stage, event), token = view.chosen ?? winnerAt(at);
  if (brush() !== null && view.chosen !== null) drag = { token, patches: new Set(under(at)), amount: brush() };
  else drag = { token, row: at[0], column: at[1], down: 0, right: 0, copies: event.altKey };
  if (drag.patches) drag.moved = true;
  place = null;
  stage.setPointerCapture(event.pointerId);
  event.preventDefault();
  stage.focus();
  if (drag.patches) preview();
}

function preview() {
  view.preview = editOf(drag);
  refresh();
}

function follow(stage, event) {
  showBrush(stage, patchAt(stage, event));
  if (!drag) {
    view.pointed = view.chosen === null ? winnerAt(patchAt(stage, event)) : null;
    return showMap();
  }
  if (drag.token === undefined) return void (drag.moved = true);
  const [row, column] = patchAt(stage, event);
  if (drag.patches) under([row, column]).forEach((patch) => drag.patches.add(patch));
  else if (drag.down === row - drag.row && drag.right === column - drag.column) return;
  else Object.assign(drag, { down: row - drag.row, right: column - drag.column, moved: true });
  preview();
}

function end(stage, event) {
  if (!drag) return;
  const done = drag;
  drag = view.preview = null;
  if (event.type === "pointercancel") return refresh();
  if (!done.moved) return choose(winnerAt(patchAt(stage, event)));
  if (done.token === undefined) return; // the finger has scrolled
  if (!done.patches && view.chosen === null) choose(done.token);
  commit(editOf(done));
}

// The place of the keyboard's brush; a new resolution may have fewer patches.
const placeNow = () => (place ?? [view.side >> 1, view.side >> 1]).map(inside);

function brushKey(stage, event) {
  const step = event.key.startsWith("Arrow") && AWAY[event.key.replace("Arrow", "").toLowerCase()];
  if (brush() === null || view.chosen === null || !(step || event.key === " ")) return;
  event.preventDefault();
  place = placeNow();
  if (step) place = place.map((x, i) => inside(x + step[i]));
  else commit({ kind: "paint", token: view.chosen, patches: under(place), amount: brush() });
  showBrush(stage, place);
}

for (const stage of document.querySelectorAll(".seen")) {
  stage.addEventListener("pointerdown", (event) => begin(stage, event));
  stage.addEventListener("pointermove", (event) => view.current?.found && follow(stage, event));
  for (const type of ["pointerup", "pointercancel"]) stage.addEventListener(type, (event) => end(stage, event));
  stage.addEventListener("pointerleave", () => { view.pointed = null; showBrush(stage, null); if (view.current) showMap(); });
  stage.addEventListener("focus", () => stage.matches(":focus-visible") && showBrush(stage, placeNow()));
  stage.addEventListener("blur", () => showBrush(stage, null));
  stage.addEventListener("keydown", (event) => view.current && brushKey(stage, event));
}
