// Answers under way. Each belongs to its conversation and goes on when another one is looked at.

import { events, request } from "./api.js";
import { samplingFields, systemPrompt } from "./settings.js";
import { save } from "./store.js";

const SAVE_EVERY_MS = 1000;
const underWay = new Map(); // by the conversation's id

// Listeners hear "begun", "grown" and "ended", each with the conversation and the message.
export const answers = new EventTarget();

export const isAnswering = (id) => underWay.has(id);
export const stop = (id) => underWay.get(id)?.controller.abort();

// Stops the answer of a conversation that is deleted: it is not kept again.
export function abandon(id) {
  const answering = underWay.get(id);
  if (!answering) return;
  answering.conversation.deleted = true;
  answering.controller.abort();
}

// The conversation as it is in memory while its answer is written, which storage lags behind.
export const live = (id) => underWay.get(id)?.conversation ?? null;

export function saveAll() {
  for (const { conversation } of underWay.values()) keep(conversation);
}

// Has the model answer the conversation's last message. What goes wrong is kept with the answer.
export async function answer(conversation, model) {
  const message = { role: "assistant", content: "", reasoning: "", model };
  const asked = {
    ...samplingFields(),
    model,
    messages: turns(conversation),
    stream: true,
    stream_options: { include_usage: true },
    session_id: conversation.id,
    session_ttl_s: 600,
  };
  conversation.messages.push(message);
  const controller = new AbortController();
  underWay.set(conversation.id, { controller, conversation });
  tell("begun", conversation, message);
  const clock = { began: performance.now(), first: 0, saved: 0 };
  try {
    const response = await request("/v1/chat/completions", { body: asked, signal: controller.signal });
    for await (const event of events(response)) grow(conversation, message, event, clock);
    if (!message.finish && !message.error) message.error = "The answer broke off.";
  } catch (error) {
    if (error.name === "AbortError") message.finish = "stopped";
    else message.error = error.message;
  }
  if (clock.first) message.seconds = (performance.now() - clock.first) / 1000;
  underWay.delete(conversation.id);
  conversation.changed = Date.now();
  keep(conversation);
  tell("ended", conversation, message);
}

function turns(conversation) {
  const said = conversation.messages
    .filter((one) => one.content || one.role === "user")
    .map(({ role, content }) => ({ role, content }));
  const system = systemPrompt();
  return system ? [{ role: "system", content: system }, ...said] : said;
}

function grow(conversation, message, event, clock) {
  if (event.error) {
    message.error = event.error.message;
    return;
  }
  if (event.usage) message.usage = event.usage;
  const choice = event.choices?.[0];
  if (choice) {
    const { content, reasoning_content: reasoning } = choice.delta ?? {};
    if ((content || reasoning) && !clock.first) {
      clock.first = performance.now();
      message.ttft = clock.first - clock.began;
    }
    message.content += content ?? "";
    message.reasoning += reasoning ?? "";
    if (choice.finish_reason) message.finish = choice.finish_reason;
  }
  if (performance.now() - clock.saved > SAVE_EVERY_MS) {
    clock.saved = performance.now();
    keep(conversation);
  }
  tell("grown", conversation, message);
}

function tell(what, conversation, message) {
  answers.dispatchEvent(new CustomEvent(what, { detail: { conversation, message } }));
}

function keep(conversation) {
  if (!conversation.deleted) save(conversation);
}
