"""The lean decoder on the native kernels: transformers' logits, the same to the last bit in any company."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from random_models import LEAN, NATIVE_SIZES, TEXTS, VOCAB, assert_same, broken_weights, expected_logits, make_model

from callboard.actors.models.errors import NoSuchAdapter
from callboard.actors.models.loading import load_decoder, load_model
from callboard.actors.models.native_decoder import NativeCache, NativeDecoder
from callboard.actors.models.served import ModelOptions
from callboard.kernels import native
from callboard.kernels.ragged import RaggedBatch
from callboard.kernels.weights import PackedWeight, WeightFormat
from callboard.runtime.errors import ConfigError, ModelDamaged

WHY_NOT = native.unavailable()
pytestmark = [
    pytest.mark.skipif(bool(WHY_NOT), reason=f"no native kernels: {WHY_NOT}"),
    # What PEFT itself calls of transformers.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]

Serve = Callable[..., list[torch.Tensor]]

LONG = {"max_position_embeddings": 4096, "initializer_range": 0.2}
# Of the norm of the logits: what rounding keys, values and weights in attention to 8 bits of mantissa or 8 bits costs.
KV_TOLERANCE = {"float32": 1e-5, "bfloat16": 0.01, "int8": 0.03, "int4": 0.3}


def load(path: Path, **options: Any) -> NativeDecoder:
    model = load_model(path, ModelOptions(**{"dtype": "float32", **options}))
    assert isinstance(model, NativeDecoder)
    return model


def random_text(length: int) -> list[int]:
    return torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(length)).tolist()


def assert_near(actual: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        assert (ours - theirs).norm() < tolerance * theirs.norm()


HEADS: dict[str, dict[str, Any]] = {
    "16x6of1": {"head_dim": 16, "num_attention_heads": 6, "num_key_value_heads": 1},
    "32x8of1": {"head_dim": 32, "num_attention_heads": 8, "num_key_value_heads": 1},
    "48x3of3": {"head_dim": 48, "num_attention_heads": 3, "num_key_value_heads": 3},
    "64x6of2": {"head_dim": 64, "num_attention_heads": 6, "num_key_value_heads": 2},
    "80x4of2": {"head_dim": 80, "num_attention_heads": 4, "num_key_value_heads": 2},
    "256x2of1": {"head_dim": 256, "num_attention_heads": 2, "num_key_value_heads": 1},
}


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("kv", KV_TOLERANCE)
def test_heads_of_any_size_and_number(heads: str, kv: str, tmp_path: Path, serve: Serve) -> None:
    """And widths that are no multiple of a vector: 40 hidden, 97 words."""
    reference = make_model("Qwen3", {"hidden_size": 40, "vocab_size": 97, **HEADS[heads]}, tmp_path)
    expected = expected_logits(reference)
    for block_size in (16, 32):
        assert_near(serve(load(tmp_path, kv=kv), TEXTS, chunk=6, block_size=block_size), expected, KV_TOLERANCE[kv])


@pytest.mark.parametrize("heads", HEADS)
def test_four_bits_are_those_of_the_torch_path(heads: str, tmp_path: Path, serve: Serve) -> None:
    """The same codes, scales and minimums, of heads that are turned and of those that are not; what is left is the
    rounding of queries to int8, and codes that lie between two."""
    make_model("Qwen3", {"hidden_size": 40, "vocab_size": 97, **HEADS[heads]}, tmp_path)
    plain = load_decoder(tmp_path, torch.float32)
    expected = serve(load_decoder(tmp_path, torch.float32, torch.uint8), TEXTS, chunk=6, block_size=16)
    actual = serve(load(tmp_path, kv="int4"), TEXTS, chunk=6, block_size=16)
    assert_near(actual, expected, 0.03)
    off = sum(float((one - other).norm()) for one, other in zip(actual, expected, strict=True))
    rounding = sum(
        float((one - other).norm())
        for one, other in zip(serve(plain, TEXTS, chunk=6, block_size=16), expected, strict=True)
    )
    assert off < rounding / 2


LOOKS_BACK: dict[str, tuple[str, dict[str, Any]]] = {
    "all": ("Llama", {}),
    "little": ("Mistral", {"sliding_window": 5}),
    "over a border of chunks": ("Mistral", {"sliding_window": 300}),
    "over two": ("Mistral", {"sliding_window": 1100}),
    "in half of the layers": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 1030, "layer_types": ["full_attention", "sliding_attention"]},
    ),
}


@pytest.mark.parametrize("looks_back", LOOKS_BACK)
def test_contexts_longer_than_a_chunk_of_the_softmax(looks_back: str, tmp_path: Path, serve: Serve) -> None:
    kind, options = LOOKS_BACK[looks_back]
    reference = make_model(kind, {**LONG, **NATIVE_SIZES, **options}, tmp_path)
    texts = [random_text(length) for length in (1024, 2300, 7)]
    expected = expected_logits(reference, texts)
    for kv, block_size in (("float32", 16), ("bfloat16", 32), ("int8", 16), ("int4", 32)):
        # Two thirds as a prompt in pieces that end anywhere, the rest token by token.
        actual = serve(load(tmp_path, kv=kv), texts, chunk=413, block_size=block_size)
        assert_near(actual, expected, KV_TOLERANCE[kv])


# Of the norm of the logits: what rounding activations costs; the random weights here make it more from layer to layer.
WEIGHT_TOLERANCE = {"float32": 1e-5, "bfloat16": 0.03, "int8": 0.07, "int4": 0.07, "nf4": 0.03}


@pytest.mark.parametrize("weights", WEIGHT_TOLERANCE)
@pytest.mark.parametrize("name", ["llama-biases", "qwen3", "llama-tied"])
def test_each_format_computes_the_model_that_its_weights_are(
    weights: str, name: str, tmp_path: Path, serve: Serve
) -> None:
    """transformers with the weights as the format keeps them; what is left is the rounding of activations."""
    kind, options = LEAN[name]
    reference = make_model(kind, {**options, **NATIVE_SIZES}, tmp_path)
    actual = serve(load(tmp_path, weights=weights), TEXTS, chunk=6)
    plain = expected_logits(reference)
    is_four_bits = weights in ("int4", "nf4")
    with torch.no_grad():
        for parameter_name, parameter in reference.named_parameters():
            if parameter.ndim == 2:
                is_vocabulary = "embed_tokens" in parameter_name or "lm_head" in parameter_name
                packed = PackedWeight(
                    parameter.shape[0],
                    parameter.shape[1],
                    WeightFormat("int8" if is_vocabulary and is_four_bits else weights),
                )
                packed.fill(parameter)
                parameter.copy_(packed.rows(range(packed.num_out)))
    expected = expected_logits(reference)
    assert_near(actual, expected, WEIGHT_TOLERANCE[weights])
    if is_four_bits:
        off = sum(float((one - other).norm()) for one, other in zip(actual, plain, strict=True))
        assert off > 3 * sum(float((one - other).norm()) for one, other in zip(actual, expected, strict=True))


# Heads of multiples of 64 dimensions meet keys and values in int8 on the unit for tiles, where there is one.
KV_AND_HEADS = [*((kv, 16) for kv in KV_TOLERANCE), ("int8", 64), ("int8", 128)]


@pytest.mark.parametrize("weights", list(WeightFormat))
@pytest.mark.parametrize(("kv", "head_dim"), KV_AND_HEADS)
@pytest.mark.parametrize("window", [None, 21])
def test_a_tokens_numbers_are_the_same_in_any_company(
    weights: str, kv: str, head_dim: int, window: int | None, tmp_path: Path, serve: Serve
) -> None:
    """To the last bit: alone or in a batch, however a prompt is divided, whatever the blocks and the threads."""
    make_model("Mistral", {**NATIVE_SIZES, "head_dim": head_dim, "sliding_window": window}, tmp_path)
    texts = [*TEXTS, random_text(70)]
    together = serve(load(tmp_path, weights=weights, kv=kv, threads=1), texts, chunk=6)
    for threads, chunk, block_size in ((1, 5, 32), (2, 64, 16), (3, 17, 16)):
        model = load(tmp_path, weights=weights, kv=kv, threads=threads)
        for text, expected in zip(texts, together, strict=True):
            assert torch.equal(serve(model, [text], chunk=chunk, block_size=block_size)[0], expected)
        for actual, expected in zip(serve(model, texts[::-1], chunk=chunk), together[::-1], strict=True):
            assert torch.equal(actual, expected)


@pytest.mark.parametrize(("kv", "head_dim"), KV_AND_HEADS)
def test_long_contexts_do_not_depend_on_their_division(kv: str, head_dim: int, tmp_path: Path, serve: Serve) -> None:
    make_model("Mistral", {**LONG, **NATIVE_SIZES, "head_dim": head_dim, "sliding_window": 1050}, tmp_path)
    model = load(tmp_path, kv=kv)
    texts = [random_text(1600), random_text(9), random_text(1030)]
    expected = serve(model, texts, chunk=2000)
    for chunk in (1, 311):
        for text, logits in zip(texts, expected, strict=True):
            assert torch.equal(serve(model, [text], chunk=chunk)[0], logits)


@pytest.mark.parametrize(("kv", "head_dim"), KV_AND_HEADS)
def test_what_lies_in_a_block_from_before_does_not_matter(
    kv: str, head_dim: int, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model("Mistral", {**NATIVE_SIZES, "head_dim": head_dim, "sliding_window": 9}, tmp_path)
    model = load(tmp_path, kv=kv)
    clean = serve(model, TEXTS, chunk=6)

    def used_cache(num_blocks: int, block_size: int) -> NativeCache:
        cache = NativeCache(model.config, num_blocks, block_size, model.kv)
        for array in (*cache.keys, *cache.values):
            if kv == "float32":
                array.view(np.float32)[:] = -3e4
            elif kv == "bfloat16":
                array.view(np.uint16)[:] = 0x46EA  # some 30,000
            else:
                array[:] = 200
        for scales in cache.scales:
            scales[:] = np.nan if kv == "int8" else 3e4
        return cache

    monkeypatch.setattr(model, "new_cache", used_cache)
    for actual, expected in zip(serve(model, TEXTS, chunk=6), clean, strict=True):
        assert torch.equal(actual, expected)


# ---- adapters ----

ADAPTERS: dict[str, dict[str, Any]] = {
    "all": {"r": 4, "lora_alpha": 6, "target_modules": "all-linear"},
    "up": {"r": 19, "lora_alpha": 8, "target_modules": ["up_proj"], "use_rslora": True},  # more than a vector
    "some": {"r": 3, "lora_alpha": 8, "target_modules": ["k_proj", "gate_proj", "down_proj"]},
}
NAMES = ["all", "", "some", "up", "all"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in `base`, and beside it the adapters as PEFT saves them."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, (name, options) in enumerate(ADAPTERS.items()):
        model = make_model("Qwen2", NATIVE_SIZES, folder / "base")
        torch.manual_seed(seed)
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
        with torch.no_grad():
            for parameter_name, parameter in adapted.named_parameters():
                if "lora_" in parameter_name:
                    parameter.copy_(0.3 * torch.randn_like(parameter))
        adapted.save_pretrained(str(folder / name))
    return folder


def by_peft(base: Path, name: str) -> list[torch.Tensor]:
    model: Any = make_model("Qwen2", NATIVE_SIZES, base / "base")
    return expected_logits(PeftModel.from_pretrained(model, base / name).eval() if name else model)


def test_a_mixed_batch_has_the_logits_of_peft_for_each_adapter(base: Path, serve: Serve) -> None:
    of = {name: by_peft(base, name) for name in ("", *ADAPTERS)}
    expected = [of[name][at] for at, name in enumerate(NAMES)]
    model = load(base / "base")
    for name in ADAPTERS:
        model.load_adapter(name, base / name)
    for chunk in (6, 64):
        assert_same(serve(model, TEXTS, chunk=chunk, adapters=NAMES), expected)
    assert all((of[name][4] - of[""][4]).abs().max() > 0.1 for name in ADAPTERS), "each should change something"


@pytest.mark.parametrize("weights", list(WeightFormat))
def test_adapters_of_others_change_nothing(weights: str, base: Path, serve: Serve) -> None:
    """Not one bit of a row with another adapter or none, for weights of any format."""
    model = load(base / "base", weights=weights)
    plain = serve(model, TEXTS, chunk=6)
    for name in ADAPTERS:
        model.load_adapter(name, base / name)
    mixed = serve(model, TEXTS, chunk=6, adapters=NAMES)
    assert torch.equal(mixed[1], plain[1])
    for text, name, expected in zip(TEXTS, NAMES, mixed, strict=True):
        assert torch.equal(serve(model, [text], chunk=64, adapters=[name])[0], expected)


def test_adapters_come_and_go(base: Path, serve: Serve) -> None:
    model = load(base / "base")
    plain = serve(model, TEXTS, chunk=6)
    model.load_adapter("first", base / "some")
    info = model.load_adapter("mine", base / "all")
    assert [one.name for one in model.adapters()] == ["first", "mine"]
    assert (info.rank, info.path) == (4, str(base / "all"))
    mine = serve(model, TEXTS, chunk=6, adapters=["mine"] * len(TEXTS))
    model.unload_adapter("first")  # and the other one has its place
    for actual, expected in zip(serve(model, TEXTS, chunk=6, adapters=["mine"] * len(TEXTS)), mine, strict=True):
        assert torch.equal(actual, expected)
    model.load_adapter("mine", base / "up")
    assert not torch.allclose(serve(model, TEXTS[1:2], chunk=6, adapters=["mine"])[0], mine[1])
    model.unload_adapter("mine")
    assert model.adapters() == ()
    for call in (lambda: serve(model, TEXTS[:1], chunk=6, adapters=["mine"]), lambda: model.unload_adapter("mine")):
        with pytest.raises(NoSuchAdapter, match="mine"):
            call()
    for actual, expected in zip(serve(model, TEXTS, chunk=6), plain, strict=True):
        assert torch.equal(actual, expected)


# ---- what is refused ----


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    make_model("Llama", NATIVE_SIZES, tmp_path)
    model = load(tmp_path)
    with pytest.raises(ConfigError, match="blocks of a multiple of 16") as caught:
        model.new_cache(4, 8)
    assert "CALLBOARD_NATIVE" in caught.value.hint
    with pytest.raises(ConfigError, match="cannot be kept in nf4"):
        load(tmp_path, kv="nf4")
    batch, token_ids = RaggedBatch.build([3], [3], [[0]], 16), torch.tensor([1, 2, 3])
    with pytest.raises(ValueError, match="blocks of 32"):
        model.forward(token_ids, model.new_cache(4, 32), batch)
    with pytest.raises(ValueError, match="token ids"):
        model.forward(torch.tensor([1, 2, VOCAB]), model.new_cache(4, 16), batch)
    with pytest.raises(ValueError, match="token ids"):
        model.forward(torch.tensor([1, 2, -1]), model.new_cache(4, 16), batch)
    with pytest.raises(ValueError, match="2 adapters for 1 sequences"):
        model.forward(token_ids, model.new_cache(4, 16), batch, ["a", "b"])


def test_missing_unknown_misshapen_and_infinite_weights_are_damage(tmp_path: Path) -> None:
    reference = make_model("Llama", NATIVE_SIZES, tmp_path)
    weights = dict(reference.state_dict())
    config = load(tmp_path).config
    for complaint, candidate in broken_weights(weights).items():
        with pytest.raises(ModelDamaged, match=complaint):
            NativeDecoder(config, WeightFormat.FLOAT32, WeightFormat.FLOAT32, 1).load_weights(candidate.items())


# ---- machines without them ----

GREEDY = """
import sys
import time
from pathlib import Path
import torch
from callboard.actors.models.loading import load_decoder, load_model
from callboard.actors.models.served import ModelOptions
from callboard.kernels.ragged import RaggedBatch
model = load_model(Path(sys.argv[1]), ModelOptions(threads=1))
cache, tokens, done = model.new_cache(2, 16), [5, 4, 3], 0
with torch.inference_mode():
    while len(tokens) < 27:
        batch = RaggedBatch.build([len(tokens)], [len(tokens) - done], [[1, 0]], 16)
        hidden = model.forward(torch.tensor(tokens[done:]), cache, batch)
        done = len(tokens)
        tokens.append(int(model.logits(hidden[-1:]).argmax()))
print(model.kernels, *tokens)
"""
WHETHER = "from callboard.kernels import native; print(repr(native.unavailable()))"
COMPILED = """
from callboard.kernels import native
print("here", flush=True)
print(native._compiled(native.SOURCES / "decoder.cpp", frozenset()))
"""
IMPORTED = "print('imported', *[name for name in ('sympy', 'torch._dynamo', 'transformers') if name in sys.modules])"


def start(program: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)


def outcome(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=150)
    assert process.returncode == 0
    return out.strip()


@pytest.mark.timeout(180)  # a process that imports torch, and may be the first to compile
def test_an_engine_starts_without_torchs_compiler_and_without_transformers(native_path: Path) -> None:
    """Each takes a second or more to import, and neither is needed."""
    answer, imported = outcome(start(GREEDY + IMPORTED, str(native_path))).split("\n")
    assert answer.split()[0] == "native"
    assert imported.split() == ["imported"]


@pytest.mark.slow
@pytest.mark.timeout(180)  # processes that import torch, or compile
def test_a_machine_that_cannot_compile_them_answers_the_same(tmp_path: Path) -> None:
    make_model("Qwen3", NATIVE_SIZES, tmp_path / "model")
    (tmp_path / "nothing").mkdir()
    with_them = outcome(start(GREEDY, str(tmp_path / "model")))
    no_compiler = {"PATH": str(tmp_path / "nothing"), "CALLBOARD_CACHE_DIR": str(tmp_path / "cache")}
    for environment in (no_compiler, {"CALLBOARD_NATIVE": "0"}):
        without = outcome(start(GREEDY, str(tmp_path / "model"), **environment))
        assert without.split()[0] == "torch"
        assert ["native", *without.split()[1:]] == with_them.split()
    assert "C++ compiler" in outcome(start(WHETHER, **no_compiler))
    assert "CALLBOARD_NATIVE=0" in outcome(start(WHETHER, CALLBOARD_NATIVE="0"))


def test_a_compiler_that_fails_is_told_of(tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'line 7: error: no such thing' >&2\nexit 1\n")
    compiler.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLBOARD_CACHE_DIR": str(tmp_path / "cache")}
    assert "line 7: error: no such thing" in outcome(start(WHETHER, **environment))
    assert list((tmp_path / "cache" / "native").iterdir()) == []


def test_of_processes_that_need_them_at_once_one_compiles(tmp_path: Path) -> None:
    compiler, runs, go = tmp_path / "c++", tmp_path / "runs", tmp_path / "go"
    compiler.write_text(
        f"#!/bin/sh\n[ $1 = --version ] && exit\necho run >>{runs}\n"
        f"while [ ! -e {go} ]; do sleep 0.02; done\nwhile [ $1 != -o ]; do shift; done\ntouch $2\n"
    )
    compiler.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLBOARD_CACHE_DIR": str(tmp_path)}
    processes = [start(COMPILED, **environment) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
    while not runs.exists():
        time.sleep(0.01)
    time.sleep(0.2)  # for the other to come to it: nothing tells that it waits
    go.touch()
    assert len({outcome(process) for process in processes}) == 1
    assert runs.read_text() == "run\n"


@pytest.mark.slow
@pytest.mark.timeout(180)  # processes that import torch, or compile
def test_two_processes_that_compile_at_once_both_have_them(tmp_path: Path) -> None:
    processes = [start(WHETHER, CALLBOARD_CACHE_DIR=str(tmp_path)) for _ in range(2)]
    assert [outcome(process) for process in processes] == ["''", "''"]
    assert [file.suffix for file in (tmp_path / "native").iterdir()] == [".so"]
