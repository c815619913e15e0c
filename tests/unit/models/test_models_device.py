"""Where a model computes: which device is chosen, and that nothing of a step lies on another one."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from callboard.actors.models import formats
from callboard.actors.models.config import LlamaConfig
from callboard.actors.models.device import CPU, Card, check_type, half_type, pick_device, slower_because
from callboard.actors.models.gguf import GGUFFile
from callboard.actors.models.llama import LlamaDecoder
from callboard.actors.models.loading import load_decoder, load_model
from callboard.actors.models.lora import Adapter, LowRank
from callboard.actors.models.served import ModelOptions
from callboard.actors.serve import replica as replica_module
from callboard.actors.serve.cache_size import blocks_on_card
from callboard.actors.serve.commands import _engine_config, chat
from callboard.actors.serve.engine import Engine, EngineConfig
from callboard.actors.serve.replica import Replica, ReplicaConfig
from callboard.kernels import ops, plain
from callboard.kernels.gpu import graphs, launch
from callboard.kernels.ragged import RaggedBatch
from callboard.kernels.weights import WeightFormat
from callboard.runtime.errors import ConfigError
from callboard.runtime.node import Node
from callboard.schemas.serve_steps import AskReplica

TURING = Card("a card of the 20 series", (7, 5))
AMPERE = Card("a card of the 30 series", (8, 6))


@pytest.mark.parametrize(
    ("name", "num_cards", "device"),
    [("", 0, "cpu"), ("", 2, "cuda:0"), ("cpu", 2, "cpu"), ("cuda", 1, "cuda:0"), ("cuda:1", 2, "cuda:1")],
)
def test_the_first_card_is_taken_unless_another_device_is_named(name: str, num_cards: int, device: str) -> None:
    assert pick_device(name, num_cards) == torch.device(device)


@pytest.mark.parametrize(
    ("name", "num_cards", "message"),
    [
        ("cuda", 0, "torch finds no card"),
        ("cuda:2", 2, "no card 2: torch finds 2"),
        ("gpu", 1, "no device 'gpu'"),
        ("cuda:x", 1, "no device 'cuda:x'"),
        ("cpu:1", 0, "no device 'cpu:1'"),
    ],
)
def test_a_device_that_is_not_there_is_an_error_that_says_so(name: str, num_cards: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pick_device(name, num_cards)


@pytest.mark.anyio
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card here")
async def test_an_engine_on_a_card_does_not_start_without_one(tiny_path: Path) -> None:
    async with Node("test") as node:
        with pytest.raises(ConfigError, match="torch finds no card"):
            await node.spawn(Engine, EngineConfig(model=str(tiny_path), device="cuda"), name="engine")


def test_the_flag_of_chat_goes_over_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "callboard.toml").write_text('[engine]\ndevice = "cuda:1"\ncuda_graphs = false\n')
    monkeypatch.chdir(tmp_path)
    parser = ArgumentParser()
    chat.configure(parser)
    found = [_engine_config(parser.parse_args(flags)) for flags in ([], ["--device", "cpu"])]
    assert [(config.device, config.cuda_graphs) for config in found] == [("cuda:1", False), ("cpu", False)]


# ---- cards without bfloat16 ----


def test_cards_before_8_0_compute_in_float16_and_say_why_not_in_bfloat16() -> None:
    assert [half_type(card) for card in (None, TURING, AMPERE)] == ["bfloat16", "float16", "bfloat16"]
    with pytest.raises(ConfigError, match=r"20 series has compute capability 7\.5 and no bfloat16"):
        check_type("bfloat16", TURING)
    check_type("bfloat16", AMPERE)
    check_type("float16", TURING)
    with pytest.raises(ConfigError, match="on cards only"):
        check_type("float16", None)


@pytest.mark.parametrize("stored", [WeightFormat.BFLOAT16, WeightFormat.INT4, WeightFormat.FLOAT32])
def test_on_such_a_card_whatever_is_left_open_becomes_float16(
    stored: WeightFormat, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "compute_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(formats, "card_of", lambda device: TURING)
    monkeypatch.setattr(formats, "stored_format", lambda path: stored)
    found = formats.resolve(tiny_path, ModelOptions())
    half = "float32" if stored is WeightFormat.FLOAT32 else "float16"
    assert found == ModelOptions(dtype=half, weights=half, kv=half, device="cuda:0")


@torch.inference_mode()
def test_float16_gives_nearly_the_logits_of_float32(tiny_path: Path) -> None:
    tokens = torch.tensor([5, 6, 7, 8, 9])
    logits = []
    for dtype in (torch.float32, torch.float16):
        decoder = load_decoder(tiny_path, dtype)
        batch = RaggedBatch.build([5], [5], [[0, 1]], 4)
        logits.append(decoder.logits(decoder.forward(tokens, decoder.new_cache(4, 4), batch)))
    assert (logits[0] - logits[1]).abs().max() < 0.02 * logits[0].abs().max()


@pytest.fixture
def pretend_card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Card], torch.device]]:
    """Has the kernels believe that the first card is such a one."""

    def pretend(card: Card) -> torch.device:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: card.name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: card.capability)
        launch._why_not_on.cache_clear()
        return torch.device("cuda", 0)

    yield pretend
    launch._why_not_on.cache_clear()


def test_a_card_of_the_20_series_gets_torchs_own_kernels_and_it_is_said_why(
    pretend_card: Callable[[Card], torch.device],
) -> None:
    device = pretend_card(TURING)
    why = "a card of the 20 series has compute capability 7.5; Triton kernels need 8.0"
    assert launch.unavailable(device) == slower_because(device) == graphs.unavailable(device) == why
    with FakeTensorMode():
        assert ops.path_for(torch.empty(3, dtype=torch.float16, device=device)) is plain


def test_a_newer_card_gets_the_triton_kernels(pretend_card: Callable[[Card], torch.device]) -> None:
    pytest.importorskip("triton")
    device = pretend_card(AMPERE)
    assert launch.unavailable(device) == slower_because(device) == ""
    from callboard.kernels.gpu import path

    with FakeTensorMode():
        assert ops.path_for(torch.empty(3, dtype=torch.float16, device=device)) is path
        assert ops.path_for(torch.empty(3, dtype=torch.float64, device=device)) is plain
    assert slower_because(CPU) == ""  # where there is no card, none is slower than it could be


def test_a_kernel_is_not_launched_on_another_card_than_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with FakeTensorMode():
        here, there = (torch.empty(2, 3, device=f"cuda:{index}") for index in (0, 1))
        launch.check("x", here, dtypes=(torch.float32,), ndim=2, like=here)
        with pytest.raises(ValueError, match="x is on cuda:1, but the current device is cuda:0"):
            launch.check("x", there, dtypes=(torch.float32,), ndim=2, like=there)


@pytest.mark.anyio
async def test_a_replica_says_where_it_computes_and_why_no_faster(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(replica_module, "slower_because", lambda device: "the card is too old")
    config = ReplicaConfig(path=str(tiny_path), num_blocks=16, block_size=4, threads=1)
    with caplog.at_level(logging.INFO, logger="callboard"):
        async with Node("test") as node:
            replica = await node.spawn(Replica, config, name="replica")
            info = await replica.ask(AskReplica())
    assert (info.device, info.kernels, info.slower_because) == ("cpu", "torch", "the card is too old")
    assert "tiny.gguf computes on cpu: torch, float32; the card is too old" in caplog.text


# ---- one device throughout ----


class OneDevice(TorchDispatchMode):
    """Fails where an operation other than a copy meets tensors of several devices, single numbers excepted."""

    COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.ndim]
        devices = {x.device for x in tensors}
        assert len(devices) <= 1 or func in self.COPIES, f"{func} meets tensors on {devices}"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def elsewhere() -> Iterator[torch.device]:
    """A device whose tensors have no numbers: whoever would wait for one to look at it fails, too."""
    device = torch.device("meta")
    with OneDevice():
        with pytest.raises(AssertionError, match="meets tensors on"):
            torch.where(torch.zeros(3, dtype=torch.bool), torch.zeros(3), torch.zeros(3, device=device))
        yield device


def decoder_on(device: torch.device, path: Path) -> LlamaDecoder:
    with GGUFFile(path) as file:
        config = LlamaConfig.from_gguf(file)
    with device:
        return LlamaDecoder(config, torch.float32)


@pytest.mark.parametrize("format", [None, WeightFormat.INT8, WeightFormat.INT4, WeightFormat.NF4])
@torch.inference_mode()
def test_a_step_on_a_device_touches_no_other(
    format: WeightFormat | None, tiny_path: Path, elsewhere: torch.device
) -> None:
    decoder = decoder_on(elsewhere, tiny_path)
    assert decoder.device == elsewhere
    if format is not None:
        decoder.quantize(format)
    pair = LowRank(torch.zeros(2, 48), torch.zeros(decoder.layers[0].qkv.shape[0], 2))  # pyright: ignore
    for name in ("one", "two"):
        decoder._adapters.load(name, tiny_path, lambda: Adapter(2, {"0.qkv": pair}))
    # Two decode, one reads a prompt of which it has a part, one a whole prompt.
    batch = RaggedBatch.build([9, 3, 6, 4], [1, 1, 3, 4], [[0, 1, 2], [3], [4, 5], [6]], 4, elsewhere)
    ids = torch.zeros(batch.num_tokens, dtype=torch.int64, device=elsewhere)
    cache = decoder.new_cache(8, 4)
    for adapters in (None, ["one", "", "two", "one"]):
        hidden = decoder.forward(ids, cache, batch, adapters)
        logits = decoder.logits(hidden[batch.query_starts[1:] - 1])
        assert logits.shape == (4, decoder.vocab_size)
        assert logits.device.type == elsewhere.type
    bitmask = torch.zeros(2, -(-decoder.vocab_size // 32), dtype=torch.int32, device=elsewhere)
    rows = torch.tensor([0, 2], device=elsewhere)
    ops.mask_tokens(logits, rows, bitmask)
    ops.penalize(logits, rows, rows, *(torch.ones(2, device=elsewhere) for _ in range(2)))
    assert plain.greedy(logits).device.type == elsewhere.type


INTERPRETED = """
import sys
from pathlib import Path

import torch

from callboard.actors.models.loading import load_decoder
from callboard.kernels import ops, plain
from callboard.kernels.gpu import path
from callboard.kernels.planar import PlanarInt4, PlanarNf4
from callboard.kernels.quantized import QuantizedWeight
from callboard.kernels.gpu import graphs, launch
from callboard.kernels.ragged import RaggedBatch
from callboard.kernels.weights import WeightFormat

assert ops.path_for(torch.zeros(1)) is path
with torch.inference_mode():
    decoder = load_decoder(Path(sys.argv[1]), torch.float32)
    tokens = torch.tensor([5, 6, 7, 40, 41])
    logits, greedy, drawn = [], [], []
    for way in (path, plain):
        ops.path_for = lambda x: way
        batch = RaggedBatch.build([3, 2], [3, 2], [[0], [1]], 4)
        hidden = decoder.forward(tokens, decoder.new_cache(4, 4), batch)
        logits.append(decoder.logits(hidden))
        greedy.append(ops.greedy(logits[-1]))
        columns = [torch.full((5,), value, dtype=torch.float64) for value in (0.8, 0.9, 0.05, 0.37)]
        drawn.append(ops.sample(logits[-1], columns[0], torch.full((5,), 20), *columns[1:]))
    assert torch.allclose(*logits, atol=1e-4), (logits[0] - logits[1]).abs().max()
    assert torch.equal(*greedy) and torch.equal(*drawn)

def logits_with(format, way):
    ops.path_for = lambda x: way
    decoder = load_decoder(Path(sys.argv[1]), torch.float32)
    decoder.quantize(format)
    if way is path:
        decoder.settle()
        assert type(decoder.layers[0].down) is kept[format], type(decoder.layers[0].down)
    batch = RaggedBatch.build([3, 2], [3, 2], [[0], [1]], 4)
    return decoder.logits(decoder.forward(tokens, decoder.new_cache(4, 4), batch))


kept = {"int4": PlanarInt4, "nf4": PlanarNf4, "int8": QuantizedWeight}
with torch.inference_mode():
    for format in kept:
        ours, wanted = (logits_with(WeightFormat(format), way) for way in (path, plain))
        # Kernels for a card do not round the inputs of a product.
        assert (ours - wanted).norm() < 0.05 * wanted.norm(), (format, (ours - wanted).norm() / wanted.norm())
print("equal")
"""


@pytest.mark.timeout(300)
def test_a_model_through_the_triton_kernels_has_the_logits_of_torch(
    make_tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Under Triton's interpreter, which a process chooses once."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED, str(make_tiny_model(tmp_path / "tiny.gguf", head_dim=16))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.stdout == "equal\n", done.stderr


def test_a_loaded_model_says_where_it_is(tiny_path: Path) -> None:
    assert load_model(tiny_path, ModelOptions(device="cpu")).device == CPU


# ---- the cache of a card ----


def test_a_card_keeps_what_its_weights_leave_up_to_what_can_run_at_once() -> None:
    sizes = {"block_bytes": 1 << 20, "full_context": 100 << 20, "cache_mib": 0, "free": 1000 << 20, "most": 4}
    assert blocks_on_card(**sizes, num_replicas=1, weights=550 << 20) == 300
    assert blocks_on_card(**sizes, num_replicas=2, weights=125 << 20) == 300
    assert blocks_on_card(**sizes, num_replicas=1, weights=50 << 20) == 400
    assert blocks_on_card(**{**sizes, "cache_mib": 64}, num_replicas=2, weights=0) == 32
    with pytest.raises(ConfigError, match="1,000 MiB are free on the card, and 1 x 900 MiB of weights leave no room"):
        blocks_on_card(**sizes, num_replicas=1, weights=900 << 20)
