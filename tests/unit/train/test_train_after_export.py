"""A model is the same in both layouts: logits and token ids, by our own readers, and what cannot be said is refused."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters_by_peft import logits_of, served_logits
from gguf.constants import GGMLQuantizationType
from safetensors.torch import load_file
from tiny_models import VOCAB, write_model
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from callboard.actors.models.config import LlamaConfig
from callboard.actors.models.converted import write_tokenizer
from callboard.actors.models.errors import UnsupportedModel
from callboard.actors.models.folder import ModelFolder
from callboard.actors.models.gguf import GGUFFile
from callboard.actors.models.store import ModelStore
from callboard.actors.models.tokenizer_loading import load_tokenizer
from callboard.actors.train.commands_after import export as command
from callboard.actors.train.export import export_to_gguf, export_to_safetensors
from callboard.actors.train.gguf_tokenizer import vocabulary_of
from callboard.runtime.errors import ConfigError, UsageError

IDS = torch.arange(40)[None] * 11 % VOCAB
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama untied": ("llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    "llama linear": ("llama", {"rope_parameters": LINEAR}),
    "llama llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama yarn": ("llama", {"rope_parameters": YARN}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32}),
}
TEXTS = [
    "Hello world 2024!",
    "<|im_start|>user\nx =  12<|im_end|>\n",
    "don't naïve 你好 🙂",
    "a\n\n b\tc  ",
]


def randomized(family: str, folder: Path, **sizes: Any) -> Path:
    """With biases and norms that are not zeros and ones, which would hide that they are missed."""
    from safetensors.torch import save_file

    write_model(folder, family, **sizes)
    torch.manual_seed(5)
    tensors = load_file(folder / "model.safetensors")
    changed = {name: t + 0.2 * torch.randn_like(t) if t.ndim == 1 else 4 * t for name, t in tensors.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_in_f32_has_the_logits_and_ids_of_the_folder(tmp_path: Path, name: str) -> None:
    family, sizes = FAMILIES[name]
    folder, out = randomized(family, tmp_path / "model", **sizes), tmp_path / "model.gguf"
    report = export_to_gguf(str(folder), out)
    assert (report.type, report.kept_in_f16) == ("f32", 0)
    with GGUFFile(out) as file:
        assert LlamaConfig.from_gguf(file).context_length == 512
        assert {info.quantization for info in file.tensors.values()} == {GGMLQuantizationType.F32}
    exact = name != "llama llama3"  # factors are rounded once more than what they come of
    expected = served_logits(folder, IDS)
    torch.testing.assert_close(expected, logits_of(folder, IDS), rtol=1e-3, atol=1e-3)
    tolerance = 0.0 if exact else 1e-3
    torch.testing.assert_close(served_logits(out, IDS), expected, rtol=tolerance, atol=tolerance)
    ours, theirs = load_tokenizer(out), load_tokenizer(folder)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
    assert (ours.stop_ids, ours.eos_id, ours.prefix) == (theirs.stop_ids, theirs.eos_id, theirs.prefix)
    assert ours.chat_template is not None
    assert ours.chat_template.text == getattr(theirs.chat_template, "text", None)
    assert [path.name for path in tmp_path.glob(".*")] == []


@pytest.mark.parametrize(
    ("kind", "error"), [("bf16", 0.01), ("f16", 0.002), ("q8_0", 0.02), ("q4_0", 0.35), ("q4_1", 0.35)]
)
def test_fewer_bits_are_near(tmp_path: Path, kind: str, error: float) -> None:
    folder, out = write_model(tmp_path / "model"), tmp_path / "model.gguf"
    export_to_gguf(str(folder), out, kind)
    with GGUFFile(out) as file:
        types = {name: info.quantization.name.lower() for name, info in file.tensors.items()}
    assert types["blk.1.attn_q.weight"] == types["blk.0.ffn_down.weight"] == kind
    assert types["blk.1.attn_norm.weight"] == "f32"
    assert types["token_embd.weight"] == ("q8_0" if kind.startswith("q4") else kind)
    expected, found = logits_of(folder, IDS), served_logits(out, IDS)
    relative = float((found - expected).norm() / expected.norm())
    assert 0 < relative < error


def test_rows_that_are_no_whole_blocks_are_kept_in_f16_and_counted(tmp_path: Path) -> None:
    folder, out = write_model(tmp_path / "model", intermediate_size=120), tmp_path / "model.gguf"
    report = export_to_gguf(str(folder), out, "q8_0")
    assert report.kept_in_f16 == 2
    expected = logits_of(folder, IDS)
    assert (served_logits(out, IDS) - expected).norm() / expected.norm() < 0.02


def test_a_file_becomes_a_folder_and_the_same_file_again(tmp_path: Path) -> None:
    folder = randomized("llama", tmp_path / "model")
    export_to_gguf(str(folder), tmp_path / "one.gguf")
    report = export_to_safetensors(str(tmp_path / "one.gguf"), tmp_path / "back", "f32")
    assert report.num_tensors == len(load_file(folder / "model.safetensors"))
    torch.testing.assert_close(logits_of(tmp_path / "back", IDS), logits_of(folder, IDS), rtol=0, atol=0)
    theirs, ours = load_tokenizer(folder), load_tokenizer(tmp_path / "back")
    assert all(ours.encode(text) == theirs.encode(text) for text in TEXTS)
    assert ours.stop_ids == theirs.stop_ids
    assert all(ours.vocab_bytes()[i] == spelled for i, spelled in enumerate(theirs.vocab_bytes()) if spelled)
    export_to_gguf(str(tmp_path / "back"), tmp_path / "two.gguf")
    with GGUFFile(tmp_path / "one.gguf") as one, GGUFFile(tmp_path / "two.gguf") as two:
        assert one.tensors.keys() == two.tensors.keys()
        assert all((one.read(name) == two.read(name)).all() for name in one.tensors)
        names = {"general.name"}
        assert {key: value for key, value in one.metadata.items() if key not in names} == {
            key: value for key, value in two.metadata.items() if key not in names
        }


def test_a_folder_is_copied_as_it_is_or_in_another_type(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    assert export_to_safetensors(str(folder), tmp_path / "same").type == "f32"
    assert (tmp_path / "same" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    export_to_safetensors(str(folder), tmp_path / "half", "bf16")
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "half"))
    assert all(torch.equal(after[name], tensor.bfloat16()) for name, tensor in before.items())
    assert ModelFolder(tmp_path / "half").config["dtype"] == "bfloat16"
    assert load_tokenizer(tmp_path / "half").digest() == load_tokenizer(folder).digest()
    with pytest.raises(ConfigError, match="not written in q8_0"):
        export_to_safetensors(str(folder), tmp_path / "few", "q8_0")
    assert not (tmp_path / "few").exists()


def test_what_a_file_cannot_say_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    windows = write_model(tmp_path / "windows", "mistral", sliding_window=8)
    yarn = write_model(tmp_path / "yarn", rope_parameters={**YARN, "beta_fast": 8.0})
    other = write_model(tmp_path / "other", "gemma2")
    for folder, complaint in ((windows, "attention windows"), (yarn, "YaRN"), (other, "family")):
        with pytest.raises(UnsupportedModel, match=complaint):
            export_to_gguf(str(folder), tmp_path / "model.gguf")
    assert not [path for path in tmp_path.iterdir() if "gguf" in path.name]


# Tokenizers


CORPUS = [
    "the quick brown fox, don't they've 12 345 6789 x=1 (a) [b] over lazy dogs",
    "naïve café über straße 你好 Привет मेरा 🙂👍",
    "if x:\n        return 100,000.00 + 3.14\n\n\n",
] * 3
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace("{1,3}", "")


def split_by(pattern: str) -> Any:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])


def byte_level_folder(folder: Path, pre: Any, normalizer: Any = None, **model: Any) -> ModelFolder:
    backend = Backend(models.BPE(**model))
    backend.pre_tokenizer, backend.decoder = pre, decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"])  # pyright: ignore[reportCallIssue]
    backend.train_from_iterator(CORPUS, trainer)
    return saved(folder, backend)


def saved(folder: Path, backend: Backend, **settings: Any) -> ModelFolder:
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", **settings)
    fast.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return ModelFolder(folder)


DIGITS = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)
RULES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "gpt-2": (pre_tokenizers.ByteLevel(add_prefix_space=False), None, {}),
    "smollm": (DIGITS, None, {}),
    "llama-bpe": (split_by(LLAMA3_SPLIT), None, {"ignore_merges": True}),
    "qwen2": (split_by(QWEN2_SPLIT), normalizers.NFC(), {}),
}


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_that_splits_text_is_found_by_what_it_does(tmp_path: Path, rule: str) -> None:
    pre, normalizer, model = RULES[rule]
    folder = byte_level_folder(tmp_path, pre, normalizer, **model)
    vocabulary = vocabulary_of(folder, 410)
    assert vocabulary.pre == rule
    ours, theirs = vocabulary.read_back(), load_tokenizer(tmp_path)
    for text in CORPUS:
        assert ours.encode(text) == theirs.encode(text)
    assert len(vocabulary.tokens) == 410
    assert vocabulary.tokens[-1] == "[PAD409]"


@pytest.mark.parametrize(
    ("pre", "normalizer", "model"),
    [
        (split_by(r"\p{N}{1,2}|\s?\p{L}+|\s+|."), None, {}),
        (split_by(QWEN2_SPLIT), None, {}),
        (split_by(LLAMA3_SPLIT), None, {}),
        (DIGITS, normalizers.Lowercase(), {}),
    ],
    ids=["another rule", "qwen2 without NFC", "llama-bpe by its merges", "lowercase"],
)
def test_a_tokenizer_that_no_rule_describes_is_refused(tmp_path: Path, pre: Any, normalizer: Any, model: Any) -> None:
    folder = byte_level_folder(tmp_path, pre, normalizer, **model)
    with pytest.raises(UnsupportedModel, match="splits text by a rule"):
        vocabulary_of(folder, 400)


def sentence_piece_folder(folder: Path, *, legacy: bool = True, kind: str = "BPE") -> ModelFolder:
    """As LLaMA 2's: bytes for what is unknown, and merges that are in the order of their results."""
    special = ["<unk>", "<s>", "</s>"]
    model: Any = models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    backend = Backend(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[*special, *[f"<0x{i:02X}>" for i in range(256)]],  # pyright: ignore[reportCallIssue]
        initial_alphabet=[],
    )
    backend.train_from_iterator(CORPUS[:1], trainer)
    described = json.loads(backend.to_str())
    described["pre_tokenizer"] = (
        None
        if legacy
        else {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": "first",
            "split": False,
        }
    )
    if not legacy:
        described["normalizer"] = None
    described["added_tokens"] = [token for token in described["added_tokens"] if token["content"] in special]
    described["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    return saved(folder, Backend.from_str(json.dumps(described)), unk_token="<unk>", add_bos_token=True)


def test_a_tokenizer_of_sentencepiece_gets_scores_in_place_of_merges(tmp_path: Path) -> None:
    vocabulary = vocabulary_of(sentence_piece_folder(tmp_path), 420)
    assert not vocabulary.pre
    assert vocabulary.add_space
    ours, theirs = vocabulary.read_back(), load_tokenizer(tmp_path)
    for text in [*CORPUS, "the quick dog </s> the fox", "<unk> 你"]:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))


def test_a_space_that_comes_before_the_first_stretch_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="cannot describe"):
        vocabulary_of(sentence_piece_folder(tmp_path, legacy=False), 420)


@pytest.fixture(scope="module")
def smollm2() -> Path:
    store = ModelStore(Path.home() / ".cache" / "callboard-test" / "models")
    store.pull("smollm2")
    return store.path("smollm2")


def test_the_tokenizer_of_a_real_file_survives_the_way_through_a_folder(smollm2: Path, tmp_path: Path) -> None:
    with GGUFFile(smollm2) as file:
        write_tokenizer(file, tmp_path)
        tokens = file.get("tokenizer.ggml.tokens", list)
        merges = file.get("tokenizer.ggml.merges", list)
        types = file.get("tokenizer.ggml.token_type", list)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    vocabulary = vocabulary_of(ModelFolder(tmp_path), len(tokens))
    assert (list(vocabulary.tokens), list(vocabulary.merges), vocabulary.pre) == (tokens, merges, "smollm")
    assert [*vocabulary.types] == types
    original = load_tokenizer(smollm2)
    assert load_tokenizer(tmp_path).encode("x =  12") == original.encode("x =  12")
    assert vocabulary.special["eos"] == original.eos_id


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["f32", "q4_1"])
def test_a_real_model_is_the_same_after_it_was_a_folder(smollm2: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "again.gguf"
    export_to_gguf(str(smollm2), out, kind)
    ours, theirs = load_tokenizer(out), load_tokenizer(smollm2)
    assert ours.digest() == theirs.digest()
    ids = torch.tensor([theirs.encode("The capital of France is Paris. 12 times 12 is 144.")])
    expected, found = served_logits(smollm2, ids), served_logits(out, ids)
    # The folder is in bfloat16, and four bits are quantized once more from there.
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > (0.9 if kind == "f32" else 0.7)


def test_the_command_exports_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_model(tmp_path / "model")
    parser = ArgumentParser()
    command.configure(parser)
    arguments = [str(folder), "--to", "gguf", "-o", str(tmp_path / "m.gguf"), "--type", "q8_0", "--json"]
    assert command.run(parser.parse_args(arguments)) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["type"], printed["num_bytes"]) == ("q8_0", (tmp_path / "m.gguf").stat().st_size)
    arguments = [str(tmp_path / "m.gguf"), "--to", "safetensors", "-o", str(tmp_path / "back")]
    assert command.run(parser.parse_args(arguments)) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'back'}\n"
    with pytest.raises(ConfigError, match="is there already"):
        command.run(parser.parse_args(arguments))
    with pytest.raises(UsageError, match="no name for a GGUF file"):
        command.run(parser.parse_args([str(folder), "--to", "gguf", "-o", str(tmp_path / "x")]))
