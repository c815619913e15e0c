// The messages of a conversation as elements.

import { copy, el, flash } from "./dom.js";
import { showMarkdown } from "./markdown.js";

const SHORT_S = 0.02; // what is over sooner has no rate worth telling
const WHO = { user: "You", assistant: "Model" };

// `act(what, index)`: what a message's buttons do: "retry" or "edit".
export function messageView(message, index, act) {
  const body = el("div", { class: "text" });
  const thoughts = el("div", { class: "text" });
  const thinking = el("details", { class: "thoughts", hidden: true }, el("summary", {}, "Thoughts"), thoughts);
  const note = el("p", { class: "note", hidden: true });
  const error = el("p", { class: "error", role: "alert", hidden: true });
  const who = message.role === "assistant" ? message.model || WHO.assistant : WHO.user;
  const button = (name, words, onclick) => el("button", { type: "button", class: name, onclick }, words);
  const copyIt = (event) => flash(event.currentTarget, () => copy(message.content), "Copied");
  const tools = el("div", { class: "tools" },
    button("copy-message", "Copy", copyIt),
    message.role === "user"
      ? button("edit", "Edit", () => act("edit", index))
      : button("retry", "Try again", () => act("retry", index)));
  const node = el("article", { class: `message ${message.role}`, "aria-label": `${who} said` },
    el("header", {}, who), message.role === "user" ? null : thinking, body, error, note, tools);
  const view = { node, body, thinking, thoughts, note, error };
  update(view, message, false);
  return view;
}

export function update(view, message, writing) {
  view.node.classList.toggle("writing", writing);
  if (message.role === "user") {
    view.body.textContent = message.content;
    return;
  }
  showMarkdown(view.body, message.content);
  view.thinking.hidden = !message.reasoning;
  if (message.reasoning) {
    showMarkdown(view.thoughts, message.reasoning);
    const phase = message.content ? "answering" : "thinking";
    if (writing && view.phase !== phase) view.thinking.open = phase === "thinking"; // once, then as the reader likes
    view.phase = phase;
  }
  view.error.hidden = !message.error;
  view.error.textContent = message.error ?? "";
  const note = writing ? "" : summary(message);
  view.note.hidden = !note;
  view.note.textContent = note;
}

function summary({ usage, seconds, ttft, finish }) {
  const parts = [];
  if (usage) {
    const tokens = usage.completion_tokens;
    parts.push(`${tokens} token${tokens === 1 ? "" : "s"}`);
    if (seconds > SHORT_S && tokens > 1) parts.push(`${((tokens - 1) / seconds).toFixed(1)} tokens/s`);
    const cached = usage.prompt_tokens_details?.cached_tokens;
    if (cached) parts.push(`${cached} of ${usage.prompt_tokens} prompt tokens known`);
  }
  if (ttft) parts.push(`first after ${Math.round(ttft)} ms`);
  if (finish === "length") parts.push("cut at the most tokens");
  if (finish === "stopped") parts.push("stopped");
  return parts.join(" · ");
}
