"""References to engines that count what is asked through them, so that no route of any protocol can forget to."""

from __future__ import annotations

from typing import Any, TypeVar

from ...runtime.node import Node
from ...runtime.refs import Ref, Stream
from ...schemas.base import Request, StreamRequest
from ...schemas.serve import Completion, Embed, Embeddings, Generate, Token
from .meters import Answering, ModelMeter
from .visit import present

R = TypeVar("R")
Item = TypeVar("Item")


class MeteredRef(Ref):
    """A scheduler; what an answer costs is charged to the visit that asks for it."""

    __slots__ = ("_meter", "_plain")

    def __init__(self, address: str, node: Node, meter: ModelMeter) -> None:
        super().__init__(address, node)
        self._meter = meter
        # A traced `ask` asks itself once more, which must not count twice.
        self._plain = Ref(address, node)

    async def ask(self, message: Request[R], timeout: float | None = None) -> R:
        if not isinstance(message, Generate):
            answer = await self._plain.ask(message, timeout)
            if isinstance(message, Embed) and isinstance(answer, Embeddings):
                present().spend(answer.prompt_tokens)
            return answer
        answering = Answering(self._meter, message, present())
        completion: Any
        try:
            completion = await self._plain.ask(message, timeout)
        except BaseException as error:
            answering.failed(error)
            raise
        answering.ended(completion)
        return completion

    def stream(self, message: StreamRequest[Item, R], timeout: float | None = None) -> Stream[Item, R]:
        if not isinstance(message, Generate):
            return self._plain.stream(message, timeout)
        stream: Any = _MeteredStream(self._node, self.address, message, timeout, self._meter)
        return stream


class _MeteredStream(Stream[Token, Completion]):
    def __init__(self, node: Node, address: str, message: Generate, timeout: float | None, meter: ModelMeter) -> None:
        super().__init__(node, address, message, timeout)
        self._answering = Answering(meter, message, present())

    async def __anext__(self) -> Token:
        try:
            token = await super().__anext__()
        except StopAsyncIteration:
            self._answering.ended(self.result)
            raise
        except BaseException as error:
            self._answering.failed(error)
            raise
        self._answering.grew(token.index, len(token.token_ids))
        return token

    async def take(self) -> list[Token]:
        try:
            tokens = await super().take()
        except BaseException as error:
            self._answering.failed(error)
            raise
        for token in tokens:
            self._answering.grew(token.index, len(token.token_ids))
        if self.is_over:
            self._answering.ended(self.result)
        return tokens

    async def aclose(self) -> None:
        await super().aclose()
        self._answering.failed(None)
