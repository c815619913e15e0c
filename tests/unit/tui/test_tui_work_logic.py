"""What the pages of training, agents, approvals and tools are made of, without a screen."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.runtime.curves import StepCurves, smoothed, thinned
from callboard.runtime.errors import ConfigError
from callboard.schemas.agent_log import (
    ApprovalAsked,
    ApprovalGiven,
    ModelAnswered,
    ModelCalled,
    Planned,
    PlanStep,
    RunEnded,
    RunStarted,
    StepReady,
    Thought,
    ToolAnswered,
    ToolCalled,
)
from callboard.schemas.agent_parts import ApprovalKind, Effect, Outcome, RunStatus, Verdict
from callboard.schemas.serve import Usage
from callboard.schemas.tool import MediaKind, ToolAnnotations, ToolInfo
from callboard.schemas.train import Method, TrainProgress, TrainSampled
from callboard.tui.file_changes import FileChange, changes_in, difference, reader_of, text_in
from callboard.tui.half_blocks import NotDrawn, draw_picture
from callboard.tui.notice import sequence
from callboard.tui.plan_drawing import PlanNode, draw_plan
from callboard.tui.run_story import RunStory
from callboard.tui.screens.run_form import OWN, as_run
from callboard.tui.screens.train_form import as_config
from callboard.tui.tool_call import Received, save
from callboard.tui.train_view import TrainView, chart, duration, moved, zoomed
from callboard.tui.widgets.call_text import arguments_text, readable

# Plans


def drawn(*nodes: PlanNode) -> list[str]:
    return [line.plain.rstrip() for line in draw_plan(nodes)]


def test_a_plan_is_drawn_from_left_to_right_with_its_lines() -> None:
    assert drawn(
        PlanNode("a", "A"), PlanNode("b", "B"), PlanNode("c", "C", ("a", "b")), PlanNode("d", "D", ("c",))
    ) == ["A ─┬ C ── D", "B ─╯"]


def test_a_line_over_several_layers_goes_round_what_lies_between() -> None:
    lines = drawn(PlanNode("a", "A"), PlanNode("b", "B", ("a",)), PlanNode("c", "C", ("a", "b")))
    assert lines[0].startswith("A ─┬ B")
    assert lines[0].endswith("C")
    assert "╰" in lines[1]


def test_steps_in_a_circle_and_unknown_needs_are_drawn_all_the_same() -> None:
    lines = drawn(PlanNode("a", "A", ("b",)), PlanNode("b", "B", ("a", "nowhere")))
    assert sorted("".join(lines).replace("─", "").split()) == ["A", "B"]


@given(st.integers(0, 10_000), st.integers(1, 14))
def test_every_step_of_any_plan_is_drawn_once_on_lines_of_one_width(seed: int, count: int) -> None:
    rng = random.Random(seed)
    nodes = [
        PlanNode(f"E{i}", f"<{i}>", tuple(f"E{j}" for j in rng.sample(range(i), min(i, rng.randint(0, 3)))))
        for i in range(count)
    ]
    lines = draw_plan(nodes)
    text = "\n".join(line.plain for line in lines)
    assert all(text.count(node.label) == 1 for node in nodes)
    assert len({line.cell_len for line in lines}) == 1
    place = {
        node.id: next(line.plain.index(node.label) for line in lines if node.label in line.plain) for node in nodes
    }
    assert all(place[need] < place[node.id] for node in nodes for need in node.needs)


# Runs

EVENTS = (
    RunStarted(at=1.0, planner="rewoo", task="compare"),
    ModelCalled(at=2.0, step="m1", purpose="plan"),
    ModelAnswered(at=3.5, step="m1", text="the plan", usage=Usage(10, 5)),
    Planned(at=3.5, steps=(PlanStep("E1", "look", "search", "x"), PlanStep("E2", "write", "put", "#E1", ("E1",)))),
    StepReady(at=3.5, step="E1"),
    ToolCalled(at=4.0, step="E1", tool="search", arguments='{"q": "x"}'),
    ToolAnswered(at=4.5, step="E1", outcome=Outcome.OK, text="found"),
    ApprovalAsked(at=5.0, id="r:1", step="E2", kind=ApprovalKind.TOOL, tool="put", arguments="{}", why="not read-only"),
    ApprovalGiven(at=6.0, id="r:1", step="E2", verdict=Verdict.DENY, by="ann", text="no"),
    ToolAnswered(at=6.0, step="E2", outcome=Outcome.DENIED, text="denied"),
    Thought(at=6.5, text="so be it"),
    RunEnded(at=7.0, status=RunStatus.FINISHED, answer="done"),
)


def test_a_run_is_told_step_by_step_with_times_and_tokens() -> None:
    story = RunStory("r", EVENTS)
    assert [moment.kind for moment in story.moments] == ["note", "model", "plan", "tool", "tool", "thought", "end"]
    model, _, search, put = story.moments[1:5]
    assert (model.seconds(), model.prompt_tokens, model.completion_tokens) == (1.5, 10, 5)
    assert (search.status, search.details["result"], search.number) == ("ok", "found", 7)
    assert (put.status, put.details["answered"], put.details["why"]) == (
        "denied",
        "deny by ann\nno",
        "not read-only",
    )
    assert [step.status for step in story.plan] == ["ok", "denied"]


def test_a_run_can_be_looked_at_as_it_was_after_any_event() -> None:
    story = RunStory("r", EVENTS)
    assert [step.status for step in story.until(5).plan] == ["ready", "waiting"]
    assert [step.status for step in story.until(6).plan] == ["open", "waiting"]
    assert [step.status for step in story.until(8).plan] == ["ok", "asked"]
    assert story.until(6).moments[-1].seconds(now=4.25) == 0.25
    for number in range(1, len(EVENTS) + 1):
        assert story.until(number).moments == RunStory("r", EVENTS[:number]).moments


# What a call would change


def test_edits_are_found_under_the_names_that_tools_give_them() -> None:
    assert changes_in('{"path": "a", "content": "x"}') == [FileChange("a", None, "x")]
    assert changes_in('{"file_path": "a", "old_string": "x", "new_string": "y"}') == [FileChange("a", "x", "y")]
    edits = '{"path": "a", "edits": [{"oldText": "x", "newText": "y"}, {"oldText": "1", "newText": "2"}]}'
    assert changes_in(edits) == [FileChange("a", "x", "y"), FileChange("a", "1", "2")]
    assert changes_in('{"path": "a", "patch": "-x\\n+y"}') == [FileChange("a", patch="-x\n+y")]
    for other in ('{"path": "a"}', '{"content": "x"}', "[]", "no json", '{"path": 3, "content": "x"}'):
        assert changes_in(other) == []


def test_a_difference_is_shown_as_diff_does_and_says_what_it_does_not_know() -> None:
    change = FileChange("a", None, "one\ntwo\n")
    assert difference(change, "one\n").plain.splitlines()[-2:] == [" one", "+two"]
    assert "not known" in difference(change, None).plain
    assert "nothing changes" in difference(change, "one\ntwo\n").plain
    assert "\x1b" not in difference(FileChange("a", "x", "\x1b[31mred"), None).plain


def test_the_reader_of_a_set_only_reads_and_takes_a_path_alone() -> None:
    def info(name: str, schema: object, *, read_only: bool = True) -> ToolInfo:
        return ToolInfo(name, "", json.dumps(schema), "{}", ToolAnnotations(read_only=read_only))

    path = {"properties": {"path": {"type": "string"}}, "required": ["path"]}
    tools = [
        info("notes.read_and_burn", path, read_only=False),
        info("other.read", path),
        info("notes.read_lines", {"properties": {"path": {}, "first": {}}, "required": ["path", "first"]}),
        info("notes.read", path),
    ]
    assert reader_of("notes.write", tools) == (tools[3], "path")
    assert reader_of("nowhere.write", tools) is None
    assert [text_in(value, "else") for value in ('"a"', '{"text": "b"}', "3", "no json")] == ["a", "b", "else", "else"]


# Training


def progress(step: int, loss: float | None = 1.0) -> TrainProgress:
    return TrainProgress(
        job="j", step=step, num_steps=10, loss=loss, lr=0.1, grad_norm=1.0, tokens=1, loss_tokens=1,
        tokens_per_s=5.0, memory_bytes=0, eta_s=1.0,
    )  # fmt: skip


def test_steps_that_are_taken_again_take_the_place_of_what_was() -> None:
    view = TrainView("j", [progress(1), progress(2), progress(3), TrainSampled("j", 3, "p", "old"), progress(2, 0.5)])
    assert view.curves.curve("loss") == [(1, 1.0), (2, 0.5)]
    assert view.samples == []
    view.add(progress(3, None))
    assert view.curves.latest("loss") == 0.5


def test_a_chart_holds_the_runs_within_the_window() -> None:
    runs = [TrainView("a", [progress(n) for n in range(1, 9)]), TrainView("b", [progress(n) for n in range(1, 4)])]
    found = chart(runs, "loss", window=(2, 6))
    assert [(one.title, [x for x, _ in one.points], one.colour) for one in found.series] == [
        ("a", [2, 3, 4, 5, 6], 0),
        ("b", [2, 3], 1),
    ]
    assert chart(runs, "loss", log=True).log
    assert not chart(runs, "lr", log=True).log


def test_zooming_keeps_its_place_and_stays_within_the_run() -> None:
    assert zoomed(None, 100, 0.5) == (50, 100)
    assert zoomed((50, 100), 100, 2.0) is None
    assert zoomed(None, 100, 0.5, around=0.0) == (0, 50)
    assert zoomed((10, 12), 100, 0.5) == (10, 12)
    assert moved((50, 100), 100, -0.25) == (37.5, 87.5)
    assert moved((50, 100), 100, 0.25) == (50, 100)
    assert moved(None, 100, 0.25) is None


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60), st.floats(0, 0.99))
def test_smoothing_stays_between_the_extremes_and_thinning_keeps_them(values: list[float], weight: float) -> None:
    curves = StepCurves()
    for step, value in enumerate(values, 1):
        curves.step(step)
        curves.note("x", step, value)
    curve = curves.curve("x")
    low, high = min(values), max(values)
    assert all(low - 1e-6 <= value <= high + 1e-6 for _, value in smoothed(curve, weight))
    kept = [value for _, value in thinned(curve, 10)]
    assert (min(kept), max(kept)) == (low, high)


@pytest.mark.parametrize(
    ("seconds", "words"), [(3, "3 s"), (720, "12 min"), (7500, "2 h 05 min"), (273600, "3 d 4 h"), (-1, "0 s")]
)
def test_durations_are_written_as_people_say_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


# Forms


def test_settings_of_a_form_become_a_configuration_and_wrong_names_are_refused() -> None:
    values = {"model": "m", "data": "d", "out": "o", "method": "full", "optimizer": {"lr": 1e-3}, "job": "mine"}
    config, job = as_config({**values, "more": "seed = 3\n[optimizer]\nwarmup = 2"})
    assert (job, config.method, config.seed) == ("mine", Method.FULL, 3)
    assert (config.optimizer.lr, config.optimizer.warmup) == (1e-3, 2)
    for more, hint in (("sead = 3", "seed"), ("[optimizer]\nlrr = 2", "optimizer.lr")):
        with pytest.raises(ConfigError) as wrong:
            as_config({**values, "more": more})
        assert hint in wrong.value.hint
    for more in ("seed = ", "seed = 'x'"):
        with pytest.raises(ConfigError):
            as_config({**values, "more": more})


def test_a_form_becomes_a_run() -> None:
    run = as_run({"planner": "autogpt", "task": "t", "goals": ["g"], "tools": "a, b.*", "allow": "a", "steps": 7})
    assert (run.tools, run.budget.steps, json.loads(run.options)) == (("a", "b.*"), 7, {"goals": ["g"]})
    assert [(rule.effect, rule.tool) for rule in run.rules] == [(Effect.ALLOW, "a")]
    assert run.detach
    assert as_run({"planner": OWN, "own planner": "x:Y", "task": "t"}).planner == "x:Y"
    with pytest.raises(ConfigError):
        as_run({"planner": OWN, "task": "t"})


# What is shown


def test_what_comes_from_others_controls_no_terminal() -> None:
    for shown in (readable("\x1b[2Jx"), arguments_text('{"a": "\\u001b[2J", "code": "\\u001b[31m"}')):
        assert "\x1b" not in shown.plain
    said = sequence("a\x07b\x1b]0;title\x07")
    assert said.startswith("\x1b]9;")
    assert said.count("\x07") == said.count("\x1b") == 1
    assert said.endswith("\x07")
    assert sequence("a", in_tmux=True) == "\x1bPtmux;\x1b\x1b]9;a\x07\x1b\\"


def test_a_picture_is_drawn_in_its_proportions_and_what_is_none_is_said() -> None:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (40, 20), (255, 0, 0)).save(file, "PNG")
    lines = draw_picture(file.getvalue(), 20, 20).plain.split("\n")
    assert lines == ["▀" * 20] * 5
    with pytest.raises(NotDrawn):
        draw_picture(b"no picture", 20, 20)


def test_files_of_a_tool_are_written_into_the_folder_and_over_nothing(tmp_path: Path) -> None:
    one = Received("../../etc/x y", MediaKind.FILE, "text/plain", b"one")
    assert save(one, tmp_path / "out") == tmp_path / "out" / "x_y.txt"
    assert save(one, tmp_path / "out") == tmp_path / "out" / "x_y-1.txt"
    assert (tmp_path / "out" / "x_y.txt").read_bytes() == b"one"
