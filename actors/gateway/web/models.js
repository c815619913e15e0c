// Which models there are, and which one is chosen.

import { isLocked, json } from "./api.js";
import { byId, el } from "./dom.js";

const LOOK_AGAIN_MS = 5000;
const LAST = "callboard.model";
let timer = 0;

export const chosenModel = () => byId("model").value;

// Fills the choice, and looks again while there is nothing to choose. A name that is chosen stays so while it is there.
export async function lookForModels() {
  clearTimeout(timer);
  const status = byId("model-status");
  let found = [];
  try {
    found = (await json("/v1/models")).data;
    status.textContent = found.length ? "" : "No model is served yet.";
  } catch (error) {
    status.textContent = error.message;
  }
  const choice = byId("model");
  const wanted = choice.value || localStorage.getItem(LAST);
  choice.replaceChildren(...found.map(({ id, parent }) =>
    el("option", { value: id, title: id }, parent ? `${short(id)} (adapter)` : short(id))));
  if (found.some(({ id }) => id === wanted)) choice.value = wanted;
  choice.disabled = !found.length;
  choice.dispatchEvent(new Event("refreshed"));
  if (!found.length && !isLocked()) timer = setTimeout(lookForModels, LOOK_AGAIN_MS);
}

// A path says most at its end.
const short = (id) => (id.length > 40 ? `…${id.slice(-39)}` : id);

export function setUpModels() {
  const choice = byId("model");
  choice.addEventListener("change", () => {
    try {
      localStorage.setItem(LAST, choice.value);
    } catch {
      // no room left: the choice holds for as long as the page is open
    }
  });
  choice.addEventListener("focus", () => { if (choice.options.length) lookForModels(); });
  lookForModels();
}
