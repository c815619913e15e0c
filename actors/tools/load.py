"""From what a set of tools is named by to its tools: an entry point, a module, an attribute of one.

An attribute is a tool, a class of one, a list of these, or a function that makes them from the set's options:
`def tools(options: Options) -> list[Tool]`, where `Options` is a msgspec Struct.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

import msgspec

from ...runtime.errors import ConfigError
from ...runtime.extras import missing_extra
from ...runtime.matching import did_you_mean
from ...runtime.registry import TOOLS, registry
from .errors import NoSuchTool, ToolDefinition
from .schema_of import hints_of
from .tool import FunctionTool, Tool


def load_tools(source: str, options: str = "", allow: Sequence[str] = ()) -> tuple[list[Tool], bool]:
    """The tools of `source`, and whether it is one tool by itself rather than a set.

    `source` is the name of an entry point of the group `callboard.tools`, or `module` or `module:attribute` of a module
    in `allow`. `options` is JSON. Raises NoSuchTool, ToolDefinition, ConfigError, MissingExtra.
    """
    entry = registry().entries(TOOLS).get(source)
    if entry is not None:
        place = entry.value
    elif source.partition(":")[0] in allow:
        place = source
    else:
        known = registry().entries(TOOLS)
        guess = did_you_mean(source, known)
        raise NoSuchTool(
            f"no tools are announced as '{source}'",
            hint=f"did you mean '{guess}'?" if guess else f"there are: {', '.join(known) or 'none'}",
        )
    module, _, attribute = place.partition(":")
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        raise missing_extra(error, f"the tools '{source}'") or ToolDefinition(
            f"the tools '{source}' cannot be loaded: {error}"
        ) from error
    return _made(_attribute(loaded, attribute), options, source) if attribute else (tools_of(loaded), False)


def tools_of(module: ModuleType) -> list[Tool]:
    """Every tool that a module defines, in the order of their definition. Raises ToolDefinition where there is none."""
    found: dict[int, Tool] = {}
    for value in vars(module).values():
        if isinstance(value, Tool) and value.__module__ == module.__name__:
            found[id(value)] = value
        elif inspect.isclass(value) and issubclass(value, Tool) and value.__module__ == module.__name__:
            if hasattr(value, "run") and not any(type(tool) is value for tool in found.values()):
                found[id(value)] = _instance(value)
    if not found:
        raise ToolDefinition(f"{module.__name__} has no tools", hint="put `@tool` before a function of it")
    return checked(found.values())


def checked(tools: Iterable[Tool]) -> list[Tool]:
    """The same, once no two of them have one name. Raises ToolDefinition."""
    listed = list(tools)
    names = [tool.info.name for tool in listed]
    twice = next((name for name in names if names.count(name) > 1), "")
    if twice:
        raise ToolDefinition(f"two tools of one set are called '{twice}'", hint="@tool(name=...) gives one another")
    return listed


def _attribute(module: ModuleType, path: str) -> Any:
    found: Any = module
    for name in path.split("."):
        if not hasattr(found, name):
            guess = did_you_mean(name, vars(found) if hasattr(found, "__dict__") else ())
            raise ToolDefinition(
                f"the module '{module.__name__}' has no '{path}'", hint=f"did you mean '{guess}'?" if guess else ""
            )
        found = getattr(found, name)
    return found


def _made(value: Any, options: str, source: str) -> tuple[list[Tool], bool]:
    if inspect.isfunction(value):
        value = _called(value, options, source)
    elif options not in ("", "{}"):
        raise ConfigError(f"the tools '{source}' have no options", hint="a function that makes them may take some")
    if isinstance(value, Tool) or (inspect.isclass(value) and issubclass(value, Tool)):
        return [_instance(value)], True
    if isinstance(value, (list, tuple)) and value:
        return checked(_instance(each) for each in value), False
    raise ToolDefinition(f"'{source}' names {type(value).__name__}, which is no tool and no list of tools")


def _instance(value: Any) -> Tool:
    if isinstance(value, Tool):
        return value
    if not (inspect.isclass(value) and issubclass(value, Tool)):
        name = getattr(value, "__name__", repr(value))
        raise ToolDefinition(f"{name} is no tool", hint="put `@tool` before a function, or derive a class from Tool")
    try:
        return value()
    except TypeError as error:
        raise ToolDefinition(f"{value.__name__} cannot be made without arguments: {error}") from error


def _called(function: Any, options: str, source: str) -> Any:
    parameters = list(inspect.signature(function).parameters)
    if not parameters:
        if options not in ("", "{}"):
            raise ConfigError(f"the tools '{source}' have no options")
        return function()
    kind = hints_of(function).get(parameters[0], Any)
    try:
        return function(msgspec.json.decode(options or "{}", type=kind))
    except msgspec.DecodeError as error:
        raise ConfigError(f"the options of the tools '{source}' do not fit: {error}") from error


__all__ = ["FunctionTool", "checked", "load_tools", "tools_of"]
