// Training jobs, and their curves as the company draws them.

import { json, request } from "./api.js";
import { byId, el } from "./dom.js";
import { setUpDialog } from "./dialogs.js";

const EVERY_MS = 4000;
const chosen = new Set();
let shownImage = "";
let asked = 0;
let known = null; // nothing yet

export function setUpTraining() {
  setUpDialog("training", { onOpen: refresh, everyMs: EVERY_MS });
  byId("curves-log").addEventListener("change", drawCurves);
  byId("curves-smoothing").addEventListener("change", drawCurves);
}

// Whether there is anything to see.
export async function trainingIsThere() {
  return (await json("/web/jobs")).available;
}

async function refresh() {
  const status = byId("training-status");
  let found;
  try {
    found = await json("/web/jobs");
  } catch (error) {
    status.textContent = error.message;
    return;
  }
  const { jobs } = found;
  status.textContent = jobs.length ? "" : "Nothing was trained here yet: `callboard train` starts a run.";
  if (known === null && jobs.length) chosen.add(jobs[0].job); // the latest
  for (const job of chosen) if (!jobs.some((one) => one.job === job)) chosen.delete(job);
  // What did not change is left as it is, and so is the focus.
  const now = JSON.stringify(jobs);
  if (now !== known) {
    const focused = document.activeElement?.name === "job" ? document.activeElement.value : null;
    byId("jobs").replaceChildren(...jobs.map(row));
    if (focused !== null) byId("jobs").querySelector(`input[value="${CSS.escape(focused)}"]`)?.focus();
    known = now;
    await drawCurves();
  }
}

function row({ job, state, model, step, num_steps: steps, loss, error }) {
  const box = el("input", { type: "checkbox", name: "job", value: job, checked: chosen.has(job) });
  box.addEventListener("change", () => {
    if (box.checked) chosen.add(job);
    else chosen.delete(job);
    drawCurves();
  });
  const stands = `step ${step} of ${steps}`;
  const progress = steps ? el("progress", { max: steps, value: step, "aria-label": `${job}: ${stands}` }) : null;
  return el("li", {},
    el("label", {}, box, el("strong", {}, job), el("span", { class: `state ${state}` }, state)),
    el("span", { class: "about" }, model, steps ? ` · ${stands}` : "", step ? ` · loss ${loss.toPrecision(4)}` : ""),
    progress,
    error ? el("p", { class: "error" }, error.message) : null);
}

async function drawCurves() {
  const place = byId("curves"), number = ++asked;
  if (!chosen.size) {
    show(place, null, "Choose a job to see its curves.");
    return;
  }
  const query = new URLSearchParams([...chosen].sort().map((job) => ["job", job]));
  query.set("smoothing", byId("curves-smoothing").value);
  if (byId("curves-log").checked) query.set("log", "1");
  try {
    const response = await request(`/web/curves?${query}`);
    if (number !== asked) return; // another choice was made meanwhile
    if (response.status === 204) show(place, null, "No step was taken yet.");
    else show(place, await response.blob(), `Curves of ${[...chosen].sort().join(", ")}`);
  } catch (error) {
    if (number === asked) show(place, null, error.message);
  }
}

// An image of its own: nothing within it is a part of the page.
function show(place, blob, words) {
  if (shownImage) URL.revokeObjectURL(shownImage);
  shownImage = blob ? URL.createObjectURL(blob) : "";
  place.replaceChildren(blob ? el("img", { src: shownImage, alt: words }) : el("p", { class: "hint" }, words));
}
