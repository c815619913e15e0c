"""Writing a tool: its types and docstring become schemas, and what does not fit is an answer to mend it by."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
import jsonschema
import numpy as np
import PIL.Image
import pytest

from callboard import Audio, File, Image, Tool, ToolContext, ToolError, tool
from callboard.actors.tools.errors import (
    ToolArguments,
    ToolDefinition,
    ToolFailed,
    ToolResultInvalid,
    ToolSetupFailed,
)
from callboard.actors.tools.outcome import Outcome, Reply
from callboard.actors.tools.schema_tool import SchemaTool


class Unit(enum.Enum):
    METRE = "m"
    FOOT = "ft"


@dataclasses.dataclass
class Box:
    x: int
    picture: Image


@tool(read_only=True, tags=("math",), version="2")
def scale(
    value: float,
    times: int = 1,
    unit: Unit = Unit.METRE,
    how: Literal["up", "down"] = "up",
    notes: list[str] | None = None,
    more: Any = None,
) -> dict[str, float]:
    """Make a length longer.

    Not for areas.

    Args:
        value: the length to
            begin with
        times (int): how often
    """
    return {unit.value: value * times if how == "up" else value / times}


def call(of: Tool, arguments: Any = "{}", **media: File) -> Outcome:
    return anyio.run(of.call, arguments if isinstance(arguments, str) else json.dumps(arguments), media)


def picture(width: int = 3, height: int = 2, name: str = "it") -> Image:
    return Image.from_pil(PIL.Image.new("RGB", (width, height), (255, 0, 0)), name=name)


def test_types_and_docstring_become_the_schemas() -> None:
    info = scale.info
    inputs = json.loads(info.input_schema)
    jsonschema.Draft202012Validator.check_schema(inputs)
    assert (info.name, info.description, info.version) == ("scale", "Make a length longer.\n\nNot for areas.", "2")
    assert inputs["properties"]["value"] == {"type": "number", "description": "the length to begin with"}
    assert inputs["properties"]["times"] == {"type": "integer", "description": "how often", "default": 1}
    assert inputs["properties"]["how"] == {"enum": ["down", "up"], "default": "up"}
    assert inputs["$defs"]["Unit"]["enum"] == ["ft", "m"]
    assert inputs["required"] == ["value"]
    assert inputs["additionalProperties"] is False
    assert json.loads(info.output_schema) == {"type": "object", "additionalProperties": {"type": "number"}}
    assert info.annotations.read_only
    assert not info.annotations.destructive
    assert info.tags == ("math",)


def test_a_decorated_function_is_still_the_function() -> None:
    assert scale(2.0, times=3) == {"m": 6.0}


def test_a_call_checks_runs_and_encodes() -> None:
    assert call(scale, {"value": 2, "times": 3, "unit": "ft"}).data == {"ft": 6.0}
    assert call(scale, '{"value": 2, "times": 3.0}').data == {"m": 6.0}  # JSON has one kind of number


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        ('{"value": "x"}', [("$.value", "type", "number")]),
        ("{}", [("$.value", "missing", "number")]),
        ('{"value": 1, "tmies": 2}', [("$.tmies", "unknown", "times")]),
        ('{"vlaue": 1, "tmies": 2}', [("$.value", "missing", "number"), ("$.vlaue", "unknown", "value")]),
        ('{"value": 1, "how": "left"}', [("$.how", "type", 'one of "down", "up"')]),
        ('{"value": 1, "unit": "in"}', [("$.unit", "type", 'one of "ft", "m"')]),
        ('{"value": 1, "notes": [1]}', [("$.notes[0]", "type", "string")]),
        ('{"value": 1, "times": 2.5}', [("$.times", "type", "integer")]),
        ("[1]", [("$", "type", "object")]),
        ("null", [("$", "type", "object")]),
    ],
)
def test_what_does_not_fit_is_named_with_its_path(arguments: str, problems: list[tuple[str, str, str]]) -> None:
    with pytest.raises(ToolArguments) as raised:
        call(scale, arguments)
    found = json.loads(raised.value.detail)
    for path, problem, expected in problems:
        part = next(each for each in found if each["path"] == path)
        assert part["problem"] == problem
        assert expected == part.get("meant" if problem == "unknown" else "expected")
        assert path.removeprefix("$.") in str(raised.value)
    assert "value" in raised.value.hint


def test_arguments_that_are_no_json_are_told_so() -> None:
    with pytest.raises(ToolArguments, match="no JSON"):
        call(scale, '{"value": ')


def test_media_arrive_in_the_form_that_is_asked_for() -> None:
    seen: dict[str, Any] = {}

    @tool
    def look(
        whole: Image,
        drawn: PIL.Image.Image,
        pixels: Annotated[np.ndarray[Any, Any], Image],
        files: list[Annotated[Path, File]],
        context: ToolContext,
        maybe: Annotated[bytes, Image] | None = None,
    ) -> None:
        """Look at pictures."""
        seen.update(whole=whole, drawn=drawn, pixels=pixels, files=[f.read_bytes() for f in files], maybe=maybe)
        assert not context.cancelled

    image = picture()
    arguments = {"whole": "it", "drawn": "it", "pixels": "it", "files": ["it", "it"], "maybe": "it"}
    assert call(look, arguments, it=image).value == "null"
    assert seen["whole"].mime == "image/png"
    assert seen["drawn"].size == (3, 2)
    assert seen["pixels"].shape == (2, 3, 3)
    assert seen["files"] == [image.bytes()] * 2
    assert seen["maybe"] == image.bytes()
    properties = json.loads(look.info.input_schema)["properties"]
    assert properties["drawn"] == {"type": "string", "format": "image"}
    assert properties["files"] == {"type": "array", "items": {"type": "string", "format": "file"}}
    assert "context" not in properties


def test_sounds_and_files_arrive_as_samples_bytes_paths_and_views() -> None:
    seen: dict[str, Any] = {}

    @tool
    def listen(
        samples: Annotated[np.ndarray[Any, Any], Audio],
        wave: Annotated[bytes, Audio],
        path: Annotated[str, Audio],
        view: Annotated[memoryview, File],
        many: list[Annotated[bytes, Audio]],
    ) -> Annotated[memoryview, File]:
        """Listen to sounds."""
        # The path is the call's own, and goes with it.
        seen.update(samples=samples, wave=wave, path=Path(path).read_bytes(), is_text=isinstance(path, str))
        seen.update(view=bytes(view), is_view=isinstance(view, memoryview), many=many)
        return view[:4]

    sound = Audio.from_array(np.array([0.0, 0.5, -0.5], np.float32), 8000)
    arguments = {"samples": "it", "wave": "it", "path": "it", "view": "it", "many": ["it", "it"]}
    outcome = call(listen, arguments, it=sound)
    assert seen["samples"].dtype == np.float32
    assert np.abs(seen["samples"] - [0.0, 0.5, -0.5]).max() < 1e-4
    assert seen["wave"] == seen["path"] == seen["view"] == sound.bytes()
    assert seen["many"] == [sound.bytes()] * 2
    assert seen["is_text"]
    assert seen["is_view"]
    assert outcome.data.bytes() == b"RIFF"
    properties = json.loads(listen.info.input_schema)["properties"]
    assert properties["wave"] == properties["samples"] == properties["path"] == {"type": "string", "format": "audio"}
    assert properties["view"] == {"type": "string", "format": "file"}


def test_what_is_no_sound_is_told_to_who_called() -> None:
    @tool
    def listen(samples: Annotated[np.ndarray[Any, Any], Audio]) -> int:
        """Count samples."""
        return len(samples)

    with pytest.raises(ToolError, match="WAV"):
        call(listen, {"samples": "it"}, it=Audio.from_bytes(b"ID3 nothing"))


def test_samples_alone_are_no_result() -> None:
    @tool
    def hum() -> Annotated[np.ndarray[Any, Any], Audio]:
        """Hum."""
        return np.zeros(8, np.float32)

    with pytest.raises(ToolResultInvalid, match="at which rate"):
        call(hum, {})


def test_a_path_as_text_is_a_result(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(Audio.from_array(np.zeros(8, np.float32), 8000).view)

    @tool
    def record() -> Annotated[str, Audio]:
        """Record a sound."""
        return str(tmp_path / "a.wav")

    assert call(record, {}).data.mime == "audio/wav"


def test_what_a_caller_may_decide_by_is_in_the_info() -> None:
    @tool(idempotent=True, open_world=False)
    def put() -> None:
        """Put it there."""

    @tool(read_only=True)
    def look() -> None:
        """Look."""

    @tool
    def plain() -> None:
        """Do anything."""

    def marks(one: Tool) -> tuple[bool, bool, bool, bool]:
        said = one.info.annotations
        return said.read_only, said.destructive, said.idempotent, said.open_world

    assert marks(put) == (False, True, True, False)
    assert marks(look) == (True, False, False, True)
    assert marks(plain) == (False, True, False, True)


def test_a_medium_that_is_not_there_or_of_another_kind_is_an_error_to_mend() -> None:
    @tool
    def look(at: Image) -> str:
        """Look."""
        return at.mime

    with pytest.raises(ToolArguments, match=r"no 'other' in `media`.*it"):
        call(look, {"at": "other"}, it=picture())
    with pytest.raises(ToolArguments, match=r"image.*text/plain"):
        call(look, {"at": "it"}, it=File.from_bytes(b"text", "text/plain"))
    assert call(look, {"at": "it"}, it=File.from_bytes(picture().bytes())).data == "image/png"
    with pytest.raises(ToolError, match="cannot be read"):
        Image.from_bytes(b"\x89PNG\r\n\x1a\n broken").pil()


def test_results_give_media_names_and_bytes() -> None:
    @tool
    def draw(width: int) -> list[Box]:
        """Draw."""
        return [Box(1, picture(width, name="")), Box(2, picture(width + 1, name=""))]

    @tool
    def one() -> PIL.Image.Image:
        """Draw one."""
        return PIL.Image.new("L", (5, 4))

    outcome = call(draw, {"width": 7})
    assert json.loads(outcome.value) == [{"x": 1, "picture": "image-1"}, {"x": 2, "picture": "image-2"}]
    second = outcome.data[1]["picture"]
    assert isinstance(second, Image)
    assert second.pil().size == (8, 2)
    single = call(one)
    assert isinstance(single.data, Image)
    assert single.data.pil().size == (5, 4)
    assert single.text.startswith("[image image-1")


def test_a_result_that_does_not_fit_is_the_tools_fault() -> None:
    @tool
    def lie() -> int:
        """Say a number."""
        return "three"  # pyright: ignore[reportReturnType]

    @tool
    def hide() -> Any:
        """Give an object."""
        return object()

    with pytest.raises(ToolResultInvalid, match="int"):
        call(lie)
    with pytest.raises(ToolResultInvalid, match="object"):
        call(hide)


def test_what_a_tool_says_itself_passes_and_what_it_did_not_foresee_is_told() -> None:
    @tool
    def picky(n: int) -> int:
        """Be picky."""
        if n < 0:
            raise ToolError("n is negative", hint="give one from 0")
        return 1 // n

    with pytest.raises(ToolError, match="negative") as said:
        call(picky, {"n": -1})
    assert said.value.hint == "give one from 0"
    with pytest.raises(ToolFailed, match="ZeroDivisionError") as failed:
        call(picky, {"n": 0})
    assert "1 // n" in failed.value.detail


def test_generators_stream_pieces_and_end_in_a_result() -> None:
    @tool
    def words(n: int) -> Iterator[str]:
        """Speak."""
        for number in range(n):
            yield f"{number} "

    @tool
    def counted(n: int) -> Generator[str, None, int]:
        """Speak and count."""
        yield from map(str, range(n))
        return n

    @tool
    async def later(n: int) -> AsyncIterator[str]:
        """Speak, later."""
        for number in range(n):
            yield str(number)

    @tool
    async def replied() -> AsyncIterator[Any]:
        """Speak, then answer."""
        yield "a"
        yield Reply({"b": 1}, text="b is one")

    assert call(words, {"n": 3}).data == "0 1 2 "
    assert call(counted, {"n": 3}).data == 3
    assert json.loads(counted.info.output_schema) == {"type": "integer"}
    assert call(later, {"n": 2}).data == "01"
    assert (call(replied).data, call(replied).text) == ({"b": 1}, "b is one")


class Model(Tool, read_only=True, timeout=20):
    """Answer from what was loaded."""

    def __init__(self, fail: int = 0) -> None:
        self.fail = fail
        self.setups = 0
        self.closed = 0

    def setup(self) -> None:
        self.setups += 1
        if self.setups <= self.fail:
            raise OSError("no weights")

    def close(self) -> None:
        self.closed += 1

    def run(self, text: str, context: ToolContext) -> str:
        (context.scratch / "note").write_text(text)
        return text.upper()


def test_setup_runs_once_before_the_first_call_and_again_after_it_failed() -> None:
    async def main() -> None:
        model = Model(fail=1)
        assert model.info.name == "model"
        assert model.setups == 0
        with pytest.raises(ToolSetupFailed, match="no weights"):
            await model.call({"text": "a"})
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(model.call, {"text": "a"})
        assert model.setups == 2
        await model.once.close(ToolContext().in_thread)
        assert model.closed == 1

    anyio.run(main)


def test_a_tool_by_another_name_is_another_tool() -> None:
    other = Model().named("shout", timeout=9.0)
    assert (other.info.name, other.info.timeout, Model().info.name) == ("shout", 9.0, "model")


@pytest.mark.parametrize("kind", ["untyped", "star", "undescribed", "unknown argument", "bare path", "object"])
def test_what_is_no_tool_is_refused_where_it_is_written(kind: str) -> None:
    def untyped(a) -> None:  # pyright: ignore[reportMissingParameterType]
        """Do."""

    def star(*a: int) -> None:
        """Do."""

    def undescribed(a: int) -> None: ...

    def unknown_argument(a: int) -> None:
        """Do.

        Args:
            b: what is not there
        """

    def bare_path(a: Path) -> None:
        """Do."""

    def unforeseen(a: anyio.Event) -> None:
        """Do."""

    written = {
        "untyped": untyped,
        "star": star,
        "undescribed": undescribed,
        "unknown argument": unknown_argument,
        "bare path": bare_path,
        "object": unforeseen,
    }[kind]
    with pytest.raises(ToolDefinition):
        tool(written)


def test_a_tool_with_a_schema_from_elsewhere_is_checked_by_it() -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 2}, "at": {"type": "string", "format": "image"}},
        "required": ["n"],
        "additionalProperties": False,
    }

    async def run(arguments: dict[str, Any], context: ToolContext) -> Any:
        return {"n": arguments["n"], "size": arguments["at"].pil().size if "at" in arguments else None}

    query = SchemaTool("query", "Ask.", schema, run, output_schema={"properties": {"n": {"maximum": 5}}})
    assert call(query, {"n": 3.0, "at": "it"}, it=picture()).data == {"n": 3, "size": [3, 2]}
    with pytest.raises(ToolArguments, match="minimum"):
        call(query, {"n": 1})
    with pytest.raises(ToolArguments, match=r"`n` is missing.*no argument `m`"):
        call(query, {"m": 1})
    with pytest.raises(ToolResultInvalid, match="maximum"):
        call(query, {"n": 9})
    with pytest.raises(ToolDefinition):
        SchemaTool("query", "Ask.", {"$ref": "http://127.0.0.1:9/schema.json"}, run).accept("{}", {})


def test_sounds_keep_their_samples_and_rate() -> None:
    samples = np.sin(np.linspace(0, 20, 800)).astype(np.float32)
    sound = Audio.from_array(samples, 8000)
    assert (sound.rate, sound.mime) == (8000, "audio/wav")
    assert np.abs(sound.array() - samples).max() < 1e-4
    stereo = Audio.from_array(np.stack([samples, -samples], 1), 8000).array()
    assert stereo.shape == (800, 2)
    with pytest.raises(ToolError, match="WAV"):
        _ = Audio.from_bytes(b"ID3 nothing").rate


def test_a_file_of_bytes_gets_a_path_once_it_is_asked_for() -> None:
    file = File.from_bytes(b"hello", "text/plain", name="../up/a")
    assert file.path.name == "a.txt"
    assert file.path.read_text() == "hello"
    folder = file.path.parent
    del file
    assert not folder.exists()
