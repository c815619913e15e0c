"""LoRA adapters against PEFT's own model: each sequence of a batch has its adapter's logits, or the base model's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from peft_adapters import save_adapter
from safetensors.torch import load_file, save_file

from callboard.actors.models.errors import NoSuchAdapter, UnsupportedModel
from callboard.actors.models.llama import LlamaDecoder
from callboard.actors.models.loading import load_model
from callboard.actors.models.served import ModelOptions, ServedModel
from callboard.actors.models.transformers_model import TransformersModel
from callboard.kernels import ops, reference
from callboard.runtime.errors import ModelDamaged, NoSuchModel

# What PEFT itself calls of transformers.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

Serve = Callable[..., list[torch.Tensor]]

ADAPTERS: dict[str, dict[str, Any]] = {
    "all": {"r": 4, "lora_alpha": 6, "target_modules": "all-linear"},
    "some": {"r": 3, "lora_alpha": 8, "target_modules": ["k_proj", "up_proj"], "use_rslora": True},
    "patterns": {
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "v_proj", "o_proj", "down_proj"],
        "rank_pattern": {"v_proj": 5, "layers.1.self_attn.q_proj": 1},
        "alpha_pattern": {r"layers\.0\..*o_proj": 16, "down_proj": 1},
        "layers_to_transform": None,
    },
}
TEXTS = [
    torch.randint(3, 96, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in (12, 1, 7, 20, 9, 5)
]
NAMES = ["all", "", "all", "some", "patterns", "all"]


def save_base(kind: str, folder: Path) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        pad_token_id=0,
    )
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    model.save_pretrained(folder)
    return model


@torch.inference_mode()
def by_peft(base: Path, adapter: Path | None, text: list[int]) -> torch.Tensor:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    return model.eval()(input_ids=torch.tensor([text]), use_cache=False).logits[0]


@pytest.fixture(scope="module", params=["Llama", "StableLm"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model for the lean decoder, one that runs in transformers."""
    folder = tmp_path_factory.mktemp(request.param)
    save_base(request.param, folder / "base")
    for name, options in ADAPTERS.items():
        save_adapter(folder / "base", folder / name, options, seed=len(name))
    return folder


def load(base: Path) -> ServedModel:
    model = load_model(base / "base", ModelOptions())
    assert isinstance(model, LlamaDecoder if "Llama" in base.name else TransformersModel)
    return model


def test_a_mixed_batch_has_the_logits_of_peft_for_each_adapter(base: Path, serve: Serve) -> None:
    model = load(base)
    for name in ADAPTERS:
        model.load_adapter(name, base / name)
    expected = [
        by_peft(base / "base", base / name if name else None, text) for name, text in zip(NAMES, TEXTS, strict=True)
    ]
    for chunk in (3, 32):
        for ours, theirs in zip(serve(model, TEXTS, chunk=chunk, adapters=NAMES), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    plain = by_peft(base / "base", None, TEXTS[0])
    assert (expected[0] - plain).abs().max() > 0.1, "the adapters should change something"


def test_adapters_come_and_go_while_others_serve(base: Path, serve: Serve) -> None:
    model = load(base)
    before = serve(model, TEXTS, chunk=8)
    assert model.adapters() == ()
    info = model.load_adapter("mine", base / "all")
    assert model.adapters() == (info,)
    assert (info.name, info.path, info.rank) == ("mine", str(base / "all"), 4)
    weights = load_file(base / "all" / "adapter_model.safetensors")
    assert info.num_bytes >= sum(tensor.nbytes for tensor in weights.values())
    adapted = serve(model, TEXTS[:1], chunk=8, adapters=["mine"])[0]
    model.load_adapter("mine", base / "some")  # another one under the same name
    assert not torch.allclose(serve(model, TEXTS[:1], chunk=8, adapters=["mine"])[0], adapted)
    model.unload_adapter("mine")
    assert model.adapters() == ()
    with pytest.raises(NoSuchAdapter, match="mine"):
        serve(model, TEXTS[:1], chunk=8, adapters=["mine"])
    with pytest.raises(NoSuchAdapter):
        model.unload_adapter("mine")
    for ours, theirs in zip(serve(model, TEXTS, chunk=8), before, strict=True):
        assert torch.equal(ours, theirs)


def test_what_is_no_plain_low_rank_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    model = load(base)
    refused: dict[str, dict[str, Any]] = {
        "use_dora": {"use_dora": True},
        "biases": {"bias": "lora_only"},
        "modules_to_save": {"modules_to_save": ["lm_head"]},
        "peft_type": {"peft_type": "IA3"},
        "pissa": {"init_lora_weights": "pissa_niter_4"},
        "target_parameters": {"target_parameters": ["mlp.experts.gate_up_proj"]},
    }
    config = json.loads((base / "all" / "adapter_config.json").read_text())
    weights = (base / "all" / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").write_bytes(weights)
    for what, change in refused.items():
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UnsupportedModel) as caught:
            model.load_adapter("x", tmp_path)
        assert str(tmp_path) in str(caught.value), what
    assert model.adapters() == ()


def test_an_adapter_that_does_not_fit_is_damage_or_unsupported(base: Path, tmp_path: Path) -> None:
    model = load(base)
    config = json.loads((base / "some" / "adapter_config.json").read_text())
    weights = load_file(base / "some" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.self_attn.k_proj.lora_{}.weight"
    a, b = weights[name.format("A")], weights[name.format("B")]

    def broken(change: dict[str, Any], config_change: dict[str, Any] | None = None) -> Path:
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **(config_change or {})}))
        kept = {key: tensor.clone() for key, tensor in {**weights, **change}.items() if tensor is not None}
        save_file(kept, tmp_path / "adapter_model.safetensors")
        return tmp_path

    with pytest.raises(ModelDamaged, match="does not fit"):
        model.load_adapter("x", broken({name.format("A"): a[:, :-1]}))
    with pytest.raises(ModelDamaged, match="does not fit"):
        model.load_adapter("x", broken({name.format("B"): b[:-1]}))
    with pytest.raises(ModelDamaged, match="rank"):
        model.load_adapter("x", broken({name.format("B"): b[:, :-1]}))
    with pytest.raises(ModelDamaged, match="rank"):
        model.load_adapter("x", broken({}, {"r": 7}))
    with pytest.raises(ModelDamaged, match="only lora_A"):
        model.load_adapter("x", broken({name.format("B"): None}))
    with pytest.raises(ModelDamaged, match="finite"):
        model.load_adapter("x", broken({name.format("A"): a * float("nan")}))
    with pytest.raises(ModelDamaged, match="lora_alpha"):
        model.load_adapter("x", broken({}, {"lora_alpha": "much"}))
    odd = {f"base_model.model.model.norm.lora_{half}.weight": tensor for half, tensor in (("A", a), ("B", b))}
    with pytest.raises(UnsupportedModel, match=r"model\.norm"):
        model.load_adapter("x", broken(odd))
    with pytest.raises(UnsupportedModel, match="no low-rank product"):
        model.load_adapter("x", broken({"base_model.model.lm_head.weight": a}))
    path = broken({})
    whole = (path / "adapter_model.safetensors").read_bytes()
    (path / "adapter_model.safetensors").write_bytes(whole[:-5])
    with pytest.raises(ModelDamaged, match="damaged"):
        model.load_adapter("x", path)
    (path / "adapter_config.json").write_text("{")
    with pytest.raises(ModelDamaged, match="adapter_config"):
        model.load_adapter("x", path)
    with pytest.raises(NoSuchModel, match="no adapter"):
        model.load_adapter("x", tmp_path / "none")
    assert model.adapters() == ()


@settings(max_examples=40)
@given(st.integers(1, 12), st.booleans(), st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 2**32))
def test_the_op_adds_to_the_named_rows_only(num_tokens: int, as_slice: bool, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    y, x = torch.randn(num_tokens, 10, dtype=dtype), torch.randn(num_tokens, 6, dtype=dtype)
    a, b = torch.randn(3, 6, dtype=dtype), torch.randn(10, 3, dtype=dtype)
    chosen = torch.randperm(num_tokens)[: num_tokens // 2]
    rows = slice(num_tokens // 3, num_tokens) if as_slice else chosen
    actual, expected = y.clone(), y.double()
    ops.lora(actual, x, a, b, rows)
    reference.lora(expected, x.double(), a.double(), b.double(), rows)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)
    untouched = torch.ones(num_tokens, dtype=torch.bool)
    untouched[rows] = False
    assert torch.equal(actual[untouched], y[untouched])
