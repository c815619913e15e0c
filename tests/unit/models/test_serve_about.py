"""What an engine says of itself: its model, its tokens, the conversations that it keeps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from callboard.actors.models.loading import load_tokenizer
from callboard.runtime.errors import RequestInvalid
from callboard.schemas.base import Request
from callboard.schemas.serve import (
    ChatMessage,
    DescribeModel,
    Detokenize,
    Generate,
    ListSessions,
    ModelDescription,
    PinSession,
    SessionPinned,
    Tokenize,
)

from .serving import serving

ASK = (ChatMessage("user", "hello there"),)


@pytest.mark.anyio
async def test_an_engine_describes_its_model(tiny_path: Path) -> None:
    before = time.time()
    async with serving(tiny_path, context_length=100) as scheduler:
        described = await scheduler.ask(DescribeModel())
    assert isinstance(described, ModelDescription)
    assert (described.model, described.context_length, described.dtype) == (str(tiny_path), 100, "float32")
    assert described.vocab_size == load_tokenizer(tiny_path).vocab_size
    assert (described.has_chat_template, described.tool_format) == (True, "hermes")
    assert before <= described.started <= time.time()


@pytest.mark.anyio
async def test_tokens_are_those_that_a_request_would_have_and_come_back_as_text(tiny_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_path)
    async with serving(tiny_path) as scheduler:
        text = "hello héé 😀"
        ids = (await scheduler.ask(Tokenize(text=text))).token_ids
        assert ids == tuple(tokenizer.encode(text))
        bare = (await scheduler.ask(Tokenize(text=text, add_special=False))).token_ids
        assert bare == tuple(tokenizer.encode(text, add_bos=False))
        chat = (await scheduler.ask(Tokenize(messages=ASK))).token_ids
        asked = await scheduler.ask(Generate(messages=ASK, max_tokens=1))
        assert len(chat) == asked.usage.prompt_tokens
        back = await scheduler.ask(Detokenize(bare))
        assert back.text == text
        assert b"".join(back.pieces).decode() == text
        control = await scheduler.ask(Detokenize(chat))
        assert any(piece.startswith(b"<|") for piece in control.pieces)
        assert "<|" not in control.text


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Tokenize(), "either a `text` or `messages`"),
        (Tokenize(text="a", messages=ASK), "either a `text` or `messages`"),
        (Tokenize(messages=(ChatMessage("narrator", "a", tool_call_id="x"),)), "no role 'narrator'"),
        (Detokenize((10**6,)), "the token 1000000"),
        (Detokenize((-1,)), "the token -1"),
        (PinSession("a", -1.0), "session_ttl_s"),
    ],
)
async def test_what_makes_no_sense_is_refused(tiny_path: Path, request_: Request[Any], said: str) -> None:
    async with serving(tiny_path) as scheduler:
        with pytest.raises(RequestInvalid, match=said):
            await scheduler.ask(request_)


@pytest.mark.anyio
async def test_sessions_are_listed_and_pinned_anew(tiny_path: Path) -> None:
    async with serving(tiny_path, session_ttl_s=100.0) as scheduler:
        assert (await scheduler.ask(ListSessions())).sessions == ()
        for name in ("first", "second"):
            await scheduler.ask(Generate(prompt=f"hello {name} and all", session=name, max_tokens=8))
        listed = (await scheduler.ask(ListSessions())).sessions
        assert [one.session for one in listed] == ["first", "second"]
        assert all(one.num_blocks >= 4 and 0 < one.expires_in_s <= 100 for one in listed)
        assert await scheduler.ask(PinSession("first", 5000.0)) == SessionPinned(True)
        assert await scheduler.ask(PinSession("third")) == SessionPinned(False)
        first = (await scheduler.ask(ListSessions())).sessions[0]
        assert 4000 < first.expires_in_s <= 5000
