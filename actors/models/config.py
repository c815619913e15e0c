"""The shape of a LLaMA-like decoder, as a frozen value."""

from __future__ import annotations

import msgspec

from ...runtime.errors import ModelDamaged
from .errors import UnsupportedModel
from .gguf import GGUFFile

# Far beyond what any model of this shape was made for; more is a damaged number.
MAX_CONTEXT_LENGTH = 1 << 24


class LlamaConfig(msgspec.Struct, frozen=True, kw_only=True):
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    context_length: int
    tied_embeddings: bool

    def __post_init__(self) -> None:
        sizes = (self.hidden_size, self.intermediate_size, self.num_layers, self.num_heads, self.num_kv_heads)
        if min(*sizes, self.head_dim, self.vocab_size) < 1 or not 0 < self.context_length <= MAX_CONTEXT_LENGTH:
            raise ModelDamaged(f"a decoder cannot have these sizes: {self}")
        if self.num_heads % self.num_kv_heads or self.head_dim % 2:
            raise ModelDamaged(
                f"a decoder cannot have {self.num_heads} heads, {self.num_kv_heads} key/value heads "
                f"and head size {self.head_dim}"
            )

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> LlamaConfig:
        """From the metadata of a file whose architecture is `llama`; anything else raises `UnsupportedModel`.

        `ModelDamaged` where sizes do not fit the file's own tensors: so whoever builds a decoder from it needs about
        as much memory as the file, whatever the numbers in the file say.
        """
        architecture = file.get("general.architecture", str)
        if architecture != "llama":
            raise UnsupportedModel(f"{file.path} has the architecture '{architecture}'; 'llama' is read here")
        scaling = file.get("llama.rope.scaling.type", str, "none")
        if scaling != "none":
            raise UnsupportedModel(f"{file.path} wants '{scaling}' rotary scaling, which is not implemented here")
        hidden_size = file.get("llama.embedding_length", int)
        num_heads = file.get("llama.attention.head_count", int)
        head_dim = file.get("llama.attention.key_length", int, hidden_size // max(1, num_heads))
        if file.get("llama.rope.dimension_count", int, head_dim) != head_dim:
            raise UnsupportedModel(f"{file.path} rotates only a part of each head, which is not implemented here")
        config = cls(
            vocab_size=file.get("llama.vocab_size", int, len(file.get("tokenizer.ggml.tokens", list))),
            hidden_size=hidden_size,
            intermediate_size=file.get("llama.feed_forward_length", int),
            num_layers=file.get("llama.block_count", int),
            num_heads=num_heads,
            num_kv_heads=file.get("llama.attention.head_count_kv", int, num_heads),
            head_dim=head_dim,
            rms_norm_eps=file.get("llama.attention.layer_norm_rms_epsilon", float),
            rope_theta=file.get("llama.rope.freq_base", float, 10000.0),
            context_length=file.get("llama.context_length", int),
            tied_embeddings="output.weight" not in file.tensors,
        )
        config._check_tensors(file)
        return config

    def _check_tensors(self, file: GGUFFile) -> None:
        expected = {
            "token_embd.weight": (self.vocab_size, self.hidden_size),
            "blk.0.attn_q.weight": (self.num_heads * self.head_dim, self.hidden_size),
            "blk.0.attn_k.weight": (self.num_kv_heads * self.head_dim, self.hidden_size),
            "blk.0.ffn_gate.weight": (self.intermediate_size, self.hidden_size),
            f"blk.{self.num_layers - 1}.attn_norm.weight": (self.hidden_size,),
        }
        for name, shape in expected.items():
            tensor = file.tensors.get(name)
            if tensor is None or tensor.shape != shape:
                found = "is missing" if tensor is None else f"has the shape {tensor.shape}"
                raise ModelDamaged(f"{file.path} is damaged: tensor '{name}' {found}; the metadata says {shape}")
        num_tokens = len(file.get("tokenizer.ggml.tokens", list))
        if num_tokens > self.vocab_size:
            raise ModelDamaged(f"{file.path} is damaged: {num_tokens} tokens for {self.vocab_size} embeddings")
