"""A function's arguments and result as JSON Schema, and as decoders made once: what the annotations say is checked.

Arguments are read into a generated msgspec Struct, which costs about a microsecond and gives errors with paths. A
medium in them is read as the `File` that its name stands for.
"""

from __future__ import annotations

import collections.abc
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import msgspec

from .docstring import parse_docstring
from .errors import ToolDefinition, ToolResultInvalid
from .explain import explain, integral
from .forms import Convert, Form, form_of
from .values import BY_KIND, File, kind_of

Media = Mapping[str, File]
Json = str | bytes | Mapping[str, Any]

_NOT_GIVEN = object()
_encode = msgspec.json.Encoder().encode
_STREAMS = {
    collections.abc.Iterator: 1,
    collections.abc.Iterable: 1,
    collections.abc.Generator: 3,
    collections.abc.AsyncIterator: 1,
    collections.abc.AsyncIterable: 1,
    collections.abc.AsyncGenerator: 2,
}


@dataclass(frozen=True)
class Inputs:
    """A function's parameters: their schema, and the way from JSON to keyword arguments.

    `context` is the parameter that is given the call's `ToolContext`, "" where none is.
    """

    schema: dict[str, Any]
    struct: type[msgspec.Struct]
    names: tuple[str, ...]
    arrive: tuple[tuple[str, Callable[[Any], Any]], ...]
    context: str

    def decode(self, arguments: Json, media: Media) -> dict[str, Any]:
        """Keyword arguments of the function, media still as `File`. Raises ToolArguments that names every problem."""

        def named(kind: type, name: Any) -> Any:
            return media_named(kind, name, media)

        try:
            if media or not isinstance(arguments, str):
                found = _read(arguments, self.struct, named)
            else:
                found = self._decoder.decode(arguments or "{}")
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            try:
                found = _read(integral(arguments), self.struct, named)
            except (msgspec.DecodeError, UnicodeDecodeError):
                raise explain(arguments, self.schema, error) from None
        return {name: value for name in self.names if (value := getattr(found, name)) is not _NOT_GIVEN}

    @cached_property
    def _decoder(self) -> msgspec.json.Decoder[Any]:
        """For calls without media, which most are."""
        return msgspec.json.Decoder(self.struct, dec_hook=_no_medium)

    def converted(self, values: dict[str, Any]) -> dict[str, Any]:
        """Media in the forms that the function asks for. It may decode images: a thread is the place for it."""
        for name, arrive in self.arrive:
            if name in values:
                values[name] = arrive(values[name])
        return values


@dataclass(frozen=True)
class Outputs:
    """A function's result: its schema, and the way to JSON and media."""

    schema: dict[str, Any]
    wire: Any
    leave: Convert

    def encode(self, value: Any) -> tuple[str, dict[str, File]]:
        """The result as JSON, and the media that are named in it. Raises ToolResultInvalid."""
        if self.leave is None and (plain := self._encode_plain(value)) is not None:
            return plain, {}
        media: dict[str, File] = {}
        if self.leave is not None:
            try:
                value = self.leave(value)
            except (TypeError, ValueError, AttributeError) as error:
                raise ToolResultInvalid(f"the tool gave back what it does not announce: {error}") from error
        try:
            encoded = msgspec.json.encode(value, enc_hook=lambda found: _leaving(found, media))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ToolResultInvalid(f"the tool gave back what is no JSON: {error}") from error
        if self.wire is not Any:
            try:
                msgspec.json.decode(encoded, type=self.wire, dec_hook=lambda kind, name: media_named(kind, name, media))
            except msgspec.DecodeError as error:
                raise ToolResultInvalid(f"the tool's result does not fit its schema: {error}") from error
        return encoded.decode(), media

    def _encode_plain(self, value: Any) -> str | None:
        """What needs no hook to be JSON, and fits; of anything else the long way says what is wrong."""
        try:
            encoded = _encode(value)
            if self.wire is not Any:
                self._decoder.decode(encoded)
        except (TypeError, ValueError, OverflowError, RecursionError):
            return None
        return encoded.decode()

    @cached_property
    def _decoder(self) -> msgspec.json.Decoder[Any]:
        return msgspec.json.Decoder(self.wire, dec_hook=_no_medium)


# For what no schema speaks of.
ANYTHING = Outputs({}, Any, None)


def inputs_of(function: Callable[..., Any], context_type: type, *, skip: int = 0) -> Inputs:
    """Read a function's parameters, `skip` of them left out (`self`). Raises ToolDefinition."""
    name = getattr(function, "__qualname__", str(function))
    hints = hints_of(function)
    docs = parse_docstring(function.__doc__).arguments
    fields: list[tuple[str, Any, Any]] = []
    arrive: list[tuple[str, Callable[[Any], Any]]] = []
    defaults: dict[str, Any] = {}
    context = ""
    for parameter in list(inspect.signature(function).parameters.values())[skip:]:
        annotation = hints.get(parameter.name, parameter.empty)
        if annotation is context_type:
            context = parameter.name
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ToolDefinition(f"{name}: a tool's arguments are named, which *, ** and / do not go with")
        if annotation is parameter.empty:
            raise ToolDefinition(f"{name}: '{parameter.name}' has no type", hint=f"write `{parameter.name}: str`, say")
        form = form_of(annotation)
        if form.arrive is not None:
            arrive.append((parameter.name, form.arrive))
        wire = form.wire
        if parameter.name in docs:
            wire = Annotated[wire, msgspec.Meta(description=docs[parameter.name])]
        if parameter.default is parameter.empty:
            fields.append((parameter.name, wire, ...))
        else:
            defaults[parameter.name] = parameter.default
            fields.append((parameter.name, wire, msgspec.field(default_factory=_not_given)))
    unknown = set(docs) - {field[0] for field in fields} - {context}
    if unknown:
        raise ToolDefinition(f"{name}: the docstring describes '{unknown.pop()}', which is no argument")
    ordered = [field if field[2] is not ... else field[:2] for field in fields]
    struct = msgspec.defstruct("Arguments", ordered, kw_only=True, forbid_unknown_fields=True)
    schema = schema_of(struct, name)
    for field, value in defaults.items():
        try:
            schema["properties"][field]["default"] = msgspec.to_builtins(value)
        except TypeError:
            continue  # an object of the function's own: it has no way to be written in a schema
    return Inputs(schema, struct, tuple(field[0] for field in fields), tuple(arrive), context)


def outputs_of(function: Callable[..., Any]) -> Outputs:
    """Read a function's result. Of a generator that is what it returns, else its pieces. Raises ToolDefinition."""
    annotation = hints_of(function).get("return", Any)
    origin = typing.get_origin(annotation)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        annotation = _streamed(annotation) if origin in _STREAMS else Any
    form = form_of(annotation)
    return Outputs(schema_of(form.wire, getattr(function, "__qualname__", "")), form.wire, form.leave)


def _streamed(annotation: Any) -> Any:
    arguments = typing.get_args(annotation)
    if len(arguments) == 3 and arguments[2] not in (None, type(None), Any):
        return arguments[2]
    return str if arguments and arguments[0] is str else Any


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """A function's annotations, evaluated also where they name what encloses it."""
    enclosed = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
    try:
        return typing.get_type_hints(function, localns=dict(enclosed) or None, include_extras=True)
    except NameError as error:
        raise ToolDefinition(
            f"{getattr(function, '__qualname__', function)}: its annotations name '{error.name}', which is not there",
            hint="import it outside of `if TYPE_CHECKING:`, and define types before the tool",
        ) from error


def schema_of(wire: Any, name: str = "") -> dict[str, Any]:
    """The JSON Schema of a type, its own parts inlined at the top and named ones under `$defs`."""
    if wire is Any:
        return {}
    try:
        (top,), named = msgspec.json.schema_components([wire], schema_hook=_media_schema, ref_template="#/$defs/{name}")
    except (TypeError, ValueError) as error:
        raise ToolDefinition(f"{name}: {error}") from error
    if set(top) == {"$ref"}:
        own = top["$ref"].removeprefix("#/$defs/")
        top = dict(named[own])
        if own == "Arguments":
            del named[own]
            del top["title"]
    return {**top, **({"$defs": named} if named else {})}


def _media_schema(kind: type) -> dict[str, Any]:
    if isinstance(kind, type) and issubclass(kind, File):
        return {"type": "string", "format": kind.kind.value}
    raise ToolDefinition(
        f"{getattr(kind, '__name__', kind)} has no form in JSON",
        hint="use text, numbers, enums, Literal, list, dict, dataclasses, msgspec Structs, Image, Audio, File",
    )


def media_named(kind: type, name: Any, media: Media) -> File:
    """The medium that a string in JSON stands for, as the kind that is asked for. Raises ValueError."""
    if not isinstance(name, str):
        raise ValueError(f"Expected the name of an entry of `media`, got {msgspec.json.encode(name).decode()}")
    found = media.get(name)
    if found is None:
        there = ", ".join(media) or "nothing"
        raise ValueError(f"There is no '{name}' in `media`, which holds {there}")
    if kind is File or isinstance(found, kind):
        return found
    for fitting, cls in BY_KIND.items():
        if issubclass(cls, kind) and kind_of(found.mime) is fitting:
            return found.as_kind(cls)
    raise ValueError(f"Expected {kind.__name__.lower()}, and '{name}' is {found.mime}")


def _no_medium(kind: type, name: Any) -> File:
    return media_named(kind, name, {})


def _leaving(value: Any, media: dict[str, File]) -> Any:
    """What a result has in it that JSON does not know."""
    module = type(value).__module__.partition(".")[0]
    if module == "PIL" and hasattr(value, "save"):
        value = BY_KIND[kind_of("image/png")].from_pil(value)  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, File):
        name, number = value.name or f"{value.kind.value}-{len(media) + 1}", 1
        while name in media and media[name] is not value:
            number += 1
            name = f"{number}-{value.name or value.kind.value}"
        media[name] = value
        return name
    if module == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"an object of type {type(value).__name__} has no form in JSON")


def _read(arguments: Json, struct: type[msgspec.Struct], hook: Callable[[type, Any], Any]) -> Any:
    if isinstance(arguments, (str, bytes)):
        return msgspec.json.decode(arguments or "{}", type=struct, dec_hook=hook)
    return msgspec.convert(arguments, struct, dec_hook=hook)


def _not_given() -> Any:
    return _NOT_GIVEN


__all__ = ["ANYTHING", "Form", "Inputs", "Json", "Media", "Outputs", "inputs_of", "outputs_of", "schema_of"]
