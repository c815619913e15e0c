// Making and finding elements. Text only ever enters the page as text.

export const byId = (id) => document.getElementById(id);

// el("a", {href, class, onclick, "aria-label"}, "text", child): strings become text nodes.
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// Without a secure context, on another machine's plain address say, there is no clipboard object.
export async function copy(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = el("textarea", { class: "offscreen", readonly: true });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("the browser does not let this page copy");
}

// A button's word for a moment, to say what came of it.
export async function flash(button, work, done) {
  const word = (button.dataset.word ??= button.textContent);
  try {
    await work();
    button.textContent = done;
  } catch {
    button.textContent = "Failed";
  }
  setTimeout(() => { button.textContent = word; }, 1500);
}

// Said to those who listen to the page and do not see it.
export function announce(text) {
  byId("announcer").textContent = text;
}
