"""What runs in the sandbox: takes code, runs it, and says what came of it. Nobody outside believes it more than that.

By the time `main` runs, every lock is on. The code that it runs shares this process and can do whatever this can, so
nothing here protects anything: limits, output, files and exit statuses are seen to from outside.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import gc
import io
import linecache
import os
import socket
import sys
import traceback
import types
import warnings
from typing import Any

from . import frames, inside_images, inside_shell, inside_state

# A value's text is for a model to read.
_MAX_TEXT = 100_000


class Session:
    """One interpreter's state: the namespace that code runs in, and the sources of what it defined."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.module = types.ModuleType("__main__")
        self.module.__dict__["__builtins__"] = builtins
        self.sources: dict[str, str] = {}
        self.images = inside_images.Images(f"{place}/out")
        self.shell = inside_shell.Shell(f"{place}/out/shell-state", f"{place}/work")
        self._runs = 0

    def run(self, code: str) -> dict[str, Any]:
        """Run it as a notebook runs a cell: the value of a last expression is the cell's value."""
        self._runs += 1
        name = f"<code {self._runs}>"
        lines = code.splitlines(keepends=True)
        linecache.cache[name] = (len(code), None, lines, name)
        self.images.begin()
        answer: dict[str, Any] = {"value": None, "error": None, "exit": None}
        value = None
        try:
            tree = ast.parse(code, name)
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            self._remember(tree, lines)
            exec(compile(tree, name, "exec"), self.module.__dict__)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), name, "eval"), self.module.__dict__)
                if value is not None and not self.images.take(value):
                    answer["value"] = _sendable(repr(value))
                    self.module.__dict__["_"] = value
        except SystemExit as end:
            answer["exit"] = end.code & 0xFF if isinstance(end.code, int) else 0 if end.code is None else 1
            if end.code is not None and not isinstance(end.code, int):
                print(end.code, file=sys.stderr)
        except BaseException as error:
            answer["error"] = described(error)
        try:
            self.images.take_figures()
        except BaseException as error:
            answer["error"] = answer["error"] or described(error)
        answer["images"] = self.images.count
        return answer

    def _remember(self, tree: ast.Module, lines: list[str]) -> None:
        """The sources of functions and classes, which a snapshot carries instead of code objects."""
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
                self.sources.pop(node.name, None)  # so that the order is that of the last definitions
                self.sources[node.name] = "".join(lines[first - 1 : node.end_lineno])


def described(error: BaseException) -> dict[str, str]:
    """The error as the code's writer wants to see it: from their first line on."""
    whole = traceback.TracebackException.from_exception(error, compact=True)
    _trim(whole)
    text = "".join(whole.format())
    if len(text) > _MAX_TEXT:
        text = f"{text[: _MAX_TEXT // 2]}\n...\n{text[-_MAX_TEXT // 2 :]}"
    return {"type": type(error).__name__, "message": _sendable(str(error)), "traceback": _sendable(text)}


def _sendable(text: str) -> str:
    """Not too much of it, and nothing that UTF-8 cannot say."""
    return text[:_MAX_TEXT].encode("utf-8", "backslashreplace").decode()


def _trim(found: traceback.TracebackException) -> None:
    """Leave out what of each stack is ours, and the parser that we call."""
    ours = os.path.dirname(__file__)
    for one in (found, found.__cause__, found.__context__):
        if one is not None:
            stack = list(one.stack)
            while stack and (os.path.dirname(stack[0].filename) == ours or stack[0].filename == ast.__file__):
                del stack[0]
            one.stack = traceback.StackSummary.from_list(stack)


def main(host: socket.socket, place: str) -> None:
    """Answer the host until it is gone."""
    _open_streams()
    session = Session(place)
    sys.modules["__main__"] = session.module
    builtins.display = session.images.display  # type: ignore[attr-defined]
    session.images.stand_in_for_viewers()
    sys.argv = [""]
    gc.unfreeze()
    own = os.getpid()
    host.sendall(frames.pack({"ready": True}))
    while True:
        try:
            order = frames.receive(host)
        except EOFError:
            os._exit(0)
        _bury()
        answer = _do(session, order)
        if os.getpid() != own:  # the code forked, and this is the child: it has no business here
            _flush()
            os._exit(0)
        _flush()
        try:
            frame = frames.pack({"call": order["call"], **answer})
        except (frames.BadFrame, UnicodeError, ValueError) as error:
            frame = frames.pack({"call": order["call"], "error": described(error)})
        host.sendall(frame)


def _bury() -> None:
    """Collect the children that the last call left behind and the warden killed: each still counts as a process."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _do(session: Session, order: dict[str, Any]) -> dict[str, Any]:
    try:
        match order["do"]:
            case "python":
                return session.run(order["code"])
            case "shell":
                return {"exit": session.shell.run(order["code"])}
            case "save":
                return inside_state.save(session.module, session.sources, f"{session.place}/out/state", order["limit"])
            case _:
                return inside_state.load(session.module, session.sources, f"{session.place}/out/state")
    except BaseException as error:
        return {"error": described(error)}


def _open_streams() -> None:
    """Fresh ones on this process's own descriptors; what cannot be encoded is escaped, never an error."""
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8")
    for number, name in ((1, "stdout"), (2, "stderr")):
        raw = io.FileIO(number, "w", closefd=False)
        stream = io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace", line_buffering=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    warnings.filterwarnings("ignore", message=".*non-interactive.*cannot be shown")


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
