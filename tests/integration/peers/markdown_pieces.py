"""What texts of Markdown are made of that try to break out, what they may become, and how that is looked at."""

from __future__ import annotations

ALLOWED = {
    "a": {"href", "target", "rel"}, "article": set(), "blockquote": set(), "br": set(), "button": {"type", "class"},
    "code": set(), "del": set(), "div": {"class", "tabindex", "role", "aria-label"}, "em": set(), "figcaption": set(),
    "figure": {"class"}, "h2": set(), "h3": set(), "h4": set(), "h5": set(), "h6": set(), "hr": set(),
    "input": {"type", "disabled", "checked", "aria-label"}, "li": {"class"}, "ol": {"start"}, "p": set(),
    "pre": {"tabindex"}, "span": set(), "strong": set(), "table": set(), "tbody": set(), "td": {"class"},
    "th": {"class"}, "thead": set(), "tr": set(), "ul": set(),
}  # fmt: skip
PIECES = [
    "*", "**", "***", "_", "__", "~~", "`", "``", "```", "~~~", "[", "](", "]", "![", "(", ")", "<", ">", "\\", "\n",
    "\n\n", "- ", "1. ", "> ", "# ", "| ", "|---|\n", "    ", "\t", "http://a.b/", "https://x.y/?q=(1)",
    "javascript:alert(1)", "data:text/html,<b>", "<script>touched=1</script>", "<img src=x onerror=touched=1>",
    "<svg onload=touched=1>", "&lt;", "&#106;", '"', "'", "word", " ", "é", "\u202e", "😀", "=", "---",
    "- [x] ", "<a href='javascript:1'>", "JAVASCRIPT:1", " \u0000",
]  # fmt: skip
SHOW = """async (source) => {
    const { showMarkdown } = await import("/static/markdown.js");
    const place = document.createElement("div");
    const began = performance.now();
    showMarkdown(place, source);
    const seconds = (performance.now() - began) / 1000;
    const elements = [...place.querySelectorAll("*")].map(one => [one.localName, [...one.attributes].map(a => a.name)]);
    const links = [...place.querySelectorAll("a")].map(a => new URL(a.href).protocol);
    return { html: place.innerHTML, text: place.textContent, elements, links, seconds };
}"""
GROW = """async ([source, cuts]) => {
    const { showMarkdown } = await import("/static/markdown.js");
    const whole = document.createElement("div"), grown = document.createElement("div");
    showMarkdown(whole, source);
    for (const cut of cuts) showMarkdown(grown, source.slice(0, cut));
    showMarkdown(grown, source);
    return whole.innerHTML === grown.innerHTML;
}"""
