"use strict";
// Buttons, keys and sliders.
const AWAY = { left: [0, -1], right: [0, 1], up: [-1, 0], down: [1, 0] };
const GROW = 1.25, FAR = 4; // factor of "Larger"; patches per arrow key with Shift

const EDITS = {
  ...Object.fromEntries(Object.entries(AWAY).map(([name, [down, right]]) => [name, (t) => nudge(t, down, right)])),
  larger: (token) => commit({ kind: "scale", token, factor: GROW }),
  smaller: (token) => commit({ kind: "scale", token, factor: 1 / GROW }),
  horizontal: (token) => commit({ kind: "mirror", token, axis: "horizontal" }),
  vertical: (token) => commit({ kind: "mirror", token, axis: "vertical" }),
  copy: copyMap,
  erase: (token) => commit({ kind: "erase", token }),
};
const KEYS = { "+": "larger", "=": "larger", "-": "smaller", m: "horizontal", M: "vertical", Delete: "erase", Backspace: "erase" };

function choose(token) {
  view.chosen = token;
  if (token === null) for (const stage of document.querySelectorAll(".seen")) showBrush(stage, null);
  showMap();
  updateButtons();
}

function updateButtons() {
  const { edits, power, past, future } = view.current;
  $("undo").disabled = !past.length;
  $("redo").disabled = !future.length;
  $("reset").disabled = !edits.length && power === 1;
  $("tools").toggleAttribute("inert", view.chosen === null);
  $("tools").classList.toggle("off", view.chosen === null);
  $("work").classList.toggle("chosen", view.chosen !== null); // then a finger moves its map, otherwise it scrolls
  const { value, dataset } = $("side");
  $("side").nextElementSibling.textContent = `${value} × ${value} patches, ${value * dataset.patch} px${+value === settings.trained ? ", as in training" : ""}`;
  const tau = settings.temperature / power;
  $("temperature").value = -Math.log2(power);
  $("temperature").nextElementSibling.textContent = `τ = ${tau.toPrecision(2)}${power === 1 ? ", the model’s" : ""}`;
  showReplacement();
  $("amount").nextElementSibling.textContent = `${Math.round(100 * $("amount").value)} %`;
}

for (const button of document.querySelectorAll("[data-edit]")) {
  button.addEventListener("click", () => EDITS[button.dataset.edit](view.chosen));
}
for (const [id, work] of Object.entries({ undo, redo, reset })) $(id).addEventListener("click", work);

const savedName = (kind) => `${view.current.name.replace(/\.\w+$/, "")}-edited.${kind}`;
$("png").addEventListener("click", () => download(savedName("png"), $("reconstruction").querySelector("img").src));
$("npz").addEventListener("click", () => attempt(async () => {
  const file = await (await about("save", view.current, editsOf(view.current))).blob();
  download(savedName("npz"), URL.createObjectURL(file));
}));

$("side").addEventListener("input", updateButtons);
$("side").addEventListener("change", () => { setSide(+$("side").value); refresh(); });
$("temperature").addEventListener("input", () => { setPower(2 ** -$("temperature").value); });

// The list and the slider show and change the replacement that the chosen token has.
function showReplacement() {
  const edit = replacementOf(view.chosen), options = () => [...$("source").options].map(({ value }) => value);
  const value = edit ? `${edit.from.picture}:${edit.from.token}` : "";
  if (!options().includes(value)) $("source").append(sourceOption(pictureOf(edit.from.picture), edit.from.token));
  $("source").value = value;
  $("amount").value = edit?.amount ?? 1;
  $("amount").disabled = !edit;
}
const pictureOf = (key) => view.pictures.find((each) => each.key === key);
function replaceChosen(picture, token, amount = 1) {
  commit({ kind: "replace", token: view.chosen, from: { picture, side: view.side, token }, amount });
}
$("source").addEventListener("change", () => {
  const [picture, token] = $("source").value.split(":");
  if (picture) replaceChosen(picture, +token, +$("amount").value);
  else change({ edits: withoutReplacement(view.current.edits, view.chosen) });
});
const withAmount = () => {
  const { side, ...edit } = replacementOf(view.chosen);
  return { ...edit, amount: +$("amount").value };
};
$("amount").addEventListener("input", () => { view.preview = withAmount(); refresh(); });
$("amount").addEventListener("change", () => commit(withAmount()));

// Tokens of the gallery that are most like the chosen one.
$("similar")?.addEventListener("click", () => attempt(async () => {
  say("Searching.");
  const { current, chosen } = view, answer = await about(`similar/${chosen}`, current, editsOf(current));
  const heading = document.createElement("h2");
  heading.textContent = `Most similar to token ${chosen} of ${current.name}`;
  $("found").replaceChildren(heading, ...(await answer.json()).map(({ name, token, cosine, picture }) => {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    caption.textContent = `token ${token} of ${name}, cosine ${cosine.toFixed(2)}`;
    figure.append(Object.assign(new Image(), { src: `data:image/png;base64,${picture}`, alt: "" }), caption);
    return figure;
  }));
  say("");
}));

const tokenAt = (target) => target.closest?.("#tokens .token");
for (const [event, enters] of [["pointerover", true], ["pointerout", false], ["focusin", true], ["focusout", false]]) {
  $("tokens").addEventListener(event, ({ target }) => {
    if (!tokenAt(target)) return;
    view.pointed = enters ? +tokenAt(target).dataset.token : null;
    showMap();
  });
}
$("tokens").addEventListener("click", ({ target }) => {
  const token = tokenAt(target) ? +tokenAt(target).dataset.token : view.chosen;
  choose(token === view.chosen ? null : token);
});

// Whether a control itself uses a key: arrows, or letters in a list.
const usesKey = (control, key) => (control.matches("select") ? key.length === 1 || key.startsWith("Arrow")
  : control.matches("input") && key.startsWith("Arrow"));
document.addEventListener("keydown", (event) => {
  if (!view.current) return;
  if ((event.ctrlKey || event.metaKey) && "zZyY".includes(event.key)) {
    event.preventDefault();
    return event.key === "z" ? undo() : redo();
  }
  if (usesKey(event.target, event.key)) return;
  if (event.key === "Escape") return choose(null);
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const button = tokenAt(event.target), token = button ? +button.dataset.token : view.chosen;
  if (token === null) return;
  const away = AWAY[event.key.replace("Arrow", "").toLowerCase()], arrow = event.key.startsWith("Arrow");
  if (arrow && brush() !== null && event.target.matches(".seen")) return; // stages.js moves the brush
  if (!arrow && !(event.key in KEYS)) return;
  event.preventDefault();
  if (view.chosen !== token) choose(token);
  if (arrow) nudge(token, ...away.map((step) => step * (event.shiftKey ? FAR : 1)));
  else EDITS[KEYS[event.key]](token);
});
