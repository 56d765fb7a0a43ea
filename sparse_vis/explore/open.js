"use strict";
// Opens pictures from files, the clipboard, the camera and the examples; drags tokens.
const DRAGGED = "application/x-token";

// Pictures are opened one after the other.
let opening = Promise.resolve();
function openPicture(given, name) {
  const done = opening.then(() => openNext(given, name));
  opening = done.catch(() => {});
  return done;
}

async function openNext(given, name) {
  say(`Reading ${name}.`);
  if (given.size > settings.maxBytes) {
    throw new Refused(0, `${name} has more than ${settings.maxBytes >> 20} MiB; give a smaller picture.`);
  }
  // The bytes are kept in memory, as the file may change or be deleted.
  const bytes = await given.arrayBuffer().catch(() => null);
  if (!bytes) throw new Refused(0, `${name} cannot be read, or is a folder; choose a picture.`);
  const picture = { name, file: new Blob([bytes], { type: given.type }), ...fresh() };
  await send(picture);
  const same = view.pictures.find((each) => each.key === picture.key);
  if (!same) view.pictures.push(picture);
  else same.closed = false;
  return showPicture(same ?? picture);
}

addEventListener("beforeunload", (event) => {
  if (view.pictures.some(({ past, future }) => past.length || future.length)) event.preventDefault();
});

function showPicture(picture) {
  view.current = picture;
  view.preview = view.pointed = drag = null; // these belong to the picture that was shown before
  return refresh();
}

async function openAll(files) {
  const wrong = [];
  for (const file of files) {
    try {
      await openPicture(file, file.name || "pasted picture");
    } catch (error) {
      wrong.push(error.message);
    }
  }
  if (wrong.length) say(wrong.join(" "), true);
}

$("file").addEventListener("change", async () => { await openAll([...$("file").files]); $("file").value = ""; });
for (const button of document.querySelectorAll("[data-example]")) {
  const file = button.dataset.example, name = button.textContent.trim();
  button.addEventListener("click", () => attempt(async () => openPicture(await (await fileOf(file)).blob(), name)));
}
function openThese(files, what) {
  if (files.length) openAll(files);
  else say(`There is no picture in what was ${what}; save it as a file and choose that.`, true);
}
document.addEventListener("paste", (event) => openThese([...(event.clipboardData?.files ?? [])], "pasted"));
// The token below a dragged one is shown as if the mouse pointed at it.
function pointAt(onto) {
  const pointed = onto ? +onto.dataset.token : null;
  if (!view.current || pointed === view.pointed) return;
  view.pointed = pointed;
  showMap();
}
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  pointAt(tokenAt(event.target));
});
document.addEventListener("dragend", () => pointAt(null));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  pointAt(null);
  const dragged = event.dataTransfer.getData(DRAGGED), onto = tokenAt(event.target);
  if (!dragged) return openThese([...event.dataTransfer.files], "dropped");
  const from = JSON.parse(dragged);
  if (!view.pictures.some((each) => each.key === from.picture)) {
    return say("The picture of this token is not open on this page; open it here first.", true);
  }
  if (onto) commit({ kind: "replace", token: +onto.dataset.token, from, amount: 1 });
});
document.addEventListener("dragstart", (event) => {
  const button = event.target.closest?.(".token");
  if (!button) return;
  const picture = button.dataset.picture ?? view.current.key;
  event.dataTransfer.setData(DRAGGED, JSON.stringify({ picture, side: view.side, token: +button.dataset.token }));
});

$("camera").addEventListener("click", () => attempt(async () => {
  if (!navigator.mediaDevices) {
    throw new Refused(0, "Browsers give the camera only to https:// pages and those of this computer; choose a file.");
  }
  $("camera").disabled = true; // only one camera can be closed
  try {
    $("video").srcObject = await navigator.mediaDevices.getUserMedia({ video: true });
  } catch (error) {
    $("camera").disabled = false;
    throw new Refused(0, `The camera cannot be used (${error.message}); allow it, or choose a file.`);
  }
  $("taking").hidden = false;
  await $("video").play();
  $("take").focus();
}));
function closeCamera() {
  for (const track of $("video").srcObject?.getTracks() ?? []) track.stop();
  $("video").srcObject = null;
  $("taking").hidden = true;
  $("camera").disabled = false;
  $("camera").focus();
}
$("close").addEventListener("click", closeCamera);
$("take").addEventListener("click", () => attempt(async () => {
  const { videoWidth: width, videoHeight: height } = $("video");
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  canvas.getContext("2d").drawImage($("video"), 0, 0);
  closeCamera();
  const file = await new Promise((done) => canvas.toBlob(done, "image/png"));
  const taken = view.pictures.filter((picture) => picture.name.startsWith("camera")).length;
  await openPicture(file, `camera ${taken + 1}`);
}));
