"""Questions that a server has for a person: put on the company's board, waited for, taken back."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import anyio
import msgspec

from ....runtime.errors import (
    ActorStopped,
    BusError,
    CallboardError,
    Forbidden,
    NameTaken,
    NoSuchActor,
    StoreUnavailable,
)
from ....runtime.log import log
from ....schemas.question import Answered, AskQuestion, CancelQuestion, ListQuestions, Outcome
from ....schemas.runtime import Spawn

if TYPE_CHECKING:
    from ....runtime.node import Node

BOARD = "questions"
BOARD_KIND = "question.board"
_MAIN = "node.main"
# A board of an earlier life is gone, and nothing tells when the next is there.
AGAIN_S = 0.25
# Who may not start a board waits so long for one that is on its way back.
BACK_S = 30.0
# For taking back what nobody waits for any more.
CANCEL_S = 5.0


class Board:
    """The company's board of questions, for one asker. It is started where there is none and the asker may do so."""

    def __init__(self, node: Node, asker: str) -> None:
        self._node = node
        self._asker = asker

    async def ask(self, question: AskQuestion) -> Answered:
        """Wait for the answer, through restarts of the board. Cancelling takes the question back.

        `question.key` must be set. Raises what the board says of a question that it does not take, Forbidden where
        there is no board and this process may not start one.
        """
        assert question.key, "without a key a question could not be asked again"
        missed_at: float | None = None
        try:
            while True:
                try:
                    return await self._node.actor(BOARD).ask(question, math.inf)
                except NoSuchActor:
                    missed_at = anyio.current_time() if missed_at is None else missed_at
                    await self._start(anyio.current_time() - missed_at < BACK_S)
                except Forbidden:
                    raise
                except (ActorStopped, BusError, StoreUnavailable) as error:
                    missed_at = None
                    log.info("the board of questions is asked again: %s", error)
                    await anyio.sleep(AGAIN_S)
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self._take_back(CancelQuestion(asker=self._asker, key=question.key, note="it is over"))
            raise

    async def _start(self, may_wait: bool) -> None:
        links = self._node.require_links()
        if not links.identity.may_publish(f"actor.{_MAIN}"):
            if not may_wait:
                raise links.forbidden("start the board of questions, and there is none")
            await anyio.sleep(AGAIN_S)
            return
        try:
            await self._node.actor(_MAIN).ask(Spawn(BOARD_KIND, BOARD))
        except NameTaken:
            await anyio.sleep(AGAIN_S)

    async def _take_back(self, message: CancelQuestion) -> None:
        try:
            await self._node.actor(BOARD).ask(message, CANCEL_S)
        except CallboardError as error:  # it was answered just now, or expires by itself
            log.debug("a question is not taken back: %s", error)

    async def clear(self) -> None:
        """Take back what an earlier life of this asker left there: nobody waits for it."""
        try:
            found = await self._node.actor(BOARD).ask(ListQuestions(self._asker), CANCEL_S)
        except CallboardError as error:
            log.debug("there is no board of questions to clear: %s", error)
            return
        for question in found.questions:
            await self._take_back(CancelQuestion(question.id, note="its asker was started anew"))


def elicitation(params: object, asker: str, server: str, ttl: float, key: str) -> AskQuestion | str:
    """The question for an elicitation of the SDK's; a text of what is wrong where it can be none."""
    import mcp_types

    if isinstance(params, mcp_types.ElicitRequestURLParams):
        if not params.url.startswith(("https://", "http://")):
            return "only http and https addresses are shown to people"
        return AskQuestion(
            f"The MCP server {server} asks you to visit a page: {params.message}",
            asker,
            kind="elicitation",
            schema='{"type": "boolean"}',
            proposal="true",
            link=params.url,
            key=key,
            ttl=ttl,
        )
    if isinstance(params, mcp_types.ElicitRequestFormParams):
        return AskQuestion(
            f"The MCP server {server} asks: {params.message}",
            asker,
            kind="elicitation",
            schema=json.dumps({**params.requested_schema, "type": "object"}),
            key=key,
            ttl=ttl,
        )
    return f"there is no elicitation of mode {getattr(params, 'mode', '')}"


def elicited(answered: Answered, *, is_form: bool) -> object:
    """The SDK's answer for an end of the question. What expired was dismissed without a decision."""
    import mcp_types

    if answered.outcome is Outcome.ACCEPTED:
        return mcp_types.ElicitResult(action="accept", content=msgspec.json.decode(answered.value) if is_form else None)
    return mcp_types.ElicitResult(action="decline" if answered.outcome is Outcome.REFUSED else "cancel")
