"use strict";
// Settings of the page, and its messages. Every error has one sentence for the user.
const settings = JSON.parse(document.body.dataset.settings);
const $ = (id) => document.getElementById(id);
const START = $("said").textContent;

class Refused extends Error {
  constructor(status, sentence, picture = null) {
    super(sentence);
    Object.assign(this, { status, picture }); // the key of a picture that the server does not hold
  }
}

function say(sentence, wrong = false) {
  $("said").textContent = sentence;
  $("said").classList.toggle("wrong", wrong);
}

// Runs something, and shows the message of its error.
async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof Refused)) console.error(error);
    say(error.message, true);
  }
}

// A file of the page.
async function fileOf(name) {
  const answer = await fetch(`files/${name}`, { headers: { "X-Token": settings.token } }).catch(() => null);
  if (answer?.ok) return answer;
  let remedy = "reload the page";
  if (settings.token) remedy = "start the server again and open its new address";
  if (location.protocol === "file:") remedy = "serve the page's folder with python -m http.server, and open that address";
  throw new Refused(0, `files/${name} cannot be loaded; ${remedy}.`);
}
