"use strict";
// Pointing at a patch of an image shows its token, like pointing at the token's button.
for (const stage of document.querySelectorAll(".seen")) {
  const winners = JSON.parse(stage.dataset.winners);
  const buttons = stage.parentElement.querySelectorAll("[data-token]");
  const show = (token) => buttons.forEach((button, i) => button.classList.toggle("on", i === token));
  stage.addEventListener("pointermove", (event) => {
    const box = stage.getBoundingClientRect();
    const place = (at, length, cells) => Math.min(cells - 1, Math.max(0, Math.floor((at / length) * cells)));
    const row = winners[place(event.clientY - box.top, box.height, winners.length)];
    show(row[place(event.clientX - box.left, box.width, row.length)]);
  });
  stage.addEventListener("pointerleave", () => show(-1));
}

// Copies the command that starts `explore`, or selects it if the browser does not allow copying.
document.getElementById("copy")?.addEventListener("click", async () => {
  const command = document.getElementById("command"), copied = document.getElementById("copied");
  try {
    await navigator.clipboard.writeText(command.textContent);
    copied.textContent = "Copied.";
  } catch {
    getSelection().selectAllChildren(command);
    copied.textContent = "Selected: press Ctrl+C.";
  }
});
