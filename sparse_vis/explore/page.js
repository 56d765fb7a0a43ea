"use strict";
// Settings of the page, and what it says. Errors have one sentence for the reader.
const settings = JSON.parse(document.body.dataset.settings);
const $ = (id) => document.getElementById(id);

class Refused extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

function say(sentence, wrong = false) {
  $("said").textContent = sentence;
  $("said").classList.toggle("wrong", wrong);
}

// Runs something and says what went wrong with it.
async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof Refused)) console.error(error);
    say(error.message, true);
  }
}
