"""The models that these tests run: SmolLM2, pulled once per machine, and a tiny random one that loads in no time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from gguf import GGUFWriter

from callboard.actors.models.store import ModelStore
from callboard.actors.models.tokenizer import Tokenizer, TokenType, byte_alphabet
from callboard.actors.serve.threads import prepare_process

if TYPE_CHECKING:
    from callboard.actors.models.llama import LlamaDecoder

sys.path.insert(0, str(Path(__file__).parent))  # helper modules beside the tests

prepare_process()  # tests run beside each other: torch, which is imported after this, must not spin for long

CONTROL = ["<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def smollm2_store() -> ModelStore:
    """A store with SmolLM2 in it; the store's own lock lets parallel workers pull it once."""
    folder = Path.home() / ".cache" / "callboard-test" / "models"
    store = ModelStore(folder)
    store.pull("smollm2")
    return store


@pytest.fixture(scope="session")
def smollm2_path(smollm2_store: ModelStore) -> Path:
    return smollm2_store.path("smollm2")


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_path: Path) -> Tokenizer:
    from callboard.actors.models.loading import load_tokenizer

    return load_tokenizer(smollm2_path)


@pytest.fixture(scope="session")
def smollm2_decoder(smollm2_path: Path) -> LlamaDecoder:
    import torch

    from callboard.actors.models.loading import load_decoder

    return load_decoder(smollm2_path, torch.float32)


@pytest.fixture(scope="session")
def make_tiny_model() -> Callable[..., Path]:
    """Writes a random `llama` file: 2 layers, byte tokens. Its weights are those of `seed`."""
    return write_tiny_model


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def write_tiny_model(path: Path, *, seed: int = 0, tied: bool = True, context_length: int = 256) -> Path:
    hidden, intermediate, num_layers, num_heads, num_kv_heads, head_dim = 48, 80, 2, 6, 2, 8
    random = np.random.default_rng(seed)
    tokens = [*CONTROL, *byte_alphabet().values(), "he", "ll", "Ġt"]
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(num_layers)
    writer.add_context_length(context_length)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(intermediate)
    writer.add_head_count(num_heads)
    writer.add_head_count_kv(num_kv_heads)
    writer.add_key_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * len(CONTROL) + [TokenType.NORMAL] * (len(tokens) - len(CONTROL)))
    writer.add_token_merges(["h e", "l l", "Ġ t"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)

    def add(name: str, *shape: int) -> None:
        scale = 1.0 if name.endswith("norm.weight") else 1.5 / shape[-1] ** 0.5
        values = random.standard_normal(shape) * scale + name.endswith("norm.weight")
        writer.add_tensor(name, values.astype(np.float32))

    add("token_embd.weight", len(tokens), hidden)
    add("output_norm.weight", hidden)
    if not tied:
        add("output.weight", len(tokens), hidden)
    for layer in range(num_layers):
        add(f"blk.{layer}.attn_norm.weight", hidden)
        add(f"blk.{layer}.attn_q.weight", num_heads * head_dim, hidden)
        add(f"blk.{layer}.attn_k.weight", num_kv_heads * head_dim, hidden)
        add(f"blk.{layer}.attn_v.weight", num_kv_heads * head_dim, hidden)
        add(f"blk.{layer}.attn_output.weight", hidden, num_heads * head_dim)
        add(f"blk.{layer}.ffn_norm.weight", hidden)
        add(f"blk.{layer}.ffn_gate.weight", intermediate, hidden)
        add(f"blk.{layer}.ffn_up.weight", intermediate, hidden)
        add(f"blk.{layer}.ffn_down.weight", hidden, intermediate)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
