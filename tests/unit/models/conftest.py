"""The models that these tests run: SmolLM2, pulled once per machine, and a tiny random one that loads in no time."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from gguf import GGUFWriter

from callboard.actors.models.store import ModelStore
from callboard.actors.models.tokenizer import Tokenizer, TokenType, byte_alphabet
from callboard.kernels import native
from callboard.schemas.serve import TokenLogprob
from callboard.schemas.serve_steps import Drawn, FailedSequence, SequenceStart, Step, StepSequence

if TYPE_CHECKING:
    from callboard.actors.models.llama import LlamaDecoder
    from callboard.actors.models.served import ServedModel
    from callboard.actors.serve.runner import Runner

sys.path.insert(0, str(Path(__file__).parent))  # helper modules beside the tests


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


@pytest.fixture(scope="session")
def native_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of sizes that the native kernels take, in blocks of 16 tokens."""
    from callboard.kernels import native

    if why := native.unavailable():
        pytest.skip(f"no native kernels here: {why}")
    return write_tiny_model(tmp_path_factory.mktemp("native") / "tiny.gguf", head_dim=16)


def write_tiny_model(
    path: Path, *, seed: int = 0, tied: bool = True, context_length: int = 256, head_dim: int = 8
) -> Path:
    hidden, intermediate, num_layers = 48, 80, 2
    num_heads = hidden // head_dim
    num_kv_heads = num_heads // 3
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


@pytest.fixture(params=["torch", "native"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What computes a lean decoder that is loaded: once the one, once the other."""
    if request.param == "torch":
        monkeypatch.setattr(native, "unavailable", lambda: "a test turns them off")
    elif why := native.unavailable():
        pytest.skip(f"no native kernels: {why}")
    return request.param


@pytest.fixture(scope="session")
def serve() -> Callable[..., list[Any]]:
    """Runs texts through a served model as an engine would, and returns the logits of each text's tokens."""
    return serve_ragged


def serve_ragged(
    model: ServedModel,
    texts: list[list[int]],
    *,
    chunk: int,
    adapters: list[str] | None = None,
    deterministic: bool = False,
    block_size: int = 16,
) -> list[Any]:
    """All texts in one batch. In a step each gets `chunk` tokens of its first two thirds, then one at a time, so that
    prompts and decoding are mixed. Their blocks lie in any order. Tensors [len(text), vocab]."""
    import torch

    from callboard.kernels.ragged import RaggedBatch

    counts = [-(-len(text) // block_size) for text in texts]
    free = torch.randperm(sum(counts)).tolist()
    tables = [[free.pop() for _ in range(count)] for count in counts]
    cache = model.new_cache(sum(counts), block_size)
    done = [0] * len(texts)
    logits: list[list[torch.Tensor]] = [[] for _ in texts]
    with torch.inference_mode():
        while any(have < len(text) for have, text in zip(done, texts, strict=True)):
            new = [
                text[have : min(have + chunk, 2 * len(text) // 3)] or text[have : have + 1]
                for have, text in zip(done, texts, strict=True)
            ]
            done = [have + len(part) for have, part in zip(done, new, strict=True)]
            batch = RaggedBatch.build(done, [len(part) for part in new], tables, block_size)
            token_ids = torch.tensor([token for part in new for token in part])
            hidden = model.forward(token_ids, cache, batch, adapters, deterministic)
            assert hidden.shape == (batch.num_tokens, model.hidden_size)
            rows = model.logits(hidden, deterministic)
            for have, part in zip(logits, rows.split([len(part) for part in new]), strict=True):
                have.append(part)
    return [torch.cat(parts) for parts in logits]


@dataclass
class Answer:
    """What a replica made of one sequence. `num_steps`: those in which it drew."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: dict[int, TokenLogprob] = field(default_factory=dict)
    vector: tuple[float, ...] | None = None
    failed: FailedSequence | None = None
    ended: bool = False
    num_drafted: int = 0
    num_steps: int = 0


class Driver:
    """A scheduler as simple as can be over a `Runner`: everyone at once, prompts in chunks of `chunk` tokens.

    Blocks are dealt out shuffled, as they are needed. With `preempt_every`, that many steps into an answer its
    sequence is forgotten and sent again from its start.
    """

    def __init__(self, runner: Runner, *, chunk: int = 1000, num_draft: int = 0, preempt_every: int = 0) -> None:
        self.runner = runner
        self.chunk = chunk
        self.num_draft = num_draft
        self.preempt_every = preempt_every
        self.num_steps = 0
        self._ids = 0

    def run(self, starts: Sequence[SequenceStart], max_tokens: int = 0) -> list[Answer]:
        free = list(range(self.runner.cache.num_blocks))
        random.Random(7).shuffle(free)
        answers = [Answer() for _ in starts]
        live: dict[int, _Live] = {}
        for start, answer in zip(starts, answers, strict=True):
            self._ids += 1
            live[self._ids] = _Live(start, answer, list(start.token_ids))
        forget: list[int] = []
        while live:
            asked = [self._part(sequence_id, one, free, max_tokens) for sequence_id, one in live.items()]
            self.num_steps += 1
            result = self.runner.execute(Step(self.num_steps, tuple(asked), forget=tuple(forget)))
            assert result.step_id == self.num_steps
            forget = []
            for failed in result.failed:
                live[failed.sequence_id].answer.failed = failed
            for pooled in result.pooled:
                live[pooled.sequence_id].answer.vector = pooled.vector
            for scored in result.prompt_logprobs:
                for place, logprob in enumerate(scored.tokens, scored.first):
                    live[scored.sequence_id].answer.prompt_logprobs[place] = logprob
            drawn = iter(result.drawn)
            for part in asked:
                one = live[part.sequence_id]
                one.num_cached += part.num_tokens
                over = one.answer.failed is not None
                if part.draws:
                    over |= one.take(next(drawn), max_tokens)
                elif one.num_cached == len(one.tokens):
                    over = True  # nothing but scores or a vector was wanted
                if over or one.num_draws == self.preempt_every > 0:
                    forget.append(part.sequence_id)
                    free += one.blocks
                    del live[part.sequence_id]
                    if not over:
                        self._ids += 1
                        live[self._ids] = _Live(one.start, one.answer, one.tokens)
        self.runner.execute(Step(self.num_steps + 1, (), forget=tuple(forget)))
        assert self.runner.num_sequences == 0
        return answers

    def _part(self, sequence_id: int, one: _Live, free: list[int], max_tokens: int) -> StepSequence:
        is_new = not one.blocks
        num_tokens = min(len(one.tokens) - one.num_cached, self.chunk)
        end = one.num_cached + num_tokens
        draws = max_tokens > 0 and end == len(one.tokens)
        left = max_tokens - len(one.answer.tokens)
        num_draft = max(0, min(self.num_draft, left - 1)) if draws else 0
        needed = -(-(end + num_draft) // self.runner.cache.block_size) - len(one.blocks)
        new = [free.pop() for _ in range(needed)]
        one.blocks += new
        start = msgspec.structs.replace(one.start, token_ids=tuple(one.tokens)) if is_new else None
        return StepSequence(sequence_id, one.num_cached, num_tokens, tuple(new), draws, num_draft, start)


@dataclass
class _Live:
    start: SequenceStart
    answer: Answer
    tokens: list[int]
    blocks: list[int] = field(default_factory=list)
    num_cached: int = 0
    num_draws: int = 0

    def take(self, drawn: Drawn, max_tokens: int) -> bool:
        """Whether the answer is over."""
        answer = self.answer
        self.tokens += drawn.tokens
        self.num_cached += max(0, len(drawn.tokens) - 1)
        answer.tokens += drawn.tokens
        answer.logprobs += drawn.logprobs
        answer.num_drafted += drawn.num_drafted
        answer.num_steps += 1
        self.num_draws += 1
        answer.ended = drawn.ended
        stopped = any(token in self.start.sampling.stop_ids for token in drawn.tokens)
        return drawn.ended or stopped or len(answer.tokens) >= max_tokens


@pytest.fixture(scope="session")
def drive() -> type[Driver]:
    return Driver
