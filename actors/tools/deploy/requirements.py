"""Requirements as a person writes them: a file of lines, some of which may name a wheel on this person's own disk."""

from __future__ import annotations

import re
import urllib.parse
from pathlib import Path

from ....runtime.errors import ConfigError

_AT_FILE = re.compile(r"^\s*[A-Za-z0-9][A-Za-z0-9._-]*\s*(?:\[[^]]*\])?\s*@\s*(?P<url>file:[^\s;]+)")


def lines_of_file(path: Path) -> list[str]:
    """The requirements in a file as pip reads it, without comments; lines that end in `\\` are joined.

    Raises ConfigError for options: where packages come from is the receiving node's to say.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as requirements: {error}") from error
    lines: list[str] = []
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        line = re.sub(r"(^|\s)#.*$", "", line).strip()
        if line.startswith("-"):
            raise ConfigError(
                f"{path}: '{line}' is an option, not a requirement",
                hint="write one requirement a line; where packages come from is set on the node (pip.conf, UV_*)",
            )
        if line:
            lines.append(line)
    return lines


def local_wheel(line: str, base: Path) -> Path | None:
    """The wheel that a line names by its path (from `base`) or by `name @ file:///...`; None for any other line.

    Raises ConfigError where it is not there, or a path leads to something else than a wheel.
    """
    found = _AT_FILE.match(line)
    if found:
        path = Path(urllib.parse.unquote(urllib.parse.urlsplit(found["url"]).path))
    elif line.startswith((".", "/")) or (line.endswith(".whl") and "://" not in line):
        path = base / line
    else:
        return None
    if path.suffix != ".whl":
        raise ConfigError(f"'{line}' names no wheel", hint="build one (`pip wheel --no-deps FOLDER`) and name that")
    if not path.is_file():
        raise ConfigError(f"there is no wheel {path}, which '{line}' requires")
    return path
