"""Evaluations of a tiny model through its engine, held against plain transformers on the same samples."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from anyio.abc import TaskGroup
from plain_transformers import reference_tokens, transformers_model
from serving import through_the_wire

from callboard.actors.evaluate.evaluator import Evaluator, EvaluatorConfig
from callboard.actors.evaluate.statistics import differences, metrics_of
from callboard.actors.models.loading import load_tokenizer
from callboard.actors.models.store_actor import StoreConfig, StoreKeeper
from callboard.actors.models.tokenizer import Tokenizer
from callboard.actors.serve.engine import Engine, EngineConfig
from callboard.runtime.errors import ActorStopped, NoSuchModel, UsageError
from callboard.runtime.node import Node
from callboard.runtime.refs import Ref
from callboard.runtime.supervision import Restart
from callboard.schemas.evaluate import (
    Evaluate,
    EvaluatedSample,
    EvaluateProgress,
    EvaluationReport,
    EvaluationSamples,
    ListEvaluations,
    ShowEvaluation,
)
from callboard.schemas.models import CompareModels
from callboard.schemas.serve_stats import EngineStats, GetStats

pytestmark = pytest.mark.anyio

Eventually = Callable[[Callable[[], bool]], Awaitable[None]]

QUESTIONS = [
    {"question": f"What comes after {n}?", "choices": [str(n + 1), f"the number {n}", f"{n}{n}"], "answer": n % 3}
    for n in range(12)
]


@dataclass
class Company:
    """A node with an engine on the tiny model, an evaluator and a store's keeper."""

    node: Node
    model: str
    folder: Path

    @property
    def evaluator(self) -> Ref:
        return self.node.actor("evaluator")

    async def serve(self, model: Path, name: str, **options: Any) -> None:
        config = {"num_blocks": 600, "max_batch_tokens": 128, "threads": 1, "block_size": 4, **options}
        await self.node.spawn(Engine, EngineConfig(model=str(model), **config), name=name)

    def write(self, *records: object, name: str = "data.jsonl") -> Path:
        path = self.folder / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    def request(self, data: Path, **options: Any) -> Evaluate:
        return Evaluate(**{"models": (self.model,), "data": str(data), **options})

    async def run(self, data: Path, **options: Any) -> tuple[EvaluationReport, list[EvaluatedSample]]:
        """The report, and the samples of its first model."""
        report = await self.evaluator.ask(self.request(data, **options), timeout=50)
        return report, await self.samples(report.models[0].id)

    async def samples(self, id: str, *, wrong: bool = False) -> list[EvaluatedSample]:
        async with self.evaluator.stream(EvaluationSamples(id, wrong)) as stream:
            return [sample async for sample in stream]

    async def stats(self) -> EngineStats:
        return await self.node.actor("engine.scheduler").ask(GetStats())


@pytest.fixture
async def company(tiny_path: Path, tmp_path: Path) -> AsyncIterator[Company]:
    async with Node("test", round_trip=through_the_wire) as node:
        there = Company(node, str(tiny_path), tmp_path)
        await there.serve(tiny_path, "engine")
        models = str(tmp_path / "models")
        await node.spawn(Evaluator, EvaluatorConfig(models), name="evaluator")
        await node.spawn(StoreKeeper, StoreConfig(models), name="models")
        yield there


@pytest.fixture(scope="module")
def plain(tiny_path: Path) -> Any:
    return transformers_model(tiny_path)


@pytest.fixture(scope="module")
def tokenizer(tiny_path: Path) -> Tokenizer:
    return load_tokenizer(tiny_path)


@torch.inference_mode()
def logprobs(plain: Any, ids: list[int]) -> list[float]:
    """Of each token but the first, by transformers."""
    rows = plain(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].double().log_softmax(-1)
    return rows.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()


def behind(plain: Any, tokenizer: Tokenizer, context: str, continuation: str) -> float:
    before = len(tokenizer.encode(context, add_bos=False))
    return sum(logprobs(plain, tokenizer.encode(context + continuation, add_bos=False))[before - 1 :])


def values(report: EvaluationReport) -> dict[str, float]:
    return {metric.name: metric.value for metric in report.models[0].metrics}


async def test_choices_are_those_that_transformers_would_take(
    company: Company, plain: Any, tokenizer: Tokenizer
) -> None:
    report, samples = await company.run(company.write(*QUESTIONS))
    right = right_by_length = 0
    for sample, record in zip(samples, QUESTIONS, strict=True):
        prompt = f"Question: {record['question']}\nAnswer:"
        expected = [behind(plain, tokenizer, prompt, f" {choice}") for choice in record["choices"]]
        assert sample.prompt == prompt
        assert sample.logprobs == pytest.approx(expected, abs=1e-3)
        per_byte = [logprob / len(choice) for logprob, choice in zip(expected, record["choices"], strict=True)]
        right += max(range(3), key=expected.__getitem__) == record["answer"]
        right_by_length += max(range(3), key=per_byte.__getitem__) == record["answer"]
    assert values(report) == {"acc": right / 12, "acc_norm": right_by_length / 12}
    assert (report.task, report.samples, report.num_left_out, report.differences) == ("choices", 12, 0, ())
    wrong = await company.samples(report.models[0].id, wrong=True)
    assert len(wrong) == 12 - right
    assert all(sample.said not in sample.answers for sample in wrong)


async def test_examples_and_letters_stand_in_what_is_scored(company: Company, plain: Any, tokenizer: Tokenizer) -> None:
    shots = company.write({**QUESTIONS[0], "answer": 1}, name="shots.jsonl")
    report, samples = await company.run(company.write(*QUESTIONS[1:4]), task="mmlu", shots=1, shots_from=str(shots))
    example = "What comes after 0?\nA. 1\nB. the number 0\nC. 00\nAnswer: B\n\n"
    question = "What comes after 1?\nA. 2\nB. the number 1\nC. 11\nAnswer:"
    expected = [behind(plain, tokenizer, example + question, f" {letter}") for letter in "ABC"]
    assert samples[0].choices == ("A", "B", "C")
    assert samples[0].logprobs == pytest.approx(expected, abs=1e-3)
    assert [metric.name for metric in report.models[0].metrics] == ["acc"]


async def test_a_blank_is_filled_with_what_makes_the_rest_likely(
    company: Company, plain: Any, tokenizer: Tokenizer
) -> None:
    data = company.write({"sentence": "He ate the _ at noon.", "option1": "pie", "option2": "box", "answer": "1"})
    _, (sample,) = await company.run(data)
    expected = [behind(plain, tokenizer, f"He ate the {option}", " at noon.") for option in ("pie", "box")]
    assert sample.logprobs == pytest.approx(expected, abs=1e-3)


async def test_in_a_chat_choices_are_scored_as_answers(company: Company, plain: Any, tokenizer: Tokenizer) -> None:
    _, samples = await company.run(company.write(*QUESTIONS[:2]), chat=True)
    for sample, record in zip(samples, QUESTIONS, strict=False):
        asked = [{"role": "user", "content": f"Question: {record['question']}\nAnswer:"}]
        before = tokenizer.encode_chat(asked)
        expected = [
            sum(logprobs(plain, [*before, *tokenizer.encode(choice, add_bos=False)])[len(before) - 1 :])
            for choice in record["choices"]
        ]
        assert sample.logprobs == pytest.approx(expected, abs=1e-3)


async def test_answers_are_those_that_transformers_gives(company: Company, plain: Any, tokenizer: Tokenizer) -> None:
    prompts = [f"go on {n}" for n in range(5)]
    said = [
        tokenizer.decode(reference_tokens(plain, tokenizer.encode(prompt), 8), continues=True) for prompt in prompts
    ]
    records = [
        {"prompt": prompt, "answer": text.partition("\n")[0].strip() if n % 2 else "something else"}
        for n, (prompt, text) in enumerate(zip(prompts, said, strict=True))
    ]
    report, samples = await company.run(company.write(*records), max_tokens=8)
    assert [sample.said for sample in samples] == [text.partition("\n")[0] for text in said]
    assert values(report)["exact_match"] == 0.4
    assert report.models[0].cut_short == sum("\n" not in text for text in said)
    numbers = [{"question": f"How many? {n}", "answer": f"so\n#### {n}"} for n in range(3)]
    report, samples = await company.run(company.write(*numbers), max_tokens=8)
    assert (report.task, list(values(report))) == ("gsm8k", ["exact_match"])
    prompt = tokenizer.encode("Question: How many? 0\nAnswer:")
    assert samples[0].said == tokenizer.decode(reference_tokens(plain, prompt, 8), continues=True)


async def test_a_last_word_is_scored_after_what_stands_before_it(
    company: Company, plain: Any, tokenizer: Tokenizer
) -> None:
    texts = ["the hall was tall", "hello hello hello"]
    report, samples = await company.run(company.write(*({"text": text} for text in texts)), task="last_word")
    expected = [behind(plain, tokenizer, "the hall was", " tall"), behind(plain, tokenizer, "hello hello", " hello")]
    assert [sample.logprobs[0] for sample in samples] == pytest.approx(expected, abs=1e-3)
    assert values(report)["word_perplexity"] == pytest.approx(math.exp(-sum(expected) / 2), rel=1e-3)
    for sample, text in zip(samples, texts, strict=True):
        before, _, word = text.rpartition(" ")
        ids, context = tokenizer.encode(text, add_bos=False), tokenizer.encode(before, add_bos=False)
        greedy = all(_next(plain, ids[:place]) == ids[place] for place in range(len(context), len(ids)))
        assert (sample.is_right, sample.answers) == (greedy, (word,))


@torch.inference_mode()
def _next(plain: Any, ids: list[int]) -> int:
    return int(plain(input_ids=torch.tensor([ids])).logits[0, -1].argmax())


async def test_perplexity_is_that_of_all_tokens_in_windows_of_the_context(
    company: Company, plain: Any, tokenizer: Tokenizer
) -> None:
    texts = ["Tell the hall. " * 40, "All is well, hello! é " * 3]
    report, samples = await company.run(company.write(*({"text": text} for text in texts)))
    lost, num_tokens, num_bytes = 0.0, 0, 0
    for text in texts:
        ids = tokenizer.encode(text)
        is_whole = len(tokenizer.encode(text, add_bos=False)) < len(ids)
        num_bytes += len(text.encode()) - (0 if is_whole else len(tokenizer.token_bytes(ids[0])))
        num_tokens += len(ids) - 1
        scored = 1
        for begin in range(0, len(ids), 127):  # windows of 255 tokens: one of the 256 is the engine's to draw
            window = ids[begin : begin + 255]
            if scored < begin + len(window):
                lost -= sum(logprobs(plain, window)[scored - begin - 1 :])
                scored = begin + len(window)
        assert scored == len(ids)
    assert len(tokenizer.encode(texts[0])) > 256
    assert values(report)["token_perplexity"] == pytest.approx(math.exp(lost / num_tokens), rel=1e-4)
    assert values(report)["bits_per_byte"] == pytest.approx(lost / math.log(2) / num_bytes, rel=1e-4)
    assert [sample.prompt for sample in samples] == texts
    assert all(sample.is_right is None for sample in samples)


async def test_what_is_longer_than_the_context_is_left_out_and_said(company: Company) -> None:
    long = {**QUESTIONS[0], "question": "word " * 100}
    report, samples = await company.run(company.write(QUESTIONS[0], long, QUESTIONS[1]))
    assert (report.samples, report.num_left_out) == (2, 1)
    assert (report.left_out[0].line, report.left_out[0].model) == (2, company.model)
    assert "context holds 256" in report.left_out[0].reason
    assert [bool(sample.left_out) for sample in samples] == [False, True, False]
    with pytest.raises(UsageError, match="no sample could be asked"):
        await company.run(company.write(long))
    with pytest.raises(UsageError, match="no sample could be asked"):
        await company.run(company.write({"prompt": "a", "answer": "b"}), max_tokens=300)


async def test_an_interrupted_run_goes_on_and_a_finished_one_is_shown(company: Company) -> None:
    data = company.write(*({"prompt": f"go on {n}", "answer": "x"} for n in range(60)))
    unbroken, expected = await company.run(data, max_tokens=24, again=True)
    wanted = company.request(data, max_tokens=24, again=True)
    heard: list[EvaluateProgress] = []
    async with company.evaluator.stream(wanted) as stream:
        async for progress in stream:
            heard.append(progress)
            if progress.stage == "asking" and progress.done == 5:
                break
    report, samples = await company.run(data, max_tokens=24)
    assert samples == expected
    assert 5 <= report.models[0].resumed < 60
    assert report.models[0].metrics == unbroken.models[0].metrics
    lines = (company.folder / "evaluations" / report.models[0].id / "samples.jsonl").read_bytes().split(b"\n")[:-1]
    assert len(lines) == len({json.loads(line)["index"] for line in lines}) == 60
    asked = (await company.stats()).requests
    again, _ = await company.run(data, max_tokens=24)
    assert (await company.stats()).requests == asked
    assert again == report


async def test_an_evaluator_that_is_to_end_lets_go_and_the_next_one_goes_on(company: Company) -> None:
    data = company.write(*({"prompt": f"go on {n}", "answer": "x"} for n in range(100)))
    wanted = company.request(data, max_tokens=24)

    async def follow(stopping: TaskGroup) -> None:
        async with company.evaluator.stream(wanted) as stream:
            async for progress in stream:
                if progress.stage == "asking" and progress.done == 3:
                    stopping.start_soon(company.node.stop, "evaluator")

    async with anyio.create_task_group() as stopping:
        with pytest.raises(ActorStopped, match="in the middle"):
            await follow(stopping)
    await company.node.spawn(Evaluator, EvaluatorConfig(str(company.folder / "models")), name="evaluator")
    report, samples = await company.run(data, max_tokens=24)
    assert 3 <= report.models[0].resumed < 100
    assert len(samples) == 100


async def test_one_that_is_there_for_one_request_ends_with_it(company: Company, eventually: Eventually) -> None:
    config = EvaluatorConfig(str(company.folder / "models"), once=True)
    evaluator = await company.node.spawn(Evaluator, config, name="once", restart=Restart.TEMPORARY)
    assert (await evaluator.ask(company.request(company.write(*QUESTIONS)))).samples == 12
    await eventually(lambda: "once" not in company.node.actors)


async def test_an_engine_that_has_no_room_is_asked_again(company: Company, tiny_path: Path) -> None:
    full = company.folder / "full.gguf"
    shutil.copy(tiny_path, full)
    await company.serve(full, "full", max_running=2, max_waiting=2)
    report, _ = await company.run(company.write(*QUESTIONS), models=(str(full),))
    assert (report.samples, report.num_left_out) == (12, 0)
    assert (await company.node.actor("full.scheduler").ask(GetStats())).refused > 0


async def test_two_models_are_compared_on_the_samples_that_both_could_be_asked(
    company: Company, make_tiny_model: Callable[..., Path]
) -> None:
    other = make_tiny_model(company.folder / "other.gguf", seed=5)
    await company.serve(other, "other", context_length=64)
    long = {**QUESTIONS[0], "question": "word " * 20}
    data = company.write(*QUESTIONS[:6], long)
    report, ours = await company.run(data, models=(company.model, str(other)))
    theirs = await company.samples(report.models[1].id)
    assert (report.samples, report.num_left_out) == (6, 1)
    assert (report.left_out[0].line, report.left_out[0].model) == (7, str(other))
    assert not ours[6].left_out
    assert report.models[0].metrics == metrics_of(ours[:6])
    assert report.models[1].metrics == metrics_of(theirs[:6])
    assert report.differences == differences(str(other), theirs[:6], ours[:6])
    assert {difference.metric for difference in report.differences} == {"acc", "acc_norm"}
    assert report.models[0].digest != report.models[1].digest
    assert report.models[1].context_length == 64


async def test_what_is_kept_is_listed_shown_and_a_result_of_its_model(company: Company, tiny_path: Path) -> None:
    report, _ = await company.run(company.write(*QUESTIONS, name="after.jsonl"))
    (listed,) = (await company.evaluator.ask(ListEvaluations())).evaluations
    assert (listed.model, listed.task, listed.data, listed.done, listed.total) == (
        company.model, "choices", "after.jsonl", 12, 12,
    )  # fmt: skip
    assert listed.metrics == report.models[0].metrics
    assert await company.evaluator.ask(ShowEvaluation(listed.id[:6])) == report
    keeper = company.node.actor("models")
    (found,) = (await keeper.ask(CompareModels((company.model,)))).results
    (result,) = found.evaluations
    assert (result.id, result.task, result.data, result.samples) == (listed.id, "choices", "after.jsonl", 12)
    assert (result.metrics, found.trouble) == (report.models[0].metrics, "")
    # Another model of that name has other results.
    copy = company.folder / "copy.gguf"
    shutil.copy(tiny_path, copy)
    assert (await keeper.ask(CompareModels((str(copy),)))).results[0].evaluations == ()
    with pytest.raises(UsageError, match="is none"):
        await company.evaluator.ask(ShowEvaluation("nothing"))


async def test_who_is_asked_must_be_there(company: Company) -> None:
    data = company.write(*QUESTIONS)
    for name in ("nobody", str(company.folder / "none.gguf"), str(company.folder)):
        with pytest.raises(NoSuchModel):
            await company.run(data, models=(company.model, name))
    assert (await company.evaluator.ask(ListEvaluations())).evaluations == ()
