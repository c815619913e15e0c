// The page: puts its parts together.

import { saveAll } from "./answering.js";
import { doors, isLocked, key } from "./api.js";
import { fit, setUpChat, showConversation, stopShown } from "./chat.js";
import { setUpDialog } from "./dialogs.js";
import { byId } from "./dom.js";
import { lookForModels, setUpModels } from "./models.js";
import { setUpSettings } from "./settings.js";
import { closeMenu, open, setUpSidebar, showList } from "./sidebar.js";
import { conversations, news } from "./store.js";
import { setUpTheme } from "./theme.js";
import { setUpTraining, trainingIsThere } from "./training.js";
import { glanceAtWaiting, setUpWaiting } from "./waiting.js";

const GLANCE_MS = 5000;

setUpTheme();
setUpSettings();
setUpDialog("settings");
setUpChat(showList);
showConversation(conversations()[0]?.id);
setUpSidebar();
setUpModels();
setUpTraining();
setUpWaiting();
setUpKey();
showSections();
setInterval(() => { if (!document.hidden && !isLocked()) showSections(); }, GLANCE_MS);
fit();
byId("prompt").focus();

// Parts that the company has nothing for, or that this key does not open, are left out.
async function showSections() {
  const parts = [["training", trainingIsThere], ["waiting", glanceAtWaiting]];
  await Promise.allSettled(parts.map(async ([name, look]) => {
    const there = await look().catch(() => false);
    byId(`${name}-button`).hidden = !there && !byId(name).open;
  }));
}

function setUpKey() {
  const dialog = byId("key");
  doors.addEventListener("locked", () => { if (!dialog.open) dialog.showModal(); });
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    key.set(byId("key-field").value.trim());
    byId("key-field").value = "";
    dialog.close();
    lookForModels();
    showSections();
  });
}

news.addEventListener("full", () => { byId("full").hidden = false; });
addEventListener("pagehide", saveAll);
addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") {
    closeMenu();
    stopShown();
  } else if (event.altKey && event.code === "KeyN") {
    event.preventDefault();
    open(null);
  }
});
