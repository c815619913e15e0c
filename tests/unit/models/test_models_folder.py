"""Folders in Hugging Face's layout: whole or sharded they load, and whatever is wrong with one is said in a line."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from callboard.actors.models.config import LlamaConfig
from callboard.actors.models.errors import UnsupportedModel
from callboard.actors.models.loading import load_config, load_model
from callboard.actors.models.served import ModelOptions
from callboard.actors.models.store import ModelStore, is_path
from callboard.runtime.errors import ConfigError, ModelDamaged, ModelError, NoSuchModel

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
}
STABLELM = {**CONFIG, "model_type": "stablelm", "use_qkv_bias": False}
NAME = "model.layers.1.mlp.up_proj.weight"


def weights(config: dict[str, Any] = CONFIG) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    norms = ["input_layernorm", "post_attention_layernorm"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (40, 16), "model.norm": (16,), "lm_head": (40, 16)}
    for layer in ("model.layers.0", "model.layers.1"):
        shapes |= {f"{layer}.{norm}": (16,) for norm in norms}
        shapes |= {f"{layer}.self_attn.{p}_proj": s for p, s in (("q", (16, 16)), ("k", (8, 16)), ("v", (8, 16)))}
        shapes |= {f"{layer}.self_attn.o_proj": (16, 16), f"{layer}.mlp.down_proj": (16, 24)}
        shapes |= {f"{layer}.mlp.{name}_proj": (24, 16) for name in ("gate", "up")}
    found = {f"{name}.weight": torch.randn(shape) / 4 for name, shape in shapes.items()}
    if config["model_type"] == "stablelm":  # its norms have biases
        found |= {name.replace("weight", "bias"): torch.zeros(16) for name in found if "norm" in name}
    return found


def write(folder: Path, config: dict[str, Any] = CONFIG, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights(config) if tensors is None else tensors, folder / "model.safetensors")
    return folder


def shard(folder: Path) -> Path:
    """The weights of `folder` in two files and an index, in its place."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places: dict[str, str] = {}
    for part, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2])):
        save_file({name: tensors[name] for name in names}, folder / f"model-{part}.safetensors")
        places |= dict.fromkeys(names, f"model-{part}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


@pytest.fixture(params=[CONFIG, STABLELM], ids=["lean", "transformers"])
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


def logits(folder: Path, serve: Callable[..., list[torch.Tensor]]) -> torch.Tensor:
    return serve(load_model(folder, ModelOptions()), [[1, 2, 3, 4, 5]], chunk=8)[0]


def test_a_sharded_model_is_the_whole_one(
    tmp_path: Path, config: dict[str, Any], serve: Callable[..., list[torch.Tensor]]
) -> None:
    whole = logits(write(tmp_path / "a", config), serve)
    assert torch.equal(logits(shard(write(tmp_path / "b", config)), serve), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_floating_type_are_converted(
    tmp_path: Path, dtype: torch.dtype, serve: Callable[..., list[torch.Tensor]]
) -> None:
    rounded = {name: tensor.to(dtype) for name, tensor in weights().items()}
    exact = {name: tensor.float() for name, tensor in rounded.items()}
    whole = logits(write(tmp_path / "a", tensors=exact), serve)
    assert torch.equal(logits(write(tmp_path / "b", tensors=rounded), serve), whole)


def test_an_output_matrix_beside_tied_embeddings_and_old_tables_are_left_out(
    tmp_path: Path, serve: Callable[..., list[torch.Tensor]]
) -> None:
    tied = {**CONFIG, "tie_word_embeddings": True}
    plain = {name: tensor for name, tensor in weights().items() if name != "lm_head.weight"}
    old = {**weights(), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    expected = logits(write(tmp_path / "a", tied, plain), serve)
    assert torch.equal(logits(write(tmp_path / "b", tied, old), serve), expected)


def test_missing_unknown_misshapen_and_infinite_weights_are_damage(tmp_path: Path, config: dict[str, Any]) -> None:
    good = weights(config)
    broken = {
        "missing": {key: value for key, value in good.items() if key != NAME},
        "no place|unexpected": {**good, "model.layers.1.mlp.sideways.weight": good[NAME].clone()},
        "shape|mismatched": {**good, NAME: good[NAME].T.contiguous()},
        "not finite": {**good, NAME: torch.full_like(good[NAME], float("nan"))},
    }
    for complaint, tensors in broken.items():
        with pytest.raises(ModelDamaged, match=complaint):
            load_model(write(tmp_path, config, tensors), ModelOptions())


def test_a_file_of_weights_that_is_cut_short_is_damage(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = write(tmp_path, config)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 5, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelDamaged, match="damaged"):
            load_model(folder, ModelOptions())


def test_a_bad_index_is_damage(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = shard(write(tmp_path, config))
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    for content in ("{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'):
        index.write_text(content)
        with pytest.raises(ModelDamaged, match=r"index\.json"):
            load_model(folder, ModelOptions())
    for wrong in ("nowhere.safetensors", "../model.safetensors"):
        index.write_text(json.dumps({"metadata": {}, "weight_map": {**places, NAME: wrong}}))
        with pytest.raises(ModelDamaged, match="not there"):
            load_model(folder, ModelOptions())
    other = next(file for file in places.values() if file != places[NAME])
    index.write_text(json.dumps({"metadata": {}, "weight_map": {**places, NAME: other}}))
    if config is CONFIG:  # transformers reads all the files, whatever the index says is in which
        with pytest.raises(ModelDamaged, match="lacks 1 tensors"):
            load_model(folder, ModelOptions())


def test_a_folder_that_is_no_model_or_of_another_kind_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoSuchModel, match=r"config\.json"):
        load_model(tmp_path, ModelOptions())
    write(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelDamaged, match="neither"):
        load_model(tmp_path, ModelOptions())
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UnsupportedModel, match=r"pytorch_model\.bin"):
        load_model(tmp_path, ModelOptions())
    write(tmp_path, {**CONFIG, "quantization_config": {"quant_method": "exl3"}})
    with pytest.raises(UnsupportedModel, match="exl3"):
        load_config(tmp_path)
    write(tmp_path, tensors={**weights(), NAME: torch.ones(24, 16, dtype=torch.int8)})
    with pytest.raises(UnsupportedModel, match="int8"):
        load_model(tmp_path, ModelOptions())
    for options in (ModelOptions(dtype="float16"), ModelOptions(weights="int3")):
        with pytest.raises(ConfigError):
            load_model(tmp_path, options)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": None},
        {"hidden_size": "16"},
        {"num_hidden_layers": True},
        {"num_attention_heads": 0},
        {"num_key_value_heads": 3},
        {"vocab_size": -1},
        {"max_position_embeddings": 1 << 40},
        {"rope_scaling": 3},
        {"rope_scaling": {"type": "linear"}},
        {"head_dim": 7},
    ],
)
def test_a_config_that_makes_no_sense_is_damage(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ModelDamaged):
        load_config(write(tmp_path, {**CONFIG, **change}))


def test_any_damage_to_a_config_ends_in_a_typed_error_or_a_model(tmp_path: Path) -> None:
    whole = json.dumps({**CONFIG, "rope_scaling": {"type": "linear", "factor": 2.0}}).encode()
    chance = random.Random(0)
    outcomes: Counter[str] = Counter()
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(chance.choice([1, 1, 2, 5])):
            content[chance.randrange(len(content))] = chance.choice([*b'0{}[],"1', chance.randrange(256)])
        (tmp_path / "config.json").write_bytes(content)
        try:
            if content.count(b"llama"):  # transformers reads the others, in its own time
                load_config(tmp_path)
        except ModelError as error:
            outcomes[error.code] += 1
        else:
            outcomes["harmless"] += 1
    assert outcomes["model.damaged"] > 50
    assert outcomes["harmless"] > 5


def test_numbers_that_json_does_not_know_do_not_stop_a_config(tmp_path: Path) -> None:
    text = json.dumps({**CONFIG, "router_jitter": 0}).replace('"router_jitter": 0', '"router_jitter": NaN')
    write(tmp_path)
    (tmp_path / "config.json").write_text(text)
    assert isinstance(load_config(tmp_path), LlamaConfig)


def test_the_path_of_a_folder_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ModelStore(tmp_path / "store")
    folder = tmp_path / "mine"
    with pytest.raises(NoSuchModel, match="mine"):
        store.path(str(folder))
    write(folder)
    assert store.path(str(folder)) == folder
    monkeypatch.chdir(tmp_path)
    assert store.path("./mine") == Path("mine")
    assert [is_path(name) for name in ("smollm2", "x.gguf", "./x", "~/x", "a/b", "..")] == [False] + [True] * 5
