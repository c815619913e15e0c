"""Asking for one or several texts, and the answers as tensors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import NamedTuple

from ....runtime.exception_groups import leaves
from ....runtime.refs import Ref
from ....schemas.serve import Completion, Generate, Token
from ..asking import pieces
from ..errors import BadBody
from ..reasoning import ReasoningSplitter, Split, split
from ..site import Site
from .signature import STREAM, THOUGHTS, Asked
from .tensors import Tensor, text_tensor

TEXT = "text_output"


class _Said(NamedTuple):
    completion: Completion
    told: Split


async def whole(site: Site, scheduler: Ref, asked: Asked) -> tuple[Tensor, ...]:
    """The answers to all texts. One error ends them all."""
    timeout = min(site.config.request_timeout_s, asked.timeout_s)

    async def ask(request: Generate) -> _Said:
        in_thought = await _in_thought(site, scheduler, asked, request)
        completion = await scheduler.ask(request, timeout=timeout)
        return _Said(completion, split(completion.text, in_thought) if asked.chat else Split("", completion.text))

    try:
        async with asyncio.TaskGroup() as group:
            asking = [group.create_task(ask(request)) for request in asked.requests]
    except BaseExceptionGroup as errors:
        raise next(leaves(errors)) from None  # the first is why the others were given up
    return _outputs(asked, [task.result() for task in asking])


async def _in_thought(site: Site, scheduler: Ref, asked: Asked, request: Generate) -> bool:
    """A text that is only gone on with has no thoughts in it."""
    return asked.chat and await site.prompt_ends(scheduler, request.model).in_thought(request)


async def in_pieces(site: Site, scheduler: Ref, asked: Asked) -> AsyncGenerator[tuple[tuple[Tensor, ...], bool], None]:
    """The answer to one text as it grows: what came of it, and at the end, with True, all the other outputs beside an
    empty one. Closing this stops the engine's work. Raises BadBody for several texts."""
    if len(asked.requests) != 1:
        raise BadBody(f"{STREAM}: one text has its answer streamed, not {len(asked.requests)}", param=STREAM)
    (request,) = asked.requests
    splitter = ReasoningSplitter(await _in_thought(site, scheduler, asked, request)) if asked.chat else None
    timeout = min(site.config.request_timeout_s, asked.timeout_s)
    async with aclosing(pieces(scheduler, request, timeout)) as answer:
        async for some in answer:
            grown = _joined(some, splitter)
            if any(grown) and (shown := _grown(asked, grown)):
                yield shown, False
            if isinstance(some[-1], Completion):
                yield _outputs(asked, [_Said(some[-1], Split("", ""))]), True


def _joined(some: Sequence[Token | Completion], splitter: ReasoningSplitter | None) -> Split:
    text = "".join([piece.text for piece in some if isinstance(piece, Token)])
    if splitter is None:
        return Split("", text)
    grown = splitter.push(text)
    if not isinstance(some[-1], Completion):
        return grown
    last = splitter.finish()
    return Split(grown.reasoning + last.reasoning, grown.content + last.content)


def _grown(asked: Asked, grown: Split) -> tuple[Tensor, ...]:
    """A piece of a chat is both outputs, one of them mostly empty: who reads one finds it in every answer. Nothing
    where what grew is not wanted."""
    values = {TEXT: grown.content, THOUGHTS: grown.reasoning} if asked.chat else {TEXT: grown.content}
    wanted = {name: values[name] for name in asked.outputs if name in values}
    if not any(wanted.values()):
        return ()
    return tuple(text_tensor(name, [text], asked.shape) for name, text in wanted.items())


def _outputs(asked: Asked, said: Sequence[_Said]) -> tuple[Tensor, ...]:
    def texts(name: str, values: Sequence[str]) -> Tensor:
        return text_tensor(name, values, asked.shape)

    def counts(name: str, values: Sequence[int]) -> Tensor:
        return Tensor(name, "INT32", asked.shape, tuple(values))

    made = {
        TEXT: lambda name: texts(name, [one.told.content for one in said]),
        THOUGHTS: lambda name: texts(name, [one.told.reasoning for one in said]),
        "finish_reason": lambda name: texts(name, [one.completion.finish_reason for one in said]),
        "prompt_tokens": lambda name: counts(name, [one.completion.usage.prompt_tokens for one in said]),
        "completion_tokens": lambda name: counts(name, [one.completion.usage.completion_tokens for one in said]),
    }
    return tuple(made[name](name) for name in asked.outputs)
