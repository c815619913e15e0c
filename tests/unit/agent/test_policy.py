"""Policies: which rule decides, and that none decides by anything but the call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.actors.agent.calls import granted, pattern_of
from callboard.actors.agent.log import Grant, canonical
from callboard.actors.agent.policy import Policy, decide, is_never_allowed, read_policy
from callboard.runtime.errors import ConfigError
from callboard.schemas.agent_parts import Effect, PolicyRule, Verdict
from callboard.schemas.tool import ToolAnnotations, ToolInfo

READS = ToolInfo("look", "", "{}", "{}", ToolAnnotations(read_only=True, destructive=False))
WRITES = ToolInfo("files.write", "", "{}", "{}")


def effect(
    rules: Sequence[PolicyRule],
    own: Sequence[PolicyRule] = (),
    tool: ToolInfo = WRITES,
    arguments: str = "{}",
    node: str | None = "",
) -> Effect:
    return decide(Policy(tuple(rules)), own, tool, canonical(arguments), node).effect


def test_without_rules_reading_is_allowed_and_all_else_is_asked_about() -> None:
    assert effect([], tool=READS) is Effect.ALLOW
    assert effect([]) is Effect.ASK


def test_the_first_rule_that_applies_decides() -> None:
    deny, allow = PolicyRule(effect=Effect.DENY, tool="files.*"), PolicyRule(effect=Effect.ALLOW)
    assert effect([deny, allow]) is Effect.DENY
    assert effect([allow, deny]) is Effect.ALLOW


RULES = st.lists(
    st.builds(
        PolicyRule,
        effect=st.sampled_from(Effect),
        tool=st.sampled_from(["*", "files.*", "look", "other"]),
        arguments=st.sampled_from(["*", '{"a":1}']),
        node=st.sampled_from(["*", "near-*"]),
        risk=st.sampled_from([(), ("read_only",), ("destructive",)]),
    ),
    max_size=3,
)


@given(RULES, RULES, st.sampled_from(Effect), st.sampled_from([READS, WRITES]))
def test_a_tool_is_hidden_only_where_every_call_of_it_is_denied(
    rules: list[PolicyRule], own: list[PolicyRule], unknown: Effect, tool: ToolInfo
) -> None:
    policy = Policy(tuple(rules), unknown)
    calls = [(arguments, node) for arguments in ('{"a":1}', '{"b":2}') for node in ("near-1", "far-1", None)]
    effects = {decide(policy, own, tool, arguments, node).effect for arguments, node in calls}
    if is_never_allowed(policy, own, tool):
        assert effects == {Effect.DENY}
    elif not any(rule.arguments != "*" or rule.node != "*" for rule in (*rules, *own)):
        assert effects != {Effect.DENY}


def test_arguments_are_compared_whatever_their_order_and_spaces() -> None:
    rule = PolicyRule(effect=Effect.DENY, arguments='{"a":1,"b":*')
    assert effect([rule], arguments='{ "b" : "x", "a" : 1 }') is Effect.DENY
    assert effect([rule], arguments='{"a": 2, "b": 1}') is Effect.ASK


def test_risk_is_the_tools_own_annotation() -> None:
    rule = PolicyRule(effect=Effect.DENY, risk=("destructive", "!idempotent"))
    assert effect([rule]) is Effect.DENY
    assert effect([rule], tool=READS) is Effect.ALLOW


def test_a_node_that_nobody_knows_counts_against_the_call() -> None:
    deny = PolicyRule(effect=Effect.DENY, node="far-*")
    allow = PolicyRule(effect=Effect.ALLOW, node="near-*")
    assert effect([deny], node="far-1") is Effect.DENY
    assert effect([deny], node="near-1") is Effect.ASK
    assert effect([deny], node=None) is Effect.DENY
    assert effect([allow], node=None) is Effect.ASK


def test_a_runs_rules_narrow_and_never_widen() -> None:
    allow, deny, ask = (PolicyRule(effect=one) for one in (Effect.ALLOW, Effect.DENY, Effect.ASK))
    assert effect([deny], [allow]) is Effect.DENY
    assert effect([ask], [allow]) is Effect.ASK
    assert effect([allow], [deny]) is Effect.DENY
    assert effect([allow], [allow, deny]) is Effect.DENY, "an allowance of the run's own hides no refusal of it"
    assert effect([], [allow]) is Effect.ALLOW


def test_of_two_answers_no_counts() -> None:
    grants = [Grant("t", "*", Verdict.APPROVE), Grant("t", '{"a":1}', Verdict.DENY)]
    assert granted(grants, "t", '{"a":2}') is Verdict.APPROVE
    assert granted(grants, "t", '{"a":1}') is Verdict.DENY
    assert granted(grants, "u", "{}") is None


def test_an_answer_without_a_pattern_is_for_these_very_arguments() -> None:
    pattern = pattern_of("", '{"q": ["*", "?"]}')
    grants = [Grant("t", pattern, Verdict.APPROVE)]
    assert granted(grants, "t", canonical('{"q":["*","?"]}')) is Verdict.APPROVE
    assert granted(grants, "t", canonical('{"q":["x","?"]}')) is None


@pytest.mark.parametrize(
    "text",
    ["rules = 3", '[[rules]]\neffect = "maybe"', '[[rules]]\neffect = "deny"\nrisk = ["fun"]', "x = ", "typo = 1"],
)
def test_a_policy_that_is_not_right_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(ConfigError):
        read_policy(tmp_path / "p.toml")


def test_a_policy_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_policy(tmp_path / "none.toml")
