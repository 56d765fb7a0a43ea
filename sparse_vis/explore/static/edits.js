"use strict";
// Edits of tokens and maps, with the results of explore/edits.py. Tokens and maps are { S, L, r, d, grid: [rows, columns] }
// with S (r, d) and L (rows * columns, r), row-major; an edit makes new ones.
const MOST = 1000; // most edits in a list

function replay(found, edits) {
  if (edits.length > MOST) throw new Refused(400, `There are more than ${MOST} edits; undo some.`);
  edits.forEach((edit, i) => {
    try {
      found = KINDS[edit.kind](found, edit);
    } catch (error) {
      throw error instanceof Refused ? new Refused(400, `edit ${i + 1}: ${error.message}`) : error;
    }
  });
  return found;
}

const mapIn = ({ L, r }, token) => Float32Array.from({ length: L.length / r }, (_, patch) => L[patch * r + token]);
const hasMap = (found, token) => mapIn(found, token).some((weight) => weight > 0);

// Sets a token's map; the others share the rest in their old proportions, or evenly where they had nothing. Tokens
// whose map is zero everywhere stay so.
function withMap(found, token, map) {
  const { L, r } = found, edited = new Float32Array(L.length);
  const others = [...Array(r).keys()].filter((other) => other !== token && hasMap(found, other));
  if (!others.length) throw new Refused(400, `token ${token} is the only one left; one must stay.`);
  map.forEach((weight, patch) => {
    const at = patch * r, total = others.reduce((sum, other) => sum + L[at + other], 0);
    for (const other of others) edited[at + other] = (total > 0 ? L[at + other] / total : 1 / others.length) * (1 - weight);
    edited[at + token] = weight;
  });
  return { ...found, L: edited };
}

// L^power, divided by its row sums.
function tempered(found, { power }) {
  const { L, r } = found, edited = new Float32Array(L.length);
  for (let at = 0; at < L.length; at += r) {
    const logits = Array.from(L.subarray(at, at + r), (x) => power * Math.log(x)), highest = Math.max(...logits);
    const weights = logits.map((x) => Math.exp(x - highest)), total = weights.reduce((a, b) => a + b);
    edited.set(weights.map((x) => x / total), at);
  }
  return { ...found, L: edited };
}

function movedMap(found, { token, down, right }) {
  if (Math.max(Math.abs(down), Math.abs(right)) > FURTHEST) {
    throw new Refused(400, `the map moves by more than ${FURTHEST} patches; undo this.`);
  }
  const map = mapIn(found, token), [rows, columns] = found.grid;
  return map.map((_, patch) => {
    const row = Math.floor(patch / columns) - down, column = (patch % columns) - right;
    return row >= 0 && row < rows && column >= 0 && column < columns ? map[row * columns + column] : 0;
  });
}

// The nearest whole number; halves are rounded to even.
const rounded = (x) => (x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

// A map stretched along rows and columns around its centre of mass (bilinear), zero outside. The centre is rounded to
// half a patch.
function stretchedMap(found, token, factors) {
  const map = mapIn(found, token), [rows, columns] = found.grid;
  const mass = map.reduce((a, b) => a + b, 0);
  if (mass === 0) return map;
  const weights = [rows, columns].map((length, axis) => {
    const place = (patch) => (axis ? patch % columns : Math.floor(patch / columns));
    const centre = rounded((2 * map.reduce((sum, x, patch) => sum + x * place(patch), 0)) / mass) / 2;
    return Array.from({ length }, (_, to) => Array.from({ length }, (_, from) =>
      Math.max(0, 1 - Math.abs(centre + (to - centre) / factors[axis] - from))));
  });
  return map.map((_, patch) => {
    const down = weights[0][Math.floor(patch / columns)], right = weights[1][patch % columns];
    let sum = 0;
    down.forEach((a, row) => a && right.forEach((b, column) => { sum += a * b * map[row * columns + column]; }));
    return Math.min(1, Math.max(0, sum));
  });
}

function painted(found, { token, patches, amount }) {
  const map = mapIn(found, token);
  for (const patch of patches) map[patch] = amount;
  return withMap(found, token, map);
}

function replaced(found, { token, vector, amount }) {
  const S = found.S.slice(), at = token * found.d;
  vector.forEach((x, i) => { S[at + i] = (1 - amount) * S[at + i] + amount * x; });
  return { ...found, S };
}

const KINDS = {
  temper: tempered,
  erase: (found, { token }) => withMap(found, token, mapIn(found, token).fill(0)),
  move: (found, edit) => withMap(found, edit.token, movedMap(found, edit)),
  copy(found, edit) {
    const moved = movedMap(found, edit);
    return withMap(found, edit.token, mapIn(found, edit.token).map((weight, patch) => Math.max(weight, moved[patch])));
  },
  scale: (found, { token, factor }) => withMap(found, token, stretchedMap(found, token, [factor, factor])),
  mirror(found, { token, axis }) {
    return withMap(found, token, stretchedMap(found, token, axis === "horizontal" ? [1, -1] : [-1, 1]));
  },
  paint: painted,
  replace: replaced,
};
