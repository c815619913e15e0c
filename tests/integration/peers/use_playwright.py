"""Uses the chat page in a real browser, as a person does.

Run as `use_playwright.py SCENARIO URL CHROMIUM FOLDER OPTIONS`; the last line that it prints is what it found, JSON.
FOLDER gets screenshots.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
import time
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from markdown_pieces import ALLOWED, GROW, PIECES, SHOW
from playwright.sync_api import Browser, Page, expect, sync_playwright

# A first start of the browser may take long on a machine that does other things.
PATIENCE_MS = 20_000
PHONE = {"width": 390, "height": 844}


class Visit:
    """A page of the gateway, and everything that went wrong on it."""

    def __init__(self, browser: Browser, url: str, **context: Any) -> None:
        self.url = url
        self.context = browser.new_context(viewport=context.pop("viewport", {"width": 1280, "height": 860}), **context)
        self.context.set_default_timeout(PATIENCE_MS)
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.foreign: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("console", self._console)
        self.page.on("request", self._request)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"{message.type}: {message.text}")

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.url, "blob:", "data:")):
            self.foreign.append(request.url)

    def open(self, *, with_model: bool = True) -> Page:
        self.page.goto(self.url)
        if with_model:
            expect(self.page.locator("#send")).to_be_enabled()
        return self.page

    def say(self, text: str) -> None:
        """And wait for the end of the answer."""
        before = self.page.locator(".message").count()
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")
        expect(self.page.locator(".message")).to_have_count(before + 2)
        self.ended()

    def ended(self) -> None:
        expect(self.page.locator("#log")).to_have_attribute("aria-busy", "false", timeout=PATIENCE_MS)

    def set(self, **values: str) -> None:
        self.page.click("#settings-button")
        for name, value in values.items():
            self.page.fill(f"#settings-form [name={name}]", value)
        self.page.keyboard.press("Escape")

    def stored(self) -> list[dict[str, Any]]:
        """The conversations that the browser keeps, the latest first."""
        return self.page.evaluate(
            """() => Object.entries(localStorage).filter(([name]) => name.startsWith("callboard.conversation."))
                .map(([, text]) => JSON.parse(text)).sort((a, b) => b.changed - a.changed)"""
        )

    def axe(self) -> list[str]:
        """What the rules of accessibility find wrong with the page as it stands."""
        found = Axe().run(self.page).response["violations"]
        return [f"{one['id']}: {', '.join(node['html'][:120] for node in one['nodes'])}" for one in found]

    def done(self, **found: Any) -> dict[str, Any]:
        return {"faults": self.faults, "foreign": self.foreign, **found}


def chat(browser: Browser, url: str, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Two conversations; one of them with two turns; a reload; one deleted; one tried again, and one edited."""
    visit = Visit(browser, url)
    page = visit.open()
    expect(page.locator("#prompt")).to_be_focused()
    visit.set(**options["settings"])
    visit.say("hello")
    first = visit.stored()[0]["messages"][1]
    visit.say("and all of it")
    note = page.locator(".message .note").last.inner_text()
    page.reload()
    expect(page.locator(".message")).to_have_count(4)
    kept = visit.stored()[0]
    page.keyboard.press("Alt+n")
    expect(page.locator(".message")).to_have_count(0)
    visit.say("another one")
    titles = page.locator("#conversations .open").all_inner_texts()
    page.locator(".message.assistant .retry").last.click()
    visit.ended()
    again = [message["content"] for message in visit.stored()[0]["messages"]]
    page.locator(".message.user .edit").last.click()
    expect(page.locator("#prompt")).to_have_value("another one")
    expect(page.locator(".message")).to_have_count(0)
    page.fill("#prompt", "")
    page.on("dialog", lambda dialog: dialog.accept())
    page.locator("#conversations .delete").first.click()
    expect(page.locator("#conversations li")).to_have_count(1)
    page.locator("#conversations .open").first.click()
    expect(page.locator(".message")).to_have_count(4)
    left = [one["title"] for one in visit.stored()]
    return visit.done(first=first, note=note, kept=kept["messages"], titles=titles, again=again, left=left)


def choose(browser: Browser, url: str, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """A conversation with one model, and on with another; the page is opened again."""
    visit = Visit(browser, url)
    page = visit.open()
    offered = page.locator("#model option").evaluate_all("all => all.map(one => one.value)")
    page.select_option("#model", "second")
    visit.say("Who are you?")
    page.select_option("#model", "first")
    visit.say("And you?")
    page.screenshot(path=folder / "models.png")
    page.reload()
    expect(page.locator("#send")).to_be_enabled()
    expect(page.locator(".message")).to_have_count(4)
    answers = page.locator(".message.assistant")
    return visit.done(
        offered=offered,
        said=answers.locator("> .text").all_inner_texts(),
        whose=[message["model"] for message in visit.stored()[0]["messages"] if message["role"] == "assistant"],
        heads=answers.all_inner_texts(),
        after=page.locator("#model").input_value(),
    )


def stop(browser: Browser, url: str, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """An answer without end is stopped; another one goes on while a new conversation is looked at."""
    visit = Visit(browser, url)
    page = visit.open()
    visit.set(**options["settings"])
    page.fill("#prompt", "go on")
    page.click("#send")
    expect(page.locator("#send")).to_have_text("Stop")
    expect(page.locator(".message.assistant .text").last).not_to_be_empty()
    page.click("#send")
    expect(page.locator("#send")).to_have_text("Send")
    notes = [page.locator(".message .note").last.inner_text()]
    page.click("#new")
    page.fill("#prompt", "go on")
    page.press("#prompt", "Enter")
    expect(page.locator(".message.assistant .text").last).not_to_be_empty()
    page.click("#new")
    expect(page.locator("#send")).to_have_text("Send")
    page.locator("#conversations .open").first.click()
    expect(page.locator("#send")).to_have_text("Stop")
    page.locator("body").press("Escape")
    visit.ended()
    notes.append(page.locator(".message .note").last.inner_text())
    return visit.done(notes=notes, texts=[one["messages"][1]["content"] for one in visit.stored()])


def hostile(browser: Browser, url: str, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """A model that writes markup to break out, thinks aloud, and ends with a word."""
    visit = Visit(browser, url)
    dialogs: list[str] = []
    visit.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page = visit.open()
    visit.say("<img src=x onerror=alert(1)>")
    page.wait_for_load_state("networkidle")
    inside = "#messages :is(script, img, iframe, object, embed, svg, style, form, link, base, meta, video)"
    return visit.done(
        dialogs=dialogs,
        elements=page.locator(inside).count(),
        touched=page.evaluate("() => window.touched ?? null"),
        text=page.locator(".message.assistant > .text").inner_text(),
        thoughts=page.locator(".message.assistant .thoughts .text").text_content(),
        asked=page.locator(".message.user .text").inner_text(),
        links=page.locator("#messages a").evaluate_all("all => all.map(a => [a.href, a.rel, a.target])"),
        title=page.title(),
    )


def markdown(browser: Browser, url: str, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The renderer on texts with a known outcome, on random hostile ones, and on ones that are meant to take long."""
    visit = Visit(browser, url)
    page = visit.open(with_model=False)
    drawn = {source: page.evaluate(SHOW, source)["html"] for source in options["sources"]}
    rng = random.Random(options["seed"])
    bad: list[str] = []
    slowest = 0.0
    for _ in range(options["random"]):
        source = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 60)))
        shown = page.evaluate(SHOW, source)
        for tag, names in shown["elements"]:
            if tag not in ALLOWED or not set(names) <= ALLOWED[tag]:
                bad.append(f"{tag} {names} of {source!r}")
        if not set(shown["links"]) <= {"http:", "https:", "mailto:"}:
            bad.append(f"{shown['links']} of {source!r}")
        words = re.findall(r"word|é|😀", source)
        if words != re.findall(r"word|é|😀", shown["text"]) and not re.search(r"`|~~~|\]\(|https?:", source):
            bad.append(f"words are lost of {source!r}")
        cuts = sorted(rng.randint(0, len(source)) for _ in range(5))
        if not page.evaluate(GROW, [source, cuts]):
            bad.append(f"it depends on how it came: {source!r} by {cuts}")
    long: dict[str, float] = {}
    for piece in options["long"]:
        seconds = page.evaluate(SHOW, piece * (options["length"] // len(piece)))["seconds"]
        long[piece] = seconds
        slowest = max(slowest, seconds)
    touched = page.evaluate("() => window.touched ?? null")
    return visit.done(drawn=drawn, bad=bad, slowest=slowest, long=long, touched=touched)


def company(browser: Browser, url: str, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Training curves are looked at; a call is approved with other arguments; a question is answered."""
    visit = Visit(browser, url)
    page = visit.open(with_model=False)
    page.click("#training-button")
    expect(page.locator("#jobs li")).to_have_count(2)
    image = page.locator("#curves img")
    expect(image).to_be_visible()
    width = image.evaluate("image => image.decode().then(() => image.naturalWidth)")
    one = image.get_attribute("alt")
    page.locator("#jobs input").nth(1).check()
    expect(image).to_have_attribute("alt", options["both"])
    page.check("#curves-log")
    page.locator("#curves img").evaluate("image => image.decode()")
    axe = visit.axe()
    page.screenshot(path=folder / "training.png")
    page.locator("#training .close").click()
    expect(page.locator("#training-button")).to_be_focused()

    expect(page.locator("#waiting-count")).to_have_text("2")
    page.click("#waiting-button")
    page.fill("#waiting-name", "ann")
    call = page.locator("#waiting-list li").filter(has_text="put at tools.put")
    call.get_by_label("Arguments").fill('{"n": 7}')
    axe += visit.axe()
    page.screenshot(path=folder / "waiting.png")
    call.get_by_role("button", name="Approve").click()
    expect(call).to_have_count(0)
    question = page.locator("#waiting-list li").filter(has_text="How old?")
    question.get_by_label("Answer (JSON)").fill('{"age": "old"}')
    question.get_by_role("button", name="Accept").click()
    expect(question.locator(".error")).to_be_visible()
    refused = question.locator(".error").inner_text()
    question.get_by_label("Answer (JSON)").fill('{"age": 7}')
    question.get_by_role("button", name="Accept").click()
    expect(page.locator("#waiting-status")).to_have_text("Nothing waits for you.")
    expect(page.locator("#waiting-count")).to_be_hidden()
    visit.faults = [fault for fault in visit.faults if "422" not in fault]  # the browser notes what was refused
    return visit.done(width=width, one=one, refused=refused, axe=axe)


def looks(browser: Browser, url: str, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Light and dark, wide and narrow: nothing sticks out, all can be reached by keys, no rule of access is broken."""
    found: dict[str, Any] = {"axe": [], "overflow": [], "colours": []}
    faults: list[str] = []
    for name, context in {
        "light": {"color_scheme": "light"},
        "dark": {"color_scheme": "dark"},
        "phone": {"color_scheme": "light", "viewport": PHONE, "has_touch": True, "reduced_motion": "reduce"},
    }.items():
        visit = Visit(browser, url, **context)
        page = visit.open()
        visit.say("Show me everything.")
        for _ in range(options.get("turns", 0)):
            visit.say("Once more.")
        found["colours"].append(page.evaluate("() => getComputedStyle(document.body).backgroundColor"))
        found["axe"] += [f"{name}: {one}" for one in visit.axe()]
        if page.evaluate("() => document.documentElement.scrollWidth > innerWidth"):
            found["overflow"].append(name)
        page.screenshot(path=folder / f"{name}.png")
        page.click("#settings-button")
        found["axe"] += [f"{name} settings: {one}" for one in visit.axe()]
        page.screenshot(path=folder / f"{name}-settings.png")
        page.keyboard.press("Escape")
        expect(page.locator("#settings-button")).to_be_focused()
        if name == "phone":
            hidden = page.locator("#new").is_hidden()
            page.click("#menu")
            expect(page.locator("#new")).to_be_focused()
            page.screenshot(path=folder / "phone-menu.png")
            found["axe"] += [f"menu: {one}" for one in visit.axe()]
            page.keyboard.press("Escape")
            expect(page.locator("#menu")).to_be_focused()
            found["menu"] = hidden and page.locator("#new").is_hidden()
        else:
            found[f"keys_{name}"] = _reached(page)
            page.select_option("#theme", "dark" if name == "light" else "light")
            found["colours"].append(page.evaluate("() => getComputedStyle(document.body).backgroundColor"))
        faults += visit.faults + visit.foreign
    return {"faults": faults, "foreign": [], **found}


def _reached(page: Page) -> list[str]:
    """What the Tab key comes to, from the page's beginning."""
    page.evaluate("() => { document.activeElement.blur(); getSelection().removeAllRanges(); scrollTo(0, 0); }")
    page.mouse.click(1270, 500)
    page.evaluate("() => document.body.focus()")
    page.keyboard.press("Control+Home")
    seen: list[str] = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("() => document.activeElement.id || document.activeElement.className || ''"))
    return seen


def locked(browser: Browser, url: str, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """A gateway that wants a key: the page asks for it, and goes on with it."""
    visit = Visit(browser, url)
    page = visit.page
    visit.open(with_model=False)
    expect(page.locator("#key")).to_be_visible()
    page.fill("#key-field", "wrong")
    page.press("#key-field", "Enter")
    expect(page.locator("#key")).to_be_visible()
    expect(page.locator("#model-status")).to_have_text(re.compile("key"))
    page.fill("#key-field", options["key"])
    page.press("#key-field", "Enter")
    expect(page.locator("#send")).to_be_enabled()
    expect(page.locator("#key")).to_be_hidden()
    visit.say("hello")
    page.wait_for_load_state("networkidle")
    seen = page.locator("#waiting-button").is_visible()
    kept = page.evaluate("() => JSON.stringify(localStorage)")
    said = visit.stored()[0]["messages"][1]["content"]
    visit.faults = [fault for fault in visit.faults if not re.search("40[13]", fault)]
    return visit.done(seen=seen, leaks=options["key"] in kept, said=said)


SCENARIOS = {one.__name__: one for one in (chat, choose, company, hostile, locked, looks, markdown, stop)}


def main() -> None:
    name, url, chromium, folder, options = sys.argv[1:]
    began = time.perf_counter()
    # A browser keeps itself in a sandbox, which the administrator's own cannot have.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        found = SCENARIOS[name](browser, url, Path(folder), json.loads(options))
        browser.close()
    print(json.dumps({**found, "seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
