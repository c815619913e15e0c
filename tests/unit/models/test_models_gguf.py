"""Reading GGUF files: the same as the gguf package reads, and damage is found when the file is opened."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants

from callboard.actors.models.config import LlamaConfig
from callboard.actors.models.errors import UnsupportedModel
from callboard.actors.models.gguf import GGUFFile
from callboard.actors.models.loading import load_decoder, load_tokenizer
from callboard.actors.models.weights import unpermute
from callboard.runtime.errors import ModelDamaged, ModelError, NoSuchModel


def test_metadata_is_what_the_gguf_package_reads(tiny_path: Path) -> None:
    reader = GGUFReader(tiny_path)
    with GGUFFile(tiny_path) as file:
        expected = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        assert dict(file.metadata) == expected


def test_smollm2_reads_as_the_gguf_package_reads_it(smollm2_path: Path) -> None:
    with GGUFFile(smollm2_path) as file:
        assert len(file.tensors) == 272
        config = LlamaConfig.from_gguf(file)
    assert config == LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        rms_norm_eps=9.999999747378752e-06,
        rope_theta=100000.0,
        context_length=8192,
        tied_embeddings=True,
    )


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0, GGMLQuantizationType.F16])
@pytest.mark.parametrize("num_rows", [1, 7, 32])
def test_dequantized_tensors_equal_those_of_the_gguf_package(
    tmp_path: Path, kind: GGMLQuantizationType, num_rows: int
) -> None:
    values = np.random.default_rng(3).standard_normal((num_rows, 96)).astype(np.float32)
    data = quants.quantize(values, kind)
    writer = GGUFWriter(tmp_path / "q.gguf", "llama")
    writer.add_tensor("t", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFFile(tmp_path / "q.gguf") as file:
        assert np.array_equal(file.read("t"), quants.dequantize(data, kind))


def test_unpermute_undoes_what_the_converter_of_llama_cpp_does() -> None:
    num_heads, head_dim, columns = 3, 8, 5
    weight = np.arange(num_heads * head_dim * columns, dtype=np.float32).reshape(num_heads * head_dim, columns)
    permuted = weight.reshape(num_heads, 2, head_dim // 2, columns).swapaxes(1, 2).reshape(weight.shape)
    assert np.array_equal(unpermute(permuted, num_heads), weight)


def test_a_file_cut_short_anywhere_is_damaged(tiny_path: Path, tmp_path: Path) -> None:
    whole = tiny_path.read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(1, 400, 7), *range(400, len(whole), 997), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelDamaged):
            GGUFFile(cut)


def test_what_is_no_gguf_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(NoSuchModel):
        GGUFFile(tmp_path / "none.gguf")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(ModelDamaged, match="empty"):
        GGUFFile(tmp_path / "empty.gguf")
    (tmp_path / "text.gguf").write_text("hello, I am a text file, not a model")
    with pytest.raises(ModelDamaged, match="no GGUF"):
        GGUFFile(tmp_path / "text.gguf")


def test_an_unknown_version_or_architecture_is_unsupported(
    tmp_path: Path, make_tiny_model: Callable[..., Path]
) -> None:
    path = make_tiny_model(tmp_path / "tiny.gguf")
    content = bytearray(path.read_bytes())
    content[4] = 9
    (tmp_path / "new.gguf").write_bytes(content)
    with pytest.raises(UnsupportedModel, match="version 9"):
        GGUFFile(tmp_path / "new.gguf")
    content[4] = 3
    (tmp_path / "other.gguf").write_bytes(bytes(content).replace(b"llama", b"lxama"))
    with GGUFFile(tmp_path / "other.gguf") as file, pytest.raises(UnsupportedModel, match="lxama"):
        LlamaConfig.from_gguf(file)


def test_a_huge_length_in_the_header_is_damage_and_not_a_huge_allocation(tiny_path: Path, tmp_path: Path) -> None:
    content = bytearray(tiny_path.read_bytes())
    content[24:32] = (1 << 60).to_bytes(8, "little")  # the length of the first key
    (tmp_path / "huge.gguf").write_bytes(content)
    with pytest.raises(ModelDamaged):
        GGUFFile(tmp_path / "huge.gguf")


def test_any_damage_to_the_header_is_found_or_harmless(tiny_path: Path, tmp_path: Path) -> None:
    """Whatever a few wrong bytes say, loading ends in a typed error or a model, in little time and memory."""
    whole = tiny_path.read_bytes()
    with GGUFFile(tiny_path) as file:
        header = min(tensor.offset for tensor in file.tensors.values())
    chance = random.Random(0)
    outcomes: Counter[str] = Counter()
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(chance.choice([1, 1, 2, 5])):
            content[chance.randrange(4, header)] = chance.choice([0, 255, chance.randrange(256)])
        path = tmp_path / "damaged.gguf"
        path.write_bytes(content)
        try:
            load_tokenizer(path)
            load_decoder(path, torch.float32)
        except ModelError as error:
            outcomes[error.code] += 1
        else:
            outcomes["harmless"] += 1
    assert outcomes["model.damaged"] > 50
    assert outcomes["harmless"] > 10
