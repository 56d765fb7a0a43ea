"use strict";
// Open pictures and the edits of each. The server applies the whole list of edits anew each time.
const view = {
  pictures: [], // { key, name, file, edits, undone, found }
  current: null, // one of them
  preview: null, // an edit that is being made: a drag, a stroke
  chosen: null, pointed: null, // tokens
  side: +$("side").value, power: 1,
};
let joined = null; // the move that further arrow keys continue

const temper = () => (view.power === 1 ? [] : [{ kind: "temper", power: view.power }]);
const editsOf = (picture) => [...temper(), ...picture.edits];

function commit(edit) {
  const picture = view.current;
  view.preview = joined = null;
  picture.edits = [...picture.edits, edit];
  picture.undone = [];
  return refresh();
}

// An edit in place of the last one, if that is the given edit.
function continueWith(last, edit) {
  if (last !== null && view.current.edits.at(-1) === last) view.current.edits = view.current.edits.slice(0, -1);
  return commit(edit);
}

function nudge(token, down, right) {
  const last = joined !== null && joined.token === token && view.current.edits.at(-1) === joined ? joined : null;
  const move = { kind: "move", token, down: down + (last?.down ?? 0), right: right + (last?.right ?? 0) };
  const shown = continueWith(last, move);
  joined = move;
  return shown;
}

function replaceToken(token, from, amount) {
  const edit = { kind: "replace", token, amount, from }, last = view.current.edits.at(-1);
  return continueWith(isSameExchange(last, edit) ? last : null, edit);
}

// Whether two edits put the same token in place of another: then the later one counts.
const isSameExchange = (last, edit) => last?.kind === "replace" && edit.kind === "replace" && last.token === edit.token
  && JSON.stringify(last.from) === JSON.stringify(edit.from);

// A picture's edits, and one that is being made.
function editsWith(picture, preview) {
  const edits = editsOf(picture);
  if (!preview) return edits;
  return [...(isSameExchange(edits.at(-1), preview) ? edits.slice(0, -1) : edits), preview];
}

function undo() {
  const { edits, undone } = view.current;
  if (edits.length) Object.assign(view.current, { edits: edits.slice(0, -1), undone: [...undone, edits.at(-1)] });
  return refresh();
}

function redo() {
  const { edits, undone } = view.current;
  if (undone.length) Object.assign(view.current, { edits: [...edits, undone.at(-1)], undone: undone.slice(0, -1) });
  return refresh();
}

function reset() {
  Object.assign(view.current, { edits: [], undone: [] });
  return refresh();
}

// Edits that were made at another resolution -> the edit as it was made, and at which: nothing is rounded twice.
const made = new WeakMap();

// An edit for another number of patches along a side.
function atSide(edit, to) {
  const [first, from] = made.get(edit) ?? [edit, view.side], found = from === to ? first : scaledEdit(first, from, to);
  if (found !== first) made.set(found, [first, from]);
  return found;
}

function scaledEdit(edit, from, to) {
  const scaled = (x) => Math.round((x * to) / from);
  if ("down" in edit) return { ...edit, down: scaled(edit.down), right: scaled(edit.right) };
  if (!("patches" in edit)) return edit;
  const painted = new Set(edit.patches), at = (x) => Math.floor(((x + 0.5) * from) / to);
  const cells = [...Array(to * to).keys()];
  return { ...edit, patches: cells.filter((i) => painted.has(at(Math.floor(i / to)) * from + at(i % to))) };
}

function setSide(side) {
  for (const picture of view.pictures) {
    for (const list of ["edits", "undone"]) picture[list] = picture[list].map((edit) => atSide(edit, side));
  }
  view.side = side;
  joined = view.preview = null;
}
