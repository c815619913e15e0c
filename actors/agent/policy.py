"""What may be called: rules over the call itself, its tool, arguments, node and annotations. Never over any text.

The first rule that applies decides. Where none does, a read-only tool may be called and a person is asked about any
other. The company's rules come before those of a run: a run's rules can narrow what the company allows, and a run may
allow only what no rule of the company speaks of.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from ...runtime.errors import ConfigError
from ...schemas.agent_parts import Effect, PolicyRule, Recovery
from ...schemas.tool import ToolAnnotations, ToolInfo

RISKS = {"read_only", "destructive", "idempotent", "open_world"}
# How long a person has for an answer, unless a rule says otherwise.
EXPIRES_S = 14 * 24 * 3600.0


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A policy file: `[[rules]]` as in `PolicyRule`. `unknown`: about a tool that no rule speaks of and that is not
    read-only. `interrupted`: see `Recovery`. `expires_s`: how long an approval waits before it counts as denied."""

    rules: tuple[PolicyRule, ...] = ()
    unknown: Effect = Effect.ASK
    interrupted: Recovery = Recovery.TELL
    expires_s: float = EXPIRES_S


@dataclass(frozen=True, slots=True)
class Ruling:
    """`rule`: the one that decided, None where no rule spoke of the call."""

    effect: Effect
    why: str
    expires_s: float
    rule: PolicyRule | None = None


def read_policy(path: Path) -> Policy:
    """Raises ConfigError."""
    try:
        policy = msgspec.convert(tomllib.loads(path.expanduser().read_text()), Policy, strict=True)
    except OSError as error:
        raise ConfigError(f"the policy {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"the policy {path} is not right: {error}", hint="docs/agents.md shows one") from error
    check_rules(policy.rules)
    return policy


def check_rules(rules: Sequence[PolicyRule]) -> None:
    """Raises ConfigError for an annotation that there is not."""
    for rule in rules:
        for risk in rule.risk:
            if risk.removeprefix("!") not in RISKS:
                raise ConfigError(f"a policy knows no risk '{risk}'", hint=f"there are: {', '.join(sorted(RISKS))}")


def decide(policy: Policy, own: Sequence[PolicyRule], tool: ToolInfo, arguments: str, node: str | None = "") -> Ruling:
    """What becomes of a call. `own`: the run's rules. `arguments` in their canonical form.

    `node` None: nobody knows where the tool is; then a rule about nodes applies unless it allows.
    """
    company = _first(policy.rules, tool, arguments, node)
    if company is not None and company.effect is not Effect.ALLOW:
        return _ruled(company, policy)
    narrowing = [rule for rule in own if rule.effect is not Effect.ALLOW] if company is not None else own
    rule = _first(narrowing, tool, arguments, node) or company
    if rule is not None:
        return _ruled(rule, policy)
    if tool.annotations.read_only:
        return Ruling(Effect.ALLOW, f"{tool.name} is read-only", policy.expires_s)
    return Ruling(policy.unknown, f"no rule speaks of {tool.name}, which is not read-only", policy.expires_s)


def is_never_allowed(policy: Policy, own: Sequence[PolicyRule], tool: ToolInfo) -> bool:
    """Whether `decide` denies every call of a tool, whatever its arguments and wherever it is."""
    narrowed = _whole([rule for rule in own if rule.effect is not Effect.ALLOW], tool)
    for rule in policy.rules:
        if not _speaks_of(rule, tool):
            continue
        # The run's rules count where the company's allow, and there they can only take away.
        if rule.effect is Effect.ASK or (rule.effect is Effect.ALLOW and narrowed is not Effect.DENY):
            return False
        if rule.arguments == "*" and rule.node == "*":
            return True
    # What is left are calls that no rule of the company's speaks of.
    mine = _whole(own, tool)
    if mine is not None:
        return mine is Effect.DENY
    return policy.unknown is Effect.DENY and not tool.annotations.read_only


def _whole(rules: Sequence[PolicyRule], tool: ToolInfo) -> Effect | None:
    """DENY where all calls of a tool are denied by these rules, None where none speaks of it; else ASK."""
    spoken = False
    for rule in rules:
        if _speaks_of(rule, tool):
            if rule.effect is not Effect.DENY:
                return Effect.ASK
            if rule.arguments == "*" and rule.node == "*":
                return Effect.DENY
            spoken = True
    return Effect.ASK if spoken else None


def _speaks_of(rule: PolicyRule, tool: ToolInfo) -> bool:
    return fnmatchcase(tool.name, rule.tool) and all(_has(tool.annotations, risk) for risk in rule.risk)


def _first(rules: Sequence[PolicyRule], tool: ToolInfo, arguments: str, node: str | None) -> PolicyRule | None:
    return next((rule for rule in rules if _applies(rule, tool, arguments, node)), None)


def _applies(rule: PolicyRule, tool: ToolInfo, arguments: str, node: str | None) -> bool:
    return (
        _speaks_of(rule, tool) and _on(rule, node) and (rule.arguments == "*" or fnmatchcase(arguments, rule.arguments))
    )


def _on(rule: PolicyRule, node: str | None) -> bool:
    if rule.node == "*":
        return True
    return rule.effect is not Effect.ALLOW if node is None else fnmatchcase(node, rule.node)


def _has(annotations: ToolAnnotations, risk: str) -> bool:
    return not getattr(annotations, risk[1:]) if risk.startswith("!") else getattr(annotations, risk)


def _ruled(rule: PolicyRule, policy: Policy) -> Ruling:
    why = rule.why or f"a rule says {rule.effect.value} for {rule.tool}"
    return Ruling(rule.effect, why, rule.expires_s or policy.expires_s, rule)
