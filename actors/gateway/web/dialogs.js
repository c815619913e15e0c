// The dialogs, each opened by a button of the page. The browser keeps the focus in them, and Escape closes them.

import { byId } from "./dom.js";

// `onOpen`: shows what is there; `everyMs`: and again as long as the dialog is open and the page is seen.
export function setUpDialog(name, { onOpen = () => {}, everyMs = 0 } = {}) {
  const dialog = byId(name), button = byId(`${name}-button`);
  let timer = 0;
  button.addEventListener("click", () => {
    dialog.showModal();
    onOpen();
    if (everyMs) timer = setInterval(() => { if (!document.hidden) onOpen(); }, everyMs);
  });
  dialog.addEventListener("close", () => {
    clearInterval(timer);
    button.focus();
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog || event.target.closest(".close")) dialog.close(); // the backdrop is the dialog's own
  });
}
