"""`callboard.pipeline`: the same answers in this process and through a daemon, and nothing left when it is over."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from board import Board

import callboard
from callboard.actors.serve.engine import Engine, EngineConfig
from callboard.runtime.errors import ConfigError, NotReachable, RequestInvalid, UsageError
from callboard.runtime.node import Node
from callboard.schemas.serve import ChatMessage, Completion, Generate, Grammar, GrammarKind

PROMPTS = ["hello", "hello all", "all"]
CHAT: list[dict[str, Any]] = [{"role": "system", "content": "all"}, {"role": "user", "content": "hello"}]
DRAWN: Any = {"max_tokens": 9, "temperature": 0.9, "top_k": 30, "seed": 4}
# The tests' own settings of an engine: little memory.
SMALL: Any = {"num_blocks": 300, "block_size": 4, "threads": 1}


@pytest.fixture(scope="module")
def pipe(long_path: Path) -> Iterator[callboard.actors.serve.pipeline.Pipeline]:
    with callboard.pipeline(str(long_path), connect=False, **SMALL) as pipe:
        yield pipe


def said(completions: list[Completion]) -> list[tuple[str, tuple[int, ...]]]:
    return [(one.text, one.choices[0].token_ids) for one in completions]


def on_a_node(model: Path, requests: list[Generate]) -> list[Completion]:
    async def ask() -> list[Completion]:
        async with Node() as node:
            engine = await node.spawn(Engine, EngineConfig(model=str(model), **SMALL), name="engine")
            return [await engine.ask(request) for request in requests]

    return anyio.run(ask)


def test_texts_and_chats_are_answered_as_by_the_engine(pipe: Any, long_path: Path) -> None:
    messages = (ChatMessage("system", "all"), ChatMessage("user", "hello"))
    known = on_a_node(
        long_path,
        [*(Generate(prompt=prompt, **DRAWN) for prompt in PROMPTS), Generate(messages=messages, **DRAWN)],
    )
    assert pipe.in_process
    assert said(pipe(PROMPTS, **DRAWN)) == said(known[:3])
    assert said([pipe(PROMPTS[1], **DRAWN), pipe(CHAT, **DRAWN)]) == said(known[1:3:2] + known[3:])
    assert said(pipe([CHAT, list(messages)], **DRAWN)) == said([known[3], known[3]])
    assert len(pipe(["hello"] * 100, max_tokens=2)) == 100
    assert pipe([]) == []


def test_a_stream_adds_up_to_the_whole_answer(pipe: Any) -> None:
    whole = pipe(CHAT, **DRAWN)
    stream = pipe.stream(CHAT, **DRAWN)
    pieces = list(stream)
    assert len(pieces) > 2
    assert "".join(piece.text for piece in pieces) == whole.text == stream.result.text
    for _ in pipe.stream("hello", max_tokens=1000, ignore_eos=True):
        break  # the engine is free again, or the next one would wait
    assert pipe("hello", max_tokens=3).usage.completion_tokens == 3


def test_options_are_those_of_a_request(pipe: Any) -> None:
    grammar = Grammar(GrammarKind.CHOICE, '["Delft", "Oslo"]')
    assert pipe("hello", grammar=grammar).text in ("Delft", "Oslo")
    assert len(pipe("hello", n=2, **DRAWN).choices) == 2
    text = pipe("hello", **DRAWN).text
    assert pipe("hello", stop=text[3:5], **DRAWN).text == text[:3]
    assert pipe("hello", max_tokens=1, logit_bias={7: 100.0}).choices[0].token_ids == (7,)


@pytest.mark.parametrize(
    ("prompt", "options", "error", "expected"),
    [
        ("a", {"max_token": 3}, UsageError, "no option 'max_token'"),
        ("a", {"max_tokens": "3"}, UsageError, "Expected `int | null`, got `str`"),
        ("a", {"top_p": 3.0}, RequestInvalid, "top_p"),
        (["a", 3], {}, UsageError, "prompt 1 is neither a text nor a list of turns but int"),
        (7, {}, UsageError, "no int"),
        ([{"content": "a"}], {}, UsageError, "missing required field `role`"),
    ],
)
def test_what_is_no_prompt_or_no_option_is_refused(
    pipe: Any, prompt: Any, options: Any, error: type[Exception], expected: str
) -> None:
    with pytest.raises(error, match=expected):
        pipe(prompt, **options)


def test_settings_that_do_not_fit_are_refused(long_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="num_block"):
        callboard.pipeline(str(long_path), num_block=3)
    with pytest.raises(ConfigError, match="not of the company's"):
        callboard.pipeline(str(long_path), connect=True, threads=1)
    with pytest.raises(NotReachable):
        callboard.pipeline(str(long_path), connect=True, state_dir=str(tmp_path / "nobody"))
    assert not pipeline_threads()


def pipeline_threads() -> list[str]:
    """Those of the fixture aside."""
    return [thread.name for thread in threading.enumerate() if thread.name == "pipeline"][1:]


def test_it_ends_when_it_is_closed_or_forgotten(pipe: Any, long_path: Path) -> None:
    with callboard.pipeline(str(long_path), **SMALL) as closed:
        assert pipeline_threads()
    assert not pipeline_threads()
    closed.close()
    with pytest.raises(UsageError, match="the pipeline is closed"):
        closed("hello")
    with pytest.raises(UsageError, match="the pipeline is closed"):
        closed.stream("hello")
    forgotten = callboard.pipeline(str(long_path), **SMALL)
    assert forgotten("hello", max_tokens=1).text is not None
    del forgotten
    gc.collect()
    assert not pipeline_threads()


@pytest.mark.slow
def test_a_program_that_never_closes_it_ends(long_path: Path) -> None:
    script = (
        "import sys, callboard\n"
        "pipe = callboard.pipeline(sys.argv[1], connect=False, num_blocks=300, block_size=4, threads=1)\n"
        "print(pipe('hello', max_tokens=3).usage.completion_tokens)\n"
        "stream = iter(pipe.stream('hello', max_tokens=1000, ignore_eos=True))\n"
        "next(stream)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(long_path)], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_daemon_gives_the_same_answers(long_path: Path, tmp_path: Path, pipe: Any) -> None:
    # Its engine finds the kernels that are compiled already.
    board = Board.at(tmp_path, CALLBOARD_CACHE_DIR=os.environ["CALLBOARD_CACHE_DIR"])
    model = str(long_path)
    where: Any = {"state_dir": str(board.paths.state)}
    assert board.run("up", "--detach").returncode == 0
    try:
        with callboard.pipeline(model, **where) as alone:
            assert alone.in_process  # the company serves nothing yet
        with callboard.pipeline(model, connect=True, **where) as started:
            assert not started.in_process
            assert said(started(PROMPTS, **DRAWN)) == said(pipe(PROMPTS, **DRAWN))
            assert "".join(one.text for one in started.stream(CHAT, **DRAWN)) == pipe(CHAT, **DRAWN).text
        with callboard.pipeline(model, **where) as found:
            assert not found.in_process
            assert said([found(CHAT, **DRAWN)]) == said([pipe(CHAT, **DRAWN)])
        with pytest.raises(NotReachable):
            callboard.pipeline(model, nats="nats://127.0.0.1:9")  # who names a company means it
        with pytest.raises(ConfigError, match="does not serve"):
            callboard.pipeline("/elsewhere/other.gguf", connect=True, **where)
    finally:
        board.close()
