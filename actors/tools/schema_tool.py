"""A tool whose schemas come from elsewhere (an MCP server, an OpenAPI document), not from a function's annotations."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from ...runtime.errors import MissingExtra
from .context import ToolContext
from .errors import ToolArguments, ToolDefinition, ToolResultInvalid
from .explain import Problem, describe, integral, name_problems, quoted, refusal
from .media_json import with_media
from .outcome import Outcome, Reply, text_of
from .schema_of import Json, Media, Outputs
from .tool import FUNCTION_CONCURRENCY, Options, Tool, changed

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

Run = Callable[[dict[str, Any], ToolContext], Any | Awaitable[Any]]

# A model that got a dozen things wrong mends a few at a time.
MAX_PROBLEMS = 5


class SchemaTool(Tool):
    """`run(arguments, context)` gets arguments that fit `input_schema`; strings of `format` image, audio or file in it
    arrive as `Image`, `Audio`, `File`. It may be a coroutine function, or a plain one, which runs in a thread. What it
    gives back is checked against `output_schema`, unless that is empty. Needs the extra `tools`.
    """

    def __init__(
        self,
        name: str,
        description: str,
        input_schema: Mapping[str, Any],
        run: Run,
        *,
        output_schema: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.__dict__["options"] = changed(Options(), {"name": name, "description": description, **options})
        self._run = run
        self._input_schema = dict(input_schema)
        self._output_schema = dict(output_schema or {})
        self.info  # noqa: B018  # what is wrong with it is said where it is made

    def _usual_concurrency(self) -> int:
        return FUNCTION_CONCURRENCY

    @property
    def function(self) -> Callable[..., Any]:
        return self._run

    def schemas(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        return self._input_schema, self._output_schema

    @cached_property
    def outputs(self) -> Outputs:
        return Outputs(self._output_schema, Any, None)

    @property
    def converts(self) -> bool:
        return False

    @property
    def takes_context(self) -> bool:
        return True

    @cached_property
    def _arguments_validator(self) -> Validator:
        return validator_of(self._input_schema)

    @cached_property
    def _result_validator(self) -> Validator | None:
        return validator_of(self._output_schema) if self._output_schema else None

    def accept(self, arguments: Json, media: Media) -> dict[str, Any]:
        given = self.checked(arguments)
        try:
            return with_media(given, self._input_schema, media)
        except ValueError as error:
            raise ToolArguments(str(error), hint="send it in `media`, and its name in the arguments") from error

    def checked(self, arguments: Json) -> dict[str, Any]:
        """Arguments that fit the schema, media in them still by name. Raises ToolArguments."""
        given = _read(arguments)
        if problems := _problems(self._arguments_validator, given):
            given = integral(given)
            if _problems(self._arguments_validator, given):
                raise refusal(problems, self._input_schema)
        return given

    def prepare(self, values: dict[str, Any], context: ToolContext) -> Callable[[], Any]:
        return lambda: self._run(values, context)

    def finish(self, value: Any) -> Outcome:
        """A run may give back an `Outcome` of its own."""
        if isinstance(value, Outcome):
            self._check_result(value.value)
            return value
        text = None
        if isinstance(value, Reply):
            value, text = value.value, value.text
        encoded, media = self.outputs.encode(value)
        self._check_result(encoded)
        text = text_of(value, encoded, media) if text is None else text
        return Outcome(encoded, text, media, self._output_schema)

    def _check_result(self, encoded: str) -> None:
        validator = self._result_validator
        if validator is not None and (problems := _problems(validator, msgspec.json.decode(encoded))):
            said = "; ".join(str(problem) for problem in problems)
            raise ToolResultInvalid(f"the tool's result does not fit its schema: {said}")


def validator_of(schema: Mapping[str, Any]) -> Validator:
    """A validator that fetches nothing: a reference that leads out of the schema is an error. Raises ToolDefinition."""
    try:
        import jsonschema
        import referencing
        from jsonschema.validators import validator_for
    except ImportError as error:
        raise MissingExtra.of("tools", "a tool with a JSON Schema of its own") from error
    cls = validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        cls.check_schema(dict(schema))
    except jsonschema.SchemaError as error:
        raise ToolDefinition(f"its schema is none: {error.message} at {error.json_path}") from error
    return cls(schema, registry=referencing.Registry())


def _read(arguments: Json) -> Any:
    if not isinstance(arguments, (str, bytes)):
        return dict(arguments)
    try:
        return msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ToolArguments(f"the arguments are no JSON: {error}", hint="send one JSON object") from error


def _problems(validator: Validator, given: Any) -> list[Problem]:
    from referencing.exceptions import Unresolvable

    schema = validator.schema
    try:
        errors = sorted(validator.iter_errors(given), key=lambda error: error.json_path)
    except Unresolvable as error:
        raise ToolDefinition(f"its schema refers to what it does not hold: {error.ref}") from error
    # Missing and unknown arguments at the top are told with what was meant.
    found = (
        name_problems(given, schema) if errors and isinstance(given, Mapping) and isinstance(schema, Mapping) else []
    )
    for error in errors:
        if found and error.json_path == "$" and error.validator in ("required", "additionalProperties"):
            continue
        said = isinstance(error.schema, Mapping) and error.validator in ("type", "enum", "const")
        expected = describe(error.schema) if said and isinstance(error.schema, Mapping) else ""
        if not expected:
            found.append(
                Problem(error.json_path, "type", f"what fits its schema ({error.message})", quoted(error.instance))
            )
        else:
            found.append(Problem(error.json_path, "type", expected, quoted(error.instance)))
    return found[:MAX_PROBLEMS]
