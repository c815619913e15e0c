// What stands within a line of Markdown: code, emphasis, links. Everything else is text, HTML too.
//
// Delimiters are matched as CommonMark does it (section "Phase 2: inline structure" of its specification), whose stacks
// keep the work in proportion to the text however hostile it is.

import { el } from "./dom.js";

const PUNCTUATION = /[!-/:-@[-`{-~]/;
const WORD = /[\p{L}\p{N}_]/u;
const URL_START = /https?:\/\//iy;
const BARE_URL = /https?:\/\/[^\s<>"'`]{1,2000}/iy;
const ANGLE_URL = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/iy;
// Deeper than this nobody means it, and browsers draw what is nested without end badly.
const MAX_DEPTH = 16, MAX_BRACKETS = 64;
const SCHEMES = new Set(["http:", "https:", "mailto:"]);
const MAX_DESTINATION = 2000;

// The address where it is one that a link may lead to, else null.
export function safeUrl(text) {
  try {
    const url = new URL(text);
    return SCHEMES.has(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

const link = (url, nodes) =>
  el("a", { href: url, target: "_blank", rel: "noopener noreferrer nofollow" }, ...nodes);

export function inline(text) {
  return new Scanner(text).run();
}

// Tokens are {text}, {node} or {mark, count, opens, closes}: a run of *, _ or ~ that may yet turn out to be text.
class Scanner {
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.tokens = [];
    this.brackets = [];
    this.unclosed = new Set(); // lengths of runs of backticks that have no end further on
    this.lastParenthesis = text.lastIndexOf(")");
    this.pending = "";
  }

  run() {
    while (this.at < this.text.length) this.step();
    this.flush();
    return emphasized(this.tokens).nodes;
  }

  step() {
    const { text, at } = this;
    const char = text[at];
    switch (char) {
      case "\\": return this.escape();
      case "`": return this.code();
      case "*": case "_": case "~": return this.delimiter(char);
      case "[": return this.open(false, 1);
      case "!": if (text[at + 1] === "[") return this.open(true, 2); break;
      case "]": return this.close();
      case "<": if (this.angle()) return; break;
      case "h": case "H": if (this.bare()) return; break;
      case "\n": return this.push({ node: el("br") }, 1);
    }
    this.pending += char;
    this.at += 1;
  }

  push(token, length) {
    this.flush();
    this.tokens.push(token);
    this.at += length;
  }

  flush() {
    if (this.pending) this.tokens.push({ text: this.pending });
    this.pending = "";
  }

  escape() {
    const next = this.text[this.at + 1];
    if (next === "\n") return this.push({ node: el("br") }, 2);
    if (next !== undefined && PUNCTUATION.test(next)) {
      this.pending += next;
      this.at += 2;
      return;
    }
    this.pending += "\\";
    this.at += 1;
  }

  code() {
    const { text, at } = this;
    let end = at;
    while (text[end] === "`") end += 1;
    const length = end - at;
    if (!this.unclosed.has(length)) {
      const close = this.closingTicks(end, length);
      if (close >= 0) {
        let content = text.slice(end, close).replaceAll("\n", " ");
        if (content.startsWith(" ") && content.endsWith(" ") && content.trim()) content = content.slice(1, -1);
        return this.push({ node: el("code", {}, content) }, close + length - at);
      }
      this.unclosed.add(length);
    }
    this.pending += text.slice(at, end);
    this.at = end;
  }

  closingTicks(from, length) {
    let at = this.text.indexOf("`", from);
    while (at >= 0) {
      let end = at;
      while (this.text[end] === "`") end += 1;
      if (end - at === length) return at;
      at = this.text.indexOf("`", end);
    }
    return -1;
  }

  delimiter(mark) {
    const { text, at } = this;
    let end = at;
    while (text[end] === mark) end += 1;
    const before = text[at - 1] ?? " ", after = text[end] ?? " ";
    const leftSpace = /\s/.test(before), rightSpace = /\s/.test(after);
    const leftMark = PUNCTUATION.test(before), rightMark = PUNCTUATION.test(after);
    const left = !rightSpace && (!rightMark || leftSpace || leftMark);
    const right = !leftSpace && (!leftMark || rightSpace || rightMark);
    const word = mark === "_"; // snake_case is no emphasis
    const count = end - at;
    if (mark === "~" && count !== 2) {
      this.pending += text.slice(at, end);
      this.at = end;
      return;
    }
    this.push({
      mark, count, length: count,
      opens: left && (!word || !right || leftMark),
      closes: right && (!word || !left || rightMark),
    }, count);
  }

  open(image, length) {
    if (this.brackets.length >= MAX_BRACKETS) {
      this.pending += this.text.slice(this.at, this.at + length);
      this.at += length;
      return;
    }
    this.push({ text: image ? "![" : "[" }, length);
    this.brackets.push({ token: this.tokens.length - 1, image, active: true });
  }

  close() {
    const bracket = this.brackets.pop();
    const target = bracket?.active ? this.destination(this.at + 1) : null;
    if (target === null) {
      this.pending += "]";
      this.at += 1;
      return;
    }
    this.flush();
    const inner = emphasized(this.tokens.splice(bracket.token).slice(1));
    // An image is not loaded: that would tell its server who reads this. It is a link like any other.
    const label = bracket.image ? [`image: ${inner.nodes.map((node) => node.textContent).join("")}`] : inner.nodes;
    this.tokens.push({ node: link(target.url, label), depth: inner.depth });
    this.at = target.end;
    if (!bracket.image) for (const outer of this.brackets) outer.active &&= outer.image; // no link within a link
  }

  // "(address)" or "(address "title")" from there on.
  destination(start) {
    const { text } = this;
    if (text[start] !== "(" || start > this.lastParenthesis) return null;
    const limit = Math.min(text.length, start + MAX_DESTINATION);
    let depth = 0, end = start;
    for (; end < limit; end += 1) {
      const char = text[end];
      if (char === "\n") return null;
      if (char === "\\") end += 1;
      else if (char === "(") depth += 1;
      else if (char === ")" && --depth === 0) break;
    }
    if (end >= limit) return null;
    const inside = text.slice(start + 1, end).trim();
    const cut = inside.search(/\s/);
    const address = (cut < 0 ? inside : inside.slice(0, cut)).replace(/^<|>$/g, "");
    const url = safeUrl(address);
    return url === null ? null : { url, end: end + 1 };
  }

  angle() {
    ANGLE_URL.lastIndex = this.at;
    const found = ANGLE_URL.exec(this.text);
    const url = found && safeUrl(found[1]);
    if (!url) return false;
    this.push({ node: link(url, [found[1]]) }, found[0].length);
    return true;
  }

  bare() {
    URL_START.lastIndex = this.at;
    if (!URL_START.test(this.text) || WORD.test(this.text[this.at - 1] ?? " ")) return false;
    if (this.brackets.some((bracket) => bracket.active)) return false; // it may become a link's own words
    BARE_URL.lastIndex = this.at;
    let shown = BARE_URL.exec(this.text)?.[0] ?? "";
    shown = shown.replace(/[.,;:!?*_~\]}]+$/, "");
    if (shown.endsWith(")") && !shown.includes("(")) shown = shown.slice(0, -1);
    const url = safeUrl(shown);
    if (!url) return false;
    this.push({ node: link(url, [shown]) }, shown.length);
    return true;
  }
}

const TAGS = { "*1": "em", "_1": "em", "*2": "strong", "_2": "strong", "~2": "del" };

// Turns runs of delimiters into elements: the nodes, and how deep they are nested.
function emphasized(tokens) {
  const head = { after: null };
  let last = head;
  for (const token of tokens) {
    const item = { depth: 0, ...token, before: last, after: null };
    last.after = item;
    last = item;
  }
  const bottoms = new Map(); // for each kind of closer, before what there is no opener for it
  let closer = head.after;
  while (closer) {
    if (!closer.closes || !closer.count) { closer = closer.after; continue; }
    const kind = `${closer.mark}${closer.opens}${closer.length % 3}`;
    const opener = openerFor(closer, standing(bottoms.get(kind) ?? head), head);
    const wrapped = opener && between(opener, closer);
    if (!opener || wrapped.depth >= MAX_DEPTH) {
      bottoms.set(kind, closer.before);
      closer = closer.after;
      continue;
    }
    const count = Math.min(opener.count, closer.count) >= 2 ? 2 : 1;
    const node = el(TAGS[closer.mark + count], {}, ...wrapped.nodes);
    const made = { node, depth: wrapped.depth + 1, before: opener, after: closer };
    for (let item = opener.after; item !== closer; item = item.after) item.within = made;
    opener.after = made;
    closer.before = made;
    for (const one of [opener, closer]) {
      one.count -= count;
      if (!one.count) unlink(one, made);
    }
    if (!closer.count) closer = closer.after;
  }
  return between(head, null);
}

function openerFor(closer, bottom, head) {
  let opener = closer.before;
  while (opener !== bottom && opener !== head && !matches(opener, closer)) opener = opener.before;
  return opener === bottom || opener === head ? null : opener;
}

function between(first, end) {
  const nodes = [];
  let depth = 0;
  for (let item = first.after; item !== end; item = item.after) {
    nodes.push(item.node ?? document.createTextNode(item.text ?? item.mark.repeat(item.count)));
    depth = Math.max(depth, item.depth);
  }
  return { nodes, depth };
}

function matches(opener, closer) {
  if (opener.mark !== closer.mark || !opener.opens || !opener.count) return false;
  // CommonMark's rule of three: "**a*b**" has one strong, and no emphasis across it.
  if ((opener.closes || closer.opens) && (opener.length + closer.length) % 3 === 0) {
    return opener.length % 3 === 0 && closer.length % 3 === 0;
  }
  return true;
}

function unlink(item, made) {
  item.before.after = item.after;
  if (item.after) item.after.before = item.before;
  item.within = made;
}

// A limit that was made a part of an element is that element now: what lay before the one lies before the other.
function standing(item) {
  let now = item;
  while (now.within) now = now.within;
  while (item !== now) {
    const next = item.within;
    item.within = now;
    item = next;
  }
  return now;
}
