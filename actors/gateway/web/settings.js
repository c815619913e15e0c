// How answers are drawn: the controls, and the fields of a request that they stand for.

import { byId } from "./dom.js";
import { settings } from "./store.js";

// An empty control leaves its field out, so that the gateway's own value holds.
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "repetition_penalty", "seed"];
const DEFAULTS = { temperature: "0.7", top_p: "0.95", max_tokens: "512" };

export function setUpSettings() {
  const form = byId("settings-form");
  const show = (values) => {
    for (const control of form.elements) if (control.name) control.value = values[control.name] ?? "";
  };
  show({ ...DEFAULTS, ...settings.get() });
  form.addEventListener("input", () => settings.set(current()));
  form.addEventListener("submit", (event) => event.preventDefault());
  byId("settings-reset").addEventListener("click", () => {
    settings.set({});
    show(DEFAULTS);
  });
}

function current() {
  const values = {};
  for (const control of byId("settings-form").elements) if (control.name) values[control.name] = control.value;
  return values;
}

// The first control whose value is none, for the browser to say so.
export function wrongSetting() {
  return [...byId("settings-form").elements].find((control) => control.name && !control.checkValidity());
}

export function samplingFields() {
  const values = current(), fields = {};
  for (const name of NUMBERS) if (values[name] !== "") fields[name] = Number(values[name]);
  const stops = values.stop.split("\n").filter((line) => line !== "");
  if (stops.length) fields.stop = stops;
  return fields;
}

export const systemPrompt = () => byId("settings-form").elements.system.value.trim();
