"""The planner and the policy on the page about agents are what the page says that they are."""

from __future__ import annotations

import re
from pathlib import Path

from callboard.actors.agent.log import RunLog
from callboard.actors.agent.planner import Finish, ModelCall, Planner
from callboard.actors.agent.policy import read_policy
from callboard.schemas.agent_log import ModelAnswered, ModelCalled, RunStarted

PAGE = (Path(__file__).parents[3] / "docs" / "agents.md").read_text()


def test_a_planner_of_ones_own_in_under_40_lines() -> None:
    (source,) = [body for body in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "Planner):" in body]
    assert len(source.splitlines()) < 40
    space: dict[str, object] = {}
    exec(source, space)
    kind = space["BestOf"]
    assert isinstance(kind, type)
    assert issubclass(kind, Planner)
    log = RunLog("r", [RunStarted(planner="best-of", task="a poem")])
    for number in range(1, 5):
        decision = kind().decide(log)
        assert isinstance(decision, ModelCall)
        assert decision == kind().decide(RunLog("r", log.events)), "the same log, the same decision"
        log.apply(ModelCalled(step=f"m{number}"))
        log.apply(ModelAnswered(step=f"m{number}", text=f"text {number}"))
    assert kind().decide(log) == Finish("text 4")


def test_the_policy_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "policy.toml").write_text(text)
    assert len(read_policy(tmp_path / "policy.toml").rules) == 3
