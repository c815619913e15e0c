"""`callboard tool call NAME k=v ...`: values are read as the tool's schema says, media from files, results to files."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ...runtime.command import Command, add_bus_options, add_json_option, run_async
from ...runtime.commands_actors import client_of, positive, to_json
from ...runtime.errors import UsageError
from ...runtime.schema_values import part_of, value_of
from ...schemas.tool import ToolPiece, ToolProgress
from .outcome import Outcome
from .values import File


def _configure(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME[@VERSION]", help="a tool of `callboard tool list`")
    parser.add_argument("values", nargs="*", metavar="KEY=VALUE", help="an argument; image=@photo.png sends a file")
    parser.add_argument("--arguments", metavar="JSON", default="", help="all arguments at once; KEY=VALUE wins")
    parser.add_argument("-o", "--out", metavar="PATH", default="", help="where to write media; a folder for several")
    parser.add_argument("--session", default="", help="the state that the tool is to go on with, where it keeps any")
    parser.add_argument("--timeout", type=positive, metavar="SECONDS", help="how long to wait (default: as it says)")
    add_json_option(parser)
    add_bus_options(parser)


def _call(args: Namespace) -> int:
    return run_async(_run, args)


async def _run(args: Namespace) -> int:
    from .client import open_tool

    said = _Said(quiet=args.json)
    async with client_of(args) as bus, open_tool(bus, args.name) as tool:
        schema = msgspec.json.decode(tool.info.input_schema or "{}", type=dict[str, Any])
        arguments = {**_given(args.arguments), **read_values(args.values, schema)}
        outcome = await tool.request(
            arguments,
            session=args.session,
            timeout=args.timeout,
            on_progress=said.progress,
            on_piece=said.piece,
        )
    said.end()
    written = write_media(outcome.media, args.out) if args.out else {}
    if args.json:
        media = [
            {"name": n, "kind": f.kind, "mime": f.mime, "size": f.size, "path": written.get(n, "")}
            for n, f in outcome.media.items()
        ]
        print(to_json({"value": msgspec.Raw(outcome.value.encode()), "text": outcome.text, "media": media}))
    else:
        _print(outcome, said, written)
    return 0


call = Command(
    "call a tool",
    _configure,
    _call,
    details="Values are read as the tool's schema says: numbers, true and false, JSON for lists and objects, and text\n"
    "as it is. KEY may be given several times for a list. A value without KEY= is the first argument's that the\n"
    "tool needs.\n\nexamples:\n"
    "  callboard tool call calculator '2 + 2'\n"
    "  callboard tool call image.describe image=@photo.png question='What is this?'\n"
    "  callboard tool call speech.say text=hello -o hello.wav",
)


class _Said:
    """What a call says before its result: pieces to standard output, progress to a terminal's standard error."""

    def __init__(self, *, quiet: bool) -> None:
        self.text = ""
        self._quiet = quiet
        self._shows = sys.stderr.isatty() and not quiet
        self._shown = 0

    def progress(self, progress: ToolProgress) -> None:
        if not self._shows:
            return
        share = f"{progress.done / progress.total:4.0%}" if progress.total else f"{progress.done:g}"
        line = f"{share} {progress.text}"[:100]
        print(f"\r{line:<{self._shown}}", end="", file=sys.stderr, flush=True)
        self._shown = len(line)

    def piece(self, piece: ToolPiece, media: Mapping[str, File]) -> None:
        self.text += piece.text
        if not self._quiet:
            print(piece.text, end="", flush=True)

    def end(self) -> None:
        if self._shown:
            print(f"\r{'':<{self._shown}}\r", end="", file=sys.stderr, flush=True)


def _print(outcome: Outcome, said: _Said, written: Mapping[str, str]) -> None:
    if said.text:
        print()
    if not said.text or outcome.text != said.text:
        print(outcome.text)
    for name, path in written.items():
        print(f"{name} is written to {path}", file=sys.stderr)
    if outcome.media and not written:
        print("-o PATH writes what it made to a file", file=sys.stderr)


def _given(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise UsageError(f"--arguments is no JSON object: {error}") from error


def read_values(values: Sequence[str], schema: Mapping[str, Any]) -> dict[str, Any]:
    """`KEY=VALUE` texts as the arguments that a schema describes. Raises UsageError, ToolError for files not there."""
    properties = schema.get("properties", {})
    found: dict[str, Any] = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals or (key not in properties and not key.isidentifier()):
            free = [name for name in schema.get("required", ()) if name not in found]
            if not free:
                there = ", ".join(properties) or "none"
                raise UsageError(f"'{text}' is no KEY=VALUE", hint=f"its arguments are {there}")
            key, value = free[0], text
        part = part_of(properties.get(key, {}), schema)
        if part.get("type") == "array" and not value.startswith("["):
            found.setdefault(key, []).append(value_of(value, part_of(part.get("items", {}), schema), schema))
        else:
            found[key] = value_of(value, part, schema)
    return found


def write_media(media: Mapping[str, File], out: str) -> dict[str, str]:
    """Write them to `out`: the file itself for one, a folder for several or where it is one. Returns their paths."""
    target = Path(out).expanduser()
    if len(media) == 1 and not target.is_dir() and not out.endswith("/"):
        ((name, file),) = media.items()
        target.write_bytes(file.view)
        return {name: str(target)}
    target.mkdir(parents=True, exist_ok=True)
    found: dict[str, str] = {}
    for name, file in media.items():
        path, number = target / file.file_name, 1
        while str(path) in found.values():
            number += 1
            path = target / f"{number}-{file.file_name}"
        path.write_bytes(file.view)
        found[name] = str(path)
    return found
