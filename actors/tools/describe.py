"""A process of its own that says what announced tools are, so that nobody has to import them to list them.

It reads a list of `Wanted` from its standard input and prints a list of `Described`. What the tools' modules print goes
to standard error.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence

import anyio
import msgspec

from ...runtime.errors import CallboardError, to_info
from ...runtime.log import log
from ...runtime.processes import whole
from ...schemas.base import ErrorInfo
from ...schemas.tool import ToolInfo
from .load import load_tools
from .tool_actor import described

# For importing the modules of all that is announced.
TIMEOUT_S = 60.0


class Wanted(msgspec.Struct, frozen=True):
    """An entry point of the group `callboard.tools`, with the options of its set as JSON."""

    name: str
    options: str = ""


class Described(msgspec.Struct, frozen=True):
    """`error` where the set cannot be loaded."""

    name: str
    tools: tuple[ToolInfo, ...] = ()
    error: ErrorInfo | None = None


async def describe(wanted: Sequence[Wanted]) -> list[Described]:
    """What they are, all from one process; where that dies of one of them, each from its own."""
    if not wanted:
        return []
    command = [sys.executable, "-m", "callboard.actors.tools.describe"]
    try:
        with anyio.fail_after(TIMEOUT_S):
            code, output = await _ask(command, msgspec.json.encode(wanted))
    except TimeoutError:
        why = f"it was not loaded within {TIMEOUT_S:g} s"
    else:
        if code == 0:
            return msgspec.json.decode(output, type=list[Described])
        why = f"the process that loads it ended with code {code}"
    if len(wanted) == 1:
        log.error("the tools '%s' cannot be described: %s", wanted[0].name, why)
        return [Described(wanted[0].name, error=ErrorInfo("tool.definition", f"'{wanted[0].name}': {why}"))]
    return [found for each in wanted for found in await describe([each])]


async def _ask(command: Sequence[str], question: bytes) -> tuple[int, bytes]:
    """A program's exit code and output, once it was given `question`. It ends where this is cancelled."""
    process = await whole(anyio.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None))
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with contextlib.suppress(anyio.BrokenResourceError):  # it ended before it read; its exit code says more
            await process.stdin.send(question)
        await process.stdin.aclose()
        output = b"".join([part async for part in process.stdout])
        return await process.wait(), output
    finally:
        with anyio.CancelScope(shield=True):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.aclose()


def described_here(wanted: Wanted) -> Described:
    try:
        tools, is_single = load_tools(wanted.name, wanted.options)
        names = [wanted.name if is_single else f"{wanted.name}.{tool.info.name}" for tool in tools]
        infos = [described(tool, name, "", "") for tool, name in zip(tools, names, strict=True)]
        return Described(wanted.name, tuple(infos))
    except CallboardError as error:
        return Described(wanted.name, error=error.to_info())
    except Exception as error:  # somebody else's module: it may raise anything, and the others go on
        return Described(wanted.name, error=to_info(error))


def main() -> None:
    answer = os.dup(1)
    os.dup2(2, 1)
    found = [described_here(wanted) for wanted in msgspec.json.decode(sys.stdin.buffer.read(), type=list[Wanted])]
    with open(answer, "wb") as file:
        file.write(msgspec.json.encode(found))


if __name__ == "__main__":
    main()
