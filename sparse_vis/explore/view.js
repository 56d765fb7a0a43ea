"use strict";
// Shows the server's answers: one request at a time, then one for the newest state if that has changed.
const QUIET = 150; // ms without an edit, after which the decoded picture is encoded again
const WORKING = "Working; the first picture and a new resolution take some seconds.";
let busy = null, again = false, waiting = null, version = 0;

// Shows the newest state; the promise ends when it is shown.
function refresh() {
  version++;
  clearTimeout(waiting);
  if (!view.current) return null;
  again = true;
  return (busy ??= showNewest());
}

async function showNewest() {
  let asked = null, wrong = "";
  while (again && view.current) {
    again = false;
    if (asked !== version) wrong = "";
    asked = version;
    const picture = view.current, { preview, side } = view, { edits } = picture;
    const slow = setTimeout(() => preview || say(WORKING), 700); // no message during a drag
    try {
      await update(picture, preview);
    } catch (error) {
      if (!(error instanceof Refused)) console.error(error);
      takeBack(picture, { preview, side, edits }, error);
      wrong = error.message.replace(/^edit \d+: /, "");
    }
    clearTimeout(slow);
  }
  busy = null;
  again = false;
  if (!view.current) return;
  say(wrong.charAt(0).toUpperCase() + wrong.slice(1), wrong !== "");
  if (!view.preview) waiting = setTimeout(() => attempt(askEncoder), QUIET);
}

async function update(picture, preview) {
  const side = view.side, photographed = `${picture.name} ${picture.key} ${side}`;
  const found = await (await about("edit", picture, editsOf(picture, side, preview), side)).json();
  Object.assign(found, { side, maps: bytesOf(found.maps), winners: bytesOf(found.winners) });
  picture.found = found;
  if (left(picture)) return;
  if (view.photographed !== photographed) await showPhotograph(picture, side, photographed);
  await show(picture, found);
}

// Whether another picture is shown now, or none. A new picture is shown once, and is then on the shelf.
const left = (picture) => picture !== view.current && picture.shown;

// Takes back a resolution, an edit or a temperature that the server refuses, unless that has been done already.
function takeBack(picture, { preview, side, edits }, error) {
  if (preview) view.preview = null;
  else if (error.status === 400 && picture === view.current && picture.edits === edits && view.side === side) {
    const before = picture.found?.side ?? side; // of the last answer
    again ||= before !== side || picture.past.length > 0; // then the remaining state is shown
    if (before !== side) setSide($("side").value = before);
    else Object.assign(picture, picture.past.pop(), { going: null });
  }
  if (view.current) updateButtons();
}

async function showPhotograph(picture, side, photographed) {
  const source = URL.createObjectURL(await (await about("photograph", picture, [], side)).blob());
  if (left(picture)) return;
  view.photographed = photographed;
  for (const stage of ["photograph", "segmentation"]) await showImage($(stage), source);
  if (picture.shown) URL.revokeObjectURL(picture.shown);
  picture.shown = source;
  for (const said of document.querySelectorAll("#tokens .again")) said.textContent = "…";
  showShelf();
}

async function show(picture, found) {
  await showImage($("reconstruction"), `data:image/png;base64,${found.picture}`);
  if (picture !== view.current) return;
  $("psnr").textContent = found.psnr === null ? "" : `, PSNR ${found.psnr.toFixed(1)} dB`;
  $("work").hidden = false;
  drawSegmentation($("segmentation").querySelector("canvas"), found);
  showTokens(found);
  showMap();
  updateButtons();
}

function showTokens(found) {
  const box = $("tokens");
  if (!box.children.length) box.append(...settings.colours.map((_, token) => tokenButton(token)));
  [...box.children].forEach((button, token) => {
    drawMap(button.querySelector("canvas"), found, token);
    const share = `share ${(100 * found.shares[token]).toFixed(0)} %`;
    button.querySelector(".share").textContent = found.peaks[token] > 0 ? share : "erased";
    button.classList.toggle("erased", found.peaks[token] === 0);
    button.querySelector(".again").classList.add("old");
  });
}

function tokenButton(token) {
  const button = document.createElement("button");
  Object.assign(button, { draggable: true, className: "token" });
  button.dataset.token = token;
  for (const [tag, name] of [["canvas", ""], ["b", "number"], ["span", "share"], ["span", "again"]]) {
    button.append(Object.assign(document.createElement(tag), { className: name }));
  }
  button.querySelector(".again").title = "cosine of this token with the one that the encoder finds in the decoded picture";
  button.querySelector("b").textContent = `token ${token}`;
  button.style.borderColor = `rgb(${settings.colours[token]})`;
  return button;
}

// Shows the map of the token pointed at, or else of the chosen one, over the photograph.
function showMap() {
  const token = view.pointed ?? view.chosen, canvas = $("photograph").querySelector("canvas");
  canvas.hidden = token === null || !(view.current?.found?.peaks[token] > 0);
  if (!canvas.hidden) drawOver(canvas, view.current.found, token);
  for (const button of $("tokens").children) {
    button.setAttribute("aria-pressed", +button.dataset.token === view.chosen);
    button.classList.toggle("on", +button.dataset.token === token);
  }
}

// How well the encoder finds each token again in the decoded picture: the cosine, and whether it is at least FOUND.
const FOUND = 0.95;
async function askEncoder() {
  const asked = version, cosines = await (await about("again", view.current, editsOf(view.current))).json();
  if (asked !== version) return; // there are newer edits
  cosines.forEach((cosine, token) => {
    const said = $("tokens").children[token].querySelector(".again");
    const shown = cosine?.toFixed(2);
    said.textContent = cosine === null ? "" : `${shown >= FOUND ? "found again" : "not found"}:\n${shown}`;
    said.classList.remove("old");
  });
}
