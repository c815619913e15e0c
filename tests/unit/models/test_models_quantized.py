"""Weights and caches in few bits without native kernels: the same numbers as with them, in less memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import LEAN, NATIVE_SIZES, TEXTS, expected_logits, make_model
from serving import answer, serving

from callboard.actors.models.errors import UnsupportedModel
from callboard.actors.models.kv_cache import KVCache
from callboard.actors.models.llama import LlamaDecoder
from callboard.actors.models.loading import load_config, load_model, load_tokenizer
from callboard.actors.models.native_decoder import NativeDecoder
from callboard.actors.models.served import ModelOptions, ServedModel
from callboard.actors.models.transformers_model import QuantizedLinear, TransformersModel
from callboard.actors.serve.cache_size import kv_bytes
from callboard.kernels import native, ops, plain, reference
from callboard.kernels.quantized import QuantizedCache, QuantizedWeight
from callboard.kernels.ragged import RaggedBatch
from callboard.kernels.weights import NativeEngine, PackedWeight, WeightFormat
from callboard.runtime.errors import ConfigError
from callboard.schemas.serve import Generate

Serve = Callable[..., list[torch.Tensor]]

needs_native = pytest.mark.skipif(bool(native.unavailable()), reason=f"no native kernels: {native.unavailable()}")
FORMATS = [format for format in WeightFormat if format is not WeightFormat.FLOAT32]
# Of the norm of the logits, between two ways to the same rounded numbers: a value on the border of two codes may get
# the one here and the other there.
SAME = {"bfloat16": 0.02, "int8": 0.03, "int4": 0.03, "nf4": 0.02}
# Of the norm of the logits: what the format itself costs a random model.
COST = {"bfloat16": 0.05, "int8": 0.1, "int4": 0.75, "nf4": 0.75}
BITS = {"bfloat16": 16, "int8": 8.5, "int4": 5, "nf4": 4.25}


class OneLayer(NamedTuple):
    kv_shapes: tuple[tuple[int, int], ...]


def distance(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest of all texts, relative to the norm."""
    return max(float((ours - theirs).norm() / theirs.norm()) for ours, theirs in zip(actual, expected, strict=True))


def load_in_torch(path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> ServedModel:
    with monkeypatch.context() as patch:
        patch.setattr(native, "unavailable", lambda: "a test turns them off")
        return load_model(path, ModelOptions(**{"dtype": "float32", **options}))


@needs_native
@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=30)
@given(st.integers(1, 60), st.integers(1, 200), st.integers(0, 2**32))
def test_a_weight_is_what_the_native_kernels_make_of_it(
    format: WeightFormat, num_out: int, num_in: int, seed: int
) -> None:
    torch.manual_seed(seed)
    matrix = torch.randn(num_out, num_in) * torch.rand(num_out, 1)
    matrix[seed % num_out] = 0
    packed, weight = PackedWeight(num_out, num_in, format), QuantizedWeight.from_float(matrix, format)
    packed.fill(matrix)
    # To the last bit, but for sums that are rounded once there and twice here.
    torch.testing.assert_close(weight.dequantize(), packed.rows(range(num_out)), rtol=1e-6, atol=1e-7)
    x = torch.randn(5, num_in)
    slack = 1e-5 * (x.abs() @ matrix.abs().T + 1)
    assert ((ops.linear(x, weight) - NativeEngine(1).linear(x, packed)).abs() <= slack).all()


@pytest.mark.parametrize("format", FORMATS)
def test_a_product_of_slices_is_the_product(format: WeightFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    matrix, x = torch.randn(50, 70), torch.randn(2, 3, 70).bfloat16()
    weight = QuantizedWeight.from_float(matrix, format)
    whole = ops.linear(x, weight)
    assert (whole.dtype, whole.shape) == (torch.bfloat16, (2, 3, 50))
    monkeypatch.setattr("callboard.kernels.quantized.SLICE", 7 * 70)
    torch.testing.assert_close(ops.linear(x, weight), whole)
    assert torch.equal(QuantizedWeight.from_float(matrix, format).codes, weight.codes)
    assert torch.equal(weight.rows(torch.tensor([49, 0])), weight.dequantize()[[49, 0]])


def test_float32_is_no_format_of_few_bits() -> None:
    with pytest.raises(ValueError, match="float32"):
        QuantizedWeight.from_float(torch.zeros(2, 2), WeightFormat.FLOAT32)


@settings(max_examples=30)
@given(st.integers(1, 20), st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 2**32))
def test_a_cache_in_int8_is_within_half_a_step(num_tokens: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    k, v = 3 * torch.randn(2, num_tokens, 2, 16, dtype=dtype)
    k[0, 1] = 0
    slots = torch.randperm(5 * 8)[:num_tokens]
    shape = (5, 8, 2, 16)
    caches = [QuantizedCache(torch.zeros(shape, dtype=torch.int8), torch.zeros(shape[:-1])) for _ in range(4)]
    plain.write_kv(k, v, caches[0], caches[1], slots)
    reference.write_kv(k, v, caches[2], caches[3], slots)
    for here, there in ((caches[0], caches[2]), (caches[1], caches[3])):
        assert torch.equal(here.codes, there.codes)
        assert torch.equal(here.scales, there.scales)
    for x, cache in ((k, caches[0]), (v, caches[1])):
        kept = (cache.codes * cache.scales[..., None]).flatten(0, 1)[slots]
        steps = x.float().abs().amax(-1, keepdim=True) / 127
        assert ((kept - x.float()).abs() <= 0.5001 * steps).all()
        untouched = torch.ones(40, dtype=torch.bool)
        untouched[slots] = False
        assert not cache.codes.flatten(0, 1)[untouched].any()


@settings(max_examples=30)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.sampled_from(["int8", "bfloat16"]), st.integers(0, 99))
def test_attention_over_a_smaller_cache_is_that_of_the_reference(lengths: list[int], kv: str, seed: int) -> None:
    torch.manual_seed(seed)
    blocks = iter(torch.randperm(4 * 5).tolist())
    tables = [[next(blocks) for _ in range(-(-length // 8))] for length in lengths]
    batch = RaggedBatch.build(lengths, [max(1, length // 2) for length in lengths], tables, 8)
    before = RaggedBatch.build(lengths, lengths, tables, 8)
    cache = KVCache(OneLayer(((2, 16),)), 20, 8, getattr(torch, kv))
    k, v = torch.randn(2, before.num_tokens, 2, 16)
    ops.write_kv(k, v, cache.k[0], cache.v[0], before.slots)
    q = torch.randn(batch.num_tokens, 4, 16)
    actual = ops.paged_attention(q, cache.k[0], cache.v[0], batch, 0.25)
    expected = reference.paged_attention(q.double(), cache.k[0], cache.v[0], batch, 0.25)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


@needs_native
@pytest.mark.parametrize("weights", ["float32", *FORMATS])
@pytest.mark.parametrize("name", ["llama-biases", "llama-tied", "qwen3"])
def test_the_lean_decoder_has_the_logits_of_the_native_one(
    weights: str, name: str, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, options = LEAN[name]
    make_model(kind, {**options, **NATIVE_SIZES}, tmp_path)
    plain = load_in_torch(tmp_path, monkeypatch, weights=weights)
    assert isinstance(plain, LlamaDecoder)
    there = load_model(tmp_path, ModelOptions(dtype="float32", weights=weights))
    assert isinstance(there, NativeDecoder)
    assert distance(serve(plain, TEXTS, chunk=6), serve(there, TEXTS, chunk=6)) < SAME.get(weights, 1e-5)


@needs_native
@pytest.mark.parametrize("kv", ["bfloat16", "int8"])
def test_a_smaller_cache_has_the_logits_of_the_native_one(
    kv: str, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model("Mistral", {"sliding_window": 9, **NATIVE_SIZES}, tmp_path)
    plain, there = (
        load_in_torch(tmp_path, monkeypatch, kv=kv),
        load_model(tmp_path, ModelOptions(dtype="float32", kv=kv)),
    )
    # The native kernels round queries and weights of attention too.
    assert distance(serve(plain, TEXTS, chunk=6, block_size=4), serve(there, TEXTS, chunk=6)) < 0.03


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_the_lean_decoder_computes_what_it_kept(
    weights: str, dtype: str, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference_model = make_model("Qwen2", {"hidden_size": 128, "intermediate_size": 256}, tmp_path)
    model = load_in_torch(tmp_path, monkeypatch, dtype=dtype, weights=weights, kv="int8")
    assert distance(serve(model, TEXTS, chunk=6), expected_logits(reference_model)) < COST[weights] + 0.05
    together = serve(model, TEXTS, chunk=6, deterministic=True)
    assert torch.equal(serve(model, TEXTS[2:3], chunk=64, deterministic=True)[0], together[2])


IN_TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("Gemma2", {"head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 8}),  # tied
    "gpt2": ("GPT2", {"num_key_value_heads": 4}),  # matrices that lie the other way round
    "stablelm": ("StableLm", {}),
    "phi": ("Phi", {}),  # biases, in the output matrix too
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "deepseek-v3": (
        "DeepseekV3",
        {
            "num_key_value_heads": 4,
            "kv_lora_rank": 32,
            "q_lora_rank": 32,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 4,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 32,
        },
    ),
}


@pytest.mark.parametrize("name", IN_TRANSFORMERS)
@pytest.mark.parametrize("weights", FORMATS)
def test_other_families_compute_what_they_kept(weights: str, name: str, tmp_path: Path, serve: Serve) -> None:
    """Against transformers, whose linear layers have the weights that the format makes of them."""
    kind, options = IN_TRANSFORMERS[name]
    reference_model = make_model(kind, {"hidden_size": 64, "initializer_range": 0.1, **options}, tmp_path)
    # A router may choose another expert for the least that a cache loses.
    kv = "float32" if name == "mixtral" else "int8"
    model = load_model(tmp_path, ModelOptions(dtype="float32", weights=weights, kv=kv))
    assert isinstance(model, TransformersModel)
    kept = {name: one for name, one in model._modules.items() if isinstance(one, QuantizedLinear)}
    assert len(kept) >= 8
    plain = expected_logits(reference_model)
    with torch.no_grad():
        for path, layer in kept.items():
            theirs: Any = reference_model.get_submodule(path)
            matrix = layer.weight.dequantize()
            theirs.weight.copy_(matrix if theirs.weight.shape == matrix.shape and kind != "GPT2" else matrix.T)
    actual, expected = serve(model, TEXTS, chunk=6), expected_logits(reference_model)
    assert distance(actual, expected) < 0.1  # activations, keys and values in few bits
    assert 0 < distance(expected, plain) < COST[weights]


def test_weights_and_caches_are_really_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind in (("lean", "Llama"), ("other", "StableLm")):
        sizes = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 96}
        reference_model = make_model(kind, sizes, tmp_path / name)
        matrices = sum(
            one.numel() for path, one in reference_model.named_parameters() if "layers" in path and one.ndim == 2
        )
        whole = load_in_torch(tmp_path / name, monkeypatch)
        for format, bits in BITS.items():
            model = load_in_torch(tmp_path / name, monkeypatch, weights=format)
            assert whole.weight_bytes - model.weight_bytes >= matrices * (32 - bits) / 8
            assert all(one.ndim == 1 or len(one) == 96 for one in parameters(model)), "what is left are embeddings"
        values = 5 * 16 * 2 * 2 * 2 * 64  # of keys and of values, in two layers with two heads
        assert whole.new_cache(5, 16).num_bytes == 4 * values
        assert load_in_torch(tmp_path / name, monkeypatch, kv="bfloat16").new_cache(5, 16).num_bytes == 2 * values
        int8 = load_in_torch(tmp_path / name, monkeypatch, kv="int8").new_cache(5, 16)
        assert int8.num_bytes == values + 4 * values // 64


def parameters(model: Any) -> list[torch.Tensor]:
    parts = [model] if isinstance(model, LlamaDecoder) else [model._decoder, model._head]
    return [parameter for part in parts for parameter in part.parameters()]


def test_float32_weights_are_multiplied_in_float32(tmp_path: Path, serve: Serve) -> None:
    reference_model = make_model("Llama", {}, tmp_path)
    model = load_model(tmp_path, ModelOptions(dtype="bfloat16", weights="float32", kv="float32"))
    assert distance(serve(model, TEXTS, chunk=6), expected_logits(reference_model)) < 1e-5


def test_keys_and_values_in_four_bits_are_near_and_no_quantiles(tmp_path: Path, serve: Serve) -> None:
    reference_model = make_model("Llama", {}, tmp_path)
    model = load_model(tmp_path, ModelOptions(dtype="float32", kv="int4"))
    assert 1e-3 < distance(serve(model, TEXTS, chunk=6), expected_logits(reference_model)) < 0.2
    with pytest.raises(ConfigError, match="cannot be kept in nf4"):
        load_model(tmp_path, ModelOptions(dtype="float32", kv="nf4"))


def test_the_native_cache_takes_what_is_planned_for_it(native_path: Path) -> None:
    for kv in ("float32", "bfloat16", "int8", "int4"):
        model = load_model(native_path, ModelOptions(kv=kv))
        assert model.new_cache(5, 16).num_bytes == 5 * 16 * kv_bytes(load_config(native_path), kv)


def test_a_model_whose_code_wants_the_matrix_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    make_model("Olmo", {}, tmp_path)
    mlp = transformers.models.olmo.modeling_olmo.OlmoMLP
    monkeypatch.setattr(mlp, "forward", lambda self, x: x @ self.up_proj.weight.T @ self.down_proj.weight.T)
    load_model(tmp_path, ModelOptions())
    with pytest.raises(UnsupportedModel, match="cannot be quantized") as caught:
        load_model(tmp_path, ModelOptions(dtype="float32", weights="int8"))
    assert "\n" not in str(caught.value)


@torch.inference_mode()
def greedy(model: ServedModel, tokens: list[int], num_tokens: int) -> list[int]:
    cache, start, done = model.new_cache(4, 16), len(tokens), 0
    while len(tokens) < start + num_tokens:
        batch = RaggedBatch.build([len(tokens)], [len(tokens) - done], [[2, 0, 3, 1]], 16)
        hidden = model.forward(torch.tensor(tokens[done:]), cache, batch, deterministic=True)
        done = len(tokens)
        tokens = [*tokens, int(model.logits(hidden[-1:]).argmax())]
    return tokens[start:]


@pytest.mark.anyio
@pytest.mark.parametrize("weights", ["int8", "nf4"])
async def test_an_engine_serves_them(weights: str, tiny_path: Path) -> None:
    """The tiny model's heads are too small for the native kernels."""
    model = load_model(tiny_path, ModelOptions(dtype="float32", weights=weights, kv="int8"))
    assert isinstance(model, LlamaDecoder)
    ids = load_tokenizer(tiny_path).encode("tell me")
    async with serving(tiny_path, dtype="float32", weights=weights, kv_cache="int8", block_size=16) as scheduler:
        request = Generate(prompt="tell me", max_tokens=12, ignore_eos=True, deterministic=True)
        assert (await answer(scheduler, request))[0] == greedy(model, ids, 12)
