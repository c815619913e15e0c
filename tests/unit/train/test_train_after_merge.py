"""A merged model is base and adapter in one; what cannot be merged is refused and leaves nothing behind."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters_by_peft import logits_of, logits_with, save_adapter, served_logits
from safetensors.torch import load_file, save_file
from tiny_models import write_model

from callboard.actors.models.errors import UnsupportedModel
from callboard.actors.models.tokenizer_loading import load_tokenizer
from callboard.actors.train.commands_after import merge as command
from callboard.actors.train.merge import merge
from callboard.runtime.errors import ConfigError, ModelDamaged, NoSuchModel

# What PEFT itself calls of transformers.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

IDS = torch.arange(40)[None] * 11 % 264


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
        {"use_dora": True},
        {"target_modules": ["v_proj", "lm_head"]},
        {"target_modules": ["v_proj", "embed_tokens"]},
    ],
    ids=["lora", "rslora", "dora", "output of tied embeddings", "input of tied embeddings"],
)
def test_a_merged_model_answers_as_base_and_adapter(tiny_llama: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    adapter = save_adapter(tiny_llama, tmp_path / "adapter", **options)
    expected = logits_with(tiny_llama, adapter, IDS)
    assert (expected - logits_of(tiny_llama, IDS)).abs().max() > 0.1
    report = merge(adapter, tmp_path / "merged", str(tiny_llama))
    assert report.dtype == "float32"
    torch.testing.assert_close(logits_of(tmp_path / "merged", IDS), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(served_logits(tmp_path / "merged", IDS), expected, rtol=1e-3, atol=1e-4)


def test_tokenizer_and_template_come_along_and_the_base_is_what_the_adapter_names(
    tiny_llama: Path, tmp_path: Path
) -> None:
    adapter = save_adapter(tiny_llama, tmp_path / "adapter")
    merge(adapter, tmp_path / "merged")
    assert load_tokenizer(tmp_path / "merged").digest() == load_tokenizer(tiny_llama).digest()
    assert "merged into its weights" in (tmp_path / "merged" / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize("dtype", ["", "float16"])
def test_it_is_written_in_the_type_of_the_base_or_the_one_asked_for(tmp_path: Path, dtype: str) -> None:
    base = write_model(tmp_path / "base", dtype=torch.bfloat16)
    adapter = save_adapter(base, tmp_path / "adapter")
    merge(adapter, tmp_path / "merged", dtype=dtype)
    merge(adapter, tmp_path / "exact", dtype="float32")
    exact = load_file(tmp_path / "exact" / "model.safetensors")
    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    wanted = torch.float16 if dtype else torch.bfloat16
    assert tensors.keys() == exact.keys()
    assert all(torch.equal(tensors[name], tensor.to(wanted)) for name, tensor in exact.items())
    assert tensors["model.norm.weight"].dtype == wanted
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == (dtype or "bfloat16")
    expected = logits_with(base, adapter, IDS)
    torch.testing.assert_close(logits_of(tmp_path / "exact", IDS), expected, rtol=1e-3, atol=1e-4)


def test_what_does_not_fit_is_refused_and_nothing_is_left(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_llama, tmp_path / "adapter")
    wide = write_model(tmp_path / "wide", hidden_size=32)
    deep = write_model(tmp_path / "deep", num_hidden_layers=3)
    flat = write_model(tmp_path / "flat", num_hidden_layers=1)
    named = save_adapter(tiny_llama, tmp_path / "named", target_modules=["q_proj", "v_proj"])
    for base, its, complaint in (
        (wide, adapter, "does not fit its base"),
        (deep, named, "lacks 4 matrices"),
        (flat, named, "has unknown 4 matrices"),
    ):
        with pytest.raises(ModelDamaged, match=complaint):
            merge(its, tmp_path / "merged", str(base))
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(weights, tmp_path / "kept.safetensors")
    name = min(weights)
    save_file({**weights, name: weights[name] * float("nan")}, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelDamaged, match="cannot be merged"):
        merge(adapter, tmp_path / "merged")
    (tmp_path / "kept.safetensors").rename(adapter / "adapter_model.safetensors")
    big = write_model(tmp_path / "big")
    model = load_file(big / "model.safetensors")
    save_file({**model, "model.norm.weight": model["model.norm.weight"] * 1e6}, big / "model.safetensors")
    with pytest.raises(ConfigError, match="does not fit into"):
        merge(adapter, tmp_path / "merged", str(big), "float16")
    assert not [path for path in tmp_path.iterdir() if "merged" in path.name]


def test_adapters_of_other_kinds_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_llama, tmp_path / "adapter")
    place = adapter / "adapter_config.json"
    config = json.loads(place.read_text())
    for change in ({"peft_type": "IA3"}, {"init_lora_weights": "pissa"}):
        place.write_text(json.dumps({**config, **change}))
        with pytest.raises(UnsupportedModel):
            merge(adapter, tmp_path / "merged")
    place.write_text(json.dumps({**config, "base_model_name_or_path": "someone/model"}))
    with pytest.raises(NoSuchModel, match="someone/model") as refused:
        merge(adapter, tmp_path / "merged")
    assert "callboard merge BASE" in (refused.value.hint or "")
    with pytest.raises(NoSuchModel, match="no adapter"):
        merge(tiny_llama, tmp_path / "merged")


def test_the_command_takes_a_base_or_the_adapter_alone(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = save_adapter(tiny_llama, tmp_path / "adapter")
    parser = ArgumentParser()
    command.configure(parser)
    for number, names in enumerate(([str(adapter)], [str(tiny_llama), str(adapter)])):
        out = tmp_path / f"merged-{number}"
        assert command.run(parser.parse_args([*names, "-o", str(out), "--json"])) == 0
        printed = json.loads(capsys.readouterr().out)
        assert (printed["base"], printed["out"]) == (str(tiny_llama), str(out))
    with pytest.raises(ConfigError, match="is there already"):
        command.run(parser.parse_args([str(adapter), "-o", str(tmp_path / "merged-0")]))
