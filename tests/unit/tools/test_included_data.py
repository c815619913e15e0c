"""Data analysis in the real sandbox: tables in, tables and plots out, and no way out for the program."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest
from anyio.from_thread import start_blocking_portal

from callboard.actors.tools.errors import ToolError
from callboard.actors.tools.included.data.guest import along
from callboard.actors.tools.included.data.tables import Tables, gathered
from callboard.actors.tools.included.data.tools import DataOptions, tools
from callboard.actors.tools.outcome import Outcome
from callboard.actors.tools.sandbox import Part, probe
from callboard.actors.tools.values import File, Image

CSV = b"city,price,day\nA,1,2026-01-01\nB,3,2026-01-02\nA,5,\n"
Call = Callable[..., Outcome]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


@pytest.fixture(scope="module")
def call(folder: Path) -> Iterator[Call]:
    """One sandbox for all: a program in it leaves nothing to the next."""
    kernel = probe()
    if Part.LINUX in kernel.lacking:
        pytest.skip("the sandbox is for Linux")
    options = DataOptions({"t": str(folder)}, accept=tuple(kernel.lacking), seconds=20.0)
    by_name = {tool.info.name: tool for tool in tools(options)}
    with start_blocking_portal() as portal:

        def called(name: str, media: dict[str, File] | None = None, /, **arguments: Any) -> Outcome:
            return portal.call(by_name[name].call, arguments, media)

        yield called
        portal.call(by_name["query"].close)


def sales() -> dict[str, File]:
    return {"f": File.from_bytes(CSV, "text/csv", "Sales 2026.csv")}


def test_a_table_is_described(call: Call) -> None:
    found = call("describe", sales(), table="f").data
    assert found["num_rows"] == 3
    city, price, day = found["columns"]
    assert (city["distinct"], city["examples"]) == (2, ["A", "B"])
    assert (price["min"], price["max"], price["median"]) == (1.0, 5.0, 3.0)
    assert day["missing"] == 1
    assert found["head"][2] == ["A", 5, None]


def test_tables_are_asked_and_joined_by_sql(call: Call, folder: Path) -> None:
    (folder / "names.tsv").write_text("city\tname\nA\tÅrhus\nB\tBern\n", encoding="utf-8")
    sql = "SELECT name, sum(price) AS total FROM sales_2026 JOIN names USING (city) GROUP BY name ORDER BY total DESC"
    outcome = call("query", sales(), sql=sql, tables=["f"], paths=["t/names.tsv"])
    assert outcome.data["columns"] == ["name", "total"]
    assert [[row[0], float(row[1])] for row in outcome.data["rows"]] == [["Århus", 6.0], ["Bern", 3.0]]
    (csv,) = outcome.media.values()
    assert csv.text().splitlines()[0] == "name,total"
    again = call("query", {"r": csv}, sql="SELECT max(total) AS m FROM result", tables=["r"])
    assert float(again.data["rows"][0][0]) == 6.0


def test_only_some_rows_are_shown_and_all_come_back(call: Call) -> None:
    outcome = call("query", sales(), sql="SELECT * FROM range(1000)", tables=["f"], limit=3)
    assert (len(outcome.data["rows"]), outcome.data["num_rows"]) == (3, 1000)
    (csv,) = outcome.media.values()
    assert len(csv.text().splitlines()) == 1001


def test_other_formats(call: Call, folder: Path) -> None:
    import pandas

    frame = pandas.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    parquet = io.BytesIO()
    frame.to_parquet(parquet)
    files = {
        "p": File.from_bytes(parquet.getvalue(), name="no-ending"),
        "j": File.from_bytes(b'{"a":1,"b":"x"}\n{"a":2,"b":"y"}\n', name="lines.jsonl"),
        "s": File.from_bytes(b"a;b\n1;x\n2;y\n", name="semi.csv"),
    }
    for name, file in files.items():
        assert call("describe", {name: file}, table=name).data["head"] == [[1, "x"], [2, "y"]]


@pytest.mark.parametrize("kind", ["line", "bar", "barh", "area", "scatter", "histogram", "box"])
def test_each_kind_of_plot_draws_something(call: Call, kind: str) -> None:
    x = {"histogram": "", "box": "", "scatter": "price"}.get(kind, "city")
    (image,) = call("plot", sales(), kind=kind, x=x, y=["price"], table="f", title="Prices").media.values()
    assert isinstance(image, Image)
    pixels = image.array()
    assert pixels.std() > 5
    assert pixels.shape[1] > 800


def test_a_program_prints_draws_and_writes(call: Call) -> None:
    code = """
import pandas, matplotlib
matplotlib.use("agg")
import matplotlib.pyplot as plt
frame = pandas.read_csv("sales_2026.csv")
print("rows", len(frame))
frame.plot(y="price"); plt.savefig("figure.png")
frame.to_csv("copy.csv", index=False)
frame.price.sum()
"""
    outcome = call("python", sales(), code=code, tables=["f"])
    assert outcome.data["output"] == "rows 3\n"
    assert "9" in outcome.data["value"]
    assert set(outcome.media) >= {"figure.png", "copy.csv"}
    assert outcome.media["copy.csv"].text().startswith("city,price,day")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "COPY sales_2026 TO 'x.csv'",
        "INSTALL httpfs",
        "SELECT * FROM read_csv('http://127.0.0.1/')",
        "SELECT nothing FROM sales_2026",
        "SELECT",
    ],
)
def test_sql_reaches_nothing_but_the_tables(call: Call, sql: str) -> None:
    with pytest.raises(ToolError) as caught:
        call("query", sales(), sql=sql, tables=["f"])
    assert "root:" not in str(caught.value)
    assert "sales_2026" in caught.value.hint


def test_a_program_has_no_network_and_sees_no_files_of_the_host(call: Call, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    for code in (
        "import socket; socket.create_connection(('127.0.0.1', 22), 2)",
        f"open({str(tmp_path / 'secret')!r}).read()",
        "1 / 0",
    ):
        with pytest.raises(ToolError) as caught:
            call("python", code=code)
        assert "Error" in str(caught.value)


def test_what_is_wrong_is_said(call: Call) -> None:
    with pytest.raises(ToolError, match="no column 'cost'"):
        call("plot", sales(), kind="bar", y=["cost"], table="f")
    with pytest.raises(ToolError, match="no table was given"):
        call("query", sql="SELECT 1")
    with pytest.raises(ToolError, match="leads out of the folder"):
        call("describe", path="t/../../etc/passwd.csv")
    with pytest.raises(ToolError, match="is no table"):
        call("describe", {"f": File.from_bytes(b"x", name="a.exe")}, table="f")


def test_names_are_fit_for_sql_and_different() -> None:
    files = [File.from_bytes(b"a\n1\n", name=name) for name in ("a b.csv", "A-B.csv", "../../x.csv", "1.csv", "é.csv")]
    found = gathered(files, [], None)
    assert found.names == ["a_b", "a_b_2", "x", "t_1", "table"]
    assert list(found.files) == ["a_b.csv", "a_b_2.csv", "x.csv", "t_1.csv", "table.csv"]
    with pytest.raises(ToolError, match="no folder"):
        gathered([], ["t/x.csv"], None)
    with pytest.raises(ToolError):
        Tables().add("x.csv", bytes(200 << 20))


def test_names_of_months_are_drawn_in_their_order_and_dates_as_dates() -> None:
    months = pandas.DataFrame({"month": ["Jan", "Feb", "Mar", "Apr"], "n": [1, 2, 3, 4]})
    assert list(along(months, "month", sort=True)["month"]) == ["Jan", "Feb", "Mar", "Apr"]
    days = pandas.DataFrame({"day": ["2026-01-10", None, "2026-01-09"], "n": [1, 2, 3]})
    drawn = along(days, "day", sort=True)
    assert drawn["day"].dtype.kind == "M"
    assert list(drawn["n"]) == [3, 1, 2]
