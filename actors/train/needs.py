"""What a run will take of a rank's memory, said before it begins, and what would fit where it does not.

The model is looked at on the device `meta`, where it has shapes and no numbers.
"""

from __future__ import annotations

import bisect
import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from msgspec.structs import replace as changed
from torch import nn

from ...kernels.cross_entropy import CHUNK_BYTES
from ...kernels.nf4 import BLOCK as NF4_BLOCK
from ...kernels.nf4 import NESTED_BLOCK
from ...schemas.train import Method, TrainConfig
from .errors import NotEnoughMemory
from .memory import Sizes, StateBytes, by_formula

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# A value in four bits, with its share of a code for each 64 and of a float32 for 256 of these.
NF4_BYTES = 1 / 2 + 1 / NF4_BLOCK + 4 / (NF4_BLOCK * NESTED_BLOCK)
# A chunk of logits, its float32 copy, its gradient and a temporary are there at once.
LOGIT_COPIES = 4
# What allocators lose between blocks, and what is there for a moment: products, norms in float32.
SLACK = 1.1
# More than these go through no model at once.
MOST_TOKENS = 1 << 22
# At least so many are to go at once where the length of a sample is not known.
FEWEST_TOKENS = 256


@dataclass(frozen=True)
class Needs:
    """In bytes. `passing`: what is there for a part of a step, as a layer's whole parameters at ZeRO-3."""

    state: StateBytes
    activations: float
    passing: float

    @property
    def total(self) -> float:
        return self.state.total + SLACK * (self.activations + self.passing)


@dataclass(frozen=True)
class Plan:
    """A run on paper. `model`: of transformers, without adapters yet, that is to compute in `dtype`; `device`: cpu or
    cuda, whose memory is asked about."""

    model: nn.Module
    config: TrainConfig
    world_size: int
    dtype: torch.dtype
    device: str

    def needs(self, micro_tokens: int) -> Needs:
        """Of one rank, with so many tokens going through the model at once."""
        sizes = sizes_of(self.model, self.config, self.dtype)
        text = self._text
        kept, everything = self._values_per_token()
        item = self.dtype.itemsize
        # Beside what layers keep: one layer with its gradients, and the ends of the model.
        per_token = (text.num_hidden_layers * kept + 2 * everything + 4 * text.hidden_size) * item
        logits = min(CHUNK_BYTES[self.device], micro_tokens * text.vocab_size * item) * LOGIT_COPIES
        return Needs(self._state(sizes), micro_tokens * per_token, logits + self._whole_layers(sizes))

    def largest_micro_tokens(self, free: float) -> int:
        """How many tokens may go through the model at once with so many bytes, 0 where not one may."""
        # `bisect` counts those that need no more than there is.
        return bisect.bisect_right(range(1, MOST_TOKENS), free, key=lambda tokens: self.needs(tokens).total)

    def check(self, micro_tokens: int, free: float) -> None:
        """NotEnoughMemory, naming what would fit, where a rank has fewer than `free` bytes."""
        needs = self.needs(micro_tokens)
        if needs.total <= free:
            return
        state = needs.state
        raise NotEnoughMemory(
            f"training takes about {_gb(needs.total)} on each shard and {_gb(free)} are free: "
            f"{_gb(state.parameters + state.gathered)} for parameters, {_gb(state.gradients)} for gradients, "
            f"{_gb(state.moments + state.masters + state.average)} for the optimizer, "
            f"{_gb(needs.activations + needs.passing)} for {micro_tokens} tokens at once",
            hint=self._what_fits(micro_tokens, free),
        )

    def _what_fits(self, micro_tokens: int, free: float) -> str:
        """The first settings that do, each beside those before it."""
        fewest = min(micro_tokens, self.config.batch.max_tokens or FEWEST_TOKENS)
        said: list[str] = []
        for words, config in self._savings():
            said += [words] if words else []
            most = replace(self, config=config).largest_micro_tokens(free)
            if most >= micro_tokens:
                return f"what would fit: {', '.join(said)}"
            if most >= fewest:
                return f"what would fit: {', '.join([*said, f'batch.micro_tokens = {most}'])}"
        return "a smaller model, shorter samples (batch.max_tokens), more shards, or more memory"

    def _savings(self) -> Iterator[tuple[str, TrainConfig]]:
        """From what changes least to what changes what is trained."""
        config = self.config
        yield "", config
        if config.compute.checkpointing != "full":
            config = changed(config, compute=changed(config.compute, checkpointing="full"))
            yield "compute.checkpointing = full", config
        if self.world_size > 1 and config.shards.zero < 3:
            config = changed(config, shards=changed(config.shards, zero=3))
            yield "shards.zero = 3", config
        if config.optimizer.bits == 32:
            config = changed(config, optimizer=changed(config.optimizer, bits=8))
            yield "optimizer.bits = 8", config
        if self.device != "cpu" and not config.shards.offload:
            config = changed(config, shards=changed(config.shards, offload=True))
            yield "shards.offload = true", config
        if config.method == Method.FULL:
            config = changed(config, method=Method.LORA)
            yield "method = lora", config
        if config.method == Method.LORA:
            config = changed(config, method=Method.QLORA)
            yield "method = qlora", config

    @property
    def _text(self) -> PreTrainedConfig:
        return self.model.config.get_text_config()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]

    def _values_per_token(self) -> tuple[float, float]:
        """That a layer keeps for the backward pass: as `checkpointing` has it, and where nothing is computed again.

        These are the residual stream twice, its norms, queries, keys and values, what attention gives, the two halves
        of the gated product and the product.
        """
        text = self._text
        hidden, gated, num_heads = text.hidden_size, text.intermediate_size, text.num_attention_heads
        head_dim = getattr(text, "head_dim", None) or hidden // num_heads
        queries = num_heads * head_dim
        keys = (getattr(text, "num_key_value_heads", None) or num_heads) * head_dim
        everything = 4 * hidden + 2 * queries + 2 * keys + 3 * gated
        kept = {
            "none": everything,
            "selective": 2 * hidden + 2 * queries + 2 * keys + 2 * gated,
            "full": hidden,
        }[self.config.compute.checkpointing]
        return kept, everything

    def _state(self, sizes: Sizes) -> StateBytes:
        """Of the device's memory: what is kept in the host's is not counted."""
        state = by_formula(sizes, self.config, self.world_size)
        if self.device == "cpu":
            return state
        if not self.config.shards.offload:
            return replace(state, moments=0) if self.config.optimizer.paged else state
        state = replace(state, moments=0, masters=0, average=0)
        if self._shares_parameters:
            state = replace(state, parameters=0, gradients=0)  # FSDP keeps the rows beside their optimizer
        return state

    @property
    def _shares_parameters(self) -> bool:
        return self.config.shards.zero > 1 and self.world_size > 1

    def _whole_layers(self, sizes: Sizes) -> float:
        """At ZeRO-3: the embeddings, and two layers, the one that computes and the one that is fetched."""
        if not self._shares_parameters or self.config.shards.zero < 3:
            return 0
        embeddings = self._text.vocab_size * self._text.hidden_size * self.dtype.itemsize
        return embeddings + 2 * max(0, sizes.whole_bytes - embeddings) / self._text.num_hidden_layers


def sizes_of(model: nn.Module, config: TrainConfig, dtype: torch.dtype) -> Sizes:
    """Of a model without adapters yet."""
    num_values = sum(param.numel() for param in model.parameters())
    item = dtype.itemsize
    if config.method == Method.FULL:
        num_trained = sum(param.numel() for name, param in model.named_parameters() if is_trained(name, config))
        frozen = (num_values - num_trained) * item
        return Sizes(num_trained, 0, frozen) if item < 4 else Sizes(0, num_trained, frozen)
    head = _output_head(model)
    linears = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear) and part is not head}
    rank = config.lora.rank
    num_trained = sum(
        rank * part.in_features + (rank + config.lora.dora) * part.out_features
        for name, part in linears.items()
        if _is_target(name, config.lora.targets)
    )
    frozen = num_values * item
    if config.method == Method.QLORA:
        frozen += sum(part.weight.numel() for part in linears.values()) * (NF4_BYTES - item)
    return Sizes(0, num_trained, round(frozen))


def is_trained(name: str, config: TrainConfig) -> bool:
    """With the method `full`: whether the patterns have this parameter trained; `frozen` has the last word."""
    wanted = not config.trainable or any(fnmatch.fnmatchcase(name, pattern) for pattern in config.trainable)
    return wanted and not any(fnmatch.fnmatchcase(name, pattern) for pattern in config.frozen)


def _is_target(name: str, targets: tuple[str, ...]) -> bool:
    """As PEFT reads them: a module's name, or its end."""
    return "all-linear" in targets or any(name == target or name.endswith("." + target) for target in targets)


def _output_head(model: nn.Module) -> nn.Module | None:
    get = getattr(model, "get_output_embeddings", None)
    return None if get is None else get()


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
