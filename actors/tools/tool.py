"""Writing a tool: `@tool` on a function, or a class that derives from `Tool`. Types and docstring say the rest.

A tool runs anywhere, also without a bus: `await add.call({"a": 1, "b": 2})`; what was decorated is still the function.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any, ClassVar, Generic, ParamSpec, TypeVar, overload

import msgspec

from ...schemas.tool import ToolAnnotations, ToolInfo
from .context import ToolContext
from .docstring import parse_docstring
from .errors import ToolDefinition, ToolError
from .outcome import Outcome, Reply, text_of
from .running import Once, Way, run_tool, way_of
from .schema_of import ANYTHING, Inputs, Json, Media, Outputs, inputs_of, outputs_of
from .values import File

P = ParamSpec("P")
R = TypeVar("R")
Self_ = TypeVar("Self_", bound="Tool")

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
# A function has no state of its own to protect; a class has.
FUNCTION_CONCURRENCY = 8
CLASS_CONCURRENCY = 1
TIMEOUT_S = 60.0


class Options(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is said of a tool beside its types. `None`, "": from the function or class."""

    name: str = ""
    description: str = ""
    title: str = ""
    read_only: bool = False
    destructive: bool | None = None
    idempotent: bool = False
    open_world: bool = True
    timeout: float = TIMEOUT_S
    concurrency: int = 0
    version: str = ""
    tags: tuple[str, ...] = ()

    def annotations(self) -> ToolAnnotations:
        """What reads only destroys nothing, unless it is said to."""
        destructive = not self.read_only if self.destructive is None else self.destructive
        return ToolAnnotations(self.title, self.read_only, destructive, self.idempotent, self.open_world)


class Tool:
    """A tool with state: derive, give `run` typed parameters and a docstring, and say options in the class statement.

    `class Search(Tool, read_only=True)`. `setup` runs once, before the first call, and again at the next call where it
    raised; `close` when the tool is no longer offered. Both may be async. `run` may be a function (run in a thread), a
    coroutine function (run on the event loop), or a generator of either kind (it streams what it yields).
    """

    options: ClassVar[Options] = Options()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__()
        if options:
            cls.options = changed(cls.options, options)

    def setup(self) -> Any:
        """Make ready what the calls need. Not called where nobody calls."""

    def close(self) -> Any:
        """Let go of it. Called only after a `setup` that went well."""

    # `run` is not declared here: a method with any parameters could not override it for a type checker.

    def named(self: Self_, name: str = "", **options: Any) -> Self_:
        """A copy that goes by another name, or with other options."""
        other = copy.copy(self)
        for computed in ("info", "once"):
            other.__dict__.pop(computed, None)
        other.__dict__["options"] = changed(self.options, {**({"name": name} if name else {}), **options})
        return other

    @cached_property
    def info(self) -> ToolInfo:
        """What a caller is told of it. Raises ToolDefinition where it is no tool."""
        options = self.options
        name = options.name or self._own_name()
        if not _NAME.fullmatch(name):
            raise ToolDefinition(f"'{name}' is no name for a tool", hint="use letters, digits, '-' and '_', at most 64")
        description = options.description or parse_docstring(self._doc()).description
        if not description:
            raise ToolDefinition(f"the tool '{name}' has no description", hint="give it a docstring: a model reads it")
        inputs, outputs = self.schemas()
        return ToolInfo(
            name=name,
            description=description,
            input_schema=msgspec.json.encode(inputs).decode(),
            output_schema=msgspec.json.encode(outputs).decode(),
            annotations=options.annotations(),
            version=options.version,
            timeout=options.timeout,
            concurrency=options.concurrency or self._usual_concurrency(),
            tags=options.tags,
        )

    @cached_property
    def once(self) -> Once:
        """The way to its `setup`."""
        return Once(self)

    async def call(
        self, arguments: Json = "{}", media: Media | None = None, context: ToolContext | None = None
    ) -> Outcome:
        """Check the arguments, run the tool, check its result. `media` has what the arguments name.

        Raises ToolArguments, ToolResultInvalid, ToolSetupFailed, ToolFailed, and what the tool itself says. There is no
        time limit here: the tool's actor has it.
        """
        if context is None:
            return await self._call_alone(arguments, media or {})
        values = self.accept(arguments, media or {})
        if not self.once.is_ready:
            await self.once.wait(context.in_thread)
        return await run_tool(self, values, context)

    async def _call_alone(self, arguments: Json, media: Media) -> Outcome:
        """Nobody keeps the call's scratch folder: what the result has in it is read before it goes."""
        context = ToolContext()
        try:
            outcome = await self.call(arguments, media, context)
            if outcome.media and context.has_scratch:
                kept = {name: await context.in_thread(file.kept) for name, file in outcome.media.items()}
                outcome = Outcome(outcome.value, outcome.text, kept, outcome.schema)
            return outcome
        finally:
            context.cancel()
            context.close()

    # What the kinds of tools differ in.

    def _own_name(self) -> str:
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    def _doc(self) -> str | None:
        run = self.function
        return run.__doc__ if run.__doc__ and parse_docstring(run.__doc__).description else type(self).__doc__

    def _usual_concurrency(self) -> int:
        return CLASS_CONCURRENCY

    @property
    def function(self) -> Callable[..., Any]:
        """What is run, with the parsed arguments by name."""
        run = getattr(self, "run", None)
        if run is None:
            raise ToolDefinition(f"{type(self).__name__} has no `run`", hint="def run(self, text: str) -> str: ...")
        return run

    @cached_property
    def inputs(self) -> Inputs:
        return _class_inputs(type(self)) if "run" not in self.__dict__ else inputs_of(self.function, ToolContext)

    @cached_property
    def outputs(self) -> Outputs:
        return outputs_of(self.function)

    def schemas(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        return self.inputs.schema, self.outputs.schema

    def accept(self, arguments: Json, media: Media) -> dict[str, Any]:
        """Arguments by name, read and checked. Raises ToolArguments."""
        return self.inputs.decode(arguments, media)

    @property
    def converts(self) -> bool:
        """Whether media have to be brought into other forms before it runs."""
        return bool(self.inputs.arrive)

    @property
    def outputs_convert(self) -> bool:
        """Whether what it gives back takes work to encode: a thread is the place for it."""
        return self.outputs.leave is not None

    @cached_property
    def way(self) -> Way:
        """How its function is run."""
        return way_of(self.function)

    @cached_property
    def streams(self) -> bool:
        """Whether a call may have something to say before its result."""
        return self.way in (Way.GENERATOR, Way.ASYNC_GENERATOR) or self.takes_context

    @cached_property
    def is_plain(self) -> bool:
        """Whether it is a coroutine function whose arguments and result are JSON, and which says nothing meanwhile."""
        return self.way is Way.COROUTINE and not (self.streams or self.converts or self.outputs_convert)

    @property
    def takes_context(self) -> bool:
        return bool(self.inputs.context)

    def piece(self, value: Any) -> tuple[str, dict[str, File]]:
        """What it yields, as JSON and media. Raises ToolResultInvalid."""
        return ANYTHING.encode(value)

    def prepare(self, values: dict[str, Any], context: ToolContext) -> Callable[[], Any]:
        """The call, with media still to be brought into the forms it asks for; that happens in the tool's thread."""
        inputs, function = self.inputs, self.function
        if inputs.context:
            values[inputs.context] = context
        if inputs.arrive:
            return lambda: function(**inputs.converted(values))
        return partial(function, **values)

    def finish(self, value: Any) -> Outcome:
        """The result as JSON and media, checked. Raises ToolResultInvalid."""
        text = None
        if isinstance(value, Reply):
            value, text = value.value, value.text
        encoded, media = self.outputs.encode(value)
        text = text_of(value, encoded, media) if text is None else text
        return Outcome(encoded, text, media, self.outputs.schema)


class FunctionTool(Tool, Generic[P, R]):
    """What `@tool` makes of a function. Called, it is that function."""

    def __init__(self, function: Callable[P, R], options: Options) -> None:
        self.__dict__["options"] = options
        self._function = function
        self.__name__ = getattr(function, "__name__", "tool")
        self.__doc__ = function.__doc__
        self.__module__ = function.__module__
        self.__wrapped__ = function
        self.info  # noqa: B018  # what is wrong with it is said where it is written

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<tool {self.info.name}>"

    def _own_name(self) -> str:
        return self.__name__

    def _doc(self) -> str | None:
        return self._function.__doc__

    def _usual_concurrency(self) -> int:
        return FUNCTION_CONCURRENCY

    @property
    def function(self) -> Callable[..., Any]:
        return self._function

    @cached_property
    def inputs(self) -> Inputs:
        return inputs_of(self._function, ToolContext)


T = TypeVar("T", bound=type[Tool])


@overload
def tool(function: Callable[P, R], /) -> FunctionTool[P, R]: ...
@overload
def tool(
    *,
    name: str = "",
    description: str = "",
    title: str = "",
    read_only: bool = False,
    destructive: bool | None = None,
    idempotent: bool = False,
    open_world: bool = True,
    timeout: float = TIMEOUT_S,
    concurrency: int = 0,
    version: str = "",
    tags: tuple[str, ...] = (),
) -> Callable[[Callable[P, R]], FunctionTool[P, R]]: ...
def tool(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a tool of a function: name, description and schemas come from its name, docstring and annotations.

    `read_only`, `destructive`, `idempotent`, `open_world`: what a policy may decide by, as MCP means them. `timeout` in
    seconds and `concurrency`, how many calls run at once (0: 8), bound it where it is offered. Raises ToolDefinition.
    """
    if function is None:
        return partial(tool, **options) if options else tool
    if isinstance(function, type):
        raise ToolDefinition(
            f"{function.__name__} is a class: derive it from Tool, and say options in its class statement",
            hint=f"class {function.__name__}(Tool, read_only=True): ...",
        )
    return FunctionTool(function, changed(Options(), options))


def changed(options: Options, changes: Mapping[str, Any]) -> Options:
    """Options with some of them replaced. Raises ToolDefinition for one that there is not."""
    unknown = set(changes) - set(Options.__struct_fields__)
    if unknown:
        raise ToolDefinition(
            f"a tool has no option '{unknown.pop()}'", hint=f"it has {', '.join(Options.__struct_fields__)}"
        )
    found = msgspec.structs.replace(options, **{**changes, "tags": tuple(changes.get("tags", options.tags))})
    if not (found.timeout > 0 and found.concurrency >= 0):
        raise ToolDefinition("a tool's timeout is more than 0 seconds, and its concurrency no less than 0")
    return found


_inputs: dict[type[Tool], Inputs] = {}


def _class_inputs(cls: type[Tool]) -> Inputs:
    if cls not in _inputs:
        run = getattr(cls, "run", None)
        if run is None:
            raise ToolDefinition(f"{cls.__name__} has no `run`", hint="def run(self, text: str) -> str: ...")
        bound = inspect.ismethod(run) or isinstance(inspect.getattr_static(cls, "run"), staticmethod)
        _inputs[cls] = inputs_of(run, ToolContext, skip=0 if bound else 1)
    return _inputs[cls]


__all__ = ["FunctionTool", "Options", "Outcome", "Reply", "Tool", "ToolContext", "ToolError", "changed", "tool"]
