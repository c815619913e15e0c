"""Folders whose weights are quantized already load with the codes that they have, on all three decoders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from quantized_folders import (
    CONFIGS,
    FOUR_BITS,
    as_native,
    compressed,
    gptq_parts,
    round_inputs,
    round_inputs_of_int8,
    write_folder,
)
from random_models import TEXTS, assert_same, expected_logits, internlm2_name, make_model
from safetensors.torch import load_file, save_file

from callboard.actors.models.errors import UnsupportedModel
from callboard.actors.models.formats import resolve, stored_format
from callboard.actors.models.llama import PRODUCTS, LlamaDecoder
from callboard.actors.models.loading import load_config, load_model
from callboard.actors.models.matrices import Apart, place
from callboard.actors.models.native_decoder import NativeDecoder, interleave
from callboard.actors.models.served import ModelOptions, ServedModel
from callboard.actors.models.transformers_model import QuantizedLinear, TransformersModel
from callboard.kernels import checkpoint_formats, native
from callboard.kernels.channels import ChannelInt8
from callboard.kernels.gpu import launch
from callboard.kernels.grouped import GroupedInt4
from callboard.kernels.planar import PlanarInt4
from callboard.kernels.quantized import QuantizedWeight
from callboard.kernels.weights import WeightFormat
from callboard.runtime.errors import ModelDamaged

Serve = Callable[..., list[torch.Tensor]]

needs_native = pytest.mark.skipif(bool(native.unavailable()), reason=f"no native kernels: {native.unavailable()}")
STABLELM: dict[str, Any] = {"kind": "StableLm"}
NAME = "model.layers.1.mlp.up_proj"
# Of the norm of the logits, between two ways to the same rounded numbers: an input on the border of two codes may get
# the one here and the other there.
SAME = 0.03
# What rounding inputs to int8 costs such a model, and the vocabulary.
COST = 0.12


def load(folder: Path, monkeypatch: pytest.MonkeyPatch, layout: str, **options: Any) -> ServedModel:
    """On torch, in float32, with matrices as they are kept."""
    weights = "int4" if layout in FOUR_BITS else "int8"
    with monkeypatch.context() as patch:
        patch.setattr(native, "unavailable", lambda: "a test turns them off")
        return load_model(folder, ModelOptions(**{"dtype": "float32", "weights": weights, **options}))


def as_computed(model: Any, layout: str) -> Any:
    """The model of transformers with inputs rounded as products of this layout round them."""
    if layout in FOUR_BITS:
        return model
    return round_inputs(model) if layout == "int" else round_inputs_of_int8(model)


def agree(actual: list[torch.Tensor], expected: list[torch.Tensor], layout: str) -> None:
    if layout in FOUR_BITS:
        assert_same(actual, expected, 5e-4)
    else:
        assert distance(actual, expected) < SAME


def distance(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    return max(float((ours - theirs).norm() / theirs.norm()) for ours, theirs in zip(actual, expected, strict=True))


@pytest.mark.parametrize("layout", CONFIGS)
def test_the_lean_decoder_computes_what_the_codes_say(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    model = write_folder(tmp_path, layout)
    decoder = load(tmp_path, monkeypatch, layout)
    assert isinstance(decoder, LlamaDecoder)
    kind = {"int": ChannelInt8, "naive": QuantizedWeight}.get(layout, GroupedInt4)
    for layer in decoder.layers:
        assert all(isinstance(getattr(layer, name), kind) for name in PRODUCTS)
    agree(serve(decoder, TEXTS, chunk=5), expected_logits(as_computed(model, layout)), layout)


@needs_native
@pytest.mark.parametrize("layout", CONFIGS)
def test_the_native_decoder_keeps_the_codes(layout: str, tmp_path: Path, serve: Serve) -> None:
    model = write_folder(tmp_path, layout)
    decoder = load_model(tmp_path, ModelOptions(kv="float32"))
    assert isinstance(decoder, NativeDecoder)
    for index, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        fused = {
            "qkv": torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]),
            "o": attention.o_proj.weight,
            "gate_up": torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
            "down": mlp.down_proj.weight,
        }
        for name, expected in fused.items():
            packed = decoder._layers[index].products[name]
            places = torch.arange(packed.num_out)
            if name == "gate_up":
                places = interleave(places, packed.num_out // 2)
            assert packed.format is (WeightFormat.INT4 if layout in FOUR_BITS else WeightFormat.INT8)
            # Scales and codes are the same; the minimum of a group of four bits is rounded to half.
            error = (packed.rows(places) - expected.detach()).abs()
            assert (error <= expected.abs().max() * (2**-11 if layout in FOUR_BITS else 1e-6)).all()
    assert distance(serve(decoder, TEXTS, chunk=5), expected_logits(as_native(model, layout))) < SAME


@pytest.mark.parametrize("layout", ["awq", "gptq_act_order", "pack_zeros", "int", "naive"])
def test_other_families_compute_what_the_codes_say(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    model = write_folder(tmp_path, layout, **STABLELM)
    served = load(tmp_path, monkeypatch, layout)
    assert isinstance(served, TransformersModel)
    kept = [name for name, module in served._modules.items() if isinstance(module, QuantizedLinear)]
    assert len(kept) == 2 * 7
    assert served.weight_bytes < 0.6 * sum(parameter.nbytes for parameter in model.parameters())
    agree(serve(served, TEXTS, chunk=5), expected_logits(as_computed(model, layout)), layout)


def test_a_linear_layer_that_lies_the_other_way_round_is_turned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    """GPT-2's matrices are [num_in, num_out], and in quantized files [num_out, num_in] as everywhere."""
    model = make_model("GPT2", {"n_embd": 32, "n_head": 2, "n_layer": 1, "n_positions": 64}, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "transformer.h.0.attn.c_proj"  # square: nothing but its numbers tells the two apart
    codes = torch.randint(0, 256, (32, 16), dtype=torch.uint8)
    matrix = GroupedInt4(codes, torch.rand(32, 1).half() / 20, torch.randint(1, 16, (32, 1)).half())
    del tensors[f"{name}.weight"]
    tensors |= {f"{name}.{part}": tensor for part, tensor in gptq_parts(matrix, 1).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": CONFIGS["gptq"]}))
    model.transformer.h[0].attn.c_proj.weight.data = matrix.dequantize().T
    served = load(tmp_path, monkeypatch, "gptq")
    assert_same(serve(served, TEXTS, chunk=5), expected_logits(model), 5e-4)


def test_products_whose_inputs_have_several_orders_are_kept_apart(tmp_path: Path, kernels: str, serve: Serve) -> None:
    model = write_folder(tmp_path, "gptq_act_order", one_order=False)
    decoder = load_model(tmp_path, ModelOptions(dtype="float32", weights="int4", kv="float32"))
    if isinstance(decoder, LlamaDecoder):
        assert isinstance(decoder.layers[0].qkv, Apart)
        assert isinstance(decoder.layers[0].down, GroupedInt4)
        assert_same(serve(decoder, TEXTS, chunk=5), expected_logits(model), 2e-4)
    else:
        assert isinstance(decoder, NativeDecoder)
        formats = [decoder._layers[0].products[name].format for name in PRODUCTS]
        assert formats == ["bfloat16", "int4", "bfloat16", "int4"]
        assert distance(serve(decoder, TEXTS, chunk=5), expected_logits(model)) < COST


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("family", [{}, STABLELM], ids=["lean", "transformers"])
def test_an_adapter_adds_to_what_the_codes_say(
    family: dict[str, Any], tmp_path: Path, kernels: str, serve: Serve
) -> None:
    """Its matrices take the inputs in their own order, whatever the order of a matrix's columns."""
    base = tmp_path / "base"
    model = write_folder(base, "gptq_act_order", **family)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=3, target_modules="all-linear"))
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(0.2 * torch.randn_like(parameter))
    adapted.save_pretrained(str(tmp_path / "adapter"))
    served = load_model(base, ModelOptions(dtype="float32", weights="int4", kv="float32"))
    served.load_adapter("mine", tmp_path / "adapter")
    actual = serve(served, TEXTS, chunk=5, adapters=["mine"] * len(TEXTS))
    if isinstance(served, NativeDecoder):
        assert distance(actual, expected_logits(adapted)) < COST
    else:
        assert_same(actual, expected_logits(adapted), 1e-3)


def test_a_layer_that_was_left_out_stays_as_it_is(tmp_path: Path, kernels: str, serve: Serve) -> None:
    model = write_folder(tmp_path, "awq", skip=("lm_head", "v_proj", "down_proj"), options={"attention_bias": True})
    decoder = load_model(tmp_path, ModelOptions(dtype="float32", weights="int4", kv="float32"))
    if isinstance(decoder, LlamaDecoder):
        assert isinstance(decoder.layers[0].qkv, Apart)
        assert isinstance(decoder.layers[0].down, torch.nn.Parameter)
        assert_same(serve(decoder, TEXTS, chunk=5), expected_logits(model), 2e-4)
    else:
        assert distance(serve(decoder, TEXTS, chunk=5), expected_logits(model)) < COST


def test_a_fused_projection_is_divided_by_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    model = write_folder(tmp_path, "pack_zeros", options={"attention_bias": False})
    config = json.loads((tmp_path / "config.json").read_text())
    tensors = load_file(tmp_path / "model.safetensors")
    # The fused projection's zero points are packed by its own rows, so it is made anew from its parts.
    for layer in range(2):
        stem = f"model.layers.{layer}.self_attn"
        matrices: list[GroupedInt4] = []
        for letter in "qkv":
            parts = {name: tensors.pop(f"{stem}.{letter}_proj.{name}") for name in _PACKED}
            packed, scale, zeros, shape = (parts[name] for name in _PACKED)
            matrices.append(checkpoint_formats.from_compressed_int4(packed, scale, zeros, None, shape, False))
        rows: list[tuple[int, slice]] = []
        for head in range(2):
            rows.append((0, slice(head * 32, head * 32 + 32)))
            rows += [(which, slice(head * 16, head * 16 + 16)) for which in (1, 2)]
        codes, scales, zeros = (
            torch.cat([getattr(matrices[which], part)[where] for which, where in rows])
            for part in ("codes", "scales", "zeros")
        )
        fused = GroupedInt4(codes, scales, zeros)
        made = checkpoint_formats.to_compressed_int4(fused)
        tensors |= {f"model.layers.{layer}.attention.wqkv.{name}": tensor for name, tensor in made.items()}
    save_file({internlm2_name(name): tensor for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    config |= {"model_type": "internlm2", "bias": False, "attention_bias": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    decoder = load(tmp_path, monkeypatch, "pack_zeros")
    assert isinstance(decoder, LlamaDecoder)
    assert isinstance(decoder.layers[0].qkv, GroupedInt4)
    assert_same(serve(decoder, TEXTS, chunk=5), expected_logits(model), 2e-4)


_PACKED = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")


def test_parts_of_a_matrix_may_lie_in_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    model = write_folder(tmp_path, "gptq")
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    places: dict[str, str] = {}
    for number in range(3):
        names = sorted(tensors)[number::3]
        save_file({name: tensors[name] for name in names}, tmp_path / f"model-{number}.safetensors")
        places |= dict.fromkeys(names, f"model-{number}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert_same(serve(load(tmp_path, monkeypatch, "gptq"), TEXTS, chunk=5), expected_logits(model), 2e-4)


def test_another_format_makes_numbers_of_the_codes_first(tmp_path: Path, kernels: str, serve: Serve) -> None:
    model = write_folder(tmp_path, "awq")
    decoder = load_model(tmp_path, ModelOptions(dtype="float32"))
    assert_same(serve(decoder, TEXTS, chunk=5), expected_logits(model), 2e-4)
    eight = load_model(tmp_path, ModelOptions(dtype="float32", weights="int8"))
    assert 0 < distance(serve(eight, TEXTS, chunk=5), expected_logits(model)) < 0.1
    if isinstance(eight, LlamaDecoder):
        assert isinstance(eight.layers[0].qkv, QuantizedWeight)


@pytest.mark.parametrize(("layout", "stored"), [("awq", "int4"), ("gptq", "int4"), ("pack", "int4"), ("int", "int8")])
def test_where_nothing_is_said_weights_stay_as_the_file_has_them(
    layout: str, stored: str, tmp_path: Path, kernels: str
) -> None:
    write_folder(tmp_path, layout)
    assert stored_format(tmp_path) == stored
    options = resolve(tmp_path, ModelOptions())
    assert (options.weights, options.dtype) == (stored, "bfloat16")
    # What else says how many bits are computed in says it of these, too.
    assert resolve(tmp_path, ModelOptions(dtype="float32")).weights == "float32"


def test_keys_and_values_are_kept_as_the_file_means_them_to_be(tmp_path: Path, kernels: str) -> None:
    write_folder(tmp_path, "pack")
    config = json.loads((tmp_path / "config.json").read_text())
    scheme = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
    config["quantization_config"]["kv_cache_scheme"] = scheme
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert resolve(tmp_path, ModelOptions()).kv == "int8"
    assert resolve(tmp_path, ModelOptions(kv="bfloat16")).kv == "bfloat16"
    assert resolve(tmp_path, ModelOptions(dtype="bfloat16")).kv == "bfloat16"


def test_an_older_gptq_folder_has_its_settings_beside_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    model = write_folder(tmp_path, "gptq")
    config = json.loads((tmp_path / "config.json").read_text())
    settings = config.pop("quantization_config")
    del settings["quant_method"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "quantize_config.json").write_text(json.dumps(settings))
    assert_same(serve(load(tmp_path, monkeypatch, "gptq"), TEXTS, chunk=5), expected_logits(model), 2e-4)


def test_matrices_are_laid_out_for_a_card_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repacking is plain torch, so a CPU can stand in for the card."""
    monkeypatch.setattr(launch, "unavailable", lambda device: "")

    def model(group: int) -> torch.nn.Module:
        one = torch.nn.Module()
        codes = torch.randint(0, 256, (8, 32), dtype=torch.uint8)
        one.head = GroupedInt4(codes, torch.rand(8, 64 // group), torch.full((8, 64 // group), 7.0))
        return one

    fits = model(32)
    before = fits.head.dequantize()  # pyright: ignore[reportCallIssue]
    place(fits, torch.device("cpu"))
    assert isinstance(fits.head, PlanarInt4)
    torch.testing.assert_close(fits.head.rows(0, 8), before)  # a product and a sum in another order
    with pytest.raises(UnsupportedModel, match="groups of 8"):
        place(model(8), torch.device("cpu"))


def damaged(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("family", [{}, STABLELM], ids=["lean", "transformers"])
@pytest.mark.parametrize(
    ("layout", "part"),
    [
        ("awq", "scales"),
        ("gptq", "qzeros"),
        ("pack", "weight_shape"),
        ("int", "weight"),
    ],
)
def test_a_part_that_is_missing_is_named(family: dict[str, Any], layout: str, part: str, tmp_path: Path) -> None:
    write_folder(tmp_path, layout, **family)
    damaged(tmp_path, lambda tensors: tensors.__delitem__(f"{NAME}.{part}"))
    with pytest.raises(ModelDamaged, match=rf"{NAME}\.{part}' is missing"):
        load_model(tmp_path, ModelOptions())


@pytest.mark.parametrize("family", [{}, STABLELM], ids=["lean", "transformers"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("layout", "part"), [("awq", "scales"), ("gptq", "scales"), ("pack", "weight_scale")])
def test_scales_that_are_no_numbers_are_damage(
    family: dict[str, Any], value: float, layout: str, part: str, tmp_path: Path
) -> None:
    write_folder(tmp_path, layout, **family)
    damaged(tmp_path, lambda tensors: tensors[f"{NAME}.{part}"].__setitem__((0, 0), value))
    with pytest.raises(ModelDamaged, match=NAME) as caught:
        load_model(tmp_path, ModelOptions())
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", [{}, STABLELM], ids=["lean", "transformers"])
@pytest.mark.parametrize(
    ("layout", "part"), [("awq", "qweight"), ("gptq", "scales"), ("pack", "weight_packed"), ("int", "weight_scale")]
)
def test_a_part_of_another_shape_is_damage(family: dict[str, Any], layout: str, part: str, tmp_path: Path) -> None:
    write_folder(tmp_path, layout, **family)

    def cut(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{NAME}.{part}"] = tensors[f"{NAME}.{part}"][:-8].clone()

    damaged(tmp_path, cut)
    with pytest.raises(ModelDamaged, match=NAME) as caught:
        load_model(tmp_path, ModelOptions())
    assert "\n" not in str(caught.value)


def test_a_matrix_of_another_size_than_the_decoder_is_damage(tmp_path: Path) -> None:
    write_folder(tmp_path, "awq")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    with pytest.raises(ModelDamaged, match=r"mlp.*shape"):
        load_model(tmp_path, ModelOptions())


def test_tensors_that_belong_to_nothing_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, "awq")
    damaged(tmp_path, lambda tensors: tensors.update({"model.extra.scales": torch.ones(3)}))
    with pytest.raises(ModelDamaged, match=r"model\.extra\.scales"):
        load_model(tmp_path, ModelOptions())
    damaged(tmp_path, lambda tensors: tensors.update({"model.extra.scales": torch.ones(3, dtype=torch.int32)}))
    with pytest.raises(UnsupportedModel, match=r"model\.extra\.scales.*int32"):
        load_model(tmp_path, ModelOptions())


def test_a_folder_that_says_it_is_quantized_and_is_not_says_so(tmp_path: Path) -> None:
    write_folder(tmp_path, "awq", skip=("lm_head", "proj"))
    with pytest.raises(ModelDamaged, match="qweight"):
        load_model(tmp_path, ModelOptions())


def test_a_file_cut_short_is_damage(tmp_path: Path) -> None:
    write_folder(tmp_path, "gptq")
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelDamaged, match=r"model\.safetensors is damaged"):
        load_model(tmp_path, ModelOptions())


_EIGHT: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
_FOUR: dict[str, Any] = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
_TOKENS: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quant_method": "fp8"}, "'fp8'"),
        ({"quant_method": None}, "'None'"),
        ({"quant_method": ["awq"]}, r"\['awq'\]"),
        ({"quant_method": "awq", "version": "gemv"}, "'gemv'"),
        ({"quant_method": "awq", "bits": 3}, "3 bits"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "'marlin'"),
        ({"quant_method": "gptq", "bits": 8}, "8 bits"),
        (compressed("float-quantized", _EIGHT), "float-quantized"),
        (compressed("pack-quantized", {**_FOUR, "num_bits": 8}), "8-bit"),
        (compressed("pack-quantized", _FOUR, _TOKENS), "inputs in dynamic"),
        (compressed("int-quantized", {**_EIGHT, "strategy": "tensor"}, _TOKENS), "by tensor"),
        (compressed("int-quantized", {**_EIGHT, "symmetric": False}, _TOKENS), "asymmetric"),
        (compressed("int-quantized", _EIGHT, {**_TOKENS, "dynamic": False, "strategy": "tensor"}), "static"),
        (
            {
                **compressed("pack-quantized", _FOUR),
                "kv_cache_scheme": {"num_bits": 8, "type": "float", "dynamic": False, "strategy": "tensor"},
            },
            "keys and values in static 8-bit float",
        ),
        ({**compressed("int-quantized", _EIGHT), "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24"),
    ],
)
def test_what_is_not_read_is_named(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    write_folder(tmp_path, "awq")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    with pytest.raises(UnsupportedModel, match=said) as caught:
        load_config(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        "awq",
        {"quant_method": "awq", "group_size": 0},
        {"quant_method": "gptq", "group_size": "many"},
        {"quant_method": "compressed-tensors"},
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": {}}},
    ],
)
def test_settings_that_make_no_sense_are_damage(settings: Any, tmp_path: Path) -> None:
    write_folder(tmp_path, "awq")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    with pytest.raises(ModelDamaged):
        load_config(tmp_path)
