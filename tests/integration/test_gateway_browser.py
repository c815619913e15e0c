"""The chat page in a real browser: Chromium from the distribution's packages, driven by Playwright."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from agent_play import company, lines, play
from foreign import PEERS, output, python_of
from gateways import gateway, idle, start_engine
from own_server import OwnServer
from test_gateway_web import AGE, trained

from callboard.actors.agent.scripted import Scripted, ScriptedConfig
from callboard.actors.gateway.keys import Scope, new_key
from callboard.actors.questions.board import Board
from callboard.actors.train.jobs import Jobs, JobsConfig
from callboard.runtime.actor import handler
from callboard.runtime.node import Node
from callboard.schemas.question import Answered, AskQuestion
from callboard.schemas.scripted import ScriptedAnswer
from callboard.schemas.serve import ChatMessage, DescribeModel, Generate, ModelDescription

pytestmark = [pytest.mark.anyio, pytest.mark.foreign, pytest.mark.timeout(300)]

Use = Callable[..., Awaitable[dict[str, Any]]]


@pytest.fixture
async def use(tmp_path: Path) -> Use:
    """Plays a scenario of `peers/use_playwright.py`."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no `chromium`")
    python = await anyio.to_thread.run_sync(python_of, "playwright")

    async def play_it(scenario: str, url: str, **options: Any) -> dict[str, Any]:
        said = await output(
            python, PEERS / "use_playwright.py", scenario, url, chromium, tmp_path, json.dumps(options), timeout=200
        )
        found = json.loads(said.splitlines()[-1])
        assert found["faults"] == []
        assert found["foreign"] == []
        return found

    return play_it


class Spoken(Scripted):
    """A model that says what a test wants, as an engine would."""

    @handler
    async def describe(self, message: DescribeModel) -> ModelDescription:
        return ModelDescription(
            model="spoken", dtype="float32", context_length=4096, default_max_tokens=100, vocab_size=10,
            has_chat_template=True, tool_format="", eos_id=None, adapters=(), started=0.0,
        )  # fmt: skip


@pytest.fixture
async def speaker(node: Node, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """A gateway before a model that says the test's parameter."""
    script = (ScriptedAnswer(text=request.param, times=0),)
    await node.spawn(Spoken, ScriptedConfig(answers=script, piece_characters=7), name="spoken")
    async with gateway(node, models={"spoken": "spoken"}) as url:
        yield url


@pytest.fixture
async def url(node: Node, long_path: Path) -> AsyncIterator[str]:
    await start_engine(node, long_path, num_blocks=600)
    async with gateway(node) as url:
        yield url
    await idle(node)


async def test_conversations_go_on_and_are_kept(use: Use, url: str, node: Node) -> None:
    drawn = {"temperature": "0.9", "top_p": "1", "top_k": "20", "seed": "4", "max_tokens": "12", "system": "Be brief."}
    found = await use("chat", url, settings=drawn)
    turns = (ChatMessage("system", "Be brief."), ChatMessage("user", "hello"))
    asked = Generate(messages=turns, temperature=0.9, top_p=1.0, top_k=20, seed=4, max_tokens=12)
    said = await node.actor("engine").ask(asked)
    assert found["first"]["content"] == said.text
    assert found["first"]["usage"]["prompt_tokens"] == said.usage.prompt_tokens
    assert "12 tokens" in found["note"]
    assert "prompt tokens known" in found["note"]  # of the first turn nothing was computed twice
    assert [message["role"] for message in found["kept"]] == ["user", "assistant"] * 2
    assert found["titles"] == ["another one", "hello"]
    assert found["again"][0] == "another one"
    assert len(found["again"]) == 2
    assert found["left"] == ["hello"]


async def test_a_stopped_answer_stops_in_the_engine_too(use: Use, url: str, node: Node) -> None:
    endless = {"max_tokens": "1900", "temperature": "0.7", "top_p": "1", "seed": "2"}
    found = await use("stop", url, settings=endless)
    assert all("stopped" in note for note in found["notes"])
    assert all(found["texts"])
    stats = await idle(node)
    assert stats.aborted == 2
    assert stats.generated_tokens < 2 * 1900


async def test_the_model_that_is_chosen_answers(use: Use, node: Node) -> None:
    for name in ("first", "second"):
        script = (ScriptedAnswer(text=f"I am the {name}.", times=0),)
        await node.spawn(Spoken, ScriptedConfig(answers=script, piece_characters=7), name=name)
    async with gateway(node, models={"first": "first", "second": "second"}) as url:
        found = await use("choose", url)
    assert found["offered"] == ["first", "second", "spoken"]  # and the name that both give themselves
    assert found["said"] == ["I am the second.", "I am the first."]
    assert found["whose"] == ["second", "first"]  # an answer keeps the name of who gave it
    assert found["after"] == "first"  # the last choice is there when the page is opened again


HOSTILE = """<think>Let me <b>escape</b>.</think>

<img src=x onerror="touched=1"><script>touched=1</script><svg onload="touched=1">

[go](javascript:touched=1) [data](data:text/html,<script>1</script>) ![spy](https://spy.example/pixel.png)

<iframe srcdoc="<script>parent.touched=1</script>"></iframe> <a href="javascript:touched=1">here</a>

```html
</code></pre><script>touched=1</script>
```

[fine](https://docs.example/page) The end."""


@pytest.mark.parametrize("speaker", [HOSTILE], indirect=True)
async def test_what_a_model_writes_is_never_interpreted(use: Use, speaker: str) -> None:
    found = await use("hostile", speaker)
    assert (found["dialogs"], found["elements"], found["touched"]) == ([], 0, None)
    assert '<script>touched=1</script><svg onload="touched=1">' in found["text"]
    assert "</code></pre><script>touched=1</script>" in found["text"]
    assert found["text"].endswith("The end.")
    assert found["thoughts"] == "Let me <b>escape</b>."
    assert found["asked"] == found["title"].removesuffix(" · Callboard") == "<img src=x onerror=alert(1)>"
    assert found["links"] == [
        [link, "noopener noreferrer nofollow", "_blank"]
        for link in ("https://spy.example/pixel.png", "https://docs.example/page")
    ]


def code(language: str, text: str) -> str:
    return (
        f'<figure class="code"><figcaption><span>{language}</span>'
        '<button type="button" class="copy-code">Copy</button></figcaption>'
        f'<pre tabindex="0"><code>{text}</code></pre></figure>'
    )


def link(url: str, text: str) -> str:
    return f'<a href="{url}" target="_blank" rel="noopener noreferrer nofollow">{text}</a>'


DRAWN = {
    "a *b* **c** ***d*** ~~e~~ _f_ __g__": "<p>a <em>b</em> <strong>c</strong> <em><strong>d</strong></em> "
    "<del>e</del> <em>f</em> <strong>g</strong></p>",
    "snake_case_name 2*3*4 * 5": "<p>snake_case_name 2<em>3</em>4 * 5</p>",
    "**a*b*c** **open": "<p><strong>a<em>b</em>c</strong> **open</p>",
    "`a*b*` ``c`d`` `open": "<p><code>a*b*</code> <code>c`d</code> `open</p>",
    "a\nb\\\nc \\*d\\*": "<p>a<br>b<br>c *d*</p>",
    "# A *b* #\n\nC\n===\n\n####### no": "<h2>A <em>b</em></h2><h2>C</h2><p>####### no</p>",
    "```py\nx = '<b>'\n\n  y\n```\nafter": code("py", "x = '&lt;b&gt;'\n\n  y") + "<p>after</p>",
    "````\n```\n````": code("code", "```"),
    "~~~\nopen": code("code", "open"),
    "    a\n      b": code("code", "a\n  b"),
    "- a\n- b\n  - c\n\n1. d\n2. e": "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><ol><li>d</li><li>e</li></ol>",
    "3. a\n4. b": '<ol start="3"><li>a</li><li>b</li></ol>',
    "- a\n\n- b": "<ul><li><p>a</p></li><li><p>b</p></li></ul>",
    "- a\n  ```\n  x\n  ```": f"<ul><li>a{code('code', 'x')}</li></ul>",
    "- [x] done\n- [ ] open": '<ul><li class="task"><input type="checkbox" disabled="" checked="" aria-label="task"> '
    'done</li><li class="task"><input type="checkbox" disabled="" aria-label="task"> open</li></ul>',
    "> a\n> > b\n\nc": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>",
    "a\n\n***\n\n- - -": "<p>a</p><hr><hr>",
    "| a | b |\n|:-:|--:|\n| `x|y` | \\| |\nend": '<div class="table" tabindex="0" role="region" aria-label="table">'
    '<table><thead><tr><th class="center">a</th><th class="right">b</th></tr></thead><tbody><tr>'
    '<td class="center"><code>x|y</code></td><td class="right">|</td></tr></tbody></table></div><p>end</p>',
    "[a *b*](https://x.y/z 'title') [c](d)": f"<p>{link('https://x.y/z', 'a <em>b</em>')} [c](d)</p>",
    "see https://x.y/a_b_c. (http://z.w/)": f"<p>see {link('https://x.y/a_b_c', 'https://x.y/a_b_c')}. "
    f"({link('http://z.w/', 'http://z.w/')})</p>",
    "<https://x.y/> <b>": f"<p>{link('https://x.y/', 'https://x.y/')} &lt;b&gt;</p>",
    "![a [b](https://c.d/)](https://x.y/)": f"<p>{link('https://x.y/', 'image: a b')}</p>",
    "[a [b](https://c.d/)](https://x.y/)": f"<p>[a {link('https://c.d/', 'b')}](<a "
    'href="https://x.y/" target="_blank" rel="noopener noreferrer nofollow">https://x.y/</a>)</p>',
    "In 1986\n3. is no list": "<p>In 1986<br>3. is no list</p>",
}
LONG = ["*a ", "a* ", "*a* ", "**", "_a", "[", "[a](", "![", "]", "`a``", "`", "> ", "- ", "|a", "|a\n", "#", "\\", "<",
        "http://", "*_", "**a *b ", "\n- a", "1. a\n", "![a](http://b) ", "~~a ", "![](http://a.b/", " \t"]  # fmt: skip


async def test_markdown_is_drawn_as_it_is_meant_and_as_nothing_else(use: Use, node: Node) -> None:
    async with gateway(node) as url:
        found = await use("markdown", url, sources=list(DRAWN), random=800, seed=3, long=LONG, length=60_000)
    assert found["drawn"] == DRAWN
    assert found["bad"] == []
    assert found["touched"] is None
    assert found["slowest"] < 5, sorted(found["long"].items(), key=lambda one: -one[1])[
        :6
    ]  # what grows with the square of a text takes minutes


async def test_curves_approvals_and_questions_of_the_company(use: Use, server: OwnServer, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    for name in ("first", "second"):
        trained(tmp_path / "jobs", name)
    async with company(server.url, witness) as node:
        await node.spawn(Jobs, JobsConfig(str(tmp_path / "jobs")), name="train")
        board = await node.spawn(Board, name="questions")
        asking: asyncio.Task[Answered] = asyncio.ensure_future(
            board.ask(AskQuestion("How old?", "me", "elicitation", AGE, ttl=600), timeout=200)
        )
        run = (await node.actor("agents").ask(play("put"))).run
        async with gateway(node) as url:
            found = await use("company", url, both="Curves of first, second")
        answered = await asking
    assert found["axe"] == []
    assert found["width"] > 500
    assert found["one"] == "Curves of second"
    assert "age" in found["refused"]
    assert lines(witness) == [f'put {run}/s0_0 {{"n": 7}}']
    assert (json.loads(answered.value), answered.by) == ({"age": 7}, "ann")


EVERYTHING = """# Actors on a stage

An **actor** has a *mailbox*, and reads `one message at a time`. See <https://docs.example/actors> or:

1. It is spawned.
2. It is asked.
   - and answers
   - or fails, in words

| word | what it means |
|---|---:|
| cue | 1 |
| prompt | 22 |

```python
async with callboard.connect() as bus:
    answer = await bus.actor("engine.scheduler").ask(question, timeout=30.0, and_much_more="that is long")
```

> The play goes on."""


@pytest.mark.parametrize("speaker", [EVERYTHING], indirect=True)
async def test_it_fits_every_screen_and_is_open_to_everybody(use: Use, speaker: str) -> None:
    found = await use("looks", speaker)
    assert found["axe"] == []
    assert found["overflow"] == []
    light, chosen_dark, dark, chosen_light, phone = found["colours"]
    assert light == chosen_light == phone
    assert dark == chosen_dark != light
    assert found["menu"]
    for keys in (found["keys_light"], found["keys_dark"]):
        assert {"new", "model", "settings-button", "prompt", "send", "copy-code", "retry"} <= set(keys)


@pytest.mark.parametrize("scopes", [(Scope.CHAT,), (Scope.CHAT, Scope.ADMIN)])
async def test_a_gateway_with_keys_has_the_page_ask_for_one(
    use: Use, node: Node, long_path: Path, tmp_path: Path, scopes: tuple[Scope, ...]
) -> None:
    secret = new_key(tmp_path / "keys.json", "page", scopes)
    await start_engine(node, long_path, num_blocks=600)
    await node.spawn(Board, name="questions")
    async with gateway(node, keys_file=str(tmp_path / "keys.json")) as url:
        found = await use("locked", url, key=secret)
    assert found["said"]
    assert not found["leaks"]
    assert found["seen"] == (Scope.ADMIN in scopes)  # what waits for people is for keys that may do everything
