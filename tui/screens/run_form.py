"""Starting an agent: a form over the page."""

from __future__ import annotations

import json
from typing import Any

from ...runtime.errors import ConfigError
from ...runtime.registry import registry
from ...schemas.agent import AgentRun
from ...schemas.agent_parts import Budget, Effect, PolicyRule
from ..widgets.fill_form import FormOver

PLANNERS = "callboard.planners"
OWN = "another"


def schema(planners: list[str]) -> dict[str, Any]:
    return {
        "required": ["planner", "task"],
        "properties": {
            "planner": {"enum": [*planners, OWN], "default": "react" if "react" in planners else planners[0]},
            "task": {"type": "string", "format": "textarea", "description": "what is to be done"},
            "tools": {"type": "string", "description": "by commas; files.*: a set; ask_human: people"},
            "model": {"type": "string", "description": "an actor or a model; empty: the company's engine"},
            "allow": {"type": "string", "description": "tools to call without asking, by commas; globs"},
            "goals": {"type": "array", "items": {"type": "string"}, "description": "for autogpt"},
            "steps": {"type": "integer", "minimum": 1, "default": 100, "description": "at most"},
            "tokens": {"type": "integer", "minimum": 0, "default": 0, "description": "at most; 0: any number"},
            "max_tokens": {"type": "integer", "minimum": 1, "default": 512, "description": "of one answer"},
            "temperature": {"type": "number", "minimum": 0, "default": 0.0},
            "memory": {"type": "boolean", "default": False, "description": "keep a long-term memory"},
            "session": {"type": "string", "description": "what runs share: tools' state, memory, grants"},
            "own planner": {"type": "string", "description": "its name, where the planner is another"},
            "options": {"type": "object", "description": "of the planner, as JSON"},
        },
    }


class RunForm(FormOver[tuple[AgentRun, str]]):
    """Gives the request without its model's address, and the model or actor that was named."""

    def __init__(self) -> None:
        super().__init__("A new run of an agent", schema(sorted(registry().entries(PLANNERS))))

    def result(self, values: dict[str, Any]) -> tuple[AgentRun, str]:
        return as_run(values), values.get("model", "").strip()


def as_run(values: dict[str, Any]) -> AgentRun:
    """The request that was filled in. Raises ConfigError."""
    planner = values["planner"]
    if planner == OWN:
        planner = values.get("own planner", "").strip()
        if not planner:
            raise ConfigError("own planner: it must not be empty", hint="name it as its package does")
    options = values.get("options", {}) | ({"goals": values["goals"]} if "goals" in values else {})
    allowed = _listed(values.get("allow", ""))
    return AgentRun(
        planner=planner,
        task=values["task"],
        tools=tuple(_listed(values.get("tools", ""))),
        budget=Budget(values.get("steps", 100), values.get("tokens", 0)),
        options=json.dumps(options),
        rules=tuple(PolicyRule(effect=Effect.ALLOW, tool=tool, why="allowed when it was started") for tool in allowed),
        session=values.get("session", ""),
        memory="memory" if values.get("memory") else "",
        temperature=float(values.get("temperature", 0.0)),
        max_tokens=values.get("max_tokens", 512),
        detach=True,
    )


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
