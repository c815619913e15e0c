"""The slash commands: their names, what each wants to be told, and how a line that begins with `/` may go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...runtime.errors import UsageError
from ...runtime.matching import did_you_mean


class UnknownCommand(UsageError):
    """There is no such slash command."""

    code = "tui.slash"
    default_hint = "/help lists them; begin with // to send a text that begins with /"


@dataclass(frozen=True)
class Slash:
    """`wants` names the argument, in brackets where it may be left out; `values` gives what it may be."""

    help: str
    wants: str = ""
    values: str = ""

    @property
    def needs_more(self) -> bool:
        return bool(self.wants) and not self.wants.startswith("[")


COMMANDS: dict[str, Slash] = {
    "new": Slash("begin a new chat"),
    "rename": Slash("give this chat a title", "TITLE"),
    "fork": Slash("go on in a chat of its own"),
    "delete": Slash("delete this chat"),
    "model": Slash("choose who answers", "[NAME]", "models"),
    "system": Slash("what the model is told to be", "[TEXT]"),
    "set": Slash("set an option of the answers", "OPTION VALUE", "options"),
    "options": Slash("show or hide the options"),
    "attach": Slash("send a file with the next question", "PATH", "paths"),
    "detach": Slash("send none of the files"),
    "edit": Slash("write the last question anew"),
    "retry": Slash("ask for another answer"),
    "stop": Slash("stop the answer"),
    "copy": Slash("copy the last answer, or its code", "[code]", "copy"),
    "export": Slash("write this chat to a Markdown file", "PATH", "paths"),
    "help": Slash("the keys and commands"),
}


def parse(line: str) -> tuple[str, str]:
    """(name, argument). Raises UnknownCommand with a close match, UsageError where more is wanted."""
    name, _, argument = line[1:].partition(" ")
    slash = COMMANDS.get(name)
    if slash is None:
        guess = did_you_mean(name, COMMANDS)
        raise UnknownCommand(f"there is no command /{name}", hint=f"did you mean /{guess}?" if guess else "")
    if slash.needs_more and not argument.strip():
        raise UsageError(f"/{name} wants {slash.wants}", hint=slash.help)
    return name, argument.strip()


def completions(line: str, values: Callable[[str, str], Sequence[str]]) -> list[tuple[str, str]]:
    """(what the line becomes, what is shown). `values(kind, start)` gives what an argument may be."""
    if line.startswith("//"):
        return []
    name, space, argument = line[1:].partition(" ")
    if not space:
        return [
            (f"/{one} " if slash.wants else f"/{one}", f"/{one} {slash.wants}".ljust(20) + f" {slash.help}")
            for one, slash in COMMANDS.items()
            if one.startswith(name)
        ]
    slash = COMMANDS.get(name)
    if slash is None or not slash.values:
        return []
    return [(f"/{name} {value}", value) for value in values(slash.values, argument) if value.startswith(argument)]
