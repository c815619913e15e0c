"""The set `data`: tools `describe`, `query`, `plot` and `python`, all of which work in the sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from ...errors import ToolError
from ...outcome import Reply
from ...sandbox import Limits, RunResult, Sandbox, SandboxConfig
from ...sandbox.parts import Part
from ...tool import Tool
from ...values import File, Image
from ..files.roots import Roots
from ..sql.database import Rows
from ..sql.tools import table_text
from .tables import Tables, gathered

_GUEST = Path(__file__).with_name("guest.py")
_PRELOAD = ("pandas", "duckdb", "matplotlib.figure", "matplotlib.backends.backend_agg")
MAX_TEXT = 20_000
Paths = Annotated[list[str], msgspec.Meta(max_length=20)]
Media = Annotated[list[File], msgspec.Meta(max_length=20)]


class DataOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`roots`: folders with tables, by the name that paths begin with. `accept`: locks of the sandbox that may be
    lacking here, by name (docs/sandbox.md)."""

    roots: dict[str, str] = {}
    accept: tuple[Part, ...] = ()
    seconds: Annotated[float, msgspec.Meta(gt=0, le=600)] = 60.0
    memory: Annotated[int, msgspec.Meta(ge=256 << 20)] = 2 << 30


@dataclass(frozen=True)
class About:
    """What is in a table: its columns with their types, ranges and examples, and its first rows."""

    num_rows: int
    columns: list[dict[str, Any]]
    head: list[list[Any]]


@dataclass(frozen=True)
class QueryResult:
    """`rows` are the first of `num_rows`; `table` is all of them, as CSV."""

    columns: list[str]
    rows: list[list[Any]]
    num_rows: int
    table: File


@dataclass(frozen=True)
class Analysis:
    """What a program printed, the value of its last line, and the files that it left."""

    output: str
    value: str | None = None
    images: list[Image] = field(default_factory=list)
    files: list[File] = field(default_factory=list)


class Workshop:
    """The sandbox and the roots, which the tools of the set share; opened when first used."""

    def __init__(self, options: DataOptions) -> None:
        self._options = options
        self._box: Sandbox | None = None
        self.roots: Roots | None = None

    async def box(self) -> Sandbox:
        if self._box is None:
            options = self._options
            limits = Limits(wall_s=options.seconds, cpu_s=options.seconds * 2, memory=options.memory)
            box = Sandbox(SandboxConfig(limits, preload=_PRELOAD, accept=options.accept))
            await box.open()
            self._box = box
            if options.roots and self.roots is None:
                self.roots = Roots(options.roots)
        return self._box

    async def close(self) -> None:
        box, self._box = self._box, None
        if box is not None:
            await box.close()
        if self.roots is not None:
            self.roots.close()
            self.roots = None


class _InWorkshop(Tool):
    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop

    async def setup(self) -> None:
        self.box = await self._workshop.box()

    async def close(self) -> None:
        await self._workshop.close()

    def gathered(self, tables: list[File], paths: list[str]) -> Tables:
        return gathered(tables, paths, self._workshop.roots)

    async def told(self, do: str, tables: Tables, **arguments: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
        """What the guest answers, and the files that it made. Raises ToolError with what went wrong in there."""
        given = {"do": do, "tables": list(tables.files), "names": tables.names, **arguments}
        files = {**tables.files, "the-arguments.json": json.dumps(given).encode()}
        result = await self.box.run_python(_GUEST.read_text("utf-8"), files=files)
        try:
            made = {file.name: file.bytes() for file in result.files if file.name not in tables.files}
        finally:
            result.release()
        if "the-answer.json" not in made:
            raise ToolError(f"the sandbox gave no answer: {_failure(result)}")
        answer = msgspec.json.decode(made["the-answer.json"])
        if "error" in answer:
            raise ToolError(str(answer["error"])[:4000], hint=f"the tables are: {', '.join(tables.names)}")
        return answer, made


class Describe(_InWorkshop, name="describe", read_only=True, open_world=False, timeout=120.0, version="1"):
    async def run(self, table: File | None = None, path: str = "") -> About:
        """Say what is in a table: columns, types, ranges, missing values, first rows. CSV, Parquet, Excel, JSON lines.

        Args:
            table: The table, sent along.
            path: Or where it is, as `root/path`.
        """
        found = self.gathered([table] if table else [], [path] if path else [])
        answer, _ = await self.told("describe", found)
        return msgspec.convert(answer, About)


class Query(_InWorkshop, name="query", read_only=True, open_world=False, timeout=120.0, version="1"):
    async def run(
        self,
        sql: Annotated[str, msgspec.Meta(max_length=50_000)],
        tables: Media | None = None,
        paths: Paths | None = None,
        limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 50,
    ) -> QueryResult:
        """Ask tables with SQL (DuckDB's). Each table goes by its file's name without the ending, in small letters.

        Args:
            sql: The query, such as SELECT city, avg(price) FROM sales GROUP BY city.
            tables: Tables, sent along.
            paths: Where others are, as `root/path`.
            limit: The most rows to show; all of them are in the table that comes back.
        """
        found = self.gathered(tables or [], paths or [])
        answer, made = await self.told("query", found, sql=sql, limit=limit)
        csv = File.from_bytes(made["the-table.csv"], "text/csv", "result.csv")
        result = QueryResult(answer["columns"], answer["rows"], answer["num_rows"], csv)
        shown = table_text(Rows(result.columns, result.rows, result.num_rows == len(result.rows)))
        return Reply(result, f"{shown}\n[result.csv: {result.num_rows} rows]")  # pyright: ignore[reportReturnType]


class Plot(_InWorkshop, name="plot", read_only=True, open_world=False, timeout=120.0, version="1"):
    async def run(
        self,
        kind: Literal["line", "bar", "barh", "area", "scatter", "histogram", "box"],
        x: str = "",
        y: list[str] | None = None,
        table: File | None = None,
        path: str = "",
        title: str = "",
    ) -> Image:
        """Draw columns of a table.

        Args:
            kind: What to draw.
            x: The column along the bottom. Empty: the rows' numbers.
            y: The columns to draw. Empty: all that are numbers.
            table: The table, sent along: the result of a query, say.
            path: Or where it is, as `root/path`.
            title: What stands above.
        """
        found = self.gathered([table] if table else [], [path] if path else [])
        _, made = await self.told("plot", found, kind=kind, x=x, y=y or [], title=title)
        return Image.from_bytes(made["the-plot.png"], "image/png", "plot.png")


class Python(_InWorkshop, name="python", read_only=True, open_world=False, timeout=180.0, version="1"):
    async def run(
        self,
        code: Annotated[str, msgspec.Meta(max_length=200_000)],
        tables: Media | None = None,
        paths: Paths | None = None,
    ) -> Analysis:
        """Analyse tables with a Python program: pandas, numpy, DuckDB and matplotlib are there, a network is not.

        The tables lie in the working folder under their names, made small and fit for identifiers. Printed text, the
        last line's value, figures that are saved, and files that are written come back.

        Args:
            code: The program.
            tables: Tables, sent along.
            paths: Where others are, as `root/path`.
        """
        found = self.gathered(tables or [], paths or []) if tables or paths else Tables()
        result = await self.box.run_python(code, files=found.files)
        try:
            images, files = _media(result, found.files)
        finally:
            result.release()
        if not result.ok:
            raise ToolError(_failure(result), hint=f"the files are: {', '.join(found.files) or 'none'}")
        analysis = Analysis(result.stdout[:MAX_TEXT], result.value, images, files)
        shown = "\n".join(part for part in (analysis.output.rstrip(), analysis.value or "") if part)
        names = [file.name for file in [*images, *files]]
        return Reply(  # pyright: ignore[reportReturnType]
            analysis, "\n".join([shown or "(nothing was printed)", *(f"[{name}]" for name in names)])
        )


def _media(result: RunResult, given: Mapping[str, Any]) -> tuple[list[Image], list[File]]:
    images: list[Image] = []
    files: list[File] = []
    for file in result.files:
        if file.name in given:
            continue
        if file.mime.startswith("image/"):
            images.append(Image.from_bytes(file.bytes(), file.mime, file.name))
        else:
            files.append(File.from_bytes(file.bytes(), file.mime, file.name))
    return images, files


def _failure(result: RunResult) -> str:
    if result.error is not None:
        return result.error.traceback[-4000:]
    return f"the program ended with status {result.exit_status}: {result.stderr[-2000:]}"


def tools(options: DataOptions) -> list[Tool]:
    """The set, over the folders of its options."""
    workshop = Workshop(options)
    return [Describe(workshop), Query(workshop), Plot(workshop), Python(workshop)]
