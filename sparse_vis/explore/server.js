"use strict";
// Requests to the server.
async function ask(path, body) {
  let answer;
  try {
    answer = await fetch(path, { method: "POST", headers: { "X-Token": settings.token }, body });
  } catch {
    throw new Refused(0, "The server does not answer; start it again and open its new address.");
  }
  if (answer.ok) return answer;
  const text = await answer.text();
  let sentence = text;
  try { sentence = JSON.parse(text).error; } catch { /* it is no JSON */ }
  throw new Refused(answer.status, sentence || `The server failed (${answer.status}).`);
}

async function send(picture) {
  const answer = await ask(`picture?name=${encodeURIComponent(picture.name)}`, picture.file);
  picture.key = (await answer.json()).picture;
}

// What the server says of a picture after some edits. It keeps few pictures: one that it dropped is sent again,
// after those from which the edits take tokens.
async function about(path, picture, edits, side = view.side) {
  const body = JSON.stringify({ picture: picture.key, side, edits });
  try {
    return await ask(path, body);
  } catch (error) {
    if (error.status !== 404) throw error;
  }
  const taken = new Set(edits.map((edit) => edit.from?.picture));
  for (const each of view.pictures.filter((other) => taken.has(other.key))) await send(each);
  await send(picture);
  return ask(path, body);
}
