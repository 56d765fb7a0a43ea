"use strict";
// Arrays as NumPy's .npz: a zip archive of .npy files, not compressed.
const CRC = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});
function crc32(bytes) {
  let sum = -1;
  for (const byte of bytes) sum = CRC[(sum ^ byte) & 255] ^ (sum >>> 8);
  return ~sum >>> 0;
}

const ascii = (text) => Uint8Array.from(text, (letter) => letter.charCodeAt(0));
// Whole numbers of 2 or 4 bytes each, little-endian: [[2, a], [4, b], ...].
const packed = (...numbers) => numbers.flatMap(([size, x]) => Array.from({ length: size }, (_, i) => (x >>> (8 * i)) & 255));

function npy(kind, shape, values) {
  const about = `{'descr': '${kind}', 'fortran_order': False, 'shape': (${shape.map((x) => `${x}, `).join("")}), }`;
  const header = about.padEnd(Math.ceil((about.length + 11) / 64) * 64 - 11) + "\n"; // aligned to 64 bytes with its start
  return new Blob([ascii("\x93NUMPY\x01\x00"), Uint8Array.from(packed([2, header.length])), ascii(header), values]);
}

// The file that saved.py reads. `found`: before the edits.
function npz(found, edits) {
  const text = JSON.stringify(edits), [rows, columns] = found.grid;
  return zip({
    S: npy("<f4", [found.r, found.d], found.S), L: npy("<f4", [rows * columns, found.r], found.L),
    grid: npy("<i4", [2], Int32Array.of(rows, columns)),
    edits: npy(`<U${text.length}`, [], Uint32Array.from(text, (letter) => letter.charCodeAt(0))),
  });
}

async function zip(arrays) {
  const files = [], directory = [], DAY = 33; // 1 January 1980
  let at = 0;
  for (const [array, blob] of Object.entries(arrays)) {
    const name = ascii(`${array}.npy`), bytes = new Uint8Array(await blob.arrayBuffer());
    const about = packed([2, 20], [2, 0], [2, 0], [2, 0], [2, DAY], [4, crc32(bytes)], [4, bytes.length], [4, bytes.length], [2, name.length]);
    files.push(ascii("PK\x03\x04"), Uint8Array.from([...about, ...packed([2, 0])]), name, bytes);
    directory.push(ascii("PK\x01\x02"), Uint8Array.from([...packed([2, 20]), ...about, ...packed([4, 0], [4, 0], [4, 0], [4, at])]), name);
    at += 30 + name.length + bytes.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0), count = Object.keys(arrays).length;
  const end = Uint8Array.from(packed([4, 0], [2, count], [2, count], [4, size], [4, at], [2, 0]));
  return new Blob([...files, ...directory, ascii("PK\x05\x06"), end]);
}
