"""What runs in the sandbox for the tools of the set `data`. It is sent there as text: nothing here imports our own.

`the-arguments.json` says what to do; `the-answer.json` is what came of it, beside `the-table.csv` or `the-plot.png`.
No table has a hyphen in its name.
"""

from __future__ import annotations

import json
import os
from typing import Any

MAX_CELL = 200
_DATE_NAMES = ("date", "time", "day", "month", "timestamp")


def load(name: str) -> Any:
    """A table by its file's name, as a pandas data frame."""
    import pandas

    ending = name.lower().rpartition(".")[2]
    if ending in ("parquet", "pq"):
        return pandas.read_parquet(name)
    if ending in ("jsonl", "ndjson"):
        return pandas.read_json(name, lines=True)
    if ending == "json":
        return pandas.read_json(name)
    if ending in ("xlsx", "xlsm"):
        return pandas.read_excel(name)
    if ending in ("tsv", "tab"):
        return pandas.read_csv(name, sep="\t")
    return pandas.read_csv(name, sep=None, engine="python") if _is_odd(name) else pandas.read_csv(name)


def _is_odd(name: str) -> bool:
    """Whether a CSV file's separator is something else than a comma."""
    with open(name, encoding="utf-8", errors="replace") as file:
        head = file.readline()
    return head.count(",") < max(head.count(";"), head.count("\t"), head.count("|"))


def describe(arguments: dict[str, Any]) -> dict[str, Any]:
    frame = load(arguments["tables"][0])
    columns = []
    for name in frame.columns:
        series = frame[name]
        about: dict[str, Any] = {
            "name": str(name),
            "type": str(series.dtype),
            "missing": int(series.isna().sum()),
            "distinct": int(series.astype(str).nunique()),
        }
        filled = series.dropna()
        if len(filled) and series.dtype.kind in "iuf":
            about["min"], about["max"] = float(filled.min()), float(filled.max())
            about["mean"], about["median"] = float(filled.mean()), float(filled.median())
        elif len(filled):
            about["examples"] = [str(value)[:MAX_CELL] for value in filled.astype(str).unique()[:3]]
        columns.append(about)
    return {"num_rows": len(frame), "columns": columns, "head": _rows(frame.head(5))}


def query(arguments: dict[str, Any]) -> dict[str, Any]:
    import duckdb

    connection = duckdb.connect(":memory:", config={"threads": 2})
    for name, table in zip(arguments["tables"], arguments["names"], strict=True):
        connection.register(table, load(name))
    connection.execute("SET enable_external_access = false")
    frame = connection.execute(arguments["sql"]).df()
    return _table(frame, arguments["limit"])


def along(frame: Any, x: str, *, sort: bool) -> Any:
    """The rows as they are drawn along `x`. Texts that are dates become dates; others, names of months say, stay as
    they are and where they are."""
    import warnings

    import pandas

    if frame[x].dtype.kind not in "iufM" and any(part in x.lower() for part in _DATE_NAMES):
        with warnings.catch_warnings():  # of texts that have no one format
            warnings.simplefilter("ignore")
            dates = pandas.to_datetime(frame[x], errors="coerce")
        # What has no year was given the year 1.
        if dates.notna().sum() == frame[x].notna().sum() and dates.dt.year.min() > 1:
            frame = frame.assign(**{x: dates})
    return frame.sort_values(x) if sort and frame[x].dtype.kind in "iufM" else frame


def plot(arguments: dict[str, Any]) -> dict[str, Any]:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    frame = load(arguments["tables"][0])
    kind, x, ys = arguments["kind"], arguments["x"], arguments["y"]
    for name in [*([x] if x else []), *ys]:
        if name not in frame.columns:
            raise SystemExit(f"there is no column '{name}'; there are: {', '.join(map(str, frame.columns))}")
    if x:
        frame = along(frame, x, sort=kind in ("line", "area"))
    ys = ys or [name for name in frame.columns if name != x and frame[name].dtype.kind in "iuf"]
    if not ys:
        raise SystemExit("there is no column of numbers to draw")
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    if kind == "histogram":
        for name in ys:
            axes.hist(frame[name].dropna(), bins="auto", alpha=0.7, label=str(name))
        axes.legend()
    elif kind == "box":
        axes.boxplot([frame[name].dropna() for name in ys], tick_labels=[str(name) for name in ys])
    elif kind == "scatter":
        for name in ys:
            axes.scatter(frame[x] if x else frame.index, frame[name], s=16, alpha=0.7, label=str(name))
        axes.legend()
    else:
        frame.plot(kind=kind, x=x or None, y=ys, ax=axes)
    axes.set_xlabel(x or axes.get_xlabel())
    if len(ys) == 1 and kind != "histogram":
        axes.set_ylabel(str(ys[0]))
    axes.set_title(arguments["title"])
    axes.grid(alpha=0.3)
    figure.savefig("the-plot.png", dpi=120)
    return {"num_rows": len(frame)}


def _table(frame: Any, limit: int) -> dict[str, Any]:
    frame.to_csv("the-table.csv", index=False)
    return {
        "columns": [str(name) for name in frame.columns],
        "rows": _rows(frame.head(limit)),
        "num_rows": len(frame),
    }


def _rows(frame: Any) -> list[list[Any]]:
    """Through pandas' own JSON, which has a form for dates and for what is missing."""
    return json.loads(frame.to_json(orient="values", date_format="iso", default_handler=str))


def main() -> None:
    with open("the-arguments.json", encoding="utf-8") as file:
        arguments = json.load(file)
    os.unlink("the-arguments.json")
    try:
        answer = {"describe": describe, "query": query, "plot": plot}[arguments["do"]](arguments)
    except (SystemExit, Exception) as error:
        answer = {"error": f"{error}" if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"}
    with open("the-answer.json", "w", encoding="utf-8") as file:
        json.dump(answer, file)


if __name__ == "__main__":
    main()
