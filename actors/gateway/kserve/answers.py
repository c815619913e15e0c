"""Asking for one or several texts, and the answers as tensors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from ....runtime.exception_groups import leaves
from ....runtime.refs import Ref
from ....schemas.serve import Completion, Token
from ..asking import pieces
from ..errors import BadBody
from .signature import STREAM, Asked
from .tensors import Tensor, text_tensor


async def whole(scheduler: Ref, asked: Asked, timeout: float) -> tuple[Tensor, ...]:
    """The answers to all texts. One error ends them all."""
    try:
        async with asyncio.TaskGroup() as group:
            asking = [
                group.create_task(scheduler.ask(request, timeout=min(timeout, asked.timeout_s)))
                for request in asked.requests
            ]
    except BaseExceptionGroup as errors:
        raise next(leaves(errors)) from None  # the first is why the others were given up
    return _outputs(asked, [task.result() for task in asking])


async def in_pieces(
    scheduler: Ref, asked: Asked, timeout: float
) -> AsyncGenerator[tuple[tuple[Tensor, ...], bool], None]:
    """The answer to one text as it grows: what came of it as `text_output`, and at the end, with True, all the other
    outputs beside an empty one. Closing this stops the engine's work. Raises BadBody for several texts."""
    if len(asked.requests) != 1:
        raise BadBody(f"{STREAM}: one text has its answer streamed, not {len(asked.requests)}", param=STREAM)
    async with aclosing(pieces(scheduler, asked.requests[0], min(timeout, asked.timeout_s))) as answer:
        async for some in answer:
            text = "".join([piece.text for piece in some if isinstance(piece, Token)])
            if text and "text_output" in asked.outputs:
                yield (text_tensor("text_output", [text], asked.shape),), False
            if isinstance(some[-1], Completion):
                yield _outputs(asked, [some[-1]], streamed=True), True


def _outputs(asked: Asked, completions: Sequence[Completion], *, streamed: bool = False) -> tuple[Tensor, ...]:
    """`streamed`: the text was told already."""

    def counts(name: str, values: Sequence[int]) -> Tensor:
        return Tensor(name, "INT32", asked.shape, tuple(values))

    made = {
        "text_output": lambda name: text_tensor(
            name, ["" if streamed else one.text for one in completions], asked.shape
        ),
        "finish_reason": lambda name: text_tensor(name, [one.finish_reason for one in completions], asked.shape),
        "prompt_tokens": lambda name: counts(name, [one.usage.prompt_tokens for one in completions]),
        "completion_tokens": lambda name: counts(name, [one.usage.completion_tokens for one in completions]),
    }
    return tuple(made[name](name) for name in asked.outputs)
