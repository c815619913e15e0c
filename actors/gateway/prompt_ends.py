"""Whether an answer begins inside a thought: templates of some models (DeepSeek's R1, Qwen3's that always think) end a
prompt with `<think>`, so what the model writes has only the end of the thought."""

from __future__ import annotations

from ...runtime.errors import NotUnderstood, RequestInvalid
from ...runtime.refs import Ref
from ...schemas.serve import ChatMessage, Detokenize, Generate, OfferedTool, Tokenize
from .reasoning import OPEN

# Tokens that the mark and the line break behind it may take: a byte each, and some to spare.
TAIL = 16
PLAINEST = (ChatMessage("user", "a"),)


class PromptEnds:
    """Of one engine.

    It is asked once for the end of the plainest chat. Where that opens no thought, none does. Where it does, every
    conversation is tokenized once more, by itself: a template may open one in some and not in others, as R1's does not
    where a tool has answered.
    """

    def __init__(self, scheduler: Ref) -> None:
        self._scheduler = scheduler
        self._may_open: bool | None = None

    async def in_thought(self, request: Generate) -> bool:
        """A chat's. Raises RequestInvalid where the engine would refuse the conversation too."""
        if self._may_open is None:
            self._may_open = await self._some_may_open()
        if not self._may_open or request.grammar is not None or request.tool_choice not in ("", "auto", "none"):
            return False  # what must look like something has no thoughts before it
        tools = () if request.tool_choice == "none" else request.tools
        return await self._opens(request.messages, tools)

    async def _some_may_open(self) -> bool:
        try:
            return await self._opens(PLAINEST)
        except NotUnderstood:
            return False  # a script stands for the model: without tokens it has no template either
        except RequestInvalid:
            return True  # a template that takes other chats only: each is looked at by itself

    async def _opens(self, messages: tuple[ChatMessage, ...], tools: tuple[OfferedTool, ...] = ()) -> bool:
        ids = (await self._scheduler.ask(Tokenize(messages=messages, tools=tools))).token_ids
        pieces = (await self._scheduler.ask(Detokenize(ids[-TAIL:]))).pieces
        return b"".join(pieces).rstrip().endswith(OPEN.encode())
