"""The whole engine over models of other kinds: the tokens of transformers, and of PEFT for each adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
import transformers
from peft import PeftModel
from peft_adapters import save_adapter
from serving import answer, serving
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from callboard.runtime.errors import RequestInvalid
from callboard.schemas.serve import Embed, Generate, LoadAdapter, Score, UnloadAdapter

pytestmark = [
    pytest.mark.anyio,
    # What PEFT itself calls of transformers.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]

TEXTS = ["the quick brown fox jumps", "over", "a lazy dog and another lazy dog, and so on", "the quick brown cat"]
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
KINDS: dict[str, dict[str, Any]] = {
    "Qwen3": {},
    "Mistral": {"sliding_window": 6},
    "Gemma2": {"sliding_window": 6, "query_pre_attn_scalar": 8},
}


def save_model(kind: str, folder: Path) -> Path:
    """A random model with a tokenizer of its own."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    backend.decoder = decoders.ByteLevel()  # pyright: ignore
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    trainer: Any = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=special)  # pyright: ignore
    backend.train_from_iterator(TEXTS, trainer)
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(vocab_size=backend.get_vocab_size(), **{**SIZES, **KINDS[kind]})
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(folder)
    backend.save(str(folder / "tokenizer.json"))
    return folder


@torch.inference_mode()
def greedy(base: Path, text: str, num_tokens: int, adapter: Path | None = None) -> list[int]:
    """What transformers says, the whole text anew for each token."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    model.eval()
    ids = Backend.from_file(str(base / "tokenizer.json")).encode(text).ids
    start = len(ids)
    for _ in range(num_tokens):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[start:]


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(request.param, tmp_path_factory.mktemp(request.param))


async def ask_all(scheduler: Any, requests: list[Generate]) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in requests]

    async def one(at: int) -> None:
        found[at] = (await answer(scheduler, requests[at]))[0]

    async with anyio.create_task_group() as group:
        for at in range(len(requests)):
            group.start_soon(one, at)
    return found


async def test_a_folder_is_served_with_the_tokens_of_transformers(base: Path) -> None:
    expected = [greedy(base, text, 12) for text in TEXTS]
    async with serving(base, max_batch_tokens=16, max_running=8) as scheduler:
        requests = [Generate(prompt=text, max_tokens=12, ignore_eos=True) for text in TEXTS]
        assert await ask_all(scheduler, requests) == expected
        assert await ask_all(scheduler, requests) == expected, "and so from what is kept of the first time"


async def test_each_request_has_its_own_adapter(base: Path, tmp_path: Path) -> None:
    adapters = {name: save_adapter(base, tmp_path / name, LORA, seed) for seed, name in enumerate(("one", "two"))}
    names = ["one", "", "two", "one"]
    expected = [greedy(base, text, 8, adapters.get(name)) for text, name in zip(TEXTS, names, strict=True)]
    async with serving(base, max_batch_tokens=16, max_running=8) as scheduler:
        for name, path in adapters.items():
            await scheduler.ask(LoadAdapter(name, str(path)))
        requests = [
            Generate(prompt=text, max_tokens=8, ignore_eos=True, adapter=name)
            for text, name in zip(TEXTS, names, strict=True)
        ]
        assert await ask_all(scheduler, requests) == expected
        await scheduler.ask(UnloadAdapter("one"))
        with pytest.raises(RequestInvalid, match="one"):
            await answer(scheduler, requests[0])
        same = [Generate(prompt=TEXTS[0], max_tokens=8, ignore_eos=True, adapter=name) for name in ("two", "")]
        assert await ask_all(scheduler, same) == [
            greedy(base, TEXTS[0], 8, adapters["two"]),
            greedy(base, TEXTS[0], 8),
        ], "what one adapter computed is not another's"


async def test_deterministic_answers_do_not_depend_on_who_else_is_served(base: Path) -> None:
    requests = [
        Generate(prompt=text, max_tokens=8, ignore_eos=True, deterministic=True, temperature=0.8, seed=3, logprobs=0)
        for text in TEXTS
    ]
    async with serving(base, max_batch_tokens=16, max_running=8, dtype="bfloat16") as scheduler:
        together = await ask_all(scheduler, requests)
        alone = [(await answer(scheduler, request))[0] for request in requests]
    async with serving(base, max_batch_tokens=64, dtype="bfloat16") as scheduler:
        again = [(await answer(scheduler, request))[0] for request in requests]
    assert together == alone == again


async def test_vectors_and_scores_of_other_families(base: Path) -> None:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    backend = Backend.from_file(str(base / "tokenizer.json"))
    ids = torch.tensor([backend.encode(TEXTS[0]).ids])
    with torch.inference_mode():
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        logprobs = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        expected = float(logprobs[:-1].gather(1, ids[0, 1:, None]).sum())
    async with serving(base) as scheduler:
        vectors = await scheduler.ask(Embed(texts=(TEXTS[0],), normalize=False))
        torch.testing.assert_close(torch.tensor(vectors.vectors[0]), hidden.mean(0), rtol=1e-4, atol=1e-4)
        scores = await scheduler.ask(Score(continuations=(TEXTS[0],)))
        assert scores.texts[0].logprob == pytest.approx(expected, rel=1e-4)
