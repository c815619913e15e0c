// Light, dark, or as the system says.

import { byId } from "./dom.js";
import { theme } from "./store.js";

export function setUpTheme() {
  const choice = byId("theme");
  const show = () => { document.documentElement.dataset.theme = choice.value; };
  choice.value = theme.get();
  if (!choice.value) choice.value = "auto";
  show();
  choice.addEventListener("change", () => {
    theme.set(choice.value);
    show();
  });
}
