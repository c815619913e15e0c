"""A turn of ReAct as text: read what a model wrote, however it wrote it. Pure. (arXiv:2210.03629)"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LABEL = re.compile(
    r"^[ \t>*#]*(thought|action input|action|observation|final answer)[ \t*]*:[ \t*]*", re.IGNORECASE | re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Turn:
    """`answer` is set in the last turn, `action` and `input` in any other; neither where the format was left."""

    thought: str = ""
    action: str = ""
    input: str = ""
    answer: str | None = None


def read_turn(text: str) -> Turn:
    """The first action or answer counts; what a model makes up after it (an observation, say) does not."""
    parts = _parts(text)
    thoughts: list[str] = []
    action = ""
    for label, body in parts:
        match label:
            case "" | "thought":
                thoughts.append(body)
            case "action" if not action:
                action, inline = _call(body)
                if inline:
                    return Turn(_joined(thoughts), action, inline)
            case "action input" if action:
                return Turn(_joined(thoughts), action, body)
            case "final answer":
                if not action:
                    return Turn(_joined(thoughts), answer=body)
                break
            case "observation":
                break
            case _:
                continue
    return Turn(_joined(thoughts), action)


def _parts(text: str) -> list[tuple[str, str]]:
    found = list(_LABEL.finditer(text))
    parts = [("", text[: found[0].start()] if found else text)]
    for number, label in enumerate(found):
        end = found[number + 1].start() if number + 1 < len(found) else len(text)
        parts.append((label[1].lower(), text[label.end() : end].strip()))
    return parts


_CALL = re.compile(r"([A-Za-z_][\w.\-]*)\s*[\[(](.*)[\])]\s*", re.DOTALL)


def _call(body: str) -> tuple[str, str]:
    """`search` or `search[what]`, on the first line."""
    if (call := _CALL.fullmatch(body.strip())) is not None:
        return call[1], call[2]
    return body.strip().partition("\n")[0].strip("`*\"' []()."), ""


def _joined(thoughts: list[str]) -> str:
    return "\n".join(thought.strip() for thought in thoughts if thought.strip())
