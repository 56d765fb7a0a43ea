"use strict";
// The open pictures. Tokens of the small ones can replace tokens of the large one.
function showShelf() {
  const buttons = () => [...document.querySelectorAll("#shelf .held")];
  const focused = buttons().indexOf(document.activeElement);
  $("shelf").replaceChildren(...openPictures().map(heldPicture));
  buttons()[focused]?.focus({ preventScroll: true });
  $("source").replaceChildren(new Option("itself", ""), ...openPictures().flatMap((picture) =>
    settings.colours.map((_, token) => sourceOption(picture, token))));
}

const sourceOption = ({ name, key }, token) => new Option(`token ${token} of ${name}`, `${key}:${token}`);

function heldPicture(picture) {
  const figure = document.createElement("figure"), button = document.createElement("button");
  const image = Object.assign(new Image(), { src: picture.shown, alt: "" });
  button.append(image, picture.name);
  button.setAttribute("aria-pressed", picture === view.current);
  button.className = "held";
  button.addEventListener("click", () => showPicture(picture));
  const close = Object.assign(document.createElement("button"), { className: "close", textContent: "×", title: "Close" });
  close.setAttribute("aria-label", `close ${picture.name}`);
  close.addEventListener("click", () => closePicture(picture));
  figure.append(button, close);
  if (picture === view.current) return figure;
  const tokens = Object.assign(document.createElement("div"), { className: "tokens small" });
  tokens.append(...settings.colours.map((_, token) => heldToken(picture, token)));
  figure.append(tokens);
  return figure;
}

function heldToken(picture, token) {
  const button = tokenButton(token);
  button.dataset.picture = picture.key;
  button.setAttribute("aria-label", `replace the chosen token with token ${token} of ${picture.name}`);
  button.addEventListener("click", () => {
    if (view.chosen === null) return say("Choose a token of the large picture first; the one that you click here then replaces it.");
    replaceChosen(picture.key, token);
  });
  drawMap(button.querySelector("canvas"), picture.found, token);
  return button;
}

// A closed picture stays in memory, as other pictures may have tokens of it.
function closePicture(picture) {
  Object.assign(picture, fresh(), { closed: true });
  showShelf();
  (document.querySelector("#shelf .held") ?? $("file")).focus({ preventScroll: true });
  if (picture !== view.current) return updateButtons();
  if (openPictures().length) return void showPicture(openPictures().at(-1));
  clearTimeout(waiting);
  view.current = view.photographed = view.preview = drag = null;
  $("work").hidden = true;
  say(START);
}
const openPictures = () => view.pictures.filter((picture) => !picture.closed && picture.shown);
