// The conversations that this browser keeps.

import { abandon, isAnswering } from "./answering.js";
import { showConversation, shownId } from "./chat.js";
import { announce, byId, el } from "./dom.js";
import { conversations, news, remove } from "./store.js";

// Narrower than this the list lies over the conversation and is opened by a button (style.css).
const NARROW = matchMedia("(max-width: 760px)");

export function setUpSidebar() {
  byId("new").addEventListener("click", () => open(null));
  byId("menu").addEventListener("click", () => setOpen(!document.body.classList.contains("menu-open")));
  byId("veil").addEventListener("click", () => setOpen(false));
  news.addEventListener("changed", ({ detail }) => {
    if (detail === shownId() && !isAnswering(detail)) showConversation(detail);
    showList();
  });
  const showNarrow = () => setOpen(false);
  NARROW.addEventListener("change", showNarrow);
  showNarrow();
  showList();
}

function setOpen(wanted) {
  document.body.classList.toggle("menu-open", wanted);
  byId("menu").setAttribute("aria-expanded", wanted || !NARROW.matches);
  byId("sidebar").inert = NARROW.matches && !wanted; // what is not seen takes no focus
  if (wanted) byId("new").focus();
}

export function closeMenu() {
  if (document.body.classList.contains("menu-open")) {
    setOpen(false);
    byId("menu").focus();
  }
}

export function open(id) {
  showConversation(id);
  showList();
  setOpen(false);
  byId("prompt").focus();
}

export function showList() {
  byId("conversations").replaceChildren(...conversations().map(entry));
}

function entry({ id, title }) {
  const name = title || "Untitled";
  const current = id === shownId();
  const button = (properties, ...words) => el("button", { type: "button", ...properties }, ...words);
  const isCurrent = current ? "true" : null;
  return el("li", { class: current ? "current" : null },
    button({ class: "open", title: name, "aria-current": isCurrent, onclick: () => open(id) },
      isAnswering(id) ? "… " : "", name),
    button({ class: "delete", "aria-label": `Delete “${name}”`, onclick: () => forget(id, name) }, "×"));
}

function forget(id, name) {
  if (!confirm(`Delete “${name}”? It is kept nowhere else.`)) return;
  abandon(id);
  remove(id);
  announce(`Deleted ${name}.`);
  if (id === shownId()) showConversation(null);
  showList();
  byId("new").focus();
}
