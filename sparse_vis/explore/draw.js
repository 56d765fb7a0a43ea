"use strict";
// Maps and pictures on canvases with one pixel per patch, which the style sheet enlarges.
const TINT = 0.4, SHADE = 0.78, SEGMENT = 0.6; // as in sparse_vis/viz/overlays.py
const LIGHT = 0.8; // how white a map is at 1

const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

function fill(canvas, side, pixel) {
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d"), image = context.createImageData(side, side);
  for (let i = 0; i < side * side; i++) image.data.set(pixel(i), 4 * i);
  context.putImageData(image, 0, 0);
}

const mapOf = (found, token) => found.maps.subarray(token * found.side ** 2, (token + 1) * found.side ** 2);

// A token's map over a picture: tinted where it is largest, dark where it is 0.
function drawOver(canvas, found, token) {
  const map = mapOf(found, token), colour = settings.colours[token];
  fill(canvas, found.side, (i) => {
    const weight = map[i] / 255, tint = TINT * weight, opaque = tint + SHADE * (1 - weight);
    return [...colour.map((c) => (c * tint) / opaque), 255 * opaque];
  });
}

// A token's map alone, with one scale for all maps: black at 0, the token's colour at twice an even share of a patch, then
// lighter up to 1.
function drawMap(canvas, found, token) {
  const map = mapOf(found, token), peak = found.peaks[token] / 255, colour = settings.colours[token];
  const full = Math.min(0.5, 2 / settings.tokens);
  fill(canvas, found.side, (i) => {
    const weight = map[i] * peak, dark = Math.min(1, weight / full), light = LIGHT * Math.max(0, (weight - full) / (1 - full));
    return [...colour.map((c) => c * dark + (255 - c) * light), 255];
  });
}

function drawSegmentation(canvas, found) {
  fill(canvas, found.side, (i) => [...settings.colours[found.winners[i]], 255 * SEGMENT]);
}

// Replaces an <img> by another picture once that is decoded, so that nothing flickers.
async function showImage(stage, source) {
  const old = stage.querySelector("img"), image = new Image();
  Object.assign(image, { src: source, alt: old.alt, draggable: false });
  await image.decode();
  stage.querySelector("img").replaceWith(image);
}

function download(name, source) {
  const link = document.createElement("a");
  Object.assign(link, { href: source, download: name });
  link.click();
}
