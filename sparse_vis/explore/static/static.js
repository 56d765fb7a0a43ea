"use strict";
// Replaces server.js: encoder and decoder run in the browser, with onnxruntime-web.
const { side, patch } = settings, SIZE = side * patch;
const held = new Map(); // key of a picture -> its pixels, S and L

let programs = null; // encoder and decoder, loaded for the first picture
let arrived = 0, whole = 0; // bytes of all programs
async function arriving(name) {
  const answer = await fileOf(name), reader = answer.body.getReader(), parts = [];
  whole += +answer.headers.get("Content-Length");
  for (let part; !(part = await reader.read()).done;) {
    parts.push(part.value);
    arrived += part.value.length;
    const [have, all] = [arrived, whole].map((x) => Math.ceil(x / 1e6));
    say(`Loading the model: ${have}${all < have ? "" : ` of ${all}`} MB.`); // hosts that compress files do not tell their sizes
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}
async function programOf(name, runtime) {
  const bytes = await arriving(`${name}.onnx`);
  ort.env.wasm.wasmBinary = await runtime;
  try {
    ort.env.wasm.numThreads = 1; // more threads need headers that most static hosts do not send
    return await ort.InferenceSession.create(bytes);
  } catch (error) {
    console.error(error);
    const what = "The model does not start, as a file of this page is missing or damaged, or the browser is too old";
    throw new Refused(0, `${what}; export the page again, or use another browser.`);
  }
}
async function loaded(name) {
  if (!programs) {
    arrived = whole = 0;
    const runtime = arriving(settings.runtime);
    programs = { encoder: programOf("encoder", runtime), decoder: programOf("decoder", runtime) };
    for (const other of [programs.decoder, runtime]) other.catch(() => {}); // the message comes when it is needed
  }
  try {
    return await programs[name];
  } catch (error) {
    programs = null; // the next picture tries again
    throw error;
  }
}

let last = Promise.resolve(); // onnxruntime-web runs one program at a time
async function run(name, inputs, outputs) {
  const program = await loaded(name), done = last.then(() => program.run(inputs(), outputs));
  last = done.catch(() => {});
  return done;
}

async function encoded(pixels) {
  const { sparse, spatial } = await run("encoder", () => ({
    images: new ort.Tensor("uint8", new Uint8Array(pixels), [1, SIZE, SIZE, 3]),
  }), ["sparse", "spatial"]);
  const [, r, d] = sparse.dims;
  return { S: sparse.data, L: spatial.data, r, d, grid: [side, side] };
}

async function decoded({ S, L, r, d }) {
  const { pixels } = await run("decoder", () => ({
    sparse: new ort.Tensor("float32", S, [1, r, d]), spatial: new ort.Tensor("float32", L, [1, side * side, r]),
  }), ["pixels"]);
  return Uint8ClampedArray.from(pixels.data, (x) => 255 * x);
}

async function send(picture) {
  const file = new Uint8Array(await picture.file.arrayBuffer());
  picture.key = `${crc32(file).toString(16)}-${file.length}`;
  if (held.has(picture.key)) return;
  const pixels = await squareOf(picture, SIZE);
  held.set(picture.key, { pixels, ...(await encoded(pixels)) });
}

function canvasOf(pixels) {
  const canvas = document.createElement("canvas");
  fill(canvas, SIZE, (i) => [pixels[3 * i], pixels[3 * i + 1], pixels[3 * i + 2], 255]);
  return canvas;
}

const base64 = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
const numbers = (length, work) => Array.from({ length }, (_, i) => work(i));

function psnrOf(one, other) {
  const error = one.reduce((sum, x, i) => sum + ((x - other[i]) / 255) ** 2, 0) / one.length;
  return -10 * Math.log10(Math.max(error, 1e-10));
}

// The server's answers of these names, for a picture and its edits.
const ANSWERS = {
  async edit(found, edits) {
    const after = replay(found, edits), pixels = await decoded(after);
    const maps = numbers(after.r, (token) => mapIn(after, token)), peaks = maps.map((map) => Math.max(...map));
    const relative = maps.flatMap((map, token) => [...map].map((x) => (255 * x) / Math.max(peaks[token], 1e-12)));
    const winners = numbers(side * side, (place) => {
      const weights = maps.map((map) => map[place]);
      return weights.indexOf(Math.max(...weights));
    });
    return JSON.stringify({
      picture: canvasOf(pixels).toDataURL("image/png").split(",")[1], psnr: psnrOf(pixels, found.pixels),
      maps: base64(Uint8ClampedArray.from(relative)), peaks, winners: base64(winners),
      shares: maps.map((map) => map.reduce((a, b) => a + b, 0) / map.length),
    });
  },
  async again(found, edits) {
    const after = replay(found, edits), again = await encoded(await decoded(after));
    const product = (a, b, token) => numbers(after.d, (i) => a.S[token * after.d + i] * b.S[token * after.d + i])
      .reduce((x, y) => x + y);
    return JSON.stringify(numbers(after.r, (token) => {
      const lengths = Math.sqrt(product(again, again, token) * product(after, after, token));
      const cosine = product(again, after, token) / Math.max(lengths, 1e-12);
      return hasMap(after, token) ? cosine : null;
    }));
  },
  photograph: (found) => new Promise((done) => canvasOf(found.pixels).toBlob(done, "image/png")),
  save(found, edits) {
    replay(found, edits); // throws, so that only valid edits are saved
    return npz(found, edits);
  },
};

async function about(path, picture, edits) {
  const resolved = edits.map(({ from, ...edit }) => {
    if (!from) return edit;
    const { S, d } = held.get(from.picture);
    return { ...edit, vector: [...S.subarray(from.token * d, (from.token + 1) * d)] };
  });
  return new Response(await ANSWERS[path](held.get(picture.key), resolved));
}
