// What waits for a person: calls that agents may not make unasked, and questions on the company's board.

import { json } from "./api.js";
import { setUpDialog } from "./dialogs.js";
import { announce, byId, el } from "./dom.js";
import { userName } from "./store.js";

const EVERY_MS = 2000;
let known = "";

export function setUpWaiting() {
  setUpDialog("waiting", { onOpen: refresh, everyMs: EVERY_MS });
  const name = byId("waiting-name");
  name.value = userName.get();
  name.addEventListener("change", () => userName.set(name.value.trim()));
}

// How many wait, for the number on the button; whether there is anybody to ask.
export async function glanceAtWaiting() {
  const found = await json("/web/waiting");
  if (!byId("waiting").open) show(found);
  return found.available;
}

async function refresh() {
  try {
    show(await json("/web/waiting"));
    byId("waiting-status").textContent = byId("waiting-list").childElementCount ? "" : "Nothing waits for you.";
  } catch (error) {
    byId("waiting-status").textContent = error.message;
  }
}

// What somebody is about to answer must not change under the pointer: entries that stay are left as they are.
function show({ approvals, questions }) {
  const list = byId("waiting-list");
  const wanted = new Map([...approvals.map((one) => [`a-${one.id}`, () => approval(one)]),
    ...questions.map((one) => [`q-${one.id}`, () => question(one)])]);
  for (const node of [...list.children]) if (!wanted.has(node.dataset.key)) node.remove();
  const there = new Set([...list.children].map((node) => node.dataset.key));
  for (const [key, make] of wanted) {
    if (there.has(key)) continue;
    const node = make();
    node.dataset.key = key;
    list.append(node);
  }
  const count = wanted.size, badge = byId("waiting-count");
  badge.textContent = count || "";
  badge.hidden = !count;
  if (`${count}` !== known && count > (Number(known) || 0)) announce(`${count} waiting for an answer.`);
  known = `${count}`;
}

function entry(title, about, details, controls) {
  return el("li", {}, el("h3", {}, title), about ? el("p", { class: "about" }, about) : null, ...details, controls,
    el("p", { class: "error", role: "alert", hidden: true }));
}

function approval({ id, kind, tool, arguments: given, text, why, run, address, expires_at: expires }) {
  const isQuestion = kind === "question";
  const said = el("textarea", { rows: 2, "aria-label": isQuestion ? "Your answer" : null });
  const args = el("textarea", { rows: 3, spellcheck: "false", class: "code" });
  args.value = indented(given);
  args.rows = Math.min(10, args.value.split("\n").length + 1);
  const shown = args.value;
  const edited = () => (args.value === shown ? "" : args.value);
  const path = `/web/approvals/${encodeURIComponent(id)}`;
  const send = (body) => (event) => give(event, path, { text: said.value, ...body() });
  const button = (word, body, kind = "") => el("button", { type: "button", class: kind, onclick: send(body) }, word);
  const details = isQuestion
    ? [said]
    : [el("label", {}, "Arguments", args), el("label", {}, "Reason or advice (optional)", said)];
  const controls = isQuestion
    ? [button("Answer", () => ({ verdict: "approve" }), "primary"), button("Decline", () => ({ verdict: "deny" }))]
    : [button("Approve", () => ({ verdict: "approve", arguments: edited() }), "primary"),
      button("Deny", () => ({ verdict: "deny" })),
      button("Send advice instead", () => ({ verdict: "feedback" })),
      button("Deny and end the run", () => ({ verdict: "deny", stop: true }), "danger")];
  const until = expires ? ` · until ${new Date(expires * 1000).toLocaleString()}` : "";
  const where = address ? ` at ${address}` : "";
  return entry(isQuestion ? text : `${tool}${where}`, `run ${run}${why ? ` · ${why}` : ""}${until}`,
    [!isQuestion && text ? el("p", {}, text) : null, ...details], el("div", { class: "buttons" }, ...controls));
}

function question({ id, text, asker, kind, schema, proposal, details, link }) {
  const value = el("textarea", { rows: 3, spellcheck: "false", class: "code" });
  value.value = indented(proposal);
  const note = el("input", { type: "text" });
  const path = `/web/questions/${encodeURIComponent(id)}`;
  const accept = (event) => {
    const words = value.value.trim();
    let body = { outcome: "accepted", note: note.value };
    if (words) {
      try {
        body = { ...body, value: JSON.parse(words) };
      } catch {
        complain(event, "This is no JSON: write a text in quotes.");
        return;
      }
    }
    give(event, path, body);
  };
  const end = (outcome) => (event) => give(event, path, { outcome, note: note.value });
  const block = (words) => el("pre", { tabindex: "0" }, indented(words));
  const shape = schema === "{}" ? null : el("details", {}, el("summary", {}, "What is asked for"), block(schema));
  const away = { href: link, target: "_blank", rel: "noopener noreferrer" };
  const visit = /^https?:\/\//i.test(link) ? el("p", {}, el("a", away, link)) : null;
  return entry(text, `${kind ? `${kind} · ` : ""}asked by ${asker}`,
    [details ? block(details) : null, visit, shape,
      el("label", {}, "Answer (JSON)", value), el("label", {}, "Note (optional)", note)],
    el("div", { class: "buttons" },
      el("button", { type: "button", class: "primary", onclick: accept }, "Accept"),
      el("button", { type: "button", onclick: end("refused") }, "Refuse"),
      el("button", { type: "button", onclick: end("cancelled") }, "Put away")));
}

function indented(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

function complain(event, words) {
  const place = event.currentTarget.closest("li").querySelector(".error");
  place.textContent = words;
  place.hidden = false;
}

async function give(event, path, body) {
  const item = event.currentTarget.closest("li");
  const place = item.querySelector(".error"), buttons = item.querySelectorAll("button");
  for (const button of buttons) button.disabled = true;
  try {
    await json(path, { body: { ...body, by: userName.get() } });
    item.remove();
    announce("Answered.");
    byId("waiting").querySelector("button").focus();
    await refresh();
  } catch (error) {
    place.textContent = error.message;
    place.hidden = false;
    for (const button of buttons) button.disabled = false;
  }
}
