"""Every family against plain transformers: the same logits, on a tiny random model that transformers itself saved.

Sequences of several lengths share a batch, prompts come in chunks beside others that decode already, and blocks lie
in any order: logits must be those of transformers' forward pass over each whole text.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from gguf import GGUFWriter
from random_models import (
    COMMON,
    LEAN,
    NATIVE_SIZES,
    TEXTS,
    VOCAB,
    as_internlm2,
    assert_same,
    expected_logits,
    make_model,
)

from callboard.actors.models import paged_in_transformers
from callboard.actors.models.config import LlamaConfig
from callboard.actors.models.errors import UnsupportedModel
from callboard.actors.models.kv_cache import kv_bytes_per_token
from callboard.actors.models.llama import LlamaDecoder
from callboard.actors.models.loading import load_config, load_model
from callboard.actors.models.native_decoder import NativeDecoder
from callboard.actors.models.served import ModelOptions
from callboard.actors.models.transformers_model import TransformersModel
from callboard.runtime.errors import ModelDamaged

Serve = Callable[..., list[torch.Tensor]]

DECODERS: dict[str, type] = {"torch": LlamaDecoder, "native": NativeDecoder}

MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {  # values smaller than keys, and keys that every head has for itself
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 8,
    "first_k_dense_replace": 1,
}
SHARED = {  # layers that read the keys and values of earlier ones
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "head_dim": 8,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCAB,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 5,
    "altup_num_inputs": 2,
    "laurel_rank": 4,
    "activation_sparsity_pattern": [0.5, 0.0, 0.5, 0.0],
}
# One of each sort of attention and of position; the others run with the slow tests.
AT_EVERY_TURN = {"gemma2", "gpt-neox", "gpt2", "gpt-oss", "mixtral", "opt", "phi3"}
IN_TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-gelu": ("Llama", {"hidden_act": "gelu"}),
    "gemma2": ("Gemma2", {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3", {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 8}),
    "phi": ("Phi", {}),
    "phi3": ("Phi3", {"sliding_window": 6}),
    "gpt-neox": ("GPTNeoX", {"num_key_value_heads": 4}),
    "gpt2": ("GPT2", {"num_key_value_heads": 4}),
    "opt": ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32, "num_key_value_heads": 4}),
    "stablelm": ("StableLm", {}),
    "olmo2": ("Olmo2", {}),
    "granite": ("Granite", {"logits_scaling": 3.0, "attention_multiplier": 0.4, "embedding_multiplier": 2.0}),
    "cohere": ("Cohere", {"logit_scale": 0.3}),
    "gpt-oss": ("GptOss", {**MOE, "head_dim": 8, "sliding_window": 6}),
    "mixtral": ("Mixtral", {**MOE, "sliding_window": None}),
    "qwen3-moe": (
        "Qwen3Moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
    ),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0]}),
    "cohere2": ("Cohere2", {"head_dim": 8, "sliding_window": 5}),
    "exaone4": ("Exaone4", {"head_dim": 8, "sliding_window": 5}),
    "starcoder2": ("Starcoder2", {"sliding_window": 5}),
    "gpt-bigcode": ("GPTBigCode", {}),
    "deepseek-v3": ("DeepseekV3", LATENT),
    "gemma3n": ("Gemma3n", SHARED),
}


@pytest.mark.parametrize("name", LEAN)
def test_the_lean_decoder_has_the_logits_of_transformers(name: str, kernels: str, tmp_path: Path, serve: Serve) -> None:
    kind, options = LEAN[name]
    reference = make_model(kind, {**options, **(NATIVE_SIZES if kernels == "native" else {})}, tmp_path)
    model = load_model(tmp_path, ModelOptions())
    assert isinstance(model, DECODERS[kernels])
    for block_size in (16,) if kernels == "native" else (4, 16):
        assert_same(serve(model, TEXTS, chunk=6, block_size=block_size), expected_logits(reference))
        assert_same(serve(model, TEXTS, chunk=64, block_size=block_size), expected_logits(reference))


def test_sizes_that_the_native_kernels_do_not_take_are_served_all_the_same(tmp_path: Path, serve: Serve) -> None:
    for options in ({"head_dim": 12}, {"head_dim": 16, "intermediate_size": 56}):
        reference = make_model("Llama", options, tmp_path)
        model = load_model(tmp_path, ModelOptions())
        assert isinstance(model, LlamaDecoder)
        assert_same(serve(model, TEXTS, chunk=6), expected_logits(reference))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in AT_EVERY_TURN else pytest.mark.slow) for name in IN_TRANSFORMERS]
)
def test_other_families_have_the_logits_of_transformers(name: str, tmp_path: Path, serve: Serve) -> None:
    reference = make_model(*IN_TRANSFORMERS[name], tmp_path)
    model = load_model(tmp_path, ModelOptions())
    assert isinstance(model, TransformersModel)
    assert load_config(tmp_path).kv_shapes == model.kv_shapes
    for block_size in (4, 16):
        assert_same(serve(model, TEXTS, chunk=6, block_size=block_size), expected_logits(reference))
        assert_same(serve(model, TEXTS, chunk=64, block_size=block_size), expected_logits(reference))


@pytest.mark.parametrize("name", ["qwen3-biases", "mistral"])
def test_bfloat16_stays_near_float32(name: str, kernels: str, tmp_path: Path, serve: Serve) -> None:
    kind, options = LEAN[name]
    reference = make_model(kind, {**options, **NATIVE_SIZES}, tmp_path)
    model = load_model(tmp_path, ModelOptions(dtype="bfloat16"))
    assert isinstance(model, DECODERS[kernels])
    assert model.dtype == (torch.bfloat16 if kernels == "torch" else torch.float32)  # of what lies between products
    for ours, theirs in zip(serve(model, TEXTS, chunk=6), expected_logits(reference), strict=True):
        assert (ours - theirs).norm() < 0.05 * theirs.norm()


def test_bfloat16_in_transformers_stays_near_float32(tmp_path: Path, serve: Serve) -> None:
    reference = make_model(*IN_TRANSFORMERS["gemma2"], tmp_path)
    model = load_model(tmp_path, ModelOptions(dtype="bfloat16"))
    for ours, theirs in zip(serve(model, TEXTS, chunk=6), expected_logits(reference), strict=True):
        assert (ours - theirs).norm() < 0.05 * theirs.norm()


@pytest.mark.parametrize("kind", [LEAN["qwen3"], LEAN["mistral"], IN_TRANSFORMERS["mixtral"]])
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_deterministic_numbers_do_not_depend_on_the_batch(
    kind: tuple[str, dict[str, Any]], dtype: str, kernels: str, tmp_path: Path, serve: Serve
) -> None:
    make_model(kind[0], {**kind[1], **NATIVE_SIZES}, tmp_path)
    model = load_model(tmp_path, ModelOptions(dtype=dtype))
    assert model.kernels == ("transformers" if kind[0] == "Mixtral" else kernels)
    together = serve(model, TEXTS, chunk=6, deterministic=True)
    for text, logits in zip(TEXTS, together, strict=True):
        assert torch.equal(serve(model, [text], chunk=64, deterministic=True)[0], logits)


def test_what_a_model_says_of_itself(tmp_path: Path) -> None:
    for at, (kind, options) in enumerate((LEAN["llama-tied"], IN_TRANSFORMERS["gemma2"])):
        reference = make_model(kind, options, tmp_path / str(at))
        model, config = load_model(tmp_path / str(at), ModelOptions()), load_config(tmp_path / str(at))
        assert model.kernels == ("torch", "transformers")[at]
        assert (model.vocab_size, model.hidden_size, model.context_length) == (VOCAB, 32, 128)
        assert (config.vocab_size, config.context_length, config.num_layers) == (VOCAB, 128, 2)
        assert model.weight_bytes == sum(weight.nbytes for weight in reference.parameters())
        cache = model.new_cache(5, 16)
        assert (cache.num_blocks, cache.block_size) == (5, 16)
        assert cache.num_bytes == 5 * 16 * kv_bytes_per_token(config, model.dtype)


@pytest.mark.parametrize("bias", [False, True])
def test_internlm2_is_read_in_its_own_layout(bias: bool, kernels: str, tmp_path: Path, serve: Serve) -> None:
    sizes = NATIVE_SIZES if kernels == "native" else {"head_dim": 8}
    reference = make_model("Llama", {"attention_bias": bias, **sizes}, tmp_path)
    as_internlm2(tmp_path, head_dim=sizes["head_dim"])
    model = load_model(tmp_path, ModelOptions())
    assert isinstance(model, DECODERS[kernels])
    assert_same(serve(model, TEXTS, chunk=6), expected_logits(reference))


def test_internlm3_has_its_own_names_for_biases(kernels: str, tmp_path: Path, serve: Serve) -> None:
    sizes = NATIVE_SIZES if kernels == "native" else {}
    reference = make_model("Llama", {"attention_bias": True, "mlp_bias": True, **sizes}, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["attention_bias"], config["mlp_bias"]
    config |= {"model_type": "internlm3", "bias": True, "qkv_bias": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = load_model(tmp_path, ModelOptions())
    assert isinstance(model, DECODERS[kernels])
    assert_same(serve(model, TEXTS, chunk=6), expected_logits(reference))


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attn_output",
    "self_attn.": "attn_",
    "_proj": "",
    "mlp.": "ffn_",
}


def write_gguf(reference: Any, path: Path, architecture: str, rope_factors: torch.Tensor | None = None) -> Path:
    """A model of transformers as llama.cpp's converter writes it, for an architecture whose rows it leaves in order
    (`llama` itself: with heads of size 2, whose order is the same either way)."""
    config = reference.config
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    for name, tensor in reference.state_dict().items():
        for theirs, ours in GGUF_NAMES.items():
            name = name.replace(theirs, ours)
        if architecture == "llama" and (".attn_q." in name or ".attn_k." in name):
            heads = tensor.unflatten(0, (-1, 2, config.head_dim // 2))
            tensor = heads.transpose(1, 2).flatten(0, 2)
        writer.add_tensor(name, tensor.detach().float().numpy())
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama", "llama-biases"])
def test_gguf_files_of_other_families(name: str, kernels: str, tmp_path: Path, serve: Serve) -> None:
    kind, options = LEAN[name]
    reference = make_model(kind, {**options, **(NATIVE_SIZES if kernels == "native" else {})}, tmp_path)
    path = write_gguf(reference, tmp_path / "model.gguf", name.split("-")[0])
    model = load_model(path, ModelOptions())
    assert isinstance(model, DECODERS[kernels])
    assert_same(serve(model, TEXTS, chunk=6), expected_logits(reference))


def test_gguf_files_bring_the_rotary_factors_of_llama3(tmp_path: Path, serve: Serve) -> None:
    reference = make_model(*LEAN["llama-rope-llama3"], tmp_path)
    plain = 1.0 / 10000.0 ** (torch.arange(0, 8, 2).float() / 8)
    factors = plain / reference.model.rotary_emb.inv_freq
    assert factors.max() > 2, "something should be stretched"
    path = write_gguf(reference, tmp_path / "model.gguf", "llama", factors)
    assert_same(serve(load_model(path, ModelOptions()), TEXTS, chunk=6), expected_logits(reference))


@pytest.mark.parametrize("name", ["falcon", "bloom", "mamba", "gpt-neo", "bert"])
def test_models_whose_attention_cannot_be_replaced_are_refused(name: str, tmp_path: Path) -> None:
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "falcon": ("Falcon", {"num_kv_heads": 4}),
        "bloom": ("Bloom", {"n_head": 4}),
        "mamba": ("Mamba", {"state_size": 4}),
        "bert": ("Bert", {"is_decoder": False}),
        "gpt-neo": ("GPTNeo", {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4}),
    }
    make_model(*kinds[name], tmp_path)
    with pytest.raises(UnsupportedModel) as caught:
        load_model(tmp_path, ModelOptions())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_whose_layers_exchange_more_than_attention_is_refused(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer that looks at its neighbour's values as well: right for a whole text, wrong for pieces of several."""
    make_model("Olmo", {}, tmp_path)
    load_model(tmp_path, ModelOptions(dtype=dtype))
    mlp = transformers.models.olmo.modeling_olmo.OlmoMLP
    alone = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda self, x: alone(self, x) + x.roll(1, dims=1))
    with pytest.raises(UnsupportedModel, match="exchange more than keys and values"):
        load_model(tmp_path, ModelOptions(dtype=dtype))


def test_a_window_that_does_not_reach_the_attention_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows are mostly longer than the texts that a model is tried on."""
    make_model(*IN_TRANSFORMERS["exaone4"], tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "sliding_attention" in config["layer_types"]
    (tmp_path / "config.json").write_text(json.dumps({**config, "sliding_window": 64}))
    load_model(tmp_path, ModelOptions())
    attention = paged_in_transformers.paged_attention
    forgets = functools.partial(_without_window, attention)
    monkeypatch.setattr(paged_in_transformers, "paged_attention", forgets)
    with pytest.raises(UnsupportedModel, match="how far back"):
        load_model(tmp_path, ModelOptions())


def _without_window(attention: Callable[..., Any], *args: Any, sliding_window: int | None = None, **others: Any) -> Any:
    return attention(*args, **others)


def test_encoders_and_unknown_families_are_refused(tmp_path: Path) -> None:
    for family in ("t5", "no-such-family", None):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
        for load in (load_config, lambda path: load_model(path, ModelOptions())):
            with pytest.raises((UnsupportedModel, ModelDamaged)):
                load(tmp_path)


@pytest.mark.parametrize(
    "change", [{}, {"use_sliding_window": False}, {"max_window_layers": 0}, {"sliding_window": None}]
)
def test_layers_that_look_back_less_are_those_of_transformers(change: dict[str, Any]) -> None:
    """Older files have no list of layers, only from where on windows apply."""
    raw = {**COMMON, "num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 3}
    raw = {**raw, "rms_norm_eps": 1e-6, **change}
    theirs = transformers.Qwen2Config(**raw)
    ours = LlamaConfig.from_hf({"model_type": "qwen2", **raw})
    assert theirs.layer_types is not None
    assert [ours.window(layer) for layer in range(4)] == [
        theirs.sliding_window if kind == "sliding_attention" else 0 for kind in theirs.layer_types
    ]
