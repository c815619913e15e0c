"""`callboard schema` describes every message, and no change of a schema that would break others goes unnoticed."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from callboard.runtime.asyncapi import asyncapi
from callboard.runtime.compatibility import breaking_changes
from callboard.runtime.schema import document, own_messages, references
from callboard.schemas.base import Message, Request, StreamRequest

ROOT = Path(__file__).parents[2]
SNAPSHOT = ROOT / "tests" / "schemas.snapshot.json"
WHOLE = document(own_messages().by_tag, "test")


# The documents


def test_the_document_is_json_schema_2020_12() -> None:
    assert WHOLE["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(WHOLE)
    assert set(references(WHOLE)) <= set(WHOLE["$defs"])


def test_every_message_is_in_it_under_its_tag() -> None:
    listed = {part["$ref"].removeprefix("#/$defs/") for part in WHOLE["anyOf"]}
    assert listed == {*own_messages().by_tag, "error"}
    for tag in listed:
        assert WHOLE["$defs"][tag]["properties"]["type"] == {"const": tag}
        assert "type" in WHOLE["$defs"][tag]["required"]


def test_a_request_names_its_reply_and_its_items() -> None:
    generate = WHOLE["$defs"]["serve.generate"]
    assert generate["x-reply"] == {"$ref": "#/$defs/serve.completion"}
    assert generate["x-item"] == {"$ref": "#/$defs/serve.token"}
    assert "x-item" not in WHOLE["$defs"]["node.spawn"]


def test_the_bus_is_described_in_asyncapi() -> None:
    found = asyncapi(WHOLE, "1.0")
    assert found["asyncapi"] == "3.0.0"
    addresses = {channel["address"] for channel in found["channels"].values()}
    assert {"actor.{address}", "topic.{name}", "dead.{address}", "tap.{address}", None} <= addresses
    for pointer in pointers(found):
        assert lookup(found, pointer), pointer
    generate = found["operations"]["serve.generate"]
    replies = [part["$ref"].rsplit("/")[-1] for part in generate["reply"]["messages"]]
    assert replies == ["serve.token", "serve.completion", "error"]
    for operation in found["operations"].values():
        offered = lookup(found, operation["channel"]["$ref"])["messages"]
        assert all(part["$ref"].startswith(operation["channel"]["$ref"]) for part in operation["messages"])
        assert offered
    for schema in found["components"]["schemas"].values():
        jsonschema.Draft7Validator.check_schema(schema)


def pointers(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for value in part.values():
            yield from pointers(value)
    elif isinstance(part, list):
        for value in part:
            yield from pointers(value)


def lookup(whole: Any, pointer: str) -> Any:
    for key in pointer.removeprefix("#/").split("/"):
        whole = whole[key]
    return whole


# The parser of the AsyncAPI initiative, which holds a document against the specification's own schema.
PARSE = """
const {Parser} = require('@asyncapi/parser')
new Parser().parse(require('fs').readFileSync(0, 'utf8')).then(({document, diagnostics}) => {
  const wrong = diagnostics.filter(found => found.severity === 0)
  console.log(JSON.stringify({channels: document ? document.channels().all().length : 0, wrong}))
})
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_parser_of_asyncapi_takes_the_document() -> None:
    folder = npm_packages("@asyncapi/parser@3.6.3")
    good = json.dumps(asyncapi(WHOLE, "1.0"))
    bad = good.replace('"action": "receive"', '"action": "eat"')
    for text, channels in ((good, 8), (bad, 0)):
        done = subprocess.run(["node", "-e", PARSE], input=text, capture_output=True, text=True, cwd=folder, check=True)
        found = json.loads(done.stdout)
        assert bool(found["wrong"]) == (text is bad)
        assert found["channels"] == channels


def npm_packages(package: str) -> Path:
    """A folder with that npm package installed. Skips where it cannot be had."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = ROOT / ".venv-peers" / ("npm-" + package.rpartition("@")[0].strip("@").replace("/", "-"))
    if not (folder / "node_modules").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true}')
        done = subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", package], cwd=folder, capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"npm cannot install {package}: {done.stderr[-300:]}")
    return folder


# The command


def schema(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "callboard.runtime.cli", "schema", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def test_the_command_prints_all_or_one_or_asyncapi() -> None:
    assert set(json.loads(schema().stdout)["$defs"]) >= set(WHOLE["$defs"])
    one = json.loads(schema("serve.generate", "--json").stdout)
    assert one["$ref"] == "#/$defs/serve.generate"
    assert {"serve.token", "serve.completion", "Usage"} <= set(one["$defs"])
    assert "node.spawn" not in one["$defs"]
    jsonschema.Draft202012Validator.check_schema(one)
    assert json.loads(schema("--asyncapi").stdout)["asyncapi"] == "3.0.0"


def test_a_message_that_is_not_there_is_said_so_with_the_close_one() -> None:
    done = schema("serve.generat")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no message 'serve.generat'" in done.stderr
    assert "did you mean 'serve.generate'?" in done.stderr


SOMEBODY_ELSES = """
from callboard import Actor, Message, Request, handler

class Told(Message, frozen=True, tag="theirs.told"):
    n: int

class Question(Request[Told], frozen=True, tag="theirs.question"):
    text: str

class Clash(Message, frozen=True, tag="bench.add"):
    text: str

class Theirs(Actor):
    @handler
    async def question(self, message: Question) -> Told:
        return Told(1)

    @handler
    async def clash(self, message: Clash) -> None: ...
"""


def test_messages_of_other_packages_are_listed_and_what_cannot_be_is_said(tmp_path: Path) -> None:
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (tmp_path / "theirs.py").write_text(SOMEBODY_ELSES)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[callboard.actors]\ntheirs = theirs:Theirs\nbroken = nowhere:Actor\n")
    done = schema("--json", PYTHONPATH=str(tmp_path))
    defs = json.loads(done.stdout)["$defs"]
    assert defs["theirs.question"]["x-reply"] == {"$ref": "#/$defs/theirs.told"}
    assert "theirs.told" in defs
    assert "Clash has the tag bench.add of Add" in done.stderr
    assert "broken" in done.stderr
    own = schema("--json", "--own", PYTHONPATH=str(tmp_path))
    assert "theirs.question" not in json.loads(own.stdout)["$defs"]
    assert own.stderr == ""


# Compatibility


def test_no_message_has_changed_its_meaning_since_the_snapshot() -> None:
    """After an addition, `make schema-snapshot` takes it in. A change that breaks needs a new tag or a new field."""
    snapshot = json.loads(SNAPSHOT.read_text())
    assert breaking_changes(snapshot, WHOLE) == []
    missing = set(WHOLE["$defs"]) - set(snapshot["$defs"])
    assert not missing, f"new since the snapshot: {missing}; `make schema-snapshot` takes them in"


class Answer(Message, frozen=True, tag="a.answer"):
    n: int
    choice: str = "x"


class Piece(Message, frozen=True, tag="a.piece"):
    n: int


class Ask(StreamRequest[Piece, Answer], frozen=True, tag="a.ask"):
    text: str
    limit: int | None = None


class Plain(Message, frozen=True, tag="a.plain"):
    answer: Answer
    pairs: tuple[tuple[int, str], ...] = ()


OLD = document({"a.answer": Answer, "a.piece": Piece, "a.ask": Ask, "a.plain": Plain}, "old")


def changed(name: str, fields: list[Any], *, base: Any = Message, tag: str = "") -> Callable[[dict[str, Any]], None]:
    """An edit that puts another message in the place of one."""

    def edit(messages: dict[str, Any]) -> None:
        del messages[name]
        new = tag or name
        namespace = {"__orig_bases__": (base,)} if base is not Message else {}
        parent = getattr(base, "__origin__", base)
        title = {"a.answer": "Answer", "a.ask": "Ask", "a.plain": "Plain", "a.piece": "Piece"}[name]
        messages[new] = msgspec.defstruct(
            title, fields, bases=(parent,), namespace=namespace, frozen=True, tag=new, module="changed"
        )

    return edit


ASKED = StreamRequest[Piece, Answer]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda messages: messages.pop("a.plain") and None, "a.plain: the message is gone"),
        (changed("a.plain", [("answer", Answer)], tag="a.simple"), "a.plain: the tag has changed to a.simple"),
        (changed("a.plain", [("answer", Answer)]), "a.plain.pairs: the field is gone"),
        (changed("a.plain", [("answer", int), ("pairs", tuple[tuple[int, str], ...], ())]), "a.plain.answer: "),
        (
            changed("a.plain", [("answer", Answer), ("pairs", tuple[tuple[int, int], ...], ())]),
            "a.plain.pairs[][1]: type has changed from 'string' to 'integer'",
        ),
        (
            changed("a.plain", [("answer", Answer), ("new", int), ("pairs", tuple[tuple[int, str], ...], ())]),
            "a.plain.new: the new field has no default",
        ),
        (changed("a.answer", [("n", int), ("choice", str, "y")]), "a.answer.choice: the default has changed"),
        (changed("a.answer", [("n", int), ("choice", str)]), "a.answer.choice: the field has no default any more"),
        (changed("a.answer", [("n", int | None), ("choice", str, "x")]), "a.answer.n: "),
        (changed("a.ask", [("text", str), ("limit", int, 0)], base=ASKED), "a.ask.limit: "),
        (
            changed("a.ask", [("text", str), ("limit", int | None, None)], base=StreamRequest[Answer, Answer]),
            "a.ask item",
        ),
        (
            changed("a.ask", [("text", str), ("limit", int | None, None)], base=StreamRequest[Piece, Piece]),
            "a.ask reply",
        ),
        (
            changed("a.ask", [("text", str), ("limit", int | None, None)], base=Request[Answer]),
            "a.ask: the item type is gone",
        ),
        (changed("a.ask", [("text", str), ("limit", int | None, None)]), "a.ask: the reply type is gone"),
    ],
)
def test_a_change_that_breaks_is_found(edit: Callable[[dict[str, Any]], None], said: str) -> None:
    messages = {"a.answer": Answer, "a.piece": Piece, "a.ask": Ask, "a.plain": Plain}
    edit(messages)
    found = breaking_changes(OLD, document(messages, "new"))
    assert [line for line in found if line.startswith(said)], found


def test_what_only_adds_breaks_nothing() -> None:
    messages: dict[str, Any] = {"a.answer": Answer, "a.piece": Piece, "a.ask": Ask, "a.plain": Plain, "a.new": Plain}
    changed("a.ask", [("text", str), ("limit", int | None, None), ("new", tuple[int, ...], ())], base=ASKED)(messages)
    messages["a.new"] = msgspec.defstruct("New", [("n", int)], bases=(Message,), frozen=True, tag="a.new")
    assert breaking_changes(OLD, document(messages, "new")) == []


def test_a_choice_may_be_added_to_a_request_but_not_to_an_answer() -> None:
    from typing import Literal

    def with_choices(kind: Any) -> dict[str, Any]:
        answer = msgspec.defstruct("Answer", [("kind", kind)], bases=(Message,), frozen=True, tag="b.answer")
        namespace = {"__orig_bases__": (Request[answer],)}
        ask = msgspec.defstruct(
            "Ask", [("kind", kind)], bases=(Request,), namespace=namespace, frozen=True, tag="b.ask"
        )
        messages: dict[str, Any] = {"b.answer": answer, "b.ask": ask}
        return document(messages, "")

    found = breaking_changes(with_choices(Literal["a", "b"]), with_choices(Literal["a", "b", "c"]))
    assert found == ["b.answer.kind: the choice 'c' is new, and who reads it may not know it"]
    assert len(breaking_changes(with_choices(Literal["a", "b"]), with_choices(Literal["a"]))) == 2


@pytest.mark.parametrize("name", ["Envelope", "Frame"])
def test_the_frames_of_the_wire_may_only_grow_at_their_end(name: str) -> None:
    def edited(edit: Callable[[list[Any]], Any]) -> dict[str, Any]:
        new = copy.deepcopy(WHOLE)
        edit(new["$defs"][name]["prefixItems"])
        return new

    assert breaking_changes(WHOLE, edited(lambda items: items.append({"type": "string", "default": ""}))) == []
    assert breaking_changes(WHOLE, edited(lambda items: items.pop()))
    assert breaking_changes(WHOLE, edited(lambda items: items.insert(2, {"type": "string", "default": ""})))


def test_the_command_says_what_breaks(tmp_path: Path) -> None:
    old = copy.deepcopy(WHOLE)
    old["$defs"]["bench.add"]["properties"]["amount"]["type"] = "string"
    (tmp_path / "old.json").write_text(json.dumps(old))
    done = schema("--own", "--against", str(tmp_path / "old.json"))
    assert done.returncode == 1
    assert done.stdout == "bench.add.amount: type has changed from 'string' to 'integer'\n"
    assert schema("--own", "--against", str(SNAPSHOT)).stdout == "nothing breaks\n"
    assert schema("--against", str(tmp_path / "none.json")).returncode == 2
