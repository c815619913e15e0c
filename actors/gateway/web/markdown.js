// Markdown as elements of the page. What a model writes is never interpreted as HTML: elements are made one by one, of
// a fixed set, and everything else becomes text. Images are links, links lead to http, https and mailto alone.

import { el } from "./dom.js";
import { inline } from "./markdown_inline.js";

const FENCE = /^( {0,3})(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?=[ \t]|$)/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const QUOTE = /^ {0,3}>[ \t]?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])( {1,4}|\t|$)/;
const UNDERLINE = /^ {0,3}(=+|-+)[ \t]*$/;
const INDENTED = /^(?: {4}|\t)/;
const TASK = /^\[([ xX])\][ \t]+/;
const MAX_DEPTH = 12;

// Shows `text` in `container`. Called again with more text, it leaves blocks that did not change as they are, so that
// a selection survives while an answer is written, and long answers cost no more than short ones.
export function showMarkdown(container, text) {
  const blocks = split(text.replaceAll("\r\n", "\n").split("\n"));
  const known = container.shownBlocks ?? [];
  let same = 0;
  while (same < known.length && same < blocks.length && known[same] === blocks[same].source) same += 1;
  while (container.childNodes.length > same) container.lastChild.remove();
  for (const block of blocks.slice(same)) container.append(drawn(block, 0));
  container.shownBlocks = blocks.map((block) => block.source);
}

// Blocks

function split(lines) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const block = blockAt(lines, at);
    block.source = `${block.kind}\n${lines.slice(at, block.end).join("\n")}`;
    blocks.push(block);
    at = block.end;
  }
  return blocks;
}

// The block that begins at that line: its kind, what it is made of, and the line after its end.
function blockAt(lines, at) {
  const line = lines[at];
  return fence(lines, at) ?? heading(line, at) ?? rule(line, at) ?? quote(lines, at) ?? list(lines, at)
    ?? table(lines, at) ?? indented(lines, at) ?? paragraph(lines, at);
}

function fence(lines, at) {
  const begin = FENCE.exec(lines[at]);
  if (!begin) return null;
  const [, indent, marks, info] = begin;
  const code = [];
  let end = at + 1;
  for (; end < lines.length; end += 1) {
    const close = lines[end].trim();
    if (close.length >= marks.length && close === marks[0].repeat(close.length)) break;
    let skip = 0;
    while (skip < indent.length && lines[end][skip] === " ") skip += 1;
    code.push(lines[end].slice(skip));
  }
  const language = info.trim().split(/\s/)[0];
  return { kind: "code", language, code: code.join("\n"), end: Math.min(end + 1, lines.length) };
}

function heading(line, at) {
  const found = HEADING.exec(line);
  if (!found) return null;
  const text = line.slice(found[0].length).trim().replace(/(^|[ \t])#+$/, "");
  return { kind: "heading", level: found[1].length, text, end: at + 1 };
}

const rule = (line, at) => (RULE.test(line) ? { kind: "rule", end: at + 1 } : null);

function quote(lines, at) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  if (end === at) return null;
  return { kind: "quote", lines: lines.slice(at, end).map((line) => line.replace(QUOTE, "")), end };
}

function list(lines, at) {
  const first = ITEM.exec(lines[at]);
  if (!first) return null;
  const sort = first[2].slice(-1); // the bullet, or what follows the number
  const items = [];
  let end = at, loose = false;
  while (end < lines.length) {
    const begin = ITEM.exec(lines[end]);
    if (!begin || begin[2].slice(-1) !== sort || RULE.test(lines[end])) break;
    const width = begin[0].length;
    const inner = [lines[end].slice(width)];
    let blank = false;
    for (end += 1; end < lines.length; end += 1) {
      const line = lines[end];
      if (!line.trim()) {
        blank = true;
        inner.push("");
        continue;
      }
      const indent = line.length - line.trimStart().length;
      if (indent >= Math.min(width, 4) || (line.startsWith("\t"))) inner.push(outdent(line, width));
      else if (blank || interrupts(lines, end)) break;
      else inner.push(line);
      if (blank) loose = true;
      blank = false;
    }
    while (inner.length > 1 && !inner.at(-1)) inner.pop();
    const another = end < lines.length && ITEM.exec(lines[end])?.[2].slice(-1) === sort;
    if (blank && another) loose = true;
    items.push(inner);
  }
  const ordered = /\d/.test(first[2]);
  return items.length ? { kind: "list", ordered, start: parseInt(first[2], 10), items, loose, end } : null;
}

function outdent(line, width) {
  if (line.startsWith("\t")) return line.slice(1);
  let skip = 0;
  while (skip < width && line[skip] === " ") skip += 1;
  return line.slice(skip);
}

function table(lines, at) {
  if (at + 1 >= lines.length || !lines[at].includes("|") || !lines[at + 1].includes("-")) return null;
  const head = cells(lines[at]), rules = cells(lines[at + 1]);
  if (head.length !== rules.length || !rules.every((cell) => /^:?-+:?$/.test(cell))) return null;
  const rows = [];
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|") && lines[end].trim()) {
    rows.push(cells(lines[end]).slice(0, head.length));
    end += 1;
  }
  const sides = rules.map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : "left"));
  return { kind: "table", head, rows, sides, end };
}

// Of a table's row: what lies between bars that are not escaped and not within code.
function cells(line) {
  const found = [];
  let cell = "", code = false;
  const text = line.trim().replace(/^\|/, "");
  for (let at = 0; at < text.length; at += 1) {
    if (text[at] === "\\" && text[at + 1] === "|") { cell += "|"; at += 1; continue; }
    if (text[at] === "`") code = !code;
    if (text[at] === "|" && !code) { found.push(cell.trim()); cell = ""; } else cell += text[at];
  }
  if (cell.trim()) found.push(cell.trim());
  return found;
}

function indented(lines, at) {
  let end = at;
  while (end < lines.length && (INDENTED.test(lines[end]) || !lines[end].trim())) end += 1;
  while (end > at && !lines[end - 1].trim()) end -= 1;
  if (end === at || !INDENTED.test(lines[at])) return null;
  const code = lines.slice(at, end).map((line) => line.replace(INDENTED, ""));
  return { kind: "code", language: "", code: code.join("\n"), end };
}

function paragraph(lines, at) {
  let end = at + 1;
  for (; end < lines.length && lines[end].trim(); end += 1) {
    const line = UNDERLINE.exec(lines[end]);
    if (line) {
      return { kind: "heading", level: line[1][0] === "=" ? 1 : 2, text: joined(lines.slice(at, end)), end: end + 1 };
    }
    if (interrupts(lines, end)) break;
  }
  return { kind: "paragraph", text: joined(lines.slice(at, end)), end };
}

const joined = (lines) => lines.map((line) => line.trim()).join("\n");

// Whether a paragraph ends before that line. A number in the middle of a text is no list unless it is 1.
function interrupts(lines, at) {
  const line = lines[at], item = ITEM.exec(line);
  if (item) {
    const begins = !/\d/.test(item[2]) || parseInt(item[2], 10) === 1 || item[1] !== "" || startsItem(lines, at);
    return begins && item[0].length < line.length;
  }
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || table(lines, at) !== null;
}

const startsItem = (lines, at) => at > 0 && ITEM.test(lines[at - 1]);

// Elements

function drawn(block, depth) {
  switch (block.kind) {
    case "code": return codeBlock(block.language, block.code);
    case "heading": return el(`h${Math.min(block.level + 1, 6)}`, {}, ...inline(block.text)); // below the page's own
    case "rule": return el("hr");
    case "quote": return el("blockquote", {}, ...within(block.lines, depth));
    case "list": return drawnList(block, depth);
    case "table": return drawnTable(block);
    default: return el("p", {}, ...inline(block.text));
  }
}

function within(lines, depth, loose = true) {
  if (depth >= MAX_DEPTH) return [document.createTextNode(lines.join("\n"))];
  return split(lines).flatMap((block) =>
    block.kind === "paragraph" && !loose ? inline(block.text) : [drawn(block, depth + 1)]);
}

function drawnList(block, depth) {
  const items = block.items.map((lines) => {
    const task = TASK.exec(lines[0]);
    if (!task) return el("li", {}, ...within(lines, depth, block.loose));
    const box = el("input", { type: "checkbox", disabled: true, checked: task[1] !== " ", "aria-label": "task" });
    const rest = [lines[0].slice(task[0].length), ...lines.slice(1)];
    return el("li", { class: "task" }, box, " ", ...within(rest, depth, block.loose));
  });
  const start = block.ordered && block.start !== 1 ? block.start : null;
  return el(block.ordered ? "ol" : "ul", { start }, ...items);
}

function drawnTable({ head, rows, sides }) {
  const row = (tag, texts) => el("tr", {}, ...sides.map((side, column) =>
    el(tag, { class: side === "left" ? null : side }, ...inline(texts[column] ?? ""))));
  const body = el("tbody", {}, ...rows.map((one) => row("td", one)));
  const whole = el("table", {}, el("thead", {}, row("th", head)), body);
  return el("div", { class: "table", tabindex: "0", role: "region", "aria-label": "table" }, whole);
}

export function codeBlock(language, code) {
  return el("figure", { class: "code" },
    el("figcaption", {}, el("span", {}, language || "code"),
      el("button", { type: "button", class: "copy-code" }, "Copy")),
    el("pre", { tabindex: "0" }, el("code", {}, code)));
}
