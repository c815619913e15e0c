"""What a docstring says: the description, and each argument's, from a Google-style "Args:" section."""

from __future__ import annotations

import inspect
import re
from typing import NamedTuple

_SECTION = re.compile(
    r"(Args|Arguments|Parameters|Returns?|Yields?|Raises|Example|Examples|Note|Notes|Attributes|Warning|Warnings):\s*$"
)
_ARGUMENTS = ("Args", "Arguments", "Parameters")
_ARGUMENT = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)$")


class Docs(NamedTuple):
    description: str
    arguments: dict[str, str]
    returns: str = ""


def parse_docstring(text: str | None) -> Docs:
    """Sections other than arguments and results stay out of the description, but for examples and notes."""
    sections: dict[str, list[str]] = {"": []}
    current = ""
    for line in inspect.cleandoc(text or "").splitlines():
        heading = _SECTION.fullmatch(line)
        if heading is not None:
            current = heading[1]
            sections.setdefault(current, [])
            if not current.startswith(("Args", "Arg", "Param", "Ret", "Yield", "Raises", "Attr")):
                sections[current].append(line)
            continue
        sections[current].append(line)
    kept = ("", "Example", "Examples", "Note", "Notes", "Warning", "Warnings")
    description = "\n\n".join(part for name in kept if (part := "\n".join(sections.get(name, ())).strip()))
    arguments: dict[str, str] = {}
    for name in _ARGUMENTS:
        arguments |= _arguments(sections.get(name, []))
    returns = next((" ".join(" ".join(sections[n]).split()) for n in sections if n.startswith(("Ret", "Yield"))), "")
    return Docs(description, arguments, returns)


def _arguments(lines: list[str]) -> dict[str, str]:
    """Entries begin at the section's own indentation; deeper lines go on with the last."""
    found: dict[str, str] = {}
    indents = [len(line) - len(line.lstrip()) for line in lines if line.strip()]
    last = ""
    for line in lines:
        entry = _ARGUMENT.fullmatch(line.strip())
        if entry is not None and len(line) - len(line.lstrip()) == min(indents):
            last = entry[1]
            found[last] = entry[2].strip()
        elif last and line.strip():
            found[last] = f"{found[last]} {line.strip()}".strip()
    return found
