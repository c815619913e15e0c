"""The tables that a call names: files that came with it, and files below the set's roots, under names fit for SQL."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ...errors import ToolError
from ...values import File
from ..files.roots import Roots

MAX_BYTES = 128 << 20
ENDINGS = ("csv", "tsv", "tab", "txt", "parquet", "pq", "json", "jsonl", "ndjson", "xlsx", "xlsm")
_BY_MIME = {
    "text/csv": "csv",
    "text/tab-separated-values": "tsv",
    "application/json": "json",
    "application/vnd.apache.parquet": "parquet",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
}


class Tables:
    """`files`: what the sandbox is given, by file name; `names`: what SQL calls each of them, in the same order."""

    def __init__(self) -> None:
        self.files: dict[str, bytes | Path] = {}
        self.names: list[str] = []

    def add(self, name: str, data: bytes, mime: str = "") -> None:
        """Raises ToolError where it is no table."""
        if len(data) > MAX_BYTES:
            raise ToolError(f"'{name}' has more than {MAX_BYTES:,} bytes")
        stem, dot, ending = name.rpartition(".")
        if not dot or ending.lower() not in ENDINGS:
            ending = "parquet" if data[:4] == b"PAR1" else _BY_MIME.get(mime, "")
            stem = name
        if not ending:
            raise ToolError(f"'{name}' is no table", hint=f"its name ends in one of: {', '.join(ENDINGS)}")
        base = re.sub(r"\W", "_", stem, flags=re.ASCII).strip("_").lower() or "table"
        table = base if base[0].isalpha() else f"t_{base}"
        wanted, number = table, 1
        while table in self.names:
            number += 1
            table = f"{wanted}_{number}"
        self.names.append(table)
        self.files[f"{table}.{ending.lower()}"] = data


def gathered(media: Sequence[File], paths: Sequence[str], roots: Roots | None) -> Tables:
    """Raises ToolError where there are none, FileRefused for a path that may not be read."""
    found = Tables()
    for file in media:
        found.add(file.name or "table", file.bytes(), file.mime)
    for path in paths:
        if roots is None:
            raise ToolError("no folder with tables may be read", hint="send the table along with the call")
        with os.fdopen(roots.open(path), "rb") as opened:
            found.add(os.path.basename(path), opened.read(MAX_BYTES + 1))
    if not found.names:
        raise ToolError("no table was given", hint="name one by `paths`, or send it along in `tables`")
    return found
