"""An answer as it grows from an endpoint's pieces, whatever API they came in."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from ....schemas.serve import Choice, FinishReason, ModelToolCall, TokenLogprob


@dataclass
class CallParts:
    """A tool call whose name and arguments come in pieces."""

    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


@dataclass
class ChoiceParts:
    text: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    calls: dict[int, CallParts] = field(default_factory=dict)
    finish_reason: FinishReason | None = None


@dataclass
class Counts:
    """What the endpoint says it counted; None where it does not."""

    prompt: int | None = None
    completion: int | None = None
    cached: int = 0


class ToolNames:
    """Names as an endpoint takes them, and back.

    Ours may hold dots (`files.read`), theirs only letters, digits, `_` and `-`, at most 64. Names that are fine stay;
    in others the rest becomes `_`, with a number behind where two would be the same.
    """

    MAX_LENGTH = 64

    def __init__(self, names: list[str]) -> None:
        self._sent: dict[str, str] = {}
        self._ours: dict[str, str] = {}
        names = list(dict.fromkeys(names))
        # Those that need no change go first, so that none is displaced by one that does.
        for name in sorted(names, key=lambda name: self._plain(name) != name):
            plain = sent = self._plain(name)
            number = 2
            while sent in self._ours:
                suffix = f"_{number}"
                sent = plain[: self.MAX_LENGTH - len(suffix)] + suffix
                number += 1
            self._sent[name], self._ours[sent] = sent, name

    def sent(self, name: str) -> str:
        return self._sent[name]

    def ours(self, sent: str) -> str:
        """A name that was never offered stays as it is: whoever asked says what it thinks of that."""
        return self._ours.get(sent, sent)

    def _plain(self, name: str) -> str:
        plain = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in name)
        return plain[: self.MAX_LENGTH] or "_"


def finished_choice(parts: ChoiceParts, names: ToolNames) -> Choice:
    assert parts.finish_reason is not None
    calls = tuple(
        ModelToolCall(call.id or f"call_{place}", names.ours(call.name), "".join(call.arguments) or "{}")
        for place, call in sorted(parts.calls.items())
    )
    logprobs = tuple(parts.logprobs)
    return Choice(
        "".join(parts.text),
        tuple(one.token_id for one in logprobs),
        parts.finish_reason,
        sum(one.logprob for one in logprobs) / len(logprobs) if logprobs else None,
        logprobs,
        calls,
    )


def json_object(text: str) -> dict[str, object]:
    """Raises msgspec.DecodeError where it is none."""
    return msgspec.json.decode(text, type=dict[str, object])
