"""Guessing ahead changes how many tokens a step yields and never which: greedy, sampled, penalised, under a grammar."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from callboard.actors.models.loading import load_model, load_tokenizer
from callboard.actors.models.served import ModelOptions, ServedModel
from callboard.actors.serve.draft_loading import load_drafter
from callboard.actors.serve.draft_model import ModelDrafter
from callboard.actors.serve.draft_ngram import NgramDrafter, NgramIndex
from callboard.actors.serve.drafts import Drafter
from callboard.actors.serve.grammar import grammar_compiler
from callboard.actors.serve.guess_pace import LONGEST_REST, GuessPace
from callboard.actors.serve.runner import Runner
from callboard.runtime.errors import ConfigError
from callboard.schemas.serve import Grammar, GrammarKind
from callboard.schemas.serve_steps import Sampling, SequenceStart, Step, StepSequence

Drive = Callable[..., Any]
NUM_BLOCKS, BLOCK_SIZE, NUM_DRAFT = 128, 4, 5


@pytest.fixture(scope="module")
def model(tiny_path: Path) -> ServedModel:
    return load_model(tiny_path, ModelOptions())


@pytest.fixture(scope="module")
def other_path(make_tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights: it guesses wrong nearly always."""
    return make_tiny_model(tmp_path_factory.mktemp("draft") / "draft.gguf", seed=9)


@pytest.fixture
def drafters(model: ServedModel, other_path: Path) -> dict[str, Drafter]:
    def reading(draft: ServedModel) -> ModelDrafter:
        return ModelDrafter(draft, NUM_BLOCKS, BLOCK_SIZE, model.vocab_size)

    return {
        "ngram": NgramDrafter(),
        "same model": reading(model),
        "other model": reading(load_model(other_path, ModelOptions())),
    }


@pytest.fixture
def make_runner(model: ServedModel, tiny_path: Path) -> Callable[..., Runner]:
    def make(drafter: Drafter | None = None) -> Runner:
        compiler = grammar_compiler(load_tokenizer(tiny_path), model.vocab_size)
        return Runner(model, NUM_BLOCKS, BLOCK_SIZE, lambda: compiler, drafter, NUM_DRAFT)

    return make


JSON = Grammar(GrammarKind.JSON_SCHEMA, '{"type": "array", "items": {"enum": ["aa", "ab"]}, "minItems": 2}')
SAMPLINGS = {
    "greedy": Sampling(),
    "sampled": Sampling(temperature=0.6, top_p=0.9, seed=3),
    "one of few": Sampling(temperature=1.0, top_k=2, seed=4),
    "penalised": Sampling(repetition_penalty=1.2, frequency_penalty=0.3, logprobs=2),
    "penalised and sampled": Sampling(temperature=0.7, top_k=3, presence_penalty=0.4, seed=5, logprobs=0),
    "grammar": Sampling(temperature=0.9, seed=6, grammar=JSON, stop_ids=(1,)),
    "endless grammar": Sampling(temperature=0.5, seed=7, grammar=Grammar(GrammarKind.REGEX, "(ab?){10,}"), logprobs=1),
    "late stop": Sampling(temperature=2.0, seed=8, min_tokens=6, stop_ids=tuple(range(2, 60))),
}


def starts() -> list[SequenceStart]:
    prompt = (40, 41, 42, 43) * 3
    return [
        SequenceStart(token_ids=(*prompt, 50 + i), num_prompt_tokens=13, sampling=sampling)
        for i, sampling in enumerate(SAMPLINGS.values())
    ]


@pytest.mark.parametrize(("chunk", "preempt_every"), [(1000, 0), (5, 3)])
@pytest.mark.parametrize("name", ["ngram", "same model", "other model"])
def test_tokens_are_those_of_decoding_without_guesses(
    name: str,
    chunk: int,
    preempt_every: int,
    drafters: dict[str, Drafter],
    make_runner: Callable[..., Runner],
    drive: Drive,
) -> None:
    plain = drive(make_runner()).run(starts(), 40)
    guessing = drive(make_runner(drafters[name]), num_draft=NUM_DRAFT, chunk=chunk, preempt_every=preempt_every).run(
        starts(), 40
    )
    for kind, one, other in zip(SAMPLINGS, plain, guessing, strict=True):
        assert other.tokens == one.tokens, kind
        assert other.ended == one.ended, kind
        assert [report.token_id for report in other.logprobs] == [report.token_id for report in one.logprobs]
        expected = [report.logprob for report in one.logprobs]
        assert [report.logprob for report in other.logprobs] == pytest.approx(expected, abs=1e-4)
    assert sum(answer.num_drafted for answer in guessing) > 10


def test_right_guesses_save_steps(
    drafters: dict[str, Drafter], make_runner: Callable[..., Runner], drive: Drive
) -> None:
    """A draft model with the same weights is always right, whatever the temperature: same number, same token."""
    for answer in drive(make_runner(drafters["same model"]), num_draft=NUM_DRAFT).run(starts()[:5], 40):
        assert len(answer.tokens) == 40
        assert answer.num_steps < 14
        assert len(answer.tokens) == answer.num_drafted + answer.num_steps


def test_wrong_guesses_are_soon_given_up(
    drafters: dict[str, Drafter], make_runner: Callable[..., Runner], drive: Drive
) -> None:
    (answer,) = drive(make_runner(drafters["other model"]), num_draft=NUM_DRAFT).run(
        [SequenceStart(token_ids=(60, 61, 62), num_prompt_tokens=3, sampling=Sampling(temperature=3.0, seed=1))], 100
    )
    assert answer.num_drafted < 25


def test_a_loop_is_guessed_from_the_text_itself(make_runner: Callable[..., Runner], drive: Drive) -> None:
    """A bias that leaves three tokens only makes the text repeat itself."""
    bias = tuple((token, 40.0) for token in (70, 71, 72))
    sampling = Sampling(logit_bias=bias)
    start = SequenceStart(token_ids=(70, 71), num_prompt_tokens=2, sampling=sampling)
    (plain,) = drive(make_runner()).run([start], 60)
    (guessed,) = drive(make_runner(NgramDrafter()), num_draft=NUM_DRAFT).run([start], 60)
    assert guessed.tokens == plain.tokens
    assert guessed.num_steps < 40


def test_a_draft_model_reads_guesses_within_its_own_context_only(
    model: ServedModel,
    make_tiny_model: Callable[..., Path],
    tmp_path: Path,
    make_runner: Callable[..., Runner],
    drive: Drive,
) -> None:
    short = load_model(make_tiny_model(tmp_path / "short.gguf", context_length=20), ModelOptions())
    drafter = ModelDrafter(short, NUM_BLOCKS, BLOCK_SIZE, model.vocab_size)
    (answer,) = drive(make_runner(drafter), num_draft=NUM_DRAFT).run(starts()[:1], 40)
    assert answer.tokens == drive(make_runner()).run(starts()[:1], 40)[0].tokens
    assert 0 < answer.num_drafted <= 8


def test_guesses_keep_to_the_room_that_the_blocks_have(
    drafters: dict[str, Drafter], make_runner: Callable[..., Runner]
) -> None:
    runner = make_runner(drafters["same model"])
    start = SequenceStart(token_ids=(40, 41, 42), num_prompt_tokens=3)
    (drawn,) = runner.execute(Step(1, (StepSequence(1, 0, 3, (7,), True, 5, start),))).drawn
    assert drawn.num_drafted == 1
    assert len(drawn.tokens) == 2


class Misled:
    """A model that prefers some tokens to others without a reason."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        self._preference = torch.randn(model.vocab_size, generator=torch.Generator().manual_seed(1))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._model.logits(hidden) + self._preference


@pytest.mark.slow
def test_drawn_tokens_follow_the_distribution_with_a_draft_model_that_disagrees(
    model: ServedModel, make_runner: Callable[..., Runner]
) -> None:
    """The second token, which is a verified guess or the correction of one, over many seeds, by a chi-square."""
    runner = make_runner(ModelDrafter(Misled(model), NUM_BLOCKS, BLOCK_SIZE, model.vocab_size))  # type: ignore[arg-type]
    prompt, num_draws = (40, 41, 42), 1500
    temperature, top_k = 1.5, 4
    counts: dict[tuple[int, int], int] = {}
    num_accepted = 0
    for seed in range(num_draws):
        sampling = Sampling(temperature=temperature, top_k=top_k, seed=seed)
        start = SequenceStart(token_ids=prompt, num_prompt_tokens=3, sampling=sampling)
        (drawn,) = runner.execute(Step(2 * seed, (StepSequence(1, 0, 3, (7, 9), True, 1, start),))).drawn
        tokens = drawn.tokens
        num_accepted += len(tokens) - 1
        if len(tokens) == 1:
            (second,) = runner.execute(Step(2 * seed + 1, (StepSequence(1, 3, 1, (), True, 1),))).drawn
            tokens += second.tokens
        pair = (tokens[0], tokens[1])
        counts[pair] = counts.get(pair, 0) + 1
        runner.execute(Step(0, (), forget=(1,)))
    assert 0.2 * num_draws < num_accepted < 0.8 * num_draws
    expected = pair_probabilities(runner, prompt, temperature, top_k)
    assert set(counts) <= set(expected)
    chi_square = sum((counts.get(pair, 0) - num_draws * p) ** 2 / (num_draws * p) for pair, p in expected.items())
    degrees = len(expected) - 1
    assert degrees == 15
    # What 99.9% of true samples stay below (Wilson and Hilferty).
    assert chi_square < degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3


def pair_probabilities(
    runner: Runner, prompt: tuple[int, ...], temperature: float, top_k: int
) -> dict[tuple[int, int], float]:
    """Of the next two tokens, from reported log-probabilities."""

    def likeliest(tokens: tuple[int, ...]) -> dict[int, float]:
        start = SequenceStart(token_ids=tokens, num_prompt_tokens=3, sampling=Sampling(logprobs=top_k))
        (drawn,) = runner.execute(Step(0, (StepSequence(1, 0, len(tokens), (3, 4), True, 0, start),))).drawn
        top = drawn.logprobs[0].top
        weights = torch.tensor([logprob for _, logprob in top], dtype=torch.float64).div(temperature).softmax(0)
        return dict(zip([token for token, _ in top], weights.tolist(), strict=True))

    return {
        (first, second): p * q
        for first, p in likeliest(prompt).items()
        for second, q in likeliest((*prompt, first)).items()
    }


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 8), st.lists(st.integers(1, 59), max_size=3)
)
def test_the_index_finds_the_latest_place_of_the_longest_suffix(tokens: list[int], limit: int, cuts: list[int]) -> None:
    index = NgramIndex()
    for cut in sorted(cuts):
        index.extend(tokens[:cut])
    index.extend(tokens)
    expected: list[int] = []
    for length in (4, 3, 2):
        places = (
            [end for end in range(length, len(tokens)) if tokens[end - length : end] == tokens[-length:]]
            if len(tokens) > length
            else []
        )
        if places:
            tail = tokens[places[-1] :]
            expected = [tail[i % len(tail)] for i in range(limit)]
            break
    assert index.guess(tokens, limit) == expected


def test_the_pace_grows_with_right_guesses_and_rests_after_wrong_ones() -> None:
    pace = GuessPace()
    lengths = []
    for _ in range(4):
        lengths.append(pace.limit(6))
        pace.record(lengths[-1], lengths[-1])
    assert lengths == [2, 4, 6, 6]
    pace.record(6, 2)
    assert pace.limit(6) == 3
    rests = []
    for _ in range(8):
        pace.record(1, 0)
        rest = 0
        while not pace.limit(6):
            rest += 1
        rests.append(rest)
    assert rests == [2, 4, 8, 16, 32, LONGEST_REST, LONGEST_REST, LONGEST_REST]


def test_the_setting_names_what_guesses(
    model: ServedModel,
    tiny_path: Path,
    other_path: Path,
    tmp_path: Path,
    make_tiny_model: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = (tiny_path, ModelOptions(), model, 8, 4)
    assert load_drafter("", *arguments) is None
    assert isinstance(load_drafter("ngram", *arguments), NgramDrafter)
    drafter = load_drafter(str(other_path), *arguments)
    assert isinstance(drafter, ModelDrafter)
    assert drafter.weight_bytes == model.weight_bytes
    assert drafter.cache_bytes > 0
    monkeypatch.setitem(make_tiny_model.__globals__, "CONTROL", ["<|im_start|>", "<|other|>"])
    with pytest.raises(ConfigError, match="another tokenizer"):
        load_drafter(str(make_tiny_model(tmp_path / "stranger.gguf")), *arguments)
