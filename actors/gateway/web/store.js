// What this browser keeps: conversations, the settings, how the page looks. Nothing of it leaves the browser.

const PREFIX = "callboard.conversation.";
const SETTINGS = "callboard.settings", THEME = "callboard.theme", NAME = "callboard.name";

// Listeners hear "full" when the browser has no room left, and "changed" with what another tab did.
export const news = new EventTarget();

export function newConversation() {
  const now = Date.now();
  // Without a secure context there is no randomUUID.
  const id = crypto.randomUUID?.() ?? `${now}-${Math.random().toString(36).slice(2)}`;
  return { id, title: "", created: now, changed: now, messages: [] };
}

export function conversations() {
  const found = Object.keys(localStorage).filter((name) => name.startsWith(PREFIX)).map((name) => load(name));
  return found.filter((one) => one !== null).sort((a, b) => b.changed - a.changed);
}

export const conversation = (id) => load(PREFIX + id);

export function save(one) {
  write(PREFIX + one.id, JSON.stringify(one));
}

export function remove(id) {
  localStorage.removeItem(PREFIX + id);
}

function load(name) {
  const value = parsed(localStorage.getItem(name));
  const sound = value && typeof value.id === "string" && Array.isArray(value.messages);
  return sound ? value : null;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // of another version of this page, or damaged
  }
}

function write(name, text) {
  try {
    localStorage.setItem(name, text);
  } catch {
    news.dispatchEvent(new Event("full"));
  }
}

export const settings = {
  get: () => parsed(localStorage.getItem(SETTINGS)) ?? {},
  set: (value) => write(SETTINGS, JSON.stringify(value)),
};

export const theme = {
  get: () => localStorage.getItem(THEME) ?? "auto",
  set: (value) => write(THEME, value),
};

// What the page's user is called in answers to approvals.
export const userName = {
  get: () => localStorage.getItem(NAME) ?? "",
  set: (value) => write(NAME, value),
};

addEventListener("storage", (event) => {
  if (event.key?.startsWith(PREFIX)) {
    news.dispatchEvent(new CustomEvent("changed", { detail: event.key.slice(PREFIX.length) }));
  }
});
