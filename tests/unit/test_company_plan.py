"""The plan of a reload: it leads to what the file says, and touches nothing else."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from callboard.runtime.company_file import ActorWish, HereWish, ProcessWish
from callboard.runtime.company_plan import Now, plan
from callboard.schemas.company import Action

WISHES = st.builds(
    ActorWish,
    name=st.sampled_from("abcde"),
    kind=st.sampled_from(["counter", "clerk"]),
    config=st.dictionaries(st.sampled_from("xy"), st.integers(0, 1), max_size=2),
    where=st.sampled_from([HereWish(), ProcessWish(), ProcessWish(env={"A": "1"})]),
    restart=st.sampled_from(["permanent", "temporary"]),
)
FILES = st.lists(WISHES, unique_by=lambda wish: wish.name)


def carried_out(files: list[list[ActorWish]], ad_hoc: set[str]) -> tuple[dict[str, Now], list[set[str]]]:
    """What runs after each file in turn, and which actors each touched."""
    now: dict[str, Now] = {name: Now(None) for name in sorted(ad_hoc)}
    touched: list[set[str]] = []
    for wished in files:
        wishes = {wish.name: wish for wish in wished}
        touched.append(set())
        for step in plan(wished, now):
            if step.action is Action.STOP:
                del now[step.name]
            elif step.action is not Action.KEEP:
                now[step.name] = Now(wishes[step.name])
            if step.action not in (Action.KEEP, Action.ADJUST):
                touched[-1].add(step.name)
    return now, touched


@given(st.lists(FILES, min_size=1, max_size=4), st.sets(st.sampled_from("adz")))
def test_what_runs_in_the_end_is_what_the_last_file_lists_and_what_no_file_ever_did(
    files: list[list[ActorWish]], ad_hoc: set[str]
) -> None:
    now, _ = carried_out(files, ad_hoc)
    listed = {wish.name: wish for wish in files[-1]}
    ever = {wish.name for wished in files for wish in wished}
    assert {name: actor.wish for name, actor in now.items() if actor.wish is not None} == listed
    assert {name for name, actor in now.items() if actor.wish is None} == ad_hoc - ever


@given(FILES, FILES)
def test_only_what_differs_is_touched(before: list[ActorWish], after: list[ActorWish]) -> None:
    _, (_, touched) = carried_out([before, after], set())
    old, new = (
        {wish.name: msgspec.structs.replace(wish, restart="permanent") for wish in file} for file in (before, after)
    )
    assert touched == {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}


@given(FILES, FILES)
def test_what_goes_goes_before_anything_comes_and_the_last_started_first(
    before: list[ActorWish], after: list[ActorWish]
) -> None:
    steps = plan(after, {wish.name: Now(wish) for wish in before})
    names = [step.name for step in steps]
    gone = [wish.name for wish in reversed(before) if wish.name not in {wish.name for wish in after}]
    assert names == [*gone, *(wish.name for wish in after)]


def test_the_reason_names_what_changed() -> None:
    old = ActorWish(name="a", kind="clerk", config={"x": 1, "y": 2}, where=ProcessWish())
    new = ActorWish(name="a", kind="counter", config={"x": 3, "y": 2}, where=ProcessWish(env={"A": "1"}))
    (step,) = plan([new], {"a": Now(old)})
    assert step.why == 'kind: clerk -> counter, config.x: 1 -> 3, where.env: {} -> {"A":"1"}'
    (step,) = plan([msgspec.structs.replace(old, restart="temporary")], {"a": Now(old)})
    assert (step.action, step.why) == (Action.ADJUST, "restart: permanent -> temporary")


def test_what_did_its_work_is_not_started_again_until_it_is_changed() -> None:
    wish = ActorWish(name="a", kind="clerk", restart="temporary")
    (step,) = plan([wish], {"a": Now(wish, ended=True)})
    assert step.action is Action.KEEP
    (step,) = plan([msgspec.structs.replace(wish, config={"x": 1})], {"a": Now(wish, ended=True)})
    assert step.action is Action.START
    assert plan([], {"a": Now(wish, ended=True)}) == []
