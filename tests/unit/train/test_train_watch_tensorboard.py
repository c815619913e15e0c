"""Event files are read back by parsers that share nothing with what wrote them."""

from __future__ import annotations

import errno
import math
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from watched_runs import progress, run_events

from callboard.actors.train import event_file
from callboard.actors.train.event_file import EventFile, crc32c
from callboard.actors.train.hooks import build_hook
from callboard.actors.train.tensorboard import TensorBoard
from callboard.schemas.train import (
    HookSettings,
    SampleSettings,
    TrainConfig,
    TrainEvaluated,
    TrainProgress,
    TrainSampled,
)

if TYPE_CHECKING:
    from callboard.actors.train.trainer import Trainer


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        # RFC 3720, B.4.
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (
            bytes.fromhex(
                "01c00000 00000000 00000000 00000000 14000000 00000400"
                "00000014 00000018 28000000 00000000 02000000 00000000"
            ),
            0xD9963A56,
        ),
        (b"", 0),
    ],
)
def test_checksums_are_those_of_the_standard(data: bytes, crc: int) -> None:
    assert crc32c(data) == crc


def records(path: Path) -> Iterator[bytes]:
    """The data of each whole record; the checksums are worked out a bit at a time."""
    content = path.read_bytes()
    at = 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        data = content[at + 12 : at + 12 + length]
        assert len(data) == length
        for part, place in ((content[at : at + 8], at + 8), (data, at + 12 + length)):
            (masked,) = struct.unpack_from("<I", content, place)
            rotated = (masked - 0xA282EAD8) % (1 << 32)
            assert (rotated >> 17 | rotated << 15) % (1 << 32) == slow_crc(part)
        yield data
        at += 16 + length


def slow_crc(data: bytes) -> int:
    """Division of polynomials, the least bit first (RFC 3720, 12.1)."""
    rest = 0xFFFFFFFF
    for byte in data:
        for bit in range(8):
            carry = rest ^ byte >> bit
            rest = rest >> 1 ^ (0x82F63B78 if carry & 1 else 0)
    return rest ^ 0xFFFFFFFF


@pytest.fixture(scope="session")
def parse() -> Callable[[bytes], Any]:
    """By Google's own library, from the fields' numbers and types as TensorFlow publishes them."""
    pytest.importorskip("google.protobuf")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="event.proto", package="t", syntax="proto3")
    messages = {
        "Dim": [("size", 1, "INT64", "")],
        "Shape": [("dim", 2, "*Dim", "")],
        "Tensor": [("dtype", 1, "INT32", ""), ("tensor_shape", 2, "Shape", ""), ("string_val", 8, "*BYTES", "")],
        "PluginData": [("plugin_name", 1, "STRING", "")],
        "Metadata": [("plugin_data", 1, "PluginData", "")],
        "Value": [
            ("tag", 1, "STRING", ""),
            ("simple_value", 2, "FLOAT", "value"),
            ("tensor", 8, "Tensor", "value"),
            ("metadata", 9, "Metadata", ""),
        ],
        "Summary": [("value", 1, "*Value", "")],
        "SessionLog": [("status", 1, "INT32", "")],
        "Event": [
            ("wall_time", 1, "DOUBLE", ""),
            ("step", 2, "INT64", ""),
            ("file_version", 3, "STRING", "what"),
            ("summary", 5, "Summary", "what"),
            ("session_log", 7, "SessionLog", "what"),
        ],
    }
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for title, number, kind, one_of in fields:
            label = "LABEL_REPEATED" if kind.startswith("*") else "LABEL_OPTIONAL"
            field = message.field.add(name=title, number=number, label=getattr(field_type := _fields(), label))
            kind = kind.removeprefix("*")
            if kind in messages:
                field.type, field.type_name = field_type.TYPE_MESSAGE, f".t.{kind}"
            else:
                field.type = getattr(field_type, f"TYPE_{kind}")
            if one_of:
                if not message.oneof_decl:
                    message.oneof_decl.add(name=one_of)
                field.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    event = message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Event"))
    return event.FromString


def _fields() -> Any:
    from google.protobuf import descriptor_pb2

    return descriptor_pb2.FieldDescriptorProto


@dataclass
class Watched:
    """A trainer as hooks see it."""

    config: TrainConfig
    group: SimpleNamespace
    hook: TensorBoard

    @classmethod
    def of(cls, folder: Path, rank: int = 0) -> Watched:
        config = TrainConfig(model="m", data="d", out="o", samples=SampleSettings(prompts=("why?", "who?")))
        return cls(config, SimpleNamespace(rank=rank), TensorBoard(str(folder)))

    def tell(self, *events: object) -> None:
        trainer = cast("Trainer", self)
        for event in events:
            match event:
                case TrainProgress():
                    self.hook.after_step(trainer, event)
                case TrainEvaluated():
                    self.hook.evaluated(trainer, event)
                case TrainSampled():
                    self.hook.sampled(trainer, event)

    def end(self) -> None:
        self.hook.ended(cast("Trainer", self))


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_what_a_run_says_is_read_back(tmp_path: Path, parse: Callable[[bytes], Any]) -> None:
    watched = Watched.of(tmp_path / "board")
    watched.tell(
        progress("a", 300, 2.5, num_steps=400, metrics=(("accuracy", 0.25),), mfu=0.5),
        TrainEvaluated("a", 300, 2.75, True),
        TrainSampled("a", 300, "who?", "Änne.\n\nAnd # no heading"),
        progress("a", 301, math.nan, num_steps=400, skipped="the loss is no number"),
    )
    (path,) = files(tmp_path / "board")  # readable while it is written
    assert path.name.startswith("events.out.tfevents.")
    first, start, settings, step, evaluated, sample, skipped, why = map(parse, records(path))
    watched.end()
    assert first.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (300, 1)
    assert all(event.wall_time == pytest.approx(start.wall_time, abs=60) for event in (first, settings, why))
    values = {value.tag: value.simple_value for value in step.summary.value}
    assert values["train/loss"] == 2.5
    assert values["train/accuracy"] == 0.25
    assert values["train/mfu"] == 0.5
    assert values["train/memory_bytes"] == 3 << 30
    assert values["train/lr"] == pytest.approx(2.5e-5, rel=1e-6)
    assert (step.step, evaluated.step, sample.step, why.step) == (300, 300, 300, 301)
    assert [(value.tag, value.simple_value) for value in evaluated.summary.value] == [("evaluation/loss", 2.75)]
    assert math.isnan(next(value.simple_value for value in skipped.summary.value if value.tag == "train/loss"))
    (text,) = sample.summary.value
    assert (text.tag, text.metadata.plugin_data.plugin_name) == ("samples/2", "text")
    assert (text.tensor.dtype, [dim.size for dim in text.tensor.tensor_shape.dim]) == (7, [1])
    assert [part.decode() for part in text.tensor.string_val] == [
        "    who?\n\n---\n\n    Änne.\n    \n    And # no heading"
    ]
    assert b"the loss is no number" in why.summary.value[0].tensor.string_val[0]
    assert b'"model": "m"' in settings.summary.value[0].tensor.string_val[0]


@given(st.integers(0, 2**62), st.dictionaries(st.text(max_size=200), st.floats(allow_nan=False), max_size=5))
def test_any_step_and_number_is_read_back(parse: Callable[[bytes], Any], step: int, values: dict[str, float]) -> None:
    event = parse(event_file.event(12.5, step, event_file.scalars(values.items())))
    assert (event.wall_time, event.step) == (12.5, step)
    for value, (tag, number) in zip(event.summary.value, values.items(), strict=True):
        assert value.tag == tag
        if abs(number) <= 3.4028234663852886e38:
            assert value.simple_value == struct.unpack("<f", struct.pack("<f", number))[0]
        else:
            assert value.simple_value == math.copysign(math.inf, number)


def test_a_run_that_goes_on_has_a_file_of_its_own_after_the_first(
    tmp_path: Path, parse: Callable[[bytes], Any]
) -> None:
    for first in (1, 3):
        watched = Watched.of(tmp_path)
        watched.tell(*(progress("a", step, 1.0 / first) for step in range(first, first + 4)))
        watched.end()
    one, other = files(tmp_path)
    assert parse(list(records(one))[1]).step == 1
    assert parse(list(records(other))[1]).step == 3


def test_only_the_first_rank_writes(tmp_path: Path) -> None:
    watched = Watched.of(tmp_path / "board", rank=1)
    watched.tell(progress("a", 1, 1.0), TrainEvaluated("a", 1, 1.0, True))
    watched.end()
    assert not (tmp_path / "board").exists()


def test_a_full_disk_ends_no_run_and_leaves_whole_records(
    tmp_path: Path, parse: Callable[[bytes], Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched.of(tmp_path)
    watched.tell(progress("a", 1, 1.0))
    room = [10]
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken, room[0] = room[0], 0
        return write(descriptor, data[:taken])

    with monkeypatch.context() as patched:
        patched.setattr(event_file.os, "write", full)
        watched.tell(progress("a", 2, 2.0), progress("a", 3, 3.0))
    watched.tell(progress("a", 4, 4.0))
    watched.end()
    steps = [parse(data) for data in records(files(tmp_path)[0])]
    assert [event.step for event in steps if event.HasField("summary")] == [1, 1, 4]  # the first are the settings
    assert [record.levelname for record in caplog.records if "No space left" in record.getMessage()] == ["WARNING"]


def test_a_folder_that_cannot_be_made_is_said_and_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "board").write_text("a file")
    watched = Watched.of(tmp_path / "board")
    watched.tell(progress("a", 1, 1.0), progress("a", 2, 1.0))
    watched.end()
    assert len(caplog.records) == 1


def test_a_configuration_may_name_it_as_a_hook_too(tmp_path: Path) -> None:
    kind = "callboard.actors.train.tensorboard:TensorBoard"
    hook = build_hook(HookSettings(kind, f'{{"folder": "{tmp_path}"}}'))
    assert hook == TensorBoard(str(tmp_path))


def test_tensorboard_itself_reads_a_run_that_was_killed_and_went_on(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = run_events("a", 12)
    Watched.of(tmp_path).tell(*events)  # and is never ended
    watched = Watched.of(tmp_path)
    watched.tell(*(progress("a", step, 9.0) for step in range(8, 11)), TrainSampled("a", 10, "why?", "because"))
    watched.end()
    accumulator = accumulators.EventAccumulator(str(tmp_path))
    accumulator.Reload()
    points = [(point.step, point.value) for point in accumulator.Scalars("train/loss")]
    losses = [(event.step, event.loss) for event in events if isinstance(event, TrainProgress) and event.step < 8]
    assert points == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in losses] + [(8, 9), (9, 9), (10, 9)]
    (sample,) = accumulator.Tensors("samples/1")
    assert b"because" in sample.tensor_proto.string_val[0]


def test_a_file_begins_with_its_version_and_where_it_goes_on(tmp_path: Path, parse: Callable[[bytes], Any]) -> None:
    file = EventFile(tmp_path / "deep" / "folder", 7)
    file.close()
    assert [(event.step, event.file_version) for event in map(parse, records(file.path))] == [
        (0, "brain.Event:2"), (7, "")
    ]  # fmt: skip
