"use strict";
// A picture's largest centred square at another size, bicubic and antialiased, within one level of the pixels of Pillow,
// with which the model was trained.
const BICUBIC = -0.5; // Pillow's parameter a

function kernel(x) {
  x = Math.abs(x);
  if (x < 1) return ((BICUBIC + 2) * x - (BICUBIC + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * BICUBIC : 0;
}

// For each new pixel, the first old one that contributes, and the weights of this and the following ones.
function weightsOf(length, first, side, size) {
  const scale = side / size, wide = Math.max(1, scale);
  return Array.from({ length: size }, (_, to) => {
    const centre = first + (to + 0.5) * scale;
    const from = Math.max(0, Math.trunc(centre - 2 * wide + 0.5)), end = Math.min(length, Math.trunc(centre + 2 * wide + 0.5));
    const weights = Array.from({ length: end - from }, (_, i) => kernel((from + i - centre + 0.5) / wide));
    const total = weights.reduce((a, b) => a + b);
    return [from, weights.map((weight) => weight / total)];
  });
}

// Resizes the width of pixels (height, width, channels) to `size`, and transposes; applied twice, it resizes both sides.
function resizedRows(pixels, width, channels, weights) {
  const height = pixels.length / width / channels, size = weights.length;
  const found = new Uint8ClampedArray(size * height * 3);
  for (let row = 0; row < height; row++) {
    weights.forEach(([from, each], to) => {
      for (let channel = 0; channel < 3; channel++) {
        let sum = 0, at = (row * width + from) * channels + channel;
        for (const weight of each) {
          sum += weight * pixels[at];
          at += channels;
        }
        found[(to * height + row) * 3 + channel] = sum;
      }
    });
  }
  return found;
}

function fitted(pixels, width, height, size) {
  const side = Math.min(width, height), along = (length) => weightsOf(length, (length - side) / 2, side, size);
  return resizedRows(resizedRows(pixels, width, 4, along(width)), height, 3, along(height));
}

// The number of pixels of a picture's file, without decoding it; 0 if it is not a picture.
async function pixelsOf(file) {
  const image = new Image(), source = URL.createObjectURL(file);
  await new Promise((done) => Object.assign(image, { onload: done, onerror: done, src: source }));
  URL.revokeObjectURL(source);
  return image.naturalWidth * image.naturalHeight;
}

// Pixels (size, size, 3) of a picture's file; transparent pixels are white, and the EXIF orientation is applied.
async function squareOf({ file, name }, size) {
  if ((await pixelsOf(file)) > settings.maxPixels) {
    throw new Refused(400, `${name} has more than ${settings.maxPixels} pixels; shrink it.`);
  }
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" }).catch(() => null);
  if (!bitmap) throw new Refused(400, `${name} is not a picture that this browser reads; give a JPEG or PNG.`);
  const { width, height } = bitmap;
  const context = Object.assign(document.createElement("canvas"), { width, height }).getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  return fitted(context.getImageData(0, 0, width, height).data, width, height, size);
}
