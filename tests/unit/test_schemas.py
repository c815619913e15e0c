"""Every schema keeps the rules that let messages be shared inside a process and between versions."""

from __future__ import annotations

import importlib
import pkgutil
import re
from typing import Any, TypeVar

import jsonschema
import msgspec
import msgspec.inspect as mi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import callboard.schemas
from callboard.runtime.messages import answers
from callboard.runtime.schema import document, one_message, own_messages
from callboard.schemas.base import ErrorInfo, Message, Request, StreamRequest

BASES = {Message, Request, StreamRequest}


def _all_structs() -> list[type[msgspec.Struct]]:
    found: dict[type[msgspec.Struct], None] = {}
    for module in pkgutil.walk_packages(callboard.schemas.__path__, "callboard.schemas."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, msgspec.Struct) and value.__module__ == module.name:
                found[value] = None
    return list(found)


STRUCTS = _all_structs()
MESSAGES = [struct for struct in STRUCTS if issubclass(struct, Message) and struct not in BASES]
# Frames of the wire are generic in what they carry; their bodies are messages, which are checked as such.
CONCRETE = [struct for struct in STRUCTS if struct not in BASES and not getattr(struct, "__parameters__", ())]
WHOLE = document(own_messages().by_tag, "test")

IMMUTABLE = (
    mi.NoneType,
    mi.BoolType,
    mi.IntType,
    mi.FloatType,
    mi.StrType,
    mi.BytesType,
    mi.DateTimeType,
    mi.DateType,
    mi.TimeType,
    mi.TimeDeltaType,
    mi.UUIDType,
    mi.DecimalType,
    mi.EnumType,
    mi.LiteralType,
    mi.RawType,
)


def mutable_parts(info: mi.Type, seen: tuple[type, ...] = ()) -> list[str]:
    """What in a type can be changed after it was made, all the way down."""
    if isinstance(info, mi.Metadata):
        return mutable_parts(info.type, seen)
    if isinstance(info, mi.UnionType):
        return [part for one in info.types for part in mutable_parts(one, seen)]
    if isinstance(info, mi.VarTupleType | mi.FrozenSetType):
        return mutable_parts(info.item_type, seen)
    if isinstance(info, mi.TupleType):
        return [part for one in info.item_types for part in mutable_parts(one, seen)]
    if isinstance(info, mi.StructType):
        if info.cls in seen:
            return []
        bad = [] if info.cls.__struct_config__.frozen else [f"{info.cls.__name__} is not frozen"]
        for field in info.fields:
            parts = mutable_parts(field.type, (*seen, info.cls))
            bad += [f"{info.cls.__name__}.{field.name}: {part}" for part in parts]
        return bad
    return [] if isinstance(info, IMMUTABLE) else [type(info).__name__]


def bounded(info: Any, **limits: Any) -> dict[str, Any]:
    low, high = limits["low"], limits["high"]
    if info.ge is not None:
        low = info.ge
    if info.gt is not None:
        low = info.gt + limits["step"]
    if info.le is not None:
        high = info.le
    if info.lt is not None:
        high = info.lt - limits["step"]
    return {"min_value": low, "max_value": high}


def values(info: mi.Type, codec: Any, depth: int = 0) -> st.SearchStrategy[Any]:
    """Instances of a type as msgspec describes it; `codec` is the module that will encode them."""
    match info:
        case mi.Metadata():
            return values(info.type, codec, depth)
        case mi.NoneType():
            return st.none()
        case mi.BoolType():
            return st.booleans()
        case mi.IntType():
            return st.integers(**bounded(info, low=-(2**63), high=2**63 - 1, step=1))
        case mi.FloatType():
            return st.floats(**bounded(info, low=None, high=None, step=1e-6), allow_nan=False, allow_infinity=False)
        case mi.StrType(pattern=pattern) if pattern is not None:
            return st.from_regex(pattern, fullmatch=True)
        case mi.StrType():
            return st.text(min_size=info.min_length or 0, max_size=info.max_length)
        case mi.BytesType():
            return st.binary(min_size=info.min_length or 0, max_size=info.max_length)
        case mi.DateTimeType():
            return st.datetimes(timezones=st.timezones() if info.tz else st.none())
        case mi.EnumType():
            return st.sampled_from(list(info.cls))
        case mi.LiteralType():
            return st.sampled_from(info.values)
        case mi.VarTupleType():
            item = values(info.item_type, codec, depth + 1)
            return st.lists(item, min_size=info.min_length or 0, max_size=info.max_length or 4).map(tuple)
        case mi.FrozenSetType():
            return st.frozensets(values(info.item_type, codec, depth + 1), max_size=4)
        case mi.TupleType():
            return st.tuples(*(values(one, codec, depth + 1) for one in info.item_types))
        case mi.UnionType():
            return st.one_of(*(values(one, codec, depth + 1) for one in info.types))
        case mi.StructType():
            fields = {}
            for field in info.fields:
                # A type that holds itself ends somewhere: deep down, only what must be given is.
                if field.required or depth < 6:
                    fields[field.name] = st.deferred(lambda field=field: values(field.type, codec, depth + 1))
            return st.builds(info.cls, **fields)
        case mi.RawType():
            return st.text().map(lambda text: msgspec.Raw(codec.encode(text)))
        case _:
            raise TypeError(f"no strategy for {info}")


def named(struct: type) -> str:
    return f"{struct.__module__.rpartition('.')[2]}.{struct.__name__}"


def test_there_are_schemas() -> None:
    assert {ErrorInfo} <= set(STRUCTS)
    assert MESSAGES


@pytest.mark.parametrize("struct", STRUCTS, ids=named)
def test_a_schema_is_frozen(struct: type[msgspec.Struct]) -> None:
    assert struct.__struct_config__.frozen


@pytest.mark.parametrize("struct", CONCRETE, ids=named)
def test_a_schema_holds_nothing_that_can_change(struct: type[msgspec.Struct]) -> None:
    assert mutable_parts(mi.type_info(struct)) == []


@pytest.mark.parametrize("message", MESSAGES, ids=named)
def test_a_message_has_a_dotted_tag_under_type(message: type[Message]) -> None:
    config = message.__struct_config__
    assert config.tag_field == "type"
    assert re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+", str(config.tag))


def test_no_two_messages_share_a_tag() -> None:
    by_tag: dict[str, str] = {}
    for struct in [*MESSAGES, ErrorInfo]:
        assert by_tag.setdefault(str(struct.__struct_config__.tag), struct.__name__) == struct.__name__


@pytest.mark.parametrize("message", [m for m in MESSAGES if issubclass(m, Request)], ids=named)
def test_a_request_names_what_answers_it(message: type[Message]) -> None:
    found = answers(message)
    assert not isinstance(found.result, TypeVar)
    assert (found.item is not None) == issubclass(message, StreamRequest)


@pytest.mark.parametrize("codec", [msgspec.msgpack, msgspec.json], ids=["msgpack", "json"])
@pytest.mark.parametrize("struct", CONCRETE, ids=named)
def test_a_schema_survives_the_wire(struct: type[msgspec.Struct], codec: Any) -> None:
    @settings(max_examples=25)
    @given(values(mi.type_info(struct), codec))
    def check(value: msgspec.Struct) -> None:
        assert codec.decode(codec.encode(value), type=struct) == value

    check()


@pytest.mark.parametrize("message", MESSAGES, ids=named)
def test_a_message_from_a_newer_node_is_understood(message: type[Message]) -> None:
    @settings(max_examples=25)
    @given(values(mi.type_info(message), msgspec.msgpack), st.text())
    def check(value: Message, news: str) -> None:
        fields = {field: getattr(value, field) for field in value.__struct_fields__}
        sent = {"type": message.__struct_config__.tag, **fields, "from_the_future": news}
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=message) == value

    check()


@pytest.mark.parametrize("message", MESSAGES, ids=named)
def test_a_message_fits_its_json_schema_and_a_wrong_one_does_not(message: type[Message]) -> None:
    tag = str(message.__struct_config__.tag)
    validator = jsonschema.Draft202012Validator(one_message(WHOLE, tag))

    @settings(max_examples=10)
    @given(values(mi.type_info(message), msgspec.json), st.text())
    def check(value: Message, news: str) -> None:
        sent = msgspec.json.decode(msgspec.json.encode(value))
        validator.validate(sent)
        validator.validate({**sent, "from_the_future": news})
        assert not validator.is_valid({**sent, "type": tag + ".not"})
        for field in msgspec.structs.fields(message):
            without = {name: part for name, part in sent.items() if name != field.encode_name}
            assert validator.is_valid(without) != field.required
            if not isinstance(mi.type_info(field.type), mi.RawType):
                # (An object is no mistake where all fields have defaults, nor a list where anything may be listed.)
                wrong = {"what": "nobody", "would": "send"}
                assert not all(validator.is_valid({**sent, field.encode_name: one}) for one in (wrong, [[wrong]]))

    check()


class Changing(msgspec.Struct, frozen=True):
    names: tuple[list[str], ...]


class Thawed(msgspec.Struct):
    number: int


class Nested(msgspec.Struct, frozen=True):
    inner: Thawed | None
    table: dict[str, int]


def test_the_walk_finds_what_can_change() -> None:
    assert mutable_parts(mi.type_info(Changing)) == ["Changing.names: ListType"]
    assert mutable_parts(mi.type_info(Nested)) == [
        "Nested.inner: Thawed is not frozen",
        "Nested.table: DictType",
    ]
