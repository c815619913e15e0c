// The conversation that is looked at: its messages, and the field that goes on with it.

import { answer, answers, isAnswering, live, stop } from "./answering.js";
import { announce, byId, copy, flash } from "./dom.js";
import { messageView, update } from "./messages.js";
import { chosenModel } from "./models.js";
import { wrongSetting } from "./settings.js";
import { conversation as stored, newConversation, save } from "./store.js";

const NEAR_END = 80; // pixels: so close to its end a reader follows the answer
const TITLE_LENGTH = 60;

let shown = newConversation();
let views = [];
let changed = () => {};

export const shownId = () => shown.id;

// `onChange`: the list of conversations may look different now.
export function setUpChat(onChange) {
  changed = onChange;
  const field = byId("prompt");
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (isAnswering(shown.id)) stop(shown.id);
    else send(field.value);
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !isAnswering(shown.id)) {
      event.preventDefault();
      send(field.value);
    }
  });
  field.addEventListener("input", fit);
  byId("model").addEventListener("refreshed", showState);
  byId("log").addEventListener("click", (event) => {
    const button = event.target.closest(".copy-code");
    if (button) flash(button, () => copy(button.closest("figure").querySelector("code").textContent), "Copied");
  });
  byId("log").addEventListener("scroll", () => { byId("to-end").hidden = isAtEnd(); });
  byId("to-end").addEventListener("click", () => { toEnd(); field.focus(); });
  answers.addEventListener("begun", ({ detail }) => onMine(detail, begun));
  answers.addEventListener("grown", ({ detail }) => onMine(detail, grown));
  answers.addEventListener("ended", ({ detail }) => onMine(detail, ended));
}

function onMine({ conversation, message }, work) {
  if (conversation.id === shown.id) work(message);
  if (work !== grown) changed();
}

// Looks at a conversation, or at a new one that is not kept before something is said in it.
export function showConversation(id) {
  shown = (id && (live(id) ?? stored(id))) || newConversation();
  views = shown.messages.map((message, index) => messageView(message, index, act));
  byId("messages").replaceChildren(...views.map((view) => view.node));
  if (isAnswering(shown.id)) update(views.at(-1), shown.messages.at(-1), true);
  showState();
  toEnd();
}

export function stopShown() {
  if (isAnswering(shown.id)) stop(shown.id);
}

function send(text) {
  if (!text.trim() || !ready()) return;
  byId("prompt").value = "";
  fit();
  if (!shown.title) shown.title = titled(text);
  add({ role: "user", content: text.trim() });
  go();
}

// Says what is missing where something is.
function ready() {
  if (!chosenModel()) {
    byId("model-status").textContent ||= "Still looking for models …";
    return false;
  }
  const wrong = wrongSetting();
  if (!wrong) return true;
  byId("settings").showModal();
  wrong.reportValidity();
  return false;
}

function go() {
  shown.model = chosenModel();
  shown.changed = Date.now();
  save(shown);
  answer(shown, chosenModel());
}

function add(message) {
  shown.messages.push(message);
  show(message);
  toEnd();
}

function show(message) {
  const view = messageView(message, views.length, act);
  views.push(view);
  byId("messages").append(view.node);
}

function act(what, index) {
  if (isAnswering(shown.id)) return;
  if (what === "retry") {
    if (!ready()) return;
    cut(index);
    go();
    return;
  }
  byId("prompt").value = shown.messages[index].content;
  cut(index);
  save(shown);
  fit();
  showState();
  byId("prompt").focus();
}

// Forgets the messages from that one on.
function cut(index) {
  shown.messages.length = index;
  for (const view of views.splice(index)) view.node.remove();
}

function begun(message) {
  show(message);
  update(views.at(-1), message, true);
  showState();
  toEnd();
  announce("The model answers.");
}

// Many pieces may come between two frames; they are drawn once.
let due = 0;
function grown() {
  due ||= requestAnimationFrame(() => {
    due = 0;
    if (!isAnswering(shown.id)) return;
    const follow = isAtEnd();
    update(views.at(-1), shown.messages.at(-1), true);
    if (follow) toEnd();
  });
}

function ended(message) {
  const follow = isAtEnd();
  update(views.at(-1), message, false);
  showState();
  if (follow) toEnd();
  announce(message.error ? `Failed: ${message.error}` : "The answer is there.");
}

function showState() {
  const busy = isAnswering(shown.id), empty = !shown.messages.length;
  byId("empty").hidden = !empty;
  byId("log").setAttribute("aria-busy", busy);
  byId("log").classList.toggle("busy", busy);
  const button = byId("send");
  button.textContent = busy ? "Stop" : "Send";
  button.classList.toggle("stop", busy);
  button.disabled = !busy && !chosenModel();
  document.title = shown.title ? `${shown.title} · Callboard` : "Callboard";
}

function isAtEnd() {
  const log = byId("log");
  return log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_END;
}

function toEnd() {
  const log = byId("log");
  log.scrollTop = log.scrollHeight;
  byId("to-end").hidden = true;
}

// The field grows with its text, up to what its style allows.
export function fit() {
  const field = byId("prompt");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

function titled(text) {
  const words = text.trim().split("\n")[0];
  return words.length > TITLE_LENGTH ? `${words.slice(0, TITLE_LENGTH - 1)}…` : words;
}
