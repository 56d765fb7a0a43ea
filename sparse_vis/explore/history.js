"use strict";
// Open pictures, and the edits and temperature of each. After every change, the whole list of edits is replayed.
const view = {
  pictures: [], // { key, name, file, edits, power, past, future, going, found }
  current: null, // the picture that is shown large
  preview: null, // an edit that is not finished: a drag, a stroke
  chosen: null, pointed: null, // tokens
  side: +$("side").value,
};
const FURTHEST = 1000, FACTORS = [0.1, 10]; // limits of one edit, as in edits.py: patches, and factors of scale

const fresh = () => ({ edits: [], power: 1, past: [], future: [], going: null });
const stateOf = ({ edits, power }) => ({ edits, power }); // what undo restores
const madeNow = (edit) => ({ ...edit, side: view.side }); // edits keep the resolution at which they were made

// The list to replay at a resolution, with an unfinished edit.
function editsOf({ edits, power }, side = view.side, preview = null) {
  const list = preview ? withEdit(edits, madeNow(preview)) : edits;
  return [...(power === 1 ? [] : [{ kind: "temper", power }]), ...list.map((edit) => atSide(edit, side))];
}

// A list with one more edit. An edit that continues the last is joined with it; both are removed if together they change
// nothing. Only the newest replacement of a token is kept; its place does not matter, as it changes S only.
function withEdit(edits, edit) {
  if (edit.kind === "replace") return [...withoutReplacement(edits, edit.token), edit];
  const goesOn = continues(edits.at(-1), edit), rest = goesOn ? edits.slice(0, -1) : edits;
  const one = goesOn ? joined(edits.at(-1), edit) : edit;
  const nothing = one.kind === "move" ? !one.down && !one.right : one.kind === "scale" && Math.abs(one.factor - 1) < 1e-9;
  return nothing ? rest : [...rest, one];
}
const replaces = (edit, token) => edit.kind === "replace" && edit.token === token;
const withoutReplacement = (edits, token) => edits.filter((edit) => !replaces(edit, token));

function continues(last, edit) {
  if (last?.kind !== edit.kind || last.token !== edit.token || last.side !== edit.side) return false;
  const { down, right, factor } = joined(last, edit);
  if (edit.kind === "move") return Math.max(Math.abs(down), Math.abs(right)) <= FURTHEST;
  return edit.kind === "replace" || (edit.kind === "scale" && factor >= FACTORS[0] && factor <= FACTORS[1]);
}
const joined = (last, edit) => (edit.kind === "move"
  ? { ...edit, down: last.down + edit.down, right: last.right + edit.right }
  : { ...edit, factor: last.factor * edit.factor });

// Go to a new state of the picture. Further changes of the kind `going` continue this one, so that undo takes both back.
function change(state, going = null) {
  const picture = view.current;
  view.preview = null;
  picture.past.push(stateOf(picture));
  Object.assign(picture, state, { future: [], going });
  return refresh();
}

function commit(edit) {
  const picture = view.current, made = madeNow(edit), edits = withEdit(picture.edits, made);
  if (picture.going === "edit" && continues(picture.edits.at(-1), made)) Object.assign(picture, picture.past.pop());
  if (edits.length !== picture.edits.length || edits.some((each, i) => each !== picture.edits[i])) {
    return change({ edits }, "edit");
  }
  view.preview = picture.going = null; // the new edit has cancelled the last one
  return refresh();
}

// Moves a token's map, or the copy of it that has just been made.
function nudge(token, down, right) {
  const picture = view.current, last = picture.edits.at(-1);
  if (picture.going !== "copy" || last.token !== token || last.side !== view.side) {
    return commit({ kind: "move", token, down, right });
  }
  Object.assign(picture, picture.past.pop());
  return copyMap(token, last.down + down, last.right + right);
}
function copyMap(token, down = 0, right = Math.round(view.side / 4)) {
  return change({ edits: [...view.current.edits, madeNow({ kind: "copy", token, down, right })] }, "copy");
}

function setPower(power) {
  if (view.current.going !== "temperature") return change({ power }, "temperature");
  view.current.power = power;
  return refresh();
}

// The replacement of a token, also while its slider moves.
function replacementOf(token) {
  const { edits } = view.current, list = view.preview ? withEdit(edits, madeNow(view.preview)) : edits;
  return list.find((edit) => replaces(edit, token));
}

function go(from, to) {
  const picture = view.current, state = picture[from].pop();
  if (state) {
    picture[to].push(stateOf(picture));
    Object.assign(picture, state, { going: null });
  }
  view.preview = null;
  return refresh();
}
const undo = () => go("past", "future"), redo = () => go("future", "past");
const reset = () => change({ edits: [], power: 1 });

// An edit, converted to another number of patches along a side.
function atSide({ side: from, ...edit }, to) {
  if (from === to) return edit;
  const scaled = (x) => Math.max(-FURTHEST, Math.min(FURTHEST, Math.round((x * to) / from)));
  if ("down" in edit) return { ...edit, down: scaled(edit.down), right: scaled(edit.right) };
  if (!("patches" in edit)) return edit;
  const painted = new Set(edit.patches), at = (x) => Math.floor(((x + 0.5) * from) / to);
  const cells = [...Array(to * to).keys()];
  return { ...edit, patches: cells.filter((i) => painted.has(at(Math.floor(i / to)) * from + at(i % to))) };
}

function setSide(side) {
  view.side = side;
  view.preview = drag = null;
}
