"""A plan of ReWOO as models write it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.actors.agent.plan import BadPlan, after, check_plan, fill_in, read_plan, references
from callboard.schemas.agent_log import PlanStep


def inputs(text: str) -> list[tuple[str, str, str, tuple[str, ...]]]:
    return [(step.id, step.tool, step.input, step.needs) for step in read_plan(text)]


def test_the_form_that_is_asked_for() -> None:
    steps = read_plan("Plan: find it\n#E1 = search[who wrote Emma]\nPlan: and then\n#E2 = search[born #E1]\n")
    assert steps == (
        PlanStep("E1", "find it", "search", "who wrote Emma"),
        PlanStep("E2", "and then", "search", "born #E1", ("E1",)),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#E1=calc[1+1]", [("E1", "calc", "1+1", ())]),
        ("# E1  =  calc [ 1 + 1 ]", [("E1", "calc", "1 + 1", ())]),
        ("Plan: both on a line #E1 = calc[2] Plan: next #E2 = calc[#E1]",
         [("E1", "calc", "2", ()), ("E2", "calc", "#E1", ("E1",))]),
        ("#E1 = py[a[0] + b[1]]\n#E2 = py[x]", [("E1", "py", "a[0] + b[1]", ()), ("E2", "py", "x", ())]),
        ('#E1 = py[print("]")]\n', [("E1", "py", 'print("]")', ())]),
        ("#E1 = say[it's [fine]]\n", [("E1", "say", "it's [fine]", ())]),
        ("#E1 = say[an open ( bracket]\nPlan: b\n#E2 = say[x]",
         [("E1", "say", "an open ( bracket", ()), ("E2", "say", "x", ())]),
        ("#E1 = py[for i in x:\n    print(i)\n]\nPlan: b\n#E2 = py[#E1]",
         [("E1", "py", "for i in x:\n    print(i)", ()), ("E2", "py", "#E1", ("E1",))]),
        ('#E1 = web[{"url": "a/#E9", "n": [1, 2]}]', [("E1", "web", '{"url": "a/#E9", "n": [1, 2]}', ("E9",))]),
        ('#E1 = say["Plan: none"]\n', [("E1", "say", '"Plan: none"', ())]),
        ("#E1 = cut[no end", [("E1", "cut", "no end", ())]),
    ],
)  # fmt: skip
def test_what_models_write(text: str, expected: list[tuple[str, str, str, tuple[str, ...]]]) -> None:
    assert inputs(text) == expected


def test_one_reference_is_no_part_of_another() -> None:
    assert references("#E12 and #E1 and #E12") == ["E12", "E1"]
    assert fill_in("#E1, #E12, #E2", {"E1": "one", "E12": "twelve"}) == "one, twelve, #E2"


@given(st.dictionaries(st.integers(1, 200), st.text(alphabet="abc #[]", max_size=8), max_size=6))
def test_every_reference_is_filled_in_by_its_own_evidence(evidence: dict[int, str]) -> None:
    text = "|".join(f"#E{number}" for number in evidence)
    filled = fill_in(text, {f"E{number}": said for number, said in evidence.items()})
    assert filled == "|".join(evidence.values())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I do not know", "no step"),
        ("", "no step"),
        ("#E1 = calc[#E2]\n#E2 = calc[#E1]", "wait for each other"),
        ("#E1 = calc[#E1]", "wait for each other"),
        ("#E1 = calc[#E7]", "#E7"),
        ("#E1 = dig[1]", "no tool 'dig'"),
        ("#E1 = calc[1]\n#E1 = calc[2]", "twice"),
    ],
)
def test_what_cannot_be_carried_out(text: str, words: str) -> None:
    with pytest.raises(BadPlan, match=words):
        check_plan(read_plan(text), ["calc"])


def test_what_depends_on_a_lost_step() -> None:
    steps = read_plan("#E1 = c[1]\n#E2 = c[#E1]\n#E3 = c[#E2]\n#E4 = c[4]\n#E12 = c[#E4]")
    assert after(steps, ["E1"]) == {"E2", "E3"}


@given(st.text(alphabet="#E1234=ab[]{}()\"\n PlanPlan:'", max_size=200))
def test_any_text_is_a_plan_or_is_refused(text: str) -> None:
    try:
        steps = read_plan(text)
    except BadPlan:
        return
    assert all(step.id.startswith("E") and step.tool for step in steps)
