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
  let said = { error: text };
  try { said = JSON.parse(text); } catch { /* it is not JSON */ }
  throw new Refused(answer.status, said.error || `The server failed (${answer.status}).`, said.picture);
}

async function send(picture) {
  const answer = await ask(`picture?name=${encodeURIComponent(picture.name)}`, picture.file);
  picture.key = (await answer.json()).picture;
}

// The server's answer for a picture after some edits. It keeps few pictures, so that dropped ones are sent again.
async function about(path, picture, edits, side = view.side) {
  const body = JSON.stringify({ picture: picture.key, side, edits });
  for (let left = view.pictures.length; ; left--) {
    try {
      return await ask(path, body);
    } catch (error) {
      const dropped = view.pictures.find((each) => each.key === error.picture);
      if (!dropped || !left) throw error;
      await send(dropped);
    }
  }
}
