"""From the types that a tool's author writes to those that cross the wire, and back.

On the wire a medium is a string. A parameter says in which form it wants it: `Image` as an object that can give all of
them, `Annotated[Path, Image]` as a file, `Annotated[bytes, Audio]` as bytes, `PIL.Image.Image` and
`Annotated[np.ndarray, Image]` decoded. PIL and numpy are recognised by name, so nothing here imports them.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec

from .errors import ToolDefinition
from .values import Audio, File, Image

# Applied to a value in hand; None where it stays as it is.
Convert = Callable[[Any], Any] | None


class Form(NamedTuple):
    """`wire` is what msgspec reads and writes; `arrive` makes of it what the author asked for, `leave` the reverse."""

    wire: Any
    arrive: Convert = None
    leave: Convert = None


def form_of(annotation: Any) -> Form:
    """The form of an annotation. Raises ToolDefinition for media in a form that cannot be had."""
    if annotation is None or annotation is type(None):
        return Form(None)
    if isinstance(annotation, type) and issubclass(annotation, File):
        return Form(annotation)
    if _is_class(annotation, "PIL.Image", "Image"):
        return Form(Image, Image.pil, Image.from_pil)
    if annotation is Path or _is_class(annotation, "numpy", "ndarray"):
        raise ToolDefinition(
            f"{annotation.__name__} does not say what is sent",
            hint=f"write Annotated[{annotation.__name__}, File], or with Image or Audio for File; for a path on the "
            "tool's own machine take a str, for numbers a list[float]",
        )
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _annotated(annotation)
    if origin in (typing.Union, types.UnionType):
        return _union(annotation)
    if origin is not None and origin is not typing.Literal:
        return _generic(annotation, origin)
    return Form(annotation)


def _annotated(annotation: Any) -> Form:
    inner, *notes = typing.get_args(annotation)
    kind = next((note for note in notes if isinstance(note, type) and issubclass(note, File)), None)
    form = form_of(inner) if kind is None else _media(inner, kind)
    # A bare string beside a type is its description.
    metas = [msgspec.Meta(description=note) if isinstance(note, str) else note for note in notes]
    kept = tuple(meta for meta in metas if isinstance(meta, msgspec.Meta))
    return form._replace(wire=Annotated[(form.wire, *kept)]) if kept else form


def _media(inner: Any, kind: type[File]) -> Form:
    name = getattr(inner, "__name__", str(inner))
    if isinstance(inner, type) and issubclass(inner, File):
        return Form(kind)
    if inner is Path:
        return Form(kind, lambda file: file.path, kind.from_path)
    if inner is str:
        return Form(kind, lambda file: str(file.path), kind.from_path)
    if inner is bytes:
        return Form(kind, kind.bytes, kind.from_bytes)
    if inner is memoryview:
        return Form(kind, lambda file: file.view, kind.from_bytes)
    if issubclass(kind, Image) and _is_class(inner, "PIL.Image", "Image"):
        return Form(kind, kind.pil, kind.from_pil)
    if issubclass(kind, (Image, Audio)) and _is_class(inner, "numpy", "ndarray"):
        return Form(kind, kind.array, kind.from_array if issubclass(kind, Image) else _no_rate)
    raise ToolDefinition(
        f"{kind.__name__} cannot be had as {name}",
        hint="there are Path, str (its path), bytes, memoryview, for images and sounds np.ndarray, for images PIL's",
    )


def _no_rate(samples: Any) -> Any:
    raise ToolDefinition(
        "samples alone do not say at which rate they are played", hint="give back Audio.from_array(samples, rate)"
    )


def _union(annotation: Any) -> Form:
    forms = [form_of(option) for option in typing.get_args(annotation)]
    wire = typing.Union[tuple(form.wire for form in forms)]  # noqa: UP007  # made at run time
    converted = [form for form in forms if form.arrive is not None]
    if not converted:
        return Form(wire)
    if len([form for form in forms if form.wire is not None]) > 1:
        raise ToolDefinition(f"{annotation} leaves open in which form a medium arrives", hint="take Image, Audio, File")
    return Form(wire, _optional(converted[0].arrive), _optional(converted[0].leave))


def _optional(convert: Convert) -> Convert:
    return None if convert is None else lambda value: None if value is None else convert(value)


def _generic(annotation: Any, origin: Any) -> Form:
    arguments = typing.get_args(annotation)
    forms = [Form(argument) if argument is Ellipsis else form_of(argument) for argument in arguments]
    if all(form.wire is argument and form.arrive is None for form, argument in zip(forms, arguments, strict=True)):
        return Form(annotation)
    wire = origin[tuple(form.wire for form in forms)]
    last = forms[-1] if isinstance(origin, type) and issubclass(origin, Mapping) else forms[0]
    if all(form.arrive is None for form in forms):
        return Form(wire)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return Form(wire, _each_value(last.arrive), _each_value(last.leave))
    if isinstance(origin, type) and issubclass(origin, (Sequence, set, frozenset)):
        if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
            raise ToolDefinition(
                f"{annotation}: media in a tuple of fixed length", hint="take a list, or single arguments"
            )
        make = list if origin is Sequence else origin
        return Form(wire, _each(last.arrive, make), _each(last.leave, make))
    raise ToolDefinition(f"media cannot be had inside of {annotation}", hint="take Image, Audio or File there")


def _each(convert: Convert, make: Any) -> Convert:
    return None if convert is None else lambda values: make(convert(value) for value in values)


def _each_value(convert: Convert) -> Convert:
    return None if convert is None else lambda values: {key: convert(value) for key, value in values.items()}


def _is_class(annotation: Any, module: str, name: str) -> bool:
    return getattr(annotation, "__name__", "") == name and getattr(annotation, "__module__", "") == module
