"""Curves in files and in the terminal show what the runs were."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console
from watched_runs import progress, run_events

from callboard.actors.train.curves import COLUMNS, MOST_POINTS, SIZE, curves, terminal_curves, write_curves
from callboard.actors.train.history import JobHistory
from callboard.runtime.axes import label, linear_axis, log_axis, tight_axis
from callboard.runtime.curves import smoothed
from callboard.runtime.errors import MissingExtra, UsageError
from callboard.runtime.plot import COLOURS, Chart, Series, drawing
from callboard.runtime.plot_terminal import BLANK, Canvas, terminal_chart

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def jobs() -> list[JobHistory]:
    return [JobHistory("first", run_events("first", 60)), JobHistory("second", run_events("second", 80, seed=1))]


def test_each_figure_of_each_run_is_a_line(jobs: list[JobHistory], tmp_path: Path) -> None:
    write_curves(jobs, tmp_path / "c.svg", smoothing=0.9, log=False)
    root = ElementTree.parse(tmp_path / "c.svg").getroot()
    texts = {text.text for text in root.iter(f"{SVG}text")}
    assert {"first", "second", "loss (dots: of held-out samples)", "learning rate", "gradient norm"} <= texts
    assert "share of the device's matrix rate" not in texts  # which no step has
    lines = list(root.iter(f"{SVG}polyline"))
    # Loss: as it is, smoothed, held out; gradient norm and tokens/s: two each; learning rate and memory: one.
    assert len(lines) == 2 * (3 + 2 + 2 + 1 + 1)
    assert {line.attrib["stroke"] for line in lines} == set(COLOURS[:2])
    assert len(list(root.iter(f"{SVG}circle"))) == 6 + 8


def test_points_are_the_runs_and_smoothed_ones_lie_over_them(jobs: list[JobHistory]) -> None:
    loss = curves(jobs[:1], smoothing=0.9, log=False)[0]
    assert [series.title for series in loss.series] == ["first", "first, smoothed", "first, held out"]
    assert [series.faint for series in loss.series] == [True, False, False]
    assert list(loss.series[0].points) == jobs[0].curve("loss")
    assert list(loss.series[1].points) == smoothed(jobs[0].curve("loss"), 0.9)
    assert list(loss.series[2].points) == jobs[0].curve("evaluation")
    plain = curves(jobs[:1], smoothing=0.0, log=False)[0]
    assert [series.title for series in plain.series] == ["first", "first, held out"]


def test_metrics_of_a_task_have_charts_of_their_own() -> None:
    job = JobHistory("a", [progress("a", step, 1.0, metrics=(("accuracy", step / 9),)) for step in range(1, 9)])
    chart = curves([job], smoothing=0.0, log=True)[-1]
    assert (chart.title, chart.log) == ("accuracy", False)
    assert list(chart.series[0].points) == job.curve("accuracy")


def test_a_spike_in_a_long_run_is_seen() -> None:
    job = JobHistory("a", [progress("a", step, 50.0 if step == 7001 else 1.0, 10_000) for step in range(1, 10_001)])
    (series,) = curves([job], smoothing=0.0, log=False)[0].series
    assert len(series.points) <= MOST_POINTS
    assert (7001, 50.0) in series.points


def test_a_chart_lies_in_its_cell_and_its_points_in_its_frame(jobs: list[JobHistory]) -> None:
    charts = curves(jobs, smoothing=0.5, log=True)
    drawn = drawing(charts, "t", columns=COLUMNS, size=SIZE)
    assert (drawn.width, drawn.frames[0].width) == (COLUMNS * SIZE[0], drawn.frames[1].width)
    assert drawn.frames[1].left == drawn.frames[0].left + SIZE[0]
    assert drawn.frames[COLUMNS].top == drawn.frames[0].top + SIZE[1]
    for chart, frame in zip(charts, drawn.frames, strict=True):
        for series in chart.series:
            for point in chart.shown(series):
                x, y = frame.place(*point)
                assert frame.left - 1e-6 <= x <= frame.left + frame.width + 1e-6
                assert frame.top - 1e-6 <= y <= frame.top + frame.height + 1e-6


def test_a_page_has_the_values_and_loads_nothing(tmp_path: Path) -> None:
    job = JobHistory("</script><b>&", run_events("x", 30))
    write_curves([job], tmp_path / "c.html", smoothing=0.0, log=False)
    text = (tmp_path / "c.html").read_text()
    assert text.count("</script>") == 2
    assert "<b>" not in text
    assert not re.findall(r"""(?:src|href)\s*=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)""", text)
    charts = _points(text)
    assert charts[0]["series"][0]["title"] == job.job
    assert [tuple(point) for point in charts[0]["series"][0]["points"]] == job.curve("loss")
    svg = text[text.index("<svg") : text.index("</svg>") + 6]
    assert ElementTree.fromstring(svg).attrib["width"] == str(COLUMNS * SIZE[0])


def _points(page: str) -> list[dict]:  # pyright: ignore[reportMissingTypeArgument]
    found = re.search(r'<script id="points" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


# Of a browser's objects what the page's script asks for.
BROWSER = """
class Element {
  constructor(name) { Object.assign(this, {name, children: [], style: {}, attributes: {}, heard: {}}); }
  setAttribute(name, value) { this.attributes[name] = value; }
  appendChild(child) { this.children.push(child); }
  replaceChildren() { this.children = []; }
  addEventListener(name, hear) { this.heard[name] = hear; }
  getBoundingClientRect() { return {left: 10, top: 20, width: 460, height: 400}; }
}
const image = new Element("svg"), box = new Element("div"), points = new Element("script");
image.viewBox = {baseVal: {width: 920}};
box.offsetWidth = 100;
const fs = require("fs");
points.textContent = fs.readFileSync(process.argv[2], "utf8");
globalThis.document = {
  getElementById: id => ({points, values: box})[id],
  querySelector: () => image,
  createElement: name => new Element(name),
  createElementNS: (_, name) => new Element(name),
};
eval(fs.readFileSync(process.argv[3], "utf8"));
const told = [];
for (const [x, y] of JSON.parse(process.argv[4])) {
  image.heard.mousemove({clientX: x, clientY: y});
  told.push([box.style.display, box.children.map(child => child.textContent)]);
}
image.heard.mouseleave();
console.log(JSON.stringify([told, box.style.display]));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no JavaScript here")
def test_the_pointer_shows_the_values_of_the_nearest_step(jobs: list[JobHistory], tmp_path: Path) -> None:
    write_curves(jobs, tmp_path / "c.html", smoothing=0.0, log=False)
    text = (tmp_path / "c.html").read_text()
    chart = _points(text)[0]
    (tmp_path / "points.json").write_text(json.dumps(_points(text)))
    (tmp_path / "script.js").write_text(re.findall(r"<script>(.*?)</script>", text, re.DOTALL)[0])
    (tmp_path / "browser.js").write_text(BROWSER)
    step = 42
    x = chart["left"] + (step + 0.3 - chart["low"]) / (chart["high"] - chart["low"]) * chart["width"]
    places = [[10 + x / 2, 20 + (chart["top"] + 5) / 2], [10, 20]]  # the page shows the drawing at half its size
    command = ["node", "browser.js", "points.json", "script.js", json.dumps(places)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=30)
    (over, outside), left = json.loads(ran.stdout)
    assert over[0] == "block"
    assert over[1][0] == "step 42"
    assert over[1][1] == f"first: {dict(jobs[0].curve('loss'))[42]:.6g}"
    assert over[1][2] == f"first, held out: {dict(jobs[0].curve('evaluation'))[40]:.6g} (step 40)"
    assert (outside[0], left) == ("none", "none")


def test_pixels_have_the_runs_colours(jobs: list[JobHistory], tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    write_curves(jobs, tmp_path / "c.png", smoothing=0.0, log=False)
    with image.open(tmp_path / "c.png") as opened:
        shown = opened.convert("RGB")
    assert shown.size == (2 * COLUMNS * SIZE[0], 2 * (34 + 3 * SIZE[1]))
    found = {colour for _, colour in shown.getcolors(1 << 24)}
    assert {(0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00), (255, 255, 255)} <= found


def test_without_pillow_it_is_said_what_to_install(
    jobs: list[JobHistory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra, match="train"):
        write_curves(jobs, tmp_path / "c.png", smoothing=0.0, log=False)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_drawn_is_said(jobs: list[JobHistory], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"c\.pdf"):
        write_curves(jobs, tmp_path / "c.pdf", smoothing=0.0, log=False)
    with pytest.raises(UsageError, match="smoothing"):
        write_curves(jobs, tmp_path / "c.svg", smoothing=1.0, log=False)
    with pytest.raises(UsageError, match="no step was taken yet by new"):
        write_curves([JobHistory("new")], tmp_path / "c.svg", smoothing=0.0, log=False)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_whole_or_stays(jobs: list[JobHistory], tmp_path: Path) -> None:
    out = tmp_path / "c.svg"
    write_curves(jobs[:1], out, smoothing=0.0, log=False)
    before = out.read_text()
    with pytest.raises(UsageError):
        write_curves([], out, smoothing=0.0, log=False)
    assert out.read_text() == before
    write_curves(jobs, out, smoothing=0.0, log=False)
    assert out.read_text() != before
    assert [path.name for path in tmp_path.iterdir()] == ["c.svg"]


@pytest.mark.parametrize(("width", "height"), [(120, 40), (80, 24), (60, 12), (30, 10), (20, 6)])
def test_the_terminal_shows_what_there_is_room_for(jobs: list[JobHistory], width: int, height: int) -> None:
    console = Console(width=width, file=StringIO())
    shown = terminal_curves(jobs, width, height)
    lines = shown.plain.split("\n")
    assert len(lines) <= height
    assert all(len(line) <= width for line in lines)
    assert any(BLANK < ord(letter) <= BLANK + 0xFF for letter in shown.plain)
    assert ("learning rate" in shown.plain) == (height >= 17)
    console.print(shown)
    assert isinstance(console.file, StringIO)
    assert len(console.file.getvalue().splitlines()) == len(lines)  # none is wrapped


def test_a_run_that_goes_on_is_drawn_anew(jobs: list[JobHistory]) -> None:
    events = run_events("a", 50)
    job = JobHistory("a", events[:20])
    before = terminal_curves([job], 80, 20).plain
    for event in events[20:]:
        job.add(event)
    after = terminal_curves([job], 80, 20).plain
    assert before != after
    assert after.splitlines()[-1].rstrip().endswith("50")


def test_a_line_goes_through_its_points() -> None:
    canvas = Canvas(10, 5)
    canvas.line([(0.0, 0.0), (1.0, 1.0)], "red")
    rows = [row.plain for row in canvas.rows()]
    assert [len(row) for row in rows] == [10] * 5
    # A diagonal: each row has two characters of it, further to the left the lower it is.
    assert [[at for at, letter in enumerate(row) if ord(letter) != BLANK] for row in rows] == [
        [8, 9], [6, 7], [4, 5], [2, 3], [0, 1]
    ]  # fmt: skip
    assert rows[4][0] in "⡠⡰⡐⣀⡀⢀"
    assert all(span.style == "red" for row in canvas.rows() for span in row.spans)


def test_a_falling_line_falls_in_the_terminal() -> None:
    series = Series("s", tuple((x, 10.0 - x) for x in range(11)), dots=False)
    chart = Chart("t", "x", (series,), from_zero=False)
    lines = [line.plain for line in terminal_chart(chart, 40, 12)]
    first = [next((at for at, letter in enumerate(line) if ord(letter) > BLANK), None) for line in lines[1:-1]]
    assert None not in first
    assert first == sorted(first, key=lambda at: at or 0)
    assert lines[-1].strip().startswith("0")
    assert lines[-1].strip().endswith("10")
    with pytest.raises(ValueError, match="cannot be read"):
        terminal_chart(chart, 10, 12)


VALUES = st.lists(st.floats(-1e9, 1e9).filter(lambda x: x == 0 or abs(x) > 1e-9), min_size=1, max_size=20)


@given(VALUES)
@example([1e9, 999_999_999.999_999_9])  # the same, but for rounding
@example([-1e-8, -1e-8 * (1 + 1e-15)])
def test_an_axis_reaches_over_its_values_with_few_ticks(values: list[float]) -> None:
    for axis in (linear_axis(values, from_zero=False), tight_axis(values)):
        assert axis.low < axis.high
        slack = 1e-9 * max(map(abs, values))
        assert all(axis.low - slack <= value <= axis.high + slack for value in values)
        assert len(axis.ticks) <= 8
        assert list(axis.ticks) == sorted(axis.ticks)
        assert all(axis.low - slack <= tick <= axis.high + slack for tick in axis.ticks)


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=20))
def test_a_logarithmic_axis_reaches_over_its_values_from_one_round_number_to_another(values: list[float]) -> None:
    axis = log_axis(values)
    assert all(axis.low * (1 - 1e-6) <= value <= axis.high * (1 + 1e-6) for value in values)
    assert 2 <= len(axis.ticks) <= 11
    assert all(f"{tick:.0e}"[0] in "125" for tick in axis.ticks)
    assert axis.share(axis.low) == pytest.approx(0)
    assert axis.share((axis.low * axis.high) ** 0.5) == pytest.approx(0.5)


def test_numbers_beside_an_axis_are_short() -> None:
    assert [label(x) for x in (0, 0.00002, 0.30000000000000004, 999, 12_000, 1_500_000, 2e9, -3e6)] == [
        *("0", "2e-05", "0.3", "999", "12,000", "1.5M", "2G", "-3M")
    ]
