"""Which model a tool uses, and where it computes: table `[tools]` of the settings, `CALLBOARD_TOOLS_*`, or its own."""

from __future__ import annotations

from ....runtime.errors import ConfigError
from ....runtime.settings import load_settings


def model_key(tool: str) -> str:
    """The key of a tool's model in `[tools]`."""
    return f"{tool}_model"


def model_hint(tool: str) -> str:
    """How to set it, for an error."""
    return f"CALLBOARD_TOOLS_{model_key(tool).upper()} (or `{model_key(tool)}` in the table [tools])"


def tool_setting(key: str, given: str = "") -> str:
    """`given` where the tool was made with it, else what the settings say, "" for nothing. ConfigError for no text."""
    if given:
        return given
    found = load_settings().tools.get(key, "")
    if not isinstance(found, str):
        raise ConfigError(f"tools.{key} is {found!r} and should be a text")
    return found
